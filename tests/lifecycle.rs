//! Follows clusters through their lives: from the first start to restore, promotion and the loss of
//! all that the extension knows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::protected::{
    SOON, archive_segment, drop_database, history, own_configuration, protected, quiet, started,
    verify, verify_with, wait_for_backups, wait_for_health,
};
use nrt_tests::{Cluster, Process, Shutdown, wait_until};

/// The rows of a table as one text, to compare.
const CONTENT: &str = "select count(*) || ' ' || md5(string_agg(t::text, ',' order by i)) from t";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

/// What pgBackRest by hand writes to its standard output.
fn by_hand(cluster: &Cluster, arguments: &[&str]) -> String {
    written(&cluster.pgbackrest(arguments), arguments)
}

/// The same with a configuration of the operator's.
fn by_hand_with(cluster: &Cluster, config: &Path, arguments: &[&str]) -> String {
    let mut pgbackrest = cluster.installation().command("pgbackrest");
    pgbackrest.arg(format!("--config={}", config.display())).args(arguments);
    written(&pgbackrest.output().expect("pgbackrest is installed"), arguments)
}

fn written(output: &Output, arguments: &[&str]) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

fn process_of_worker(cluster: &Cluster) -> Option<Process> {
    cluster.processes().into_iter().find(|it| it.command.contains("nrt_backup worker"))
}

#[test]
fn a_line_in_the_configuration_is_all_it_takes() {
    let cluster = Cluster::new("zero").started();
    // Nobody has created the extension.
    let info = cluster.repository().join("backup/main/backup.info");
    wait_until("there is a backup", SOON, || {
        fs::read_to_string(&info).is_ok_and(|text| text.contains("[backup:current]"))
    });
    let archiving = cluster.sql(
        "select name, source, setting from pg_settings
          where name in ('archive_mode', 'archive_command') order by name desc",
    );
    assert_eq!(archiving[0], ["archive_mode", "default", "on"]);
    assert_eq!(archiving[1][1], "default");
    assert!(archiving[1][2].contains("pgbackrest-archive-push"), "{archiving:?}");

    cluster.sql("create extension nrt_backup");
    wait_for_backups(&cluster, 1);
    // A schedule may come round meanwhile.
    let first = "select job, trigger, requested, type, status, attempt, exit_code
                   from nrt.backup_history where job = 1";
    assert_eq!(cluster.sql(first), [["1", "missing_base", "full", "full", "succeeded", "1", "0"]]);
    cluster.wait_for("select health from nrt.status", "ok", SOON);
    assert_eq!(
        cluster.sql("select check_name, message, hint from nrt.health where severity <> 'ok'"),
        [[""; 3]; 0]
    );
    let status = "select health, summary like 'protected on this machine: every commit before %',
                         last_backup = label, last_backup_lsn = stop_lsn, archived_lsn >= stop_lsn,
                         next_run > now(), wal_growth < 1000000
                    from nrt.status, nrt.backups";
    assert_eq!(cluster.sql(status), [["ok", "t", "t", "t", "t", "t", "t"]]);
    assert_eq!(
        cluster.sql("select type, next_run is null from nrt.schedule order by type"),
        [["diff", "t"], ["drill", "t"], ["full", "f"], ["incr", "f"]]
    );
}

#[test]
fn what_an_operator_has_set_wins() {
    let off = Cluster::new("off").setting("archive_mode", "off");
    off.allow("nrt_backup health: ");
    off.allow("nrt_backup job ");
    let off = off.started();
    off.sql("create extension nrt_backup");
    assert_eq!(off.value("show archive_mode"), "off");
    let message = wait_for_health(&off, "archiving", "critical");
    assert!(message.starts_with("archive_mode is off"), "{message}");
    assert_eq!(off.value("select health from nrt.status"), "critical");
    drop(off);

    let foreign = Cluster::new("foreign").setting("archive_command", "test -n '%p'");
    foreign.allow("nrt_backup health: ");
    foreign.allow("nrt_backup job ");
    let foreign = foreign.started();
    foreign.sql("create extension nrt_backup");
    assert_eq!(foreign.value("show archive_command"), "test -n '%p'");
    assert_eq!(foreign.value("show archive_mode"), "on");
    let message = wait_for_health(&foreign, "archiving", "critical");
    assert!(message.contains("test -n '%p'"), "{message}");
}

