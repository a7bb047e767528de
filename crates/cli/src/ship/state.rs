//! Holds what the threads of shipping share, and shows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::layout;
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::tail::{Coverage, Piece, parse_history};
use nrt_core::offsite::{Phase, Plan, Position, Status};

/// Positions that are remembered with their time. One a second, for an hour; of more, every
/// other one is forgotten.
const HEARD: usize = 4096;

/// Signs of life that are remembered: one that seemed to fail may have arrived.
const BEATS: usize = 16;

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What to do.
    pub(crate) plan: Plan,
    /// The repository's directory on this machine.
    pub(crate) repository: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// When the remote was last seen to be ours, by the clock that goes on while a machine sleeps.
    verified: Mutex<SystemTime>,
    /// The signs of life that this session has given, the last ones.
    beats: Mutex<VecDeque<DateTime<Utc>>>,
    /// The process is about to end.
    pub(crate) stop: AtomicBool,
    /// The session with the remote is over: another owner, a dead rclone, or `stop`.
    pub(crate) over: AtomicBool,
}

/// How long the tail of a new timeline waits for its history file.
const HISTORY: Duration = Duration::from_secs(60);

/// What they know.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// How far the WAL is on disk.
    pub(crate) position: Option<Position>,
    /// Where the timeline of `position` came from.
    history: (u32, Vec<(u32, Lsn)>),
    /// Positions with the time at which they were heard of, until the remote has them.
    heard: VecDeque<(Position, DateTime<Utc>)>,
    /// Where shipping begins while no backup is on the remote.
    begin: Option<Position>,
    /// What of the WAL is on the remote.
    pub(crate) coverage: Coverage,
    /// The timelines whose history files are on the remote.
    pub(crate) histories: BTreeSet<u32>,
    /// Since when the server writes this timeline.
    timeline_since: Option<Instant>,
    /// Segments that are archived in the local repository.
    pub(crate) archived_here: Coverage,
    /// Where the restore of each backup in the repository begins.
    starts: BTreeMap<String, Position>,
    /// Pieces that go when others hold what they hold.
    pub(crate) replaced: Vec<Piece>,
    /// Pieces that hold what the server has lost, and go at once.
    pub(crate) wrong: Vec<Piece>,
    /// How many passes over the local archive have begun, and how many of them have sent all that
    /// they found.
    pub(crate) passes: (u64, u64),
    /// Segments of which pieces of the tail are being sent, and how many.
    pub(crate) sending: BTreeMap<Segment, usize>,
    /// A pass is wanted at once.
    pub(crate) pass_wanted: bool,
    /// It must look at all of the archive, also where nothing has changed.
    pub(crate) look_at_all: bool,
    /// Objects that could not be deleted, and why, by what they are.
    pub(crate) undeleted: BTreeMap<&'static str, (u64, Option<Failure>)>,
    /// Why each part does not get on.
    pub(crate) failures: BTreeMap<&'static str, Failure>,
    /// What everybody is shown.
    pub(crate) status: Status,
    shown: Option<Status>,
    /// Counts changes.
    generation: u64,
}

impl State {
    /// How far a restore from the remote would come.
    pub(crate) fn shipped(&self, segment_size: u64) -> Option<Position> {
        let position = self.position?;
        let starts = self.status.backups.iter().rev().filter_map(|label| self.starts.get(label));
        starts
            .filter_map(|start| {
                let history = self.history.1.as_slice();
                self.coverage.shipped(*start, position.timeline, history, segment_size)
            })
            .next()
    }

    /// Where the next byte to ship is.
    pub(crate) fn next(&self, segment_size: u64) -> Option<Position> {
        let position = self.position?;
        self.shipped(segment_size).or_else(|| {
            let begin = self.begin?;
            let history = self.history.1.as_slice();
            self.coverage.shipped(begin, position.timeline, history, segment_size)
        })
    }

    /// Up to where WAL of a timeline is to be shipped.
    pub(crate) fn limit(&self, timeline: u32, segment_size: u64) -> Option<Lsn> {
        let position = self.position?;
        if position.timeline == timeline {
            return Some(position.flushed);
        }
        let (_, left_at) = self.history.1.iter().find(|(parent, _)| *parent == timeline)?;
        Some(Segment::of(timeline, *left_at, segment_size).start(segment_size))
    }

    /// Whether WAL of a timeline can be followed on the remote. The first one has no history.
    fn has_history(&self, timeline: u32) -> bool {
        timeline <= 1 || self.histories.contains(&timeline)
    }

