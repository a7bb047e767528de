//! Splits what pgBackRest prints into records.
//!
//! A record begins at the left margin and its further lines are indented. Three forms occur:
//!
//! ```text
//! 2026-11-22 16:48:24.814 P00  ERROR: [050]: unable to acquire lock …
//!                                     HINT: …
//! P00  ERROR: [031]: option …          before the log is set up, from 2.55 on
//! ERROR: [031]: option …               the same in 2.45, and for the command line in all
//! ```

/// How grave a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// A failure, also one that pgBackRest holds for a fault of its own (ASSERT).
    Error,
    /// A warning.
    Warn,
    /// What it is doing.
    Info,
    /// What it is doing with each file, and all that is finer.
    Detail,
    /// Not pgBackRest's own form: the dynamic linker, libpq, a signal handler.
    Bare,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) level: Level,
    /// The message without time, process and code; further lines without their indentation.
    pub(super) text: String,
}

/// The records of an output, in order. An indented line with nothing before it, as a cut
/// output begins with, is dropped.
pub(super) fn records(output: &str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for line in output.lines() {
        let text = line.trim();
        if line.starts_with([' ', '\t']) {
            if let Some(last) = records.last_mut().filter(|_| !text.is_empty()) {
                last.text.push('\n');
                last.text.push_str(text);
            }
        } else if !text.is_empty() {
            records.push(header(text));
        }
    }
    records
}

fn header(line: &str) -> Record {
    let (level, text) =
        levelled(without_process(without_time(line))).unwrap_or((Level::Bare, line));
    let text = if level == Level::Error { without_code(text) } else { text };
    Record { level, text: text.to_string() }
}

/// `2026-11-22 16:48:24.814 rest` → `rest`
fn without_time(line: &str) -> &str {
    const FORM: &[u8] = b"0000-00-00 00:00:00.000 ";
    let fits = line.len() > FORM.len()
        && line.bytes().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == *form,
        });
    if fits { &line[FORM.len()..] } else { line }
}

/// `P00  ERROR: rest` → `ERROR: rest`
fn without_process(line: &str) -> &str {
    let Some((first, rest)) = line.split_once(' ') else { return line };
    let number = first.strip_prefix('P').unwrap_or_default();
    let is_process = number.len() >= 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_process { rest.trim_start() } else { line }
}

fn levelled(line: &str) -> Option<(Level, &str)> {
    let (word, text) = line.split_once(": ")?;
    let level = match word {
        "ERROR" | "ASSERT" => Level::Error,
        "WARN" => Level::Warn,
        "INFO" => Level::Info,
        "DETAIL" | "DEBUG" | "TRACE" => Level::Detail,
        _ => return None,
    };
    Some((level, text))
}

/// `[050]: rest` → `rest`
fn without_code(text: &str) -> &str {
    let code = text.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
    match code {
        Some((code, rest)) if code.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => text,
    }
}

/// The JSON in an output.
///
/// A warning about the configuration stands before it, whatever the log levels say: from 2.55 on
/// on standard output, because the configuration that sets the levels is still being read.
pub fn json_of(output: &str) -> &str {
    let begins = |line: &&str| line.starts_with(['[', '{']);
    let before = output.split_inclusive('\n').take_while(|line| !begins(line));
    &output[before.map(str::len).sum()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_json_behind_warnings() {
        for (output, expected) in [
            ("[]", "[]"),
            ("{\"a\":1}\n", "{\"a\":1}\n"),
            ("P00   WARN: odd [x]\n   HINT: é\n[{}]\n[]", "[{}]\n[]"),
            ("P00   WARN: odd\n", ""),
            ("", ""),
        ] {
            assert_eq!(json_of(output), expected, "{output:?}");
        }
    }

    #[test]
    fn reads_every_form_of_a_record() {
        let output = "\
            \x20                                   the end of something cut\n\
            2026-11-22 16:48:24.814 P00   INFO: backup command begin 2.45: --x\n\
            2026-11-22 16:48:24.814 P00  ERROR: [050]: unable to lock: why\n\
            \x20                                   HINT: is another one running?\n\
            \n\
            P00  ERROR: [032]: 'biggest' is not allowed\n\
            \x20           HINT: allowed values are 'full'\n\
            ERROR: [048]: invalid command\n\
            2026-11-22 16:48:24.814 P02   WARN: [x]: odd\n\
            2026-11-22 16:48:24.814 P123 DETAIL: backup file /x (8KB, 1.00%)\n\
            ASSERT: [025]: bug\n\
            terminated on signal SIGTERM\n\
            pgbackrest: error while loading shared libraries: libzstd.so.1\n";
        let expected = [
            (Level::Info, "backup command begin 2.45: --x"),
            (Level::Error, "unable to lock: why\nHINT: is another one running?"),
            (Level::Error, "'biggest' is not allowed\nHINT: allowed values are 'full'"),
            (Level::Error, "invalid command"),
            (Level::Warn, "[x]: odd"),
            (Level::Detail, "backup file /x (8KB, 1.00%)"),
            (Level::Error, "bug"),
            (Level::Bare, "terminated on signal SIGTERM"),
            (Level::Bare, "pgbackrest: error while loading shared libraries: libzstd.so.1"),
        ];
        let expected: Vec<Record> = expected
            .into_iter()
            .map(|(level, text)| Record { level, text: text.to_string() })
            .collect();
        assert_eq!(records(output), expected);
    }
}
