//! Shows that a restore comes to its end whatever happens to it, that what is damaged or cannot be
//! reached is named and never taken for the end, and that what exists already is left unharmed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::offsite::{AGAIN, NAME, all_well, contents, owner_of, shipping, wait_for_shipped};
use crate::protected::{archive_segment, verify, wait_for_health};
use crate::restoring::{Place, back_up, ended, from, of, texts};
use base64::Engine;
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::tail::{self, Piece};
use nrt_tests::{Account, Cluster, Kind, Remote, Shutdown, kill, wait_until};
use rustix::process::Signal;

/// How many instants of a restore are tried out.
const INSTANTS: u32 = 20;

/// Rows, and what they hold.
const CONTENT: &str = "select count(*) || ' ' || md5(string_agg(t::text, ' ' order by i)) from t";

/// Has the owner on a remote say that everything up to a position of timeline 1 was shipped, and
/// nothing more.
fn promise(remote: &Remote, flushed: Lsn) {
    for name in ["owner.json", "owner.json.copy"] {
        let path = remote.files(NAME).join(name);
        let Ok(text) = fs::read(&path) else { continue };
        let mut owner: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
        owner["shipped"] = serde_json::json!({"timeline": 1, "flushed": flushed.to_string()});
        fs::write(&path, owner.to_string()).expect("it is ours");
    }
    // What lists its files has known them for up to a second.
    remote.kill();
    remote.start();
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a process number")
}

/// Stops a server that `nrt-backup restore` has started.
fn stop(cluster: &Cluster) {
    let mut program = cluster.installation().command(cluster.installation().program("pg_ctl"));
    let (code, text) = ended(
        program
            .args(["stop", "-w", "-m", "fast", "-D"])
            .arg(cluster.data())
            .output()
            .expect("it is installed"),
    );
    assert_eq!(code, 0, "{text}");
}

/// A cluster of some size, gone, with backups, archived WAL and a tail on a remote: what it held.
fn lost(name: &str, remote: &Remote) -> String {
    let cluster = shipping(Cluster::with_identity(name), remote);
    cluster.sql("create table t (i int, filler text)");
    for table in 0..12 {
        cluster.sql(&format!(
            "create table big_{table} as
             select i, (select string_agg(md5((i * 100 + j)::text), '') from generate_series(1, 20) j)
             from generate_series(1, 5000) i"
        ));
    }
    back_up(&cluster, "full");
    cluster.sql(
        "insert into t select i, repeat(md5(random()::text), 20) from generate_series(1, 30000) i",
    );
    archive_segment(&cluster);
    cluster.sql("insert into t select i, 'last' from generate_series(30001, 30100) i");
    wait_for_shipped(&cluster);
    let content = cluster.value(CONTENT);
    cluster.vanish();
    content
}

#[test]
fn an_interrupted_restore_goes_on() {
    let remote = Remote::behind_proxy("killed", Kind::WebDav);
    let content = lost("killed", &remote);
    // Whatever is fetched takes its time; the original is known to be gone.
    remote.proxy().limit(30_000_000);
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original", "--transfers=2"]].concat();

    let whole = Place::new("whole");
    let (before, begin) = (remote.proxy().traffic(), Instant::now());
    whole.restored(&arguments);
    let (took, traffic) = (begin.elapsed(), remote.proxy().traffic().since(before));
    drop(whole);

    let mut killed = 0;
    for instant in 0..INSTANTS / 2 {
        let place = Place::new("interrupted");
        let around = place.around();
        let starts = instant % 4 == 3;
        let mut again = arguments.clone();
        if !starts {
            again.push("--no-start");
        }
        // Twice, the second time later; what goes on may be done by then.
        let mut is_done = false;
        for instant in [instant, instant + INSTANTS / 2] {
            let mut child = place.command("restore", &again).spawn().expect("it is installed");
            sleep(took * (2 * instant + 1) / (2 * INSTANTS));
            let ended = child.try_wait().expect("it is our child");
            killed += u32::from(ended.is_none());
            is_done = ended.is_some_and(|status| status.success());
            kill(pid(&child), Signal::KILL);
            child.wait().expect("it is our child");
            if is_done {
                break;
            }
        }
        if !is_done {
            let (code, text) = place.run("restore", &again);
            // Nothing is left to do if it was killed after its server had started.
            let is_in_use = starts && text.contains("this restore has made, and is in use");
            assert!(code == 0 || is_in_use, "killed at instant {instant}: {text}");
        }
        if !starts {
            assert_eq!(place.cluster.processes(), [], "killed at instant {instant}");
            place.cluster.start();
        }
        assert_eq!(place.cluster.value(CONTENT), content, "killed at instant {instant}");
        let mut left = place.around();
        left.retain(|name| !around.contains(name) && name != "data" && name != "log");
        assert!(left.is_empty(), "killed at instant {instant}: {left:?}");
        if starts {
            stop(&place.cluster);
        }
    }
    eprintln!("{killed} of {INSTANTS} were interrupted");
    assert!(killed >= INSTANTS / 2, "only {killed} of {INSTANTS} were interrupted");

    // What was fetched is not fetched again.
    let place = Place::new("fetched-once");
    let before = remote.proxy().traffic();
    let mut child = place.begin(&arguments);
    wait_until("half of it is there", AGAIN, || {
        remote.proxy().traffic().since(before).received > traffic.received / 2
    });
    kill(pid(&child), Signal::KILL);
    child.wait().expect("it is our child");
    place.restored(&arguments);
    let all = remote.proxy().traffic().since(before).received;
    assert!(
        all < traffic.received * 13 / 10,
        "{all} bytes in two parts, {} in one",
        traffic.received
    );
}

#[test]
fn a_copy_beside_its_original_harms_nothing() {
    let remote = Remote::new("beside", Kind::WebDav);
    let original = shipping(Cluster::with_identity("beside"), &remote);
    original.sql("create table t as select i, 'original' as filler from generate_series(1, 100) i");
    wait_for_shipped(&original);
    let owner = owner_of(&remote);
    let verified = || {
        wait_for_shipped(&original);
        all_well(&original);
        assert_eq!(owner_of(&remote).instance, owner.instance);
    };

    // With all that the original is configured with, as on the same machine.
    let place = Place::new("copy");
    let place = Place { cluster: remote.configure(crate::protected::quiet(place.cluster)) };
    let repository = original.repository().display().to_string();
    place.cluster.set("nrt_backup.repository", &repository);
    place.cluster.set("archive_mode", "on");
    let remote_arguments = from(&remote);
    let text = place.restored(&texts(&remote_arguments));
    assert!(text.contains("alive") && text.contains("neither archives nor ships"), "{text}");
    place.cluster.start();
    let copy = place.cluster;
    assert_eq!(copy.value("show archive_mode"), "off");
    let health = wait_for_health(&copy, "archiving", "warning");
    assert!(health.contains("this is a copy"), "{health}");
    let shipping = wait_for_health(&copy, "remote", "critical");
    assert!(shipping.contains("another instance"), "{shipping}");
    let (code, text) = crate::offsite::nrt_backup(&copy, &["takeover"]);
    assert!(code == 1 && text.contains("RESET archive_mode"), "{code}: {text}");
    copy.sql("insert into t select i, 'copy' from generate_series(101, 200) i");
    copy.sql("select pg_switch_wal()");
    original.sql("insert into t select i, 'later' from generate_series(101, 150) i");
    archive_segment(&original);
    back_up(&original, "incr");
    original.sql("insert into t select i, 'tail' from generate_series(151, 160) i");
    verified();
    // More than one sign of life.
    sleep(Duration::from_secs(17));
    verified();
    assert!(owner_of(&remote).heartbeat > owner.heartbeat);
    let of_the_copy: Vec<String> = contents(&remote.files(NAME))
        .into_keys()
        .chain(contents(&original.repository()).into_keys())
        .filter(|path| path.contains("/00000002"))
        .collect();
    assert_eq!(of_the_copy, [""; 0], "the copy's timeline is nowhere");
    verify(&original);
    assert_eq!(copy.value("select count(*) from t"), "200");

    let content = original.value(CONTENT);
    let arguments = [&["--copy"], &texts(&remote_arguments)[..]].concat();
    let later = Place::new("later").restore(&arguments);
    assert_eq!(later.value(CONTENT), content);
    assert_eq!(later.value("select count(*) from t where filler = 'copy'"), "0");
}

