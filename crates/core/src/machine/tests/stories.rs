//! Tells one story after another.

use super::super::*;
use super::world::{End, OTHER, OURS, Reality, World, at, failure, unscheduled};
use crate::crontab::Crontab;
use crate::lsn::Lsn;
use crate::pgbackrest::info::parse_info;
use BackupType::{Diff, Full, Incr};
use Status::{Cancelled, Failed, Running, Skipped, Succeeded, Waiting};

const MB: u64 = 1 << 20;
const HOUR: TimeDelta = TimeDelta::hours(1);

fn seconds(count: i64) -> TimeDelta {
    TimeDelta::seconds(count)
}

fn minutes(count: i64) -> TimeDelta {
    TimeDelta::minutes(count)
}

fn crontab(line: &str) -> Option<Crontab> {
    Some(Crontab::parse(line).expect("a crontab line"))
}

/// A protected server with this schedule of incremental backups and enough growth for them.
fn scheduled(line: &str) -> World {
    let mut w =
        World::protected_with(Settings { incremental_schedule: crontab(line), ..unscheduled() });
    w.growth = Some(2 * MB);
    w
}

// The beginning.

#[test]
fn a_fresh_server_looks_makes_a_stanza_takes_a_full_backup_and_rests() {
    let mut w = World::new(unscheduled());
    assert_eq!(w.told(), [""; 0], "nothing happens before the look");
    assert_eq!(*w.state().readiness(), Readiness::Unknown);
    w.end_look();
    assert_eq!(w.told(), ["create stanza"]);
    w.end_job(End::Success);
    assert_eq!(w.told(), [""; 0], "first it looks whether the stanza is there");
    w.end_look();
    assert_eq!(
        w.told(),
        ["1 full missing_base waiting", "1 full missing_base running", "start 1 full"]
    );
    w.now += minutes(3);
    w.end_job(End::Success);
    assert_eq!(w.row(1).status, Running, "the look fills in the row first");
    w.step(Event::JobExited(Exit::default()));
    assert_eq!(w.row(1).status, Running, "it has ended before");
    w.now += seconds(1);
    w.end_look();
    assert_eq!(w.told(), ["1 full missing_base succeeded"]);
    let row = w.row(1);
    assert_eq!(row.label.as_deref(), Some("20260310-000001F"));
    assert_eq!((row.start_lsn, row.stop_lsn), (Some(Lsn(0x100_0028)), Some(Lsn(0x100_0100))));
    assert_eq!((row.size, row.delta, row.repository_delta), (Some(1000), Some(100), Some(10)));
    assert_eq!((row.attempt, row.exit_code, &row.message), (1, Some(0), &None));
    assert_eq!(row.started_at, Some(at("2026-03-10T12:00:30")));
    assert_eq!(row.finished_at, Some(at("2026-03-10T12:03:31")));

    let steps = w.steps;
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0], "then nothing is left to do");
    assert_eq!(w.state().running(), None);
    // 60 ticks, 60 looks and their ends.
    assert!(w.steps - steps <= 180, "{} steps", w.steps - steps);
}

#[test]
fn a_stanza_that_was_there_before_is_used() {
    let mut w = World::unprotected();
    w.end_look();
    assert_eq!(
        w.told(),
        ["1 full missing_base waiting", "1 full missing_base running", "start 1 full"]
    );
}

#[test]
fn a_stanza_that_cannot_be_created_is_tried_again_and_says_why() {
    let mut w = World::new(unscheduled());
    w.end_look();
    w.end_job(End::Lasting);
    let asked = w.request(Full);
    w.end_look();
    assert_eq!(w.told().last().map(String::as_str), Some("create stanza"), "asking tries at once");
    w.end_job(End::Lasting);
    assert_eq!(w.row(asked).status, Failed);
    let message = w.row(asked).message.as_deref();
    assert_eq!(message, Some("could not create the stanza \"main\": wrong cluster"));
    w.told();
    // After two tries: 30 seconds, then a minute.
    for wait in [30, 60] {
        w.pass(seconds(wait - 1));
        assert_eq!(w.told(), [""; 0], "before {wait} seconds");
        w.pass(seconds(1));
        assert_eq!(w.told(), ["create stanza"], "after {wait} seconds");
        w.end_job(End::Lasting);
    }
    w.pass(minutes(2));
    w.settle();
    assert_eq!(*w.state().readiness(), Readiness::Ready);
    assert_eq!(w.statuses(), [Failed, Succeeded]);
}

/// On a full disk `pgbackrest stanza-create` ends with 0 (fixture `disk-full-stanza.0.txt`).
#[test]
fn a_stanza_that_is_not_there_after_it_was_created_is_reported_and_not_created_in_a_loop() {
    let mut w = World::new(unscheduled());
    w.reality.full_disk = true;
    let asked = w.request(Full);
    let begin = w.now;
    while w.now < begin + HOUR * 3 {
        w.settle_once();
    }
    let tries = w.told().iter().filter(|it| *it == "create stanza").count();
    // The first, six up to the ceiling, and one every quarter of an hour from then on.
    assert!((7..=18).contains(&tries), "{tries} tries");
    assert_eq!(w.row(asked).status, Failed, "who asked does not wait for a disk");
    assert!(matches!(w.state().readiness(), Readiness::Blocked(_)));
    w.reality.full_disk = false;
    w.pass(minutes(15));
    w.settle();
    assert_eq!(w.statuses(), [Failed, Succeeded]);
}

#[test]
fn a_stanza_that_is_deleted_is_created_again() {
    let mut w = World::protected();
    w.reality.stanza = false;
    w.reality.backups.clear();
    w.pass(minutes(1));
    assert_eq!(w.told(), ["create stanza"]);
    // The same after tries that had failed before somebody created it by hand.
    w.end_job(End::Lasting);
    w.reality.stanza = true;
    w.pass(minutes(1));
    w.settle();
    w.reality.stanza = false;
    w.reality.backups.clear();
    w.told();
    w.pass(minutes(1));
    assert_eq!(w.told(), ["create stanza"]);
}

#[test]
fn a_stanza_is_created_as_soon_as_what_blocked_is_mended() {
    let mut w = World::new(unscheduled());
    w.end_look();
    for _ in 0..7 {
        w.end_job(End::Lasting);
        w.pass(minutes(9));
    }
    assert!(!w.is_running(), "the next try is a quarter of an hour away");
    w.reality.pgbackrest = Some(failure("no pgbackrest"));
    w.pass(minutes(1));
    assert!(
        matches!(w.state().readiness(), Readiness::Blocked(why) if *why == failure("no pgbackrest"))
    );
    w.reality.pgbackrest = None;
    w.pass(minutes(1));
    assert!(w.is_running());
    assert_eq!(*w.state().readiness(), Readiness::Unknown);
}

// WAL growth.

