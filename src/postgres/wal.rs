//! Reads positions in the WAL from shared memory, and pages from `pg_wal`.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nrt_core::growth::{PAGE, Pages};
use nrt_core::lsn::{Lsn, Segment};
use pgrx::pg_sys;

/// Whether the server replays WAL: it is a standby, or still recovering.
pub(crate) fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// The timeline and the position up to which WAL is on disk. `None` in recovery.
pub(crate) fn flushed() -> Option<(u32, Lsn)> {
    if in_recovery() {
        return None;
    }
    let mut timeline = 0;
    // SAFETY: the function may be called whenever recovery is over, which it never un-becomes.
    let position = unsafe { pg_sys::GetFlushRecPtr(&raw mut timeline) };
    Some((timeline, Lsn(position)))
}

/// Writes a restore point into the WAL and waits until it is on disk. Answers the timeline, and the
/// position right after it. The server must not be in recovery, and `wal_level` not minimal.
pub(crate) fn restore_point(name: &CStr) -> (u32, Lsn) {
    // SAFETY: the name ends and is copied; what is flushed was inserted just now.
    unsafe {
        let position = pg_sys::XLogRestorePoint(name.as_ptr());
        pg_sys::XLogFlush(position);
        (pg_sys::GetWALInsertionTimeLine(), Lsn(position))
    }
}

/// The next transaction id that will be given out, with its epoch.
pub(crate) fn next_transaction_id() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// Bytes of a WAL segment of this cluster.
pub(crate) fn segment_size() -> u64 {
    // SAFETY: a plain variable, set before any child started.
    u64::try_from(unsafe { pg_sys::wal_segment_size }).unwrap_or(16 << 20)
}

/// Pages of segments in `pg_wal`. A server process stands in the data directory.
#[derive(Default)]
pub(crate) struct PgWal {
    /// The segment that was read last, and its file if there is one.
    open: Option<(Segment, Option<File>)>,
}

impl Pages for PgWal {
    fn page(&mut self, segment: Segment, offset: u64) -> Option<[u8; PAGE as usize]> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let name = segment.name(segment_size());
            self.open = Some((segment, File::open(format!("pg_wal/{name}")).ok()));
        }
        let (_, file) = self.open.as_ref()?;
        let mut page = [0; PAGE as usize];
        file.as_ref()?.read_exact_at(&mut page, offset).ok()?;
        Some(page)
    }
}
