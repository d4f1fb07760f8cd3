//! Snapshots travel to the coordinator while training goes on.

use super::compute::Snapshot;
use super::connect::Coordinator;
use super::transfer::disassemble;
use ballast_proto::v1::{UploadRequest, upload_request::Message};
use ballast_proto::{Blocking, Coded, ErrorCode, Failure, fault};
use tokio::sync::mpsc;

/// Uploads snapshots in order until there are no more. One of a generation that is over is of no use to anyone.
pub(super) async fn upload_all(
    coordinator: Coordinator,
    worker_id: u64,
    mut snapshots: mpsc::Receiver<Snapshot>,
    blocking: Blocking,
) -> Result<(), Failure> {
    while let Some(snapshot) = snapshots.recv().await {
        let (generation, step) = (snapshot.generation, snapshot.step);
        fault::point("upload", step);
        match upload(&coordinator, worker_id, snapshot, &blocking).await {
            Ok(()) => tracing::debug!(%generation, step, "state uploaded"),
            Err(failure) if failure.code == ErrorCode::StaleGeneration => {
                tracing::info!(%generation, step, %failure, "state not wanted any more");
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

async fn upload(
    coordinator: &Coordinator,
    worker_id: u64,
    snapshot: Snapshot,
    blocking: &Blocking,
) -> Result<(), Failure> {
    let Snapshot { generation, export, .. } = snapshot;
    // Writing and hashing files takes too long for a task: heartbeats share its thread.
    let exported = blocking.run(move || export().map(|state| disassemble(worker_id, generation, state))).await?;
    let (header, pieces) = exported.map_err(|e| Failure::new(e.code(), e.to_string()))?;
    let messages = std::iter::once(Message::Header(header)).chain(pieces.map(Message::Chunk));
    let requests = messages.map(|message| UploadRequest { message: Some(message) });
    coordinator.checkpoint().upload(futures::stream::iter(requests)).await?;
    Ok(())
}
