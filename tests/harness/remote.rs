//! Runs real remotes: servers that rclone can ship to, each a process in a directory of its own.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, Permissions};
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::cluster::{BALLAST, Cluster, INTERVAL, PATIENCE, describe, fill, succeed, wait_until};
use crate::installation::Installation;
use crate::process::{kill, processes_mentioning};
use crate::proxy::Proxy;

/// The remote's name in the rclone.conf.
const REMOTE: &str = "offsite";
/// The path on it below which clusters are kept; on S3, the bucket.
const PATH: &str = "backups";
/// The user on the remote.
const USER: &str = "nrt";
/// Below it are the ports of servers that a machine may have.
const FIRST_PORT: u16 = 20_000;
/// A file system that no cluster is on.
const MEMORY: &str = "/dev/shm";

/// How a remote is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory of this machine.
    Local,
    /// A directory of this machine, encrypted by rclone.
    Crypt,
    /// `rclone serve webdav`.
    WebDav,
    /// `rclone serve sftp`.
    Sftp,
    /// A server of the S3 protocol.
    S3,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Local, Kind::Crypt, Kind::WebDav, Kind::Sftp, Kind::S3];

    /// A word for names of tests.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Crypt => "crypt",
            Kind::WebDav => "webdav",
            Kind::Sftp => "sftp",
            Kind::S3 => "s3",
        }
    }

    fn has_server(self) -> bool {
        !matches!(self, Kind::Local | Kind::Crypt)
    }
}

/// A place off-site that clusters can ship to.
///
/// ```text
/// let remote = Remote::new("outage", Kind::WebDav);
/// let cluster = remote.configure(Cluster::new("outage")).started();
/// remote.kill();
/// ```
///
/// Make it before its clusters, so that it is dropped after them. Dropping it stops its server,
/// removes its files, and fails the test if a process that uses its configuration is left over.
#[derive(Debug)]
pub struct Remote {
    name: String,
    kind: Kind,
    installation: &'static Installation,
    directory: TempDir,
    port: u16,
    /// Held, not used.
    _reservation: UdpSocket,
    proxy: Option<Proxy>,
    mounted: bool,
    env_auth: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    server: Option<Child>,
    /// What the server wants to hear.
    password: String,
}

// Making one.
impl Remote {
    /// Makes a remote and starts its server.
    pub fn new(name: &str, kind: Kind) -> Remote {
        let remote = Remote::stopped(name, kind);
        remote.write_config();
        remote.start();
        remote
    }

    /// The same behind a [`Proxy`].
    ///
    /// # Panics
    /// If it is of a kind that has no server.
    pub fn behind_proxy(name: &str, kind: Kind) -> Remote {
        assert!(kind.has_server(), "{name}: nothing passes through a network");
        let mut remote = Remote::stopped(name, kind);
        remote.proxy = Some(Proxy::to(remote.port));
        remote.write_config();
        remote.start();
        remote
    }

    /// The same with a disk of its own that holds so many megabytes: see [`Remote::fill`].
    ///
    /// # Panics
    /// If the caller is not root: ask [`crate::is_root`] first.
    pub fn on_tmpfs(name: &str, kind: Kind, megabytes: u32) -> Remote {
        let mut remote = Remote::stopped(name, kind);
        let account = remote.installation.account().expect("only root can mount a file system");
        let options =
            format!("size={megabytes}m,mode=0700,uid={},gid={}", account.uid, account.gid);
        succeed(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(remote.root()),
        );
        remote.mounted = true;
        remote.make_path();
        remote.write_config();
        remote.start();
        remote
    }

    /// A store of the S3 protocol whose rclone.conf has no key: the client's identity is in the
    /// environment, see [`Remote::identity`].
    pub fn with_identity(name: &str) -> Remote {
        let mut remote = Remote::stopped(name, Kind::S3);
        remote.env_auth = true;
        remote.write_config();
        remote.start();
        remote
    }