/// A cluster with small segments of which many are archived, gone: what it held.
fn lost_in_many_segments(name: &str, remote: &Remote) -> String {
    let cluster = shipping(Cluster::with_segments_of(name, 1), remote);
    cluster.sql("create table t (i int, filler text)");
    cluster
        .sql("insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 50000) i");
    archive_segment(&cluster);
    cluster.sql("insert into t select i, 'last' from generate_series(50001, 50100) i");
    // Whoever reads what was just written may write WAL, too: hints, with the pages' checksums.
    let content = cluster.value(CONTENT);
    wait_for_shipped(&cluster);
    let shipped = crate::offsite::told(&cluster).shipped.expect("it has shipped").flushed;
    cluster.vanish();
    let holes = holes(remote, Segment::of(1, shipped, 1 << 20).number);
    assert_eq!(holes, [0; 0], "what was said to be there is missing");
    // What lists its files has known them for up to a second.
    sleep(Duration::from_secs(1));
    content
}

/// The segments of 1 MB that are missing on the disk of a remote, before the one that shipping has
/// come to.
fn holes(remote: &Remote, end: u64) -> Vec<u64> {
    let names = contents(&remote.files(NAME)).into_keys().filter_map(|path| {
        let name = path.split('/').find(|part| part.len() >= 24 && part.starts_with("0000"))?;
        Segment::parse(name.get(..24)?, 1 << 20).map(|it| it.number)
    });
    let there: BTreeSet<u64> = names.collect();
    let first = there.first().copied().expect("something is there");
    (first..end).filter(|number| !there.contains(number)).collect()
}

/// Waits until a restore replays.
fn wait_for_replay(place: &Place) {
    let asked = place.work().join("asked");
    let asked = || fs::read_to_string(&asked).unwrap_or_default();
    wait_until("WAL is replayed", AGAIN, || !asked().is_empty());
    let first = asked();
    wait_until("WAL is replayed", AGAIN, || asked() != first);
}

#[test]
fn a_restore_that_is_killed_while_it_replays_goes_on() {
    let remote = Remote::behind_proxy("replaying", Kind::WebDav);
    let content = lost_in_many_segments("replaying", &remote);
    remote.proxy().limit(3_000_000);
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let place = Place::new("replaying");
    let mut child = place.begin(&arguments);
    wait_for_replay(&place);
    kill(pid(&child), Signal::KILL);
    child.wait().expect("it is our child");
    assert!(place.cluster.data().join("postmaster.pid").exists(), "its server was killed, too");
    remote.proxy().limit(300_000_000);
    place.restored(&arguments);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
}

/// Waits until a restore says something.
fn said(child: &mut Child, words: &str) {
    let mut line = String::new();
    let errors = child.stderr.as_mut().expect("it is piped");
    while !line.contains(words) {
        line.clear();
        // Byte by byte: what comes after the line is for whoever waits for the end.
        while !line.ends_with('\n') {
            let mut byte = [0];
            let read = errors.read(&mut byte).expect("it can be read");
            assert_ne!(read, 0, "it ended without \"{words}\"");
            line.push(char::from(byte[0]));
        }
        eprint!("{line}");
    }
}

fn is_promoted(cluster: &Cluster) -> bool {
    cluster.data().join("pg_wal/00000002.history").exists()
}

#[test]
fn what_was_on_its_way_when_the_machine_vanished_is_no_gap() {
    let remote = Remote::new("on-its-way", Kind::WebDav);
    let cluster = shipping(Cluster::new("on-its-way"), &remote);
    cluster.sql("create table t as select i, 'kept' as filler from generate_series(1, 50) i");
    wait_for_shipped(&cluster);
    let content = cluster.value(CONTENT);
    wait_until("it is told off-site how far it reaches", AGAIN, || {
        owner_of(&remote).shipped.is_some()
    });
    let size = 16 << 20;
    cluster.vanish();
    // Pieces are sent side by side: a later one has arrived, and one before it has not.
    let tail = remote.files(NAME).join(tail::DIRECTORY);
    let pieces = contents(&tail);
    let pieces: Vec<Piece> = pieces.keys().filter_map(|it| Piece::parse(it, size)).collect();
    let last = pieces.iter().max_by_key(|it| it.to).expect("the tail is there");
    let number = last.segment.number + 2;
    let segment = Segment { number, ..last.segment };
    let start = segment.start(size);
    let later = Piece { segment, from: start, to: Lsn(start.0 + last.to.since(last.from)) };
    let later = tail.join(later.path(size));
    fs::create_dir_all(later.parent().expect("it is below")).expect("it can be made");
    fs::copy(tail.join(last.path(size)), later).expect("it can be written");
    // What lists its files has known them for up to a second.
    remote.kill();
    remote.start();

    let place = Place::new("arrived");
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let text = place.restored(&arguments);
    assert!(text.contains("had not arrived yet"), "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
}

#[test]
fn a_segment_that_was_on_its_way_to_the_archive_is_in_the_tail() {
    let remote = Remote::new("in-the-tail", Kind::WebDav);
    let cluster = shipping(Cluster::with_segments_of("in-the-tail", 1), &remote);
    cluster.sql("create table t as select i, 'kept' as filler from generate_series(1, 50) i");
    let segment = archive_segment(&cluster);
    let wal = fs::read(cluster.data().join("pg_wal").join(&segment)).expect("it is still there");
    cluster.sql("insert into t select i, 'later' from generate_series(51, 100) i");
    wait_for_shipped(&cluster);
    let content = cluster.value(CONTENT);
    cluster.vanish();

    // The machine vanished while it sent the segment, of which the tail had everything.
    let archive = remote.files(NAME).join("repository/archive/main");
    let stored = contents(&archive).into_iter().find(|(path, _)| path.contains(&segment));
    let (path, packed) = stored.expect("it is archived");
    let archived = archive.join(path);
    fs::write(&archived, &packed[..packed.len() / 2]).expect("it is ours");
    let size = 1 << 20;
    let segment = Segment::parse(&segment, size).expect("a segment's name");
    let [start, middle, end] = [0, size / 2, size].map(|at| Lsn(segment.start(size).0 + at));
    let tail = remote.files(NAME).join(tail::DIRECTORY);
    let piece_of = |from, to| tail.join(Piece { segment, from, to }.path(size));
    let (first, second) = wal.split_at(wal.len() / 2);
    for (path, part) in [(piece_of(start, middle), first), (piece_of(middle, end), second)] {
        fs::create_dir_all(path.parent().expect("it is below")).expect("it can be made");
        fs::write(path, zstd::encode_all(part, 1).expect("packed")).expect("it can be written");
    }
    // What lists its files has known them for up to a second.
    remote.kill();
    remote.start();

    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let place = Place::new("all-of-it");
    place.restored(&arguments);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    drop(place);

    // Where the tail has only half of it, too, it is named.
    fs::remove_file(piece_of(middle, end)).expect("it is ours");
    promise(&remote, end);
    let place = Place::new("half-of-it");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&segment.name(size)) && text.contains("is damaged"), "{text}");
    assert!(!is_promoted(&place.cluster));
    drop(place);

    // Behind the last promise it is where the WAL ends, and what lies further on is out of reach.
    promise(&remote, start);
    for is_empty in [false, true] {
        if is_empty {
            // A remote that is full keeps the name.
            fs::write(&archived, b"").expect("it is ours");
            remote.kill();
            remote.start();
        }
        let place = Place::new("half-is-the-end");
        let text = place.restored(&arguments);
        assert!(text.contains("had not arrived yet"), "{text}");
        assert_eq!(text.contains("is not counted on"), !is_empty, "{text}");
        place.cluster.start();
        assert_eq!(place.cluster.value("select count(*) from t where i > 50"), "0");
    }
}

