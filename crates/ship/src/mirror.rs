//! Mirrors backups so that the remote can be restored from at every instant.
//!
//! The order makes it so: a private copy of the info files is taken, then the WAL and the data of
//! finished backups go up, then their manifests, and only then the copy. What expire has removed
//! here is removed there last, where the retention allows it for the backups that the remote holds.
//! What another life of the cluster has left goes when a full backup of that time would. Nothing else
//! is ever deleted there, and no whole file of a finished backup is ever replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use nrt_core::crontab::{self, Crontab, Tz};
use nrt_core::inventory::{Failure, Inventory};
use nrt_core::kind::BackupType;
use nrt_core::layout;
use nrt_core::lsn::Segment;
use nrt_core::offsite::expiry::NeededWal;
use nrt_core::offsite::{Comparison, Superseded, expiry};
use nrt_core::pgbackrest::archive::StoredName;
use nrt_core::pgbackrest::backup_info::parse_backup_info;
use nrt_core::pgbackrest::command::TRIGGER_ANNOTATION;
use nrt_core::pgbackrest::info::Backup;
use nrt_core::pgbackrest::names::valid_label;
use nrt_core::restore::points;
use nrt_process::files::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::archive::{Files, newest_id, segment_of};
use super::bring_back;
use super::compare::{self, Found, persistently};
use super::configuration;
use super::lineage::SUPERSEDED;
use super::owner::still_ours;
use super::proof::{self, Judged, Side};
use super::repository::{self, Info, Stamp, finished, has_held, has_manifest, names};
use super::restore_points;
use super::state::Shared;
use super::tarball;
use nrt_core::offsite::DESCRIPTIONS;
use nrt_remote::segment::{self, Proof};
use nrt_remote::{Backoff, Mode, Remote, failure};

/// How often we look whether there is a new backup.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a round waits for the archive.
const ARCHIVE: Duration = Duration::from_secs(600);
/// How long a deletion that failed is left alone.
const DELETE_AGAIN: Duration = Duration::from_secs(300);
/// How often the server's configuration files are looked at.
const CONFIGURATION: Duration = Duration::from_secs(60);
/// How many places of other lives a comparison names.
const SHOWN: usize = 20;

/// The files of each backup on the remote, with their sizes, by label.
pub(crate) type Held = BTreeMap<String, BTreeMap<String, u64>>;

/// What the remote holds.
#[derive(Debug, Default)]
pub(crate) struct There {
    /// Backups that have a manifest there.
    pub(crate) labels: BTreeSet<String>,
    /// Of these, the ones of which nothing is missing there.
    pub(crate) complete: BTreeSet<String>,
    /// The info file, or its copy, whichever is whole.
    pub(crate) info: Option<Vec<u8>>,
    /// What was listed when the session began, until it has been judged.
    pub(crate) held: Option<Held>,
    /// The paths of the backups' descriptions, with their sizes: one may have been cut off.
    pub(crate) descriptions: BTreeMap<String, i64>,
    /// The paths of the portable archives.
    pub(crate) tars: BTreeSet<String>,
}

/// Mirrors until the session is over.
pub(crate) fn run(
    shared: &Arc<Shared>,
    remote: &Arc<Remote>,
    there: There,
    archive: &Mutex<Files>,
) {
    let plan = &shared.plan;
    let mut mirror = Mirror {
        shared,
        remote,
        archive,
        there,
        mirrored: None,
        seen: None,
        deletions_due: true,
        listed_again: BTreeSet::new(),
        described: None,
        next_xids: BTreeMap::new(),
        restore_points: restore_points::Kept::default(),
        delete_again: None,
        configuration: configuration::Sent::default(),
        configuration_at: None,
        comparing: None,
        facts: BTreeMap::new(),
        damage: BTreeMap::new(),
        lost: BTreeSet::new(),
        listed_at: None,
        superseded_due: true,
    };
    if let Some(info) = &mirror.there.info {
        let facts = facts_in(info);
        mirror.facts.extend(facts);
    }
    let request = Path::new(&plan.state).join(layout::COMPARE);
    let schedule = crontab::parse_schedule(&plan.comparison_schedule).ok().flatten();
    let zone = crontab::parse_zone(&plan.zone).unwrap_or(Tz::UTC);
    let mut compared_at = Utc::now();
    let mut backoff = Backoff::default();
    while !shared.is_over() {
        if backoff.left().is_zero() {
            let outcome = mirror.round();
            // Also where the round has failed: a repair may be what lets it succeed.
            if outcome.is_ok() && is_due(schedule.as_ref(), zone, compared_at) && !request.exists()
            {
                compared_at = Utc::now();
                // As if somebody had asked, so that it outlives this session.
                let _ = fs::write(&request, "");
            }
            if mirror.comparing.is_none() && request.exists() {
                mirror.comparing = Some(mirror.compare(shared, remote, &request));
            }
            if let Some(done) = mirror.comparing.take_if(|it| it.thread.is_finished()) {
                let asked = done.asked.clone();
                mirror.conclude(done);
                // Whoever has asked for a repair meanwhile is still to be answered.
                if fs::read(&request).unwrap_or_default() == asked {
                    let _ = fs::remove_file(&request);
                }
            }
            match outcome {
                Ok(()) => backoff.worked(),
                Err(_) => backoff.failed(),
            }
            shared.report("mirror", outcome.err());
            if !remote.is_running() {
                shared.end_session();
            }
        }
        shared.sleep(PAUSE);
    }
    if let Some(comparing) = mirror.comparing {
        // It ends with the session.
        let _ = comparing.thread.join();
    }
}

fn is_due(schedule: Option<&Crontab>, zone: Tz, since: DateTime<Utc>) -> bool {
    let next = schedule.and_then(|crontab| crontab.next_after(since, zone));
    next.is_some_and(|next| next <= Utc::now())
}

struct Mirror<'a> {
    shared: &'a Shared,
    remote: &'a Remote,
    archive: &'a Mutex<Files>,
    there: There,
    /// The info files that the remote holds.
    mirrored: Option<Info>,
    /// What told that they are the same as here.
    seen: Option<[Stamp; 2]>,
    /// Something may have been expired since the last look.
    deletions_due: bool,
    /// Backups that pgBackRest was asked to list, because they were brought back.
    listed_again: BTreeSet<String>,
    /// When the files were changed by which the descriptions were written last.
    described: Option<[Option<SystemTime>; 2]>,
    /// The next transaction ids after backups that only the remote knows.
    next_xids: BTreeMap<String, u64>,
    restore_points: restore_points::Kept,
    delete_again: Option<Instant>,
    configuration: configuration::Sent,
    configuration_at: Option<Instant>,
    comparing: Option<Comparing>,
    /// What is known of backups that are or were on the remote.
    facts: BTreeMap<String, expiry::Held>,
    /// Damaged files of finished backups, by their paths below the repository.
    damage: BTreeMap<String, Side>,
    /// Backups that are missing here although the retention does not let them go.
    lost: BTreeSet<String>,
    /// When the remote was listed last.
    listed_at: Option<Instant>,
    /// The places of other lives are to be looked at: after each listing.
    superseded_due: bool,
}

