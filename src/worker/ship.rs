//! Keeps `nrt-backup ship` running while a remote is configured, and tells it how far the WAL is.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use nrt_core::health::{Process, SILENT, Shipping, UNRESTORABLE};
use nrt_core::inventory::Failure;
use nrt_core::look::Server;
use nrt_core::offsite::supervisor::Supervisor;
use nrt_core::offsite::{Phase, Plan, Position, REPORT_INTERVAL, Status};
use nrt_core::settings::Settings;
use nrt_core::words::last_words;
use nrt_process::Leashed;
use pgrx::prelude::*;

use crate::archiving;
use crate::postgres::{self, wal};
use crate::reporter;
use crate::shared;
use crate::state_directory;
use crate::worker::child;

/// How often its status is looked at, at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Shipping, as the worker keeps it going.
pub(super) struct Ship {
    /// What is to run, unless it is paused.
    plan: Option<Plan>,
    /// Why what configures the remote cannot be used.
    unusable: Option<Failure>,
    paused: bool,
    /// Between two reports of the worker.
    interval: Duration,
    running: Option<Running>,
    supervisor: Supervisor,
    /// Not started again before this.
    not_before: Instant,
    /// How it ended by itself, until one that was started after that has told something.
    ended: Option<String>,
    /// What it has told since it started, and which file that was.
    status: Option<(SystemTime, Status)>,
}

/// The child.
struct Running {
    child: Leashed,
    plan: Plan,
    told_to_stop: Option<Instant>,
    started: Instant,
    since: DateTime<Utc>,
    /// When the position and the status are looked at next.
    next_position: Instant,
    next_status: Instant,
    /// The status that the one before it has left.
    stale: Option<SystemTime>,
}

impl Ship {
    /// Knows nothing to ship to yet.
    pub(super) fn new(paused: bool) -> Ship {
        Ship {
            plan: None,
            unusable: None,
            paused,
            interval: Duration::from_secs(1),
            running: None,
            supervisor: Supervisor::default(),
            not_before: Instant::now(),
            ended: None,
            status: None,
        }
    }

    /// Takes in the settings; what does not run under them any more is stopped.
    pub(super) fn configure(&mut self, server: &Server, settings: &Settings) {
        let interval = settings.ship_interval.min(REPORT_INTERVAL);
        self.interval = Duration::from_millis(interval.into());
        let given = match &settings.rclone_config {
            Some(_) => Ok(None),
            None => state_directory::given_remote(),
        };
        self.unusable = given.as_ref().err().cloned();
        let file = |name| postgres::config_option(name).filter(|path| !path.is_empty());
        let files = [c"config_file", c"hba_file", c"ident_file"].into_iter().filter_map(file);
        self.plan = Plan::new(
            server,
            settings,
            postgres::system_identifier(),
            given.ok().flatten(),
            files.collect(),
            archiving::now().mode_on,
        );
        self.start_afresh();
    }

    /// Gives what was held back after a failure another chance now.
    pub(super) fn start_afresh(&mut self) {
        self.supervisor = Supervisor::default();
        self.not_before = Instant::now();
    }

    /// Lets it ship, or not.
    pub(super) fn pause(&mut self, pause: bool) {
        self.paused = pause;
        self.start_afresh();
    }

    /// Starts and stops the child, so that what runs is what is wanted.
    pub(super) fn settle(&mut self) {
        self.reap();
        // Before the stanza is chosen it is not known which place there is this cluster's.
        let wanted = self.plan.as_ref().filter(|it| !self.paused && !it.stanza.is_empty());
        match (&mut self.running, wanted) {
            (Some(running), wanted)
                if wanted != Some(&running.plan) || running.told_to_stop.is_some() =>
            {
                running.stop();
            }
            (None, Some(plan)) if self.not_before <= Instant::now() => {
                let plan = plan.clone();
                self.start(plan);
            }
            (None, None) => self.ended = None,
            _ => {}
        }
    }

    fn start(&mut self, plan: Plan) {
        self.status = None;
        let stale = state_directory::ship().map(|(written, _)| written);
        match child::ship(&plan) {
            Ok(child) => {
                let now = Instant::now();
                log!("nrt_backup shipping started");
                // Without it the worker alone reports.
                shared::reports::publish(child.input_address().ok().flatten());
                self.running = Some(Running {
                    child,
                    plan,
                    told_to_stop: None,
                    started: now,
                    since: Utc::now(),
                    next_position: now,
                    next_status: now,
                    stale,
                });
            }
            Err(failure) => self.has_ended(Duration::ZERO, failure.message),
        }
    }

    /// Notices that the child has ended.
    fn reap(&mut self) {
        let Some(running) = &mut self.running else { return };
        let report = match running.child.try_wait() {
            Ok(None) => return,
            Ok(Some(report)) => report,
            Err(error) => nrt_process::Report { output: error.to_string(), ..Default::default() },
        };
        let (ran, told_to_stop) = (running.started.elapsed(), running.told_to_stop);
        self.running = None;
        self.status = None;
        if told_to_stop.is_some() {
            return;
        }
        let how = match (report.exit, report.signal) {
            (Some(code), _) => format!("it ended with exit code {code}"),
            (None, Some(signal)) => format!("it was ended by signal {signal}"),
            (None, None) => "it ended".to_string(),
        };
        let words = last_words(&report.output);
        self.has_ended(ran, if words.is_empty() { how } else { format!("{how}: {words}") });
    }

