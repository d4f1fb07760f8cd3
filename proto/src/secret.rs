//! The secret by which the ranks of one generation meet.

use crate::v1::{CommunicatorId, Generation};
use bytes::Bytes;
use std::fmt;

/// What a [`CommunicatorId`] carries, for the code that makes it or hands it on. Whoever holds it can join the
/// communicator of its generation: no text of it shows a byte.
#[derive(Clone, PartialEq, Eq)]
pub struct CommunicatorSecret(Bytes);

impl CommunicatorSecret {
    /// The bytes themselves.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// As it travels, for the ranks of `generation`.
    #[must_use]
    pub fn of(self, generation: Generation) -> CommunicatorId {
        CommunicatorId { generation: Some(generation), id: self.0 }
    }
}

impl From<Bytes> for CommunicatorSecret {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<CommunicatorId> for CommunicatorSecret {
    fn from(id: CommunicatorId) -> Self {
        Self(id.id)
    }
}

impl fmt::Debug for CommunicatorSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommunicatorSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_travels_and_is_never_shown() {
        let secret = CommunicatorSecret::from(Bytes::from_static(&[b'S'; 128]));
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("CommunicatorSecret(..)").count(), 2);
        let id = secret.clone().of(Generation::new(1, 2));
        assert_eq!((id.generation, &id.id[..]), (Some(Generation::new(1, 2)), &[b'S'; 128][..]));
        assert_eq!(CommunicatorSecret::from(id).reveal(), secret.reveal());
    }
}
