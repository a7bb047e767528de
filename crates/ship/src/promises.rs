//! Keeps what this instance has promised to its remotes: on disk before it is written there.
//!
//! The order makes it safe: a process that is killed in between has promised more than it gave, and
//! takes for its own what may arrive late. The other way round, its own heartbeat would be
//! another's to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use nrt_core::layout;
use nrt_core::offsite::Position;
use nrt_core::offsite::owner::Promised;
use nrt_process::files::write_atomically;

/// Remotes that are remembered: whoever goes back to one must find his own name there.
const REMOTES: usize = 8;

/// The promises, by the place on a remote.
#[derive(Debug)]
pub(crate) struct Promises {
    file: PathBuf,
    by_remote: Mutex<BTreeMap<String, Promised>>,
}

/// A heartbeat, and what it says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat<'a> {
    pub(crate) instance: &'a str,
    pub(crate) run: &'a str,
    pub(crate) at: DateTime<Utc>,
    pub(crate) shipped: Option<Position>,
    pub(crate) complete_until: Option<DateTime<Utc>>,
}

impl Promises {
    /// Reads them from a state directory. One that cannot be read counts as none: then the remote
    /// is watched before it is taken for ours.
    pub(crate) fn read(state: &Path) -> Promises {
        let file = state.join(layout::PROMISES);
        let text = fs::read(&file).unwrap_or_default();
        let by_remote = serde_json::from_slice(&text).unwrap_or_default();
        Promises { file, by_remote: Mutex::new(by_remote) }
    }

    /// What an instance has promised to a remote.
    pub(crate) fn of(&self, root: &str, instance: &str) -> Option<Promised> {
        let by_remote = self.by_remote.lock().unwrap_or_else(PoisonError::into_inner);
        by_remote.get(root).filter(|it| it.instance == instance).cloned()
    }

    /// Remembers a heartbeat that is about to be given. It is on disk when this returns.
    pub(crate) fn give(&self, root: &str, heartbeat: &Heartbeat<'_>) -> io::Result<()> {
        let mut by_remote = self.by_remote.lock().unwrap_or_else(PoisonError::into_inner);
        let promised = by_remote.entry(root.to_string()).or_default();
        if promised.instance != heartbeat.instance {
            *promised =
                Promised { instance: heartbeat.instance.to_string(), ..Promised::default() };
        }
        promised.run = heartbeat.run.to_string();
        promised.shipped = heartbeat.shipped;
        promised.complete_until = heartbeat.complete_until;
        promised.give(heartbeat.at);
        while by_remote.len() > REMOTES {
            let last = |it: &Promised| it.heartbeats.last().copied();
            let oldest = by_remote.iter().min_by_key(|(_, it)| last(it));
            let Some(oldest) = oldest.map(|(root, _)| root.clone()) else { break };
            by_remote.remove(&oldest);
        }
        write_atomically(&self.file, &serde_json::to_vec(&*by_remote)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_outlive_the_process_and_are_an_instances_own() {
        let state = tempfile::tempdir().expect("a directory");
        let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
        let beat = |instance, seconds| Heartbeat {
            instance,
            run: "run",
            at: at(seconds),
            shipped: None,
            complete_until: None,
        };
        let promises = Promises::read(state.path());
        assert_eq!(promises.of("there:a", "one"), None);
        for seconds in 0..100 {
            promises.give("there:a", &beat("one", seconds)).expect("written");
        }
        promises.give("there:b", &beat("one", 7)).expect("written");
        let promises = Promises::read(state.path());
        let promised = promises.of("there:a", "one").expect("it was given");
        assert!(promised.has_given(at(99)) && promised.has_given(at(40)));
        assert!(!promised.has_given(at(0)), "it grows without an end");
        assert!(promises.of("there:b", "one").expect("it was given").has_given(at(7)));
        assert_eq!(promises.of("there:a", "other"), None);
        promises.give("there:a", &beat("other", 100)).expect("written");
        assert!(!promises.of("there:a", "other").expect("given").has_given(at(99)));
        for number in 0..20 {
            promises.give(&format!("r{number}"), &beat("one", 200 + number)).expect("written");
        }
        let text = fs::read(state.path().join(layout::PROMISES)).expect("written");
        let kept: BTreeMap<String, Promised> = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(kept.len(), REMOTES);
        assert!(kept.contains_key("r19"));
    }
}
