//! Hears of the command line: requests for backups come in, and the present goes out, by files of
//! the state directory.

use std::time::{Duration, Instant};

use nrt_core::kind::BackupType;
use nrt_core::layout::{self, Present};
use pgrx::prelude::*;

use crate::state_directory::{self, RequestId};
use crate::worker::watch::Watch;

/// What the machine calls the request: no place of shared memory has this number.
pub(super) const TICKET: usize = usize::MAX;

/// How often the present is written, at most.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// What has been done about the command line.
#[derive(Default)]
pub(super) struct CommandLine {
    /// The request that has been served, but cannot be removed.
    stays: Option<RequestId>,
    shown: Option<Instant>,
}

impl CommandLine {
    /// The backup that somebody asks for. What cannot be read is removed.
    pub(super) fn requested(&mut self, watch: &mut Watch) -> Option<BackupType> {
        let found = state_directory::backup_request();
        if self.stays.is_some() && self.stays != found {
            self.stays = None;
            watch.writing(layout::BACKUP_NOW, Ok(()));
        }
        if found.is_none() || self.stays.is_some() {
            return None;
        }
        state_directory::requested_backup().unwrap_or_else(|error| {
            log!("nrt_backup cannot read a request for a backup: {error}");
            self.serve(None, watch);
            None
        })
    }

    /// Tells who has asked which job it has become.
    pub(super) fn answer(&mut self, job: u64, watch: &mut Watch) {
        self.serve(Some(job), watch);
    }

    fn serve(&mut self, job: Option<u64>, watch: &mut Watch) {
        let served = state_directory::backup_is_requested(job);
        let removed = watch.writing(layout::BACKUP_NOW, served).is_some();
        self.stays = if removed { None } else { state_directory::backup_request() };
    }

    /// Whether the present was not shown just now.
    pub(super) fn is_due(&self) -> bool {
        self.shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY)
    }

    /// Shows the present. That it could be written is a sign of life: where it cannot, the health
    /// check says so.
    pub(super) fn show(&mut self, present: &Present) {
        if state_directory::show_present(present).is_ok() {
            self.shown = Some(Instant::now());
        }
    }
}
