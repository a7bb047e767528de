//! Brings what the remote holds into the repository of a server that was restored from it.
//!
//! A restore fetches only what it needs. Before the restored server becomes the one that ships,
//! its repository gets the rest: otherwise its info files would say that the older backups are
//! gone, and nobody could get back to them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::pgbackrest::names::valid_label;
use rustix::fs::statvfs;

use super::remote::{Remote, failure};
use super::state::Shared;

/// Per cent of the repository's disk that stay free.
const FREE: u64 = 10;

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
        let here = fs::metadata(root.join(path)).map(|it| it.len());
        if here.is_ok_and(|here| i64::try_from(here) == Ok(size)) { 0 } else { size.max(0) }
    };
    let backups = shared.repository.join("backup").join(stanza);
    let archive = shared.repository.join("archive").join(stanza);
    let of_backups = list(&format!("repository/backup/{stanza}"))?;
    let of_archive = list(&format!("repository/archive/{stanza}"))?;
    let bytes: i64 = of_backups
        .iter()
        .filter(|it| wanted(&it.path))
        .map(|it| missing(&backups, &it.path, it.size))
        .chain(of_archive.iter().map(|it| missing(&archive, &it.path, it.size)))
        .sum();
    refuse_a_small_disk(&shared.repository, u64::try_from(bytes).unwrap_or(0))?;

    let over = &shared.over;
    let info = ["- *.info", "- *.info.copy", "- *.pgbackrest.tmp"];
    let from = format!("repository/archive/{stanza}");
    remote.fetch_directory(&from, &archive, &info, over, &mut |_| {}).map_err(cannot)?;
    for label in labels {
        let from = format!("repository/backup/{stanza}/{label}");
        let into = backups.join(label);
        // Whatever has a manifest is taken for whole.
        let rules = ["- /backup.manifest"];
        remote.fetch_directory(&from, &into, &rules, over, &mut |_| {}).map_err(cannot)?;
        let manifest = format!("{from}/backup.manifest");
        remote.fetch(&manifest, &into.join("backup.manifest")).map_err(cannot)?;
    }
    eprintln!("mirror: {} older backup(s) were brought back from the remote", labels.len());
    Ok(())
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
