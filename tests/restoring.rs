//! Makes places to restore to, and runs `nrt-backup restore` for them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nrt_tests::{Cluster, Remote};

use crate::offsite::{AGAIN, NAME, allow_faults, words};

/// A place to restore to.
pub(crate) struct Place {
    pub(crate) cluster: Cluster,
}

impl Place {
    pub(crate) fn new(name: &str) -> Place {
        let cluster = Cluster::without_data(name);
        allow_faults(&cluster);
        cluster.write_settings();
        Place { cluster }
    }

    /// `nrt-backup` for the data directory.
    pub(crate) fn command(&self, command: &str, arguments: &[&str]) -> Command {
        of(&self.cluster, command, arguments)
    }

    /// Runs `nrt-backup` for the data directory: its exit code, and all that it printed.
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> (i32, String) {
        ended(self.command(command, arguments).output().expect("it is installed"))
    }

    /// Begins to restore, and leaves the server stopped.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.command("restore", &[&["--no-start"], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("it is installed")
    }

    /// Restores, and starts what came of it.
    pub(crate) fn restore(self, arguments: &[&str]) -> Cluster {
        self.restored(arguments);
        self.cluster.start();
        self.cluster
    }

    /// Restores: all that was printed.
    pub(crate) fn restored(&self, arguments: &[&str]) -> String {
        let (code, text) = self.run("restore", &[&["--no-start"], arguments].concat());
        assert_eq!(code, 0, "{text}");
        eprintln!("{text}");
        text
    }

    /// Everything around the data directory, by name.
    pub(crate) fn around(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cluster.directory()).expect("it is there");
        let mut names: Vec<String> =
            entries.flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The directory that a restore works in.
    pub(crate) fn work(&self) -> PathBuf {
        self.cluster.directory().join(".data.nrt-restore")
    }
}

/// `nrt-backup` for a cluster's data directory.
pub(crate) fn of(cluster: &Cluster, command: &str, arguments: &[&str]) -> Command {
    let installation = cluster.installation();
    let mut program = installation.command(installation.program("nrt-backup"));
    program.arg(command).arg("-D").arg(cluster.data()).args(arguments).env("TZ", "UTC");
    program
}

/// A program's exit code, and all that it printed.
pub(crate) fn ended(output: Output) -> (i32, String) {
    (output.status.code().expect("nobody kills it"), words(&output))
}

/// The arguments that name a remote.
pub(crate) fn from(remote: &Remote) -> [String; 2] {
    [
        format!("--rclone-config={}", remote.config().display()),
        format!("--remote={}", remote.place(NAME)),
    ]
}

pub(crate) fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Takes a backup, and waits until it is off-site.
pub(crate) fn back_up(cluster: &Cluster, kind: &str) -> String {
    let label = cluster.value(&format!("select nrt_backup_now('{kind}')"));
    let there = format!("\"{label}\"");
    nrt_tests::wait_until("the backup is off-site", AGAIN, || {
        let told = fs::read_to_string(cluster.state_directory().join("ship.json"));
        told.is_ok_and(|told| told.contains(&there))
    });
    label
}
