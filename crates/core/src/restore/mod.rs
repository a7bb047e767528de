//! Plans restores: what can be reached, from which backup, and over which WAL.
//!
//! ```text
//! Asked (what somebody typed) ──► Target ──┐
//! Catalog (what there is) ─────────────────┼──► plan ──► Plan, or a Refusal with what is nearest
//! Wal (what only the WAL itself can tell) ─┘
//! ```
//!
//! The same plan is what `nrt-backup plan` prints, what `nrt_restore_plan` returns as rows, and
//! what `nrt-backup restore` carries out.

pub mod answer;
pub mod catalog;
pub mod drill;
pub mod plan;
pub mod points;
pub mod records;
pub mod target;

use serde::{Deserialize, Serialize};

use crate::inventory::Failure;

/// A restore that cannot be done, and what can be done instead. Nothing has been touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What cannot be reached, and why.
    pub message: String,
    /// The nearest that can be, and what to type for it.
    pub hint: String,
    /// The kind of fault, where programs have to tell it from others.
    pub code: Option<Code>,
}

/// The kinds of faults that programs tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// WAL that the plan needs is there, and is not what it should be. The data directory was not
    /// written to.
    WalDamaged,
    /// Recovery ended before the end of its plan. The data directory was written to.
    Short,
    /// A kind that a newer version knows.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// A refusal in these words.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), hint: hint.into(), code: None }
    }

    /// The same of a kind.
    #[must_use]
    pub fn of(self, code: Code) -> Refusal {
        Refusal { code: Some(code), ..self }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::new(failure.message, failure.hint)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure { message: refusal.message, hint: refusal.hint }
    }
}
