//! Makes room for the restored cluster, and deletes nothing of what was there.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use nrt_core::layout;
use nrt_core::restore::Refusal;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::work::Work;

/// The file of a [`Begun`] in the work directory.
const BEGUN: &str = "begun.json";
/// Where a cluster's links to its tablespaces are.
const LINKS: &str = "pg_tblspc";
/// A link that is about to take another one's place.
const NEW_LINK: &str = "nrt_backup.link";
/// With this, and the time, ends the name of what was moved aside.
const ASIDE: &str = "before-restore-";
/// Where a mount point is restored into before it is moved up.
const BELOW: &str = "restoring";
/// Where a server leaves its command line, in the data directory.
const OPTIONS: &str = "postmaster.opts";
/// What a file system of its own may hold.
const LOST_AND_FOUND: &str = "lost+found";
/// The permissions of a data directory, and those that PostgreSQL refuses.
const MODE: u32 = 0o700;
const TOO_OPEN: u32 = 0o027;
/// How long processes of a restore that was killed may take to end.
const ENDING: Duration = Duration::from_secs(30);

/// What happens to a data directory that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is refused.
    Refuse,
    /// It is moved aside.
    Replace,
    /// What is the same as in the backup stays.
    Delta,
}

/// A restore that has begun to write into a data directory, for the one that goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// Where what was in it is now, or goes to.
    pub(crate) aside: Option<PathBuf>,
    /// The backup.
    pub(crate) backup: String,
    /// It is restored below itself, beside what was in it: it is a mount point.
    pub(crate) below: bool,
    /// It held files that were taken over.
    pub(crate) delta: bool,
    /// What was in it is out of the way.
    is_prepared: bool,
    /// The tablespaces' directories, which were empty then.
    spaces: Vec<Known>,
    /// By which it is known again: another directory of this name is not this restore's.
    identity: Option<Identity>,
}

/// What tells a directory from another one that got its name, or its number, later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    /// When it was made, in nanoseconds, where the file system knows.
    made: Option<u64>,
}

fn identity(directory: &Path) -> Option<Identity> {
    let metadata = fs::metadata(directory).ok()?;
    let made = metadata.created().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
    let made = made.and_then(|it| u64::try_from(it.as_nanos()).ok());
    Some(Identity { device: metadata.dev(), inode: metadata.ino(), made })
}

impl Begun {
    /// Where pgBackRest restores to.
    pub(crate) fn directory(&self) -> PathBuf {
        if self.below {
            self.data.join(layout::STATE_DIRECTORY).join(BELOW)
        } else {
            self.data.clone()
        }
    }

    /// Whether pgBackRest goes on with what is there: also with what an interrupted one has left.
    pub(crate) fn goes_on(&self) -> bool {
        // Either of them is enough for it.
        let is_there = |directory: &Path| {
            ["PG_VERSION", "backup.manifest"].iter().any(|name| directory.join(name).is_file())
        };
        self.delta || self.is_prepared && (is_there(&self.directory()) || is_there(&self.data))
    }

    /// The clusters whose tablespaces this restore may write into: its own, and the one that is
    /// replaced as long as its tablespaces are about to be moved aside.
    pub(crate) fn owners(&self) -> Vec<PathBuf> {
        let replaced = self.aside.clone().filter(|_| !self.goes_on());
        self.places().into_iter().chain(replaced).collect()
    }

