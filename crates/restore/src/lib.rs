//! Restores a cluster: plans, fetches, restores, recovers, and starts it.
//!
//! ```text
//! Place ──► Source ──► Catalog ──► Plan            nothing is touched up to here
//!   fetch    the chain of backups, into the work directory
//!   restore  pgBackRest, into the data directory
//!   replay   PostgreSQL, privately; Ahead gets the WAL before wal-get is asked for it
//!   finish   configuration, the local repository, the server's own start
//! ```
//!
//! Whatever interrupts it, the same command goes on: what was fetched is kept in the work
//! directory, what was restored is compared by pgBackRest.

mod configuration;
mod debian;
pub mod drill;
mod filling;
mod finishing;
mod pace;
mod place;
mod planning;
mod progress;
mod reach;
mod read;
mod recovery;
mod room;
mod server;
mod source;
mod spaces;
mod wal;
mod wal_get;
mod waldump;
mod work;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use nrt_core::lsn::Lsn;
use nrt_core::restore::Refusal;
use nrt_core::restore::drill::{Phases, Recovered};
use nrt_core::restore::plan::{Plan, Recovery};
use nrt_core::restore::target::{Action, Target};
use serde::{Deserialize, Serialize};

pub use pace::last as last_phases;
pub use place::{Existing, unusable};
pub use planning::{Planned, make_plan, read_catalog};
pub use read::OwnWal;
pub(crate) use room::{disk, needed};
pub(crate) use server::{Private, Programs};
pub use source::{Kind, Place};
pub use wal_get::wal_get;
pub use work::{Held, Work};

use finishing::Control;
use place::Known;
use wal::{SHELF, Shelved};

/// How many times another backup is chosen because something of the best one is missing.
const CHOICES: usize = 20;
/// What a restore has come to, in the work directory, for one that goes on with it.
const DONE: &str = "done.json";
/// Which repository what was fetched is brought to, in the work directory.
const KEPT: &str = "kept.json";
/// Which WAL of the cluster that is replaced is in the work directory.
const OWN: &str = "own.json";
/// How long `wal-get` tries by itself before PostgreSQL has to.
const TRYING: Duration = Duration::from_secs(10);
/// What happens after pgBackRest's restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing: the operator starts the server, which recovers then.
    No,
    /// It recovers, and is stopped again.
    Recover,
    /// It recovers, and is started.
    Yes,
}

/// What to restore, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where from.
    pub place: Place,
    /// The stanza, if there are several.
    pub stanza: Option<String>,
    /// To which point.
    pub target: Target,
    /// The data directory.
    pub data: PathBuf,
    /// What happens to what is in it.
    pub existing: Existing,
    /// The configuration to start with; the backup's own, or where it is found, if absent.
    pub config_file: Option<PathBuf>,
    /// Where it works; beside the data directory if absent.
    pub work: Option<PathBuf>,
    /// Other places for tablespaces: name or id, and directory.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// A directory below which all other tablespaces are; where they were, if absent.
    pub tablespaces_below: Option<PathBuf>,
    /// The databases that are restored; all, if there are none.
    pub databases: Vec<String>,
    /// Where PostgreSQL's programs are.
    pub bindir: Option<PathBuf>,
    /// Processes of pgBackRest's restore.
    pub processes: u32,
    /// What happens then.
    pub start: Start,
    /// Whether it is a copy that lives beside its original: neither archives nor ships. `None`: as
    /// it turns out.
    pub is_copy: Option<bool>,
    /// Settings of the server while it recovers, whatever its configuration says.
    pub settings: Vec<(&'static str, String)>,
    /// The restored server's repository; what its configuration says, if absent.
    pub repository: Option<PathBuf>,
    /// The original's data directory, if it is known to live on this machine. Otherwise the
    /// backup's own is looked at.
    pub original: Option<PathBuf>,
    /// The phases of the last restore on this machine.
    pub rates: Option<Phases>,
    /// Nothing is printed but the outcome.
    pub is_quiet: bool,
    /// The disks are not asked whether they have room.
    pub ignore_space: bool,
    /// Nothing of the restored configuration counts, but this file: whoever can write to the
    /// place may have written that configuration.
    pub only_configuration: Option<PathBuf>,
}