    /// The variables of the environment by which a store of S3 knows its client.
    pub fn identity(&self) -> [(&'static str, String); 2] {
        [
            ("AWS_ACCESS_KEY_ID", USER.to_string()),
            ("AWS_SECRET_ACCESS_KEY", self.state().password.clone()),
        ]
    }

    fn stopped(name: &str, kind: Kind) -> Remote {
        let installation = Installation::get();
        // A directory on the disk of the cluster is no second place.
        let place = if kind.has_server() { installation.scratch() } else { Path::new(MEMORY) };
        let directory = tempfile::Builder::new()
            .prefix(&format!("nrt-remote-{name}-"))
            .tempdir_in(place)
            .expect("the scratch directory can be written to");
        installation.hand_over(directory.path()).expect("the directory was just made");
        let (port, reservation) = reserved_port();
        let remote = Remote {
            name: name.to_string(),
            kind,
            installation,
            directory,
            port,
            _reservation: reservation,
            proxy: None,
            mounted: false,
            env_auth: false,
            state: Mutex::new(State { server: None, password: random_word() }),
        };
        installation.private_directory(&remote.root()).expect("the directory was just made");
        remote.make_path();
        remote
    }

    /// A bucket must be there before somebody writes to it, as in the world.
    fn make_path(&self) {
        let path = self.root().join(PATH);
        self.installation.private_directory(&path).expect("the directory was just made");
    }

    /// Tells a cluster to ship here.
    #[must_use]
    pub fn configure(&self, cluster: Cluster) -> Cluster {
        for (name, value) in self.settings() {
            cluster.set(name, &value);
        }
        cluster
    }

    /// What tells a cluster to ship here.
    pub fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("nrt_backup.rclone_config", self.config().display().to_string()),
            ("nrt_backup.remote_path", PATH.to_string()),
        ]
    }
}

// Where things are.
impl Remote {
    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The rclone.conf that names it.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("rclone.conf")
    }

    /// The place of a cluster as rclone writes it.
    pub fn place(&self, cluster: &str) -> String {
        format!("{REMOTE}:{PATH}/{cluster}")
    }

    /// The directory of a cluster's files on the disk of the remote.
    ///
    /// # Panics
    /// If they are encrypted, and their names too.
    pub fn files(&self, cluster: &str) -> PathBuf {
        assert!(self.kind != Kind::Crypt, "{}: nobody can find them", self.name);
        self.path().join(cluster)
    }

    /// The directory on the disk of the remote below which clusters are kept.
    pub fn path(&self) -> PathBuf {
        self.root().join(PATH)
    }

    /// The directory that everything of this remote is in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that is served.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// What the server writes.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What stands between the clients and the server.
    ///
    /// # Panics
    /// If nothing does.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it was made behind a proxy")
    }

    /// Words that nobody but rclone and the server may ever see: the password, and what the
    /// rclone.conf has instead of it.
    pub fn secrets(&self) -> Vec<String> {
        let password = self.state().password.clone();
        let config = fs::read_to_string(self.config()).expect("it was written");
        let hidden = config.lines().filter_map(|line| {
            let (name, value) = line.split_once(" = ")?;
            ["pass", "password", "secret_access_key"].contains(&name).then(|| value.to_string())
        });
        let mut secrets: Vec<String> = hidden.collect();
        secrets.push(password);
        secrets.dedup();
        secrets
    }
}