    /// Where the restored cluster is, or is to be.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        vec![self.data.clone(), self.directory()]
    }

    /// Whether a tablespace's directory is one that this restore has made room in, and holds
    /// nothing but what pgBackRest makes there before it restores the first file.
    pub(crate) fn has_begun_in(&self, directory: &Path) -> bool {
        self.spaces.contains(&known(directory)) && holds_no_file(directory)
    }

    /// Makes room in the directories of the tablespaces: nothing is in them then.
    pub(crate) fn make_spaces(&mut self, targets: &[PathBuf], work: &Work) -> Result<(), Refusal> {
        for target in targets {
            make(target)?;
        }
        self.spaces = targets.iter().map(|target| known(target)).collect();
        self.keep(work)
    }

    /// Remembers it.
    pub(crate) fn keep(&self, work: &Work) -> Result<(), Refusal> {
        work.write(BEGUN, self).map_err(super::told)
    }

    /// Gets what is in the data directory out of the way; also what is left of it, if that was
    /// interrupted.
    pub(crate) fn make_room(&mut self, work: &Work) -> Result<(), Refusal> {
        if !self.is_prepared {
            if let Some(aside) = self.aside.clone() {
                if !self.below && !aside.exists() && fs::rename(&self.data, &aside).is_err() {
                    // A mount point, or a parent that is not ours: it stays within.
                    let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let name = name.rsplit('.').next().unwrap_or_default().to_string();
                    let inside = self.data.join(layout::STATE_DIRECTORY).join(name);
                    (self.aside, self.below) = (Some(inside), true);
                    self.keep(work)?;
                }
                if let Some(inside) = self.aside.as_deref().filter(|_| self.below) {
                    move_inside(&self.data, inside)?;
                }
            }
            make(&self.data)?;
            self.is_prepared = true;
            self.identity = identity(&self.data);
            self.keep(work)?;
        }
        close(&self.data)?;
        if self.below {
            make(&self.directory())?;
            self.move_down()?;
        }
        Ok(())
    }

    /// Takes back below what an interrupted restore had taken up: what pgBackRest works on must
    /// not hold what was there before.
    fn move_down(&self) -> Result<(), Refusal> {
        let to = self.directory();
        for name in names(&self.data).map_err(|it| unusable(&self.data, &it))? {
            if name != layout::STATE_DIRECTORY && name != LOST_AND_FOUND {
                fs::rename(self.data.join(&name), to.join(&name))
                    .map_err(|it| unusable(&to, &it))?;
            }
        }
        Ok(())
    }

    /// Takes what was restored below a mount point to its place.
    pub(crate) fn move_up(&self) -> Result<(), Refusal> {
        if !self.below {
            return Ok(());
        }
        let from = self.directory();
        for name in names(&from).map_err(|it| unusable(&from, &it))? {
            // The state of the original is not this cluster's.
            if name != layout::STATE_DIRECTORY {
                let to = self.data.join(&name);
                fs::rename(from.join(&name), &to).map_err(|it| unusable(&to, &it))?;
            }
        }
        fs::remove_dir_all(&from).map_err(|it| unusable(&from, &it))
    }
}

/// What a restore into this directory that was interrupted has left, if there is one.
pub(crate) fn begun(work: &Work, data: &Path) -> Option<Begun> {
    let begun = work.read::<Begun>(BEGUN).filter(|begun| begun.data == data)?;
    let is_ours = if begun.is_prepared {
        identity(data) == begun.identity && !was_started(work, data)
    } else {
        // Until something was moved, nothing has begun; and until there is room, nothing is there.
        let is_moved = begun.aside.as_ref().is_some_and(|aside| aside.exists());
        is_moved && (begun.below || names(data).is_ok_and(|names| names.is_empty()))
    };
    is_ours.then_some(begun)
}

