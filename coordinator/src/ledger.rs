//! The ledger: which step committed which samples, in which generation, and what state it led to.
//!
//! An append-only file of JSON lines, each ending in the CRC-32 of what stands before it, each fsynced before its step
//! counts as committed. A restarted coordinator appends `start`; when nobody has the state after the head any more it
//! appends `rewind`, which voids later steps but keeps their records: a step redone under the same recipe must reproduce
//! the state hash of its voided record. When it ends it appends `end`; a chapter without one is at work, or its process died.
//! [`verify`] proves from the records alone that every sample was trained, or skipped, exactly once per epoch, and [`audit`] tells the run's
//! story from them.

mod audit;
mod file;
mod lines;
mod samples;
mod skipped;
mod story;
mod verify;

pub use audit::{Audit, Unproven, audit};
pub use file::{Ledger, LedgerError};
#[cfg(feature = "simulation")]
pub(crate) use lines::read_on;
pub use lines::{Tail, read};
pub use samples::SampleSet;
pub use skipped::Skipped;
pub use story::{Chapter, Happening, Span};
pub use verify::{Verified, verify};

use serde::{Deserialize, Serialize};

/// Its name in a run directory.
pub const LEDGER: &str = "ledger";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Record {
    /// A coordinator took over.
    Start {
        /// Its epoch.
        epoch: u64,
        /// Hash of all that decides which state a step leads to; empty where something else does, too (sums that depend on the
        /// number of workers).
        recipe: String,
        /// Samples of the prepared set; 0 where an older version wrote this.
        #[serde(default)]
        samples: u64,
        /// When, in milliseconds since 1970; 0 where an older version wrote this.
        #[serde(default)]
        at_ms: u64,
    },
    /// A step was committed.
    Step(StepRecord),
    /// Steps after `to` are void: training goes on from there.
    Rewind {
        /// Newest step that still counts.
        to: u64,
    },
    /// A worker held the others up. Of no consequence for what was trained.
    Slow {
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// The newest step that it was judged by.
        step: u64,
        /// Its name.
        worker: String,
        /// Its seconds a token, in times of the others' median.
        ratio: f64,
        /// Whether it was asked to leave.
        drained: bool,
    },
    /// A coordinator ended the run or gave it up.
    End {
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// Code of the failure that ended it early.
        code: Option<String>,
        /// One sentence.
        reason: String,
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
    /// Samples trained, as indices into the prepared set; passed over, where the step was skipped.
    pub samples: SampleSet,
    /// Mean loss over the global batch; of a skipped step, over the micro-batches whose loss was finite.
    pub loss: f64,
    /// Tokens that the mean was taken over.
    pub loss_tokens: u64,
    /// Tokens of the step.
    pub tokens: u64,
    /// SHA-256 (hex) of the training state after it.
    pub state_sha256: String,
    /// When it was committed, in milliseconds since 1970; 0 where an older version wrote this.
    #[serde(default)]
    pub at_ms: u64,
    /// Why its update was not applied; the state is that of the step before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

impl StepRecord {
    /// What a redone step must reproduce, in words.
    fn outcome(&self) -> String {
        let skipped = self.skipped.as_ref().map(|skipped| format!(" (skipped: {skipped})")).unwrap_or_default();
        format!("{}{skipped}", self.state_sha256)
    }
}
