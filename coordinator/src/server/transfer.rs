//! The Checkpoint service: state from rank 0 to the store, and from the store, or from another rank, to whoever begins with it.

use super::{
    blueprint::Blueprint,
    control::{Command, Purpose, View},
    link::{Link, ended},
    relay::{HandedOver, Relay},
    saving::Saver,
};
use crate::checkpoint::{self, ADAPTER_MODEL, OPTIMIZER, Store, sha256_hex};
use ballast_proto::{
    Blocking, ErrorCode, Failure,
    v1::{
        DownloadRequest, DownloadResponse, Generation, StateFile, StateHeader, StateSource, UploadRequest,
        UploadResponse, checkpoint_server::Checkpoint, download_response, upload_request,
    },
};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one downloaded piece.
const CHUNK: usize = 1 << 20;
/// Room for names and shapes in a safetensors header, beyond the tensors themselves.
const HEADER_ROOM: u64 = 16 << 20;

pub(super) struct CheckpointService {
    pub(super) link: Link,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) store: Arc<dyn Store>,
    pub(super) blocking: Blocking,
    pub(super) saver: Arc<Saver>,
    pub(super) relay: Relay,
}

/// A state as files.
struct StateFiles {
    state_sha256: Bytes,
    /// Adapter and optimizer.
    files: [Bytes; 2],
}