    /// Whether a timeline's history file is still to come to the remote, without which nobody can
    /// follow its WAL there. The archiver brings it first of all; it is not waited for without end.
    pub(crate) fn lacks_history(&self, timeline: u32) -> bool {
        !self.has_history(timeline)
            && self.timeline_since.is_none_or(|since| since.elapsed() < HISTORY)
    }

    /// Whether the WAL was known to be at a position so long ago.
    pub(crate) fn heard_before(&self, position: Position, age: Duration) -> bool {
        let there = |heard: &Position| {
            heard.timeline > position.timeline
                || (heard.timeline == position.timeline && heard.flushed >= position.flushed)
        };
        let first = self.heard.iter().find(|(heard, _)| there(heard));
        // What is not remembered was heard long ago.
        first.is_none_or(|(_, at)| (Utc::now() - *at).to_std().is_ok_and(|it| it >= age))
    }

    /// Begins to send a piece of a segment's tail. `false` if the segment is archived on the remote:
    /// then its tail is of no use any more, and may be purged at this moment.
    ///
    /// [`State::begin_to_send`] and [`State::purgeable`] are called under one lock. A piece that
    /// begins first keeps its segment from being purged. A segment that is archived first keeps
    /// further pieces from beginning. So no upload loses its directory.
    pub(crate) fn begin_to_send(&mut self, segment: Segment) -> bool {
        let begins = !self.coverage.is_archived(segment);
        if begins {
            *self.sending.entry(segment).or_default() += 1;
        }
        begins
    }

    /// A piece of a segment's tail was sent, or could not be.
    pub(crate) fn end_sending(&mut self, segment: Segment) {
        if let Some(count) = self.sending.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                self.sending.remove(&segment);
            }
        }
    }

    /// The pieces of archived segments of which none is being sent.
    pub(crate) fn purgeable(&self) -> Vec<Piece> {
        let mut pieces = self.coverage.superseded();
        pieces.retain(|piece| !self.sending.contains_key(&piece.segment));
        pieces
    }

    /// Lets times that lie in the future begin now: the clock was set back since they were noted,
    /// and how long ago they were is not known.
    fn heed_clock(&mut self, now: DateTime<Utc>) {
        for (_, at) in &mut self.heard {
            *at = (*at).min(now);
        }
    }

    /// Takes in how far the WAL is on disk now.
    fn hear(&mut self, position: Position, plan: &Plan) {
        if self.history.0 != position.timeline {
            self.history = (position.timeline, history(plan, position.timeline));
            self.timeline_since = Some(Instant::now());
            // Until a backup leads to the new timeline, shipping begins where that does.
            let begin = self.history.1.last().map_or(position.flushed, |(_, left_at)| *left_at);
            self.begin = Some(first_of(position.timeline, begin, plan.segment_size));
        }
        if let Some(before) = self.position
            && before.timeline == position.timeline
            && position.flushed < before.flushed
        {
            eprintln!(
                "the server's WAL went back from {} to {}: what lies behind is shipped anew",
                before.flushed, position.flushed
            );
            let cut = self.coverage.cut(position.timeline, position.flushed);
            self.wrong.extend(cut);
            self.heard.clear();
        }
        self.position = Some(position);
        // The bytes may have been written right after the look before.
        let interval = TimeDelta::milliseconds(plan.interval.into());
        let written = Utc::now() - interval;
        if self.heard.len() >= HEARD {
            let mut keep = false;
            self.heard.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.heard.push_back((position, written));
    }

    /// Brings the status up to date.
    fn refresh(&mut self, segment_size: u64) {
        // Nobody can follow WAL without its history.
        let can_follow = |it: &Position| self.has_history(it.timeline);
        let shipped = match self.shipped(segment_size) {
            Some(reached) if !can_follow(&reached) => self.status.shipped.filter(can_follow),
            reached => reached,
        };
        if let Some(shipped) = shipped {
            let there = |heard: &Position| {
                heard.timeline < shipped.timeline
                    || (heard.timeline == shipped.timeline && heard.flushed <= shipped.flushed)
            };
            while self.heard.front().is_some_and(|(heard, _)| there(heard)) {
                self.heard.pop_front();
            }
        }
        self.heed_clock(Utc::now());
        self.status.shipped = shipped;
        self.status.behind_since = shipped.and_then(|_| self.heard.front()).map(|(_, at)| *at);
        self.status.mirror_failure = ["repository", "archive", "mirror"]
            .iter()
            .find_map(|part| self.failures.get(part))
            .cloned();
        self.status.deletions_pending = self.undeleted.values().map(|(count, _)| count).sum();
        self.status.deletion_failure =
            self.undeleted.values().find_map(|(_, failure)| failure.clone());
        let failing = ["session", "owner", "tail", "archive"]
            .iter()
            .find_map(|part| self.failures.get(part))
            .cloned();
        match (self.status.phase, failing) {
            (Phase::Shipping | Phase::Failing, Some(failure)) => {
                self.status.phase = Phase::Failing;
                self.status.failure = Some(failure);
            }
            (Phase::Failing, None) if self.status.failure.is_some() => {
                self.status.phase = Phase::Shipping;
                self.status.failure = None;
            }
            _ => {}
        }
        match self.status.phase {
            Phase::Failing => {
                self.status.failing_since.get_or_insert_with(Utc::now);
            }
            _ => self.status.failing_since = None,
        }
    }
}

