//! Makes, runs, breaks and removes a PostgreSQL server.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::installation::Installation;
use crate::log::{LINE_PREFIX, LogEntry, Severity, parse_log};
use crate::machine::{Disk, Machine};
use crate::process::{Process, kill, processes_mentioning};

/// How long a server may take to start or to stop before that is a failure of the test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often something that is waited for is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// A PostgreSQL server with a directory, a socket and a repository of its own.
///
/// ```text
/// let cluster = Cluster::new("growth").setting("nrt_backup.wal_growth_threshold", "1MB").started();
/// cluster.sql("create table t as select generate_series(1, 100000)");
/// cluster.wait_for("select count(*) from nrt.backup_history", "1", Duration::from_secs(60));
/// ```
///
/// Dropping it stops the server, kills what is left over, removes every file, and fails the test if
/// the server's log holds a message of WARNING or worse that was not [allowed](Cluster::allow).
/// With `NRT_TEST_KEEP=1` in the environment the files of a failed test stay.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) name: String,
    installation: &'static Installation,
    directory: TempDir,
    preload: bool,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    mounted: bool,
    pub(crate) disk: Option<Disk>,
    state: Mutex<State>,
}

/// What changes while other threads look on.
#[derive(Debug, Default)]
struct State {
    settings: Vec<(String, String)>,
    server: Option<Child>,
    /// The machine that it runs on, if not this one.
    machine: Option<Machine>,
    allowed: Vec<String>,
    /// Where the log of the server that runs now begins.
    log_start: usize,
}

/// How a server is asked to stop, after `pg_ctl stop -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Wait for clients.
    Smart,
    /// Disconnect clients.
    Fast,
    /// Leave recovery to the next start.
    Immediate,
}

// Making one. Everything here is said before the server is started.
impl Cluster {
    /// Makes a cluster that preloads the extension; nothing runs yet.
    ///
    /// It is a copy of one that `initdb` made once, so all of them have the same system identifier:
    /// see [`Cluster::with_identity`] where that matters.
    pub fn new(name: &str) -> Cluster {
        let cluster = Cluster::without_data(name);
        let template = template(cluster.installation);
        let mut copy = cluster.installation.command("cp");
        succeed(copy.args(["-a", "--reflink=auto"]).arg(template).arg(cluster.data()));
        cluster
    }

    /// Makes a cluster with a system identifier of its own.
    pub fn with_identity(name: &str) -> Cluster {
        let cluster = Cluster::without_data(name);
        initdb(cluster.installation, &cluster.data(), &[]);
        cluster
    }

    /// The same with WAL segments of so many megabytes.
    pub fn with_segments_of(name: &str, megabytes: u32) -> Cluster {
        let cluster = Cluster::without_data(name);
        let size = format!("--wal-segsize={megabytes}");
        initdb(cluster.installation, &cluster.data(), &[&size]);
        cluster
    }

    /// Makes a copy of a stopped cluster's data directory; the settings are not copied.
    pub fn copy_of(original: &Cluster, name: &str) -> Cluster {
        assert!(original.running_postmaster().is_none(), "{}: it runs", original.name);
        let cluster = Cluster::without_data(name);
        let mut copy = cluster.installation.command("cp");
        succeed(copy.args(["-a", "--reflink=auto"]).arg(original.data()).arg(cluster.data()));
        cluster
    }

    /// Makes a standby that follows a running primary.
    pub fn standby_of(primary: &Cluster, name: &str) -> Cluster {
        let cluster = Cluster::without_data(name);
        cluster.copy_from(primary);
        cluster
    }

    /// Fills the data directory with a base backup of a running primary, to follow it.
    pub(crate) fn copy_from(&self, primary: &Cluster) {
        let mut copy = primary.client("pg_basebackup");
        copy.args([
            "--checkpoint=fast",
            "--wal-method=stream",
            "--write-recovery-conf",
            "--pgdata",
        ]);
        succeed(copy.arg(self.data()));
        // Either of the two may stop first.
        self.allow("walreceiver ");
    }

    /// Makes everything but a data directory, for a restore to fill.
    pub fn without_data(name: &str) -> Cluster {
        Cluster::on(name, None)
    }