#[test]
fn growth_starts_an_incremental_backup_at_the_threshold_exactly() {
    for (growth, settings, starts) in [
        (None, unscheduled(), false),
        (Some(100 * MB - 1), unscheduled(), false),
        (Some(100 * MB), unscheduled(), true),
        (Some(u64::MAX), unscheduled(), true),
        (Some(u64::MAX), Settings { wal_monitor: false, ..unscheduled() }, false),
        (Some(7), Settings { wal_growth_threshold: 7, ..unscheduled() }, true),
        (Some(6), Settings { wal_growth_threshold: 7, ..unscheduled() }, false),
    ] {
        let mut w = World::protected_with(settings);
        w.growth = growth;
        w.pass(minutes(2));
        assert_eq!(w.is_running(), starts, "{growth:?}");
        if starts {
            assert_eq!(w.row(2).trigger, Trigger::WalGrowth);
            assert_eq!(w.row(2).wal_growth, growth, "and it does not matter how little it is");
        }
    }
}

/// Lets the running backup take so long, and wait for a checkpoint for a part of that.
fn end_growth_backup(w: &mut World, took: TimeDelta, waited: TimeDelta) {
    w.pass(took);
    w.end_backup_that_took(took, waited);
    w.settle();
}

#[test]
fn growth_rests_for_as_long_as_the_last_one_was_dear() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.pass(minutes(1));
    assert!(w.is_running());
    // 40 seconds of copying are 5 % of 13 minutes and 20 seconds.
    end_growth_backup(&mut w, minutes(5), minutes(5) - TimeDelta::seconds(40));
    let ended = w.now;
    w.growth = Some(u64::MAX);
    w.pass(TimeDelta::seconds(759));
    assert!(!w.is_running() && w.state().waiting().is_none(), "{:?}", w.told());
    w.pass(minutes(1) + TimeDelta::seconds(2));
    assert!(w.is_running(), "a look at the growth later than {ended} and the rest");
    // A cheap one is followed by the least rest.
    end_growth_backup(&mut w, TimeDelta::seconds(2), TimeDelta::zero());
    w.growth = Some(u64::MAX);
    w.pass(minutes(5) - TimeDelta::seconds(1));
    assert!(!w.is_running());
    w.pass(minutes(1) + TimeDelta::seconds(2));
    assert!(w.is_running());
    // It is remembered by the worker that comes after.
    end_growth_backup(&mut w, minutes(2), TimeDelta::zero());
    w.crash(TimeDelta::seconds(10));
    w.settle();
    w.growth = Some(u64::MAX);
    w.pass(minutes(37));
    assert!(!w.is_running());
    // Whoever asks has no need to wait.
    let asked = w.request(BackupType::Incr);
    assert!(w.is_running());
    w.settle();
    assert_eq!(w.row(asked).status, Status::Succeeded);
    // A clock that is set back by a year gives back the rest that it took.
    w.growth = Some(u64::MAX);
    w.set_clock_back(TimeDelta::days(365));
    w.pass(minutes(4));
    assert!(w.is_running());
}

#[test]
fn a_chain_of_incremental_backups_ends_with_a_differential_one() {
    let mut w = World::protected_with(Settings {
        max_incrementals: 2,
        min_growth_interval: 0,
        max_growth_share: 0,
        ..unscheduled()
    });
    let kinds = |w: &World| w.jobs.values().map(|job| job.kind).collect::<Vec<_>>();
    use BackupType::{Diff, Full, Incr};
    for _ in 0..5 {
        w.growth = Some(150 * MB);
        w.pass(minutes(2));
        w.settle();
    }
    assert_eq!(kinds(&w), [Full, Incr, Incr, Diff, Incr, Incr]);
    let row = w.row(4);
    assert_eq!(row.requested, Incr);
    assert!(row.message.as_deref().is_some_and(|it| it.starts_with("2 incremental")), "{row:?}");
    assert_eq!(w.row(5).message, None);
    // Whoever asks gets what was asked for.
    w.request(Incr);
    w.settle();
    assert_eq!(w.row(7).kind, Incr);
    w.settings.max_incrementals = 0;
    w.growth = Some(150 * MB);
    w.pass(minutes(2));
    w.settle();
    assert_eq!(w.row(8).kind, Incr);
}

#[test]
fn growth_starts_one_backup_and_the_next_when_it_has_grown_again() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.pass(minutes(1));
    assert_eq!(
        w.told(),
        ["2 incr wal_growth waiting", "2 incr wal_growth running", "start 2 incr"]
    );
    w.growth = Some(900 * MB);
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0], "not while one is running");
    w.end_job(End::Success);
    w.pass(HOUR);
    assert_eq!(w.told(), ["2 incr wal_growth succeeded"], "growth counts from the new backup");
    w.growth = Some(100 * MB);
    w.pass(minutes(1));
    assert!(w.is_running());
}

#[test]
fn growth_starts_a_backup_within_the_interval_also_between_checks() {
    for pause in [20, 30, 59] {
        let mut w = World::protected();
        w.growth = Some(150 * MB);
        for round in 0.. {
            w.step(Event::CheckAsked);
            w.pass(seconds(pause));
            if w.is_running() {
                break;
            }
            assert!(round * pause <= 60, "with a check every {pause} seconds");
        }
    }
}

#[test]
fn growth_that_was_measured_before_a_restart_waits_for_the_first_look() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.crash(seconds(5));
    assert_eq!(w.told(), [""; 0]);
    w.pass(minutes(1));
    assert!(w.is_running());
}

#[test]
fn growth_that_a_failing_look_cannot_measure_anew_starts_one_backup_only() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.pass(minutes(1));
    w.end_job(End::Success);
    w.told();
    for _ in 0..10 {
        // The meter counts from the last backup that a look has seen.
        w.fail_look();
        w.now = w.state().wake_at(&w.settings);
        w.step(Event::Tick);
    }
    assert_eq!(w.told(), ["2 incr wal_growth succeeded"]);
    w.pass(minutes(2));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn a_changed_monitor_interval_counts_at_once() {
    let mut w = World::protected_with(Settings { wal_monitor_interval: 86_400, ..unscheduled() });
    w.growth = Some(150 * MB);
    w.pass(HOUR);
    assert!(!w.is_running());
    w.settings.wal_monitor_interval = 5;
    w.step(Event::Reloaded);
    w.pass(seconds(5));
    assert!(w.is_running());
}

// Schedules.

