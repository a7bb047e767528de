//! Compares the whole repository with the remote: names, sizes, and hashes where the remote has
//! them. `rclone check` does that, in a process of its own. What differs is judged by the checksums
//! that pgBackRest has written, and repaired if that is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nrt_core::inventory::Failure;
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_process::files::write_atomically;
use nrt_process::{allowed_for_rclone, tether};

use super::bring_back;
use super::mirror::literally;
use super::owner::surely_ours;
use super::proof::{self, Manifest, Side, manifest_there};
use super::repository::{Info, NoInfo, info_path};
use super::state::Shared;
use super::{info_there, wait_for};
use nrt_remote::segment::{Proof, hash_in, prove as prove_segment};
use nrt_remote::{Mode, Remote, failure as refused};

/// What to compare, and to repair.
#[derive(Debug)]
pub(crate) struct Order {
    /// Whether what is damaged on one side is replaced by what is whole on the other.
    pub(crate) is_repair: bool,
    /// Backups that are not finished here.
    pub(crate) unfinished: Vec<String>,
    /// Backups that are missing here and not expired.
    pub(crate) lost: BTreeSet<String>,
    /// Files that are damaged or missing here, as paths below the repository.
    pub(crate) damaged_here: Vec<String>,
}

/// What a comparison found, as paths below the repository.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// How many files are the same.
    pub(crate) same: u64,
    /// Files that the remote does not have, or only a part of, and that are whole here.
    pub(crate) missing: Vec<String>,
    /// Files that are damaged, with the side.
    pub(crate) different: BTreeMap<String, Side>,
    /// Files here that are the remote's now.
    pub(crate) healed: Vec<String>,
    /// Damaged files there that were sent again.
    pub(crate) sent: Vec<String>,
    /// Why it could not be done as a whole.
    pub(crate) failure: Option<Failure>,
}

/// What `rclone check` printed.
#[derive(Debug, Default)]
struct Report {
    same: u64,
    missing: Vec<String>,
    different: Vec<String>,
    failure: Option<Failure>,
}

/// Where a file of the remote is while it is proved, below the stanza's archive: on the repository's
/// file system, and two directories deep, where nobody looks for archived files.
const STAGING: &str = ".repair/files";

/// Pauses before a comparison, or a part of one, that has failed is tried again: a remote that comes
/// back answers wrongly for a while.
pub(crate) const PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// A comparison that has taken longer is not begun anew: the next one comes by itself.
const SHORT: Duration = Duration::from_secs(600);

/// Tries again after each of `pauses` what fails, until the session is over.
pub(crate) fn persistently<T>(
    shared: &Shared,
    pauses: &[Duration],
    mut work: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    for pause in pauses {
        match work() {
            Err(problem) if !shared.is_over() => {
                eprintln!("comparison: {}: it is tried again", problem.message);
                shared.sleep(*pause);
            }
            done => return done,
        }
    }
    work()
}

/// Compares, again if that has failed soon after it began: what was found before a failure is kept.
fn compared_at_last(shared: &Shared, remote: &Remote, unfinished: &[String]) -> Report {
    let begin = Instant::now();
    let mut report = Report::default();
    let compared = persistently(shared, &PAUSES, || {
        report = compared(shared, remote, unfinished);
        let is_last = begin.elapsed() > SHORT;
        report.failure.clone().filter(|_| !is_last).map_or(Ok(()), Err)
    });
    // The report says it, too.
    drop(compared);
    report
}

/// Compares, and repairs what the order says.
pub(crate) fn run(shared: &Shared, remote: &Remote, order: &Order) -> Found {
    let work = Comparison { shared, remote, is_repair: order.is_repair };
    let mut found = Found::default();
    if order.is_repair {
        // First: what is compared below is what is here then.
        if let Err(problem) = work.heal(order, &mut found) {
            found.failure = Some(problem);
        }
    }
    let report = compared_at_last(shared, remote, &order.unfinished);
    found.same = report.same;
    if found.failure.is_none() {
        found.failure = report.failure;
    }
    let all = report.missing.into_iter().map(|path| (path, true));
    for (path, is_missing) in all.chain(report.different.into_iter().map(|path| (path, false))) {
        if shared.is_over() {
            break;
        }
        // A remote that does not come back is not waited for with each file.
        let pauses = if found.failure.is_none() { PAUSES.as_slice() } else { &[] };
        let decided =
            persistently(shared, pauses, || work.decide(path.clone(), is_missing, &mut found));
        if let Err(problem) = decided {
            found.failure.get_or_insert(problem);
        }
    }
    work.clear();
    found
}

