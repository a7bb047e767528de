//! Has restores tried: runs `nrt-backup drill` beside everything else, and keeps what it found.

use chrono::{DateTime, Utc};
use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::look::Server;
use nrt_core::offsite;
use nrt_core::restore::drill::supervisor::{Action, Event, Memory, Present, Supervisor};
use nrt_core::restore::drill::{Drill, Order};
use nrt_core::settings::Settings;
use nrt_core::words::last_words;
use nrt_process::Leashed;
use pgrx::prelude::*;

use crate::shared::serve;
use crate::worker::child;
use crate::worker::watch::Watch;
use crate::{postgres, report, state_directory};

/// Drills, as the worker runs them.
pub(super) struct Drills {
    supervisor: Supervisor,
    child: Option<Leashed>,
    /// The newest call for a drill that has not been told which one is its.
    question: Option<u64>,
    /// Rows of the journal that could not be written yet.
    unwritten: Vec<Drill>,
    /// The newest one that has ended, until who waits for it is told.
    ended: Option<u64>,
    /// The request of the command line has been served, but cannot be removed.
    request_stays: bool,
}

/// What a drill depends on.
#[derive(Clone, Copy)]
pub(super) struct Circumstances<'a> {
    pub(super) server: &'a Server,
    pub(super) settings: &'a Settings,
    /// Where backups go off-site to, or why that is not known.
    pub(super) remote: Result<Option<&'a offsite::Plan>, &'a Failure>,
    /// Whether backups are paused.
    pub(super) paused: bool,
}

impl<'a> Circumstances<'a> {
    fn present(self) -> Present<'a> {
        let Circumstances { server, settings, paused, .. } = self;
        Present { now: Utc::now(), settings, paused, state: &server.state }
    }

    fn order(self, remote: Option<offsite::Plan>, directory: String) -> Order {
        let system_id = postgres::system_identifier();
        let programs = postgres::program_directory().to_string_lossy().into_owned();
        let libraries = postgres::config_option(c"shared_preload_libraries").unwrap_or_default();
        let Circumstances { server, settings, .. } = self;
        Order::new(server, settings, system_id, programs, &libraries, remote, directory)
    }
}

impl Drills {
    /// Finds out how the last ones ended.
    pub(super) fn new(memory: Memory, watch: &mut Watch) -> Drills {
        let journal = state_directory::drills();
        let (supervisor, cut_off) = Supervisor::new(memory, journal, Utc::now());
        let mut drills = Drills {
            supervisor,
            child: None,
            question: None,
            unwritten: Vec::new(),
            ended: None,
            request_stays: false,
        };
        cut_off.into_iter().for_each(|drill| drills.record(drill, watch));
        drills
    }

    /// What is known of them.
    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Hears of a call for a drill.
    pub(super) fn ask(&mut self, question: Option<u64>) {
        self.question = self.question.max(question);
    }

    /// When something has to be done although nothing happens.
    pub(super) fn wake_at(&self, circumstances: Circumstances<'_>) -> Option<DateTime<Utc>> {
        self.supervisor.wake_at(&circumstances.present())
    }

    /// Starts what is due, and takes in what has ended.
    pub(super) fn settle(&mut self, circumstances: Circumstances<'_>, watch: &mut Watch) {
        self.reap(circumstances, watch);
        let requested = state_directory::drill_is_requested() && !self.request_stays;
        let asked = self.question.is_some() || requested;
        self.step(if asked { Event::Asked } else { Event::Tick }, circumstances, watch);
        self.write(watch);
        if let Some(drill) = self.supervisor.running().filter(|_| asked) {
            self.answer(drill.number, watch);
        }
    }

    fn reap(&mut self, circumstances: Circumstances<'_>, watch: &mut Watch) {
        let Some(exit) = child::ended(&mut self.child) else { return };
        if self.supervisor.running().is_none() && exit.code != Some(0) {
            let words = last_words(&exit.output);
            log!("nrt_backup could not remove what a drill has left behind: {words}");
        }
        self.step(Event::Exited(exit), circumstances, watch);
    }

    fn step(&mut self, event: Event, circumstances: Circumstances<'_>, watch: &mut Watch) {
        for action in self.supervisor.step(event, &circumstances.present()) {
            let started = match action {
                Action::Record(drill) => {
                    self.record(*drill, watch);
                    continue;
                }
                Action::Stop => {
                    self.child.iter_mut().for_each(Leashed::terminate);
                    continue;
                }
                Action::Start(drill) => {
                    // Before the child, which may fail at once: who asked has to hear of it.
                    self.answer(drill.number, watch);
                    let remote = circumstances.remote.map(Option::<&_>::cloned);
                    remote.map_err(Failure::clone).and_then(|remote| {
                        child::drill(&circumstances.order(remote, drill.directory), false)
                    })
                }
                Action::Clean(directory) => {
                    child::drill(&circumstances.order(None, directory), true)
                }
            };
            match started {
                Ok(child) => self.child = Some(child),
                Err(failure) => self.step(Event::Refused(failure), circumstances, watch),
            }
        }
    }

    fn record(&mut self, drill: Drill, watch: &mut Watch) {
        report::drill(&drill);
        self.ended = self.ended.max(drill.outcome.as_ref().map(|_| drill.number));
        self.unwritten.push(drill);
        self.write(watch);
    }

    /// Tells who waits for one that has ended. To be called when what that changes can be seen.
    pub(super) fn tell(&mut self) {
        if let Some(drill) = self.ended.take() {
            serve::drill_ended(drill);
        }
    }

    /// Writes what has not been written, in its order.
    fn write(&mut self, watch: &mut Watch) {
        while let Some(drill) = self.unwritten.first() {
            let recorded = state_directory::record_drill(drill);
            if watch.writing(layout::DRILLS, recorded).is_none() {
                return;
            }
            self.unwritten.remove(0);
        }
    }

    /// Tells everybody who has asked for a drill that this one is theirs.
    fn answer(&mut self, drill: u64, watch: &mut Watch) {
        if let Some(question) = self.question.take() {
            serve::drill_started(question, drill);
        }
        let removed = watch.writing(layout::DRILL_NOW, state_directory::drill_is_served());
        self.request_stays = removed.is_none();
    }

    /// Has the child end.
    pub(super) fn stop(&mut self, circumstances: Circumstances<'_>, watch: &mut Watch) {
        self.step(Event::ShutdownAsked, circumstances, watch);
    }

    /// Tells whether the child is gone. To be called again until it is.
    pub(super) fn end(&mut self, circumstances: Circumstances<'_>, watch: &mut Watch) -> bool {
        self.reap(circumstances, watch);
        self.child.is_none()
    }
}
