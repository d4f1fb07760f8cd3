//! Entering a generation: its state and its shards are fetched here, and trained on the compute thread.

use super::compute::{Control, Order, Training};
use super::connect::Coordinator;
use super::transfer::Assembler;
use ballast_proto::v1::{
    DownloadRequest, Generation, GenerationFormed, ShardRequest, StateSource, StepShard, download_response,
};
use ballast_proto::{CommunicatorSecret, ErrorCode, Failure};
use bytes::Bytes;
use std::sync::mpsc::{Receiver, Sender};
use tokio::sync::mpsc;

/// Shards held here; how far ahead they are sent is the coordinator's decision.
const PREFETCHED: usize = 4;

/// One generation's errands with the coordinator.
pub(super) struct Errands {
    pub(super) coordinator: Coordinator,
    pub(super) worker_id: u64,
    pub(super) generation: Generation,
}

impl Errands {
    /// Fetches the state, hands the generation to the compute thread and streams its shards. Ends with the stream;
    /// cancelled when the generation is aborted.
    pub(super) async fn run(
        self,
        formed: GenerationFormed,
        control: Control,
        communicator: Receiver<CommunicatorSecret>,
        orders: Sender<Order>,
    ) -> Result<(), Failure> {
        let checkpoint = match formed.state_source() {
            StateSource::Checkpoint => self.download(formed.start_step).await?,
            _ => Vec::new(),
        };
        let (sender, shards) = mpsc::channel(PREFETCHED);
        let generation = self.generation;
        let training = Training { formed, generation, checkpoint, shards, communicator, control };
        orders
            .send(Order::Train(training))
            .map_err(|_| Failure::new(ErrorCode::Internal, "the compute thread has ended"))?;
        self.stream(&sender).await
    }

    async fn download(&self, step: u64) -> Result<Vec<(String, Bytes)>, Failure> {
        let request = DownloadRequest { worker_id: self.worker_id, generation: Some(self.generation), step };
        let mut stream = self.coordinator.checkpoint().download(request).await?.into_inner();
        let mut assembler = None;
        while let Some(response) = stream.message().await? {
            match (response.message, &mut assembler) {
                (Some(download_response::Message::Header(header)), None) => {
                    assembler = Some(Assembler::new(header, self.generation, step)?);
                }
                (Some(download_response::Message::Chunk(piece)), Some(assembler)) => assembler.push(&piece)?,
                _ => return Err(Failure::new(ErrorCode::BadMessage, "state from the coordinator: out of order")),
            }
        }
        match assembler {
            Some(assembler) => assembler.finish(),
            None => Err(Failure::new(ErrorCode::BadMessage, "state from the coordinator: empty stream")),
        }
    }

    async fn stream(&self, shards: &mpsc::Sender<StepShard>) -> Result<(), Failure> {
        let request = ShardRequest { worker_id: self.worker_id, generation: Some(self.generation) };
        let mut stream = self.coordinator.data().stream_shards(request).await?.into_inner();
        while let Some(shard) = stream.message().await? {
            if shard.generation != Some(self.generation) {
                let message = format!("shard of step {}: not of generation {}", shard.step, self.generation);
                return Err(Failure::new(ErrorCode::BadMessage, message));
            }
            let last = shard.last;
            if shards.send(shard).await.is_err() || last {
                break;
            }
        }
        Ok(())
    }
}
