//! Compares the whole repository with the remote: names, sizes, and hashes where the remote has
//! them. `rclone check` does that, in a process of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};

use nrt_core::inventory::Failure;
use nrt_process::{allowed_for_rclone, tether};

use super::remote::Remote;
use super::state::Shared;
use super::wait_for;

/// What `rclone check` found, as paths below the repository.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// How many files are the same.
    pub(crate) same: u64,
    /// Files that the remote does not have.
    pub(crate) missing: Vec<String>,
    /// Files that differ in size or hash.
    pub(crate) different: Vec<String>,
    /// Why it could not be done as a whole.
    pub(crate) failure: Option<Failure>,
}

/// Compares. `unfinished` names backups that are not mirrored yet.
pub(crate) fn run(shared: &Shared, remote: &Remote, unfinished: &[String]) -> Found {
    let plan = &shared.plan;
    let mut args: Vec<OsString> = vec![
        "check".into(),
        shared.repository.clone().into(),
        format!("{}/repository", remote.root).into(),
    ];
    for option in ["--one-way", "--combined=-", "--skip-links", "--ask-password=false", "--config"]
    {
        args.push(option.into());
    }
    args.push((&remote.config).into());
    // What is rewritten all the time and compared by itself, and what is not mirrored.
    for name in ["*.info", "*.info.copy", "*.pgbackrest.tmp", "backup.manifest.copy"] {
        args.push("--exclude".into());
        args.push(name.into());
    }
    let stanza = &plan.stanza;
    args.push("--exclude".into());
    args.push(format!("/backup/{stanza}/backup.history/**").into());
    for label in unfinished {
        args.push("--exclude".into());
        args.push(format!("/backup/{stanza}/{label}/**").into());
    }
    // Other stanzas of the repository are not ours.
    for rule in [format!("+ /backup/{stanza}/**"), format!("+ /archive/{stanza}/**"), "- *".into()]
    {
        args.push("--filter".into());
        args.push(rule.into());
    }
    match check(shared, remote, &args) {
        Ok((success, stdout, stderr)) => {
            let mut found = read(&stdout);
            // It also ends badly when there are differences.
            let seen = !found.missing.is_empty() || !found.different.is_empty();
            if found.failure.is_none() && !success && !seen {
                let words = stderr.lines().last().unwrap_or("no reason given");
                found.failure = Some(failure(remote.hide(words)));
            }
            found
        }
        Err(error) => Found { failure: Some(failure(error.to_string())), ..Found::default() },
    }
}

/// Runs rclone until it ends or the session does. It may take a day: what it prints goes to files.
fn check(
    shared: &Shared,
    remote: &Remote,
    args: &[OsString],
) -> io::Result<(bool, String, String)> {
    let files = [(); 2].map(|()| remote.outbox().join(remote.spool_name()));
    let mut command = Command::new(&shared.plan.rclone);
    command.args(args).env_clear().envs(allowed_for_rclone(std::env::vars_os()));
    command.stdin(Stdio::null());
    command.stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
    tether(&mut command);
    let status = wait_for(shared, &mut command.spawn()?)?;
    let text = |path| fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let printed = (status.success(), text(&files[0])?, text(&files[1])?);
    for file in files {
        fs::remove_file(file)?;
    }
    Ok(printed)
}

fn failure(words: String) -> Failure {
    Failure {
        message: format!("the remote could not be compared with the repository: {words}"),
        hint: "It is done again at the next time of nrt_backup.comparison_schedule, or by \
               \"nrt-backup check\"."
            .to_string(),
    }
}

/// Reads what `rclone check --combined` prints.
fn read(text: &str) -> Found {
    let mut found = Found::default();
    let mut unread = 0_u64;
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("=", _)) => found.same += 1,
            Some(("+", path)) => found.missing.push(path.to_string()),
            Some(("*", path)) => found.different.push(path.to_string()),
            Some(("!", _)) => unread += 1,
            _ => {}
        }
    }
    if unread > 0 {
        found.failure = Some(failure(format!("{unread} file(s) could not be read")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rclones_report() {
        let found = read("= a/b\n= c\n+ new file\n* other\n- extra\n! bad\n");
        assert_eq!(
            (found.same, found.missing, found.different),
            (2, vec!["new file".into()], vec!["other".into()])
        );
        assert!(found.failure.expect("one").message.contains("1 file(s)"));
        assert!(read("").failure.is_none());
    }
}
