//! Turns the texts of the options into the values that decisions are made with.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::crontab::{self, Crontab};
use crate::kind::BackupType;
use crate::options::{self, Opt};
use crate::pgbackrest::stanza;
use crate::size;

/// The settings in force, checked and converted.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// pgBackRest's name for the cluster.
    pub stanza: String,
    /// Days to which the cluster can be restored.
    pub retention_days: u32,
    /// When full backups start.
    pub full_schedule: Option<Crontab>,
    /// When incremental backups start.
    pub incremental_schedule: Option<Crontab>,
    /// When differential backups start.
    pub differential_schedule: Option<Crontab>,
    /// The time zone of the schedules.
    pub zone: Tz,
    /// A name that was asked for and is no time zone we know: `zone` is UTC then.
    pub unknown_zone: Option<String>,
    /// Whether WAL growth starts backups.
    pub wal_monitor: bool,
    /// Seconds between two looks at the growth.
    pub wal_monitor_interval: i64,
    /// Bytes of new WAL that start an incremental backup.
    pub wal_growth_threshold: u64,
    /// Bytes of new WAL below which a scheduled backup is skipped.
    pub min_wal_growth: u64,
    /// Seconds from the end of a growth backup to the next one, at least.
    pub min_growth_interval: i64,
    /// Per cent of the time that growth backups may take; 0 for no limit.
    pub max_growth_share: u32,
    /// Incremental backups in a row before a differential one is due; 0 for no limit.
    pub max_incrementals: u32,
    /// The repository's directory.
    pub repository: String,
    /// The directory of pgBackRest's locks; in the state directory if absent.
    pub lock_path: Option<String>,
    /// The pgBackRest program.
    pub pgbackrest: String,
    /// The operator's own configuration file.
    pub pgbackrest_config: Option<String>,
    /// The database that pgBackRest connects to.
    pub database: String,
    /// Processes of a backup; 0 to choose.
    pub process_max: u32,
    /// Compression of the repository.
    pub compress_type: String,
    /// Seconds after which the last backup is too old; 0 for never.
    pub max_backup_age: i64,
    /// Per cent of a disk that must be free; 0 for none.
    pub min_disk_free: u32,
    /// Bytes of WAL that may wait to be archived; 0 for no limit.
    pub archive_queue_max: u64,
    /// rclone's configuration file; `None` for no remote, unless one came in the environment.
    pub rclone_config: Option<String>,
    /// The remote in it; the first if absent.
    pub remote_name: Option<String>,
    /// The path on the remote, without slashes around it.
    pub remote_path: String,
    /// The cluster's directory below the path.
    pub name: String,
    /// Milliseconds between two looks at how far the WAL is on disk.
    pub ship_interval: u32,
    /// rclone's notation of a limit or a timetable.
    pub bandwidth_limit: Option<String>,
    /// Files that go up at the same time.
    pub transfers: u32,
    /// The rclone program.
    pub rclone: String,
    /// When the remote is compared as a whole.
    pub comparison_schedule: Option<Crontab>,
    /// Whether each full backup also goes up as one tar archive.
    pub portable_tar: bool,
    /// Seconds of WAL not yet off-site that are too many; 0 for never.
    pub max_ship_lag: i64,
    /// When a restore is tried.
    pub drill_schedule: Option<Crontab>,
    /// What a drill asks of the restored server.
    pub drill_query: Option<String>,
    /// Where drills make their scratch place; in the state directory if absent.
    pub drill_directory: Option<String>,
    /// Seconds after which the last drill that succeeded is too old; 0 for never.
    pub max_drill_age: i64,
}

impl Settings {
    /// Reads the settings through `get`, which answers an option's text.
    ///
    /// `server_zone` is the server's own `timezone`, used where the option is empty. A text that
    /// its check would refuse falls back to the default: PostgreSQL has refused it before.
    pub fn read(get: impl Fn(&'static Opt) -> String, server_zone: &str) -> Settings {
        let checked = |option: &'static Opt| {
            let text = get(option);
            if (option.check)(&text).is_ok() { text } else { option.default().to_string() }
        };
        let number = |option: &'static Opt| -> i64 {
            get(option).parse().or_else(|_| option.default().parse()).unwrap_or_default()
        };
        let schedule = |option| crontab::parse_schedule(&checked(option)).ok().flatten();
        let bytes = |option| size::parse_size(&checked(option)).unwrap_or_default();
        let some = |text: String| (!text.is_empty()).then_some(text);