/// The first byte of the segment that holds a position.
fn first_of(timeline: u32, at: Lsn, segment_size: u64) -> Position {
    let flushed = Segment::of(timeline, at, segment_size).start(segment_size);
    Position { timeline, flushed }
}

/// What the history file of a timeline says. The first timeline has none.
fn history(plan: &Plan, timeline: u32) -> Vec<(u32, Lsn)> {
    if timeline <= 1 {
        return Vec::new();
    }
    let name = format!("{timeline:08X}.history");
    let path = Path::new(&plan.data_directory).join("pg_wal").join(name);
    match fs::read_to_string(&path) {
        Ok(text) => parse_history(&text),
        Err(error) => {
            eprintln!("could not read \"{}\": {error}", path.display());
            Vec::new()
        }
    }
}

impl Shared {
    /// Nothing is known yet.
    pub(crate) fn new(plan: Plan, repository: PathBuf) -> Shared {
        Shared {
            plan,
            repository,
            state: Mutex::default(),
            changed: Condvar::new(),
            verified: Mutex::new(SystemTime::UNIX_EPOCH),
            beats: Mutex::default(),
            stop: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Locks what is known.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and wakes whoever waits for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.refresh(self.plan.segment_size);
        state.generation += 1;
        drop(state);
        self.changed.notify_all();
        result
    }

    /// The remote was just seen to be ours.
    pub(crate) fn verified(&self) {
        *self.verified.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
    }

    /// Whether the remote was seen to be ours within so much time.
    pub(crate) fn verified_within(&self, time: Duration) -> bool {
        let verified = *self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was put back tells nothing.
        verified.elapsed().is_ok_and(|age| age < time)
    }

    /// Remembers a sign of life that is about to be given.
    pub(crate) fn beats(&self, at: DateTime<Utc>) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        if beats.len() == BEATS {
            beats.pop_front();
        }
        beats.push_back(at);
    }

