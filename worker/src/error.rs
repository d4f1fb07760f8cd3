//! What can go wrong in a worker.

use crate::collective::CollectiveError;
use ballast_kernels::KernelError;
use ballast_proto::{Coded, ErrorCode, Failure};

/// Error of a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The device failed, or was asked for something that cannot be.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The device cannot hold the run: known beforehand, or met.
    #[error("out of memory: {shortage}; the run takes about {estimate}; {remedies}")]
    OutOfMemory {
        /// What is missing.
        shortage: String,
        /// What the run takes, by kind.
        estimate: String,
        /// What to change.
        remedies: String,
    },
    /// The base model cannot be used.
    #[error(transparent)]
    Model(#[from] ballast_basemodel::Error),
    /// A collective between the ranks failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A LoRA target module that the base model does not have.
    #[error("lora.target_modules: `{module}` is no linear layer of the base model; allowed are {allowed}")]
    LoraTargets {
        /// As the run names it.
        module: String,
        /// The names that exist.
        allowed: String,
    },
    /// The run cannot be trained as described.
    #[error("run specification: {0}")]
    RunSpec(String),
    /// A shard or task that breaks the protocol.
    #[error("{what} from the coordinator: {detail}")]
    Shard {
        /// Which one.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A loss or a gradient is NaN or infinite.
    #[error(
        "step {step}: loss or gradient is not finite in {place}; lower train.learning_rate or look at these samples"
    )]
    NonFinite {
        /// The step.
        step: u64,
        /// The micro-batch and its samples.
        place: String,
    },
    /// The ranks disagree about what the step consists of.
    #[error("step {step}: the ranks trained {reduced} loss tokens together, the plan has {planned}")]
    TokenCount {
        /// The step.
        step: u64,
        /// Sum over the ranks.
        reduced: i64,
        /// As the coordinator announced it.
        planned: u64,
    },
    /// A saved training state that cannot be restored.
    #[error("{file}: {detail}")]
    State {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// An error that arrived from the coordinator.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A defect in ballast.
    #[error("internal: {0}")]
    Internal(String),
}

impl Coded for WorkerError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Kernel(KernelError::OutOfMemory { .. }) | Self::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Self::Kernel(KernelError::Unusable(_)) => ErrorCode::DeviceUnusable,
            Self::Kernel(KernelError::Device(_)) => ErrorCode::DeviceFailed,
            Self::Kernel(KernelError::Shape { .. }) | Self::Internal(_) => ErrorCode::Internal,
            Self::Model(error) => error.code(),
            Self::Collective(error) => error.code(),
            Self::LoraTargets { .. } => ErrorCode::LoraTargets,
            Self::RunSpec(_) | Self::Shard { .. } => ErrorCode::BadMessage,
            Self::NonFinite { .. } => ErrorCode::NonFinite,
            Self::TokenCount { .. } => ErrorCode::StateDiverged,
            Self::State { .. } => ErrorCode::CheckpointCorrupt,
            Self::Failure(failure) => failure.code,
        }
    }
}
