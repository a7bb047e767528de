//! Finds the backups that a recovery can begin with.

use std::collections::BTreeMap;

use super::super::Refusal;
use super::super::catalog::Catalog;
use super::super::target::{Point, Target, Timeline};
use super::path::{Path, known_timelines};
use super::refuse::{self, instant};
use crate::lsn::Lsn;
use crate::pgbackrest::info::Backup;

/// A backup that recovery can begin with.
#[derive(Debug, Clone)]
pub(super) struct Candidate<'a> {
    pub(super) backup: &'a Backup,
    /// Where recovery begins.
    pub(super) start: Lsn,
    /// Before this the restored cluster is not consistent.
    pub(super) stop: Lsn,
    /// All backups whose files are needed, oldest first.
    pub(super) chain: Vec<&'a Backup>,
    /// How far recovery comes.
    pub(super) reach: Lsn,
}

/// A backup that it cannot begin with.
#[derive(Debug, Clone)]
pub(super) struct Skipped<'a> {
    pub(super) backup: &'a Backup,
    pub(super) why: String,
}

/// Backups one after the other from which recovery ends at the same place.
pub(super) struct Island {
    /// Where the oldest of them began.
    pub(super) start: Lsn,
    /// Where it ended.
    pub(super) stop: Lsn,
    /// Where the WAL ends.
    pub(super) reach: Lsn,
}

/// What a restore to a timeline can choose from.
pub(super) struct Field<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) path: Path<'a>,
    /// On the way and in order, oldest first.
    pub(super) usable: Vec<Candidate<'a>>,
    /// On the way, and not in order.
    pub(super) skipped: Vec<Skipped<'a>>,
    /// The one that was asked for by its label.
    pub(super) named: Option<&'a Backup>,
}

impl<'a> Field<'a> {
    /// All backups on the way to a timeline.
    pub(super) fn of(catalog: &'a Catalog, timeline: u32) -> Result<Field<'a>, Refusal> {
        let path = Path::to(catalog, timeline)?;
        let labels = by_label(catalog);
        let (mut usable, mut skipped) = (Vec::new(), Vec::new());
        for backup in &catalog.backups {
            match candidate(catalog, &labels, &path, backup) {
                Ok(Some(found)) => usable.push(found),
                Ok(None) => {}
                Err(why) => skipped.push(Skipped { backup, why }),
            }
        }
        usable.sort_by_key(|it| (it.stop, it.backup.stop_time));
        if path.lacks_history() && usable.is_empty() && !catalog.backups.is_empty() {
            return Err(refuse::no_history(catalog, timeline));
        }
        Ok(Field { catalog, path, usable, skipped, named: None })
    }

    /// The newest backup on a way that can be used, and how far recovery comes from it. It looks at
    /// no older one.
    pub(super) fn newest_on(catalog: &'a Catalog, path: &Path) -> Option<Candidate<'a>> {
        let labels = by_label(catalog);
        let mut backups: Vec<&Backup> = catalog.backups.iter().collect();
        backups.sort_by_key(|it| std::cmp::Reverse((it.stop_lsn, it.stop_time)));
        let usable = |backup| candidate(catalog, &labels, path, backup).ok().flatten();
        backups.into_iter().find_map(usable)
    }

    /// What the target lets choose.
    pub(super) fn for_target(catalog: &'a Catalog, target: &Target) -> Result<Field<'a>, Refusal> {
        let named = match &target.backup {
            Some(label) => Some(find(catalog, label)?),
            None => None,
        };
        let mut field = match target.timeline {
            Timeline::Number(number) => Field::of(catalog, number)?,
            Timeline::Latest => {
                let newest = known_timelines(catalog).last().copied();
                Field::of(catalog, newest.ok_or_else(|| refuse::nothing(catalog))?)?
            }
            Timeline::Current => match named {
                Some(backup) => Field::of(catalog, backup.timeline.unwrap_or(1))?,
                None => Field::current(catalog, &target.point)?,
            },
        };
        let Some(named) = named else { return Ok(field) };
        let label = &named.label;
        if let Some(skipped) = field.skipped.iter().find(|it| it.backup.label == *label) {
            return Err(refuse::named_skipped(skipped));
        }
        field.usable.retain(|it| it.backup.label == *label);
        field.skipped.clear();
        field.named = Some(named);
        if field.usable.is_empty() {
            return Err(refuse::named_elsewhere(&field, named));
        }
        Ok(field)
    }

    /// The timeline of the newest backup that a recovery to the point can begin with; without
    /// one, that of the newest backup of all.
    fn current(catalog: &'a Catalog, point: &Point) -> Result<Field<'a>, Refusal> {
        let mut backups: Vec<&Backup> = catalog.backups.iter().collect();
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_time));
        for backup in backups.iter().filter(|it| ends_before(it, point)) {
            // One whose timeline has lost its history file is not the one.
            let Some(Ok(field)) = backup.timeline.map(|it| Field::of(catalog, it)) else {
                continue;
            };
            if field.usable.iter().any(|it| it.backup.label == backup.label) {
                return Ok(field);
            }
        }
        let newest = backups.iter().find_map(|it| it.timeline);
        Field::of(catalog, newest.ok_or_else(|| refuse::nothing(catalog))?)
    }

    /// The newest backup that ended early enough.
    pub(super) fn newest(&self, early: impl Fn(&Backup) -> bool) -> Option<&Candidate<'a>> {
        self.usable.iter().rev().find(|it| early(it.backup))
    }

    /// Warns of the backups that would have been better than the chosen one.
    pub(super) fn passed_over(
        &self,
        chosen: &Candidate,
        early: impl Fn(&Backup) -> bool,
    ) -> Vec<String> {
        let better =
            |it: &&Skipped| it.backup.stop_time >= chosen.backup.stop_time && early(it.backup);
        self.skipped.iter().filter(better).map(Skipped::words).collect()
    }

    /// The unbroken parts of the way, oldest first.
    pub(super) fn islands(&self) -> Vec<Island> {
        let mut islands: Vec<Island> = Vec::new();
        for it in &self.usable {
            if islands.last().is_none_or(|last| last.reach < it.reach) {
                islands.push(Island { start: it.start, stop: it.stop, reach: it.reach });
            }
        }
        islands
    }
}

impl Skipped<'_> {
    /// What to say of it.
    pub(super) fn words(&self) -> String {
        let Backup { label, stop_time, .. } = self.backup;
        format!(
            "backup {label}, which ended at {}, cannot be used: {}",
            instant(*stop_time),
            self.why
        )
    }
}

