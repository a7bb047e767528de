//! Describes what a drill needs to know.

use serde::{Deserialize, Serialize};

use crate::layout;
use crate::look::Server;
use crate::offsite;
use crate::settings::Settings;

/// What `nrt-backup drill` needs to know. It holds no secret: it travels on a command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The original's state directory.
    pub state: String,
    /// The original's data directory.
    pub data_directory: String,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// pgBackRest's name for the cluster.
    pub stanza: String,
    /// Where to restore from; from the original's repository if there is no remote.
    pub remote: Option<offsite::Plan>,
    /// The directory of PostgreSQL's programs.
    pub programs: String,
    /// Processes that pgBackRest may use.
    pub processes: u32,
    /// The libraries that the original has preloaded, as `shared_preload_libraries` has them.
    pub libraries: String,
    /// The directory in which the scratch place is made.
    pub directory: String,
    /// The role that the cluster was created with: the scratch server is asked as it.
    pub superuser: String,
    /// The database in which the query runs.
    pub database: String,
    /// What the operator wants to know of the restored server.
    pub query: Option<String>,
}

impl Order {
    /// An order to restore what `server` has backed up under `settings`: from the remote if there
    /// is one, into `directory`.
    pub fn new(
        server: &Server,
        settings: &Settings,
        system_id: u64,
        programs: String,
        libraries: &str,
        remote: Option<offsite::Plan>,
        directory: String,
    ) -> Order {
        Order {
            state: server.state.clone(),
            data_directory: server.data_directory.clone(),
            system_id,
            stanza: settings.stanza.clone(),
            remote,
            programs,
            processes: settings.processes(server.cores),
            libraries: without_ours(libraries),
            directory,
            superuser: server.superuser.clone(),
            database: settings.database.clone(),
            query: settings.drill_query.clone(),
        }
    }
}

/// A list of libraries without this one, which has nothing to do in a drill.
fn without_ours(libraries: &str) -> String {
    let name = |library: &str| {
        let plain = library.trim().trim_matches('"');
        plain.rsplit('/').next().unwrap_or(plain).trim_end_matches(".so").to_string()
    };
    let others: Vec<&str> =
        libraries.split(',').filter(|it| name(it) != "nrt_backup").map(str::trim).collect();
    others.join(",")
}

/// Where drills make their scratch place under `settings`.
pub(super) fn directory(state: &str, settings: &Settings) -> String {
    settings.drill_directory.clone().unwrap_or_else(|| format!("{state}/{}", layout::DRILL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_libraries_stay() {
        for (all, others) in [
            ("nrt_backup", ""),
            ("", ""),
            ("pg_stat_statements, nrt_backup", "pg_stat_statements"),
            ("\"nrt_backup\",\"My Lib\"", "\"My Lib\""),
            ("$libdir/nrt_backup.so,x", "x"),
        ] {
            assert_eq!(without_ours(all), others, "{all}");
        }
    }
}