/// A comparison that runs beside the mirror: it may take hours, and backups must not wait.
struct Comparing {
    thread: JoinHandle<Found>,
    before: Before,
    /// What the request says.
    asked: Vec<u8>,
}

/// What was on the remote when a comparison began. The rest may have been on its way.
struct Before {
    labels: BTreeSet<String>,
    archive: Files,
}

impl Before {
    /// Whether a file of the repository was there.
    fn knew(&self, stanza: &str, path: &str) -> bool {
        let below = |kind: &str| path.strip_prefix(&format!("{kind}/{stanza}/")).map(str::to_owned);
        if let Some(path) = below("archive") {
            let (directory, name) = path.rsplit_once('/').unwrap_or_default();
            return self.archive.get(directory).is_some_and(|known| known.contains(name));
        }
        below("backup")
            .is_some_and(|path| self.labels.contains(path.split('/').next().unwrap_or_default()))
    }
}

impl Mirror<'_> {
    fn stanza(&self) -> &str {
        &self.shared.plan.stanza
    }

    fn backups_here(&self) -> PathBuf {
        self.shared.repository.join("backup").join(self.stanza())
    }

    fn backups_there(&self) -> String {
        format!("repository/backup/{}", self.stanza())
    }

    /// Does what has become necessary.
    fn round(&mut self) -> Result<(), Failure> {
        // Whatever keeps backups waiting: the WAL goes up all the same, and the points are in it.
        let restore_points = self.keep_restore_points();
        self.backups().and(restore_points)
    }

    /// Mirrors the backups and all that goes with them.
    fn backups(&mut self) -> Result<(), Failure> {
        self.list_if_due()?;
        let stamp = repository::stamp(&self.shared.repository, self.stanza());
        if stamp.is_none() || self.seen != stamp || self.mirrored.is_none() {
            let info = Info::read(&self.shared.repository, self.stanza());
            // Without a stanza there is nothing to mirror, and nothing is changed on the remote.
            let Some(info) = info.map_err(Failure::from)? else { return Ok(()) };
            refuse_the_tail(self.shared, self.remote, Some(&info));
            if self.mirrored.as_ref() != Some(&info) || !self.lost.is_empty() {
                self.mirror(info)?;
            }
            self.seen = stamp;
            self.deletions_due = true;
        }
        self.describe()?;
        self.keep_the_configuration()?;
        self.delete_expired();
        self.send_tars()?;
        self.is_undamaged()?;
        self.delete_superseded()
    }

    /// Refuses to call well what is damaged.
    fn is_undamaged(&self) -> Result<(), Failure> {
        if self.damage.is_empty() { Ok(()) } else { Err(damaged(&self.damage)) }
    }

    fn mirror(&mut self, info: Info) -> Result<(), Failure> {
        let here = self.finished()?;
        // Each time anew: the repository may have become another one.
        let state = Path::new(&self.shared.plan.state);
        let mut known = Known::read(state, &self.backups_here());
        known.add(state, &here);
        self.refuse_another_repository(&known)?;
        // First, so that no backup is there without it. A failure holds up no backup: it is tried
        // again, and reported, after them.
        let _ = self.keep_the_configuration();
        // Some may have been brought back.
        let here = self.finished()?;
        // An encrypted one does not say what it lists; then it must not change meanwhile.
        let listed = info.labels().unwrap_or_else(|| here.clone());
        self.facts.extend(facts_in(&info.backup));
        self.refuse_to_forget(&info, &listed, &here)?;
        self.wait_for_the_archive()?;
        let mut restorable = listed.clone();
        for label in &listed {
            if !self.there.complete.contains(label) && !self.send_backup(label)? {
                // Damaged on both sides: those that do not build on it are worth listing.
                restorable.remove(label);
            }
        }
        let missing = listed.iter().find(|it| !has_manifest(&self.backups_here().join(it)));
        if let Some(gone) = missing {
            return Err(again(gone));
        }
        if info.is_encrypted() {
            let now = Info::read(&self.shared.repository, self.stanza()).ok().flatten();
            if now.as_ref() != Some(&info) || self.finished()? != here {
                return Err(again("a backup"));
            }
        }
        still_ours(self.shared, self.remote)?;
        let stanza = self.stanza();
        for (kind, content) in [("archive", &info.archive), ("backup", &info.backup)] {
            let path = format!("repository/{kind}/{stanza}/{kind}.info");
            self.replace_info(&path, content)?;
        }
        let labels: Vec<String> = restorable.into_iter().collect();
        self.there.labels.extend(labels.iter().cloned());
        self.there.info = Some(info.backup.clone());
        self.mirrored = Some(info);
        // The worker looks at the repository after each backup, too.
        self.shared.read_inventory();
        self.shared.change(|state| state.status.backups = labels);
        Ok(())
    }

    /// Replaces an info file on the remote, which was proved when it was read here. Its copy first, and
    /// the file itself only when the remote has given the copy back: one of the two is whole at
    /// every instant.
    fn replace_info(&self, path: &str, content: &[u8]) -> Result<(), Failure> {
        let copy = format!("{path}.copy");
        let cannot = |path: &str| format!("\"{path}\" cannot be written");
        let put = |path: &str| {
            self.remote.put(path, content).map_err(|refusal| failure(&cannot(path), &refusal))
        };
        put(&copy)?;
        let given_back = self.remote.get(&copy).map_err(|it| failure(&cannot(&copy), &it))?;
        if given_back.as_deref() != Some(content) {
            return Err(Failure {
                message: format!("{}: the remote gives back something else", cannot(&copy)),
                hint: "It is tried again. If it stays so, see that nobody else writes there."
                    .to_string(),
            });
        }
        put(path)
    }

    /// Refuses to replace the remote's list of backups by one that lacks a backup which the remote
    /// holds, unless the retention lets that go; and tells a backup that was lost here.
    fn refuse_to_forget(
        &mut self,
        info: &Info,
        listed: &BTreeSet<String>,
        here: &BTreeSet<String>,
    ) -> Result<(), Failure> {
        self.lost.clear();
        let unlisted: BTreeSet<String> = self.there.labels.difference(listed).cloned().collect();
        let may_go = if unlisted.is_empty() { BTreeSet::new() } else { self.expirable(listed)? };
        let missing: Vec<&String> = listed.difference(here).collect();
        if let Some(gone) = missing.first() {
            // pgBackRest takes a backup from the list before it removes its directory.
            let now = Info::read(&self.shared.repository, self.stanza()).map_err(Failure::from)?;
            if now.as_ref() != Some(info) {
                return Err(again(gone));
            }
        }
        let kept = unlisted.iter().filter(|label| !may_go.contains(*label));
        let (unlisted_here, gone): (BTreeSet<String>, BTreeSet<String>) =
            kept.cloned().partition(|label| here.contains(label));
        self.lost = gone;
        let missing = missing.into_iter().cloned();
        let (there, nowhere): (BTreeSet<String>, BTreeSet<String>) =
            missing.partition(|label| self.there.labels.contains(label));
        self.lost.extend(there);
        if !self.lost.is_empty() {
            return Err(self.lost_words(&self.lost));
        }
        if let Some(label) = nowhere.first() {
            return Err(Failure {
                message: format!(
                    "backup {label}, which backup.info lists, is missing in the repository and on \
                     the remote"
                ),
                hint: "Take a new full backup with SELECT nrt_backup_now('full').".to_string(),
            });
        }
        match unlisted_here.first() {
            None => Ok(()),
            Some(label)
                if !unlisted_here.is_subset(&self.listed_again)
                    && bring_back::is_due(Path::new(&self.shared.plan.state)) =>
            {
                bring_back::list_again(self.shared)?;
                let words = Failure {
                    message: format!("backup {label} was brought back, and is listed again"),
                    hint: "It goes away by itself.".to_string(),
                };
                self.listed_again = unlisted_here;
                Err(words)
            }
            Some(label) => Err(Failure {
                message: format!(
                    "backup {label} is in the repository, and backup.info does not list it: the \
                     list on the remote stays as it is"
                ),
                hint: "The next backup lists it again: SELECT nrt_backup_now().".to_string(),
            }),
        }
    }

    /// What is said of lost backups.
    fn lost_words(&self, labels: &BTreeSet<String>) -> Failure {
        let place = format!("{}/{}", self.remote.root, self.backups_there());
        lost(labels, &self.shared.plan.rclone_config, &place)
    }

    /// The backups that the retention allows to go, of those on the remote and those that `listed`
    /// names.
    fn expirable(&mut self, listed: &BTreeSet<String>) -> Result<BTreeSet<String>, Failure> {
        let labels: BTreeSet<String> = self.there.labels.union(listed).cloned().collect();
        if labels.iter().any(|label| !self.facts.contains_key(label))
            && let Some(inventory) = self.shared.read_inventory()
        {
            let backups = inventory.backups_of(self.shared.plan.system_id);
            self.facts.extend(backups.map(|it| (it.label.clone(), facts_of(it))));
        }
        for label in &labels {
            if !self.facts.contains_key(label) {
                let facts = self.facts_there(label)?;
                self.facts.insert(label.clone(), facts);
            }
        }
        let held: Vec<expiry::Held> =
            labels.iter().filter_map(|label| self.facts.get(label)).cloned().collect();
        let retentions = repository::retentions(&self.shared.plan).into_iter();
        Ok(retentions.flat_map(|it| expiry::expirable(&held, it, Utc::now())).collect())
    }

    /// What the description on the remote says of a backup that no list tells of: the list of an
    /// encrypted repository cannot be read. Without one, the label alone is known.
    fn facts_there(&self, label: &str) -> Result<expiry::Held, Failure> {
        let kind = kind_of(label);
        let path = description_file(kind, label);
        let text = self
            .remote
            .get(&path)
            .map_err(|refusal| failure(&format!("\"{path}\" cannot be read"), &refusal))?;
        let text: Value = text.and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default();
        let needs = text["references"].as_array().into_iter().flatten().chain([&text["prior"]]);
        Ok(expiry::Held {
            label: label.to_string(),
            kind,
            needs: needs.filter_map(|it| it.as_str().map(str::to_string)).collect(),
            stop_time: text["stop_time"].as_str().and_then(|it| it.parse().ok()),
        })
    }

    /// Lists the backups and the archive on the remote, once in `listing` seconds, and compares them
    /// with what the manifests need. What is missing there is sent again.
    fn list_if_due(&mut self) -> Result<(), Failure> {
        let every = Duration::from_secs(self.shared.plan.listing.into());
        if self.listed_at.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let held = match self.there.held.take() {
            Some(held) => held,
            None => {
                self.list_archive()?;
                list_backups(self.shared, self.remote)?
            }
        };
        self.there.labels = held
            .iter()
            .filter(|(_, files)| files.contains_key(proof::MANIFEST))
            .map(|(label, _)| label.clone())
            .collect();
        let here = self.finished()?;
        self.damage.retain(|path, _| !path.starts_with("backup/"));
        let complete = std::mem::take(&mut self.there.complete);
        let nothing = BTreeMap::new();
        for label in here.iter().filter(|label| valid_label(label)) {
            let files = held.get(label).unwrap_or(&nothing);
            // What is not there at all is new, or sent anew as a whole.
            if files.is_empty() {
                continue;
            }
            if self.judge(label, files)?.is_there() {
                self.there.complete.insert(label.clone());
            }
        }
        // Of what is no longer here, nothing is judged.
        let gone_here = complete.iter().filter(|label| !here.contains(*label));
        self.there.complete.extend(gone_here.filter(|it| self.there.labels.contains(*it)).cloned());
        let listed = self.mirrored.as_ref().and_then(Info::labels).unwrap_or_default();
        if listed.iter().any(|label| !here.contains(label)) {
            // Expired at this moment, or lost.
            self.mirrored = None;
        }
        if complete.iter().any(|label| !self.there.complete.contains(label)) {
            eprintln!("mirror: files of backups are missing on the remote, and are sent again");
            self.mirrored = None;
            // It may be what others are built on.
            self.shared.change(|state| state.status.backups.clear());
        }
        self.listed_at = Some(Instant::now());
        self.superseded_due = true;
        Ok(())
    }

    /// Judges a backup by its manifest, and remembers what is damaged.
    fn judge(&mut self, label: &str, there: &BTreeMap<String, u64>) -> Result<Judged, Failure> {
        let (remote, stanza) = (self.remote, self.stanza().to_string());
        let judged = proof::judge(&self.backups_here().join(label), label, there, || {
            proof::manifest_there(remote, &stanza, label)
        })?;
        let prefix = format!("backup/{stanza}/{label}/");
        self.damage.retain(|path, _| !path.starts_with(&prefix));
        if !has_manifest(&self.backups_here().join(label)) {
            // Expired at this moment, or lost: that is told by the list of the backups.
            return Ok(judged);
        }
        let damage = judged.damage.iter().map(|(path, side)| (format!("{prefix}{path}"), *side));
        self.damage.extend(damage);
        Ok(judged)
    }

    /// Compares the archive on the remote with what was thought to be there.
    fn list_archive(&mut self) -> Result<(), Failure> {
        let stanza = self.stanza().to_string();
        let before = self.archive.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let root = format!("repository/archive/{stanza}");
        let listed = self.remote.list(&root);
        let listed = listed.map_err(|it| failure("the remote cannot be listed", &it))?;
        let sizes: BTreeMap<String, u64> = listed
            .into_iter()
            .filter_map(|entry| Some((entry.path, u64::try_from(entry.size).ok()?)))
            .collect();
        self.damage.retain(|path, _| !path.starts_with("archive/"));
        for (directory, names) in before {
            for name in names {
                let path = format!("{directory}/{name}");
                let below = format!("archive/{stanza}/{path}");
                let file = self.shared.repository.join(&below);
                let here = fs::metadata(&file).map(|it| it.len()).ok();
                let there = sizes.get(&path).copied();
                let side = match (here, there) {
                    (None, Some(_)) => continue,
                    (Some(here), Some(there)) if here == there => continue,
                    (Some(_), _) if !is_a_segment(&name) => None,
                    (Some(here), there) => match segment::prove(&file, &name) {
                        Proof::Whole => None,
                        Proof::Unknown if there.is_none() && here > 0 => None,
                        Proof::Unknown => Some(Side::Unknown),
                        Proof::Broken if there.is_some() => Some(Side::Here),
                        Proof::Broken => Some(Side::Both),
                    },
                    // Expired here, and before the oldest backup as well: nobody needs it.
                    (None, None) => {
                        self.send_again(&below);
                        continue;
                    }
                };
                match side {
                    None => {
                        if self.send_again(&below) {
                            eprintln!(
                                "mirror: \"{path}\" is missing on the remote, and is sent again"
                            );
                        }
                    }
                    Some(side) => drop(self.damage.insert(below, side)),
                }
            }
        }
        Ok(())
    }

    fn finished(&self) -> Result<BTreeSet<String>, Failure> {
        finished(&self.shared.repository, self.stanza()).map_err(|error| Failure {
            message: format!("the repository cannot be read: {error}"),
            hint: "See that its file system is there and can be read.".to_string(),
        })
    }

    /// A repository that has never held what the remote holds is another one: a disk that is not
    /// mounted, a server that was restored. Its info file would make the remote's backups
    /// unreachable.
    fn refuse_another_repository(&self, known: &Known) -> Result<(), Failure> {
        let unknown = self.there.labels.iter().filter(|label| {
            !known.labels.contains(*label)
                && !has_held(&self.shared.repository, self.stanza(), label)
        });
        let unknown: BTreeSet<String> = unknown.cloned().collect();
        if unknown.is_empty() {
            bring_back::clear(self.shared);
            return Ok(());
        }
        if bring_back::is_due(Path::new(&self.shared.plan.state)) {
            return bring_back::run(self.shared, self.remote, &unknown);
        }
        let shown = unknown.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        Err(Failure {
            message: format!(
                "the remote holds {} backup(s) that this repository has never held ({shown}): \
                 nothing there is replaced; WAL is still shipped",
                unknown.len()
            ),
            hint: "If the repository's disk is not mounted, mount it. If this repository is a new \
                   one, set nrt_backup.name to another name, or run \"nrt-backup takeover \
                   --set-aside\", which keeps the remote's backups under another name."
                .to_string(),
        })
    }

    /// Waits until all that was in the archive when the info files were copied is on the remote.
    fn wait_for_the_archive(&self) -> Result<(), Failure> {
        let wanted = self.shared.change(|state| {
            state.pass_wanted = true;
            state.passes.0 + 1
        });
        let until = Instant::now() + ARCHIVE;
        while !self.shared.is_over() {
            let seen = self.shared.generation();
            let state = self.shared.lock();
            if state.passes.1 >= wanted {
                return Ok(());
            }
            if let Some(problem) = state.failures.get("archive") {
                return Err(problem.clone());
            }
            drop(state);
            if Instant::now() > until {
                // Long, but it gets on: the next round waits again.
                return Err(Failure {
                    message: "backups wait for the archive, of which much is still to be sent"
                        .to_string(),
                    hint: "Raise nrt_backup.bandwidth_limit if it is set.".to_string(),
                });
            }
            self.shared.wait(seen, Duration::from_secs(1));
        }
        Err(stopped())
    }

    /// Sends what the remote lacks of a backup, the manifest last. `false` if the backup is damaged on
    /// both sides, so that the remote cannot hold it as a whole.
    ///
    /// Nothing that is damaged here is sent, and nothing that is whole there is replaced.
    fn send_backup(&mut self, label: &str) -> Result<bool, Failure> {
        let here = self.backups_here().join(label);
        let there = format!("{}/{label}", self.backups_there());
        let directory = here.to_string_lossy().into_owned();
        let files = self.remote.list(&there);
        let files = files.map_err(|it| failure("the remote cannot be listed", &it))?;
        let files: BTreeMap<String, u64> = files
            .into_iter()
            .filter_map(|entry| Some((entry.path, u64::try_from(entry.size).ok()?)))
            .collect();
        let judged = self.judge(label, &files)?;
        let mut rules: Vec<String> =
            ["- *.pgbackrest.tmp", "- backup.manifest.copy", "- /backup.manifest"]
                .map(str::to_string)
                .into();
        let excepted = judged.damage.keys().chain(&judged.left_alone);
        rules.extend(excepted.map(|path| format!("- /{}", literally(path))));
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let over = &self.shared.over;
        let mut sent = Ok(());
        if !judged.to_send.is_empty() || judged.sends_manifest {
            sent = self.remote.send_directory(&directory, &there, &rules, over);
        }
        if judged.sends_manifest && judged.can_be_there() {
            let manifest = format!("{there}/{}", proof::MANIFEST);
            sent = sent.and_then(|()| {
                self.remote.send(&directory, proof::MANIFEST, &manifest, Mode::Replace)
            });
        }
        match sent {
            Ok(()) if judged.can_be_there() => {
                self.there.complete.insert(label.to_string());
                self.there.labels.insert(label.to_string());
                Ok(true)
            }
            Ok(()) => Ok(false),
            Err(_) if self.shared.is_over() => Err(stopped()),
            Err(_) if !has_manifest(&here) => Err(again(label)),
            Err(refusal) => Err(failure(&format!("backup {label} cannot be sent"), &refusal)),
        }
    }

    /// Writes a description of each backup that is on the remote, as JSON.
    fn describe(&mut self) -> Result<(), Failure> {
        let state = Path::new(&self.shared.plan.state);
        let changed = [layout::INVENTORY, layout::NEXT_XIDS]
            .map(|name| fs::metadata(state.join(name)).and_then(|it| it.modified()).ok());
        if changed[0].is_none() || self.described == Some(changed) {
            return Ok(());
        }
        let Some(inventory) = self.shared.read_inventory() else { return Ok(()) };
        let xids = fs::read(state.join(layout::NEXT_XIDS)).unwrap_or_default();
        let xids: BTreeMap<String, u64> = serde_json::from_slice(&xids).unwrap_or_default();
        let system_id = self.shared.plan.system_id;
        for backup in inventory.backups_of(system_id) {
            if !self.there.complete.contains(&backup.label) {
                continue;
            }
            let path = description_path(backup);
            let mut next_xid =
                xids.get(&backup.label).or(self.next_xids.get(&backup.label)).copied();
            let describe = |next_xid| {
                let text = description(backup, system_id, &inventory, next_xid);
                let size = i64::try_from(text.len()).unwrap_or(i64::MAX);
                (text, size)
            };
            let (mut text, mut size) = describe(next_xid);
            let there = self.there.descriptions.get(&path).copied();
            if next_xid.is_none() && there.is_some_and(|there| there != size) {
                next_xid = self.next_xid_there(&path)?;
                self.next_xids.extend(next_xid.map(|it| (backup.label.clone(), it)));
                (text, size) = describe(next_xid);
            }
            if there != Some(size) {
                self.remote.put(&path, text.as_bytes()).map_err(|refusal| {
                    failure(&format!("\"{path}\" cannot be written"), &refusal)
                })?;
                self.there.descriptions.insert(path, size);
            }
        }
        self.described = Some(changed);
        self.deletions_due = true;
        Ok(())
    }

    /// What a description on the remote says of the next transaction id: a server that was
    /// restored, or has lost its files, does not know it any more.
    fn next_xid_there(&self, path: &str) -> Result<Option<u64>, Failure> {
        let text = self
            .remote
            .get(path)
            .map_err(|refusal| failure(&format!("\"{path}\" cannot be read"), &refusal))?;
        let description: Option<Value> = text.and_then(|it| serde_json::from_slice(&it).ok());
        Ok(description.and_then(|it| it["next_xid"].as_u64()))
    }

    /// Sends the names and places of restore points.
    fn keep_restore_points(&mut self) -> Result<(), Failure> {
        if self.shared.lock().status.tail_refused.is_some() {
            // They would be in clear beside an encrypted repository, too.
            return Ok(());
        }
        let (shared, there) = (self.shared, &self.there.labels);
        let oldest = || {
            let inventory = shared.read_inventory()?;
            let system_id = shared.plan.system_id;
            let here: BTreeSet<&String> =
                inventory.backups_of(system_id).map(|backup| &backup.label).collect();
            // Nothing is known of where the others on the remote end.
            let all_known = !there.is_empty() && there.iter().all(|label| here.contains(label));
            all_known.then(|| points::oldest_reachable(&inventory, system_id)).flatten()
        };
        self.restore_points.send(Path::new(&shared.plan.state), self.remote, oldest)
    }

    /// Sends each full backup as one archive, if that is wanted.
    fn send_tars(&mut self) -> Result<(), Failure> {
        if !self.shared.plan.portable_tar {
            return Ok(());
        }
        let wanted = self.there.complete.iter().filter(|label| label.ends_with('F'));
        let missing: Vec<String> =
            wanted.filter(|it| !self.there.tars.contains(&tarball::path(it))).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let Some(inventory) = self.shared.read_inventory() else { return Ok(()) };
        for backup in inventory.backups_of(self.shared.plan.system_id) {
            if missing.contains(&backup.label) {
                let path = tarball::path(&backup.label);
                tarball::send(self.shared, self.remote, backup, &path)?;
                self.there.tars.insert(path);
            }
        }
        Ok(())
    }

    /// Keeps the configuration files that pgBackRest does not see.
    fn keep_the_configuration(&mut self) -> Result<(), Failure> {
        if self.shared.lock().status.tail_refused.is_some() {
            // They would be in clear beside an encrypted repository, too.
            return Ok(());
        }
        if self.configuration_at.is_some_and(|at| at.elapsed() < CONFIGURATION) {
            return Ok(());
        }
        self.configuration.send(&self.shared.plan, self.remote)?;
        self.configuration_at = Some(Instant::now());
        let left = self.configuration.delete_left(&self.shared.plan, self.remote);
        self.undeleted("configuration", left);
        Ok(())
    }

    /// Shows what could not be deleted, by what it is.
    fn undeleted(&self, kind: &'static str, left: (u64, Option<Failure>)) {
        if left.0 > 0 || self.shared.lock().undeleted.contains_key(kind) {
            self.shared.change(|state| drop(state.undeleted.insert(kind, left)));
        }
    }

    /// Removes from the remote what expire has removed here, and the retention lets go.
    fn delete_expired(&mut self) {
        if !self.deletions_due || self.delete_again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        let Some(mirrored) = &self.mirrored else { return };
        let Ok(here) = self.finished() else { return };
        let listed = mirrored.labels().unwrap_or_else(|| here.clone());
        let Ok(may_go) = self.expirable(&listed) else { return };
        // Those that build on others first.
        let expired: Vec<String> = self
            .there
            .labels
            .iter()
            .rev()
            .filter(|label| !listed.contains(*label) && !here.contains(*label))
            .filter(|label| may_go.contains(*label))
            .cloned()
            .collect();
        let kept: BTreeSet<String> = self
            .there
            .labels
            .union(&listed)
            .filter(|label| !expired.contains(label))
            .cloned()
            .collect();
        let needed = self.needed_wal(&kept);
        if let Some((_, number)) = &needed {
            self.shared.change(|state| state.expire_tail(*number));
        }
        let wal = needed.map(|(needed, _)| self.expired_wal(&needed)).unwrap_or_default();
        let stale: Vec<String> = self
            .there
            .descriptions
            .keys()
            .chain(&self.there.tars)
            .filter(|path| {
                let label = path.rsplit('/').next().and_then(|file| file.split('.').next());
                label.is_some_and(|label| !kept.contains(label) && !here.contains(label))
            })
            .cloned()
            .collect();
        let mut left = (expired.len() + wal.len() + stale.len()) as u64;
        if left == 0 {
            if self.shared.lock().undeleted.contains_key("backups") {
                self.shared.change(|state| drop(state.undeleted.remove("backups")));
            }
            self.deletions_due = false;
            return;
        }
        let mut problem = still_ours(self.shared, self.remote).err();
        for label in expired {
            if problem.is_some() {
                break;
            }
            let directory = format!("{}/{label}", self.backups_there());
            // Without its manifest nobody takes the rest for a backup.
            let deleted = self
                .remote
                .delete(&format!("{directory}/backup.manifest"))
                .and_then(|()| self.remote.purge(&directory));
            match deleted {
                Ok(()) => {
                    self.there.labels.remove(&label);
                    self.there.complete.remove(&label);
                    left -= 1;
                }
                Err(refusal) => {
                    problem = Some(failure("expired backups cannot be deleted", &refusal));
                }
            }
        }
        for path in stale {
            if problem.is_some() {
                break;
            }
            match self.remote.delete(&path) {
                Ok(()) => {
                    self.there.descriptions.remove(&path);
                    self.there.tars.remove(&path);
                    left -= 1;
                }
                Err(refusal) => {
                    problem = Some(failure("descriptions cannot be deleted", &refusal));
                }
            }
        }
        for (directory, names) in group(&wal) {
            if problem.is_some() {
                break;
            }
            match self.delete_wal(&directory, &names) {
                Ok(()) => left -= names.len() as u64,
                Err(refusal) => problem = Some(refusal),
            }
        }
        self.delete_again = problem.as_ref().map(|_| Instant::now() + DELETE_AGAIN);
        self.shared.change(|state| drop(state.undeleted.insert("backups", (left, problem))));
    }

    /// The WAL that these backups need, and the number of the first segment of this very cluster among
    /// it. Where either is not known, nothing of the WAL is deleted.
    fn needed_wal(&self, kept: &BTreeSet<String>) -> Option<(NeededWal, u64)> {
        let size = self.shared.plan.segment_size;
        let inventory = self.shared.read_inventory()?;
        let all = &inventory.repository.as_ref().ok()?.info.backups;
        let all: BTreeMap<&str, &Backup> = all.iter().map(|it| (it.label.as_str(), it)).collect();
        let needed = NeededWal::of(kept.iter().map(|label| all.get(label.as_str()).copied()))?;
        let ours = inventory
            .backups_of(self.shared.plan.system_id)
            .filter(|backup| kept.contains(&backup.label));
        let starts = ours.map(|it| Segment::parse(it.archive_start.as_deref()?, size));
        let starts: Option<Vec<Segment>> = starts.collect();
        Some((needed, starts?.iter().map(|segment| segment.number).min()?))
    }

    /// Segments on the remote that are gone here, and that no backup needs.
    fn expired_wal(&self, needed: &NeededWal) -> Vec<(String, String)> {
        let root = self.shared.repository.join("archive").join(self.stanza());
        let there = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let mut expired = Vec::new();
        for (directory, names) in there.iter() {
            let Some((id, _)) = directory.split_once('/') else { continue };
            for name in names {
                if needed.may_go(id, name) && !root.join(directory).join(name).exists() {
                    expired.push((directory.clone(), name.clone()));
                }
            }
        }
        expired
    }

    /// Deletes the places of other lives that the retention lets go: see [`expiry::place_may_go`].
    fn delete_superseded(&mut self) -> Result<(), Failure> {
        if !self.superseded_due {
            return Ok(());
        }
        // Nothing goes unless a restore of this life works.
        let is_restorable = {
            let status = &self.shared.lock().status;
            !status.backups.is_empty() && status.unrestorable.is_none() && status.shipped.is_some()
        };
        let Some(listed) = self.mirrored.as_ref().map(Info::labels) else { return Ok(()) };
        if !is_restorable || !self.lost.is_empty() {
            return Ok(());
        }
        let listed = listed.unwrap_or_else(|| self.there.complete.clone());
        let proved: Vec<expiry::Held> = self
            .there
            .complete
            .intersection(&listed)
            .filter_map(|label| self.facts.get(label))
            .cloned()
            .collect();
        let places = self.expired_places(&proved)?;
        self.superseded_due = false;
        self.undeleted("superseded", self.delete_places(&places));
        Ok(())
    }

    /// The places of other lives that the retention lets go.
    fn expired_places(&self, proved: &[expiry::Held]) -> Result<Vec<String>, Failure> {
        let retentions = repository::retentions(&self.shared.plan);
        let may_go = |newest: DateTime<Utc>| {
            retentions.iter().any(|it| expiry::place_may_go(newest, proved, *it, Utc::now()))
        };
        let mut expired = Vec::new();
        for name in self.directories(SUPERSEDED)? {
            let Some(made) = expiry::moment_of(&name).filter(|made| may_go(*made)) else {
                continue;
            };
            let place = format!("{SUPERSEDED}/{name}");
            let mut newest = made;
            let backups = format!("{place}/repository/backup");
            for stanza in self.directories(&backups)? {
                let labels = self.directories(&format!("{backups}/{stanza}"))?;
                newest = labels
                    .iter()
                    .filter_map(|it| expiry::moment_of_label(it))
                    .fold(newest, DateTime::max);
            }
            if may_go(newest) {
                expired.push(place);
            }
        }
        Ok(expired)
    }

    fn directories(&self, directory: &str) -> Result<Vec<String>, Failure> {
        let listed = self.remote.directories(directory);
        listed.map_err(|it| failure("the remote cannot be listed", &it))
    }

    /// Deletes places of other lives. Returns how many are left, and why.
    fn delete_places(&self, places: &[String]) -> (u64, Option<Failure>) {
        let mut left = places.len() as u64;
        for place in places {
            let deleted = still_ours(self.shared, self.remote).and_then(|()| {
                let what = "what another life of the cluster has left cannot be deleted";
                self.remote.purge(place).map_err(|refusal| failure(what, &refusal))
            });
            if let Err(problem) = deleted {
                return (left, Some(problem));
            }
            eprintln!("mirror: deleted \"{place}\", which the retention lets go");
            left -= 1;
        }
        (left, None)
    }

    /// The places of other lives, with their sizes.
    fn superseded(&self) -> Result<Vec<Superseded>, Failure> {
        let sized = self.directories(SUPERSEDED)?.into_iter().take(SHOWN).map(|name| {
            let path = format!("{SUPERSEDED}/{name}");
            let size = self.remote.size_of_directory(&path);
            let (files, bytes) = size.map_err(|it| failure("the remote cannot be listed", &it))?;
            Ok(Superseded { path, files, bytes })
        });
        sized.collect()
    }

    fn delete_wal(&self, directory: &str, names: &[String]) -> Result<(), Failure> {
        let size = self.shared.plan.segment_size;
        let base = format!("repository/archive/{}/{directory}", self.stanza());
        let (all, is_newest) = {
            let there = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
            let id = |directory: &str| directory.split('/').next().map(str::to_string);
            let ids: BTreeSet<String> = there.keys().filter_map(|it| id(it)).collect();
            let all = there.get(directory).is_some_and(|known| known.len() == names.len());
            (all, newest_id(ids.iter()) == id(directory))
        };
        let gone = || {
            let mut there = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = there.get_mut(directory) {
                for name in names {
                    known.remove(name);
                }
                if known.is_empty() {
                    there.remove(directory);
                }
            }
            // A segment of a former database may have the name of one of this one.
            if is_newest {
                self.shared.change(|state| {
                    for segment in names.iter().filter_map(|name| segment_of(name, size)) {
                        state.coverage.forget_archived(segment);
                    }
                });
            }
        };
        let deleted = if all {
            self.remote.purge(&base)
        } else {
            names.iter().try_for_each(|name| self.remote.delete(&format!("{base}/{name}")))
        };
        deleted.map_err(|refusal| failure("expired WAL cannot be deleted", &refusal))?;
        gone();
        Ok(())
    }

    /// Begins to compare everything, and to repair what is damaged if the request says so.
    fn compare(&self, shared: &Arc<Shared>, remote: &Arc<Remote>, request: &Path) -> Comparing {
        let asked = fs::read(request).unwrap_or_default();
        let order = compare::Order {
            is_repair: asked == layout::REPAIR.as_bytes(),
            unfinished: self.unfinished(),
            lost: self.lost.clone(),
            damaged_here: self
                .damage
                .iter()
                .filter(|(_, side)| **side == Side::Here)
                .map(|(path, _)| path.clone())
                .collect(),
        };
        let (shared, remote) = (Arc::clone(shared), Arc::clone(remote));
        Comparing {
            before: Before {
                labels: self.there.labels.clone(),
                archive: self.archive.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            },
            asked,
            thread: thread::spawn(move || compare::run(&shared, &remote, &order)),
        }
    }

    /// Has what is missing sent again, and says what a comparison found.
    fn conclude(&mut self, comparing: Comparing) {
        let Comparing { thread, before, asked } = comparing;
        let Ok(mut found) = thread.join() else { return };
        let stanza = self.stanza().to_string();
        found.missing.retain(|path| before.knew(&stanza, path));
        found.different.retain(|path, _| before.knew(&stanza, path));
        let mut comparison = Comparison {
            at: Utc::now(),
            same: found.same,
            failure: found.failure,
            is_repair: asked == layout::REPAIR.as_bytes(),
            healed: found.healed.into_iter().collect(),
            repaired: found.sent.into_iter().collect(),
            ..Comparison::default()
        };
        // First: what is sent again below takes the info files along.
        let (shared, pauses) = (self.shared, compare::PAUSES.as_slice());
        if let Err(problem) = persistently(shared, pauses, || self.compare_info(&mut comparison)) {
            comparison.failure.get_or_insert(problem);
        }
        for path in found.missing {
            if self.send_again(&path) {
                comparison.repaired.push(path);
            }
        }
        // What the manifests say, of both sides as they are now.
        self.there.held = None;
        self.listed_at = None;
        let pauses = if comparison.failure.is_none() { pauses } else { &[] };
        if let Err(problem) = persistently(shared, pauses, || self.list_if_due()) {
            comparison.failure.get_or_insert(problem);
        }
        let mut different = found.different;
        for (path, side) in &self.damage {
            different.entry(path.clone()).or_insert(*side);
        }
        for (path, side) in different {
            eprintln!("comparison: \"{path}\" is {}", side.words());
            match side {
                Side::Here => comparison.damaged_here.push(path.clone()),
                Side::There => comparison.damaged_there.push(path.clone()),
                Side::Both | Side::Unknown => {}
            }
            comparison.different.push(path);
        }
        for path in &comparison.repaired.named {
            eprintln!("comparison: \"{path}\" was missing on the remote and is sent again");
        }
        for path in &comparison.healed.named {
            eprintln!("comparison: \"{path}\" was damaged here and is the remote's now");
        }
        if comparison.healed.count > 0 {
            // Anew, from what is here now.
            self.mirrored = None;
            self.seen = None;
        }
        let lost_still: BTreeSet<String> = self
            .lost
            .iter()
            .filter(|label| !has_manifest(&self.backups_here().join(label)))
            .cloned()
            .collect();
        if !lost_still.is_empty() {
            comparison.failure.get_or_insert(self.lost_words(&lost_still));
        }
        let pauses = if comparison.failure.is_none() { pauses } else { &[] };
        match persistently(shared, pauses, || self.superseded()) {
            Ok(places) => comparison.superseded = places,
            Err(problem) => drop(comparison.failure.get_or_insert(problem)),
        }
        self.shared.change(|state| state.status.comparison = Some(comparison));
    }

    /// Compares the info files, without which nothing else there is of use. They are compared with
    /// what was sent and not with what is here, which changes while this runs; nobody else writes
    /// them, so that one that differs is damaged there.
    fn compare_info(&mut self, comparison: &mut Comparison) -> Result<(), Failure> {
        let Some(info) = self.mirrored.clone() else { return Ok(()) };
        let (mut same, mut repaired) = (0, Vec::new());
        for (directory, content) in [("archive", &info.archive), ("backup", &info.backup)] {
            for suffix in ["", ".copy"] {
                let path = format!("{directory}/{}/{directory}.info{suffix}", self.stanza());
                let there = self.remote.get(&format!("repository/{path}"));
                match there.map_err(|it| failure("the remote cannot be read", &it))? {
                    Some(there) if there == *content => same += 1,
                    _ => repaired.push(path),
                }
            }
        }
        comparison.same += same;
        if !repaired.is_empty() {
            self.mirrored = None;
        }
        for path in repaired {
            comparison.repaired.push(path);
        }
        Ok(())
    }

    /// Backups that have no manifest yet.
    fn unfinished(&self) -> Vec<String> {
        let names = names(&self.backups_here()).unwrap_or_default();
        let labels = names.into_iter().filter(|name| valid_label(name));
        labels.filter(|label| !has_manifest(&self.backups_here().join(label))).collect()
    }

    /// Forgets that a file is on the remote, so that it is sent. `false` if it was not thought to
    /// be there: then it is new, and on its way.
    fn send_again(&mut self, path: &str) -> bool {
        let archive = format!("archive/{}/", self.stanza());
        let backup = format!("backup/{}/", self.stanza());
        if let Some((directory, name)) =
            path.strip_prefix(&archive).and_then(|rest| rest.rsplit_once('/'))
        {
            let mut there = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
            let known = there.get_mut(directory).is_some_and(|known| known.remove(name));
            drop(there);
            if known {
                self.shared.change(|state| {
                    if let Some(segment) = segment_of(name, self.shared.plan.segment_size) {
                        state.coverage.forget_archived(segment);
                    }
                    state.look_at_all = true;
                    state.pass_wanted = true;
                });
            }
            return known;
        }
        let label = path.strip_prefix(&backup).and_then(|rest| rest.split('/').next());
        let known = label.is_some_and(|label| self.there.complete.remove(label));
        if known {
            self.mirrored = None;
            // It may be what others are built on.
            self.shared.change(|state| state.status.backups.clear());
        }
        known
            || label.is_some_and(|label| {
                self.there.labels.contains(label) && !self.there.complete.contains(label)
            })
    }
}

