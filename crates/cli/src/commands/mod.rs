//! One file per subcommand.

pub(crate) mod archive_push;
pub(crate) mod leash;
pub(crate) mod look;
pub(crate) mod ship;
