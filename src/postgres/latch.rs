//! Waits on this process's latch and wakes other processes by theirs.

#![allow(unsafe_code)]

use std::time::Duration;

use pgrx::pg_sys;

/// Waits until this process's latch is set or the time is out; answers whether it was set. Ends the
/// process at once if the postmaster is dead.
///
/// Then does what PostgreSQL asks of every process: whoever drops a database waits until all have
/// closed its files, this one too. In a session, that is also where a statement is cancelled.
pub(crate) fn wait(timeout: Duration) -> bool {
    let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    // Rounded up: who waits for a moment wants it to have come.
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    let milliseconds = std::ffi::c_long::try_from(milliseconds).unwrap_or(1000);
    // SAFETY: MyLatch is valid in every process that is connected to shared memory.
    let happened = unsafe {
        let happened =
            pg_sys::WaitLatch(pg_sys::MyLatch, events, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened
    };
    pgrx::check_for_interrupts!();
    happened & pg_sys::WL_LATCH_SET as i32 != 0
}

/// The address of this process's latch. Latches of processes lie in shared memory, which every
/// process of a server sees at the same address.
pub(crate) fn own() -> usize {
    // SAFETY: only the address is read.
    unsafe { pg_sys::MyLatch as usize }
}

/// Wakes the process whose latch is at `address`; 0 is nobody's.
pub(crate) fn wake(address: usize) {
    if address != 0 {
        // SAFETY: the address came from `own` in another process of this server. Latches are
        // never unmapped; if the process has ended meanwhile, its slot's latch is set for
        // nothing, which every waiter must expect.
        unsafe { pg_sys::SetLatch(address as *mut pg_sys::Latch) }
    }
}
