//! Decides when a backup starts, waits, is tried again or is skipped.
//!
//! [`step`] is the heart of nrt_backup: a pure function from what is known and what happened to
//! what is known then and what is to be done. It never starts two backups at once, never forgets
//! a request, and never asks to be woken in the past. The worker only turns signals, exits and
//! clocks into events and carries out the actions.

mod pace;
mod schedule;
#[cfg(test)]
pub(crate) mod tests;

pub use pace::Cost;
pub use schedule::Served;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::inventory::{Failure, Inventory};
use crate::job::{Job, Status};
use crate::kind::{BackupType, Trigger};
use crate::layout::FullDue;
use crate::pgbackrest::command::TRIGGER_ANNOTATION;
use crate::pgbackrest::exit::{self, Judgement, Verdict};
use crate::pgbackrest::info::Backup;
use crate::settings::Settings;

/// The delay before the first retry; it doubles with each further one.
const FIRST_RETRY: TimeDelta = TimeDelta::seconds(15);
/// The longest delay between two tries.
const RETRY_CEILING: TimeDelta = TimeDelta::minutes(15);
/// The same where there is no backup yet: whatever kept the first one away may be mended by now.
const FIRST_BACKUP_CEILING: TimeDelta = TimeDelta::seconds(50);
/// How often a lock that somebody else holds is tried again.
const LOCK_POLL: TimeDelta = TimeDelta::seconds(5);
/// How often the repository and the disks are looked at when nothing happens.
const LOOK_INTERVAL: TimeDelta = TimeDelta::seconds(60);

/// Why a backup is a full one although a smaller one was asked for.
const NO_BASE: &str = "no full backup to build on: a full one was taken instead";

/// Why no backup is taken that somebody asks for, while backups are paused.
fn paused() -> Failure {
    Failure {
        message: "backups are paused".to_string(),
        hint: "SELECT nrt_resume('backups') lets them start again.".to_string(),
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The worker has started. `unfinished` are the jobs that the history shows as waiting or
    /// running, `labels` the backups that it knows.
    Started {
        /// Jobs that had not ended when the worker before this one did.
        unfinished: Vec<Job>,
        /// pgBackRest's labels of all backups in the history.
        labels: BTreeSet<String>,
        /// The full backup that is due, because the data directory was restored.
        full_due: Option<FullDue>,
    },
    /// Time passed.
    Tick,
    /// The settings may have changed.
    Reloaded,
    /// Somebody asks for a backup; the ticket comes back with the answer.
    Requested {
        /// Names the question.
        ticket: usize,
        /// What is asked for.
        kind: BackupType,
    },
    /// Somebody asks for a fresh look at everything that was found wrong.
    CheckAsked,
    /// The child that ran a job has ended.
    JobExited(Exit),
    /// The child that looked has ended.
    Looked(Result<Box<Inventory>, Failure>),
    /// Somebody asks that no backup starts from now on (`true`), or that they start again.
    PauseAsked(bool),
    /// Somebody asks to end the running backup, or those that wait if none is running.
    CancelAsked,
    /// The server shuts down.
    ShutdownAsked,
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The end of what it printed.
    pub output: String,
    /// How long it waited for a checkpoint, if it took a backup.
    pub waited: TimeDelta,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a child.
    Start(Command),
    /// Stop the child that runs a job, gently at first.
    StopJob,
    /// Stop the child that looks.
    StopLook,
    /// Write a row of the history; a later row of the same job replaces an earlier one.
    Record(Box<Job>),
    /// Tell who asked which job it became.
    Answer {
        /// The question's name.
        ticket: usize,
        /// The job.
        job: u64,
    },
    /// Keep this across restarts of the server.
    Remember(Memory),
    /// Keep that the full backup which was due after a restore has been taken: its label.
    FullTaken(String),
}

/// What a child is started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Look at pgBackRest, the repository and the disks.
    Look,
    /// Create the stanza.
    CreateStanza,
    /// Take a backup.
    Backup {
        /// The job's number.
        job: u64,
        /// What it holds.
        kind: BackupType,
        /// Why it starts.
        trigger: Trigger,
    },
}

/// What survives a restart of the server, beside the history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The number of the next job.
    pub next_job: u64,
    /// Up to when each schedule has been served.
    pub served: BTreeMap<BackupType, Served>,
    /// Whether backups are paused.
    #[serde(default)]
    pub paused: bool,
    /// What the last backup cost that the growth of the WAL started.
    #[serde(default)]
    pub growth_cost: Option<Cost>,
}

/// The present, as the caller measured it right before the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Present {
    /// The time.
    pub now: DateTime<Utc>,
    /// Bytes of WAL written since the last backup, if there is one and it can be told.
    pub growth: Option<u64>,
}

/// Whether backups can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing is known yet.
    Unknown,
    /// The stanza is there and belongs to this cluster.
    Ready,
    /// Not before this is mended.
    Blocked(Failure),
}

