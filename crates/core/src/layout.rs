//! Names the files of the state directory and their formats: the worker, its children and the SQL
//! functions meet there.
//!
//! The directory lies in the data directory, mode 0700, and is in no backup that we take.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::inventory::Failure;
use crate::machine::Memory;

/// The state directory's name within the data directory.
pub const STATE_DIRECTORY: &str = "nrt_backup";
/// Jobs, a line of JSON each; the last line of a job counts.
pub const HISTORY: &str = "history.jsonl";
/// A [`Kept`].
pub const KEPT: &str = "state.json";
/// The last look's [`crate::inventory::Inventory`].
pub const INVENTORY: &str = "inventory.json";
/// The last evaluation's list of [`crate::health::Check`].
pub const HEALTH: &str = "health.json";
/// The generated pgBackRest configuration.
pub const PGBACKREST_CONFIG: &str = "pgbackrest.conf";
/// A [`Tool`].
pub const TOOL: &str = "pgbackrest.json";
/// A [`PushFailure`], there only while archiving fails.
pub const PUSH_FAILURE: &str = "archive-push.json";
/// The directory of what children printed.
pub const LOG: &str = "log";
/// What the child of the running or last job printed, within [`LOG`].
pub const JOB_LOG: &str = "job.log";
/// What shipping printed, within [`LOG`].
pub const SHIP_LOG: &str = "ship.log";
/// pgBackRest's spool directory.
pub const SPOOL: &str = "spool";
/// The present of shipping, a [`crate::offsite::Status`].
pub const SHIP: &str = "ship.json";
/// Which instance of the cluster this is; see [`Instance`].
pub const INSTANCE: &str = "instance.json";
/// rclone's configuration, decoded from the environment variable `RCLONE_CONF_BASE64`.
pub const RCLONE_CONFIG: &str = "rclone.conf";
/// The same as it was given: rclone changes its file, where a token is renewed.
pub const RCLONE_GIVEN: &str = "rclone.conf.given";
/// Put there to have the remote compared with the repository; gone when it is done.
pub const COMPARE: &str = "compare";
/// Put there to make this instance the remote's owner; gone when it is done.
pub const TAKEOVER: &str = "takeover";
/// The directory of what is about to be sent.
pub const OUTBOX: &str = "outbox";
/// There while a worker runs, and left behind by one that did not end cleanly.
pub const RUNNING: &str = "running";

/// What the worker keeps across restarts of the server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The machine's memory.
    pub memory: Memory,
    /// How far the growth of the WAL had been measured.
    pub meter: Option<crate::growth::Meter>,
    /// Whether shipping is paused. Whether backups are, the machine remembers.
    #[serde(default)]
    pub shipping_paused: bool,
}

/// How pgBackRest is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// The program's absolute path.
    pub program: String,
    /// The configuration file.
    pub config: String,
    /// The stanza.
    pub stanza: String,
    /// Where pgBackRest keeps its locks.
    pub lock_path: String,
    /// What backups leave out instead of what the configuration says, if that does not see to it
    /// that this directory is in none.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Why the last segment could not be archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushFailure {
    /// The segment's file name.
    pub segment: String,
    /// When.
    pub at: DateTime<Utc>,
    /// pgBackRest's words.
    pub failure: Failure,
}

/// Tells one running place of a cluster from a copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// A random name.
    pub id: String,
    /// The inode of the state directory for which the name was made: a copy has another one.
    pub directory: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_from_before_there_were_pauses_can_be_read() {
        let old = r#"{"memory":{"next_job":7,"served":{}},"meter":null}"#;
        let kept: Kept = serde_json::from_str(old).expect("it is read");
        assert_eq!(
            (kept.memory.next_job, kept.memory.paused, kept.shipping_paused),
            (7, false, false)
        );
    }
}
