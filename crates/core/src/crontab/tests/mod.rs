mod random;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    let instant = DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M%#z");
    instant.map_or_else(|_| text.parse().expect(text), |instant| instant.to_utc())
}

fn next_runs(line: &str, zone: Tz, from: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    let crontab = Crontab::parse(line).expect(line);
    iter::successors(crontab.next_after(from, zone), |&run| crontab.next_after(run, zone))
        .take(count)
        .collect()
}

/// The cells of a table, whose rows are lines and whose columns are set apart by `|`.
fn rows<const N: usize>(table: &str) -> impl Iterator<Item = [&str; N]> {
    let rows = table.lines().map(str::trim).filter(|row| !row.is_empty() && !row.starts_with('#'));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        cells.try_into().unwrap_or_else(|_| panic!("not {N} cells: {row}"))
    })
}

/// Rows of: zone, line, an instant, the runs that follow.
fn check_runs(table: &str) {
    for [zone, line, from, runs] in rows(table) {
        let expected: Vec<_> = runs.split_whitespace().map(at).collect();
        assert!(!expected.is_empty(), "\"{line}\" after {from}: nothing to compare");
        let runs = next_runs(line, zone.parse().expect(zone), at(from), expected.len());
        assert_eq!(runs, expected, "\"{line}\" in {zone} after {from}");
    }
}

#[test]
fn runs_at_the_times_of_the_line() {
    check_runs(
        "
        UTC | 0 3 * * *               | 2024-01-01T02:59:59Z     | 2024-01-01T03:00Z
        UTC | 0 3 * * *               | 2024-01-01T02:59:59.999Z | 2024-01-01T03:00Z
        UTC | 0 3 * * *               | 2024-01-01T03:00:00Z     | 2024-01-02T03:00Z
        UTC | 0 3 * * *               | 2024-01-01T03:00:00.001Z | 2024-01-02T03:00Z
        UTC | * * * * *               | 2024-01-01T23:58:30Z     | 2024-01-01T23:59Z 2024-01-02T00:00Z
        UTC | */15 * * * *            | 2024-01-01T00:22:00Z     | 2024-01-01T00:30Z 2024-01-01T00:45Z 2024-01-01T01:00Z
        # 1, 6, 11, 16, 21, 26
        UTC | 1-30/5 0 * * *          | 2024-01-01T00:20:00Z     | 2024-01-01T00:21Z 2024-01-01T00:26Z 2024-01-02T00:01Z
        UTC | 05,9-10,50 08 * * *     | 2024-01-01T08:05:00Z     | 2024-01-01T08:09Z 2024-01-01T08:10Z 2024-01-01T08:50Z
        # A step beyond the field leaves its first value.
        UTC | */90 * * * *            | 2024-01-01T00:30:00Z     | 2024-01-01T01:00Z 2024-01-01T02:00Z
        UTC | 10-20/99999999999 0 * * * | 2024-01-01T00:30:00Z   | 2024-01-02T00:10Z 2024-01-03T00:10Z
        UTC | 59 23 31 12 *           | 2024-12-31T23:59:00Z     | 2025-12-31T23:59Z
        UTC | @hourly                 | 2024-01-01T00:00:00Z     | 2024-01-01T01:00Z 2024-01-01T02:00Z
        UTC | @daily                  | 2024-01-01T00:00:00Z     | 2024-01-02T00:00Z 2024-01-03T00:00Z
        UTC | @midnight               | 2024-01-01T00:00:00Z     | 2024-01-02T00:00Z 2024-01-03T00:00Z
        UTC | @Weekly                 | 2024-01-01T00:00:00Z     | 2024-01-07T00:00Z 2024-01-14T00:00Z
        UTC | @MONTHLY                | 2024-01-01T00:00:00Z     | 2024-02-01T00:00Z 2024-03-01T00:00Z
        UTC | @yearly                 | 2024-01-01T00:00:00Z     | 2025-01-01T00:00Z 2026-01-01T00:00Z
        UTC | @annually               | 2024-01-01T00:00:00Z     | 2025-01-01T00:00Z 2026-01-01T00:00Z
        ",
    );
}

