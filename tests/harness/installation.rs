//! Finds the PostgreSQL installation under test and starts its programs.

use std::env;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// The directory of PostgreSQL's programs in the installation under test.
const BIN_VARIABLE: &str = "NRT_PG_BIN";
/// The directory for everything that a run makes; it must be reachable for the server's user.
const SCRATCH_VARIABLE: &str = "NRT_SCRATCH";

/// A PostgreSQL installation with the extension in it.
#[derive(Debug)]
pub struct Installation {
    bin: PathBuf,
    scratch: PathBuf,
    major: u32,
    account: Option<Account>,
}

/// The operating system user that servers run as where the tests run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's first group.
    pub gid: u32,
}

impl Installation {
    /// The installation that the environment names, looked for once per process.
    ///
    /// # Panics
    /// If there is none, with what to do.
    pub fn get() -> &'static Installation {
        static FOUND: OnceLock<Installation> = OnceLock::new();
        FOUND.get_or_init(|| match Installation::find() {
            Ok(found) => found,
            Err(error) => panic!("{error:#}"),
        })
    }

    /// Finds the installation that the environment names.
    pub fn find() -> Result<Installation> {
        let directory = |variable: &str| {
            env::var_os(variable).map(PathBuf::from).with_context(|| {
                format!("{variable} is not set\nHINT: Run the tests with ./dev test.")
            })
        };
        let (bin, scratch) = (directory(BIN_VARIABLE)?, directory(SCRATCH_VARIABLE)?);
        ensure!(
            bin.join("postgres").is_file(),
            "{BIN_VARIABLE}: there is no PostgreSQL server in \"{}\"",
            bin.display()
        );
        let account = if crate::is_root() { Some(Account::named("postgres")?) } else { None };
        Ok(Installation { major: major_version(&bin)?, bin, scratch, account })
    }

    /// One of PostgreSQL's programs, or `nrt-backup`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Where clusters are made.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The user that servers run as, unless it is the caller.
    pub fn account(&self) -> Option<Account> {
        self.account
    }

    /// A command that runs as the servers do: same user, nothing of the caller's environment.
    ///
    /// An environment that is passed on would make a test depend on who runs it; RUST_BACKTRACE
    /// alone puts 45 lines into every error's DETAIL.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().env("PATH", self.path(None)).env("LC_ALL", "C.UTF-8").current_dir("/");
        if let Some(Account { uid, gid }) = self.account {
            // The standard library drops the supplementary groups too when root sets a user.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// The search path of the server's world, with `first` before everything else.
    pub fn path(&self, first: Option<&Path>) -> String {
        let first = first.map(|first| format!("{}:", first.display())).unwrap_or_default();
        format!("{first}{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", self.bin.display())
    }

    /// Makes a directory that only the servers' user can look into.
    pub fn private_directory(&self, path: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make the directory \"{}\"", path.display()))?;
        self.hand_over(path)
    }

    /// Makes a file or directory the servers' user's own.
    pub fn hand_over(&self, path: &Path) -> Result<()> {
        if let Some(Account { uid, gid }) = self.account {
            chown(path, Some(uid), Some(gid))
                .with_context(|| format!("change the owner of \"{}\"", path.display()))?;
        }
        Ok(())
    }
}

impl Account {
    /// Looks a user up in the list of local users.
    fn named(name: &str) -> Result<Account> {
        let users = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        for line in users.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [user, _, uid, gid, ..] = fields[..]
                && user == name
            {
                return Ok(Account { uid: uid.parse()?, gid: gid.parse()? });
            }
        }
        bail!(
            "there is no user \"{name}\"\n\
             HINT: A PostgreSQL server does not run as root. Debian's package postgresql-common \
             makes the user."
        )
    }
}

/// Asks the server program for its version: `postgres (PostgreSQL) 15.20 (Debian ...)`.
fn major_version(bin: &Path) -> Result<u32> {
    let output = Command::new(bin.join("postgres")).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .find_map(|word| word.split(['.', 'b', 'r']).next()?.parse().ok())
        .with_context(|| format!("no version in \"{}\"", text.trim()))
}
