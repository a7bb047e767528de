//! Evaluates the health checks, shows them, and writes changes to the server's log.

use std::collections::BTreeMap;
use std::io;

use chrono::{DateTime, Utc};
use nrt_core::growth::Rate;
use nrt_core::health::{self, Archiving, Check, Findings, Severity, Shipping};
use nrt_core::layout;
use nrt_core::machine::State;
use nrt_core::restore::drill::supervisor::Supervisor;
use nrt_core::settings::Settings;

use crate::{archiving, postgres, report, reporter, state_directory};

/// What the checks said last.
#[derive(Default)]
pub(crate) struct Watch {
    /// When the worker was found to have ended without a clean shutdown.
    pub(crate) unclean_end: Option<DateTime<Utc>>,
    /// How quickly WAL takes room.
    pub(crate) wal_rate: Rate,
    /// Why a file of the state directory cannot be written, by its name.
    unwritten: BTreeMap<&'static str, String>,
    shown: Vec<Check>,
    /// The severity of each check that the server's log says.
    logged: BTreeMap<String, Severity>,
}

impl Watch {
    /// Remembers whether a file of the state directory can be written.
    pub(crate) fn writing<T>(&mut self, name: &'static str, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.unwritten.remove(name);
                Some(value)
            }
            Err(error) => {
                self.unwritten.insert(name, error.to_string());
                None
            }
        }
    }

    /// Whether a file of the state directory could not be written the last time.
    pub(crate) fn is_unwritten(&self, name: &'static str) -> bool {
        self.unwritten.contains_key(name)
    }

    /// Runs all checks. What is the same as before is neither written nor logged again.
    pub(crate) fn evaluate(
        &mut self,
        state: &State,
        settings: &Settings,
        system_id: u64,
        database_exists: bool,
        shipping: Shipping,
        drills: &Supervisor,
    ) {
        let checks = health::evaluate(&Findings {
            now: Utc::now(),
            settings,
            system_id,
            state,
            archiving: Archiving { wal_rate: self.wal_rate.per_second(), ..archiving::now() },
            database_exists,
            has_socket: postgres::socket_directory().is_some(),
            unclean_end: self.unclean_end,
            has_reporter: reporter::has_place(),
            shipping,
            drills,
            state_failure: self.unwritten.values().next().cloned(),
        });
        for check in health::changed(&checks, &mut self.logged) {
            report::check(check);
        }
        if self.shown != checks {
            let published = state_directory::publish_health(&checks);
            if self.writing(layout::HEALTH, published).is_some() {
                self.shown = checks;
            }
        }
    }
}