#[test]
fn what_cannot_be_reached_is_never_the_end_of_the_wal() {
    let remote = Remote::behind_proxy("unreachable", Kind::WebDav);
    let content = lost_in_many_segments("unreachable", &remote);
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let wait = |place: &Place, child: &mut Child| {
        sleep(Duration::from_secs(3));
        assert_eq!(child.try_wait().expect("it is our child"), None, "it waits");
        assert!(!is_promoted(&place.cluster));
    };
    let complete = |place: Place, child: Child| {
        let (code, text) = ended(child.wait_with_output().expect("it is our child"));
        assert_eq!(code, 0, "{text}");
        place.cluster.start();
        assert_eq!(place.cluster.value(CONTENT), content, "{text}");
        text
    };
    let begin = |name: &str| {
        remote.proxy().mend();
        let place = Place::new(name);
        let child = place.begin(&arguments);
        let about_to_replay = place.work().join("wal.json");
        wait_until("the backup is restored", AGAIN, || about_to_replay.exists());
        // Every request takes so long.
        remote.proxy().delay(Duration::from_millis(300));
        wait_for_replay(&place);
        (place, child)
    };

    // rclone tries again by itself for a while, and only then there is something to tell.
    let (place, mut child) = begin("outage");
    remote.kill();
    said(&mut child, "waits and tries again");
    wait(&place, &mut child);
    remote.start();
    let text = complete(place, child);
    assert!(text.contains("goes on"), "{text}");

    let (place, mut child) = begin("frozen");
    remote.freeze();
    wait(&place, &mut child);
    remote.thaw();
    complete(place, child);

    // The credentials are others; rclone's configuration has them later.
    let (place, mut child) = begin("revoked");
    remote.revoke();
    wait(&place, &mut child);
    remote.write_config();
    complete(place, child);

    // Without rclone there is nothing to wait for.
    let (place, child) = begin("no-rclone");
    let rclone = crate::offsite::processes(&place.cluster, " rcd ");
    assert_eq!(rclone.len(), 1);
    kill(rclone[0].pid, Signal::KILL);
    let (code, text) = ended(child.wait_with_output().expect("it is our child"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("rclone") && !is_promoted(&place.cluster), "{text}");
    remote.proxy().mend();
    place.restored(&arguments);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
}

#[test]
fn a_server_that_is_started_by_hand_waits_for_its_wal_too() {
    let remote = Remote::new("by-hand", Kind::WebDav);
    let content = lost_in_many_segments("by-hand", &remote);
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original", "--no-recovery"]].concat();
    let Place { cluster } = {
        let place = Place::new("started-later");
        let (code, text) = place.run("restore", &arguments);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("recovery runs when the server is started"), "{text}");
        place
    };
    refuses_until(&cluster, || remote.kill(), || remote.start());
    assert_eq!(cluster.value(CONTENT), content);
    assert_eq!(cluster.value("select timeline_id from pg_control_checkpoint()"), "2");
    drop(cluster);

    // A repository on this machine that cannot be read for a while.
    let original = crate::protected::protected("unreadable");
    original.sql("create table t as select i, 'archived' as filler from generate_series(1, 50) i");
    archive_segment(&original);
    let content = original.value(CONTENT);
    original.stop(Shutdown::Fast);
    let repository = original.repository();
    let argument = format!("--repository={}", repository.display());
    let place = Place::new("from-here");
    let (code, text) = place.run("restore", &[&argument, "--original", "--no-recovery"]);
    assert_eq!(code, 0, "{text}");
    let archive = repository.join("archive");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&archive, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    refuses_until(&place.cluster, || mode(0), || mode(0o750));
    assert_eq!(place.cluster.value(CONTENT), content);
}

/// Starts a server that has to recover, while its WAL cannot be reached, and afterwards.
fn refuses_until(cluster: &Cluster, break_it: impl Fn(), mend_it: impl Fn()) {
    cluster.allow("could not restore file");
    cluster.allow("startup process");
    break_it();
    let log = cluster.try_start().expect_err("it must not start");
    assert!(log.contains("exit code 255"), "{log}");
    assert!(!is_promoted(cluster));
    mend_it();
    cluster.start();
    cluster.wait_for("select pg_is_in_recovery()", "f", AGAIN);
}

/// Turns some bytes in the middle of a file around: its size stays.
fn damage(path: &Path) {
    let mut content = fs::read(path).expect("it is there");
    let middle = content.len() / 2;
    for byte in &mut content[middle..middle + 8] {
        *byte = !*byte;
    }
    fs::write(path, content).expect("it is ours");
}

