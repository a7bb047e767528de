//! Shows that the everyday commands do on a real server what they say, and say what they did.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::offsite::{NAME, nrt_backup, shipping, wait_for_shipped, words};
use crate::protected::{SOON, archive_segment, protected, quiet, wait_for_backups};
use crate::restoring::{Place, from, texts};
use nrt_tests::{Cluster, Kind, Remote, Shutdown, is_root, kill, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// `nrt-backup` for a cluster: the words come first, as of a subcommand.
fn command(cluster: &Cluster, arguments: &[&str]) -> Command {
    let installation = cluster.installation();
    let mut command = installation.command(installation.program("nrt-backup"));
    command.args(arguments).arg("-D").arg(cluster.data());
    command
}

/// The exit code, the standard output and the standard error.
fn run(cluster: &Cluster, arguments: &[&str]) -> (i32, String, String) {
    ended(&mut command(cluster, arguments))
}

fn ended(command: &mut Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().expect("it is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("nobody kills it");
    (code, text(&output.stdout), text(&output.stderr))
}

/// Runs what must succeed and print JSON.
fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let (code, out, err) = run(cluster, arguments);
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Takes a backup: its label, which is all that is on the standard output.
fn backed_up(cluster: &Cluster, arguments: &[&str]) -> String {
    let (code, out, err) = run(cluster, arguments);
    assert_eq!(code, 0, "{out}{err}");
    let label = out.strip_suffix('\n').expect("a line");
    let newest = "select label from nrt.backup_history order by job desc limit 1";
    assert_eq!(label, cluster.value(newest), "{err}");
    label.to_string()
}

/// The worker's process.
fn worker(cluster: &Cluster) -> i32 {
    cluster.value("select worker_pid from nrt.status").parse().expect("it runs")
}

/// Waits until the health check answers so, and gives its line.
fn healthy(cluster: &Cluster, is_healthy: bool, part: &str) -> String {
    let mut line = String::new();
    wait_until("the health check says it", SOON, || {
        let (code, out, _) = run(cluster, &["health"]);
        line = out;
        (code == 0) == is_healthy && line.contains(part)
    });
    let begin = if is_healthy { "healthy: " } else { "not healthy: " };
    assert!(line.starts_with(begin) && line.lines().count() == 1, "{line}");
    line
}

/// Has the worker look, until a check has come to this: by itself it looks once a minute.
fn checked(cluster: &Cluster, check: &str, severity: &str) {
    let question = format!("select severity from nrt.health where check_name = '{check}'");
    wait_until("it is seen", SOON, || {
        cluster.sql("select nrt_check()");
        cluster.value(&question) == severity
    });
}

fn to_be_broken(cluster: &Cluster) {
    for words in ["nrt_backup health: ", "nrt_backup job ", "archiver ", "aborting backup"] {
        cluster.allow(words);
    }
}

/// A quiet cluster whose backups take long enough to be found at work. How full the machine's disk
/// is, is none of its checks' business.
fn slow(name: &str) -> Cluster {
    quiet(Cluster::new(name))
        .setting("nrt_backup.compress_type", "bz2")
        .setting("nrt_backup.process_max", "1")
        .setting("nrt_backup.min_disk_free", "0")
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is there and ours");
}

#[test]
fn backups_are_taken_listed_and_logged() {
    let cluster = protected("commands_backup");
    let full = cluster.value("select label from nrt.backups");
    let incremental = backed_up(&cluster, &["backup"]);
    assert!(incremental.starts_with(&format!("{full}_")) && incremental.ends_with('I'));
    assert!(backed_up(&cluster, &["backup", "--diff"]).ends_with('D'));
    assert!(backed_up(&cluster, &["wal", "force-backup"]).ends_with('I'));
    assert!(backed_up(&cluster, &["backup", "--full"]).ends_with('F'));
    let manual = "select count(*) from nrt.backup_history where trigger = 'manual'";
    assert_eq!(cluster.value(manual), "4");

    // Nobody waits, and it is taken all the same.
    let job = json(&cluster, &["backup", "--no-wait", "--json"]);
    assert!(["waiting", "running"].contains(&job["status"].as_str().expect("a word")), "{job}");
    wait_for_backups(&cluster, 6);

    // Two that ask at once get what each has asked for.
    let both = [("--full", 'F'), ("--diff", 'D')].map(|(option, end)| {
        let child = command(&cluster, &["backup", option]).stdout(Stdio::piped()).spawn();
        (child.expect("it is installed"), end)
    });
    for (child, end) in both {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", words(&output));
        let label = String::from_utf8_lossy(&output.stdout).trim().to_string();
        assert!(label.ends_with(end), "{label}");
    }
    wait_for_backups(&cluster, 8);

    if is_root() {
        let program = cluster.installation().program("nrt-backup");
        let mut as_root = Command::new(program);
        as_root.args(["backup", "-D"]).arg(cluster.data());
        let (code, out, err) = ended(&mut as_root);
        assert!(code == 0 && out.trim().ends_with('I'), "{out}{err}");
        let owner = fs::metadata(cluster.data()).expect("it is there").uid();
        for entry in fs::read_dir(cluster.state_directory()).expect("it is there").flatten() {
            let of = entry.metadata().expect("it is there").uid();
            assert_eq!(of, owner, "{}", entry.path().display());
        }
    } else {
        backed_up(&cluster, &["backup"]);
    }

    // What they are is known, also when the server is down.
    let rows = cluster.sql("select label, type, trigger from nrt.backup_history order by job");
    let listed = |cluster: &Cluster| {
        let list = json(cluster, &["list", "--json"]);
        let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_string();
        let rows = list.as_array().expect("a list").iter();
        let columns = |row| ["label", "type", "trigger"].map(|it| text(row, it)).to_vec();
        rows.map(columns).collect::<Vec<_>>()
    };
    assert_eq!(listed(&cluster), rows);
    let (code, logs, _) = run(&cluster, &["logs", "backup", "--lines", "5"]);
    let file = cluster.state_directory().join("log/job.log");
    assert!(code == 0 && logs.starts_with(&format!("==> {}", file.display())), "{logs}");
    assert!(logs.lines().count() <= 6 && logs.contains("backup"), "{logs}");

    cluster.stop(Shutdown::Fast);
    assert_eq!(listed(&cluster), rows);
    let (code, table, _) = run(&cluster, &["list"]);
    assert!(code == 0 && table.lines().count() == rows.len() + 1, "{table}");
    assert!(table.contains(&incremental) && table.contains("manual"), "{table}");
    let (code, _, err) = run(&cluster, &["backup"]);
    assert!(code == 2 && err.contains("the server does not run") && err.contains("HINT: "));
    assert!(!cluster.state_directory().join("backup-now").exists());
}

#[test]
fn a_backup_that_cannot_be_had_is_refused_and_a_bad_request_disturbs_nobody() {
    let cluster = protected("commands_refused");
    to_be_broken(&cluster);
    cluster.sql("select nrt_pause('backups')");
    let (code, out, err) = run(&cluster, &["backup"]);
    assert!(code == 2 && out.is_empty() && err.contains("backups are paused"), "{code}: {err}");
    assert!(err.contains("HINT: SELECT nrt_resume("), "{err}");
    cluster.sql("select nrt_resume('backups')");

    let request = cluster.state_directory().join("backup-now");
    fs::write(&request, "everything").expect("the directory is there");
    backed_up(&cluster, &["backup"]);
    assert!(!cluster.logged("cannot read a request for a backup").is_empty());
    assert_eq!(cluster.value("select count(*) from nrt.backup_history"), "2");
    // One that cannot even be removed.
    fs::create_dir(&request).expect("the directory is there");
    cluster.sql("select nrt_backup_now()");
    checked(&cluster, "state_directory", "warning");
    fs::remove_dir(&request).expect("it is still there");
    backed_up(&cluster, &["backup"]);
    checked(&cluster, "state_directory", "ok");

    let backups = cluster.repository().join("backup/main");
    mode(&backups, 0o500);
    let (code, out, err) = run(&cluster, &["backup"]);
    mode(&backups, 0o750);
    assert!(code == 1 && out.is_empty(), "{code}: {out}{err}");
    assert!(err.contains(" failed: ") && err.contains("Permission denied"), "{err}");
    assert!(err.contains(&*backups.to_string_lossy()) && err.contains("HINT: "), "{err}");
    backed_up(&cluster, &["backup"]);
}

#[test]
fn the_wal_is_shown_and_the_worker_starts_anew() {
    let cluster = slow("commands_wal").setting("nrt_backup.wal_growth_threshold", "77MB");
    to_be_broken(&cluster);
    let cluster = crate::protected::started(cluster);
    let before = json(&cluster, &["wal", "status", "--json"]);
    cluster.sql("create table t as select generate_series(1, 100000)");
    // Before the switch: what the server writes by itself after it is in a segment that nobody ends.
    let flushed = cluster.value("select pg_current_wal_flush_lsn()");
    archive_segment(&cluster);
    let after = json(&cluster, &["wal", "status", "--json"]);
    let growth = |report: &Value| report["growth"].as_u64().expect("there is a backup");
    assert!(growth(&after) > growth(&before) + 3_000_000, "{before} {after}");
    let told = after["flushed"]["flushed"].as_str().expect("it is known");
    assert_eq!(cluster.value(&format!("select '{told}'::pg_lsn >= '{flushed}'")), "t");
    wait_until("the archive is seen", SOON, || {
        cluster.sql("select nrt_check()");
        let report = json(&cluster, &["wal", "status", "--json"]);
        let archived = report["archived"]["flushed"].as_str().expect("it is known").to_string();
        cluster.value(&format!("select '{archived}'::pg_lsn + 1 >= '{flushed}'")) == "t"
    });
    let (code, text, _) = run(&cluster, &["wal", "status"]);
    for words in ["77 MB start a backup", "growth starts no backup", "no remote is", "none\n"] {
        assert!(code == 0 && text.contains(words), "{words}: {text}");
    }

    let old = worker(&cluster);
    let (code, out, err) = run(&cluster, &["wal", "restart"]);
    assert!(code == 0 && out.contains("runs again"), "{out}{err}");
    assert_ne!(worker(&cluster), old);

    // Not in the middle of a backup, unless that is wanted.
    let (code, ..) = run(&cluster, &["backup", "--full", "--no-wait"]);
    assert_eq!(code, 0);
    cluster.wait_for("select activity from nrt.status", "backing up", SOON);
    let old = worker(&cluster);
    let (code, _, err) = run(&cluster, &["wal", "restart"]);
    assert!(code == 1 && err.contains("backup job 2 runs") && err.contains("--force"), "{err}");
    assert_eq!(worker(&cluster), old);
    let (code, _, err) = run(&cluster, &["wal", "restart", "--force"]);
    assert_eq!(code, 0, "{err}");
    assert_ne!(worker(&cluster), old);
    // It is taken again.
    wait_for_backups(&cluster, 2);
    cluster.stop(Shutdown::Fast);
    let (code, text, _) = run(&cluster, &["wal", "status"]);
    assert!(code == 2 && text.contains("not running"), "{text}");
    let (code, _, err) = run(&cluster, &["wal", "restart"]);
    assert!(code == 1 && err.contains("does not run"), "{err}");
}

#[test]
fn the_health_check_is_healthy_only_if_the_backups_are() {
    let cluster = slow("commands_health");
    to_be_broken(&cluster);
    let (code, out, _) = run(&cluster, &["health"]);
    assert!(code == 1 && out.starts_with("not healthy: "), "{out}");
    let cluster = cluster.started();
    healthy(&cluster, false, "the first backup has not been taken yet");
    cluster.sql("create extension nrt_backup");
    wait_for_backups(&cluster, 1);
    let label = cluster.value("select last_backup from nrt.status");
    healthy(&cluster, true, &label);
    cluster.sql("select nrt_pause('backups')");
    healthy(&cluster, true, "but: backup: backups are paused");
    cluster.sql("select nrt_resume('backups')");
    healthy(&cluster, true, &label);

    // A worker that is there, and does nothing.
    let frozen = worker(&cluster);
    kill(frozen, Signal::STOP);
    let ago = SystemTime::now() - Duration::from_secs(600);
    let present = cluster.state_directory().join("present.json");
    let file = File::options().append(true).open(&present).expect("the worker wrote it");
    file.set_modified(ago).expect("it is ours");
    healthy(&cluster, false, "has written nothing for 60");
    kill(frozen, Signal::CONT);
    cluster.sql("select nrt_check()");
    healthy(&cluster, true, &label);

    // A server that is there, and answers nobody.
    let postmaster = cluster.postmaster();
    kill(postmaster, Signal::STOP);
    let (code, out, _) = run(&cluster, &["health"]);
    kill(postmaster, Signal::CONT);
    assert!(code == 1 && out.contains("the server does not answer"), "{out}");

    let archive = cluster.repository().join("archive/main");
    let versions = fs::read_dir(&archive).expect("it is there").flatten().map(|it| it.path());
    let version = versions.into_iter().find(|it| it.is_dir()).expect("there is one");
    let timeline = version.join("0000000100000000");
    for directory in [&version, &timeline] {
        mode(directory, 0o500);
    }
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x')");
    cluster.sql("select pg_switch_wal()");
    checked(&cluster, "archiving", "critical");
    healthy(&cluster, false, "archiving: segment ");
    for directory in [&version, &timeline] {
        mode(directory, 0o750);
    }
    archive_segment(&cluster);
    checked(&cluster, "archiving", "ok");
    healthy(&cluster, true, &label);

    cluster.stop(Shutdown::Fast);
    healthy(&cluster, false, "the server does not run");
}

#[test]
fn a_recovery_is_looked_at_before_it_is_needed() {
    let remote = Remote::new("commands_recovery", Kind::WebDav);
    let cluster = Cluster::with_identity("commands_recovery");
    let cluster = shipping(cluster.setting("nrt_backup.min_disk_free", "0"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000)");
    wait_for_shipped(&cluster);
    let label = cluster.value("select last_backup from nrt.status");
    let lists = json(&cluster, &["list", "--json"]);
    assert_eq!(lists[0]["offsite"], true, "{lists}");
    let report = json(&cluster, &["wal", "status", "--json"]);
    assert!(report["shipped"]["flushed"].is_string() && report["ship_lag"].is_number());
    let (code, logs, _) = run(&cluster, &["wal", "logs"]);
    assert!(code == 0 && logs.contains("log/ship.log"), "{logs}");

    // The server knows where it ships to, and stays what it is.
    let (code, text) = nrt_backup(&cluster, &["recovery", "prepare"]);
    assert!(code == 0 && text.ends_with("ready\n"), "{text}");
    assert!(text.contains(&label) && text.contains("a server runs in"), "{text}");

    // From a machine that has nothing but the remote's configuration.
    let elsewhere = Place::new("commands_elsewhere");
    let from = from(&remote);
    let ask = |words: &[&str], more: &[&str]| {
        let installation = cluster.installation();
        let mut command = installation.command(installation.program("nrt-backup"));
        command.arg("recovery").args(words).args(texts(&from)).args(more).env("TZ", "UTC");
        let (code, out, err) = ended(&mut command);
        (code, out + &err)
    };
    let at = "2026-01-02 03:04:05+08";
    let (code, text) = ask(&["show-config"], &["--target-time", at, "--action", "pause"]);
    assert_eq!(code, 0, "{text}");
    for words in [&*remote.place(NAME), "the time 2026-01-01 19:04:05 UTC", "pause", "not set"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for secret in remote.secrets() {
        assert!(!text.contains(&secret), "{text}");
    }
    let (code, text) = ask(&["list-backups"], &[]);
    assert!(code == 0 && text.contains(&format!("{label}, full, ended at ")), "{text}");
    let (_, text) = ask(&["list-backups"], &["--json"]);
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(listed["backups"][0]["label"], *label, "{text}");
    let (code, text) = ask(&["test-connection"], &[]);
    assert!(code == 0 && text.contains("is reached\nowner      "), "{text}");
    assert!(text.contains(&label) && text.contains("reaches "), "{text}");
    let into = elsewhere.cluster.data().display().to_string();
    let (code, text) = ask(&["prepare"], &["-D", &into]);
    assert!(code == 0 && text.ends_with("ready\n") && text.contains(&label), "{text}");
    assert!(!elsewhere.work().exists() && !elsewhere.cluster.data().exists());

    let (code, text) = ask(&["prepare"], &["--target-time", "2020-01-01 00:00:00+00"]);
    assert!(code == 1 && text.contains("not ready: ") && text.contains("HINT: "), "{text}");
    let (code, text) = ask(&["prepare"], &["--target-name", "nowhere"]);
    assert!(code == 1 && text.contains("nowhere"), "{text}");
    fs::create_dir(&into).expect("the directory is ours");
    fs::write(Path::new(&into).join("PG_VERSION"), "15\n").expect("the directory is ours");
    let (code, text) = ask(&["prepare"], &["-D", &into]);
    assert!(code == 1 && text.contains("not ready: ") && text.contains(&into), "{text}");
    let (code, text) = ask(&["prepare"], &["-D", &into, "--replace"]);
    assert!(code == 0 && text.ends_with("ready\n"), "{text}");
    assert!(Path::new(&into).join("PG_VERSION").exists());
    fs::remove_dir_all(&into).expect("it is ours");

    remote.kill();
    for words in ["test-connection", "prepare"] {
        let (code, text) = ask(&[words], &[]);
        assert!(code == 1 && text.contains("connection refused"), "{words}: {text}");
    }
    let (code, text) = ask(&["show-config"], &[]);
    assert!(code == 0, "{text}");
    remote.start();
    let (code, text) = ask(&["test-connection"], &[]);
    assert_eq!(code, 0, "{text}");
}
