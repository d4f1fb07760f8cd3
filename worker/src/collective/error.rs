//! How a collective fails.

use super::frame::FrameError;
use ballast_proto::{Coded, ErrorCode};
use std::{fmt, io, time::Duration};

/// A neighbour in the ring, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its position in the generation.
    pub rank: usize,
    /// `host:port` of its ring listener.
    pub address: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({})", self.rank, self.address)
    }
}

/// Why a collective cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A neighbour sent something else than what its turn demands.
    #[error("malformed frame from {peer}: {source}")]
    BadFrame {
        /// Who sent it.
        peer: Peer,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The connection to a neighbour broke.
    #[error("connection to {peer} lost: {source}")]
    Disconnected {
        /// Who is gone.
        peer: Peer,
        /// As the operating system says it.
        source: io::Error,
    },
    /// A neighbour said nothing for too long.
    #[error("{peer} sent nothing that finishes the collective within {} ms", waited.as_millis())]
    TimedOut {
        /// Who is silent.
        peer: Peer,
        /// The limit.
        waited: Duration,
    },
    /// A neighbour could not be reached, or refused, for as long as the handshake may take.
    #[error("no ring connection with {peer} within {} ms: {last}", waited.as_millis())]
    NotConnected {
        /// Who was sought or waited for.
        peer: Peer,
        /// The limit.
        waited: Duration,
        /// How the last attempt ended.
        last: String,
    },
    /// The secret by which the ranks meet over NCCL did not come, for as long as the meeting may take.
    #[error("{peer} sent no communicator id within {} ms", waited.as_millis())]
    NoCommunicatorId {
        /// Who was to make it.
        peer: Peer,
        /// The limit.
        waited: Duration,
    },
    /// NCCL failed, in its own words.
    #[error("nccl: {0}")]
    Nccl(String),
    /// Rank, world size or listener make no ring.
    #[error("the ring cannot be built: {0}")]
    Setup(String),
    /// Another thread gave the generation up.
    #[error("aborted: {0}")]
    Aborted(String),
    /// An earlier reduction failed.
    #[error("an earlier reduction of this generation failed")]
    Broken,
}

impl Coded for CollectiveError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::BadFrame { .. } => ErrorCode::BadFrame,
            _ => ErrorCode::CollectiveFailed,
        }
    }
}
