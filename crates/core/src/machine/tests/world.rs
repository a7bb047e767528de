//! Plays everything around the machine: the worker, its children, the repository and the clock.
//!
//! After every step it checks what must hold whatever happens. A story needs to say only what is
//! particular to it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::super::*;
use crate::inventory::{Disk, Repository};
use crate::lsn::{Lsn, Segment};
use crate::pgbackrest::archive::ArchiveRange;
use crate::pgbackrest::command::TRIGGER_ANNOTATION;
use crate::pgbackrest::info::parse_info;
use crate::pgbackrest::version::MINIMUM;

/// The cluster's own system identifier.
pub(crate) const OURS: u64 = 7_300_000_000_000_000_001;
/// Another cluster's.
pub(crate) const OTHER: u64 = 7_300_000_000_000_000_002;

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    format!("{text}Z").parse().expect("a time")
}

pub(crate) fn failure(message: &str) -> Failure {
    Failure { message: message.to_string(), hint: format!("Mend \"{message}\".") }
}

/// The defaults without schedules.
pub(crate) fn unscheduled() -> Settings {
    Settings { full_schedule: None, incremental_schedule: None, ..Settings::defaults() }
}

/// What the repository really holds.
#[derive(Debug, Clone)]
pub(crate) struct Reality {
    /// What `pgbackrest version` fails with.
    pub(crate) pgbackrest: Option<Failure>,
    /// What `pgbackrest info` fails with.
    pub(crate) unreadable: Option<Failure>,
    pub(crate) stanza: bool,
    /// Whose stanza it is.
    pub(crate) owner: u64,
    /// On a full disk stanza-create succeeds and creates nothing.
    pub(crate) full_disk: bool,
    pub(crate) disk: Disk,
    /// The operator's configuration lets the state directory into backups.
    pub(crate) state_not_excluded: bool,
    pub(crate) backups: Vec<serde_json::Value>,
    pub(crate) archive: Vec<ArchiveRange>,
    pub(crate) taken: usize,
    /// Listings leave the backups out.
    pub(crate) unlisted: bool,
}

impl Reality {
    pub(crate) fn new() -> Reality {
        Reality {
            pgbackrest: None,
            unreadable: None,
            stanza: false,
            owner: OURS,
            full_disk: false,
            disk: Disk { total: 100 << 30, available: 50 << 30 },
            state_not_excluded: false,
            backups: Vec::new(),
            archive: Vec::new(),
            taken: 0,
            unlisted: false,
        }
    }

    /// Adds a backup and answers its label. Each ends 16 MiB of WAL after the one before.
    pub(crate) fn add(
        &mut self,
        kind: BackupType,
        trigger: Option<Trigger>,
        now: DateTime<Utc>,
    ) -> String {
        self.taken += 1;
        let n = self.taken;
        let label = match kind {
            BackupType::Full => format!("20260310-{n:06}F"),
            BackupType::Diff => format!("20260310-000001F_20260310-{n:06}D"),
            BackupType::Incr => format!("20260310-000001F_20260310-{n:06}I"),
        };
        let mut backup = json!({
            "label": label,
            "type": kind.as_str(),
            "timestamp": { "start": now.timestamp() - 1, "stop": now.timestamp() },
            "lsn": { "start": format!("0/{n:X}000028"), "stop": format!("0/{n:X}000100") },
            "archive": {
                "start": format!("0000000100000000{n:08X}"),
                "stop": format!("0000000100000000{n:08X}"),
            },
            "database": { "id": 1, "repo-key": 1 },
            "info": { "size": 1000, "delta": 100, "repository": { "delta": 10 } },
        });
        if let Some(trigger) = trigger {
            backup["annotation"] = json!({ TRIGGER_ANNOTATION: trigger.as_str() });
        }
        self.backups.push(backup);
        label
    }

    pub(crate) fn labels(&self) -> BTreeSet<String> {
        let labels = self.backups.iter().map(|it| it["label"].as_str().expect("a label"));
        labels.map(str::to_string).collect()
    }

