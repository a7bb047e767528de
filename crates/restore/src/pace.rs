//! Remembers how fast a restore was, for the estimate of the next one.
//!
//! `restored.json` in the data directory has it, and a file of the user who restored: the next
//! restore may go to another directory of this machine.

use std::env;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use nrt_core::layout::{self, Restored};
use nrt_core::restore::drill::{Phases, journal};
use nrt_process::files::write_atomically;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

/// The user's file, below the directory for the state of programs.
const FILE: &str = "nrt-backup/last-restore.json";

/// The user's last restore.
#[derive(Debug, Serialize, Deserialize)]
struct Last {
    at: DateTime<Utc>,
    phases: Phases,
}

/// The phases of the last restore or drill that was measured: of this data directory, or of this
/// user.
pub fn last(data: &Path) -> Option<Phases> {
    newest(data, user_directory().as_deref())
}

fn newest(data: &Path, user: Option<&Path>) -> Option<Phases> {
    let state = data.join(layout::STATE_DIRECTORY);
    let drills = fs::read(state.join(layout::DRILLS)).unwrap_or_default();
    let drills = journal::read(&drills).into_iter().rev().filter_map(|it| it.outcome);
    let drill = drills.filter(|it| it.recovered.is_some()).map(|it| (it.ended, it.phases)).next();
    let restored = fs::read(state.join(layout::RESTORED)).ok();
    let restored = restored.and_then(|text| serde_json::from_slice::<Restored>(&text).ok());
    let restored = restored.and_then(|it| Some((it.at, it.phases?)));
    let of_user = user.and_then(|it| fs::read(it.join(FILE)).ok());
    let of_user = of_user.and_then(|text| serde_json::from_slice::<Last>(&text).ok());
    let of_user = of_user.map(|it| (it.at, it.phases));
    let all = [drill, restored, of_user].into_iter().flatten();
    all.max_by_key(|(at, _)| *at).map(|(_, phases)| phases)
}

/// Remembers a restore for this user. A user without a home directory of their own has none.
pub(super) fn remember(phases: &Phases) {
    if let Some(directory) = user_directory() {
        remember_in(&directory, phases);
    }
}

fn remember_in(directory: &Path, phases: &Phases) {
    let path = directory.join(FILE);
    let last = Last { at: Utc::now(), phases: *phases };
    let Some(parent) = path.parent() else { return };
    // The estimate is all that depends on it.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    if let (Ok(()), Ok(text)) = (made, serde_json::to_vec(&last)) {
        let _ = write_atomically(&path, &text);
    }
}

/// Where this user's programs keep their state, if it is the user's own: `runuser` leaves the home
/// directory of whoever called it in the environment.
fn user_directory() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let (ground, directory) = match named("XDG_STATE_HOME") {
        Some(state) => (state.clone(), state),
        None => {
            let home = named("HOME")?;
            (home.clone(), home.join(".local/state"))
        }
    };
    let is_own = fs::metadata(&ground).is_ok_and(|it| it.uid() == geteuid().as_raw());
    is_own.then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_restore_of_the_directory_or_of_the_user_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, user) = (root.path().join("data"), root.path().join("user"));
        assert_eq!(newest(&data, Some(&user)), None);
        let slow = Phases { restore: 100.0, restored_bytes: 1 << 30, ..Phases::default() };
        remember_in(&user, &slow);
        assert_eq!(newest(&data, Some(&user)), Some(slow));
        assert_eq!(newest(&data, None), None);
        let state = data.join(layout::STATE_DIRECTORY);
        fs::create_dir_all(&state).expect("made");
        let mut restored = serde_json::json!({
            "at": Utc::now() + chrono::TimeDelta::seconds(9), "backup": "b", "source": "s",
            "timeline": 2, "lsn": "0/50", "last_commit": null, "is_copy": false,
        });
        let write = |value: &serde_json::Value| {
            fs::write(state.join(layout::RESTORED), value.to_string()).expect("written");
        };
        // An earlier version measured nothing.
        write(&restored);
        assert_eq!(newest(&data, Some(&user)), Some(slow));
        let fast = Phases { restore: 1.0, ..slow };
        restored["phases"] = serde_json::json!(fast);
        write(&restored);
        assert_eq!(newest(&data, Some(&user)), Some(fast));
    }
}
