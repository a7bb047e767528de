//! Says why a target cannot be reached, and what is nearest to it.

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::super::Refusal;
use super::super::catalog::{Catalog, RestorePoint, TransactionEnd};
use super::super::target::{Action, Point, no_action_at_the_end, written};
use super::field::{Candidate, Field, Skipped, flaw};
use super::path::known_timelines;
use crate::lsn::Lsn;
use crate::pgbackrest::info::Backup;

/// How many names a refusal lists.
const LISTED: usize = 10;

/// An instant in messages.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    written(at, Tz::UTC)
}

/// What was asked for.
fn named(point: &Point) -> String {
    match point {
        Point::Latest | Point::Immediate => point.kind().to_string(),
        Point::Time(at) => instant(*at),
        Point::Xid(xid) => format!("transaction {xid}"),
        Point::Name(name) => format!("restore point {name:?}"),
        Point::Lsn(at) => format!("position {at}"),
    }
}

/// How many backups that cannot be used a hint tells of.
const EXPLAINED: usize = 3;

/// The hint, with what is wrong with backups that would have been of help.
fn with_skipped(field: &Field, hint: String) -> String {
    let newest = field.skipped.iter().rev().take(EXPLAINED);
    newest.fold(hint, |hint, it| format!("{hint} Note that {}.", it.words()))
}

/// There is no backup at all, or none with which recovery could begin.
pub(super) fn nothing(catalog: &Catalog) -> Refusal {
    let Catalog { source, stanza, backups, .. } = catalog;
    if backups.is_empty() {
        return Refusal::new(
            format!("there is no backup of stanza \"{stanza}\" in {source}"),
            "Check the place, the stanza and the cluster's name.",
        );
    }
    let flawed = backups
        .iter()
        .rev()
        .filter_map(|backup| flaw(catalog, backup).map(|why| Skipped { backup, why }.words()));
    let flaws: Vec<String> = flawed.take(EXPLAINED).collect();
    Refusal::new(format!("no backup in {source} can be used"), format!("{}.", flaws.join("; ")))
}

/// A timeline whose history file is missing, and on which no backup was taken.
pub(super) fn no_history(catalog: &Catalog, timeline: u32) -> Refusal {
    let known = known_timelines(catalog);
    let others = known.iter().filter(|it| **it != timeline).map(u32::to_string);
    let others: Vec<String> = others.collect();
    let hint = match others.as_slice() {
        [] => "Put the file back into the archive if another place has it.".to_string(),
        others => format!(
            "Put the file back into the archive if another place has it, or follow another \
             timeline with --target-timeline: {}.",
            others.join(", ")
        ),
    };
    let message = format!(
        "the history file of timeline {timeline}, {timeline:08X}.history, is missing in {}: \
         PostgreSQL cannot follow it",
        catalog.source
    );
    Refusal::new(message, hint)
}

fn newest_labels(catalog: &Catalog) -> String {
    let labels = catalog.backups.iter().rev().take(LISTED).map(|it| it.label.as_str());
    let mut labels: Vec<&str> = labels.collect();
    labels.reverse();
    let more = catalog.backups.len().saturating_sub(LISTED);
    let earlier = if more > 0 { format!("{more} earlier ones, ") } else { String::new() };
    format!("{earlier}{}", labels.join(", "))
}

/// A label that no backup has.
pub(super) fn no_such_backup(catalog: &Catalog, label: &str) -> Refusal {
    if catalog.backups.is_empty() {
        return nothing(catalog);
    }
    Refusal::new(
        format!("there is no backup {label} in {}", catalog.source),
        format!("There are: {}.", newest_labels(catalog)),
    )
}

/// A backup that was asked for and cannot be used.
pub(super) fn named_skipped(skipped: &Skipped) -> Refusal {
    Refusal::new(skipped.words(), "Leave --backup out, and the best one that can be used is.")
}

/// A backup that was asked for and is on another timeline.
pub(super) fn named_elsewhere(field: &Field, backup: &Backup) -> Refusal {
    let timeline = backup.timeline.unwrap_or(1);
    Refusal::new(
        format!(
            "backup {} on timeline {timeline} does not lead to timeline {}",
            backup.label, field.path.timeline
        ),
        format!(
            "Follow its own timeline with --target-timeline {timeline}, or leave --backup out."
        ),
    )
}

