//! Decides when a drill starts, and what is said of one that has ended.
//!
//! There is never more than one. Whoever asks while one runs is answered with that one; a schedule
//! that comes round meanwhile is served by it. What a drill has left behind because it was killed
//! is removed before anything else.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Drill, Outcome, order};
use crate::inventory::Failure;
use crate::kind::Trigger;
use crate::machine::{Exit, Served};
use crate::settings::Settings;
use crate::words::last_words;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// Somebody asks for a drill.
    Asked,
    /// The child has ended.
    Exited(Exit),
    /// The child could not be started, or there is nothing to restore from.
    Refused(Failure),
    /// The server shuts down.
    ShutdownAsked,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write a line of the journal, in place of an earlier one about the same drill.
    Record(Box<Drill>),
    /// Start this drill.
    Start(Box<Drill>),
    /// Remove what a drill has left in this directory.
    Clean(String),
    /// Stop the child.
    Stop,
}

/// What is known beside what happened.
#[derive(Debug, Clone, Copy)]
pub struct Present<'a> {
    /// The time.
    pub now: DateTime<Utc>,
    /// The settings in force.
    pub settings: &'a Settings,
    /// Whether backups are paused: who wants quiet, wants no drill either. Who asks for one gets
    /// it.
    pub paused: bool,
    /// The state directory.
    pub state: &'a str,
}

/// What survives a restart of the server, beside the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The number of the next drill, if the journal does not know better.
    pub next: u64,
    /// Up to when the schedule has been served.
    pub served: Option<Served>,
}

/// What the child does.
#[derive(Debug, Clone, PartialEq)]
enum Doing {
    Nothing,
    Drilling(Box<Drill>),
    Cleaning,
}

/// What is known of drills between two events.
#[derive(Debug, Clone, PartialEq)]
pub struct Supervisor {
    memory: Memory,
    doing: Doing,
    /// Where something may have been left behind.
    dirty: Option<String>,
    /// One is to be started, for this reason.
    waiting: Option<Trigger>,
    /// A run that is due was missed while the server was down.
    starting: bool,
    shutting_down: bool,
    last: Option<Drill>,
    conclusive: Option<Drill>,
}

impl Supervisor {
    /// Knows what `memory` and the journal kept. The drills in it that had not ended are returned
    /// as they are to be recorded.
    pub fn new(
        mut memory: Memory,
        journal: Vec<Drill>,
        now: DateTime<Utc>,
    ) -> (Supervisor, Vec<Drill>) {
        let newest = journal.iter().map(|drill| drill.number).max().unwrap_or(0);
        memory.next = memory.next.max(newest + 1);
        let mut supervisor = Supervisor {
            memory,
            doing: Doing::Nothing,
            dirty: None,
            waiting: None,
            starting: true,
            shutting_down: false,
            last: None,
            conclusive: None,
        };
        let mut cut_off = Vec::new();
        for mut drill in journal {
            if drill.outcome.is_none() {
                supervisor.dirty = Some(drill.directory.clone());
                drill.interrupted = true;
                drill.outcome = Some(interrupted(&drill, String::new(), now));
                cut_off.push(drill.clone());
            }
            supervisor.remember(drill);
        }
        if let Some(last) = supervisor.last.as_ref().filter(|drill| drill.interrupted) {
            // A child that is told to end has two seconds: it may not have been enough.
            supervisor.dirty = Some(last.directory.clone());
            // Made up once: it may be what brought the server down.
            supervisor.waiting = (last.trigger == Trigger::Schedule).then_some(Trigger::Startup);
        }
        (supervisor, cut_off)
    }

    /// What is to be kept across restarts of the server.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The drill that runs.
    pub fn running(&self) -> Option<&Drill> {
        match &self.doing {
            Doing::Drilling(drill) => Some(drill),
            Doing::Nothing | Doing::Cleaning => None,
        }
    }

    /// The last one that has ended.
    pub fn last(&self) -> Option<&Drill> {
        self.last.as_ref()
    }

    /// The last one that was not interrupted: what is known of the backup.
    pub fn conclusive(&self) -> Option<&Drill> {
        self.conclusive.as_ref()
    }

    /// The next run of the schedule; one in the past waits.
    pub fn next_run(&self, settings: &Settings) -> Option<DateTime<Utc>> {
        let served = self.memory.served.as_ref()?;
        settings.drill_schedule.as_ref()?.next_after(served.until, settings.zone)
    }