    /// The archive: the WAL of all backups, unless a test says otherwise.
    fn archived(&self) -> Vec<ArchiveRange> {
        if !self.archive.is_empty() || self.taken == 0 {
            return self.archive.clone();
        }
        vec![segments(1, self.taken as u64 + 1)]
    }

    fn seen(&self, now: DateTime<Utc>, stanza: &str) -> Inventory {
        let code = match (self.stanza, self.backups.is_empty() || self.unlisted) {
            (false, _) => 1,
            (true, true) => 2,
            (true, false) => 0,
        };
        let databases = if self.stanza {
            json!([{ "id": 1, "repo-key": 1, "system-id": self.owner, "version": "15" }])
        } else {
            json!([])
        };
        let info = json!([{
            "name": stanza,
            "status": { "code": code, "message": "as found" },
            "db": databases,
            "archive": [{ "id": "15-1", "database": { "id": 1, "repo-key": 1 } }],
            "backup": if self.stanza && !self.unlisted { self.backups.clone() } else { Vec::new() },
        }]);
        let info = parse_info(&info.to_string(), stanza).expect("info as pgBackRest prints it");
        Inventory {
            collected_at: now,
            listed_at: now,
            stanza: stanza.to_string(),
            pgbackrest: self.pgbackrest.clone().map_or(Ok(MINIMUM), Err),
            repository: match self.pgbackrest.clone().or_else(|| self.unreadable.clone()) {
                Some(failure) => Err(failure),
                None => Ok(Repository::new(info, self.archived())),
            },
            repository_disk: Some(self.disk),
            wal_disk: Some(self.disk),
            state_not_excluded: self.state_not_excluded,
            info_file: None,
        }
    }
}

/// The archive from segment `first` up to and without `end`. The first backup that is taken in a
/// [`World`] lies in segment 1, the second in segment 2, and so on.
pub(crate) fn segments(first: u64, end: u64) -> ArchiveRange {
    let size = 1 << 24;
    let segment = |number| Segment { timeline: 1, number };
    ArchiveRange {
        archive_id: "15-1".to_string(),
        timeline: 1,
        first: segment(first).name(size),
        last: segment(end - 1).name(size),
        from: segment(first).start(size),
        to: segment(end).start(size),
        segments: end - first,
        oldest_time: None,
        newest_time: None,
    }
}

/// How a job's child ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Success,
    /// The label has scrolled out of what is kept of the output.
    SuccessWithoutLabel,
    /// Somebody else holds the lock.
    Locked,
    /// A cause that may go away by itself.
    Passing,
    /// A cause that stays until somebody changes something.
    Lasting,
    Killed,
}

impl End {
    fn exit(self, label: Option<String>) -> Exit {
        let (code, signal, output) = match self {
            End::Success => {
                let label = label.unwrap_or_default();
                (Some(0), None, format!("P00   INFO: new backup label = {label}\nP00   INFO: x\n"))
            }
            End::SuccessWithoutLabel => (Some(0), None, "P00   INFO: x\n".to_string()),
            End::Locked => (
                Some(50),
                None,
                "P00  ERROR: [050]: unable to acquire lock: Resource temporarily unavailable\n"
                    .to_string(),
            ),
            End::Passing => (Some(57), None, "P00  ERROR: [057]: unable to query\n".to_string()),
            End::Lasting => (Some(51), None, "P00  ERROR: [051]: wrong cluster\n".to_string()),
            End::Killed => (None, Some(9), String::new()),
        };
        Exit { code, signal, output, ..Exit::default() }
    }
}

/// The machine and all around it.
pub(crate) struct World {
    pub(crate) now: DateTime<Utc>,
    pub(crate) settings: Settings,
    pub(crate) growth: Option<u64>,
    /// Where the newest backup that a look has seen ends: growth counts from there.
    measured_from: Option<Lsn>,
    pub(crate) reality: Reality,
    /// The last row of each job.
    pub(crate) jobs: BTreeMap<u64, Job>,
    /// Who asked, and which job it became.
    pub(crate) answers: BTreeMap<usize, u64>,
    pub(crate) steps: usize,
    /// The time at the last step, and how many there were at that time.
    instant: (DateTime<Utc>, usize),
    state: Option<State>,
    memory: Memory,
    /// The running child, and whether it was told to stop.
    job: Option<(Command, bool)>,
    /// What the running look will tell: it looked when it began.
    look: Option<Inventory>,
    shutting_down: bool,
    next_ticket: usize,
    highest_id: u64,
    told: Vec<String>,
    /// The full backup that is due after a restore, as the marker says.
    pub(crate) full_due: Option<FullDue>,
    /// Why the server takes no backups, if it takes none.
    pub(crate) aside: Option<Failure>,
}

