//! Remembers, outside of the server, which commits it has acknowledged and what was claimed of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use nrt_core::lsn::Lsn;
use postgres::{Client, NoTls};

/// Clients of a machine.
const CLIENTS: i32 = 3;
/// How long a client waits between two commits, and between two tries to connect.
const PAUSE: Duration = Duration::from_millis(10);
/// The table that the clients write to.
pub(crate) const TABLE: &str = "soak";
/// Makes the table.
pub(crate) const CREATE_TABLE: &str = "create table soak (
    client int, row bigint, filler text, primary key (client, row))";

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was sent to a server, which has not answered, or has failed.
    Tried,
    /// The server acknowledged its commit.
    Acknowledged,
    /// A restored server had it. The remote can never be without it again.
    Kept,
    /// A restored server did not have it. It may never come back.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    state: State,
    /// The timeline on which it was committed.
    timeline: u32,
    /// Everything of it lies before this, if the server could still be asked.
    lsn: Option<Lsn>,
    /// When the client knew.
    at: SystemTime,
}

/// A position that was said to be restorable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who said so.
    pub(crate) by: &'static str,
    /// On which timeline.
    pub(crate) timeline: u32,
    /// Every commit before this.
    pub(crate) lsn: Lsn,
}

/// All that was claimed at one instant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    /// Positions.
    pub(crate) positions: Vec<Claim>,
    /// Everything committed before this time, by the clock of this machine.
    pub(crate) complete_until: Option<SystemTime>,
}

impl Claims {
    fn cover(&self, row: &Row) -> bool {
        let reaches =
            |lsn: Lsn| self.positions.iter().any(|it| it.timeline == row.timeline && it.lsn >= lsn);
        row.state == State::Kept
            || row.lsn.is_some_and(reaches)
            || self.complete_until.is_some_and(|until| row.at <= until)
    }
}

/// What a restored server lacks, or has and should not.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Acknowledged rows that a claim covered and that are gone.
    pub(crate) lost: Vec<String>,
    /// Acknowledged rows that are gone and that no claim covered.
    pub(crate) unclaimed: usize,
    /// Rows that an earlier restore had lost, or that were written after the life had forked.
    pub(crate) abandoned: Vec<String>,
    /// Rows that are there.
    pub(crate) kept: usize,
}

/// The rows of one machine's clients.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    first_client: i32,
}

#[derive(Debug)]
struct Shared {
    rows: Mutex<BTreeMap<i32, Vec<Row>>>,
    /// Clients wait while it is closed.
    is_open: AtomicBool,
    timeline: AtomicU32,
}

impl Ledger {
    /// An empty ledger, closed. Machines that live beside each other have clients of their own.
    pub(crate) fn new(first_client: i32) -> Ledger {
        let shared = Arc::new(Shared {
            rows: Mutex::default(),
            is_open: AtomicBool::new(false),
            timeline: AtomicU32::new(0),
        });
        Ledger { shared, first_client }
    }

    /// Begins to write to whatever server listens in `socket`, while the ledger is open.
    pub(crate) fn write(&self, socket: PathBuf) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = self.first_client..self.first_client + CLIENTS;
        let threads = clients.map(|client| {
            let (shared, socket) = (Arc::clone(&self.shared), socket.clone());
            let stop = Arc::clone(&stop);
            thread::spawn(move || write(&shared, client, &socket, &stop))
        });
        let threads = threads.collect();
        Writers { stop, threads }
    }

    /// Lets the clients write to a server of this timeline.
    pub(crate) fn open(&self, timeline: u32) {
        self.shared.timeline.store(timeline, Ordering::SeqCst);
        self.shared.is_open.store(true, Ordering::SeqCst);
    }

    /// Lets no client begin another commit.
    pub(crate) fn close(&self) {
        self.shared.is_open.store(false, Ordering::SeqCst);
    }

    /// How many commits were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        let all = self.shared.rows();
        all.values().flatten().filter(|row| row.state != State::Tried).count()
    }

    /// Compares what a restored server holds with what was acknowledged and claimed, and remembers
    /// what it holds. The ledger is closed, and no server runs that still answers a client.
    pub(crate) fn compare(&self, held: &BTreeSet<(i32, i64)>, claims: &Claims) -> Difference {
        let mut difference = Difference::default();
        for (client, rows) in &mut *self.shared.rows() {
            let is_held = |number: usize| held.contains(&(*client, number as i64));
            let last_held = (0..rows.len()).rev().find(|number| is_held(*number));
            for (number, row) in rows.iter_mut().enumerate() {
                let words = || {
                    let lsn =
                        row.lsn.map_or("an unknown position".to_string(), |it| it.to_string());
                    format!("client {client} row {number} at {lsn} on timeline {}", row.timeline)
                };
                // A client commits one row after the other.
                let is_hole = last_held.is_some_and(|last| number < last);
                match (row.state, is_held(number)) {
                    (State::Gone, true) => difference.abandoned.push(words()),
                    (State::Gone | State::Tried, false) => row.state = State::Gone,
                    (State::Acknowledged | State::Kept, false) => {
                        if is_hole || claims.cover(row) {
                            difference.lost.push(words());
                        } else {
                            difference.unclaimed += 1;
                        }
                        row.state = State::Gone;
                    }
                    (_, true) => {
                        difference.kept += 1;
                        row.state = State::Kept;
                    }
                }
            }
        }
        difference
    }
}

