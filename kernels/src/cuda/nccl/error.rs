//! How a communicator fails.

use crate::KernelError;
use std::fmt;
use std::time::Duration;

/// A rank, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Position among the ranks, from 0.
    pub rank: usize,
    /// Ranks in all.
    pub world_size: usize,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world_size)
    }
}

/// Why a communicator cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CommunicatorError {
    /// The ranks did not come together in time: another is hung, dead without NCCL's knowing, slow, or elsewhere.
    #[error(
        "{member}: {operation} did not end within {} ms: look for the rank that is hung or did not come, and run with \
         NCCL_DEBUG=WARN",
        timeout.as_millis()
    )]
    TimedOut {
        /// Whose communicator.
        member: Member,
        /// What did not end.
        operation: String,
        /// The limit.
        timeout: Duration,
    },
    /// NCCL refused a call or reported a failure: a peer that died, a network that broke, ranks that disagree.
    #[error(
        "{member}: {operation} failed: {words}: look at the log of the rank that failed first, and run with \
         NCCL_DEBUG=WARN"
    )]
    Failed {
        /// Whose communicator.
        member: Member,
        /// What failed.
        operation: String,
        /// What NCCL says.
        words: String,
    },
    /// [`super::CommunicatorAbort::abort`] was called, or a [`super::Batch`] was not waited for.
    #[error("{member}: aborted: {reason}")]
    Aborted {
        /// Whose communicator.
        member: Member,
        /// Why.
        reason: String,
    },
    /// The device failed.
    #[error("{member}: {operation}: {source}")]
    Device {
        /// Whose communicator.
        member: Member,
        /// What was under way.
        operation: String,
        /// What the driver says.
        source: KernelError,
    },
    /// An earlier call failed, and told why.
    #[error("{member}: the communicator is broken, make a new one; what broke it: {cause}")]
    Broken {
        /// Whose communicator.
        member: Member,
        /// The error that an earlier call returned.
        cause: String,
    },
    /// The communicator cannot be made, or an operation was asked for that makes no sense: nothing was begun.
    #[error("nccl: {0}")]
    Setup(String),
}
