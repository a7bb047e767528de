//! Copies of a server know that they are copies: nothing of the original's state is used, and
//! nothing goes into its repository or over its remote.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::offsite::{
    AGAIN, NAME, abandoned_backup, allow_faults, contents, copied, nrt_backup, owner_of,
    place_for_copies, restored_by_pgbackrest, shipped_within, shipping, told, wait_for_offsite,
    wait_for_shipped, words,
};
use crate::protected::{SOON, archive_segment, quiet, wait_for_backups, wait_for_health};
use crate::restoring::{Place, from, texts};
use nrt_tests::{Cluster, Kind, Remote, Restore, Shutdown};

/// The name of a cluster's instance.
fn instance(cluster: &Cluster) -> String {
    let text = fs::read(cluster.state_directory().join("instance.json")).expect("it is named");
    let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    value["id"].as_str().expect("a name").to_string()
}

/// Whether a repository's archive has a file, at any place.
fn archived(cluster: &Cluster, name: &str) -> bool {
    fn is_below(directory: &Path, name: &str) -> bool {
        fs::read_dir(directory).into_iter().flatten().flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with(name)
                || entry.path().is_dir() && is_below(&entry.path(), name)
        })
    }
    is_below(&cluster.repository().join("archive"), name)
}

#[test]
fn a_promoted_standby_and_a_rewound_primary_use_nothing_of_each_other() {
    let remote = Remote::new("copies", Kind::Local);
    let primary = quiet(Cluster::new("primary")).setting("wal_log_hints", "on");
    let primary = shipping(primary.setting("wal_keep_size", "256MB"), &remote);
    primary.sql("create table t as select 1 as i");
    wait_for_shipped(&primary);
    let first = instance(&primary);

    let standby = quiet(Cluster::standby_of(&primary, "standby"));
    let bound = standby.state_directory().join("pgsql_tmp_instance.json");
    assert!(!bound.exists(), "pg_basebackup copies it");
    assert_eq!(instance(&standby), first);
    allow_faults(&standby);
    let standby = remote.configure(standby.setting("wal_log_hints", "on")).started();
    standby.wait_for("select count(*) from t", "1", SOON);
    primary.sql("insert into t values (2)");
    standby.wait_for("select count(*) from t", "2", SOON);
    assert_eq!(standby.value("select pg_promote()"), "t");

    // Its own repository, and none of the primary's jobs.
    wait_for_backups(&standby, 1);
    let second = instance(&standby);
    assert_ne!(second, first);
    assert_eq!(standby.value("select min(job) || ' ' || count(*) from nrt.backup_history"), "1 1");
    archive_segment(&standby);
    assert!(archived(&standby, "00000002.history"));
    assert!(!archived(&primary, "00000002.history"), "it is in the primary's repository");
    assert!(!archived(&primary, "00000002"), "its WAL is in the primary's repository");
    // The primary lives, and keeps the remote.
    let told = wait_for_health(&standby, "remote", "critical");
    assert!(told.contains("another instance"), "{told}");
    primary.sql("insert into t values (3)");
    wait_for_shipped(&primary);
    assert_eq!(owner_of(&remote).instance, first);

    primary.stop(Shutdown::Fast);
    standby.sql("insert into t values (4)");
    let rewound = standby
        .client("pg_rewind")
        .arg(format!("--target-pgdata={}", primary.data().display()))
        .arg("--source-server=dbname=postgres")
        .output()
        .expect("it is installed");
    assert!(rewound.status.success(), "{}", words(&rewound));
    assert_eq!(instance(&primary), second, "pg_rewind brings the other one's");
    assert!(!primary.state_directory().join("pgsql_tmp_instance.json").exists());
    standby.stop(Shutdown::Fast);
    // As it is, without a standby's signal: only its state is looked at.
    primary.start();
    wait_for_backups(&primary, 1);
    let third = instance(&primary);
    assert!(third != first && third != second);
}

/// Copies a directory as a snapshot of its disk would.
fn copy(cluster: &Cluster, from: &Path, to: &Path) {
    let mut command = cluster.installation().command("cp");
    let output = command.args(["-a", "--reflink=auto"]).arg(from).arg(to).output();
    assert!(output.expect("it is installed").status.success());
}

