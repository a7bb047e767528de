//! Says in one line whether a server is up and safe: for a container's health check.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use chrono::Utc;
use nrt_core::health::{self, Check, Severity};
use nrt_core::inventory::Inventory;
use nrt_core::kind::BackupType;
use nrt_core::layout::{self, Restored};
use nrt_core::offsite::Status;
use nrt_core::words::one_line;

use super::server::{self, Server};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the worker wrote longer ago is no sign of life.
const STALE: Duration = Duration::from_secs(3 * layout::PRESENT_WITHIN);
/// Says in one line whether the server is up and backed up: for a container's health check.
///
/// It is healthy if it answers, its worker lives, WAL is archived and shipped, and the last backup
/// is not too old: if no check of nrt.health is critical. Until the first backup is taken it is
/// not, and neither is a copy that was restored beside its original: nothing of it is backed up, and
/// nothing would be once the original is gone. Warnings are printed, and healthy. A standby is
/// healthy if it is up: its primary is backed up. Exit code: 0 or 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
}

/// What there is to judge by.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    /// Why the server cannot be used, if it cannot.
    down: Option<String>,
    is_in_recovery: bool,
    /// The worker waits for a restore to end.
    is_restoring: bool,
    worker_runs: bool,
    /// How long ago the worker wrote something; `None` if it never has.
    silent_for: Option<Duration>,
    /// Whether there is a full backup; `None` if that is not known.
    has_full: Option<bool>,
    checks: Vec<Check>,
    /// The check that says so, if this is a copy beside its original.
    copy: Option<Check>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let judged = match arguments.server.state() {
        Ok(state) => judge(&look(&arguments.server, &state)),
        Err(error) => Err(format!("{error:#}")),
    };
    match judged {
        Ok(words) => {
            println!("healthy: {}", one_line(&words));
            ExitCode::SUCCESS
        }
        Err(words) => {
            println!("not healthy: {}", one_line(&words));
            ExitCode::FAILURE
        }
    }
}

fn look(server: &Server, state: &Path) -> Seen {
    let inventory: Option<Inventory> = server::read(state, layout::INVENTORY);
    let mut checks: Vec<Check> = server::read(state, layout::HEALTH).unwrap_or_default();
    if let Some(status) = server::read::<Status>(state, layout::SHIP) {
        health::heed_silence(&mut checks, &status, Utc::now());
    }
    let restored: Option<Restored> = server::read(state, layout::RESTORED);
    let status = server.postmaster_file();
    Seen {
        down: why_down(server).err(),
        is_in_recovery: server.is_in_recovery() || status.contains("\nstandby"),
        is_restoring: state.join(layout::RECOVERING).exists(),
        worker_runs: server.worker().is_some(),
        silent_for: silent_for(state),
        has_full: inventory.and_then(|inventory| {
            let repository = inventory.repository.ok()?;
            Some(repository.info.backups.iter().any(|it| it.kind == BackupType::Full))
        }),
        copy: restored
            .filter(|it| it.is_copy)
            .and_then(|_| checks.iter().find(|it| health::is_copy(it)).cloned()),
        checks,
    }
}

/// How long ago the worker wrote down the present. A clock that was set back counts as well: a
/// worker that lives writes again within a minute.
fn silent_for(state: &Path) -> Option<Duration> {
    let written = fs::metadata(state.join(layout::PRESENT)).ok()?.modified().ok()?;
    let now = SystemTime::now();
    now.duration_since(written).or_else(|_| written.duration_since(now)).ok()
}

/// Asks the server itself.
fn why_down(server: &Server) -> Result<(), String> {
    if !server.is_running() {
        return Err("the server does not run".to_string());
    }
    let text = server.postmaster_file();
    let line = |number: usize| text.lines().nth(number).map_or("", str::trim);
    match line(7) {
        "ready" | "standby" => {}
        "" => return Err("the server is starting".to_string()),
        other => return Err(format!("the server is {other}")),
    }
    let (port, directory, address) = (line(3), line(4), line(5));
    let asked = if directory.is_empty() {
        let address = if matches!(address, "*" | "") { "127.0.0.1" } else { address };
        let stream = TcpStream::connect(format!("{address}:{port}"));
        stream.and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            greet(stream)
        })
    } else {
        let socket = PathBuf::from(directory).join(format!(".s.PGSQL.{port}"));
        UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            greet(stream)
        })
    };
    asked.map_err(|error| format!("the server does not answer: {error}"))
}

/// Asks for encryption, which any server answers before it asks who is there.
fn greet(mut stream: impl Read + Write) -> std::io::Result<()> {
    /// PostgreSQL's SSLRequest: its length, and its code.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
    stream.write_all(&SSL_REQUEST)?;
    stream.read_exact(&mut [0])
}

