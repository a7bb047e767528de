//! The functions that prepare a restore: a point to get back to, and a plan.

#![allow(clippy::result_large_err, reason = "pgrx takes SQLSTATE and HINT from an unboxed report")]

use std::ffi::CString;
use std::fs::File;
use std::io;

use chrono::{SecondsFormat, Utc};
use nrt_core::inventory::Failure;
use nrt_core::lsn::Lsn;
use nrt_core::restore::answer::{self, NoPlan, Step};
use nrt_core::restore::catalog::RestorePoint;
use nrt_core::restore::points;
use nrt_process::{Leashed, Report};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::functions::{POLL, must_be_a_primary, shortened};
use crate::postgres::{self, wal};
use crate::report::{refuse, warn};
use crate::worker::child;
use crate::{archiving, state_directory};

/// The longest text that is handed to the command, in bytes.
const LONGEST_ARGUMENT: usize = 1000;

/// Makes a restore point, and remembers where it is. Returns the position right after it, up to
/// which the WAL is on disk then.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_restore_point(name text) RETURNS pg_lsn
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn nrt_restore_point(name: Option<&str>) -> Result<i64, ErrorReport> {
    let invalid = |message: String, hint: &str| {
        refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
    };
    const HOW: &str = "Use a name of 1 to 63 bytes, like before_migration_7.";
    let name = name
        .ok_or_else(|| invalid("the name of a restore point must not be null".to_string(), HOW))?;
    points::check_name(name).map_err(|message| invalid(message, HOW))?;
    must_be_a_primary("restore points are made")?;
    if archiving::level_is_minimal() {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "wal_level is minimal: nothing can be restored with this WAL",
            "Remove wal_level from the configuration, or set it to replica, and restart the server.",
        ));
    }
    let in_c = CString::new(name).map_err(|error| invalid(error.to_string(), HOW))?;
    // Until the point is recorded: two of one name could be made at the same moment.
    let lock = wait_for_the_list();
    let known = state_directory::restore_points();
    if let Ok(known) = &known {
        refuse_a_name_in_use(known, name)?;
    }
    let (timeline, lsn) = wal::restore_point(&in_c);
    let point = RestorePoint { name: name.to_string(), timeline, lsn, at: Utc::now() };
    // Also where the list could not be locked or read: it may be possible all the same.
    let recorded = state_directory::append_restore_point(&point);
    if let Err(error) = recorded.and(known.map(drop)).and(lock.map(drop)) {
        warn(
            format!("restore point \"{name}\" was made, but it could not be recorded: {error}"),
            format!(
                "Note its position, {lsn}: a restore can be told that instead of the name. See that \
                 the server can write there before you make another one."
            ),
        );
    }
    Ok(lsn.0.cast_signed())
}

/// Refuses a name by which somebody could get back to another point than they mean.
fn refuse_a_name_in_use(known: &[RestorePoint], name: &str) -> Result<(), ErrorReport> {
    let oldest = state_directory::inventory()
        .and_then(|it| points::oldest_reachable(&it, postgres::system_identifier()));
    let Some(point) = points::in_use(known, name, oldest) else { return Ok(()) };
    Err(refuse(
        PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
        format!(
            "there is a restore point \"{name}\" already, made at {} ({})",
            point.at.to_rfc3339_opts(SecondsFormat::Secs, true),
            point.lsn
        ),
        "Choose another name. This one is free again when the backups before it have expired.",
    ))
}

/// Takes the lock on the list of restore points. Others hold it only for moments.
fn wait_for_the_list() -> io::Result<File> {
    loop {
        if let Some(lock) = state_directory::lock_restore_points()? {
            return Ok(lock);
        }
        postgres::latch::wait(POLL);
    }
}

