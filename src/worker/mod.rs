//! Runs the background worker: one loop that turns signals, exits and the clock into events of
//! `nrt_core::machine`, and carries out what it answers.
//!
//! The loop never blocks: children run beside it, and whatever may hang is a child's. It must not
//! hold a transaction, a lock or a snapshot while it sleeps.

pub(crate) mod child;
mod drill;
mod request;
mod ship;
mod watch;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use nrt_core::growth::Meter;
use nrt_core::health;
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::job::{Job, Status};
use nrt_core::kind::BackupType;
use nrt_core::layout::{self, ArchiveLimits, Kept};
use nrt_core::look::Server;
use nrt_core::machine::{self, Action, Command, Event, Exit, Readiness, State};
use nrt_core::offsite::Position;
use nrt_core::pgbackrest::label;
use nrt_core::restore::points;
use nrt_core::settings::Settings;
use nrt_process::Leashed;
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, SignalWakeFlags};
use pgrx::prelude::*;

use crate::postgres::{self, wal};
use crate::shared::{Activity, Paused, Present, RunningJob, serve};
use crate::state_directory::{self, Journal};
use crate::worker::drill::{Circumstances, Drills};
use crate::worker::request::{CommandLine, TICKET};
use crate::{archiving, report, settings};

/// How long the postmaster waits before it starts the worker again after an error.
const RESTART: Duration = Duration::from_secs(5);
/// How long the worker sleeps at most while a backup runs: a shutdown in "smart" mode tells a
/// background worker nothing, so it has to look.
const WATCHFUL: Duration = Duration::from_secs(1);
/// How often the worker looks whether a restore is done.
const RECOVERING: Duration = Duration::from_secs(1);
/// How long the worker sleeps at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(layout::PRESENT_WITHIN);
/// How long a shutdown waits for children to end. The leash kills what has not ended after two
/// seconds; what is left after this is killed with the leash.
const FAREWELL: Duration = Duration::from_secs(4);

/// Has the postmaster start the worker when recovery is over. Called while the library is
/// preloaded.
pub(crate) fn register() {
    let worker = BackgroundWorkerBuilder::new("nrt_backup worker")
        .set_type("nrt_backup worker")
        .set_library("nrt_backup")
        .set_function("nrt_backup_worker_main")
        // Also sets the start to the end of recovery: on a standby there is nothing to do.
        .enable_spi_access()
        .set_restart_time(Some(RESTART));
    HAS_PLACE.store(postgres::hint::has_place(|| worker.load()), Ordering::Relaxed);
    if !has_place() {
        let check = health::no_place_for_worker(&max_worker_processes());
        warning!("nrt_backup: {}\nHINT: {}", check.message, check.hint);
    }
}

/// Whether the server had a place for the worker when it started. Set in the postmaster while it
/// loads the library, and inherited by every process.
static HAS_PLACE: AtomicBool = AtomicBool::new(true);

/// Whether the server has taken the worker into its list.
pub(crate) fn has_place() -> bool {
    HAS_PLACE.load(Ordering::Relaxed)
}

/// How many background workers the server has room for.
pub(crate) fn max_worker_processes() -> String {
    postgres::config_option(c"max_worker_processes").unwrap_or_default()
}

/// The worker's main function.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "the postmaster finds the function by its name")]
pub extern "C-unwind" fn nrt_backup_worker_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(
        SignalWakeFlags::SIGHUP
            | SignalWakeFlags::SIGTERM
            | SignalWakeFlags::SIGINT
            | SignalWakeFlags::SIGCHLD,
    );
    postgres::connect_without_database();
    if restore_has_ended() {
        Worker::begin().run();
    }
    postgres::exit_worker();
}

/// Waits while a restore recovers in private: nothing may be looked at, backed up or shipped before
/// it is known whose data directory this is to be. Answers whether there is anything to do then.
fn restore_has_ended() -> bool {
    if state_directory::is_recovering() {
        log!("nrt_backup waits until the restore is done");
    }
    while state_directory::is_recovering() && !postgres::shutdown_requested() {
        postgres::latch::wait(RECOVERING);
    }
    !postgres::shutdown_requested()
}

/// The worker at work.
struct Worker {
    _place: serve::Place,
    settings: Settings,
    server: Server,
    database_exists: bool,
    /// `None` only within [`Worker::take`].
    state: Option<State>,
    kept: Kept,
    journal: Journal,
    meter: Option<Meter>,
    events: VecDeque<Event>,
    job: Option<Leashed>,
    look: Option<Leashed>,
    /// The call for a fresh look that the running look serves, and the one that the next serves.
    check_running: Option<u64>,
    check_waiting: Option<u64>,
    /// The next look must not trust what was found before: a file that settings name may have
    /// been edited.
    reloaded: bool,
    ship: ship::Ship,
    drills: Drills,
    /// The call for a pause that has been carried out but not yet shown.
    pause_running: Option<u64>,
    watch: watch::Watch,
    command_line: CommandLine,
    /// The next transaction id right after the last job's child had ended, and the job.
    next_xid: Option<(u64, u64)>,
}

