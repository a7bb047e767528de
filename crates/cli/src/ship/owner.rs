//! Keeps two instances from writing to one remote.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use nrt_core::inventory::Failure;
use nrt_core::layout::{self, Instance, Restored};
use nrt_core::offsite::owner::{FILE, Owner, Verdict, judge};
use nrt_core::offsite::tail::DIRECTORY;
use nrt_core::offsite::{Phase, RESTORE_POINTS};
use nrt_process::files::write_atomically;

use super::rclone::random;
use super::refuse_another_cluster;
use super::remote::{Remote, failure};
use super::state::Shared;

/// Which instance of the cluster this is: it stays the same as long as the data directory does,
/// and a copy of that is another one.
pub(crate) fn instance(state: &Path) -> Result<String, Failure> {
    let problem = |error: std::io::Error| Failure {
        message: format!("the state directory cannot be used: {error}"),
        hint: "See that the server's user may write to it, and that its disk has room.".to_string(),
    };
    let directory = fs::metadata(state).map_err(problem)?.ino();
    let file = state.join(layout::INSTANCE);
    let known = fs::read(&file).ok().and_then(|it| serde_json::from_slice::<Instance>(&it).ok());
    if let Some(known) = known.filter(|it| it.directory == directory) {
        return Ok(known.id);
    }
    let new = Instance { id: random().map_err(problem)?, directory };
    let text = serde_json::to_vec(&new).map_err(|error| problem(error.into()))?;
    write_atomically(&file, &text).map_err(problem)?;
    Ok(new.id)
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
    let mut seen: Option<(Owner, Instant)> = None;
    while !shared.is_over() {
        let found = read(remote)?;
        let unchanged_for = match (&found, &seen) {
            (Some(found), Some((known, since))) if found == known => since.elapsed(),
            _ => Duration::ZERO,
        };
        if unchanged_for.is_zero() {
            seen = found.clone().map(|owner| (owner, Instant::now()));
        }
        let state = Path::new(&shared.plan.state);
        let request = state.join(layout::TAKEOVER);
        let asked = fs::read_to_string(&request).ok();
        let copy = restored_copy(state);
        let taking_over = asked.is_some() && (copy.is_none() || shared.plan.archives);
        let system_id = shared.plan.system_id;
        let is_copy = copy.is_some();
        let verdict =
            judge(found.as_ref(), system_id, me, unchanged_for, heartbeat, taking_over, is_copy);
        match verdict {
            Verdict::Ours | Verdict::MayClaim => {
                // Whoever owns the remote says so before he writes anything else.
                refuse_another_cluster(&shared.plan, remote)?;
                let is_ours = verdict == Verdict::Ours;
                let Some(hold) = take(shared, remote, me, found, is_ours, asked.as_deref())? else {
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
            Verdict::OtherInstance(owner) => fence(shared, other_instance(&owner)),
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
        let next = Instant::now() + heartbeat / 3;
        while Instant::now() < next && !shared.is_over() && !request.exists() {
            shared.sleep(LOOK.min(heartbeat / 3));
        }
    }
    Ok(None)
}

/// Makes this instance the owner of what was `found`, which may be its own already, and leaves
/// nothing of another one's in its way. `None` if somebody else has the remote then, or the session
/// is over.
fn take(
    shared: &Arc<Shared>,
    remote: &Arc<Remote>,
    me: &str,
    found: Option<Owner>,
    is_ours: bool,
    asked: Option<&str>,
) -> Result<Option<Hold>, Failure> {
    let heartbeat = beat(shared);
    if let Some(owner) = found.as_ref().filter(|_| is_ours) {
        // A remote may show for a while what was there before.
        shared.beats(owner.heartbeat);
    }
    let is_new = found.is_none() && is_empty(remote)?;
    // The file may have vanished without anybody's doing: rclone removes what it could not write.
    // Nobody else can have shipped since, who would have written the copy first.
    let was_ours = found.is_none() && said_last(shared, remote, me)?;
    let unsettled = match &found {
        Some(owner) => owner.unsettled || !is_ours,
        None => !is_new && !was_ours,
    };
    // Where that has begun, or is to begin.
    let aside = match (found.and_then(|owner| owner.aside), asked) {
        (None, Some(request)) if wants_all_aside(request) => Some(begin(shared, request)?),
        (begun, _) => begun,
    };

    let since = Instant::now();
    let hold = Hold::take(shared, remote, me, unsettled, aside.clone())?;
    // Somebody else may have claimed it, too: the last one to write has it. And the one that had it
    // may be alive, and sees this with its next heartbeat.
    if unsettled || was_ours {
        shared.sleep(heartbeat + MARGIN);
    } else if is_new {
        shared.sleep(NEW + 2 * since.elapsed());
    }
    if shared.is_over() {
        return Ok(None);
    }
    if (unsettled || was_ours || is_new) && read(remote)?.is_none_or(|owner| owner.instance != me) {
        return Ok(None);
    }
    if let Some(place) = &aside {
        let all = ["repository".to_string(), DIRECTORY.to_string()];
        set_aside(shared, remote, place, &all)?;
        set_restore_points_aside(remote, place)?;
    } else if unsettled {
        set_their_tail_aside(shared, remote)?;
    }
    if unsettled || aside.is_some() {
        hold.settle()?;
    }
    shared.verified();
    Ok(Some(hold))
}

/// Whether this instance was the last one that owned the remote, as the copy of the file says.
fn said_last(shared: &Shared, remote: &Remote, me: &str) -> Result<bool, Failure> {
    let text = remote.get(COPY).map_err(|it| failure("the remote cannot be read", &it))?;
    let owner: Option<Owner> = text.and_then(|text| serde_json::from_slice(&text).ok());
    let ours = owner.filter(|owner| {
        let is_settled = !owner.unsettled && owner.aside.is_none();
        owner.instance == me
            && owner.system_identifier == shared.plan.system_id.to_string()
            && is_settled
    });
    if let Some(owner) = &ours {
        // What is read where the file is half written.
        shared.beats(owner.heartbeat);
    }
    Ok(ours.is_some())
}

/// How often is looked whether something is due: a sign of life, or what an operator asks for.
const LOOK: Duration = Duration::from_secs(1);
/// How much later than its heartbeat another instance may see that it has been replaced.
const MARGIN: Duration = Duration::from_secs(3);
/// How long somebody else who found nothing on the remote may take to claim it, beyond what a claim
/// takes.
const NEW: Duration = Duration::from_secs(1);
/// The copy of the file, written once when the remote is claimed.
const COPY: &str = "owner.json.copy";

/// What stands in the request for a takeover that keeps the remote's backups under another name.
/// Once that has begun, a second line says which: whoever tries again goes on there.
pub(crate) const SET_ASIDE: &str = "set-aside";

fn wants_all_aside(request: &str) -> bool {
    request.lines().next().is_some_and(|line| line.trim() == SET_ASIDE)
}

/// The place to which the remote's backups are being moved, as the request says once that has
/// begun. From then on nobody else takes the request away.
pub(crate) fn place_of(request: &str) -> Option<&str> {
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
    format!("set-aside/{}", Utc::now().format("%Y%m%d-%H%M%S"))
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

/// Keeps the other instance's tail of the timeline that is written here from being taken for ours:
/// where the two went different ways, the same positions hold other bytes.
fn set_their_tail_aside(shared: &Shared, remote: &Remote) -> Result<(), Failure> {
    let mut patience = 100;
    let timeline = loop {
        if let Some(position) = shared.lock().position {
            break position.timeline;
        }
        patience -= 1;
        if patience == 0 || shared.is_over() {
            return Err(Failure {
                message: "the server has not told yet which timeline it writes".to_string(),
                hint: "It is tried again.".to_string(),
            });
        }
        shared.sleep(Duration::from_millis(100));
    };
    set_aside(shared, remote, &place(), &[format!("{DIRECTORY}/{timeline:08X}")])
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
    /// Makes this instance the owner.
    fn take(
        shared: &Arc<Shared>,
        remote: &Arc<Remote>,
        me: &str,
        unsettled: bool,
        aside: Option<String>,
    ) -> Result<Hold, Failure> {
        let says = Says { unsettled, aside };
        let claim = Arc::new(Claim {
            shared: Arc::clone(shared),
            remote: Arc::clone(remote),
            me: me.to_string(),
            says: Mutex::new(says.clone()),
            is_over: AtomicBool::new(false),
        });
        claim.write_both(&says)?;
        let living = Arc::clone(&claim);
        let thread = thread::spawn(move || living.live());
        Ok(Hold { claim, thread: Some(thread) })
    }

    /// Says that the remote is as its owner wants it, if it is ours still.
    fn settle(&self) -> Result<(), Failure> {
        let claim = &self.claim;
        let mut says = claim.says.lock().unwrap_or_else(PoisonError::into_inner);
        still_ours(&claim.shared, &claim.remote)?;
        let settled = Says::default();
        claim.write_both(&settled)?;
        *says = settled;
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
    aside: Option<String>,
}

/// What gives the signs of life.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    remote: Arc<Remote>,
    me: String,
    /// Locked while it is written, so that a sign of life never says again what is over.
    says: Mutex<Says>,
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
        match read(&self.remote) {
            Ok(Some(owner)) if owner.instance == self.me && !shared.has_beaten(owner.heartbeat) => {
                eprintln!("owner: a twin of this instance, on \"{}\", ships here", owner.host);
                // A snapshot of the whole machine has the same identity. One of the two has to be
                // another, and is fenced then.
                let _ = fs::remove_file(Path::new(&shared.plan.state).join(layout::INSTANCE));
                false
            }
            Ok(Some(owner)) if owner.instance == self.me => {
                let written = self.write(FILE, &says);
                if written.is_ok() {
                    shared.verified();
                }
                shared.report("owner", written.err());
                true
            }
            Ok(Some(owner)) => {
                eprintln!("owner: \"{}\" has taken the remote", owner.host);
                false
            }
            Ok(None) => {
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

    /// Writes the file and its copy.
    fn write_both(&self, says: &Says) -> Result<(), Failure> {
        self.write(COPY, says)?;
        self.write(FILE, says)
    }

    fn write(&self, name: &str, says: &Says) -> Result<(), Failure> {
        let shared = &self.shared;
        let now = Utc::now();
        let (timeline, complete_until, shipped) = {
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
        shared.beats(now);
        let owner = Owner {
            system_identifier: shared.plan.system_id.to_string(),
            instance: self.me.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            timeline,
            heartbeat: now,
            unsettled: says.unsettled,
            aside: says.aside.clone(),
            complete_until,
            shipped,
        };
        let text = serde_json::to_vec_pretty(&owner).unwrap_or_default();
        let put = self.remote.put(name, &text);
        put.map_err(|it| failure("the remote cannot be written", &it))
    }
}

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
    match read(remote)? {
        Some(owner) if owner.instance == me => {
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

/// Who the remote says that it belongs to.
///
/// An instance that is killed while it writes leaves half a file on a remote that shows files
/// while they are written; the copy then says whose it was.
fn read(remote: &Remote) -> Result<Option<Owner>, Failure> {
    let get = |name: &str| remote.get(name).map_err(|it| failure("the remote cannot be read", &it));
    let Some(text) = get(FILE)? else { return Ok(None) };
    if let Ok(owner) = serde_json::from_slice(&text) {
        return Ok(Some(owner));
    }
    let copy = get(COPY)?.unwrap_or_default();
    serde_json::from_slice(&copy).map(Some).map_err(|error| Failure {
        message: format!("\"{FILE}\" on the remote cannot be read: {error}"),
        hint: format!("If no other server ships there, delete \"{}/{FILE}\".", remote.root),
    })
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
        hint: "If that one is gone for good, run \"nrt-backup takeover\" here; otherwise set \
               nrt_backup.name to another name."
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
        let shared = Shared::new(super::super::tests::plan(directory.path()), "here".into());
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