/// Refuses to write a tail beside a repository that pgBackRest encrypts: the newest WAL would be in
/// clear there.
pub(crate) fn refuse_the_tail(shared: &Shared, remote: &Remote, info: Option<&Info>) {
    let encrypted = match info {
        Some(info) => info.is_encrypted(),
        // Before there is anything, the operator's configuration tells what there will be.
        None => repository::will_be_encrypted(&shared.plan),
    };
    let refused = (encrypted && !remote.is_encrypted).then(|| Failure {
        message: "the repository is encrypted, but the WAL tail beside it would not be: only \
                  finished segments are shipped"
            .to_string(),
        hint: "Wrap the remote in one of rclone's type crypt and set nrt_backup.remote_name to \
               that."
            .to_string(),
    });
    if shared.lock().status.tail_refused != refused {
        shared.change(|state| state.status.tail_refused = refused);
    }
}

/// The backup is expired while it is mirrored: the next round starts from a newer copy.
fn again(label: &str) -> Failure {
    Failure {
        message: format!("{label} was expired while it was mirrored; it is done again"),
        hint: "It goes away by itself.".to_string(),
    }
}

fn stopped() -> Failure {
    Failure { message: "stopped".to_string(), hint: String::new() }
}

/// Whether a file of the archive has its content's hash in its name.
fn is_a_segment(name: &str) -> bool {
    StoredName::parse(name).is_some()
}

