//! What a server keeps for the day on which it is restored, and what it does on the day after:
//! restore points, the next transaction id of each backup, and the markers of a restore.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::offsite::{
    AGAIN, NAME, all_well, contents, restored_by_pgbackrest, shipping, wait_for_offsite, words,
};
use crate::protected::{
    SOON, archive_segment, drop_database, history, own_configuration, protected, quiet, started,
    wait_for_backups, wait_for_health,
};
use chrono::Utc;
use nrt_core::layout::Restored;
use nrt_core::lsn::Lsn;
use nrt_core::restore::catalog::RestorePoint;
use nrt_core::restore::points;
use nrt_tests::{Cluster, Kind, Remote, Shutdown, wait_until};
use serde_json::Value;

/// Writes a file of the state directory before the server has ever run.
fn write_state(cluster: &Cluster, name: &str, text: &str) {
    let state = cluster.state_directory();
    if !state.exists() {
        cluster.installation().private_directory(&state).expect("the data directory is there");
    }
    fs::write(state.join(name), text).expect("the directory is ours");
    cluster.installation().hand_over(&state.join(name)).expect("it was just written");
}

/// The restore points that the server has recorded.
fn recorded(cluster: &Cluster) -> Vec<RestorePoint> {
    points::parse(
        &fs::read(cluster.state_directory().join("restore-points.jsonl")).unwrap_or_default(),
    )
}

/// Those that are known off-site.
fn off_site(remote: &Remote) -> Vec<RestorePoint> {
    let text = fs::read(remote.files(NAME).join("restore-points.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn names(points: &[RestorePoint]) -> Vec<&str> {
    points.iter().map(|point| &*point.name).collect()
}

fn wait_for_points(remote: &Remote, expected: &[&str]) {
    wait_until("the restore points are off-site", AGAIN, || names(&off_site(remote)) == expected);
}

// ------------------------------------------------------------------------------ restore points

/// Has pgBackRest keep one full backup, and the worker see it.
fn expire_all_but_the_newest(cluster: &Cluster) {
    let expired = cluster.pgbackrest(&[
        "--stanza=main",
        "--repo1-retention-full-type=count",
        "--repo1-retention-full=1",
        "expire",
    ]);
    assert!(expired.status.success(), "{}", words(&expired));
    cluster.sql("select nrt_check()");
}

#[test]
fn a_restore_point_is_where_it_says_and_its_name_is_free_again_with_the_backups() {
    let cluster = protected("point");
    cluster.sql("create table t as select 1 as i");
    let lsn = cluster.value("select nrt_restore_point('before the \"migration\"')");
    let flushed: Lsn = cluster.value("select pg_current_wal_flush_lsn()").parse().expect("an LSN");
    assert!(lsn.parse::<Lsn>().expect("an LSN") <= flushed);
    cluster.sql("insert into t values (2)");
    let [point] = &recorded(&cluster)[..] else { panic!("one is recorded") };
    assert_eq!((&*point.name, point.timeline), ("before the \"migration\"", 1));
    assert_eq!(point.lsn.to_string(), lsn);
    assert!((Utc::now() - point.at).num_minutes() < 5, "{}", point.at);

    let again = "select nrt_restore_point('before the \"migration\"')";
    let refused = cluster.try_sql(again).expect_err("it would be ambiguous");
    assert_eq!(refused.sqlstate, "42710", "{refused}");
    assert!(refused.message.contains(&lsn), "{refused}");
    assert!(refused.hint.contains("another name"), "{refused}");
    assert_eq!(recorded(&cluster).len(), 1);

    // PostgreSQL finds it by its name.
    archive_segment(&cluster);
    let target = ["--type=name", "--target=before the \"migration\"", "--target-action=promote"];
    let restored = restored_by_pgbackrest("at-point", &cluster.repository(), &target);
    restored.wait_for("select pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.value("select max(i) from t"), "1");
    drop(restored);

    // It outlives restarts, and its name is free when nobody can restore to it any more.
    cluster.restart();
    assert!(cluster.try_sql(again).is_err());
    cluster.sql("select nrt_backup_now('full')");
    expire_all_but_the_newest(&cluster);
    cluster.sql(again);
    assert_eq!(recorded(&cluster).len(), 2);
}

#[test]
fn of_many_who_want_the_same_name_one_gets_it() {
    let cluster = protected("race");
    let outcomes: Vec<Result<_, _>> = thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| cluster.try_sql("select nrt_restore_point('one')")))
            .collect();
        callers.into_iter().map(|caller| caller.join().expect("it does not panic")).collect()
    });
    assert_eq!(outcomes.iter().filter(|it| it.is_ok()).count(), 1, "{outcomes:?}");
    for refused in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(refused.sqlstate, "42710", "{refused}");
    }
    assert_eq!(names(&recorded(&cluster)), ["one"]);
}

