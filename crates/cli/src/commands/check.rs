//! Has the remote compared with the repository, and says what was found.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::Utc;
use nrt_core::health::Severity;
use nrt_core::layout;
use nrt_core::offsite::{Comparison, FileList, Phase, Status};
use nrt_core::size::format_size;
use nrt_process::files::replace;

use super::server::{self, Server};
use crate::exit;

const PAUSE: Duration = Duration::from_millis(200);
/// How long shipping may fail before that is the answer: a remote that comes back refuses for a while.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many files are named.
const SHOWN: usize = 20;

/// Compares the remote with the repository, file by file: names, sizes, and hashes where the
/// remote has them.
///
/// What is missing there is sent again, once pgBackRest's checksums have proved it here. What differs
/// is named with the side that is damaged, and left alone without --repair. Exit code: 0 if all was
/// the same, 1 if something was sent again or repaired, 2 if something differs or could not be
/// compared.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Replace damaged and missing files of the repository by the remote's, and damaged files on the
    /// remote by the repository's, where pgBackRest's checksums prove the other side's file.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    server: Server,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match compare(&arguments.server, arguments.repair) {
        Ok(comparison) => report(&comparison),
        Err(error) => exit::refused(&error),
    }
}

fn compare(server: &Server, is_repair: bool) -> anyhow::Result<Comparison> {
    let state = server.state()?;
    let mut failing_since = None;
    must_ship(server, &state, &mut failing_since)?;
    let asked = Utc::now();
    let request = state.join(layout::COMPARE);
    let content = if is_repair { layout::REPAIR } else { "" };
    // As a whole: it is read at any time.
    replace(&request, content.as_bytes())
        .with_context(|| format!("write \"{}\"", request.display()))?;
    loop {
        let status: Option<Status> = server::read(&state, layout::SHIP);
        if let Some(comparison) = status.and_then(|it| it.comparison)
            && comparison.at > asked
            && (comparison.is_repair || !is_repair)
        {
            return Ok(comparison);
        }
        if let Err(error) = must_ship(server, &state, &mut failing_since) {
            let _ = fs::remove_file(&request);
            return Err(error);
        }
        thread::sleep(PAUSE);
    }
}

/// Refuses where nobody would ever answer. `failing_since` is since when shipping has been seen to fail.
fn must_ship(
    server: &Server,
    state: &Path,
    failing_since: &mut Option<Instant>,
) -> anyhow::Result<()> {
    if !server.is_running() {
        bail!("the server does not run\nHINT: Start it: what compares is a process of its own.");
    }
    server::must_ship(state)?;
    let status = server::read::<Status>(state, layout::SHIP);
    if !status.as_ref().is_some_and(|it| it.phase == Phase::Failing) {
        *failing_since = None;
    } else if failing_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
        return Ok(());
    }
    match status {
        Some(Status { phase: Phase::Fenced | Phase::Failing, failure, .. }) => {
            let failure = failure.map(|it| format!("{}\nHINT: {}", it.message, it.hint));
            bail!("{}", failure.unwrap_or_else(|| "shipping fails".to_string()));
        }
        _ => Ok(()),
    }
}

fn report(comparison: &Comparison) -> ExitCode {
    println!("{} files are the same", comparison.same);
    let list = |what: &str, files: &FileList| {
        if !files.is_empty() {
            println!("{} {what}:", files.count);
            for file in files.named.iter().take(SHOWN) {
                println!("  {file}");
            }
            if files.count > SHOWN as u64 {
                println!("  ... and {} more", files.count - SHOWN as u64);
            }
        }
    };
    list("were missing on the remote and are sent again", &comparison.repaired);
    list("were damaged in the repository and are the remote's now", &comparison.healed);
    list("differ, and are left as they are", &comparison.different);
    list(
        "of these are damaged in the repository and whole on the remote",
        &comparison.damaged_here,
    );
    list(
        "of these are damaged on the remote and whole in the repository",
        &comparison.damaged_there,
    );
    if !comparison.superseded.is_empty() {
        println!(
            "{} place(s) of other lives of this cluster are kept:",
            comparison.superseded.len()
        );
        for place in &comparison.superseded {
            let size = format_size(place.bytes);
            println!("  {}: {size} in {} file(s)", place.path, place.files);
        }
    }
    if !comparison.different.is_empty() {
        println!("HINT: {}", comparison.hint());
    }
    if let Some(failure) = &comparison.failure {
        println!("{}\nHINT: {}", failure.message, failure.hint);
    }
    if !comparison.different.is_empty() || comparison.failure.is_some() {
        exit::judged(Severity::Critical)
    } else if !comparison.repaired.is_empty() || !comparison.healed.is_empty() {
        exit::judged(Severity::Warning)
    } else {
        ExitCode::SUCCESS
    }
}
