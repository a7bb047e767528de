//! Keeps a running PostgreSQL server backed up, from inside.
//!
//! This crate holds all that runs inside a PostgreSQL process, and nothing else: settings,
//! shared memory, the background worker's loop, and the SQL functions. It decides nothing (that
//! is `nrt-core`) and does nothing that can be slow (that is the command `nrt-backup`, started as
//! a child by `nrt-process`).

#![deny(ffi_unwind_calls)]

#[cfg(not(panic = "unwind"))]
compile_error!("pgrx turns a panic into an ERROR by unwinding: build with panic = \"unwind\"");

use pgrx::prelude::*;

mod archiving;
mod postgres;
mod report;
mod reporter;
mod settings;
mod shared;
mod sql;
mod state_directory;
mod worker;

pgrx::pg_module_magic!(name = c"nrt_backup", version = c"0.1.0");

/// Called by PostgreSQL when the library is loaded.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // Without preload there is no worker to talk to, and pg_upgrade's servers must not be backed
    // up: the functions say so when they are called.
    if !postgres::preloading() || postgres::binary_upgrade() {
        return;
    }
    settings::register();
    shared::init();
    postgres::hint::install();
    worker::register();
    reporter::register();
    archiving::set_defaults();
}

/// What `cargo pgrx test` asks of the crate.
#[cfg(test)]
pub mod pg_test {
    /// Called before the first test.
    pub fn setup(_options: Vec<&str>) {}

    /// The configuration of the server that the tests run in.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![
            "shared_preload_libraries = 'nrt_backup'",
            // The server of these tests is never backed up: the repository would be the machine's.
            "nrt_backup.pgbackrest = 'no-such-pgbackrest'",
            "archive_mode = off",
        ]
    }
}
