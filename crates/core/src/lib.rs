//! Decides what nrt_backup does: schedules, WAL growth, retries, health, pgBackRest's words.
//!
//! Everything here is a pure function of its arguments: no clock is read, no file opened, no
//! process started. The time, the WAL position and what a child printed come in as values and
//! decisions go out as values, so every rule of this crate is tested without a server.

#![forbid(unsafe_code)]

pub mod archiving;
pub mod configuration;
pub mod crontab;
pub mod encoded;
pub mod growth;
pub mod health;
pub mod inventory;
pub mod job;
pub mod kind;
pub mod layout;
pub mod look;
pub mod lsn;
pub mod machine;
pub mod offsite;
pub mod options;
pub mod pgbackrest;
pub mod recovery;
pub mod restore;
pub mod settings;
pub mod size;
pub mod words;
