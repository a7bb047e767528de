//! Chooses the backup, the end of the WAL and PostgreSQL's target for each kind of point.
//!
//! PostgreSQL replays from the backup's start and stops
//!
//! - at a position: after the first record that begins there or later (exclusive: before it);
//! - at a time: before the first end of a transaction that is later (exclusive: or as late);
//! - at a transaction: after its end (exclusive: before it).
//!
//! At a name it would stop at the first one that it meets, which need not be the one that is meant:
//! a restore point is given to it as the position at which its record begins.
//!
//! If it comes to the end of the WAL without that, it fails; if it comes to it before the backup
//! had ended, it fails, too. So it gets a target only where it is known to meet it.

use chrono::{DateTime, Utc};

use super::super::Refusal;
use super::super::catalog::{RestorePoint, TransactionEnd, Wal};
use super::super::target::{Action, Point, Target};
use super::Recovery;
use super::field::{Candidate, Field, ends_before};
use super::refuse::{self, instant};
use crate::lsn::Lsn;
use crate::pgbackrest::info::Backup;

/// More than the record of a restore point has, with the headers of pages that it goes across.
const LONGEST_POINT: u64 = 256;

/// What a plan is made of.
pub(super) struct Choice<'f, 'a> {
    pub(super) from: &'f Candidate<'a>,
    /// Where the WAL ends that PostgreSQL is given.
    pub(super) end: Lsn,
    pub(super) recovery: Recovery,
    pub(super) last_end: Option<TransactionEnd>,
    pub(super) warnings: Vec<String>,
}

impl<'f, 'a> Choice<'f, 'a> {
    /// The newest backup that ended early enough, and all WAL from there.
    fn begin(field: &'f Field<'a>, early: impl Fn(&Backup) -> bool) -> Option<Choice<'f, 'a>> {
        let from = field.newest(&early)?;
        let mut warnings = field.passed_over(from, early);
        let damaged = from.chain.iter().filter(|it| it.error == Some(true));
        warnings.extend(damaged.map(|it| {
            format!(
                "backup {} holds pages that had wrong checksums when it was taken: they were \
                 damaged in the cluster itself",
                it.label
            )
        }));
        let (end, recovery) = (from.reach, Recovery::End);
        Some(Choice { from, end, recovery, last_end: None, warnings })
    }
}

/// Chooses for a target.
pub(super) fn choose<'f, 'a>(
    field: &'f Field<'a>,
    target: &Target,
    wal: &mut dyn Wal,
) -> Result<Choice<'f, 'a>, Refusal> {
    let begin = || {
        Choice::begin(field, |backup| ends_before(backup, &target.point))
            .ok_or_else(|| refuse::too_early(field, &target.point))
    };
    let choice = match &target.point {
        Point::Latest => latest(field, begin()?, target.up_to_gap)?,
        Point::Immediate => immediate(field, begin()?),
        Point::Lsn(at) => position(field, begin()?, *at, wal)?,
        Point::Time(at) => time(field, begin()?, *at, target.inclusive, wal)?,
        Point::Xid(xid) => transaction(field, *xid, target.inclusive, wal)?,
        Point::Name(name) => restore_point(field, name, wal)?,
    };
    if choice.recovery == Recovery::End && target.action != Action::Promote {
        return Err(refuse::no_action(target.action, choice.end));
    }
    Ok(choice)
}

fn latest<'f, 'a>(
    field: &Field,
    mut choice: Choice<'f, 'a>,
    up_to_gap: bool,
) -> Result<Choice<'f, 'a>, Refusal> {
    let end = choice.end;
    let Some(goes_on) = field.path.goes_on(end) else { return Ok(choice) };
    let why = match field.path.gap(end) {
        None => "had not arrived yet when the last of it did",
        Some(_) if up_to_gap => "is missing",
        Some(_) => return Err(refuse::gap_before_the_latest(field, end, goes_on)),
    };
    choice.warnings.push(format!(
        "the WAL from {end} to {goes_on} {why}: whatever was committed from {end} on is not restored"
    ));
    Ok(choice)
}

fn immediate<'f, 'a>(field: &Field, mut choice: Choice<'f, 'a>) -> Choice<'f, 'a> {
    choice.end = field.path.segment_behind(choice.from.stop).min(choice.end);
    choice.recovery = Recovery::Immediate;
    choice
}

fn position<'f, 'a>(
    field: &Field,
    mut choice: Choice<'f, 'a>,
    at: Lsn,
    wal: &mut dyn Wal,
) -> Result<Choice<'f, 'a>, Refusal> {
    if at > choice.end {
        return Err(refuse::position_behind(field, choice.from, at));
    }
    choice.end = field.path.segment_behind(at).min(choice.end);
    let tail = field.path.stretches(field.path.segment_start(at), choice.end);
    let last = if tail.is_empty() { None } else { wal.last_record(&tail)? };
    // Without a record at the position or behind it, all that is before it is replayed at the end.
    if last.is_some_and(|last| last >= at) {
        choice.recovery = Recovery::Lsn(at);
    }
    choice.warnings.extend(abandoned(field, choice.from, Some(at)));
    Ok(choice)
}

