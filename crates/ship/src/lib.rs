//! Ships off-site: backups, archived segments, and the WAL of the last second.
//!
//! ```text
//! main ── reads positions from the worker and the reporter, watches for signals
//!  ├─ show      writes ship.json when something has changed
//!  └─ sessions  one after the other: rclone, ownership, what the remote holds; then side by side
//!      ├─ owner    signs of life in owner.json from the claim on; ends the session when it is another's
//!      ├─ tail     WAL that is flushed and not archived there, every ship_interval
//!      ├─ archive  finished segments, as pgBackRest stored them; removes what they supersede
//!      └─ mirror   restore points; finished backups, then the info files, then deletions; comparisons
//! ```
//!
//! A session begins with a look at what the remote really holds and trusts nothing from before:
//! whatever died, and at whatever instant, the next session continues from there. The tail begins
//! before that look: WAL that was flushed just now is sent while the remote is listed.

mod archive;
mod bring_back;
mod compare;
mod configuration;
mod lineage;
mod mirror;
mod owner;
mod promises;
mod proof;
mod repository;
mod restore_points;
mod second_place;
mod state;
mod tail;
mod tarball;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::offsite::tail::{DIRECTORY, Piece};
use nrt_core::offsite::{Phase, Plan, Report, Status};
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_remote::{Address, Options, Rclone, Remote, Remotes, failure, renewed};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub use owner::{SET_ASIDE, place_of};

use archive::Files;
use mirror::There;
use repository::Info;
use state::{Shared, State};

/// How long the last shipment may take when the server ends. The worker's leash kills after two
/// seconds.
const FAREWELL: Duration = Duration::from_millis(1500);
/// Between two writings of the status, at least.
const SHOW: Duration = Duration::from_millis(100);
/// How often is looked whether positions are still reported.
const LISTEN: Duration = Duration::from_secs(1);
/// Pauses before the next session.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A session that lasted this long had begun well.
const WELL: Duration = Duration::from_secs(60);

/// Ships until standard input ends or a signal comes.
///
/// # Errors
///
/// What keeps it from beginning at all. All else is shown in the status and tried again.
pub fn run(plan: Plan) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::env::set_current_dir(&plan.state)?;
    let repository = repository::directory(&plan);
    let directory = repository.clone().unwrap_or_default();
    let shared = Arc::new(Shared::new(plan, directory));
    shared.change(|state| {
        state.status = Status { phase: Phase::Starting, ..Status::default() };
    });

    let listener = Arc::clone(&shared);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str::<Report>(&line) {
                Ok(report) => listener.hear(report),
                Err(error) => eprintln!("a line on standard input cannot be read: {error}"),
            }
        }
        // Whoever wrote there is gone.
        listener.stop();
    });
    let stopper = Arc::clone(&shared);
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopper.stop();
        }
    });
    let shower = Arc::clone(&shared);
    thread::spawn(move || {
        loop {
            shower.show(LISTEN);
            shower.listen();
            thread::sleep(SHOW);
        }
    });
    match repository {
        Ok(_) => sessions(&shared),
        Err(problem) => {
            failing(&shared, problem);
            while !shared.is_over() {
                shared.sleep(Duration::from_secs(60));
            }
        }
    }
    shared.show(Duration::ZERO);
    Ok(())
}

/// One session after the other, with ever longer pauses while none begins well.
fn sessions(shared: &Arc<Shared>) {
    let mut failures = 0_u32;
    while !shared.stop.load(Ordering::Relaxed) {
        shared.over.store(false, Ordering::Relaxed);
        let begin = Instant::now();
        if let Err(problem) = session(shared) {
            eprintln!("session: {}", problem.message);
            failing(shared, problem);
        }
        if begin.elapsed() >= WELL {
            failures = 0;
        }
        shared.over.store(false, Ordering::Relaxed);
        shared.sleep(PAUSES.0.saturating_mul(1 << failures.min(8)).min(PAUSES.1));
        failures += 1;
    }
}

fn failing(shared: &Shared, problem: Failure) {
    shared.change(|state| {
        state.status.phase = Phase::Failing;
        // Until the next session begins well.
        state.failures.insert("session", problem);
    });
}

