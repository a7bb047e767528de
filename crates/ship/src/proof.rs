//! Judges the files of a backup on both sides, here and on the remote, by the backup's manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use nrt_core::inventory::Failure;
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_core::pgbackrest::manifest::{OwnFile, Part, own_files};
use sha1::{Digest, Sha1};

use super::repository::files_of;
use nrt_remote::segment::{Proof, unpacked, written};
use nrt_remote::{Remote, failure};

/// The name of a backup's manifest.
pub(crate) const MANIFEST: &str = "backup.manifest";

/// A manifest, as one side holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// There is none.
    Absent,
    /// It is cut off, empty or changed.
    Damaged,
    /// It is encrypted: which files the backup needs cannot be read.
    Encrypted,
    /// It is what pgBackRest wrote, and names these files.
    Whole(BTreeMap<String, OwnFile>),
}

impl Manifest {
    /// The manifest with a content, of the backup `label`.
    pub(crate) fn of(content: Option<&[u8]>, label: &str) -> Manifest {
        let Some(content) = content else { return Manifest::Absent };
        match integrity(content) {
            Integrity::Damaged => Manifest::Damaged,
            Integrity::Encrypted => Manifest::Encrypted,
            Integrity::Whole => {
                Manifest::Whole(own_files(&String::from_utf8_lossy(content), label))
            }
        }
    }

    /// The manifest in the directory of a backup on this machine.
    pub(crate) fn here(directory: &Path, label: &str) -> io::Result<Manifest> {
        match fs::read(directory.join(MANIFEST)) {
            Ok(content) => Ok(Manifest::of(Some(&content), label)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Manifest::Absent),
            Err(error) => Err(error),
        }
    }
}

/// Which side's file is damaged or missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The repository's on this machine. The remote's is whole.
    Here,
    /// The remote's. The repository's is whole.
    There,
    /// Both.
    Both,
    /// They differ, and nothing tells which one is right.
    Unknown,
}

impl Side {
    /// The side, as a message names it after a file's path.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Side::Here => "damaged or missing in the repository, whole on the remote",
            Side::There => "damaged on the remote, whole in the repository",
            Side::Both => "damaged or missing in the repository and on the remote",
            Side::Unknown => "not the same in the repository and on the remote",
        }
    }
}

/// A backup, judged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Files that are whole here, and missing or cut off on the remote.
    pub(crate) to_send: Vec<String>,
    /// Whether the manifest is such a file.
    pub(crate) sends_manifest: bool,
    /// Files that are damaged. The empty path is the whole directory, missing here.
    pub(crate) damage: BTreeMap<String, Side>,
    /// Files here that no manifest names, of another size on the remote.
    pub(crate) left_alone: BTreeSet<String>,
}

impl Judged {
    /// Whether the remote holds all that the backup needs.
    pub(crate) fn is_there(&self) -> bool {
        self.to_send.is_empty() && !self.sends_manifest && self.can_be_there()
    }

    /// Whether it will, once all is sent that can be.
    pub(crate) fn can_be_there(&self) -> bool {
        !self.damage.values().any(|side| matches!(side, Side::Both | Side::There))
    }
}

