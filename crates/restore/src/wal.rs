//! Gets WAL as PostgreSQL wants it: from the repository, the remote's archive, or the tail.
//!
//! ```text
//! restore ── Ahead (a thread) ── Store::get ──► wal/<segment>   some segments before PostgreSQL asks
//! PostgreSQL ── nrt-backup wal-get ── waits for wal/<segment>, or gets it itself where no restore runs
//! ```
//!
//! What a plan does not count on does not exist: recovery ends exactly where the plan says, also
//! if the original goes on shipping meanwhile. And what a plan counts on exists: that it cannot be
//! read now never means that WAL has come to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::limits;
use nrt_core::offsite::tail::{DIRECTORY, Piece};
use nrt_core::pgbackrest::archive::StoredName;
use nrt_core::restore::catalog::Stretch;
use nrt_core::restore::{Code, Refusal};
use serde::{Deserialize, Serialize};

use super::source::{Content, Place, Source, side_by_side};
use super::work::Work;
use nrt_remote::failure;
use nrt_remote::segment::{hash_in, hash_of, unpack};

/// The file of a [`Shelf`] in the work directory.
pub(crate) const SHELF: &str = "wal.json";

/// Which WAL there is for a plan, and where.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Shelf {
    /// Bytes of a segment.
    pub(crate) segment_size: u64,
    /// Archived segments by name, each with its path below the stanza's archive.
    pub(crate) archived: BTreeMap<String, String>,
    /// The tail's objects below their directory, by segment.
    pub(crate) tail: BTreeMap<String, Vec<String>>,
    /// The history files of every timeline that there is, by name.
    pub(crate) histories: BTreeMap<String, String>,
    /// A directory with segments as PostgreSQL wrote them: `pg_wal` of the data directory that is
    /// replaced.
    pub(crate) pg_wal: Option<PathBuf>,
    /// What the plan replays.
    pub(crate) stretches: Vec<Stretch>,
}

/// What `wal-get` reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Shelved {
    /// The place.
    pub(crate) place: Place,
    /// The stanza.
    pub(crate) stanza: String,
    /// Which WAL is there.
    pub(crate) shelf: Shelf,
}

/// How far a segment is part of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Not at all.
    None,
    /// Up to here; its end, for all of it.
    UpTo(Lsn),
}

impl Shelf {
    fn part(&self, segment: Segment) -> Part {
        let size = self.segment_size;
        let (start, end) = (segment.start(size), segment.end(size));
        let inside = self.stretches.iter().filter(|it| {
            it.timeline == segment.timeline
                && it.from < end
                && start < it.to.max(Lsn(it.from.0 + 1))
        });
        match inside.map(|it| it.to.min(end)).max() {
            Some(to) => Part::UpTo(to),
            None => Part::None,
        }
    }

    /// The segments of the plan, in order.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        let size = self.segment_size;
        let mut all = Vec::new();
        for stretch in &self.stretches {
            let first = Segment::of(stretch.timeline, stretch.from, size);
            let last = Lsn(stretch.to.0.saturating_sub(1)).max(stretch.from);
            let last = Segment::of(stretch.timeline, last, size);
            for number in first.number..=last.number {
                all.push(Segment { timeline: stretch.timeline, number });
            }
        }
        all
    }
}

/// Why a segment cannot be had.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// In words.
    pub(crate) refusal: Refusal,
    /// It is there, and not what it should be: what is tried again comes to the same.
    pub(super) is_damaged: bool,
    /// Up to here the tail's objects lead in this segment, where one of them is damaged.
    pub(super) reached: Option<Lsn>,
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble { refusal, is_damaged: false, reached: None }
    }
}

/// Gets WAL for a plan.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    /// Where from.
    pub(crate) source: &'a Source,
    /// What there is.
    pub(crate) shelf: &'a Shelf,
    /// Where to.
    pub(crate) directory: PathBuf,
}

