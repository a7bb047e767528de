//! Finds the configuration of a cluster that lay outside of the data directory, where no backup has
//! it: on the remote, from which its files are brought back beside the data directory, never over
//! existing ones; or where it still is on this machine. Either way a file is written with which a
//! server starts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use chrono::Utc;
use nrt_core::configuration::{quoted, setting};
use nrt_core::layout;
use nrt_core::restore::Refusal;
use serde::Deserialize;

use super::debian::{self, DebianCluster, Installed};
use super::finishing::is_of;
use super::place::unusable;
use super::planning::Planned;
use super::server::Programs;
use super::work::Work;
use super::{Report, Run, Start, config_words};
use nrt_core::offsite::configuration::{EMPTY, Kept, LIST};
use nrt_remote::{Remote, failure};

/// The main file of a configuration.
const MAIN: &str = "postgresql.conf";
/// The files that lie beside it, and the settings that say where they are.
const BESIDE: [(&str, &str); 2] = [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
/// The file that a server is started with.
const START: &str = "start.conf";
/// Which configuration on this machine was chosen, in the work directory.
const CHOSEN: &str = "chosen-configuration.json";
/// What `pg_ctlcluster` is to start with, in the directory that was made for the files.
const PREPARED: &str = "pg_ctlcluster";
/// Where a configuration is tried before anything is restored, in the work directory.
const TRIED: &str = "configuration";
/// Where the files of this restore go to, in the work directory.
pub(super) const PLACED: &str = "configuration.json";

/// Where the files of a restore are.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Placed {
    /// The directory that was made for them.
    directory: Option<PathBuf>,
    /// What a server is started with, once all of them are there.
    start: Option<PathBuf>,
    /// Where the original's main file was, of files that were brought back.
    #[serde(default)]
    main: Option<PathBuf>,
}

/// What an interrupted restore has brought back already.
fn known(work: &Work) -> Option<PathBuf> {
    work.read::<Placed>(PLACED)?.start.filter(|start| start.is_file())
}

/// A configuration that lies on this machine, outside of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
struct Outside {
    main: PathBuf,
    /// Files that the command line had named, whatever is in the main one: setting, and path.
    named: Vec<(String, PathBuf)>,
}

impl Outside {
    /// What the server in a data directory was started with last.
    fn of_server(data: &Path) -> Option<Outside> {
        let text = fs::read_to_string(data.join("postmaster.opts")).ok()?;
        let found = Outside::of_words(&text)?;
        let is_there = !found.main.starts_with(data) && fs::File::open(&found.main).is_ok();
        is_there.then_some(found)
    }

    /// The same, as PostgreSQL writes its own command line: each word but the first one in quotes.
    fn of_words(text: &str) -> Option<Outside> {
        let (_, text) = text.trim_end().split_once(" \"")?;
        let mut words = text.strip_suffix('"')?.split("\" \"");
        let (mut main, mut directory, mut named) = (None, None, Vec::new());
        while let Some(word) = words.next() {
            let setting = match word {
                "-D" => {
                    directory = words.next().map(Path::new);
                    continue;
                }
                "-c" => words.next()?,
                word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(""),
            };
            let Some((name, value)) = setting.split_once('=') else { continue };
            let (name, path) = (name.replace('-', "_"), PathBuf::from(value));
            match name.as_str() {
                "config_file" => main = Some(path),
                "hba_file" | "ident_file" if path.is_absolute() => named.push((name, path)),
                _ => {}
            }
        }
        // Without a word of it, the directory holds the configuration: it may name another one for
        // the data.
        let main = main.or_else(|| directory.map(|it| it.join(MAIN)))?;
        main.is_absolute().then_some(Outside { main, named })
    }
}

/// The files of a configuration, as they were on the original's machine.
#[derive(Debug, Default)]
struct Files(BTreeMap<PathBuf, Original>);

/// One of them.
#[derive(Debug, Default)]
struct Original {
    content: Vec<u8>,
    setting: Option<String>,
    includes: Option<BTreeMap<String, PathBuf>>,
}

impl Files {
    /// Fetches them.
    fn of(remote: &Remote) -> Result<Files, Refusal> {
        let mut files = BTreeMap::new();
        for Kept { path, file, setting, includes } in kept(remote)? {
            if let Some(content) = fetched(remote, &file)? {
                files.insert(path, Original { content, setting, includes });
            }
        }
        Ok(Files(files))
    }

