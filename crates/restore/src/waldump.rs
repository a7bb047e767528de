//! Asks the WAL itself, with `pg_waldump`: when the last transaction ended, where one did.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::restore::Refusal;
use nrt_core::restore::catalog::{RestorePoint, Stretch, TransactionEnd, Wal};
use nrt_core::restore::plan::{Plan, Recovery};
use nrt_process::{allowed_in_zone, capture};

use super::place::unusable;
use super::source::{Source, side_by_side};
use super::wal::{Shelf, Store};

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(3600);
/// More than 16 MB of the smallest records, in words.
const LONGEST_ANSWER: usize = 1 << 30;
/// How much is looked at in one step, from the end of the WAL backwards: little at first.
const WINDOWS: [u64; 3] = [1 << 20, 16 << 20, 64 << 20];
/// A record that begins in a window may end so far behind it.
const BEHIND: u64 = 1 << 20;
/// Bytes that are looked at in one step forwards.
const FORWARDS: u64 = 128 << 20;

/// The WAL of a place, as `pg_waldump` reads it.
#[derive(Debug)]
pub(crate) struct Dump {
    /// Where it is.
    pub(crate) source: Arc<Source>,
    /// What there is; its stretches do not count.
    pub(crate) shelf: Shelf,
    /// The program.
    pub(crate) program: PathBuf,
    /// Where segments are kept meanwhile.
    pub(crate) directory: PathBuf,
}

/// A line of `pg_waldump`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    xid: u32,
    lsn: Lsn,
    length: u64,
    description: String,
}

impl Dump {
    fn records(&self, stretch: Stretch, words: &[String]) -> Result<Vec<Record>, Refusal> {
        let shelf = Shelf { stretches: vec![stretch], ..self.shelf.clone() };
        fs::create_dir_all(&self.directory).map_err(|it| unusable(&self.directory, &it))?;
        let store =
            Store { source: &self.source, shelf: &shelf, directory: self.directory.clone() };
        let names: Vec<String> =
            shelf.segments().iter().map(|it| it.name(shelf.segment_size)).collect();
        for got in side_by_side(&names, |name| store.get(name)) {
            got.map_err(|trouble| trouble.refusal)?;
        }
        let mut args: Vec<OsString> = vec!["--path".into(), self.directory.clone().into()];
        args.push(format!("--timeline={}", stretch.timeline).into());
        args.push(format!("--start={}", stretch.from).into());
        args.push(format!("--end={}", stretch.to).into());
        args.extend(words.iter().map(OsString::from));
        let environment = allowed_in_zone(std::env::vars_os(), "UTC");
        let captured = capture(&self.program, &args, &environment, LIMIT, LONGEST_ANSWER);
        // What is needed again is fetched again: a look goes over much WAL, and keeps little.
        for name in names {
            let _ = fs::remove_file(self.directory.join(name));
        }
        let captured = captured.map_err(|error| {
            Refusal::new(
                error.to_string(),
                "Install this PostgreSQL version's server, which has pg_waldump, or name its \
                 directory with --bindir.",
            )
        })?;
        // At the end of the WAL it says that there is no further record, and fails.
        let ends = ["error in WAL record", "could not find a valid record"];
        let is_end = ends.iter().any(|words| captured.stderr.contains(words));
        if captured.exit != Some(0) && !is_end {
            let words = captured.stderr.lines().last().unwrap_or("no reason given").to_string();
            return Err(Refusal::new(
                format!("WAL cannot be read from {}: {words}", stretch.from),
                "See that pg_waldump is of the same major version as the cluster.",
            ));
        }
        Ok(String::from_utf8_lossy(&captured.stdout).lines().filter_map(parse).collect())
    }

    /// Whether there is a record that begins in a stretch.
    pub(crate) fn has_record(&self, stretch: Stretch) -> Result<bool, Refusal> {
        Ok(!self.records(stretch, &["--limit=1".to_string()])?.is_empty())
    }

    /// Where a look may begin: behind the switch to the next segment nothing is to be found, and
    /// `pg_waldump` looks no further there.
    fn segment_start(&self, at: Lsn) -> Lsn {
        Lsn(at.0 - at.0 % self.shelf.segment_size)
    }

