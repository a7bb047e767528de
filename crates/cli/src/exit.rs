//! The exit codes of all commands, and the only place that prints why one failed.
//!
//! | code | a command that does something | a command that judges (`status`, `wal status`) |
//! | --- | --- | --- |
//! | 0 | It did what it was asked to do. | Everything is "ok". |
//! | 1 | It failed. | A check warns. |
//! | 2 | It was refused before it began, or goes on without the command. | A check is critical. |
//! | 3 | A restore ended before the end of its plan. | It cannot be told. |
//! | 64 | The command line cannot be read. | The same. |
//! | 255 | PostgreSQL must stop what it does: recovery, or its archiver. | |
//!
//! `check` counts as a command that judges: 1 says that it repaired something, 2 that a difference is
//! left. The leash has its child's code.

use std::fmt::Display;
use std::process::ExitCode;

use nrt_core::health::Severity;

/// A restore ended before the end of its plan.
pub(crate) const SHORT: u8 = 3;
/// Ends recovery, and the archiver: PostgreSQL takes a code above 125 for no answer about the file.
pub(crate) const STOP: u8 = 255;
/// The command was refused before it began, or goes on without the program; or a check is critical.
pub(crate) const REFUSED: u8 = 2;
/// The same number as in a monitoring plugin.
const UNKNOWN: u8 = 3;
/// `EX_USAGE` of sysexits.h: 2 would read as "critical".
const USAGE: u8 = 64;

/// The code of a command that judges.
pub(crate) fn judged(severity: Severity) -> ExitCode {
    ExitCode::from(match severity {
        Severity::Ok => 0,
        Severity::Warning => 1,
        Severity::Critical => REFUSED,
    })
}

/// Prints why a command failed: code 1.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    print(format_args!("{error:#}"));
    ExitCode::FAILURE
}

/// Prints why a child of the worker failed: code 1. The worker reads these words, and says whose they
/// are.
pub(crate) fn child_failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("{error:#}");
    ExitCode::FAILURE
}

/// Prints why a command was refused before it began, or goes on without it: code 2.
pub(crate) fn refused(error: &anyhow::Error) -> ExitCode {
    print(format_args!("{error:#}"));
    ExitCode::from(REFUSED)
}

/// Prints why a command that judges cannot tell: code 3.
pub(crate) fn unknown(error: &anyhow::Error) -> ExitCode {
    print(format_args!("{error:#}"));
    ExitCode::from(UNKNOWN)
}

/// Prints what clap says of a command line that it cannot read, or the help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody may be there to read it.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// Prints an error with the program's name, as every program of PostgreSQL does.
pub(crate) fn print(error: impl Display) {
    eprintln!("nrt-backup: {error}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Nothing {}

    fn of(words: &[&str]) -> ExitCode {
        usage(&Nothing::try_parse_from(words).expect_err("it is no command line"))
    }

    /// What a monitoring plugin means by its codes.
    #[test]
    fn a_command_line_that_cannot_be_read_is_not_critical() {
        assert_ne!(of(&["nrt-backup", "--unknown"]), judged(Severity::Critical));
        assert_eq!(of(&["nrt-backup", "--unknown"]), ExitCode::from(64));
        assert_eq!(of(&["nrt-backup", "--help"]), ExitCode::SUCCESS);
    }
}
