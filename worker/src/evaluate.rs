//! Evaluation tasks.

use crate::WorkerError;
use crate::trainer::Trainer;
use ballast_kernels::Backend;
use ballast_proto::v1::{next_task_response::Task, task_result};

/// Runs one task.
///
/// # Errors
/// When the task breaks the protocol or the device fails.
pub fn run<B: Backend>(trainer: &mut Trainer<B>, task: &Task) -> Result<task_result::Result, WorkerError> {
    let _ = (trainer, task);
    Err(WorkerError::Internal("being written".into()))
}
