//! Wraps what is needed of PostgreSQL's own functions and variables, so that the rest is safe code.

#![allow(unsafe_code)]

pub(crate) mod hint;
pub(crate) mod latch;
pub(crate) mod wal;

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;

/// Whether the library is being loaded by `shared_preload_libraries`.
pub(crate) fn preloading() -> bool {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server was started by pg_upgrade.
pub(crate) fn binary_upgrade() -> bool {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// The data directory, as an absolute path.
pub(crate) fn data_directory() -> PathBuf {
    // SAFETY: the postmaster sets the variable before it loads libraries and never changes it.
    path(unsafe { CStr::from_ptr(pg_sys::DataDir) })
}

/// The directory of the `postgres` program, where `nrt-backup` is installed too.
pub(crate) fn program_directory() -> PathBuf {
    // SAFETY: an array of this process that is filled at start and ends in a NUL; only its
    // address is taken, because the binding does not know its length.
    let program = path(unsafe { CStr::from_ptr((&raw const pg_sys::my_exec_path).cast()) });
    program.parent().map(PathBuf::from).unwrap_or_default()
}

fn path(text: &CStr) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(text.to_bytes()))
}

/// The value of a setting of the server, numbers without their unit.
pub(crate) fn config_option(name: &CStr) -> Option<String> {
    // SAFETY: with missing_ok a wrong name gives NULL; the text is copied before anything else
    // can overwrite it.
    unsafe {
        let text = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// Gives a setting another default: whatever the operator writes anywhere wins over it.
pub(crate) fn set_default(name: &CStr, value: &CStr) {
    // SAFETY: called while the postmaster loads libraries, where every setting may be set; the
    // texts are copied.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_POSTMASTER,
            pg_sys::GucSource::PGC_S_DYNAMIC_DEFAULT,
        );
    }
}

/// Reads the configuration files again, as every process must after SIGHUP.
pub(crate) fn reload_configuration() {
    // SAFETY: called from the worker's main loop, outside of any transaction; the flag is this
    // process's own.
    unsafe {
        (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// The identifier that the cluster got when it was created.
pub(crate) fn system_identifier() -> u64 {
    // SAFETY: reads a value that the postmaster put in shared memory before any child started.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The first directory of the server's unix sockets.
pub(crate) fn socket_directory() -> Option<String> {
    let all = config_option(c"unix_socket_directories")?;
    let first = all.split(',').next()?.trim().trim_matches('"').to_string();
    (!first.is_empty()).then_some(first)
}

/// The server's port.
pub(crate) fn port() -> u16 {
    // SAFETY: a plain variable, set before any child started.
    u16::try_from(unsafe { pg_sys::PostPortNumber }).unwrap_or(5432)
}

/// Connects the worker to shared memory and the shared catalogs, and to no database: databases
/// can be dropped and created freely beside it.
pub(crate) fn connect_without_database() {
    // SAFETY: called once at the start of the worker's main function.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            0,
        );
    }
}

/// Whether a process is one of this server's.
pub(crate) fn is_backend(pid: i32) -> bool {
    // SAFETY: looks the process up in shared memory; only whether it is there is used.
    unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// What the worker reads of the shared catalogs.
pub(crate) struct Catalog {
    /// Whether the database exists.
    pub(crate) database_exists: bool,
    /// The name of the role that the cluster was created with: it is always a superuser.
    pub(crate) superuser: String,
}

/// Looks into the shared catalogs, in a transaction of its own that ends here. `None` while another
/// session holds a lock on one of them that this would wait for: the worker waits for nobody.
pub(crate) fn read_catalog(database: &str) -> Option<Catalog> {
    let mut catalog = Catalog { database_exists: false, superuser: "postgres".to_string() };
    // SAFETY: called from the worker's main loop, outside of any transaction. An ERROR in here
    // ends the worker, and the postmaster starts it again.
    unsafe { pg_sys::StartTransactionCommand() };
    // SAFETY: the catalog's rows begin with this struct.
    let databases = scan(pg_sys::DatabaseRelationId, |row| unsafe {
        let row = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_database>();
        catalog.database_exists |= text(&row.datname.data) == database;
    });
    // SAFETY: as above.
    let roles = scan(pg_sys::AuthIdRelationId, |row| unsafe {
        let row = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_authid>();
        if row.oid == pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID) {
            catalog.superuser = text(&row.rolname.data);
        }
    });
    // SAFETY: ends what was started above.
    unsafe { pg_sys::CommitTransactionCommand() };
    (databases && roles).then_some(catalog)
}

/// Shows every row of a shared catalog. Answers `false`, and shows none, where the lock is not free
/// at once.
///
/// It reads the table itself: without a database there is no pg_class in which an index could be
/// looked up, and both catalogs are small.
fn scan(catalog: pg_sys::Oid, mut show: impl FnMut(pg_sys::HeapTuple)) -> bool {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: called within a transaction, which ends the lock. The table is opened without another
    // one and closed with this one; a row is shown while the scan still holds it.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(catalog, lock) {
            return false;
        }
        let table = pg_sys::table_open(catalog, pg_sys::NoLock as pg_sys::LOCKMODE);
        let (none, no_keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let rows = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, none, 0, no_keys);
        loop {
            let row = pg_sys::systable_getnext(rows);
            if row.is_null() {
                break;
            }
            show(row);
        }
        pg_sys::systable_endscan(rows);
        pg_sys::table_close(table, lock);
    }
    true
}

