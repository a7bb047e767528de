//! Decides who may write to the remote: one instance at a time.
//!
//! `owner.json` on the remote names it. Clocks of two machines may differ, so nobody compares
//! them: another instance counts as alive while what it writes there changes under our eyes.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Position;

/// The file's name on the remote.
pub const FILE: &str = "owner.json";
/// The name of its copy. One of the two is whole at every instant: each is written only while the
/// other one is.
pub const COPY: &str = "owner.json.copy";

/// What the two files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The file is whole.
    File(Owner),
    /// Only the copy is.
    Copy(Owner),
    /// Neither is there.
    Nobody,
    /// Something is there, and neither can be read: what is wrong with the first of them.
    Unreadable(String),
}

impl Found {
    /// Reads the file, and the copy where the file is cut off or gone.
    ///
    /// # Errors
    ///
    /// Those of `get`, which answers `None` for a file that is not there.
    pub fn read<E>(mut get: impl FnMut(&str) -> Result<Option<Vec<u8>>, E>) -> Result<Found, E> {
        let mut fault = None;
        for name in [FILE, COPY] {
            let Some(text) = get(name)? else { continue };
            match serde_json::from_slice(&text) {
                Ok(owner) if name == FILE => return Ok(Found::File(owner)),
                Ok(owner) => return Ok(Found::Copy(owner)),
                Err(error) => drop(fault.get_or_insert_with(|| error.to_string())),
            }
        }
        Ok(fault.map_or(Found::Nobody, Found::Unreadable))
    }

    /// The owner, if one of the files names one.
    pub fn owner(self) -> Option<Owner> {
        match self {
            Found::File(owner) | Found::Copy(owner) => Some(owner),
            Found::Nobody | Found::Unreadable(_) => None,
        }
    }
}

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
    /// It has taken over from another instance, whose WAL still has to be moved away.
    #[serde(default)]
    pub unsettled: bool,
    /// The place on the remote to which that is being moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<String>,
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
    /// The directories of its tablespaces, by object id. The WAL creates one that is newer than the
    /// backup, and its directory has to be there before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tablespaces: BTreeMap<u32, String>,
}

/// What an instance has promised to a remote: kept here, on disk, before it is written there. The
/// remote is believed only as far as that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promised {
    /// The instance.
    pub instance: String,
    /// The run of the machine in which the last one was given.
    pub run: String,
    /// The last heartbeats, oldest first. One that seemed to fail may have arrived.
    pub heartbeats: Vec<DateTime<Utc>>,
    /// How far the remote reached then.
    #[serde(default)]
    pub shipped: Option<Position>,
    /// Up to when it was complete.
    #[serde(default)]
    pub complete_until: Option<DateTime<Utc>>,
}

impl Promised {
    /// Heartbeats that are remembered: more than lie between two writings of the copy.
    pub const HEARTBEATS: usize = 64;

    /// Takes in a heartbeat that is about to be given.
    pub fn give(&mut self, heartbeat: DateTime<Utc>) {
        if self.heartbeats.len() >= Self::HEARTBEATS {
            self.heartbeats.remove(0);
        }
        self.heartbeats.push(heartbeat);
    }

    /// Whether a heartbeat was given by this instance.
    pub fn has_given(&self, heartbeat: DateTime<Utc>) -> bool {
        self.heartbeats.contains(&heartbeat)
    }
}

/// What an instance may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It owns the remote already.
    Ours,
    /// It owns the remote if nobody else gives heartbeats in its name: it looks for so long.
    Watch(Duration),
    /// Another one has its name: a copy of the whole machine, or a later life of this one, of which
    /// it was put back. It takes another name, and waits like any other instance.
    Clone(Owner),
    /// It may make itself the owner.
    MayClaim,
    /// Another instance of this cluster is, or may be, alive.
    OtherInstance(Owner),
    /// Another instance of this cluster has gone on to a later timeline. However silent it is, only
    /// an operator can say that its life is given up.
    LaterTimeline(Owner),
    /// The remote belongs to another cluster, now and for ever.
    OtherCluster(Owner),
    /// It is a copy that was restored beside its original, and nobody said that it takes over.
    Copy(Option<Owner>),
}

/// How many heartbeats may be missed before an instance counts as gone.
pub const MISSED: u32 = 4;

/// How much later than its heartbeat another instance may see that it has been replaced.
pub const MARGIN: Duration = Duration::from_secs(3);

/// What an instance knows when it judges.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// The cluster's system identifier.
    pub system_id: u64,
    /// The instance.
    pub me: &'a str,
    /// What this instance has promised to this remote; none by a version that kept no promises.
    pub promised: Option<&'a Promised>,
    /// This run of the machine.
    pub run: &'a str,
    /// The timeline that is written here, once the server has told.
    pub timeline: Option<u32>,
    /// How long the file on the remote has been seen to be what it is.
    pub unchanged_for: Duration,
    /// The time between two heartbeats.
    pub heartbeat: Duration,
    /// The operator has said that the other instance is gone.
    pub taking_over: bool,
    /// A restore has said that the original lives on: that one may be silent for a while, and finds
    /// its place as it left it.
    pub is_copy: bool,
}

/// Judges what the remote's file says.
///
/// A copy of the whole machine has the same name and the same promises. It was started, so its run
/// is another one, and it watches for longer than one heartbeat takes: a living owner gives one
/// meanwhile that the copy has not promised. Within one run of the machine there is no such copy,
/// and an owner whose process has ended goes on at once.
pub fn judge(found: Option<&Owner>, known: &Knowledge<'_>) -> Verdict {
    if let Some(owner) = found.filter(|it| it.system_identifier != known.system_id.to_string()) {
        return Verdict::OtherCluster(owner.clone());
    }
    if known.is_copy && !known.taking_over {
        return Verdict::Copy(found.cloned());
    }
    let Some(owner) = found else { return Verdict::MayClaim };
    if owner.instance == known.me {
        return judge_own(owner, known);
    }
    if known.taking_over {
        return Verdict::MayClaim;
    }
    let Some(timeline) = known.timeline else { return Verdict::OtherInstance(owner.clone()) };
    if owner.timeline > timeline {
        return Verdict::LaterTimeline(owner.clone());
    }
    if known.unchanged_for >= known.heartbeat * MISSED {
        return Verdict::MayClaim;
    }
    Verdict::OtherInstance(owner.clone())
}

/// Judges a file that names this very instance.
fn judge_own(owner: &Owner, known: &Knowledge<'_>) -> Verdict {
    let watch = (known.heartbeat + MARGIN).saturating_sub(known.unchanged_for);
    match known.promised.filter(|it| it.instance == known.me) {
        Some(promised) if !promised.has_given(owner.heartbeat) => Verdict::Clone(owner.clone()),
        Some(promised) if promised.run == known.run => Verdict::Ours,
        _ if watch.is_zero() => Verdict::Ours,
        _ => Verdict::Watch(watch),
    }
}

#[cfg(test)]
mod tests;
