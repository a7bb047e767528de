//! Describes what goes off-site: what `nrt-backup ship` is told, and what it tells.
//!
//! ```text
//! worker ── Plan (argument), Position (lines on standard input) ──► nrt-backup ship ──► remote
//! worker, SQL, nrt-backup status ◄── Status (a file of the state directory) ──┘
//! ```

pub mod bandwidth;
pub mod configuration;
pub mod expiry;
pub mod limits;
pub mod lineage;
pub mod owner;
pub mod supervisor;
pub mod tail;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::inventory::Failure;
use crate::look::Server;
use crate::lsn::Lsn;
use crate::settings::Settings;

/// The directories on the remote with one JSON file per full, differential and incremental backup.
pub const DESCRIPTIONS: [&str; 3] = ["full-backups", "differential-backups", "incremental-backups"];

/// What `nrt-backup ship` needs to know when it starts. It holds no secret: it travels on a
/// command line. Another plan is another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The state directory.
    pub state: String,
    /// The cluster's data directory.
    pub data_directory: String,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// pgBackRest's name for the cluster.
    pub stanza: String,
    /// The operator's own pgBackRest configuration; the repository is where it says then.
    pub own_config: Option<String>,
    /// The repository's directory, unless the operator's configuration says.
    pub repository: String,
    /// The server's configuration files; those outside of the data directory are kept off-site.
    pub configuration_files: Vec<String>,
    /// The rclone program, a name or a path.
    pub rclone: String,
    /// rclone's configuration file.
    pub rclone_config: String,
    /// The remote's name in rclone's configuration; the first one there if absent.
    pub remote_name: Option<String>,
    /// The path on the remote, without slashes at its end; may be empty.
    pub remote_path: String,
    /// The cluster's own directory below the path.
    pub name: String,
    /// How many files go up at the same time.
    pub transfers: u32,
    /// rclone's `--bwlimit`; no limit if absent.
    pub bandwidth_limit: Option<String>,
    /// When the remote is compared with the repository as a whole, as a crontab line.
    pub comparison_schedule: String,
    /// The time zone of that schedule.
    pub zone: String,
    /// Whether each full backup also goes up as one tar archive.
    pub portable_tar: bool,
    /// Whether the server archives its WAL: without the history file of its timeline nobody could
    /// follow what it ships.
    pub archives: bool,
    /// Seconds between two signs of life in `owner.json`.
    pub heartbeat: u32,
    /// Days for which our own pgBackRest configuration keeps backups; 0 if unknown: then nothing is
    /// deleted from the remote.
    #[serde(default)]
    pub retention_days: u32,
    /// Seconds between two listings of the remote, which notice what is missing there.
    #[serde(default = "listing")]
    pub listing: u32,
    /// Milliseconds between two shipments of the WAL that was written since.
    pub interval: u32,
    /// Milliseconds between two reports of how far the WAL is on disk, at most; 0 where an earlier
    /// version reports, every `interval`.
    #[serde(default)]
    pub report_interval: u32,
}

/// The remote's list of restore points: a JSON array of
/// [`RestorePoint`](crate::restore::catalog::RestorePoint) at the top of the cluster's directory.
pub const RESTORE_POINTS: &str = "restore-points.json";

/// Seconds between two signs of life on the remote.
pub const HEARTBEAT: u32 = 15;

/// Milliseconds between two reports of how far the WAL is on disk, at most.
pub const REPORT_INTERVAL: u32 = 1000;

/// Seconds between two listings of the remote.
pub const LISTING: u32 = 3600;

fn listing() -> u32 {
    LISTING
}

impl Plan {
    /// What shipping from `server` under `settings` needs to know; `None` while no remote is
    /// configured.
    ///
    /// `decoded_config` is the file into which `RCLONE_CONF_BASE64` was decoded, used where the
    /// setting names none.
    pub fn new(
        server: &Server,
        settings: &Settings,
        system_id: u64,
        decoded_config: Option<String>,
        configuration_files: Vec<String>,
        archives: bool,
    ) -> Option<Plan> {
        Some(Plan {
            state: server.state.clone(),
            data_directory: server.data_directory.clone(),
            system_id,
            segment_size: server.segment_size,
            stanza: settings.stanza.clone(),
            own_config: settings.pgbackrest_config.clone(),
            repository: settings.repository.clone(),
            configuration_files,
            rclone: settings.rclone.clone(),
            rclone_config: settings.rclone_config.clone().or(decoded_config)?,
            remote_name: settings.remote_name.clone(),
            remote_path: settings.remote_path.clone(),
            name: settings.name.clone(),
            transfers: settings.transfers,
            bandwidth_limit: settings.bandwidth_limit.clone(),
            comparison_schedule: settings
                .comparison_schedule
                .as_ref()
                .map_or("off", |crontab| crontab.text())
                .to_string(),
            zone: settings.zone.name().to_string(),
            portable_tar: settings.portable_tar,
            archives,
            heartbeat: HEARTBEAT,
            retention_days: settings.retention_days,
            listing: LISTING,
            interval: settings.ship_interval,
            report_interval: REPORT_INTERVAL,
        })
    }
}

/// How far the WAL is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The timeline that is written.
    pub timeline: u32,
    /// Every byte before this is on disk.
    pub flushed: Lsn,
}

/// What the worker and the reporter report: a line of JSON on the standard input of `nrt-backup ship`,
/// each at least once a second, whether the position has changed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How far the WAL is on disk.
    #[serde(flatten)]
    pub position: Position,
    /// When that was read, or a moment before: whatever was on disk then lies before the position.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// The machine's uptime in microseconds, read right before `at`. It orders the reports of two
    /// processes, also where the clock is set between them.
    #[serde(default)]
    pub uptime: Option<u64>,
}

