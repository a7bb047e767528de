//! Runs PostgreSQL privately while it recovers: on a socket that only this user can reach, without
//! archiving, with the operator's own configuration otherwise.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDateTime, Utc};
use nrt_core::lsn::Lsn;
use nrt_core::restore::Refusal;
use nrt_process::{Captured, allowed, capture, tether};
use rustix::process::{Pid, Signal, kill_process};

use super::place::unusable;
use super::work::Work;

/// How long a helper program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(600);
/// Where replay ended, in the log.
const DONE: &str = "redo done at ";
/// What the log of a recovery says that tells nothing of a record.
const PROGRESS: [&str; 5] = [
    "restored log file",
    "redo starts",
    "redo in progress",
    "consistent recovery state",
    "starting ",
];
/// Characters of the log that are kept.
const KEPT: usize = 64 << 10;

/// PostgreSQL's programs of one version.
#[derive(Debug, Clone)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// Finds them: in a directory that was named, where Debian has them, or on the PATH.
    pub(crate) fn find(version: &str, named: Option<&Path>) -> Result<Programs, Refusal> {
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = match named {
            Some(named) => vec![named.to_path_buf()],
            // Beside this very program first: it was installed into a PostgreSQL.
            None => std::env::current_exe()
                .ok()
                .and_then(|it| it.parent().map(Path::to_path_buf))
                .into_iter()
                .chain([debian])
                .chain(std::env::split_paths(&path))
                .collect(),
        };
        let mut others = Vec::new();
        for directory in candidates {
            match major_of(&directory.join("postgres")) {
                Some(found) if found == version => return Ok(Programs(directory)),
                Some(found) => others.push(format!("{found} in \"{}\"", directory.display())),
                None => {}
            }
        }
        let found = if others.is_empty() {
            "none was found".to_string()
        } else {
            format!("found was {}", others.join(", "))
        };
        Err(Refusal::new(
            format!("the backup is of PostgreSQL {version}, whose server is not here: {found}"),
            format!(
                "Install it (apt install postgresql-{version}), or name the directory of its \
                 programs with --bindir."
            ),
        ))
    }

    /// One of them.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The lines of `pg_controldata`.
    pub(crate) fn control(&self, data: &Path) -> Result<Vec<(String, String)>, Refusal> {
        let text = self.run("pg_controldata", &[data.as_os_str().to_owned()])?;
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_string(), value.trim().to_string()))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// The value of a setting that a server in this data directory would start with; `None` where
    /// there is no such setting or it cannot be told.
    pub(crate) fn setting(&self, data: &Path, config: &[OsString], name: &str) -> Option<String> {
        self.shown(data, config, name).ok().filter(|it| !it.is_empty())
    }

    /// Whether such a setting is known to be empty.
    pub(crate) fn is_empty(&self, data: &Path, config: &[OsString], name: &str) -> bool {
        self.shown(data, config, name).is_ok_and(|it| it.is_empty())
    }

    fn shown(&self, data: &Path, config: &[OsString], name: &str) -> Result<String, Refusal> {
        let mut args = vec!["-D".into(), data.as_os_str().to_owned()];
        args.extend_from_slice(config);
        args.extend(["-C".into(), name.into()]);
        let text = self.run("postgres", &args)?;
        Ok(text.lines().last().unwrap_or_default().trim().to_string())
    }

    /// Reads a configuration as a server that starts would, and no more: nothing is listened to,
    /// loaded or written.
    ///
    /// # Errors
    ///
    /// PostgreSQL's words about what it cannot read.
    pub(crate) fn read_configuration(
        &self,
        data: &Path,
        config: &[OsString],
    ) -> Result<(), String> {
        let mut args = vec!["-D".into(), data.as_os_str().to_owned()];
        args.extend_from_slice(config);
        args.extend(["-C".into(), "data_directory".into()]);
        let program = self.program("postgres");
        let captured = capture(&program, &args, &allowed(std::env::vars_os()), LIMIT, 1 << 20)
            .map_err(|error| error.to_string())?;
        if captured.exit == Some(0) {
            return Ok(());
        }
        // Each fault has a line, and the last line only says that there were some.
        let words = captured.stderr.lines().filter_map(|line| {
            let said = line.split_once("LOG:  ").or_else(|| line.split_once("FATAL:  "));
            said.map(|(_, words)| words.to_string())
        });
        let words: Vec<String> = words.collect();
        match words.first() {
            Some(first) => Err(first.clone()),
            None => Err(captured.stderr.trim().to_string()),
        }
    }

    fn run(&self, name: &str, args: &[OsString]) -> Result<String, Refusal> {
        let captured =
            capture(&self.program(name), args, &allowed(std::env::vars_os()), LIMIT, 1 << 20);
        let captured = captured.map_err(|error| Refusal::new(error.to_string(), ""))?;
        if captured.exit != Some(0) {
            let words = captured.stderr.lines().last().unwrap_or("no reason given");
            return Err(Refusal::new(format!("{name}: {words}"), ""));
        }
        Ok(String::from_utf8_lossy(&captured.stdout).into_owned())
    }
}

