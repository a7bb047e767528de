//! Mirrors the archive: every finished segment, in order, as pgBackRest has stored it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::lsn::Segment;
use nrt_core::offsite::tail::{Coverage, DIRECTORY, Piece};
use nrt_core::pgbackrest::archive::{StoredName, is_backup_history};

use super::bring_back;
use super::owner::surely_ours;
use super::repository::{Archive, is_group};
use super::state::Shared;
use nrt_remote::Refusal;
use nrt_remote::segment::{Proof, prove};
use nrt_remote::{Backoff, Mode, Remote, failure};

/// How often the local archive is looked at while WAL is written, and while none is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Files of one round: between two rounds, what is newer is looked for.
const ROUND: usize = 64;
/// How long a deletion that failed is left alone: the credentials may not allow any.
const DELETE_AGAIN: Duration = Duration::from_secs(300);
/// Segments of one clearing of the tail that are looked into: new ones must not wait for long.
const PROOFS: usize = 4;

/// The archive's files, by directory below the stanza's.
pub(crate) type Files = BTreeMap<String, BTreeSet<String>>;

/// Mirrors until the session is over. `there` is what the remote holds already.
pub(crate) fn run(shared: &Shared, remote: &Remote, there: &Mutex<Files>) {
    let mut mirror = Mirror {
        shared,
        remote,
        there,
        local: Archive::default(),
        proven: Coverage::default(),
        unknown: BTreeSet::new(),
        delete_again: None,
    };
    let mut backoff = Backoff::default();
    let mut position = None;
    while !shared.is_over() {
        let left = backoff.left();
        if !left.is_zero() {
            shared.sleep(left);
        }
        let pass = shared.change(|state| {
            state.passes.0 += 1;
            state.pass_wanted = false;
            state.passes.0
        });
        match mirror.pass() {
            Ok(()) => {
                backoff.worked();
                shared.report("archive", None);
                shared.change(|state| state.passes.1 = pass);
            }
            Err(problem) => {
                backoff.failed();
                shared.report("archive", Some(problem));
                if !remote.is_running() {
                    shared.end_session();
                }
                continue;
            }
        }
        mirror.clear_the_tail();
        let (now, waits) = {
            let state = shared.lock();
            let waits = state.position.is_some_and(|now| state.lacks_history(now.timeline));
            (state.position, waits)
        };
        let pause = if now == position && !waits { PAUSES.1 } else { PAUSES.0 };
        position = now;
        let until = Instant::now() + pause;
        while !shared.is_over() && Instant::now() < until {
            let seen = shared.generation();
            let state = shared.lock();
            let (wanted, moved) = (state.pass_wanted, state.position != position);
            drop(state);
            if wanted {
                break;
            }
            // WAL was written: a segment may be finished soon, but not at once.
            let soon = if moved { PAUSES.0 } else { PAUSES.1 };
            let left = until.saturating_duration_since(Instant::now());
            shared.wait(seen, soon.min(left));
            if moved {
                shared.sleep(PAUSES.0);
                break;
            }
        }
    }
}

struct Mirror<'a> {
    shared: &'a Shared,
    remote: &'a Remote,
    there: &'a Mutex<Files>,
    local: Archive,
    /// Segments that the remote surely holds as a whole.
    proven: Coverage,
    /// Segments of which that cannot be told. Their tail stays.
    unknown: BTreeSet<Segment>,
    delete_again: Option<Instant>,
}