/// No backup ended before the target.
pub(super) fn too_early(field: &Field, point: &Point) -> Refusal {
    if let Some(backup) = field.named {
        return Refusal::new(
            format!(
                "backup {} ended at {}, after {}",
                backup.label,
                ended(backup.stop_time, backup.stop_lsn.unwrap_or_default()),
                named(point)
            ),
            "Leave --backup out, and one is chosen that ended early enough.",
        );
    }
    let Some(first) = field.usable.first() else {
        let source = &field.catalog.source;
        let timeline = field.path.timeline;
        let others = known_timelines(field.catalog);
        let others = others.iter().filter(|it| **it != timeline).map(u32::to_string);
        let others: Vec<String> = others.collect();
        let hint = match others.as_slice() {
            _ if field.catalog.backups.is_empty() => return nothing(field.catalog),
            [] => "Take a full backup of the server while it is there.".to_string(),
            others => {
                format!("Follow another timeline with --target-timeline: {}.", others.join(", "))
            }
        };
        return Refusal::new(
            format!("no backup in {source} leads to timeline {timeline}"),
            with_skipped(field, hint),
        );
    };
    let nearest = match point {
        Point::Time(_) => {
            let whole = first.backup.stop_time + TimeDelta::seconds(1);
            format!("--target-time '{}'", instant(whole))
        }
        _ => format!("--target-lsn {}", first.stop),
    };
    Refusal::new(
        format!("{} is before the end of the oldest backup that can be used", named(point)),
        with_skipped(
            field,
            format!(
                "That is {}, which ended at {}: the earliest that can be reached is {nearest}.",
                first.backup.label,
                ended(first.backup.stop_time, first.stop)
            ),
        ),
    )
}

fn ended(at: DateTime<Utc>, stop: Lsn) -> String {
    format!("{} ({stop})", instant(at))
}

/// The latest is asked for, and WAL is missing before it.
pub(super) fn gap_before_the_latest(field: &Field, reach: Lsn, goes_on: Lsn) -> Refusal {
    let whole = match field.path.left_whole(reach) {
        Some((timeline, left)) => format!(
            " All that timeline {} began with is there: --target-timeline {timeline} \
             --target-lsn {left}.",
            field.path.timeline
        ),
        None => String::new(),
    };
    Refusal::new(
        format!("WAL is missing from {reach} to {goes_on}, and there is more behind that"),
        with_skipped(
            field,
            format!(
                "Recovery can end where it is missing: --up-to-gap says that this is meant, or in a \
                 container RECOVERY_UP_TO_GAP=true.{}\
                 {whole}",
                after_the_gap(field, reach)
            ),
        ),
    )
}

/// The first backup that can be used behind a gap, also if another one was asked for.
fn after_the_gap(field: &Field, reach: Lsn) -> String {
    let all = Field::of(field.catalog, field.path.timeline);
    let usable = all.map(|all| all.usable).unwrap_or_default();
    match usable.iter().find(|it| it.stop > reach) {
        Some(it) => format!(
            " The first backup after it is {}, which ended at {}.",
            it.backup.label,
            ended(it.backup.stop_time, it.stop)
        ),
        None => " There is no backup after it.".to_string(),
    }
}

/// A position that the WAL does not reach.
pub(super) fn position_behind(field: &Field, from: &Candidate, at: Lsn) -> Refusal {
    let reach = from.reach;
    let (message, after) = match field.path.goes_on(reach) {
        Some(goes_on) => (
            format!("position {at} cannot be reached: WAL is missing from {reach} to {goes_on}"),
            after_the_gap(field, reach),
        ),
        None => (
            format!("position {at} is after the end of the WAL that is there, {reach}"),
            String::new(),
        ),
    };
    let hint = format!("The nearest before it is --target-lsn {reach}.{after}");
    Refusal::new(message, with_skipped(field, hint))
}

/// The last transaction before an end of the WAL.
fn last_before(from: &Candidate, last: Option<TransactionEnd>) -> String {
    match last {
        Some(last) => format!("the last transaction before that is from {}", instant(last.at)),
        None => format!(
            "no transaction is there since the end of backup {}, {}",
            from.backup.label,
            instant(from.backup.stop_time)
        ),
    }
}

