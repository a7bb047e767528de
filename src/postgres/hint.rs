//! Says what helps to those whom PostgreSQL refuses one of our functions.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_guard;
use pgrx::pg_sys;

use super::config_option;

/// The functions that the role may call.
const FUNCTIONS: [&str; 9] = [
    "nrt_backup_now",
    "nrt_backup_start",
    "nrt_backup_cancel",
    "nrt_check",
    "nrt_pause",
    "nrt_resume",
    "nrt_restore_point",
    "nrt_restore_plan",
    "nrt_drill_now",
];

/// Whether the server had no place for the background worker that is being registered: PostgreSQL
/// only logs that.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// Whether a background worker is being registered just now.
static REGISTERING: AtomicBool = AtomicBool::new(false);

/// Registers a background worker, and answers whether the server had a place for it.
pub(crate) fn has_place(register: impl FnOnce()) -> bool {
    REFUSED.store(false, Ordering::Relaxed);
    REGISTERING.store(true, Ordering::Relaxed);
    register();
    REGISTERING.store(false, Ordering::Relaxed);
    !REFUSED.load(Ordering::Relaxed)
}

/// Who was asked before us, and is asked after us.
static PREVIOUS: OnceLock<pg_sys::emit_log_hook_type> = OnceLock::new();

/// Looks at every message before it is sent. Called once, while the library is preloaded.
pub(crate) fn install() {
    // SAFETY: a plain variable of the postmaster, which loads one library after the other.
    unsafe {
        if PREVIOUS.set(pg_sys::emit_log_hook).is_ok() {
            pg_sys::emit_log_hook = Some(add_hint);
        }
    }
}

/// Adds a hint to a refusal of one of our functions. PostgreSQL calls it before the message goes
/// to the log or the client.
#[pg_guard]
unsafe extern "C-unwind" fn add_hint(error: *mut pg_sys::ErrorData) {
    let limit = pg_sys::errcodes::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED as i32;
    // SAFETY: PostgreSQL passes the message that it is about to send.
    if unsafe { error.as_ref() }.is_some_and(|error| error.sqlerrcode == limit)
        && REGISTERING.load(Ordering::Relaxed)
    {
        REFUSED.store(true, Ordering::Relaxed);
    }
    // SAFETY: PostgreSQL passes the message that it is about to send.
    if let Some(error) = unsafe { error.as_mut() }
        && error.sqlerrcode
            == pg_sys::errcodes::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE as i32
        && error.hint.is_null()
        && !error.message.is_null()
    {
        // SAFETY: a message that is not NULL is a string with an end.
        let message = unsafe { CStr::from_ptr(error.message) }.to_string_lossy();
        if FUNCTIONS.iter().any(|name| message.ends_with(name) || message.contains(&quoted(name)))
            && let Ok(hint) = CString::new(hint())
        {
            // SAFETY: the memory is the message's own and lives as long as it does.
            unsafe {
                error.hint = pg_sys::MemoryContextStrdup(error.assoc_context, hint.as_ptr());
            }
        }
    }
    if let Some(Some(previous)) = PREVIOUS.get() {
        // SAFETY: it would have been called with the same, were it not for us; an ERROR that it
        // raises is handed on.
        #[allow(ffi_unwind_calls, reason = "the boundary is guarded")]
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(error));
        }
    }
}

/// As the message has a name in other languages than English.
fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// What helps. No catalog may be read here: the transaction has failed. So it is the role that was
/// set, or whose session it is; within a function that runs as its owner it may be another.
fn hint() -> String {
    let set = config_option(c"role").filter(|role| role != "none" && !role.is_empty());
    let role = set.or_else(|| config_option(c"session_authorization"));
    match role.filter(|role| !role.is_empty()).and_then(|role| CString::new(role).ok()) {
        // SAFETY: quotes a string with an end; the result is copied at once.
        Some(role) => unsafe {
            let role = CStr::from_ptr(pg_sys::quote_identifier(role.as_ptr()));
            format!(
                "A superuser can allow it: GRANT nrt_backup_operator TO {};",
                role.to_string_lossy()
            )
        },
        None => "A superuser can GRANT nrt_backup_operator to whom may call it.".to_string(),
    }
}
