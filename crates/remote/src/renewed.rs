//! Keeps the tokens that rclone renews where its configuration may not be written.
//!
//! rclone renews an OAuth token by itself, and some providers accept each token for renewal only
//! once: a renewed one that is lost locks the server out at its next start. Where rclone cannot
//! replace its file, or the file does not survive, it uses a copy in the state directory:
//!
//! | the configuration | is used |
//! | --- | --- |
//! | has no token, or may be replaced | itself |
//! | is as it was when the copy was made | the copy, with what rclone has renewed in it |
//! | was changed since | a new copy, in which the newer one of each remote's tokens stands |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use chrono::{DateTime, FixedOffset};
use nrt_core::inventory::Failure;
use nrt_core::layout;
use nrt_process::files::write_atomically;
use rustix::fs::{Access, access};
use serde_json::Value;

use super::remotes::Remotes;

/// The file to be used in the place of `config`, the given one, by a process that does not ship.
pub fn in_use(state: &Path, config: &str) -> String {
    let (copy, given) = paths(state);
    let is_of_this = fs::read(&given).is_ok_and(|it| fs::read(config).is_ok_and(|now| now == it));
    if is_of_this && copy.exists() {
        copy.to_string_lossy().into_owned()
    } else {
        config.to_string()
    }
}

/// The file to be used in the place of `config` by the process that ships, which keeps it. `remotes`
/// is what `config` holds.
///
/// # Errors
///
/// Why renewed tokens can be kept nowhere.
pub fn prepare(
    rclone: &str,
    state: &Path,
    config: &str,
    remotes: &Remotes,
) -> Result<String, Failure> {
    let may_be_kept =
        config != layout::CONTAINER_RCLONE_CONFIG && may_be_replaced(Path::new(config));
    choose(rclone, state, config, remotes, may_be_kept)
}

fn choose(
    rclone: &str,
    state: &Path,
    config: &str,
    remotes: &Remotes,
    may_be_kept: bool,
) -> Result<String, Failure> {
    let (copy, given) = paths(state);
    if remotes.tokens().is_empty() {
        // Secrets that nobody uses do not stay behind.
        for path in [copy, given] {
            let _ = fs::remove_file(path);
        }
        return Ok(config.to_string());
    }
    let used = in_use(state, config);
    if used != config || may_be_kept {
        return Ok(used);
    }
    let problem = |error: &dyn std::fmt::Display| Failure {
        message: format!(
            "rclone may not replace \"{config}\", and no copy can be kept in the state directory: \
             renewed tokens would be lost: {error}"
        ),
        hint: "Let the server's user write the file and its directory, or make room on the data \
               directory's disk."
            .to_string(),
    };
    let content = fs::read(config).map_err(|error| problem(&error))?;
    let kept = copy.exists().then(|| Remotes::read(rclone, &copy.to_string_lossy()));
    let kept = kept.and_then(Result::ok).map(|it| it.tokens()).unwrap_or_default();
    let merged = match std::str::from_utf8(&content) {
        Ok(text) => merge(text, &remotes.tokens(), &kept).into_bytes(),
        Err(_) => content.clone(),
    };
    // A copy that is not of `given` yet is made again, with the tokens that it holds.
    let written: io::Result<()> =
        write_atomically(&copy, &merged).and_then(|()| write_atomically(&given, &content));
    written.map_err(|error| problem(&error))?;
    eprintln!(
        "session: rclone may not replace \"{config}\": the tokens that it renews are kept in \"{}\"",
        copy.display()
    );
    Ok(copy.to_string_lossy().into_owned())
}

fn paths(state: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    (state.join(layout::RCLONE_RENEWED), state.join(layout::RCLONE_RENEWED_FROM))
}

/// Whether rclone can replace a file: it writes another one beside it and renames that. A file that
/// is mounted by itself cannot be replaced.
fn may_be_replaced(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|mounted| mounted.replace("\\040", " ") == path.to_string_lossy());
    let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    !is_mounted && may_write(&path) && path.parent().is_some_and(may_write)
}

