//! Judges what is off-site.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Check, Findings, critical, moment, ok, warning};
use crate::inventory::Failure;
use crate::offsite::{Comparison, FileList, Phase, Position, Status, Unrestorable};

/// How shipping goes, as the worker sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shipping {
    /// The process.
    pub process: Process,
    /// What it has told since it started.
    pub status: Option<Status>,
    /// How far the server's WAL is on disk.
    pub flushed: Option<Position>,
}

/// The process `nrt-backup ship`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Process {
    /// No remote is configured.
    #[default]
    Off,
    /// What configures the remote cannot be used.
    Unusable(Failure),
    /// Somebody has paused shipping.
    Paused,
    /// It has ended by itself, with these last words; it is started again and again.
    Ended(String),
    /// It runs.
    Running {
        /// Since when.
        since: DateTime<Utc>,
    },
}

/// How long shipping may take to find out what the remote holds.
const STARTING: TimeDelta = TimeDelta::minutes(1);
/// How long a promotion, or a backup that is being replaced, may leave nothing to be restored.
pub const UNRESTORABLE: TimeDelta = TimeDelta::seconds(30);
/// How long the worker may report nothing.
pub const SILENT: TimeDelta = TimeDelta::seconds(10);
/// How long a backup may take to get off-site.
const MIRRORED_WITHIN: TimeDelta = TimeDelta::hours(1);
/// How many files a message names.
const NAMED: usize = 3;
/// What to do where the other check says it.
const SEE_REMOTE: &str = "not known: see the check \"remote\"";
/// What is said where nothing is to be shipped.
const NO_REMOTE: &str = "no remote is configured";
/// What is said where somebody has paused shipping.
const PAUSED: &str = "shipping is paused: nothing new goes off-site";

/// Whether the check says that nothing is to be shipped.
pub fn is_off(remote: &Check) -> bool {
    remote.message.starts_with(NO_REMOTE)
}

/// Whether the check says that somebody has paused shipping.
pub fn is_paused(remote: &Check) -> bool {
    remote.message == PAUSED
}

/// Whether the remote takes what is shipped.
pub(super) fn remote(findings: &Findings<'_>) -> Check {
    let name = "remote";
    let shipping = &findings.shipping;
    let since = match &shipping.process {
        Process::Off => {
            // Who wants it so is not to be nagged.
            return ok(
                name,
                format!(
                    "{NO_REMOTE}: backups are only on this machine until nrt_backup.rclone_config \
                     names one"
                ),
            );
        }
        Process::Unusable(failure) => return critical(name, &*failure.message, &failure.hint),
        Process::Paused => {
            return warning(name, PAUSED, "SELECT nrt_resume('shipping') lets it go on.");
        }
        Process::Ended(words) => {
            return critical(
                name,
                format!("shipping does not run: {words}"),
                "Mend what it says; it is started again by itself, and at once by \
                 SELECT nrt_check(). The server's log has each end.",
            );
        }
        Process::Running { since } => *since,
    };
    let words = |status: &Status| match &status.failure {
        Some(failure) => (failure.message.clone(), failure.hint.clone()),
        None => ("no reason known".to_string(), String::new()),
    };
    match &shipping.status {
        Some(Status { phase: Phase::Shipping, same_disk: Some(failure), .. }) => {
            critical(name, &*failure.message, &failure.hint)
        }
        Some(Status { phase: Phase::Shipping, remote, left_behind: Some(earlier), .. }) => warning(
            name,
            format!(
                "\"{remote}\" takes what is shipped, and \"{earlier}\" holds what an earlier \
                 version has shipped, which dropped the slash at the beginning of the path"
            ),
            "Restore from the old place what is older than the new one reaches. Remove the old place \
             when nobody needs it, or set nrt_backup.remote_path without the slash to go on there.",
        ),
        Some(status) if status.phase == Phase::Shipping => {
            let rclone = status.rclone.as_deref().unwrap_or("unknown");
            ok(name, format!("\"{}\" takes what is shipped, by rclone {rclone}", status.remote))
        }
        Some(status) if status.phase == Phase::Fenced => {
            let (message, hint) = words(status);
            let hint =
                or(&hint, "Only one server may write to a remote; nrt-backup takeover says which.");
            critical(name, format!("\"{}\" is another's: {message}", status.remote), hint)
        }
        Some(status) if status.phase == Phase::Failing => {
            let (message, hint) = words(status);
            let since =
                status.failing_since.map_or(String::new(), |at| format!(" since {}", moment(at)));
            critical(
                name,
                format!("\"{}\" fails{since}: {message}", status.remote),
                or(&hint, "It is tried again by itself."),
            )
        }
        // The clock may have been set back meanwhile.
        _ if (findings.now - since).abs() > STARTING => warning(
            name,
            format!("nothing was heard of the remote since {}", moment(since)),
            "It may be slow or hang; the file log/ship.log in the state directory has more.",
        ),
        _ => ok(name, "being looked at"),
    }
}

