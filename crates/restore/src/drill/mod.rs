//! Tries a restore: into a scratch place, privately, with checks, and leaves nothing behind.
//!
//! ```text
//! Scratch ──► restore ──► private server: pg_amcheck, the operator's query ──► Outcome
//!    └── locked while it is used, removed on every exit; what a killed drill left, by the next
//! ```

mod checks;
mod scratch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use chrono::Utc;
use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_core::restore::Refusal;
use nrt_core::restore::drill::{Order, Outcome, journal};
use nrt_core::restore::plan::Plan;
use nrt_core::restore::target::Asked;
use rustix::process::{nice, setpriority_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Existing, Place, Private, Programs, Report, Request, Start, Work};
use scratch::Scratch;

/// The restored data directory, within the scratch place.
const DATA: &str = "data";
/// Where the restore works there.
const WORK: &str = "work";
/// Where tablespaces are restored to there.
const SPACES: &str = "tablespaces";

/// A path within which there can be a directory of its own for a socket: its path has at most 107
/// bytes.
const LONGEST_FOR_SOCKET: usize = 107 - "/nrt-123456/.s.PGSQL.5432".len();

/// An empty configuration, within the scratch place.
const CONFIGURATION: &str = "postgresql.conf";

/// What a server of a drill is told. Nothing of the restored configuration counts: it was on the
/// remote, and whoever can write there could have this machine load a library.
const SETTINGS: [(&str, &str); 14] = [
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("dynamic_library_path", "$libdir"),
    ("jit", "off"),
    ("row_security", "on"),
    // No background worker of any extension: jobs must not run twice, nor subscriptions. Recovery
    // takes fewer of them than the original had only where nobody can connect meanwhile.
    ("hot_standby", "off"),
    ("max_worker_processes", "0"),
    ("autovacuum", "off"),
    // Nobody would ever confirm what is committed here.
    ("synchronous_standby_names", ""),
    // The original runs beside it, and needs its memory.
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("min_dynamic_shared_memory", "0"),
    ("archive_mode", "off"),
    ("cluster_name", "nrt_backup drill"),
];

/// How a server of a drill is configured: not as the original, whose configuration names places
/// that are its own.
fn settings(order: &Order, scratch: &Path) -> Vec<(&'static str, String)> {
    let path = |name: &str| scratch.join(name).display().to_string();
    let mut settings: Vec<_> =
        SETTINGS.iter().map(|(name, value)| (*name, (*value).to_string())).collect();
    settings.extend([
        ("config_file", path(CONFIGURATION)),
        ("data_directory", path(DATA)),
        // What is in the cluster may need them. They are the original's, not the remote's.
        ("shared_preload_libraries", order.libraries.clone()),
    ]);
    if knows_event_triggers(order) {
        settings.push(("event_triggers", "off".to_string()));
    }
    settings
}

/// Whether this PostgreSQL has the setting `event_triggers`, and event triggers of logins.
fn knows_event_triggers(order: &Order) -> bool {
    let version = fs::read_to_string(Path::new(&order.data_directory).join("PG_VERSION"));
    version.is_ok_and(|text| text.trim().parse::<u32>().is_ok_and(|major| major >= 17))
}

/// What a superuser's connection to a server of a drill has, whatever the role or the database is
/// set to.
fn client_options(order: &Order) -> String {
    let mut options = "-c session_preload_libraries= -c local_preload_libraries=".to_string();
    if knows_event_triggers(order) {
        options += " -c event_triggers=off";
    }
    options
}

/// What is known so far, for whoever has to tell it.
struct Known {
    outcome: Outcome,
    scratch: Option<Scratch>,
}

/// Does what an order says. The outcome is told on standard output when nothing is left of it.
///
/// # Errors
///
/// If it cannot be told.
pub fn run(order: &Order) -> anyhow::Result<bool> {
    be_humble();
    let failure = Failure { message: "the drill came to no end".to_string(), hint: String::new() };
    let now = Utc::now();
    let outcome = Outcome::failed(now, now, String::new(), failure);
    let known = Arc::new(Mutex::new(Known { outcome, scratch: None }));
    end_on_signals(&known).context("listen to signals")?;

    let done = drill(order, &known);
    // From here on a signal waits for us, or we for it.
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let refusal = done.err();
    known.outcome.code = refusal.as_ref().and_then(|it| it.code);
    known.outcome.failure = refusal.map(Failure::from);
    tell(&mut known)
}

/// Removes what an earlier drill has left behind.
///
/// # Errors
///
/// What cannot be removed.
pub fn clean(order: &Order) -> anyhow::Result<()> {
    be_humble();
    Scratch::clean(order).map_err(|failure| anyhow::anyhow!("{}", words(&failure)))
}

/// Takes what is left of the machine, and is the first to go where it is too little.
fn be_humble() {
    // Either may be forbidden, and is no condition.
    if nice(19).is_err() {
        let _ = setpriority_process(None, 19);
    }
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Cleans up and ends when somebody says so: whatever the drill waits for at that moment.
#[allow(
    clippy::disallowed_methods,
    reason = "main waits for something long; every child is tethered and dies with this process"
)]
fn end_on_signals(known: &Arc<Mutex<Known>>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let known = Arc::clone(known);
    thread::Builder::new().name("signals".to_string()).spawn(move || {
        if signals.forever().next().is_some() {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.outcome.failure = Some(Failure {
                message: "the drill was stopped".to_string(),
                hint: "SELECT nrt_drill_now() tries again.".to_string(),
            });
            let told = tell(&mut known);
            std::process::exit(i32::from(!matches!(told, Ok(true))));
        }
    })?;
    Ok(())
}