#[test]
fn a_schedule_runs_once_at_its_minute() {
    let mut w = scheduled("30 * * * *");
    w.pass(minutes(29) + seconds(29));
    assert_eq!((w.now, w.told()), (at("2026-03-10T12:29:59"), vec![]));
    w.pass(seconds(1));
    assert_eq!(w.told(), ["2 incr schedule waiting", "2 incr schedule running", "start 2 incr"]);
    w.settle();
    w.told();
    w.pass(minutes(59));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn too_little_growth_skips_what_is_scheduled_and_nothing_else() {
    let least = Settings::defaults().min_wal_growth;
    for (growth, status) in
        [(None, Running), (Some(0), Skipped), (Some(least - 1), Skipped), (Some(least), Running)]
    {
        let mut w = scheduled("30 * * * *");
        w.growth = growth;
        w.pass(minutes(30));
        assert_eq!(w.row(2).status, status, "{growth:?}");
        if status == Skipped {
            let words = format!("only {} bytes of WAL since the last backup", growth.unwrap_or(0));
            assert_eq!(w.row(2).message, Some(words));
            assert!(!w.is_running());
        }
    }
    let mut w = World::protected();
    w.growth = Some(0);
    let asked = w.request(Incr);
    assert_eq!(w.row(asked).status, Running, "somebody asked for it");
    // A full backup is for more than the WAL since the last one.
    let mut w =
        World::protected_with(Settings { full_schedule: crontab("30 * * * *"), ..unscheduled() });
    w.growth = Some(0);
    w.pass(minutes(30));
    assert_eq!(w.row(2).status, Running);
}

#[test]
fn asking_for_a_scheduled_backup_that_waits_keeps_it_from_being_skipped() {
    let mut w = scheduled("30 * * * *");
    let full = w.request(Full);
    w.pass(minutes(30));
    let asked = w.request(Incr);
    assert_eq!((w.row(asked).trigger, w.row(asked).status), (Trigger::Schedule, Waiting));
    w.end_job(End::Success);
    w.end_look();
    assert_eq!((w.row(full).status, w.row(asked).status), (Succeeded, Running));
    // Also when a lock sends it back.
    w.end_job(End::Locked);
    w.pass(seconds(5));
    assert_eq!(w.growth, Some(0));
    assert!(w.is_running());
}

#[test]
fn missed_runs_are_made_up_once() {
    let mut w = scheduled("30 * * * *");
    w.crash(HOUR * 5);
    w.end_look();
    assert_eq!(w.told(), ["2 incr startup waiting", "2 incr startup running", "start 2 incr"]);
    w.settle();
    w.told();
    w.pass(minutes(28));
    assert_eq!((w.now, w.told()), (at("2026-03-10T17:28:30"), vec![]));
    w.growth = Some(2 * MB);
    w.pass(minutes(2));
    assert_eq!(w.row(3).trigger, Trigger::Schedule);
}

#[test]
fn a_missed_run_with_too_little_growth_is_skipped() {
    let mut w = scheduled("30 * * * *");
    w.growth = Some(0);
    w.crash(HOUR * 5);
    w.settle();
    assert_eq!(w.told(), ["2 incr startup waiting", "2 incr startup skipped"]);
}

#[test]
fn a_new_line_has_missed_nothing() {
    let mut w = scheduled("30 * * * *");
    w.settings.incremental_schedule = crontab("0 0 1 1 *");
    w.pass(HOUR * 5);
    w.settings.incremental_schedule = crontab("15 * * * *");
    w.step(Event::Reloaded);
    w.pass(minutes(14));
    assert_eq!(w.told(), [""; 0]);
    w.pass(minutes(1));
    assert_eq!(w.row(2).trigger, Trigger::Schedule);
    // Nor has one that was changed while the server was down.
    let mut w = scheduled("30 * * * *");
    w.settings.incremental_schedule = crontab("31 * * * *");
    w.crash(HOUR * 5);
    w.settle();
    assert_eq!(w.told(), [""; 0]);
    // Nor one in another time zone: there it was six o'clock half an hour ago.
    let mut w = scheduled("0 18 * * *");
    w.pass(HOUR);
    w.settings.zone = chrono_tz::Asia::Kolkata;
    w.step(Event::Reloaded);
    w.pass(HOUR * 23);
    assert_eq!(w.told(), [""; 0]);
    w.pass(HOUR);
    assert_eq!(w.row(2).requested_at, at("2026-03-11T12:30:00"));
    // Nor one that was off for a while.
    let mut w = scheduled("30 * * * *");
    let line = w.settings.incremental_schedule.take();
    w.pass(HOUR * 5);
    w.settings.incremental_schedule = line;
    w.pass(minutes(29));
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn of_schedules_at_the_same_minute_only_the_biggest_runs() {
    let at_three = || crontab("0 15 * * *");
    for (full, diff, runs) in
        [(at_three(), at_three(), Full), (None, at_three(), Diff), (None, None, Incr)]
    {
        let mut w = World::protected_with(Settings {
            full_schedule: full,
            differential_schedule: diff,
            incremental_schedule: at_three(),
            ..unscheduled()
        });
        w.growth = Some(2 * MB);
        w.pass(HOUR * 3);
        w.settle();
        assert_eq!(w.statuses(), [Succeeded, Succeeded]);
        assert_eq!((w.row(2).kind, w.row(2).trigger), (runs, Trigger::Schedule));
    }
}

#[test]
fn an_incremental_backup_without_a_base_becomes_a_full_one_and_says_so() {
    for asked in [Incr, Diff, Full] {
        let mut w = World::unprotected();
        let job = w.request(asked);
        w.pass(seconds(1));
        // The biggest first: the missing base, unless it is what was asked for.
        w.end_job(End::Lasting);
        w.end_look();
        let row = w.row(job);
        assert_eq!((row.requested, row.kind), (asked, Full));
        if asked == Full {
            assert_eq!((row.status, row.message.as_deref()), (Failed, Some("wrong cluster")));
        } else {
            let words = "no full backup to build on: a full one was taken instead";
            assert_eq!((row.status, row.message.as_deref()), (Running, Some(words)));
            w.end_job(End::Success);
            w.end_look();
            assert_eq!(
                (w.row(job).status, w.row(job).message.as_deref()),
                (Succeeded, Some(words))
            );
        }
    }
}

#[test]
fn a_base_that_came_otherwise_is_not_taken_once_more() {
    let mut w = World::unprotected();
    w.end_look();
    w.end_job(End::Passing);
    let asked = w.request(Incr);
    w.settle();
    assert_eq!((w.row(asked).kind, w.row(asked).status), (Full, Succeeded));
    w.pass(seconds(15));
    assert_eq!((w.row(2).trigger, w.row(2).status), (Trigger::MissingBase, Skipped));
    assert_eq!(w.row(2).message.as_deref(), Some("a full backup has been taken meanwhile"));
}

#[test]
fn losing_the_last_full_backup_starts_a_new_one() {
    let mut w = World::protected();
    w.reality.backups.clear();
    w.pass(minutes(1));
    assert_eq!((w.row(2).kind, w.row(2).trigger), (Full, Trigger::MissingBase));
}

// Requests.

#[test]
fn requests_of_one_type_before_it_starts_are_one_job() {
    let mut w = World::protected();
    let running = w.request(Incr);
    let waiting = w.request(Incr);
    assert_ne!(running, waiting, "what changes now is not in the running one");
    assert_eq!(w.request(Incr), waiting);
    assert_ne!(w.request(Full), waiting);
    w.told();
    w.settle();
    assert_eq!(
        w.told(),
        [
            "2 incr manual succeeded",
            "4 full manual running",
            "start 4 full",
            "4 full manual succeeded",
            "3 incr manual running",
            "start 3 incr",
            "3 incr manual succeeded",
        ],
        "the biggest first"
    );
}

#[test]
fn a_failed_manual_backup_is_told_at_once_and_not_tried_again() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.end_job(End::Passing);
    let row = w.row(asked);
    assert_eq!((row.status, row.exit_code), (Failed, Some(57)));
    assert_eq!(row.message.as_deref(), Some("unable to query"));
    assert!(row.hint.is_some());
    assert!(w.is_looking(), "a look may find the reason, such as a full disk");
    assert_eq!(w.state().last_failure(), Some(&w.row(asked).clone()));
    w.told();
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0]);
    w.request(Incr);
    w.settle();
    assert_eq!(w.state().last_failure(), None, "mended");
}