fn or<'a>(hint: &'a str, otherwise: &'a str) -> &'a str {
    if hint.is_empty() { otherwise } else { hint }
}

/// What shipping has told, once it knows what the remote holds; or what to say instead.
fn told<'a>(findings: &'a Findings<'_>) -> Result<&'a Status, &'static str> {
    match (&findings.shipping.process, &findings.shipping.status) {
        (Process::Off, _) => Err(NO_REMOTE),
        (Process::Running { .. }, Some(status)) if status.phase != Phase::Starting => Ok(status),
        (Process::Running { .. }, _) => Err("being looked at"),
        _ => Err(SEE_REMOTE),
    }
}

/// Whether the WAL is off-site.
pub(super) fn shipping(findings: &Findings<'_>) -> Check {
    let name = "shipping";
    let status = match told(findings) {
        Ok(status) => status,
        Err(instead) => return ok(name, instead),
    };
    if let Some(Unrestorable { since, message, hint }) = &status.unrestorable
        && (findings.now - *since).abs() > UNRESTORABLE
    {
        return critical(
            name,
            format!("nothing can be restored from the remote: {message}"),
            &format!("Take a backup with SELECT nrt_backup_now('full'). {hint}"),
        );
    }
    if let (Some(shipped), Some(flushed)) = (status.shipped, findings.shipping.flushed)
        && shipped.timeline == flushed.timeline
        && shipped.flushed > flushed.flushed
    {
        return critical(
            name,
            format!(
                "the remote holds WAL up to {} on timeline {}, and this server has written it only \
                 up to {}: it was put back to an earlier state, and what is there is of another \
                 life of it",
                shipped.flushed, shipped.timeline, flushed.flushed
            ),
            "Restore from the remote what is missing here, or run nrt-backup takeover --set-aside \
             to keep it under another name and go on without it.",
        );
    }
    if let Some(check) = silence(status, findings.now) {
        return check;
    }
    let limit = TimeDelta::seconds(findings.settings.max_ship_lag);
    if let Some(since) = status.behind_since
        && limit > TimeDelta::zero()
        // Shipping remembers times anew when the clock was set back. If it does not, the lag is
        // not known.
        && (findings.now - since).abs() > limit
    {
        // Not how far: that changes all the time.
        return critical(
            name,
            format!("WAL is behind off-site since {}", moment(since)),
            "The remote, or the way to it, may be too slow or not there; see the check \"remote\". \
             nrt_backup.max_ship_lag sets when this is reported.",
        );
    }
    if let Some(failure) = &status.tail_refused {
        return warning(
            name,
            &*failure.message,
            or(&failure.hint, "Only finished segments go off-site."),
        );
    }
    if status.backups.is_empty() {
        return warning(
            name,
            "no backup is off-site yet: nothing can be restored from there",
            "The newest one is on its way; see the check \"mirror\".",
        );
    }
    if status.phase != Phase::Shipping {
        return ok(name, SEE_REMOTE);
    }
    ok(name, "WAL goes off-site as it is written")
}

/// The check of shipping, where neither the worker nor the reporter has reported for long. A worker
/// that stands still evaluates no check, so whoever shows them asks this, too.
fn silence(status: &Status, now: DateTime<Utc>) -> Option<Check> {
    let since = status.silent_since.filter(|since| (now - *since).abs() > SILENT)?;
    Some(critical(
        "shipping",
        format!(
            "the worker has not reported how far the WAL is since {}: whether anything was \
             committed since then, and is off-site, is not known",
            moment(since)
        ),
        "Look whether the processes \"nrt_backup worker\" and \"nrt_backup reporter\" are stopped, or \
         wait for a disk that hangs.",
    ))
}