fn time<'f, 'a>(
    field: &Field,
    mut choice: Choice<'f, 'a>,
    at: DateTime<Utc>,
    inclusive: bool,
    wal: &mut dyn Wal,
) -> Result<Choice<'f, 'a>, Refusal> {
    let (from, reach) = (choice.from, choice.end);
    choice.warnings.extend(abandoned(field, from, None));
    let stops_at = |end: &TransactionEnd| if inclusive { end.at > at } else { end.at >= at };
    // A backup that began later saves reading all that came after it, if PostgreSQL stops before.
    let later = field.usable.iter().find(|it| it.backup.start_time > at && it.stop < reach);
    for end in later.map(|it| it.stop).into_iter().chain([reach]) {
        let behind = field.path.stretches(from.stop, end);
        choice.last_end = if behind.is_empty() { None } else { wal.last_end(&behind)? };
        if choice.last_end.as_ref().is_some_and(stops_at) {
            return Ok(Choice { end, recovery: Recovery::Time(at), last_end: None, ..choice });
        }
    }
    let last = choice.last_end;
    if let Some(goes_on) = field.path.goes_on(reach) {
        return Err(refuse::time_in_a_gap(field, from, at, last, goes_on));
    }
    let complete_until = last.map(|it| it.at).max(field.catalog.complete_until);
    if complete_until.is_none_or(|until| until < at) {
        return Err(refuse::time_behind(field, from, at, last));
    }
    let since = last.map_or("the end of the backup".to_string(), |last| instant(last.at));
    choice.warnings.push(format!(
        "nothing was committed between {since} and {}: all WAL that is there is replayed",
        instant(at)
    ));
    Ok(choice)
}

/// Warns that another timeline has WAL of its own behind a place on the way: the target may mean what
/// was there.
fn abandoned(field: &Field, from: &Candidate, at: Option<Lsn>) -> Vec<String> {
    let said = |(timeline, parted): (u32, Lsn)| {
        let way = field.path.timeline;
        let where_it_is = if field.path.holds(timeline, Lsn(0)) {
            format!("timeline {timeline} goes on behind {parted}, where timeline {way} has left it")
        } else {
            format!("timeline {timeline} begins at {parted} and does not lead to timeline {way}")
        };
        format!(
            "{where_it_is}: nothing of that is restored; --target-timeline {timeline} follows it"
        )
    };
    field.path.abandoned(from.stop, at).into_iter().map(said).collect()
}

fn transaction<'f, 'a>(
    field: &'f Field<'a>,
    asked: u64,
    inclusive: bool,
    wal: &mut dyn Wal,
) -> Result<Choice<'f, 'a>, Refusal> {
    let ids = Ids::new(field, asked);
    let mut found = None;
    for island in field.islands() {
        let from = island.stop.max(ids.assigned_behind);
        let stretches = field.path.stretches(from, island.reach);
        if stretches.is_empty() {
            continue;
        }
        found = wal.find_xid(&stretches, ids.xid)?.filter(|end| ids.may_be(end.lsn));
        if found.is_some() {
            break;
        }
    }
    let Some(found) = found else {
        return Err(refuse::no_transaction(field, asked, ids.first_recorded.as_ref()));
    };
    let early = |backup: &Backup| backup.stop_lsn.is_some_and(|stop| stop <= found.lsn);
    let choice = Choice::begin(field, early);
    let mut choice = choice.ok_or_else(|| refuse::too_early(field, &Point::Xid(asked)))?;
    // A record can be longer than a segment: one with a hundred thousand subtransactions.
    let near = field.path.segment_behind(found.lsn).min(choice.end);
    let last = wal.last_record(&field.path.stretches(found.lsn, near))?;
    if last.is_some_and(|last| last >= found.lsn) {
        choice.end = near;
    }
    choice.recovery = Recovery::Xid(ids.xid);
    choice.last_end = Some(found).filter(|_| inclusive);
    // Each timeline gives the same ids again.
    choice.warnings.extend(abandoned(field, choice.from, Some(found.lsn)));
    if !found.committed {
        choice.warnings.push(format!(
            "transaction {} did not commit: it was rolled back at {}",
            ids.xid,
            instant(found.at)
        ));
    }
    if asked > u64::from(u32::MAX) && ids.recorded.is_empty() {
        choice.warnings.push(format!(
            "the WAL tells transaction ids without their epoch, and nothing was recorded with the \
             backups: the first transaction {} in it is taken",
            ids.xid
        ));
    }
    Ok(choice)
}

/// What is known of the order of transaction ids.
struct Ids {
    asked: u64,
    /// As the WAL tells it.
    xid: u32,
    /// The positions at which it was recorded which id comes next, and the ids, oldest first.
    recorded: Vec<(Lsn, u64)>,
    /// The label of the first backup with which one was recorded, if the transaction is older.
    first_recorded: Option<String>,
    /// The transaction got its id behind this, so it ended behind this.
    assigned_behind: Lsn,
}

