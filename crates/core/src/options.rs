//! Names every option once: setting, environment variable, default, unit, help, and what is refused.
//!
//! The extension registers its settings from this table, the README's table is compared with it,
//! and the container maps its environment through it. Nothing about an option is written twice.

use std::ffi::CStr;

use crate::offsite::bandwidth;
use crate::pgbackrest::names::valid_stanza_name;
use crate::{crontab, size};

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text that the option's check lets through.
    Text,
    /// `on` or `off`.
    Bool,
    /// A whole number from `min` to `max`; with `Unit::Seconds`, PostgreSQL's time units are taken.
    Int {
        /// The smallest value that is taken.
        min: i32,
        /// The largest value that is taken.
        max: i32,
        /// What is counted.
        unit: Unit,
    },
}

/// What a whole number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things; the option's help says which.
    Plain,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
}

/// One option. Every option takes effect on reload.
#[derive(Debug)]
pub struct Opt {
    /// The setting's name in `postgresql.conf`.
    pub name: &'static CStr,
    /// The environment variable that the container maps to it.
    pub environment: Option<&'static str>,
    /// The default, as one writes it.
    pub default: &'static CStr,
    /// What values it takes.
    pub kind: Kind,
    /// Whether only a superuser may see it (paths and programs).
    pub superuser_only: bool,
    /// One line for `pg_settings` and the documents.
    pub help: &'static CStr,
    /// Says why a text is refused, for the error's DETAIL.
    pub check: fn(&str) -> Result<(), String>,
}

impl Opt {
    /// The setting's name as text.
    pub fn name(&self) -> &'static str {
        text(self.name)
    }

    /// The default as text.
    pub fn default(&self) -> &'static str {
        text(self.default)
    }

    /// The help as text.
    pub fn help(&self) -> &'static str {
        text(self.help)
    }

    /// Says why a value is refused, as the server would, before there is a server.
    ///
    /// # Errors
    ///
    /// The reason, as a sentence.
    pub fn check_value(&self, value: &str) -> Result<(), String> {
        match self.kind {
            Kind::Text => (self.check)(value),
            Kind::Bool => match truth(value) {
                Some(_) => Ok(()),
                None => Err("Write on or off.".to_string()),
            },
            Kind::Int { min, max, unit } => whole_number(value, min, max, unit),
        }
    }
}

