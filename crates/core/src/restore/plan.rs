//! Chooses the backup and the WAL for a target, or says why it cannot be reached.

mod choose;
mod field;
mod path;
mod refuse;
#[cfg(test)]
mod tests;
mod text;

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use self::choose::{Choice, choose};
use self::field::Field;
use self::path::{Path, known_timelines};
pub use self::text::{Listed, Overview, overview, steps};
use super::Refusal;
use super::catalog::{Catalog, Stretch, TransactionEnd, Wal};
use super::drill::Phases;
use super::target::{Point, Target, not_in_the_future};
use crate::lsn::Lsn;
use crate::offsite::Position;

/// What a restore would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where everything comes from.
    pub source: String,
    /// The stanza.
    pub stanza: String,
    /// The cluster's system identifier; as text, for readers that lose digits.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub version: String,
    /// The directory of the cluster's WAL in the archive.
    pub archive_id: String,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// What was asked for.
    pub target: Target,
    /// The backup that it begins with.
    pub backup: String,
    /// When that backup ended.
    pub backup_stop_time: DateTime<Utc>,
    /// All backups whose files are needed, that one included, oldest first.
    pub chain: Vec<String>,
    /// The WAL that PostgreSQL is given, in order: from the backup's start to the target and a
    /// bit more, or to the end.
    ///
    /// The segment in which a stretch begins is given from its own beginning on.
    pub wal: Vec<Stretch>,
    /// The timeline that recovery follows.
    pub timeline: u32,
    /// The history files that PostgreSQL asks for, by timeline: all that are there, since it
    /// finds by them which number its new timeline can have.
    pub histories: Vec<u32>,
    /// What PostgreSQL is told.
    pub recovery: Recovery,
    /// The last transaction that is replayed, where it is known.
    pub last_end: Option<TransactionEnd>,
    /// Bytes of backups to fetch from a remote, if they are known.
    pub fetch_bytes: Option<u64>,
    /// Bytes of the restored cluster, if they are known.
    pub restore_bytes: Option<u64>,
    /// Bytes of WAL to replay.
    pub wal_bytes: u64,
    /// How long it will take, as the last restores on this machine tell.
    pub estimate: Option<Duration>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What PostgreSQL is told about where to stop. WAL beyond the plan's last stretch is never given
/// to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// To the end of the WAL that it is given.
    End,
    /// As soon as the backup is consistent.
    Immediate,
    /// To an instant.
    Time(DateTime<Utc>),
    /// To a transaction, without an epoch.
    Xid(u32),
    /// To a position, also that of a restore point.
    Lsn(Lsn),
}

/// A stretch of the past without a gap: every moment in it can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The timeline that recovery follows.
    pub timeline: u32,
    /// The backup that its beginning is restored from.
    pub backup: String,
    /// When that backup ended.
    pub from: DateTime<Utc>,
    /// Where it ended.
    pub from_lsn: Lsn,
    /// Where the WAL ends.
    pub to_lsn: Lsn,
    /// How many backups lie in it.
    pub backups: u64,
    /// Whether WAL that lies further on, on the same timeline, cannot be reached from here.
    pub ends_in_a_gap: bool,
    /// Where the WAL goes on behind the gap that ends the window.
    #[serde(default)]
    pub gap_until: Option<Lsn>,
}

/// The newest state that a restore without a target comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// The backup that it begins with.
    pub backup: String,
    /// Where the WAL ends, and the timeline on which that is.
    pub end: Position,
}

/// How far a restore without a target comes: the end of its [`plan`]. The position that shipping
/// reports is this one.
///
/// # Errors
///
/// Why nothing can be restored. A gap is no error here: all that lies before it can be restored.
pub fn latest(catalog: &Catalog) -> Result<Latest, Refusal> {
    let newest = known_timelines(catalog).last().copied();
    let timeline = newest.ok_or_else(|| refuse::nothing(catalog))?;
    let path = Path::to(catalog, timeline)?;
    match Field::newest_on(catalog, &path) {
        Some(from) => Ok(Latest {
            backup: from.backup.label.clone(),
            end: Position { timeline: path.owner(from.reach), flushed: from.reach },
        }),
        None => Err(refuse::too_early(&Field::of(catalog, timeline)?, &Point::Latest)),
    }
}

/// The position up to which all WAL on the way to a timeline was surely at the source: a hole before
/// it is a loss, and a hole behind it is the end of the WAL.
///
/// # Errors
///
/// The way to the timeline is not known: its history file is missing.
pub fn surely_there(catalog: &Catalog, timeline: u32) -> Result<Lsn, Refusal> {
    Ok(Path::to(catalog, timeline)?.surely_there())
}

