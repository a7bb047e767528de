//! Ships to real remotes, breaks everything that can break, and restores from what is off-site.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::offsite::{
    AGAIN, NAME, all_well, contents, copied, nrt_backup, owner_of, place_for_copies, processes,
    shipped_within, shipping, started, wait_for_offsite,
};
use crate::protected::{
    SOON, archive_segment, own_configuration, quiet, wait_for_backups, wait_for_health,
};
use base64::Engine;
use nrt_core::lsn::Lsn;
use nrt_core::offsite::owner;
use nrt_core::offsite::tail;
use nrt_tests::{
    Cluster, Commits, Kind, Remote, Restore, Shutdown, inspect, is_root, kill, wait_until,
};
use rustix::process::Signal;

fn shipped(cluster: &Cluster) -> Lsn {
    let text = cluster.value("select coalesce(shipped_lsn, '0/0') from nrt.status");
    text.parse().expect("an LSN")
}

/// Lets the machine vanish, restores what is off-site, and checks that nothing is missing which was
/// said to be there.
fn vanish_and_restore(
    cluster: &Cluster,
    remote: &Remote,
    mut commits: Commits,
    name: &str,
) -> Cluster {
    let promised = shipped(cluster);
    cluster.vanish();
    let (_directory, copy) = copied(remote);
    let restored = Restore::new(name, &copy).run();
    let made = commits.made();
    let lost = commits.lost(&restored);
    let broken: Vec<_> = lost.iter().filter(|commit| commit.lsn <= promised).collect();
    assert!(broken.is_empty(), "{promised} was shipped, and yet lost: {broken:?}");
    let newest = made.iter().map(|commit| commit.at).max();
    let oldest_lost = lost.iter().map(|commit| commit.at).min();
    if let (Some(newest), Some(oldest)) = (newest, oldest_lost) {
        let seconds = newest.duration_since(oldest);
        eprintln!("{name}: {} of {} commits lost, {seconds:?}", lost.len(), made.len());
        assert!(seconds < Duration::from_secs(10), "{seconds:?} are lost");
    }
    restored
}

fn holds(content: &[u8], text: &str) -> bool {
    content.windows(text.len()).any(|window| window == text.as_bytes())
}

// ------------------------------------------------------------------------------ the machine vanishes

fn the_machine_vanishes(kind: Kind) {
    let remote = Remote::new(&format!("vanish-{}", kind.word()), kind);
    let cluster = Cluster::with_identity(&format!("vanish-{}", kind.word()));
    let hba = cluster.directory().join("outside_hba.conf");
    fs::copy(cluster.data().join("pg_hba.conf"), &hba).expect("initdb wrote it");
    cluster.installation().hand_over(&hba).expect("the file was just made");
    let cluster = shipping(cluster.setting("hba_file", &hba.display().to_string()), &remote);
    assert_eq!(
        cluster.value("select remote from nrt.status").as_str(),
        remote.place(NAME),
        "the place is named as rclone names it"
    );
    let commits = Commits::begin(&cluster, "t", 2, Duration::from_millis(5));
    for _ in 0..3 {
        let took = shipped_within(&cluster, Duration::from_secs(20));
        eprintln!("{}: off-site after {took:?}", kind.word());
    }
    archive_segment(&cluster);
    cluster.sql("select nrt_backup_now('incr')");
    wait_for_offsite(&cluster, 2);
    shipped_within(&cluster, Duration::from_secs(20));
    all_well(&cluster);
    let labels: Vec<String> = cluster.sql("select label from nrt.backups").concat();
    // A backup is described when the worker has looked at it, which is after it can be restored.
    wait_until("the backups are described", SOON, || {
        let listed = remote.list(NAME);
        labels.iter().all(|label| listed.iter().any(|it| it.ends_with(&format!("{label}.json"))))
    });
    let restored = vanish_and_restore(&cluster, &remote, commits, "vanished");
    drop(restored);

    let listed = remote.list(NAME);
    let has = |part: &str| listed.iter().any(|path| path.contains(part));
    for label in labels {
        let directory = if label.ends_with('F') { "full" } else { "incremental" };
        assert!(has(&format!("{directory}-backups/{label}.json")), "{label}: {listed:?}");
    }
    assert!(has("outside_hba.conf") || has("pg_hba.conf"), "it is in no backup: {listed:?}");
    assert!(has(owner::FILE) && has("repository/backup/main/backup.info"), "{listed:?}");
    for strange in [".pgbackrest.tmp", ".partial", "latest"] {
        assert!(!has(strange), "{strange}: {listed:?}");
    }
}