#[test]
fn asking_for_what_waits_for_its_retry_starts_it_now() {
    let mut w = scheduled("30 * * * *");
    w.pass(minutes(30));
    w.end_job(End::Passing);
    assert!(!w.is_running());
    let asked = w.request(Incr);
    assert_eq!((w.row(asked).attempt, w.row(asked).status), (2, Running));
    w.settle();
    assert_eq!(w.statuses(), [Succeeded, Failed, Succeeded]);
}

// Cancelling.

#[test]
fn a_cancelled_manual_backup_is_not_tried_again() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.step(Event::CancelAsked);
    assert!(w.is_stopping());
    assert_eq!(w.row(asked).status, Running, "until it has ended");
    w.end_job(End::Passing);
    assert_eq!(
        (w.row(asked).status, w.row(asked).message.as_deref()),
        (Cancelled, Some("cancelled"))
    );
    assert_eq!(w.state().last_failure(), None, "it is no failure");
    w.told();
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0]);
}

#[test]
fn a_cancelled_automatic_backup_is_tried_again_at_the_ceiling() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.pass(minutes(1));
    w.step(Event::CancelAsked);
    w.told();
    w.end_job(End::Killed);
    assert_eq!(w.told(), ["2 incr wal_growth cancelled", "3 incr wal_growth (try 2) waiting"]);
    w.pass(minutes(15) - seconds(1));
    assert_eq!(w.told(), [""; 0]);
    w.pass(seconds(1));
    assert_eq!(w.told(), ["3 incr wal_growth (try 2) running", "start 3 incr"]);
}

#[test]
fn a_backup_that_was_quicker_than_its_cancel_has_succeeded() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.step(Event::CancelAsked);
    w.end_job(End::Success);
    w.step(Event::CancelAsked);
    w.end_look();
    assert_eq!(w.row(asked).status, Succeeded);
}

#[test]
fn cancelling_ends_what_waits_for_a_lock() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.end_job(End::Locked);
    assert_eq!(w.row(asked).status, Waiting);
    w.step(Event::CancelAsked);
    assert_eq!(w.row(asked).status, Cancelled);
    w.pass(HOUR);
    assert!(!w.is_running());
}

#[test]
fn cancelling_keeps_what_starts_by_itself_away_for_a_while() {
    let mut w = World::unprotected();
    w.end_look();
    w.end_job(End::Locked);
    w.step(Event::CancelAsked);
    assert_eq!(w.statuses(), [Cancelled]);
    w.told();
    w.pass(minutes(15) - seconds(1));
    assert_eq!(w.told(), [""; 0]);
    w.pass(minutes(1));
    assert!(w.is_running());
    // The same when what somebody asked for is cancelled, and a base is missing still.
    let mut w = World::unprotected();
    w.request(Full);
    w.end_look();
    w.step(Event::CancelAsked);
    w.end_job(End::Killed);
    w.pass(minutes(15) - seconds(1));
    assert_eq!(w.statuses(), [Cancelled]);
    w.pass(minutes(1));
    assert!(w.is_running());
}

#[test]
fn cancelling_nothing_changes_nothing() {
    let mut w = World::protected();
    w.growth = Some(150 * MB);
    w.step(Event::CancelAsked);
    assert_eq!(w.told(), [""; 0]);
    w.pass(minutes(1));
    assert!(w.is_running(), "growth starts backups as before");
}

// Failing.

#[test]
fn a_failed_backup_is_tried_again_after_ever_longer_pauses() {
    let mut w = scheduled("30 12 * * *");
    w.pass(minutes(30));
    let pauses = [15, 30, 60, 120, 240, 480, 900, 900, 900];
    for (attempt, pause) in (1..).zip(pauses) {
        let id = 1 + u64::from(attempt);
        assert_eq!((w.row(id).attempt, w.row(id).status), (attempt, Running));
        w.end_job(if attempt % 2 == 0 { End::Passing } else { End::Killed });
        assert_eq!(w.row(id).status, Failed);
        let (next, not_before) = w.state().waiting().expect("the next try");
        assert_eq!((next.id, next.trigger), (id + 1, Trigger::Schedule));
        assert_eq!(not_before, w.now + seconds(pause));
        w.pass(seconds(pause - 1));
        assert!(!w.is_running(), "before {pause} seconds");
        w.pass(seconds(1));
    }
    w.settle();
    assert_eq!(w.state().last_failure(), None);
    assert_eq!(w.state().waiting(), None);
}

#[test]
fn what_no_retry_can_mend_is_left_alone_for_a_while() {
    let mut w = World::unprotected();
    w.end_look();
    w.end_job(End::Lasting);
    assert_eq!(w.statuses(), [Failed]);
    w.told();
    // Without any backup it may be mended soon.
    w.pass(seconds(49));
    assert_eq!(w.told(), [""; 0]);
    w.pass(seconds(11));
    assert_eq!(
        w.told(),
        ["2 full missing_base waiting", "2 full missing_base running", "start 2 full"]
    );
    for attempt in 0_u64..9 {
        w.end_job(End::Passing);
        let (_, not_before) = w.state().waiting().expect("the next try");
        assert_eq!(not_before, w.now + seconds(50.min(15 << attempt)));
        w.pass(minutes(1));
    }

    let grown_and_failed = || {
        let mut w = World::protected();
        w.growth = Some(150 * MB);
        w.pass(minutes(1));
        w.end_job(End::Lasting);
        w
    };
    let mut w = grown_and_failed();
    w.pass(minutes(15) - seconds(1));
    assert!(!w.is_running());
    w.pass(minutes(1));
    assert!(w.is_running());
    // A success shows that it is mended.
    let mut w = grown_and_failed();
    w.request(Incr);
    w.settle();
    w.growth = Some(150 * MB);
    w.pass(minutes(1));
    assert!(w.is_running());
}

#[test]
fn asking_for_a_check_gives_what_was_held_back_another_chance() {
    for event in [Event::CheckAsked, Event::Reloaded] {
        for end in [End::Lasting, End::Passing, End::Locked] {
            let mut w = World::unprotected();
            w.end_look();
            w.end_job(end);
            w.pass(seconds(2));
            assert!(!w.is_running(), "{end:?}");
            w.step(event.clone());
            w.end_look();
            assert!(w.is_running(), "{end:?}, {event:?}");
        }
        let mut w = World::new(unscheduled());
        w.end_look();
        w.end_job(End::Lasting);
        w.settle();
        w.step(event.clone());
        w.end_look();
        assert!(w.is_running(), "creating the stanza, {event:?}");
    }
}

#[test]
fn a_held_lock_is_waited_for_as_long_as_it_takes() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.told();
    w.end_job(End::Locked);
    assert_eq!(w.told(), ["2 incr manual waiting"]);
    assert_eq!(
        w.row(asked).message.as_deref(),
        Some("unable to acquire lock: Resource temporarily unavailable")
    );
    assert_eq!((w.row(asked).started_at, w.row(asked).exit_code), (None, None));
    for _ in 0..1000 {
        w.pass(seconds(4));
        assert!(!w.is_running());
        w.pass(seconds(1));
        assert!(w.is_running());
        w.end_job(End::Locked);
    }
    assert_eq!(w.state().last_failure(), None);
    assert_eq!(w.told(), ["start 2 incr"; 1000], "no row for each of the tries");
    w.pass(seconds(5));
    let started = w.now;
    w.pass(seconds(5));
    assert_eq!(w.told(), ["start 2 incr", "2 incr manual running"], "now it has the lock");
    assert_eq!((w.row(asked).started_at, &w.row(asked).message), (Some(started), &None));
    w.settle();
    assert_eq!((w.row(asked).status, &w.row(asked).message), (Succeeded, &None));
}