#[test]
fn what_is_damaged_is_named_and_there_is_a_way_around_it() {
    let remote = Remote::new("damaged", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("damaged"), &remote);
    cluster.sql("create table t as select i, 'full' as filler from generate_series(1, 100) i");
    let older = back_up(&cluster, "full");
    cluster.sql("create table big as select md5(i::text) from generate_series(1, 100000) i");
    let newest = back_up(&cluster, "full");
    cluster.sql("insert into t select i, 'archived' from generate_series(101, 200) i");
    let segment = archive_segment(&cluster);
    cluster.sql("insert into t select i, 'later' from generate_series(201, 300) i");
    archive_segment(&cluster);
    wait_for_shipped(&cluster);
    // The archive is there as a whole, and what comes now is in the tail.
    wait_until("the tail is cleared up", AGAIN, || {
        contents(&remote.files(NAME).join("wal-tail")).keys().all(|path| !path.contains(&segment))
    });
    cluster.sql("insert into t select i, 'tail' from generate_series(301, 400) i");
    wait_for_shipped(&cluster);
    let content = cluster.value(CONTENT);
    let archived = "select count(*) from t where i <= 300";
    let shipped: Lsn = cluster.value("select shipped_lsn from nrt.status").parse().expect("an LSN");
    cluster.vanish();
    promise(&remote, shipped);

    let files = remote.files(NAME);
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let backups = files.join("repository/backup/main");
    let whole = |path: &Path| fs::read(path).expect("it is there");
    let of_newest = contents(&backups.join(&newest))
        .into_iter()
        .filter(|(path, _)| !path.contains("manifest"))
        .max_by_key(|(_, content)| content.len())
        .map(|(path, _)| backups.join(&newest).join(path))
        .expect("it has files");

    // Missing or cut off: the plan knows, and takes another one.
    let before = whole(&of_newest);
    for cut in [true, false] {
        if cut {
            fs::write(&of_newest, &before[..before.len() / 2]).expect("it is ours");
        } else {
            fs::remove_file(&of_newest).expect("it is there");
        }
        sleep(Duration::from_secs(1));
        let place = Place::new("older");
        let (code, text) =
            place.run("plan", &[&texts(&remote_arguments)[..], &["--latest"]].concat());
        assert_eq!(code, 0, "{text}");
        assert!(text.contains(&format!("backup {newest}")), "{text}");
        assert!(text.contains("cannot be used") && text.contains(&older), "{text}");
        if !cut {
            let text = place.restored(&arguments);
            assert!(text.contains(&format!("backup {newest}")), "{text}");
            place.cluster.start();
            assert_eq!(place.cluster.value(CONTENT), content);
        }
    }

    // Damaged: pgBackRest finds it, and the operator is told what to take instead.
    fs::write(&of_newest, &before).expect("it is ours");
    damage(&of_newest);
    sleep(Duration::from_secs(1));
    let place = Place::new("instead");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    let name = of_newest.file_name().expect("it has one").to_string_lossy().into_owned();
    let name = name.split('.').next().expect("it has one").to_string();
    assert!(text.contains(&name), "no {name} in {text}");
    let way = format!("--backup {older}");
    assert!(text.contains(&way), "no {way} in {text}");
    place.restored(&[&arguments[..], &["--backup", &older]].concat());
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    drop(place);
    // So that it cannot even be unpacked.
    let mut garbage = before.clone();
    let middle = garbage.len() / 2;
    garbage[middle..].fill(0xff);
    fs::write(&of_newest, &garbage).expect("it is ours");
    sleep(Duration::from_secs(1));
    let place = Place::new("garbage");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&name) && text.contains(&way), "{text}");
    drop(place);
    // Mended meanwhile, the same command takes it: what was fetched is not kept.
    let place = Place::new("mended");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    fs::write(&of_newest, &before).expect("it is ours");
    sleep(Duration::from_secs(1));
    place.restored(&arguments);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    drop(place);

    // Archived WAL in the middle: not a byte short of what is there.
    let group = files.join("repository/archive/main").join(format!(
        "{}-1/{}",
        Cluster::without_data("version").installation().major(),
        &segment[..16]
    ));
    let archive = contents(&group).into_keys().find(|name| name.starts_with(&segment));
    let archive = group.join(archive.expect("it is archived"));
    let before = whole(&archive);
    damage(&archive);
    let place = Place::new("wal");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&segment) && text.contains("is damaged"), "{text}");
    assert!(!is_promoted(&place.cluster));
    fs::write(&archive, &before).expect("it is ours");
    place.restored(&arguments);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    drop(place);

    // The tail: what lies before can be had by whoever says so.
    let tail = files.join("wal-tail");
    let pieces: Vec<PathBuf> = contents(&tail).into_keys().map(|path| tail.join(path)).collect();
    let before: Vec<Vec<u8>> = pieces.iter().map(|path| whole(path)).collect();
    pieces.iter().for_each(|path| damage(path));
    let segments = contents(&tail).into_keys().filter_map(|path| Piece::parse(&path, 16 << 20));
    let begins = segments.map(|it| it.from).min().expect("the tail is there");
    let place = Place::new("tail");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("wal-tail/") && text.contains("--up-to-gap"), "{text}");
    assert!(!is_promoted(&place.cluster));
    let text = place.restored(&[&arguments[..], &["--up-to-gap"]].concat());
    assert!(text.contains("is damaged, and left out"), "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value("select count(*) from t"), "300");
    assert_eq!(place.cluster.value(archived), "300");
    drop(place);
    // Nothing had been promised of it: it was cut on its way, and the WAL ends there.
    promise(&remote, begins);
    let place = Place::new("tail-is-the-end");
    let text = place.restored(&arguments);
    assert!(text.contains("is damaged") && text.contains("the plan ends at"), "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value("select count(*) from t"), "300");
    drop(place);
    for (path, content) in pieces.iter().zip(before) {
        fs::write(path, content).expect("it is ours");
    }
    let restored = Place::new("tail-again").restore(&arguments);
    assert_eq!(restored.value(CONTENT), content);
}

/// A server that plain pgBackRest archives and backs up, with these options.
struct Plain {
    cluster: Cluster,
    config: PathBuf,
}

impl Plain {
    fn new(cluster: Cluster, options: &str) -> Plain {
        let config = cluster.directory().join("plain.conf");
        let text = format!(
            "[global]\nrepo1-path={}\nlock-path={}\nlog-level-file=off\nrepo1-retention-full=9\n\
             {options}\n[main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
            cluster.repository().display(),
            cluster.lock().display(),
            cluster.data().display(),
            cluster.socket().display()
        );
        fs::write(&config, text).expect("the directory is ours");
        let push =
            format!("pgbackrest --config={} --stanza=main archive-push %p", config.display());
        let cluster = cluster
            .preload(false)
            .setting("archive_mode", "on")
            .setting("archive_command", &push)
            .started();
        // It fails until there is a stanza.
        cluster.allow("archiver ");
        let plain = Plain { cluster, config };
        plain.pgbackrest(&["stanza-create"]);
        plain
    }

    fn pgbackrest(&self, arguments: &[&str]) {
        let mut command = self.cluster.installation().command("pgbackrest");
        command.arg(format!("--config={}", self.config.display())).arg("--stanza=main");
        let output = command.args(arguments).output().expect("it is installed");
        assert!(output.status.success(), "{}", crate::offsite::words(&output));
    }
}

/// An instant, after everything that is committed by now and before all that comes.
fn now(cluster: &Cluster) -> String {
    // pgBackRest writes whole seconds: when a backup ended is not known better.
    sleep(Duration::from_millis(1050));
    let now = cluster.value(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
    );
    sleep(Duration::from_millis(20));
    now
}

#[test]
fn a_repository_of_plain_pgbackrest_is_adopted() {
    for (compression, segments) in [("gz", 16), ("lz4", 1)] {
        // The checkpoint of a backup may be long after its beginning: the WAL of both is needed.
        let is_slow = segments == 1;
        let cluster = Cluster::with_segments_of("plain", segments)
            .setting("checkpoint_timeout", "30s")
            .setting("checkpoint_completion_target", "0.1");
        let fast = if is_slow { "n" } else { "y" };
        let plain = Plain::new(cluster, &format!("compress-type={compression}\nstart-fast={fast}"));
        let cluster = &plain.cluster;
        cluster.sql("create table t (i int, filler text)");
        cluster.sql("create table busy as select i, md5(i::text) from generate_series(1, 60000) i");
        std::thread::scope(|scope| {
            scope.spawn(|| plain.pgbackrest(&["--type=full", "backup"]));
            let end = Instant::now() + Duration::from_secs(if is_slow { 4 } else { 0 });
            while Instant::now() < end {
                cluster.sql("update busy set md5 = md5(md5) where i % 20 = 0");
            }
        });
        cluster.sql("insert into t select i, 'archived' from generate_series(1, 100) i");
        let (early, at) = (cluster.value(CONTENT), now(cluster));
        cluster.sql("insert into t select i, 'later' from generate_series(101, 200) i");
        archive_segment(cluster);
        cluster.sql("insert into t select i, 'never archived' from generate_series(201, 300) i");
        let content = cluster.value(CONTENT);

        let repository = format!("--repository={}", cluster.repository().display());
        let target = format!("--target-time={at}");
        let place = Place::new("adopted");
        let place = Place { cluster: place.cluster.preload(false) };
        let text = place.restored(&[&repository, &target]);
        assert!(text.contains("the original runs in"), "{text}");
        place.cluster.start();
        assert_eq!(place.cluster.value(CONTENT), early, "{compression}");
        assert_eq!(place.cluster.value("show archive_mode"), "off");
        if is_slow {
            let label = fs::read_to_string(place.cluster.data().join("backup_label.old"));
            let label = label.expect("PostgreSQL keeps it");
            let at = |name: &str| -> u64 {
                let line =
                    label.lines().find_map(|line| line.strip_prefix(name)).expect("it has it");
                let lsn: Lsn =
                    line.split_whitespace().next().expect("a position").parse().expect("one");
                lsn.0 >> 20
            };
            let (begin, checkpoint) = (at("START WAL LOCATION: "), at("CHECKPOINT LOCATION: "));
            assert!(begin + 2 <= checkpoint, "{label}");
        }
        drop(place);

        cluster.crash();
        let (code, text) = ended(
            of(cluster, "restore", &["--replace", "--no-start", &repository])
                .output()
                .expect("it is installed"),
        );
        assert_eq!(code, 0, "{text}");
        cluster.start();
        assert_eq!(cluster.value(CONTENT), content, "{compression}: {text}");
        assert_eq!(cluster.value("select timeline_id from pg_control_checkpoint()"), "2");
        archive_segment(cluster);
    }
}

#[test]
fn a_server_pauses_or_shuts_down_at_the_target() {
    let original = crate::protected::protected("actions");
    original.sql("create table t as select i, 'before' as filler from generate_series(1, 100) i");
    let (content, at) = (original.value(CONTENT), now(&original));
    original.sql("insert into t select i, 'behind' from generate_series(101, 200) i");
    archive_segment(&original);
    original.stop(Shutdown::Fast);
    let repository = format!("--repository={}", original.repository().display());
    let target = format!("--target-time={at}");
    let arguments = |action| [repository.as_str(), target.as_str(), action];

    let place = Place::new("paused");
    let (code, text) = place.run("restore", &arguments("--action=pause"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("pg_wal_replay_resume"), "{text}");
    let paused = &place.cluster;
    paused.wait_for("select pg_get_wal_replay_pause_state()", "paused", AGAIN);
    assert_eq!(paused.value(CONTENT), content);
    assert_eq!(paused.value("select pg_is_in_recovery()"), "t");
    paused.sql("select pg_wal_replay_resume()");
    paused.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    assert_eq!(paused.value(CONTENT), content);
    paused.sql("insert into t values (999, 'after')");
    stop(paused);
    drop(place);

    let place = Place::new("shut-down");
    let (code, text) = place.run("restore", &arguments("--action=shutdown"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("stopped at the target"), "{text}");
    assert_eq!(place.cluster.processes(), []);
    assert!(!is_promoted(&place.cluster));
    place.cluster.start();
    place.cluster.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    assert_eq!(place.cluster.value(CONTENT), content);
    place.cluster.sql("insert into t values (999, 'after')");
    place.cluster.restart();
    assert_eq!(place.cluster.value("select count(*) from t"), "101");
}

#[test]
fn what_was_raised_after_the_backup_stops_no_recovery() {
    let original = crate::protected::protected("raised");
    original.sql("create table t as select i, 'before' as filler from generate_series(1, 100) i");
    archive_segment(&original);
    let connections = original.value("show max_connections");
    for (name, value) in [
        ("max_connections", 300),
        ("max_wal_senders", 60),
        ("max_worker_processes", 50),
        ("max_prepared_transactions", 40),
        ("max_locks_per_transaction", 256),
    ] {
        original.sql(&format!("alter system set {name} = {value}"));
    }
    original.restart();
    original.sql("insert into t select i, 'raised' from generate_series(101, 200) i");
    // Each takes room as soon as it is replayed.
    original.sql("begin; update t set filler = 'raised' where i = 1; prepare transaction 'a'");
    original.sql("commit prepared 'a'");
    let (content, at) = (original.value(CONTENT), now(&original));
    original.sql("insert into t select i, 'behind' from generate_series(201, 300) i");
    // This one is left in the end, and the server needs room for it when it starts.
    original.sql("begin; insert into t values (999, 'prepared'); prepare transaction 'b'");
    archive_segment(&original);
    let latest = original.value(CONTENT);
    assert_eq!(original.value("select count(*) from nrt.backups"), "1");
    original.stop(Shutdown::Immediate);
    let repository = format!("--repository={}", original.repository().display());
    let target = format!("--target-time={at}");

    let restored = Place::new("with-less").restore(&[&repository]);
    assert_eq!(restored.value(CONTENT), latest);
    assert_eq!(restored.value("show max_connections"), connections);
    assert_eq!(restored.value("show max_prepared_transactions"), "1");
    restored.sql("commit prepared 'b'");
    assert_eq!(restored.value("select filler from t where i = 999"), "prepared");
    drop(restored);

    // The server itself goes on with what was replayed, and needs as much.
    let place = Place::new("with-as-much");
    let (code, text) = place.run("restore", &[&repository, &target, "--action=shutdown"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("max_connections is 300 in postgresql.auto.conf"), "{text}");
    place.cluster.start();
    place.cluster.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    assert_eq!(place.cluster.value(CONTENT), content);
    drop(place);

    // It cannot be known before it replays.
    let place = Place::new("says-so");
    let (code, text) = place.run("restore", &[&repository, &target, "--action=pause"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("its log says which setting to raise"), "{text}");
    let paused = &place.cluster;
    paused.wait_for("select pg_get_wal_replay_pause_state()", "paused", AGAIN);
    paused.sql("alter system set max_connections = 300");
    stop(paused);
}

/// What is beside a path with a word in its name.
fn beside(path: &Path, word: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.parent().expect("it has one")).expect("it is there").flatten();
    entries.map(|it| it.path()).filter(|it| it.to_string_lossy().contains(word)).collect()
}

#[test]
fn what_was_handed_over_is_no_interrupted_restore() {
    let original = crate::protected::protected("handed-over");
    original.sql("create table t as select i, 'before' as filler from generate_series(1, 100) i");
    let at = now(&original);
    original.sql("insert into t select i, 'behind' from generate_series(101, 200) i");
    archive_segment(&original);
    original.stop(Shutdown::Fast);
    let repository = format!("--repository={}", original.repository().display());
    let always = [&*repository, "--copy"];
    let target = format!("--target-time={at}");
    let refused = |place: &Place, arguments: &[&str]| {
        let before = contents(&place.cluster.data());
        let (code, text) = place.run("restore", &[&always, arguments].concat());
        assert_eq!(code, 1, "{arguments:?}: {text}");
        assert!(text.contains("not empty") && text.contains("--replace"), "{arguments:?}: {text}");
        assert!(contents(&place.cluster.data()) == before, "{arguments:?}: something changed");
    };

    // One that paused took writes afterwards; its directory is as it was, and so is the restore's.
    let place = Place::new("in-use");
    let (code, text) = place.run("restore", &[&always[..], &[&target, "--action=pause"]].concat());
    assert_eq!(code, 0, "{text}");
    let cluster = &place.cluster;
    cluster.wait_for("select pg_get_wal_replay_pause_state()", "paused", AGAIN);
    cluster.sql("select pg_wal_replay_resume()");
    cluster.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    cluster.sql("insert into t values (999, 'later')");
    stop(cluster);
    refused(&place, &[&target, "--action=pause"]);
    refused(&place, &[&target, "--no-start"]);
    refused(&place, &["--latest"]);
    let later = contents(&cluster.data());
    // Its own WAL is nowhere else.
    place.restored(&[&always[..], &["--replace"]].concat());
    let [old] = &beside(&cluster.data(), "data.before-restore")[..] else { panic!("{text}") };
    assert!(contents(old) == later, "it is as it was");
    cluster.start();
    assert_eq!(cluster.value("select count(*) from t where filler = 'later'"), "1");
    cluster.stop(Shutdown::Fast);

    // One that was restored and did not start: what is left is to start it, once.
    let left = |place: &Place| place.cluster.data().with_file_name(".data.nrt-restore").exists();
    for by_hand in [false, true] {
        let place = Place::new("mended");
        place.cluster.set("ssl", "on");
        place.cluster.write_settings();
        let (code, text) = place.run("restore", &always);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("does not start"), "{text}");
        refused(&place, &[&target]);
        place.cluster.set("ssl", "off");
        place.cluster.write_settings();
        if by_hand {
            place.cluster.start();
            place.cluster.sql("insert into t values (999, 'later')");
            place.cluster.sql("checkpoint");
            assert!(left(&place), "nothing of it is forgotten");
            let (code, text) = place.run("restore", &always);
            assert_eq!(code, 1, "{text}");
            assert!(text.contains("is what this restore has made, and is in use"), "{text}");
            assert!(!left(&place), "it is done");
            let (code, text) = place.run("restore", &always);
            assert!(code == 1 && text.contains("a server runs in"), "{text}");
            place.cluster.stop(Shutdown::Fast);
            refused(&place, &[]);
            refused(&place, &[&target]);
        } else {
            let (code, text) = place.run("restore", &[&always[..], &["--dry-run"]].concat());
            assert_eq!(code, 0, "{text}");
            assert_eq!(place.cluster.processes(), []);
            let (code, text) = place.run("restore", &always);
            assert_eq!(code, 0, "{text}");
            assert!(text.contains("The server runs."), "{text}");
            assert_eq!(place.cluster.value("select count(*) from t"), "200");
            stop(&place.cluster);
        }
    }
}

#[test]
fn a_restore_runs_no_command_of_the_original() {
    let original = crate::protected::protected("commands");
    let (cleaned, ended) =
        (original.directory().join("cleaned"), original.directory().join("ended"));
    let commands = [("archive_cleanup_command", &cleaned), ("recovery_end_command", &ended)];
    for (name, file) in commands {
        original.sql(&format!("alter system set {name} = 'touch {}'", file.display()));
    }
    original.reload();
    original.sql("select nrt_backup_now('full')");
    // What PostgreSQL cleans after.
    original.sql("create table t as select 1 as i; checkpoint");
    let lsn = original.value("select pg_current_wal_insert_lsn()");
    original.sql("insert into t values (2)");
    archive_segment(&original);
    let repository = format!("--repository={}", original.repository().display());
    let target = format!("--target-lsn={lsn}");
    let untouched = || !cleaned.exists() && !ended.exists();

    // Here the server that recovers is not ours to the end.
    let place = Place::new("stopped");
    let (code, text) = place.run("restore", &[&repository, &target, "--action=shutdown"]);
    assert_eq!(code, 0, "{text}");
    assert!(commands.iter().all(|(name, _)| text.contains(name)), "{text}");
    assert!(untouched());
    place.cluster.start();
    place.cluster.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    assert!(untouched());
    drop(place);

    let restored = Place::new("promoted").restore(&[&repository, &target]);
    assert!(untouched());
    for (name, file) in commands {
        let command = format!("touch {}", file.display());
        assert_eq!(restored.value(&format!("show {name}")), command, "what was set is set");
    }
    // They would have done something.
    restored.stop(Shutdown::Fast);
    restored.set("restore_command", "false");
    fs::write(restored.data().join("standby.signal"), "").expect("the directory is ours");
    restored.start();
    restored.sql("select pg_promote()");
    restored.wait_for("select pg_is_in_recovery()", "f", AGAIN);
    wait_until("it is run", AGAIN, || ended.exists());
}

#[test]
fn a_copy_replays_nothing_into_the_places_of_its_original() {
    let original = crate::protected::protected("places");
    original.sql("create table t as select 1 as i, '' as filler");
    let lsn = original.value("select pg_current_wal_insert_lsn()");
    let directory = |name: &str| {
        let path = original.directory().join(name);
        original.installation().private_directory(&path).expect("the directory is ours");
        original.sql(&format!("create tablespace {name} location '{}'", path.display()));
        path
    };
    let gone = directory("gone");
    original.sql("create table g tablespace gone as select 1 as i; drop table g");
    original.sql("drop tablespace gone");
    archive_segment(&original);
    let changed = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).expect("there");
    let before = changed(&gone);
    let repository = format!("--repository={}", original.repository().display());
    for arguments in [&[&*repository][..], &[&*repository, "--copy"]] {
        let place = Place::new("copy");
        let around = place.around();
        let (code, text) = place.run("restore", &[&["--no-start"], arguments].concat());
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&gone.display().to_string()) && text.contains("HINT"), "{text}");
        assert_eq!(place.around(), around);
        // What comes before is another matter.
        let target = format!("--target-lsn={lsn}");
        let restored = place.restore(&[&[&*target], arguments].concat());
        assert_eq!(restored.value("select count(*) from t"), "1");
    }
    assert_eq!(changed(&gone), before, "something was in it meanwhile");

    // In its place, with all that was there kept and usable.
    let new = directory("new");
    original.sql("create table n tablespace new as select 1 as i");
    archive_segment(&original);
    original.sql("insert into n values (2)");
    let lsn = original.value("select pg_current_wal_flush_lsn()");
    original.sql("insert into n values (3)");
    original.stop(Shutdown::Fast);
    let held = contents(&new);
    let target = format!("--target-lsn={lsn}");
    let mut command =
        of(&original, "restore", &["--replace", "--no-start", "--exclusive", &repository, &target]);
    let (code, text) = ended(command.output().expect("it is installed"));
    assert_eq!(code, 0, "{text}");
    let [aside] = &beside(&new, "new.before-restore")[..] else { panic!("{text}") };
    assert!(contents(aside) == held, "what was moved aside is as it was");
    original.start();
    assert_eq!(original.value("select max(i) from n"), "2");
}

