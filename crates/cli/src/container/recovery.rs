//! Brings a lost cluster back in the container's data directory, once.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use chrono::Utc;
use nrt_core::layout::{self, Restored};
use nrt_core::restore::Refusal;
use nrt_core::restore::target::{Action, Asked, Target};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::directories::User;
use super::variables::Variables;
use super::{End, FAILED, REPOSITORY, failed_to_run, rclone};
use crate::commands::zone;
use nrt_restore as restore;

/// Where a restore works: in the volume that what it fetches is moved to.
const WORK: &str = "/backup/local/.restore";
/// How often the restore is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// What says where to go back to.
const TARGETS: [&str; 4] =
    ["RECOVERY_TARGET_TIME", "RECOVERY_TARGET_NAME", "RECOVERY_TARGET_XID", "RECOVERY_TARGET_LSN"];

/// Whether recovery may end where WAL is missing: `--up-to-gap`.
const UP_TO_GAP: &str = "RECOVERY_UP_TO_GAP";

/// Whether what lies exactly at it is replayed, too.
const INCLUSIVE: &str = "RECOVERY_TARGET_INCLUSIVE";

/// A recovery that was asked for.
pub(super) struct Recovery {
    target: Target,
    /// Whether another cluster in the data directory is moved aside.
    replace: bool,
}

/// What is in a data directory.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing.
    Nothing,
    /// A restore that was interrupted.
    Begun,
    /// What was asked for: it was restored before.
    Restored,
    /// Another cluster, or what else there is: why it is not what was asked for.
    Other(String),
}

impl Recovery {
    /// What was asked for, if anything.
    ///
    /// # Errors
    ///
    /// What cannot be meant, with the variable's name.
    pub(super) fn asked(variables: &Variables) -> Result<Option<Recovery>, Refusal> {
        let replace = variables.switch("RECOVERY_REPLACE", false)?;
        let inclusive = variables.switch(INCLUSIVE, true)?;
        let up_to_gap = variables.switch(UP_TO_GAP, false)?;
        let [time, name, xid, lsn] = TARGETS.map(|it| variables.get(it).map(str::to_string));
        let given = TARGETS.into_iter().filter(|it| variables.get(it).is_some());
        let mut given: Vec<&str> = given.collect();
        if !variables.switch("RECOVERY_MODE", false)? {
            if let Some(name) = given.first() {
                eprintln!(
                    "nrt-backup: {name} is set, but RECOVERY_MODE is not: nothing is recovered"
                );
            }
            return Ok(None);
        }
        let asked = Asked {
            time,
            name,
            xid,
            lsn,
            // Without a target there is nothing that it could mean.
            exclusive: !inclusive && !given.is_empty(),
            action: variables.get("RECOVERY_TARGET_ACTION").map(str::to_string),
            up_to_gap,
            ..Asked::default()
        };
        let target = asked.target(&zone::given(), Utc::now()).map_err(|refusal| {
            given.extend(asked.action.as_ref().map(|_| "RECOVERY_TARGET_ACTION"));
            given.extend(up_to_gap.then_some(UP_TO_GAP));
            Refusal::new(format!("{}: {}", given.join(", "), refusal.message), refusal.hint)
        })?;
        Ok(Some(Recovery { target, replace }))
    }

    /// Refuses to touch another cluster.
    pub(super) fn check(&self, data: &Path) -> Result<(), Refusal> {
        match self.found(data) {
            Found::Other(what) if !self.replace => Err(Refusal::new(
                format!("RECOVERY_MODE is true, but {what}"),
                "Start without RECOVERY_MODE to use it, with an empty volume to recover into \
                 that, or with RECOVERY_REPLACE=true to have it moved aside first.",
            )),
            _ => Ok(()),
        }
    }

