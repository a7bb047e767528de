//! Shows what can be restored, and what a restore would do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::Utc;
use nrt_core::lsn::Lsn;
use nrt_core::restore::Refusal;
use nrt_core::restore::plan::{Overview, steps, windows};
use serde_json::{Value, json};

use super::server;
use super::source::{From, To, rates, words, zone};
use crate::restore::{self, OwnWal, Work};

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

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    // What is said on the command line, only root may be able to read.
    if let Some(data) = arguments.data.as_ref().filter(|_| !arguments.from.is_said())
        && let Err(error) = server::go_on_as_owner(data)
    {
        eprintln!("nrt-backup: {error:#}");
        return ExitCode::FAILURE;
    }
    let directory = match tempfile::Builder::new().prefix("nrt-plan-").tempdir() {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("nrt-backup: no temporary directory can be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    match answer(arguments, directory.path()) {
        Ok((text, value)) => {
            if arguments.json {
                println!("{value:#}");
            } else {
                print!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            if arguments.json {
                let error = json!({ "message": refusal.message, "hint": refusal.hint });
                println!("{:#}", json!({ "error": error }));
            } else {
                eprintln!("nrt-backup: {}", words(&refusal));
            }
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: &Arguments, directory: &Path) -> Result<(String, Value), Refusal> {
    let target = arguments.to.target(Utc::now())?;
    let data = arguments.data.as_deref().map(restore::whole).transpose()?;
    let work = Work::make(directory).map_err(restore::told)?;
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
        let (_, found) = restore::look(&place, stanza, &into, &work, own.as_ref(), false)?;
        let windows = windows(&found.catalog);
        let overview = Overview::new(&found.catalog, &windows);
        return Ok((overview.text(zone()), json!(overview)));
    }
    let bindir = arguments.from.bindir.as_deref();
    let rates = rates(&into);
    let (own, rates) = (own.as_ref(), rates.as_ref());
    let planned = restore::make_plan(&place, stanza, &target, &into, &work, own, bindir, rates)?;
    let steps = steps(&planned.plan, &into.to_string_lossy());
    Ok((planned.plan.text(zone()), json!({ "plan": planned.plan, "steps": steps })))
}
