//! Keeps the server's configuration files that lie outside of the data directory, where no backup
//! sees them: Debian has them below /etc. Keys and certificates are none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use nrt_core::configuration::settings;
use nrt_core::inventory::Failure;
use nrt_core::offsite::Plan;
use nrt_core::offsite::configuration::{EMPTY, Kept, LIST};
use nrt_remote::{Remote, failure};

/// The directory on the remote.
const DIRECTORY: &str = "configuration";
/// Its content, for whoever finds it.
const WORDS: &[u8] = b"PostgreSQL's configuration includes this directory, which is empty.\n";
/// PostgreSQL itself stops here.
const DEEPEST: usize = 10;
/// Nobody writes a longer one.
const LONGEST: u64 = 1 << 20;
/// The settings that say where the files are with which everything begins, in the plan's order.
const ROLES: [&str; 3] = ["config_file", "hba_file", "ident_file"];

/// A file as it is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    content: Vec<u8>,
    setting: Option<&'static str>,
    includes: BTreeMap<String, PathBuf>,
}

/// What was sent last.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    files: BTreeMap<PathBuf, Found>,
    /// The files on the remote, once they were listed.
    there: Option<BTreeSet<String>>,
    /// Whether the list names every file there.
    is_cleared: bool,
}

impl Sent {
    /// Sends the files if one of them has changed.
    pub(crate) fn send(&mut self, plan: &Plan, remote: &Remote) -> Result<(), Failure> {
        let files = collect(plan);
        if files == self.files {
            return Ok(());
        }
        let put = |path: &str, content: &[u8]| {
            let what = "the server's configuration cannot be sent";
            remote.put(path, content).map_err(|refusal| failure(what, &refusal))
        };
        for (path, found) in &files {
            if self.files.get(path).is_none_or(|sent| sent.content != found.content) {
                put(&there(path), &found.content)?;
            }
        }
        let list: Vec<Kept> = files
            .iter()
            .map(|(path, found)| Kept {
                path: path.clone(),
                file: there(path),
                setting: found.setting.map(str::to_string),
                includes: Some(found.includes.clone()),
            })
            .collect();
        // Last: who reads it finds all that it names.
        let list = serde_json::to_string_pretty(&list).unwrap_or_default() + "\n";
        put(LIST, list.as_bytes())?;
        self.files = files;
        self.is_cleared = false;
        Ok(())
    }

    /// Deletes the files on the remote that have left the configuration: those that the list which was
    /// sent does not name. Returns how many are left, and why.
    pub(crate) fn delete_left(&mut self, plan: &Plan, remote: &Remote) -> (u64, Option<Failure>) {
        // Where the settings name a file that cannot be read, its includes are not known.
        let is_readable = |file: &String| fs::File::open(file).is_ok();
        if self.is_cleared || !plan.configuration_files.iter().all(is_readable) {
            return (0, None);
        }
        let what = "the server's former configuration files cannot be deleted";
        let there = match self.there.take() {
            Some(there) => there,
            None => match remote.list(DIRECTORY) {
                Ok(listed) => {
                    listed.into_iter().map(|entry| format!("{DIRECTORY}/{}", entry.path)).collect()
                }
                Err(refusal) => return (1, Some(failure(what, &refusal))),
            },
        };
        let (now, mut left) = self.divide(there);
        let mut problem = None;
        while let Some(path) = left.first().cloned() {
            if let Err(refusal) = remote.delete(&path) {
                problem = Some(failure(what, &refusal));
                break;
            }
            eprintln!("configuration: deleted \"{path}\", which the configuration has no more");
            left.remove(&path);
        }
        let count = left.len() as u64;
        self.is_cleared = left.is_empty();
        self.there = Some(now.into_iter().chain(left).collect());
        (count, problem)
    }

    /// The files that the list names, and those of `there` that it does not.
    fn divide(&self, there: BTreeSet<String>) -> (BTreeSet<String>, BTreeSet<String>) {
        let now: BTreeSet<String> =
            self.files.keys().map(|path| self::there(path)).chain([LIST.to_string()]).collect();
        let left = there.difference(&now).cloned().collect();
        (now, left)
    }
}

/// Where a file is kept on the remote: below its own path.
fn there(path: &Path) -> String {
    format!("{DIRECTORY}/{}", path.to_string_lossy().trim_start_matches('/'))
}

