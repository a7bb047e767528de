//! Reads and writes the cluster's directory on the remote, through rclone.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::offsite::limits;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rclone::{LONGEST_LISTING, Rclone, Refusal};
use super::remotes::{Ground, Remotes};
use super::words::Secrets;

/// How long a small object may take.
const SMALL: Duration = Duration::from_secs(120);
/// How long a listing may take.
const LISTING: Duration = Duration::from_secs(1800);
/// How often a small file is read that may be in the midst of being written, how long that may take,
/// and what counts as refused at once.
const TRIES: u32 = 3;
const WRITTEN: Duration = Duration::from_millis(100);
const AT_ONCE: Duration = Duration::from_secs(1);
/// The most bytes of a file that is read as a whole and of whose kind nothing is known.
const LONGEST: u64 = 16 << 20;
/// Of a file that may be longer, twice as much is read where rclone tries again.
const TWICE: u64 = 1 << 20;
/// How often a long job is asked how it is.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A file on the remote.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    /// Below the directory that was listed.
    pub path: String,
    /// Bytes.
    pub size: i64,
}

/// How a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its name says what it holds: one of the same size is the same.
    SameName,
    /// It is new for certain, and nothing has to be looked at.
    New,
    /// What is there is replaced.
    Replace,
}

/// Where on a remote a cluster is kept, as rclone's configuration and the settings tell.
#[derive(Debug)]
pub struct Address {
    /// `name:path/cluster`, in the remote's own grammar: a slash at the beginning stays.
    pub root: String,
    /// What the place rests on.
    pub ground: Ground,
    /// Where earlier versions looked for it, if that may be another place: they dropped a slash
    /// at the beginning of the path.
    pub earlier: Option<String>,
    /// What nobody may read of the configuration.
    pub secrets: Secrets,
}

impl Address {
    /// Asks `rclone` for the remote `name`, or the first one, in a configuration file. `path` and
    /// `cluster` are what lies below it; each may be empty.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no such remote, or the place would lie in our working
    /// directory.
    pub fn find(
        rclone: &str,
        config: &str,
        name: Option<&str>,
        path: &str,
        cluster: &str,
    ) -> Result<Address, Failure> {
        Address::of(&Remotes::read(rclone, config)?, config, name, path, cluster)
    }

    /// The same among remotes that are known. `config` is where an operator finds them.
    pub fn of(
        remotes: &Remotes,
        config: &str,
        name: Option<&str>,
        path: &str,
        cluster: &str,
    ) -> Result<Address, Failure> {
        let name = match name {
            Some(name) if remotes.names().any(|it| it == name) => name,
            Some(name) => {
                return Err(Failure {
                    message: format!("\"{config}\" has no remote \"{name}\""),
                    hint: "Set nrt_backup.remote_name to one of those that it has, or leave it \
                           empty for the first."
                        .to_string(),
                });
            }
            None => remotes.first().ok_or_else(|| Failure {
                message: format!("\"{config}\" has no remote"),
                hint: "Make one with \"rclone config\".".to_string(),
            })?,
        };
        let below = below(path, cluster);
        let is_whole = below.starts_with('/');
        let earlier = (is_whole && remotes.has_relative_paths(name))
            .then(|| format!("{name}:{}", below.trim_start_matches('/')));
        Ok(Address {
            root: format!("{name}:{below}"),
            ground: remotes.ground(name, &below)?,
            earlier,
            secrets: remotes.secrets(),
        })
    }
}

/// The path of a cluster below `path`. Each may be empty.
fn below(path: &str, cluster: &str) -> String {
    match (path.trim_end_matches('/'), cluster) {
        ("", cluster) if path.starts_with('/') => format!("/{cluster}"),
        ("", cluster) => cluster.to_string(),
        (path, "") => path.to_string(),
        (path, cluster) => format!("{path}/{cluster}"),
    }
}

