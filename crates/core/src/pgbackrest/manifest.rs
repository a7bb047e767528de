//! Reads a backup's manifest: which files it needs, and where the cluster was.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// What a restore needs to know of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The data directory that the backup was taken from.
    pub data_directory: Option<String>,
    /// Whether the main file of the configuration lies in it.
    pub has_configuration: bool,
    /// The tablespaces.
    pub tablespaces: Vec<Tablespace>,
    /// The databases, by name.
    pub databases: BTreeSet<String>,
    /// The files that hold what is needed, below the stanza's backups, and the bytes that each has
    /// at least.
    pub needed: BTreeMap<String, u64>,
    /// The files that are stored block by block, and the backup that each is stored with: blocks
    /// that had not changed since are stored with backups before it.
    pub in_blocks: BTreeMap<String, String>,
}

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its object id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it was.
    pub path: String,
}

#[derive(Deserialize)]
struct File {
    size: Option<u64>,
    #[serde(rename = "repo-size")]
    stored: Option<u64>,
    reference: Option<String>,
    #[serde(rename = "bni")]
    bundle: Option<u64>,
    #[serde(rename = "bno")]
    offset: Option<u64>,
    /// Only a file that is stored block by block has it. What is stored of it ends with a map of
    /// the blocks, which counts for its stored size.
    #[serde(rename = "bi")]
    block: Option<u64>,
    checksum: Option<String>,
    /// Not in old versions.
    #[serde(rename = "rck")]
    stored_checksum: Option<String>,
}

/// A file of the cluster as it is stored: an object, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file, as a manifest has it.
    pub name: String,
    /// The object, below the stanza's backups.
    pub path: String,
    /// Where in it the file begins.
    pub offset: u64,
    /// Bytes there.
    pub stored: u64,
    /// With what it is packed, as the ending of a name: `.zst`, or nothing.
    pub extension: String,
    /// Bytes of the file.
    pub size: u64,
    /// Its SHA-1, if the manifest has it.
    pub checksum: Option<String>,
    /// The SHA-1 of what is stored, if the manifest has it.
    pub stored_checksum: Option<String>,
    /// Whether it is stored block by block: not as a whole, and not to be unpacked as one.
    pub is_in_blocks: bool,
}

#[derive(Deserialize)]
struct Place {
    path: Option<String>,
    #[serde(rename = "tablespace-name")]
    tablespace: Option<String>,
    #[serde(rename = "tablespace-id")]
    id: Option<String>,
}

#[derive(Deserialize)]
struct Database {
    #[serde(rename = "db-id")]
    _id: u32,
}

/// Reads the manifest of the backup `label`. `None` if it is cut off, or encrypted.
pub fn parse_manifest(text: &str, label: &str) -> Option<Manifest> {
    // The last part of one that is whole.
    if !text.contains("\n[target:path:default]\n") || !text.ends_with('\n') {
        return None;
    }
    let stored = Storing::of(text);
    let mut manifest = Manifest::default();
    for (name, place) in entries::<Place>(text, "[backup:target]") {
        if let (Some(name), Some(id), Some(path)) = (place.tablespace, place.id, &place.path) {
            manifest.tablespaces.push(Tablespace { id, name, path: path.clone() });
        } else if name == "pg_data" {
            manifest.data_directory = place.path;
        }
    }
    let databases = entries::<Database>(text, "[db]");
    manifest.databases = databases.map(|(name, _)| name.to_string()).collect();
    for (name, file) in entries::<File>(text, "[target:file]") {
        manifest.has_configuration |= name == "pg_data/postgresql.conf";
        let Some((path, least)) = stored.place(name, &file, label) else { continue };
        let known = manifest.needed.entry(path).or_default();
        *known = least.max(*known);
        if file.block.is_some() {
            let owner = file.reference.as_deref().unwrap_or(label);
            manifest.in_blocks.insert(name.to_string(), owner.to_string());
        }
    }
    Some(manifest)
}

impl Manifest {
    /// Needs the blocks, too, that may be stored with an earlier backup of the chain, of which this
    /// is the manifest. Which they are only the maps of the blocks say, so this is all that may be.
    pub fn need_blocks_of(&mut self, text: &str, label: &str) {
        for part in self.blocks_of(text, label) {
            let known = self.needed.entry(part.path).or_default();
            *known = (part.offset + part.stored).max(*known);
        }
    }

    /// Where an earlier backup of the chain has blocks of files that this one needs.
    pub fn blocks_of(&self, text: &str, label: &str) -> Vec<Part> {
        let mut found = parts(text, label);
        let own = format!("{label}/");
        found.retain(|part| {
            // Labels of a chain are in the order of time.
            let is_later = |owner: &String| owner.as_str() > label;
            part.is_in_blocks
                && part.path.starts_with(&own)
                && self.in_blocks.get(&part.name).is_some_and(is_later)
        });
        found
    }
}

/// What is stored of the files that the backup `label` needs.
pub fn parts(text: &str, label: &str) -> Vec<Part> {
    let storing = Storing::of(text);
    let part = |(name, file): (&str, File)| storing.part(name, file, label);
    entries::<File>(text, "[target:file]").filter_map(part).collect()
}

