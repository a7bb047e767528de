//! Decides which faults a world meets, and when: a pure function of its seed.
//!
//! A script has no end. A shorter run meets the same faults as the beginning of a longer one.

use std::fmt;

use nrt_tests::{Kind, Shutdown};

use crate::random::Random;

/// A process that is killed or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Worker,
    Reporter,
    Leash,
    Ship,
    Rclone,
    Archiver,
    Checkpointer,
    Postmaster,
}

impl Target {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Target::Worker => "the worker",
            Target::Reporter => "the reporter",
            Target::Leash => "a leash",
            Target::Ship => "nrt-backup ship",
            Target::Rclone => "rclone",
            Target::Archiver => "the archiver",
            Target::Checkpointer => "the checkpointer",
            Target::Postmaster => "the postmaster",
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL.
    Kill(Target),
    /// SIGSTOP, and SIGCONT when it is lifted.
    Freeze(Target),
    /// `pg_ctl stop`, and a start.
    Stop(Shutdown),
    /// A backup of this type is started and its pgBackRest killed.
    KillBackup(&'static str),
    /// The remote's server is killed, and started when the fault is lifted.
    RemoteDown,
    /// The remote's server stands still.
    RemoteFrozen,
    /// The remote's disk is full.
    RemoteFull,
    /// The remote lets nobody write.
    RemoteReadOnly,
    /// The disk of the repository is full.
    RepositoryFull,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(target) => write!(out, "SIGKILL to {}", target.word()),
            Fault::Freeze(target) => write!(out, "SIGSTOP to {}", target.word()),
            Fault::Stop(Shutdown::Immediate) => write!(out, "immediate stop and start"),
            Fault::Stop(_) => write!(out, "fast stop and start"),
            Fault::KillBackup(kind) => write!(out, "SIGKILL to pgBackRest in a {kind} backup"),
            Fault::RemoteDown => write!(out, "the remote is down"),
            Fault::RemoteFrozen => write!(out, "the remote stands still"),
            Fault::RemoteFull => write!(out, "the remote is full"),
            Fault::RemoteReadOnly => write!(out, "the remote is read-only"),
            Fault::RepositoryFull => write!(out, "the repository is full"),
        }
    }
}

/// What a server does on any day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A backup of this type begins.
    Backup(&'static str),
    /// `pg_switch_wal()`.
    Switch,
    /// `CHECKPOINT`.
    Checkpoint,
    /// One transaction writes so many kilobytes.
    Write(u64),
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Backup(kind) => write!(out, "{kind} backup"),
            Event::Switch => write!(out, "WAL switch"),
            Event::Checkpoint => write!(out, "checkpoint"),
            Event::Write(kilobytes) => write!(out, "{kilobytes} kB in one transaction"),
        }
    }
}

/// Something that happens so many milliseconds after its round began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at: u64,
    pub(crate) what: What,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A fault, which is lifted after so many milliseconds where it lasts.
    Fault(Fault, u64),
    Event(Event),
}

/// The host vanishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vanish {
    /// How many milliseconds after its round began.
    pub(crate) at: u64,
    /// Whether the operator runs `nrt-backup takeover` on the restored server, or waits until it
    /// takes the remote by itself.
    pub(crate) takeover: bool,
}

/// Faults that may overlap. Afterwards all of them are lifted, and shipping has to go on; or the
/// host vanishes in their midst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) planned: Vec<Planned>,
    pub(crate) vanish: Option<Vanish>,
}

impl Round {
    /// How many faults are in it. The host's vanishing is one.
    pub(crate) fn faults(&self) -> usize {
        let is_fault = |it: &&Planned| matches!(it.what, What::Fault(..));
        self.planned.iter().filter(is_fault).count() + usize::from(self.vanish.is_some())
    }
}

/// The world that a seed makes.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// The kind of the remote.
    pub(crate) remote: Kind,
    /// Megabytes of a WAL segment.
    pub(crate) segment: u32,
    /// Milliseconds of `nrt_backup.ship_interval`.
    pub(crate) interval: u64,
    random: Random,
    /// Faults until the host vanishes.
    until_vanish: u64,
    may_mount: bool,
}

impl Script {
    /// The script of a seed. A disk is filled only where the caller may mount one.
    pub(crate) fn new(seed: u64, may_mount: bool) -> Script {
        let mut random = Random::new(seed);
        let remote = random.weighted(&[(3, Kind::WebDav), (1, Kind::Local)]);
        let segment = random.weighted(&[(1, 1), (1, 16)]);
        let interval = random.weighted(&[(1, 200), (1, 1000)]);
        let until_vanish = random.between(8, 20);
        Script { remote, segment, interval, random, until_vanish, may_mount }
    }

