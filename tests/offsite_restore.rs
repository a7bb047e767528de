//! Shows that what the proof of shipping rests on can be relied on: the remotes work and can be
//! broken, and a copy of a cluster's place restores to the last byte that is in it, and no further.
//! None of this needs the extension.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::tail::{self, Piece};
use nrt_tests::{Cluster, Kind, Remote, Restore, Soundness, inspect, is_root, wait_until};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// A server that pgBackRest by itself archives and has backed up.
fn backed_up(cluster: Cluster) -> Cluster {
    let config = cluster.directory().join("plain.conf");
    let text = format!(
        "[global]\nrepo1-path={}\nlock-path={}\nlog-level-file=off\ncompress-type=zst\n\
         repo1-bundle=y\nstart-fast=y\nrepo1-retention-full=9\n\
         [main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
        cluster.repository().display(),
        cluster.lock().display(),
        cluster.data().display(),
        cluster.socket().display()
    );
    fs::write(&config, text).expect("the directory is ours");
    let archive = format!("pgbackrest --config={} --stanza=main archive-push %p", config.display());
    let cluster = cluster
        .preload(false)
        .setting("archive_mode", "on")
        .setting("archive_command", &archive)
        .started();
    // It fails until there is a stanza.
    cluster.allow("archiver ");
    pgbackrest(&cluster, &["stanza-create"]);
    pgbackrest(&cluster, &["--type=full", "backup"]);
    cluster
}

fn pgbackrest(cluster: &Cluster, arguments: &[&str]) {
    let config = cluster.directory().join("plain.conf");
    let mut command = cluster.installation().command("pgbackrest");
    command.arg(format!("--config={}", config.display())).arg("--stanza=main").args(arguments);
    run(&mut command);
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
}

/// A place off-site, as it is documented, made by hand from what a server has locally.
struct Place {
    directory: TempDir,
    segment_size: u64,
}

impl Place {
    fn of(cluster: &Cluster) -> Place {
        // Files that pgBackRest is writing get another name while they are copied.
        let waiting = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
        cluster.wait_for(waiting, "0", SOON);
        let installation = cluster.installation();
        let directory = tempfile::Builder::new()
            .prefix("nrt-place-")
            .tempdir_in(installation.scratch())
            .expect("the scratch directory can be written to");
        installation.hand_over(directory.path()).expect("it was just made");
        let mut cp = installation.command("cp");
        run(cp.arg("-a").arg(cluster.repository()).arg(directory.path().join("repository")));
        let size = cluster.value("select setting from pg_settings where name = 'wal_segment_size'");
        Place { directory, segment_size: size.parse().expect("a number of bytes") }
    }

    /// Ships the WAL of timeline 1 between two positions as pieces that end at these places.
    fn ship(&self, cluster: &Cluster, from: Lsn, ends: &[Lsn]) {
        let mut from = from;
        for &to in ends {
            while from < to {
                let segment = Segment::of(1, from, self.segment_size);
                let piece = Piece { segment, from, to: to.min(segment.end(self.segment_size)) };
                self.write(cluster, piece);
                from = piece.to;
            }
        }
    }

