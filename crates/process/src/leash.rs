//! Runs one program and lets nothing of it outlive its end, the parent's end, or a time limit.
//!
//! This is the body of `nrt-backup leash`. It is a loop of one thread around one `poll`: of the
//! pipe into which the program and everything below it writes, and of signals.
//!
//! ```text
//! Running ──► Stopping ──► Killing ──► gone, or given up on
//!   the program ended, told to stop, time is over: SIGTERM
//!                 patience is over, told to kill: SIGKILL
//! ```
//!
//! In every phase the end is when no child is left. The leash adopts the orphans below it, so
//! its children are not only those that it started: a process cannot escape by losing its
//! parent, nor by having a session of its own.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpgid, getpid, getppid, kill_process,
    kill_process_group, set_child_subreaper, set_parent_process_death_signal, setsid, wait,
};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use thiserror::Error;

use crate::child::{Report, milliseconds, pid_of};
use crate::sealed::tether;
use crate::tail::Output;
use crate::tree::descendants;

/// How long the leash waits for killed processes. One that waits for a dead disk or file server
/// ends only when that comes back.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How often the tree is searched again for processes that were started while others were killed.
const KILL_INTERVAL: Duration = Duration::from_millis(20);

/// How often the tree is read at most when it is told to stop.
const TERMINATE_PASSES: u32 = 10;

/// More than a pipe can hold: what is read at most after the last process is gone.
const REST: usize = 2 * 1024 * 1024;

/// The longest answer of a program that is kept.
pub(crate) const LONGEST_ANSWER: usize = 256 * 1024;

/// What to run, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program: a path, or a name to be found in PATH.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it runs; where the leash runs if not given.
    pub directory: Option<PathBuf>,
    /// A file to which its output is appended.
    pub log: Option<PathBuf>,
    /// The time between SIGTERM and SIGKILL.
    pub patience: Duration,
    /// The time after which it is stopped.
    pub time_limit: Option<Duration>,
    /// Whether the leash's standard input is the program's; else the program has an empty one.
    pub input: bool,
    /// Whether the program's standard output is kept apart, as its answer.
    pub answer: bool,
    /// The process that started the leash. Nothing is run when that is not the leash's parent
    /// any more.
    pub parent: Option<u32>,
}

/// Runs the program to its end and reports, when nothing of it is left.
///
/// The calling process must be there for this alone: it handles its signals, adopts orphans,
/// changes its working directory and reaps every child.
pub fn run(options: &Options) -> Report {
    let started = Instant::now();
    let mut output = Output::new(options.log.as_deref());
    let mut ending = match Leash::start(options, started) {
        Ok(leash) => leash.hold(options, &mut output),
        Err(failure) => {
            output.push(format!("{failure}\n").as_bytes());
            failure.ending()
        }
    };
    let tail = output.finish();
    ending.output = tail.text();
    ending.truncated = tail.is_truncated();
    ending.elapsed_ms = milliseconds(started.elapsed());
    ending
}

/// Why the program was not started.
#[derive(Debug, Error)]
enum Failure {
    #[error("nothing was run, because the process that asked for it has ended")]
    ParentEnded,
    #[error("could not change to directory \"{}\": {}", .0.display(), .1)]
    Directory(PathBuf, io::Error),
    #[error("could not run \"{}\": {}", .0.display(), .1)]
    Program(OsString, io::Error),
    #[error("could not prepare to run a program: {0}")]
    Leash(#[from] io::Error),
}

impl Failure {
    /// The report for it, with the exit codes of shells: 127 for what is not there, 126 for what
    /// cannot be run.
    fn ending(&self) -> Report {
        let exit = match self {
            Failure::ParentEnded => None,
            Failure::Program(_, error) if error.kind() == io::ErrorKind::NotFound => Some(127),
            Failure::Directory(..) | Failure::Program(..) | Failure::Leash(_) => Some(126),
        };
        Report { exit, stopped: exit.is_none(), ..Report::default() }
    }
}

/// Signals as the loop sees them.
struct Signals {
    stop: Arc<AtomicBool>,
    kill: Arc<AtomicBool>,
    /// Readable when a signal came.
    wake: UnixStream,
}

impl Signals {
    fn install() -> io::Result<Signals> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signals = Signals { stop: Arc::default(), kill: Arc::default(), wake };
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&signals.stop))?;
        }
        // USR1 is what a worker sends: before the handlers stand, QUIT would leave a core file.
        for signal in [SIGQUIT, SIGUSR1] {
            signal_hook::flag::register(signal, Arc::clone(&signals.kill))?;
        }
        // After the flags, because the actions of a signal run in this order.
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Forgets what woke us. To be called before looking for what happened, so that what happens
    /// later wakes us again.
    fn clear(&self) {
        let mut bytes = [0; 64];
        while (&self.wake).read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
    }

    fn told_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.told_to_kill()
    }

    fn told_to_kill(&self) -> bool {
        self.kill.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running { until: Option<Instant> },
    Stopping { until: Instant },
    Killing { until: Instant },
}