#[test]
fn runs_on_the_days_of_the_line() {
    // 2024 begins with a Monday and has a 29 February. From its first instant:
    let table = "
        # From crontab(5): the 1st and the 15th, plus every Friday.
        30 4 1,15 * 5         | 01-01 01-05 01-12 01-15 01-19 01-26 02-01
        30 4 1,15 * *         | 01-01 01-15 02-01
        30 4 * * 5            | 01-05 01-12 01-19
        # A field that begins with * is not restricted, so both must match: Mondays with an odd
        # date, and a 10th that is a Sunday, Tuesday, Thursday or Saturday.
        30 4 */2 * mon        | 01-01 01-15 01-29 02-05 02-19
        30 4 10 * */2         | 02-10 03-10 08-10
        30 4 *,5 * mon        | 01-01 01-08 01-15
        # The same values without the * in front are restricted: either is enough.
        30 4 1-31/2 * mon     | 01-01 01-03 01-05 01-07 01-08 01-09 01-11
        30 4 5,* * mon        | 01-01 01-02 01-03
        30 4 1-31 * mon       | 01-01 01-02 01-03
        30 4 30 2 mon         | 02-05 02-12 02-19 02-26
        # Sunday is 0 and 7.
        30 4 * * 0            | 01-07 01-14
        30 4 * * 7            | 01-07 01-14
        30 4 * * 0,7          | 01-07 01-14
        30 4 * * Sun          | 01-07 01-14
        30 4 * * */7          | 01-07 01-14
        30 4 * * */5          | 01-05 01-07 01-12
        30 4 * * 5-7          | 01-05 01-06 01-07 01-12
        30 4 * * 5-7/2        | 01-05 01-07 01-12
        30 4 * * fri-SUN      | 01-05 01-06 01-07 01-12
        30 4 * * 6-sun        | 01-06 01-07 01-13
        30 4 * * sun-tue      | 01-01 01-02 01-07 01-08
        30 4 * * sun-sun      | 01-07 01-14
        30 4 * * MON-fri/2    | 01-01 01-03 01-05 01-08
        30 4 * * 0-7          | 01-01 01-02 01-03
        # Months of different lengths.
        30 4 31 * *           | 01-31 03-31 05-31 07-31 08-31 10-31 12-31
        30 4 30 2,4 *         | 04-30
        30 4 29-31 2 *        | 02-29
        30 4 1 Jan-MAR/2,dec * | 01-01 03-01 12-01
        ";
    for [line, days] in rows(table) {
        let expected: Vec<_> =
            days.split_whitespace().map(|day| at(&format!("2024-{day}T04:30Z"))).collect();
        let runs = next_runs(line, Tz::UTC, at("2024-01-01T00:00Z"), expected.len());
        assert_eq!(runs, expected, "\"{line}\"");
    }
}

#[test]
fn leap_days_come_and_the_calendar_ends() {
    check_runs(
        "
        UTC | 0 0 29 2 *   | 2024-02-29T00:00Z | 2028-02-29T00:00Z
        # Both must match, and */7 is Sunday.
        UTC | 0 0 29 2 */7 | 2024-02-29T00:00Z | 2032-02-29T00:00Z
        ",
    );
    // 2100 is not a leap year, and of 2104 nothing is known.
    for (line, from) in [
        ("0 0 29 2 *", at("2096-02-29T00:00Z")),
        ("* * * * *", at("2100-12-31T23:59Z")),
        ("* * * * *", DateTime::<Utc>::MAX_UTC),
    ] {
        for zone in [Tz::UTC, Tz::Pacific__Kiritimati] {
            assert!(next_runs(line, zone, from, 1).is_empty(), "\"{line}\" in {zone} after {from}");
        }
    }
    let first = next_runs("* * * * *", Tz::America__New_York, DateTime::<Utc>::MIN_UTC, 1);
    assert_eq!(first, [at("1970-01-01T00:00-05")]);
}

