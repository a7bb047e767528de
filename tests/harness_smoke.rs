//! Shows that the harness itself sees what it must see: a harness that misses things proves
//! nothing about the extension. None of this needs the extension.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use nrt_tests::{Cluster, Severity, Shutdown, is_root, kill, processes_mentioning, wait_until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(10);

fn plain(name: &str) -> Cluster {
    Cluster::new(name).preload(false)
}

/// What a panic says; `None` if there is none.
fn panic_of(action: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(action)).err()?;
    Some(payload.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn a_server_answers_and_takes_settings() {
    let cluster = plain("answers").setting("work_mem", "5MB").started();
    assert_eq!(cluster.sql("select 1, null, 'a''b'"), [["1", "", "a'b"]]);
    assert_eq!(cluster.value("show work_mem"), "5MB");
    assert!(cluster.psql("select 42 as answer").contains("answer"));

    cluster.set("work_mem", "6MB");
    cluster.reload();
    assert_eq!(cluster.value("show work_mem"), "6MB");
    cluster.unset("work_mem");
    cluster.set("archive_timeout", "7s");
    cluster.restart();
    assert_eq!(cluster.value("show work_mem"), "4MB");
    assert_eq!(cluster.value("show archive_timeout"), "7s");
    assert!(!cluster.logged("database system was shut down").is_empty());
}

#[test]
fn an_error_that_a_test_asked_for_is_expected() {
    let cluster = plain("error").started();
    let error = cluster
        .try_sql("do $$ begin raise 'no' using errcode = 'NRT01', detail = 'd', hint = 'h'; end $$")
        .expect_err("raises");
    let told = [error.sqlstate, error.message, error.detail, error.hint];
    assert_eq!(told, ["NRT01", "no", "d", "h"]);
    assert_eq!(cluster.complaints(), []);

    let refused = cluster.try_sql_as("nobody", "postgres", "select 1").expect_err("no such role");
    assert_eq!(refused.sqlstate, "28000");
    assert_eq!(cluster.complaints(), []);
}

#[test]
fn a_warning_that_nobody_expected_fails_the_test() {
    let warn = "do $$ begin raise warning 'look here'; end $$";

    let cluster = plain("warns").started();
    cluster.sql(warn);
    let complaints = cluster.complaints();
    assert_eq!(complaints.len(), 1);
    assert_eq!(complaints[0].severity, Severity::Warning);
    let told = panic_of(move || drop(cluster)).expect("the test fails");
    assert!(told.contains("look here"), "{told}");

    let cluster = plain("allows").started();
    cluster.allow("look here");
    cluster.sql(warn);
    assert_eq!(panic_of(move || drop(cluster)), None);
}

#[test]
fn a_server_that_cannot_start_tells_why() {
    let cluster = plain("refuses").setting("work_mem", "a lot");
    let log = cluster.try_start().expect_err("that is no size");
    assert!(log.contains("invalid value for parameter \"work_mem\""), "{log}");
    cluster.allow("configuration file");
}

#[test]
fn committed_rows_survive_a_crash_and_every_stop() {
    let cluster = plain("crash").setting("fsync", "on").started();
    cluster.sql("create table t (i int)");
    let ways = [None, Some(Shutdown::Immediate), Some(Shutdown::Fast), Some(Shutdown::Smart)];
    for (rows, way) in ways.into_iter().enumerate() {
        assert_eq!(cluster.value("select count(*) from t"), rows.to_string());
        cluster.sql("insert into t values (1)");
        match way {
            Some(way) => assert!(cluster.stop(way) < SOON),
            None => cluster.crash(),
        }
        cluster.assert_no_orphans();
        assert_eq!(cluster.processes(), []);
        cluster.start();
    }
}

#[test]
fn a_crash_of_one_process_restarts_the_server_and_is_seen() {
    let cluster = plain("backend").started();
    let postmaster = cluster.postmaster();
    let mut session = cluster.connect("postgres", "postgres").expect("connects");
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).expect("answers").get(0);
    kill(pid, Signal::KILL);
    wait_until("the session is gone", SOON, || session.simple_query("").is_err());
    cluster.wait_for("select not pg_is_in_recovery()", "t", SOON);
    assert_eq!(cluster.postmaster(), postmaster);
    cluster.allow("57P02");
    assert_eq!(cluster.logged("was terminated by signal 9").len(), 1);
}

