//! The scalars of an AdamW update, which every backend takes from here.

use crate::contract::AdamW;

/// What an update of one element needs of its settings.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// Factor on the parameter.
    pub(crate) decay: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    /// The learning rate over the first moment's bias.
    pub(crate) step_size: f64,
    /// Factor on the root of the second moment.
    pub(crate) root_correction: f64,
    pub(crate) epsilon: f64,
    /// Factor on the gradient.
    pub(crate) gradient_scale: f64,
}

impl Factors {
    pub(crate) fn new(settings: &AdamW) -> Self {
        Self {
            decay: 1.0 - settings.learning_rate * settings.weight_decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            step_size: settings.learning_rate / (1.0 - power(settings.beta1, settings.step)),
            root_correction: 1.0 / (1.0 - power(settings.beta2, settings.step)).sqrt(),
            epsilon: settings.epsilon,
            gradient_scale: settings.gradient_scale,
        }
    }
}

/// `base^exponent` by squaring: the standard library leaves its precision open.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        assert_eq!(power(0.9, 0), 1.0);
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert!((power(0.999, 12_345) - 0.999_f64.powf(12_345.0)).abs() < 1e-15);
    }
}
