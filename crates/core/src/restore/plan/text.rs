//! Shows plans, and what they can be made of, to people.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::super::answer::Step;
use super::super::catalog::{Catalog, RestorePoint, Stretch};
use super::super::target::{Action, Point, Target, written};
use super::field::flaw;
use super::{Plan, Recovery, Window};
use crate::kind::BackupType;
use crate::lsn::{Lsn, Segment};
use crate::size::format_size;

/// How many restore points an overview shows.
const RESTORE_POINTS: usize = 20;

/// What a place holds, and what can be reached from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The place.
    pub source: String,
    /// The stanza.
    pub stanza: String,
    /// The cluster's system identifier; as text, for readers that lose digits.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub version: String,
    /// Whatever was committed before this is there, as its server last said; `None` where nobody said
    /// so. Later commits are there up to the end of the newest window.
    pub complete_until: Option<DateTime<Utc>>,
    /// What can be reached, oldest first.
    pub windows: Vec<Window>,
    /// The backups, oldest first.
    pub backups: Vec<Listed>,
    /// The newest restore points, oldest first.
    pub restore_points: Vec<RestorePoint>,
    /// How many restore points are older than those.
    #[serde(default)]
    pub earlier_restore_points: usize,
}

/// A backup of an overview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub label: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// The timeline that it was taken on.
    pub timeline: Option<u32>,
    /// When it ended.
    pub stop_time: DateTime<Utc>,
    /// Where it ended.
    pub stop_lsn: Option<Lsn>,
    /// Bytes of the cluster.
    pub size: Option<u64>,
    /// Bytes of the backup's own directory.
    pub stored: Option<u64>,
    /// What is wrong with it or with one that it needs, if something is known.
    pub flaw: Option<String>,
}

/// Rows of a label and a text behind it.
#[derive(Default)]
struct Rows(String);

impl Rows {
    /// Wide enough for the longest label.
    const LABEL: usize = 12;

    fn row(&mut self, label: &str, text: &str) {
        for (number, line) in text.lines().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.0 += format!("{label:width$} {line}", width = Self::LABEL).trim_end();
            self.0.push('\n');
        }
    }
}

impl Plan {
    /// The plan for people, times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut rows = Rows::default();
        let Plan { source, stanza, version, timeline, .. } = self;
        rows.row("source", &format!("{source}, stanza {stanza}, PostgreSQL {version}"));
        rows.row("target", &self.target.words(zone));
        rows.row("timeline", &timeline.to_string());
        rows.row(
            "backup",
            &format!("{}, ended at {}", self.backup, written(self.backup_stop_time, zone)),
        );
        let earlier: Vec<&str> =
            self.chain.iter().filter(|it| **it != self.backup).map(String::as_str).collect();
        rows.row("which needs", &earlier.join("\n"));
        if let Some(bytes) = self.fetch_bytes {
            rows.row("to fetch", &format!("{} of backups", format_size(bytes)));
        }
        if let Some(bytes) = self.restore_bytes {
            rows.row("to restore", &format_size(bytes));
        }
        let wal: Vec<String> = self.wal.iter().map(|it| self.stretch_words(it)).collect();
        rows.row("WAL", &wal.join("\n"));
        rows.row("to replay", &format_size(self.wal_bytes));
        let settings: Vec<String> =
            self.settings().iter().map(|(name, value)| format!("{name} = {value}")).collect();
        rows.row("PostgreSQL", &settings.join("\n"));
        rows.row(
            "takes",
            &self.estimate.map_or(
                "unknown: no such restore or drill was measured on this machine yet".to_string(),
                |it| format!("about {}", duration(it)),
            ),
        );
        for warning in &self.warnings {
            rows.row("warning", warning);
        }
        rows.0
    }

    fn stretch_words(&self, stretch: &Stretch) -> String {
        let name = |at| Segment::of(stretch.timeline, at, self.segment_size);
        let (first, last) = (name(stretch.from), name(Lsn(stretch.to.0.saturating_sub(1))));
        let count = last.number.saturating_sub(first.number) + 1;
        let names = match count {
            1 => format!("segment {}", first.name(self.segment_size)),
            _ => format!(
                "{count} segments, {} to {}",
                first.name(self.segment_size),
                last.name(self.segment_size)
            ),
        };
        format!("{} to {} on timeline {}: {names}", stretch.from, stretch.to, stretch.timeline)
    }

    /// PostgreSQL's settings for the recovery, each with its value as a configuration file
    /// takes it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        // PostgreSQL follows a number only with its history file. Without one the backup was taken
        // on the timeline itself, which is the current one.
        let has_history = self.timeline <= 1 || self.histories.contains(&self.timeline);
        let timeline =
            if has_history { self.timeline.to_string() } else { "'current'".to_string() };
        let mut settings = vec![("recovery_target_timeline", timeline)];
        let target = match &self.recovery {
            Recovery::End => return settings,
            Recovery::Immediate => ("recovery_target", "'immediate'".to_string()),
            Recovery::Time(at) => ("recovery_target_time", format!("'{}'", for_programs(*at))),
            Recovery::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            Recovery::Lsn(at) => ("recovery_target_lsn", format!("'{at}'")),
        };
        settings.push(target);
        if !self.target.inclusive {
            settings.push(("recovery_target_inclusive", "off".to_string()));
        }
        settings.push(("recovery_target_action", self.target.action.as_str().to_string()));
        settings
    }

    /// What pgBackRest calls the target: options of its `restore`.
    pub fn pgbackrest_options(&self) -> Vec<String> {
        let (kind, target) = match &self.recovery {
            Recovery::End => ("default", None),
            Recovery::Immediate => ("immediate", None),
            Recovery::Time(at) => ("time", Some(for_programs(*at))),
            Recovery::Xid(xid) => ("xid", Some(xid.to_string())),
            Recovery::Lsn(at) => ("lsn", Some(at.to_string())),
        };
        let mut options = vec![format!("--type={kind}")];
        options.extend(target.map(|it| format!("--target={it}")));
        if !self.target.inclusive && kind != "default" {
            options.push("--target-exclusive".to_string());
        }
        // Refused with it: what a backup needs of WAL is on its own timeline.
        if self.recovery != Recovery::Immediate {
            options.push(format!("--target-timeline={}", self.timeline));
        }
        if self.recovery != Recovery::End {
            options.push(format!("--target-action={}", self.target.action.as_str()));
        }
        options
    }
}

