//! Makes a server the owner of the remote, because the one that was is gone.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nrt_core::layout;
use nrt_core::offsite::{Phase, Status};

use super::server::{self, Server};
use crate::ship::SET_ASIDE;

const PAUSE: Duration = Duration::from_millis(200);
/// How long a server may take that was just started.
const SETTLED: Duration = Duration::from_secs(10);
/// How long it may take: the remote is asked a few times.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes this server the one that ships to the remote.
///
/// For when the server that shipped there is gone for good: if it is not, its next commits are
/// off-site no more, and it says so. A remote of another cluster is never taken. A copy that was
/// restored beside its original has to archive first (ALTER SYSTEM RESET archive_mode, restart), and
/// is no copy any more then.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// Also keep what the remote holds below "set-aside", and begin anew beside it: for a server
    /// whose repository is a new one.
    #[arg(long)]
    set_aside: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match take(arguments) {
        Ok(remote) => {
            println!("this server ships to \"{remote}\" now");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn take(arguments: &Arguments) -> anyhow::Result<String> {
    let state = arguments.server.state()?;
    if !arguments.server.is_running() {
        bail!("the server does not run\nHINT: Start it first; it takes nothing over by itself.");
    }
    let status = || server::read::<Status>(&state, layout::SHIP);
    // A server that was just started tells in a moment where it ships to.
    let begin = Instant::now();
    while begin.elapsed() < SETTLED && !server::has_told(&state) {
        thread::sleep(PAUSE);
    }
    server::must_ship(&state)?;
    let request = state.join(layout::TAKEOVER);
    let text = if arguments.set_aside { SET_ASIDE } else { "" };
    fs::write(&request, text).with_context(|| format!("write \"{}\"", request.display()))?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        thread::sleep(PAUSE);
        if request.exists() {
            continue;
        }
        match status() {
            Some(Status { phase: Phase::Shipping, remote, .. }) => return Ok(remote),
            Some(Status { phase: Phase::Fenced, failure: Some(failure), .. }) => {
                bail!("{}\nHINT: {}", failure.message, failure.hint);
            }
            _ => {}
        }
    }
    let _ = fs::remove_file(&request);
    let failure = status().and_then(|it| it.failure);
    let words = failure.map(|it| format!("{}\nHINT: {}", it.message, it.hint));
    bail!("{}", words.unwrap_or_else(|| "shipping does not answer".to_string()))
}
