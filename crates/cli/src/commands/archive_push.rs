//! Hands a finished WAL segment to pgBackRest, as the server's `archive_command`.
//!
//! It is a thin coat: pgBackRest's exit code is ours, and so PostgreSQL keeps the segment until
//! pgBackRest has it. What pgBackRest says when it fails is kept for `nrt.health`, beside going
//! to the server's log.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use nrt_core::inventory::Failure;
use nrt_core::layout::{self, ArchiveLimits, LetGo, PushFailure, Tool};
use nrt_core::pgbackrest::{command, exit, label};
use nrt_core::size::format_size;
use nrt_process::files::{open_plain, read_json, write_atomically};
use nrt_process::{allowed_in_zone, capture, identity};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// pgBackRest ends by itself long before; this is for a file system that hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// More than pgBackRest ever prints here.
const LONGEST_ANSWER: usize = 1 << 20;
/// How long the worker's first look at pgBackRest may take on a busy machine, and how long what
/// follows from it.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Between two looks at what the worker is about to make.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the worker may take to start.
const WORKER_START: Duration = Duration::from_secs(3);
/// How long a segment may take when the server is about to end, which waits for it. What is not
/// archived then is archived by the next start.
const FAREWELL: Duration = Duration::from_secs(3);
/// Between two looks whether it is.
const WATCH: Duration = Duration::from_millis(200);
/// For how long after it has failed pgBackRest is not asked while too much waits.
const ASK_AGAIN: TimeDelta = TimeDelta::seconds(60);
/// From this many finished segments on that wait, pgBackRest pushes several at once: that is
/// twice as fast with a backlog, and four times slower without.
const BACKLOG: usize = 8;

/// Hands a finished WAL segment to pgBackRest: the server's archive_command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// nrt_backup's directory in the data directory.
    #[arg(long)]
    state: PathBuf,
    /// The segment, as PostgreSQL's %p gives it.
    segment: PathBuf,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let file = arguments.state.join(layout::PUSH_FAILURE);
    let queue = Queue::of(arguments);
    if let Some(queue) = &queue
        && let Some(failure) = queue.failed_just_now()
    {
        return let_go(arguments, queue, 1, failure);
    }
    let Some(result) = push_in_time(arguments) else {
        eprintln!(
            "the server ends, and pgBackRest has not archived the segment in {} s: the next start \
             does",
            FAREWELL.as_secs()
        );
        return ExitCode::from(crate::exit::STOP);
    };
    let Err((code, failure)) = result else {
        // Only there while archiving fails: mostly there is nothing to remove.
        let _ = fs::remove_file(file);
        return ExitCode::SUCCESS;
    };
    eprintln!("{}", failure.message);
    if !failure.hint.is_empty() {
        eprintln!("HINT: {}", failure.hint);
    }
    let name = arguments.segment.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failure = PushFailure { segment: name, at: Utc::now(), failure };
    if let Ok(text) = serde_json::to_vec(&failure) {
        // With a full disk the server's log alone has the words.
        let _ = write_atomically(&file, &text);
    }
    match queue {
        Some(queue) => let_go(arguments, &queue, code, failure.failure),
        None => ExitCode::from(code),
    }
}

/// The WAL that waits, where it is more than may.
struct Queue {
    /// Bytes.
    waiting: u64,
    most: u64,
    segment_size: u64,
    /// What was let go last.
    before: Option<LetGo>,
}

impl Queue {
    /// `None` where there is no limit, or less than that waits.
    fn of(arguments: &Arguments) -> Option<Queue> {
        let limits: ArchiveLimits = read_json(&arguments.state.join(layout::ARCHIVE_LIMITS))?;
        let most = Some(limits.queue_max).filter(|most| *most > 0)?;
        let files = fs::read_dir(arguments.segment.parent()?).ok()?;
        // All segments have the same size, and names of this length.
        let mut segments = files.flatten().filter(|file| file.file_name().len() == 24);
        let segment_size = segments.find_map(|file| file.metadata().ok())?.len();
        let waiting = waiting(&arguments.segment).count() as u64 * segment_size;
        let before = read_json(&arguments.state.join(layout::LET_GO));
        (waiting > most).then_some(Queue { waiting, most, segment_size, before })
    }

    /// Why pgBackRest has failed a moment ago: then it need not be asked again. WAL may come more
    /// quickly than it fails.
    fn failed_just_now(&self) -> Option<Failure> {
        let before = self.before.as_ref()?;
        let age = Utc::now() - before.at;
        (age >= TimeDelta::zero() && age < ASK_AGAIN).then(|| before.failure.clone())
    }
}

