//! Ships by itself, without PostgreSQL: from a recorded repository and a WAL file that grows, to a
//! directory. What a test says on its standard input is what a worker would.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::layout::{self, Restored};
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::owner::{self, Owner};
use nrt_core::offsite::tail::{DIRECTORY, Piece};
use nrt_core::offsite::{Comparison, Phase, Plan, Position, Status};
use nrt_core::pgbackrest::ini::checksum;
use nrt_core::restore::catalog::RestorePoint;
use nrt_core::restore::points;
use nrt_process::identity;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

const NRT_BACKUP: &str = env!("CARGO_BIN_EXE_nrt-backup");

/// Longer than any machine needs for what a test waits for.
const LONG: Duration = Duration::from_secs(60);
/// Bytes of a WAL segment.
const SIZE: u64 = 1 << 20;
/// The first segment that there is.
const FIRST: u64 = 5;
/// The cluster's system identifier. JSON's readers in other languages would lose digits of it.
const SYSTEM: u64 = 7_400_000_000_000_000_123;
/// The archive's identifier: PostgreSQL 15, the stanza's first cluster.
const ARCHIVE: &str = "archive/main/15-1";
/// A backup of the recorded repository.
const LABEL: &str = "20261122-010203F";

/// What a backup's only file holds.
const DATA: &str = "the data\n";

/// A file as pgBackRest writes it, with its checksum.
fn proved(text: &str) -> String {
    format!("{text}\n[backrest]\nbackrest-checksum=\"{}\"\n", checksum(text))
}

/// The manifest of a backup of one file, in one bundle.
fn manifest(data: &str) -> String {
    let hash: String = Sha1::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    let size = data.len();
    proved(&format!(
        "[backup]\nbackup-bundle=true\n\n[target:file]\npg_data/1={{\"bni\":1,\"checksum\":\
         \"{hash}\",\"rck\":\"{hash}\",\"repo-size\":{size},\"size\":{size}}}\n\n\
         [target:path:default]\nmode=\"0700\"\n"
    ))
}

/// A place with a data directory, a repository and a remote, all of them directories.
struct World {
    root: TempDir,
}