        let zone_name = some(get(&options::TIMEZONE)).unwrap_or_else(|| server_zone.to_string());
        let (zone, unknown_zone) = match crontab::parse_zone(&zone_name) {
            Ok(zone) => (zone, None),
            Err(_) => (Tz::UTC, Some(zone_name)),
        };
        Settings {
            stanza: checked(&options::STANZA),
            retention_days: u32::try_from(number(&options::RETENTION_DAYS)).unwrap_or(1),
            full_schedule: schedule(&options::FULL_SCHEDULE),
            incremental_schedule: schedule(&options::INCREMENTAL_SCHEDULE),
            differential_schedule: schedule(&options::DIFFERENTIAL_SCHEDULE),
            zone,
            unknown_zone,
            wal_monitor: get(&options::WAL_MONITOR) == "on",
            wal_monitor_interval: number(&options::WAL_MONITOR_INTERVAL).max(1),
            wal_growth_threshold: bytes(&options::WAL_GROWTH_THRESHOLD),
            min_wal_growth: bytes(&options::MIN_WAL_GROWTH),
            min_growth_interval: number(&options::MIN_GROWTH_INTERVAL),
            max_growth_share: u32::try_from(number(&options::MAX_GROWTH_SHARE)).unwrap_or(0),
            max_incrementals: u32::try_from(number(&options::MAX_INCREMENTALS)).unwrap_or(0),
            repository: checked(&options::REPOSITORY),
            lock_path: some(checked(&options::LOCK_PATH)),
            pgbackrest: checked(&options::PGBACKREST),
            pgbackrest_config: some(checked(&options::PGBACKREST_CONFIG)),
            database: checked(&options::DATABASE),
            process_max: u32::try_from(number(&options::PROCESS_MAX)).unwrap_or(0),
            compress_type: checked(&options::COMPRESS_TYPE),
            max_backup_age: number(&options::MAX_BACKUP_AGE),
            min_disk_free: u32::try_from(number(&options::MIN_DISK_FREE)).unwrap_or(0),
            archive_queue_max: bytes(&options::ARCHIVE_QUEUE_MAX),
            rclone_config: some(checked(&options::RCLONE_CONFIG)),
            remote_name: some(checked(&options::REMOTE_NAME)),
            remote_path: options::without_end(&checked(&options::REMOTE_PATH)).to_string(),
            name: some(checked(&options::NAME)).unwrap_or_else(|| checked(&options::STANZA)),
            ship_interval: u32::try_from(number(&options::SHIP_INTERVAL)).unwrap_or(1000),
            bandwidth_limit: some(checked(&options::BANDWIDTH_LIMIT)),
            transfers: u32::try_from(number(&options::TRANSFERS)).unwrap_or(4),
            rclone: checked(&options::RCLONE),
            comparison_schedule: schedule(&options::COMPARISON_SCHEDULE),
            portable_tar: get(&options::PORTABLE_TAR) == "on",
            max_ship_lag: number(&options::MAX_SHIP_LAG),
            drill_schedule: schedule(&options::DRILL_SCHEDULE),
            drill_query: some(checked(&options::DRILL_QUERY)).filter(|it| !it.trim().is_empty()),
            drill_directory: some(checked(&options::DRILL_DIRECTORY)),
            max_drill_age: number(&options::MAX_DRILL_AGE),
        }
    }

    /// The same for a server whose stanza was chosen: where the operator names none, it is this one,
    /// and the name off-site follows it.
    #[must_use]
    pub fn with_stanza(mut self, chosen: &str) -> Settings {
        for name in [&mut self.stanza, &mut self.name] {
            if name.is_empty() {
                *name = chosen.to_string();
            }
        }
        self
    }

    /// The defaults, in UTC, of the first cluster of a repository.
    pub fn defaults() -> Settings {
        Settings::read(|option| option.default().to_string(), "UTC").with_stanza(stanza::DEFAULT)
    }

    /// The schedule of one type of backup.
    pub fn schedule(&self, kind: BackupType) -> Option<&Crontab> {
        match kind {
            BackupType::Full => self.full_schedule.as_ref(),
            BackupType::Diff => self.differential_schedule.as_ref(),
            BackupType::Incr => self.incremental_schedule.as_ref(),
        }
    }

    /// Processes that a backup uses on a machine with `cores` cores.
    ///
    /// Half of them, so that the server keeps the other half, and never more than four: beyond
    /// that the disk is the limit.
    pub fn processes(&self, cores: usize) -> u32 {
        match self.process_max {
            0 => u32::try_from(cores / 2).unwrap_or(1).clamp(1, 4),
            chosen => chosen,
        }
    }
}