#[test]
fn what_somebody_else_did_under_the_lock_counts() {
    let mut w = World::unprotected();
    w.end_look();
    w.end_job(End::Locked);
    w.pass(seconds(4));
    w.reality.add(Full, None, w.now);
    w.pass(seconds(1));
    w.settle();
    assert_eq!((w.row(1).status, w.row(2).trigger), (Skipped, Trigger::External));
    assert_eq!(w.row(1).message.as_deref(), Some("a full backup has been taken meanwhile"));

    let mut w = World::unprotected();
    w.end_look();
    w.step(Event::CancelAsked);
    w.end_job(End::Killed);
    let asked = w.request(Incr);
    assert_eq!((w.row(asked).kind, w.row(asked).message.is_some()), (Full, true));
    w.end_job(End::Locked);
    w.reality.add(Full, None, w.now);
    w.pass(seconds(5));
    w.settle();
    assert_eq!((w.row(asked).status, w.row(asked).kind), (Succeeded, Incr));
    assert_eq!((&w.row(asked).message, &w.row(asked).hint), (&None, &None));
}

#[test]
fn all_that_wait_for_the_lock_try_it_with_one_attempt() {
    let mut w = World::protected();
    let full = w.request(Full);
    w.request(Diff);
    w.told();
    w.growth = Some(150 * MB);
    for _ in 0..30 {
        w.end_job(End::Locked);
        w.pass(seconds(5));
    }
    let starts = w.told().iter().filter(|it| it.starts_with("start")).count();
    assert_eq!(starts, 30);
    w.settle();
    assert_eq!(w.row(full).status, Succeeded);
    assert_eq!(w.statuses(), [Succeeded; 3], "and nothing was asked for by growth meanwhile");
}

// What keeps backups from running.

#[test]
fn what_blocks_is_told_to_who_asks_and_waited_for_otherwise() {
    type Break = fn(&mut World);
    type Mend = fn(&mut World);
    let cases: [(&str, Break, Mend); 3] = [
        (
            "no pgbackrest",
            |w| w.reality.pgbackrest = Some(failure("no pgbackrest")),
            |w| w.reality.pgbackrest = None,
        ),
        (
            "info fails",
            |w| w.reality.unreadable = Some(failure("info fails")),
            |w| w.reality.unreadable = None,
        ),
        (
            "the stanza \"main\" belongs to the cluster with system identifier 7300000000000000002, \
             this one has 7300000000000000001",
            |w| w.reality.owner = OTHER,
            |w| w.reality.owner = OURS,
        ),
    ];
    for (words, broken, mended) in cases {
        let mut w = scheduled("30 * * * *");
        broken(&mut w);
        w.pass(minutes(10));
        w.growth = Some(150 * MB);
        assert!(matches!(w.state().readiness(), Readiness::Blocked(why) if why.message == words));
        let asked = w.request(Incr);
        assert_eq!(w.row(asked).status, Waiting, "it may have been mended: look first");
        w.end_look();
        assert_eq!((w.row(asked).status, w.row(asked).message.as_deref()), (Failed, Some(words)));
        assert!(w.row(asked).hint.as_ref().is_some_and(|hint| !hint.is_empty()));
        w.told();
        // The schedule comes round, and its run waits.
        w.pass(HOUR * 2);
        assert_eq!(w.told(), ["3 incr schedule waiting"]);
        // Who asks now gets what waits, and the refusal.
        let asked = w.request(Incr);
        w.end_look();
        assert_eq!((asked, w.row(asked).status), (3, Failed));
        assert_eq!(w.state().last_failure().map(|job| job.id), Some(3));
        w.pass(HOUR);
        mended(&mut w);
        w.told();
        w.growth = Some(2 * MB);
        w.pass(minutes(1));
        assert_eq!(w.told(), ["4 incr schedule running", "start 4 incr"]);
        assert_eq!(w.state().last_failure(), None, "the refusal has no other cause");
        w.settle();
        let asked = w.request(Incr);
        assert_eq!(w.row(asked).status, Running);
    }
}

#[test]
fn a_check_does_not_show_a_blocked_server_as_well_in_between() {
    let mut w = World::protected();
    w.reality.pgbackrest = Some(failure("no pgbackrest"));
    w.pass(minutes(1));
    for event in [Event::CheckAsked, Event::Reloaded] {
        w.step(event);
        assert!(w.is_looking());
        assert!(matches!(w.state().readiness(), Readiness::Blocked(_)));
        w.end_look();
    }
}

#[test]
fn a_look_that_fails_does_not_keep_a_healthy_server_from_backing_up() {
    let mut w = World::protected();
    w.pass(seconds(59));
    w.sleep_until(w.now + minutes(1));
    w.fail_look();
    assert_eq!(w.state().look_failure(), Some(&failure("the look hangs")));
    assert_eq!(*w.state().readiness(), Readiness::Ready);
    let asked = w.request(Incr);
    w.end_job(End::Success);
    w.fail_look();
    assert_eq!(w.row(asked).status, Succeeded, "pgBackRest has said so");
    assert_eq!((w.row(asked).label.is_some(), w.row(asked).stop_lsn), (true, None));
    w.told();
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0], "and it is not seen as somebody else's");
    assert_eq!(w.state().look_failure(), None);
    // Nor is the base taken once more because no look has seen it.
    let mut w = World::unprotected();
    w.end_look();
    w.end_job(End::Success);
    w.fail_look();
    w.pass(HOUR);
    assert_eq!(w.statuses(), [Succeeded]);
}

#[test]
fn a_look_that_fails_at_first_is_told_to_who_asks() {
    let mut w = World::new(unscheduled());
    let asked = w.request(Incr);
    w.fail_look();
    assert_eq!(
        (w.row(asked).status, w.row(asked).message.as_deref()),
        (Failed, Some("the look hangs"))
    );
    let asked = w.request(Incr);
    w.fail_look();
    assert_eq!(w.row(asked).status, Failed, "each time");
    // Also when it fails from a reload on, and when something else was wrong before.
    let mut w = World::protected();
    w.step(Event::Reloaded);
    let asked = w.request(Incr);
    w.fail_look();
    assert_eq!(w.row(asked).status, Failed);
    w.reality.pgbackrest = Some(failure("no pgbackrest"));
    w.pass(minutes(1));
    let asked = w.request(Incr);
    w.fail_look();
    assert_eq!(w.row(asked).status, Failed);
}