/// From rclone's start to its end.
fn session(shared: &Arc<Shared>) -> Result<(), Failure> {
    let plan = &shared.plan;
    let state = Path::new(&plan.state);
    let outbox = state.join(layout::OUTBOX);
    let problem = |error: io::Error| Failure {
        message: format!("\"{}\" cannot be used: {error}", outbox.display()),
        hint: "Make room on the data directory's disk.".to_string(),
    };
    // What a killed process left on its way.
    let _ = fs::remove_dir_all(&outbox);
    fs::DirBuilder::new().mode(0o700).create(&outbox).map_err(problem)?;
    let me = owner::instance(state)?;

    // Before rclone is asked: a change while it answers begins another session.
    let configuration = fs::read(&plan.rclone_config).unwrap_or_default();
    let given = Remotes::read(&plan.rclone, &plan.rclone_config)?;
    let config = renewed::prepare(&plan.rclone, state, &plan.rclone_config, &given)?;
    let remotes =
        if config == plan.rclone_config { given } else { Remotes::read(&plan.rclone, &config)? };
    let Address { root, ground, earlier, secrets } = Address::of(
        &remotes,
        &plan.rclone_config,
        plan.remote_name.as_deref(),
        &plan.remote_path,
        &plan.name,
    )?;
    let same_disk = second_place::judge(plan, &shared.repository, &ground, &root);
    shared.change(|state| {
        state.status.remote.clone_from(&root);
        state.status.same_disk = same_disk.as_ref().ok().cloned().flatten();
        state.status.left_behind = None;
    });
    same_disk?;

    let options = Options {
        program: &plan.rclone,
        config: &config,
        transfers: plan.transfers,
        bandwidth_limit: plan.bandwidth_limit.as_deref(),
    };
    let rclone = Rclone::start(options, secrets)?;
    let remote = Arc::new(Remote::new(rclone, root, ground.is_encrypted, &outbox, &config));
    shared.change(|state| state.status.rclone = Some(remote.version().to_string()));
    lineage::refuse_another_life_here(shared)?;
    // Held until all that this session has begun is over.
    let Some(_hold) = owner::own(shared, &remote, &me)? else { return Ok(()) };
    let left_behind = earlier.filter(|earlier| owner::is_left_behind(&remote, earlier));
    shared.change(|state| state.status.left_behind = left_behind);
    // Before the first byte of it is sent.
    let info = Info::read(&shared.repository, &plan.stanza).ok().flatten();
    mirror::refuse_the_tail(shared, &remote, info.as_ref());
    shared.change(State::begin_session);
    // The WAL of the last second does not wait for a listing of the whole remote. Nothing is called
    // shipped before that has ended: until then the coverage is that of the session before, or none.
    let (for_tail, to) = (Arc::clone(shared), Arc::clone(&remote));
    let tail = thread::spawn(move || tail::run(&for_tail, &to));
    let looked = look(shared, &remote).and_then(|found| {
        // A machine that stood still in the middle of that has given no sign of life.
        owner::still_ours(shared, &remote)?;
        shared.has_looked.store(true, Ordering::Relaxed);
        Ok(found)
    });
    let (there, files) = match looked {
        Ok(found) => found,
        Err(problem) => {
            shared.end_session();
            // One that panicked has said so.
            let _ = tail.join();
            return Err(problem);
        }
    };
    let has_cipher = match &info {
        Some(info) => info.is_encrypted(),
        None => repository::will_be_encrypted(plan),
    };
    shared.change(|state| {
        state.status.is_encrypted = Some(remote.is_encrypted || has_cipher);
        state.failures.clear();
        state.undeleted.clear();
        state.status.phase = Phase::Shipping;
        state.status.failure = None;
    });
    let threads = start(shared, &remote, tail, there, files);
    while !shared.is_over() {
        shared.sleep(Duration::from_secs(1));
        if owner::is_asked(shared) {
            // The next session begins with it.
            shared.end_session();
        }
        let sent = remote.sent();
        let known = {
            let status = &shared.lock().status;
            (status.sent_bytes, status.sent_objects)
        };
        if known != sent {
            shared.change(|state| {
                (state.status.sent_bytes, state.status.sent_objects) = sent;
            });
        }
        // rclone goes on with the credentials that it began with, and what it keeps of a token
        // does not matter while all is well.
        let is_failing = !shared.lock().failures.is_empty();
        let now = is_failing.then(|| fs::read(&plan.rclone_config));
        if now.is_some_and(|now| now.is_ok_and(|now| now != configuration)) {
            eprintln!("session: \"{}\" has changed", plan.rclone_config);
            shared.end_session();
        }
    }
    if shared.stop.load(Ordering::Relaxed) {
        // The others may be in the middle of something long, and nothing of it is lost: they end
        // with the process.
        let [tail, ..] = threads;
        let begin = Instant::now();
        while shared.is_ending() && !tail.is_finished() && begin.elapsed() < FAREWELL {
            thread::sleep(Duration::from_millis(10));
        }
        return Ok(());
    }
    for thread in threads {
        // One that panicked has said so.
        let _ = thread.join();
    }
    Ok(())
}