#[test]
fn a_restore_point_that_cannot_be_recorded_is_made_with_a_warning() {
    let cluster = protected("unrecorded");
    cluster.allow("it could not be recorded");
    let list = cluster.state_directory().join("restore-points.jsonl");
    cluster.installation().private_directory(&list).expect("the directory is ours");
    let mut session = cluster.client("psql");
    session.args(["-X", "-A", "-t", "-c", "select nrt_restore_point('lost')"]);
    let output = session.output().expect("psql can be run");
    let told = words(&output);
    assert!(output.status.success(), "{told}");
    let lsn = String::from_utf8_lossy(&output.stdout).trim().to_string();
    assert!(told.contains("WARNING:  restore point \"lost\" was made, but"), "{told}");
    assert!(told.contains("HINT:  Note its position") && told.contains(&lsn), "{told}");
    // It is in the WAL.
    let installation = cluster.installation();
    let mut dump = installation.command(installation.program("pg_waldump"));
    dump.arg("--path").arg(cluster.data().join("pg_wal")).args(["--rmgr=XLOG", "--start"]);
    let start = cluster.value("select last_backup_lsn from nrt.status");
    let dumped = dump.arg(start).output().expect("pg_waldump is installed");
    assert!(words(&dumped).contains("RESTORE_POINT lost"), "{}", words(&dumped));

    fs::remove_dir(&list).expect("it is empty");
    cluster.sql("select nrt_restore_point('kept')");
    assert_eq!(names(&recorded(&cluster)), ["kept"]);
}

#[test]
fn where_nothing_can_be_restored_no_point_is_made() {
    let cluster = quiet(Cluster::new("minimal"))
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0");
    for words in ["nrt_backup health: ", "nrt_backup job "] {
        cluster.allow(words);
    }
    let cluster = cluster.started();
    cluster.sql("create extension nrt_backup");
    let refused = cluster.try_sql("select nrt_restore_point('here')").expect_err("it is of no use");
    assert_eq!(refused.sqlstate, "55000", "{refused}");
    assert!(refused.message.contains("wal_level is minimal"), "{refused}");
    assert!(refused.hint.contains("set it to replica"), "{refused}");
    assert_eq!(recorded(&cluster), []);
}