/// A time behind the last transaction before a gap.
pub(super) fn time_in_a_gap(
    field: &Field,
    from: &Candidate,
    at: DateTime<Utc>,
    last: Option<TransactionEnd>,
    goes_on: Lsn,
) -> Refusal {
    let reach = from.reach;
    Refusal::new(
        format!(
            "{} cannot be reached: WAL is missing from {reach} to {goes_on}, and {}",
            instant(at),
            last_before(from, last)
        ),
        with_skipped(
            field,
            format!(
                "All that is before the gap is reached by --target-lsn {reach}.{}",
                after_the_gap(field, reach)
            ),
        ),
    )
}

/// A time behind the last transaction of all.
pub(super) fn time_behind(
    field: &Field,
    from: &Candidate,
    at: DateTime<Utc>,
    last: Option<TransactionEnd>,
) -> Refusal {
    let message = match last {
        Some(last) => format!(
            "{} cannot be reached: the last transaction that is there is from {}",
            instant(at),
            instant(last.at)
        ),
        None => format!("{} cannot be reached: {}", instant(at), last_before(from, None)),
    };
    let newest = "Leave the time out for the newest state that is there";
    let hint = match last {
        Some(last) => {
            let nearest = instant(last.at);
            format!("{newest}, or give the nearest time, --target-time '{nearest}'.")
        }
        None => format!("{newest}."),
    };
    Refusal::new(message, with_skipped(field, hint))
}

/// A transaction that ends nowhere in the WAL.
pub(super) fn no_transaction(field: &Field, asked: u64, older_than: Option<&String>) -> Refusal {
    let why = match older_than {
        Some(label) => format!("it ended before backup {label} had, or never"),
        None => "it ended elsewhere, or never".to_string(),
    };
    let islands: Vec<String> =
        field.islands().iter().map(|it| format!("{} to {}", it.stop, it.reach)).collect();
    if islands.is_empty() {
        return too_early(field, &Point::Xid(asked));
    }
    Refusal::new(
        format!("transaction {asked} does not end in the WAL that is there: {why}"),
        with_skipped(
            field,
            format!(
                "The WAL reaches from {}. Give a time or a position in it.",
                islands.join(", and from ")
            ),
        ),
    )
}

/// A restore point that is nowhere on the way.
pub(super) fn no_restore_point(field: &Field, name: &str) -> Refusal {
    if field.usable.is_empty() {
        return too_early(field, &Point::Name(name.to_string()));
    }
    let recorded = &field.catalog.restore_points;
    if let Some(other) = recorded.iter().rev().find(|it| it.name == name) {
        return Refusal::new(
            format!(
                "restore point {name:?} is on timeline {} at {}, not on the way to timeline {}",
                other.timeline, other.lsn, field.path.timeline
            ),
            format!("Follow it with --target-timeline {}.", other.timeline),
        );
    }
    let mut newest: Vec<&RestorePoint> = recorded.iter().collect();
    newest.sort_by_key(|it| std::cmp::Reverse(it.at));
    let names: Vec<String> = newest
        .iter()
        .take(LISTED)
        .map(|it| format!("{:?} ({})", it.name, instant(it.at)))
        .collect();
    Refusal::new(
        format!("there is no restore point {name:?}"),
        match names.as_slice() {
            [] => "None was recorded. Give a time or a position.".to_string(),
            names => format!("The newest that were recorded: {}.", names.join(", ")),
        },
    )
}

/// A restore point was recorded, and the WAL does not hold it there.
pub(super) fn no_record_of(point: &RestorePoint) -> Refusal {
    Refusal::new(
        format!(
            "restore point {:?} was recorded at {} ({}), and the WAL there does not hold it: the \
             server lost it in a crash",
            point.name,
            instant(point.at),
            point.lsn
        ),
        "Give a time or a position instead of the name.",
    )
}

/// PostgreSQL would come to the end of the WAL, and promote.
pub(super) fn no_action(action: Action, end: Lsn) -> Refusal {
    let refusal = no_action_at_the_end(action);
    Refusal::new(
        format!(
            "nothing is there behind the target: recovery ends with the WAL, at {end}, and {}",
            refusal.message
        ),
        "Leave the action out, or give an earlier target.",
    )
}
