//! Judges whether it was tried to restore.

use chrono::TimeDelta;

use super::{Check, Findings, check, critical, is_future, moment, ok, warning};
use crate::health::Severity;

/// How long a run of the schedule may be due without having started.
const OVERDUE: TimeDelta = TimeDelta::hours(1);
/// What is said where it never was, and nobody wants it.
pub(super) const UNTRIED: &str = "no restore has been tried yet";
/// How to have a restore tried.
const TRY: &str =
    "SELECT nrt_drill_now() tries one now, nrt_backup.drill_schedule has them tried regularly.";

/// Whether the last drill that came to an end succeeded, and is not too long ago.
pub(super) fn drill(findings: &Findings<'_>) -> Check {
    let name = "drill";
    let drills = findings.drills;
    let conclusive = drills.conclusive().and_then(|drill| drill.outcome.as_ref());
    if let Some(outcome) = conclusive.filter(|it| !it.succeeded()) {
        let hint = outcome.failure.as_ref().map_or("", |failure| &failure.hint);
        let hint = if hint.is_empty() { "See nrt.drills." } else { hint };
        let (at, words) = (moment(outcome.ended), outcome.summary());
        return critical(name, format!("the drill that ended at {at} failed: {words}"), hint);
    }
    let limit = TimeDelta::seconds(findings.settings.max_drill_age);
    if let Some(outcome) = conclusive.filter(|it| is_future(findings.now, it.ended)) {
        let message = format!(
            "the last drill that succeeded ended at {}, which is in the future: its age is not known",
            moment(outcome.ended)
        );
        return warning(name, message, TRY);
    }
    if let Some(outcome) = conclusive
        && limit > TimeDelta::zero()
        && findings.now - outcome.ended > limit
    {
        let message = format!(
            "the last drill that succeeded ended at {}: longer ago than nrt_backup.max_drill_age",
            moment(outcome.ended)
        );
        return warning(name, message, TRY);
    }
    let interrupted = drills.last().filter(|drill| drill.interrupted);
    if let Some(outcome) = interrupted.and_then(|drill| drill.outcome.as_ref()) {
        let hint = outcome.failure.as_ref().map_or(TRY, |failure| &failure.hint);
        let (at, words) = (moment(outcome.ended), outcome.summary());
        return warning(
            name,
            format!("the drill that ended at {at} proved nothing: {words}"),
            hint,
        );
    }
    if let Some(remote) = unprotected_remote(findings) {
        return warning(
            name,
            format!(
                "drills are scheduled from {remote}, which is not encrypted: whoever can write there \
                 can have this machine run code at the next drill"
            ),
            "Use a remote of rclone's type crypt, or encrypt the repository with pgBackRest's \
             repo1-cipher-type. Otherwise set nrt_backup.drill_schedule to off, and have drills run \
             on another machine with nrt-backup restore.",
        );
    }
    match conclusive {
        Some(outcome) => {
            ok(name, format!("{}, as tried at {}", outcome.summary(), moment(outcome.ended)))
        }
        None => untried(findings),
    }
}

/// The remote that scheduled drills restore from, if anybody who can write to it could have written
/// the backups.
fn unprotected_remote<'f>(findings: &'f Findings<'_>) -> Option<&'f str> {
    findings.drills.next_run(findings.settings)?;
    let status = findings.shipping.status.as_ref()?;
    (status.is_encrypted == Some(false)).then_some(status.remote.as_str())
}

