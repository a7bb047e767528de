//! Breaks what a protected cluster depends on, piece by piece, and mends it again: `nrt.health` says
//! what is wrong and what to do, a backup that somebody asks for fails at once with the same words,
//! the server and the worker go on, and when it is mended everything is well again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::offsite::{shipping, wait_for_shipped};
use crate::protected::{
    SOON, archive_segment, history, protected, quiet, started, wait_for_backups, wait_for_health,
};
use crate::restoring::{Place, ended, of};
use nrt_tests::{Cluster, Kind, Remote, Shutdown, SqlError, is_root, kill, wait_until};
use rustix::fs::statvfs;
use rustix::process::Signal;

/// What an operator may have to wait for an answer, on a machine that is busy with other tests.
const SECONDS: Duration = Duration::from_secs(10);

/// What one check says.
#[derive(Debug, PartialEq, Eq)]
struct Check {
    severity: String,
    message: String,
    hint: String,
}

/// Looks at everything now; the answer must come within seconds, whatever is wrong.
fn checks(cluster: &Cluster) -> Vec<(String, Check)> {
    let begin = Instant::now();
    let rows = cluster.sql("select * from nrt_check()");
    assert!(begin.elapsed() < SECONDS, "nrt_check() took {:?}", begin.elapsed());
    assert!(rows.len() >= 12, "every check is shown, also when it is well: {rows:?}");
    let check = |row: Vec<String>| {
        let [name, severity, message, hint] = row.try_into().expect("four columns");
        (name, Check { severity, message, hint })
    };
    rows.into_iter().map(check).collect()
}

fn check(cluster: &Cluster, name: &str) -> Check {
    let mut checks = checks(cluster);
    let place = checks.iter().position(|(known, _)| known == name);
    checks.swap_remove(place.unwrap_or_else(|| panic!("no check \"{name}\""))).1
}

