//! Reads and writes the worker's files: `nrt_backup/` in the data directory, mode 0700.
//!
//! Nothing here is the only copy of anything that matters: the repository is the truth about
//! backups, and the history is rebuilt from it. So a file that cannot be read counts as absent.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nrt_core::encoded;
use nrt_core::health::Check;
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::job::{self, Job};
use nrt_core::kind::BackupType;
use nrt_core::layout::{self, ArchiveLimits, Kept, LetGo, Present, PushFailure, Restored, Tool};
use nrt_core::lsn::Lsn;
use nrt_core::offsite;
use nrt_core::restore::catalog::RestorePoint;
use nrt_core::restore::drill::{Drill, journal};
use nrt_core::restore::points;
use nrt_process::files::{self, write_atomically};
use nrt_process::identity;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::postgres;

/// More than the name of any type of backup.
const LONGEST_REQUEST: u64 = 64;

/// More than pgBackRest's lock files hold, in bytes.
const LONGEST_LOCK: u64 = 64 << 10;

/// The state directory's path.
pub(crate) fn path() -> PathBuf {
    postgres::data_directory().join(layout::STATE_DIRECTORY)
}

/// The path of a file in the state directory.
pub(crate) fn file(name: &str) -> PathBuf {
    path().join(name)
}

/// Makes the state directory and those within it, unless they are there.
///
/// # Errors
///
/// What the file system says, with the directory's name.
pub(crate) fn create() -> io::Result<()> {
    for directory in [path(), file(layout::LOG)] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| in_file(&directory, &error))?;
    }
    Ok(())
}

/// Sees to it that the directory is this instance's: what another one has left in it, of which this
/// server is a copy, is removed, but for what is the cluster's. Answers whether there was any.
///
/// # Errors
///
/// What the file system says, with the file's name.
pub(crate) fn settle() -> io::Result<bool> {
    let settled = identity::settle(&path(), forget).map_err(|error| in_file(&path(), &error))?;
    // The directories within it went with the other one's files.
    create()?;
    Ok(settled.was_another)
}

/// Removes what is an instance's own. Both names of the instance go last, when there are new ones.
fn forget() -> io::Result<()> {
    for entry in fs::read_dir(path())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_kept = [identity::CARRIED, identity::BOUND].contains(&&*name)
            || layout::OF_THE_CLUSTER.contains(&&*name);
        if is_kept {
            continue;
        }
        let path = entry.path();
        let is_directory = entry.file_type()?.is_dir();
        let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| in_file(&path, &error))?;
    }
    // What is removed must not come back behind the new names.
    File::open(path())?.sync_all()
}

fn in_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn read<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(file(name)).ok()?).ok()
}

fn write(name: &str, value: &impl Serialize) -> io::Result<()> {
    let path = file(name);
    write_atomically(&path, &serde_json::to_vec(value)?).map_err(|error| in_file(&path, &error))
}

/// What the worker kept.
pub(crate) fn kept() -> Kept {
    read(layout::KEPT).unwrap_or_default()
}

/// Keeps what the worker must know after a restart.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn keep(kept: &Kept) -> io::Result<()> {
    write(layout::KEPT, kept)
}

/// The last look's result.
pub(crate) fn inventory() -> Option<Inventory> {
    read(layout::INVENTORY)
}

/// The last look's result, or what is wrong with the file.
///
/// # Errors
///
/// What the file system says, or that the file holds something else.
pub(crate) fn fresh_inventory() -> io::Result<Inventory> {
    Ok(serde_json::from_slice(&fs::read(file(layout::INVENTORY))?)?)
}

/// The last evaluation of the checks.
pub(crate) fn health() -> Vec<Check> {
    read(layout::HEALTH).unwrap_or_default()
}

/// Shows the checks to the SQL functions.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn publish_health(checks: &[Check]) -> io::Result<()> {
    write(layout::HEALTH, &checks)
}

/// Why the last segment could not be archived, if it could not.
pub(crate) fn failed_push() -> Option<PushFailure> {
    read(layout::PUSH_FAILURE)
}

/// The WAL that was let go last, if any ever was.
pub(crate) fn let_go() -> Option<LetGo> {
    read(layout::LET_GO)
}