/// What is said where there has never been one.
fn untried(findings: &Findings<'_>) -> Check {
    let name = "drill";
    if findings.drills.running().is_some() {
        return ok(name, "the first restore is being tried");
    }
    match findings.drills.next_run(findings.settings) {
        // Who wants it so is not to be nagged, but may not know.
        None => check(name, Severity::Ok, UNTRIED, TRY),
        Some(run) if findings.now - run > OVERDUE => warning(
            name,
            format!("{UNTRIED}, although one was due at {}", moment(run)),
            "Drills wait while backups are paused: see nrt.status. SELECT nrt_drill_now() tries \
             one now.",
        ),
        Some(run) => ok(name, format!("{UNTRIED}; the first is due at {}", moment(run))),
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::super::Severity::{Critical, Warning};
    use super::super::Shipping;
    use super::super::tests::{expect, found};
    use super::*;
    use crate::crontab::Crontab;
    use crate::inventory::Failure;
    use crate::kind::Trigger;
    use crate::machine::tests::world::{World, at};
    use crate::offsite::Status;
    use crate::restore::drill::supervisor::{Event, Memory, Present, Supervisor};
    use crate::restore::drill::tests::{failure, success};
    use crate::restore::drill::{Drill, Outcome};

    const HOUR: TimeDelta = TimeDelta::hours(1);

    /// A drill that ended at the time with this result.
    fn drill(number: u64, ended: DateTime<Utc>, failed: Option<Failure>, cut_off: bool) -> Drill {
        let failed = failed.map(|it| Outcome::failed(ended, ended, String::new(), it));
        let outcome = failed.unwrap_or_else(|| Outcome { ended, ..success(ended) });
        Drill {
            number,
            trigger: Trigger::Manual,
            started: ended,
            directory: "/scratch".to_string(),
            outcome: Some(outcome),
            interrupted: cut_off,
        }
    }

    #[track_caller]
    fn judge(w: &World, drills: &Supervisor, expected: &[(&str, Severity, &str)]) -> Check {
        let findings = Findings { drills, ..found(w) };
        expect(&findings, expected);
        super::drill(&findings)
    }

    #[test]
    fn what_the_last_drills_came_to() {
        let noon = at("2026-03-10T12:00:00");
        let old = noon - TimeDelta::seconds(3_024_000);
        let older = old - TimeDelta::seconds(1);
        let torn = || Some(failure("000000010000000000000007 is torn"));
        let cut_off = || Some(failure("the server ended"));
        type Case<'a> = (Vec<Drill>, &'a [(&'a str, Severity, &'a str)]);
        let too_old = &[("drill", Warning, "2026-02-03 11:59:59 UTC: longer ago than")];
        let cases: [Case<'_>; 8] = [
            (vec![drill(1, noon, None, false)], &[]),
            (
                vec![drill(1, old, None, false), drill(2, noon, torn(), false)],
                &[("drill", Critical, "at 2026-03-10 12:00:00 UTC failed: 00000001")],
            ),
            (vec![drill(1, old, torn(), false), drill(2, noon, None, false)], &[]),
            (vec![drill(1, old, None, false)], &[]),
            (vec![drill(1, older, None, false)], too_old),
            (
                vec![drill(1, noon, cut_off(), true)],
                &[("drill", Warning, "proved nothing: the server ended")],
            ),
            (vec![drill(1, older, None, false), drill(2, noon, cut_off(), true)], too_old),
            // What failed before that has not been mended by it.
            (
                vec![drill(1, older, torn(), false), drill(2, noon, cut_off(), true)],
                &[("drill", Critical, "at 2026-02-03 11:59:59 UTC failed")],
            ),
        ];
        let mut w = World::protected();
        w.now = noon;
        w.settings.max_backup_age = 0;
        for (journal, expected) in cases {
            let (drills, _) = Supervisor::new(Memory::default(), journal, w.now);
            judge(&w, &drills, expected);
        }
        let journal = vec![drill(1, older, None, false)];
        let (drills, _) = Supervisor::new(Memory::default(), journal, w.now);
        w.settings.max_drill_age = 0;
        let check = judge(&w, &drills, &[]);
        assert!(check.message.starts_with("restored to 0/5000148 on timeline 2"), "{check:?}");
    }

    #[test]
    fn where_none_has_been_tried() {
        let mut w = World::protected();
        w.settings.max_backup_age = 0;
        let (mut drills, _) = Supervisor::new(Memory::default(), Vec::new(), w.now);
        let check = judge(&w, &drills, &[]);
        assert_eq!(check.message, UNTRIED);
        assert!(check.hint.contains("nrt_drill_now()"), "{check:?}");

        w.settings.drill_schedule = Crontab::parse("0 4 * * sun").ok();
        let step = |drills: &mut Supervisor, w: &World, event, paused| {
            let (now, settings) = (w.now, &w.settings);
            drills.step(event, &Present { now, settings, paused, state: "/state" })
        };
        step(&mut drills, &w, Event::Tick, false);
        let check = judge(&w, &drills, &[]);
        assert!(
            check.message.ends_with("the first is due at 2026-03-15 04:00:00 UTC"),
            "{check:?}"
        );
        // Who can write to the remote has no part in this machine where it is encrypted.
        for (is_encrypted, words) in
            [(Some(false), "whoever can write there"), (Some(true), "is due"), (None, "is due")]
        {
            let remote = "s3:bucket/main".to_string();
            let status = Status { remote, is_encrypted, ..Status::default() };
            let shipping = Shipping { status: Some(status), ..Shipping::default() };
            let check = super::drill(&Findings { shipping, drills: &drills, ..found(&w) });
            assert!(check.message.contains(words), "{check:?}");
            assert_eq!(check.severity == Warning, is_encrypted == Some(false), "{check:?}");
        }
        w.now = at("2026-03-15T04:00:00") + HOUR;
        step(&mut drills, &w, Event::Tick, true);
        judge(&w, &drills, &[]);
        w.now += TimeDelta::seconds(1);
        judge(&w, &drills, &[("drill", Warning, "although one was due at 2026-03-15 04:00:00")]);
        step(&mut drills, &w, Event::Asked, true);
        let check = judge(&w, &drills, &[]);
        assert_eq!(check.message, "the first restore is being tried");
    }
}
