//! Finds out what the worker decides by: pgBackRest, the repository, the disks.
//!
//! It is the worker's child because all of this can be slow or hang. It also writes pgBackRest's
//! configuration for the version that it finds, and puts everything into files of the state
//! directory, each replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use nrt_core::inventory::{Disk, Failure, FileIdentity, Inventory, Repository};
use nrt_core::layout::{self, Tool};
use nrt_core::look::Plan;
use nrt_core::lsn::Lsn;
use nrt_core::offsite::tail::{history_name, parse_history};
use nrt_core::pgbackrest::config::{self, BadConfig, ConfigInput};
use nrt_core::pgbackrest::stanza::{self, Holder};
use nrt_core::pgbackrest::version::{MINIMUM, Version};
use nrt_core::pgbackrest::{archive, command, exit, info, label, own};
use nrt_process::files::{read_json, write_atomically};
use nrt_process::identity;
use nrt_process::{allowed_in_zone, capture};
use rustix::fs::statvfs;
use rustix::process::geteuid;

/// How long each call of pgBackRest may take.
const LIMIT: Duration = Duration::from_secs(90);
/// More than the longest answer: a listing has about a hundred bytes for each of a million
/// segments.
const LONGEST_ANSWER: usize = 256 << 20;
/// How long an account of the repository is good although nothing seems to have changed in it: a
/// repository that is no directory here shows no sign of change.
const FRESH: TimeDelta = TimeDelta::minutes(10);
/// Seconds that a backup waits until its WAL is in the repository. PostgreSQL's archiver pauses
/// for up to a minute after a failure, and after a crash it may be started that much later:
/// pgBackRest's own default of 60 would fail a backup that has only to wait.
const ARCHIVE_TIMEOUT: u32 = 120;
/// Where pgBackRest keeps its locks unless told.
const LOCK_PATH: &str = "/tmp/pgbackrest";

/// Looks at pgBackRest, the repository and the disks, for the worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to look at, as JSON.
    plan: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match look(&arguments.plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::exit::child_failed(&error),
    }
}

fn look(plan: &str) -> anyhow::Result<()> {
    let mut plan: Plan = serde_json::from_str(plan).context("read the plan")?;
    if plan.stanza.is_empty() {
        plan.stanza = chosen_stanza(&plan);
    }
    let environment = allowed_in_zone(std::env::vars_os(), label::UTC);
    let look = Look { environment, state: plan.state.clone().into(), plan };
    let inventory = look.inventory()?;
    look.write(layout::INVENTORY, &serde_json::to_vec(&inventory)?)?;
    Ok(())
}

/// The stanza of this cluster, where the operator names none.
fn chosen_stanza(plan: &Plan) -> String {
    if plan.own_config.is_some() {
        return stanza::DEFAULT.to_string();
    }
    let state = Path::new(&plan.state);
    let own = identity::own(state).ok().flatten();
    let before: Option<Tool> = read_json(&state.join(layout::TOOL));
    let before = before.filter(|it| own.is_some() && it.instance == own).map(|it| it.stanza);
    stanza::choose(plan.system_id, before.as_deref(), |name| {
        let info = |kind: &str| {
            let directory = Path::new(&plan.repository).join(kind).join(name);
            let file = |end: &str| fs::read(directory.join(format!("{kind}.info{end}"))).ok();
            // One of the two may be replaced just now.
            file("").filter(|it| !it.is_empty()).or_else(|| file(".copy"))
        };
        match info("archive").or_else(|| info("backup")) {
            Some(text) => Holder::of(&String::from_utf8_lossy(&text), plan.system_id),
            None => Holder::Nobody,
        }
    })
}

