//! Tablespaces that are newer than the backup: the WAL creates each in the directory where it was.
//!
//! ```text
//! newer          owner.json, and the links of the cluster that is replaced: before the fetch
//! check_newer    whether each directory is there, or can be made: before the fetch
//! make_newer     the directory; a mapped one has a link at its old place: before the replay
//! settle_newer   pg_tblspc leads to the mapped directory, and the link goes: after the replay
//! ```
//!
//! PostgreSQL takes the path out of the WAL, and nothing can tell it another one. A symbolic link
//! there leads it to the mapped directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nrt_core::restore::Refusal;
use nrt_core::restore::plan::Recovery;
use rustix::fs::{Access, access};
use rustix::process::geteuid;

use super::Run;
use super::place::{self, Begun, Existing, unusable};
use super::planning::Planned;

/// A tablespace that the backup does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Newer {
    id: String,
    /// Where the WAL creates it.
    path: PathBuf,
    /// Where it is to be.
    place: PathBuf,
}

impl Newer {
    /// Whether an option's name means it.
    pub(super) fn is(&self, name: &str) -> bool {
        self.id == name || self.path == Path::new(name)
    }
}

impl Run<'_> {
    /// The tablespaces that the server had last, and the backup has not.
    pub(super) fn newer(&self, planned: &Planned, begun: Option<&Begun>) -> Vec<Newer> {
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        let system = &planned.plan.system_identifier;
        if let Some(owner) = planned.owner.as_ref().filter(|it| it.system_identifier == *system) {
            let told = owner.tablespaces.iter();
            found.extend(told.map(|(id, path)| (id.to_string(), PathBuf::from(path))));
        }
        if planned.shelf.pg_wal.is_some() {
            let aside = begun.and_then(|it| it.aside.clone());
            found.extend(place::links(aside.as_ref().unwrap_or(&self.request.data)));
        }
        let known = planned.manifest.as_ref().map_or(&[][..], |it| &it.tablespaces);
        found.retain(|id, path| path.is_absolute() && !known.iter().any(|it| it.id == *id));
        let newer = found.into_iter().map(|(id, path)| {
            let place = self.mapped(&id, &path).unwrap_or_else(|| path.clone());
            Newer { id, path, place }
        });
        newer.collect()
    }

    /// Where the operator wants a tablespace of this id and path.
    fn mapped(&self, id: &str, path: &Path) -> Option<PathBuf> {
        let mut maps = self.request.tablespaces.iter();
        let of = |name: &str| name == id || Path::new(name) == path;
        maps.find(|(name, _)| of(name)).map(|(_, place)| place.clone())
    }

    /// Refuses a plan whose replay creates a tablespace where none can be. Where it may stop before
    /// that, the plan warns.
    pub(super) fn check_newer(
        &self,
        planned: &mut Planned,
        begun: Option<&Begun>,
    ) -> Result<(), Refusal> {
        // Those of a drill would be the original's own, which refuses by itself.
        if self.request.tablespaces_below.is_some() {
            return Ok(());
        }
        let owners = match (begun, self.request.existing) {
            (Some(begun), _) => begun.owners(),
            (None, Existing::Refuse) => Vec::new(),
            (None, Existing::Replace | Existing::Delta) => vec![self.request.data.clone()],
        };
        for newer in self.newer(planned, begun) {
            let Newer { id, path, place } = &newer;
            let words = format!(
                "tablespace {id} in \"{}\" was created after the backup {}",
                path.display(),
                planned.plan.backup
            );
            match trouble(&newer, &owners)? {
                None => planned
                    .plan
                    .warnings
                    .push(format!("{words}: the WAL creates it anew, in \"{}\"", place.display())),
                Some((what, _)) if planned.plan.recovery != Recovery::End => {
                    planned.plan.warnings.push(format!(
                        "{words}: {what}, and the replay ends there if it comes to its creation"
                    ));
                }
                Some((what, hint)) => {
                    return Err(Refusal::new(format!("{words}: {what}"), hint));
                }
            }
        }
        Ok(())
    }

    /// Makes the directories that the replay of the WAL needs.
    pub(super) fn make_newer(&self, newer: &[Newer]) -> Result<(), Refusal> {
        newer.iter().try_for_each(|it| make(&it.path, &it.place))
    }

    /// Makes the directory that PostgreSQL has missed at the record that creates a tablespace.
    pub(super) fn make_missed(&self, newer: &[Newer], path: &Path) -> Result<(), Refusal> {
        let known = newer.iter().find(|it| it.path == path).map(|it| it.place.clone());
        // No id is known of it.
        let place = known.or_else(|| self.mapped("", path));
        make(path, place.as_deref().unwrap_or(path))
    }

    /// Leads the recovered cluster's links to mapped directories, and removes the links at the old
    /// places. Its server does not run.
    pub(super) fn settle_newer(&self, planned: &Planned) -> Result<(), Refusal> {
        let known = planned.manifest.as_ref().map_or(&[][..], |it| &it.tablespaces);
        for (id, path) in place::links(&self.request.data) {
            let mapped = self.mapped(&id, &path).filter(|place| *place != path);
            let Some(place) = mapped.filter(|_| !known.iter().any(|it| it.id == id)) else {
                continue;
            };
            place::lead(&self.request.data, &id, &place)?;
            if fs::read_link(&path).is_ok_and(|it| it == place) {
                // Root may have made it: it does no harm.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

/// Why the WAL could not create a tablespace, and what to do about it.
fn trouble(newer: &Newer, owners: &[PathBuf]) -> Result<Option<(String, String)>, Refusal> {
    let Newer { id, path, place } = newer;
    let user = geteuid().as_raw();
    let make_place = format!("install -d -m 0700 -o {user} '{}'", place.display());
    let other = format!("--tablespace-map {id}=/DIRECTORY has it elsewhere");
    if let Ok(found) = fs::metadata(place) {
        if !found.is_dir() {
            let what = format!("\"{}\" is no directory", place.display());
            return Ok(Some((
                what,
                format!("Move it away, or restore with another place: {other}."),
            )));
        }
        if found.uid() != user {
            let what = format!("\"{}\" belongs to another user", place.display());
            return Ok(Some((what, format!("As root: chown {user} '{}'.", place.display()))));
        }
        if !place::is_free(place, owners)? {
            let what = format!("\"{}\" is not empty", place.display());
            return Ok(Some((what, format!("{other}, in an empty one."))));
        }
    } else if !can_be_made(place) {
        let what = format!("\"{}\" is not here and cannot be made", place.display());
        return Ok(Some((what, format!("As root: {make_place}. Or {other}."))));
    }
    if path == place || fs::read_link(path).is_ok_and(|it| it == *place) {
        return Ok(None);
    }
    let link = format!("ln -s '{}' '{}'", place.display(), path.display());
    if fs::symlink_metadata(path).is_ok() {
        let what =
            format!("\"{}\" is there, where a link to its new place is needed", path.display());
        return Ok(Some((what, format!("Move it away; as root, if need be: {link}."))));
    }
    if !can_be_made(path) {
        let what = format!("a link from \"{}\" to its new place cannot be made", path.display());
        let above = path.parent().unwrap_or(path).display();
        return Ok(Some((what, format!("As root: mkdir -p '{above}'; {link}."))));
    }
    Ok(None)
}

/// Whether this user can make something of this name.
fn can_be_made(path: &Path) -> bool {
    let above = path.ancestors().skip(1).find(|it| it.exists());
    above.is_some_and(|it| it.is_dir() && access(it, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

fn make(path: &Path, place: &Path) -> Result<(), Refusal> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(place);
    made.map_err(|error| cannot(place, &error))?;
    if path == place || fs::read_link(path).is_ok_and(|it| it == place) {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(above);
        made.map_err(|error| cannot(above, &error))?;
    }
    symlink(place, path).map_err(|error| unusable(path, &error))
}

fn cannot(directory: &Path, error: &io::Error) -> Refusal {
    let user = geteuid().as_raw();
    Refusal::new(
        format!(
            "the WAL creates a tablespace in \"{}\", which is not here and cannot be made: {error}",
            directory.display()
        ),
        format!(
            "As root: install -d -m 0700 -o {user} '{}'. The same command goes on then.",
            directory.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_wal_cannot_create_is_known_before() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        let newer =
            |path: &str, place: &str| Newer { id: "7".into(), path: at(path), place: at(place) };
        let words = |path: &str, place: &str| {
            let found = trouble(&newer(path, place), &[]).expect("it is looked at");
            found.map(|(what, hint)| format!("{what}. {hint}")).unwrap_or_default()
        };
        assert_eq!(words("old", "old"), "");
        assert_eq!(words("deep/old", "new"), "");
        fs::create_dir(at("empty")).expect("made");
        assert_eq!(words("empty", "empty"), "");
        assert_eq!(words("old", "empty"), "");
        assert!(words("empty", "new").contains("ln -s"), "a directory is in the way of the link");
        fs::write(at("file"), "").expect("written");
        assert!(words("file", "file").contains("is no directory"));
        assert!(words("file/below", "file/below").contains("install -d -m 0700"));
        assert!(words("file/below", "new").contains("ln -s"));
        fs::write(at("empty/x"), "").expect("written");
        assert!(words("empty", "empty").contains("--tablespace-map 7="));
    }

    #[test]
    fn a_mapped_tablespace_is_reached_by_its_old_path() {
        let root = tempfile::tempdir().expect("a directory");
        let (path, place) = (root.path().join("mnt/old"), root.path().join("new"));
        for _ in 0..2 {
            make(&path, &place).expect("made");
            assert_eq!(fs::canonicalize(&path).ok(), fs::canonicalize(&place).ok());
            make(&place, &place).expect("there");
        }
    }
}
