//! Chooses what a restore does: reads a place, makes the plan, and looks whether all is there that the
//! plan needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use nrt_core::offsite::owner::Owner;
use nrt_core::pgbackrest::manifest::{Manifest, parse_manifest};
use nrt_core::restore::Refusal;
use nrt_core::restore::catalog::Catalog;
use nrt_core::restore::drill::Phases;
use nrt_core::restore::plan::{Plan, plan, surely_there};
use nrt_core::restore::target::{Point, Target};

use super::CHOICES;
use super::place::unusable;
use super::read::{self, Found, OwnWal};
use super::server::Programs;
use super::source::{Place, Source, side_by_side};
use super::wal::{self, Shelf, Store};
use super::waldump::Dump;
use super::work::Work;

/// How many archived segments behind the last promise are read before a plan counts on them: the
/// newest ones.
const READ_BEFOREHAND: usize = 16;

/// A plan, with all that was read for it.
pub struct Planned {
    /// What the restore will do.
    pub plan: Plan,
    /// The backups and the WAL that are there.
    pub catalog: Catalog,
    pub(super) source: Arc<Source>,
    pub(super) shelf: Shelf,
    pub(super) owner: Option<Owner>,
    pub(super) read_at: Instant,
    pub(super) manifest: Option<Manifest>,
    pub(super) seconds: f64,
}

/// Opens a place and reads which backups and which WAL are there, and what its owner says.
///
/// # Errors
///
/// Why the place cannot be read, or holds no cluster.
pub fn read_catalog(
    place: &Place,
    stanza: Option<&str>,
    data: &Path,
    work: &Work,
    own: Option<&OwnWal<'_>>,
) -> Result<(Catalog, Option<Owner>), Refusal> {
    let (_, found) = look(place, stanza, data, work, own, false)?;
    Ok((found.catalog, found.owner))
}

/// Opens a place and reads what there is.
fn look(
    place: &Place,
    stanza: Option<&str>,
    data: &Path,
    work: &Work,
    own: Option<&OwnWal<'_>>,
    xids: bool,
) -> Result<(Source, Found), Refusal> {
    let mut source = Source::open(place.clone(), work)?;
    source.choose_stanza(stanza)?;
    source.configure(data)?;
    let found = read::read(&source, own, xids)?;
    Ok((source, found))
}

/// Plans a restore. Nothing but the work directory is written to.
#[allow(clippy::too_many_arguments, reason = "each is a part of the question")]
pub fn make_plan(
    place: &Place,
    stanza: Option<&str>,
    target: &Target,
    data: &Path,
    work: &Work,
    own: Option<&OwnWal<'_>>,
    bindir: Option<&Path>,
    rates: Option<&Phases>,
) -> Result<Planned, Refusal> {
    let begin = Instant::now();
    let xids = matches!(target.point, Point::Xid(_));
    let (source, Found { mut catalog, mut shelf, owner }) =
        look(place, stanza, data, work, own, xids)?;
    let read_at = Instant::now();
    if shelf.pg_wal.is_some() {
        // The server itself says how far its WAL goes.
        catalog.complete_until = Some(Utc::now());
    }
    let source = Arc::new(source);
    let programs = Programs::find(&catalog.version, bindir);
    let damaged =
        if target.up_to_gap { leave_out_damaged(&source, &mut catalog, &mut shelf)? } else { None };
    let mut dump = Dump {
        source: Arc::clone(&source),
        shelf: shelf.clone(),
        program: match &programs {
            Ok(programs) => programs.program("pg_waldump"),
            // Only some plans ask the WAL.
            Err(_) => PathBuf::from("pg_waldump"),
        },
        directory: work.look(),
    };
    let mut cut = None;
    for _ in 0..CHOICES {
        let mut chosen = plan(&catalog, target, &mut dump, Utc::now(), rates)?;
        chosen.warnings.extend(damaged.clone());
        let mut manifest = manifest_of(&source, &chosen.backup)?;
        if let Some(manifest) = manifest.as_mut().filter(|it| !it.in_blocks.is_empty()) {
            let earlier: Vec<&String> =
                chosen.chain.iter().filter(|label| **label != chosen.backup).collect();
            let read = side_by_side(&earlier, |label| manifest_text(&source, label));
            for (label, text) in earlier.into_iter().zip(read) {
                // pgBackRest does not need the manifests of those.
                if let Some(text) = text? {
                    manifest.need_blocks_of(&String::from_utf8_lossy(&text), label);
                }
            }
        }
        let missing = match &manifest {
            Some(manifest) => missing_of(&source, manifest)?,
            None => Some(format!("its manifest at {} cannot be read", source.name())),
        };
        if let Some(missing) = missing {
            catalog.unusable.insert(chosen.backup, missing);
            continue;
        }
        shelf.stretches.clone_from(&chosen.wal);
        if cut.is_none() {
            let found = leave_out_cut(&source, &chosen, work, &mut catalog, &mut shelf)?;
            let is_shorter = !found.is_empty();
            cut = Some(found);
            if is_shorter {
                continue;
            }
        }
        chosen.warnings.extend(cut.into_iter().flatten());
        return Ok(Planned {
            plan: chosen,
            catalog,
            source,
            shelf,
            owner,
            read_at,
            manifest,
            seconds: begin.elapsed().as_secs_f64(),
        });
    }
    Err(Refusal::new(
        format!("something is missing of each of the newest {CHOICES} backups"),
        "If the original server is there, \"nrt-backup check\" sends again what is missing.",
    ))
}

