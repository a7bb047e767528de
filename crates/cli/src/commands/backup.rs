//! Takes a backup through the server's worker, and says what came of it.

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nrt_core::job::{Job, Status};
use nrt_core::kind::BackupType;
use nrt_core::layout::{self, Kept};
use nrt_process::files;

use super::server::{self, Server};
use crate::exit;

const PAUSE: Duration = Duration::from_millis(200);
/// The worker looks at least every minute, should it not be woken.
const PATIENCE: Duration = Duration::from_secs(90);
/// A worker that has ended is started again within five seconds.
const WITHOUT_WORKER: Duration = Duration::from_secs(20);

/// Takes a backup now: incremental, unless another type is named.
///
/// The server's worker takes it, as nrt_backup_now() has it done, but no SQL is needed. When this
/// command is interrupted, the backup goes on. Prints the backup's label. Exit code: 0 if it was
/// taken, 1 if it was begun and failed, 2 if none could be begun.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// Everything.
    #[arg(long, conflicts_with_all = ["incremental", "diff"])]
    full: bool,
    /// What changed since the last backup of any type; a full one, where there is none.
    #[arg(long, conflicts_with = "diff")]
    incremental: bool,
    /// What changed since the last full backup.
    #[arg(long)]
    diff: bool,
    #[command(flatten)]
    how: How,
}

/// How the command goes on when the backup has been asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// Do not wait for its end.
    #[arg(long)]
    no_wait: bool,
    /// For programs: the job, as nrt.backup_history has it.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let kind = match (arguments.full, arguments.diff) {
        (true, _) => BackupType::Full,
        (_, true) => BackupType::Diff,
        _ => BackupType::Incr,
    };
    take(&arguments.server, kind, &arguments.how)
}

/// Has a backup of this type taken.
pub(crate) fn take(server: &Server, kind: BackupType, how: &How) -> ExitCode {
    let taken = server.state().and_then(|state| {
        let number = ask(server, &state, kind)?;
        wait(server, &state, number, how)
    });
    match taken {
        Ok(job) => {
            if how.json {
                println!("{}", serde_json::to_string_pretty(&job).unwrap_or_default());
            } else if let Some(label) = &job.label {
                println!("{label}");
            }
            if let Some(failure) = failure(&job) {
                eprintln!("{failure}");
            }
            ExitCode::from(code(&job))
        }
        Err(error) => exit::refused(&error),
    }
}

/// Refuses where nobody would ever answer.
fn can_be_had(server: &Server, state: &Path) -> anyhow::Result<()> {
    if !server.is_running() {
        bail!("the server does not run\nHINT: Start it: its worker takes the backups.");
    }
    if server.is_in_recovery() {
        bail!("this server follows another one, or recovers\nHINT: Run this on the primary.");
    }
    if state.join(layout::RECOVERING).exists() {
        bail!("a restore has not ended\nHINT: Wait for nrt-backup restore, and try again.");
    }
    if server::read::<Kept>(state, layout::KEPT).is_some_and(|kept| kept.memory.paused) {
        bail!("backups are paused\nHINT: SELECT nrt_resume('backups') lets them start again.");
    }
    Ok(())
}

/// Asks the worker for a backup: the number of the job that it has become.
fn ask(server: &Server, state: &Path, kind: BackupType) -> anyhow::Result<u64> {
    can_be_had(server, state)?;
    let begin = Instant::now();
    let (request, answer) = (state.join(layout::BACKUP_NOW), state.join(layout::BACKUP_JOB));
    // Until the answer is read: it names no question.
    let _alone = alone(state, begin)?;
    let (mut is_asked, mut seen) = (false, begin);
    loop {
        if fs::symlink_metadata(&request).is_err() {
            if is_asked {
                break;
            }
            // What is there until now was another's, who was killed.
            let _ = fs::remove_file(&answer);
            files::replace(&request, kind.as_str().as_bytes())
                .with_context(|| format!("write \"{}\"", request.display()))?;
            is_asked = true;
        }
        server.wake_worker();
        thread::sleep(PAUSE);
        if server.worker().is_some() {
            seen = Instant::now();
        }
        let why = if !server.is_running() {
            "the server was stopped\nHINT: Start it and try again."
        } else if seen.elapsed() > WITHOUT_WORKER {
            "the nrt_backup worker does not run\nHINT: See nrt-backup status, and the server's log."
        } else if begin.elapsed() > PATIENCE {
            "the nrt_backup worker does not answer\n\
             HINT: See nrt-backup status, and the server's log."
        } else {
            continue;
        };
        // Nobody would expect it later.
        let _ = fs::remove_file(&request);
        bail!("{why}");
    }
    server::read(state, layout::BACKUP_JOB)
        .context("the worker could not read the request\nHINT: See the server's log")
}

/// Waits until no other command asks for a backup. Two that ask at once are answered one after the
/// other.
fn alone(state: &Path, begin: Instant) -> anyhow::Result<File> {
    let path = state.join(layout::BACKUP_LOCK);
    loop {
        let lock =
            files::try_lock(&path).with_context(|| format!("lock \"{}\"", path.display()))?;
        match lock {
            Some(lock) => return Ok(lock),
            None if begin.elapsed() > PATIENCE => {
                bail!("another nrt-backup asks for a backup, and hears nothing")
            }
            None => thread::sleep(PAUSE),
        }
    }
}

