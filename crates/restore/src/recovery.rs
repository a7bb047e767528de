//! Has PostgreSQL recover, privately, or leaves it what it needs to do so later.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fs, thread};

use nrt_core::layout;
use nrt_core::lsn::Lsn;
use nrt_core::offsite::tail::history_name;
use nrt_core::restore::Refusal;
use nrt_core::restore::drill::Recovered;
use nrt_core::restore::plan::Plan;
use nrt_core::restore::target::Action;

use super::place::unusable;
use super::planning::Planned;
use super::progress::Progress;
use super::read::OwnWal;
use super::server::{Private, Programs, minimums};
use super::source::Kind;
use super::spaces::Newer;
use super::wal::{Ahead, Shelf};
use super::{Kept, OWN, Report, Run, Start, config_words, told, waldump};

/// Settings of a recovery that must not be what an earlier one has left.
const OF_RECOVERY: [(&str, &str); 7] = [
    ("recovery_target", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_name", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_action", "promote"),
];
/// Commands that PostgreSQL runs when it recovers: they may clean, or tell of, what is the
/// original's.
const COMMANDS: [&str; 2] = ["archive_cleanup_command", "recovery_end_command"];
/// Transactions that were prepared after the backup need room even where nobody can read. Only where
/// it is wanting: a standby that replays this has to have as much.
const ROOM_FOR_PREPARED: (&str, &str) = ("max_prepared_transactions", "1000");
/// How often the recovering server is looked at.
const LOOK: Duration = Duration::from_millis(50);