/// A program's standard output.
struct Answer {
    pipe: Option<PipeReader>,
    /// One byte more than the longest answer at most, which tells that it is too long.
    bytes: Vec<u8>,
}

struct Leash {
    signals: Signals,
    /// What the program writes, until nobody can write any more.
    pipe: Option<PipeReader>,
    /// What it writes to its standard output, where that is kept apart.
    answer: Option<Answer>,
    program: Pid,
    /// How the program ended.
    status: Option<WaitStatus>,
    phase: Phase,
    timed_out: bool,
    stopped: bool,
}

impl Leash {
    fn start(options: &Options, started: Instant) -> Result<Leash, Failure> {
        let signals = Signals::install()?;
        take_hold()?;
        // After the parent's end was made to tell us, so that it cannot be missed.
        let parent = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
        if options.parent.is_some_and(|expected| parent != Some(expected)) {
            return Err(Failure::ParentEnded);
        }
        if let Some(directory) = &options.directory {
            std::env::set_current_dir(directory)
                .map_err(|error| Failure::Directory(directory.clone(), error))?;
        }

        let (pipe, writer) = output_pipe()?;
        let mut command = Command::new(&options.program);
        let input = if options.input { Stdio::inherit() } else { Stdio::null() };
        command.args(&options.args).stdin(input);
        // One pipe for both keeps the order; pgBackRest's errors go to the one or the other
        // depending on its version.
        let answer = if options.answer {
            let (pipe, answer_writer) = output_pipe()?;
            command.stdout(answer_writer).stderr(writer);
            Some(Answer { pipe: Some(pipe), bytes: Vec::new() })
        } else {
            command.stdout(writer.try_clone()?).stderr(writer);
            None
        };
        tether(&mut command);
        let child =
            command.spawn().map_err(|error| Failure::Program(options.program.clone(), error))?;
        Ok(Leash {
            signals,
            pipe: Some(pipe),
            answer,
            program: pid_of(&child),
            status: None,
            phase: Phase::Running {
                until: options.time_limit.and_then(|limit| started.checked_add(limit)),
            },
            timed_out: false,
            stopped: false,
        })
    }

    /// Waits until all is over. The report still lacks the output.
    fn hold(mut self, options: &Options, output: &mut Output) -> Report {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.signals.clear();
            let anybody = self.reap();
            let now = Instant::now();
            if let Phase::Running { until } = self.phase {
                self.stopped = self.signals.told_to_stop();
                self.timed_out = !self.stopped
                    && self.status.is_none()
                    && until.is_some_and(|until| now >= until);
            }
            if !anybody {
                break;
            }
            let Some(deadline) = self.advance(now, options.patience) else { break };
            self.wait(deadline, &mut buffer, output);
        }

