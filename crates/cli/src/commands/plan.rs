//! Shows what can be restored, and what a restore would do.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use nrt_core::lsn::Lsn;
use nrt_core::restore::plan::{Overview, steps, windows};
use rustix::process::geteuid;
use serde_json::json;

use super::answer::{Answer, directory, print};
use super::server;
use super::source::{From, To};
use super::zone::zone;
use crate::exit;
use nrt_restore::{self as restore, OwnWal, Work};

/// Shows what can be restored and, with a target, every step of the restore to it.
///
/// Touches nothing. Exit code: 0 if the target can be reached, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The data directory: that of a server whose backups are meant, or the one to restore into.
    #[arg(short = 'D', long = "pgdata", env = "PGDATA", value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    from: From,
    /// For programs.
    #[arg(long)]
    json: bool,
    // A running server says how far its own WAL is good.
    #[arg(long, hide = true, requires = "server_timeline")]
    flushed: Option<Lsn>,
    #[arg(long, hide = true, requires = "flushed")]
    server_timeline: Option<u32>,
}

/// How the names of the directories begin in which plans are made.
const PREFIX: &str = "nrt-plan-";
/// A plan that begins needs less until it holds its directory.
const BEGINNING: Duration = Duration::from_secs(60);

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    // What is said on the command line, only root may be able to read.
    if let Some(data) = arguments.data.as_ref().filter(|_| !arguments.from.is_said())
        && let Err(error) = server::go_on_as_owner(data)
    {
        return exit::failed(&error);
    }
    sweep(&env::temp_dir());
    print(answer(arguments), arguments.json, "")
}

/// Removes what plans have left that were killed, as those of a statement are that is cancelled.
fn sweep(place: &Path) {
    let user = geteuid().as_raw();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_left = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|it| {
                let age = it.modified().ok().and_then(|at| at.elapsed().ok());
                it.is_dir() && it.uid() == user && age.is_some_and(|age| age > BEGINNING)
            })
            && !Work::at(&path).is_held();
        if is_left {
            // What cannot be removed hurts no plan.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn answer(arguments: &Arguments) -> Answer {
    let directory = directory(PREFIX)?;
    let target = arguments.to.target(Utc::now())?;
    let data = arguments.data.as_deref().map(restore::whole).transpose()?;
    let work = Work::make(directory.path()).map_err(restore::told)?;
    let _held = work.hold().map_err(restore::told)?;
    let place = arguments.from.place(data.as_deref(), &work)?;
    let stanza = arguments.from.stanza.as_deref();
    let pg_wal = data.as_ref().map(|data| data.join("pg_wal"));
    let own = match (&pg_wal, arguments.flushed, arguments.server_timeline) {
        (Some(directory), Some(flushed), Some(timeline)) => {
            Some(OwnWal { directory, timeline, flushed, system_id: None })
        }
        _ => None,
    };
    let into = data.clone().unwrap_or_else(|| PathBuf::from("/var/lib/postgresql/data"));
    // A server that asks means a plan: without a target, to the newest.
    if !arguments.to.is_given() && arguments.flushed.is_none() {
        let (catalog, _) = restore::read_catalog(&place, stanza, &into, &work, own.as_ref())?;
        let windows = windows(&catalog);
        let overview = Overview::new(&catalog, &windows);
        return Ok((overview.text(zone()), json!(overview)));
    }
    let bindir = arguments.from.bindir.as_deref();
    let rates = restore::last_phases(&into);
    let (own, rates) = (own.as_ref(), rates.as_ref());
    let planned = restore::make_plan(&place, stanza, &target, &into, &work, own, bindir, rates)?;
    let steps = steps(&planned.plan, &into.to_string_lossy());
    Ok((planned.plan.text(zone()), json!({ "plan": planned.plan, "steps": steps })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_plans_have_left_goes_and_nothing_else() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        let make = |name: &str| Work::make(&at(name)).expect("made");
        let (left, _beginning, _another) =
            (make("nrt-plan-left"), make("nrt-plan-beginning"), make("another"));
        let runs = make("nrt-plan-runs");
        drop(left.hold().expect("held"));
        let held = runs.hold().expect("held");
        let long_ago = std::time::SystemTime::now() - 2 * BEGINNING;
        for name in ["nrt-plan-left", "nrt-plan-runs", "another"] {
            let directory = fs::File::open(at(name)).expect("there");
            directory.set_modified(long_ago).expect("ours");
        }
        sweep(place.path());
        let is_there = ["nrt-plan-left", "nrt-plan-runs", "nrt-plan-beginning", "another"]
            .map(|name| at(name).exists());
        assert_eq!(is_there, [false, true, true, true]);
        drop(held);
    }
}