/// What PostgreSQL takes for `on` and `off`; `None` for anything else.
pub fn truth(value: &str) -> Option<bool> {
    let value = value.trim().to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || value == "on" || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

/// PostgreSQL would round, and take fractions; whole numbers are enough for whoever writes one.
fn whole_number(value: &str, min: i32, max: i32, unit: Unit) -> Result<(), String> {
    let value = value.trim();
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = value.get(digits.len()..).unwrap_or_default().trim();
    let in_units = match (unit, suffix) {
        (_, "") | (Unit::Seconds, "s") | (Unit::Milliseconds, "ms") => Some(1),
        (Unit::Seconds, "min") => Some(60),
        (Unit::Seconds, "h") => Some(3600),
        (Unit::Seconds, "d") => Some(86_400),
        (Unit::Milliseconds, "s") => Some(1000),
        (Unit::Milliseconds, "min") => Some(60_000),
        (Unit::Milliseconds, "h") => Some(3_600_000),
        (Unit::Milliseconds, "d") => Some(86_400_000),
        _ => None,
    };
    let number = digits.parse::<i64>().ok();
    let number = number.zip(in_units).and_then(|(number, factor)| number.checked_mul(factor));
    let units = match unit {
        Unit::Plain => "",
        Unit::Seconds => ", in seconds or with a unit: s, min, h or d",
        Unit::Milliseconds => ", in milliseconds or with a unit: ms, s, min, h or d",
    };
    match number {
        Some(number) if (i64::from(min)..=i64::from(max)).contains(&number) => Ok(()),
        Some(_) => Err(format!("It must be {min} to {max}{units}.")),
        None => Err(format!("It must be a whole number{units}.")),
    }
}

/// The table holds plain ASCII; a test says so, and so nothing is lost here.
fn text(literal: &'static CStr) -> &'static str {
    literal.to_str().unwrap_or_default()
}

const fn option(name: &'static CStr, default: &'static CStr, help: &'static CStr) -> Opt {
    Opt {
        name,
        environment: None,
        default,
        kind: Kind::Text,
        superuser_only: false,
        help,
        check: anything,
    }
}

/// The stanza.
pub static STANZA: Opt = Opt {
    environment: Some("PGBACKREST_STANZA"),
    check: stanza_name,
    ..option(
        c"nrt_backup.stanza",
        c"",
        c"pgBackRest's name for this cluster in the repository; empty for main, or main-SYSTEM_ID where another cluster has that one.",
    )
};

/// How long backups are kept.
pub static RETENTION_DAYS: Opt = Opt {
    environment: Some("BACKUP_RETENTION_DAYS"),
    kind: Kind::Int { min: 1, max: 36500, unit: Unit::Plain },
    ..option(
        c"nrt_backup.retention_days",
        c"3",
        c"Days back to which the cluster can be restored; older full backups and their WAL are expired.",
    )
};

/// When full backups start.
pub static FULL_SCHEDULE: Opt = Opt {
    environment: Some("BASE_BACKUP_SCHEDULE"),
    check: schedule,
    ..option(
        c"nrt_backup.full_schedule",
        c"0 3 * * *",
        c"When a full backup starts, as a crontab line; \"off\" for never.",
    )
};

/// When incremental backups start.
pub static INCREMENTAL_SCHEDULE: Opt = Opt {
    environment: Some("INCREMENTAL_BACKUP_SCHEDULE"),
    check: schedule,
    ..option(
        c"nrt_backup.incremental_schedule",
        c"0 */6 * * *",
        c"When an incremental backup starts, as a crontab line; \"off\" for never.",
    )
};

/// When differential backups start.
pub static DIFFERENTIAL_SCHEDULE: Opt = Opt {
    environment: Some("DIFFERENTIAL_BACKUP_SCHEDULE"),
    check: schedule,
    ..option(
        c"nrt_backup.differential_schedule",
        c"off",
        c"When a differential backup starts, as a crontab line; \"off\" for never.",
    )
};

/// In which time zone schedules are read.
pub static TIMEZONE: Opt = Opt {
    check: zone,
    ..option(
        c"nrt_backup.timezone",
        c"",
        c"Time zone of the schedules, by its IANA name; empty for the server's \"timezone\".",
    )
};

/// Whether WAL growth starts backups.
pub static WAL_MONITOR: Opt = Opt {
    environment: Some("ENABLE_WAL_MONITOR"),
    kind: Kind::Bool,
    ..option(
        c"nrt_backup.wal_monitor",
        c"on",
        c"Starts an incremental backup when enough WAL was written since the last backup.",
    )
};

/// How often WAL growth is looked at.
pub static WAL_MONITOR_INTERVAL: Opt = Opt {
    environment: Some("WAL_MONITOR_INTERVAL"),
    kind: Kind::Int { min: 1, max: 86400, unit: Unit::Seconds },
    ..option(
        c"nrt_backup.wal_monitor_interval",
        c"60",
        c"Seconds between two looks at the growth of the WAL.",
    )
};

/// How much WAL starts a backup.
pub static WAL_GROWTH_THRESHOLD: Opt = Opt {
    environment: Some("WAL_GROWTH_THRESHOLD"),
    check: positive_size,
    ..option(
        c"nrt_backup.wal_growth_threshold",
        c"100MB",
        c"WAL written since the last backup that starts an incremental one, e.g. 100MB.",
    )
};

/// Below how much WAL a scheduled backup is skipped.
pub static MIN_WAL_GROWTH: Opt = Opt {
    environment: Some("MIN_WAL_GROWTH_FOR_BACKUP"),
    check: any_size,
    ..option(
        c"nrt_backup.min_wal_growth",
        c"1MB",
        c"A scheduled incremental or differential backup is skipped below this much new WAL.",
    )
};

/// How long growth starts no second backup.
pub static MIN_GROWTH_INTERVAL: Opt = Opt {
    kind: Kind::Int { min: 0, max: 86400, unit: Unit::Seconds },
    ..option(
        c"nrt_backup.min_growth_interval",
        c"300",
        c"Seconds from the end of a backup that growth started to the next one, at least.",
    )
};

/// What part of the time growth backups may take.
pub static MAX_GROWTH_SHARE: Opt = Opt {
    kind: Kind::Int { min: 0, max: 100, unit: Unit::Plain },
    ..option(
        c"nrt_backup.max_growth_share",
        c"5",
        c"Per cent of the time that backups started by growth may take; 0 for no limit.",
    )
};

/// How many incremental backups depend on each other.
pub static MAX_INCREMENTALS: Opt = Opt {
    kind: Kind::Int { min: 0, max: 10000, unit: Unit::Plain },
    ..option(
        c"nrt_backup.max_incrementals",
        c"30",
        c"Incremental backups in a row after which a differential one is taken instead; 0 for no limit.",
    )
};

/// Where the repository is.
pub static REPOSITORY: Opt = Opt {
    superuser_only: true,
    check: absolute_path,
    ..option(
        c"nrt_backup.repository",
        c"/var/lib/pgbackrest",
        c"Directory of the pgBackRest repository.",
    )
};

/// Where pgBackRest keeps its locks.
pub static LOCK_PATH: Opt = Opt {
    superuser_only: true,
    check: absolute_path_or_empty,
    ..option(
        c"nrt_backup.lock_path",
        c"",
        c"Directory of pgBackRest's locks; empty for nrt_backup/lock in the data directory.",
    )
};

/// Which pgBackRest runs.
pub static PGBACKREST: Opt = Opt {
    superuser_only: true,
    check: program,
    ..option(
        c"nrt_backup.pgbackrest",
        c"pgbackrest",
        c"The pgBackRest program: a name to find on the server's PATH, or an absolute path.",
    )
};

/// The operator's own pgBackRest configuration.
pub static PGBACKREST_CONFIG: Opt = Opt {
    superuser_only: true,
    check: absolute_path_or_empty,
    ..option(
        c"nrt_backup.pgbackrest_config",
        c"",
        c"Your own pgBackRest configuration file, used instead of a generated one; empty to generate.",
    )
};

/// Which database pgBackRest connects to.
pub static DATABASE: Opt = Opt {
    check: identifier,
    ..option(
        c"nrt_backup.database",
        c"postgres",
        c"Database that pgBackRest connects to for a backup, and in which a drill's query runs.",
    )
};

/// How many processes a backup uses.
pub static PROCESS_MAX: Opt = Opt {
    kind: Kind::Int { min: 0, max: 999, unit: Unit::Plain },
    ..option(
        c"nrt_backup.process_max",
        c"0",
        c"Processes that a backup uses; 0 for half the cores, at most 4.",
    )
};

/// How a backup is compressed.
pub static COMPRESS_TYPE: Opt = Opt {
    check: compress_type,
    ..option(
        c"nrt_backup.compress_type",
        c"zst",
        c"Compression of backups and archived WAL: zst, lz4, gz, bz2 or none.",
    )
};

/// When the last backup is too old.
pub static MAX_BACKUP_AGE: Opt = Opt {
    kind: Kind::Int { min: 0, max: i32::MAX, unit: Unit::Seconds },
    ..option(
        c"nrt_backup.max_backup_age",
        c"93600",
        c"Seconds after which the last backup is too old for nrt.health; 0 for never.",
    )
};

/// When a disk is nearly full.
pub static MIN_DISK_FREE: Opt = Opt {
    kind: Kind::Int { min: 0, max: 90, unit: Unit::Plain },
    ..option(
        c"nrt_backup.min_disk_free",
        c"10",
        c"Per cent of the repository's and the WAL's disk that must be free for nrt.health; 0 for none.",
    )
};

/// How much WAL may wait to be archived.
pub static ARCHIVE_QUEUE_MAX: Opt = Opt {
    check: any_size,
    ..option(
        c"nrt_backup.archive_queue_max",
        c"0",
        c"WAL that may wait in pg_wal to be archived; above that it is let go, e.g. 100GB. 0 for no limit.",
    )
};

/// rclone's configuration.
pub static RCLONE_CONFIG: Opt = Opt {
    superuser_only: true,
    check: absolute_path_or_empty,
    ..option(
        c"nrt_backup.rclone_config",
        c"",
        c"rclone's configuration file; empty to ship nowhere, unless RCLONE_CONF_BASE64 is in the server's environment.",
    )
};

/// Which remote is used.
pub static REMOTE_NAME: Opt = Opt {
    environment: Some("RCLONE_REMOTE_NAME"),
    check: remote_name,
    ..option(
        c"nrt_backup.remote_name",
        c"",
        c"The remote in rclone's configuration; empty for the first one there.",
    )
};

/// Where on the remote.
pub static REMOTE_PATH: Opt = Opt {
    environment: Some("RCLONE_REMOTE_PATH"),
    check: remote_path,
    ..option(
        c"nrt_backup.remote_path",
        c"postgres-backups",
        c"The path on the remote (for S3: the bucket first) below which clusters are kept.",
    )
};

/// The cluster's directory there.
pub static NAME: Opt = Opt {
    environment: Some("POSTGRES_DB"),
    check: cluster_name,
    ..option(
        c"nrt_backup.name",
        c"",
        c"The cluster's own directory below nrt_backup.remote_path; empty for the stanza.",
    )
};

/// How often the tail goes up.
pub static SHIP_INTERVAL: Opt = Opt {
    environment: Some("SHIP_INTERVAL"),
    kind: Kind::Int { min: 50, max: 3_600_000, unit: Unit::Milliseconds },
    ..option(
        c"nrt_backup.ship_interval",
        c"1000",
        c"Milliseconds between two shipments of the WAL that was written since.",
    )
};

/// How much of the line may be used.
pub static BANDWIDTH_LIMIT: Opt = Opt {
    check: bandwidth::check,
    ..option(
        c"nrt_backup.bandwidth_limit",
        c"",
        c"Limit in bytes per second as rclone writes it: 10M, or a timetable like \"08:00,512k 23:00,off\"; empty for none.",
    )
};

/// How many files go up at the same time.
pub static TRANSFERS: Opt = Opt {
    kind: Kind::Int { min: 1, max: 64, unit: Unit::Plain },
    ..option(c"nrt_backup.transfers", c"4", c"Files of a backup that are sent at the same time.")
};

/// Which rclone runs.
pub static RCLONE: Opt = Opt {
    superuser_only: true,
    check: program,
    ..option(
        c"nrt_backup.rclone",
        c"rclone",
        c"The rclone program: a name to find on the server's PATH, or an absolute path.",
    )
};

/// When everything is compared.
pub static COMPARISON_SCHEDULE: Opt = Opt {
    check: schedule,
    ..option(
        c"nrt_backup.comparison_schedule",
        c"0 5 * * 0",
        c"When the remote is compared with the repository, file by file, as a crontab line; \"off\" for never.",
    )
};

/// Whether full backups also go up as one file.
pub static PORTABLE_TAR: Opt = Opt {
    kind: Kind::Bool,
    ..option(
        c"nrt_backup.portable_tar",
        c"off",
        c"Also sends each full backup as one tar archive that holds all that a restore needs.",
    )
};

/// When the tail is too far behind.
pub static MAX_SHIP_LAG: Opt = Opt {
    kind: Kind::Int { min: 0, max: i32::MAX, unit: Unit::Seconds },
    ..option(
        c"nrt_backup.max_ship_lag",
        c"30",
        c"Seconds of WAL not yet off-site after which nrt.health is critical; 0 for never.",
    )
};

/// When a restore is tried.
pub static DRILL_SCHEDULE: Opt = Opt {
    environment: Some("DRILL_SCHEDULE"),
    check: schedule,
    ..option(
        c"nrt_backup.drill_schedule",
        c"off",
        c"When a restore is tried in a scratch place, as a crontab line; \"off\" for never.",
    )
};

/// What a drill asks of the restored server.
pub static DRILL_QUERY: Opt = Opt {
    environment: Some("DRILL_QUERY"),
    check: query,
    ..option(
        c"nrt_backup.drill_query",
        c"",
        c"Query that a drill runs on the restored server; no row, nothing or false fails it.",
    )
};

/// Where drills restore to.
pub static DRILL_DIRECTORY: Opt = Opt {
    superuser_only: true,
    check: absolute_path_or_empty,
    ..option(
        c"nrt_backup.drill_directory",
        c"",
        c"Directory in which drills make their scratch place; empty for nrt_backup/drill in the data directory.",
    )
};

/// When the last drill that succeeded is too long ago.
pub static MAX_DRILL_AGE: Opt = Opt {
    kind: Kind::Int { min: 0, max: i32::MAX, unit: Unit::Seconds },
    ..option(
        c"nrt_backup.max_drill_age",
        c"3024000",
        c"Seconds after which the last drill that succeeded is too old for nrt.health; 0 for never.",
    )
};

/// Every option, in the order of the documents.
pub static ALL: [&Opt; 38] = [
    &STANZA,
    &RETENTION_DAYS,
    &FULL_SCHEDULE,
    &INCREMENTAL_SCHEDULE,
    &DIFFERENTIAL_SCHEDULE,
    &TIMEZONE,
    &WAL_MONITOR,
    &WAL_MONITOR_INTERVAL,
    &WAL_GROWTH_THRESHOLD,
    &MIN_WAL_GROWTH,
    &MIN_GROWTH_INTERVAL,
    &MAX_GROWTH_SHARE,
    &MAX_INCREMENTALS,
    &REPOSITORY,
    &LOCK_PATH,
    &PGBACKREST,
    &PGBACKREST_CONFIG,
    &DATABASE,
    &PROCESS_MAX,
    &COMPRESS_TYPE,
    &MAX_BACKUP_AGE,
    &MIN_DISK_FREE,
    &ARCHIVE_QUEUE_MAX,
    &RCLONE_CONFIG,
    &REMOTE_NAME,
    &REMOTE_PATH,
    &NAME,
    &SHIP_INTERVAL,
    &BANDWIDTH_LIMIT,
    &TRANSFERS,
    &RCLONE,
    &COMPARISON_SCHEDULE,
    &PORTABLE_TAR,
    &MAX_SHIP_LAG,
    &DRILL_SCHEDULE,
    &DRILL_QUERY,
    &DRILL_DIRECTORY,
    &MAX_DRILL_AGE,
];

fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

fn stanza_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    // As the start of a sentence: it stands alone here.
    valid_stanza_name(name).map_err(|reason| format!("For a stanza, {reason}."))
}

fn schedule(text: &str) -> Result<(), String> {
    crontab::parse_schedule(text).map(drop).map_err(|error| error.to_string())
}

fn zone(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    crontab::parse_zone(text).map(drop).map_err(|error| error.to_string())
}

fn any_size(text: &str) -> Result<(), String> {
    size::parse_size(text).map(drop).map_err(|error| error.to_string())
}

fn positive_size(text: &str) -> Result<(), String> {
    match size::parse_size(text) {
        Ok(0) => Err("It must be more than 0; set nrt_backup.wal_monitor to off to start no \
                      backup by WAL growth."
            .to_string()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn absolute_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err("The path must be absolute.".to_string());
    }
    one_line(path)
}

fn absolute_path_or_empty(path: &str) -> Result<(), String> {
    if path.is_empty() { Ok(()) } else { absolute_path(path) }
}

fn program(path: &str) -> Result<(), String> {
    if path.is_empty() || (path.contains('/') && !path.starts_with('/')) {
        return Err("It must be a program's name without a slash, or an absolute path.".to_string());
    }
    one_line(path)
}

/// A control character in a value could begin a new line of pgBackRest's configuration.
fn one_line(text: &str) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err("It holds a control character.".to_string());
    }
    Ok(())
}