    fn write(&self, cluster: &Cluster, piece: Piece) {
        let name = piece.segment.name(self.segment_size);
        let wal = fs::read(cluster.data().join("pg_wal").join(name)).expect("it is not recycled");
        let start = piece.segment.start(self.segment_size).0;
        let [from, to] = [piece.from, piece.to].map(|at| usize::try_from(at.0 - start));
        let bytes = &wal[from.expect("small")..to.expect("small")];
        let file = self.tail().join(piece.path(self.segment_size));
        fs::create_dir_all(file.parent().expect("it has one")).expect("the directory is ours");
        fs::write(&file, zstd::encode_all(bytes, 1).expect("memory is there")).expect("ours");
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn tail(&self) -> PathBuf {
        self.path().join(tail::DIRECTORY)
    }
}

fn flushed(cluster: &Cluster) -> Lsn {
    cluster.value("select pg_current_wal_flush_lsn()").parse().expect("an LSN")
}

/// Commits one row a transaction.
fn commit(cluster: &Cluster, rows: std::ops::Range<u32>) {
    let mut client = cluster.connect("postgres", "postgres").expect("connects");
    for row in rows {
        client
            .execute("insert into t values ($1)", &[&i32::try_from(row).expect("small")])
            .expect("commits");
    }
}

/// The rows, how many differ, and the greatest.
const ROWS: &str = "select count(*) || ' ' || count(distinct i) || ' ' || max(i) from t";

#[test]
fn a_copy_restores_to_the_last_byte_of_its_tail() {
    let cluster = backed_up(Cluster::with_identity("tail"));
    cluster.sql("create table t (i int)");
    let start = flushed(&cluster);
    commit(&cluster, 0..200);
    cluster.sql("select pg_switch_wal()");
    commit(&cluster, 200..500);
    let middle = flushed(&cluster);
    commit(&cluster, 500..700);
    let place = Place::of(&cluster);
    let size = place.segment_size;
    let begin = Segment::of(1, start, size).start(size);
    let end = flushed(&cluster);
    // The second one begins in the middle of a record, and overlaps with the third.
    place.ship(&cluster, begin, &[Lsn(start.0 + 1001), middle]);
    place.ship(&cluster, Lsn(middle.0 - 5000), &[end]);
    commit(&cluster, 700..800);
    drop(cluster);

    let restored = Restore::new("whole", place.path()).run();
    assert_eq!(restored.value(ROWS), "700 700 699");
    assert_eq!(restored.value("select timeline_id from pg_control_checkpoint()"), "2");
    drop(restored);

    // Without what overlaps there is a gap, and what is behind it does not count.
    let pieces = place.tail();
    let last = pieces.join(
        Piece { segment: Segment::of(1, middle, size), from: Lsn(middle.0 - 5000), to: end }
            .path(size),
    );
    let later = Piece { segment: Segment::of(1, middle, size), from: Lsn(middle.0 + 40), to: end };
    let packed = fs::read(&last).expect("it was shipped");
    let bytes = zstd::decode_all(&packed[..]).expect("it was packed");
    let rest = zstd::encode_all(&bytes[5040..], 1).expect("memory is there");
    fs::remove_file(&last).expect("it was shipped");
    fs::write(pieces.join(later.path(size)), rest).expect("the directory is ours");
    let restored = Restore::new("gap", place.path()).run();
    assert_eq!(restored.value(ROWS), "500 500 499");
    drop(restored);

    // What is not whole counts as missing, wherever it was cut.
    let piece = pieces.join(later.path(size)).parent().map(Path::to_path_buf).expect("it has one");
    for entry in fs::read_dir(piece).expect("it is there").flatten() {
        let file = fs::File::options().write(true).open(entry.path()).expect("it is ours");
        file.set_len(20).expect("it is longer");
    }
    let restored = Restore::new("cut", place.path()).run();
    assert_eq!(restored.value(ROWS), "200 200 199");
}

#[test]
fn a_repository_that_cannot_be_read_is_no_end_of_wal() {
    let cluster = backed_up(Cluster::with_identity("unreadable"));
    let place = Place::of(&cluster);
    drop(cluster);
    for file in ["archive.info", "archive.info.copy"] {
        fs::remove_file(place.path().join("repository/archive/main").join(file)).expect("is there");
    }
    // pgBackRest says 103 here, and PostgreSQL would take that for the end of all WAL.
    let error = Restore::new("refused", place.path()).try_run().expect_err("it must not start");
    assert!(error.contains("archive.info") || error.contains("did not start"), "{error}");
}

#[test]
fn what_a_copy_lacks_is_seen() {
    let cluster = backed_up(Cluster::with_identity("lacks"));
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    pgbackrest(&cluster, &["--type=incr", "backup"]);
    let place = Place::of(&cluster);
    let Soundness { backups, problems } = inspect(place.path());
    assert_eq!((backups.len(), &problems[..]), (2, &[][..]));
    let files = || {
        let mut found = vec![place.path().join("repository")];
        let mut next = 0;
        while let Some(path) = found.get(next).cloned() {
            found.extend(fs::read_dir(path).into_iter().flatten().flatten().map(|it| it.path()));
            next += 1;
        }
        found.retain(|path| path.is_file());
        found
    };
    let word = |path: &Path, words: &[&str]| {
        let path = path.display().to_string();
        words.iter().all(|word| path.contains(word)) && !path.contains("latest")
    };
    let mut seen = 0;
    for needed in files() {
        let is_needed = word(&needed, &["backup/main/2", "/bundle/"])
            || word(&needed, &["backup/main/2", "backup.manifest"]) && !word(&needed, &[".copy"]);
        if !is_needed || word(&needed, &["backup.history"]) {
            continue;
        }
        let whole = fs::read(&needed).expect("it is there");
        for left in [None, Some(&whole[..whole.len() - 1])] {
            match left {
                None => fs::remove_file(&needed).expect("it is there"),
                Some(left) => fs::write(&needed, left).expect("the directory is ours"),
            }
            assert_ne!(inspect(place.path()).problems, [""; 0], "without {}", needed.display());
        }
        fs::write(&needed, whole).expect("the directory is ours");
        seen += 1;
    }
    assert!(seen >= 4, "two backups have manifests and bundles: {seen}");
    let segments: Vec<PathBuf> =
        files().into_iter().filter(|it| word(it, &[".zst", "archive/main/1"])).collect();
    let without = |path: &PathBuf| {
        let whole = fs::read(path).expect("it is there");
        fs::remove_file(path).expect("it is there");
        let problems = inspect(place.path()).problems;
        fs::write(path, whole).expect("the directory is ours");
        problems
    };
    assert!(segments.iter().any(|it| without(it).concat().contains("is missing")), "{segments:?}");
    assert_eq!(inspect(place.path()).problems, [""; 0]);
}

/// Sends a few bytes to a cluster's place.
fn send(remote: &Remote, name: &str, text: &str) -> bool {
    let file = remote.config().with_file_name("to-send");
    fs::write(&file, text).expect("the directory is ours");
    let place = format!("{}/{name}", remote.place("main"));
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        remote.rclone(&[
            "copyto",
            "--retries=1",
            "--low-level-retries=1",
            "--contimeout=2s",
            "--timeout=2s",
            &file.display().to_string(),
            &place,
        ])
    }));
    attempt.is_ok()
}

