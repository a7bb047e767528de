//! Reads lines of PostgreSQL's configuration files, as `guc-file.l` does.

use std::ops::Range;

/// A line that sets something, or that includes another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<'a> {
    /// Its name as it is written; case does not matter in it.
    pub name: &'a str,
    /// Its value, without quotes.
    pub value: String,
    /// Where in the line the value is, with its quotes.
    pub range: Range<usize>,
}

impl Setting<'_> {
    /// Whether it has this name.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// What a line sets; `None` for an empty line, a comment, and what PostgreSQL would refuse.
pub fn setting(line: &str) -> Option<Setting<'_>> {
    let begin = line.len() - line.trim_start().len();
    let rest = line.get(begin..)?;
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.');
    let name = rest.get(..rest.find(|c| !is_name(c))?).filter(|name| !name.is_empty())?;
    let is_between = |c: char| c.is_whitespace() || c == '=';
    let after = rest.get(name.len()..)?;
    let value = after.trim_start_matches(is_between);
    if value.len() == after.len() {
        return None;
    }
    let from = line.len() - value.len();
    let (value, length) = value_of(value)?;
    Some(Setting { name, value, range: from..from + length })
}

/// A value at the beginning of a text, and how many bytes of it it is.
fn value_of(text: &str) -> Option<(String, usize)> {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        let end = text.find(|c: char| c.is_whitespace() || c == '#').unwrap_or(text.len());
        let value = text.get(..end).filter(|value| !value.is_empty())?;
        return Some((value.to_string(), end));
    };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((place, character)) = characters.next() {
        match character {
            '\\' if quote == '\'' => value.push(characters.next()?.1),
            c if c == quote => match characters.peek() {
                Some((_, next)) if *next == quote => {
                    characters.next();
                    value.push(quote);
                }
                _ => return Some((value, place + 1)),
            },
            c => value.push(c),
        }
    }
    None
}

/// All that a configuration file sets.
pub fn settings(text: &str) -> impl Iterator<Item = Setting<'_>> {
    text.lines().filter_map(setting)
}

/// A value as it is written into a configuration file.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_postgresql_reads() {
        for (line, name, value) in [
            ("include_dir = 'conf.d'\t\t# include files", "include_dir", "conf.d"),
            ("INCLUDE 'a#b.conf'", "INCLUDE", "a#b.conf"),
            ("include_if_exists='it''s.conf'", "include_if_exists", "it's.conf"),
            (" port = 5432 # the port", "port", "5432"),
            ("port 5432", "port", "5432"),
            ("shared_buffers=1GB#much", "shared_buffers", "1GB"),
            (r"x.y = 'a\'b\\c'", "x.y", r"a'b\c"),
            ("include \"lists/all.conf\"", "include", "lists/all.conf"),
        ] {
            let found = setting(line).expect(line);
            assert_eq!((found.name, found.value.as_str()), (name, value), "{line}");
            let changed = line.replace(line.get(found.range.clone()).expect(line), &quoted("new"));
            assert_eq!(setting(&changed).expect(&changed).value, "new", "{changed}");
        }
        for line in ["", "  ", "# port = 1", "port", "port =", "port = # none", "x = 'open"] {
            assert_eq!(setting(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in "[^\n\r\0]{0,40}") {
            let line = format!("name = {} # x", quoted(&value));
            prop_assert_eq!(setting(&line).map(|it| it.value), Some(value));
        }

        #[test]
        fn never_panics(line in "\\PC{0,60}|[a-z= '\"#\\\\é]{0,40}") {
            if let Some(found) = setting(&line) {
                prop_assert!(line.get(found.range).is_some());
            }
        }
    }
}
