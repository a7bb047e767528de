//! What the tests are made of: histories of clusters whose every record is known.

mod property;
mod rules;
mod shown;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::super::Refusal;
use super::super::catalog::{Catalog, RestorePoint, Stretch, TransactionEnd, Wal};
use crate::kind::BackupType;
use crate::lsn::{Lsn, Segment};
use crate::offsite::tail::{Coverage, Piece};
use crate::pgbackrest::info::Backup;

/// Bytes of a segment.
const SIZE: u64 = 1 << 20;

/// What a record of the WAL says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    End { xid: u64, committed: bool },
    Name(String),
    Other,
}

/// A record of the WAL. Those of a timeline follow each other without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    begin: Lsn,
    end: Lsn,
    at: DateTime<Utc>,
    kind: Kind,
    /// The timeline that it was written on.
    timeline: u32,
}

/// A cluster: what has really happened, and what is there of it.
#[derive(Debug, Clone)]
struct World {
    /// All records on the way to a timeline.
    lines: BTreeMap<u32, Vec<Record>>,
    catalog: Catalog,
}

fn instant(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_767_225_600_000_000 + micros).expect("an instant")
}

fn empty_catalog() -> Catalog {
    Catalog {
        source: "s3:bucket/main".to_string(),
        stanza: "main".to_string(),
        system_id: 7_000_000_000_000_000_001,
        version: "15".to_string(),
        archive_id: "15-1".to_string(),
        segment_size: SIZE,
        backups: Vec::new(),
        unusable: BTreeMap::new(),
        wal: Coverage::default(),
        histories: BTreeMap::new(),
        restore_points: Vec::new(),
        next_xids: BTreeMap::new(),
        complete_until: None,
        shipped: None,
        is_ordered: true,
        stored: BTreeMap::new(),
        segment_stored: 0,
        tail_stored: 0,
    }
}

fn backup(
    label: &str,
    timeline: u32,
    lsn: (Lsn, Lsn),
    time: (DateTime<Utc>, DateTime<Utc>),
    references: Vec<String>,
) -> Backup {
    let segment = |lsn| Some(Segment::of(timeline, lsn, SIZE).name(SIZE));
    let whole = |at: DateTime<Utc>| at - TimeDelta::nanoseconds(at.timestamp_subsec_nanos().into());
    Backup {
        label: label.to_string(),
        kind: if references.is_empty() { BackupType::Full } else { BackupType::Incr },
        prior: references.last().cloned(),
        references,
        error: Some(false),
        start_time: whole(time.0),
        stop_time: whole(time.1),
        start_lsn: Some(lsn.0),
        stop_lsn: Some(lsn.1),
        archive_start: segment(lsn.0),
        archive_stop: segment(lsn.1),
        timeline: Some(timeline),
        database_id: 1,
        repo: 1,
        size: Some(1000),
        delta: Some(1000),
        repo_size: None,
        repo_delta: None,
        pgbackrest: "2.45".to_string(),
        annotations: BTreeMap::new(),
    }
}

impl World {
    /// Takes in a piece of the tail.
    fn tail(&mut self, timeline: u32, from: Lsn, to: Lsn) {
        if from < to {
            let segment = Segment::of(timeline, from, SIZE);
            self.catalog.wal.add(Piece { segment, from, to }, 0);
        }
    }

    /// How far a segment is there, from its beginning.
    fn limit(&self, timeline: u32, number: u64) -> Lsn {
        let segment = Segment { timeline, number };
        let reach = self.catalog.wal.reach(timeline, segment.start(SIZE), SIZE);
        reach.min(segment.end(SIZE))
    }

    fn wal(&self) -> Known<'_> {
        Known { world: self, asked: Vec::new() }
    }
}

/// Answers as someone who has read the WAL that is there, and refuses to read what is not.
struct Known<'a> {
    world: &'a World,
    /// What was asked, and about which WAL.
    asked: Vec<(&'static str, Lsn, Lsn)>,
}

impl Known<'_> {
    fn read(&mut self, question: &'static str, stretches: &[Stretch]) -> (Vec<Record>, Lsn, Lsn) {
        let (first, last) = (stretches.first().expect("WAL"), stretches.last().expect("WAL"));
        for pair in stretches.windows(2) {
            assert_eq!(pair[0].to, pair[1].from, "{stretches:?}");
            assert!(pair[0].timeline < pair[1].timeline, "{stretches:?}");
        }
        for it in stretches {
            let start = Segment::of(it.timeline, it.from, SIZE).start(SIZE);
            let reach = self.world.catalog.wal.reach(it.timeline, start, SIZE);
            assert!(it.from < it.to && it.to <= reach, "{it:?} is not there");
        }
        self.asked.push((question, first.from, last.to));
        let line = &self.world.lines[&last.timeline];
        let ends_inside = |it: &&Record| first.from < it.end && it.end <= last.to;
        (line.iter().filter(ends_inside).cloned().collect(), first.from, last.to)
    }

    fn ends(&mut self, question: &'static str, stretches: &[Stretch]) -> Vec<TransactionEnd> {
        let (records, from, _) = self.read(question, stretches);
        let end = |it: &Record| match it.kind {
            Kind::End { xid, committed } if from <= it.begin => Some(TransactionEnd {
                at: it.at,
                lsn: it.begin,
                timeline: it.timeline,
                xid: xid as u32,
                committed,
            }),
            _ => None,
        };
        records.iter().filter_map(end).collect()
    }
}

impl Wal for Known<'_> {
    fn last_end(&mut self, stretches: &[Stretch]) -> Result<Option<TransactionEnd>, Refusal> {
        Ok(self.ends("last end", stretches).pop())
    }

    fn last_record(&mut self, stretches: &[Stretch]) -> Result<Option<Lsn>, Refusal> {
        Ok(self.read("last record", stretches).0.last().map(|it| it.begin))
    }

    fn find_xid(
        &mut self,
        stretches: &[Stretch],
        xid: u32,
    ) -> Result<Option<TransactionEnd>, Refusal> {
        Ok(self.ends("xid", stretches).into_iter().find(|it| it.xid == xid))
    }

    fn find_name(
        &mut self,
        stretches: &[Stretch],
        name: &str,
    ) -> Result<Vec<(Lsn, RestorePoint)>, Refusal> {
        let (records, from, _) = self.read("name", stretches);
        let named = |it: &&Record| from <= it.begin && it.kind == Kind::Name(name.to_string());
        let point = |it: &Record| {
            let (name, timeline) = (name.to_string(), it.timeline);
            (it.begin, RestorePoint { name, timeline, lsn: it.end, at: it.at })
        };
        Ok(records.iter().filter(named).map(point).collect())
    }
}