#[test]
fn an_operators_own_pgbackrest_configuration_is_used() {
    let cluster = quiet(Cluster::new("own"));
    let repository = cluster.directory().join("own-repository");
    cluster.installation().private_directory(&repository).expect("the directory is ours");
    let config = own_configuration(&cluster, &repository, "");
    let cluster = started(cluster);
    archive_segment(&cluster);
    assert!(repository.join("backup/main/backup.info").exists());
    assert_eq!(fs::read_dir(cluster.repository()).expect("is there").count(), 0);
    assert!(!cluster.state_directory().join("pgbackrest.conf").exists());
    verify_with(&cluster, &config);
    // The file lets the state directory into backups, ours leave it out all the same.
    let label = cluster.value("select label from nrt.backups");
    let path = format!("backup/main/{label}/backup.manifest");
    let manifest = by_hand_with(&cluster, &config, &["--stanza=main", "repo-get", &path]);
    assert!(manifest.contains("pg_data/PG_VERSION="));
    assert!(!manifest.contains("nrt_backup/"));
    let message = wait_for_health(&cluster, "pgbackrest", "warning");
    assert!(message.contains("taken by hand hold the directory"), "{message}");
    assert_eq!(
        cluster.sql(
            "select check_name, hint ~ 'exclude=nrt_backup/' from nrt.health where severity <> 'ok'"
        ),
        [["pgbackrest", "t"]]
    );
    // What it leaves out of its own accord goes on counting.
    let global = "\n[global:backup]\nexclude=extra/";
    own_configuration(&cluster, &repository, global);
    let extra = cluster.data().join("extra");
    cluster.installation().private_directory(&extra).expect("the directory is ours");
    fs::write(extra.join("file"), "").expect("written");
    cluster.sql("select nrt_check()");
    let label = cluster.value("select nrt_backup_now('full')");
    let path = format!("backup/main/{label}/backup.manifest");
    let manifest = by_hand_with(&cluster, &config, &["--stanza=main", "repo-get", &path]);
    assert!(!manifest.contains("nrt_backup/") && !manifest.contains("extra/"));
    own_configuration(&cluster, &repository, &format!("{global}\nexclude=nrt_backup/"));
    cluster.sql("select nrt_check()");
    assert_eq!(
        cluster.sql("select check_name, message from nrt.health where severity <> 'ok'"),
        [[""; 2]; 0]
    );
}

#[test]
fn the_state_is_private_and_in_no_backup() {
    let cluster = protected("private");
    let state = cluster.state_directory();
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("pgbackrest.conf")), 0o600);
    assert_eq!(mode(&state.join("history.jsonl")), 0o600);
    let label = cluster.value("select label from nrt.backups");
    let path = format!("backup/main/{label}/backup.manifest");
    let manifest = by_hand(&cluster, &["--stanza=main", "repo-get", &path]);
    assert!(manifest.contains("pg_data/PG_VERSION="));
    // The directory may be there, nothing in it.
    assert!(!manifest.contains("nrt_backup/"));
}

#[test]
fn backups_of_each_type_on_demand_and_by_hand() {
    let cluster = protected("types");
    for (kind, asked) in [
        ("incr", "select nrt_backup_now()"),
        ("diff", "select nrt_backup_now('diff')"),
        ("full", "select nrt_backup_now('full')"),
        ("incr", "select nrt_backup_now('incremental')"),
    ] {
        let label = cluster.value(asked);
        let row = format!("select type, status from nrt.backup_history where label = '{label}'");
        assert_eq!(cluster.sql(&row), [[kind, "succeeded"]]);
        assert_eq!(
            cluster.value(&format!("select type from nrt.backups where label = '{label}'")),
            kind
        );
        let ending = match kind {
            "full" => "F",
            "diff" => "D",
            _ => "I",
        };
        assert!(label.ends_with(ending), "{label}");
    }
    by_hand(&cluster, &["--stanza=main", "--type=incr", "backup"]);
    cluster.sql("select nrt_check()");
    wait_for_backups(&cluster, 6);
    assert_eq!(
        history(&cluster, "trigger, type, status"),
        [
            ["missing_base", "full", "succeeded"],
            ["manual", "incr", "succeeded"],
            ["manual", "diff", "succeeded"],
            ["manual", "full", "succeeded"],
            ["manual", "incr", "succeeded"],
            ["external", "incr", "succeeded"],
        ]
    );
    // All of them are described, whoever took them.
    let complete = "select count(*) from nrt.backup_history h join nrt.backups b using (label)
                     where (h.start_lsn, h.stop_lsn, h.database_size, h.repository_size)
                         = (b.start_lsn, b.stop_lsn, b.database_size, b.repository_size)
                       and h.finished_at >= h.started_at and h.started_at >= h.requested_at";
    assert_eq!(cluster.value(complete), "6");
    verify(&cluster);
}