impl World {
    fn new() -> World {
        let world = World { root: tempfile::tempdir().expect("a directory can be made") };
        let plain = [
            (
                "rclone.conf".to_string(),
                format!("[there]\ntype = alias\nremote = {}\n", world.text("remote")),
            ),
            ("repository/archive/main/archive.info".to_string(), proved("[db]\ndb-id=1\n")),
            (
                "repository/backup/main/backup.info".to_string(),
                proved(&format!("[backup:current]\n{LABEL}={{}}\n\n[db]\ndb-id=1\n")),
            ),
            (format!("repository/backup/main/{LABEL}/backup.manifest"), manifest(DATA)),
            (format!("repository/backup/main/{LABEL}/bundle/1"), DATA.to_string()),
        ];
        for (path, content) in plain {
            world.write(&path, content.as_bytes());
        }
        for directory in ["state", "data/pg_wal", "remote"] {
            fs::create_dir_all(world.path(directory)).expect("the directory is ours");
        }
        for number in FIRST..FIRST + 3 {
            let segment = Segment { timeline: 1, number };
            world.write(&format!("data/pg_wal/{}", segment.name(SIZE)), &wal(segment));
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("the directory is ours");
        fs::write(path, content).expect("the directory is ours");
    }

    /// What the cluster has on the remote.
    fn there(&self) -> PathBuf {
        self.path("remote/backups/main")
    }

    /// Has the remote belong to somebody.
    fn own(&self, owner: &Owner) {
        let text = serde_json::to_vec(owner).expect("an owner is JSON");
        self.write(&format!("remote/backups/main/{}", owner::FILE), &text);
    }

    fn plan(&self) -> Plan {
        Plan {
            state: self.text("state"),
            data_directory: self.text("data"),
            system_id: SYSTEM,
            segment_size: SIZE,
            stanza: "main".to_string(),
            own_config: None,
            repository: self.text("repository"),
            configuration_files: Vec::new(),
            rclone: "rclone".to_string(),
            rclone_config: self.text("rclone.conf"),
            remote_name: None,
            remote_path: "backups".to_string(),
            name: "main".to_string(),
            transfers: 2,
            bandwidth_limit: None,
            comparison_schedule: "off".to_string(),
            zone: "UTC".to_string(),
            portable_tar: false,
            archives: true,
            heartbeat: 1,
            retention_days: 1,
            listing: 3600,
            interval: 1000,
            report_interval: 1000,
        }
    }

    /// The plan of another instance of the same cluster.
    fn twin(&self) -> Plan {
        fs::create_dir_all(self.path("twin")).expect("the directory is ours");
        Plan { state: self.text("twin"), ..self.plan() }
    }

    /// Who owns the remote.
    fn owner(&self) -> Option<Owner> {
        let read = |name: &str| fs::read(self.there().join(name)).ok();
        // The file may be written at this very moment.
        for _ in 0..100 {
            if let Ok(owner) = serde_json::from_slice(&read(owner::FILE)?) {
                return Some(owner);
            }
            sleep(Duration::from_millis(5));
        }
        // A killed process has cut it off: the copy is whole.
        serde_json::from_slice(&read(owner::COPY)?).ok()
    }

    fn ship(&self) -> Ship {
        World::ship_by(&self.plan())
    }

    fn ship_by(plan: &Plan) -> Ship {
        World::ship_in(plan, &[])
    }

    /// Ships with variables in the environment.
    fn ship_in(plan: &Plan, environment: &[(&str, &str)]) -> Ship {
        let plan = serde_json::to_string(plan).expect("a plan is JSON");
        let mut child = Command::new(NRT_BACKUP)
            .args(["ship", &plan])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command runs");
        let input = child.stdin.take();
        Ship { child, input }
    }

    fn status(&self) -> Status {
        self.status_in("state")
    }

    fn status_in(&self, state: &str) -> Status {
        let text = fs::read(self.path(state).join("ship.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The pieces of the tail that are whole on the remote, each with what it holds.
    fn pieces(&self) -> Vec<(Piece, Vec<u8>)> {
        let root = self.there().join(DIRECTORY);
        let mut found = Vec::new();
        for (path, packed) in files(&root) {
            let piece = Piece::parse(&path, SIZE).unwrap_or_else(|| panic!("what is \"{path}\"?"));
            // One that was being written when its writer was killed counts as missing.
            if let Ok(content) = zstd::decode_all(&packed[..]) {
                found.push((piece, content));
            }
        }
        found
    }

    /// How far the pieces on the remote reach without a gap. Checks each of them against the WAL,
    /// and that none goes beyond what was told.
    fn reached(&self, told: Lsn) -> Lsn {
        let mut pieces = self.pieces();
        pieces.sort_by_key(|(piece, _)| (piece.from, piece.to));
        let mut reached = Lsn(FIRST * SIZE);
        for (piece, content) in pieces {
            assert!(piece.to <= told, "{piece:?} goes beyond {told}");
            let start = piece.segment.start(SIZE);
            let stretch = in_memory(piece.from.since(start))..in_memory(piece.to.since(start));
            assert!(content == wal(piece.segment)[stretch], "{piece:?} holds something else");
            if piece.from <= reached {
                reached = reached.max(piece.to);
            }
        }
        reached
    }

    fn wait_for(&self, told: Lsn) {
        until(&format!("the remote reaches {told}"), || self.reached(told) == told);
    }
}

/// A running `nrt-backup ship`. It is killed when this is dropped.
struct Ship {
    child: Child,
    input: Option<ChildStdin>,
}

impl Ship {
    fn tell(&mut self, flushed: Lsn) {
        self.tell_on(1, flushed);
    }

    fn tell_on(&mut self, timeline: u32, flushed: Lsn) {
        let position = Position { timeline, flushed };
        let line = serde_json::to_string(&position).expect("a position is JSON") + "\n";
        let input = self.input.as_mut().expect("it is open");
        input.write_all(line.as_bytes()).expect("it is read");
    }

    /// Ends its standard input, as a worker does that ends, and tells how long it then took.
    fn end(mut self) -> Duration {
        drop(self.input.take());
        let begin = Instant::now();
        until("it ends", || self.child.try_wait().expect("it is our child").is_some());
        begin.elapsed()
    }

    fn kill(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Ship {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The remote as a server shows it that may take its time for a request.
struct Slow {
    server: Child,
    held: Arc<Mutex<Option<(String, Duration)>>>,
    address: String,
}

impl Slow {
    fn serve(world: &World) -> Slow {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let behind = free().local_addr().expect("it has one").to_string();
        let server = Command::new("rclone")
            .args(["serve", "webdav", &world.text("remote"), "--addr", &behind])
            // What is changed in the directory itself is seen, too.
            .args(["--dir-cache-time", "0s"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rclone is installed");
        until("it answers", || TcpStream::connect(&behind).is_ok());
        let listener = free();
        let address = listener.local_addr().expect("it has one").to_string();
        let held: Arc<Mutex<Option<(String, Duration)>>> = Arc::default();
        let slow = Slow { server, held: Arc::clone(&held), address };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&behind).expect("it answers");
                let back = (server.try_clone().expect("open"), client.try_clone().expect("open"));
                let held = Arc::clone(&held);
                thread::spawn(move || Slow::relay(client, server, &held));
                thread::spawn(move || Slow::relay(back.0, back.1, &Mutex::new(None)));
            }
        });
        slow
    }

    fn relay(mut from: TcpStream, mut to: TcpStream, held: &Mutex<Option<(String, Duration)>>) {
        let mut bytes = [0; 1 << 14];
        while let Ok(count) = from.read(&mut bytes)
            && count > 0
        {
            let line = String::from_utf8_lossy(&bytes[..count.min(200)]).into_owned();
            let matched = held.lock().expect("not poisoned").take_if(|it| line.starts_with(&it.0));
            if let Some((_, time)) = matched {
                sleep(time);
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        // The other one may be gone before.
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Answers the next request that begins so after a while.
    fn hold(&self, request: &str, time: Duration) {
        *self.held.lock().expect("not poisoned") = Some((request.to_string(), time));
    }

    /// Whether that request has come.
    fn holds(&self) -> bool {
        self.held.lock().expect("not poisoned").is_none()
    }

    /// A plan that ships through it.
    fn plan(&self, world: &World, plan: Plan) -> Plan {
        let text = format!("[there]\ntype = webdav\nurl = http://{}\n", self.address);
        world.write("slow.conf", text.as_bytes());
        Plan { rclone_config: world.text("slow.conf"), ..plan }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a segment has a megabyte")
}

/// The content of a segment: no two places are alike, and nothing packs well.
fn wal(segment: Segment) -> Vec<u8> {
    let mut state = segment.number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(in_memory(SIZE));
    while bytes.len() < in_memory(SIZE) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// A segment in the archive, as pgBackRest stores it: the path of its file, and what is in it.
fn archived(segment: Segment) -> (String, Vec<u8>) {
    let (name, content) = (segment.name(SIZE), wal(segment));
    let hash: String = Sha1::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let packed = zstd::encode_all(&content[..], 1).expect("memory is there");
    (format!("{ARCHIVE}/{}/{name}-{hash}.zst", &name[..16]), packed)
}

/// Every file below a directory, by path.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(content) = fs::read(&path) {
                let name = path.strip_prefix(root).expect("it is below");
                found.insert(name.to_string_lossy().into_owned(), content);
            }
        }
    }
    found
}

/// A position within the first segment, or behind it.
fn at(offset: u64) -> Lsn {
    Lsn(FIRST * SIZE + offset)
}

#[test]
fn the_tail_holds_exactly_the_wal_up_to_where_it_is_on_disk() {
    let world = World::new();
    let mut ship = world.ship();
    // Within a record, within a page, over a segment's end, at its very end, and twice the same.
    for offset in [1, 77, 8192, 100_001, 100_001, SIZE - 1, SIZE + 5, 2 * SIZE, 2 * SIZE + 4096] {
        ship.tell(at(offset));
        world.wait_for(at(offset));
    }
    // The repository goes up beside it, and only what is finished of it.
    let there = world.there();
    until("the repository is there", || there.join("repository/backup/main/backup.info").exists());
    let here = files(&world.path("repository"));
    for (path, content) in files(&there.join("repository")) {
        let original = here.get(path.trim_end_matches(".copy"));
        assert_eq!(original, Some(&content), "{path} is another one");
    }
    let told = files(&there).into_keys().filter(|it| !it.starts_with("repository"));
    assert_eq!(told.filter(|it| it.starts_with(owner::FILE)).count(), 2, "whose it is");
    until("the status says so", || world.status().backups == [LABEL]);
}

#[test]
fn many_positions_become_few_objects() {
    let world = World::new();
    let mut ship = world.ship();
    let positions = 80;
    for number in 1..=positions {
        ship.tell(at(number * 1000));
        world.wait_for(at(number * 1000));
    }
    // Fifteen of each kind at most, and those that are about to be removed.
    until("they are folded", || world.pieces().len() <= 31);
    assert_eq!(world.reached(at(positions * 1000)), at(positions * 1000));
}

#[test]
fn an_archived_segment_takes_the_place_of_its_tail() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(500));
    world.wait_for(at(500));
    ship.tell(at(SIZE + 600));
    world.wait_for(at(SIZE + 600));
    let first = Segment { timeline: 1, number: FIRST };
    let name = first.name(SIZE);
    let (archived, packed) = archived(first);
    world.write(&format!("repository/{archived}"), &packed);
    let tail = world.there().join(DIRECTORY).join("00000001");
    until("its tail is gone", || !tail.join(&name).exists());
    // Never before: what is removed must be there as a whole.
    let there = world.there().join("repository").join(&archived);
    assert!(fs::read(there).expect("it is there") == packed, "it is not whole");
    let next = Segment { timeline: 1, number: FIRST + 1 };
    assert!(tail.join(next.name(SIZE)).exists(), "the next segment's tail is needed still");
}

#[test]
fn what_rclone_was_writing_when_it_was_killed_is_no_segment() {
    let world = World::new();
    let first = Segment { timeline: 1, number: FIRST };
    let (archived, packed) = archived(first);
    let there = world.there().join("repository").join(&archived);
    // From version 1.63 on it gives a file its name at the end.
    let half = format!("remote/backups/main/repository/{archived}.a1b2c3d4.partial");
    world.write(&half, &packed[..packed.len() / 2]);
    let mut ship = world.ship();
    for offset in [500, SIZE + 600] {
        ship.tell(at(offset));
        world.wait_for(at(offset));
    }
    // Nor does it keep the whole one from getting there.
    world.write(&format!("repository/{archived}"), &packed);
    until("the segment is there", || fs::read(&there).is_ok_and(|it| it == packed));
    until("the backup is there", || world.status().backups == [LABEL]);
    assert_eq!(world.status().mirror_failure, None);
}

#[test]
fn the_tail_of_a_segment_that_is_cut_off_stays() {
    let world = World::new();
    // The remote is this instance's: another one's tail would be set aside.
    let ship = world.ship();
    until("it ships", || world.status().phase == Phase::Shipping);
    ship.kill();
    // It vanished while it sent the first one, and has neither any more.
    let [first, next] = [FIRST, FIRST + 1].map(|number| Segment { timeline: 1, number });
    for (segment, part) in [(first, 2), (next, 1)] {
        let (path, packed) = archived(segment);
        let half = &packed[..packed.len() / part];
        world.write(&format!("remote/backups/main/repository/{path}"), half);
        let piece = Piece { segment, from: segment.start(SIZE), to: segment.end(SIZE) };
        let content = zstd::encode_all(&wal(segment)[..], 1).expect("memory is there");
        let path = format!("remote/backups/main/{DIRECTORY}/{}", piece.path(SIZE));
        world.write(&path, &content);
    }
    let mut ship = world.ship();
    ship.tell(at(2 * SIZE + 600));
    let pieces_of = |segment| {
        world.pieces().into_iter().filter(move |(piece, _)| piece.segment == segment).count()
    };
    until("the tail of the whole one is gone", || pieces_of(next) == 0);
    assert_eq!(pieces_of(first), 1);
    // Also where it is sure by now what is whole.
    ship.kill();
    let mut ship = world.ship();
    ship.tell(at(2 * SIZE + 600));
    until("it ships", || world.status().phase == Phase::Shipping);
    sleep(Duration::from_secs(1));
    assert_eq!(pieces_of(first), 1);
}

#[test]
fn what_was_cut_off_while_it_was_brought_back_is_never_sent() {
    let world = World::new();
    let older = "20261121-010203F";
    let backup = format!("backup/main/{older}");
    let [half, none] =
        [FIRST - 2, FIRST - 1].map(|number| archived(Segment { timeline: 1, number }));
    for (path, content) in [
        (format!("{backup}/backup.manifest"), manifest(DATA).as_bytes()),
        (format!("{backup}/bundle/1"), DATA.as_bytes()),
        (half.0.clone(), &half.1[..]),
        (none.0.clone(), &none.1[..]),
    ] {
        world.write(&format!("remote/backups/main/repository/{path}"), content);
    }
    let restored = Restored {
        at: chrono::DateTime::UNIX_EPOCH,
        backup: older.to_string(),
        source: "there:backups/main".to_string(),
        timeline: 1,
        lsn: at(0),
        last_commit: None,
        is_copy: false,
        full_taken: None,
        target: None,
        phases: None,
        backups: None,
    };
    world.write(
        &format!("state/{}", layout::RESTORED),
        &serde_json::to_vec(&restored).expect("JSON"),
    );
    world.write(&format!("repository/{}", half.0), &half.1[..half.1.len() / 2]);
    // The info files come from the remote, with the restore.
    let list = format!("[backup:current]\n{older}={{}}\n{LABEL}={{}}\n\n[db]\ndb-id=1\n");
    world.write("repository/backup/main/backup.info", proved(&list).as_bytes());
    let staging = "repository/archive/main/.bring-back";
    world.write(&format!("{staging}/15-1/0000000100000000/x.a1b2c3d4.partial"), b"half");

    let mut ship = world.ship();
    ship.tell(at(1));
    let manifest = world.path(&format!("repository/{backup}/backup.manifest"));
    until("the older backup is here", || manifest.exists());
    until("both backups are there", || world.status().backups == [older, LABEL]);
    for (path, content) in [half, none] {
        for place in [world.path("repository"), world.there().join("repository")] {
            let found = fs::read(place.join(&path)).expect("it is there");
            assert!(found == content, "\"{path}\" is not whole at {}", place.display());
        }
    }
    assert!(!world.path(staging).exists(), "what was left is still there");
    assert!(!files(&world.there()).into_keys().any(|path| path.contains("bring-back")));
}

#[test]
fn nothing_of_a_timeline_is_there_before_its_history() {
    let world = World::new();
    let left = at(500);
    let history = format!("1\t{left}\tno recovery target specified\n");
    world.write("data/pg_wal/00000002.history", history.as_bytes());
    let segment = Segment { timeline: 2, number: FIRST };
    world.write(&format!("data/pg_wal/{}", segment.name(SIZE)), &wal(segment));
    let of_the_new = || world.pieces().into_iter().any(|(piece, _)| piece.segment.timeline == 2);
    let mut ship = world.ship();
    ship.tell(left);
    world.wait_for(left);
    ship.tell_on(2, at(800));
    // The archiver needs a moment.
    for _ in 0..20 {
        sleep(Duration::from_millis(100));
        assert!(!of_the_new(), "who restored this could not follow it");
    }
    world.write(&format!("repository/{ARCHIVE}/00000002.history"), history.as_bytes());
    until("the new timeline is there", of_the_new);
    let there = world.there().join("repository").join(ARCHIVE).join("00000002.history");
    assert_eq!(fs::read_to_string(there).expect("it is there"), history);
}

#[test]
fn it_goes_on_wherever_it_was_killed() {
    let world = World::new();
    let mut told = 0;
    for round in 0_u64..8 {
        let mut ship = world.ship();
        // From within the start of rclone to the middle of shipments.
        for step in 0..1 + round % 4 {
            told += 17_000 + 1_000 * step;
            ship.tell(at(told));
            sleep(Duration::from_millis(20 + round * 53 % 160));
        }
        ship.kill();
        world.reached(at(told));
    }
    let mut ship = world.ship();
    ship.tell(at(told));
    world.wait_for(at(told));
    until("all of the repository is there", || world.status().backups == [LABEL]);
}

#[test]
fn a_backup_of_which_something_is_missing_is_not_called_there() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1));
    until("the backup is there", || world.status().backups == [LABEL]);
    ship.kill();
    let data = world.there().join(format!("repository/backup/main/{LABEL}/bundle/1"));
    fs::remove_file(&data).expect("it was there");
    fs::remove_file(world.path("state/ship.json")).expect("it was there");
    let mut ship = world.ship();
    ship.tell(at(2));
    until("the backup is there again", || {
        let said = world.status().backups == [LABEL];
        assert!(!said || data.exists(), "it is not there as a whole");
        said
    });
    ship.end();
}

#[test]
fn a_scheduled_comparison_sends_again_what_is_missing() {
    let world = World::new();
    let plan = Plan { comparison_schedule: "* * * * *".to_string(), ..world.plan() };
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    until("the backup is there", || world.status().backups == [LABEL]);
    let data = world.there().join(format!("repository/backup/main/{LABEL}/bundle/1"));
    fs::remove_file(&data).expect("it was there");
    let path = format!("backup/main/{LABEL}/bundle/1");
    let deadline = Instant::now() + Duration::from_secs(90);
    while !world.status().comparison.is_some_and(|it| it.repaired.named.contains(&path)) {
        assert!(Instant::now() < deadline, "it is not compared: {:?}", world.status().comparison);
        sleep(Duration::from_millis(100));
    }
    until("the file is there again", || data.exists());
    until("the backup is called there again", || world.status().backups == [LABEL]);
}

#[test]
fn restore_points_go_aside_with_what_they_name_and_the_others_stay() {
    let point = |name: &str, number: u64| RestorePoint {
        name: name.to_string(),
        timeline: 1,
        lsn: Lsn(number),
        at: chrono::DateTime::from_timestamp(0, 0).expect("a time"),
    };
    let json = |points: &[RestorePoint]| serde_json::to_vec(points).expect("JSON");
    let (old, new) = (point("old", 1), point("new", 2));
    for is_set_aside in [true, false] {
        let world = World::new();
        world.write("remote/backups/main/restore-points.json", &json(std::slice::from_ref(&old)));
        let here = "state/restore-points.jsonl";
        world.write(here, &points::line(&new).expect("JSON"));
        if is_set_aside {
            world.write("state/takeover", b"set-aside");
        }
        let mut ship = world.ship();
        ship.tell(at(1));
        let there = || fs::read(world.there().join("restore-points.json")).unwrap_or_default();
        let expected =
            if is_set_aside { vec![new.clone()] } else { vec![old.clone(), new.clone()] };
        until("the points are there", || there() == json(&expected));
        let mut known = points::parse(&fs::read(world.path(here)).expect("it is there"));
        known.sort_by_key(|point| point.lsn);
        assert_eq!(known, expected);
        let aside = files(&world.there().join("superseded"));
        let aside: Vec<_> = aside
            .iter()
            .filter(|(path, _)| path.ends_with("/restore-points.json"))
            .map(|(_, content)| content.clone())
            .collect();
        let gone = if is_set_aside { vec![json(std::slice::from_ref(&old))] } else { Vec::new() };
        assert_eq!(aside, gone);
    }
}

#[test]
fn a_list_that_is_cut_off_is_written_anew() {
    let world = World::new();
    world.write("remote/backups/main/restore-points.json", b"[{\"name\":\"hal");
    let mut ship = world.ship();
    ship.tell(at(1));
    until("it ships", || world.status().phase == Phase::Shipping);
    let point = RestorePoint {
        name: "here".to_string(),
        timeline: 1,
        lsn: Lsn(1),
        at: chrono::DateTime::from_timestamp(0, 0).expect("a time"),
    };
    world.write("state/restore-points.jsonl", &points::line(&point).expect("JSON"));
    let there = || fs::read(world.there().join("restore-points.json")).unwrap_or_default();
    until("it is whole", || there() == serde_json::to_vec(&[&point]).expect("JSON"));
}

#[test]
fn a_session_that_cannot_begin_is_not_called_shipping() {
    let world = World::new();
    fs::remove_file(world.path("rclone.conf")).expect("it was there");
    let mut ship = world.ship();
    ship.tell(at(1));
    until("it fails", || world.status().phase == Phase::Failing);
    // It is tried again, and is no other than it was.
    for step in 0..20 {
        ship.tell(at(2 + step));
        sleep(Duration::from_millis(100));
        let status = world.status();
        assert_eq!(status.phase, Phase::Failing);
        assert!(status.failure.is_some_and(|it| it.message.contains("rclone.conf")));
        assert!(status.failing_since.is_some());
    }
    world.write(
        "rclone.conf",
        format!("[there]\ntype = alias\nremote = {}\n", world.text("remote")).as_bytes(),
    );
    until("it ships", || world.status().phase == Phase::Shipping);
    assert_eq!(world.status().failure, None);
}

#[test]
fn half_a_piece_counts_for_nothing() {
    let world = World::new();
    let mut ship = world.ship();
    for offset in [40_000, 80_000, 120_000] {
        ship.tell(at(offset));
        world.wait_for(at(offset));
    }
    ship.kill();
    // As a killed rclone leaves it where files are seen while they are written.
    let root = world.there().join(DIRECTORY);
    let (path, content) = files(&root).into_iter().nth(1).expect("there are three");
    fs::write(root.join(&path), &content[..content.len() / 2]).expect("the directory is ours");
    assert_eq!(world.reached(at(120_000)), at(40_000));

    let mut ship = world.ship();
    ship.tell(at(120_000));
    world.wait_for(at(120_000));
    let broken = || files(&root).into_values().filter(|it| zstd::decode_all(&it[..]).is_err());
    until("the half is gone", || broken().count() == 0);
    assert_eq!(world.reached(at(120_000)), at(120_000));
}

/// Another instance that has written to the remote, long ago.
fn another(system: u64) -> Owner {
    Owner {
        system_identifier: system.to_string(),
        instance: "another".to_string(),
        host: "elsewhere".to_string(),
        timeline: 1,
        heartbeat: chrono::DateTime::UNIX_EPOCH,
        unsettled: false,
        superseded: None,
        aside: None,
        complete_until: None,
        shipped: None,
        tablespaces: std::collections::BTreeMap::new(),
    }
}

#[test]
fn a_restored_copy_takes_no_remote_before_it_is_told_to() {
    let world = World::new();
    let mark = Restored {
        at: chrono::DateTime::UNIX_EPOCH,
        backup: LABEL.to_string(),
        source: "there:backups/main".to_string(),
        timeline: 1,
        lsn: at(0),
        last_commit: None,
        is_copy: true,
        full_taken: None,
        target: None,
        phases: None,
        backups: None,
    };
    world.write("state/restored.json", &serde_json::to_vec(&mark).expect("JSON"));
    let mark_now = || -> Restored {
        let text = fs::read(world.path("state/restored.json")).expect("it is there");
        serde_json::from_slice(&text).expect("it is whole")
    };
    let plan = Plan { archives: false, ..world.plan() };
    let failure = || world.status().failure.expect("it says why");

    // Neither where nobody is, nor from an original that is silent for long.
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    until("it is fenced", || world.status().phase == Phase::Fenced);
    sleep(Duration::from_secs(6));
    assert_eq!(world.status().phase, Phase::Fenced);
    assert_eq!(files(&world.path("remote")).len(), 0);
    world.own(&another(SYSTEM));
    let before = files(&world.path("remote"));
    until("it sees the original", || failure().message.contains("elsewhere"));
    sleep(Duration::from_secs(6));
    assert_eq!(world.status().phase, Phase::Fenced);

    // Nobody could follow the timeline that it writes.
    world.write("state/takeover", b"");
    until("it answers", || !world.path("state/takeover").exists());
    assert_eq!(world.status().phase, Phase::Fenced);
    assert!(failure().hint.contains("ALTER SYSTEM RESET archive_mode"), "{:?}", failure());
    assert!(files(&world.path("remote")) == before, "something was changed");
    assert!(mark_now().is_copy);
    ship.end();

    let mut ship = world.ship();
    ship.tell(at(1));
    let only_told = |it: Failure| !it.hint.contains("archive_mode");
    until("it would take over", || world.status().failure.is_some_and(only_told));
    world.write("state/takeover", b"");
    until("it ships", || world.status().phase == Phase::Shipping);
    assert_eq!(mark_now(), Restored { is_copy: false, ..mark });
    world.wait_for(at(1));
}

#[test]
fn an_owner_that_lists_for_long_is_not_taken_for_dead() {
    let world = World::new();
    let slow = Slow::serve(&world);
    // A silent instance counts as alive for four of these.
    let plan = slow.plan(&world, Plan { heartbeat: 3, ..world.plan() });
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    world.wait_for(at(1));
    let instance = world.owner().expect("somebody ships here").instance;
    let mut twin = World::ship_by(&Plan { heartbeat: 3, ..world.twin() });
    twin.tell(at(1));
    until("the twin is fenced", || world.status_in("twin").phase == Phase::Fenced);
    ship.kill();
    slow.hold(&format!("PROPFIND /backups/main/{DIRECTORY}"), Duration::from_secs(20));
    let mut ship = World::ship_by(&plan);
    ship.tell(at(2));
    until("it lists", || slow.holds());
    for _ in 0..190 {
        assert_eq!(world.status_in("twin").phase, Phase::Fenced);
        sleep(Duration::from_millis(100));
    }
    world.wait_for(at(2));
    assert_eq!(world.owner().expect("somebody ships here").instance, instance);
}

#[test]
fn who_moves_for_long_takes_nothing_back_that_another_has_taken() {
    let world = World::new();
    let slow = Slow::serve(&world);
    world.own(&another(SYSTEM));
    let theirs = format!("remote/backups/main/{DIRECTORY}/00000001/of-the-other");
    world.write(&theirs, b"a piece");
    slow.hold("MOVE ", Duration::from_secs(6));
    world.write("state/takeover", b"");
    let mut ship = World::ship_by(&slow.plan(&world, world.plan()));
    ship.tell(at(1));
    until("it moves", || slow.holds());
    // Between two signs of life.
    let beat = world.owner().map(|it| it.heartbeat);
    until("it lives", || world.owner().map(|it| it.heartbeat) != beat);
    sleep(Duration::from_millis(300));
    // What was asked for once is not asked for again.
    fs::remove_file(world.path("state/takeover")).expect("it is not done yet");
    let third = Owner { instance: "third".to_string(), ..another(SYSTEM) };
    world.own(&third);
    for _ in 0..80 {
        sleep(Duration::from_millis(100));
        assert_eq!(world.owner(), Some(third.clone()));
        // It stays silent: after some time the remote may be taken for good.
        if world.status().phase == Phase::Fenced {
            return;
        }
    }
    panic!("it is not fenced: {:?}", world.status());
}

#[test]
fn a_move_that_is_interrupted_goes_on_in_its_place() {
    let world = World::new();
    let slow = Slow::serve(&world);
    let theirs = ["repository/backup/main/old/backup.manifest", "repository/backup/main/old/data"];
    for path in theirs {
        world.write(&format!("remote/backups/main/{path}"), path.as_bytes());
    }
    world.own(&another(SYSTEM));
    slow.hold("MOVE ", Duration::from_secs(3));
    world.write("state/takeover", b"set-aside");
    let plan = slow.plan(&world, world.plan());
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    until("it moves", || slow.holds());
    let place = world.owner().and_then(|it| it.aside).expect("the place is known");
    let request = fs::read_to_string(world.path("state/takeover")).expect("it is not done yet");
    assert_eq!(request, format!("set-aside\n{place}"));
    ship.kill();
    // Places are named after the time.
    sleep(Duration::from_secs(1));
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    world.wait_for(at(1));
    let aside = files(&world.there().join("superseded"));
    let name = place.trim_start_matches("superseded/");
    let expected = theirs.map(|path| (format!("{name}/{path}"), path.as_bytes().to_vec()));
    assert_eq!(aside, BTreeMap::from(expected));
    assert!(!world.path("state/takeover").exists());
    let owner = world.owner().expect("somebody ships here");
    assert_eq!((owner.unsettled, owner.aside), (false, None));
}

#[test]
fn what_another_has_begun_to_move_is_moved_to_its_end() {
    let world = World::new();
    let (data, manifest) = ("repository/backup/main/old/data", "repository/archive/main/old");
    let place = "set-aside/20260101-010101";
    world.write(&format!("remote/backups/main/{data}"), b"left");
    world.write(&format!("remote/backups/main/{place}/{manifest}"), b"moved");
    world.own(&Owner { unsettled: true, aside: Some(place.to_string()), ..another(SYSTEM) });
    let mut ship = world.ship();
    ship.tell(at(1));
    world.wait_for(at(1));
    let aside = files(&world.there().join(place));
    let expected =
        [(data.to_string(), b"left".to_vec()), (manifest.to_string(), b"moved".to_vec())];
    assert_eq!(aside, BTreeMap::from(expected));
}

/// Whether both ship for one moment. Each says so itself.
fn both_ship(world: &World) -> bool {
    ["state", "twin"].iter().all(|it| world.status_in(it).phase == Phase::Shipping)
}

#[test]
fn two_that_find_nothing_do_not_both_ship() {
    let world = World::new();
    let mut ships = [world.plan(), world.twin()].map(|plan| World::ship_by(&plan));
    for ship in &mut ships {
        ship.tell(at(1));
    }
    let phases = || ["state", "twin"].map(|it| world.status_in(it).phase);
    until("one of them ships", || {
        assert!(!both_ship(&world), "both ship");
        phases().contains(&Phase::Shipping) && phases().contains(&Phase::Fenced)
    });
    let shipping = || {
        let first = world.status().phase == Phase::Shipping;
        if first { "state" } else { "twin" }
    };
    let before = shipping();
    assert_eq!(files(&world.there().join("superseded")).len(), 0, "there was nothing to move");

    // Nobody is said to own it any more: whoever takes it waits for the other to see that.
    let name = world.there().join(owner::FILE);
    for file in [owner::COPY, owner::FILE] {
        fs::remove_file(world.there().join(file)).expect("somebody ships here");
    }
    until("somebody owns it again", || {
        assert!(!both_ship(&world), "both ship");
        name.exists() && world.status_in(before).phase != Phase::Shipping
    });
    until("one of them ships", || {
        assert!(!both_ship(&world), "both ship");
        phases().contains(&Phase::Shipping) && phases().contains(&Phase::Fenced)
    });
}

#[test]
fn the_repository_of_another_cluster_is_not_claimed_where_nobody_owns_it() {
    let world = World::new();
    let info = b"[db]\ndb-id=1\n\n[db:history]\n1={\"db-id\":999,\"db-version\":\"15\"}\n";
    world.write("remote/backups/main/repository/archive/main/archive.info", info);
    let before = files(&world.path("remote"));
    for request in ["", "set-aside"] {
        world.write("state/takeover", request.as_bytes());
        let mut ship = world.ship();
        ship.tell(at(1));
        let words = || world.status().failure.map_or(String::new(), |it| it.message);
        until("it says why", || words().contains("of another cluster"));
        sleep(Duration::from_secs(2));
        assert!(files(&world.path("remote")) == before, "something was changed");
        ship.end();
        fs::remove_file(world.path("state/ship.json")).expect("it was there");
    }
}

#[test]
fn what_belongs_to_another_cluster_is_never_touched() {
    let world = World::new();
    let owner = another(SYSTEM + 1);
    world.own(&owner);
    world.write("remote/backups/main/repository/backup/main/backup.info", b"of the other");
    let before = files(&world.path("remote"));
    let mut ship = world.ship();
    ship.tell(at(1000));
    until("it is fenced", || world.status().phase == Phase::Fenced);
    // Many heartbeats later: only another instance of the same cluster can be gone.
    for step in 0..12 {
        ship.tell(at(2000 + step));
        sleep(Duration::from_millis(500));
    }
    assert_eq!(world.status().phase, Phase::Fenced);
    let words = world.status().failure.expect("it says why").message;
    assert!(words.contains(&owner.system_identifier), "{words}");
    assert!(files(&world.path("remote")) == before, "something was changed");
    ship.end();
    assert!(files(&world.path("remote")) == before, "something was changed at the end");
}

#[test]
fn at_its_end_it_ships_what_it_has_heard_of() {
    // The server waits no longer than this. On a busy machine that may be too short, ten times not.
    let in_time = |took: Duration| took < Duration::from_millis(1500);
    let everything_is_there = (0..10).any(|_| {
        let world = World::new();
        let mut ship = world.ship();
        ship.tell(at(100));
        world.wait_for(at(100));
        ship.tell(at(70_000));
        let took = ship.end();
        let reached = world.reached(at(70_000));
        assert!(reached == at(70_000) || !in_time(took), "it had time: {took:?}, {reached}");
        in_time(took)
    });
    assert!(everything_is_there, "it never had time");
    // Nobody said where the WAL is: there is nothing to wait for.
    assert!((0..10).any(|_| in_time(World::new().ship().end())), "it waits for nothing");
}

#[test]
fn a_sign_of_life_that_vanishes_moves_nothing_of_its_own() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1000));
    world.wait_for(at(1000));
    let name = world.there().join(owner::FILE);
    // As by rclone itself, which removes what it could not write as a whole; also while nobody runs.
    fs::remove_file(&name).expect("somebody ships here");
    until("it is there again", || name.exists());
    ship.kill();
    fs::remove_file(&name).expect("somebody ships here");
    let mut ship = world.ship();
    ship.tell(at(2000));
    world.wait_for(at(2000));
    assert_eq!(files(&world.there().join("superseded")).len(), 0, "its own tail was moved");
}

