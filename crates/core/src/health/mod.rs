//! Judges whether the cluster is safe, and says what to do where it is not.
//!
//! Every check is always there, also when it is well: an operator sees what is watched.

mod drill;
mod offsite;

pub use offsite::{Process, SILENT, Shipping, UNRESTORABLE, heed_silence, is_off, is_paused};

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::archiving::Archiver;
use crate::inventory::{Disk, Failure};
use crate::job::Job;
use crate::layout::{self, LetGo, Restored};
use crate::machine::{Readiness, State};
use crate::pgbackrest::exit;
use crate::recovery::{self, Window};
use crate::restore::Refusal;
use crate::restore::drill::supervisor::Supervisor;
use crate::settings::Settings;
use crate::size::format_size;

/// The check of the worker's own files.
pub const STATE_DIRECTORY: &str = "state_directory";

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// Backups run, but something wants attention.
    Warning,
    /// Work can be lost.
    Critical,
}

impl Severity {
    /// All of them, the mildest first.
    pub const ALL: [Severity; 3] = [Severity::Ok, Severity::Warning, Severity::Critical];

    /// The name as the view shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do; empty where nothing is to be done.
    pub hint: String,
}

/// How WAL leaves `pg_wal`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Archiving {
    /// `archive_mode` is `on` or `always`.
    pub mode_on: bool,
    /// `wal_level` is `minimal`: the WAL holds too little to restore from.
    pub level_minimal: bool,
    /// Who archives.
    pub by: Archiver,
    /// The newest failure, if nothing was archived since.
    pub failing: Option<FailedPush>,
    /// Bytes of WAL written in a second, over the last minutes.
    pub wal_rate: Option<u64>,
    /// WAL that was let go.
    pub let_go: Option<LetGo>,
    /// What a restore said of this data directory, if it made it as a copy beside the original.
    pub copy: Option<Restored>,
}

impl Archiving {
    /// Why this server takes no backups: it is a copy, and pgBackRest takes none without archiving.
    pub fn aside(&self) -> Option<Failure> {
        let copy = self.copy.as_ref().filter(|_| !self.mode_on)?;
        Some(Failure {
            message: format!(
                "{COPY}{} at {}: it archives nothing and is not backed up",
                copy.source,
                moment(copy.at)
            ),
            hint: "To make it a server of its own: ALTER SYSTEM RESET archive_mode, restart the \
                   server, and run nrt-backup takeover if it is to ship: to the original's place, \
                   or to one of its own (nrt_backup.name)."
                .to_string(),
        })
    }
}

/// A segment that could not be archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedPush {
    /// The segment.
    pub segment: String,
    /// When it failed.
    pub at: DateTime<Utc>,
    /// pgBackRest's words and what to do, where our command caught them.
    pub words: Option<Failure>,
}

/// All that health is judged by.
#[derive(Debug)]
pub struct Findings<'a> {
    /// The time.
    pub now: DateTime<Utc>,
    /// The settings in force.
    pub settings: &'a Settings,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// What the machine knows.
    pub state: &'a State,
    /// How WAL leaves `pg_wal`.
    pub archiving: Archiving,
    /// Whether the database that pgBackRest connects to is there.
    pub database_exists: bool,
    /// Whether the server listens on a Unix socket, over which pgBackRest connects.
    pub has_socket: bool,
    /// How the worker before this one ended, if not by a clean shutdown, and when.
    pub unclean_end: Option<DateTime<Utc>>,
    /// Whether the server had a place for the reporter when it started.
    pub has_reporter: bool,
    /// How shipping goes.
    pub shipping: Shipping,
    /// What is known of drills.
    pub drills: &'a Supervisor,
    /// Why files in the state directory cannot be written, if they cannot.
    pub state_failure: Option<String>,
}

/// Runs every check.
pub fn evaluate(findings: &Findings<'_>) -> Vec<Check> {
    vec![
        worker(findings),
        pgbackrest(findings),
        stanza(findings),
        archiving(findings),
        backup(findings),
        wal_gap(findings),
        last_run(findings),
        offsite::remote(findings),
        offsite::shipping(findings),
        offsite::mirror(findings),
        drill::drill(findings),
        repository_disk(findings),
        wal_disk(findings),
        database(findings),
        time_zone(findings),
        state_directory(findings),
    ]
}

/// The worst of the checks.
pub fn worst(checks: &[Check]) -> Severity {
    checks.iter().map(|check| check.severity).max().unwrap_or(Severity::Ok)
}

/// The check that an operator sees on a server that did not load the library at its start.
pub fn not_loaded() -> Check {
    critical(
        "worker",
        "nrt_backup is not loaded at the start of the server: nothing is backed up",
        "Add nrt_backup to shared_preload_libraries in postgresql.conf and restart the server.",
    )
}

/// The check that an operator sees on a standby.
pub fn standby() -> Check {
    ok("worker", "starts when this server is promoted: backups are taken on the primary")
}

/// The check that an operator sees where the worker cannot be asked.
pub fn worker_missing() -> Check {
    critical(
        "worker",
        "the nrt_backup worker is not running: no backup starts",
        "Look for \"nrt_backup\" in the server's log; the worker is started again by itself, unless \
         the log says \"too many background workers\": then raise max_worker_processes and restart \
         the server.",
    )
}

