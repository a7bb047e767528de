//! Checks rclone's notation of a bandwidth limit, or of a timetable of limits.

/// Says why rclone would refuse a text for `--bwlimit`: `1M`, `1M:200k` (up and down), `off`, or
/// a timetable like `08:00,512k 23:00,off` or `Mon-08:00,512k Sat-00:00,off`.
///
/// # Errors
///
/// The part that cannot be read, with an example of one that can.
pub fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let slots: Vec<&str> = text.split_whitespace().collect();
    let timetable = text.contains(',');
    if slots.is_empty() || (!timetable && slots.len() > 1) {
        return Err(
            "A limit looks like 1M, 512k or off; a timetable like \"08:00,512k 23:00,off\"."
                .to_string(),
        );
    }
    for slot in slots {
        let rate = if timetable {
            let (time, rate) = slot.split_once(',').ok_or_else(|| {
                format!("\"{slot}\" is no slot of a timetable; one looks like 08:00,512k.")
            })?;
            is_time(time).then_some(rate).ok_or_else(|| {
                format!("\"{time}\" is no time of a timetable; one looks like 08:00 or Mon-08:00.")
            })?
        } else {
            slot
        };
        if !rate.split(':').all(is_rate) || rate.split(':').count() > 2 {
            return Err(format!("\"{rate}\" is no rate; one looks like 1M, 512k or off."));
        }
    }
    Ok(())
}

fn is_time(text: &str) -> bool {
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let clock = match text.split_once('-') {
        Some((day, clock)) => {
            let day = day.to_ascii_lowercase();
            let full =
                ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
            if !DAYS.contains(&day.as_str()) && !full.contains(&day.as_str()) {
                return false;
            }
            clock
        }
        None => text,
    };
    let number = |part: &str, below: u32| {
        part.len() == 2 && part.parse::<u32>().is_ok_and(|value| value < below)
    };
    clock.split_once(':').is_some_and(|(hours, minutes)| number(hours, 24) && number(minutes, 60))
}

fn is_rate(text: &str) -> bool {
    if text == "off" {
        return true;
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let number = digits.parse::<f64>().is_ok_and(|value| value.is_finite() && value >= 0.0);
    let plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let known = ["", "b", "k", "ki", "m", "mi", "g", "gi", "t", "ti", "p", "pi"];
    number && plain && known.contains(&unit.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_rclone_takes() {
        for good in [
            "",
            "off",
            "10M",
            "0",
            "1.5M",
            "512k",
            "512",
            "10M:100k",
            "off:100k",
            "1Mi",
            "08:00,512k 12:00,10M 13:00,512k 18:00,30M 23:00,off",
            "08:00,512k:off",
            "Mon-00:00,512 Fri-23:59,10M Sat-10:00,1M Sun-20:00,off",
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for bad in [
            " ",
            "fast",
            "10X",
            "-1M",
            "10M 20M",
            "8:00,1M",
            "24:00,1M",
            "08:60,1M",
            "Foo-08:00,1M",
            "08:00,",
            "1M:2M:3M",
            "08:00,1M 20M",
            "1e3",
            "10M --config /etc/passwd",
            "nan",
            "inf",
        ] {
            assert!(check(bad).is_err(), "{bad:?} was taken");
        }
    }
}