#[test]
fn an_abandoned_life_is_kept_apart_from_the_one_that_was_put_back() {
    let remote = Remote::new("rollback", Kind::Local);
    let cluster = shipping(Cluster::new("put-back"), &remote);
    cluster.sql("create table t as select 0 as i");
    archive_segment(&cluster);
    wait_for_shipped(&cluster);
    let first = instance(&cluster);

    // A snapshot of both disks.
    cluster.stop(Shutdown::Fast);
    let (_directory, place) = place_for_copies();
    copy(&cluster, &cluster.data(), &place.join("data"));
    copy(&cluster, &cluster.repository(), &place.join("repository"));

    // Life goes on: segments, a backup, and a tail.
    cluster.start();
    cluster.sql("insert into t select -1 from generate_series(1, 1000)");
    archive_segment(&cluster);
    cluster.sql("select nrt_backup_now('full')");
    cluster.sql("insert into t select -2 from generate_series(1, 1000)");
    archive_segment(&cluster);
    cluster.sql("insert into t values (-3)");
    wait_for_shipped(&cluster);
    wait_for_offsite(&cluster, 2);

    // Both are put back, and another life begins.
    cluster.stop(Shutdown::Fast);
    for (from, to) in [("data", cluster.data()), ("repository", cluster.repository())] {
        fs::remove_dir_all(&to).expect("it is ours");
        copy(&cluster, &place.join(from), &to);
    }
    cluster.start();
    for number in 1..=5 {
        cluster.sql(&format!("insert into t select {number} from generate_series(1, 1000)"));
        archive_segment(&cluster);
    }
    let message = wait_for_health(&cluster, "remote", "critical");
    assert!(message.contains("another instance") || message.contains("put back"), "{message}");
    // The life before is silent: it takes a minute to be sure.
    let shipped = shipped_within(&cluster, AGAIN + Duration::from_secs(60));
    eprintln!("the new life was off-site after {shipped:?}");
    assert_ne!(instance(&cluster), first);
    cluster.sql("insert into t values (6)");
    wait_for_shipped(&cluster);
    wait_for_health(&cluster, "mirror", "ok");
    assert_eq!(told(&cluster).backups.len(), 1, "the abandoned backup is not listed");
    let superseded = remote.list(NAME);
    assert!(superseded.iter().any(|it| it.starts_with("superseded/")), "{superseded:?}");

    // What is there brings back the new life, and nothing of the other one.
    let (_copies, copy) = copied(&remote);
    let restored = Restore::new("new-life", &copy).run();
    let counted = "select string_agg(i || ':' || n, ' ' order by i)
                   from (select i, count(*) as n from t group by i) c";
    assert_eq!(restored.value(counted), "0:1 1:1000 2:1000 3:1000 4:1000 5:1000 6:1");
    drop(restored);
    // The other one's backup is whole where it was moved to.
    let place = fs::read_dir(copy.join("superseded")).expect("it is there");
    let place = place.flatten().next().expect("one").path();
    let label = abandoned_backup(&place);
    let restored = restored_by_pgbackrest(
        "abandoned",
        &place.join("repository"),
        &[&format!("--set={label}"), "--type=immediate", "--target-action=promote"],
    );
    restored.wait_for("select count(*) filter (where i = -1) from t", "1000", SOON);
}

/// The disk of the data is put back to a snapshot, the repository's is not: it holds WAL of a life that
/// is not this server's any more.
#[test]
fn data_that_is_put_back_without_its_repository_ships_nothing_of_the_life_before() {
    let remote = Remote::new("half", Kind::Local);
    let cluster = shipping(Cluster::new("half-back"), &remote);
    cluster.sql("create table t as select 0 as i");
    archive_segment(&cluster);
    wait_for_shipped(&cluster);

    cluster.stop(Shutdown::Fast);
    let (_directory, place) = place_for_copies();
    copy(&cluster, &cluster.data(), &place.join("data"));
    cluster.start();
    for _ in 0..2 {
        cluster.sql("insert into t select -1 from generate_series(1, 1000)");
        archive_segment(&cluster);
    }
    wait_for_shipped(&cluster);

    cluster.stop(Shutdown::Fast);
    fs::remove_dir_all(cluster.data()).expect("it is ours");
    copy(&cluster, &place.join("data"), &cluster.data());
    cluster.start();
    cluster.sql("insert into t select 1 from generate_series(1, 1000)");
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x'), pg_switch_wal()");
    cluster.sql("insert into t select 2 from generate_series(1, 1000)");
    // The archive has other segments of these names, which pgBackRest does not replace.
    let message = wait_for_health(&cluster, "archiving", "critical");
    assert!(message.contains("with a different checksum"), "{message}");
    let message = wait_for_health(&cluster, "remote", "critical");
    assert!(message.contains("of another life of this cluster"), "{message}");
    let before = contents(&remote.files(NAME));
    cluster.sql("insert into t select 3 from generate_series(1, 1000)");
    // Also when the server has come past the segments of the other life.
    for _ in 0..3 {
        cluster.sql("select pg_logical_emit_message(false, 'nrt', 'x'), pg_switch_wal()");
    }
    cluster.sql("select nrt_check()");
    wait_for_health(&cluster, "remote", "critical");
    assert_eq!(cluster.value("select shipped_lsn is null from nrt.status"), "t");
    assert!(contents(&remote.files(NAME)) == before, "something was shipped");

    // As the hint says.
    let hint = cluster.value("select hint from nrt.health where check_name = 'remote'");
    let kept = cluster.directory().join("kept");
    cluster.installation().private_directory(&kept).expect("the directory is ours");
    for kind in ["archive", "backup"] {
        let directory = cluster.repository().join(kind).join("main");
        assert!(hint.contains(&directory.display().to_string()), "{hint}");
        fs::rename(directory, kept.join(kind)).expect("it is there");
    }
    let (code, text) = nrt_backup(&cluster, &["takeover", "--set-aside"]);
    assert_eq!(code, 0, "{text}");
    wait_for_backups(&cluster, 1);
    wait_for_offsite(&cluster, 1);
    wait_for_shipped(&cluster);
    for check in ["archiving", "remote", "shipping", "mirror", "wal_gap"] {
        wait_for_health(&cluster, check, "ok");
    }
    cluster.vanish();
    let restored = Place::new("half-restored").restore(&texts(&from(&remote)));
    let counted = "select string_agg(i || ':' || n, ' ' order by i)
                   from (select i, count(*) as n from t group by i) c";
    assert_eq!(restored.value(counted), "0:1 1:1000 2:1000 3:1000");
}
