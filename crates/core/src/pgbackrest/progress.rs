//! Reads how far a running backup is.
//!
//! Three sources, none complete: `info` tells bytes from 2.48 on; the lock file tells a percentage
//! in every version and bytes from 2.48 on; the detail lines on the console tell each file. All
//! advance only when a file is finished, so inside a file of 1 GB nothing moves.

use chrono::{NaiveDateTime, TimeDelta};
use serde::{Deserialize, Serialize};

use super::log::{Level, records};

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100, in hundredths.
    pub percent: f64,
    /// How many bytes of the cluster are done.
    pub bytes_done: Option<u64>,
    /// How many bytes it will copy in all.
    pub bytes_total: Option<u64>,
    /// The process that takes the backup, where the source tells it.
    pub pid: Option<u32>,
}

impl Progress {
    /// The progress that two numbers of bytes tell.
    pub fn of_bytes(done: u64, total: u64) -> Progress {
        // f64 is exact up to 9 PB, and a percentage needs less. Rounded as pgBackRest does, which
        // also makes a number that survives being written as decimals.
        let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
        Progress {
            percent: (share * 10_000.0).round().min(10_000.0) / 100.0,
            bytes_done: Some(done),
            bytes_total: Some(total),
            pid: None,
        }
    }
}

/// How long a backup waited for the checkpoint that it begins with, by the beginning of what it
/// printed. By the difference of two of its own times: it does not matter in which zone they are.
pub fn checkpoint_wait(log: &str) -> TimeDelta {
    let time_of = |words: &str| {
        let line = log.lines().find(|line| line.contains(words))?;
        NaiveDateTime::parse_from_str(line.get(..23)?, "%Y-%m-%d %H:%M:%S%.3f").ok()
    };
    let (asked, begun) = (time_of(" checkpoint completes"), time_of("backup start archive = "));
    asked.zip(begun).map_or(TimeDelta::zero(), |(asked, begun)| begun - asked)
}

/// What pgBackRest writes into its lock file.
#[derive(Deserialize)]
struct Lock {
    pid: u32,
    /// Hundredths of a percent.
    #[serde(rename = "pctCplt")]
    hundredths: Option<u32>,
    #[serde(rename = "szCplt")]
    done: Option<u64>,
    #[serde(rename = "sz")]
    total: Option<u64>,
}

/// Reads a lock file. `None` if it is not one: half written, of another program, empty.
///
/// That the file is there does not say that a backup runs: a killed one leaves it.
pub fn parse_lock(text: &str) -> Option<Progress> {
    let lock: Lock = serde_json::from_str(text.trim_end_matches(['\0', '\n'])).ok()?;
    let mut progress = match (lock.done, lock.total) {
        (Some(done), Some(total)) => Progress::of_bytes(done, total),
        _ => Progress { percent: 0.0, bytes_done: None, bytes_total: None, pid: None },
    };
    if let Some(hundredths) = lock.hundredths {
        progress.percent = (f64::from(hundredths) / 100.0).min(100.0);
    }
    progress.pid = Some(lock.pid);
    Some(progress)
}

/// Reads the detail lines of a backup, whole or only the last of them. `None` before the first
/// file is finished.
///
/// Bytes are told only if the text goes back to the beginning of the backup: they are the sum of
/// the files. Sizes are printed rounded, so the sum is right to about 0.1 %, and the total, which
/// follows from sum and percentage, is told from 1 % on.
pub fn parse_detail(log: &str) -> Option<Progress> {
    let mut whole = false;
    let mut pid = None;
    let mut last: Option<f64> = None;
    let mut sum = 0u64;
    for record in records(log) {
        match record.level {
            Level::Info if record.text.starts_with("backup command begin") => {
                (whole, last, sum) = (true, None, 0);
                pid = record
                    .text
                    .split_once("--exec-id=")
                    .and_then(|(_, rest)| rest.split_once('-')?.0.parse().ok());
            }
            Level::Detail => {
                if let Some((bytes, percent)) = finished_file(&record.text) {
                    sum = sum.saturating_add(bytes);
                    last = Some(percent);
                }
            }
            _ => {}
        }
    }
    let percent = last?;
    let bytes_done = whole.then_some(sum);
    let bytes_total = bytes_done.filter(|_| percent >= 1.0);
    let bytes_total = bytes_total.map(|done| (done as f64 / percent * 100.0) as u64);
    Some(Progress { percent: percent.min(100.0), bytes_done, bytes_total, pid })
}

/// `backup file /data/base/5/1259 (bundle 2/150607, 1.4MB, 99.59%) checksum …` → bytes, percent
///
/// A file that changed while it was copied has two sizes, `8KB->16KB`; the first one counts.
fn finished_file(text: &str) -> Option<(u64, f64)> {
    const KINDS: [&str; 4] = [
        "backup file ",
        "match file from prior backup ",
        "checksum resumed file ",
        "store truncated file ",
    ];
    if !KINDS.iter().any(|kind| text.starts_with(kind)) {
        return None;
    }
    // From the end, because a path may contain brackets.
    let (before, _) = text.rsplit_once("%)")?;
    let (_, inside) = before.rsplit_once('(')?;
    let (sizes, percent) = inside.rsplit_once(", ")?;
    let size = sizes.rsplit_once(", ").map_or(sizes, |(_, size)| size);
    let size = size.split_once("->").map_or(size, |(original, _)| original);
    Some((bytes(size)?, percent.parse().ok().filter(|percent: &f64| percent.is_finite())?))
}