impl Ids {
    fn new(field: &Field, asked: u64) -> Ids {
        let recorded = |backup: &Backup| {
            let (timeline, stop) = (backup.timeline?, backup.stop_lsn?);
            let next = field.catalog.next_xids.get(&backup.label)?;
            field.path.holds(timeline, stop).then(|| (stop, *next, backup.label.clone()))
        };
        let mut all: Vec<_> = field.catalog.backups.iter().filter_map(recorded).collect();
        all.sort();
        let xid = asked as u32;
        let older = |next: u64| {
            if asked > u64::from(u32::MAX) { asked < next } else { distance(next, xid) < 0 }
        };
        let behind = all.iter().rev().find(|(_, next, _)| !older(*next)).map(|it| it.0);
        let first = all.first().filter(|(_, next, _)| older(*next));
        Ids {
            asked,
            xid,
            first_recorded: first.map(|it| it.2.clone()),
            recorded: all.into_iter().map(|(stop, next, _)| (stop, next)).collect(),
            assigned_behind: behind.unwrap_or_default(),
        }
    }

    /// Whether a transaction that ended here can be the one: with its epoch.
    fn may_be(&self, end: Lsn) -> bool {
        let before = self.recorded.iter().rev().find(|(stop, _)| *stop <= end);
        let Some((_, next)) = before.filter(|_| self.asked > u64::from(u32::MAX)) else {
            return true;
        };
        next.checked_add_signed(distance(*next, self.xid)) == Some(self.asked)
    }
}

/// How far an id lies behind another, as PostgreSQL compares them: half of them are older.
fn distance(next: u64, xid: u32) -> i64 {
    i64::from(xid.wrapping_sub(next as u32) as i32)
}

fn restore_point<'f, 'a>(
    field: &'f Field<'a>,
    name: &str,
    wal: &mut dyn Wal,
) -> Result<Choice<'f, 'a>, Refusal> {
    let recorded = field.catalog.restore_points.iter().filter(|it| it.name == name);
    let on_the_way = recorded.filter(|it| field.path.holds(it.timeline, it.lsn));
    let mut points: Vec<(Option<Lsn>, RestorePoint)> =
        on_the_way.map(|it| (None, it.clone())).collect();
    if points.is_empty() {
        for island in field.islands() {
            let stretches = field.path.stretches(island.start, island.reach);
            let found = wal.find_name(&stretches, name)?;
            points.extend(found.into_iter().map(|(begins, it)| (Some(begins), it)));
        }
    }
    points.sort_by_key(|(_, it)| it.lsn);
    points.dedup_by_key(|(_, it)| it.lsn);
    let Some((begins, newest)) = points.pop() else {
        return Err(refuse::no_restore_point(field, name));
    };
    // Its position is right behind its record, and a backup ends at the end of a record.
    let early = |backup: &Backup| backup.stop_lsn.is_some_and(|stop| stop < newest.lsn);
    let Some(mut choice) = Choice::begin(field, early) else {
        return Err(refuse::too_early(field, &Point::Lsn(newest.lsn)));
    };
    let from = choice.from;
    if newest.lsn > from.reach {
        return Err(refuse::position_behind(field, from, newest.lsn));
    }
    let begins = match begins {
        Some(begins) => begins,
        // That it was recorded is no proof: a crash may have taken the record itself.
        None => {
            let near = field.path.segment_start(Lsn(newest.lsn.0.saturating_sub(LONGEST_POINT)));
            let near = near.max(field.path.segment_start(from.start));
            let found = wal.find_name(&field.path.stretches(near, newest.lsn), name)?;
            let is_meant = |it: &RestorePoint| it.lsn.0 + LONGEST_POINT > newest.lsn.0;
            let found = found.into_iter().rev().find(|(_, it)| is_meant(it));
            found.ok_or_else(|| refuse::no_record_of(&newest))?.0
        }
    };
    if let Some((_, other)) = points.iter().rev().find(|(_, it)| it.lsn > from.start) {
        choice.warnings.push(format!(
            "restore point {name:?} was made at {} ({}), and before that at {} ({}): the newer one \
             is meant; --target-lsn {} --target-exclusive is the older one",
            instant(newest.at),
            newest.lsn,
            instant(other.at),
            other.lsn,
            other.lsn
        ));
    }
    let elsewhere = field.catalog.restore_points.iter().filter(|it| it.name == name);
    let elsewhere = elsewhere.filter(|it| !field.path.holds(it.timeline, it.lsn));
    choice.warnings.extend(elsewhere.map(|it| {
        format!(
            "restore point {name:?} was made on timeline {} at {} ({}), too, which does not lead to \
             timeline {}: --target-timeline {} --target-lsn {} --target-exclusive is that one",
            it.timeline,
            instant(it.at),
            it.lsn,
            field.path.timeline,
            it.timeline,
            it.lsn
        )
    }));
    choice.end = field.path.segment_behind(Lsn(newest.lsn.0 - 1)).min(from.reach);
    choice.recovery = Recovery::Lsn(begins);
    Ok(choice)
}
