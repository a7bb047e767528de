//! Holds what a server says of how far it is protected against what a restore comes to.

use std::fs;

use crate::offsite::{
    AGAIN, NAME, all_well, contents, kill_shipping, nrt_backup, owner_of, processes, shipping,
    started, told, wait_for_shipped,
};
use crate::protected::{SOON, wait_for_health};
use crate::restoring::{Place, from, texts};
use chrono::Utc;
use nrt_tests::{Cluster, Kind, Remote, Shutdown, kill, wait_until};
use rustix::process::Signal;

/// The history files in the archive of a repository.
fn histories(repository: &std::path::Path) -> Vec<String> {
    let files = contents(&repository.join("archive/main")).into_keys();
    files.filter(|it| it.ends_with(".history")).collect()
}

/// Has a stopped server begin another timeline, as a failover does.
fn begin_another_timeline(cluster: &Cluster, timeline: &str) {
    cluster.set("restore_command", "false");
    fs::write(cluster.data().join("recovery.signal"), "").expect("the directory is ours");
    cluster.start();
    cluster.wait_for("select pg_is_in_recovery()", "f", SOON);
    let question = "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(cluster.value(question), timeline);
    cluster.stop(Shutdown::Fast);
    cluster.unset("restore_command");
}

#[test]
fn claims_of_a_server_that_failed_over_before_it_was_protected_hold() {
    let remote = Remote::new("late", Kind::WebDav);
    let cluster = Cluster::with_identity("late").preload(false).started();
    // What recovery insists on is in its WAL now.
    cluster.stop(Shutdown::Fast);
    begin_another_timeline(&cluster, "00000002");
    begin_another_timeline(&cluster, "00000003");
    let cluster = shipping(cluster.preload(true), &remote);
    // PostgreSQL never archives what a server had marked as archived before.
    let both = ["15-1/00000002.history", "15-1/00000003.history"];
    let there = histories(&cluster.repository());
    assert_eq!(there, both);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    all_well(&cluster);
    wait_for_health(&cluster, "wal_gap", "ok");
    let window = "select timeline, gap_until is null from nrt.recovery_window";
    assert_eq!(cluster.sql(window), [["3", "t"]]);

    // The repository is emptied, and made anew.
    cluster.stop(Shutdown::Fast);
    for directory in ["archive", "backup"] {
        fs::remove_dir_all(cluster.repository().join(directory)).expect("it is there");
    }
    cluster.start();
    wait_until("the history files are archived again", AGAIN, || {
        histories(&cluster.repository()) == both
    });
    cluster.stop(Shutdown::Fast);

    let remote_arguments = from(&remote);
    let restored = Place::new("late-restored").restore(&texts(&remote_arguments));
    assert_eq!(restored.value("select count(*) from t"), "1000");
}

