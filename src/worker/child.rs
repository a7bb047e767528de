//! Starts the worker's children and reads how they ended.
//!
//! Every child runs on a leash, with an environment of its own and none of the server's files.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use chrono::TimeDelta;
use nrt_core::archiving::Archiver;
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::kind::{BackupType, Trigger};
use nrt_core::layout::{self, Tool};
use nrt_core::look::{Plan, Server};
use nrt_core::machine::Exit;
use nrt_core::offsite;
use nrt_core::options;
use nrt_core::pgbackrest::{command, label, progress};
use nrt_core::restore::drill::Order;
use nrt_core::settings::Settings;
use nrt_process::{Leashed, Spec, allowed, allowed_for_rclone, allowed_in_zone, files};

use crate::postgres::{self, wal};
use crate::{archiving, settings, state_directory};

/// Between SIGTERM and SIGKILL. pgBackRest ends within 20 ms when its whole group is told to.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Up to this `checkpoint_timeout` a backup by growth waits for a checkpoint that takes its time.
const LONGEST_CHECKPOINT: u32 = 20 * 60;
/// More than pgBackRest prints before the first file.
const LOG_BEGIN: u64 = 16 << 10;
/// After this a look is given up: something hangs.
const LOOK_LIMIT: Duration = Duration::from_secs(120);