    /// When to be woken up although nothing happened, if at all.
    pub fn wake_at(&self, present: &Present<'_>) -> Option<DateTime<Utc>> {
        let idle = self.doing == Doing::Nothing && !present.paused;
        // While one runs, its end wakes; but a run that comes meanwhile is served by it.
        let serving = matches!(self.doing, Doing::Drilling(_));
        self.next_run(present.settings).filter(|_| idle || serving)
    }

    /// Takes in what happened and tells what is to be done, in this order.
    pub fn step(&mut self, event: Event, present: &Present<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            // Who asks while one runs is answered with that one.
            Event::Asked if self.running().is_some() => {}
            Event::Asked => self.waiting = Some(Trigger::Manual),
            Event::ShutdownAsked => {
                self.shutting_down = true;
                if self.doing != Doing::Nothing {
                    actions.push(Action::Stop);
                }
            }
            Event::Exited(exit) => actions.extend(self.exited(&exit, present.now)),
            Event::Refused(failure) => actions.extend(self.ended(|drill| {
                Outcome::failed(drill.started, present.now, String::new(), failure)
            })),
        }
        actions.extend(self.start(present));
        actions
    }

    fn exited(&mut self, exit: &Exit, now: DateTime<Utc>) -> Option<Action> {
        let told = outcome_in(&exit.output);
        if told.is_none() {
            self.dirty = self.running().map(|drill| drill.directory.clone());
        }
        let cut_off = self.shutting_down && !told.as_ref().is_some_and(Outcome::succeeded);
        self.ended(|drill| {
            drill.interrupted = cut_off;
            match told {
                told if cut_off => {
                    interrupted(drill, told.map_or(String::new(), |it| it.source), now)
                }
                Some(told) => told.bounded(),
                None => silent(drill, exit, now),
            }
        })
    }

    /// Nothing runs any more; if it was a drill, this is what became of it.
    fn ended(&mut self, outcome: impl FnOnce(&mut Drill) -> Outcome) -> Option<Action> {
        let Doing::Drilling(mut drill) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            return None;
        };
        drill.outcome = Some(outcome(&mut drill));
        self.remember((*drill).clone());
        Some(Action::Record(drill))
    }

    /// Takes in a drill that has ended.
    fn remember(&mut self, drill: Drill) {
        if !drill.interrupted {
            self.conclusive = Some(drill.clone());
        }
        self.last = Some(drill);
    }

    fn start(&mut self, present: &Present<'_>) -> Vec<Action> {
        if self.shutting_down {
            return Vec::new();
        }
        if self.running().is_some() {
            // A run that comes meanwhile is served by it.
            self.due(present);
            return Vec::new();
        }
        if !present.paused {
            let missed = std::mem::take(&mut self.starting);
            let reason = if missed { Trigger::Startup } else { Trigger::Schedule };
            if self.due(present) {
                self.waiting.get_or_insert(reason);
            }
        }
        if self.doing == Doing::Cleaning {
            return Vec::new();
        }
        if let Some(directory) = self.dirty.take() {
            self.doing = Doing::Cleaning;
            return vec![Action::Clean(directory)];
        }
        let now = |reason: &mut Trigger| *reason == Trigger::Manual || !present.paused;
        let Some(trigger) = self.waiting.take_if(now) else { return Vec::new() };
        // Whatever it starts for, it serves a run that was held back by a pause, too.
        self.due(present);
        let drill = Drill {
            number: self.memory.next,
            trigger,
            started: present.now,
            directory: order::directory(present.state, present.settings),
            outcome: None,
            interrupted: false,
        };
        self.memory.next += 1;
        let drill = Box::new(drill);
        self.doing = Doing::Drilling(drill.clone());
        vec![Action::Record(drill.clone()), Action::Start(drill)]
    }

    fn due(&mut self, present: &Present<'_>) -> bool {
        let Present { now, settings, .. } = *present;
        let schedule = settings.drill_schedule.as_ref();
        Served::due(&mut self.memory.served, schedule, settings.zone, now)
    }
}

/// The outcome that a child has told: the last line that is one.
fn outcome_in(output: &str) -> Option<Outcome> {
    output.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

/// What is said of a drill whose child told nothing.
fn silent(drill: &Drill, exit: &Exit, now: DateTime<Utc>) -> Outcome {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_string(),
    };
    let words = last_words(&exit.output);
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    let failure = Failure {
        message: format!("the drill came to no result: {how}{words}"),
        hint: "The file log/drill.log in the state directory has all that it said.".to_string(),
    };
    Outcome::failed(drill.started, now, String::new(), failure)
}