#[test]
fn the_machine_vanishes_beside_a_directory() {
    the_machine_vanishes(Kind::Local);
}

#[test]
fn the_machine_vanishes_beside_webdav() {
    the_machine_vanishes(Kind::WebDav);
}

#[test]
fn the_machine_vanishes_beside_sftp() {
    the_machine_vanishes(Kind::Sftp);
}

#[test]
fn the_machine_vanishes_beside_s3() {
    the_machine_vanishes(Kind::S3);
}

#[test]
fn an_encrypted_remote_holds_nothing_in_plain_text() {
    let remote = Remote::new("crypt", Kind::Crypt);
    let cluster = shipping(Cluster::with_identity("crypt"), &remote);
    let marker = "nobody-off-site-may-read-this";
    cluster.sql(&format!(
        "create table m as select '{marker}'::text as m from generate_series(1, 99)"
    ));
    archive_segment(&cluster);
    cluster.sql("select nrt_backup_now('full')");
    let commits = Commits::begin(&cluster, "t", 1, Duration::from_millis(5));
    wait_for_offsite(&cluster, 2);
    shipped_within(&cluster, Duration::from_secs(20));
    let restored = vanish_and_restore(&cluster, &remote, commits, "deciphered");
    assert_eq!(restored.value("select min(m) from m"), marker);
    let stored = contents(&remote.root());
    assert!(!stored.is_empty());
    for (name, content) in stored {
        for word in [marker, "backup.info", "wal-tail", "PostgreSQL"] {
            assert!(!name.contains(word) && !holds(&content, word), "{name} has \"{word}\"");
        }
    }
}

// ------------------------------------------------------------------------------ bad remotes

/// Breaks a remote, sees that the server does not care and that the operator is told, mends it, and
/// waits until all is well without anybody's doing.
fn outage(
    cluster: &Cluster,
    what: &str,
    checks: &[&str],
    words: &[&str],
    break_it: impl FnOnce(),
    mend: impl FnOnce(),
) {
    shipped_within(cluster, AGAIN);
    break_it();
    let segments =
        || cluster.value("select count(*) from pg_ls_waldir()").parse::<u32>().expect("a count");
    // No more than PostgreSQL keeps for itself.
    for _ in 0..12 {
        cluster.sql(
            "select pg_logical_emit_message(true, 'outage', repeat('x', 100000)), pg_switch_wal()",
        );
    }
    let begin = Instant::now();
    let (mut slowest, mut failing) = (Duration::ZERO, None);
    let mut client = cluster.connect("postgres", "postgres").expect("the server runs");
    let told = loop {
        let commit = Instant::now();
        client.execute("insert into outage values ($1)", &[&what]).expect("commits");
        slowest = slowest.max(commit.elapsed());
        let rows =
            cluster.sql("select check_name, severity, message || ' ' || hint from nrt.health");
        let told = rows.into_iter().find(|row| {
            let text = row[2].to_lowercase();
            checks.contains(&row[0].as_str())
                && row[1] == "critical"
                && words.iter().any(|word| text.contains(word))
        });
        if let Some(told) = told {
            break told;
        }
        if failing.is_none() && cluster.value("select shipping from nrt.status") == "failing" {
            failing = Some(begin.elapsed());
        }
        let health = || cluster.sql("select * from nrt.health where severity <> 'ok'");
        assert!(begin.elapsed() < AGAIN, "{what}: nobody is told: {:?}", health());
        sleep(Duration::from_millis(100));
    };
    eprintln!(
        "{what}: failing after {failing:?}, told after {:?}: {told:?}; slowest commit {slowest:?}",
        begin.elapsed()
    );
    assert!(slowest < Duration::from_secs(2), "{what}: a commit took {slowest:?}");
    assert_eq!(cluster.value("select count(*) from pg_replication_slots"), "0");
    cluster.wait_for(
        "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'",
        "0",
        SOON,
    );
    cluster.sql("checkpoint");
    assert!(segments() <= 8, "{what}: {} segments are kept", segments());
    mend();
    let begin = Instant::now();
    shipped_within(cluster, AGAIN);
    all_well(cluster);
    eprintln!("{what}: well again after {:?}", begin.elapsed());
}