/// Whether somebody has started a server in a data directory that the restore which works there
/// has not: what that has written is nobody's to restore over.
fn was_started(work: &Work, data: &Path) -> bool {
    // Every server leaves its command line there; those of this restore have a file of it on theirs.
    let ours = format!("external_pid_file={}\"", work.pid_file().display());
    match fs::read(data.join(OPTIONS)) {
        Ok(words) => !words.windows(ours.len()).any(|it| it == ours.as_bytes()),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Leaves a data directory to its operator: from now on it is no interrupted restore's, whatever
/// else of one is kept.
pub(crate) fn hand_over(work: &Work) -> Result<(), Refusal> {
    work.forget(&[BEGUN]).map_err(super::told)
}

/// A directory, to be known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    path: PathBuf,
    identity: Option<Identity>,
}

/// What a directory is known by.
pub(crate) fn known(data: &Path) -> Known {
    Known { path: data.to_path_buf(), identity: identity(data) }
}

/// Waits until no process of an interrupted restore is left: it might still write.
pub(crate) fn wait_for_stragglers(work: &Work, data: &Path) -> Result<(), Refusal> {
    let begin = Instant::now();
    loop {
        let left = stragglers(work, data);
        if left.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > ENDING {
            let numbers: Vec<String> = left.iter().map(u32::to_string).collect();
            return Err(Refusal::new(
                format!(
                    "processes of a server, or of an earlier restore, still work in \"{}\": {}",
                    data.display(),
                    numbers.join(", ")
                ),
                "Wait until they have ended, or end them.",
            ));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The processes that may write into a data directory: servers' that stand in it, and pgBackRest's
/// that belong to this work directory.
fn stragglers(work: &Work, data: &Path) -> Vec<u32> {
    let config = work.config();
    let config = config.as_os_str().as_bytes();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read_to_string(entry.path().join("comm")).ok()?;
        let is_left = match command.trim() {
            "postgres" | "postmaster" => {
                fs::read_link(entry.path().join("cwd")).is_ok_and(|it| it == data)
            }
            "pgbackrest" => fs::read(entry.path().join("cmdline"))
                .is_ok_and(|words| words.windows(config.len()).any(|it| it == config)),
            _ => false,
        };
        is_left.then_some(pid)
    });
    numbers.collect()
}

/// Removes the lock of a server that was killed with an interrupted restore: pgBackRest would take
/// it for a running one. That none runs was found out before.
pub(crate) fn forget_killed_server(work: &Work, begun: &Begun) {
    let lock = begun.directory().join("postmaster.pid");
    // What was there before this restore pgBackRest may complain about.
    let is_ours = !begun.delta
        || fs::read_to_string(&lock).is_ok_and(|text| {
            let place = work.path().to_string_lossy().into_owned();
            text.lines().any(|line| line.starts_with(&place) || line.contains("/nrt-"))
        });
    if is_ours {
        let _ = fs::remove_file(lock);
    }
}

/// Refuses what must not be written to. Changes nothing.
pub(crate) fn check(data: &Path, existing: Existing, begun: Option<&Begun>) -> Result<(), Refusal> {
    if runs(data) {
        return Err(Refusal::new(
            format!("a server runs in \"{}\"", data.display()),
            "Stop it first, or restore to another directory (-D).",
        ));
    }
    let found = names(data).map_err(|error| unusable(data, &error))?;
    let known = begun.is_some();
    if existing != Existing::Replace || is_mount_point(data) {
        check_owner(data)?;
    }
    match existing {
        _ if found.is_empty() || known => Ok(()),
        Existing::Replace => Ok(()),
        Existing::Delta if data.join("PG_VERSION").is_file() => Ok(()),
        Existing::Delta => Err(Refusal::new(
            format!("\"{}\" holds no cluster that --delta could use", data.display()),
            "Restore with --replace, which moves what is there aside, or to another directory.",
        )),
        Existing::Refuse => Err(Refusal::new(
            format!("\"{}\" is not empty", data.display()),
            "Use --replace to move what is there aside, --delta to use what of it is the same, or \
             another directory (-D).",
        )),
    }
}

/// Refuses a directory that stays and belongs to another user: PostgreSQL does not start in it.
fn check_owner(data: &Path) -> Result<(), Refusal> {
    let Ok(found) = fs::metadata(data) else { return Ok(()) };
    let user = geteuid().as_raw();
    if found.uid() == user {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "\"{}\" belongs to the user with the id {}, and this is the user with the id {user}: \
             PostgreSQL starts in a directory of its own user only",
            data.display(),
            found.uid()
        ),
        format!("As root: chown {user} '{}'", data.display()),
    ))
}

/// Whether another file system begins in a directory.
fn is_mount_point(directory: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|it| it.dev()).ok();
    let above = directory.parent().and_then(device);
    device(directory).is_some_and(|it| above.is_some_and(|above| above != it))
}

/// Closes a data directory to other users, as PostgreSQL asks for: a mount point may be open, and
/// pgBackRest restores below it.
fn close(data: &Path) -> Result<(), Refusal> {
    let problem = |error: io::Error| unusable(data, &error);
    let mut permissions = fs::metadata(data).map_err(problem)?.permissions();
    if permissions.mode() & TOO_OPEN == 0 {
        return Ok(());
    }
    permissions.set_mode(MODE);
    fs::set_permissions(data, permissions).map_err(problem)
}

