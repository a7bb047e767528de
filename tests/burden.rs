//! Shows that the extension never hurts the server that it lives in: it waits for no lock, leaves
//! another archiver alone, and its backups neither stop by a time zone nor take the machine.

use std::fs;

use crate::protected::{SOON, archive_segment, protected, quiet, started, wait_for_health};
use nrt_tests::{Cluster, Shutdown};

/// How far the time in the newest backup's label is ahead of its start in UTC, in minutes.
const LABEL_AHEAD: &str = "select round(extract(epoch from
     to_timestamp(left(right(label, 16), 15), 'YYYYMMDD-HH24MISS')::timestamp
       - started_at at time zone 'UTC') / 60) from nrt.backups order by started_at desc limit 1";

#[test]
fn a_label_that_lies_ahead_stops_no_backup() {
    let new_york = quiet(Cluster::new("zones")).setting("timezone", "UTC");
    let cluster = started(new_york.environment("TZ", "America/New_York"));
    assert_eq!(cluster.value(LABEL_AHEAD), "0", "pgBackRest runs in UTC, wherever the server is");

    // Somebody takes one by hand, in a time zone 14 hours east.
    let config = cluster.state_directory().join("pgbackrest.conf");
    let mut by_hand = cluster.installation().command("pgbackrest");
    by_hand.env("TZ", "Etc/GMT-14").arg(format!("--config={}", config.display()));
    by_hand.args(["--stanza=main", "--type=full", "backup"]);
    let done = by_hand.output().expect("pgbackrest is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    cluster.sql("select * from nrt_check()");
    cluster.wait_for("select count(*) from nrt.backups", "2", SOON);
    for kind in ["incr", "full", "diff"] {
        cluster.sql(&format!("select nrt_backup_now('{kind}')"));
        assert_eq!(
            cluster.value(
                "select string_agg(type, ' ' order by label desc) from nrt.backups
                            where label = (select max(label) from nrt.backups)"
            ),
            kind,
            "it is the newest by its label, too"
        );
    }
}

#[test]
fn a_lock_on_a_shared_catalog_holds_nothing_up() {
    let cluster = protected("locked");
    let mut session = cluster.connect("postgres", "postgres").expect("a session");
    let mut run = |sql: &str| {
        let done = session.simple_query(sql);
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    run("set statement_timeout = '60s'");
    for catalog in ["pg_database", "pg_authid"] {
        // Nobody else can log in now. The worker serves this one, and loses none of what it knows.
        run("begin");
        run(&format!("lock table {catalog} in access exclusive mode"));
        run("select * from nrt_check()");
        run(
            "select 1 / count(*) from nrt.health where check_name = 'database' and severity = 'ok'",
        );
        run("commit");
    }
    drop(session);
    let user = fs::read_to_string(cluster.state_directory().join("pgbackrest.conf"));
    assert!(user.expect("is there").contains("pg1-user=postgres"));
}

/// Settings of a library that archives into a directory.
fn with_library(cluster: Cluster) -> Cluster {
    let directory = cluster.directory().join("library");
    fs::create_dir(&directory).expect("the directory is ours");
    if let Some(account) = cluster.installation().account() {
        std::os::unix::fs::chown(&directory, Some(account.uid), Some(account.gid)).expect("ours");
    }
    let directory = directory.display().to_string();
    cluster
        .setting("archive_library", "basic_archive")
        .setting("basic_archive.archive_directory", &directory)
}

#[test]
fn an_archive_library_goes_on_archiving() {
    let cluster = with_library(quiet(Cluster::new("library"))).setting("archive_mode", "on");
    // pgBackRest takes no backup there, and says so.
    cluster.allow("archive_command");
    let cluster = cluster.started();
    cluster.sql("create extension nrt_backup");
    assert_eq!(cluster.value("show archive_command"), "");
    archive_segment(&cluster);
    let archived = fs::read_dir(cluster.directory().join("library")).expect("is there");
    assert!(archived.count() > 0, "the library has archived");
    let words = wait_for_health(&cluster, "archiving", "critical");
    assert!(words.contains("archive_library is \"basic_archive\""), "{words}");
    cluster.stop(Shutdown::Fast);
    // Where archiving was not switched on, we do not switch the library on.
    cluster.unset("archive_mode");
    cluster.start();
    assert_eq!(cluster.value("show archive_mode"), "off");
}

#[test]
fn an_archive_library_that_is_set_later_is_told_at_once() {
    let cluster = protected("librarian");
    let cluster = with_library(cluster);
    cluster.allow("archive_library");
    cluster.reload();
    let refused = cluster.installation().major() >= 16;
    let words = wait_for_health(&cluster, "archiving", "critical");
    assert_eq!(words.contains("its archiver ends again and again"), refused, "{words}");
    // As the hint says it: the library works.
    cluster.set("archive_command", "");
    cluster.reload();
    archive_segment(&cluster);
    // Or pgBackRest does, as before.
    cluster.unset("archive_command");
    cluster.unset("archive_library");
    cluster.restart();
    let segment = archive_segment(&cluster);
    wait_for_health(&cluster, "archiving", "ok");
    let listed = cluster.pgbackrest(&["--stanza=main", "repo-ls", "--recurse", "archive/main"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&segment), "{listed:?}");
}

#[test]
fn wal_that_cannot_be_archived_is_let_go_above_the_limit_and_said_so() {
    let cluster = started(
        quiet(Cluster::new("limit"))
            .setting("nrt_backup.archive_queue_max", "48MB")
            .setting("wal_keep_size", "0"),
    );
    for words in ["nrt_backup health: ", "nrt_backup job ", "archiving write-ahead log file"] {
        cluster.allow(words);
    }
    let archive = cluster.repository().join("archive");
    let set = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&archive, permissions).expect("the directory is ours");
    };
    let waiting = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
    let switch = "select pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()";
    set(0o000);
    for _ in 0..3 {
        cluster.sql(switch);
    }
    let words = wait_for_health(&cluster, "archiving", "critical");
    assert!(words.contains("could not be archived"), "three may wait: {words}");
    assert_eq!(cluster.value(waiting), "3");
    let first =
        cluster.value("select min(name) from pg_ls_archive_statusdir() where name like '%.ready'");
    let first = first.trim_end_matches(".ready");
    for _ in 0..4 {
        cluster.sql(switch);
    }
    cluster.wait_for(waiting, "3", 2 * SOON);
    cluster.sql("select * from nrt_check()");
    let words = wait_for_health(&cluster, "archiving", "critical");
    assert!(words.contains(&format!("4 finished segments of WAL ({first} to ")), "{words}");
    assert!(cluster.log().contains("is let go and NOT archived"));
    // The archiver has succeeded, by its own account. Health is not fooled by that, nor by the
    // segments that follow.
    set(0o750);
    cluster.wait_for(waiting, "0", 2 * SOON);
    archive_segment(&cluster);
    let words = wait_for_health(&cluster, "archiving", "critical");
    assert!(words.contains("were let go and are in no archive"), "{words}");
    cluster.sql("select * from nrt_check()");
    wait_for_health(&cluster, "wal_gap", "critical");
    cluster.sql("select nrt_backup_now('full')");
    wait_for_health(&cluster, "archiving", "ok");
    wait_for_health(&cluster, "wal_gap", "ok");
}

