//! Names the files of the state directory and their formats: the worker, its children and the SQL
//! functions meet there.
//!
//! The directory lies in the data directory, mode 0700, and is in no backup that we take.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::inventory::Failure;
use crate::kind::BackupType;
use crate::lsn::{Lsn, Segment};
use crate::machine::Memory;
use crate::offsite;
use crate::pgbackrest::info::Backup;
use crate::restore::drill::{Phases, supervisor};
use crate::restore::target::Target;

/// The state directory's name within the data directory.
pub const STATE_DIRECTORY: &str = "nrt_backup";
/// Jobs, a line of JSON each; the last line of a job counts.
pub const HISTORY: &str = "history.jsonl";
/// A [`Kept`].
pub const KEPT: &str = "state.json";
/// The last look's [`crate::inventory::Inventory`].
pub const INVENTORY: &str = "inventory.json";
/// The last evaluation's list of [`crate::health::Check`].
pub const HEALTH: &str = "health.json";
/// rclone's configuration as a container's server uses it: the container's own copy, in no volume.
pub const CONTAINER_RCLONE_CONFIG: &str = "/var/lib/nrt-backup/rclone.conf";
/// The generated pgBackRest configuration.
pub const PGBACKREST_CONFIG: &str = "pgbackrest.conf";
/// A [`Tool`].
pub const TOOL: &str = "pgbackrest.json";
/// A [`PushFailure`], there only while archiving fails.
pub const PUSH_FAILURE: &str = "archive-push.json";
/// What archiving is told by settings, an [`ArchiveLimits`].
pub const ARCHIVE_LIMITS: &str = "archiving.json";
/// The WAL that was let go last, a [`LetGo`].
pub const LET_GO: &str = "wal-let-go.json";
/// The directory of what children printed.
pub const LOG: &str = "log";
/// What the child of the running or last job printed, within [`LOG`].
pub const JOB_LOG: &str = "job.log";
/// What shipping printed, within [`LOG`].
pub const SHIP_LOG: &str = "ship.log";
/// What the running or last drill printed, within [`LOG`].
pub const DRILL_LOG: &str = "drill.log";
/// Drills, a line of JSON each; see [`crate::restore::drill::journal`].
pub const DRILLS: &str = "drills.jsonl";
/// Where drills make their scratch place, unless `nrt_backup.drill_directory` says.
pub const DRILL: &str = "drill";
/// Put there to have a drill done; gone when it has started.
pub const DRILL_NOW: &str = "drill-now";
/// Put there to have a backup taken: its type. Gone when it has become a job; see [`BACKUP_JOB`].
pub const BACKUP_NOW: &str = "backup-now";
/// Held by whoever puts [`BACKUP_NOW`] there, until the answer is read.
pub const BACKUP_LOCK: &str = "backup-now.lock";
/// The number of the job that the last [`BACKUP_NOW`] became.
pub const BACKUP_JOB: &str = "backup-job";
/// What the worker knows now, a [`Present`]: written again at least every [`PRESENT_WITHIN`]
/// seconds.
pub const PRESENT: &str = "present.json";
/// How many seconds a worker that is well may let pass before it writes [`PRESENT`] again.
pub const PRESENT_WITHIN: u64 = 60;
/// Where pgBackRest keeps its locks, unless `nrt_backup.lock_path` says: in a directory that only the
/// server's user can write to.
pub const LOCK: &str = "lock";
/// pgBackRest's spool directory.
pub const SPOOL: &str = "spool";
/// The present of shipping, a [`crate::offsite::Status`].
pub const SHIP: &str = "ship.json";
/// What was promised to remotes: a map of [`crate::offsite::owner::Promised`] by their places. No
/// copy of a data directory has it, by the same rule as [`RCLONE_CONFIG`].
pub const PROMISES: &str = "pgsql_tmp_promises.json";
/// rclone's configuration, decoded from the environment variable `RCLONE_CONF_BASE64`. No copy of
/// a data directory has it, by whatever program it is made: they all leave out what begins so.
pub const RCLONE_CONFIG: &str = "pgsql_tmp_rclone.conf";
/// The same as it was given: rclone changes its file, where a token is renewed.
pub const RCLONE_GIVEN: &str = "pgsql_tmp_rclone.conf.given";
/// A copy of rclone's configuration with the tokens that rclone has renewed, where the given file may
/// not be replaced.
pub const RCLONE_RENEWED: &str = "pgsql_tmp_rclone.renewed.conf";
/// The given file as it was when that copy was made.
pub const RCLONE_RENEWED_FROM: &str = "pgsql_tmp_rclone.renewed.conf.given";
/// Put there to have the remote compared with the repository; gone when it is done.
pub const COMPARE: &str = "compare";

