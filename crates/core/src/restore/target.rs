//! Reads what somebody wants to get back to.

use chrono::{
    DateTime, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, SubsecRound, TimeDelta,
    TimeZone, Utc,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::crontab::{UnknownZone, parse_zone};
use crate::lsn::Lsn;
use crate::pgbackrest::names::valid_label;

/// What to get back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The point.
    pub point: Point,
    /// Which timeline to follow.
    pub timeline: Timeline,
    /// Whether what lies exactly at the point is replayed, too.
    pub inclusive: bool,
    /// What happens then.
    pub action: Action,
    /// A backup to begin with, instead of the best one.
    pub backup: Option<String>,
    /// Whether `latest` may end at a gap in the WAL, behind which there is more.
    pub up_to_gap: bool,
}

/// A point in a cluster's past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// The newest that there is.
    Latest,
    /// Where the newest backup ended.
    Immediate,
    /// An instant.
    Time(DateTime<Utc>),
    /// A transaction; with its epoch, if it is larger than 32 bits.
    Xid(u64),
    /// A restore point.
    Name(String),
    /// A position in the WAL.
    Lsn(Lsn),
}

/// Which timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timeline {
    /// The newest one.
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(u32),
}

/// What happens when the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The server takes writes, on a new timeline.
    #[default]
    Promote,
    /// The server can be read, and waits.
    Pause,
    /// The server stops.
    Shutdown,
}

/// What somebody typed. Nothing of it has been looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// `latest`, or nothing: the newest.
    pub latest: bool,
    /// As soon as the backup is consistent.
    pub immediate: bool,
    /// An instant.
    pub time: Option<String>,
    /// A transaction.
    pub xid: Option<String>,
    /// A restore point.
    pub name: Option<String>,
    /// A position in the WAL.
    pub lsn: Option<String>,
    /// `latest`, `current` or a number.
    pub timeline: Option<String>,
    /// Stop before the target.
    pub exclusive: bool,
    /// `promote`, `pause` or `shutdown`.
    pub action: Option<String>,
    /// The label of a backup.
    pub backup: Option<String>,
    /// See [`Target::up_to_gap`].
    pub up_to_gap: bool,
}

impl Asked {
    /// Reads the target. A time without a zone is in `zone`, or refused for the reason that is there
    /// instead.
    ///
    /// # Errors
    ///
    /// What cannot be read, or contradicts itself, and how to write it.
    pub fn target(&self, zone: &Result<Tz, String>, now: DateTime<Utc>) -> Result<Target, Refusal> {
        let point = self.point(zone, now)?;
        let action = self.read_action(&point)?;
        if self.exclusive && !matches!(point, Point::Time(_) | Point::Xid(_) | Point::Lsn(_)) {
            return Err(Refusal::new(
                format!("{} cannot be exclusive", point.kind()),
                "Only a time, a transaction and a position can be stopped before.",
            ));
        }
        if self.up_to_gap && point != Point::Latest {
            return Err(Refusal::new(
                format!("{} and --up-to-gap exclude each other", point.kind()),
                "--up-to-gap is for the latest target only: it says that recovery may end where \
                 WAL is missing.",
            ));
        }
        let backup = given(&self.backup);
        if let Some(label) = backup.filter(|label| !valid_label(label)) {
            return Err(Refusal::new(
                format!("{label:?} is not the label of a backup"),
                "A label looks like 20260822-030000F or 20260822-030000F_20260822-090000I.",
            ));
        }
        Ok(Target {
            point,
            timeline: self.read_timeline()?,
            inclusive: !self.exclusive,
            action,
            backup: backup.map(str::to_string),
            up_to_gap: self.up_to_gap,
        })
    }