#[test]
fn a_restore_point_is_the_one_that_was_recorded() {
    let remote = Remote::new("points", Kind::WebDav);
    let original = shipping(Cluster::with_identity("points"), &remote);
    original.sql("create table t as select 1 as i");
    // Nobody has recorded the first and the last one; PostgreSQL stops at the first of a name.
    original.sql("select pg_create_restore_point('release')");
    original.sql("insert into t values (2)");
    original.sql("select nrt_restore_point('release')");
    original.sql("insert into t values (3)");
    original.sql("select pg_create_restore_point('release')");
    wait_for_shipped(&original);
    let kept = remote.files(NAME).join("restore-points.json");
    wait_until("it is recorded off-site", AGAIN, || {
        fs::read_to_string(&kept).is_ok_and(|text| text.contains("release"))
    });
    original.vanish();
    let remote_arguments = from(&remote);
    for action in ["promote", "pause", "shutdown"] {
        let action = format!("--action={action}");
        let arguments = ["--target-name=release", "--original", &action];
        let place = Place::new("points");
        let restored = place.restore(&[&arguments[..], &texts(&remote_arguments)].concat());
        assert_eq!(restored.value("select max(i) from t"), "2", "{action}");
    }
}

#[test]
fn tablespaces_and_single_databases_come_back() {
    let original = crate::protected::protected("spaces");
    let space = original.directory().join("space");
    original.installation().private_directory(&space).expect("the directory is ours");
    original.sql(&format!("create tablespace fast location '{}'", space.display()));
    original.sql(
        "create table t tablespace fast as
                  select i, 'fast' as filler from generate_series(1, 1000) i",
    );
    for database in ["wanted", "other"] {
        original.sql(&format!("create database {database}"));
        original.try_sql_as("postgres", database, "create table d as select 1 as i").expect("made");
    }
    original.sql("select nrt_backup_now('full')");
    archive_segment(&original);
    let content = original.value(CONTENT);
    let repository = format!("--repository={}", original.repository().display());

    // The original has its tablespace still: it is not restored into.
    let place = Place::new("mapped");
    let before = place.around();
    let run = |arguments: &[&str]| {
        place.run("restore", &[&["--no-start", &repository], arguments].concat())
    };
    for (arguments, words) in [
        (vec![], ["fast", "--tablespace-map"]),
        (vec!["--tablespace-map=slow=/x"], ["slow", "fast"]),
        (vec!["--tablespace-map=fast=x"], ["fast=x", "/DIRECTORY"]),
        (vec!["--db-include=unknown"], ["unknown", "wanted"]),
    ] {
        let (code, text) = run(&arguments);
        assert_eq!(code, 1, "{arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
        assert_eq!(place.around(), before, "{arguments:?}");
    }
    let mapped = place.cluster.directory().join("mapped");
    let map = format!("--tablespace-map=fast={}", mapped.display());
    let (code, text) = run(&[&map, "--db-include=wanted", "--db-include=postgres"]);
    assert_eq!(code, 0, "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    assert_eq!(
        place
            .cluster
            .value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'"),
        mapped.display().to_string()
    );
    let of_database = |name| place.cluster.try_sql_as("postgres", name, "select i from d");
    assert!(of_database("wanted").is_ok());
    place.cluster.allow("client backend");
    assert!(of_database("other").is_err(), "it was left out");
    drop(place);

    // In place, with all that was there kept and usable.
    original.stop(Shutdown::Fast);
    let (code, text) = ended(
        of(&original, "restore", &["--replace", "--no-start", &repository])
            .output()
            .expect("it is installed"),
    );
    assert_eq!(code, 0, "{text}");
    let [old_space] = &beside(&space, "space.before-restore")[..] else { panic!("{text}") };
    let [old] = &beside(&original.data(), "data.before-restore")[..] else { panic!("{text}") };
    let links = fs::read_dir(old.join("pg_tblspc")).expect("it is there").flatten();
    let links: Vec<PathBuf> = links.filter_map(|it| fs::read_link(it.path()).ok()).collect();
    assert_eq!(links.as_slice(), std::slice::from_ref(old_space));
    original.start();
    assert_eq!(original.value(CONTENT), content);
}

#[test]
fn a_copy_is_refreshed_in_its_own_tablespaces_only() {
    let original = crate::protected::protected("kept-space");
    let space = original.directory().join("space");
    original.installation().private_directory(&space).expect("the directory is ours");
    original.sql(&format!("create tablespace fast location '{}'", space.display()));
    let rows = "select i, 'fast' as filler from generate_series(1, 1000) i";
    original.sql(&format!("create table t tablespace fast as {rows}"));
    original.sql("select nrt_backup_now('full')");
    archive_segment(&original);
    let content = original.value(CONTENT);
    // What no backup has.
    original.sql(&format!("create table later tablespace fast as {rows}"));
    original.sql("checkpoint");
    let before = contents(&space);
    let repository = format!("--repository={}", original.repository().display());

    let place = Place::new("refreshed");
    let copy = place.cluster.directory().join("copy");
    let map = format!("--tablespace-map=fast={}", copy.display());
    let run = |arguments: &[&str]| {
        let always = [&*repository, "--copy", "--no-start"];
        place.run("restore", &[&always[..], arguments].concat())
    };
    let refused = |arguments: &[&str]| {
        let (code, text) = run(arguments);
        assert_eq!(code, 1, "{arguments:?}: {text}");
        for word in [&space.display().to_string(), &map.replace('=', " "), "not empty"] {
            let text = text.replace('=', " ");
            assert!(text.contains(word), "{arguments:?}: no {word} in {text}");
        }
        assert!(contents(&space) == before, "{arguments:?}: the original's has changed");
    };
    // As if it was interrupted when pgBackRest had done its part.
    let interrupted = place.cluster.directory().join("fakes/interrupted");
    let script = "#!/bin/bash\npgbackrest \"$@\" && [[ ${!#} != restore ]]\n";
    fs::write(&interrupted, script).expect("the directory is ours");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&interrupted, mode).expect("it is ours");
    let (code, text) = run(&[&map, &format!("--pgbackrest={}", interrupted.display())]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("pgBackRest could not restore"), "{text}");
    refused(&[]);
    let (code, text) = run(&[&map]);
    assert_eq!(code, 0, "{text}");
    refused(&["--delta"]);
    let (code, text) = run(&["--delta", &map]);
    assert_eq!(code, 0, "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    place.cluster.stop(Shutdown::Fast);
}

/// A file system of its own, as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(place: &Path, account: Account) -> Mounted {
        fs::create_dir(place).expect("the directory is ours");
        let options = format!("size=300m,mode=0700,uid={},gid={}", account.uid, account.gid);
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place).status();
        assert!(status.is_ok_and(|status| status.success()));
        Mounted(place.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: the last process that has a file open there may take a moment to go.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_mount_point_keeps_what_was_in_it() {
    let place = Place::new("mounted");
    let Some(account) = place.cluster.installation().account() else { return };
    let original = Cluster::with_segments_of("to-a-mount", 1);
    let original = crate::protected::started(crate::protected::quiet(original));
    original.sql(
        "create table t as select i, repeat('x', 500) as filler from generate_series(1, 20000) i",
    );
    original.sql("select nrt_backup_now('full')");
    archive_segment(&original);
    let content = original.value(CONTENT);
    original.stop(Shutdown::Fast);
    let repository = format!("--repository={}", original.repository().display());
    let data = place.cluster.data();
    let _mounted = Mounted::new(&data, account);
    place.restored(&[&repository]);
    // Each server that was restored begins with a full backup, and is stopped in the midst of it.
    place.cluster.allow("aborting backup due to backend exiting");
    place.cluster.start();
    place.cluster.sql("create table kept ()");
    place.cluster.stop(Shutdown::Fast);

    // Its own timeline is the newest; its WAL is nowhere else. The mount point is open to all, as
    // `mount` leaves it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&data, open).expect("it is ours");
    place.restored(&["--replace", &repository]);
    let state = place.cluster.state_directory();
    let inside = || beside(&state.join("x"), "before-restore");
    assert_eq!(inside().len(), 1);
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    assert_eq!(place.cluster.value("select count(*) from kept"), "0");
    place.cluster.stop(Shutdown::Fast);

    let mut child = place.begin(&["--replace", "--timeline=1", &repository]);
    let log = place.work().join("recovery.log");
    wait_until("it has been moved up", AGAIN, || {
        log.exists() || child.try_wait().expect("it is our child").is_some()
    });
    kill(pid(&child), Signal::KILL);
    let (_, text) = (child.wait().expect("it is our child"), child.wait_with_output());
    eprintln!("{}", crate::offsite::words(&text.expect("it is our child")));
    place.restored(&["--replace", "--timeline=1", &repository]);
    let old = inside();
    assert_eq!(old.len(), 2, "{old:?}");
    assert!(old.iter().all(|old| old.join("PG_VERSION").is_file() && old.join("base").is_dir()));
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    assert!(place.cluster.try_sql("select from kept").is_err());
    place.cluster.allow("client backend 42P01");
    place.cluster.stop(Shutdown::Fast);
}

/// A cluster as Debian has it: no file of its configuration is in the data directory. And where the
/// main one is.
fn with_configuration_elsewhere(name: &str) -> (Cluster, PathBuf) {
    let cluster = Cluster::with_identity(name);
    let etc = cluster.directory().join("etc");
    let write = |path: &str, text: &str| {
        let path = etc.join(path);
        fs::write(&path, text).expect("the directory is ours");
        cluster.installation().hand_over(&path).expect("it was just made");
    };
    cluster.installation().private_directory(&etc).expect("its parent is there");
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
            "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\nwork_mem = '5MB'\n\
             include '../settings.conf'\n",
            text(cluster.data()),
            text(etc.join("pg_hba.conf")),
            text(etc.join("pg_ident.conf")),
        ),
    );
    let main = etc.join("postgresql.conf");
    (cluster.argument(&format!("--config_file={}", main.display())), main)
}

