//! Shares the present between the worker and the SQL functions: what runs, what is asked for.
//!
//! Plain data of fixed size behind one lock, held only to copy. What happened is in the history's
//! file, and what the repository holds in the inventory's; both are read by whoever shows them.

#![allow(unsafe_code)]

use chrono::{DateTime, Utc};
use nrt_core::crontab::Tz;
use nrt_core::kind::{BackupType, Trigger};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::postgres;

// SAFETY: the name is used once in this library, and begins with its name.
static SHARED: PgLwLock<Shared> = unsafe { PgLwLock::new(c"nrt_backup") };

// SAFETY: as above.
static REPORTS: PgAtomic<Reports> = unsafe { PgAtomic::new(c"nrt_backup_reports") };

/// Set in the postmaster and inherited by every process: whether `SHARED` is there.
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// How many callers can ask at the same moment; the next one waits for a place.
const TICKETS: usize = 32;
/// How many ended jobs are remembered for those who wait for them.
const ENDED: usize = 64;

/// Everything that is shared.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shared {
    /// The worker, while it runs.
    pub(crate) worker: WorkerSlot,
    /// What it does.
    pub(crate) present: Present,
    tickets: [Ticket; TICKETS],
    /// Set by whoever wants the running backup cancelled.
    cancel: bool,
    /// Counts calls that asked for a fresh look, and those that have been served.
    checks_asked: u64,
    checks_served: u64,
    /// Counts calls that asked for a pause or its end, and those that have been served.
    pauses_asked: u64,
    pauses_served: u64,
    /// What they want, unless the worker has taken it: the last word counts.
    pause_backups: Option<bool>,
    pause_shipping: Option<bool>,
    /// Counts calls for a drill, and those that know theirs; the number of the drill that serves
    /// the last of these, and of the last that has ended.
    drills_asked: u64,
    drills_served: u64,
    drill: u64,
    drill_ended: u64,
    ended: Ended,
}

// SAFETY: plain data without pointers into a process's own memory; the latch's address lies in
// shared memory itself.
unsafe impl PGRXSharedMemory for Shared {}

/// The worker's process.
#[derive(Clone, Copy, Default)]
pub(crate) struct WorkerSlot {
    /// Its process id; 0 if it is not running.
    pub(crate) pid: i32,
    latch: usize,
}

/// What the worker does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Present {
    /// In one word.
    pub(crate) activity: Activity,
    /// The running job.
    pub(crate) job: Option<RunningJob>,
    /// Bytes of WAL written since the last backup.
    pub(crate) growth: Option<u64>,
    /// The next run of each schedule, in the order of `BackupType::ALL`.
    pub(crate) next_runs: [Option<DateTime<Utc>>; 3],
    /// The next drill.
    pub(crate) next_drill: Option<DateTime<Utc>>,
    /// Whether a drill runs.
    pub(crate) drilling: bool,
    /// The time zone of the schedules: a session that asks may have another one for itself.
    pub(crate) zone: Option<Tz>,
    /// What is paused.
    pub(crate) paused: Paused,
    /// How shipping goes.
    pub(crate) shipping: Shipping,
    /// The checks could not be written where the SQL functions read them.
    pub(crate) health_is_old: bool,
}

/// What the worker does, in one word.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It has not said yet.
    #[default]
    Starting,
    /// It waits for a reason to back up.
    Idle,
    /// A job waits for its next try or for somebody else's backup.
    Waiting,
    /// A backup runs.
    BackingUp,
    /// No backup can run before something is mended.
    Blocked,
}

impl Activity {
    /// The word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Activity::Starting => "starting",
            Activity::Idle => "idle",
            Activity::Waiting => "waiting",
            Activity::BackingUp => "backing up",
            Activity::Blocked => "blocked",
        }
    }
}

/// What is paused.
#[derive(Clone, Copy, Default)]
pub(crate) struct Paused {
    /// No backup starts.
    pub(crate) backups: bool,
    /// Nothing is shipped.
    pub(crate) shipping: bool,
}

impl Paused {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match (self.backups, self.shipping) {
            (true, true) => "all",
            (true, false) => "backups",
            (false, true) => "shipping",
            (false, false) => "nothing",
        }
    }
}

