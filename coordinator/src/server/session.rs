//! The Membership service: joining, and one conversation a worker.

use super::{
    blueprint::Blueprint,
    control::{Command, Session},
    link::Link,
    untrusted,
};
use crate::membership::{Event, WorkerId};
use ballast_proto::{
    ErrorCode, Failure,
    v1::{
        CoordinatorMessage, JoinRequest, JoinResponse, RunSpec, StepReport, WorkerMessage,
        membership_server::Membership, worker_message::Message,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Messages on their way to one worker: a run sends a handful in its whole life.
const OUTBOUND: usize = 16;

pub(super) struct MembershipService {
    pub(super) link: Link,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) spec: RunSpec,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        untrusted::check("a join", [&*request.version, &*request.display_name, &*request.ring_address])?;
        let worker_id = self.link.ask(|reply| Command::Join(request, reply)).await??;
        Ok(Response::new(JoinResponse { worker_id, run: Some(self.spec.clone()) }))
    }

    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let patience = Duration::from_millis(self.blueprint.run.cluster.lease_ms);
        let first = timeout(patience, inbound.message()).await;
        let Ok(Ok(Some(WorkerMessage { message: Some(Message::Hello(hello)) }))) = first else {
            return Err(Failure::new(ErrorCode::BadMessage, "a session begins with Hello").into());
        };
        let worker = hello.worker_id;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let reader = CancellationToken::new();
        let session = Session { outbound: Some(outbound), reader: reader.clone() };
        self.link.ask(|reply| Command::Open { worker, session, reply }).await??;
        let (link, blueprint) = (self.link.clone(), Arc::clone(&self.blueprint));
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = reader.cancelled() => {}
                () = read(worker, inbound, &link, &blueprint) => {}
            }
            // When the loop is gone, so are the sessions.
            let _ = link.tell(Command::Closed(worker)).await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Turns a worker's messages into commands until its stream ends, however it ends.
async fn read(worker: WorkerId, mut inbound: Streaming<WorkerMessage>, link: &Link, blueprint: &Blueprint) {
    while let Ok(Some(WorkerMessage { message })) = inbound.message().await {
        let command = match command(worker, message, blueprint) {
            Ok(command) => command,
            Err(failure) => {
                let _ = link.tell(Command::Event(Event::Breach { worker, failure })).await;
                return;
            }
        };
        if link.tell(command).await.is_err() {
            return;
        }
    }
}

fn command(worker: WorkerId, message: Option<Message>, blueprint: &Blueprint) -> Result<Command, Failure> {
    let bad = |what: &str| Failure::new(ErrorCode::BadMessage, what);
    Ok(Command::Event(match message {
        None | Some(Message::Hello(_)) => return Err(bad("an empty message, or a second Hello")),
        Some(Message::Ready(ready)) => {
            let texts = ready
                .fingerprint
                .iter()
                .flat_map(|f| [&*f.binary_sha256, &*f.backend, &*f.arithmetic, &*f.weights_sha256]);
            untrusted::check("a numerics fingerprint", texts)?;
            return Ok(Command::Ready(worker, ready));
        }
        Some(Message::Draining(draining)) => Event::Draining { worker, reason: untrusted::reason(&draining.reason) },
        Some(Message::Heartbeat(heartbeat)) => Event::Heartbeat { worker, heartbeat },
        Some(Message::CommunicatorId(id)) => Event::CommunicatorMade { worker, id },
        Some(Message::StepReport(report)) => step_reported(worker, report, blueprint),
        Some(Message::GenerationFailed(failed)) => {
            let generation = failed.generation.ok_or_else(|| bad("a failure of no generation"))?;
            Event::GenerationFailed { worker, generation, reason: untrusted::reason(&failed.reason) }
        }
        Some(Message::Leaving(leaving)) => {
            let failure = (!leaving.error_code.is_empty()).then(|| {
                let code = leaving.error_code.parse().unwrap_or(ErrorCode::WorkerLost);
                Failure::new(code, untrusted::reason(&leaving.reason))
            });
            Event::Leaving { worker, failure }
        }
    }))
}

fn step_reported(worker: WorkerId, report: StepReport, blueprint: &Blueprint) -> Event {
    let planned = blueprint.totals(report.step);
    Event::StepReported { worker, report, planned }
}
