//! Shows and controls what becomes of the WAL.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use nrt_core::health::{self, Check, Severity};
use nrt_core::inventory::Inventory;
use nrt_core::job;
use nrt_core::kind::BackupType;
use nrt_core::layout::{self, Present};
use nrt_core::offsite::{Position, Status};
use nrt_core::restore::drill::journal;
use nrt_core::size::format_size;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::server::{self, Server};
use super::status::lag;
use super::{backup, logs, show};
use crate::exit;

const PAUSE: Duration = Duration::from_millis(200);
/// The worker gives its children four seconds to end, and is started again five seconds later.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the worker may take to write down the present when it is woken.
const FRESH: Duration = Duration::from_secs(2);
/// The checks that say how the WAL leaves the server.
const CHECKS: [&str; 6] = ["archiving", "wal_gap", "wal_disk", "remote", "shipping", "mirror"];

/// Shows and controls what becomes of the WAL: its growth, archiving and shipping.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows how much WAL was written since the last backup, and how far it is archived and shipped.
    ///
    /// Exit code: 0 if it goes where it should, 1 if something wants attention, 2 if work can be
    /// lost, 3 if it cannot be told.
    Status {
        #[command(flatten)]
        server: Server,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Takes an incremental backup now, however much WAL there is: nrt-backup backup --incremental.
    ForceBackup {
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        how: backup::How,
    },
    /// Has the server's worker start anew, and shipping with it.
    ///
    /// The server itself goes on. Refused while a backup or a drill runs. Exit code: 0 when the
    /// new worker runs, 1 if it does not.
    Restart {
        #[command(flatten)]
        server: Server,
        /// Also while a backup or a drill runs: a backup is taken again, a drill is broken off.
        #[arg(long)]
        force: bool,
    },
    /// Shows the end of what shipping printed: nrt-backup logs ship.
    Logs {
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        how: logs::How,
    },
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Status { server, json } => status(server, *json),
        Command::ForceBackup { server, how } => backup::take(server, BackupType::Incr, how),
        Command::Logs { server, how } => logs::show(server, &[logs::Of::Ship], how),
        Command::Restart { server, force } => match restart(server, *force) {
            Ok(worker) => {
                println!("the nrt_backup worker runs again, as process {worker}");
                ExitCode::SUCCESS
            }
            Err(error) => exit::failed(&error),
        },
    }
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Report {
    server_is_running: bool,
    /// When the worker said so.
    at: DateTime<Utc>,
    growth: Option<u64>,
    /// Where the last backup ended.
    growth_since: Option<String>,
    wal_monitor: bool,
    wal_growth_threshold: u64,
    min_wal_growth: u64,
    /// Seconds.
    wal_monitor_interval: i64,
    next_look: DateTime<Utc>,
    backups_paused: bool,
    flushed: Option<Position>,
    /// Up to where finished segments are in the repository, when that was looked at last.
    archived: Option<Position>,
    shipped: Option<Position>,
    /// Whether a remote is configured.
    ships: bool,
    /// Seconds.
    ship_lag: Option<f64>,
    severity: Severity,
    /// What is not well.
    failures: Vec<Check>,
}

fn status(server: &Server, json: bool) -> ExitCode {
    let report = server.state().and_then(|state| {
        refresh(server, &state);
        collect(&state, server.is_running(), Utc::now())
    });
    match report {
        Ok(report) => {
            show(&report, json, text);
            exit::judged(report.severity)
        }
        Err(error) => exit::unknown(&error),
    }
}

fn written(state: &Path) -> Option<SystemTime> {
    fs::metadata(state.join(layout::PRESENT)).ok()?.modified().ok()
}

/// Has the worker write down the present. One that does not is no reason to show nothing.
fn refresh(server: &Server, state: &Path) {
    let (before, begin) = (written(state), Instant::now());
    while server.worker().is_some() && written(state) == before && begin.elapsed() < FRESH {
        server.wake_worker();
        thread::sleep(PAUSE);
    }
}

fn collect(state: &Path, server_is_running: bool, now: DateTime<Utc>) -> anyhow::Result<Report> {
    let present: Present = server::read(state, layout::PRESENT).context(
        "the nrt_backup worker has told nothing yet\n\
         HINT: Start the server with nrt_backup in shared_preload_libraries, and wait a moment",
    )?;
    let mut failures: Vec<Check> = server::read(state, layout::HEALTH).unwrap_or_default();
    if server_is_running {
        failures.retain(|check| CHECKS.contains(&&*check.name));
        failures.retain(|check| check.severity != Severity::Ok);
    } else {
        failures = vec![health::worker_missing()];
    }
    let inventory: Option<Inventory> = server::read(state, layout::INVENTORY);
    let archived = inventory.and_then(|inventory| {
        let system_id = inventory.repository.as_ref().ok()?.system_id()?;
        let last = inventory.archive_of(system_id).into_iter().next_back()?;
        Some(Position { timeline: last.timeline, flushed: last.to })
    });
    let told: Option<Status> = server::read(state, layout::SHIP);
    let told = told.filter(|_| present.remote.is_some());
    Ok(Report {
        server_is_running,
        at: present.at,
        growth: present.growth,
        growth_since: present.growth_since.map(|at| at.to_string()),
        wal_monitor: present.wal_monitor,
        wal_growth_threshold: present.wal_growth_threshold,
        min_wal_growth: present.min_wal_growth,
        wal_monitor_interval: present.wal_monitor_interval,
        next_look: present.next_look,
        backups_paused: present.backups_paused,
        flushed: present.flushed,
        archived,
        shipped: told.as_ref().and_then(|told| told.shipped),
        ships: present.remote.is_some(),
        ship_lag: told.as_ref().filter(|_| server_is_running).and_then(|told| lag(told, now)),
        severity: health::worst(&failures),
        failures,
    })
}

