//! Judges how a pgBackRest command ended: done, try again, wait for somebody else, or give up.
//!
//! The exit code is the error's own code (`build/error/error.yaml` of pgBackRest, the same from
//! 2.45 on). For a few codes the words decide: 50 is both "somebody holds the lock" and "I may
//! not write the lock file".

use serde::{Deserialize, Serialize};

use super::log::{Level, Record, records};

/// What to do after a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// It did what it was asked to.
    Success,
    /// The cause may go away by itself: the same command again, later.
    Retry,
    /// Another pgBackRest works on the stanza, or the server has just been promoted. That is no
    /// failure: wait until it is over.
    Wait,
    /// The same command would fail in the same way until somebody changes something.
    GiveUp,
}

/// How a command ended, in words for the history and for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What to do now.
    pub judgement: Judgement,
    /// The exit code; absent if a signal ended the process.
    pub code: Option<i32>,
    /// pgBackRest's name of the error, such as `lock-acquire`.
    pub name: &'static str,
    /// pgBackRest's own words, without times and process numbers, with its HINT lines. At most
    /// [`LONGEST_MESSAGE`] bytes. Empty after a success.
    pub message: String,
    /// What the operator should do, as a sentence, where we know more than pgBackRest says.
    pub hint: Option<String>,
}

impl Verdict {
    /// Whether it failed because the repository has no such stanza.
    pub fn stanza_is_missing(&self) -> bool {
        self.hint.as_deref() == Some(HINT_NO_STANZA)
    }
}

/// How many bytes of pgBackRest's words are kept.
pub const LONGEST_MESSAGE: usize = 2048;

/// What an exit code means.
struct Meaning {
    code: i32,
    name: &'static str,
    judgement: Judgement,
    hint: &'static str,
}

const fn stop(code: i32, name: &'static str, hint: &'static str) -> Meaning {
    Meaning { code, name, judgement: Judgement::GiveUp, hint }
}

const fn again(code: i32, name: &'static str, hint: &'static str) -> Meaning {
    Meaning { code, name, judgement: Judgement::Retry, hint }
}

const HINT_PROMOTED: &str =
    "The server was promoted a moment ago. Its next checkpoint, also one by hand, ends the wait.";
const HINT_BUG: &str =
    "This is a fault inside pgBackRest; look for it in pgBackRest's issues or update it.";
const HINT_DISK_FULL: &str = "\
     The disk of the repository is full, or its quota is reached. Make room; the next try may \
     succeed.";
const HINT_READ_ONLY: &str =
    "The file system is mounted read-only. Look for disk errors in the kernel's log.";
const HINT_PERMISSION: &str =
    "Give the operating system user of the server the right to read and write this path.";
const HINT_CONFIG: &str = "\
     Correct the option in the file that nrt_backup.pgbackrest_config names, or reset that \
     setting.";
const HINT_OTHER_CLUSTER: &str = "\
     The stanza in the repository belongs to another cluster. After pg_upgrade, as the server's user \
     and with PGDATA set, for the stanza \"main\": pgbackrest \
     --config=$PGDATA/nrt_backup/pgbackrest.conf --stanza=main stanza-upgrade. With a configuration of \
     your own, name that. Otherwise choose another nrt_backup.stanza or nrt_backup.repository.";
const HINT_NO_STANZA: &str = "\
     The repository has no such stanza, or lost its info files. Correct nrt_backup.repository and \
     nrt_backup.stanza, or create it, as the server's user and with PGDATA set, for the stanza \
     \"main\": pgbackrest --config=$PGDATA/nrt_backup/pgbackrest.conf --stanza=main stanza-create.";
const HINT_ARCHIVING: &str = "\
     WAL does not reach the repository. Look at pg_stat_archiver and at the server's log for what \
     archive_command said.";
const HINT_SERVER: &str = "\
     pgBackRest could not talk to the server. If it is up, check that the role and the database \
     exist and that pg_hba.conf lets local connections in.";
