//! Moves away what another life of this cluster has written to the remote at the places where this
//! one goes on: see `nrt_core::offsite::lineage`.
//!
//! Nothing is shipped before that is done, and `owner.json` names the place until it is: whatever
//! interrupts it, the next session goes on there. Backups go first, because the WAL that is still
//! there tells which of them are the other life's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nrt_core::inventory::Failure;
use nrt_core::layout::{self, Restored};
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::lineage::{Ended, Foreign, Hashes, backups_in, foreign};
use nrt_core::offsite::owner::Promised;
use nrt_core::offsite::tail::{DIRECTORY, Piece};
use nrt_core::offsite::{Position, RESTORE_POINTS};
use nrt_core::pgbackrest::archive::StoredName;
use nrt_core::pgbackrest::names::valid_label;
use nrt_core::restore::catalog::RestorePoint;

use super::archive::{is_archived_file, newest_id};
use super::repository::{has_held, names};
use super::state::Shared;
use nrt_core::offsite::DESCRIPTIONS;
use nrt_remote::segment::written;
use nrt_remote::{Remote, failure};
use sha1::{Digest, Sha1};

/// Where it is moved to.
pub(crate) const SUPERSEDED: &str = "superseded";

/// Tail objects that are compared, the newest first, before the rest counts as another's.
const COMPARED: usize = 64;
/// How long a session waits for the server's position: where it must know it, and where it goes on.
const POSITION: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));

fn cannot_read(refusal: &nrt_remote::Refusal) -> Failure {
    failure("the remote cannot be read", refusal)
}

/// Waits for the position that the worker tells.
fn position(shared: &Shared, patience: Duration) -> Option<Position> {
    const PAUSE: Duration = Duration::from_millis(50);
    let mut left = patience;
    while !shared.is_over() {
        let known = shared.lock().position;
        if known.is_some() || left.is_zero() {
            return known;
        }
        shared.sleep(PAUSE);
        left = left.saturating_sub(PAUSE);
    }
    None
}

/// Refuses to ship beside a repository that holds WAL of another life of this cluster: its data were
/// put back to an earlier state, and the repository was not. The files there have the names of this
/// life's, pgBackRest replaces none of them, and backups that ended in that life look like this one's.
///
/// The newest archived segment tells. Records are chained: where it is the server's own, all before it
/// are. A segment that `pg_wal` does not have any more was archived by this life.
pub(crate) fn refuse_another_life_here(shared: &Shared) -> Result<(), Failure> {
    let plan = &shared.plan;
    let Some(now) = position(shared, POSITION.1) else { return Ok(()) };
    let Some((newest, hash)) = newest_archived(shared, now.timeline) else { return Ok(()) };
    let is_finished = |now: Position| newest.end(plan.segment_size) <= now.flushed;
    if !is_finished(now) {
        // The position may be a report old.
        shared.sleep(POSITION.1);
    }
    let now = shared.lock().position.unwrap_or(now);
    let path = Path::new(&plan.data_directory).join("pg_wal").join(newest.name(plan.segment_size));
    let is_ours = if is_finished(now) {
        hash_of_file(&path).map_or(true, |its| its == hash)
    } else {
        now.timeline != newest.timeline
    };
    if is_ours || shared.is_over() {
        return Ok(());
    }
    let directory = |kind: &str| shared.repository.join(kind).join(&plan.stanza);
    let (archive, backup) = (directory("archive"), directory("backup"));
    Err(Failure {
        message: format!(
            "the repository holds segment {} of another life of this cluster, whose data were put \
             back to an earlier state: nothing is shipped",
            newest.name(plan.segment_size)
        ),
        hint: format!(
            "To go on with this life, move \"{}\" and \"{}\" to another directory and run \
             \"nrt-backup takeover --set-aside\": a full backup follows. The other life is restored \
             from what was moved.",
            archive.display(),
            backup.display()
        ),
    })
}

/// The SHA-1 of a file, which is not read into memory as a whole.
fn hash_of_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha1::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(written(hasher))
}

