//! Limits how much of a file on a remote is read, by what its name says that it is.
//!
//! Anybody who can write to the remote can put a file of any length there. None of them may cost
//! the server its memory or its disk.

use super::RESTORE_POINTS;
use super::owner;
use super::tail::{DIRECTORY, Piece};

/// The largest segment that PostgreSQL can have.
const LARGEST_SEGMENT: u64 = 1 << 30;
/// `owner.json`, descriptions of backups, and what else has one short text.
const SHORT: u64 = 64 << 10;
/// The history of a timeline.
const HISTORY: u64 = 1 << 20;
/// A configuration file of the server. Longer ones are not sent.
const CONFIGURATION: u64 = 1 << 20;
/// The list of restore points, or of configuration files.
const LIST: u64 = 16 << 20;
/// `backup.info` and `archive.info`: about 1 kB for each backup.
const INFO: u64 = 64 << 20;
/// A manifest: about 200 bytes for each file of the cluster.
const MANIFEST: u64 = 2 << 30;

/// The most bytes that a file may have; `None` for the files of a backup, which may have any
/// number.
///
/// The path is below the cluster's directory on the remote.
pub fn longest(path: &str) -> Option<u64> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let main = name.strip_suffix(".copy").unwrap_or(name);
    let (directory, _) = path.split_once('/').unwrap_or(("", path));
    match (directory, main) {
        (_, "backup.manifest") => Some(MANIFEST),
        (_, "backup.info" | "archive.info") => Some(INFO),
        (_, name) if name.ends_with(".history") => Some(HISTORY),
        (DIRECTORY, _) => Some(packed(length_of_piece(path))),
        ("", RESTORE_POINTS) => Some(LIST),
        ("", name) if name.starts_with(owner::FILE) => Some(SHORT),
        ("configuration", "files.json") => Some(LIST),
        ("configuration", _) => Some(CONFIGURATION),
        ("repository", _) if path.starts_with("repository/archive/") => {
            Some(packed(LARGEST_SEGMENT))
        }
        ("repository", _) => None,
        (_, name) if name.ends_with(".json") => Some(SHORT),
        _ => None,
    }
}

/// The most bytes that so many bytes have when they are packed, by any of the packers, and
/// encrypted.
pub fn packed(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 64).saturating_add(SHORT)
}

/// How much WAL an object of the tail holds, as its name says.
fn length_of_piece(path: &str) -> u64 {
    let below = path.split_once('/').map_or(path, |(_, below)| below);
    // Which size the segments have does not matter: its own one is the smallest that holds it.
    let sizes = (20..=30).map(|shift| 1_u64 << shift);
    let piece = sizes.filter_map(|size| Piece::parse(below, size)).next();
    piece.map_or(0, |piece| piece.to.since(piece.from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_file_has_its_limit() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        let segment = format!(
            "repository/archive/main/15-1/0000000100000000/000000010000000000000003-{hash}.zst"
        );
        let piece =
            "wal-tail/00000001/000000010000000000000003/0000000003000000-0000000003000100.zst";
        for (path, limit) in [
            ("owner.json", Some(SHORT)),
            ("owner.json.copy", Some(SHORT)),
            ("restore-points.json", Some(LIST)),
            ("configuration/files.json", Some(LIST)),
            ("configuration/etc/postgresql/postgresql.conf", Some(CONFIGURATION)),
            ("full-backups/20261122-143000F.json", Some(SHORT)),
            ("repository/backup/main/backup.info", Some(INFO)),
            ("repository/archive/main/archive.info.copy", Some(INFO)),
            ("repository/backup/main/20261122-143000F/backup.manifest.copy", Some(MANIFEST)),
            ("repository/archive/main/15-1/00000002.history", Some(HISTORY)),
            (&segment, Some(packed(LARGEST_SEGMENT))),
            (piece, Some(packed(256))),
            ("wal-tail/anything", Some(SHORT)),
            ("repository/backup/main/20261122-143000F/bundle/1", None),
            ("repository/backup/main/20261122-143000F/pg_data/base/1/1.zst", None),
            ("repository/backup/main/20261122-143000F/pg_data/x.json", None),
        ] {
            assert_eq!(longest(path), limit, "{path}");
        }
    }

    #[test]
    fn a_piece_of_a_large_segment_has_the_length_that_it_names() {
        let piece =
            "wal-tail/00000001/000000010000000000000000/0000000001000000-0000000003000000.zst";
        assert_eq!(longest(piece), Some(packed(32 << 20)));
    }
}