#[test]
fn a_server_without_a_place_for_the_worker_says_so_and_archives_nothing() {
    // The launcher of logical replication takes the only one.
    let cluster = quiet(Cluster::new("crowded")).setting("max_worker_processes", "1").started();
    cluster.allow("the nrt_backup worker could not be registered");
    cluster.sql("create extension nrt_backup");
    let health = cluster.sql("select severity, message, hint from nrt.health");
    let [row] = &health[..] else { panic!("{health:?}") };
    assert_eq!(row[0], "critical");
    assert!(row[1].contains("all of max_worker_processes, 1"), "{row:?}");
    assert!(row[2].starts_with("Raise max_worker_processes"), "{row:?}");
    let refused = cluster.try_sql("select nrt_backup_now()").expect_err("there is no worker");
    assert!(refused.hint.contains("max_worker_processes"), "{refused}");
    // Nobody would make a stanza: WAL would fill the disk.
    assert_eq!(cluster.value("show archive_mode"), "off");

    cluster.unset("max_worker_processes");
    cluster.restart();
    crate::protected::wait_for_backups(&cluster, 1);
    // Now there are backups that need the WAL, and a stanza.
    cluster.set("max_worker_processes", "1");
    cluster.restart();
    archive_segment(&cluster);

    // As pg_basebackup leaves the directory of a standby: the file names the primary's stanza.
    cluster.stop(Shutdown::Fast);
    fs::remove_file(cluster.state_directory().join("pgsql_tmp_instance.json")).expect("is there");
    cluster.start();
    assert_eq!(cluster.value("show archive_mode"), "off");
}

#[test]
fn a_role_of_the_operators_name_that_somebody_made_is_not_trusted() {
    let cluster = Cluster::new("impostor").setting("nrt_backup.pgbackrest", "no-such-program");
    cluster.allow("nrt_backup health: ");
    cluster.allow("has members already");
    let cluster = cluster.started();
    cluster.sql("create role nrt_backup_operator login createdb");
    cluster.sql("create role mallory in role nrt_backup_operator");
    let refused = cluster.try_sql("create extension nrt_backup").expect_err("it may log in");
    assert!(refused.message.contains("exists, and may do more"), "{refused}");
    let (_, rest) = refused.hint.split_once(": ").expect("what to do");
    cluster.sql(rest.split_once('.').expect("a sentence").0);
    cluster.sql("create extension nrt_backup");
    assert!(cluster.log().contains("who may take backups now: mallory"));
}