/// Starts the threads of a session that need to know what the remote holds.
fn start(
    shared: &Arc<Shared>,
    remote: &Arc<Remote>,
    tail: JoinHandle<()>,
    there: There,
    files: Files,
) -> [JoinHandle<()>; 3] {
    let files = Arc::new(Mutex::new(files));
    let both = || (Arc::clone(shared), Arc::clone(remote));
    let (for_archive, for_mirror) = (both(), both());
    let their_files = Arc::clone(&files);
    [
        tail,
        thread::spawn(move || archive::run(&for_archive.0, &for_archive.1, &their_files)),
        thread::spawn(move || mirror::run(&for_mirror.0, &for_mirror.1, there, &files)),
    ]
}

/// Waits for a program's end; kills it when the session is over before.
fn wait_for(shared: &Shared, child: &mut Child) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if shared.is_over() {
            child.kill()?;
            return child.wait();
        }
        shared.sleep(Duration::from_millis(100));
    }
}

/// Refuses a remote whose archive is another cluster's, although nobody says that he owns it: both
/// clusters' segments have the same names.
fn refuse_another_cluster(plan: &Plan, remote: &Remote) -> Result<(), Failure> {
    let info = info_there(remote, &plan.stanza, "archive")?;
    let info = String::from_utf8_lossy(&info.unwrap_or_default()).into_owned();
    let ours = format!("\"db-id\":{},", plan.system_id);
    // Encrypted, it says nothing.
    if !info.contains("\"db-id\":") || info.contains(&ours) {
        return Ok(());
    }
    Err(Failure {
        message: "the repository on the remote is of another cluster: nothing is shipped there"
            .to_string(),
        hint: "Set nrt_backup.name to a name of this cluster's own.".to_string(),
    })
}

/// Reads `archive.info` or `backup.info` from the remote. Like pgBackRest, takes the copy where the file
/// itself is missing or damaged; where neither is whole, whatever there is.
pub fn info_there(remote: &Remote, stanza: &str, kind: &str) -> Result<Option<Vec<u8>>, Failure> {
    let get = |suffix: &str| {
        let path = format!("repository/{kind}/{stanza}/{kind}.info{suffix}");
        remote.get(&path).map_err(|it| failure("the remote cannot be read", &it))
    };
    let is_whole = |content: &Option<Vec<u8>>| {
        content.as_deref().is_some_and(|it| integrity(it) != Integrity::Damaged)
    };
    let info = get("")?;
    if is_whole(&info) {
        return Ok(info);
    }
    let copy = get(".copy")?;
    Ok(if is_whole(&copy) { copy } else { info.or(copy) })
}

