//! Reads what `pgbackrest info --output=json` says about a stanza.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::log::json_of;
use super::progress::Progress;
use crate::kind::BackupType;
use crate::lsn::Lsn;

/// The stanza's directory is not in the repository, or there is no repository.
pub const MISSING_STANZA_PATH: i64 = 1;
/// The stanza is there and holds no backup, also while its first one runs.
pub const NO_VALID_BACKUPS: i64 = 2;
/// The stanza's directory is there, its info files are not.
pub const MISSING_STANZA_DATA: i64 = 3;
/// Some repositories are in order and others are not; [`StanzaInfo::messages`] says more.
pub const DIFFERENT: i64 = 4;
/// Something else; [`StanzaInfo::messages`] says what.
pub const OTHER: i64 = 99;

/// What the repository holds of one stanza.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StanzaInfo {
    /// 0 if the stanza is readable and has a backup; see the constants of this module.
    pub code: i64,
    /// pgBackRest's word for the code.
    pub message: String,
    /// What it says about each repository that is not in order, such as a broken file; several
    /// lines each.
    pub messages: Vec<String>,
    /// Whether a backup or an expire holds the lock now.
    pub locked: bool,
    /// How far the running backup is; absent up to 2.47, and until its list of files is made.
    pub progress: Option<Progress>,
    /// The clusters that the stanza has seen, oldest first. The last one is the current.
    pub databases: Vec<Database>,
    /// What there is of WAL, per cluster. Gaps are not told here.
    pub archives: Vec<Archive>,
    /// The finished backups, oldest first.
    pub backups: Vec<Backup>,
}

/// A cluster that a stanza has seen. An upgrade makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Counts from 1.
    pub id: u32,
    /// The repository that says so.
    pub repo: u32,
    /// The cluster's own identity, from pg_control.
    pub system_id: u64,
    /// PostgreSQL's major version, as text.
    pub version: String,
}

/// The first and the last WAL segment in the archive of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// PostgreSQL's version and the database's id: `15-1`.
    pub id: String,
    /// The database's id.
    pub database_id: u32,
    /// The repository that holds it.
    pub repo: u32,
    /// The first segment by name; absent if there is none.
    pub min: Option<String>,
    /// The last segment by name; absent if there is none.
    pub max: Option<String>,
}

/// A finished backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The name of the backup and of its directory.
    pub label: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// The backup that this one was made after; absent for a full one.
    pub prior: Option<String>,
    /// All backups whose files this one needs.
    pub references: Vec<String>,
    /// Whether pages with a wrong checksum were found; absent if unknown.
    pub error: Option<bool>,
    /// When it began.
    pub start_time: DateTime<Utc>,
    /// When it ended.
    pub stop_time: DateTime<Utc>,
    /// Where recovery begins; absent for a backup of a stopped server.
    pub start_lsn: Option<Lsn>,
    /// From where on the restored cluster is consistent; absent like `start_lsn`.
    pub stop_lsn: Option<Lsn>,
    /// The first WAL segment that it needs.
    pub archive_start: Option<String>,
    /// The last WAL segment without which it is of no use.
    pub archive_stop: Option<String>,
    /// The timeline that it was taken on.
    pub timeline: Option<u32>,
    /// Which of the stanza's clusters it is of.
    pub database_id: u32,
    /// The repository that holds it.
    pub repo: u32,
    /// The bytes of the cluster.
    pub size: Option<u64>,
    /// The bytes of the cluster that this backup copied.
    pub delta: Option<u64>,
    /// The bytes that it needs in the repository, with all it refers to; absent for a block
    /// incremental backup.
    pub repo_size: Option<u64>,
    /// The bytes that it added to the repository.
    pub repo_delta: Option<u64>,
    /// The version of pgBackRest that took it.
    pub pgbackrest: String,
    /// Notes that it carries.
    pub annotations: BTreeMap<String, String>,
}