#[test]
fn an_incremental_backup_without_a_base_becomes_a_full_one() {
    let cluster = protected("base");
    let label = cluster.value("select label from nrt.backups");
    // Somebody removes it behind the worker's back, which learns of it from pgBackRest.
    fs::remove_dir_all(cluster.repository().join("backup/main").join(&label)).expect("is there");
    let mut session = cluster.client("psql");
    session.args(["-X", "-A", "-t", "-c", "select nrt_backup_now()"]);
    let output = session.output().expect("psql can be run");
    let words = "no full backup to build on: a full one was taken instead";
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, format!("NOTICE:  {words}\n"));
    let new = String::from_utf8_lossy(&output.stdout).trim().to_string();
    assert!(new.ends_with('F') && new != label, "{new}");
    let row = "select requested, type, status, message from nrt.backup_history
                where label = ";
    assert_eq!(cluster.sql(&format!("{row}'{new}'")), [["incr", "full", "succeeded", words]]);
}

#[test]
fn dropping_the_extension_and_restarting_lose_nothing() {
    let cluster = protected("drop");
    cluster.sql("select nrt_backup_now()");
    let columns = "job, trigger, type, status, label, requested_at, started_at, finished_at";
    let rows = history(&cluster, columns);
    assert_eq!(rows.len(), 2);

    cluster.sql("drop extension nrt_backup");
    // A backup needs no schema.
    assert!(process_of_worker(&cluster).is_some());
    cluster.sql("create extension nrt_backup");
    assert_eq!(history(&cluster, columns), rows);
    cluster.sql("create database other");
    cluster.sql("drop extension nrt_backup");
    cluster.try_sql_as("postgres", "other", "create extension nrt_backup").expect("creates");
    let there = cluster
        .try_sql_as("postgres", "other", "select count(*) from nrt.backup_history")
        .expect("is shown in every database");
    assert_eq!(there, [["2"]]);
    drop_database(&cluster, "other");
    cluster.sql("create extension nrt_backup");

    for how in [Shutdown::Fast, Shutdown::Smart, Shutdown::Immediate] {
        cluster.stop(how);
        cluster.start();
        assert_eq!(history(&cluster, columns), rows, "{how:?}");
    }
    cluster.crash();
    cluster.start();
    assert_eq!(history(&cluster, columns), rows);
    cluster.sql("select nrt_backup_now()");
    assert_eq!(history(&cluster, "job"), [["1"], ["2"], ["3"]]);
}

#[test]
fn a_lost_state_is_rebuilt_from_the_repository() {
    let cluster = protected("lost");
    cluster.sql("select nrt_backup_now('diff')");
    by_hand(&cluster, &["--stanza=main", "--type=incr", "backup"]);
    cluster.sql("select nrt_check()");
    wait_for_backups(&cluster, 3);
    // Without what only we measured, and the moments that pgBackRest rounds to seconds.
    let columns = "label, trigger, type, status, start_lsn, stop_lsn, database_size, copied_size,
                   repository_size, date_trunc('minute', finished_at) > now() - interval '1 h'";
    let before = history(&cluster, columns);
    let triggers: Vec<&str> = before.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(triggers, ["missing_base", "manual", "external"]);

    cluster.stop(Shutdown::Fast);
    fs::remove_dir_all(cluster.state_directory()).expect("it is there");
    cluster.start();
    cluster.wait_for("select count(*) from nrt.backup_history", "3", SOON);
    assert_eq!(history(&cluster, columns), before);
    archive_segment(&cluster);
    // Nothing was taken again.
    wait_for_backups(&cluster, 3);
    wait_for_health(&cluster, "worker", "ok");
    cluster.sql("select nrt_backup_now()");
    assert_eq!(history(&cluster, "job").len(), 4);
}