/// What is said of a drill that the end of the server, or of its worker, has cut off.
fn interrupted(drill: &Drill, source: String, now: DateTime<Utc>) -> Outcome {
    let failure = Failure {
        message: "the server, or its nrt_backup worker, ended before the drill did".to_string(),
        hint: "SELECT nrt_drill_now() tries again; a run of nrt_backup.drill_schedule is made up \
               by itself."
            .to_string(),
    };
    Outcome::failed(drill.started, now, source, failure)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::super::tests::{at, failure, success};
    use super::*;
    use crate::crontab::{Crontab, Tz};

    /// A supervisor and the world that it lives in.
    struct World {
        supervisor: Supervisor,
        now: DateTime<Utc>,
        settings: Settings,
        paused: bool,
        journal: Vec<Drill>,
    }

    impl World {
        /// On a Tuesday, at noon.
        fn new(schedule: Option<&str>) -> World {
            let mut settings = Settings::defaults();
            settings.drill_schedule =
                schedule.map(|line| Crontab::parse(line).expect("a crontab line"));
            let now = at("2026-03-10T12:00:00");
            let (supervisor, _) = Supervisor::new(Memory::default(), Vec::new(), now);
            let mut world = World { supervisor, now, settings, paused: false, journal: Vec::new() };
            world.tick();
            world
        }

        fn step(&mut self, event: Event) -> Vec<String> {
            let present = Present {
                now: self.now,
                settings: &self.settings,
                paused: self.paused,
                state: "/state",
            };
            let actions = self.supervisor.step(event, &present);
            for action in &actions {
                if let Action::Record(drill) = action {
                    self.record(drill);
                }
            }
            actions.iter().map(word).collect()
        }

        fn record(&mut self, drill: &Drill) {
            self.journal.retain(|it| it.number != drill.number);
            self.journal.push(drill.clone());
        }

        fn tick(&mut self) -> Vec<String> {
            self.step(Event::Tick)
        }

        /// Lets time pass.
        fn pass(&mut self, time: TimeDelta) -> Vec<String> {
            self.now += time;
            self.tick()
        }

        /// The child ends and has told this.
        fn tell(&mut self, outcome: &Outcome) -> Vec<String> {
            let line = serde_json::to_string(outcome).expect("it is JSON");
            let exit = Exit {
                code: Some(0),
                signal: None,
                output: format!("words\n{line}\n"),
                ..Exit::default()
            };
            self.step(Event::Exited(exit))
        }

        fn succeed(&mut self) -> Vec<String> {
            let started = self.supervisor.running().expect("one runs").started;
            self.tell(&success(started))
        }

        /// The worker dies, and the next one starts after this time.
        fn restart(&mut self, after: TimeDelta) -> Vec<String> {
            self.now += after;
            let memory = self.supervisor.memory().clone();
            let (supervisor, cut_off) = Supervisor::new(memory, self.journal.clone(), self.now);
            self.supervisor = supervisor;
            cut_off.iter().for_each(|drill| self.record(drill));
            self.tick()
        }

        fn last(&self) -> &Drill {
            self.supervisor.last().expect("one has ended")
        }
    }

    fn word(action: &Action) -> String {
        match action {
            Action::Record(drill) => format!("record {} {}", drill.number, drill.status()),
            Action::Start(drill) => format!("start {} by {}", drill.number, drill.trigger),
            Action::Clean(directory) => format!("clean {directory}"),
            Action::Stop => "stop".to_string(),
        }
    }

    const DAY: TimeDelta = TimeDelta::days(1);
    const HOUR: TimeDelta = TimeDelta::hours(1);
    /// Sundays at four.
    const SUNDAYS: Option<&str> = Some("0 4 * * sun");

    #[test]
    fn without_a_schedule_nobody_drills_by_himself() {
        let mut w = World::new(None);
        assert!(w.pass(DAY * 1000).is_empty());
        assert_eq!(w.step(Event::Asked), ["record 1 running", "start 1 by manual"]);
        assert_eq!(w.succeed(), ["record 1 succeeded"]);
        assert!(w.pass(DAY * 1000).is_empty());
        assert_eq!(w.supervisor.next_run(&w.settings), None);
        assert_eq!(w.last().directory, "/state/drill");
    }

    #[test]
    fn a_schedule_is_served_in_its_time_zone() {
        let mut w = World::new(SUNDAYS);
        w.settings.zone = Tz::Asia__Shanghai;
        w.tick();
        let due = at("2026-03-14T20:00:00");
        assert_eq!(w.supervisor.next_run(&w.settings), Some(due));
        w.now = due - TimeDelta::seconds(1);
        assert!(w.tick().is_empty());
        w.settings.drill_directory = Some("/mnt".to_string());
        assert_eq!(w.pass(TimeDelta::seconds(1)), ["record 1 running", "start 1 by schedule"]);
        assert_eq!(w.supervisor.running().map(|drill| &*drill.directory), Some("/mnt"));
        assert_eq!(w.succeed(), ["record 1 succeeded"]);
        assert_eq!(w.supervisor.next_run(&w.settings), Some(due + DAY * 7));
        assert!(w.tick().is_empty());
    }

    #[test]
    fn there_is_never_more_than_one() {
        let mut w = World::new(Some("0 * * * *"));
        assert_eq!(w.pass(HOUR), ["record 1 running", "start 1 by schedule"]);
        // Who asks meanwhile, and what comes round meanwhile, is served by it.
        assert!(w.step(Event::Asked).is_empty());
        for _ in 0..5 {
            assert!(w.pass(HOUR).is_empty());
        }
        assert_eq!(w.succeed(), ["record 1 succeeded"]);
        assert!(w.pass(TimeDelta::minutes(59)).is_empty());
        assert_eq!(w.pass(TimeDelta::minutes(1)), ["record 2 running", "start 2 by schedule"]);
    }

    #[test]
    fn what_was_missed_while_the_server_was_down_is_made_up_once() {
        let mut w = World::new(SUNDAYS);
        assert_eq!(w.restart(DAY * 30), ["record 1 running", "start 1 by startup"]);
        w.succeed();
        assert!(w.pass(DAY).is_empty());
        assert!(w.restart(HOUR).is_empty());
    }

    #[test]
    fn while_backups_are_paused_only_who_asks_gets_one() {
        let mut w = World::new(SUNDAYS);
        w.paused = true;
        assert!(w.pass(DAY * 30).is_empty());
        assert!(w.supervisor.next_run(&w.settings).is_some_and(|run| run < w.now));
        assert_eq!(w.step(Event::Asked), ["record 1 running", "start 1 by manual"]);
        w.succeed();
        // It has served the schedule.
        w.paused = false;
        assert!(w.tick().is_empty());
        w.paused = true;
        assert!(w.pass(DAY * 30).is_empty());
        w.paused = false;
        assert_eq!(w.tick(), ["record 2 running", "start 2 by schedule"]);
    }

    #[test]
    fn a_failure_is_told_in_the_childs_words() {
        let mut w = World::new(None);
        w.step(Event::Asked);
        let started = w.now;
        let told = Outcome::failed(started, started + HOUR, "r:x".to_string(), failure("torn"));
        assert_eq!(w.tell(&told), ["record 1 failed"]);
        assert_eq!(w.last().outcome, Some(told));
        assert_eq!(w.supervisor.conclusive(), w.supervisor.last());
    }

    #[test]
    fn a_child_that_says_nothing_has_failed_and_is_cleaned_up_after() {
        for (exit, words) in [
            (
                Exit { code: None, signal: Some(9), output: String::new(), ..Exit::default() },
                "the drill came to no result: it was ended by signal 9",
            ),
            (
                Exit {
                    code: Some(101),
                    signal: None,
                    output: "a\n{\"b\": 1}\n".to_string(),
                    ..Exit::default()
                },
                "the drill came to no result: it ended with exit code 101: a; {\"b\": 1}",
            ),
            (Exit::default(), "the drill came to no result: it ended"),
        ] {
            let mut w = World::new(None);
            w.step(Event::Asked);
            w.now += HOUR;
            w.settings.drill_directory = Some("/elsewhere".to_string());
            assert_eq!(w.step(Event::Exited(exit)), ["record 1 failed", "clean /state/drill"]);
            let outcome = w.last().outcome.clone().expect("it has ended");
            assert_eq!(outcome.failure.map(|it| it.message).as_deref(), Some(words));
            assert_eq!(outcome.ended, w.now);
            // Whoever asks now waits until all is clean.
            assert!(w.step(Event::Asked).is_empty());
            let cleaned = w.step(Event::Exited(Exit::default()));
            assert_eq!(cleaned, ["record 2 running", "start 2 by manual"]);
        }
    }

    #[test]
    fn one_that_cannot_be_started_has_failed() {
        let mut w = World::new(None);
        w.step(Event::Asked);
        assert_eq!(w.step(Event::Refused(failure("no remote"))), ["record 1 failed"]);
        let outcome = w.last().outcome.as_ref().expect("it has ended");
        assert_eq!(outcome.failure, Some(failure("no remote")));
        // What is to be cleaned cannot be, either: not for ever.
        w.step(Event::Asked);
        w.step(Event::Exited(Exit::default()));
        assert!(w.step(Event::Refused(failure("no memory"))).is_empty());
        assert_eq!(w.step(Event::Asked), ["record 3 running", "start 3 by manual"]);
    }

    #[test]
    fn a_shutdown_stops_it_and_nothing_is_held_against_the_backup() {
        let mut w = World::new(SUNDAYS);
        assert_eq!(w.pass(DAY * 7).len(), 2);
        assert_eq!(w.step(Event::ShutdownAsked), ["stop"]);
        let stopped = Outcome::failed(w.now, w.now, "r:x".to_string(), failure("stopped"));
        assert_eq!(w.tell(&stopped), ["record 1 failed"]);
        assert!(w.last().interrupted && w.supervisor.conclusive().is_none());
        assert!(w.step(Event::Asked).is_empty());
        // A run of the schedule is made up, once.
        assert_eq!(w.restart(HOUR), ["clean /state/drill"]);
        let cleaned = w.step(Event::Exited(Exit::default()));
        assert_eq!(cleaned, ["record 2 running", "start 2 by startup"]);
        assert_eq!(w.restart(HOUR), ["clean /state/drill"]);
        assert!(w.step(Event::Exited(Exit::default())).is_empty());
        assert!(w.pass(HOUR).is_empty());
    }

    #[test]
    fn one_that_was_done_when_the_shutdown_came_counts() {
        let mut w = World::new(None);
        w.step(Event::Asked);
        assert_eq!(w.step(Event::ShutdownAsked), ["stop"]);
        assert_eq!(w.succeed(), ["record 1 succeeded"]);
        assert!(w.restart(HOUR).is_empty());
        assert!(w.supervisor.conclusive().is_some_and(Drill::succeeded));
    }

    #[test]
    fn what_ran_when_the_worker_died_has_failed() {
        let mut w = World::new(None);
        w.step(Event::Asked);
        let before = w.now;
        assert_eq!(w.restart(HOUR), ["clean /state/drill"]);
        let [drill] = &*w.journal else { panic!("{:?}", w.journal) };
        assert_eq!((drill.number, drill.status(), drill.interrupted), (1, "failed", true));
        assert_eq!(drill.started, before);
        // Nobody waits any more for what somebody had asked for.
        assert!(w.step(Event::Exited(Exit::default())).is_empty());
        assert_eq!(w.step(Event::Asked), ["record 2 running", "start 2 by manual"]);
    }

    #[test]
    fn numbers_are_never_given_twice() {
        let mut w = World::new(None);
        w.step(Event::Asked);
        w.succeed();
        // The journal is lost.
        w.journal.clear();
        w.restart(HOUR);
        assert_eq!(w.step(Event::Asked), ["record 2 running", "start 2 by manual"]);
        w.succeed();
        // What is remembered is lost.
        let (supervisor, _) = Supervisor::new(Memory::default(), w.journal.clone(), w.now);
        w.supervisor = supervisor;
        assert_eq!(w.step(Event::Asked), ["record 3 running", "start 3 by manual"]);
    }

    #[test]
    fn it_wants_to_be_woken_when_a_run_is_due() {
        let mut w = World::new(SUNDAYS);
        let wake = |w: &World| {
            let (now, settings) = (w.now, &w.settings);
            let present = Present { now, settings, paused: w.paused, state: "/state" };
            w.supervisor.wake_at(&present)
        };
        let due = at("2026-03-15T04:00:00");
        assert_eq!(wake(&w), Some(due));
        w.paused = true;
        assert_eq!(wake(&w), None);
        w.paused = false;
        w.now = due;
        w.tick();
        assert_eq!(wake(&w), Some(due + DAY * 7));
        let exit = Exit { code: Some(1), signal: None, output: String::new(), ..Exit::default() };
        w.step(Event::Exited(exit));
        // Until it is clean nothing can be done.
        assert_eq!(wake(&w), None);
    }
}