#[test]
fn configuration_that_lies_elsewhere_is_found_before_anything_is_touched() {
    let (original, main) = with_configuration_elsewhere("outside");
    let original = crate::protected::started(crate::protected::quiet(original));
    // What was restored is stopped at once, in the midst of its first backup.
    for words in ["nrt_backup health: ", "nrt_backup job ", "archiver "] {
        original.allow(words);
    }
    original.sql("create table t as select i, 'etc' as filler from generate_series(1, 100) i");
    archive_segment(&original);
    let content = original.value(CONTENT);
    original.stop(Shutdown::Fast);
    let repository = format!("--repository={}", original.repository().display());

    // As it was started last; also where that is mended after everything was moved.
    let text = fs::read_to_string(&main).expect("it is there");
    fs::write(&main, format!("{text}no_such_setting = 1\n")).expect("it is ours");
    let restore = || {
        let arguments = ["--replace", "--no-start", &repository];
        ended(of(&original, "restore", &arguments).output().expect("it is installed"))
    };
    let (code, words) = restore();
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("no_such_setting") && words.contains("tries again"), "{words}");
    assert!(!original.data().join("postmaster.opts").exists(), "what was there is aside");
    fs::write(&main, &text).expect("it is ours");
    let (code, words) = restore();
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("data-configuration/start.conf"), "{words}");
    original.start();
    assert_eq!(original.value(CONTENT), content);
    assert_eq!(original.value("select timeline_id from pg_control_checkpoint()"), "2");
    original.stop(Shutdown::Fast);

    // Nothing says where it is.
    fs::remove_file(original.data().join("postmaster.opts")).expect("the server wrote it");
    let place = Place::new("elsewhere");
    let before = place.around();
    let (code, words) = place.run("restore", &["--no-start", &repository]);
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("postgresql.conf") && words.contains("--config-file"), "{words}");
    let inside = format!("--config-file={}", place.cluster.data().join("mine.conf").display());
    let (code, words) = place.run("restore", &["--no-start", &repository, &inside]);
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("a directory that a restore replaces"), "{words}");
    assert_eq!(place.around(), before);
    place.restored(&[&repository, &format!("--config-file={}", main.display())]);
    let start = place.cluster.directory().join("data-configuration/start.conf");
    let own = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let (socket, repository) = (place.cluster.socket(), place.cluster.repository());
    let cluster = place
        .cluster
        .argument(&own("config_file", start))
        .argument(&own("unix_socket_directories", socket))
        .argument(&own("nrt_backup.repository", repository));
    cluster.start();
    assert_eq!(cluster.value(CONTENT), content);
    assert_eq!(cluster.value("show work_mem"), "5MB");
    assert_eq!(cluster.value("show data_directory"), cluster.data().display().to_string());
}

