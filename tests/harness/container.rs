//! Runs containers of the image, and a store beside them that speaks S3.
//!
//! Everything goes by `podman`, within the namespaces that `./dev test containers` makes.

use std::fmt::Debug;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cluster::{INTERVAL, PATIENCE, wait_until};
use crate::remote::built_s3server;

/// The image, without its tag, which is a version of PostgreSQL.
const IMAGE: &str = "localhost/nrt_backup";
/// The version whose image is used where a test does not say.
const MAJOR: &str = "17";
/// The one on the newest Debian: a program that was built on this machine runs there.
const MAJOR_OF_STORE: &str = "18";
/// What is in a line of the server's log that is a warning, or worse.
const SEVERE: [&str; 4] = ["] WARNING:  ", "] ERROR:  ", "] FATAL:  ", "] PANIC:  "];
/// Who asks too early is told so, and whoever is connected at a shutdown.
const EXPECTED: [&str; 2] =
    ["the database system is ", "terminating connection due to administrator command"];
/// What the superuser's password is, unless a test says another one.
const PASSWORD: &str = "the-superuser's-own";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A container that is about to be made.
#[derive(Debug, Clone)]
pub struct Order {
    name: String,
    major: String,
    options: Vec<String>,
    arguments: Vec<String>,
    allowed: Vec<String>,
    password: Option<String>,
    known_password: Option<String>,
    user: String,
    database: Option<String>,
}

/// A container.
///
/// ```text
/// let store = Store::new("kept");
/// let server = Order::new("kept").remote(&store, "bucket").started();
/// assert_eq!(server.value("select 1"), "1");
/// ```
///
/// Dropping it removes it with its own volumes, and fails the test if the server's log holds a
/// message of WARNING or worse that was not [allowed](Order::allow).
#[derive(Debug)]
pub struct Container {
    order: Order,
    id: String,
    removed: Mutex<bool>,
}

/// How a container ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to its standard output and error.
    pub said: String,
}

impl Order {
    /// A container of the image with a superuser's password and no remote.
    pub fn new(name: &str) -> Order {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Order {
            name: format!("{name}-{number}"),
            major: MAJOR.to_string(),
            options: Vec::new(),
            arguments: Vec::new(),
            allowed: Vec::new(),
            password: Some(PASSWORD.to_string()),
            known_password: None,
            user: "postgres".to_string(),
            database: None,
        }
    }

    /// Of the image with another version of PostgreSQL.
    #[must_use]
    pub fn postgres(mut self, major: &str) -> Order {
        self.major = major.to_string();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn variable(self, name: &str, value: &str) -> Order {
        self.option("--env").option(&format!("{name}={value}"))
    }

    /// Sets no password, or another one.
    #[must_use]
    pub fn password(mut self, password: Option<&str>) -> Order {
        self.password = password.map(str::to_string);
        self
    }

    /// Says the password that is given in another way.
    #[must_use]
    pub fn password_is(mut self, password: &str) -> Order {
        self.known_password = Some(password.to_string());
        self
    }

    /// Sets the database that is made, which also names the cluster off-site.
    #[must_use]
    pub fn database(mut self, name: &str) -> Order {
        self.database = Some(name.to_string());
        self.variable("POSTGRES_DB", name)
    }

    /// Sets the superuser.
    #[must_use]
    pub fn superuser(mut self, name: &str) -> Order {
        self.user = name.to_string();
        self.variable("POSTGRES_USER", name)
    }

    /// Ships to a bucket of a store.
    #[must_use]
    pub fn remote(self, store: &Store, bucket: &str) -> Order {
        self.variable("RCLONE_CONF_BASE64", &base64(&store.configuration()))
            .variable("RCLONE_REMOTE_PATH", bucket)
    }

    /// Gives `podman run` an option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Order {
        self.options.push(option.to_string());
        self
    }