/// The disk of a machine in another one: all files, also those that no copy of a data directory has,
/// and the directory as it was. Only the run of the machine is another one.
fn clone_of_the_machine(world: &World, to: &str) -> Plan {
    let (here, there) = (world.path("state"), world.path(to));
    fs::create_dir_all(&there).expect("the directory is ours");
    for name in [identity::CARRIED, identity::BOUND, layout::PROMISES] {
        fs::copy(here.join(name), there.join(name)).expect("it is there");
    }
    let change = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let path = there.join(name);
        let text = fs::read(&path).expect("it is there");
        let mut value = serde_json::from_slice(&text).expect("JSON");
        change(&mut value);
        fs::write(path, value.to_string()).expect("the directory is ours");
    };
    let found = fs::metadata(&there).expect("it is there");
    change(identity::BOUND, &|value| {
        value["place"]["directory"] = found.ino().into();
        value["place"]["made"] = serde_json::Value::Null;
    });
    change(layout::PROMISES, &|value| {
        for promised in value.as_object_mut().expect("a map").values_mut() {
            promised["run"] = "another".into();
        }
    });
    Plan { state: world.text(to), ..world.plan() }
}

#[test]
fn a_clone_of_the_machine_never_takes_the_remote_from_a_living_one() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1000));
    world.wait_for(at(1000));
    let owner = world.owner().expect("somebody ships here").instance;
    // Of the running machine, and started at once.
    let mut clone = World::ship_by(&clone_of_the_machine(&world, "clone"));
    clone.tell(at(1000));
    until("the clone is fenced", || {
        assert_ne!(world.status_in("clone").phase, Phase::Shipping);
        assert_ne!(world.status().phase, Phase::Fenced);
        world.status_in("clone").phase == Phase::Fenced
    });
    let words = world.status_in("clone").failure.expect("it says why").message;
    assert!(words.contains("clone of this server"), "{words}");
    ship.tell(at(2000));
    world.wait_for(at(2000));
    assert_eq!(world.owner().expect("somebody ships here").instance, owner);
    // What it has is its own still; when the other one is gone, it goes on under another name.
    ship.kill();
    clone.tell(at(3000));
    until("the clone ships", || world.status_in("clone").phase == Phase::Shipping);
    assert_ne!(world.owner().expect("somebody ships here").instance, owner);
    world.wait_for(at(3000));
    assert_eq!(files(&world.there().join("superseded")).len(), 0, "it is the same life");
}