fn text(report: &Report) -> String {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let place = |at: &Position| format!("up to {} on timeline {}", at.flushed, at.timeline);
    let mut lines = Vec::new();
    let mut row = |name: &str, words: String| lines.push(format!("{name:<10} {words}"));
    if !report.server_is_running {
        row("server", format!("not running; this was so at {}", time(report.at)));
    }
    row(
        "growth",
        match (report.growth, &report.growth_since) {
            (Some(growth), Some(since)) => {
                format!("{} since the last backup, which ended at {since}", format_size(growth))
            }
            _ => "not known: there is no backup yet".to_string(),
        },
    );
    row(
        "threshold",
        format!(
            "{} start a backup; with less than {} a scheduled one is skipped",
            format_size(report.wal_growth_threshold),
            format_size(report.min_wal_growth)
        ),
    );
    row(
        "monitor",
        match (report.backups_paused, report.wal_monitor) {
            (true, _) => "backups are paused".to_string(),
            (_, false) => "off: growth starts no backup".to_string(),
            _ => format!(
                "looks every {} s, next at {}",
                report.wal_monitor_interval,
                time(report.next_look)
            ),
        },
    );
    let or = |at: &Option<Position>, none: &str| at.as_ref().map_or(none.to_string(), place);
    row("flushed", or(&report.flushed, "not known"));
    row("archived", or(&report.archived, "nothing yet"));
    let nothing = if report.ships { "nothing yet" } else { "nowhere: no remote is configured" };
    row("shipped", or(&report.shipped, nothing));
    if let Some(lag) = report.ship_lag {
        row("lag", format!("{lag:.1} s"));
    }
    row("failures", if report.failures.is_empty() { "none" } else { "" }.to_string());
    for check in &report.failures {
        lines.push(format!("  {} {}: {}", check.severity.as_str(), check.name, check.message));
        if !check.hint.is_empty() {
            lines.push(format!("    HINT: {}", check.hint));
        }
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n") + "\n"
}

/// Ends the worker; the postmaster starts it again.
fn restart(server: &Server, force: bool) -> anyhow::Result<i32> {
    let state = server.state()?;
    if !server.is_running() {
        bail!("the server does not run\nHINT: Start it; its worker starts with it.");
    }
    let Some(worker) = server.worker() else {
        bail!(
            "the nrt_backup worker does not run\n\
             HINT: It is started again by itself; see nrt-backup status, and the server's log."
        );
    };
    if let Some(what) = at_work(&state).filter(|_| !force) {
        bail!("{what} runs\nHINT: Wait for it, or break it off with --force.");
    }
    let before = written(&state);
    kill_process(worker, Signal::TERM).context("end the worker")?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        thread::sleep(PAUSE);
        let new = server.worker().filter(|new| *new != worker);
        if let Some(new) = new.filter(|_| written(&state) != before) {
            return Ok(Pid::as_raw(Some(new)));
        }
        if !server.is_running() {
            bail!("the server was stopped\nHINT: Start it; its worker starts with it.");
        }
    }
    bail!(
        "the nrt_backup worker does not {}\nHINT: See the server's log.",
        if server.worker() == Some(worker) { "end" } else { "start again" }
    )
}

/// What a restart of the worker would break off.
fn at_work(state: &Path) -> Option<String> {
    let running = |it: &job::Job| it.status == job::Status::Running;
    if let Some(job) = server::recent_jobs(state).iter().find(|it| running(it)) {
        return Some(format!("backup job {}", job.id));
    }
    let drills = journal::read(&fs::read(state.join(layout::DRILLS)).unwrap_or_default());
    let drill = drills.iter().rev().find(|it| it.outcome.is_none())?;
    Some(format!("drill {}", drill.number))
}

#[cfg(test)]
mod tests {
    use nrt_core::lsn::Lsn;

    use super::*;

    fn present() -> Present {
        Present {
            at: DateTime::UNIX_EPOCH,
            flushed: Some(Position { timeline: 2, flushed: Lsn(0x300_0000) }),
            growth: Some(5 << 20),
            growth_since: Some(Lsn(0x200_0000)),
            wal_monitor: true,
            wal_growth_threshold: 100 << 20,
            min_wal_growth: 1 << 20,
            wal_monitor_interval: 60,
            next_look: DateTime::UNIX_EPOCH,
            backups_paused: false,
            remote: None,
        }
    }

    fn report(present: &Present, runs: bool) -> Report {
        let state = tempfile::tempdir().expect("a directory");
        let text = serde_json::to_string(present).expect("it is text");
        fs::write(state.path().join(layout::PRESENT), text).expect("written");
        collect(state.path(), runs, DateTime::UNIX_EPOCH).expect("it is there")
    }

    #[test]
    fn growth_and_positions_are_shown() {
        let shown = text(&report(&present(), true));
        for words in [
            "growth     5 MB since the last backup, which ended at 0/2000000\n",
            "monitor    looks every 60 s, next at 1970-01-01T00:00:00Z\n",
            "flushed    up to 0/3000000 on timeline 2\n",
            "shipped    nowhere: no remote is configured\n",
            "failures   none\n",
        ] {
            assert!(shown.contains(words), "{words}{shown}");
        }
        let paused = Present { backups_paused: true, growth: None, ..present() };
        let shown = text(&report(&paused, true));
        assert!(shown.contains("backups are paused") && shown.contains("there is no backup yet"));
    }

    #[test]
    fn where_nobody_works_it_is_not_well() {
        let report = report(&present(), false);
        assert_eq!(report.severity, Severity::Critical);
        assert!(text(&report).starts_with("server     not running"));
    }
}