/// How shipping goes. What it has told is in its file.
#[derive(Clone, Copy, Default)]
pub(crate) enum Shipping {
    /// No remote is configured.
    #[default]
    Off,
    /// Somebody has paused it.
    Paused,
    /// It should run and does not.
    Stopped,
    /// It runs.
    Running {
        /// When the file was written that the process before it has left.
        stale: Option<SystemTime>,
    },
}

/// The running job.
#[derive(Clone, Copy)]
pub(crate) struct RunningJob {
    /// Its number.
    pub(crate) id: u64,
    /// What it holds.
    pub(crate) kind: BackupType,
    /// Why it started.
    pub(crate) trigger: Trigger,
    /// When pgBackRest was started.
    pub(crate) started_at: Option<DateTime<Utc>>,
}

/// A question to the worker and its answer.
#[derive(Clone, Copy, Default)]
enum Ticket {
    #[default]
    Free,
    /// Asked by the process with this id, so that a place left by a dead caller can be taken.
    Asked {
        kind: BackupType,
        caller: i32,
    },
    Taken {
        caller: i32,
    },
    Answered {
        job: u64,
        caller: i32,
    },
}

impl Ticket {
    /// The process that asked.
    fn caller(self) -> Option<i32> {
        match self {
            Ticket::Free => None,
            Ticket::Asked { caller, .. }
            | Ticket::Taken { caller }
            | Ticket::Answered { caller, .. } => Some(caller),
        }
    }
}

/// The last jobs that ended, as a ring.
#[derive(Clone, Copy)]
struct Ended {
    jobs: [u64; ENDED],
    next: usize,
}

impl Default for Ended {
    fn default() -> Self {
        Ended { jobs: [0; ENDED], next: 0 }
    }
}

