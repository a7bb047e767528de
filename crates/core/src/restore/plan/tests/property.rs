//! Against PostgreSQL as it replays: random histories with timelines, backups and gaps.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::super::super::target::{Action, Point, Target, Timeline};
use super::super::{Plan, Recovery, latest, plan, windows};
use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Random choices; when they run out, always the first.
struct Dice {
    rolls: std::vec::IntoIter<u32>,
}

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        u64::from(self.rolls.next().unwrap_or(0)) % sides
    }

    /// True so many times of a hundred.
    fn percent(&mut self, chance: u64) -> bool {
        // The first choice is the plain one.
        self.roll(100) >= 100 - chance
    }
}

/// A history in the making.
struct Maker {
    dice: Dice,
    world: World,
    /// Microseconds.
    clock: i64,
    next_xid: u64,
    /// Transactions that go on.
    running: Vec<u64>,
    /// Where each timeline was left on the way to the others, as history files have it.
    raw: BTreeMap<u32, Vec<(u32, Lsn)>>,
}

fn make(rolls: Vec<u32>) -> World {
    let mut maker = Maker {
        dice: Dice { rolls: rolls.into_iter() },
        world: World { lines: BTreeMap::new(), catalog: empty_catalog() },
        clock: 0,
        // Close to where the epoch changes.
        next_xid: (1 << 32) - 4,
        running: Vec::new(),
        raw: BTreeMap::new(),
    };
    let timelines = 1 + maker.dice.roll(3) as u32;
    maker.raw.insert(1, Vec::new());
    maker.write(1, Vec::new(), Lsn(SIZE));
    for timeline in 2..=timelines {
        let parent = 1 + maker.dice.roll(u64::from(timeline) - 1) as u32;
        let line = maker.world.lines[&parent].clone();
        let kept = 1 + maker.dice.roll(line.len() as u64) as usize;
        let left = line[kept - 1].end;
        let mut history = maker.raw[&parent].clone();
        history.push((parent, left));
        maker.raw.insert(timeline, history.clone());
        maker.running.clear();
        maker.write(timeline, line[..kept].to_vec(), left);
        if !maker.dice.percent(5) {
            maker.world.catalog.histories.insert(timeline, history);
        }
    }
    for timeline in 1..=timelines {
        maker.keep(timeline);
    }
    maker.finish();
    maker.world
}

impl Maker {
    /// Goes on with a timeline from a position.
    fn write(&mut self, timeline: u32, mut line: Vec<Record>, from: Lsn) {
        let mut at = from;
        let mut backup: Option<(Lsn, i64)> = None;
        for _ in 0..4 + self.dice.roll(24) {
            self.clock += [400_000, 0, 7, 1_300_000][self.dice.roll(4) as usize];
            let mut length = [SIZE / 4, 100, SIZE / 2, SIZE + SIZE / 3][self.dice.roll(4) as usize];
            let mut kind = Kind::Other;
            match (self.dice.roll(9), backup) {
                (4 | 7 | 8, None) => backup = Some((at, self.clock)),
                (4 | 8, Some(start)) => {
                    backup = None;
                    self.back_up(timeline, start, Lsn(at.0 + length), &line);
                }
                (5, _) => {
                    kind = Kind::Name(NAMES[self.dice.roll(3) as usize].to_string());
                    length = 104;
                }
                (6, _) => {
                    self.running.push(self.next_xid);
                    self.advance();
                }
                (roll, _) => {
                    let old = !self.running.is_empty() && self.dice.percent(30);
                    let xid = if old { self.running.remove(0) } else { self.next_xid };
                    if !old {
                        self.advance();
                    }
                    kind = Kind::End { xid, committed: roll != 3 };
                }
            }
            let (begin, end) = (at, Lsn(at.0 + length));
            line.push(Record { begin, end, at: instant(self.clock), kind, timeline });
            at = end;
        }
        self.world.lines.insert(timeline, line);
    }

    fn advance(&mut self) {
        self.next_xid += 1;
        if (self.next_xid as u32) < 3 {
            self.next_xid += 3;
        }
    }