fn small_wal(cluster: Cluster) -> Cluster {
    cluster.setting("min_wal_size", "32MB").setting("max_wal_size", "64MB")
}

fn restores(remote: &Remote, name: &str, rows: &str) {
    let (_directory, copy) = copied(remote);
    let restored = Restore::new(name, &copy).run();
    assert_eq!(restored.value("select count(*) from outage"), rows);
}

#[test]
fn a_remote_that_is_killed_and_one_that_changes_its_password() {
    let remote = Remote::new("killed", Kind::WebDav);
    let cluster = shipping(small_wal(Cluster::with_identity("killed")), &remote);
    cluster.sql("create table outage (what text)");
    outage(
        &cluster,
        "killed",
        &["remote", "mirror"],
        &["refused", "cannot be reached"],
        || remote.kill(),
        || remote.start(),
    );
    outage(
        &cluster,
        "revoked",
        &["remote", "mirror"],
        &["401", "unauthorized", "password"],
        || remote.revoke(),
        || remote.write_config(),
    );
    let rows = cluster.value("select count(*) from outage");
    restores(&remote, "after-killed", &rows);
}

#[test]
fn a_remote_that_stands_still() {
    let remote = Remote::new("still", Kind::WebDav);
    let cluster = shipping(
        small_wal(Cluster::with_identity("still")).setting("nrt_backup.max_ship_lag", "10"),
        &remote,
    );
    cluster.sql("create table outage (what text)");
    outage(
        &cluster,
        "frozen",
        &["remote", "shipping"],
        &["timeout", "timed out", "behind"],
        || remote.freeze(),
        || remote.thaw(),
    );
    let rows = cluster.value("select count(*) from outage");
    restores(&remote, "after-still", &rows);
}

#[test]
fn a_remote_that_may_not_be_written_to_and_one_that_is_deleted() {
    let remote = Remote::new("locked", Kind::Sftp);
    let cluster = shipping(small_wal(Cluster::with_identity("locked")), &remote);
    cluster.sql("create table outage (what text)");
    outage(
        &cluster,
        "read-only",
        &["remote", "mirror"],
        &["permission denied"],
        || remote.read_only(true),
        || remote.read_only(false),
    );
    // Nothing says that files are gone; but what it holds is looked at again, and sent again.
    remote.delete(NAME);
    cluster.sql("insert into outage values ('deleted')");
    archive_segment(&cluster);
    cluster.sql("select nrt_backup_now('incr')");
    let sound = || {
        if !remote.files(NAME).exists() {
            return false;
        }
        let (_directory, copy) = copied(&remote);
        let found = inspect(&copy);
        found.problems.is_empty() && found.backups.len() == 2
    };
    wait_until("everything is there again", AGAIN, sound);
    shipped_within(&cluster, AGAIN);
    all_well(&cluster);
    let rows = cluster.value("select count(*) from outage");
    restores(&remote, "after-locked", &rows);
}

#[test]
fn a_remote_that_is_full() {
    if !is_root() {
        eprintln!("not tested: only root can mount a file system");
        return;
    }
    let remote = Remote::on_tmpfs("full", Kind::Local, 64);
    let cluster = shipping(small_wal(Cluster::with_identity("full")), &remote);
    cluster.sql("create table outage (what text)");
    outage(
        &cluster,
        "full",
        &["remote", "mirror"],
        &["no space left on device", "remaining disk space"],
        || remote.fill(),
        || remote.make_room(),
    );
    let rows = cluster.value("select count(*) from outage");
    restores(&remote, "after-full", &rows);
}

#[test]
fn a_remote_that_is_slow_or_cut_off_again_and_again() {
    let remote = Remote::behind_proxy("slow", Kind::S3);
    let cluster = shipping(small_wal(Cluster::with_identity("slow")), &remote);
    cluster.sql("create table outage (what text)");
    let commits = Commits::begin(&cluster, "t", 1, Duration::from_millis(5));
    remote.proxy().delay(Duration::from_millis(300));
    assert!(shipped_within(&cluster, Duration::from_secs(30)) > Duration::from_millis(300));
    remote.proxy().mend();
    for _ in 0..20 {
        sleep(Duration::from_millis(230));
        remote.proxy().cut();
    }
    shipped_within(&cluster, AGAIN);
    // Slower than the WAL that is written: several segments wait.
    remote.proxy().limit(500_000);
    for _ in 0..6 {
        cluster.sql(
            "create table if not exists bulk (t text);
             insert into bulk select string_agg(md5(random()::text), '') from generate_series(1, 30000) g group by g % 100;
             select pg_switch_wal()",
        );
    }
    remote.proxy().mend();
    shipped_within(&cluster, AGAIN);
    all_well(&cluster);
    let restored = vanish_and_restore(&cluster, &remote, commits, "after-slow");
    assert_eq!(restored.value("select count(*) from bulk"), "600");
}

