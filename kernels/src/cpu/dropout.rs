//! Dropout masks, made where they are needed and never stored.

use super::CpuBackend;
use super::simd::vectorized;
use crate::Philox;
use crate::contract::Dropout;

/// One layer's dropout on rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct Mask<'a> {
    philox: Philox,
    /// Words below are dropped.
    threshold: u64,
    /// Factor on what is kept.
    scale: f32,
    module: u32,
    positions: &'a [u32],
    samples: &'a [u64],
}

impl<'a> Mask<'a> {
    pub(crate) fn new(dropout: &Dropout<'a, CpuBackend>) -> Self {
        Self {
            philox: Philox::dropout(dropout.seed, dropout.step),
            threshold: dropout.threshold(),
            scale: dropout.keep_scale(),
            module: dropout.module,
            positions: &dropout.packing.positions,
            samples: &dropout.packing.samples,
        }
    }

    /// `out = mask(x)` for whole rows from `first_row` on.
    pub(crate) fn apply(&self, first_row: usize, x: &[f32], cols: usize, out: &mut [f32]) {
        for (row, (x, out)) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
            let row = first_row + row;
            let (position, sample) = (self.positions[row], self.samples[row]);
            mask_row(self.philox, position, sample, self.module, self.threshold, self.scale, x, out);
        }
    }

    /// `out += mask(d)` for whole rows from `first_row` on.
    pub(crate) fn add(&self, first_row: usize, d: &[f32], cols: usize, out: &mut [f32]) {
        for (row, (d, out)) in d.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
            let row = first_row + row;
            let (position, sample) = (self.positions[row], self.samples[row]);
            add_masked_row(self.philox, position, sample, self.module, self.threshold, self.scale, d, out);
        }
    }
}

/// The factors of 64 channels.
#[inline(always)]
fn factors(words: [[u32; 16]; 4], threshold: u64, scale: f32) -> [f32; 64] {
    let mut factors = [0.0; 64];
    for quad in 0..16 {
        for word in 0..4 {
            factors[4 * quad + word] = if u64::from(words[word][quad]) >= threshold { scale } else { 0.0 };
        }
    }
    factors
}

vectorized! {
    /// A dropped channel becomes zero even where it held NaN.
    #[allow(clippy::too_many_arguments)]
    fn mask_row(
        philox: Philox, position: u32, sample: u64, module: u32, threshold: u64, scale: f32, x: &[f32], out: &mut [f32],
    ) {
        for (block, (x, out)) in x.chunks(64).zip(out.chunks_mut(64)).enumerate() {
            let factors = factors(philox.mask_lanes(block as u32 * 16, position, sample, module), threshold, scale);
            for ((out, x), factor) in out.iter_mut().zip(x).zip(factors) {
                *out = if factor == 0.0 { 0.0 } else { x * factor };
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn add_masked_row(
        philox: Philox, position: u32, sample: u64, module: u32, threshold: u64, scale: f32, d: &[f32], out: &mut [f32],
    ) {
        for (block, (d, out)) in d.chunks(64).zip(out.chunks_mut(64)).enumerate() {
            let factors = factors(philox.mask_lanes(block as u32 * 16, position, sample, module), threshold, scale);
            for ((out, d), factor) in out.iter_mut().zip(d).zip(factors) {
                *out += if factor == 0.0 { 0.0 } else { d * factor };
            }
        }
    }
}