/// What shipping does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It finds out what the remote holds.
    #[default]
    Starting,
    /// It ships.
    Shipping,
    /// Another instance writes to the remote: nothing is shipped.
    Fenced,
    /// The remote, or rclone, does not do what it is told; it is tried again.
    Failing,
}

impl Phase {
    /// The word as the view shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Shipping => "shipping",
            Phase::Fenced => "fenced",
            Phase::Failing => "failing",
        }
    }
}

/// The present of shipping: `ship.json` in the state directory, replaced as a whole when
/// something in it changes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Where the copy is: `remote:path/name`.
    pub remote: String,
    /// rclone's version.
    pub rclone: Option<String>,
    /// Whether rclone or pgBackRest encrypts what is there, so that nobody else can write backups
    /// that a restore takes; `None` until that is known.
    pub is_encrypted: Option<bool>,
    /// What it does.
    pub phase: Phase,
    /// Why the phase is `Fenced` or `Failing`.
    pub failure: Option<Failure>,
    /// Since when the phase is `Failing`.
    pub failing_since: Option<DateTime<Utc>>,
    /// What is to be said of a remote on the same file system as the cluster and its repository.
    #[serde(default)]
    pub same_disk: Option<Failure>,
    /// Where an earlier version has shipped to, which took the path otherwise, as long as something
    /// is there.
    #[serde(default)]
    pub left_behind: Option<String>,
    /// Up to here, everything that is needed to restore is on the remote, confirmed. `None`
    /// until the first backup is there.
    pub shipped: Option<Position>,
    /// Since when at the latest the oldest byte that is not there was on disk; `None` if nothing
    /// is missing.
    pub behind_since: Option<DateTime<Utc>>,
    /// Since when the worker has not reported how far the WAL is; `None` while it does. Whether
    /// anything was committed since then is not known.
    #[serde(default)]
    pub silent_since: Option<DateTime<Utc>>,
    /// Why nothing can be restored from the remote, although backups are there.
    #[serde(default)]
    pub unrestorable: Option<Unrestorable>,
    /// Labels of the backups on the remote that can be restored from there, oldest first.
    pub backups: Vec<String>,
    /// Why backups or archived segments cannot be brought there, if they cannot.
    pub mirror_failure: Option<Failure>,
    /// Why no WAL tail is written, where it must not be.
    pub tail_refused: Option<Failure>,
    /// Objects that should be gone and could not be deleted.
    pub deletions_pending: u64,
    /// Why not.
    pub deletion_failure: Option<Failure>,
    /// The last comparison of the remote with the repository as a whole.
    pub comparison: Option<Comparison>,
    /// Bytes that were sent since shipping started.
    pub sent_bytes: u64,
    /// Objects that were sent since then.
    pub sent_objects: u64,
}

/// Why a restore without a target from the remote would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrestorable {
    /// Since when.
    pub since: DateTime<Utc>,
    /// What the restore would say.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// What a comparison of the whole remote with the repository found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Files that were the same.
    pub same: u64,
    /// Files that were missing or of another size and were sent again.
    pub repaired: FileList,
    /// Files that are not the same on both sides, or damaged on both. They are left as they are.
    pub different: FileList,
    /// Of these, the ones that are damaged or missing in the repository and whole on the remote.
    #[serde(default)]
    pub damaged_here: FileList,
    /// Of these, the ones that are damaged on the remote and whole in the repository.
    #[serde(default)]
    pub damaged_there: FileList,
    /// Files of the repository that were replaced by the remote's whole ones.
    #[serde(default)]
    pub healed: FileList,
    /// Whether damaged files were replaced, as `nrt-backup check --repair` asks.
    #[serde(default)]
    pub is_repair: bool,
    /// What other lives of the cluster have left on the remote.
    #[serde(default)]
    pub superseded: Vec<Superseded>,
    /// Why it could not be done as a whole.
    pub failure: Option<Failure>,
}

/// A place below `superseded/`, which stays as long as the retention says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// Its path below the cluster's directory.
    pub path: String,
    /// How many files it holds.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Comparison {
    /// What to do about files that differ.
    pub fn hint(&self) -> &'static str {
        if !self.damaged_here.is_empty() || !self.damaged_there.is_empty() {
            "Run \"nrt-backup check --repair\", which replaces the damaged files by the whole ones."
        } else {
            "Both are damaged, or nothing tells which one is. Take a new full backup with \
             SELECT nrt_backup_now('full'); \"pgbackrest verify\" checks the repository."
        }
    }
}

/// Files of which only the first ones are named: the status is read inside of the server, and a
/// remote that was emptied misses hundreds of thousands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileList {
    /// How many there are.
    pub count: u64,
    /// The first of them, as paths below the repository.
    pub named: Vec<String>,
}

impl FileList {
    /// How many are named.
    const NAMED: usize = 100;

    /// Takes in one more.
    pub fn push(&mut self, path: String) {
        self.count += 1;
        if self.named.len() < Self::NAMED {
            self.named.push(path);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl FromIterator<String> for FileList {
    fn from_iter<T: IntoIterator<Item = String>>(paths: T) -> FileList {
        let mut list = FileList::default();
        for path in paths {
            list.push(path);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_counted_and_not_kept() {
        let list: FileList = (0..100_000).map(|number| number.to_string()).collect();
        assert_eq!((list.count, list.named.len()), (100_000, FileList::NAMED));
        assert_eq!(list.named.first().map(String::as_str), Some("0"));
        assert!(!list.is_empty() && FileList::default().is_empty());
    }
}