// ------------------------------------------------------------------------------ one writer

#[test]
fn a_copy_of_the_cluster_ships_nothing_until_it_takes_over() {
    let remote = Remote::new("copied", Kind::WebDav);
    let first = shipping(Cluster::with_identity("first"), &remote);
    first.sql("create table t as select 1 as i");
    shipped_within(&first, SOON);
    first.stop(Shutdown::Fast);
    let second = Cluster::copy_of(&first, "second");
    first.start();
    shipped_within(&first, AGAIN);
    let instance = owner_of(&remote).instance;

    let second = started(second, &remote);
    let told = wait_for_health(&second, "remote", "critical");
    assert!(told.contains("another"), "{told}");
    assert_eq!(second.value("select shipping from nrt.status"), "fenced");
    second.sql("insert into t values (666)");
    archive_segment(&second);
    first.sql("insert into t values (2)");
    shipped_within(&first, SOON);
    sleep(Duration::from_secs(2));
    assert_eq!(owner_of(&remote).instance, instance);
    all_well(&first);
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("of-first", &copy).run();
    assert_eq!(restored.value("select string_agg(i::text, ' ' order by i) from t"), "1 2");
    drop(restored);

    let (code, text) = nrt_backup(&second, &["takeover"]);
    assert_eq!(code, 0, "{text}");
    second.wait_for("select shipping from nrt.status", "shipping", AGAIN);
    first.wait_for("select shipping from nrt.status", "fenced", AGAIN);
    wait_for_health(&first, "remote", "critical");
    assert_ne!(owner_of(&remote).instance, instance);
}

#[test]
fn another_cluster_is_kept_away_for_good() {
    let remote = Remote::new("foreign", Kind::Local);
    let first = shipping(Cluster::with_identity("own"), &remote);
    first.sql("create table t as select 1 as i");
    shipped_within(&first, SOON);
    let second = started(Cluster::with_identity("foreign"), &remote);
    let told = wait_for_health(&second, "remote", "critical");
    let identifier = "select system_identifier from pg_control_system()";
    assert!(told.contains(&first.value(identifier)), "{told}");
    // Whoever asks for it: two clusters in one place would destroy each other.
    let _ = nrt_backup(&second, &["takeover"]);
    archive_segment(&second);
    sleep(Duration::from_secs(3));
    assert_eq!(second.value("select shipping from nrt.status"), "fenced");
    assert_eq!(owner_of(&remote).system_identifier, first.value(identifier));
    first.sql("insert into t values (2)");
    shipped_within(&first, SOON);
    all_well(&first);
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("of-own", &copy).run();
    assert_eq!(restored.value("select count(*) from t"), "2");
}

// ------------------------------------------------------------------------------ the cluster's own side

#[test]
fn a_repository_that_vanishes_takes_nothing_with_it() {
    let remote = Remote::new("vanished", Kind::Local);
    let cluster = shipping(Cluster::with_identity("vanished"), &remote);
    cluster.sql("create table t as select generate_series(1, 100) as i");
    archive_segment(&cluster);
    shipped_within(&cluster, SOON);
    let is_mutable = |name: &str| {
        name.starts_with(tail::DIRECTORY) || name.starts_with(owner::FILE) || name.contains("conf")
    };
    let before = contents(&remote.files(NAME));
    fs::rename(cluster.repository(), cluster.directory().join("elsewhere")).expect("it is there");
    cluster.installation().private_directory(&cluster.repository()).expect("it is gone");
    // The worker makes a stanza and takes a backup where there is none.
    cluster.try_sql("select nrt_check()").expect("the worker runs");
    wait_until("a new repository is there", AGAIN, || {
        cluster.repository().join("backup/main/backup.info").exists()
    });
    let _ = cluster.try_sql("select nrt_backup_now('full')");
    cluster.sql("insert into t values (101)");
    let _ = cluster.try_sql("select pg_switch_wal()");
    sleep(Duration::from_secs(6));
    let after = contents(&remote.files(NAME));
    for (name, content) in &before {
        if is_mutable(name) {
            continue;
        }
        let now = after.get(name).unwrap_or_else(|| panic!("{name} is gone off-site"));
        assert_eq!(now.len(), content.len(), "{name} is another one off-site");
        assert_eq!(now, content, "{name} is another one off-site");
    }
    let (_directory, copy) = copied(&remote);
    assert_eq!(inspect(&copy).problems, [""; 0]);
    let restored = Restore::new("after-vanished", &copy).run();
    assert!(restored.value("select count(*) from t").parse::<u32>().expect("a count") >= 100);
    let health =
        cluster.sql("select check_name, message from nrt.health where severity = 'critical'");
    let told = health.iter().any(|row| ["mirror", "remote", "shipping"].contains(&row[0].as_str()));
    assert!(told, "nobody is told: {health:?}");
}

