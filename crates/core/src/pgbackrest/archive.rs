//! Finds the unbroken runs of WAL in the listing of an archive.
//!
//! The listing is that of `pgbackrest repo-ls --recurse --output=json archive/<stanza>`: one JSON
//! object, whose keys are paths such as
//! `15-1/0000000100000000/00000001000000000000000A-<sha1>.zst`. It has one entry for each segment
//! ever archived and not expired, so it is read as a stream.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::log::json_of;
use crate::lsn::{Lsn, Segment};

/// Segments of one timeline without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRange {
    /// Which cluster's archive, as [`Archive::id`](super::info::Archive::id) has it: `15-1`.
    pub archive_id: String,
    /// The timeline in the names of the segments.
    pub timeline: u32,
    /// The name of the first segment.
    pub first: String,
    /// The name of the last segment.
    pub last: String,
    /// Where the first segment begins.
    pub from: Lsn,
    /// Where the last segment ends.
    pub to: Lsn,
    /// How many segments there are.
    pub segments: u64,
    /// When the segment was stored that was stored first.
    pub oldest_time: Option<DateTime<Utc>>,
    /// When the segment was stored that was stored last.
    pub newest_time: Option<DateTime<Utc>>,
}

/// A timeline's history file: it tells where the timeline left its parent. A listing has only
/// its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct History {
    /// Which cluster's archive.
    pub archive_id: String,
    /// The timeline that begins with it.
    pub timeline: u32,
}

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveListing {
    /// By cluster, timeline and position. Two of the same cluster and timeline have a gap
    /// between them.
    pub ranges: Vec<ArchiveRange>,
    /// By cluster and timeline.
    pub histories: Vec<History>,
}

/// Reads the listing of a stanza's archive.
///
/// Files of any other name are passed over: partial segments, backup history files, files being
/// written, segments of another size.
pub fn parse_listing(output: &str, segment_size: u64) -> Result<ArchiveListing, serde_json::Error> {
    let mut found =
        Found { segment_size, ids: Vec::new(), segments: Vec::new(), histories: Vec::new() };
    let mut reader = serde_json::Deserializer::from_str(json_of(output));
    found.deserialize(&mut reader)?;
    reader.end()?;
    Ok(found.listing())
}

/// The files of a listing that matter.
struct Found {
    segment_size: u64,
    /// A stanza has a handful of archives, so they are counted and not copied.
    ids: Vec<String>,
    /// The place of the archive in `ids`, the segment, when it was stored.
    segments: Vec<(usize, Segment, Option<i64>)>,
    histories: Vec<History>,
}

#[derive(Deserialize)]
struct Entry {
    time: Option<i64>,
}

impl Found {
    fn add(&mut self, path: &str, time: Option<i64>) {
        let Some((id, rest)) = path.split_once('/') else { return };
        if let Some(timeline) = history(rest) {
            self.histories.push(History { archive_id: id.to_string(), timeline });
        } else if let Some(segment) = stored_segment(rest, self.segment_size) {
            let known = self.ids.iter().rposition(|known| known == id);
            let place = known.unwrap_or_else(|| {
                self.ids.push(id.to_string());
                self.ids.len() - 1
            });
            self.segments.push((place, segment, time));
        }
    }

    fn listing(mut self) -> ArchiveListing {
        self.histories.sort();
        let ids = &self.ids;
        self.segments.sort_unstable_by(|a, b| (&ids[a.0], a.1).cmp(&(&ids[b.0], b.1)));
        let runs = self.segments.chunk_by(|(id, a, _), (next_id, b, _)| {
            id == next_id
                && a.timeline == b.timeline
                // The same segment twice, with different contents, is a fault but no gap.
                && (a.number == b.number || a.number + 1 == b.number)
        });
        let ranges = runs.filter_map(|run| self.range(run)).collect();
        ArchiveListing { ranges, histories: self.histories }
    }

    fn range(&self, run: &[(usize, Segment, Option<i64>)]) -> Option<ArchiveRange> {
        let (&(id, first, _), &(_, last, _)) = (run.first()?, run.last()?);
        let instant = |seconds: Option<i64>| DateTime::from_timestamp(seconds?, 0);
        let times = || run.iter().filter_map(|(_, _, time)| *time);
        Some(ArchiveRange {
            archive_id: self.ids[id].clone(),
            timeline: first.timeline,
            first: first.name(self.segment_size),
            last: last.name(self.segment_size),
            from: first.start(self.segment_size),
            to: last.end(self.segment_size),
            segments: last.number - first.number + 1,
            oldest_time: instant(times().min()),
            newest_time: instant(times().max()),
        })
    }
}

