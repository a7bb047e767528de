//! Makes a server the owner of the remote, because the one that was is gone.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nrt_core::layout;
use nrt_core::offsite::{Phase, Status};
use nrt_process::files::write_atomically;

use super::server::{self, Server};
use crate::exit;
use nrt_ship::{SET_ASIDE, place_of};

const PAUSE: Duration = Duration::from_millis(200);
/// How long a server may take that was just started.
const SETTLED: Duration = Duration::from_secs(10);
/// How long it may take: the remote is asked a few times. Moving what it holds may take longer, and
/// is not waited for.
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
    /// Also keep what the remote holds below "superseded", and begin anew beside it: for a server
    /// whose repository is a new one. Exit code 2 says that this takes long and goes on by itself.
    #[arg(long)]
    set_aside: bool,
}

/// What came of it.
enum Outcome {
    /// This server ships to that remote.
    Ships(String),
    /// It will when what the remote holds has been moved there.
    Moves(String),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match take(arguments) {
        Ok(Outcome::Ships(remote)) => {
            println!("this server ships to \"{remote}\" now");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Moves(place)) => {
            eprintln!(
                "what the remote holds is still being moved to \"{place}\": that goes on by itself, \
                 also after a restart, and this server ships then\n\
                 HINT: nrt-backup status says how it goes; the same command waits again."
            );
            ExitCode::from(exit::REFUSED)
        }
        Err(error) => exit::failed(&error),
    }
}

fn take(arguments: &Arguments) -> anyhow::Result<Outcome> {
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
    let place = || {
        let text = fs::read_to_string(&request).unwrap_or_default();
        place_of(&text).map(str::to_string)
    };
    // One that has begun goes on.
    if place().is_none() {
        let text = if arguments.set_aside { SET_ASIDE } else { "" };
        write_atomically(&request, text.as_bytes())
            .with_context(|| format!("write \"{}\"", request.display()))?;
    }
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        thread::sleep(PAUSE);
        if request.exists() {
            continue;
        }
        match status() {
            Some(Status { phase: Phase::Shipping, remote, .. }) => {
                return Ok(Outcome::Ships(remote));
            }
            Some(Status { phase: Phase::Fenced, failure: Some(failure), .. }) => {
                bail!("{}\nHINT: {}", failure.message, failure.hint);
            }
            _ => {}
        }
    }
    if let Some(place) = place() {
        return Ok(Outcome::Moves(place));
    }
    let _ = fs::remove_file(&request);
    let failure = status().and_then(|it| it.failure);
    let words = failure.map(|it| format!("{}\nHINT: {}", it.message, it.hint));
    bail!("{}", words.unwrap_or_else(|| "shipping does not answer".to_string()))
}