    /// Those that were placed in a directory, but for what is made from them.
    fn in_directory(directory: &Path) -> std::io::Result<Files> {
        let mut files = BTreeMap::new();
        let mut left = vec![directory.to_path_buf()];
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(&next)? {
                let path = entry?.path();
                if path == directory.join(PREPARED) || path == directory.join(START) {
                } else if path.is_dir() {
                    left.push(path);
                } else {
                    let content = fs::read(&path)?;
                    files.insert(path, Original { content, ..Original::default() });
                }
            }
        }
        Ok(Files(files))
    }

    /// The same, with the main file that a restored data directory has itself; `None` if it has
    /// none.
    fn with_own(data: &Path, original: &Path, remote: &Remote) -> Result<Option<Files>, Refusal> {
        let content = match fs::read(data.join(MAIN)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            content => content.map_err(|error| unusable(&data.join(MAIN), &error))?,
        };
        let mut files = Files::of(remote)?;
        let setting = Some("config_file".to_string());
        let own = Original { content, setting, includes: None };
        files.0.insert(original.join(MAIN), own);
        Ok(Some(files))
    }

    /// The file that a setting named, or that has its usual name.
    fn named(&self, setting: &str, name: &str) -> Option<&Path> {
        let is_it = |it: &Original| it.setting.as_deref() == Some(setting);
        let by_setting = self.0.iter().find(|(_, it)| is_it(it)).map(|(path, _)| path);
        let by_name = || self.0.keys().find(|path| path.file_name().is_some_and(|it| it == name));
        by_setting.or_else(by_name).map(PathBuf::as_path)
    }

    /// The file with which all begins.
    fn main(&self) -> Option<&Path> {
        self.named("config_file", MAIN)
    }
}

/// Where the files of a configuration go to.
struct Move<'a> {
    files: &'a Files,
    /// The directory of the original's main file.
    home: &'a Path,
    /// The directory that takes its place.
    target: &'a Path,
    /// Where it is written for now.
    written: &'a Path,
    /// The data directory that the original had.
    original: Option<&'a Path>,
    /// The data directory that takes its place.
    data: &'a Path,
}

impl Move<'_> {
    /// The new place of a file or directory: those beside the main file are beside it again.
    fn place(&self, path: &Path) -> PathBuf {
        self.target.join(self.below(path))
    }

    fn below(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(self.home).unwrap_or(path);
        // No name may lead out of the directory.
        below.components().filter(|it| matches!(it, Component::Normal(_))).collect()
    }

    /// Writes the files.
    fn write(&self) -> Result<(), Refusal> {
        for (path, original) in &self.files.0 {
            let (text, directories) = self.moved(path, original);
            for directory in directories {
                make(&self.written.join(self.below(&directory)))?;
            }
            let new = self.written.join(self.below(path));
            if path.file_name().is_some_and(|it| it == EMPTY) {
                make(new.parent().unwrap_or(&new))?;
            } else {
                write(&new, &text)?;
            }
        }
        Ok(())
    }

    /// A file whose lines name what was moved along where it is now, and the directories without a
    /// kept file that it includes.
    fn moved(&self, path: &Path, original: &Original) -> (String, Vec<PathBuf>) {
        let text = String::from_utf8_lossy(&original.content);
        let mut directories = Vec::new();
        let mut moved = String::new();
        for line in text.lines() {
            match self.moved_line(line, path, original, &mut directories) {
                Some(line) => moved += &line,
                None => moved += line,
            }
            moved.push('\n');
        }
        // Lists of names in pg_hba.conf.
        for (name, old) in
            original.includes.iter().flatten().filter(|(name, _)| name.starts_with('/'))
        {
            moved = moved.replace(&format!("@{name}"), &format!("@{}", self.place(old).display()));
        }
        (moved, directories)
    }

    fn moved_line(
        &self,
        line: &str,
        path: &Path,
        original: &Original,
        directories: &mut Vec<PathBuf>,
    ) -> Option<String> {
        let found = setting(line)?;
        let named = Path::new(&found.value);
        let home = path.parent()?;
        let is = |names: &[&str]| names.iter().any(|name| found.is(name));
        let new = if is(&["data_directory"]) {
            self.data.to_path_buf()
        } else if is(&["hba_file", "ident_file"]) {
            match self.original.and_then(|it| named.strip_prefix(it).ok()) {
                _ if self.files.0.contains_key(named) => self.place(named),
                Some(below) => self.data.join(below),
                None => return None,
            }
        } else if is(&["include", "include_if_exists", "include_dir"]) {
            let known = original.includes.as_ref().map(|it| it.get(&found.value));
            let old = known.flatten().cloned().unwrap_or_else(|| plain(&home.join(named)));
            let holds = |file: &PathBuf| file.parent() == Some(&old);
            let is_kept = if is(&["include_dir"]) {
                self.files.0.keys().any(holds)
            } else {
                self.files.0.contains_key(&old)
            };
            // Earlier programs kept no directory without a file. The original had it, because it
            // ran; and one below the main file's is in no backup.
            let was_empty = known.is_none() && is(&["include_dir"]) && old.starts_with(self.home);
            match self.original.and_then(|it| old.strip_prefix(it).ok()) {
                _ if is_kept => self.place(&old),
                Some(below) => self.data.join(below),
                None if was_empty => {
                    directories.push(old.clone());
                    self.place(&old)
                }
                None => return None,
            }
        } else {
            return None;
        };
        // What needs no change stays as it was written.
        let is_there_already =
            new == named || new == plain(&self.place(path).parent()?.join(named));
        if is_there_already {
            return None;
        }
        let mut line = line.to_string();
        line.replace_range(found.range, &quoted(&new.to_string_lossy()));
        Some(line)
    }
}

