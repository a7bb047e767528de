//! Keeps two instances from writing to one remote.
//!
//! Every heartbeat is promised here, on disk, before it is given: see `nrt_core::offsite::owner` for
//! the rules that rest on it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use nrt_core::inventory::Failure;
use nrt_core::layout::{self, Restored};
use nrt_core::offsite::owner::{
    COPY, FILE, Found, Knowledge, MARGIN, MISSED, Owner, Promised, Verdict, judge,
};
use nrt_core::offsite::tail::DIRECTORY;
use nrt_core::offsite::{Phase, Position, RESTORE_POINTS};
use nrt_process::files::write_atomically;
use nrt_process::identity;

use super::lineage;
use super::promises::Heartbeat;
use super::refuse_another_cluster;
use super::state::Shared;
use nrt_remote::{Remote, failure};

/// Which instance of the cluster this is. The worker has seen to it that the state directory is
/// this instance's.
pub(crate) fn instance(state: &Path) -> Result<String, Failure> {
    let another = || {
        let message = "the state directory was copied from another instance while this one ran";
        io::Error::other(message)
    };
    identity::settle(state, || Err(another())).map(|it| it.id).map_err(|error| Failure {
        message: format!("the state directory cannot be used: {error}"),
        hint:
            "See that the server's user may write to it, and that its disk has room. After files \
               were put in its place, restart the server."
                .to_string(),
    })
}

/// What a restore says of this data directory, if it made it as a copy beside its original.
fn restored_copy(state: &Path) -> Option<Restored> {
    let text = fs::read(state.join(layout::RESTORED)).ok()?;
    let restored: Restored = serde_json::from_slice(&text).ok()?;
    restored.is_copy.then_some(restored)
}