fn works(kind: Kind) {
    let remote = Remote::new(&format!("works-{}", kind.word()), kind);
    assert!(remote.list("main").is_empty());
    assert!(send(&remote, "a/b.txt", "hello"));
    assert!(send(&remote, "c.txt", "there"));
    assert_eq!(remote.list("main"), ["a/b.txt", "c.txt"]);
    let copy = remote.config().with_file_name("copy");
    remote.copy("main", &copy);
    assert_eq!(fs::read_to_string(copy.join("a/b.txt")).expect("copied"), "hello");
    if kind == Kind::Crypt {
        return;
    }
    assert_eq!(fs::read(remote.files("main").join("c.txt")).expect("it is on disk"), b"there");
    remote.delete("main");
    wait_until("nothing is there", SOON, || remote.list("main").is_empty());
    remote.read_only(true);
    assert!(!send(&remote, "d/e.txt", "no"), "{}", remote.log());
    remote.read_only(false);
    assert!(send(&remote, "d/e.txt", "yes"));
    if kind == Kind::Local {
        return;
    }
    remote.kill();
    assert!(!send(&remote, "f.txt", "no"));
    remote.start();
    assert!(send(&remote, "f.txt", "yes"));
    remote.revoke();
    assert!(!send(&remote, "g.txt", "no"));
    remote.write_config();
    assert!(send(&remote, "g.txt", "yes"));
    remote.freeze();
    assert!(!send(&remote, "h.txt", "no"));
    remote.thaw();
    assert!(send(&remote, "i.txt", "yes"));
    let command = fs::read(format!("/proc/{}/cmdline", remote.server_pid())).expect("it runs");
    for secret in remote.secrets() {
        assert!(!String::from_utf8_lossy(&command).contains(&secret));
    }
}

#[test]
fn a_directory_is_a_remote() {
    works(Kind::Local);
}

#[test]
fn an_encrypted_directory_is_a_remote() {
    works(Kind::Crypt);
}

#[test]
fn a_webdav_server_is_a_remote() {
    works(Kind::WebDav);
}

#[test]
fn an_sftp_server_is_a_remote() {
    works(Kind::Sftp);
}

#[test]
fn an_s3_server_is_a_remote() {
    works(Kind::S3);
}

#[test]
fn a_remote_can_be_far_away_and_full() {
    let remote = Remote::behind_proxy("far", Kind::WebDav);
    assert!(send(&remote, "a.txt", "hello"));
    let before = remote.proxy().traffic();
    assert!(before.requests > 0 && before.sent > 5, "{before:?}");
    remote.proxy().freeze();
    assert!(!send(&remote, "b.txt", "no"));
    remote.proxy().mend();
    assert!(send(&remote, "b.txt", "yes"));
    if !is_root() {
        eprintln!("not tested: only root can mount a file system");
        return;
    }
    for kind in [Kind::WebDav, Kind::S3] {
        let remote = Remote::on_tmpfs("full", kind, 8);
        assert!(send(&remote, "a.txt", "hello"));
        remote.fill();
        assert!(!send(&remote, "b.txt", &"no".repeat(10_000)), "{}", remote.log());
        remote.make_room();
        assert!(send(&remote, "b.txt", &"yes".repeat(10_000)));
    }
}
