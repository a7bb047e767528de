//! Describes a drill: a restore of the real backup into a scratch place, with checks.
//!
//! ```text
//! worker (supervisor) ── Order (argument) ──► nrt-backup drill ── scratch server
//! worker ◄── Outcome (last line on standard output) ──┘
//! worker ── Drill (lines of a file of the state directory) ──► SQL, health, estimates
//! ```

pub mod journal;
mod order;
pub mod supervisor;

pub use order::Order;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Code;
use crate::inventory::Failure;
use crate::kind::Trigger;
use crate::lsn::Lsn;
use crate::words;

/// The longest message, hint, name and result that is kept, in bytes: the journal is read inside
/// of the server.
const LONGEST: usize = 2000;

/// How long the parts of a restore took, in seconds, and how much each had to do.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Reading what there is, and planning.
    pub plan: f64,
    /// Fetching the backups from the remote.
    pub fetch: f64,
    /// pgBackRest's restore.
    pub restore: f64,
    /// Replaying WAL, up to the end of recovery.
    pub replay: f64,
    /// Checks; 0 but in a drill.
    pub check: f64,
    /// Bytes of backups that were fetched.
    pub fetched_bytes: u64,
    /// Bytes of the cluster that were restored.
    pub restored_bytes: u64,
    /// Bytes of WAL that were replayed.
    pub replayed_bytes: u64,
}

impl Phases {
    /// Seconds from the start to a server that can be used.
    pub fn total(&self) -> f64 {
        self.plan + self.fetch + self.restore + self.replay
    }
}

/// What a restore came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recovered {
    /// The backup that it began with.
    pub backup: String,
    /// The timeline that the server is on now.
    pub timeline: u32,
    /// Where recovery ended.
    pub lsn: Lsn,
    /// The last transaction that was replayed, if there was any.
    pub last_commit: Option<DateTime<Utc>>,
}

/// What a drill found: the last line, as JSON, on the standard output of `nrt-backup drill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// Where the backup came from: `s3:bucket/main`, or a directory.
    pub source: String,
    /// What it came to; `None` if it did not come so far.
    pub recovered: Option<Recovered>,
    /// How long the parts took.
    pub phases: Phases,
    /// What the plan had expected, in seconds; `None` at the first drill on a machine.
    pub expected: Option<f64>,
    /// Relations that pg_amcheck looked at; `None` if it could not run.
    pub checked_relations: Option<u64>,
    /// What the operator's query returned: the first row's first value.
    pub query_result: Option<String>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The kind of that, where programs have to tell it from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

impl Outcome {
    /// What a drill found that came to nothing.
    pub fn failed(
        started: DateTime<Utc>,
        ended: DateTime<Utc>,
        source: String,
        failure: Failure,
    ) -> Outcome {
        Outcome {
            started,
            ended,
            source,
            recovered: None,
            phases: Phases::default(),
            expected: None,
            checked_relations: None,
            query_result: None,
            failure: Some(failure),
            code: None,
        }
    }

    /// Whether the backup can be restored, and all that was checked is well.
    pub fn succeeded(&self) -> bool {
        self.failure.is_none() && self.recovered.is_some()
    }

    /// The same with texts that are not too long to be kept.
    #[must_use]
    pub fn bounded(mut self) -> Outcome {
        let bound = |text: &mut String| *text = words::beginning(std::mem::take(text), LONGEST);
        bound(&mut self.source);
        self.recovered.iter_mut().for_each(|it| bound(&mut it.backup));
        self.query_result.iter_mut().for_each(bound);
        self.failure.iter_mut().for_each(|it| {
            bound(&mut it.message);
            bound(&mut it.hint);
        });
        self
    }

    /// What it came to, in one line: `restored to 0/5000148 on timeline 2 (…) in 12.3 s`.
    pub fn summary(&self) -> String {
        if let Some(failure) = &self.failure {
            return failure.message.clone();
        }
        let Some(Recovered { timeline, lsn, last_commit, .. }) = &self.recovered else {
            return "nothing was restored".to_string();
        };
        let commit = match last_commit {
            Some(at) => format!("last commit {}", at.format("%Y-%m-%d %H:%M:%S UTC")),
            None => "no commit after the backup".to_string(),
        };
        let seconds = self.phases.total();
        format!("restored to {lsn} on timeline {timeline} ({commit}) in {seconds:.1} s")
    }
}

/// One drill, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// Its number.
    pub number: u64,
    /// Why it started.
    pub trigger: Trigger,
    /// When.
    pub started: DateTime<Utc>,
    /// Where its scratch place is made, and has to be removed should it not have done so itself.
    pub directory: String,
    /// What it found; `None` while it runs.
    pub outcome: Option<Outcome>,
    /// The server or its worker ended before the drill did: nothing is known of the backup.
    #[serde(default)]
    pub interrupted: bool,
}

impl Drill {
    /// Whether it proved that the backup can be restored.
    pub fn succeeded(&self) -> bool {
        self.outcome.as_ref().is_some_and(Outcome::succeeded)
    }

    /// The word for how it ended, or that it has not.
    pub fn status(&self) -> &'static str {
        match &self.outcome {
            None => "running",
            Some(outcome) if outcome.succeeded() => "succeeded",
            Some(_) => "failed",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(text: &str) -> DateTime<Utc> {
        format!("{text}Z").parse().expect("a time")
    }

    /// A success that began at `started` and took 12.3 s.
    pub(crate) fn success(started: DateTime<Utc>) -> Outcome {
        Outcome {
            started,
            ended: started + chrono::TimeDelta::seconds(20),
            source: "r:b/main".to_string(),
            recovered: Some(Recovered {
                backup: "20260310-030000F".to_string(),
                timeline: 2,
                lsn: Lsn(0x500_0148),
                last_commit: Some(at("2026-03-10T11:59:58")),
            }),
            phases: Phases {
                plan: 0.3,
                fetch: 5.0,
                restore: 4.0,
                replay: 3.0,
                ..Phases::default()
            },
            expected: None,
            checked_relations: Some(77),
            query_result: None,
            failure: None,
            code: None,
        }
    }

    pub(crate) fn failure(message: &str) -> Failure {
        Failure { message: message.to_string(), hint: "Mend it.".to_string() }
    }

    #[test]
    fn a_summary_is_what_it_came_to() {
        let mut outcome = success(at("2026-03-10T12:00:00"));
        assert_eq!(
            outcome.summary(),
            "restored to 0/5000148 on timeline 2 (last commit 2026-03-10 11:59:58 UTC) in 12.3 s"
        );
        if let Some(recovered) = &mut outcome.recovered {
            recovered.last_commit = None;
        }
        assert!(outcome.summary().contains("(no commit after the backup)"));
        assert!(outcome.succeeded());
        outcome.failure = Some(failure("the query returned false"));
        assert_eq!(outcome.summary(), "the query returned false");
        assert!(!outcome.succeeded());
    }

    #[test]
    fn nothing_that_is_kept_is_long() {
        let long = || "ö".repeat(LONGEST);
        let mut outcome = success(at("2026-03-10T12:00:00"));
        outcome.query_result = Some(long());
        outcome.source = long();
        outcome.failure = Some(Failure { message: long(), hint: long() });
        let line = serde_json::to_string(&outcome.bounded()).expect("it is JSON");
        assert!(line.len() < 5 * LONGEST, "{}", line.len());
    }
}
