//! Runs `nrt-backup leash`, by which the worker starts its children.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nrt_process::leash::{self, Options};

/// Run a program so that nothing of it outlives it, its time, or the process that started it.
///
/// The worker inside PostgreSQL starts every child in this way. The leash is the leader of its
/// own session and adopts what the program leaves behind. When the program ends, when SIGTERM
/// comes, when the parent dies or the time is over, it sends SIGTERM to everything below it,
/// SIGKILL to what is left after the patience, and waits until all is gone. SIGUSR1 or SIGQUIT
/// kill at once.
///
/// Then it writes one line of JSON to standard output (exit, signal, output, truncated,
/// answer, elapsed_ms, timed_out, stopped) and exits with the code of the program: 128 + N when
/// signal N ended it, 127 when it is not there, 126 when it cannot be run.
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Arguments {
    /// Run nothing unless this is still the parent.
    #[arg(long, value_name = "PID")]
    parent: Option<u32>,
    /// Run the program here.
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
    /// Append what the program writes to this file: the first megabyte, and the end.
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
    /// Time between SIGTERM and SIGKILL.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10_000)]
    patience: u64,
    /// Stop the program after this time.
    #[arg(long, value_name = "MILLISECONDS")]
    time_limit: Option<u64>,
    /// Let the program read the leash's standard input.
    #[arg(long)]
    input: bool,
    /// Report what the program writes to its standard output apart from the rest.
    #[arg(long)]
    answer: bool,
    /// The program to run.
    #[arg(value_name = "PROGRAM", required = true, last = true)]
    program: Vec<OsString>,
}

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let mut words = arguments.program.into_iter();
    let report = leash::run(&Options {
        program: words.next().unwrap_or_default(),
        args: words.collect(),
        directory: arguments.directory,
        log: arguments.log,
        patience: Duration::from_millis(arguments.patience),
        time_limit: arguments.time_limit.map(Duration::from_millis),
        input: arguments.input,
        answer: arguments.answer,
        parent: arguments.parent,
    });
    if let Ok(mut line) = serde_json::to_vec(&report) {
        line.push(b'\n');
        // Whoever was to read it may be gone; then the exit code has to do.
        let _ = io::stdout().write_all(&line);
    }
    ExitCode::from(report.shell_code())
}
