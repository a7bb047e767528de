//! Compares random lines with an independent implementation (croner) and with the rules themselves,
//! applied minute by minute.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use chrono::{Datelike, Duration, Offset, Timelike};
use croner::parser::{CronParser, Seconds, Year};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::*;

/// One element of a field, with the values it means.
#[derive(Debug, Clone)]
struct Element {
    text: String,
    values: BTreeSet<u32>,
}

#[derive(Debug, Clone)]
struct Field(Vec<Element>);

impl Field {
    fn has(&self, value: u32) -> bool {
        self.0.iter().any(|element| element.values.contains(&value))
    }

    fn starred(&self) -> bool {
        self.0[0].text.starts_with('*')
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements: Vec<_> = self.0.iter().map(|element| element.text.as_str()).collect();
        f.write_str(&elements.join(","))
    }
}

/// A line of which we know what it means without reading it.
#[derive(Clone)]
struct Line {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} {}", self.minute, self.hour, self.day, self.month, self.weekday)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Line {
    fn wants_both_days(&self) -> bool {
        self.day.starred() || self.weekday.starred()
    }

    fn on_date(&self, date: NaiveDate) -> bool {
        let weekday = date.weekday().num_days_from_sunday();
        let weekday = self.weekday.has(weekday) || weekday == 0 && self.weekday.has(7);
        let day = self.day.has(date.day());
        let days = if self.wants_both_days() { day && weekday } else { day || weekday };
        days && self.month.has(date.month())
    }

    fn at_time(&self, wall: NaiveDateTime) -> bool {
        self.minute.has(wall.minute()) && self.hour.has(wall.hour()) && self.on_date(wall.date())
    }

    fn fixed_time(&self) -> bool {
        !self.minute.starred() && !self.hour.starred()
    }
}

const MONTHS: [&str; 12] =
    ["jan", "Feb", "MAR", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 8] = ["sun", "mon", "TUE", "wed", "thu", "fri", "sat", "Sun"];

/// One element within `first..=last`; names stand for the values from `first` on.
fn element(
    first: u32,
    last: u32,
    names: &'static [&'static str],
) -> impl Strategy<Value = Element> {
    let written = move |value: u32, named: bool| match names.get((value - first) as usize) {
        Some(name) if named => name.to_string(),
        _ => value.to_string(),
    };
    (0u32..3, first..=last, first..=last, prop::option::of(1..=last + 5), any::<[bool; 2]>())
        .prop_map(move |(kind, a, b, step, named)| {
            let (from, to) = match kind {
                0 => (a, a),
                1 => (a.min(b), a.max(b)),
                _ => (first, last),
            };
            // "sun" is 0, except that a range which begins later can end with it.
            let last_named = named[1] && (to != 7 || from > 0);
            let range = match kind {
                0 => written(a, named[0] && a != 7),
                1 => format!(
                    "{}-{}",
                    written(from, named[0] && from != 7),
                    written(to, last_named && to != 0)
                ),
                _ => "*".to_string(),
            };
            match step {
                Some(step) if kind != 0 => Element {
                    text: format!("{range}/{step}"),
                    values: (from..=to).filter(|value| (value - from) % step == 0).collect(),
                },
                _ => Element { text: range, values: (from..=to).collect() },
            }
        })
}

fn star(first: u32, last: u32) -> Field {
    Field(vec![Element { text: "*".to_string(), values: (first..=last).collect() }])
}

/// A field; `stars_in_lists` allows the likes of `5,*`.
fn field(
    first: u32,
    last: u32,
    names: &'static [&'static str],
    stars_in_lists: bool,
) -> impl Strategy<Value = Field> {
    let one = move || element(first, last, names);
    let listed = one().prop_filter("a star in a list", move |element| {
        stars_in_lists || !element.text.starts_with('*')
    });
    prop_oneof![
        2 => Just(star(first, last)),
        3 => one().prop_map(|element| Field(vec![element])),
        2 => prop::collection::vec(listed, 1..4).prop_map(Field),
    ]
}

