//! Runs a short-lived program of a command and captures what it writes.
//!
//! For processes outside of the server. It needs no leash: the caller waits, and the program is
//! killed when the caller ends.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Signal, kill_process_group};

use crate::child::{has_ended, pid_of};
use crate::sealed::tether;
use crate::tail::Tail;

/// How often we look whether the program has ended: at first, and when nothing happens. Its end
/// mostly shows in its streams, but it may close them before, and others may hold them after.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long a killed program is waited for; one that waits for a dead disk does not end.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// What a program wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its exit code, unless a signal ended it.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The last 64 kB of its standard error, in whole lines.
    pub stderr: String,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
}

/// Runs `program` with exactly the environment `env` to its end, but not longer than `limit`.
///
/// Whatever it leaves running in its process group is killed. More than `max_bytes` on standard
/// output is an error of the kind [`io::ErrorKind::FileTooLarge`], because half an answer is
/// none.
pub fn capture(
    program: &Path,
    args: &[OsString],
    env: &[(OsString, OsString)],
    limit: Duration,
    max_bytes: usize,
) -> io::Result<Captured> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    tether(&mut command);
    let started = Instant::now();
    let child = command.spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("could not run \"{}\": {error}", program.display()))
    })?;
    let mut group = Group { child, reaped: false };
    let mut out = Stream::new(group.child.stdout.take())?;
    let mut err = Stream::new(group.child.stderr.take())?;

    let mut stdout = Vec::new();
    let mut stderr = Tail::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut pause = PAUSES.0;
    let timed_out = loop {
        let ended = has_ended(pid_of(&group.child))?;
        if ended {
            group.kill();
        }
        let came = [
            out.read(&mut buffer, |bytes| stdout.extend_from_slice(bytes))?,
            err.read(&mut buffer, |bytes| stderr.push(bytes))?,
        ];
        if stdout.len() > max_bytes {
            let words = format!("\"{}\" wrote more than {max_bytes} bytes", program.display());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
        }
        let idle = came == [false, false];
        if ended && idle {
            break false;
        }
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            break true;
        }
        if idle {
            wait_for([&out, &err], pause.min(left));
            pause = (pause * 2).min(PAUSES.1);
        } else {
            pause = PAUSES.0;
        }
    };
    let status = group.end();
    let exit = status.and_then(|status| status.code());
    let signal = match status {
        Some(status) => status.signal(),
        None => Some(Signal::KILL.as_raw()),
    };
    Ok(Captured { exit, signal, stdout, stderr: stderr.text(), timed_out })
}

/// A child with all of its process group, killed and reaped whichever way we leave.
struct Group {
    child: Child,
    reaped: bool,
}

impl Group {
    /// Kills what is left of it. Only before it is reaped: after that the number of the group
    /// may be another's.
    fn kill(&self) {
        let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
    }

    /// Kills and reaps it. No status when it cannot be killed.
    fn end(&mut self) -> Option<ExitStatus> {
        self.kill();
        self.reaped = true;
        let deadline = Instant::now() + KILL_PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(PAUSES.0),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.end();
        }
    }
}

/// The reading end of a pipe, until nobody writes to it any more.
struct Stream(Option<std::fs::File>);

impl Stream {
    fn new(source: Option<impl Into<OwnedFd>>) -> io::Result<Stream> {
        let source = source.map(|source| std::fs::File::from(source.into()));
        if let Some(source) = &source {
            ioctl_fionbio(source, true)?;
        }
        Ok(Stream(source))
    }

    /// Reads one piece without waiting, and tells whether anything came; the end counts.
    fn read(&mut self, buffer: &mut [u8], take: impl FnOnce(&[u8])) -> io::Result<bool> {
        let Some(source) = &mut self.0 else { return Ok(false) };
        match source.read(buffer) {
            Ok(0) => self.0 = None,
            Ok(count) => take(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

fn wait_for(streams: [&Stream; 2], pause: Duration) {
    let open = streams.into_iter().filter_map(|stream| stream.0.as_ref());
    let mut watched: Vec<_> =
        open.map(|source| PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)).collect();
    let timeout = Timespec::try_from(pause).ok();
    // Interrupted is as good as woken.
    let _ = poll(&mut watched, timeout.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str, limit: Duration, max_bytes: usize) -> io::Result<Captured> {
        let env = [("PATH".into(), "/usr/bin:/bin".into()), ("ONLY".into(), "this".into())];
        let args = ["-c".into(), script.into()];
        capture(Path::new("/bin/sh"), &args, &env, limit, max_bytes)
    }

    /// How a program ended, and its streams.
    fn told(captured: &Captured) -> (Option<i32>, Option<i32>, &str, &str) {
        let stdout = str::from_utf8(&captured.stdout).expect("the test's program writes UTF-8");
        (captured.exit, captured.signal, stdout, &captured.stderr)
    }

    #[test]
    fn streams_and_endings() {
        for (script, expected) in [
            ("echo out; echo err >&2", (Some(0), None, "out\n", "err\n")),
            ("echo out; exit 63", (Some(63), None, "out\n", "")),
            ("kill -9 $$", (None, Some(9), "", "")),
            ("echo $ONLY; env | grep -c =", (Some(0), None, "this\n3\n", "")),
            ("cat; echo end", (Some(0), None, "end\n", "")),
            // Closed long before the end.
            ("exec >&- 2>&-; sleep 0.2; exit 7", (Some(7), None, "", "")),
            // A straggler holds both streams.
            ("sleep 1000 & echo out", (Some(0), None, "out\n", "")),
        ] {
            let captured = shell(script, LONG, 1000).expect("the shell runs");
            assert_eq!(told(&captured), expected, "{script}");
            assert!(!captured.timed_out, "{script}");
        }
    }

    #[test]
    fn the_answer_is_whole_or_an_error() {
        let captured = shell("head -c 5000000 /dev/zero", LONG, 5_000_000).expect("it fits");
        assert_eq!(captured.stdout.len(), 5_000_000);
        let error = shell("head -c 5000001 /dev/zero", LONG, 5_000_000).expect_err("too much");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(error.to_string(), "\"/bin/sh\" wrote more than 5000000 bytes");
    }

    #[test]
    fn time_is_limited() {
        for script in ["sleep 1000", "trap '' TERM; sleep 1000; :", "while :; do echo x >&2; done"]
        {
            let started = Instant::now();
            let captured = shell(script, Duration::from_millis(300), 1000).expect("it is killed");
            assert_eq!((captured.timed_out, captured.signal), (true, Some(9)), "{script}");
            assert!(started.elapsed() >= Duration::from_millis(300), "{script}");
            assert!(started.elapsed() < LONG, "{script}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let error = capture(Path::new("/no/such"), &[], &[], LONG, 1).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("could not run \"/no/such\": "), "{error}");
    }
}