fn group(files: &[(String, String)]) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (directory, name) in files {
        groups.entry(directory.clone()).or_default().push(name.clone());
    }
    groups
}

/// Backups that the repository has lost.
fn lost(labels: &BTreeSet<String>, config: &str, place: &str) -> Failure {
    let shown = labels.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let first = labels.first().map_or("", String::as_str);
    Failure {
        message: format!(
            "{} backup(s) are missing in the repository although the retention keeps them \
             ({shown}): they stay on the remote, with the list of backups there; WAL is still \
             shipped",
            labels.len()
        ),
        hint: format!(
            "Run \"nrt-backup check --repair\", which brings them back from the remote. To give one \
             up, delete it there: rclone --config \"{config}\" purge \"{place}/{first}\"."
        ),
    }
}

/// Files of finished backups that are damaged.
fn damaged(damage: &BTreeMap<String, Side>) -> Failure {
    let has = |side: Side| damage.values().any(|it| *it == side);
    let shown = damage.iter().take(3).map(|(path, side)| format!("\"{path}\" is {}", side.words()));
    let shown = shown.collect::<Vec<_>>().join("; ");
    let hint = if has(Side::Here) || has(Side::There) {
        "Run \"nrt-backup check --repair\", which replaces what is damaged by what is whole."
    } else if has(Side::Both) {
        "Take a new full backup with SELECT nrt_backup_now('full')."
    } else {
        "Run \"nrt-backup check --repair\"; where that cannot tell, \"pgbackrest verify\" says whether \
         the repository is sound."
    };
    Failure {
        message: format!("{} file(s) of finished backups are damaged: {shown}", damage.len()),
        hint: hint.to_string(),
    }
}

