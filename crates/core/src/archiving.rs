//! Decides who archives finished WAL segments: whether nrt_backup gives PostgreSQL defaults for it,
//! and what the server's settings come to.

/// PostgreSQL's version from which on its archiver refuses to work with both `archive_command` and
/// `archive_library`.
const REFUSES_BOTH: i32 = 160_000;

/// Whether `archive_mode` and `archive_command` get defaults under which pgBackRest archives.
///
/// PostgreSQL checks that archiving goes with `wal_level` before it loads libraries: with `minimal`
/// archiving must stay off, or nobody would notice that the archived WAL is of no use. Where the
/// operator has set `archive_library`, from PostgreSQL 16 on a command beside it ends the archiver
/// again and again, and before that the library works and the command does not. So neither default
/// is given: `archive_mode` would start a library that the operator has not switched on.
pub fn needs_defaults(wal_level: &str, archive_library: &str) -> bool {
    wal_level != "minimal" && archive_library.is_empty()
}

/// Who archives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Archiver {
    /// Our `archive_command`.
    #[default]
    Ours,
    /// A command of the operator's that runs pgBackRest.
    PgBackRest,
    /// A command of the operator's that does not.
    Foreign(String),
    /// A library of the operator's.
    Library(String),
    /// A library, and a command beside it, which this version of PostgreSQL refuses.
    Both(String),
    /// Nobody.
    Nobody,
}

impl Archiver {
    /// Who archives under these settings of a server of version `server_version_num`, where `ours`
    /// is our own command.
    pub fn of(library: &str, command: &str, ours: &str, server_version_num: i32) -> Archiver {
        let has_command = !command.is_empty() && command != "(disabled)";
        if !library.is_empty() {
            let refused = has_command && server_version_num >= REFUSES_BOTH;
            let which = if refused { Archiver::Both } else { Archiver::Library };
            which(library.to_string())
        } else if !has_command {
            Archiver::Nobody
        } else if command == ours {
            Archiver::Ours
        } else if command.contains("pgbackrest") {
            Archiver::PgBackRest
        } else {
            Archiver::Foreign(command.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_default_where_a_library_archives_or_the_wal_is_of_no_use() {
        for (level, library, expected) in [
            ("replica", "", true),
            ("logical", "", true),
            ("minimal", "", false),
            ("replica", "basic_archive", false),
            ("minimal", "basic_archive", false),
        ] {
            assert_eq!(needs_defaults(level, library), expected, "{level} {library}");
        }
    }

    #[test]
    fn a_library_beside_a_command_is_refused_from_16_on() {
        let library = || "basic_archive".to_string();
        for (settings, version, expected) in [
            (("", "ours"), 15_0000, Archiver::Ours),
            (("", "ours"), 18_0000, Archiver::Ours),
            (("", "pgbackrest archive-push %p"), 17_0002, Archiver::PgBackRest),
            (("", "cp %p /x/%f"), 16_0000, Archiver::Foreign("cp %p /x/%f".to_string())),
            (("", ""), 16_0000, Archiver::Nobody),
            (("", "(disabled)"), 16_0000, Archiver::Nobody),
            (("basic_archive", "ours"), 15_0020, Archiver::Library(library())),
            (("basic_archive", "ours"), 16_0000, Archiver::Both(library())),
            (("basic_archive", "cp %p /x/%f"), 18_0001, Archiver::Both(library())),
            (("basic_archive", ""), 16_0000, Archiver::Library(library())),
            (("basic_archive", "(disabled)"), 18_0000, Archiver::Library(library())),
        ] {
            let (library, command) = settings;
            assert_eq!(Archiver::of(library, command, "ours", version), expected, "{settings:?}");
        }
    }
}
