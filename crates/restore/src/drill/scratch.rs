//! The place in which a drill restores: nobody else's, and gone when the drill is.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::restore::drill::Order;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use rustix::process::{Pid, Signal, geteuid, getpid, kill_process};

/// How long what was killed may take to end.
const DEATH: Duration = Duration::from_secs(5);
/// How often something is tried again that happens at the same time elsewhere.
const TRIES: usize = 10;
/// How names of sockets' directories begin, which lie elsewhere.
const SOCKET: &str = "nrt-";

/// A directory that this drill alone works in. It is removed with this value.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// Made by us, and removed if nothing is left in it.
    parent: Option<PathBuf>,
    /// The directory itself, locked: who finds it locked leaves it alone.
    _lock: OwnedFd,
}

impl Scratch {
    /// Makes the place, empty: what an earlier drill has left there is ended and removed.
    pub(super) fn take(order: &Order) -> Result<Scratch, Failure> {
        let (directory, state) = (Path::new(&order.directory), Path::new(&order.state));
        let parent = directory.starts_with(state).then(|| directory.to_path_buf());
        let data = Path::new(&order.data_directory);
        if parent.is_none() && real(directory).starts_with(real(data)) {
            return Err(Failure {
                message: format!("drills cannot restore into \"{}\"", directory.display()),
                hint: "Set nrt_backup.drill_directory to a directory outside of the data \
                       directory: what is in that is backed up."
                    .to_string(),
            });
        }
        let unusable = |error: io::Error| Failure {
            message: format!("drills cannot restore into \"{}\": {error}", directory.display()),
            hint: "Set nrt_backup.drill_directory to a directory of the server's user, on a disk \
                   with room for the whole cluster."
                .to_string(),
        };
        if let Some(parent) = &parent {
            make(parent).map_err(unusable)?;
        }
        let path = place(order);
        for _ in 0..TRIES {
            make(&path).map_err(unusable)?;
            let Some(lock) = lock(&path).map_err(unusable)? else { continue };
            let scratch = Scratch { path, parent, _lock: lock };
            scratch.empty().map_err(unusable)?;
            return Ok(scratch);
        }
        Err(unusable(io::ErrorKind::ResourceBusy.into()))
    }