#[test]
fn a_machine_that_was_started_anew_goes_on_with_its_remote() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1000));
    world.wait_for(at(1000));
    let owner = world.owner().expect("somebody ships here").instance;
    ship.kill();
    // Its disk, in another run; nobody else has it.
    let mut clone = World::ship_by(&clone_of_the_machine(&world, "clone"));
    clone.tell(at(2000));
    world.wait_for(at(2000));
    assert_eq!(world.owner().expect("somebody ships here").instance, owner);
    assert_eq!(files(&world.there().join("superseded")).len(), 0, "its own tail was moved");
}

#[test]
fn an_owner_json_that_is_cut_off_fences_nobody() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1000));
    world.wait_for(at(1000));
    until("it ships", || world.status().phase == Phase::Shipping);
    let owner = world.owner().expect("somebody ships here").instance;
    let name = world.there().join(owner::FILE);
    let copy = world.there().join(owner::COPY);
    let both = || [&name, &copy].map(|it| fs::read(it).ok());
    let is_whole = |text: &Option<Vec<u8>>| {
        text.as_ref().is_some_and(|it| serde_json::from_slice::<Owner>(it).is_ok())
    };
    // Long into the session, and not only in it.
    let copied = || serde_json::from_slice::<Owner>(&both()[1].clone()?).ok();
    let first = copied().expect("it is there");
    until("the copy is written again", || copied().is_some_and(|it| it != first));
    let mut told = 2000;
    for files in [vec![&name], vec![&copy], vec![&name, &copy]] {
        for is_running in [true, false] {
            let cut = || {
                for file in &files {
                    fs::write(file, b"").expect("the directory is ours");
                }
            };
            if is_running {
                cut();
            } else {
                ship.kill();
                cut();
                ship = world.ship();
            }
            ship.tell(at(told));
            until("both are whole again", || {
                assert_ne!(world.status().phase, Phase::Fenced);
                both().iter().all(is_whole)
            });
            world.wait_for(at(told));
            told += 1000;
        }
    }
    assert_eq!(world.owner().expect("somebody ships here").instance, owner);
    assert_eq!(files(&world.there().join("superseded")).len(), 0, "its own tail was moved");
}