    /// The one point that was given.
    fn point(&self, zone: &Result<Tz, String>, now: DateTime<Utc>) -> Result<Point, Refusal> {
        let (time, xid) = (given(&self.time), given(&self.xid));
        let (name, lsn) = (given_as_is(&self.name), given(&self.lsn));
        let all = [
            self.latest.then(|| "latest".to_string()),
            self.immediate.then(|| "immediate".to_string()),
            time.map(|it| format!("the time {it:?}")),
            xid.map(|it| format!("the transaction {it:?}")),
            name.map(|it| format!("the restore point {it:?}")),
            lsn.map(|it| format!("the position {it:?}")),
        ];
        let all: Vec<String> = all.into_iter().flatten().collect();
        if let [one, other, ..] = all.as_slice() {
            return Err(Refusal::new(
                format!("two targets are given: {one}, and {other}"),
                "Give one of them.",
            ));
        }
        if let Some(text) = time {
            let shown = zone.as_ref().copied().unwrap_or(Tz::UTC);
            return Ok(Point::Time(not_in_the_future(instant(text, zone)?, shown, now)?));
        }
        if let Some(text) = xid {
            return Ok(Point::Xid(transaction(text)?));
        }
        if let Some(text) = name {
            return Ok(Point::Name(restore_point(text)?));
        }
        if let Some(text) = lsn {
            let bad = |error| Refusal::new(format!("{error}"), "It is two hexadecimal numbers.");
            return Ok(Point::Lsn(text.parse().map_err(bad)?));
        }
        Ok(if self.immediate { Point::Immediate } else { Point::Latest })
    }

    fn read_timeline(&self) -> Result<Timeline, Refusal> {
        let Some(text) = given(&self.timeline) else { return Ok(Timeline::Latest) };
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) if digits.starts_with('+') => None,
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None if text.starts_with(['+', '0']) => None,
            None => text.parse().ok(),
        };
        match (text, number) {
            ("latest", _) => Ok(Timeline::Latest),
            ("current", _) => Ok(Timeline::Current),
            (_, Some(number)) if number > 0 => Ok(Timeline::Number(number)),
            // What begins with a 0 is octal to PostgreSQL.
            _ => Err(Refusal::new(
                format!("{text:?} is not a timeline"),
                "Write latest, current, or its number without zeros before it: 2, or 0x2.",
            )),
        }
    }

    fn read_action(&self, point: &Point) -> Result<Action, Refusal> {
        let action = match given(&self.action) {
            None | Some("promote") => Action::Promote,
            Some("pause") => Action::Pause,
            Some("shutdown") => Action::Shutdown,
            Some(other) => {
                return Err(Refusal::new(
                    format!("{other:?} is not an action"),
                    "Write promote, pause or shutdown.",
                ));
            }
        };
        if action != Action::Promote && *point == Point::Latest {
            return Err(no_action_at_the_end(action));
        }
        Ok(action)
    }
}

impl Point {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Point::Latest => "the latest target",
            Point::Immediate => "the immediate target",
            Point::Time(_) => "a time",
            Point::Xid(_) => "a transaction",
            Point::Name(_) => "a restore point",
            Point::Lsn(_) => "a position",
        }
    }
}

impl Action {
    /// The word that PostgreSQL takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Promote => "promote",
            Action::Pause => "pause",
            Action::Shutdown => "shutdown",
        }
    }
}

/// PostgreSQL acts only on a target that it has stopped at.
pub(super) fn no_action_at_the_end(action: Action) -> Refusal {
    Refusal::new(
        format!(
            "PostgreSQL does not {} at the end of the WAL: it promotes there",
            match action {
                Action::Shutdown => "shut down",
                other => other.as_str(),
            }
        ),
        "Leave the action out, or give a time, a transaction, a restore point or a position at \
         which it can stop.",
    )
}