    /// Looks from the end backwards, until `find` is satisfied.
    fn backwards<T>(
        &self,
        stretches: &[Stretch],
        words: &[String],
        find: impl Fn(u32, &[Record]) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let mut windows = WINDOWS.iter().copied().chain(std::iter::repeat(WINDOWS[2]));
        for stretch in stretches.iter().rev() {
            let mut end = stretch.to;
            while end > stretch.from {
                let window = windows.next().unwrap_or(WINDOWS[2]);
                let from = self.segment_start(Lsn(end.0.saturating_sub(window)));
                let from = from.max(stretch.from);
                let to = Lsn(end.0 + BEHIND).min(stretch.to);
                let part = Stretch { timeline: stretch.timeline, from, to };
                if let Some(found) = find(stretch.timeline, &self.records(part, words)?) {
                    return Ok(Some(found));
                }
                end = from;
            }
        }
        Ok(None)
    }

    /// Looks at all of it, from the beginning, until `find` is satisfied.
    fn forwards(
        &self,
        stretches: &[Stretch],
        words: &[String],
        mut find: impl FnMut(u32, &[Record]) -> bool,
    ) -> Result<(), Refusal> {
        for stretch in stretches {
            let mut from = stretch.from;
            while from < stretch.to {
                let next = self.segment_start(Lsn(from.0 + FORWARDS.max(self.shelf.segment_size)));
                let next = next.min(stretch.to);
                let to = Lsn(next.0 + BEHIND).min(stretch.to);
                let part = Stretch { timeline: stretch.timeline, from, to };
                if find(stretch.timeline, &self.records(part, words)?) {
                    return Ok(());
                }
                from = next;
            }
        }
        Ok(())
    }
}

impl Dump {
    /// Where the first tablespace lies that a plan's WAL creates, up to where recovery stops.
    pub(crate) fn created_tablespace(&self, plan: &Plan) -> Result<Option<PathBuf>, Refusal> {
        let words = ["--rmgr=Transaction".to_string(), "--rmgr=Tablespace".to_string()];
        let mut found = None;
        self.forwards(&plan.wal, &words, |timeline, records| {
            for record in records {
                let end = end_of(record, timeline);
                let is_beyond = match &plan.recovery {
                    Recovery::Lsn(at) => record.lsn > *at,
                    Recovery::Time(at) => end.is_some_and(|it| it.at > *at),
                    Recovery::Xid(xid) => end.is_some_and(|it| it.xid == *xid),
                    Recovery::End | Recovery::Immediate => false,
                };
                // One of `allow_in_place_tablespaces` is within the data directory.
                found = created(&record.description).filter(|it| it.is_absolute());
                if is_beyond || found.is_some() {
                    found = found.take().filter(|_| !is_beyond);
                    return true;
                }
            }
            false
        })?;
        Ok(found)
    }
}

impl Wal for Dump {
    fn last_end(&mut self, stretches: &[Stretch]) -> Result<Option<TransactionEnd>, Refusal> {
        self.backwards(stretches, &["--rmgr=Transaction".to_string()], |timeline, records| {
            records.iter().rev().find_map(|record| end_of(record, timeline))
        })
    }

    fn last_record(&mut self, stretches: &[Stretch]) -> Result<Option<Lsn>, Refusal> {
        self.backwards(stretches, &[], |_, records| records.last().map(|record| record.lsn))
    }

    fn find_xid(
        &mut self,
        stretches: &[Stretch],
        xid: u32,
    ) -> Result<Option<TransactionEnd>, Refusal> {
        let mut found = None;
        // Not by --xid: a prepared transaction is ended by another record's.
        self.forwards(stretches, &["--rmgr=Transaction".to_string()], |timeline, records| {
            let ends = records.iter().filter_map(|record| end_of(record, timeline));
            found = found.or_else(|| ends.into_iter().find(|end| end.xid == xid));
            found.is_some()
        })?;
        Ok(found)
    }

    fn find_name(
        &mut self,
        stretches: &[Stretch],
        name: &str,
    ) -> Result<Vec<(Lsn, RestorePoint)>, Refusal> {
        let mut found: Vec<(Lsn, RestorePoint)> = Vec::new();
        let words = ["--rmgr=Transaction".to_string(), "--rmgr=XLOG".to_string()];
        let wanted = format!("RESTORE_POINT {name}");
        let mut before = DateTime::UNIX_EPOCH;
        self.forwards(stretches, &words, |timeline, records| {
            for record in records {
                if let Some(end) = end_of(record, timeline) {
                    before = end.at;
                } else if record.description == wanted {
                    let lsn = Lsn(record.lsn.0 + record.length);
                    if !found.iter().any(|(begins, _)| *begins == record.lsn) {
                        // The record's own time is not shown: the last one before it is close.
                        let name = name.to_string();
                        found.push((record.lsn, RestorePoint { name, timeline, lsn, at: before }));
                    }
                }
            }
            false
        })?;
        Ok(found)
    }
}