/// The configuration `given` with those tokens of `kept` in it that are newer.
fn merge(
    given: &str,
    tokens: &BTreeMap<String, String>,
    kept: &BTreeMap<String, String>,
) -> String {
    let newer: BTreeMap<&str, &str> = kept
        .iter()
        .filter(|(name, kept)| tokens.get(*name).is_some_and(|token| expiry(kept) > expiry(token)))
        .map(|(name, kept)| (name.as_str(), kept.as_str()))
        .collect();
    if newer.is_empty() {
        return given.to_string();
    }
    let mut section = "";
    let mut merged = String::with_capacity(given.len());
    for line in given.split_inclusive('\n') {
        let text = line.trim_start_matches('\u{feff}').trim();
        if let Some(name) = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            section = name;
        }
        let is_token = text.split_once('=').is_some_and(|(name, _)| name.trim() == "token");
        match newer.get(section).filter(|_| is_token) {
            Some(token) => {
                merged.push_str("token = ");
                merged.push_str(token);
                merged.push('\n');
            }
            None => merged.push_str(line),
        }
    }
    merged
}

/// Until when a token is good: the one that was made later is good for longer.
fn expiry(token: &str) -> Option<DateTime<FixedOffset>> {
    let token: Value = serde_json::from_str(token).ok()?;
    DateTime::parse_from_rfc3339(token["expiry"].as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: u32, hour: u32) -> String {
        format!("{{\"access_token\":\"t{number}\",\"expiry\":\"2026-03-10T{hour:02}:00:00Z\"}}")
    }

    fn config(drive: &str, other: &str) -> String {
        format!(
            "\u{feff}[drive]\ntype = drive\ntoken = {drive}\n[box]\ntype = box\ntoken = {other}\n"
        )
    }

    #[test]
    fn renewed_tokens_survive_and_the_newer_one_wins() {
        let state = tempfile::tempdir().expect("a directory");
        let path = state.path().join("rclone.conf");
        let given = path.to_string_lossy().into_owned();
        let choose = |may_be_kept| {
            let remotes = Remotes::read("rclone", &given).expect("read");
            choose("rclone", state.path(), &given, &remotes, may_be_kept).expect("a file")
        };
        let tokens = |file: &str| Remotes::read("rclone", file).expect("read").tokens();
        fs::write(&path, config(&token(1, 10), &token(1, 10))).expect("written");
        assert_eq!(choose(true), given);
        let copy = choose(false);
        assert_ne!(copy, given);
        assert!(copy.contains("/pgsql_tmp_"), "{copy}");
        assert_eq!(tokens(&copy), tokens(&given));

        // rclone renews both.
        fs::write(&copy, config(&token(2, 11), &token(2, 13))).expect("written");
        assert_eq!((choose(false), in_use(state.path(), &given)), (copy.clone(), copy.clone()));
        // Also once the file may be replaced: it does not have them.
        assert_eq!(choose(true), copy);
        assert_eq!(tokens(&copy)["box"], token(2, 13));

        // An operator connects one of them again.
        fs::write(&path, config(&token(3, 12), &token(1, 10))).expect("written");
        assert_eq!(in_use(state.path(), &given), given);
        assert_eq!(choose(false), copy);
        assert_eq!(tokens(&copy)["drive"], token(3, 12));
        assert_eq!(tokens(&copy)["box"], token(2, 13));

        fs::write(&path, "[disk]\ntype = local\n").expect("written");
        assert_eq!(choose(false), given);
        assert!(!Path::new(&copy).exists());
    }

    #[test]
    fn a_file_is_replaced_only_where_another_one_can_be_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rclone.conf");
        assert!(!may_be_replaced(&path));
        fs::write(&path, "").expect("written");
        assert!(may_be_replaced(&path));
        assert!(!may_be_replaced(Path::new("/proc/self/environ")));
    }
}
