//! Writes the private configuration file that pgBackRest runs with.

use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names::valid_stanza_name;
use super::version::Version;

/// How pgBackRest packs what it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressType {
    /// Not at all.
    None,
    /// pgBackRest's own default, five times as dear as zst.
    Gz,
    /// Slow and small.
    Bz2,
    /// Quick and large.
    Lz4,
    /// What we use unless told otherwise.
    Zst,
}

impl CompressType {
    /// All of them.
    pub const ALL: [CompressType; 5] = [
        CompressType::None,
        CompressType::Gz,
        CompressType::Bz2,
        CompressType::Lz4,
        CompressType::Zst,
    ];

    /// The name that pgBackRest's `compress-type` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            CompressType::None => "none",
            CompressType::Gz => "gz",
            CompressType::Bz2 => "bz2",
            CompressType::Lz4 => "lz4",
            CompressType::Zst => "zst",
        }
    }
}

impl fmt::Display for CompressType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CompressType {
    type Err = BadConfig;

    fn from_str(text: &str) -> Result<Self, BadConfig> {
        CompressType::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
            bad("compression type", text, "it is one of none, gz, bz2, lz4 and zst".to_string())
        })
    }
}

/// What the configuration file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigInput {
    /// The version that will read it.
    pub version: Version,
    /// The stanza: the name under which the repository knows this cluster.
    pub stanza: String,
    /// The directory of the repository.
    pub repository: String,
    /// Where pgBackRest keeps its locks. Whoever else runs it on the stanza must use the same.
    pub lock_path: String,
    /// Where its log files would go. Log files are switched off; the option is set so that no
    /// version looks at the default directory, which may not exist.
    pub log_path: String,
    /// Where asynchronous archiving keeps its notes.
    pub spool_path: String,
    /// The data directory.
    pub pg_path: String,
    /// The server's port.
    pub pg_port: u16,
    /// The directory of the server's socket; libpq's default if absent.
    pub pg_socket: Option<String>,
    /// The role that pgBackRest connects as.
    pub pg_user: String,
    /// The database that it connects to.
    pub pg_database: String,
    /// For how many days the cluster can be taken back. pgBackRest keeps every full backup of
    /// the last days and the newest one before them, so that the first of these days can be
    /// reached too, with all that depends on them.
    pub retention_days: u32,
    /// How many processes pack files at the same time.
    pub process_max: u16,
    /// How stored files are packed.
    pub compress_type: CompressType,
    /// For how many seconds a backup waits until its WAL is in the repository.
    pub archive_timeout: u32,
    /// What is left out of backups, relative to the data directory. With a slash at the end
    /// the directory is kept and its contents are left out.
    pub exclude: Vec<String>,
}

/// A value that cannot stand in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} \"{value}\" cannot be used: {reason}")]
pub struct BadConfig {
    /// What the value was meant for.
    pub what: &'static str,
    /// The value, without characters that would break the message.
    pub value: String,
    /// Why not.
    pub reason: String,
}

fn bad(what: &'static str, value: &str, reason: String) -> BadConfig {
    BadConfig { what, value: value.escape_debug().to_string(), reason }
}

/// Takes a value that pgBackRest reads back as it was written.
///
/// Its file has no quoting: a value ends with the line, and blanks around it are dropped. So a
/// line break would begin another option.
fn plain<'a>(what: &'static str, value: &'a str) -> Result<&'a str, BadConfig> {
    if value.is_empty() {
        Err(bad(what, value, "it is empty".to_string()))
    } else if value.chars().any(char::is_control) {
        Err(bad(what, value, "it contains a control character".to_string()))
    } else if value.trim() != value {
        Err(bad(what, value, "it begins or ends with a blank".to_string()))
    } else {
        Ok(value)
    }
}

/// Takes a path that pgBackRest takes, without a slash at its end.
fn path<'a>(what: &'static str, value: &'a str) -> Result<&'a str, BadConfig> {
    let value = plain(what, value)?;
    if !value.starts_with('/') {
        return Err(bad(what, value, "it does not begin with \"/\"".to_string()));
    }
    if value.contains("//") {
        return Err(bad(what, value, "it contains \"//\"".to_string()));
    }
    if value.len() > 1 { Ok(value.strip_suffix('/').unwrap_or(value)) } else { Ok(value) }
}