    /// Adds to the container's command.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Order {
        self.arguments.push(argument.to_string());
        self
    }

    /// Expects messages in the server's log that have this in them.
    #[must_use]
    pub fn allow(mut self, part: &str) -> Order {
        self.allowed.push(part.to_string());
        self
    }

    /// Makes it and starts it in the background.
    pub fn made(&self) -> Container {
        let output = podman(&self.words(&["--detach"]));
        let id = succeeded(&self.name, &output);
        Container { order: self.clone(), id: id.trim().to_string(), removed: Mutex::new(false) }
    }

    /// Makes it and waits until its server answers.
    pub fn started(&self) -> Container {
        let container = self.made();
        container.wait_until_it_answers();
        container
    }

    /// Makes it and waits until it ends, which it does by itself.
    pub fn ended(&self) -> Ended {
        let output = podman(&self.words(&["--rm"]));
        Ended { code: output.status.code().unwrap_or(-1), said: all_of(&output) }
    }

    fn words(&self, first: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = vec!["run".into(), "--name".into(), self.name.clone()];
        words.extend(first.iter().map(|it| it.to_string()));
        if let Some(password) = &self.password {
            words.extend(["--env".into(), format!("POSTGRES_PASSWORD={password}")]);
        }
        words.extend(self.options.iter().cloned());
        words.push(format!("{IMAGE}:{}", self.major));
        words.extend(self.arguments.iter().cloned());
        if self.arguments.first().is_none_or(|it| it.starts_with('-')) {
            // How full this machine's disk is says nothing of the image.
            words.extend(["-c".into(), "nrt_backup.min_disk_free=0".into()]);
        }
        words
    }
}

impl Container {
    /// What podman calls it.
    pub fn name(&self) -> &str {
        &self.order.name
    }

    /// A field of `podman inspect`.
    pub fn inspected(&self, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let output = podman(&["container", "inspect", "--format", &format, &self.id]);
        succeeded(self.name(), &output).trim().to_string()
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.inspected(".State.Status") == "running"
    }

    /// Its address in the network of the containers.
    pub fn address(&self) -> String {
        self.inspected(".NetworkSettings.IPAddress")
    }

    /// All that it wrote, in this order.
    pub fn log(&self) -> String {
        let one_pipe = ["-c", "exec podman logs \"$1\" 2>&1", "sh", &self.id];
        all_of(&Command::new("sh").args(one_pipe).output().expect("there is a shell"))
    }

    /// Runs a command in it, as `podman exec` by itself does: as root.
    pub fn exec(&self, command: &[&str]) -> Ended {
        let mut words = vec!["exec", &self.id];
        words.extend(command);
        let output = podman(&words);
        Ended { code: output.status.code().unwrap_or(-1), said: all_of(&output) }
    }

