//! Reads all that a place holds of a cluster: what a plan chooses from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nrt_core::lsn::Lsn;
use nrt_core::offsite::RESTORE_POINTS;
use nrt_core::offsite::owner::Owner;
use nrt_core::offsite::tail::{Coverage, Piece, history_name, parse_history};
use nrt_core::pgbackrest::archive::{StoredName, stored_segment};
use nrt_core::pgbackrest::info::Backup;
use nrt_core::pgbackrest::names::valid_label;
use nrt_core::restore::Refusal;
use nrt_core::restore::catalog::{Catalog, RestorePoint, segment_sizes_of};

use super::source::{Source, Stored, side_by_side};
use super::wal::Shelf;
use super::waldump::written;
use nrt_core::offsite::DESCRIPTIONS;
use nrt_remote::failure;
use nrt_remote::segment::unpack;

/// The size of a WAL segment, unless the cluster was made with another one.
const USUAL: u64 = 16 << 20;

/// What was read.
#[derive(Debug)]
pub(crate) struct Found {
    /// What a plan chooses from.
    pub(crate) catalog: Catalog,
    /// Where its WAL is; without stretches yet.
    pub(crate) shelf: Shelf,
    /// Whose the remote is, as it was said when this was read.
    pub(crate) owner: Option<Owner>,
}

/// A running or stopped server's own WAL, which may not be archived yet.
#[derive(Debug, Clone)]
pub struct OwnWal<'a> {
    /// `pg_wal` of its data directory.
    pub directory: &'a Path,
    /// The timeline that it writes.
    pub timeline: u32,
    /// Up to here it is on disk.
    pub flushed: Lsn,
    /// Whose it is; not asked of a running server that says so itself.
    pub system_id: Option<u64>,
}

/// Reads a place. The stanza is chosen, and pgBackRest configured.
///
/// Only who wants to get back to a transaction needs `xids`, which cost a request for each backup.
pub(crate) fn read(
    source: &Source,
    own: Option<&OwnWal<'_>>,
    xids: bool,
) -> Result<Found, Refusal> {
    let info = source.info()?;
    let Some(database) = info.databases.last() else {
        return Err(Refusal::new(
            format!("pgBackRest cannot read the repository at {}: {}", source.name(), info.message),
            info.messages.join("\n"),
        ));
    };
    let backups: Vec<Backup> = info
        .backups
        .iter()
        .filter(|backup| (backup.repo, backup.database_id) == (database.repo, database.id))
        .cloned()
        .collect();
    let archive_id = format!("{}-{}", database.version, database.id);
    let below = format!("archive/{}/{archive_id}", source.stanza);
    let segment_size = segment_size(source, &backups, &below)?;

    let remote = source.remote.as_ref();
    let tail = source.tail()?;
    let mut wal = Coverage::default();
    let mut shelf = Shelf { segment_size, ..Shelf::default() };
    let mut histories = BTreeMap::new();
    let (mut segments, mut stored) = (0_u64, 0_u64);
    let mut of_timelines = Vec::new();
    for file in source.list(&below)?.into_iter().filter(|it| it.size > 0) {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let path = format!("{archive_id}/{}", file.path);
        if let Some(timeline) = name.strip_suffix(".history") {
            let Ok(timeline) = u32::from_str_radix(timeline, 16) else { continue };
            of_timelines.push((timeline, name.to_string(), path));
        } else if let Some(segment) = stored_segment(&file.path, segment_size) {
            wal.archive(segment);
            shelf.archived.insert(segment.name(segment_size), path);
            segments += 1;
            stored += file.size;
        }
    }

    let read = side_by_side(&of_timelines, |(_, _, path)| {
        source.plain(&format!("archive/{}/{path}", source.stanza))
    });
    for ((timeline, name, _), text) in of_timelines.into_iter().zip(read) {
        let Some(text) = text? else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        histories.insert(timeline, parse_history(&text));
        shelf.histories.insert(name, text);
    }

    let mut tail_stored = 0;
    let (mut restore_points, mut next_xids) = (Vec::new(), BTreeMap::new());
    let owner = source.owner()?;
    // A full or vanished remote keeps the names of objects that it did not take.
    for entry in tail.into_iter().filter(|it| it.size > 0) {
        let Some(piece) = Piece::parse(&entry.path, segment_size) else { continue };
        wal.add(piece, 0);
        tail_stored += u64::try_from(entry.size).unwrap_or(0);
        shelf.tail.entry(piece.segment.name(segment_size)).or_default().push(entry.path);
    }
    if let Some(remote) = remote {
        let found = match remote.get(RESTORE_POINTS) {
            // It names what the WAL itself holds, too.
            Err(refusal) if refusal.damaged => None,
            got => {
                got.map_err(|it| failure(&format!("\"{RESTORE_POINTS}\" cannot be read"), &it))?
            }
        };
        restore_points = found
            .and_then(|it| serde_json::from_slice::<Vec<RestorePoint>>(&it).ok())
            .unwrap_or_default();
        if xids {
            next_xids = next_xids_on(remote)?;
        }
    }
    // A cluster that has nothing to do with the backups may be replaced, too.
    if let Some(own) = own.filter(|own| own.system_id.is_none_or(|it| it == database.system_id)) {
        take_in(own, segment_size, &mut wal, &mut shelf, &mut histories);
    }

    let (unusable, sizes) = backups_stored(source, &backups)?;
    let catalog = Catalog {
        source: source.name(),
        stanza: source.stanza.clone(),
        system_id: database.system_id,
        version: database.version.clone(),
        archive_id,
        segment_size,
        backups,
        unusable,
        wal,
        histories,
        restore_points,
        next_xids,
        complete_until: owner.as_ref().and_then(|owner| owner.complete_until),
        shipped: owner.as_ref().and_then(|owner| owner.shipped),
        is_ordered: source.remote.is_none(),
        stored: sizes,
        segment_stored: stored.checked_div(segments).unwrap_or(0),
        tail_stored,
    };
    Ok(Found { catalog, shelf, owner })
}

