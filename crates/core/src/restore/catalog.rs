//! Holds what there is to restore from: backups, archived WAL, the tail, timelines.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::lsn::{Lsn, Segment};
use crate::offsite::Position;
use crate::offsite::tail::Coverage;
use crate::pgbackrest::info::Backup;

/// What a place holds of one cluster: a repository on this machine, or a remote.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The place, for people: `s3:bucket/main`, `/var/lib/pgbackrest`.
    pub source: String,
    /// The stanza.
    pub stanza: String,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// PostgreSQL's major version, as pgBackRest writes it: `15`.
    pub version: String,
    /// The directory of the cluster's WAL in the archive: `15-1`.
    pub archive_id: String,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// The cluster's finished backups, oldest first.
    pub backups: Vec<Backup>,
    /// Backups of which something is known to be missing or damaged, each with what.
    pub unusable: BTreeMap<String, String>,
    /// The WAL that is there: archived segments, and the tail's pieces.
    pub wal: Coverage,
    /// For each timeline but the first that has a history file there: the earlier ones, and where
    /// each was left.
    pub histories: BTreeMap<u32, Vec<(u32, Lsn)>>,
    /// The restore points that were recorded.
    pub restore_points: Vec<RestorePoint>,
    /// The next transaction id, with its epoch, right after a backup had ended; by label, for those
    /// of which it was recorded.
    pub next_xids: BTreeMap<String, u64>,
    /// Whatever was committed before this is in `wal`, as shipping or the server itself last
    /// said; `None` where nobody said so.
    pub complete_until: Option<DateTime<Utc>>,
    /// How far all WAL is there, as shipping last said; `None` where nobody said so.
    pub shipped: Option<Position>,
    /// Bytes of a backup's own directory, by label; what is not there is not known.
    pub stored: BTreeMap<String, u64>,
    /// Bytes of an archived segment as it is stored, on the average; 0 if there is none.
    pub segment_stored: u64,
    /// Bytes of the tail's objects as they are stored.
    pub tail_stored: u64,
}

/// A restore point that was made with `nrt_restore_point`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// The timeline that it is on.
    pub timeline: u32,
    /// Right after its record.
    pub lsn: Lsn,
    /// When it was made.
    pub at: DateTime<Utc>,
}

/// The end of a transaction, as the WAL tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnd {
    /// When, by the server's clock.
    pub at: DateTime<Utc>,
    /// Where its record begins.
    pub lsn: Lsn,
    /// The timeline that it was written on.
    pub timeline: u32,
    /// Its id, without an epoch.
    pub xid: u32,
    /// Whether it committed.
    pub committed: bool,
}

/// WAL of one timeline from one position to another.
///
/// Stretches that follow each other are one way through the timelines. The segment in which a
/// timeline branches off is the new timeline's, which holds what came before in it, too: the
/// stretch of the new timeline begins where that segment does, and not at the branch itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// The timeline whose segments are read.
    pub timeline: u32,
    /// From here.
    pub from: Lsn,
    /// Up to here.
    pub to: Lsn,
}

/// What only the WAL itself can tell. Whoever reads it may have to fetch it first: the questions
/// are asked rarely, and about as little as possible.
///
/// The stretches of a question are never empty and follow each other. A record is in them if it
/// begins and ends in them, across segments and timelines; they may begin or end within one.
pub trait Wal {
    /// The last end of a transaction in the stretches.
    fn last_end(&mut self, stretches: &[Stretch]) -> Result<Option<TransactionEnd>, Refusal>;

    /// Where the last record begins that ends in the stretches; it may begin before them.
    fn last_record(&mut self, stretches: &[Stretch]) -> Result<Option<Lsn>, Refusal>;

    /// The first end of this transaction.
    fn find_xid(
        &mut self,
        stretches: &[Stretch],
        xid: u32,
    ) -> Result<Option<TransactionEnd>, Refusal>;

    /// Every restore point of this name, oldest first, each with where its record begins.
    fn find_name(
        &mut self,
        stretches: &[Stretch],
        name: &str,
    ) -> Result<Vec<(Lsn, RestorePoint)>, Refusal>;
}

/// The size of a WAL segment, as a backup's own numbers tell it: the name of the segment in which
/// it starts, and the position.
pub fn segment_size_of(backup: &Backup) -> Option<u64> {
    let (start, name) = (backup.start_lsn?, backup.archive_start.as_deref()?);
    let sizes = (20..=30).map(|shift| 1_u64 << shift);
    sizes.into_iter().find(|&size| {
        Segment::parse(name, size).is_some_and(|it| it == Segment::of(it.timeline, start, size))
    })
}