#[test]
fn a_process_that_left_the_server_is_an_orphan() {
    let cluster = plain("orphan").started();
    cluster.assert_no_orphans();
    assert!(cluster.processes().len() > 3, "the server's own processes are found");

    let mut stray = cluster.installation().command("sleep");
    let mut stray = stray.arg("600").env("REPO", cluster.repository()).spawn().expect("runs");
    wait_until("it is found", SOON, || cluster.orphans().len() == 1);
    let told = panic_of(|| cluster.assert_no_orphans()).expect("fails");
    assert!(told.contains("sleep 600"), "{told}");

    // What is left over goes with the cluster, process and file.
    let directory = cluster.directory().to_path_buf();
    drop(cluster);
    assert!(stray.wait().expect("is our child").code().is_none(), "killed by a signal");
    assert!(!directory.exists());
    assert_eq!(processes_mentioning(&directory), []);
}

#[test]
fn a_program_can_be_faked_and_mended() {
    let cluster = plain("fakes").started();
    cluster.sql("create table said (line text)");
    let uname = || cluster.value("delete from said; copy said from program 'uname'; table said");
    let real = uname();
    cluster.fake("uname", "echo TempleOS");
    assert_eq!(uname(), "TempleOS");
    fs::remove_file(cluster.fakes().join("uname")).expect("it is there");
    assert_eq!(uname(), real);
}

#[test]
fn a_standby_follows_its_primary() {
    let primary = plain("primary").started();
    let standby = Cluster::standby_of(&primary, "standby").preload(false).started();
    primary.sql("create table t as select 1 as i");
    standby.wait_for("select i from t", "1", SOON);
    assert_eq!(standby.value("select pg_is_in_recovery()"), "t");
    assert_eq!(primary.value("select pg_is_in_recovery()"), "f");
    standby.stop(Shutdown::Fast);
}

#[test]
fn clusters_differ_in_identity_only_where_asked() {
    let identity = |cluster: Cluster| {
        cluster.preload(false).started().value("select system_identifier from pg_control_system()")
    };
    let copied = identity(Cluster::new("copied"));
    assert_eq!(copied, identity(Cluster::new("copied")));
    assert_ne!(copied, identity(Cluster::with_identity("own")));
}

#[test]
fn load_runs_until_it_is_dropped() {
    let cluster = plain("load").started();
    cluster.pgbench(&["--initialize", "--quiet", "--scale=1"]);
    let rows = || cluster.value("select count(*) from pgbench_history");
    {
        let _load = cluster.load(&["--client=2", "--time=600"]);
        wait_until("transactions are made", SOON, || rows() != "0");
    }
    cluster.wait_for(
        "select count(*) from pg_stat_activity where application_name = 'pgbench'",
        "0",
        SOON,
    );
    let before = rows();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(rows(), before);
}

#[test]
fn the_repository_can_be_made_too_small() {
    if !is_root() {
        eprintln!("not tested: only root can mount a file system");
        return;
    }
    let cluster = plain("full").repository_on_tmpfs(1);
    let file = cluster.repository().join("ballast");
    let fill = || {
        let mut file = OpenOptions::new().create(true).append(true).open(&file)?;
        (0..32).try_for_each(|_| file.write_all(&[0; 65536]))
    };
    assert_eq!(fill().map_err(|error| error.kind()), Err(ErrorKind::StorageFull));
    fs::remove_file(&file).expect("room is made");
    let repository = cluster.repository();
    drop(cluster);
    assert!(!repository.exists());
    let mounts = fs::read_to_string("/proc/mounts").expect("Linux");
    assert!(!mounts.contains(&*repository.to_string_lossy()));
}
