//! The Admin service: where the run stands, and stopping it.

use super::{
    control::Command,
    link::Link,
    progress::{Progress, RunPhase},
};
use crate::membership::{Event, MemberStatus};
use ballast_proto::v1::{
    self, StatusRequest, StatusResponse, StopRequest, StopResponse, WorkerStatus, admin_server::Admin,
};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

pub(super) struct AdminService {
    pub(super) run_name: String,
    pub(super) link: Link,
    pub(super) progress: watch::Receiver<Progress>,
    /// Whether this service has asked for a stop.
    pub(super) stopped: AtomicBool,
}

impl AdminService {
    /// Whether training ends before its last step, on whose request ever.
    fn stopping(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.link.view.borrow().end_step < self.progress.borrow().total_steps
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let generation = self.link.view.borrow().generation;
        let stopping = self.stopping();
        let progress = self.progress.borrow();
        Ok(Response::new(StatusResponse {
            run_name: self.run_name.clone(),
            phase: phase(progress.phase).into(),
            step: progress.step,
            total_steps: progress.total_steps,
            loss: progress.loss,
            tokens_per_second: progress.tokens_per_second,
            checkpoint: progress.checkpoint,
            generation: generation.map(|generation| generation.to_string()).unwrap_or_default(),
            workers: progress.workers.iter().map(worker).collect(),
            workers_wanted: u32::try_from(progress.workers_wanted).unwrap_or(u32::MAX),
            stopping,
        }))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        // A second request would stop at once, and a call may be repeated by whoever saw no answer.
        let requested = !self.stopping() && !self.stopped.swap(true, Ordering::Relaxed);
        if requested {
            let reason = "an operator asked for it (ballast stop)".to_owned();
            self.link.tell(Command::Event(Event::StopRequested { reason })).await?;
        }
        Ok(Response::new(StopResponse { requested }))
    }
}

fn phase(phase: RunPhase) -> v1::RunPhase {
    match phase {
        RunPhase::Gathering => v1::RunPhase::Gathering,
        RunPhase::Training => v1::RunPhase::Training,
        RunPhase::Evaluating => v1::RunPhase::Evaluating,
        RunPhase::Over => v1::RunPhase::Over,
    }
}

fn worker(member: &MemberStatus) -> WorkerStatus {
    WorkerStatus {
        name: member.name.clone(),
        rank: member.rank.and_then(|rank| u32::try_from(rank).ok()),
        ready: member.ready,
        slow: member.slow,
    }
}