struct Look {
    plan: Plan,
    state: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Look {
    fn inventory(&self) -> anyhow::Result<Inventory> {
        let now = Utc::now();
        let mut inventory = Inventory {
            collected_at: now,
            listed_at: now,
            stanza: self.plan.stanza.clone(),
            pgbackrest: Err(Failure { message: String::new(), hint: String::new() }),
            repository: Err(Failure { message: String::new(), hint: String::new() }),
            repository_disk: self.repository_directory().and_then(|path| disk(Path::new(&path))),
            wal_disk: disk(&Path::new(&self.plan.data_directory).join("pg_wal")),
            state_not_excluded: !self.exclusions().is_empty(),
            // Before the repository is looked at: what changes meanwhile is seen by the next look.
            info_file: self.info_file(),
        };
        match self.find() {
            Err(failure) => {
                inventory.repository = Err(failure.clone());
                inventory.pgbackrest = Err(failure);
            }
            Ok((program, version)) => {
                inventory.pgbackrest = Ok(version);
                let locks = lock_directory(Path::new(&self.lock_path()), geteuid().as_raw());
                inventory.repository = match locks.and_then(|()| self.configuration(version)) {
                    Err(failure) => Err(failure),
                    Ok(text) => {
                        let (tool, changed) = self.configure(&program, text)?;
                        // Under another configuration, another repository may have been meant.
                        match self.still_good(now, &inventory).filter(|_| !changed) {
                            Some(before) => {
                                inventory.listed_at = before.listed_at;
                                before.repository
                            }
                            None => self.repository(&tool),
                        }
                    }
                };
            }
        }
        Ok(inventory)
    }

    /// The program and its version.
    fn find(&self) -> Result<(PathBuf, Version), Failure> {
        let name = &self.plan.pgbackrest;
        let program = self.on_path(name).ok_or_else(|| Failure {
            message: format!(
                "pgBackRest is missing: there is no program \"{name}\" that can be run"
            ),
            hint: format!(
                "Install pgBackRest {MINIMUM} or newer (apt install pgbackrest), or set \
                 nrt_backup.pgbackrest to its path."
            ),
        })?;
        let answer = self.call(&program, &command::version())?;
        let text = String::from_utf8_lossy(&answer);
        let version = Version::parse(&text).ok_or_else(|| Failure {
            message: format!("\"{}\" does not answer as pgBackRest does", program.display()),
            hint: "Set nrt_backup.pgbackrest to pgBackRest's path.".to_string(),
        })?;
        if !version.supported() {
            return Err(Failure {
                message: format!("pgBackRest {version} is too old: nrt_backup needs {MINIMUM}"),
                hint: "Install a newer pgBackRest.".to_string(),
            });
        }
        Ok((program, version))
    }

    fn on_path(&self, name: &str) -> Option<PathBuf> {
        let runs = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        };
        if name.starts_with('/') {
            return Some(PathBuf::from(name)).filter(runs);
        }
        let path = self.environment.iter().find(|(variable, _)| variable == "PATH")?;
        std::env::split_paths(&path.1).map(|directory| directory.join(name)).find(runs)
    }

    /// The configuration for this version, unless the operator has one.
    fn configuration(&self, version: Version) -> Result<Option<String>, Failure> {
        if self.plan.own_config.is_some() {
            return Ok(None);
        }
        let text = self.config_input(version).and_then(|input| config::render(&input));
        text.map(Some).map_err(|error| Failure {
            message: format!("pgBackRest cannot be configured: {error}"),
            hint: "Change the setting that it comes from; see nrt.settings.".to_string(),
        })
    }

    /// Writes the configuration, if there is one to write, and how pgBackRest is called. Tells
    /// whether any of it is new.
    fn configure(&self, program: &Path, text: Option<String>) -> anyhow::Result<(Tool, bool)> {
        let mut changed = false;
        if let Some(text) = text {
            changed |= self.write(layout::PGBACKREST_CONFIG, text.as_bytes())?;
        }
        let own = self.plan.own_config.as_deref();
        let tool = Tool {
            program: program.to_string_lossy().into_owned(),
            config: own.map_or_else(|| self.text(layout::PGBACKREST_CONFIG), str::to_string),
            stanza: self.plan.stanza.clone(),
            lock_path: self.lock_path(),
            exclude: self.exclusions(),
            instance: identity::own(&self.state)
                .with_context(|| format!("read \"{}\"", self.state.display()))?,
        };
        changed |= self.write(layout::TOOL, &serde_json::to_vec(&tool)?)?;
        Ok((tool, changed))
    }