impl Run<'_> {
    /// Finds a configuration for a cluster whose backup has none: with none, its server could not
    /// recover, and that would show when what was there before is gone. Changes nothing but the
    /// work directory.
    pub(super) fn choose_configuration(
        &self,
        planned: &Planned,
        programs: &Programs,
        has_begun: bool,
    ) -> Result<(), Refusal> {
        let request = self.request;
        let chosen = match &request.config_file {
            Some(file) => Some(self.named_configuration(file)?),
            // What an interrupted restore has chosen may lie aside by now.
            None if has_begun => return Ok(()),
            None if self.has_configuration(planned)? => None,
            None => {
                let original = planned.manifest.as_ref().and_then(|it| it.data_directory.as_ref());
                let original = original.map(Path::new);
                let original = original.filter(|it| is_of(planned, it, programs));
                let places = [Some(request.data.as_path()), original];
                let found = places.into_iter().flatten().find_map(Outside::of_server);
                if found.is_none() && request.start != Start::No {
                    return Err(Refusal::new(
                        format!(
                            "the backup {} has no {MAIN}: it lay outside of the data directory",
                            planned.plan.backup
                        ),
                        format!(
                            "Name it with --config-file; Debian has it at \
                             \"/etc/postgresql/{}/main/{MAIN}\".",
                            planned.plan.version
                        ),
                    ));
                }
                found
            }
        };
        match chosen {
            Some(chosen) => self.work.write(CHOSEN, &chosen).map_err(super::told),
            None => {
                // An earlier restore may have left it.
                let _ = fs::remove_file(self.work.path().join(CHOSEN));
                Ok(())
            }
        }
    }

    fn named_configuration(&self, file: &Path) -> Result<Outside, Refusal> {
        let file = super::whole(file)?;
        let placed = place_beside(&self.request.data);
        let is_placed = file.starts_with(&placed) && file != placed.join(START);
        if file.starts_with(&self.request.data) || is_placed {
            return Err(Refusal::new(
                format!("\"{}\" is in a directory that a restore replaces", file.display()),
                "Copy it to another place, and name that.",
            ));
        }
        match fs::File::open(&file) {
            Ok(_) => Ok(Outside { main: file, named: Vec::new() }),
            Err(error) => Err(unusable(&file, &error)),
        }
    }

    /// Whether the backup, the remote, or the request itself has a configuration.
    fn has_configuration(&self, planned: &Planned) -> Result<bool, Refusal> {
        if self.request.settings.iter().any(|(name, _)| *name == "config_file")
            || planned.manifest.as_ref().is_none_or(|it| it.has_configuration)
        {
            return Ok(true);
        }
        let Some(remote) = &planned.source.remote else { return Ok(false) };
        Ok(kept(remote)?.iter().any(|it| it.path.ends_with(MAIN)))
    }

    /// Why a server would not start with the configuration that is kept on the remote, if it needs
    /// it: PostgreSQL reads it in a scratch place. Nothing was restored yet.
    pub(super) fn fault_of_kept(
        &self,
        planned: &Planned,
        programs: &Programs,
    ) -> Result<Option<Refusal>, Refusal> {
        let (Some(remote), Some(manifest)) = (&planned.source.remote, &planned.manifest) else {
            return Ok(None);
        };
        if manifest.has_configuration || self.request.config_file.is_some() {
            return Ok(None);
        }
        self.fault(&Files::of(remote)?, manifest.data_directory.as_deref(), programs)
    }

    /// The same of a configuration that the restored data directory has itself. It may include
    /// files that are elsewhere, which are kept on the remote.
    pub(super) fn fault_of_own(
        &self,
        planned: &Planned,
        programs: &Programs,
    ) -> Result<Option<Refusal>, Refusal> {
        let original = planned.manifest.as_ref().and_then(|it| it.data_directory.as_deref());
        let (Some(remote), Some(original)) = (&planned.source.remote, original) else {
            return Ok(None);
        };
        match Files::with_own(&self.request.data, Path::new(original), remote)? {
            Some(files) => self.fault(&files, Some(original), programs),
            None => Ok(None),
        }
    }

    fn fault(
        &self,
        files: &Files,
        original: Option<&str>,
        programs: &Programs,
    ) -> Result<Option<Refusal>, Refusal> {
        let Some(main) = files.main() else {
            return Ok(Some(Refusal::new(
                format!("the configuration does not come back: the remote has no {MAIN}"),
                "It lies outside of the data directory. Shipping sends it within a minute, but not in \
                 clear beside a repository that pgBackRest encrypts: keep a copy of it for \
                 --config-file, or ship to a remote of rclone's type crypt.",
            )));
        };
        let place = self.work.path().join(TRIED);
        let _ = fs::remove_dir_all(&place);
        let data = if self.request.data.is_dir() {
            self.request.data.clone()
        } else {
            let data = place.join("data");
            make(&data)?;
            data
        };
        let target = place.join("files");
        make(&target)?;
        let start = write_into(files, main, original.map(Path::new), &data, &target)?;
        let read = programs.read_configuration(&data, &config_words(Some(&start)));
        let _ = fs::remove_dir_all(&place);
        Ok(read.err().map(|words| {
            let words = words.replace(&format!("{}/", target.display()), "");
            Refusal::new(
                format!("the configuration does not come back from the remote: {words}"),
                "Restore with --config-file and a postgresql.conf of this machine. While the \
                 original lives: mend its configuration; shipping sends it within a minute.",
            )
        }))
    }

    /// With what the restored server is started, if that is not in its data directory.
    pub(super) fn configuration(
        &self,
        planned: &Planned,
        programs: &Programs,
    ) -> Result<Option<PathBuf>, Refusal> {
        // An interrupted restore may have brought it back already; perhaps another one.
        if let Some(known) =
            self.known_configuration().filter(|_| self.request.config_file.is_none())
        {
            return Ok(Some(known));
        }
        let data = &self.request.data;
        match (self.work.read::<Outside>(CHOSEN), &planned.source.remote) {
            (Some(chosen), _) => start_with(&chosen, data, &self.work).map(Some),
            (None, Some(remote)) => {
                let original = planned.manifest.as_ref().and_then(|it| it.data_directory.as_ref());
                let original = original.map(Path::new);
                let mut files = None;
                if !data.join(MAIN).exists() {
                    files = Some(Files::of(remote)?);
                } else if programs.read_configuration(data, &[]).is_err()
                    && self.request.settings.is_empty()
                    && let Some(original) = original
                {
                    // It includes files of the original's machine that are not here.
                    files = Files::with_own(data, original, remote)?;
                }
                match files {
                    Some(files) => place(&files, original, data, &self.work),
                    None => Ok(None),
                }
            }
            (None, None) => Ok(None),
        }
    }

    /// Has Debian's `pg_ctlcluster`, and with it the next boot, start the cluster with the original's
    /// configuration, where that was brought back or is in the data directory; or says what keeps it
    /// from that, and what to do.
    pub(super) fn settle_configuration(
        &self,
        planned: &Planned,
        programs: &Programs,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let data = &self.request.data;
        let placed = self.work.read::<Placed>(PLACED);
        let (directory, main) = placed.map_or((None, None), |it| (it.directory, it.main));
        let has_own = data.join(MAIN).exists() && report.configuration.is_none();
        // A copy's server is not the machine's. One that stays where it is is found there already.
        if report.copy_of.is_some() || main.is_none() && !has_own {
            return Ok(());
        }
        let version = &planned.plan.version;
        let Some(cluster) = DebianCluster::of(version, data, main.as_deref()) else {
            return Ok(());
        };
        if has_own && !cluster.main().exists() {
            // pg_ctlcluster starts no such cluster: its operator starts it by other means.
            return Ok(());
        }
        let place = match &directory {
            Some(directory) => directory.clone(),
            None => make_place(data, &self.work)?,
        };
        let prepared = place.join(PREPARED);
        let _ = fs::remove_dir_all(&prepared);
        let beside = BESIDE.map(|(setting, file)| (setting, file));
        let in_place = |home: &Path| {
            let beside = beside.iter().map(|(setting, file)| (*setting, home.join(file)));
            let data = ("data_directory", data.clone());
            beside.chain([data]).collect::<Vec<_>>()
        };
        if has_own {
            let include = format!("include = {}\n", quoted(&data.join(MAIN).to_string_lossy()));
            let words = "# The configuration of this cluster is in its data directory.\n";
            let text = debian::completed(&(words.to_string() + &include), &in_place(data));
            write(&prepared.join(MAIN), &text)?;
        } else {
            let files = Files::in_directory(&place).map_err(|error| unusable(&place, &error))?;
            let (target, written) = (cluster.directory(), prepared.as_path());
            let to = Move { files: &files, home: &place, target, written, original: None, data };
            to.write()?;
            let path = prepared.join(MAIN);
            let text = fs::read_to_string(&path).map_err(|error| unusable(&path, &error))?;
            let text = debian::completed(&text, &in_place(target));
            fs::write(&path, text).map_err(|error| unusable(&path, &error))?;
        }
        let check = |main: &Path| programs.read_configuration(data, &config_words(Some(main)));
        match cluster.install(&prepared, Utc::now(), check) {
            Installed::Yes { kept } => {
                let start = Some(cluster.main());
                let placed = Placed { directory: None, start: start.clone(), main };
                self.work.write(PLACED, &placed).map_err(super::told)?;
                let _ = fs::remove_dir_all(&place);
                report.configuration = start;
                report.notes.push(format!(
                    "pg_ctlcluster {} starts it with this configuration, also at boot{}",
                    cluster.words(),
                    kept.map_or(String::new(), |kept| format!(
                        "; the one that pg_createcluster had made is in \"{}\"",
                        kept.display()
                    ))
                ));
                report.notes.extend(cluster.words_for_systemd());
            }
            Installed::No(why) => {
                let main = cluster.main();
                let config = config_words(Some(&main));
                let libraries = programs.setting(data, &config, "shared_preload_libraries");
                let unprotected =
                    main.exists() && !libraries.is_some_and(|it| it.contains("nrt_backup"));
                report.notes.push(format!(
                    "pg_ctlcluster {}, also at boot, does not start it with the original's \
                     configuration: {why}.{} To have it do so, as the owner of that directory or as \
                     root: {}",
                    cluster.words(),
                    if unprotected { " Started so, nothing backs it up." } else { "" },
                    cluster.by_hand(&prepared)
                ));
            }
        }
        Ok(())
    }

    /// The configuration that the request names, for a server of which all else is there.
    pub(super) fn newly_named_configuration(&self) -> Result<Option<PathBuf>, Refusal> {
        let Some(file) = &self.request.config_file else { return Ok(None) };
        let chosen = self.named_configuration(file)?;
        start_with(&chosen, &self.request.data, &self.work).map(Some)
    }

    pub(super) fn known_configuration(&self) -> Option<PathBuf> {
        known(&self.work)
    }
}