impl Mirror<'_> {
    /// Sends all that is in the local archive and not on the remote. Looks only into directories
    /// that have changed since all of theirs was there.
    fn pass(&mut self) -> Result<(), Failure> {
        let stanza = &self.shared.plan.stanza;
        let root = self.shared.repository.join("archive").join(stanza);
        if self.shared.change(|state| std::mem::take(&mut state.look_at_all)) {
            self.local = Archive::default();
        }
        self.local.read(&root).map_err(|error| Failure {
            message: format!("the repository's archive cannot be read: {error}"),
            hint: "See that the repository's file system is there and can be read.".to_string(),
        })?;
        let size = self.shared.plan.segment_size;
        let newest = newest_id(self.local.ids());
        let mut missing = Vec::new();
        let mut here = Vec::new();
        let histories: BTreeSet<u32>;
        {
            let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            let known = newest.as_ref().and_then(|id| there.get(id));
            histories = known.into_iter().flatten().filter_map(|name| history_of(name)).collect();
            for (directory, names) in self.local.changed() {
                let ours =
                    newest.as_deref().is_some_and(|id| directory.starts_with(&format!("{id}/")));
                let known = there.get(directory);
                for name in names.iter().filter(|name| is_archived_file(directory, name)) {
                    let segment = segment_of(name, size);
                    here.extend(segment.filter(|_| ours));
                    if known.is_some_and(|known| known.contains(name)) {
                        continue;
                    }
                    if let Some(other) = known.and_then(|known| namesake(known, name)) {
                        return Err(conflict(name, other));
                    }
                    missing.push((directory.clone(), name.clone(), segment.filter(|_| ours)));
                }
            }
        }
        self.shared.change(|state| {
            for segment in here {
                state.archived_here.archive(segment);
            }
            state.add_histories(histories);
        });
        let root = root.to_string_lossy();
        for round in missing.chunks(ROUND) {
            surely_ours(self.shared, self.remote)?;
            self.send(&root, round)?;
            if self.shared.is_over() {
                return Ok(());
            }
        }
        self.local.all_is_there();
        Ok(())
    }

    /// Sends files side by side, the oldest first.
    fn send(
        &mut self,
        root: &str,
        round: &[(String, String, Option<Segment>)],
    ) -> Result<(), Failure> {
        let next = AtomicUsize::new(0);
        let (shared, remote) = (self.shared, self.remote);
        let workers = (shared.plan.transfers as usize).min(round.len());
        let send_some = || {
            let mut sent = Vec::new();
            let mut problem = None;
            while !shared.is_over()
                && let Some((directory, name, segment)) =
                    round.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let file = format!("{directory}/{name}");
                let path = format!("repository/archive/{}/{file}", shared.plan.stanza);
                // A timeline's or a backup's history may be written again, with the same size.
                let mode = if segment.is_some() { Mode::SameName } else { Mode::Replace };
                match remote.send(root, &file, &path, mode) {
                    Ok(()) => {
                        sent.push((directory.clone(), name.clone(), *segment));
                        shared.change(|state| {
                            if let Some(segment) = segment {
                                state.coverage.archive(*segment);
                            }
                            state.add_histories(history_of(name));
                        });
                    }
                    // Expired meanwhile. The remote, too, may miss something.
                    Err(_) if !Path::new(root).join(&file).exists() => {}
                    Err(refusal) => {
                        let what = format!("the archive's file \"{name}\" cannot be sent");
                        problem = Some(failure(&what, &refusal));
                        break;
                    }
                }
            }
            (sent, problem)
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(send_some)).collect();
            running.into_iter().filter_map(|it| it.join().ok()).collect()
        });
        let mut problem = None;
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        for (sent, failed) in outcomes {
            for (directory, name, segment) in sent {
                there.entry(directory).or_default().insert(name);
                if let Some(segment) = segment {
                    self.proven.archive(segment);
                }
            }
            problem = problem.or(failed);
        }
        problem.map_or(Ok(()), Err)
    }

    /// Removes the tail's objects that the archive or others of them have replaced.
    fn clear_the_tail(&mut self) {
        if self.delete_again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        let size = self.shared.plan.segment_size;
        let (superseded, gone, wrong) = {
            let mut state = self.shared.lock();
            let replaced = std::mem::take(&mut state.replaced);
            let coverage = &state.coverage;
            let is_safe = |piece: &Piece| {
                let reach = coverage.reach(piece.segment.timeline, piece.from, size);
                reach >= piece.to
            };
            // One that was sent anew under the same name stays.
            let old = replaced.into_iter().filter(|piece| !coverage.holds(piece));
            let (gone, waiting): (Vec<Piece>, Vec<Piece>) = old.partition(is_safe);
            state.replaced = waiting;
            let wrong = std::mem::take(&mut state.wrong);
            let mut superseded = state.purgeable();
            superseded.retain(|piece| !self.unknown.contains(&piece.segment));
            (superseded, gone, wrong)
        };
        if superseded.is_empty() && gone.is_empty() && wrong.is_empty() {
            return;
        }
        let mut problem = None;
        let mut left: Vec<Piece> = Vec::new();
        let mut segments: BTreeMap<Segment, Vec<Piece>> = BTreeMap::new();
        for piece in superseded {
            segments.entry(piece.segment).or_default().push(piece);
        }
        let mut purged = BTreeSet::new();
        let mut proofs = 0;
        for (segment, pieces) in segments {
            if problem.is_none() && !self.proven.is_archived(segment) {
                proofs += 1;
                if proofs > PROOFS {
                    continue;
                }
            }
            match problem.clone().map_or_else(|| self.purge(segment), Err) {
                Ok(true) => {
                    purged.insert(segment);
                    self.shared.change(|state| {
                        for piece in &pieces {
                            state.coverage.remove(piece);
                        }
                    });
                }
                Ok(false) => {}
                Err(refusal) => {
                    left.extend(pieces);
                    problem = Some(refusal);
                }
            }
        }
        let mut again = [Vec::new(), Vec::new()];
        for (kind, pieces) in [wrong, gone].into_iter().enumerate() {
            // What went with its directory is gone.
            for piece in pieces.into_iter().filter(|it| !purged.contains(&it.segment)) {
                let path = format!("{DIRECTORY}/{}", piece.path(size));
                let deleted = problem.clone().map_or_else(|| self.remote.delete(&path), Err);
                if let Err(refusal) = deleted {
                    again[kind].push(piece);
                    problem = Some(refusal);
                }
            }
        }
        let [wrong, gone] = again;
        let count = (left.len() + wrong.len() + gone.len()) as u64;
        self.delete_again = problem.as_ref().map(|_| Instant::now() + DELETE_AGAIN);
        let problem = problem.map(|it| failure("the WAL tail cannot be cleared up", &it));
        self.shared.change(|state| {
            state.wrong.extend(wrong);
            state.replaced.extend(gone);
            state.undeleted.insert("tail", (count, problem));
        });
    }

    /// Removes the tail of a segment that is archived on the remote. `false` where it may be the
    /// only whole copy of that: an upload that a vanished machine has cut off has the segment's
    /// name, too.
    fn purge(&mut self, segment: Segment) -> Result<bool, Refusal> {
        let name = segment.name(self.shared.plan.segment_size);
        match self.prove(segment)? {
            Proof::Whole => {
                self.proven.archive(segment);
                let timeline = segment.timeline;
                self.remote.purge(&format!("{DIRECTORY}/{timeline:08X}/{name}"))?;
                Ok(true)
            }
            Proof::Broken => {
                eprintln!("archive: segment {name} is damaged on the remote: its tail stays");
                self.shared.change(|state| state.coverage.forget_archived(segment));
                Ok(false)
            }
            Proof::Unknown => {
                self.unknown.insert(segment);
                Ok(false)
            }
        }
    }

    /// Whether the remote's archive holds a segment as a whole.
    fn prove(&self, segment: Segment) -> Result<Proof, Refusal> {
        if self.proven.is_archived(segment) {
            return Ok(Proof::Whole);
        }
        let Some(path) = self.stored_as(segment) else { return Ok(Proof::Unknown) };
        let plan = &self.shared.plan;
        let path = format!("archive/{}/{path}", plan.stanza);
        // What is here has the same size there.
        let here = self.shared.repository.join(&path);
        match prove(&here, &path) {
            Proof::Whole => return Ok(Proof::Whole),
            // Encrypted: what is there would say no more. By the pgBackRest of this server, unless it
            // may have been brought back from there.
            Proof::Unknown if here.exists() => {
                let is_foreign = bring_back::is_due(Path::new(&plan.state));
                return Ok(if is_foreign { Proof::Unknown } else { Proof::Whole });
            }
            Proof::Unknown | Proof::Broken => {}
        }
        let file = self.remote.outbox().join(self.remote.spool_name());
        let is_there = self.remote.fetch(&format!("repository/{path}"), &file)?;
        let proof = if is_there { prove(&file, &path) } else { Proof::Broken };
        // The next session clears the outbox, at the latest.
        let _ = fs::remove_file(file);
        Ok(proof)
    }

    /// The path of a segment's file in the remote's archive.
    fn stored_as(&self, segment: Segment) -> Option<String> {
        let name = segment.name(self.shared.plan.segment_size);
        let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = there.keys().filter_map(|it| it.split('/').next()).map(str::to_string);
        let id = newest_id(ids.collect::<BTreeSet<String>>().iter())?;
        let directory = format!("{id}/{}", name.get(..16)?);
        let stored = namesake(there.get(&directory)?, &format!("{name}-"))?;
        Some(format!("{directory}/{stored}"))
    }
}