/// Refuses an instant that has not been yet.
pub(super) fn not_in_the_future(
    at: DateTime<Utc>,
    zone: Tz,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, Refusal> {
    if at <= now {
        return Ok(at);
    }
    Err(Refusal::new(
        format!("{} is in the future: now is {}", written(at, zone), written(now, zone)),
        "Leave the time out for the newest state that there is.",
    ))
}

/// An instant as people read it, in a form that [`Asked::target`] takes.
pub fn written(at: DateTime<Utc>, zone: Tz) -> String {
    let at = at.trunc_subsecs(6);
    if zone == Tz::UTC {
        return at.format("%Y-%m-%d %H:%M:%S%.f UTC").to_string();
    }
    at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S%.f%:z").to_string()
}

/// What was typed; a variable of the environment that is set to nothing is none.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// The same for a name, in which a space counts.
fn given_as_is(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// The first id that an ordinary transaction can have.
const FIRST_XID: u32 = 3;

fn transaction(text: &str) -> Result<u64, Refusal> {
    let number = text.bytes().all(|it| it.is_ascii_digit()).then(|| text.parse::<u64>().ok());
    // The epoch is what lies above 32 bits; no epoch has the first three.
    number.flatten().filter(|xid| *xid as u32 >= FIRST_XID).ok_or_else(|| {
        Refusal::new(
            format!("{text:?} is not a transaction id"),
            "It is a number from 3 on, as pg_current_xact_id() shows it.",
        )
    })
}

/// The longest name of a restore point, in bytes.
const LONGEST_NAME: usize = 63;

fn restore_point(name: &str) -> Result<String, Refusal> {
    let reason = if name.len() > LONGEST_NAME {
        format!("has {} bytes", name.len())
    } else if let Some(bad) = name.chars().find(|it| it.is_control()) {
        format!("has the character {bad:?} in it")
    } else {
        return Ok(name.to_string());
    };
    Err(Refusal::new(
        format!("the name of the restore point {name:?} {reason}"),
        format!("A name has 1 to {LONGEST_NAME} bytes and no control characters."),
    ))
}

/// Reads an instant: a date, a time of the day, and an offset or a time zone.
fn instant(text: &str, zone: &Result<Tz, String>) -> Result<DateTime<Utc>, Refusal> {
    let bad = || {
        Refusal::new(
            format!("{text:?} is not a time"),
            "Write it like \"2026-11-22 14:30:00+08\", \"2026-11-22 14:30:00 Europe/Berlin\" or \
             \"2026-11-22 14:30\".",
        )
    };
    let (date, rest) = text.split_at_checked(10).ok_or_else(bad)?;
    let date = read_date(date).ok_or_else(bad)?;
    let clock = rest.strip_prefix(['T', 't', ' ']).map(str::trim_start);
    let (time, place) = match clock.filter(|it| it.starts_with(|c: char| c.is_ascii_digit())) {
        Some(rest) => {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'));
            let (time, place) = rest.split_at(end.unwrap_or(rest.len()));
            (read_time(time).ok_or_else(bad)?, place)
        }
        None => (NaiveTime::MIN, rest),
    };
    let local = date.and_time(time);
    let spaced = place.starts_with(|c: char| c.is_whitespace());
    let place = place.trim();
    if place.is_empty() {
        return match zone {
            Ok(zone) => in_zone(local, *zone),
            Err(reason) => Err(Refusal::new(
                format!("{text:?} has no zone, and that of this machine is not known: {reason}"),
                format!(
                    "Write the offset from universal time behind it, such as {local}+01, or set TZ \
                     to the name of a zone."
                ),
            )),
        };
    }
    if place.eq_ignore_ascii_case("z") || place.eq_ignore_ascii_case("utc") {
        return Ok(local.and_utc());
    }
    if place.starts_with(['+', '-']) {
        let offset = read_offset(place).ok_or_else(bad)?;
        return local.and_utc().checked_sub_signed(offset).ok_or_else(bad);
    }
    if !spaced || !place.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(bad());
    }
    let unknown =
        |error: UnknownZone| Refusal::new(format!("{text:?} is not a time"), error.to_string());
    in_zone(local, parse_zone(place).map_err(unknown)?)
}

/// What a clock on the wall means in a time zone.
fn in_zone(local: NaiveDateTime, zone: Tz) -> Result<DateTime<Utc>, Refusal> {
    let (what, example) = match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(at) => return Ok(at.to_utc()),
        MappedLocalTime::Ambiguous(first, second) => (
            "comes twice",
            format!("{} or {}", written(first.to_utc(), zone), written(second.to_utc(), zone)),
        ),
        MappedLocalTime::None => ("does not exist", format!("{local}+00 for the universal time")),
    };
    Err(Refusal::new(
        format!("{local} {what} in {}: clocks are changed there then", zone.name()),
        format!("Write the offset from universal time behind it: {example}."),
    ))
}

