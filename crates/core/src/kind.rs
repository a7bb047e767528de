//! Names the kinds of backup and the reasons for which one starts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a backup holds, in pgBackRest's own words.
///
/// Ordered by how much a backup of the kind covers: a full one serves whoever asked for a
/// differential or an incremental one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// What changed since the last backup of any type.
    Incr,
    /// What changed since the last full backup.
    Diff,
    /// Everything.
    Full,
}

impl BackupType {
    /// All types, the one that covers least first.
    pub const ALL: [BackupType; 3] = [BackupType::Incr, BackupType::Diff, BackupType::Full];

    /// The name that pgBackRest's `--type` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            BackupType::Incr => "incr",
            BackupType::Diff => "diff",
            BackupType::Full => "full",
        }
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no type of backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a type of backup")]
pub struct UnknownType(pub String);

impl FromStr for BackupType {
    type Err = UnknownType;

    /// Reads `full`, `diff` or `incr`, also written out, in any case.
    fn from_str(text: &str) -> Result<Self, UnknownType> {
        match text.to_ascii_lowercase().as_str() {
            "full" => Ok(BackupType::Full),
            "diff" | "differential" => Ok(BackupType::Diff),
            "incr" | "incremental" => Ok(BackupType::Incr),
            _ => Err(UnknownType(text.to_string())),
        }
    }
}

/// Why a job started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Its schedule came round.
    Schedule,
    /// As much WAL was written as `nrt_backup.wal_growth_threshold` says.
    WalGrowth,
    /// Somebody called a function.
    Manual,
    /// The server started and a run had been missed or broken off.
    Startup,
    /// The repository holds no full backup to build on.
    MissingBase,
    /// Somebody ran pgBackRest by hand; seen in the repository, not started here.
    External,
}

impl Trigger {
    /// All reasons.
    pub const ALL: [Trigger; 6] = [
        Trigger::Schedule,
        Trigger::WalGrowth,
        Trigger::Manual,
        Trigger::Startup,
        Trigger::MissingBase,
        Trigger::External,
    ];

    /// The name as the history shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Schedule => "schedule",
            Trigger::WalGrowth => "wal_growth",
            Trigger::Manual => "manual",
            Trigger::Startup => "startup",
            Trigger::MissingBase => "missing_base",
            Trigger::External => "external",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no reason for a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a reason for a backup")]
pub struct UnknownTrigger(pub String);

impl FromStr for Trigger {
    type Err = UnknownTrigger;

    fn from_str(text: &str) -> Result<Self, UnknownTrigger> {
        let named = Trigger::ALL.into_iter().find(|trigger| trigger.as_str() == text);
        named.ok_or_else(|| UnknownTrigger(text.to_string()))
    }
}
