//! Restores a cluster from a copy of what it has off-site, with nothing but pgBackRest and the
//! documented names of the tail's objects; and looks whether such a copy is whole.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nrt_core::lsn::Lsn;
use nrt_core::offsite::tail::{self, Piece};
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, succeed};
use crate::installation::Installation;

/// A restore that is about to be done.
///
/// ```text
/// let restored = Restore::new("after", &copy).run();
/// assert_eq!(restored.value("select count(*) from t"), "1000");
/// ```
#[derive(Debug)]
pub struct Restore<'a> {
    name: &'a str,
    copy: &'a Path,
    stanza: &'a str,
    options: Vec<String>,
}

impl<'a> Restore<'a> {
    /// A restore of the newest state from a plain copy of `<remote>/<cluster>/`.
    pub fn new(name: &'a str, copy: &'a Path) -> Restore<'a> {
        Restore { name, copy, stanza: "main", options: Vec::new() }
    }

    /// Adds a line to pgBackRest's configuration.
    #[must_use]
    pub fn option(mut self, line: &str) -> Restore<'a> {
        self.options.push(line.to_string());
        self
    }

    /// Restores, recovers to the end of what there is, and gives the server that then runs: without
    /// the extension, and archiving nothing.
    ///
    /// # Panics
    /// If it cannot be restored, with the words of whoever refused.
    pub fn run(&self) -> Cluster {
        self.try_run().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The same, where it may be impossible.
    pub fn try_run(&self) -> Result<Cluster, String> {
        let cluster = Cluster::without_data(self.name).preload(false);
        cluster.set("archive_mode", "off");
        let config = cluster.directory().join("restore.conf");
        let script = cluster.directory().join("wal-get");
        self.write_configuration(&cluster, &config);
        let output = pgbackrest(
            cluster.installation(),
            &config,
            self.stanza,
            &[
                "--type=default",
                &format!("--recovery-option=restore_command={} %f \"%p\"", script.display()),
                "restore",
            ],
        );
        succeeded("restore", &output)?;
        let tail = cluster.directory().join("tail");
        cluster.installation().private_directory(&tail).expect("the directory is ours");
        assemble(&self.copy.join(tail::DIRECTORY), &tail, segment_size(&cluster));
        write_script(&script, &config, self.stanza, &tail);
        if let Err(log) = cluster.try_start() {
            // The caller is told.
            cluster.allow("startup ");
            return Err(format!("the server did not start:\n{log}"));
        }
        cluster.wait_for("select pg_is_in_recovery()", "f", PATIENCE);
        Ok(cluster)
    }

    fn write_configuration(&self, cluster: &Cluster, config: &Path) {
        let text = format!(
            "[global]\nrepo1-path={}\nlock-path={}\nspool-path={}\nlog-level-file=off\n\
             log-level-console=warn\n{}\n[{}]\npg1-path={}\n",
            self.copy.join("repository").display(),
            cluster.lock().display(),
            cluster.directory().join("spool").display(),
            self.options.join("\n"),
            self.stanza,
            cluster.data().display(),
        );
        fs::write(config, text).expect("the directory is ours");
    }
}

/// Writes what PostgreSQL calls for a segment.
///
/// To PostgreSQL an exit code from 1 to 125 means that there is no more WAL, and it promotes. Only
/// what is nowhere may give that: every other failure is 255, which stops recovery.
fn write_script(script: &Path, config: &Path, stanza: &str, tail: &Path) {
    let text = format!(
        "#!/bin/sh\n\
         pgbackrest '--config={}' --stanza={stanza} archive-get \"$1\" \"$2\"\n\
         case $? in 0) exit 0 ;; 1) ;; *) exit 255 ;; esac\n\
         [ -f '{tail}'/\"$1\" ] || exit 1\n\
         cp '{tail}'/\"$1\" \"$2\" || exit 255\n",
        config.display(),
        tail = tail.display(),
    );
    let mut options = fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o755);
    let written = options.open(script).and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("the directory is ours");
}