fn any_line(stars_in_lists: bool) -> impl Strategy<Value = Line> {
    (
        field(0, 59, &[], stars_in_lists),
        field(0, 23, &[], stars_in_lists),
        field(1, 31, &[], stars_in_lists),
        field(1, 12, &MONTHS, stars_in_lists),
        field(0, 7, &WEEKDAYS, stars_in_lists),
    )
        .prop_map(|(minute, hour, day, month, weekday)| Line {
            minute,
            hour,
            day,
            month,
            weekday,
        })
}

/// From 1971 to 2060, so that before the calendar ends there is still a 29 February on every day of
/// the week.
fn any_instant() -> impl Strategy<Value = DateTime<Utc>> {
    (31_536_000_000i64..2_840_140_800_000)
        .prop_map(|millis| DateTime::from_timestamp_millis(millis).expect("in range"))
}

/// The same cases on every run.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Reads the line with both implementations; `None` if it is refused because it never runs.
fn both(line: &Line) -> Result<Option<(Crontab, croner::Cron)>, TestCaseError> {
    let theirs = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        // croner calls a day field unrestricted when it is a mere *; cron, when it begins with
        // one. The difference is whether both days must match, which it can be told.
        .dom_and_dow(line.wants_both_days())
        .build()
        .parse(&line.to_string())
        .map_err(|error| TestCaseError::fail(format!("croner: {error}")))?;
    match Crontab::parse(&line.to_string()) {
        Ok(ours) => Ok(Some((ours, theirs))),
        Err(error) if error.reason.starts_with("it would never run") => {
            // In 28 years every date falls on every day of the week.
            let first = NaiveDate::from_ymd_opt(1972, 1, 1).expect("a date");
            prop_assert!(
                !first.iter_days().take(28 * 366).any(|date| line.on_date(date)),
                "{error}"
            );
            Ok(None)
        }
        Err(error) => Err(TestCaseError::fail(error.to_string())),
    }
}

