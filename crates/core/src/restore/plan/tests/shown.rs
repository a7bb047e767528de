//! What people and programs see of plans.

use std::time::Duration;

use chrono_tz::Tz;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::super::target::{Action, Point, Target};
use super::super::{Overview, Plan, Recovery, overview, plan, steps, windows};
use super::rules::{minute, quarter, to, world};
use super::*;

/// Two timelines, a full backup on the first and an incremental one on the second.
fn history() -> World {
    let mut world = world(
        &[(1, None, 26), (2, Some((1, 26)), 48)],
        &[(1, 1, 6), (2, 6, 12)],
        &[("20260101-000600F", 1, 4, 6), ("20260101-000600F_20260101-022000I", 2, 40, 42)],
    );
    let [full, later] = world.catalog.backups.as_mut_slice() else { panic!("two backups") };
    later.references = vec![full.label.clone()];
    later.kind = BackupType::Incr;
    world.catalog.stored.insert(full.label.clone(), 3 << 20);
    world.catalog.stored.insert(later.label.clone(), 1 << 20);
    for backup in &mut world.catalog.backups {
        backup.size = Some(10 << 20);
    }
    world
}

fn planned(world: &World, target: &Target) -> Plan {
    plan(&world.catalog, target, &mut world.wal(), minute(100, 0), None).expect("a plan")
}

/// The same with a recovery that nothing has to lead to.
fn told(recovery: Recovery, change: impl Fn(&mut Target)) -> Plan {
    let mut plan = planned(&history(), &to(Point::Latest));
    plan.recovery = recovery;
    change(&mut plan.target);
    plan
}