/// rclone's own rule for names of remotes; a colon would end it, and a leading hyphen be an option.
fn remote_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | ' ' | '+' | '@');
    if !name.chars().all(fits) || name.starts_with(['-', ' ']) || name.ends_with(' ') {
        return Err(
            "A remote's name has letters, digits, and _ - . + @ and inner blanks; write it \
                    without the colon."
                .to_string(),
        );
    }
    Ok(())
}

fn remote_path(path: &str) -> Result<(), String> {
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("It must not contain \".\" or \"..\" as a part.".to_string());
    }
    if path.trim_matches('/').contains("//") || path.trim() != path {
        return Err("It must not contain \"//\", or blanks around it.".to_string());
    }
    one_line(path)
}

/// A path on a remote without slashes at its end. One at the beginning says something to remotes
/// that know relative paths.
pub fn without_end(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" if path.starts_with('/') => "/",
        path => path,
    }
}

fn cluster_name(name: &str) -> Result<(), String> {
    if name.contains(['/', '\\', ':']) || name.starts_with(['.', '-']) || name.len() > 128 {
        return Err(
            "It must be one directory's name, without / \\ or :, and not begin with . or -."
                .to_string(),
        );
    }
    if name.trim() != name {
        return Err("It must not have blanks around it.".to_string());
    }
    one_line(name)
}