    /// The next round, of at most so many faults.
    pub(crate) fn round(&mut self, most: usize) -> Round {
        let random = &mut self.random;
        let events = random.below(3);
        let faults = random.between(1, 3);
        let mut planned = Vec::new();
        for _ in 0..events {
            let kilobytes = random.between(10, 6000);
            let event = random.weighted(&[
                (3, Event::Backup("incr")),
                (1, Event::Backup("diff")),
                (1, Event::Backup("full")),
                (4, Event::Switch),
                (1, Event::Checkpoint),
                (3, Event::Write(kilobytes)),
            ]);
            planned.push(Planned { at: random.below(1500), what: What::Event(event) });
        }
        let may_vanish = self.until_vanish <= faults;
        for _ in 0..faults {
            let fault = draw(random, self.remote, self.may_mount);
            let lasts = match fault {
                _ if random.one_in(12) => random.between(8000, 20_000),
                _ => random.between(200, 4000),
            };
            planned.push(Planned { at: random.below(2500), what: What::Fault(fault, lasts) });
        }
        let vanish =
            may_vanish.then(|| Vanish { at: random.below(6000), takeover: !random.one_in(4) });
        self.until_vanish = match may_vanish {
            true => random.between(8, 20),
            false => self.until_vanish - faults,
        };
        if let Some(vanish) = vanish {
            planned.retain(|it| it.at < vanish.at);
        }
        // Numbers were drawn for all of them: what comes later does not depend on the limit.
        let mut left = most.saturating_sub(usize::from(vanish.is_some()));
        planned.retain(|it| match it.what {
            What::Event(_) => true,
            What::Fault(..) if left == 0 => false,
            What::Fault(..) => {
                left -= 1;
                true
            }
        });
        planned.sort_by_key(|it| it.at);
        Round { planned, vanish }
    }
}

fn draw(random: &mut Random, remote: Kind, may_mount: bool) -> Fault {
    let target = random.weighted(&[
        (3, Target::Worker),
        (1, Target::Reporter),
        (2, Target::Leash),
        (4, Target::Ship),
        (3, Target::Rclone),
        (2, Target::Archiver),
        (1, Target::Checkpointer),
        (2, Target::Postmaster),
    ]);
    let kind = random.weighted(&[(2, "incr"), (1, "diff"), (1, "full")]);
    let how = random.weighted(&[(1, Shutdown::Immediate), (1, Shutdown::Fast)]);
    let fault = random.weighted(&[
        (10, Fault::Kill(target)),
        (6, Fault::Freeze(target)),
        (3, Fault::Stop(how)),
        (3, Fault::KillBackup(kind)),
        (3, Fault::RemoteDown),
        (2, Fault::RemoteFrozen),
        (2, Fault::RemoteFull),
        (2, Fault::RepositoryFull),
    ]);
    match fault {
        Fault::RemoteDown | Fault::RemoteFrozen if remote == Kind::Local => Fault::RemoteReadOnly,
        Fault::RemoteFull | Fault::RepositoryFull if !may_mount => Fault::Kill(target),
        fault => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(seed: u64, faults: usize) -> Vec<Round> {
        let mut script = Script::new(seed, true);
        let (mut rounds, mut left) = (Vec::new(), faults);
        while left > 0 {
            let round = script.round(left);
            left -= round.faults();
            rounds.push(round);
        }
        rounds
    }

    #[test]
    fn a_seed_repeats_its_faults_and_counts_them() {
        for seed in 0..200 {
            let all = rounds(seed, 60);
            assert_eq!(all, rounds(seed, 60));
            assert_eq!(all.iter().map(Round::faults).sum::<usize>(), 60);
            let some = rounds(seed, 20);
            let same = some.len() - 1;
            assert_eq!(some[..same], all[..same], "a shorter run begins as the longer one");
            let vanished = all.iter().filter(|it| it.vanish.is_some()).count();
            assert!((2..=8).contains(&vanished), "{seed}: {vanished}");
        }
        assert_ne!(rounds(1, 60), rounds(2, 60));
    }

    #[test]
    fn every_kind_of_fault_comes() {
        let all: Vec<Round> = (0..50).flat_map(|seed| rounds(seed, 60)).collect();
        let mut words: Vec<String> = Vec::new();
        for planned in all.iter().flat_map(|it| &it.planned) {
            if let What::Fault(fault, _) = planned.what {
                words.push(fault.to_string());
            }
        }
        words.sort();
        words.dedup();
        assert_eq!(words.len(), 8 + 8 + 2 + 3 + 5, "{words:?}");
    }
}
