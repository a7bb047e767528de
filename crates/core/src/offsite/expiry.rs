//! Decides which backups may be deleted from the remote: those that pgBackRest's expire would remove.
//!
//! pgBackRest expires backups in the local repository. A backup that is missing there was expired, or
//! its directory was lost. Only the retention tells the two apart, so a backup is deleted from the
//! remote only where the retention allows that for the backups that the remote itself holds.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::kind::BackupType;
use crate::pgbackrest::info::Backup;
use crate::pgbackrest::own;

/// A backup on the remote, or one that is about to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its label.
    pub label: String,
    /// What it holds.
    pub kind: BackupType,
    /// The backups whose files it needs, as far as they are known. The full backup is in its label.
    pub needs: Vec<String>,
    /// When it ended; absent if unknown.
    pub stop_time: Option<DateTime<Utc>>,
}

impl Held {
    /// The full backup of its chain.
    fn full(&self) -> &str {
        full_of(&self.label)
    }
}

fn full_of(label: &str) -> &str {
    label.split('_').next().unwrap_or(label)
}

/// How long full backups, with all that build on them, are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `repo1-retention-full-type=count`: so many of the newest.
    Count(usize),
    /// `repo1-retention-full-type=time`: all that are younger than so many days, and the newest one that
    /// is older.
    Days(u32),
}

/// What `pgbackrest expire` keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// `repo1-retention-full`; absent: full backups are kept for ever.
    pub full: Option<Full>,
    /// `repo1-retention-diff`: so many of the newest differential and full backups; absent:
    /// differential ones are kept as long as their full one.
    pub differential: Option<usize>,
}

impl Retention {
    /// The retention of our own pgBackRest configuration. 0 days are unknown: nothing expires.
    pub fn of_days(days: u32) -> Retention {
        Retention { full: (days > 0).then_some(Full::Days(days)), differential: None }
    }

    /// The retention of an operator's own pgBackRest configuration, as the commands `expire` and
    /// `backup`, which expires at its end, find it there: each may have sections of its own.
    pub fn of_configuration(config: &str, stanza: &str) -> [Retention; 2] {
        ["expire", "backup"].map(|command| Retention::of_command(config, stanza, command))
    }

    fn of_command(config: &str, stanza: &str, command: &str) -> Retention {
        let option = |name: &str| {
            let names = [format!("repo1-{name}"), format!("repo-{name}"), name.to_string()];
            names.iter().find_map(|name| own::option(config, stanza, command, name))
        };
        let number = |name: &str| option(name)?.parse::<u32>().ok().filter(|number| *number > 0);
        let is_time = option("retention-full-type").as_deref() == Some("time");
        let full = number("retention-full");
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Retention {
            full: full.map(|it| if is_time { Full::Days(it) } else { Full::Count(count(it)) }),
            differential: number("retention-diff").map(count),
        }
    }
}

/// The labels of `held` that the retention allows to go, each with all that builds on it.
///
/// Whatever is unknown is in favour of the backup: one without a stop time is as new as can be.
pub fn expirable(held: &[Held], retention: Retention, now: DateTime<Utc>) -> BTreeSet<String> {
    let mut may_go = BTreeSet::new();
    let mut fulls: Vec<&Held> = held.iter().filter(|it| it.kind == BackupType::Full).collect();
    fulls.sort_by(|one, other| other.label.cmp(&one.label));
    let oldest_kept = match retention.full {
        None => None,
        Some(Full::Count(count)) => fulls.get(count.max(1) - 1),
        Some(Full::Days(days)) => {
            let limit = now - TimeDelta::days(days.into());
            fulls.iter().find(|it| it.stop_time.is_some_and(|stop| stop <= limit))
        }
    };
    if let Some(oldest_kept) = oldest_kept {
        let older = held.iter().filter(|it| it.full() < oldest_kept.label.as_str());
        may_go.extend(older.map(|it| it.label.clone()));
    }
    if let Some(count) = retention.differential {
        // A full backup counts as a differential one, and is itself not expired by this.
        let mut bases: Vec<&Held> = held.iter().filter(|it| it.kind != BackupType::Incr).collect();
        bases.sort_by(|one, other| other.label.cmp(&one.label));
        let old = bases.into_iter().skip(count.max(1));
        for differential in old.filter(|it| it.kind == BackupType::Diff) {
            let needs_it = |it: &&Held| it.needs.contains(&differential.label);
            may_go.insert(differential.label.clone());
            may_go.extend(held.iter().filter(needs_it).map(|it| it.label.clone()));
        }
    }
    keep_what_is_needed(held, &mut may_go);
    may_go
}

