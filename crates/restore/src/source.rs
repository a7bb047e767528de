//! Reads a place that backups are restored from: a remote, a repository on this machine, or
//! whatever an operator's own pgBackRest configuration names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nrt_core::layout;
use nrt_core::offsite;
use nrt_core::offsite::limits;
use nrt_core::offsite::owner::{self, Owner};
use nrt_core::offsite::tail;
use nrt_core::pgbackrest::command;
use nrt_core::pgbackrest::exit;
use nrt_core::pgbackrest::info::{self, StanzaInfo};
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_core::pgbackrest::label;
use nrt_core::pgbackrest::own;
use nrt_core::restore::Refusal;
use nrt_process::files::read_json;
use nrt_process::{allowed_in_zone, capture};
use nrt_remote::{Address, Entry, Options, Rclone, Remote, config_in_use, failure};
use serde::{Deserialize, Serialize};

use super::place::unusable;
use super::work::Work;

/// How long pgBackRest may take to read the repository.
const LIMIT: Duration = Duration::from_secs(600);
/// Questions that are asked of a place at the same time: most of each is waiting.
const AT_ONCE: usize = 8;
/// More than the longest listing: 150 bytes for each file.
const LONGEST_ANSWER: usize = 1 << 30;

/// Where backups are, in a form that can be written down for `wal-get`. It holds no secret, only
/// the names of the files that do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What kind of place it is.
    pub kind: Kind,
    /// An operator's own pgBackRest configuration: for the passphrase of an encrypted repository.
    pub own_config: Option<PathBuf>,
    /// The pgBackRest program.
    pub pgbackrest: PathBuf,
    /// The stanza of the server whose place it is, where several are there and none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stanza: Option<String>,
}

impl Place {
    /// What the server in a data directory has been told last.
    pub fn of_server(data: &Path) -> Option<Place> {
        let state = data.join(layout::STATE_DIRECTORY);
        let tool: layout::Tool = read_json(&state.join(layout::TOOL))?;
        let layout::Tool { config, program, stanza, .. } = tool;
        let own = Path::new(&config) != state.join(layout::PGBACKREST_CONFIG);
        let text = fs::read_to_string(&config).unwrap_or_default();
        let kind = match own::local_repository(&text, &stanza) {
            Some(path) => Kind::Directory(path.into()),
            None => Kind::Own,
        };
        let own_config = own.then(|| config.into());
        let pgbackrest = PathBuf::from(program);
        Some(Place { kind, own_config, pgbackrest, stanza: Some(stanza) })
    }

    /// The remote's place in the settings of shipping: for a drill.
    pub fn of_plan(plan: &offsite::Plan, pgbackrest: &Path) -> Place {
        Place {
            kind: Kind::Remote {
                rclone: plan.rclone.clone(),
                config: config_in_use(Path::new(&plan.state), &plan.rclone_config),
                name: plan.remote_name.clone(),
                path: plan.remote_path.clone(),
                cluster: plan.name.clone(),
                transfers: plan.transfers,
                bandwidth_limit: plan.bandwidth_limit.clone(),
            },
            own_config: plan.own_config.clone().map(PathBuf::from),
            pgbackrest: pgbackrest.to_path_buf(),
            stanza: Some(plan.stanza.clone()),
        }
    }
}

/// The kinds of places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// What `nrt-backup ship` has brought to a remote.
    Remote {
        /// The rclone program.
        rclone: String,
        /// Its configuration file.
        config: String,
        /// The remote; the first one if absent.
        name: Option<String>,
        /// The path on the remote.
        path: String,
        /// The cluster's directory below it.
        cluster: String,
        /// Files that are fetched at the same time.
        transfers: u32,
        /// rclone's `--bwlimit`.
        bandwidth_limit: Option<String>,
    },
    /// A repository on this machine.
    Directory(PathBuf),
    /// The first repository of the operator's own configuration, wherever it is.
    Own,
}