/// An answer of `info` that we cannot read.
#[derive(Debug, thiserror::Error)]
pub enum BadInfo {
    /// It is not the JSON that pgBackRest prints.
    #[error("pgBackRest's answer to info is not what any known version prints: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// An instant that no clock can show.
    #[error("backup \"{label}\" has the impossible time {seconds}")]
    Time {
        /// The backup.
        label: String,
        /// Seconds since 1970.
        seconds: i64,
    },
}

/// Reads `info --output=json` and picks the stanza.
///
/// An answer that does not mention the stanza, as one without `--stanza` on an empty repository,
/// is [`MISSING_STANZA_PATH`].
pub fn parse_info(output: &str, stanza: &str) -> Result<StanzaInfo, BadInfo> {
    let all: Vec<raw::Stanza> = serde_json::from_str(json_of(output))?;
    let Some(found) = all.into_iter().find(|one| one.name == stanza) else {
        return Ok(StanzaInfo {
            code: MISSING_STANZA_PATH,
            message: "missing stanza path".to_string(),
            messages: Vec::new(),
            locked: false,
            progress: None,
            databases: Vec::new(),
            archives: Vec::new(),
            backups: Vec::new(),
        });
    };
    let lock = found.status.lock.backup;
    let troubled = found.repo.into_iter().filter(|repo| repo.status.code != 0);
    let bytes = lock.done.zip(lock.total).filter(|_| lock.held);
    Ok(StanzaInfo {
        code: found.status.code,
        message: found.status.message,
        messages: troubled.map(|repo| repo.status.message).collect(),
        locked: lock.held,
        progress: bytes.map(|(done, total)| Progress::of_bytes(done, total)),
        databases: found.db.into_iter().map(raw::Database::into).collect(),
        archives: found.archive.into_iter().map(raw::Archive::into).collect(),
        backups: found.backup.into_iter().map(raw::Backup::read).collect::<Result<_, _>>()?,
    })
}

/// Reads the backups of a cluster from the text of a `backup.info`, oldest first: pgBackRest's own
/// file in a repository that it is not asked about. None, where that is encrypted or damaged.
pub fn backups_in(info: &str, system_id: u64) -> Vec<Backup> {
    let lines_of = |section: &str| {
        let header = format!("[{section}]");
        let lines = info.lines().skip_while(move |line| line.trim() != header).skip(1);
        lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('='))
    };
    let ids: Vec<u32> = lines_of("db:history")
        .filter_map(|(id, text)| {
            let database: raw::KnownDatabase = serde_json::from_str(text).ok()?;
            (database.system_id == system_id).then(|| id.trim().parse().ok())?
        })
        .collect();
    let listed = lines_of("backup:current").filter_map(|(label, text)| {
        serde_json::from_str::<raw::ListedBackup>(text).ok()?.read(label.trim())
    });
    let mut backups: Vec<Backup> = listed.filter(|it| ids.contains(&it.database_id)).collect();
    backups.sort_by(|a, b| (a.stop_time, &a.label).cmp(&(b.stop_time, &b.label)));
    backups
}

/// The timeline in a WAL segment's name.
fn timeline_of(segment: &str) -> Option<u32> {
    u32::from_str_radix(segment.get(..8)?, 16).ok()
}

impl From<raw::Database> for Database {
    fn from(raw: raw::Database) -> Database {
        Database { id: raw.id, repo: raw.repo, system_id: raw.system_id, version: raw.version }
    }
}

impl From<raw::Archive> for Archive {
    fn from(raw: raw::Archive) -> Archive {
        Archive {
            id: raw.id,
            database_id: raw.database.id,
            repo: raw.database.repo,
            min: raw.min,
            max: raw.max,
        }
    }
}

/// The JSON as pgBackRest prints it. Whatever some version or state leaves out has a default.
mod raw {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use serde::Deserialize;

    use super::{BadInfo, timeline_of};
    use crate::kind::BackupType;
    use crate::lsn::Lsn;

    #[derive(Deserialize)]
    pub(super) struct Stanza {
        pub(super) name: String,
        pub(super) status: Status,
        #[serde(default)]
        pub(super) repo: Vec<Repo>,
        #[serde(default)]
        pub(super) db: Vec<Database>,
        #[serde(default)]
        pub(super) archive: Vec<Archive>,
        #[serde(default)]
        pub(super) backup: Vec<Backup>,
    }