#[test]
fn fixed_times_run_once_across_clock_changes() {
    check_runs(
        "
        # 02:00 to 03:00 on 31 March and 03:00 to 02:00 on 27 October 2024.
        Europe/Berlin | 59 1 * * *    | 2024-03-30T12:00+01 | 2024-03-31T01:59+01 2024-04-01T01:59+02
        Europe/Berlin | 30 2 * * *    | 2024-03-30T12:00+01 | 2024-03-31T03:00+02 2024-04-01T02:30+02
        Europe/Berlin | 0,30 2 * * *  | 2024-03-30T12:00+01 | 2024-03-31T03:00+02 2024-04-01T02:00+02 2024-04-01T02:30+02
        Europe/Berlin | 30 2,3 * * *  | 2024-03-30T12:00+01 | 2024-03-31T03:00+02 2024-03-31T03:30+02 2024-04-01T02:30+02
        Europe/Berlin | 0 3 * * *     | 2024-03-30T12:00+01 | 2024-03-31T03:00+02 2024-04-01T03:00+02
        Europe/Berlin | 0 2 * * *     | 2024-10-26T12:00+02 | 2024-10-27T02:00+02 2024-10-28T02:00+01
        Europe/Berlin | 30 2 * * *    | 2024-10-26T12:00+02 | 2024-10-27T02:30+02 2024-10-28T02:30+01
        Europe/Berlin | 0 3 * * *     | 2024-10-26T12:00+02 | 2024-10-27T03:00+01 2024-10-28T03:00+01
        Europe/Berlin | 10,50 2 * * * | 2024-10-27T02:30+02 | 2024-10-27T02:50+02 2024-10-28T02:10+01
        # Asked in the second pass, before and after the time is shown again.
        Europe/Berlin | 30 2 * * *    | 2024-10-27T02:00+01 | 2024-10-28T02:30+01
        Europe/Berlin | 30 2 * * *    | 2024-10-27T02:40+01 | 2024-10-28T02:30+01

        # 02:00 to 03:00 on 10 March and 02:00 to 01:00 on 3 November 2024, both a Sunday.
        America/New_York | 15 2 * * sun | 2024-03-05T00:00-05 | 2024-03-10T03:00-04 2024-03-17T02:15-04
        America/New_York | 30 1 * * *   | 2024-11-02T12:00-04 | 2024-11-03T01:30-04 2024-11-04T01:30-05

        # Half an hour: 02:00 to 01:30 on 7 April and 02:00 to 02:30 on 6 October 2024.
        Australia/Lord_Howe | 15 2 * * * | 2024-10-05T12:00+10:30 | 2024-10-06T02:30+11 2024-10-07T02:15+11
        Australia/Lord_Howe | 45 1 * * * | 2024-04-06T12:00+11    | 2024-04-07T01:45+11 2024-04-08T01:45+10:30

        # Samoa left out 30 December 2011, a Friday.
        Pacific/Apia | 0 3 * * *   | 2011-12-28T12:00-10 | 2011-12-29T03:00-10 2011-12-31T00:00+14 2011-12-31T03:00+14
        Pacific/Apia | 0 3 * * fri | 2011-12-24T00:00-10 | 2011-12-31T00:00+14 2012-01-06T03:00+14
        Pacific/Apia | 0 3 30 * *  | 2011-12-01T00:00-10 | 2011-12-31T00:00+14 2012-01-30T03:00+14

        # At midnight: 00:00 to 01:00 on Sunday, 4 November 2018, and from 00:00 on 17 February
        # 2019 back to 23:00 of the day before.
        America/Sao_Paulo | 0 0 * * *   | 2018-11-03T12:00-03 | 2018-11-04T01:00-02 2018-11-05T00:00-02
        America/Sao_Paulo | @weekly     | 2018-11-03T12:00-03 | 2018-11-04T01:00-02 2018-11-11T00:00-02
        America/Sao_Paulo | 30 23 * * * | 2019-02-16T12:00-02 | 2019-02-16T23:30-02 2019-02-17T23:30-03
        America/Sao_Paulo | 0 0 * * *   | 2019-02-16T12:00-02 | 2019-02-17T00:00-03 2019-02-18T00:00-03

        # Around Ramadan: 03:00 to 02:00 on 10 March and 02:00 to 03:00 on 14 April 2024.
        Africa/Casablanca | 30 2 * * * | 2024-03-09T12:00+01 | 2024-03-10T02:30+01 2024-03-11T02:30+00
        Africa/Casablanca | 30 2 * * * | 2024-04-13T12:00+00 | 2024-04-14T03:00+01 2024-04-15T02:30+01
        ",
    );
}