// Looking at it.
impl Remote {
    /// Runs rclone with the remote's configuration and gives what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn rclone(&self, arguments: &[&str]) -> String {
        let mut rclone = self.client();
        succeed(rclone.args(arguments))
    }

    /// The paths of all files that a cluster has here, sorted.
    pub fn list(&self, cluster: &str) -> Vec<String> {
        let place = self.place(cluster);
        let output = self
            .client()
            .args(["lsf", "--recursive", "--files-only", &place])
            .stdin(Stdio::null())
            .output()
            .expect("rclone is installed");
        // There may be nothing yet.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut paths: Vec<String> = text.lines().map(str::to_string).collect();
        paths.sort();
        paths
    }

    /// Copies what a cluster has here into a directory, which is made.
    ///
    /// The files of a frozen server stay what they are meanwhile. A living one moves WAL from the tail
    /// to the archive: what is copied has it at both places, and never at none.
    pub fn copy(&self, cluster: &str, to: &Path) {
        if self.kind == Kind::Crypt {
            let to = to.display().to_string();
            self.rclone(&["copy", &self.place(cluster), &to]);
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.try_copy(&self.files(cluster), to) {
            assert!(Instant::now() < deadline, "{error}");
            succeed(self.installation.command("rm").args(["--recursive", "--force"]).arg(to));
        }
    }

    /// Fails where a file is gone between the look at its directory and its turn.
    fn try_copy(&self, from: &Path, to: &Path) -> Result<(), String> {
        succeed(self.installation.command("mkdir").arg(to));
        let entries = fs::read_dir(from).map_err(|it| it.to_string())?.flatten();
        let mut paths: Vec<PathBuf> = entries.map(|it| it.path()).collect();
        paths.sort_by_key(|it| !it.ends_with("wal-tail"));
        let mut copy = self.installation.command("cp");
        let output = copy.args(["-a", "--reflink=auto"]).args(paths).arg(to).output();
        let output = output.map_err(|it| it.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    fn client(&self) -> Command {
        let mut rclone = self.installation.command("rclone");
        rclone.arg(format!("--config={}", self.config().display()));
        rclone
    }
}

// Breaking it and mending it.
impl Remote {
    /// Starts the server; on the port that it had before.
    ///
    /// # Panics
    /// If it does not accept connections, with what it said.
    pub fn start(&self) {
        if !self.kind.has_server() {
            return;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("the log can be written to");
        let mut state = self.state();
        assert!(state.server.is_none(), "{}: the server runs already", self.name);
        let mut command = self.server(&state.password);
        command
            // It keeps the key of its host there.
            .env("HOME", self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is to be had"))
            .stderr(log);
        let mut server = command.spawn().expect("the server program can be run");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = server.try_wait().expect("our own child can be waited for");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{}: the server did not start:\n{}",
                self.name,
                self.log()
            );
            thread::sleep(INTERVAL);
        }
        state.server = Some(server);
    }

    /// Kills the server.
    pub fn kill(&self) {
        if let Some(mut server) = self.state().server.take() {
            // It may have ended by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Stops the server in the middle of whatever it does, and waits until it stands still.
    pub fn freeze(&self) {
        let pid = self.server_pid();
        kill(pid, Signal::STOP);
        let threads = format!("/proc/{pid}/task");
        wait_until("every thread of the server stands still", PATIENCE, || {
            fs::read_dir(&threads).into_iter().flatten().flatten().all(|thread| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
                state.starts_with('T')
            })
        });
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        kill(self.server_pid(), Signal::CONT);
    }

    /// The server's process number.
    ///
    /// # Panics
    /// If none runs.
    pub fn server_pid(&self) -> i32 {
        let state = self.state();
        let server = state.server.as_ref().expect("the server runs");
        i32::try_from(server.id()).expect("a process number")
    }

    /// Changes the password on the server: the one that clusters have is wrong from now on.
    pub fn revoke(&self) {
        self.kill();
        self.state().password = random_word();
        self.start();
    }

    /// Writes the rclone.conf with the password that the server wants now.
    pub fn write_config(&self) {
        let text = self.config_text();
        let unfinished = self.directory.path().join("rclone.conf.unfinished");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&unfinished)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the directory is ours");
        self.installation.hand_over(&unfinished).expect("the file was just made");
        fs::rename(&unfinished, self.config()).expect("both are in one directory");
    }

    /// Lets nobody write any more, or lets them again.
    pub fn read_only(&self, read_only: bool) {
        let (directory, file) = if read_only { (0o500, 0o400) } else { (0o700, 0o600) };
        for (path, is_directory) in tree(&self.root()) {
            let mode = if is_directory { directory } else { file };
            match fs::set_permissions(&path, Permissions::from_mode(mode)) {
                Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// Fills its disk to the last byte.
    ///
    /// # Panics
    /// If it has no disk of its own.
    pub fn fill(&self) {
        assert!(self.mounted, "{}: this would fill the disk of the machine", self.name);
        fill(&self.root());
    }

    /// Makes room again.
    pub fn make_room(&self) {
        fs::remove_file(self.root().join(BALLAST)).expect("it was filled");
    }

    /// Deletes everything that a cluster has here, as somebody might by mistake.
    pub fn delete(&self, cluster: &str) {
        // Somebody may be writing at this moment.
        let files = self.files(cluster);
        wait_until("all files are deleted", PATIENCE, || {
            fs::remove_dir_all(&files).is_ok() || !files.exists()
        });
    }
}

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server as a command; no password is in its arguments, which all users can read.
    fn server(&self, password: &str) -> Command {
        let address = format!("127.0.0.1:{}", self.port);
        let rclone_serve = |protocol: &str| {
            let mut command = self.installation.command("rclone");
            command
                .args(["serve", protocol, "--config=/dev/null", "--dir-cache-time=1s"])
                .args(["--poll-interval=0", &format!("--addr={address}")])
                .arg(self.root())
                .env("RCLONE_USER", USER)
                .env("RCLONE_PASS", password);
            command
        };
        match self.kind {
            Kind::WebDav => rclone_serve("webdav"),
            Kind::Sftp => rclone_serve("sftp"),
            Kind::S3 => {
                let mut command = self.installation.command(s3server(self.installation));
                command
                    .arg(&address)
                    .arg(self.root())
                    .env("S3_ACCESS_KEY", USER)
                    .env("S3_SECRET_KEY", password);
                command
            }
            Kind::Local | Kind::Crypt => unreachable!("these have no server"),
        }
    }

    fn config_text(&self) -> String {
        let password = self.state().password.clone();
        let port = self.proxy.as_ref().map_or(self.port, Proxy::port);
        let root = self.root().display().to_string();
        let lines = match self.kind {
            Kind::Local => format!("type = alias\nremote = {root}"),
            Kind::Crypt => {
                format!("type = crypt\nremote = {root}\npassword = {}", self.obscured(&password))
            }
            Kind::WebDav => format!(
                "type = webdav\nurl = http://127.0.0.1:{port}\nvendor = other\nuser = {USER}\n\
                 pass = {}",
                self.obscured(&password)
            ),
            Kind::Sftp => format!(
                "type = sftp\nhost = 127.0.0.1\nport = {port}\nuser = {USER}\npass = {}",
                self.obscured(&password)
            ),
            Kind::S3 if self.env_auth => format!(
                "type = s3\nprovider = Other\nendpoint = http://127.0.0.1:{port}\n\
                 region = us-east-1\nforce_path_style = true\nenv_auth = true"
            ),
            Kind::S3 => format!(
                "type = s3\nprovider = Other\nendpoint = http://127.0.0.1:{port}\n\
                 region = us-east-1\nforce_path_style = true\naccess_key_id = {USER}\n\
                 secret_access_key = {password}"
            ),
        };
        format!("[{REMOTE}]\n{lines}\n")
    }

    /// A password as rclone wants to have it in its configuration.
    fn obscured(&self, password: &str) -> String {
        let mut rclone = self.installation.command("rclone");
        let mut child = rclone
            .args(["obscure", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("rclone is installed");
        let mut input = child.stdin.take().expect("it was asked for");
        input.write_all(password.as_bytes()).expect("rclone reads it");
        drop(input);
        let output = child.wait_with_output().expect("it is our child");
        assert!(output.status.success(), "rclone obscure: {}", output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let failed_before = thread::panicking();
        self.kill();
        self.proxy = None;
        let ourselves = i32::try_from(std::process::id()).expect("a process number");
        let left = || {
            let mut left = processes_mentioning(self.directory.path());
            left.retain(|process| process.pid != ourselves);
            left
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        while !left().is_empty() && Instant::now() < deadline {
            thread::sleep(INTERVAL);
        }
        let strays = left();
        for process in &strays {
            kill(process.pid, Signal::KILL);
        }
        if self.mounted {
            // Lazily: the last process that has a file open there may take a moment to go.
            let unmounted = Command::new("umount").arg("--lazy").arg(self.root()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("could not unmount \"{}\"", self.root().display());
            }
        } else if self.root().exists() {
            self.read_only(false);
        }
        if failed_before {
            eprintln!("--- what the remote \"{}\" said\n{}\n---", self.name, self.log());
            if std::env::var_os("NRT_TEST_KEEP").is_some() {
                self.directory.disable_cleanup(true);
                eprintln!("kept \"{}\"", self.directory.path().display());
            }
        } else {
            assert!(
                strays.is_empty(),
                "{}: processes left over:\n{}",
                self.name,
                describe(&strays)
            );
        }
    }
}

/// A directory with everything in it, and whether each is a directory.
fn tree(root: &Path) -> Vec<(PathBuf, bool)> {
    let mut found = vec![(root.to_path_buf(), true)];
    let mut next = 0;
    while let Some((path, is_directory)) = found.get(next).cloned() {
        if is_directory {
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                found.push((entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())));
            }
        }
        next += 1;
    }
    found
}

/// A port that nobody listens on at the moment.
/// A port for a server that is killed and started again: below those that the kernel gives to
/// whoever asks for any, because one of these would be somebody else's when the server comes back.
///
/// The UDP port of the same number is held as long as the remote lives. It keeps other tests, also
/// those of other processes, from choosing the same.
fn reserved_port() -> (u16, UdpSocket) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    let ports = FIRST_PORT..first.unwrap_or(32768).max(FIRST_PORT + 1000);
    let count = u64::from(ports.end - ports.start);
    for _ in 0..1000 {
        let port = ports.start + u16::try_from(random() % count).expect("less than all ports");
        let Ok(reservation) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return (port, reservation);
        }
    }
    panic!("no port of 1000 in {ports:?} is free");
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A word that is nowhere else.
fn random_word() -> String {
    format!("geheim{:016x}{:016x}", random(), random())
}

/// The S3 server, at a place where the servers' user may run it, which the build directory in
/// root's home is not.
fn s3server(installation: &Installation) -> PathBuf {
    let place = installation.scratch().join("s3server");
    let lock = File::create(place.with_extension("lock")).expect("the scratch directory is ours");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .expect("a file of ours can be locked");
    let built = built_s3server();
    let modified = |file: &Path| file.metadata().and_then(|metadata| metadata.modified()).ok();
    if modified(&place) < modified(&built) {
        let unfinished = place.with_extension("unfinished");
        fs::copy(&built, &unfinished).expect("the scratch directory is ours");
        fs::rename(&unfinished, &place).expect("both are in one directory");
    }
    place
}

/// The S3 server as cargo built it, beside the tests.
pub(crate) fn built_s3server() -> PathBuf {
    let ourselves = std::env::current_exe().expect("Linux tells it");
    let built = ourselves.ancestors().skip(1).take(2).map(|at| at.join("s3server"));
    let built = built.into_iter().find(|file| file.is_file());
    built.unwrap_or_else(|| {
        panic!("there is no s3server beside the tests\nHINT: cargo build -p nrt-tests --bins")
    })
}