/// A file, by its path below the directory that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The path.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// A place that can be read.
#[derive(Debug)]
pub(crate) struct Source {
    place: Place,
    work: Work,
    /// The remote, where it is one.
    pub(crate) remote: Option<Remote>,
    /// Where an earlier version may have shipped to, if the remote has nothing.
    earlier: Option<String>,
    environment: Vec<(OsString, OsString)>,
    /// Which of pgBackRest's stanzas; known after [`Source::choose_stanza`].
    pub(crate) stanza: String,
    /// Whether pgBackRest has encrypted the repository.
    is_encrypted: bool,
    /// What was there when it was first listed.
    listed: Mutex<Option<Listed>>,
}

/// What a place held, in the order in which it was asked.
#[derive(Debug, Default, Clone)]
struct Listed {
    /// What its owner had promised. Before the rest: a living one promises more at any time.
    owner: Option<Owner>,
    /// The WAL tail. Before the archive: an object is removed once its segment is archived, and what
    /// moved in between is then seen at both places, and not at none.
    tail: Vec<Entry>,
    /// Every file of the repository.
    files: Vec<Stored>,
}

/// Asks about each of many things, some of them at the same time: the answers, in their order.
pub(super) fn side_by_side<T: Sync, R: Send>(things: &[T], ask: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let ask = &ask;
    let mut answers = Vec::with_capacity(things.len());
    for some in things.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|it| scope.spawn(move || ask(it))).collect();
            answers.extend(asked.into_iter().map(|it| match it.join() {
                Ok(answer) => answer,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
        });
    }
    answers
}

/// What was found of a file.
#[derive(Debug)]
pub(crate) enum Content<T> {
    /// It is nowhere.
    None,
    /// It is longer than it may be.
    TooLong,
    /// This.
    Of(T),
}

impl Source {
    /// Opens a place. The working directory is `work` from now on: rclone's socket is there.
    pub(crate) fn open(place: Place, work: &Work) -> Result<Source, Refusal> {
        let mut earlier = None;
        let remote = match &place.kind {
            Kind::Remote { rclone, config, name, path, cluster, transfers, bandwidth_limit } => {
                let Address { root, ground, earlier: before, secrets } =
                    Address::find(rclone, config, name.as_deref(), path, cluster)?;
                earlier = before;
                std::env::set_current_dir(work.path())
                    .map_err(|error| unusable(work.path(), &error))?;
                let options = Options {
                    program: rclone,
                    config,
                    transfers: *transfers,
                    bandwidth_limit: bandwidth_limit.as_deref(),
                };
                let rclone = Rclone::start(options, secrets)?;
                Some(Remote::new(rclone, root, ground.is_encrypted, &work.outbox(), config))
            }
            Kind::Directory(_) | Kind::Own => None,
        };
        let environment = allowed_in_zone(std::env::vars_os(), label::UTC);
        let (work, stanza) = (work.clone(), String::new());
        Ok(Source {
            place,
            work,
            remote,
            earlier,
            environment,
            stanza,
            is_encrypted: false,
            listed: Mutex::default(),
        })
    }

    /// The place, for people.
    pub(crate) fn name(&self) -> String {
        match (&self.remote, &self.place.kind) {
            (Some(remote), _) => remote.root.clone(),
            (None, Kind::Directory(path)) => path.display().to_string(),
            (None, _) => match &self.place.own_config {
                Some(config) => format!("the repository of \"{}\"", config.display()),
                None => "the repository".to_string(),
            },
        }
    }

    /// Every file below a directory of the repository, as it was when this was opened: a listing
    /// of the whole costs no more requests than one of a part.
    pub(crate) fn list(&self, directory: &str) -> Result<Vec<Stored>, Refusal> {
        if self.place.kind == Kind::Own {
            return self.repo_ls(directory);
        }
        let prefix = format!("{directory}/");
        self.with_listed(|listed| {
            let below = listed.files.iter().filter_map(|file| {
                let path = file.path.strip_prefix(&prefix)?.to_string();
                Some(Stored { path, size: file.size })
            });
            below.collect()
        })
    }

    /// The objects of the WAL tail, as they were before the repository was listed.
    pub(crate) fn tail(&self) -> Result<Vec<Entry>, Refusal> {
        match self.remote {
            Some(_) => self.with_listed(|listed| listed.tail.clone()),
            None => Ok(Vec::new()),
        }
    }