/// Finds out what the remote holds, and compares it with the repository by names and sizes.
fn look(shared: &Shared, remote: &Remote) -> Result<(There, Files), Failure> {
    let plan = &shared.plan;
    let size = plan.segment_size;
    let list = |directory: &str| {
        remote.list(directory).map_err(|it| failure("the remote cannot be listed", &it))
    };
    let mut files = Files::new();
    let mut coverage = nrt_core::offsite::tail::Coverage::default();
    let local = shared.repository.join("archive").join(&plan.stanza);
    let archived = list(&format!("repository/archive/{}", plan.stanza))?;
    let ids: Vec<String> = archived
        .iter()
        .filter_map(|entry| entry.path.split('/').next().filter(|id| !id.contains('.')))
        .map(str::to_string)
        .collect();
    let newest = archive::newest_id(ids.iter());
    for entry in archived {
        let Some((directory, name)) = entry.path.rsplit_once('/') else { continue };
        if !archive::is_archived_file(directory, name) {
            continue;
        }
        // Half a file, left by a process that was killed, is not there. What is only there, was
        // expired here.
        let file = local.join(&entry.path);
        let here = fs::metadata(&file).map(|it| it.len());
        if here.is_ok_and(|here| i64::try_from(here) != Ok(entry.size)) {
            if archive::may_replace(&file, u64::try_from(entry.size).unwrap_or(0)) {
                continue;
            }
            eprintln!("archive: \"{name}\" is cut off here; the remote's stays");
        }
        if newest.as_deref().is_some_and(|id| directory.starts_with(&format!("{id}/")))
            && let Some(segment) = archive::segment_of(name, size)
        {
            coverage.archive(segment);
        }
        files.entry(directory.to_string()).or_default().insert(name.to_string());
    }

    let mut there = There::default();
    let held = mirror::list_backups(shared, remote)?;
    for (label, remote_files) in &held {
        if !remote_files.contains_key(proof::MANIFEST) {
            continue;
        }
        // By the sizes here, at first; the manifests are read when the tail goes up again.
        let directory = shared.repository.join("backup").join(&plan.stanza).join(label);
        if repository::has_manifest(&directory)
            && let Ok(here) = repository::files_of(&directory)
            && here.iter().all(|(path, bytes)| remote_files.get(path) == Some(bytes))
        {
            there.complete.insert(label.clone());
        }
        there.labels.insert(label.clone());
    }
    there.held = Some(held);
    let info = info_there(remote, &plan.stanza, "backup")?;
    there.info = info.filter(|it| integrity(it) != Integrity::Damaged);
    for directory in nrt_core::offsite::DESCRIPTIONS {
        for entry in list(directory)? {
            let path = format!("{directory}/{}", entry.path);
            if entry.path.ends_with(".json") {
                there.descriptions.insert(path, entry.size);
            } else if entry.path.ends_with(".tar") {
                there.tars.insert(path);
            }
        }
    }
    let mut pieces: Vec<Piece> =
        list(DIRECTORY)?.iter().filter_map(|entry| Piece::parse(&entry.path, size)).collect();
    pieces.sort();
    // A process that was killed may have left half a piece under a whole one's name. What is still
    // here is sent again, and the old ones go when that is there.
    let pg_wal = Path::new(&plan.data_directory).join("pg_wal");
    let (doubtful, trusted): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(|piece| {
        let name = piece.segment.name(size);
        !coverage.is_archived(piece.segment)
            && (pg_wal.join(&name).exists() || repository::holds(&local, &name))
    });
    for piece in trusted {
        coverage.add(piece, 0);
    }
    let labels = there.info.as_deref().map(repository::labels_in).unwrap_or_default();
    // A backup of which something is missing there may be what others are built on.
    let backups_here = shared.repository.join("backup").join(&plan.stanza);
    let is_whole = labels.iter().all(|label| {
        there.complete.contains(label)
            || (there.labels.contains(label)
                && !repository::has_manifest(&backups_here.join(label)))
    });
    let labels = if is_whole { labels } else { BTreeSet::new() };
    shared.read_inventory();
    shared.take_in_backups_there(there.info.as_deref());
    let histories = newest.and_then(|id| files.get(&id)).into_iter().flatten();
    let histories: Vec<u32> = histories.filter_map(|name| archive::history_of(name)).collect();
    shared.change(|state| {
        state.take_in_listing(coverage, doubtful, labels.into_iter().collect(), histories);
    });
    Ok((there, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan for tests.
    pub(super) fn plan(root: &Path) -> Plan {
        let text = |name: &str| root.join(name).to_string_lossy().into_owned();
        Plan {
            state: text("state"),
            data_directory: text("data"),
            system_id: 1,
            segment_size: 16 << 20,
            stanza: "main".to_string(),
            own_config: None,
            repository: text("repository"),
            configuration_files: Vec::new(),
            rclone: "rclone".to_string(),
            rclone_config: text("rclone.conf"),
            remote_name: None,
            remote_path: text("remote"),
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
}