/// The size of a WAL segment: as the numbers of the backups tell it, or else a segment itself.
fn segment_size(source: &Source, backups: &[Backup], archive: &str) -> Result<u64, Refusal> {
    let sizes = segment_sizes_of(backups);
    let Some(smallest) = sizes.first() else {
        return Err(Refusal::new(
            format!("there is no finished backup of the cluster at {}", source.name()),
            "A restore begins with one.",
        ));
    };
    if sizes.len() == 1 {
        return Ok(*smallest);
    }
    let mut files = source.list(archive)?;
    files.sort_by(|one, other| other.path.cmp(&one.path));
    for Stored { path, .. } in files {
        let name = path.rsplit('/').next().unwrap_or_default();
        if StoredName::parse(name).is_none_or(|it| it.is_partial) {
            continue;
        }
        let Some(packed) = source.plain(&format!("{archive}/{path}"))? else { continue };
        let is_of =
            |size: u64| unpack(&path, &packed, size).is_ok_and(|bytes| bytes.len() as u64 == size);
        // A damaged one is of none.
        if let Some(size) = sizes.iter().find(|size| is_of(**size)) {
            return Ok(*size);
        }
    }
    // Nothing can be restored without any segment: it is of no consequence.
    Ok(if sizes.contains(&USUAL) { USUAL } else { *smallest })
}

/// The next transaction ids, as the descriptions of the backups on a remote say.
fn next_xids_on(remote: &nrt_remote::Remote) -> Result<BTreeMap<String, u64>, Refusal> {
    let mut found = BTreeMap::new();
    for directory in DESCRIPTIONS {
        let listed = remote.list(directory);
        let listed = listed.map_err(|it| failure("the remote cannot be listed", &it))?;
        let labels = listed.into_iter().filter_map(|entry| {
            let label = entry.path.strip_suffix(".json").filter(|it| valid_label(it))?;
            Some(label.to_string())
        });
        let labels: Vec<String> = labels.collect();
        let read = side_by_side(&labels, |label| remote.get(&format!("{directory}/{label}.json")));
        for (label, text) in labels.into_iter().zip(read) {
            let text = text.map_err(|it| failure("the remote cannot be read", &it))?;
            let value: Option<serde_json::Value> =
                text.and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(xid) = value.and_then(|value| value["next_xid"].as_u64()) {
                found.insert(label, xid);
            }
        }
    }
    Ok(found)
}

