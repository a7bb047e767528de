//! Brings what the remote holds into the repository of a server that was restored from it.
//!
//! A restore fetches only what it needs. Before the restored server becomes the one that ships,
//! its repository gets the rest: otherwise its info files would say that the older backups are
//! gone, and nobody could get back to them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_core::pgbackrest::names::valid_label;
use nrt_process::files::write_atomically;
use rustix::fs::{statvfs, syncfs};

use super::archive::{is_archived_file, may_replace};
use super::proof::{MANIFEST, manifest_there};
use super::state::Shared;
use nrt_remote::{Entry, Remote, failure};

/// Per cent of the repository's disk that stay free.
const FREE: u64 = 10;
/// Where WAL is while it is fetched, below the stanza's archive: on the same file system, and under
/// a name that is no archive's. A file of the archive itself has its name only when it is whole:
/// half a segment would pass for one that is to be sent.
const STAGING: &str = ".bring-back";

/// Whether this server was restored, and its repository may be completed from the remote.
pub(crate) fn is_due(state: &Path) -> bool {
    let restored: Option<layout::Restored> = fs::read(state.join(layout::RESTORED))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    restored.is_some_and(|restored| !restored.is_copy)
}

/// Fetches these backups and all archived WAL that is not here. What is interrupted goes on.
pub(crate) fn run(
    shared: &Shared,
    remote: &Remote,
    labels: &BTreeSet<String>,
) -> Result<(), Failure> {
    let stanza = &shared.plan.stanza;
    let cannot = |it| failure("the older backups cannot be brought back from the remote", &it);
    let list = |directory: &str| remote.list(directory).map_err(cannot);
    let wanted = |path: &str| {
        path.split('/').next().is_some_and(|label| valid_label(label) && labels.contains(label))
    };
    let missing = |root: &Path, path: &str, size: i64| {
        if has(&root.join(path), size) { 0 } else { size.max(0) }
    };
    let backups = shared.repository.join("backup").join(stanza);
    let archive = archive(shared);
    let staging = archive.join(STAGING);
    let of_backups = list(&format!("repository/backup/{stanza}"))?;
    let of_archive = list(&format!("repository/archive/{stanza}"))?;
    let bytes: i64 = of_backups
        .iter()
        .filter(|it| wanted(&it.path))
        .map(|it| missing(&backups, &it.path, it.size))
        .chain(
            of_archive
                .iter()
                .filter(|it| !has(&staging.join(&it.path), it.size))
                .map(|it| missing(&archive, &it.path, it.size)),
        )
        .sum();
    refuse_a_small_disk(&shared.repository, u64::try_from(bytes).unwrap_or(0))?;

    let over = &shared.over;
    let ids = of_archive.iter().filter_map(|it| Some(it.path.split_once('/')?.0));
    for id in ids.collect::<BTreeSet<&str>>() {
        let from = format!("repository/archive/{stanza}/{id}");
        let rules = ["- *.pgbackrest.tmp", "- *.partial"];
        let (into, other) = (staging.join(id), archive.join(id));
        remote.fetch_missing(&from, &into, &other, &rules, over).map_err(cannot)?;
    }
    put_in_place(&archive, &of_archive).map_err(|error| Failure {
        message: format!("the WAL that was brought back cannot be put into the archive: {error}"),
        hint: "See that the repository's file system is there and can be written to.".to_string(),
    })?;
    for label in labels {
        let from = format!("repository/backup/{stanza}/{label}");
        let into = backups.join(label);
        let manifest = manifest_there(remote, stanza, label)?.unwrap_or_default();
        if integrity(&manifest) == Integrity::Damaged {
            return Err(Failure {
                message: format!("the manifest of backup {label} is damaged on the remote"),
                hint: format!(
                    "Nothing can be restored from that backup. To give it up, delete it there: \
                     rclone --config \"{}\" purge \"{}/{from}\".",
                    shared.plan.rclone_config, remote.root
                ),
            });
        }
        // Whatever has a manifest is taken for whole: it comes last, when all else is on disk.
        let rules = ["- /backup.manifest"];
        remote.fetch_directory(&from, &into, &rules, over, &mut |_| {}).map_err(cannot)?;
        let placed = File::open(&into)
            .and_then(|opened| Ok(syncfs(&opened)?))
            .and_then(|()| write_atomically(&into.join(MANIFEST), &manifest));
        placed.map_err(|error| Failure {
            message: format!("backup {label}, brought back, cannot be written: {error}"),
            hint: "See that the repository's file system is there and can be written to."
                .to_string(),
        })?;
    }
    eprintln!("mirror: {} older backup(s) were brought back from the remote", labels.len());
    Ok(())
}

/// Removes what an interrupted run has left, when there is none to go on with it.
pub(crate) fn clear(shared: &Shared) {
    // There seldom is anything.
    let _ = fs::remove_dir_all(archive(shared).join(STAGING));
}

fn archive(shared: &Shared) -> PathBuf {
    shared.repository.join("archive").join(&shared.plan.stanza)
}

/// Whether a file is there with a size.
fn has(file: &Path, size: i64) -> bool {
    fs::metadata(file).is_ok_and(|it| i64::try_from(it.len()) == Ok(size))
}

/// Moves what was fetched as a whole into the archive. What is there stays, unless it is half a
/// segment.
fn put_in_place(archive: &Path, listed: &[Entry]) -> io::Result<()> {
    let staging = archive.join(STAGING);
    let Ok(opened) = File::open(&staging) else { return Ok(()) };
    // Before the names: they would outlive the contents when the power fails.
    syncfs(&opened)?;
    for entry in listed {
        let (staged, file) = (staging.join(&entry.path), archive.join(&entry.path));
        let is_known = entry
            .path
            .rsplit_once('/')
            .is_some_and(|(within, name)| is_archived_file(within, name));
        let size = u64::try_from(entry.size).unwrap_or(0);
        if !is_known || !has(&staged, entry.size) || (file.exists() && may_replace(&file, size)) {
            continue;
        }
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::rename(staged, file)?;
    }
    // Before the manifests: with them nothing is brought back any more.
    syncfs(&opened)?;
    fs::remove_dir_all(staging)
}

fn refuse_a_small_disk(repository: &Path, bytes: u64) -> Result<(), Failure> {
    let Ok(disk) = statvfs(repository) else { return Ok(()) };
    let (total, available) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    if available >= bytes.saturating_add(total / 100 * FREE) {
        return Ok(());
    }
    Err(Failure {
        message: format!(
            "the remote holds older backups that this restored server's repository has no room \
             for: {bytes} bytes, and {available} are free; nothing there is replaced, WAL is \
             still shipped"
        ),
        hint: "Make room on the repository's disk, or run \"nrt-backup takeover --set-aside\", \
               which keeps the remote's backups under another name."
            .to_string(),
    })
}