    /// Recovers, unless that was done. Returns when the server is to be started.
    pub(super) fn run(
        &self,
        variables: &Variables,
        data: &Path,
        user: &User,
        has_remote: bool,
    ) -> Result<(), End> {
        let found = self.found(data);
        if found == Found::Restored {
            eprintln!("nrt-backup: \"{}\" was recovered before: it is started", data.display());
            return Ok(());
        }
        user.make(data).map_err(End::failed)?;
        let own = std::env::current_exe();
        let own = own.map_err(|it| End::failed(failed_to_run(Path::new("nrt-backup"), &it)))?;
        let mut program = Command::new(&own);
        program.args(["restore", "--no-start", "--work-directory", WORK, "-D"]).arg(data);
        program.args(["--local-repository", REPOSITORY]);
        match has_remote {
            true => program.args(["--rclone-config", rclone::CONFIG]),
            // The volume of the repository is all that there is.
            false => program.args(["--repository", REPOSITORY]),
        };
        if matches!(found, Found::Other(_)) {
            program.arg("--replace");
        }
        if self.target.up_to_gap {
            program.arg("--up-to-gap");
        }
        let mut variables = variables.clone();
        variables.forget_password();
        if self.target.inclusive {
            // It may be off without a target, which the restore takes for a contradiction.
            variables.forget(INCLUSIVE);
        }
        program.env_clear().envs(variables.all());
        let status = user.run(&mut program).spawn().and_then(look_after);
        let status = status.map_err(|error| End::failed(failed_to_run(&own, &error)))?;
        match status.code() {
            Some(0) if self.target.action == Action::Shutdown => {
                eprintln!(
                    "nrt-backup: RECOVERY_TARGET_ACTION is shutdown: the server is not started; \
                     started again, the container goes on from here"
                );
                Err(End { code: 0, why: None })
            }
            Some(0) => {
                eprintln!("nrt-backup: \"{}\" is recovered: the server starts now", data.display());
                Ok(())
            }
            // It has said why.
            _ => Err(End { code: FAILED, why: None }),
        }
    }

    fn found(&self, data: &Path) -> Found {
        let state = data.join(layout::STATE_DIRECTORY);
        let begun = restore::has_begun(Path::new(WORK), data);
        let text = fs::read(state.join(layout::RESTORED)).unwrap_or_default();
        let restored = serde_json::from_slice::<Restored>(&text).ok();
        let is_whole = !state.join(layout::RECOVERING).exists();
        judge(&self.target, restored.filter(|_| is_whole), begun, data)
    }
}

fn judge(target: &Target, restored: Option<Restored>, begun: bool, data: &Path) -> Found {
    let place = data.display();
    match restored {
        Some(restored) if restored.target.as_ref() == Some(target) => Found::Restored,
        _ if begun => Found::Begun,
        Some(restored) => Found::Other(format!(
            "\"{place}\" holds a cluster that was recovered to another target, on {}",
            restored.at.format("%Y-%m-%d %H:%M:%S UTC")
        )),
        None if data.join("PG_VERSION").exists() => {
            Found::Other(format!("\"{place}\" holds a cluster already"))
        }
        None => {
            let mut names = fs::read_dir(data).into_iter().flatten().flatten();
            match names.find(|it| it.file_name() != "lost+found") {
                Some(name) => Found::Other(format!(
                    "\"{place}\" is not empty: it holds \"{}\"",
                    name.file_name().to_string_lossy()
                )),
                None => Found::Nothing,
            }
        }
    }
}