/// The configuration files outside of the data directory, with all that they include.
fn collect(plan: &Plan) -> BTreeMap<PathBuf, Found> {
    let mut collection = Collection {
        data: Path::new(&plan.data_directory),
        real: fs::canonicalize(&plan.data_directory).ok(),
        seen: BTreeSet::new(),
        files: BTreeMap::new(),
    };
    let has_roles = plan.configuration_files.len() == ROLES.len();
    for (file, role) in plan.configuration_files.iter().zip(ROLES) {
        let path = Path::new(file);
        let is_kept = collection.is_outside(path);
        collection.add(path, has_roles.then_some(role), is_kept, 0);
        if let Some(found) = collection.files.get_mut(path) {
            found.setting = has_roles.then_some(role);
        }
    }
    collection.files
}

struct Collection<'a> {
    data: &'a Path,
    real: Option<PathBuf>,
    seen: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Found>,
}

impl Collection<'_> {
    /// Whether a path is outside of the data directory, and so in no backup. A link outside that
    /// leads into it is in none, either.
    fn is_outside(&self, path: &Path) -> bool {
        let parent = path.parent().and_then(|it| fs::canonicalize(it).ok());
        let is_inside = |real: &PathBuf| parent.as_ref().is_some_and(|it| it.starts_with(real));
        !path.starts_with(self.data) && !self.real.as_ref().is_some_and(is_inside)
    }

    /// Adds a file, and all that it includes. `role` is the setting that named it, or a file that
    /// included it.
    fn add(&mut self, path: &Path, role: Option<&'static str>, is_kept: bool, depth: usize) {
        let short = fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() <= LONGEST);
        if depth > DEEPEST || !short || !self.seen.insert(path.to_path_buf()) {
            return;
        }
        // One that cannot be read the server cannot read, either.
        let Ok(content) = fs::read(path) else { return };
        let text = String::from_utf8_lossy(&content);
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut includes = BTreeMap::new();
        let is_list = role.is_some_and(|role| role != ROLES[0]);
        let lists = lists(&text).filter(|_| is_list).map(|name| ("include", name));
        for (what, name) in included(&text).chain(lists).collect::<Vec<_>>() {
            let target = straight(directory.join(&name));
            let is_kept = self.is_outside(&target);
            if what == "include_dir" {
                let Ok(entries) = fs::read_dir(&target) else { continue };
                for entry in entries.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if name.ends_with(".conf") && !name.starts_with('.') {
                        self.add(&entry.path(), role, is_kept, depth + 1);
                    }
                }
                let is_there = |path: &PathBuf| path.parent() == Some(&target);
                if is_kept && !self.files.keys().any(is_there) {
                    let empty = Found { content: WORDS.to_vec(), ..Found::default() };
                    self.files.insert(target.join(EMPTY), empty);
                }
            } else {
                self.add(&target, role, is_kept, depth + 1);
            }
            if is_kept {
                includes.insert(name, target);
            }
        }
        if is_kept {
            self.files.insert(path.to_path_buf(), Found { content, setting: None, includes });
        }
    }
}

/// A path without "..": what begins with the data directory's path need not be in it, and no
/// object's name may lead upwards.
fn straight(path: PathBuf) -> PathBuf {
    let leads_up = path.components().any(|it| it == Component::ParentDir);
    let real = leads_up.then(|| fs::canonicalize(&path).ok()).flatten();
    real.unwrap_or(path)
}