#[test]
fn configuration_that_lay_elsewhere_comes_back_beside_the_data_directory() {
    let remote = Remote::new("etc", Kind::WebDav);
    let (original, _) = with_configuration_elsewhere("etc");
    let original = shipping(original, &remote);
    original.sql("create table t as select i, 'etc' as filler from generate_series(1, 100) i");
    // No WAL tells it: a backup does.
    original.sql("alter system set maintenance_work_mem = '7MB'");
    back_up(&original, "incr");
    wait_for_shipped(&original);
    let list = remote.files(NAME).join("configuration/files.json");
    wait_until("the configuration is there", AGAIN, || list.exists());
    let content = original.value(CONTENT);
    original.vanish();

    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let place = Place::new("beside-the-data");
    // It is there already, and stays what it is.
    let taken = place.cluster.directory().join("data-configuration");
    place.cluster.installation().private_directory(&taken).expect("the directory is ours");
    fs::write(taken.join("mine"), "mine").expect("the directory is ours");
    let text = place.restored(&arguments);
    assert!(text.contains("start with -c config_file="), "{text}");
    assert_eq!(contents(&taken).into_keys().collect::<Vec<_>>(), ["mine"]);
    drop(place);

    let place = Place::new("beside-the-data");
    let text = place.restored(&arguments);
    let start = place.cluster.directory().join("data-configuration/start.conf");
    assert!(text.contains(&start.display().to_string()), "{text}");
    // With the original's settings, but beside it.
    let own = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let (socket, repository) = (place.cluster.socket(), place.cluster.repository());
    let cluster = place
        .cluster
        .argument(&own("config_file", start.clone()))
        .argument(&own("unix_socket_directories", socket))
        .argument(&own("nrt_backup.repository", repository));
    cluster.start();
    assert_eq!(cluster.value(CONTENT), content);
    let settings = "select current_setting('work_mem') || current_setting('maintenance_work_mem')";
    assert_eq!(cluster.value(settings), "5MB7MB");
    assert_eq!(cluster.value("show data_directory"), cluster.data().display().to_string());
    let hba = start.with_file_name("pg_hba.conf").display().to_string();
    assert_eq!(cluster.value("show hba_file"), hba);
}

