//! Exact sums: gradients as integers, so that no order of addition can change a bit.
//!
//! Each micro-batch's f32 gradient is rounded once to `round(g * 2^exponent)`, with one exponent a tensor. Integer sums
//! are associative: neither the number of ranks nor their division of the work shows in the result. This module is
//! the pure part: which exponents, how much room, what the flags mean.

use ballast_kernels::FLAG_NOT_FINITE;
use ballast_proto::v1::NonFinite;

/// Exponent of every tensor whose gradient has never been seen: steps of 2.3e-10, and room for 6.7e7 in each of
/// 16 micro-batches.
const INITIAL_EXPONENT: i32 = 32;

/// Where the largest element of the last step's gradient sum is put: 24 significant bits are left for elements 2^16 times
/// smaller, and room for a gradient that grows by 2^(62 - 40) / micro-batches.
const TARGET_BITS: i32 = 40;

/// Bounds of an exponent, reached only by gradients that are no longer sensible numbers.
const EXPONENT_LIMIT: i32 = 200;

/// Exponent of loss sums: a micro-batch's summed loss keeps steps of 2.3e-10 nats.
const LOSS_EXPONENT: i32 = 32;

/// Exponents of the first step: no gradient is known yet.
#[must_use]
pub fn initial_exponents(tensors: usize) -> Vec<i32> {
    vec![INITIAL_EXPONENT; tensors]
}

/// Exponents of the next step, from what the last committed step alone knows: each tensor's largest absolute mean
/// gradient, and the loss tokens the mean was taken over.
///
/// A tensor whose gradient was zero throughout (every `lora_A` while `lora_B` is zero) has told nothing and gets the
/// initial exponent.
#[must_use]
pub fn next_exponents(largest_mean: &[f32], loss_tokens: u64) -> Vec<i32> {
    largest_mean
        .iter()
        .map(|&largest| {
            let sum = f64::from(largest) * loss_tokens as f64;
            if sum > 0.0 {
                (TARGET_BITS - magnitude_bits(sum)).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
            } else {
                INITIAL_EXPONENT
            }
        })
        .collect()
}

/// Whether an exponent is one that [`next_exponents`] or [`Verdict::TooLarge`] could have left behind.
#[must_use]
pub fn plausible_exponent(exponent: i32) -> bool {
    (-EXPONENT_LIMIT..=EXPONENT_LIMIT).contains(&exponent)
}

/// `n` with `2^(n - 1) <= value < 2^n`, exactly, for a normal positive number.
fn magnitude_bits(value: f64) -> i32 {
    ((value.to_bits() >> 52) & 0x7ff) as i32 - 1022
}

/// Bits that each micro-batch's |q| may have so that the sum of `micro_batches` of them stays within 2^62.
#[must_use]
pub fn limit_bits(micro_batches: u32) -> u32 {
    62 - micro_batches.max(1).next_power_of_two().trailing_zeros()
}

/// A micro-batch's summed loss as an integer; `None` when it is no sensible number.
#[must_use]
pub fn loss_to_fixed(loss: f64, limit_bits: u32) -> Option<i64> {
    let scaled = (loss * 2f64.powi(LOSS_EXPONENT)).round_ties_even();
    (scaled.abs() <= 2f64.powi(limit_bits as i32)).then_some(scaled as i64)
}

/// Back from a sum of [`loss_to_fixed`], in nats.
#[must_use]
pub fn loss_from_fixed(sum: i64) -> f64 {
    sum as f64 * 2f64.powi(-LOSS_EXPONENT)
}

/// Flags for micro-batches, and as many again: of a fixed number, for device memory is planned. Beyond it neighbours share one, and are
/// named together.
const SLOTS: usize = 512;

/// What the micro-batches of a step met while they were summed. Flags of different micro-batches and ranks merge by
/// their maximum, so the merged flags do not tell who summed what; which micro-batch was not finite every rank learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    tensors: usize,
    micro_batches: u32,
    /// One a tensor, as [`ballast_kernels::Backend::accumulate_fixed`] raises them; then those of micro-batches whose gradient was
    /// not finite, and of those whose loss was not.
    merged: Vec<i64>,
}