fn fetched(remote: &Remote, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
    let found = remote.get(path);
    Ok(found.map_err(|it| failure("the kept configuration cannot be read", &it))?)
}

/// The files that are kept on a remote.
fn kept(remote: &Remote) -> Result<Vec<Kept>, Refusal> {
    let list = fetched(remote, LIST)?;
    Ok(list.and_then(|list| serde_json::from_slice(&list).ok()).unwrap_or_default())
}

/// Puts the files beside the data directory, and gives the one that a server starts with; `None` if
/// there are none.
fn place(
    files: &Files,
    original: Option<&Path>,
    data: &Path,
    work: &Work,
) -> Result<Option<PathBuf>, Refusal> {
    let Some(main) = files.main() else { return Ok(None) };
    let target = make_place(data, work)?;
    let file = write_into(files, main, original, data, &target)?;
    let main = Some(main.to_path_buf());
    let placed = Placed { directory: Some(target), start: Some(file.clone()), main };
    work.write(PLACED, &placed).map_err(super::told)?;
    Ok(Some(file))
}

/// Writes the files into a directory, and gives the one that a server starts with.
fn write_into(
    files: &Files,
    main: &Path,
    original: Option<&Path>,
    data: &Path,
    target: &Path,
) -> Result<PathBuf, Refusal> {
    let home = main.parent().unwrap_or(Path::new("/"));
    let to = Move { files, home, target, written: target, original, data };
    to.write()?;
    let mut settings =
        vec![("include".to_string(), to.place(main)), ("data_directory".to_string(), data.into())];
    for (setting, file) in BESIDE {
        let named = files.named(setting, file);
        settings.extend(named.map(|path| (setting.to_string(), to.place(path))));
    }
    write_start(target, &settings)
}