    /// The same, in a directory that is the root of a disk image.
    pub(crate) fn on(name: &str, disk: Option<Disk>) -> Cluster {
        let installation = Installation::get();
        let directory = tempfile::Builder::new()
            .prefix(&format!("nrt-{name}-"))
            .tempdir_in(installation.scratch())
            .expect("the scratch directory can be written to");
        if let Some(disk) = &disk {
            disk.mount(directory.path());
        }
        installation.hand_over(directory.path()).expect("the directory was just made");
        for part in ["socket", "repository", "lock", "fakes"] {
            let part = directory.path().join(part);
            if !part.exists() {
                installation.private_directory(&part).expect("the directory is ours");
            }
        }
        let cluster = Cluster {
            name: name.to_string(),
            installation,
            directory,
            preload: true,
            environment: Vec::new(),
            arguments: Vec::new(),
            mounted: false,
            disk,
            state: Mutex::default(),
        };
        let path = |path: PathBuf| path.display().to_string();
        cluster.set("listen_addresses", "");
        cluster.set("unix_socket_directories", &path(cluster.socket()));
        cluster.set("log_line_prefix", LINE_PREFIX);
        cluster.set("max_connections", "30");
        cluster.set("shared_buffers", "32MB");
        // A test kills processes, never the machine.
        cluster.set("fsync", "off");
        cluster.set("nrt_backup.repository", &path(cluster.repository()));
        cluster.set("nrt_backup.lock_path", &path(cluster.lock()));
        cluster
    }

    /// Sets a setting, as the operator does in `postgresql.conf`.
    #[must_use]
    pub fn setting(self, name: &str, value: &str) -> Cluster {
        self.set(name, value);
        self
    }

    /// Says whether the extension is in `shared_preload_libraries`, which it is by default.
    #[must_use]
    pub fn preload(mut self, preload: bool) -> Cluster {
        self.preload = preload;
        self
    }

    /// Sets a variable in the server's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Cluster {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Adds an argument to the server's command line, for what no configuration file can say.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Cluster {
        self.arguments.push(argument.to_string());
        self
    }

    /// Puts the repository on a file system of its own that holds so many megabytes.
    ///
    /// # Panics
    /// If the caller is not root: ask [`crate::is_root`] first.
    #[must_use]
    pub fn repository_on_tmpfs(mut self, megabytes: u32) -> Cluster {
        let account = self.installation.account().expect("only root can mount a file system");
        let options =
            format!("size={megabytes}m,mode=0700,uid={},gid={}", account.uid, account.gid);
        succeed(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(self.repository()),
        );
        self.mounted = true;
        self
    }

    /// Starts the server and hands the cluster back.
    #[must_use]
    pub fn started(self) -> Cluster {
        self.start();
        self
    }
}

// Where things are.
impl Cluster {
    /// The directory that everything of this cluster is in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// The extension's state directory.
    pub fn state_directory(&self) -> PathBuf {
        self.data().join("nrt_backup")
    }

    /// The repository's directory.
    pub fn repository(&self) -> PathBuf {
        self.directory().join("repository")
    }

    /// The directory of pgBackRest's locks.
    pub fn lock(&self) -> PathBuf {
        self.directory().join("lock")
    }

    /// The directory of the server's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("socket")
    }

    /// The directory that is the first on the server's PATH: see [`Cluster::fake`].
    pub fn fakes(&self) -> PathBuf {
        self.directory().join("fakes")
    }

    /// The file that the server writes its messages to.
    pub fn log_file(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// The installation whose server this is.
    pub fn installation(&self) -> &'static Installation {
        self.installation
    }

    /// The postmaster's process number.
    ///
    /// # Panics
    /// If the server does not run.
    pub fn postmaster(&self) -> i32 {
        self.running_postmaster().expect("the server runs")
    }
}

// Running it.
impl Cluster {
    /// Starts the server and waits until it accepts connections.
    ///
    /// # Panics
    /// If it doesn't, with its log.
    pub fn start(&self) {
        if let Err(log) = self.try_start() {
            panic!("{}: the server did not start:\n{log}", self.name);
        }
    }

