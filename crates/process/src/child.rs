//! Starts a program on a leash and hands back how it ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{self, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags, fstat, memfd_create, open};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use serde::{Deserialize, Serialize};

use crate::leash::LONGEST_ANSWER;
use crate::sealed::seal;
use crate::tail::{TAIL, Tail};

/// How long dropping a [`Leashed`] waits for its leash to kill the tree, which takes up to two
/// seconds when a process cannot be killed, before it kills the leash.
const DROP_PATIENCE: Duration = Duration::from_secs(3);

/// What a pipe takes as a whole or not at all, on every system.
const PIPE_BUF: usize = 4096;

/// More than the longest report: a tail and an answer in which every byte needs six as JSON.
const LONGEST_REPORT: u64 = 8 * (TAIL + LONGEST_ANSWER) as u64;

/// A program and the circumstances in which it runs.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program: an absolute path, or a name to be found in the PATH of `env`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment; see [`allowed`](crate::allowed).
    pub env: Vec<(OsString, OsString)>,
    /// A file to which all of its output is appended: the first megabyte as it comes, of more
    /// only the end.
    pub log: Option<PathBuf>,
    /// Where it runs.
    pub directory: PathBuf,
    /// The time between SIGTERM and SIGKILL.
    pub patience: Duration,
    /// The time after which it is stopped.
    pub time_limit: Option<Duration>,
    /// Whether its standard input is what [`Leashed::tell`] writes; else it is empty.
    pub input: bool,
    /// Whether its standard output comes back as [`Report::answer`], apart from the rest.
    pub answer: bool,
}

/// How a program ended.
///
/// Without `exit` and without `signal` it is not known how, or the program was not run at all;
/// `output` says why. A program that could not be started has the exit code 127 when it is not
/// there and 126 otherwise.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Its exit code, unless a signal ended it.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The last 64 kB of what it wrote to standard output and standard error, in whole lines.
    /// Bytes that are not UTF-8, and zeros, are replaced by U+FFFD.
    pub output: String,
    /// Whether it wrote more than that.
    pub truncated: bool,
    /// All of its standard output, where that was asked for, with the same replacements. Not there
    /// if it was longer than 256 kB, which `output` says then.
    #[serde(default)]
    pub answer: Option<String>,
    /// How long it ran, until the last process below it was gone.
    pub elapsed_ms: u64,
    /// Whether it was stopped because its time was over.
    pub timed_out: bool,
    /// Whether it was told to stop before it had ended.
    pub stopped: bool,
}

impl Report {
    /// The exit code that a shell would show for it.
    pub fn shell_code(&self) -> u8 {
        let code = self.exit.or(self.signal.map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
    }
}

/// A program that runs on a leash. Dropping it kills and reaps all of it.
///
/// It belongs to the thread that started it: the leash stops the program when that thread ends.
#[derive(Debug)]
pub struct Leashed {
    leash: Child,
    /// The end of the program's standard input into which is written.
    input: Option<PipeWriter>,
    /// The leash's standard output and standard error: a file without a name, because a pipe
    /// would have to be drained.
    words: File,
    program: PathBuf,
    started: Instant,
    told_to_stop: bool,
    told_to_kill: bool,
    report: Option<Report>,
}

impl Leashed {
    /// Starts the command `nrt_backup` as a leash that runs the program of `spec`.
    ///
    /// A program that cannot be run is not an error here but a [`Report`]; an error means that
    /// the leash could not be started.
    pub fn start(nrt_backup: &Path, spec: &Spec) -> io::Result<Leashed> {
        let words = nameless_file()?;
        let mut command = Command::new(nrt_backup);
        command.arg("leash").arg("--parent").arg(std::process::id().to_string());
        command.arg("--directory").arg(path::absolute(&spec.directory)?);
        command.arg("--patience").arg(milliseconds(spec.patience).to_string());
        if let Some(limit) = spec.time_limit {
            command.arg("--time-limit").arg(milliseconds(limit).to_string());
        }
        if let Some(log) = &spec.log {
            command.arg("--log").arg(path::absolute(log)?);
        }
        let (stdin, input) = if spec.input {
            command.arg("--input");
            let (reader, writer) = io::pipe()?;
            // Only this end: the program waits for what it reads.
            ioctl_fionbio(&writer, true)?;
            (Stdio::from(reader), Some(writer))
        } else {
            (Stdio::null(), None)
        };
        if spec.answer {
            command.arg("--answer");
        }
        command.arg("--").arg(&spec.program).args(&spec.args);
        command.env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
        command.stdin(stdin).stdout(words.try_clone()?).stderr(words.try_clone()?);
        seal(&mut command);
        let leash = command.spawn().map_err(|error| {
            let words = format!("could not run \"{}\": {error}", nrt_backup.display());
            io::Error::new(error.kind(), words)
        })?;
        Ok(Leashed {
            leash,
            input,
            words,
            program: spec.program.clone(),
            started: Instant::now(),
            told_to_stop: false,
            told_to_kill: false,
            report: None,
        })
    }