#[test]
fn a_plan_is_shown_to_people() {
    let world = history();
    let mut plan = planned(&world, &to(Point::Time(minute(2, 44))));
    plan.estimate = Some(Duration::from_millis(199_500));
    plan.warnings.push("one thing\nand more".to_string());
    assert_eq!(
        plan.text(Tz::Asia__Singapore),
        "\
source       s3:bucket/main, stanza main, PostgreSQL 15
target       the time 2026-01-01 10:24:00+08:00 (Asia/Singapore), which is 2026-01-01 02:24:00 UTC; then the server takes writes
timeline     2
backup       20260101-000600F_20260101-022000I, ended at 2026-01-01 10:22:00+08:00
which needs  20260101-000600F
to fetch     4 MB of backups
to restore   10 MB
WAL          0/A00000 to 0/C00000 on timeline 2: 2 segments, 00000002000000000000000A to 00000002000000000000000B
to replay    2 MB
PostgreSQL   recovery_target_timeline = 2
             recovery_target_time = '2026-01-01 02:24:00.000000+00'
             recovery_target_action = promote
takes        about 3 min 20 s
warning      one thing
             and more
"
    );
    // Two timelines, a full backup, a tail within its segment, an unknown time.
    let mut world = history();
    world.catalog.wal.forget_archived(Segment { timeline: 2, number: 7 });
    world.tail(2, quarter(28), quarter(29));
    world.catalog.backups.pop();
    let target = Target { up_to_gap: true, ..to(Point::Latest) };
    let text = planned(&world, &target).text(Tz::UTC);
    for part in [
        "target       the newest state that there is; then the server takes writes\n",
        "WAL          0/100000 to 0/600000 on timeline 1: 5 segments, 000000010000000000000001 to \
         000000010000000000000005\n             0/600000 to 0/740000 on timeline 2: 2 segments, \
         000000020000000000000006 to 000000020000000000000007\n",
        "PostgreSQL   recovery_target_timeline = 2\ntakes        unknown: no such restore or \
         drill was measured on this machine yet\nwarning      the WAL from 0/740000 to 0/800000 is missing: whatever was \
         committed from 0/740000 on is not restored\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("which needs"), "{text}");
    // One segment; in universal time an instant is written once.
    let text = planned(&world, &to(Point::Time(minute(1, 7)))).text(Tz::UTC);
    assert!(text.contains("the time 2026-01-01 00:07:00 UTC;"), "{text}");
    let text = planned(&history(), &to(Point::Immediate)).text(Tz::UTC);
    assert!(text.contains("2 segments") && text.contains("the end of the backup;"), "{text}");
}

#[test]
fn targets_are_shown_in_words() {
    for (point, change, words) in [
        (Point::Xid(5), Action::Promote, "transaction 5; then the server takes writes"),
        (
            Point::Name("a \"b".to_string()),
            Action::Pause,
            "restore point \"a \\\"b\"; then the server waits, and can be read",
        ),
        (Point::Lsn(Lsn(80)), Action::Shutdown, "position 0/50; then the server shuts down"),
    ] {
        let plan = told(Recovery::End, |target| {
            target.point = point.clone();
            target.action = change;
        });
        assert!(plan.text(Tz::UTC).contains(&format!("target       {words}\n")));
    }
    let plan = told(Recovery::End, |target| {
        target.point = Point::Xid(5);
        target.inclusive = false;
    });
    assert!(plan.text(Tz::UTC).contains("transaction 5, without what is exactly there; then"));
}

#[test]
fn postgres_and_pgbackrest_are_told_the_same() {
    let time = Recovery::Time(minute(1, 5) + TimeDelta::microseconds(7));
    let exclusive = |target: &mut Target| target.inclusive = false;
    let pause = |target: &mut Target| target.action = Action::Pause;
    let nothing = |_: &mut Target| {};
    type Change = fn(&mut Target);
    let cases: [(Recovery, Change, &str, &str); 7] = [
        (Recovery::End, nothing, "", "--type=default --target-timeline=2"),
        // The end of the WAL is the end, also where the target is exclusive.
        (Recovery::End, exclusive, "", "--type=default --target-timeline=2"),
        (
            Recovery::Immediate,
            nothing,
            "recovery_target='immediate' recovery_target_action=promote",
            "--type=immediate --target-action=promote",
        ),
        (
            time,
            exclusive,
            "recovery_target_time='2026-01-01 00:05:00.000007+00' recovery_target_inclusive=off \
             recovery_target_action=promote",
            "--type=time --target=2026-01-01 00:05:00.000007+00 --target-exclusive \
             --target-timeline=2 --target-action=promote",
        ),
        (
            Recovery::Xid(7),
            pause,
            "recovery_target_xid=7 recovery_target_action=pause",
            "--type=xid --target=7 --target-timeline=2 --target-action=pause",
        ),
        (
            Recovery::Lsn(Lsn(80)),
            nothing,
            "recovery_target_lsn='0/50' recovery_target_action=promote",
            "--type=lsn --target=0/50 --target-timeline=2 --target-action=promote",
        ),
        (
            Recovery::Lsn(Lsn(80)),
            exclusive,
            "recovery_target_lsn='0/50' recovery_target_inclusive=off \
             recovery_target_action=promote",
            "--type=lsn --target=0/50 --target-exclusive --target-timeline=2 \
             --target-action=promote",
        ),
    ];
    for (recovery, change, settings, options) in cases {
        let plan = told(recovery, change);
        let found: Vec<String> =
            plan.settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let found = found.join(" ");
        assert_eq!(found, format!("recovery_target_timeline=2 {settings}").trim_end());
        assert_eq!(plan.pgbackrest_options().join(" "), options);
    }
}

#[test]
fn a_plan_is_shown_in_steps() {
    let mut plan = told(Recovery::Lsn(Lsn(0xB0_0050)), |_| {});
    let found = |plan: &Plan| -> Vec<String> {
        let steps = steps(plan, "/srv/my data");
        assert!(steps.iter().zip(1..).all(|(step, number)| step.step == number));
        steps.iter().map(|it| format!("{}\n{}\n{}", it.action, it.command, it.detail)).collect()
    };
    assert_eq!(
        found(&plan),
        [
            "fetch\nrclone copy s3:bucket/main/repository/backup/main/20260101-000600F \
             20260101-000600F\nrclone copy \
             s3:bucket/main/repository/backup/main/20260101-000600F_20260101-022000I \
             20260101-000600F_20260101-022000I\n20260101-000600F, \
             20260101-000600F_20260101-022000I (4 MB)",
            "restore\npgbackrest --stanza=main '--pg1-path=/srv/my data' \
             --set=20260101-000600F_20260101-022000I --type=lsn --target=0/B00050 \
             --target-timeline=2 --target-action=promote restore\nbackup \
             20260101-000600F_20260101-022000I into /srv/my data (10 MB)",
            "recover\nrestore_command = 'nrt-backup wal-get %f \"%p\"'\nrecovery_target_timeline \
             = 2\nrecovery_target_lsn = '0/B00050'\nrecovery_target_action = promote\n0/A00000 to \
             0/C00000 on timeline 2: 2 segments, 00000002000000000000000A to \
             00000002000000000000000B (2 MB)",
            "start\npg_ctl -D '/srv/my data' start\nthe server takes writes, on a new timeline",
        ]
    );
    // A repository on this machine is used where it is.
    plan.source = "/var/lib/pgbackrest".to_string();
    plan.restore_bytes = None;
    plan.target.action = Action::Shutdown;
    let found = found(&plan);
    assert_eq!(found.len(), 3);
    assert!(found[0].starts_with("restore\n") && found[0].ends_with("(unknown size)"));
    assert!(found[2].ends_with("the server shuts down when it has reached the target"));
}

#[test]
fn an_overview_is_shown_to_people() {
    let mut world = history();
    world.catalog.complete_until = Some(minute(2, 60));
    world.catalog.unusable.insert("20260101-000600F".to_string(), "it is damaged".to_string());
    let (lsn, time) = ((quarter(36), quarter(38)), (minute(2, 36), minute(2, 38)));
    let mut other = backup("20260101-021600F", 2, lsn, time, Vec::new());
    other.size = None;
    world.catalog.backups.insert(1, other);
    world.catalog.restore_points = (0..25)
        .rev()
        .map(|number| RestorePoint {
            name: format!("n{number}"),
            timeline: 1,
            lsn: quarter(number),
            at: minute(1, number),
        })
        .collect();
    let found = windows(&world.catalog);
    let text = overview(&world.catalog, &found, Tz::UTC);
    let (before, points) = text.split_once("named points").expect("points");
    assert_eq!(
        before,
        "\
source       s3:bucket/main, stanza main, PostgreSQL 15
cluster      7000000000000000001
reachable    2026-01-01 02:18:00 UTC (0/980000) to 0/C00000; timeline 2, from 20260101-021600F
complete     all commits until 2026-01-01 02:40:00 UTC, and later ones up to 0/C00000
backups      20260101-000600F, full, ended at 2026-01-01 00:06:00 UTC, timeline 1, 10 MB in 3 MB; cannot be used: it is damaged
             20260101-021600F, full, ended at 2026-01-01 02:18:00 UTC, timeline 2
             20260101-000600F_20260101-022000I, incr, ended at 2026-01-01 02:22:00 UTC, timeline 2, 10 MB in 1 MB; cannot be used: it needs backup 20260101-000600F: it is damaged
"
    );
    let (earlier, shown) = points.split_once('\n').expect("lines");
    assert_eq!(earlier.trim(), "5 earlier ones are not shown");
    let first = "\"n5\" at 2026-01-01 00:05:00 UTC, 0/140000 on timeline 1\n";
    assert!(shown.trim_start().starts_with(first), "{shown}");
    assert_eq!(points.lines().count(), 21);
    // In another zone, with a gap, and more than one backup.
    let gap = super::rules::world(
        &[(1, None, 40)],
        &[(1, 1, 4), (1, 6, 10)],
        &[("A", 1, 4, 6), ("B", 1, 7, 8), ("C", 1, 28, 30)],
    );
    let text = overview(&gap.catalog, &windows(&gap.catalog), Tz::Europe__Berlin);
    assert!(
        text.contains(
            "reachable    2026-01-01 01:06:00+01:00 (0/180000) to 0/400000, where WAL is missing; \
             timeline 1, from A and 1 more\n             2026-01-01 01:30:00+01:00 (0/780000) to \
             0/A00000; timeline 1, from C\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("named points none\n"), "{text}");
    let text = overview(&empty_catalog(), &[], Tz::UTC);
    assert!(text.contains("reachable    none\nbackups      none\n"), "{text}");
}

#[test]
fn whatever_is_shown_to_programs_can_be_read_again() {
    fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
        let text = serde_json::to_string(value).expect("serializable");
        assert_eq!(&serde_json::from_str::<T>(&text).expect(&text), value);
    }
    let world = history();
    let mut plan = planned(&world, &to(Point::Latest));
    plan.estimate = Some(Duration::from_secs(5));
    for recovery in [
        Recovery::End,
        Recovery::Immediate,
        Recovery::Time(minute(1, 5)),
        Recovery::Xid(5),
        Recovery::Lsn(Lsn(80)),
    ] {
        plan.recovery = recovery;
        survives(&plan);
    }
    survives(&steps(&plan, "/srv"));
    let overview = Overview::new(&world.catalog, &windows(&world.catalog));
    survives(&overview);
    let json = serde_json::to_value(&overview).expect("serializable");
    assert_eq!(json["backups"][1]["type"], "incr");
    assert_eq!(json["system_identifier"], "7000000000000000001");
    assert_eq!(json["windows"][0]["to_lsn"], "0/C00000");
}

#[test]
fn durations_are_written_for_people() {
    for (seconds, text) in [
        (0.2, "about 1 s"),
        (59.0, "about 59 s"),
        (60.0, "about 1 min 0 s"),
        (3599.5, "about 1 h 0 min"),
        (7500.0, "about 2 h 5 min"),
    ] {
        let mut plan = planned(&history(), &to(Point::Latest));
        plan.estimate = Some(Duration::from_secs_f64(seconds));
        assert!(plan.text(Tz::UTC).contains(&format!("takes        {text}\n")), "{seconds}");
    }
}
