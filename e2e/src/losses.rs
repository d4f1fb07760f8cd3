//! Losses step by step: a run's own, and those that PEFT reached on the same samples from the same adapter.

use crate::tiny::fixture;
use anyhow::{Context, Result, ensure};
use ballast_coordinator::server::StepMetrics;
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// Losses of [`crate::tiny::SMALL`] in PEFT, in nats a token, one a step (`fixtures/make_losses.py` makes them).
#[derive(Clone, Debug, Deserialize)]
pub struct PeftLosses {
    /// Everything in f32.
    pub f32: Vec<f64>,
    /// Under torch's autocast to bf16, the base model held in f32: products and attention in bf16, what is added up from
    /// layer to layer in f32.
    pub autocast: Vec<f64>,
    /// The same with the base model held in bf16: what is added up from layer to layer is bf16 too.
    pub autocast_bf16_base: Vec<f64>,
}

impl PeftLosses {
    /// Reads the fixture.
    ///
    /// # Errors
    /// When it is not there or malformed.
    pub fn read() -> Result<Self> {
        let path = fixture("small-losses.json");
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        let losses: Self = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let steps = [&losses.f32, &losses.autocast, &losses.autocast_bf16_base].map(Vec::len);
        ensure!(steps[0] > 0 && steps.iter().all(|n| *n == steps[0]), "{}: steps {steps:?}", path.display());
        Ok(losses)
    }
}

/// The largest difference of a step's loss, in nats a token.
///
/// # Errors
/// When the two are not of the same number of steps, or a loss is no number.
pub fn farthest(losses: &[f64], from: &[f64]) -> Result<f64> {
    ensure!(losses.len() == from.len(), "losses of {} steps beside {}", losses.len(), from.len());
    ensure!(losses.iter().chain(from).all(|loss| loss.is_finite()), "a loss is no number: {losses:?} {from:?}");
    Ok(losses.iter().zip(from).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// The loss of every step in a run directory, in nats a token.
///
/// # Errors
/// When its metrics cannot be read or lack a step.
pub fn of_run(directory: &Path) -> Result<Vec<f64>> {
    let path = directory.join("metrics").join("steps.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    (1..)
        .zip(text.lines())
        .map(|(step, line)| {
            let metrics: StepMetrics = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            ensure!(metrics.step == step, "{}: step {} where {step} is due", path.display(), metrics.step);
            Ok(metrics.loss)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farthest_step_counts_and_nothing_is_left_out() {
        assert_eq!(farthest(&[4.0, 2.0, 1.0], &[4.0, 2.5, 0.75]).unwrap(), 0.5);
        assert!(farthest(&[4.0], &[4.0, 2.0]).is_err());
        assert!(farthest(&[f64::NAN], &[4.0]).is_err());
    }
}
