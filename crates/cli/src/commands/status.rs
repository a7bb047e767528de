//! Tells people, and programs, whether a server is safe: what `nrt.status` says, without SQL.

use std::path::Path;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use nrt_core::health::{self, Check, Severity};
use nrt_core::inventory::Inventory;
use nrt_core::layout;
use nrt_core::offsite::{Phase, Status};
use serde::Serialize;

use super::server::{self, Server};
use super::show;
use crate::exit;

/// Shows whether the server is backed up, and how far off-site.
///
/// Exit code: 0 if all is well, 1 if something wants attention, 2 if work can be lost, 3 if it
/// cannot be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Report {
    server_is_running: bool,
    /// Whether what `offsite` says is the present.
    ships: bool,
    severity: Severity,
    last_backup: Option<String>,
    backups: usize,
    offsite: Option<Status>,
    /// Seconds.
    ship_lag: Option<f64>,
    health: Vec<Check>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let state = match arguments.server.state() {
        Ok(state) => state,
        Err(error) => return exit::unknown(&error),
    };
    let report = collect(&state, arguments.server.is_running(), Utc::now());
    show(&report, arguments.json, text);
    exit::judged(report.severity)
}

fn collect(state: &Path, server_is_running: bool, now: DateTime<Utc>) -> Report {
    let mut health: Vec<Check> = server::read(state, layout::HEALTH).unwrap_or_default();
    if !server_is_running || health.is_empty() {
        health.retain(|check| check.name != "worker");
        health.insert(0, health::worker_missing());
    }
    let inventory: Option<Inventory> = server::read(state, layout::INVENTORY);
    let backups = inventory.and_then(|it| it.repository.ok()).map(|it| it.info.backups);
    let backups = backups.unwrap_or_default();
    let remote = health.iter().find(|check| check.name == "remote");
    let offsite: Option<Status> = server::read(state, layout::SHIP);
    let offsite = offsite.filter(|_| !remote.is_some_and(health::is_off));
    // Shipping that has ended, or was paused, leaves its last word behind.
    if let Some(status) = offsite.as_ref().filter(|_| server_is_running) {
        health::heed_silence(&mut health, status, now);
    }
    let remote = health.iter().find(|check| check.name == "remote");
    let ships = server_is_running
        && offsite.as_ref().is_some_and(|status| {
            status.phase != Phase::Shipping
                || remote.is_some_and(|check| check.severity == Severity::Ok)
        });
    Report {
        server_is_running,
        ships,
        severity: health::worst(&health),
        last_backup: backups.last().map(|backup| backup.label.clone()),
        backups: backups.len(),
        ship_lag: offsite.as_ref().filter(|_| ships).and_then(|status| lag(status, now)),
        offsite,
        health,
    }
}

/// Seconds of work that are not off-site; `None` while nothing can be restored from there.
pub(super) fn lag(status: &Status, now: DateTime<Utc>) -> Option<f64> {
    status.shipped?;
    let since = status.behind_since.map(|since| (now - since).num_milliseconds().max(0));
    Some(since.map_or(0.0, |milliseconds| milliseconds as f64 / 1000.0))
}

fn text(report: &Report) -> String {
    let mut lines = vec![
        format!("server     {}", if report.server_is_running { "running" } else { "not running" }),
        format!(
            "backups    {} here, the last one {}",
            report.backups,
            report.last_backup.as_deref().unwrap_or("none")
        ),
    ];
    if let Some(status) = &report.offsite {
        let phase = if report.ships { status.phase.as_str() } else { "stopped" };
        lines.push(format!("remote     {} ({phase})", status.remote));
        lines.push(format!("off-site   {} backups", status.backups.len()));
        if let Some(shipped) = status.shipped {
            lines.push(format!(
                "shipped    up to {} on timeline {}",
                shipped.flushed, shipped.timeline
            ));
        }
        lines.push(match (report.ship_lag, status.shipped, status.behind_since) {
            (Some(lag), ..) => match status.silent_since {
                None => format!("lag        {lag:.1} s"),
                Some(since) => {
                    format!("lag        unknown since {since}: the worker does not report")
                }
            },
            (None, None, _) => "lag        nothing can be restored from there yet".to_string(),
            (None, Some(_), None) => "lag        all that was heard of is there".to_string(),
            (None, Some(_), Some(since)) => {
                format!("lag        WAL from {since} on is missing there")
            }
        });
    }
    lines.push(format!("health     {}", report.severity.as_str()));
    for check in report.health.iter().filter(|check| check.severity != Severity::Ok) {
        lines.push(format!("  {} {}: {}", check.severity.as_str(), check.name, check.message));
        if !check.hint.is_empty() {
            lines.push(format!("    HINT: {}", check.hint));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use nrt_core::offsite::Position;

    #[test]
    fn a_server_that_does_not_run_is_never_well() {
        let state = tempfile::tempdir().expect("a directory");
        let report = collect(state.path(), false, Utc::now());
        assert_eq!(report.severity, Severity::Critical);
        assert!(text(&report).contains("not running"));
    }

    #[test]
    fn what_shipping_said_before_it_ended_is_not_the_present() {
        let state = tempfile::tempdir().expect("a directory");
        let write = |name: &str, value: serde_json::Value| {
            std::fs::write(state.path().join(name), value.to_string()).expect("written");
        };
        let position = Position { timeline: 1, flushed: nrt_core::lsn::Lsn(1) };
        let told = Status { phase: Phase::Shipping, shipped: Some(position), ..Status::default() };
        write(layout::SHIP, serde_json::json!(told));
        for (severity, is_present) in [("ok", true), ("warning", false), ("critical", false)] {
            let check = serde_json::json!({
                "name": "remote", "severity": severity, "message": "m", "hint": ""
            });
            write(layout::HEALTH, serde_json::json!([check]));
            let report = collect(state.path(), true, Utc::now());
            assert_eq!(report.ship_lag.is_some(), is_present, "{severity}");
            assert_eq!(text(&report).contains("(shipping)"), is_present, "{severity}");
        }
        assert_eq!(collect(state.path(), false, Utc::now()).ship_lag, None);
    }

    #[test]
    fn says_how_far_behind_the_remote_is() {
        let now = Utc::now();
        let mut status = Status { behind_since: Some(now), ..Status::default() };
        assert_eq!(lag(&status, now), None);
        status.shipped = Some(Position { timeline: 1, flushed: nrt_core::lsn::Lsn(1) });
        assert_eq!(lag(&status, now + chrono::TimeDelta::milliseconds(1500)), Some(1.5));
        status.behind_since = None;
        assert_eq!(lag(&status, now), Some(0.0));
    }
}