impl Worker {
    /// Takes the worker's place and finds out how the one before ended.
    fn begin() -> Worker {
        if let Err(error) = state_directory::create() {
            // Without it nothing can be done. The postmaster starts the worker again.
            error!("nrt_backup could not create its state directory: {error}");
        }
        match state_directory::settle() {
            Ok(true) => log!(
                "nrt_backup found the files of the server that this one was copied from, and \
                 begins anew"
            ),
            Ok(false) => {}
            Err(error) => error!("nrt_backup could not use its state directory: {error}"),
        }
        let place = serve::Place::take();
        let settings = settings::current();
        let catalog = postgres::read_catalog(&settings.database);
        let mut kept = state_directory::kept();
        if let Some(catalog) = &catalog {
            kept.superuser = Some(catalog.superuser.clone());
        }
        let superuser = kept.superuser.as_deref().unwrap_or("postgres");
        let history = state_directory::history();
        let last = history.keys().next_back().copied().unwrap_or(0);
        kept.memory.next_job = kept.memory.next_job.max(last + 1);
        let labels = history.values().filter_map(|job| job.label.clone()).collect();
        let unfinished = history.into_values().filter(|job| !job.status.is_final()).collect();

        let mut watch = watch::Watch::default();
        let unclean =
            watch.writing(layout::RUNNING, state_directory::mark_running()).unwrap_or(false);
        watch.unclean_end = unclean.then(Utc::now);
        let journal = watch.writing(layout::HISTORY, Journal::open()).unwrap_or_default();
        let drills = Drills::new(kept.drills.clone(), &mut watch);
        let state = State::new(postgres::system_identifier(), kept.memory.clone(), Utc::now())
            // Neither changes while the server runs.
            .standing_aside(archiving::now().aside());
        let mut worker = Worker {
            _place: place,
            ship: ship::Ship::new(kept.shipping_paused),
            drills,
            pause_running: None,
            server: child::server(superuser),
            // Until it is known better: a catalog that cannot be read now says nothing.
            database_exists: catalog.is_none_or(|it| it.database_exists),
            settings,
            state: Some(state),
            meter: kept.meter,
            kept,
            journal,
            events: VecDeque::new(),
            job: None,
            look: None,
            check_running: None,
            check_waiting: None,
            reloaded: false,
            watch,
            command_line: CommandLine::default(),
            next_xid: None,
        };
        match worker.settings.stanza.as_str() {
            "" => log!("nrt_backup worker started"),
            stanza => log!("nrt_backup worker started for stanza \"{stanza}\""),
        }
        worker.ship.configure(&worker.server, &worker.settings);
        worker.limit_archiving();
        let full_due = state_directory::restored().and_then(|it| it.full_due());
        worker.events.push_back(Event::Started { unfinished, labels, full_due });
        worker
    }

    /// Works until the server shuts down.
    fn run(mut self) {
        while !postgres::shutdown_requested() {
            self.collect();
            self.events.push_back(Event::Tick);
            self.settle();
            self.ship.settle();
            self.ship.report_if_due();
            self.drill();
            self.ship.report_if_due();
            self.evaluate();
            self.ship.report_if_due();
            self.publish();
            self.show();
            self.drills.tell();
            if let Some(number) = self.pause_running.take() {
                serve::pause_served(number);
            }
            if !postgres::shutdown_requested() {
                self.rest();
            }
        }
        self.end();
    }

    /// Sleeps until something has to be done. Shipping is told meanwhile how far the WAL is:
    /// nothing else is looked at for that.
    fn rest(&mut self) {
        let until = Instant::now() + self.sleep();
        loop {
            let woken_at = self.ship.attend_at().map_or(until, |at| at.min(until));
            let woken = postgres::latch::wait(woken_at.saturating_duration_since(Instant::now()));
            if self.ship.attend() || woken || until <= Instant::now() {
                return;
            }
        }
    }

