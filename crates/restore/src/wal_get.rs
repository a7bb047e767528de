//! Gives PostgreSQL a file of WAL: what `restore_command` runs.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nrt_core::restore::Refusal;

use super::source::Source;
use super::wal::{SHELF, Shelved, Store};
use super::work::Work;
use super::{TRYING, told};
use super::{unusable, whole};

/// Gives PostgreSQL a file of WAL: what `restore_command` runs. `ahead` if the restore itself gets
/// it.
///
/// `Ok(false)` only if the plan knows of none: to PostgreSQL that is the end of the WAL.
pub fn wal_get(work: &Path, ahead: bool, name: &str, into: &Path) -> Result<bool, Refusal> {
    let work = Work::at(work);
    let shelved: Shelved = work.read(SHELF).ok_or_else(|| {
        Refusal::new(
            format!("\"{}\" is no work directory of a restore", work.path().display()),
            "Restore again; it is made by nrt-backup restore.",
        )
    })?;
    let shelf = &shelved.shelf;
    let into = whole(into)?;
    let problem = |error: std::io::Error| unusable(&into, &error);
    nrt_process::files::replace(&work.asked(), name.as_bytes()).map_err(problem)?;
    if let Some(text) = shelf.histories.get(name) {
        return fs::write(&into, text).map(|()| true).map_err(problem);
    }
    if !shelf.segments().iter().any(|it| it.name(shelf.segment_size) == name) {
        return Ok(false);
    }
    let found = work.wal().join(name);
    while ahead && !found.is_file() {
        if !work.is_held() {
            return Err(Refusal::new(
                "the restore that this server belongs to has ended",
                "Run the same nrt-backup restore again.",
            ));
        }
        thread::sleep(Duration::from_millis(5));
    }
    if !found.is_file() {
        let held = work.hold().map_err(told)?;
        get_alone(&work, &shelved, name)?;
        drop(held);
    }
    // Another file: PostgreSQL may write into its own later, and asks for the last one twice.
    fs::copy(&found, &into).map(|_| true).map_err(problem)
}

/// Gets a segment of the plan where no restore runs.
fn get_alone(work: &Work, shelved: &Shelved, name: &str) -> Result<(), Refusal> {
    let mut source = Source::open(shelved.place.clone(), work)?;
    source.resume(&shelved.stanza);
    let store = Store { source: &source, shelf: &shelved.shelf, directory: work.wal() };
    let begin = Instant::now();
    loop {
        match store.get(name) {
            Ok(_) => return Ok(()),
            Err(trouble) if begin.elapsed() >= TRYING => return Err(trouble.refusal),
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