/// Waits for the restore. Whoever stops the container stops it: the first process of a container
/// is sent the signals, and ignores those that it does not ask for.
fn look_after(mut child: Child) -> std::io::Result<ExitStatus> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if asked.swap(false, Ordering::Relaxed)
            && let Some(pid) = pid
        {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::TERM);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(given: &[(&str, &str)]) -> Result<Option<Recovery>, Refusal> {
        let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Recovery::asked(&Variables::of(given))
    }

    fn target(given: &[(&str, &str)]) -> Target {
        let mode = [("RECOVERY_MODE", "true")];
        let given = [&mode[..], given].concat();
        asked(&given).expect("it is good").expect("it is asked for").target
    }

    #[test]
    fn only_the_mode_asks_for_it() {
        assert!(asked(&[]).expect("good").is_none());
        assert!(asked(&[("RECOVERY_MODE", "false")]).expect("good").is_none());
        assert!(asked(&[("RECOVERY_TARGET_XID", "7")]).expect("good").is_none());
        assert!(asked(&[("RECOVERY_MODE", "true")]).expect("good").is_some());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let mode = ("RECOVERY_MODE", "true");
        for given in [
            &[("RECOVERY_MODE", "maybe")][..],
            &[mode, ("RECOVERY_TARGET_TIME", "yesterday-ish")],
            &[mode, ("RECOVERY_TARGET_TIME", "2999-01-01 00:00:00")],
            &[mode, ("RECOVERY_TARGET_LSN", "16-B3")],
            &[mode, ("RECOVERY_TARGET_XID", "x")],
            &[mode, ("RECOVERY_TARGET_XID", "7"), ("RECOVERY_TARGET_LSN", "0/7")],
            &[mode, ("RECOVERY_TARGET_ACTION", "explode")],
            &[mode, ("RECOVERY_TARGET_INCLUSIVE", "partly")],
            &[mode, ("RECOVERY_UP_TO_GAP", "partly")],
            &[mode, ("RECOVERY_TARGET_XID", "7"), ("RECOVERY_UP_TO_GAP", "true")],
            &[("RECOVERY_REPLACE", "partly")],
        ] {
            let Err(refusal) = asked(given) else { panic!("{given:?} was taken") };
            let name = given.last().expect("there is one").0;
            assert!(refusal.message.contains(name), "{refusal:?}");
        }
    }

    #[test]
    fn a_container_can_say_that_a_gap_is_the_end() {
        assert!(target(&[("RECOVERY_UP_TO_GAP", "true")]).up_to_gap);
        assert!(!target(&[("RECOVERY_UP_TO_GAP", "false")]).up_to_gap);
        assert!(!target(&[]).up_to_gap);
    }

    #[test]
    fn exclusive_means_a_target() {
        let latest = target(&[("RECOVERY_TARGET_INCLUSIVE", "false")]);
        assert!(latest.inclusive);
        let xid = target(&[("RECOVERY_TARGET_INCLUSIVE", "no"), ("RECOVERY_TARGET_XID", "7")]);
        assert!(!xid.inclusive);
    }

    #[test]
    fn a_cluster_is_recovered_once_and_another_is_let_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let (latest, other) = (target(&[]), target(&[("RECOVERY_TARGET_XID", "7")]));
        let restored = |target: &Target| {
            Some(Restored { target: Some(target.clone()), ..of_before("20261122-010203F") })
        };
        let found = |restored, begun| judge(&latest, restored, begun, root.path());
        assert_eq!(found(None, false), Found::Nothing);
        assert_eq!(found(restored(&latest), false), Found::Restored);
        // A server that waits at its target needs the directory that the restore worked in.
        assert_eq!(found(restored(&latest), true), Found::Restored);
        assert_eq!(found(None, true), Found::Begun);
        assert!(matches!(found(restored(&other), false), Found::Other(_)));
        // Asked for another target, and interrupted.
        assert_eq!(found(restored(&other), true), Found::Begun);
        fs::write(root.path().join("PG_VERSION"), "17\n").expect("written");
        assert!(matches!(found(None, false), Found::Other(_)));
        assert_eq!(found(None, true), Found::Begun);
    }

    fn of_before(label: &str) -> Restored {
        let text = format!(
            r#"{{"at":"2026-11-22T06:30:00Z","backup":"{label}","source":"s3:b/main",
            "timeline":2,"lsn":"0/5000028","last_commit":null,"is_copy":false}}"#
        );
        serde_json::from_str(&text).expect("it is read")
    }
}