/// A file of the segment with which a name begins.
fn namesake<'a>(known: &'a BTreeSet<String>, name: &str) -> Option<&'a str> {
    let segment = name.get(0..24).filter(|_| name.as_bytes().get(24) == Some(&b'-'))?;
    let from = format!("{segment}-");
    known.range(from.clone()..).next().map(String::as_str).filter(|it| it.starts_with(&from))
}

/// Two histories of one timeline, as of a copy of the cluster that was never promoted. pgBackRest
/// restores neither when both are there.
fn conflict(name: &str, other: &str) -> Failure {
    Failure {
        message: format!(
            "the remote holds another segment of the same name (\"{other}\", here \"{name}\"): \
             this server and the one that shipped before have gone different ways on one timeline"
        ),
        hint: "Give this server a name of its own in nrt_backup.name, or run \"nrt-backup \
               takeover --set-aside\" to keep the remote's backups under another name."
            .to_string(),
    }
}

/// Whether a file of the archive is mirrored: segments and histories, and nothing that we do not
/// know. Least of all what rclone was writing when it was killed, `<name>.<hash>.partial`.
pub(crate) fn is_archived_file(directory: &str, name: &str) -> bool {
    let in_group = directory.rsplit('/').next().is_some_and(is_group);
    if in_group {
        StoredName::parse(name).is_some() || is_backup_history(name)
    } else {
        history_of(name).is_some()
    }
}