/// Puts segments together from the pieces of a tail, one file for each, full length, zero where
/// nothing is known.
///
/// Only what is without a gap from the segment's beginning counts: PostgreSQL would read WAL behind
/// a gap as garbage, or worse, as WAL.
fn assemble(pieces: &Path, into: &Path, segment_size: u64) {
    let length = usize::try_from(segment_size).expect("a segment has at most a gigabyte");
    for timeline in entries(pieces) {
        for segment in entries(&pieces.join(&timeline)) {
            let mut found: Vec<Piece> = entries(&pieces.join(&timeline).join(&segment))
                .iter()
                .filter_map(|file| {
                    Piece::parse(&format!("{timeline}/{segment}/{file}"), segment_size)
                })
                .collect();
            found.sort_by_key(|piece| (piece.from, piece.to));
            let mut bytes = vec![0; length];
            let mut reached: Option<Lsn> = None;
            for piece in &found {
                let start = piece.segment.start(segment_size);
                if piece.from > reached.unwrap_or(start) {
                    break;
                }
                let Some(content) = unpacked(&pieces.join(piece.path(segment_size)), piece) else {
                    continue;
                };
                let offset = usize::try_from(piece.from.0 - start.0).expect("within a segment");
                bytes[offset..offset + content.len()].copy_from_slice(&content);
                reached = reached.max(Some(piece.to));
            }
            if reached.is_some() {
                let file = into.join(&segment);
                fs::write(&file, bytes).expect("the directory is ours");
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644))
                    .expect("it was just made");
            }
        }
    }
}

/// What a piece holds; nothing if it was still being written when the copy was made.
fn unpacked(file: &Path, piece: &Piece) -> Option<Vec<u8>> {
    let packed = fs::read(file).expect("it was listed");
    let length = usize::try_from(piece.to.0 - piece.from.0).expect("within a segment");
    match zstd::decode_all(&packed[..]) {
        Ok(content) if content.len() == length => Some(content),
        Ok(content) => {
            panic!("{}: {} bytes instead of {length}", file.display(), content.len())
        }
        Err(_) => None,
    }
}

/// The names in a directory, sorted; none if it is not there.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Bytes of a segment of a restored cluster.
fn segment_size(cluster: &Cluster) -> u64 {
    let installation = cluster.installation();
    let mut control = installation.command(installation.program("pg_controldata"));
    let text = succeed(control.arg(cluster.data()));
    let size = text.lines().find_map(|line| line.strip_prefix("Bytes per WAL segment:"));
    size.and_then(|size| size.trim().parse().ok()).expect("pg_controldata tells it")
}

fn pgbackrest(
    installation: &Installation,
    config: &Path,
    stanza: &str,
    arguments: &[&str],
) -> Output {
    let mut command = installation.command("pgbackrest");
    command.arg(format!("--config={}", config.display())).arg(format!("--stanza={stanza}"));
    command.args(arguments).stdin(Stdio::null()).output().expect("pgbackrest is installed")
}

fn succeeded(what: &str, output: &Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("pgbackrest {what}: {}\n{text}{error}", output.status))
}

/// What a copy of a cluster's place holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Soundness {
    /// Labels of the backups that pgBackRest finds.
    pub backups: Vec<String>,
    /// What is missing or too short, or everything that keeps pgBackRest from reading it.
    pub problems: Vec<String>,
}

