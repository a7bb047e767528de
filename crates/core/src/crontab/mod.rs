//! Answers when a crontab line runs next, in a time zone and across its clock changes.
//!
//! The line means what it means to Debian's cron (Vixie cron 3.0pl1), field by field:
//!
//! - Five fields: minute, hour, day of month, month, day of week. Sunday is 0 or 7. Months and
//!   days of the week have names of three letters, in any case.
//! - A field is a list of `*`, `a` and `a-b`; `*` and `a-b` may carry a step, as in `*/15` and
//!   `1-30/5`. A step beyond the last value leaves the first.
//! - A day must satisfy the day of month OR the day of week when both are restricted, else both.
//!   A field is unrestricted when it begins with `*`, so `0 0 */2 * mon` runs on the Mondays with
//!   an odd date, not on every Monday and every odd date.
//! - `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`, in any case.
//!
//! Refused, although cron takes it: a range that runs backwards and a day like 30 February, which
//! would never run; rubbish behind a value, which cron overlooks; and `@reboot`, which is no time.
//! The other way round, `fri-sun` ends on Sunday here, while in cron it runs backwards to 0.
//!
//! # When the clock changes
//!
//! A line runs by the wall clock. As in cron, what a change of the clock does depends on whether
//! the line is for a fixed time, which means that neither its minute nor its hour begins with `*`:
//!
//! - A **fixed time** runs at the first instant at which the clock shows that time or a later
//!   one. So a time that is skipped runs right after the gap, several of them as one run, and a
//!   time that comes twice runs at the first of the two.
//! - Any **other** line runs at every instant at which the clock shows one of its times: in both
//!   passes of an hour that is repeated, and not for times that are skipped.
//!
//! Two things differ from cron. It runs a line once for each of its times in a gap. And it takes a
//! jump of three hours or more for the correction of a wrong clock and makes nothing up; the rules
//! of a zone are never that, so here a day that the calendar left out (Samoa, 30 December 2011) is
//! treated like any other gap.

mod fields;
#[cfg(test)]
mod tests;

use std::iter;
use std::str::FromStr;

use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, TimeZone, Utc};
pub use chrono_tz::Tz;
use chrono_tz::{GapInfo, TZ_VARIANTS};
use cron::Schedule;

use fields::{Line, Values};

/// The years the `cron` crate knows. The tables of `chrono-tz` end with 2099.
const FIRST_YEAR: i32 = 1970;
const LAST_YEAR: i32 = 2100;

/// A crontab line that will run some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crontab {
    text: String,
    /// The wall clock times, as those of any of these. Two when either day field is enough,
    /// because one schedule of the `cron` crate always wants both.
    schedules: Vec<Schedule>,
    fixed_time: bool,
}

/// Why a text is not a crontab line. It reads as a sentence, for the DETAIL of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The {field} is \"{value}\": {reason}.")]
pub struct CrontabError {
    /// The field at fault: "minute", "hour", "day of month", "month" or "day of week";
    /// "schedule" when it is the whole line.
    pub field: &'static str,
    /// What stands in that field.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl CrontabError {
    fn new(field: &'static str, value: &str, reason: String) -> CrontabError {
        CrontabError { field, value: value.to_string(), reason }
    }
}

impl Crontab {
    /// Reads a crontab line without its command, or one of the `@` names.
    pub fn parse(text: &str) -> Result<Crontab, CrontabError> {
        let text = text.trim_ascii();
        let line = Line::parse(text)?;
        let on = |days_of_month: &str, days_of_week: &str| {
            let expression = format!(
                "0 {} {} {days_of_month} {} {days_of_week}",
                listed(line.minutes, 0),
                listed(line.hours, 0),
                listed(line.months, 0),
            );
            Schedule::from_str(&expression).expect("lists of valid values make a cron expression")
        };
        let days_of_month = listed(line.days_of_month, 0);
        // The `cron` crate counts the days of the week from 1.
        let days_of_week = listed(line.days_of_week, 1);
        let schedules = if line.either_day() {
            vec![on(&days_of_month, "*"), on("*", &days_of_week)]
        } else {
            vec![on(&days_of_month, &days_of_week)]
        };
        Ok(Crontab {
            text: text.to_string(),
            schedules,
            fixed_time: !line.minutes.starred && !line.hours.starred,
        })
    }

