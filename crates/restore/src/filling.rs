//! Fills the data directory: fetches the chain of backups, and has pgBackRest restore it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::Utc;
use nrt_core::pgbackrest::exit;
use nrt_core::pgbackrest::label;
use nrt_core::pgbackrest::manifest::{Manifest, Part, Tablespace, parse_manifest, parts};
use nrt_core::restore::Refusal;
use nrt_core::restore::drill::Phases;
use nrt_core::restore::plan::plan;
use nrt_core::restore::target::Target;
use nrt_process::{allowed_in_zone, tether};

use super::Run;
use super::place::{self, Begun, Existing};
use super::planning::{Planned, manifest_text};
use super::progress::Progress;
use super::server::Programs;
use super::source::Source;
use super::spaces::Newer;
use super::waldump::Dump;
use nrt_remote::segment::{hash_of, unpack};

/// What a backup may have more than twice what was listed of it.
const SPARE: u64 = 64 << 20;
/// Databases that every restore has.
const BUILT_IN: [&str; 3] = ["postgres", "template0", "template1"];

impl Run<'_> {
    /// Refuses names that the backup does not know.
    pub(super) fn check_names(&self, planned: &Planned, newer: &[Newer]) -> Result<(), Refusal> {
        let Some(known) = &planned.manifest else { return Ok(()) };
        let refused = |what: &str, name: &str, names: Vec<String>| {
            let hint = match names.join(", ") {
                none if none.is_empty() => "It has none.".to_string(),
                names => format!("It has: {names}."),
            };
            Err(Refusal::new(
                format!("backup {} has no {what} \"{name}\"", planned.plan.backup),
                hint,
            ))
        };
        for (name, _) in &self.request.tablespaces {
            let is_known = |it: &Tablespace| it.name == *name || it.id == *name;
            // One that the WAL creates may be named by its path, whoever knows of it.
            let is_newer = newer.iter().any(|it| it.is(name)) || name.starts_with('/');
            if !is_newer && !known.tablespaces.iter().any(is_known) {
                let names = known.tablespaces.iter().map(|it| it.name.clone()).collect();
                return refused("tablespace", name, names);
            }
        }
        for name in &self.request.databases {
            if !known.databases.contains(name) && !BUILT_IN.contains(&name.as_str()) {
                return refused("database", name, known.databases.iter().cloned().collect());
            }
        }
        Ok(())
    }

    /// Refuses to write into directories of tablespaces that are not those of the cluster that is
    /// replaced, or gone on with.
    pub(super) fn check_tablespaces(
        &self,
        planned: &Planned,
        begun: Option<&Begun>,
    ) -> Result<(), Refusal> {
        let Some(manifest) = &planned.manifest else { return Ok(()) };
        let owners = match (begun, self.request.existing) {
            (Some(begun), _) => begun.owners(),
            (None, Existing::Refuse) => Vec::new(),
            (None, Existing::Replace | Existing::Delta) => vec![self.request.data.clone()],
        };
        for (Tablespace { id, name, .. }, path) in self.tablespace_targets(manifest) {
            let has_begun = begun.is_some_and(|begun| begun.has_begun_in(&path));
            if !has_begun && !place::is_free(&path, &owners)? {
                // Not where the one has it that lies aside.
                let own = begun.map_or(vec![self.request.data.clone()], Begun::places);
                let other = place::place_of(id, &own).filter(|other| *other != path);
                let other = other.unwrap_or_else(|| PathBuf::from("/DIRECTORY"));
                return Err(Refusal::new(
                    format!(
                        "\"{}\", where tablespace \"{name}\" goes to, is not empty",
                        path.display()
                    ),
                    format!(
                        "Restore it to another directory: --tablespace-map {name}={}.",
                        other.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Fetches the chain of backups.
    pub(super) fn fetch(&self, planned: &Planned, phases: &mut Phases) -> Result<(), Refusal> {
        let Some(remote) = &planned.source.remote else { return Ok(()) };
        let mut progress =
            Progress::begin("fetch", planned.plan.fetch_bytes, self.request.is_quiet);
        let stanza = &planned.source.stanza;
        let here = self.work.repository().join(format!("backup/{stanza}"));
        let stored = |label: &String| planned.catalog.stored.get(label).copied().unwrap_or(0);
        let stored: u64 = planned.plan.chain.iter().map(stored).sum();
        // A remote that sends more than it has listed fills no disk.
        let most = stored.saturating_mul(2).saturating_add(SPARE);
        let is_too_much = AtomicBool::new(false);
        let mut came = 0;
        // All of them at once: what is asked about one need not wait for another.
        let of_each = planned.plan.chain.iter().map(|label| format!("+ /{label}/**"));
        let rules: Vec<String> = of_each.chain(["- **".to_string()]).collect();
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let from = format!("repository/backup/{stanza}");
        let fetched = remote.fetch_directory(&from, &here, &rules, &is_too_much, &mut |n| {
            came = n;
            progress.at(n);
            is_too_much.store(n > most, Ordering::Relaxed);
        });
        let labels = planned.plan.chain.join(", ");
        if is_too_much.load(Ordering::Relaxed) {
            return Err(Refusal::new(
                format!("backup {labels} is larger than the {stored} bytes that were listed"),
                "See what else writes to the remote.",
            ));
        }
        fetched.map_err(|it| {
            let failure = nrt_remote::failure(&format!("backup {labels} cannot be fetched"), &it);
            Refusal::new(
                failure.message,
                format!("{} The same command goes on where it was.", failure.hint),
            )
        })?;
        // An interrupted restore left the rest here.
        phases.fetch = progress.end(came);
        phases.fetched_bytes = came;
        Ok(())
    }

    /// Has pgBackRest restore the backup.
    pub(super) fn restore(
        &self,
        planned: &Planned,
        begun: &mut Begun,
        phases: &mut Phases,
    ) -> Result<(), Refusal> {
        let request = self.request;
        let into = begun.directory();
        let delta = begun.goes_on();
        if !delta {
            // What an interrupted restore has left is ours, and too little to go on with.
            place::clear(&into, begun.aside.as_deref())?;
        }
        if let Some(manifest) = &planned.manifest
            && !delta
        {
            let spaces: Vec<PathBuf> =
                self.tablespace_targets(manifest).into_iter().map(|(_, path)| path).collect();
            for space in spaces.iter().filter(|it| begun.has_begun_in(it)) {
                place::clear(space, None)?;
            }
            let mut targets = spaces.clone();
            // The WAL creates those anew, where they were.
            let ids: Vec<&str> = manifest.tablespaces.iter().map(|it| &*it.id).collect();
            targets.extend(place::tablespaces_but(begun, &ids));
            place::move_tablespaces(begun, &targets)?;
            begun.make_spaces(&spaces, &self.work)?;
        }
        place::forget_killed_server(&self.work, begun);
        planned.source.configure(&into)?;
        let mut words = vec![
            format!("--config={}", self.work.config().display()),
            format!("--stanza={}", planned.source.stanza),
            format!("--set={}", planned.plan.backup),
            // With any other type that takes no target, newer versions (2.55) refuse a backup that was
            // taken after the newest timeline had left its own, whatever timeline we recover on.
            "--type=immediate".to_string(),
            format!("--process-max={}", request.processes),
            "--log-level-console=detail".to_string(),
            "--log-level-stderr=off".to_string(),
        ];
        if delta {
            words.push("--delta".to_string());
        }
        let known = planned.manifest.as_ref().map_or(&[][..], |it| &it.tablespaces);
        for (name, path) in &request.tablespaces {
            // pgBackRest knows nothing of those that the WAL creates.
            if planned.manifest.is_none()
                || known.iter().any(|it| it.name == *name || it.id == *name)
            {
                words.push(format!("--tablespace-map={name}={}", path.display()));
            }
        }
        if let Some(path) = &request.tablespaces_below {
            words.push(format!("--tablespace-map-all={}", path.display()));
        }
        // pgBackRest wants to hear nothing of those.
        let named = request.databases.iter().filter(|it| !BUILT_IN.contains(&it.as_str()));
        for database in named {
            words.push(format!("--db-include={database}"));
        }
        words.push("restore".to_string());
        let total = planned.plan.restore_bytes;
        let mut progress = Progress::begin("restore", total, request.is_quiet);
        let mut command = Command::new(&request.place.pgbackrest);
        command.args(&words).env_clear().envs(allowed_in_zone(std::env::vars_os(), label::UTC));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        tether(&mut command);
        let mut child = command.spawn().map_err(|error| {
            Refusal::new(format!("could not run pgBackRest: {error}"), "Install pgBackRest.")
        })?;
        let mut output = String::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let (Some(percent), Some(total)) = (percent_in(&line), total) {
                    progress.at((total as f64 * percent / 100.0) as u64);
                }
                // Every file has a line.
                if !line.contains(" DETAIL: ") {
                    output += &line;
                    output.push('\n');
                }
            }
        }
        let status = child.wait().map_err(|error| Refusal::new(error.to_string(), ""))?;
        if !status.success() {
            use std::os::unix::process::ExitStatusExt;
            let verdict = exit::judge(status.code(), status.signal(), &output);
            let older =
                self.instead_of_damaged(planned, &into, &output, verdict.name).unwrap_or_default();
            return Err(Refusal::new(
                format!(
                    "pgBackRest could not restore {}: {}",
                    planned.plan.backup, verdict.message
                ),
                format!("{} {older}", verdict.hint.unwrap_or_default()).trim().to_string(),
            ));
        }
        forget_recovery(&into)?;
        let bytes = total.unwrap_or(0);
        phases.restore = if delta { progress.end_compared(bytes) } else { progress.end(bytes) };
        phases.restored_bytes = bytes;
        Ok(())
    }

    /// The tablespaces, and where each goes to.
    pub(super) fn tablespace_targets<'m>(
        &self,
        manifest: &'m Manifest,
    ) -> Vec<(&'m Tablespace, PathBuf)> {
        let targets = manifest.tablespaces.iter().map(|it| {
            let is_mapped = |(name, _): &&(String, PathBuf)| *name == it.name || *name == it.id;
            let mapped = self.request.tablespaces.iter().find(is_mapped);
            let path = match (mapped, &self.request.tablespaces_below) {
                (Some((_, path)), _) => path.clone(),
                (None, Some(below)) => below.join(&it.name),
                (None, None) => PathBuf::from(&it.path),
            };
            (it, path)
        });
        targets.collect()
    }

    /// What to do if pgBackRest has found a damaged file: which backup needs none of it.
    pub(super) fn instead_of_damaged(
        &self,
        planned: &Planned,
        into: &Path,
        output: &str,
        error: &str,
    ) -> Option<String> {
        let (source, stanza) = (&planned.source, &planned.source.stanza);
        let label = &planned.plan.backup;
        let text = manifest_text(source, label).ok()??;
        let text = String::from_utf8_lossy(&text);
        let mut suspects = parts(&text, label);
        let manifest = parse_manifest(&text, label)?;
        for earlier in planned.plan.chain.iter().filter(|earlier| *earlier != label) {
            if let Ok(Some(text)) = manifest_text(source, earlier) {
                suspects.extend(manifest.blocks_of(&String::from_utf8_lossy(&text), earlier));
            }
        }
        let files = damaged_files(output, into);
        let mut damaged: Vec<String> = Vec::new();
        for file in &files {
            let of_file: Vec<&Part> = suspects.iter().filter(|it| it.name == *file).collect();
            let found = if of_file.len() > 1 { damaged_objects(source, &of_file) } else { vec![] };
            match of_file.first() {
                // What belongs to the backup itself comes first.
                Some(part) if found.is_empty() => damaged.push(part.path.clone()),
                _ => damaged.extend(found),
            }
        }
        let is_fault = ["checksum", "format"].contains(&error) || is_fault_of_backup(output);
        if damaged.is_empty() && is_fault {
            // What cannot even be unpacked pgBackRest does not name.
            damaged = damaged_objects(source, &suspects.iter().collect::<Vec<_>>());
        }
        damaged.dedup();
        if damaged.is_empty() {
            return None;
        }
        // What was fetched may have been damaged on its way: it must not be taken for whole.
        if source.remote.is_some() {
            for path in &damaged {
                let fetched = self.work.repository().join(format!("backup/{stanza}/{path}"));
                let _ = fs::remove_file(fetched);
            }
        }
        let mut catalog = planned.catalog.clone();
        for (label, _) in damaged.iter().filter_map(|path| path.split_once('/')) {
            catalog.unusable.insert(label.to_string(), "a file of it is damaged".to_string());
        }
        let target = Target { backup: None, ..self.request.target.clone() };
        let programs =
            Programs::find(&planned.plan.version, self.request.bindir.as_deref()).ok()?;
        let mut dump = Dump {
            source: Arc::clone(&planned.source),
            shelf: planned.shelf.clone(),
            program: programs.program("pg_waldump"),
            directory: self.work.look(),
        };
        let older = plan(&catalog, &target, &mut dump, Utc::now(), None);
        let files = damaged.join("\", \"");
        let what = format!("\"{files}\" at {} is damaged", source.name());
        Some(match older {
            Ok(older) => {
                format!("{what}; a backup that does not need it: --backup {}.", older.backup)
            }
            Err(_) => format!("{what}, and no other backup leads to the target."),
        })
    }
}

/// Removes what pgBackRest has written for a recovery of its own: ours has another target, and gets
/// its WAL otherwise.
fn forget_recovery(into: &Path) -> Result<(), Refusal> {
    let path = into.join("postgresql.auto.conf");
    let rewritten = fs::read(&path).and_then(|text| match without_recovery(&text) {
        Some(kept) => nrt_process::files::write_atomically(&path, kept),
        None => Ok(()),
    });
    rewritten.map_err(|error| {
        let hint = "The same command goes on where it was.";
        Refusal::new(format!("could not rewrite \"{}\": {error}", path.display()), hint)
    })
}

/// What stands before pgBackRest's settings, if there are any. What an earlier restore has left is
/// part of the backup.
fn without_recovery(text: &[u8]) -> Option<&[u8]> {
    let header = b"\n# Recovery settings generated by pgBackRest restore on ";
    let at = text.windows(header.len()).rposition(|window| window == header)?;
    // An empty line parts them from the rest.
    let kept = text.get(..=at)?;
    Some(kept.strip_suffix(b"\n\n").map_or(kept, |_| &kept[..at]))
}

/// The per cent in a line such as `restore file /d/base/1/1 (8KB, 12.34%) checksum x`.
fn percent_in(line: &str) -> Option<f64> {
    let (before, _) = line.split_once("%)")?;
    before.rsplit([' ', ',', '(']).next()?.parse().ok()
}

/// Whether a line tells of something that is no fault of a backup.
fn is_faultless(line: &str) -> bool {
    let faultless = ["No space left", "unable to write", "unable to open", "unable to create"];
    faultless.iter().any(|word| line.contains(word))
}

/// Whether pgBackRest has failed to unpack something.
fn is_fault_of_backup(output: &str) -> bool {
    let packers = ["zst error", "gz error", "lz4 error", "bz2 error", "unexpected eof"];
    output.lines().any(|line| {
        !is_faultless(line) && packers.iter().any(|words| line.to_ascii_lowercase().contains(words))
    })
}

/// The objects that hold something that cannot be unpacked, or is not what its manifest says. Reads
/// all of them.
fn damaged_objects(source: &Source, suspects: &[&Part]) -> Vec<String> {
    let mut damaged: Vec<String> = Vec::new();
    if !source.is_plain() {
        return damaged;
    }
    for part in suspects {
        if !damaged.contains(&part.path) && is_damaged(source, part) == Some(true) {
            damaged.push(part.path.clone());
        }
    }
    damaged
}

/// `None` if that cannot be told.
fn is_damaged(source: &Source, part: &Part) -> Option<bool> {
    let object = source.stored(&format!("backup/{}/{}", source.stanza, part.path)).ok()??;
    // One that cannot be read, or is gone, is not damaged.
    let mut file = fs::File::open(object).ok()?;
    let mut packed = Vec::new();
    file.seek(SeekFrom::Start(part.offset)).ok()?;
    file.take(part.stored).read_to_end(&mut packed).ok()?;
    if let Some(known) = &part.stored_checksum {
        return Some(*known != hash_of(&packed));
    }
    if part.is_in_blocks {
        return None;
    }
    let is_whole = unpack(&part.extension, &packed, part.size).is_ok_and(|bytes| {
        bytes.len() as u64 == part.size
            && part.checksum.as_ref().is_none_or(|known| *known == hash_of(&bytes))
    });
    Some(!is_whole)
}

/// The files that pgBackRest says it could not restore into a directory, as a manifest names them;
/// none where that is no fault of the backup.
fn damaged_files(output: &str, into: &Path) -> Vec<String> {
    let lines = output.lines().filter(|line| !is_faultless(line));
    let files = lines.filter_map(|line| {
        let (_, rest) = line.split_once("error restoring '")?;
        let path = Path::new(rest.split_once('\'')?.0).strip_prefix(into).ok()?;
        let path = path.to_string_lossy();
        Some(if path.starts_with("pg_tblspc/") {
            path.into_owned()
        } else {
            format!("pg_data/{path}")
        })
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_settings_of_a_recovery_are_left_out() {
        let earlier = "# Do not edit\nwork_mem = '7MB'\n\n# Recovery settings generated by \
                       pgBackRest restore on 2026-01-01 00:00:00\nrestore_command = 'a'\n";
        let newest = "\n# Recovery settings generated by pgBackRest restore on 2026-01-02 \
                      00:00:00\nrestore_command = 'b'\nrecovery_target = 'immediate'\n";
        let both = format!("{earlier}{newest}");
        assert_eq!(without_recovery(both.as_bytes()), Some(earlier.as_bytes()));
        let first = "# Do not edit\nwork_mem = '7MB'\n";
        assert_eq!(without_recovery(earlier.as_bytes()), Some(first.as_bytes()));
        assert_eq!(without_recovery(first.as_bytes()), None);
        assert_eq!(without_recovery(newest.as_bytes()), Some(&b"\n"[..]));
    }
}