#[test]
fn whoever_dies_the_rest_goes_on() {
    let remote = Remote::new("deaths", Kind::S3);
    let cluster = shipping(Cluster::with_segments_of("deaths", 1), &remote);
    cluster.allow("57P02");
    let mut commits = Commits::begin(&cluster, "t", 2, Duration::from_millis(2));
    for (round, word) in
        ["rclone rcd", " ship ", "leash", "rclone rcd", " ship "].iter().enumerate()
    {
        sleep(Duration::from_millis(300 + 170 * round as u64));
        for process in processes(&cluster, word) {
            if *word == "leash" && !process.command.contains(" ship") {
                continue;
            }
            kill(process.pid, Signal::KILL);
        }
        cluster.sql("select pg_switch_wal()");
        shipped_within(&cluster, AGAIN);
    }
    wait_until("nothing is left over", SOON, || processes(&cluster, "rclone rcd").len() <= 1);
    all_well(&cluster);
    let promised = shipped(&cluster);
    // A backend dies: the server restarts, and the clients are gone.
    let mut session = cluster.connect("postgres", "postgres").expect("connects");
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).expect("answers").get(0);
    for words in ["57P02", "57P01", "08006"] {
        cluster.allow(words);
    }
    kill(pid, Signal::KILL);
    wait_until("the session is gone", SOON, || session.simple_query("").is_err());
    cluster.wait_for("select not pg_is_in_recovery()", "t", SOON);
    cluster.sql("create table crashed as select generate_series(1, 1000) as i");
    shipped_within(&cluster, AGAIN);
    // A promotion: another timeline.
    cluster.allow("specified neither");
    cluster.stop(Shutdown::Fast);
    fs::write(cluster.data().join("standby.signal"), "").expect("the directory is there");
    cluster.start();
    cluster.sql("select pg_promote()");
    cluster.wait_for("select pg_is_in_recovery()", "f", SOON);
    cluster.sql("create table promoted as select generate_series(1, 2000) as i; checkpoint");
    assert_eq!(cluster.value("select timeline_id from pg_control_checkpoint()"), "2");
    shipped_within(&cluster, AGAIN);
    all_well(&cluster);
    cluster.vanish();
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("after-deaths", &copy).run();
    assert_eq!(restored.value("select count(*) from crashed"), "1000");
    assert_eq!(restored.value("select count(*) from promoted"), "2000");
    let lost = commits.lost(&restored);
    assert!(lost.iter().all(|commit| commit.lsn > promised), "{promised}: {lost:?}");
}

