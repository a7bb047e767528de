//! Gives the server's user the directories that it needs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nrt_core::restore::Refusal;
use nrt_process::files::write_atomically;
use rustix::process::geteuid;

use super::BASE;
use nrt_restore::unusable;

/// Who the server runs as.
#[derive(Debug)]
pub(super) struct User {
    /// `None` if this process is the user already, and cannot give anything to another one.
    ids: Option<(u32, u32)>,
}

impl User {
    /// `postgres`, if this is root; whoever this is, else.
    ///
    /// # Errors
    ///
    /// If there is no such user.
    pub(super) fn find() -> Result<User, Refusal> {
        if !geteuid().is_root() {
            return Ok(User { ids: None });
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        match ids(&users, "postgres") {
            Some(ids) => Ok(User { ids: Some(ids) }),
            None => Err(Refusal::new("there is no user \"postgres\" in this image", BASE)),
        }
    }

    /// Makes a directory that is this user's alone, with all that is in it.
    pub(super) fn make(&self, directory: &Path) -> Result<(), Refusal> {
        // Those above it are everybody's, as the image's own are.
        let made = fs::create_dir_all(directory.parent().unwrap_or(directory));
        let made = made.and_then(|()| match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        });
        let given = made.and_then(|()| match self.ids {
            // A volume that another user had.
            Some(ids) if fs::metadata(directory)?.uid() != ids.0 => give(directory, ids),
            Some(_) => Ok(()),
            None => tempfile::tempfile_in(directory).map(drop),
        });
        given.map_err(|error| {
            Refusal::new(
                format!("\"{}\" cannot be used by the server: {error}", directory.display()),
                format!(
                    "Give it to user {} (chown), or start the container as root, which does.",
                    self.ids.map_or(geteuid().as_raw(), |it| it.0)
                ),
            )
        })
    }

    /// Writes a file of mode 0600.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), Refusal> {
        let written = write_atomically(path, text.as_bytes()).and_then(|()| match self.ids {
            Some((user, group)) => lchown(path, Some(user), Some(group)),
            None => Ok(()),
        });
        written.map_err(|error| unusable(path, &error))
    }

    /// Has a program run as this user.
    pub(super) fn run<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        match self.ids {
            // Without root's groups, too.
            Some((user, group)) => program.uid(user).gid(group),
            None => program,
        }
    }
}

/// The numbers of a user and its group.
fn ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_meant = fields.next() == Some(name);
        let mut numbers = fields.skip(1).map(|it| it.parse().ok());
        is_meant.then_some((numbers.next()??, numbers.next()??))
    })
}

fn give(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), (user, group))?;
        }
    }
    lchown(path, Some(user), Some(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_name() {
        let users = "root:x:0:0::/root:/bin/sh\npostgres:x:999:998::/var/lib/postgresql:/bin/sh\n";
        assert_eq!(ids(users, "postgres"), Some((999, 998)));
        assert_eq!(ids(users, "post"), None);
        assert_eq!(ids("postgres:x:a:b\n", "postgres"), None);
    }
}