#[test]
fn a_new_session_promises_what_the_one_before_did_and_no_more() {
    let world = World::new();
    let slow = Slow::serve(&world);
    let plan = slow.plan(&world, world.plan());
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1000));
    world.wait_for(at(1000));
    ship.kill();
    // What was promised is known here. The remote says more: somebody has written there.
    let path = world.path("state").join(layout::PROMISES);
    let promise = |flushed: u64| {
        let text = fs::read(&path).expect("it ships");
        let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        for promised in value.as_object_mut().expect("a map").values_mut() {
            promised["shipped"] = serde_json::json!({
                "timeline": 1, "flushed": at(flushed).to_string()
            });
        }
        fs::write(&path, value.to_string()).expect("the directory is ours");
    };
    promise(900);
    slow.hold(&format!("PROPFIND /backups/main/{DIRECTORY}"), Duration::from_secs(4));
    let before = world.owner().expect("it shipped").heartbeat;
    let mut ship = World::ship_by(&plan);
    ship.tell(at(2000));
    let mut first = None;
    until("it has given a sign of life", || {
        first = world.owner().filter(|it| it.heartbeat != before);
        first.is_some()
    });
    let shipped = first.take().and_then(|it| it.shipped);
    assert_eq!(shipped, Some(Position { timeline: 1, flushed: at(900) }));
    ship.kill();

    // Not what the server has lost: it is at an earlier position.
    promise(50_000);
    let before = world.owner().expect("it shipped").heartbeat;
    let mut ship = World::ship_by(&plan);
    ship.tell(at(2000));
    until("it has given a sign of life", || {
        first = world.owner().filter(|it| it.heartbeat != before);
        first.is_some()
    });
    assert_eq!(first.and_then(|it| it.shipped), None);
}

