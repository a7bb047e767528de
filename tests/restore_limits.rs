//! Shows that a restore and a drill reach their plan or fail, and that nothing on a remote can hurt
//! whoever reads it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::offsite::{AGAIN, NAME, contents, owner_of, shipping, wait_for_shipped};
use crate::protected::archive_segment;
use crate::restoring::{Place, from, texts};
use nrt_core::lsn::Lsn;
use nrt_core::offsite::tail::Piece;
use nrt_tests::{Cluster, Kind, Remote, Shutdown, is_root, wait_until};

/// Bytes of a segment here.
const SIZE: u64 = 1 << 20;

/// An object of the tail, with what it holds.
struct Object {
    path: PathBuf,
    piece: Piece,
    packed: Vec<u8>,
}

impl Object {
    fn content(&self) -> Vec<u8> {
        zstd::decode_all(&self.packed[..]).expect("it is whole")
    }

    fn replace(&self, content: &[u8]) {
        let packed = zstd::encode_all(content, 1).expect("it is packed");
        fs::write(&self.path, packed).expect("it is ours");
    }
}

/// The objects of the tail, in the order of the WAL.
fn tail(remote: &Remote) -> Vec<Object> {
    let directory = remote.files(NAME).join("wal-tail");
    let object = |(path, packed): (String, Vec<u8>)| {
        let piece = Piece::parse(&path, SIZE)?;
        Some(Object { path: directory.join(path), piece, packed })
    };
    let mut found: Vec<Object> = contents(&directory).into_iter().filter_map(object).collect();
    found.sort_by_key(|it| (it.piece.from, it.piece.to));
    found
}

/// A cluster with small segments that ships to a remote, with a part of its rows in the archive.
fn shipped(name: &str, remote: &Remote) -> Cluster {
    let cluster = shipping(Cluster::with_segments_of(name, 1), remote);
    cluster.sql("create table t as select i from generate_series(1, 100) i");
    archive_segment(&cluster);
    wait_for_shipped(&cluster);
    cluster
}

/// The object of the tail that alone holds the WAL behind a position.
fn object_behind(remote: &Remote, lsn: Lsn) -> Option<Object> {
    tail(remote).into_iter().find(|it| it.piece.from <= lsn && lsn < it.piece.to)
}

fn flushed(cluster: &Cluster) -> Lsn {
    cluster.value("select pg_current_wal_flush_lsn()").parse().expect("a position")
}

#[test]
fn a_restore_reaches_its_plan_or_fails() {
    let remote = Remote::new("reach", Kind::Local);
    let cluster = shipped("reach", &remote);
    cluster.sql("insert into t select generate_series(101, 200)");
    wait_for_shipped(&cluster);
    let before = flushed(&cluster);
    cluster.sql("insert into t select generate_series(201, 300)");
    wait_for_shipped(&cluster);
    cluster.sql("insert into t select generate_series(301, 400)");
    wait_for_shipped(&cluster);
    // What lies behind the last promise may end the WAL where it is damaged, with a warning.
    let all = flushed(&cluster);
    wait_until("all of it is promised", AGAIN, || {
        owner_of(&remote).shipped.is_some_and(|it| it.flushed >= all)
    });

    // An object whose own checksum is right, and in which the server has read a damaged record.
    let object = object_behind(&remote, before).expect("it is in the tail");
    let whole = object.content();
    let mut damaged = whole.clone();
    let place = usize::try_from(before.since(object.piece.from)).expect("small");
    damaged[place + 300..place + 500].fill(0x5a);
    object.replace(&damaged);
    let failed = cluster.try_sql("select nrt_drill_now()").expect_err("the drill must fail");
    assert!(failed.to_string().contains("is not valid"), "{failed}");
    cluster.vanish();

    let arguments = from(&remote);
    let arguments = [&texts(&arguments)[..], &["--original"]].concat();
    let place = Place::new("short");
    let (code, text) = place.run("restore", &arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("is damaged: the plan ends at"), "{text}");
    assert!(text.contains("--up-to-gap"), "{text}");
    // Nothing was moved, and nothing is left.
    assert!(!place.cluster.data().join("PG_VERSION").exists());
    assert!(!place.work().exists());
    let text = place.restored(&[&arguments[..], &["--latest", "--up-to-gap"]].concat());
    assert!(text.contains("what lies behind is not restored"), "{text}");
    place.cluster.start();
    assert_eq!(place.cluster.value("select count(*) from t"), "200");
    drop(place);

    // What an overlapping object holds as well is taken from there.
    object.replace(&whole);
    let path = object.path.clone();
    fs::write(&path, &object.packed[..object.packed.len() - 3]).expect("it is ours");
    let (code, text) = Place::new("cut").run("restore", &[&["--json"], &arguments[..]].concat());
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("wal-tail/") && text.contains("is damaged"), "{text}");
    assert!(text.contains("\"code\": \"wal_damaged\""), "{text}");
    // The first half of it, and all of it but that half and some bytes before.
    let piece = object.piece;
    let half = piece.to.since(piece.from) / 2;
    let parts = [
        Piece { to: Lsn(piece.from.0 + half), ..piece },
        Piece { from: Lsn(piece.from.0 + half / 2), ..piece },
    ];
    for part in parts {
        let [from, to] = [part.from, part.to].map(|at| at.since(piece.from));
        let [from, to] = [from, to].map(|at| usize::try_from(at).expect("small"));
        let beside = remote.files(NAME).join("wal-tail").join(part.path(SIZE));
        assert!(!beside.exists(), "{}", beside.display());
        Object { path: beside, piece: part, packed: Vec::new() }.replace(&whole[from..to]);
    }
    let restored = Place::new("whole").restore(&arguments);
    assert_eq!(restored.value("select count(*) from t"), "400");
}

