//! Measures how much WAL was really written, leaving out what forced segment switches padded.
//!
//! A switch (`archive_timeout`, `pg_switch_wal`, the end of a backup) ends a segment early: the
//! position jumps to the next segment and the rest of the file is zeros. Counted by position, an
//! idle server with a short `archive_timeout` would "grow" by gigabytes a day. So a finished
//! segment counts only up to its last byte that is not zero.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::lsn::{Lsn, Segment};

/// The size of a WAL page. PostgreSQL can be built with another one; a wrong guess here costs
/// accuracy of one page per segment, not correctness.
pub const PAGE: u64 = 8192;

/// Reads a page of a WAL segment, so that this module needs no files.
pub trait Pages {
    /// The page at `offset` of the segment, or `None` if the segment is gone or unreadable.
    fn page(&mut self, segment: Segment, offset: u64) -> Option<[u8; PAGE as usize]>;
}

/// Adds up what was written since a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    base: Lsn,
    /// Up to here all is counted for good: the end of the last finished segment.
    seen: Lsn,
    written: u64,
    /// How far the WAL was when the meter last looked.
    looked: Lsn,
    /// Bytes of the segment in use, which are counted anew at every look.
    open: u64,
}

impl Meter {
    /// Starts to measure at `base`, the position right after a backup's stop.
    pub fn new(base: Lsn) -> Meter {
        Meter { base, seen: base, written: 0, looked: base, open: 0 }
    }

    /// Where the measurement began.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// Bytes of WAL written from the base up to where the meter has seen.
    pub fn written(&self) -> u64 {
        self.written + self.open
    }

    /// Takes in what was written up to `flushed`.
    ///
    /// Somebody who commits while a switch fills up its segment flushes a part of the padding: so
    /// the segment in use, too, counts only as far as it holds something. One that cannot be read
    /// any more counts in full: it is better to back up too early than not at all. The work is at
    /// most a dozen page reads per segment touched since the last call, and none if there was
    /// nothing new.
    pub fn advance(&mut self, timeline: u32, flushed: Lsn, size: u64, pages: &mut impl Pages) {
        if flushed <= self.looked {
            return;
        }
        self.looked = flushed;
        self.open = 0;
        while self.seen < flushed {
            let segment = Segment::of(timeline, self.seen, size);
            let start = segment.start(size);
            let length = flushed.since(start).min(size);
            let content = content_length(segment, length, pages).unwrap_or(length);
            let counted = Lsn(start.0 + content).since(self.seen);
            if length < size {
                self.open = counted;
                return;
            }
            self.written += counted;
            self.seen = segment.end(size);
        }
    }
}

/// How many of a segment's first `length` bytes hold WAL; the rest is the padding of a switch.
///
/// Every page that holds WAL begins with a magic number, every page after a switch is zero all
/// over: the last page in use is found by bisection.
fn content_length(segment: Segment, length: u64, pages: &mut impl Pages) -> Option<u64> {
    let in_use = |page: &[u8]| page.iter().take(2).any(|byte| *byte != 0);
    let (mut used, mut unused) = (0, length.div_ceil(PAGE));
    // There is rarely any padding: ask for the last page first.
    let last = pages.page(segment, unused.checked_sub(1)? * PAGE)?;
    if in_use(&last) {
        used = unused;
    }
    while used < unused {
        let middle = used + (unused - used) / 2;
        if in_use(&pages.page(segment, middle * PAGE)?) {
            used = middle + 1;
        } else {
            unused = middle;
        }
    }
    let Some(last_used) = used.checked_sub(1) else { return Some(0) };
    let page = pages.page(segment, last_used * PAGE)?;
    let in_page = page.iter().rposition(|byte| *byte != 0).map_or(0, |position| position + 1);
    Some((last_used * PAGE + in_page as u64).min(length))
}

/// How quickly WAL takes room, over the last minutes. By position: a padded segment takes as much room
/// as a full one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rate {
    /// When the WAL was where, oldest first.
    seen: VecDeque<(DateTime<Utc>, Lsn)>,
}

impl Rate {
    /// Between two measurements.
    const STEP: TimeDelta = TimeDelta::seconds(30);
    /// How far back.
    const SPAN: TimeDelta = TimeDelta::minutes(10);

    /// Takes in how far the WAL is.
    pub fn measure(&mut self, now: DateTime<Utc>, flushed: Lsn) {
        // The clock was set back.
        self.seen.retain(|(at, lsn)| *at <= now && *lsn <= flushed);
        if self.seen.back().is_none_or(|(at, _)| now - *at >= Rate::STEP) {
            self.seen.push_back((now, flushed));
        }
        while self.seen.front().is_some_and(|(at, _)| now - *at > Rate::SPAN) {
            self.seen.pop_front();
        }
    }

