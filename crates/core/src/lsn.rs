//! Computes with positions in the WAL and with the names of its segments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in the WAL, in bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How many bytes lie between `earlier` and this position; 0 if it is not earlier.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is no position in the WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a WAL position; one looks like 16/B374D848")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.to_string());
        let half = |part: &str| {
            let digits =
                (1..=8).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
            if digits { u64::from_str_radix(part, 16).map_err(|_| bad()) } else { Err(bad()) }
        };
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One WAL segment file: its timeline and its place in the sequence of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline in the file's name.
    pub timeline: u32,
    /// Counts segments from the beginning of the WAL.
    pub number: u64,
}

impl Segment {
    /// The segment that holds the byte at `lsn`.
    ///
    /// At an exact boundary that is the segment which begins there. PostgreSQL's own
    /// `pg_walfile_name` answers the one before it up to version 16.
    pub fn of(timeline: u32, lsn: Lsn, segment_size: u64) -> Segment {
        Segment { timeline, number: lsn.0 / segment_size }
    }

    /// Where the segment begins.
    pub fn start(self, segment_size: u64) -> Lsn {
        Lsn(self.number * segment_size)
    }

    /// Where the next segment begins.
    pub fn end(self, segment_size: u64) -> Lsn {
        Lsn((self.number + 1) * segment_size)
    }

    /// The file's name: timeline, then the two halves of the position.
    pub fn name(self, segment_size: u64) -> String {
        let per_half = 0x1_0000_0000 / segment_size;
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / per_half, self.number % per_half)
    }

    /// The segment that an archived file belongs to: itself, or that of a backup's history file,
    /// which is archived after its segment. `None` for a timeline's history file.
    pub fn of_archived(name: &str, segment_size: u64) -> Option<Segment> {
        Segment::parse(name.split_once('.').map_or(name, |(segment, _)| segment), segment_size)
    }

    /// Reads a segment's file name: 24 hexadecimal digits. `None` for any other name.
    pub fn parse(name: &str, segment_size: u64) -> Option<Segment> {
        if name.len() != 24 || !name.chars().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        let per_half = 0x1_0000_0000 / segment_size;
        let low = part(16..24)?;
        (low < per_half).then_some(Segment {
            timeline: u32::try_from(part(0..8)?).ok()?,
            number: part(8..16)? * per_half + low,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_writes_postgres_notation() {
        let lsn: Lsn = "16/B374D848".parse().expect("a position");
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "/", "16", "16/", "/16", "g/1", "1/2/3", "123456789/1", "+1/2", " 1/2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn names_a_segment_as_postgres_does() {
        let mb16 = 16 << 20;
        let segment = Segment::of(1, "1/2000000".parse().expect("a position"), mb16);
        assert_eq!(segment.name(mb16), "000000010000000100000002");
        assert_eq!(segment.end(mb16).to_string(), "1/3000000");
        // A 1 GB segment leaves room for four in each half.
        let segment = Segment::of(3, Lsn(5 << 30), 1 << 30);
        assert_eq!(segment.name(1 << 30), "000000030000000100000001");
        let backup = "000000010000000100000002.00000028.backup";
        assert_eq!(Segment::of_archived(backup, mb16), Segment::parse(&backup[..24], mb16));
        assert_eq!(Segment::of_archived("00000002.history", mb16), None);
        for bad in ["", "00000001.history", "0000000100000000000000zz", "000000010000000000000100"]
        {
            assert_eq!(Segment::parse(bad, mb16), None, "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn a_position_survives_its_text(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>(), Ok(Lsn(value)));
        }

        #[test]
        fn a_segment_survives_its_name(timeline: u32, position: u64, shift in 20u32..=30) {
            let size = 1u64 << shift;
            let segment = Segment::of(timeline, Lsn(position), size);
            prop_assert_eq!(Segment::parse(&segment.name(size), size), Some(segment));
            prop_assert!(segment.start(size).0 <= position);
        }
    }
}