    fn back_up(&mut self, timeline: u32, start: (Lsn, i64), stop: Lsn, line: &[Record]) {
        let catalog = &mut self.world.catalog;
        let number = catalog.backups.len();
        // Any backup that the cluster has come by can be the one before.
        let earlier = catalog.backups.iter().rev().find(|it| {
            let ends = |record: &Record| Some(record.end) == it.stop_lsn;
            line.iter().any(|record| Some(record.timeline) == it.timeline && ends(record))
        });
        let references = match earlier {
            Some(earlier) if self.dice.percent(60) => {
                let mut references = earlier.references.clone();
                references.push(earlier.label.clone());
                references
            }
            _ => Vec::new(),
        };
        let label = match references.first() {
            Some(full) => format!("{full}_20260101-{number:06}I"),
            None => format!("20260101-{number:06}F"),
        };
        if self.dice.percent(60) {
            catalog.next_xids.insert(label.clone(), self.next_xid);
        }
        if self.dice.percent(8) {
            catalog.unusable.insert(label.clone(), "a file is missing".to_string());
        }
        let time = (instant(start.1), instant(self.clock));
        let mut made = backup(&label, timeline, (start.0, stop), time, references);
        if self.dice.percent(5) {
            (made.start_lsn, made.stop_lsn) = (None, None);
        }
        catalog.backups.push(made);
    }

    /// Archives and ships a timeline's segments, and loses some.
    fn keep(&mut self, timeline: u32) {
        let begins = self.raw[&timeline].last().map_or(Lsn(SIZE), |it| it.1);
        let ends = self.world.lines[&timeline].last().expect("a record").end;
        let last = ends.0 / SIZE;
        for number in begins.0 / SIZE..=last {
            let segment = Segment { timeline, number };
            let (start, end) = (segment.start(SIZE), segment.end(SIZE).min(ends));
            let whole = number < last || self.dice.percent(20);
            let part = Lsn(start.0 + self.dice.roll(end.0 - start.0 + 1));
            match self.dice.roll(24) {
                0..20 if whole => self.world.catalog.wal.archive(segment),
                0..16 => {
                    self.world.tail(timeline, start, part);
                    self.world.tail(timeline, Lsn(start.0 + (part.0 - start.0) / 2), end);
                }
                16..20 => self.world.tail(timeline, start, part),
                20..22 => self.world.tail(timeline, start, end),
                // Without its beginning it is of no use.
                22 => self.world.tail(timeline, part, end),
                _ => {}
            }
        }
    }

    fn finish(&mut self) {
        // Of some names none is recorded, and of the others most are.
        let recorded: BTreeSet<&str> =
            NAMES.into_iter().filter(|_| self.dice.percent(60)).collect();
        let own = self.world.lines.iter().flat_map(|(timeline, line)| {
            line.iter().filter(|it| it.timeline == *timeline).cloned().collect::<Vec<_>>()
        });
        let mut missing = Vec::new();
        for Record { begin, end, at, kind, timeline } in own {
            match kind {
                Kind::Name(name) if recorded.contains(&*name) && self.dice.percent(75) => {
                    let point = RestorePoint { name, timeline, lsn: end, at };
                    self.world.catalog.restore_points.push(point);
                }
                Kind::End { .. } => {
                    let there = (begin.0 / SIZE..=(end.0 - 1) / SIZE).all(|number| {
                        let limit = self.world.limit(timeline, number);
                        limit >= end.min(Lsn((number + 1) * SIZE))
                    });
                    missing.extend((!there).then_some(at));
                }
                _ => {}
            }
        }
        if self.dice.percent(60) {
            let until = missing.into_iter().min().unwrap_or(instant(self.clock + 5_000_000));
            self.world.catalog.complete_until = Some(until - TimeDelta::microseconds(1));
        }
    }
}

/// A target, mostly one at or near something that has happened.
fn aim(world: &World, dice: &mut Dice) -> Target {
    let newest = *world.lines.keys().last().expect("a timeline");
    let timeline = match dice.roll(3) {
        0 => Timeline::Latest,
        1 => Timeline::Number(1 + dice.roll(u64::from(newest)) as u32),
        _ => Timeline::Current,
    };
    let line = &world.lines[&match timeline {
        Timeline::Number(number) => number,
        _ => newest,
    }];
    let record = &line[dice.roll(line.len() as u64) as usize];
    let point = match dice.roll(8) {
        0 => Point::Latest,
        1 => Point::Immediate,
        2 | 3 => {
            let shift = [0, 1, -1, 1_000_000, 5_000_000][dice.roll(5) as usize];
            Point::Time(record.at + TimeDelta::microseconds(shift))
        }
        4 | 5 => {
            let near = [record.begin.0, record.begin.0 + 1, record.end.0 - 1, record.end.0 + SIZE];
            Point::Lsn(Lsn(near[dice.roll(4) as usize]))
        }
        6 => match record.kind {
            Kind::End { xid, .. } if dice.percent(50) => Point::Xid(xid),
            Kind::End { xid, .. } => Point::Xid(u64::from(xid as u32)),
            _ => Point::Xid(1000),
        },
        _ => Point::Name(NAMES[dice.roll(3) as usize].to_string()),
    };
    let exact = matches!(point, Point::Time(_) | Point::Lsn(_) | Point::Xid(_));
    let backups = &world.catalog.backups;
    let backup = match backups.len() as u64 {
        0 => None,
        count => dice.percent(15).then(|| backups[dice.roll(count) as usize].label.clone()),
    };
    Target {
        inclusive: !(exact && dice.percent(50)),
        up_to_gap: point == Point::Latest && dice.percent(50),
        point,
        timeline,
        action: Action::Promote,
        backup,
    }
}