const HINT_LABEL: &str = "\
     The newest backup of the repository is named after a time that has not come yet: it was taken \
     with a wrong clock, or by a pgBackRest in another time zone. Correct the clock, and run every \
     other pgBackRest on this repository with TZ=UTC. It is tried again until that time has passed.";
const HINT_ROLE: &str = "\
     pgBackRest connects as the superuser that initdb made. Name another one in your own pgBackRest \
     configuration (pg1-user), or create the role.";
const HINT_PASSWORD: &str = "\
     pg_hba.conf asks for a password on the Unix socket. Give the operating system user of the \
     server one in its ~/.pgpass (mode 0600), with the socket's directory or localhost for the \
     host, or put a line \"local all postgres peer\" first in pg_hba.conf and reload it.";
const HINT_HBA: &str = "\
     pg_hba.conf lets nobody in on the Unix socket, over which pgBackRest connects, whatever it \
     says of TLS. Put a line \"local all postgres peer\" first in it, and reload it.";
const HINT_PEER: &str = "\
     The server's operating system user may not connect as this role. Put a line \"local all \
     postgres peer map=backup\" first in pg_hba.conf and one that maps that user in pg_ident.conf, \
     or give it a password in its ~/.pgpass, and reload both.";
const HINT_TABLESPACE: &str = "\
     A tablespace was created or dropped while the backup began, and the next try copies it as it \
     is then. If it fails in this way each time, a link in pg_tblspc belongs to no tablespace.";
const HINT_IN_PLACE: &str = "\
     pgBackRest backs up no tablespace that allow_in_place_tablespaces made within the data \
     directory. Move what is in it to another (ALTER TABLE ... SET TABLESPACE), and drop it.";
const HINT_NOT_READY: &str = "The server does not let sessions in yet, or any more.";
const HINT_STANDBY: &str = "\
     pgBackRest found no primary: the server is in recovery, or is not the one that pg1-path and \
     pg1-port name.";