/// The content of the request [`COMPARE`] that asks to replace what is damaged, too.
pub const REPAIR: &str = "repair";
/// Put there to make this instance the remote's owner; gone when it is done.
pub const TAKEOVER: &str = "takeover";
/// The directory of what is about to be sent.
pub const OUTBOX: &str = "outbox";
/// Restore points, a line of [`crate::restore::catalog::RestorePoint`] each.
pub const RESTORE_POINTS: &str = "restore-points.jsonl";
/// Locked by whoever changes [`RESTORE_POINTS`].
pub const RESTORE_POINTS_LOCK: &str = "restore-points.lock";
/// The next transaction id right after a backup had ended, by the backup's label; see
/// [`crate::restore::catalog::Catalog::next_xids`].
pub const NEXT_XIDS: &str = "next-xids.json";
/// There while a restore recovers in private: the worker does nothing before it is gone.
pub const RECOVERING: &str = "recovering";
/// What a restore left behind, a [`Restored`].
pub const RESTORED: &str = "restored.json";
/// There while a worker runs, and left behind by one that did not end cleanly.
pub const RUNNING: &str = "running";

/// The files that are the cluster's and not an instance's: a copy keeps them. Restore points name
/// their timeline and position, transaction ids their backup, and what was restored once is
/// restored in every copy. WAL that was let go is missing in a repository that a copy may share. A
/// drill's scratch place is removed by the next drill.
pub const OF_THE_CLUSTER: [&str; 9] = [
    LET_GO,
    RESTORE_POINTS,
    RESTORE_POINTS_LOCK,
    NEXT_XIDS,
    RECOVERING,
    RESTORED,
    DRILL,
    RCLONE_CONFIG,
    RCLONE_GIVEN,
];

/// What the worker keeps across restarts of the server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The machine's memory.
    pub memory: Memory,
    /// How far the growth of the WAL had been measured.
    pub meter: Option<crate::growth::Meter>,
    /// Whether shipping is paused. Whether backups are, the machine remembers.
    #[serde(default)]
    pub shipping_paused: bool,
    /// What is remembered of drills, beside their journal.
    #[serde(default)]
    pub drills: supervisor::Memory,
    /// The role that the cluster was created with, as the catalog had it when it was last read.
    #[serde(default)]
    pub superuser: Option<String>,
}

/// What the worker knows now, for commands that ask no SQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Present {
    /// When this was so.
    pub at: DateTime<Utc>,
    /// The timeline that is written, and up to where it is on disk.
    pub flushed: Option<offsite::Position>,
    /// Bytes of WAL written since the last backup.
    pub growth: Option<u64>,
    /// Where the last backup ended.
    pub growth_since: Option<Lsn>,
    /// Whether growth starts backups.
    pub wal_monitor: bool,
    /// Bytes of WAL that start one.
    pub wal_growth_threshold: u64,
    /// Bytes of WAL below which a scheduled one is skipped.
    pub min_wal_growth: u64,
    /// Seconds between two looks at the growth.
    pub wal_monitor_interval: i64,
    /// When the growth is looked at next.
    pub next_look: DateTime<Utc>,
    /// Whether backups are paused.
    pub backups_paused: bool,
    /// Where backups go off-site to. It holds no secret.
    pub remote: Option<offsite::Plan>,
}

/// How pgBackRest is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// The program's absolute path.
    pub program: String,
    /// The configuration file.
    pub config: String,
    /// The stanza.
    pub stanza: String,
    /// Where pgBackRest keeps its locks.
    pub lock_path: String,
    /// What backups leave out instead of what the configuration says, if that does not see to it
    /// that this directory is in none.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The instance that found this out. `archive_command` uses no other's: it would archive into
    /// the repository of the server of which this one is a copy.
    #[serde(default)]
    pub instance: Option<String>,
}

/// Why the last segment could not be archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushFailure {
    /// The segment's file name.
    pub segment: String,
    /// When.
    pub at: DateTime<Utc>,
    /// pgBackRest's words.
    pub failure: Failure,
}

/// What the worker tells our `archive_command`, which sees no settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArchiveLimits {
    /// Bytes of WAL that may wait to be archived; 0 for no limit.
    #[serde(default)]
    pub queue_max: u64,
}

