//! Keeps the list of restore points: lines of JSON in the state directory, a JSON array off-site.

use std::collections::BTreeMap;

use super::catalog::RestorePoint;
use crate::inventory::Inventory;
use crate::lsn::Lsn;

/// The newest ones that are looked at.
pub const MOST: usize = 10_000;

/// More than a line of the file has: a name of 63 bytes needs six for each at most.
pub const LONGEST_LINE: u64 = 600;

/// How long the file may become before the worker takes out what nobody can restore to any more.
pub const LONG_FILE: u64 = 1 << 20;

/// The longest name that PostgreSQL takes, in bytes.
pub const LONGEST_NAME: usize = 63;

/// Reads the lines of the state directory's file, the last ones. A line that was torn by a crash
/// is left out.
pub fn parse(text: &[u8]) -> Vec<RestorePoint> {
    let mut points: Vec<RestorePoint> = text
        .rsplit(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .take(MOST)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    points.reverse();
    points
}

/// A line of that file.
///
/// # Errors
///
/// None that can happen: a point is always JSON.
pub fn line(point: &RestorePoint) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(point)?;
    line.push(b'\n');
    Ok(line)
}

/// All points of both lists, each once, by when they were made; of more than [`MOST`] the newest.
pub fn merge(one: &[RestorePoint], other: &[RestorePoint]) -> Vec<RestorePoint> {
    // No two records of a timeline end at the same place.
    let all = one.iter().chain(other).map(|point| ((point.timeline, point.lsn), point));
    let mut all: Vec<RestorePoint> =
        all.collect::<BTreeMap<_, _>>().into_values().cloned().collect();
    all.sort_by_key(|point| (point.at, point.lsn));
    all.split_off(all.len().saturating_sub(MOST))
}

/// Where the oldest backup of a cluster ends: nobody can restore to what lies before. `None` if
/// that is not known.
pub fn oldest_reachable(inventory: &Inventory, system_id: u64) -> Option<Lsn> {
    let stops: Option<Vec<Lsn>> =
        inventory.backups_of(system_id).map(|backup| backup.stop_lsn).collect();
    stops?.into_iter().min()
}

/// The point of this name that can still be restored to, the newest of them.
pub fn in_use<'a>(
    points: &'a [RestorePoint],
    name: &str,
    oldest_reachable: Option<Lsn>,
) -> Option<&'a RestorePoint> {
    let reachable = |point: &&RestorePoint| oldest_reachable.is_none_or(|it| it <= point.lsn);
    points.iter().rev().filter(reachable).find(|point| point.name == name)
}

/// Why PostgreSQL, or whoever reads a log, could not do with a name.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name of a restore point must not be empty".to_string());
    }
    if name.len() > LONGEST_NAME {
        return Err(format!(
            "the name of a restore point has {} bytes, and at most {LONGEST_NAME} are allowed",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return Err("the name of a restore point must not hold control characters".to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::inventory::{Failure, Inventory};
    use crate::pgbackrest::version::MINIMUM;

    fn point(name: &str, timeline: u32, lsn: u64, second: i64) -> RestorePoint {
        let at = DateTime::from_timestamp(second, 0).expect("a time");
        RestorePoint { name: name.to_string(), timeline, lsn: Lsn(lsn), at }
    }

    fn names(points: &[RestorePoint]) -> Vec<&str> {
        points.iter().map(|point| &*point.name).collect()
    }

    #[test]
    fn reads_what_was_written_and_leaves_torn_lines_out() {
        let points = [point("a", 1, 100, 1), point("\"b\" \\ ü", 2, 200, 2)];
        let [a, b] = points.each_ref().map(|it| line(it).expect("JSON"));
        let text = [&a[..], &a[..20], b"\n\n", &b[..]].concat();
        assert_eq!(parse(&text), points);
        assert_eq!(parse(&text[10..]), points[1..], "the beginning is cut off");
        assert_eq!(parse(b""), []);
        assert_eq!(parse(&[0xff, b'\n', b'{']), []);
    }

    #[test]
    fn reads_no_more_than_the_last_ones() {
        let text: Vec<u8> = (0..MOST as u64 + 5)
            .flat_map(|number| line(&point("x", 1, number, 0)).expect("JSON"))
            .collect();
        let points = parse(&text);
        assert_eq!((points.len(), points[0].lsn), (MOST, Lsn(5)));
        let merged = merge(&points, &[point("new", 1, 1, 9), point("old", 1, 2, -9)]);
        assert_eq!((merged.len(), names(&merged[MOST - 1..])), (MOST, vec!["new"]));
    }

    #[test]
    fn a_line_is_never_longer_than_said() {
        let name = "\u{7f}".repeat(LONGEST_NAME);
        for name in [name, "\u{1}".repeat(LONGEST_NAME), "\"".repeat(LONGEST_NAME)] {
            let line = line(&point(&name, u32::MAX, u64::MAX, 1 << 40)).expect("JSON");
            assert!((line.len() as u64) < LONGEST_LINE, "{}", line.len());
        }
    }

    #[test]
    fn merges_by_place() {
        let (a, b, c) = (point("a", 1, 100, 1), point("b", 1, 200, 2), point("c", 2, 100, 3));
        assert_eq!(names(&merge(&[], &[])), [""; 0]);
        assert_eq!(names(&merge(&[c.clone(), a.clone()], &[])), ["a", "c"]);
        let merged = merge(&[a.clone(), c.clone()], &[b.clone(), a.clone(), c.clone()]);
        assert_eq!(names(&merged), ["a", "b", "c"]);
        assert_eq!(merge(&merged, &merged), merged);
    }

    #[test]
    fn a_name_is_in_use_while_it_can_be_restored_to() {
        let points = [point("a", 1, 100, 1), point("b", 1, 200, 2), point("a", 2, 300, 3)];
        let place = |name, oldest: Option<u64>| {
            in_use(&points, name, oldest.map(Lsn)).map(|point| point.lsn.0)
        };
        for (name, oldest, expected) in [
            ("a", None, Some(300)),
            ("a", Some(300), Some(300)),
            ("a", Some(301), None),
            ("b", Some(200), Some(200)),
            ("b", Some(201), None),
            ("B", None, None),
        ] {
            assert_eq!(place(name, oldest), expected, "{name} {oldest:?}");
        }
    }

    #[test]
    fn names_are_checked_as_postgres_takes_them() {
        for name in ["a", " ", "before the migration", &"x".repeat(63), "größer", "'; drop --"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for (name, words) in [
            ("", "empty"),
            (&*"x".repeat(64), "has 64 bytes, and at most 63"),
            (&*"ü".repeat(32), "has 64 bytes"),
            ("a\nb", "control"),
            ("a\u{7f}", "control"),
            ("\u{1}", "control"),
        ] {
            let refusal = check_name(name).expect_err(name);
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn nothing_is_out_of_reach_while_the_backups_are_not_known() {
        let unknown = Failure { message: "not known".to_string(), hint: String::new() };
        let now = DateTime::from_timestamp(0, 0).expect("a time");
        let inventory = Inventory {
            collected_at: now,
            listed_at: now,
            stanza: "main".to_string(),
            pgbackrest: Ok(MINIMUM),
            repository: Err(unknown),
            repository_disk: None,
            wal_disk: None,
            state_not_excluded: false,
            info_file: None,
        };
        assert_eq!(oldest_reachable(&inventory, 1), None);
    }
}
