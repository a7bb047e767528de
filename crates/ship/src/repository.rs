//! Looks at the local pgBackRest repository: the truth about backups.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nrt_core::inventory::Failure;
use nrt_core::offsite::Plan;
use nrt_core::offsite::expiry::Retention;
use nrt_core::pgbackrest::archive::StoredName;
use nrt_core::pgbackrest::backup_info::parse_backup_info;
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_core::pgbackrest::names::valid_label;

use nrt_core::pgbackrest::own;

/// A directory that was changed so recently may be changed again within the same tick of the
/// file system's clock.
const TICK: Duration = Duration::from_secs(2);

/// Where the repository is on this machine.
///
/// # Errors
///
/// If the operator's own configuration keeps it elsewhere.
pub(crate) fn directory(plan: &Plan) -> Result<PathBuf, Failure> {
    let Some(config) = &plan.own_config else { return Ok(PathBuf::from(&plan.repository)) };
    let text = fs::read_to_string(config).unwrap_or_default();
    own::local_repository(&text, &plan.stanza).map(PathBuf::from).ok_or_else(|| Failure {
        message: format!("the repository of \"{config}\" is not a directory of this machine"),
        hint: "Only a local repository can be mirrored: let repo1 be one, or let pgBackRest \
               alone write to its own remote and remove nrt_backup.rclone_config."
            .to_string(),
    })
}

/// Whether the operator's own configuration has pgBackRest encrypt the repository.
pub(crate) fn will_be_encrypted(plan: &Plan) -> bool {
    let text = plan.own_config.as_ref().and_then(|config| fs::read_to_string(config).ok());
    let cipher = own::backup_option(&text.unwrap_or_default(), &plan.stanza, "repo1-cipher-type");
    cipher.is_some_and(|cipher| cipher != "none")
}

/// What tells one version of a file from the next: pgBackRest replaces its info files as a whole.
pub(crate) type Stamp = (u64, SystemTime, u64);

/// The stamps of both info files; `None` if one of them is not there.
pub(crate) fn stamp(repository: &Path, stanza: &str) -> Option<[Stamp; 2]> {
    let of = |kind: &str| {
        let path = repository.join(kind).join(stanza).join(format!("{kind}.info"));
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?, metadata.len()))
    };
    Some([of("archive")?, of("backup")?])
}

/// The files that change, as they are at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    /// The archive's.
    pub(crate) archive: Vec<u8>,
    /// The backups'.
    pub(crate) backup: Vec<u8>,
}

/// Why there are no info files that could go up.
#[derive(Debug)]
pub(crate) enum NoInfo {
    /// They cannot be read.
    Unreadable(io::Error),
    /// Neither this file nor its copy is what pgBackRest wrote.
    Damaged(PathBuf),
}

impl From<io::Error> for NoInfo {
    fn from(error: io::Error) -> NoInfo {
        NoInfo::Unreadable(error)
    }
}

impl From<NoInfo> for Failure {
    fn from(problem: NoInfo) -> Failure {
        match problem {
            NoInfo::Unreadable(error) => Failure {
                message: format!("the repository cannot be read: {error}"),
                hint: "See that its file system is there and can be read.".to_string(),
            },
            NoInfo::Damaged(path) => Failure {
                message: format!(
                    "\"{}\" and its copy are damaged in the repository: nothing is replaced on \
                     the remote; WAL is still shipped",
                    path.display()
                ),
                hint:
                    "Run \"nrt-backup check --repair\", which takes the remote's file where that \
                       is whole."
                        .to_string(),
            },
        }
    }
}

impl Info {
    /// Reads both, each proved by its checksum; `None` while there is no stanza. Like pgBackRest, takes
    /// the copy where the file itself is missing or damaged.
    pub(crate) fn read(repository: &Path, stanza: &str) -> Result<Option<Info>, NoInfo> {
        let archive = proved(&info_path(repository, stanza, "archive"))?;
        let backup = proved(&info_path(repository, stanza, "backup"))?;
        Ok(archive.zip(backup).map(|(archive, backup)| Info { archive, backup }))
    }

    /// Whether pgBackRest encrypts the repository.
    pub(crate) fn is_encrypted(&self) -> bool {
        integrity(&self.backup) == Integrity::Encrypted
    }

    /// The labels that it lists, unless it is encrypted.
    pub(crate) fn labels(&self) -> Option<BTreeSet<String>> {
        (!self.is_encrypted()).then(|| labels_in(&self.backup))
    }
}

/// The path of one of the info files.
pub(crate) fn info_path(repository: &Path, stanza: &str, kind: &str) -> PathBuf {
    repository.join(kind).join(stanza).join(format!("{kind}.info"))
}