/// The newest segment of a timeline in the repository's archive, and its SHA-1.
fn newest_archived(shared: &Shared, timeline: u32) -> Option<(Segment, String)> {
    let size = shared.plan.segment_size;
    let archive = shared.repository.join("archive").join(&shared.plan.stanza);
    let ids: BTreeSet<String> = names(&archive).ok()?.into_iter().collect();
    let archive = archive.join(newest_id(ids.iter())?);
    let mut groups = names(&archive).ok()?;
    groups.retain(|it| it.len() == 16 && it.starts_with(&format!("{timeline:08X}")));
    groups.sort();
    // The newest group may have been emptied by expire.
    groups.iter().rev().find_map(|group| {
        let files = names(&archive.join(group)).ok()?;
        let stored = files.iter().filter_map(|file| StoredName::parse(file));
        let stored = stored.filter(|it| !it.is_partial);
        let segments = stored.filter_map(|it| {
            let segment = Segment::parse(it.segment, size)?;
            Some((segment.number, segment, it.hash.to_string()))
        });
        segments.max_by_key(|(number, ..)| *number).map(|(_, segment, hash)| (segment, hash))
    })
}

/// Whether the server is not as far any more as it has promised: it has lost WAL that it had called
/// safe.
pub(crate) fn has_lost(shared: &Shared, promised: Option<&Promised>) -> bool {
    // A server that tells nothing ships nothing.
    let Some(shipped) = promised.and_then(|it| it.shipped) else { return false };
    let Some(now) = position(shared, POSITION.1) else { return false };
    let has_lost = shipped.timeline == now.timeline && shipped.flushed > now.flushed;
    if has_lost {
        eprintln!("owner: {} was shipped, and the server is at {}", shipped.flushed, now.flushed);
    }
    has_lost
}

/// Whether the tail on a remote that is this server's has another life's objects: this one was put
/// back to an earlier state, and no heartbeat was given since that was copied.
pub(crate) fn has_gone_back(shared: &Shared, remote: &Remote) -> Result<bool, Failure> {
    let Some(now) = position(shared, POSITION.1) else { return Ok(false) };
    let pieces = pieces_of(shared, remote, now.timeline)?;
    if let Some(beyond) = pieces.iter().find(|it| it.to > now.flushed) {
        eprintln!("owner: the tail reaches {}, and the server is at {}", beyond.to, now.flushed);
        return Ok(true);
    }
    // Within one process nobody puts anything back.
    let newest = pieces.last().filter(|_| !shared.has_looked.load(Ordering::Relaxed));
    let Some(newest) = newest else { return Ok(false) };
    let is_another = compare(shared, remote, newest)? == Some(false);
    if is_another {
        eprintln!("owner: the tail's last object, to {}, is not this server's", newest.to);
    }
    Ok(is_another)
}

/// Moves what is another life's to a place on the remote.
pub(crate) fn separate(shared: &Shared, remote: &Remote, place: &str) -> Result<(), Failure> {
    let Some(now) = position(shared, POSITION.0) else {
        return Err(Failure {
            message: "the server has not told yet which timeline it writes".to_string(),
            hint: "It is tried again.".to_string(),
        });
    };
    let life = Life { shared, remote, place, now };
    let (proven, their_pieces) = life.their_pieces()?;
    let (files, hashes) = life.archived()?;
    let known = proven.map(|it| it.segment.number).max(life.restored());
    let foreign = foreign(&hashes, known, |it| life.hash_here(it));
    let their_files: Vec<&Stored> =
        files.iter().filter(|it| life.is_theirs(it, &foreign)).collect();
    let their_backups = life.their_backups(&foreign)?;
    if !their_files.is_empty() || !their_backups.is_empty() {
        life.keep_info()?;
    }
    for label in &their_backups {
        let path = format!("repository/backup/{}/{label}", shared.plan.stanza);
        life.move_directory(&path)?;
    }
    // The first segment that is theirs goes last: it tells from where on they are.
    for file in their_files.iter().rev() {
        life.move_file(&file.path)?;
    }
    life.move_points(&foreign)?;
    let timelines: BTreeSet<u32> = their_pieces.iter().map(|it| it.segment.timeline).collect();
    if proven.is_none() {
        // As a whole, also what is no object of ours.
        life.move_directory(&format!("{DIRECTORY}/{:08X}", now.timeline))?;
    }
    for timeline in timelines.into_iter().filter(|it| *it > now.timeline) {
        life.move_directory(&format!("{DIRECTORY}/{timeline:08X}"))?;
    }
    let size = shared.plan.segment_size;
    for piece in their_pieces.iter().filter(|it| it.segment.timeline == now.timeline) {
        if proven.is_some() {
            life.move_file(&format!("{DIRECTORY}/{}", piece.path(size)))?;
        }
    }
    Ok(())
}

