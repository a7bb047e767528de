//! Builds the arguments of every pgBackRest command that we run.
//!
//! Arguments only, program first left out: whoever starts the process knows where it is. Nothing
//! here ever goes through a shell.

use crate::kind::{BackupType, Trigger};

/// The annotation in which a backup keeps why it started.
pub const TRIGGER_ANNOTATION: &str = "nrt-trigger";

fn arguments(config: &str, stanza: Option<&str>, rest: &[&str]) -> Vec<String> {
    let mut all = vec![format!("--config={config}")];
    all.extend(stanza.map(|stanza| format!("--stanza={stanza}")));
    all.extend(rest.iter().map(ToString::to_string));
    all
}

/// Arguments that keep standard output for JSON: warnings go nowhere, an error goes to standard
/// error. What is wrong with the configuration itself still comes before the JSON.
const JSON: [&str; 3] = ["--output=json", "--log-level-console=off", "--log-level-stderr=error"];

/// Takes a backup, then expires what the retention no longer asks for.
///
/// Prints a line for each file, the only progress that every version gives. Never resumes: a
/// process of a killed backup may still write into what would be taken over.
///
/// A `gentle` one lets PostgreSQL take its time for the checkpoint that it begins with, as for any
/// other checkpoint; else the configuration says.
///
/// If `exclude` has any, these names are left out of the backup instead of those that the
/// configuration has.
pub fn backup(
    config: &str,
    stanza: &str,
    exclude: &[String],
    kind: BackupType,
    trigger: Trigger,
    gentle: bool,
) -> Vec<String> {
    let mut rest = vec![
        "--no-resume".to_string(),
        "--log-level-console=detail".to_string(),
        "--log-level-stderr=off".to_string(),
        format!("--annotation={TRIGGER_ANNOTATION}={trigger}"),
        format!("--type={kind}"),
    ];
    rest.extend(gentle.then(|| "--no-start-fast".to_string()));
    rest.extend(exclude.iter().map(|name| format!("--exclude={name}")));
    rest.push("backup".to_string());
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    arguments(config, Some(stanza), &rest)
}

/// Creates the stanza in the repository. Does nothing if it is there and fits the cluster.
pub fn stanza_create(config: &str, stanza: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["stanza-create"])
}

/// Tells the stanza that the cluster was upgraded or made anew.
pub fn stanza_upgrade(config: &str, stanza: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["stanza-upgrade"])
}

/// Prints what the repository holds, as JSON. Ends with 0 even if there is no repository.
pub fn info(config: &str, stanza: &str) -> Vec<String> {
    arguments(config, Some(stanza), &[JSON.as_slice(), &["info"]].concat())
}

/// Prints every file of the stanza's WAL archive, as JSON.
///
/// Names the repository, because with several of them pgBackRest insists; the first is the one
/// that backups go to.
pub fn repo_ls(config: &str, stanza: &str) -> Vec<String> {
    let path = format!("archive/{stanza}");
    let rest = [&["--repo=1", "--recurse"], JSON.as_slice(), &["repo-ls", &path]].concat();
    arguments(config, Some(stanza), &rest)
}

/// Archives one WAL file, as PostgreSQL's archive_command names it.
///
/// A relative path counts from the data directory, which must be the working directory.
pub fn archive_push(config: &str, stanza: &str, file: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["archive-push", file])
}

/// Archives a timeline's history file at once. In the background pgBackRest would archive only what
/// PostgreSQL has marked as ready.
pub fn archive_push_history(config: &str, stanza: &str, file: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["--no-archive-async", "archive-push", file])
}

/// Prints a file of the stanza's archive, as it was before pgBackRest encrypted it.
pub fn archive_get_file(config: &str, stanza: &str, path: &str) -> Vec<String> {
    let path = format!("archive/{stanza}/{path}");
    let rest =
        ["--repo=1", "--log-level-console=off", "--log-level-stderr=error", "repo-get", &path];
    arguments(config, Some(stanza), &rest)
}

/// Removes the backups and the WAL that the retention no longer asks for.
pub fn expire(config: &str, stanza: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["expire"])
}

/// Proves that the configuration works and that WAL reaches the repository. Switches the WAL
/// segment.
pub fn check(config: &str, stanza: &str) -> Vec<String> {
    arguments(config, Some(stanza), &["check"])
}

/// Prints the version. Reads no configuration.
pub fn version() -> Vec<String> {
    vec!["version".to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_one_argument_for_each_thing() {
        let words = |text: &str| text.split(' ').map(str::to_string).collect::<Vec<_>>();
        let common = "--config=/p/c.conf --stanza=main";
        let json = "--output=json --log-level-console=off --log-level-stderr=error";
        for (built, expected) in [
            (
                backup("/p/c.conf", "main", &[], BackupType::Incr, Trigger::WalGrowth, true),
                format!(
                    "{common} --no-resume --log-level-console=detail --log-level-stderr=off \
                     --annotation=nrt-trigger=wal_growth --type=incr --no-start-fast backup"
                ),
            ),
            (
                backup(
                    "/p/c.conf",
                    "main",
                    &["a".to_string(), "nrt_backup/".to_string()],
                    BackupType::Full,
                    Trigger::Manual,
                    false,
                ),
                format!(
                    "{common} --no-resume --log-level-console=detail --log-level-stderr=off \
                     --annotation=nrt-trigger=manual --type=full --exclude=a \
                     --exclude=nrt_backup/ backup"
                ),
            ),
            (stanza_create("/p/c.conf", "main"), format!("{common} stanza-create")),
            (stanza_upgrade("/p/c.conf", "main"), format!("{common} stanza-upgrade")),
            (info("/p/c.conf", "main"), format!("{common} {json} info")),
            (
                repo_ls("/p/c.conf", "main"),
                format!("{common} --repo=1 --recurse {json} repo-ls archive/main"),
            ),
            (
                archive_push("/p/c.conf", "main", "pg_wal/000000010000000000000001"),
                format!("{common} archive-push pg_wal/000000010000000000000001"),
            ),
            (expire("/p/c.conf", "main"), format!("{common} expire")),
            (check("/p/c.conf", "main"), format!("{common} check")),
            (version(), "version".to_string()),
        ] {
            assert_eq!(built, words(&expected));
        }
    }

    #[test]
    fn a_blank_or_a_quote_stays_inside_its_argument() {
        let built = info("/p/it's a \"config\"; rm -rf .conf", "main");
        assert_eq!(built[0], "--config=/p/it's a \"config\"; rm -rf .conf");
        assert_eq!(built.len(), 6);
    }
}
