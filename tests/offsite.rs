//! Makes clusters that ship off-site, and looks at what is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use nrt_core::offsite::Status;
use nrt_core::offsite::owner::{self, Owner};
use nrt_tests::{Cluster, Installation, Process, Remote, kill, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::protected::{quiet, wait_for_backups, wait_for_health};

/// What an operator may have to wait for once everything is well again: pauses between tries grow
/// to ten seconds.
pub(crate) const AGAIN: Duration = Duration::from_secs(120);
/// The name that a cluster has off-site.
pub(crate) const NAME: &str = "main";

/// Starts a cluster that ships to a remote, and waits until its first backup is there.
pub(crate) fn shipping(cluster: Cluster, remote: &Remote) -> Cluster {
    let cluster = started(cluster, remote);
    wait_for_offsite(&cluster, 1);
    cluster
}

/// Expects in the log what is broken on purpose, and is looked at in nrt.health.
pub(crate) fn allow_faults(cluster: &Cluster) {
    for words in ["nrt_backup health: ", "nrt_backup job ", "nrt_backup ship", "archiver "] {
        cluster.allow(words);
    }
}

/// Starts a cluster that is told to ship to a remote.
pub(crate) fn started(cluster: Cluster, remote: &Remote) -> Cluster {
    allow_faults(&cluster);
    let cluster = remote.configure(quiet(cluster)).started();
    // A copy has it.
    cluster.sql("set client_min_messages = warning; create extension if not exists nrt_backup");
    wait_for_backups(&cluster, 1);
    cluster
}

pub(crate) fn wait_for_offsite(cluster: &Cluster, backups: u32) {
    cluster.wait_for(
        "select offsite_backups || ' ' || shipping from nrt.status",
        &format!("{backups} shipping"),
        AGAIN,
    );
}

/// Waits until everything that is committed now is off-site.
pub(crate) fn wait_for_shipped(cluster: &Cluster) {
    shipped_within(cluster, AGAIN);
}

/// The same with a limit, and tells how long it took.
pub(crate) fn shipped_within(cluster: &Cluster, timeout: Duration) -> Duration {
    let now = cluster.value("select pg_current_wal_flush_lsn()");
    let begin = Instant::now();
    let question = format!("select coalesce(shipped_lsn >= '{now}', false) from nrt.status");
    cluster.wait_for(&question, "t", timeout);
    begin.elapsed()
}

pub(crate) fn all_well(cluster: &Cluster) {
    for check in ["remote", "shipping", "mirror"] {
        wait_for_health(cluster, check, "ok");
    }
}

/// Runs `nrt-backup` for a cluster: its exit code, and all that it printed.
pub(crate) fn nrt_backup(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let installation = cluster.installation();
    let mut command = installation.command(installation.program("nrt-backup"));
    let output =
        command.args(arguments).arg("-D").arg(cluster.data()).output().expect("it is installed");
    (output.status.code().expect("nobody kills it"), words(&output))
}

/// What shipping has told last.
pub(crate) fn told(cluster: &Cluster) -> Status {
    let text = fs::read(cluster.state_directory().join("ship.json")).expect("it ships");
    serde_json::from_slice(&text).expect("it is written as a whole")
}

/// Has the cluster's shipping begin anew, as after a crash.
pub(crate) fn kill_shipping(cluster: &Cluster) {
    for process in processes(cluster, " ship ") {
        kill(process.pid, Signal::KILL);
    }
}

/// The processes of a cluster with a word in their command lines.
pub(crate) fn processes(cluster: &Cluster, word: &str) -> Vec<Process> {
    let mut found = cluster.processes();
    found.retain(|process| process.command.contains(word));
    found
}

/// Whose a remote is. Here the file can be seen while it is written.
pub(crate) fn owner_of(remote: &Remote) -> Owner {
    let file = remote.files(NAME).join(owner::FILE);
    let mut owner = None;
    wait_until("it is written as a whole", AGAIN, || {
        let text = fs::read(&file).expect("somebody ships here");
        owner = serde_json::from_slice(&text).ok();
        owner.is_some()
    });
    owner.expect("it was waited for")
}

/// A copy of what a cluster has off-site, readable for servers, as long as the first one lives.
pub(crate) fn copied(remote: &Remote) -> (TempDir, PathBuf) {
    let (directory, path) = place_for_copies();
    let copy = path.join("copy");
    remote.copy(NAME, &copy);
    (directory, copy)
}

/// A directory for copies, readable for servers.
pub(crate) fn place_for_copies() -> (TempDir, PathBuf) {
    let installation = Installation::get();
    let directory = tempfile::Builder::new()
        .prefix("nrt-copy-")
        .tempdir_in(installation.scratch())
        .expect("the scratch directory can be written to");
    installation.hand_over(directory.path()).expect("it was just made");
    let path = directory.path().to_path_buf();
    (directory, path)
}

/// Has pgBackRest restore from a repository with nothing but its own commands, and starts what
/// comes of it.
pub(crate) fn restored_by_pgbackrest(name: &str, repository: &Path, options: &[&str]) -> Cluster {
    let cluster = Cluster::without_data(name).preload(false);
    let output = cluster
        .installation()
        .command("pgbackrest")
        .args(["--no-config", "--stanza=main", "--log-level-file=off"])
        .arg(format!("--repo1-path={}", repository.display()))
        .arg(format!("--pg1-path={}", cluster.data().display()))
        .arg(format!("--lock-path={}", cluster.lock().display()))
        .args(options)
        .arg("restore")
        .output()
        .expect("pgbackrest is installed");
    assert!(output.status.success(), "{}", words(&output));
    cluster.set("archive_mode", "off");
    cluster.start();
    cluster
}

/// The backup that lies in a place to which an abandoned life was moved.
pub(crate) fn abandoned_backup(place: &Path) -> String {
    let backups = fs::read_dir(place.join("repository/backup/main")).expect("it is there");
    let mut labels = backups.flatten().map(|it| it.file_name().to_string_lossy().into_owned());
    labels.find(|label| label.ends_with('F')).expect("a full backup")
}

/// Every file below a directory with its content, by path.
pub(crate) fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                left.push(path);
            } else if let Ok(content) = fs::read(&path) {
                let name = path.strip_prefix(directory).expect("it is below");
                found.insert(name.display().to_string(), content);
            }
        }
    }
    found
}

/// All that a program printed.
pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}