#[test]
fn other_times_run_whenever_the_clock_shows_them() {
    // The changes are those of the table above.
    check_runs(
        "
        Europe/Berlin | 0 * * * *    | 2024-03-31T00:30+01 | 2024-03-31T01:00+01 2024-03-31T03:00+02 2024-03-31T04:00+02
        # The hour is skipped and so are its quarters.
        Europe/Berlin | */15 2 * * * | 2024-03-30T12:00+01 | 2024-04-01T02:00+02 2024-04-01T02:15+02
        Europe/Berlin | */30 2 * * * | 2024-10-26T12:00+02 | 2024-10-27T02:00+02 2024-10-27T02:30+02 2024-10-27T02:00+01 2024-10-27T02:30+01 2024-10-28T02:00+01
        Europe/Berlin | 15 * * * *   | 2024-10-27T02:30+02 | 2024-10-27T02:15+01 2024-10-27T03:15+01
        Europe/Berlin | * * * * *    | 2024-10-27T02:58+02 | 2024-10-27T02:59+02 2024-10-27T02:00+01 2024-10-27T02:01+01

        America/New_York | 0 */6 * * * | 2024-11-02T20:00-04 | 2024-11-03T00:00-04 2024-11-03T06:00-05 2024-11-03T12:00-05

        Australia/Lord_Howe | 0 * * * *  | 2024-10-06T00:30+10:30 | 2024-10-06T01:00+10:30 2024-10-06T03:00+11
        Australia/Lord_Howe | 45 * * * * | 2024-04-07T01:00+11    | 2024-04-07T01:45+11 2024-04-07T01:45+10:30 2024-04-07T02:45+10:30

        Pacific/Apia | 0 * * * * | 2011-12-29T22:30-10 | 2011-12-29T23:00-10 2011-12-31T00:00+14 2011-12-31T01:00+14

        America/Sao_Paulo | 0 */6 * * * | 2018-11-03T17:00-03 | 2018-11-03T18:00-03 2018-11-04T06:00-02
        America/Sao_Paulo | 30 * * * *  | 2019-02-16T23:00-02 | 2019-02-16T23:30-02 2019-02-16T23:30-03 2019-02-17T00:30-03
        ",
    );
}

#[test]
fn refusals_name_field_value_and_reason() {
    let fields = r#"
        60 * * * *          | minute       | 60       | 60 lies outside 0 to 59
        * 24 * * *          | hour         | 24       | 24 lies outside 0 to 23
        * * 0 * *           | day of month | 0        | 0 lies outside 1 to 31
        * * 1,32 * *        | day of month | 1,32     | 32 lies outside 1 to 31
        * * * 13 *          | month        | 13       | 13 lies outside 1 to 12
        * * * 0-3 *         | month        | 0-3      | 0 lies outside 1 to 12
        * * * * 8           | day of week  | 8        | 8 lies outside 0 to 7
        99999999999 * * * * | minute       | 99999999999 | 99999999999 lies outside 0 to 59
        30-10 * * * *       | minute       | 30-10    | the range 30-10 runs backwards
        0 0 * * fri-mon     | day of week  | fri-mon  | the range fri-mon runs backwards
        0 0 * * 5-0         | day of week  | 5-0      | the range 5-0 runs backwards; Sunday at the end of a range is 7
        */0 * * * *         | minute       | */0      | a step of 0 never gets on
        */ * * * *          | minute       | */       | "" is not a step
        */-5 * * * *        | minute       | */-5     | "-5" is not a step
        */5/5 * * * *       | minute       | */5/5    | "5/5" is not a step
        5/10 * * * *        | minute       | 5/10     | a step follows a range or *, such as 5-59/10
        1,,2 * * * *        | minute       | 1,,2     | a value is missing beside a comma
        1, * * * *          | minute       | 1,       | a value is missing beside a comma
        *5 * * * *          | minute       | *5       | "*5" is not a number
        5; * * * *          | minute       | 5;       | "5;" is not a number
        +5 * * * *          | minute       | +5       | "+5" is not a number
        ٥ * * * *           | minute       | ٥        | "٥" is not a number
        -5 * * * *          | minute       | -5       | "" is not a number
        1-2-3 * * * *       | minute       | 1-2-3    | "2-3" is not a number
        mon * * * *         | minute       | mon      | "mon" is not a number
        '0 3 * * *'         | minute       | '0       | "'0" is not a number
        * * ? * *           | day of month | ?        | "?" is not a number
        * * L * *           | day of month | L        | "L" is not a number
        * * * january *     | month        | january  | "january" is neither a number nor a name of three letters such as feb
        * * * * sunday      | day of week  | sunday   | "sunday" is neither a number nor a name of three letters such as mon
        * * * * mon#1       | day of week  | mon#1    | "mon#1" is neither a number nor a name of three letters such as mon
        0 0 30 2 *          | day of month | 30       | it would never run, no month of "2" has that many days
        0 0 31 feb,4,6 */2  | day of month | 31       | it would never run, no month of "feb,4,6" has that many days
        "#;
    for [text, field, value, reason] in rows(fields) {
        let error = Crontab::parse(text).expect_err(text);
        assert_eq!((error.field, &*error.value, &*error.reason), (field, value, reason), "{text}");
    }
    let lines = "
                          | it has 0 fields, a crontab line has five
        hourly            | it has 1 field, a crontab line has five
        0 0 * *           | it has 4 fields, a crontab line has five
        0 0 3 * * *       | it has 6 fields, a crontab line has five
        0 0 3 * * * 2024  | it has 7 fields, a crontab line has five
        @reboot           | it names an event and not a time; the names of times are @hourly, @daily
        @fortnightly      | there is no such name; the names are @hourly, @daily
        @daily 5          | there is no such name; the names are @hourly, @daily
        ";
    for [text, reason] in rows(lines) {
        let error = Crontab::parse(text).expect_err(text);
        assert_eq!((error.field, &*error.value), ("schedule", text));
        assert!(error.reason.starts_with(reason), "{text}: {}", error.reason);
    }
    for (text, sentence) in [
        ("0 25 * * *", "The hour is \"25\": 25 lies outside 0 to 23."),
        (
            " 0 0 3 * * * ",
            "The schedule is \"0 0 3 * * *\": it has 6 fields, a crontab line has five: minute, \
             hour, day of month, month and day of week, and none for seconds, years or a command.",
        ),
    ] {
        assert_eq!(Crontab::parse(text).expect_err(text).to_string(), sentence);
    }
}