impl Store<'_> {
    /// Puts a segment, or a history file, into the directory. `false` if it exists nowhere.
    ///
    /// # Errors
    ///
    /// It exists, and cannot be read or is damaged.
    pub(crate) fn get(&self, name: &str) -> Result<bool, Trouble> {
        let target = self.directory.join(name);
        if target.is_file() {
            return Ok(true);
        }
        if let Some(text) = self.shelf.histories.get(name) {
            self.put(&target, text.as_bytes())?;
            return Ok(true);
        }
        let Some(segment) = Segment::parse(name, self.shelf.segment_size) else { return Ok(false) };
        let Part::UpTo(to) = self.shelf.part(segment) else { return Ok(false) };
        let mut bytes = self.bytes(name, segment, to)?;
        let length = usize::try_from(to.since(segment.start(self.shelf.segment_size)));
        if let Some(rest) = length.ok().and_then(|length| bytes.get_mut(length..)) {
            rest.fill(0);
        }
        self.put(&target, &bytes)?;
        Ok(true)
    }

    fn put(&self, target: &Path, bytes: &[u8]) -> Result<(), Refusal> {
        let problem = |error: io::Error| {
            Refusal::new(
                format!("could not write \"{}\": {error}", target.display()),
                "Make room on its disk.",
            )
        };
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let spooled = self.directory.join(format!(".{name}.{}.part", std::process::id()));
        fs::write(&spooled, bytes).map_err(problem)?;
        fs::rename(&spooled, target).map_err(problem)
    }

    /// A whole segment, of which at least what lies before `to` is known.
    fn bytes(&self, name: &str, segment: Segment, to: Lsn) -> Result<Vec<u8>, Trouble> {
        let known = self.shelf.archived.get(name);
        let archived = known.map_or(Ok(None), |path| self.archived(path));
        if let Ok(Some(bytes)) = archived {
            return Ok(bytes);
        }
        // Also where it is damaged: what was cut off on its way there has all of its tail beside it.
        let is_it = |bytes: &[u8]| {
            let hash = known.and_then(|path| hash_in(path));
            hash.is_none_or(|hash| hash == hash_of(bytes))
        };
        let damaged = match self.of_the_tail(name, segment, to)? {
            // Of a part of it, the hash says nothing.
            Assembled::Whole(bytes)
                if to < segment.end(self.shelf.segment_size) || is_it(&bytes) =>
            {
                return Ok(bytes);
            }
            Assembled::Whole(_) => None,
            Assembled::UpTo(reached, damaged) => damaged.map(|path| (reached, path)),
        };
        if let Some(bytes) = self.of_pg_wal(name).filter(|it| is_it(it)) {
            return Ok(bytes);
        }
        archived?;
        // The original may have archived it meanwhile, and taken it out of the tail then.
        if let Some(path) = self.now_archived(name)?
            && let Some(bytes) = self.archived(&path)?
        {
            return Ok(bytes);
        }
        let place = self.source.name();
        let reached = damaged.as_ref().map(|(reached, _)| *reached);
        let refusal = match damaged {
            Some((reached, path)) => Refusal::new(
                format!("\"{DIRECTORY}/{path}\" at {place} is damaged: the WAL from {reached} on"),
                "--up-to-gap takes what was committed before that, or restore to a point before \
                 the whole segment.",
            ),
            None => Refusal::new(
                format!("WAL segment {name} was at {place} and is gone"),
                "Plan anew: nrt-backup plan.",
            ),
        };
        Err(Trouble { refusal: refusal.of(Code::WalDamaged), is_damaged: true, reached })
    }

    fn archived(&self, path: &str) -> Result<Option<Vec<u8>>, Trouble> {
        let size = self.shelf.segment_size;
        let damaged = |why: &str| {
            // So that it is fetched again: it may have been damaged on its way.
            if self.source.remote.is_some() {
                let stanza = &self.source.stanza;
                let here = self.source.repository().join(format!("archive/{stanza}/{path}"));
                let _ = fs::remove_file(here);
            }
            let refusal = Refusal::new(
                format!("archived WAL \"{path}\" at {} is damaged: {why}", self.source.name()),
                "If the original server is there, \"nrt-backup check\" there names it, too. \
                 Restore to a point before it, or from a later backup (--backup).",
            );
            Trouble { refusal: refusal.of(Code::WalDamaged), is_damaged: true, reached: None }
        };
        let longest = limits::packed(size);
        let packed = match self.source.archived(path, longest)? {
            Content::None => return Ok(None),
            Content::TooLong => {
                return Err(damaged(&format!("it has more than {longest} bytes")));
            }
            Content::Of(packed) => packed,
        };
        let bytes = unpack(path, &packed, size).map_err(|error| damaged(&error.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(damaged(&format!("{} bytes instead of {size}", bytes.len())));
        }
        if hash_in(path).is_some_and(|named| named != hash_of(&bytes)) {
            return Err(damaged("its SHA-1 is not the one in its name"));
        }
        Ok(Some(bytes))
    }

    fn now_archived(&self, name: &str) -> Result<Option<String>, Refusal> {
        let Some(id) = self.shelf.archived.values().next().and_then(|it| it.split('/').next())
        else {
            return Ok(None);
        };
        let group = format!("{id}/{}", name.get(..16).unwrap_or_default());
        let files = self.source.list_anew(&format!("archive/{}/{group}", self.source.stanza))?;
        let found = files.into_iter().find(|file| {
            let stored = StoredName::parse(&file.path);
            stored.is_some_and(|it| it.segment == name && !it.is_partial)
        });
        Ok(found.map(|file| format!("{group}/{}", file.path)))
    }

    /// A segment put together from the tail's pieces.
    fn of_the_tail(&self, name: &str, segment: Segment, to: Lsn) -> Result<Assembled, Refusal> {
        let nothing = Assembled::UpTo(segment.start(self.shelf.segment_size), None);
        let Some(remote) = &self.source.remote else { return Ok(nothing) };
        let Some(known) = self.shelf.tail.get(name) else { return Ok(nothing) };
        let cannot = |it| failure("the WAL tail cannot be read", &it);
        let mut assembled = nothing;
        for again in [false, true] {
            // The original folds pieces into larger ones, while it lives.
            let listed = again.then(|| remote.list(DIRECTORY)).transpose().map_err(cannot)?;
            let paths: BTreeSet<String> = match listed {
                Some(found) => found.into_iter().map(|it| it.path).collect(),
                None => known.iter().cloned().collect(),
            };
            let mut pieces: Vec<Piece> = paths
                .iter()
                .filter_map(|path| Piece::parse(path, self.shelf.segment_size))
                .filter(|piece| piece.segment == segment)
                .collect();
            pieces.sort_by_key(|piece| (piece.from, std::cmp::Reverse(piece.to)));
            assembled = self.assemble(&pieces, segment, to)?;
            if matches!(assembled, Assembled::Whole(_)) {
                break;
            }
        }
        Ok(assembled)
    }

    fn assemble(&self, pieces: &[Piece], segment: Segment, to: Lsn) -> Result<Assembled, Refusal> {
        let size = self.shelf.segment_size;
        let start = segment.start(size);
        let place = |lsn: Lsn| usize::try_from(lsn.since(start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; place(segment.end(size))];
        let (mut reached, mut damaged) = (start, None);
        // All that is needed where each of them is whole.
        let mut way = Vec::new();
        let mut led = start;
        while led < to {
            let next = pieces.iter().rev().filter(|it| it.from <= led && it.to > led);
            let Some(next) = next.max_by_key(|it| it.to) else { break };
            led = next.to;
            way.push(*next);
        }
        let read = side_by_side(&way, |piece| tail_piece(self.source, piece, size));
        let mut read: Vec<_> = way.into_iter().zip(read).collect();
        while reached < to {
            // The one that leads farthest: few objects, and none that only repeats others.
            let mut next: Vec<&Piece> =
                pieces.iter().filter(|it| it.from <= reached && it.to > reached).collect();
            next.sort_by_key(|piece| std::cmp::Reverse(piece.to));
            let mut found = None;
            for piece in next {
                let path = piece.path(size);
                let known = read.iter().position(|(it, _)| it == piece);
                let stored = match known {
                    Some(known) => read.swap_remove(known).1,
                    None => tail_piece(self.source, piece, size),
                };
                match stored? {
                    Stored::Whole(content) => {
                        found = Some((piece, content));
                        break;
                    }
                    Stored::Damaged => damaged = Some(path),
                    Stored::Gone => {}
                }
            }
            let Some((piece, content)) = found else {
                return Ok(Assembled::UpTo(reached, damaged));
            };
            let Some(into) = bytes.get_mut(place(piece.from)..place(piece.to)) else {
                return Ok(Assembled::UpTo(reached, damaged));
            };
            into.copy_from_slice(&content);
            (reached, damaged) = (piece.to, None);
        }
        Ok(Assembled::Whole(bytes))
    }

    fn of_pg_wal(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.shelf.pg_wal.as_ref()?.join(name)).ok()?;
        (bytes.len() as u64 == self.shelf.segment_size).then_some(bytes)
    }
}

