//! Names the objects of the WAL tail, and computes how far the remote reaches.
//!
//! `wal-tail/<timeline>/<segment>/<start>-<end>.zst` holds the WAL from one position to another,
//! both within one segment, packed with zstd. What it says never changes: WAL that is on disk is
//! never written differently. So objects may overlap, and the same one may be sent twice.

use std::collections::BTreeMap;

use crate::lsn::{Lsn, Segment};
use crate::offsite::Position;

/// The directory of the tail on the remote.
pub const DIRECTORY: &str = "wal-tail";

/// A stretch of WAL within one segment, as one object on the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    /// The segment.
    pub segment: Segment,
    /// The first byte.
    pub from: Lsn,
    /// The byte after the last.
    pub to: Lsn,
}

impl Piece {
    /// The object's path below [`DIRECTORY`].
    pub fn path(&self, segment_size: u64) -> String {
        format!(
            "{:08X}/{}/{:016X}-{:016X}.zst",
            self.segment.timeline,
            self.segment.name(segment_size),
            self.from.0,
            self.to.0
        )
    }

    /// Reads an object's path. `None` for any other text.
    pub fn parse(path: &str, segment_size: u64) -> Option<Piece> {
        let mut parts = path.split('/');
        let (timeline, segment, file) = (parts.next()?, parts.next()?, parts.next()?);
        let segment = Segment::parse(segment, segment_size)?;
        let (from, to) = file.strip_suffix(".zst")?.split_once('-')?;
        let position = |text: &str| u64::from_str_radix(text, 16).ok().map(Lsn);
        let piece = Piece { segment, from: position(from)?, to: position(to)? };
        let inside = segment.start(segment_size) <= piece.from
            && piece.from < piece.to
            && piece.to <= segment.end(segment_size);
        let canonical = timeline.len() == 8 && parts.next().is_none();
        (inside && canonical && piece.path(segment_size) == path).then_some(piece)
    }
}

/// Pieces of one rank that make one of the next: with one object a second, a segment that lasts
/// for hours would otherwise be thousands of objects.
const FOLDED: usize = 16;

/// What of the WAL is on the remote.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// Runs of archived segments by timeline: the first one's number, and the one after the last.
    archived: BTreeMap<u32, BTreeMap<u64, u64>>,
    /// Pieces of the tail in the order of the WAL, with how often they were folded.
    pieces: BTreeMap<Segment, Vec<(Piece, u8)>>,
}

impl Coverage {
    /// Takes in a segment that is in the remote's archive.
    pub fn archive(&mut self, segment: Segment) {
        self.archive_run(segment.timeline, segment.number, segment.number + 1);
    }

    /// Takes in the archived segments of a timeline from one number up to before another.
    pub fn archive_run(&mut self, timeline: u32, mut from: u64, mut to: u64) {
        let runs = self.archived.entry(timeline).or_default();
        if let Some((&start, &end)) = runs.range(..=from).next_back() {
            if end >= to {
                return;
            }
            if end >= from {
                from = start;
            }
        }
        while let Some((&start, &end)) = runs.range(from..=to).next_back() {
            runs.remove(&start);
            to = to.max(end);
        }
        runs.insert(from, to);
    }

    /// Takes out segments of every timeline that lie before a number: they were expired.
    pub fn forget_archived(&mut self, segment: Segment) {
        let Some(runs) = self.archived.get_mut(&segment.timeline) else { return };
        let Some((&start, &end)) = runs.range(..=segment.number).next_back() else { return };
        if end <= segment.number {
            return;
        }
        runs.remove(&start);
        if start < segment.number {
            runs.insert(start, segment.number);
        }
        if segment.number + 1 < end {
            runs.insert(segment.number + 1, end);
        }
    }

    /// Whether a segment is in the remote's archive.
    pub fn is_archived(&self, segment: Segment) -> bool {
        let runs = self.archived.get(&segment.timeline);
        let run = runs.and_then(|runs| runs.range(..=segment.number).next_back());
        run.is_some_and(|(_, end)| segment.number < *end)
    }

    /// The timelines of which segments are, or were, in the remote's archive.
    pub fn archived_timelines(&self) -> impl Iterator<Item = u32> {
        self.archived.keys().copied()
    }

