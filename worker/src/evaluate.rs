//! Evaluation: the tuned model against its base, which is the same weights with the adapter off.

use crate::WorkerError;
use crate::generate::{Limits, greedy};
use crate::lora::Adapter;
use crate::model::{Batch, Decoder, Pass, Rows};
use crate::packed::{Packed, Prefix, check_ids};
use crate::progress::Progress;
use crate::trainer::Trainer;
use ballast_kernels::Backend;
use ballast_proto::v1::{GenerateResult, GenerateTask, ScoreResult, ScoreTask, next_task_response::Task, task_result};

/// Runs one task on the trainer's adapter.
///
/// # Errors
/// When the task breaks the protocol or the device fails.
pub fn run<B: Backend>(trainer: &mut Trainer<B>, task: &Task) -> Result<task_result::Result, WorkerError> {
    let (decoder, adapter, progress) = (trainer.decoder(), trainer.adapter(), trainer.progress());
    Ok(match task {
        Task::Score(task) => task_result::Result::Score(score(decoder, &adapter, task, progress)?),
        Task::Generate(task) => task_result::Result::Generate(generate(decoder, &adapter, task, progress)?),
    })
}

/// Teacher-forces a sequence through both models.
fn score<B: Backend>(
    decoder: &Decoder<B>,
    adapter: &Adapter<'_, B>,
    task: &ScoreTask,
    progress: &Progress,
) -> Result<ScoreResult, WorkerError> {
    let sequence = task.sequence.as_slice();
    let packed = Packed::new(sequence, decoder.architecture(), Prefix::Apart).map_err(malformed)?;
    if packed.targets.is_empty() {
        return Err(malformed("no token bears loss".into()));
    }
    let batch = Batch::new(&**decoder.backend(), &packed.ids, &packed.layout)?;
    let kl_positions = packed.rows.len().min(task.kl_positions as usize);
    let measure = |adapter| Scores::measure(decoder, &Pass { batch: &batch, adapter, progress }, &packed, kl_positions);
    let (base, tuned) = (measure(None)?, measure(Some(adapter))?);
    let vocabulary = decoder.architecture().vocab_size;
    let positions = tuned.first_logits.chunks_exact(vocabulary).zip(base.first_logits.chunks_exact(vocabulary));
    let kl = positions.map(|(tuned, base)| divergence(tuned, base)).collect();
    Ok(ScoreResult { base_nll: base.nll, tuned_nll: tuned.nll, kl })
}

/// What one model makes of a sequence.
struct Scores {
    /// Negative log-likelihood of every loss token, in nats.
    nll: Vec<f32>,
    /// Logits at the first of them, `[positions, vocab]`.
    first_logits: Vec<f32>,
}

impl Scores {
    fn measure<B: Backend>(
        decoder: &Decoder<B>,
        pass: &Pass<'_, B>,
        packed: &Packed,
        first: usize,
    ) -> Result<Self, WorkerError> {
        let backend = &**decoder.backend();
        let hidden = decoder.hidden(pass, &Rows::new(backend, &packed.rows)?)?;
        let mut log_probabilities = backend.reals(packed.targets.len())?;
        let targets = backend.upload_indices(&packed.targets)?;
        backend.log_probabilities(&hidden, decoder.head(), &targets, &mut log_probabilities)?;
        let nll = backend.read_reals(&log_probabilities)?.into_iter().map(|value| -value).collect();
        let mut first_logits = Vec::new();
        if first > 0 {
            let rows: Vec<u32> = (0..first as u32).collect();
            let mut first_hidden = backend.activations(first, decoder.architecture().hidden_size)?;
            backend.gather_rows(&hidden, &backend.upload_indices(&rows)?, &mut first_hidden)?;
            first_logits = decoder.logits(&first_hidden, first)?;
        }
        Ok(Self { nll, first_logits })
    }
}

/// KL(p || q) of two distributions given by their logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// Decodes a prompt with both models.
fn generate<B: Backend>(
    decoder: &Decoder<B>,
    adapter: &Adapter<'_, B>,
    task: &GenerateTask,
    progress: &Progress,
) -> Result<GenerateResult, WorkerError> {
    check_ids(&task.prompt_ids, decoder.architecture()).map_err(malformed)?;
    let limits = Limits { max_new_tokens: task.max_new_tokens as usize, stop_ids: &task.stop_ids };
    let decode = |adapter| greedy(decoder, adapter, &task.prompt_ids, limits, progress);
    Ok(GenerateResult { base_ids: decode(None)?, tuned_ids: decode(Some(adapter))? })
}

fn malformed(detail: String) -> WorkerError {
    WorkerError::Shard { what: "evaluation task".into(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two coins: KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2); logits may carry any offset.
    #[test]
    fn divergence_of_two_coins() {
        let biased = [3f32.ln() + 50.0, 50.0];
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((divergence(&biased, &[-7.0, -7.0]) - expected).abs() < 1e-6);
        assert_eq!(divergence(&biased, &biased), 0.0);
    }
}