/// What the tail's pieces come to.
enum Assembled {
    Whole(Vec<u8>),
    /// They end here; an object that should lead on is damaged, or none is there.
    UpTo(Lsn, Option<String>),
}

/// An object of the tail.
enum Stored {
    Whole(Vec<u8>),
    /// Half a piece, left by a process that was killed, is as good as none.
    Damaged,
    Gone,
}

fn tail_piece(source: &Source, piece: &Piece, segment_size: u64) -> Result<Stored, Refusal> {
    let Some(remote) = &source.remote else { return Ok(Stored::Gone) };
    let path = format!("{DIRECTORY}/{}", piece.path(segment_size));
    let packed = match remote.get(&path) {
        Err(refusal) if refusal.damaged => return Ok(Stored::Damaged),
        got => got.map_err(|it| failure("the WAL tail cannot be read", &it))?,
    };
    let Some(packed) = packed else { return Ok(Stored::Gone) };
    // The checksum of the frame is compared when its end is read.
    let length = piece.to.since(piece.from);
    let content = unpack(&path, &packed, length).ok();
    Ok(match content.filter(|it| it.len() as u64 == length) {
        Some(content) => Stored::Whole(content),
        None => Stored::Damaged,
    })
}

/// The objects of the tail that are damaged, each with where its WAL begins. Reads all of them, or
/// those of one segment.
pub(crate) fn damaged_pieces(
    source: &Source,
    shelf: &Shelf,
    segment: Option<&str>,
) -> Result<Vec<Piece>, Refusal> {
    let mut damaged = Vec::new();
    let of_segment = |name: &&String| segment.is_none_or(|it| it == **name);
    for path in shelf.tail.iter().filter(|(name, _)| of_segment(name)).flat_map(|it| it.1) {
        let Some(piece) = Piece::parse(path, shelf.segment_size) else { continue };
        if matches!(tail_piece(source, &piece, shelf.segment_size)?, Stored::Damaged) {
            damaged.push(piece);
        }
    }
    Ok(damaged)
}

