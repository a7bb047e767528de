//! Reads the five fields of a crontab line into sets of values.

use super::CrontabError;

/// What one of the five fields may hold.
struct Field {
    name: &'static str,
    first: u32,
    last: u32,
    /// Names that stand for `first`, `first + 1` and so on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", first: 0, last: 59, names: &[] };
const HOUR: Field = Field { name: "hour", first: 0, last: 23, names: &[] };
const DAY_OF_MONTH: Field = Field { name: "day of month", first: 1, last: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    first: 1,
    last: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const DAY_OF_WEEK: Field = Field {
    name: "day of week",
    first: 0,
    last: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// The values one field holds.
#[derive(Clone, Copy)]
pub(super) struct Values {
    /// Bit n stands for the value n.
    bits: u64,
    /// The field begins with `*`: what crontab asks when it wants to know whether a field is
    /// restricted, and so `*/2` is not.
    pub(super) starred: bool,
}

impl Values {
    pub(super) fn contains(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |&value| self.contains(value))
    }
}

/// A crontab line, understood.
pub(super) struct Line {
    pub(super) minutes: Values,
    pub(super) hours: Values,
    pub(super) days_of_month: Values,
    pub(super) months: Values,
    /// Sunday is 0 here, never 7.
    pub(super) days_of_week: Values,
}

impl Line {
    pub(super) fn parse(text: &str) -> Result<Line, CrontabError> {
        let of_line = |reason| CrontabError::new("schedule", text, reason);
        let line = if text.starts_with('@') { spelled_out(text).map_err(of_line)? } else { text };
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
            return Err(of_line(wrong_count(fields.len())));
        };
        let line = Line {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days_of_month: DAY_OF_MONTH.parse(day_of_month)?,
            months: MONTH.parse(month)?,
            days_of_week: with_one_sunday(DAY_OF_WEEK.parse(day_of_week)?),
        };
        if !line.ever_runs() {
            return Err(CrontabError::new(
                DAY_OF_MONTH.name,
                day_of_month,
                format!("it would never run, no month of \"{month}\" has that many days"),
            ));
        }
        Ok(line)
    }

    /// Whether a day is one for this line when either day field matches, as against both.
    pub(super) fn either_day(&self) -> bool {
        !self.days_of_month.starred && !self.days_of_week.starred
    }

    /// Every month has every day of the week, and 29 February comes on each of them, so only a
    /// day of month that none of the months has is never reached.
    fn ever_runs(&self) -> bool {
        let longest = self.months.iter().map(longest_month).max();
        self.either_day() || self.days_of_month.iter().next() <= longest
    }
}

fn longest_month(month: u32) -> u32 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn with_one_sunday(days: Values) -> Values {
    let bits = if days.contains(7) { days.bits & !(1 << 7) | 1 } else { days.bits };
    Values { bits, ..days }
}

/// The five fields a nickname stands for.
fn spelled_out(nickname: &str) -> Result<&'static str, String> {
    if let Some((_, line)) = NICKNAMES.iter().find(|(n, _)| n.eq_ignore_ascii_case(nickname)) {
        return Ok(line);
    }
    let known = NICKNAMES.map(|(name, _)| name).join(", ");
    Err(if nickname.eq_ignore_ascii_case("@reboot") {
        format!("it names an event and not a time; the names of times are {known}")
    } else {
        format!("there is no such name; the names are {known}")
    })
}

fn wrong_count(count: usize) -> String {
    let fields = if count == 1 { "field" } else { "fields" };
    let surplus = if count > 5 { ", and none for seconds, years or a command" } else { "" };
    format!(
        "it has {count} {fields}, a crontab line has five: \
         minute, hour, day of month, month and day of week{surplus}"
    )
}

impl Field {
    /// Reads a list of `*`, `a` and `a-b`, with a step after `*` and `a-b`.
    fn parse(&self, text: &str) -> Result<Values, CrontabError> {
        let mut bits = 0;
        for element in text.split(',') {
            bits |= self
                .element(element)
                .map_err(|reason| CrontabError::new(self.name, text, reason))?;
        }
        Ok(Values { bits, starred: text.starts_with('*') })
    }

    fn element(&self, element: &str) -> Result<u64, String> {
        if element.is_empty() {
            return Err("a value is missing beside a comma".to_string());
        }
        let (range, step) = match element.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (element, None),
        };
        let (from, to) = if range == "*" {
            (self.first, self.last)
        } else if let Some((from, to)) = range.split_once('-') {
            self.range(range, from, to)?
        } else {
            let value = self.value(range)?;
            if let Some(step) = step {
                return Err(format!(
                    "a step follows a range or *, such as {range}-{}/{step}",
                    self.last
                ));
            }
            (value, value)
        };
        let step = match step {
            None => 1,
            // A step beyond the last value is crontab: it leaves the first value only.
            Some(step) => match number(step).ok_or_else(|| format!("{step:?} is not a step"))? {
                0 => return Err("a step of 0 never gets on".to_string()),
                step => step,
            },
        };
        Ok((from..=to).step_by(step as usize).fold(0, |bits, value| bits | 1 << value))
    }

    fn range(&self, range: &str, from: &str, to: &str) -> Result<(u32, u32), String> {
        let first = self.value(from)?;
        let mut last = self.value(to)?;
        // crontab takes fri-sun for the empty range 5-0, which nobody can mean.
        if self.name == DAY_OF_WEEK.name && to.eq_ignore_ascii_case("sun") && first > 0 {
            last = 7;
        }
        if first > last {
            let sunday = if self.name == DAY_OF_WEEK.name && last == 0 {
                "; Sunday at the end of a range is 7"
            } else {
                ""
            };
            return Err(format!("the range {range} runs backwards{sunday}"));
        }
        Ok((first, last))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        if let Some(index) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(self.first + index as u32);
        }
        match number(text) {
            Some(value) if (self.first..=self.last).contains(&value) => Ok(value),
            Some(_) => Err(format!("{text} lies outside {} to {}", self.first, self.last)),
            None if self.names.is_empty() => Err(format!("{text:?} is not a number")),
            None => Err(format!(
                "{text:?} is neither a number nor a name of three letters such as {}",
                self.names[1]
            )),
        }
    }
}

/// Digits and nothing else; a number beyond all fields stands for every such number.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}