/// Waits until a fresh look finds this, with what to do about it.
fn found(cluster: &Cluster, name: &str, severity: &str, words: &str) -> Check {
    let deadline = Instant::now() + SOON;
    loop {
        let check = check(cluster, name);
        if check.severity == severity && check.message.contains(words) {
            assert_eq!(check.hint.is_empty(), severity == "ok", "{name}: {check:?}");
            // What was seen last is what everybody sees.
            assert_eq!(wait_for_health(cluster, name, severity), check.message);
            return check;
        }
        assert!(Instant::now() < deadline, "{name} is no {severity} \"{words}\": {check:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until nothing is wrong.
fn all_well(cluster: &Cluster) {
    let deadline = Instant::now() + SOON;
    loop {
        let mut wrong = checks(cluster);
        wrong.retain(|(_, check)| check.severity != "ok");
        if wrong.is_empty() {
            assert_eq!(cluster.value("select health from nrt.status"), "ok");
            return;
        }
        assert!(Instant::now() < deadline, "still not well: {wrong:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks for a backup that cannot be: refused at once, with the reason and what to do.
fn refused(cluster: &Cluster, words: &str) -> SqlError {
    let begin = Instant::now();
    let error = cluster.try_sql("select nrt_backup_now('full')").expect_err("cannot be taken");
    assert!(begin.elapsed() < SECONDS, "refused after {:?}: {error}", begin.elapsed());
    assert!(error.message.contains(words), "not \"{words}\": {error}");
    assert!(!error.hint.is_empty(), "no hint: {error}");
    assert_eq!(error.sqlstate, "38000");
    error
}

/// The processes that nothing of this may stop.
fn alive(cluster: &Cluster) -> (i32, String) {
    (cluster.postmaster(), cluster.value("select worker_pid from nrt.status"))
}

/// Lets the server complain about what the test breaks; what it says is looked at in `nrt.health`.
fn to_be_broken(cluster: Cluster) -> Cluster {
    cluster.allow("nrt_backup health: ");
    cluster.allow("nrt_backup job ");
    cluster.allow("archiver ");
    cluster
}

fn set(cluster: &Cluster, name: &str, value: &str) {
    cluster.set(name, value);
    cluster.reload();
}

fn unset(cluster: &Cluster, name: &str) {
    cluster.unset(name);
    cluster.reload();
}

/// Makes a file or directory read-only, or undoes that.
fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is there and ours");
}

#[test]
fn pgbackrest_missing_or_too_old_or_something_else() {
    let cluster = to_be_broken(protected("tool"));
    for (name, script) in [
        ("old", "echo 'pgBackRest 2.30'"),
        ("other", "echo 'I do something else'"),
        ("mute", "exit 0"),
        ("broken", "echo 'a library is missing' >&2; exit 127"),
    ] {
        cluster.fake(name, script);
    }
    let fake = |name: &str| cluster.fakes().join(name).display().to_string();
    let before = alive(&cluster);
    all_well(&cluster);
    for (program, words) in [
        ("no-such-program".to_string(), "no program \"no-such-program\" that can be run"),
        ("/no/such/program".to_string(), "no program \"/no/such/program\" that can be run"),
        // A directory, and a file that is no program.
        ("/usr".to_string(), "no program \"/usr\""),
        ("/etc/passwd".to_string(), "no program \"/etc/passwd\""),
        (fake("old"), "pgBackRest 2.30 is too old"),
        (fake("other"), "does not answer as pgBackRest does"),
        (fake("mute"), "does not answer as pgBackRest does"),
        (fake("broken"), "a library is missing"),
    ] {
        set(&cluster, "nrt_backup.pgbackrest", &program);
        found(&cluster, "pgbackrest", "critical", words);
        // Points to the check above.
        assert_eq!(check(&cluster, "stanza").severity, "critical");
        let backup = check(&cluster, "backup");
        assert!(!backup.message.contains("no full backup"), "there is one: {backup:?}");
        assert_eq!(cluster.value("select activity from nrt.status"), "blocked");
        let job = refused(&cluster, words);
        assert!(job.message.starts_with("backup job "), "{job}");
        found(&cluster, "last_run", "warning", words);
    }
    unset(&cluster, "nrt_backup.pgbackrest");
    found(&cluster, "pgbackrest", "ok", "version 2.");
    // The failures before are history with the next backup that succeeds.
    cluster.sql("select nrt_backup_now()");
    all_well(&cluster);
    assert_eq!(alive(&cluster), before);
}

/// Two clusters on one machine, with nothing set but the remote: each is protected and comes back.
#[test]
fn a_second_cluster_has_a_stanza_of_its_own_by_default() {
    let remote = Remote::new("two", Kind::Local);
    let first = shipping(Cluster::with_identity("two-first"), &remote);
    first.sql("create table t as select 'first' as whose");
    let repository = first.repository().display().to_string();
    let second =
        quiet(Cluster::with_identity("two-second")).setting("nrt_backup.repository", &repository);
    let second = crate::offsite::started(second, &remote);
    let identifier = second.value("select system_identifier from pg_control_system()");
    let own = format!("main-{identifier}");
    let effect = "select effect from nrt.settings where name = 'nrt_backup.stanza'";
    assert_eq!(first.value(effect), "\"main\"");
    assert_eq!(second.value(effect), format!("\"{own}\""));
    second.sql("create table t as select 'second' as whose");
    for cluster in [&first, &second] {
        crate::offsite::wait_for_offsite(cluster, 1);
        wait_for_shipped(cluster);
        crate::offsite::all_well(cluster);
    }
    // It stays, also when the first one's is gone, and a restart finds it again.
    second.stop(Shutdown::Fast);
    second.start();
    second.sql("select nrt_check()");
    assert_eq!(second.value(effect), format!("\"{own}\""));
    assert_eq!(second.value("select count(*) from nrt.backups"), "1");
    // Its own plan does not ask which stanza is meant.
    let (code, text) = ended(of(&second, "plan", &[]).output().expect("it is installed"));
    assert_eq!(code, 0, "{text}");
    wait_for_shipped(&second);
    for (cluster, name, whose) in [(&first, "main", "first"), (&second, own.as_str(), "second")] {
        cluster.vanish();
        let place = Place::new(&format!("two-{whose}-back"));
        let config = format!("--rclone-config={}", remote.config().display());
        let there = format!("--remote={}", remote.place(name));
        let restored = place.restore(&[&config, &there]);
        assert_eq!(restored.value("select whose from t"), whose);
    }
}

#[test]
fn a_stanza_of_another_cluster_is_neither_used_nor_changed() {
    let first = protected("first");
    let second = to_be_broken(quiet(Cluster::with_identity("second")))
        .setting("nrt_backup.repository", &first.repository().display().to_string())
        .setting("nrt_backup.stanza", "main")
        .started();
    second.sql("create extension nrt_backup");
    let before = alive(&second);
    let identifier = "select system_identifier from pg_control_system()";
    let info = || fs::read(first.repository().join("archive/main/archive.info")).expect("is there");
    let untouched = info();

    let check =
        found(&second, "stanza", "critical", "belongs to the cluster with system identifier");
    for cluster in [&first, &second] {
        assert!(check.message.contains(&cluster.value(identifier)), "{check:?}");
    }
    assert!(check.hint.contains("nrt_backup.stanza"), "{check:?}");
    refused(&second, "belongs to the cluster with system identifier");
    second.sql("select pg_logical_emit_message(false, 'nrt', 'x'), pg_switch_wal()");
    found(&second, "archiving", "critical", "could not be archived");
    assert_eq!(second.value("select count(*) from nrt.backups"), "0");
    all_well(&first);
    assert_eq!(info(), untouched);

    set(&second, "nrt_backup.stanza", "second");
    wait_for_backups(&second, 1);
    archive_segment(&second);
    all_well(&second);
    assert_eq!(alive(&second), before);
    assert_eq!(first.value("select count(*) from nrt.backups"), "1");
}

#[test]
fn a_damaged_stanza() {
    let cluster = to_be_broken(protected("damaged"));
    let before = alive(&cluster);
    let files = ["backup.info", "backup.info.copy"]
        .map(|name| cluster.repository().join("backup/main").join(name));
    let contents = files.clone().map(|file| fs::read(file).expect("is there"));
    for file in &files {
        fs::write(file, "rubbish").expect("is ours");
    }
    let check = found(&cluster, "stanza", "critical", "cannot read the stanza \"main\"");
    assert!(check.message.contains("backup.info"), "pgBackRest's own words: {check:?}");
    refused(&cluster, "cannot read the stanza");
    for (file, content) in files.iter().zip(contents) {
        fs::write(file, content).expect("is ours");
    }
    cluster.sql("select nrt_backup_now()");
    all_well(&cluster);
    assert_eq!(alive(&cluster), before);
}

#[test]
fn archiving_that_fails_is_told_in_pgbackrests_words() {
    let cluster = to_be_broken(protected("stuck"));
    let before = alive(&cluster);
    let archive = fs::read_dir(cluster.repository().join("archive/main"))
        .expect("is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.is_dir())
        .expect("the archive of this version");
    let timeline = archive.join("0000000100000000");
    for directory in [&archive, &timeline] {
        mode(directory, 0o500);
    }
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x')");
    let segment = cluster.value("select pg_walfile_name(pg_switch_wal())");
    let check =
        found(&cluster, "archiving", "critical", &format!("segment {segment} could not be"));
    for word in [&*timeline.to_string_lossy(), "Permission denied"] {
        assert!(check.message.contains(word), "\"{word}\" is not in {check:?}");
    }
    assert!(check.hint.contains("operating system user"), "{check:?}");
    // Nobody needs to ask: the worker looks by itself.
    assert_eq!(cluster.value("select health from nrt.status"), "critical");
    assert_eq!(cluster.value("select summary from nrt.status"), check.message);

    for directory in [&archive, &timeline] {
        mode(directory, 0o750);
    }
    // The archiver sleeps for a minute after three failures, unless there is another segment.
    archive_segment(&cluster);
    found(&cluster, "archiving", "ok", "");
    all_well(&cluster);
    assert_eq!(alive(&cluster), before);
}

#[test]
fn a_gap_in_the_archive_lasts_until_the_next_backup() {
    let cluster = to_be_broken(protected("gap"));
    let lost = archive_segment(&cluster);
    archive_segment(&cluster);
    all_well(&cluster);
    let mut removed = 0;
    for version in fs::read_dir(cluster.repository().join("archive/main")).expect("is there") {
        let directory = version.expect("is there").path().join(&lost[..16]);
        for file in fs::read_dir(directory).into_iter().flatten() {
            let file = file.expect("is there");
            if file.file_name().to_string_lossy().starts_with(&lost) {
                fs::remove_file(file.path()).expect("is ours");
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 1);
    let check = found(&cluster, "wal_gap", "critical", "is missing from the archive");
    assert!(check.hint.contains("nrt_backup_now()"), "{check:?}");
    cluster.sql("select nrt_backup_now()");
    assert!(found(&cluster, "wal_gap", "ok", "").message.contains("nrt.recovery_window"));
    all_well(&cluster);
}

#[test]
fn archiving_that_is_off_or_foreign_is_left_alone() {
    let cluster =
        to_be_broken(quiet(Cluster::new("foreign"))).setting("archive_mode", "off").started();
    cluster.sql("create extension nrt_backup");
    let none = "no full backup: the cluster cannot be restored";
    found(&cluster, "archiving", "critical", "archive_mode is off");
    // The first try of the first backup.
    cluster.wait_for("select status from nrt.backup_history where job = 1", "failed", SOON);
    found(&cluster, "backup", "critical", none);
    refused(&cluster, "archive_mode");

    // PostgreSQL lets the level be minimal only without archiving.
    cluster.set("wal_level", "minimal");
    cluster.set("max_wal_senders", "0");
    cluster.unset("archive_mode");
    cluster.restart();
    found(&cluster, "archiving", "critical", "wal_level is minimal");
    found(&cluster, "backup", "critical", none);
    refused(&cluster, "");
    cluster.unset("wal_level");
    cluster.unset("max_wal_senders");

    let elsewhere = cluster.directory().join("archived");
    cluster.installation().private_directory(&elsewhere).expect("a new directory");
    let command = format!("cp %p {}/%f", elsewhere.display());
    cluster.set("archive_command", &command);
    cluster.restart();
    let check = found(&cluster, "archiving", "critical", &command);
    assert!(check.hint.contains("Remove archive_command"), "{check:?}");
    assert_eq!(cluster.value("show archive_command"), command);
    refused(&cluster, "archive_command");
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x'), pg_switch_wal()");
    wait_until("it works as the operator wants", SOON, || {
        fs::read_dir(&elsewhere).is_ok_and(|mut files| files.next().is_some())
    });

    // What the preload set is gone with a reload, and says how it comes back.
    unset(&cluster, "archive_command");
    let check = found(&cluster, "archiving", "critical", "archive_command is empty");
    assert!(check.hint.contains("restart"), "{check:?}");
    refused(&cluster, "archive_command");
    let worker = alive(&cluster);
    cluster.restart();
    wait_for_backups(&cluster, 1);
    all_well(&cluster);
    assert_ne!(alive(&cluster), worker);
}

#[test]
fn an_own_command_that_runs_pgbackrest_is_as_good() {
    let cluster = quiet(Cluster::new("own"));
    let config = cluster.state_directory().join("pgbackrest.conf");
    let command = format!("pgbackrest --config={} --stanza=main archive-push %p", config.display());
    let cluster = cluster.setting("archive_command", &command);
    // Until the worker has written the configuration.
    cluster.allow("archiver ");
    cluster.allow("nrt_backup health: archiving ");
    cluster.allow("nrt_backup job ");
    let cluster = started(cluster);
    assert_eq!(cluster.value("show archive_command"), command);
    archive_segment(&cluster);
    found(&cluster, "archiving", "ok", "pgBackRest archives");
    all_well(&cluster);
}

#[test]
fn a_last_backup_that_is_too_old() {
    let cluster = to_be_broken(protected("age"));
    all_well(&cluster);
    set(&cluster, "nrt_backup.max_backup_age", "1s");
    let check = found(&cluster, "backup", "critical", "longer ago than nrt_backup.max_backup_age");
    assert!(check.message.contains(&cluster.value("select last_backup from nrt.status")));
    // 0 is "never too old".
    set(&cluster, "nrt_backup.max_backup_age", "0");
    all_well(&cluster);
    set(&cluster, "nrt_backup.max_backup_age", "1s");
    found(&cluster, "backup", "critical", "longer ago");
    unset(&cluster, "nrt_backup.max_backup_age");
    all_well(&cluster);
}

#[test]
fn damaged_pages_in_the_last_backup() {
    let cluster = to_be_broken(protected("pages"));
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    let file = cluster.data().join(cluster.value("select pg_relation_filepath('t')"));
    cluster.stop(Shutdown::Fast);
    let table = fs::OpenOptions::new().write(true).open(file).expect("a file of the server");
    table.write_all_at(b"rubbish", 8192 + 4000).expect("is ours");
    cluster.start();
    cluster.sql("select nrt_backup_now('full')");
    let check = found(&cluster, "backup", "critical", "damaged pages");
    assert!(check.hint.contains("pg_amcheck"), "{check:?}");
    assert_eq!(cluster.value("select count(*) from nrt.backups where damaged"), "1");
    cluster.sql("drop table t");
    cluster.sql("checkpoint");
    cluster.sql("select nrt_backup_now('full')");
    all_well(&cluster);
}

/// What must be said of a disk of which so many per cent are free.
fn judged(free: u64, wanted: u64) -> &'static str {
    match free {
        _ if free >= wanted => "ok",
        _ if free * 3 >= wanted => "warning",
        _ => "critical",
    }
}

#[test]
fn disks_that_are_nearly_full() {
    // The same disk for both, as it happens to be.
    let cluster = to_be_broken(protected("disks"));
    set(&cluster, "nrt_backup.min_disk_free", "90");
    for (name, what) in [("repository_disk", "below the repository"), ("wal_disk", "below pg_wal")]
    {
        let check = check(&cluster, name);
        let (free, rest) = check.message.split_once(" % of ").expect("in per cent");
        assert!(rest.ends_with(what), "{check:?}");
        assert_eq!(check.severity, judged(free.parse().expect("a number"), 90), "{check:?}");
    }
    set(&cluster, "nrt_backup.min_disk_free", "0");
    all_well(&cluster);

    if !is_root() {
        eprintln!("not tested: only root can mount a file system");
        return;
    }
    let cluster = to_be_broken(started(quiet(Cluster::new("small").repository_on_tmpfs(100))));
    // The disk of the machine may be as full as it likes.
    let wal_disk = check(&cluster, "wal_disk").severity;
    let ballast = cluster.repository().join("ballast");
    for (free, severity) in [(7, "warning"), (2, "critical")] {
        let disk = statvfs(cluster.repository()).expect("is mounted");
        let before = fs::metadata(&ballast).map_or(0, |it| it.len());
        let size = before + disk.f_bavail * disk.f_frsize - (free << 20);
        fs::write(&ballast, vec![0; usize::try_from(size).expect("small")]).expect("it fits");
        // The percentage is rounded down, and a page more or less is free.
        let below = judged(free - 1, 10);
        assert_eq!((below, judged(free, 10)), (severity, severity));
        found(&cluster, "repository_disk", severity, " % of 100 MB free below the repository");
    }
    // Nearly full is not full.
    cluster.sql("select nrt_backup_now()");
    fs::remove_file(&ballast).expect("is ours");
    found(&cluster, "repository_disk", "ok", " % of 100 MB");
    assert_eq!(check(&cluster, "wal_disk").severity, wal_disk);
}

#[test]
fn the_database_that_pgbackrest_connects_to() {
    let cluster = to_be_broken(protected("database"));
    let before = alive(&cluster);
    cluster.allow("database \"nosuch\" does not exist");
    cluster.allow("database \"reports\" does not exist");
    set(&cluster, "nrt_backup.database", "nosuch");
    let check = found(&cluster, "database", "critical", "\"nosuch\" does not exist");
    assert!(check.hint.contains("nrt_backup.database"), "{check:?}");
    let error = refused(&cluster, "database \"nosuch\" does not exist");
    assert!(error.hint.contains("database"), "{error}");
    found(&cluster, "last_run", "warning", "\"nosuch\"");
    cluster.sql("create database nosuch");
    cluster.sql("select nrt_backup_now()");
    all_well(&cluster);

    // Nobody is connected to it when no backup runs, so it can be dropped under the worker's eyes.
    cluster.sql("create database reports");
    set(&cluster, "nrt_backup.database", "reports");
    found(&cluster, "database", "ok", "\"reports\"");
    cluster.sql("drop database reports");
    found(&cluster, "database", "critical", "\"reports\" does not exist");
    unset(&cluster, "nrt_backup.database");
    all_well(&cluster);
    assert_eq!(alive(&cluster), before);
}

#[test]
fn a_worker_that_is_gone_or_came_back() {
    let cluster = to_be_broken(protected("worker"));
    let before = alive(&cluster);
    cluster.sql("select pg_terminate_backend(worker_pid) from nrt.status");
    wait_for_health(&cluster, "worker", "critical");
    assert_eq!(cluster.value("select activity from nrt.status"), "stopped");
    assert_eq!(cluster.value("select health from nrt.status"), "critical");
    assert!(cluster.value("select hint from nrt.health").contains("started again by itself"));
    // Who asks meanwhile is served when it is back; an end that was asked for is no cause to worry.
    cluster.sql("select nrt_backup_now()");
    all_well(&cluster);
    assert_eq!(cluster.postmaster(), before.0);

    // A crash: PostgreSQL restarts all its processes, as it must.
    cluster.allow("57P02");
    let pid: i32 = alive(&cluster).1.parse().expect("a process number");
    kill(pid, Signal::KILL);
    wait_until("the worker is another one", SOON, || {
        cluster
            .try_sql(&format!("select 1 from nrt.status where worker_pid not in (0, {pid})"))
            .is_ok_and(|it| it.len() == 1)
    });
    found(&cluster, "worker", "warning", "without a clean shutdown");
    cluster.sql("select nrt_backup_now()");
    all_well(&cluster);
    // A clean restart says nothing.
    cluster.restart();
    all_well(&cluster);
    assert_ne!(cluster.postmaster(), before.0);
}

#[test]
fn a_worker_that_cannot_begin() {
    let cluster = to_be_broken(protected("begin"));
    let before = alive(&cluster);
    cluster.allow("could not create its state directory");
    cluster.stop(Shutdown::Fast);
    // As a container's logs are, whose data directory is used elsewhere.
    let (log, aside) = (cluster.state_directory().join("log"), cluster.directory().join("aside"));
    fs::rename(&log, &aside).expect("is there");
    std::os::unix::fs::symlink("/no/such/logs", &log).expect("is ours");
    cluster.start();
    // Not what was well before.
    wait_for_health(&cluster, "worker", "critical");
    assert_eq!(cluster.value("select activity from nrt.status"), "stopped");
    assert_eq!(cluster.value("select health from nrt.status"), "critical");
    fs::remove_file(&log).expect("is ours");
    fs::rename(&aside, &log).expect("is there");
    wait_for_health(&cluster, "worker", "ok");
    all_well(&cluster);
    assert_ne!(alive(&cluster), before);
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let cluster = to_be_broken(protected("state"));
    let before = alive(&cluster);
    let full = "state_directory";
    // A directory where a file should be cannot be written by root either.
    let blocked = |name: &str| {
        let (file, aside) = (cluster.state_directory().join(name), cluster.directory().join(name));
        fs::rename(&file, &aside).expect("is there");
        fs::create_dir(&file).expect("is ours");
        (file, aside)
    };
    let unblock = |(file, aside): (std::path::PathBuf, std::path::PathBuf)| {
        fs::remove_dir(&file).expect("is empty");
        fs::rename(&aside, &file).expect("is there");
    };

    let history_file = blocked("history.jsonl");
    // The backup is taken; only what is to be shown of it cannot be found.
    let error = cluster.try_sql("select nrt_backup_now()").expect_err("no row to read");
    assert!(error.message.contains("the history does not have it"), "{error}");
    let check = found(&cluster, full, "warning", "history.jsonl");
    assert!(check.hint.contains("disk"), "{check:?}");
    assert_eq!(cluster.value("select count(*) from nrt.backups"), "2");
    unblock(history_file);
    all_well(&cluster);
    assert_eq!(
        history(&cluster, "job, type, status"),
        [["1", "full", "succeeded"], ["2", "incr", "succeeded"]]
    );

    let kept = blocked("state.json");
    cluster.sql("select nrt_backup_now()");
    found(&cluster, full, "warning", "state.json");
    unblock(kept);
    all_well(&cluster);

    // The checks themselves: what is shown is old, and says so.
    mode(&cluster.state_directory(), 0o500);
    set(&cluster, "nrt_backup.max_backup_age", "1s");
    found(&cluster, full, "warning", "out of date");
    assert_eq!(cluster.value("select health from nrt.status"), "warning");
    mode(&cluster.state_directory(), 0o700);
    found(&cluster, "backup", "critical", "longer ago");
    unset(&cluster, "nrt_backup.max_backup_age");
    all_well(&cluster);

    // What the look finds.
    let inventory = blocked("inventory.json");
    found(&cluster, "stanza", "warning", "could not look at the repository");
    unblock(inventory);
    all_well(&cluster);
    assert_eq!(alive(&cluster), before);
}

#[test]
fn a_time_zone_without_a_name() {
    let cluster = to_be_broken(protected("zone"));
    set(&cluster, "timezone", "<+03>-03");
    let check = found(&cluster, "time_zone", "warning", "\"<+03>-03\"");
    assert!(check.hint.contains("nrt_backup.timezone"), "{check:?}");
    let zones = "select distinct time_zone from nrt.schedule";
    cluster.wait_for(zones, "UTC", SOON);
    set(&cluster, "nrt_backup.timezone", "europe/berlin");
    found(&cluster, "time_zone", "ok", "Europe/Berlin");
    cluster.wait_for(zones, "Europe/Berlin", SOON);
    unset(&cluster, "nrt_backup.timezone");
    found(&cluster, "time_zone", "warning", "\"<+03>-03\"");
    set(&cluster, "timezone", "Asia/Shanghai");
    cluster.wait_for(zones, "Asia/Shanghai", SOON);
    all_well(&cluster);
    cluster.sql("select nrt_backup_now()");
}