/// Makes the data directory ready for pgBackRest, and tells where what was in it is now.
pub(crate) fn prepare(
    work: &Work,
    data: &Path,
    existing: Existing,
    backup: &str,
    now: DateTime<Utc>,
) -> Result<Begun, Refusal> {
    let mut begun = Begun {
        data: data.to_path_buf(),
        aside: None,
        backup: backup.to_string(),
        below: false,
        delta: existing == Existing::Delta,
        is_prepared: false,
        identity: None,
        spaces: Vec::new(),
    };
    let is_empty = names(data).map_err(|error| unusable(data, &error))?.is_empty();
    if is_empty {
        begun.delta = false;
    } else if existing == Existing::Delta {
        // From now on a server that was started is one that was started since.
        match fs::remove_file(data.join(OPTIONS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unusable(data, &error));
            }
            _ => {}
        }
    } else if existing == Existing::Replace {
        let stamp = now.format("%Y%m%d-%H%M%S");
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        begun.aside = Some(data.with_file_name(format!("{name}.{ASIDE}{stamp}")));
    }
    // First of all: where things are moved to must be known if that is interrupted.
    begun.keep(work)?;
    begun.make_room(work)?;
    Ok(begun)
}

fn move_inside(data: &Path, inside: &Path) -> Result<(), Refusal> {
    let state = data.join(layout::STATE_DIRECTORY);
    make(&state)?;
    make(inside)?;
    for name in names(data).map_err(|error| unusable(data, &error))? {
        if name != layout::STATE_DIRECTORY && name != LOST_AND_FOUND {
            let to = inside.join(&name);
            fs::rename(data.join(&name), &to).map_err(|it| unusable(&to, &it))?;
        }
    }
    // The worker's own files belong to what was there, too.
    let old = inside.join(layout::STATE_DIRECTORY);
    make(&old)?;
    for name in names(&state).map_err(|error| unusable(&state, &error))? {
        if !name.starts_with(ASIDE) {
            let to = old.join(&name);
            fs::rename(state.join(&name), &to).map_err(|it| unusable(&to, &it))?;
        }
    }
    Ok(())
}

/// Moves tablespace directories aside that are about to be restored into, and has the links of the
/// cluster that was moved aside follow them. What was interrupted in between goes on.
pub(crate) fn move_tablespaces(begun: &Begun, targets: &[PathBuf]) -> Result<(), Refusal> {
    let Some(aside) = &begun.aside else { return Ok(()) };
    // Their names have the same end as the cluster's.
    let name = aside.to_string_lossy();
    let Some((_, stamp)) = name.rsplit_once(ASIDE) else { return Ok(()) };
    let end = format!(".{ASIDE}{stamp}");
    for target in targets {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = target.with_file_name(format!("{name}{end}"));
        let is_empty = names(target).map_err(|error| unusable(target, &error))?.is_empty();
        if !is_empty && !name.ends_with(&end) && !beside.exists() {
            fs::rename(target, &beside).map_err(|error| {
                Refusal::new(
                    format!("tablespace \"{}\" cannot be moved aside: {error}", target.display()),
                    "Map it to another directory with --tablespace-map.",
                )
            })?;
        }
        if !beside.exists() {
            continue;
        }
        make(target)?;
        let links = aside.join(LINKS);
        for link in names(&links).unwrap_or_default() {
            if fs::read_link(links.join(&link)).is_ok_and(|it| it == *target) {
                lead(aside, &link, &beside)?;
            }
        }
    }
    Ok(())
}

/// The tablespaces of the cluster that was moved aside, but for those with these ids.
pub(crate) fn tablespaces_but(begun: &Begun, ids: &[&str]) -> Vec<PathBuf> {
    let Some(links) = begun.aside.as_ref().map(|aside| aside.join(LINKS)) else {
        return Vec::new();
    };
    let others = names(&links).unwrap_or_default().into_iter();
    let others = others.filter(|name| !ids.contains(&name.as_str()));
    let places = others.filter_map(|name| fs::read_link(links.join(name)).ok());
    places.filter(|it| it.is_absolute()).collect()
}

/// Whether a tablespace can be restored into a directory: it is empty, or one of the clusters in
/// `owners` has a tablespace there.
pub(crate) fn is_free(directory: &Path, owners: &[PathBuf]) -> Result<bool, Refusal> {
    if names(directory).map_err(|error| unusable(directory, &error))?.is_empty() {
        return Ok(true);
    }
    let is_theirs = |owner: &PathBuf| {
        let links = owner.join(LINKS);
        let names = names(&links).unwrap_or_default();
        names.iter().any(|name| fs::read_link(links.join(name)).is_ok_and(|it| it == *directory))
    };
    Ok(owners.iter().any(is_theirs))
}

