//! Evaluation tasks and what counts as a result.

use ballast_proto::{
    ErrorCode, Failure,
    v1::{
        GenerateResult, GenerateTask, ScoreResult, ScoreTask, Sequence, next_task_response::Task as WireTask,
        task_result::Result as WireResult,
    },
};

/// Why an answer is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To count refusals.
    Probe,
    /// To be looked at.
    Sample,
}

/// One task.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Score a held-out sample.
    Score(ScoreTask),
    /// Answer a prompt, whose text goes into the report.
    Generate(Purpose, String, GenerateTask),
}

/// A result that fits its task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskResult {
    /// Of [`Task::Score`].
    Score(ScoreResult),
    /// Of [`Task::Generate`].
    Generate(GenerateResult),
}

/// A prompt to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// As a person wrote it.
    pub text: String,
    /// As the chat template renders it, tokenized.
    pub ids: Vec<u32>,
}

/// All tasks of a run: held-out samples are scored; probe prompts and the first `eval.samples` held-out prompts are
/// answered.
#[must_use]
pub fn build(
    eval: &crate::config::Eval,
    heldout: &[Sequence],
    heldout_prompts: &[Prompt],
    probes: &[Prompt],
    stop_ids: &[u32],
) -> Vec<Task> {
    let answer = |purpose, prompt: &Prompt| {
        let (prompt_ids, stop_ids) = (prompt.ids.clone(), stop_ids.to_vec());
        let task = GenerateTask { prompt_ids, max_new_tokens: eval.max_new_tokens, stop_ids };
        Task::Generate(purpose, prompt.text.clone(), task)
    };
    let scores = heldout
        .iter()
        .map(|sequence| Task::Score(ScoreTask { sequence: Some(sequence.clone()), kl_positions: eval.kl_positions }));
    let probes = probes.iter().map(|prompt| answer(Purpose::Probe, prompt));
    let samples = heldout_prompts.iter().take(eval.samples).map(|prompt| answer(Purpose::Sample, prompt));
    scores.chain(probes).chain(samples).collect()
}

fn loss_tokens(sequence: &Sequence) -> usize {
    sequence.loss.iter().map(|range| range.end.saturating_sub(range.start) as usize).sum()
}

impl Task {
    /// As it goes to a worker.
    #[must_use]
    pub fn to_wire(&self) -> WireTask {
        match self {
            Self::Score(task) => WireTask::Score(task.clone()),
            Self::Generate(_, _, task) => WireTask::Generate(task.clone()),
        }
    }

    /// Takes a result that fits this task.
    ///
    /// # Errors
    /// `BadMessage` when it does not, `NonFinite` when it holds no numbers.
    pub fn accept(&self, result: WireResult) -> Result<TaskResult, Failure> {
        let bad = |what: String| Failure::new(ErrorCode::BadMessage, format!("evaluation result: {what}"));
        match (self, result) {
            (Self::Score(task), WireResult::Score(score)) => {
                let tokens = task.sequence.as_ref().map_or(0, loss_tokens);
                let positions = tokens.min(task.kl_positions as usize);
                let found = (score.base_nll.len(), score.tuned_nll.len(), score.kl.len());
                if found != (tokens, tokens, positions) {
                    let expected = (tokens, tokens, positions);
                    return Err(bad(format!("{found:?} values of base, tuned and kl, expected {expected:?}")));
                }
                let nll = score.base_nll.iter().chain(&score.tuned_nll);
                if !nll.into_iter().all(|v| v.is_finite()) || !score.kl.iter().all(|v| v.is_finite()) {
                    return Err(Failure::new(ErrorCode::NonFinite, "evaluation of a held-out sample is not finite"));
                }
                Ok(TaskResult::Score(score))
            }
            (Self::Generate(_, _, task), WireResult::Generate(answer)) => {
                let longest = answer.base_ids.len().max(answer.tuned_ids.len());
                if longest > task.max_new_tokens as usize {
                    return Err(bad(format!(
                        "{longest} generated tokens, at most {} were asked for",
                        task.max_new_tokens
                    )));
                }
                Ok(TaskResult::Generate(answer))
            }
            _ => Err(bad("it is of another kind than its task".into())),
        }
    }
}
