//! What a generation needs from the coordinator: the state that it starts from, and its shards.

use super::compute::Downloaded;
use super::connect::Coordinator;
use super::transfer::Assembler;
use ballast_proto::v1::{
    DownloadRequest, Generation, GenerationFormed, ShardRequest, StateSource, StepShard, download_response,
};
use ballast_proto::{ErrorCode, Failure, exit};
use tokio::sync::{mpsc, oneshot};

/// One generation's errands with the coordinator.
pub(super) struct Errands {
    pub(super) coordinator: Coordinator,
    pub(super) worker_id: u64,
    pub(super) generation: Generation,
}

impl Errands {
    /// Fetches the state and streams the shards of a generation that the compute thread has begun, which is also told when there
    /// is something wrong with the state. Ends with the stream; cancelled when the generation is aborted.
    pub(super) async fn run(
        self,
        formed: GenerationFormed,
        state: oneshot::Sender<Result<Downloaded, Failure>>,
        shards: mpsc::Sender<StepShard>,
    ) -> Result<(), Failure> {
        let source = formed.state_source();
        if matches!(source, StateSource::Checkpoint | StateSource::Peer) {
            let downloaded = match self.download(formed.start_step, source).await {
                Err(failure) if failure.code.exit_code() == exit::RETRY => return Err(failure),
                downloaded => downloaded,
            };
            let damaged = downloaded.is_err();
            // The compute thread no longer waits when the generation is over.
            let _ = state.send(downloaded);
            if damaged {
                return Ok(());
            }
        }
        self.stream(&shards).await
    }

    async fn download(&self, step: u64, source: StateSource) -> Result<Downloaded, Failure> {
        let (worker_id, generation) = (self.worker_id, Some(self.generation));
        let request = DownloadRequest { worker_id, generation, step, source: source.into() };
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