impl Target {
    /// What was asked for, and what it means; times in `zone`.
    pub fn words(&self, zone: Tz) -> String {
        let both = |at: DateTime<Utc>| {
            if zone == Tz::UTC {
                return written(at, zone);
            }
            format!("{} ({}), which is {}", written(at, zone), zone.name(), written(at, Tz::UTC))
        };
        let point = match &self.point {
            Point::Latest => "the newest state that there is".to_string(),
            Point::Immediate => "the end of the backup".to_string(),
            Point::Time(at) => format!("the time {}", both(*at)),
            Point::Xid(xid) => format!("transaction {xid}"),
            Point::Name(name) => format!("restore point {name:?}"),
            Point::Lsn(at) => format!("position {at}"),
        };
        let exclusive = if self.inclusive { "" } else { ", without what is exactly there" };
        let action = match self.action {
            Action::Promote => "takes writes",
            Action::Pause => "waits, and can be read",
            Action::Shutdown => "shuts down",
        };
        format!("{point}{exclusive}; then the server {action}")
    }
}

/// What a restore into a directory would do, one after the other.
pub fn steps(plan: &Plan, data_directory: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |action: &str, command: String, detail: String| {
        let number = i32::try_from(steps.len() + 1).unwrap_or(i32::MAX);
        steps.push(Step { step: number, action: action.to_string(), command, detail });
    };
    let Plan { source, stanza, backup, .. } = plan;
    let known = |bytes: Option<u64>| bytes.map_or("unknown size".to_string(), format_size);
    // A directory of this machine is read where it is.
    if !source.starts_with('/') {
        let repository = format!("{}/repository/backup/{stanza}", source.trim_end_matches('/'));
        let copies: Vec<String> = plan
            .chain
            .iter()
            .map(|it| words(["rclone", "copy", &format!("{repository}/{it}"), it]))
            .collect();
        step(
            "fetch",
            copies.join("\n"),
            format!("{} ({})", plan.chain.join(", "), known(plan.fetch_bytes)),
        );
    }
    let options = plan.pgbackrest_options();
    let restore = [
        "pgbackrest".to_string(),
        format!("--stanza={stanza}"),
        format!("--pg1-path={data_directory}"),
        format!("--set={backup}"),
    ];
    let restore = restore.into_iter().chain(options).chain(["restore".to_string()]);
    step(
        "restore",
        words(restore),
        format!("backup {backup} into {data_directory} ({})", known(plan.restore_bytes)),
    );
    let settings = [("restore_command", "'nrt-backup wal-get %f \"%p\"'".to_string())];
    let settings = settings.into_iter().chain(plan.settings());
    let settings: Vec<String> = settings.map(|(name, value)| format!("{name} = {value}")).collect();
    let wal: Vec<String> = plan.wal.iter().map(|it| plan.stretch_words(it)).collect();
    step(
        "recover",
        settings.join("\n"),
        format!("{} ({})", wal.join("; "), format_size(plan.wal_bytes)),
    );
    step(
        "start",
        words(["pg_ctl", "-D", data_directory, "start"]),
        match plan.target.action {
            Action::Promote => "the server takes writes, on a new timeline",
            Action::Pause => "the server can be read, and waits for pg_wal_replay_resume()",
            Action::Shutdown => "the server shuts down when it has reached the target",
        }
        .to_string(),
    );
    steps
}