#[test]
fn restore_points_are_known_off_site_and_come_back_from_there() {
    let remote = Remote::new("points", Kind::Local);
    let cluster = shipping(Cluster::with_identity("points"), &remote);
    cluster.sql("select nrt_restore_point('a')");
    wait_for_points(&remote, &["a"]);
    cluster.sql("select nrt_restore_point('b')");
    wait_for_points(&remote, &["a", "b"]);
    assert_eq!(off_site(&remote), recorded(&cluster));

    // A restored server knows of none.
    cluster.stop(Shutdown::Fast);
    fs::remove_file(cluster.state_directory().join("restore-points.jsonl")).expect("it is there");
    cluster.start();
    wait_until("they are known again", AGAIN, || names(&recorded(&cluster)) == ["a", "b"]);
    assert!(cluster.try_sql("select nrt_restore_point('a')").is_err());
    cluster.sql("select nrt_restore_point('c')");
    wait_for_points(&remote, &["a", "b", "c"]);

    // What nobody can restore to any more goes with the backups.
    cluster.sql("select nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    // Without this retention the old backup would count as lost here, and stay there.
    let retention = "exclude=nrt_backup/\n[global:expire]\nrepo1-retention-full=1";
    own_configuration(&cluster, &cluster.repository(), retention);
    cluster.reload();
    expire_all_but_the_newest(&cluster);
    wait_for_offsite(&cluster, 1);
    let there = remote.files(NAME);
    wait_until("the old backup is gone", AGAIN, || {
        contents(&there.join("full-backups")).len() == 1
    });
    cluster.sql("select nrt_restore_point('d')");
    wait_for_points(&remote, &["d"]);
    all_well(&cluster);
}

#[test]
fn names_are_not_in_clear_beside_an_encrypted_repository() {
    let remote = Remote::new("names", Kind::Local);
    let cluster = quiet(Cluster::with_identity("names"));
    let cipher = "repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=not-to-be-guessed";
    own_configuration(&cluster, &cluster.repository(), &format!("{cipher}\nexclude=nrt_backup/"));
    let cluster = shipping(cluster, &remote);
    cluster.sql("select nrt_restore_point('secret')");
    // By then the mirror has been round.
    cluster.sql("select nrt_backup_now()");
    wait_for_offsite(&cluster, 2);
    let there = remote.list(NAME);
    assert!(!there.iter().any(|path| path.contains("restore-points")), "{there:?}");
    assert_eq!(names(&recorded(&cluster)), ["secret"]);
}

// ------------------------------------------------------------------------------ transactions

/// What the descriptions off-site say of the next transaction id, by label.
fn described(there: &Path) -> BTreeMap<String, Option<u64>> {
    let mut found = BTreeMap::new();
    for directory in ["full-backups", "incremental-backups"] {
        for text in contents(&there.join(directory)).into_values() {
            let it: Value = serde_json::from_slice(&text).unwrap_or_default();
            if let Some(label) = it["label"].as_str() {
                found.insert(label.to_string(), it["next_xid"].as_u64());
            }
        }
    }
    found
}

#[test]
fn descriptions_tell_the_next_transaction_and_do_not_forget_it() {
    let remote = Remote::new("xids", Kind::Local);
    let cluster = shipping(Cluster::with_identity("xids"), &remote);
    let xid = || -> u64 { cluster.value("select pg_current_xact_id()").parse().expect("a number") };
    let mut bounds = BTreeMap::new();
    for _ in 0..2 {
        let before = xid();
        let label = cluster.value("select nrt_backup_now()");
        bounds.insert(label, before..=xid());
    }
    let there = remote.files(NAME);
    let complete = |count: usize| {
        let all = described(&there);
        all.len() == count && all.values().all(Option::is_some)
    };
    wait_until("all are described", AGAIN, || complete(3));
    let all = described(&there);
    for (label, bounds) in &bounds {
        let next = all[label].expect("it is there");
        // Of what had begun before the backup nothing is unknown to it.
        assert!(*bounds.start() < next && bounds.contains(&next), "{label}: {next} in {bounds:?}");
    }

    // A server that was restored does not know.
    cluster.stop(Shutdown::Fast);
    fs::remove_file(cluster.state_directory().join("next-xids.json")).expect("it is there");
    cluster.start();
    wait_for_offsite(&cluster, 3);
    cluster.sql("select nrt_backup_now()");
    wait_until("the new one is described", AGAIN, || complete(4));
    let now = described(&there);
    assert!(all.iter().all(|(label, next)| now[label] == *next), "{all:?} became {now:?}");

    // Only what the repository holds is kept.
    let file = cluster.state_directory().join("next-xids.json");
    let kept = || -> BTreeMap<String, u64> {
        serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("it is JSON")
    };
    assert_eq!(kept().len(), 1);
    let oldest = cluster.value("select min(label) from nrt.backups");
    let mut more = kept();
    more.extend([(oldest.clone(), 5), ("20200101-000000F".to_string(), 7)]);
    fs::write(&file, serde_json::to_vec(&more).expect("JSON")).expect("written");
    cluster.sql("select nrt_backup_now()");
    assert_eq!(kept().get(&oldest), Some(&5));
    assert_eq!((kept().len(), kept().contains_key("20200101-000000F")), (3, false));
    all_well(&cluster);
}

// ------------------------------------------------------------------------------ after a restore

#[test]
fn while_a_restore_recovers_the_worker_does_nothing() {
    // As the restore has it.
    let cluster = quiet(Cluster::new("recovering")).setting("archive_mode", "off");
    write_state(&cluster, "recovering", "");
    let cluster = cluster.started();
    cluster.sql("create extension nrt_backup");
    let message = wait_for_health(&cluster, "worker", "critical");
    assert!(message.contains("a restore has not ended"), "{message}");
    let hint = cluster.value("select hint from nrt.health where check_name = 'worker'");
    assert!(hint.contains("nrt_backup/recovering"), "{hint}");
    wait_until("it says so", SOON, || {
        !cluster.logged("waits until the restore is done").is_empty()
    });
    // It has looked a few times.
    thread::sleep(Duration::from_secs(3));
    let all: Vec<String> = contents(&cluster.state_directory()).into_keys().collect();
    assert_eq!(all, ["recovering"]);
    assert_eq!(fs::read_dir(cluster.repository()).expect("it is there").count(), 0);
    assert_eq!(cluster.logged("waits until the restore is done").len(), 1);
    // It holds nobody up.
    cluster.sql("create database other");
    drop_database(&cluster, "other");
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        cluster.stop(how);
        cluster.start();
    }
    assert_eq!(fs::read_dir(cluster.repository()).expect("it is there").count(), 0);
    cluster.stop(Shutdown::Fast);
    cluster.unset("archive_mode");
    cluster.start();
    fs::remove_file(cluster.state_directory().join("recovering")).expect("it is there");
    wait_for_backups(&cluster, 1);
    wait_for_health(&cluster, "worker", "ok");
}

