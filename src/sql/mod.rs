//! Defines the SQL surface: what an operator calls and sees.
//!
//! The functions that do something are in the extension's schema, `public` unless chosen
//! otherwise; the views are in the schema `nrt`, above row functions that nobody calls directly.

mod functions;
mod restore;
mod rows;

use pgrx::prelude::*;

extension_sql_file!("../../sql/views.sql", name = "views", finalize);

/// Runs inside a server that `./dev test server` makes.
#[cfg(any(test, feature = "pg_test"))]
#[pg_schema]
mod tests {
    use std::ffi::CString;

    use nrt_core::lsn::Lsn;
    use nrt_core::options::{self, Kind};
    use pgrx::pg_sys::panic::CaughtError;
    use pgrx::prelude::*;

    use crate::postgres::wal;
    use crate::settings::value_of;
    use crate::{shared, state_directory};

    /// SQLSTATE, message, DETAIL and HINT of the error that something raises.
    fn error_of<T>(action: impl FnOnce() -> T + std::panic::UnwindSafe) -> Option<[String; 4]> {
        let text = |text: Option<&str>| text.unwrap_or_default().to_string();
        PgTryBuilder::new(|| {
            action();
            None
        })
        .catch_others(|error| match error {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => Some([
                format!("{:?}", report.sql_error_code()),
                report.message().to_string(),
                text(report.detail()),
                text(report.hint()),
            ]),
            CaughtError::RustPanic { ereport, .. } => panic!("{}", ereport.message()),
        })
        .execute()
    }

    fn refused(sql: &'static str) -> [String; 4] {
        error_of(|| Spi::run(sql)).expect("must be refused")
    }

    fn one<T: FromDatum + IntoDatum>(sql: &str) -> T {
        Spi::get_one(sql).expect("can be asked").expect("is not null")
    }