/// A job that waits for its turn.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    job: Job,
    not_before: DateTime<Utc>,
    /// Somebody waits for it and must hear at once when it cannot run.
    wanted: bool,
    /// Whether it is skipped if nothing is to be gained: a run of a schedule is, what somebody
    /// asked for or what was broken off is not.
    may_skip: bool,
    /// Somebody else's lock has sent it back, and it is tried again and again: the history hears
    /// of a try only when it has got beyond the lock.
    quiet: bool,
}

impl Pending {
    fn new(job: Job, not_before: DateTime<Utc>) -> Pending {
        let may_skip = match job.trigger {
            Trigger::Schedule | Trigger::MissingBase => true,
            // A missed run; the further tries are of a backup that was broken off.
            Trigger::Startup => job.attempt == 1,
            Trigger::WalGrowth | Trigger::Manual | Trigger::External => false,
        };
        Pending { job, not_before, wanted: false, may_skip, quiet: false }
    }

    /// When a quiet try has lasted too long for one that finds the lock held.
    fn shown_at(&self) -> Option<DateTime<Utc>> {
        self.job.started_at.filter(|_| self.quiet).map(|started_at| started_at + LOCK_POLL)
    }
}

/// What the one place for jobs is taken by.
#[derive(Debug, Clone, PartialEq)]
enum Active {
    CreatingStanza,
    Backup {
        run: Pending,
        cancelled: bool,
    },
    /// pgBackRest has succeeded; the look that fills in the row is on its way.
    Settling {
        job: Job,
        waited: TimeDelta,
    },
}

/// What the last look's result is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Something has happened since that look began which decisions depend on.
    Outdated,
    /// So it is, but the look that runs now began after that.
    Renewing,
    Current,
}

/// What is known between two events.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    memory: Memory,
    system_id: u64,
    inventory: Option<Inventory>,
    look_failure: Option<Failure>,
    readiness: Readiness,
    known_labels: BTreeSet<String>,
    /// In the order of asking; no two of a type, but for one that came back from a held lock.
    pending: Vec<Pending>,
    active: Option<Active>,
    looking: bool,
    look_wanted: bool,
    knowledge: Knowledge,
    next_look: DateTime<Utc>,
    next_tick: DateTime<Utc>,
    stanza_tries: u32,
    stanza_not_before: DateTime<Utc>,
    /// After a failure or a cancel, what no schedule starts waits until then.
    hold_until: DateTime<Utc>,
    last_failure: Option<Job>,
    /// The newest backup that pgBackRest reported as taken and did not list afterwards.
    unlisted: Option<Job>,
    /// The full backup that is due, because the data directory was restored.
    full_due: Option<FullDue>,
    /// Why this server takes no backups at all, if so.
    aside: Option<Failure>,
    shutting_down: bool,
    /// The time at the last step.
    clock: DateTime<Utc>,
}

impl State {
    /// Knows what `memory` kept, and nothing else.
    pub fn new(system_id: u64, mut memory: Memory, now: DateTime<Utc>) -> State {
        if let Some(cost) = &mut memory.growth_cost {
            // The clock may have been set back since.
            cost.ended = cost.ended.min(now);
        }
        State {
            memory,
            system_id,
            inventory: None,
            look_failure: None,
            readiness: Readiness::Unknown,
            known_labels: BTreeSet::new(),
            pending: Vec::new(),
            active: None,
            looking: false,
            look_wanted: true,
            knowledge: Knowledge::Outdated,
            next_look: now,
            next_tick: now,
            stanza_tries: 0,
            stanza_not_before: now,
            hold_until: now,
            last_failure: None,
            unlisted: None,
            full_due: None,
            aside: None,
            shutting_down: false,
            clock: now,
        }
    }

    /// Takes no backups as long as this lives, and says why.
    pub fn standing_aside(self, why: Option<Failure>) -> State {
        State { aside: why, ..self }
    }

    /// Why this server takes no backups at all, if so.
    pub fn aside(&self) -> Option<&Failure> {
        self.aside.as_ref()
    }

    /// The last look's result.
    pub fn inventory(&self) -> Option<&Inventory> {
        self.inventory.as_ref()
    }

    /// Why the last look failed, if it did.
    pub fn look_failure(&self) -> Option<&Failure> {
        self.look_failure.as_ref()
    }

    /// Whether backups can run.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// The backup that pgBackRest is taking now, or whose row is being completed.
    pub fn running(&self) -> Option<&Job> {
        match self.active.as_ref()? {
            Active::Backup { run: Pending { job, .. }, .. } | Active::Settling { job, .. } => {
                Some(job)
            }
            Active::CreatingStanza => None,
        }
    }

    /// Whether backups are paused: none starts; one that runs goes on.
    pub fn is_paused(&self) -> bool {
        self.memory.paused
    }

    /// The job that will start next, and not before when.
    pub fn waiting(&self) -> Option<(&Job, DateTime<Utc>)> {
        let next = self.pending.iter().min_by_key(|pending| pending.not_before)?;
        Some((&next.job, next.not_before))
    }

    /// The newest failure since the last backup that succeeded.
    pub fn last_failure(&self) -> Option<&Job> {
        self.last_failure.as_ref()
    }

