//! Ends backups, workers and servers in every way in which they can end, and looks at what is left:
//! no process, a sound repository, and a history that tells.
//!
//! A child that is stopped by SIGSTOP is a backup that runs as long as a test wants, and one that
//! does not listen to SIGTERM.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::protected::{
    SOON, history, own_configuration, protected, quiet, started, verify, verify_with,
    wait_for_backups, wait_for_health, wait_for_no_orphans,
};
use nrt_tests::{Cluster, Process, Shutdown, SqlError, is_root, kill, wait_until};
use rustix::process::Signal;

/// How long a server may take to stop in the middle of a backup.
const DOWN: Duration = Duration::from_secs(5);
/// How long processes of a server that was killed may take to go: SIGKILL comes two seconds after
/// SIGTERM, and the machine is busy.
const GONE: Duration = Duration::from_secs(10);

/// The processes of a backup.
struct Backup {
    leash: i32,
    main: i32,
    /// All that copy files.
    locals: Vec<i32>,
}

impl Backup {
    /// Finds the backup that the worker of a cluster runs, once it copies files.
    fn find(cluster: &Cluster) -> Option<Backup> {
        let processes = cluster.processes();
        let pids = |wanted: &dyn Fn(&&Process) -> bool| -> Vec<i32> {
            processes.iter().filter(wanted).map(|process| process.pid).collect()
        };
        let leash = |process: &&Process| process.command.contains("nrt-backup leash ");
        let leash = pids(&|it| leash(it) && it.command.ends_with(" backup"));
        let leash = *leash.first()?;
        let below = |process: &&Process| process.pid != leash && process.descends_from(leash);
        let main = pids(&|it| below(it) && it.command.ends_with(" backup"));
        let locals = pids(&|it| below(it) && it.command.contains("backup:local"));
        let main = *main.first()?;
        (!locals.is_empty()).then_some(Backup { leash, main, locals })
    }