#[test]
fn what_was_backed_up_can_be_restored() {
    let cluster = protected("origin");
    cluster.sql("create table t as select i, md5(i::text) from generate_series(1, 10000) i");
    cluster.sql("select nrt_backup_now()");
    cluster.sql("insert into t select i, 'after the backup' from generate_series(10001, 10100) i");
    let content = cluster.value(CONTENT);
    archive_segment(&cluster);
    let last_job = cluster.value("select max(job) from nrt.backup_history");
    cluster.stop(Shutdown::Fast);

    let restored = quiet(Cluster::without_data("restored"));
    restored.installation().private_directory(&restored.data()).expect("the directory is ours");
    by_hand(
        &cluster,
        &["--stanza=main", &format!("--pg1-path={}", restored.data().display()), "restore"],
    );
    // It starts without anything of ours, and a life of its own.
    let state = restored.state_directory();
    assert!(!state.exists() || fs::read_dir(&state).expect("is there").next().is_none());
    let restored = restored.started();
    restored.wait_for("select pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.value(CONTENT), content);
    wait_for_backups(&restored, 1);
    assert_eq!(last_job, "2");
    assert_eq!(
        history(&restored, "job, trigger, type, status"),
        [["1", "missing_base", "full", "succeeded"]]
    );
    wait_for_health(&restored, "worker", "ok");
    assert!(restored.repository().join("backup/main/backup.info").exists());
}

#[test]
fn a_standby_shows_and_refuses_and_takes_over_when_promoted() {
    let primary = protected("primary");
    primary.sql("create table t as select i, md5(i::text) from generate_series(1, 1000) i");
    let standby = quiet(Cluster::standby_of(&primary, "standby"));
    // Both write to one repository, as with a shared disk or an object store.
    standby.set("nrt_backup.repository", &primary.repository().display().to_string());
    standby.set("nrt_backup.full_schedule", "0 3 * * *");
    let standby = standby.started();
    // From 2.55 on pgBackRest refuses until the checkpoint after the promotion; the job waits.
    standby.allow("aborting backup due to backend exiting");
    standby.wait_for("select count(*) from t", "1000", SOON);

    for call in [
        "nrt_backup_now()",
        "nrt_backup_start('full')",
        "nrt_backup_cancel()",
        "nrt_check()",
        "nrt_pause()",
        "nrt_resume('shipping')",
        "nrt_restore_point('here')",
        "nrt_restore_plan()",
    ] {
        let refused = standby.try_sql(&format!("select {call}")).expect_err("is a standby");
        assert_eq!(refused.sqlstate, "55000", "{refused}");
        assert!(refused.message.contains("in recovery"), "{refused}");
        assert!(refused.hint.contains("on the primary"), "{refused}");
    }
    assert_eq!(
        standby.sql("select activity, health, summary, worker_pid from nrt.status"),
        [["standby", "ok", "a standby: backups are taken on the primary", ""]]
    );
    for view in ["health", "backup_history", "backups", "recovery_window", "settings", "schedule"] {
        assert_ne!(standby.value(&format!("select count(*) from nrt.{view}")), "0", "{view}");
    }
    assert_eq!(standby.value("select count(*) from nrt.progress"), "0");
    assert_eq!(standby.value("select count(next_run) from nrt.schedule"), "0");
    assert!(process_of_worker(&standby).is_none());

    archive_segment(&primary);
    primary.sql("insert into t select i, 'last' from generate_series(1001, 1100) i");
    standby.wait_for("select count(*) from t", "1100", SOON);
    primary.stop(Shutdown::Fast);
    assert_eq!(standby.value("select pg_promote()"), "t");
    standby.wait_for("select worker_pid is not null from nrt.status", "t", SOON);
    standby.wait_for("select activity from nrt.status", "idle", SOON);
    // The primary's worker ran while the standby was made, but it was another one.
    wait_for_health(&standby, "worker", "ok");
    assert_eq!(standby.value("select count(next_run) from nrt.schedule"), "1");
    standby.sql("insert into t select i, 'promoted' from generate_series(1101, 1200) i");
    let label = standby.value("select nrt_backup_now()");
    assert!(label.ends_with('I'), "it builds on the primary's full backup: {label}");
    archive_segment(&standby);
    standby.sql("select nrt_check()");
    // The new timeline is reached from the old one's backup: that is one stretch, as in a plan.
    let windows =
        "select timeline, from_time is null, first_backup = (select min(label) from nrt.backups),
                          backups, gap_until is null from nrt.recovery_window order by timeline";
    assert_eq!(standby.sql(windows), [["2", "f", "t", "2", "t"]]);
    assert_eq!(
        standby.sql("select check_name, message from nrt.health where severity <> 'ok'"),
        [[""; 2]; 0]
    );

    // And the whole of it can be restored.
    let content = standby.value(CONTENT);
    let restored = Cluster::without_data("promoted").preload(false);
    restored.installation().private_directory(&restored.data()).expect("the directory is ours");
    by_hand(
        &standby,
        &["--stanza=main", &format!("--pg1-path={}", restored.data().display()), "restore"],
    );
    restored.set("archive_mode", "off");
    let restored = restored.started();
    restored.wait_for("select pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.value(CONTENT), content);
}

#[test]
fn without_preload_functions_say_what_to_do() {
    let cluster = protected("preload");
    let history_before = history(&cluster, "job, label");
    cluster.stop(Shutdown::Fast);
    let cluster = cluster.preload(false).started();
    for call in [
        "nrt_backup_now()",
        "nrt_backup_start('full')",
        "nrt_backup_cancel()",
        "nrt_check()",
        "nrt_pause()",
        "nrt_resume('shipping')",
        "nrt_restore_point('here')",
        "nrt_restore_plan()",
    ] {
        let refused = cluster.try_sql(&format!("select {call}")).expect_err("is not loaded");
        assert_eq!(refused.sqlstate, "55000", "{refused}");
        assert!(refused.hint.contains("shared_preload_libraries"), "{refused}");
    }
    assert_eq!(history(&cluster, "job, label"), history_before);
    let status = cluster.sql("select activity, health, summary from nrt.status");
    assert_eq!(status[0][..2], ["not loaded", "critical"]);
    assert!(status[0][2].contains("is not loaded"), "{status:?}");
    assert!(cluster.value("select hint from nrt.health").contains("shared_preload_libraries"));
    for view in ["backups", "recovery_window", "health", "progress", "schedule", "settings"] {
        cluster.sql(&format!("select * from nrt.{view}"));
    }
    // Switched off, archiving included.
    assert_eq!(cluster.value("show archive_mode"), "off");
    assert!(process_of_worker(&cluster).is_none());
    cluster.stop(Shutdown::Fast);
    let cluster = cluster.preload(true).started();
    cluster.sql("select nrt_backup_now()");
    assert_eq!(history(&cluster, "job"), [["1"], ["2"]]);
}

#[test]
fn a_gap_in_the_archive_shows_in_the_recovery_window() {
    let cluster = protected("gap");
    cluster.allow("nrt_backup health: wal_gap is critical");
    let windows =
        "select timeline, backups, from_lsn = stop_lsn, to_lsn > from_lsn, gap_until is null
                     from nrt.recovery_window join nrt.backups on label = first_backup
                    order by from_lsn";
    assert_eq!(cluster.sql(windows), [["1", "1", "t", "t", "t"]]);
    archive_segment(&cluster);
    let lost = archive_segment(&cluster);
    let after = archive_segment(&cluster);
    let directory = cluster.repository().join("archive/main");
    let mut removed = 0;
    for id in fs::read_dir(directory).expect("the archive is there").flatten() {
        let Ok(files) = fs::read_dir(id.path().join(&lost[..16])) else { continue };
        for file in files.flatten() {
            if file.file_name().to_string_lossy().starts_with(&lost) {
                fs::remove_file(file.path()).expect("it is there");
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 1);

    cluster.sql("select nrt_check()");
    // Segments have 16 MB, and the position in the name counts them.
    let start = |segment: &str| {
        let number = u64::from_str_radix(&segment[16..], 16).expect("hexadecimal") << 24;
        format!("0/{number:X}")
    };
    let gap = "select to_lsn, gap_until from nrt.recovery_window where gap_until is not null";
    assert_eq!(cluster.sql(gap), [[start(&lost), start(&after)]]);
    let message = wait_for_health(&cluster, "wal_gap", "critical");
    assert!(message.contains(&start(&lost)) && message.contains(&start(&after)), "{message}");

    cluster.sql("select nrt_backup_now()");
    wait_for_health(&cluster, "wal_gap", "ok");
    assert_eq!(cluster.sql(windows), [["1", "1", "t", "t", "f"], ["1", "1", "t", "t", "t"]]);
}

#[test]
fn a_crontab_line_fires_within_the_minute_on_two_clusters_of_one_repository() {
    let idle = protected("idle");
    let busy = quiet(Cluster::with_identity("busy")).setting("nrt_backup.stanza", "busy");
    busy.set("nrt_backup.repository", &idle.repository().display().to_string());
    busy.set("nrt_backup.lock_path", &idle.lock().display().to_string());
    let busy = started(busy);
    busy.sql(
        "create table t as select i, repeat(md5(i::text), 8) from generate_series(1, 10000) i",
    );
    for cluster in [&idle, &busy] {
        cluster.set("nrt_backup.incremental_schedule", "* * * * *");
        cluster.set("nrt_backup.differential_schedule", "* * * * *");
        cluster.reload();
    }
    // Within a minute and what a backup takes; one run for two schedules that come round together.
    let patience = Duration::from_secs(60) + SOON;
    let scheduled = "select requested, type, status from nrt.backup_history
                      where trigger = 'schedule' and finished_at is not null order by job limit 1";
    busy.wait_for(scheduled, "diff diff succeeded", patience);
    idle.wait_for(scheduled, "diff diff skipped", patience);
    for cluster in [&idle, &busy] {
        cluster.unset("nrt_backup.incremental_schedule");
        cluster.set("nrt_backup.incremental_schedule", "off");
        cluster.set("nrt_backup.differential_schedule", "off");
        cluster.reload();
        cluster.wait_for("select count(next_run) from nrt.schedule", "0", SOON);
    }
    let message =
        "select message from nrt.backup_history where status = 'skipped' order by job limit 1";
    assert!(idle.value(message).starts_with("only "), "{}", idle.value(message));
    let seconds = "select max(extract(second from requested_at)) < 10 from nrt.backup_history
                    where trigger = 'schedule'";
    assert_eq!(busy.value(seconds), "t");
    assert_eq!(idle.value("select count(*) from nrt.backups"), "1");
    assert_eq!(
        busy.sql("select type from nrt.backups order by started_at limit 2"),
        [["full"], ["diff"]]
    );
}

#[test]
fn a_run_missed_while_the_server_was_down_is_made_up_once() {
    let cluster = protected("missed").setting("nrt_backup.timezone", "UTC");
    let soon = cluster.value(
        "select '0 ' || extract(hour from now() at time zone 'UTC' + interval '12 h') || ' * * *'",
    );
    cluster.set("nrt_backup.full_schedule", &soon);
    cluster.reload();
    cluster.wait_for("select count(next_run) from nrt.schedule", "1", SOON);
    cluster.stop(Shutdown::Fast);

    // It was down for three and a half days, in which three runs were due.
    let file = cluster.state_directory().join("state.json");
    let text = fs::read_to_string(&file).expect("the worker kept it");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let until = &mut state["memory"]["served"]["full"]["until"];
    let then = chrono::DateTime::parse_from_rfc3339(until.as_str().expect("a moment"))
        .expect("a moment")
        - chrono::TimeDelta::hours(84);
    *until = then.to_rfc3339().into();
    fs::write(&file, state.to_string()).expect("it can be written");

    cluster.start();
    wait_for_backups(&cluster, 2);
    let expected = [["missing_base", "full", "succeeded"], ["startup", "full", "succeeded"]];
    assert_eq!(history(&cluster, "trigger, type, status"), expected);
    cluster.restart();
    wait_for_backups(&cluster, 2);
    assert_eq!(history(&cluster, "trigger, type, status"), expected);
}
