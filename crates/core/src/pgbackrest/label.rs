//! Chooses the time zone in which pgBackRest names its next backup.
//!
//! A label is made of local times, and pgBackRest refuses one that is not later than the newest
//! label of the repository. In UTC time never jumps back, so every pgBackRest of ours runs in UTC.
//! Labels from before that, or of a pgBackRest that somebody runs by hand in a zone east of UTC,
//! lie up to 14 hours ahead. The next backup is then named in the zone that lies just far enough
//! east, which comes back to UTC as time passes.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};

/// The time zone that pgBackRest runs in.
pub const UTC: &str = "UTC";

/// POSIX zones go no further. A label that lies further ahead comes from a wrong clock.
const FARTHEST: TimeDelta = TimeDelta::hours(24);

/// The value of `TZ` for a backup at `now`, where the repository holds backups with these labels.
pub fn zone_for_next<'a>(labels: impl Iterator<Item = &'a str>, now: DateTime<Utc>) -> String {
    let Some(newest) = labels.flat_map(times).max() else { return UTC.to_string() };
    let ahead = newest - now.naive_utc();
    if ahead < TimeDelta::zero() || ahead >= FARTHEST {
        return UTC.to_string();
    }
    // Later than the label by a second at least, and by a minute at most.
    let minutes = ahead.num_minutes() + 1;
    // POSIX counts to the west.
    format!("UTC-{:02}:{:02}", minutes / 60, minutes % 60)
}

/// The local times in a label: of the full backup that it builds on, and its own.
fn times(label: &str) -> impl Iterator<Item = NaiveDateTime> {
    label.split('_').filter_map(|part| {
        let time = part.get(..15)?;
        NaiveDateTime::parse_from_str(time, "%Y%m%d-%H%M%S").ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(labels: &[&str], now: &str) -> String {
        let now = format!("{now}Z").parse().expect("a time");
        zone_for_next(labels.iter().copied(), now)
    }

    #[test]
    fn a_backup_is_named_in_utc_unless_a_label_lies_ahead() {
        let now = "2026-10-25T01:10:00";
        for (labels, expected) in [
            (&[][..], "UTC"),
            (&["20261025-010959F"], "UTC"),
            // The very second: pgBackRest itself waits for the next one, at most.
            (&["20261025-011000F"], "UTC-00:01"),
            // Taken in Berlin, an hour before the clock went back.
            (&["20261025-023000F"], "UTC-01:21"),
            (&["20261024-000000F", "20261024-000000F_20261025-023000I"], "UTC-01:21"),
            (&["20261025-151000F"], "UTC-14:01"),
            // The clock was wrong.
            (&["20271025-010000F"], "UTC"),
            (&["20261025-011000", "no label", "2026x025-011000F"], "UTC-00:01"),
        ] {
            assert_eq!(zone(labels, now), expected, "{labels:?}");
        }
    }

    proptest! {
        /// Whatever was there, the next label is later, and so is the one after that.
        #[test]
        fn the_next_label_is_later(ahead in -100_000i64..86_000, pauses in prop::collection::vec(1i64..5000, 1..20)) {
            let mut now: DateTime<Utc> = "2026-10-25T01:10:00Z".parse().expect("a time");
            let mut newest = (now + TimeDelta::seconds(ahead)).naive_utc();
            for pause in pauses {
                now += TimeDelta::seconds(pause);
                let label = format!("{}F", newest.format("%Y%m%d-%H%M%S"));
                let zone = zone_for_next([label.as_str()].into_iter(), now);
                let east = zone.strip_prefix("UTC-").map_or(0, |offset| {
                    let (hours, minutes) = offset.split_once(':').expect("a colon");
                    hours.parse::<i64>().expect("hours") * 60 + minutes.parse::<i64>().expect("minutes")
                });
                let next = now.naive_utc() + TimeDelta::minutes(east);
                prop_assert!(next > newest, "{next} after {newest} in {zone}");
                prop_assert!(east <= ahead.max(0) / 60 + 1);
                newest = next;
            }
        }
    }
}
