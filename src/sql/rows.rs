//! The rows below the views: files of the state directory and shared memory, read where they are
//! asked for. They work on a standby, too, and need no table.

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use nrt_core::crontab::Crontab;
use nrt_core::health::{self, Severity};
use nrt_core::inventory::Inventory;
use nrt_core::kind::BackupType;
use nrt_core::layout;
use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::{Phase, Status};
use nrt_core::options;
use nrt_core::pgbackrest::progress::{self, Progress};
use nrt_core::recovery;
use nrt_core::settings::Settings;
use pgrx::prelude::*;

use crate::postgres::{self, wal};
use crate::shared::Shipping;
use crate::{settings, shared, state_directory, worker};

/// How much of a job's log is read to tell how far it is, where pgBackRest does not say.
const LOG_READ: u64 = 8 << 20;

/// The checks that can be shown here, which is one where no worker can have evaluated any.
pub(crate) fn check_rows() -> Vec<(String, String, String, Option<String>)> {
    let checks = if !shared::is_there() {
        vec![health::not_loaded()]
    } else if wal::in_recovery() {
        vec![health::standby()]
    } else if shared::look().0.pid == 0 {
        let marker = state_directory::file(layout::RECOVERING);
        match state_directory::is_recovering() {
            true => vec![health::recovering(&marker.to_string_lossy())],
            false if !worker::has_place() => {
                vec![health::no_place_for_worker(&worker::max_worker_processes())]
            }
            false => vec![health::worker_missing()],
        }
    } else {
        let mut checks = state_directory::health();
        if shared::look().1.health_is_old {
            checks.retain(|check| check.name != health::STATE_DIRECTORY);
            checks.push(health::outdated());
        }
        if let Some((_, told)) = told(shared::look().1.shipping) {
            health::heed_silence(&mut checks, &told, Utc::now());
        }
        checks
    };
    let hint = |hint: String| (!hint.is_empty()).then_some(hint);
    let row = |check: health::Check| {
        (check.name, check.severity.as_str().to_string(), check.message, hint(check.hint))
    };
    checks.into_iter().map(row).collect()
}

/// The last segment that the archiver has reported, and when it was archived.
fn last_archived() -> Option<(Segment, DateTime<Utc>)> {
    let (name, at) = postgres::archiver_statistics().archived?;
    Some((Segment::of_archived(&name, wal::segment_size())?, at))
}

/// Up to where WAL is in the repository: as the archiver reports, which forgets in a crash, or as
/// the last look found.
fn archived(inventory: Option<&Inventory>) -> Option<Lsn> {
    let size = wal::segment_size();
    let reported = last_archived().map(|(segment, _)| segment.end(size));
    let listed = inventory
        .and_then(|it| it.archive_of(postgres::system_identifier()).last().map(|range| range.to));
    reported.max(listed)
}

/// How far the running backup is: as its lock tells, and where that tells no bytes, as its output
/// does.
fn progress() -> Option<Progress> {
    let lock = state_directory::lock_texts().iter().find_map(|text| progress::parse_lock(text));
    if lock.is_some_and(|progress| progress.bytes_total.is_some()) {
        return lock;
    }
    let log = state_directory::job_log(LOG_READ);
    log.and_then(|log| progress::parse_detail(&log)).or(lock)
}

/// The settings in force. Where the time zone of schedules is the server's, it is the one that the
/// worker knows: `timezone` may be another one in this session.
fn shown_settings() -> Settings {
    let mut settings = settings::current();
    if shared::is_there() && settings::value_of(&options::TIMEZONE).is_empty() {
        settings.zone = shared::look().1.zone.unwrap_or(settings.zone);
    }
    settings
}