    /// The first archived segment of a timeline from a number on.
    pub fn archived_from(&self, segment: Segment) -> Option<Segment> {
        if self.is_archived(segment) {
            return Some(segment);
        }
        let number = *self.archived.get(&segment.timeline)?.range(segment.number..).next()?.0;
        Some(Segment { number, ..segment })
    }

    /// Takes in a piece of the tail, made of `folded` generations of others.
    pub fn add(&mut self, piece: Piece, folded: u8) {
        let pieces = self.pieces.entry(piece.segment).or_default();
        if !pieces.iter().any(|(known, _)| *known == piece) {
            pieces.push((piece, folded));
            // Several are sent side by side, and arrive as they like.
            pieces.sort_by_key(|(piece, _)| (piece.from, piece.to));
        }
    }

    /// Takes out a piece that is no longer on the remote.
    pub fn remove(&mut self, piece: &Piece) {
        if let Some(pieces) = self.pieces.get_mut(&piece.segment) {
            pieces.retain(|(known, _)| known != piece);
            if pieces.is_empty() {
                self.pieces.remove(&piece.segment);
            }
        }
    }

    /// Whether a piece is on the remote.
    pub fn holds(&self, piece: &Piece) -> bool {
        let pieces = self.pieces.get(&piece.segment);
        pieces.is_some_and(|pieces| pieces.iter().any(|(known, _)| known == piece))
    }

    /// Every piece of the tail.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.pieces.values().flatten().map(|(piece, _)| *piece)
    }

    /// The pieces of segments with lower numbers than this, on every timeline, that no archived
    /// segment has replaced.
    pub fn pieces_before(&self, number: u64) -> impl Iterator<Item = Piece> {
        self.pieces()
            .filter(move |piece| piece.segment.number < number && !self.is_archived(piece.segment))
    }

    /// Pieces that nobody needs any more: their segment is archived on the remote.
    pub fn superseded(&self) -> Vec<Piece> {
        self.pieces().filter(|piece| self.is_archived(piece.segment)).collect()
    }

    /// The newest pieces of a segment that the next one should replace, with the next one's rank:
    /// it begins where they begin, and they are removed when it is there.
    pub fn to_fold(&self, segment: Segment) -> Option<(Vec<Piece>, u8)> {
        let pieces = self.pieces.get(&segment)?;
        let rank = pieces.last()?.1;
        let run = pieces.iter().rev().take_while(|(_, it)| *it == rank).count();
        if run < FOLDED {
            return None;
        }
        // As many generations as are full, at once.
        let mut count = run;
        let mut next = rank + 1;
        loop {
            let before = &pieces[..pieces.len() - count];
            let above = before.iter().rev().take_while(|(_, it)| *it == next).count();
            if above + 1 < FOLDED {
                break;
            }
            count += above;
            next += 1;
        }
        Some((pieces[pieces.len() - count..].iter().map(|(piece, _)| *piece).collect(), next))
    }

    /// How far the WAL of one timeline reaches without a gap from a position on.
    pub fn reach(&self, timeline: u32, from: Lsn, segment_size: u64) -> Lsn {
        let mut at = from;
        loop {
            let segment = Segment::of(timeline, at, segment_size);
            if let Some(runs) = self.archived.get(&timeline)
                && let Some((_, &end)) = runs.range(..=segment.number).next_back()
                && segment.number < end
            {
                at = Lsn(end * segment_size);
                continue;
            }
            let pieces = self.pieces.get(&segment).map(Vec::as_slice).unwrap_or_default();
            let next = pieces.iter().map(|(it, _)| it).filter(|it| it.from <= at).map(|it| it.to);
            match next.max().filter(|next| *next > at) {
                Some(next) => at = next,
                None => return at,
            }
        }
    }

    /// How far a restore from a backup, which needs WAL from `start` on, can come on the way to
    /// the timeline `target`. `None` if the backup is not on that way.
    ///
    /// `history` is what the target's history file says: each earlier timeline and where it was
    /// left.
    pub fn shipped(
        &self,
        start: Position,
        target: u32,
        history: &[(u32, Lsn)],
        segment_size: u64,
    ) -> Option<Position> {
        let mut at = start.flushed;
        let hops = history.iter().skip_while(|(parent, _)| *parent != start.timeline);
        for (place, &(parent, left_at)) in hops.enumerate() {
            if place == 0 && left_at < at {
                // The backup was taken after the others had left.
                return None;
            }
            // The segment in which a timeline begins holds what came before in it, too.
            let branch = Segment::of(parent, left_at, segment_size).start(segment_size);
            at = self.reach(parent, at, segment_size);
            if at < branch {
                return Some(Position { timeline: parent, flushed: at });
            }
            at = branch;
        }
        let leads_there =
            start.timeline == target || history.iter().any(|(parent, _)| *parent == start.timeline);
        leads_there
            .then(|| Position { timeline: target, flushed: self.reach(target, at, segment_size) })
    }

    /// Forgets all pieces of a timeline that lie behind a position, and names them.
    ///
    /// Only for a server that lost WAL which it had called safe (`fsync = off`): it writes other
    /// bytes there now.
    pub fn cut(&mut self, timeline: u32, position: Lsn) -> Vec<Piece> {
        let behind = |piece: &Piece| piece.segment.timeline == timeline && piece.to > position;
        let cut: Vec<Piece> = self.pieces().filter(behind).collect();
        for piece in &cut {
            self.remove(piece);
        }
        cut
    }
}

