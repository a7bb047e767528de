//! One file per subcommand.

pub(crate) mod archive_push;
pub(crate) mod check;
pub(crate) mod leash;
pub(crate) mod look;
mod server;
pub(crate) mod ship;
pub(crate) mod status;
pub(crate) mod takeover;
