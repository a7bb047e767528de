//! Shows that the extension never hurts the server that it lives in: it waits for no lock, leaves
//! another archiver alone, and its backups neither stop by a time zone nor take the machine.

mod protected;

use std::fs;

use nrt_tests::{Cluster, Shutdown};
use protected::{SOON, archive_segment, protected, quiet, started, wait_for_health};

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
