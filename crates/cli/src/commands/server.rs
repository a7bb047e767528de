//! Finds the server that a command is about, by its data directory.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nrt_core::health::{self, Check};
use nrt_core::job::{self, Job};
use nrt_core::layout;
use nrt_process::files;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde::de::DeserializeOwned;

/// What the worker's process is called.
const WORKER: &str = "nrt_backup worker";
/// More than the rows of all jobs that can be on their way at once.
const RECENT: u64 = 1 << 20;

/// The server that is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server's data directory.
    #[arg(short = 'D', long = "pgdata", env = "PGDATA", value_name = "DIRECTORY")]
    data: PathBuf,
}

impl Server {
    /// The server with this data directory.
    pub(crate) fn at(data: PathBuf) -> Server {
        Server { data }
    }

    /// nrt_backup's directory in the data directory: what a command begins with. Where root runs
    /// it, it goes on as the owner of the data directory.
    ///
    /// # Errors
    ///
    /// If there is none, or it may not be read.
    pub(crate) fn state(&self) -> anyhow::Result<PathBuf> {
        go_on_as_owner(&self.data)?;
        let data = self.data.display();
        if !self.data.join("PG_VERSION").exists() {
            bail!(
                "\"{data}\" is not a data directory, or you may not read it\n\
                 HINT: Name the server's data directory with -D, and run this as the server's user \
                 or as root."
            );
        }
        let state = self.data.join(layout::STATE_DIRECTORY);
        fs::read_dir(&state).with_context(|| {
            format!(
                "read \"{}\"\nHINT: nrt_backup makes it when it is preloaded: see \
                 shared_preload_libraries. Run this as the server's user or as root",
                state.display()
            )
        })?;
        Ok(state)
    }

    /// Whether the server follows another one, or is being recovered: no worker runs then.
    pub(crate) fn is_in_recovery(&self) -> bool {
        ["standby.signal", "recovery.signal"].iter().any(|it| self.data.join(it).exists())
    }

    /// Whether the server runs.
    pub(crate) fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// The lines that the server writes about itself while it runs.
    pub(crate) fn postmaster_file(&self) -> String {
        fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default()
    }

    fn postmaster(&self) -> Option<i32> {
        let text = self.postmaster_file();
        let process = text.lines().next().and_then(|line| line.trim().parse().ok());
        process.filter(|process| Path::new(&format!("/proc/{process}")).exists())
    }

    /// The worker's process, if there is one.
    pub(crate) fn worker(&self) -> Option<Pid> {
        let is_worker = |process: &i32| {
            let title = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains(WORKER)
        };
        self.children().into_iter().find(is_worker).and_then(Pid::from_raw)
    }

    /// Has the worker look for requests now. The signal is the one by which PostgreSQL's processes
    /// wake each other; it does nothing else.
    pub(crate) fn wake_worker(&self) {
        if let Some(worker) = self.worker() {
            // If it may not be done, the worker sees the request by itself.
            let _ = kill_process(worker, Signal::USR1);
        }
    }

    /// The processes of the server but its first.
    fn children(&self) -> Vec<i32> {
        let Some(postmaster) = self.postmaster() else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let is_child = |process: &i32| {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            parent.is_some_and(|parent| parent.trim() == postmaster.to_string())
        };
        let processes = entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
        processes.filter(is_child).collect()
    }
}

/// Goes on as the owner of a data directory where root runs this: the server could not change what
/// root has made, and refuses what it could write to. Returns where that is not needed.
///
/// # Errors
///
/// If it cannot be done.
pub(crate) fn go_on_as_owner(data: &Path) -> anyhow::Result<()> {
    let Ok(found) = fs::metadata(data) else { return Ok(()) };
    if !geteuid().is_root() || found.uid() == 0 || !data.join("PG_VERSION").exists() {
        return Ok(());
    }
    // It gives up root's other groups, too, and never comes back from here.
    let error = Command::new("/proc/self/exe")
        .arg0("nrt-backup")
        .args(env::args_os().skip(1))
        .gid(found.gid())
        .uid(found.uid())
        .exec();
    let owner = found.uid();
    Err(error).with_context(|| format!("go on as user {owner}, the owner of the data directory"))
}

/// The jobs of the history that something may still happen to, and others before them.
pub(crate) fn recent_jobs(state: &Path) -> Vec<Job> {
    let text = files::read_end(&state.join(layout::HISTORY), RECENT).unwrap_or_default();
    job::read(&text).into_values().collect()
}

/// Refuses where shipping is switched off or paused: nobody would ever answer a request.
///
/// What shipping told last stays there when it has ended.
pub(crate) fn must_ship(state: &Path) -> anyhow::Result<()> {
    let health: Vec<Check> = read(state, layout::HEALTH).unwrap_or_default();
    let remote = health.into_iter().find(|check| check.name == "remote");
    let is_off = remote.as_ref().is_some_and(health::is_off);
    if is_off || !state.join(layout::SHIP).exists() {
        bail!("this server ships nowhere\nHINT: Set nrt_backup.rclone_config.");
    }
    match remote.filter(health::is_paused) {
        Some(check) => bail!("{}\nHINT: {}", check.message, check.hint),
        None => Ok(()),
    }
}

/// Whether it is known if the server ships.
pub(crate) fn has_told(state: &Path) -> bool {
    let health: Vec<Check> = read(state, layout::HEALTH).unwrap_or_default();
    state.join(layout::SHIP).exists()
        || health.iter().any(|check| check.name == "remote" && health::is_off(check))
}

/// Reads a JSON file of the state directory; `None` if it is not there or holds something else.
pub(crate) fn read<T: DeserializeOwned>(state: &Path, name: &str) -> Option<T> {
    files::read_json(&state.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_ships_nobody_is_asked() {
        let state = tempfile::tempdir().expect("a directory");
        let refusal = || must_ship(state.path()).err().map(|error| error.to_string());
        assert!(refusal().is_some_and(|it| it.contains("ships nowhere")));
        fs::write(state.path().join(layout::SHIP), "{}").expect("written");
        assert_eq!(refusal(), None);
        for (severity, message) in [
            ("warning", "shipping is paused: nothing new goes off-site"),
            ("ok", "no remote is configured: backups are only on this machine"),
        ] {
            let check = serde_json::json!([
                { "name": "remote", "severity": severity, "message": message, "hint": "" }
            ]);
            fs::write(state.path().join(layout::HEALTH), check.to_string()).expect("written");
            assert!(refusal().is_some(), "{message}");
        }
    }
}
