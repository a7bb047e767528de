//! Decides who may write to the remote: one instance at a time.
//!
//! `owner.json` on the remote names it. Clocks of two machines may differ, so nobody compares
//! them: another instance counts as alive while what it writes there changes under our eyes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Position;

/// The file's name on the remote.
pub const FILE: &str = "owner.json";

/// Who writes to the remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The cluster's system identifier. As text: JSON's numbers lose digits in many readers.
    pub system_identifier: String,
    /// Names one running place of the cluster; a copy of the data directory is another one.
    pub instance: String,
    /// The machine's name, for people.
    pub host: String,
    /// The timeline that it writes.
    pub timeline: u32,
    /// When it was last there, by its own clock.
    pub heartbeat: DateTime<Utc>,
    /// It has taken over from another instance, whose tail still has to be set aside.
    #[serde(default)]
    pub unsettled: bool,
    /// The place on the remote to which all that it held is being moved. Until that is done, it is
    /// in two places, and of use in neither.
    #[serde(default)]
    pub aside: Option<String>,
    /// Whatever was committed before this is on the remote, by the clock of the instance. A restore
    /// to an idle hour needs to know that nothing is missing there.
    #[serde(default)]
    pub complete_until: Option<DateTime<Utc>>,
    /// How far it had shipped then. What lies behind may arrive in any order: a hole there is no
    /// loss of what was said to be shipped.
    #[serde(default)]
    pub shipped: Option<Position>,
}

/// What an instance may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It owns the remote already.
    Ours,
    /// It may make itself the owner.
    MayClaim,
    /// Another instance of this cluster is, or may be, alive.
    OtherInstance(Owner),
    /// The remote belongs to another cluster, now and for ever.
    OtherCluster(Owner),
    /// It is a copy that was restored beside its original, and nobody said that it takes over.
    Copy(Option<Owner>),
}

/// How many heartbeats may be missed before an instance counts as gone.
pub const MISSED: u32 = 4;

/// Judges what the remote's file says, for the instance `me` of the cluster `system_id`.
///
/// `unchanged_for` is how long the file has been seen to be what it is; `taking_over` is set when
/// the operator said that the other instance is gone. `is_copy` is set where a restore said that
/// the original lives on: that one may be silent for a while, and finds its place as it left it.
pub fn judge(
    found: Option<&Owner>,
    system_id: u64,
    me: &str,
    unchanged_for: Duration,
    heartbeat: Duration,
    taking_over: bool,
    is_copy: bool,
) -> Verdict {
    if let Some(owner) = found.filter(|it| it.system_identifier != system_id.to_string()) {
        return Verdict::OtherCluster(owner.clone());
    }
    if is_copy && !taking_over {
        return Verdict::Copy(found.cloned());
    }
    let Some(owner) = found else { return Verdict::MayClaim };
    if owner.instance == me {
        return Verdict::Ours;
    }
    if taking_over || unchanged_for >= heartbeat * MISSED {
        return Verdict::MayClaim;
    }
    Verdict::OtherInstance(owner.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(system: u64, instance: &str) -> Owner {
        Owner {
            system_identifier: system.to_string(),
            instance: instance.to_string(),
            host: "db1".to_string(),
            timeline: 1,
            heartbeat: DateTime::UNIX_EPOCH,
            unsettled: false,
            aside: None,
            complete_until: None,
            shipped: None,
        }
    }

    #[test]
    fn only_one_instance_writes() {
        let beat = Duration::from_secs(15);
        let judge = |found: Option<&Owner>, seconds, taking_over| {
            judge(found, 7, "me", Duration::from_secs(seconds), beat, taking_over, false)
        };
        let (ours, other, foreign) = (owner(7, "me"), owner(7, "other"), owner(8, "me"));
        assert_eq!(judge(None, 0, false), Verdict::MayClaim);
        assert_eq!(judge(Some(&ours), 0, false), Verdict::Ours);
        assert_eq!(judge(Some(&other), 59, false), Verdict::OtherInstance(other.clone()));
        assert_eq!(judge(Some(&other), 60, false), Verdict::MayClaim);
        assert_eq!(judge(Some(&other), 0, true), Verdict::MayClaim);
        // Two clusters in one place would destroy each other, whatever anybody says.
        assert_eq!(judge(Some(&foreign), 9999, true), Verdict::OtherCluster(foreign.clone()));
    }
    #[test]
    fn a_copy_takes_nothing_that_it_is_not_told_to_take() {
        let judge = |found: Option<&Owner>, taking_over| {
            let long = Duration::from_secs(9999);
            judge(found, 7, "me", long, Duration::from_secs(15), taking_over, true)
        };
        let (ours, other, foreign) = (owner(7, "me"), owner(7, "other"), owner(8, "other"));
        // The original may be restarting, or have its place emptied.
        for found in [None, Some(&other), Some(&ours)] {
            assert_eq!(judge(found, false), Verdict::Copy(found.cloned()));
        }
        assert_eq!(judge(None, true), Verdict::MayClaim);
        assert_eq!(judge(Some(&other), true), Verdict::MayClaim);
        assert_eq!(judge(Some(&ours), true), Verdict::Ours);
        for taking_over in [false, true] {
            let verdict = judge(Some(&foreign), taking_over);
            assert_eq!(verdict, Verdict::OtherCluster(foreign.clone()));
        }
    }
}
