//! Has a restore tried, and says what came of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nrt_core::layout;
use nrt_core::restore::drill::{Drill, Outcome, journal};
use nrt_core::size::format_size;

use super::server::Server;
use crate::exit;
use nrt_restore::drill;

const PAUSE: Duration = Duration::from_millis(200);
/// The worker looks at least every minute, should it not be woken.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tries a restore: from where the backups are, into a scratch place, with checks.
///
/// The server's worker does it, beside everything else; when this command is interrupted, the drill
/// goes on. The result is in nrt.drills, too. Exit code: 0 if the backup can be restored, 1 if the
/// drill failed, 2 if none could be had.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The server's data directory.
    #[arg(
        short = 'D',
        long = "pgdata",
        env = "PGDATA",
        value_name = "DIRECTORY",
        required_unless_present = "order"
    )]
    data: Option<PathBuf>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Do what the worker orders.
    #[arg(long, hide = true)]
    order: Option<String>,
    /// Only remove what an earlier drill has left behind.
    #[arg(long, hide = true, requires = "order")]
    clean: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let done = match &arguments.order {
        Some(order) => obey(order, arguments.clean),
        None => {
            let server = Server::at(arguments.data.clone().unwrap_or_default());
            ask(&server).map(|drill| report(&drill, arguments.json))
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if arguments.order.is_some() => exit::child_failed(&error),
        Err(error) => exit::refused(&error),
    }
}

fn obey(order: &str, only_clean: bool) -> anyhow::Result<bool> {
    let order = serde_json::from_str(order).context("read the order")?;
    if only_clean { drill::clean(&order).map(|()| true) } else { drill::run(&order) }
}

/// Asks the worker for a drill and waits for it.
fn ask(server: &Server) -> anyhow::Result<Drill> {
    let state = server.state()?;
    if !server.is_running() {
        bail!("the server does not run\nHINT: Start it, or try nrt-backup plan.");
    }
    // The one that runs serves the request, too.
    let first = drills(&state).last().map_or(0, |last| match last.outcome {
        None => last.number,
        Some(_) => last.number + 1,
    });
    let request = state.join(layout::DRILL_NOW);
    fs::write(&request, "").with_context(|| format!("write \"{}\"", request.display()))?;
    let begin = Instant::now();
    let mut number = None;
    loop {
        if number.is_none() {
            server.wake_worker();
        }
        thread::sleep(PAUSE);
        let drills = drills(&state);
        if number.is_none() && !request.exists() {
            let found = drills.iter().find(|it| it.number >= first);
            number = found.map(|it| it.number);
            if let Some(drill) = found.filter(|it| it.outcome.is_none()) {
                eprintln!("drill {} runs since {}", drill.number, drill.started.format("%T UTC"));
            }
        }
        let ended = |it: &Drill| Some(it.number) == number && it.outcome.is_some();
        if let Some(drill) = drills.into_iter().find(ended) {
            return Ok(drill);
        }
        if !server.is_running() {
            let _ = fs::remove_file(&request);
            bail!("the server was stopped\nHINT: Start it and try again.");
        }
        if number.is_none() && begin.elapsed() > PATIENCE {
            let _ = fs::remove_file(&request);
            bail!(
                "the nrt_backup worker does not answer\n\
                 HINT: See nrt-backup status, and the server's log."
            );
        }
    }
}

fn drills(state: &Path) -> Vec<Drill> {
    journal::read(&fs::read(state.join(layout::DRILLS)).unwrap_or_default())
}

/// Says what came of it. Answers whether it was a success.
fn report(drill: &Drill, json: bool) -> bool {
    let Some(outcome) = &drill.outcome else { return false };
    if json {
        println!("{}", serde_json::to_string_pretty(outcome).unwrap_or_default());
    } else {
        print!("{}", text(drill.number, outcome));
    }
    outcome.succeeded()
}

fn text(number: u64, outcome: &Outcome) -> String {
    let word = if outcome.succeeded() { "succeeded" } else { "failed" };
    let mut lines = vec![format!("drill {number} {word}: {}", outcome.summary())];
    let hint = outcome.failure.as_ref().map(|failure| &failure.hint);
    lines.extend(hint.filter(|hint| !hint.is_empty()).map(|hint| format!("HINT: {hint}")));
    if let Some(recovered) = &outcome.recovered {
        lines.push(format!("from      {}, backup {}", outcome.source, recovered.backup));
        let phases = &outcome.phases;
        for (name, seconds, bytes) in [
            ("plan", phases.plan, None),
            ("fetch", phases.fetch, Some(phases.fetched_bytes)),
            ("restore", phases.restore, Some(phases.restored_bytes)),
            ("replay", phases.replay, Some(phases.replayed_bytes)),
            ("check", phases.check, None),
        ] {
            let bytes = bytes.map_or(String::new(), |bytes| format!(", {}", format_size(bytes)));
            lines.push(format!("{name:<9} {seconds:.1} s{bytes}"));
        }
    }
    if let Some(relations) = outcome.checked_relations {
        lines.push(format!("amcheck   {relations} relations"));
    }
    lines.extend(outcome.query_result.as_ref().map(|value| format!("query     {value}")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use nrt_core::inventory::Failure;

    use super::*;

    #[test]
    fn a_failure_is_told_with_what_to_do() {
        let now = DateTime::UNIX_EPOCH;
        let failure =
            Failure { message: "nothing is there".to_string(), hint: "Look.".to_string() };
        let outcome = Outcome::failed(now, now, String::new(), failure);
        assert_eq!(text(3, &outcome), "drill 3 failed: nothing is there\nHINT: Look.\n");
    }
}