/// The tail objects of one timeline, in the order of their ends.
fn pieces_of(shared: &Shared, remote: &Remote, timeline: u32) -> Result<Vec<Piece>, Failure> {
    let size = shared.plan.segment_size;
    let directory = format!("{timeline:08X}");
    let listed = remote.list(&format!("{DIRECTORY}/{directory}")).map_err(|it| cannot_read(&it))?;
    let mut pieces: Vec<Piece> = listed
        .iter()
        .filter_map(|entry| Piece::parse(&format!("{directory}/{}", entry.path), size))
        .collect();
    pieces.sort_by_key(|piece| (piece.to, piece.from));
    Ok(pieces)
}

/// Whether a tail object holds what `pg_wal` holds at its place; `None` where that cannot be told:
/// it is cut off, or the server has the segment no more.
fn compare(shared: &Shared, remote: &Remote, piece: &Piece) -> Result<Option<bool>, Failure> {
    let size = shared.plan.segment_size;
    let path = Path::new(&shared.plan.data_directory).join("pg_wal").join(piece.segment.name(size));
    if !path.exists() {
        return Ok(None);
    }
    let there = remote.get(&format!("{DIRECTORY}/{}", piece.path(size)));
    let Some(packed) = there.map_err(|it| cannot_read(&it))? else { return Ok(None) };
    let length = piece.to.since(piece.from);
    let Ok(there) = unpacked(&packed, length) else { return Ok(None) };
    let from = piece.from.since(piece.segment.start(size));
    match stretch(&path, from, length) {
        Ok(here) => Ok(Some(here == there)),
        // The server has just given the file another name.
        Err(_) => Ok(None),
    }
}