/// A path as a filter rule of rclone's that means nothing else.
pub(crate) fn literally(path: &str) -> String {
    let mut rule = String::new();
    for letter in path.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            rule.push('\\');
        }
        rule.push(letter);
    }
    rule
}

/// Lists the files of all backups on the remote.
pub(crate) fn list_backups(shared: &Shared, remote: &Remote) -> Result<Held, Failure> {
    let listed = remote.list(&format!("repository/backup/{}", shared.plan.stanza));
    let mut held = Held::new();
    for entry in listed.map_err(|it| failure("the remote cannot be listed", &it))? {
        if let Some((label, path)) = entry.path.split_once('/')
            && valid_label(label)
            && let Ok(bytes) = u64::try_from(entry.size)
        {
            held.entry(label.to_string()).or_default().insert(path.to_string(), bytes);
        }
    }
    Ok(held)
}

/// The kind of a backup, by the last letter of its label.
fn kind_of(label: &str) -> BackupType {
    match label.chars().last() {
        Some('D') => BackupType::Diff,
        Some('I') => BackupType::Incr,
        _ => BackupType::Full,
    }
}

/// What a `backup.info` says of the backups that it lists; nothing, if it is encrypted.
fn facts_in(info: &[u8]) -> BTreeMap<String, expiry::Held> {
    let listed = parse_backup_info(&String::from_utf8_lossy(info)).into_iter().map(|it| {
        let needs = it.references.into_iter().chain(it.prior).collect();
        let kind = it.kind.unwrap_or_else(|| kind_of(&it.label));
        let held = expiry::Held { label: it.label.clone(), kind, needs, stop_time: it.stop_time };
        (it.label, held)
    });
    listed.collect()
}