    /// What the operator's own configuration says; nothing, where it cannot be read: pgBackRest
    /// says then why.
    fn own_text(&self) -> String {
        let own = self.plan.own_config.as_ref().and_then(|own| fs::read_to_string(own).ok());
        own.unwrap_or_default()
    }

    /// Where the locks are.
    fn lock_path(&self) -> String {
        match &self.plan.own_config {
            Some(_) => own::backup_option(&self.own_text(), &self.plan.stanza, "lock-path")
                .unwrap_or(LOCK_PATH.into()),
            None => self.plan.lock_path.clone(),
        }
    }

    /// What backups must leave out instead of what the operator's configuration says.
    fn exclusions(&self) -> Vec<String> {
        let text = self.plan.own_config.as_ref().map(fs::read_to_string);
        let Some(Ok(text)) = text else { return Vec::new() };
        own::exclusions_with(&text, &self.plan.stanza, layout::STATE_DIRECTORY)
    }

    fn config_input(&self, version: Version) -> Result<ConfigInput, BadConfig> {
        let plan = &self.plan;
        Ok(ConfigInput {
            version,
            stanza: plan.stanza.clone(),
            repository: plan.repository.clone(),
            lock_path: plan.lock_path.clone(),
            log_path: self.text(layout::LOG),
            spool_path: self.text(layout::SPOOL),
            pg_path: plan.data_directory.clone(),
            pg_port: plan.port,
            pg_socket: plan.socket_directory.clone(),
            pg_user: plan.user.clone(),
            pg_database: plan.database.clone(),
            retention_days: plan.retention_days,
            process_max: u16::try_from(plan.process_max).unwrap_or(u16::MAX),
            compress_type: plan.compress_type.parse()?,
            archive_timeout: ARCHIVE_TIMEOUT,
            exclude: vec![format!("{}/", layout::STATE_DIRECTORY)],
        })
    }

    fn text(&self, name: &str) -> String {
        self.state.join(name).to_string_lossy().into_owned()
    }

    /// Writes a file of the state directory, unless it holds the same already, and tells whether
    /// it did.
    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<bool> {
        let path = self.state.join(name);
        if fs::read(&path).is_ok_and(|old| old == content) {
            return Ok(false);
        }
        write_atomically(&path, content)
            .with_context(|| format!("write \"{}\"", path.display()))?;
        Ok(true)
    }

    /// The account before this one, if it is still good.
    fn still_good(&self, now: DateTime<Utc>, fresh: &Inventory) -> Option<Inventory> {
        if self.plan.thorough {
            return None;
        }
        let before = fs::read(self.state.join(layout::INVENTORY)).ok()?;
        let before: Inventory = serde_json::from_slice(&before).ok()?;
        let age = now - before.listed_at;
        let is_whole = |it: &Repository| {
            let current = self.plan.archived_timeline.filter(|it| *it > 1);
            let pg_wal = Path::new(&self.plan.data_directory).join("pg_wal");
            it.problem().is_none()
                && it.histories_missing.is_none()
                // Also after a promotion, of which the archive shows nothing.
                && current.is_none_or(|timeline| {
                    it.histories.contains_key(&timeline)
                        || !pg_wal.join(history_name(timeline)).exists()
                })
        };
        let good = before.repository.as_ref().is_ok_and(is_whole)
            && before.stanza == fresh.stanza
            && before.pgbackrest == fresh.pgbackrest
            // An account from the future tells that the clock was set back since then.
            && age >= TimeDelta::zero()
            && age < FRESH
            && fresh.info_file.is_some()
            && before.info_file == fresh.info_file;
        good.then_some(before)
    }

