//! Shows that a backup starts by WAL growth when enough WAL was really written, and not before:
//! forced segment switches move the position by 16 MB each and write next to nothing.

use std::thread;
use std::time::{Duration, Instant};

use crate::protected::{SOON, history, protected, quiet, started};
use nrt_tests::{Cluster, Shutdown};

/// The threshold of these tests.
const MEGABYTE: u64 = 1 << 20;
/// An instant of nothing happening, in looks at the growth that are a second apart.
const SOME_LOOKS: Duration = Duration::from_secs(4);

/// A cluster that looks every second whether a megabyte of WAL was written.
fn growing(name: &str) -> Cluster {
    started(
        quiet(Cluster::new(name))
            .setting("nrt_backup.wal_monitor", "on")
            .setting("nrt_backup.wal_monitor_interval", "1s")
            .setting("nrt_backup.wal_growth_threshold", "1MB")
            .setting("nrt_backup.min_growth_interval", "0")
            .setting("nrt_backup.max_growth_share", "0")
            // A backup by growth takes the checkpoint as it comes.
            .setting("checkpoint_completion_target", "0")
            // So that what was written can still be counted at the end.
            .setting("wal_keep_size", "2GB"),
    )
}

/// Bytes from one WAL position to another.
fn distance(cluster: &Cluster, from: &str, to: &str) -> u64 {
    let bytes = cluster.value(&format!("select ({to}) - ({from})"));
    bytes.parse().expect("WAL only grows")
}

/// Bytes of WAL since the last backup, as the operator sees them.
fn growth(cluster: &Cluster) -> u64 {
    cluster.value("select wal_growth from nrt.status").parse().expect("is measured")
}

/// Writes so many bytes of WAL in one record.
fn write(cluster: &Cluster, bytes: u64) {
    cluster.sql(&format!(
        "select pg_logical_emit_message(true, 'nrt', (select string_agg(md5(i::text), '')
           from generate_series(1, {}) i))",
        bytes / 32
    ));
}