/// Has a server start with a configuration that stays where it is, and that may say where another
/// cluster's data is.
fn start_with(outside: &Outside, data: &Path, work: &Work) -> Result<PathBuf, Refusal> {
    if outside.main == place_beside(data).join(START) {
        // An earlier restore has written it, for this data directory.
        let placed = Placed { directory: None, start: Some(outside.main.clone()), main: None };
        work.write(PLACED, &placed).map_err(super::told)?;
        return Ok(outside.main.clone());
    }
    let home = outside.main.parent().unwrap_or(Path::new("/"));
    let beside = BESIDE.map(|(setting, file)| (setting.to_string(), home.join(file)));
    // What the file itself says wins over what is beside it.
    let mut settings: Vec<_> = beside.into_iter().filter(|(_, path)| path.is_file()).collect();
    settings.push(("include".to_string(), outside.main.clone()));
    settings.extend(outside.named.iter().cloned());
    settings.push(("data_directory".to_string(), data.to_path_buf()));
    let directory = make_place(data, work)?;
    let file = write_start(&directory, &settings)?;
    let placed = Placed { directory: Some(directory), start: Some(file.clone()), main: None };
    work.write(PLACED, &placed).map_err(super::told)?;
    Ok(file)
}

fn place_beside(data: &Path) -> PathBuf {
    let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    data.with_file_name(format!("{name}-configuration"))
}