/// Whether a backup ended before a point, where that can be told without the WAL.
pub(super) fn ends_before(backup: &Backup, point: &Point) -> bool {
    match point {
        Point::Lsn(at) => backup.stop_lsn.is_some_and(|stop| stop <= *at),
        // pgBackRest writes whole seconds: what was committed in the last one may be in it.
        Point::Time(at) => backup.stop_time.timestamp() < at.timestamp(),
        _ => true,
    }
}

/// Why a backup without positions is of no use.
const OFFLINE: &str = "it was taken of a stopped server, without WAL";

/// What is wrong with a backup, whatever it is to lead to.
pub(super) fn flaw(catalog: &Catalog, backup: &Backup) -> Option<String> {
    if backup.start_lsn.is_none() || backup.stop_lsn.is_none() || backup.timeline.is_none() {
        return Some(OFFLINE.to_string());
    }
    chain(catalog, &by_label(catalog), backup).err()
}

/// The backups by their labels.
type Labels<'a> = BTreeMap<&'a str, &'a Backup>;

fn by_label(catalog: &Catalog) -> Labels<'_> {
    catalog.backups.iter().rev().map(|it| (it.label.as_str(), it)).collect()
}

/// A backup as a beginning on the way; `None` if it is not on it, and otherwise why it cannot be
/// used.
fn candidate<'a>(
    catalog: &'a Catalog,
    labels: &Labels<'a>,
    path: &Path,
    backup: &'a Backup,
) -> Result<Option<Candidate<'a>>, String> {
    let place = backup.timeline.zip(backup.start_lsn).zip(backup.stop_lsn);
    let Some(((timeline, start), stop)) = place else {
        return Err(OFFLINE.to_string());
    };
    if !path.holds(timeline, stop) {
        return Ok(None);
    }
    let chain = chain(catalog, labels, backup)?;
    let reach = path.reach(timeline, start);
    if reach < stop {
        return Err(format!(
            "the WAL that was written while it was taken is there only up to {reach}; it needs \
             that from {start} to {stop}"
        ));
    }
    Ok(Some(Candidate { backup, start, stop, chain, reach }))
}

/// All backups whose files one needs, oldest first, or what is wrong with one of them.
fn chain<'a>(
    catalog: &'a Catalog,
    labels: &Labels<'a>,
    backup: &'a Backup,
) -> Result<Vec<&'a Backup>, String> {
    if let Some(why) = catalog.unusable.get(&backup.label) {
        return Err(why.clone());
    }
    let mut chain = vec![backup];
    for label in backup.references.iter().filter(|label| **label != backup.label) {
        if let Some(why) = catalog.unusable.get(label) {
            return Err(format!("it needs backup {label}: {why}"));
        }
        let Some(needed) = labels.get(label.as_str()).copied() else {
            return Err(format!("it needs backup {label}, which is not there"));
        };
        chain.push(needed);
    }
    chain.sort_by(|a, b| (a.stop_time, &a.label).cmp(&(b.stop_time, &b.label)));
    chain.dedup_by(|a, b| a.label == b.label);
    Ok(chain)
}

fn find<'a>(catalog: &'a Catalog, label: &str) -> Result<&'a Backup, Refusal> {
    let found = catalog.backups.iter().find(|it| it.label == label);
    found.ok_or_else(|| refuse::no_such_backup(catalog, label))
}