/// WAL that is in no archive although the server was told so, because too much of it waited: a
/// stretch without a gap. It stays here: a backup that begins behind it makes up for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetGo {
    /// The first file of the stretch.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many files there are in it.
    pub count: u64,
    /// When the last one was let go.
    pub at: DateTime<Utc>,
    /// Where the last segment ends.
    pub end: Lsn,
    /// Why it could not be archived.
    pub failure: Failure,
}

impl LetGo {
    /// With one more file, which is let go now: a part of the stretch before if it goes on there.
    pub fn with(
        before: Option<LetGo>,
        file: &str,
        segment_size: u64,
        at: DateTime<Utc>,
        failure: Failure,
    ) -> LetGo {
        let segment = Segment::of_archived(file, segment_size);
        let begin = segment.map(|it| it.start(segment_size));
        let end = segment.map(|it| it.end(segment_size));
        // A history file is let go among the segments, and has no position.
        let before = before.filter(|it| begin.is_none_or(|begin| begin <= it.end));
        let last = file.to_string();
        match before {
            Some(it) => LetGo {
                last,
                count: it.count.saturating_add(1),
                at,
                end: end.map_or(it.end, |end| end.max(it.end)),
                failure,
                ..it
            },
            None => {
                let end = end.unwrap_or_default();
                LetGo { first: last.clone(), last, count: 1, at, end, failure }
            }
        }
    }
}

/// Where a data directory came from: `nrt-backup restore` leaves it behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// When the restore had ended.
    pub at: DateTime<Utc>,
    /// The backup that it began with.
    pub backup: String,
    /// Where that came from: `s3:bucket/main`, or a directory.
    pub source: String,
    /// The timeline that the server was on then.
    pub timeline: u32,
    /// Where recovery ended.
    pub lsn: Lsn,
    /// The last transaction that was replayed, if there was any.
    pub last_commit: Option<DateTime<Utc>>,
    /// Whether the original may live on: nothing is archived, and no backup is due.
    pub is_copy: bool,
    /// The full backup that was taken since then, by its label. The restore leaves it open.
    #[serde(default)]
    pub full_taken: Option<String>,
    /// What was asked for.
    #[serde(default)]
    pub target: Option<Target>,
    /// How long it took, where it was measured: without what an interrupted one had done before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
    /// The labels of all backups at the place that it was restored from. Absent in files of earlier
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<BTreeSet<String>>,
}

impl Restored {
    /// The full backup that is due, if one is: a restored server is on a timeline of its own, and its
    /// next backup is to need nothing of the ones before.
    pub fn full_due(&self) -> Option<FullDue> {
        (!self.is_copy && self.full_taken.is_none()).then(|| FullDue {
            timeline: self.timeline,
            lsn: self.lsn,
            before: self.backups.clone(),
        })
    }
}

/// Tells a full backup that was taken after a restore from those that were there before it, whatever
/// the clock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullDue {
    /// The timeline on which recovery ended, or would begin.
    pub timeline: u32,
    /// Where recovery ended.
    pub lsn: Lsn,
    /// The labels of the backups that were there before; absent if unknown.
    pub before: Option<BTreeSet<String>>,
}

impl FullDue {
    /// Whether this backup is the one that is due. An unknown timeline or position says nothing against
    /// it.
    pub fn is_met_by(&self, backup: &Backup) -> bool {
        let is_later = match &self.before {
            Some(before) => !before.contains(&backup.label),
            None => backup.start_lsn.is_none_or(|start| start >= self.lsn),
        };
        let on_timeline = backup.timeline.is_none_or(|timeline| timeline >= self.timeline);
        backup.kind == BackupType::Full && is_later && on_timeline
    }
}

/// Whether the content of `pg_control` says that a server has written its last checkpoint, or is
/// about to: PostgreSQL does that when all clients are gone.
pub fn has_shut_down(control: &[u8]) -> bool {
    /// Behind the system identifier and two version numbers: `DBState`, of which 1 and 2 are shut
    /// down, and 3 is shutting down.
    const STATE: std::ops::Range<usize> = 16..20;
    let state = control.get(STATE).and_then(|it| it.try_into().ok()).map(u32::from_ne_bytes);
    state.is_some_and(|state| (1..=3).contains(&state))
}