fn unpacked(packed: &[u8], length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(packed)?.take(length + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn stretch(path: &Path, from: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file of the archive on the remote.
struct Stored {
    /// Below the cluster's directory.
    path: String,
    /// The segment to which it belongs; none for a timeline's history.
    segment: Option<Segment>,
    timeline: u32,
    /// The hash in its name. A backup's history has none.
    hash: Option<String>,
}

/// This server's life, and what it works with.
struct Life<'a> {
    shared: &'a Shared,
    remote: &'a Remote,
    place: &'a str,
    now: Position,
}

impl Life<'_> {
    /// The newest tail object that is this server's, and those that are not: behind it, or on later
    /// timelines.
    fn their_pieces(&self) -> Result<(Option<Piece>, Vec<Piece>), Failure> {
        let size = self.shared.plan.segment_size;
        let listed = self.remote.list(DIRECTORY).map_err(|it| cannot_read(&it))?;
        let all = listed.iter().filter_map(|entry| Piece::parse(&entry.path, size));
        let (mut theirs, mut same): (Vec<Piece>, Vec<Piece>) = all
            .filter(|it| it.segment.timeline >= self.now.timeline)
            .partition(|it| it.segment.timeline > self.now.timeline || it.to > self.now.flushed);
        same.sort_by_key(|piece| (piece.to, piece.from));
        let mut proven = None;
        for (count, piece) in same.iter().rev().enumerate() {
            if count < COMPARED && compare(self.shared, self.remote, piece)? == Some(true) {
                proven = Some(*piece);
                break;
            }
            theirs.push(*piece);
        }
        Ok((proven, theirs))
    }

    /// The archive's files of this timeline and later ones, and the hashes of this one's segments.
    fn archived(&self) -> Result<(Vec<Stored>, Hashes), Failure> {
        let size = self.shared.plan.segment_size;
        let archive = format!("repository/archive/{}", self.shared.plan.stanza);
        let listed = self.remote.list(&archive).map_err(|it| cannot_read(&it))?;
        let ids: BTreeSet<String> = listed
            .iter()
            .filter_map(|it| it.path.split_once('/'))
            .map(|(id, _)| id.to_string())
            .collect();
        let Some(id) = newest_id(ids.iter()) else { return Ok(Default::default()) };
        let (mut files, mut hashes) = (Vec::new(), Hashes::new());
        for entry in &listed {
            let Some((directory, name)) = entry.path.rsplit_once('/') else { continue };
            let is_of = directory == id || directory.starts_with(&format!("{id}/"));
            if !is_of || !is_archived_file(directory, name) {
                continue;
            }
            let stored = StoredName::parse(name);
            let segment = match stored {
                Some(stored) => Segment::parse(stored.segment, size),
                None => Segment::of_archived(name, size),
            };
            let of_history = || u32::from_str_radix(name.get(..8)?, 16).ok();
            let Some(timeline) = segment.map(|it| it.timeline).or_else(of_history) else {
                continue;
            };
            if timeline < self.now.timeline {
                continue;
            }
            if let Some((segment, stored)) = segment.zip(stored)
                && timeline == self.now.timeline
                && !stored.is_partial
            {
                hashes.entry(segment.number).or_default().insert(stored.hash.to_string());
            }
            files.push(Stored {
                path: format!("{archive}/{}", entry.path),
                segment,
                timeline,
                hash: stored.map(|it| it.hash.to_string()),
            });
        }
        // In the order of the WAL.
        files.sort_by_key(|it| (it.timeline, it.segment.map(|it| it.number)));
        Ok((files, hashes))
    }

    fn is_theirs(&self, file: &Stored, foreign: &Foreign) -> bool {
        if file.timeline > self.now.timeline {
            return true;
        }
        let Some(segment) = file.segment else { return false };
        foreign.is_foreign(segment.number, file.hash.as_deref().unwrap_or_default())
            && (file.hash.is_some() || foreign.from.is_some_and(|from| from <= segment.number))
    }

    /// The segment in which a restore of this server ended, which has replayed all before it.
    fn restored(&self) -> Option<u64> {
        let file = Path::new(&self.shared.plan.state).join(layout::RESTORED);
        let restored: Restored = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let is_here = restored.timeline == self.now.timeline;
        is_here.then(|| restored.lsn.0 / self.shared.plan.segment_size)
    }

    /// The hash of a segment of this server: in the archive, or finished in `pg_wal`.
    fn hash_here(&self, number: u64) -> Option<String> {
        let size = self.shared.plan.segment_size;
        let segment = Segment { timeline: self.now.timeline, number };
        let name = segment.name(size);
        let archive = self.shared.repository.join("archive").join(&self.shared.plan.stanza);
        let ids: BTreeSet<String> = names(&archive).ok()?.into_iter().collect();
        if let Some(id) = newest_id(ids.iter()) {
            let group = names(&archive.join(id).join(name.get(..16)?)).unwrap_or_default();
            let stored = group.iter().filter_map(|file| StoredName::parse(file));
            let mut of = stored.filter(|it| !it.is_partial && it.segment == name);
            if let Some(stored) = of.next() {
                return Some(stored.hash.to_string());
            }
        }
        if segment.end(size) > self.now.flushed {
            return None;
        }
        let pg_wal = Path::new(&self.shared.plan.data_directory).join("pg_wal");
        let path = pg_wal.join(name);
        fs::metadata(&path).ok().filter(|it| it.len() == size)?;
        hash_of_file(&path).ok()
    }

    /// The backups on the remote that were taken in the other life. One that this repository holds,
    /// or has held, is this server's.
    fn their_backups(&self, foreign: &Foreign) -> Result<Vec<String>, Failure> {
        let plan = &self.shared.plan;
        let path = format!("repository/backup/{}/backup.info", plan.stanza);
        let mut listed = None;
        for suffix in ["", ".copy"] {
            if listed.is_none() {
                let info = self.remote.get(&format!("{path}{suffix}"));
                let info = info.map_err(|it| cannot_read(&it))?;
                listed = info.and_then(|it| backups_in(&it, plan.segment_size));
            }
        }
        let listed = match listed {
            Some(listed) => listed,
            // It is encrypted, or damaged.
            None => self.described()?,
        };
        let theirs = listed.into_iter().filter(|backup| {
            valid_label(&backup.label)
                && backup.is_foreign(self.now, foreign)
                && !has_held(&self.shared.repository, &plan.stanza, &backup.label)
        });
        Ok(theirs.map(|backup| backup.label).collect())
    }

    /// What the descriptions say of where backups ended.
    fn described(&self) -> Result<Vec<Ended>, Failure> {
        let size = self.shared.plan.segment_size;
        let mut found = Vec::new();
        for directory in DESCRIPTIONS {
            for entry in self.remote.list(directory).map_err(|it| cannot_read(&it))? {
                let Some(label) = entry.path.strip_suffix(".json") else { continue };
                let text = self.remote.get(&format!("{directory}/{}", entry.path));
                let text = text.map_err(|it| cannot_read(&it))?.unwrap_or_default();
                let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                let segment =
                    value["archive_stop"].as_str().and_then(|it| Segment::parse(it, size));
                let at = value["stop_lsn"].as_str().and_then(|it| it.parse::<Lsn>().ok());
                if let Some((segment, at)) = segment.zip(at) {
                    found.push(Ended { label: label.to_string(), segment, at });
                }
            }
        }
        Ok(found)
    }

    /// Keeps the info files with what they list: pgBackRest restores the other life's backups from
    /// there.
    fn keep_info(&self) -> Result<(), Failure> {
        for kind in ["archive", "backup"] {
            for suffix in ["", ".copy"] {
                let stanza = &self.shared.plan.stanza;
                let path = format!("repository/{kind}/{stanza}/{kind}.info{suffix}");
                if let Some(text) = self.remote.get(&path).map_err(|it| cannot_read(&it))? {
                    let to = format!("{}/{path}", self.place);
                    self.remote.put(&to, &text).map_err(|it| cannot_move(&it))?;
                }
            }
        }
        Ok(())
    }

    /// Moves the list of restore points there if some are the other life's, and keeps the others.
    fn move_points(&self, foreign: &Foreign) -> Result<(), Failure> {
        let Some(text) = self.remote.get(RESTORE_POINTS).map_err(|it| cannot_read(&it))? else {
            return Ok(());
        };
        let Ok(points) = serde_json::from_slice::<Vec<RestorePoint>>(&text) else { return Ok(()) };
        let size = self.shared.plan.segment_size;
        let parted = foreign.from.map(|number| Lsn(number * size));
        let end = parted.map_or(self.now.flushed, |parted| parted.min(self.now.flushed));
        let is_ours = |point: &RestorePoint| {
            point.timeline < self.now.timeline
                || (point.timeline == self.now.timeline && point.lsn <= end)
        };
        let ours: Vec<&RestorePoint> = points.iter().filter(|it| is_ours(it)).collect();
        if ours.len() < points.len() {
            let kept = format!("{}/{RESTORE_POINTS}", self.place);
            self.remote.put(&kept, &text).map_err(|it| cannot_move(&it))?;
            let text = serde_json::to_vec(&ours).unwrap_or_default();
            self.remote.put(RESTORE_POINTS, &text).map_err(|it| cannot_move(&it))?;
        }
        Ok(())
    }

    fn move_file(&self, path: &str) -> Result<(), Failure> {
        if self.shared.is_over() {
            return Err(Failure { message: "stopped".to_string(), hint: String::new() });
        }
        eprintln!("owner: \"{path}\" is another life's, and is moved to \"{}\"", self.place);
        self.remote.rename(path, &format!("{}/{path}", self.place)).map_err(|it| cannot_move(&it))
    }

    fn move_directory(&self, path: &str) -> Result<(), Failure> {
        if self.remote.list(path).map_err(|it| cannot_read(&it))?.is_empty() {
            return Ok(());
        }
        eprintln!("owner: \"{path}\" is another life's, and is moved to \"{}\"", self.place);
        let to = format!("{}/{path}", self.place);
        let moved = self.remote.rename_directory(path, &to, &self.shared.over);
        moved.map_err(|it| cannot_move(&it))
    }
}

fn cannot_move(refusal: &nrt_remote::Refusal) -> Failure {
    failure("what another life of this cluster has left cannot be moved away", refusal)
}
