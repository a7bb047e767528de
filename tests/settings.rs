//! Sets every option to what it must refuse and to what it must take, and looks at what comes of it
//! without a restart.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::protected::{SOON, archive_segment, history, protected, wait_for_backups};
use nrt_core::options::{self, Kind};
use nrt_tests::Cluster;

/// What an option refuses, and a part of the reason.
const REFUSED: &[(&str, &[(&str, &str)])] = &[
    (
        "stanza",
        &[
            ("two words", "' ' is not allowed"),
            ("../outside", "'/' is not allowed"),
            ("-option", "must begin with"),
            ("global", "section"),
            ("line\nrepo2-path=/tmp", "is not allowed"),
        ],
    ),
    (
        "retention_days",
        &[
            ("0", "outside the valid range"),
            ("-1", "outside the valid range"),
            ("36501", "outside the valid range"),
            ("many", ""),
        ],
    ),
    (
        "full_schedule",
        &[
            ("0 3 * *", "4 fields"),
            ("61 3 * * *", "minute is \"61\""),
            ("0 25 * * *", "hour is \"25\""),
            ("0 3 0 * *", "day of month is \"0\""),
            ("0 3 * 13 *", "month is \"13\""),
            ("0 3 * * 8", "day of week is \"8\""),
            ("0 3 * * montag", "day of week is \"montag\""),
            ("0 0 3 * * *", "none for seconds"),
            ("daily", "schedule is \"daily\""),
            ("@reboot", "not a time"),
            ("0 0 30 2 *", "never"),
        ],
    ),
    (
        "incremental_schedule",
        &[("*/0 * * * *", "minute is \"*/0\""), ("now", "schedule is \"now\"")],
    ),
    (
        "differential_schedule",
        &[("5-1 * * * *", "minute is \"5-1\""), ("1,,2 * * * *", "minute is")],
    ),
    (
        "timezone",
        &[("Mars/Olympus", "Mars/Olympus"), ("Berlin", "Europe/Berlin"), ("+02:00", "+02:00")],
    ),
    ("wal_monitor", &[("maybe", "Boolean"), ("", "Boolean")]),
    (
        "wal_monitor_interval",
        &[("0", "outside the valid range"), ("2d", "outside the valid range"), ("1 parsec", "")],
    ),
    (
        "wal_growth_threshold",
        &[
            ("0", "more than 0"),
            ("-1MB", "is negative"),
            ("1 parsec", "\"parsec\" is not a unit"),
            ("MB", "does not begin with a number"),
            ("1,5GB", "is not a unit"),
            ("99999999PB", "larger than"),
        ],
    ),
    ("min_wal_growth", &[("-1", "is negative"), ("lots", "does not begin with a number")]),
    (
        "repository",
        &[
            ("", "absolute"),
            ("relative/path", "absolute"),
            ("/a\nrepo2-path=/b", "control character"),
        ],
    ),
    (
        "min_growth_interval",
        &[("-1", "outside the valid range"), ("2d", "outside the valid range")],
    ),
    ("max_growth_share", &[("101", "outside the valid range"), ("half", "")]),
    (
        "max_incrementals",
        &[("-1", "outside the valid range"), ("10001", "outside the valid range")],
    ),
    ("archive_queue_max", &[("-1", "is negative"), ("lots", "does not begin with a number")]),
    ("lock_path", &[("tmp", "absolute"), ("/a\nb", "control character")]),
    (
        "pgbackrest",
        &[
            ("", "absolute path"),
            ("bin/pgbackrest", "absolute path"),
            ("/a\tb", "control character"),
        ],
    ),
    ("pgbackrest_config", &[("pgbackrest.conf", "absolute"), ("/a\nb", "control character")]),
    ("database", &[("", "1 to 63 bytes"), ("a\nb", "control character")]),
    ("process_max", &[("-1", "outside the valid range"), ("1000", "outside the valid range")]),
    (
        "compress_type",
        &[("zip", "zst, lz4, gz, bz2 or none"), ("", "zst, lz4"), ("ZST", "zst, lz4")],
    ),
    ("max_backup_age", &[("-1", "outside the valid range"), ("soon", "")]),
    ("min_disk_free", &[("91", "outside the valid range"), ("-1", "outside the valid range")]),
    ("rclone_config", &[("rclone.conf", "absolute"), ("/a\nb", "control character")]),
    ("remote_name", &[("there:", "without the colon"), ("-x", "without the colon")]),
    ("remote_path", &[("a/../b", "\"..\""), ("a//b", "\"//\""), (" a", "blanks")]),
    ("name", &[("a/b", ""), ("..", "")]),
    ("ship_interval", &[("49", "outside the valid range"), ("2h", "outside the valid range")]),
    ("bandwidth_limit", &[("fast", ""), ("25:00,1M", "")]),
    ("transfers", &[("0", "outside the valid range"), ("65", "outside the valid range")]),
    ("rclone", &[("", "absolute path"), ("bin/rclone", "absolute path")]),
    ("comparison_schedule", &[("0 5 * *", "4 fields"), ("weekly", "schedule is \"weekly\"")]),
    ("portable_tar", &[("perhaps", "Boolean")]),
    ("max_ship_lag", &[("-1", "outside the valid range"), ("late", "")]),
    ("drill_schedule", &[("0 4 * *", "4 fields"), ("weekly", "schedule is \"weekly\"")]),
    ("drill_query", &[(TOO_LONG, "no more than 10000 bytes")]),
    ("drill_directory", &[("drill", "absolute"), ("/a\nb", "control character")]),
    ("max_drill_age", &[("-1", "outside the valid range"), ("old", "")]),
];

