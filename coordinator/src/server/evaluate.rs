//! The Evaluation service: tasks out, results in.

use super::{control::Command, link::Link};
use crate::evaluation::Next;
use ballast_proto::{
    ErrorCode, Failure,
    v1::{NextTaskRequest, NextTaskResponse, ReportTaskResponse, TaskResult, evaluation_server::Evaluation},
};
use tonic::{Request, Response, Status};

pub(super) struct EvaluationService {
    pub(super) link: Link,
}

#[tonic::async_trait]
impl Evaluation for EvaluationService {
    async fn next_task(&self, request: Request<NextTaskRequest>) -> Result<Response<NextTaskResponse>, Status> {
        let NextTaskRequest { worker_id: worker, generation } = request.into_inner();
        let next = self.link.ask(|reply| Command::NextTask { worker, generation, reply }).await??;
        Ok(Response::new(match next {
            Next::Task(task_id, task) => NextTaskResponse { done: false, task_id, task: Some(task.to_wire()) },
            // The loop keeps a worker waiting rather than telling it to ask again.
            Next::Wait | Next::Done => NextTaskResponse { done: true, task_id: 0, task: None },
        }))
    }

    async fn report_task(&self, request: Request<TaskResult>) -> Result<Response<ReportTaskResponse>, Status> {
        let TaskResult { worker_id: worker, generation, task_id: task, result } = request.into_inner();
        let result =
            result.ok_or_else(|| Failure::new(ErrorCode::BadMessage, "an evaluation result without content"))?;
        self.link.ask(|reply| Command::Result { worker, generation, task, result, reply }).await??;
        Ok(Response::new(ReportTaskResponse {}))
    }
}