    /// Whose the remote is, as it was said before anything was listed.
    pub(crate) fn owner(&self) -> Result<Option<Owner>, Refusal> {
        match self.remote {
            Some(_) => self.with_listed(|listed| listed.owner.clone()),
            None => Ok(None),
        }
    }

    fn with_listed<T>(&self, read: impl FnOnce(&Listed) -> T) -> Result<T, Refusal> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.is_none() {
            let mut found = Listed::default();
            if let Some(remote) = &self.remote {
                found.owner = owner_of(remote)?;
                let tail = remote.list(tail::DIRECTORY);
                found.tail = tail.map_err(|it| failure("the WAL tail cannot be listed", &it))?;
            }
            found.files = self.list_anew("")?;
            *listed = Some(found);
        }
        Ok(read(listed.get_or_insert_default()))
    }

    /// The same as it is now.
    pub(crate) fn list_anew(&self, directory: &str) -> Result<Vec<Stored>, Refusal> {
        match (&self.remote, &self.place.kind) {
            (Some(remote), _) => {
                let below = format!("repository/{directory}");
                let found = remote.list(below.trim_end_matches('/'));
                let found = found.map_err(|it| failure("the remote cannot be listed", &it))?;
                let stored = found.into_iter().map(|entry| Stored {
                    path: entry.path,
                    size: u64::try_from(entry.size).unwrap_or(0),
                });
                Ok(stored.collect())
            }
            (None, Kind::Directory(root)) => {
                walk(&root.join(directory)).map_err(|error| unreadable(root, &error))
            }
            (None, _) => self.repo_ls(directory),
        }
    }

    fn repo_ls(&self, directory: &str) -> Result<Vec<Stored>, Refusal> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "type")]
            kind: String,
            size: Option<u64>,
        }
        let words = [
            "--repo=1",
            "--recurse",
            "--output=json",
            "--log-level-console=off",
            "--log-level-stderr=error",
            "repo-ls",
            directory,
        ];
        let text = self.pgbackrest(&words)?;
        let text = String::from_utf8_lossy(&text);
        let entries: BTreeMap<String, Entry> =
            serde_json::from_str(nrt_core::pgbackrest::log::json_of(&text)).map_err(|error| {
                Refusal::new(
                    format!("pgBackRest's listing of \"{directory}\" cannot be read: {error}"),
                    "Run pgbackrest repo-ls to see it.",
                )
            })?;
        let files = entries.into_iter().filter(|(_, entry)| entry.kind == "file");
        Ok(files.map(|(path, it)| Stored { path, size: it.size.unwrap_or(0) }).collect())
    }

    /// Takes the stanza that was asked for, or the only one that there is, and writes pgBackRest's
    /// configuration for it.
    pub(crate) fn choose_stanza(&mut self, asked: Option<&str>) -> Result<(), Refusal> {
        let found: Vec<String> = match &self.place.kind {
            Kind::Own => asked.map(str::to_string).into_iter().collect(),
            _ => {
                let mut stanzas: Vec<String> = self
                    .list("backup")?
                    .iter()
                    .filter_map(|it| {
                        let path = it.path.strip_suffix(".copy").unwrap_or(&it.path);
                        path.strip_suffix("/backup.info").map(str::to_string)
                    })
                    .collect();
                stanzas.sort();
                stanzas.dedup();
                stanzas
            }
        };
        let names = || found.join(", ");
        let chosen = match (asked, found.as_slice()) {
            (_, []) => {
                if let Some(earlier) = &self.earlier {
                    return Err(Refusal::new(
                        format!("there is no backup at {}", self.name()),
                        format!(
                            "Earlier versions dropped the slash at the beginning of the path: \
                             try --remote={earlier}. Else see that the remote, its path and the \
                             cluster's name are those that it was shipped to."
                        ),
                    ));
                }
                return Err(Refusal::new(
                    format!("there is no backup at {}", self.name()),
                    "See that the remote, its path and the cluster's name are those that it was \
                     shipped to (nrt_backup.remote_name, remote_path, name), or that the \
                     repository is the right directory.",
                ));
            }
            (None, [only]) => only.clone(),
            (None, _) if self.place.stanza.as_ref().is_some_and(|it| found.contains(it)) => {
                self.place.stanza.clone().unwrap_or_default()
            }
            (Some(asked), _) if found.iter().any(|it| it == asked) => asked.to_string(),
            (Some(asked), _) => {
                return Err(Refusal::new(
                    format!("there is no stanza \"{asked}\" at {}", self.name()),
                    format!("There is: {}.", names()),
                ));
            }
            (None, _) => {
                return Err(Refusal::new(
                    format!("there are several stanzas at {}", self.name()),
                    format!("Choose one with --stanza: {}.", names()),
                ));
            }
        };
        self.stanza = chosen;
        if self.remote.is_some() {
            self.fetch_info()?;
        }
        let stanza = self.stanza.clone();
        self.resume(&stanza);
        if self.is_encrypted && self.cipher_pass().is_none() {
            return Err(Refusal::new(
                "the repository is encrypted by pgBackRest",
                "Name the configuration that has its passphrase (repo1-cipher-pass) with \
                 --pgbackrest-config.",
            ));
        }
        Ok(())
    }

    /// Goes on with a stanza that was chosen, and configured, before.
    pub(crate) fn resume(&mut self, stanza: &str) {
        self.stanza = stanza.to_string();
        let info = self.repository().join(format!("backup/{stanza}/backup.info"));
        // One of the two may be missing, or cut off.
        let found = [info.clone(), info.with_extension("info.copy")]
            .into_iter()
            .filter_map(|path| fs::read(path).ok().map(|content| integrity(&content)))
            .find(|found| *found != Integrity::Damaged);
        self.is_encrypted = found == Some(Integrity::Encrypted);
    }

    /// Fetches the info files with their copies. A host that vanishes while it replaces one leaves it
    /// cut off or missing, and its copy whole: pgBackRest takes the copy then, and so do we.
    fn fetch_info(&self) -> Result<(), Refusal> {
        let paths = ["archive", "backup"].map(|it| format!("{it}/{}/{it}.info", self.stanza));
        let all: Vec<String> =
            paths.iter().flat_map(|it| [it.clone(), format!("{it}.copy")]).collect();
        let mut fetched = side_by_side(&all, |path| {
            // What was fetched by an interrupted restore may be older.
            let _ = fs::remove_file(self.work.repository().join(path));
            self.stored(path)
        })
        .into_iter();
        for path in paths {
            let mut is_whole = false;
            for (path, stored) in
                [path.clone(), format!("{path}.copy")].into_iter().zip(fetched.by_ref())
            {
                let Some(file) = stored? else { continue };
                let content = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
                if integrity(&content) == Integrity::Damaged {
                    eprintln!("warning: \"repository/{path}\" is damaged at {}", self.name());
                    // pgBackRest shall not read it either.
                    let _ = fs::remove_file(&file);
                    continue;
                }
                is_whole = true;
            }
            if !is_whole {
                return Err(Refusal::new(
                    format!(
                        "\"repository/{path}\" and its copy are missing or damaged at {}",
                        self.name()
                    ),
                    "Without them pgBackRest cannot read the repository. If the original server is \
                     there, \"nrt-backup check\" sends them again.",
                ));
            }
        }
        Ok(())
    }

    fn cipher_pass(&self) -> Option<String> {
        let config = fs::read_to_string(self.place.own_config.as_ref()?).ok()?;
        own::backup_option(&config, &self.stanza, "repo1-cipher-pass")
    }

    /// The repository as a directory of this machine: all of it, or as much as was fetched.
    pub(crate) fn repository(&self) -> PathBuf {
        match &self.place.kind {
            Kind::Directory(path) => path.clone(),
            _ => self.work.repository(),
        }
    }

    /// Writes the configuration with which pgBackRest reads [`Source::repository`] and restores
    /// into a directory. It may hold a passphrase: mode 0600.
    pub(crate) fn configure(&self, data: &Path) -> Result<(), Refusal> {
        let mut text = "[global]\n".to_string();
        let mut add = |name: &str, value: &str| text += &format!("{name}={value}\n");
        if self.place.kind == Kind::Own {
            // All of the operator's own; the lines below win over it.
            let own = self.place.own_config.as_deref().map(fs::read_to_string);
            let own = own.and_then(Result::ok).unwrap_or_default();
            let global = section(&own, "global");
            for (name, value) in global.iter().chain(&section(&own, &self.stanza)) {
                if name.starts_with("repo1-") {
                    add(name, value);
                }
            }
        } else {
            add("repo1-path", &self.repository().to_string_lossy());
            if let Some(pass) = self.cipher_pass().filter(|_| self.is_encrypted) {
                add("repo1-cipher-type", "aes-256-cbc");
                add("repo1-cipher-pass", &pass);
            }
            // What is on this disk is the same when it is read again, 15 seconds later.
            add("job-retry", "0");
        }
        add("lock-path", &self.work.lock().to_string_lossy());
        add("spool-path", &self.work.path().join("spool").to_string_lossy());
        add("log-level-file", "off");
        text += &format!("[{}]\npg1-path={}\n", self.stanza, data.display());
        let path = self.work.config();
        nrt_process::files::write_atomically(&path, text.as_bytes())
            .map_err(|error| unusable(&path, &error))
    }

    /// pgBackRest's own account of the stanza.
    pub(crate) fn info(&self) -> Result<StanzaInfo, Refusal> {
        let config = self.work.config().to_string_lossy().into_owned();
        let words = command::info(&config, &self.stanza);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = self.run(&words)?;
        info::parse_info(&String::from_utf8_lossy(&text), &self.stanza).map_err(|error| {
            Refusal::new(
                format!("pgBackRest's account of the repository cannot be read: {error}"),
                "Run pgbackrest info --output=json to see it.",
            )
        })
    }

    /// Runs pgBackRest with its configuration and the stanza.
    pub(crate) fn pgbackrest(&self, words: &[&str]) -> Result<Vec<u8>, Refusal> {
        let config = format!("--config={}", self.work.config().display());
        let stanza = format!("--stanza={}", self.stanza);
        let mut all = vec![config.as_str()];
        if !self.stanza.is_empty() {
            all.push(&stanza);
        }
        all.extend(words);
        self.run(&all)
    }

    fn run(&self, words: &[&str]) -> Result<Vec<u8>, Refusal> {
        let program = &self.place.pgbackrest;
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let captured = capture(program, &args, &self.environment, LIMIT, LONGEST_ANSWER);
        let captured = captured.map_err(|error| {
            Refusal::new(
                error.to_string(),
                "Install pgBackRest 2.45 or newer (apt install pgbackrest), or name it with \
                 --pgbackrest.",
            )
        })?;
        if captured.exit == Some(0) {
            return Ok(captured.stdout);
        }
        let output = format!("{}{}", String::from_utf8_lossy(&captured.stdout), captured.stderr);
        let verdict = exit::judge(captured.exit, captured.signal, &output);
        Err(Refusal::new(verdict.message, verdict.hint.unwrap_or_default()))
    }

    /// Whether what is stored can be read without pgBackRest.
    pub(crate) fn is_plain(&self) -> bool {
        !self.is_encrypted && self.place.kind != Kind::Own
    }

    /// A file of the repository as it is stored, on this machine. `None` if it is nowhere.
    pub(crate) fn stored(&self, path: &str) -> Result<Option<PathBuf>, Refusal> {
        match self.fetched(path)? {
            Content::Of(path) => Ok(Some(path)),
            Content::None => Ok(None),
            Content::TooLong => Err(self.too_long(path)),
        }
    }

    fn too_long(&self, path: &str) -> Refusal {
        Refusal::new(
            format!(
                "\"{path}\" at {} is damaged: it is longer than such a file can be",
                self.name()
            ),
            "Restore from another backup (--backup), or put a whole file in its place.",
        )
    }

    fn fetched(&self, path: &str) -> Result<Content<PathBuf>, Refusal> {
        let here = self.repository().join(path);
        match fs::metadata(&here) {
            Ok(metadata) if metadata.is_file() => return Ok(Content::Of(here)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unreadable(&here, &error));
            }
            _ => {}
        }
        let problem = |error: io::Error| {
            Refusal::new(
                format!("could not write \"{}\": {error}", here.display()),
                "See that its disk has room.",
            )
        };
        match &self.remote {
            Some(remote) => {
                if let Some(directory) = here.parent() {
                    fs::create_dir_all(directory).map_err(problem)?;
                }
                match remote.fetch(&format!("repository/{path}"), &here) {
                    Ok(true) => Ok(Content::Of(here)),
                    Ok(false) => Ok(Content::None),
                    Err(refusal) if refusal.damaged => Ok(Content::TooLong),
                    Err(refusal) => {
                        Err(failure(&format!("\"{path}\" cannot be fetched"), &refusal).into())
                    }
                }
            }
            None => Ok(Content::None),
        }
    }

    /// What a file of the archive holds, as it was before pgBackRest encrypted it: `longest` bytes at
    /// most.
    pub(crate) fn archived(&self, path: &str, longest: u64) -> Result<Content<Vec<u8>>, Refusal> {
        self.content(&format!("archive/{}/{path}", self.stanza), longest)
    }

    /// What a file of the repository holds, as it was before pgBackRest encrypted it. `None` if it
    /// is nowhere.
    pub(crate) fn plain(&self, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let longest = limits::longest(&format!("repository/{path}"));
        match self.content(path, longest.unwrap_or(LONGEST_ANSWER as u64))? {
            Content::Of(content) => Ok(Some(content)),
            Content::None => Ok(None),
            Content::TooLong => Err(self.too_long(path)),
        }
    }

    fn content(&self, path: &str, longest: u64) -> Result<Content<Vec<u8>>, Refusal> {
        let stored = match self.place.kind {
            Kind::Own => None,
            _ => match self.fetched(path)? {
                Content::Of(stored) => Some(stored),
                Content::None => return Ok(Content::None),
                Content::TooLong => return Ok(Content::TooLong),
            },
        };
        if let Some(stored) = &stored {
            let found = fs::metadata(stored).map_err(|error| unreadable(stored, &error))?;
            if found.len() > longest {
                return Ok(Content::TooLong);
            }
        }
        match stored {
            Some(stored) if !self.is_encrypted => {
                let content = fs::read(&stored).map_err(|error| unreadable(&stored, &error))?;
                Ok(Content::Of(content))
            }
            _ => {
                let words = ["--log-level-console=off", "repo-get", path];
                self.pgbackrest(&words).map(Content::Of)
            }
        }
    }
}

