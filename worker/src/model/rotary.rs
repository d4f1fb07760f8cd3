//! Rotary angles (Su et al., RoFormer, 2104.09864).
//!
//! Frequencies are computed in f64; frequencies and angles are then rounded to f32, because that is how models are
//! trained and served (transformers forms both in f32): at position 200 exact angles are 1e-5 away from those.

use ballast_basemodel::{Architecture, RotaryScaling};
use std::f64::consts::TAU;

/// cos and sin of every angle, `[positions, head_dim / 2]` each, row-major.
pub(super) fn tables(architecture: &Architecture) -> (Vec<f32>, Vec<f32>) {
    let frequencies = frequencies(architecture);
    let angles = (0..architecture.max_positions)
        .flat_map(|position| frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency)));
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// Radians a position, for each pair of channels.
fn frequencies(architecture: &Architecture) -> Vec<f32> {
    (0..architecture.head_dim / 2)
        .map(|pair| architecture.rope_theta.powf(-2.0 * pair as f64 / architecture.head_dim as f64))
        .map(|frequency| scaled(frequency, &architecture.rope_scaling) as f32)
        .collect()
}

/// Stretches a frequency; the `Llama3` ramp is the one of transformers' `rope_type = "llama3"`.
fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::Default => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let turns = original_max_positions as f64 * frequency / TAU;
            if turns < low_freq_factor {
                frequency / factor
            } else if turns > high_freq_factor {
                frequency
            } else {
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };

    #[test]
    fn linear_scaling_divides_every_frequency() {
        assert_eq!(scaled(0.5, &RotaryScaling::Linear { factor: 4.0 }), 0.125);
        assert_eq!(scaled(0.5, &RotaryScaling::Default), 0.5);
    }

    /// Turns over the original context: below 1 divided, above 4 kept, 2.5 half way between.
    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let of_turns = |turns: f64| turns * TAU / 8192.0;
        assert_eq!(scaled(of_turns(5.0), &LLAMA3), of_turns(5.0));
        assert_eq!(scaled(of_turns(0.5), &LLAMA3), of_turns(0.5) / 8.0);
        let middle = scaled(of_turns(2.5), &LLAMA3);
        assert!((middle / (of_turns(2.5) * (1.0 + 1.0 / 8.0) / 2.0) - 1.0).abs() < 1e-12, "{middle}");
    }
}