/// Tells our `archive_command` what the settings say.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn limit_archiving(limits: ArchiveLimits) -> io::Result<()> {
    if read::<ArchiveLimits>(layout::ARCHIVE_LIMITS) == Some(limits) {
        return Ok(());
    }
    write(layout::ARCHIVE_LIMITS, &limits)
}

/// All drills, oldest first.
pub(crate) fn drills() -> Vec<Drill> {
    journal::read(&fs::read(file(layout::DRILLS)).unwrap_or_default())
}

/// Writes what is known of a drill, in place of what was known before.
///
/// # Errors
///
/// What the file system says. A journal that cannot be read is not replaced.
pub(crate) fn record_drill(drill: &Drill) -> io::Result<()> {
    let path = file(layout::DRILLS);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    };
    text.and_then(|text| write_atomically(&path, journal::with(&text, drill).as_bytes()))
        .map_err(|error| in_file(&path, &error))
}

/// Whether somebody asks for a drill on the command line.
pub(crate) fn drill_is_requested() -> bool {
    file(layout::DRILL_NOW).exists()
}

/// Tells whoever asked for a drill on the command line that it has started.
///
/// # Errors
///
/// What the file system says; it would be asked for again and again.
pub(crate) fn drill_is_served() -> io::Result<()> {
    let path = file(layout::DRILL_NOW);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(in_file(&path, &error)),
        _ => Ok(()),
    }
}

/// Tells one request for a backup from the next: the file, and when it became what it is.
pub(crate) type RequestId = (u64, i64, i64);

/// Whether somebody asks for a backup on the command line.
pub(crate) fn backup_request() -> Option<RequestId> {
    let found = fs::symlink_metadata(file(layout::BACKUP_NOW)).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// What somebody asks for on the command line, if somebody asks for a backup.
///
/// # Errors
///
/// Why that cannot be read: it is to be removed, too.
pub(crate) fn requested_backup() -> io::Result<Option<BackupType>> {
    let path = file(layout::BACKUP_NOW);
    let Ok(found) = fs::symlink_metadata(&path) else { return Ok(None) };
    // Whatever else it is may hold the worker up.
    if !found.is_file() {
        return Err(in_file(&path, &io::Error::other("it is not a file")));
    }
    let text = files::read_end(&path, LONGEST_REQUEST).map_err(|error| in_file(&path, &error))?;
    let kind = String::from_utf8_lossy(&text).trim().parse().map_err(io::Error::other);
    kind.map(Some).map_err(|error| in_file(&path, &error))
}

/// Tells whoever asked for a backup which job it has become; none, if it could not be read.
///
/// # Errors
///
/// What the file system says; the request is still there then.
pub(crate) fn backup_is_requested(job: Option<u64>) -> io::Result<()> {
    if let Some(job) = job {
        write(layout::BACKUP_JOB, &job)?;
    }
    let path = file(layout::BACKUP_NOW);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(in_file(&path, &error)),
        _ => Ok(()),
    }
}

/// Shows what the worker knows to commands that ask no SQL.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn show_present(present: &Present) -> io::Result<()> {
    files::replace(&file(layout::PRESENT), &serde_json::to_vec(present)?)
}

/// How pgBackRest is called.
pub(crate) fn tool() -> Option<Tool> {
    read(layout::TOOL)
}

/// How pgBackRest is called, if this very instance has found that out: the file of another server,
/// of which this one is a copy, names that server's repository.
pub(crate) fn own_tool() -> Option<Tool> {
    let tool = tool()?;
    let own = identity::own(&path()).ok()??;
    (tool.instance == Some(own)).then_some(tool)
}

/// When shipping has told something, if it ever has.
pub(crate) fn ship_written() -> Option<SystemTime> {
    fs::metadata(file(layout::SHIP)).ok()?.modified().ok()
}

/// What shipping has told, and when.
pub(crate) fn ship() -> Option<(SystemTime, offsite::Status)> {
    let mut file = File::open(file(layout::SHIP)).ok()?;
    // Of this very file: it may be replaced meanwhile.
    let written = file.metadata().ok()?.modified().ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    Some((written, serde_json::from_slice(&text).ok()?))
}