#[test]
fn agrees_with_croner_on_120_000_random_pairs() {
    let pairs = Cell::new(0);
    let instants = [(); 3].map(|()| any_instant());
    runner(21_000)
        .run(&(any_line(false), instants), |(line, instants)| {
            let Some((ours, theirs)) = both(&line)? else { return Ok(()) };
            for instant in instants {
                let run = ours.next_after(instant, Tz::UTC);
                prop_assert_eq!(run, theirs.find_next_occurrence(&instant, false).ok());
                // And once more from a time that is one of its own.
                let Some(instant) = run else { continue };
                let run = ours.next_after(instant, Tz::UTC);
                prop_assert_eq!(run, theirs.find_next_occurrence(&instant, false).ok());
                pairs.set(pairs.get() + 2);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(pairs.get() >= 120_000, "only {} pairs were compared", pairs.get());
}

fn offset(instant: DateTime<Utc>, zone: Tz) -> i32 {
    zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc()
}

/// At a change of the clock croner's rules are not cron's: to it `0,30 2 * * *` is not for a fixed
/// time, and a run after a gap needs a day that matches too. So this stays two days away.
#[test]
fn agrees_with_croner_in_zones_away_from_clock_changes() {
    let compared = Cell::new(0);
    let zones = prop::sample::select(vec![
        Tz::Europe__Berlin,
        Tz::America__New_York,
        Tz::Australia__Lord_Howe,
    ]);
    runner(10_000)
        .run(&(any_line(false), any_instant(), zones), |(line, instant, zone)| {
            let Some((ours, theirs)) = both(&line)? else { return Ok(()) };
            let Some(run) = ours.next_after(instant, zone) else { return Ok(()) };
            let margin = Duration::days(2);
            let unchanged = offset(instant - margin, zone) == offset(run + margin, zone);
            if unchanged && run - instant < Duration::days(60) {
                let theirs = theirs.find_next_occurrence(&instant.with_timezone(&zone), false);
                prop_assert_eq!(Some(run), theirs.ok().map(|run| run.to_utc()));
                compared.set(compared.get() + 1);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(compared.get() >= 5_000, "only {} pairs were compared", compared.get());
}

/// The instants between 1970 and 2050 at which the clock of a zone changes.
fn clock_changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let day = Duration::days(1);
    let days = iter::successors(Some(at("1970-01-03T00:00:00Z")), |&instant| Some(instant + day));
    days.take(80 * 365)
        .filter(|&instant| offset(instant, zone) != offset(instant + day, zone))
        .map(|mut before| {
            let mut after = before + day;
            while after - before > Duration::seconds(1) {
                let middle = before + (after - before) / 2;
                if offset(middle, zone) == offset(before, zone) {
                    before = middle;
                } else {
                    after = middle;
                }
            }
            // Bisecting leaves fractions of a second.
            DateTime::from_timestamp(after.timestamp(), 0).expect("in range")
        })
        .collect()
}

/// What runs within the minutes from `begin` to `end`, by the rules as the module states them.
fn by_the_rules(
    line: &Line,
    zone: Tz,
    begin: DateTime<Utc>,
    end: DateTime<Utc>,
) -> Vec<DateTime<Utc>> {
    let minute = Duration::minutes(1);
    let minutes = iter::successors(Some(begin), |&instant| Some(instant + minute));
    let wall = |instant: DateTime<Utc>| instant.with_timezone(&zone).naive_local();
    let mut latest_shown = wall(begin);
    let mut runs = Vec::new();
    for instant in minutes.skip(1).take_while(|&instant| instant <= end) {
        let shown = wall(instant);
        let mut newly_reached =
            iter::successors(Some(latest_shown + minute), |&time| Some(time + minute))
                .take_while(|&time| time <= shown);
        let due = if line.fixed_time() {
            newly_reached.any(|time| line.at_time(time))
        } else {
            line.at_time(shown)
        };
        if due {
            runs.push(instant);
        }
        latest_shown = latest_shown.max(shown);
    }
    runs
}

#[test]
fn follows_its_rules_through_clock_changes_minute_by_minute() {
    let zones = [
        Tz::Europe__Berlin,
        Tz::America__New_York,
        Tz::Australia__Lord_Howe, // half an hour
        Tz::Pacific__Apia,        // a day left out in 2011
        Tz::Pacific__Kwajalein,   // a day left out in 1993
        Tz::America__Sao_Paulo,   // at midnight
        Tz::Africa__Casablanca,   // around Ramadan
        Tz::Antarctica__Troll,    // two hours
        Tz::Antarctica__Casey,    // three hours, both ways
        Tz::Asia__Pyongyang,      // half an hour back in 2015, and forth in 2018
        Tz::Asia__Kathmandu,      // a quarter of an hour in 1986
    ];
    let changes: Vec<_> = zones
        .iter()
        .flat_map(|&zone| clock_changes(zone).into_iter().map(move |at| (zone, at)))
        .collect();
    let lines = any_line(true).prop_flat_map(|line| {
        // Most lines run within the few days that are looked at.
        let every_day =
            Line { day: star(1, 31), month: star(1, 12), weekday: star(0, 7), ..line.clone() };
        prop_oneof![1 => Just(line), 4 => Just(every_day)]
    });
    let compared = Cell::new(0);
    runner(800)
        .run(
            &(lines, prop::sample::select(changes), 0i64..3600 * 50),
            |(line, (zone, change), start)| {
                let Ok(ours) = Crontab::parse(&line.to_string()) else { return Ok(()) };
                let (begin, end) = (change - Duration::hours(26), change + Duration::hours(26));
                let expected = by_the_rules(&line, zone, begin, end);
                let next = |instant| ours.next_after(instant, zone).filter(|&run| run <= end);
                let runs: Vec<_> = iter::successors(next(begin), |&run| next(run)).collect();
                prop_assert_eq!(&runs, &expected, "{} around {}", zone, change);
                // The same from anywhere, so that no answer depends on the run before.
                let start = begin + Duration::seconds(start);
                prop_assert_eq!(
                    next(start),
                    expected.into_iter().find(|&run| run > start),
                    "{} from {}",
                    zone,
                    start
                );
                compared.set(compared.get() + runs.len());
                Ok(())
            },
        )
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(compared.get() >= 100_000, "only {} runs were compared", compared.get());
}
