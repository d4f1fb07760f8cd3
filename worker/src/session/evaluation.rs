//! Pulling evaluation tasks until there are none.

use super::compute::Order;
use super::connect::Coordinator;
use ballast_proto::v1::{Generation, NextTaskRequest, TaskResult};
use ballast_proto::{ErrorCode, Failure};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// Asks for a task, has it computed, reports it; until the coordinator has no more. The compute thread starts with the
/// first task when its training is over.
pub(super) async fn evaluate_all(
    coordinator: Coordinator,
    worker_id: u64,
    generation: Generation,
    orders: UnboundedSender<Order>,
) -> Result<(), Failure> {
    let mut client = coordinator.evaluation();
    let generation = Some(generation);
    loop {
        let next = client.next_task(NextTaskRequest { worker_id, generation }).await?.into_inner();
        if next.done {
            return Ok(());
        }
        let Some(task) = next.task else {
            return Err(Failure::new(ErrorCode::BadMessage, format!("evaluation task {} is empty", next.task_id)));
        };
        let (reply, result) = oneshot::channel();
        if orders.send(Order::Evaluate(task, reply)).is_err() {
            return Err(Failure::new(ErrorCode::Internal, "the compute thread has ended"));
        }
        // The compute thread reports its own failure.
        let Ok(result) = result.await else { return Ok(()) };
        let result = TaskResult { worker_id, generation, task_id: next.task_id, result: Some(result) };
        client.report_task(result).await?;
    }
}