fn identifier(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 63 {
        return Err("A name has 1 to 63 bytes.".to_string());
    }
    one_line(name)
}

/// The query travels on a command line.
fn query(text: &str) -> Result<(), String> {
    /// The longest one, in bytes.
    const LONGEST: usize = 10_000;
    if text.len() > LONGEST {
        return Err(format!("It must have no more than {LONGEST} bytes; make it a function."));
    }
    Ok(())
}

fn compress_type(name: &str) -> Result<(), String> {
    match name {
        "zst" | "lz4" | "gz" | "bz2" | "none" => Ok(()),
        _ => Err("It must be zst, lz4, gz, bz2 or none.".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_check() {
        for option in ALL {
            assert!(option.name().starts_with("nrt_backup."), "{}", option.name());
            assert!(option.help().ends_with('.'), "{}", option.name());
            assert_eq!((option.check)(option.default()), Ok(()), "{}", option.name());
            if let Kind::Int { min, max, .. } = option.kind {
                let default: i32 = option.default().parse().expect("a whole number");
                assert!((min..=max).contains(&default), "{}", option.name());
            }
        }
    }

    /// The README's table of settings. Where this fails, the message is the table.
    #[test]
    fn the_readme_has_every_option_as_it_is() {
        let unit = |option: &Opt| match option.kind {
            Kind::Int { unit: Unit::Seconds, .. } => " s",
            Kind::Int { unit: Unit::Milliseconds, .. } => " ms",
            _ => "",
        };
        let cell = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let rows = ALL.into_iter().map(|option| {
            let default = format!("{}{}", option.default(), unit(option));
            format!(
                "| `{}` | {} | {} | {} |\n",
                option.name(),
                cell(option.environment.unwrap_or_default()),
                cell(&default),
                option.help()
            )
        });
        let table: String = rows.collect();
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&table), "the README's table of settings must be:\n{table}");
    }

    #[test]
    fn a_value_is_judged_as_the_server_would() {
        let good: [(&Opt, &[&str]); 5] = [
            (&WAL_MONITOR, &["on", "OFF", "true", "f", "1", "no", "tr"]),
            (&WAL_MONITOR_INTERVAL, &["1", "86400", "60s", "1 min", "1d", " 5 "]),
            (&SHIP_INTERVAL, &["1000", "1s", "500ms"]),
            (&RETENTION_DAYS, &["1", "36500"]),
            (&FULL_SCHEDULE, &["0 3 * * *", "@daily", "off"]),
        ];
        for (option, values) in good {
            for value in values {
                assert_eq!(option.check_value(value), Ok(()), "{} {value:?}", option.name());
            }
        }
        let bad: [(&Opt, &[&str]); 5] = [
            (&WAL_MONITOR, &["", "2", "o", "enabled", "truely"]),
            (
                &WAL_MONITOR_INTERVAL,
                &["", "0", "-1", "2d", "1.5", "60 ms", "s", "99999999999999999999"],
            ),
            (&SHIP_INTERVAL, &["fast", "1w"]),
            (&RETENTION_DAYS, &["0", "3d", "three"]),
            (&FULL_SCHEDULE, &["never", "61 * * * *"]),
        ];
        for (option, values) in bad {
            for value in values {
                assert!(option.check_value(value).is_err(), "{} took {value:?}", option.name());
            }
        }
    }

    #[test]
    fn refuses_what_could_break_out_of_a_configuration_file() {
        let long = "select 1 ".repeat(2000);
        let bad: [(&Opt, &[&str]); 17] = [
            (&STANZA, &["a b", "../x", "-x", "a\nb", "a/b"]),
            (&FULL_SCHEDULE, &["0 3 * *", "61 * * * *", "0 0 3 * * *", "daily"]),
            (&WAL_GROWTH_THRESHOLD, &["", "0", "-1MB", "1 parsec", "MB"]),
            (&REPOSITORY, &["", "relative", "/a\nrepo2-path=/b"]),
            (&PGBACKREST, &["", "bin/pgbackrest", "/a\0"]),
            (&DATABASE, &["", "a\nb"]),
            (&TIMEZONE, &["Mars/Olympus"]),
            (&COMPRESS_TYPE, &["zip", ""]),
            (&RCLONE_CONFIG, &["rclone.conf", "/a\n"]),
            (&REMOTE_NAME, &["s3:", "a/b", "-v", "a\nb", ":local", "a,b=c"]),
            (&REMOTE_PATH, &["../x", "a/../b", "a//b", "a\nb", " a", "./a"]),
            (&NAME, &["a/b", "..", ".", "-x", "a:b", "a\n", " x"]),
            (&BANDWIDTH_LIMIT, &["quick", "1M --config=/x"]),
            (&RCLONE, &["", "bin/rclone"]),
            (&DRILL_SCHEDULE, &["weekly", "0 3 * *"]),
            (&DRILL_QUERY, &[&long]),
            (&DRILL_DIRECTORY, &["drill", "/a\n"]),
        ];
        for (option, values) in bad {
            for value in values {
                assert!((option.check)(value).is_err(), "{} took {value:?}", option.name());
            }
        }
    }
}
