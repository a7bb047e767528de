//! Finds the configuration of a cluster that lay outside of the data directory, where no backup has
//! it: on the remote, from which its files are brought back beside the data directory, never over
//! existing ones; or where it still is on this machine. Either way a file is written with which a
//! server starts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nrt_core::layout;
use nrt_core::restore::Refusal;
use serde::Deserialize;

use super::finishing::is_of;
use super::place::unusable;
use super::planning::Planned;
use super::server::Programs;
use super::work::Work;
use super::{Run, Start};
use crate::ship::{Remote, failure};

/// The main file of a configuration.
const MAIN: &str = "postgresql.conf";
/// The files that lie beside it, and the settings that say where they are.
const BESIDE: [(&str, &str); 2] = [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
/// The file that a server is started with.
const START: &str = "start.conf";
/// Which configuration on this machine was chosen, in the work directory.
const CHOSEN: &str = "chosen-configuration.json";
/// Where the files of this restore go to, in the work directory.
pub(super) const PLACED: &str = "configuration.json";

/// Where the files of a restore are.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Placed {
    /// The directory that was made for them.
    directory: Option<PathBuf>,
    /// What a server is started with, once all of them are there.
    start: Option<PathBuf>,
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

#[derive(Debug, Deserialize)]
struct Kept {
    path: PathBuf,
    file: String,
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

    /// With what the restored server is started, if that is not in its data directory.
    pub(super) fn configuration(&self, planned: &Planned) -> Result<Option<PathBuf>, Refusal> {
        // An interrupted restore may have brought it back already; perhaps another one.
        if let Some(known) =
            self.known_configuration().filter(|_| self.request.config_file.is_none())
        {
            return Ok(Some(known));
        }
        let data = &self.request.data;
        match (self.work.read::<Outside>(CHOSEN), &planned.source.remote) {
            (Some(chosen), _) => start_with(&chosen, data, &self.work).map(Some),
            (None, Some(remote)) => bring_back(remote, data, &self.work),
            (None, None) => Ok(None),
        }
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
    let list = fetched(remote, "configuration/files.json")?;
    Ok(list.and_then(|list| serde_json::from_slice(&list).ok()).unwrap_or_default())
}

/// Fetches the files, and gives the one that a server starts with; `None` if there are none, or
/// the data directory has its own.
fn bring_back(remote: &Remote, data: &Path, work: &Work) -> Result<Option<PathBuf>, Refusal> {
    if data.join(MAIN).exists() {
        return Ok(None);
    }
    let mut files = BTreeMap::new();
    for kept in kept(remote)? {
        if let Some(content) = fetched(remote, &kept.file)? {
            files.insert(kept.path, content);
        }
    }
    place(&files, data, work)
}

fn place(
    files: &BTreeMap<PathBuf, Vec<u8>>,
    data: &Path,
    work: &Work,
) -> Result<Option<PathBuf>, Refusal> {
    let named =
        |name: &str| files.keys().find(|path| path.file_name().is_some_and(|it| it == name));
    let Some(main) = named(MAIN) else { return Ok(None) };
    let home = main.parent().unwrap_or(Path::new("/"));
    let target = make_place(data, work)?;
    let new_place = |path: &Path| -> PathBuf {
        let below = path.strip_prefix(home).unwrap_or(path);
        // No name may lead out of the directory.
        let plain: PathBuf =
            below.components().filter(|it| matches!(it, Component::Normal(_))).collect();
        target.join(plain)
    };
    for (path, content) in files {
        let text = String::from_utf8_lossy(content);
        let text = moved(&text, path, files, &new_place);
        write(&new_place(path), &text)?;
    }
    let mut settings =
        vec![("include".to_string(), new_place(main)), ("data_directory".to_string(), data.into())];
    for (setting, file) in BESIDE {
        settings.extend(named(file).map(|path| (setting.to_string(), new_place(path))));
    }
    write_start(target, &settings, work).map(Some)
}

/// Has a server start with a configuration that stays where it is, and that may say where another
/// cluster's data is.
fn start_with(outside: &Outside, data: &Path, work: &Work) -> Result<PathBuf, Refusal> {
    if outside.main == place_beside(data).join(START) {
        // An earlier restore has written it, for this data directory.
        let placed = Placed { directory: None, start: Some(outside.main.clone()) };
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
    write_start(make_place(data, work)?, &settings, work)
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
        let placed = Placed { directory: Some(path.clone()), start: None };
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
fn write_start(
    directory: PathBuf,
    settings: &[(String, PathBuf)],
    work: &Work,
) -> Result<PathBuf, Refusal> {
    let mut text =
        "# Starts the restored cluster with the configuration that the original had.\n".to_string();
    for (name, path) in settings {
        text += &format!("{name} = '{}'\n", path.display().to_string().replace('\'', "''"));
    }
    let file = directory.join(START);
    write(&file, &text)?;
    let placed = Placed { directory: Some(directory), start: Some(file.clone()) };
    work.write(PLACED, &placed).map_err(super::told)?;
    Ok(file)
}

/// A configuration whose includes of files that were moved along point to where they are now.
/// `path` is where it was.
fn moved(
    text: &str,
    path: &Path,
    files: &BTreeMap<PathBuf, Vec<u8>>,
    new_place: &impl Fn(&Path) -> PathBuf,
) -> String {
    let lines = text.lines().map(|line| {
        let changed = || {
            let word = line.trim_start().split(|c: char| c.is_whitespace() || c == '=').next()?;
            let (_, rest) = line.split_once('\'')?;
            let (named, _) = rest.split_once('\'')?;
            let old = plain(&path.parent()?.join(named));
            let new = match word.to_ascii_lowercase().as_str() {
                "include" | "include_if_exists" if files.contains_key(&old) => new_place(&old),
                "include_dir" => {
                    let inside = files.keys().find(|file| file.parent() == Some(&old))?;
                    new_place(inside).parent()?.to_path_buf()
                }
                _ => return None,
            };
            let new = new.display().to_string().replace('\'', "''");
            Some(line.replacen(&format!("'{named}'"), &format!("'{new}'"), 1))
        };
        changed().unwrap_or_else(|| line.to_string())
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
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

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    let directory = path.parent().unwrap_or(path);
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    let written = made.and_then(|()| {
        let mut file = fs::File::options().create_new(true).write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    });
    written.map_err(|error| unusable(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_beside_the_data_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("main");
        fs::create_dir_all(&data).expect("made");
        let etc = Path::new("/etc/postgresql/15/main");
        let files: BTreeMap<PathBuf, Vec<u8>> = [
            (
                etc.join("postgresql.conf"),
                "data_directory = '/var/lib/x'\ninclude_dir 'conf.d'\n\
                 include_if_exists '/srv/shared/pg.conf' # ours\ninclude '../more.conf'\n\
                 include 'none.conf'\n",
            ),
            (etc.join("pg_hba.conf"), "local all all peer\n"),
            (etc.join("conf.d/a.conf"), "work_mem = '8MB'\n"),
            (PathBuf::from("/etc/postgresql/15/more.conf"), ""),
            (PathBuf::from("/srv/shared/pg.conf"), "maintenance_work_mem = '9MB'\n"),
        ]
        .map(|(path, text)| (path, text.as_bytes().to_vec()))
        .into();
        let work = |name: &str| Work::make(&root.path().join(name)).expect("made");
        let start = place(&files, &data, &work("one")).expect("placed").expect("there are some");
        assert_eq!(known(&work("one")).as_ref(), Some(&start));
        let home = root.path().join("main-configuration");
        assert_eq!(start, home.join("start.conf"));
        let read = |path: &str| fs::read_to_string(home.join(path)).expect("it is there");
        let shared = home.join("srv/shared/pg.conf");
        assert!(read("postgresql.conf").contains(&format!("'{}' # ours", shared.display())));
        let more = home.join("etc/postgresql/15/more.conf");
        assert!(read("postgresql.conf").contains(&format!("include '{}'", more.display())));
        let parts = home.join("conf.d");
        assert!(read("postgresql.conf").contains(&format!("include_dir '{}'", parts.display())));
        assert!(read("postgresql.conf").contains("include 'none.conf'"));
        assert_eq!(read("conf.d/a.conf"), "work_mem = '8MB'\n");
        assert!(read("start.conf").contains(&format!("data_directory = '{}'", data.display())));
        assert!(read("start.conf").contains("hba_file = "));
        assert!(shared.is_file());
        // What is there already stays as it is: the next one goes into the data directory.
        let second = place(&files, &data, &work("two")).expect("placed").expect("there are some");
        assert!(!second.starts_with(&home));
        // But for what this restore itself has put there.
        let again = place(&files, &data, &work("one")).expect("placed").expect("there are some");
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