/// `00000002.history` → 2
fn history(file: &str) -> Option<u32> {
    let digits = file.strip_suffix(".history")?;
    if is_hexadecimal(digits, 8) { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// The finished segment that a file below a cluster's archive holds: `<16 digits>/<file>`.
pub fn stored_segment(path: &str, segment_size: u64) -> Option<Segment> {
    let (directory, file) = path.split_once('/')?;
    let placed = directory.len() == 16 && file.starts_with(directory);
    StoredName::parse(file).filter(|_| placed)?.finished(segment_size)
}

/// The name of a file that holds a segment: `<24 digits>-<sha1>`, or `<24 digits>.partial-<sha1>`,
/// with the suffix of a compression or without one.
///
/// Any other name is that of something else, also one that only begins like this: what a program
/// was writing when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredName<'a> {
    /// The segment's name.
    pub segment: &'a str,
    /// Whether it was archived before it was full, as the last one of a timeline is.
    pub is_partial: bool,
    /// The SHA-1 of the segment, before it was packed or encrypted.
    pub hash: &'a str,
}

impl StoredName<'_> {
    /// Reads a file's name. `None` for any other one.
    pub fn parse(file: &str) -> Option<StoredName<'_>> {
        let (name, rest) = file.split_once('-')?;
        let (hash, suffix) = rest.split_once('.').unwrap_or((rest, ""));
        let (segment, is_partial) = match name.strip_suffix(".partial") {
            Some(segment) => (segment, true),
            None => (name, false),
        };
        let known = ["", "gz", "bz2", "lz4", "zst"].contains(&suffix) && !rest.ends_with('.');
        let is_one = is_hexadecimal(segment, 24) && is_hexadecimal(hash, 40) && known;
        is_one.then_some(StoredName { segment, is_partial, hash })
    }

    /// The segment, if all of it is there.
    pub fn finished(&self, segment_size: u64) -> Option<Segment> {
        if self.is_partial { None } else { Segment::parse(self.segment, segment_size) }
    }
}

/// Whether a file's name is that of a backup's history: `<24 digits>.<8 digits>.backup`.
pub fn is_backup_history(file: &str) -> bool {
    let parts = file.strip_suffix(".backup").and_then(|it| it.split_once('.'));
    parts.is_some_and(|(segment, at)| is_hexadecimal(segment, 24) && is_hexadecimal(at, 8))
}

fn is_hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl<'de> DeserializeSeed<'de> for &mut Found {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry for each file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(path)) = map.next_key()? {
            self.add(&path, map.next_value::<Entry>()?.time);
        }
        Ok(())
    }
}