        // Not until the end of the pipe: it may be held by somebody who got it from the program,
        // or by a process that cannot be killed.
        let mut rest = 0;
        while rest < REST
            && let Some(count) = self.read(&mut buffer, output)
        {
            rest += count;
        }
        self.report(output)
    }

    /// Does what is due in the current phase, and tells until when to wait for what comes next:
    /// no instant for ever, no answer when there is nothing more to wait for.
    fn advance(&mut self, now: Instant, patience: Duration) -> Option<Option<Instant>> {
        let over = self.stopped || self.timed_out || self.status.is_some();
        match self.phase {
            Phase::Running { .. } | Phase::Stopping { .. } if self.signals.told_to_kill() => {
                self.phase = Phase::Killing { until: now + KILL_PATIENCE };
            }
            Phase::Running { .. } if over => {
                terminate_tree();
                self.phase = Phase::Stopping { until: now + patience };
            }
            Phase::Stopping { until } if now >= until => {
                self.phase = Phase::Killing { until: now + KILL_PATIENCE };
            }
            Phase::Running { .. } | Phase::Stopping { .. } | Phase::Killing { .. } => {}
        }
        match self.phase {
            Phase::Running { until } => Some(until),
            Phase::Stopping { until } => Some(Some(until)),
            Phase::Killing { until } if now >= until => None,
            Phase::Killing { .. } => {
                kill_tree();
                Some(Some(now + KILL_INTERVAL))
            }
        }
    }

    fn report(self, output: &mut Output) -> Report {
        if let Phase::Killing { .. } = self.phase {
            for left in descendants(getpid()) {
                let words =
                    format!("could not kill process {left}: it waits for a disk or a server\n");
                output.push(words.as_bytes());
            }
        }
        let (exit, signal) = match self.status {
            Some(status) => (status.exit_status(), status.terminating_signal()),
            // It was killed, and will end of that when it can.
            None => (None, Some(Signal::KILL.as_raw())),
        };
        let answer = self.answer.map(|answer| answer.bytes);
        if answer.as_ref().is_some_and(|answer| answer.len() > LONGEST_ANSWER) {
            output.push(format!("the answer has more than {LONGEST_ANSWER} bytes\n").as_bytes());
        }
        let answer = answer.filter(|answer| answer.len() <= LONGEST_ANSWER);
        let answer =
            answer.map(|answer| String::from_utf8_lossy(&answer).replace('\0', "\u{fffd}"));
        let (timed_out, stopped) = (self.timed_out, self.stopped);
        Report { exit, signal, answer, timed_out, stopped, ..Report::default() }
    }

    /// Reaps all that ended, and tells whether any process is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((child, status))) => {
                    // Once it is reaped, an orphan that we adopt later may have its number.
                    if child == self.program && self.status.is_none() {
                        self.status = Some(status);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Sleeps until a signal, output or the deadline, and takes what output there is.
    fn wait(&mut self, deadline: Option<Instant>, buffer: &mut [u8], output: &mut Output) {
        let timeout = deadline.and_then(|deadline| {
            Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
        });
        let mut watched = vec![PollFd::new(&self.signals.wake, PollFlags::IN)];
        let answer = self.answer.iter().filter_map(|answer| answer.pipe.as_ref());
        watched.extend(
            self.pipe
                .iter()
                .chain(answer)
                .map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)),
        );
        // Interrupted is as good as woken.
        let _ = poll(&mut watched, timeout.as_ref());
        if watched.iter().skip(1).any(|pipe| !pipe.revents().is_empty()) {
            self.read(buffer, output);
        }
    }

    /// Takes one piece of output from each pipe: their length, or nothing when there is none now.
    fn read(&mut self, buffer: &mut [u8], output: &mut Output) -> Option<usize> {
        let answered = self.answer.as_mut().and_then(|answer| {
            let bytes = &mut answer.bytes;
            take(&mut answer.pipe, buffer, |piece| {
                let room = (LONGEST_ANSWER + 1).saturating_sub(bytes.len());
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            })
        });
        let written = take(&mut self.pipe, buffer, |piece| output.push(piece));
        match (answered, written) {
            (None, None) => None,
            (answered, written) => Some(answered.unwrap_or(0) + written.unwrap_or(0)),
        }
    }
}

/// Takes one piece from a pipe: its length, or nothing when there is none now.
fn take(
    pipe: &mut Option<PipeReader>,
    buffer: &mut [u8],
    mut keep: impl FnMut(&[u8]),
) -> Option<usize> {
    match pipe.as_mut()?.read(buffer) {
        Ok(count @ 1..) => {
            keep(&buffer[..count]);
            return Some(count);
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Ok(0) | Err(_) => *pipe = None,
    }
    None
}

/// Makes the calling process one that ends with its parent and that nothing below it escapes.
fn take_hold() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // Fails for the leader of a group, as which a shell may have started us; being that is enough
    // for signals to reach the group and not others.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    Ok(())
}

/// A pipe from which is read without waiting, and into which is written with.
fn output_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

/// Sends SIGTERM to every process of the tree, once: at a second one, pgBackRest before 2.58 may
/// lock itself up in its signal handler.
fn terminate_tree() {
    let ours = getpid();
    // To the group in one call, so that a process started just now cannot be missed. It comes to
    // the leash as well, which does not listen to it any more.
    let _ = kill_process_group(ours, Signal::TERM);
    // A process whose parent ends while the tree is read is not found, so it is read until it
    // shows nobody new; not for ever, because some programs start another for each that ends.
    let mut told = Vec::new();
    for _ in 0..TERMINATE_PASSES {
        let elsewhere = |process: &Pid| getpgid(Some(*process)).is_ok_and(|group| group != ours);
        let mut new = descendants(ours);
        new.retain(|process| !told.contains(process) && elsewhere(process));
        if new.is_empty() {
            break;
        }
        for process in &new {
            let _ = kill_process(*process, Signal::TERM);
        }
        told.append(&mut new);
    }
}

/// Sends SIGKILL to every process of the tree but the leash itself.
fn kill_tree() {
    for process in descendants(getpid()) {
        let _ = kill_process(process, Signal::KILL);
    }
}
