//! Gives a recovering PostgreSQL its WAL: what `restore_command` runs.

use std::ffi::OsStr;
use std::io::Write;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::ExitCode;

use super::source::words;
use crate::exit;
use nrt_restore as restore;

/// To PostgreSQL everything from 1 to 125 is the end of the WAL, and it promotes.
const NOWHERE: u8 = 1;

/// Puts a WAL file where a recovering PostgreSQL wants it.
///
/// Exit code: 0 if it is there, 1 if the restore's plan has none of this name, 255 if it cannot be
/// had now: recovery stops then, and goes on when the server is started again.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The restore's work directory.
    #[arg(long, value_name = "DIRECTORY")]
    work: PathBuf,
    /// The restore that this belongs to runs, and gets WAL ahead; without it there is none.
    #[arg(long)]
    ahead: bool,
    /// The file's name.
    name: String,
    /// Where it goes to.
    into: PathBuf,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let Arguments { work, ahead, name, into } = arguments;
    let outcome = catch_unwind(|| restore::wal_get(work, *ahead, name, into));
    match outcome {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::from(NOWHERE),
        Ok(Err(refusal)) => {
            // Not by a macro that panics where nobody can be told.
            let _ = writeln!(std::io::stderr(), "nrt-backup: {name}: {}", words(&refusal));
            ExitCode::from(exit::STOP)
        }
        // It has been printed.
        Err(_) => ExitCode::from(exit::STOP),
    }
}

/// The exit code for a command line that cannot be read, if it is this command's: another version
/// may have written it, and to PostgreSQL every other code is the end of the WAL.
pub(crate) fn misread(words: &[&OsStr]) -> Option<ExitCode> {
    words.get(1).is_some_and(|word| *word == "wal-get").then(|| ExitCode::from(exit::STOP))
}