    /// Waits for a backup that copies files.
    fn running(cluster: &Cluster) -> Backup {
        let mut found = None;
        wait_until("a backup copies files", SOON, || {
            found = Backup::find(cluster);
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Waits for a backup and freezes it.
    fn frozen(cluster: &Cluster) -> Backup {
        let mut backup = Backup::running(cluster);
        kill(backup.main, Signal::STOP);
        // It starts no more of them now.
        if let Some(all) = Backup::find(cluster) {
            backup = all;
        }
        for pid in &backup.locals {
            kill(*pid, Signal::STOP);
        }
        assert_eq!(cluster.value("select activity from nrt.status"), "backing up");
        backup
    }

    fn thaw(&self) {
        for pid in self.locals.iter().chain([&self.main]) {
            kill(*pid, Signal::CONT);
        }
    }

    fn is_gone(&self) -> bool {
        self.locals.iter().chain([&self.main, &self.leash]).all(|pid| Process::read(*pid).is_none())
    }
}

/// A cluster whose backups take long enough to be found at work.
fn slow(cluster: Cluster) -> Cluster {
    // What the server says when pgBackRest's session ends in the middle of a backup.
    cluster.allow("aborting backup due to backend exiting");
    quiet(cluster).setting("nrt_backup.compress_type", "bz2").setting("nrt_backup.process_max", "1")
}

/// What becomes of the jobs after the first full backup: number left out, as it is the order.
fn later_jobs(cluster: &Cluster) -> Vec<Vec<String>> {
    history(cluster, "trigger, type, status, attempt").split_off(1)
}

fn job(trigger: &str, status: &str, attempt: &str) -> Vec<String> {
    [trigger, "full", status, attempt].map(str::to_string).to_vec()
}

fn worker(cluster: &Cluster) -> i32 {
    cluster.value("select worker_pid from nrt.status").parse().expect("the worker runs")
}

/// Waits in a thread for a full backup.
fn backup_now<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    cluster: &'env Cluster,
) -> thread::ScopedJoinHandle<'scope, Result<Vec<Vec<String>>, SqlError>> {
    scope.spawn(|| cluster.try_sql("select nrt_backup_now('full')"))
}

#[test]
fn a_backup_is_cancelled_by_sql_and_by_a_signal_to_the_worker() {
    let cluster = started(slow(Cluster::new("cancel")));
    let ways =
        ["select nrt_backup_cancel()", "select pg_cancel_backend(worker_pid) from nrt.status"];
    for (number, way) in ways.into_iter().enumerate() {
        let told = thread::scope(|scope| {
            let caller = backup_now(scope, &cluster);
            let backup = Backup::frozen(&cluster);
            assert_eq!(cluster.value(way), "t");
            let told = caller.join().expect("does not panic").expect_err("is cancelled");
            assert!(backup.is_gone(), "{way}: the backup's processes are left");
            told
        });
        assert_eq!(told.sqlstate, "57014", "{told}");
        assert!(told.message.contains("was cancelled"), "{told}");
        assert_eq!(later_jobs(&cluster), vec![job("manual", "cancelled", "1"); number + 1]);
    }
    assert_eq!(cluster.value("select activity from nrt.status"), "idle");
    assert_eq!(cluster.value("select nrt_backup_cancel()"), "f");
    cluster.assert_no_orphans();
    cluster.sql("select nrt_backup_now('full')");
    verify(&cluster);
}

#[test]
fn a_cancelled_first_backup_stays_cancelled_until_somebody_wants_one() {
    let cluster = slow(Cluster::new("first")).started();
    cluster.sql("create extension nrt_backup");
    cluster.allow("nrt_backup health: backup is critical: no full backup");
    let backup = Backup::frozen(&cluster);
    assert_eq!(cluster.value("select nrt_backup_cancel()"), "t");
    wait_until("all of it is gone", GONE, || backup.is_gone());
    // It is written down after the end of the first.
    cluster.wait_for("select status from nrt.backup_history where job = 2", "waiting", SOON);
    // The second try waits for a quarter of an hour.
    let shown = history(&cluster, "trigger, type, status, attempt");
    let expected =
        [["missing_base", "full", "cancelled", "1"], ["missing_base", "full", "waiting", "2"]];
    assert_eq!(shown, expected);
    wait_for_health(&cluster, "backup", "critical");
    assert!(Backup::find(&cluster).is_none());
    let told = cluster.psql("select nrt_backup_now('incr')");
    assert!(told.contains('F'), "{told}");
}

#[test]
fn a_caller_that_leaves_does_not_take_the_backup_along() {
    let cluster = started(slow(Cluster::new("leaves")));
    thread::scope(|scope| {
        let caller = backup_now(scope, &cluster);
        let backup = Backup::frozen(&cluster);
        cluster.wait_for(
            "select pg_cancel_backend(pid) from pg_stat_activity
              where query = 'select nrt_backup_now(''full'')'",
            "t",
            SOON,
        );
        let told = caller.join().expect("does not panic").expect_err("is cancelled");
        assert_eq!(told.message, "canceling statement due to user request");
        assert_eq!(later_jobs(&cluster), [job("manual", "running", "1")]);
        assert_eq!(cluster.value("select count(*) from nrt.progress"), "1");
        backup.thaw();
    });
    wait_for_backups(&cluster, 2);
    assert_eq!(later_jobs(&cluster), [job("manual", "succeeded", "1")]);
}

#[test]
fn a_segment_that_cannot_be_archived_holds_up_no_shutdown() {
    let cluster = protected("hanging");
    cluster.allow("archive command failed with exit code 255");
    let real = "exec /usr/bin/pgbackrest \"$@\"";
    let hanging = format!("case \"$*\" in *archive-push*) exec sleep 600 ;; esac; {real}");
    cluster.fake("pgbackrest", &hanging);
    cluster.sql("select nrt_check()");
    cluster.sql("create table t as select 1 as i");
    let segment = cluster.value("select pg_walfile_name(pg_switch_wal())");
    let hangs =
        || cluster.processes().iter().any(|process| process.command.starts_with("sleep 600"));
    wait_until("it hangs", SOON, hangs);
    let took = cluster.stop(Shutdown::Fast);
    assert!(took < DOWN, "{took:?}");
    wait_until("it is gone", SOON, || !hangs());
    // It is still there, and is archived.
    cluster.fake("pgbackrest", real);
    cluster.start();
    let archived = format!("select last_archived_wal >= '{segment}' from pg_stat_archiver");
    cluster.wait_for(&archived, "t", SOON);
}

#[test]
fn a_terminated_worker_comes_back_and_takes_the_backup_again() {
    let cluster = started(slow(Cluster::new("terminate")));
    cluster.allow("nrt_backup job 2: full backup failed: the server or the worker ended");
    cluster.value("select nrt_backup_start('full')");
    let backup = Backup::frozen(&cluster);
    let before = worker(&cluster);
    assert_eq!(cluster.value(&format!("select pg_terminate_backend({before})")), "t");
    wait_until("the backup's processes are gone", GONE, || backup.is_gone());
    wait_for_backups(&cluster, 2);
    assert_ne!(worker(&cluster), before);
    assert_eq!(
        later_jobs(&cluster),
        [job("manual", "failed", "1"), job("startup", "succeeded", "2")]
    );
    cluster.assert_no_orphans();
    verify(&cluster);
}

/// Ends a server in the middle of a backup, once while pgBackRest listens and once while it does
/// not, and sees that the next start takes the backup again.
fn stops_in_the_middle(name: &str, how: Shutdown) {
    let cluster = started(slow(Cluster::new(name)));
    cluster
        .allow("full backup failed: the server or the worker ended while the backup was running");
    // What pgBackRest's session is told.
    cluster.allow("client backend 57P01");
    for listens in [true, false] {
        let before = later_jobs(&cluster);
        let number = cluster.value("select nrt_backup_start('full')");
        let backup = if listens { Backup::running(&cluster) } else { Backup::frozen(&cluster) };
        let took = cluster.stop(how);
        assert!(took < DOWN, "{how:?}: the server took {took:?}");
        wait_for_no_orphans(&cluster, if listens { Duration::from_secs(1) } else { GONE });
        assert!(backup.is_gone());

        cluster.start();
        cluster.wait_for(
            &format!("select status from nrt.backup_history where job = {number}::bigint + 1"),
            "succeeded",
            SOON,
        );
        let mut expected = before;
        expected.extend([job("manual", "failed", "1"), job("startup", "succeeded", "2")]);
        assert_eq!(later_jobs(&cluster), expected);
        wait_for_health(&cluster, "last_run", "ok");
    }
    verify(&cluster);
}

#[test]
fn a_fast_shutdown_ends_a_backup_and_the_next_start_takes_it_again() {
    stops_in_the_middle("fast", Shutdown::Fast);
}

#[test]
fn an_immediate_shutdown_ends_a_backup_and_the_next_start_takes_it_again() {
    stops_in_the_middle("immediate", Shutdown::Immediate);
}

#[test]
fn a_smart_shutdown_does_not_wait_for_a_backup() {
    let cluster = slow(Cluster::new("smart")).started();
    cluster.allow("nrt_backup job 1: full backup failed: the server or the worker ended");
    // True, for the moment between the end of the backup and that of the server.
    cluster.allow("nrt_backup health: backup is critical: no full backup");
    // The first full backup, which nobody but the worker wants.
    cluster.sql("create extension nrt_backup");
    let backup = Backup::frozen(&cluster);
    let took = cluster.stop(Shutdown::Smart);
    assert!(took < GONE, "the server took {took:?}");
    assert!(backup.is_gone());
    wait_for_no_orphans(&cluster, Duration::from_secs(1));
    cluster.start();
    wait_for_backups(&cluster, 1);

    // Nor for a client that waits for the backup: it is told.
    let told = thread::scope(|scope| {
        let caller = backup_now(scope, &cluster);
        let _backup = Backup::frozen(&cluster);
        let took = cluster.stop(Shutdown::Smart);
        assert!(took < GONE, "the server took {took:?}");
        caller.join().expect("does not panic").expect_err("there is no backup")
    });
    assert_eq!(told.sqlstate, "57014", "{told}");
    // The next backup clears away what the cancelled one has left.
    cluster.start();
    cluster.sql("select nrt_backup_now()");
    verify(&cluster);
}

/// Kills one process of the first full backup, which is tried again by itself because nobody asked
/// for it, and sees that some of these words tell.
fn is_tried_again(name: &str, victim: fn(&Backup) -> i32, words: &[&str]) {
    let cluster = slow(Cluster::new(name)).started();
    cluster.sql("create extension nrt_backup");
    cluster.allow("nrt_backup job 1: full backup failed: ");
    cluster.allow("nrt_backup health: backup is critical: no full backup");
    let local = name == "local";
    let backup = if local { Backup::running(&cluster) } else { Backup::frozen(&cluster) };
    kill(victim(&backup), Signal::KILL);
    wait_until("all of it is gone", GONE, || backup.is_gone());
    cluster.wait_for("select status from nrt.backup_history where job = 1", "failed", SOON);
    let message = cluster.value("select message from nrt.backup_history where job = 1");
    let told = &history(&cluster, "concat_ws(' ', exit_code, message)")[0][0];
    assert!(words.iter().any(|words| told.contains(words)), "{told}");
    assert!(wait_for_health(&cluster, "last_run", "warning").contains(&message));
    // The next try is due after 15 seconds, or at once when somebody looks.
    if !local {
        cluster.sql("select nrt_check()");
    }
    wait_for_backups(&cluster, 1);
    let shown = history(&cluster, "trigger, status, attempt");
    assert_eq!(shown, [["missing_base", "failed", "1"], ["missing_base", "succeeded", "2"]]);
    wait_for_health(&cluster, "last_run", "ok");
    cluster.assert_no_orphans();
    verify(&cluster);
}

#[test]
fn a_killed_pgbackrest_is_tried_again() {
    is_tried_again("main", |backup| backup.main, &["was killed by signal 9 (SIGKILL)"]);
}

#[test]
fn a_killed_helper_of_pgbackrest_is_tried_again() {
    // Depending on the moment, pgBackRest calls it an error of the protocol or of a child.
    is_tried_again("local", |backup| backup.locals[0], &["39 ", "102 "]);
}

#[test]
fn a_killed_leash_is_tried_again_and_takes_all_along() {
    is_tried_again("leash", |backup| backup.leash, &["signal 9"]);
}

#[test]
fn a_killed_worker_restarts_the_server_and_the_backup() {
    let cluster = started(slow(Cluster::new("worker")));
    cluster
        .allow("full backup failed: the server or the worker ended while the backup was running");
    cluster.allow("57P02");
    let postmaster = cluster.postmaster();
    cluster.value("select nrt_backup_start('full')");
    let backup = Backup::frozen(&cluster);
    kill(worker(&cluster), Signal::KILL);
    wait_until("the backup's processes are gone", GONE, || backup.is_gone());
    wait_for_backups(&cluster, 2);
    assert_eq!(cluster.postmaster(), postmaster);
    assert_eq!(
        later_jobs(&cluster),
        [job("manual", "failed", "1"), job("startup", "succeeded", "2")]
    );
    cluster.assert_no_orphans();
    verify(&cluster);
}

#[test]
fn a_killed_postmaster_leaves_nothing_behind_and_the_next_start_takes_the_backup_again() {
    let cluster = started(slow(Cluster::new("postmaster")));
    cluster
        .allow("full backup failed: the server or the worker ended while the backup was running");
    cluster.allow("terminating connection due to unexpected postmaster exit");
    cluster.value("select nrt_backup_start('full')");
    let backup = Backup::frozen(&cluster);
    cluster.crash();
    wait_for_no_orphans(&cluster, GONE);
    assert!(backup.is_gone());

    cluster.start();
    wait_for_backups(&cluster, 2);
    assert_eq!(
        later_jobs(&cluster),
        [job("manual", "failed", "1"), job("startup", "succeeded", "2")]
    );
    verify(&cluster);
}

/// What the descriptors of a process lead to.
fn descriptors(pid: i32) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// A set of signals in /proc/PID/status.
fn signals(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("hexadecimal")
}

#[test]
fn nothing_of_the_server_leaks_into_a_child() {
    // Without a clean environment, the repository would be elsewhere and nothing would succeed.
    let cluster = started(
        slow(Cluster::new("leak"))
            .environment("RCLONE_CONF_BASE64", "do-not-tell")
            .environment("AWS_SECRET_ACCESS_KEY", "do-not-tell")
            .environment("PGBACKREST_REPO1_PATH", "/nonsense"),
    );
    // It is no configuration, and reported as such, without a word of it.
    cluster.allow("RCLONE_CONF_BASE64 is not the base64 form of a text");
    let reported =
        cluster.value("select message || hint from nrt.health where check_name = 'remote'");
    assert!(
        reported.contains("RCLONE_CONF_BASE64") && !reported.contains("do-not-tell"),
        "{reported}"
    );
    assert!(!cluster.log().contains("do-not-tell"));
    let all_of = |file: &str, pid: i32| fs::read(format!("/proc/{pid}/{file}")).expect("runs");
    let tells = |text: &[u8]| String::from_utf8_lossy(text).contains("do-not-tell");
    let worker = worker(&cluster);
    assert!(tells(&all_of("environ", cluster.postmaster())), "nothing leaks that could be stopped");

    // As a service manager protects the postmaster.
    let score = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    let is_protected = fs::write(score(worker), "-500").is_ok();
    cluster.value("select nrt_backup_start('full')");
    let backup = Backup::frozen(&cluster);
    // Streams and anonymous files of the server, of which a child has none but its report.
    let theirs: BTreeSet<PathBuf> = [cluster.postmaster(), worker]
        .into_iter()
        .flat_map(descriptors)
        .filter(|target| target != Path::new("/dev/null"))
        .filter(|target| !target.to_string_lossy().contains("memfd:nrt_backup leash"))
        .collect();
    assert!(theirs.len() > 3, "{theirs:?}");
    let data = cluster.data();
    // For the moment in which it starts a process, the C library blocks all that can be blocked;
    // PostgreSQL leaves more of them open.
    let bit = |signal: Signal| 1 << (signal.as_raw() - 1);
    let all: u64 = !(bit(Signal::KILL) | bit(Signal::STOP));
    for pid in [backup.leash, backup.main].into_iter().chain(backup.locals.iter().copied()) {
        let command = Process::read(pid).expect("it is frozen").command;
        let score = fs::read_to_string(score(pid)).expect("it is frozen");
        assert!(!is_protected || score.trim() == "0", "{command}: {score}");
        let environment = all_of("environ", pid);
        assert!(!tells(&environment) && !tells(command.as_bytes()), "{command}");
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("PGBACKREST_"), "{command}: {environment}");

        let ours = descriptors(pid);
        let leaked: Vec<&PathBuf> = ours.intersection(&theirs).collect();
        assert!(leaked.is_empty(), "{command}: {leaked:?}");
        if !backup.locals.contains(&pid) {
            let files = ours.iter().filter(|target| target.starts_with(&data));
            let foreign: Vec<_> =
                files.filter(|file| !file.starts_with(cluster.state_directory())).collect();
            assert!(foreign.is_empty(), "{command}: {foreign:?}");
        }
        // What Rust's and pgBackRest's own start ignores.
        assert_eq!(signals(pid, "SigIgn") & !bit(Signal::PIPE), 0, "{command}");
        let blocked = signals(pid, "SigBlk");
        assert!(blocked == 0 || blocked == all, "{command}: {blocked:x}");
    }
    backup.thaw();
    wait_for_backups(&cluster, 2);
}

