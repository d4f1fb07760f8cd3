//! Settings of the optimizer: AdamW and clipping by the global norm.

use crate::WorkerError;
use ballast_kernels::AdamW;
use ballast_proto::v1;

/// AdamW (Loshchilov and Hutter, 1711.05101) with clipping, as the run wants it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    /// Largest global gradient norm; 0 means none.
    clip_norm: f64,
}

impl Optimizer {
    /// Checks the settings of a run.
    ///
    /// # Errors
    /// [`WorkerError::RunSpec`] naming the first value out of range.
    pub fn new(settings: &v1::Optimizer) -> Result<Self, WorkerError> {
        let checks = [
            ("beta1", settings.beta1, (0.0..1.0).contains(&settings.beta1), "in [0, 1)"),
            ("beta2", settings.beta2, (0.0..1.0).contains(&settings.beta2), "in [0, 1)"),
            ("epsilon", settings.epsilon, settings.epsilon > 0.0, "above 0"),
            ("weight_decay", settings.weight_decay, settings.weight_decay >= 0.0, "at least 0"),
            ("clip_norm", settings.clip_norm, settings.clip_norm >= 0.0, "at least 0"),
        ];
        for (name, value, fits, allowed) in checks {
            if !(fits && value.is_finite()) {
                return Err(WorkerError::RunSpec(format!("optimizer.{name} is {value}; it must be {allowed}")));
            }
        }
        let v1::Optimizer { beta1, beta2, epsilon, weight_decay, clip_norm, .. } = *settings;
        Ok(Self { beta1, beta2, epsilon, weight_decay, clip_norm })
    }

    /// The update number `step` (from 1) of a gradient with this norm.
    #[must_use]
    pub fn update(&self, step: u64, learning_rate: f64, grad_norm: f64) -> AdamW {
        AdamW {
            learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            step,
            gradient_scale: self.clipping(grad_norm),
        }
    }

    /// Factor on the gradient, as `torch.nn.utils.clip_grad_norm_` takes it.
    fn clipping(&self, grad_norm: f64) -> f64 {
        if self.clip_norm > 0.0 { (self.clip_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> v1::Optimizer {
        v1::Optimizer {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip_norm: 1.0,
        }
    }

    #[test]
    fn clips_only_above_the_norm() {
        let optimizer = Optimizer::new(&settings()).unwrap();
        assert_eq!(optimizer.update(1, 0.1, 0.5).gradient_scale, 1.0);
        assert_eq!(optimizer.update(1, 0.1, 4.0).gradient_scale, 1.0 / 4.000_001);
        let unclipped = Optimizer::new(&v1::Optimizer { clip_norm: 0.0, ..settings() }).unwrap();
        assert_eq!(unclipped.update(1, 0.1, 4.0).gradient_scale, 1.0);
    }

    #[test]
    fn bad_settings_are_named() {
        for (bad, name) in [
            (v1::Optimizer { beta1: 1.0, ..settings() }, "beta1"),
            (v1::Optimizer { beta2: f64::NAN, ..settings() }, "beta2"),
            (v1::Optimizer { epsilon: 0.0, ..settings() }, "epsilon"),
            (v1::Optimizer { weight_decay: -1.0, ..settings() }, "weight_decay"),
            (v1::Optimizer { clip_norm: f64::INFINITY, ..settings() }, "clip_norm"),
        ] {
            let message = Optimizer::new(&bad).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
