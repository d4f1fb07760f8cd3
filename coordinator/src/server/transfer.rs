//! The Checkpoint service: state from rank 0 to the store, and from the store to whoever begins with it.

use super::{
    blueprint::Blueprint,
    control::Command,
    link::{Link, ended},
    saving::Saver,
};
use crate::checkpoint::{self, ADAPTER_MODEL, OPTIMIZER, Store, sha256_hex};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{
        DownloadRequest, DownloadResponse, Generation, StateFile, StateHeader, UploadRequest, UploadResponse,
        checkpoint_server::Checkpoint, download_response, upload_request,
    },
};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
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
    pub(super) saver: Arc<Saver>,
    /// Directory of the checkpoint that training starts from.
    pub(super) start: Option<String>,
}

#[tonic::async_trait]
impl Checkpoint for CheckpointService {
    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        let mut inbound = request.into_inner();
        let Some(upload_request::Message::Header(header)) = self.next(&mut inbound).await? else {
            return Err(bad("an upload begins with its header").into());
        };
        let (generation, seat) = self.link.seat(header.worker_id, header.generation).await?;
        if seat.rank != 0 {
            return Err(bad(format!("rank {} uploaded a state; only rank 0 does", seat.rank)).into());
        }
        let (adapter, optimizer) = self.accept_header(&header)?;
        let files = self.receive(&mut inbound, [adapter, optimizer]).await?;
        self.publish(generation, header, files).await?;
        Ok(Response::new(UploadResponse {}))
    }

    type DownloadStream = ReceiverStream<Result<DownloadResponse, Status>>;

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let DownloadRequest { worker_id, generation, step } = request.into_inner();
        let (generation, _) = self.link.seat(worker_id, generation).await?;
        let checkpoint = self.start_checkpoint(step).await?;
        let state_sha256 = hex::decode(&checkpoint.state.state_sha256).map_err(|e| bad(format!("state hash: {e}")))?;
        let files = [(ADAPTER_MODEL, checkpoint.adapter), (OPTIMIZER, checkpoint.optimizer)];
        let header = StateHeader {
            worker_id,
            generation: Some(generation),
            step,
            state_sha256: state_sha256.into(),
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

    /// Makes a received state a checkpoint, once its step is durable in the ledger with the same state hash.
    async fn publish(&self, generation: Generation, header: StateHeader, files: [Bytes; 2]) -> Result<(), Failure> {
        let step = header.step;
        let mut view = self.link.view.clone();
        let seen =
            *view.wait_for(|v| v.committed >= step || !v.alive(generation)).await.map_err(|_| ended(generation))?;
        if seen.committed < step {
            return Err(ended(generation));
        }
        let committed = self.link.ask(|reply| Command::StateOf(step, reply)).await?;
        if committed.as_deref() != Some(&*header.state_sha256) {
            return Err(Failure::new(
                ErrorCode::StateDiverged,
                format!("the uploaded state of step {step} is not the one that was committed"),
            ));
        }
        self.saver.save(step, generation, header.state_sha256, files).await
    }

    /// The checkpoint that training starts from, if `step` is its step.
    async fn start_checkpoint(&self, step: u64) -> Result<checkpoint::Checkpoint, Failure> {
        let missing = || bad(format!("there is no checkpoint of step {step} to start from"));
        let directory = self.start.clone().ok_or_else(missing)?;
        let (blueprint, store) = (Arc::clone(&self.blueprint), Arc::clone(&self.store));
        let loaded = spawn_blocking(move || checkpoint::load(&*store, &directory, &blueprint.shapes)).await;
        let loaded = loaded.map_err(|e| Failure::new(ErrorCode::Internal, e.to_string()))?;
        let checkpoint = loaded.map_err(Failure::from)?;
        if checkpoint.state.step == step { Ok(checkpoint) } else { Err(missing()) }
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
