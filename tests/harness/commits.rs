//! Commits row after row and remembers when each was acknowledged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nrt_core::lsn::Lsn;

use crate::cluster::{Cluster, PATIENCE, wait_until};

/// A commit that the server has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The client's number.
    pub client: i32,
    /// The row's number; for each client they grow by one.
    pub row: i64,
    /// Everything of it lies before this.
    pub lsn: Lsn,
    /// When the client knew.
    pub at: Instant,
    /// How long it had waited.
    pub took: Duration,
}

/// Clients that commit until they are stopped, or the server is.
#[derive(Debug)]
pub struct Commits {
    table: String,
    made: Arc<Mutex<Vec<Commit>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Commits {
    /// Makes a table in a running cluster and begins: so many clients, each with a pause between
    /// two commits.
    ///
    /// # Panics
    /// If the table is there already.
    pub fn begin(cluster: &Cluster, table: &str, clients: u32, pause: Duration) -> Commits {
        cluster.sql(&format!("create table {table} (client int, row bigint, filler text)"));
        let (made, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let insert = format!(
            "insert into {table} select $1::int, row, repeat(md5(row::text), 1 + (row % 20)::int)
             from (select $2::bigint as row) as it"
        );
        let threads = (0..clients).map(|number| {
            let mut client = cluster.connect("postgres", "postgres").expect("the server runs");
            let (made, stop, insert) = (Arc::clone(&made), Arc::clone(&stop), insert.clone());
            thread::spawn(move || {
                let number = i32::try_from(number).expect("few clients");
                let insert = client.prepare(&insert).expect("the server runs");
                let flushed = client
                    .prepare("select pg_current_wal_flush_lsn()::text")
                    .expect("the server runs");
                for row in 0_i64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let begin = Instant::now();
                    // The server dies sooner or later; what was not acknowledged does not count.
                    if client.execute(&insert, &[&number, &row]).is_err() {
                        return;
                    }
                    let at = Instant::now();
                    let Ok(lsn) = client.query_one(&flushed, &[]) else { return };
                    let lsn: String = lsn.get(0);
                    let lsn = lsn.parse().expect("an LSN");
                    let commit = Commit { client: number, row, lsn, at, took: at - begin };
                    made.lock().unwrap_or_else(PoisonError::into_inner).push(commit);
                    thread::sleep(pause);
                }
            })
        });
        let threads = threads.collect();
        let commits = Commits { table: table.to_string(), made, stop, threads };
        wait_until("commits are made", PATIENCE, || !commits.made().is_empty());
        commits
    }

    /// What has been acknowledged so far, in that order.
    pub fn made(&self) -> Vec<Commit> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends, and gives what was acknowledged.
    pub fn end(mut self) -> Vec<Commit> {
        self.stop_all();
        self.made()
    }

    /// Of what was acknowledged, what a restored server does not have.
    ///
    /// # Panics
    /// If it has a row without having all those before it.
    pub fn lost(&mut self, restored: &Cluster) -> Vec<Commit> {
        self.stop_all();
        let table = &self.table;
        let holes = restored.value(&format!(
            "select count(*) from (select client, count(*) as rows, max(row) as last from {table}
             group by client) c where rows <> last + 1"
        ));
        assert_eq!(holes, "0", "a row is there and one before it is not");
        let rows: HashMap<i32, i64> = restored
            .sql(&format!("select client, count(*) from {table} group by client"))
            .into_iter()
            .map(|row| (row[0].parse().expect("a number"), row[1].parse().expect("a count")))
            .collect();
        let is_lost =
            |commit: &Commit| commit.row >= rows.get(&commit.client).copied().unwrap_or(0);
        self.made().into_iter().filter(is_lost).collect()
    }

    fn stop_all(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop_all();
    }
}
