//! Writes files so that a crash leaves the old one or the new one, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Replaces the file at `path` by `content`, readable and writable by its owner only.
///
/// It is on disk when this returns.
///
/// # Errors
///
/// What the file system says; the old file is as it was then.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = directory_of(path)?;
    let file = new_file(directory, content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Replaces the file at `path` by `content`, like [`write_atomically`], but leaves it to the
/// system when it is on disk.
///
/// For what changes every second and is of no use after a crash.
///
/// # Errors
///
/// What the file system says; the old file is as it was then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = new_file(directory_of(path)?, content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Appends lines to the file at `path`, made readable and writable by its owner only. What a crash
/// left of a line before is ended first.
///
/// It is on disk when this returns.
///
/// # Errors
///
/// What the file system says; a part of it may have been written.
pub fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.create(true).read(true).append(true).mode(0o600).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last == [b'\n'] {
        file.write_all(lines)?;
    } else {
        file.write_all(&[b"\n", lines].concat())?;
    }
    file.sync_all()
}

/// The end of the file at `path`, at most `longest` bytes; nothing if it is not there.
///
/// # Errors
///
/// What the file system says.
pub fn read_end(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(longest)))?;
    let mut text = Vec::new();
    file.take(longest).read_to_end(&mut text)?;
    Ok(text)
}

/// Reads a JSON file; `None` if it is not there or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Opens the file at `path` to be read, where somebody else may have put something in its place: a
/// link is not followed, and what is no file, say a pipe that nobody writes, is not waited for.
///
/// # Errors
///
/// What the file system says, or that it is no file.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a file")),
    }
}

/// Takes the lock on the file at `path`, which is made if it is not there, until the answer is
/// dropped; nothing if somebody else has it now.
///
/// # Errors
///
/// What the file system says.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A file with this content that nobody finds yet.
fn new_file(directory: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_whole_lines_and_reads_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        assert_eq!(read_end(&path, 10).expect("nothing is there"), b"");
        append(&path, b"one\n").expect("written");
        append(&path, b"two\nto").expect("written");
        append(&path, b"three\n").expect("written");
        assert_eq!(fs::read(&path).expect("a file"), b"one\ntwo\nto\nthree\n");
        assert_eq!(read_end(&path, 100).expect("read"), b"one\ntwo\nto\nthree\n");
        assert_eq!(read_end(&path, 8).expect("read"), b"o\nthree\n");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let none = directory.path().join("none/file");
        assert!(append(&none, b"").is_err() && read_end(directory.path(), 1).is_err());
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), b"text").expect("written");
        assert!(open_plain(&at("file")).is_ok());
        std::os::unix::fs::symlink(at("file"), at("link")).expect("linked");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), pipe, mode, 0).expect("made");
        for name in ["link", "pipe", ".", "none"] {
            assert!(open_plain(&at(name)).is_err(), "{name}");
        }
    }

    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

    #[test]
    fn a_lock_is_held_by_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let mine = try_lock(&path).expect("a lock").expect("it is free");
        assert!(try_lock(&path).expect("a lock").is_none());
        drop(mine);
        // A process that another test starts right now has it, too, until it runs its program.
        let free = || try_lock(&path).expect("a lock").is_some();
        assert!((0..1000).any(|_| free() || {
            std::thread::sleep(PAUSE);
            false
        }));
        assert!(try_lock(&directory.path().join("none/lock")).is_err());
    }

    #[test]
    fn replaces_a_file_or_leaves_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        write_atomically(&path, b"old").expect("written");
        write_atomically(&path, b"new").expect("written");
        assert_eq!(fs::read(&path).expect("a file"), b"new");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1);
        replace(&path, b"newest").expect("written");
        assert_eq!(fs::read(&path).expect("a file"), b"newest");
        assert!(write_atomically(&directory.path().join("none/file"), b"").is_err());
    }
}