/// `8KB` → 8192, `57.9MB` → 60712550
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &size[digits.len()..] {
        "B" => 0,
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        "PB" => 50,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    Some((number * (1u64 << shift) as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn tells_how_long_a_backup_waited_for_its_checkpoint() {
        let log = "2026-11-22 17:25:16.762 P00   INFO: backup command begin 2.45: --type=incr\n\
             2026-11-22 23:59:58.482 P00   INFO: execute non-exclusive backup start: backup begins \
             after the next regular checkpoint completes\n\
             2026-11-23 00:04:01.884 P00   INFO: backup start archive = 000000010000000000000025, \
             lsn = 0/25000028\n";
        assert_eq!(checkpoint_wait(log), TimeDelta::milliseconds(243_402));
        assert_eq!(checkpoint_wait(&log[..200]), TimeDelta::zero());
        assert_eq!(
            checkpoint_wait(" checkpoint completes\nbackup start archive = "),
            TimeDelta::zero()
        );
        for recorded in fixtures::RECORDED {
            let log = fixtures::text(recorded, "console/incr.txt");
            let waited = checkpoint_wait(&log).num_milliseconds();
            assert!((1..5000).contains(&waited), "{recorded}: {waited} ms");
        }
    }

    fn lock(version: &str) -> Progress {
        let name = fixtures::version(version).lock_name("main");
        parse_lock(&fixtures::text(version, &format!("lock/{name}"))).expect("a lock file")
    }

    /// The lock file and the console were recorded at the same instant.
    #[test]
    fn both_sources_agree() {
        for version in fixtures::RECORDED {
            let lock = lock(version);
            let log = fixtures::text(version, "console/running.txt");
            let detail = parse_detail(&log).expect("a finished file");
            assert!(lock.percent > 0.0 && lock.percent < 100.0, "{version}: {lock:?}");
            assert!((lock.percent - detail.percent).abs() < 0.02, "{version}: {lock:?} {detail:?}");
            assert_eq!(lock.pid, detail.pid, "{version}");
            let told = (detail.bytes_done.expect("whole"), detail.bytes_total.expect("over 1 %"));
            if fixtures::version(version).reports_bytes() {
                for (exact, about) in [(lock.bytes_done, told.0), (lock.bytes_total, told.1)] {
                    let exact = exact.expect("this version tells bytes") as f64;
                    assert!(
                        (exact - about as f64).abs() / exact < 0.002,
                        "{version}: {lock:?} {told:?}"
                    );
                }
            } else {
                assert_eq!((lock.bytes_done, lock.bytes_total), (None, None));
            }
        }
    }

    #[test]
    fn the_last_file_is_the_end() {
        for version in fixtures::RECORDED {
            let text = fixtures::text(version, "console/full.txt");
            let progress = parse_detail(&text).expect("finished files");
            assert!(progress.percent >= 99.99, "{version}: {progress:?}");
            let tail = &text[text.len() - 4000..];
            let progress = parse_detail(tail).expect("finished files");
            assert_eq!((progress.bytes_done, progress.bytes_total), (None, None));
            assert!(progress.percent >= 99.99, "{version}: {progress:?}");
        }
    }

    #[test]
    fn reads_every_form_of_a_file_line() {
        for (text, expected) in [
            ("backup file /d/1 (57.9MB, 29.35%) checksum 36e8", Some((60_712_550, 29.35))),
            ("backup file h:/d/1 (bundle 2/150607, 8KB, 99.59%) checksum 97", Some((8192, 99.59))),
            ("backup file /d/1 (8KB->16KB, 1.00%) checksum 97", Some((8192, 1.0))),
            ("backup file /d (1%)/2 (24B, 0.53%) checksum 97", Some((24, 0.53))),
            ("match file from prior backup /d/1 (1.2GB, 83.85%)", Some((1_288_490_188, 83.85))),
            ("store truncated file /d/1 (8KB->0B, 3.00%)", Some((8192, 3.0))),
            ("store zero-length file /d/1", None),
            ("reference pg_data/1 to 20261122-164804F", None),
            ("skip file removed by database /d/1", None),
            ("backup file /d/1", None),
            ("backup file /d/1 (x, 1%)", None),
            ("backup file /d/1 (8KB, inf%)", None),
            ("backup file /d/1 (8é, 1%)", None),
        ] {
            assert_eq!(finished_file(text), expected, "{text}");
        }
    }

    #[test]
    fn an_unreadable_lock_is_no_progress() {
        for text in ["", "\0\0", "{", "12345\nexec", "[]", "{\"execId\":\"1-a\"}", "null"] {
            assert_eq!(parse_lock(text), None, "{text:?}");
        }
        // Before the list of files is made there is nothing to tell but who holds it.
        let early = parse_lock("{\"execId\":\"77-a\",\"pid\":77}\n").expect("a lock file");
        assert_eq!((early.percent, early.bytes_total, early.pid), (0.0, None, Some(77)));
    }
}