/// Replaces the check of shipping by what `status` says of a worker that stands still.
pub fn heed_silence(checks: &mut [Check], status: &Status, now: DateTime<Utc>) {
    if let Some(check) = silence(status, now)
        && let Some(shown) = checks.iter_mut().find(|it| it.name == check.name)
    {
        *shown = check;
    }
}

/// Whether the remote holds what the repository does.
pub(super) fn mirror(findings: &Findings<'_>) -> Check {
    let name = "mirror";
    let status = match told(findings) {
        Ok(status) => status,
        Err(instead) => return ok(name, instead),
    };
    if let Some(failure) = &status.mirror_failure {
        return critical(
            name,
            &*failure.message,
            or(&failure.hint, "It is tried again by itself."),
        );
    }
    if let Some(comparison) = &status.comparison {
        let Comparison { at, different, failure, .. } = comparison;
        if !different.is_empty() {
            let count = different.count;
            return critical(
                name,
                format!(
                    "{} differ on the remote from the repository, as found at {}: {}{}",
                    if count == 1 { "1 file".to_string() } else { format!("{count} files") },
                    moment(*at),
                    listed(different),
                    sides(comparison)
                ),
                comparison.hint(),
            );
        }
        if let Some(failure) = failure {
            return critical(
                name,
                format!("could not be compared at {}: {}", moment(*at), failure.message),
                or(&failure.hint, "It is tried again on nrt_backup.comparison_schedule."),
            );
        }
    }
    let newest = findings
        .state
        .inventory()
        .and_then(|inventory| inventory.backups_of(findings.system_id).next_back())
        .filter(|backup| !status.backups.contains(&backup.label));
    if let Some(backup) = newest
        && (findings.now - backup.stop_time).abs() > MIRRORED_WITHIN
    {
        return warning(
            name,
            format!(
                "the backup {}, which ended at {}, is not off-site",
                backup.label,
                moment(backup.stop_time)
            ),
            "The remote, or the way to it, may be too slow; see the check \"remote\".",
        );
    }
    if status.deletions_pending > 0 {
        // Not how many: with each segment it is one more.
        let words = status.deletion_failure.as_ref();
        return warning(
            name,
            format!(
                "what should be gone from the remote cannot be deleted: {}",
                words.map_or("no reason known", |failure| &failure.message)
            ),
            or(
                words.map_or("", |failure| &failure.hint),
                "Let the credentials delete. Let no rule of the remote (a lifecycle, an expiration) \
                 delete objects: backups build on older ones, which it would destroy. Where an \
                 object lock forbids it, old objects stay as long as that holds.",
            ),
        );
    }
    if status.phase != Phase::Shipping {
        return ok(name, SEE_REMOTE);
    }
    match &status.comparison {
        Some(Comparison { at, repaired, .. }) if !repaired.is_empty() => ok(
            name,
            format!(
                "what was missing was sent again at {}: {} ({} in all)",
                moment(*at),
                listed(repaired),
                repaired.count
            ),
        ),
        _ => ok(name, "the remote holds what the repository does"),
    }
}

/// Which side of what differs is damaged.
fn sides(comparison: &Comparison) -> String {
    let (here, there) = (comparison.damaged_here.count, comparison.damaged_there.count);
    let side = |count: u64, words: &str| match count {
        0 => String::new(),
        count if count == comparison.different.count => format!("; {words}"),
        count => format!("; {count} of them {words}"),
    };
    format!(
        "{}{}",
        side(here, "damaged in the repository, whole on the remote"),
        side(there, "damaged on the remote, whole in the repository")
    )
}