impl Settings {
    /// What an option means at the moment, in words: a size in bytes, the zone that an empty name
    /// stands for, the next run of a schedule.
    pub fn effect_of(&self, option: &'static Opt, now: DateTime<Utc>, cores: usize) -> String {
        let run = |crontab: &Option<Crontab>| match crontab {
            None => "never".to_string(),
            Some(crontab) => match crontab.next_after(now, self.zone) {
                Some(run) => {
                    format!("next at {}", run.with_timezone(&self.zone).format("%F %R %Z"))
                }
                None => "never".to_string(),
            },
        };
        let is = |other: &'static Opt| option.name == other.name;
        if is(&options::FULL_SCHEDULE) {
            run(&self.full_schedule)
        } else if is(&options::INCREMENTAL_SCHEDULE) {
            run(&self.incremental_schedule)
        } else if is(&options::DIFFERENTIAL_SCHEDULE) {
            run(&self.differential_schedule)
        } else if is(&options::DRILL_SCHEDULE) {
            run(&self.drill_schedule)
        } else if is(&options::TIMEZONE) {
            self.zone.name().to_string()
        } else if is(&options::WAL_GROWTH_THRESHOLD) {
            format!("{} bytes", self.wal_growth_threshold)
        } else if is(&options::MIN_WAL_GROWTH) {
            format!("{} bytes", self.min_wal_growth)
        } else if is(&options::ARCHIVE_QUEUE_MAX) {
            match self.archive_queue_max {
                0 => "no limit".to_string(),
                bytes => format!("{bytes} bytes"),
            }
        } else if is(&options::PROCESS_MAX) {
            format!("{} of {cores} cores", self.processes(cores))
        } else if is(&options::PGBACKREST_CONFIG) {
            match &self.pgbackrest_config {
                Some(_) => "this file is used, none is generated".to_string(),
                None => "a configuration is generated".to_string(),
            }
        } else if is(&options::MAX_BACKUP_AGE) && self.max_backup_age == 0
            || is(&options::MIN_DISK_FREE) && self.min_disk_free == 0
            || is(&options::MAX_DRILL_AGE) && self.max_drill_age == 0
        {
            "not checked".to_string()
        } else if is(&options::STANZA) && self.stanza.is_empty() {
            "not chosen yet".to_string()
        } else if is(&options::STANZA) || is(&options::NAME) && !self.name.is_empty() {
            let name = if is(&options::STANZA) { &self.stanza } else { &self.name };
            format!("\"{name}\"")
        } else if is(&options::WAL_MONITOR) && !self.wal_monitor {
            "WAL growth starts no backup".to_string()
        } else {
            "as set".to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_the_documents_say() {
        let settings = Settings::defaults();
        assert_eq!(settings.stanza, "main");
        assert_eq!(settings.wal_growth_threshold, 100 << 20);
        assert_eq!(settings.min_wal_growth, 1 << 20);
        assert_eq!(settings.schedule(BackupType::Full).map(Crontab::text), Some("0 3 * * *"));
        assert_eq!(settings.schedule(BackupType::Diff), None);
        assert!(settings.wal_monitor);
        assert_eq!(settings.pgbackrest_config, None);
        assert_eq!(
            (settings.processes(1), settings.processes(2), settings.processes(64)),
            (1, 1, 4)
        );
    }

    #[test]
    fn an_empty_time_zone_is_the_servers() {
        let zone = |own: &'static str, server: &str| {
            let get = move |option: &'static Opt| {
                if option.name == options::TIMEZONE.name { own } else { option.default() }
                    .to_string()
            };
            let settings = Settings::read(get, server);
            (settings.zone, settings.unknown_zone)
        };
        assert_eq!(zone("", "Asia/Shanghai"), (Tz::Asia__Shanghai, None));
        assert_eq!(zone("Europe/Berlin", "Asia/Shanghai"), (Tz::Europe__Berlin, None));
        // PostgreSQL also takes POSIX specifications, which name no zone.
        assert_eq!(zone("", "<+03>-03"), (Tz::UTC, Some("<+03>-03".to_string())));
    }