#[test]
fn a_schedule_may_be_off() {
    for text in ["", "  ", "off", "OFF", " Off\n"] {
        assert_eq!(parse_schedule(text), Ok(None), "{text:?}");
    }
    let daily = parse_schedule(" 0\t 3 *  * * \n").expect("a schedule").expect("not off");
    assert_eq!(daily.text(), "0\t 3 *  * *");
    assert_eq!(parse_schedule("offf").expect_err("a typing error").value, "offf");
}

#[test]
fn finds_zones_in_any_case() {
    for (text, name) in [
        ("Europe/Berlin", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        (" AMERICA/ARGENTINA/BUENOS_AIRES ", "America/Argentina/Buenos_Aires"),
        ("utc", "UTC"),
        ("etc/gmt-3", "Etc/GMT-3"),
    ] {
        assert_eq!(parse_zone(text).map(|zone| zone.name()), Ok(name), "{text:?}");
    }
    let common = "names look like Europe/Berlin, America/New_York or UTC";
    for (text, advice) in [
        ("Berlin", "perhaps Europe/Berlin is meant"),
        ("US/new york", "perhaps America/New_York is meant"),
        ("", common),
        ("UTC+2", common),
    ] {
        assert_eq!(
            parse_zone(text).expect_err(text).to_string(),
            format!("There is no time zone \"{text}\" in the IANA database; {advice}.")
        );
    }
}

proptest! {
    #[test]
    fn reading_never_panics(
        text in "\\PC*|[-0-9*/,@ a-z]{0,20}|([-0-9*/,]{1,4} ){4}[-0-9*/,]{1,4}",
        seconds in DateTime::<Utc>::MIN_UTC.timestamp()..=DateTime::<Utc>::MAX_UTC.timestamp(),
        zone in prop::sample::select(&TZ_VARIANTS[..]),
    ) {
        let _ = parse_zone(&text);
        if let Ok(Some(crontab)) = parse_schedule(&text) {
            let instant = DateTime::from_timestamp(seconds, 999_999_999).expect("in range");
            let run = crontab.next_after(instant, zone);
            prop_assert!(run.is_none_or(|run| run > instant));
        }
    }
}
