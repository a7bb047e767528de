//! Finishes a restore: a copy or the original's heir, the local repository, the server's start.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, fs::File, thread};

use chrono::Utc;
use nrt_core::layout;
use nrt_core::offsite::HEARTBEAT;
use nrt_core::offsite::owner;
use nrt_core::options::REPOSITORY;
use nrt_core::restore::Refusal;
use nrt_process::allowed_for_rclone;
use rustix::fs::syncfs;
use serde::{Deserialize, Serialize};

use super::place::unusable;
use super::planning::Planned;
use super::server::Programs;
use super::waldump::Dump;
use super::{KEPT, Report, Run, config_words, place};

/// A sign of life of another instance is waited for so long.
const SIGN_OF_LIFE: Duration = Duration::from_secs(HEARTBEAT as u64 + 5);
/// How long a remote is asked whether the original lives.
const ASKING: Duration = Duration::from_secs(60);

/// How far a cluster has come, as its control file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Control {
    system_id: String,
    checkpoint: String,
    state: String,
}

impl Control {
    /// Reads it.
    pub(super) fn of(data: &Path, programs: &Programs) -> Result<Control, Refusal> {
        let control = programs.control(data)?;
        let value = |name: &str| {
            let line = control.iter().find(|(known, _)| known == name);
            line.map(|(_, value)| value.clone()).ok_or_else(|| {
                Refusal::new(
                    format!("pg_controldata says nothing of \"{name}\""),
                    "See that --bindir names the programs of the backup's PostgreSQL.",
                )
            })
        };
        Ok(Control {
            system_id: value("Database system identifier")?,
            checkpoint: value("Latest checkpoint location")?,
            state: value("Database cluster state")?,
        })
    }

    /// Whether it is the same cluster, whatever was written since.
    pub(super) fn is_of_the_cluster(&self, other: &Control) -> bool {
        self.system_id == other.system_id
    }

    /// Whether nothing was written since it was left at `left`, but for what a server that has just
    /// started, and runs, writes.
    pub(super) fn is_left_at(&self, left: &Control, is_running: bool) -> bool {
        let is_there = self.is_of_the_cluster(left) && self.checkpoint == left.checkpoint;
        // Whoever stops a server in order has it write a checkpoint; who does not leaves its state.
        is_there && (is_running || self.state == left.state)
    }
}

/// Whether a data directory is the cluster's: another one's may be there by now.
pub(super) fn is_of(planned: &Planned, data: &Path, programs: &Programs) -> bool {
    let found = Control::of(data, programs);
    found.is_ok_and(|it| it.system_id == planned.plan.system_identifier)
}

