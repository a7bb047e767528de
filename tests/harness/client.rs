//! Talks to a server as its clients do.

use std::fmt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cluster::{Cluster, INTERVAL, PATIENCE, succeed};

/// Only the name of a socket in a directory of its own: the server listens to no address.
const PORT: &str = "5432";

/// An error that a client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// Five characters; empty if the connection failed.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// DETAIL, or nothing.
    pub detail: String,
    /// HINT, or nothing.
    pub hint: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.sqlstate, self.message)?;
        for (label, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if !text.is_empty() {
                write!(out, "\n{label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for SqlError {}

impl From<postgres::Error> for SqlError {
    fn from(error: postgres::Error) -> SqlError {
        match error.as_db_error() {
            Some(from_server) => SqlError {
                sqlstate: from_server.code().code().to_string(),
                message: from_server.message().to_string(),
                detail: from_server.detail().unwrap_or_default().to_string(),
                hint: from_server.hint().unwrap_or_default().to_string(),
            },
            None => SqlError {
                sqlstate: String::new(),
                message: error.to_string(),
                detail: String::new(),
                hint: String::new(),
            },
        }
    }
}

impl Cluster {
    /// Connects; a server that is about to accept connections is waited for.
    pub fn connect(&self, user: &str, database: &str) -> Result<Client, SqlError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = postgres::Config::new()
                .host_path(self.socket())
                .user(user)
                .dbname(database)
                .application_name("nrt-tests")
                .connect(NoTls);
            let error = match attempt {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let soon = match error.code() {
                Some(code) => *code == SqlState::CANNOT_CONNECT_NOW,
                None => self.running_postmaster().is_some(),
            };
            if !soon || Instant::now() > deadline {
                return Err(self.noted(error));
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Runs SQL as the superuser and gives its rows, NULL as an empty text.
    ///
    /// # Panics
    /// If it fails.
    pub fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{}: {sql}\n{error}", self.name))
    }

    /// Runs SQL as the superuser and gives its only row's only value.
    ///
    /// # Panics
    /// If it fails or gives something else.
    pub fn value(&self, sql: &str) -> String {
        let mut rows = self.sql(sql);
        match (rows.pop(), rows.is_empty()) {
            (Some(mut row), true) if row.len() == 1 => row.remove(0),
            _ => panic!("{}: not one value: {sql}", self.name),
        }
    }

    /// Runs SQL as the superuser; the error that comes back is an expected one.
    pub fn try_sql(&self, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
        self.try_sql_as("postgres", "postgres", sql)
    }

    /// Runs SQL as some user in some database; the error that comes back is an expected one.
    pub fn try_sql_as(
        &self,
        user: &str,
        database: &str,
        sql: &str,
    ) -> Result<Vec<Vec<String>>, SqlError> {
        self.query(&mut self.connect(user, database)?, sql)
    }

    fn query(&self, session: &mut Client, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
        let messages = session.simple_query(sql).map_err(|error| self.noted(error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_string()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Waits until a query gives one certain value; an error counts as another value.
    ///
    /// One session asks again and again: a session costs the machine more than the question. After
    /// an error the next session asks.
    ///
    /// # Panics
    /// If it doesn't in time, with the value it had.
    pub fn wait_for(&self, sql: &str, expected: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut session = None;
        loop {
            let connected = match session.take() {
                Some(connected) => Ok(connected),
                None => self.connect("postgres", "postgres"),
            };
            let answer = connected.and_then(|mut connected| {
                let rows = self.query(&mut connected, sql)?;
                session = Some(connected);
                Ok(rows)
            });
            let last = match answer {
                Ok(rows) => rows.into_iter().flatten().collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            };
            if last == expected {
                return;
            }
            if Instant::now() > deadline {
                panic!(
                    "{}: after {timeout:?} still \"{last}\", not \"{expected}\": {sql}",
                    self.name
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs SQL through `psql` and gives what a person would see.
    ///
    /// # Panics
    /// If psql fails.
    pub fn psql(&self, sql: &str) -> String {
        succeed(self.client("psql").args(["-X", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// Runs `pgbench` and gives what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn pgbench(&self, arguments: &[&str]) -> String {
        succeed(self.client("pgbench").args(arguments))
    }

    /// Starts `pgbench` and lets it run until the answer is dropped.
    pub fn load(&self, arguments: &[&str]) -> Load {
        let mut command = self.client("pgbench");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It is killed in the middle of a transaction.
        self.allow("client backend 08006");
        Load { pgbench: command.spawn().expect("pgbench can be run") }
    }

    /// A client program of the installation, told how to reach this server.
    pub fn client(&self, program: &str) -> Command {
        let installation = self.installation();
        let mut command = installation.command(installation.program(program));
        command
            .env("PGHOST", self.socket())
            .env("PGPORT", PORT)
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// Runs pgBackRest by hand, as the server's user with the configuration that the worker wrote.
    pub fn pgbackrest(&self, arguments: &[&str]) -> Output {
        let config = self.state_directory().join("pgbackrest.conf");
        self.installation()
            .command("pgbackrest")
            .arg(format!("--config={}", config.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("pgbackrest is installed")
    }

    /// Turns a client's error into ours and expects it in the log.
    fn noted(&self, error: postgres::Error) -> SqlError {
        let error = SqlError::from(error);
        if !error.sqlstate.is_empty() {
            self.allow(&error.message);
        }
        error
    }
}

/// A `pgbench` that runs until this is dropped.
#[derive(Debug)]
pub struct Load {
    pgbench: Child,
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
    }
}