/// The first archived segment that backups need, for each of the stanza's databases: `15-1` is the
/// archive of the database 1, and an upgrade of PostgreSQL adds another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededWal(BTreeMap<u32, u64>);

impl NeededWal {
    /// Of these backups. `None` where one is unknown, or does not say which WAL it needs: any segment
    /// may be needed then.
    pub fn of<'a>(kept: impl Iterator<Item = Option<&'a Backup>>) -> Option<NeededWal> {
        let mut needed = BTreeMap::new();
        for backup in kept {
            let backup = backup?;
            let start = position(backup.archive_start.as_deref()?)?;
            let first = needed.entry(backup.database_id).or_insert(start);
            *first = start.min(*first);
        }
        (!needed.is_empty()).then_some(NeededWal(needed))
    }

    /// Whether no backup needs this file of the archive `id`. A file that is no segment may not go.
    ///
    /// A database without a backup needs its WAL if it is the newest: its first backup may be on its
    /// way.
    pub fn may_go(&self, id: &str, file: &str) -> bool {
        let database = id.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
        let (Some(database), Some(segment)) = (database, position(file)) else { return false };
        match self.0.get(&database) {
            Some(first) => segment < *first,
            None => self.0.keys().any(|other| *other > database),
        }
    }
}

/// What a segment's name says without its timeline. It grows with the position in the WAL, whatever
/// size the segments have.
fn position(file: &str) -> Option<u64> {
    let name = file.get(..24).filter(|it| it.bytes().all(|it| it.is_ascii_hexdigit()))?;
    let is_whole = file[24..].chars().next().is_none_or(|next| next == '-' || next == '.');
    if is_whole { u64::from_str_radix(&name[8..], 16).ok() } else { None }
}

/// How much later than its name says a place below `superseded/` is taken to have been made: the
/// labels in it may be of another time zone, or of a clock that was slow.
const MARGIN: TimeDelta = TimeDelta::days(1);

/// Whether a place below `superseded/`, which holds what another life of the cluster has left, may be
/// deleted: when the retention would let a full backup go that ended at `newest`, the end of the
/// newest backup in the place, or the moment at which the place was made if that is later.
///
/// `proved` are the backups of this life of which nothing is missing on the remote. Only full ones that
/// are known to have ended later count. So a place never goes before there is one.
pub fn place_may_go(
    newest: DateTime<Utc>,
    proved: &[Held],
    retention: Retention,
    now: DateTime<Utc>,
) -> bool {
    let Some(end) = newest.checked_add_signed(MARGIN) else { return false };
    let label = format!("{}F", end.format("%Y%m%d-%H%M%S"));
    let place = Held {
        label: label.clone(),
        kind: BackupType::Full,
        needs: Vec::new(),
        stop_time: Some(end),
    };
    let is_later =
        |it: &&Held| it.kind == BackupType::Full && it.stop_time.is_some_and(|stop| stop > end);
    let held: Vec<Held> = proved.iter().filter(is_later).cloned().chain([place]).collect();
    expirable(&held, retention, now).contains(&label)
}

/// The moment that the name of a place below `superseded/`, or the end of a backup's label, tells.
/// What has another name is nobody's to delete.
pub fn moment_of(name: &str) -> Option<DateTime<Utc>> {
    let digits = |it: &str| it.bytes().all(|byte| byte.is_ascii_digit());
    let (day, time) = name.split_once('-')?;
    let is_moment = day.len() == 8 && time.len() == 6 && digits(day) && digits(time);
    let moment = chrono::NaiveDateTime::parse_from_str(name, "%Y%m%d-%H%M%S").ok()?;
    is_moment.then(|| moment.and_utc())
}

/// The moment of a backup's label: of the last part, without its letter.
pub fn moment_of_label(label: &str) -> Option<DateTime<Utc>> {
    let last = label.rsplit('_').next()?;
    moment_of(last.strip_suffix(['F', 'D', 'I'])?)
}

