//! What an operator does about what is off-site: compares it, expires it, limits it, keeps others
//! from deleting, takes it over, and restores it with other tools than ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::offsite::{
    AGAIN, NAME, all_well, contents, copied, kill_shipping, nrt_backup, owner_of, processes,
    restored_by_pgbackrest, shipping, started, told, wait_for_offsite, wait_for_shipped,
};
use crate::protected::{
    SOON, archive_segment, own_configuration, wait_for_backups, wait_for_health,
};
use nrt_core::lsn::Lsn;
use nrt_core::offsite::Phase;
use nrt_tests::{Cluster, Kind, Remote, Restore, Shutdown, inspect, wait_until};
use serde_json::Value;

/// A file of the repository whose path holds these parts.
fn one_with(cluster: &Cluster, parts: &[&str]) -> String {
    let all = contents(&cluster.repository());
    let found = all.keys().find(|path| parts.iter().all(|part| path.contains(part)));
    found.unwrap_or_else(|| panic!("none has {parts:?}: {:?}", all.keys())).clone()
}

/// The labels of the first and the last full backup.
fn oldest_and_newest(cluster: &Cluster) -> [String; 2] {
    ["min", "max"].map(|which| {
        cluster.value(&format!("select {which}(label) from nrt.backups where type = 'full'"))
    })
}

/// Expires all but the newest full backup, as an operator would: what goes on the remote, too, is what
/// the configuration lets go.
fn expire(cluster: &Cluster) {
    let retention = "exclude=nrt_backup/\n[global:expire]\nrepo1-retention-full=1";
    own_configuration(cluster, &cluster.repository(), retention);
    cluster.reload();
    let output = cluster.pgbackrest(&[
        "--stanza=main",
        "--repo1-retention-full-type=count",
        "--repo1-retention-full=1",
        "expire",
    ]);
    assert!(output.status.success(), "{}", crate::offsite::words(&output));
}

// ------------------------------------------------------------------------------ comparing