/// The cluster's directory on the remote.
#[derive(Debug)]
pub struct Remote {
    rclone: Rclone,
    /// `name:path/cluster`.
    pub root: String,
    outbox: String,
    /// The configuration file that rclone uses.
    pub config: String,
    numbers: AtomicU64,
    /// Whether rclone encrypts what it writes there.
    pub is_encrypted: bool,
    /// Bytes and objects that were sent.
    sent_bytes: AtomicU64,
    sent_objects: AtomicU64,
}

impl Remote {
    /// The directory `root` on a remote of this rclone. Small files are put into `outbox` on
    /// their way.
    pub fn new(
        rclone: Rclone,
        root: String,
        is_encrypted: bool,
        outbox: &Path,
        config: &str,
    ) -> Remote {
        Remote {
            config: config.to_string(),
            is_encrypted,
            rclone,
            root,
            outbox: outbox.to_string_lossy().into_owned(),
            numbers: AtomicU64::default(),
            sent_bytes: AtomicU64::default(),
            sent_objects: AtomicU64::default(),
        }
    }

    /// rclone's version.
    pub fn version(&self) -> &str {
        &self.rclone.version
    }

    /// Bytes and objects that were sent.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent_bytes.load(Ordering::Relaxed), self.sent_objects.load(Ordering::Relaxed))
    }

    /// Whether rclone is there at all.
    pub fn is_running(&self) -> bool {
        self.rclone.is_running()
    }

    /// Has rclone read its configuration again before the next request. If it cannot, that fails,
    /// too.
    pub fn forget(&self) {
        let _ = self.rclone.call("fscache/clear", &json!({}), Duration::from_secs(10));
    }

    fn below(&self, directory: &str) -> String {
        if directory.is_empty() { self.root.clone() } else { format!("{}/{directory}", self.root) }
    }

    /// A name in the outbox that nothing else uses.
    pub fn spool_name(&self) -> String {
        format!("{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// The outbox.
    pub fn outbox(&self) -> &Path {
        Path::new(&self.outbox)
    }

    /// Every file below a directory. A directory that is not there has none.
    pub fn list(&self, directory: &str) -> Result<Vec<Entry>, Refusal> {
        #[derive(Deserialize)]
        struct Listing {
            list: Option<Vec<Entry>>,
        }
        let parameters = json!({
            "fs": self.below(directory),
            "remote": "",
            "opt": { "recurse": true, "filesOnly": true, "noModTime": true, "noMimeType": true },
        });
        let listed = self.rclone.call_for("operations/list", &parameters, LISTING, LONGEST_LISTING);
        match listed {
            Ok(Listing { list }) => Ok(list.unwrap_or_default()),
            Err(refusal) if refusal.missing => Ok(Vec::new()),
            Err(refusal) => Err(refusal),
        }
    }

    /// The names of the directories in a directory, and of nothing below them. A directory that is
    /// not there has none.
    pub fn directories(&self, directory: &str) -> Result<Vec<String>, Refusal> {
        #[derive(Deserialize)]
        struct Listing {
            list: Option<Vec<Entry>>,
        }
        let parameters = json!({
            "fs": self.below(directory),
            "remote": "",
            "opt": { "recurse": false, "dirsOnly": true, "noModTime": true, "noMimeType": true },
        });
        let listed = self.rclone.call_for("operations/list", &parameters, LISTING, LONGEST_LISTING);
        match listed {
            Ok(Listing { list }) => {
                Ok(list.unwrap_or_default().into_iter().map(|entry| entry.path).collect())
            }
            Err(refusal) if refusal.missing => Ok(Vec::new()),
            Err(refusal) => Err(refusal),
        }
    }

    /// How many files are below a directory, and their bytes.
    pub fn size_of_directory(&self, directory: &str) -> Result<(u64, u64), Refusal> {
        let parameters = json!({ "fs": self.below(directory) });
        let answer = self.rclone.call("operations/size", &parameters, LISTING)?;
        let number = |name: &str| answer[name].as_u64().unwrap_or(0);
        Ok((number("count"), number("bytes")))
    }

    /// Whether there is nothing at all in the cluster's directory.
    pub fn is_empty(&self) -> Result<bool, Refusal> {
        let parameters = json!({
            "fs": self.root,
            "remote": "",
            "opt": { "recurse": false, "noModTime": true, "noMimeType": true },
        });
        match self.rclone.call("operations/list", &parameters, SMALL) {
            Ok(answer) => Ok(answer["list"].as_array().is_none_or(Vec::is_empty)),
            Err(refusal) if refusal.missing => Ok(true),
            Err(refusal) => Err(refusal),
        }
    }

    /// The size of a file; `None` if it is not there.
    pub fn size(&self, path: &str) -> Result<Option<u64>, Refusal> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let entry = self.list(directory)?.into_iter().find(|entry| entry.path == name);
        Ok(entry.and_then(|entry| u64::try_from(entry.size).ok()))
    }

    /// Sends one file of this machine. When this returns, the remote has confirmed it.
    pub fn send(&self, directory: &str, name: &str, path: &str, mode: Mode) -> Result<(), Refusal> {
        let size = fs::metadata(Path::new(directory).join(name)).map_or(0, |it| it.len());
        let config = match mode {
            Mode::SameName => json!({ "SizeOnly": true }),
            Mode::New => json!({ "NoCheckDest": true }),
            Mode::Replace => json!({ "IgnoreTimes": true }),
        };
        let parameters = json!({
            "srcFs": directory, "srcRemote": name,
            "dstFs": self.root, "dstRemote": path,
            "_config": config,
        });
        // A file that takes longer than a small one is sent as a job, which is asked how it is.
        if size > 1 << 20 {
            let parameters = with_job(parameters);
            self.run("operations/copyfile", parameters, &AtomicBool::new(false))?;
        } else {
            self.rclone.call("operations/copyfile", &parameters, SMALL)?;
        }
        self.count(size, 1);
        Ok(())
    }

    /// Sends a small text.
    pub fn put(&self, path: &str, content: &[u8]) -> Result<(), Refusal> {
        let name = self.spool_name();
        let spooled = self.outbox().join(&name);
        let written = fs::write(&spooled, content).map_err(|error| {
            Refusal::new(format!("could not write \"{}\": {error}", spooled.display()))
        });
        let sent = written.and_then(|()| self.send(&self.outbox, &name, path, Mode::Replace));
        let _ = fs::remove_file(spooled);
        sent
    }

    /// Reads a small file; `None` if it is not there. One that is longer than a file of its kind can
    /// be is refused, and costs no more than its limit.
    ///
    /// Where the remote is a directory, one that is written at this moment is refused at once: it is
    /// asked for again.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let mut tries = 1;
        loop {
            let begin = Instant::now();
            match self.try_to_get(path) {
                Err(refusal)
                    if tries < TRIES
                        && !refusal.gone
                        && !refusal.damaged
                        && begin.elapsed() < AT_ONCE =>
                {
                    thread::sleep(WRITTEN);
                    tries += 1;
                }
                got => return got,
            }
        }
    }

    /// The same, for a file that has a copy: one that is too long counts as there and damaged, and
    /// reads as empty.
    pub fn get_or_damaged(&self, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
        match self.get(path) {
            Err(refusal) if refusal.damaged => Ok(Some(Vec::new())),
            got => got,
        }
    }

    fn try_to_get(&self, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
        self.get_below(&self.root, path)
    }

    /// Reads a small file below another place; `None` if it is not there.
    pub fn get_below(&self, root: &str, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let longest = limits::longest(path).unwrap_or(LONGEST);
        let name = self.spool_name();
        let spooled = self.outbox().join(&name);
        let parameters = self.copy_here(root, path, &name, Some(longest));
        let fetched = match self.rclone.call("operations/copyfile", &parameters, SMALL) {
            Ok(_) => read_at_most(path, &spooled, longest).map(Some),
            Err(refusal) if refusal.missing => Ok(None),
            Err(refusal) if refusal.damaged => Err(too_long(path, longest)),
            Err(refusal) => Err(refusal),
        };
        let _ = fs::remove_file(spooled);
        fetched
    }

    /// What has rclone copy a file into the outbox, of which it reads little more than `longest`
    /// bytes, whatever the remote says about its size.
    fn copy_here(&self, root: &str, path: &str, name: &str, longest: Option<u64>) -> Value {
        let mut config = json!({ "NoCheckDest": true });
        if let Some(longest) = longest {
            // What is read again counts again.
            let allowed = if longest > TWICE { longest.saturating_mul(2) } else { longest + 1 };
            config["MaxTransfer"] = json!(allowed);
            // Several streams would not count.
            config["MultiThreadStreams"] = json!(0);
        }
        json!({
            "srcFs": root, "srcRemote": path,
            // Otherwise rclone takes as much of the disk at once as the remote says.
            "dstFs": format!(":local,no_preallocate:{}", self.outbox), "dstRemote": name,
            "_config": config,
        })
    }

    /// The size of a file, asked by its name alone; `None` if it is not there.
    fn stat(&self, path: &str) -> Result<Option<i64>, Refusal> {
        let parameters = json!({
            "fs": self.root, "remote": path,
            "opt": { "filesOnly": true, "noModTime": true, "noMimeType": true },
        });
        let answer = self.rclone.call("operations/stat", &parameters, SMALL)?;
        Ok(answer["item"]["Size"].as_i64())
    }

    /// Makes a directory on the remote hold all files of one here that pass the filter rules,
    /// and deletes nothing. Ends early, with an error, when `stop` is set.
    pub fn send_directory(
        &self,
        directory: &str,
        path: &str,
        rules: &[&str],
        stop: &AtomicBool,
    ) -> Result<(), Refusal> {
        let parameters = with_job(json!({
            "srcFs": directory,
            "dstFs": self.below(path),
            "_config": { "SizeOnly": true },
            "_filter": { "FilterRule": rules },
        }));
        let group = format!("send-{}", self.numbers.fetch_add(1, Ordering::Relaxed));
        let mut parameters = parameters;
        parameters["_group"] = json!(group);
        let done = self.run("sync/copy", parameters, stop);
        if let Ok(stats) =
            self.rclone.call("core/stats", &json!({ "group": group }), Duration::from_secs(10))
        {
            let number = |name: &str| stats[name].as_u64().unwrap_or(0);
            self.count(number("bytes"), number("transfers"));
            let _ = self.rclone.call(
                "core/stats-delete",
                &json!({ "group": group }),
                Duration::from_secs(10),
            );
        }
        done
    }

    /// Fetches one file into a directory here; `false` if it is not there. Its final name appears
    /// when it is whole. One that is longer than a file of its kind can be is refused.
    pub fn fetch(&self, path: &str, into: &Path) -> Result<bool, Refusal> {
        let longest = limits::longest(path);
        let name = self.spool_name();
        let parameters = with_job(self.copy_here(&self.root, path, &name, longest));
        let spooled = self.outbox().join(&name);
        let fetched = match self.run("operations/copyfile", parameters, &AtomicBool::new(false)) {
            Ok(()) if is_longer(&spooled, longest) => {
                Err(too_long(path, longest.unwrap_or_default()))
            }
            Ok(()) => bring(&spooled, into).map(|()| true).map_err(|error| {
                Refusal::new(format!("could not write \"{}\": {error}", into.display()))
            }),
            Err(refusal) if refusal.missing => Ok(false),
            Err(refusal) if refusal.damaged => Err(too_long(path, longest.unwrap_or_default())),
            // A job has only words. Whether the file is there is asked in a way that has a status.
            Err(refusal) if !refusal.gone && matches!(self.stat(path), Ok(None)) => {
                eprintln!("\"{path}\" is not on the remote: {refusal}");
                Ok(false)
            }
            Err(refusal) => Err(refusal),
        };
        let _ = fs::remove_file(spooled);
        fetched
    }

    /// Makes a directory here hold all files of one on the remote that pass the filter rules. What
    /// is here with the same size is not fetched again. Ends early, with an error, when `stop` is
    /// set. `tell` hears how many bytes have come.
    pub fn fetch_directory(
        &self,
        path: &str,
        directory: &Path,
        rules: &[&str],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), Refusal> {
        let config = json!({ "SizeOnly": true });
        self.fetch_files(path, directory, rules, config, stop, tell)
    }

    /// The same, but for what `other`, a directory here, holds with the same size.
    pub fn fetch_missing(
        &self,
        path: &str,
        directory: &Path,
        other: &Path,
        rules: &[&str],
        stop: &AtomicBool,
    ) -> Result<(), Refusal> {
        // Newer versions (1.66) want to set the time of a directory also where nothing was fetched
        // into it, so that it is not there.
        let config =
            json!({ "SizeOnly": true, "CompareDest": [other], "NoUpdateDirModTime": true });
        self.fetch_files(path, directory, rules, config, stop, &mut |_| {})
    }

    fn fetch_files(
        &self,
        path: &str,
        directory: &Path,
        rules: &[&str],
        config: Value,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), Refusal> {
        let group = format!("fetch-{}", self.numbers.fetch_add(1, Ordering::Relaxed));
        let mut parameters = with_job(json!({
            "srcFs": self.below(path),
            "dstFs": directory,
            "_config": config,
            "_filter": { "FilterRule": rules },
        }));
        parameters["_group"] = json!(group);
        let told = json!({ "group": group });
        let mut ask = || {
            let stats = self.rclone.call("core/stats", &told, Duration::from_secs(10));
            if let Some(bytes) = stats.ok().and_then(|stats| stats["bytes"].as_u64()) {
                tell(bytes);
            }
        };
        self.run_while("sync/copy", parameters, stop, &mut ask)?;
        ask();
        Ok(())
    }

    /// Gives a file of the remote another name there.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Refusal> {
        let parameters = with_job(json!({
            "srcFs": self.root, "srcRemote": from, "dstFs": self.root, "dstRemote": to,
        }));
        self.run("operations/movefile", parameters, &AtomicBool::new(false))
    }

    /// Hides secrets in words that came around rclone's own answers.
    pub fn hide(&self, words: &str) -> String {
        self.rclone.hide(words)
    }

    /// Moves a directory of the remote to another place there. Ends early, with an error, when
    /// `stop` is set.
    pub fn rename_directory(&self, from: &str, to: &str, stop: &AtomicBool) -> Result<(), Refusal> {
        let parameters = with_job(json!({
            "srcFs": self.below(from), "dstFs": self.below(to), "deleteEmptySrcDirs": true,
        }));
        self.run("sync/move", parameters, stop)
    }

    /// Runs a job to its end, however long it takes.
    fn run(&self, method: &str, parameters: Value, stop: &AtomicBool) -> Result<(), Refusal> {
        self.run_while(method, parameters, stop, &mut || {})
    }

    /// The same, and calls `watch` now and then.
    fn run_while(
        &self,
        method: &str,
        parameters: Value,
        stop: &AtomicBool,
        watch: &mut dyn FnMut(),
    ) -> Result<(), Refusal> {
        let started = self.rclone.call(method, &parameters, SMALL)?;
        let job = json!({ "jobid": started["jobid"] });
        let mut pause = POLL.0;
        loop {
            thread::sleep(pause);
            pause = (pause * 2).min(POLL.1);
            let status = self.rclone.call("job/status", &job, SMALL)?;
            watch();
            if status["finished"].as_bool() == Some(true) {
                if status["success"].as_bool() == Some(true) {
                    return Ok(());
                }
                let words = status["error"].as_str().unwrap_or("no reason given");
                return Err(Refusal::of_job(words, self.rclone.hide(words)));
            }
            if stop.load(Ordering::Relaxed) {
                let _ = self.rclone.call("job/stop", &job, Duration::from_secs(5));
                return Err(Refusal::new("stopped".to_string()));
            }
        }
    }

    /// Deletes a file. One that is not there is deleted.
    pub fn delete(&self, path: &str) -> Result<(), Refusal> {
        let parameters = json!({ "fs": self.root, "remote": path });
        match self.rclone.call("operations/deletefile", &parameters, SMALL) {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.missing => Ok(()),
            // Another one may have deleted it after rclone had looked.
            Err(refusal) if !refusal.gone && matches!(self.stat(path), Ok(None)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Deletes a directory and all that is in it. One that is not there is deleted.
    pub fn purge(&self, path: &str) -> Result<(), Refusal> {
        let parameters = json!({ "fs": self.root, "remote": path });
        match self.rclone.call("operations/purge", &parameters, LISTING) {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.missing => Ok(()),
            // Some remotes answer with words of their own where nothing is there.
            Err(refusal)
                if !refusal.gone && self.list(path).is_ok_and(|found| found.is_empty()) =>
            {
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn count(&self, bytes: u64, objects: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sent_objects.fetch_add(objects, Ordering::Relaxed);
    }
}

/// Moves a file, also to another file system, so that it is whole under its name.
fn bring(from: &Path, to: &Path) -> io::Result<()> {
    if fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let partial = to.with_extension("nrt-partial");
    fs::copy(from, &partial)?;
    fs::rename(&partial, to)
}

fn with_job(mut parameters: Value) -> Value {
    parameters["_async"] = json!(true);
    parameters
}

/// Whether a file here is longer than it may be.
fn is_longer(path: &Path, longest: Option<u64>) -> bool {
    longest.is_some_and(|longest| fs::metadata(path).is_ok_and(|it| it.len() > longest))
}

/// What was fetched of `path`, if it is no longer than it may be.
fn read_at_most(path: &str, spooled: &Path, longest: u64) -> Result<Vec<u8>, Refusal> {
    if is_longer(spooled, Some(longest)) {
        return Err(too_long(path, longest));
    }
    fs::read(spooled)
        .map_err(|error| Refusal::new(format!("could not read \"{}\": {error}", spooled.display())))
}

fn too_long(path: &str, longest: u64) -> Refusal {
    let words = format!(
        "\"{path}\" is damaged: it has more than the {} that such a file can have",
        nrt_core::size::format_size(longest)
    );
    Refusal { damaged: true, ..Refusal::new(words) }
}

/// Characters of a remote's words that are repeated: they are read inside of the server.
const LONGEST_WORDS: usize = 1000;

/// What an operator is told where the remote refuses.
pub fn failure(what: &str, refusal: &Refusal) -> Failure {
    // A web server may answer with a whole page.
    let words: String = refusal.words.trim().chars().take(LONGEST_WORDS).collect();
    let lower = words.to_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let hint = if refusal.damaged {
        "Remove it there, or put a whole one in its place."
    } else if says(&["401", "403", "denied", "unauthor", "forbidden", "unable to authenticate"]) {
        "See that the credentials in rclone's configuration are right and may read, write and \
         list there."
    } else if says(&["no space", "quota", "507", "insufficient storage", "full", "disk space"]) {
        "Make room on the remote."
    } else if says(&["refused", "no such host", "timeout", "i/o", "unreachable", "deadline"]) {
        "The remote cannot be reached; what is missing there is sent when it can."
    } else if says(&["didn't find section", "section in config"]) {
        "Set nrt_backup.remote_name to a remote of rclone's configuration."
    } else {
        "It is tried again. Try \"rclone lsd <remote>:\" with this configuration as the server's \
         user."
    };
    Failure { message: format!("{what}: {words}"), hint: hint.to_string() }
}

/// Waits before something is tried again: longer each time, and not beyond what ends the wait.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(10);

    /// It failed; the next try is not before some time.
    pub fn failed(&mut self) {
        let pause = Duration::from_millis(500).saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        self.until = Some(Instant::now() + pause.min(Self::LONGEST));
    }

    /// It worked.
    pub fn worked(&mut self) {
        *self = Backoff::default();
    }

    /// How long there is to wait still.
    pub fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}