/// The tail may end at a damaged object where its operator says so: the warning.
fn leave_out_damaged(
    source: &Source,
    catalog: &mut Catalog,
    shelf: &mut Shelf,
) -> Result<Option<String>, Refusal> {
    let paths = forget_damaged_pieces(source, None, catalog, shelf)?;
    if paths.is_empty() {
        return Ok(None);
    }
    let place = source.name();
    Ok(Some(format!("of the WAL tail at {place} is damaged, and left out: {}", paths.join(", "))))
}

/// Takes the damaged objects of the tail, or of one segment of it, out of what a plan counts on.
/// Their paths.
fn forget_damaged_pieces(
    source: &Source,
    segment: Option<&str>,
    catalog: &mut Catalog,
    shelf: &mut Shelf,
) -> Result<Vec<String>, Refusal> {
    let damaged = wal::damaged_pieces(source, shelf, segment)?;
    let paths: Vec<String> = damaged.iter().map(|it| it.path(shelf.segment_size)).collect();
    for of_segment in shelf.tail.values_mut() {
        of_segment.retain(|path| !paths.contains(path));
    }
    for piece in &damaged {
        catalog.wal.remove(piece);
    }
    Ok(paths)
}

/// Takes archived segments that a remote did not take as a whole out of what a plan counts on, with
/// a warning for each.
///
/// A remote that was full, or cut off, when the server vanished keeps a part of an object under its
/// name. Nothing was promised that rests on it. So segments behind the last promise are read before
/// a plan for the newest state counts on them; they are few, and a restore needs them anyway. A
/// damaged segment before the promise is a loss, which the restore refuses.
fn leave_out_cut(
    source: &Source,
    chosen: &Plan,
    work: &Work,
    catalog: &mut Catalog,
    shelf: &mut Shelf,
) -> Result<Vec<String>, Refusal> {
    if chosen.target.point != Point::Latest || source.remote.is_none() {
        return Ok(Vec::new());
    }
    let size = shelf.segment_size;
    let promised = surely_there(catalog, chosen.timeline)?;
    let mut segments = shelf.segments();
    segments.retain(|it| it.end(size) > promised && shelf.archived.contains_key(&it.name(size)));
    let first = segments.len().saturating_sub(READ_BEFOREHAND);
    let directory = work.look();
    std::fs::create_dir_all(&directory).map_err(|error| unusable(&directory, &error))?;
    let mut warnings = Vec::new();
    for segment in segments.drain(first..) {
        let name = segment.name(size);
        let store = Store { source, shelf, directory: directory.clone() };
        // It may have been damaged on its way here.
        let mut got = store.get(&name);
        for _ in 1..wal::TRIES {
            if !matches!(&got, Err(trouble) if trouble.is_damaged) {
                break;
            }
            got = store.get(&name);
        }
        let _ = std::fs::remove_file(directory.join(&name));
        match got {
            Ok(_) => {}
            Err(trouble) if trouble.is_damaged => {
                shelf.archived.remove(&name);
                catalog.wal.forget_archived(segment);
                forget_damaged_pieces(source, Some(&name), catalog, shelf)?;
                warnings.push(format!(
                    "{}: it arrived behind {promised}, up to which all had arrived, and is not \
                     counted on",
                    trouble.refusal.message
                ));
            }
            Err(trouble) => return Err(trouble.refusal),
        }
    }
    Ok(warnings)
}

pub(super) fn manifest_of(source: &Source, label: &str) -> Result<Option<Manifest>, Refusal> {
    let text = manifest_text(source, label)?;
    Ok(text.and_then(|text| parse_manifest(&String::from_utf8_lossy(&text), label)))
}

/// A backup's manifest, if it is there as a whole.
pub(super) fn manifest_text(source: &Source, label: &str) -> Result<Option<Vec<u8>>, Refusal> {
    let stanza = &source.stanza;
    // pgBackRest, too, takes the copy where the first one is damaged.
    for suffix in ["", ".copy"] {
        let text = source.plain(&format!("backup/{stanza}/{label}/backup.manifest{suffix}"))?;
        let is_whole =
            |text: &Vec<u8>| parse_manifest(&String::from_utf8_lossy(text), label).is_some();
        if let Some(text) = text.filter(is_whole) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The first file that a backup needs and that is not there as a whole.
fn missing_of(source: &Source, manifest: &Manifest) -> Result<Option<String>, Refusal> {
    let there: BTreeMap<String, u64> = source
        .list(&format!("backup/{}", source.stanza))?
        .into_iter()
        .map(|file| (file.path, file.size))
        .collect();
    let missing = manifest.needed.iter().find_map(|(path, least)| match there.get(path) {
        None => Some(format!("\"{path}\" is missing at {}", source.name())),
        Some(size) if size < least => {
            Some(format!("\"{path}\" at {} has {size} bytes instead of {least}", source.name()))
        }
        Some(_) => None,
    });
    Ok(missing)
}