/// Whose a remote is, by the file or its copy. A file that is cut off or too long is as good as none.
fn owner_of(remote: &Remote) -> Result<Option<Owner>, Refusal> {
    let get = |name: &str| {
        remote
            .get_or_damaged(name)
            .map_err(|it| failure(&format!("\"{name}\" cannot be read"), &it))
    };
    Ok(owner::Found::read(get)?.owner())
}

fn unreadable(path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(
        format!("\"{}\" cannot be read: {error}", path.display()),
        "See that its file system is there, and that you may read it.",
    )
}

/// Every file below a directory; none if it is not there.
fn walk(root: &Path) -> io::Result<Vec<Stored>> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, prefix)) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if kind.is_file() {
                // It may be expired at this moment.
                let Ok(metadata) = entry.metadata() else { continue };
                found.push(Stored { path, size: metadata.len() });
            }
        }
    }
    Ok(found)
}

/// The options of a section of a pgBackRest configuration.
fn section(text: &str, name: &str) -> Vec<(String, String)> {
    let mut inside = false;
    let mut options = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            inside = section == name;
        } else if inside
            && !line.starts_with('#')
            && let Some((option, value)) = line.split_once('=')
        {
            options.push((option.trim().to_string(), value.trim().to_string()));
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_what_is_below_a_directory() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(walk(&root.path().join("none")).expect("nothing"), []);
        fs::create_dir_all(root.path().join("a/b")).expect("made");
        fs::write(root.path().join("a/b/c"), "123").expect("written");
        let expected = Stored { path: "a/b/c".to_string(), size: 3 };
        assert_eq!(walk(root.path()).expect("listed"), [expected]);
    }

    #[test]
    fn reads_sections() {
        let text =
            "[global]\nrepo1-path=/r\n# x=y\n[global:backup]\nexclude=z\n[main]\npg1-path = /p\n";
        assert_eq!(section(text, "global"), [("repo1-path".to_string(), "/r".to_string())]);
        assert_eq!(section(text, "main"), [("pg1-path".to_string(), "/p".to_string())]);
    }
}
