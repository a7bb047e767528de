//! Says things in PostgreSQL's way: one place that knows SQLSTATEs, levels and hints.

use nrt_core::health::{Check, Severity};
use nrt_core::job::{Job, Status};
use nrt_core::restore::drill::Drill;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// A refusal: what cannot be done, why, and what to do.
pub(crate) fn refuse(
    code: PgSqlErrorCode,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> ErrorReport {
    ErrorReport::new(code, message.into(), "").set_hint(hint)
}

/// Warns of what was done only in part, and says what to do.
pub(crate) fn warn(message: impl Into<String>, hint: impl Into<String>) {
    let code = PgSqlErrorCode::ERRCODE_WARNING;
    ErrorReport::new(code, message.into(), "").set_hint(hint).report(PgLogLevel::WARNING);
}

/// Writes what became of a job to the server's log.
pub(crate) fn job(job: &Job) {
    let Job { id, kind, trigger, .. } = job;
    let label = job.label.as_deref().unwrap_or("unknown");
    let message = job.message.as_deref().unwrap_or("no reason known");
    match job.status {
        // With a label it was recorded again because pgBackRest has succeeded: nothing started.
        Status::Running if job.label.is_some() => {}
        Status::Waiting => {}
        Status::Running => log!("nrt_backup job {id}: {kind} backup started by {trigger}"),
        Status::Succeeded => log!("nrt_backup job {id}: {kind} backup {label} finished"),
        Status::Skipped => log!("nrt_backup job {id}: {kind} backup skipped: {message}"),
        Status::Cancelled => log!("nrt_backup job {id}: {kind} backup cancelled"),
        Status::Failed => {
            let text = format!("nrt_backup job {id}: {kind} backup failed: {message}");
            say(PgLogLevel::WARNING, text, job.hint.as_deref().unwrap_or_default());
        }
    }
}

/// Writes what became of a drill to the server's log. That one has failed is also what the check
/// says, louder.
pub(crate) fn drill(drill: &Drill) {
    let Drill { number, trigger, .. } = drill;
    match &drill.outcome {
        None => log!("nrt_backup drill {number} started by {trigger}"),
        Some(outcome) if outcome.succeeded() => {
            log!("nrt_backup drill {number} succeeded: {}", outcome.summary());
        }
        Some(outcome) => log!("nrt_backup drill {number} failed: {}", outcome.summary()),
    }
}

/// Writes a check whose severity has changed to the server's log.
pub(crate) fn check(check: &Check) {
    let Check { name, severity, message, hint } = check;
    let level = match severity {
        Severity::Ok | Severity::Warning => PgLogLevel::LOG,
        Severity::Critical => PgLogLevel::WARNING,
    };
    say(level, format!("nrt_backup health: {name} is {}: {message}", severity.as_str()), hint);
}

fn say(level: PgLogLevel, message: String, hint: &str) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    let mut report = ErrorReport::new(code, message, "");
    if !hint.is_empty() {
        report = report.set_hint(hint);
    }
    report.report(level);
}
