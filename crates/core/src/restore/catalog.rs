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
#[derive(Debug, Clone, Default)]
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
    /// Whether WAL arrives there in order, as in a repository on this machine. Shipping sends it
    /// side by side.
    pub is_ordered: bool,
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

/// The sizes of a WAL segment with which the numbers of the backups, oldest first, agree: the names
/// of the segments in which each starts and stops, and the positions. None, if there is no finished
/// backup.
///
/// Several, if all of them are in the first segments of a 4 GB block: the name of the first one says
/// nothing about the size. The newest ones count where they contradict each other.
pub fn segment_sizes_of(backups: &[Backup]) -> Vec<u64> {
    let mut left = Vec::new();
    for backup in backups.iter().rev() {
        let agreeing = agreeing_sizes(backup);
        let both = || agreeing.iter().copied().filter(|size| left.contains(size)).collect();
        let narrowed: Vec<u64> = if left.is_empty() { agreeing } else { both() };
        if !narrowed.is_empty() {
            left = narrowed;
        }
        if left.len() == 1 {
            break;
        }
    }
    left
}

/// The sizes with which a backup's own numbers agree.
fn agreeing_sizes(backup: &Backup) -> Vec<u64> {
    let (Some(start), Some(first)) = (backup.start_lsn, backup.archive_start.as_deref()) else {
        return Vec::new();
    };
    let stop = backup.stop_lsn.zip(backup.archive_stop.as_deref());
    let holds = |name: &str, lsn: Lsn, size: u64| {
        // What ends with a segment is in it, too: that is what PostgreSQL names up to version 16.
        Segment::parse(name, size).is_some_and(|it| it.start(size) <= lsn && lsn <= it.end(size))
    };
    let sizes = (20..=30).map(|shift| 1_u64 << shift);
    sizes
        .filter(|&size| holds(first, start, size))
        .filter(|&size| stop.is_none_or(|(lsn, last)| holds(last, lsn, size)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::BackupType;

    const MB: u64 = 1 << 20;

    /// A backup from one position to another, of a cluster with segments of this size.
    fn backup(start: &str, stop: &str, size: u64) -> Backup {
        let lsn = |text: &str| text.parse::<Lsn>().expect("a position");
        let name = |lsn: Lsn| Some(Segment::of(1, lsn, size).name(size));
        let (start, stop) = (lsn(start), lsn(stop));
        Backup {
            label: "20261122-143000F".to_string(),
            kind: BackupType::Full,
            prior: None,
            references: Vec::new(),
            error: Some(false),
            start_time: DateTime::UNIX_EPOCH,
            stop_time: DateTime::UNIX_EPOCH,
            start_lsn: Some(start),
            stop_lsn: Some(stop),
            archive_start: name(start),
            archive_stop: name(stop),
            timeline: Some(1),
            database_id: 1,
            repo: 1,
            size: None,
            delta: None,
            repo_size: None,
            repo_delta: None,
            pgbackrest: "2.45".to_string(),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_size_of_a_segment_is_what_all_numbers_agree_with() {
        for (start, stop, size) in [
            ("0/3000028", "0/3000100", 16 * MB),
            ("1/28", "1/1000050", 16 * MB),
            ("1/28", "1/100050", MB),
            ("0/40000028", "0/40000100", 1024 * MB),
            ("1/28", "1/40000050", 1024 * MB),
            ("7F/FF000028", "80/50", 16 * MB),
        ] {
            let sizes = segment_sizes_of(&[backup(start, stop, size)]);
            assert_eq!(sizes, [size], "{start} {stop}");
        }
        assert!(segment_sizes_of(&[]).is_empty());
    }

    #[test]
    fn the_first_segment_of_a_block_does_not_tell_its_size() {
        for size in [MB, 16 * MB, 1024 * MB] {
            let all: Vec<u64> = (20..=30).map(|shift| 1 << shift).collect();
            let newest = backup("1/28", "1/100", size);
            assert_eq!(segment_sizes_of(std::slice::from_ref(&newest)), all);
            // A position behind it is too far for the smaller ones.
            let within = segment_sizes_of(&[backup("1/28", "1/A00050", 16 * MB)]);
            assert_eq!(
                within,
                [16 * MB, 32 * MB, 64 * MB, 128 * MB, 256 * MB, 512 * MB, 1024 * MB]
            );
            let older = backup("0/80000028", "0/80000100", size);
            assert_eq!(segment_sizes_of(&[older.clone(), newest]), [size]);
            // One that has just failed says nothing.
            let failed = Backup { archive_start: None, ..older.clone() };
            assert_eq!(segment_sizes_of(&[older, failed]), [size]);
        }
    }

    #[test]
    fn newer_backups_tell_the_size_of_a_segment_where_it_was_changed() {
        let older = backup("0/3000028", "0/3000100", 16 * MB);
        let newer = backup("0/40000028", "0/40000100", 64 * MB);
        assert_eq!(segment_sizes_of(&[older, newer]), [64 * MB]);
    }

    #[test]
    fn a_stop_at_the_end_of_a_segment_is_in_it() {
        let mut newest = backup("0/3000028", "0/3000100", 16 * MB);
        newest.stop_lsn = Some(Lsn(0x400_0000));
        assert_eq!(segment_sizes_of(&[newest]), [16 * MB]);
    }
}