/// Where the first of these clusters that has a tablespace of this id has it.
pub(crate) fn place_of(id: &str, owners: &[PathBuf]) -> Option<PathBuf> {
    owners.iter().find_map(|owner| fs::read_link(owner.join(LINKS).join(id)).ok())
}

/// A cluster's tablespaces: the name of each link, which is the object id, and where it leads.
pub(crate) fn links(cluster: &Path) -> Vec<(String, PathBuf)> {
    let links = cluster.join(LINKS);
    let names = names(&links).unwrap_or_default().into_iter();
    names.filter_map(|name| fs::read_link(links.join(&name)).ok().map(|to| (name, to))).collect()
}

/// Has the link of a cluster's tablespace lead to another directory.
pub(crate) fn lead(cluster: &Path, id: &str, to: &Path) -> Result<(), Refusal> {
    let (link, new) = (cluster.join(LINKS).join(id), cluster.join(NEW_LINK));
    // At once: without its link nobody would know where it was.
    let _ = fs::remove_file(&new);
    let moved = symlink(to, &new).and_then(|()| fs::rename(&new, &link));
    moved.map_err(|error| unusable(&link, &error))
}

/// Empties a directory in which an interrupted restore left too little to go on with, except for
/// what was in it before and is kept within.
pub(crate) fn clear(directory: &Path, aside: Option<&Path>) -> Result<(), Refusal> {
    for name in names(directory).map_err(|error| unusable(directory, &error))? {
        let path = directory.join(&name);
        if aside.is_some_and(|aside| aside.starts_with(&path)) {
            continue;
        }
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir());
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| unusable(&path, &error))?;
    }
    Ok(())
}

/// Whether a server runs in a data directory.
pub(crate) fn runs(data: &Path) -> bool {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let pid = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
    pid.is_some_and(|pid| {
        // A number that was given to another program since says nothing.
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // One that has ended, and that nobody has waited for yet, runs no more.
        let has_ended = stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'));
        matches!(command.trim(), "postgres" | "postmaster") && !has_ended
    })
}

/// Whether there are directories only, however deep.
fn holds_no_file(directory: &Path) -> bool {
    let entries: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    entries.is_ok_and(|entries| {
        entries
            .iter()
            .all(|it| it.file_type().is_ok_and(|kind| kind.is_dir()) && holds_no_file(&it.path()))
    })
}

fn make(directory: &Path) -> Result<(), Refusal> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    made.map_err(|error| unusable(directory, &error))
}

/// The names in a directory, sorted; none if it is not there.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| entry.map(|it| it.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