/// Judges the backup `label` in `directory` on this machine, of which the remote holds the files
/// `there`, with their sizes. `get_manifest` reads the remote's manifest.
///
/// The order of belief: a manifest with pgBackRest's checksum, this machine's first; then sizes. A
/// backup whose manifest is on the remote is finished there, so a file is sent there again only
/// if its content here is proved.
pub(crate) fn judge(
    directory: &Path,
    label: &str,
    there: &BTreeMap<String, u64>,
    get_manifest: impl Fn() -> Result<Option<Vec<u8>>, Failure>,
) -> Result<Judged, Failure> {
    let unreadable = |error: io::Error| Failure {
        message: format!("\"{}\" cannot be read: {error}", directory.display()),
        hint: "See that the repository's file system is there and can be read.".to_string(),
    };
    let here = match files_of(directory) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(unreadable(error)),
    };
    let manifest = Manifest::here(directory, label).map_err(unreadable)?;
    let size_there = there.get(MANIFEST);
    let mut judged = Judged::default();
    let same_size = size_there.is_some() && size_there == here.get(MANIFEST);
    let files = match (manifest, size_there) {
        (Manifest::Whole(files), None) => {
            judged.sends_manifest = true;
            Some(files)
        }
        (Manifest::Whole(files), Some(_)) => {
            if !same_size {
                match Manifest::of(get_manifest()?.as_deref(), label) {
                    Manifest::Absent | Manifest::Damaged => judged.sends_manifest = true,
                    Manifest::Encrypted | Manifest::Whole(_) => {
                        judged.damage.insert(MANIFEST.to_string(), Side::Unknown);
                    }
                }
            }
            Some(files)
        }
        (Manifest::Encrypted, None) => {
            judged.sends_manifest = true;
            None
        }
        (Manifest::Encrypted, Some(_)) => {
            if !same_size {
                judged.damage.insert(MANIFEST.to_string(), Side::Unknown);
            }
            None
        }
        (Manifest::Absent | Manifest::Damaged, None) => {
            judged.damage.insert(MANIFEST.to_string(), Side::Both);
            return Ok(judged);
        }
        (own @ (Manifest::Absent | Manifest::Damaged), Some(_)) => {
            let other = Manifest::of(get_manifest()?.as_deref(), label);
            let is_whole = matches!(other, Manifest::Encrypted | Manifest::Whole(_));
            let side = if is_whole { Side::Here } else { Side::Both };
            if own == Manifest::Absent && is_whole {
                judged.damage.insert(String::new(), side);
                // Of the directory nothing else is to be said but what the remote lacks of it.
                if let Manifest::Whole(files) = other {
                    let lacks = |(path, own): &(String, OwnFile)| {
                        !there.get(path).is_some_and(|bytes| own.has_size(*bytes))
                    };
                    let lacking = files.into_iter().filter(lacks);
                    judged.damage.extend(lacking.map(|(path, _)| (path, Side::Both)));
                }
                return Ok(judged);
            }
            judged.damage.insert(MANIFEST.to_string(), side);
            match other {
                Manifest::Whole(files) => Some(files),
                _ => None,
            }
        }
    };
    // What its manifest closes is finished.
    let is_finished_there = size_there.is_some() && !judged.sends_manifest;
    match files {
        Some(files) => {
            judged.by_manifest(directory, &files, &here, there, is_finished_there);
        }
        None => judged.by_size(&here, there, is_finished_there),
    }
    Ok(judged)
}

impl Judged {
    fn by_manifest(
        &mut self,
        directory: &Path,
        files: &BTreeMap<String, OwnFile>,
        here: &BTreeMap<String, u64>,
        there: &BTreeMap<String, u64>,
        is_finished_there: bool,
    ) {
        for (path, own) in files {
            let right = |side: &BTreeMap<String, u64>| {
                side.get(path).is_some_and(|bytes| own.has_size(*bytes))
            };
            let side = match (right(here), right(there)) {
                (true, true) if here.get(path) == there.get(path) => continue,
                (true, true) => Side::Unknown,
                (true, false)
                    if is_finished_there && prove(&directory.join(path), own) == Proof::Broken =>
                {
                    Side::Both
                }
                (true, false) => {
                    self.to_send.push(path.clone());
                    continue;
                }
                (false, true) => Side::Here,
                (false, false) => Side::Both,
            };
            self.damage.insert(path.clone(), side);
        }
        let unnamed = here.keys().filter(|path| !files.contains_key(*path) && *path != MANIFEST);
        // As with repo1-hardlink=y. A restore needs none of them, but pgBackRest put them there.
        self.to_send.extend(unnamed.filter(|path| !there.contains_key(*path)).cloned());
        let differs =
            |path: &str| there.get(path).is_some_and(|bytes| here.get(path) != Some(bytes));
        let unnamed = here.keys().filter(|path| !files.contains_key(*path) && *path != MANIFEST);
        self.left_alone = unnamed.filter(|path| differs(path)).cloned().collect();
    }

    /// Without a manifest that can be read, nothing tells which side is right but that one is empty
    /// or missing.
    fn by_size(
        &mut self,
        here: &BTreeMap<String, u64>,
        there: &BTreeMap<String, u64>,
        is_finished_there: bool,
    ) {
        let paths: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        for path in paths.into_iter().filter(|path| *path != MANIFEST) {
            let (own, other) = (here.get(path).copied(), there.get(path).copied());
            match (own, other) {
                (own, other) if own == other => {}
                (Some(_), None) => self.to_send.push(path.clone()),
                (Some(_), Some(_)) if !is_finished_there => self.to_send.push(path.clone()),
                // What a killed rclone has left under another name is nobody's.
                (None, _) if path.ends_with(".partial") => {}
                (None | Some(0), _) if is_finished_there => {
                    self.damage.insert(path.clone(), Side::Here);
                }
                (Some(_), _) => {
                    self.damage.insert(path.clone(), Side::Unknown);
                }
                (None, _) => {}
            }
        }
    }
}