/// Every code that pgBackRest can end with, in order.
const MEANINGS: &[Meaning] = &[
    // archive-get and repo-get only: what was asked for is not there.
    stop(1, "not-found", ""),
    stop(25, "assert", HINT_BUG),
    stop(
        26,
        "checksum",
        "A stored file is damaged. Run pgbackrest verify and take a new full backup.",
    ),
    stop(27, "config", HINT_CONFIG),
    stop(28, "file-invalid", ""),
    stop(29, "format", "A file in the repository is damaged. Run pgbackrest verify."),
    stop(30, "command-required", ""),
    stop(31, "option-invalid", HINT_CONFIG),
    stop(32, "option-invalid-value", HINT_CONFIG),
    stop(37, "option-required", HINT_CONFIG),
    stop(38, "pg-running", "Stop the server first."),
    again(39, "protocol", ""),
    stop(40, "path-not-empty", "Empty the directory, or choose another."),
    stop(41, "file-open", ""),
    stop(42, "file-read", ""),
    stop(43, "param-required", ""),
    stop(44, "archive-mismatch", HINT_OTHER_CLUSTER),
    stop(
        45,
        "archive-duplicate",
        "\
         Another cluster, or another history of this one, archived a WAL file of the same name. \
         Find out which one is right before anything is deleted; until then nothing further is \
         archived.",
    ),
    stop(
        46,
        "version-not-supported",
        "This pgBackRest does not know this version of PostgreSQL. Update pgBackRest.",
    ),
    stop(
        47,
        "path-create",
        "\
         Create the directory and give it to the operating system user of the server, or choose \
         another nrt_backup.repository.",
    ),
    stop(
        48,
        "command-invalid",
        "The installed pgBackRest does not know this command. Update pgBackRest.",
    ),
    again(49, "host-connect", ""),
    // Judged by its words.
    stop(50, "lock-acquire", HINT_PERMISSION),
    stop(51, "backup-mismatch", HINT_OTHER_CLUSTER),
    stop(52, "file-sync", "The disk of the repository reports errors. Look into the kernel's log."),
    stop(53, "path-open", ""),
    stop(54, "path-sync", "The disk of the repository reports errors. Look into the kernel's log."),
    stop(55, "file-missing", ""),
    again(56, "db-connect", HINT_SERVER),
    again(
        57,
        "db-query",
        "The server was stopped or crashed, or refused a query; its log says why.",
    ),
    stop(58, "db-mismatch", HINT_OTHER_CLUSTER),
    stop(60, "file-remove", ""),
    stop(61, "path-remove", ""),
    stop(62, "stop", "Somebody ran pgbackrest stop. Run pgbackrest start to go on."),
    again(63, "term", ""),
    // A full disk shows as a short write, and then pgBackRest prints the error of some earlier
    // call: "[2] No such file or directory" in all recorded versions.
    again(
        64,
        "file-write",
        "\
         Most of the time this means that the disk of the repository is full, whatever the system \
         error says. Make room; the next try may succeed.",
    ),
    stop(67, "feature-not-supported", ""),
    stop(
        68,
        "archive-command-invalid",
        "\
         archive_command must run pgbackrest archive-push. Remove your own archive_command from \
         the configuration to use the one that nrt_backup sets.",
    ),
    stop(69, "link-expected", ""),
    stop(
        70,
        "link-destination",
        "\
         A link in the data directory points to where it must not, for example into the data \
         directory itself.",
    ),
    stop(72, "host-invalid", HINT_CONFIG),
    stop(73, "path-missing", "Create the directory, or correct its name in the configuration."),
    stop(74, "file-move", ""),
    stop(75, "backup-set-invalid", ""),
    stop(76, "tablespace-map", ""),
    stop(78, "link-map", ""),
    stop(79, "file-close", ""),
    stop(80, "db-missing", ""),
    stop(81, "db-invalid", ""),
    again(82, "archive-timeout", HINT_ARCHIVING),
    stop(83, "file-mode", ""),
    stop(87, "archive-disabled", "Set archive_mode to on and restart the server."),
    stop(88, "file-owner", "pgBackRest must run as the owner of the data directory."),
    stop(89, "user-missing", "The operating system user has no name; add it to /etc/passwd."),
    stop(93, "file-exists", ""),
    again(94, "memory", "Memory ran out. Lower nrt_backup.process_max, or give the machine more."),
    stop(
        95,
        "crypto",
        "The passphrase of the repository is wrong, or the file is not encrypted with it.",
    ),
    stop(96, "param-invalid", ""),
    stop(97, "path-close", ""),
    stop(98, "file-info", ""),
    stop(99, "json-format", "A file in the repository is damaged. Run pgbackrest verify."),
    again(100, "kernel", ""),
    // Also when the server is stopped while a backup runs: "NULL result required".
    again(101, "service", ""),
    again(102, "execute", ""),
    // Judged by its words.
    stop(103, "repo-invalid", ""),
    again(104, "command", ""),
    stop(105, "access", "The credentials for the repository were refused."),
    stop(106, "clock", "The clock went backwards. Check that the machine's time is right."),
    stop(122, "runtime", HINT_BUG),
    again(124, "unhandled", ""),
    stop(125, "unknown", ""),
];

/// Judges by the exit code or the signal, and by what the command printed on both streams.
pub fn judge(exit: Option<i32>, signal: Option<i32>, output: &str) -> Verdict {
    if let Some(signal) = signal {
        return killed(signal, output);
    }
    let Some(code) = exit else {
        return Verdict {
            judgement: Judgement::Retry,
            code: None,
            name: "unknown",
            message: words(output, false),
            hint: None,
        };
    };
    if code == 0 {
        let judgement = Judgement::Success;
        return Verdict { judgement, code: exit, name: "ok", message: String::new(), hint: None };
    }
    // An unknown code is judged like pgBackRest's own "unknown".
    let meaning = MEANINGS.iter().find(|meaning| meaning.code == code);
    let (name, usual, hint) =
        meaning.map_or(("unknown", Judgement::GiveUp, ""), |m| (m.name, m.judgement, m.hint));
    // What keeps pgBackRest from the server is told in a warning; the error after it only says
    // that there is no server left.
    let message = words(output, code == 56);
    let (judgement, hint) = by_words(code, usual, hint, &message);
    let hint = (!hint.is_empty()).then(|| hint.to_string());
    Verdict { judgement, code: exit, name, message, hint }
}