/// What the flags of all ranks together say.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every value fitted: the sums may be used.
    Fits,
    /// Values were too large: recompute the step with these exponents, which every rank derives alike.
    TooLarge {
        /// The reduced exponents.
        exponents: Vec<i32>,
    },
    /// A value was not finite.
    NotFinite {
        /// The micro-batches that had one, in order.
        micro_batches: Vec<NonFinite>,
    },
}

impl Flags {
    /// Flags of an adapter of so many tensors.
    #[must_use]
    pub fn new(tensors: usize) -> Self {
        Self { tensors, micro_batches: 0, merged: vec![0; tensors + 2 * SLOTS] }
    }

    /// Begins a step of so many micro-batches, in which nothing has been met.
    pub fn begin(&mut self, micro_batches: u32) {
        self.merged.fill(0);
        self.micro_batches = micro_batches;
    }

    /// The flag of a micro-batch among those of its kind.
    fn slot(&self, micro_batch: u32) -> usize {
        let all = (self.micro_batches as usize).max(SLOTS);
        (micro_batch as usize * SLOTS / all).min(SLOTS - 1)
    }

    /// Adds the flags of one micro-batch; `loss_fits` is whether its loss is a number that fits.
    pub fn merge(&mut self, micro_batch: u32, tensors: &[i64], loss_fits: bool) {
        for (merged, &flag) in self.merged.iter_mut().zip(tensors) {
            *merged = flag.max(*merged);
        }
        let slot = self.tensors + self.slot(micro_batch);
        self.merged[slot] |= i64::from(tensors.contains(&FLAG_NOT_FINITE));
        self.merged[slot + SLOTS] |= i64::from(!loss_fits);
    }

    /// The flags, to be max-reduced over all ranks.
    #[must_use]
    pub fn as_slice(&self) -> &[i64] {
        &self.merged
    }

    /// Where the flags go that were reduced over all ranks.
    pub fn as_mut_slice(&mut self) -> &mut [i64] {
        &mut self.merged
    }