    #[derive(Deserialize)]
    pub(super) struct Status {
        pub(super) code: i64,
        pub(super) message: String,
        #[serde(default)]
        pub(super) lock: Locks,
    }

    #[derive(Deserialize, Default)]
    pub(super) struct Locks {
        #[serde(default)]
        pub(super) backup: Lock,
    }

    #[derive(Deserialize, Default)]
    pub(super) struct Lock {
        #[serde(default)]
        pub(super) held: bool,
        #[serde(rename = "size-cplt")]
        pub(super) done: Option<u64>,
        #[serde(rename = "size")]
        pub(super) total: Option<u64>,
    }

    #[derive(Deserialize)]
    pub(super) struct Repo {
        pub(super) status: Status,
    }

    #[derive(Deserialize)]
    pub(super) struct Database {
        pub(super) id: u32,
        #[serde(rename = "repo-key", default = "first")]
        pub(super) repo: u32,
        #[serde(rename = "system-id")]
        pub(super) system_id: u64,
        pub(super) version: String,
    }

    #[derive(Deserialize)]
    pub(super) struct DatabaseKey {
        pub(super) id: u32,
        #[serde(rename = "repo-key", default = "first")]
        pub(super) repo: u32,
    }

    fn first() -> u32 {
        1
    }

    #[derive(Deserialize)]
    pub(super) struct Archive {
        pub(super) id: String,
        pub(super) database: DatabaseKey,
        pub(super) min: Option<String>,
        pub(super) max: Option<String>,
    }

    #[derive(Deserialize)]
    pub(super) struct Backup {
        label: String,
        #[serde(rename = "type")]
        kind: BackupType,
        prior: Option<String>,
        reference: Option<Vec<String>>,
        error: Option<bool>,
        timestamp: Span<i64>,
        lsn: Option<Span<Option<Lsn>>>,
        archive: Option<Span<Option<String>>>,
        database: DatabaseKey,
        #[serde(default)]
        info: Sizes,
        #[serde(default)]
        backrest: Writer,
        annotation: Option<BTreeMap<String, String>>,
    }

    #[derive(Deserialize)]
    struct Span<T> {
        start: T,
        stop: T,
    }

    #[derive(Deserialize, Default)]
    struct Sizes {
        size: Option<u64>,
        delta: Option<u64>,
        #[serde(default)]
        repository: StoredSizes,
    }

    #[derive(Deserialize, Default)]
    struct StoredSizes {
        size: Option<u64>,
        delta: Option<u64>,
    }

    #[derive(Deserialize, Default)]
    struct Writer {
        #[serde(default)]
        version: String,
    }

    /// A line of the section `[db:history]` of a `backup.info`.
    #[derive(Deserialize)]
    pub(super) struct KnownDatabase {
        #[serde(rename = "db-system-id")]
        pub(super) system_id: u64,
    }