/// Why a file or a directory cannot be worked with.
pub fn unusable(path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(
        format!("\"{}\" cannot be used: {error}", path.display()),
        "Run this as the server's user, and see that its disk is there and has room.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(root: &Path) -> Work {
        Work::make(&root.join("work")).expect("made")
    }

    fn cluster(data: &Path) {
        fs::create_dir_all(data.join("base")).expect("made");
        fs::write(data.join("PG_VERSION"), "15").expect("written");
        fs::create_dir_all(data.join("nrt_backup")).expect("made");
        fs::write(data.join("nrt_backup/state.json"), "{}").expect("written");
    }

    #[test]
    fn nothing_that_was_there_is_lost() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        cluster(&data);
        assert!(check(&data, Existing::Refuse, None).is_err());
        assert!(check(&data, Existing::Replace, None).is_ok());
        assert!(check(&data, Existing::Delta, None).is_ok());
        let begun = prepare(&work, &data, Existing::Replace, "b", Utc::now()).expect("prepared");
        let aside = begun.aside.clone().expect("it was moved");
        assert!(
            aside.join("PG_VERSION").is_file() && aside.join("nrt_backup/state.json").is_file()
        );
        assert!(names(&data).expect("listed").is_empty());
        assert_eq!(super::begun(&work, &data), Some(begun));
        assert_eq!(super::begun(&work, root.path()), None);
        // What has this name later is somebody else's.
        fs::rename(&data, root.path().join("kept")).expect("renamed");
        cluster(&data);
        assert_eq!(super::begun(&work, &data), None);
    }

    #[test]
    fn a_data_directory_that_stays_is_closed_to_others() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        let mode = || fs::metadata(&data).expect("there").permissions().mode() & 0o7777;
        let open = |mode: u32| {
            fs::set_permissions(&data, fs::Permissions::from_mode(mode)).expect("ours");
        };
        fs::create_dir(&data).expect("made");
        for (found, left) in [(0o755, 0o700), (0o750, 0o750), (0o770, 0o700), (0o700, 0o700)] {
            open(found);
            assert!(check(&data, Existing::Refuse, None).is_ok());
            assert_eq!(mode(), found, "a look changes nothing");
            let mut begun =
                prepare(&work, &data, Existing::Refuse, "b", Utc::now()).expect("prepared");
            assert_eq!(mode(), left);
            // Also where one goes on that was interrupted before.
            open(0o755);
            begun.make_room(&work).expect("there");
            assert_eq!(mode(), 0o700);
        }
        assert!(!is_mount_point(&data) && is_mount_point(Path::new("/proc")));
        if geteuid().is_root() {
            std::os::unix::fs::chown(&data, Some(1), None).expect("root may");
            let refusal = check(&data, Existing::Refuse, None).expect_err("another one's");
            assert!(refusal.hint.contains("chown 0 '/"), "{refusal:?}");
            assert!(check(&data, Existing::Replace, None).is_ok(), "it is moved aside");
        }
    }

    #[test]
    fn what_is_in_use_is_no_interrupted_restore() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        let begin = || {
            cluster(&data);
            fs::write(data.join(OPTIONS), "/bin/postgres \"-D\"\n").expect("written");
            prepare(&work, &data, Existing::Delta, "b", Utc::now()).expect("prepared")
        };
        let begun = begin();
        assert_eq!(super::begun(&work, &data), Some(begun.clone()), "it was started before");
        let ours = format!("external_pid_file={}", work.pid_file().display());
        let words = format!("/bin/postgres \"-D\" \"d\" \"-c\" \"{ours}\" \"-c\" \"ssl=off\"\n");
        fs::write(data.join(OPTIONS), &words).expect("written");
        assert_eq!(super::begun(&work, &data), Some(begun.clone()), "it recovers");
        fs::write(data.join(OPTIONS), words.replace(&ours, &format!("{ours}s"))).expect("written");
        assert_eq!(super::begun(&work, &data), None, "another restore's");
        fs::write(data.join(OPTIONS), "/bin/postgres \"-D\" \"d\"\n").expect("written");
        assert_eq!(super::begun(&work, &data), None, "the operator's");
        let begun = begin();
        assert_eq!(super::begun(&work, &data), Some(begun));
        hand_over(&work).expect("removed");
        assert_eq!(super::begun(&work, &data), None);
        hand_over(&work).expect("there is nothing to remove");
    }

    #[test]
    fn what_was_moved_aside_is_found_again_wherever_it_was_interrupted() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        cluster(&data);
        let begun = prepare(&work, &data, Existing::Replace, "b", Utc::now()).expect("prepared");
        let aside = begun.aside.clone().expect("it was moved");
        let early = Begun { is_prepared: false, identity: None, ..begun };
        early.keep(&work).expect("kept");
        // Right behind the move.
        fs::remove_dir(&data).expect("empty");
        let mut found = super::begun(&work, &data).expect("something was moved");
        found.make_room(&work).expect("it goes on");
        assert!(found.is_prepared && data.is_dir() && aside.join("PG_VERSION").is_file());
        // Somebody has made another cluster there since.
        early.keep(&work).expect("kept");
        assert!(super::begun(&work, &data).is_some());
        fs::write(data.join("PG_VERSION"), "15").expect("written");
        assert_eq!(super::begun(&work, &data), None);
        fs::remove_file(data.join("PG_VERSION")).expect("it is there");
        // Right before it.
        fs::remove_dir(&data).expect("empty");
        fs::rename(&aside, &data).expect("moved back");
        early.keep(&work).expect("kept");
        assert_eq!(super::begun(&work, &data), None);
    }

    #[test]
    fn a_mount_point_keeps_what_was_in_it_inside() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        cluster(&data);
        let inside = data.join("nrt_backup/before-restore-x");
        move_inside(&data, &inside).expect("moved");
        assert!(inside.join("PG_VERSION").is_file());
        assert!(inside.join("nrt_backup/state.json").is_file());
        assert_eq!(names(&data).expect("listed"), ["nrt_backup"]);
        let mut begun = Begun {
            data: data.clone(),
            aside: Some(inside.clone()),
            backup: "b".to_string(),
            below: true,
            delta: false,
            is_prepared: false,
            identity: None,
            spaces: Vec::new(),
        };
        begun.make_room(&work).expect("it goes on");
        cluster(&begun.directory());
        for _ in 0..2 {
            begun.move_up().expect("moved");
            assert!(data.join("PG_VERSION").is_file() && inside.join("PG_VERSION").is_file());
            assert!(!data.join("nrt_backup/restoring").exists());
            // Interrupted later: pgBackRest must not see what was there before.
            begun.make_room(&work).expect("it goes on");
            assert!(begun.directory().join("PG_VERSION").is_file());
        }
    }

    #[test]
    fn a_tablespace_is_restored_into_a_place_of_its_own() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, work) = (root.path().join("data"), work(root.path()));
        let [old, new, other] = ["old", "new", "other"].map(|name| root.path().join(name));
        let link = |to: &Path| {
            fs::create_dir_all(to.join("PG_15")).expect("made");
            fs::create_dir_all(data.join(LINKS)).expect("made");
            symlink(to, data.join(LINKS).join("16400")).expect("linked");
        };
        let free = |place: &Path, owners: &[PathBuf]| is_free(place, owners).expect("it is told");
        cluster(&data);
        link(&old);
        fs::create_dir_all(other.join("PG_15")).expect("made");
        assert!(free(&new, &[]) && !free(&old, &[]));
        let owners = std::slice::from_ref(&data);
        assert!(free(&old, owners) && !free(&other, owners));
        assert_eq!(place_of("16400", owners), Some(old.clone()));
        assert_eq!(place_of("16401", owners), None);
        // What is moved aside may be moved aside with its tablespaces, until others are there.
        let mut begun =
            prepare(&work, &data, Existing::Replace, "b", Utc::now()).expect("prepared");
        let owners = begun.owners();
        assert!(!begun.goes_on() && free(&old, &owners) && !free(&other, &owners));
        // What pgBackRest has made of this restore before its first file counts for nothing.
        assert!(!begun.has_begun_in(&new));
        begun.make_spaces(std::slice::from_ref(&new), &work).expect("kept");
        fs::create_dir_all(new.join("PG_15/16384")).expect("made");
        let begun = super::begun(&work, &data).expect("it was kept");
        assert!(begun.has_begun_in(&new) && !begun.has_begun_in(&other));
        fs::write(new.join("PG_15/16384/1"), "").expect("written");
        assert!(!begun.has_begun_in(&new), "somebody's files are in it");
        fs::remove_dir_all(&new).expect("removed");
        cluster(&data);
        link(&new);
        let owners = begun.owners();
        assert!(begun.goes_on() && free(&new, &owners));
        assert!(!free(&old, &owners) && !free(&other, &owners));
    }

    #[test]
    fn tablespaces_are_moved_with_their_cluster() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, space) = (root.path().join("data"), root.path().join("space"));
        let work = work(root.path());
        cluster(&data);
        fs::create_dir_all(space.join("PG_15")).expect("made");
        fs::create_dir_all(data.join("pg_tblspc")).expect("made");
        symlink(&space, data.join("pg_tblspc/16400")).expect("linked");
        let begun = prepare(&work, &data, Existing::Replace, "b", Utc::now()).expect("prepared");
        let spaces = std::slice::from_ref(&space);
        move_tablespaces(&begun, spaces).expect("moved");
        let link = begun.aside.as_ref().expect("it was moved").join("pg_tblspc/16400");
        let moved = fs::read_link(&link).expect("a link");
        assert!(moved.join("PG_15").is_dir() && moved != space);
        assert!(names(&space).expect("listed").is_empty());
        // Interrupted before the link followed, and when something was restored already.
        fs::remove_file(&link).expect("a link");
        symlink(&space, &link).expect("linked");
        fs::create_dir(space.join("PG_15")).expect("made");
        for spaces in [spaces, &[space.clone(), moved.clone()]] {
            move_tablespaces(&begun, spaces).expect("done already");
            assert_eq!(fs::read_link(&link).expect("a link"), moved);
            assert_eq!(names(&space).expect("listed"), ["PG_15"]);
        }
    }
}