/// Takes out what a backup that stays needs.
fn keep_what_is_needed(held: &[Held], may_go: &mut BTreeSet<String>) {
    let by_label: BTreeMap<&str, &Held> = held.iter().map(|it| (it.label.as_str(), it)).collect();
    let mut open: Vec<&Held> = held.iter().filter(|it| !may_go.contains(&it.label)).collect();
    while let Some(kept) = open.pop() {
        for needed in kept.needs.iter().map(String::as_str).chain([kept.full()]) {
            if may_go.remove(needed)
                && let Some(needed) = by_label.get(needed)
            {
                open.push(needed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackupType::{Diff, Full as Fu, Incr};
    use proptest::prelude::*;

    fn at(day: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).expect("a time") + TimeDelta::days(day)
    }

    fn full_label(day: i64) -> String {
        format!("{}F", at(day).format("%Y%m%d-%H%M%S"))
    }

    fn full(day: i64) -> Held {
        let (label, stop_time) = (full_label(day), Some(at(day)));
        Held { label, kind: Fu, needs: Vec::new(), stop_time }
    }

    fn later(of: i64, day: i64, kind: BackupType, needs: &[&Held]) -> Held {
        let end = if kind == Diff { 'D' } else { 'I' };
        let label = format!("{}_{}{end}", full_label(of), at(day).format("%Y%m%d-%H%M%S"));
        let needs = needs.iter().map(|it| it.label.clone()).collect();
        Held { label, kind, needs, stop_time: Some(at(day)) }
    }

    fn labels(held: &[&Held]) -> BTreeSet<String> {
        held.iter().map(|it| it.label.clone()).collect()
    }

    #[test]
    fn full_backups_go_by_count_or_by_age_with_all_that_builds_on_them() {
        let (one, two, three) = (full(1), full(2), full(3));
        let build = later(1, 4, Incr, &[&one]);
        let held = [one.clone(), two.clone(), three, build.clone()];
        let by = |full: Full, now: i64| {
            expirable(&held, Retention { full: Some(full), differential: None }, at(now))
        };
        assert_eq!(by(Full::Count(3), 100), labels(&[]));
        assert_eq!(by(Full::Count(2), 0), labels(&[&one, &build]));
        assert_eq!(by(Full::Count(1), 0), labels(&[&one, &build, &two]));
        assert_eq!(by(Full::Count(0), 0), by(Full::Count(1), 0));
        // The newest one that is old enough stays: what is younger does not reach back so far.
        assert_eq!(by(Full::Days(1), 2), labels(&[]));
        assert_eq!(by(Full::Days(1), 3), labels(&[&one, &build]));
        assert_eq!(by(Full::Days(1), 1000), labels(&[&one, &build, &two]));
        assert_eq!(expirable(&held, Retention::default(), at(1000)), labels(&[]));
        assert_eq!(expirable(&held, Retention::of_days(0), at(1000)), labels(&[]));
    }

    #[test]
    fn differential_backups_go_by_count_with_what_builds_on_them() {
        let one = full(1);
        let (first, second) = (later(1, 2, Diff, &[&one]), later(1, 3, Diff, &[&one]));
        let build = later(1, 4, Incr, &[&one, &first]);
        let held = [one, first.clone(), second, build.clone(), full(5)];
        let keep = |count| {
            let retention = Retention { full: None, differential: Some(count) };
            expirable(&held, retention, at(1000))
        };
        assert_eq!(keep(4), labels(&[]));
        assert_eq!(keep(3), labels(&[]));
        assert_eq!(keep(2), labels(&[&first, &build]));
    }

    #[test]
    fn reads_an_operators_retention() {
        let both = |text: &str| Retention::of_configuration(text, "main");
        let of = |text: &str| both(text)[0];
        assert_eq!(of("[global]\nrepo1-path=/r\n"), Retention::default());
        let expected = Retention { full: Some(Full::Count(2)), differential: Some(3) };
        assert_eq!(of("[global]\nrepo1-retention-full=2\nrepo1-retention-diff=3\n"), expected);
        let expected = Retention { full: Some(Full::Days(14)), differential: None };
        let text = "[global]\nrepo1-retention-full-type=time\nrepo1-retention-full=7\n\
                    [main]\nrepo1-retention-full=14\n[other]\nrepo1-retention-full=1\n";
        assert_eq!(of(text), expected);
        assert_eq!(of("[global]\nrepo1-retention-full=many\n"), Retention::default());
        let text = "[global]\nrepo1-retention-full=2\n[global:expire]\nrepo1-retention-full=1\n";
        let expected = [1, 2].map(|count| Some(Full::Count(count)));
        assert_eq!(both(text).map(|it| it.full), expected);
    }

    #[test]
    fn a_place_goes_as_a_full_backup_of_its_time_would() {
        let may_go = |proved: &[Held], full: Option<Full>, now: i64| {
            place_may_go(at(1), proved, Retention { full, differential: Some(1) }, at(now))
        };
        let (two, three, four, old) = (full(2), full(3), full(4), full(0));
        let all = [old, two, three.clone(), four];
        assert!(!may_go(&[], Some(Full::Count(1)), 1000));
        // Of the day after it nothing counts.
        assert!(!may_go(&all[..2], Some(Full::Count(1)), 1000));
        assert!(may_go(&all[..3], Some(Full::Count(1)), 1000));
        assert!(!may_go(&all[..3], Some(Full::Count(2)), 1000));
        assert!(may_go(&all, Some(Full::Count(2)), 1000));
        assert!(!may_go(&all, Some(Full::Days(7)), 9));
        assert!(may_go(&all, Some(Full::Days(7)), 10));
        // Kept for ever; of a backup whose end is not known, nothing is known.
        assert!(!may_go(&all, None, 1000));
        let unknown = Held { stop_time: None, ..three.clone() };
        assert!(!may_go(&[unknown], Some(Full::Count(1)), 1000));
        let build = later(3, 4, Incr, &[&three]);
        assert!(!may_go(&[build], Some(Full::Count(1)), 1000));
    }

    #[test]
    fn only_moments_are_names_of_places() {
        let moment = moment_of("20261201-052000").expect("a moment");
        assert_eq!(moment.to_rfc3339(), "2026-12-01T05:20:00+00:00");
        for other in ["", "keep", "20261201-052000-keep", "20261301-052000", "+0261201-052000"] {
            assert_eq!(moment_of(other), None, "{other}");
        }
        assert_eq!(moment_of_label("20261101-000000F_20261201-052000I"), Some(moment));
        assert_eq!(moment_of_label("20261201-052000F"), Some(moment));
        assert_eq!(moment_of_label("20261201-052000"), None);
    }

    /// pgBackRest's own procedure, step by step on a list of labels, as its expire.c has it.
    fn as_pgbackrest(held: &[Held], retention: Retention, now: DateTime<Utc>) -> BTreeSet<String> {
        let mut current: Vec<Held> = held.to_vec();
        current.sort_by(|one, other| one.label.cmp(&other.label));
        let fulls = |current: &[Held]| -> Vec<Held> {
            current.iter().filter(|it| it.kind == Fu).cloned().collect()
        };
        match retention.full {
            Some(Full::Days(days)) => {
                let limit = now - TimeDelta::days(days.into());
                let last = fulls(&current)
                    .into_iter()
                    .rev()
                    .find(|it| it.stop_time.is_some_and(|stop| stop <= limit));
                if let Some(last) = last {
                    current.retain(|it| it.label >= last.label);
                }
            }
            Some(Full::Count(count)) => {
                let found = fulls(&current);
                for gone in &found[..found.len().saturating_sub(count)] {
                    current.retain(|it| !it.label.starts_with(&gone.label));
                }
            }
            None => {}
        }
        if let Some(count) = retention.differential {
            let bases: Vec<Held> = current.iter().filter(|it| it.kind != Incr).cloned().collect();
            for gone in &bases[..bases.len().saturating_sub(count)] {
                if gone.kind == Diff {
                    current.retain(|it| it.label != gone.label && !it.needs.contains(&gone.label));
                }
            }
        }
        let left: BTreeSet<String> = current.into_iter().map(|it| it.label).collect();
        held.iter().map(|it| it.label.clone()).filter(|label| !left.contains(label)).collect()
    }

    fn histories() -> impl Strategy<Value = Vec<Held>> {
        prop::collection::vec(0..4_u8, 1..24).prop_map(|kinds| {
            let mut held: Vec<Held> = vec![full(0)];
            let (mut of, mut day) = (0, 0);
            for kind in kinds {
                day += 1;
                match kind {
                    0 => {
                        of = day;
                        held.push(full(day));
                    }
                    1 => {
                        let base = full(of);
                        held.push(later(of, day, Diff, &[&base]));
                    }
                    _ => {
                        let last = held.last().expect("there is one").clone();
                        let mut it = later(of, day, Incr, &[&last]);
                        it.needs.extend(last.needs);
                        held.push(it);
                    }
                }
            }
            held
        })
    }

    fn retentions() -> impl Strategy<Value = Retention> {
        let full = prop_oneof![
            Just(None),
            (1..5_usize).prop_map(|it| Some(Full::Count(it))),
            (1..20_u32).prop_map(|it| Some(Full::Days(it))),
        ];
        (full, prop::option::of(1..5_usize))
            .prop_map(|(full, differential)| Retention { full, differential })
    }

    /// A backup of a database of the stanza that needs WAL from a segment on.
    fn needing(database: u32, start: Option<&str>) -> Backup {
        let start = start.map_or("null".to_string(), |it| format!("\"{it}\""));
        let text = format!(
            r#"[{{"name":"main","status":{{"code":0,"message":"ok"}},"db":[],"archive":[],"backup":[{{
            "label":"20261122-010203F","type":"full","timestamp":{{"start":1,"stop":2}},
            "archive":{{"start":{start},"stop":{start}}},"database":{{"id":{database},"repo-key":1}},
            "info":{{"size":1,"delta":1,"repository":{{"delta":1}}}}}}]}}]"#
        );
        let info = crate::pgbackrest::info::parse_info(&text, "main").expect("it is read");
        info.backups.into_iter().next().expect("one")
    }

    #[test]
    fn wal_of_a_former_database_goes_with_its_last_backup() {
        const HASH: &str = "0123456789012345678901234567890123456789.zst";
        let old = needing(1, Some("000000030000000100000005"));
        let new = needing(2, Some("000000010000000100000009"));
        let file = |name: &str| format!("{name}-{HASH}");
        let both = NeededWal::of([Some(&old), Some(&new)].into_iter()).expect("known");
        for (id, segment, may_go) in [
            ("15-1", "000000020000000100000004", true),
            ("15-1", "000000030000000100000005", false),
            ("15-1", "000000010000000100000005", false),
            ("15-1", "000000030000000200000000", false),
            ("17-2", "000000010000000100000008", true),
            ("17-2", "000000010000000100000009", false),
            // The next one has no backup yet.
            ("18-3", "000000010000000000000001", false),
            ("nonsense", "000000010000000000000001", false),
        ] {
            assert_eq!(both.may_go(id, &file(segment)), may_go, "{id} {segment}");
        }
        let newest = NeededWal::of([Some(&new)].into_iter()).expect("known");
        assert!(newest.may_go("15-1", &file("000000030000000200000000")));
        let label = "000000030000000200000000.00000028.backup";
        assert!(newest.may_go("15-1", label), "it goes with its segment");
        for name in ["00000003.history", "0000000300000002000000001-x", "archive.info", ""] {
            assert!(!newest.may_go("15-1", name), "{name}");
        }
        let oldest = NeededWal::of([Some(&old)].into_iter()).expect("known");
        assert!(!oldest.may_go("17-2", &file("000000010000000100000009")));
        // Where something is unknown, everything may be needed.
        let unknown = needing(2, None);
        assert_eq!(NeededWal::of([Some(&old), None].into_iter()), None);
        assert_eq!(NeededWal::of([Some(&old), Some(&unknown)].into_iter()), None);
        assert_eq!(NeededWal::of(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn all_that_pgbackrest_expires_may_go(
            held in histories(), retention in retentions(), now in 0..40_i64, later in 0..9_i64,
        ) {
            let expired = as_pgbackrest(&held, retention, at(now));
            // It is asked later than pgBackRest was.
            let may_go = expirable(&held, retention, at(now + later));
            prop_assert!(expired.is_subset(&may_go), "{expired:?} {may_go:?}");
            prop_assert_eq!(expirable(&held, retention, at(now)), expired);
        }

        #[test]
        fn a_place_goes_only_after_a_later_full_backup_and_no_earlier_than_a_backup_would(
            held in histories(), retention in retentions(), made in 0..30_i64, now in 0..60_i64,
        ) {
            let may_go = place_may_go(at(made), &held, retention, at(now));
            let ends_later = |it: &Held| it.kind == Fu && it.stop_time > Some(at(made));
            prop_assert!(!may_go || held.iter().any(ends_later));
            if let Some(Full::Days(days)) = retention.full {
                prop_assert!(!may_go || at(made) + TimeDelta::days(days.into()) <= at(now));
            }
            // A full backup of this life that ended with it would not be kept longer.
            let mut with = held.clone();
            with.retain(|it| it.kind != Fu || it.stop_time != Some(at(made)));
            with.push(full(made));
            let goes = expirable(&with, Retention { differential: None, ..retention }, at(now));
            prop_assert!(!may_go || goes.contains(&full_label(made)));
        }

        #[test]
        fn what_stays_is_whole_and_the_newest_stays(
            held in histories(), retention in retentions(), now in 0..40_i64,
            lost in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ) {
            let mut held = held;
            for index in lost {
                let at = index.index(held.len());
                if held.len() > 1 {
                    // A backup of which nothing is known but its label.
                    held[at].stop_time = None;
                }
            }
            let may_go = expirable(&held, retention, at(now));
            let stays: Vec<&Held> =
                held.iter().filter(|it| !may_go.contains(&it.label)).collect();
            for it in &stays {
                for needed in &it.needs {
                    prop_assert!(!may_go.contains(needed), "{} needs {needed}", it.label);
                }
                prop_assert!(!may_go.contains(it.full()));
            }
            let newest = held.iter().filter(|it| it.kind == Fu).map(|it| &it.label).max();
            prop_assert!(!may_go.contains(newest.expect("there is one")));
        }
    }
}