/// Why it is healthy, or not.
fn judge(seen: &Seen) -> Result<String, String> {
    if let Some(down) = &seen.down {
        return Err(down.clone());
    }
    if seen.is_in_recovery {
        return Ok("up as a standby; backups are taken on the primary".to_string());
    }
    if seen.is_restoring {
        return Err("a restore has not ended: nothing is backed up".to_string());
    }
    if !seen.worker_runs {
        return Err(health::worker_missing().message);
    }
    match seen.silent_for {
        None => return Err("the nrt_backup worker is starting".to_string()),
        Some(silent) if silent > STALE => {
            let seconds = silent.as_secs();
            return Err(format!(
                "the nrt_backup worker has written nothing for {seconds} s: it hangs, or cannot write"
            ));
        }
        Some(_) => {}
    }
    let words = |check: &Check| format!("{}: {}", check.name, check.message);
    let of = |severity: Severity| {
        let checks = seen.checks.iter().filter(|check| check.severity == severity);
        checks.map(words).collect::<Vec<_>>()
    };
    if let Some(copy) = &seen.copy {
        return Err(format!("{}. {}", copy.message, copy.hint));
    }
    let critical = of(Severity::Critical);
    if !critical.is_empty() {
        return Err(critical.join("; "));
    }
    let warnings = of(Severity::Warning);
    if seen.has_full != Some(true) {
        let mut why = "the first backup has not been taken yet".to_string();
        if let Some(check) = seen.checks.iter().find(|check| check.name == "backup") {
            why += &format!(" ({})", check.message);
        }
        return Err(why);
    }
    if warnings.is_empty() {
        let backup = seen.checks.iter().find(|check| check.name == "backup");
        return Ok(backup.map_or_else(String::new, |check| check.message.clone()));
    }
    Ok(format!("but: {}", warnings.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, severity: Severity, message: &str) -> Check {
        let (name, message) = (name.to_string(), message.to_string());
        Check { name, severity, message, hint: String::new() }
    }

    fn well() -> Seen {
        Seen {
            down: None,
            is_in_recovery: false,
            is_restoring: false,
            worker_runs: true,
            silent_for: Some(Duration::from_secs(layout::PRESENT_WITHIN)),
            has_full: Some(true),
            checks: vec![check("backup", Severity::Ok, "the last backup ended")],
            copy: None,
        }
    }

    #[test]
    fn a_server_that_is_backed_up_is_healthy() {
        assert_eq!(judge(&well()), Ok("the last backup ended".to_string()));
    }

    #[test]
    fn a_warning_is_said_and_healthy() {
        let warning = check("drill", Severity::Warning, "no restore has been tried");
        let seen = Seen { checks: vec![warning], ..well() };
        assert_eq!(judge(&seen), Ok("but: drill: no restore has been tried".to_string()));
    }

    #[test]
    fn what_is_not_well_is_said() {
        let lost = check("archiving", Severity::Critical, "WAL stays in pg_wal");
        for (seen, words) in [
            (Seen { down: Some("the server is stopping".into()), ..well() }, "is stopping"),
            (Seen { is_restoring: true, ..well() }, "a restore has not ended"),
            (Seen { worker_runs: false, ..well() }, "worker is not running"),
            (Seen { silent_for: None, ..well() }, "worker is starting"),
            (Seen { silent_for: Some(STALE * 2), ..well() }, "written nothing for 360 s"),
            (Seen { has_full: Some(false), ..well() }, "first backup has not been taken"),
            (Seen { has_full: None, ..well() }, "first backup has not been taken"),
            (Seen { checks: vec![lost], ..well() }, "archiving: WAL stays in pg_wal"),
        ] {
            assert!(judge(&seen).is_err_and(|it| it.contains(words)), "{words}");
        }
    }

    #[test]
    fn a_standby_is_backed_up_elsewhere_and_a_copy_is_not() {
        let standby = Seen { is_in_recovery: true, worker_runs: false, has_full: None, ..well() };
        assert!(judge(&standby).is_ok());
        let note = check("archiving", Severity::Warning, "this is a copy");
        let copy = Seen { checks: vec![note.clone()], copy: Some(note), ..well() };
        assert!(judge(&copy).is_err_and(|it| it.contains("this is a copy")));
    }

    #[test]
    fn a_server_is_asked_and_must_answer() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.write_all(b"N").expect("sent");
        assert!(greet(ours).is_ok());
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        drop(theirs);
        assert!(greet(ours).is_err());
    }
}