    /// Gathers what has happened since the last time.
    fn collect(&mut self) {
        if BackgroundWorker::sighup_received() {
            postgres::reload_configuration();
            self.settings = settings::current();
            self.reloaded = true;
            self.ship.configure(&self.server, &self.settings);
            self.limit_archiving();
            self.events.push_back(Event::Reloaded);
        }
        let questions = serve::questions();
        if questions.check.is_some_and(|number| Some(number) > self.check_running) {
            if questions.check != self.check_waiting {
                self.events.push_back(Event::CheckAsked);
                self.ship.start_afresh();
            }
            self.check_waiting = questions.check;
        }
        if let Some(pause) = questions.pause {
            self.pause_running = Some(pause.number);
            self.events.extend(pause.backups.map(Event::PauseAsked));
            if let Some(shipping) = pause.shipping {
                self.ship.pause(shipping);
                self.kept.shipping_paused = shipping;
                self.keep();
            }
        }
        self.drills.ask(questions.drill);
        let asked = self.command_line.requested(&mut self.watch).map(|kind| (TICKET, kind));
        for (ticket, kind) in questions.backups.into_iter().chain(asked) {
            self.events.push_back(Event::Requested { ticket, kind });
        }
        if BackgroundWorker::sigint_received() || questions.cancel || self.smart_shutdown() {
            self.events.push_back(Event::CancelAsked);
        }
        self.reap();
    }

    /// A shutdown in "smart" mode waits for every client, and pgBackRest is one: a backup must
    /// not hold it up.
    fn smart_shutdown(&self) -> bool {
        self.job.is_some() && child::postmaster_is_stopping()
    }

    /// Has drills start and end.
    fn drill(&mut self) {
        self.with_drills(Drills::settle);
        if self.kept.drills != *self.drills.supervisor().memory() {
            self.kept.drills = self.drills.supervisor().memory().clone();
            self.keep();
        }
    }

    fn with_drills<T>(
        &mut self,
        act: impl FnOnce(&mut Drills, Circumstances<'_>, &mut watch::Watch) -> T,
    ) -> T {
        let Worker { drills, server, settings, ship, state, watch, .. } = self;
        act(drills, circumstances(server, settings, ship, state.as_ref()), watch)
    }

    fn circumstances(&self) -> Circumstances<'_> {
        circumstances(&self.server, &self.settings, &self.ship, self.state.as_ref())
    }

    /// Turns children that have ended into events.
    fn reap(&mut self) {
        if let Some(exit) = child::ended(&mut self.job) {
            let job = self.state.as_ref().and_then(State::running).map(|job| job.id);
            self.next_xid = job.map(|job| (job, wal::next_transaction_id()));
            let waited = child::checkpoint_wait();
            self.events.push_back(Event::JobExited(Exit { waited, ..exit }));
        }
        if let Some(exit) = child::ended(&mut self.look) {
            let result = child::look_result(&exit);
            // Where the operator names no stanza, the look chooses it.
            let settings = settings::current();
            if settings.stanza != self.settings.stanza {
                self.settings = settings;
                self.ship.configure(&self.server, &self.settings);
            }
            if let Ok(inventory) = &result {
                let system_id = postgres::system_identifier();
                self.rebase(inventory.last_stop(system_id));
                if let Some(oldest) = points::oldest_reachable(inventory, system_id) {
                    let pruned = state_directory::prune_restore_points(oldest);
                    self.watch.writing(layout::RESTORE_POINTS, pruned);
                }
            }
            self.events.push_back(Event::Looked(result.map(Box::new)));
            self.keep_meter();
        }
    }

    /// Measures growth from the newest backup's end on.
    fn rebase(&mut self, last_stop: Option<nrt_core::lsn::Lsn>) {
        let base = self.meter.map(|meter| meter.base());
        if base != last_stop {
            self.meter = last_stop.map(Meter::new);
        }
    }

