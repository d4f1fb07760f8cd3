//! The ledger: which step committed which samples, in which generation, and what state it led to.
//!
//! An append-only file of JSON lines, each ending in the CRC-32 of what stands before it, each fsynced before its step
//! counts as committed. A restarted coordinator appends `start`; when the newest checkpoint is older than the head it
//! appends `rewind`, which voids later steps but keeps their records: a step redone under the same recipe must reproduce
//! the state hash of its voided record. [`verify`] proves from the file alone that every sample was trained exactly once
//! per epoch.

mod file;
mod samples;
mod verify;

pub use file::{Ledger, LedgerError, read};
pub use samples::SampleSet;
pub use verify::{Verified, verify};

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Record {
    /// A coordinator took over.
    Start {
        /// Its epoch.
        epoch: u64,
        /// Hash of all that decides which state a step leads to.
        recipe: String,
    },
    /// A step was committed.
    Step(StepRecord),
    /// Steps after `to` are void: training goes on from there.
    Rewind {
        /// Newest step that still counts.
        to: u64,
    },
}

/// A committed step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// 1-based number.
    pub step: u64,
    /// Pass over the data, counted from 0.
    pub data_epoch: u64,
    /// Coordinator epoch and number of the generation that computed it.
    pub generation: (u64, u64),
    /// Samples trained, as indices into the prepared set.
    pub samples: SampleSet,
    /// Mean loss over the global batch.
    pub loss: f64,
    /// Tokens that the mean was taken over.
    pub loss_tokens: u64,
    /// Tokens of the step.
    pub tokens: u64,
    /// SHA-256 (hex) of the training state after it.
    pub state_sha256: String,
}
