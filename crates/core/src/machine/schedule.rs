//! Serves the schedules: each run once, a missed one made up once.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::crontab::{Crontab, Tz};
use crate::kind::BackupType;
use crate::settings::Settings;

/// If the clock was set back by no more than this, runs that it shows a second time have been
/// served. If by more, the time that was served had been a wrong one. As in cron.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::hours(3);

/// Up to when a schedule has been served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The crontab line that was served. A new line counts from when it was set: it has missed
    /// nothing.
    pub line: String,
    /// The time zone in which it was read.
    pub zone: String,
    /// Runs up to here have been started or made up.
    pub until: DateTime<Utc>,
}

impl Served {
    /// Whether a run has come since the last call, once, however many were missed. Remembers in
    /// `served` that it has been told.
    pub(crate) fn due(
        served: &mut Option<Served>,
        crontab: Option<&Crontab>,
        zone: Tz,
        now: DateTime<Utc>,
    ) -> bool {
        let Some(crontab) = crontab else {
            *served = None;
            return false;
        };
        let same = |it: &&mut Served| it.line == crontab.text() && it.zone == zone.name();
        let Some(known) = served.as_mut().filter(same) else {
            let (line, zone) = (crontab.text().to_string(), zone.name().to_string());
            *served = Some(Served { line, zone, until: now });
            return false;
        };
        if known.until - now > CLOCK_TOLERANCE {
            known.until = now;
        }
        let due = crontab.next_after(known.until, zone).is_some_and(|run| run <= now);
        if due {
            known.until = now;
        }
        due
    }
}

/// The types of backup whose run has come since the last call, each once, however many runs were
/// missed.
pub(super) fn serve(
    served: &mut BTreeMap<BackupType, Served>,
    settings: &Settings,
    now: DateTime<Utc>,
) -> Vec<BackupType> {
    let mut due = Vec::new();
    for kind in BackupType::ALL {
        let mut known = served.remove(&kind);
        if Served::due(&mut known, settings.schedule(kind), settings.zone, now) {
            due.push(kind);
        }
        served.extend(known.map(|known| (kind, known)));
    }
    due
}

/// The next run of each schedule.
pub(super) fn next_runs(
    served: &BTreeMap<BackupType, Served>,
    settings: &Settings,
) -> BTreeMap<BackupType, DateTime<Utc>> {
    let next = |kind: BackupType| {
        let after = served.get(&kind)?.until;
        Some((kind, settings.schedule(kind)?.next_after(after, settings.zone)?))
    };
    BackupType::ALL.into_iter().filter_map(next).collect()
}