#[tonic::async_trait]
impl Checkpoint for CheckpointService {
    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        let mut inbound = request.into_inner();
        let Some(upload_request::Message::Header(header)) = self.next(&mut inbound).await? else {
            return Err(bad("an upload begins with its header").into());
        };
        let (worker, generation, step) = (header.worker_id, header.generation, header.step);
        let purpose = self.link.ask(|reply| Command::Upload { worker, generation, step, reply }).await??;
        let generation = generation.ok_or_else(|| bad("no generation was named"))?;
        let (adapter, optimizer) = self.accept_header(&header)?;
        let files = self.receive(&mut inbound, [adapter, optimizer]).await?;
        let state = StateFiles { state_sha256: header.state_sha256, files };
        match purpose {
            Purpose::Checkpoint => self.publish(generation, step, state).await?,
            Purpose::HandOver => self.hand_over(generation, step, state).await?,
        }
        Ok(Response::new(UploadResponse {}))
    }

    type DownloadStream = ReceiverStream<Result<DownloadResponse, Status>>;

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner();
        let (source, DownloadRequest { worker_id, generation, step, .. }) = (request.source(), request);
        let (generation, seat) = self.link.seat(worker_id, generation).await?;
        if step != seat.start_step {
            return Err(
                bad(format!("generation {generation} starts after step {}, not {step}", seat.start_step)).into()
            );
        }
        let state = match source {
            StateSource::Peer => {
                let state = self.relay.take(generation, self.link.view.clone()).await?;
                StateFiles { state_sha256: state.state_sha256.clone(), files: state.files.clone() }
            }
            _ => self.checkpoint_of(step).await?,
        };
        let StateFiles { state_sha256, files: [adapter, optimizer] } = state;
        let files = [(ADAPTER_MODEL, adapter), (OPTIMIZER, optimizer)];
        let header = StateHeader {
            worker_id,
            generation: Some(generation),
            step,
            state_sha256,
            files: files.iter().map(|(name, bytes)| describe(name, bytes)).collect(),
        };
        let (pieces, stream) = mpsc::channel(2);
        tokio::spawn(async move {
            let message = |message| Ok(DownloadResponse { message: Some(message) });
            let mut outgoing = vec![download_response::Message::Header(header)];
            outgoing
                .extend(files.iter().flat_map(|(_, bytes)| pieces_of(bytes)).map(download_response::Message::Chunk));
            for piece in outgoing {
                // A receiver that is gone no longer wants the rest.
                if pieces.send(message(piece)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl CheckpointService {
    /// The next message of an upload; a worker that stops in the middle is not waited for for ever.
    async fn next(&self, inbound: &mut Streaming<UploadRequest>) -> Result<Option<upload_request::Message>, Status> {
        let patience = Duration::from_millis(self.blueprint.run.cluster.lease_ms);
        let message = timeout(patience, inbound.message()).await;
        let message = message.map_err(|_| Failure::new(ErrorCode::LeaseExpired, "the upload stood still"))??;
        Ok(message.and_then(|m| m.message))
    }

    /// The two files that a state consists of, if they are of a plausible size and the step is one to be kept.
    fn accept_header(&self, header: &StateHeader) -> Result<(StateFile, StateFile), Failure> {
        let horizon = self.link.view.borrow().horizon;
        if header.step == 0 || header.step > horizon || header.state_sha256.len() != 32 {
            return Err(bad(format!(
                "a state of step {} (streamed up to {horizon}), or a malformed hash",
                header.step
            )));
        }
        let [adapter, optimizer] = header.files.as_slice() else {
            return Err(bad(format!("{} files, expected {ADAPTER_MODEL} and {OPTIMIZER}", header.files.len())));
        };
        let limits = [
            (adapter, ADAPTER_MODEL, self.blueprint.shapes.bytes() + HEADER_ROOM),
            (optimizer, OPTIMIZER, 2 * self.blueprint.shapes.bytes() + HEADER_ROOM),
        ];
        for (file, name, limit) in limits {
            if file.name != name {
                return Err(bad(format!("unexpected file {:?}, expected {name}", file.name)));
            }
            if file.size > limit {
                return Err(bad(format!("{name} has {} bytes, at most {limit} are possible", file.size)));
            }
        }
        Ok((adapter.clone(), optimizer.clone()))
    }

    /// Receives the files' bytes, and checks size and SHA-256 of each.
    async fn receive(
        &self,
        inbound: &mut Streaming<UploadRequest>,
        expected: [StateFile; 2],
    ) -> Result<[Bytes; 2], Status> {
        let total: u64 = expected.iter().map(|f| f.size).sum();
        let mut received = BytesMut::new();
        while let Some(message) = self.next(inbound).await? {
            let upload_request::Message::Chunk(chunk) = message else { return Err(bad("a second header").into()) };
            if chunk.is_empty() {
                // It would keep the upload alive for ever.
                return Err(bad("an empty piece").into());
            }
            if received.len() as u64 + chunk.len() as u64 > total {
                return Err(bad(format!("more than the {total} bytes that were announced")).into());
            }
            received.extend_from_slice(&chunk);
        }
        if received.len() as u64 != total {
            return Err(bad(format!("{} bytes, {total} were announced", received.len())).into());
        }
        let mut rest = received.freeze();
        let files = expected.each_ref().map(|file| rest.split_to(usize::try_from(file.size).unwrap_or(0)));
        for (file, bytes) in expected.iter().zip(&files) {
            if Sha256::digest(bytes).as_slice() != file.sha256 {
                return Err(bad(format!(
                    "{} arrived with sha256 {}, not the announced one",
                    file.name,
                    sha256_hex(bytes)
                ))
                .into());
            }
        }
        Ok(files)
    }

    /// Makes a received state a checkpoint, once its step is durable in the ledger with the same state hash. The generation may
    /// end meanwhile: its survivors may still have the step recorded.
    async fn publish(&self, generation: Generation, step: u64, state: StateFiles) -> Result<(), Failure> {
        let mut view = self.link.view.clone();
        let lost = |v: &View| v.over || (v.recorded < step && v.generation.is_some_and(|newest| newest > generation));
        let seen = *view.wait_for(|v| v.committed >= step || lost(v)).await.map_err(|_| ended(generation))?;
        if seen.committed < step {
            return Err(ended(generation));
        }
        self.check_recorded(step, &state.state_sha256).await?;
        self.saver.save(step, generation, state.state_sha256, state.files).await
    }

    /// Passes a state on to the ranks that start from it. The one after the last step is kept, too: the rank that was to upload
    /// it is gone.
    async fn hand_over(&self, generation: Generation, step: u64, state: StateFiles) -> Result<(), Failure> {
        self.check_recorded(step, &state.state_sha256).await?;
        let offered = HandedOver { generation, state_sha256: state.state_sha256.clone(), files: state.files.clone() };
        self.relay.offer(offered, step, self.link.view.clone());
        let last = self.link.view.borrow().end_step == step;
        if last { self.publish(generation, step, state).await } else { Ok(()) }
    }

    /// Refuses a state that is not the one that was recorded after its step.
    async fn check_recorded(&self, step: u64, state_sha256: &[u8]) -> Result<(), Failure> {
        let recorded = self.link.ask(|reply| Command::StateOf(step, reply)).await?;
        if recorded.as_deref() == Some(state_sha256) {
            return Ok(());
        }
        let message = format!("the uploaded state of step {step} is not the one that was committed");
        Err(Failure::new(ErrorCode::StateDiverged, message))
    }

    /// The newest checkpoint, if `step` is its step.
    async fn checkpoint_of(&self, step: u64) -> Result<StateFiles, Failure> {
        let missing = || bad(format!("there is no checkpoint of step {step} to start from"));
        let directory = self.link.ask(|reply| Command::CheckpointOf(step, reply)).await?.ok_or_else(missing)?;
        let (blueprint, store) = (Arc::clone(&self.blueprint), Arc::clone(&self.store));
        let loaded = self.blocking.run(move || checkpoint::load(&*store, &directory, &blueprint.shapes)).await?;
        let checkpoint = loaded.map_err(Failure::from)?;
        let state = hex::decode(&checkpoint.state.state_sha256).map_err(|e| bad(format!("state hash: {e}")))?;
        Ok(StateFiles { state_sha256: state.into(), files: [checkpoint.adapter, checkpoint.optimizer] })
    }
}

fn bad(what: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::BadMessage, what)
}

fn describe(name: &str, bytes: &Bytes) -> StateFile {
    let sha256 = Bytes::copy_from_slice(&Sha256::digest(bytes));
    StateFile { name: name.to_owned(), size: bytes.len() as u64, sha256 }
}

fn pieces_of(bytes: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..bytes.len()).step_by(CHUNK).map(|start| bytes.slice(start..bytes.len().min(start + CHUNK)))
}