/// How a difference is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The file here is whole, and goes up.
    Send,
    /// One side, or both, is damaged.
    Damaged(Side),
    /// Expired meanwhile, or nobody's.
    Nothing,
}

struct Comparison<'a> {
    shared: &'a Shared,
    remote: &'a Remote,
    is_repair: bool,
}

impl Comparison<'_> {
    fn here(&self, path: &str) -> PathBuf {
        self.shared.repository.join(path)
    }

    /// Judges one difference, and repairs it if that is asked.
    fn decide(&self, path: String, is_missing: bool, found: &mut Found) -> Result<(), Failure> {
        let side = match self.judge(&path, is_missing)? {
            Verdict::Nothing => return Ok(()),
            Verdict::Send => {
                found.missing.push(path);
                return Ok(());
            }
            Verdict::Damaged(side) => side,
        };
        match side {
            Side::Here if self.is_repair && self.heal_file(&path)? => found.healed.push(path),
            Side::There if self.is_repair => {
                self.send(&path)?;
                found.sent.push(path);
            }
            side => drop(found.different.insert(path, side)),
        }
        Ok(())
    }

    fn judge(&self, path: &str, is_missing: bool) -> Result<Verdict, Failure> {
        let file = self.here(path);
        let Ok(metadata) = fs::metadata(&file) else { return Ok(Verdict::Nothing) };
        // Of the same length, it may be the remote's content that has changed: that is not silently
        // replaced.
        let is_cut_there = || -> Result<bool, Failure> {
            let there = self.remote.size(&format!("repository/{path}"));
            Ok(there.map_err(|it| refused("the remote cannot be listed", &it))?
                != Some(metadata.len()))
        };
        let whole_here = |is_missing: bool| -> Result<Verdict, Failure> {
            let goes_up = is_missing || is_cut_there()?;
            Ok(if goes_up { Verdict::Send } else { Verdict::Damaged(Side::There) })
        };
        let stanza = &self.shared.plan.stanza;
        let in_backup = path
            .strip_prefix(&format!("backup/{stanza}/"))
            .and_then(|rest| rest.split_once('/'))
            .filter(|(label, _)| *label != "backup.history");
        if let Some((label, proof::MANIFEST)) = in_backup {
            return self.judge_manifest(label, is_missing);
        }
        // A damaged manifest here is judged by itself; the remote's says what the files should be.
        let proof = match self.proved(path, &file)? {
            Some(proof) => proof,
            None if metadata.len() == 0 && !is_missing => Proof::Broken,
            // Only the size says something of a history file, and it may be written again.
            None if is_missing || (in_backup.is_none() && is_cut_there()?) => {
                return Ok(Verdict::Send);
            }
            None => Proof::Unknown,
        };
        match proof {
            Proof::Whole => whole_here(is_missing),
            Proof::Unknown if is_missing && metadata.len() > 0 => Ok(Verdict::Send),
            Proof::Unknown => Ok(Verdict::Damaged(Side::Unknown)),
            Proof::Broken if is_missing => Ok(Verdict::Damaged(Side::Both)),
            Proof::Broken => {
                let staged = self.fetch(path)?;
                let is_whole = staged.as_ref().is_some_and(|staged| {
                    !matches!(self.proved(path, staged), Ok(Some(Proof::Broken)) | Err(_))
                });
                Ok(Verdict::Damaged(if is_whole { Side::Here } else { Side::Both }))
            }
        }
    }

    fn judge_manifest(&self, label: &str, is_missing: bool) -> Result<Verdict, Failure> {
        let directory = self.here(&format!("backup/{}/{label}", self.shared.plan.stanza));
        let Ok(here) = Manifest::here(&directory, label) else { return Ok(Verdict::Nothing) };
        let there = match is_missing {
            true => Manifest::Absent,
            false => {
                let content = manifest_there(self.remote, &self.shared.plan.stanza, label)?;
                Manifest::of(content.as_deref(), label)
            }
        };
        let is_good = |it: &Manifest| matches!(it, Manifest::Whole(_) | Manifest::Encrypted);
        Ok(match (is_good(&here), is_good(&there)) {
            (true, true) => Verdict::Damaged(Side::Unknown),
            (true, false) => Verdict::Send,
            (false, true) => Verdict::Damaged(Side::Here),
            (false, false) => Verdict::Damaged(Side::Both),
        })
    }

    /// Compares a file, which has this path below the repository, with pgBackRest's checksum of it.
    /// Nothing, if there is none.
    fn proved(&self, path: &str, file: &Path) -> Result<Option<Proof>, Failure> {
        let stanza = &self.shared.plan.stanza;
        if path.starts_with("archive/") {
            return Ok(hash_in(path).map(|_| prove_segment(file, path)));
        }
        let Some((label, rest)) =
            path.strip_prefix(&format!("backup/{stanza}/")).and_then(|rest| rest.split_once('/'))
        else {
            return Ok(None);
        };
        let directory = self.here(&format!("backup/{stanza}/{label}"));
        let manifest = match Manifest::here(&directory, label) {
            Ok(manifest @ (Manifest::Whole(_) | Manifest::Encrypted)) => manifest,
            _ => Manifest::of(manifest_there(self.remote, stanza, label)?.as_deref(), label),
        };
        let Manifest::Whole(files) = manifest else { return Ok(None) };
        Ok(files.get(rest).map(|own| proof::prove(file, own)))
    }

    /// Repairs what was found before: the info files, lost backups, damaged files.
    fn heal(&self, order: &Order, found: &mut Found) -> Result<(), Failure> {
        self.clear();
        self.heal_info(found)?;
        if !order.lost.is_empty() {
            bring_back::run(self.shared, self.remote, &order.lost)?;
            let stanza = &self.shared.plan.stanza;
            found.healed.extend(order.lost.iter().map(|label| format!("backup/{stanza}/{label}")));
        }
        // A manifest before the files that are proved by it.
        let is_manifest = |path: &&String| path.ends_with(&format!("/{}", proof::MANIFEST));
        let (first, then): (Vec<&String>, Vec<&String>) =
            order.damaged_here.iter().partition(is_manifest);
        for path in first.into_iter().chain(then) {
            if self.heal_file(path)? {
                found.healed.push(path.clone());
            }
        }
        Ok(())
    }

    /// Puts the remote's info files in the place of damaged ones. pgBackRest itself adds to the list,
    /// at the next backup, what it then finds in the repository.
    fn heal_info(&self, found: &mut Found) -> Result<(), Failure> {
        let stanza = &self.shared.plan.stanza;
        loop {
            let damaged = match Info::read(&self.shared.repository, stanza) {
                Err(NoInfo::Damaged(path)) => path,
                Err(problem) => return Err(problem.into()),
                Ok(_) => return Ok(()),
            };
            let kind = if damaged.ends_with("backup.info") { "backup" } else { "archive" };
            let content = info_there(self.remote, stanza, kind)?;
            let whole = content.filter(|it| integrity(it) != Integrity::Damaged);
            let Some(content) = whole else {
                return Err(Failure {
                    message: format!(
                        "\"{}\" is damaged, in the repository and on the remote",
                        damaged.display()
                    ),
                    hint: "Run pgbackrest stanza-create, then take a new full backup with SELECT \
                           nrt_backup_now('full')."
                        .to_string(),
                });
            };
            let path = info_path(&self.shared.repository, stanza, kind);
            for path in [path.with_extension("info.copy"), path] {
                write_atomically(&path, &content).map_err(|error| unwritable(&path, &error))?;
                let below = path.strip_prefix(&self.shared.repository).unwrap_or(&path);
                found.healed.push(below.display().to_string());
            }
        }
    }

    /// Puts the remote's file in the place of the one here, once it is proved. `false` if it is not
    /// whole there.
    fn heal_file(&self, path: &str) -> Result<bool, Failure> {
        let Some(staged) = self.fetch(path)? else { return Ok(false) };
        let is_whole = match path.ends_with(&format!("/{}", proof::MANIFEST)) {
            true => fs::read(&staged).is_ok_and(|it| integrity(&it) != Integrity::Damaged),
            false => !matches!(self.proved(path, &staged)?, Some(Proof::Broken)),
        };
        if !is_whole {
            return Ok(false);
        }
        let target = self.here(path);
        put_in_place(&staged, &target).map_err(|error| unwritable(&target, &error))?;
        Ok(true)
    }

    /// Sends a file that is whole here in the place of a damaged one.
    fn send(&self, path: &str) -> Result<(), Failure> {
        surely_ours(self.shared, self.remote)?;
        let directory = self.shared.repository.to_string_lossy();
        let sent = self.remote.send(&directory, path, &format!("repository/{path}"), Mode::Replace);
        sent.map_err(|it| refused(&format!("\"{path}\" cannot be sent"), &it))
    }

    fn staging(&self) -> PathBuf {
        self.here(&format!("archive/{}/{STAGING}", self.shared.plan.stanza))
    }

    /// Fetches a file of the remote to where it can be proved; nothing if it is not there.
    fn fetch(&self, path: &str) -> Result<Option<PathBuf>, Failure> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let rule = format!("+ /{}", literally(name));
        let staging = self.staging();
        let staged = staging.join(name);
        let _ = fs::remove_file(&staged);
        fs::create_dir_all(&staging).map_err(|error| unwritable(&staging, &error))?;
        let (from, rules) = (format!("repository/{directory}"), [rule.as_str(), "- *"]);
        let over = &self.shared.over;
        let fetched = self.remote.fetch_directory(&from, &staging, &rules, over, &mut |_| {});
        fetched.map_err(|it| refused(&format!("\"{path}\" cannot be fetched"), &it))?;
        Ok(staged.is_file().then_some(staged))
    }

    fn clear(&self) {
        if let Some(directory) = self.staging().parent() {
            // There seldom is anything.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Gives a file its name; it is on disk before it has that, and when this returns.
fn put_in_place(staged: &Path, target: &Path) -> io::Result<()> {
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    File::open(staged)?.sync_all()?;
    fs::rename(staged, target)?;
    File::open(directory)?.sync_all()
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure {
        message: format!("could not write \"{}\": {error}", path.display()),
        hint: "See that the repository's file system is there and has room.".to_string(),
    }
}

/// Runs `rclone check`. `unfinished` names backups that are not mirrored yet.
fn compared(shared: &Shared, remote: &Remote, unfinished: &[String]) -> Report {
    let plan = &shared.plan;
    let mut args: Vec<OsString> = vec![
        "check".into(),
        shared.repository.clone().into(),
        format!("{}/repository", remote.root).into(),
    ];
    for option in ["--one-way", "--combined=-", "--skip-links", "--ask-password=false", "--config"]
    {
        args.push(option.into());
    }
    args.push((&remote.config).into());
    // What is rewritten all the time and compared by itself, and what is not mirrored.
    for name in
        ["*.info", "*.info.copy", "*.pgbackrest.tmp", "backup.manifest.copy", "/archive/*/.*/**"]
    {
        args.push("--exclude".into());
        args.push(name.into());
    }
    let stanza = &plan.stanza;
    args.push("--exclude".into());
    args.push(format!("/backup/{stanza}/backup.history/**").into());
    for label in unfinished {
        args.push("--exclude".into());
        args.push(format!("/backup/{stanza}/{label}/**").into());
    }
    // Other stanzas of the repository are not ours.
    for rule in [format!("+ /backup/{stanza}/**"), format!("+ /archive/{stanza}/**"), "- *".into()]
    {
        args.push("--filter".into());
        args.push(rule.into());
    }
    match check(shared, remote, &args) {
        Ok((success, stdout, stderr)) => {
            let mut found = read(&stdout);
            // It also ends badly when there are differences.
            let seen = !found.missing.is_empty() || !found.different.is_empty();
            if found.failure.is_none() && !success && !seen {
                let words = stderr.lines().last().unwrap_or("no reason given");
                found.failure = Some(failure(remote.hide(words)));
            }
            found
        }
        Err(error) => Report { failure: Some(failure(error.to_string())), ..Report::default() },
    }
}

/// Runs rclone until it ends or the session does. It may take a day: what it prints goes to files.
fn check(
    shared: &Shared,
    remote: &Remote,
    args: &[OsString],
) -> io::Result<(bool, String, String)> {
    let files = [(); 2].map(|()| remote.outbox().join(remote.spool_name()));
    let mut command = Command::new(&shared.plan.rclone);
    command.args(args).env_clear().envs(allowed_for_rclone(std::env::vars_os()));
    command.stdin(Stdio::null());
    command.stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
    tether(&mut command);
    let status = wait_for(shared, &mut command.spawn()?)?;
    let text = |path| fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let printed = (status.success(), text(&files[0])?, text(&files[1])?);
    for file in files {
        fs::remove_file(file)?;
    }
    Ok(printed)
}

fn failure(words: String) -> Failure {
    Failure {
        message: format!("the remote could not be compared with the repository: {words}"),
        hint: "It is done again at the next time of nrt_backup.comparison_schedule, or by \
               \"nrt-backup check\"."
            .to_string(),
    }
}

/// Reads what `rclone check --combined` prints.
fn read(text: &str) -> Report {
    let mut found = Report::default();
    let mut unread = 0_u64;
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("=", _)) => found.same += 1,
            Some(("+", path)) => found.missing.push(path.to_string()),
            Some(("*", path)) => found.different.push(path.to_string()),
            Some(("!", _)) => unread += 1,
            _ => {}
        }
    }
    if unread > 0 {
        found.failure = Some(failure(format!("{unread} file(s) could not be read")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rclones_report() {
        let found = read("= a/b\n= c\n+ new file\n* other\n- extra\n! bad\n");
        assert_eq!(
            (found.same, found.missing, found.different),
            (2, vec!["new file".into()], vec!["other".into()])
        );
        assert!(found.failure.expect("one").message.contains("1 file(s)"));
        assert!(read("").failure.is_none());
    }
}