#[test]
fn what_the_abandoned_life_has_shipped_is_moved_away() {
    let world = World::new();
    let size = SIZE;
    let [common, parted, later] =
        [FIRST - 1, FIRST, FIRST + 1].map(|number| Segment { timeline: 1, number });
    // Both lives have the first segment. The one that went on has filled two more.
    let (path, packed) = archived(common);
    world.write(&format!("repository/{path}"), &packed);
    let mut ship = world.ship();
    ship.tell(at(1000));
    world.wait_for(at(1000));
    until("the repository is there", || world.status().backups == [LABEL]);
    ship.kill();
    let other = |segment: Segment| -> Vec<u8> {
        let mut content = wal(segment);
        content[2000..].reverse();
        content
    };
    let there = "remote/backups/main";
    let mut theirs = BTreeMap::new();
    for segment in [parted, later] {
        let content = other(segment);
        let hash: String =
            Sha1::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = segment.name(size);
        let packed = zstd::encode_all(&content[..], 1).expect("memory is there");
        theirs.insert(format!("repository/{ARCHIVE}/{}/{name}-{hash}.zst", &name[..16]), packed);
    }
    let third = Segment { timeline: 1, number: FIRST + 2 };
    let piece =
        Piece { segment: third, from: third.start(size), to: Lsn(third.start(size).0 + 900) };
    let packed = zstd::encode_all(&other(third)[..900], 1).expect("memory is there");
    theirs.insert(format!("{DIRECTORY}/{}", piece.path(size)), packed);
    let label = "20261123-010203F";
    theirs
        .insert(format!("repository/backup/main/{label}/backup.manifest"), b"a manifest\n".into());
    for (path, content) in &theirs {
        world.write(&format!("{there}/{path}"), content);
    }
    let info = format!(
        "[backup:current]\n{LABEL}={{}}\n{label}={{\"backup-archive-stop\":\"{}\",\
         \"backup-lsn-stop\":\"{}\"}}\n\n[db]\ndb-id=1\n",
        later.name(size),
        Lsn(later.start(size).0 + 500)
    );
    world.write(&format!("{there}/repository/backup/main/backup.info"), info.as_bytes());
    let heartbeat = chrono::Utc::now();
    let last = world.owner().expect("it shipped");
    world.own(&Owner { heartbeat, ..last.clone() });

    // The disk was put back: its last promise is older. The server has gone on since.
    let mut ship = world.ship();
    ship.tell(at(3000));
    until("it is fenced", || world.status().phase == Phase::Fenced);
    ship.tell(at(3000));
    until("it ships", || world.status().phase == Phase::Shipping);
    world.wait_for(at(3000));
    assert_ne!(world.owner().expect("it ships").instance, last.instance);
    let moved = files(&world.there().join("superseded"));
    let moved: BTreeMap<String, Vec<u8>> = moved
        .into_iter()
        .filter_map(|(path, content)| Some((path.split_once('/')?.1.to_string(), content)))
        .collect();
    let listed = moved.get("repository/backup/main/backup.info");
    assert_eq!(listed.map(Vec::as_slice), Some(info.as_bytes()));
    for (path, content) in theirs {
        assert!(!world.there().join(&path).exists(), "{path} is still there");
        assert!(moved.get(&path) == Some(&content), "{path} is not whole");
    }
    // What both have in common stays.
    let common = world.there().join("repository").join(archived(common).0);
    assert!(
        common.exists() && world.there().join(format!("repository/backup/main/{LABEL}")).exists()
    );
    until("its own list is there", || {
        fs::read(world.there().join("repository/backup/main/backup.info")).is_ok_and(|it| {
            it == fs::read(world.path("repository/backup/main/backup.info")).unwrap()
        })
    });
}