    /// The newest backup that pgBackRest reported as taken, while the repository does not list it.
    pub fn unlisted(&self) -> Option<&Job> {
        self.unlisted.as_ref()
    }

    /// The next run of each schedule.
    pub fn next_runs(&self, settings: &Settings) -> BTreeMap<BackupType, DateTime<Utc>> {
        if self.aside.is_some() {
            return BTreeMap::new();
        }
        schedule::next_runs(&self.memory.served, settings)
    }

    /// When the growth of the WAL is looked at next.
    pub fn next_tick(&self) -> DateTime<Utc> {
        self.next_tick
    }

    /// Before when the growth of the WAL starts no backup, because of what the last one cost.
    pub fn growth_rests_until(&self, settings: &Settings) -> Option<DateTime<Utc>> {
        self.memory.growth_cost.map(|cost| cost.rests_until(settings))
    }

    /// When the worker has to wake up although nothing happened.
    pub fn wake_at(&self, settings: &Settings) -> DateTime<Utc> {
        let mut times = vec![self.next_tick];
        times.extend(self.next_runs(settings).into_values());
        if !self.looking {
            times.push(self.next_look);
        }
        match &self.active {
            Some(Active::Backup { run, .. }) => times.extend(run.shown_at()),
            Some(_) => {}
            None if self.aside.is_some() => {}
            None if self.needs_stanza() => times.push(self.stanza_not_before),
            None if self.memory.paused => {}
            // What is on its way will be heard of.
            None if self.must_look() && self.looking => {}
            None if self.readiness == Readiness::Ready => {
                times.extend(self.pending.iter().map(|pending| pending.not_before));
            }
            None => {}
        }
        times.into_iter().min().unwrap_or(self.next_tick)
    }

    fn has_base(&self) -> bool {
        self.inventory.as_ref().is_some_and(|inventory| inventory.has_base(self.system_id))
    }

    /// Whether somebody else's backup, which held the lock, may have changed what is to be done.
    fn must_look(&self) -> bool {
        self.knowledge != Knowledge::Current && self.pending.iter().any(|it| it.quiet)
    }

    /// Whether the newest look says that there is no stanza.
    fn needs_stanza(&self) -> bool {
        self.knowledge == Knowledge::Current
            && self.look_failure.is_none()
            && self.inventory.as_ref().is_some_and(
                |inventory| matches!(&inventory.repository, Ok(it) if it.stanza_is_missing()),
            )
    }
}

/// Takes in one event: what is known then, and what is to be done, in this order.
pub fn step(
    state: State,
    event: Event,
    present: Present,
    settings: &Settings,
) -> (State, Vec<Action>) {
    let remembered = state.memory.clone();
    let mut turn = Turn { state, present, settings, actions: Vec::new() };
    turn.heed_clock();
    turn.take_in(event);
    turn.go_on();
    if turn.state.memory != remembered {
        turn.actions.push(Action::Remember(turn.state.memory.clone()));
    }
    (turn.state, turn.actions)
}

/// One step at work.
struct Turn<'a> {
    state: State,
    present: Present,
    settings: &'a Settings,
    actions: Vec<Action>,
}

