//! Writes files so that a crash leaves the old one or the new one, never a part.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces the file at `path` by `content`, readable and writable by its owner only.
///
/// It is on disk when this returns.
///
/// # Errors
///
/// What the file system says; the old file is as it was then.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(content)?;
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
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
