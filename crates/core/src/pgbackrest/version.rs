//! Knows which version of pgBackRest can do what.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A released version of pgBackRest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// 2 in 2.55.1.
    pub major: u16,
    /// 55 in 2.55.1.
    pub minor: u16,
    /// 1 in 2.55.1; 0 where the version has two parts.
    pub patch: u16,
}

/// The oldest version that we work with: Debian 12's.
pub const MINIMUM: Version = Version::new(2, 45, 0);

impl Version {
    /// The version with these parts.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Version {
        Version { major, minor, patch }
    }

    /// Reads what `pgbackrest version` prints: `pgBackRest 2.45`, `pgBackRest 2.59.0`.
    ///
    /// Other lines are skipped, because a warning may stand before it. A word after the number,
    /// as development builds have it, is ignored.
    pub fn parse(output: &str) -> Option<Version> {
        let number = output.lines().find_map(|line| line.trim().strip_prefix("pgBackRest "))?;
        let mut parts = number.trim().splitn(3, '.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            (part.get(..digits).and_then(|text| text.parse().ok()), digits == part.len())
        });
        let (major, whole) = parts.next()?;
        // "2x.45" is not version 2.45: only the last part may have a word behind it.
        let (minor, minor_whole) = parts.next().filter(|_| whole)?;
        let patch = match parts.next() {
            Some((patch, _)) if minor_whole => patch?,
            Some(_) => return None,
            None => 0,
        };
        Some(Version { major: major?, minor: minor?, patch })
    }

    fn since(self, minor: u16) -> bool {
        self >= Version::new(2, minor, 0)
    }

    /// Whether we work with it at all.
    pub fn supported(self) -> bool {
        self >= MINIMUM
    }

    /// Whether it can store many small files as one (`repo-bundle`).
    pub fn bundles(self) -> bool {
        self.since(39)
    }

    /// Whether it can store only the changed parts of a file (`repo-block`), not as a beta.
    pub fn block_incremental(self) -> bool {
        self.since(46)
    }

    /// Whether a backup can carry notes (`--annotation`).
    pub fn annotations(self) -> bool {
        self.since(41)
    }

    /// Whether `info` and the lock file tell the bytes of a running backup.
    pub fn reports_bytes(self) -> bool {
        self.since(48)
    }

    /// The name of the file in the lock path that a backup or an expire of the stanza holds.
    pub fn lock_name(self, stanza: &str) -> String {
        if self.since(53) {
            // One for each repository; a backup without `--repo` goes to the first.
            format!("{stanza}-backup-1.lock")
        } else {
            format!("{stanza}-backup.lock")
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        // From 2.54 on releases have three parts, before it only some: 2.45, 2.52.1, 2.54.0.
        if self.patch > 0 || self.since(54) { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn reads_every_form_of_a_version() {
        for (text, expected) in [
            ("pgBackRest 2.45", Some(Version::new(2, 45, 0))),
            ("pgBackRest 2.59.0\n", Some(Version::new(2, 59, 0))),
            ("pgBackRest 2.52.1", Some(Version::new(2, 52, 1))),
            ("pgBackRest 2.61dev", Some(Version::new(2, 61, 0))),
            ("pgBackRest 2.61.0dev", Some(Version::new(2, 61, 0))),
            ("pgBackRest 3.0.0", Some(Version::new(3, 0, 0))),
            ("WARN: environment contains invalid option 'x'\npgBackRest 2.45\n", Some(MINIMUM)),
            ("", None),
            ("pgBackRest", None),
            ("pgBackRest 2", None),
            ("pgBackRest two.five", None),
            ("pgBackRest 2.", None),
            ("pgBackRest 2x.45", None),
            ("pgBackRest 2.4x.5", None),
            ("pgBackRest 2.99999", None),
            ("rclone v1.60.1", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn writes_a_version_as_pgbackrest_does() {
        for text in ["2.45", "2.52.1", "2.53", "2.53.1", "2.54.0", "2.55.1", "2.60.0"] {
            let version = Version::parse(&format!("pgBackRest {text}")).expect(text);
            assert_eq!(version.to_string(), text);
        }
    }

    #[test]
    fn tells_versions_apart_by_number_not_by_text() {
        assert!(Version::new(2, 100, 0) > Version::new(2, 60, 0));
        assert!(Version::new(2, 55, 1) > Version::new(2, 55, 0));
        assert!(!Version::new(2, 44, 9).supported());
        assert!(MINIMUM.supported() && MINIMUM.bundles() && MINIMUM.annotations());
        assert!(!MINIMUM.block_incremental() && Version::new(2, 46, 0).block_incremental());
        assert!(!Version::new(2, 47, 0).reports_bytes() && Version::new(2, 48, 0).reports_bytes());
    }

    #[test]
    fn names_the_lock_file_that_was_recorded() {
        for recorded in fixtures::RECORDED {
            let name = fixtures::version(recorded).lock_name("main");
            assert_eq!(fixtures::list(recorded, "lock"), [name], "{recorded}");
        }
    }
}