/// Reads the manifest of a backup on the remote.
pub(crate) fn manifest_there(
    remote: &Remote,
    stanza: &str,
    label: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    let path = format!("repository/backup/{stanza}/{label}/{MANIFEST}");
    remote.get(&path).map_err(|it| failure(&format!("\"{path}\" cannot be read"), &it))
}

/// Compares a file with the checksums that the manifest has of its parts.
pub(crate) fn prove(file: &Path, own: &OwnFile) -> Proof {
    let Ok(mut opened) = File::open(file) else { return Proof::Unknown };
    match opened.metadata() {
        Ok(metadata) if own.has_size(metadata.len()) => {}
        Ok(_) => return Proof::Broken,
        Err(_) => return Proof::Unknown,
    }
    let mut proof = Proof::Whole;
    for part in &own.parts {
        match is_right(&mut opened, part) {
            Ok(Some(true)) => {}
            Ok(Some(false)) => return Proof::Broken,
            Ok(None) => proof = Proof::Unknown,
            Err(_) => return Proof::Broken,
        }
    }
    proof
}

/// Whether a part is what its checksum says; nothing if it has none.
fn is_right(file: &mut File, part: &Part) -> io::Result<Option<bool>> {
    file.seek(SeekFrom::Start(part.offset))?;
    let stored = io::BufReader::new(file.take(part.stored));
    let mut hasher = Sha1::new();
    let expected = match (&part.stored_checksum, &part.checksum) {
        (Some(expected), _) => {
            io::copy(&mut { stored }, &mut hasher)?;
            expected
        }
        (None, Some(expected)) if !part.is_in_blocks => {
            io::copy(&mut unpacked(&part.extension, stored)?.take(part.size + 1), &mut hasher)?;
            expected
        }
        (None, _) => return Ok(None),
    };
    Ok(Some(written(hasher) == *expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nrt_core::pgbackrest::ini::checksum;
    use nrt_remote::segment::hash_of;

    const LABEL: &str = "20261122-010203F";

    /// The manifest of a backup of one bundle, with two parts.
    fn manifest() -> String {
        let line = |name: &str, offset: usize, text: &str| {
            format!(
                "pg_data/{name}={{\"bni\":1,\"bno\":{offset},\"checksum\":\"x\",\"rck\":\"{}\",\
                 \"repo-size\":{},\"size\":100}}\n",
                hash_of(text.as_bytes()),
                text.len()
            )
        };
        let text = format!(
            "[backup]\nbackup-bundle=true\n\n[target:file]\n{}{}\n[target:path:default]\n\
             mode=\"0700\"\n",
            line("1", 0, "first"),
            line("2", 5, "second")
        );
        format!("{text}\n[backrest]\nbackrest-checksum=\"{}\"\n", checksum(&text))
    }

    /// Judges a backup: its bundle and manifest here, and the same there.
    fn judged(here: [Option<&str>; 2], there: [Option<&str>; 2]) -> Judged {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("bundle")).expect("made");
        let paths = ["bundle/1", MANIFEST];
        for (path, content) in paths.iter().zip(here) {
            if let Some(content) = content {
                fs::write(directory.path().join(path), content).expect("written");
            }
        }
        let sizes = paths
            .iter()
            .zip(there)
            .filter_map(|(path, content)| Some((path.to_string(), content?.len() as u64)));
        let manifest = there[1].map(|it| it.as_bytes().to_vec());
        judge(directory.path(), LABEL, &sizes.collect(), || Ok(manifest.clone())).expect("judged")
    }

    #[test]
    fn nothing_that_is_whole_there_is_sent_and_nothing_that_is_damaged_here() {
        let text = manifest();
        let (whole, cut) = ("firstsecond", "firstsec");
        let manifest = Some(text.as_str());
        let damage = |path: &str, side| BTreeMap::from([(path.to_string(), side)]);

        let all = judged([Some(whole), manifest], [Some(whole), manifest]);
        assert!(all.is_there() && all.damage.is_empty(), "{all:?}");
        // A new backup, and one of which a killed process has sent a part.
        for there in [[None, None], [Some(cut), None]] {
            let new = judged([Some(whole), manifest], there);
            assert!(new.sends_manifest && new.to_send == ["bundle/1"], "{new:?}");
            assert!(new.can_be_there() && !new.is_there());
        }
        // Cut off there, and missing there.
        for there in [Some(cut), None] {
            let lost = judged([Some(whole), manifest], [there, manifest]);
            assert!(!lost.sends_manifest && lost.to_send == ["bundle/1"], "{lost:?}");
        }
        // Cut off here.
        for here in [Some(cut), Some(""), None] {
            let cut = judged([here, manifest], [Some(whole), manifest]);
            assert_eq!(cut.damage, damage("bundle/1", Side::Here));
            assert!(cut.is_there(), "{cut:?}");
        }
        // The size is right, the content is not.
        let other = judged([Some("firstsecand"), manifest], [Some(cut), manifest]);
        assert_eq!(other.damage, damage("bundle/1", Side::Both));
        assert!(other.to_send.is_empty() && !other.can_be_there());
        let both = judged([Some(cut), manifest], [None, manifest]);
        assert_eq!(both.damage, damage("bundle/1", Side::Both));
        // Each of them has all that is needed.
        let longer = judged([Some("firstsecond!"), manifest], [Some(whole), manifest]);
        assert_eq!(longer.damage, damage("bundle/1", Side::Unknown));
    }

    #[test]
    fn a_manifest_is_proved_before_it_counts() {
        let text = manifest();
        let whole = Some("firstsecond");
        let (manifest, cut) = (Some(text.as_str()), Some(&text[..text.len() / 2]));
        for damaged in [cut, Some("")] {
            let here = judged([whole, damaged], [whole, manifest]);
            let expected = BTreeMap::from([(MANIFEST.to_string(), Side::Here)]);
            assert_eq!(here.damage, expected);
            assert!(here.is_there() && !here.sends_manifest, "{here:?}");
            let there = judged([whole, manifest], [whole, damaged]);
            assert!(there.sends_manifest && there.damage.is_empty(), "{there:?}");
            let both = judged([whole, damaged], [whole, damaged]);
            assert_eq!(both.damage[MANIFEST], Side::Both);
            assert!(!judged([whole, damaged], [None, None]).can_be_there());
        }
        let lost = judged([None, None], [whole, manifest]);
        assert_eq!(lost.damage, BTreeMap::from([(String::new(), Side::Here)]));
        assert!(lost.is_there());
    }

    #[test]
    fn without_a_manifest_to_read_nothing_finished_is_replaced() {
        let manifest = Some("Salted__12345678manifest");
        let new = judged([Some("data"), manifest], [Some("da"), None]);
        assert!(new.sends_manifest && new.to_send == ["bundle/1"], "{new:?}");
        let missing = judged([Some("data"), manifest], [None, manifest]);
        assert_eq!(missing.to_send, ["bundle/1"]);
        let side = |here, there| judged([here, manifest], [there, manifest]).damage["bundle/1"];
        assert_eq!(side(Some("da"), Some("data")), Side::Unknown);
        assert_eq!(side(Some(""), Some("data")), Side::Here);
        assert_eq!(side(None, Some("data")), Side::Here);
    }

    #[test]
    fn parts_are_proved_by_either_checksum() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("any");
        let content = b"some content".repeat(100);
        let packed = zstd::encode_all(&content[..], 1).expect("packed");
        let part = |stored: Option<String>, checksum: Option<String>, is_in_blocks| Part {
            name: "pg_data/1".to_string(),
            path: "any".to_string(),
            offset: 3,
            stored: packed.len() as u64,
            extension: ".zst".to_string(),
            size: content.len() as u64,
            checksum,
            stored_checksum: stored,
            is_in_blocks,
        };
        let bytes = [b"abc".as_slice(), &packed].concat();
        let prove = |bytes: &[u8], part| {
            fs::write(&file, bytes).expect("written");
            let size = 3 + packed.len() as u64;
            prove(&file, &OwnFile { size, is_exact: false, parts: vec![part] })
        };
        let (stored, plain) = (Some(hash_of(&packed)), Some(hash_of(&content)));
        let mut other = bytes.clone();
        other[20] ^= 1;
        for part in [part(stored.clone(), None, true), part(None, plain.clone(), false)] {
            assert_eq!(prove(&bytes, part.clone()), Proof::Whole);
            assert_eq!(prove(&other, part.clone()), Proof::Broken);
            assert_eq!(prove(&bytes[..20], part), Proof::Broken);
        }
        assert_eq!(prove(&bytes, part(None, plain, true)), Proof::Unknown);
    }
}