#[test]
fn a_record_that_is_damaged_in_the_archive_ends_no_restore_in_silence() {
    let cluster = Cluster::with_segments_of("short_archive", 1);
    let cluster = crate::protected::started(crate::protected::quiet(cluster));
    cluster.sql("create table t as select i from generate_series(1, 100) i");
    let segment = archive_segment(&cluster);
    cluster.sql("insert into t select generate_series(101, 200)");
    archive_segment(&cluster);
    cluster.stop(Shutdown::Fast);
    // As the server itself had read it: the name is that of the content.
    let archive = cluster.repository().join("archive/main");
    let stored = contents(&archive).into_keys().find(|path| path.contains(&segment));
    let stored = archive.join(stored.expect("it is archived"));
    let name = stored.file_name().expect("it has one").to_string_lossy().into_owned();
    let content = fs::read(&stored).expect("it is there");
    assert!(name.ends_with(".zst"), "{name}");
    let mut content = zstd::decode_all(&content[..]).expect("it is whole");
    assert_eq!(content.len() as u64, SIZE);
    let used = content.iter().rposition(|byte| *byte != 0).expect("it is used");
    content[used - 2000..used - 1900].fill(0x5a);
    fs::remove_file(&stored).expect("it is ours");
    let damaged = stored.with_file_name(format!("{segment}-{}", sha1_of(&content)));
    fs::write(&damaged, &content).expect("it is ours");

    let repository = format!("--repository={}", cluster.repository().display());
    let place = Place::new("short_restore");
    let (code, text) = place.run("restore", &["--original", &repository]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("recovery ended at") && text.contains("before the end of its plan"),
        "{text}"
    );
    assert!(text.contains("--up-to-gap") && text.contains("was not started"), "{text}");
    // It is nobody's yet.
    assert!(!place.cluster.state_directory().join("restored.json").exists());
    assert!(place.cluster.state_directory().join("recovering").exists());
    let (code, text) =
        place.run("restore", &["--original", &repository, "--latest", "--up-to-gap"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("note") && text.contains("recovery ended at"), "{text}");
    stop(&place.cluster);
}

fn sha1_of(content: &[u8]) -> String {
    use std::io::Write;
    let mut sum = std::process::Command::new("sha1sum");
    let mut sum = sum
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it is installed");
    sum.stdin.take().expect("a pipe").write_all(content).expect("it reads");
    let output = sum.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a sum").to_string()
}

/// Stops a server that `nrt-backup restore` has started.
fn stop(cluster: &Cluster) {
    let mut program = cluster.installation().command(cluster.installation().program("pg_ctl"));
    program.args(["stop", "-w", "-m", "fast", "-D"]).arg(cluster.data());
    assert!(program.status().is_ok_and(|it| it.success()));
}

/// Replaces a file by one of so many bytes that take no room.
fn grow(path: &Path, length: u64) {
    let file = File::options().write(true).create(true).truncate(true).open(path);
    file.and_then(|file| file.set_len(length)).expect("it is ours");
}

#[test]
fn nothing_that_is_read_costs_more_than_its_kind() {
    const HUGE: u64 = 1_500_000_000;
    let remote = Remote::new("limits", Kind::Local);
    let cluster = shipped("limits", &remote);
    let files = remote.files(NAME);
    cluster.sql("insert into t select generate_series(101, 200)");
    wait_for_shipped(&cluster);

    // Its owner reads no more of it than such a file can be, and writes it anew from what the copy says.
    let owner = files.join("owner.json");
    let largest = || {
        let outbox = contents(&cluster.state_directory().join("outbox"));
        outbox.values().map(Vec::len).max().unwrap_or(0)
    };
    let mut grown = 0;
    wait_until("it is written anew twice", AGAIN, || {
        if fs::metadata(&owner).is_ok_and(|it| it.len() < HUGE) {
            grow(&owner, HUGE);
            grown += 1;
        }
        assert!(largest() < 100_000_000);
        grown > 2
    });
    let status = "select shipping || ' ' || (shipped_lsn is not null) from nrt.status";
    cluster.wait_for(status, "shipping true", AGAIN);
    for process in cluster.processes() {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid));
        let status = status.unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|it| it.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        assert!(peak.is_none_or(|kilobytes| kilobytes < 1_000_000), "{process:?}: {peak:?}");
    }
    cluster.vanish();
    grow(&owner, HUGE);

    // An object that unpacks to more than it says is damaged.
    let object = tail(&remote).pop().expect("there is a tail");
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 3_000_000_000), 1);
    let bomb = bomb.expect("it is packed");
    assert!(bomb.len() < 1_000_000, "{}", bomb.len());
    let arguments = from(&remote);
    let arguments = [&texts(&arguments)[..], &["--original"]].concat();
    for content in [bomb, vec![7; 20_000_000]] {
        fs::write(&object.path, content).expect("it is ours");
        let place = Place::new("bomb");
        let mut command = place.command("restore", &arguments);
        // An address space in which 3 GB have no room.
        limit_memory(&mut command);
        let (code, text) = crate::restoring::ended(command.output().expect("it is installed"));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("wal-tail/") && text.contains("is damaged"), "{text}");
    }
    fs::write(&object.path, &object.packed).expect("it is ours");
    // Whose the remote is does not matter to whoever restores it.
    let restored = Place::new("huge_owner").restore(&arguments);
    assert_eq!(restored.value("select count(*) from t"), "200");
}