    /// Starts the server and waits until it accepts connections, or gives up and tells its log.
    pub fn try_start(&self) -> Result<(), String> {
        self.write_settings();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the log can be written to");
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .args(&self.arguments)
            .env("PATH", self.installation.path(Some(&self.fakes())))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is to be had"))
            .stderr(log);
        {
            let mut state = self.state();
            assert!(state.server.is_none(), "{}: the server runs already", self.name);
            state.log_start = self.whole_log().len();
            state.server = Some(command.spawn().expect("the server program can be run"));
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.accepts_connections() {
            if self.running_postmaster().is_none() || Instant::now() > deadline {
                self.kill_all();
                return Err(self.log());
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Says on which machine the server runs from its next start on, and its commands.
    pub fn boot(&self, machine: Machine) {
        self.state().machine = Some(machine);
    }

    /// One of PostgreSQL's programs, or `nrt-backup`, as the server's user on its machine.
    pub fn command(&self, program: &str) -> Command {
        let program = self.installation.program(program);
        match &self.state().machine {
            Some(machine) => machine.command(self.installation, &program),
            None => self.installation.command(program),
        }
    }

    /// Stops the server and tells how long that took.
    ///
    /// # Panics
    /// If it takes longer than a minute, with what still runs.
    pub fn stop(&self, how: Shutdown) -> Duration {
        let signal = match how {
            Shutdown::Smart => Signal::TERM,
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        };
        // What a stop does to connected clients is its purpose.
        self.allow("client backend 57P01");
        if how == Shutdown::Immediate {
            self.allow("57P02");
        }
        let begin = Instant::now();
        kill(self.postmaster(), signal);
        while self.running_postmaster().is_some() {
            if begin.elapsed() > PATIENCE {
                let left = describe(&self.processes());
                panic!("{}: the server did not stop within {PATIENCE:?}:\n{left}", self.name);
            }
            thread::sleep(Duration::from_millis(2));
        }
        begin.elapsed()
    }

    /// Stops the server fast and starts it again.
    pub fn restart(&self) {
        self.stop(Shutdown::Fast);
        self.start();
    }

    /// Kills the postmaster with SIGKILL and waits until the server's other processes noticed.
    pub fn crash(&self) {
        self.allow("57P02");
        kill(self.postmaster(), Signal::KILL);
        wait_until("the postmaster is dead", PATIENCE, || self.running_postmaster().is_none());
        wait_until("the server's processes noticed", PATIENCE, || {
            !self.processes().iter().any(|process| process.command.starts_with("postgres:"))
        });
    }

    /// Lets the machine vanish: kills everything of the cluster at once, without a word to anybody,
    /// and removes the data directory and the repository.
    pub fn vanish(&self) {
        self.cut_power();
        fs::remove_dir_all(self.data()).expect("nobody is left who writes there");
        self.lose_repository();
    }

    /// Kills everything of the cluster at once, without a word to anybody; its files stay.
    pub fn cut_power(&self) {
        self.freeze();
        for process in self.processes() {
            kill(process.pid, Signal::KILL);
        }
        self.kill_all();
    }

    /// Stops everything of the cluster in the middle of whatever it does: what its files are now
    /// stays so until it is [thawed](Cluster::thaw) or its power is cut.
    pub fn freeze(&self) {
        // A process that sees another one die may still say so.
        for words in ["57P01", "57P02", "08006", "postmaster exit"] {
            self.allow(words);
        }
        // One that was about to be started when its parent was looked at is found the second time.
        for _ in 0..2 {
            for process in self.processes() {
                kill(process.pid, Signal::STOP);
            }
        }
    }

    /// Lets everything go on that was frozen.
    pub fn thaw(&self) {
        for process in self.processes() {
            kill(process.pid, Signal::CONT);
        }
    }

    /// Removes the repository; what is mounted there is emptied.
    pub fn lose_repository(&self) {
        let repository = self.repository();
        if !self.mounted {
            fs::remove_dir_all(repository).expect("nobody is left who writes there");
            return;
        }
        for entry in fs::read_dir(repository).expect("it is there").flatten() {
            let path = entry.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("nobody is left who writes there");
        }
    }

    /// Fills the repository's disk to the last byte.
    ///
    /// # Panics
    /// If it has no disk of its own.
    pub fn fill_repository(&self) {
        assert!(self.mounted, "{}: this would fill the disk of the machine", self.name);
        fill(&self.repository());
    }

    /// Makes room in the repository again.
    pub fn make_room_in_repository(&self) {
        // An emptied one has room.
        let _ = fs::remove_file(self.repository().join(BALLAST));
    }

    /// Writes the settings, tells the server to read them, and waits until new sessions have them.
    pub fn reload(&self) {
        self.write_settings();
        let loaded = || self.value("select pg_conf_load_time()");
        let before = loaded();
        kill(self.postmaster(), Signal::HUP);
        wait_until("the configuration is read again", PATIENCE, || loaded() != before);
    }

    /// Sets a setting; in force from the next start or [reload](Cluster::reload) on.
    pub fn set(&self, name: &str, value: &str) {
        self.unset(name);
        self.state().settings.push((name.to_string(), value.to_string()));
    }

    /// Takes a setting out of the file again.
    pub fn unset(&self, name: &str) {
        self.state().settings.retain(|(known, _)| known != name);
    }

    /// Hides a program of the server's world behind a shell script, until the file in
    /// [`Cluster::fakes`] is removed.
    pub fn fake(&self, program: &str, script: &str) {
        let path = self.fakes().join(program);
        let unfinished = path.with_extension("unfinished");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o755);
        options
            .open(&unfinished)
            .and_then(|mut file| write!(file, "#!/bin/sh\n{script}\n"))
            .and_then(|()| fs::rename(&unfinished, &path))
            .expect("the directory is ours");
    }

    /// Writes the settings to where the server reads them, which every start does: for a restore
    /// that starts a server before that.
    pub fn write_settings(&self) {
        use std::fmt::Write as _;

        let mut text = String::new();
        if self.preload {
            text.push_str("shared_preload_libraries = 'nrt_backup'\n");
        }
        for (name, value) in &self.state().settings {
            if !self.preload && name.starts_with("nrt_backup.") {
                continue;
            }
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            writeln!(text, "{name} = '{value}'").expect("a String takes everything");
        }
        fs::write(self.directory().join("settings.conf"), text).expect("the directory is ours");
    }

    /// Whether the postmaster says so in its file, as `pg_ctl` reads it.
    ///
    /// A connection that is tried too early would leave a FATAL in the log.
    fn accepts_connections(&self) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().map(str::trim).collect();
        let running = self.running_postmaster().map(|pid| pid.to_string());
        lines.first().copied() == running.as_deref()
            && matches!(lines.get(7).copied(), Some("ready" | "standby"))
    }

    /// Whether the server that was started last runs.
    pub fn is_running(&self) -> bool {
        self.running_postmaster().is_some()
    }

    /// The postmaster's process number, if it runs.
    pub(crate) fn running_postmaster(&self) -> Option<i32> {
        let mut state = self.state();
        let server = state.server.as_mut()?;
        let pid = i32::try_from(server.id()).expect("a process number");
        if server.try_wait().expect("our own child can be waited for").is_some() {
            state.server = None;
            return None;
        }
        Some(pid)
    }

    /// The state, also after a thread that had it panicked: tests fail by panicking.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Looking at it.
impl Cluster {
    /// What the server wrote to its log since it was last started.
    pub fn log(&self) -> String {
        let start = self.state().log_start;
        self.whole_log().split_off(start)
    }

    /// The messages since the last start that contain a text.
    pub fn logged(&self, text: &str) -> Vec<LogEntry> {
        parse_log(&self.log()).into_iter().filter(|entry| entry.text.contains(text)).collect()
    }

    /// Expects messages of WARNING or worse that contain this text: words of the message, or the
    /// kind of process and the SQLSTATE as in `client backend 57P01`.
    pub fn allow(&self, text: &str) {
        self.state().allowed.push(text.to_string());
    }

    /// The messages of WARNING or worse, since the cluster was made, that nobody allowed.
    pub fn complaints(&self) -> Vec<LogEntry> {
        let log = parse_log(&self.whole_log());
        let state = self.state();
        let expected = |entry: &LogEntry| {
            // A session that came too early is told so; `connect` tries again.
            entry.sqlstate == "57P03" || {
                let label = format!("{} {}", entry.process, entry.sqlstate);
                state
                    .allowed
                    .iter()
                    .any(|allowed| entry.text.contains(allowed) || label.contains(allowed))
            }
        };
        log.into_iter()
            .filter(|entry| entry.severity >= Severity::Warning && !expected(entry))
            .collect()
    }

    /// All processes of the server's user that have to do with this cluster.
    pub fn processes(&self) -> Vec<Process> {
        let mut processes = processes_mentioning(self.directory());
        if let Some(account) = self.installation.account() {
            processes.retain(|process| process.uid == account.uid);
        }
        let ourselves = i32::try_from(std::process::id()).expect("a process number");
        processes.retain(|process| process.pid != ourselves);
        processes
    }

    /// The processes of this cluster that the postmaster is not an ancestor of, or all if it is
    /// gone.
    pub fn orphans(&self) -> Vec<Process> {
        let postmaster = self.running_postmaster();
        let mut processes = self.processes();
        processes.retain(|process| postmaster.is_none_or(|pid| !process.descends_from(pid)));
        processes
    }

    /// Fails if a process of this cluster outlives the server, or has left it, for a second.
    ///
    /// # Panics
    /// If there is one, with what it is.
    pub fn assert_no_orphans(&self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let orphans = self.orphans();
            if orphans.is_empty() {
                return;
            }
            let all = describe(&orphans);
            assert!(Instant::now() < deadline, "{}: processes left over:\n{all}", self.name);
            thread::sleep(INTERVAL);
        }
    }

    fn whole_log(&self) -> String {
        let bytes = fs::read(self.log_file()).unwrap_or_default();
        // One character for one byte is wanted, so that an offset stays right.
        String::from_utf8(bytes).unwrap_or_else(|error| {
            error.into_bytes().iter().map(|b| if b.is_ascii() { *b as char } else { '?' }).collect()
        })
    }
}

// Removing it.
impl Cluster {
    /// Stops the server, if it runs, and kills everything of the cluster.
    fn kill_all(&self) {
        if let Some(postmaster) = self.running_postmaster() {
            kill(postmaster, Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.running_postmaster().is_some() && Instant::now() < deadline {
                thread::sleep(INTERVAL);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for process in left {
                kill(process.pid, Signal::KILL);
            }
            thread::sleep(INTERVAL);
        }
    }

    fn print_log_tail(&self) {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        eprintln!("--- the end of the server log of \"{}\"\n{}\n---", self.name, tail.join("\n"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed_before = thread::panicking();
        // What killing causes is not what the test caused.
        let complaints = self.complaints();
        self.kill_all();
        let failed = failed_before || !complaints.is_empty();
        if failed {
            self.print_log_tail();
        }
        if self.mounted {
            // Lazily: the last process that has a file open there may take a moment to go.
            let unmounted = Command::new("umount").arg("--lazy").arg(self.repository()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("could not unmount \"{}\"", self.repository().display());
            }
        }
        if failed && std::env::var_os("NRT_TEST_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept \"{}\"", self.directory().display());
        } else if let Some(disk) = &self.disk {
            disk.unmount(self.directory.path());
        }
        if !failed_before {
            let all: Vec<String> = complaints.iter().map(ToString::to_string).collect();
            assert!(
                all.is_empty(),
                "{}: messages in the server log that the test did not expect:\n{}",
                self.name,
                all.join("\n")
            );
        }
    }
}

/// What fills a disk.
pub(crate) const BALLAST: &str = "ballast";

/// Fills the disk of a directory to the last byte.
pub(crate) fn fill(directory: &Path) {
    let mut ballast = File::create(directory.join(BALLAST)).expect("the disk is ours");
    // Large pieces first: the last ones end where there is no room for a page.
    for size in [1 << 20, 4096] {
        let piece = vec![0; size];
        while ballast.write_all(&piece).is_ok() {}
    }
}

/// Waits until something is true.
///
/// # Panics
/// If it isn't in time.
pub fn wait_until(what: &str, timeout: Duration, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !is_true() {
        assert!(Instant::now() < deadline, "after {timeout:?} still not true: {what}");
        thread::sleep(INTERVAL);
    }
}

/// Runs a command and gives what it wrote to its standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

pub(crate) fn describe(processes: &[Process]) -> String {
    let line = |process: &Process| {
        format!("{} (parent {}): {}", process.pid, process.parent, process.command)
    };
    processes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A data directory to copy, made by the first that asks, also among several processes.
pub(crate) fn template(installation: &Installation) -> PathBuf {
    let template = installation.scratch().join(format!("nrt-template-{}", installation.major()));
    let lock =
        File::create(template.with_extension("lock")).expect("the scratch directory is ours");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .expect("a file of ours can be locked");
    let data = template.join("data");
    if !data.exists() {
        // What somebody left who was killed in the middle.
        let _ = fs::remove_dir_all(&template);
        installation.private_directory(&template).expect("the scratch directory is ours");
        let unfinished = template.join("unfinished");
        initdb(installation, &unfinished, &[]);
        fs::rename(&unfinished, &data).expect("both are in one directory");
    }
    data
}

fn initdb(installation: &Installation, data: &Path, more: &[&str]) {
    let mut initdb = installation.command(installation.program("initdb"));
    initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]);
    succeed(
        initdb
            .args(["--data-checksums", "--no-sync", "--no-instructions"])
            .args(more)
            .arg("--pgdata")
            .arg(data),
    );
    let file = data.join("postgresql.conf");
    let text = fs::read_to_string(&file).expect("initdb wrote it");
    // Outside of the data directory, so that a copy or a restore of it brings no settings along.
    fs::write(&file, text + "\ninclude = '../settings.conf'\n").expect("initdb wrote it");
}