/// The warnings of a command, which may well have succeeded: a damaged page is only a warning.
pub fn warnings(output: &str) -> Vec<String> {
    let warned = records(output).into_iter().filter(|record| record.level == Level::Warn);
    warned.map(|record| bounded(record.text)).collect()
}

/// Why no backup can be taken before an operator has changed something, by pgBackRest's words: the
/// server lets it in on no socket. What to do.
pub fn is_kept_out(message: &str) -> Option<&'static str> {
    let says = |text: &str| message.contains(text);
    // By the SQLSTATE's message, which PostgreSQL translates; pgBackRest's session has the server's
    // lc_messages, so English is what most have.
    if says("no password supplied") || says("password authentication failed") {
        Some(HINT_PASSWORD)
    } else if says("Peer authentication failed") || says("Ident authentication failed") {
        Some(HINT_PEER)
    } else if says("no pg_hba.conf entry for") || says("pg_hba.conf rejects connection") {
        Some(HINT_HBA)
    } else if says("FATAL:  role \"") && says("does not exist") {
        Some(HINT_ROLE)
    } else {
        None
    }
}

fn killed(signal: i32, output: &str) -> Verdict {
    let name = match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    };
    let mut message = format!("pgBackRest was killed by signal {signal}{name}");
    let said = errors(&records(output));
    if !said.is_empty() {
        message = format!("{message}\n{said}");
    }
    let hint = (signal == 9).then(|| {
        "Somebody killed it, or the kernel did because memory ran out: look into the kernel's log."
            .to_string()
    });
    Verdict {
        judgement: Judgement::Retry,
        code: None,
        name: "signal",
        message: bounded(message),
        hint,
    }
}

/// Where a code alone does not say enough.
fn by_words(
    code: i32,
    usual: Judgement,
    hint: &'static str,
    message: &str,
) -> (Judgement, &'static str) {
    use Judgement::{GiveUp, Retry, Wait};
    let says = |text: &str| message.contains(text);
    // The number is the system's error; its text depends on the locale.
    if says("[28] ") || says("No space left on device") || says("[122] ") {
        return (Retry, HINT_DISK_FULL);
    }
    match code {
        50 if says("is another pgBackRest process running") || says("temporarily unavailable") => {
            (Wait, "")
        }
        // Right after a promotion, until the checkpoint that ends it.
        _ if says("does not match pg_control timeline") => (Wait, HINT_PROMOTED),
        29 if says("is not later than latest backup label") => (Retry, HINT_LABEL),
        28 | 103 if says("do not match") => (GiveUp, HINT_OTHER_CLUSTER),
        55 | 103 | 104 if says("Missing") && says(".info'") => {
            // A command that goes on after the first failure ends with 104; nothing comes of it
            // as long as the stanza is missing.
            (GiveUp, HINT_NO_STANZA)
        }
        103 if ["[ProtocolError]", "[HostConnectError]", "[ServiceError]"]
            .into_iter()
            .any(says) =>
        {
            (Retry, hint)
        }
        // A tablespace that is made or dropped between pg_backup_start and the look at pg_tblspc:
        // pgBackRest takes that for a fault of its own.
        25 if says("not found in tablespace map") => (Retry, HINT_TABLESPACE),
        69 if says("pg_tblspc should contain only symlinks") => (GiveUp, HINT_IN_PLACE),
        56 if !says("unable to check pg") => (usual, HINT_STANDBY),
        56 if says("the database system is ") => (usual, HINT_NOT_READY),
        56 => (usual, is_kept_out(message).unwrap_or(hint)),
        _ if says("[13] ") || says("Permission denied") => (usual, HINT_PERMISSION),
        _ if says("[30] ") => (usual, HINT_READ_ONLY),
        _ => (usual, hint),
    }
}