fn facts_of(backup: &Backup) -> expiry::Held {
    expiry::Held {
        label: backup.label.clone(),
        kind: backup.kind,
        needs: backup.references.iter().chain(&backup.prior).cloned().collect(),
        stop_time: Some(backup.stop_time),
    }
}

fn description_path(backup: &Backup) -> String {
    description_file(backup.kind, &backup.label)
}

fn description_file(kind: BackupType, label: &str) -> String {
    let directory = match kind {
        BackupType::Full => DESCRIPTIONS[0],
        BackupType::Diff => DESCRIPTIONS[1],
        BackupType::Incr => DESCRIPTIONS[2],
    };
    format!("{directory}/{label}.json")
}

fn description(
    backup: &Backup,
    system_id: u64,
    inventory: &Inventory,
    next_xid: Option<u64>,
) -> String {
    let mut description = json!({
        "label": backup.label,
        "type": backup.kind,
        "trigger": backup.annotations.get(TRIGGER_ANNOTATION).map_or("external", String::as_str),
        "prior": backup.prior,
        "references": backup.references,
        "start_time": backup.start_time,
        "stop_time": backup.stop_time,
        "start_lsn": backup.start_lsn,
        "stop_lsn": backup.stop_lsn,
        "timeline": backup.timeline,
        "archive_start": backup.archive_start,
        "archive_stop": backup.archive_stop,
        "size": backup.size,
        "delta": backup.delta,
        "repository_size": backup.repo_size,
        "repository_delta": backup.repo_delta,
        "page_errors": backup.error,
        "system_identifier": system_id.to_string(),
        "stanza": inventory.stanza,
        "pgbackrest": backup.pgbackrest,
        "nrt_backup": env!("CARGO_PKG_VERSION"),
    });
    if let Some(next_xid) = next_xid {
        description["next_xid"] = json!(next_xid);
    }
    format!("{description:#}\n")
}