    /// A line of the section `[backup:current]` of a `backup.info`.
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) struct ListedBackup {
        #[serde(default)]
        backrest_version: String,
        backup_archive_start: Option<String>,
        backup_archive_stop: Option<String>,
        backup_error: Option<bool>,
        backup_lsn_start: Option<Lsn>,
        backup_lsn_stop: Option<Lsn>,
        backup_prior: Option<String>,
        backup_reference: Option<Vec<String>>,
        backup_timestamp_start: i64,
        backup_timestamp_stop: i64,
        backup_type: BackupType,
        db_id: u32,
    }

    impl ListedBackup {
        pub(super) fn read(self, label: &str) -> Option<super::Backup> {
            Some(super::Backup {
                label: label.to_string(),
                kind: self.backup_type,
                prior: self.backup_prior,
                references: self.backup_reference.unwrap_or_default(),
                error: self.backup_error,
                start_time: DateTime::from_timestamp(self.backup_timestamp_start, 0)?,
                stop_time: DateTime::from_timestamp(self.backup_timestamp_stop, 0)?,
                start_lsn: self.backup_lsn_start,
                stop_lsn: self.backup_lsn_stop,
                timeline: self.backup_archive_start.as_deref().and_then(timeline_of),
                archive_start: self.backup_archive_start,
                archive_stop: self.backup_archive_stop,
                database_id: self.db_id,
                repo: 1,
                size: None,
                delta: None,
                repo_size: None,
                repo_delta: None,
                pgbackrest: self.backrest_version,
                annotations: BTreeMap::new(),
            })
        }
    }

    impl Backup {
        pub(super) fn read(self) -> Result<super::Backup, BadInfo> {
            let time = |seconds| {
                let label = || self.label.clone();
                DateTime::from_timestamp(seconds, 0)
                    .ok_or_else(|| BadInfo::Time { label: label(), seconds })
            };
            let (start_time, stop_time) = (time(self.timestamp.start)?, time(self.timestamp.stop)?);
            let (start_lsn, stop_lsn) =
                self.lsn.map_or((None, None), |span| (span.start, span.stop));
            let (archive_start, archive_stop) =
                self.archive.map_or((None, None), |span| (span.start, span.stop));
            let segment = archive_stop.as_deref().or(archive_start.as_deref());
            Ok(super::Backup {
                timeline: segment.and_then(timeline_of),
                label: self.label,
                kind: self.kind,
                prior: self.prior,
                references: self.reference.unwrap_or_default(),
                error: self.error,
                start_time,
                stop_time,
                start_lsn,
                stop_lsn,
                archive_start,
                archive_stop,
                database_id: self.database.id,
                repo: self.database.repo,
                size: self.info.size,
                delta: self.info.delta,
                repo_size: self.info.repository.size,
                repo_delta: self.info.repository.delta,
                pgbackrest: self.backrest.version,
                annotations: self.annotation.unwrap_or_default(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::TRIGGER_ANNOTATION;
    use super::super::fixtures;
    use super::super::names::valid_label;
    use super::*;
    use BackupType::{Diff, Full, Incr};

    fn recorded(version: &str, name: &str) -> StanzaInfo {
        let json = fixtures::text(version, &format!("info/{name}.json"));
        parse_info(&json, "main").unwrap_or_else(|error| panic!("{version} {name}: {error}"))
    }

    #[test]
    fn the_backups_of_a_cluster_are_read_from_a_backup_info() {
        let line = |db: u32, start: &str, stop: i64| {
            format!(
                "{{\"backrest-format\":5,\"backrest-version\":\"2.45\",\"backup-archive-start\":\
                 \"00000002000000000000000{start}\",\"backup-archive-stop\":\
                 \"00000002000000000000000{start}\",\"backup-error\":false,\"backup-lsn-start\":\
                 \"0/{start}000028\",\"backup-lsn-stop\":\"0/{start}000100\",\
                 \"backup-timestamp-start\":{},\"backup-timestamp-stop\":{stop},\
                 \"backup-type\":\"full\",\"db-id\":{db}}}",
                stop - 1
            )
        };
        let text = format!(
            "[backrest]\nbackrest-format=5\n\n[backup:current]\n20261122-010204F={}\n\
             20261122-010203F={}\n20261121-010203F={}\nx=nonsense\n\n[db]\ndb-id=2\n\n\
             [db:history]\n1={{\"db-system-id\":8}}\n2={{\"db-system-id\":7,\"db-version\":\"15\"}}\n",
            line(2, "5", 200),
            line(2, "3", 100),
            line(1, "1", 50)
        );
        let found = backups_in(&text, 7);
        let labels: Vec<&str> = found.iter().map(|it| it.label.as_str()).collect();
        assert_eq!(labels, ["20261122-010203F", "20261122-010204F"]);
        assert_eq!(found[0].timeline, Some(2));
        let lsn = (Some(Lsn(0x300_0028)), Some(Lsn(0x300_0100)));
        assert_eq!((found[0].start_lsn, found[0].stop_lsn), lsn);
        assert!(backups_in(&text, 9).is_empty() && backups_in("Salted__x", 7).is_empty());
    }

    #[test]
    fn reads_every_recorded_state() {
        let chain = vec![Full, Diff, Incr];
        let later = vec![Full, Diff, Incr, Incr];
        // name, code, locked, types of the backups
        let states: &[(&str, i64, bool, Vec<BackupType>)] = &[
            ("after-kill", 0, false, chain.clone()),
            ("broken", OTHER, false, vec![]),
            ("damaged", 0, false, later.clone()),
            ("full-diff-incr", 0, false, chain.clone()),
            ("missing-archive-info", OTHER, false, vec![]),
            ("missing-data", MISSING_STANZA_DATA, false, vec![]),
            ("no-backup", NO_VALID_BACKUPS, false, vec![]),
            ("no-repository", MISSING_STANZA_PATH, false, vec![]),
            ("no-stanza-asked", MISSING_STANZA_PATH, false, vec![]),
            ("other-block", 0, false, vec![Full, Incr]),
            ("running-first", NO_VALID_BACKUPS, true, vec![]),
            ("running-later", 0, true, chain),
            ("two-databases", 0, false, [later.clone(), vec![Incr, Full]].concat()),
            ("two-timelines", 0, false, [later.clone(), vec![Incr]].concat()),
            ("unreadable", OTHER, false, vec![]),
            // With a warning about the configuration before the JSON.
            ("warned", 0, false, later),
        ];
        for version in fixtures::RECORDED {
            let names: Vec<_> = states.iter().map(|(name, ..)| format!("{name}.json")).collect();
            assert_eq!(fixtures::list(version, "info"), names, "{version}");
            for (name, code, locked, types) in states {
                let info = recorded(version, name);
                assert_eq!(info.code, *code, "{version} {name}: {info:?}");
                assert_eq!(info.locked, *locked, "{version} {name}");
                let found: Vec<_> = info.backups.iter().map(|backup| backup.kind).collect();
                assert_eq!(found, *types, "{version} {name}");
                assert_eq!(info.messages.is_empty(), *code == 0 || *name == "no-stanza-asked");
            }
        }
    }

    #[test]
    fn reads_a_chain_of_backups() {
        for version in fixtures::RECORDED {
            let info = recorded(version, "full-diff-incr");
            let [full, diff, incr] = info.backups.as_slice() else { panic!("{version}: {info:?}") };
            assert_eq!((&full.prior, full.references.as_slice()), (&None, [].as_slice()));
            assert_eq!(diff.prior.as_ref(), Some(&full.label));
            assert_eq!(incr.prior.as_ref(), Some(&diff.label));
            assert_eq!(incr.references, [full.label.clone(), diff.label.clone()]);
            let triggers = [full, diff, incr].map(|it| it.annotations[TRIGGER_ANNOTATION].as_str());
            assert_eq!(triggers, ["manual", "manual", "wal_growth"]);
            for backup in &info.backups {
                assert!(valid_label(&backup.label), "{backup:?}");
                assert!(backup.start_time <= backup.stop_time, "{backup:?}");
                assert!(backup.start_lsn < backup.stop_lsn && backup.start_lsn.is_some());
                assert_eq!((backup.timeline, backup.database_id, backup.repo), (Some(1), 1, 1));
                assert_eq!(backup.error, Some(false));
                assert_eq!(backup.pgbackrest, fixtures::version(version).to_string());
                assert!(backup.delta <= backup.size && backup.repo_delta.is_some(), "{backup:?}");
                // Our configuration asks for block incremental from 2.46 on, and then pgBackRest
                // does not tell what a backup needs in the repository.
                let blocks = fixtures::version(version).block_incremental();
                assert_eq!(backup.repo_size.is_none(), blocks, "{version}");
            }
            // Recorded the other way round.
            for backup in recorded(version, "other-block").backups {
                let blocks = !fixtures::version(version).block_incremental();
                assert_eq!(backup.repo_size.is_none(), blocks, "{version}");
            }
        }
    }

    #[test]
    fn reads_progress_where_the_version_tells_it() {
        for version in fixtures::RECORDED {
            for name in ["running-first", "running-later"] {
                let progress = recorded(version, name).progress;
                if fixtures::version(version).reports_bytes() {
                    let progress = progress.expect("bytes of the running backup");
                    assert!(progress.percent > 0.0 && progress.percent < 100.0, "{progress:?}");
                    assert!(progress.bytes_done < progress.bytes_total, "{progress:?}");
                } else {
                    assert_eq!(progress, None);
                }
            }
        }
    }

    #[test]
    fn reads_clusters_timelines_and_damage() {
        for version in fixtures::RECORDED {
            let info = recorded(version, "two-databases");
            let [old, new] = info.databases.as_slice() else { panic!("{version}: {info:?}") };
            assert_eq!((old.id, new.id), (1, 2));
            assert!(old.system_id != new.system_id && old.system_id > u64::from(u32::MAX));
            let [first, second] = info.archives.as_slice() else { panic!("{version}: {info:?}") };
            assert_eq!((first.database_id, second.database_id), (1, 2));
            assert!(first.id.ends_with("-1") && first.min < first.max, "{first:?}");
            assert_eq!(info.backups.last().map(|backup| backup.database_id), Some(2));

            let info = recorded(version, "two-timelines");
            assert_eq!(info.backups.last().and_then(|backup| backup.timeline), Some(2));
            assert_eq!(recorded(version, "other-block").archives[0].min, None);

            let damaged = recorded(version, "damaged").backups;
            let errors: Vec<_> = damaged.iter().map(|backup| backup.error).collect();
            assert_eq!(errors, [Some(false), Some(false), Some(false), Some(true)], "{version}");

            let broken = recorded(version, "broken").messages.join("\n");
            assert!(broken.contains("[FormatError]"), "{broken}");
        }
    }

    #[test]
    fn does_without_whatever_may_be_missing() {
        let json = r#"[{"name":"other","status":{"code":0,"message":"ok"}},
            {"name":"main","future":{},"status":{"code":0,"message":"ok","lock":{"backup":
            {"held":true,"future":1}}},"backup":[{"label":"20200101-000000F","type":"full",
            "future":[1],"timestamp":{"start":0,"stop":1},"database":{"id":1}},
            {"label":"20200102-000000F","type":"full","prior":null,"reference":null,
            "archive":{"start":null,"stop":null},"lsn":{"start":null,"stop":null},
            "info":{"size":1,"repository":{"size-map":1}},"annotation":null,
            "timestamp":{"start":0,"stop":1},"database":{"id":1}}]}]"#;
        let info = parse_info(json, "main").expect("readable");
        assert!(info.locked && info.progress.is_none());
        let [bare, offline] = info.backups.as_slice() else { panic!("{info:?}") };
        assert_eq!((bare.error, bare.size, bare.timeline, bare.repo), (None, None, None, 1));
        assert_eq!((offline.start_lsn, offline.size, offline.repo_size), (None, Some(1), None));
    }

    #[test]
    fn refuses_what_is_not_info() {
        let time = r#"[{"name":"main","status":{"code":0,"message":"ok"},"backup":[{"label":"L",
            "type":"full","timestamp":{"start":9223372036854775807,"stop":0},"database":{"id":1}}]}]"#;
        for (json, words) in [
            ("", "not what any known version prints"),
            ("{}", "not what any known version prints"),
            ("P00  ERROR: [031]: x", "not what any known version prints"),
            (r#"[{"name":"main"}]"#, "missing field `status`"),
            (time, "backup \"L\" has the impossible time 9223372036854775807"),
        ] {
            let message = parse_info(json, "main").expect_err(json).to_string();
            assert!(message.contains(words), "{json}: {message}");
        }
    }

    #[test]
    fn survives_being_kept() {
        for version in fixtures::RECORDED {
            for name in fixtures::list(version, "info") {
                let info = recorded(version, name.strip_suffix(".json").expect(&name));
                let kept = serde_json::to_string(&info).expect("serializable");
                assert_eq!(serde_json::from_str::<StanzaInfo>(&kept).expect("readable"), info);
            }
        }
    }
}