/// Waits until the job has ended, unless nobody wants that, and says how it goes.
fn wait(server: &Server, state: &Path, number: u64, how: &How) -> anyhow::Result<Job> {
    let find = || server::recent_jobs(state).into_iter().find(|job| job.id == number);
    let begin = Instant::now();
    let mut told = String::new();
    loop {
        let is_running = server.is_running();
        let job = find();
        if let Some(job) = &job {
            let words = progress(job);
            if words != told {
                eprintln!("{words}");
                told = words;
            }
        }
        match job {
            Some(job) if job.status.is_final() || how.no_wait => return Ok(job),
            Some(job) if !is_running => {
                // What the next start will find.
                let message =
                    "the server was stopped: it takes the backup again when it is started";
                return Ok(Job { status: Status::Failed, message: Some(message.into()), ..job });
            }
            None if !is_running || begin.elapsed() > PATIENCE => bail!(
                "job {number} is not in the history\n\
                 HINT: The data directory's disk may be full: see nrt-backup status."
            ),
            _ => thread::sleep(PAUSE),
        }
    }
}

/// What a job does, for people.
fn progress(job: &Job) -> String {
    let (id, requested) = (job.id, job.requested);
    match job.status {
        Status::Waiting => match &job.message {
            Some(message) => format!("backup job {id} ({requested}) waits: {message}"),
            None => format!("backup job {id} ({requested}) waits for its turn"),
        },
        _ if job.kind != requested => format!(
            "backup job {id} takes a {} backup: there is none that \"{requested}\" could build on",
            job.kind
        ),
        Status::Failed if job.started_at.is_none() => format!("backup job {id} cannot begin"),
        _ => format!("backup job {id} takes a backup ({requested})"),
    }
}

/// Why a job that has ended did not take a backup.
fn failure(job: &Job) -> Option<String> {
    if !job.status.is_final() || job.status == Status::Succeeded {
        return None;
    }
    let message = job.message.as_deref().unwrap_or("no reason is known");
    let mut words = format!("backup job {} {}: {message}", job.id, job.status.as_str());
    if let Some(hint) = job.hint.as_ref().filter(|hint| !hint.is_empty()) {
        words += &format!("\nHINT: {hint}");
    }
    Some(words)
}

/// The exit code for a job. What was refused before it began could not be had.
fn code(job: &Job) -> u8 {
    match job.status {
        Status::Succeeded | Status::Waiting | Status::Running => 0,
        _ if job.started_at.is_some() => 1,
        _ => exit::REFUSED,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use nrt_core::kind::Trigger;

    use super::*;

    fn job(status: Status) -> Job {
        let new = Job::new(7, BackupType::Incr, Trigger::Manual, DateTime::UNIX_EPOCH);
        Job { status, ..new }
    }

    #[test]
    fn what_was_never_begun_could_not_be_had() {
        let begun = |status| Job { started_at: Some(DateTime::UNIX_EPOCH), ..job(status) };
        assert_eq!(code(&begun(Status::Succeeded)), 0);
        assert_eq!(code(&begun(Status::Failed)), 1);
        assert_eq!(code(&begun(Status::Cancelled)), 1);
        assert_eq!(code(&job(Status::Failed)), 2);
        assert_eq!(code(&job(Status::Waiting)), 0);
    }

    #[test]
    fn a_failure_is_told_in_pgbackrests_words_with_what_to_do() {
        let failed = Job {
            message: Some("unable to open the file".to_string()),
            hint: Some("Look.".to_string()),
            ..job(Status::Failed)
        };
        let words = "backup job 7 failed: unable to open the file\nHINT: Look.";
        assert_eq!(failure(&failed).as_deref(), Some(words));
        assert_eq!(failure(&job(Status::Running)), None);
        assert_eq!(failure(&job(Status::Succeeded)), None);
    }

    #[test]
    fn where_no_worker_takes_backups_none_is_asked_for() {
        let data = tempfile::tempdir().expect("a directory");
        let state = data.path().join(layout::STATE_DIRECTORY);
        fs::create_dir(&state).expect("made");
        let server = Server::at(data.path().to_path_buf());
        let refusal = || can_be_had(&server, &state).err().map(|it| it.to_string());
        assert!(refusal().is_some_and(|it| it.starts_with("the server does not run")));
        // This process stands for the server.
        let number = std::process::id().to_string();
        fs::write(data.path().join("postmaster.pid"), number).expect("written");
        assert_eq!(refusal(), None);
        let standby = data.path().join("standby.signal");
        fs::write(&standby, "").expect("written");
        assert!(refusal().is_some_and(|it| it.contains("on the primary")));
        fs::remove_file(&standby).expect("removed");
        let mut kept = Kept::default();
        kept.memory.paused = true;
        let text = serde_json::to_string(&kept).expect("it is text");
        fs::write(state.join(layout::KEPT), text).expect("written");
        assert!(refusal().is_some_and(|it| it.starts_with("backups are paused")));
        fs::write(state.join(layout::RECOVERING), "").expect("written");
        assert!(refusal().is_some_and(|it| it.starts_with("a restore has not ended")));
    }

    #[test]
    fn that_a_full_backup_is_taken_instead_is_said() {
        let full = Job { kind: BackupType::Full, ..job(Status::Running) };
        assert!(progress(&full).contains("a full backup"), "{}", progress(&full));
        assert!(progress(&job(Status::Running)).contains("a backup (incr)"));
    }
}