/// The check that an operator sees where the server had no place for the worker when it started.
pub fn no_place_for_worker(max_worker_processes: &str) -> Check {
    critical(
        "worker",
        format!(
            "the nrt_backup worker could not be registered: other workers take all of \
             max_worker_processes, {max_worker_processes}; nothing is backed up"
        ),
        NO_PLACE,
    )
}

/// What to do where the server has no place for the worker.
pub const NO_PLACE: &str = "Raise max_worker_processes in postgresql.conf and restart the server.";

/// The check of how WAL leaves `pg_wal`.
pub const ARCHIVING: &str = "archiving";
/// What is said of a copy that was restored beside its original.
const COPY: &str = "this is a copy that was restored from ";

/// Whether the check says that this is a copy that is not to be backed up.
pub fn is_copy(archiving: &Check) -> bool {
    archiving.name == ARCHIVING && archiving.message.starts_with(COPY)
}

/// The check that an operator sees while the worker waits for a restore to end, which `marker`
/// tells.
pub fn recovering(marker: &str) -> Check {
    critical(
        "worker",
        "a restore has not ended: nothing is backed up",
        &format!(
            "Wait for nrt-backup restore. If it was broken off, run it again, or remove \"{marker}\" \
             to keep the server as it is."
        ),
    )
}

/// What an operator sees of the worker's own files where the checks are among those that cannot be
/// written.
pub fn outdated() -> Check {
    warning(
        STATE_DIRECTORY,
        "nrt_backup cannot write its checks: what the others say may be out of date",
        "Make room on the data directory's disk; the server's log has the reason.",
    )
}

fn check(name: &str, severity: Severity, message: impl Into<String>, hint: &str) -> Check {
    Check { name: name.to_string(), severity, message: message.into(), hint: hint.to_string() }
}

fn ok(name: &str, message: impl Into<String>) -> Check {
    check(name, Severity::Ok, message, "")
}

fn warning(name: &str, message: impl Into<String>, hint: &str) -> Check {
    check(name, Severity::Warning, message, hint)
}

fn critical(name: &str, message: impl Into<String>, hint: &str) -> Check {
    check(name, Severity::Critical, message, hint)
}

/// How long an end of the worker that was not a clean one is shown.
const UNCLEAN_END_SHOWN: TimeDelta = TimeDelta::hours(1);

fn worker(findings: &Findings<'_>) -> Check {
    match findings.unclean_end {
        Some(at) if (findings.now - at).abs() < UNCLEAN_END_SHOWN => warning(
            "worker",
            format!(
                "the worker was started again after it ended without a clean shutdown, seen at {}",
                moment(at)
            ),
            "Look in the server's log for the cause. This is shown until the next backup succeeds, \
             for at most an hour.",
        ),
        _ if !findings.has_reporter && !matches!(findings.shipping.process, Process::Off) => {
            warning(
                "worker",
                "running, but the nrt_backup reporter could not be registered: other workers take all of \
             max_worker_processes; while the worker waits for a disk, it is not known whether what \
             is committed is off-site",
                NO_PLACE,
            )
        }
        _ => ok("worker", "running"),
    }
}

fn pgbackrest(findings: &Findings<'_>) -> Check {
    let name = "pgbackrest";
    match findings.state.inventory().map(|inventory| &inventory.pgbackrest) {
        Some(Ok(version))
            if findings.state.inventory().is_some_and(|inventory| inventory.state_not_excluded) =>
        {
            warning(
                name,
                format!(
                    "version {version}; backups that are taken by hand hold the directory \
                     \"{}\", and with it secrets of this server",
                    layout::STATE_DIRECTORY
                ),
                &format!(
                    "Add exclude={}/ to the section [global:backup] of your pgBackRest \
                     configuration, or to where it has other exclusions.",
                    layout::STATE_DIRECTORY
                ),
            )
        }
        Some(Ok(version)) => ok(name, format!("version {version}")),
        Some(Err(failure)) => critical(name, &*failure.message, &failure.hint),
        None => match findings.state.look_failure() {
            Some(failure) => critical(name, &*failure.message, &failure.hint),
            None => ok(name, "being looked for"),
        },
    }
}

fn stanza(findings: &Findings<'_>) -> Check {
    let name = "stanza";
    let stanza = &findings.settings.stanza;
    let without_pgbackrest =
        findings.state.inventory().is_none_or(|inventory| inventory.pgbackrest.is_err());
    match findings.state.readiness() {
        Readiness::Blocked(_) if without_pgbackrest => {
            let stanza = if stanza.is_empty() { "it" } else { &format!("\"{stanza}\"") };
            let message = format!("{stanza} cannot be looked at without pgBackRest");
            critical(name, message, "See the check \"pgbackrest\".")
        }
        Readiness::Blocked(failure) => critical(name, &*failure.message, &failure.hint),
        Readiness::Ready => match findings.state.look_failure() {
            Some(failure) => warning(name, &*failure.message, &failure.hint),
            None => ok(name, format!("\"{stanza}\" belongs to this cluster")),
        },
        Readiness::Unknown if findings.state.aside().is_some() => {
            ok(name, "not needed: this server takes no backups")
        }
        Readiness::Unknown => ok(name, format!("\"{stanza}\" is being looked at")),
    }
}