#[test]
fn a_remote_may_be_cut_off_at_any_instant() {
    let remote = Remote::new("cut", Kind::WebDav);
    let cluster = quiet(Cluster::with_identity("cut"));
    // Two full backups are kept: with the third one, backups expire.
    own_configuration(
        &cluster,
        &cluster.repository(),
        "compress-type=zst\nrepo1-bundle=y\nexclude=nrt_backup/",
    );
    let cluster = shipping(cluster, &remote);
    let commits = Commits::begin(&cluster, "t", 1, Duration::from_millis(5));
    for (number, kind) in ["incr", "full", "full", "incr"].iter().enumerate() {
        cluster.sql(&format!(
            "create table t{number} as select i, md5(i::text) from generate_series(1, 30000) i"
        ));
        let (frozen, copies) = place_for_copies();
        cluster.sql(&format!("select nrt_backup_start('{kind}')"));
        let begin = Instant::now();
        let mut instants = 0;
        while begin.elapsed() < SOON && instants < 6 {
            sleep(Duration::from_millis(150 + 371 * (instants + number as u64) % 700));
            remote.freeze();
            remote.copy(NAME, &copies.join(instants.to_string()));
            remote.thaw();
            instants += 1;
        }
        for instant in 0..instants {
            let found = inspect(&copies.join(instant.to_string()));
            assert_eq!(found.problems, [""; 0], "{kind}, instant {instant}");
            assert_ne!(found.backups, [""; 0], "{kind}, instant {instant}: no backup is left");
        }
        let last = copies.join((instants / 2).to_string());
        remove_what_was_cut_off(&last);
        drop(Restore::new("cut-restored", &last).run());
        drop(frozen);
        cluster.wait_for("select activity from nrt.status", "idle", SOON);
    }
    wait_for_backups(&cluster, 3);
    wait_for_offsite(&cluster, 3);
    shipped_within(&cluster, AGAIN);
    drop(vanish_and_restore(&cluster, &remote, commits, "after-cuts"));
}

/// Removes archived segments of which only a part had arrived: their WAL is in the tail, and
/// pgBackRest by itself knows no other place.
fn remove_what_was_cut_off(copy: &Path) {
    let archive = copy.join("repository/archive");
    for (path, content) in contents(&archive) {
        if path.ends_with(".zst") && zstd::decode_all(&content[..]).is_err() {
            fs::remove_file(archive.join(path)).expect("it is ours");
        }
    }
}

// ------------------------------------------------------------------------------ controls and secrets

#[test]
fn shipping_can_be_paused() {
    let remote = Remote::new("paused", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("paused"), &remote);
    cluster.sql("create table t as select 1 as i");
    shipped_within(&cluster, SOON);
    assert_eq!(cluster.value("select nrt_pause('shipping')"), "shipping");
    cluster.wait_for("select shipping from nrt.status", "paused", SOON);
    wait_until("nothing ships", SOON, || processes(&cluster, "rclone rcd").is_empty());
    let before = remote.list(NAME);
    cluster.sql("insert into t values (2)");
    archive_segment(&cluster);
    cluster.sql("select nrt_backup_now('incr')");
    sleep(Duration::from_secs(2));
    assert_eq!(remote.list(NAME), before);
    wait_for_health(&cluster, "remote", "warning");
    assert_eq!(cluster.value("select nrt_resume('shipping')"), "nothing");
    wait_for_offsite(&cluster, 2);
    shipped_within(&cluster, AGAIN);
    all_well(&cluster);
}

#[test]
fn an_encrypted_repository_has_no_plain_tail_beside_it() {
    let remote = Remote::new("cipher", Kind::Local);
    let cluster = quiet(Cluster::with_identity("cipher"));
    let cipher = "repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=not-to-be-guessed";
    own_configuration(&cluster, &cluster.repository(), &format!("{cipher}\nexclude=nrt_backup/"));
    let cluster = shipping(cluster, &remote);
    let marker = "in-the-tail-in-plain-text";
    cluster.sql(&format!(
        "create table m as select '{marker}'::text as m from generate_series(1, 99)"
    ));
    sleep(Duration::from_secs(4));
    let told = wait_for_health(&cluster, "shipping", "warning");
    assert!(told.contains("encrypt"), "{told}");
    archive_segment(&cluster);
    shipped_within(&cluster, AGAIN);
    for (name, content) in contents(&remote.files(NAME)) {
        let unpacked = zstd::decode_all(&content[..]).unwrap_or_default();
        assert!(!holds(&content, marker) && !holds(&unpacked, marker), "{name}");
        assert!(!holds(&content, "not-to-be-guessed"), "{name}");
    }
    let (_directory, copy) = copied(&remote);
    let mut restore = Restore::new("from-cipher", &copy);
    for line in cipher.lines() {
        restore = restore.option(line);
    }
    assert_eq!(restore.run().value("select count(*) from m"), "99");
}