#[test]
fn a_check_sends_again_what_is_missing_and_names_what_differs() {
    let remote = Remote::new("check", Kind::Local);
    let cluster = shipping(Cluster::with_identity("check"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    let segment = archive_segment(&cluster);
    let there = remote.files(NAME).join("repository");
    let segment = one_with(&cluster, &["archive/main", &segment]);
    let is_same = |path: &str| {
        fs::read(there.join(path)).ok() == fs::read(cluster.repository().join(path)).ok()
    };
    let back = |paths: &[&str]| {
        wait_until("it is back", SOON, || paths.iter().all(|path| is_same(path)));
    };
    back(&[&segment]);
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert!(code == 0 && text.contains("files are the same"), "{code}: {text}");

    // Gone: a part of a backup, a segment, and what lists the backups.
    let data = one_with(&cluster, &["backup/main/2", "/bundle/"]);
    let missing = [&data, &segment, "backup/main/backup.info"];
    for path in missing {
        fs::remove_file(there.join(path)).expect("it was sent");
    }
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert_eq!(code, 1, "{text}");
    for path in missing {
        assert!(text.contains(path), "{path}: {text}");
    }
    back(&missing);

    // Cut off.
    let cut = [&data, "archive/main/archive.info.copy"];
    for path in cut {
        let file = fs::File::options().write(true).open(there.join(path)).expect("it is there");
        file.set_len(10).expect("it is longer");
    }
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert!(code == 1 && cut.iter().all(|path| text.contains(path)), "{code}: {text}");
    back(&cut);

    // One byte is another one: the hash in the segment's name tells that the remote's is damaged.
    let mut damaged = fs::read(there.join(&segment)).expect("it is there");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(there.join(&segment), &damaged).expect("the directory is ours");
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert!(code == 2 && text.contains(&segment), "{code}: {text}");
    assert!(text.contains("damaged on the remote") && text.contains("check --repair"), "{text}");
    let message = wait_for_health(&cluster, "mirror", "critical");
    assert!(message.contains(&segment) && message.contains("damaged on the remote"), "{message}");
    assert_eq!(fs::read(there.join(&segment)).expect("it is there"), damaged);
    let (code, text) = nrt_backup(&cluster, &["check", "--repair"]);
    assert!(code == 1 && text.contains(&segment), "{code}: {text}");
    back(&[&segment]);
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert_eq!(code, 0, "{text}");
    all_well(&cluster);
    let (_directory, copy) = copied(&remote);
    assert_eq!(inspect(&copy).problems, [""; 0]);

    // Nobody would answer.
    cluster.sql("select nrt_pause('shipping')");
    wait_for_health(&cluster, "remote", "warning");
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert!(code == 2 && text.contains("paused") && text.contains("nrt_resume"), "{code}: {text}");
}

// ------------------------------------------------------------------------------ expiring

#[test]
fn backups_are_described_and_gone_when_they_are_expired() {
    let remote = Remote::new("expire", Kind::Local);
    let cluster = shipping(Cluster::with_identity("expire"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    for kind in ["incr", "diff", "full", "incr"] {
        cluster.sql(&format!("select nrt_backup_now('{kind}')"));
    }
    wait_for_offsite(&cluster, 5);
    wait_for_shipped(&cluster);
    let there = remote.files(NAME);
    for row in cluster.sql("select label, type, trigger from nrt.backup_history order by job") {
        let [label, kind, trigger] = &row[..] else { panic!("three columns") };
        is_described(&cluster, &there, label, kind, trigger);
    }

    // As README says, with what pgBackRest brings.
    archive_segment(&cluster);
    wait_until("the archive is there", SOON, || {
        let segments = |root: &Path| contents(&root.join("archive/main")).len();
        // The info file has a copy on both sides.
        segments(&there.join("repository")) == segments(&cluster.repository())
    });
    let (_directory, copy) = copied(&remote);
    let restored = restored_by_pgbackrest("by-hand", &copy.join("repository"), &[]);
    restored.wait_for("select pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.value("select count(*) from t"), "1000");
    drop(restored);

    let [oldest, _] = oldest_and_newest(&cluster);
    let segments = |root: PathBuf| -> Vec<String> { contents(&root).into_keys().collect() };
    let before = segments(there.join("repository/archive"));
    // What other lives have left: a full backup of the time of the first would be expired, one of the
    // second's not, and the last has the name of no moment.
    let places = ["20200101-000000", "20200101-000001", "20200101-000000-keep"];
    let places = places.map(|name| there.join("superseded").join(name));
    for (place, label) in places.iter().zip(["20200101-000000F", "20991231-000000F", "any"]) {
        let backup = place.join("repository/backup/main").join(label);
        fs::create_dir_all(&backup).expect("the directory is ours");
        fs::write(backup.join("backup.manifest"), "x").expect("the directory is ours");
        // The server's user deletes it.
        for directory in backup.ancestors().take_while(|it| **it != there) {
            cluster.installation().hand_over(directory).expect("it was just made");
        }
    }
    kill_shipping(&cluster);
    wait_for_shipped(&cluster);
    assert!(places.iter().all(|place| place.exists()));
    expire(&cluster);
    let here = segments(cluster.repository().join("archive"));
    assert!(here.len() < before.len(), "no WAL was expired: {here:?}");
    wait_until("it is gone off-site", AGAIN, || {
        let left = remote.list(NAME);
        !left.iter().any(|path| path.contains(&oldest) && !path.contains("history"))
            && segments(there.join("repository/archive")) == here
    });
    wait_until("the place of another life is gone", AGAIN, || {
        contents(&there.join("superseded")).len() == 2
    });
    assert!(places[1].exists() && places[2].exists());
    wait_for_offsite(&cluster, 2);
    wait_for_shipped(&cluster);
    let (_, text) = nrt_backup(&cluster, &["check"]);
    assert!(
        text.contains("superseded/20200101-000001: 1 byte in 1 file") && text.contains("-keep"),
        "{text}"
    );
    let left = contents(&there);
    let described = left.keys().filter(|path| path.ends_with("F.json")).count();
    assert_eq!(described, 1, "{:?}", left.keys());
    all_well(&cluster);
    let (_directory, copy) = copied(&remote);
    let found = inspect(&copy);
    assert_eq!((found.backups.len(), &found.problems[..]), (2, &[][..]));
    let restored = Restore::new("after-expire", &copy).run();
    assert_eq!(restored.value("select count(*) from t"), "1000");
}

/// Checks the description of a backup.
fn is_described(cluster: &Cluster, there: &Path, label: &str, kind: &str, trigger: &str) {
    let directory = match kind {
        "full" => "full-backups",
        "diff" => "differential-backups",
        _ => "incremental-backups",
    };
    let file = there.join(directory).join(format!("{label}.json"));
    wait_until("it is described", SOON, || file.exists());
    let text = fs::read_to_string(&file).expect("it is there");
    let it: Value = serde_json::from_str(&text).expect("it is JSON");
    for (field, expected) in [
        ("label", label),
        ("type", kind),
        ("trigger", trigger),
        ("stanza", "main"),
        ("system_identifier", &cluster.value("select system_identifier from pg_control_system()")),
    ] {
        assert_eq!(it[field], expected, "{field}: {text}");
    }
    assert_eq!(it["timeline"], 1, "{text}");
    let words = |field: &str| it[field].as_str().unwrap_or_else(|| panic!("no {field}: {text}"));
    let lsn = |field| words(field).parse::<Lsn>().expect("a position");
    assert!(Lsn(0) < lsn("start_lsn") && lsn("start_lsn") < lsn("stop_lsn"), "{text}");
    let time = |field| words(field).parse::<chrono::DateTime<chrono::Utc>>().expect("a time");
    assert!(time("start_time") <= time("stop_time"), "{text}");
    // pgBackRest does not tell repository_size of a block incremental backup.
    for field in ["size", "delta", "repository_delta"] {
        assert!(it[field].as_u64().is_some_and(|bytes| bytes > 0), "{field}: {text}");
    }
    for field in ["pgbackrest", "nrt_backup"] {
        assert!(words(field).contains('.'), "{field}: {text}");
    }
    assert_eq!(it["prior"].is_null(), kind == "full", "{text}");
}

#[test]
fn a_remote_that_may_not_delete_is_no_reason_to_stop() {
    let remote = Remote::behind_proxy("keeps", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("keeps"), &remote);
    let [oldest, _] = oldest_and_newest(&cluster);
    all_well(&cluster);
    remote.proxy().keep_all();
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    // The tail of a segment is of no use when that is archived.
    let segment = archive_segment(&cluster);
    let message = wait_for_health(&cluster, "mirror", "warning");
    assert!(message.contains("cannot be deleted") && message.contains("403"), "{message}");
    cluster.sql("select nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    let before = told(&cluster).deletions_pending;
    assert!(before > 0, "nothing is pending");
    expire(&cluster);
    wait_until("expired backups are pending, too", SOON, || {
        told(&cluster).deletions_pending > before
    });
    cluster.sql("insert into t values (1001)");
    wait_for_offsite(&cluster, 1);
    wait_for_shipped(&cluster);
    for check in ["remote", "shipping"] {
        wait_for_health(&cluster, check, "ok");
    }
    let (code, text) = nrt_backup(&cluster, &["status"]);
    assert!(code == 1 && text.contains("cannot be deleted"), "{code}: {text}");
    let left = remote.list(NAME);
    let has = |part: &str| left.iter().any(|path| path.contains(part));
    assert!(has(&format!("backup/main/{oldest}")), "{left:?}");
    assert!(has(&format!("wal-tail/00000001/{segment}")), "{left:?}");

    // What was refused is tried every five minutes, and by a new session at once.
    remote.proxy().mend();
    kill_shipping(&cluster);
    wait_until("it is gone off-site", AGAIN, || {
        let left = remote.list(NAME);
        let has = |part: &str| left.iter().any(|path| path.contains(part));
        !has(&oldest) && !has(&format!("wal-tail/00000001/{segment}"))
    });
    wait_for_shipped(&cluster);
    all_well(&cluster);
    assert_eq!(told(&cluster).deletions_pending, 0);

    // A check that comes while the remote refuses waits until that is back.
    remote.proxy().refuse();
    cluster.sql("insert into t values (1002)");
    wait_until("shipping fails", AGAIN, || told(&cluster).phase == Phase::Failing);
    let request = cluster.data().join("nrt_backup/compare");
    let (code, text) = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("a comparison is asked for", SOON, || request.exists());
            remote.proxy().mend();
        });
        nrt_backup(&cluster, &["check"])
    });
    assert_eq!(code, 0, "{text}");
    wait_for_shipped(&cluster);
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("after-keeps", &copy).run();
    assert_eq!(restored.value("select count(*) from t"), "1002");
}

// ------------------------------------------------------------------------------ what else goes there

#[test]
fn configuration_files_beside_the_data_directory_are_kept() {
    let remote = Remote::new("etc", Kind::Local);
    let cluster = Cluster::with_identity("etc");
    // As Debian has it.
    let etc = cluster.directory().join("etc");
    let write = |path: &str, text: &str| {
        let path = etc.join(path);
        fs::write(&path, text).expect("the directory is ours");
        cluster.installation().hand_over(&path).expect("it was just made");
    };
    for directory in [etc.clone(), etc.join("conf.d")] {
        cluster.installation().private_directory(&directory).expect("its parent is there");
    }
    for file in ["pg_hba.conf", "pg_ident.conf"] {
        let text = fs::read_to_string(cluster.data().join(file)).expect("initdb wrote it");
        write(file, &text);
        fs::remove_file(cluster.data().join(file)).expect("initdb wrote it");
    }
    fs::remove_file(cluster.data().join("postgresql.conf")).expect("initdb wrote it");
    let text = |path: PathBuf| path.display().to_string();
    write(
        "postgresql.conf",
        &format!(
            "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\ninclude_dir = 'conf.d'\n\
             include '../settings.conf'\nssl_key_file = '{}'\n",
            text(cluster.data()),
            text(etc.join("pg_hba.conf")),
            text(etc.join("pg_ident.conf")),
            text(etc.join("server.key")),
        ),
    );
    write("conf.d/memory.conf", "work_mem = '5MB'\n");
    write("conf.d/notes.txt", "nothing\n");
    write("server.key", "-----BEGIN PRIVATE KEY-----\n");
    let argument = format!("--config_file={}", text(etc.join("postgresql.conf")));
    let cluster = shipping(cluster.argument(&argument), &remote);
    assert_eq!(cluster.value("show work_mem"), "5MB");

    let there = remote.files(NAME).join("configuration");
    let below = |path: &Path| there.join(path.strip_prefix("/").expect("it is absolute"));
    let expected = [
        etc.join("conf.d/memory.conf"),
        etc.join("pg_hba.conf"),
        etc.join("pg_ident.conf"),
        etc.join("postgresql.conf"),
        cluster.directory().join("settings.conf"),
    ];
    wait_until("the list of files is there", SOON, || there.join("files.json").exists());
    for path in &expected {
        assert_eq!(fs::read(below(path)).ok(), fs::read(path).ok(), "{}", path.display());
    }
    let list = fs::read(there.join("files.json")).expect("it is there");
    let list: Vec<Value> = serde_json::from_slice(&list).expect("it is JSON");
    let mut paths: Vec<&str> = list.iter().filter_map(|it| it["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, expected.each_ref().map(|path| path.to_str().expect("it is text")));
    assert_eq!(contents(&there).len(), expected.len() + 1, "{:?}", contents(&there).keys());

    // A running session looks once a minute.
    fs::write(etc.join("conf.d/memory.conf"), "work_mem = '6MB'\n").expect("it is ours");
    kill_shipping(&cluster);
    wait_until("the change is there", SOON, || {
        fs::read(below(&expected[0])).is_ok_and(|text| text == b"work_mem = '6MB'\n")
    });
    // One that has left the configuration goes.
    fs::remove_file(&expected[0]).expect("it is there");
    kill_shipping(&cluster);
    wait_until("it is gone off-site", SOON, || !below(&expected[0]).exists());
    assert!(below(&etc.join("conf.d/.nrt_backup.directory")).exists());
    assert!(expected[1..].iter().all(|path| below(path).exists()));
    all_well(&cluster);
}

#[test]
fn a_portable_tar_is_a_repository_of_its_own() {
    let remote = Remote::new("tar", Kind::WebDav);
    let cluster = Cluster::with_identity("tar").setting("nrt_backup.portable_tar", "on");
    let cluster = shipping(cluster, &remote);
    let [oldest, _] = oldest_and_newest(&cluster);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    cluster.sql("select nrt_backup_now('full')");
    let [_, label] = oldest_and_newest(&cluster);
    cluster.sql("insert into t values (1001)");
    let path = |label: &str| remote.files(NAME).join(format!("full-backups/{label}.tar"));
    wait_until("the archives are there", AGAIN, || path(&label).exists() && path(&oldest).exists());
    let (directory, copy) = copied(&remote);
    let unpacked = directory.path().join("unpacked");
    cluster.installation().private_directory(&unpacked).expect("it was just made");
    let mut tar = cluster.installation().command("tar");
    tar.arg("--extract").arg("--directory").arg(&unpacked);
    tar.arg("--file").arg(copy.join(format!("full-backups/{label}.tar")));
    let output = tar.output().expect("tar is installed");
    assert!(output.status.success(), "{}", crate::offsite::words(&output));
    let set = format!("--set={label}");
    let restored = restored_by_pgbackrest("untarred", &unpacked, &[&set, "--type=immediate"]);
    restored.wait_for("select count(*) from t", "1000", SOON);
    drop(restored);

    expire(&cluster);
    wait_until("it goes with its backup", AGAIN, || !path(&oldest).exists());
    assert!(path(&label).exists());
    let left = remote.list(NAME);
    assert!(!left.iter().any(|path| path.contains(".partial")), "{left:?}");
    all_well(&cluster);
}

// ------------------------------------------------------------------------------ limits and owners

#[test]
fn the_bandwidth_is_limited() {
    const RATE: f64 = 512.0 * 1024.0;
    let remote = Remote::behind_proxy("narrow", Kind::WebDav);
    let cluster = Cluster::with_identity("narrow")
        // The same all day long, so that it does not matter when this runs.
        .setting("nrt_backup.bandwidth_limit", "00:00,512k 12:00,512k");
    let cluster = started(cluster, &remote);
    let sent = || remote.proxy().traffic().sent;
    wait_until("it begins", AGAIN, || sent() > 100_000);
    let (begin, before) = (Instant::now(), sent());
    wait_for_offsite(&cluster, 1);
    let (took, sent) = (begin.elapsed().as_secs_f64(), (sent() - before) as f64);
    let rate = sent / took;
    eprintln!("{sent} bytes in {took:.1} s: {rate:.0} a second");
    assert!(took > 2.0, "too little was sent to tell");
    assert!((0.4 * RATE..1.3 * RATE).contains(&rate), "{rate} bytes a second");
    // Another limit is another process.
    cluster.set("nrt_backup.bandwidth_limit", "20M");
    cluster.reload();
    wait_until("rclone is told", SOON, || !processes(&cluster, "--bwlimit 20M").is_empty());
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    all_well(&cluster);
}

#[test]
fn an_owner_that_is_gone_is_replaced() {
    let remote = Remote::new("gone", Kind::Local);
    let first = shipping(Cluster::with_identity("gone"), &remote);
    first.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&first);
    first.stop(Shutdown::Fast);
    let gone = owner_of(&remote);
    // Another machine gets the data and the repository.
    let second = Cluster::copy_of(&first, "successor");
    fs::remove_dir(second.repository()).expect("it is empty");
    let mut copy = second.installation().command("cp");
    copy.arg("-a").arg(first.repository()).arg(second.repository());
    assert!(copy.status().expect("cp is there").success());
    drop(first);
    let begin = Instant::now();
    let second = started(second, &remote);
    second.wait_for("select shipping from nrt.status", "fenced", SOON);
    let message = wait_for_health(&second, "remote", "critical");
    assert!(message.contains("another"), "{message}");
    second.sql("insert into t values (1001)");
    assert_eq!(owner_of(&remote), gone);
    second.wait_for("select shipping from nrt.status", "shipping", AGAIN);
    let took = begin.elapsed();
    eprintln!("taken over after {took:?}");
    assert!((Duration::from_secs(60)..Duration::from_secs(90)).contains(&took), "{took:?}");
    assert_ne!(owner_of(&remote).instance, gone.instance);
    wait_for_shipped(&second);
    second.sql("select nrt_backup_now('incr')");
    wait_for_backups(&second, 2);
    wait_for_offsite(&second, 2);
    all_well(&second);
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("of-successor", &copy).run();
    assert_eq!(restored.value("select count(*) from t"), "1001");
}

// ------------------------------------------------------------------------------ who and where

#[test]
fn rclone_alone_has_a_cloud_identity_of_the_environment_and_one_disk_is_no_second_place() {
    let remote = Remote::with_identity("identity");
    let mut cluster = Cluster::with_identity("identity");
    for (name, value) in remote.identity() {
        cluster = cluster.environment(name, &value);
    }
    let cluster = shipping(cluster, &remote);
    all_well(&cluster);
    let mut shown = fs::read_to_string(cluster.log_file()).expect("it logs");
    for (name, content) in contents(&cluster.state_directory()) {
        shown.push_str(&name);
        shown.push_str(&String::from_utf8_lossy(&content));
    }
    for process in cluster.processes() {
        shown.push_str(&process.command);
    }
    for secret in remote.secrets() {
        assert!(!shown.contains(&secret), "a secret is shown");
    }

    // A directory beside the repository, of a remote that knows absolute paths.
    let config = cluster.directory().join("disk.conf");
    fs::write(&config, "[disk]\ntype = local\n").expect("the directory is ours");
    let beside = cluster.directory().join("beside");
    cluster.allow("nrt_backup health: remote is critical: ");
    cluster.set("nrt_backup.rclone_config", &config.display().to_string());
    cluster.set("nrt_backup.remote_path", &beside.display().to_string());
    cluster.reload();
    let message = wait_for_health(&cluster, "remote", "critical");
    assert!(message.contains("this is no second place"), "{message}");
    // It is shipped there all the same, and not into a directory of ours.
    wait_until("it is there", SOON, || beside.join(NAME).join("owner.json").exists());
    let place = format!("disk:{}/{NAME}", beside.display());
    cluster.wait_for("select remote from nrt.status", &place, SOON);
    cluster.wait_for("select offsite_backups > 0 from nrt.status", "t", SOON);
    let summary = cluster.value("select summary from nrt.status");
    assert!(summary.contains("this is no second place"), "{summary}");
}
