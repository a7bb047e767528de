//! Runs the reporter: a background worker that reports how far the WAL is on disk to
//! `nrt-backup ship`, once a second, changed or not.
//!
//! The worker reports, too. But the worker writes files and reads catalogs, and each of these can wait
//! for a disk. The reporter does nothing else: it reads shared memory and writes to a pipe that does
//! not block. It opens no file of the data directory and has no database connection.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::Utc;
use nrt_core::offsite::{Position, REPORT_INTERVAL, Report};
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::prelude::*;

use crate::postgres::{self, wal};
use crate::shared::reports;

/// How long the postmaster waits before it starts the reporter again after an error.
const RESTART: Duration = Duration::from_secs(5);
/// Between two reports.
const INTERVAL: Duration = Duration::from_millis(1).saturating_mul(REPORT_INTERVAL);
/// How long the reporter sleeps at most while nothing is shipped. The worker wakes it.
const IDLE: Duration = Duration::from_secs(600);

/// Whether the server had a place for the reporter when it started. Set in the postmaster while it
/// loads the library, and inherited by every process.
static HAS_PLACE: AtomicBool = AtomicBool::new(true);

/// Whether the server has taken the reporter into its list.
pub(crate) fn has_place() -> bool {
    HAS_PLACE.load(Ordering::Relaxed)
}

/// Has the postmaster start the reporter when recovery is over. Called while the library is
/// preloaded.
pub(crate) fn register() {
    let reporter = BackgroundWorkerBuilder::new("nrt_backup reporter")
        .set_type("nrt_backup reporter")
        .set_library("nrt_backup")
        .set_function("nrt_backup_reporter_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(RESTART));
    HAS_PLACE.store(postgres::hint::has_place(|| reporter.load()), Ordering::Relaxed);
}

/// The reporter's main function.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "the postmaster finds the function by its name")]
pub extern "C-unwind" fn nrt_backup_reporter_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGTERM);
    run();
    postgres::exit_worker();
}

/// Reports until the server shuts down.
fn run() {
    let _place = reports::Place::take();
    let mut logged = None;
    while !postgres::shutdown_requested() {
        let Some(pipe) = reports::pipe() else {
            postgres::latch::wait(IDLE);
            continue;
        };
        if let Some(line) = line()
            && let Err(error) = pipe.tell(&line)
            // The child has ended, which the worker notices.
            && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::BrokenPipe)
            && logged.replace(error.kind()) != Some(error.kind())
        {
            log!(
                "nrt_backup reporter cannot report how far the WAL is: {error}; only the worker \
                 reports it"
            );
        }
        postgres::latch::wait(INTERVAL);
    }
}

/// A report of how far the WAL is on disk, as a line; `None` in recovery.
pub(crate) fn line() -> Option<Vec<u8>> {
    let uptime = u64::try_from(nrt_process::uptime().as_micros()).ok();
    // Before the position is read: all that was on disk by then lies before it.
    let at = Some(Utc::now());
    let (timeline, flushed) = wal::flushed()?;
    let report = Report { position: Position { timeline, flushed }, at, uptime };
    let mut line = serde_json::to_vec(&report).ok()?;
    line.push(b'\n');
    Some(line)
}
