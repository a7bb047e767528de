//! Holds what the threads of shipping share, and shows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::layout;
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::tail::{Coverage, Piece, history_name, parse_history};
use nrt_core::offsite::{Phase, Plan, Position, Report, Status, Unrestorable};
use nrt_core::pgbackrest::info::{Backup, backups_in};
use nrt_core::restore::Refusal;
use nrt_core::restore::catalog::Catalog;
use nrt_core::restore::plan;

use super::promises::Promises;

/// Positions that are remembered with their time. One a second, for an hour; of more, every
/// other one is forgotten.
const HEARD: usize = 4096;

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
    /// What was promised to remotes.
    pub(crate) promises: Promises,
    /// This process knows what the remote holds.
    pub(crate) has_looked: AtomicBool,
    /// The process is about to end.
    pub(crate) stop: AtomicBool,
    /// The session with the remote is over: another owner, a dead rclone, or `stop`.
    pub(crate) over: AtomicBool,
}

/// How long nothing may be reported, beyond the interval of the reports.
const SILENCE: Duration = Duration::from_secs(3);

/// How long the tail of a new timeline waits for its history file.
const HISTORY: Duration = Duration::from_secs(60);

/// What they know.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// How far the WAL is on disk.
    pub(crate) position: Option<Position>,
    /// Where the timeline of `position` came from.
    history: (u32, Vec<(u32, Lsn)>),
    /// Reported positions that the remote does not have yet. Each with the time of the report before
    /// it: the WAL between the two was written after that.
    heard: VecDeque<(Position, DateTime<Utc>)>,
    /// When `position` was read, as the last report of it says: of what was committed since then
    /// nothing is known.
    reported_at: Option<DateTime<Utc>>,
    /// When the last report came.
    heard_at: Option<Instant>,
    /// The machine's uptime at the last report, in microseconds.
    uptime: Option<u64>,
    /// When `position` changed last.
    moved_at: Option<Instant>,
    /// A position that was reported too soon after that to be shipped, and when it was read.
    next_position: Option<(Position, DateTime<Utc>)>,
    /// Whether the remote was listed, so that `coverage` and `status.backups` are known.
    pub(crate) is_listed: bool,
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
    /// The backups of the local repository, by label.
    backups_here: BTreeMap<String, Backup>,
    /// The backups that `backup.info` on the remote lists, as long as that is not our own.
    backups_there: BTreeMap<String, Backup>,
    /// The remote as a restore finds it, but for `coverage`; and the labels of which it was made.
    catalog: Catalog,
    catalog_of: Vec<String>,
    /// Where shipping begins while the remote is not listed yet.
    first: Option<Position>,
    /// The pieces that were sent since the session began, which its listing may not show.
    sent: Vec<(Piece, u8)>,
    /// Pieces that go when others hold what they hold.
    pub(crate) replaced: Vec<Piece>,
    /// Pieces that hold what the server has lost, or that no backup needs, and go at once.
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
    /// Where the next byte to ship is.
    pub(crate) fn next(&self, segment_size: u64) -> Option<Position> {
        let position = self.position?;
        let begin = if self.is_listed { self.begin } else { self.first };
        let reach = |from: Position| {
            let history = self.history.1.as_slice();
            self.coverage.shipped(from, position.timeline, history, segment_size)
        };
        // No backup there leads here, or none is known yet.
        self.catalog
            .backups
            .iter()
            .rev()
            .filter_map(|it| Some(Position { timeline: it.timeline?, flushed: it.start_lsn? }))
            .find_map(reach)
            .or_else(|| reach(begin?))
    }

    /// When the position was read that is shipped now: of what was committed since then nothing is
    /// known.
    pub(crate) fn reported_at(&self) -> Option<DateTime<Utc>> {
        self.reported_at
    }

    /// A session begins: what it sends before the remote is listed counts as well.
    pub(crate) fn begin_session(&mut self) {
        self.sent.clear();
        // The threads of the session before have ended.
        self.sending.clear();
    }

    /// Takes in a piece that was sent, and takes out those that it replaces.
    pub(crate) fn add_sent(&mut self, piece: Piece, rank: u8, replaces: &[Piece]) {
        self.coverage.add(piece, rank);
        self.sent.retain(|(sent, _)| !replaces.contains(sent));
        self.sent.push((piece, rank));
        for old in replaces {
            self.coverage.remove(old);
        }
        self.replaced.extend(replaces.iter().copied());
    }

    /// Takes in what a listing of the remote shows. `doubtful` are pieces that may be cut off.
    pub(crate) fn take_in_listing(
        &mut self,
        coverage: Coverage,
        doubtful: Vec<Piece>,
        backups: Vec<String>,
        histories: Vec<u32>,
    ) {
        self.coverage = coverage;
        self.histories = histories.into_iter().collect();
        for (piece, rank) in self.sent.drain(..) {
            self.coverage.add(piece, rank);
        }
        self.replaced = doubtful;
        self.wrong.clear();
        self.status.backups = backups;
        self.is_listed = true;
    }

    /// Takes in that history files are on the remote.
    pub(crate) fn add_histories(&mut self, timelines: impl IntoIterator<Item = u32>) {
        self.histories.extend(timelines);
    }

    /// Where a restore without a target from the remote ends, as the plan of that restore says. `None`
    /// while the remote, or the server's position, is not known.
    fn restorable(&mut self, segment_size: u64) -> Option<Result<Position, Refusal>> {
        let position = self.position.filter(|_| self.is_listed)?;
        let labels = &self.status.backups;
        if labels.is_empty() {
            return None;
        }
        let catalog = &mut self.catalog;
        if self.catalog_of != *labels {
            self.catalog_of.clone_from(labels);
            let known = |label| {
                let here = self.backups_here.get(label);
                here.or_else(|| self.backups_there.get(label)).cloned()
            };
            catalog.backups = labels.iter().filter_map(known).collect();
        }
        catalog.source.clone_from(&self.status.remote);
        catalog.segment_size = segment_size;
        // A timeline's history names all of those before it.
        let history = &self.history.1;
        let parents = |timeline: u32| {
            let place = history.iter().position(|(parent, _)| *parent == timeline);
            match place {
                Some(place) => history[..place].to_vec(),
                None if timeline == self.history.0 => history.clone(),
                None => Vec::new(),
            }
        };
        catalog.histories = self.histories.iter().map(|it| (*it, parents(*it))).collect();
        std::mem::swap(&mut catalog.wal, &mut self.coverage);
        let latest = plan::latest(catalog);
        std::mem::swap(&mut catalog.wal, &mut self.coverage);
        Some(latest.and_then(|latest| {
            let Position { timeline, flushed } = latest.end;
            let left = history.iter().find(|(parent, _)| *parent == timeline);
            if timeline == position.timeline || left.is_some_and(|(_, at)| flushed <= *at) {
                return Ok(latest.end);
            }
            Err(Refusal::new(
                format!(
                    "a restore without a target follows timeline {timeline}, and this server \
                     writes timeline {}",
                    position.timeline
                ),
                format!(
                    "A restore follows this server with --target-timeline {}. Run nrt-backup \
                     takeover --set-aside to keep the other timeline under another name.",
                    position.timeline
                ),
            ))
        }))
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

    /// Lets the tail's pieces go that lie before the first segment that any backup needs, on whatever
    /// timeline: a restore reads nothing that lies before its backup.
    pub(crate) fn expire_tail(&mut self, first_needed: u64) {
        let expired: Vec<Piece> = self
            .coverage
            .pieces_before(first_needed)
            .filter(|piece| !self.sending.contains_key(&piece.segment))
            .collect();
        for piece in &expired {
            self.coverage.remove(piece);
        }
        self.wrong.extend(expired);
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

    /// Whether a report was read before one that came already: the worker and the reporter report
    /// side by side, and each can stand still between reading and writing. While a server runs its WAL
    /// does not go back.
    fn is_late(&self, report: &Report) -> bool {
        let latest = self.next_position.map(|(position, _)| position).or(self.position);
        let is_behind = latest.is_some_and(|latest| {
            let Position { timeline, flushed } = report.position;
            (timeline, flushed) < (latest.timeline, latest.flushed)
        });
        match (report.uptime, self.uptime) {
            (Some(uptime), Some(before)) => uptime < before || is_behind,
            // An earlier version of the worker.
            _ => is_behind && report.at.zip(self.reported_at).is_some_and(|(at, it)| at < it),
        }
    }

    /// Takes in a report of how far the WAL is on disk. Answers whether that changes anything.
    fn hear(&mut self, report: Report, plan: &Plan) -> bool {
        if self.is_late(&report) {
            return false;
        }
        let Report { position, at, uptime } = report;
        let at = at.unwrap_or_else(Utc::now);
        self.uptime = uptime;
        self.heard_at = Some(Instant::now());
        let is_known = self.position == Some(position);
        if is_known && self.status.silent_since.is_none() {
            self.reported_at = Some(at);
            return false;
        }
        // The worker's reports come by its own clock: one that comes a little early is in time. One
        // of an earlier version comes every interval.
        let interval = Duration::from_millis(plan.interval.into()).mul_f32(0.75);
        let is_early = uptime.is_some() && self.moved_at.is_some_and(|it| it.elapsed() < interval);
        let goes_on = self.position.is_some_and(|known| known.timeline == position.timeline);
        if is_early && goes_on && !is_known && self.status.silent_since.is_none() {
            // `reported_at` stays: not all that was on disk at the time of this report is shipped now.
            self.next_position = Some((position, at));
            return false;
        }
        self.take_position(position, at, plan);
        true
    }

    /// Takes in the position that was reported too soon, if there is one. Answers whether there is.
    fn take_next_position(&mut self, plan: &Plan) -> bool {
        let next = self.next_position.take();
        next.inspect(|(position, at)| self.take_position(*position, *at, plan)).is_some()
    }

    /// Takes in how far the WAL is on disk, and when that was read.
    fn take_position(&mut self, position: Position, at: DateTime<Utc>, plan: &Plan) {
        let before = self.reported_at.replace(at);
        self.next_position = None;
        if self.position != Some(position) {
            self.moved_at = Some(Instant::now());
        }
        if self.history.0 != position.timeline {
            self.history = (position.timeline, history(plan, position.timeline));
            self.timeline_since = Some(Instant::now());
            // Until a backup leads to the new timeline, shipping begins where that does.
            let begin = self.history.1.last().map_or(position.flushed, |(_, left_at)| *left_at);
            self.begin = Some(first_of(position.timeline, begin, plan.segment_size));
        }
        self.first.get_or_insert(first_of(position.timeline, position.flushed, plan.segment_size));
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
        self.status.silent_since = None;
        // The bytes may have been written right after the report before. Where the clock was set
        // back since then, or there was none, it is not known.
        let written = before.filter(|before| *before <= at).unwrap_or(at);
        if self.heard.len() >= HEARD {
            let mut keep = false;
            self.heard.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.heard.push_back((position, written));
    }

    /// Whether nothing was reported for so long that nothing is known of what was committed since.
    fn is_silent(&self, plan: &Plan) -> bool {
        let interval = match plan.report_interval {
            0 => plan.interval,
            interval => interval,
        };
        let limit = SILENCE + Duration::from_millis(interval.into());
        self.heard_at.is_some_and(|came| came.elapsed() > limit)
    }

    /// Brings the status up to date.
    fn refresh(&mut self, segment_size: u64) {
        let claim = self.restorable(segment_size);
        let shipped = claim.as_ref().and_then(|it| it.as_ref().ok()).copied();
        self.status.unrestorable = claim.and_then(Result::err).map(|refusal| Unrestorable {
            since: self.status.unrestorable.as_ref().map_or_else(Utc::now, |it| it.since),
            message: refusal.message,
            hint: refusal.hint,
        });
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
        let is_claimed = shipped.is_some() || self.status.unrestorable.is_some();
        let is_there = |at: Position| {
            shipped.is_some_and(|shipped| {
                (at.timeline, at.flushed) <= (shipped.timeline, shipped.flushed)
            })
        };
        // WAL was there, and is missing now: it is not known since when.
        if let Some(position) = self.position.filter(|it| is_claimed && !is_there(*it))
            && self.heard.is_empty()
        {
            self.heard.push_back((position, Utc::now()));
        }
        let unshipped = self.heard.front().filter(|_| is_claimed).map(|(_, at)| *at);
        let silent = self.status.silent_since.filter(|_| is_claimed);
        self.status.behind_since = unshipped.into_iter().chain(silent).min();
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
    let path = Path::new(&plan.data_directory).join("pg_wal").join(history_name(timeline));
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
            promises: Promises::read(Path::new(&plan.state)),
            has_looked: AtomicBool::new(false),
            plan,
            repository,
            state: Mutex::default(),
            changed: Condvar::new(),
            verified: Mutex::new(SystemTime::UNIX_EPOCH),
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

    /// Takes in a report of the worker or the reporter. One that says what is known wakes nobody.
    pub(crate) fn hear(&self, report: Report) {
        let mut state = self.lock();
        if !state.hear(report, &self.plan) {
            return;
        }
        drop(state);
        self.change(|_| ());
    }

    /// Notices that nothing is reported any more.
    pub(crate) fn listen(&self) {
        let mut state = self.lock();
        if state.status.silent_since.is_some() || !state.is_silent(&self.plan) {
            return;
        }
        state.take_next_position(&self.plan);
        state.status.silent_since = state.reported_at();
        drop(state);
        eprintln!("neither the worker nor the reporter reports any more how far the WAL is");
        self.change(|_| ());
    }

    /// Takes in the backups that `backup.info` on the remote lists.
    pub(crate) fn take_in_backups_there(&self, info: Option<&[u8]>) {
        let text = String::from_utf8_lossy(info.unwrap_or_default());
        let listed = backups_in(&text, self.plan.system_id);
        let by_label = listed.into_iter().map(|it| (it.label.clone(), it)).collect();
        self.change(|state| {
            state.backups_there = by_label;
            state.catalog_of.clear();
        });
    }

    /// Takes in what the last look of the worker found in the repository.
    pub(crate) fn read_inventory(&self) -> Option<Inventory> {
        let text = fs::read(Path::new(&self.plan.state).join(layout::INVENTORY)).ok()?;
        let inventory: Inventory = serde_json::from_slice(&text).ok()?;
        let here = inventory.backups_of(self.plan.system_id);
        let here = here.map(|it| (it.label.clone(), it.clone())).collect();
        self.change(|state| {
            state.backups_here = here;
            // The catalog is made anew.
            state.catalog_of.clear();
        });
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

    /// Whether the server is about to end and the remote takes what is left. To be asked once the
    /// tail is shipped, which begins before the remote is listed: the phase is `Starting` until then.
    pub(crate) fn is_ending(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            && matches!(self.lock().status.phase, Phase::Starting | Phase::Shipping)
    }

    /// Ends the session.
    pub(crate) fn end_session(&self) {
        self.raise(&self.over);
    }

    /// Ends everything. What was reported last is shipped before.
    pub(crate) fn stop(&self) {
        self.change(|state| state.take_next_position(&self.plan));
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
    use chrono::TimeDelta;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn at(timeline: u32, number: u64) -> Position {
        Position { timeline, flushed: Lsn(number * SIZE) }
    }

    /// A backup of timeline 1 within a segment.
    fn backup(label: &str, number: u64) -> Backup {
        let segment = Segment { timeline: 1, number };
        let name = segment.name(SIZE);
        serde_json::from_value(serde_json::json!({
            "label": label, "type": "full", "prior": null, "references": [], "error": false,
            "start_time": "2026-11-22T14:30:00Z", "stop_time": "2026-11-22T14:30:05Z",
            "start_lsn": segment.start(SIZE), "stop_lsn": Lsn(number * SIZE + 256),
            "archive_start": name, "archive_stop": name, "timeline": 1, "database_id": 1,
            "repo": 1, "size": null, "delta": null, "repo_size": null, "repo_delta": null,
            "pgbackrest": "2.45", "annotations": {}
        }))
        .expect("a backup")
    }

    /// A server that has left timeline 1 at segment 5 for timeline 2. All of its WAL is there.
    fn promoted() -> State {
        let mut state = State {
            position: Some(at(2, 7)),
            history: (2, vec![(1, Lsn(5 * SIZE))]),
            is_listed: true,
            backups_here: BTreeMap::from([("backup".to_string(), backup("backup", 3))]),
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
    fn a_tail_before_every_backup_goes_on_every_timeline() {
        let mut state = promoted();
        let piece = |timeline, number| {
            let segment = Segment { timeline, number };
            Piece { segment, from: segment.start(SIZE), to: Lsn(number * SIZE + 100) }
        };
        let all = [(1, 2), (1, 3), (1, 5), (2, 1), (2, 7), (3, 2)].map(|(t, n)| piece(t, n));
        for piece in all {
            state.coverage.add(piece, 0);
        }
        assert!(state.begin_to_send(all[5].segment));
        state.expire_tail(3);
        assert_eq!(state.wrong, [all[0], all[3]]);
        let left: Vec<Piece> = state.coverage.pieces().collect();
        assert_eq!(left, [all[1], all[2], all[4], all[5]]);
        state.end_sending(all[5].segment);
        state.expire_tail(3);
        assert_eq!(state.wrong, [all[0], all[3], all[5]]);
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
        let why = state.status.unrestorable.clone().expect("there is a backup");
        assert!(why.message.contains("00000002.history, is missing"), "{why:?}");
        assert!(state.status.behind_since.is_some());
        // The moment since when stays.
        state.refresh(SIZE);
        assert_eq!(state.status.unrestorable, Some(why));
        state.add_histories([2]);
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, Some(at(2, 7)));
        assert_eq!((state.status.behind_since, &state.status.unrestorable), (None, &None));
        // Another timeline, which this server does not write, is newer.
        state.coverage.archive(Segment { timeline: 3, number: 7 });
        state.add_histories([3]);
        state.refresh(SIZE);
        assert!(state.status.shipped.is_none() && state.status.unrestorable.is_some());
    }

    #[test]
    fn what_comes_before_the_end_of_the_newest_backup_is_no_claim() {
        let mut state = promoted();
        state.add_histories([2]);
        state.status.backups.push("newer".to_string());
        state.backups_here.insert("newer".to_string(), backup("newer", 4));
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, Some(at(2, 7)));
        state.coverage.forget_archived(Segment { timeline: 1, number: 4 });
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, Some(at(1, 4)), "the older one can be restored");
        state.coverage.forget_archived(Segment { timeline: 1, number: 3 });
        state.refresh(SIZE);
        assert_eq!(state.status.shipped, None);
        assert!(state.status.unrestorable.is_some() && state.status.behind_since.is_some());
        // Without a backup there is nothing to say.
        state.status.backups.clear();
        state.refresh(SIZE);
        assert_eq!((&state.status.unrestorable, state.status.behind_since), (&None, None));
    }

    #[test]
    fn what_is_sent_before_the_listing_counts_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let plan = crate::tests::plan(directory.path());
        let size = plan.segment_size;
        let position =
            |number, bytes| Position { timeline: 1, flushed: Lsn(number * size + bytes) };
        let report = |position| Report { position, at: Some(Utc::now()), uptime: None };
        let piece = |number, from, to| {
            let segment = Segment { timeline: 1, number };
            let start = segment.start(size).0;
            Piece { segment, from: Lsn(start + from), to: Lsn(start + to) }
        };
        let mut state = State::default();
        state.begin_session();
        state.hear(report(position(9, 500)), &plan);
        state.refresh(size);
        // A new process begins with the segment that is being written, and claims nothing.
        assert_eq!(state.next(size), Some(position(9, 0)));
        state.add_sent(piece(9, 0, 300), 0, &[]);
        state.add_sent(piece(9, 300, 500), 0, &[]);
        state.add_sent(piece(9, 0, 500), 1, &[piece(9, 0, 300), piece(9, 300, 500)]);
        state.refresh(size);
        assert_eq!(state.next(size), Some(position(9, 500)));
        assert_eq!((state.status.shipped, &state.status.unrestorable), (None, &None));
        // The listing has none of them, and a gap before.
        let mut backup = backup("backup", 3);
        (backup.start_lsn, backup.stop_lsn) = (Some(Lsn(3 * size)), Some(Lsn(3 * size + 256)));
        state.backups_here = BTreeMap::from([("backup".to_string(), backup)]);
        let mut listed = Coverage::default();
        listed.archive_run(1, 3, 8);
        let labels = vec!["backup".to_string()];
        state.take_in_listing(listed, vec![piece(9, 0, 200)], labels, Vec::new());
        state.refresh(size);
        assert_eq!(state.status.shipped, Some(position(8, 0)));
        assert_eq!(state.next(size), Some(position(8, 0)));
        state.coverage.archive(Segment { timeline: 1, number: 8 });
        state.refresh(size);
        assert_eq!(state.status.shipped, Some(position(9, 500)));
        assert_eq!(state.replaced, [piece(9, 0, 200)]);
    }

    #[test]
    fn silence_is_not_taken_for_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut plan = crate::tests::plan(directory.path());
        plan.interval = 0;
        let mut state = State { is_listed: true, ..State::default() };
        state.status.backups = vec!["backup".to_string()];
        state.backups_here.insert("backup".to_string(), backup("backup", 3));
        state.coverage.archive(Segment { timeline: 1, number: 3 });
        let start = Utc::now() - TimeDelta::seconds(60);
        let report = |number, second| Report {
            position: at(1, number),
            at: Some(start + TimeDelta::seconds(second)),
            uptime: None,
        };
        assert!(state.hear(report(4, 0), &plan));
        state.refresh(SIZE);
        assert_eq!((state.status.shipped, state.status.behind_since), (Some(at(1, 4)), None));
        // The same again changes nothing but the time.
        assert!(!state.hear(report(4, 1), &plan));
        assert_eq!(state.reported_at(), report(4, 1).at);
        // Nothing was heard for a while: what was committed since is not known.
        assert!(!state.is_silent(&plan));
        state.status.silent_since = state.reported_at();
        state.refresh(SIZE);
        assert_eq!(state.status.behind_since, report(4, 1).at);
        // The next report ends that, also where nothing has changed.
        assert!(state.hear(report(4, 30), &plan));
        state.refresh(SIZE);
        assert_eq!((state.status.silent_since, state.status.behind_since), (None, None));
        // What is new now may be as old as the report before.
        assert!(state.hear(report(5, 40), &plan));
        state.refresh(SIZE);
        assert_eq!(state.status.behind_since, report(4, 30).at);
        // A report that was read earlier and comes later takes nothing back.
        assert!(!state.hear(report(4, 39), &plan));
        assert_eq!(state.position, Some(at(1, 5)));
    }

    #[test]
    fn two_that_report_side_by_side_are_ordered_by_the_uptime() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut plan = crate::tests::plan(directory.path());
        plan.interval = 0;
        let start = Utc::now() - TimeDelta::hours(1);
        let mut state = State::default();
        let report = |number, uptime: u64, second| Report {
            position: at(1, number),
            at: Some(start + TimeDelta::seconds(second)),
            uptime: Some(uptime),
        };
        assert!(state.hear(report(5, 100, 100), &plan));
        // One of the two stood still after it had read the clocks, or the position as well.
        for late in [report(6, 70, 70), report(5, 70, 70), report(4, 70, 70), report(4, 101, 70)] {
            assert!(!state.hear(late, &plan));
            let known = (state.position, state.reported_at(), state.wrong.len());
            assert_eq!(known, (Some(at(1, 5)), report(5, 100, 100).at, 0));
        }
        // The clock was set back: the time of the report holds, and promises nothing of the future.
        assert!(!state.hear(report(5, 102, 30), &plan));
        assert_eq!(state.reported_at(), report(5, 102, 30).at);
        assert!(state.hear(report(6, 103, 31), &plan));
        assert_eq!(state.position, Some(at(1, 6)));
    }

    #[test]
    fn positions_are_shipped_every_interval_and_heard_of_more_often() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut plan = crate::tests::plan(directory.path());
        plan.interval = 3_600_000;
        let start = Utc::now() - TimeDelta::hours(1);
        let mut state = State::default();
        let report = |number, second: u64| Report {
            position: at(1, number),
            at: Some(start + TimeDelta::seconds(second.cast_signed())),
            uptime: Some(second * 1_000_000),
        };
        assert!(state.hear(report(4, 0), &plan));
        assert!(!state.hear(report(4, 1), &plan));
        for second in 2..5 {
            assert!(!state.hear(report(second + 3, second), &plan));
            // What was written since then is not shipped yet, so that time is not complete.
            assert_eq!((state.position, state.reported_at()), (Some(at(1, 4)), report(4, 1).at));
        }
        // At the end, and where nothing is reported any more, the last position is shipped at once.
        assert!(state.take_next_position(&plan));
        assert_eq!((state.position, state.reported_at()), (Some(at(1, 7)), report(7, 4).at));
        // The first new byte may be as old as the last report without it.
        assert_eq!(state.heard.back(), Some(&(at(1, 7), start + TimeDelta::seconds(1))));
        assert!(!state.take_next_position(&plan));
        // Another timeline does not wait.
        let promoted = Report { position: at(2, 7), ..report(7, 5) };
        assert!(state.hear(promoted, &plan));
        assert_eq!(state.position, Some(at(2, 7)));
    }
}
