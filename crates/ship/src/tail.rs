//! Ships the WAL that is on disk and not yet archived on the remote: the last second.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nrt_core::inventory::Failure;
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::Position;
use nrt_core::offsite::tail::{DIRECTORY, Piece};

use super::owner::surely_ours;
use super::repository;
use super::state::Shared;
use nrt_remote::{Backoff, Mode, Remote, failure};

/// The longest piece: what has to be sent again when it fails.
const LONGEST: u64 = 16 << 20;
/// Pieces that are made and sent at the same time.
const ABREAST: usize = 4;
/// Segments behind which the archived copies are the better way: they are smaller and are sent
/// anyway.
const BEHIND: u64 = 4;
/// How long a finished segment may take until it is archived. Then it is not waited for.
const ARCHIVER: Duration = Duration::from_secs(2);
/// zstd's own middle for the little that is written in a second, and its quickest for what keeps
/// the machine busy anyway.
const LEVELS: (i32, i32) = (3, 1);
/// From how many bytes on.
const MUCH: u64 = 1 << 20;
/// How long to wait for a position while nothing is to be done.
const IDLE: Duration = Duration::from_secs(60);

/// Ships until the session is over, and what is left then when the server is about to end.
pub(crate) fn run(shared: &Shared, remote: &Remote) {
    follow(shared, remote);
    if shared.is_ending() {
        // By this thread, after what it had begun: two that send the same piece would write one
        // file, and the process ends with one of them in the middle of it.
        finish(shared, remote);
    }
}

fn follow(shared: &Shared, remote: &Remote) {
    let mut backoff = Backoff::default();
    while !shared.is_over() {
        let left = backoff.left();
        if !left.is_zero() {
            shared.sleep(left);
            continue;
        }
        let seen = shared.generation();
        let batch = next_batch(shared, ARCHIVER);
        if batch.is_empty() {
            let is_behind = shared.lock().status.behind_since.is_some();
            shared.wait(seen, if is_behind { ARCHIVER } else { IDLE });
            continue;
        }
        match ship(shared, remote, &batch) {
            Ok(()) => {
                backoff.worked();
                shared.report("tail", None);
            }
            Err(problem) => {
                backoff.failed();
                shared.report("tail", Some(problem));
                if !remote.is_running() {
                    shared.end_session();
                }
            }
        }
    }
}

/// Ships what is left, without waiting for the archiver any more.
fn finish(shared: &Shared, remote: &Remote) {
    let mut batch = next_batch(shared, Duration::ZERO);
    while !batch.is_empty() && ship(shared, remote, &batch).is_ok() {
        batch = next_batch(shared, Duration::ZERO);
    }
}

/// A piece to send, with its rank and the pieces that it replaces.
#[derive(Debug, Clone)]
struct Parcel {
    piece: Piece,
    rank: u8,
    replaces: Vec<Piece>,
}

/// The next pieces, in order. A finished segment is left to the archiver for so long.
fn next_batch(shared: &Shared, archiver: Duration) -> Vec<Parcel> {
    let size = shared.plan.segment_size;
    let state = shared.lock();
    if state.status.tail_refused.is_some() {
        return Vec::new();
    }
    let Some(Position { timeline, flushed: begin }) = state.next(size) else { return Vec::new() };
    let Some(limit) = state.limit(timeline, size) else { return Vec::new() };
    if state.lacks_history(timeline) && !archiver.is_zero() {
        return Vec::new();
    }
    let far_behind = limit.since(begin) > BEHIND * size;
    let mut batch: Vec<Parcel> = Vec::new();
    let mut at = begin;
    while at < limit && batch.len() < ABREAST {
        let segment = Segment::of(timeline, at, size);
        if state.coverage.is_archived(segment) {
            at = segment.end(size);
            continue;
        }
        if far_behind && state.archived_here.is_archived(segment) {
            // It is being sent as a whole.
            break;
        }
        let end = segment.end(size);
        let mostly_unsent = end <= limit && end.since(at) > size / 2;
        if mostly_unsent && !state.heard_before(Position { timeline, flushed: end }, archiver) {
            // Cheaper as a whole, packed already, and about to be.
            at = state.coverage.reach(timeline, end, size);
            continue;
        }
        let to = Lsn(limit.0.min(segment.end(size).0).min(at.0 + LONGEST));
        let folded = if batch.is_empty() { state.coverage.to_fold(segment) } else { None };
        let folded = folded.filter(|(old, _)| {
            // Without a hole between them, and not longer than a piece may be.
            let joined = old.windows(2).all(|pair| pair[0].to >= pair[1].from)
                && old.last().is_some_and(|last| last.to >= at);
            joined && old.first().is_some_and(|first| to.since(first.from) <= LONGEST)
        });
        let (replaces, rank) = folded.unwrap_or_default();
        let from = replaces.first().map_or(at, |first| first.from);
        batch.push(Parcel { piece: Piece { segment, from, to }, rank, replaces });
        at = to;
    }
    batch
}