#[test]
fn a_configuration_from_the_environment_is_used_and_shown_to_nobody() {
    let remote = Remote::new("environment", Kind::WebDav);
    let configuration = fs::read(remote.config()).expect("it was just written");
    let encoded = base64::engine::general_purpose::STANDARD.encode(&configuration);
    let cluster = Cluster::with_identity("environment").environment("RCLONE_CONF_BASE64", &encoded);
    for words in ["nrt_backup health: ", "nrt_backup job ", "nrt_backup ship"] {
        cluster.allow(words);
    }
    let cluster = remote.configure(quiet(cluster)).setting("nrt_backup.rclone_config", "");
    let cluster = cluster.started();
    cluster.sql("create extension nrt_backup");
    wait_for_offsite(&cluster, 1);

    let decoded = cluster.state_directory().join("pgsql_tmp_rclone.conf");
    assert_eq!(fs::read(&decoded).expect("it was decoded"), configuration);
    let mode = fs::metadata(&decoded).expect("it was decoded").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secrets = [remote.secrets(), vec![encoded]].concat();
    let mut shown = fs::read_to_string(cluster.log_file()).expect("it logs");
    shown
        .push_str(&cluster.sql("select name || ' ' || setting from pg_settings").concat().concat());
    for process in cluster.processes() {
        shown.push_str(&process.command);
        // Only the server itself has it: it cannot take it out of its own environment.
        if !process.command.contains("postgres") {
            let environment =
                fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            shown.push_str(&String::from_utf8_lossy(&environment));
        }
    }
    assert!(shown.contains("rclone rcd"), "nothing was looked at");
    for secret in &secrets {
        assert!(!shown.contains(secret.as_str()), "a secret is shown to everybody");
    }
    // Nor is it in a backup, in a copy that others make of the server, or on the remote.
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("without-environment", &copy).run();
    let standby = Cluster::standby_of(&cluster, "standby-without-environment");
    for data in [restored.data(), standby.data()] {
        let name = decoded.file_name().expect("a file has a name");
        assert!(!data.join("nrt_backup").join(name).exists());
    }
    let copies = contents(&copy).into_iter().chain(contents(&standby.data()));
    for (name, content) in copies {
        let unpacked = zstd::decode_all(&content[..]).unwrap_or_default();
        for secret in &secrets {
            assert!(!holds(&content, secret) && !holds(&unpacked, secret), "a secret is in {name}");
        }
    }

    cluster.stop(Shutdown::Fast);
    let cluster = cluster.environment("RCLONE_CONF_BASE64", "");
    cluster.start();
    cluster.wait_for("select shipping from nrt.status", "off", SOON);
    assert!(!decoded.exists(), "what is not given any more is not kept");
}

#[test]
fn the_password_is_nowhere() {
    let remote = Remote::new("secret", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("secret"), &remote);
    let secrets = remote.secrets();
    assert!(secrets.len() >= 2, "the password, and what stands for it in the configuration");
    let mut argv = String::new();
    let look = |argv: &mut String| {
        for process in cluster.processes() {
            argv.push_str(&process.command);
        }
    };
    look(&mut argv);
    assert!(argv.contains("rclone") && argv.contains("ship"), "{argv}");
    // Errors are where secrets are repeated.
    remote.kill();
    wait_for_health(&cluster, "remote", "critical");
    look(&mut argv);
    remote.start();
    shipped_within(&cluster, AGAIN);
    remote.revoke();
    wait_for_health(&cluster, "remote", "critical");
    look(&mut argv);
    remote.write_config();
    let secrets = [secrets, remote.secrets()].concat();
    shipped_within(&cluster, AGAIN);
    cluster.sql("select nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    look(&mut argv);
    let mut shown = argv;
    for query in [
        "select name || ' ' || setting from pg_settings",
        "select h::text from nrt.health h",
        "select s::text from nrt.status s",
        "select h::text from nrt.backup_history h",
        "select coalesce(sourcefile, '') || setting from pg_file_settings",
    ] {
        shown.push_str(&cluster.sql(query).concat().concat());
    }
    shown.push_str(&fs::read_to_string(cluster.log_file()).expect("it logs"));
    for secret in &secrets {
        assert!(!shown.contains(secret.as_str()), "a secret is shown to everybody");
    }
    let (_directory, copy) = copied(&remote);
    let restored = Restore::new("with-no-secret", &copy).run();
    for place in [cluster.directory(), restored.directory(), &remote.path()] {
        for (name, content) in contents(place) {
            let unpacked = zstd::decode_all(&content[..]).unwrap_or_default();
            for secret in &secrets {
                let found = holds(&content, secret) || holds(&unpacked, secret);
                assert!(!found, "a secret is in {}/{name}", place.display());
            }
        }
    }
}
