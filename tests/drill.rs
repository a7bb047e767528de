//! Shows that drills try what they say, fail when the backup or what is in it is not well, and
//! leave nothing behind and nothing changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::offsite::{
    NAME, all_well, contents, nrt_backup, owner_of, processes, shipping, wait_for_offsite,
    wait_for_shipped,
};
use crate::protected::{SOON, archive_segment, quiet, wait_for_backups, wait_for_health};
use nrt_core::lsn::Lsn;
use nrt_tests::{Cluster, Kind, Process, Remote, Shutdown, SqlError, is_root, kill, wait_until};
use rustix::process::Signal;

/// A query that holds a drill at its end.
const WAITING: &str = "select pg_sleep(1000)";
/// What a command line of a drill has in it.
const DRILL: &str = "nrt-backup drill --order";

/// A protected cluster without a remote.
fn local(cluster: Cluster) -> Cluster {
    cluster.allow("nrt_backup health: ");
    crate::protected::started(quiet(cluster))
}

fn drill_now(cluster: &Cluster) -> Result<String, SqlError> {
    Ok(cluster.try_sql("select nrt_drill_now()")?.remove(0).remove(0))
}

/// A drill that must fail: the words that it failed with.
fn failure(cluster: &Cluster) -> String {
    drill_now(cluster).expect_err("the drill must fail").to_string()
}