/// A key that is borrowed from the text wherever it has no escape in it.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use proptest::prelude::*;

    const MB16: u64 = 16 << 20;
    const HASH: &str = "1a3ec8e30e849c327b5e4ff431016903b4b2d29d";

    fn listing(files: impl IntoIterator<Item = (String, i64)>) -> String {
        let entry = |(file, time)| format!(r#","{file}":{{"type":"file","size":1,"time":{time}}}"#);
        let entries: String = files.into_iter().map(entry).collect();
        format!(r#"{{".":{{"type":"path"}}{entries}}}"#)
    }

    fn stored(id: &str, timeline: u32, number: u64) -> String {
        let name = Segment { timeline, number }.name(MB16);
        format!("{id}/{}/{name}-{HASH}.zst", &name[..16])
    }

    fn ranges(json: &str) -> Vec<ArchiveRange> {
        parse_listing(json, MB16).expect("a listing").ranges
    }

    #[test]
    fn finds_the_recorded_gaps_and_both_timelines() {
        for version in fixtures::RECORDED {
            let json = fixtures::text(version, "archive.json");
            let found = parse_listing(&json, MB16).expect("a listing");
            let told = format!("{version}: {found:#?}");
            let timelines: Vec<_> = found.ranges.iter().map(|range| range.timeline).collect();
            assert_eq!(timelines, [1, 1, 1, 2], "{told}");
            assert_eq!(found.ranges[0].first, "000000010000000000000001", "{told}");
            assert_eq!(found.ranges[3].from, found.ranges[2].to, "{told}");
            let between = found.ranges[..3].windows(2).flat_map(|two| {
                let numbers = two[0].to.0 / MB16..two[1].from.0 / MB16;
                numbers.map(|number| Segment { timeline: 1, number }.name(MB16))
            });
            let missing = fixtures::text(version, "archive-missing.txt");
            assert!(between.eq(missing.lines()), "{told}\n{missing}");
            for range in &found.ranges {
                assert_eq!(range.to.since(range.from), range.segments * MB16, "{told}");
                assert!(range.oldest_time.is_some() && range.oldest_time <= range.newest_time);
                assert!(json.contains(&range.first) && json.contains(&range.last), "{told}");
                assert!(json.contains(&format!("\"{}\":", range.archive_id)), "{told}");
            }
            let archive_id = found.ranges[3].archive_id.clone();
            assert_eq!(found.histories, [History { archive_id, timeline: 2 }], "{told}");
            for other in [".partial-", ".backup", "archive.info"] {
                assert!(json.contains(other), "{version}: {other} was not recorded");
            }
        }
    }

    #[test]
    fn passes_over_every_other_file() {
        let directory = "15-1/0000000100000000";
        let name = "000000010000000000000005";
        let others = [
            format!("{directory}/{name}.partial-{HASH}.zst"),
            format!("{directory}/{name}.00000028.backup"),
            format!("{directory}/{name}-{HASH}.zst.pgbackrest.tmp"),
            format!("{directory}/{name}-{HASH}.zst.a1b2c3d4.partial"),
            format!("{directory}/{name}-{HASH}."),
            format!("{directory}/{name}-{HASH}.tar"),
            format!("{directory}/{name}-1234.zst"),
            format!("{directory}/{name}"),
            format!("{directory}/0000000100000000000001FF-{HASH}.zst"),
            format!("15-1/0000000200000000/{name}-{HASH}.zst"),
            format!("15-1/{name}-{HASH}.zst"),
            "15-1/2.history".to_string(),
            "15-1/0000000é.history".to_string(),
            "00000002.history".to_string(),
            "archive.info".to_string(),
            "éééééééé/é".to_string(),
        ];
        let json = listing(others.into_iter().map(|file| (file, 1)));
        assert_eq!(parse_listing(&json, MB16).expect("a listing"), ArchiveListing::default());
    }

    #[test]
    fn knows_the_names_of_segments_and_of_backup_histories() {
        let segment = "000000010000000000000005";
        for (infix, suffix, is_partial) in [("", ".zst", false), (".partial", "", true)] {
            let file = format!("{segment}{infix}-{HASH}{suffix}");
            let expected = StoredName { segment, is_partial, hash: HASH };
            assert_eq!(StoredName::parse(&file), Some(expected));
            let finished = expected.finished(MB16);
            assert_eq!(finished, (!is_partial).then_some(Segment { timeline: 1, number: 5 }));
            assert_eq!(StoredName::parse(&format!("{file}.a1b2c3d4.partial")), None);
            assert!(!is_backup_history(&file));
        }
        let history = format!("{segment}.00000028.backup");
        assert!(is_backup_history(&history));
        for other in [format!("{history}.a1b2c3d4.partial"), format!("{segment}.28.backup")] {
            assert!(!is_backup_history(&other), "{other}");
        }
    }

    #[test]
    fn takes_every_suffix_and_no_suffix() {
        let plain = stored("15-1", 1, 5).replace(".zst", "");
        for suffix in ["", ".gz", ".bz2", ".lz4", ".zst"] {
            let found = ranges(&listing([(format!("{plain}{suffix}"), 7)]));
            assert_eq!(found.len(), 1, "{suffix}");
            assert_eq!(found[0].oldest_time.map(|time| time.timestamp()), Some(7));
        }
    }

    #[test]
    fn keeps_clusters_apart_crosses_halves_and_takes_a_segment_twice() {
        let found = ranges(&listing([
            (stored("15-2", 1, 257), 60),
            (stored("15-1", 2, 257), 50),
            (stored("15-1", 1, 256), 20),
            (stored("15-1", 1, 255), 10),
            (stored("15-1", 1, 255).replace("1a3e", "ffff"), 40),
        ]));
        let short: Vec<_> = found
            .iter()
            .map(|it| (it.archive_id.as_str(), it.first.as_str(), it.last.as_str(), it.segments))
            .collect();
        assert_eq!(
            short,
            [
                ("15-1", "0000000100000000000000FF", "000000010000000100000000", 2),
                ("15-1", "000000020000000100000001", "000000020000000100000001", 1),
                ("15-2", "000000010000000100000001", "000000010000000100000001", 1),
            ]
        );
        let times = [found[0].oldest_time, found[0].newest_time];
        assert_eq!(times.map(|time| time.map(|it| it.timestamp())), [Some(10), Some(40)]);
    }

    #[test]
    fn refuses_what_is_no_listing() {
        for json in ["", "[]", "{", "null", "{} x", r#"{"15-1/x":3}"#] {
            assert!(parse_listing(json, MB16).is_err(), "{json}");
        }
        assert_eq!(ranges("{}"), []);
    }

    /// As many as a busy server archives in weeks. The entries are in no order.
    #[test]
    fn reads_a_hundred_thousand_segments() {
        let numbers = (0..100_000u64).map(|n| n * 7919 % 100_000).filter(|n| n % 1000 != 0);
        let found = ranges(&listing(numbers.map(|number| (stored("18-1", 1, number), 1))));
        assert_eq!(found.len(), 100);
        assert!(found.iter().all(|range| range.segments == 999));
    }

    proptest! {
        /// Against the plain definition: a position is in a range if and only if its segment is
        /// in the archive.
        #[test]
        fn covers_exactly_what_is_there(
            there in proptest::collection::vec((1u32..3, 0u64..40), 0..60),
        ) {
            let files = there.iter().map(|&(timeline, number)| (stored("15-1", timeline, number), 1));
            let found = ranges(&listing(files));
            for timeline in 1..3 {
                for number in 0..41 {
                    let one = Segment { timeline, number };
                    let inside = found.iter().filter(|range| {
                        range.timeline == timeline
                            && range.from <= one.start(MB16)
                            && one.end(MB16) <= range.to
                    });
                    let expected = usize::from(there.contains(&(timeline, number)));
                    prop_assert_eq!(inside.count(), expected, "{:?}", one);
                }
            }
        }
    }
}
