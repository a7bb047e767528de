//! Brings what the remote holds into the repository of a server that was restored from it.
//!
//! A restore fetches only what it needs. Before the restored server becomes the one that ships,
//! its repository gets the rest: otherwise its info files would say that the older backups are
//! gone, and nobody could get back to them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_core::pgbackrest::names::valid_label;
use nrt_core::pgbackrest::{command, exit, label};
use nrt_process::files::{read_json, write_atomically};
use nrt_process::{allowed_in_zone, capture};
use rustix::fs::{statvfs, syncfs};

use super::archive::{is_archived_file, may_replace};
use super::proof::{MANIFEST, manifest_there};
use super::state::Shared;
use nrt_remote::{Entry, Remote, failure};

/// Per cent of the repository's disk that stay free.
const FREE: u64 = 10;
/// How long pgBackRest may take to list the backups, and to remove what the retention lets go.
const LIMIT: Duration = Duration::from_secs(600);
/// More than `expire` prints: a line for each directory that it removes.
const LONGEST_ANSWER: usize = 16 << 20;
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

/// Has pgBackRest list the backups that are in the repository and not in its `backup.info`.
///
/// The first backup of a restored server takes those off the list that the restore did not fetch. Each
/// `backup` and `expire` lists what is there again, and removes what the retention lets go.
///
/// # Errors
///
/// pgBackRest's words. A backup that runs holds the lock that `expire` wants.
pub(crate) fn list_again(shared: &Shared) -> Result<(), Failure> {
    let state = Path::new(&shared.plan.state);
    let Some(tool) = read_json::<layout::Tool>(&state.join(layout::TOOL)) else { return Ok(()) };
    let arguments = command::expire(&tool.config, &tool.stanza);
    let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
    let environment = allowed_in_zone(std::env::vars_os(), label::UTC);
    let program = Path::new(&tool.program);
    let answer = capture(program, &arguments, &environment, LIMIT, LONGEST_ANSWER);
    let answer = answer.map_err(|error| Failure {
        message: format!("could not run \"{}\": {error}", tool.program),
        hint: "Install pgBackRest again, or set nrt_backup.pgbackrest.".to_string(),
    })?;
    if answer.exit == Some(0) {
        eprintln!("mirror: the backups that were brought back are listed again");
        return Ok(());
    }
    let output = format!("{}{}", String::from_utf8_lossy(&answer.stdout), answer.stderr);
    let verdict = exit::judge(answer.exit, answer.signal, &output);
    Err(Failure {
        message: format!(
            "the backups that were brought back cannot be listed yet: {}",
            verdict.message
        ),
        hint: verdict
            .hint
            .filter(|hint| !hint.is_empty())
            .unwrap_or_else(|| "It is tried again.".to_string()),
    })
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