fn archiving(findings: &Findings<'_>) -> Check {
    let name = ARCHIVING;
    let archiving = &findings.archiving;
    if archiving.level_minimal {
        return critical(
            name,
            "wal_level is minimal: WAL holds too little to restore a backup with it",
            "Remove wal_level from the configuration, or set it to replica, and restart the server.",
        );
    }
    if let Some(Failure { message, hint }) = archiving.aside() {
        return warning(name, message, &hint);
    }
    match &archiving.by {
        Archiver::Both(library) => critical(
            name,
            format!(
                "archive_library is \"{library}\" beside an archive_command, and PostgreSQL refuses \
                 both: its archiver ends again and again, and nothing is archived"
            ),
            "Remove archive_library from the configuration and reload it (ALTER SYSTEM RESET \
             archive_library; SELECT pg_reload_conf();) to have pgBackRest archive. To have the \
             library archive: ALTER SYSTEM SET archive_command = ''; SELECT pg_reload_conf(); no \
             backup can be taken then.",
        ),
        Archiver::Library(library) => critical(
            name,
            format!(
                "archive_library is \"{library}\": WAL is not archived by pgBackRest, and no backup \
                 can be taken"
            ),
            "Remove archive_library, archive_command and archive_mode from the configuration and \
             restart the server to have nrt_backup archive.",
        ),
        _ if !archiving.mode_on => critical(
            name,
            "archive_mode is off: no WAL is archived and no backup can be restored",
            "Remove archive_mode from the configuration, or set it to on, and restart the server.",
        ),
        Archiver::Foreign(command) => critical(
            name,
            format!("WAL is not archived by pgBackRest but by \"{command}\""),
            "Remove archive_command from the configuration and restart the server to have \
             nrt_backup archive, or call pgbackrest archive-push in your command.",
        ),
        Archiver::Nobody => critical(
            name,
            format!(
                "archive_command is empty: WAL stays in pg_wal and no backup can be restored{}",
                time_left(findings)
            ),
            "Remove archive_command from the configuration and restart the server to have \
             nrt_backup archive.",
        ),
        Archiver::Ours | Archiver::PgBackRest => match (let_go(findings), &archiving.failing) {
            (Some(let_go), _) => segments_let_go(let_go),
            (None, Some(failed)) => segment_failed(failed, &time_left(findings)),
            (None, None) => ok(name, "pgBackRest archives finished segments"),
        },
    }
}

/// The WAL that was let go, as long as no backup has begun behind it.
fn let_go<'a>(findings: &'a Findings<'_>) -> Option<&'a LetGo> {
    let let_go = findings.archiving.let_go.as_ref()?;
    let made_up = findings.state.inventory().is_some_and(|inventory| {
        inventory
            .backups_of(findings.system_id)
            .any(|backup| backup.start_lsn.is_some_and(|start| let_go.end <= start))
    });
    (!made_up).then_some(let_go)
}

fn segments_let_go(LetGo { first, last, count, at, failure, .. }: &LetGo) -> Check {
    let which = if first == last { first.clone() } else { format!("{first} to {last}") };
    critical(
        ARCHIVING,
        format!(
            "{count} finished segments of WAL ({which}) were let go and are in no archive, the last \
             at {}, because more waited than nrt_backup.archive_queue_max: {}",
            moment(*at),
            failure.message
        ),
        &format!(
            "{} No backup before that can be restored to a later state from the repository. When \
             archiving works again, SELECT nrt_backup_now('full').",
            failure.hint
        ),
    )
}

/// In which time the disk of pg_wal is full, where nothing leaves it. In steps that grow: what is
/// said must not change all the time.
fn time_left(findings: &Findings<'_>) -> String {
    const HOURS: [u64; 9] = [1, 2, 4, 8, 16, 24, 48, 96, 192];
    let disk = findings.state.inventory().and_then(|inventory| inventory.wal_disk);
    let rate = findings.archiving.wal_rate.filter(|rate| *rate > 0);
    let Some((disk, rate)) = disk.zip(rate) else { return String::new() };
    let hours = disk.available / rate / 3600;
    match HOURS.into_iter().find(|limit| hours < *limit) {
        Some(1) => "; at the present rate its disk is full in less than an hour".to_string(),
        Some(limit) => format!("; at the present rate its disk is full in less than {limit} hours"),
        None => String::new(),
    }
}

fn segment_failed(FailedPush { segment, at, words }: &FailedPush, time_left: &str) -> Check {
    let (words, hint) = match words {
        Some(failure) => (format!(": {}", failure.message), failure.hint.as_str()),
        None => (String::new(), ""),
    };
    let hint = if hint.is_empty() { "The server's log has the command's own words." } else { hint };
    let message = format!(
        "segment {segment} could not be archived at {}{words}: WAL stays in pg_wal{time_left}",
        moment(*at)
    );
    critical(ARCHIVING, message, hint)
}

/// What to do while backups are paused.
const RESUME: &str = "SELECT nrt_resume('backups') lets them start again.";

