//! Brings a cluster back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use nrt_core::restore::{Code, Refusal};
use nrt_core::size::format_size;
use serde_json::json;

use super::source::{From, To, words};
use super::zone::zone;
use crate::exit;
use nrt_restore::{self as restore, Existing, Report, Request, Start, Work};

/// pgBackRest takes no more than this for `--process-max`.
const MOST_PROCESSES: usize = 999;

/// Restores a cluster to a point in time, from a remote or from a repository on this machine.
///
/// Shows the plan, fetches what it needs, restores, recovers, and starts the server. What cannot be
/// reached is refused before anything is touched. Interrupted, the same command goes on where it
/// was. Exit code: 0 if the cluster is restored as planned, 1 if not, 3 if recovery ended before the
/// end of the plan: the server is not started then.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The data directory to restore into.
    #[arg(short = 'D', long = "pgdata", env = "PGDATA", value_name = "DIRECTORY")]
    data: PathBuf,
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    from: From,
    /// Move what is in the data directory aside first; nothing of it is deleted.
    #[arg(long, conflicts_with = "delta")]
    replace: bool,
    /// Use what in the data directory is the same as in the backup; the rest of it is deleted.
    #[arg(long)]
    delta: bool,
    /// Show the plan and stop.
    #[arg(long)]
    dry_run: bool,
    /// Recover, and leave the server stopped.
    #[arg(long)]
    no_start: bool,
    /// Start nothing at all: recovery runs when you start the server.
    #[arg(long, conflicts_with = "no_start")]
    no_recovery: bool,
    /// The server's postgresql.conf, where it lay outside of the data directory: the remote's copy, or
    /// that of the server that was here last, by default.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Restore a tablespace, by its name or id, to another directory; may be repeated. One that is
    /// newer than the backup is named by its id, or by the directory where it was.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    tablespace_map: Vec<String>,
    /// Restore only this database, and none of the others' data; may be repeated.
    #[arg(long, value_name = "NAME")]
    db_include: Vec<String>,
    /// The restored server neither archives nor ships: the original lives on. By default, that is
    /// found out.
    #[arg(long, conflicts_with = "original")]
    copy: bool,
    /// The restored server takes the original's place, whatever it looks like.
    #[arg(long)]
    original: bool,
    /// Processes that restore; all cores, by default.
    #[arg(long, value_name = "NUMBER")]
    process_max: Option<u32>,
    /// Where the restore works: what it fetches is there until it has ended. Beside the data
    /// directory by default.
    #[arg(long, value_name = "DIRECTORY")]
    work_directory: Option<PathBuf>,
    /// Where the fetched backups are kept: the repository of the restored server. By default what
    /// nrt_backup.repository says in its configuration.
    #[arg(long, value_name = "DIRECTORY")]
    local_repository: Option<PathBuf>,
    /// Do not ask the disks whether they have room: a file system that compresses takes more than
    /// it says.
    #[arg(long)]
    ignore_space: bool,
    /// For programs: print what came of it as JSON, and no progress.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let begin = Instant::now();
    match restore(arguments) {
        Ok(Some(report)) if arguments.json => {
            println!("{:#}", report_json(&report));
            ExitCode::SUCCESS
        }
        Ok(Some(report)) => {
            print!("{}", report_text(&report, begin.elapsed()));
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(refusal) => {
            if arguments.json {
                println!(
                    "{:#}",
                    json!({ "error": {
                        "code": refusal.code,
                        "message": refusal.message,
                        "hint": refusal.hint,
                    } })
                );
            }
            exit::print(words(&refusal));
            match refusal.code {
                Some(Code::Short) => ExitCode::from(exit::SHORT),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn restore(arguments: &Arguments) -> Result<Option<Report>, Refusal> {
    // Before anything is made: the server's user could not use it, and it may hold secrets.
    restore::refuse_root()?;
    let target = arguments.to.target(Utc::now())?;
    let data = restore::whole(&arguments.data)?;
    let mut tablespaces = Vec::new();
    for map in &arguments.tablespace_map {
        let Some((name, path)) = map.split_once('=').filter(|(_, it)| it.starts_with('/')) else {
            return Err(Refusal::new(
                format!("\"{map}\" maps no tablespace"),
                "Write it as NAME=/DIRECTORY.",
            ));
        };
        tablespaces.push((name.to_string(), PathBuf::from(path)));
    }
    let directory =
        arguments.work_directory.clone().unwrap_or_else(|| restore::work_directory(&data));
    let directory = restore::whole(&directory)?;
    let work = Work::make(&directory).map_err(restore::told)?;
    let cores = std::thread::available_parallelism().map_or(1, |it| it.get());
    let request = Request {
        place: arguments.from.place(Some(&data), &work)?,
        stanza: arguments.from.stanza.clone(),
        target,
        existing: match (arguments.replace, arguments.delta) {
            (true, _) => Existing::Replace,
            (_, true) => Existing::Delta,
            _ => Existing::Refuse,
        },
        data,
        work: Some(directory),
        config_file: arguments.config_file.clone(),
        tablespaces,
        tablespaces_below: None,
        databases: arguments.db_include.clone(),
        bindir: arguments.from.bindir.clone(),
        processes: arguments
            .process_max
            .unwrap_or_else(|| u32::try_from(cores.min(MOST_PROCESSES)).unwrap_or(1)),
        start: match (arguments.no_start, arguments.no_recovery) {
            (true, _) => Start::Recover,
            (_, true) => Start::No,
            _ => Start::Yes,
        },
        is_copy: match (arguments.copy, arguments.original) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        settings: Vec::new(),
        repository: arguments.local_repository.clone(),
        original: None,
        rates: restore::last_phases(&arguments.data),
        is_quiet: arguments.json,
        ignore_space: arguments.ignore_space,
        only_configuration: None,
    };
    let shown = std::cell::Cell::new(false);
    let outcome = restore::run(&request, &mut |plan| {
        if !arguments.json {
            eprint!("{}", plan.text(zone()));
        } else if arguments.dry_run {
            println!("{:#}", json!(plan));
        }
        shown.set(true);
        // Whoever only wanted to see it has.
        if arguments.dry_run { Err(Refusal::new("", "")) } else { Ok(()) }
    });
    match outcome {
        Err(_) if arguments.dry_run && shown.get() => Ok(None),
        outcome => outcome.map(Some),
    }
}

fn seconds(value: f64) -> String {
    if value < 120.0 {
        format!("{value:.1} s")
    } else {
        format!("{:.0} min {:.0} s", (value / 60.0).floor(), value % 60.0)
    }
}

fn report_text(report: &Report, elapsed: Duration) -> String {
    let mut lines = Vec::new();
    if let Some(recovered) = &report.recovered {
        let zone = zone();
        let commit = recovered.last_commit.map_or_else(
            || "no transaction was replayed".to_string(),
            |at| {
                let at = at.with_timezone(&zone);
                format!("last transaction at {}", at.format("%Y-%m-%d %H:%M:%S%.6f %Z"))
            },
        );
        lines.push(format!(
            "recovered  to {} on timeline {}, {commit}",
            recovered.lsn, recovered.timeline
        ));
    }
    let phases = &report.phases;
    let mut took = vec![format!("plan {}", seconds(phases.plan))];
    if phases.fetched_bytes > 0 {
        let bytes = format_size(phases.fetched_bytes);
        took.push(format!("fetch {} ({bytes})", seconds(phases.fetch)));
    }
    took.push(format!("restore {}", seconds(phases.restore)));
    if report.recovered.is_some() {
        took.push(format!(
            "replay {} ({} of WAL)",
            seconds(phases.replay),
            format_size(phases.replayed_bytes)
        ));
    }
    // Signs of life were waited for, files moved, the server started.
    let rest = elapsed.as_secs_f64() - phases.total();
    if rest >= 0.1 {
        took.push(format!("waiting, and starting the server {}", seconds(rest)));
    }
    let total = phases.total().max(elapsed.as_secs_f64());
    lines.push(format!("took       {}: {}", seconds(total), took.join(", ")));
    if let Some(aside) = &report.aside {
        lines.push(format!("kept       what was there before is \"{}\"", aside.display()));
    }
    if let Some(path) = &report.configuration {
        lines.push(format!(
            "config     the original's own, in \"{}\": start with -c config_file={}",
            path.parent().unwrap_or(path).display(),
            path.display()
        ));
    }
    if let Some(why) = &report.copy_of {
        lines.push(format!(
            "copy       {why}: this one neither archives nor ships. To make it a server of its \
             own: ALTER SYSTEM RESET archive_mode, restart, nrt-backup takeover"
        ));
    }
    for note in &report.notes {
        lines.push(format!("note       {note}"));
    }
    lines.push(if report.is_running {
        "The server runs.".to_string()
    } else {
        "The server is not running.".to_string()
    });
    lines.join("\n") + "\n"
}

fn report_json(report: &Report) -> serde_json::Value {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
    json!({
        "plan": report.plan,
        "recovered": report.recovered.as_ref().map(|it| json!({
            "backup": it.backup,
            "timeline": it.timeline,
            "lsn": it.lsn,
            "last_commit": it.last_commit.map(time),
        })),
        "phases": report.phases,
        "aside": report.aside,
        "configuration": report.configuration,
        "is_running": report.is_running,
        "copy_of": report.copy_of,
        "notes": report.notes,
    })
}