fn moment(at: DateTime<Utc>) -> Option<TimestampWithTimeZone> {
    postgres::timestamp(at)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What is known of the remote.
#[derive(Default)]
struct Remote {
    place: Option<String>,
    /// What shipping does, in one word.
    word: &'static str,
    shipped: Option<Lsn>,
    /// Bytes and seconds that are missing there.
    lag_bytes: Option<i64>,
    lag: Option<f64>,
    backups: Option<i32>,
}

/// What shipping has told since it runs, if it runs.
fn told(shipping: Shipping) -> Option<(SystemTime, Status)> {
    match shipping {
        // What the process before it has left may be about another remote.
        Shipping::Running { stale } => {
            state_directory::ship().filter(|(written, _)| Some(*written) != stale)
        }
        _ => None,
    }
}

/// What is known of the remote: what shipping has told last, or that it tells nothing.
fn remote(worker: i32, shipping: Shipping, flushed: Option<Lsn>) -> Remote {
    let word = match shipping {
        Shipping::Off => "off",
        Shipping::Paused => "paused",
        Shipping::Stopped => "stopped",
        Shipping::Running { .. } if worker == 0 => "stopped",
        Shipping::Running { .. } => Phase::Starting.as_str(),
    };
    let told = match shipping {
        Shipping::Off => None,
        Shipping::Paused | Shipping::Stopped => state_directory::ship(),
        Shipping::Running { .. } => told(shipping),
    };
    // A standby has the file of the server that it was copied from.
    let Some((_, told)) = told.filter(|_| flushed.is_some()) else {
        return Remote { word, ..Remote::default() };
    };
    let shipped = told.shipped.map(|position| position.flushed);
    // More than was written here is of another life of this server.
    let missing =
        flushed.zip(shipped).and_then(|(flushed, shipped)| flushed.0.checked_sub(shipped.0));
    let runs = matches!(shipping, Shipping::Running { .. }) && worker != 0;
    // Where nothing can be restored, nothing is known to be safe.
    let lag = match told.behind_since {
        _ if missing.is_none() => None,
        Some(since) => Some((Utc::now() - since).as_seconds_f64().max(0.0)),
        // Nobody has looked since it stopped.
        None => (runs || missing == Some(0)).then_some(0.0),
    };
    Remote {
        place: Some(told.remote),
        word: if runs { told.phase.as_str() } else { word },
        shipped,
        lag_bytes: missing.map(signed),
        lag,
        backups: i32::try_from(told.backups.len()).ok(),
    }
}

#[pg_schema]
mod nrt {
    use super::*;

    #[pg_extern(parallel_unsafe)]
    fn health_rows() -> TableIterator<
        'static,
        (
            name!(check_name, String),
            name!(severity, String),
            name!(message, String),
            name!(hint, Option<String>),
        ),
    > {
        TableIterator::new(check_rows())
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn status_rows() -> TableIterator<
        'static,
        (
            name!(activity, String),
            name!(worker_pid, Option<i32>),
            name!(job, Option<i64>),
            name!(job_type, Option<String>),
            name!(job_trigger, Option<String>),
            name!(job_started_at, Option<TimestampWithTimeZone>),
            name!(last_backup, Option<String>),
            name!(last_backup_type, Option<String>),
            name!(last_backup_at, Option<TimestampWithTimeZone>),
            name!(last_backup_lsn, Option<String>),
            name!(wal_growth, Option<i64>),
            name!(flushed_lsn, Option<String>),
            name!(archived_lsn, Option<String>),
            name!(paused, Option<String>),
            name!(remote, Option<String>),
            name!(shipping, String),
            name!(shipped_lsn, Option<String>),
            name!(ship_lag_bytes, Option<i64>),
            name!(ship_lag, Option<f64>),
            name!(offsite_backups, Option<i32>),
            name!(drilling, bool),
        ),
    > {
        let (worker, present) =
            if shared::is_there() { shared::look() } else { Default::default() };
        let activity = if !shared::is_there() {
            "not loaded"
        } else if wal::in_recovery() {
            "standby"
        } else if worker.pid == 0 {
            "stopped"
        } else {
            present.activity.as_str()
        };
        let inventory = state_directory::inventory();
        let last = inventory
            .as_ref()
            .and_then(|it| it.backups_of(postgres::system_identifier()).next_back());
        let flushed = wal::flushed();
        let archived = archived(inventory.as_ref());
        let job = present.job.filter(|_| worker.pid != 0);
        let remote = remote(worker.pid, present.shipping, flushed.map(|(_, lsn)| lsn));
        TableIterator::once((
            activity.to_string(),
            (worker.pid != 0).then_some(worker.pid),
            job.map(|job| signed(job.id)),
            job.map(|job| job.kind.to_string()),
            job.map(|job| job.trigger.to_string()),
            job.and_then(|job| job.started_at).and_then(moment),
            last.map(|backup| backup.label.clone()),
            last.map(|backup| backup.kind.to_string()),
            last.and_then(|backup| moment(backup.stop_time)),
            last.and_then(|backup| backup.stop_lsn).map(|lsn| lsn.to_string()),
            present.growth.filter(|_| worker.pid != 0).map(signed),
            flushed.map(|(_, lsn)| lsn.to_string()),
            archived.map(|lsn| lsn.to_string()),
            (worker.pid != 0).then(|| present.paused.as_str().to_string()),
            remote.place,
            remote.word.to_string(),
            remote.shipped.map(|lsn| lsn.to_string()),
            remote.lag_bytes,
            remote.lag,
            remote.backups,
            worker.pid != 0 && present.drilling,
        ))
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn history_rows() -> TableIterator<
        'static,
        (
            name!(job, i64),
            name!(trigger, String),
            name!(requested, String),
            name!(type, String),
            name!(status, String),
            name!(attempt, i32),
            name!(requested_at, Option<TimestampWithTimeZone>),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(finished_at, Option<TimestampWithTimeZone>),
            name!(label, Option<String>),
            name!(start_lsn, Option<String>),
            name!(stop_lsn, Option<String>),
            name!(wal_growth, Option<i64>),
            name!(database_size, Option<i64>),
            name!(copied_size, Option<i64>),
            name!(repository_size, Option<i64>),
            name!(exit_code, Option<i32>),
            name!(message, Option<String>),
            name!(hint, Option<String>),
        ),
    > {
        let rows = state_directory::history().into_values().map(|job| {
            (
                signed(job.id),
                job.trigger.to_string(),
                job.requested.to_string(),
                job.kind.to_string(),
                job.status.as_str().to_string(),
                i32::try_from(job.attempt).unwrap_or(i32::MAX),
                moment(job.requested_at),
                job.started_at.and_then(moment),
                job.finished_at.and_then(moment),
                job.label,
                job.start_lsn.map(|lsn| lsn.to_string()),
                job.stop_lsn.map(|lsn| lsn.to_string()),
                job.wal_growth.map(signed),
                job.size.map(signed),
                job.delta.map(signed),
                job.repository_delta.map(signed),
                job.exit_code,
                job.message,
                job.hint.filter(|hint| !hint.is_empty()),
            )
        });
        TableIterator::new(rows.collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn backup_rows() -> TableIterator<
        'static,
        (
            name!(label, String),
            name!(type, String),
            name!(prior, Option<String>),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(finished_at, Option<TimestampWithTimeZone>),
            name!(start_lsn, Option<String>),
            name!(stop_lsn, Option<String>),
            name!(first_wal, Option<String>),
            name!(last_wal, Option<String>),
            name!(database_size, Option<i64>),
            name!(copied_size, Option<i64>),
            name!(repository_size, Option<i64>),
            name!(damaged, Option<bool>),
            name!(pgbackrest_version, String),
        ),
    > {
        let inventory = state_directory::inventory();
        let backups = inventory.iter().flat_map(|it| it.backups_of(postgres::system_identifier()));
        let rows = backups.map(|backup| {
            let backup = backup.clone();
            (
                backup.label,
                backup.kind.to_string(),
                backup.prior,
                moment(backup.start_time),
                moment(backup.stop_time),
                backup.start_lsn.map(|lsn| lsn.to_string()),
                backup.stop_lsn.map(|lsn| lsn.to_string()),
                backup.archive_start,
                backup.archive_stop,
                backup.size.map(signed),
                backup.delta.map(signed),
                backup.repo_delta.map(signed),
                backup.error,
                backup.pgbackrest,
            )
        });
        TableIterator::new(rows.collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn recovery_rows() -> TableIterator<
        'static,
        (
            name!(timeline, i64),
            name!(from_time, Option<TimestampWithTimeZone>),
            name!(from_lsn, Option<String>),
            name!(to_time, Option<TimestampWithTimeZone>),
            name!(to_lsn, Option<String>),
            name!(first_backup, String),
            name!(backups, i64),
            name!(gap_until, Option<String>),
        ),
    > {
        let inventory = state_directory::inventory();
        let archived = last_archived();
        let windows = inventory
            .map(|it| recovery::windows(&it, postgres::system_identifier(), archived))
            .unwrap_or_default();
        let rows = windows.into_iter().map(|window| {
            (
                i64::from(window.timeline),
                moment(window.from_time),
                Some(window.from.to_string()),
                window.to_time.and_then(moment),
                Some(window.to.to_string()),
                window.first_backup,
                signed(window.backups),
                window.gap_until.map(|lsn| lsn.to_string()),
            )
        });
        TableIterator::new(rows.collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn progress_rows() -> TableIterator<
        'static,
        (
            name!(job, i64),
            name!(type, String),
            name!(trigger, String),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(percent, Option<f64>),
            name!(bytes_done, Option<i64>),
            name!(bytes_total, Option<i64>),
        ),
    > {
        let job = if shared::is_there() { shared::look().1.job } else { None };
        let rows = job.map(|job| {
            let progress = progress();
            (
                signed(job.id),
                job.kind.to_string(),
                job.trigger.to_string(),
                job.started_at.and_then(moment),
                progress.as_ref().map(|it| it.percent),
                progress.as_ref().and_then(|it| it.bytes_done).map(signed),
                progress.as_ref().and_then(|it| it.bytes_total).map(signed),
            )
        });
        TableIterator::new(rows.into_iter().collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn schedule_rows() -> TableIterator<
        'static,
        (
            name!(type, String),
            name!(crontab, Option<String>),
            name!(time_zone, String),
            name!(next_run, Option<TimestampWithTimeZone>),
        ),
    > {
        let settings = shown_settings();
        let present = if shared::is_there() { shared::look().1 } else { Default::default() };
        let row = |kind: String, crontab: Option<&Crontab>, run: Option<DateTime<Utc>>| {
            let line = crontab.map(|crontab| crontab.text().to_string());
            (kind, line, settings.zone.name().to_string(), run.and_then(moment))
        };
        let backups = BackupType::ALL.into_iter().zip(present.next_runs).rev();
        let mut rows: Vec<_> = backups
            .map(|(kind, run)| row(kind.to_string(), settings.schedule(kind), run))
            .collect();
        let drills = settings.drill_schedule.as_ref();
        rows.push(row("drill".to_string(), drills, present.next_drill));
        TableIterator::new(rows)
    }

    #[pg_extern(parallel_unsafe)]
    #[allow(clippy::type_complexity, reason = "pgrx makes the row's type from the list")]
    fn drill_rows() -> TableIterator<
        'static,
        (
            name!(drill, i64),
            name!(trigger, String),
            name!(started, Option<TimestampWithTimeZone>),
            name!(ended, Option<TimestampWithTimeZone>),
            name!(status, String),
            name!(source, Option<String>),
            name!(backup, Option<String>),
            name!(timeline, Option<i64>),
            name!(recovered_up_to, Option<TimestampWithTimeZone>),
            name!(recovered_lsn, Option<String>),
            name!(plan, Option<f64>),
            name!(fetch, Option<f64>),
            name!(restore, Option<f64>),
            name!(replay, Option<f64>),
            name!(check, Option<f64>),
            name!(fetched_bytes, Option<i64>),
            name!(restored_bytes, Option<i64>),
            name!(replayed_bytes, Option<i64>),
            name!(expected, Option<f64>),
            name!(checked_relations, Option<i64>),
            name!(query_result, Option<String>),
            name!(message, Option<String>),
            name!(hint, Option<String>),
        ),
    > {
        let rows = state_directory::drills().into_iter().rev().map(|drill| {
            let (number, status) = (signed(drill.number), drill.status().to_string());
            let outcome = drill.outcome.as_ref();
            let recovered = outcome.and_then(|it| it.recovered.as_ref());
            // Of a restore that came to nothing, its times say nothing.
            let phases = outcome.filter(|it| it.recovered.is_some()).map(|it| it.phases);
            let failure = outcome.and_then(|it| it.failure.as_ref());
            let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
            (
                number,
                drill.trigger.to_string(),
                moment(drill.started),
                outcome.and_then(|it| moment(it.ended)),
                status,
                outcome.and_then(|it| text(&it.source)),
                recovered.map(|it| it.backup.clone()),
                recovered.map(|it| it.timeline.into()),
                recovered.and_then(|it| it.last_commit).and_then(moment),
                recovered.map(|it| it.lsn.to_string()),
                phases.map(|it| it.plan),
                phases.map(|it| it.fetch),
                phases.map(|it| it.restore),
                phases.map(|it| it.replay),
                phases.map(|it| it.check),
                phases.map(|it| signed(it.fetched_bytes)),
                phases.map(|it| signed(it.restored_bytes)),
                phases.map(|it| signed(it.replayed_bytes)),
                outcome.and_then(|it| it.expected),
                outcome.and_then(|it| it.checked_relations).map(signed),
                outcome.and_then(|it| it.query_result.clone()),
                failure.map(|it| it.message.clone()),
                failure.and_then(|it| text(&it.hint)),
            )
        });
        TableIterator::new(rows.collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    fn option_rows() -> TableIterator<
        'static,
        (
            name!(name, String),
            name!(environment, Option<String>),
            name!(effect, String),
            name!(help, String),
        ),
    > {
        let settings = shown_settings();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let rows = options::ALL.into_iter().map(|option| {
            (
                option.name().to_string(),
                option.environment.map(str::to_string),
                settings.effect_of(option, Utc::now(), cores),
                option.help().to_string(),
            )
        });
        TableIterator::new(rows.collect::<Vec<_>>())
    }

    #[pg_extern(parallel_unsafe)]
    fn worst_severity() -> String {
        let worst = check_rows().into_iter().map(|(_, severity, ..)| severity);
        let rank = |text: &String| Severity::ALL.iter().position(|it| it.as_str() == text);
        worst.max_by_key(rank).unwrap_or_default()
    }
}
