//! Tells from when to when the cluster can be restored from its repository.
//!
//! What can be restored is computed by the plan of a restore, [`plan::windows`]: this module only
//! hands it what the last look found.

use chrono::{DateTime, Utc};

use crate::inventory::Inventory;
use crate::lsn::{Lsn, Segment};
use crate::pgbackrest::archive::ArchiveRange;
use crate::restore::Refusal;
use crate::restore::catalog::Catalog;
use crate::restore::plan;

/// A stretch of the past without a gap: every moment in it can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline that a restore follows.
    pub timeline: u32,
    /// When its first backup ended.
    pub from_time: DateTime<Utc>,
    /// Where its first backup ended.
    pub from: Lsn,
    /// When its last segment was archived.
    pub to_time: Option<DateTime<Utc>>,
    /// Where its last archived segment ends.
    pub to: Lsn,
    /// The backup that its beginning is restored from.
    pub first_backup: String,
    /// How many backups lie in it.
    pub backups: u64,
    /// Where the archive goes on after the gap that ends the window, if it ends in one.
    pub gap_until: Option<Lsn>,
}

/// The windows of the cluster, oldest first.
///
/// `archived` is what the archiver has reported since the look: it archives in order, so
/// everything up to there is in the archive.
pub fn windows(
    inventory: &Inventory,
    system_id: u64,
    archived: Option<(Segment, DateTime<Utc>)>,
) -> Vec<Window> {
    let (catalog, ranges) = catalog(inventory, system_id, archived);
    let archived_at = |timeline: u32, to: Lsn| {
        let holds = |it: &&ArchiveRange| it.timeline <= timeline && it.from < to && to <= it.to;
        ranges.iter().rfind(holds)?.newest_time
    };
    // The segment in which a new timeline begins is archived when it is full: until then no WAL lies
    // behind the end of the archive.
    let goes_on = |to: Lsn| {
        ranges.iter().any(|it| it.from >= to)
            || catalog.backups.iter().any(|it| it.stop_lsn.is_some_and(|stop| stop > to))
    };
    plan::windows(&catalog)
        .into_iter()
        .map(|window| Window {
            timeline: window.timeline,
            from_time: window.from,
            from: window.from_lsn,
            to_time: archived_at(window.timeline, window.to_lsn),
            to: window.to_lsn,
            first_backup: window.backup,
            backups: window.backups,
            gap_until: window.gap_until.filter(|_| goes_on(window.to_lsn)),
        })
        .collect()
}

/// Why no backup of the cluster can be restored from its repository, although some are there.
pub fn nothing_restorable(inventory: &Inventory, system_id: u64) -> Option<Refusal> {
    let (catalog, _) = catalog(inventory, system_id, None);
    if catalog.backups.is_empty() {
        return None;
    }
    plan::latest(&catalog).err()
}

/// What the last look found in the repository, as a restore sees it, and the runs of its archive.
fn catalog(
    inventory: &Inventory,
    system_id: u64,
    archived: Option<(Segment, DateTime<Utc>)>,
) -> (Catalog, Vec<ArchiveRange>) {
    let ranges = inventory.archive_of(system_id);
    // Each range is a number of whole segments.
    let size = ranges.iter().find_map(|it| it.to.since(it.from).checked_div(it.segments));
    let segment_size = size.filter(|size| *size > 0).unwrap_or(USUAL_SEGMENT);
    let ranges = extended(ranges, segment_size, archived);
    let mut catalog = Catalog {
        source: "the repository".to_string(),
        stanza: inventory.stanza.clone(),
        system_id,
        segment_size,
        // Only the first repository's archive is listed.
        backups: inventory.backups_of(system_id).filter(|it| it.repo == 1).cloned().collect(),
        is_ordered: true,
        ..Catalog::default()
    };
    for range in &ranges {
        let (first, end) = (range.from.0 / segment_size, range.to.0 / segment_size);
        catalog.wal.archive_run(range.timeline, first, end);
    }
    if let Ok(repository) = &inventory.repository {
        catalog.histories.clone_from(&repository.histories);
    }
    (catalog, ranges)
}

/// Bytes of a segment, where no archived one tells.
const USUAL_SEGMENT: u64 = 16 << 20;

