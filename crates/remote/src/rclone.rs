//! Runs one long-lived `rclone rcd` and talks to it.
//!
//! Starting rclone costs a tenth of a second of CPU each time, a call to a running one half a
//! millisecond. It listens where only this user can reach it and asks for a password that was
//! made for this run: on a unix socket in the state directory from 1.61 on, before that, when
//! rclone knew none, on a free port of the loopback interface.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_process::identity::random;
use nrt_process::{allowed_for_rclone, capture, tether};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::words::Secrets;

/// How long rclone may take until it answers. It reads its configuration and no more.
const START: Duration = Duration::from_secs(15);
/// How often we look whether it answers.
const PAUSE: Duration = Duration::from_millis(10);
/// How long `rclone version` may take.
const VERSION: Duration = Duration::from_secs(20);
/// The longest listing that is read: it has about 150 bytes for each file.
pub(super) const LONGEST_LISTING: u64 = 1 << 30;
/// The longest of all other answers.
const LONGEST_ANSWER: u64 = 16 << 20;
/// How rclone says that something is not there. A remote's own words never are the whole error:
/// rclone puts its own before them.
const MISSING: [&str; 2] = ["object not found", "directory not found"];
/// How rclone says that a file is longer than it was allowed to read.
const TOO_LONG: &str = "max transfer limit reached as set by --max-transfer";
/// The socket's name in the state directory, in which this process stands: the whole path might
/// be longer than a socket's may be.
const SOCKET: &str = "rclone.sock";
/// The first version that can listen on a unix socket.
const WITH_SOCKETS: (u32, u32) = (1, 61);

/// What rclone answers when it could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Refusal {
    /// rclone's own words, without secrets.
    pub words: String,
    /// What it was asked about is not there.
    pub missing: bool,
    /// rclone itself is gone or does not answer.
    pub gone: bool,
    /// The file is there, and is longer than a file of its kind can be.
    pub damaged: bool,
}

impl Refusal {
    /// A refusal in these words.
    pub(super) fn new(words: String) -> Refusal {
        Refusal { words, missing: false, gone: false, damaged: false }
    }

    /// What a job of rclone ended with. `words` are its whole error.
    pub(super) fn of_job(words: &str, hidden: String) -> Refusal {
        Refusal {
            missing: MISSING.contains(&words),
            damaged: words.ends_with(TOO_LONG),
            ..Refusal::new(hidden)
        }
    }
}

/// How rclone is run.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The program, a name or a path.
    pub program: &'a str,
    /// Its configuration file.
    pub config: &'a str,
    /// How many files it moves at the same time.
    pub transfers: u32,
    /// Its `--bwlimit`.
    pub bandwidth_limit: Option<&'a str>,
}

/// A running rclone. It ends with this value.
#[derive(Debug)]
pub struct Rclone {
    child: Mutex<Child>,
    agent: ureq::Agent,
    address: String,
    authorization: String,
    secrets: Secrets,
    /// What it printed last.
    printed: Arc<Mutex<String>>,
    /// Its version, as it says.
    pub version: String,
}

