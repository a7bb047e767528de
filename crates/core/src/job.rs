//! Describes one run of a backup, as the history keeps it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::kind::{BackupType, Trigger};
use crate::lsn::Lsn;

/// How far a job has come, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Asked for, not yet started.
    Waiting,
    /// pgBackRest is at work.
    Running,
    /// The backup is in the repository.
    Succeeded,
    /// pgBackRest or the server gave up; the row says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// Not run, because too little WAL was written since the last backup.
    Skipped,
}

impl Status {
    /// The name as the history shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Running => "running",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Skipped => "skipped",
        }
    }

    /// Whether nothing more will happen to the job.
    pub fn is_final(self) -> bool {
        !matches!(self, Status::Waiting | Status::Running)
    }
}

/// One row of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Counts jobs; never used twice in a cluster.
    pub id: u64,
    /// Why it was asked for.
    pub trigger: Trigger,
    /// What was asked for.
    pub requested: BackupType,
    /// What was taken: a full backup where an incremental one had nothing to build on.
    pub kind: BackupType,
    /// How it stands.
    pub status: Status,
    /// 1 for the first try, counted on for those that follow a failure.
    pub attempt: u32,
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// When pgBackRest was started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// pgBackRest's name for the backup.
    pub label: Option<String>,
    /// Where the backup begins.
    pub start_lsn: Option<Lsn>,
    /// Where the backup ends: from here on the cluster can be restored from it.
    pub stop_lsn: Option<Lsn>,
    /// Bytes of WAL written since the backup before, when this one was asked for.
    pub wal_growth: Option<u64>,
    /// Bytes of the database.
    pub size: Option<u64>,
    /// Bytes of the database that this backup copied.
    pub delta: Option<u64>,
    /// Bytes that this backup added to the repository.
    pub repository_delta: Option<u64>,
    /// pgBackRest's exit code.
    pub exit_code: Option<i32>,
    /// What happened, whole: pgBackRest's own words.
    pub message: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Job {
    /// A job that has just been asked for.
    pub fn new(id: u64, kind: BackupType, trigger: Trigger, now: DateTime<Utc>) -> Job {
        Job {
            id,
            trigger,
            requested: kind,
            kind,
            status: Status::Waiting,
            attempt: 1,
            requested_at: now,
            started_at: None,
            finished_at: None,
            label: None,
            start_lsn: None,
            stop_lsn: None,
            wal_growth: None,
            size: None,
            delta: None,
            repository_delta: None,
            exit_code: None,
            message: None,
            hint: None,
        }
    }
}

/// The jobs of a history, by their numbers: of each, the last line counts. A line that cannot be
/// read, as one that was torn by a crash, is left out.
pub fn read(history: &[u8]) -> BTreeMap<u64, Job> {
    let lines = history.split(|byte| *byte == b'\n');
    let jobs = lines.filter_map(|line| serde_json::from_slice::<Job>(line).ok());
    jobs.map(|job| (job.id, job)).collect()
}

/// How many bytes a history may have before it is rewritten, and how many are read of it at most.
pub const LONG_HISTORY: u64 = 8 << 20;

/// How many bytes a rewritten history has at most, beside jobs that have not ended.
const KEPT_HISTORY: usize = 4 << 20;

/// A history that holds the newest of these jobs, and all that have not ended.
///
/// # Errors
///
/// If a job cannot be written as JSON.
pub fn shortened(jobs: &BTreeMap<u64, Job>) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    let mut length = 0;
    for job in jobs.values().rev() {
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        length += line.len();
        if length <= KEPT_HISTORY || !job.status.is_final() {
            lines.push(line);
        }
    }
    lines.reverse();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_history_keeps_the_newest_jobs_and_those_that_have_not_ended() {
        let job = |id, status| Job {
            status,
            message: Some("x".repeat(2000)),
            ..Job::new(id, BackupType::Incr, Trigger::WalGrowth, DateTime::UNIX_EPOCH)
        };
        let mut jobs: BTreeMap<u64, Job> =
            (1..=5000).map(|id| (id, job(id, Status::Failed))).collect();
        jobs.insert(7, job(7, Status::Waiting));
        let text = shortened(&jobs).expect("is JSON");
        assert!(text.len() < KEPT_HISTORY + 4000, "{}", text.len());
        let kept = read(&text);
        assert!(kept.len() > 1500, "{}", kept.len());
        assert_eq!(kept.keys().next(), Some(&7));
        assert_eq!(kept.keys().next_back(), Some(&5000));
        let first = kept.keys().nth(1).copied().expect("there are more");
        assert_eq!(kept.len() as u64, 5000 - first + 2, "without a hole");
        assert_eq!(read(&shortened(&kept).expect("is JSON")), kept);
    }

    #[test]
    fn the_last_line_of_a_job_counts_and_a_torn_one_does_not() {
        let job = |id| Job::new(id, BackupType::Incr, Trigger::Manual, DateTime::UNIX_EPOCH);
        let ended = Job { status: Status::Succeeded, ..job(2) };
        let line = |job: &Job| serde_json::to_string(job).expect("it is text");
        let text = format!(
            "{}\n{}\n{}\nnot JSON\n{}",
            line(&job(2)),
            line(&job(1)),
            line(&ended),
            &line(&job(3))[..40]
        );
        assert_eq!(read(text.as_bytes()), BTreeMap::from([(1, job(1)), (2, ended)]));
    }
}