#[test]
fn after_a_reload_nothing_starts_by_what_a_look_with_the_old_settings_finds() {
    let mut w = World::protected();
    w.pass(seconds(59));
    w.sleep_until(w.now + minutes(1));
    assert!(w.is_looking());
    w.settings.stanza = "another".to_string();
    w.step(Event::Reloaded);
    w.request(Incr);
    w.reality.stanza = false;
    w.reality.backups.clear();
    w.end_look();
    assert!(!w.is_running());
    w.told();
    w.settle();
    assert_eq!(w.told()[0], "create stanza");
    // Nor by what one had found, when the look with the new ones fails.
    let mut w = World::new(unscheduled());
    w.end_look();
    w.end_job(End::Lasting);
    w.settle();
    w.settings.stanza = "another".to_string();
    w.told();
    w.step(Event::Reloaded);
    w.fail_look();
    assert_eq!(w.told(), [""; 0]);
}

// The repository's own account.

#[test]
fn a_look_that_began_before_the_backup_ended_does_not_count() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.pass(seconds(59));
    w.sleep_until(w.now + minutes(1));
    assert!(w.is_looking());
    w.end_job(End::Success);
    w.end_look();
    assert_eq!(w.row(asked).status, Running, "the next look knows it");
    w.end_look();
    assert_eq!((w.row(asked).status, w.row(asked).size), (Succeeded, Some(1000)));
    assert_eq!(w.jobs.len(), 2, "it is not external too");
    // Nor does one that knows the backup before the worker has noticed its end.
    let asked = w.request(Incr);
    w.end_job_behind_a_look();
    w.settle();
    assert_eq!((w.row(asked).status, w.jobs.len()), (Succeeded, 3));
}

#[test]
fn checks_one_after_another_do_not_keep_anything_from_going_on() {
    let mut w = World::new(unscheduled());
    for _ in 0..6 {
        w.step(Event::CheckAsked);
        w.end_look();
        w.end_job(End::Success);
    }
    assert_eq!(w.statuses(), [Succeeded]);
}

#[test]
fn a_label_that_was_not_caught_is_found_in_the_repository() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.step(Event::CheckAsked);
    w.end_job(End::SuccessWithoutLabel);
    w.reality.add(Incr, None, w.now);
    w.settle();
    assert_eq!(w.row(asked).label.as_deref(), Some("20260310-000001F_20260310-000002I"));
    assert_eq!(w.jobs.len(), 3, "only the other one is external");
}

#[test]
fn the_label_is_read_from_what_pgbackrest_prints() {
    macro_rules! recorded {
        ($version:literal, $name:literal) => {
            include_str!(concat!("../../../fixtures/pgbackrest/", $version, "/", $name))
        };
    }
    for (info, full, incr) in [
        (
            recorded!("2.45", "info/full-diff-incr.json"),
            recorded!("2.45", "console/full.txt"),
            recorded!("2.45", "console/incr.txt"),
        ),
        (
            recorded!("2.60", "info/full-diff-incr.json"),
            recorded!("2.60", "console/full.txt"),
            recorded!("2.60", "console/incr.txt"),
        ),
    ] {
        let backups = parse_info(info, "main").expect("recorded info").backups;
        assert_eq!(new_label(full).as_ref(), Some(&backups[0].label));
        assert_eq!(new_label(incr).as_ref(), Some(&backups[2].label));
    }
    assert_eq!(new_label("P00   INFO: last backup label = 20261122-165341F\n"), None);
    assert_eq!(new_label("P00   INFO: new backup label = "), None);
}

#[test]
fn backups_taken_by_hand_are_recorded_once() {
    let mut w = World::protected();
    w.reality.add(Incr, None, w.now);
    w.reality.add(Diff, None, w.now);
    w.pass(HOUR);
    assert_eq!(w.told(), ["2 incr external succeeded", "3 diff external succeeded"]);
    assert_eq!(w.row(2).label.as_deref(), Some("20260310-000001F_20260310-000002I"));
    assert_eq!(w.row(2).requested_at, at("2026-03-10T12:00:29"));
    assert_eq!(w.row(2).started_at, Some(at("2026-03-10T12:00:29")));
    assert_eq!(w.row(2).finished_at, Some(at("2026-03-10T12:00:30")));
    assert_eq!(w.row(3).size, Some(1000));
    w.crash(seconds(5));
    w.pass(HOUR);
    assert_eq!(w.told(), [""; 0]);
    assert_eq!(w.state().last_failure(), None);
}

#[test]
fn a_lost_history_is_rebuilt_with_its_triggers() {
    let mut w = scheduled("30 * * * *");
    w.pass(minutes(30));
    w.settle();
    w.request(Diff);
    w.settle();
    w.reality.add(Incr, None, w.now);
    w.lose_history();
    w.told();
    w.crash(seconds(5));
    w.settle();
    assert_eq!(
        w.told(),
        [
            "1 full missing_base succeeded",
            "2 incr schedule succeeded",
            "3 diff manual succeeded",
            "4 incr external succeeded",
        ]
    );
}

#[test]
fn another_clusters_backups_are_neither_recorded_nor_built_on() {
    let mut reality = Reality { stanza: true, owner: OTHER, ..Reality::new() };
    reality.add(Full, None, at("2026-03-10T12:00:00"));
    let mut w = World::within(reality, unscheduled());
    w.settle();
    assert_eq!(w.told(), [""; 0]);
    assert_eq!(w.jobs.len(), 0);
}

// The end, and the next beginning.

#[test]
fn a_crash_marks_what_ran_as_failed_and_takes_it_again_though_no_wal_was_written() {
    let mut w = scheduled("30 * * * *");
    w.pass(minutes(30));
    w.request(Full);
    w.told();
    w.growth = Some(0);
    w.crash(minutes(5));
    assert_eq!(w.told(), ["2 incr schedule failed", "4 incr startup (try 2) waiting"]);
    assert_eq!(
        w.row(2).message.as_deref(),
        Some("the server or the worker ended while the backup was running")
    );
    w.settle();
    assert_eq!(w.statuses(), [Succeeded, Failed, Succeeded, Succeeded]);
    assert_eq!(w.row(3).trigger, Trigger::Manual, "what waited goes on");
}

#[test]
fn a_crash_leaves_one_of_a_type_to_take() {
    let mut w = World::protected();
    let running = w.request(Incr);
    let waiting = w.request(Incr);
    w.crash(seconds(5));
    w.settle();
    assert_eq!((w.row(running).status, w.row(waiting).status), (Failed, Succeeded));
    assert_eq!(w.jobs.len(), 3);
    // Which is not skipped then.
    let mut w = scheduled("30 * * * *");
    w.request(Incr);
    w.growth = Some(0);
    w.pass(minutes(30));
    w.crash(seconds(5));
    w.settle();
    assert_eq!(w.statuses(), [Succeeded, Failed, Succeeded]);
}

#[test]
fn a_shutdown_stops_everything_and_the_next_start_takes_the_backup_again() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.step(Event::CheckAsked);
    w.told();
    w.shut_down();
    assert!(w.is_stopping());
    w.end_job(End::Passing);
    w.end_look();
    w.now += HOUR;
    w.step(Event::Tick);
    assert_eq!(w.told(), [""; 0], "nothing is started, and nothing has failed yet");
    assert_eq!(w.row(asked).status, Running);
    w.crash(minutes(5));
    w.settle();
    assert_eq!(w.statuses(), [Succeeded, Failed, Succeeded]);
}