impl World {
    /// A server that starts for the first time.
    pub(crate) fn new(settings: Settings) -> World {
        World::within(Reality::new(), settings)
    }

    /// A server without schedules that starts and finds its stanza, but no backup.
    pub(crate) fn unprotected() -> World {
        World::within(Reality { stanza: true, ..Reality::new() }, unscheduled())
    }

    pub(crate) fn within(reality: Reality, settings: Settings) -> World {
        let now = at("2026-03-10T12:00:30");
        let mut world = World {
            now,
            settings,
            growth: None,
            measured_from: None,
            reality,
            jobs: BTreeMap::new(),
            answers: BTreeMap::new(),
            steps: 0,
            instant: (now, 0),
            state: None,
            memory: Memory::default(),
            job: None,
            look: None,
            shutting_down: false,
            next_ticket: 0,
            highest_id: 0,
            told: Vec::new(),
            full_due: None,
            aside: None,
        };
        world.start();
        world
    }

    /// A server without schedules that has been protected for a while: nothing is running.
    pub(crate) fn protected() -> World {
        World::protected_with(unscheduled())
    }

    pub(crate) fn protected_with(settings: Settings) -> World {
        let mut world = World::new(settings);
        world.settle();
        assert_eq!(world.statuses(), [Status::Succeeded]);
        world.told.clear();
        world
    }

    pub(crate) fn state(&self) -> &State {
        self.state.as_ref().expect("there is a state between steps")
    }

    /// What was told since the last call: commands that were started, rows, answers. Looks are
    /// left out.
    pub(crate) fn told(&mut self) -> Vec<String> {
        mem::take(&mut self.told)
    }

