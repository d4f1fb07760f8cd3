//! How the ranks of a generation meet, and the secret by which they find each other.
//!
//! NCCL's ranks meet through an id that one of them makes. Whoever holds it can join, so it goes from rank 0 to the other
//! ranks of its generation and nowhere else, and nothing of it is kept.

use super::{Effect, Level, Phase, State, WorkerId, admission::note};
use ballast_proto::v1::{Collective, CommunicatorId, Transport, coordinator_message::Message};

/// Bytes of an id, as NCCL makes it.
const ID_BYTES: usize = 128;

impl State {
    /// CUDA devices meet over NCCL unless the run says otherwise. All workers have the arithmetic of the first.
    pub(super) fn transport(&self) -> Transport {
        let cuda = self.numerics.as_ref().is_some_and(|numerics| numerics.backend == "cuda");
        match self.settings.collective {
            Collective::Auto if cuda => Transport::Nccl,
            _ => Transport::Tcp,
        }
    }

    pub(super) fn communicator_made(&mut self, worker: WorkerId, id: CommunicatorId, now: u64, out: &mut Vec<Effect>) {
        if self.phase != Phase::Training {
            return;
        }
        let Some(active) = &mut self.generation else { return };
        if id.generation.is_some_and(|generation| generation < active.id) {
            // Made before the worker heard of the newer generation; fenced.
            out.push(note(Level::Warn, format!("ignored a communicator of an older generation from worker {worker}")));
            return;
        }
        let expected = active.transport == Transport::Nccl
            && id.generation == Some(active.id)
            && active.rank_of(worker) == Some(0)
            && !active.communicator_made
            && id.id.len() == ID_BYTES;
        if !expected {
            self.misbehaved(worker, "sent a communicator id that nobody asked it for", now, out);
            return;
        }
        active.communicator_made = true;
        for other in active.ranks.iter().filter(|rank| **rank != worker) {
            out.push(Effect::Send { worker: *other, message: Message::CommunicatorId(id.clone()) });
        }
        self.members.change_all(|member| member.moved_at = now);
    }
}