/// Makes a directory for a configuration: beside the data directory, or else in it.
fn make_place(data: &Path, work: &Work) -> Result<PathBuf, Refusal> {
    let beside = place_beside(data);
    let inside = data.join(layout::STATE_DIRECTORY).join("configuration");
    if let Some(directory) = work.read::<Placed>(PLACED).and_then(|it| it.directory) {
        // An interrupted restore has made it, and perhaps not all that is in it.
        let _ = fs::remove_dir_all(directory);
    }
    for path in [beside, inside] {
        if path.exists() {
            continue;
        }
        let placed = Placed { directory: Some(path.clone()), start: None, main: None };
        work.write(PLACED, &placed).map_err(super::told)?;
        if fs::DirBuilder::new().mode(0o700).recursive(true).create(&path).is_ok() {
            return Ok(path);
        }
    }
    Err(Refusal::new(
        format!("there is no place beside \"{}\" for its configuration", data.display()),
        "Remove what an earlier restore has put there.",
    ))
}

/// Writes the file that a server is started with.
fn write_start(directory: &Path, settings: &[(String, PathBuf)]) -> Result<PathBuf, Refusal> {
    let mut text =
        "# Starts the restored cluster with the configuration that the original had.\n".to_string();
    for (name, path) in settings {
        text += &format!("{name} = {}\n", quoted(&path.to_string_lossy()));
    }
    let file = directory.join(START);
    write(&file, &text)?;
    Ok(file)
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

fn make(directory: &Path) -> Result<(), Refusal> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    made.map_err(|error| unusable(directory, &error))
}

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    make(path.parent().unwrap_or(path))?;
    let written = fs::File::options().create_new(true).write(true).mode(0o600).open(path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| unusable(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(PathBuf, &str)]) -> Files {
        let original = |text: &str| Original { content: text.into(), ..Original::default() };
        Files(files.iter().map(|(path, text)| (path.clone(), original(text))).collect())
    }

    #[test]
    fn a_newer_list_says_what_each_file_is_and_includes() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        let mut files = files(&[
            (PathBuf::from("/cfg/main.conf"), "include '../x.conf'\ninclude_dir 'none'\n"),
            (PathBuf::from("/cfg/who.conf"), "local all @admins peer\n"),
            (PathBuf::from("/cfg/admins"), "alice\n"),
            (PathBuf::from("/cfg/conf.d/.nrt_backup.directory"), "empty"),
            (PathBuf::from("/real/x.conf"), "hba_file = '/cfg/who.conf'\n"),
        ]);
        let mut change = |path: &str, setting: &str, includes: &[(&str, &str)]| {
            let original = files.0.get_mut(Path::new(path)).expect("it is there");
            original.setting = Some(setting.to_string());
            let includes = includes.iter().map(|(name, path)| ((*name).into(), path.into()));
            original.includes = Some(includes.collect());
        };
        change("/cfg/main.conf", "config_file", &[("../x.conf", "/real/x.conf")]);
        change("/cfg/who.conf", "hba_file", &[("admins", "/cfg/admins")]);
        let work = Work::make(&root.path().join("work")).expect("made");
        let start = place(&files, None, &data, &work).expect("placed").expect("there are some");
        let home = root.path().join("data-configuration");
        let read = |path: &str| fs::read_to_string(home.join(path)).expect("it is there");
        assert!(read("start.conf").contains(&format!("include = '{}/main.conf'", home.display())));
        assert!(read("start.conf").contains(&format!("hba_file = '{}/who.conf'", home.display())));
        assert!(read("main.conf").contains(&format!("include '{}/real/x.conf'", home.display())));
        assert!(read("real/x.conf").contains(&format!("'{}/who.conf'", home.display())));
        assert!(home.join("conf.d").is_dir() && !home.join("conf.d").join(EMPTY).exists());
        assert!(!home.join("none").exists(), "the original had none, either");
        assert!(start.is_file() && home.join("admins").is_file());
    }

    #[test]
    fn files_come_back_beside_the_data_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("main");
        fs::create_dir_all(&data).expect("made");
        let etc = Path::new("/etc/postgresql/15/main");
        let files = files(&[
            (
                etc.join("postgresql.conf"),
                "data_directory = '/var/lib/x'\ninclude_dir 'conf.d'\n\
                 include_if_exists '/srv/shared/pg.conf' # ours\ninclude '../more.conf'\n\
                 include 'none.conf'\ninclude '/var/lib/x/own.conf'\ninclude_dir 'empty.d'\n\
                 include_dir '/etc/elsewhere'\n",
            ),
            (etc.join("pg_hba.conf"), "local all all peer\n"),
            (etc.join("conf.d/a.conf"), "work_mem = '8MB'\n"),
            (PathBuf::from("/etc/postgresql/15/more.conf"), ""),
            (PathBuf::from("/srv/shared/pg.conf"), "maintenance_work_mem = '9MB'\n"),
        ]);
        let work = |name: &str| Work::make(&root.path().join(name)).expect("made");
        let place = |work: &Work| {
            let original = Some(Path::new("/var/lib/x"));
            place(&files, original, &data, work).expect("placed").expect("there are some")
        };
        let start = place(&work("one"));
        assert_eq!(known(&work("one")).as_ref(), Some(&start));
        let home = root.path().join("main-configuration");
        assert_eq!(start, home.join("start.conf"));
        let read = |path: &str| fs::read_to_string(home.join(path)).expect("it is there");
        let shared = home.join("srv/shared/pg.conf");
        assert!(read("postgresql.conf").contains(&format!("'{}' # ours", shared.display())));
        let more = home.join("etc/postgresql/15/more.conf");
        assert!(read("postgresql.conf").contains(&format!("include '{}'", more.display())));
        // What is beside the main file is found there again.
        assert!(read("postgresql.conf").contains("include_dir 'conf.d'"));
        assert!(read("postgresql.conf").contains("include 'none.conf'"));
        // Earlier programs kept no empty directory.
        assert!(home.join("empty.d").is_dir());
        assert!(read("postgresql.conf").contains("include_dir '/etc/elsewhere'"));
        let own = data.join("own.conf");
        assert!(read("postgresql.conf").contains(&format!("include '{}'", own.display())));
        let main = read("postgresql.conf");
        assert!(main.starts_with(&format!("data_directory = '{}'", data.display())), "{main}");
        assert_eq!(read("conf.d/a.conf"), "work_mem = '8MB'\n");
        assert!(read("start.conf").contains(&format!("data_directory = '{}'", data.display())));
        assert!(read("start.conf").contains("hba_file = "));
        assert!(shared.is_file());
        // What is there already stays as it is: the next one goes into the data directory.
        let second = place(&work("two"));
        assert!(!second.starts_with(&home));
        // But for what this restore itself has put there.
        let again = place(&work("one"));
        assert_eq!(again, start);
    }

    #[test]
    fn the_command_line_says_where_a_configuration_is() {
        let outside = |text: &str| Outside::of_words(text);
        let main = |path: &str| Some(Outside { main: path.into(), named: Vec::new() });
        let debian = "/etc/postgresql/15/main/postgresql.conf";
        for words in [
            r#""-D" "/data" "-c" "config_file=/etc/postgresql/15/main/postgresql.conf""#,
            r#""-D" "/data" "-cconfig_file=/etc/postgresql/15/main/postgresql.conf""#,
            r#""--config-file=/etc/postgresql/15/main/postgresql.conf" "-D" "/data""#,
            r#""-D" "/etc/postgresql/15/main""#,
        ] {
            let text = format!("/usr/lib/postgresql/15/bin/postgres {words}\n");
            assert_eq!(outside(&text), main(debian), "{words}");
        }
        let named = outside(
            "postgres \"-D\" \"/a b\" \"-c\" \"hba_file=/c/my hba.conf\" \"-c\" \"port=1\"\n",
        );
        let hba = ("hba_file".to_string(), PathBuf::from("/c/my hba.conf"));
        let expected = Outside { main: "/a b/postgresql.conf".into(), named: vec![hba] };
        assert_eq!(named, Some(expected));
        for words in ["", "postgres\n", "postgres \"-D\" \"data\"\n", "postgres \"-D\"\n"] {
            assert_eq!(outside(words), None, "{words:?}");
        }
    }

    #[test]
    fn a_configuration_of_the_data_directory_is_none_outside() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        fs::create_dir(&data).expect("made");
        let options = |directory: &Path| {
            let text = format!("postgres \"-D\" \"{}\"\n", directory.display());
            fs::write(data.join("postmaster.opts"), text).expect("written");
        };
        assert_eq!(Outside::of_server(&data), None);
        fs::write(data.join(MAIN), "").expect("written");
        options(&data);
        assert_eq!(Outside::of_server(&data), None);
        options(root.path());
        assert_eq!(Outside::of_server(&data), None, "it is not there");
        let main = root.path().join(MAIN);
        fs::write(&main, "").expect("written");
        let found = Outside { main, named: Vec::new() };
        assert_eq!(Outside::of_server(&data), Some(found));
    }

    #[test]
    fn a_server_starts_with_a_configuration_that_stays_where_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, etc) = (root.path().join("main"), root.path().join("etc"));
        fs::create_dir_all(&data).expect("made");
        fs::create_dir_all(&etc).expect("made");
        fs::write(etc.join("pg_hba.conf"), "").expect("written");
        let ident = ("ident_file".to_string(), PathBuf::from("/my/ident.conf"));
        let outside = Outside { main: etc.join(MAIN), named: vec![ident] };
        let work = Work::make(&root.path().join("work")).expect("made");
        let start = start_with(&outside, &data, &work).expect("written");
        assert_eq!(start, root.path().join("main-configuration/start.conf"));
        assert_eq!(known(&work).as_ref(), Some(&start));
        let text = fs::read_to_string(&start).expect("it is there");
        // The next restore to there goes on with it, and does not take it for its own to remove.
        let again = Outside { main: start.clone(), named: Vec::new() };
        let next = Work::make(&root.path().join("next")).expect("made");
        for _ in 0..2 {
            assert_eq!(start_with(&again, &data, &next), Ok(start.clone()));
        }
        assert_eq!(known(&next).as_ref(), Some(&start));
        // Another one that is named is beside it.
        let other = start_with(&outside, &data, &next).expect("written");
        assert!(other != start && start.is_file());
        let (etc, data) = (etc.display(), data.display());
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                format!("hba_file = '{etc}/pg_hba.conf'"),
                format!("include = '{etc}/postgresql.conf'"),
                "ident_file = '/my/ident.conf'".to_string(),
                format!("data_directory = '{data}'"),
            ]
        );
    }
}