#[test]
fn a_byte_order_mark_sends_nothing_in_plain_text() {
    let world = World::new();
    world.write(
        "rclone.conf",
        format!(
            "\u{feff}[secret]\ntype = crypt\nremote = plain:c\n\
             password = {}\n\n[plain]\ntype = alias\nremote = {}\n",
            obscured("a"),
            world.text("remote")
        )
        .as_bytes(),
    );
    let mut ship = world.ship();
    ship.tell(at(1));
    until("it ships", || !world.status().backups.is_empty());
    assert_eq!(world.status().remote, "secret:backups/main");
    let there = files(&world.path("remote"));
    assert!(there.keys().all(|path| path.starts_with("c/")), "{:?}", there.keys());
    assert!(there.values().all(|content| content.starts_with(b"RCLONE\0\0")), "in plain text");
    assert!(there.len() > 3);
}

#[test]
fn an_encrypted_configuration_is_opened_by_what_the_operator_gives() {
    let world = World::new();
    // A remote of the type local. Its password is "sesame".
    world.write(
        "rclone.conf",
        b"# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\n\
          zC3t5a8iRlqtiofbBZlYQ8W36zfvDwn2QLd2oDG3pmmH+3cVKipBl3Icvlun5diUuHUGSDbAbONwftbmrRMb\n",
    );
    let plan = Plan { remote_path: world.text("remote/backups"), ..world.plan() };
    let failing = |environment: &[(&str, &str)], words: &str| {
        let _ship = World::ship_in(&plan, environment);
        until(words, || {
            world.status().failure.is_some_and(|failure| failure.message.ends_with(words))
        });
    };
    failing(&[], "is encrypted with a password");
    failing(
        &[("RCLONE_CONFIG_PASS", "mellon")],
        "is encrypted, and the password that is given does not fit",
    );
    for given in [("RCLONE_CONFIG_PASS", "sesame"), ("RCLONE_PASSWORD_COMMAND", "echo sesame")] {
        fs::remove_file(world.path("state/ship.json")).expect("it was there");
        let mut ship = World::ship_in(&plan, &[given]);
        ship.tell(at(1));
        until("it ships", || world.status().phase == Phase::Shipping);
        // The words of the session before stay in no file.
        let shown = fs::read_to_string(world.path("state/ship.json")).expect("it is there");
        assert!(!shown.contains("sesame"), "{shown}");
    }
}

#[test]
fn a_path_means_what_it_means_to_the_remote() {
    let world = World::new();
    world.write("rclone.conf", b"[disk]\ntype = local\n");
    let plan = |path: &str| Plan { remote_path: path.to_string(), ..world.plan() };
    let fails = |path: &str, words: &str| {
        let _ship = World::ship_by(&plan(path));
        until(words, || {
            world.status().failure.is_some_and(|failure| failure.message.contains(words))
        });
        assert_eq!(world.status().phase, Phase::Failing);
    };
    // Neither is below the working directory of a process of ours.
    fails("backups", "is relative");
    fails(&world.text("data/backups"), "inside the data directory");
    fails(&world.text("repository/backups"), "inside the repository");

    // An earlier version has dropped the slash, and shipped to a place in the state directory.
    let path = world.text("remote/backups");
    let earlier = path.trim_start_matches('/');
    world.write(&format!("state/{earlier}/main/{}", owner::FILE), b"{}");
    let mut ship = World::ship_by(&plan(&path));
    ship.tell(at(1));
    until("it ships", || !world.status().backups.is_empty());
    let status = world.status();
    assert_eq!(status.remote, format!("disk:{path}/main"));
    assert!(world.there().join(owner::FILE).exists());
    assert_eq!(status.left_behind, Some(format!("disk:{earlier}/main")));
    // It ships, and says that this protects from little.
    assert!(status.same_disk.is_some_and(|it| it.message.contains("this is no second place")));
    ship.end();
    fs::remove_dir_all(world.path("state").join(earlier)).expect("it was there");
    fs::remove_file(world.path("state/ship.json")).expect("it was there");
    let _ship = World::ship_by(&plan(&path));
    until("it ships", || world.status().phase == Phase::Shipping);
    assert_eq!(world.status().left_behind, None);
}

