//! Output head and cross-entropy.

use super::linear::{LinearShape, linear};

/// `hidden Wᵀ + bias`, `[rows, vocab]`.
#[must_use]
pub fn logits(hidden: &[f64], rows: usize, weight: &[f64], vocab: usize, bias: Option<&[f64]>) -> Vec<f64> {
    let shape = LinearShape { rows, inp: hidden.len() / rows, out: vocab };
    linear(shape, hidden, weight, bias, None).0
}

fn log_sum_exp(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln()
}

/// `log p(targets[n] | hidden[n])`.
#[must_use]
pub fn log_probabilities(
    hidden: &[f64],
    weight: &[f64],
    vocab: usize,
    bias: Option<&[f64]>,
    targets: &[u32],
) -> Vec<f64> {
    let logits = logits(hidden, targets.len(), weight, vocab, bias);
    let rows = logits.chunks_exact(vocab).zip(targets);
    rows.map(|(logits, &target)| logits[target as usize] - log_sum_exp(logits)).collect()
}

/// `(losses, d_hidden)`: the gradient is of the sum of the losses.
#[must_use]
pub fn cross_entropy(
    hidden: &[f64],
    weight: &[f64],
    vocab: usize,
    bias: Option<&[f64]>,
    targets: &[u32],
) -> (Vec<f64>, Vec<f64>) {
    let losses: Vec<f64> =
        log_probabilities(hidden, weight, vocab, bias, targets).into_iter().map(|log_p| -log_p).collect();
    let d_hidden = cross_entropy_gradient(hidden, weight, vocab, bias, targets, &losses);
    (losses, d_hidden)
}

/// `d_hidden` of [`cross_entropy`] when its losses came out as `losses`: `losses[n] + logits[n][targets[n]]` is the
/// log-sum-exp that normalizes row `n`.
#[must_use]
pub fn cross_entropy_gradient(
    hidden: &[f64],
    weight: &[f64],
    vocab: usize,
    bias: Option<&[f64]>,
    targets: &[u32],
    losses: &[f64],
) -> Vec<f64> {
    let inp = hidden.len() / targets.len();
    let logits = logits(hidden, targets.len(), weight, vocab, bias);
    let mut d_hidden = vec![0.0; hidden.len()];
    for (n, (logits, &target)) in logits.chunks_exact(vocab).zip(targets).enumerate() {
        let log_sum_exp = losses[n] + logits[target as usize];
        for (word, logit) in logits.iter().enumerate() {
            let d_logit = (logit - log_sum_exp).exp() - if word == target as usize { 1.0 } else { 0.0 };
            for i in 0..inp {
                d_hidden[n * inp + i] += d_logit * weight[word * inp + i];
            }
        }
    }
    d_hidden
}
