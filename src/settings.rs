//! Registers the options of `nrt_core::options` as settings of the server and reads them.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};

use nrt_core::options::{self, Kind, Opt, Unit};
use nrt_core::pgbackrest::stanza;
use nrt_core::settings::Settings;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::pgrx_extern_c_guard;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::{postgres, state_directory};

/// Where PostgreSQL keeps the value of a setting.
enum Storage {
    Text(GucSetting<Option<CString>>, pg_sys::GucStringCheckHook),
    Int(GucSetting<i32>),
    Bool(GucSetting<bool>),
}

/// Makes the storage of `options::ALL[INDEX]`.
const fn storage<const INDEX: usize>() -> Storage {
    let option = options::ALL[INDEX];
    match option.kind {
        Kind::Text => Storage::Text(
            GucSetting::<Option<CString>>::new(Some(option.default)),
            Some(check::<INDEX>),
        ),
        Kind::Int { .. } => Storage::Int(GucSetting::<i32>::new(whole_number(option.default))),
        Kind::Bool => Storage::Bool(GucSetting::<bool>::new(is_on(option.default))),
    }
}

macro_rules! storages {
    ($($index:literal)*) => {
        /// One for each option, in the same order.
        static STORAGES: [Storage; options::ALL.len()] = [$(storage::<$index>()),*];
    };
}
storages!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37);

const fn whole_number(text: &CStr) -> i32 {
    let digits = text.to_bytes();
    let (mut index, mut value) = (0, 0);
    while index < digits.len() {
        value = value * 10 + (digits[index] - b'0') as i32;
        index += 1;
    }
    value
}

const fn is_on(text: &CStr) -> bool {
    matches!(text.to_bytes(), b"on")
}

/// Registers every option. Called once, while the library is preloaded.
pub(crate) fn register() {
    for (option, storage) in options::ALL.into_iter().zip(&STORAGES) {
        let mut flags = GucFlags::default();
        if option.superuser_only {
            flags |= GucFlags::SUPERUSER_ONLY;
        }
        match (storage, option.kind) {
            (Storage::Text(guc, hook), _) => {
                // SAFETY: the hook is a guarded function that lives as long as the library, and
                // it only reads the text that it is given.
                unsafe {
                    GucRegistry::define_string_guc_with_hooks(
                        option.name,
                        option.help,
                        c"",
                        guc,
                        GucContext::Sighup,
                        flags,
                        *hook,
                        None,
                        None,
                    );
                }
            }
            (Storage::Int(guc), Kind::Int { min, max, unit }) => {
                match unit {
                    Unit::Plain => {}
                    Unit::Seconds => flags |= GucFlags::UNIT_S,
                    Unit::Milliseconds => flags |= GucFlags::UNIT_MS,
                }
                GucRegistry::define_int_guc(
                    option.name,
                    option.help,
                    c"",
                    guc,
                    min,
                    max,
                    GucContext::Sighup,
                    flags,
                );
            }
            (Storage::Bool(guc), _) => GucRegistry::define_bool_guc(
                option.name,
                option.help,
                c"",
                guc,
                GucContext::Sighup,
                flags,
            ),
            (Storage::Int(_), _) => {}
        }
    }
    // SAFETY: the prefix is a constant; nothing else registers settings below it.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"nrt_backup".as_ptr()) };
}

/// Refuses a text that the option's check refuses, with the reason as the error's DETAIL.
unsafe extern "C-unwind" fn check<const INDEX: usize>(
    new_value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    let judge = move || {
        // SAFETY: PostgreSQL passes a pointer to the proposed value, which may be NULL.
        let value = unsafe { *new_value };
        if value.is_null() {
            return true;
        }
        // SAFETY: a value that is not NULL is a string with an end.
        let text = unsafe { CStr::from_ptr(value) }.to_string_lossy();
        match (options::ALL[INDEX].check)(&text) {
            Ok(()) => true,
            Err(reason) => {
                let reason = CString::new(reason).unwrap_or_default();
                // SAFETY: PostgreSQL wants a copy in its own memory, which pstrdup makes; the
                // variable is read right after this hook by the process that called it.
                unsafe { pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(reason.as_ptr()) };
                false
            }
        }
    };
    // SAFETY: the closure holds nothing that a longjmp over it would leak.
    unsafe { pgrx_extern_c_guard(judge) }
}

/// The text of an option as it is in force.
pub(crate) fn value_of(option: &'static Opt) -> String {
    let position = options::ALL.iter().position(|it| std::ptr::eq(*it, option));
    match position.and_then(|index| STORAGES.get(index)) {
        Some(Storage::Text(guc, _)) => {
            guc.get().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
        }
        Some(Storage::Int(guc)) => guc.get().to_string(),
        Some(Storage::Bool(guc)) => if guc.get() { "on" } else { "off" }.to_string(),
        None => String::new(),
    }
}

/// The settings in force.
pub(crate) fn current() -> Settings {
    let server_zone = postgres::config_option(c"timezone").unwrap_or_default();
    let settings = Settings::read(value_of, &server_zone);
    // The look chooses, and archive_command archives there already.
    let chosen = settings.stanza.is_empty().then(state_directory::own_tool).flatten();
    match chosen.filter(|it| stanza::is_chosen(&it.stanza, postgres::system_identifier())) {
        Some(tool) => settings.with_stanza(&tool.stanza),
        None => settings,
    }
}