    /// What reading the configuration file does with a value.
    #[allow(unsafe_code, reason = "SQL can set no setting of the configuration file in here")]
    fn assign(name: &std::ffi::CStr, value: &str) {
        let value = CString::new(value).expect("no NUL");
        // SAFETY: both texts end and are copied; the change is undone with the transaction.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SIGHUP,
                pg_sys::GucSource::PGC_S_SESSION,
            );
        }
    }

    #[pg_test]
    fn every_setting_is_registered_with_its_default() {
        for option in options::ALL {
            let registered: String =
                one(&format!("select boot_val from pg_settings where name = '{}'", option.name()));
            assert_eq!(registered, option.default(), "{}", option.name());
        }
        let mine = "select count(*) from pg_settings where name like 'nrt\\_backup.%'";
        assert_eq!(one::<i64>(mine), options::ALL.len() as i64);
    }

    #[pg_test]
    fn a_check_hook_refuses_with_detail_and_keeps_the_value() {
        for (option, bad) in [
            (&options::FULL_SCHEDULE, "61 * * * *"),
            (&options::WAL_GROWTH_THRESHOLD, "a lot"),
            (&options::REPOSITORY, "relative"),
            (&options::TIMEZONE, "Mars/Olympus"),
            (&options::STANZA, "two words"),
            (&options::COMPRESS_TYPE, "zip"),
        ] {
            assert_eq!(option.kind, Kind::Text);
            let before = value_of(option);
            let [code, message, detail, _] =
                error_of(|| assign(option.name, bad)).expect("must be refused");
            assert_eq!(code, "ERRCODE_INVALID_PARAMETER_VALUE", "{message}");
            assert!(message.contains(option.name()) && message.contains(bad), "{message}");
            let reason = (option.check)(bad).expect_err("refused");
            assert_eq!(detail, reason);
            assert_eq!(value_of(option), before);
        }
    }

    #[pg_test]
    fn a_value_that_is_taken_is_read_back() {
        for (option, value, read) in [
            (&options::WAL_GROWTH_THRESHOLD, "1.5GB", "1.5GB"),
            (&options::FULL_SCHEDULE, "@daily", "@daily"),
            (&options::RETENTION_DAYS, "14", "14"),
            (&options::WAL_MONITOR_INTERVAL, "2min", "120"),
            (&options::WAL_MONITOR, "no", "off"),
        ] {
            assign(option.name, value);
            assert_eq!(value_of(option), read, "{}", option.name());
        }
        let effect =
            "select effect from nrt.settings where name = 'nrt_backup.wal_growth_threshold'";
        assert_eq!(one::<String>(effect), "1610612736 bytes");
    }

    #[pg_test]
    fn shared_memory_and_the_worker_are_there() {
        assert!(shared::is_there());
        // Waits for the worker.
        assert!(one::<i64>("select count(*) from nrt_check()") > 0);
        let (worker, present) = shared::look();
        assert_ne!(worker.pid, 0);
        assert_eq!(worker.pid, one::<i32>("select worker_pid from nrt.status"));
        assert_eq!(present.activity.as_str(), one::<String>("select activity from nrt.status"));
        assert!(state_directory::path().join("health.json").exists());
    }

    #[pg_test]
    fn every_view_answers() {
        let views = "select array_agg(relname::text) from pg_class
                      where relnamespace = 'nrt'::regnamespace and relkind = 'v'";
        let views: Vec<String> = one(views);
        assert_eq!(views.len(), 9);
        for view in views {
            assert!(one::<i64>(&format!("select count(v) from nrt.{view} v")) >= 0, "{view}");
        }
        assert_eq!(one::<i64>("select count(*) from nrt.schedule"), 4);
        assert_eq!(one::<i64>("select count(*) from nrt.status"), 1);
    }

    #[pg_test]
    fn a_backup_of_no_known_type_is_refused() {
        for sql in ["select nrt_backup_now('everything')", "select nrt_backup_start('everything')"]
        {
            let [code, message, _, hint] = refused(sql);
            assert_eq!(code, "ERRCODE_INVALID_PARAMETER_VALUE");
            assert_eq!(message, "\"everything\" is not a type of backup");
            assert_eq!(hint, "Use full, diff or incr.");
        }
        let [code, message, ..] = refused("select nrt_backup_now(null)");
        assert_eq!(code, "ERRCODE_INVALID_PARAMETER_VALUE");
        assert!(message.contains("null"), "{message}");
    }

    #[pg_test]
    fn a_restore_point_is_made_once_and_flushed() {
        let made: String = one("select nrt_restore_point('a point')::text");
        let made: Lsn = made.parse().expect("a position");
        let (timeline, flushed) = wal::flushed().expect("no recovery here");
        assert!(Lsn(0) < made && made <= flushed, "{made} {flushed}");
        let points = state_directory::restore_points().expect("can be read");
        let found: Vec<_> = points.iter().filter(|point| point.name == "a point").collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].timeline, found[0].lsn), (timeline, made));
        let [code, message, _, hint] = refused("select nrt_restore_point('a point')");
        assert_eq!(code, "ERRCODE_DUPLICATE_OBJECT");
        assert!(message.contains(&made.to_string()), "{message}");
        assert!(hint.starts_with("Choose another name."), "{hint}");
    }

    #[pg_test]
    fn a_name_that_is_none_is_refused() {
        for (sql, words) in [
            ("select nrt_restore_point(null)", "must not be null"),
            ("select nrt_restore_point('')", "must not be empty"),
            ("select nrt_restore_point(repeat('x', 64))", "has 64 bytes"),
            ("select nrt_restore_point(e'a\\tb')", "control characters"),
        ] {
            let [code, message, _, hint] = refused(sql);
            assert_eq!(code, "ERRCODE_INVALID_PARAMETER_VALUE");
            assert!(message.contains(words) && hint.contains("63 bytes"), "{message} {hint}");
        }
    }

    #[pg_test]
    fn a_plan_is_refused_before_anybody_is_asked() {
        for (sql, words) in [
            ("select nrt_restore_plan('infinity')", "infinite"),
            ("select nrt_restore_plan('294000-01-01')", "farther away"),
            ("select nrt_restore_plan(inclusive => null)", "must not be null"),
            ("select nrt_restore_plan(target_xid => repeat('1', 1001))", "for --target-xid"),
        ] {
            let [code, message, _, hint] = refused(sql);
            assert_eq!(code, "ERRCODE_INVALID_PARAMETER_VALUE", "{message}");
            assert!(message.contains(words) && !hint.is_empty(), "{message} {hint}");
        }
    }

    #[pg_test]
    fn a_transaction_id_is_told_with_its_epoch() {
        let before: String = one("select pg_current_xact_id()::text");
        assert!(before.parse::<u64>().expect("a number") < wal::next_transaction_id());
    }

    #[pg_test]
    fn a_backup_without_pgbackrest_fails_at_once_and_is_in_the_history() {
        let [code, message, _, hint] = refused("select nrt_backup_now()");
        assert_eq!(code, "ERRCODE_EXTERNAL_ROUTINE_EXCEPTION");
        assert!(message.contains("no program \"no-such-pgbackrest\""), "{message}");
        assert!(hint.contains("nrt_backup.pgbackrest"), "{hint}");
        let recorded = "select message from nrt.backup_history where status = 'failed'
                         order by job desc limit 1";
        assert!(message.ends_with(&one::<String>(recorded)), "{message}");
    }
}