/// The text of an array that ends in zeros.
fn text(array: &[std::ffi::c_char]) -> String {
    let bytes = array.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// What the archiver has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct ArchiverStatistics {
    /// The last file that was archived, and when.
    pub(crate) archived: Option<(String, DateTime<Utc>)>,
    /// The last file that could not be archived, and when.
    pub(crate) failed: Option<(String, DateTime<Utc>)>,
}

/// Reads the archiver's statistics.
pub(crate) fn archiver_statistics() -> ArchiverStatistics {
    let file = |name: &[std::ffi::c_char], at: pg_sys::TimestampTz| {
        let name = text(name);
        (!name.is_empty()).then(|| (name, moment(at)))
    };
    // SAFETY: the pointer leads to this process's snapshot of the statistics, which lives until
    // the snapshot is cleared the next time; all is copied at once.
    unsafe {
        pg_sys::pgstat_clear_snapshot();
        let Some(stats) = pg_sys::pgstat_fetch_stat_archiver().as_ref() else {
            return ArchiverStatistics::default();
        };
        ArchiverStatistics {
            archived: file(&stats.last_archived_wal, stats.last_archived_timestamp),
            failed: file(&stats.last_failed_wal, stats.last_failed_timestamp),
        }
    }
}

/// Microseconds between the Unix epoch and PostgreSQL's, which is 2000-01-01.
const EPOCH_DIFFERENCE: i64 = 946_684_800_000_000;

/// A moment as PostgreSQL's `timestamptz`.
pub(crate) fn timestamp(at: DateTime<Utc>) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at.timestamp_micros() - EPOCH_DIFFERENCE).ok()
}

/// A `timestamptz` as a moment; `None` if it is infinite, or beyond what can be computed with.
pub(crate) fn instant(at: TimestampWithTimeZone) -> Option<DateTime<Utc>> {
    let microseconds: pg_sys::TimestampTz = at.into();
    let is_finite = !at.is_infinity() && !at.is_neg_infinity();
    let since_1970 = microseconds.checked_add(EPOCH_DIFFERENCE).filter(|_| is_finite)?;
    DateTime::from_timestamp_micros(since_1970)
}

fn moment(timestamp: pg_sys::TimestampTz) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(timestamp.saturating_add(EPOCH_DIFFERENCE)).unwrap_or_default()
}

/// Ends the worker so that the postmaster starts it again unless the server is shutting down.
///
/// An exit code of 0 would tell the postmaster never to start it again: a stray
/// `pg_terminate_backend` would end the protection for good.
pub(crate) fn exit_worker() {
    // SAFETY: called at the end of the worker's main function, when every Rust value with a
    // destructor has been dropped.
    unsafe { pg_sys::proc_exit(1) };
}

/// Whether SIGTERM has come.
///
/// pgrx's own getter forgets the signal once it was asked; this flag stays.
pub(crate) fn shutdown_requested() -> bool {
    // SAFETY: a flag of this process that its signal handler sets; read as the handler writes it.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}