/// Lets the segment go, which cannot be archived, because more waits than the operator allows.
///
/// PostgreSQL is told that it is archived, and removes it. First, and synced, it is written down
/// that it is not: from then on until a backup begins behind it, health is critical. Where that
/// cannot be written, the segment stays.
fn let_go(arguments: &Arguments, queue: &Queue, code: u8, failure: Failure) -> ExitCode {
    let name = arguments.segment.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let record = LetGo::with(queue.before.clone(), &name, queue.segment_size, Utc::now(), failure);
    let written = serde_json::to_vec(&record)
        .map_err(io::Error::from)
        .and_then(|text| write_atomically(&arguments.state.join(layout::LET_GO), &text));
    if let Err(error) = written {
        eprintln!("{name} stays: it cannot be written down that it is let go: {error}");
        return ExitCode::from(code);
    }
    eprintln!(
        "{name} is let go and NOT archived: {} of WAL wait to be archived, more than \
         nrt_backup.archive_queue_max, {}",
        format_size(queue.waiting),
        format_size(queue.most)
    );
    eprintln!("HINT: Take a backup when archiving works again: see nrt.health.");
    ExitCode::SUCCESS
}

/// Archives the segment; `None` where that hangs and would hold up a shutdown. What still works at
/// it then ends with this process.
fn push_in_time(arguments: &Arguments) -> Option<Result<(), (u8, Failure)>> {
    let (done, pushed) = mpsc::channel();
    let pushing = arguments.clone();
    // It cannot fail to be heard: who listens waits for it, or ends.
    thread::spawn(move || done.send(push(&pushing)));
    let mut stopping = None;
    loop {
        match pushed.recv_timeout(WATCH) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Timeout) if !is_stopping(&arguments.state) => stopping = None,
            Err(RecvTimeoutError::Timeout)
                if stopping.get_or_insert_with(Instant::now).elapsed() < FAREWELL => {}
            Err(RecvTimeoutError::Timeout) => return None,
            // It has panicked, and said so.
            Err(RecvTimeoutError::Disconnected) => {
                let message = "nrt-backup could not archive the segment: its own fault";
                let hint = "Report what the server's log says before this.";
                return Some(Err((1, Failure { message: message.into(), hint: hint.into() })));
            }
        }
    }
}

/// Whether the server is about to end, and has no client any more: in a smart shutdown they go on
/// writing for as long as they like.
fn is_stopping(state: &Path) -> bool {
    let Some(data) = state.parent() else { return false };
    let file = fs::read_to_string(data.join("postmaster.pid"));
    let control = fs::read(data.join("global/pg_control"));
    file.is_ok_and(|it| layout::is_stopping(&it))
        && control.is_ok_and(|it| layout::has_shut_down(&it))
}

fn push(arguments: &Arguments) -> Result<(), (u8, Failure)> {
    let tool = found_tool(&arguments.state).ok_or_else(|| (1, no_tool(&arguments.state)))?;
    let segment = std::path::absolute(&arguments.segment).unwrap_or(arguments.segment.clone());
    let mut args = command::archive_push(&tool.config, &tool.stanza, &segment.to_string_lossy());
    let locks = Path::new(&tool.lock_path);
    if backlog(&segment) >= BACKLOG || pushes_in_the_background(locks, &tool.stanza) {
        args.insert(0, "--archive-async".to_string());
    }
    let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
    let environment = allowed_in_zone(std::env::vars_os(), label::UTC);
    let begin = Instant::now();
    loop {
        let program = Path::new(&tool.program);
        let captured =
            capture(program, &args, &environment, LIMIT, LONGEST_ANSWER).map_err(|error| {
                let message = format!("could not run \"{}\": {error}", tool.program);
                let hint = "Install pgBackRest again, or set nrt_backup.pgbackrest.".to_string();
                (1, Failure { message, hint })
            })?;
        if captured.exit == Some(0) {
            return Ok(());
        }
        let output = format!("{}{}", String::from_utf8_lossy(&captured.stdout), captured.stderr);
        let verdict = exit::judge(captured.exit, captured.signal, &output);
        // The worker creates the stanza right after its first look.
        let soon = verdict.stanza_is_missing()
            && worker_is_there(&arguments.state)
            && !is_stopping(&arguments.state);
        if soon && begin.elapsed() < FIRST_LOOK {
            thread::sleep(PAUSE);
            continue;
        }
        let code = captured.exit.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        // PostgreSQL takes codes above 125 for a reason to restart the archiver.
        return Err((
            code.clamp(1, 125),
            Failure { message: verdict.message, hint: verdict.hint.unwrap_or_default() },
        ));
    }
}