/// Whether the file here may replace one on the remote, of another size: never a longer segment by
/// a shorter one, unless that is whole. One that is cut off here would otherwise be so on both sides.
pub(crate) fn may_replace(file: &Path, there: u64) -> bool {
    let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_shorter = fs::metadata(file).is_ok_and(|it| it.len() < there);
    !is_shorter || StoredName::parse(name).is_none() || prove(file, name) == Proof::Whole
}

/// The timeline whose history a file of the archive tells.
pub(crate) fn history_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".history").filter(|it| it.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

/// The segment that a file of the archive holds: `<segment>-<hash>`, packed or not. Not a partial
/// one, nor a backup's history.
pub(crate) fn segment_of(name: &str, segment_size: u64) -> Option<Segment> {
    StoredName::parse(name)?.finished(segment_size)
}

/// The archive of the cluster as it is now: the identifier with the greatest number.
pub(crate) fn newest_id<'a>(directories: impl Iterator<Item = &'a String>) -> Option<String> {
    let ids = directories.filter(|path| !path.contains('/'));
    let number = |id: &String| id.rsplit('-').next().and_then(|it| it.parse::<u64>().ok());
    ids.filter(|id| number(id).is_some()).max_by_key(|id| number(id)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nrt_remote::segment::hash_of;

    #[test]
    fn knows_the_archives_files() {
        let hash = "0123456789012345678901234567890123456789";
        let group = "15-1/0000000100000000";
        let segment = format!("000000010000000000000003-{hash}.zst");
        assert!(is_archived_file(group, &segment));
        assert_eq!(segment_of(&segment, 16 << 20), Some(Segment { timeline: 1, number: 3 }));
        let history = "000000010000000000000003.00000028.backup";
        assert!(is_archived_file(group, history));
        assert_eq!(segment_of(history, 16 << 20), None);
        let partial = format!("000000010000000000000003.partial-{hash}.zst");
        assert!(is_archived_file(group, &partial));
        assert_eq!(segment_of(&partial, 16 << 20), None);
        assert!(is_archived_file("15-1", "00000002.history"));
        assert_eq!(history_of("0000001F.history"), Some(31));
        assert_eq!(history_of("000000010000000000000003.00000028.backup"), None);
        assert!(!is_archived_file("15-1", "0000000100000000"));
        assert!(!is_archived_file(group, ".new-x"));
        // As a killed rclone leaves them.
        for whole in [segment.as_str(), history, &partial] {
            let half = format!("{whole}.a1b2c3d4.partial");
            assert!(!is_archived_file(group, &half), "{half}");
            assert_eq!(segment_of(&half, 16 << 20), None);
        }
        assert!(!is_archived_file("15-1", "00000002.history.a1b2c3d4.partial"));
    }

    #[test]
    fn only_a_whole_segment_takes_the_place_of_a_longer_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let content = b"WAL ".repeat(1000);
        let segment = "000000010000000000000003";
        let file = directory.path().join(format!("{segment}-{}", hash_of(&content)));
        fs::write(&file, &content[..2000]).expect("written");
        assert!(!may_replace(&file, 4000));
        assert!(may_replace(&file, 1000));
        fs::write(&file, &content).expect("written");
        assert!(may_replace(&file, 5000));
        // Histories are written anew.
        let history = directory.path().join("00000002.history");
        fs::write(&history, "x").expect("written");
        assert!(may_replace(&history, 2));
        assert!(may_replace(&directory.path().join("none"), 2));
    }

    #[test]
    fn another_history_of_a_timeline_is_seen() {
        let known: BTreeSet<String> = [
            "000000010000000000000003-aa.zst",
            "000000010000000000000003.00000028.backup",
            "000000010000000000000004.partial-bb.zst",
        ]
        .map(str::to_string)
        .into();
        let other = Some("000000010000000000000003-aa.zst");
        assert_eq!(namesake(&known, "000000010000000000000003-cc.zst"), other);
        assert_eq!(namesake(&known, "000000010000000000000004-cc.zst"), None);
        assert_eq!(namesake(&known, "000000010000000000000002-cc.zst"), None);
        assert_eq!(namesake(&known, "000000010000000000000003.00000028.backup"), None);
    }

    #[test]
    fn the_newest_archive_is_the_clusters() {
        let ids = ["9.6-1", "15-2", "15-2/0000000100000000", "15-10", "x"].map(str::to_string);
        assert_eq!(newest_id(ids.iter()).as_deref(), Some("15-10"));
        assert_eq!(newest_id([].iter()), None);
    }
}
