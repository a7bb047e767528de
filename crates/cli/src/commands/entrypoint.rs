//! What a container of the image runs.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::container;

/// Starts a protected server in a container, or brings one back (RECOVERY_MODE=true).
///
/// Checks every variable, prepares rclone's configuration and the volumes, recovers if that is
/// asked for, and becomes the entrypoint of the official PostgreSQL image. Arguments that do not
/// start a server are run as they are. Exit code 2 for a variable that cannot be used, 1 for a
/// recovery that failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to run: "postgres" and its options, or any other program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    container::run(&arguments.words)
}
