//! Handing out evaluation tasks: pull, requeue, collect. Pure.

use super::{Task, TaskResult};
use crate::membership::WorkerId;
use ballast_proto::{ErrorCode, Failure, v1::task_result::Result as WireResult};
use std::collections::{BTreeMap, BTreeSet};

/// All tasks of a run and where they stand. Task ids are positions.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    tasks: Vec<Task>,
    pending: BTreeSet<u64>,
    /// Task and worker of everything handed out and not yet reported.
    handed_out: BTreeMap<u64, WorkerId>,
    results: BTreeMap<u64, TaskResult>,
}

/// What a worker that asks is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Do this task.
    Task(u64, Task),
    /// Others are still at work; if one is lost, its tasks come back.
    Wait,
    /// All results are in.
    Done,
}

impl Queue {
    /// These tasks, none handed out.
    #[must_use]
    pub fn new(tasks: Vec<Task>) -> Self {
        let pending = (0..tasks.len() as u64).collect();
        Self { tasks, pending, handed_out: BTreeMap::new(), results: BTreeMap::new() }
    }

    /// The next task for a worker; the one it holds already, should it ask twice.
    pub fn next(&mut self, worker: WorkerId) -> Next {
        let held = self.handed_out.iter().find(|(_, holder)| **holder == worker).map(|(id, _)| *id);
        let Some(id) = held.or_else(|| self.pending.pop_first()) else {
            return if self.is_done() { Next::Done } else { Next::Wait };
        };
        match usize::try_from(id).ok().and_then(|at| self.tasks.get(at)) {
            Some(task) => {
                self.handed_out.insert(id, worker);
                Next::Task(id, task.clone())
            }
            None => Next::Done,
        }
    }

    /// Takes a result. Reporting one again changes nothing.
    ///
    /// # Errors
    /// When the worker does not hold the task, or the result does not fit it.
    pub fn report(&mut self, worker: WorkerId, id: u64, result: WireResult) -> Result<(), Failure> {
        if self.results.contains_key(&id) {
            return Ok(());
        }
        let task = usize::try_from(id).ok().and_then(|at| self.tasks.get(at));
        let Some(task) = task.filter(|_| self.handed_out.get(&id) == Some(&worker)) else {
            let message = format!("worker {worker} reported evaluation task {id}, which it does not hold");
            return Err(Failure::new(ErrorCode::BadMessage, message));
        };
        let result = task.accept(result)?;
        self.handed_out.remove(&id);
        self.results.insert(id, result);
        Ok(())
    }

    /// Puts the tasks of a lost worker back.
    pub fn requeue(&mut self, worker: WorkerId) {
        let lost: Vec<u64> =
            self.handed_out.iter().filter(|(_, holder)| **holder == worker).map(|(id, _)| *id).collect();
        for id in lost {
            self.handed_out.remove(&id);
            self.pending.insert(id);
        }
    }

    /// Whether every task has its result.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.results.len() == self.tasks.len()
    }

    /// Tasks done, and all tasks.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.results.len(), self.tasks.len())
    }

    /// Tasks with their results, in task order.
    pub fn results(&self) -> impl Iterator<Item = (&Task, &TaskResult)> {
        self.tasks.iter().zip(0u64..).filter_map(|(task, id)| self.results.get(&id).map(|result| (task, result)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Purpose, *};
    use ballast_proto::v1::{GenerateResult, GenerateTask, ScoreResult, ScoreTask, Sequence, TokenRange};

    fn generate(prompt: u32) -> Task {
        Task::Generate(
            Purpose::Probe,
            String::new(),
            GenerateTask { prompt_ids: vec![prompt], max_new_tokens: 2, stop_ids: vec![] },
        )
    }

    fn answer(id: u32) -> WireResult {
        WireResult::Generate(GenerateResult { base_ids: vec![id], tuned_ids: vec![id, id] })
    }

    #[test]
    fn every_task_is_done_once_and_in_order() {
        let mut queue = Queue::new(vec![generate(0), generate(1), generate(2)]);
        assert_eq!(queue.next(7), Next::Task(0, generate(0)));
        assert_eq!(queue.next(7), Next::Task(0, generate(0)), "asking twice");
        assert_eq!(queue.next(8), Next::Task(1, generate(1)));
        queue.report(8, 1, answer(1)).unwrap();
        queue.report(8, 1, answer(9)).unwrap();
        assert_eq!(queue.next(8), Next::Task(2, generate(2)));
        queue.report(8, 2, answer(2)).unwrap();
        assert_eq!(queue.next(8), Next::Wait);
        queue.report(7, 0, answer(0)).unwrap();
        assert_eq!((queue.next(8), queue.is_done()), (Next::Done, true));
        let first: Vec<_> = queue
            .results()
            .map(|(_, result)| match result {
                TaskResult::Generate(g) => g.base_ids[0],
                TaskResult::Score(_) => 99,
            })
            .collect();
        assert_eq!(first, [0, 1, 2]);
    }

    #[test]
    fn the_tasks_of_a_lost_worker_come_back() {
        let mut queue = Queue::new(vec![generate(0), generate(1)]);
        queue.next(7);
        queue.next(8);
        queue.requeue(7);
        assert_eq!(queue.report(7, 0, answer(0)).unwrap_err().code, ErrorCode::BadMessage);
        queue.report(8, 1, answer(1)).unwrap();
        assert_eq!(queue.next(8), Next::Task(0, generate(0)));
    }

    #[test]
    fn a_result_must_fit_its_task() {
        let range = TokenRange { start: 1, end: 4 };
        let sequence = Sequence { sample: 0, token_ids: vec![1, 2, 3, 4], loss: vec![range] };
        let score = ScoreTask { sequence: Some(sequence), kl_positions: 2 };
        let mut queue = Queue::new(vec![Task::Score(score), generate(0)]);
        queue.next(1);
        queue.next(2);
        let good = ScoreResult { base_nll: vec![1.0; 3], tuned_nll: vec![1.0; 3], kl: vec![0.0; 2] };
        let short = ScoreResult { kl: vec![0.0; 3], ..good.clone() };
        let nan = ScoreResult { tuned_nll: vec![1.0, f32::NAN, 1.0], ..good.clone() };
        let long = GenerateResult { base_ids: vec![0; 3], tuned_ids: vec![] };
        let code = |queue: &mut Queue, worker, id, result| queue.report(worker, id, result).unwrap_err().code;
        assert_eq!(code(&mut queue, 1, 0, WireResult::Score(short)), ErrorCode::BadMessage);
        assert_eq!(code(&mut queue, 1, 0, WireResult::Score(nan)), ErrorCode::NonFinite);
        assert_eq!(code(&mut queue, 1, 0, answer(0)), ErrorCode::BadMessage);
        assert_eq!(code(&mut queue, 2, 1, WireResult::Generate(long)), ErrorCode::BadMessage);
        assert_eq!(code(&mut queue, 2, 9, answer(0)), ErrorCode::BadMessage);
        queue.report(1, 0, WireResult::Score(good)).unwrap();
    }
}