/// What PostgreSQL does.
struct Postgres<'a> {
    world: &'a World,
    /// The timelines that it may read, newest first, and where each begins.
    timelines: Vec<(u32, Lsn)>,
}

impl<'a> Postgres<'a> {
    fn following(world: &'a World, timeline: u32) -> Postgres<'a> {
        let history = world.catalog.histories.get(&timeline).map_or(&[][..], Vec::as_slice);
        let mut begins = Lsn(0);
        let mut timelines = Vec::new();
        for &(parent, left) in history {
            timelines.push((parent, begins));
            begins = left;
        }
        timelines.push((timeline, begins));
        timelines.reverse();
        Postgres { world, timelines }
    }

    /// The timelines whose file of a segment it asks for, in this order.
    fn candidates(&self, number: u64) -> impl Iterator<Item = u32> {
        let may = move |it: &&(u32, Lsn)| it.1.0 / SIZE <= number;
        self.timelines.iter().filter(may).map(|it| it.0)
    }

    /// Restores a backup and replays what it is given: `given` says how far a segment goes.
    /// Answers with all records of the cluster then.
    fn recover(
        &self,
        backup: &Backup,
        given: &dyn Fn(u32, u64) -> Lsn,
        recovery: &Recovery,
        inclusive: bool,
    ) -> Result<Vec<Record>, &'static str> {
        let timeline = backup.timeline.expect("a timeline");
        let (start, stop) = (backup.start_lsn.expect("start"), backup.stop_lsn.expect("stop"));
        // tliOfPointInHistory(), for the checkpoint with which the backup began.
        let mut end = Lsn(u64::MAX);
        let mut owner = None;
        for &(one, begin) in &self.timelines {
            if begin <= start && start < end {
                owner = Some(one);
                break;
            }
            end = begin;
        }
        if owner != Some(timeline) {
            return Err("the backup is not on the way");
        }
        let inherited = &self.world.lines[&timeline];
        let mut records: Vec<Record> =
            inherited.iter().filter(|it| it.end <= start).cloned().collect();
        let mut at = start;
        let file = |number: u64| {
            let first = Lsn(number * SIZE);
            self.candidates(number).find(|timeline| given(*timeline, number) > first)
        };
        loop {
            // The record that says so was replayed, and not just any WAL up to there.
            let said = |it: &Record| it.end == stop && it.timeline == timeline;
            let consistent = records.iter().any(said);
            if *recovery == Recovery::Immediate && consistent {
                return Ok(records);
            }
            let next = file(at.0 / SIZE).and_then(|timeline| {
                let next = self.world.lines[&timeline].iter().find(|it| it.begin == at)?;
                let whole = (next.begin.0 / SIZE..=(next.end.0 - 1) / SIZE).all(|number| {
                    file(number).is_some_and(|timeline| {
                        given(timeline, number) >= next.end.min(Lsn((number + 1) * SIZE))
                            && self.world.lines[&timeline].contains(next)
                    })
                });
                whole.then_some(next)
            });
            let Some(next) = next else {
                return match recovery {
                    Recovery::End if consistent => Ok(records),
                    Recovery::End => Err("the WAL ends before the backup had"),
                    _ => Err("recovery ended before the target was reached"),
                };
            };
            let transaction = match next.kind {
                Kind::End { xid, .. } => Some(xid as u32),
                _ => None,
            };
            let at_target = match recovery {
                Recovery::Lsn(target) => next.begin >= *target,
                Recovery::Xid(target) => transaction == Some(*target),
                _ => false,
            };
            let before = match recovery {
                Recovery::Time(target) if transaction.is_some() => {
                    if inclusive {
                        next.at > *target
                    } else {
                        next.at >= *target
                    }
                }
                _ => at_target && !inclusive,
            };
            if !before {
                records.push(next.clone());
                at = next.end;
            }
            if before || at_target {
                let consistent = records.iter().any(said);
                return if consistent { Ok(records) } else { Err("not consistent yet") };
            }
        }
    }

