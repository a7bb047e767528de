//! Speaks pgBackRest: its versions, its configuration, its JSON, its progress, its exit codes.
//!
//! Everything was read from what the real programs print (2.45, 2.55 and 2.60): the recordings
//! stand in `crates/core/fixtures/pgbackrest`, and `fixtures/record.sh` makes them anew. A field
//! that a version leaves out is never an error, and a field that we do not know never matters.

pub mod archive;
pub mod backup_info;
pub mod command;
pub mod config;
pub mod exit;
pub mod info;
pub mod ini;
pub mod label;
pub mod log;
pub mod manifest;
pub mod names;
pub mod own;
pub mod progress;
pub mod stanza;
pub mod version;

#[cfg(test)]
mod fixtures {
    //! Finds the recordings.

    use std::fs;
    use std::path::PathBuf;

    use super::version::Version;

    /// The versions of which there are recordings.
    pub(super) const RECORDED: [&str; 3] = ["2.45", "2.55", "2.60"];

    fn path(version: &str, name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/pgbackrest")
            .join(version)
            .join(name)
    }

    /// What a file of a version's recording holds.
    pub(super) fn text(version: &str, name: &str) -> String {
        let path = path(version, name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The names in a directory of a version's recording, sorted.
    pub(super) fn list(version: &str, name: &str) -> Vec<String> {
        let path = path(version, name);
        let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name())
            .map(|name| name.into_string().expect("names are ASCII"))
            .collect();
        names.sort();
        names
    }

    /// The version that was recorded, as it names itself.
    pub(super) fn version(version: &str) -> Version {
        Version::parse(&text(version, "version.txt")).expect("what `pgbackrest version` printed")
    }
}