/// Looks whether every backup in a copy of a cluster's place has all that a restore needs: what
/// pgBackRest lists, the files that each manifest names, and the WAL from its start to its end.
///
/// A restore proves more, and takes a hundred times as long.
pub fn inspect(copy: &Path) -> Soundness {
    let installation = Installation::get();
    let repository = copy.join("repository");
    let mut soundness = Soundness::default();
    let output = installation
        .command("pgbackrest")
        .args(["--no-config", "--stanza=main", "--log-level-file=off", "--output=json"])
        .arg(format!("--repo1-path={}", repository.display()))
        .arg("info")
        .stdin(Stdio::null())
        .output()
        .expect("pgbackrest is installed");
    let info: Value = match succeeded("info", &output).map(|text| serde_json::from_str(&text)) {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => panic!("pgbackrest info: {error}"),
        Err(error) => {
            soundness.problems.push(error);
            return soundness;
        }
    };
    let stanza = &info[0];
    // 99 is pgBackRest's word for what it could not read.
    if stanza["status"]["code"] == 99 {
        soundness.problems.push(format!("pgbackrest info: {}", stanza["repo"]));
    }
    for backup in stanza["backup"].as_array().into_iter().flatten() {
        let label = backup["label"].as_str().expect("every backup has a label");
        soundness.backups.push(label.to_string());
        let backups = repository.join("backup/main");
        soundness.problems.extend(missing_files(&backups, label));
        let id =
            stanza["archive"].as_array().into_iter().flatten().find_map(|it| it["id"].as_str());
        let archive = &backup["archive"];
        if let (Some(start), Some(stop)) = (archive["start"].as_str(), archive["stop"].as_str()) {
            let directory = repository.join("archive/main").join(id.unwrap_or("none"));
            for problem in missing_wal(&directory, start, stop) {
                soundness.problems.push(format!("{label}: {problem}"));
            }
        }
    }
    soundness
}

/// The files of a backup that are not as its manifest says.
fn missing_files(backups: &Path, label: &str) -> Vec<String> {
    let manifest = backups.join(label).join("backup.manifest");
    let Ok(text) = fs::read_to_string(&manifest) else {
        return vec![format!("{label}: there is no backup.manifest")];
    };
    // The last part of a manifest that is whole.
    if !text.contains("\n[target:path:default]\n") || !text.ends_with('\n') {
        return vec![format!("{label}: backup.manifest is cut off")];
    }
    let option = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.and_then(|value| serde_json::from_str::<Value>(value).ok())
    };
    let extension = match option("option-compress-type").as_ref().and_then(Value::as_str) {
        None | Some("none") => String::new(),
        Some(word) => format!(".{word}"),
    };
    let bundled = option("backup-bundle") == Some(Value::Bool(true));
    let mut problems = Vec::new();
    let files = text.lines().skip_while(|line| *line != "[target:file]").skip(1);
    for line in files.take_while(|line| !line.is_empty()) {
        let Some((name, entry)) = line.split_once("={") else { continue };
        let entry: Value = serde_json::from_str(&format!("{{{entry}")).expect("a manifest's JSON");
        let number = |key: &str| entry[key].as_u64();
        let size = number("size").unwrap_or(0);
        if size == 0 && bundled {
            // Such files are only named.
            continue;
        }
        let stored = number("repo-size").unwrap_or(size);
        let owner = backups.join(entry["reference"].as_str().unwrap_or(label));
        let (file, least) = match number("bni") {
            Some(bundle) => (format!("bundle/{bundle}"), number("bno").unwrap_or(0) + stored),
            None if entry.get("bims").is_some() => (format!("{name}.pgbi"), stored),
            None => (format!("{name}{extension}"), stored),
        };
        let found = fs::metadata(owner.join(&file)).map(|metadata| metadata.len());
        if found.as_ref().is_ok_and(|found| *found >= least) {
            continue;
        }
        problems.push(format!("{label}: {file} should have {least} bytes: {found:?}"));
    }
    problems
}

/// The segments between two that are not in an archive, or not whole.
fn missing_wal(directory: &Path, start: &str, stop: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for part in entries(directory) {
        for file in entries(&directory.join(&part)) {
            let segment = file.get(..24).unwrap_or_default().to_string();
            if (start..=stop).contains(&segment.as_str()) && file.get(24..25) == Some("-") {
                found.push((segment, directory.join(&part).join(file)));
            }
        }
    }
    for end in [start, stop] {
        if !found.iter().any(|(segment, _)| segment == end) {
            problems.push(format!("WAL segment {end} is missing"));
        }
    }
    for (segment, path) in found {
        if path.extension().is_some_and(|extension| extension == "zst")
            && fs::File::open(&path).and_then(zstd::decode_all).is_err()
        {
            problems.push(format!("WAL segment {segment} is cut off"));
        }
    }
    problems
}