    /// The same with all WAL that lies on the way to the timeline.
    fn recover_all(
        &self,
        backup: &Backup,
        recovery: &Recovery,
        inclusive: bool,
    ) -> Result<Vec<Record>, &'static str> {
        let given = |timeline: u32, number: u64| {
            let ours = self.candidates(number).next() == Some(timeline);
            if ours { self.world.limit(timeline, number) } else { Lsn(0) }
        };
        self.recover(backup, &given, recovery, inclusive)
    }
}

fn transactions(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|it| matches!(it.kind, Kind::End { .. })).collect()
}

/// How many records come before the first one of which something holds.
fn until(line: &[Record], stop: impl Fn(&Record) -> bool) -> Option<usize> {
    line.iter().position(stop)
}

/// What the target means: all records of the cluster then, if everything were there. `None` if it
/// means nothing.
fn meaning(world: &World, line: &[Record], target: &Target) -> Option<Vec<Record>> {
    let inclusive = usize::from(target.inclusive);
    let count = match &target.point {
        Point::Latest | Point::Immediate => return None,
        Point::Lsn(at) => until(line, |it| it.begin >= *at)? + inclusive,
        Point::Time(at) => {
            let beyond = |it: &Record| if target.inclusive { it.at > *at } else { it.at >= *at };
            let ends = |it: &Record| matches!(it.kind, Kind::End { .. }) && beyond(it);
            until(line, ends).unwrap_or(line.len())
        }
        Point::Xid(asked) => {
            let same = |xid: u64| xid == *asked || u64::from(xid as u32) == *asked;
            let ends = |it: &Record| matches!(it.kind, Kind::End { xid, .. } if same(xid));
            until(line, ends)? + inclusive
        }
        Point::Name(name) => recorded(world, line, name)? + 1,
    };
    Some(line[..count].to_vec())
}

/// The newest restore point of a name that was recorded. Where the history file of the line's
/// timeline is missing, it is not known that the points of earlier timelines are on the line.
fn recorded(world: &World, line: &[Record], name: &str) -> Option<usize> {
    let points = &world.catalog.restore_points;
    let own = line.last()?.timeline;
    let knows = |timeline| timeline == own || world.catalog.histories.contains_key(&own);
    let is_recorded = |it: &Record| {
        knows(it.timeline)
            && points.iter().any(|point| (point.timeline, point.lsn) == (it.timeline, it.end))
    };
    line.iter().rposition(|it| it.kind == Kind::Name(name.to_string()) && is_recorded(it))
}

/// Whether nothing is known to be wrong with a backup or those that it needs.
fn is_whole(world: &World, backup: &Backup) -> bool {
    let there = |label: &String| world.catalog.backups.iter().any(|it| it.label == *label);
    let damaged = |label: &String| world.catalog.unusable.contains_key(label);
    let online = backup.start_lsn.is_some();
    online
        && !damaged(&backup.label)
        && backup.references.iter().all(|it| there(it) && !damaged(it))
}

/// The recovery that fails unless it ends at the point; `None` if there is no such point.
fn direct(world: &World, line: &[Record], point: &Point) -> Option<Recovery> {
    Some(match point {
        Point::Latest => Recovery::End,
        Point::Immediate => Recovery::Immediate,
        Point::Time(at) => Recovery::Time(*at),
        Point::Xid(xid) => Recovery::Xid(*xid as u32),
        Point::Name(name) => {
            let is_named = |it: &Record| it.kind == Kind::Name(name.clone());
            let place = recorded(world, line, name).or_else(|| line.iter().rposition(is_named))?;
            Recovery::Lsn(line[place].begin)
        }
        Point::Lsn(at) => Recovery::Lsn(*at),
    })
}

