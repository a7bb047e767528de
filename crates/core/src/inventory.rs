//! Holds what one look at pgBackRest, its repository and the disks found.
//!
//! `nrt-backup look` writes it, the worker decides by it, and the SQL views show it. Looking is
//! work for a child process: pgBackRest can be slow, and a file system over the network can hang.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::kind::BackupType;
use crate::lsn::Lsn;
use crate::pgbackrest::archive::ArchiveRange;
use crate::pgbackrest::info::{self, Backup, StanzaInfo};
use crate::pgbackrest::version::Version;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// When.
    pub collected_at: DateTime<Utc>,
    /// When the repository was looked at; earlier, where nothing has changed since.
    pub listed_at: DateTime<Utc>,
    /// The stanza that was looked for.
    pub stanza: String,
    /// pgBackRest's version, or why there is none.
    pub pgbackrest: Result<Version, Failure>,
    /// What the repository holds, or why that cannot be told.
    pub repository: Result<Repository, Failure>,
    /// The disk below the repository, if the repository is a directory here.
    pub repository_disk: Option<Disk>,
    /// The disk below `pg_wal`.
    pub wal_disk: Option<Disk>,
    /// The operator's own configuration lets the state directory into backups that are taken by
    /// hand.
    #[serde(default)]
    pub state_not_excluded: bool,
    /// The file `backup.info` as it was before the repository was looked at, if the repository is
    /// a directory here.
    #[serde(default)]
    pub info_file: Option<FileIdentity>,
}

/// Tells one version of a file that is replaced as a whole from any other. No clock is compared
/// with another one: times are only the same or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The device that the file is on.
    pub device: u64,
    /// The number of the file there.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// When the content was changed: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// When the file or its name was changed: seconds and nanoseconds.
    pub changed: (i64, i64),
}

/// What the repository holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repository {
    /// pgBackRest's own account of it.
    pub info: StanzaInfo,
    /// Stretches of the archive without a gap, by cluster, timeline and position.
    pub archive: Vec<ArchiveRange>,
    /// The timelines whose history files are in the archive of the newest cluster: the earlier
    /// timelines, and where each was left.
    #[serde(default)]
    pub histories: BTreeMap<u32, Vec<(u32, Lsn)>>,
    /// Why history files of the server's timelines are missing in the archive, if some are.
    #[serde(default)]
    pub histories_missing: Option<Failure>,
}

impl Repository {
    /// A repository without any history file.
    pub fn new(info: StanzaInfo, archive: Vec<ArchiveRange>) -> Repository {
        Repository { info, archive, histories: BTreeMap::new(), histories_missing: None }
    }

    /// Whether the stanza still has to be created.
    pub fn stanza_is_missing(&self) -> bool {
        matches!(self.info.code, info::MISSING_STANZA_PATH | info::MISSING_STANZA_DATA)
    }

    /// What pgBackRest finds wrong with the stanza, in its own words.
    pub fn problem(&self) -> Option<String> {
        // With several repositories, one that is not in order does not keep the others from work.
        let fine = matches!(self.info.code, 0 | info::NO_VALID_BACKUPS | info::DIFFERENT);
        let words = || match self.info.messages.join("; ") {
            empty if empty.is_empty() => self.info.message.clone(),
            messages => messages,
        };
        (!fine).then(words)
    }

    /// The system identifier of the cluster that the stanza belongs to now.
    pub fn system_id(&self) -> Option<u64> {
        Some(self.info.databases.last()?.system_id)
    }
}

/// Whether a database, which each repository counts for itself, is the cluster with this system
/// identifier.
fn belongs(info: &StanzaInfo, (repo, id): (u32, u32), system_id: u64) -> bool {
    let same = |it: &info::Database| (it.repo, it.id, it.system_id) == (repo, id, system_id);
    info.databases.iter().any(same)
}

/// Why something could not be found out, in the words of the program that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that the server's user can still write.
    pub available: u64,
}

impl Disk {
    /// Per cent of the disk that is free, rounded down.
    pub fn percent_free(&self) -> u64 {
        self.available.saturating_mul(100).checked_div(self.total).unwrap_or(100)
    }
}

impl Inventory {
    /// The backups of the cluster with this system identifier, oldest first.
    pub fn backups_of(&self, system_id: u64) -> impl DoubleEndedIterator<Item = &Backup> {
        let info = self.repository.as_ref().ok().map(|repository| &repository.info);
        info.into_iter().flat_map(move |info| {
            let ours =
                move |backup: &&Backup| belongs(info, (backup.repo, backup.database_id), system_id);
            info.backups.iter().filter(ours)
        })
    }

    /// The labels of all backups in the repository, of former clusters of the stanza too.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let info = self.repository.as_ref().ok().map(|repository| &repository.info);
        info.into_iter().flat_map(|info| info.backups.iter().map(|backup| backup.label.as_str()))
    }

    /// Whether there is a full backup of the cluster to build on.
    pub fn has_base(&self, system_id: u64) -> bool {
        self.backups_of(system_id).any(|backup| backup.kind == BackupType::Full)
    }

    /// The archive of the cluster with this system identifier.
    pub fn archive_of(&self, system_id: u64) -> Vec<ArchiveRange> {
        let Ok(Repository { info, archive, .. }) = &self.repository else { return Vec::new() };
        let ours = |range: &&ArchiveRange| {
            // Only the first repository's archive is listed.
            info.archives.iter().any(|it| {
                it.repo == 1
                    && it.id == range.archive_id
                    && belongs(info, (it.repo, it.database_id), system_id)
            })
        };
        archive.iter().filter(ours).cloned().collect()
    }

    /// Where the newest backup of the cluster ends.
    pub fn last_stop(&self, system_id: u64) -> Option<Lsn> {
        self.backups_of(system_id).next_back()?.stop_lsn
    }
}