/// Tells what a restore to a target would do, or why it cannot be reached. Without a target: to the
/// newest that there is.
///
/// The transaction is a text: up to version 15 PostgreSQL takes any text for an xid8.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_restore_plan(
    target_time timestamptz DEFAULT NULL,
    target_lsn pg_lsn DEFAULT NULL,
    target_xid text DEFAULT NULL,
    target_name text DEFAULT NULL,
    target_timeline text DEFAULT NULL,
    inclusive boolean DEFAULT true,
    backup text DEFAULT NULL
) RETURNS TABLE (step integer, action text, command text, detail text)
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
#[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
fn nrt_restore_plan(
    target_time: Option<TimestampWithTimeZone>,
    target_lsn: Option<i64>,
    target_xid: Option<&str>,
    target_name: Option<&str>,
    target_timeline: Option<&str>,
    inclusive: Option<bool>,
    backup: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(step, i32),
            name!(action, String),
            name!(command, Option<String>),
            name!(detail, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let invalid = |message: String, hint: &str| {
        refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
    };
    must_be_a_primary("restores are planned")?;
    let data_directory = postgres::data_directory().to_string_lossy().into_owned();
    let mut args = ["plan", "-D", &data_directory, "--json"].map(str::to_string).to_vec();
    if let Some(time) = target_time {
        let time = postgres::instant(time).ok_or_else(|| {
            let message = "the target time is infinite, or farther away than any clock shows";
            invalid(message.to_string(), "Leave it out to plan a restore to the newest.")
        })?;
        let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
        args.push(format!("--target-time={time}"));
    }
    if let Some(lsn) = target_lsn {
        args.push(format!("--target-lsn={}", Lsn(lsn.cast_unsigned())));
    }
    for (option, value) in [
        ("--target-xid", target_xid),
        ("--target-name", target_name),
        ("--timeline", target_timeline),
        ("--backup", backup),
    ] {
        let Some(value) = value else { continue };
        if value.len() > LONGEST_ARGUMENT {
            return Err(invalid(
                format!("\"{}\" is too long for {option}", shortened(value)),
                "Names have at most 63 bytes.",
            ));
        }
        args.push(format!("{option}={value}"));
    }
    match inclusive {
        Some(true) => {}
        Some(false) => args.push("--exclusive".to_string()),
        None => {
            let message = "whether the target is inclusive must not be null".to_string();
            return Err(invalid(message, "Use true or false."));
        }
    }
    // How far the WAL is good that lies in this server's own pg_wal.
    if let Some((timeline, flushed)) = wal::flushed() {
        args.push(format!("--flushed={flushed}"));
        args.push(format!("--server-timeline={timeline}"));
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    let rows = ask(args, &data_directory)?.into_iter().map(move |step| {
        let Step { step, action, command, detail } = step;
        (step, action, given(command), given(detail))
    });
    Ok(TableIterator::new(rows.collect::<Vec<_>>()))
}

/// Has the command plan.
fn ask(args: Vec<String>, data_directory: &str) -> Result<Vec<Step>, ErrorReport> {
    let failed = |words: &str| {
        refuse(
            PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            format!("nrt-backup could not plan the restore: {words}"),
            format!("Run nrt-backup plan -D {data_directory} as the server's user to see more."),
        )
    };
    let child = child::plan(args).map_err(|Failure { message, hint }| {
        refuse(PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION, message, hint)
    })?;
    let report = wait_for(child).map_err(|error| failed(&error.to_string()))?;
    match answer::read(report.exit, report.answer.as_deref(), &report.output) {
        Ok(steps) => Ok(steps),
        Err(NoPlan::Refused(Failure { message, hint })) => {
            Err(refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint))
        }
        Err(NoPlan::Failed(words)) => Err(failed(&words)),
    }
}

/// Waits for the command's end. When the statement is cancelled, it is killed with all below it as
/// it is dropped; when this process ends without a word, its leash sees to that.
fn wait_for(mut child: Leashed) -> io::Result<Report> {
    loop {
        if let Some(report) = child.try_wait()? {
            return Ok(report);
        }
        postgres::latch::wait(POLL);
    }
}
