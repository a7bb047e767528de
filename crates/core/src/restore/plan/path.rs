//! Follows the timelines to one of them, and finds how far WAL lies on the way.

use std::collections::BTreeSet;

use super::super::Refusal;
use super::super::catalog::{Catalog, Stretch};
use crate::lsn::{Lsn, Segment};
use crate::offsite::Position;

/// The way to a timeline, over those that it comes from.
pub(super) struct Path<'a> {
    catalog: &'a Catalog,
    /// Where it leads.
    pub(super) timeline: u32,
    legs: Vec<Leg>,
}

/// One timeline's part of the way: the records from one position to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leg {
    timeline: u32,
    /// The one before was left here.
    begins: Lsn,
    /// It was left here itself; `None` at the end of the way.
    ends: Option<Lsn>,
}

impl<'a> Path<'a> {
    /// The way to a timeline.
    pub(super) fn to(catalog: &'a Catalog, timeline: u32) -> Result<Path<'a>, Refusal> {
        let known = known_timelines(catalog);
        if !known.contains(&timeline) {
            let known: Vec<String> = known.iter().map(u32::to_string).collect();
            return Err(Refusal::new(
                format!("timeline {timeline} is not in {}", catalog.source),
                match known.as_slice() {
                    [] => "There is neither a backup nor WAL.".to_string(),
                    known => format!("These are there: {}.", known.join(", ")),
                },
            ));
        }
        let history = catalog.histories.get(&timeline).map_or(&[][..], Vec::as_slice);
        Ok(Path { catalog, timeline, legs: legs(history, timeline) })
    }

    /// Whether the history file of the timeline is missing. Recovery then reads no other timeline:
    /// it can begin only with a backup that was taken on this one.
    pub(super) fn lacks_history(&self) -> bool {
        self.timeline > 1 && !self.catalog.histories.contains_key(&self.timeline)
    }

    /// Whether a record of a timeline that ends here is on this way, and so is a backup whose last
    /// record it is.
    pub(super) fn holds(&self, timeline: u32, record_end: Lsn) -> bool {
        let leg = self.legs.iter().find(|leg| leg.timeline == timeline);
        leg.is_some_and(|leg| leg.ends.is_none_or(|ends| record_end <= ends))
    }

    /// From where up to where the segments of a leg are read: the segment in which a timeline
    /// begins holds what came before in it, too, and is read instead of the earlier one's.
    fn files(&self, leg: usize) -> (Lsn, Lsn) {
        let begins = |leg: usize| self.legs.get(leg).map(|it| self.segment_start(it.begins));
        (begins(leg).unwrap_or_default(), begins(leg + 1).unwrap_or(Lsn(u64::MAX)))
    }

    /// The WAL between two positions, by the timelines whose segments are read.
    pub(super) fn stretches(&self, from: Lsn, to: Lsn) -> Vec<Stretch> {
        let part = |(number, leg): (usize, &Leg)| {
            let (first, end) = self.files(number);
            let (from, to) = (from.max(first), to.min(end));
            (from < to).then_some(Stretch { timeline: leg.timeline, from, to })
        };
        self.legs.iter().enumerate().filter_map(part).collect()
    }

    /// How far recovery comes from a backup on this way.
    pub(super) fn reach(&self, timeline: u32, start: Lsn) -> Lsn {
        // PostgreSQL checks the pages before the record with which it begins, too.
        let start = Position { timeline, flushed: self.segment_start(start) };
        let left = self.legs.iter().filter_map(|leg| leg.ends.map(|ends| (leg.timeline, ends)));
        let history: Vec<(u32, Lsn)> = left.collect();
        let size = self.catalog.segment_size;
        let reached = self.catalog.wal.shipped(start, self.timeline, &history, size);
        reached.map_or(start.flushed, |it| it.flushed)
    }

    /// The timeline on which the record was written that ends here.
    pub(super) fn owner(&self, record_end: Lsn) -> u32 {
        let leg = self.legs.iter().find(|leg| leg.ends.is_none_or(|ends| record_end <= ends));
        leg.map_or(self.timeline, |leg| leg.timeline)
    }

    /// Where the way goes on behind an end of the WAL: `None` if this is the very end.
    pub(super) fn goes_on(&self, reach: Lsn) -> Option<Lsn> {
        let known = (0..self.legs.len()).filter_map(|leg| self.next_wal(leg, reach)).min();
        // That a timeline begins here, or was left there, proves that there was WAL up to there.
        let left = self.catalog.histories.values().flatten();
        let left = left.filter(|(timeline, _)| *timeline == self.timeline).map(|it| it.1);
        let proven = left.chain(self.legs.last().map(|leg| leg.begins)).max();
        known.or(proven.filter(|at| reach < *at))
    }

    /// The same, if WAL that was surely there is missing. Shipping sends pieces and segments in no
    /// particular order: a machine that vanishes leaves a hole behind the last position that it
    /// had called shipped, and that hole is the end of what can be had.
    pub(super) fn gap(&self, reach: Lsn) -> Option<Lsn> {
        self.goes_on(reach).filter(|_| reach < self.surely_there())
    }

    /// All WAL before this position was there once, if it is on this way.
    pub(super) fn surely_there(&self) -> Lsn {
        const ALL: Lsn = Lsn(u64::MAX);
        let leg_of = |timeline: u32| self.legs.iter().find(|leg| leg.timeline == timeline);
        let promised = match self.catalog.shipped {
            Some(promised) => match leg_of(promised.timeline) {
                Some(leg) => leg.ends.map_or(promised.flushed, |ends| ends.min(promised.flushed)),
                // A later timeline was promised, of which it is not known where it left this way.
                None if promised.timeline > self.timeline => ALL,
                None => Lsn(0),
            },
            // An archiver archives in order, and forgets nothing.
            None if self.catalog.is_ordered => ALL,
            None => Lsn(0),
        };
        // A backup is listed after its WAL is there. A timeline begins where the one before it was
        // replayed to.
        let backups = self.catalog.backups.iter().filter_map(|it| it.timeline.zip(it.stop_lsn));
        let stops = backups.filter(|(timeline, stop)| self.holds(*timeline, *stop)).map(|it| it.1);
        let begins = self.legs.last().map(|leg| leg.begins);
        stops.chain(begins).chain([promised]).max().unwrap_or_default()
    }

    /// The first WAL of a leg that lies behind a position which its WAL does not reach.
    fn next_wal(&self, leg: usize, behind: Lsn) -> Option<Lsn> {
        let size = self.catalog.segment_size;
        let timeline = self.legs.get(leg)?.timeline;
        let (first, end) = self.files(leg);
        let inside = |at: &Lsn| *at > behind && (first..end).contains(at);
        let pieces = self.catalog.wal.pieces().filter(|it| it.segment.timeline == timeline);
        let backups = self.catalog.backups.iter().filter(|it| it.timeline == Some(timeline));
        // The segment of the position itself may be there: what lies behind that is meant.
        let next = if first > behind { first } else { Lsn(behind.0.saturating_add(size)) };
        let archived = self.catalog.wal.archived_from(Segment::of(timeline, next, size));
        let archived = archived.map(|segment| segment.start(size));
        let told = pieces.map(|it| it.from).chain(backups.filter_map(|it| it.start_lsn));
        told.chain(archived).filter(inside).min()
    }

    /// Timelines that parted from this way behind a position and have WAL further on: recovery does
    /// not go there. With `at`, only those whose WAL holds that position, too.
    pub(super) fn abandoned(&self, behind: Lsn, at: Option<Lsn>) -> Vec<(u32, Lsn)> {
        let left = self.legs.iter().filter_map(|leg| Some((leg.timeline, leg.ends?)));
        let is_on_the_way = |timeline| self.legs.iter().any(|leg| leg.timeline == timeline);
        // One that branched off this way has no leg of it.
        let beside = known_timelines(self.catalog).into_iter().filter(|it| !is_on_the_way(*it));
        let beside = beside.filter_map(|timeline| {
            let (parent, begins) = *self.catalog.histories.get(&timeline)?.last()?;
            self.holds(parent, begins).then_some((timeline, begins))
        });
        let parted = left.chain(beside).filter(|&(timeline, parted)| {
            let end = self.reach_on(timeline, parted);
            let holds = at.is_none_or(|at| parted < at && at <= end);
            behind <= parted && parted < end && holds
        });
        parted.collect()
    }

    /// The timeline whose own WAL reaches up to where it was left, though that of the next one
    /// does not: its last segment was never archived by both.
    pub(super) fn left_whole(&self, reach: Lsn) -> Option<(u32, Lsn)> {
        let mut left = self.legs.iter().filter_map(|leg| leg.ends.map(|at| (leg.timeline, at)));
        left.find(|&(timeline, at)| {
            self.segment_start(at) <= reach && reach < at && at <= self.reach_on(timeline, at)
        })
    }

    /// How far one timeline's WAL reaches from the beginning of the segment of a position.
    fn reach_on(&self, timeline: u32, at: Lsn) -> Lsn {
        let size = self.catalog.segment_size;
        self.catalog.wal.reach(timeline, self.segment_start(at), size)
    }

    /// The end of the segment behind the one that holds a position: PostgreSQL stops at a record
    /// at the position, or at the first one behind it.
    pub(super) fn segment_behind(&self, at: Lsn) -> Lsn {
        let size = self.catalog.segment_size;
        Lsn(Segment::of(self.timeline, at, size).end(size).0.saturating_add(size))
    }

    /// Where the segment begins that holds a position.
    pub(super) fn segment_start(&self, at: Lsn) -> Lsn {
        let size = self.catalog.segment_size;
        Segment::of(self.timeline, at, size).start(size)
    }
}

/// Reads a history. A restore to a point before a branch leaves a timeline earlier than it has
/// begun: then that is where its parents were left as well, and it has no part in the way.
fn legs(history: &[(u32, Lsn)], timeline: u32) -> Vec<Leg> {
    let mut legs = vec![Leg { timeline, begins: Lsn(0), ends: None }];
    for &(parent, left) in history.iter().rev() {
        let next = legs.last().and_then(|leg| leg.ends);
        let ends = next.map_or(left, |next| left.min(next));
        legs.push(Leg { timeline: parent, begins: Lsn(0), ends: Some(ends) });
    }
    legs.reverse();
    let mut begins = Lsn(0);
    for leg in &mut legs {
        leg.begins = begins;
        begins = leg.ends.unwrap_or(begins);
    }
    legs
}

/// Every timeline of which something is there.
pub(super) fn known_timelines(catalog: &Catalog) -> BTreeSet<u32> {
    let histories = catalog.histories.iter();
    let mut known: BTreeSet<u32> = histories
        .flat_map(|(timeline, earlier)| earlier.iter().map(|it| it.0).chain([*timeline]))
        .chain(catalog.backups.iter().filter_map(|backup| backup.timeline))
        .chain(catalog.wal.pieces().map(|piece| piece.segment.timeline))
        .collect();
    // WAL from before the oldest backup is of no use to any.
    if let Some(oldest) = catalog.backups.iter().filter_map(|it| it.start_lsn).min() {
        let archived = catalog.wal.archived_timelines().filter(|timeline| {
            let first = Segment::of(*timeline, oldest, catalog.segment_size);
            catalog.wal.archived_from(first).is_some()
        });
        known.extend(archived);
    }
    known
}
