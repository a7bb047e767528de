//! Measures how long it takes to have a cluster back.

use std::time::{Duration, Instant};

use nrt_tests::{Cluster, Kind, Remote, Restore};
use serde_json::Value;

use super::offsite::{NAME, place, shipping, tree, wait_for_offsite, wait_for_shipped};
use super::{Budget, Effort, MEBIBYTE, Row, Spread};

/// Restores with one command: what it reports, and how long all of it took.
fn restored(name: &str, remote: &Remote, more: &[&str]) -> (Cluster, Value, f64) {
    let cluster = Cluster::without_data(name).preload(false);
    cluster.write_settings();
    let installation = cluster.installation();
    let mut command = installation.command(installation.program("nrt-backup"));
    command.args(["restore", "--json", "--copy", "--process-max=1", "-D"]).arg(cluster.data());
    command.arg("--rclone-config").arg(remote.config());
    command.arg(format!("--remote={}", remote.place(NAME))).args(more);
    let begin = Instant::now();
    let output = command.output().expect("it is installed");
    let took = begin.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&text).expect("it is JSON");
    (cluster, report, took)
}

/// One command against the same by hand, of a cluster with some gigabytes.
pub(super) fn restore(effort: &Effort) -> Vec<Row> {
    let remote = Remote::new("bench-restore", Kind::WebDav);
    let original = Cluster::with_identity("bench-restore").setting("max_wal_size", "4GB");
    let original = shipping(original, &remote);
    original.pgbench(&["--initialize", "--quiet", &format!("--scale={}", effort.restore_scale)]);
    original.sql("SELECT nrt_backup_now('full')");
    wait_for_offsite(&original, 2);
    // WAL to replay.
    original.pgbench(&["--client=2", "--jobs=2", &format!("--time={}", effort.restore_load)]);
    wait_for_shipped(&original);
    let bytes = original.value("SELECT sum(pg_database_size(oid)) FROM pg_database");
    let whole: u64 = tree(&remote.files(NAME)).into_iter().map(|(_, length, _)| length).sum();
    let rows = original.value("SELECT count(*) FROM pgbench_history");
    original.vanish();

    let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fetched, mut replays) = (0.0, Vec::new());
    for number in 0..effort.restores {
        let one_command = |fetched: &mut f64| {
            let (cluster, report, took) = restored("bench-one", &remote, &["--no-start"]);
            let seconds = |phase: &str| report["phases"][phase].as_f64().expect("a number");
            eprintln!(
                "  plan {:.1} s, fetch {:.1} s, restore {:.1} s, replay {:.1} s, of {took:.1} s",
                seconds("plan"),
                seconds("fetch"),
                seconds("restore"),
                seconds("replay")
            );
            *fetched = report["phases"]["fetched_bytes"].as_f64().expect("a number");
            let begin = Instant::now();
            cluster.start();
            let took = took + begin.elapsed().as_secs_f64();
            assert_eq!(cluster.value("SELECT count(*) FROM pgbench_history"), rows);
            (took, report["phases"]["replay"].as_f64().expect("a number"))
        };
        let by_hand = || {
            let copies = place();
            let copy = copies.path().join("copy");
            let begin = Instant::now();
            remote.copy(NAME, &copy);
            let cluster = Restore::new("bench-hand", &copy).run();
            let took = begin.elapsed().as_secs_f64();
            assert_eq!(cluster.value("SELECT count(*) FROM pgbench_history"), rows);
            took
        };
        // Whoever comes second may find a warmer machine: they take turns.
        let ((one, replay), hand) = if number % 2 == 0 {
            let one = one_command(&mut fetched);
            (one, by_hand())
        } else {
            let hand = by_hand();
            (one_command(&mut fetched), hand)
        };
        eprintln!("  one command {one:.1} s, by hand {hand:.1} s: {:.3}", one / hand);
        ratios.push(one / hand);
        ours.push(one);
        theirs.push(hand);

        // The same recovery, with WAL fetched when PostgreSQL asks for it.
        let (cluster, ..) = restored("bench-alone", &remote, &["--no-recovery"]);
        let begin = Instant::now();
        cluster.start();
        cluster.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(600));
        let alone = begin.elapsed().as_secs_f64();
        eprintln!("  replay with WAL fetched ahead {replay:.1} s, when asked for {alone:.1} s");
        replays.push(replay / alone);
    }
    let (ratios, replays) = (Spread::of(ratios), Spread::of(replays));
    let (ours, theirs) = (Spread::of(ours), Spread::of(theirs));
    let bytes: f64 = bytes.parse().expect("a number");
    vec![
        Row {
            what: "a restore with one command / rclone copy and pgBackRest by hand",
            measured: ratios.median,
            unit: "",
            budget: Budget::AtMost(1.0),
            how: format!(
                "median of {} pairs, {ratios:.2}; {:.0} MiB of databases, {:.1} s and {:.1} s, \
                 WebDAV,\n    both with process-max=1; by hand everything is copied",
                effort.restores,
                bytes / MEBIBYTE,
                ours.median,
                theirs.median
            ),
        },
        Row {
            what: "bytes of backups fetched / bytes at the remote",
            measured: fetched / whole as f64,
            unit: "",
            budget: Budget::AtMost(1.0),
            how: format!(
                "{:.1} and {:.1} MiB; two full backups there",
                fetched / MEBIBYTE,
                whole as f64 / MEBIBYTE
            ),
        },
        Row {
            what: "replay with WAL fetched ahead / when PostgreSQL asks for it",
            measured: replays.median,
            unit: "",
            budget: Budget::AtMost(1.0),
            how: format!("median of {}, {replays:.2}", effort.restores),
        },
    ]
}