/// What a restore came to.
#[derive(Debug)]
pub struct Report {
    /// What was done.
    pub plan: Plan,
    /// Where it ended; `None` if nothing was started.
    pub recovered: Option<Recovered>,
    /// How long it took.
    pub phases: Phases,
    /// Where what was in the data directory is now.
    pub aside: Option<PathBuf>,
    /// With what the server is started, if its configuration lay elsewhere.
    pub configuration: Option<PathBuf>,
    /// Whether the server runs.
    pub is_running: bool,
    /// Why it neither archives nor ships, if so.
    pub copy_of: Option<String>,
    /// What else the operator should know.
    pub notes: Vec<String>,
    /// Whether the phases tell how fast a whole restore is.
    pub is_measured: bool,
    /// Why the configuration would not come back, of a drill, which has another one.
    pub fault: Option<Refusal>,
}

/// What a restore was asked for, as far as what is in the data directory then depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wanted {
    place: Place,
    stanza: Option<String>,
    target: Target,
    tablespaces: Vec<(String, PathBuf)>,
    tablespaces_below: Option<PathBuf>,
    databases: Vec<String>,
}

impl Wanted {
    fn of(request: &Request) -> Wanted {
        Wanted {
            place: request.place.clone(),
            stanza: request.stanza.clone(),
            target: request.target.clone(),
            tablespaces: request.tablespaces.clone(),
            tablespaces_below: request.tablespaces_below.clone(),
            databases: request.databases.clone(),
        }
    }
}

/// A restore that has recovered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    wanted: Wanted,
    plan: Plan,
    recovered: Recovered,
    phases: Phases,
    /// What is left is to start the server.
    finished: Option<Finished>,
}

/// A data directory that is its operator's, and how it was left to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Finished {
    data: Known,
    control: Control,
    is_copy: Option<bool>,
    aside: Option<PathBuf>,
    copy_of: Option<String>,
    configuration: Option<PathBuf>,
    notes: Vec<String>,
}

/// WAL of the cluster that is replaced, as far as it was kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    timeline: u32,
    flushed: Lsn,
    system_id: Option<u64>,
}

/// An error whose text has a hint.
pub fn told(error: anyhow::Error) -> Refusal {
    let text = format!("{error:#}");
    match text.split_once("\nHINT: ") {
        Some((message, hint)) => Refusal::new(message, hint),
        None => Refusal::new(text, ""),
    }
}

/// A path from the root on.
pub fn whole(path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path).map_err(|error| unusable(path, &error))
}

/// The directory in which a restore into `data` works, unless one is named.
pub fn work_directory(data: &Path) -> PathBuf {
    let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    data.with_file_name(format!(".{name}.nrt-restore"))
}

/// Restores.
///
/// # Errors
///
/// Why not. Before the plan is made nothing is touched; after that, the same request goes on where
/// it was interrupted.
pub fn run(
    request: &Request,
    show: &mut dyn FnMut(&Plan) -> Result<(), Refusal>,
) -> Result<Report, Refusal> {
    refuse_root()?;
    let directory = request.work.clone().unwrap_or_else(|| work_directory(&request.data));
    let work = Work::make(&directory).map_err(told)?;
    let held = hold(&work, &request.data)?;
    let outcome = Run { request, work: work.clone() }.run(held, show);
    match &outcome {
        // Later, `wal-get` reads what is in it.
        Ok(report) if request.start == Start::No || waits(&report.plan) => {}
        Ok(_) => work.remove(),
        Err(_) if work.is_of_use() => {}
        // Nothing was begun.
        Err(_) => work.remove(),
    }
    outcome
}

/// Makes this process the one that restores. What a killed one has left ends first: its server may
/// wait for WAL, which `wal-get` leaves to whoever restores, who waits for that server.
fn hold(work: &Work, data: &Path) -> Result<Held, Refusal> {
    if !work.is_held() && place::begun(work, data).is_some() {
        place::wait_for_stragglers(work, data)?;
    }
    work.hold().map_err(told)
}

/// Plans a restore, and looks whether anything is in its way, as [`run`] does before it begins.
/// Nothing is touched: root may do it.
///
/// # Errors
///
/// Why it would be refused.
pub fn prepare(request: &Request) -> Result<Plan, Refusal> {
    let directory = request.work.clone().unwrap_or_else(|| work_directory(&request.data));
    let work = Work::make(&directory).map_err(told)?;
    let held = hold(&work, &request.data)?;
    let mut shown = None;
    let outcome = Run { request, work: work.clone() }.run(held, &mut |plan| {
        shown = Some(plan.clone());
        // That is all that is wanted.
        Err(Refusal::new("", ""))
    });
    match (shown, outcome) {
        (Some(plan), _) => Ok(plan),
        (None, Ok(report)) => Ok(report.plan),
        (None, Err(refusal)) => Err(refusal),
    }
}

