//! The id under which the ranks of a communicator find each other.

use super::calls;
use super::error::CommunicatorError;
use std::fmt;

/// Bytes of an id.
const BYTES: usize = 128;

/// NCCL's unique id. Rank 0 makes it, the control plane carries it to the others, and it serves for one communicator.
///
/// Whoever knows it can join: it is a secret, and [`fmt::Debug`] shows nothing of it. The process that made it must
/// live until the communicator is made.
#[derive(Clone, PartialEq, Eq)]
pub struct CommunicatorId([u8; BYTES]);

impl CommunicatorId {
    /// A new id, which names an address of this machine (`NCCL_SOCKET_IFNAME` chooses among several).
    ///
    /// # Errors
    /// [`CommunicatorError::Setup`] when NCCL is missing or finds no network.
    pub fn new() -> Result<Self, CommunicatorError> {
        calls::unique_id().map(Self)
    }

    /// The id as it travels.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BYTES] {
        self.0
    }
}

impl TryFrom<&[u8]> for CommunicatorId {
    type Error = CommunicatorError;

    /// # Errors
    /// [`CommunicatorError::Setup`] when there are not 128 bytes.
    fn try_from(bytes: &[u8]) -> Result<Self, CommunicatorError> {
        let wrong = |_| CommunicatorError::Setup(format!("an id has {BYTES} bytes, not {}", bytes.len()));
        bytes.try_into().map(Self).map_err(wrong)
    }
}

impl fmt::Debug for CommunicatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommunicatorId(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_travels_as_bytes_and_shows_nothing() {
        let bytes: Vec<u8> = (0..128).collect();
        let id = CommunicatorId::try_from(&bytes[..]).unwrap();
        assert_eq!(id.to_bytes()[..], bytes);
        assert_eq!(format!("{id:?} {:?}", Some(&id)), "CommunicatorId(secret) Some(CommunicatorId(secret))");
        let error = CommunicatorId::try_from(&bytes[1..]).unwrap_err().to_string();
        assert!(error.contains("128") && error.contains("127"), "{error}");
    }
}