impl Run<'_> {
    /// What the cluster that is replaced has written and perhaps not archived.
    pub(super) fn own_wal<'p>(&self, pg_wal: &'p Path) -> Result<Option<OwnWal<'p>>, Refusal> {
        if matches!(self.request.place.kind, Kind::Remote { .. }) || !pg_wal.is_dir() {
            return Ok(None);
        }
        let Some(data) = pg_wal.parent() else { return Ok(None) };
        let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) else { return Ok(None) };
        let programs = Programs::find(version.trim(), self.request.bindir.as_deref())?;
        let Ok(control) = programs.control(data) else { return Ok(None) };
        let value = |name: &str| {
            control.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        };
        let clean = value("Database cluster state").is_some_and(|it| it == "shut down");
        let timeline = value("Latest checkpoint's TimeLineID").and_then(|it| it.parse().ok());
        let checkpoint = value("Latest checkpoint location").and_then(|it| it.parse::<Lsn>().ok());
        let size = value("Bytes per WAL segment").and_then(|it| it.parse::<u64>().ok());
        Ok(match (timeline, checkpoint, size) {
            (Some(timeline), Some(at), Some(size)) => {
                // After a clean stop the checkpoint is the last record; after a crash whatever is
                // valid behind it counts, which PostgreSQL itself finds out.
                let end =
                    if clean { Lsn(at.0 + 120) } else { last_written(pg_wal, timeline, size) };
                let system_id = value("Database system identifier").and_then(|it| it.parse().ok());
                Some(OwnWal { directory: pg_wal, timeline, flushed: end, system_id })
            }
            _ => None,
        })
    }

    /// Keeps the WAL that is nowhere else from what happens to the data directory.
    pub(super) fn keep_own_wal(&self, own: &OwnWal<'_>, shelf: &Shelf) -> Result<(), Refusal> {
        let to = self.work.own();
        let problem = |error: std::io::Error| {
            Refusal::new(
                format!("the WAL in \"{}\" cannot be kept: {error}", own.directory.display()),
                "See that the disk of the work directory has room for it.",
            )
        };
        let _ = fs::remove_dir_all(&to);
        fs::DirBuilder::new().mode(0o700).create(&to).map_err(problem)?;
        for segment in waldump::written(own.directory, shelf.segment_size) {
            if segment.timeline == own.timeline && segment.start(shelf.segment_size) < own.flushed {
                let name = segment.name(shelf.segment_size);
                let (from, to) = (own.directory.join(&name), to.join(&name));
                // Nobody writes there any more.
                let kept = fs::hard_link(&from, &to);
                kept.or_else(|_| fs::copy(&from, &to).map(drop)).map_err(problem)?;
            }
        }
        let history = history_name(own.timeline);
        match fs::copy(own.directory.join(&history), to.join(&history)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(problem(error));
            }
            _ => {}
        }
        let OwnWal { timeline, flushed, system_id, .. } = *own;
        self.work.write(OWN, &Kept { timeline, flushed, system_id }).map_err(told)
    }

    /// Puts what lets PostgreSQL recover, and the worker wait, into the data directory.
    pub(super) fn prepare_recovery(&self) -> Result<(), Refusal> {
        let data = &self.request.data;
        let state = data.join(layout::STATE_DIRECTORY);
        let prepared = fs::write(data.join("recovery.signal"), "")
            .and_then(|()| fs::DirBuilder::new().mode(0o700).recursive(true).create(&state))
            .and_then(|()| fs::write(state.join(layout::RECOVERING), ""));
        prepared.map_err(|error| unusable(data, &error))
    }

    /// Has the settings of the recovery in the configuration, for a server that is started
    /// otherwise.
    pub(super) fn write_settings(
        &self,
        plan: &Plan,
        action: Action,
        programs: &Programs,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let state = self.request.data.join(layout::STATE_DIRECTORY);
        // The worker begins when recovery is over.
        let _ = fs::remove_file(state.join(layout::RECOVERING));
        // Of an earlier restore, too: there can be one target.
        let mut settings: Vec<(&str, String)> =
            OF_RECOVERY.iter().map(|(name, default)| (*name, default.to_string())).collect();
        for (name, value) in self.settings(plan, action, false) {
            settings.retain(|(known, _)| *known != name);
            settings.push((name, value));
        }
        let config = config_words(report.configuration.as_deref());
        for (name, value) in minimums(programs, &self.request.data, &config)? {
            // What cannot be read may be large enough.
            if programs.setting(&self.request.data, &config, name).is_none() {
                continue;
            }
            report.notes.push(format!(
                "{name} is {value} in postgresql.auto.conf, as on the original: with less, the server \
                 does not recover"
            ));
            settings.push((name, value));
        }
        if self.request.start == Start::No || action == Action::Pause {
            report.notes.push(
                "if max_connections or its like was raised after the backup, replay pauses there, or \
                 the server stops: its log says which setting to raise with ALTER SYSTEM, or in \
                 postgresql.auto.conf, before it is started again"
                    .to_string(),
            );
        }
        for name in COMMANDS {
            if !programs.is_empty(&self.request.data, &config, name) {
                settings.push((name, String::new()));
                report.notes.push(format!(
                    "{name} is empty in postgresql.auto.conf, so that this recovery does not run \
                     the original's: set it again when recovery has ended, if it is still meant"
                ));
            }
        }
        self.auto_conf(&settings)
    }

    /// Gives transactions that are still prepared the room without which the server would not start:
    /// a configuration from before they were may have none.
    pub(super) fn keep_prepared(
        &self,
        programs: &Programs,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let data = &self.request.data;
        let prepared = fs::read_dir(data.join("pg_twophase")).map_or(0, Iterator::count);
        let (name, _) = ROOM_FOR_PREPARED;
        let config = config_words(report.configuration.as_deref());
        let room = programs.setting(data, &config, name).and_then(|it| it.parse().ok());
        if prepared <= room.unwrap_or(usize::MAX) {
            return Ok(());
        }
        report.notes.push(format!(
            "{name} is {prepared} in postgresql.auto.conf: so many transactions are still prepared"
        ));
        self.auto_conf(&[(name, prepared.to_string())])
    }

    /// Empties the restored postgresql.auto.conf: a library that it has loaded would be the word of
    /// whoever can write to the place that is restored from.
    pub(super) fn forget_settings(&self) -> Result<(), Refusal> {
        let path = self.request.data.join("postgresql.auto.conf");
        nrt_process::files::write_atomically(&path, b"").map_err(|error| unusable(&path, &error))
    }

    /// Sets settings in postgresql.auto.conf.
    pub(super) fn auto_conf(&self, settings: &[(&str, String)]) -> Result<(), Refusal> {
        let path = self.request.data.join("postgresql.auto.conf");
        let problem = |error: std::io::Error| unusable(&path, &error);
        let known = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            known => known.map_err(problem)?,
        };
        let mut text = Vec::new();
        for line in known.split_inclusive(|byte| *byte == b'\n') {
            let words = String::from_utf8_lossy(line);
            let name = words.trim_start().split(|c: char| c.is_whitespace() || c == '=').next();
            let name = name.unwrap_or_default();
            if !settings.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                text.extend_from_slice(line);
            }
        }
        if text.last().is_some_and(|byte| *byte != b'\n') {
            text.push(b'\n');
        }
        for (name, value) in settings {
            text.extend(format!("{name} = '{}'\n", value.replace('\'', "''")).into_bytes());
        }
        nrt_process::files::write_atomically(&path, &text).map_err(problem)
    }

    /// What PostgreSQL is told to recover.
    pub(super) fn settings(
        &self,
        plan: &Plan,
        action: Action,
        ahead: bool,
    ) -> Vec<(&'static str, String)> {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("nrt-backup"));
        let word = |path: &Path| {
            // PostgreSQL hands it to a shell, after it has replaced what begins with a per cent.
            let text = path.to_string_lossy().replace('%', "%%").replace('\'', "'\\''");
            format!("'{text}'")
        };
        let restore_command = format!(
            "{} wal-get --work {}{} %f \"%p\"",
            word(&program),
            word(self.work.path()),
            if ahead { " --ahead" } else { "" }
        );
        let mut settings = vec![("restore_command", restore_command)];
        // Without the quotes of a configuration file.
        settings.extend(plan.settings().into_iter().map(|(name, value)| {
            let inner = value.strip_prefix('\'').and_then(|it| it.strip_suffix('\''));
            let value = inner.map_or(value.clone(), |inner| inner.replace("''", "'"));
            let is_action = name == "recovery_target_action";
            (name, if is_action { action.as_str().to_string() } else { value })
        }));
        settings
    }

    /// Begins to get the WAL that PostgreSQL will ask for.
    fn begin_ahead(&self, planned: &Planned, shelf: &Shelf) -> Ahead {
        // An interrupted restore's server asked for the last one.
        let _ = fs::remove_file(self.work.asked());
        let (source, shelf) = (Arc::clone(&planned.source), Arc::new(shelf.clone()));
        Ahead::begin(source, shelf, &self.work, self.request.is_quiet)
    }

    /// Has PostgreSQL recover privately. The seconds that it took.
    pub(super) fn recover(
        &self,
        planned: &Planned,
        shelf: &Shelf,
        programs: &Programs,
        config: &[OsString],
        newer: &[Newer],
    ) -> Result<(Private, f64), Refusal> {
        let plan = &planned.plan;
        let mut words = config.to_vec();
        for (name, default) in OF_RECOVERY {
            words.extend(["-c".into(), format!("{name}={default}").into()]);
        }
        for (name, value) in self.settings(plan, plan.target.action, true) {
            words.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let total = plan.wal_bytes;
        let mut progress = Progress::begin("replay", Some(total), self.request.is_quiet);
        let mut ahead = self.begin_ahead(planned, shelf);
        let (data, mut settings) = (&self.request.data, self.request.settings.clone());
        let mut server = Private::start(programs, data, &words, &self.work, &settings)?;
        loop {
            let ended = server.look().map_err(|error| Refusal::new(error.to_string(), ""))?;
            let replayed = ahead.replayed.load(Ordering::Relaxed) * shelf.segment_size;
            progress.at(replayed.min(total));
            if server.told.is_ready {
                break;
            }
            if ended.is_some() {
                if plan.target.action == Action::Shutdown && server.told.error.is_none() {
                    break;
                }
                let (name, value) = ROOM_FOR_PREPARED;
                if server.told.lacks_prepared() && settings.iter().all(|it| it.0 != name) {
                    settings.push((name, value.to_string()));
                    // Before the next one: both have the same socket.
                    drop(server);
                    server = Private::start(programs, data, &words, &self.work, &settings)?;
                    continue;
                }
                if server.told.ran_out_of_wal() {
                    return Err(self.short(
                        format!("recovery stopped: {}", server.told.last_words()),
                        &server.told,
                        "The same command tries again. nrt-backup plan says what can be reached."
                            .to_string(),
                    ));
                }
                if let Some(directory) = server.told.lacks_directory() {
                    // Nothing is there: the original's, which would be in the way, is not either.
                    self.make_missed(newer, &directory)?;
                    drop(server);
                    server = Private::start(programs, data, &words, &self.work, &settings)?;
                    continue;
                }
                return Err(Refusal::new(
                    format!("recovery stopped: {}", server.told.last_words()),
                    format!(
                        "PostgreSQL's log is \"{}\". The same command tries again.",
                        self.work.path().join("recovery.log").display()
                    ),
                ));
            }
            if server.told.is_paused {
                return Err(Refusal::new(
                    "recovery waits for somebody to let it go on",
                    format!(
                        "PostgreSQL's log is \"{}\" and says why.",
                        self.work.path().join("recovery.log").display()
                    ),
                ));
            }
            if let Some(refusal) = ahead.failure() {
                return Err(Refusal::new(
                    format!("recovery cannot go on: {}", refusal.message),
                    format!("{} The same command goes on when it is mended.", refusal.hint),
                ));
            }
            thread::sleep(LOOK);
        }
        Ok((server, progress.end(total)))
    }

    /// What the recovered server says of itself. Stops it.
    pub(super) fn recovered(
        &self,
        plan: &Plan,
        programs: &Programs,
        server: Private,
    ) -> Result<Recovered, Refusal> {
        let said = server.told.clone();
        if server.told.is_ready {
            server.stop()?;
        } else {
            drop(server);
        }
        let control = programs.control(&self.request.data)?;
        let timeline = control
            .iter()
            .find(|(name, _)| name == "Latest checkpoint's TimeLineID")
            .and_then(|(_, value)| value.parse().ok());
        Ok(Recovered {
            backup: plan.backup.clone(),
            timeline: said.timeline.or(timeline).unwrap_or(plan.timeline),
            lsn: said.redo_done.or_else(|| plan.wal.last().map(|it| it.to)).unwrap_or_default(),
            last_commit: said.last_end,
        })
    }
}

/// The end of the newest segment that holds something.
fn last_written(pg_wal: &Path, timeline: u32, size: u64) -> Lsn {
    let segments = waldump::written(pg_wal, size);
    let mut last = Lsn::default();
    for segment in segments.iter().filter(|it| it.timeline == timeline) {
        let name = segment.name(size);
        let mut page = [0_u8; 16];
        let read = fs::File::open(pg_wal.join(name))
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut page));
        // The page's own position: a segment that is kept to be used again has an old one.
        let address = page.get(8..16).and_then(|it| it.try_into().ok()).map(u64::from_ne_bytes);
        if read.is_ok() && address == Some(segment.start(size).0) {
            last = last.max(segment.end(size));
        }
    }
    last
}