#[test]
fn a_shutdown_forgets_no_request_and_fails_none() {
    let mut w = World::new(unscheduled());
    w.end_look();
    let asked = w.request(Incr);
    w.shut_down();
    assert!(w.is_stopping(), "creating the stanza");
    w.end_job(End::Passing);
    let late = w.request(Full);
    assert_eq!(w.statuses(), [Waiting, Waiting]);
    w.crash(minutes(1));
    w.settle();
    assert_eq!((w.row(asked).status, w.row(late).status), (Succeeded, Succeeded));
    assert_eq!(w.jobs.len(), 2);
    let mut w = World::new(unscheduled());
    let asked = w.request(Incr);
    w.shut_down();
    w.fail_look();
    assert_eq!(w.row(asked).status, Waiting);
}

#[test]
fn a_backup_that_ends_well_during_a_shutdown_or_right_before_a_crash_has_succeeded() {
    type Story = fn(&mut World);
    let stories: [Story; 3] = [
        |w| {
            w.shut_down();
            w.end_job(End::Success);
        },
        |w| {
            w.end_job(End::Success);
            w.shut_down();
            w.end_look();
        },
        |w| w.end_job(End::Success),
    ];
    for story in stories {
        let mut w = World::protected();
        let asked = w.request(Incr);
        story(&mut w);
        w.crash(minutes(1));
        w.settle();
        assert_eq!((w.row(asked).status, w.row(asked).size), (Succeeded, Some(1000)));
        assert_eq!(w.jobs.len(), 2, "not once more, and not as somebody else's");
    }
}

#[test]
fn what_was_cancelled_before_a_shutdown_is_not_taken_again() {
    let mut w = World::protected();
    let asked = w.request(Incr);
    w.step(Event::CancelAsked);
    w.shut_down();
    w.end_job(End::Passing);
    w.crash(minutes(1));
    w.settle();
    assert_eq!((w.row(asked).status, w.jobs.len()), (Cancelled, 2));
}

#[test]
fn numbers_are_never_used_again() {
    let mut w = World::protected();
    for _ in 0..3 {
        w.request(Full);
        w.request(Incr);
        w.crash(seconds(1));
    }
    // Should the memory be behind the history: what had not ended counts too.
    let job = Job::new(50, Incr, Trigger::Manual, w.now);
    let (state, _) = step(
        State::new(OURS, Memory::default(), w.now),
        Event::Started { unfinished: vec![job], labels: BTreeSet::new(), full_due: None },
        Present { now: w.now, growth: None },
        &w.settings,
    );
    assert_eq!(state.memory.next_job, 51);
}

// After a restore.

#[test]
fn a_restored_server_takes_one_full_backup_however_often_it_starts() {
    // The repository is still there; it is lost, too; not even a stanza is left.
    for (stanza, backups, job) in [(true, 2, 3), (true, 0, 1), (false, 0, 1)] {
        let mut w = World::protected();
        w.reality.add(Incr, None, w.now);
        w.reality.backups.truncate(backups);
        w.reality.stanza = stanza;
        w.now += HOUR;
        w.told();
        w.restore();
        assert_eq!(w.told(), [""; 0], "nothing happens before the look");
        w.settle();
        w.pass(HOUR);
        let told = w.told();
        let full = ["waiting", "running"].map(|word| format!("{job} full startup {word}"));
        let taken = [format!("start {job} full"), format!("{job} full startup succeeded")];
        assert_eq!(told[told.len() - 4..], [full, taken].concat(), "{told:?}");
        assert_eq!(w.full_due, None, "it is remembered");
        assert_eq!(w.reality.backups.len(), backups + 1);
        w.crash(minutes(1));
        w.pass(HOUR);
        w.shut_down();
        w.crash(minutes(1));
        w.pass(HOUR);
        assert_eq!(w.told(), [""; 0], "and not taken again");
    }
}

#[test]
fn the_full_backup_after_a_restore_comes_as_soon_as_it_can() {
    type Change = fn(&mut World);
    let cases: [(Change, Change); 4] = [
        (|w| w.reality.owner = OTHER, |w| w.reality.owner = OURS),
        (|w| w.reality.unreadable = Some(failure("not mounted")), |w| w.reality.unreadable = None),
        (|w| w.memory_paused(true), |w| w.step(Event::PauseAsked(false))),
        (|w| w.reality.pgbackrest = Some(failure("none")), |w| w.reality.pgbackrest = None),
    ];
    for (prevents, mends) in cases {
        let mut w = World::protected();
        w.now += HOUR;
        w.lose_history();
        w.mark_as_restored();
        prevents(&mut w);
        w.crash(seconds(10));
        w.told();
        w.pass(HOUR);
        assert!(!w.told().iter().any(|it| it.starts_with("start")), "nothing can run");
        assert!(w.full_due.is_some());
        mends(&mut w);
        w.pass(minutes(2));
        w.settle();
        assert_eq!(w.full_due, None);
        assert!(w.told().iter().any(|it| it.ends_with("full startup succeeded")));
    }
}

#[test]
fn a_full_backup_that_fails_after_a_restore_is_taken_later() {
    for end in [End::Passing, End::Lasting, End::Killed] {
        let mut w = World::protected();
        w.now += HOUR;
        w.restore();
        w.end_look();
        w.end_job(end);
        assert!(w.full_due.is_some());
        // And though the server is started again meanwhile.
        w.crash(seconds(5));
        w.pass(minutes(20));
        w.settle();
        assert_eq!(w.full_due, None, "{end:?}");
        let taken = w.jobs.values().filter(|it| it.status == Succeeded && it.kind == Full);
        let triggers: Vec<Trigger> = taken.map(|it| it.trigger).collect();
        assert_eq!(triggers, [Trigger::MissingBase, Trigger::Startup], "{end:?}");
    }
}

#[test]
fn a_full_backup_since_the_restore_is_one_whoever_took_it() {
    // By hand, before the worker had looked.
    let mut w = World::protected();
    w.now += HOUR;
    w.mark_as_restored();
    w.now += seconds(5);
    w.reality.add(Full, None, w.now);
    w.crash(seconds(5));
    w.settle();
    w.pass(HOUR);
    assert_eq!(w.full_due, None);
    assert_eq!(w.reality.backups.len(), 2);
    // The worker died when it had been taken.
    let mut w = World::protected();
    w.now += HOUR;
    w.restore();
    w.end_look();
    assert!(w.is_running());
    w.now += seconds(5);
    w.reality.add(Full, Some(Trigger::Startup), w.now);
    w.crash(seconds(5));
    w.end_look();
    assert_eq!(w.full_due, None);
    // The clock was set back, and the backup looks as if it had been taken before the restore.
    let mut w = World::protected();
    w.mark_as_restored();
    w.now -= HOUR;
    w.reality.add(Full, None, w.now);
    w.crash(seconds(5));
    w.settle();
    w.pass(minutes(30));
    assert_eq!(w.full_due, None);
    assert_eq!(w.reality.backups.len(), 2);
    // An incremental one is none.
    let mut w = World::protected();
    w.now += HOUR;
    w.restore();
    w.request(Incr);
    w.settle();
    assert_eq!(w.statuses(), [Succeeded; 3]);
    assert_eq!(w.row(3).trigger, Trigger::Startup);
}

// Backups that the repository does not list.