    /// The repository's file `backup.info`, which pgBackRest replaces with every backup and every
    /// expiry.
    fn info_file(&self) -> Option<FileIdentity> {
        let directory = self.repository_directory()?;
        let path = Path::new(&directory).join("backup").join(&self.plan.stanza).join("backup.info");
        let file = fs::metadata(path).ok()?;
        Some(FileIdentity {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }

    /// The repository's directory, where it is one on this machine.
    fn repository_directory(&self) -> Option<String> {
        match &self.plan.own_config {
            None => Some(self.plan.repository.clone()),
            Some(_) => own::local_repository(&self.own_text(), &self.plan.stanza),
        }
    }

    fn repository(&self, tool: &Tool) -> Result<Repository, Failure> {
        let program = Path::new(&tool.program);
        let answer = self.call(program, &command::info(&tool.config, &tool.stanza))?;
        let text = String::from_utf8_lossy(&answer);
        let info = info::parse_info(&text, &tool.stanza).map_err(|error| Failure {
            message: format!("pgBackRest's account of the repository cannot be read: {error}"),
            hint: "Run pgbackrest info --output=json to see it.".to_string(),
        })?;
        if info.archives.is_empty() {
            return Ok(Repository::new(info, Vec::new()));
        }
        let answer = self.call(program, &command::repo_ls(&tool.config, &tool.stanza))?;
        let text = String::from_utf8_lossy(&answer);
        let listing = archive::parse_listing(&text, self.plan.segment_size);
        let archive = listing.map_err(|error| Failure {
            message: format!("pgBackRest's listing of the archive cannot be read: {error}"),
            hint: "Run pgbackrest repo-ls to see it.".to_string(),
        })?;
        let mut repository = Repository::new(info, archive.ranges);
        // The archive that is written now.
        let newest = repository.info.archives.iter().rfind(|it| it.repo == 1);
        let Some(id) = newest.map(|it| it.id.clone()) else { return Ok(repository) };
        let there: BTreeSet<u32> = archive
            .histories
            .iter()
            .filter(|it| it.archive_id == id)
            .map(|it| it.timeline)
            .collect();
        for &timeline in &there {
            let parents = self.archived_history(tool, &id, timeline)?;
            repository.histories.insert(timeline, parents);
        }
        if repository.problem().is_none() {
            let outcome = self.archive_histories(tool, &there, &mut repository.histories);
            repository.histories_missing = outcome.err();
        }
        Ok(repository)
    }

    /// What a history file of the archive says.
    fn archived_history(
        &self,
        tool: &Tool,
        id: &str,
        timeline: u32,
    ) -> Result<Vec<(u32, Lsn)>, Failure> {
        let path = format!("{id}/{}", history_name(timeline));
        let below = self.repository_directory().map(PathBuf::from);
        let stored = below.map(|it| it.join("archive").join(&tool.stanza).join(&path));
        let plain =
            stored.and_then(|file| fs::read_to_string(file).ok()).map(|it| parse_history(&it));
        if let Some(parents) = plain.filter(|it| !it.is_empty()) {
            return Ok(parents);
        }
        // Encrypted, or not on this machine.
        let args = command::archive_get_file(&tool.config, &tool.stanza, &path);
        let text = self.call(Path::new(&tool.program), &args)?;
        Ok(parse_history(&String::from_utf8_lossy(&text)))
    }

    /// Archives the history files of the server's timelines that the archive lacks: a server that
    /// was promoted before it had this archive has marked them as archived, and its archiver never
    /// brings them.
    fn archive_histories(
        &self,
        tool: &Tool,
        there: &BTreeSet<u32>,
        known: &mut BTreeMap<u32, Vec<(u32, Lsn)>>,
    ) -> Result<(), Failure> {
        let Some(current) = self.plan.archived_timeline.filter(|it| *it > 1) else { return Ok(()) };
        let pg_wal = Path::new(&self.plan.data_directory).join("pg_wal");
        let read = |timeline| {
            fs::read_to_string(pg_wal.join(history_name(timeline))).map(|it| parse_history(&it))
        };
        let missing = |timeline: u32, why: &str| Failure {
            message: format!(
                "the history file of timeline {timeline}, {}, is not in the archive: {why}",
                history_name(timeline)
            ),
            hint: "A backup that was taken on an earlier timeline cannot be restored to this one. \
                   Take one with SELECT nrt_backup_now('full')."
                .to_string(),
        };
        // A server can be without it, and its own backups need none.
        let Ok(parents) = read(current) else { return Ok(()) };
        let earlier = parents.iter().map(|(timeline, _)| *timeline).filter(|it| *it > 1);
        for timeline in earlier.chain([current]).filter(|it| !there.contains(it)) {
            let name = history_name(timeline);
            // PostgreSQL follows a timeline by its own history file alone: an earlier one that is
            // gone from pg_wal is of no consequence.
            let Ok(parents) = read(timeline) else { continue };
            // Two that archive the same file write the same temporary one.
            if pg_wal.join("archive_status").join(format!("{name}.ready")).exists() {
                continue;
            }
            let file = pg_wal.join(&name).to_string_lossy().into_owned();
            let args = command::archive_push_history(&tool.config, &tool.stanza, &file);
            self.call(Path::new(&tool.program), &args)
                .map_err(|failure| missing(timeline, &failure.message))?;
            known.insert(timeline, parents);
        }
        Ok(())
    }

    fn call(&self, program: &Path, args: &[String]) -> Result<Vec<u8>, Failure> {
        let words: Vec<OsString> = args.iter().map(OsString::from).collect();
        let captured = capture(program, &words, &self.environment, LIMIT, LONGEST_ANSWER);
        let captured = captured.map_err(|error| Failure {
            message: format!("could not run \"{}\": {error}", program.display()),
            hint: "See that the server's user may run it.".to_string(),
        })?;
        if captured.exit == Some(0) {
            return Ok(captured.stdout);
        }
        if captured.timed_out {
            return Err(Failure {
                message: format!("pgBackRest did not answer within {} s", LIMIT.as_secs()),
                hint: "The repository's file system or network may hang.".to_string(),
            });
        }
        let output = format!("{}{}", String::from_utf8_lossy(&captured.stdout), captured.stderr);
        let verdict = exit::judge(captured.exit, captured.signal, &output);
        let hint = verdict.hint.unwrap_or_else(|| {
            let command = format!("{} {}", program.display(), args.join(" "));
            format!("Run \"{command}\" as the server's user to see more.")
        });
        Err(Failure { message: verdict.message, hint })
    }
}

/// The disk below a path, or below the nearest directory above it that exists.
fn disk(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|it| it.exists())?;
    let disk = statvfs(existing).ok()?;
    Some(Disk { total: disk.f_blocks * disk.f_frsize, available: disk.f_bavail * disk.f_frsize })
}

/// Refuses a directory for the locks that somebody else may have made, where everybody may make
/// one. Who owns it could keep every backup away, and have this user write into other files.
fn lock_directory(path: &Path, user: u32) -> Result<(), Failure> {
    let parent = path.parent().and_then(|it| fs::metadata(it).ok());
    if parent.is_none_or(|it| it.mode() & 0o002 == 0) {
        return Ok(());
    }
    // As pgBackRest makes it. What is wrong, it says itself.
    let _ = fs::DirBuilder::new().mode(0o770).create(path);
    let is_safe = |it: &fs::Metadata| [0, user].contains(&it.uid());
    let found = (fs::symlink_metadata(path), fs::metadata(path));
    let (Ok(itself), Ok(directory)) = found else { return Ok(()) };
    if is_safe(&itself) && is_safe(&directory) && directory.mode() & 0o002 == 0 {
        return Ok(());
    }
    Err(Failure {
        message: format!(
            "the directory of pgBackRest's locks, \"{}\", is one that other users of this machine \
             may write to",
            path.display()
        ),
        hint: "Remove it if it is nobody's, or set nrt_backup.lock_path to a directory of the \
               server's user."
            .to_string(),
    })
}

#[cfg(test)]
mod tests {
    use nrt_core::pgbackrest::version::MINIMUM;