fn at_least_one(what: &'static str, value: u64, most: u64) -> Result<u64, BadConfig> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(bad(what, &value.to_string(), format!("it is not between 1 and {most}")))
    }
}

/// The configuration file as text.
///
/// Every option in it is one that the version knows: an unknown one is a warning on each run.
/// Options that a command does not know are ignored when they stand in a file, so one file does
/// for all commands.
pub fn render(input: &ConfigInput) -> Result<String, BadConfig> {
    valid_stanza_name(&input.stanza)
        .map_err(|reason| bad("the stanza name", &input.stanza, reason))?;
    let retention = at_least_one("the retention in days", input.retention_days.into(), 9_999_999)?;
    let processes = at_least_one("the number of processes", input.process_max.into(), 999)?;
    let timeout = at_least_one("the archive timeout", input.archive_timeout.into(), 86_400)?;
    let port = at_least_one("the port", input.pg_port.into(), 65_535)?;

    let mut file = Lines(String::from(
        "# Written by nrt_backup, which overwrites it. To use a configuration of your own, name its\n\
         # file in nrt_backup.pgbackrest_config.\n",
    ));
    file.section("global");
    file.option("repo1-path", path("the repository path", &input.repository)?);
    file.option("repo1-retention-full-type", "time");
    file.option("repo1-retention-full", retention);
    // Else the manifests of expired backups stay for ever. Those of others are always kept.
    file.option("repo1-retention-history", retention);
    if input.version.bundles() {
        file.option("repo1-bundle", "y");
        if input.version.block_incremental() {
            file.option("repo1-block", "y");
        }
    }
    file.option("lock-path", path("the lock path", &input.lock_path)?);
    file.option("log-path", path("the log path", &input.log_path)?);
    file.option("spool-path", path("the spool path", &input.spool_path)?);
    file.option("log-level-file", "off");
    file.option("log-level-console", "warn");
    // Since 2.53 that is the default. Before, a failure went to one stream and the rest to the
    // other, and the order of the two was lost.
    file.option("log-level-stderr", "off");
    file.option("compress-type", input.compress_type);
    file.option("process-max", processes);
    file.option("start-fast", "y");
    // A process of a killed backup may still write into what a resumed one takes over.
    file.option("resume", "n");
    file.option("archive-timeout", timeout);
    if !input.exclude.is_empty() {
        file.blank();
        file.section("global:backup");
        for name in &input.exclude {
            let name = plain("the exclusion", name)?;
            if name.starts_with('/') {
                let reason = "it is not relative to the data directory".to_string();
                return Err(bad("the exclusion", name, reason));
            }
            file.option("exclude", name);
        }
    }
    file.blank();
    file.section(&input.stanza);
    file.option("pg1-path", path("the data directory", &input.pg_path)?);
    file.option("pg1-port", port);
    if let Some(socket) = &input.pg_socket {
        file.option("pg1-socket-path", path("the socket directory", socket)?);
    }
    file.option("pg1-user", plain("the role", &input.pg_user)?);
    file.option("pg1-database", plain("the database", &input.pg_database)?);
    Ok(file.0)
}

/// The lines of an INI file.
struct Lines(String);

impl Lines {
    fn push(&mut self, line: fmt::Arguments<'_>) {
        self.0.write_fmt(line).expect("writing to a string cannot fail");
        self.0.push('\n');
    }

    fn section(&mut self, name: &str) {
        self.push(format_args!("[{name}]"));
    }