#[test]
fn a_backup_that_is_not_listed_is_no_reason_for_another_one() {
    let mut w = World::unprotected();
    w.end_look();
    w.reality.unlisted = true;
    w.settle();
    w.growth = Some(150 * MB);
    w.pass(HOUR * 2);
    assert_eq!(w.statuses(), [Status::Succeeded]);
    assert_eq!(w.state().unlisted().and_then(|it| it.label.as_deref()), Some("20260310-000001F"));
    // Whoever asks for one gets it.
    w.request(Full);
    w.end_look();
    assert!(w.is_running());
    w.settle();
    w.reality.unlisted = false;
    w.pass(minutes(2));
    assert_eq!(w.state().unlisted(), None);
    assert_eq!(w.statuses(), [Status::Succeeded; 2]);
}

#[test]
fn another_repository_needs_a_backup_of_its_own() {
    let mut w = World::unprotected();
    w.end_look();
    w.reality.unlisted = true;
    w.settle();
    w.step(Event::Reloaded);
    w.end_look();
    assert!(w.is_running());
}

// The clock.

#[test]
fn a_clock_that_was_set_back_does_not_stop_anything() {
    let mut w = World::protected();
    w.set_clock_back(TimeDelta::days(400));
    w.reality.add(Incr, None, w.now);
    w.pass(minutes(1));
    assert_eq!(w.row(2).trigger, Trigger::External, "looks");
    w.growth = Some(150 * MB);
    w.set_clock_back(TimeDelta::days(400));
    w.pass(minutes(1));
    assert!(w.is_running(), "growth");
    w.end_job(End::Passing);
    w.set_clock_back(TimeDelta::days(400));
    w.pass(minutes(15));
    assert!(w.is_running(), "a retry");
    w.end_job(End::Lasting);
    w.set_clock_back(TimeDelta::days(400));
    w.pass(minutes(17));
    assert!(w.is_running(), "what was held back");
}

#[test]
fn a_run_is_not_repeated_when_the_clock_is_set_back_a_little() {
    for (back, runs) in
        [(seconds(1), 1), (HOUR * 2, 1), (HOUR * 4, 2), (TimeDelta::days(30) + HOUR, 2)]
    {
        let mut w = scheduled("0 15 * * *");
        w.settings.min_wal_growth = 0;
        w.pass(HOUR * 3);
        w.settle();
        w.set_clock_back(back);
        w.pass(back.max(HOUR * 5).min(HOUR * 20));
        w.settle();
        assert_eq!(w.jobs.len(), 1 + runs, "{back}");
    }
}

#[test]
fn the_pauses_between_tries_double_up_to_the_ceiling() {
    let pauses = [0, 1, 2, 3, 6, 7, 8, u32::MAX].map(|attempt| back_off(attempt).num_seconds());
    assert_eq!(pauses, [15, 15, 30, 60, 480, 900, 900, 900]);
}

#[test]
fn a_copy_starts_no_backup_and_says_why() {
    let why = Failure { message: "this is a copy".to_string(), hint: "Make it one.".to_string() };
    // Beside its original's repository; with one of its own, where not even a stanza is.
    for there in [true, false] {
        let mut w = if there { scheduled("0 * * * *") } else { World::unprotected() };
        let before = if there {
            w.step(Event::PauseAsked(true));
            w.pass(HOUR);
            w.step(Event::PauseAsked(false));
            w.end_job(End::Killed);
            w.request(Full);
            w.jobs.len()
        } else {
            0
        };
        w.aside = Some(why.clone());
        w.crash(minutes(1));
        w.end_look();
        assert!(w.jobs.values().skip(1).all(|job| job.status == Failed), "{:?}", w.jobs);
        w.told();
        w.growth = Some(200 * MB);
        w.pass(HOUR * 5);
        assert_eq!(w.told(), [""; 0]);
        assert!(w.state().next_runs(&w.settings).is_empty());
        let asked = w.request(Incr);
        assert_eq!((w.row(asked).status, w.is_running()), (Failed, false));
        assert_eq!(w.row(asked).message.as_deref(), Some("this is a copy"));
        assert!(w.jobs.len() > before);
        // It is a server of its own.
        w.aside = None;
        w.crash(minutes(1));
        w.end_look();
        let asked = w.request(Full);
        w.settle();
        assert_eq!(w.row(asked).status, Succeeded);
    }
}

// Pauses.

#[test]
fn while_backups_are_paused_none_starts_and_what_a_schedule_missed_is_made_up_once() {
    let mut w = scheduled("0 * * * *");
    w.step(Event::PauseAsked(true));
    assert!(w.state().is_paused());
    assert_eq!(w.told(), [""; 0]);
    w.growth = Some(200 * MB);
    let steps = w.steps;
    w.pass(HOUR * 5);
    assert_eq!(w.told(), ["2 incr schedule waiting"], "once, and growth asks for none");
    // A tick, a look and its end every minute; no wake for what must not start.
    assert!(w.steps - steps <= 5 * 182, "{} steps", w.steps - steps);
    w.step(Event::PauseAsked(false));
    assert_eq!(w.told(), ["2 incr schedule running", "start 2 incr"]);
    w.settle();
    assert_eq!(w.statuses(), [Succeeded, Succeeded]);
}

#[test]
fn who_asks_while_backups_are_paused_is_refused_and_what_waits_goes_on_waiting() {
    let mut w = scheduled("0 * * * *");
    w.step(Event::PauseAsked(true));
    w.pass(HOUR);
    let asked = w.request(Incr);
    assert_eq!(w.row(asked).status, Failed);
    assert_eq!(w.row(asked).message.as_deref(), Some("backups are paused"));
    assert!(w.row(asked).hint.as_ref().is_some_and(|it| it.contains("nrt_resume")));
    assert_eq!(w.state().last_failure(), None, "a refusal is no failure of a backup");
    assert_eq!(w.statuses(), [Succeeded, Waiting, Failed]);
}

#[test]
fn a_pause_lets_the_running_backup_end_and_tells_those_who_wait() {
    let mut w = World::protected();
    let running = w.request(Full);
    let waiting = w.request(Incr);
    w.step(Event::PauseAsked(true));
    assert!(w.is_running() && !w.is_stopping());
    assert_eq!((w.row(running).status, w.row(waiting).status), (Running, Failed));
    w.settle();
    assert_eq!(w.row(running).status, Succeeded);
    // It can still be cancelled, and fail.
    w.step(Event::PauseAsked(false));
    let failing = w.request(Full);
    w.step(Event::PauseAsked(true));
    w.end_job(End::Passing);
    assert_eq!(w.state().last_failure().map(|it| it.id), Some(failing));
}

#[test]
fn a_pause_outlives_the_server_and_the_stanza_is_made_all_the_same() {
    let mut w = World::new(unscheduled());
    w.step(Event::PauseAsked(true));
    w.settle();
    assert_eq!(w.told(), ["create stanza"], "WAL is to be archived");
    w.crash(minutes(1));
    w.pass(HOUR);
    assert!(w.state().is_paused());
    assert_eq!(w.told(), [""; 0]);
    w.step(Event::PauseAsked(false));
    w.settle();
    assert_eq!(w.statuses(), [Succeeded]);
}