#[test]
fn claims_of_a_later_timeline_hold_without_any_history_file() {
    let remote = Remote::new("orphan", Kind::WebDav);
    let cluster = Cluster::with_identity("orphan").preload(false).started();
    // What recovery insists on is in its WAL now.
    cluster.stop(Shutdown::Fast);
    begin_another_timeline(&cluster, "00000002");
    // In the segment in which the timeline begins, PostgreSQL itself needs the file.
    cluster.start();
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x'), pg_switch_wal()");
    cluster.sql("checkpoint");
    cluster.stop(Shutdown::Fast);
    // Not even here: nobody can bring it.
    fs::remove_file(cluster.data().join("pg_wal/00000002.history")).expect("it is there");
    let cluster = started(cluster.preload(true), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    wait_for_health(&cluster, "wal_gap", "ok");
    assert!(histories(&cluster.repository()).is_empty());
    cluster.vanish();
    let restored = Place::new("orphan-restored").restore(&texts(&from(&remote)));
    assert_eq!(restored.value("select count(*) from t"), "1000");
    assert!(remote.files(NAME).exists());
}

#[test]
fn claims_go_on_without_the_worker_and_end_where_nothing_is_reported() {
    let remote = Remote::new("silent", Kind::WebDav);
    // Reports come every second all the same.
    let cluster = Cluster::with_identity("silent").setting("nrt_backup.ship_interval", "3000 ms");
    let cluster = shipping(cluster, &remote);
    cluster.sql("create table t (i int)");
    wait_for_shipped(&cluster);
    let worker = cluster.value("select worker_pid from nrt.status").parse().expect("a pid");
    // As one that waits for a disk.
    kill(worker, Signal::STOP);
    cluster.sql("create table before as select generate_series(1, 100) as i");
    let committed = Utc::now();
    wait_for_shipped(&cluster);
    wait_until("the remote calls that time complete", AGAIN, || {
        owner_of(&remote).complete_until.is_some_and(|until| until > committed)
    });
    assert_eq!(told(&cluster).silent_since, None);
    let place = Place::new("silent-worker");
    let target = format!("--target-time={}", committed.format("%Y-%m-%d %H:%M:%S%.6f+00"));
    let (code, text) = place.run("plan", &[&texts(&from(&remote))[..], &[&target]].concat());
    assert_eq!(code, 0, "{text}");

    let reporter = processes(&cluster, "nrt_backup reporter")[0].pid;
    kill(reporter, Signal::STOP);
    for number in 0..10 {
        cluster.sql(&format!("insert into t values ({number})"));
    }
    let committed = Utc::now();
    // Shipping notices the silence by itself. The worker, which evaluates the checks, does not.
    let mut silent_since = None;
    wait_until("the silence is noticed", AGAIN, || {
        silent_since = told(&cluster).silent_since;
        silent_since.is_some()
    });
    let silent_since = silent_since.expect("it was waited for");
    assert!(silent_since <= committed, "{silent_since} {committed}");
    let words = wait_for_health(&cluster, "shipping", "critical");
    assert!(words.contains("has not reported how far the WAL is"), "{words}");
    let lag = "select ship_lag > interval '3 seconds' from nrt.status";
    cluster.wait_for(lag, "t", SOON);
    let (code, text) = nrt_backup(&cluster, &["status"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("the worker does not report"), "{text}");
    // Two signs of life later the remote still does not call that time complete.
    for _ in 0..2 {
        let before = owner_of(&remote).heartbeat;
        wait_until("a sign of life", AGAIN, || owner_of(&remote).heartbeat > before);
    }
    let complete_until = owner_of(&remote).complete_until.expect("it had shipped before");
    assert!(complete_until <= silent_since, "{complete_until} {silent_since}");
    let place = Place::new("silent-restored");
    let target = format!("--target-time={}", committed.format("%Y-%m-%d %H:%M:%S%.6f+00"));
    let (code, text) = place.run("plan", &[&texts(&from(&remote))[..], &[&target]].concat());
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("cannot be reached"), "{text}");

    kill(reporter, Signal::CONT);
    wait_for_shipped(&cluster);
    assert_eq!(told(&cluster).silent_since, None);
    kill(worker, Signal::CONT);
    all_well(&cluster);

    // The launcher of logical replication and the worker take both places.
    cluster.set("max_worker_processes", "2");
    cluster.allow("nrt_backup health: worker is warning");
    cluster.restart();
    let words = wait_for_health(&cluster, "worker", "warning");
    assert!(words.contains("the nrt_backup reporter could not be registered"), "{words}");
    cluster.sql("insert into t values (11)");
    wait_for_shipped(&cluster);

    // Shipping is killed, a segment ends before it goes on, and the host vanishes: what lies behind the
    // last claim may have a hole, which is no reason to refuse.
    let before = cluster.value("select count(*) from t");
    kill_shipping(&cluster);
    cluster.sql("insert into t values (100)");
    cluster.sql("select pg_switch_wal()");
    cluster.sql("insert into t values (101)");
    cluster.vanish();
    let claimed = owner_of(&remote).shipped;
    let restored = Place::new("killed-restored");
    let (code, text) = restored.run("plan", &[&texts(&from(&remote))[..], &["--latest"]].concat());
    assert_eq!(code, 0, "{claimed:?}: {text}");
    let restored = restored.restore(&[&texts(&from(&remote))[..], &["--latest"]].concat());
    let rows = restored.value("select count(*) from t where i < 100");
    assert_eq!(rows, before, "{claimed:?}");
}
