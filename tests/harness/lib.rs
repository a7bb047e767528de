//! Runs real PostgreSQL servers for tests, the demo and the benchmark.
//!
//! A test makes a [`Cluster`], does something to it as any client could, and looks at what came of
//! it. Three things are checked without being asked for: no server log line of WARNING or worse
//! that the test did not [allow](Cluster::allow), no wait without an end, and nothing left behind,
//! neither process nor file.
//!
//! The installation under test is a private copy of PostgreSQL with the extension in it, made by
//! `./dev test`; see [`Installation`].

mod client;
mod cluster;
mod commits;
#[cfg(feature = "containers")]
pub mod container;
mod installation;
mod log;
mod machine;
mod offsite;
mod process;
mod proxy;
pub mod readme;
mod remote;

pub use client::{Load, SqlError};
pub use cluster::{Cluster, Shutdown, wait_until};
pub use commits::{Commit, Commits};
pub use installation::{Account, Installation};
pub use log::{LogEntry, Severity, parse_log};
pub use machine::{Machine, Snapshot};
pub use offsite::{Restore, Soundness, inspect};
pub use process::{Process, kill, processes_mentioning};
pub use proxy::{Proxy, Traffic};
pub use remote::{Kind, Remote};

/// Whether this process may do what only root can: mount a file system, become another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