#[test]
fn a_tablespace_that_is_newer_than_the_backup_is_made() {
    let remote = Remote::new("newer_space", Kind::WebDav);
    let original = shipping(Cluster::with_identity("newer_space"), &remote);
    let space = original.directory().join("space");
    original.installation().private_directory(&space).expect("the directory is ours");
    original.sql(&format!("create tablespace space location '{}'", space.display()));
    original.sql(
        "create table t tablespace space as
             select i, 'new' as filler from generate_series(1, 100) i",
    );
    wait_for_shipped(&original);
    wait_until("the owner tells of the tablespace", AGAIN, || {
        !owner_of(&remote).tablespaces.is_empty()
    });
    let content = original.value(CONTENT);
    let id = original.value("select oid from pg_tablespace where spcname = 'space'");
    original.vanish();
    fs::remove_dir_all(&space).expect("nobody is left who writes there");

    let remote_arguments = from(&remote);
    let place = Place::new("space-is-made");
    // Where it cannot be made, that is said before anything is fetched.
    fs::write(&space, "in the way").expect("the directory is ours");
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let (code, words) = place.run("restore", &[&["--no-start"], &arguments[..]].concat());
    assert_eq!(code, 1, "{words}");
    assert!(words.contains(&format!("--tablespace-map {id}=")), "{words}");
    assert!(!words.contains("fetch:") && !place.work().exists(), "{words}");
    fs::remove_file(&space).expect("it is ours");

    // To another directory: nothing is left at the place that the WAL names.
    let other = place.cluster.directory().join("other");
    let map = format!("--tablespace-map={id}={}", other.display());
    let cluster = place.restore(&[&arguments[..], &[&map]].concat());
    assert_eq!(cluster.value(CONTENT), content);
    let location = format!("select pg_tablespace_location({id})");
    assert_eq!(cluster.value(&location), other.display().to_string());
    assert!(fs::symlink_metadata(&space).is_err());
    drop(cluster);

    let place = Place::new("space-is-there-again");
    let text = place.restored(&arguments);
    assert!(text.contains("the WAL creates it anew"), "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
    let held = fs::read_dir(&space).expect("it was made").count();
    assert_eq!(held, 1, "the restored cluster's own directory is in it");
}

#[test]
fn an_encrypted_repository_needs_its_passphrase() {
    let remote = Remote::new("encrypted", Kind::WebDav);
    let cluster = Cluster::with_identity("encrypted");
    let pass = "verschwiegen-und-lang";
    let config = crate::protected::own_configuration(
        &cluster,
        &cluster.repository(),
        &format!("repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={pass}\nrepo1-bundle=y"),
    );
    let cluster = shipping(cluster, &remote);
    cluster.sql("create table t as select i, 'hidden' as filler from generate_series(1, 100) i");
    back_up(&cluster, "incr");
    cluster.sql("insert into t select i, 'archived' from generate_series(101, 200) i");
    let content = cluster.value(CONTENT);
    // The tail would not be encrypted: only finished segments go off-site.
    let flushed = cluster.value("select pg_current_wal_flush_lsn()");
    archive_segment(&cluster);
    cluster.wait_for(&format!("select shipped_lsn >= '{flushed}' from nrt.status"), "t", AGAIN);
    let kept = Place::new("with-passphrase");
    let copy = kept.cluster.directory().join("passphrase.conf");
    fs::copy(&config, &copy).expect("the directory is ours");
    kept.cluster.installation().hand_over(&copy).expect("it was just made");
    cluster.vanish();

    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--original"]].concat();
    let before = kept.around();
    let (code, text) = kept.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("encrypted") && text.contains("--pgbackrest-config"), "{text}");
    assert_eq!(kept.around(), before);
    let own = format!("--pgbackrest-config={}", copy.display());
    let text = kept.restored(&[&arguments[..], &[&own]].concat());
    assert!(!text.contains(pass), "{text}");
    kept.cluster.start();
    assert_eq!(kept.cluster.value(CONTENT), content);
}

#[test]
fn secrets_are_seen_nowhere() {
    let remote = Remote::behind_proxy("secrets", Kind::WebDav);
    let content = lost_in_many_segments("secrets", &remote);
    let config = fs::read(remote.config()).expect("it was written");
    let encoded = base64::engine::general_purpose::STANDARD.encode(config);
    let mut secrets = remote.secrets();
    secrets.push(encoded.clone());
    let hides = |what: &str, text: &str| {
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{what} tells a secret");
    };
    let at = format!("--remote={}", remote.place(NAME));
    let place = Place::new("hidden");
    let around = place.around();
    let run = |word: &str| {
        let mut command = place.command(word, &["--latest", &at]);
        if word == "restore" {
            command.args(["--original", "--no-start"]);
        }
        command.env("RCLONE_CONF_BASE64", &encoded);
        command
    };
    if place.cluster.installation().account().is_some() {
        // What root was told lies nowhere afterwards, and is in nobody's way.
        let (code, text) = ended(run("restore").uid(0).gid(0).output().expect("it is installed"));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("as root") && text.contains("runuser"), "{text}");
        assert_eq!(place.around(), around);
    }
    remote.proxy().delay(Duration::from_millis(100));
    let mut command = run("restore");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it is installed");
    while child.try_wait().expect("it is our child").is_none() {
        for process in place.cluster.processes() {
            hides("a command line", &process.command);
        }
        sleep(Duration::from_millis(20));
    }
    let (code, text) = ended(child.wait_with_output().expect("it is our child"));
    assert_eq!(code, 0, "{text}");
    hides("the output", &text);
    let left: Vec<String> = place.around().into_iter().filter(|it| !around.contains(it)).collect();
    assert_eq!(left, ["data"]);
    for (path, content) in contents(&place.cluster.data()) {
        hides(&path, &String::from_utf8_lossy(&content));
    }
    remote.proxy().mend();
    remote.revoke();
    for word in ["plan", "restore"] {
        let (code, text) = ended(run(word).output().expect("it is installed"));
        assert_eq!(code, 1, "{text}");
        hides("an error", &text);
    }
    place.cluster.start();
    assert_eq!(place.cluster.value(CONTENT), content);
}
