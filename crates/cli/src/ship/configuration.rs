//! Keeps the server's configuration files that lie outside of the data directory, where no backup
//! sees them: Debian has them below /etc. Keys and certificates are none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use nrt_core::inventory::Failure;
use nrt_core::offsite::Plan;
use serde_json::json;

use super::remote::{Remote, failure};

/// The directory on the remote.
const DIRECTORY: &str = "configuration";
/// PostgreSQL itself stops here.
const DEEPEST: usize = 10;
/// Nobody writes a longer one.
const LONGEST: u64 = 1 << 20;

/// What was sent last.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    sent: BTreeMap<PathBuf, Vec<u8>>,
}

impl Kept {
    /// Sends the files if one of them has changed.
    pub(crate) fn send(&mut self, plan: &Plan, remote: &Remote) -> Result<(), Failure> {
        let files = collect(plan);
        if files == self.sent {
            return Ok(());
        }
        let put = |path: &str, content: &[u8]| {
            let what = "the server's configuration cannot be sent";
            remote.put(path, content).map_err(|refusal| failure(what, &refusal))
        };
        for (path, content) in &files {
            if self.sent.get(path) != Some(content) {
                put(&there(path), content)?;
            }
        }
        // Last: who reads it finds all that it names.
        let list: Vec<_> =
            files.keys().map(|path| json!({ "path": path, "file": there(path) })).collect();
        put(&format!("{DIRECTORY}/files.json"), format!("{:#}\n", json!(list)).as_bytes())?;
        self.sent = files;
        Ok(())
    }
}

/// Where a file is kept on the remote: below its own path.
fn there(path: &Path) -> String {
    format!("{DIRECTORY}/{}", path.to_string_lossy().trim_start_matches('/'))
}

/// The configuration files outside of the data directory, with all that they include.
fn collect(plan: &Plan) -> BTreeMap<PathBuf, Vec<u8>> {
    let inside = fs::canonicalize(&plan.data_directory).unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut files = BTreeMap::new();
    for file in &plan.configuration_files {
        add(Path::new(file), 0, &mut seen, &mut files);
    }
    files.retain(|path, _| {
        !path.starts_with(&plan.data_directory)
            && !fs::canonicalize(path).is_ok_and(|it| it.starts_with(&inside))
    });
    files
}

fn add(
    path: &Path,
    depth: usize,
    seen: &mut BTreeSet<PathBuf>,
    files: &mut BTreeMap<PathBuf, Vec<u8>>,
) {
    let short = fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() <= LONGEST);
    if depth > DEEPEST || !short || !seen.insert(path.to_path_buf()) {
        return;
    }
    // One that cannot be read the server cannot read, either.
    let Ok(content) = fs::read(path) else { return };
    let directory = path.parent().unwrap_or(Path::new("/"));
    for (what, name) in included(&String::from_utf8_lossy(&content)) {
        let target = straight(directory.join(name));
        if what == "include_dir" {
            let Ok(entries) = fs::read_dir(&target) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".conf") && !name.starts_with('.') {
                    add(&entry.path(), depth + 1, seen, files);
                }
            }
        } else {
            add(&target, depth + 1, seen, files);
        }
    }
    files.insert(path.to_path_buf(), content);
}

/// A path without "..": what begins with the data directory's path need not be in it, and no
/// object's name may lead upwards.
fn straight(path: PathBuf) -> PathBuf {
    let leads_up = path.components().any(|it| it == Component::ParentDir);
    let real = leads_up.then(|| fs::canonicalize(&path).ok()).flatten();
    real.unwrap_or(path)
}

/// The include directives of a configuration file.
fn included(text: &str) -> Vec<(&str, String)> {
    let directive = |line: &'_ str| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (word, rest) = line.split_once(|c: char| c.is_whitespace() || c == '=')?;
        let word = ["include", "include_if_exists", "include_dir"]
            .into_iter()
            .find(|it| word.eq_ignore_ascii_case(it))?;
        let name = rest.trim().trim_start_matches('=').trim();
        let name = name.strip_prefix('\'').and_then(|it| it.strip_suffix('\'')).unwrap_or(name);
        (!name.is_empty()).then(|| (word, name.replace("''", "'")))
    };
    text.lines().filter_map(directive).collect()
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
            ..super::super::tests::plan(root.path())
        };
        let names: Vec<String> = collect(&plan)
            .keys()
            .filter_map(|it| it.strip_prefix(&etc).ok().map(|it| it.to_string_lossy().into_owned()))
            .collect();
        assert_eq!(names, ["conf.d/a.conf", "extra.conf", "postgresql.conf"]);
        let beside = fs::canonicalize(root.path().join("beside.conf")).expect("it is there");
        assert!(collect(&plan).contains_key(&beside));
        assert_eq!(collect(&plan).len(), 4);
    }
}