/// Leaves nothing behind, and then tells what was found. Answers whether it was a success.
fn tell(known: &mut Known) -> anyhow::Result<bool> {
    if let Some(scratch) = known.scratch.take()
        && let Err(failure) = scratch.remove()
    {
        eprintln!("{}", words(&failure));
        known.outcome.failure.get_or_insert(failure);
    }
    known.outcome.ended = Utc::now();
    let outcome = known.outcome.clone().bounded();
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(outcome.succeeded())
}

/// The drill itself. What it finds out is in `known` as soon as it is.
fn drill(order: &Order, known: &Mutex<Known>) -> Result<(), Refusal> {
    let scratch = Scratch::take(order)?;
    let path = scratch.path().to_path_buf();
    note(known, |it| it.scratch = Some(scratch));
    let unusable = |error: io::Error| Failure {
        message: format!("\"{}\" cannot be used: {error}", path.display()),
        hint: "Set nrt_backup.drill_directory to another directory.".to_string(),
    };
    // So that everything that is started lives there, and can be found.
    std::env::set_current_dir(&path).map_err(unusable)?;
    fs::write(path.join(CONFIGURATION), "").map_err(unusable)?;
    let disk = crate::disk(&path).map_err(unusable)?;
    if path.as_os_str().len() <= LONGEST_FOR_SOCKET {
        // Sockets go with the rest.
        let _ = tempfile::env::override_temp_dir(&path);
    }

    let request = request(order, &path)?;
    let report = crate::run(&request, &mut |plan: &Plan| {
        note(known, |it| {
            it.outcome.source.clone_from(&plan.source);
            it.outcome.expected = plan.estimate.map(|it| it.as_secs_f64());
        });
        checks::room(&path, disk, crate::needed(plan)).map_err(Refusal::from)
    })?;
    note(known, |it| {
        it.outcome.recovered.clone_from(&report.recovered);
        it.outcome.phases = report.phases;
    });

    let begin = Instant::now();
    let checked = check(order, &path, &report, known);
    note(known, |it| it.outcome.phases.check = begin.elapsed().as_secs_f64());
    checked?;
    // The drill's server has a configuration of its own.
    report.fault.map_or(Ok(()), Err)
}

fn note(known: &Mutex<Known>, change: impl FnOnce(&mut Known)) {
    change(&mut known.lock().unwrap_or_else(PoisonError::into_inner));
}

/// A restore of the newest state into the scratch place.
fn request(order: &Order, scratch: &Path) -> Result<Request, Failure> {
    let text = fs::read(Path::new(&order.state).join(layout::DRILLS)).unwrap_or_default();
    Ok(Request {
        place: place(order)?,
        stanza: Some(order.stanza.clone()),
        target: Asked { latest: true, ..Asked::default() }
            .target(&Ok(chrono_tz::Tz::UTC), Utc::now())?,
        data: scratch.join(DATA),
        existing: Existing::Refuse,
        work: Some(scratch.join(WORK)),
        config_file: None,
        tablespaces: Vec::new(),
        tablespaces_below: Some(scratch.join(SPACES)),
        databases: Vec::new(),
        bindir: Some(PathBuf::from(&order.programs)),
        processes: order.processes,
        start: Start::Recover,
        is_copy: Some(true),
        settings: settings(order, scratch),
        repository: None,
        original: Some(PathBuf::from(&order.data_directory)),
        rates: journal::rates(&journal::read(&text)),
        is_quiet: true,
        // A tenth of the disk has to stay free: that is asked for above.
        ignore_space: true,
        only_configuration: Some(scratch.join(CONFIGURATION)),
    })
}

fn place(order: &Order) -> Result<Place, Failure> {
    let local = Place::of_server(Path::new(&order.data_directory)).ok_or_else(|| Failure {
        message: "pgBackRest has not been found yet".to_string(),
        hint: "See nrt.health.".to_string(),
    })?;
    Ok(match &order.remote {
        Some(remote) => Place::of_plan(remote, &local.pgbackrest),
        None => local,
    })
}

/// Starts the restored server and looks at what it holds.
fn check(
    order: &Order,
    scratch: &Path,
    report: &Report,
    known: &Mutex<Known>,
) -> Result<(), Failure> {
    // The restore has removed where it worked, and with it perhaps where we are.
    std::env::set_current_dir(scratch).map_err(|error| Failure {
        message: format!("\"{}\" cannot be used: {error}", scratch.display()),
        hint: "Set nrt_backup.drill_directory to another directory.".to_string(),
    })?;
    let programs = Programs::find(&report.plan.version, Some(Path::new(&order.programs)))?;
    let settings = settings(order, scratch);
    let (data, work) = (scratch.join(DATA), Work::at(scratch));
    let mut server = Private::start(&programs, &data, &[], &work, &settings)?;
    server.wait()?;
    server.options = client_options(order);
    checks::disarm(&server, order)?;
    let checked = checks::amcheck(&server, &programs, order)?;
    note(known, |it| it.outcome.checked_relations = checked);
    if let Some(query) = &order.query {
        let result = checks::query(&server, order, query)?;
        note(known, |it| it.outcome.query_result = Some(result));
    }
    Ok(())
}

fn words(failure: &Failure) -> String {
    if failure.hint.is_empty() {
        failure.message.clone()
    } else {
        format!("{}\nHINT: {}", failure.message, failure.hint)
    }
}