/// Reserves the shared memory. Called once, while the library is preloaded.
pub(crate) fn init() {
    pg_shmem_init!(SHARED);
    pg_shmem_init!(REPORTS);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library was preloaded, so that everything else here can be called.
pub(crate) fn is_there() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Where the reporter writes. No lock is needed, because a worker that stands still may hold it.
#[derive(Default)]
struct Reports {
    /// The worker's process, and its file descriptor of the pipe; 0 while there is no pipe.
    pipe: AtomicU64,
    /// The pipe's inode.
    inode: AtomicU64,
    /// The address of the reporter's latch; 0 while there is no reporter.
    latch: AtomicUsize,
}

// SAFETY: atomics; the latch's address lies in shared memory itself.
unsafe impl PGRXSharedMemory for Reports {}

/// What the worker and the reporter have to say to each other.
pub(crate) mod reports {
    use std::sync::atomic::Ordering;

    use nrt_process::InputAddress;

    use super::REPORTS;
    use crate::postgres;

    /// Tells the reporter where to write, or that there is nobody to write to.
    pub(crate) fn publish(pipe: Option<InputAddress>) {
        let reports = REPORTS.get();
        reports.pipe.store(0, Ordering::SeqCst);
        let Some(InputAddress { process, descriptor, inode }) = pipe else { return };
        reports.inode.store(inode, Ordering::SeqCst);
        let pipe = (u64::from(process) << 32) | u64::from(descriptor);
        reports.pipe.store(pipe, Ordering::SeqCst);
        postgres::latch::wake(reports.latch.load(Ordering::SeqCst));
    }

    /// Where the reporter writes. What is being changed at this moment is not found to be that pipe.
    pub(crate) fn pipe() -> Option<InputAddress> {
        let reports = REPORTS.get();
        let pipe = reports.pipe.load(Ordering::SeqCst);
        let process = u32::try_from(pipe >> 32).ok().filter(|process| *process != 0)?;
        let descriptor = u32::try_from(pipe & u64::from(u32::MAX)).ok()?;
        Some(InputAddress { process, descriptor, inode: reports.inode.load(Ordering::SeqCst) })
    }

    /// The reporter's place, free again when this is dropped.
    pub(crate) struct Place(());

    impl Place {
        /// Takes it.
        pub(crate) fn take() -> Place {
            REPORTS.get().latch.store(postgres::latch::own(), Ordering::SeqCst);
            Place(())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            REPORTS.get().latch.store(0, Ordering::SeqCst);
        }
    }
}

/// A copy of the worker's place and of what it does.
pub(crate) fn look() -> (WorkerSlot, Present) {
    let shared = SHARED.share();
    (shared.worker, shared.present)
}

/// Wakes the worker.
fn wake_worker() {
    let latch = SHARED.share().worker.latch;
    postgres::latch::wake(latch);
}

/// What callers ask of the worker.
pub(crate) mod ask {
    use super::{SHARED, Ticket, wake_worker};
    use crate::postgres;
    use nrt_core::kind::BackupType;

    /// Asks for a backup. Answers the ticket, or `None` while every place is taken.
    pub(crate) fn backup(kind: BackupType, caller: i32) -> Option<usize> {
        let place = {
            let mut shared = SHARED.exclusive();
            let place = shared.tickets.iter().position(|ticket| is_free(*ticket))?;
            shared.tickets[place] = Ticket::Asked { kind, caller };
            place
        };
        wake_worker();
        Some(place)
    }

    /// Whether nobody waits for the ticket: a caller whose connection was terminated leaves it
    /// behind.
    fn is_free(ticket: Ticket) -> bool {
        ticket.caller().is_none_or(|caller| !postgres::is_backend(caller))
    }

    /// The job that the ticket's question became, once the worker has answered. The place is free
    /// for others then.
    pub(crate) fn answer(place: usize, caller: i32) -> Option<u64> {
        let mut shared = SHARED.exclusive();
        match shared.tickets[place] {
            Ticket::Answered { job, caller: asker } if asker == caller => {
                shared.tickets[place] = Ticket::Free;
                Some(job)
            }
            _ => None,
        }
    }

    /// Takes a question back that nobody will hear the answer of.
    pub(crate) fn withdraw(caller: i32) {
        let mut shared = SHARED.exclusive();
        for ticket in &mut shared.tickets {
            if ticket.caller() == Some(caller) {
                *ticket = Ticket::Free;
            }
        }
    }

    /// Asks to cancel the running backup, or those that wait.
    pub(crate) fn cancel() {
        SHARED.exclusive().cancel = true;
        wake_worker();
    }

    /// Asks for a fresh look; the number tells when it has been served.
    pub(crate) fn check() -> u64 {
        let number = {
            let mut shared = SHARED.exclusive();
            shared.checks_asked += 1;
            shared.checks_asked
        };
        wake_worker();
        number
    }

    /// Whether the look with this number has been served.
    pub(crate) fn check_is_served(number: u64) -> bool {
        SHARED.share().checks_served >= number
    }

    /// Asks for a pause of backups or shipping, or its end; the number tells when it has been
    /// served.
    pub(crate) fn pause(backups: Option<bool>, shipping: Option<bool>) -> u64 {
        let number = {
            let mut shared = SHARED.exclusive();
            shared.pause_backups = backups.or(shared.pause_backups);
            shared.pause_shipping = shipping.or(shared.pause_shipping);
            shared.pauses_asked += 1;
            shared.pauses_asked
        };
        wake_worker();
        number
    }

    /// Whether the call for a pause with this number has been served.
    pub(crate) fn pause_is_served(number: u64) -> bool {
        SHARED.share().pauses_served >= number
    }

    /// Asks for a drill; the number tells which one it becomes.
    pub(crate) fn drill() -> u64 {
        let number = {
            let mut shared = SHARED.exclusive();
            shared.drills_asked += 1;
            shared.drills_asked
        };
        wake_worker();
        number
    }

    /// The drill that serves the call with this number, once there is one.
    pub(crate) fn drill_of(number: u64) -> Option<u64> {
        let shared = SHARED.share();
        (shared.drills_served >= number).then_some(shared.drill)
    }

    /// Whether a drill has ended.
    pub(crate) fn drill_has_ended(drill: u64) -> bool {
        SHARED.share().drill_ended >= drill
    }

    /// Whether a job has ended.
    pub(crate) fn has_ended(job: u64) -> bool {
        SHARED.share().ended.jobs.contains(&job)
    }
}

/// What the worker does with the questions.
pub(crate) mod serve {
    use super::{ENDED, Present, SHARED, Ticket, WorkerSlot};
    use crate::postgres;
    use nrt_core::kind::BackupType;

    /// What was asked since the last call.
    #[derive(Default)]
    pub(crate) struct Questions {
        /// Backups, with the place of the ticket.
        pub(crate) backups: Vec<(usize, BackupType)>,
        /// Whether a cancel was asked.
        pub(crate) cancel: bool,
        /// The number of the newest call for a fresh look that has not been served.
        pub(crate) check: Option<u64>,
        /// What is to be paused, or not any more.
        pub(crate) pause: Option<Pause>,
        /// The number of the newest call for a drill that does not know its own.
        pub(crate) drill: Option<u64>,
    }

    /// A call for pauses or their end.
    pub(crate) struct Pause {
        /// The newest call's number.
        pub(crate) number: u64,
        /// What is wanted of backups, if anything is.
        pub(crate) backups: Option<bool>,
        /// What is wanted of shipping.
        pub(crate) shipping: Option<bool>,
    }

    /// The worker's place. It is free again when this is dropped, also by an ERROR: whoever asks
    /// must not wait for an answer of a process that is gone.
    pub(crate) struct Place(());

    impl Place {
        /// Takes it.
        pub(crate) fn take() -> Place {
            let mut shared = SHARED.exclusive();
            shared.worker =
                WorkerSlot { pid: std::process::id().cast_signed(), latch: postgres::latch::own() };
            shared.present = Present::default();
            Place(())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            SHARED.exclusive().worker = WorkerSlot::default();
        }
    }

    /// Takes all questions.
    pub(crate) fn questions() -> Questions {
        let mut shared = SHARED.exclusive();
        let mut questions = Questions { cancel: shared.cancel, ..Questions::default() };
        shared.cancel = false;
        if shared.checks_asked > shared.checks_served {
            questions.check = Some(shared.checks_asked);
        }
        if shared.pauses_asked > shared.pauses_served {
            questions.pause = Some(Pause {
                number: shared.pauses_asked,
                backups: shared.pause_backups.take(),
                shipping: shared.pause_shipping.take(),
            });
        }
        if shared.drills_asked > shared.drills_served {
            questions.drill = Some(shared.drills_asked);
        }
        for (place, ticket) in shared.tickets.iter_mut().enumerate() {
            if let Ticket::Asked { kind, caller } = *ticket {
                questions.backups.push((place, kind));
                *ticket = Ticket::Taken { caller };
            }
        }
        questions
    }

    /// Answers a question, if somebody still waits for it.
    pub(crate) fn answer(place: usize, job: u64) {
        let mut shared = SHARED.exclusive();
        if let Ticket::Taken { caller } = shared.tickets[place] {
            shared.tickets[place] = Ticket::Answered { job, caller };
        }
    }

    /// Tells that all calls for a look up to this number have been served.
    pub(crate) fn check_served(number: u64) {
        let mut shared = SHARED.exclusive();
        shared.checks_served = shared.checks_served.max(number);
    }

    /// Tells that all calls for pauses up to this number have been served.
    pub(crate) fn pause_served(number: u64) {
        let mut shared = SHARED.exclusive();
        shared.pauses_served = shared.pauses_served.max(number);
    }

    /// Tells all calls for a drill up to this number which one is theirs.
    pub(crate) fn drill_started(number: u64, drill: u64) {
        let mut shared = SHARED.exclusive();
        shared.drills_served = shared.drills_served.max(number);
        shared.drill = drill;
    }

    /// Tells whoever waits that drills up to this one have ended.
    pub(crate) fn drill_ended(drill: u64) {
        let mut shared = SHARED.exclusive();
        shared.drill_ended = shared.drill_ended.max(drill);
    }

    /// Tells whoever waits that a job has ended.
    pub(crate) fn job_ended(job: u64) {
        let mut shared = SHARED.exclusive();
        let next = shared.ended.next;
        shared.ended.jobs[next] = job;
        shared.ended.next = (next + 1) % ENDED;
    }

    /// Shows what the worker does.
    pub(crate) fn publish(present: &Present) {
        SHARED.exclusive().present = *present;
    }
}