/// Sends pieces side by side. What is confirmed counts, also if another one fails.
fn ship(shared: &Shared, remote: &Remote, batch: &[Parcel]) -> Result<(), Failure> {
    surely_ours(shared, remote)?;
    let results: Vec<Result<(), Failure>> = thread::scope(|scope| {
        let sending: Vec<_> =
            batch.iter().map(|parcel| scope.spawn(|| send(shared, remote, parcel))).collect();
        let died = || Failure { message: "a thread ended".into(), hint: String::new() };
        sending.into_iter().map(|it| it.join().unwrap_or_else(|_| Err(died()))).collect()
    });
    results.into_iter().collect()
}

/// Sends a piece, unless its segment was archived on the remote after the piece was chosen.
fn send(shared: &Shared, remote: &Remote, parcel: &Parcel) -> Result<(), Failure> {
    if !shared.change(|state| state.begin_to_send(parcel.piece.segment)) {
        return Ok(());
    }
    // From here on the segment's directory on the remote is not purged.
    let sent = send_piece(shared, remote, parcel);
    shared.change(|state| state.end_sending(parcel.piece.segment));
    sent
}

fn send_piece(shared: &Shared, remote: &Remote, parcel: &Parcel) -> Result<(), Failure> {
    let size = shared.plan.segment_size;
    let piece = parcel.piece;
    let name = remote.spool_name();
    let spooled = remote.outbox().join(&name);
    let pg_wal = Path::new(&shared.plan.data_directory).join("pg_wal");
    let packed = pack(&pg_wal.join(piece.segment.name(size)), piece, size, &spooled);
    let outcome = match packed {
        Ok(true) => {
            let path = format!("{DIRECTORY}/{}", piece.path(size));
            let directory = remote.outbox().to_string_lossy();
            remote
                .send(&directory, &name, &path, Mode::New)
                .map_err(|refusal| failure("the WAL tail cannot be sent", &refusal))
        }
        // The server needed its place: it was archived before, or archiving is off.
        Ok(false) => return recycled(shared, piece.segment),
        Err(error) => Err(Failure {
            message: format!("WAL cannot be read or packed: {error}"),
            hint: "Make room on the data directory's disk if it is full.".to_string(),
        }),
    };
    let _ = fs::remove_file(&spooled);
    outcome?;
    shared.change(|state| {
        state.add_sent(piece, parcel.rank, &parcel.replaces);
    });
    Ok(())
}

/// Where a segment is that `pg_wal` does not have any more.
fn recycled(shared: &Shared, segment: Segment) -> Result<(), Failure> {
    let size = shared.plan.segment_size;
    let archive = shared.repository.join("archive").join(&shared.plan.stanza);
    // Not what the last look at it found: that may be older than the segment.
    if repository::holds(&archive, &segment.name(size)) {
        shared.change(|state| {
            state.archived_here.archive(segment);
            state.pass_wanted = true;
        });
        // It is sent as a whole.
        shared.sleep(Duration::from_millis(200));
        return Ok(());
    }
    shared.change(|state| state.pass_wanted = true);
    let name = segment.name(size);
    Err(Failure {
        message: format!(
            "segment {name} is neither in pg_wal nor in the repository's archive: what comes \
             after it cannot be restored from the remote"
        ),
        hint: "See the check \"archiving\". From the next backup on, the remote is of use again: \
               SELECT nrt_backup_now()."
            .to_string(),
    })
}

/// Packs a stretch of a segment's file. `false` if the file is not there, or is not that segment
/// any more: the server renames and overwrites files that it does not need.
fn pack(path: &Path, piece: Piece, segment_size: u64, spooled: &Path) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let start = piece.segment.start(segment_size);
    file.seek(SeekFrom::Start(piece.from.since(start)))?;
    let length = piece.to.since(piece.from);
    let level = if length < MUCH { LEVELS.0 } else { LEVELS.1 };
    let mut encoder = zstd::stream::Encoder::new(File::create(spooled)?, level)?;
    encoder.include_checksum(true)?;
    let copied = io::copy(&mut (&file).take(length), &mut encoder)?;
    encoder.finish()?;
    if copied != length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a segment's file is too short"));
    }
    let still = fs::metadata(path).is_ok_and(|now| {
        file.metadata().is_ok_and(|then| (now.dev(), now.ino()) == (then.dev(), then.ino()))
    });
    Ok(still)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_exactly_a_stretch() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, spooled) = (directory.path().join("wal"), directory.path().join("out"));
        let size = 1 << 20;
        let content: Vec<u8> = (0..size).map(|place: u64| (place % 251) as u8).collect();
        fs::write(&path, &content).expect("written");
        let segment = Segment { timeline: 1, number: 3 };
        let piece = Piece { segment, from: Lsn(3 * size + 100), to: Lsn(3 * size + 70_000) };
        assert!(pack(&path, piece, size, &spooled).expect("packed"));
        let packed = fs::read(&spooled).expect("a file");
        assert_eq!(zstd::decode_all(packed.as_slice()).expect("zstd"), content[100..70_000]);
        assert!(!pack(&directory.path().join("none"), piece, size, &spooled).expect("no error"));
        fs::write(&path, &content[..50_000]).expect("written");
        assert!(pack(&path, piece, size, &spooled).is_err());
    }
}
