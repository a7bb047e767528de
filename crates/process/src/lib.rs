//! Runs child processes so that nothing of the server leaks into them and nothing of them outlives it.
//!
//! A background worker of PostgreSQL starts every child through [`Leashed`], which runs
//! `nrt-backup leash -- program …`:
//!
//! ```text
//! worker ── Leashed ──► leash (leader of its own session, adopts every orphan below it)
//!    ▲                    └── program ── its helpers ── theirs
//!    └── Report ◄── one line of JSON in a nameless file, written when all of them are gone
//! ```
//!
//! | when | then |
//! | --- | --- |
//! | the program ends | what it left running is terminated, after the patience killed, and reaped |
//! | [`Leashed::terminate`], or the worker dies in any way | SIGTERM to the whole tree, after the patience SIGKILL |
//! | [`Leashed::kill`], or the [`Leashed`] is dropped | SIGKILL to the whole tree |
//! | the leash is killed | the program dies with it, the worker kills the rest of its group |
//!
//! Its standard input is empty, or what the worker writes with [`Leashed::tell`].
//!
//! The leash is a process and not code of the worker: a worker that is killed cannot clean up,
//! and whatever crashes while it is attached to shared memory restarts the whole server.
//!
//! Commands that run outside of the server call short-lived programs with [`capture`].

mod capture;
mod child;
mod environment;
pub mod files;
pub mod identity;
pub mod leash;
mod sealed;
mod tail;
mod tree;

pub use capture::{Captured, capture};
pub use child::{InputAddress, Leashed, Report, Spec};
pub use environment::{allowed, allowed_for_rclone, allowed_in_zone, only_for_rclone};
pub use sealed::{seal, tether};

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time since the machine was started. This clock is never set, it goes on while the machine
/// sleeps, and all processes read the same.
pub fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}