impl Turn<'_> {
    fn take_in(&mut self, event: Event) {
        match event {
            Event::Started { unfinished, labels, full_due } => {
                self.state.full_due = full_due;
                self.started(unfinished, labels);
            }
            Event::Tick => {}
            Event::Reloaded => self.reloaded(),
            Event::CheckAsked => self.start_afresh(),
            Event::Requested { ticket, kind } => self.requested(ticket, kind),
            Event::JobExited(exit) => self.job_exited(exit),
            Event::Looked(result) => self.looked(result),
            Event::PauseAsked(pause) => self.pause(pause),
            Event::CancelAsked => self.cancel(),
            Event::ShutdownAsked => self.shut_down(),
        }
    }

    /// Where the clock was set back, what was to happen in a minute still happens in a minute.
    fn heed_clock(&mut self) {
        let state = &mut self.state;
        let set_back = (state.clock - self.present.now).max(TimeDelta::zero());
        state.clock = self.present.now;
        state.next_tick -= set_back;
        state.next_look -= set_back;
        state.hold_until -= set_back;
        state.stanza_not_before -= set_back;
        if let Some(cost) = &mut state.memory.growth_cost {
            cost.ended -= set_back;
        }
        for pending in &mut state.pending {
            pending.not_before -= set_back;
        }
    }

    /// Does what the time and the state ask for, whatever the event was.
    fn go_on(&mut self) {
        if self.state.shutting_down {
            return;
        }
        self.serve_schedules(Trigger::Schedule);
        if let Some(why) = self.state.aside.clone() {
            // From before.
            for Pending { job, .. } in std::mem::take(&mut self.state.pending) {
                self.refuse(job, &why);
            }
        }
        let tick_due = self.state.next_tick <= self.present.now;
        if tick_due {
            self.state.next_tick =
                self.present.now + TimeDelta::seconds(self.settings.wal_monitor_interval);
        }
        self.request_after_restore();
        self.request_missing_base();
        if tick_due {
            self.watch_growth();
        }
        self.start_job();
        self.show_job();
        self.start_look();
    }

    /// What was running when the worker died has failed, unless pgBackRest had finished; it is
    /// taken again. What waited goes on waiting.
    fn started(&mut self, unfinished: Vec<Job>, labels: BTreeSet<String>) {
        let now = self.present.now;
        self.state.known_labels = labels;
        let newest = unfinished.iter().map(|job| job.id).max().unwrap_or(0);
        self.state.memory.next_job = self.state.memory.next_job.max(newest.saturating_add(1));
        let (waiting, running): (Vec<Job>, Vec<Job>) =
            unfinished.into_iter().partition(|job| job.status == Status::Waiting);
        self.state.pending.extend(waiting.into_iter().map(|job| Pending::new(job, now)));
        for mut job in running {
            if job.label.is_some() && self.state.active.is_none() {
                self.state.active = Some(Active::Settling { job, waited: TimeDelta::zero() });
                continue;
            }
            let (kind, attempt) = (job.requested, job.attempt);
            job.message =
                Some("the server or the worker ended while the backup was running".to_string());
            self.end(job, Status::Failed);
            match self.waiting(kind) {
                Some(waiting) => waiting.may_skip = false,
                None => self.request_again(kind, Trigger::Startup, attempt, TimeDelta::zero()),
            }
        }
        self.serve_schedules(Trigger::Startup);
    }

    /// Gives everything that was held back after a failure another chance now.
    fn start_afresh(&mut self) {
        let now = self.present.now;
        self.state.look_wanted = true;
        self.state.hold_until = now;
        self.state.stanza_not_before = now;
        self.state.next_tick = now;
        for pending in &mut self.state.pending {
            pending.not_before = now;
        }
    }

    /// Settings may lead to another repository: nothing starts before that was looked at.
    fn reloaded(&mut self) {
        self.start_afresh();
        self.look_anew();
        // Another repository may be configured, which has to have its own backups.
        self.state.unlisted = None;
        if self.state.readiness == Readiness::Ready {
            self.state.readiness = Readiness::Unknown;
        }
    }

    /// Something has happened that a look must show before decisions are made by it.
    fn look_anew(&mut self) {
        self.state.look_wanted = true;
        self.state.knowledge = Knowledge::Outdated;
    }

    fn requested(&mut self, ticket: usize, kind: BackupType) {
        let now = self.present.now;
        let aside = self.state.aside.clone();
        if let Some(why) = aside.or_else(|| self.state.memory.paused.then(paused)) {
            // Never what waits already: that is for later.
            let job = self.new_job(kind, Trigger::Manual);
            self.record(&job);
            self.actions.push(Action::Answer { ticket, job: job.id });
            return self.refuse(job, &why);
        }
        let job = match self.waiting(kind) {
            Some(pending) => {
                pending.may_skip = false;
                pending.wanted = true;
                pending.not_before = now;
                pending.job.id
            }
            None => {
                let job = self.new_job(kind, Trigger::Manual);
                let id = job.id;
                self.record(&job);
                self.state.pending.push(Pending { wanted: true, ..Pending::new(job, now) });
                id
            }
        };
        if matches!(self.state.readiness, Readiness::Blocked(_)) {
            // It may have been mended just now: look before refusing.
            self.state.look_wanted = true;
            self.state.stanza_not_before = self.present.now;
        }
        self.actions.push(Action::Answer { ticket, job });
    }

    /// What schedules ask for meanwhile waits. Who waits for a backup is told now.
    fn pause(&mut self, pause: bool) {
        self.state.memory.paused = pause;
        if pause {
            self.fail_wanted(&paused());
        }
    }

    fn cancel(&mut self) {
        match &mut self.state.active {
            Some(Active::Backup { cancelled, .. }) => {
                *cancelled = true;
                self.actions.push(Action::StopJob);
            }
            Some(Active::Settling { .. }) => {}
            Some(Active::CreatingStanza) | None => {
                let waiting = std::mem::take(&mut self.state.pending);
                if !waiting.is_empty() {
                    self.hold_back();
                }
                for pending in waiting {
                    self.end(pending.job, Status::Cancelled);
                }
            }
        }
    }

    fn shut_down(&mut self) {
        self.state.shutting_down = true;
        if matches!(self.state.active, Some(Active::Backup { .. } | Active::CreatingStanza)) {
            self.actions.push(Action::StopJob);
        }
        if self.state.looking {
            self.actions.push(Action::StopLook);
        }
    }

    fn job_exited(&mut self, exit: Exit) {
        let verdict = exit::judge(exit.code, exit.signal, &exit.output);
        match self.state.active.take() {
            Some(Active::CreatingStanza) => self.stanza_created(verdict),
            Some(Active::Backup { run, cancelled }) => {
                self.backup_exited(run, cancelled, &exit, verdict);
            }
            // Nothing was running: a settling job waits for its look, not for a child.
            other => self.state.active = other,
        }
    }

    fn stanza_created(&mut self, verdict: Verdict) {
        self.look_anew();
        // Also after a success: on a full disk pgBackRest reports one and has created nothing.
        self.state.stanza_tries += 1;
        self.state.stanza_not_before = self.present.now + back_off(self.state.stanza_tries);
        if verdict.judgement == Judgement::Success || self.state.shutting_down {
            return;
        }
        self.block(Failure {
            message: format!(
                "could not create the stanza \"{}\": {}",
                self.settings.stanza, verdict.message
            ),
            hint: verdict.hint.unwrap_or_else(|| {
                "Mend what pgBackRest reports. It is tried again, and at once by SELECT nrt_check()."
                    .to_string()
            }),
        });
    }

    fn backup_exited(&mut self, mut run: Pending, cancelled: bool, exit: &Exit, verdict: Verdict) {
        run.job.exit_code = exit.code;
        if verdict.judgement == Judgement::Success {
            run.job.label = new_label(&exit.output);
            if run.job.label.is_some() {
                // Should the worker end before the look: the backup is there, the label says so.
                self.record(&run.job);
            }
            self.state.active = Some(Active::Settling { job: run.job, waited: exit.waited });
            self.look_anew();
            return;
        }
        let (kind, trigger, attempt) = (run.job.requested, run.job.trigger, run.job.attempt);
        if cancelled {
            self.state.look_wanted = true;
            run.job.message = Some("cancelled".to_string());
            self.end(run.job, Status::Cancelled);
            // Else a missing base, say, would start right away what was cancelled.
            self.hold_back();
            if trigger != Trigger::Manual {
                self.request_again(kind, trigger, attempt, RETRY_CEILING);
            }
            return;
        }
        if self.state.shutting_down {
            // Left as running: the next start marks it failed and takes it again.
            return;
        }
        if verdict.judgement == Judgement::Wait {
            self.wait_for_lock(run, verdict);
            return;
        }
        self.state.look_wanted = true;
        run.job.message = Some(verdict.message);
        run.job.hint = verdict.hint;
        self.end(run.job, Status::Failed);
        if trigger == Trigger::Manual {
            // Whoever asked has been told, and decides.
            return;
        }
        let mut delay = back_off(attempt);
        self.hold_back();
        if !self.state.has_base() {
            delay = delay.min(FIRST_BACKUP_CEILING);
            self.state.hold_until = self.present.now + FIRST_BACKUP_CEILING;
        }
        if verdict.judgement == Judgement::Retry {
            self.request_again(kind, trigger, attempt, delay);
        }
    }

    /// Somebody else's backup is running: that is no failure, the job waits for its end.
    fn wait_for_lock(&mut self, mut run: Pending, verdict: Verdict) {
        run.job.status = Status::Waiting;
        run.job.started_at = None;
        run.job.exit_code = None;
        run.job.message = Some(verdict.message);
        run.job.hint = verdict.hint;
        if !run.quiet {
            self.record(&run.job);
        }
        run.quiet = true;
        let next_poll = self.present.now + LOCK_POLL;
        run.not_before = next_poll;
        // The other's backup may be what this one is for: the next try comes after a look.
        self.state.knowledge = Knowledge::Outdated;
        // It is one lock for all.
        for pending in &mut self.state.pending {
            pending.not_before = pending.not_before.max(next_poll);
        }
        self.state.pending.push(run);
    }

    fn looked(&mut self, result: Result<Box<Inventory>, Failure>) {
        self.state.looking = false;
        self.state.next_look = self.present.now + LOOK_INTERVAL;
        if self.state.shutting_down {
            return;
        }
        match result {
            Ok(inventory) => {
                self.state.look_failure = None;
                self.state.inventory = Some(*inventory);
            }
            Err(failure) => self.state.look_failure = Some(failure),
        }
        match self.state.knowledge {
            // It began too early: the next one counts.
            Knowledge::Outdated => return,
            Knowledge::Renewing | Knowledge::Current => self.state.knowledge = Knowledge::Current,
        }
        match self.state.look_failure.clone() {
            None => self.judge_readiness(),
            // Backups do not need the look: they go on until one says that they cannot.
            Some(_) if self.state.readiness == Readiness::Ready => {}
            Some(failure) => self.block(failure),
        }
        if self.state.unlisted.as_ref().is_some_and(|job| self.find(job).is_some()) {
            self.state.unlisted = None;
        }
        match self.state.active.take() {
            Some(Active::Settling { job, waited }) => self.succeed(job, waited),
            other => self.state.active = other,
        }
        if self.state.active.is_none() {
            self.record_external();
        }
        self.find_full_since_restore();
    }

    fn succeed(&mut self, mut job: Job, waited: TimeDelta) {
        match self.find(&job) {
            Some(backup) => {
                describe(&mut job, &backup);
                if job.trigger == Trigger::WalGrowth {
                    // By the repository's account: a worker that died meanwhile was not there.
                    let took = backup.stop_time - backup.start_time;
                    self.state.memory.growth_cost = Some(Cost::of(took, waited, self.present.now));
                }
                self.state.unlisted = None;
            }
            // The look that has just ended began after the backup had ended. Another backup would
            // be missing from the listing, too: this is reported instead.
            None if self.can_list() => self.state.unlisted = Some(job.clone()),
            None => {}
        }
        if job.kind != job.requested && job.message.is_none() {
            // pgBackRest found so itself: the repository has changed since it was looked at.
            job.message = Some(NO_BASE.to_string());
        }
        self.state.known_labels.extend(job.label.clone());
        if let Some(label) = job.label.clone().filter(|_| job.kind == BackupType::Full) {
            self.full_is_taken(label);
        }
        self.state.last_failure = None;
        self.state.hold_until = self.present.now;
        self.end(job, Status::Succeeded);
    }

    /// Whether the last look has seen the backups of the repository.
    fn can_list(&self) -> bool {
        let seen = self.state.inventory.as_ref().filter(|_| self.state.look_failure.is_none());
        seen.and_then(|it| it.repository.as_ref().ok()).is_some_and(|it| it.problem().is_none())
    }

    /// The backup that a job has taken. If its label was not among the last that pgBackRest
    /// printed, it is the first since then that the history does not know.
    fn find(&self, job: &Job) -> Option<Backup> {
        let inventory = self.state.inventory.as_ref()?;
        let taken = |backup: &&Backup| match &job.label {
            Some(label) => backup.label == *label,
            None => {
                // pgBackRest counts whole seconds.
                let ended =
                    job.started_at.is_some_and(|it| it.timestamp() <= backup.stop_time.timestamp());
                ended && !self.state.known_labels.contains(&backup.label)
            }
        };
        inventory.backups_of(self.state.system_id).find(taken).cloned()
    }

    /// Puts backups into the history that it does not know: taken by hand, or before the history
    /// was lost.
    fn record_external(&mut self) {
        let Some(inventory) = &self.state.inventory else { return };
        let unknown: Vec<Backup> = inventory
            .backups_of(self.state.system_id)
            .filter(|backup| !self.state.known_labels.contains(&backup.label))
            .cloned()
            .collect();
        for backup in unknown {
            let mut job = self.new_job(backup.kind, trigger_of(&backup));
            job.requested_at = backup.start_time;
            job.started_at = Some(backup.start_time);
            job.finished_at = Some(backup.stop_time);
            job.status = Status::Succeeded;
            describe(&mut job, &backup);
            self.state.known_labels.insert(backup.label);
            self.record(&job);
        }
    }

    fn judge_readiness(&mut self) {
        let Some(inventory) = &self.state.inventory else { return };
        let repository = match (&inventory.pgbackrest, &inventory.repository) {
            (Err(failure), _) | (Ok(_), Err(failure)) => {
                let failure = failure.clone();
                self.forget_stanza_tries();
                return self.block(failure);
            }
            (Ok(_), Ok(repository)) => repository,
        };
        if repository.stanza_is_missing() {
            if self.state.stanza_tries == 0 {
                self.state.readiness = Readiness::Unknown;
            } else if self.state.readiness == Readiness::Unknown {
                self.block(Failure {
                    message: format!(
                        "pgBackRest has created the stanza \"{}\", but it is not in the repository",
                        self.settings.stanza
                    ),
                    hint: "The disk of the repository may be full. Make room; it is tried again."
                        .to_string(),
                });
            }
            // Else a failed try has said more than "missing" does.
            return;
        }
        let failure = match repository.problem() {
            Some(problem) => Some(Failure {
                message: format!(
                    "pgBackRest cannot read the stanza \"{}\": {problem}",
                    self.settings.stanza
                ),
                hint: if problem.contains("Permission denied") {
                    "Give the server's user the right to read and write the repository."
                } else {
                    "Look at the repository with pgbackrest info; the server's log has more."
                }
                .to_string(),
            }),
            None => match repository.system_id() {
                Some(id) if id != self.state.system_id => Some(Failure {
                    message: format!(
                        "the stanza \"{}\" belongs to the cluster with system identifier {id}, \
                         this one has {}",
                        self.settings.stanza, self.state.system_id
                    ),
                    hint: format!(
                        "Set nrt_backup.stanza to a name of its own for this cluster, or \
                         nrt_backup.repository to another directory. After pg_upgrade, as the \
                         server's user and with PGDATA set: pgbackrest --config={} --stanza={} \
                         stanza-upgrade.",
                        self.settings
                            .pgbackrest_config
                            .as_deref()
                            .unwrap_or("$PGDATA/nrt_backup/pgbackrest.conf"),
                        self.settings.stanza
                    ),
                }),
                _ => None,
            },
        };
        self.forget_stanza_tries();
        match failure {
            Some(failure) => self.block(failure),
            None => {
                self.state.readiness = Readiness::Ready;
                // What was refused because nothing could run has no other cause to be mended.
                self.state.last_failure.take_if(|job| job.started_at.is_none());
            }
        }
    }

    fn forget_stanza_tries(&mut self) {
        self.state.stanza_tries = 0;
        self.state.stanza_not_before = self.present.now;
    }

    /// Nothing can run: who waits is told now, what starts by itself waits until it is mended.
    fn block(&mut self, failure: Failure) {
        self.fail_wanted(&failure);
        self.state.readiness = Readiness::Blocked(failure);
    }

    fn fail_wanted(&mut self, failure: &Failure) {
        let (wanted, others) =
            std::mem::take(&mut self.state.pending).into_iter().partition(|it| it.wanted);
        self.state.pending = others;
        let wanted: Vec<Pending> = wanted;
        for Pending { job, .. } in wanted {
            self.refuse(job, failure);
        }
    }

    fn refuse(&mut self, mut job: Job, failure: &Failure) {
        job.message = Some(failure.message.clone());
        job.hint = Some(failure.hint.clone());
        self.end(job, Status::Failed);
    }

    fn serve_schedules(&mut self, trigger: Trigger) {
        let due = schedule::serve(&mut self.state.memory.served, self.settings, self.present.now);
        // A full backup serves whoever wanted a smaller one at the same minute.
        if let Some(kind) = due.into_iter().max().filter(|_| self.state.aside.is_none()) {
            self.request(kind, trigger);
        }
    }

    /// A restored server is on a timeline of its own: its next backup is to need nothing of the
    /// ones before.
    fn request_after_restore(&mut self) {
        if self.state.full_due.is_some() && self.can_take_by_itself() {
            self.request(BackupType::Full, Trigger::Startup);
        }
    }

    fn request_missing_base(&mut self) {
        let is_unlisted =
            self.state.unlisted.as_ref().is_some_and(|it| it.kind == BackupType::Full);
        if !self.state.has_base() && !is_unlisted && self.can_take_by_itself() {
            self.request(BackupType::Full, Trigger::MissingBase);
        }
    }

    /// Whether a backup can start that nobody asks for.
    fn can_take_by_itself(&self) -> bool {
        self.state.readiness == Readiness::Ready
            && self.state.aside.is_none()
            && !self.state.memory.paused
            && self.state.look_failure.is_none()
            && self.state.running().is_none()
            && self.state.hold_until <= self.present.now
    }

    /// Somebody may have taken the full backup by hand, or the worker died right after it.
    fn find_full_since_restore(&mut self) {
        let Some(due) = &self.state.full_due else { return };
        let Some(inventory) = &self.state.inventory else { return };
        let taken = inventory.backups_of(self.state.system_id).find(|it| due.is_met_by(it));
        if let Some(label) = taken.map(|backup| backup.label.clone()) {
            self.full_is_taken(label);
        }
    }

    fn full_is_taken(&mut self, label: String) {
        if self.state.full_due.take().is_some() {
            self.actions.push(Action::FullTaken(label));
        }
    }

    fn watch_growth(&mut self) {
        let grown = self.present.growth.is_some_and(|it| it >= self.settings.wal_growth_threshold);
        if self.settings.wal_monitor
            && grown
            && self.state.aside.is_none()
            && !self.state.memory.paused
            && !matches!(self.state.readiness, Readiness::Blocked(_))
            && self.state.has_base()
            && self.state.unlisted.is_none()
            // Else the growth may be that since the backup before the last.
            && self.state.look_failure.is_none()
            && self.state.active.is_none()
            && self.state.pending.is_empty()
            && self.state.hold_until <= self.present.now
            && self.state.growth_rests_until(self.settings).is_none_or(|it| it <= self.present.now)
        {
            self.request(BackupType::Incr, Trigger::WalGrowth);
        }
    }

    /// Asks for a backup, unless one of the type is waiting already.
    fn request(&mut self, kind: BackupType, trigger: Trigger) {
        if self.waiting(kind).is_some() {
            return;
        }
        let job = self.new_job(kind, trigger);
        self.record(&job);
        self.state.pending.push(Pending::new(job, self.present.now));
    }

    /// Asks for another try of a backup that has failed.
    fn request_again(
        &mut self,
        kind: BackupType,
        trigger: Trigger,
        attempt: u32,
        delay: TimeDelta,
    ) {
        if self.waiting(kind).is_some() {
            return;
        }
        let mut job = self.new_job(kind, trigger);
        job.attempt = attempt.saturating_add(1);
        self.record(&job);
        self.state.pending.push(Pending::new(job, self.present.now + delay));
    }

    fn waiting(&mut self, kind: BackupType) -> Option<&mut Pending> {
        self.state.pending.iter_mut().find(|pending| pending.job.requested == kind)
    }

    fn start_job(&mut self) {
        if self.state.aside.is_some() {
            return;
        }
        while self.state.active.is_none() {
            if self.state.needs_stanza() {
                return self.create_stanza();
            }
            if self.state.readiness != Readiness::Ready || self.state.memory.paused {
                return;
            }
            let now = self.present.now;
            let pending = self.state.pending.iter().enumerate();
            let next = pending
                .filter(|(_, it)| it.not_before <= now)
                // The biggest first, and of one type whoever asked first.
                .max_by_key(|(place, it)| (it.job.requested, std::cmp::Reverse(*place)));
            let Some((place, _)) = next else { return };
            if self.state.must_look() {
                self.state.look_wanted |= self.state.knowledge == Knowledge::Outdated;
                return;
            }
            let pending = self.state.pending.remove(place);
            self.start_backup(pending);
        }
    }

    fn create_stanza(&mut self) {
        if self.state.stanza_not_before <= self.present.now {
            self.state.active = Some(Active::CreatingStanza);
            self.actions.push(Action::Start(Command::CreateStanza));
        }
    }

    fn start_backup(&mut self, mut run: Pending) {
        run.job.wal_growth = self.present.growth;
        run.job.kind = run.job.requested;
        run.job.message = None;
        run.job.hint = None;
        let has_base = self.state.has_base();
        if let Some(reason) = self.reason_to_skip(&run.job).filter(|_| has_base && run.may_skip) {
            run.job.message = Some(reason);
            return self.end(run.job, Status::Skipped);
        }
        if !has_base && run.job.kind != BackupType::Full {
            run.job.kind = BackupType::Full;
            run.job.message = Some(NO_BASE.to_string());
        } else if run.job.kind == BackupType::Incr
            && let Some(inventory) = &self.state.inventory
        {
            let backups = inventory.backups_of(self.state.system_id);
            run.job.kind = pace::kind_for(run.job.trigger, backups, self.settings);
            if run.job.kind != BackupType::Incr {
                run.job.message = Some(format!(
                    "{} incremental backups since the last full or differential one: a \
                     differential one was taken instead",
                    self.settings.max_incrementals
                ));
            }
        }
        run.job.status = Status::Running;
        run.job.started_at = Some(self.present.now);
        if !run.quiet {
            self.record(&run.job);
        }
        self.actions.push(Action::Start(Command::Backup {
            job: run.job.id,
            kind: run.job.kind,
            trigger: run.job.trigger,
        }));
        self.state.active = Some(Active::Backup { run, cancelled: false });
    }

    /// Why there is nothing to be gained by a job, where a full backup is there.
    fn reason_to_skip(&self, job: &Job) -> Option<String> {
        if job.trigger == Trigger::MissingBase {
            return Some("a full backup has been taken meanwhile".to_string());
        }
        let growth = self.present.growth.filter(|it| *it < self.settings.min_wal_growth)?;
        (job.requested != BackupType::Full)
            .then(|| format!("only {growth} bytes of WAL since the last backup"))
    }

    /// Shows a quiet try that has got beyond the lock.
    fn show_job(&mut self) {
        let Some(Active::Backup { run, .. }) = &mut self.state.active else { return };
        if run.shown_at().is_some_and(|at| at <= self.present.now) {
            run.quiet = false;
            let job = run.job.clone();
            self.record(&job);
        }
    }

    fn start_look(&mut self) {
        let due = self.state.look_wanted || self.state.next_look <= self.present.now;
        if due && !self.state.looking {
            self.state.looking = true;
            self.state.look_wanted = false;
            if self.state.knowledge == Knowledge::Outdated {
                self.state.knowledge = Knowledge::Renewing;
            }
            self.actions.push(Action::Start(Command::Look));
        }
    }

    fn new_job(&mut self, kind: BackupType, trigger: Trigger) -> Job {
        let id = self.state.memory.next_job.max(1);
        self.state.memory.next_job = id.saturating_add(1);
        Job::new(id, kind, trigger, self.present.now)
    }

    fn end(&mut self, mut job: Job, status: Status) {
        job.status = status;
        job.finished_at = Some(self.present.now);
        // What was refused because of a pause was no failure.
        if status == Status::Failed && !(self.state.memory.paused && job.started_at.is_none()) {
            self.state.last_failure = Some(job.clone());
        }
        self.record(&job);
    }

    fn hold_back(&mut self) {
        self.state.hold_until = self.present.now + RETRY_CEILING;
    }

    fn record(&mut self, job: &Job) {
        self.actions.push(Action::Record(Box::new(job.clone())));
    }
}

/// Copies into the history's row what the repository knows of the backup.
fn describe(job: &mut Job, backup: &Backup) {
    job.label = Some(backup.label.clone());
    job.kind = backup.kind;
    job.start_lsn = backup.start_lsn;
    job.stop_lsn = backup.stop_lsn;
    job.size = backup.size;
    job.delta = backup.delta;
    job.repository_delta = backup.repo_delta;
}

/// Why a backup of the repository was taken: ours carry it with them.
pub fn trigger_of(backup: &Backup) -> Trigger {
    let noted = backup.annotations.get(TRIGGER_ANNOTATION);
    noted.and_then(|name| name.parse().ok()).unwrap_or(Trigger::External)
}

/// The delay before the try after the `attempt`th.
fn back_off(attempt: u32) -> TimeDelta {
    let doublings = attempt.saturating_sub(1).min(16);
    (FIRST_RETRY * (1 << doublings)).min(RETRY_CEILING)
}

/// pgBackRest's name for the backup that it has just taken.
fn new_label(output: &str) -> Option<String> {
    let (_, after) = output.rsplit_once("new backup label = ")?;
    after.split_whitespace().next().map(str::to_string)
}