impl Rclone {
    /// Starts rclone and waits until it answers. Its socket is in the working directory.
    ///
    /// # Errors
    ///
    /// What is missing or wrong, and what to do about it.
    pub fn start(options: Options<'_>, secrets: Secrets) -> Result<Rclone, Failure> {
        let environment = allowed_for_rclone(std::env::vars_os());
        let version = version(options.program, &environment)?;
        let unix = numbers(&version).is_some_and(|numbers| numbers >= WITH_SOCKETS);
        let password = random().map_err(|error| Failure {
            message: format!("the system gives no random numbers: {error}"),
            hint: String::new(),
        })?;
        // A killed rclone leaves its socket behind, and the next one would not start.
        let _ = fs::remove_file(SOCKET);
        let address = if unix { format!("unix://{SOCKET}") } else { "127.0.0.1:0".to_string() };

        let mut command = Command::new(options.program);
        command.arg("rcd").arg("--rc-addr").arg(&address);
        command.arg("--config").arg(options.config).arg("--ask-password=false");
        command.args(["--contimeout", "10s", "--timeout", "30s", "--low-level-retries", "3"]);
        command.args(["--skip-links", "--transfers", &options.transfers.to_string()]);
        if let Some(limit) = options.bandwidth_limit {
            command.arg("--bwlimit").arg(limit);
        }
        command.env_clear().envs(environment);
        command.env("RCLONE_RC_USER", "nrt_backup").env("RCLONE_RC_PASS", &password);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        tether(&mut command);
        let mut child = command.spawn().map_err(|error| missing(options.program, &error))?;
        let printed = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let printed = Arc::clone(&printed);
            thread::spawn(move || listen(stderr, &printed));
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(16)
            .proxy(None)
            .build();
        let agent = if unix {
            ureq::Agent::with_parts(config, SocketConnector, DefaultResolver::default())
        } else {
            ureq::Agent::new_with_config(config)
        };
        let mut rclone = Rclone {
            child: Mutex::new(child),
            agent,
            // The name is never looked up: the connector knows where to go.
            address: if unix { "127.0.0.1".to_string() } else { String::new() },
            authorization: basic("nrt_backup", &password),
            secrets,
            printed,
            version,
        };
        rclone.wait_until_it_answers()?;
        Ok(rclone)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            if self.address.is_empty()
                && let Some(address) = served_at(&self.printed())
            {
                self.address = address;
            }
            let answer = (!self.address.is_empty())
                .then(|| self.call("rc/noopauth", &json!({}), Duration::from_secs(5)));
            match answer {
                Some(Ok(_)) => return Ok(()),
                Some(Err(refusal)) if !refusal.gone => {
                    return Err(failure(format!("rclone refuses to serve: {refusal}")));
                }
                _ => {}
            }
            if !self.is_running() || begin.elapsed() > START {
                let words = self.secrets.hide(self.printed().trim());
                return Err(failure(format!("rclone does not start: {words}")));
            }
            thread::sleep(PAUSE);
        }
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process is there.
    pub fn is_running(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }

    /// Asks rclone to do something and waits for its answer.
    ///
    /// # Errors
    ///
    /// Its own words, or that it does not answer within `limit`.
    pub fn call(
        &self,
        method: &str,
        parameters: &Value,
        limit: Duration,
    ) -> Result<Value, Refusal> {
        self.call_for(method, parameters, limit, LONGEST_ANSWER)
    }

    /// The same for an answer of at most `longest` bytes, which is read as a `T`.
    pub(super) fn call_for<T: DeserializeOwned>(
        &self,
        method: &str,
        parameters: &Value,
        limit: Duration,
        longest: u64,
    ) -> Result<T, Refusal> {
        let gone = |error: &dyn std::fmt::Display| Refusal {
            gone: true,
            ..Refusal::new(
                self.secrets.hide(&format!("rclone does not answer ({method}): {error}")),
            )
        };
        let answer = self
            .agent
            .post(format!("http://{}/{method}", self.address))
            .config()
            .timeout_global(Some(limit))
            .build()
            .header("Authorization", &self.authorization)
            .header("Content-Type", "application/json")
            .send(parameters.to_string().as_bytes());
        let mut answer = answer.map_err(|error| gone(&error))?;
        let status = answer.status().as_u16();
        let longest = if status == 200 { longest } else { LONGEST_ANSWER };
        let text = answer.body_mut().with_config().limit(longest).read_to_vec();
        let text = text.map_err(|error| gone(&error))?;
        if status == 200 {
            return serde_json::from_slice(&text).map_err(|error| gone(&error));
        }
        let value: Value = serde_json::from_slice(&text).map_err(|error| gone(&error))?;
        let words = value["error"].as_str().unwrap_or("no reason given");
        // rclone answers 404 for its own two errors, and for a method that it does not know.
        let missing = status == 404 && MISSING.iter().any(|known| words.ends_with(known));
        let found = Refusal::of_job(words, self.secrets.hide(words));
        Err(Refusal { missing, ..found })
    }

    /// What rclone prints may hold the words of a job's failure.
    pub fn hide(&self, words: &str) -> String {
        self.secrets.hide(words)
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_file(SOCKET);
    }
}

fn failure(message: String) -> Failure {
    Failure {
        message,
        hint: "Try \"rclone lsd <remote>:\" with this configuration as the server's user."
            .to_string(),
    }
}

pub(super) fn missing(program: &str, error: &io::Error) -> Failure {
    Failure {
        message: format!("rclone is missing: could not run \"{program}\": {error}"),
        hint: "Install rclone 1.60 or newer (apt install rclone), or set nrt_backup.rclone to its \
               path."
            .to_string(),
    }
}