impl Ledger {
    /// Marks every row that is not in `held` as gone for good: an operator has put a snapshot back,
    /// or has promoted a standby that lacks it. The ledger is closed. How many of them there are.
    pub(crate) fn abandon(&self, held: &BTreeSet<(i32, i64)>) -> usize {
        let mut count = 0;
        for (client, rows) in &mut *self.shared.rows() {
            for (number, row) in rows.iter_mut().enumerate() {
                if held.contains(&(*client, number as i64)) {
                    // The client may not have heard of it.
                    row.state = State::Kept;
                } else {
                    count += usize::from(!matches!(row.state, State::Tried | State::Gone));
                    row.state = State::Gone;
                }
            }
        }
        count
    }
}

impl Shared {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<i32, Vec<Row>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, client: i32, number: usize, change: impl FnOnce(&mut Row)) {
        change(&mut self.rows().entry(client).or_default()[number]);
    }
}

/// Clients that write until this is dropped.
#[derive(Debug)]
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// A session with the server in `socket`; it may have gone away.
pub(crate) fn session(socket: &Path) -> Option<Client> {
    let mut config = postgres::Config::new();
    config.host_path(socket).user("postgres").dbname("postgres").application_name("soak");
    config.connect(NoTls).ok()
}

fn write(shared: &Shared, client: i32, socket: &Path, stop: &AtomicBool) {
    let insert = format!(
        "insert into {TABLE} select $1::int, row, repeat(md5(row::text), 1 + (row % 20)::int)
         from (select $2::bigint as row) as it"
    );
    let mut connected = None;
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(PAUSE);
        if !shared.is_open.load(Ordering::SeqCst) {
            connected = None;
            continue;
        }
        let Some(server) = connected.as_mut() else {
            connected = session(socket);
            continue;
        };
        let number = {
            let mut all = shared.rows();
            // The ledger is closed under the same lock: what begins now is seen by who compares.
            let rows = all.entry(client).or_default();
            let timeline = shared.timeline.load(Ordering::SeqCst);
            rows.push(Row { state: State::Tried, timeline, lsn: None, at: SystemTime::now() });
            rows.len() - 1
        };
        if server.execute(&insert, &[&client, &(number as i64)]).is_err() {
            connected = None;
            continue;
        }
        let at = SystemTime::now();
        shared.change(client, number, |row| {
            row.state = State::Acknowledged;
            row.at = at;
        });
        match server.query_one("select pg_current_wal_flush_lsn()::text", &[]) {
            Ok(found) => {
                let lsn: Option<Lsn> = found.get::<_, String>(0).parse().ok();
                shared.change(client, number, |row| row.lsn = lsn);
            }
            Err(_) => connected = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(states: &[(State, u64)]) -> Ledger {
        let ledger = Ledger::new(0);
        let rows = states.iter().map(|(state, lsn)| Row {
            state: *state,
            timeline: 1,
            lsn: Some(Lsn(*lsn)),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(*lsn),
        });
        let rows = rows.collect();
        ledger.shared.rows().insert(0, rows);
        ledger
    }

    fn held(rows: &[i64]) -> BTreeSet<(i32, i64)> {
        rows.iter().map(|row| (0, *row)).collect()
    }

    fn claims(lsn: u64) -> Claims {
        let claim = Claim { by: "ship.json", timeline: 1, lsn: Lsn(lsn) };
        Claims { positions: vec![claim], complete_until: None }
    }

    #[test]
    fn a_claim_covers_what_lies_before_it() {
        let states = [State::Acknowledged, State::Acknowledged, State::Acknowledged];
        let rows = [10, 20, 30];
        let all: Vec<_> = states.into_iter().zip(rows).collect();
        let found = ledger(&all).compare(&held(&[0]), &claims(19));
        assert_eq!((found.lost.len(), found.unclaimed, found.kept), (0, 2, 1));
        let found = ledger(&all).compare(&held(&[0]), &claims(20));
        assert_eq!((found.lost.len(), found.unclaimed), (1, 1));
        let until = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(30));
        let by_time = Claims { positions: Vec::new(), complete_until: until };
        assert_eq!(ledger(&all).compare(&held(&[0]), &by_time).lost.len(), 2);
        let mut other_timeline = claims(99);
        other_timeline.positions[0].timeline = 2;
        assert_eq!(ledger(&all).compare(&held(&[]), &other_timeline).lost.len(), 0);
    }

    #[test]
    fn a_hole_and_a_row_that_comes_back_are_found() {
        let all = [(State::Acknowledged, 10), (State::Acknowledged, 20), (State::Tried, 30)];
        let ledger = ledger(&all);
        let found = ledger.compare(&held(&[1]), &claims(0));
        assert_eq!((found.lost.len(), found.kept), (1, 1), "row 1 is there, row 0 is not");
        let found = ledger.compare(&held(&[0, 1, 2]), &claims(0));
        assert_eq!((found.abandoned.len(), found.kept), (2, 1));
        let found = ledger.compare(&held(&[]), &claims(0));
        assert_eq!(found.lost.len(), 1, "a restored server had it");
    }
}
