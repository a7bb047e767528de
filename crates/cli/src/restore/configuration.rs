//! Brings back configuration files that lay outside of the data directory, where no backup has
//! them: beside it, never over existing ones, and so that a server starts with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nrt_core::layout;
use nrt_core::restore::Refusal;
use serde::Deserialize;

use super::place::unusable;
use super::work::Work;
use crate::ship::{Remote, failure};

/// The file that a server is started with.
const START: &str = "start.conf";
/// Where the files of this restore go to, in the work directory.
pub(super) const PLACED: &str = "configuration.json";

/// A directory that was made for the files.
#[derive(Debug, serde::Serialize, Deserialize)]
struct Placed {
    directory: PathBuf,
    /// What a server is started with, once all of them are there.
    start: Option<PathBuf>,
}

/// What an interrupted restore has brought back already.
pub(crate) fn known(work: &Work) -> Option<PathBuf> {
    work.read::<Placed>(PLACED)?.start.filter(|start| start.is_file())
}

#[derive(Debug, Deserialize)]
struct Kept {
    path: PathBuf,
    file: String,
}

/// Fetches the files, and gives the one that a server starts with; `None` if there are none, or
/// the data directory has its own.
pub(crate) fn bring_back(
    remote: &Remote,
    data: &Path,
    work: &Work,
) -> Result<Option<PathBuf>, Refusal> {
    if data.join("postgresql.conf").exists() {
        return Ok(None);
    }
    let cannot = |it| failure("the kept configuration cannot be read", &it);
    let Some(list) = remote.get("configuration/files.json").map_err(cannot)? else {
        return Ok(None);
    };
    let list: Vec<Kept> = serde_json::from_slice(&list).unwrap_or_default();
    let mut files = BTreeMap::new();
    for kept in list {
        if let Some(content) = remote.get(&kept.file).map_err(cannot)? {
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
    let Some(main) = named("postgresql.conf") else { return Ok(None) };
    let home = main.parent().unwrap_or(Path::new("/"));
    let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = data.with_file_name(format!("{name}-configuration"));
    let inside = data.join(layout::STATE_DIRECTORY).join("configuration");
    if let Some(placed) = work.read::<Placed>(PLACED) {
        // An interrupted restore has made it, and perhaps not all that is in it.
        let _ = fs::remove_dir_all(placed.directory);
    }
    let mut target = None;
    for path in [beside, inside] {
        if path.exists() {
            continue;
        }
        let placed = Placed { directory: path.clone(), start: None };
        work.write(PLACED, &placed).map_err(super::told)?;
        if fs::DirBuilder::new().mode(0o700).recursive(true).create(&path).is_ok() {
            target = Some(path);
            break;
        }
    }
    let Some(target) = target else {
        return Err(Refusal::new(
            format!("there is no place beside \"{}\" for its configuration", data.display()),
            "Remove what an earlier restore has put there.",
        ));
    };
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
    let quoted = |path: &Path| path.display().to_string().replace('\'', "''");
    let mut start = format!(
        "# Starts the restored cluster with the configuration that the original had.\n\
         include = '{}'\ndata_directory = '{}'\n",
        quoted(&new_place(main)),
        quoted(data)
    );
    for (setting, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        if let Some(path) = named(file) {
            start += &format!("{setting} = '{}'\n", quoted(&new_place(path)));
        }
    }
    let file = target.join(START);
    write(&file, &start)?;
    let placed = Placed { directory: target, start: Some(file.clone()) };
    work.write(PLACED, &placed).map_err(super::told)?;
    Ok(Some(file))
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
}