    /// The line as it was written, without the blanks around it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first run strictly after `instant`, by the clock of `zone`.
    ///
    /// `None` when no run is left before 2101, where the calendar of the `cron` crate ends. That
    /// comes first, after 2072, to lines that want a 29 February on a certain day of the week.
    pub fn next_after(&self, instant: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        // Far from these years chrono panics when it applies an offset.
        if instant.year() > LAST_YEAR {
            return None;
        }
        let instant = if instant.year() < FIRST_YEAR - 1 {
            NaiveDate::from_ymd_opt(FIRST_YEAR - 1, 1, 1)?.and_time(Default::default()).and_utc()
        } else {
            instant
        };
        let wall = instant.with_timezone(&zone).naive_local();
        if self.fixed_time {
            // A time of the second pass of a repeated hour had its run in the first.
            return self
                .wall_times_after(wall)
                .filter_map(|time| first_reached(time, zone))
                .find(|&run| run > instant);
        }
        let ahead = self.first_shown(wall, instant, zone);
        match zone.from_local_datetime(&wall) {
            // The clock is about to be set back: it will then show again what it showed up to
            // this long ago.
            LocalResult::Ambiguous(_, again) if again > instant => {
                let repeated = self.first_shown(wall - (again.to_utc() - instant), instant, zone);
                ahead.into_iter().chain(repeated).min()
            }
            _ => ahead,
        }
    }

    /// The first instant after `instant` at which the clock shows the earliest possible of the
    /// times after `wall`.
    fn first_shown(
        &self,
        wall: NaiveDateTime,
        instant: DateTime<Utc>,
        zone: Tz,
    ) -> Option<DateTime<Utc>> {
        self.wall_times_after(wall).find_map(|time| {
            let shown = zone.from_local_datetime(&time);
            [shown.earliest(), shown.latest()]
                .into_iter()
                .flatten()
                .map(|run| run.to_utc())
                .find(|&run| run > instant)
        })
    }

    /// The times of this line after `wall`, in order, on a clock that never changes.
    fn wall_times_after(&self, wall: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        iter::successors(self.next_wall_time(wall), |&time| self.next_wall_time(time))
    }

    fn next_wall_time(&self, wall: NaiveDateTime) -> Option<NaiveDateTime> {
        // UTC stands in for the wall clock: it has every time once.
        let after = |schedule: &Schedule| schedule.after(&wall.and_utc()).next();
        self.schedules.iter().filter_map(after).min().map(|time| time.naive_utc())
    }
}

/// The first instant at which the clock of `zone` shows `time`, or a later time if it skips it.
fn first_reached(time: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    let shown = zone.from_local_datetime(&time).earliest();
    shown.or_else(|| GapInfo::new(&time, &zone)?.end).map(|instant| instant.to_utc())
}

/// The values as the `cron` crate wants to read them, each increased by `shift`.
fn listed(values: Values, shift: u32) -> String {
    let values: Vec<String> = values.iter().map(|value| (value + shift).to_string()).collect();
    values.join(",")
}

/// Reads a schedule setting: a crontab line, or nothing or `off` (in any case) for no schedule.
pub fn parse_schedule(text: &str) -> Result<Option<Crontab>, CrontabError> {
    let text = text.trim_ascii();
    if text.is_empty() || text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    Crontab::parse(text).map(Some)
}

/// A text that names no time zone. It reads as a sentence, for the DETAIL of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("There is no time zone \"{name}\" in the IANA database; {advice}.")]
pub struct UnknownZone {
    /// The text.
    pub name: String,
    advice: String,
}

/// Finds a time zone by its IANA name, in any case.
pub fn parse_zone(text: &str) -> Result<Tz, UnknownZone> {
    let name = text.trim_ascii();
    let named = |zone: &&Tz| zone.name().eq_ignore_ascii_case(name);
    TZ_VARIANTS.iter().find(named).copied().ok_or_else(|| {
        let city = name.rsplit('/').next().unwrap_or(name).replace(' ', "_");
        let in_city = |zone: &&Tz| {
            zone.name().rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(&city))
        };
        let advice = match TZ_VARIANTS.iter().find(in_city) {
            Some(zone) => format!("perhaps {} is meant", zone.name()),
            None => "names look like Europe/Berlin, America/New_York or UTC".to_string(),
        };
        UnknownZone { name: name.to_string(), advice }
    })
}