#[test]
fn a_backup_that_somebody_else_runs_is_waited_for() {
    let cluster = started(slow(Cluster::new("lock")));
    thread::scope(|scope| {
        let by_hand =
            scope.spawn(|| cluster.pgbackrest(&["--stanza=main", "--type=full", "backup"]));
        let mut theirs = Vec::new();
        wait_until("a backup by hand copies files", SOON, || {
            theirs = cluster.orphans();
            theirs.retain(|process| process.command.contains("pgbackrest"));
            theirs.iter().any(|process| process.command.contains("backup:local"))
        });
        for process in &theirs {
            kill(process.pid, Signal::STOP);
        }
        let number = cluster.value("select nrt_backup_start('incr')");
        let row = format!("from nrt.backup_history where job = {number}");
        cluster.wait_for(
            &format!("select status, exit_code, message like '%another pgBackRest process%' {row}"),
            "waiting  t",
            SOON,
        );
        assert_eq!(cluster.value("select activity from nrt.status"), "waiting");
        assert_eq!(
            cluster.value("select severity from nrt.health where check_name = 'last_run'"),
            "ok"
        );
        for process in &theirs {
            kill(process.pid, Signal::CONT);
        }
        assert!(by_hand.join().expect("does not panic").status.success());
        cluster.wait_for(&format!("select status {row}"), "succeeded", SOON);
    });
    wait_for_backups(&cluster, 3);
    cluster.wait_for("select count(*) from nrt.backup_history", "3", SOON);
    let mut shown = history(&cluster, "trigger, type, status");
    shown.sort();
    assert_eq!(
        shown,
        [
            ["external", "full", "succeeded"],
            ["manual", "incr", "succeeded"],
            ["missing_base", "full", "succeeded"],
        ]
    );
}