/// The major version of a server program.
fn major_of(program: &Path) -> Option<String> {
    let args = ["--version".into()];
    let captured = capture(program, &args, &allowed(std::env::vars_os()), LIMIT, 1 << 16).ok()?;
    let text = String::from_utf8_lossy(&captured.stdout).into_owned();
    let version = text.split_whitespace().find(|it| it.starts_with(|c: char| c.is_numeric()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// Settings that must be at least what they were on the original where a server can be read while
/// it recovers: how `pg_controldata` and the configuration call each.
const AT_LEAST: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// A server that recovers, of which nobody else knows. It is stopped with this value.
#[derive(Debug)]
pub(crate) struct Private {
    child: Child,
    log: PathBuf,
    read: u64,
    /// What it has said so far.
    pub(crate) told: Told,
    socket: PathBuf,
    programs: Programs,
    /// What connections of a superuser to it begin with: libpq's `PGOPTIONS`.
    pub(crate) options: String,
}

/// What the log of a recovery says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    /// It takes writes.
    pub(crate) is_ready: bool,
    /// It waits for somebody to let it go on.
    pub(crate) is_paused: bool,
    /// The last record that was replayed.
    pub(crate) redo_done: Option<Lsn>,
    /// The last transaction's end that was replayed.
    pub(crate) last_end: Option<DateTime<Utc>>,
    /// The timeline that it went on with.
    pub(crate) timeline: Option<u32>,
    /// Its last words of an error.
    pub(crate) error: Option<String>,
    /// Why `wal-get` could not give it WAL.
    pub(crate) wal: Option<String>,
    /// What it said of the record at which replay ended.
    pub(crate) end: Option<String>,
    /// That it stopped at its target.
    pub(crate) stopped: Option<String>,
    /// The end of all that it said.
    pub(crate) tail: String,
}

impl Private {
    /// Starts a server; `last` are settings that win over all others.
    pub(crate) fn start(
        programs: &Programs,
        data: &Path,
        config: &[OsString],
        work: &Work,
        last: &[(&'static str, String)],
    ) -> Result<Private, Refusal> {
        let place = work.path();
        let problem = |error: io::Error| unusable(place, &error);
        let socket = work.socket().map_err(super::told)?;
        let log = place.join("recovery.log");
        let hba = place.join("pg_hba.conf");
        fs::write(&hba, "local all all trust\n").map_err(problem)?;
        fs::write(place.join("pg_ident.conf"), "").map_err(problem)?;
        let output =
            File::options().create(true).truncate(true).write(true).open(&log).map_err(problem)?;
        let mut command = Command::new(programs.program("postgres"));
        command.arg("-D").arg(data).args(config);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("listen_addresses", "");
        set("port", "5432");
        set("unix_socket_directories", &socket.to_string_lossy());
        set("unix_socket_permissions", "0700");
        set("unix_socket_group", "");
        set("hba_file", &hba.to_string_lossy());
        set("ident_file", &place.join("pg_ident.conf").to_string_lossy());
        // Where the operator's own is, another server may run.
        set("external_pid_file", &work.pid_file().to_string_lossy());
        set("ssl", "off");
        set("bonjour", "off");
        set("logging_collector", "off");
        set("log_destination", "stderr");
        set("log_min_messages", "log");
        set("log_line_prefix", "");
        set("log_timezone", "UTC");
        set("timezone", "UTC");
        set("lc_messages", "C");
        set("log_checkpoints", "off");
        set("log_connections", "off");
        // Nobody reads here, and with readers replay would wait, for ever, at the record of a setting
        // that was raised after the backup.
        set("hot_standby", "off");
        set("primary_conninfo", "");
        // What is written here is archived by the server that starts afterwards: the history of its
        // new timeline, too, of which PostgreSQL takes note only where archiving is on. What makes
        // it so, there, may not be in the configuration: a container's command line has it.
        if programs.setting(data, config, "wal_level").is_none_or(|it| it != "minimal") {
            set("archive_mode", "on");
        }
        set("archive_command", "");
        set("archive_library", "");
        // They may clean, or tell of, what is the original's.
        set("archive_cleanup_command", "");
        set("recovery_end_command", "");
        for (name, value) in minimums(programs, data, config)? {
            set(name, &value);
        }
        last.iter().for_each(|(name, value)| set(name, value));
        command.env_clear().envs(allowed(std::env::vars_os()));
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(problem)?).stderr(output);
        // Ctrl-C is for the restore, which then ends the server in order.
        command.process_group(0);
        tether(&mut command);
        let child = command.spawn().map_err(|error| {
            let program = programs.program("postgres");
            Refusal::new(
                format!("could not run \"{}\": {error}", program.display()),
                "See that it may be run here, or name another directory with --bindir.",
            )
        })?;
        Ok(Private {
            child,
            log,
            read: 0,
            told: Told::default(),
            socket,
            programs: programs.clone(),
            options: String::new(),
        })
    }

    /// Takes in what it has said since. `Some` when it has ended.
    pub(crate) fn look(&mut self) -> io::Result<Option<ExitStatus>> {
        // In this order: what it says last is read.
        let ended = self.child.try_wait()?;
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = match ended {
            Some(_) => text.len(),
            None => text.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1),
        };
        self.read += whole as u64;
        let text = String::from_utf8_lossy(text.get(..whole).unwrap_or_default()).into_owned();
        for line in text.lines() {
            self.told.hear(line);
        }
        Ok(ended)
    }

    /// Waits until it takes writes.
    pub(crate) fn wait(&mut self) -> Result<(), Refusal> {
        loop {
            let ended = self.look().map_err(|error| Refusal::new(error.to_string(), ""))?;
            if self.told.is_ready {
                return Ok(());
            }
            if ended.is_some() {
                let words = self.told.last_words();
                return Err(Refusal::new(
                    format!("the restored server does not start: {words}"),
                    "",
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks something as the superuser `user`; the rows' values, separated by tabs.
    pub(crate) fn ask(&self, user: &str, database: &str, query: &str) -> Result<String, Refusal> {
        self.client(
            "psql",
            user,
            database,
            &[
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--field-separator=\t",
                "--set=ON_ERROR_STOP=1",
                "--command",
                query,
            ],
        )
    }

    /// Runs a client program as the superuser `user`: what it printed.
    pub(crate) fn client(
        &self,
        program: &str,
        user: &str,
        database: &str,
        words: &[&str],
    ) -> Result<String, Refusal> {
        let captured = self.run_as_superuser(program, user, database, words)?;
        if captured.exit != Some(0) {
            return Err(Refusal::new(captured.stderr.trim().to_string(), ""));
        }
        Ok(String::from_utf8_lossy(&captured.stdout).trim_end().to_string())
    }

    /// Runs a client program as the superuser `user`: all that it said, however it ended.
    pub(crate) fn run_as_superuser(
        &self,
        program: &str,
        user: &str,
        database: &str,
        words: &[&str],
    ) -> Result<Captured, Refusal> {
        self.run(program, user, database, words, &self.options)
    }

    /// Runs a client program as any role, whose connections begin with `options`.
    pub(crate) fn run(
        &self,
        program: &str,
        user: &str,
        database: &str,
        words: &[&str],
        options: &str,
    ) -> Result<Captured, Refusal> {
        let mut environment = allowed(std::env::vars_os());
        for (name, value) in [
            ("PGOPTIONS", options.into()),
            ("PGHOST", self.socket.as_os_str().to_owned()),
            ("PGPORT", "5432".into()),
            ("PGUSER", user.into()),
            ("PGDATABASE", database.into()),
        ] {
            environment.push((name.into(), value));
        }
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let limit = Duration::from_secs(24 * 3600);
        let program = self.programs.program(program);
        capture(&program, &args, &environment, limit, 64 << 20)
            .map_err(|error| Refusal::new(error.to_string(), ""))
    }

    /// Stops it in order, after which the data directory can be started again.
    pub(crate) fn stop(mut self) -> Result<(), Refusal> {
        self.signal(Signal::INT);
        let begin = Instant::now();
        while begin.elapsed() < STOP {
            match self.look() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                _ => break,
            }
        }
        Err(Refusal::new(
            format!("the recovered server did not stop in order: {}", self.told.last_words()),
            "Its log is in the work directory.",
        ))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // What it did is done again by the next restore.
            self.signal(Signal::QUIT);
            let begin = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) {
                if begin.elapsed() > Duration::from_secs(10) {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = fs::remove_dir_all(&self.socket);
    }
}

impl Told {
    fn hear(&mut self, line: &str) {
        // What is wrong before it can log anything.
        if let Some(words) = line.strip_prefix("postgres: ") {
            self.error = Some(words.to_string());
        }
        if let Some(words) = line.strip_prefix("nrt-backup: ") {
            self.wal = Some(words.to_string());
        }
        let Some((level, words)) = line.split_once(":  ") else { return };
        self.tail.push_str(line);
        self.tail.push('\n');
        if self.tail.len() > KEPT {
            let cut = self.tail.len() - KEPT / 2;
            let cut = self.tail.char_indices().map(|(at, _)| at).find(|at| *at >= cut).unwrap_or(0);
            self.tail.drain(..cut);
        }
        if matches!(level, "FATAL" | "PANIC" | "ERROR") {
            self.error = Some(words.to_string());
        }
        let is_progress = PROGRESS.iter().any(|known| words.starts_with(known));
        if level == "LOG" && self.redo_done.is_none() && !words.starts_with(DONE) {
            self.end = (!is_progress).then(|| words.to_string());
        }
        if words.starts_with("recovery stopping ") {
            self.stopped = Some(words.to_string());
        }
        if words.starts_with("database system is ready to accept connections") {
            self.is_ready = true;
        } else if words.starts_with("recovery has paused") {
            self.is_paused = true;
        } else if let Some(rest) = words.strip_prefix(DONE) {
            self.redo_done = rest.split_whitespace().next().and_then(|it| it.parse().ok());
        } else if let Some(rest) = words.strip_prefix("last completed transaction was at log time ")
        {
            self.last_end = rest
                .strip_suffix(" UTC")
                .or(rest.strip_suffix("+00"))
                .and_then(|it| NaiveDateTime::parse_from_str(it, "%Y-%m-%d %H:%M:%S%.f").ok())
                .map(|it| it.and_utc());
        } else if let Some(rest) = words.strip_prefix("selected new timeline ID: ") {
            self.timeline = rest.trim().parse().ok();
        }
    }

    /// Whether it ended because more transactions are prepared than it has room for.
    pub(crate) fn lacks_prepared(&self) -> bool {
        let words = "maximum number of prepared transactions reached";
        self.error.as_ref().is_some_and(|it| it.contains(words))
    }

    /// Whether it ended because there was no more valid WAL.
    pub(crate) fn ran_out_of_wal(&self) -> bool {
        let words = ["recovery ended before configured recovery target", "WAL ends before"];
        self.error.as_ref().is_some_and(|it| words.iter().any(|known| it.starts_with(known)))
    }

    /// The directory of a tablespace that the WAL creates, if it ended because that is not there.
    pub(crate) fn lacks_directory(&self) -> Option<PathBuf> {
        let named = self.error.as_ref()?.strip_prefix("directory \"")?;
        let path = PathBuf::from(named.strip_suffix("\" does not exist")?);
        path.is_absolute().then_some(path)
    }

    /// What it said last of an error, or at all.
    pub(crate) fn last_words(&self) -> String {
        // What is wrong in a configuration is only logged.
        if let Some(error) = self.error.as_ref().filter(|it| it.contains("contains errors")) {
            let mut logged = self.tail.lines().filter_map(|line| line.strip_prefix("LOG:  "));
            return format!("{}; {error}", logged.next_back().unwrap_or_default());
        }
        if let (Some(error), Some(words)) = (&self.error, &self.wal)
            && error.contains("could not restore file")
        {
            return words.clone();
        }
        let last = || self.tail.lines().last().unwrap_or("it said nothing").to_string();
        self.error.clone().unwrap_or_else(last)
    }
}

/// Values with which recovery goes on, where the configuration has smaller ones: what the original
/// had, as far as was replayed.
pub(super) fn minimums(
    programs: &Programs,
    data: &Path,
    config: &[OsString],
) -> Result<Vec<(&'static str, String)>, Refusal> {
    let control = programs.control(data)?;
    let mut raised = Vec::new();
    for (line, name) in AT_LEAST {
        let wanted = control.iter().find(|(known, _)| known == line);
        let Some(wanted) = wanted.and_then(|(_, value)| value.parse::<u64>().ok()) else {
            continue;
        };
        let has = programs.setting(data, config, name).and_then(|it| it.parse::<u64>().ok());
        if has.is_none_or(|has| has < wanted) {
            raised.push((name, wanted.to_string()));
        }
    }
    Ok(raised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hears_why_replay_ended() {
        let mut told = Told::default();
        for line in [
            "LOG:  restored log file \"000000010000000000000005\" from archive",
            "LOG:  invalid record length at 0/5000110: wanted 24, got 0",
            "LOG:  redo done at 0/50000D8 system usage: CPU: user: 0.00 s",
            "LOG:  last completed transaction was at log time 2026-11-22 14:29:59.123456+00",
        ] {
            told.hear(line);
        }
        let end = Some("invalid record length at 0/5000110: wanted 24, got 0");
        assert_eq!((told.end.as_deref(), told.stopped.as_deref()), (end, None));
        told.hear("LOG:  recovery stopping after WAL location (LSN) \"0/50000D8\"");
        assert!(told.stopped.is_some());
    }

    #[test]
    fn hears_what_recovery_says() {
        let mut told = Told::default();
        for line in [
            "LOG:  starting point-in-time recovery to 2026-11-22 14:30:00+00",
            "LOG:  redo starts at 0/2000028",
            "LOG:  redo done at 0/5000110 system usage: CPU: user: 0.00 s",
            "LOG:  last completed transaction was at log time 2026-11-22 14:29:59.123456+00",
            "LOG:  selected new timeline ID: 3",
            "LOG:  archive recovery complete",
            "LOG:  database system is ready to accept connections",
        ] {
            told.hear(line);
        }
        assert!(told.is_ready && !told.is_paused);
        assert_eq!((told.redo_done, told.timeline), (Some(Lsn(0x500_0110)), Some(3)));
        let end = told.last_end.map(|it| it.to_rfc3339());
        assert_eq!(end.as_deref(), Some("2026-11-22T14:29:59.123456+00:00"));
        assert_eq!(told.error, None);
        assert_eq!((told.end.as_deref(), told.stopped.as_deref()), (None, None));
        told.hear("FATAL:  recovery ended before configured recovery target was reached");
        assert!(told.ran_out_of_wal());
        assert!(told.last_words().contains("before configured"));
        told.hear("nrt-backup: 000000010000000000000003: no space left");
        assert!(told.last_words().contains("before configured"));
        told.hear("FATAL:  could not restore file \"000000010000000000000003\" from archive");
        assert_eq!(told.last_words(), "000000010000000000000003: no space left");
        assert!(!told.is_paused);
        told.hear(
            "WARNING:  hot standby is not possible because of insufficient parameter settings",
        );
        told.hear("LOG:  recovery has paused");
        assert!(told.is_paused);
        assert!(!told.lacks_prepared());
        told.hear("FATAL:  maximum number of prepared transactions reached");
        assert!(told.lacks_prepared());
        assert_eq!(told.lacks_directory(), None);
        told.hear("FATAL:  directory \"/srv/new space\" does not exist");
        assert_eq!(told.lacks_directory(), Some(PathBuf::from("/srv/new space")));
        told.hear("postgres: could not access the server configuration file");
        assert!(told.last_words().contains("could not access"));
    }
}
