//! Describes what a look needs to know: the worker passes it to `nrt-backup look`.
//!
//! It holds no secret: it travels on a command line.

use serde::{Deserialize, Serialize};

use crate::layout;
use crate::settings::Settings;

/// What to look at, and how pgBackRest is to be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The state directory.
    pub state: String,
    /// The cluster's data directory.
    pub data_directory: String,
    /// The server's port.
    pub port: u16,
    /// The directory of the server's unix sockets.
    pub socket_directory: Option<String>,
    /// The role that pgBackRest connects as.
    pub user: String,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// pgBackRest's name for the cluster; empty if the look is to choose it.
    pub stanza: String,
    /// The cluster's system identifier.
    #[serde(default)]
    pub system_id: u64,
    /// The pgBackRest program, a name or a path.
    pub pgbackrest: String,
    /// The operator's own configuration; one is generated without it.
    pub own_config: Option<String>,
    /// The repository's directory, unless the operator's configuration says.
    pub repository: String,
    /// The directory of pgBackRest's locks.
    pub lock_path: String,
    /// The database that pgBackRest connects to.
    pub database: String,
    /// Days to which the cluster can be restored.
    pub retention_days: u32,
    /// Processes of a backup.
    pub process_max: u32,
    /// Compression of the repository.
    pub compress_type: String,
    /// Whether to look at everything, also where nothing seems to have changed.
    pub thorough: bool,
    /// The timeline that the server writes, if pgBackRest archives its WAL: the history files of
    /// that one and of those before it belong in the archive.
    #[serde(default)]
    pub archived_timeline: Option<u32>,
}

/// What the server knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The state directory.
    pub state: String,
    /// The data directory.
    pub data_directory: String,
    /// The port.
    pub port: u16,
    /// The directory of the unix sockets.
    pub socket_directory: Option<String>,
    /// The role that the cluster was created with.
    pub superuser: String,
    /// Bytes of a WAL segment.
    pub segment_size: u64,
    /// Cores of the machine.
    pub cores: usize,
}

impl Plan {
    /// What a look at `server` under `settings` needs to know. `stanza` is what the operator names.
    pub fn new(
        server: &Server,
        settings: &Settings,
        stanza: String,
        system_id: u64,
        thorough: bool,
        archived_timeline: Option<u32>,
    ) -> Plan {
        Plan {
            state: server.state.clone(),
            data_directory: server.data_directory.clone(),
            port: server.port,
            socket_directory: server.socket_directory.clone(),
            user: server.superuser.clone(),
            segment_size: server.segment_size,
            stanza,
            system_id,
            pgbackrest: settings.pgbackrest.clone(),
            own_config: settings.pgbackrest_config.clone(),
            repository: settings.repository.clone(),
            lock_path: settings
                .lock_path
                .clone()
                .unwrap_or_else(|| format!("{}/{}", server.state, layout::LOCK)),
            database: settings.database.clone(),
            retention_days: settings.retention_days,
            process_max: settings.processes(server.cores),
            compress_type: settings.compress_type.clone(),
            thorough,
            archived_timeline,
        }
    }
}