/// Why it is not known how pgBackRest is called.
fn no_tool(state: &Path) -> Failure {
    // A copy of another server would archive into that one's repository.
    let words = if state.join(layout::TOOL).exists() {
        "nrt_backup's files are of the server that this one was copied from, and the worker has not \
         looked at this one yet; the segment stays in pg_wal"
    } else {
        "nrt_backup has not found pgBackRest yet; the segment stays in pg_wal"
    };
    Failure {
        message: words.to_string(),
        hint: "See nrt.health if this goes on for more than a minute. The worker runs where the \
               server is no standby."
            .to_string(),
    }
}

/// How pgBackRest is called, as soon as the worker has found out.
///
/// The archiver of a server that has just started may come first, and a failure keeps it from
/// trying again for up to a minute.
fn found_tool(state: &Path) -> Option<Tool> {
    let begin = Instant::now();
    loop {
        let known = tool(state);
        let patience = if worker_is_there(state) { FIRST_LOOK } else { WORKER_START };
        if known.is_some() || begin.elapsed() > patience || is_stopping(state) {
            return known;
        }
        thread::sleep(PAUSE);
    }
}

fn worker_is_there(state: &Path) -> bool {
    state.join(layout::RUNNING).exists()
}

/// What this very instance has found out.
fn tool(state: &Path) -> Option<Tool> {
    let tool: Tool = serde_json::from_slice(&fs::read(state.join(layout::TOOL)).ok()?).ok()?;
    let own = identity::own(state).ok()??;
    (tool.instance == Some(own)).then_some(tool)
}

/// Whether a pgBackRest that was started for a backlog is still at work.
///
/// It may be writing this very segment. A second one beside it would write the same temporary
/// file, and either could give the other's half of it the final name; told to work in the
/// background as well, pgBackRest waits for the first.
fn pushes_in_the_background(locks: &Path, stanza: &str) -> bool {
    let Ok(files) = fs::read_dir(locks) else { return false };
    let prefix = format!("{stanza}-archive");
    files.flatten().any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".lock") && is_held(&file.path())
    })
}

/// Whether somebody holds a lock on a file.
fn is_held(path: &Path) -> bool {
    let Ok(file) = open_plain(path) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// How many finished segments wait beside this one, counted no further than needed.
fn backlog(segment: &Path) -> usize {
    waiting(segment).take(BACKLOG).count()
}

/// The finished files that wait to be archived, this one among them.
fn waiting(segment: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let status = segment.parent().map(|pg_wal| pg_wal.join("archive_status"));
    let files = status.and_then(|it| fs::read_dir(it).ok()).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|it| it == "ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_instances_pgbackrest_is_not_called() {
        let state = tempfile::tempdir().expect("a directory");
        let own = identity::settle(state.path(), || Ok(())).expect("named").id;
        let mut written = Tool {
            program: "pgbackrest".to_string(),
            config: "pgbackrest.conf".to_string(),
            stanza: "main".to_string(),
            lock_path: "/tmp/pgbackrest".to_string(),
            exclude: Vec::new(),
            instance: None,
        };
        assert!(no_tool(state.path()).message.contains("has not found pgBackRest"));
        for (instance, is_used) in
            [(None, false), (Some("another".to_string()), false), (Some(own), true)]
        {
            written.instance = instance;
            let text = serde_json::to_vec(&written).expect("JSON");
            fs::write(state.path().join(layout::TOOL), text).expect("written");
            assert_eq!(tool(state.path()).is_some(), is_used);
        }
        // As pg_basebackup copies it.
        fs::remove_file(state.path().join(identity::BOUND)).expect("it is there");
        assert_eq!(tool(state.path()), None);
        assert!(no_tool(state.path()).message.contains("copied from"));
    }

    #[test]
    fn sees_a_pgbackrest_that_works_in_the_background() {
        let locks = tempfile::tempdir().expect("a directory");
        let at_work = || pushes_in_the_background(locks.path(), "main");
        assert!(!at_work());
        for name in ["main-archive.lock", "main-archive-1.lock"] {
            let path = locks.path().join(name);
            let file = fs::File::create(&path).expect("made");
            assert!(!at_work(), "{name} is left behind, and nobody holds it");
            flock(&file, FlockOperation::NonBlockingLockExclusive).expect("free");
            assert!(at_work(), "{name}");
            drop(file);
            assert!(!at_work());
        }
        let other = fs::File::create(locks.path().join("other-archive.lock")).expect("made");
        let backup = fs::File::create(locks.path().join("main-backup.lock")).expect("made");
        for file in [&other, &backup] {
            flock(file, FlockOperation::NonBlockingLockExclusive).expect("free");
        }
        assert!(!at_work());
    }
}