    fn option(&mut self, name: &str, value: impl fmt::Display) {
        self.push(format_args!("{name}={value}"));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use proptest::prelude::*;

    fn input() -> ConfigInput {
        ConfigInput {
            version: Version::new(2, 60, 0),
            stanza: "main".into(),
            repository: "/srv/pg/repository".into(),
            lock_path: "/srv/pg/lock".into(),
            log_path: "/srv/pg/log".into(),
            spool_path: "/srv/pg/spool".into(),
            pg_path: "/srv/pg/data".into(),
            pg_port: 5432,
            pg_socket: Some("/srv/pg/socket".into()),
            pg_user: "postgres".into(),
            pg_database: "postgres".into(),
            retention_days: 3,
            process_max: 1,
            compress_type: CompressType::Zst,
            archive_timeout: 60,
            exclude: vec!["nrt_backup/".into()],
        }
    }

    /// The recordings were made with these files, so each version takes each line.
    /// `repo1-retention-history` came later; pgBackRest knows it since 2.36.
    #[test]
    fn writes_what_each_version_was_recorded_with() {
        for recorded in fixtures::RECORDED {
            let input = ConfigInput { version: fixtures::version(recorded), ..input() };
            assert_eq!(
                render(&input).expect("good input"),
                fixtures::text(recorded, "pgbackrest.conf"),
                "{recorded}"
            );
            // No word at the level of warnings: none about an unknown option, either.
            assert_eq!(fixtures::text(recorded, "exits/check.0.txt"), "", "{recorded}");
        }
    }

    #[test]
    fn leaves_out_what_was_not_given() {
        let input = ConfigInput { pg_socket: None, exclude: vec![], ..input() };
        let text = render(&input).expect("good input");
        assert!(!text.contains("socket") && !text.contains("exclude"), "{text}");
        assert!(!text.contains("[global:backup]"), "{text}");
    }

    #[test]
    fn drops_a_slash_at_the_end_of_a_path_but_not_of_an_exclusion() {
        let input = ConfigInput { repository: "/srv/r/".into(), ..input() };
        let text = render(&input).expect("good input");
        assert!(text.contains("\nrepo1-path=/srv/r\n"), "{text}");
        assert!(text.contains("\nexclude=nrt_backup/\n"), "{text}");
    }

    #[test]
    fn refuses_what_would_not_be_read_back() {
        type Spoil = fn(&mut ConfigInput);
        let cases: [(Spoil, &str); 14] = [
            (|i| i.stanza = "a]\n[global".into(), "the stanza name \"a]\\n[global\""),
            (|i| i.stanza = "global".into(), "section"),
            (|i| i.repository = "/r\nrepo1-host=evil".into(), "control character"),
            (|i| i.repository = "relative".into(), "does not begin with \"/\""),
            (|i| i.repository = "/a//b".into(), "contains \"//\""),
            (|i| i.repository = String::new(), "it is empty"),
            (|i| i.pg_path = "/data ".into(), "begins or ends with a blank"),
            (|i| i.pg_user = "x\r".into(), "control character"),
            (|i| i.pg_socket = Some("@abstract".into()), "the socket directory \"@abstract\""),
            (|i| i.retention_days = 0, "the retention in days \"0\""),
            (|i| i.process_max = 1000, "between 1 and 999"),
            (|i| i.pg_port = 0, "the port"),
            (|i| i.archive_timeout = 86_401, "between 1 and 86400"),
            (|i| i.exclude = vec!["/etc".into()], "not relative"),
        ];
        for (spoil, expected) in cases {
            let mut input = input();
            spoil(&mut input);
            let message = render(&input).expect_err(expected).to_string();
            assert!(message.contains(expected), "{expected}: {message}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn reads_its_own_compression_names() {
        for one in CompressType::ALL {
            assert_eq!(one.to_string().parse(), Ok(one));
        }
        assert!("zstd".parse::<CompressType>().is_err());
    }

    proptest! {
        /// Whatever a value is, it never adds an option or a section.
        #[test]
        fn no_value_can_add_a_line(value in "\\PC*|[/\\na-z= \\[\\]#\\r\\t\u{85}\u{2028}]*") {
            let usual = render(&input()).expect("good input").lines().count();
            let spoilt = [
                ConfigInput { pg_user: value.clone(), ..input() },
                ConfigInput { repository: format!("/{value}"), ..input() },
                ConfigInput { exclude: vec![value.clone()], ..input() },
                ConfigInput { stanza: value, ..input() },
            ];
            for input in spoilt {
                if let Ok(text) = render(&input) {
                    prop_assert_eq!(text.lines().count(), usual, "{}", text);
                }
            }
        }
    }
}
