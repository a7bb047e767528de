//! Ships off-site for the worker; see the crate `nrt_ship`.

use std::process::ExitCode;

use anyhow::Context;

use crate::exit;
use nrt_ship as ship;

/// Ships backups and WAL to the remote, for the worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to ship and where to, as JSON.
    plan: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let plan = serde_json::from_str(&arguments.plan).context("read the plan");
    match plan.and_then(ship::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::child_failed(&error),
    }
}