/// The file with rclone's configuration that the environment gives, if it gives one.
///
/// rclone may renew tokens in its file: it is written again only when another configuration is
/// given.
///
/// # Errors
///
/// Why it cannot be used; the value is never repeated.
pub(crate) fn given_remote() -> Result<Option<String>, Failure> {
    let (used, given) = (file(layout::RCLONE_CONFIG), file(layout::RCLONE_GIVEN));
    let value = std::env::var_os(encoded::VARIABLE).unwrap_or_default();
    let value = value.to_string_lossy();
    if value.trim().is_empty() {
        // A secret that is not given any more must not stay behind.
        let _ = fs::remove_file(&used);
        let _ = fs::remove_file(&given);
        return Ok(None);
    }
    let text = encoded::decode(&value)?;
    let path = used.to_string_lossy().into_owned();
    if used.exists() && fs::read(&given).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(Some(path));
    }
    let written = write_atomically(&used, text.as_bytes())
        .and_then(|()| write_atomically(&given, text.as_bytes()));
    written.map(|()| Some(path)).map_err(|error| Failure {
        message: format!("could not write rclone's configuration: {error}"),
        hint: "Make room on the data directory's disk, and reload the configuration.".to_string(),
    })
}

/// What the locks of pgBackRest hold that a running backup has: how far it is.
pub(crate) fn lock_texts() -> Vec<String> {
    let Some(tool) = tool() else { return Vec::new() };
    let lock = |name: String| {
        let mut text = String::new();
        let file = files::open_plain(&Path::new(&tool.lock_path).join(name)).ok()?;
        file.take(LONGEST_LOCK).read_to_string(&mut text).ok()?;
        Some(text)
    };
    // The name is another one from pgBackRest 2.53 on; the other is simply not there.
    let names = ["backup", "backup-1"].map(|kind| format!("{}-{kind}.lock", tool.stanza));
    names.into_iter().filter_map(lock).collect()
}

/// The end of what the running or last job printed, at most `limit` bytes.
pub(crate) fn job_log(limit: u64) -> Option<String> {
    let text = files::read_end(&file(layout::LOG).join(layout::JOB_LOG), limit).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Marks that a worker runs. Answers whether the one before left its mark behind, which it does
/// only when it or the server ends without a clean shutdown.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn mark_running() -> io::Result<bool> {
    let mark = file(layout::RUNNING);
    // A copy of a running server's data directory, as a standby is one, has brought the mark
    // along: the number tells that it was made for another directory.
    let number = fs::metadata(path()).map_err(|error| in_file(&path(), &error))?.ino().to_string();
    let left_behind = fs::read_to_string(&mark).is_ok_and(|text| text == number);
    fs::write(&mark, number).map_err(|error| in_file(&mark, &error))?;
    Ok(left_behind)
}

/// Takes the mark of a running worker away.
pub(crate) fn unmark_running() {
    // If it stays, the next worker reports an unclean end that was none: harmless.
    let _ = fs::remove_file(file(layout::RUNNING));
}

/// Whether a restore recovers in private: the worker has to wait.
pub(crate) fn is_recovering() -> bool {
    file(layout::RECOVERING).exists()
}

/// What the restore says that made this data directory, if one did.
pub(crate) fn restored() -> Option<Restored> {
    read(layout::RESTORED)
}

/// Remembers that the full backup was taken that was due after a restore.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn full_taken(label: &str) -> io::Result<()> {
    match restored() {
        Some(restored) => {
            write(layout::RESTORED, &Restored { full_taken: Some(label.to_string()), ..restored })
        }
        None => Ok(()),
    }
}

/// The next transaction ids right after backups had ended, by their labels.
pub(crate) fn next_xids() -> BTreeMap<String, u64> {
    read(layout::NEXT_XIDS).unwrap_or_default()
}

/// Keeps them.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn keep_next_xids(xids: &BTreeMap<String, u64>) -> io::Result<()> {
    write(layout::NEXT_XIDS, xids)
}

