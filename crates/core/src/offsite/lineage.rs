//! Tells what the remote holds of this server's own life from what another life has written at the
//! same places of the same timeline.
//!
//! Two lives part where one of them was put back to an earlier state, or went on as a copy. From
//! there on the same positions hold other bytes. Records of the WAL are chained by their
//! predecessors: where one segment is the same, all before it are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::lsn::{Lsn, Segment};
use crate::offsite::Position;

/// The archived segments of one timeline: the SHA-1 in the names of each number's files.
pub type Hashes = BTreeMap<u64, BTreeSet<String>>;

/// What of the archive is not this server's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Foreign {
    /// All segments from this number on.
    pub from: Option<u64>,
    /// The newest segment that is this server's, where its hash was compared: other files of the
    /// same number are not.
    pub ours: Option<(u64, String)>,
}

impl Foreign {
    /// Whether a file of the archive, by the number and the hash of its segment, is another life's.
    pub fn is_foreign(&self, number: u64, hash: &str) -> bool {
        self.from.is_some_and(|from| from <= number)
            || self.ours.as_ref().is_some_and(|(ours, its)| *ours == number && its != hash)
    }

    /// Whether nothing is.
    pub fn is_empty(&self, there: &Hashes) -> bool {
        !there.iter().any(|(number, hashes)| hashes.iter().any(|it| self.is_foreign(*number, it)))
    }
}

/// Finds what of the archive on the remote is another life's.
///
/// `proven` is the number of a segment of which a tail object is the same here and there. `here`
/// tells the hash of a segment that this server has, finished or archived. What cannot be compared
/// is another's unless a later segment is the same.
pub fn foreign(
    there: &Hashes,
    proven: Option<u64>,
    mut here: impl FnMut(u64) -> Option<String>,
) -> Foreign {
    let mut foreign = Foreign::default();
    for (number, hashes) in there.iter().rev() {
        if proven.is_some_and(|proven| *number < proven) {
            break;
        }
        match here(*number).filter(|it| hashes.contains(it)) {
            Some(hash) => {
                foreign.ours = Some((*number, hash));
                break;
            }
            None => foreign.from = Some(*number),
        }
    }
    foreign
}

/// Where a backup ended, as `backup.info` or its description tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its label.
    pub label: String,
    /// The last segment that it needs.
    pub segment: Segment,
    /// The position.
    pub at: Lsn,
}

impl Ended {
    /// Whether it was taken in another life than that of a server which writes at `now`.
    pub fn is_foreign(&self, now: Position, foreign: &Foreign) -> bool {
        self.segment.timeline > now.timeline
            || (self.segment.timeline == now.timeline
                && (self.at > now.flushed
                    || foreign.from.is_some_and(|from| from <= self.segment.number)))
    }
}