    /// Lets the machine take in all events.
    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            // Before the machine starts the next look, which serves later calls.
            let served = match event {
                Event::Looked(_) => self.check_running.take(),
                _ => None,
            };
            self.take(event);
            if let Some(number) = served {
                self.evaluate();
                serve::check_served(number);
            }
        }
        let flushed = self.journal.flush();
        self.watch.writing(layout::HISTORY, flushed);
        if self.watch.is_unwritten(layout::KEPT) {
            self.keep();
        }
    }

    fn take(&mut self, event: Event) {
        let Some(state) = self.state.take() else { return };
        let present = machine::Present { now: Utc::now(), growth: self.growth() };
        let (state, actions) = machine::step(state, event, present, &self.settings);
        self.state = Some(state);
        for action in actions {
            self.carry_out(action);
        }
    }

    /// Bytes of WAL written since the last backup.
    fn growth(&mut self) -> Option<u64> {
        let (timeline, flushed) = wal::flushed()?;
        let meter = self.meter.as_mut()?;
        meter.advance(timeline, flushed, self.server.segment_size, &mut wal::PgWal::default());
        Some(meter.written())
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start(command) => self.start(&command),
            Action::StopJob => self.job.iter_mut().for_each(Leashed::terminate),
            Action::StopLook => self.look.iter_mut().for_each(Leashed::terminate),
            Action::Record(job) => self.record(&job),
            Action::Answer { ticket: TICKET, job } => {
                self.command_line.answer(job, &mut self.watch);
            }
            Action::Answer { ticket, job } => serve::answer(ticket, job),
            Action::Remember(memory) => {
                self.kept.memory = memory;
                self.keep();
            }
            Action::FullTaken(label) => {
                let kept = state_directory::full_taken(&label);
                self.watch.writing(layout::RESTORED, kept);
            }
        }
    }

    fn start(&mut self, command: &Command) {
        match command {
            Command::Look => {
                self.read_catalog();
                self.check_running = self.check_waiting.take();
                let thorough = std::mem::take(&mut self.reloaded) || self.check_running.is_some();
                match child::look(&self.server, &self.settings, thorough) {
                    Ok(child) => self.look = Some(child),
                    Err(failure) => self.events.push_back(Event::Looked(Err(failure))),
                }
            }
            Command::CreateStanza => {
                let started = child::create_stanza();
                self.job_started(started);
            }
            Command::Backup { kind, trigger, .. } => {
                let inventory = self.state.as_ref().and_then(State::inventory);
                let labels = inventory.into_iter().flat_map(Inventory::labels);
                let zone = label::zone_for_next(labels, Utc::now());
                let started = child::backup(*kind, *trigger, &zone);
                self.job_started(started);
            }
        }
    }

    fn job_started(&mut self, started: Result<Leashed, Failure>) {
        match started {
            Ok(child) => self.job = Some(child),
            Err(failure) => {
                let exit = Exit {
                    code: Some(127),
                    signal: None,
                    output: failure.message,
                    ..Exit::default()
                };
                self.events.push_back(Event::JobExited(exit));
            }
        }
    }

    fn limit_archiving(&mut self) {
        let limits = ArchiveLimits { queue_max: self.settings.archive_queue_max };
        self.watch.writing(layout::ARCHIVE_LIMITS, state_directory::limit_archiving(limits));
    }

    /// Reads the catalog again. Where that would have to wait, what was read last stays.
    fn read_catalog(&mut self) {
        let Some(catalog) = postgres::read_catalog(&self.settings.database) else { return };
        self.database_exists = catalog.database_exists;
        self.server = child::server(&catalog.superuser);
        if self.kept.superuser.as_ref() != Some(&catalog.superuser) {
            self.kept.superuser = Some(catalog.superuser);
            self.keep();
        }
    }

    fn record(&mut self, job: &Job) {
        // Before the row: who sees that the job has ended sees the present after it.
        self.publish();
        let written = self.journal.append(job);
        self.watch.writing(layout::HISTORY, written);
        if job.status == Status::Succeeded {
            self.watch.unclean_end = None;
            self.keep_next_xid(job);
        }
        report::job(job);
        if job.status.is_final() {
            serve::job_ended(job.id);
        }
    }

    /// Keeps the next transaction id from right after a backup had ended: whatever has a higher one
    /// is not in it. Of a backup whose end was not seen it is not known.
    fn keep_next_xid(&mut self, job: &Job) {
        let seen = self.next_xid.take_if(|(seen, _)| *seen == job.id);
        let Some(((_, next_xid), label)) = seen.zip(job.label.clone()) else { return };
        let mut xids = state_directory::next_xids();
        if let Some(inventory) = self.state.as_ref().and_then(State::inventory)
            && inventory.repository.is_ok()
        {
            let held: BTreeSet<&str> = inventory
                .backups_of(postgres::system_identifier())
                .map(|backup| backup.label.as_str())
                .collect();
            xids.retain(|label, _| held.contains(label.as_str()));
        }
        xids.insert(label, next_xid);
        let kept = state_directory::keep_next_xids(&xids);
        self.watch.writing(layout::NEXT_XIDS, kept);
    }

    fn keep(&mut self) {
        let kept = state_directory::keep(&self.kept);
        self.watch.writing(layout::KEPT, kept);
    }

    /// Keeps how far the growth was measured, if there was any: an idle server writes nothing.
    fn keep_meter(&mut self) {
        if self.kept.meter != self.meter {
            self.kept.meter = self.meter;
            self.keep();
        }
    }

    fn evaluate(&mut self) {
        if let Some((_, flushed)) = wal::flushed() {
            self.watch.wal_rate.measure(Utc::now(), flushed);
        }
        if let Some(state) = &self.state {
            self.watch.evaluate(
                state,
                &self.settings,
                postgres::system_identifier(),
                self.database_exists,
                self.ship.findings(),
                self.drills.supervisor(),
            );
        }
    }

    /// Shows the present to the SQL functions.
    fn publish(&mut self) {
        let growth = self.growth();
        let Some(state) = &self.state else { return };
        let runs = state.next_runs(&self.settings);
        let job = state.running();
        let activity = match (job, state.readiness()) {
            (Some(_), _) => Activity::BackingUp,
            (None, Readiness::Blocked(_)) => Activity::Blocked,
            _ if state.aside().is_some() => Activity::Blocked,
            (None, _) if state.inventory().is_none() => Activity::Starting,
            (None, _) if state.waiting().is_some() => Activity::Waiting,
            (None, _) => Activity::Idle,
        };
        serve::publish(&Present {
            activity,
            job: job.map(|job| RunningJob {
                id: job.id,
                kind: job.kind,
                trigger: job.trigger,
                started_at: job.started_at,
            }),
            growth,
            next_runs: BackupType::ALL.map(|kind| runs.get(&kind).copied()),
            next_drill: self.drills.supervisor().next_run(&self.settings),
            drilling: self.drills.supervisor().running().is_some(),
            zone: Some(self.settings.zone),
            paused: Paused { backups: state.is_paused(), shipping: self.kept.shipping_paused },
            shipping: self.ship.present(),
            health_is_old: self.watch.is_unwritten(layout::HEALTH),
        });
    }

    /// Shows the present to commands that ask no SQL.
    fn show(&mut self) {
        if !self.command_line.is_due() {
            return;
        }
        let growth = self.growth();
        let Worker { command_line, state, settings, meter, ship, .. } = self;
        let Some(state) = state else { return };
        command_line.show(&layout::Present {
            at: Utc::now(),
            flushed: wal::flushed().map(|(timeline, flushed)| Position { timeline, flushed }),
            growth,
            growth_since: meter.as_ref().map(Meter::base),
            wal_monitor: settings.wal_monitor,
            wal_growth_threshold: settings.wal_growth_threshold,
            min_wal_growth: settings.min_wal_growth,
            wal_monitor_interval: settings.wal_monitor_interval,
            next_look: state.next_tick(),
            backups_paused: state.is_paused(),
            remote: ship.remote().ok().flatten().filter(|it| !it.stanza.is_empty()).cloned(),
        });
    }

    /// How long nothing has to be done, unless something happens.
    fn sleep(&self) -> Duration {
        let longest = if self.job.is_some() { WATCHFUL } else { LONGEST_SLEEP };
        if !self.events.is_empty() {
            return Duration::ZERO;
        }
        let Some(state) = &self.state else { return longest };
        let until = state.wake_at(&self.settings);
        let drill = self.drills.wake_at(self.circumstances());
        let until = drill.map_or(until, |it| it.min(until)) - Utc::now();
        // A millisecond more, so that the moment has come when the worker wakes.
        let until = until.to_std().unwrap_or_default() + Duration::from_millis(1);
        let until = until.min(longest);
        // A millisecond more here, too.
        let ship = self.ship.quiet_for(&self.settings).map(|it| it + Duration::from_millis(1));
        ship.map_or(until, |it| it.min(until))
    }

    /// Ends the children and leaves.
    fn end(mut self) {
        self.take(Event::ShutdownAsked);
        self.with_drills(Drills::stop);
        let deadline = Instant::now() + FAREWELL;
        loop {
            // Each of them is told at once, and they end side by side.
            let shipped = self.ship.end();
            let drilled = self.with_drills(Drills::end);
            let done = shipped && drilled && self.job.is_none() && self.look.is_none();
            if done || deadline <= Instant::now() {
                break;
            }
            child::ended(&mut self.look);
            if let Some(exit) = child::ended(&mut self.job) {
                self.take(Event::JobExited(exit));
                continue;
            }
            postgres::latch::wait(Duration::from_millis(20));
        }
        self.keep_meter();
        let flushed = self.journal.flush();
        self.watch.writing(layout::HISTORY, flushed);
        state_directory::unmark_running();
        log!("nrt_backup worker ended");
    }
}

/// What drills depend on.
fn circumstances<'a>(
    server: &'a Server,
    settings: &'a Settings,
    ship: &'a ship::Ship,
    state: Option<&State>,
) -> Circumstances<'a> {
    let paused = state.is_some_and(State::is_paused);
    Circumstances { server, settings, remote: ship.remote(), paused }
}