    #[test]
    fn effects_say_what_a_setting_means_now() {
        let effect = |change: fn(&mut Settings), option| {
            let mut settings = Settings::defaults();
            change(&mut settings);
            let now = "2026-03-28T23:30:00Z".parse().expect("a time");
            settings.effect_of(option, now, 6)
        };
        let crontab = |line| Some(Crontab::parse(line).expect("a crontab line"));
        type Case = (&'static Opt, fn(&mut Settings), &'static str);
        let cases: [Case; 24] = [
            (&options::FULL_SCHEDULE, |_| (), "next at 2026-03-29 03:00 UTC"),
            (&options::INCREMENTAL_SCHEDULE, |_| (), "next at 2026-03-29 00:00 UTC"),
            (&options::DIFFERENTIAL_SCHEDULE, |_| (), "never"),
            (&options::TIMEZONE, |_| (), "UTC"),
            // The night in which the clock is put forward there.
            (
                &options::FULL_SCHEDULE,
                |it| it.zone = Tz::Europe__Berlin,
                "next at 2026-03-29 03:00 CEST",
            ),
            (&options::TIMEZONE, |it| it.zone = Tz::Europe__Berlin, "Europe/Berlin"),
            (&options::WAL_GROWTH_THRESHOLD, |_| (), "104857600 bytes"),
            (&options::MIN_WAL_GROWTH, |it| it.min_wal_growth = 0, "0 bytes"),
            (&options::ARCHIVE_QUEUE_MAX, |_| (), "no limit"),
            (&options::ARCHIVE_QUEUE_MAX, |it| it.archive_queue_max = 1 << 30, "1073741824 bytes"),
            (&options::PROCESS_MAX, |_| (), "3 of 6 cores"),
            (&options::PROCESS_MAX, |it| it.process_max = 7, "7 of 6 cores"),
            (&options::PGBACKREST_CONFIG, |_| (), "a configuration is generated"),
            (
                &options::PGBACKREST_CONFIG,
                |it| it.pgbackrest_config = Some("/etc/x.conf".to_string()),
                "this file is used, none is generated",
            ),
            (&options::MAX_BACKUP_AGE, |_| (), "as set"),
            (&options::MAX_BACKUP_AGE, |it| it.max_backup_age = 0, "not checked"),
            (&options::MIN_DISK_FREE, |it| it.min_disk_free = 0, "not checked"),
            (&options::MAX_DRILL_AGE, |it| it.max_drill_age = 0, "not checked"),
            (&options::DRILL_SCHEDULE, |_| (), "never"),
            (&options::WAL_MONITOR, |_| (), "as set"),
            (&options::WAL_MONITOR, |it| it.wal_monitor = false, "WAL growth starts no backup"),
            (&options::STANZA, |_| (), "\"main\""),
            (&options::NAME, |it| it.name = "shop".to_string(), "\"shop\""),
            (&options::STANZA, |it| it.stanza.clear(), "not chosen yet"),
        ];
        for (option, change, expected) in cases {
            assert_eq!(effect(change, option), expected, "{}", option.name());
        }
        let last_run = Settings { full_schedule: crontab("0 0 31 12 *"), ..Settings::defaults() };
        let after_it = "2100-12-31T12:00:00Z".parse().expect("a time");
        assert_eq!(last_run.effect_of(&options::FULL_SCHEDULE, after_it, 1), "never");
    }
}