/// Whether a server is about to end, as the text of its `postmaster.pid` says.
pub fn is_stopping(postmaster_file: &str) -> bool {
    // The line with the postmaster's status.
    postmaster_file.lines().nth(7).is_some_and(|it| it.trim() == "stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_that_is_let_go_is_counted_as_one_stretch() {
        const SIZE: u64 = 16 << 20;
        let why = || Failure { message: "m".to_string(), hint: String::new() };
        let mut known = None;
        let mut go = |number: u64| {
            let file = Segment { timeline: 1, number }.name(SIZE);
            let now = LetGo::with(known.take(), &file, SIZE, DateTime::UNIX_EPOCH, why());
            known = Some(now.clone());
            (now.count, now.end)
        };
        assert_eq!(go(5), (1, Lsn(6 * SIZE)));
        assert_eq!(go(6), (2, Lsn(7 * SIZE)));
        // What is between was archived.
        assert_eq!(go(9), (1, Lsn(10 * SIZE)));
        let history = LetGo::with(known, "00000002.history", SIZE, DateTime::UNIX_EPOCH, why());
        assert_eq!((history.count, history.end), (2, Lsn(10 * SIZE)));
        assert_eq!(history.first, "000000010000000000000009");
        let alone = LetGo::with(None, "00000002.history", SIZE, DateTime::UNIX_EPOCH, why());
        assert_eq!((alone.count, alone.end), (1, Lsn(0)));
    }

    #[test]
    fn a_full_backup_is_due_after_a_restore_once_and_not_for_a_copy() {
        let text = r#"{"at":"2026-11-22T06:30:00Z","backup":"20261122-010203F","source":"s3:b/main",
            "timeline":2,"lsn":"0/5000028","last_commit":null,"is_copy":false}"#;
        let restored: Restored = serde_json::from_str(text).expect("it is read");
        assert!(restored.full_due().is_some());
        let copy = Restored { is_copy: true, ..restored.clone() };
        assert_eq!(copy.full_due(), None);
        let served = Restored { full_taken: Some("20261122-070000F".to_string()), ..restored };
        assert_eq!(served.full_due(), None);
    }

    /// A backup of PostgreSQL's timeline and position, as pgBackRest lists it.
    fn backup(label: &str, timeline: u32, lsn: &str) -> Backup {
        let start = format!("{timeline:08X}0000000000000007");
        let text = format!(
            r#"[{{"name":"main","status":{{"code":0,"message":"ok"}},"db":[],"archive":[],"backup":[{{
            "label":"{label}","type":"full","timestamp":{{"start":1,"stop":2}},
            "lsn":{{"start":"{lsn}","stop":"{lsn}"}},"archive":{{"start":"{start}","stop":"{start}"}},
            "database":{{"id":1,"repo-key":1}},
            "info":{{"size":1,"delta":1,"repository":{{"delta":1}}}}}}]}}]"#
        );
        let info = crate::pgbackrest::info::parse_info(&text, "main").expect("it is read");
        info.backups.into_iter().next().expect("one")
    }

    #[test]
    fn a_full_backup_after_a_restore_is_known_without_a_clock() {
        let old = "20261122-010203F";
        let due = FullDue { timeline: 3, lsn: Lsn(0x0500_0028), before: None };
        assert!(due.is_met_by(&backup("20200101-000000F", 3, "0/6000028")));
        assert!(!due.is_met_by(&backup(old, 3, "0/4000028")));
        assert!(!due.is_met_by(&backup(old, 2, "0/6000028")));
        // The position at which recovery will end is not known yet, the backups of before are.
        let due = FullDue { timeline: 2, lsn: Lsn(0x0900_0000), before: Some([old.into()].into()) };
        assert!(!due.is_met_by(&backup(old, 2, "0/9000028")));
        assert!(due.is_met_by(&backup("20200101-000000F", 3, "0/6000028")));
        assert!(!due.is_met_by(&backup("20200101-000000F", 1, "0/6000028")));
    }

    #[test]
    fn a_server_that_ends_waits_for_clients_first() {
        let control = |state: u32| [&[9; 16][..], &state.to_ne_bytes(), &[9; 8]].concat();
        let ended: Vec<u32> = (0..8).filter(|state| has_shut_down(&control(*state))).collect();
        assert_eq!(ended, [1, 2, 3]);
        assert!(!has_shut_down(&control(1)[..18]) && !has_shut_down(b""));
    }

    #[test]
    fn files_from_before_there_were_pauses_can_be_read() {
        let old = r#"{"memory":{"next_job":7,"served":{}},"meter":null}"#;
        let kept: Kept = serde_json::from_str(old).expect("it is read");
        assert_eq!(
            (kept.memory.next_job, kept.memory.paused, kept.shipping_paused),
            (7, false, false)
        );
    }
}