    /// Judges flags that have been reduced over all ranks.
    #[must_use]
    pub fn judge(&self, exponents: &[i32]) -> Verdict {
        let (flags, met) = self.merged.split_at(self.tensors);
        let named = |micro_batch| {
            let slot = self.slot(micro_batch);
            NonFinite { micro_batch, loss: met[slot + SLOTS] != 0, gradient: met[slot] != 0 }
        };
        let all = (0..self.micro_batches).map(named);
        let micro_batches: Vec<NonFinite> = all.filter(|met| met.loss || met.gradient).collect();
        if !micro_batches.is_empty() {
            return Verdict::NotFinite { micro_batches };
        }
        if flags.iter().all(|&flag| flag == 0) {
            return Verdict::Fits;
        }
        let lowered = |(&exponent, &flag): (&i32, &i64)| exponent - i32::try_from(flag).unwrap_or(EXPONENT_LIMIT);
        Verdict::TooLarge { exponents: exponents.iter().zip(flags).map(lowered).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn magnitudes_are_exact_at_powers_of_two() {
        for (value, bits) in [(1.0, 1), (1.5, 1), (2.0, 2), (0.5, 0), (0.75, 0), (0.25, -1), (1e-30, -99)] {
            assert_eq!(magnitude_bits(value), bits, "{value}");
        }
    }

    #[test]
    fn zero_tensors_get_the_initial_exponent() {
        assert_eq!(next_exponents(&[0.0, 1.0, 2.0], 1), [32, 39, 38]);
        assert_eq!(initial_exponents(2), [32, 32]);
    }

    #[test]
    fn headroom_is_shared_by_the_micro_batches_of_the_step() {
        assert_eq!([1, 2, 3, 4, 5, 64, 65].map(limit_bits), [62, 61, 60, 60, 59, 56, 55]);
    }

    fn merged(micro_batches: &[(u32, [i64; 2], bool)]) -> Flags {
        let mut flags = Flags::new(2);
        flags.begin(6);
        for (index, tensors, loss_fits) in micro_batches {
            flags.merge(*index, tensors, *loss_fits);
        }
        flags
    }

    #[test]
    fn flags_lower_only_what_overflowed_and_by_the_most() {
        assert_eq!(merged(&[(0, [0, 0], true)]).judge(&[32, 10]), Verdict::Fits);
        let overflowed = merged(&[(0, [0, 3], true), (1, [0, 1], true)]);
        assert_eq!(overflowed.judge(&[32, 10]), Verdict::TooLarge { exponents: vec![32, 7] });
    }

    #[test]
    fn every_micro_batch_that_is_not_finite_is_named_with_what_of_it() {
        let micro_batches =
            [(5, [0, FLAG_NOT_FINITE], true), (2, [FLAG_NOT_FINITE, 9], false), (1, [4, 0], true), (0, [0, 0], false)];
        let named = |micro_batch, loss, gradient| NonFinite { micro_batch, loss, gradient };
        let all = Verdict::NotFinite {
            micro_batches: vec![named(0, true, false), named(2, true, true), named(5, false, true)],
        };
        assert_eq!(merged(&micro_batches).judge(&[32, 10]), all);
        // Whoever summed what: the maximum of two ranks' flags says the same.
        let (mut one, other) = (merged(&micro_batches[..2]), merged(&micro_batches[2..]));
        let both = one.as_mut_slice().iter_mut().zip(other.as_slice());
        both.for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
        assert_eq!(one.judge(&[32, 10]), all);
        // Another step has other micro-batches.
        one.begin(1);
        assert_eq!(one.judge(&[32, 10]), Verdict::Fits);
    }

    #[test]
    fn beyond_so_many_micro_batches_neighbours_are_named_together() {
        let mut flags = Flags::new(0);
        let before = flags.as_slice().len();
        flags.begin(1024);
        flags.merge(7, &[], false);
        flags.merge(1023, &[], false);
        let Verdict::NotFinite { micro_batches } = flags.judge(&[]) else { panic!("{flags:?}") };
        assert!(micro_batches.iter().map(|m| m.micro_batch).eq([6, 7, 1022, 1023]), "{micro_batches:?}");
        assert_eq!(flags.as_slice().len(), before);
        flags.begin(512);
        flags.merge(511, &[], false);
        let last = NonFinite { micro_batch: 511, loss: true, gradient: false };
        assert_eq!(flags.judge(&[]), Verdict::NotFinite { micro_batches: vec![last] });
    }

    #[test]
    fn losses_survive_and_nonsense_is_refused() {
        assert_eq!(loss_from_fixed(loss_to_fixed(1234.5, 56).unwrap()), 1234.5);
        for nonsense in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
            assert_eq!(loss_to_fixed(nonsense, 56), None);
        }
    }

    proptest! {
        /// The largest element of an unchanged gradient lands within the target, with room left for every step
        /// of up to 2^16 micro-batches.
        #[test]
        fn the_next_step_fits(largest in 1e-30f32..1e30, tokens in 1u64..1_000_000) {
            let exponent = next_exponents(&[largest], tokens)[0];
            let q = f64::from(largest) * tokens as f64 * 2f64.powi(exponent);
            prop_assert!((2f64.powi(TARGET_BITS - 1)..2f64.powi(TARGET_BITS)).contains(&q));
            prop_assert!(TARGET_BITS < limit_bits(1 << 16) as i32);
        }

        /// Sums within the headroom cannot wrap.
        #[test]
        fn headroom_never_wraps(micro_batches in 1u32..100_000) {
            let largest = 1i128 << limit_bits(micro_batches);
            prop_assert!(largest * i128::from(micro_batches) <= 1 << 62);
        }
    }
}