impl Run<'_> {
    /// Keeps a copy from writing to the places of its original.
    pub(super) fn leave_the_original_alone(
        &self,
        planned: &Planned,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        report.copy_of = self.copy_of(planned)?;
        match report.copy_of {
            Some(_) => self.auto_conf(&[("archive_mode", "off".to_string())]),
            None => Ok(()),
        }
    }

    /// Why what is restored is only a copy, if the original lives.
    pub(super) fn copy_of(&self, planned: &Planned) -> Result<Option<String>, Refusal> {
        match self.request.is_copy {
            Some(true) => return Ok(Some("it was restored as a copy (--copy)".to_string())),
            Some(false) => return Ok(None),
            None => {}
        }
        let original = planned.manifest.as_ref().and_then(|it| it.data_directory.clone());
        if let Some(original) = original
            && Path::new(&original) != self.request.data
            && place::runs(Path::new(&original))
            && planned.source.remote.is_none()
        {
            return Ok(Some(format!("the original runs in \"{original}\"")));
        }
        let (Some(remote), Some(first)) = (&planned.source.remote, &planned.owner) else {
            return Ok(None);
        };
        let recent = (Utc::now() - first.heartbeat).num_seconds().unsigned_abs() < 600;
        if recent && !self.request.is_quiet {
            let left = SIGN_OF_LIFE.saturating_sub(planned.read_at.elapsed()).as_secs();
            eprintln!(
                "    wait: {left} s for a sign of life of the original on \"{}\"",
                first.host
            );
        }
        let mut failing_since = None;
        loop {
            let now = match owner::Found::read(|name| remote.get_or_damaged(name)) {
                Ok(now) => now,
                Err(refusal) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= ASKING {
                        // It is recovered, and does no harm as a copy.
                        return Ok(Some(format!(
                            "whether the original lives cannot be found out: {refusal}"
                        )));
                    }
                    remote.forget();
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if now.owner().is_some_and(|now| now.instance == first.instance && now != *first) {
                return Ok(Some(format!("the original on host \"{}\" is alive", first.host)));
            }
            if !recent || planned.read_at.elapsed() >= SIGN_OF_LIFE {
                return Ok(None);
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Refuses to replay what would write into the original's places: WAL that creates a tablespace
    /// says where that was, and nothing can map it to another place. That it is gone since is no
    /// reason: its directory may serve something else by now.
    pub(super) fn spare_original(
        &self,
        planned: &Planned,
        programs: &Programs,
    ) -> Result<(), Refusal> {
        let plan = &planned.plan;
        let Some(original) = self.original(planned, programs) else { return Ok(()) };
        let dump = Dump {
            source: Arc::clone(&planned.source),
            shelf: planned.shelf.clone(),
            program: programs.program("pg_waldump"),
            directory: self.work.look(),
        };
        let Some(place) = dump.created_tablespace(plan)? else { return Ok(()) };
        let hint = "Take a backup with SELECT nrt_backup_now(), and begin with that";
        Err(Refusal::new(
            format!(
                "the tablespace in \"{}\" was created after the backup {} had begun: to replay \
                 that would write into it, beside the original in \"{}\"",
                place.display(),
                plan.backup,
                original.display()
            ),
            match self.request.original {
                Some(_) => format!("{hint}."),
                None => format!("{hint}; if the original is gone for good, --original says so."),
            },
        ))
    }

    /// The original's data directory, if it is on this machine and is not what is restored into.
    pub(super) fn original(&self, planned: &Planned, programs: &Programs) -> Option<PathBuf> {
        if self.request.original.is_some() || self.request.is_copy == Some(false) {
            return self.request.original.clone();
        }
        let known = planned.manifest.as_ref()?.data_directory.as_ref()?;
        let real = fs::canonicalize(known).ok()?;
        if fs::canonicalize(&self.request.data).is_ok_and(|it| it == real) {
            return None;
        }
        is_of(planned, &real, programs).then_some(real)
    }

    /// After the promotion: what the server and its worker find.
    pub(super) fn finish(
        &self,
        planned: &Planned,
        programs: &Programs,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let data = &self.request.data;
        let state = data.join(layout::STATE_DIRECTORY);
        let problem = |error: std::io::Error| unusable(&state, &error);
        let config = config_words(report.configuration.as_deref());
        if planned.source.remote.is_some() && report.copy_of.is_none() {
            let place = self.request.repository.clone().unwrap_or_else(|| {
                let configured = programs.setting(data, &config, REPOSITORY.name());
                PathBuf::from(configured.unwrap_or_else(|| REPOSITORY.default().to_string()))
            });
            if let Some(note) = self.keep_repository(planned, &place) {
                report.notes.push(note);
            }
        }
        self.mark(planned, report)?;
        match fs::remove_file(state.join(layout::RECOVERING)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(problem(error)),
            _ => Ok(()),
        }
    }

    /// Leaves behind where the data directory came from.
    pub(super) fn mark(&self, planned: &Planned, report: &Report) -> Result<(), Refusal> {
        let plan = &report.plan;
        let recovered = report.recovered.as_ref();
        let end = plan.wal.last().map(|it| it.to).unwrap_or_default();
        let restored = layout::Restored {
            at: Utc::now(),
            backup: plan.backup.clone(),
            source: plan.source.clone(),
            timeline: recovered.map_or(plan.timeline, |it| it.timeline),
            lsn: recovered.map_or(end, |it| it.lsn),
            last_commit: recovered.and_then(|it| it.last_commit),
            is_copy: report.copy_of.is_some(),
            full_taken: None,
            target: Some(plan.target.clone()),
            phases: recovered.filter(|_| report.is_measured).map(|_| report.phases),
            backups: Some(planned.catalog.backups.iter().map(|it| it.label.clone()).collect()),
        };
        let text = serde_json::to_vec(&restored).unwrap_or_default();
        let path = self.request.data.join(layout::STATE_DIRECTORY).join(layout::RESTORED);
        nrt_process::files::write_atomically(&path, &text).map_err(|it| unusable(&path, &it))
    }

    /// Makes what was fetched the local repository, where there is none yet: so the chain need not
    /// be fetched again, and the archive goes on where it was.
    pub(super) fn keep_repository(&self, planned: &Planned, place: &Path) -> Option<String> {
        let stanza = &planned.source.stanza;
        let is_there = |kind: &str| place.join(kind).join(stanza).exists();
        // An interrupted restore may have brought a part of it.
        let is_ours = self.work.read::<PathBuf>(KEPT).is_some_and(|known| known == place);
        if !is_ours && (is_there("backup") || is_there("archive")) {
            return Some(format!(
                "\"{}\" holds a repository of stanza \"{stanza}\" already, which is left as it is",
                place.display()
            ));
        }
        if let Err(error) = self.work.write(KEPT, &place) {
            return Some(format!("the fetched repository could not be kept: {error:#}"));
        }
        let left = ["archive", "backup"].into_iter().filter(|kind| !is_there(kind));
        let moved = left.into_iter().try_for_each(|kind| {
            let parent = place.join(kind);
            fs::DirBuilder::new().mode(0o750).recursive(true).create(&parent)?;
            carry(&self.work.repository().join(kind).join(stanza), &parent.join(stanza))
        });
        match moved {
            Ok(()) => None,
            Err(error) => Some(format!(
                "the fetched repository could not be kept in \"{}\": {error}; the next backup is a \
                 full one all the same",
                place.display()
            )),
        }
    }

    /// Starts the server as it is started from now on.
    pub(super) fn start(&self, programs: &Programs, report: &mut Report) -> Result<(), Refusal> {
        let data = &self.request.data;
        let log = data.join(layout::STATE_DIRECTORY).join("log");
        let _ = fs::DirBuilder::new().mode(0o700).recursive(true).create(&log);
        let log = log.join("start.log");
        let mut command = Command::new(programs.program("pg_ctl"));
        command.arg("-D").arg(data).arg("-w").arg("-t").arg("86400").arg("-l").arg(&log);
        if let Some(path) = &report.configuration {
            let path = path.to_string_lossy().replace('\'', "'\\''");
            command.arg("-o").arg(format!("-c 'config_file={path}'"));
        }
        // The server hands on to rclone what rclone alone may see.
        command.arg("start").env_clear().envs(allowed_for_rclone(std::env::vars_os()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status();
        match status {
            Ok(status) if status.success() => {
                report.is_running = true;
                Ok(())
            }
            other => {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let words = text.lines().rfind(|line| line.contains("FATAL"));
                let words = words.map_or_else(|| format!("{other:?}"), str::to_string);
                Err(Refusal::new(
                    format!("the cluster is restored, but its server does not start: {words}"),
                    format!(
                        "Mend the configuration and start it; its log is \"{}\".",
                        log.display()
                    ),
                ))
            }
        }
    }
}

/// Moves a directory, also to another file system. All that is in it is on disk before it has its
/// name, and the name when this returns: a manifest never outlives the files that it names.
fn carry(from: &Path, to: &Path) -> std::io::Result<()> {
    let sync = |directory: &Path| -> std::io::Result<()> { Ok(syncfs(File::open(directory)?)?) };
    sync(from)?;
    if fs::rename(from, to).is_err() {
        // Whole, or not at all under its name.
        let partial = to.with_extension("nrt-partial");
        let _ = fs::remove_dir_all(&partial);
        copy(from, &partial)?;
        sync(&partial)?;
        fs::rename(&partial, to)?;
    }
    to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o750).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_written_has_a_cluster_of_their_own() {
        let control = |system_id: &str, checkpoint: &str, state: &str| Control {
            system_id: system_id.to_string(),
            checkpoint: checkpoint.to_string(),
            state: state.to_string(),
        };
        let left = control("7", "0/5000028", "shut down");
        assert!(left.is_left_at(&left, false));
        let started = control("7", "0/5000028", "in production");
        assert!(started.is_left_at(&left, true), "it has just started");
        assert!(!started.is_left_at(&left, false), "it has run, and was killed");
        for other in
            [control("7", "0/6000028", "shut down"), control("8", "0/5000028", "shut down")]
        {
            assert!(!other.is_left_at(&left, false) && !other.is_left_at(&left, true), "{other:?}");
        }
    }
}