/// The labels that a `backup.info` lists.
pub(crate) fn labels_in(info: &[u8]) -> BTreeSet<String> {
    let listed = parse_backup_info(&String::from_utf8_lossy(info));
    listed.into_iter().map(|it| it.label).collect()
}

/// An info file or its copy: the first of the two that is whole. `None` if there is neither.
fn proved(path: &Path) -> Result<Option<Vec<u8>>, NoInfo> {
    let mut is_there = false;
    for path in [path.to_path_buf(), path.with_extension("info.copy")] {
        if let Some(content) = read(&path)? {
            is_there = true;
            if integrity(&content) != Integrity::Damaged {
                return Ok(Some(content));
            }
        }
    }
    if is_there { Err(NoInfo::Damaged(path.to_path_buf())) } else { Ok(None) }
}

/// What pgBackRest keeps in the repository when it expires backups. What one of these lets go may be
/// gone there.
pub(crate) fn retentions(plan: &Plan) -> Vec<Retention> {
    match &plan.own_config {
        None => vec![Retention::of_days(plan.retention_days)],
        Some(config) => {
            // Where it cannot be read, nothing expires.
            let text = fs::read_to_string(config).unwrap_or_default();
            Retention::of_configuration(&text, &plan.stanza).into()
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(path, &error)),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The names in a directory; none if it is not there.
pub(crate) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(named(directory, &error)),
    };
    let names = entries.map(|entry| entry.map(|it| it.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<Vec<String>>>().map_err(|error| named(directory, &error))
}

/// The backups that are finished: they have a manifest.
pub(crate) fn finished(repository: &Path, stanza: &str) -> io::Result<BTreeSet<String>> {
    let directory = repository.join("backup").join(stanza);
    let labels = names(&directory)?.into_iter().filter(|name| valid_label(name));
    Ok(labels.filter(|label| has_manifest(&directory.join(label))).collect())
}

/// Whether the backup in a directory is finished.
pub(crate) fn has_manifest(directory: &Path) -> bool {
    directory.join("backup.manifest").is_file()
}

/// Whether the repository has ever held a backup: it keeps the manifests of those that it expired.
pub(crate) fn has_held(repository: &Path, stanza: &str, label: &str) -> bool {
    let backups = repository.join("backup").join(stanza);
    let Some(year) = label.get(0..4) else { return false };
    let history = backups.join("backup.history").join(year);
    has_manifest(&backups.join(label))
        || names(&history).is_ok_and(|names| {
            names.iter().any(|name| name.starts_with(&format!("{label}.manifest")))
        })
}

/// Every file of a finished backup with its size, below its directory. What pgBackRest itself does
/// not need is left out.
pub(crate) fn files_of(directory: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    let mut open = vec![(directory.to_path_buf(), String::new())];
    while let Some((directory, prefix)) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(|error| named(&directory, &error))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            let path = format!("{prefix}{name}");
            if kind.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if kind.is_file() && !left_out(&name) {
                files.insert(path, entry.metadata()?.len());
            }
        }
    }
    Ok(files)
}

/// What is not mirrored: unfinished files, and the second copy of a manifest.
pub(crate) fn left_out(name: &str) -> bool {
    name.ends_with(".pgbackrest.tmp") || name == "backup.manifest.copy"
}

/// The archive as it was found last. Only directories that have changed are read again.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    directories: BTreeMap<String, (SystemTime, Vec<String>)>,
    /// Directories of which not all is known to be on the remote.
    changed: BTreeSet<String>,
}

impl Archive {
    /// Reads what has changed.
    pub(crate) fn read(&mut self, root: &Path) -> io::Result<()> {
        let mut seen = BTreeSet::new();
        for id in names(root)? {
            if !root.join(&id).is_dir() {
                continue;
            }
            self.read_one(root, &id)?;
            seen.insert(id.clone());
            let groups: Vec<String> = match self.directories.get(&id) {
                Some((_, names)) => names.iter().filter(|it| is_group(it)).cloned().collect(),
                None => Vec::new(),
            };
            for group in groups {
                let path = format!("{id}/{group}");
                self.read_one(root, &path)?;
                seen.insert(path);
            }
        }
        self.directories.retain(|path, _| seen.contains(path));
        self.changed.retain(|path| seen.contains(path));
        Ok(())
    }