/// A query that is too long for a command line.
const TOO_LONG: &str = match std::str::from_utf8(&[b'x'; 10_001]) {
    Ok(text) => text,
    Err(_) => "",
};

/// A literal of SQL, also with control characters.
fn literal(value: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace('\'', r"\'").replace('\n', r"\n");
    format!("E'{}'", escaped.replace('\t', r"\t"))
}

/// Sets a setting as the operator does with SQL, in force when this returns.
fn alter(cluster: &Cluster, name: &str, value: &str) {
    cluster.sql(&format!("alter system set nrt_backup.{name} = {}", literal(value)));
    // Reads it, and waits until a new session has it.
    cluster.reload();
}

fn setting(cluster: &Cluster, name: &str, column: &str) -> String {
    cluster.value(&format!("select {column} from nrt.settings where name = 'nrt_backup.{name}'"))
}

#[test]
fn bad_values_are_refused_with_the_reason_and_change_nothing() {
    let cluster = protected("refuses");
    for option in options::ALL {
        assert!(
            REFUSED.iter().any(|(name, _)| option.name() == format!("nrt_backup.{name}")),
            "there is nothing that {} must refuse",
            option.name()
        );
    }
    let all = "select string_agg(settings::text, ' ') from nrt.settings as settings";
    let before = cluster.value(all);
    for (name, values) in REFUSED {
        let name = format!("nrt_backup.{name}");
        let option = options::ALL.into_iter().find(|it| it.name() == name).expect("an option");
        for (value, reason) in *values {
            let refused = cluster
                .try_sql(&format!("alter system set {name} = {}", literal(value)))
                .err()
                .unwrap_or_else(|| panic!("{name} took {value:?}"));
            let told = format!("{name} = {value:?}: {refused}");
            assert_eq!(refused.sqlstate, "22023", "{told}");
            assert!(refused.message.contains(&name), "{told}");
            match option.kind {
                Kind::Text => {
                    assert!(refused.message.contains(value), "{told}");
                    assert!(refused.detail.contains(reason), "not \"{reason}\": {told}");
                    assert!(
                        refused.detail.starts_with(|it: char| it.is_uppercase() || it == '"'),
                        "{told}"
                    );
                    assert!(refused.detail.ends_with('.'), "{told}");
                }
                // What PostgreSQL itself says.
                _ => assert!(refused.message.contains(reason), "not \"{reason}\": {told}"),
            }
        }
    }
    // In the file, a bad value is reported and the old one stays in force.
    cluster.allow("configuration file");
    cluster.allow("invalid value for parameter");
    cluster.set("nrt_backup.full_schedule", "0 99 * * *");
    cluster.set("nrt_backup.retention_days", "9");
    cluster.reload();
    assert_eq!(setting(&cluster, "full_schedule", "value"), "off");
    let reported = cluster.logged("invalid value for parameter \"nrt_backup.full_schedule\"");
    assert!(reported.iter().any(|it| it.text.contains("hour is \"99\"")), "{reported:?}");
    cluster.set("nrt_backup.full_schedule", "off");
    cluster.unset("nrt_backup.retention_days");
    cluster.reload();

    for unknown in ["set nrt_backup.no_such = 1", "alter system set nrt_backup.no_such = 1"] {
        let refused = cluster.try_sql(unknown).expect_err("no such option");
        assert!(refused.message.contains("nrt_backup.no_such"), "{refused}");
    }
    assert_eq!(cluster.value(all), before);
    let file = fs::read_to_string(cluster.data().join("postgresql.auto.conf")).expect("is there");
    assert!(!file.contains("nrt_backup"), "{file}");
    assert_eq!(history(&cluster, "job").len(), 1);
    assert_eq!(cluster.value("select health from nrt.status"), "ok");
}