/// The backups that a `backup.info` lists; `None` if it is encrypted or none.
pub fn backups_in(info: &[u8], segment_size: u64) -> Option<Vec<Ended>> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "backup-archive-stop")]
        segment: String,
        #[serde(rename = "backup-lsn-stop")]
        at: Lsn,
    }
    let text = std::str::from_utf8(info).ok().filter(|it| it.starts_with('['))?;
    let current = text.lines().skip_while(|line| line.trim() != "[backup:current]").skip(1);
    let backups = current.take_while(|line| !line.starts_with('[')).filter_map(|line| {
        let (label, entry) = line.split_once('=')?;
        let entry: Entry = serde_json::from_str(entry).ok()?;
        let segment = Segment::parse(&entry.segment, segment_size)?;
        Some(Ended { label: label.to_string(), segment, at: entry.at })
    });
    Some(backups.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 16 << 20;

    fn hashes(of: &[(u64, &str)]) -> Hashes {
        let mut found = Hashes::new();
        for (number, hash) in of {
            found.entry(*number).or_default().insert((*hash).to_string());
        }
        found
    }

    #[test]
    fn what_lies_behind_the_last_common_segment_is_anothers() {
        let there = hashes(&[(4, "a4"), (5, "a5"), (6, "a6"), (7, "a7")]);
        let judge = |proven, here: &[(u64, &str)]| {
            let here = hashes(here);
            let first = |number| here.get(&number).and_then(|it| it.first()).cloned();
            foreign(&there, proven, first).from
        };
        assert_eq!(judge(None, &[(5, "a5"), (6, "b6")]), Some(6));
        // The same, where the segment between was expired here.
        assert_eq!(judge(None, &[(4, "a4"), (6, "b6")]), Some(5));
        // A later segment is the same: all before it are.
        assert_eq!(judge(None, &[(7, "a7")]), None);
        // Of the segment that is written, a part is the same.
        assert_eq!(judge(Some(8), &[]), None);
        assert_eq!(judge(Some(6), &[]), Some(6));
        assert_eq!(judge(None, &[]), Some(4));
        assert!(foreign(&Hashes::new(), None, |_| None).is_empty(&there));
    }

    #[test]
    fn of_two_files_of_one_segment_one_is_anothers() {
        let there = hashes(&[(5, "a5"), (5, "b5"), (6, "a6")]);
        let found = foreign(&there, None, |number| (number == 5).then(|| "b5".to_string()));
        let judged = [(5, "a5"), (5, "b5"), (6, "a6"), (4, "a4")]
            .map(|(number, hash)| found.is_foreign(number, hash));
        assert_eq!(judged, [true, false, true, false]);
        assert!(!found.is_empty(&there));
    }

    proptest! {
        /// Two lives part at some segment. Whatever of its own the later one still has, nothing of
        /// the other life stays, and nothing that both have in common goes if the last such
        /// segment can be compared.
        #[test]
        fn nothing_of_the_other_life_stays(
            parted in 1_u64..20,
            there_to in 1_u64..30,
            here_to in 1_u64..30,
            kept in proptest::collection::vec(any::<bool>(), 30),
        ) {
            let common = |number: u64| number < parted;
            let other = |number: u64| if common(number) { "c" } else { "other" };
            let own = |number: u64| if common(number) { "c" } else { "own" };
            let there: Hashes = (0..there_to)
                .map(|number| (number, BTreeSet::from([format!("{}{number}", other(number))])))
                .collect();
            let has = |number: u64| number < here_to && kept[usize::try_from(number).unwrap()];
            let found = foreign(&there, None, |number| {
                has(number).then(|| format!("{}{number}", own(number)))
            });
            let last_common = parted.min(there_to) - 1;
            for number in 0..there_to {
                let is_foreign = found.is_foreign(number, &format!("{}{number}", other(number)));
                prop_assert!(is_foreign || common(number), "{number} stays");
                prop_assert!(!is_foreign || !has(last_common) || !common(number), "{number} goes");
            }
        }
    }

    #[test]
    fn a_backup_that_ended_in_another_life_is_told() {
        let info = b"[backup:current]\n\
            20261122-010203F={\"backup-archive-stop\":\"000000010000000000000005\",\
            \"backup-lsn-stop\":\"0/5000100\",\"x\":[1]}\n\
            20261122-020203F={\"backup-archive-stop\":\"000000010000000000000007\",\
            \"backup-lsn-stop\":\"0/7000100\"}\n\
            20261122-030203F={\"backup-archive-stop\":\"000000020000000000000004\",\
            \"backup-lsn-stop\":\"0/4000100\"}\nbroken={}\n\n[db]\ndb-id=1\n";
        let backups = backups_in(info, SIZE).expect("it is plain");
        assert_eq!(backups.len(), 3);
        let now = |flushed| Position { timeline: 1, flushed: Lsn(flushed) };
        let judge = |flushed, from| {
            let foreign = Foreign { from, ours: None };
            let judged: Vec<bool> =
                backups.iter().map(|it| it.is_foreign(now(flushed), &foreign)).collect();
            judged
        };
        assert_eq!(judge(0x900_0000, None), [false, false, true]);
        assert_eq!(judge(0x900_0000, Some(6)), [false, true, true]);
        assert_eq!(judge(0x600_0000, None), [false, true, true]);
        assert_eq!(backups_in(b"Salted__abc", SIZE), None);
    }
}
