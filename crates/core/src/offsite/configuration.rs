//! Describes how configuration files from outside of the data directory are kept on the remote.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The list of the files, on the remote: a JSON array of [`Kept`].
pub const LIST: &str = "configuration/files.json";
/// An included directory without a file is kept as this file in it: remotes have no empty
/// directories. PostgreSQL includes no file of such a name.
pub const EMPTY: &str = ".nrt_backup.directory";

/// A file of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where it was on the original's machine.
    pub path: PathBuf,
    /// Where it is on the remote.
    pub file: String,
    /// Which setting named it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setting: Option<String>,
    /// What it includes: as it is written there, and where that was. Absent in
    /// lists of earlier programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub includes: Option<BTreeMap<String, PathBuf>>,
}