fn parse(line: &str) -> Option<Record> {
    let field = |name: &str| {
        let rest = line.split_once(name)?.1.trim_start();
        Some(rest.split(|c: char| c == ',' || c.is_whitespace()).next().unwrap_or_default())
    };
    let lengths = line.split_once("len (rec/tot):")?.1.split_once(',')?.0;
    Some(Record {
        xid: field("tx:")?.parse().ok()?,
        lsn: field("lsn:")?.parse().ok()?,
        length: lengths.split_once('/')?.1.trim().parse().ok()?,
        description: line.split_once("desc: ")?.1.trim().to_string(),
    })
}

/// The end of a transaction that a record tells of.
fn end_of(record: &Record, timeline: u32) -> Option<TransactionEnd> {
    let (word, rest) = record.description.split_once(' ')?;
    let (committed, prepared) = match word {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    let xid = match rest.split_once("xid ").filter(|_| prepared) {
        Some((_, rest)) => rest.split(':').next()?.trim().parse().ok()?,
        None => record.xid,
    };
    let start = rest.char_indices().find(|(place, _)| time_at(&rest[*place..]).is_some())?.0;
    Some(TransactionEnd { at: time_at(&rest[start..])?, lsn: record.lsn, timeline, xid, committed })
}

/// Where a tablespace was created, if a record tells of that.
fn created(description: &str) -> Option<PathBuf> {
    let (_, path) = description.strip_prefix("CREATE ")?.split_once(' ')?;
    Some(PathBuf::from(path.strip_prefix('"')?.strip_suffix('"')?))
}

/// The time with which a text begins: `2026-11-22 14:30:00.123456 UTC`.
fn time_at(text: &str) -> Option<DateTime<Utc>> {
    let (time, zone) = (text.get(..26)?, text.get(26..30)?);
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.6f").ok()?;
    (zone == " UTC").then(|| time.and_utc())
}

/// The positions at which a directory's segments, as PostgreSQL wrote them, end: for the data
/// directory that is replaced.
pub(crate) fn written(pg_wal: &Path, segment_size: u64) -> Vec<Segment> {
    let entries = fs::read_dir(pg_wal).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut found: Vec<Segment> =
        names.filter_map(|name| Segment::parse(&name, segment_size)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pg_waldump_prints() {
        let line = "rmgr: Transaction len (rec/tot):     34/    46, tx:        735, lsn: \
                    0/01953B28, prev 0/01953AF0, desc: COMMIT 2026-11-22 14:30:00.123456 UTC; \
                    subxacts: 4";
        let record = parse(line).expect("a record");
        assert_eq!((record.xid, record.lsn, record.length), (735, Lsn(0x195_3B28), 46));
        let end = end_of(&record, 3).expect("an end");
        assert_eq!(end.at.to_rfc3339(), "2026-11-22T14:30:00.123456+00:00");
        assert_eq!((end.timeline, end.xid, end.committed), (3, 735, true));
        let prepared = Record {
            description: "COMMIT_PREPARED gid g: xid 12: 2026-11-22 14:30:00.000001 UTC".into(),
            ..record.clone()
        };
        assert_eq!(end_of(&prepared, 1).map(|end| end.xid), Some(12));
        let aborted =
            Record { description: "ABORT 2026-11-22 14:30:00.000001 UTC".into(), ..record.clone() };
        assert_eq!(end_of(&aborted, 1).map(|end| end.committed), Some(false));
        let other = Record { description: "RUNNING_XACTS nextXid 7".into(), ..record };
        assert_eq!(end_of(&other, 1), None);
        assert_eq!(created("CREATE 16385 \"/a b/c\""), Some(PathBuf::from("/a b/c")));
        assert_eq!(created("DROP 16385"), None);
        assert_eq!(parse("pg_waldump: error"), None);
    }
}