/// What a restore leaves behind that ended just now, of what the repository holds.
fn restored(cluster: &Cluster, is_copy: bool) -> Restored {
    let there = cluster.repository().join("backup/main");
    let there = fs::read_dir(there).into_iter().flatten().flatten();
    let names = there.map(|it| it.file_name().to_string_lossy().into_owned());
    Restored {
        backups: Some(names.filter(|it| it.starts_with("20")).collect()),
        at: Utc::now(),
        backup: "20260101-010101F".to_string(),
        source: "offsite:backups/main".to_string(),
        timeline: 1,
        lsn: Lsn(0x300_0000),
        last_commit: None,
        is_copy,
        full_taken: None,
        target: None,
        phases: None,
    }
}

fn leave(cluster: &Cluster, restored: &Restored) {
    let text = serde_json::to_string(restored).expect("JSON");
    write_state(cluster, "restored.json", &text);
}

fn full_taken(cluster: &Cluster) -> Option<String> {
    let text = fs::read(cluster.state_directory().join("restored.json")).expect("it is there");
    serde_json::from_slice::<Restored>(&text).expect("it is JSON").full_taken
}

#[test]
fn a_restored_server_takes_one_full_backup_across_restarts() {
    // On a new machine: the repository is empty.
    let cluster = quiet(Cluster::new("fresh"));
    leave(&cluster, &restored(&cluster, false));
    let cluster = started(cluster);
    let columns = "trigger, type, status";
    assert_eq!(history(&cluster, columns), [["startup", "full", "succeeded"]]);
    let label = cluster.value("select label from nrt.backups");
    wait_until("it is remembered", SOON, || full_taken(&cluster) == Some(label.clone()));

    // With the repository that it was restored from.
    cluster.sql("select nrt_backup_now()");
    cluster.stop(Shutdown::Fast);
    thread::sleep(Duration::from_secs(1));
    leave(&cluster, &restored(&cluster, false));
    cluster.start();
    wait_for_backups(&cluster, 3);
    let columns = "job, trigger, type, status";
    let expected = [
        ["1", "startup", "full", "succeeded"],
        ["2", "manual", "incr", "succeeded"],
        ["3", "startup", "full", "succeeded"],
    ];
    assert_eq!(history(&cluster, columns), expected);
    let label = cluster.value("select max(label) from nrt.backups where type = 'full'");
    wait_until("it is remembered", SOON, || full_taken(&cluster) == Some(label.clone()));
    for how in [Shutdown::Fast, Shutdown::Immediate] {
        cluster.stop(how);
        cluster.start();
        cluster.sql("select nrt_check()");
        wait_for_backups(&cluster, 3);
        assert_eq!(history(&cluster, columns), expected, "{how:?}");
    }
    // Also where that was lost: the repository knows.
    cluster.stop(Shutdown::Fast);
    let text = fs::read(cluster.state_directory().join("restored.json")).expect("it is there");
    let known: Restored = serde_json::from_slice(&text).expect("it is JSON");
    leave(&cluster, &Restored { full_taken: None, ..known });
    cluster.start();
    cluster.sql("select nrt_check()");
    wait_until("it is found", SOON, || full_taken(&cluster) == Some(label.clone()));
    wait_for_backups(&cluster, 3);
    assert_eq!(history(&cluster, columns), expected);
}

