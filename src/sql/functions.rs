//! The functions that an operator calls.

#![allow(clippy::result_large_err, reason = "pgrx takes SQLSTATE and HINT from an unboxed report")]

use std::time::{Duration, Instant};

use nrt_core::health;
use nrt_core::job::Status;
use nrt_core::kind::BackupType;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::postgres::{self, wal};
use crate::report::refuse;
use crate::shared::{self, ask};
use crate::sql::rows::check_rows;
use crate::{state_directory, worker};

/// How often a waiting caller looks. Only callers wait this way, never the worker.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// How long a caller waits for a worker that is not there: it may be starting again.
const WORKER_PATIENCE: Duration = Duration::from_secs(20);
/// How many characters of a value that is refused are repeated.
const LONGEST_SHOWN: usize = 64;

/// Takes a backup and returns its label.
///
/// Cancelling the statement leaves the backup running: `nrt_backup_cancel()` ends it.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_backup_now("type" text DEFAULT 'incr') RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn nrt_backup_now(r#type: Option<&str>) -> Result<String, ErrorReport> {
    let job = request(r#type)?;
    wait(|| ask::has_ended(job))?;
    let Some(row) = state_directory::job(job) else {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("backup job {job} ended, but the history does not have it"),
            "See nrt.health: the state directory may not be writable.",
        ));
    };
    let message = row.message.unwrap_or_default();
    match (row.status, row.label) {
        (Status::Succeeded, Some(label)) => {
            if row.kind != row.requested {
                ereport!(NOTICE, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message);
            }
            Ok(label)
        }
        (Status::Cancelled, _) => Err(refuse(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("backup job {job} was cancelled"),
            "See nrt.backup_history.",
        )),
        _ => Err(refuse(
            PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            format!("backup job {job} failed: {message}"),
            row.hint
                .filter(|hint| !hint.is_empty())
                .unwrap_or("See nrt.backup_history and nrt.health.".to_string()),
        )),
    }
}

/// Starts a backup and returns its number in `nrt.backup_history` at once.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_backup_start("type" text DEFAULT 'incr') RETURNS bigint
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn nrt_backup_start(r#type: Option<&str>) -> Result<i64, ErrorReport> {
    Ok(request(r#type)?.cast_signed())
}

/// Cancels the running backup, or those that wait if none is running. Returns whether there was
/// one.
#[pg_extern(parallel_unsafe)]
fn nrt_backup_cancel() -> Result<bool, ErrorReport> {
    worker_must_be_reachable()?;
    let active = state_directory::history().into_values().any(|job| !job.status.is_final());
    if active {
        ask::cancel();
    }
    Ok(active)
}

/// Lets no backup start, or nothing be shipped, or both, until it is resumed; also across restarts
/// of the server. Returns what is paused now.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_pause(what text DEFAULT 'all') RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn nrt_pause(what: Option<&str>) -> Result<String, ErrorReport> {
    pause(what, true)
}

/// Lets backups start, or shipping go on, or both. Returns what is still paused.
#[pg_extern(sql = r#"
CREATE FUNCTION nrt_resume(what text DEFAULT 'all') RETURNS text
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn nrt_resume(what: Option<&str>) -> Result<String, ErrorReport> {
    pause(what, false)
}

fn pause(what: Option<&str>, pause: bool) -> Result<String, ErrorReport> {
    let (backups, shipping) = match what {
        Some("all") => (Some(pause), Some(pause)),
        Some("backups") => (Some(pause), None),
        Some("shipping") => (None, Some(pause)),
        _ => {
            let message = match what {
                Some(name) => format!("\"{}\" is nothing that can be paused", shortened(name)),
                None => "what to pause must not be null".to_string(),
            };
            let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
            return Err(refuse(code, message, "Use all, backups or shipping."));
        }
    };
    worker_must_be_reachable()?;
    let number = ask::pause(backups, shipping);
    wait(|| ask::pause_is_served(number))?;
    Ok(shared::look().1.paused.as_str().to_string())
}

/// A value that is refused, as far as it is repeated.
pub(super) fn shortened(value: &str) -> String {
    let rest = if value.chars().nth(LONGEST_SHOWN).is_some() { "…" } else { "" };
    let shown: String = value.chars().take(LONGEST_SHOWN).collect();
    format!("{shown}{rest}")
}

/// Looks at pgBackRest, the repository, the disks and the configuration now, and returns all
/// health checks.
#[pg_extern(parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
fn nrt_check() -> Result<
    TableIterator<
        'static,
        (
            name!(check_name, String),
            name!(severity, String),
            name!(message, String),
            name!(hint, Option<String>),
        ),
    >,
    ErrorReport,
> {
    worker_must_be_reachable()?;
    let number = ask::check();
    wait(|| ask::check_is_served(number))?;
    Ok(TableIterator::new(check_rows()))
}

/// Tries a restore in a scratch place, waits for it, and returns what it came to.
///
/// Cancelling the statement leaves the drill running.
#[pg_extern(parallel_unsafe)]
fn nrt_drill_now() -> Result<String, ErrorReport> {
    worker_must_be_reachable()?;
    let running = shared::look().1.drilling;
    let question = ask::drill();
    let mut number = None;
    wait(|| {
        number = ask::drill_of(question);
        number.is_some()
    })?;
    let number = number.ok_or_else(worker_is_gone)?;
    if running {
        let words = format!("a drill runs already: this is about drill {number}");
        ereport!(NOTICE, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, words);
    }
    wait(|| ask::drill_has_ended(number))?;
    let drill = state_directory::drills().into_iter().find(|drill| drill.number == number);
    let Some(outcome) = drill.and_then(|drill| drill.outcome) else {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("drill {number} ended, but the journal does not have it"),
            "See nrt.health: the state directory may not be writable.",
        ));
    };
    if outcome.succeeded() {
        return Ok(outcome.summary());
    }
    let hint = outcome.failure.as_ref().map(|failure| failure.hint.clone());
    Err(refuse(
        PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
        format!("drill {number} failed: {}", outcome.summary()),
        hint.filter(|hint| !hint.is_empty())
            .unwrap_or("See nrt.drills and nrt.health.".to_string()),
    ))
}