/// A password as rclone's configuration has it.
fn obscured(password: &str) -> String {
    let output = Command::new("rclone").args(["obscure", password]).output();
    let output = output.expect("rclone is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// The message about the mirror, once there is one with some words.
fn mirror_says(world: &World, words: &str) -> String {
    let said = || world.status().mirror_failure.map_or(String::new(), |it| it.message);
    until(&format!("the mirror says \"{words}\""), || said().contains(words));
    said()
}

/// Asks for a comparison, and waits for its answer.
fn check(world: &World, request: &str) -> Comparison {
    let asked = chrono::Utc::now();
    world.write("state/compare", request.as_bytes());
    until("it is compared", || {
        !world.path("state/compare").exists()
            && world.status().comparison.is_some_and(|it| it.at > asked)
    });
    world.status().comparison.expect("it was waited for")
}

#[test]
fn damage_here_never_replaces_what_is_whole_there_and_is_repaired_from_it() {
    let world = World::new();
    let backup = format!("backup/main/{LABEL}");
    let mut ship = world.ship();
    ship.tell(at(1));
    until("the backup is there", || world.status().backups == [LABEL]);
    let there = world.there().join("repository");
    let whole = files(&there);
    let repository = world.path("repository");
    for (path, damaged) in [
        (format!("{backup}/bundle/1"), &b"the"[..]),
        (format!("{backup}/bundle/1"), b""),
        // The size is right.
        (format!("{backup}/bundle/1"), b"the dada\n"),
        (format!("{backup}/backup.manifest"), b"[backup]\n"),
        ("backup/main/backup.info".to_string(), b""),
        ("archive/main/archive.info".to_string(), b"[db]\ndb-id=1\n"),
    ] {
        let file = repository.join(&path);
        let right = fs::read(&file).expect("it is there");
        fs::write(&file, damaged).expect("the directory is ours");
        // As a session that begins anew finds it.
        ship.kill();
        fs::remove_file(world.path("state/ship.json")).expect("it was there");
        ship = world.ship();
        ship.tell(at(1));
        let found = check(&world, "");
        assert!(found.healed.is_empty() && found.repaired.is_empty(), "{path}: {found:?}");
        if path.ends_with(".info") {
            mirror_says(&world, "and its copy are damaged in the repository");
        } else {
            assert_eq!(found.damaged_here.named, [path.as_str()], "{found:?}");
            assert_eq!(found.different.named, [path.as_str()]);
        }
        assert!(files(&there) == whole, "{path}: something was changed on the remote");

        let repaired = check(&world, "repair");
        assert!(repaired.healed.named.contains(&path), "{path}: {repaired:?}");
        assert_eq!(fs::read(&file).expect("it is there"), right, "{path}");
        until("the mirror is well", || world.status().mirror_failure.is_none());
        let _ = fs::remove_file(file.with_extension("info.copy"));
        assert!(check(&world, "").different.is_empty());
        assert!(files(&there) == whole, "{path}: something was changed on the remote");
    }
    ship.end();
}

#[test]
fn a_backup_that_was_lost_here_stays_there_and_one_that_expired_goes() {
    let world = World::new();
    let [first, second, third] = ["20261101-000000F", "20261102-000000F", LABEL];
    let list = |labels: &[&str]| {
        let mut text = "[backup:current]\n".to_string();
        for label in labels {
            // The day of the month.
            let stop = format!("{}-{}-{}T00:00:00Z", &label[..4], &label[4..6], &label[6..8]);
            let stop: chrono::DateTime<chrono::Utc> = stop.parse().expect("a time");
            text += &format!(
                "{label}={{\"backup-timestamp-stop\":{},\"backup-type\":\"full\"}}\n",
                stop.timestamp()
            );
        }
        proved(&format!("{text}\n[db]\ndb-id=1\n"))
    };
    let info = "repository/backup/main/backup.info";
    let add = |label: &str| {
        let backup = format!("repository/backup/main/{label}");
        world.write(&format!("{backup}/bundle/1"), DATA.as_bytes());
        world.write(&format!("{backup}/backup.manifest"), manifest(DATA).as_bytes());
    };
    let lose = |label: &str| {
        fs::remove_dir_all(world.path(&format!("repository/backup/main/{label}"))).expect("gone");
    };
    add(first);
    add(second);
    world.write(info, list(&[first, second, third]).as_bytes());
    let config = world.path("pgbackrest.conf");
    let retain = |fulls: u32| {
        let repository = world.text("repository");
        let text = format!("[global]\nrepo1-path={repository}\nrepo1-retention-full={fulls}\n");
        world.write("pgbackrest.conf", text.as_bytes());
    };
    retain(2);
    let plan = Plan { own_config: Some(config.to_string_lossy().into_owned()), ..world.plan() };
    let mut ship = World::ship_by(&plan);
    ship.tell(at(1));
    until("all are there", || world.status().backups == [first, second, third]);
    let there = world.there().join("repository/backup/main");

    // As pgBackRest makes the list at the next backup, without what it has lost.
    lose(second);
    world.write(info, list(&[first, third]).as_bytes());
    let words = mirror_says(&world, "missing in the repository although the retention keeps them");
    assert!(words.contains(second), "{words}");
    let failure = world.status().mirror_failure.expect("it was just there");
    assert!(failure.hint.contains("nrt-backup check --repair"), "{failure:?}");
    assert!(failure.hint.contains(&format!("repository/backup/main/{second}")), "{failure:?}");
    let listed = fs::read_to_string(there.join("backup.info")).expect("it is there");
    assert!(listed.contains(second) && there.join(second).join("bundle/1").exists());

    // It comes back, and waits for pgBackRest to list it again.
    let repaired = check(&world, "repair");
    assert!(repaired.healed.named.contains(&format!("backup/main/{second}")), "{repaired:?}");
    assert_eq!(
        files(&world.path(&format!("repository/backup/main/{second}"))),
        files(&there.join(second))
    );
    mirror_says(&world, "backup.info does not list it");
    world.write(info, list(&[first, second, third]).as_bytes());
    until("the mirror is well", || world.status().mirror_failure.is_none());

    // Expired: the retention keeps two.
    world.write(info, list(&[second, third]).as_bytes());
    lose(first);
    until("it is gone", || !there.join(first).exists());
    until("the list is there", || world.status().backups == [second, third]);
    assert!(world.status().mirror_failure.is_none());
    assert!(there.join(second).join("bundle/1").exists());
    ship.end();
}

#[test]
fn what_the_remote_loses_is_noticed_by_the_listing() {
    let world = World::new();
    let (path, content) = archived(Segment { timeline: 1, number: FIRST });
    world.write(&format!("repository/{path}"), &content);
    let plan = Plan { listing: 1, ..world.plan() };
    let mut ship = World::ship_by(&plan);
    // What is archived was finished.
    ship.tell(at(SIZE));
    let there = world.there().join("repository");
    until("the backup is there", || world.status().backups == [LABEL]);
    until("the segment is there", || there.join(&path).exists());
    let data = format!("backup/main/{LABEL}/bundle/1");
    for lost in [&data, &path] {
        let right = fs::read(there.join(lost)).expect("it was sent");
        fs::remove_file(there.join(lost)).expect("it is there");
        until("it is back", || fs::read(there.join(lost)).is_ok_and(|it| it == right));
    }
    fs::write(there.join(&data), b"the").expect("the directory is ours");
    until("it is whole", || fs::read(there.join(&data)).is_ok_and(|it| it == DATA.as_bytes()));
    until("the backup is called there", || world.status().backups == [LABEL]);
    until("the mirror is well", || world.status().mirror_failure.is_none());
    // What is lost on both sides cannot be sent again.
    fs::write(world.path(&format!("repository/{data}")), b"the dada\n").expect("ours");
    fs::remove_file(there.join(&data)).expect("it is there");
    let words = mirror_says(&world, "damaged or missing in the repository and on the remote");
    assert!(words.contains(&data), "{words}");
    assert!(!there.join(&data).exists());
    ship.end();
}

#[test]
fn damage_there_is_named_and_repaired_from_here() {
    let world = World::new();
    let mut ship = world.ship();
    ship.tell(at(1));
    until("the backup is there", || world.status().backups == [LABEL]);
    let path = format!("backup/main/{LABEL}/bundle/1");
    let file = world.there().join("repository").join(&path);
    fs::write(&file, b"the dada\n").expect("the directory is ours");
    let found = check(&world, "");
    assert_eq!(found.damaged_there.named, [path.as_str()], "{found:?}");
    assert_eq!(fs::read(&file).expect("it is there"), b"the dada\n");
    let repaired = check(&world, "repair");
    assert!(repaired.different.is_empty() && repaired.repaired.named == [path], "{repaired:?}");
    assert_eq!(fs::read(&file).expect("it is there"), DATA.as_bytes());
    ship.end();
}
