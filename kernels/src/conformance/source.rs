//! Seeded inputs.

use crate::{Backend, Philox};

/// A stream of pseudo-random values, the same on every machine.
#[derive(Debug)]
pub struct Source {
    philox: Philox,
    counter: u32,
}

impl Source {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { philox: Philox::new([seed, 0x00c0_ffee]), counter: 0 }
    }

    /// Four uniform values in `[-1, 1)`.
    fn quad(&mut self) -> [f64; 4] {
        self.counter += 1;
        self.philox.words([self.counter, 0, 0, 0]).map(|word| f64::from(word) / 2_147_483_648.0 - 1.0)
    }

    /// About normal, mean 0, deviation 1.
    pub fn real(&mut self) -> f64 {
        self.quad().iter().sum::<f64>() * 0.75_f64.sqrt()
    }

    /// `len` of them.
    pub fn reals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.real()).collect()
    }

    /// `len` f32 of deviation `scale`.
    pub fn floats(&mut self, len: usize, scale: f64) -> Vec<f32> {
        (0..len).map(|_| (self.real() * scale) as f32).collect()
    }

    /// `len` indices below `limit`.
    pub fn indices(&mut self, len: usize, limit: usize) -> Vec<u32> {
        (0..len).map(|_| ((self.quad()[0] + 1.0) * 0.5 * limit as f64) as u32 % limit as u32).collect()
    }

    /// A matrix on the device, and what the device stored.
    pub(crate) fn matrix<B: Backend>(
        &mut self,
        backend: &B,
        rows: usize,
        cols: usize,
        scale: f64,
    ) -> (B::Activations, Vec<f64>) {
        let matrix = super::ok(backend.upload_activations(&self.floats(rows * cols, scale), rows, cols));
        let stored = super::widen(&super::ok(backend.read_activations(&matrix)));
        (matrix, stored)
    }

    /// `[rows, cols]` values that the device can store without rounding, for a frozen weight.
    pub(crate) fn frozen<B: Backend>(&mut self, backend: &B, rows: usize, cols: usize, scale: f64) -> Vec<f32> {
        let matrix = super::ok(backend.upload_activations(&self.floats(rows * cols, scale), rows, cols));
        super::ok(backend.read_activations(&matrix))
    }

    /// A vector on the device, and its values.
    pub(crate) fn vector<B: Backend>(&mut self, backend: &B, len: usize, scale: f64) -> (B::Reals, Vec<f64>) {
        let values = self.floats(len, scale);
        (super::ok(backend.upload_reals(&values)), super::widen(&values))
    }
}

/// A matrix full of NaN: whoever adds to it, or leaves an element unwritten, is found out.
pub(crate) fn poisoned<B: Backend>(backend: &B, rows: usize, cols: usize) -> B::Activations {
    super::ok(backend.upload_activations(&vec![f32::NAN; rows * cols], rows, cols))
}

/// A vector full of NaN.
pub(crate) fn poisoned_reals<B: Backend>(backend: &B, len: usize) -> B::Reals {
    super::ok(backend.upload_reals(&vec![f32::NAN; len]))
}