    pub(crate) fn row(&self, id: u64) -> &Job {
        &self.jobs[&id]
    }

    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.jobs.values().map(|job| job.status).collect()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.job.is_some()
    }

    pub(crate) fn is_looking(&self) -> bool {
        self.look.is_some()
    }

    /// Whether the running child was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.job, Some((_, true)))
    }

    /// The worker starts, with what the one before it left.
    fn start(&mut self) {
        self.shutting_down = false;
        let state = State::new(OURS, self.memory.clone(), self.now);
        self.state = Some(state.standing_aside(self.aside.clone()));
        let unfinished = self.jobs.values().filter(|job| !job.status.is_final()).cloned().collect();
        let labels = self.jobs.values().filter_map(|job| job.label.clone()).collect();
        let full_due = self.full_due.clone();
        self.step(Event::Started { unfinished, labels, full_due });
    }

    /// The worker dies with its children, and is started again after `pause`.
    pub(crate) fn crash(&mut self, pause: TimeDelta) {
        (self.job, self.look) = (None, None);
        self.now += pause;
        self.start();
    }

    /// A restore leaves its marker behind.
    pub(crate) fn mark_as_restored(&mut self) {
        let labels = self.reality.backups.iter().filter_map(|it| it["label"].as_str());
        let before = Some(labels.map(str::to_string).collect());
        self.full_due = Some(FullDue { timeline: 1, lsn: Lsn(0), before });
    }

    /// The server is restored from a backup: nothing of the state directory comes back, and the
    /// worker finds the restore's marker.
    pub(crate) fn restore(&mut self) {
        self.lose_history();
        self.mark_as_restored();
        self.crash(TimeDelta::seconds(10));
    }

    /// What the worker that starts next remembers of a pause.
    pub(crate) fn memory_paused(&mut self, paused: bool) {
        self.memory.paused = paused;
    }

    /// The files of the state directory are lost.
    pub(crate) fn lose_history(&mut self) {
        self.jobs.clear();
        self.answers.clear();
        self.memory = Memory::default();
        self.highest_id = 0;
    }

    pub(crate) fn shut_down(&mut self) {
        self.step(Event::ShutdownAsked);
    }

    /// Somebody asks for a backup; answers the job that it became.
    pub(crate) fn request(&mut self, kind: BackupType) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.step(Event::Requested { ticket, kind });
        self.answers[&ticket]
    }

    pub(crate) fn end_job(&mut self, end: End) {
        let Some((command, _)) = self.job.take() else { return };
        let succeeded = matches!(end, End::Success | End::SuccessWithoutLabel);
        let mut label = None;
        match command {
            Command::CreateStanza => self.reality.stanza |= succeeded && !self.reality.full_disk,
            Command::Backup { kind, trigger, .. } if succeeded => {
                label = Some(self.reality.add(kind, Some(trigger), self.now));
            }
            _ => {}
        }
        self.step(Event::JobExited(end.exit(label)));
    }

    /// The running backup succeeds and has begun so long ago, of which it waited for a checkpoint.
    pub(crate) fn end_backup_that_took(&mut self, took: TimeDelta, waited: TimeDelta) {
        let Some((Command::Backup { kind, trigger, .. }, _)) = self.job.take() else { return };
        let label = self.reality.add(kind, Some(trigger), self.now);
        let backup = self.reality.backups.last_mut().expect("just taken");
        backup["timestamp"]["start"] = (self.now - took).timestamp().into();
        let exit = Exit { waited, ..End::Success.exit(Some(label)) };
        self.step(Event::JobExited(exit));
    }

    /// The running backup succeeds, and its exit is not noticed before a look has seen it.
    pub(crate) fn end_job_behind_a_look(&mut self) {
        let Some((Command::Backup { kind, trigger, .. }, _)) = self.job.take() else { return };
        let label = self.reality.add(kind, Some(trigger), self.now);
        self.step(Event::CheckAsked);
        self.end_look();
        self.step(Event::JobExited(End::Success.exit(Some(label))));
    }

    pub(crate) fn end_look(&mut self) {
        let Some(seen) = self.look.take() else { return };
        let last_stop = seen.last_stop(OURS);
        if last_stop.is_some() && last_stop != self.measured_from {
            self.growth = Some(0);
            self.measured_from = last_stop;
        }
        self.step(Event::Looked(Ok(Box::new(seen))));
    }

    pub(crate) fn fail_look(&mut self) {
        if self.look.take().is_some() {
            self.step(Event::Looked(Err(failure("the look hangs"))));
        }
    }

    /// Lets all children succeed until none is running.
    pub(crate) fn settle(&mut self) {
        while self.is_looking() || self.is_running() {
            self.end_look();
            self.end_job(End::Success);
        }
    }

    /// Lets whatever runs succeed, or else sleeps until the machine wakes.
    pub(crate) fn settle_once(&mut self) {
        if self.is_looking() {
            self.end_look();
        } else if self.is_running() {
            self.end_job(End::Success);
        } else {
            self.sleep_until(self.now + TimeDelta::hours(1));
        }
    }

    /// Sets the clock back; the worker wakes soon after, because it sleeps by another clock.
    pub(crate) fn set_clock_back(&mut self, time: TimeDelta) {
        self.now -= time;
        self.step(Event::Tick);
    }

    /// Lets time go by, with no other clock than `wake_at`. Looks succeed at once; jobs go on.
    pub(crate) fn pass(&mut self, time: TimeDelta) {
        let until = self.now + time;
        loop {
            while self.is_looking() {
                self.end_look();
            }
            if !self.sleep_until(until) {
                break;
            }
        }
    }

    /// Sleeps until the machine wants to be woken, but not longer than `until`. Answers whether
    /// it was woken.
    pub(crate) fn sleep_until(&mut self, until: DateTime<Utc>) -> bool {
        let wake_at = self.state().wake_at(&self.settings);
        self.now = wake_at.min(until);
        let woken = wake_at <= until;
        if woken {
            self.step(Event::Tick);
        }
        woken
    }

    /// One step, with all that must hold whatever happens.
    pub(crate) fn step(&mut self, event: Event) {
        self.steps += 1;
        let before = if self.instant.0 == self.now { self.instant.1 } else { 0 };
        self.instant = (self.now, before + 1);
        assert!(before < 500, "it spins at {}", self.now);
        self.shutting_down |= event == Event::ShutdownAsked;
        let asked = match &event {
            Event::Requested { ticket, .. } => Some(*ticket),
            _ => None,
        };
        let present = Present { now: self.now, growth: self.growth };
        let state = self.state.take().expect("there is a state between steps");
        let (state, actions) = step(state, event, present, &self.settings);
        self.state = Some(state);
        let answered: Vec<usize> = actions
            .iter()
            .filter_map(|it| match it {
                Action::Answer { ticket, .. } => Some(*ticket),
                _ => None,
            })
            .collect();
        assert_eq!(answered, Vec::from_iter(asked), "every question is answered at once, and once");
        for action in actions {
            self.carry_out(action);
        }
        assert!(self.memory.next_job.max(1) > self.highest_id, "the next number is remembered");
        let wake_at = self.state().wake_at(&self.settings);
        assert!(self.shutting_down || wake_at > self.now, "wakes at {wake_at} at {}", self.now);
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start(command) => {
                assert!(!self.shutting_down, "{command:?} started after the shutdown");
                self.begin(command);
            }
            Action::StopJob => self.job.as_mut().expect("a job to stop").1 = true,
            Action::StopLook => assert!(self.look.is_some(), "there is a look to stop"),
            Action::Record(job) => self.record(*job),
            Action::Answer { ticket, job } => {
                assert!(!self.jobs[&job].status.is_final(), "job {job} is still to run");
                self.answers.insert(ticket, job);
            }
            Action::Remember(memory) => self.memory = memory,
            Action::FullTaken(label) => {
                assert!(label.ends_with('F'), "{label}");
                assert!(self.full_due.take().is_some(), "{label} is told once");
            }
        }
    }

    fn begin(&mut self, command: Command) {
        if command == Command::Look {
            assert!(self.look.is_none(), "one look at a time");
            self.look = Some(self.reality.seen(self.now, &self.settings.stanza));
            return;
        }
        assert_eq!(self.job, None, "one job at a time");
        if let Command::Backup { job, kind, trigger } = &command {
            let has_base = self.state().inventory().is_some_and(|it| it.has_base(OURS));
            assert!(has_base || *kind == BackupType::Full, "a base comes first");
            let row = self.row(*job);
            assert!(!row.status.is_final() && row.trigger == *trigger, "{row:?}");
            assert_eq!(self.state().running().map(|it| (it.id, it.kind)), Some((*job, *kind)));
        }
        self.told.push(match &command {
            Command::Look => unreachable!("handled above"),
            Command::CreateStanza => "create stanza".to_string(),
            Command::Backup { job, kind, .. } => format!("start {job} {kind}"),
        });
        self.job = Some((command, false));
    }

    fn record(&mut self, job: Job) {
        let Job { id, requested, trigger, status, attempt, .. } = &job;
        match self.jobs.get(id) {
            None => {
                assert!(*id > self.highest_id, "number {id} comes after {}", self.highest_id);
                let external = *status == Status::Succeeded && job.label.is_some();
                assert!(*status == Status::Waiting || external, "{job:?}");
                self.highest_id = *id;
            }
            Some(before) => {
                assert!(!before.status.is_final(), "{before:?} has ended and becomes {job:?}");
                assert!(
                    before.status != *status || (before.label.is_none() && job.label.is_some()),
                    "{job:?} tells nothing new"
                );
            }
        }
        let others = self.jobs.values().filter(|other| other.id != *id);
        for other in others {
            assert!(job.label.is_none() || other.label != job.label, "{other:?} and {job:?}");
        }
        assert_eq!(job.finished_at.is_some(), status.is_final(), "{job:?}");
        if job.label.is_none() || status.is_final() {
            let again = if *attempt == 1 { String::new() } else { format!(" (try {attempt})") };
            self.told.push(format!("{id} {requested} {trigger}{again} {}", status.as_str()));
        }
        self.jobs.insert(*id, job);
    }
}