fn listed(files: &FileList) -> String {
    let named = files.named.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if files.count > NAMED as u64 { format!("{named}, …") } else { named }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{expect, found};
    use super::*;
    use crate::health::Severity::{self, Critical, Warning};
    use crate::kind::BackupType;
    use crate::lsn::Lsn;
    use crate::machine::Event;
    use crate::machine::tests::world::{World, failure};

    /// A world with one backup, and shipping that has it off-site.
    fn shipped(w: &World) -> Shipping {
        Shipping {
            process: Process::Running { since: w.now },
            status: Some(Status {
                remote: "there:x/main".to_string(),
                rclone: Some("1.60.1".to_string()),
                phase: Phase::Shipping,
                backups: w.reality.labels().into_iter().collect(),
                ..Status::default()
            }),
            flushed: None,
        }
    }

    /// Checks what is amiss after a change of what shipping has told.
    #[track_caller]
    fn after(
        w: &World,
        change: impl FnOnce(&mut Shipping, &mut Status),
        expected: &[(&str, Severity, &str)],
    ) {
        let mut shipping = shipped(w);
        let mut status = shipping.status.take().expect("it has told");
        change(&mut shipping, &mut status);
        shipping.status = Some(status);
        expect(&Findings { shipping, ..found(w) }, expected);
    }

    #[test]
    fn all_is_off_site() {
        let w = World::protected();
        after(&w, |_, _| (), &[]);
        after(&w, |_, it| it.behind_since = Some(w.now - TimeDelta::seconds(30)), &[]);
        after(&w, |_, it| it.phase = Phase::Starting, &[]);
        let findings = Findings { shipping: shipped(&w), ..found(&w) };
        assert_eq!(
            remote(&findings).message,
            "\"there:x/main\" takes what is shipped, by rclone 1.60.1"
        );
        assert!(remote(&found(&w)).message.contains("only on this machine"));
    }

    #[test]
    fn what_keeps_the_remote_from_taking_it() {
        let w = World::protected();
        let late = w.now - TimeDelta::seconds(61);
        after(
            &w,
            |it, _| it.process = Process::Unusable(failure("no base64")),
            &[("remote", Critical, "no base64")],
        );
        after(&w, |it, _| it.process = Process::Paused, &[("remote", Warning, "paused")]);
        after(
            &w,
            |it, _| it.process = Process::Ended("no rclone".to_string()),
            &[("remote", Critical, "does not run: no rclone")],
        );
        after(
            &w,
            |it, status| {
                it.process = Process::Running { since: late };
                status.phase = Phase::Starting;
            },
            &[("remote", Warning, "since 2026-03-10 11:59:29 UTC")],
        );
        for (phase, words) in [
            (Phase::Fenced, "\"there:x/main\" is another's: it says so"),
            (Phase::Failing, "\"there:x/main\" fails since 2026-03-10 11:59:29 UTC: it says so"),
        ] {
            after(
                &w,
                |_, it| {
                    it.phase = phase;
                    it.failing_since = Some(late);
                    it.failure = Some(failure("it says so"));
                },
                &[("remote", Critical, words)],
            );
        }
        after(&w, |_, it| it.phase = Phase::Failing, &[("remote", Critical, "no reason known")]);
        after(
            &w,
            |_, it| it.same_disk = Some(failure("no second place")),
            &[("remote", Critical, "no second place")],
        );
        after(
            &w,
            |_, it| it.left_behind = Some("there:old/main".to_string()),
            &[("remote", Warning, "and \"there:old/main\" holds what an earlier version")],
        );
    }

    #[test]
    fn wal_that_is_not_off_site() {
        let mut w = World::protected();
        let since = w.now - TimeDelta::seconds(31);
        let words = "behind off-site since 2026-03-10 11:59:59 UTC";
        let behind = |_: &mut Shipping, it: &mut Status| it.behind_since = Some(since);
        after(&w, behind, &[("shipping", Critical, words)]);
        after(
            &w,
            |_, it| it.tail_refused = Some(failure("the repository is encrypted")),
            &[("shipping", Warning, "the repository is encrypted")],
        );
        w.settings.max_ship_lag = 0;
        after(&w, behind, &[]);
        after(
            &w,
            |_, it| it.backups.clear(),
            &[("shipping", Warning, "no backup is off-site yet")],
        );
    }

    #[test]
    fn what_a_restore_does_not_reach_is_no_protection() {
        let w = World::protected();
        let unrestorable = |seconds| {
            let (since, hint) = (w.now - TimeDelta::seconds(seconds), "Do this.".to_string());
            Some(Unrestorable { since, message: "no backup leads there".to_string(), hint })
        };
        let words = "nothing can be restored from the remote: no backup leads there";
        after(&w, |_, it| it.unrestorable = unrestorable(30), &[]);
        after(&w, |_, it| it.unrestorable = unrestorable(31), &[("shipping", Critical, words)]);
        let at = |timeline, flushed| Some(Position { timeline, flushed: Lsn(flushed) });
        for (shipped, flushed, is_wrong) in [
            (at(1, 0x500_0000), at(1, 0x500_0000), false),
            (at(1, 0x500_0001), at(1, 0x500_0000), true),
            (at(1, 0x500_0001), at(2, 0x500_0000), false),
            (at(1, 0x500_0001), None, false),
        ] {
            let words = "up to 0/5000001 on timeline 1, and this server has written it only";
            let expected = [("shipping", Critical, words)];
            after(
                &w,
                |it, status| (status.shipped, it.flushed) = (shipped, flushed),
                &expected[..usize::from(is_wrong)],
            );
        }
    }

    #[test]
    fn a_worker_that_stands_still_is_not_taken_for_an_idle_server() {
        let w = World::protected();
        let silent = |seconds| Some(w.now - TimeDelta::seconds(seconds));
        after(&w, |_, it| it.silent_since = silent(10), &[]);
        let words = "not reported how far the WAL is since 2026-03-10 12:00:19 UTC";
        after(&w, |_, it| it.silent_since = silent(11), &[("shipping", Critical, words)]);
        let mut shown = vec![ok("remote", "x"), ok("shipping", "WAL goes off-site")];
        let mut status = Status { silent_since: silent(10), ..Status::default() };
        heed_silence(&mut shown, &status, w.now);
        assert_eq!(shown[1].severity, Severity::Ok);
        status.silent_since = silent(60);
        heed_silence(&mut shown, &status, w.now);
        assert_eq!(shown[0].severity, Severity::Ok);
        assert_eq!(shown[1].severity, Critical);
    }

    #[test]
    fn what_the_mirror_lacks() {
        let w = World::protected();
        after(
            &w,
            |_, it| it.mirror_failure = Some(failure("no space")),
            &[("mirror", Critical, "no space")],
        );
        let compared = |change: fn(&mut Comparison)| {
            let mut comparison = Comparison { at: w.now, ..Comparison::default() };
            change(&mut comparison);
            Some(comparison)
        };
        after(
            &w,
            |_, it| {
                it.comparison = compared(|it| {
                    it.different = ["a", "b", "c", "d"].map(String::from).into_iter().collect()
                })
            },
            &[(
                "mirror",
                Critical,
                "4 files differ on the remote from the repository, as found at 2026-03-10 12:00:30 UTC: a, b, c, …",
            )],
        );
        after(
            &w,
            |_, it| it.comparison = compared(|it| it.failure = Some(failure("cut off"))),
            &[("mirror", Critical, "could not be compared at 2026-03-10 12:00:30 UTC: cut off")],
        );
        after(&w, |_, it| it.comparison = compared(|it| it.repaired.push("a".to_string())), &[]);
        after(
            &w,
            |_, it| {
                it.deletions_pending = 7;
                it.deletion_failure = Some(failure("access denied"));
            },
            &[("mirror", Warning, "cannot be deleted: access denied")],
        );
        after(&w, |_, it| it.deletions_pending = 1, &[("mirror", Warning, "no reason known")]);
    }

    #[test]
    fn the_newest_backup_has_an_hour_to_get_there() {
        let mut w = World::protected();
        let first = shipped(&w);
        w.request(BackupType::Full);
        w.settle();
        expect(&Findings { shipping: first.clone(), ..found(&w) }, &[]);
        let later = w.now + TimeDelta::seconds(3601);
        let words = "the backup 20260310-000002F, which ended at 2026-03-10 12:00:30 UTC, is not";
        expect(
            &Findings { shipping: first, now: later, ..found(&w) },
            &[("mirror", Warning, words)],
        );
    }

    #[test]
    fn a_pause_of_backups_is_shown_until_it_ends() {
        let mut w = World::protected();
        w.step(Event::PauseAsked(true));
        expect(&found(&w), &[("backup", Warning, "backups are paused")]);
        w.step(Event::PauseAsked(false));
        expect(&found(&w), &[]);
        let mut w = World::new(crate::machine::tests::world::unscheduled());
        w.step(Event::PauseAsked(true));
        w.settle();
        expect(&found(&w), &[("backup", Critical, "no full backup, and backups are paused")]);
    }
}