    /// Removes what an earlier drill has left, if there is anything.
    pub(super) fn clean(order: &Order) -> Result<(), Failure> {
        match fs::symlink_metadata(place(order)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => Scratch::take(order)?.remove(),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends what runs in it and removes it.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        let mut removed = self.empty().and_then(|()| fs::remove_dir(&self.path));
        // What this process itself does meanwhile, in another thread, may have put something there.
        for _ in 0..TRIES {
            if removed.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            removed = self.empty().and_then(|()| fs::remove_dir(&self.path));
        }
        if let Some(parent) = &self.parent {
            // The operator may have something else in it.
            let _ = fs::remove_dir(parent);
        }
        removed.map_err(|error| Failure {
            message: format!("\"{}\" cannot be removed: {error}", self.path.display()),
            hint: "Remove it: it holds a copy of the cluster's data.".to_string(),
        })
    }

    fn empty(&self) -> io::Result<()> {
        let begin = Instant::now();
        let outside = socket_directory(&self.path.join(super::DATA));
        loop {
            let mut inhabitants = inhabitants(&self.path);
            inhabitants.retain(|process| *process != getpid());
            for process in &inhabitants {
                let _ = kill_process(*process, Signal::KILL);
            }
            if inhabitants.is_empty() || begin.elapsed() >= DEATH {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        if let Some(directory) = outside {
            let _ = fs::remove_dir_all(directory);
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Links to tablespaces are not followed.
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Where the drills of a cluster work: another cluster's may use the same directory.
fn place(order: &Order) -> PathBuf {
    // Short: a socket's path has at most 107 bytes.
    Path::new(&order.directory).join(format!("nrt-drill-{}", order.system_id))
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Locks a directory that is ours. `None` if it was removed meanwhile.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = fstat(&directory)?;
    // In a directory that everybody may write to, it could be anybody's.
    if found.st_uid != geteuid().as_raw() {
        return Err(io::Error::other(format!("\"{}\" is somebody else's", path.display())));
    }
    if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(io::Error::other("another drill of this cluster works there"));
    }
    let still = fs::symlink_metadata(path);
    Ok(still.is_ok_and(|it| it.ino() == found.st_ino).then_some(directory))
}

/// The processes whose working directory is within a directory: all that a drill starts.
fn inhabitants(path: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let lives_here = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|place| place.starts_with(path))
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(lives_here)
        .filter_map(Pid::from_raw)
        .collect()
}

/// The directory of the socket of a server that ran in a data directory, if it was made for it.
fn socket_directory(data: &Path) -> Option<PathBuf> {
    /// The line of `postmaster.pid` with it.
    const LINE: usize = 4;
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let path = PathBuf::from(text.lines().nth(LINE)?);
    let is_made = path.file_name()?.to_str()?.starts_with(SOCKET);
    let owner = fs::symlink_metadata(&path).ok()?.uid();
    (is_made && owner == geteuid().as_raw()).then_some(path)
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn order(root: &Path, directory: &str) -> Order {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        fs::create_dir_all(root.join("data/nrt_backup")).expect("made");
        Order {
            state: text(root.join("data/nrt_backup")),
            data_directory: text(root.join("data")),
            system_id: 7_300_000_000_000_000_001,
            stanza: "main".to_string(),
            remote: None,
            programs: "/bin".to_string(),
            processes: 1,
            libraries: String::new(),
            directory: text(root.join(directory)),
            superuser: "postgres".to_string(),
            database: "postgres".to_string(),
            query: None,
        }
    }

    #[test]
    fn nothing_is_left_of_it() {
        let root = tempfile::tempdir().expect("a directory");
        let order = order(root.path(), "data/nrt_backup/drill");
        let scratch = Scratch::take(&order).expect("taken");
        fs::create_dir_all(scratch.path().join("a/b")).expect("made");
        let outside = root.path().join("outside");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "").expect("written");
        symlink(&outside, scratch.path().join("a/link")).expect("linked");
        symlink(&outside, scratch.path().join("link")).expect("linked");
        scratch.remove().expect("removed");
        assert!(!Path::new(&order.directory).exists());
        assert!(outside.join("file").exists());
        Scratch::clean(&order).expect("there is nothing");
        assert!(!Path::new(&order.directory).exists());
    }

    #[test]
    fn what_was_left_is_ended_and_removed() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("own")).expect("made");
        let order = order(root.path(), "own");
        let left = place(&order).join("data");
        fs::create_dir_all(&left).expect("made");
        let socket = root.path().join("nrt-x");
        fs::create_dir(&socket).expect("made");
        let text = format!("1\n/data\n0\n5432\n{}\n", socket.display());
        fs::write(left.join("postmaster.pid"), text).expect("written");
        let mut living =
            Command::new("sleep").arg("1000").current_dir(&left).spawn().expect("it runs");
        // As an init does.
        let reaper = thread::spawn(move || living.wait().expect("it can be waited for"));
        Scratch::clean(&order).expect("cleaned");
        assert!(!reaper.join().expect("it ended").success());
        assert!(!place(&order).exists() && !socket.exists());
        assert!(root.path().join("own").exists());
    }

    #[test]
    fn one_drill_works_in_it() {
        let root = tempfile::tempdir().expect("a directory");
        let order = order(root.path(), "data/nrt_backup/drill");
        let scratch = Scratch::take(&order).expect("taken");
        fs::write(scratch.path().join("file"), "").expect("written");
        let failure = Scratch::take(&order).expect_err("refused");
        assert!(failure.message.contains("another drill"), "{failure:?}");
        assert!(Scratch::clean(&order).is_err());
        assert!(scratch.path().join("file").exists());
    }

    #[test]
    fn where_it_must_not_be() {
        let root = tempfile::tempdir().expect("a directory");
        for (directory, words) in [("data", "outside of the data"), ("none", "room for the whole")]
        {
            let order = order(root.path(), directory);
            let failure = Scratch::take(&order).expect_err("refused");
            assert!(failure.hint.contains(words), "{failure:?}");
        }
        let order = order(root.path(), "data/nrt_backup/drill");
        fs::create_dir(&order.directory).expect("made");
        symlink(root.path(), place(&order)).expect("linked");
        assert!(Scratch::take(&order).is_err());
        assert!(Scratch::clean(&order).is_err());
        assert!(root.path().join("data").exists());
    }
}