/// The lock on the list of restore points; nothing while somebody else has it.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn lock_restore_points() -> io::Result<Option<File>> {
    let path = file(layout::RESTORE_POINTS_LOCK);
    files::try_lock(&path).map_err(|error| in_file(&path, &error))
}

/// The restore points that were recorded, the last ones, oldest first.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn restore_points() -> io::Result<Vec<RestorePoint>> {
    let path = file(layout::RESTORE_POINTS);
    let longest = points::MOST as u64 * points::LONGEST_LINE;
    let text = files::read_end(&path, longest).map_err(|error| in_file(&path, &error))?;
    Ok(points::parse(&text))
}

/// Records a restore point. The caller has the lock.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn append_restore_point(point: &RestorePoint) -> io::Result<()> {
    let path = file(layout::RESTORE_POINTS);
    files::append(&path, &points::line(point)?).map_err(|error| in_file(&path, &error))
}

/// Takes those restore points out of a list that has become long to which nobody can restore any
/// more. While somebody makes one, it is left for the next time.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn prune_restore_points(oldest: Lsn) -> io::Result<()> {
    let path = file(layout::RESTORE_POINTS);
    if fs::metadata(&path).is_ok_and(|it| it.len() > points::LONG_FILE)
        && let Some(_lock) = lock_restore_points()?
    {
        let before = restore_points()?;
        let mut text = Vec::new();
        for point in before.iter().filter(|point| oldest <= point.lsn) {
            text.extend(points::line(point)?);
        }
        // Where nothing goes, nothing is written every minute.
        if fs::metadata(&path)?.len() > text.len() as u64 {
            write_atomically(&path, &text).map_err(|error| in_file(&path, &error))?;
        }
    }
    Ok(())
}

/// The history: every job, the newest last.
pub(crate) fn history() -> BTreeMap<u64, Job> {
    // The worker shortens it: this is for one that it cannot rewrite. A line that is cut is left out.
    let text = files::read_end(&file(layout::HISTORY), 2 * job::LONG_HISTORY);
    job::read(&text.unwrap_or_default())
}

/// One job of the history.
pub(crate) fn job(id: u64) -> Option<Job> {
    history().remove(&id)
}

/// Appends to the history. What cannot be written now is kept and written with the next row.
#[derive(Default)]
pub(crate) struct Journal {
    unwritten: Vec<u8>,
}

impl Journal {
    /// Opens the history for writing: shortens it if it has become long, and ends a torn line.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn open() -> io::Result<Journal> {
        let path = file(layout::HISTORY);
        Journal::shorten(&path)?;
        let torn =
            files::read_end(&path, 1).is_ok_and(|end| end.last().is_some_and(|it| *it != b'\n'));
        Ok(Journal { unwritten: if torn { vec![b'\n'] } else { Vec::new() } })
    }

    /// Rewrites a history that has become long. Only the worker writes to it.
    fn shorten(path: &Path) -> io::Result<()> {
        if fs::metadata(path).is_ok_and(|it| it.len() > job::LONG_HISTORY) {
            let text = job::shortened(&history())?;
            write_atomically(path, &text).map_err(|error| in_file(path, &error))?;
        }
        Ok(())
    }

    /// Appends a row and waits until it is on disk.
    ///
    /// # Errors
    ///
    /// What the file system says; the row is kept for the next call.
    pub(crate) fn append(&mut self, job: &Job) -> io::Result<()> {
        line(&mut self.unwritten, job)?;
        self.flush()
    }

    /// Writes what could not be written before.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let path = file(layout::HISTORY);
        let append = || {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).append(true).mode(0o600).open(&path)?;
            file.write_all(&self.unwritten)?;
            file.sync_data()
        };
        if let Err(error) = append() {
            // A part of it may have been written: end that line before the rows come again.
            if self.unwritten.first() != Some(&b'\n') {
                self.unwritten.insert(0, b'\n');
            }
            return Err(in_file(&path, &error));
        }
        self.unwritten.clear();
        Journal::shorten(&path)
    }
}

fn line(text: &mut Vec<u8>, job: &Job) -> io::Result<()> {
    serde_json::to_writer(&mut *text, job)?;
    text.push(b'\n');
    Ok(())
}
