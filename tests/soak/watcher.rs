//! Reads `nrt.status` all the time, as a monitoring system does, and remembers what it claims.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nrt_core::lsn::Lsn;
use postgres::Client;

use crate::ledger;
use crate::tally::Log;

/// How often it is read.
const INTERVAL: Duration = Duration::from_millis(200);

const QUESTION: &str =
    "select shipped_lsn::text, flushed_lsn::text, health, summary from nrt.status";

/// The greatest positions that were claimed since it was opened.
#[derive(Debug, Default)]
struct Seen {
    shipped: Option<Lsn>,
    summary: Option<Lsn>,
    /// How often in a row the remote was said to have more than there is.
    beyond: u32,
    findings: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    is_open: AtomicBool,
    stop: AtomicBool,
}

/// Reads `nrt.status` until it is dropped, while it is open.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// A closed one.
    pub(crate) fn new(socket: PathBuf) -> Watcher {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            is_open: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || watch(&shared, &socket)
        });
        Watcher { shared, thread: Some(thread) }
    }

    /// Forgets what it knows, and begins to read.
    pub(crate) fn open(&self) {
        *self.shared.seen() = Seen::default();
        self.shared.is_open.store(true, Ordering::SeqCst);
    }

    /// Reads nothing any more.
    pub(crate) fn close(&self) {
        self.shared.is_open.store(false, Ordering::SeqCst);
    }

    /// The greatest positions that were claimed, and where.
    pub(crate) fn claims(&self) -> Vec<(&'static str, Lsn)> {
        let seen = self.shared.seen();
        let claims =
            [("nrt.status.shipped_lsn", seen.shipped), ("nrt.status.summary", seen.summary)];
        claims.into_iter().filter_map(|(by, lsn)| Some((by, lsn?))).collect()
    }

    /// How many statuses contradicted themselves since the last call.
    pub(crate) fn findings(&self, log: &Log, words: &mut Vec<String>) -> usize {
        let found: Vec<String> = self.shared.seen().findings.drain(..).collect();
        for line in &found {
            log.line(format_args!("FOUND {line}"));
            words.push(line.clone());
        }
        found.len()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(shared: &Shared, socket: &Path) {
    let mut connected: Option<Client> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(INTERVAL);
        if !shared.is_open.load(Ordering::SeqCst) {
            connected = None;
            continue;
        }
        let Some(client) = connected.as_mut() else {
            connected = ledger::session(socket);
            continue;
        };
        let Ok(row) = client.query_one(QUESTION, &[]) else {
            connected = None;
            continue;
        };
        let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default();
        let mut seen = shared.seen();
        // Closed meanwhile: what comes now belongs to nobody.
        if shared.is_open.load(Ordering::SeqCst) {
            take_in(&mut seen, &text(0), &text(1), &text(2), &text(3));
        }
    }
}

fn take_in(seen: &mut Seen, shipped: &str, flushed: &str, health: &str, summary: &str) {
    let (shipped, flushed): (Option<Lsn>, Option<Lsn>) =
        (shipped.parse().ok(), flushed.parse().ok());
    seen.shipped = seen.shipped.max(shipped);
    seen.summary = seen.summary.max(claimed(summary));
    let is_beyond = shipped.zip(flushed).is_some_and(|(shipped, flushed)| shipped > flushed);
    seen.beyond = if is_beyond && health != "critical" { seen.beyond + 1 } else { 0 };
    // The two are not read at the same instant; a lie lasts.
    if seen.beyond == 10 {
        let (shipped, flushed) = (shipped.unwrap_or_default(), flushed.unwrap_or_default());
        seen.findings.push(format!(
            "shipped_lsn is {shipped}, flushed_lsn {flushed}, and health \"{health}\""
        ));
    }
}

/// The position of "protected off-site: every commit before X can be restored".
fn claimed(summary: &str) -> Option<Lsn> {
    let rest = summary.strip_prefix("protected off-site")?;
    rest.split_once("every commit before ")?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_is_remembered_at_its_greatest() {
        let mut seen = Seen::default();
        let words = "protected off-site: every commit before 0/300 can be restored from r:b/main";
        take_in(&mut seen, "0/300", "0/400", "ok", words);
        take_in(&mut seen, "", "0/500", "critical", "the remote cannot be reached");
        assert_eq!((seen.shipped, seen.summary), (Some(Lsn(0x300)), Some(Lsn(0x300))));
        for _ in 0..20 {
            take_in(&mut seen, "0/600", "0/500", "critical", "");
        }
        assert_eq!(seen.findings.len(), 0, "it is said");
        for _ in 0..20 {
            take_in(&mut seen, "0/600", "0/500", "ok", "");
        }
        assert_eq!(seen.findings.len(), 1);
    }
}