/// The windows of a catalog, oldest first.
///
/// One that leads to a timeline begins with the backup from which it is reached, also where that
/// was taken on an earlier timeline.
pub fn windows(catalog: &Catalog) -> Vec<Window> {
    let fields = known_timelines(catalog).into_iter().map(|it| Field::of(catalog, it));
    // Without its history file only backups of its own lead to a timeline.
    let fields: Vec<Field> = fields.filter_map(Result::ok).collect();
    let mut found: Vec<(Window, &Field)> = Vec::new();
    for field in &fields {
        for island in field.islands() {
            let inside = || field.usable.iter().filter(|it| it.reach == island.reach);
            let Some(first) = inside().next() else { continue };
            let window = Window {
                timeline: field.path.timeline,
                backup: first.backup.label.clone(),
                from: first.backup.stop_time,
                from_lsn: first.stop,
                to_lsn: island.reach,
                backups: inside().count() as u64,
                ends_in_a_gap: field.path.gap(island.reach).is_some(),
                gap_until: field.path.gap(island.reach),
            };
            // What lies on the way to several timelines is shown once. That is all of one that
            // was not used after it had been left.
            let within = |(inner, of): (&Window, &Field), (outer, to): (&Window, &Field)| {
                outer.from_lsn <= inner.from_lsn
                    && inner.to_lsn <= outer.to_lsn
                    && to.path.holds(of.path.owner(inner.to_lsn), inner.to_lsn)
            };
            if !found.iter().any(|(outer, to)| within((&window, field), (outer, to))) {
                found.retain(|(inner, of)| !within((inner, of), (&window, field)));
                found.push((window, field));
            }
        }
    }
    let mut windows: Vec<Window> = found.into_iter().map(|(window, _)| window).collect();
    windows.sort_by_key(|it| (it.from, it.timeline, it.from_lsn));
    windows
}

/// Plans a restore.
///
/// `rates` are the phases of the last restore on this machine, for the estimate.
///
/// # Errors
///
/// Why the target cannot be reached, with the nearest that can.
pub fn plan(
    catalog: &Catalog,
    target: &Target,
    wal: &mut dyn Wal,
    now: DateTime<Utc>,
    rates: Option<&Phases>,
) -> Result<Plan, Refusal> {
    if let Point::Time(at) = target.point {
        not_in_the_future(at, Tz::UTC, now)?;
    }
    if catalog.backups.is_empty() {
        return Err(refuse::nothing(catalog));
    }
    let field = Field::for_target(catalog, target)?;
    let choice = choose(&field, target, wal)?;
    let Choice { from, end, recovery, last_end, warnings } = choice;
    let stretches = field.path.stretches(from.start, end);
    let wal_bytes = stretches.iter().map(|it| it.to.since(it.from)).sum();
    let stored = from.chain.iter().map(|it| catalog.stored.get(&it.label).copied());
    let mut plan = Plan {
        source: catalog.source.clone(),
        stanza: catalog.stanza.clone(),
        system_identifier: catalog.system_id.to_string(),
        version: catalog.version.clone(),
        archive_id: catalog.archive_id.clone(),
        segment_size: catalog.segment_size,
        target: target.clone(),
        backup: from.backup.label.clone(),
        backup_stop_time: from.backup.stop_time,
        chain: from.chain.iter().map(|it| it.label.clone()).collect(),
        wal: stretches,
        timeline: field.path.timeline,
        histories: catalog.histories.keys().copied().collect(),
        recovery,
        last_end,
        fetch_bytes: stored.sum(),
        restore_bytes: from.backup.size,
        wal_bytes,
        estimate: None,
        warnings,
    };
    plan.estimate = rates.and_then(|rates| estimate(&plan, rates));
    Ok(plan)
}

/// How long a plan takes, if each part does as much in a second as it did in the last restore.
fn estimate(plan: &Plan, rates: &Phases) -> Option<Duration> {
    // A repository on this machine is not fetched.
    let fetch = match plan.fetch_bytes {
        None if rates.fetched_bytes == 0 => 0.0,
        bytes => seconds(bytes?, rates.fetched_bytes, rates.fetch)?,
    };
    let restore = seconds(plan.restore_bytes?, rates.restored_bytes, rates.restore)?;
    let replay = seconds(plan.wal_bytes, rates.replayed_bytes, rates.replay)?;
    Duration::try_from_secs_f64(rates.plan + fetch + restore + replay).ok()
}

/// How long so many bytes take, after some others took so many seconds.
fn seconds(bytes: u64, others: u64, took: f64) -> Option<f64> {
    match (bytes, others) {
        (0, _) => Some(0.0),
        (_, 0) => None,
        _ => Some(took * (bytes as f64 / others as f64)),
    }
}