    /// The process number of the leash, which is also that of its group and session.
    pub fn id(&self) -> u32 {
        self.leash.id()
    }

    /// Returns the report when the program and all below it are gone, and nothing before.
    pub fn try_wait(&mut self) -> io::Result<Option<Report>> {
        if self.report.is_none() {
            self.report = match has_ended(self.pid()) {
                Ok(true) => Some(self.conclude()),
                Ok(false) => None,
                // Somebody waited for all children of this process, or it ignores SIGCHLD: the
                // number may be another's already, but what the leash said still stands.
                Err(Errno::CHILD) => {
                    let words = self.read_words();
                    Some(report_in(&words).unwrap_or_else(|| self.obituary(&words, None)))
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.report.clone())
    }

    /// Writes a line to the program's standard input, and tells whether there was room for it: a
    /// program that does not read must not hold up who writes, so the line is dropped then, whole.
    ///
    /// An error means that nobody will ever read it. The calling process must ignore SIGPIPE, as
    /// PostgreSQL's and Rust's programs do.
    pub fn tell(&mut self, line: &[u8]) -> io::Result<bool> {
        let Some(input) = &self.input else { return Err(io::ErrorKind::BrokenPipe.into()) };
        write_line(input, line)
    }

    /// Where another process of the same user can write to the program's standard input; `None` if
    /// it has none, or that has ended.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn input_address(&self) -> io::Result<Option<InputAddress>> {
        let Some(input) = &self.input else { return Ok(None) };
        Ok(Some(InputAddress {
            process: std::process::id(),
            descriptor: input.as_raw_fd().unsigned_abs(),
            inode: fstat(input.as_fd())?.st_ino,
        }))
    }

    /// Ends the program's standard input. One that ends by itself then can still use what runs
    /// below it, which [`Leashed::terminate`] ends at the same time.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Asks the leash to stop the program, and ends its standard input: SIGTERM to all of it, and
    /// SIGKILL to what is left after the patience. Asking again changes nothing.
    pub fn terminate(&mut self) {
        // In this order: a program that ends by the end of its input was stopped, too.
        if !self.told_to_stop {
            self.signal(Signal::TERM);
        }
        self.told_to_stop = true;
        self.end_input();
    }

    /// Asks the leash to kill the program and all below it, without patience. Asking again
    /// changes nothing.
    pub fn kill(&mut self) {
        if !self.told_to_kill {
            self.signal(Signal::USR1);
        }
        self.told_to_stop = true;
        self.told_to_kill = true;
    }

    fn pid(&self) -> Pid {
        pid_of(&self.leash)
    }

    /// Signals the leash, which cannot be another process meanwhile: its number stays taken until
    /// it is reaped.
    fn signal(&self, signal: Signal) {
        if self.report.is_none() {
            let _ = kill_process(self.pid(), signal);
        }
    }

    /// Reaps the leash, which has ended, and returns its report or one in its stead.
    fn conclude(&mut self) -> Report {
        let words = self.read_words();
        let report = report_in(&words);
        if report.is_none() {
            // The leash was killed and took only the program with it.
            let _ = kill_process_group(self.pid(), Signal::KILL);
        }
        let status = self.leash.wait().ok();
        report.unwrap_or_else(|| self.obituary(&words, status))
    }

    /// The report of a leash that left none. Its exit code is not the program's: it is only in
    /// the words, among what the leash itself had to say.
    fn obituary(&self, words: &[u8], status: Option<ExitStatus>) -> Report {
        let how = match status {
            Some(status) => format!("{status}"),
            None => "status unknown, somebody else waited for it".to_owned(),
        };
        let program = self.program.display();
        let mut tail = Tail::default();
        tail.push(words);
        tail.push(
            format!("the leash of \"{program}\" ended without a report ({how})\n").as_bytes(),
        );
        Report {
            signal: status.and_then(|status| status.signal()),
            output: tail.text(),
            elapsed_ms: milliseconds(self.started.elapsed()),
            stopped: self.told_to_stop,
            ..Report::default()
        }
    }

    /// What the leash wrote; the end of it, should it be longer than a report can be.
    fn read_words(&self) -> Vec<u8> {
        let length = self.words.metadata().map_or(0, |metadata| metadata.len());
        let count = length.min(LONGEST_REPORT);
        let mut words = vec![0; usize::try_from(count).unwrap_or(0)];
        if self.words.read_exact_at(&mut words, length - count).is_err() {
            words.clear();
        }
        words
    }
}

/// Writes a line into a pipe that does not block, as a whole or not at all.
fn write_line(mut pipe: impl Write, line: &[u8]) -> io::Result<bool> {
    if line.len() > PIPE_BUF {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the line is too long"));
    }
    // One call, not write_all.
    match pipe.write(line) {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The end of a pipe into which [`Leashed::tell`] of another process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputAddress {
    /// The process that has the pipe open.
    pub process: u32,
    /// Its file descriptor there.
    pub descriptor: u32,
    /// The pipe's inode: process and descriptor may be another file's meanwhile.
    pub inode: u64,
}

impl InputAddress {
    /// Writes a line as [`Leashed::tell`] does, also where the process that has the pipe open stands
    /// still. No disk is waited for: both `/proc` and the pipe are in memory.
    ///
    /// The pipe is open only within this call, so the program sees the end of its input as soon as the
    /// other process ends that.
    ///
    /// # Errors
    ///
    /// `NotFound` or `BrokenPipe`, if the pipe is not there any more; else what the kernel says.
    pub fn tell(&self, line: &[u8]) -> io::Result<bool> {
        let path = format!("/proc/{}/fd/{}", self.process, self.descriptor);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let pipe = match open(&path, flags, Mode::empty()) {
            Ok(pipe) => File::from(pipe),
            // A pipe that nobody reads any more.
            Err(Errno::NXIO) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => return Err(error.into()),
        };
        let found = pipe.metadata()?;
        if !found.file_type().is_fifo() || found.ino() != self.inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        write_line(&pipe, line)
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        if self.report.is_some() {
            return;
        }
        self.kill();
        let deadline = Instant::now() + DROP_PATIENCE;
        while Instant::now() < deadline {
            match self.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // It does not listen: somebody stopped it, or a file server under its log does not answer.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.leash.wait();
    }
}

/// Returns a duration in whole milliseconds, at most half a billion years.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the process number of a child.
pub(crate) fn pid_of(child: &Child) -> Pid {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.expect("the kernel gives a process a positive number")
}

/// Tells whether a child has ended, and leaves it to be reaped: until then its process group,
/// which may be gone already, cannot be a new one's.
pub(crate) fn has_ended(child: Pid) -> rustix::io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(child), options) {
        Ok(status) => Ok(status.is_some()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn nameless_file() -> io::Result<File> {
    match memfd_create("nrt_backup leash", MemfdFlags::CLOEXEC) {
        Ok(file) => Ok(file.into()),
        // vm.memfd_noexec = 2 forbids it.
        Err(_) => tempfile::tempfile(),
    }
}

/// The report in what a leash wrote: the last line.
fn report_in(words: &[u8]) -> Option<Report> {
    let line = words.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_the_last_line() {
        let report = Report {
            exit: Some(56),
            output: "ERROR: [056]: no\n\u{fffd}\n".to_owned(),
            elapsed_ms: 12,
            ..Report::default()
        };
        let line = serde_json::to_string(&report).expect("a report is JSON");
        assert_eq!(report_in(format!("{line}\n").as_bytes()), Some(report.clone()));
        assert_eq!(report_in(format!("a warning\n{line}").as_bytes()), Some(report));
        for words in ["", "\n", "error: unexpected argument", &line[..line.len() - 1]] {
            assert_eq!(report_in(words.as_bytes()), None, "{words}");
        }
    }

    #[test]
    fn the_longest_report_fits() {
        let report = Report {
            output: "\u{1}".repeat(TAIL),
            answer: Some("\u{1}".repeat(LONGEST_ANSWER)),
            ..Report::default()
        };
        let line = serde_json::to_string(&report).expect("a report is JSON");
        assert!((line.len() as u64) < LONGEST_REPORT);
    }

    #[test]
    fn codes_of_shells() {
        for (exit, signal, code) in
            [(Some(0), None, 0), (Some(63), None, 63), (None, Some(15), 143), (None, None, 255)]
        {
            assert_eq!(Report { exit, signal, ..Report::default() }.shell_code(), code);
        }
    }
}