    /// Bytes a second, as soon as that can be told.
    pub fn per_second(&self) -> Option<u64> {
        let ((begin, from), (end, to)) = self.seen.front().zip(self.seen.back())?;
        let seconds = u64::try_from((*end - *begin).num_seconds()).ok()?;
        to.since(*from).checked_div(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minutes() {
        let mut rate = Rate::default();
        let mut now = DateTime::UNIX_EPOCH;
        let mut at = 0;
        assert_eq!(rate.per_second(), None);
        rate.measure(now, Lsn(at));
        assert_eq!(rate.per_second(), None);
        for (step, steps, expected) in [(1000, 60, 1000), (50, 3000, 50), (0, 3000, 0)] {
            for _ in 0..steps {
                now += TimeDelta::seconds(1);
                at += step;
                rate.measure(now, Lsn(at));
            }
            assert_eq!(rate.per_second(), Some(expected));
            assert!(rate.seen.len() <= 22, "{}", rate.seen.len());
        }
        // A clock that is set back begins anew.
        rate.measure(now - TimeDelta::days(1), Lsn(at));
        assert_eq!(rate.per_second(), None);
    }
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SIZE: u64 = 1 << 20;

    /// A `pg_wal` in which every segment holds so many bytes; others are gone.
    #[derive(Default)]
    struct Wal {
        content: BTreeMap<u64, u64>,
        reads: usize,
    }

    impl Pages for Wal {
        fn page(&mut self, segment: Segment, offset: u64) -> Option<[u8; PAGE as usize]> {
            self.reads += 1;
            let length = *self.content.get(&segment.number)?;
            let filled = length.saturating_sub(offset).min(PAGE) as usize;
            let mut page = [0; PAGE as usize];
            page[..filled].fill(0xD1);
            Some(page)
        }
    }

    fn wal(content: &[(u64, u64)]) -> Wal {
        Wal { content: content.iter().copied().collect(), reads: 0 }
    }

    #[test]
    fn an_idle_server_that_switches_grows_by_its_records_only() {
        // A hundred switches, each after 120 bytes of records.
        let mut wal = wal(&(0..100).map(|number| (number, 120)).collect::<Vec<_>>());
        let mut meter = Meter::new(Lsn(0));
        for number in 1..=100 {
            meter.advance(1, Lsn(number * SIZE), SIZE, &mut wal);
        }
        assert_eq!(meter.written(), 100 * 120);
        assert!(wal.reads <= 100 * 10, "{} reads", wal.reads);
    }

    #[test]
    fn a_full_segment_costs_two_reads_and_a_lost_one_counts_in_full() {
        let mut wal = wal(&[(0, SIZE), (2, SIZE)]);
        let mut meter = Meter::new(Lsn(0));
        meter.advance(1, Lsn(3 * SIZE), SIZE, &mut wal);
        assert_eq!(meter.written(), 3 * SIZE);
        assert!(wal.reads <= 5, "{} reads", wal.reads);
    }

    /// Seen on a real server: a commit, while `archive_timeout` switched the segment.
    #[test]
    fn padding_that_is_flushed_before_its_segment_is_finished_is_none_of_it() {
        let mut wal = wal(&[(0, 120), (1, 300)]);
        let mut meter = Meter::new(Lsn(0));
        meter.advance(1, Lsn(SIZE / 2), SIZE, &mut wal);
        assert_eq!(meter.written(), 120);
        meter.advance(1, Lsn(SIZE + 300), SIZE, &mut wal);
        assert_eq!(meter.written(), 420);
        let reads = wal.reads;
        meter.advance(1, Lsn(SIZE + 300), SIZE, &mut wal);
        assert_eq!(wal.reads, reads, "an idle server is not read");
    }

    #[test]
    fn what_was_seen_of_a_segment_is_not_counted_again_when_it_ends() {
        let mut wal = wal(&[(0, 5000), (1, 300)]);
        let mut meter = Meter::new(Lsn(1000));
        meter.advance(1, Lsn(4000), SIZE, &mut wal);
        assert_eq!(meter.written(), 3000);
        meter.advance(1, Lsn(SIZE + 300), SIZE, &mut wal);
        assert_eq!(meter.written(), 4000 + 300);
        // The server stands still, or a caller passes an older position.
        meter.advance(1, Lsn(SIZE + 300), SIZE, &mut wal);
        meter.advance(1, Lsn(SIZE), SIZE, &mut wal);
        assert_eq!(meter.written(), 4300);
    }

    proptest! {
        /// However often the meter looks, it comes to the sum of the contents.
        #[test]
        fn looking_often_changes_nothing(
            contents in prop::collection::vec(1..=SIZE, 1..6),
            mut looks in prop::collection::vec(0..6 * SIZE, 0..20),
        ) {
            let numbered: Vec<_> = (0u64..).zip(contents.iter().copied()).collect();
            let end = Lsn(contents.len() as u64 * SIZE);
            let mut wal = wal(&numbered);
            let mut meter = Meter::new(Lsn(0));
            looks.sort_unstable();
            for look in looks {
                // Anywhere, in the padding, too.
                let flushed = look.min(end.0);
                meter.advance(1, Lsn(flushed), SIZE, &mut wal);
                let (whole, rest) = ((flushed / SIZE) as usize, flushed % SIZE);
                let expected = contents[..whole].iter().sum::<u64>()
                    + contents.get(whole).map_or(0, |content| rest.min(*content));
                prop_assert_eq!(meter.written(), expected);
            }
            meter.advance(1, end, SIZE, &mut wal);
            prop_assert_eq!(meter.written(), contents.iter().sum::<u64>());
        }
    }
}