/// Labels that the repository has held, kept across restarts, for repositories that keep no
/// history of expired backups.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Which repository that was: the inode of the backups' directory and when that was made. A
    /// new one in its place is another.
    directory: Option<(u64, SystemTime)>,
    labels: BTreeSet<String>,
}

impl Known {
    /// The file's name in the state directory.
    const FILE: &'static str = "labels.json";
    /// Older ones are forgotten.
    const MOST: usize = 10_000;

    /// What is known of the repository whose backups are in a directory.
    fn read(state: &Path, backups: &Path) -> Known {
        let directory = identity(backups);
        let text = fs::read(state.join(Self::FILE)).unwrap_or_default();
        let known: Known = serde_json::from_slice(&text).unwrap_or_default();
        let same = directory.is_some() && known.directory == directory;
        if same { known } else { Known { directory, labels: BTreeSet::new() } }
    }

    /// Takes in labels that it holds now.
    fn add(&mut self, state: &Path, labels: &BTreeSet<String>) {
        let before = self.labels.len();
        self.labels.extend(labels.iter().cloned());
        while self.labels.len() > Self::MOST {
            self.labels.pop_first();
        }
        let file = state.join(Self::FILE);
        if self.labels.len() != before
            && let Ok(text) = serde_json::to_vec(&self)
            && let Err(error) = write_atomically(&file, &text)
        {
            eprintln!("could not write \"{}\": {error}", file.display());
        }
    }
}

/// What tells a directory from another one that takes its place.
fn identity(directory: &Path) -> Option<(u64, SystemTime)> {
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.ino(), metadata.created().ok()?))
}