    /// Whether a sign of life was given by this session.
    pub(crate) fn has_beaten(&self, at: DateTime<Utc>) -> bool {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).contains(&at)
    }

    /// Takes in a position.
    pub(crate) fn hear(&self, position: Position) {
        self.change(|state| state.hear(position, &self.plan));
    }

    /// Takes in what the last look of the worker found in the repository.
    pub(crate) fn read_inventory(&self) -> Option<Inventory> {
        let text = fs::read(Path::new(&self.plan.state).join(layout::INVENTORY)).ok()?;
        let inventory: Inventory = serde_json::from_slice(&text).ok()?;
        let starts = inventory.backups_of(self.plan.system_id).filter_map(|backup| {
            let start = Position { timeline: backup.timeline?, flushed: backup.start_lsn? };
            Some((backup.label.clone(), start))
        });
        let starts: BTreeMap<String, Position> = starts.collect();
        self.change(|state| state.starts = starts);
        Some(inventory)
    }

    /// A part gets on, or does not.
    pub(crate) fn report(&self, part: &'static str, failure: Option<Failure>) {
        let known = self.lock().failures.get(part).cloned();
        if known != failure {
            match &failure {
                Some(failure) => eprintln!("{part}: {}", failure.message),
                None => eprintln!("{part}: in order again"),
            }
            self.change(|state| match failure {
                Some(failure) => drop(state.failures.insert(part, failure)),
                None => drop(state.failures.remove(part)),
            });
        }
    }

    /// How often something has changed. To be asked before looking at it, and passed to `wait`.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Waits until something has changed since `seen`, the session is over, or so much time has
    /// passed.
    pub(crate) fn wait(&self, seen: u64, longest: Duration) {
        let state = self.lock();
        if !self.is_over() && state.generation == seen {
            drop(self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Waits for a time, or until the session is over.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.wait(self.generation(), left);
        }
    }

    /// Whether the threads have to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed)
    }

    /// Whether the server is about to end and the remote takes what is left.
    pub(crate) fn is_ending(&self) -> bool {
        self.stop.load(Ordering::Relaxed) && self.lock().status.phase == Phase::Shipping
    }

    /// Ends the session.
    pub(crate) fn end_session(&self) {
        self.raise(&self.over);
    }

    /// Ends everything.
    pub(crate) fn stop(&self) {
        self.raise(&self.stop);
    }

    fn raise(&self, flag: &AtomicBool) {
        // Locked, or who has just looked at the flag and does not wait yet would not be woken.
        let state = self.lock();
        flag.store(true, Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    /// Shows the status, if it is another one than before. Waits first until there is one.
    pub(crate) fn show(&self, longest: Duration) {
        let mut state = self.lock();
        if state.shown.as_ref() == Some(&state.status) {
            let waited = self.changed.wait_timeout(state, longest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.shown.as_ref() == Some(&state.status) {
            return;
        }
        let status = state.status.clone();
        state.shown = Some(status.clone());
        drop(state);
        let path = Path::new(&self.plan.state).join(layout::SHIP);
        let written = serde_json::to_vec(&status)
            .map_err(std::io::Error::from)
            .and_then(|text| nrt_process::files::replace(&path, &text));
        if let Err(error) = written {
            eprintln!("could not write \"{}\": {error}", path.display());
            self.lock().shown = None;
            // The disk is full: somebody has to make room first.
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn at(timeline: u32, number: u64) -> Position {
        Position { timeline, flushed: Lsn(number * SIZE) }
    }

    /// A server that has left timeline 1 at segment 5 for timeline 2. All of its WAL is there.
    fn promoted() -> State {
        let mut state = State {
            position: Some(at(2, 7)),
            history: (2, vec![(1, Lsn(5 * SIZE))]),
            starts: BTreeMap::from([("backup".to_string(), at(1, 3))]),
            ..State::default()
        };
        state.status.backups = vec!["backup".to_string()];
        for (timeline, number) in [(1, 3), (1, 4), (2, 5), (2, 6)] {
            state.coverage.archive(Segment { timeline, number });
        }
        state.heard.push_back((at(2, 7), Utc::now()));
        state
    }

    #[test]
    fn a_tail_is_not_purged_while_a_piece_of_it_is_sent() {
        let mut state = State::default();
        let segment = Segment { timeline: 1, number: 3 };
        let piece = Piece { segment, from: Lsn(3 * SIZE), to: Lsn(3 * SIZE + 100) };
        state.coverage.add(piece, 0);
        assert!(state.begin_to_send(segment) && state.begin_to_send(segment));
        state.coverage.archive(segment);
        assert_eq!(state.purgeable(), []);
        state.end_sending(segment);
        assert_eq!(state.purgeable(), [], "the other piece is still on its way");
        state.end_sending(segment);
        assert_eq!(state.purgeable(), [piece]);
        // None begins that the purge could meet.
        assert!(!state.begin_to_send(segment));
        assert!(state.begin_to_send(Segment { number: 4, ..segment }));
    }

    #[test]
    fn a_clock_that_was_set_back_hides_no_lag() {
        let mut state = promoted();
        state.histories.insert(2);
        let ahead = Utc::now() + TimeDelta::days(1);
        state.heard = VecDeque::from([(at(2, 8), ahead), (at(2, 9), ahead)]);
        state.refresh(SIZE);
        assert!(state.status.behind_since.is_some_and(|since| since <= Utc::now()));
        assert!(state.heard_before(at(2, 9), Duration::ZERO));
    }

    #[test]
    fn what_nobody_can_follow_is_not_called_shipped() {
        let mut state = promoted();
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, None);
        // What was reached before the promotion stays so, and it is behind.
        state.status.shipped = Some(at(1, 5));
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, Some(at(1, 5)));
        assert!(state.status.behind_since.is_some());
        state.histories.insert(2);
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, Some(at(2, 7)));
        assert_eq!(state.status.behind_since, None);
    }
}