/// Whatever is planned comes out as it was meant.
fn check_plan(world: &World, target: &Target, plan: &Plan) {
    let line = &world.lines[&plan.timeline];
    let chosen = world.catalog.backups.iter().find(|it| it.label == plan.backup).expect("a backup");
    assert!(is_whole(world, chosen));
    let mut chain: Vec<String> = chosen.references.clone();
    chain.push(chosen.label.clone());
    assert_eq!(plan.chain, chain);
    assert_eq!(plan.wal.first().map(|it| it.from), chosen.start_lsn);
    let given = |timeline: u32, number: u64| {
        let inside = |it: &&Stretch| {
            it.timeline == timeline && it.from.0 / SIZE <= number && number * SIZE < it.to.0
        };
        let to = plan.wal.iter().rev().find(inside).map(|it| it.to);
        let limit = to.map_or(Lsn(0), |to| to.min(Lsn((number + 1) * SIZE)));
        assert!(limit == Lsn(0) || limit <= world.limit(timeline, number), "{timeline} {number}");
        limit
    };
    let postgres = Postgres::following(world, plan.timeline);
    let got = postgres
        .recover(chosen, &given, &plan.recovery, target.inclusive)
        .unwrap_or_else(|error| panic!("{error}: {plan:#?}"));
    assert_eq!(got, line[..got.len()], "off the way");

    let backups = world.catalog.backups.iter().filter(|it| is_whole(world, it));
    let backups = backups.filter(|it| target.backup.as_ref().is_none_or(|only| *only == it.label));
    let others = |recovery: &Recovery| -> Vec<Vec<Record>> {
        backups
            .clone()
            .filter_map(|it| postgres.recover_all(it, recovery, target.inclusive).ok())
            .collect()
    };
    match &target.point {
        Point::Latest => {
            assert!(others(&Recovery::End).iter().all(|it| it.len() <= got.len()));
            if !target.up_to_gap {
                let owner = |number| postgres.candidates(number).next().expect("a timeline");
                for it in &line[got.len()..] {
                    let numbers = it.begin.0 / SIZE..=(it.end.0 - 1) / SIZE;
                    let there = |number| {
                        let limit = world.limit(owner(number), number);
                        limit >= it.end.min(Lsn((number + 1) * SIZE))
                    };
                    assert!(!numbers.into_iter().all(there), "{it:?} is there");
                }
            }
        }
        Point::Immediate => {
            assert!(others(&Recovery::Immediate).iter().all(|it| it.len() <= got.len()));
        }
        Point::Name(name) if meaning(world, line, target).is_none() => {
            for newer in line[got.len()..].iter().filter(|it| it.kind == Kind::Name(name.clone())) {
                assert!(others(&Recovery::Lsn(newer.begin)).is_empty(), "there is a newer one");
            }
            assert_eq!(got.last().map(|it| &it.kind), Some(&Kind::Name(name.clone())));
        }
        Point::Lsn(at) if plan.recovery == Recovery::End => {
            let got = transactions(&got);
            let line = transactions(line);
            let must: Vec<_> = line.iter().filter(|it| it.end <= *at).collect();
            assert!(must.iter().all(|it| got.contains(it)));
            assert!(got.iter().all(|it| it.begin < *at), "more than was meant");
        }
        Point::Time(at) if plan.recovery == Recovery::End => {
            let mut meant = meaning(world, line, target).expect("a meaning");
            let so_many = transactions(&got).len();
            // Several in the same microsecond cannot be told apart.
            meant.retain(|it| it.at < *at || got.contains(it));
            assert_eq!(so_many, transactions(&meant).len(), "{plan:#?}");
        }
        _ => {
            let meant = meaning(world, line, target).expect("a meaning");
            assert_eq!(transactions(&got), transactions(&meant), "{plan:#?}");
        }
    }
}