#[test]
fn a_full_repository_fails_the_backup_and_room_mends_it() {
    if !is_root() {
        eprintln!("not tested: only root can mount a file system");
        return;
    }
    let cluster = slow(Cluster::new("disk")).repository_on_tmpfs(64);
    // A backup waits for a minute otherwise until its WAL is archived.
    let config = own_configuration(&cluster, &cluster.repository(), "archive-timeout=4");
    cluster.set("nrt_backup.wal_monitor_interval", "1");
    cluster.set("nrt_backup.wal_growth_threshold", "1MB");
    cluster.set("checkpoint_completion_target", "0");
    let cluster = started(cluster);
    cluster.allow("nrt_backup job ");
    cluster.allow("nrt_backup health: ");
    cluster.allow("archiving write-ahead log file");
    let kept = cluster.sql("select label from nrt.backups");

    let ballast = cluster.repository().join("ballast");
    let mut file = File::create(&ballast).expect("the repository can be written to");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    cluster.set("nrt_backup.wal_monitor", "on");
    cluster.reload();
    cluster.sql(
        "create table t as select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i",
    );
    let failed = "from nrt.backup_history where status = 'failed' and trigger = 'wal_growth'";
    cluster.wait_for(&format!("select count(*) >= 1 {failed}"), "t", 2 * SOON);
    let row =
        cluster.sql(&format!("select exit_code, message, hint {failed} order by job limit 1"));
    let [code, message, hint] = &row[0][..] else { panic!("{row:?}") };
    assert!(!code.is_empty() && !message.is_empty(), "{row:?}");
    assert!(hint.contains("Make room") || hint.contains("WAL does not reach"), "{row:?}");
    assert!(wait_for_health(&cluster, "last_run", "warning").contains(message.as_str()));
    wait_for_health(&cluster, "repository_disk", "critical");
    wait_for_health(&cluster, "archiving", "critical");
    assert_eq!(cluster.sql("select label from nrt.backups"), kept);
    let refused = cluster.try_sql("select nrt_backup_now('full')").expect_err("there is no room");
    assert_eq!(refused.sqlstate, "38000");
    assert!(refused.message.contains("failed: ") && !refused.hint.is_empty(), "{refused}");

    fs::remove_file(&ballast).expect("room is made");
    cluster.sql("select nrt_check()");
    cluster.wait_for(
        "select count(*) from nrt.backup_history
          where status = 'succeeded' and trigger = 'wal_growth' and attempt > 1",
        "1",
        2 * SOON,
    );
    for check in ["last_run", "repository_disk", "archiving"] {
        wait_for_health(&cluster, check, "ok");
    }
    verify_with(&cluster, &config);
}
