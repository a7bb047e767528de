//! One file per subcommand.

pub(crate) mod archive_push;
pub(crate) mod check;
pub(crate) mod drill;
pub(crate) mod entrypoint;
pub(crate) mod leash;
pub(crate) mod look;
pub(crate) mod plan;
pub(crate) mod restore;
mod server;
pub(crate) mod ship;
pub(crate) mod source;
pub(crate) mod status;
pub(crate) mod takeover;
pub(crate) mod wal_get;
