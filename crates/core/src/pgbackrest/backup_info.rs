//! Reads a `backup.info`: the list of a stanza's backups, as it lies in a repository.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::ini::key_and_value;
use super::names::valid_label;
use crate::kind::BackupType;

/// A backup that a `backup.info` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The backup's label.
    pub label: String,
    /// Its type; absent if the line cannot be read.
    pub kind: Option<BackupType>,
    /// The backup that it was made after.
    pub prior: Option<String>,
    /// All backups whose files it needs.
    pub references: Vec<String>,
    /// When it ended.
    pub stop_time: Option<DateTime<Utc>>,
    /// The first WAL segment that it needs.
    pub archive_start: Option<String>,
}

#[derive(Deserialize, Default)]
struct Line {
    #[serde(rename = "backup-type")]
    kind: Option<BackupType>,
    #[serde(rename = "backup-prior")]
    prior: Option<String>,
    #[serde(rename = "backup-reference", default)]
    references: Vec<String>,
    #[serde(rename = "backup-timestamp-stop")]
    stop: Option<i64>,
    #[serde(rename = "backup-archive-start")]
    archive_start: Option<String>,
}

/// The backups that a `backup.info` lists, in its order, which is that of their labels.
pub fn parse_backup_info(text: &str) -> Vec<Listed> {
    let current = text.lines().skip_while(|line| line.trim() != "[backup:current]").skip(1);
    let current = current.take_while(|line| !line.starts_with('['));
    let entries = current.filter_map(key_and_value).filter(|(label, _)| valid_label(label));
    entries
        .map(|(label, value)| {
            // A line of some future version still lists its backup.
            let line: Line = serde_json::from_str(value).unwrap_or_default();
            Listed {
                label: label.to_string(),
                kind: line.kind,
                prior: line.prior,
                references: line.references,
                stop_time: line.stop.and_then(|stop| DateTime::from_timestamp(stop, 0)),
                archive_start: line.archive_start,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn reads_a_chain_of_backups() {
        let text = fixtures::text("2.45", "repository/backup.info");
        let found = parse_backup_info(&text);
        let [full, diff, incr] = &found[..] else { panic!("{found:?}") };
        let kinds = [full, diff, incr].map(|it| it.kind);
        let expected = [BackupType::Full, BackupType::Diff, BackupType::Incr];
        assert_eq!(kinds, expected.map(Some));
        assert_eq!((full.prior.as_ref(), diff.prior.as_ref()), (None, Some(&full.label)));
        assert_eq!(incr.references, [full.label.clone(), diff.label.clone()]);
        assert!(full.stop_time < diff.stop_time && diff.archive_start < incr.archive_start);
    }

    #[test]
    fn a_line_that_cannot_be_read_still_lists_its_backup() {
        let text = "[backup:current]\n20261122-010203F={\"backup-type\":\"future\"}\nx={}\n\n[db]\n\
                    20261123-010203F={}\n";
        let found = parse_backup_info(text);
        let [only] = &found[..] else { panic!("{found:?}") };
        assert_eq!((only.label.as_str(), only.kind), ("20261122-010203F", None));
        assert_eq!(parse_backup_info(""), []);
    }
}