/// A file that a backup itself stores, as opposed to those of earlier backups that it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnFile {
    /// Bytes that it has at least: a bundle's last part may be followed by what nobody needs.
    pub size: u64,
    /// Whether it has no byte more.
    pub is_exact: bool,
    /// The cluster's files in it.
    pub parts: Vec<Part>,
}

impl OwnFile {
    /// Whether a file of so many bytes may be this one.
    pub fn has_size(&self, bytes: u64) -> bool {
        if self.is_exact { bytes == self.size } else { bytes >= self.size }
    }
}

/// The files that the backup `label` itself stores, by their paths below its directory.
pub fn own_files(text: &str, label: &str) -> BTreeMap<String, OwnFile> {
    let storing = Storing::of(text);
    let own = format!("{label}/");
    let mut files: BTreeMap<String, OwnFile> = BTreeMap::new();
    for (name, file) in entries::<File>(text, "[target:file]") {
        let Some((path, end)) = storing.place(name, &file, label) else { continue };
        let Some(path) = path.strip_prefix(&own) else { continue };
        let is_exact =
            file.bundle.is_none() && (file.stored.is_some() || storing.extension.is_empty());
        let known = files.entry(path.to_string()).or_default();
        known.size = known.size.max(end);
        known.is_exact = is_exact;
        known.parts.extend(storing.part(name, file, label));
    }
    files
}

/// How a backup stores files.
struct Storing {
    extension: String,
    bundled: bool,
}

impl Storing {
    fn of(text: &str) -> Storing {
        let option = |name: &str| -> Option<serde_json::Value> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            serde_json::from_str(line).ok()
        };
        let compression = option("option-compress-type");
        let extension = match compression.as_ref().and_then(serde_json::Value::as_str) {
            None | Some("none") => String::new(),
            Some(word) => format!(".{word}"),
        };
        let bundled = option("backup-bundle") == Some(serde_json::Value::Bool(true));
        Storing { extension, bundled }
    }

    /// Where one of the cluster's files is stored; absent for an empty one.
    fn part(&self, name: &str, file: File, label: &str) -> Option<Part> {
        let size = file.size.filter(|size| *size > 0)?;
        let stored = file.stored.unwrap_or(size);
        let (path, end) = self.place(name, &file, label)?;
        let (name, is_in_blocks) = (name.to_string(), file.block.is_some());
        let (offset, extension) = (end.saturating_sub(stored), self.extension.clone());
        let File { checksum, stored_checksum, .. } = file;
        Some(Part {
            name,
            path,
            offset,
            stored,
            extension,
            size,
            checksum,
            stored_checksum,
            is_in_blocks,
        })
    }

    /// The file that holds one of the cluster's, and the bytes that it has at least.
    fn place(&self, name: &str, file: &File, label: &str) -> Option<(String, u64)> {
        let size = file.size.unwrap_or(0);
        if size == 0 && self.bundled {
            // Such files are only named.
            return None;
        }
        let stored = file.stored.unwrap_or(size);
        let owner = file.reference.as_deref().unwrap_or(label);
        Some(match file.bundle {
            Some(bundle) => (format!("{owner}/bundle/{bundle}"), file.offset.unwrap_or(0) + stored),
            None if file.block.is_some() => (format!("{owner}/{name}.pgbi"), stored),
            None => (format!("{owner}/{name}{}", self.extension), stored),
        })
    }
}