/// The archive, with what the archiver has added since it was listed.
fn extended(
    mut ranges: Vec<ArchiveRange>,
    segment_size: u64,
    archived: Option<(Segment, DateTime<Utc>)>,
) -> Vec<ArchiveRange> {
    if let Some((segment, at)) = archived {
        let last = ranges.iter_mut().rfind(|range| range.timeline == segment.timeline);
        if let Some(last) = last.filter(|range| range.to < segment.end(segment_size)) {
            last.to = segment.end(segment_size);
            last.newest_time = Some(at);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Failure, Repository};
    use crate::pgbackrest::info::parse_info;
    use crate::pgbackrest::version::MINIMUM;
    use serde_json::json;

    const OURS: u64 = 1;
    const SIZE: u64 = 1 << 24;

    /// The position that lies so many segments from the beginning.
    fn segments(count: f64) -> Lsn {
        Lsn((count * SIZE as f64) as u64)
    }

    fn minute(number: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(number * 60, 0).expect("a time")
    }

    /// A repository with unbroken stretches of WAL, as timeline, first segment and the one after
    /// the last, and with backups, as label, timeline, start and stop counted in segments. What
    /// is at segment 5 was written at minute 5.
    fn repository(archive: &[(u32, u64, u64)], backups: &[(&str, u32, f64, f64)]) -> Inventory {
        let backups: Vec<_> = backups
            .iter()
            .map(|(label, timeline, start, stop)| {
                let segment = Segment { timeline: *timeline, number: *stop as u64 }.name(SIZE);
                json!({
                    "label": label, "type": "incr", "error": label.contains("damaged"),
                    "timestamp": { "start": (start * 60.0) as i64, "stop": (stop * 60.0) as i64 },
                    "lsn": {
                        "start": segments(*start).to_string(),
                        "stop": segments(*stop).to_string(),
                    },
                    "archive": { "start": segment, "stop": segment },
                    "database": { "id": 1 },
                })
            })
            .collect();
        let info = json!([{
            "name": "main", "status": { "code": 0, "message": "ok" },
            "db": [
                { "id": 1, "system-id": OURS, "version": "15" },
                { "id": 2, "system-id": 2, "version": "15" },
            ],
            "archive": [
                { "id": "15-1", "database": { "id": 1 } },
                { "id": "15-2", "database": { "id": 2 } },
            ],
            "backup": backups,
        }]);
        let range = |&(timeline, first, end): &(u32, u64, u64)| ArchiveRange {
            archive_id: "15-1".to_string(),
            timeline,
            first: Segment { timeline, number: first }.name(SIZE),
            last: Segment { timeline, number: end - 1 }.name(SIZE),
            from: Lsn(first * SIZE),
            to: Lsn(end * SIZE),
            segments: end - first,
            oldest_time: Some(minute(first as i64)),
            newest_time: Some(minute(end as i64)),
        };
        Inventory {
            collected_at: minute(0),
            listed_at: minute(0),
            stanza: "main".to_string(),
            pgbackrest: Ok(MINIMUM),
            repository: Ok(Repository::new(
                parse_info(&info.to_string(), "main").expect("info"),
                archive.iter().map(range).collect(),
            )),
            repository_disk: None,
            wal_disk: None,
            state_not_excluded: false,
            info_file: None,
        }
    }

    /// The windows as timeline, beginning and end in segments, first backup, number of backups,
    /// and where the archive goes on.
    fn found(inventory: &Inventory) -> Vec<(u32, f64, f64, String, u64, Option<f64>)> {
        let in_segments = |lsn: Lsn| lsn.0 as f64 / SIZE as f64;
        windows(inventory, OURS, None)
            .into_iter()
            .map(|it| {
                let (from, to) = (in_segments(it.from), in_segments(it.to));
                (it.timeline, from, to, it.first_backup, it.backups, it.gap_until.map(in_segments))
            })
            .collect()
    }

    fn window(
        timeline: u32,
        from: f64,
        to: f64,
        first_backup: &str,
        backups: u64,
        gap_until: Option<f64>,
    ) -> (u32, f64, f64, String, u64, Option<f64>) {
        (timeline, from, to, first_backup.to_string(), backups, gap_until)
    }

    #[test]
    fn a_window_goes_from_the_end_of_its_first_backup_to_the_end_of_the_archive() {
        let inventory = repository(
            &[(1, 2, 9)],
            &[("a", 1, 2.0, 3.5), ("damaged", 1, 5.0, 5.5), ("b", 1, 7.0, 7.5)],
        );
        assert_eq!(found(&inventory), [window(1, 3.5, 9.0, "a", 3, None)]);
        let first = &windows(&inventory, OURS, None)[0];
        assert_eq!((first.from_time, first.to_time), (minute(3) + half(), Some(minute(9))));
    }

    fn half() -> chrono::TimeDelta {
        chrono::TimeDelta::seconds(30)
    }

    #[test]
    fn a_gap_ends_a_window_and_the_next_begins_with_a_backup() {
        let archive = [(1, 2, 5), (1, 6, 8), (1, 9, 12)];
        for (backups, expected) in [
            (
                vec![("a", 1, 2.0, 2.5), ("b", 1, 9.0, 9.5), ("c", 1, 10.0, 10.5)],
                // What lies between two gaps without a backup is lost.
                vec![window(1, 2.5, 5.0, "a", 1, Some(6.0)), window(1, 9.5, 12.0, "b", 2, None)],
            ),
            (
                vec![("a", 1, 2.0, 2.5), ("b", 1, 6.0, 6.5)],
                vec![
                    window(1, 2.5, 5.0, "a", 1, Some(6.0)),
                    window(1, 6.5, 8.0, "b", 1, Some(9.0)),
                ],
            ),
            (vec![("a", 1, 10.0, 10.5)], vec![window(1, 10.5, 12.0, "a", 1, None)]),
            (vec![], vec![]),
        ] {
            assert_eq!(found(&repository(&archive, &backups)), expected, "{backups:?}");
        }
    }

    #[test]
    fn a_backup_counts_only_where_all_its_wal_is() {
        for (start, stop, counts) in [
            (2.0, 5.0, true),
            (2.5, 4.9, true),
            (1.9, 4.0, false),
            (4.0, 5.1, false),
            (1.0, 1.5, false),
            (6.0, 6.5, false),
        ] {
            let inventory = repository(&[(1, 2, 5)], &[("a", 1, start, stop)]);
            assert_eq!(found(&inventory).len(), usize::from(counts), "{start} to {stop}");
        }
        // On the timeline that it was taken on.
        assert_eq!(found(&repository(&[(1, 2, 5)], &[("a", 2, 3.0, 4.0)])), []);
    }

    /// The same with history files: the timelines, and where each was left, in segments.
    fn with_histories(mut inventory: Inventory, histories: &[(u32, &[(u32, f64)])]) -> Inventory {
        let parents = |left: &[(u32, f64)]| -> Vec<(u32, Lsn)> {
            left.iter().map(|&(timeline, at)| (timeline, segments(at))).collect()
        };
        if let Ok(repository) = &mut inventory.repository {
            repository.histories =
                histories.iter().map(|&(it, left)| (it, parents(left))).collect();
        }
        inventory
    }

    #[test]
    fn a_timeline_is_led_in_by_the_one_it_branched_off_from() {
        type Histories = &'static [(u32, &'static [(u32, f64)])];
        let (a, b) = (("a", 1, 2.0, 2.5), ("b", 2, 6.0, 6.5));
        let at_five: Histories = &[(2, &[(1, 5.0)])];
        let cases: Vec<(_, Vec<_>, Histories, Vec<_>)> = vec![
            // After a promotion: no backup on the new timeline yet, and then one.
            (vec![(1, 2, 5), (2, 5, 8)], vec![a], at_five, vec![window(2, 2.5, 8.0, "a", 1, None)]),
            (
                vec![(1, 2, 5), (2, 5, 8)],
                vec![a, b],
                at_five,
                vec![window(2, 2.5, 8.0, "a", 2, None)],
            ),
            // Without its history file, a timeline is followed only from its own backup.
            (
                vec![(1, 2, 5), (2, 5, 8)],
                vec![a, b],
                &[],
                vec![window(1, 2.5, 5.0, "a", 1, None), window(2, 6.5, 8.0, "b", 1, None)],
            ),
            // Right after a promotion: the segment in which the timeline begins is not full yet.
            (
                vec![(1, 2, 5)],
                vec![a],
                &[(2, &[(1, 5.5)])],
                vec![window(1, 2.5, 5.0, "a", 1, None)],
            ),
            // After a restore to an earlier point, twice.
            (
                vec![(1, 2, 9), (2, 6, 8), (3, 7, 10)],
                vec![a],
                &[(2, &[(1, 6.0)]), (3, &[(1, 6.0), (2, 7.0)])],
                vec![
                    window(1, 2.5, 9.0, "a", 1, None),
                    window(2, 2.5, 8.0, "a", 1, None),
                    window(3, 2.5, 10.0, "a", 1, None),
                ],
            ),
            // The segments around the branch are missing: the new timeline hangs in the air.
            (
                vec![(1, 2, 4), (2, 5, 8)],
                vec![a],
                at_five,
                vec![window(1, 2.5, 4.0, "a", 1, Some(5.0))],
            ),
            (
                vec![(1, 2, 4), (2, 5, 8)],
                vec![a, b],
                at_five,
                vec![window(1, 2.5, 4.0, "a", 1, Some(5.0)), window(2, 6.5, 8.0, "b", 1, None)],
            ),
            // It branched off before what the backup can be restored to.
            (
                vec![(1, 2, 9), (2, 2, 8)],
                vec![("a", 1, 3.0, 3.5)],
                &[(2, &[(1, 2.0)])],
                vec![window(1, 3.5, 9.0, "a", 1, None)],
            ),
            // Behind a gap in the new timeline the old one is of no help.
            (
                vec![(1, 2, 9), (2, 4, 5), (2, 6, 8)],
                vec![a],
                &[(2, &[(1, 4.0)])],
                vec![window(1, 2.5, 9.0, "a", 1, None), window(2, 2.5, 5.0, "a", 1, Some(6.0))],
            ),
        ];
        for (archive, backups, histories, expected) in cases {
            let inventory = with_histories(repository(&archive, &backups), histories);
            assert_eq!(found(&inventory), expected, "{archive:?}");
        }
    }

    #[test]
    fn what_was_archived_since_the_look_belongs_to_the_window() {
        let inventory = with_histories(
            repository(&[(1, 2, 4), (1, 5, 7), (2, 7, 8)], &[("a", 1, 5.0, 5.5)]),
            &[(2, &[(1, 7.0)])],
        );
        let ends = |timeline, number| {
            let archived = Some((Segment { timeline, number }, minute(99)));
            let windows = windows(&inventory, OURS, archived);
            windows.iter().map(|it| (it.to.0 / SIZE, it.to_time)).collect::<Vec<_>>()
        };
        let listed = (8, Some(minute(8)));
        assert_eq!(ends(1, 8), [(9, Some(minute(99))), listed]);
        assert_eq!(ends(2, 20), [(21, Some(minute(99)))]);
        assert_eq!(ends(1, 6), [listed], "known already");
        assert_eq!(ends(3, 20), [listed], "nothing of the timeline is known to be there");
    }

    #[test]
    fn that_no_backup_can_be_restored_is_told_with_its_reason() {
        let whole = repository(&[(1, 2, 9)], &[("a", 1, 3.0, 4.0)]);
        assert_eq!(nothing_restorable(&whole, OURS), None);
        assert_eq!(nothing_restorable(&repository(&[], &[]), OURS), None);
        let without_wal = repository(&[(1, 6, 9)], &[("a", 1, 3.0, 4.0)]);
        let refusal = nothing_restorable(&without_wal, OURS).expect("nothing");
        assert!(
            refusal.hint.contains("the WAL that was written while it was taken"),
            "{refusal:?}"
        );
        // WAL of a timeline that nobody can follow hides the backups of the one before.
        let without_history = repository(&[(1, 2, 5), (2, 5, 8)], &[("a", 1, 2.0, 2.5)]);
        let refusal = nothing_restorable(&without_history, OURS).expect("nothing");
        assert!(refusal.message.contains("the history file of timeline 2"), "{refusal:?}");
    }

    #[test]
    fn a_backup_whose_wal_has_come_since_the_look_counts() {
        let inventory = repository(&[(1, 2, 4)], &[("a", 1, 3.0, 4.5)]);
        assert_eq!(found(&inventory), []);
        let archived = Some((Segment { timeline: 1, number: 4 }, minute(5)));
        assert_eq!(windows(&inventory, OURS, archived).len(), 1);
    }

    #[test]
    fn another_clusters_wal_and_backups_are_no_window() {
        let mut inventory = repository(&[(1, 2, 9)], &[("a", 1, 3.0, 4.0)]);
        assert_eq!(windows(&inventory, 2, None), []);
        if let Ok(repository) = &mut inventory.repository {
            repository.archive[0].archive_id = "15-2".to_string();
        }
        assert_eq!(windows(&inventory, OURS, None), []);
        inventory.repository =
            Err(Failure { message: "no repository".to_string(), hint: String::new() });
        assert_eq!(windows(&inventory, OURS, None), []);
    }
}