/// What the server knows of itself.
pub(crate) fn server(superuser: &str) -> Server {
    Server {
        state: text(state_directory::path()),
        data_directory: text(postgres::data_directory()),
        port: postgres::port(),
        socket_directory: postgres::socket_directory(),
        superuser: superuser.to_string(),
        segment_size: wal::segment_size(),
        cores: thread::available_parallelism().map_or(1, usize::from),
    }
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// The command that is installed beside the server.
fn nrt_backup() -> PathBuf {
    postgres::program_directory().join("nrt-backup")
}

/// Starts a look, a thorough one if somebody asked for it.
///
/// # Errors
///
/// If no process can be started.
pub(crate) fn look(
    server: &Server,
    settings: &Settings,
    thorough: bool,
) -> Result<Leashed, Failure> {
    let archiving = archiving::now();
    let by_pgbackrest = matches!(archiving.by, Archiver::Ours | Archiver::PgBackRest);
    let timeline = wal::flushed().map(|(timeline, _)| timeline);
    let timeline = timeline.filter(|_| archiving.mode_on && by_pgbackrest);
    let stanza = settings::value_of(&options::STANZA);
    let system_id = postgres::system_identifier();
    let plan = Plan::new(server, settings, stanza, system_id, thorough, timeline);
    let plan = serde_json::to_string(&plan).map_err(|error| Failure {
        message: format!("could not describe the look: {error}"),
        hint: "Look for characters that are not UTF-8 in the settings' paths.".to_string(),
    })?;
    let args = vec!["look".to_string(), plan];
    start(nrt_backup(), args, None, Some(LOOK_LIMIT), false)
}

/// Starts shipping.
///
/// # Errors
///
/// If no process can be started.
pub(crate) fn ship(plan: &offsite::Plan) -> Result<Leashed, Failure> {
    let plan = serde_json::to_string(plan).map_err(|error| Failure {
        message: format!("could not describe what to ship: {error}"),
        hint: "Look for characters that are not UTF-8 in the settings' paths.".to_string(),
    })?;
    start_with_rclone(vec!["ship".to_string(), plan], Some(layout::SHIP_LOG), true)
}

/// Starts a drill, or the removal of what one has left behind.
///
/// # Errors
///
/// If no process can be started.
pub(crate) fn drill(order: &Order, only_clean: bool) -> Result<Leashed, Failure> {
    let order = serde_json::to_string(order).map_err(|error| Failure {
        message: format!("could not describe the drill: {error}"),
        hint: "Look for characters that are not UTF-8 in the settings' paths.".to_string(),
    })?;
    let mut args = vec!["drill".to_string(), "--order".to_string(), order];
    args.extend(only_clean.then(|| "--clean".to_string()));
    // What the drill said stays there while its leftovers are removed.
    let log = (!only_clean).then_some(layout::DRILL_LOG);
    start_with_rclone(args, log, false)
}

/// Starts the creation of the stanza.
///
/// # Errors
///
/// If no process can be started, or no look has found pgBackRest yet.
pub(crate) fn create_stanza() -> Result<Leashed, Failure> {
    let tool = tool()?;
    let args = command::stanza_create(&tool.config, &tool.stanza);
    start_pgbackrest(tool, args, label::UTC)
}

/// Starts a backup, which pgBackRest names by the time in `zone`.
///
/// One that growth starts does not force a checkpoint at once. pgBackRest gives up after half an
/// hour without one: where a usual checkpoint may take longer, it is forced.
///
/// # Errors
///
/// If no process can be started, or no look has found pgBackRest yet.
pub(crate) fn backup(kind: BackupType, trigger: Trigger, zone: &str) -> Result<Leashed, Failure> {
    let tool = tool()?;
    let gentle = trigger == Trigger::WalGrowth && checkpoint_timeout() <= LONGEST_CHECKPOINT;
    let args = command::backup(&tool.config, &tool.stanza, &tool.exclude, kind, trigger, gentle);
    start_pgbackrest(tool, args, zone)
}

/// Seconds from one of the server's checkpoints to the next.
fn checkpoint_timeout() -> u32 {
    let text = postgres::config_option(c"checkpoint_timeout").unwrap_or_default();
    text.parse().unwrap_or(u32::MAX)
}

/// How long the last backup waited for its checkpoint.
pub(crate) fn checkpoint_wait() -> TimeDelta {
    let log = state_directory::file(layout::LOG).join(layout::JOB_LOG);
    let begin = files::open_plain(&log).and_then(|file| {
        let mut text = Vec::new();
        file.take(LOG_BEGIN).read_to_end(&mut text)?;
        Ok(text)
    });
    let begin = begin.unwrap_or_default();
    progress::checkpoint_wait(&String::from_utf8_lossy(&begin))
}

fn start_pgbackrest(tool: Tool, args: Vec<String>, zone: &str) -> Result<Leashed, Failure> {
    let env = allowed_in_zone(std::env::vars_os(), zone);
    run(&Spec { env, log: Some(new_log(layout::JOB_LOG)), ..spec(tool.program.into(), args) })
}

fn tool() -> Result<Tool, Failure> {
    state_directory::tool().ok_or_else(|| Failure {
        message: "pgBackRest has not been found yet".to_string(),
        hint: "See nrt.health.".to_string(),
    })
}

/// Asks `nrt-backup plan` what a restore would do; its answer comes back in the report.
///
/// # Errors
///
/// If no process can be started.
pub(crate) fn plan(args: Vec<String>) -> Result<Leashed, Failure> {
    run(&Spec { answer: true, ..with_rclone(spec(nrt_backup(), args)) })
}

fn start(
    program: PathBuf,
    args: Vec<String>,
    log: Option<&str>,
    time_limit: Option<Duration>,
    input: bool,
) -> Result<Leashed, Failure> {
    run(&Spec { log: log.map(new_log), time_limit, input, ..spec(program, args) })
}

/// The file that a child's words go to, without those of the one before.
fn new_log(name: &str) -> PathBuf {
    let log = state_directory::file(layout::LOG).join(name);
    // If it stays, the new one is appended.
    let _ = fs::remove_file(&log);
    log
}

/// Starts a process of ours that runs rclone.
fn start_with_rclone(
    args: Vec<String>,
    log: Option<&str>,
    input: bool,
) -> Result<Leashed, Failure> {
    run(&Spec { log: log.map(new_log), input, ..with_rclone(spec(nrt_backup(), args)) })
}

/// The same with what rclone alone may see. Our process passes it on to no other.
fn with_rclone(spec: Spec) -> Spec {
    Spec { env: allowed_for_rclone(std::env::vars_os()), ..spec }
}

/// A program that is to run as all of the server's children do.
fn spec(program: PathBuf, args: Vec<String>) -> Spec {
    Spec {
        program,
        args: args.into_iter().map(Into::into).collect(),
        env: allowed(std::env::vars_os()),
        log: None,
        directory: state_directory::path(),
        patience: PATIENCE,
        time_limit: None,
        input: false,
        answer: false,
    }
}

fn run(spec: &Spec) -> Result<Leashed, Failure> {
    Leashed::start(&nrt_backup(), spec).map_err(|error| Failure {
        message: error.to_string(),
        hint: "nrt-backup is installed beside the postgres program by the package and by \
               ./dev install."
            .to_string(),
    })
}

/// How the child in `slot` ended, if it has; the slot is empty then.
pub(crate) fn ended(slot: &mut Option<Leashed>) -> Option<Exit> {
    let exit = match slot.as_mut()?.try_wait() {
        Ok(None) => return None,
        Ok(Some(report)) => Exit {
            code: report.exit,
            signal: report.signal,
            output: if report.timed_out {
                format!("{}\nstopped, because it took too long", report.output)
            } else {
                report.output
            },
            waited: TimeDelta::zero(),
        },
        Err(error) => {
            Exit { code: None, signal: None, output: error.to_string(), ..Exit::default() }
        }
    };
    *slot = None;
    Some(exit)
}

/// What a look that has ended found.
///
/// # Errors
///
/// Its own words if it failed.
pub(crate) fn look_result(exit: &Exit) -> Result<Inventory, Failure> {
    if exit.code != Some(0) {
        let words = exit.output.trim();
        return Err(Failure {
            message: format!("could not look at the repository: {words}"),
            hint: "The repository's file system may hang; see the server's log.".to_string(),
        });
    }
    state_directory::fresh_inventory().map_err(|error| Failure {
        message: format!("could not read what the look found: {error}"),
        hint: "Make room on the data directory's disk.".to_string(),
    })
}

/// Whether the postmaster's own file says that it shuts down. It is the only sign of a shutdown
/// in "smart" mode while clients are connected.
pub(crate) fn postmaster_is_stopping() -> bool {
    let file = fs::read_to_string(postgres::data_directory().join("postmaster.pid"));
    file.is_ok_and(|text| layout::is_stopping(&text))
}