/// The lines of a section: names, and what is said about each.
fn entries<'a, T: serde::de::DeserializeOwned>(
    text: &'a str,
    section: &str,
) -> impl Iterator<Item = (&'a str, T)> {
    let lines = text.lines().skip_while(move |line| *line != section).skip(1);
    lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        // A name may hold an equals sign, but no value begins elsewhere.
        let (name, value) = line.split_once("={")?;
        Some((name, serde_json::from_str(&format!("{{{value}")).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"[backup]
backup-bundle=true

[backup:option]
option-compress-type="zst"

[backup:target]
pg_data={"path":"/pg/data","type":"path"}
pg_tblspc/16400={"path":"/ts/fast","tablespace-id":"16400","tablespace-name":"fast","type":"link"}

[db]
app={"db-id":16385,"db-last-system-id":14000}
postgres={"db-id":5,"db-last-system-id":14000}

[target:file]
pg_data/PG_VERSION={"bni":1,"bno":10,"checksum":"x","repo-size":5,"size":3,"timestamp":1}
pg_data/base/1/1={"checksum":"x","reference":"20260101-000000F","repo-size":900,"size":9000,"timestamp":1}
pg_data/base/1/2={"bi":1,"bim":64,"checksum":"x","repo-size":70,"size":9000,"timestamp":1}
pg_data/base/1/3={"bni":1,"bno":15,"checksum":"x","repo-size":7,"size":9,"timestamp":1}
pg_data/empty={"size":0,"timestamp":1}

[target:path:default]
mode="0700"
"#;

    #[test]
    fn knows_where_each_file_is() {
        let found: Vec<_> = parts(MANIFEST, "20260102-000000F")
            .into_iter()
            .map(|it| (it.path, it.offset, it.stored, it.size))
            .collect();
        let bundle = "20260102-000000F/bundle/1".to_string();
        assert_eq!(
            found,
            [
                (bundle.clone(), 10, 5, 3),
                ("20260101-000000F/pg_data/base/1/1.zst".to_string(), 0, 900, 9000),
                ("20260102-000000F/pg_data/base/1/2.pgbi".to_string(), 0, 70, 9000),
                (bundle, 15, 7, 9),
            ]
        );
    }

    #[test]
    fn knows_which_files_a_backup_itself_stores() {
        let files = own_files(MANIFEST, "20260102-000000F");
        let found: Vec<_> =
            files.iter().map(|(path, it)| (path.as_str(), it.size, it.parts.len())).collect();
        assert_eq!(found, [("bundle/1", 22, 2), ("pg_data/base/1/2.pgbi", 70, 1)]);
        let (bundle, blocks) = (&files["bundle/1"], &files["pg_data/base/1/2.pgbi"]);
        assert!([21, 22, 23].map(|size| bundle.has_size(size)) == [false, true, true]);
        assert!([69, 70, 71].map(|size| blocks.has_size(size)) == [false, true, false]);
        // Without bundles an empty file is stored, too, in a size that only some versions tell.
        let plain = MANIFEST.replace("backup-bundle=true", "backup-bundle=false");
        let files = own_files(&plain, "20260102-000000F");
        let empty = &files["pg_data/empty.zst"];
        assert!(empty.has_size(0) && empty.has_size(9) && empty.parts.is_empty());
    }

    #[test]
    fn reads_what_is_needed() {
        let manifest = parse_manifest(MANIFEST, "20260102-000000F").expect("whole");
        assert!(!manifest.has_configuration);
        let with = MANIFEST.replace("pg_data/empty=", "pg_data/postgresql.conf=");
        let with = parse_manifest(&with, "20260102-000000F").expect("whole");
        assert!(with.has_configuration);
        let needed: Vec<_> =
            manifest.needed.iter().map(|(path, size)| (path.as_str(), *size)).collect();
        assert_eq!(
            needed,
            [
                ("20260101-000000F/pg_data/base/1/1.zst", 900),
                ("20260102-000000F/bundle/1", 22),
                ("20260102-000000F/pg_data/base/1/2.pgbi", 70),
            ]
        );
        assert_eq!(manifest.data_directory.as_deref(), Some("/pg/data"));
        let [fast] = &manifest.tablespaces[..] else { panic!("{:?}", manifest.tablespaces) };
        assert_eq!((&*fast.id, &*fast.name, &*fast.path), ("16400", "fast", "/ts/fast"));
        assert!(manifest.databases.iter().eq(["app", "postgres"]));
        let cut = MANIFEST.split("[target:path").next().unwrap_or_default();
        assert_eq!(parse_manifest(cut, "x"), None);
    }

    const FULL: &str = include_str!("../../fixtures/manifest/full.txt");
    const DIFF: &str = include_str!("../../fixtures/manifest/diff.txt");
    const INCR: &str = include_str!("../../fixtures/manifest/incr.txt");

    #[test]
    fn needs_the_blocks_of_earlier_backups() {
        let (full, diff) = ("20261123-032420F", "20261123-032420F_20261123-032424D");
        let incr = "20261123-032420F_20261123-032426I";
        let mut manifest = parse_manifest(INCR, incr).expect("whole");
        let file = |label: &str, file: &str| format!("{label}/{file}");
        let changed = "pg_data/base/5/16384.pgbi";
        // Its own are what the manifest itself says; 16394 has never changed, 16389 with the diff.
        let expected = BTreeMap::from([
            (file(incr, "pg_data/backup_label.zst"), 188),
            (file(incr, changed), 11_935),
            (file(diff, "bundle/1"), 23 + 51_202),
            (file(full, "bundle/1"), 2_519_142 + 12),
            (file(full, "bundle/2"), 215_994 + 262_152),
        ]);
        assert_eq!(manifest.needed, expected);
        // Those of 16384 are spread over all; of 16389, which the diff has, over two.
        manifest.need_blocks_of(DIFF, diff);
        manifest.need_blocks_of(FULL, full);
        let mut expected = expected;
        expected.insert(file(diff, changed), 1_532_285);
        expected.insert(file(full, changed), 1_577_641);
        expected.insert(file(full, "bundle/2"), 478_203 + 51_409);
        assert_eq!(manifest.needed, expected);
        let names = |text, label| -> Vec<String> {
            manifest.blocks_of(text, label).into_iter().map(|part| part.name).collect()
        };
        assert_eq!(names(DIFF, diff), ["pg_data/base/5/16384"]);
        assert_eq!(names(FULL, full), ["pg_data/base/5/16384", "pg_data/base/5/16389"]);
        let all = parts(INCR, incr);
        let of = |name: &str| all.iter().find(|part| part.name == name).expect("it is known");
        let stored = "b4849c3f2758279416356df3f720cc5ea5e2151e";
        assert_eq!(of("pg_data/base/5/16384").stored_checksum.as_deref(), Some(stored));
    }
}