    use super::*;

    /// What a look that began at `now` takes over from the one before, which ended at `listed_at`.
    fn taken_over(look: &Look, listed_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let info = info::parse_info("[]", "main").expect("an empty account");
        let inventory = |repository| Inventory {
            collected_at: listed_at,
            listed_at,
            stanza: "main".to_string(),
            pgbackrest: Ok(MINIMUM),
            repository,
            repository_disk: None,
            wal_disk: None,
            state_not_excluded: false,
            info_file: look.info_file(),
        };
        let mut before = inventory(Ok(Repository::new(info, Vec::new())));
        if let Ok(repository) = &mut before.repository {
            repository.info.code = info::NO_VALID_BACKUPS;
        }
        look.write(layout::INVENTORY, &serde_json::to_vec(&before).expect("JSON")).expect("ours");
        let nothing = Failure { message: String::new(), hint: String::new() };
        look.still_good(now, &inventory(Err(nothing))).is_some()
    }

    #[test]
    fn an_account_of_the_future_or_of_another_file_is_not_taken_over() {
        let root = tempfile::tempdir().expect("a directory");
        let text = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        let plan = Plan {
            state: text("state"),
            data_directory: text("data"),
            port: 5432,
            socket_directory: None,
            user: "postgres".to_string(),
            segment_size: 16 << 20,
            stanza: "main".to_string(),
            system_id: 1,
            pgbackrest: "pgbackrest".to_string(),
            own_config: None,
            repository: text("repository"),
            lock_path: text("lock"),
            database: "postgres".to_string(),
            retention_days: 7,
            process_max: 1,
            compress_type: "zst".to_string(),
            thorough: false,
            archived_timeline: None,
        };
        let look = Look { environment: Vec::new(), state: plan.state.clone().into(), plan };
        let directory = root.path().join("repository/backup/main");
        for directory in [&look.state, &directory] {
            fs::create_dir_all(directory).expect("made");
        }
        let now = Utc::now();
        assert!(!taken_over(&look, now, now), "there is no backup.info");
        let file = directory.join("backup.info");
        fs::write(&file, "one").expect("written");
        assert!(taken_over(&look, now, now));
        assert!(taken_over(&look, now - FRESH + TimeDelta::seconds(1), now));
        assert!(!taken_over(&look, now - FRESH, now));
        // The clock was ahead at the first start, and was set right.
        assert!(!taken_over(&look, now + TimeDelta::seconds(1), now));
        assert!(!taken_over(&look, now + TimeDelta::days(1), now));

        // A file that was replaced within the same second, with the same size, is another one.
        let known = look.info_file();
        let time = fs::metadata(&file).and_then(|it| it.modified()).expect("a time");
        let other = directory.join("backup.info.pgbackrest.tmp");
        fs::write(&other, "two").expect("written");
        let times = fs::FileTimes::new().set_modified(time);
        fs::File::open(&other).and_then(|it| it.set_times(times)).expect("ours");
        fs::rename(&other, &file).expect("replaced");
        assert_ne!(look.info_file(), known);
    }