    /// The identifiers of its archives, and what lies below them.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        self.directories.keys()
    }

    /// The directories that have changed, with the names in them.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.changed.iter().filter_map(|path| {
            let (_, names) = self.directories.get(path)?;
            Some((path, names))
        })
    }

    /// All that was changed is on the remote.
    pub(crate) fn all_is_there(&mut self) {
        self.changed.clear();
    }

    fn read_one(&mut self, root: &Path, path: &str) -> io::Result<()> {
        let directory = root.join(path);
        // The time first: what comes while the directory is read makes it a newer one.
        let changed = match fs::metadata(&directory).and_then(|it| it.modified()) {
            Ok(changed) => changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(named(&directory, &error)),
        };
        if self.directories.get(path).is_some_and(|(known, _)| *known == changed) {
            return Ok(());
        }
        let mut names = names(&directory)?;
        names.retain(|name| !left_out(name));
        names.sort();
        let settled = changed.elapsed().is_ok_and(|age| age > TICK);
        let known = if settled { changed } else { SystemTime::UNIX_EPOCH };
        self.directories.insert(path.to_string(), (known, names));
        self.changed.insert(path.to_string());
        Ok(())
    }
}

/// Whether the archive in a directory holds a segment.
pub(crate) fn holds(archive: &Path, segment: &str) -> bool {
    let Some(group) = segment.get(0..16) else { return false };
    let ids = names(archive).unwrap_or_default();
    ids.iter().any(|id| {
        let files = names(&archive.join(id).join(group)).unwrap_or_default();
        let stored = files.iter().filter_map(|name| StoredName::parse(name));
        stored.filter(|it| !it.is_partial).any(|it| it.segment == segment)
    })
}

/// Whether a name is that of a directory of up to 256 segments.
pub(crate) fn is_group(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|it| it.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels() {
        let info =
            b"[backrest]\nbackrest-format=5\n\n[backup:current]\n20261122-010203F={\"a\":1}\n\
            20261122-010203F_20261122-020304I={\"x\":\"[db]\"}\nnonsense={}\n\n[db]\ndb-id=1\n";
        let info = Info { archive: Vec::new(), backup: info.to_vec() };
        let labels: Vec<String> = info.labels().expect("plain").into_iter().collect();
        assert_eq!(labels, ["20261122-010203F", "20261122-010203F_20261122-020304I"]);
        assert!(Info { archive: Vec::new(), backup: b"Salted__x".to_vec() }.labels().is_none());
    }

    #[test]
    fn reads_only_what_has_changed() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("15-1/0000000100000000");
        fs::create_dir_all(&group).expect("made");
        fs::write(root.path().join("archive.info"), "x").expect("written");
        fs::write(group.join("a"), "x").expect("written");
        fs::write(group.join("b.pgbackrest.tmp"), "x").expect("written");
        let mut archive = Archive::default();
        let names = |archive: &mut Archive| {
            archive.read(root.path()).expect("read");
            let found = archive.changed().find(|(path, _)| *path == "15-1/0000000100000000");
            let names = found.map(|(_, names)| names.clone()).unwrap_or_default();
            archive.all_is_there();
            names
        };
        assert_eq!(names(&mut archive), ["a"]);
        fs::write(group.join("c"), "x").expect("written");
        assert_eq!(names(&mut archive), ["a", "c"]);
        // Long ago, so that a directory that has not changed is not read again.
        let long_ago = SystemTime::now() - 10 * TICK;
        fs::File::open(&group).and_then(|it| it.set_modified(long_ago)).expect("set");
        assert_eq!(names(&mut archive), ["a", "c"]);
        assert!(names(&mut archive).is_empty());
        let segment = "000000010000000000000003";
        let stored = format!("{segment}-0123456789012345678901234567890123456789.zst");
        for half in ["pgbackrest.tmp", "a1b2c3d4.partial"] {
            fs::write(group.join(format!("{stored}.{half}")), "x").expect("written");
        }
        assert!(!holds(root.path(), segment));
        fs::write(group.join(stored), "x").expect("written");
        assert!(holds(root.path(), segment));
        fs::remove_dir_all(&group).expect("removed");
        assert!(names(&mut archive).is_empty());
    }

    #[test]
    fn knows_what_a_repository_has_held() {
        let root = tempfile::tempdir().expect("a directory");
        let backups = root.path().join("backup/main");
        fs::create_dir_all(backups.join("backup.history/2026")).expect("made");
        let expired = "20260101-000000F";
        let manifest = format!("backup.history/2026/{expired}.manifest.gz");
        fs::write(backups.join(manifest), "x").expect("written");
        fs::create_dir_all(backups.join("20260102-000000F/pg_data")).expect("made");
        assert!(has_held(root.path(), "main", expired));
        assert!(!has_held(root.path(), "main", "20260102-000000F"));
        assert!(finished(root.path(), "main").expect("read").is_empty());
        fs::write(backups.join("20260102-000000F/backup.manifest"), "xx").expect("written");
        fs::write(backups.join("20260102-000000F/pg_data/1.zst"), "x").expect("written");
        assert!(has_held(root.path(), "main", "20260102-000000F"));
        let files = files_of(&backups.join("20260102-000000F")).expect("read");
        let expected = [("backup.manifest".to_string(), 2), ("pg_data/1.zst".to_string(), 1)];
        assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    }
}