/// Counts a server's own WAL as there.
fn take_in(
    own: &OwnWal<'_>,
    segment_size: u64,
    wal: &mut Coverage,
    shelf: &mut Shelf,
    histories: &mut BTreeMap<u32, Vec<(u32, Lsn)>>,
) {
    // Its history may not be archived either.
    if own.timeline > 1 && !histories.contains_key(&own.timeline) {
        let name = history_name(own.timeline);
        let Ok(text) = fs::read_to_string(own.directory.join(&name)) else { return };
        histories.insert(own.timeline, parse_history(&text));
        shelf.histories.insert(name, text);
    }
    for segment in written(own.directory, segment_size) {
        let (start, end) = (segment.start(segment_size), segment.end(segment_size));
        // Segments behind that are old ones, kept to be used again.
        if segment.timeline != own.timeline || start >= own.flushed {
            continue;
        }
        wal.add(Piece { segment, from: start, to: end.min(own.flushed) }, 0);
    }
    shelf.pg_wal = Some(own.directory.to_path_buf());
}

/// What is missing of backups, by label.
type Missing = BTreeMap<String, String>;

/// What of each backup is there: what is missing of it, and how many bytes it has.
fn backups_stored(
    source: &Source,
    backups: &[Backup],
) -> Result<(Missing, BTreeMap<String, u64>), Refusal> {
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    let mut manifests = BTreeSet::new();
    for file in source.list(&format!("backup/{}", source.stanza))? {
        let Some((label, rest)) = file.path.split_once('/') else { continue };
        *sizes.entry(label.to_string()).or_default() += file.size;
        if rest == "backup.manifest" {
            manifests.insert(label.to_string());
        }
    }
    let missing = backups.iter().filter(|backup| !manifests.contains(&backup.label));
    let unusable = missing
        .map(|backup| {
            let words = format!(
                "\"backup/{}/{}/backup.manifest\" is missing at {}",
                source.stanza,
                backup.label,
                source.name()
            );
            (backup.label.clone(), words)
        })
        .collect();
    sizes.retain(|label, _| valid_label(label));
    Ok((unusable, sizes))
}

#[cfg(test)]
mod tests {
    use super::super::source::{Kind, Place};
    use super::super::work::Work;
    use super::*;

    #[test]
    fn an_archived_segment_tells_the_size_where_the_backups_do_not() {
        let root = tempfile::tempdir().expect("a directory");
        let work = Work::make(&root.path().join("work")).expect("made");
        let place = Place {
            kind: Kind::Directory(root.path().join("repository")),
            own_config: None,
            pgbackrest: "pgbackrest".into(),
            stanza: None,
        };
        let source = Source::open(place, &work).expect("opened");
        let backup: Backup = serde_json::from_value(serde_json::json!({
            "label": "20261122-143000F", "type": "full", "prior": null, "references": [],
            "error": false, "start_time": "2026-11-22T14:30:00Z",
            "stop_time": "2026-11-22T14:30:05Z", "start_lsn": "1/28", "stop_lsn": "1/100",
            "archive_start": "000000010000000100000000",
            "archive_stop": "000000010000000100000000", "timeline": 1, "database_id": 1,
            "repo": 1, "size": null, "delta": null, "repo_size": null, "repo_delta": null,
            "pgbackrest": "2.45", "annotations": {}
        }))
        .expect("a backup");
        let size = |archive: &str| segment_size(&source, std::slice::from_ref(&backup), archive);
        let hash = "0123456789012345678901234567890123456789";
        for (archive, bytes) in [("1", 1 << 20), ("16", 16 << 20), ("64", 64 << 20)] {
            let group = root.path().join("repository").join(archive).join("0000000100000001");
            fs::create_dir_all(&group).expect("made");
            let file = |name: &str, length: u64| {
                let file = fs::File::create(group.join(name)).expect("made");
                file.set_len(length).expect("it is sparse");
            };
            file(&format!("000000010000000100000000-{hash}"), bytes);
            // None of these is a whole segment.
            file(&format!("000000010000000100000001-{hash}"), 12345);
            file(&format!("000000010000000100000002-{hash}.pgbackrest.tmp"), 2 << 20);
            file(&format!("000000010000000100000000.partial-{hash}"), 2 << 20);
        }
        for (archive, bytes) in [("1", 1 << 20), ("16", 16 << 20), ("64", 64 << 20)] {
            assert_eq!(size(archive), Ok(bytes), "{archive}");
        }
        assert_eq!(size("none"), Ok(USUAL));
    }
}