/// Whatever is refused cannot be done.
fn check_refusal(world: &World, target: &Target, refusal: &Refusal) {
    let newest = *world.lines.keys().last().expect("a timeline");
    let timelines: Vec<u32> = match target.timeline {
        Timeline::Number(number) => vec![number],
        Timeline::Latest => vec![newest],
        // Its rule is which timeline it is; that one is followed like any other.
        Timeline::Current => return,
    };
    for timeline in timelines {
        let line = &world.lines[&timeline];
        let postgres = Postgres::following(world, timeline);
        let backups = world.catalog.backups.iter().filter(|it| is_whole(world, it));
        for backup in
            backups.filter(|it| target.backup.as_ref().is_none_or(|only| *only == it.label))
        {
            let early = match &target.point {
                Point::Time(at) => backup.stop_time.timestamp() < at.timestamp(),
                Point::Lsn(at) => backup.stop_lsn.expect("a position") <= *at,
                _ => true,
            };
            if !early {
                continue;
            }
            let end = postgres.recover_all(backup, &Recovery::End, true);
            let Some(direct) = direct(world, line, &target.point) else { continue };
            match (&target.point, postgres.recover_all(backup, &direct, target.inclusive)) {
                (Point::Latest, Ok(_)) if !target.up_to_gap => {
                    assert!(refusal.hint.contains("--up-to-gap"), "{refusal:?}");
                    let reached = end.expect("the same").last().expect("a record").end;
                    let begins = postgres.timelines[0].1;
                    let more = world.catalog.wal.pieces().any(|it| it.to > reached)
                        || (0..200).any(|number| {
                            number * SIZE >= reached.0
                                && postgres.candidates(number).any(|timeline| {
                                    world.catalog.wal.is_archived(Segment { timeline, number })
                                })
                        })
                        || world.catalog.backups.iter().any(|it| it.start_lsn > Some(reached));
                    let left = world.catalog.histories.values().flatten();
                    let left = left.filter(|it| it.0 == timeline).any(|it| it.1 > reached);
                    let more = more || left || begins > reached;
                    assert!(more, "there is nothing more: {refusal:?}");
                }
                (_, Ok(_)) => panic!("{} reaches it: {refusal:?}", backup.label),
                (Point::Lsn(at), Err(_)) => {
                    let reached = end.ok().and_then(|it| it.last().map(|it| it.end));
                    assert!(reached < Some(*at), "{} reaches it: {refusal:?}", backup.label);
                }
                _ => {}
            }
        }
    }
}

fn at_position(at: Lsn, timeline: u32) -> Target {
    Target {
        point: Point::Lsn(at),
        timeline: Timeline::Number(timeline),
        inclusive: true,
        action: Action::Promote,
        backup: None,
        up_to_gap: false,
    }
}

proptest! {
    #![proptest_config(Config { cases: 1000, ..Config::default() })]

    #[test]
    fn what_is_planned_is_meant_and_what_is_refused_cannot_be(
        rolls in proptest::collection::vec(any::<u32>(), 100..700),
        aims in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 12), 1..24),
    ) {
        let world = make(rolls);
        // The position that is called shipped is where a restore without a target ends.
        let target = Target { up_to_gap: true, ..at_position(Lsn(0), 1) };
        let target = Target { point: Point::Latest, timeline: Timeline::Latest, ..target };
        let planned = plan(&world.catalog, &target, &mut world.wal(), instant(1 << 50), None);
        let end = |plan: Plan| plan.wal.last().map(|it| it.to);
        prop_assert_eq!(planned.ok().and_then(end), latest(&world.catalog).ok().map(|it| it.end.flushed));
        for rolls in aims {
            let target = aim(&world, &mut Dice { rolls: rolls.into_iter() });
            let now = instant(1 << 50);
            match plan(&world.catalog, &target, &mut world.wal(), now, None) {
                Ok(plan) => check_plan(&world, &target, &plan),
                Err(refusal) => check_refusal(&world, &target, &refusal),
            }
        }
    }

    /// Every position of a window can be reached, and none outside of them.
    #[test]
    fn windows_hold_exactly_what_can_be_reached(
        rolls in proptest::collection::vec(any::<u32>(), 100..700),
    ) {
        let world = make(rolls);
        let now = instant(1 << 50);
        let windows = windows(&world.catalog);
        for (timeline, line) in &world.lines {
            for at in line.iter().map(|it| it.end) {
                let target = at_position(at, *timeline);
                let planned = plan(&world.catalog, &target, &mut world.wal(), now, None).is_ok();
                let inside = windows.iter().any(|it| {
                    // The same records lie on the way to a later timeline.
                    let same = world.lines[&it.timeline].iter().any(|it| {
                        it.end == at && line.contains(it)
                    });
                    same && it.from_lsn <= at && at <= it.to_lsn
                });
                prop_assert!(!planned || inside, "{at} on timeline {timeline}: {windows:#?}");
            }
        }
        for window in &windows {
            let ends = world.lines[&window.timeline].iter().map(|it| it.end);
            for at in ends.chain([window.to_lsn]) {
                let target = at_position(at, window.timeline);
                let planned = plan(&world.catalog, &target, &mut world.wal(), now, None);
                let inside = window.from_lsn <= at && at <= window.to_lsn;
                prop_assert!(!inside || planned.is_ok(), "{at} of {window:?}: {planned:?}");
            }
            let target = Target {
                backup: Some(window.backup.clone()),
                ..at_position(window.to_lsn, window.timeline)
            };
            let planned = plan(&world.catalog, &target, &mut world.wal(), now, None);
            prop_assert!(planned.is_ok(), "{window:?}: {planned:?}");
        }
    }
}