/// Takes the mark of a copy away from one that is told to take its original's place: it goes on
/// like any other server that was restored.
fn be_original(state: &Path, copy: Restored) -> Result<(), Failure> {
    let original = Restored { is_copy: false, ..copy };
    let text = serde_json::to_vec(&original).unwrap_or_default();
    let path = state.join(layout::RESTORED);
    write_atomically(&path, &text).map_err(|error| cannot_write(&path, &error))
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure {
        message: format!("\"{}\" cannot be read: {error}", path.display()),
        hint: "See that the server's user may read it.".to_string(),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure {
        message: format!("\"{}\" cannot be written: {error}", path.display()),
        hint: "See that the server's user may write to it, and that its disk has room.".to_string(),
    }
}

/// Waits until the remote is ours. `None` if the session ends before.
pub(crate) fn own(
    shared: &Arc<Shared>,
    remote: &Arc<Remote>,
    me: &str,
) -> Result<Option<Hold>, Failure> {
    let heartbeat = beat(shared);
    let state = Path::new(&shared.plan.state);
    let run = identity::run_of_machine(state).map_err(|error| cannot_read(state, &error))?;
    let mut me = me.to_string();
    let mut is_clone = false;
    let mut seen: Option<(Owner, Instant)> = None;
    while !shared.is_over() {
        let (found, is_whole) = read(shared, remote, &me)?;
        let unchanged_for = match (&found, &seen) {
            (Some(found), Some((known, since))) if found == known => since.elapsed(),
            _ => Duration::ZERO,
        };
        if unchanged_for.is_zero() {
            seen = found.clone().map(|owner| (owner, Instant::now()));
        }
        let request = state.join(layout::TAKEOVER);
        let asked = fs::read_to_string(&request).ok();
        let copy = restored_copy(state);
        let promised = shared.promises.of(&remote.root, &me);
        let known = Knowledge {
            system_id: shared.plan.system_id,
            me: &me,
            promised: promised.as_ref(),
            run: &run,
            timeline: shared.lock().position.map(|position| position.timeline),
            unchanged_for,
            heartbeat,
            taking_over: asked.is_some() && (copy.is_none() || shared.plan.archives),
            is_copy: copy.is_some(),
        };
        let verdict = judge(found.as_ref(), &known);
        let mut pause = heartbeat / 3;
        match verdict {
            Verdict::Ours | Verdict::MayClaim => {
                // Whoever owns the remote says so before he writes anything else.
                refuse_another_cluster(&shared.plan, remote)?;
                let claim = Claimed {
                    is_ours: verdict == Verdict::Ours,
                    is_sure: promised.as_ref().is_some_and(|it| it.run == run),
                    is_whole,
                    found,
                    promised,
                };
                let asked = asked.as_deref();
                let Some(hold) = take(shared, remote, (&me, &run), claim, asked)? else {
                    continue;
                };
                // Not before: one whose takeover failed is a copy still.
                if let Some(copy) = copy {
                    be_original(state, copy)?;
                }
                // Whoever waits for the request to be gone must not find that we are fenced.
                shared.change(|state| {
                    state.status.phase = Phase::Starting;
                    state.status.failure = None;
                });
                shared.show(Duration::ZERO);
                let _ = fs::remove_file(&request);
                return Ok(Some(hold));
            }
            Verdict::Watch(left) => {
                if unchanged_for.is_zero() {
                    eprintln!(
                        "owner: the machine has been started since the last heartbeat: waiting {} s \
                         for one of a copy of it",
                        left.as_secs()
                    );
                }
                pause = pause.min(left);
            }
            Verdict::Clone(owner) => {
                eprintln!(
                    "owner: a heartbeat in \"{FILE}\", by host \"{}\", was not given by this \
                     server: it takes another name",
                    owner.host
                );
                me = renew(state)?;
                is_clone = true;
                continue;
            }
            Verdict::OtherInstance(owner) if is_clone => fence(shared, clone(&owner, heartbeat)),
            Verdict::OtherInstance(owner) => fence(shared, other_instance(&owner)),
            Verdict::LaterTimeline(owner) => fence(shared, later_timeline(&owner)),
            Verdict::OtherCluster(owner) => {
                // Nothing that an operator asks can make this right.
                let _ = fs::remove_file(&request);
                fence(shared, other_cluster(&owner));
            }
            Verdict::Copy(owner) => {
                fence(shared, only_a_copy(copy.as_ref(), owner.as_ref(), shared.plan.archives));
                if asked.is_some() {
                    // Whoever asked finds the reason.
                    shared.show(Duration::ZERO);
                    let _ = fs::remove_file(&request);
                }
            }
        }
        let next = Instant::now() + pause;
        while Instant::now() < next && !shared.is_over() && !request.exists() {
            shared.sleep(LOOK.min(pause));
        }
    }
    Ok(None)
}

/// Gives this instance another name.
fn renew(state: &Path) -> Result<String, Failure> {
    identity::renew(state).map_err(|error| cannot_write(&state.join(identity::BOUND), &error))
}

/// What a claim rests on.
struct Claimed {
    /// Whose the remote was.
    found: Option<Owner>,
    /// Whether `owner.json` said so itself, and not its copy.
    is_whole: bool,
    /// It was this instance's.
    is_ours: bool,
    /// No copy of this machine can have read the same.
    is_sure: bool,
    /// What this instance has promised.
    promised: Option<Promised>,
}

/// Makes this instance the owner of what was found, which may be its own already, and leaves
/// nothing of another one's in its way. `None` if somebody else has the remote then, or the session
/// is over.
fn take(
    shared: &Arc<Shared>,
    remote: &Arc<Remote>,
    (me, run): (&str, &str),
    claim: Claimed,
    asked: Option<&str>,
) -> Result<Option<Hold>, Failure> {
    let heartbeat = beat(shared);
    let Claimed { found, is_whole, is_ours, is_sure, promised } = claim;
    let is_new = found.is_none() && is_empty(remote)?;
    let is_taken = match &found {
        Some(owner) => owner.unsettled || !is_ours,
        None => !is_new,
    };
    let unsettled = is_taken || is_ours && lineage::has_lost(shared, promised.as_ref());
    let (superseded, begun) = found.map_or((None, None), |owner| (owner.superseded, owner.aside));
    // Where that has begun, or is to begin.
    let aside = match (begun, asked) {
        (None, Some(request)) if wants_all_aside(request) => Some(begin(shared, request)?),
        (begun, _) => begun,
    };
    let mut superseded = unsettled.then(|| superseded.unwrap_or_else(place));

    let since = Instant::now();
    let says = Says { unsettled, superseded: superseded.clone(), aside: aside.clone() };
    // What was promised holds while nobody else has written there.
    let promised = promised.filter(|_| is_ours && !unsettled && aside.is_none());
    let hold = Hold::take(shared, remote, (me, run), says, promised, is_whole)?;
    // Somebody else may have claimed it, too: the last one to write has it. And the one that had it
    // may be alive, and sees this with its next heartbeat.
    if is_taken {
        shared.sleep(heartbeat + MARGIN);
    } else if is_new || !is_sure {
        shared.sleep(NEW + 2 * since.elapsed());
    }
    if shared.is_over() {
        return Ok(None);
    }
    if is_taken || is_new || !is_sure {
        let (now, _) = read(shared, remote, me)?;
        if !now.is_some_and(|owner| is_mine(shared, remote, me, &owner)) {
            return Ok(None);
        }
    }
    if superseded.is_none() && aside.is_none() && lineage::has_gone_back(shared, remote)? {
        superseded = Some(place());
        hold.say(Says { unsettled: true, superseded: superseded.clone(), aside: None })?;
    }
    if let Some(place) = &aside {
        let all = ["repository".to_string(), DIRECTORY.to_string()];
        set_aside(shared, remote, place, &all)?;
        set_restore_points_aside(remote, place)?;
    } else if let Some(place) = &superseded {
        lineage::separate(shared, remote, place)?;
    }
    if superseded.is_some() || aside.is_some() {
        hold.say(Says::default())?;
    }
    shared.verified();
    Ok(Some(hold))
}

/// Whether the remote names this instance, by a heartbeat that it gave.
fn is_mine(shared: &Shared, remote: &Remote, me: &str, owner: &Owner) -> bool {
    let promised = shared.promises.of(&remote.root, me);
    owner.instance == me && promised.is_some_and(|it| it.has_given(owner.heartbeat))
}

/// How often is looked whether something is due: a sign of life, or what an operator asks for.
const LOOK: Duration = Duration::from_secs(1);
/// How long somebody else who found nothing on the remote may take to claim it, beyond what a claim
/// takes.
const NEW: Duration = Duration::from_secs(1);
/// Heartbeats in which nothing has changed before the copy is written again. It must name one that
/// its owner remembers.
const COPIED: u32 = 8;

/// What stands in the request for a takeover that keeps the remote's backups under another name.
/// Once that has begun, a second line says which: whoever tries again goes on there.
pub const SET_ASIDE: &str = "set-aside";

fn wants_all_aside(request: &str) -> bool {
    request.lines().next().is_some_and(|line| line.trim() == SET_ASIDE)
}

/// The place to which the remote's backups are being moved, as the request says once that has
/// begun. From then on nobody else takes the request away.
pub fn place_of(request: &str) -> Option<&str> {
    request.lines().nth(1).filter(|_| wants_all_aside(request))
}

/// The place to which the remote's backups are moved, which the request names from now on.
fn begin(shared: &Shared, request: &str) -> Result<String, Failure> {
    if let Some(place) = place_of(request) {
        return Ok(place.to_string());
    }
    let place = place();
    let text = format!("{SET_ASIDE}\n{place}");
    let path = Path::new(&shared.plan.state).join(layout::TAKEOVER);
    write_atomically(&path, text.as_bytes()).map_err(|error| cannot_write(&path, &error))?;
    Ok(place)
}

/// A place on the remote that holds nothing yet.
fn place() -> String {
    format!("{}/{}", lineage::SUPERSEDED, Utc::now().format("%Y%m%d-%H%M%S"))
}

/// Moves the restore points, which name places in what is set aside.
fn set_restore_points_aside(remote: &Remote, place: &str) -> Result<(), Failure> {
    let problem = |refusal| failure("what the remote holds cannot be set aside", &refusal);
    if let Some(text) = remote.get(RESTORE_POINTS).map_err(problem)? {
        remote.put(&format!("{place}/{RESTORE_POINTS}"), &text).map_err(problem)?;
        remote.delete(RESTORE_POINTS).map_err(problem)?;
    }
    Ok(())
}

/// Moves directories of the remote to another place there. Ends early, with an error, when the
/// session is over: somebody else may own them then.
fn set_aside(
    shared: &Shared,
    remote: &Remote,
    place: &str,
    directories: &[String],
) -> Result<(), Failure> {
    for directory in directories {
        let there =
            remote.list(directory).map_err(|it| failure("the remote cannot be read", &it))?;
        if !there.is_empty() {
            remote
                .rename_directory(directory, &format!("{place}/{directory}"), &shared.over)
                .map_err(|it| failure("what the remote holds cannot be set aside", &it))?;
            eprintln!("owner: set \"{directory}\" aside as \"{place}/{directory}\"");
        }
    }
    Ok(())
}

/// A session's hold on the remote. Signs of life are given as long as this is there: also while the
/// other's tail is moved, while the remote is listed, and while what the session has begun ends, all
/// of which may take longer than a silent instance counts as alive.
#[derive(Debug)]
pub(crate) struct Hold {
    claim: Arc<Claim>,
    thread: Option<JoinHandle<()>>,
}

impl Hold {
    /// Makes this instance the owner. `file_is_whole` says whether `owner.json` itself was readable.
    fn take(
        shared: &Arc<Shared>,
        remote: &Arc<Remote>,
        (me, run): (&str, &str),
        says: Says,
        promised: Option<Promised>,
        file_is_whole: bool,
    ) -> Result<Hold, Failure> {
        let claim = Arc::new(Claim {
            shared: Arc::clone(shared),
            remote: Arc::clone(remote),
            me: me.to_string(),
            run: run.to_string(),
            promised,
            says: Mutex::new(says.clone()),
            files: Mutex::new(Files { is_whole: file_is_whole, copied: None }),
            is_over: AtomicBool::new(false),
        });
        claim.write(&says)?;
        let living = Arc::clone(&claim);
        let thread = thread::spawn(move || living.live());
        Ok(Hold { claim, thread: Some(thread) })
    }

    /// Says what is still to be done, if the remote is ours still.
    fn say(&self, now: Says) -> Result<(), Failure> {
        let claim = &self.claim;
        let mut says = claim.says.lock().unwrap_or_else(PoisonError::into_inner);
        still_ours(&claim.shared, &claim.remote)?;
        claim.files.lock().unwrap_or_else(PoisonError::into_inner).copied = None;
        claim.write(&now)?;
        *says = now;
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.claim.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && !self.claim.shared.stop.load(Ordering::Relaxed)
        {
            thread.thread().unpark();
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What `owner.json` says of what is still to be done: nothing, by default.
#[derive(Debug, Clone, Default)]
struct Says {
    unsettled: bool,
    superseded: Option<String>,
    aside: Option<String>,
}

/// What is known of the two files.
#[derive(Debug)]
struct Files {
    /// `owner.json` is not known to be cut off.
    is_whole: bool,
    /// What the copy says, and for how many heartbeats; none while it may be cut off, or is not to be
    /// trusted.
    copied: Option<(u32, Option<Position>, u32)>,
}

/// What gives the signs of life.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    remote: Arc<Remote>,
    me: String,
    /// This run of the machine.
    run: String,
    /// What the session before has promised, where that still holds.
    promised: Option<Promised>,
    /// Locked while it is written, so that a sign of life never says again what is over.
    says: Mutex<Says>,
    files: Mutex<Files>,
    is_over: AtomicBool,
}

impl Claim {
    /// Gives signs of life until the hold is let go, and ends the session when the remote is not
    /// ours any more.
    fn live(&self) {
        let shared = &self.shared;
        let mut next = Instant::now() + beat(shared);
        loop {
            thread::park_timeout(LOOK);
            if self.is_over.load(Ordering::Relaxed) || shared.stop.load(Ordering::Relaxed) {
                return;
            }
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + beat(shared);
            if !self.beat() {
                shared.end_session();
                return;
            }
        }
    }

    /// Gives a sign of life. `false` if there is nothing to be held any more.
    fn beat(&self) -> bool {
        let shared = &self.shared;
        let says = self.says.lock().unwrap_or_else(PoisonError::into_inner);
        match read(shared, &self.remote, &self.me) {
            Ok((Some(owner), is_whole)) if is_mine(shared, &self.remote, &self.me, &owner) => {
                self.files.lock().unwrap_or_else(PoisonError::into_inner).is_whole = is_whole;
                let written = self.write(&says);
                if written.is_ok() {
                    shared.verified();
                }
                shared.report("owner", written.err());
                true
            }
            Ok((Some(owner), _)) if owner.instance == self.me => {
                // The next session takes another name. The one whose heartbeats go on keeps the
                // remote.
                eprintln!("owner: a clone of this instance, on \"{}\", ships here", owner.host);
                false
            }
            Ok((Some(owner), _)) => {
                eprintln!("owner: \"{}\" has taken the remote", owner.host);
                false
            }
            Ok((None, _)) => {
                // Somebody has emptied the remote: find out what is left of it.
                eprintln!("owner: \"{FILE}\" is gone from the remote");
                false
            }
            Err(problem) => {
                shared.report("owner", Some(problem));
                self.remote.is_running()
            }
        }
    }

    /// Writes the file, and the copy where it says something else or is old. Each of them is written
    /// only while the other one is whole.
    fn write(&self, says: &Says) -> Result<(), Failure> {
        let owner = self.next(says)?;
        let text = serde_json::to_vec_pretty(&owner).unwrap_or_default();
        let put = |name: &str| {
            let put = self.remote.put(name, &text);
            put.map_err(|it| failure("the remote cannot be written", &it))
        };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = (owner.timeline, owner.shipped, 0);
        if files.copied.is_none() && files.is_whole {
            put(COPY)?;
            files.copied = Some(copy);
        }
        files.is_whole = false;
        put(FILE)?;
        files.is_whole = true;
        files.copied = match files.copied.take() {
            Some((timeline, shipped, age))
                if (timeline, shipped) == (owner.timeline, owner.shipped) && age < COPIED =>
            {
                Some((timeline, shipped, age + 1))
            }
            _ => {
                put(COPY)?;
                Some(copy)
            }
        };
        Ok(())
    }

    /// The next heartbeat, and what it says. It is promised when this returns.
    fn next(&self, says: &Says) -> Result<Owner, Failure> {
        let shared = &self.shared;
        let now = Utc::now();
        let (timeline, mut complete_until, mut shipped) = {
            let state = shared.lock();
            let timeline = state.position.map_or(0, |position| position.timeline);
            let is_complete =
                state.status.phase == Phase::Shipping && state.status.shipped.is_some();
            // Silence says nothing: what was committed since the last report is not known.
            let reported = state.reported_at().filter(|_| is_complete);
            let until = reported.into_iter().chain(state.status.behind_since).min();
            let complete_until = reported.and(until).map(|until| until - COMMITTING);
            (timeline, complete_until, state.status.shipped)
        };
        // Until this process knows what the remote holds, what the one before promised still holds.
        if !shared.has_looked.load(Ordering::Relaxed)
            && let Some(promised) = &self.promised
        {
            shipped = shipped.or(promised.shipped);
            complete_until = complete_until.or(promised.complete_until);
        }
        let heartbeat =
            Heartbeat { instance: &self.me, run: &self.run, at: now, shipped, complete_until };
        shared.promises.give(&self.remote.root, &heartbeat).map_err(|error| {
            cannot_write(&Path::new(&shared.plan.state).join(layout::PROMISES), &error)
        })?;
        Ok(Owner {
            system_identifier: shared.plan.system_id.to_string(),
            instance: self.me.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            timeline,
            heartbeat: now,
            unsettled: says.unsettled,
            superseded: says.superseded.clone(),
            aside: says.aside.clone(),
            complete_until,
            shipped,
            tablespaces: tablespaces(Path::new(&shared.plan.state)),
        })
    }
}

/// The directories of the server's tablespaces, by object id.
fn tablespaces(state: &Path) -> BTreeMap<u32, String> {
    let links = state.with_file_name("pg_tblspc");
    let found = fs::read_dir(links).into_iter().flatten().flatten().filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let path = fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok()?;
        (path.starts_with('/') && path.len() <= LONGEST_PATH).then_some((id, path))
    });
    found.take(MOST_TABLESPACES).collect()
}

/// The tablespaces of which the file tells: it may have no more than 64 kB.
const MOST_TABLESPACES: usize = 100;
const LONGEST_PATH: usize = 400;

/// How long a commit may take from its own time until it is on disk.
const COMMITTING: TimeDelta = TimeDelta::seconds(2);

/// Whether `earlier`, another name of a place on the same remote, is another place, which holds a
/// cluster. To be asked by the owner of the remote's own place.
pub(crate) fn is_left_behind(remote: &Remote, earlier: &str) -> bool {
    let get = |root: &str| remote.get_below(root, FILE).ok().flatten();
    // The signs of life of this session are written meanwhile. An old one is of one place if it is
    // that of the other before or after it was read.
    let (before, there, after) = (get(&remote.root), get(earlier), get(&remote.root));
    there.is_some() && there != before && there != after
}

/// Whether an operator has asked for a takeover: a session begins with it.
pub(crate) fn is_asked(shared: &Shared) -> bool {
    Path::new(&shared.plan.state).join(layout::TAKEOVER).exists()
}

/// Looks whether the remote is still ours, right before something is replaced there.
pub(crate) fn still_ours(shared: &Shared, remote: &Remote) -> Result<(), Failure> {
    let me = instance(Path::new(&shared.plan.state))?;
    match read(shared, remote, &me)?.0 {
        Some(owner) if is_mine(shared, remote, &me, &owner) => {
            shared.verified();
            Ok(())
        }
        Some(owner) => {
            shared.end_session();
            Err(other_instance(&owner))
        }
        None => {
            shared.end_session();
            Err(Failure {
                message: format!("\"{FILE}\" is gone from the remote"),
                hint: "What is left there is looked at anew.".to_string(),
            })
        }
    }
}

/// Looks whether the remote is still ours if that was not seen for as long as whoever claims it
/// waits: a machine that stood still, or was cut off, may have been replaced meanwhile.
pub(crate) fn surely_ours(shared: &Shared, remote: &Remote) -> Result<(), Failure> {
    let is_sure = shared.verified_within(beat(shared) + MARGIN);
    if is_sure { Ok(()) } else { still_ours(shared, remote) }
}

fn beat(shared: &Shared) -> Duration {
    Duration::from_secs(shared.plan.heartbeat.max(1).into())
}

/// Whether there is nothing on the remote at all.
fn is_empty(remote: &Remote) -> Result<bool, Failure> {
    remote.is_empty().map_err(|it| failure("the remote cannot be listed", &it))
}

/// Who the remote says that it belongs to, and whether `owner.json` says so itself.
///
/// An instance that is killed while it writes leaves half a file on a remote that shows files while
/// they are written; the copy then says whose it was. Where neither can be read, it is that of the
/// instance that has promised to it: nobody else could have claimed it without a whole copy.
fn read(shared: &Shared, remote: &Remote, me: &str) -> Result<(Option<Owner>, bool), Failure> {
    match Found::read(|name| remote.get_or_damaged(name))
        .map_err(|it| failure("the remote cannot be read", &it))?
    {
        Found::File(owner) => Ok((Some(owner), true)),
        Found::Copy(owner) => Ok((Some(owner), false)),
        Found::Nobody => Ok((None, true)),
        Found::Unreadable(fault) => {
            let last = |it: Promised| it.heartbeats.last().copied();
            match shared.promises.of(&remote.root, me).and_then(last) {
                Some(heartbeat) => Ok((Some(unreadable(shared, me, heartbeat)), false)),
                None => Err(Failure {
                    message: format!("\"{FILE}\" on the remote cannot be read: {fault}"),
                    hint: format!(
                        "If no other server ships there, delete \"{0}/{FILE}\" and \"{0}/{COPY}\".",
                        remote.root
                    ),
                }),
            }
        }
    }
}

/// What stands for files of this instance that cannot be read. Whether a takeover was settled is
/// not known.
fn unreadable(shared: &Shared, me: &str, heartbeat: DateTime<Utc>) -> Owner {
    Owner {
        system_identifier: shared.plan.system_id.to_string(),
        instance: me.to_string(),
        host: String::new(),
        timeline: 0,
        heartbeat,
        unsettled: true,
        superseded: None,
        aside: None,
        complete_until: None,
        shipped: None,
        tablespaces: BTreeMap::new(),
    }
}

fn fence(shared: &Shared, why: Failure) {
    let mut state = shared.lock();
    let known = state.status.phase == Phase::Fenced && state.status.failure.as_ref() == Some(&why);
    if known {
        return;
    }
    eprintln!("owner: {}", why.message);
    state.status.phase = Phase::Fenced;
    state.status.failure = Some(why);
    drop(state);
    shared.change(|_| ());
}

fn other_instance(owner: &Owner) -> Failure {
    Failure {
        message: format!(
            "another instance of this cluster, on host \"{}\", ships to this remote: nothing is \
             shipped from here",
            owner.host
        ),
        hint:
            "This server takes the remote over by itself when that one has given no sign of life \
               for a minute; \"nrt-backup takeover\" does so at once. If both are to live, set \
               nrt_backup.name to another name here."
                .to_string(),
    }
}

fn clone(owner: &Owner, heartbeat: Duration) -> Failure {
    Failure {
        message: format!(
            "the remote was last written, on host \"{}\", by a clone of this server or before this \
             one was put back to an earlier state: nothing is shipped from here",
            owner.host
        ),
        hint: format!(
            "If nothing is written there for {} s, this server goes on by itself, and moves what \
             is not its own to \"{}\". If both live on, set nrt_backup.name to another name here.",
            (heartbeat * MISSED).as_secs(),
            lineage::SUPERSEDED
        ),
    }
}

fn later_timeline(owner: &Owner) -> Failure {
    Failure {
        message: format!(
            "another instance of this cluster, on host \"{}\", has gone on to timeline {} and ships \
             to this remote: nothing is shipped from here",
            owner.host, owner.timeline
        ),
        hint:
            "If this server is to go on in its place, run \"nrt-backup takeover\" here: what the \
               other one has committed is given up then. Otherwise make this one its standby."
                .to_string(),
    }
}

fn other_cluster(owner: &Owner) -> Failure {
    Failure {
        message: format!(
            "this place on the remote belongs to another cluster (system identifier {}, host \
             \"{}\"): nothing is shipped from here",
            owner.system_identifier, owner.host
        ),
        hint: "Set nrt_backup.name to a name of this cluster's own.".to_string(),
    }
}

fn only_a_copy(copy: Option<&Restored>, owner: Option<&Owner>, archives: bool) -> Failure {
    let source = copy.map_or("a backup", |copy| &copy.source);
    let owner = owner.map_or(String::new(), |owner| {
        format!(
            ", and the remote is another instance's of this cluster, on host \"{}\"",
            owner.host
        )
    });
    let archiving =
        if archives { "" } else { "ALTER SYSTEM RESET archive_mode, restart the server, " };
    Failure {
        message: format!(
            "this is a copy that was restored from {source}{owner}: nothing is shipped from here"
        ),
        hint: format!(
            "To make it a server of its own: {archiving}set nrt_backup.name to another name unless \
             the original is gone for good, and run \"nrt-backup takeover\" here."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_place_however_often_it_is_read() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let shared = Shared::new(crate::tests::plan(directory.path()), "here".into());
        let state = directory.path().join("state");
        fs::create_dir(&state).expect("the directory is ours");
        let path = state.join(layout::TAKEOVER);
        for request in ["", "set-aside", "set-aside\n", "other\nplace"] {
            assert_eq!(place_of(request), None, "{request:?}");
        }
        let place = begin(&shared, "set-aside\n").expect("written");
        let request = fs::read_to_string(&path).expect("it is there");
        assert!(wants_all_aside(&request) && place_of(&request) == Some(&place), "{request:?}");
        fs::remove_file(&path).expect("it is there");
        assert_eq!(begin(&shared, &request).expect("known"), place);
        assert!(!path.exists(), "it says so already");
    }
}