/// The name of a timeline's history file.
pub fn history_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

/// Reads a timeline's history file: earlier timelines, and where each was left.
pub fn parse_history(text: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 16 << 20;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline, number }
    }

    /// A piece of segment `number` between two sixteenths of it.
    fn piece(timeline: u32, number: u64, from: u64, to: u64) -> Piece {
        let at = |sixteenth| Lsn(number * SIZE + sixteenth * (SIZE / 16));
        Piece { segment: segment(timeline, number), from: at(from), to: at(to) }
    }

    fn position(timeline: u32, number: u64, sixteenth: u64) -> Position {
        Position { timeline, flushed: Lsn(number * SIZE + sixteenth * (SIZE / 16)) }
    }

    #[test]
    fn a_piece_survives_its_path() {
        let piece = piece(2, 300, 1, 3);
        let path = piece.path(SIZE);
        assert_eq!(path, "00000002/00000002000000010000002C/000000012C100000-000000012C300000.zst");
        assert_eq!(Piece::parse(&path, SIZE), Some(piece));
        for bad in [
            "",
            "x",
            "00000002/00000002000000010000002C/x.zst",
            // Another timeline's directory, a position of another segment, nothing in it, a
            // part of rclone's, a lower case name.
            "00000003/00000002000000010000002C/000000012C100000-000000012C300000.zst",
            "00000002/00000002000000010000002C/000000022C100000-000000022C300000.zst",
            "00000002/00000002000000010000002C/000000012C100000-000000012C100000.zst",
            "00000002/00000002000000010000002C/000000012C100000-000000012C300000.zst.1.partial",
            "00000002/00000002000000010000002c/000000012c100000-000000012c300000.zst",
        ] {
            assert_eq!(Piece::parse(bad, SIZE), None, "{bad}");
        }
    }

    #[test]
    fn reaches_as_far_as_there_is_no_gap() {
        let mut coverage = Coverage::default();
        let shipped = |coverage: &Coverage| {
            coverage.shipped(position(1, 5, 2), 1, &[], SIZE).map(|it| it.flushed)
        };
        let at = |number, sixteenth| Some(position(1, number, sixteenth).flushed);
        assert_eq!(shipped(&coverage), at(5, 2));
        coverage.archive(segment(1, 6));
        assert_eq!(shipped(&coverage), at(5, 2));
        coverage.add(piece(1, 5, 3, 16), 0);
        assert_eq!(shipped(&coverage), at(5, 2));
        coverage.add(piece(1, 5, 0, 3), 0);
        assert_eq!(shipped(&coverage), at(7, 0));
        coverage.archive(segment(1, 5));
        coverage.add(piece(1, 7, 0, 4), 0);
        coverage.add(piece(1, 7, 2, 9), 0);
        coverage.add(piece(2, 7, 9, 10), 0);
        assert_eq!(shipped(&coverage), at(7, 9));
        assert_eq!(coverage.superseded(), [piece(1, 5, 0, 3), piece(1, 5, 3, 16)]);
        coverage.forget_archived(segment(1, 6));
        assert_eq!(shipped(&coverage), at(6, 0));
    }

    #[test]
    fn follows_the_timelines() {
        let mut coverage = Coverage::default();
        for number in 3..6 {
            coverage.archive(segment(1, number));
        }
        // Left within segment 6, which timeline 2 holds as a whole.
        let history = [(1, position(1, 6, 8).flushed)];
        let from = position(1, 3, 4);
        let shipped =
            |coverage: &Coverage| coverage.shipped(from, 2, &history, SIZE).expect("on the way");
        assert_eq!(shipped(&coverage), position(2, 6, 0));
        coverage.add(piece(2, 6, 0, 10), 0);
        assert_eq!(shipped(&coverage), position(2, 6, 10));
        coverage.forget_archived(segment(1, 4));
        assert_eq!(shipped(&coverage), position(1, 4, 0));
        // A backup that the target's timeline does not go through.
        assert_eq!(coverage.shipped(position(1, 7, 0), 2, &history, SIZE), None);
        assert_eq!(coverage.shipped(position(3, 3, 0), 2, &history, SIZE), None);
    }

    #[test]
    fn a_history_is_read() {
        let text = "1\t0/5000060\tno recovery target specified\n\n# x\n2\t0/6000000\tbefore x\n";
        assert_eq!(parse_history(text), [(1, Lsn(0x500_0060)), (2, Lsn(0x600_0000))]);
        assert_eq!(parse_history("garbage"), []);
    }

    #[test]
    fn many_pieces_are_folded_into_few() {
        let mut coverage = Coverage::default();
        let one = segment(1, 0);
        let mut sent = 0;
        for second in 0..5000_u64 {
            let (old, rank) = coverage.to_fold(one).unwrap_or_default();
            let from = old.first().map_or(Lsn(second * 100), |it| it.from);
            let piece = Piece { segment: one, from, to: Lsn(second * 100 + 100) };
            sent += piece.to.0 - piece.from.0;
            coverage.add(piece, rank);
            for gone in old {
                coverage.remove(&gone);
            }
            assert!(coverage.pieces().count() <= 3 * FOLDED + 1);
            let reached = coverage.shipped(position(1, 0, 0), 1, &[], SIZE);
            assert_eq!(reached.map(|it| it.flushed), Some(piece.to));
        }
        // Every byte is sent at most once per generation.
        assert!(sent < 4 * 500_000, "{sent}");
    }

    #[test]
    fn what_was_lost_is_cut_off() {
        let mut coverage = Coverage::default();
        for from in 0..4 {
            coverage.add(piece(1, 5, from, from + 1), 0);
        }
        let cut = coverage.cut(1, piece(1, 5, 2, 3).from);
        assert_eq!(cut, [piece(1, 5, 2, 3), piece(1, 5, 3, 4)]);
        assert_eq!(coverage.pieces().count(), 2);
    }

    proptest! {
        /// Against a plain set of segments.
        #[test]
        fn runs_hold_exactly_what_was_put_in(
            steps in proptest::collection::vec((any::<bool>(), 0u64..24), 0..80),
        ) {
            let mut coverage = Coverage::default();
            let mut plain = std::collections::BTreeSet::new();
            for (add, number) in steps {
                if add {
                    coverage.archive(segment(1, number));
                    plain.insert(number);
                } else {
                    coverage.forget_archived(segment(1, number));
                    plain.remove(&number);
                }
                for number in 0..24 {
                    prop_assert_eq!(
                        coverage.is_archived(segment(1, number)),
                        plain.contains(&number),
                        "{}", number
                    );
                }
                for number in 0..25 {
                    let next = plain.range(number..).next().map(|next| segment(1, *next));
                    prop_assert_eq!(coverage.archived_from(segment(1, number)), next);
                }
                let end = (0..).find(|number| !plain.contains(number)).unwrap_or(0);
                prop_assert_eq!(coverage.reach(1, Lsn(0), SIZE), Lsn(end * SIZE));
            }
        }
    }
}