/// Asks the worker for a backup and returns the number of its job.
fn request(kind: Option<&str>) -> Result<u64, ErrorReport> {
    let known = kind.map(str::parse::<BackupType>);
    let Some(Ok(kind)) = known else {
        let message = match kind {
            Some(name) => format!("\"{}\" is not a type of backup", shortened(name)),
            None => "the type of a backup must not be null".to_string(),
        };
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        return Err(refuse(code, message, "Use full, diff or incr."));
    };
    worker_must_be_reachable()?;
    if shared::look().1.paused.backups {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "backups are paused",
            "SELECT nrt_resume('backups') lets them start again.",
        ));
    }
    let caller = std::process::id().cast_signed();
    let _withdrawal = Withdrawal(caller);
    let mut ticket = None;
    let mut job = None;
    wait(|| {
        ticket = ticket.or_else(|| ask::backup(kind, caller));
        job = ticket.and_then(|place| ask::answer(place, caller));
        job.is_some()
    })?;
    job.ok_or_else(worker_is_gone)
}

/// Takes the question back when its asker leaves in whatever way.
struct Withdrawal(i32);

impl Drop for Withdrawal {
    fn drop(&mut self) {
        ask::withdraw(self.0);
    }
}

/// Waits until `done`, or until the caller is cancelled, or the worker stays away.
fn wait(mut done: impl FnMut() -> bool) -> Result<(), ErrorReport> {
    let mut worker_seen = Instant::now();
    while !done() {
        if shared::look().0.pid != 0 {
            worker_seen = Instant::now();
        } else if worker_seen.elapsed() > WORKER_PATIENCE {
            return Err(worker_is_gone());
        }
        postgres::latch::wait(POLL);
    }
    Ok(())
}

/// Refuses where no worker can ever answer.
fn worker_must_be_reachable() -> Result<(), ErrorReport> {
    must_be_a_primary("backups are taken")
}

/// Refuses where the library is not preloaded, and on a standby, where what is asked for is not
/// done.
pub(super) fn must_be_a_primary(what: &str) -> Result<(), ErrorReport> {
    if !shared::is_there() {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "nrt_backup is not loaded at the start of the server",
            "Add nrt_backup to shared_preload_libraries in postgresql.conf and restart the server.",
        ));
    }
    if wal::in_recovery() {
        return Err(refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("{what} on the primary, and this server is in recovery"),
            "Call the function on the primary, or here after this server was promoted.",
        ));
    }
    Ok(())
}

fn worker_is_gone() -> ErrorReport {
    let hint = match worker::has_place() {
        true => {
            "Look for \"nrt_backup\" in the server's log; the worker is started again by itself."
        }
        false => health::NO_PLACE,
    };
    refuse(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "the nrt_backup worker is not running",
        hint,
    )
}
