//! Reads the variables that a container is started with.

use std::collections::BTreeMap;
use std::fs;

use nrt_core::encoded;
use nrt_core::options::{self, truth};
use nrt_core::restore::Refusal;

/// The longest secret that a file may hold.
const LONGEST: u64 = 1 << 20;

/// The environment. A variable without a value counts as absent.
#[derive(Debug, Clone)]
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Those of this process, with what stands in the files that `…_FILE` names.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a variable that is given twice.
    pub(super) fn of_process() -> Result<Variables, Refusal> {
        let text = |it: std::ffi::OsString| it.to_string_lossy().into_owned();
        let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
        let mut variables = Variables::of(all);
        for name in [encoded::VARIABLE, "POSTGRES_DB"] {
            variables.read_file_of(name)?;
        }
        Ok(variables)
    }

    pub(super) fn of(all: impl Iterator<Item = (String, String)>) -> Variables {
        Variables(all.filter(|(_, value)| !value.trim().is_empty()).collect())
    }

    /// Its value, if it has one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether a switch is on.
    ///
    /// # Errors
    ///
    /// If that is not what its value says.
    pub(super) fn switch(&self, name: &str, default: bool) -> Result<bool, Refusal> {
        let Some(value) = self.get(name) else { return Ok(default) };
        truth(value).ok_or_else(|| bad(name, value, "Write true or false."))
    }

    /// The settings that are given, in the order of the documents.
    ///
    /// # Errors
    ///
    /// The first that the server would refuse.
    pub(super) fn settings(&self) -> Result<Vec<(&'static str, &str)>, Refusal> {
        let given = options::ALL.into_iter().filter_map(|option| {
            let variable = option.environment?;
            Some((option, variable, self.get(variable)?))
        });
        let judged = given.map(|(option, variable, value)| match option.check_value(value) {
            Ok(()) => Ok((option.name(), value)),
            Err(reason) => Err(bad(variable, value, &reason)),
        });
        judged.collect()
    }

    /// Forgets one.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Forgets what is in rclone's configuration file now.
    pub(super) fn forget_remote(&mut self) {
        self.forget(encoded::VARIABLE);
        self.forget(&file_of(encoded::VARIABLE));
    }

    /// Forgets what only the initialisation needs.
    pub(super) fn forget_password(&mut self) {
        self.forget("POSTGRES_PASSWORD");
        self.forget("PGPASSWORD");
    }

    fn read_file_of(&mut self, name: &str) -> Result<(), Refusal> {
        let variable = file_of(name);
        let Some(path) = self.get(&variable).map(str::to_string) else { return Ok(()) };
        if self.get(name).is_some() {
            return Err(Refusal::new(
                format!("{name} and {variable} are both set"),
                "Set one of them.",
            ));
        }
        let size = fs::metadata(&path).map(|it| it.len());
        let text = size.and_then(|size| match size {
            0..=LONGEST => fs::read_to_string(&path),
            _ => Err(std::io::Error::other("it is larger than 1 MB")),
        });
        let text = text.map_err(|error| {
            Refusal::new(
                format!("{variable} is \"{path}\", which cannot be read: {error}"),
                "Name a file that is mounted into the container.",
            )
        })?;
        // The official entrypoint would read it, too, and set the variable.
        self.0.remove(&variable);
        self.0.insert(name.to_string(), text.trim_end_matches('\n').to_string());
        Ok(())
    }
}

fn file_of(name: &str) -> String {
    format!("{name}_FILE")
}

/// A refusal that names the variable.
pub(super) fn bad(name: &str, value: &str, reason: &str) -> Refusal {
    Refusal::new(format!("{name} is {value:?}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(given: &[(&str, &str)]) -> Variables {
        Variables::of(given.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn what_is_given_becomes_a_setting_and_what_is_empty_does_not() {
        let given = variables(&[
            ("WAL_GROWTH_THRESHOLD", "1MB"),
            ("PGBACKREST_STANZA", ""),
            ("ENABLE_WAL_MONITOR", "false"),
            ("POSTGRES_DB", "shop"),
            ("PATH", "/bin"),
        ]);
        let settings = given.settings().expect("all are good");
        let expected = [
            ("nrt_backup.wal_monitor", "false"),
            ("nrt_backup.wal_growth_threshold", "1MB"),
            ("nrt_backup.name", "shop"),
        ];
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_variable() {
        for (name, value) in [
            ("BASE_BACKUP_SCHEDULE", "99 3 * * *"),
            ("BACKUP_RETENTION_DAYS", "0"),
            ("WAL_MONITOR_INTERVAL", "soon"),
            ("ENABLE_WAL_MONITOR", "perhaps"),
            ("PGBACKREST_STANZA", "a b"),
            ("RCLONE_REMOTE_NAME", "s3:"),
            ("RCLONE_REMOTE_PATH", "../x"),
        ] {
            let given = variables(&[(name, value)]);
            let refusal = given.settings().expect_err(name);
            assert!(refusal.message.starts_with(&format!("{name} is ")), "{refusal:?}");
            assert!(!refusal.hint.is_empty(), "{refusal:?}");
        }
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let given = variables(&[("A", "true"), ("B", "off"), ("C", "perhaps")]);
        assert_eq!(given.switch("A", false), Ok(true));
        assert_eq!(given.switch("B", true), Ok(false));
        assert_eq!(given.switch("D", true), Ok(true));
        assert!(given.switch("C", true).is_err());
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "shop\n").expect("written");
        let path = file.path().to_string_lossy().into_owned();
        let mut given = variables(&[("POSTGRES_DB_FILE", &path)]);
        given.read_file_of("POSTGRES_DB").expect("read");
        assert_eq!(given.get("POSTGRES_DB"), Some("shop"));
        assert_eq!(given.get("POSTGRES_DB_FILE"), None);
        let mut twice = variables(&[("POSTGRES_DB_FILE", &path), ("POSTGRES_DB", "x")]);
        assert!(twice.read_file_of("POSTGRES_DB").is_err());
        let mut gone = variables(&[("POSTGRES_DB_FILE", "/nowhere")]);
        let refusal = gone.read_file_of("POSTGRES_DB").expect_err("it is not there");
        assert!(refusal.message.contains("POSTGRES_DB_FILE"), "{refusal:?}");
    }
}