#[test]
fn sizes_and_times_mean_what_they_say() {
    let cluster = protected("spelling");
    let bytes = |name: &str, value: &str| {
        alter(&cluster, name, value);
        setting(&cluster, name, "effect")
    };
    // The original's spellings, and what else people write.
    for (text, meaning) in [
        ("100MB", 104_857_600_u64),
        ("1.5GB", 1_610_612_736),
        ("512KB", 524_288),
        ("1048576", 1_048_576),
        ("64kB", 65_536),
        ("2 MiB", 2_097_152),
        ("1tb", 1_099_511_627_776),
        ("10B", 10),
    ] {
        for name in ["wal_growth_threshold", "min_wal_growth"] {
            assert_eq!(bytes(name, text), format!("{meaning} bytes"), "{name} = {text}");
            assert_eq!(setting(&cluster, name, "value"), text);
        }
    }
    assert_eq!(bytes("min_wal_growth", "0"), "0 bytes");
    for (text, seconds) in [("90", "90"), ("2min", "120"), ("1h", "3600"), ("1d", "86400")] {
        alter(&cluster, "wal_monitor_interval", text);
        assert_eq!(
            setting(&cluster, "wal_monitor_interval", "value || unit"),
            format!("{seconds}s")
        );
    }
    alter(&cluster, "max_backup_age", "26h");
    assert_eq!(setting(&cluster, "max_backup_age", "value"), "93600");
    for (name, value, effect) in [
        ("max_backup_age", "0", "not checked"),
        ("min_disk_free", "0", "not checked"),
        ("wal_monitor", "off", "WAL growth starts no backup"),
        ("full_schedule", "off", "never"),
        ("full_schedule", "", "never"),
        ("timezone", "asia/shanghai", "Asia/Shanghai"),
        ("process_max", "3", "3 of "),
    ] {
        alter(&cluster, name, value);
        let shown = setting(&cluster, name, "effect");
        assert!(shown.starts_with(effect), "{name} = {value}: {shown}");
    }
}