/// How many segments are got before PostgreSQL asks for them: a window of bytes, so that large
/// segments do not fill the disk.
const AHEAD_BYTES: u64 = 256 << 20;
/// At least so many.
const AHEAD_LEAST: usize = 2;
/// How many are got at the same time.
const AT_ONCE: usize = 4;
/// How long it is tried to reach the source before recovery is given up for now.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pauses between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often we look whether PostgreSQL has asked for more.
const LOOK: Duration = Duration::from_millis(20);

/// How often what is damaged is got again: it may have been damaged on its way.
pub(super) const TRIES: u32 = 3;

/// Gets WAL ahead of replay, until it is told to stop.
#[derive(Debug)]
pub(crate) struct Ahead {
    stop: Arc<AtomicBool>,
    /// Which of the plan's segments PostgreSQL has asked for: how many lie before it.
    pub(crate) replayed: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<Result<(), Refusal>>>,
}

impl Ahead {
    /// Begins.
    pub(crate) fn begin(
        source: Arc<Source>,
        shelf: Arc<Shelf>,
        work: &Work,
        is_quiet: bool,
    ) -> Ahead {
        let stop = Arc::new(AtomicBool::new(false));
        let replayed = Arc::new(AtomicU64::new(0));
        let (work, stopped, told) = (work.clone(), Arc::clone(&stop), Arc::clone(&replayed));
        let thread = thread::spawn(move || {
            let names = shelf.segments().iter().map(|it| it.name(shelf.segment_size)).collect();
            let is_waiting = AtomicBool::new(false);
            let getter =
                Getter { source: &source, shelf: &shelf, work: &work, names, is_quiet, is_waiting };
            getter.run(&stopped, &told)
        });
        Ahead { stop, replayed, thread: Some(thread) }
    }