/// pgBackRest's own words about a failure.
fn words(output: &str, with_server_check: bool) -> String {
    let mut records = records(output);
    let said = errors(&records);
    if !said.is_empty() {
        let checks: Vec<&str> = records
            .iter()
            .filter(|r| r.level == Level::Warn && r.text.starts_with("unable to check pg"))
            .map(|r| r.text.as_str())
            .filter(|_| with_server_check)
            .collect();
        return bounded([checks, vec![&said]].concat().join("\n"));
    }
    // A signal handler leaves no error: "… command end: terminated on signal [SIGTERM]" up to
    // 2.55, "terminated on signal SIGTERM" on a line of its own in 2.60.
    if let Some(last) = records.iter().rev().find(|r| r.text.contains("terminated on signal")) {
        let at = last.text.find("terminated on signal").unwrap_or(0);
        return bounded(last.text[at..].to_string());
    }
    records.retain(|record| matches!(record.level, Level::Bare | Level::Warn));
    match records.pop() {
        Some(last) => bounded(last.text),
        None => "pgBackRest gave no reason".to_string(),
    }
}

/// All errors, one after the other; as many of the last ones as fit, because the last one ended
/// the command.
fn errors(records: &[Record]) -> String {
    let mut chosen: Vec<&str> = Vec::new();
    let mut size = 0;
    for record in records.iter().rev().filter(|record| record.level == Level::Error) {
        // A fault of its own comes with a form for reporting it.
        let text = record.text.split_once("\n----").map_or(record.text.as_str(), |(text, _)| text);
        size += text.len() + 1;
        if !chosen.is_empty() && (size > LONGEST_MESSAGE || chosen.contains(&text)) {
            break;
        }
        chosen.push(text);
    }
    chosen.reverse();
    chosen.join("\n")
}

