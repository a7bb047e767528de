//! Switches archiving on where the operator has not decided otherwise.

use std::ffi::CString;
use std::path::Path;

use nrt_core::archiving::{Archiver, needs_defaults};
use nrt_core::health::{Archiving, FailedPush};

use crate::{postgres, state_directory, worker};

/// Gives `archive_mode` and `archive_command` defaults under which finished segments go to
/// pgBackRest, unless the configuration speaks against it. Called while the library is preloaded,
/// when PostgreSQL has read its configuration.
pub(crate) fn set_defaults() {
    let option = |name| postgres::config_option(name).unwrap_or_default();
    // Without a worker nobody creates a stanza: WAL would only fill the disk. Where the worker of
    // this very instance has found pgBackRest before, there may be backups, and archiving goes on
    // without it. The archive_command uses no other instance's pgbackrest.json either.
    if !worker::has_place() && state_directory::own_tool().is_none() {
        return;
    }
    if !needs_defaults(&option(c"wal_level"), &option(c"archive_library")) {
        return;
    }
    if let Ok(command) = CString::new(command()) {
        postgres::set_default(c"archive_mode", c"on");
        postgres::set_default(c"archive_command", &command);
    }
}

/// Whether the WAL holds too little to restore from.
pub(crate) fn level_is_minimal() -> bool {
    postgres::config_option(c"wal_level").as_deref() == Some("minimal")
}

/// Our `archive_command`.
///
/// pgBackRest insists that its name stands in it, and so it does in the subcommand's name.
fn command() -> String {
    let program = quote(&postgres::program_directory().join("nrt-backup"));
    let state = quote(&state_directory::path());
    format!("{program} pgbackrest-archive-push --state {state} %p")
}

/// Quotes a path for the shell, and doubles per cent signs for PostgreSQL.
fn quote(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\'', r"'\''").replace('%', "%%");
    format!("'{text}'")
}

/// How WAL leaves `pg_wal` at the moment.
pub(crate) fn now() -> Archiving {
    let option = |name| postgres::config_option(name).unwrap_or_default();
    let mode_on = matches!(option(c"archive_mode").as_str(), "on" | "always");
    // Only where it is off does it matter why.
    let restored = if mode_on { None } else { state_directory::restored() };
    let statistics = postgres::archiver_statistics();
    let archived_at = statistics.archived.map(|(_, at)| at);
    let failing = statistics.failed.filter(|(_, at)| archived_at.is_none_or(|last| last < *at));
    Archiving {
        level_minimal: level_is_minimal(),
        mode_on,
        // The worker knows it, where it matters.
        wal_rate: None,
        let_go: state_directory::let_go(),
        copy: restored.filter(|restored| restored.is_copy),
        by: Archiver::of(
            &option(c"archive_library"),
            &option(c"archive_command"),
            &command(),
            option(c"server_version_num").parse().unwrap_or_default(),
        ),
        failing: failing.map(|(segment, at)| {
            let words = state_directory::failed_push().filter(|it| it.segment == segment);
            FailedPush { segment, at, words: words.map(|it| it.failure) }
        }),
    }
}