#[test]
fn a_reload_takes_effect_at_once() {
    let cluster = protected("reload");
    let worker = cluster.value("select worker_pid from nrt.status");
    assert_eq!(setting(&cluster, "retention_days", "source"), "default");
    assert_eq!(setting(&cluster, "full_schedule", "source"), "configuration file");

    // Schedules: the worker's own answer, so it has read them. 29 February is next in a leap year.
    alter(&cluster, "timezone", "Asia/Shanghai");
    alter(&cluster, "differential_schedule", "30 4 29 2 *");
    let run = "select crontab || ' ' || time_zone || ' ' || (next_run at time zone 'Asia/Shanghai')
                 from nrt.schedule where type = 'diff'";
    let leap = cluster.value(
        "select min(year) from generate_series(extract(year from now())::int, 2100, 1) as year
          where (year % 4 = 0 and year % 100 <> 0 or year % 400 = 0)
            and (year || '-02-29 04:30 Asia/Shanghai')::timestamptz > now()",
    );
    cluster.wait_for(run, &format!("30 4 29 2 * Asia/Shanghai {leap}-02-29 04:30:00"), SOON);
    assert_eq!(
        setting(&cluster, "differential_schedule", "effect"),
        format!("next at {leap}-02-29 04:30 CST")
    );
    assert_eq!(setting(&cluster, "differential_schedule", "source"), "configuration file");
    assert_eq!(cluster.value("select next_run_type from nrt.status"), "diff");
    // The session of whoever looks has a time zone of its own.
    let elsewhere = cluster
        .sql("set timezone = 'America/New_York'; select distinct time_zone from nrt.schedule");
    assert_eq!(elsewhere, [["Asia/Shanghai"]]);

    // What pgBackRest is told. The repository has not changed for a while, and it was looked at
    // since: that must not keep the worker from telling it.
    thread::sleep(Duration::from_secs(2));
    cluster.sql("select nrt_check()");
    let config = cluster.state_directory().join("pgbackrest.conf");
    let told = |line: &str| {
        let text = || fs::read_to_string(&config).unwrap_or_default();
        nrt_tests::wait_until(line, SOON, || text().lines().any(|it| it == line));
    };
    told("repo1-retention-full=3");
    told("compress-type=zst");
    for (name, value, line) in [
        ("retention_days", "30", "repo1-retention-full=30"),
        ("compress_type", "gz", "compress-type=gz"),
        ("process_max", "3", "process-max=3"),
    ] {
        alter(&cluster, name, value);
        told(line);
    }
    let label = cluster.value("select nrt_backup_now('full')");
    let directory = cluster.repository().join("backup/main").join(label);
    assert!(has_file_ending(&directory, "gz"), "compressed as it was told");

    // Another stanza: it is made, and gets its first backup. What was there stays.
    alter(&cluster, "stanza", "second");
    cluster.wait_for(
        "select count(*) || min(prior) || min(activity) from nrt.backups, nrt.status",
        "",
        SOON,
    );
    wait_for_backups(&cluster, 1);
    archive_segment(&cluster);
    for (stanza, backups) in [("main", 2), ("second", 1)] {
        let info = fs::read_to_string(
            cluster.repository().join("backup").join(stanza).join("backup.info"),
        );
        let count = info.expect("is there").matches("\"backup-type\":\"full\"").count();
        assert_eq!(count, backups, "{stanza}");
    }
    // And another place.
    let elsewhere = cluster.directory().join("elsewhere");
    cluster.set("nrt_backup.repository", &elsewhere.display().to_string());
    cluster.reload();
    nrt_tests::wait_until("a backup is there", SOON, || {
        elsewhere.join("backup/second/latest").exists()
    });
    wait_for_backups(&cluster, 1);
    archive_segment(&cluster);

    // Back to the defaults, as one does.
    cluster.sql("alter system reset all");
    cluster.reload();
    assert_eq!(setting(&cluster, "retention_days", "value || ' ' || source"), "3 default");
    told("repo1-retention-full=3");
    assert_eq!(cluster.value("select worker_pid from nrt.status"), worker);
}

/// Whether a file below the directory has this extension.
fn has_file_ending(directory: &std::path::Path, extension: &str) -> bool {
    fs::read_dir(directory).expect("is there").flatten().any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|it| it == extension)
            || path.is_dir() && !path.is_symlink() && has_file_ending(&path, extension)
    })
}

#[test]
fn paths_and_programs_are_for_those_who_may_read_all_settings() {
    let cluster = protected("secret");
    cluster.sql(
        "create role reader login; create role monitor login in role pg_monitor;
         grant usage on schema nrt to reader; grant select on all tables in schema nrt to reader;
         grant execute on all functions in schema nrt to reader",
    );
    let hidden = [
        "repository",
        "lock_path",
        "pgbackrest",
        "pgbackrest_config",
        "rclone_config",
        "rclone",
        "drill_directory",
    ];
    let marked = options::ALL.into_iter().filter(|it| it.superuser_only).count();
    assert_eq!(marked, hidden.len());
    let values = "select name, value from nrt.settings where value is not null";
    let read = |user: &str| cluster.try_sql_as(user, "postgres", values).expect("may look");
    let (superuser, monitor, reader) = (read("postgres"), read("monitor"), read("reader"));
    assert_eq!(superuser.len(), options::ALL.len());
    // pg_monitor may read all settings of the server: PostgreSQL has decided that.
    assert_eq!(monitor, superuser);
    assert_eq!(reader.len(), options::ALL.len() - hidden.len());
    for name in hidden {
        let name = format!("nrt_backup.{name}");
        assert!(reader.iter().all(|row| row[0] != name), "{name} is shown");
        let refused = cluster.try_sql_as("reader", "postgres", &format!("show {name}"));
        assert_eq!(refused.expect_err("may not").sqlstate, "42501", "{name}");
    }
    // The effect tells nothing of them either.
    let path = cluster.directory().display().to_string();
    let all = cluster.try_sql_as("reader", "postgres", "select s::text from nrt.settings as s");
    assert!(all.expect("may look").iter().all(|row| !row[0].contains(&path)));
}