fn backup(findings: &Findings<'_>) -> Check {
    let name = "backup";
    let state = findings.state;
    if state.aside().is_some() {
        return ok(name, "none is taken of a copy: see the check \"archiving\"");
    }
    let unreadable =
        || critical(name, "not known: the repository cannot be looked at", "See the other checks.");
    let Some(inventory) = state.inventory() else {
        return match state.look_failure() {
            Some(_) => unreadable(),
            None => unknown(name),
        };
    };
    if inventory.repository.is_err() {
        return unreadable();
    }
    if let Some(job) = state.unlisted() {
        let label = job.label.as_ref().map_or(String::new(), |label| format!(", {label},"));
        return critical(
            name,
            format!(
                "pgBackRest reported the {} backup of job {}{label} as taken, but the repository \
                 does not list it",
                job.kind.as_str(),
                job.id
            ),
            "Look at the repository with pgbackrest info, and see that nothing else removes its \
             files. SELECT nrt_backup_now('full') takes another backup.",
        );
    }
    if !inventory.has_base(findings.system_id) {
        return match state.running() {
            Some(_) => warning(
                name,
                "no full backup yet: the first one is running",
                "Watch it in nrt.progress.",
            ),
            None if *state.readiness() == Readiness::Unknown => unknown(name),
            None if state.is_paused() => critical(
                name,
                "no full backup, and backups are paused: the cluster cannot be restored",
                RESUME,
            ),
            None => critical(
                name,
                "no full backup: the cluster cannot be restored",
                "It starts by itself when nothing prevents it; see the other checks.",
            ),
        };
    }
    let Some(last) = inventory.backups_of(findings.system_id).next_back() else {
        return ok(name, "being looked for");
    };
    let age = findings.now - last.stop_time;
    let limit = TimeDelta::seconds(findings.settings.max_backup_age);
    let message = format!("the last backup, {}, ended at {}", last.label, moment(last.stop_time));
    if is_future(findings.now, last.stop_time) {
        return warning(
            name,
            format!("{message}, which is in the future: its age is not known"),
            "The machine's clock was ahead when the backup was taken, or is behind now. Set the \
             clock, and take a backup with SELECT nrt_backup_now().",
        );
    }
    if limit > TimeDelta::zero() && age > limit {
        return critical(
            name,
            format!("{message}: longer ago than nrt_backup.max_backup_age"),
            "Take one with SELECT nrt_backup_now(), and see nrt.backup_history for why none ran.",
        );
    }
    if last.error == Some(true) {
        return critical(
            name,
            format!("{message}, and pgBackRest found damaged pages in it"),
            "Check the cluster with pg_amcheck and its disks; pgbackrest info --set has the files.",
        );
    }
    if state.is_paused() {
        return warning(name, format!("backups are paused; {message}"), RESUME);
    }
    ok(name, message)
}

fn wal_gap(findings: &Findings<'_>) -> Check {
    let name = "wal_gap";
    let Some(inventory) = findings.state.inventory() else { return ok(name, "none") };
    if let Ok(repository) = &inventory.repository
        && let Some(Failure { message, hint }) = &repository.histories_missing
    {
        return critical(name, &**message, hint);
    }
    if let Some(Refusal { message, hint, .. }) =
        recovery::nothing_restorable(inventory, findings.system_id)
    {
        return critical(
            name,
            format!("nothing can be restored from the repository: {message}"),
            &format!("Take a backup with SELECT nrt_backup_now('full'). {hint}"),
        );
    }
    let windows = recovery::windows(inventory, findings.system_id, None);
    let gap = |window: &Window| window.gap_until.map(|until| (window.to, until));
    match windows.last().and_then(gap) {
        Some((from, until)) => critical(
            name,
            format!(
                "WAL from {from} to {until} is missing from the archive: nothing after {from} can \
                 be restored"
            ),
            "Take a backup with SELECT nrt_backup_now(): from its end on the cluster can be \
             restored again.",
        ),
        None if windows.iter().any(|window| window.gap_until.is_some()) => {
            ok(name, "none since the last backup; nrt.recovery_window shows those before it")
        }
        None => ok(name, "none"),
    }
}

fn last_run(findings: &Findings<'_>) -> Check {
    let name = "last_run";
    match findings.state.last_failure() {
        None => ok(name, "no failure since the last backup"),
        Some(Job { id, kind, message, hint, .. }) => {
            let words = message.as_deref().unwrap_or("no reason known");
            let failed = format!("job {id} ({kind}) failed: {words}");
            let hint = hint.as_deref().unwrap_or("See nrt.backup_history.");
            if exit::is_kept_out(words).is_some() {
                // The next one fails as well, until an operator has changed something.
                return critical(name, format!("no backup can be taken: {failed}"), hint);
            }
            warning(name, failed, hint)
        }
    }
}

fn repository_disk(findings: &Findings<'_>) -> Check {
    let disk = findings.state.inventory().and_then(|inventory| inventory.repository_disk);
    let hint = "Make room or shorten nrt_backup.retention_days; nrt_backup.min_disk_free sets when \
                this is reported.";
    room(findings, "repository_disk", "the repository", disk, hint)
}