    /// Runs a command in it and gives what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn says(&self, command: &[&str]) -> String {
        let ended = self.exec(command);
        assert_eq!(ended.code, 0, "{}: {command:?}: {}", self.name(), ended.said);
        ended.said
    }

    /// Runs the image's health check once, as somebody does every half minute where there is
    /// systemd or docker: whether it is content, and what it said.
    pub fn health(&self) -> (bool, String) {
        let output = podman(&["healthcheck", "run", &self.id]);
        let log = self.inspected("json .State.Health.Log");
        let log: serde_json::Value = serde_json::from_str(&log).expect("podman writes JSON");
        let last = log.as_array().and_then(|log| log.last());
        let said = last.and_then(|it| it["Output"].as_str()).unwrap_or_default();
        (output.status.success(), said.trim().to_string())
    }

    /// Waits until the image's health check is content.
    ///
    /// # Panics
    /// If it isn't in time, with its last words.
    pub fn wait_until_healthy(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let (is_healthy, words) = self.health();
            if is_healthy {
                assert_eq!(self.inspected(".State.Health.Status"), "healthy");
                return;
            }
            assert!(Instant::now() < deadline, "{}: {words}", self.name());
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Stops it as `docker stop` does and tells how long that took.
    pub fn stop(&self) -> Duration {
        let begin = Instant::now();
        succeeded(self.name(), &podman(&["stop", "--time", "60", &self.id]));
        begin.elapsed()
    }

    /// Starts it again.
    pub fn start(&self) {
        succeeded(self.name(), &podman(&["start", &self.id]));
        self.wait_until_it_answers();
    }

    /// Takes the machine away: kills everything and removes the container with its volumes.
    pub fn lose(self) {
        self.complain();
        succeeded(self.name(), &podman(&["kill", "--signal", "KILL", &self.id]));
        self.remove();
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&self, timeout: Duration) -> Ended {
        wait_until("the container has ended", timeout, || {
            self.inspected(".State.Status") == "exited"
        });
        let code = self.inspected(".State.ExitCode").parse().expect("a number");
        Ended { code, said: self.log() }
    }

    /// Connects as the superuser with the password, from outside of the container.
    pub fn connect(&self) -> Result<Client, postgres::Error> {
        let user = &self.order.user;
        let password = self.order.password.as_ref().or(self.order.known_password.as_ref());
        postgres::Config::new()
            .host(&self.address())
            .user(user)
            .password(password.map_or(PASSWORD, String::as_str))
            .dbname(self.order.database.as_deref().unwrap_or(user))
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
    }

    /// Runs SQL as the superuser in the container's database and gives its rows.
    pub fn try_sql(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let words = |error: postgres::Error| match error.as_db_error() {
            Some(it) => it.message().to_string(),
            None => error.to_string(),
        };
        let messages = self.connect().map_err(words)?.simple_query(sql).map_err(words)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_string()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs SQL and gives its rows.
    ///
    /// # Panics
    /// If it fails.
    pub fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{}: {sql}\n{error}", self.name()))
    }

    /// Runs SQL and gives all its values, with a blank between them.
    pub fn value(&self, sql: &str) -> String {
        self.sql(sql).into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Waits until a query gives one certain value; an error counts as another value.
    ///
    /// # Panics
    /// If it doesn't in time, with the value it had.
    pub fn wait_for(&self, sql: &str, expected: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let last = match self.try_sql(sql) {
                Ok(rows) => rows.into_iter().flatten().collect::<Vec<_>>().join(" "),
                Err(error) => error,
            };
            if last == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{}: after {timeout:?} still \"{last}\", not \"{expected}\": {sql}",
                self.name()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until everything that is committed can be restored from the remote.
    pub fn wait_until_shipped(&self) {
        let now = self.value("select pg_current_wal_flush_lsn()");
        let question = format!("select coalesce(shipped_lsn >= '{now}', false) from nrt.status");
        self.wait_for(&question, "t", PATIENCE);
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        // The server of the initialisation listens to no address.
        while self.connect().is_err() {
            let state = self.inspected(".State.Status");
            assert!(state == "running", "{}: {state}:\n{}", self.name(), self.log());
            assert!(Instant::now() < deadline, "{}: no answer:\n{}", self.name(), self.log());
            thread::sleep(5 * INTERVAL);
        }
    }

    /// Messages in the server's log that no test expected.
    fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let is_expected = |line: &&str| {
            let allowed = self.order.allowed.iter().map(String::as_str);
            allowed.chain(EXPECTED).any(|part| line.contains(part))
        };
        let is_severe = |line: &&str| SEVERE.iter().any(|it| line.contains(it));
        log.lines().filter(is_severe).filter(|it| !is_expected(it)).map(str::to_string).collect()
    }

    fn complain(&self) {
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "{}: in the log:\n{complaints:#?}", self.name());
    }

    fn remove(&self) {
        let mut removed = self.removed.lock().expect("nobody panics with it");
        if !*removed {
            *removed = true;
            podman(&["rm", "--force", "--volumes", "--time", "0", &self.id]);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if *self.removed.lock().expect("nobody panics with it") {
            return;
        }
        let log = self.log();
        let complaints = self.complaints();
        self.remove();
        if thread::panicking() {
            eprintln!("---- the log of {}\n{log}", self.name());
        } else {
            assert!(complaints.is_empty(), "{}: in the log:\n{complaints:#?}", self.name());
        }
    }
}

/// A store that speaks S3, in a container of its own.
#[derive(Debug)]
pub struct Store {
    container: Container,
    secret: String,
}

impl Store {
    /// Starts one.
    pub fn new(name: &str) -> Store {
        let secret = format!("secret-key-of-{name}-{}", std::process::id());
        let server = built_s3server();
        let container = Order::new(&format!("{name}-store"))
            .postgres(MAJOR_OF_STORE)
            .password(None)
            .variable("S3_ACCESS_KEY", "user")
            .variable("S3_SECRET_KEY", &secret)
            .option("--no-healthcheck")
            .option("--volume")
            .option(&format!("{}:/usr/local/bin/s3server:ro", server.display()));
        let serve = ["bash", "-c", "mkdir /store && exec s3server 0.0.0.0:9000 /store"];
        let container = serve.into_iter().fold(container, Order::argument).made();
        wait_until("the store listens", PATIENCE, || {
            std::net::TcpStream::connect((container.address().as_str(), 9000)).is_ok()
        });
        Store { container, secret }
    }

    /// What only who may use it knows.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// rclone's configuration for it.
    pub fn configuration(&self) -> String {
        format!(
            "[store]\ntype = s3\nprovider = Other\nregion = us-east-1\nendpoint = http://{}:9000\naccess_key_id = user\n\
             secret_access_key = {}\nforce_path_style = true\n",
            self.container.address(),
            self.secret
        )
    }

    /// The files in a bucket, with sizes, sorted.
    pub fn files(&self, bucket: &str) -> Vec<String> {
        let find = ["find", bucket, "-type", "f", "-printf", "%P %s\n"];
        let mut words = vec!["env", "-C", "/store"];
        words.extend(find);
        let mut files: Vec<String> =
            self.container.says(&words).lines().map(str::to_string).collect();
        files.sort();
        files
    }

    /// What is in a file.
    pub fn file(&self, path: &str) -> String {
        self.container.says(&["cat", &format!("/store/{path}")])
    }

    /// Makes another bucket with the same files.
    pub fn copy(&self, bucket: &str, other: &str) {
        self.container.says(&["cp", "-a", &format!("/store/{bucket}"), &format!("/store/{other}")]);
    }
}

/// A named volume, which outlives containers.
#[derive(Debug)]
pub struct Volume(String);

impl Volume {
    /// Makes one.
    pub fn new(name: &str) -> Volume {
        let name = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        succeeded(&name, &podman(&["volume", "create", &name]));
        Volume(name)
    }

    /// How `podman run --volume` wants it.
    pub fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.0)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        podman(&["volume", "rm", "--force", &self.0]);
    }
}

/// The tag of the image for a version of PostgreSQL.
pub fn image(major: &str) -> String {
    format!("{IMAGE}:{major}")
}

/// Runs podman.
pub fn podman<W: AsRef<std::ffi::OsStr> + Debug>(words: &[W]) -> Output {
    let output = Command::new("podman").args(words).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("podman {words:?}: {error}"))
}

/// As `RCLONE_CONF_BASE64` has it.
pub fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn succeeded(what: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {}", all_of(output));
    said
}

/// Both of its outputs, without what podman itself has to say of a machine without systemd.
fn all_of(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let both = String::from_utf8_lossy(&both).into_owned();
    let own = |line: &&str| !(line.starts_with("time=\"") && line.contains("systemd"));
    both.lines().filter(own).fold(String::new(), |text, line| text + line + "\n")
}
