//! The directory in which a restore works: what was fetched, and what `wal-get` needs to know.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nrt_process::files::write_atomically;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long the lock of a process that was killed may still be held by what it has left.
const ENDING: Duration = Duration::from_secs(3);
/// Whether something is in the directory that the next restore can use.
const FETCHING: &str = "fetching";
/// A socket's path has at most 107 bytes, and PostgreSQL adds its names.
const LONGEST_SOCKET_DIRECTORY: usize = 107 - "/.s.PGSQL.5432.lock".len();
/// The name of a directory elsewhere, for what cannot be here.
const ELSEWHERE: &str = "elsewhere.json";

/// A restore's own directory. It is private: what lies in it was the cluster's.
#[derive(Debug, Clone)]
pub struct Work(PathBuf);

/// Held by the process that restores; `wal-get` sees by it whether somebody fetches WAL ahead.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "closing it gives the lock back")] File);

impl Work {
    /// The directory at this path, which is made if it is not there.
    pub fn make(path: &Path) -> anyhow::Result<Work> {
        let work = Work(path.to_path_buf());
        for directory in [work.0.clone(), work.repository(), work.wal(), work.outbox(), work.lock()]
        {
            match DirBuilder::new().mode(0o700).recursive(true).create(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.with_context(|| {
                    format!(
                        "make \"{}\"\nHINT: Name a directory that you may write to, with room \
                         for the fetched backup, with --work-directory",
                        directory.display()
                    )
                })?,
            }
        }
        fs::set_permissions(&work.0, Permissions::from_mode(0o700))?;
        Ok(work)
    }

    /// One that is there already.
    pub fn at(path: &Path) -> Work {
        Work(path.to_path_buf())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What of the repository was fetched.
    pub(crate) fn repository(&self) -> PathBuf {
        self.0.join("repository")
    }

    /// WAL as PostgreSQL wants it.
    pub(crate) fn wal(&self) -> PathBuf {
        self.0.join("wal")
    }

    /// WAL that a plan looks into.
    pub(crate) fn look(&self) -> PathBuf {
        self.0.join("look")
    }

    /// WAL of the cluster that is replaced.
    pub(crate) fn own(&self) -> PathBuf {
        self.0.join("own")
    }

    /// Files on their way.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.0.join("outbox")
    }

    /// pgBackRest's locks.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// pgBackRest's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("pgbackrest.conf")
    }

    /// Where a server that recovers privately writes its number: only one of this restore's has
    /// it on its command line.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.0.join("external.pid")
    }

    /// The name of the segment that PostgreSQL asked for last.
    pub(crate) fn asked(&self) -> PathBuf {
        self.0.join("asked")
    }

    /// Makes this process the one that restores with this directory. What another one that was
    /// killed has left may take a moment to end.
    pub fn hold(&self) -> anyhow::Result<Held> {
        let file = self.lock_file()?;
        let begin = Instant::now();
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if begin.elapsed() < ENDING {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            bail!(
                "another restore works in \"{}\"\nHINT: Wait for it, or stop it first.",
                self.0.display()
            );
        }
        Ok(Held(file))
    }

    /// Whether somebody restores with this directory now.
    pub fn is_held(&self) -> bool {
        self.lock_file()
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    fn lock_file(&self) -> anyhow::Result<File> {
        let path = self.0.join("held");
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open \"{}\"", path.display()))
    }

    /// Writes a JSON file.
    pub(crate) fn write<T: Serialize>(&self, name: &str, value: &T) -> anyhow::Result<()> {
        let path = self.0.join(name);
        write_atomically(&path, &serde_json::to_vec(value)?)
            .with_context(|| format!("write \"{}\"", path.display()))
    }

    /// Reads a JSON file; `None` if it is not there or holds something else.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.0.join(name)).ok()?).ok()
    }

    /// Removes files, for good when this returns.
    pub(crate) fn forget(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            let path = self.0.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove \"{}\"", path.display()));
                }
                _ => {}
            }
        }
        let synced = File::open(&self.0).and_then(|directory| directory.sync_all());
        synced.with_context(|| format!("sync \"{}\"", self.0.display()))
    }

    /// Empties what a plan of an interrupted restore has got of the WAL: this one's may end
    /// elsewhere in the same segment.
    pub(crate) fn forget_wal(&self) -> anyhow::Result<()> {
        for directory in [self.wal(), self.look()] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("empty \"{}\"", directory.display()));
                }
                _ => {}
            }
        }
        DirBuilder::new().mode(0o700).create(self.wal())?;
        Ok(())
    }

    /// Says that what is in it is of use for the next restore.
    pub(crate) fn begin_to_fetch(&self) -> anyhow::Result<()> {
        self.write(FETCHING, &())
    }

    /// Says that it is of no use any more: the restore that worked here is done.
    pub(crate) fn end_use(&self) -> anyhow::Result<()> {
        self.forget(&[FETCHING])
    }

    /// Whether the next restore can use what is in it.
    pub(crate) fn is_of_use(&self) -> bool {
        self.0.join(FETCHING).exists()
    }

    /// A private directory for a socket, whose path is limited: outside of this one, if this one's
    /// is too long.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        self.remove_elsewhere();
        let here = self.0.join("socket");
        if here.as_os_str().len() <= LONGEST_SOCKET_DIRECTORY {
            // A killed server has left its lock there, and PostgreSQL believes it as long as the
            // process has a number: also when it has ended and nobody has waited for it.
            match fs::remove_dir_all(&here) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            DirBuilder::new().mode(0o700).recursive(true).create(&here)?;
            return Ok(here);
        }
        let made = tempfile::Builder::new().prefix("nrt-").tempdir()?;
        self.write(ELSEWHERE, &made.path())?;
        Ok(made.keep())
    }

    fn remove_elsewhere(&self) {
        if let Some(elsewhere) = self.read::<PathBuf>(ELSEWHERE) {
            let _ = fs::remove_dir_all(elsewhere);
        }
    }

    /// Removes all of it; what says how far the restore is last, so that it goes on if this is
    /// interrupted.
    pub(crate) fn remove(&self) {
        self.remove_elsewhere();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|it| it.is_dir()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_restore_works_in_a_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let work = Work::make(&root.path().join("work")).expect("made");
        assert!(!work.is_held());
        let held = work.hold().expect("free");
        assert!(work.is_held());
        assert!(work.hold().is_err());
        drop(held);
        // A child that another test has just begun to start has the file until it is a program.
        let begin = std::time::Instant::now();
        while work.is_held() {
            assert!(begin.elapsed().as_secs() < 60, "nobody holds it");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let mode = fs::metadata(work.path()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        Work::make(work.path()).expect("it is there already");
    }

    #[test]
    fn a_socket_of_a_killed_server_is_gone() {
        let root = tempfile::tempdir().expect("a directory");
        let work = Work::make(&root.path().join("work")).expect("made");
        let socket = work.socket().expect("made");
        let lock = socket.join(".s.PGSQL.5432.lock");
        fs::write(&lock, "1\n").expect("written");
        assert_eq!(work.socket().expect("made"), socket);
        assert!(socket.is_dir() && !lock.exists());
    }
}