impl Overview {
    /// What a catalog holds; `windows` are its own.
    pub fn new(catalog: &Catalog, windows: &[Window]) -> Overview {
        let mut points = catalog.restore_points.clone();
        points.sort_by_key(|it| it.at);
        let backups = catalog.backups.iter().map(|backup| Listed {
            label: backup.label.clone(),
            kind: backup.kind,
            timeline: backup.timeline,
            stop_time: backup.stop_time,
            stop_lsn: backup.stop_lsn,
            size: backup.size,
            stored: catalog.stored.get(&backup.label).copied(),
            flaw: flaw(catalog, backup),
        });
        Overview {
            source: catalog.source.clone(),
            stanza: catalog.stanza.clone(),
            system_identifier: catalog.system_id.to_string(),
            version: catalog.version.clone(),
            complete_until: catalog.complete_until,
            windows: windows.to_vec(),
            backups: backups.collect(),
            earlier_restore_points: points.len().saturating_sub(RESTORE_POINTS),
            restore_points: points.split_off(points.len().saturating_sub(RESTORE_POINTS)),
        }
    }

    /// The overview for people, times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut rows = Rows::default();
        let Overview { source, stanza, version, system_identifier, .. } = self;
        rows.row("source", &format!("{source}, stanza {stanza}, PostgreSQL {version}"));
        rows.row("cluster", system_identifier);
        let windows: Vec<String> = self.windows.iter().map(|it| window_words(it, zone)).collect();
        rows.row("reachable", &or_none(&windows));
        if let Some(until) = self.complete_until {
            let until = written(until, zone);
            let end = self.windows.iter().map(|it| it.to_lsn).max();
            let later = end.map_or(String::new(), |end| format!(", and later ones up to {end}"));
            rows.row("complete", &format!("all commits until {until}{later}"));
        }
        let backups: Vec<String> = self.backups.iter().map(|it| listed_words(it, zone)).collect();
        rows.row("backups", &or_none(&backups));
        let mut points: Vec<String> = self
            .restore_points
            .iter()
            .map(|RestorePoint { name, timeline, lsn, at }| {
                format!("{name:?} at {}, {lsn} on timeline {timeline}", written(*at, zone))
            })
            .collect();
        if self.earlier_restore_points > 0 {
            points.insert(0, format!("{} earlier ones are not shown", self.earlier_restore_points));
        }
        rows.row("named points", &or_none(&points));
        rows.0
    }
}

/// What can be reached, and from what, for people; times in `zone`.
pub fn overview(catalog: &Catalog, windows: &[Window], zone: Tz) -> String {
    Overview::new(catalog, windows).text(zone)
}

fn or_none(lines: &[String]) -> String {
    if lines.is_empty() { "none".to_string() } else { lines.join("\n") }
}

fn window_words(window: &Window, zone: Tz) -> String {
    let Window { timeline, backup, from, from_lsn, to_lsn, backups, ends_in_a_gap, .. } = window;
    let end = if *ends_in_a_gap { ", where WAL is missing" } else { "" };
    let backups = match backups {
        1 => String::new(),
        more => format!(" and {} more", more - 1),
    };
    format!(
        "{} ({from_lsn}) to {to_lsn}{end}; timeline {timeline}, from {backup}{backups}",
        written(*from, zone)
    )
}

fn listed_words(listed: &Listed, zone: Tz) -> String {
    let mut words = format!("{}, {}, ended at {}", listed.label, listed.kind, {
        written(listed.stop_time, zone)
    });
    if let Some(timeline) = listed.timeline {
        words += &format!(", timeline {timeline}");
    }
    if let Some(size) = listed.size {
        words += &format!(", {}", format_size(size));
    }
    if let Some(stored) = listed.stored {
        words += &format!(" in {}", format_size(stored));
    }
    if let Some(flaw) = &listed.flaw {
        words += &format!("; cannot be used: {flaw}");
    }
    words
}

/// An instant as PostgreSQL and every version of pgBackRest take it.
fn for_programs(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// `45 s`, `3 min 20 s` or `2 h 5 min`
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// Words as a shell takes them.
fn words<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> String {
    let quoted = words.into_iter().map(|word| quoted(word.as_ref()));
    quoted.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