/// Refuses to go on as root: what it made would be of no use to the server.
pub fn refuse_root() -> Result<(), Refusal> {
    if rustix::process::geteuid().is_root() {
        return Err(Refusal::new(
            "PostgreSQL refuses to run as root",
            "Run this as the server's user: runuser -u postgres -- nrt-backup restore ...",
        ));
    }
    Ok(())
}

/// What is said where the operator's own server recovers.
fn unchecked(plan: &Plan) -> String {
    match plan.recovery {
        Recovery::End => format!(
            "nothing here compares where that ends with the plan, which ends at {}: the server's log \
             says \"redo done at\"",
            plan.wal.last().map(|it| it.to).unwrap_or_default()
        ),
        _ => "nothing here sees whether that comes to the target: PostgreSQL does not start where it \
              does not, and its log says \"recovery stopping\" where it does"
            .to_string(),
    }
}

fn waits(plan: &Plan) -> bool {
    plan.target.action != Action::Promote
}

/// Whether a restore into `data` that works in `directory` was begun and not finished.
pub fn has_begun(directory: &Path, data: &Path) -> bool {
    place::begun(&Work::at(directory), data).is_some()
}

struct Run<'a> {
    request: &'a Request,
    work: Work,
}

impl Run<'_> {
    fn run(
        &self,
        held: Held,
        show: &mut dyn FnMut(&Plan) -> Result<(), Refusal>,
    ) -> Result<Report, Refusal> {
        let request = self.request;
        let data = &request.data;
        let done = self.work.read::<Done>(DONE);
        let done = done.filter(|done| done.wanted == Wanted::of(request));
        if let Some(done) = &done
            && let Some(finished) = &done.finished
            && finished.is_copy == request.is_copy
            && finished.data == place::known(data)
        {
            let programs = Programs::find(&done.plan.version, request.bindir.as_deref())?;
            let (left, is_running) = (&finished.control, place::runs(data));
            match Control::of(data, &programs) {
                Ok(now) if now.is_left_at(left, is_running) => {
                    return self.only_start(done, finished, &programs, show);
                }
                Ok(now) if is_running && now.is_of_the_cluster(left) => {
                    return Err(self.nothing_left(finished)?);
                }
                // What cannot be read was not left like that.
                _ => {}
            }
        }
        let begun = place::begun(&self.work, data);
        let done = done.filter(|_| begun.is_some());
        if begun.is_some() {
            // A killed restore takes its server along, which needs a moment.
            place::wait_for_stragglers(&self.work, data)?;
        }
        place::check(data, request.existing, begun.as_ref())?;
        place::wait_for_stragglers(&self.work, data)?;
        self.work.forget_wal().map_err(told)?;
        // WAL of the cluster that is replaced and that was never archived is the newest there is.
        let (pg_wal, kept) = (data.join("pg_wal"), self.work.own());
        let own = match &begun {
            None => self.own_wal(&pg_wal)?,
            Some(_) => self.work.read::<Kept>(OWN).map(|it| OwnWal {
                directory: &kept,
                timeline: it.timeline,
                flushed: it.flushed,
                system_id: it.system_id,
            }),
        };
        let mut planned = make_plan(
            &request.place,
            request.stanza.as_deref(),
            &request.target,
            data,
            &self.work,
            own.as_ref(),
            request.bindir.as_deref(),
            request.rates.as_ref(),
        )?;
        let programs = Programs::find(&planned.plan.version, request.bindir.as_deref())?;
        let newer = self.newer(&planned, begun.as_ref());
        self.check_names(&planned, &newer)?;
        self.check_tablespaces(&planned, begun.as_ref())?;
        self.choose_configuration(&planned, &programs, begun.is_some())?;
        // A drill goes on: how much comes back is worth knowing.
        let is_drill = request.only_configuration.is_some();
        let mut fault = None;
        if begun.is_none() {
            fault = self.fault_of_kept(&planned, &programs)?;
        }
        if let Some(fault) = fault.take_if(|_| !is_drill) {
            return Err(fault);
        }
        if done.is_none() {
            self.check_end(&mut planned, &programs)?;
            if self.original(&planned, &programs).is_none() {
                self.check_newer(&mut planned, begun.as_ref())?;
            }
            self.check_room(&planned, begun.as_ref())?;
        }
        show(done.as_ref().map_or(&planned.plan, |done| &done.plan))?;

        let mut report = Report {
            plan: planned.plan.clone(),
            recovered: None,
            phases: Phases { plan: planned.seconds, ..Phases::default() },
            aside: None,
            configuration: None,
            is_running: false,
            copy_of: None,
            notes: Vec::new(),
            is_measured: begun.is_none() && request.existing != Existing::Delta,
            fault,
        };
        if let (Some(begun), Some(done)) = (&begun, done) {
            report.aside.clone_from(&begun.aside);
            report.configuration = self.known_configuration();
            (report.plan, report.phases) = (done.plan, done.phases);
            report.recovered = Some(done.recovered);
            return self.promoted(&planned, &programs, report);
        }
        self.spare_original(&planned, &programs)?;
        self.work.begin_to_fetch().map_err(told)?;
        self.fetch(&planned, &mut report.phases)?;
        self.forget_earlier(begun.is_some())?;
        let mut shelf = planned.shelf.clone();
        if let (Some(own), Some(_)) = (&own, &shelf.pg_wal) {
            if begun.is_none() {
                self.keep_own_wal(own, &shelf)?;
            }
            shelf.pg_wal = Some(kept.clone());
        }
        let mut begun = match begun {
            Some(mut begun) => {
                begun.backup.clone_from(&planned.plan.backup);
                begun.make_room(&self.work)?;
                begun
            }
            None => place::prepare(
                &self.work,
                data,
                request.existing,
                &planned.plan.backup,
                Utc::now(),
            )?,
        };
        report.aside.clone_from(&begun.aside);
        let recovers = request.start != Start::No && planned.plan.target.action != Action::Pause;
        self.restore(&planned, &mut begun, &mut report.phases)?;
        begun.move_up()?;
        report.configuration = self.configuration(&planned, &programs)?;
        if is_drill {
            if report.fault.is_none() {
                report.fault = self.fault_of_own(&planned, &programs)?;
            }
            self.forget_settings()?;
        }
        let place = request.place.clone();
        let shelved = Shelved { place, stanza: planned.source.stanza.clone(), shelf };
        self.work.write(SHELF, &shelved).map_err(told)?;
        self.prepare_recovery()?;
        // A replay to a target may end before it creates them.
        let is_certain = planned.plan.recovery == Recovery::End;
        if is_certain || !recovers {
            self.make_newer(&newer)?;
        }

        let path = self.work.path().display();
        match (request.start, planned.plan.target.action) {
            (Start::No, _) => {
                self.leave_the_original_alone(&planned, &mut report)?;
                let action = planned.plan.target.action;
                self.write_settings(&planned.plan, action, &programs, &mut report)?;
                self.settle_configuration(&planned, &programs, &mut report)?;
                self.mark(&planned, &report)?;
                place::hand_over(&self.work)?;
                report.notes.push(format!(
                    "recovery runs when the server is started; it needs \"{path}\" until then"
                ));
                report.notes.push(unchecked(&planned.plan));
                Ok(report)
            }
            (start, Action::Pause) => {
                self.leave_the_original_alone(&planned, &mut report)?;
                self.write_settings(&planned.plan, Action::Pause, &programs, &mut report)?;
                self.settle_configuration(&planned, &programs, &mut report)?;
                self.mark(&planned, &report)?;
                place::hand_over(&self.work)?;
                if start == Start::Yes {
                    // From now on `wal-get` works by itself.
                    drop(held);
                    self.start(&programs, &mut report)?;
                }
                report.notes.push(format!(
                    "the server replays up to the target and waits there: look at it, then SELECT \
                     pg_wal_replay_resume() lets it take writes. It needs \"{path}\" until then"
                ));
                report.notes.push(unchecked(&planned.plan));
                Ok(report)
            }
            (_, action) => {
                let only = request.only_configuration.as_deref();
                let config = config_words(only.or(report.configuration.as_deref()));
                let (private, phase) =
                    self.recover(&planned, &shelved.shelf, &programs, &config, &newer)?;
                report.phases.replay = phase;
                report.phases.replayed_bytes = planned.plan.wal_bytes;
                let said = private.told.clone();
                let recovered = self.recovered(&planned.plan, &programs, private)?;
                let reached =
                    self.check_reached(&planned, &shelved.shelf, recovered.timeline, &said)?;
                report.notes.extend(reached);
                report.recovered = Some(recovered.clone());
                if action == Action::Promote {
                    let done = Done {
                        wanted: Wanted::of(request),
                        plan: report.plan.clone(),
                        recovered,
                        phases: report.phases,
                        finished: None,
                    };
                    self.work.write(DONE, &done).map_err(told)?;
                    return self.promoted(&planned, &programs, report);
                }
                self.leave_the_original_alone(&planned, &mut report)?;
                // The next start is the operator's word to go on.
                self.write_settings(&planned.plan, Action::Promote, &programs, &mut report)?;
                self.settle_configuration(&planned, &programs, &mut report)?;
                self.mark(&planned, &report)?;
                place::hand_over(&self.work)?;
                report.notes.push(format!(
                    "the server stopped at the target: started again, it takes writes from there. \
                     It needs \"{path}\" until then"
                ));
                Ok(report)
            }
        }
    }

    /// Ends a restore that has been promoted.
    fn promoted(
        &self,
        planned: &Planned,
        programs: &Programs,
        mut report: Report,
    ) -> Result<Report, Refusal> {
        self.settle_newer(planned)?;
        // Last: whether the original lives shows by a sign of life that takes its time.
        self.leave_the_original_alone(planned, &mut report)?;
        self.keep_prepared(programs, &mut report)?;
        self.settle_configuration(planned, programs, &mut report)?;
        self.finish(planned, programs, &mut report)?;
        // A drill's journal has it, and a drill takes only what the machine has to spare.
        if report.is_measured && self.request.only_configuration.is_none() {
            pace::remember(&report.phases);
        }
        if let Some(recovered) = report.recovered.clone() {
            let data = &self.request.data;
            let finished = Finished {
                data: place::known(data),
                control: Control::of(data, programs)?,
                is_copy: self.request.is_copy,
                aside: report.aside.clone(),
                copy_of: report.copy_of.clone(),
                configuration: report.configuration.clone(),
                notes: report.notes.clone(),
            };
            let wanted = Wanted::of(self.request);
            let (plan, phases) = (report.plan.clone(), report.phases);
            let done = Done { wanted, plan, recovered, phases, finished: Some(finished) };
            self.work.write(DONE, &done).map_err(told)?;
        }
        place::hand_over(&self.work)?;
        if self.request.start == Start::Yes {
            self.start(programs, &mut report)?;
        }
        Ok(report)
    }

    /// Forgets how far a restore has come that worked in this directory before, and whose end is
    /// not this one's: what it was asked for, and what it found, says nothing of this one. What it
    /// fetched stays; so does what one that goes on needs.
    fn forget_earlier(&self, goes_on: bool) -> Result<(), Refusal> {
        let names: &[&str] =
            if goes_on { &[DONE] } else { &[DONE, KEPT, OWN, SHELF, configuration::PLACED] };
        self.work.forget(names).map_err(told)
    }

    /// Says that nothing is left to do of a restore whose server was started and has written since,
    /// and forgets that restore.
    fn nothing_left(&self, finished: &Finished) -> Result<Refusal, Refusal> {
        self.work.end_use().map_err(told)?;
        let aside = finished.aside.as_ref().map_or(String::new(), |aside| {
            format!(" What was there before is in \"{}\".", aside.display())
        });
        Ok(Refusal::new(
            format!(
                "a server runs in \"{}\": it is what this restore has made, and is in use",
                self.request.data.display()
            ),
            format!(
                "Nothing is left to do.{aside} To restore once more, stop it first, or restore to \
                 another directory (-D)."
            ),
        ))
    }

    /// What is left to do of a restore that was interrupted at its very end.
    fn only_start(
        &self,
        done: &Done,
        finished: &Finished,
        programs: &Programs,
        show: &mut dyn FnMut(&Plan) -> Result<(), Refusal>,
    ) -> Result<Report, Refusal> {
        show(&done.plan)?;
        place::hand_over(&self.work)?;
        let newly_named = self.newly_named_configuration()?;
        let mut report = Report {
            plan: done.plan.clone(),
            recovered: Some(done.recovered.clone()),
            phases: done.phases,
            aside: finished.aside.clone(),
            configuration: newly_named.or_else(|| finished.configuration.clone()),
            is_running: place::runs(&self.request.data),
            copy_of: finished.copy_of.clone(),
            notes: finished.notes.clone(),
            is_measured: false,
            fault: None,
        };
        if self.request.start == Start::Yes && !report.is_running {
            self.start(programs, &mut report)?;
        }
        Ok(report)
    }
}

fn config_words(configuration: Option<&Path>) -> Vec<OsString> {
    match configuration {
        Some(path) => vec!["-c".into(), format!("config_file={}", path.display()).into()],
        None => Vec::new(),
    }
}
