//! Small conversions and orderings of wire types.

use crate::v1::{CommunicatorId, Generation};
use std::fmt;

impl Generation {
    /// The generation `number` of coordinator epoch `epoch`.
    #[must_use]
    pub fn new(epoch: u64, number: u64) -> Self {
        Self { epoch, number }
    }
}

impl Ord for Generation {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.epoch, self.number).cmp(&(other.epoch, other.number))
    }
}

impl PartialOrd for Generation {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for CommunicatorId {
    /// Shows whose it is, and nothing of the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommunicatorId").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{WorkerMessage, worker_message::Message};

    #[test]
    fn a_communicator_id_is_never_shown() {
        let id = CommunicatorId { generation: Some(Generation::new(1, 2)), id: vec![b'S'; 128].into() };
        let text = format!("{:?}", WorkerMessage { message: Some(Message::CommunicatorId(id)) });
        assert!(text.contains("number: 2") && !text.contains("SS") && !text.contains("83"), "{text}");
    }
}