fn limit_memory(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let limit = rustix::process::Rlimit { current: Some(2 << 30), maximum: Some(2 << 30) };
    let hook = move || {
        rustix::process::setrlimit(rustix::process::Resource::As, limit)?;
        Ok(())
    };
    // SAFETY: the hook makes one system call.
    #[allow(unsafe_code, reason = "a limit of a child is set between fork and exec")]
    unsafe {
        command.pre_exec(hook)
    };
}

#[test]
fn a_restore_for_which_there_is_no_room_is_not_begun() {
    if !is_root() {
        return;
    }
    let original = crate::protected::protected("room_original");
    original.sql("create table t as select 1");
    archive_segment(&original);
    original.stop(Shutdown::Fast);
    let repository = format!("--repository={}", original.repository().display());
    let small = Cluster::without_data("room").repository_on_tmpfs(10);
    crate::offsite::allow_faults(&small);
    small.write_settings();
    let data = small.repository().join("data");
    let mut command = small.installation().command(small.installation().program("nrt-backup"));
    command.args(["restore", "--no-start", "--original", &repository]).arg("-D").arg(&data);
    let (code, text) = crate::restoring::ended(command.output().expect("it is installed"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("there is no room for the restore: it needs "), "{text}");
    assert!(text.contains("MB are free") && text.contains("--ignore-space"), "{text}");
    assert!(!data.exists(), "nothing was made");
}