fn bounded(mut text: String) -> String {
    const MARK: &str = " …";
    if text.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE - MARK.len())
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::Judgement::{GiveUp, Retry, Success, Wait};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_label_that_lies_ahead_passes() {
        let said = "P00  ERROR: [029]: new backup label '20261025-021500F' is not later than latest \
                    backup label '20261025-023000F'\n\
                    HINT: has the timezone changed?\n       HINT: is there clock skew?\n";
        let verdict = judge(Some(29), None, said);
        assert_eq!(verdict.judgement, Retry, "{verdict:?}");
        assert_eq!(verdict.hint.as_deref(), Some(HINT_LABEL));
        // Any other fault of a format is damage.
        let verdict = judge(Some(29), None, "P00  ERROR: [029]: invalid ini file\n");
        assert_eq!(verdict.judgement, GiveUp, "{verdict:?}");
    }

    /// name of the recording, judgement, what the message must begin with, a part of the hint
    #[rustfmt::skip] // One line for each.
    const RECORDED: &[(&str, Judgement, &str, &str)] = &[
        ("archive-command-foreign", GiveUp, "archive_command 'cp %p /dev/null' must contain", "archive_command"),
        ("archive-mode-off", GiveUp, "archive_mode must be enabled", "archive_mode"),
        ("archive-timeout", Retry, "WAL segment 0", "pg_stat_archiver"),
        ("archive-timeout-check", Retry, "WAL segment 0", "pg_stat_archiver"),
        ("backup-without-stanza", GiveUp, "unable to load info file", "stanza-create"),
        ("check", Success, "", ""),
        ("check-without-stanza", GiveUp, "unable to load info file", "stanza-create"),
        ("command-unknown", GiveUp, "invalid command 'back-up'", "Update"),
        ("config-missing", GiveUp, "unable to open missing file '/srv/pg/none.conf'", ""),
        ("disk-full", Retry, "raised from local-1 protocol: unable to write", "full"),
        ("disk-full-push", Retry, "archive-push command encountered error(s):\nrepo1:", "full"),
        ("disk-full-stanza", Success, "", ""),
        ("expire-without-stanza", GiveUp, "repo1: unable to load info file", "stanza-create"),
        ("get-missing", GiveUp, "pgBackRest gave no reason", ""),
        ("lock-denied", GiveUp, "unable to acquire lock on file '/srv/denied/", "right"),
        ("lock-held", Wait, "unable to acquire lock on file '/srv/pg/lock/", ""),
        ("lock-held-expire", Wait, "unable to acquire lock on file '/srv/pg/lock/", ""),
        ("lock-not-creatable", GiveUp, "unable to create path '/srv/denied/lock'", "right"),
        ("missing-data-stanza-create", GiveUp, "archive.info exists but backup.info is missing", ""),
        ("option-unknown", GiveUp, "invalid option '--no-such-option'", "pgbackrest_config"),
        ("option-value", GiveUp, "'biggest' is not allowed for 'type' option", "option"),
        ("other-cluster-backup", GiveUp, "PostgreSQL version 1", "another cluster"),
        ("other-cluster-check", GiveUp, "backup and archive info files exist", "another cluster"),
        ("other-cluster-push", GiveUp, "unable to find a valid repository:", "another cluster"),
        ("other-cluster-stanza-create", GiveUp, "backup and archive info", "another cluster"),
        ("push-again", Success, "", ""),
        ("push-duplicate", GiveUp, "WAL file '0000", "same name"),
        ("push-missing-file", GiveUp, "unable to open missing file '/srv/pg/again/", ""),
        ("push-nothing-ready", GiveUp, "no WAL files to process", "fault inside"),
        ("push-without-stanza", GiveUp, "unable to find a valid repository:", "stanza-create"),
        ("repo-not-creatable", GiveUp, "unable to create path '/srv/denied/repository'", "right"),
        ("repo-unreadable", GiveUp, "unable to load info file '/srv/private/", "right"),
        ("role-missing", Retry, "unable to check pg1: [DbConnectError]", "role"),
        ("server-down", Retry, "unable to check pg1: [DbConnectError]", "If it is up"),
        ("server-killed", Retry, "unable to execute query", "server"),
        ("standby", Retry, "unable to find primary cluster", "recovery"),
        ("stanza-create", Success, "", ""),
        ("stanza-create-again", Success, "", ""),
        ("stanza-not-given", GiveUp, "backup command requires option: stanza", "option"),
        ("stanza-upgrade", Success, "", ""),
        ("stopped", GiveUp, "stop file exists for stanza main", "pgbackrest start"),
        ("terminated", Retry, "terminated on signal", ""),
        ("wrong-data-directory", Retry, "unable to check pg1: [FileMissingError]", "pg_hba"),
        ("wrong-port", Retry, "unable to check pg1: [DbConnectError]", "If it is up"),
    ];

    /// The recordings of a version: name, code, text.
    fn recordings(version: &str) -> Vec<(String, i32, String)> {
        let files = fixtures::list(version, "exits");
        let read = |file: String| {
            let text = fixtures::text(version, &format!("exits/{file}"));
            let (name, code) = file.strip_suffix(".txt")?.rsplit_once('.')?;
            Some((name.to_string(), code.parse().ok()?, text))
        };
        files.into_iter().map(|file| read(file.clone()).expect(&file)).collect()
    }

    /// Seen with 2.55 on PostgreSQL 17.
    #[test]
    fn a_server_that_was_just_promoted_is_waited_for() {
        let output = "P00  ERROR: [051]: WAL timeline 2 does not match pg_control timeline 1\n";
        let verdict = judge(Some(51), None, output);
        assert_eq!(verdict.judgement, Judgement::Wait);
        assert!(verdict.hint.is_some_and(|hint| hint.contains("promoted")));
    }

    /// Seen with 2.45: a tablespace that was created while the backup began, and one that
    /// allow_in_place_tablespaces had made.
    #[test]
    fn tablespaces_in_motion_are_no_fault_inside_pgbackrest() {
        let output = "P00  ERROR: [025]: tablespace with oid 16390 not found in tablespace map\n\
             \x20                                   HINT: was a tablespace created or dropped during \
             the backup?\n";
        let verdict = judge(Some(25), None, output);
        assert_eq!(verdict.judgement, Retry);
        assert_eq!(verdict.hint.as_deref(), Some(HINT_TABLESPACE));
        let output = "P00  ERROR: [069]: '/pg/pg_tblspc/16391' is not a symlink - pg_tblspc should \
             contain only symlinks\n";
        let verdict = judge(Some(69), None, output);
        assert_eq!(verdict.judgement, GiveUp);
        assert!(verdict.hint.is_some_and(|hint| hint.contains("SET TABLESPACE")));
        assert_eq!(judge(Some(25), None, "P00  ERROR: [025]: odd\n").judgement, GiveUp);
    }

    /// Without both, pgBackRest says "[037]: requires option: stanza".
    #[test]
    fn hints_name_configuration_and_stanza() {
        for (hint, command) in
            [(HINT_OTHER_CLUSTER, "stanza-upgrade"), (HINT_NO_STANZA, "stanza-create")]
        {
            let (_, typed) = hint.split_once("pgbackrest --config=").expect(hint);
            let line = format!("$PGDATA/nrt_backup/pgbackrest.conf --stanza=main {command}.");
            assert!(typed.starts_with(&line), "{hint}");
        }
    }

    #[test]
    fn what_keeps_pgbackrest_out_of_the_server_is_named() {
        for (words, hint) in [
            ("fe_sendauth: no password supplied", "~/.pgpass"),
            ("FATAL:  password authentication failed for user \"postgres\"", "~/.pgpass"),
            ("FATAL:  Peer authentication failed for user \"backup\"", "pg_ident.conf"),
            (
                "FATAL:  no pg_hba.conf entry for host \"[local]\", user \"postgres\", database \
                 \"postgres\", no encryption",
                "local all postgres peer",
            ),
            ("FATAL:  role \"nobody_here\" does not exist", "pg1-user"),
        ] {
            let output = format!(
                "P00   WARN: unable to check pg1: [DbConnectError] unable to connect to \
                 'dbname='postgres' port=5432 host='/s'': connection to server on socket \
                 \"/s/.s.PGSQL.5432\" failed: {words}\nP00  ERROR: [056]: unable to find primary \
                 cluster - cannot proceed\n"
            );
            let verdict = judge(Some(56), None, &output);
            assert_eq!(verdict.judgement, Retry, "somebody may mend it: {words}");
            assert!(verdict.hint.as_deref().is_some_and(|it| it.contains(hint)), "{verdict:?}");
            assert_eq!(is_kept_out(&verdict.message), verdict.hint.as_deref());
        }
        assert_eq!(is_kept_out("FATAL:  the database system is shutting down"), None);
    }

    #[test]
    fn judges_every_recorded_end() {
        for version in fixtures::RECORDED {
            let recordings = recordings(version);
            for (name, ..) in RECORDED {
                assert!(recordings.iter().any(|(n, ..)| n == name), "{version}: no {name}");
            }
            for (name, code, text) in recordings {
                if name == "server-stopped" {
                    continue;
                }
                let expected = RECORDED.iter().find(|(n, ..)| *n == name);
                let (_, judgement, words, hint) = expected.unwrap_or_else(|| panic!("{name}"));
                let verdict = judge(Some(code), None, &text);
                let told = format!("{version} {name}: {verdict:#?}");
                assert_eq!(verdict.judgement, *judgement, "{told}");
                assert!(verdict.message.starts_with(words), "{told}");
                assert_eq!(verdict.message.is_empty(), *judgement == Success, "{told}");
                assert_eq!(verdict.hint.is_none(), hint.is_empty(), "{told}");
                assert!(verdict.hint.unwrap_or_default().contains(hint), "{told}");
                let leaked = ["P00", "P01", "ERROR", "INFO", "DETAIL", "2026-"];
                for word in leaked {
                    assert!(!verdict.message.contains(word), "{word} in {told}");
                }
            }
        }
    }

    /// A fast stop of the server ends a backup with 101 up to 2.55 and with 57 in 2.60.
    #[test]
    fn tries_again_after_the_server_was_stopped() {
        for version in fixtures::RECORDED {
            let recordings = recordings(version);
            let (_, code, text) =
                recordings.iter().find(|(name, ..)| name == "server-stopped").expect("recorded");
            let verdict = judge(Some(*code), None, text);
            assert_eq!(verdict.judgement, Retry, "{version}: {verdict:?}");
            assert!([57, 101].contains(code), "{version}: {code}");
        }
    }

    #[test]
    fn keeps_every_line_of_pgbackrests_words() {
        let text = fixtures::text("2.60", "exits/lock-held.50.txt");
        assert_eq!(
            judge(Some(50), None, &text).message,
            "unable to acquire lock on file '/srv/pg/lock/main-backup-1.lock': Resource temporarily \
             unavailable\nHINT: is another pgBackRest process running?"
        );
        let text = fixtures::text("2.45", "exits/expire-without-stanza.104.txt");
        let message = judge(Some(104), None, &text).message;
        assert_eq!(message.lines().count(), 6, "{message}");
        assert!(message.ends_with("encountered 1 error(s), check the log file for details"));
        let text = fixtures::text("2.55", "exits/role-missing.56.txt");
        let message = judge(Some(56), None, &text).message;
        assert!(message.contains("FATAL:  role \"nobody_here\" does not exist"), "{message}");
    }

    #[test]
    fn knows_what_may_be_tried_again() {
        // The set of shared knowledge about pgBackRest, beside what words decide.
        let retried = [39, 49, 56, 57, 63, 64, 82, 94, 100, 101, 102, 104, 124];
        for code in 1..=255 {
            let verdict = judge(Some(code), None, "");
            let expected = if retried.contains(&code) { Retry } else { GiveUp };
            assert_eq!(verdict.judgement, expected, "{code} {}", verdict.name);
        }
        assert_eq!(judge(Some(0), None, "P00   WARN: odd\n").judgement, Success);
        let full =
            "P00  ERROR: [047]: unable to create path '/r/x': [28] No space left on device\n";
        assert_eq!(judge(Some(47), None, full).judgement, Retry);
        let service =
            "P00  ERROR: [103]: unable to find a valid repository:\n   repo1: [ServiceError] x\n";
        assert_eq!(judge(Some(103), None, service).judgement, Retry);
    }

    #[test]
    fn names_each_code_once_and_in_order() {
        assert!(MEANINGS.windows(2).all(|two| two[0].code < two[1].code));
        for (code, name) in
            [(0, "ok"), (25, "assert"), (50, "lock-acquire"), (125, "unknown"), (200, "unknown")]
        {
            assert_eq!(judge(Some(code), None, "").name, name);
        }
        for meaning in MEANINGS {
            let hint = meaning.hint;
            assert!(hint.is_empty() || hint.ends_with('.'), "{}: {hint}", meaning.name);
        }
    }

    #[test]
    fn tells_a_signal() {
        let verdict = judge(None, Some(9), "");
        assert_eq!((verdict.judgement, verdict.code, verdict.name), (Retry, None, "signal"));
        assert_eq!(verdict.message, "pgBackRest was killed by signal 9 (SIGKILL)");
        let verdict = judge(None, Some(11), "P00  ERROR: [064]: last words\n");
        assert_eq!(verdict.message, "pgBackRest was killed by signal 11 (SIGSEGV)\nlast words");
        assert_eq!(judge(None, None, "").judgement, Retry);
    }

    #[test]
    fn finds_the_warnings_of_a_success() {
        for version in fixtures::RECORDED {
            let text = fixtures::text(version, "console/damaged.txt");
            let warned = warnings(&text);
            assert!(warned.iter().any(|w| w.contains("checksum")), "{version}: {warned:?}");
            assert_eq!(warnings(&fixtures::text(version, "console/full.txt")), [""; 0]);
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_says_too_much(
            code: i32,
            text in "(P00  ERROR: \\[0[0-9]{2}\\]: |   HINT: |\n|é|\\PC){0,400}",
        ) {
            let verdict = judge(Some(code), None, &text);
            prop_assert!(verdict.message.len() <= LONGEST_MESSAGE);
            prop_assert!(judge(None, Some(code), &text).message.len() <= LONGEST_MESSAGE);
        }
    }
}