/// What the program calls its version.
fn version(program: &str, environment: &[(OsString, OsString)]) -> Result<String, Failure> {
    let path = on_path(program, environment);
    // Without this it would read a configuration that is not ours.
    let args = ["version", "--config", "/dev/null"].map(OsString::from);
    let captured = capture(&path, &args, environment, VERSION, 1 << 20)
        .map_err(|error| missing(program, &error))?;
    let text = String::from_utf8_lossy(&captured.stdout);
    let first = text.lines().next().and_then(|line| line.strip_prefix("rclone v"));
    first.map(str::to_string).ok_or_else(|| Failure {
        message: format!("\"{program}\" does not answer as rclone does"),
        hint: "Set nrt_backup.rclone to rclone's path.".to_string(),
    })
}

/// A program's path; the name itself where it is not found, so that the error says so.
pub(super) fn on_path(program: &str, environment: &[(OsString, OsString)]) -> PathBuf {
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value);
    let found = path.filter(|_| !program.contains('/')).and_then(|path| {
        std::env::split_paths(path).map(|it| it.join(program)).find(|it| it.is_file())
    });
    found.unwrap_or_else(|| Path::new(program).to_path_buf())
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where an rclone that chose its own port says that it listens.
fn served_at(printed: &str) -> Option<String> {
    let (_, rest) = printed.split_once("Serving remote control on http://")?;
    let (address, _) = rest.split_once('/')?;
    Some(address.to_string())
}

/// Keeps the end of what rclone prints: the pipe has to be drained.
fn listen(stderr: impl Read, printed: &Mutex<String>) {
    /// Characters that are kept.
    const KEPT: usize = 8192;
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
        printed.push_str(&String::from_utf8_lossy(&line));
        printed.push('\n');
        if printed.len() > 2 * KEPT {
            let cut = printed.len() - KEPT;
            let cut = (cut..).find(|place| printed.is_char_boundary(*place)).unwrap_or(cut);
            printed.drain(..cut);
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// For the one header that needs it.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Connects to rclone's socket, whatever the address says.
#[derive(Debug)]
struct SocketConnector;

impl Connector for SocketConnector {
    type Out = SocketTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<SocketTransport>, ureq::Error> {
        let stream = UnixStream::connect(SOCKET)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(SocketTransport { stream, buffers }))
    }
}

/// One connection to rclone's socket.
#[derive(Debug)]
struct SocketTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

/// A timeout as a socket takes it: none means for ever, and zero is refused.
fn of(timeout: NextTimeout) -> Option<Duration> {
    timeout.not_zero().map(|timeout| (*timeout).max(Duration::from_millis(1)))
}

/// A socket says "would block" when its time is over.
fn overdue(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(of(timeout))?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(|error| overdue(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(of(timeout))?;
        let input = self.buffers.input_append_buf();
        let count = self.stream.read(input).map_err(|error| overdue(error, timeout))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        // A connection that rclone has closed is readable and at its end.
        let mut byte = [0];
        let closed = self.stream.set_nonblocking(true).is_err()
            || !matches!(self.stream.read(&mut byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        !closed && self.stream.set_nonblocking(false).is_ok()
    }
}

impl Drop for SocketTransport {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_and_addresses() {
        assert_eq!(numbers("1.60.1-DEV"), Some((1, 60)));
        assert_eq!(numbers("1.75.2"), Some((1, 75)));
        assert_eq!(numbers("2.0-beta"), Some((2, 0)));
        assert_eq!(numbers("dev"), None);
        let printed = "x\n2026/11/22 NOTICE: Serving remote control on http://127.0.0.1:34197/\n";
        assert_eq!(served_at(printed).as_deref(), Some("127.0.0.1:34197"));
        assert_eq!(served_at("Serving remote control on http://127"), None);
    }

    #[test]
    fn only_words_of_rclone_itself_say_that_something_is_missing() {
        let job = |words: &str| Refusal::of_job(words, words.to_string());
        for words in MISSING {
            assert!(job(words).missing, "{words}");
        }
        for words in [
            "read metadata failed: 502 Bad Gateway: backend object not found",
            "Not Found: 404 Not Found",
            "host not found",
        ] {
            assert!(!job(words).missing, "{words}");
        }
        assert!(job(TOO_LONG).damaged && !job("full").damaged);
    }
}