    fn has_ended(&mut self, ran: Duration, words: String) {
        let pause = self.supervisor.pause_after(ran);
        self.not_before = Instant::now() + pause;
        log!("nrt_backup shipping does not run: {words}; started again in {} s", pause.as_secs());
        self.ended = Some(words);
    }

    /// What is due every so often: reports to the child how far the WAL is, also where that has not
    /// changed, and answers whether the child has told something.
    pub(super) fn attend(&mut self) -> bool {
        self.report_if_due();
        let now = Instant::now();
        let Some(running) = &mut self.running else { return false };
        if running.next_status > now {
            return false;
        }
        running.next_status = now + STATUS_INTERVAL;
        let written = state_directory::ship_written();
        if written.is_none() || written == running.stale || written == self.seen() {
            return false;
        }
        self.status = state_directory::ship();
        if self.status.as_ref().is_some_and(|(_, status)| status.phase != Phase::Starting) {
            self.ended = None;
        }
        true
    }

    /// Reports the position if that is due: between the steps of the worker's loop, each of which may
    /// wait for a disk.
    pub(super) fn report_if_due(&mut self) {
        let now = Instant::now();
        if let Some(running) = self.running.as_mut().filter(|it| it.next_position <= now) {
            running.next_position = now + self.interval;
            running.report();
        }
    }

    fn seen(&self) -> Option<SystemTime> {
        self.status.as_ref().map(|(written, _)| *written)
    }

    /// When [`Ship::attend`] has something to do, if it has.
    pub(super) fn attend_at(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.next_position.min(running.next_status))
    }

    /// How long nothing else has to be done for it: until it is started again, or its lag has
    /// become too large without a word.
    pub(super) fn quiet_for(&self, settings: &Settings) -> Option<Duration> {
        if let Some(at) = self.running.as_ref().and_then(|running| running.told_to_stop) {
            // Once it is killed, its end will be heard of.
            return (at + child::PATIENCE).checked_duration_since(Instant::now());
        }
        if self.running.is_none() && self.plan.is_some() && !self.paused {
            return Some(self.not_before.saturating_duration_since(Instant::now()));
        }
        let (_, status) = self.status.as_ref()?;
        let lag = TimeDelta::try_seconds(settings.max_ship_lag);
        let unrestorable = status.unrestorable.as_ref().map(|it| it.since);
        let limits = [
            (status.behind_since, lag),
            (unrestorable, Some(UNRESTORABLE)),
            (status.silent_since, Some(SILENT)),
        ];
        let until = limits.into_iter().filter_map(|(since, limit)| {
            (since?.checked_add_signed(limit?)? - Utc::now()).to_std().ok()
        });
        until.min()
    }

    /// Where backups go off-site to, if anywhere.
    ///
    /// # Errors
    ///
    /// Why what configures the remote cannot be used.
    pub(super) fn remote(&self) -> Result<Option<&Plan>, &Failure> {
        match (&self.plan, &self.unusable) {
            (None, Some(failure)) => Err(failure),
            (plan, _) => Ok(plan.as_ref()),
        }
    }

    /// How it goes, for the checks.
    pub(super) fn findings(&self) -> Shipping {
        let process = match (&self.unusable, &self.plan, &self.ended, &self.running) {
            (Some(failure), None, ..) => Process::Unusable(failure.clone()),
            (_, None, ..) => Process::Off,
            _ if self.paused => Process::Paused,
            (.., Some(words), _) => Process::Ended(words.clone()),
            (.., Some(running)) => Process::Running { since: running.since },
            // It is about to be started.
            (.., None) => Process::Running { since: Utc::now() },
        };
        // The status first: what was shipped by then was flushed before.
        let status = self.status.as_ref().map(|(_, status)| status.clone());
        let flushed = wal::flushed().map(|(timeline, flushed)| Position { timeline, flushed });
        Shipping { process, status, flushed }
    }

    /// How it goes, for the SQL functions.
    pub(super) fn present(&self) -> shared::Shipping {
        match &self.running {
            _ if self.plan.is_none() && self.unusable.is_none() => shared::Shipping::Off,
            _ if self.paused => shared::Shipping::Paused,
            Some(running) => shared::Shipping::Running { stale: running.stale },
            None => shared::Shipping::Stopped,
        }
    }

    /// Has the child end, and tells whether it is gone. To be called again until it is.
    pub(super) fn end(&mut self) -> bool {
        self.running.as_mut().is_none_or(|running| {
            running.stop();
            !matches!(running.child.try_wait(), Ok(None))
        })
    }
}

impl Running {
    /// Has it end, by the end of its input: a signal would end rclone together with it, by which
    /// it ships what is left. When the time for that is over, it is killed.
    fn stop(&mut self) {
        match self.told_to_stop {
            None => {
                self.report();
                shared::reports::publish(None);
                self.child.end_input();
                self.told_to_stop = Some(Instant::now());
            }
            Some(at) if at.elapsed() >= child::PATIENCE => self.child.kill(),
            Some(_) => {}
        }
    }

    /// Reports how far the WAL is. A report that the child does not take now is replaced by the next
    /// one; that the child has ended is noticed elsewhere.
    fn report(&mut self) {
        if let Some(line) = reporter::line() {
            let _ = self.child.tell(&line);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        shared::reports::publish(None);
    }
}
