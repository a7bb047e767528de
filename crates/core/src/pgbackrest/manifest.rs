//! Reads a backup's manifest: which files it needs, and where the cluster was.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// What a restore needs to know of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The data directory that the backup was taken from.
    pub data_directory: Option<String>,
    /// The tablespaces.
    pub tablespaces: Vec<Tablespace>,
    /// The databases, by name.
    pub databases: BTreeSet<String>,
    /// The files that hold what is needed, below the stanza's backups, and the bytes that each has
    /// at least.
    pub needed: BTreeMap<String, u64>,
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
    /// Only a file that is stored block by block has them; the size of its map is called
    /// otherwise in each version.
    #[serde(rename = "bi")]
    block: Option<u64>,
    #[serde(rename = "bim", alias = "bims")]
    map_size: Option<u64>,
    checksum: Option<String>,
}

impl File {
    fn is_in_blocks(&self) -> bool {
        self.block.is_some() || self.map_size.is_some()
    }
}

/// A file of the cluster as it is stored: an object, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
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
        let Some((path, least)) = stored.place(name, &file, label) else { continue };
        let known = manifest.needed.entry(path).or_default();
        *known = least.max(*known);
    }
    Some(manifest)
}

/// Where a file of the cluster is stored, below the stanza's backups: `name` as a manifest has it,
/// `pg_data/base/1/1`. `None` if the manifest of the backup `label` does not know it.
pub fn stored_at(text: &str, label: &str, name: &str) -> Option<String> {
    let (_, file) = entries::<File>(text, "[target:file]").find(|(known, _)| *known == name)?;
    Storing::of(text).place(name, &file, label).map(|(path, _)| path)
}

/// What is stored of the files that the backup `label` needs, but for those that are stored block
/// by block.
pub fn parts(text: &str, label: &str) -> Vec<Part> {
    let storing = Storing::of(text);
    let part = |(name, file): (&str, File)| {
        let size = file.size.filter(|size| *size > 0 && !file.is_in_blocks())?;
        let stored = file.stored.unwrap_or(size);
        let (path, end) = storing.place(name, &file, label)?;
        let (offset, extension) = (end.saturating_sub(stored), storing.extension.clone());
        Some(Part { path, offset, stored, extension, size, checksum: file.checksum })
    };
    entries::<File>(text, "[target:file]").filter_map(part).collect()
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
            None if file.is_in_blocks() => (format!("{owner}/{name}.pgbi"), stored),
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
pg_data/base/1/2={"bi":1,"bims":64,"checksum":"x","repo-size":70,"size":9000,"timestamp":1}
pg_data/base/1/4={"bi":1,"bim":64,"checksum":"x","repo-size":70,"size":9000,"timestamp":1}
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
                (bundle, 15, 7, 9),
            ]
        );
    }

    #[test]
    fn reads_what_is_needed() {
        let manifest = parse_manifest(MANIFEST, "20260102-000000F").expect("whole");
        let needed: Vec<_> =
            manifest.needed.iter().map(|(path, size)| (path.as_str(), *size)).collect();
        assert_eq!(
            needed,
            [
                ("20260101-000000F/pg_data/base/1/1.zst", 900),
                ("20260102-000000F/bundle/1", 22),
                ("20260102-000000F/pg_data/base/1/2.pgbi", 70),
                ("20260102-000000F/pg_data/base/1/4.pgbi", 70),
            ]
        );
        assert_eq!(manifest.data_directory.as_deref(), Some("/pg/data"));
        let [fast] = &manifest.tablespaces[..] else { panic!("{:?}", manifest.tablespaces) };
        assert_eq!((&*fast.id, &*fast.name, &*fast.path), ("16400", "fast", "/ts/fast"));
        assert!(manifest.databases.iter().eq(["app", "postgres"]));
        let stored = |name| stored_at(MANIFEST, "20260102-000000F", name);
        assert_eq!(stored("pg_data/base/1/3").as_deref(), Some("20260102-000000F/bundle/1"));
        let earlier = "20260101-000000F/pg_data/base/1/1.zst";
        assert_eq!(stored("pg_data/base/1/1").as_deref(), Some(earlier));
        assert_eq!(stored("pg_data/base/1/9"), None);
        let cut = MANIFEST.split("[target:path").next().unwrap_or_default();
        assert_eq!(parse_manifest(cut, "x"), None);
    }
}
