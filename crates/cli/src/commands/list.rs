//! Lists the backups.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use nrt_core::health::{self, Check};
use nrt_core::inventory::Inventory;
use nrt_core::kind::{BackupType, Trigger};
use nrt_core::layout;
use nrt_core::machine::trigger_of;
use nrt_core::offsite::Status;
use nrt_core::size::format_size;
use serde::Serialize;

use super::server::{self, Server};
use super::{show, table};
use crate::exit;

/// Lists the backups in the repository, oldest first, and which of them are off-site.
///
/// As the server's worker saw them last; the server need not run. What a remote holds, also of a
/// server that is gone, nrt-backup recovery list-backups says. Exit code: 0, or 2 if it cannot be
/// told.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// A backup.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    label: String,
    #[serde(rename = "type")]
    kind: BackupType,
    started: DateTime<Utc>,
    ended: DateTime<Utc>,
    /// Seconds.
    took: i64,
    /// Bytes of the cluster.
    size: Option<u64>,
    /// Bytes that it added to the repository.
    stored: Option<u64>,
    trigger: Trigger,
    /// Whether it can be restored from the remote; absent where there is none.
    offsite: Option<bool>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match arguments.server.state().and_then(|state| collect(&state)) {
        Ok(rows) => {
            show(rows.as_slice(), arguments.json, text);
            ExitCode::SUCCESS
        }
        Err(error) => exit::refused(&error),
    }
}

fn collect(state: &Path) -> anyhow::Result<Vec<Row>> {
    let Some(inventory) = server::read::<Inventory>(state, layout::INVENTORY) else {
        bail!("no repository has been looked at yet\nHINT: Start the server, and wait a moment.");
    };
    let repository = match inventory.repository {
        Ok(repository) => repository,
        Err(failure) => bail!("{}\nHINT: {}", failure.message, failure.hint),
    };
    let reasons: BTreeMap<String, Trigger> = server::recent_jobs(state)
        .into_iter()
        .filter_map(|job| Some((job.label?, job.trigger)))
        .collect();
    let checks: Vec<Check> = server::read(state, layout::HEALTH).unwrap_or_default();
    let ships = !checks.iter().any(|check| check.name == "remote" && health::is_off(check));
    let offsite: Option<Status> = server::read(state, layout::SHIP).filter(|_| ships);
    let rows = repository.info.backups.iter().map(|backup| Row {
        label: backup.label.clone(),
        kind: backup.kind,
        started: backup.start_time,
        ended: backup.stop_time,
        took: (backup.stop_time - backup.start_time).num_seconds(),
        size: backup.size,
        stored: backup.repo_delta,
        trigger: reasons.get(&backup.label).copied().unwrap_or_else(|| trigger_of(backup)),
        offsite: offsite.as_ref().map(|status| status.backups.contains(&backup.label)),
    });
    Ok(rows.collect())
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no backup has been taken yet\n".to_string();
    }
    let bytes = |bytes: Option<u64>| bytes.map_or("?".to_string(), format_size);
    let cells = rows.iter().map(|row| {
        vec![
            row.label.clone(),
            row.kind.to_string(),
            row.ended.to_rfc3339_opts(SecondsFormat::Secs, true),
            format!("{} s", row.took),
            bytes(row.size),
            bytes(row.stored),
            row.trigger.to_string(),
            row.offsite.map_or("-", |it| if it { "yes" } else { "no" }).to_string(),
        ]
    });
    let head = ["backup", "type", "ended", "took", "size", "stored", "trigger", "off-site"];
    table(&head, cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_shown_in_columns() {
        let row = Row {
            label: "20260310-120000F".to_string(),
            kind: BackupType::Full,
            started: DateTime::UNIX_EPOCH,
            ended: DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(12),
            took: 12,
            size: Some(1 << 20),
            stored: None,
            trigger: Trigger::Manual,
            offsite: Some(true),
        };
        let shown = text(&[row]);
        let words: Vec<&str> = shown.lines().nth(1).unwrap().split("  ").map(str::trim).collect();
        let words: Vec<&str> = words.into_iter().filter(|it| !it.is_empty()).collect();
        assert_eq!(words[..2], ["20260310-120000F", "full"]);
        assert_eq!(words[2..4], ["1970-01-01T00:00:12Z", "12 s"]);
        assert_eq!(words[5..], ["?", "manual", "yes"]);
    }

    #[test]
    fn what_is_not_known_is_no_empty_list() {
        let state = tempfile::tempdir().expect("a directory");
        assert!(collect(state.path()).is_err());
    }
}