/// Decimal digits, exactly so many of them.
fn digits(text: &str, count: usize) -> Option<u32> {
    let all = text.len() == count && text.bytes().all(|it| it.is_ascii_digit());
    if all { text.parse().ok() } else { None }
}

/// `2026-11-22`
fn read_date(text: &str) -> Option<NaiveDate> {
    let mut parts = text.split('-');
    let mut next = |count| digits(parts.next()?, count);
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)
}

/// `14:30`, `14:30:05` or `14:30:05.123456`
fn read_time(text: &str) -> Option<NaiveTime> {
    let mut parts = text.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let (second, micro) = match parts.next() {
        None => (0, 0),
        Some(part) => match part.split_once('.') {
            None => (digits(part, 2)?, 0),
            Some((second, fraction)) => {
                let power = 6_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?;
                (digits(second, 2)?, digits(fraction, fraction.len())? * 10_u32.pow(power))
            }
        },
    };
    let rest = parts.next();
    NaiveTime::from_hms_micro_opt(hour, minute, second, micro).filter(|_| rest.is_none())
}

/// The largest offset that PostgreSQL takes, in hours.
const LARGEST_OFFSET: u32 = 15;

/// `+08`, `-0330` or `+05:45`
fn read_offset(text: &str) -> Option<TimeDelta> {
    let (sign, rest) = (if text.starts_with('-') { -1 } else { 1 }, text.get(1..)?);
    let (hours, minutes) = rest.split_at_checked(2)?;
    let minutes = minutes
        .strip_prefix(':')
        .map_or(if minutes.is_empty() { Some(0) } else { digits(minutes, 2) }, |minutes| {
            digits(minutes, 2)
        })?;
    let hours = digits(hours, 2)?;
    let possible = hours <= LARGEST_OFFSET && minutes < 60;
    possible.then(|| TimeDelta::minutes(sign * i64::from(hours * 60 + minutes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        at("2026-11-22T12:00:00Z")
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn asked() -> Asked {
        Asked::default()
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_string())
    }

    fn read(asked: Asked) -> Result<Target, Refusal> {
        asked.target(&Ok(Tz::Europe__Berlin), now())
    }

    fn read_time_target(time: &str) -> Result<DateTime<Utc>, Refusal> {
        match read(Asked { time: text(time), ..asked() })?.point {
            Point::Time(at) => Ok(at),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_the_latest() {
        let latest = Target {
            point: Point::Latest,
            timeline: Timeline::Latest,
            inclusive: true,
            action: Action::Promote,
            backup: None,
            up_to_gap: false,
        };
        assert_eq!(read(asked()), Ok(latest.clone()));
        assert_eq!(read(Asked { latest: true, ..asked() }), Ok(latest.clone()));
        // Variables that are set to nothing.
        let none = || text("");
        let empty = Asked {
            time: none(),
            xid: text(" "),
            name: none(),
            lsn: none(),
            timeline: none(),
            action: none(),
            backup: none(),
            ..asked()
        };
        assert_eq!(read(empty), Ok(latest));
    }

    #[test]
    fn reads_times() {
        for (time, instant) in [
            ("2026-11-22", "2026-11-21T23:00:00Z"),
            ("2026-11-22 12:30", "2026-11-22T11:30:00Z"),
            ("2026-11-22T12:30", "2026-11-22T11:30:00Z"),
            ("  2026-11-22 12:30:05 ", "2026-11-22T11:30:05Z"),
            ("2026-11-22 12:30:05.1", "2026-11-22T11:30:05.1Z"),
            ("2026-11-22 12:30:05.123456", "2026-11-22T11:30:05.123456Z"),
            ("2026-11-22 12:30:05+08", "2026-11-22T04:30:05Z"),
            ("2026-11-22 12:30:05+0800", "2026-11-22T04:30:05Z"),
            ("2026-11-22 12:30:05 +08:00", "2026-11-22T04:30:05Z"),
            ("2026-11-21 22:30:05-03:30", "2026-11-22T02:00:05Z"),
            ("2026-11-22 12:30+15:59", "2026-11-21T20:31:00Z"),
            ("2026-11-22T11:30:05.5Z", "2026-11-22T11:30:05.5Z"),
            ("2026-11-22t11:30:05z", "2026-11-22T11:30:05Z"),
            ("2026-11-22 11:30 UTC", "2026-11-22T11:30:00Z"),
            ("2026-11-22 11:30 utc", "2026-11-22T11:30:00Z"),
            ("2026-11-22 11:30 Asia/Tokyo", "2026-11-22T02:30:00Z"),
            ("2026-11-22 11:30 asia/tokyo", "2026-11-22T02:30:00Z"),
            ("2026-11-22 Asia/Tokyo", "2026-11-21T15:00:00Z"),
            ("2026-11-22 +08", "2026-11-21T16:00:00Z"),
            ("2026-11-22Z", "2026-11-22T00:00:00Z"),
            ("2024-02-29 12:00", "2024-02-29T11:00:00Z"),
            // Now has been; a microsecond later has not.
            ("2026-11-22 12:00:00Z", "2026-11-22T12:00:00Z"),
            // On both sides of the hours that are skipped and that come twice.
            ("2026-03-29 01:59:59", "2026-03-29T00:59:59Z"),
            ("2026-03-29 03:00:00", "2026-03-29T01:00:00Z"),
            ("2026-10-25 02:30:00+02", "2026-10-25T00:30:00Z"),
            ("2026-10-25 02:30:00+01", "2026-10-25T01:30:00Z"),
        ] {
            assert_eq!(read_time_target(time), Ok(at(instant)), "{time}");
        }
    }

    #[test]
    fn what_it_writes_it_reads() {
        let instant = at("2026-10-25T00:30:00.25Z");
        for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::Asia__Kathmandu] {
            assert_eq!(read_time_target(&written(instant, zone)), Ok(instant), "{zone}");
        }
        assert_eq!(written(instant, Tz::UTC), "2026-10-25 00:30:00.250 UTC");
        assert_eq!(written(instant, Tz::Europe__Berlin), "2026-10-25 02:30:00.250+02:00");
    }

    #[test]
    fn refuses_what_is_no_time() {
        for time in [
            "yesterday",
            "14:30",
            "2026-11-22 14",
            "2026-11-22 1:30",
            "2026-1-22",
            "2026-11-22x",
            "2026-11-22 x",
            "2026-02-29 12:00",
            "2026-13-01",
            "26-11-2022",
            "2026-11-22 24:00",
            "2026-11-22 12:60",
            "2026-11-22 12:30:60",
            "2026-11-22 12:30:05.",
            "2026-11-22 12:30:05.1234567",
            "2026-11-22 12:30.5",
            "2026-11-22 12:30:05:06",
            "2026-11-22 12:30+8",
            "2026-11-22 12:30+16",
            "2026-11-22 12:30+080",
            "2026-11-22 12:30+08:",
            "2026-11-22 12:30+08:60",
            "2026-11-22 12:30++8",
            "2026-11-22 12:30 +08 UTC",
            "2026-11-22 12:30Europe/Berlin",
            "2026-11-22 12:30 UTC+8",
            "2026-11-22 12:30; DROP",
            "2026-11-2é",
            "+026-11-22",
        ] {
            let refusal = read_time_target(time).expect_err(time);
            assert_eq!(refusal.message, format!("{time:?} is not a time"));
            assert!(!refusal.hint.is_empty());
        }
        let refusal = read_time_target("2026-11-22 12:30 Berlin").expect_err("no zone");
        assert!(refusal.hint.contains("perhaps Europe/Berlin is meant"), "{refusal:?}");
    }

    #[test]
    fn a_time_without_a_zone_needs_one_that_is_known() {
        let unknown = Err("TZ is \"CET-1CEST\"".to_string());
        let read = |time: &str| Asked { time: text(time), ..asked() }.target(&unknown, now());
        for time in ["2026-11-22 12:30", "2026-11-22"] {
            let refusal = read(time).expect_err(time);
            let words = [time, "has no zone", "CET-1CEST"];
            assert!(words.iter().all(|word| refusal.message.contains(word)), "{refusal:?}");
            assert!(refusal.hint.contains("+01"), "{refusal:?}");
        }
        for time in ["2026-11-22 12:30+01", "2026-11-22 11:30Z", "2026-11-22 12:30 Europe/Berlin"] {
            let point = read(time).expect("it says its zone").point;
            assert_eq!(point, Point::Time(at("2026-11-22T11:30:00Z")), "{time}");
        }
        let refusal = read("2027-11-22 12:30+01").expect_err("it is in the future");
        assert!(refusal.message.contains("in the future"), "{refusal:?}");
        assert!(asked().target(&unknown, now()).is_ok(), "no time is asked for");
    }

    #[test]
    fn refuses_a_clock_that_is_changed() {
        let refusal = read_time_target("2026-10-25 02:30:00").expect_err("it comes twice");
        assert_eq!(
            refusal.message,
            "2026-10-25 02:30:00 comes twice in Europe/Berlin: clocks are changed there then"
        );
        assert_eq!(
            refusal.hint,
            "Write the offset from universal time behind it: 2026-10-25 02:30:00+02:00 or \
             2026-10-25 02:30:00+01:00."
        );
        let refusal = read_time_target("2026-03-29 02:30").expect_err("it is skipped");
        assert!(refusal.message.starts_with("2026-03-29 02:30:00 does not exist in Europe/Berlin"));
        assert!(refusal.hint.contains("offset"), "{refusal:?}");
        // Midnight is skipped, too, where clocks are changed then.
        let refusal = read_time_target("2018-11-04 America/Sao_Paulo").expect_err("no midnight");
        assert!(refusal.message.contains("does not exist in America/Sao_Paulo"));
    }

    #[test]
    fn refuses_the_future() {
        let refusal = read_time_target("2026-11-22 13:00:00.000001").expect_err("the future");
        assert_eq!(
            refusal.message,
            "2026-11-22 13:00:00.000001+01:00 is in the future: now is 2026-11-22 13:00:00+01:00"
        );
    }

    #[test]
    fn reads_the_other_points() {
        for (asked, point) in [
            (Asked { immediate: true, ..asked() }, Point::Immediate),
            (Asked { xid: text("3"), ..asked() }, Point::Xid(3)),
            (Asked { xid: text("4294967299"), ..asked() }, Point::Xid((1 << 32) + 3)),
            (
                Asked { xid: text("18446744073709551615"), ..asked() },
                Point::Xid(18_446_744_073_709_551_615),
            ),
            (Asked { name: text("before x"), ..asked() }, Point::Name("before x".to_string())),
            (Asked { name: text(" "), ..asked() }, Point::Name(" ".to_string())),
            (Asked { name: Some("é".repeat(31)), ..asked() }, Point::Name("é".repeat(31))),
            (Asked { lsn: text("16/b374D848"), ..asked() }, Point::Lsn(Lsn(0x16_B374_D848))),
        ] {
            assert_eq!(read(asked).map(|it| it.point), Ok(point));
        }
    }

    #[test]
    fn reads_timelines_actions_and_labels() {
        for (word, timeline) in [
            ("latest", Timeline::Latest),
            ("current", Timeline::Current),
            ("1", Timeline::Number(1)),
            (" 20 ", Timeline::Number(20)),
            ("0x1F", Timeline::Number(31)),
            ("4294967295", Timeline::Number(u32::MAX)),
        ] {
            let target = read(Asked { timeline: text(word), ..asked() });
            assert_eq!(target.map(|it| it.timeline), Ok(timeline), "{word}");
        }
        for (word, action) in
            [("promote", Action::Promote), ("pause", Action::Pause), ("shutdown", Action::Shutdown)]
        {
            let target = read(Asked { action: text(word), immediate: true, ..asked() });
            assert_eq!(target.map(|it| it.action), Ok(action), "{word}");
        }
        let label = "20260822-030000F_20260822-090000I";
        let target = read(Asked { backup: text(label), ..asked() });
        assert_eq!(target.map(|it| it.backup), Ok(text(label)));
        let target = read(Asked { up_to_gap: true, ..asked() });
        assert_eq!(target.map(|it| it.up_to_gap), Ok(true));
        for asked in [
            Asked { exclusive: true, xid: text("5"), ..asked() },
            Asked { exclusive: true, lsn: text("0/5"), ..asked() },
            Asked { exclusive: true, time: text("2026-11-22"), ..asked() },
        ] {
            assert_eq!(read(asked).map(|it| it.inclusive), Ok(false));
        }
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        let lsn = || text("0/5");
        for (asked, message) in [
            (
                Asked { lsn: lsn(), time: text("2026-11-22"), ..asked() },
                "two targets are given: the time \"2026-11-22\", and the position \"0/5\"",
            ),
            (
                Asked { latest: true, immediate: true, ..asked() },
                "two targets are given: latest, and immediate",
            ),
            (
                Asked { xid: text("5"), name: text("x"), ..asked() },
                "two targets are given: the transaction \"5\", and the restore point \"x\"",
            ),
            // Bad ones are two as well.
            (
                Asked { xid: text("?"), lsn: text("?"), ..asked() },
                "two targets are given: the transaction \"?\", and the position \"?\"",
            ),
            (Asked { xid: text("2"), ..asked() }, "\"2\" is not a transaction id"),
            (Asked { xid: text("4294967298"), ..asked() }, "\"4294967298\" is not a transaction"),
            (Asked { xid: text("-5"), ..asked() }, "\"-5\" is not a transaction id"),
            (Asked { xid: text("+5"), ..asked() }, "\"+5\" is not a transaction id"),
            (Asked { xid: text("18446744073709551616"), ..asked() }, "is not a transaction id"),
            (Asked { lsn: text("5"), ..asked() }, "\"5\" is not a WAL position"),
            (Asked { name: Some("é".repeat(32)), ..asked() }, "has 64 bytes"),
            (Asked { name: text("a\nb"), ..asked() }, "has the character '\\n' in it"),
            (Asked { timeline: text("0"), ..asked() }, "\"0\" is not a timeline"),
            (Asked { timeline: text("010"), ..asked() }, "\"010\" is not a timeline"),
            (Asked { timeline: text("0x"), ..asked() }, "\"0x\" is not a timeline"),
            (Asked { timeline: text("0x0"), ..asked() }, "\"0x0\" is not a timeline"),
            (Asked { timeline: text("0x+1"), ..asked() }, "\"0x+1\" is not a timeline"),
            (Asked { timeline: text("4294967296"), ..asked() }, "\"4294967296\" is not a time"),
            (Asked { timeline: text("newest"), ..asked() }, "\"newest\" is not a timeline"),
            (Asked { action: text("stop"), lsn: lsn(), ..asked() }, "\"stop\" is not an action"),
            (Asked { action: text("pause"), ..asked() }, "does not pause at the end of the WAL"),
            (
                Asked { action: text("shutdown"), latest: true, ..asked() },
                "PostgreSQL does not shut down at the end of the WAL: it promotes there",
            ),
            (Asked { exclusive: true, ..asked() }, "the latest target cannot be exclusive"),
            (
                Asked { exclusive: true, immediate: true, ..asked() },
                "the immediate target cannot be exclusive",
            ),
            (
                Asked { exclusive: true, name: text("x"), ..asked() },
                "a restore point cannot be exclusive",
            ),
            (
                Asked { up_to_gap: true, lsn: lsn(), ..asked() },
                "a position and --up-to-gap exclude each other",
            ),
            (
                Asked { backup: text("newest"), ..asked() },
                "\"newest\" is not the label of a backup",
            ),
        ] {
            let refusal = read(asked).expect_err(message);
            assert!(refusal.message.contains(message), "{refusal:?}");
            assert!(refusal.hint.ends_with('.'), "{refusal:?}");
        }
    }
}