    /// Why it has given up, if it has.
    pub(crate) fn failure(&mut self) -> Option<Refusal> {
        let thread = self.thread.take_if(|it| it.is_finished())?;
        match thread.join() {
            Ok(outcome) => outcome.err(),
            Err(_) => Some(panicked()),
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it found no longer matters.
            let _ = thread.join();
        }
    }
}

fn panicked() -> Refusal {
    Refusal::new("fetching WAL ended in a panic", "This is a fault of nrt-backup: report it.")
}

/// What gets WAL ahead.
struct Getter<'a> {
    source: &'a Source,
    shelf: &'a Shelf,
    work: &'a Work,
    /// The plan's segments.
    names: Vec<String>,
    is_quiet: bool,
    /// Whether the operator was told that something cannot be had.
    is_waiting: AtomicBool,
}

impl Getter<'_> {
    fn run(&self, stop: &AtomicBool, replayed: &AtomicU64) -> Result<(), Refusal> {
        let names = &self.names;
        let window = usize::try_from(AHEAD_BYTES / self.shelf.segment_size.max(1)).unwrap_or(1);
        let window = window.max(AHEAD_LEAST);
        let wal = self.work.wal();
        let (mut next, mut asked_at) = (0, 0);
        // What cannot be had matters only once PostgreSQL asks for it: it may stop before.
        let mut trouble: Option<(usize, Refusal)> = None;
        while !stop.load(Ordering::Relaxed) {
            if let Some(place) = self.asked() {
                // PostgreSQL reads the last one again when it ends recovery; none before it, but
                // that it first asks for the checkpoint, and then for where the backup began.
                for name in names.get(asked_at..place.saturating_sub(1)).unwrap_or_default() {
                    let _ = fs::remove_file(wal.join(name));
                }
                if place < next && names.get(place).is_some_and(|name| !wal.join(name).is_file()) {
                    next = place;
                }
                asked_at = place;
                replayed.store(place as u64, Ordering::Relaxed);
            }
            let end = match &trouble {
                Some((place, refusal)) if asked_at >= *place => return Err(refusal.clone()),
                Some((place, _)) => *place,
                None => names.len(),
            };
            let end = end.min(asked_at + window).min(next + AT_ONCE);
            let Some(batch) = names.get(next..end).filter(|it| !it.is_empty()) else {
                thread::sleep(LOOK);
                continue;
            };
            let got: Vec<Result<(), Refusal>> = thread::scope(|scope| {
                let running: Vec<_> = batch
                    .iter()
                    .enumerate()
                    .map(|(number, name)| {
                        let own = wal.join(format!("{number}"));
                        scope.spawn(move || self.patiently(name, own, stop))
                    })
                    .collect();
                let joined = running.into_iter().map(|it| it.join());
                joined.map(|it| it.unwrap_or_else(|_| Err(panicked()))).collect()
            });
            for outcome in got {
                match outcome {
                    Ok(()) => next += 1,
                    Err(refusal) => {
                        trouble = Some((next, refusal));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Which segment PostgreSQL asked for last.
    fn asked(&self) -> Option<usize> {
        let asked = fs::read_to_string(self.work.asked()).unwrap_or_default();
        self.names.iter().position(|name| *name == asked.trim())
    }

    /// Gets one segment, however often it has to be tried within the patience.
    fn patiently(&self, name: &str, own: PathBuf, stop: &AtomicBool) -> Result<(), Refusal> {
        let target = self.work.wal().join(name);
        let store = Store { source: self.source, shelf: self.shelf, directory: own };
        let begin = Instant::now();
        let (mut pause, mut damaged) = (PAUSES.0, 0);
        while !stop.load(Ordering::Relaxed) && !target.is_file() {
            let _ = fs::create_dir_all(&store.directory);
            let got = store.get(name).and_then(|_| {
                fs::rename(store.directory.join(name), &target).map_err(|error| {
                    Refusal::new(
                        format!("could not keep {name}: {error}"),
                        "See that its disk has room.",
                    )
                    .into()
                })
            });
            let Err(trouble) = got else {
                self.tell(None);
                return Ok(());
            };
            damaged += u32::from(trouble.is_damaged);
            if self.source.remote.as_ref().is_some_and(|remote| !remote.is_running()) {
                return Err(Refusal::new(
                    "rclone has ended",
                    "See whether it was killed, and why.",
                ));
            }
            if damaged == TRIES || begin.elapsed() >= PATIENCE {
                return Err(trouble.refusal);
            }
            if damaged == 0 {
                self.tell(Some(&trouble.refusal));
                if let Some(remote) = &self.source.remote {
                    // The credentials in rclone's configuration may be others by now.
                    remote.forget();
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(())
    }

    /// Tells once that recovery waits, and that it goes on.
    fn tell(&self, trouble: Option<&Refusal>) {
        if self.is_waiting.swap(trouble.is_some(), Ordering::Relaxed) == trouble.is_some()
            || self.is_quiet
        {
            return;
        }
        match trouble {
            Some(refusal) => eprintln!(
                "  replay: waits and tries again for up to {} minutes: {}",
                PATIENCE.as_secs() / 60,
                refusal.message
            ),
            None => eprintln!("  replay: goes on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn shelf(stretches: &[(u32, u64, u64)]) -> Shelf {
        let stretches = stretches.iter().map(|&(timeline, from, to)| Stretch {
            timeline,
            from: Lsn(from),
            to: Lsn(to),
        });
        Shelf { segment_size: SIZE, stretches: stretches.collect(), ..Shelf::default() }
    }

    #[test]
    fn a_plan_has_exactly_the_segments_that_it_names() {
        let shelf = shelf(&[(1, SIZE + 5, 3 * SIZE), (2, 3 * SIZE, 3 * SIZE + 100)]);
        let segment = |timeline, number| Segment { timeline, number };
        assert_eq!(shelf.segments(), [segment(1, 1), segment(1, 2), segment(2, 3)]);
        assert_eq!(shelf.part(segment(1, 0)), Part::None);
        assert_eq!(shelf.part(segment(1, 1)), Part::UpTo(Lsn(2 * SIZE)));
        assert_eq!(shelf.part(segment(1, 3)), Part::None);
        assert_eq!(shelf.part(segment(2, 3)), Part::UpTo(Lsn(3 * SIZE + 100)));
        assert_eq!(shelf.part(segment(2, 4)), Part::None);
    }
}