fn wal_disk(findings: &Findings<'_>) -> Check {
    let disk = findings.state.inventory().and_then(|inventory| inventory.wal_disk);
    let hint = "Make room. WAL piles up while it cannot be archived: see the check \"archiving\". \
                nrt_backup.min_disk_free sets when this is reported.";
    room(findings, "wal_disk", "pg_wal", disk, hint)
}

fn room(findings: &Findings<'_>, name: &str, what: &str, disk: Option<Disk>, hint: &str) -> Check {
    let Some(disk) = disk else { return ok(name, "not known") };
    let free = disk.percent_free();
    // Not the bytes: they change all the time, and an idle server writes nothing.
    let message = format!("{free} % of {} free below {what}", format_size(disk.total));
    let wanted = u64::from(findings.settings.min_disk_free);
    if free >= wanted {
        ok(name, message)
    } else if free * 3 >= wanted {
        warning(name, message, hint)
    } else {
        critical(name, message, hint)
    }
}

fn database(findings: &Findings<'_>) -> Check {
    let (name, database) = ("database", &findings.settings.database);
    if !findings.has_socket && findings.settings.pgbackrest_config.is_none() {
        return critical(
            name,
            "unix_socket_directories is empty: pgBackRest cannot connect, and no backup can be taken",
            "Set unix_socket_directories to a directory of the server's user, say \
             '/var/run/postgresql', and restart the server.",
        );
    }
    if findings.database_exists {
        return ok(name, format!("pgBackRest connects to \"{database}\""));
    }
    critical(
        name,
        format!("the database \"{database}\" does not exist: pgBackRest cannot connect"),
        "Create it, or set nrt_backup.database to one that exists.",
    )
}

fn time_zone(findings: &Findings<'_>) -> Check {
    let name = "time_zone";
    match &findings.settings.unknown_zone {
        None => ok(name, format!("schedules are read in {}", findings.settings.zone)),
        Some(zone) => warning(
            name,
            format!("the time zone \"{zone}\" has no IANA name: schedules are read in UTC"),
            "Set nrt_backup.timezone, for example to Europe/Berlin.",
        ),
    }
}

fn state_directory(findings: &Findings<'_>) -> Check {
    let name = STATE_DIRECTORY;
    match &findings.state_failure {
        None => ok(name, "writable"),
        Some(failure) => warning(
            name,
            format!("nrt_backup cannot write its state: {failure}"),
            "Make room on the data directory's disk. Backups go on; their history is kept in \
             memory until it can be written.",
        ),
    }
}

/// What is said of the backups before the repository was looked at for the first time.
const UNKNOWN: &str = "not known yet whether there is a backup: the repository is being looked at";

/// The check of the backups before the repository was looked at for the first time: no server is
/// called protected that may have no backup at all.
fn unknown(name: &str) -> Check {
    warning(
        name,
        UNKNOWN,
        "Wait for the first look to end. If it does not, the repository's file system may hang.",
    )
}

/// The checks to log: those whose severity is another one than was logged last. `logged` has that by
/// the check's name, and is brought up to date. A check that is not known yet is not logged: every
/// start of a server would log a warning and its end.
pub fn changed<'a>(checks: &'a [Check], logged: &mut BTreeMap<String, Severity>) -> Vec<&'a Check> {
    let known = checks.iter().filter(|check| check.message != UNKNOWN);
    known
        .filter(|check| {
            let before = logged.insert(check.name.clone(), check.severity);
            before.unwrap_or(Severity::Ok) != check.severity
        })
        .collect()
}

/// How far the clock may be behind the time of an event without having been set back: pgBackRest
/// and the file system of the repository may have other clocks.
const CLOCK_SLACK: TimeDelta = TimeDelta::minutes(5);

/// Whether an event of the past seems to lie in the future, because the clock was set back since
/// then. Its age is not known.
fn is_future(now: DateTime<Utc>, event: DateTime<Utc>) -> bool {
    event - now > CLOCK_SLACK
}

fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::kind::BackupType;
    use crate::lsn::Lsn;
    use crate::machine::Event;
    use crate::machine::tests::world::{
        End, OTHER, OURS, World, at, failure, segments, unscheduled,
    };
    use crate::restore::drill::supervisor::Memory;
    use Severity::{Critical, Warning};

    const CHECKS: [&str; 16] = [
        "worker",
        "pgbackrest",
        "stanza",
        "archiving",
        "backup",
        "wal_gap",
        "last_run",
        "remote",
        "shipping",
        "mirror",
        "drill",
        "repository_disk",
        "wal_disk",
        "database",
        "time_zone",
        "state_directory",
    ];

    static NO_DRILLS: LazyLock<Supervisor> =
        LazyLock::new(|| Supervisor::new(Memory::default(), Vec::new(), DateTime::UNIX_EPOCH).0);

    fn let_go_up_to(end: Lsn) -> LetGo {
        let failure = failure("disk full");
        LetGo {
            first: "5".to_string(),
            last: "B".to_string(),
            count: 7,
            at: at("2026-03-10T11:00:00"),
            end,
            failure,
        }
    }

    /// What is found in a world where nothing else is wrong.
    pub(super) fn found(w: &World) -> Findings<'_> {
        Findings {
            now: w.now,
            settings: &w.settings,
            system_id: OURS,
            state: w.state(),
            archiving: Archiving { mode_on: true, ..Archiving::default() },
            database_exists: true,
            has_socket: true,
            unclean_end: None,
            has_reporter: true,
            shipping: Shipping::default(),
            drills: &NO_DRILLS,
            state_failure: None,
        }
    }

    /// Checks that just these checks are not well, with some words of their messages, that each
    /// of them says what to do, and that the others ask for nothing.
    #[track_caller]
    pub(super) fn expect(findings: &Findings<'_>, expected: &[(&str, Severity, &str)]) {
        let checks = evaluate(findings);
        let names: Vec<_> = checks.iter().map(|check| &*check.name).collect();
        assert_eq!(names, CHECKS);
        for check in &checks {
            assert!(!check.message.is_empty(), "{check:#?}");
            // Nothing is wrong with a server that has never been restored, but it can be tried.
            let asks = check.severity > Severity::Ok || check.message == drill::UNTRIED;
            assert_eq!(check.hint.is_empty(), !asks, "{check:#?}");
        }
        let amiss: Vec<_> = checks.iter().filter(|it| it.severity != Severity::Ok).collect();
        let same = amiss.len() == expected.len()
            && amiss.iter().zip(expected).all(|(check, (name, severity, words))| {
                check.name == *name && check.severity == *severity && check.message.contains(words)
            });
        assert!(same, "{amiss:#?} instead of {expected:#?}");
        let severities = expected.iter().map(|(_, severity, _)| *severity);
        assert_eq!(worst(&checks), severities.max().unwrap_or(Severity::Ok));
    }

    #[test]
    fn a_protected_server_is_well() {
        expect(&found(&World::protected()), &[]);
    }

    #[test]
    fn a_server_that_starts_is_not_blamed_for_what_it_has_not_seen_yet() {
        let mut w = World::new(unscheduled());
        // It is not called protected either.
        let unknown = [("backup", Warning, "not known yet whether there is a backup")];
        expect(&found(&w), &unknown);
        w.end_look();
        expect(&found(&w), &unknown);
        w.end_job(End::Success);
        w.end_look();
        expect(&found(&w), &[("backup", Warning, "the first one is running")]);
        w.settle();
        expect(&found(&w), &[]);
    }

    #[test]
    fn what_is_not_known_yet_is_not_logged() {
        let mut logged = BTreeMap::new();
        let mut names = |checks: &[Check]| -> Vec<(String, Severity)> {
            let changed = changed(checks, &mut logged);
            changed.into_iter().map(|it| (it.name.clone(), it.severity)).collect()
        };
        let check = |severity| vec![check("backup", severity, "because", "")];
        let well = evaluate(&found(&World::protected()));
        let starts = evaluate(&found(&World::new(unscheduled())));
        assert!(starts.iter().any(|it| it.severity == Warning));
        for checks in [&starts, &well, &starts, &well] {
            assert_eq!(names(checks), []);
        }
        assert_eq!(names(&check(Critical)), [("backup".to_string(), Critical)]);
        assert_eq!(names(&check(Critical)), []);
        // It is still critical as far as the log says.
        assert_eq!(names(&starts), []);
        assert_eq!(names(&well), [("backup".to_string(), Severity::Ok)]);
    }

    #[test]
    fn what_the_worker_finds_by_itself() {
        type Change = fn(&mut Findings<'_>);
        type Case = (Change, &'static [(&'static str, Severity, &'static str)]);
        let cases: [Case; 23] = [
            (
                |it| it.unclean_end = Some(it.now - TimeDelta::seconds(3599)),
                &[("worker", Warning, "seen at 2026-03-10 11:00:31 UTC")],
            ),
            (|it| it.unclean_end = Some(it.now - TimeDelta::seconds(3600)), &[]),
            (
                |it| it.archiving.level_minimal = true,
                &[("archiving", Critical, "wal_level is minimal")],
            ),
            (|it| it.archiving.mode_on = false, &[("archiving", Critical, "archive_mode is off")]),
            (
                |it| it.archiving = Archiving { copy: Some(copy()), ..Archiving::default() },
                &[("archiving", Warning, "restored from s3:b/main at 2026-03-10 11:00:00 UTC")],
            ),
            // It was made a server of its own.
            (|it| it.archiving.copy = Some(copy()), &[]),
            (
                |it| it.archiving.by = Archiver::Nobody,
                &[("archiving", Critical, "archive_command is empty")],
            ),
            (
                |it| it.archiving.by = Archiver::Foreign("cp %p /x/%f".to_string()),
                &[("archiving", Critical, "by \"cp %p /x/%f\"")],
            ),
            (
                |it| it.archiving.by = Archiver::Library("basic_archive".to_string()),
                &[("archiving", Critical, "archive_library is \"basic_archive\": WAL is not")],
            ),
            (
                |it| {
                    let by = Archiver::Library("basic_archive".to_string());
                    it.archiving = Archiving { by, mode_on: false, ..Archiving::default() };
                },
                &[("archiving", Critical, "archive_library is \"basic_archive\"")],
            ),
            (
                |it| it.archiving.by = Archiver::Both("basic_archive".to_string()),
                &[("archiving", Critical, "its archiver ends again and again")],
            ),
            (|it| it.archiving.by = Archiver::PgBackRest, &[]),
            (
                |it| it.archiving.failing = Some(failed_push(None)),
                &[(
                    "archiving",
                    Critical,
                    "segment 7 could not be archived at 2026-03-10 11:59:59",
                )],
            ),
            (
                |it| it.archiving.failing = Some(failed_push(Some(failure("disk full")))),
                &[("archiving", Critical, "11:59:59 UTC: disk full")],
            ),
            (|it| it.has_socket = false, &[("database", Critical, "no backup can be taken")]),
            (
                |it| {
                    // Of the 50 GB that are free, 3 MB a second are written.
                    it.archiving.wal_rate = Some(3 << 20);
                    it.archiving.failing = Some(failed_push(Some(failure("disk full"))));
                },
                &[(
                    "archiving",
                    Critical,
                    "full: WAL stays in pg_wal; at the present rate its disk \
                    is full in less than 8 hours",
                )],
            ),
            (
                |it| {
                    it.archiving.wal_rate = Some(1);
                    it.archiving.failing = Some(failed_push(None));
                },
                &[("archiving", Critical, "11:59:59 UTC: WAL stays in pg_wal")],
            ),
            (
                |it| it.archiving.let_go = Some(let_go_up_to(Lsn(u64::MAX))),
                &[("archiving", Critical, "7 finished segments of WAL (5 to B) were let go")],
            ),
            // The backup began behind it.
            (|it| it.archiving.let_go = Some(let_go_up_to(Lsn(0x100_0000))), &[]),
            (
                |it| it.database_exists = false,
                &[("database", Critical, "\"postgres\" does not exist")],
            ),
            (
                |it| it.state_failure = Some("history.jsonl: no space".to_string()),
                &[("state_directory", Warning, "history.jsonl: no space")],
            ),
            // max_backup_age is 26 hours.
            (|it| it.now += TimeDelta::hours(26), &[]),
            (
                |it| it.now += TimeDelta::hours(26) + TimeDelta::seconds(1),
                &[("backup", Critical, "ended at 2026-03-10 12:00:30 UTC: longer ago")],
            ),
        ];
        let w = World::protected();
        for (change, expected) in cases {
            let mut findings = found(&w);
            change(&mut findings);
            expect(&findings, expected);
        }
    }

    fn copy() -> Restored {
        Restored {
            at: at("2026-03-10T11:00:00"),
            backup: "20260310-000001F".to_string(),
            source: "s3:b/main".to_string(),
            timeline: 2,
            lsn: Lsn(0x500_0100),
            last_commit: None,
            is_copy: true,
            full_taken: None,
            target: None,
            phases: None,
            backups: None,
        }
    }

    fn failed_push(words: Option<Failure>) -> FailedPush {
        FailedPush { segment: "7".to_string(), at: at("2026-03-10T11:59:59"), words }
    }

    #[test]
    fn settings_that_cannot_be_followed_or_switch_a_check_off() {
        let mut w = World::protected();
        w.settings.max_backup_age = 0;
        expect(&Findings { now: w.now + TimeDelta::days(1000), ..found(&w) }, &[]);
        w.settings.unknown_zone = Some("<+03>-03".to_string());
        expect(&found(&w), &[("time_zone", Warning, "\"<+03>-03\" has no IANA name")]);
    }

    #[test]
    fn what_a_look_finds_clears_when_it_is_mended() {
        type Change = fn(&mut World);
        type Case = (Change, Change, &'static [(&'static str, Severity, &'static str)]);
        let cases: [Case; 6] = [
            (
                |w| w.reality.pgbackrest = Some(failure("there is no pgbackrest")),
                |w| w.reality.pgbackrest = None,
                &[
                    ("pgbackrest", Critical, "there is no pgbackrest"),
                    ("stanza", Critical, "cannot be looked at"),
                    ("backup", Critical, "not known"),
                ],
            ),
            (
                |w| w.reality.state_not_excluded = true,
                |w| w.reality.state_not_excluded = false,
                &[("pgbackrest", Warning, "hold the directory \"nrt_backup\"")],
            ),
            (
                |w| w.reality.unreadable = Some(failure("permission denied")),
                |w| w.reality.unreadable = None,
                &[("stanza", Critical, "permission denied"), ("backup", Critical, "not known")],
            ),
            (
                |w| w.reality.owner = OTHER,
                |w| w.reality.owner = OURS,
                &[
                    ("stanza", Critical, "the cluster with system identifier 7300000000000000002"),
                    ("backup", Critical, "no full backup"),
                ],
            ),
            (
                |w| w.reality.backups[0]["error"] = true.into(),
                |w| w.reality.backups[0]["error"] = false.into(),
                &[("backup", Critical, "damaged pages")],
            ),
            (
                |w| w.reality.archive = vec![segments(1, 4), segments(5, 9)],
                |w| w.reality.archive = vec![segments(1, 9)],
                &[("wal_gap", Critical, "WAL from 0/4000000 to 0/5000000 is missing")],
            ),
        ];
        for (breaks, mends, expected) in cases {
            let mut w = World::protected();
            breaks(&mut w);
            w.pass(TimeDelta::minutes(1));
            expect(&found(&w), expected);
            mends(&mut w);
            w.pass(TimeDelta::minutes(1));
            expect(&found(&w), &[]);
        }
    }

    #[test]
    fn a_gap_before_the_last_backup_is_no_danger_any_more() {
        let mut w = World::protected();
        w.reality.archive = vec![segments(1, 2), segments(3, 9)];
        w.pass(TimeDelta::minutes(1));
        expect(&found(&w), &[("wal_gap", Critical, "nothing after 0/2000000 can be restored")]);
        w.reality.taken = 4;
        w.request(BackupType::Incr);
        w.settle();
        let last_stop = w.state().inventory().and_then(|inventory| inventory.last_stop(OURS));
        assert_eq!(last_stop, Some(Lsn(0x500_0100)));
        expect(&found(&w), &[]);
        assert!(wal_gap(&found(&w)).message.contains("nrt.recovery_window shows"));
    }

    #[test]
    fn a_stanza_that_cannot_be_created() {
        for (end, words) in [
            (End::Passing, "could not create the stanza \"main\": unable to query"),
            (End::Success, "created the stanza \"main\", but it is not in the repository"),
        ] {
            let mut w = World::new(unscheduled());
            w.reality.full_disk = true;
            w.end_look();
            w.end_job(end);
            w.end_look();
            expect(
                &found(&w),
                &[("stanza", Critical, words), ("backup", Critical, "no full backup")],
            );
        }
    }

    #[test]
    fn a_look_that_fails() {
        let mut w = World::new(unscheduled());
        w.fail_look();
        let amiss = [
            ("pgbackrest", Critical, "the look hangs"),
            ("stanza", Critical, "without pgBackRest"),
            ("backup", Critical, "not known"),
        ];
        expect(&found(&w), &amiss);
        let mut w = World::protected();
        w.step(Event::CheckAsked);
        w.fail_look();
        expect(&found(&w), &[("stanza", Warning, "the look hangs")]);
        w.pass(TimeDelta::minutes(1));
        expect(&found(&w), &[]);
    }

    #[test]
    fn a_backup_that_failed_is_shown_until_one_succeeds() {
        let mut w = World::protected();
        w.request(BackupType::Diff);
        w.end_job(End::Passing);
        expect(&found(&w), &[("last_run", Warning, "job 2 (diff) failed: unable to query")]);
        w.request(BackupType::Diff);
        w.settle();
        expect(&found(&w), &[]);
        // A first one that fails leaves the server without any.
        let mut w = World::unprotected();
        w.end_look();
        w.end_job(End::Lasting);
        let amiss =
            [("backup", Critical, "no full backup"), ("last_run", Warning, "wrong cluster")];
        expect(&found(&w), &amiss);
    }

    #[test]
    fn a_backup_from_the_future_is_not_fresh() {
        let w = World::protected();
        let ended = "ended at 2026-03-10 12:00:30 UTC, which is in the future";
        let back = |time| Findings { now: w.now - time, ..found(&w) };
        expect(&back(TimeDelta::minutes(5)), &[]);
        expect(&back(TimeDelta::hours(1)), &[("backup", Warning, ended)]);
        expect(&back(TimeDelta::days(1000)), &[("backup", Warning, ended)]);
    }

    #[test]
    fn a_backup_that_is_not_listed_is_a_fault() {
        let mut w = World::unprotected();
        w.end_look();
        w.reality.unlisted = true;
        w.settle();
        let words = "the full backup of job 1, 20260310-000001F, as taken";
        expect(&found(&w), &[("backup", Critical, words)]);
        w.reality.unlisted = false;
        w.pass(TimeDelta::minutes(1));
        expect(&found(&w), &[]);
    }

    #[test]
    fn disks_are_judged_by_what_is_free() {
        for (free, wanted, severity) in [
            (100, 10, None),
            (10, 10, None),
            (9, 10, Some(Warning)),
            (4, 10, Some(Warning)),
            (3, 10, Some(Critical)),
            (0, 10, Some(Critical)),
            (0, 0, None),
        ] {
            let mut w = World::protected();
            w.settings.min_disk_free = wanted;
            w.reality.disk = Disk { total: 100 << 30, available: free << 30 };
            w.pass(TimeDelta::minutes(1));
            let words = format!("{free} % of ");
            let amiss =
                severity.map(|it| ["repository_disk", "wal_disk"].map(|name| (name, it, &*words)));
            expect(&found(&w), amiss.as_ref().map_or(&[], |it| it));
        }
        let w = World::protected();
        assert_eq!(room(&found(&w), "wal_disk", "pg_wal", None, "").severity, Severity::Ok);
    }

    #[test]
    fn what_is_said_in_place_of_the_checks_is_about_one_of_them_and_says_what_to_do() {
        for check in [
            worker_missing(),
            no_place_for_worker("1"),
            outdated(),
            recovering("/d/nrt_backup/recovering"),
        ] {
            assert!(CHECKS.contains(&&*check.name), "{check:?}");
            assert!(check.severity > Severity::Ok && !check.hint.is_empty(), "{check:?}");
        }
    }
}
