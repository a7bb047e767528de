//! Each rule by itself, on histories in which every record is a quarter of a segment long.
//!
//! Quarter 5 of timeline 1 is the second one of segment 1, and commits transaction 1005 at minute
//! 5; that of timeline 2 commits transaction 2005, a hundred minutes later.

use super::super::super::drill::Phases;
use super::super::super::target::{Action, Point, Target, Timeline};
use super::super::{Plan, Recovery, latest, plan, windows};
use super::*;
use crate::offsite::Position;

/// Something that happens to a world.
type Change<'a> = &'a dyn Fn(&mut World);

/// A timeline: its number, the one that it comes from and where that was left, and its end.
type Line = (u32, Option<(u32, u64)>, u64);

/// A backup: its label, its timeline, where it began and ended.
type Made = (&'static str, u32, u64, u64);

pub(super) fn quarter(number: u64) -> Lsn {
    Lsn(number * (SIZE / 4))
}

pub(super) fn minute(timeline: u32, number: u64) -> DateTime<Utc> {
    let minutes = (i64::from(timeline) - 1) * 100 + number as i64;
    instant(minutes * 60_000_000)
}

/// A cluster with these timelines and backups. `archived` are segments of a timeline, from one up
/// to before another; nothing else of the WAL is there.
pub(super) fn world(lines: &[Line], archived: &[(u32, u64, u64)], backups: &[Made]) -> World {
    let mut world = World { lines: BTreeMap::new(), catalog: empty_catalog() };
    for &(timeline, parent, end) in lines {
        let (mut line, mut begins) = (Vec::new(), 4);
        if let Some((parent, left)) = parent {
            let before = world.lines[&parent].iter().filter(|it| it.end <= quarter(left));
            line.extend(before.cloned());
            begins = left;
            let histories = &mut world.catalog.histories;
            let mut history = histories.get(&parent).cloned().unwrap_or_default();
            history.push((parent, quarter(left)));
            histories.insert(timeline, history);
        }
        line.extend((begins..end).map(|number| Record {
            begin: quarter(number),
            end: quarter(number + 1),
            at: minute(timeline, number),
            kind: Kind::End { xid: u64::from(timeline) * 1000 + number, committed: true },
            timeline,
        }));
        world.lines.insert(timeline, line);
    }
    for &(timeline, from, to) in archived {
        for number in from..to {
            world.catalog.wal.archive(Segment { timeline, number });
        }
    }
    for &(label, timeline, start, stop) in backups {
        let time = (minute(timeline, start), minute(timeline, stop));
        let lsn = (quarter(start), quarter(stop));
        world.catalog.backups.push(backup(label, timeline, lsn, time, Vec::new()));
    }
    world
}

/// One timeline up to segment 10, and a backup of segments 1 and 5.
fn plain() -> World {
    world(&[(1, None, 40)], &[(1, 1, 10)], &[("A", 1, 4, 6), ("B", 1, 20, 22)])
}

pub(super) fn to(point: Point) -> Target {
    Target {
        point,
        timeline: Timeline::Latest,
        inclusive: true,
        action: Action::Promote,
        backup: None,
        up_to_gap: false,
    }
}

fn exclusive(point: Point) -> Target {
    Target { inclusive: false, ..to(point) }
}

fn on(timeline: u32, point: Point) -> Target {
    Target { timeline: Timeline::Number(timeline), ..to(point) }
}

fn from(label: &str, point: Point) -> Target {
    Target { backup: Some(label.to_string()), ..to(point) }
}

fn lsn(number: u64) -> Point {
    Point::Lsn(quarter(number))
}

fn at(timeline: u32, number: u64) -> Point {
    Point::Time(minute(timeline, number))
}

fn name(name: &str) -> Point {
    Point::Name(name.to_string())
}

fn planned(world: &World, target: &Target) -> Plan {
    let now = minute(100, 0);
    plan(&world.catalog, target, &mut world.wal(), now, None)
        .unwrap_or_else(|refusal| panic!("{target:?}: {refusal:?}"))
}

/// The refusal's message and hint.
fn refused(world: &World, target: &Target) -> String {
    match plan(&world.catalog, target, &mut world.wal(), minute(100, 0), None) {
        Ok(plan) => panic!("{target:?} was planned: {plan:#?}"),
        Err(refusal) => {
            assert!(refusal.hint.ends_with('.'), "{refusal:?}");
            format!("{} | {}", refusal.message, refusal.hint)
        }
    }
}

/// The backup, PostgreSQL's target, and in quarters where the WAL ends that it is given.
fn came_to(world: &World, target: &Target) -> (String, Recovery, u64) {
    let plan = planned(world, target);
    let end = plan.wal.last().expect("WAL").to;
    assert_eq!(end.0 % (SIZE / 4), 0);
    (plan.backup, plan.recovery, end.0 / (SIZE / 4))
}

fn expect(label: &str, recovery: Recovery, end: u64) -> (String, Recovery, u64) {
    (label.to_string(), recovery, end)
}

/// Refuses to tell anything.
struct Unread;

impl Wal for Unread {
    fn last_end(&mut self, _: &[Stretch]) -> Result<Option<TransactionEnd>, Refusal> {
        panic!("the last end was asked for")
    }

    fn last_record(&mut self, _: &[Stretch]) -> Result<Option<Lsn>, Refusal> {
        panic!("the last record was asked for")
    }

    fn find_xid(&mut self, _: &[Stretch], _: u32) -> Result<Option<TransactionEnd>, Refusal> {
        panic!("a transaction was asked for")
    }

    fn find_name(&mut self, _: &[Stretch], _: &str) -> Result<Vec<(Lsn, RestorePoint)>, Refusal> {
        panic!("a restore point was asked for")
    }
}

#[test]
fn a_position_is_reached_from_the_newest_backup_before_it() {
    let mut world = plain();
    world.tail(1, quarter(40), quarter(42));
    for (number, label, end) in [
        // Where it ended itself; and no more WAL than the next segment.
        (6, "A", 12),
        (7, "A", 12),
        (21, "A", 28),
        (22, "B", 28),
        (33, "B", 40),
        (39, "B", 42),
    ] {
        let lsn_target = Recovery::Lsn(quarter(number));
        assert_eq!(came_to(&world, &to(lsn(number))), expect(label, lsn_target.clone(), end));
        assert_eq!(came_to(&world, &exclusive(lsn(number))), expect(label, lsn_target, end));
    }
    // The last record begins at 39: PostgreSQL would look in vain for one at 40 or behind.
    for number in [40, 41, 42] {
        assert_eq!(came_to(&world, &to(lsn(number))), expect("B", Recovery::End, 42));
        assert_eq!(came_to(&world, &exclusive(lsn(number))), expect("B", Recovery::End, 42));
    }
    let asked = |number| {
        let mut wal = world.wal();
        let planned = plan(&world.catalog, &to(lsn(number)), &mut wal, minute(100, 0), None);
        assert!(planned.is_ok(), "{planned:?}");
        wal.asked
    };
    assert_eq!(asked(30), [("last record", quarter(28), quarter(36))]);
    assert_eq!(
        refused(&world, &to(lsn(43))),
        format!(
            "position {} is after the end of the WAL that is there, {} | The nearest before it is \
             --target-lsn {}.",
            quarter(43),
            quarter(42),
            quarter(42)
        )
    );
    assert_eq!(
        refused(&world, &to(lsn(5))),
        format!(
            "position {} is before the end of the oldest backup that can be used | That is A, \
             which ended at 2026-01-01 00:06:00 UTC ({}): the earliest that can be reached is \
             --target-lsn {}.",
            quarter(5),
            quarter(6),
            quarter(6)
        )
    );
}

#[test]
fn a_gap_is_named_with_what_is_on_both_sides() {
    let gap = || {
        let backups = [("A", 1, 4, 6), ("B", 1, 28, 30)];
        world(&[(1, None, 40)], &[(1, 1, 4), (1, 6, 10)], &backups)
    };
    let world = gap();
    let (before, after) = (quarter(16), quarter(24));
    let sides = "The first backup after it is B, which ended at 2026-01-01 00:30:00 UTC (0/780000)";
    for number in [17, 20, 29] {
        assert_eq!(
            refused(&world, &to(lsn(number))),
            format!(
                "position {} cannot be reached: WAL is missing from {before} to {after} | The \
                 nearest before it is --target-lsn {before}. {sides}.",
                quarter(number)
            )
        );
    }
    assert_eq!(came_to(&world, &to(lsn(16))), expect("A", Recovery::End, 16));
    assert_eq!(came_to(&world, &to(lsn(30))), expect("B", Recovery::Lsn(quarter(30)), 36));
    // The last transaction before the gap is from minute 15.
    assert_eq!(came_to(&world, &to(at(1, 14))), expect("A", Recovery::Time(minute(1, 14)), 16));
    assert_eq!(
        came_to(&world, &exclusive(at(1, 15))),
        expect("A", Recovery::Time(minute(1, 15)), 16)
    );
    for number in [15, 16, 20, 30] {
        assert_eq!(
            refused(&world, &to(at(1, number))),
            format!(
                "2026-01-01 00:{number}:00 UTC cannot be reached: WAL is missing from {before} to \
                 {after}, and the last transaction before that is from 2026-01-01 00:15:00 UTC | \
                 All that is before the gap is reached by --target-lsn {before}. {sides}."
            )
        );
    }
    // That something is complete does not help where something is missing.
    let mut world = gap();
    world.catalog.complete_until = Some(minute(1, 99));
    assert!(refused(&world, &to(at(1, 20))).contains("WAL is missing from"));
    // Also without a backup after it.
    world.catalog.backups.pop();
    assert!(refused(&world, &to(lsn(20))).ends_with("There is no backup after it."));
}

#[test]
fn a_time_is_reached_from_a_backup_that_ended_in_an_earlier_second() {
    let mut world = plain();
    let second = |offset: i64| Point::Time(minute(1, 22) + TimeDelta::milliseconds(offset));
    let backup = |offset| planned(&world, &to(second(offset))).backup;
    // It ended in this second; what was committed in the rest of it may be in the backup.
    assert_eq!(backup(0), "A");
    assert_eq!(backup(999), "A");
    assert_eq!(backup(1000), "B");
    let time = |number| Recovery::Time(minute(1, number));
    // PostgreSQL has to meet a later transaction. B began later than minute 7, so that its WAL is
    // enough for that.
    assert_eq!(came_to(&world, &to(at(1, 7))), expect("A", time(7), 22));
    assert_eq!(came_to(&world, &exclusive(at(1, 7))), expect("A", time(7), 22));
    assert_eq!(came_to(&world, &to(at(1, 20))), expect("A", time(20), 40));
    assert_eq!(came_to(&world, &to(at(1, 38))), expect("B", time(38), 40));
    assert_eq!(came_to(&world, &exclusive(at(1, 39))), expect("B", time(39), 40));
    // None is later than the last one: everything is replayed, and said so.
    let plan = planned(&world, &to(at(1, 39)));
    assert_eq!(plan.recovery, Recovery::End);
    assert_eq!(plan.last_end.map(|it| it.xid), Some(1039));
    assert_eq!(
        plan.warnings,
        ["nothing was committed between 2026-01-01 00:39:00 UTC and 2026-01-01 00:39:00 UTC: all \
          WAL that is there is replayed"]
    );
    assert_eq!(
        refused(&world, &to(at(1, 40))),
        "2026-01-01 00:40:00 UTC cannot be reached: the last transaction that is there is from \
         2026-01-01 00:39:00 UTC | Leave the time out for the newest state that is there, or give \
         the nearest time, --target-time '2026-01-01 00:39:00 UTC'."
    );
    // Unless it is known that there was none.
    world.catalog.complete_until = Some(minute(1, 41));
    assert_eq!(came_to(&world, &to(at(1, 40))), expect("B", Recovery::End, 40));
    assert_eq!(came_to(&world, &to(at(1, 41))), expect("B", Recovery::End, 40));
    assert!(refused(&world, &to(at(1, 42))).contains("cannot be reached: the last transaction"));
    assert_eq!(
        refused(&world, &to(at(1, 6))),
        format!(
            "2026-01-01 00:06:00 UTC is before the end of the oldest backup that can be used | \
             That is A, which ended at 2026-01-01 00:06:00 UTC ({}): the earliest that can be \
             reached is --target-time '2026-01-01 00:06:01 UTC'.",
            quarter(6)
        )
    );
}

#[test]
fn a_time_is_looked_for_where_it_can_be() {
    let mut world = plain();
    let asked = |world: &World, number| {
        let mut wal = world.wal();
        let planned = plan(&world.catalog, &to(at(1, number)), &mut wal, minute(100, 0), None);
        (planned.map(|it| it.recovery), wal.asked)
    };
    let time = |number| Ok(Recovery::Time(minute(1, number)));
    assert_eq!(asked(&world, 7), (time(7), vec![("last end", quarter(6), quarter(22))]));
    assert_eq!(asked(&world, 23), (time(23), vec![("last end", quarter(22), quarter(40))]));
    // An idle hour before the next backup: the transaction that is later comes behind it.
    for line in world.lines.values_mut() {
        for record in line.iter_mut().filter(|it| it.begin >= quarter(7) && it.end <= quarter(22)) {
            record.kind = Kind::Other;
        }
    }
    assert_eq!(
        asked(&world, 7),
        (
            time(7),
            vec![("last end", quarter(6), quarter(22)), ("last end", quarter(6), quarter(40))]
        )
    );
    // No transaction at all since the backup.
    let mut world = self::world(&[(1, None, 8)], &[(1, 1, 2)], &[("A", 1, 4, 8)]);
    assert_eq!(
        refused(&world, &to(at(1, 9))),
        "2026-01-01 00:09:00 UTC cannot be reached: no transaction is there since the end of \
         backup A, 2026-01-01 00:08:00 UTC | Leave the time out for the newest state that is \
         there."
    );
    world.catalog.complete_until = Some(minute(1, 9));
    let plan = planned(&world, &to(at(1, 9)));
    assert_eq!(plan.recovery, Recovery::End);
    assert!(plan.warnings[0].contains("between the end of the backup and"), "{plan:?}");
}

#[test]
fn what_was_on_its_way_when_the_server_vanished_is_no_gap() {
    let mut world = plain();
    world.tail(1, quarter(48), quarter(49));
    let shipped = |number, timeline| Some(Position { timeline, flushed: quarter(number) });
    let latest = to(Point::Latest);
    // It was said to be there, and is not; or nobody has said anything of this timeline.
    for promised in [None, shipped(41, 1), shipped(49, 1), shipped(4, 2)] {
        world.catalog.shipped = promised;
        assert!(refused(&world, &latest).starts_with("WAL is missing from"), "{promised:?}");
    }
    let ends_at_the_hole = |world: &World| {
        assert_eq!(came_to(world, &latest), expect("B", Recovery::End, 40));
        let warnings = planned(world, &latest).warnings;
        let words = format!("the WAL from {} to {} had not arrived", quarter(40), quarter(48));
        assert!(warnings.len() == 1 && warnings[0].starts_with(&words), "{warnings:?}");
    };
    for promised in [shipped(40, 1), shipped(30, 1)] {
        world.catalog.shipped = promised;
        ends_at_the_hole(&world);
    }
    // What is asked for by name is refused all the same.
    assert!(refused(&world, &to(lsn(48))).contains("WAL is missing from"));
    // On a remote, on which WAL arrives in no particular order, a session that had not promised
    // anything yet has lost nothing.
    world.catalog.is_ordered = false;
    for promised in [None, shipped(40, 1)] {
        world.catalog.shipped = promised;
        ends_at_the_hole(&world);
    }
    // A promise remains one.
    for promised in [shipped(41, 1), shipped(4, 2)] {
        world.catalog.shipped = promised;
        assert!(refused(&world, &latest).starts_with("WAL is missing from"), "{promised:?}");
    }
    // That a backup was taken proves that the WAL before its end was there.
    world.catalog.shipped = None;
    let (lsn, time) = ((quarter(48), quarter(49)), (minute(1, 48), minute(1, 49)));
    world.catalog.backups.push(backup("C", 1, lsn, time, Vec::new()));
    world.catalog.unusable.insert("C".to_string(), "it is damaged".to_string());
    assert!(refused(&world, &latest).starts_with("WAL is missing from"));
}

#[test]
fn what_was_promised_on_an_earlier_timeline_counts_on_the_next() {
    let lines = [(1, None, 26), (2, Some((1, 26)), 60)];
    let mut world = world(&lines, &[(1, 1, 6), (2, 6, 12)], &[("A", 1, 4, 6), ("B", 2, 28, 30)]);
    world.catalog.is_ordered = false;
    world.tail(2, quarter(52), quarter(53));
    let shipped = |number, timeline| Some(Position { timeline, flushed: quarter(number) });
    for promised in [None, shipped(26, 1), shipped(99, 1), shipped(48, 2)] {
        world.catalog.shipped = promised;
        assert_eq!(came_to(&world, &to(Point::Latest)), expect("B", Recovery::End, 48));
    }
    world.catalog.shipped = shipped(49, 2);
    assert!(refused(&world, &to(Point::Latest)).starts_with("WAL is missing from"));
    // What a timeline began with was replayed from somewhere.
    world.catalog.shipped = None;
    world.catalog.backups.pop();
    world.catalog.wal.forget_archived(Segment { timeline: 1, number: 5 });
    assert!(refused(&world, &to(Point::Latest)).starts_with("WAL is missing from"));
}

#[test]
fn a_backup_of_a_timeline_needs_no_history_of_its_parents() {
    let mut world = world(
        &[(1, None, 26), (2, Some((1, 26)), 48)],
        &[(1, 1, 6), (2, 6, 12)],
        &[("A", 1, 4, 6), ("B", 2, 28, 30)],
    );
    world.catalog.histories.clear();
    let plan = planned(&world, &to(Point::Latest));
    assert_eq!((plan.backup.as_str(), plan.timeline), ("B", 2));
    assert_eq!(plan.wal.last().map(|it| it.to), Some(quarter(48)));
    // PostgreSQL follows a number only with a history file.
    assert_eq!(plan.settings(), [("recovery_target_timeline", "'current'".to_string())]);
    // What is before that backup is not on a way that is known.
    assert!(refused(&world, &to(lsn(20))).contains("is before the end of the oldest backup"));
    assert_eq!(came_to(&world, &on(1, lsn(20))), expect("A", Recovery::Lsn(quarter(20)), 24));
    world.catalog.backups.pop();
    assert!(refused(&world, &to(Point::Latest)).contains("00000002.history, is missing"));
}

#[test]
fn the_newest_state_is_the_end_of_its_plan() {
    let latest_of = |world: &World| latest(&world.catalog).map(|it| (it.backup, it.end));
    let at = |timeline, number| Position { timeline, flushed: quarter(number) };
    let mut world = plain();
    assert_eq!(latest_of(&world), Ok(("B".to_string(), at(1, 40))));
    // A gap ends it, whether it is a loss or not.
    world.tail(1, quarter(48), quarter(49));
    assert_eq!(latest_of(&world), Ok(("B".to_string(), at(1, 40))));
    // A backup whose own WAL is not all there is none.
    world.catalog.wal.forget_archived(Segment { timeline: 1, number: 5 });
    assert_eq!(latest_of(&world), Ok(("A".to_string(), at(1, 20))));
    world.catalog.wal.forget_archived(Segment { timeline: 1, number: 1 });
    let refusal = latest_of(&world).expect_err("nothing is whole");
    assert!(refusal.hint.contains("the WAL that was written while it was taken"), "{refusal:?}");
    // On the way to a later timeline that is not reached, it is on the earlier one.
    let world =
        self::world(&[(1, None, 28), (2, Some((1, 26)), 48)], &[(1, 1, 6)], &[("A", 1, 4, 6)]);
    assert_eq!(latest_of(&world), Ok(("A".to_string(), at(1, 24))));
    assert!(latest(&empty_catalog()).is_err());
}

#[test]
fn the_latest_is_all_that_is_there() {
    let mut world = plain();
    world.tail(1, quarter(40), quarter(41));
    assert_eq!(came_to(&world, &to(Point::Latest)), expect("B", Recovery::End, 41));
    assert_eq!(planned(&world, &to(Point::Latest)).warnings, Vec::<String>::new());
    // WAL further on that cannot be reached: archived, in the tail, or only told of by a backup.
    let archived =
        |world: &mut World| world.catalog.wal.archive(Segment { timeline: 1, number: 12 });
    let shipped = |world: &mut World| world.tail(1, quarter(48), quarter(49));
    let backed_up = |world: &mut World| {
        let (lsn, time) = ((quarter(48), quarter(50)), (minute(1, 48), minute(1, 50)));
        world.catalog.backups.push(backup("C", 1, lsn, time, Vec::new()));
    };
    let ways: [(Change, usize); 3] = [(&archived, 0), (&shipped, 0), (&backed_up, 1)];
    for (more, passed_over) in ways {
        let mut world = world.clone();
        more(&mut world);
        let refusal = refused(&world, &to(Point::Latest));
        assert!(
            refusal.starts_with(&format!(
                "WAL is missing from {} to {}, and there is more behind that | Recovery can end \
                 where it is missing: --up-to-gap says that this is meant, or in a container \
                 RECOVERY_UP_TO_GAP=true. There is no backup \
                 after it.",
                quarter(41),
                quarter(48)
            )),
            "{refusal}"
        );
        assert_eq!(refusal.contains("backup C, which ended at"), passed_over == 1);
        let target = Target { up_to_gap: true, ..to(Point::Latest) };
        assert_eq!(came_to(&world, &target), expect("B", Recovery::End, 41));
        let warnings = planned(&world, &target).warnings;
        assert_eq!(warnings.len(), 1 + passed_over, "{warnings:?}");
        assert!(warnings.last().is_some_and(|it| it.contains("is not restored")), "{warnings:?}");
    }
    // However far away.
    world.catalog.wal.archive(Segment { timeline: 1, number: 1 << 40 });
    let refusal = refused(&world, &to(Point::Latest));
    let behind = format!("from {} to {}, and there is", quarter(41), quarter(4 << 40));
    assert!(refusal.contains(&behind), "{refusal}");
    world.catalog.wal.archive(Segment { timeline: 9, number: 1 << 40 });
    let refusal = refused(&world, &on(8, Point::Latest));
    assert!(refusal.ends_with("These are there: 1, 9."), "{refusal}");
    // Behind the gap, from a backup there, nothing is missing.
    let world = self::world(
        &[(1, None, 40)],
        &[(1, 1, 4), (1, 6, 10)],
        &[("A", 1, 4, 6), ("B", 1, 28, 30)],
    );
    assert_eq!(came_to(&world, &to(Point::Latest)), expect("B", Recovery::End, 40));
    let refusal = refused(&world, &from("A", Point::Latest));
    assert!(refusal.contains("The first backup after it is B, which ended at"), "{refusal}");
}

#[test]
fn the_immediate_end_is_that_of_the_newest_backup() {
    let world = plain();
    assert_eq!(came_to(&world, &to(Point::Immediate)), expect("B", Recovery::Immediate, 28));
    assert_eq!(came_to(&world, &from("A", Point::Immediate)), expect("A", Recovery::Immediate, 12));
    // Whatever is missing behind it.
    let world = self::world(&[(1, None, 40)], &[(1, 1, 2), (1, 5, 10)], &[("A", 1, 4, 6)]);
    assert_eq!(came_to(&world, &to(Point::Immediate)), expect("A", Recovery::Immediate, 8));
}

#[test]
fn a_transaction_is_looked_for_behind_the_backup_that_knows_it_not() {
    let mut world = plain();
    let asked = |world: &World, xid| {
        let mut wal = world.wal();
        let planned = plan(&world.catalog, &to(Point::Xid(xid)), &mut wal, minute(100, 0), None);
        let asked = wal.asked.into_iter().filter(|it| it.0 == "xid").map(|it| (it.1, it.2));
        (planned.map(|it| (it.backup, it.recovery)), asked.collect::<Vec<_>>())
    };
    let found = |label: &str, xid| Ok((label.to_string(), Recovery::Xid(xid)));
    // Nothing was recorded: from the oldest backup on.
    assert_eq!(asked(&world, 1030), (found("B", 1030), vec![(quarter(6), quarter(40))]));
    assert_eq!(asked(&world, 1010), (found("A", 1010), vec![(quarter(6), quarter(40))]));
    world.catalog.next_xids = [("A", 1006), ("B", 1022)].map(|(a, b)| (a.to_string(), b)).into();
    assert_eq!(asked(&world, 1030), (found("B", 1030), vec![(quarter(22), quarter(40))]));
    assert_eq!(asked(&world, 1022), (found("B", 1022), vec![(quarter(22), quarter(40))]));
    assert_eq!(asked(&world, 1010), (found("A", 1010), vec![(quarter(6), quarter(40))]));
    // It had got its id before the oldest backup ended, and went on for long.
    for line in world.lines.values_mut() {
        line[20].kind = Kind::End { xid: 1003, committed: true };
    }
    assert_eq!(asked(&world, 1003), (found("B", 1003), vec![(quarter(6), quarter(40))]));
    // The end, and no more WAL than the next segment.
    assert_eq!(came_to(&world, &to(Point::Xid(1010))), expect("A", Recovery::Xid(1010), 16));
    assert_eq!(planned(&world, &to(Point::Xid(1010))).last_end.map(|it| it.xid), Some(1010));
    assert_eq!(planned(&world, &exclusive(Point::Xid(1010))).last_end, None);
    assert_eq!(
        refused(&world, &to(Point::Xid(1002))),
        format!(
            "transaction 1002 does not end in the WAL that is there: it ended before backup A \
             had, or never | The WAL reaches from {} to {}. Give a time or a position in it.",
            quarter(6),
            quarter(40)
        )
    );
    assert!(refused(&world, &to(Point::Xid(1500))).contains("it ended elsewhere, or never"));
    // Before the first backup had ended it cannot be reached.
    assert!(refused(&world, &to(Point::Xid(1005))).contains("ended before backup A had"));
    // One that was rolled back can be stopped at, too.
    for line in world.lines.values_mut() {
        line[6].kind = Kind::End { xid: 1010, committed: false };
    }
    assert_eq!(
        planned(&world, &to(Point::Xid(1010))).warnings,
        ["transaction 1010 did not commit: it was rolled back at 2026-01-01 00:10:00 UTC"]
    );
}

#[test]
fn transactions_are_compared_as_postgres_does() {
    let mut world = plain();
    // Ids begin anew between the backups: record n of the list has the id n - 10 of epoch 5.
    for line in world.lines.values_mut() {
        for (number, record) in line.iter_mut().enumerate() {
            let xid = (5_u64 << 32) + number as u64 - 10;
            record.kind = Kind::End { xid, committed: true };
        }
    }
    let next = |number: u64| (5_u64 << 32) + number - 10;
    world.catalog.next_xids =
        [("A", next(2)), ("B", next(18))].map(|(a, b)| (a.to_string(), b)).into();
    for (asked, label) in [
        // 32 bits; and with the epoch.
        (u64::from(u32::MAX), "A"),
        (5, "A"),
        (9, "B"),
        (next(9), "A"),
        (next(19), "B"),
    ] {
        assert_eq!(planned(&world, &to(Point::Xid(asked))).backup, label, "{asked}");
    }
    let mut wal = world.wal();
    assert!(plan(&world.catalog, &to(Point::Xid(9)), &mut wal, minute(100, 0), None).is_ok());
    assert_eq!(wal.asked[0], ("xid", quarter(22), quarter(40)));
    // The same 32 bits in another epoch are another transaction.
    for asked in [(6_u64 << 32) + 9, (4_u64 << 32) + 9] {
        assert!(refused(&world, &to(Point::Xid(asked))).contains("does not end in the WAL"));
    }
    world.catalog.next_xids.clear();
    let plan = planned(&world, &to(Point::Xid((6_u64 << 32) + 9)));
    assert!(plan.warnings[0].contains("without their epoch"), "{plan:?}");
}

#[test]
fn a_transaction_behind_a_gap_is_reached_from_a_backup_there() {
    let backups = [("A", 1, 4, 6), ("B", 1, 28, 30)];
    let world = world(&[(1, None, 40)], &[(1, 1, 4), (1, 6, 10)], &backups);
    assert_eq!(planned(&world, &to(Point::Xid(1035))).backup, "B");
    assert_eq!(planned(&world, &to(Point::Xid(1012))).backup, "A");
    let refusal = refused(&world, &to(Point::Xid(1020)));
    let (a, b) = ((quarter(6), quarter(16)), (quarter(30), quarter(40)));
    let reach = format!("The WAL reaches from {} to {}, and from {} to {}.", a.0, a.1, b.0, b.1);
    assert!(refusal.contains(&reach), "{refusal}");
}

fn point(name: &str, timeline: u32, number: u64) -> RestorePoint {
    RestorePoint {
        name: name.to_string(),
        timeline,
        lsn: quarter(number + 1),
        at: minute(timeline, number),
    }
}

/// Makes a record the restore point of a name.
fn make_point(world: &mut World, name: &str, number: u64) {
    for record in world.lines.values_mut().flatten().filter(|it| it.begin == quarter(number)) {
        record.kind = Kind::Name(name.to_string());
    }
}

#[test]
fn a_restore_point_is_found_where_it_was_recorded() {
    let mut world = plain();
    world.catalog.restore_points = vec![point("x", 1, 10), point("y", 1, 30)];
    make_point(&mut world, "x", 10);
    make_point(&mut world, "y", 30);
    let at = |number| Recovery::Lsn(quarter(number));
    assert_eq!(came_to(&world, &to(name("x"))), expect("A", at(10), 16));
    assert_eq!(came_to(&world, &to(name("y"))), expect("B", at(30), 36));
    // Only where it was made: whether it is there.
    let mut wal = world.wal();
    let planned = plan(&world.catalog, &to(name("y")), &mut wal, minute(100, 0), None);
    assert!(planned.is_ok(), "{planned:?}");
    assert_eq!(wal.asked, [("name", quarter(28), quarter(31))]);
    // Otherwise all the WAL is searched.
    make_point(&mut world, "z", 24);
    assert_eq!(came_to(&world, &to(name("z"))), expect("B", at(24), 32));
    // A crash took it, and something else was written there.
    make_point(&mut world, "other", 30);
    assert_eq!(
        refused(&world, &to(name("y"))),
        format!(
            "restore point \"y\" was recorded at 2026-01-01 00:30:00 UTC ({}), and the WAL there \
             does not hold it: the server lost it in a crash | Give a time or a position instead \
             of the name.",
            quarter(31)
        )
    );
    assert_eq!(
        refused(&world, &to(name("w"))),
        "there is no restore point \"w\" | The newest that were recorded: \"y\" (2026-01-01 \
         00:30:00 UTC), \"x\" (2026-01-01 00:10:00 UTC)."
    );
    world.catalog.restore_points =
        (6..40).map(|number| point(&format!("n{number}"), 1, number)).collect();
    let refusal = refused(&world, &to(name("w")));
    assert_eq!(refusal.matches("UTC").count(), 10, "{refusal}");
    assert!(refusal.contains("\"n39\"") && !refusal.contains("\"n29\""), "{refusal}");
    // Recorded, and out of reach.
    world.catalog.restore_points = vec![point("x", 1, 4), point("y", 1, 45)];
    assert!(refused(&world, &to(name("x"))).contains("before the end of the oldest backup"));
    assert!(refused(&world, &to(name("y"))).contains("after the end of the WAL"));
    world.catalog.restore_points.clear();
    assert!(
        refused(&world, &to(name("w"))).ends_with("None was recorded. Give a time or a position.")
    );
}

#[test]
fn of_two_restore_points_the_newest_is_meant() {
    for recorded in [true, false] {
        let mut world = plain();
        for number in [10, 30] {
            make_point(&mut world, "x", number);
            if recorded {
                world.catalog.restore_points.push(point("x", 1, number));
            }
        }
        // B began between them.
        let newest = |label| expect(label, Recovery::Lsn(quarter(30)), 36);
        assert_eq!(came_to(&world, &to(name("x"))), newest("B"), "{recorded}");
        assert_eq!(planned(&world, &to(name("x"))).warnings, Vec::<String>::new());
        // From A, PostgreSQL meets the older one first.
        let both = format!(
            "restore point \"x\" was made at 2026-01-01 00:30:00 UTC ({}), and before that at \
             2026-01-01 00:10:00 UTC ({}): the newer one is meant; --target-lsn {} --target-exclusive is \
             the older one",
            quarter(31),
            quarter(11),
            quarter(11)
        );
        let from_a = from("A", name("x"));
        assert_eq!(came_to(&world, &from_a), newest("A"), "{recorded}");
        assert_eq!(planned(&world, &from_a).warnings, [&*both]);
        world.catalog.backups.pop();
        assert_eq!(came_to(&world, &to(name("x"))), newest("A"), "{recorded}");
    }
}

#[test]
fn an_unrecorded_restore_point_of_the_same_name_is_not_the_one() {
    let mut world = plain();
    for number in [24, 30, 36] {
        make_point(&mut world, "x", number);
    }
    world.catalog.restore_points = vec![point("x", 1, 30)];
    let expected = expect("B", Recovery::Lsn(quarter(30)), 36);
    assert_eq!(came_to(&world, &to(name("x"))), expected);
}

/// Timeline 2 left timeline 1 at quarter 26, in the middle of segment 6; both went on.
fn branched() -> World {
    world(
        &[(1, None, 40), (2, Some((1, 26)), 48)],
        &[(1, 1, 10), (2, 6, 12)],
        &[("A", 1, 4, 6), ("B", 1, 20, 22), ("C", 1, 30, 32), ("D", 2, 40, 42)],
    )
}

#[test]
fn timelines_beside_the_way_are_named() {
    let mut world = world(
        &[(1, None, 40), (2, Some((1, 26)), 48), (3, Some((1, 29)), 48)],
        &[(1, 1, 10), (2, 6, 12), (3, 7, 12)],
        &[("A", 1, 4, 6), ("B", 1, 20, 22)],
    );
    let warnings = [
        "timeline 1 goes on behind 0/740000, where timeline 3 has left it: nothing of that is \
         restored; --target-timeline 1 follows it",
        "timeline 2 begins at 0/680000 and does not lead to timeline 3: nothing of that is restored; \
         --target-timeline 2 follows it",
    ];
    let plan = planned(&world, &to(lsn(35)));
    assert_eq!((plan.timeline, &*plan.warnings), (3, &warnings.map(str::to_string)[..]));
    assert_eq!(planned(&world, &to(lsn(28))).warnings, [warnings[1]]);
    assert_eq!(planned(&world, &to(lsn(25))).warnings, Vec::<String>::new());
    // A restore point of the same name there, too.
    make_point(&mut world, "x", 24);
    world.catalog.restore_points = vec![point("x", 1, 24), point("x", 2, 35)];
    let [words] = &*planned(&world, &to(name("x"))).warnings else { panic!("one") };
    assert!(words.contains("on timeline 2 at") && words.contains("--target-timeline 2"), "{words}");
}

#[test]
fn timelines_are_followed() {
    let world = branched();
    assert_eq!(came_to(&world, &to(Point::Latest)), expect("D", Recovery::End, 48));
    assert_eq!(came_to(&world, &on(1, Point::Latest)), expect("C", Recovery::End, 40));
    // C was taken behind the branch.
    let plan = planned(&world, &to(lsn(35)));
    assert_eq!((plan.backup.as_str(), plan.timeline), ("B", 2));
    // The segment of the branch is read from the new timeline, from its beginning.
    let stretch = |timeline, from, to| Stretch { timeline, from: quarter(from), to: quarter(to) };
    assert_eq!(plan.wal, [stretch(1, 20, 24), stretch(2, 24, 40)]);
    assert_eq!(plan.wal_bytes, quarter(20).0);
    assert_eq!(plan.histories, [2]);
    assert_eq!(planned(&world, &to(lsn(25))).wal, [stretch(1, 20, 24), stretch(2, 24, 32)]);
    assert_eq!(planned(&world, &to(lsn(23))).wal, [stretch(1, 20, 24), stretch(2, 24, 28)]);
    assert_eq!(planned(&world, &on(1, lsn(35))).wal, [stretch(1, 30, 40)]);
    // A position that both have may mean the other one; one before the branch does not.
    let warning = "timeline 1 goes on behind 0/680000, where timeline 2 has left it: nothing of \
                   that is restored; --target-timeline 1 follows it";
    assert_eq!(plan.warnings, [warning]);
    assert_eq!(planned(&world, &to(lsn(26))).warnings, Vec::<String>::new());
    assert_eq!(planned(&world, &to(lsn(42))).warnings, Vec::<String>::new());
    // A time between the two, likewise.
    let plan = planned(&world, &to(at(1, 35)));
    assert_eq!((plan.backup.as_str(), plan.recovery), ("B", Recovery::Time(minute(1, 35))));
    assert_eq!(plan.warnings, [warning]);
    assert_eq!(planned(&world, &to(at(2, 45))).warnings, Vec::<String>::new());
    assert_eq!(planned(&world, &on(1, at(1, 35))).warnings, Vec::<String>::new());
    // Current is where the newest backup is that fits.
    let current = |point| Target { timeline: Timeline::Current, ..to(point) };
    for (point, label, timeline) in [
        (Point::Latest, "D", 2),
        (lsn(45), "D", 2),
        (lsn(35), "C", 1),
        (at(1, 35), "C", 1),
        (at(2, 41), "C", 1),
        (at(2, 43), "D", 2),
    ] {
        // Long after the last transaction there.
        let mut world = world.clone();
        world.catalog.complete_until = Some(minute(3, 0));
        let plan = planned(&world, &current(point));
        assert_eq!((plan.backup.as_str(), plan.timeline), (label, timeline));
    }
    let target = Target { backup: Some("A".to_string()), ..current(Point::Latest) };
    assert_eq!(came_to(&world, &target), expect("A", Recovery::End, 40));
    assert!(refused(&world, &current(lsn(5))).contains("before the end of the oldest backup"));
}

#[test]
fn what_is_missing_of_a_timeline_is_named() {
    let mut world = branched();
    assert_eq!(
        refused(&world, &on(7, Point::Latest)),
        "timeline 7 is not in s3:bucket/main | These are there: 1, 2."
    );
    // Timeline 3 is known only by its WAL: of the tail, and archived.
    let tail = |world: &mut World| world.tail(3, quarter(44), quarter(45));
    let archive =
        |world: &mut World| world.catalog.wal.archive(Segment { timeline: 3, number: 11 });
    let ways: [Change; 2] = [&tail, &archive];
    for way in ways {
        let mut world = world.clone();
        way(&mut world);
        let refusal = refused(&world, &to(Point::Latest));
        assert_eq!(
            refusal,
            "the history file of timeline 3, 00000003.history, is missing in s3:bucket/main: \
             PostgreSQL cannot follow it | Put the file back into the archive if another place \
             has it, or follow another timeline with --target-timeline: 1, 2."
        );
        assert_eq!(planned(&world, &on(2, Point::Latest)).backup, "D");
    }
    // A timeline without a backup on its way.
    world.catalog.backups.retain(|it| it.label == "C");
    let refusal = refused(&world, &to(Point::Latest));
    assert!(refusal.contains("no backup in s3:bucket/main leads to timeline 2"), "{refusal}");
    assert!(refusal.contains("--target-timeline: 1."), "{refusal}");
    world.catalog.backups.clear();
    assert!(refused(&world, &to(Point::Latest)).contains("there is no backup of stanza \"main\""));
}

#[test]
fn a_timeline_whose_own_wal_is_missing_ends_in_a_gap() {
    // Promoted, and nothing of it archived yet.
    let world = world(
        &[(1, None, 28), (2, Some((1, 26)), 48)],
        &[(1, 1, 7)],
        &[("A", 1, 4, 6), ("B", 1, 20, 22)],
    );
    let refusal = refused(&world, &to(Point::Latest));
    assert!(refusal.contains("--up-to-gap"), "{refusal}");
    let all = format!("--target-timeline 1 --target-lsn {}.", quarter(26));
    assert!(refusal.contains(&all), "{refusal}");
    let target = Target { up_to_gap: true, ..to(Point::Latest) };
    assert_eq!(came_to(&world, &target), expect("B", Recovery::End, 24));
    assert_eq!(came_to(&world, &on(1, lsn(26))), expect("B", Recovery::Lsn(quarter(26)), 28));
}

#[test]
fn that_a_timeline_was_left_further_on_proves_a_gap() {
    let lines = [(1, None, 26), (2, Some((1, 26)), 48)];
    let mut world = world(&lines, &[(1, 1, 6), (2, 6, 12)], &[("A", 1, 4, 6)]);
    assert_eq!(came_to(&world, &to(Point::Latest)), expect("A", Recovery::End, 48));
    // The last segment of timeline 1 is only there as timeline 2 has taken it over.
    let refusal = refused(&world, &on(1, Point::Latest));
    assert!(refusal.starts_with("WAL is missing from 0/600000 to 0/680000"), "{refusal}");
    assert!(refused(&world, &on(1, at(1, 24))).contains("WAL is missing from 0/600000"));
    world.tail(1, quarter(24), quarter(26));
    assert_eq!(came_to(&world, &on(1, Point::Latest)), expect("A", Recovery::End, 26));
    // It was not used after that, so that nothing is passed over.
    let plan = planned(&world, &to(at(1, 25)));
    assert_eq!((plan.recovery, plan.warnings), (Recovery::Time(minute(1, 25)), Vec::new()));
}

#[test]
fn a_timeline_that_was_left_before_it_began_is_not_on_the_way() {
    // Restored to quarter 18 while timeline 2, which begins at 26, was followed: the history of
    // timeline 3 has both.
    let mut world = branched();
    let mut line: Vec<Record> = world.lines[&1].clone();
    line.retain(|it| it.end <= quarter(18));
    line.extend((18..52).map(|number| Record {
        begin: quarter(number),
        end: quarter(number + 1),
        at: minute(3, number),
        kind: Kind::End { xid: 3000 + number, committed: true },
        timeline: 3,
    }));
    world.lines.insert(3, line);
    world.catalog.histories.insert(3, vec![(1, quarter(26)), (2, quarter(18))]);
    for number in 4..13 {
        world.catalog.wal.archive(Segment { timeline: 3, number });
    }
    let plan = planned(&world, &to(Point::Latest));
    let stretch = |timeline, from, to| Stretch { timeline, from: quarter(from), to: quarter(to) };
    assert_eq!(plan.backup, "A");
    assert_eq!(plan.wal, [stretch(1, 4, 16), stretch(3, 16, 52)]);
    let refusal = refused(&world, &from("B", Point::Latest));
    assert!(refusal.contains("backup B on timeline 1 does not lead to timeline 3"), "{refusal}");
    let refusal = refused(&world, &from("D", Point::Latest));
    assert!(refusal.contains("backup D on timeline 2 does not lead to timeline 3"), "{refusal}");
}

#[test]
fn a_backup_that_cannot_be_used_is_named_and_the_next_older_one_is_taken() {
    let reference = |world: &mut World, label: &str| {
        world.catalog.backups[1].references = vec![label.to_string()];
    };
    let damage = |world: &mut World, label: &str| {
        let why = "pg_data/base/1 is missing".to_string();
        world.catalog.unusable.insert(label.to_string(), why);
    };
    let ways: [(Change, &str); 5] = [
        (&|world| damage(world, "B"), "pg_data/base/1 is missing"),
        (
            &|world| {
                let (lsn, time) = ((quarter(4), quarter(5)), (minute(1, 4), minute(1, 5)));
                world.catalog.backups.push(backup("C", 1, lsn, time, Vec::new()));
                reference(world, "C");
                damage(world, "C");
            },
            "it needs backup C: pg_data/base/1 is missing",
        ),
        (&|world| reference(world, "X"), "it needs backup X, which is not there"),
        (
            &|world| {
                let backup = &mut world.catalog.backups[1];
                (backup.start_lsn, backup.stop_lsn, backup.timeline) = (None, None, None);
            },
            "it was taken of a stopped server, without WAL",
        ),
        (
            &|world| {
                for number in 5..10 {
                    world.catalog.wal.forget_archived(Segment { timeline: 1, number });
                }
                world.tail(1, quarter(20), quarter(21));
            },
            "the WAL that was written while it was taken is there only up to 0/540000; it needs \
             that from 0/500000 to 0/580000",
        ),
    ];
    for (way, why) in ways {
        let mut world = plain();
        way(&mut world);
        let warning =
            format!("backup B, which ended at 2026-01-01 00:22:00 UTC, cannot be used: {why}");
        let plan = planned(&world, &Target { up_to_gap: true, ..to(Point::Latest) });
        assert_eq!(plan.backup, "A");
        assert!(plan.warnings.contains(&warning), "{plan:?}");
        // Whatever it would not have been used for needs no warning.
        assert_eq!(planned(&world, &to(lsn(10))).warnings, Vec::<String>::new());
        let refusal = refused(&world, &from("B", Point::Latest));
        assert_eq!(
            refusal,
            format!("{warning} | Leave --backup out, and the best one that can be used is.")
        );
        // A refusal tells of it, too.
        world.catalog.backups.retain(|it| it.label == "B");
        world.catalog.backups[0].references.push("Y".to_string());
        let refusal = refused(&world, &to(Point::Immediate));
        assert!(refusal.contains("backup B, which ended at"), "{refusal}");
    }
    let mut world = plain();
    world.catalog.backups[0].error = Some(true);
    world.catalog.backups[1].references = vec!["A".to_string()];
    let plan = planned(&world, &to(Point::Latest));
    assert_eq!((plan.backup.as_str(), plan.chain.join(" ")), ("B", "A B".to_string()));
    assert!(plan.warnings[0].starts_with("backup A holds pages that had wrong checksums"));
    // What would have been chosen for a transaction or a restore point is told of as well.
    world.catalog.unusable.insert("B".to_string(), "gone".to_string());
    world.catalog.backups[0].error = None;
    world.catalog.restore_points = vec![point("x", 1, 31)];
    make_point(&mut world, "x", 31);
    for point in [Point::Xid(1030), name("x")] {
        let warnings = planned(&world, &to(point)).warnings;
        assert!(warnings[0].starts_with("backup B, which ended at"), "{warnings:?}");
    }
    assert_eq!(planned(&world, &to(Point::Xid(1010))).warnings, Vec::<String>::new());
}

#[test]
fn only_the_backup_that_was_named_is_taken() {
    let world = branched();
    assert_eq!(came_to(&world, &from("A", Point::Latest)), expect("A", Recovery::End, 48));
    assert_eq!(
        refused(&world, &from("X", Point::Latest)),
        "there is no backup X in s3:bucket/main | There are: A, B, C, D."
    );
    assert_eq!(
        refused(&world, &from("C", Point::Latest)),
        "backup C on timeline 1 does not lead to timeline 2 | Follow its own timeline with \
         --target-timeline 1, or leave --backup out."
    );
    let after = "Leave --backup out, and one is chosen that ended early enough.";
    for (point, what) in [
        (lsn(30), "position 0/780000"),
        (at(1, 30), "2026-01-01 00:30:00 UTC"),
        (Point::Xid(1024), "transaction 1024"),
    ] {
        let refusal = refused(&world, &from("D", point));
        if what.starts_with("transaction") {
            assert!(refusal.contains("does not end in the WAL"), "{refusal}");
            continue;
        }
        assert_eq!(
            refusal,
            format!("backup D ended at 2026-01-01 02:22:00 UTC (0/A80000), after {what} | {after}")
        );
    }
}

#[test]
fn an_action_needs_a_target_to_stop_at() {
    let world = plain();
    for action in [Action::Pause, Action::Shutdown] {
        let act = |point| Target { action, ..to(point) };
        for point in [Point::Immediate, lsn(30), at(1, 30), Point::Xid(1030)] {
            assert_ne!(planned(&world, &act(point)).recovery, Recovery::End);
        }
        for point in [lsn(40), at(1, 39)] {
            let refusal = refused(&world, &act(point));
            assert!(refusal.contains("recovery ends with the WAL, at 0/A00000"), "{refusal}");
        }
    }
}

#[test]
fn what_is_cheap_is_refused_before_the_wal_is_read() {
    let refuse = |world: &World, target: &Target| {
        let refusal = plan(&world.catalog, target, &mut Unread, minute(2, 0), None);
        assert!(refusal.is_err(), "{target:?}");
    };
    let world = branched();
    for target in [
        to(lsn(5)),
        to(lsn(100)),
        to(at(1, 3)),
        to(at(2, 1)),
        on(7, at(1, 30)),
        from("X", at(1, 30)),
        from("C", at(1, 30)),
        from("D", at(1, 30)),
    ] {
        refuse(&world, &target);
    }
    let mut empty = world;
    empty.catalog.backups.clear();
    for point in [Point::Xid(1030), name("x"), at(1, 30)] {
        refuse(&empty, &to(point));
    }
    let future = plan(&plain().catalog, &to(at(2, 1)), &mut Unread, minute(2, 0), None);
    assert!(future.is_err_and(|it| it.message.contains("is in the future")));
}

#[test]
fn a_failure_to_read_the_wal_is_handed_on() {
    struct Broken;
    impl Wal for Broken {
        fn last_end(&mut self, _: &[Stretch]) -> Result<Option<TransactionEnd>, Refusal> {
            Err(Refusal::new("the remote is gone", "Wait."))
        }
        fn last_record(&mut self, _: &[Stretch]) -> Result<Option<Lsn>, Refusal> {
            Err(Refusal::new("the remote is gone", "Wait."))
        }
        fn find_xid(&mut self, _: &[Stretch], _: u32) -> Result<Option<TransactionEnd>, Refusal> {
            Err(Refusal::new("the remote is gone", "Wait."))
        }
        fn find_name(
            &mut self,
            _: &[Stretch],
            _: &str,
        ) -> Result<Vec<(Lsn, RestorePoint)>, Refusal> {
            Err(Refusal::new("the remote is gone", "Wait."))
        }
    }
    for point in [lsn(30), at(1, 30), Point::Xid(1030), name("x")] {
        let refusal = plan(&plain().catalog, &to(point), &mut Broken, minute(2, 0), None);
        assert!(refusal.is_err_and(|it| it.message == "the remote is gone"));
    }
}

#[test]
fn time_is_expected_as_the_last_restore_took() {
    let mut world = plain();
    world.catalog.backups[1].references = vec!["A".to_string()];
    let phases = Phases {
        plan: 1.0,
        fetch: 10.0,
        restore: 20.0,
        replay: 30.0,
        check: 40.0,
        fetched_bytes: 1000,
        restored_bytes: 2000,
        replayed_bytes: 10 * SIZE,
    };
    let plan = |world: &World, rates: Option<&Phases>| {
        plan(&world.catalog, &to(Point::Latest), &mut Unread, minute(2, 0), rates).expect("a plan")
    };
    let seconds =
        |world: &World, rates| plan(world, Some(&rates)).estimate.map(|it| it.as_secs_f64());
    assert_eq!(plan(&world, None).estimate, None);
    // How much is to be fetched is not known, and something was fetched then.
    assert_eq!(plan(&world, None).fetch_bytes, None);
    assert_eq!(seconds(&world, phases), None);
    // From a directory nothing is fetched: 1 s, half of 20 s, half of 30 s.
    assert_eq!(seconds(&world, Phases { fetched_bytes: 0, fetch: 0.0, ..phases }), Some(26.0));
    world.catalog.stored.insert("B".to_string(), 300);
    assert_eq!(plan(&world, None).fetch_bytes, None);
    world.catalog.stored.insert("A".to_string(), 700);
    assert_eq!(plan(&world, None).fetch_bytes, Some(1000));
    assert_eq!(plan(&world, None).restore_bytes, Some(1000));
    assert_eq!(plan(&world, None).wal_bytes, 5 * SIZE);
    assert_eq!(seconds(&world, phases), Some(36.0));
    assert_eq!(seconds(&world, Phases { restored_bytes: 0, ..phases }), None);
    assert_eq!(seconds(&world, Phases { replayed_bytes: 0, ..phases }), None);
    assert_eq!(seconds(&world, Phases { fetched_bytes: 0, ..phases }), None);
    world.catalog.backups[1].size = None;
    assert_eq!(seconds(&world, phases), None);
}

#[test]
fn windows_are_what_can_be_reached() {
    // The timeline, the backup, the beginning and the end in quarters, backups, and a gap.
    type Found = (u32, &'static str, u64, u64, u64, bool);
    let cases: Vec<(World, Vec<Found>)> = vec![
        (plain(), vec![(1, "A", 6, 40, 2, false)]),
        (branched(), vec![(1, "A", 6, 40, 3, false), (2, "A", 6, 48, 3, false)]),
        // Promoted at its end: timeline 1 is on the way to timeline 2.
        (
            world(
                &[(1, None, 26), (2, Some((1, 26)), 40)],
                &[(1, 1, 6), (2, 6, 10)],
                &[("A", 1, 4, 6)],
            ),
            vec![(2, "A", 6, 40, 1, false)],
        ),
        // A gap, with and without a backup behind it.
        (
            world(&[(1, None, 40)], &[(1, 1, 4), (1, 6, 10)], &[("A", 1, 4, 6), ("B", 1, 28, 30)]),
            vec![(1, "A", 6, 16, 1, true), (1, "B", 30, 40, 1, false)],
        ),
        (
            world(&[(1, None, 40)], &[(1, 1, 4), (1, 6, 10)], &[("A", 1, 4, 6)]),
            vec![(1, "A", 6, 16, 1, true)],
        ),
        // A backup without its WAL.
        (world(&[(1, None, 40)], &[(1, 2, 4)], &[("A", 1, 4, 6)]), vec![]),
        // The new timeline is reached only from its own backup.
        (
            world(
                &[(1, None, 26), (2, Some((1, 26)), 48)],
                &[(1, 1, 5), (2, 6, 12)],
                &[("A", 1, 4, 6), ("B", 2, 40, 42)],
            ),
            vec![(1, "A", 6, 20, 1, true), (2, "B", 42, 48, 1, false)],
        ),
        (World { lines: BTreeMap::new(), catalog: empty_catalog() }, vec![]),
    ];
    for (world, expected) in cases {
        let found: Vec<_> = windows(&world.catalog)
            .into_iter()
            .map(|it| {
                let number = |lsn: Lsn| lsn.0 / (SIZE / 4);
                assert_eq!(
                    world
                        .catalog
                        .backups
                        .iter()
                        .find(|one| one.label == it.backup)
                        .map(|it| it.stop_time),
                    Some(it.from)
                );
                let (from, to) = (number(it.from_lsn), number(it.to_lsn));
                (it.timeline, it.backup, from, to, it.backups, it.ends_in_a_gap)
            })
            .collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(a, label, c, d, e, f)| (a, label.to_string(), c, d, e, f))
            .collect();
        assert_eq!(found, expected);
    }
}