#[test]
fn a_restored_copy_says_what_it_is_until_it_is_a_server_of_its_own() {
    let cluster = protected("original");
    cluster.stop(Shutdown::Fast);
    leave(&cluster, &restored(&cluster, true));
    cluster.set("archive_mode", "off");
    for (name, value) in [
        ("nrt_backup.incremental_schedule", "* * * * *"),
        ("nrt_backup.wal_monitor", "on"),
        ("nrt_backup.wal_growth_threshold", "1MB"),
    ] {
        cluster.set(name, value);
    }
    cluster.allow("nrt_backup health: ");
    cluster.allow("nrt_backup job ");
    cluster.start();
    let message = wait_for_health(&cluster, "archiving", "warning");
    assert!(message.contains("a copy that was restored from offsite:backups/main"), "{message}");
    let hint = cluster.value("select hint from nrt.health where check_name = 'archiving'");
    for words in ["ALTER SYSTEM RESET archive_mode", "restart", "nrt-backup takeover"] {
        assert!(hint.contains(words), "{hint}");
    }
    // pgBackRest would refuse whatever started.
    let rows = history(&cluster, "job, status");
    cluster.sql("create table t as select i, repeat('x', 1000) from generate_series(1, 3000) i");
    for _ in 0..2 {
        cluster.sql("select nrt_check()");
    }
    assert_eq!(history(&cluster, "job, status"), rows, "nothing is started by itself");
    assert_eq!(cluster.value("select activity from nrt.status"), "blocked");
    assert_eq!(cluster.value("select count(next_run) from nrt.schedule"), "0");
    let refused = cluster.try_sql("select nrt_backup_now()").expect_err("it is a copy");
    assert!(refused.message.contains("this is a copy"), "{refused}");
    assert!(refused.hint.contains("ALTER SYSTEM RESET archive_mode"), "{refused}");
    assert_eq!(full_taken(&cluster), None);

    cluster.unset("archive_mode");
    cluster.set("nrt_backup.wal_monitor", "off");
    cluster.set("nrt_backup.incremental_schedule", "off");
    cluster.restart();
    wait_for_health(&cluster, "archiving", "ok");
    cluster.sql("select nrt_backup_now()");
    assert_eq!(
        history(&cluster, "trigger, type, status"),
        [
            ["missing_base", "full", "succeeded"],
            ["manual", "incr", "failed"],
            ["manual", "incr", "succeeded"]
        ]
    );
}