    #[test]
    fn somebody_elses_locks_are_refused_where_everybody_may_make_them() {
        let root = tempfile::tempdir().expect("a directory");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        };
        let us = geteuid().as_raw();
        let (open, closed) = (root.path().join("open"), root.path().join("closed"));
        for directory in [&open, &closed] {
            fs::create_dir(directory).expect("made");
        }
        set(&open, 0o1777);
        set(&closed, 0o755);
        let (in_open, in_closed) = (open.join("locks"), closed.join("locks"));

        assert_eq!(lock_directory(&in_open, us), Ok(()));
        let mode = fs::metadata(&in_open).expect("it was made").mode();
        assert_eq!(mode & 0o007, 0, "nobody else may enter");
        // Another user finds it there. Root's is everybody's.
        let (owner, other) = (fs::metadata(&in_open).expect("there").uid(), us + 1);
        assert_eq!(lock_directory(&in_open, other).is_err(), owner != 0);
        set(&in_open, 0o777);
        let words = lock_directory(&in_open, us).expect_err("refused").message;
        assert!(words.contains("open/locks"), "{words}");
        // What is elsewhere, its directory's owner has let somebody make.
        fs::create_dir(&in_closed).expect("made");
        set(&in_closed, 0o777);
        assert_eq!(lock_directory(&in_closed, us), Ok(()));
    }
}