/// The include directives of a configuration file.
fn included(text: &str) -> impl Iterator<Item = (&'static str, String)> + '_ {
    settings(text).filter_map(|it| {
        let names = ["include", "include_if_exists", "include_dir"];
        let name = names.into_iter().find(|name| it.is(name))?;
        (!it.value.is_empty()).then_some((name, it.value))
    })
}

/// The files of names (`@file`) in `pg_hba.conf` and `pg_ident.conf`.
fn lists(text: &str) -> impl Iterator<Item = String> + '_ {
    let lines = text.lines().filter_map(|line| line.split('#').next());
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || c == ','));
    words.filter_map(|word| {
        let name = word.strip_prefix('@')?.trim_matches('"');
        (!name.is_empty()).then(|| name.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_includes_and_leaves_the_data_directory_out() {
        let root = tempfile::tempdir().expect("a directory");
        let (etc, data) = (root.path().join("etc"), root.path().join("data"));
        fs::create_dir_all(etc.join("conf.d")).expect("made");
        fs::create_dir_all(&data).expect("made");
        let write = |path: PathBuf, text: &str| fs::write(path, text).expect("written");
        write(
            etc.join("postgresql.conf"),
            "include_dir = 'conf.d' # all\nINCLUDE 'extra.conf'\ninclude_if_exists = 'none.conf'\n\
             include 'postgresql.conf'\n#include 'commented.conf'\nssl_key_file = 'server.key'\n",
        );
        write(etc.join("extra.conf"), "work_mem = '8MB'\n");
        write(etc.join("commented.conf"), "x\n");
        write(etc.join("server.key"), "secret\n");
        write(etc.join("conf.d/a.conf"), "a = 1\n");
        write(etc.join("conf.d/b.txt"), "b\n");
        write(data.join("pg_hba.conf"), "local all all trust\n");
        write(data.join("postgresql.conf"), "include = '../beside.conf'\n");
        write(root.path().join("beside.conf"), "b = 1\n");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let plan = Plan {
            data_directory: text(data.clone()),
            configuration_files: vec![
                text(etc.join("postgresql.conf")),
                text(data.join("pg_hba.conf")),
                text(data.join("postgresql.conf")),
            ],
            ..crate::tests::plan(root.path())
        };
        assert_eq!(below(&etc, &plan), ["conf.d/a.conf", "extra.conf", "postgresql.conf"]);
        let beside = fs::canonicalize(root.path().join("beside.conf")).expect("it is there");
        assert!(collect(&plan).contains_key(&beside));
        assert_eq!(collect(&plan).len(), 4);
    }

    /// The names of what is kept below a directory.
    fn below(directory: &Path, plan: &Plan) -> Vec<String> {
        let files = collect(plan);
        let names = files.keys().filter_map(|it| it.strip_prefix(directory).ok());
        names.map(|it| it.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn empty_directories_links_and_lists_of_names_belong_to_it() {
        let root = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(root.path()).expect("it is there");
        let (etc, data, shared) = (root.join("etc/main"), root.join("data"), root.join("shared"));
        for directory in [&etc.join("conf.d"), &etc.join("hba"), &data.join("local"), &shared] {
            fs::create_dir_all(directory).expect("made");
        }
        let write = |path: PathBuf, text: &str| fs::write(path, text).expect("written");
        write(
            etc.join("postgresql.conf"),
            "include_dir = 'conf.d'\ninclude_dir 'shared.d'\ninclude_dir 'local.d'\n\
             include 'linked.conf'\ninclude_dir 'none.d'\ninclude '../up.conf'\n",
        );
        write(etc.join("pg_hba.conf"), "local all @admins,bob peer # @none\ninclude_dir hba\n");
        write(etc.join("pg_ident.conf"), "");
        write(etc.join("admins"), "alice\n@more\n");
        write(etc.join("more"), "carol\n");
        write(root.join("etc/up.conf"), "");
        write(data.join("linked.conf"), "a = 1\n");
        write(data.join("local/b.conf"), "b = 1\n");
        write(shared.join("c.conf"), "c = 1\n");
        let link = |to: PathBuf, from: &str| {
            std::os::unix::fs::symlink(to, etc.join(from)).expect("linked");
        };
        link(data.join("linked.conf"), "linked.conf");
        link(data.join("local"), "local.d");
        link(shared, "shared.d");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let files = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
        let plan = Plan {
            data_directory: text(data),
            configuration_files: files.map(|it| text(etc.join(it))).to_vec(),
            ..crate::tests::plan(&root)
        };
        assert_eq!(
            below(&root.join("etc"), &plan),
            [
                "main/admins",
                "main/conf.d/.nrt_backup.directory",
                "main/hba/.nrt_backup.directory",
                "main/linked.conf",
                "main/local.d/b.conf",
                "main/more",
                "main/pg_hba.conf",
                "main/pg_ident.conf",
                "main/postgresql.conf",
                "main/shared.d/c.conf",
                "up.conf",
            ]
        );
        let files = collect(&plan);
        let main = &files[&etc.join("postgresql.conf")];
        assert_eq!(main.setting, Some("config_file"));
        assert_eq!(main.includes["../up.conf"], root.join("etc/up.conf"));
        assert!(!main.includes.contains_key("none.d"), "it was not there");
        assert_eq!(files[&etc.join("linked.conf")].content, b"a = 1\n");
        // As a restore reads it; earlier ones read the first two of each alone.
        let kept: Vec<Kept> =
            serde_json::from_str(r#"[{"path": "/a", "file": "b", "new": 1}]"#).expect("read");
        assert_eq!(kept[0].includes, None);
    }
}