/// Columns of the newest drill.
fn newest(cluster: &Cluster, columns: &str) -> String {
    let row = cluster.sql(&format!("select {columns} from nrt.drills limit 1"));
    row.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The processes of drills, but not their leashes.
fn drills(cluster: &Cluster) -> Vec<Process> {
    let mut found = processes(cluster, DRILL);
    found.retain(|process| !process.command.contains(" leash "));
    found
}

/// Waits until a drill runs the query that holds it.
fn wait_for_hold(cluster: &Cluster) {
    wait_until("the drill runs its query", SOON, || {
        !processes(cluster, "pg_sleep").iter().all(|it| it.command.contains(DRILL))
    });
}

/// Whether something of a drill is there.
fn is_left(cluster: &Cluster) -> bool {
    let place = cluster.state_directory().join("drill");
    place.exists() || !processes(cluster, "nrt-drill-").is_empty()
}

fn nothing_is_left(cluster: &Cluster) {
    wait_until("nothing of the drill is left", SOON, || !is_left(cluster));
}

/// A directory for a tablespace.
fn space(cluster: &Cluster) -> PathBuf {
    let path = cluster.directory().join("space");
    if !path.exists() {
        cluster.installation().private_directory(&path).expect("the directory is ours");
    }
    path
}

#[test]
fn a_drill_restores_what_is_off_site_and_changes_nothing() {
    let remote = Remote::new("drill_offsite", Kind::WebDav);
    let cluster = Cluster::with_identity("drill_offsite")
        .setting("nrt_backup.drill_query", "select count(*) from t");
    let cluster = shipping(cluster, &remote);
    // What would hold up a copy, and what lies outside of the data directory.
    cluster.sql("alter system set synchronous_standby_names = 'nobody'");
    cluster.sql("alter system set synchronous_commit = 'local'");
    cluster.reload();
    cluster.sql(&format!("create tablespace space location '{}'", space(&cluster).display()));
    cluster.sql("create table t tablespace space as select generate_series(1, 1000) as i");
    cluster.value("select nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    cluster.sql("insert into t select generate_series(1001, 1234)");
    let committed = cluster.value("select now()");
    let lsn = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.sql("insert into t values (0)");
    wait_for_shipped(&cluster);
    let check = "select message || ' ' || coalesce(hint, '') from nrt.health
                  where check_name = 'drill'";
    let untried = cluster.value(check);
    assert!(untried.contains("no restore has been tried") && untried.contains("nrt_drill_now()"));
    let owner = owner_of(&remote);
    let repository = contents(&cluster.repository());
    let there = contents(&remote.files(NAME).join("repository"));
    cluster.sql("checkpoint");
    let original = contents(&space(&cluster));

    let words = drill_now(&cluster).expect("it succeeds");
    assert!(words.starts_with("restored to ") && words.contains(" on timeline 2 (last commit "));
    for question in [
        "status = 'succeeded' and trigger = 'manual'",
        "ended > started and message is null and hint is null and timeline = 2",
        "backup = (select last_backup from nrt.status)",
        "source = (select remote from nrt.status)",
        &format!("recovered_up_to > '{committed}' and recovered_lsn >= '{lsn}'"),
        "plan_time > '0' and fetch_time > '0' and restore_time > '0' and replay_time > '0'",
        "check_time > '0'",
        // Each is rounded to microseconds.
        "abs(extract(epoch from rto - plan_time - fetch_time - restore_time - replay_time)) < 0.001",
        "fetched_bytes > 1000000 and restored_bytes > 10000000 and replayed_bytes > 0",
        "expected is null and estimate_error is null",
        "checked_relations > 100 and query_result = '1235'",
    ] {
        assert_eq!(
            newest(&cluster, question),
            "t",
            "{question}: {}",
            newest(&cluster, "to_json(drills)")
        );
    }
    let well = wait_for_health(&cluster, "drill", "ok");
    assert!(well.starts_with("restored to "), "{well}");
    assert_eq!(cluster.value("select drilling from nrt.status"), "f");
    assert!(!is_left(&cluster));

    // The original, its repository and its remote are as they were.
    all_well(&cluster);
    assert_eq!(owner_of(&remote).instance, owner.instance);
    assert!(contents(&cluster.repository()) == repository);
    assert!(contents(&remote.files(NAME).join("repository")) == there);
    assert!(contents(&space(&cluster)) == original);
    assert_eq!(cluster.value("select timeline_id from pg_control_checkpoint()"), "1");

    // The next one is expected to take as long.
    drill_now(&cluster).expect("it succeeds again");
    assert_eq!(newest(&cluster, "expected > '0' and estimate_error > -1"), "t");
}

#[test]
fn a_damaged_remote_is_found_and_named() {
    let remote = Remote::new("drill_damaged", Kind::Local);
    let cluster = shipping(Cluster::with_identity("drill_damaged"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    let there = remote.files(NAME).join("repository");
    let files = contents(&there);
    let bundle = files
        .iter()
        .filter(|(path, _)| path.contains("/bundle/"))
        .max_by_key(|(_, content)| content.len());
    let (path, content) = bundle.expect("there is a backup");
    let file = there.join(path);

    fs::remove_file(&file).expect("it is there");
    let words = failure(&cluster);
    assert!(words.contains(path.split_once("main/").expect("a path").1), "{path}: {words}");
    let critical = wait_for_health(&cluster, "drill", "critical");
    assert!(critical.contains(" failed: "), "{critical}");
    let hint = cluster.value("select hint from nrt.health where check_name = 'drill'");
    assert!(hint.contains("is missing at"), "{hint}");
    assert_eq!(newest(&cluster, "status, rto is null, recovered_lsn is null"), "failed t t");

    // Of the right length.
    let mut damaged = content.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].iter_mut().for_each(|byte| *byte = !*byte);
    fs::write(&file, damaged).expect("it can be written");
    let words = failure(&cluster);
    assert!(words.contains("could not restore"), "{words}");
    wait_for_health(&cluster, "drill", "critical");
    nothing_is_left(&cluster);

    fs::write(&file, content).expect("it can be written");
    drill_now(&cluster).expect("it is mended");
    wait_for_health(&cluster, "drill", "ok");
}

#[test]
fn without_a_remote_the_repository_is_tried_and_the_query_has_the_last_word() {
    let cluster = local(Cluster::new("drill_query"));
    cluster.sql("create table t as select generate_series(1, 10) as i");
    archive_segment(&cluster);
    let (code, text) = nrt_backup(&cluster, &["drill"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("drill 1 succeeded: restored to "), "{text}");
    let repository = cluster.repository().display().to_string();
    assert_eq!(
        newest(&cluster, "source, fetched_bytes, trigger"),
        format!("{repository} 0 manual")
    );

    for (query, words) in [
        ("select count(*) > 10 from t", "returned false"),
        ("select i from t where i > 10", "returned nothing"),
        ("select max(i) from t where i > 10", "returned nothing"),
        ("select i from nowhere", "relation \"nowhere\" does not exist"),
    ] {
        cluster.set("nrt_backup.drill_query", query);
        cluster.reload();
        let failed = failure(&cluster);
        assert!(failed.contains(words), "{query}: {failed}");
        let critical = wait_for_health(&cluster, "drill", "critical");
        assert!(critical.contains(words), "{critical}");
        // It was restored all the same.
        assert_eq!(newest(&cluster, "status, rto > '0', query_result is null"), "failed t t");
        assert!(!is_left(&cluster));
    }
    let (code, text) = nrt_backup(&cluster, &["drill"]);
    assert!(code == 1 && text.contains("drill 6 failed: ") && text.contains("HINT: "), "{text}");
    cluster.set("nrt_backup.drill_query", "select count(*) = 10 from t");
    cluster.reload();
    drill_now(&cluster).expect("that is true");
    assert_eq!(newest(&cluster, "query_result"), "t");

    // What is read may be somebody's who has made a view of it: it does nothing with more rights
    // than reading takes, and nobody but the query's role is kept out.
    let trace = cluster.directory().join("trace");
    cluster.sql(&format!(
        "create role tenant;
         create function public.trap() returns int language plpgsql as
             $$ begin copy (select 1) to program 'touch {}'; return 1; end $$;
         create view trap as select trap() as i;
         alter view trap owner to tenant;
         revoke connect on database postgres from public",
        trace.display()
    ));
    archive_segment(&cluster);
    cluster.set("nrt_backup.drill_query", "select i from trap");
    cluster.reload();
    let failed = failure(&cluster);
    assert!(failed.contains("to COPY to or from an external program"), "{failed}");
    assert!(!trace.exists());
}

#[test]
fn a_drill_runs_nothing_that_the_restored_configuration_or_catalogs_name() {
    let cluster = local(Cluster::new("drill_disarmed"));
    let trace = cluster.directory().join("trace");
    cluster.sql("alter system set session_preload_libraries = 'auto_explain'");
    cluster.sql("alter database postgres set work_mem = '5MB'");
    cluster.sql("alter role all set session_preload_libraries = 'auto_explain'");
    cluster.sql("alter role postgres set session_preload_libraries = 'auto_explain'");
    // pg_amcheck makes an extension.
    cluster.sql(&format!(
        "create function trap() returns event_trigger language plpgsql as
             $$ begin copy (select 1) to program 'touch {}'; end $$;
         create event trigger trap on ddl_command_start execute function trap();
         alter event trigger trap enable always",
        trace.display()
    ));
    cluster.set(
        "nrt_backup.drill_query",
        "select format('%s/%s/%s/%s', current_setting('session_preload_libraries'), \
            current_setting('local_preload_libraries'), current_setting('jit'), \
            (select count(*) from pg_db_role_setting))",
    );
    cluster.reload();
    cluster.value("select nrt_backup_now('full')");
    archive_segment(&cluster);
    drill_now(&cluster).expect("it succeeds");
    assert_eq!(newest(&cluster, "query_result"), "//off/0");
    assert!(!trace.exists());
    // The original keeps all of it.
    assert_eq!(cluster.value("select count(*) from pg_db_role_setting"), "3");
    assert_eq!(
        cluster.value("select evtenabled from pg_event_trigger where evtname = 'trap'"),
        "A"
    );
}

#[test]
fn a_drill_for_which_there_is_no_room_is_not_begun() {
    if !is_root() {
        return;
    }
    let cluster = local(Cluster::new("drill_room").repository_on_tmpfs(64));
    cluster.set("nrt_backup.drill_directory", &cluster.repository().display().to_string());
    cluster.reload();
    let words = failure(&cluster);
    assert!(words.contains("there is no room for a drill in"), "{words}");
    assert!(words.contains("of 64 MB are free"), "{words}");
    assert_eq!(newest(&cluster, "status, restored_bytes is null"), "failed t");
    let place = cluster.repository().join(format!("nrt-drill-{}", identifier(&cluster)));
    assert!(!place.exists());

    // Nor one in what is backed up.
    let inside = cluster.data().join("base");
    cluster.set("nrt_backup.drill_directory", &inside.display().to_string());
    cluster.reload();
    let words = failure(&cluster);
    assert!(words.contains("drills cannot restore into"), "{words}");

    let outside = cluster.directory().join("outside");
    cluster.installation().private_directory(&outside).expect("the directory is ours");
    cluster.set("nrt_backup.drill_directory", &outside.display().to_string());
    cluster.reload();
    drill_now(&cluster).expect("there is room");
    assert!(fs::read_dir(&outside).expect("it stays").next().is_none());
}

fn identifier(cluster: &Cluster) -> String {
    cluster.value("select system_identifier from pg_control_system()")
}

#[test]
fn a_drill_does_not_replay_into_the_tablespaces_of_the_original() {
    let cluster = local(Cluster::new("drill_space"));
    cluster.sql(&format!("create tablespace space location '{}'", space(&cluster).display()));
    cluster.sql("create table t tablespace space as select generate_series(1, 1000) as i");
    cluster.sql("delete from t where i > 500");
    archive_segment(&cluster);
    cluster.sql("checkpoint");
    let before = contents(&space(&cluster));
    let words = failure(&cluster);
    assert!(words.contains(&space(&cluster).display().to_string()), "{words}");
    assert!(contents(&space(&cluster)) == before);
    cluster.value("select nrt_backup_now()");
    drill_now(&cluster).expect("the backup has the tablespace");
    assert!(contents(&space(&cluster)) == before);

    // One that is gone again: its directory may serve something else by now.
    let other = cluster.directory().join("other");
    cluster.installation().private_directory(&other).expect("the directory is ours");
    cluster.sql(&format!("create tablespace gone location '{}'", other.display()));
    cluster.sql("drop tablespace gone");
    archive_segment(&cluster);
    let changed = || fs::metadata(&other).and_then(|it| it.modified()).expect("it is there");
    let before = changed();
    let words = failure(&cluster);
    assert!(words.contains(&other.display().to_string()), "{words}");
    assert_eq!(changed(), before, "something was in it meanwhile");
    cluster.value("select nrt_backup_now()");
    drill_now(&cluster).expect("the backup is later");
}

#[test]
fn a_killed_drill_has_failed_and_nothing_is_left_of_it() {
    let cluster = local(Cluster::new("drill_killed").setting("nrt_backup.drill_query", WAITING));
    let ask = || cluster.try_sql("set statement_timeout = 100; select nrt_drill_now()");
    assert!(ask().expect_err("it takes longer").to_string().contains("statement timeout"));
    wait_for_hold(&cluster);
    // Who has asked does not wait any more, but the drill goes on, and is the only one.
    assert!(ask().is_err());
    assert_eq!(cluster.value("select drilling from nrt.status"), "t");
    assert_eq!(newest(&cluster, "drill, status, ended is null"), "1 running t");
    assert!(cluster.state_directory().join("drill").exists());
    // Backups go on beside it.
    cluster.value("select nrt_backup_now()");

    let [drill] = &*drills(&cluster) else { panic!("{:?}", drills(&cluster)) };
    kill(drill.pid, Signal::KILL);
    cluster.wait_for("select status from nrt.drills", "failed", SOON);
    let critical = wait_for_health(&cluster, "drill", "critical");
    assert!(critical.contains("came to no result: it was ended by signal 9"), "{critical}");
    nothing_is_left(&cluster);
    cluster.assert_no_orphans();

    // With everything that holds it together.
    assert!(ask().is_err());
    wait_for_hold(&cluster);
    for process in processes(&cluster, DRILL) {
        kill(process.pid, Signal::KILL);
    }
    cluster.wait_for("select status from nrt.drills limit 1", "failed", SOON);
    nothing_is_left(&cluster);

    // One that is told to end cleans up itself.
    assert!(ask().is_err());
    wait_for_hold(&cluster);
    kill(drills(&cluster)[0].pid, Signal::TERM);
    cluster.wait_for("select status from nrt.drills limit 1", "failed", SOON);
    assert_eq!(newest(&cluster, "message"), "the drill was stopped");
    assert!(!is_left(&cluster));

    cluster.unset("nrt_backup.drill_query");
    cluster.reload();
    drill_now(&cluster).expect("nothing is in its way");
    wait_for_health(&cluster, "drill", "ok");
}

#[test]
fn a_shutdown_does_not_wait_for_a_drill() {
    let cluster = local(Cluster::new("drill_shutdown").setting("nrt_backup.drill_query", WAITING));
    for (number, how) in [(1, Some(Shutdown::Fast)), (2, Some(Shutdown::Immediate)), (3, None)] {
        let asked = cluster.try_sql("set statement_timeout = 100; select nrt_drill_now()");
        assert!(asked.is_err());
        wait_for_hold(&cluster);
        match how {
            Some(how) => {
                let took = cluster.stop(how);
                assert!(took < Duration::from_secs(10), "{how:?}: {took:?}");
            }
            None => cluster.crash(),
        }
        // It is given two seconds to clean up.
        wait_until("the drill is gone", SOON, || drills(&cluster).is_empty());
        cluster.start();
        wait_for_backups(&cluster, 1);
        nothing_is_left(&cluster);
        cluster.assert_no_orphans();
        let newest = newest(&cluster, "drill, status, message");
        let expected = "failed the server, or its nrt_backup worker, ended before the drill did";
        assert_eq!(newest, format!("{number} {expected}"));
        let words = wait_for_health(&cluster, "drill", "warning");
        assert!(words.contains("proved nothing"), "{words}");
    }
}

#[test]
fn a_drill_starts_on_its_schedule() {
    let cluster = local(Cluster::new("drill_schedule"));
    let row = "select crontab, next_run is null from nrt.schedule where type = 'drill'";
    assert_eq!(cluster.sql(row), [["", "t"]]);
    cluster.set("nrt_backup.drill_schedule", "0 0 29 2 *");
    cluster.reload();
    cluster.wait_for(row, "0 0 29 2 * f", SOON);
    let words = wait_for_health(&cluster, "drill", "ok");
    assert!(words.contains("the first is due at "), "{words}");
    cluster.set("nrt_backup.drill_schedule", "* * * * *");
    cluster.reload();
    let started = "select trigger, status from nrt.drills order by drill limit 1";
    cluster.wait_for(started, "schedule succeeded", SOON * 2);
    // While backups are paused, nobody drills by himself.
    cluster.sql("select nrt_pause('backups')");
    cluster.wait_for("select drilling from nrt.status", "f", SOON);
    let number = newest(&cluster, "drill");
    cluster.set("nrt_backup.drill_schedule", "off");
    cluster.reload();
    cluster.wait_for(row, " t", SOON);
    assert_eq!(newest(&cluster, "drill"), number);
    drill_now(&cluster).expect("who asks gets one");
}

#[test]
fn what_cannot_be_restored_from_is_said() {
    let cluster = local(Cluster::new("drill_unusable"));
    let nowhere = Path::new("/no/such/rclone.conf");
    cluster.set("nrt_backup.rclone_config", &nowhere.display().to_string());
    cluster.reload();
    let words = failure(&cluster);
    assert!(words.contains("rclone.conf"), "{words}");
    cluster.stop(Shutdown::Fast);
    let (code, text) = nrt_backup(&cluster, &["drill"]);
    assert!(code == 2 && text.contains("the server does not run"), "{code}: {text}");
}

/// A drill reaches what a restore would reach: a hole in the WAL is a failure of it, in the same words.
#[test]
fn a_drill_over_a_hole_fails_as_a_restore_would() {
    let remote = Remote::new("hole", Kind::Local);
    let cluster = shipping(Cluster::with_identity("drill-hole"), &remote);
    cluster.allow("nrt_backup drill");
    let segments: Vec<String> = (0..3).map(|_| archive_segment(&cluster)).collect();
    wait_for_shipped(&cluster);
    let is_there =
        |segment: &String| remote.list(NAME).iter().any(|it| it.contains(&format!("/{segment}-")));
    wait_until("the segments are archived there", SOON, || segments.iter().all(is_there));
    let end: Lsn = cluster.value("select shipped_lsn from nrt.status").parse().expect("an LSN");
    // A hole behind the last promise would be the end of the WAL.
    let promised = || owner_of(&remote).shipped.is_some_and(|it| it.flushed >= end);
    wait_until("it is promised", SOON, promised);
    let there = remote.files(NAME).join("repository/archive/main");
    for archive in [&there, &cluster.repository().join("archive/main")] {
        let files = contents(archive).into_keys().filter(|path| path.contains(&segments[1]));
        let files: Vec<String> = files.collect();
        assert_eq!(files.len(), 1, "{files:?}");
        fs::remove_file(archive.join(&files[0])).expect("it is there");
    }
    let message = failure(&cluster);
    assert!(message.contains("WAL is missing from"), "{message}");
    let words = message.split("WAL is missing from").nth(1).expect("it is there");
    let range: String = words.chars().take_while(|it| *it != ',').collect();
    let remote_arguments = crate::restoring::from(&remote);
    let arguments = crate::restoring::texts(&remote_arguments);
    let place = crate::restoring::Place::new("hole-restored");
    let (code, text) = place.run("plan", &[&arguments[..], &["--latest"]].concat());
    assert!(code == 1 && text.contains(&range), "{code}: {text}, not {range}");
    assert_eq!(newest(&cluster, "status"), "failed");
    // A backup behind it ends that.
    cluster.sql("select nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    wait_for_shipped(&cluster);
    drill_now(&cluster).expect("nothing is missing behind the new backup");
}
