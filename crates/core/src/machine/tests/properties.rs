//! Lets anything happen in any order. What must hold after each step, [`World::step`] checks.

use proptest::prelude::*;

use super::super::*;
use super::world::{End, OTHER, OURS, Reality, World, failure, unscheduled};
use crate::crontab::Crontab;

/// What can happen.
#[derive(Debug, Clone)]
enum Happening {
    /// Nothing, for so many seconds.
    Pass(i64),
    ClockSetBack(i64),
    Grow(Option<u64>),
    Request(BackupType),
    Cancel,
    Pause(bool),
    Check,
    /// To one of [`settings`].
    Reload(usize),
    JobEnds(End),
    LookEnds,
    LookFails,
    Crash(i64),
    /// The children end, one way or the other, before the worker does.
    Restart(End),
    HistoryLost,
    Restored,
    /// Somebody runs pgBackRest by hand.
    External(BackupType),
    Expired,
    StanzaDeleted,
    StanzaOfAnother(bool),
    PgbackrestMissing(bool),
    Unreadable(bool),
    DiskFull(bool),
}

const ENDS: [End; 6] =
    [End::Success, End::SuccessWithoutLabel, End::Locked, End::Passing, End::Lasting, End::Killed];

fn settings(choice: usize) -> Settings {
    let every = |line: &str| Some(Crontab::parse(line).expect("a crontab line"));
    match choice {
        0 => Settings::defaults(),
        1 => unscheduled(),
        2 => Settings {
            full_schedule: every("*/7 * * * *"),
            differential_schedule: every("*/3 * * * *"),
            incremental_schedule: every("* * * * *"),
            zone: chrono_tz::Europe::Berlin,
            ..unscheduled()
        },
        3 => Settings { wal_monitor_interval: 1, wal_growth_threshold: 1, ..unscheduled() },
        4 => Settings { wal_monitor_interval: 86_400, min_wal_growth: 0, ..Settings::defaults() },
        _ => Settings { wal_monitor: false, stanza: "another".to_string(), ..unscheduled() },
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let kind = || prop::sample::select(BackupType::ALL.to_vec());
    let end = || prop::sample::select(ENDS.to_vec());
    prop_oneof![
        8 => prop_oneof![0..5i64, 0..90i64, 0..4000i64].prop_map(Pass),
        1 => prop_oneof![0..5i64, 0..20_000i64, 0..10_000_000i64].prop_map(ClockSetBack),
        3 => prop_oneof![Just(None), (0..300u64 << 20).prop_map(Some), Just(Some(u64::MAX))]
            .prop_map(Grow),
        5 => kind().prop_map(Request),
        2 => Just(Cancel),
        2 => any::<bool>().prop_map(Pause),
        2 => Just(Check),
        2 => (0..6usize).prop_map(Reload),
        12 => end().prop_map(JobEnds),
        12 => Just(LookEnds),
        2 => Just(LookFails),
        1 => (0..100_000i64).prop_map(Crash),
        1 => end().prop_map(Restart),
        1 => Just(HistoryLost),
        1 => Just(Restored),
        1 => kind().prop_map(External),
        1 => Just(Expired),
        1 => Just(StanzaDeleted),
        1 => any::<bool>().prop_map(StanzaOfAnother),
        1 => any::<bool>().prop_map(PgbackrestMissing),
        1 => any::<bool>().prop_map(Unreadable),
        1 => any::<bool>().prop_map(DiskFull),
    ]
}

fn happens(w: &mut World, what: Happening) {
    match what {
        Happening::Pass(seconds) => {
            let until = w.now + TimeDelta::seconds(seconds);
            while w.sleep_until(until) {}
        }
        Happening::ClockSetBack(seconds) => w.set_clock_back(TimeDelta::seconds(seconds)),
        Happening::Grow(growth) => w.growth = growth,
        Happening::Request(kind) => drop(w.request(kind)),
        Happening::Cancel => w.step(Event::CancelAsked),
        Happening::Pause(pause) => w.step(Event::PauseAsked(pause)),
        Happening::Check => w.step(Event::CheckAsked),
        Happening::Reload(choice) => {
            w.settings = settings(choice);
            w.step(Event::Reloaded);
        }
        Happening::JobEnds(end) => w.end_job(end),
        Happening::LookEnds => w.end_look(),
        Happening::LookFails => w.fail_look(),
        Happening::Crash(pause) => w.crash(TimeDelta::seconds(pause)),
        Happening::Restart(end) => {
            w.shut_down();
            w.end_job(end);
            w.end_look();
            w.request(BackupType::Diff);
            w.step(Event::Tick);
            w.crash(TimeDelta::seconds(10));
        }
        Happening::HistoryLost => {
            w.lose_history();
            w.crash(TimeDelta::seconds(10));
        }
        Happening::Restored => w.restore(),
        Happening::External(kind) => drop(w.reality.add(kind, None, w.now)),
        Happening::Expired => w.reality.backups.clear(),
        Happening::StanzaDeleted => {
            w.reality.stanza = false;
            w.reality.backups.clear();
        }
        Happening::StanzaOfAnother(yes) => w.reality.owner = if yes { OTHER } else { OURS },
        Happening::PgbackrestMissing(yes) => {
            w.reality.pgbackrest = yes.then(|| failure("no pgbackrest"));
        }
        Happening::Unreadable(yes) => w.reality.unreadable = yes.then(|| failure("info fails")),
        Happening::DiskFull(yes) => w.reality.full_disk = yes,
    }
}

proptest! {
    /// Whatever has happened: once everything is well again, all that was asked for comes to its
    /// end, every backup is in the history, and the machine rests.
    #[test]
    fn no_request_is_forgotten(
        choice in 0..6usize,
        happenings in prop::collection::vec(happening(), 0..80),
    ) {
        let mut w = World::new(settings(choice));
        for what in happenings {
            happens(&mut w, what);
        }
        w.reality = Reality { pgbackrest: None, unreadable: None, owner: OURS, full_disk: false, ..w.reality };
        w.step(Event::PauseAsked(false));
        let healed = w.now;
        let has_base = |w: &World| w.state().inventory().is_some_and(|it| it.has_base(OURS));
        let is_due = |w: &World| w.full_due.is_some() || !has_base(w);
        while w.is_looking() || w.is_running() || w.state().waiting().is_some() || is_due(&w) {
            // A backup that was removed before it was listed is reported, and no other one is taken for
            // it: the operator does what the hint says.
            let is_missed = w.state().unlisted().is_some() && w.state().waiting().is_none();
            if is_missed && !w.is_running() {
                w.request(BackupType::Full);
            }
            w.settle_once();
            // The longest hold, and the look after it.
            prop_assert!(w.now <= healed + TimeDelta::minutes(17), "waits for {:?}", w.state().waiting());
        }
        w.pass(TimeDelta::minutes(2));
        w.settle();
        for (ticket, job) in &w.answers {
            prop_assert!(w.row(*job).status.is_final(), "{ticket} waits for {:?}", w.row(*job));
        }
        let unfinished = w.jobs.values().find(|job| !job.status.is_final());
        prop_assert_eq!(unfinished, None);
        let recorded = w.jobs.values().filter_map(|job| job.label.clone()).collect::<BTreeSet<_>>();
        prop_assert!(recorded.is_superset(&w.reality.labels()), "{:?}", w.reality);

        w.settings = unscheduled();
        w.growth = Some(0);
        w.step(Event::Reloaded);
        w.settle();
        w.told();
        let steps = w.steps;
        w.pass(TimeDelta::hours(1));
        prop_assert_eq!(w.told(), [""; 0]);
        // A tick, a look and its end every minute.
        prop_assert!(w.steps - steps <= 182, "{} steps", w.steps - steps);
    }
}

/// Whatever goes wrong again and again, the machine does not spin.
#[test]
fn an_hour_of_any_trouble_takes_a_bounded_number_of_steps() {
    let stanza = || Reality { stanza: true, ..Reality::new() };
    let realities = [
        Reality::new(),
        Reality { full_disk: true, ..Reality::new() },
        stanza(),
        Reality { owner: OTHER, ..stanza() },
        Reality { unreadable: Some(failure("info fails")), ..stanza() },
        Reality { pgbackrest: Some(failure("no pgbackrest")), ..stanza() },
    ];
    for reality in realities {
        for end in ENDS {
            for looks_fail in [false, true] {
                let mut w = World::within(reality.clone(), settings(0));
                let told = format!("{reality:?} {end:?} {looks_fail}");
                w.request(BackupType::Incr);
                let until = w.now + TimeDelta::hours(1);
                while w.now < until {
                    let busy = w.is_looking() || w.is_running();
                    if !w.sleep_until(w.now + TimeDelta::seconds(if busy { 1 } else { 3600 })) {
                        w.step(Event::Tick);
                    }
                    w.growth = Some(u64::MAX);
                    if looks_fail {
                        w.fail_look()
                    } else {
                        w.end_look()
                    }
                    w.end_job(end);
                }
                // The busiest tries a held lock 600 times: it wakes, looks, starts and ends.
                let bound = if end == End::Locked { 2400 } else { 700 };
                assert!(w.steps <= bound, "{} steps: {told}", w.steps);
            }
        }
    }
}