/// What `pg_waldump` counts between two positions: bytes of records, without page headers and
/// without what a switch leaves empty. It knows nothing of how the extension measures.
fn recorded(cluster: &Cluster, from: &str, to: &str) -> u64 {
    let mut dump = cluster.client("pg_waldump");
    dump.arg("--path").arg(cluster.data().join("pg_wal")).args(["--start", from, "--end", to]);
    let output = dump.output().expect("is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().count() > 0, "{}", String::from_utf8_lossy(&output.stderr));
    let length = |line: &str| {
        // "... len (rec/tot):     54/    54, tx: ..."
        let (_, lengths) = line.split_once("len (rec/tot):")?;
        lengths.split_once(',')?.0.split_once('/')?.1.trim().parse::<u64>().ok()
    };
    text.lines().map(|line| length(line).expect("a record")).sum()
}

#[test]
fn an_idle_server_that_switches_segments_never_triggers() {
    let cluster = growing("idle");
    cluster.set("archive_timeout", "1s");
    cluster.reload();
    let begin = cluster.value("select last_backup_lsn from nrt.status");
    let begin = format!("pg_lsn '{begin}'");
    for _ in 0..15 {
        cluster.sql("select pg_logical_emit_message(true, 'x', 'y')");
        thread::sleep(Duration::from_secs(1));
    }
    let moved = distance(&cluster, &begin, "pg_current_wal_flush_lsn()");
    assert!(moved > 80 * MEGABYTE, "the server switched often: {moved} bytes");
    assert!(growth(&cluster) < MEGABYTE / 4, "{} bytes", growth(&cluster));
    assert_eq!(history(&cluster, "trigger"), [["missing_base"]]);

    // As fast as one can.
    cluster.unset("archive_timeout");
    cluster.reload();
    for _ in 0..20 {
        cluster.sql("select pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()");
    }
    thread::sleep(SOME_LOOKS);
    assert!(distance(&cluster, &begin, "pg_current_wal_flush_lsn()") > moved + 300 * MEGABYTE);
    assert!(growth(&cluster) < MEGABYTE / 4, "{} bytes", growth(&cluster));
    assert_eq!(history(&cluster, "trigger"), [["missing_base"]]);

    // The same server, with something written.
    write(&cluster, MEGABYTE);
    cluster.wait_for(
        "select trigger || ' ' || status from nrt.backup_history where job > 1",
        "wal_growth succeeded",
        SOON,
    );
}

#[test]
fn under_load_each_backup_waits_for_a_megabyte_of_new_wal() {
    let cluster = growing("load");
    cluster.pgbench(&["--initialize", "--quiet", "--scale=1"]);
    let load = cluster.load(&["--client=2", "--time=600", "--rate=600"]);
    cluster.wait_for(
        "select count(*) >= 4 from nrt.backup_history
          where trigger = 'wal_growth' and status = 'succeeded'",
        "t",
        2 * SOON,
    );
    drop(load);
    // What the last of them left is less than a megabyte, or will become one more.
    cluster.wait_for(
        &format!("select activity = 'idle' and wal_growth < {MEGABYTE} from nrt.status"),
        "t",
        SOON,
    );
    let rows = cluster.sql(
        "select trigger, type, status, wal_growth, start_lsn, stop_lsn,
                started_at >= lag(finished_at, 1, started_at) over (order by job),
                lag(stop_lsn) over (order by job)
           from nrt.backup_history where finished_at is not null order by job",
    );
    assert!(rows.len() >= 5, "{rows:?}");
    for row in &rows[1..] {
        let [trigger, kind, status, growth, start, _stop, after, before] = &row[..] else {
            panic!("{row:?}")
        };
        assert_eq!([trigger, kind, status], ["wal_growth", "incr", "succeeded"], "{row:?}");
        assert_eq!(after, "t", "started before the one before had ended: {row:?}");
        let growth: u64 = growth.parse().expect("was measured");
        assert!(growth >= MEGABYTE, "{row:?}");
        // Up to the backup's start a little more was written; records have no page headers and
        // are aligned to 8 bytes.
        let recorded = recorded(&cluster, before, start);
        assert!(recorded * 100 > MEGABYTE * 90, "{recorded} bytes of records: {row:?}");
        assert!(recorded * 100 > growth * 90, "{growth} bytes, {recorded} of records: {row:?}");
    }
}

#[test]
fn growth_is_watched_only_where_it_is_wanted() {
    let cluster = growing("unwatched");
    cluster.set("nrt_backup.wal_monitor", "off");
    cluster.reload();
    write(&cluster, 3 * MEGABYTE);
    thread::sleep(SOME_LOOKS);
    assert_eq!(history(&cluster, "trigger"), [["missing_base"]]);
    // It is measured all the same.
    assert!((3 * MEGABYTE..4 * MEGABYTE).contains(&growth(&cluster)), "{}", growth(&cluster));
    cluster.set("nrt_backup.wal_monitor", "on");
    cluster.reload();
    cluster.wait_for(
        "select trigger || ' ' || status || ' ' || (wal_growth > 3000000)
           from nrt.backup_history where job > 1",
        "wal_growth succeeded true",
        SOON,
    );

    // A higher threshold, in another spelling.
    cluster.set("nrt_backup.wal_growth_threshold", "0.01GB");
    cluster.reload();
    write(&cluster, 3 * MEGABYTE);
    thread::sleep(SOME_LOOKS);
    assert_eq!(history(&cluster, "job").len(), 2);
    write(&cluster, 8 * MEGABYTE);
    cluster.wait_for("select count(*) from nrt.backups", "3", SOON);
}

#[test]
fn what_was_measured_survives_a_restart() {
    let cluster = protected("kept");
    cluster.set("checkpoint_completion_target", "0");
    cluster.set("nrt_backup.wal_monitor", "on");
    cluster.set("nrt_backup.wal_monitor_interval", "1s");
    cluster.set("nrt_backup.wal_growth_threshold", "6MB");
    cluster.reload();
    // Segments that hold next to nothing, and are gone afterwards: measured anew, each of them
    // would count in full.
    for _ in 0..6 {
        cluster.sql("select pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()");
    }
    write(&cluster, 2 * MEGABYTE);
    let measured = || {
        format!("select wal_growth between {} and {} from nrt.status", 2 * MEGABYTE, 4 * MEGABYTE)
    };
    cluster.wait_for(&measured(), "t", SOON);
    cluster.wait_for(
        "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'",
        "0",
        SOON,
    );
    cluster.sql("checkpoint");
    let first = cluster.value("select first_wal from nrt.backups");
    assert_eq!(
        cluster.value(&format!("select count(*) from pg_ls_waldir() where name <= '{first}'")),
        "0",
        "the segments since the backup are gone"
    );
    let before = growth(&cluster);
    cluster.stop(Shutdown::Fast);
    let kept =
        std::fs::read_to_string(cluster.state_directory().join("state.json")).expect("is kept");
    assert!(kept.contains("\"meter\""), "{kept}");
    cluster.start();
    cluster.wait_for("select activity from nrt.status", "idle", SOON);
    let after = growth(&cluster);
    assert!((before..before + MEGABYTE / 2).contains(&after), "{before}, then {after}");
    thread::sleep(SOME_LOOKS);
    assert_eq!(history(&cluster, "trigger"), [["missing_base"]]);
    write(&cluster, 4 * MEGABYTE);
    cluster.wait_for(
        "select trigger || ' ' || status from nrt.backup_history where job > 1",
        "wal_growth succeeded",
        SOON,
    );
    assert!(growth(&cluster) < MEGABYTE, "measured from the new backup on");
}

#[test]
fn a_backup_starts_soon_after_the_threshold_is_crossed() {
    let cluster = growing("latency");
    cluster.set("nrt_backup.wal_monitor_interval", "2s");
    cluster.reload();
    let mut delays = Vec::new();
    for round in 0..5 {
        let crossed = cluster.value(&format!(
            "with done as materialized (select pg_logical_emit_message(false, 'nrt', repeat('x', {})))
             select clock_timestamp() from done",
            MEGABYTE + 1000
        ));
        // The record is not transactional and nothing else is written: have it flushed.
        cluster.sql("select txid_current()");
        let begin = Instant::now();
        cluster.wait_for("select count(*) from nrt.backups", &(round + 2).to_string(), SOON);
        let delay = cluster.value(&format!(
            "select extract(epoch from max(started_at) - '{crossed}') from nrt.backup_history"
        ));
        delays.push(delay.parse::<f64>().expect("seconds"));
        assert!(begin.elapsed() < SOON);
    }
    let worst = delays.iter().copied().fold(0.0, f64::max);
    eprintln!(
        "threshold crossed to backup started, interval 2 s: {delays:.2?}, worst {worst:.2} s"
    );
    // The interval and a second; and two more for a machine that is busy with other tests.
    assert!(worst <= 2.0 + 1.0 + 2.0, "{delays:?}");
    assert!(delays.iter().all(|delay| *delay >= 0.0), "{delays:?}");
}
