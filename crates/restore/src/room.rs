//! Looks whether the disks have room for a restore, before anything is moved or fetched.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nrt_core::restore::Refusal;
use nrt_core::restore::plan::Plan;
use nrt_core::size::format_size;

use super::place::{Begun, Existing};
use super::planning::Planned;
use super::{Run, Start};

/// Bytes of WAL that are there twice: fetched ahead of replay, and replayed.
const TWICE: u64 = 256 << 20;
/// Segments that PostgreSQL makes beside those that it replays: the last one's copy, and those of
/// the timeline that it goes on with.
const FURTHER: u64 = 5;

/// Bytes of WAL that are on the disk at once beside the restored cluster.
fn wal_at_once(plan: &Plan) -> u64 {
    plan.wal_bytes.min(TWICE).saturating_add(plan.segment_size.saturating_mul(FURTHER))
}

/// Bytes that all of a restore needs: what is fetched, what is restored, and WAL.
pub(crate) fn needed(plan: &Plan) -> u64 {
    let wal = plan.wal_bytes.saturating_add(wal_at_once(plan));
    let fetched = plan.fetch_bytes.unwrap_or(0);
    fetched.saturating_add(plan.restore_bytes.unwrap_or(0)).saturating_add(wal)
}

/// Bytes of the disk below a directory, and those that are free on it.
pub(crate) fn disk(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstatvfs(File::open(path)?)?;
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

impl Run<'_> {
    /// Refuses disks without room for what the plan fetches and restores.
    ///
    /// Where several disks take the cluster and its tablespaces, they are counted together: the
    /// manifest tells what each tablespace has, and not which of it is a hole.
    pub(super) fn check_room(
        &self,
        planned: &Planned,
        begun: Option<&Begun>,
    ) -> Result<(), Refusal> {
        let request = self.request;
        // What other databases have is restored as holes.
        if request.ignore_space || !request.databases.is_empty() {
            return Ok(());
        }
        let plan = &planned.plan;
        let wal = if request.start == Start::No { 0 } else { wal_at_once(plan) };
        let uses_what_is_there = begun.is_some() || request.existing == Existing::Delta;
        let mut targets = vec![request.data.clone()];
        if let Some(manifest) = &planned.manifest {
            targets.extend(self.tablespace_targets(manifest).into_iter().map(|(_, path)| path));
        }
        let there = if uses_what_is_there { targets.iter().map(|it| size_of(it)).sum() } else { 0 };
        let restored = plan.restore_bytes.unwrap_or(0).saturating_sub(there).saturating_add(wal);
        let fetched = plan.fetch_bytes.unwrap_or(0);
        let fetched = fetched.saturating_sub(size_of(&self.work.repository()));
        let work = [self.work.path().to_path_buf()];
        let (disks, of_work) = (disks(&targets), disks(&work));
        let is_one = of_work.keys().any(|device| disks.contains_key(device));
        let groups = if is_one {
            vec![(&request.data, disks, restored.saturating_add(fetched))]
        } else {
            vec![(&request.data, disks, restored), (&work[0], of_work, fetched)]
        };
        for (directory, disks, needed) in groups {
            // A disk that says nothing of itself is no reason to refuse.
            let free: u64 = disks.values().sum();
            if !disks.is_empty() && free < needed {
                return Err(no_room(directory, needed, free));
            }
        }
        Ok(())
    }
}

fn no_room(directory: &Path, needed: u64, free: u64) -> Refusal {
    Refusal::new(
        format!(
            "there is no room for the restore: it needs {} more in \"{}\", and {} are free",
            format_size(needed),
            directory.display(),
            format_size(free)
        ),
        "Make room, restore to another directory (-D), or work in another one \
         (--work-directory). Where the file system compresses, --ignore-space restores all the \
         same.",
    )
}

/// The disks of directories that may not be there yet, each with what is free on it.
fn disks(directories: &[PathBuf]) -> BTreeMap<u64, u64> {
    let found = directories.iter().filter_map(|directory| {
        let there = directory.ancestors().find(|it| it.is_dir())?;
        Some((fs::metadata(there).ok()?.dev(), disk(there).ok()?.1))
    });
    found.collect()
}

/// Bytes on the disk below a directory; what cannot be read counts for nothing.
fn size_of(directory: &Path) -> u64 {
    let mut sum = 0_u64;
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => open.push(entry.path()),
                Ok(found) => sum = sum.saturating_add(found.blocks().saturating_mul(512)),
                Err(_) => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_on_the_disk_of_the_one_above() {
        let root = tempfile::tempdir().expect("a directory");
        let one = disks(&[root.path().to_path_buf()]);
        assert_eq!(one.len(), 1);
        let same = disks(&[root.path().join("a/b"), root.path().to_path_buf()]);
        assert_eq!(same.keys().collect::<Vec<_>>(), one.keys().collect::<Vec<_>>());
        fs::create_dir_all(root.path().join("a/b")).expect("made");
        fs::write(root.path().join("a/b/c"), vec![1; 100_000]).expect("written");
        assert!(size_of(root.path()) >= 100_000);
        assert_eq!(size_of(&root.path().join("none")), 0);
        let refusal = no_room(root.path(), 3 << 30, 1 << 20);
        assert!(refusal.message.contains("needs 3 GB more in \"/"), "{refusal:?}");
        assert!(refusal.message.contains("1 MB are free"), "{refusal:?}");
    }
}
