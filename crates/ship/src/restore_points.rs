//! Keeps the list of restore points off-site, where a restore on another machine finds it.
//!
//! Nothing that the remote knows is lost by a server that does not: after a restore the server's own
//! list is empty, and is filled from there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::lsn::Lsn;
use nrt_core::offsite::RESTORE_POINTS;
use nrt_core::restore::catalog::RestorePoint;
use nrt_core::restore::points;
use nrt_process::files::{append, read_end, try_lock};

use super::repository::Stamp;
use nrt_remote::{Remote, failure};

/// What is known of the list.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// What the remote holds, once a session has looked.
    there: Option<Vec<RestorePoint>>,
    /// What told that all of the server's own list is there.
    seen: Option<Stamp>,
}

impl Kept {
    /// Sends the list if the server's own has changed, without the points before the oldest backup
    /// that the remote holds, if that is known.
    pub(crate) fn send(
        &mut self,
        state: &Path,
        remote: &Remote,
        oldest: impl FnOnce() -> Option<Lsn>,
    ) -> Result<(), Failure> {
        let there = match self.there.take() {
            Some(there) => there,
            None => {
                let there = fetch(remote)?;
                if let Err(error) = bring(state, &there) {
                    eprintln!("could not write \"{}\": {error}", layout::RESTORE_POINTS);
                }
                there
            }
        };
        let there = self.there.insert(there);
        let stamp = stamp(state);
        if stamp == self.seen {
            return Ok(());
        }
        let here = read(state).map_err(|error| Failure {
            message: format!("\"{}\" cannot be read: {error}", layout::RESTORE_POINTS),
            hint: "See that the server's user can read its own files.".to_string(),
        })?;
        let mut all = points::merge(there, &here);
        if let Some(oldest) = oldest() {
            all.retain(|point| oldest <= point.lsn);
        }
        if all != *there {
            let text = serde_json::to_vec(&all).unwrap_or_default();
            remote
                .put(RESTORE_POINTS, &text)
                .map_err(|refusal| failure("restore points cannot be sent", &refusal))?;
            *there = all;
        }
        self.seen = stamp;
        Ok(())
    }
}

/// What tells one version of the server's own list from the next.
fn stamp(state: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(state.join(layout::RESTORE_POINTS)).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?, metadata.len()))
}

fn read(state: &Path) -> io::Result<Vec<RestorePoint>> {
    let longest = points::MOST as u64 * points::LONGEST_LINE;
    Ok(points::parse(&read_end(&state.join(layout::RESTORE_POINTS), longest)?))
}

fn fetch(remote: &Remote) -> Result<Vec<RestorePoint>, Failure> {
    let text = remote
        .get(RESTORE_POINTS)
        .map_err(|refusal| failure("restore points cannot be read", &refusal))?;
    let Some(text) = text else { return Ok(Vec::new()) };
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
        // One that was cut off: what the server itself knows replaces it.
        eprintln!("\"{RESTORE_POINTS}\" on the remote cannot be read: {error}");
        Vec::new()
    }))
}

/// Adds to the server's own list what only the remote knows. While a restore point is being made,
/// it is left to the next session.
fn bring(state: &Path, there: &[RestorePoint]) -> io::Result<()> {
    if there.is_empty() {
        return Ok(());
    }
    let Some(_lock) = try_lock(&state.join(layout::RESTORE_POINTS_LOCK))? else { return Ok(()) };
    let here = read(state)?;
    let known: BTreeSet<(u32, Lsn)> = here.iter().map(|it| (it.timeline, it.lsn)).collect();
    let mut lines = Vec::new();
    for point in there.iter().filter(|it| !known.contains(&(it.timeline, it.lsn))) {
        lines.extend(points::line(point)?);
    }
    if lines.is_empty() { Ok(()) } else { append(&state.join(layout::RESTORE_POINTS), &lines) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_remote_knows_is_brought_here_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path();
        let point = |name: &str, lsn: u64| RestorePoint {
            name: name.to_string(),
            timeline: 1,
            lsn: Lsn(lsn),
            at: chrono::DateTime::from_timestamp(0, 0).expect("a time"),
        };
        bring(state, &[]).expect("nothing to write");
        assert_eq!(stamp(state), None);
        let path = state.join(layout::RESTORE_POINTS);
        append(&path, &points::line(&point("ours", 7)).expect("JSON")).expect("written");
        let there = [point("theirs", 5), point("ours", 7), point("older", 6)];
        bring(state, &there).expect("written");
        let names = || -> Vec<String> {
            read(state).expect("read").into_iter().map(|point| point.name).collect()
        };
        assert_eq!(names(), ["ours", "theirs", "older"]);
        let before = stamp(state);
        bring(state, &there).expect("nothing to write");
        assert_eq!(stamp(state), before);
        // Somebody makes one.
        let lock = try_lock(&state.join(layout::RESTORE_POINTS_LOCK)).expect("a lock");
        bring(state, &[point("new", 8)]).expect("left for later");
        assert_eq!(names().len(), 3);
        drop(lock);
    }
}
