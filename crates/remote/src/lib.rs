//! A remote as rclone reaches it: its configuration, its process, and the files there.
//!
//! ```text
//! rclone.conf ──► Remotes (what rclone says of it) ──► Rclone (a process, `rclone rcd`) ──► Remote
//! ```
//!
//! The configuration is never parsed here: rclone is asked. What is read from a remote has a limit by
//! its kind, and rclone's words are shown without the secrets of its configuration.

mod rclone;
mod remote;
mod remotes;
pub mod renewed;
pub mod segment;
mod words;

pub use rclone::{Options, Rclone, Refusal};
pub use remote::{Address, Backoff, Entry, Mode, Remote, failure};
pub use remotes::{Ground, Remotes};
pub use renewed::in_use as config_in_use;
pub use words::Secrets;
