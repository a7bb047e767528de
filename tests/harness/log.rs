//! Reads the server's log as a list of messages.

use std::fmt;

/// The `log_line_prefix` that [`parse_log`] understands: time, kind of process, number, SQLSTATE.
pub(crate) const LINE_PREFIX: &str = "<%m|%b|%p|%e> ";

/// How bad a message is, from bad to worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// DEBUG, INFO, LOG and NOTICE: nothing is wrong.
    Fine,
    /// WARNING.
    Warning,
    /// ERROR: a command failed.
    Error,
    /// FATAL: a session or a process ended.
    Fatal,
    /// PANIC: the server restarts.
    Panic,
}

/// One message in the server's log, with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// How bad it is.
    pub severity: Severity,
    /// The kind of process, as `backend_type` in `pg_stat_activity` names it.
    pub process: String,
    /// The process.
    pub pid: i32,
    /// Five characters; `00000` where nothing is wrong.
    pub sqlstate: String,
    /// The message, then DETAIL, HINT, CONTEXT and STATEMENT on lines of their own.
    pub text: String,
}

impl fmt::Display for LogEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} [{}] {}: {}", self.process, self.pid, self.sqlstate, self.text)
    }
}

/// Splits a log into its messages.
///
/// Lines that the server did not write itself, like those of an `archive_command`, are left out.
pub fn parse_log(log: &str) -> Vec<LogEntry> {
    let mut entries: Vec<LogEntry> = Vec::new();
    // The message that lines beginning with a tab go on with.
    let mut current = None;
    for line in log.lines() {
        if let Some(more) = line.strip_prefix('\t') {
            if let Some(index) = current {
                let entry: &mut LogEntry = &mut entries[index];
                entry.text.push('\n');
                entry.text.push_str(more);
            }
            continue;
        }
        current = None;
        let Some(line) = Line::parse(line) else { continue };
        current = match line.severity() {
            Some(severity) => {
                entries.push(LogEntry {
                    severity,
                    process: line.process.to_string(),
                    pid: line.pid,
                    sqlstate: line.sqlstate.to_string(),
                    text: line.text.to_string(),
                });
                Some(entries.len() - 1)
            }
            // Other processes may write between a message and its DETAIL.
            None => entries.iter().rposition(|entry| entry.pid == line.pid).inspect(|index| {
                let text = &mut entries[*index].text;
                text.push('\n');
                text.push_str(line.text);
            }),
        };
    }
    entries
}

/// One line with our prefix.
struct Line<'a> {
    process: &'a str,
    pid: i32,
    sqlstate: &'a str,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let (prefix, text) = line.strip_prefix('<')?.split_once("> ")?;
        let fields: Vec<&str> = prefix.split('|').collect();
        let [_time, process, pid, sqlstate] = fields[..] else { return None };
        Some(Line { process, pid: pid.parse().ok()?, sqlstate, text })
    }

    /// `None` for DETAIL, HINT and the like.
    fn severity(&self) -> Option<Severity> {
        let (word, _) = self.text.split_once(":  ")?;
        match word {
            "LOG" | "INFO" | "NOTICE" | "DEBUG" => Some(Severity::Fine),
            "WARNING" => Some(Severity::Warning),
            "ERROR" => Some(Severity::Error),
            "FATAL" => Some(Severity::Fatal),
            "PANIC" => Some(Severity::Panic),
            _ => word.starts_with("DEBUG").then_some(Severity::Fine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_what_belongs_to_it() {
        let log = "\
<2026-01-02 03:04:05.678 UTC|postmaster|10|00000> LOG:  starting
<2026-01-02 03:04:05.678 UTC|client backend|11|22012> ERROR:  division by zero
<2026-01-02 03:04:05.678 UTC|archiver|12|01000> WARNING:  slow
pgbackrest says something
\tand this is not the server's either
<2026-01-02 03:04:05.678 UTC|client backend|11|22012> STATEMENT:  select
\t1/0
<2026-01-02 03:04:05.678 UTC|client backend|11|00000> LOG:  value | of > all:  kinds
";
        let short: Vec<_> = parse_log(log)
            .into_iter()
            .map(|entry| (entry.severity, entry.process, entry.pid, entry.sqlstate, entry.text))
            .collect();
        let text = |text: &str| text.to_string();
        assert_eq!(
            short,
            [
                (Severity::Fine, text("postmaster"), 10, text("00000"), text("LOG:  starting")),
                (
                    Severity::Error,
                    text("client backend"),
                    11,
                    text("22012"),
                    text("ERROR:  division by zero\nSTATEMENT:  select\n1/0")
                ),
                (Severity::Warning, text("archiver"), 12, text("01000"), text("WARNING:  slow")),
                (
                    Severity::Fine,
                    text("client backend"),
                    11,
                    text("00000"),
                    text("LOG:  value | of > all:  kinds")
                ),
            ]
        );
    }
}
