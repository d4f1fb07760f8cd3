//! Where arithmetic is defined to the last bit, the CUDA backend gives the bits of the CPU backend: fixed point, AdamW,
//! the norm. As tests/cuda.rs, these need a device, real or emulated.
#![cfg(all(feature = "cuda", feature = "reference"))]
#![allow(clippy::unwrap_used)]

use ballast_kernels::conformance::Source;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::cuda::{CudaBackend, Storage};
use ballast_kernels::{AdamW, Backend, Bucket, Segment};

fn cpu() -> CpuBackend {
    CpuBackend::new(2).unwrap()
}

fn cuda() -> CudaBackend {
    CudaBackend::new(0, Storage::F32).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Gradients of many magnitudes, with zeros and subnormals.
fn gradient(seed: u32, len: usize) -> Vec<f32> {
    let mut source = Source::new(seed);
    let scales = source.indices(len, 60);
    let mut values = source.floats(len, 1.0);
    for (value, scale) in values.iter_mut().zip(scales) {
        *value *= 2.0_f32.powi(scale as i32 - 30);
    }
    values[len / 2] = -0.0;
    values[len / 3] = 3e-41;
    values
}

fn segments(len: usize) -> Vec<Segment> {
    let bounds = [0, 1, 17, 17, 4113, 9000, len - 3, len];
    let segment = |(i, bounds): (usize, &[usize])| Segment { range: bounds[0]..bounds[1], exponent: 20 + i as i32 };
    bounds.windows(2).enumerate().map(segment).collect()
}

/// Sums and flags of two gradients, the gradient made of the sums, and the segments' magnitudes.
fn fixed<B: Backend>(b: &B, len: usize) -> (Vec<i64>, Vec<i64>, Vec<u32>, Vec<u32>) {
    let segments = segments(len);
    let whole = Bucket::whole(&segments, len);
    let (mut sums, mut flags) = (b.integers(len).unwrap(), b.integers(segments.len()).unwrap());
    for seed in [1, 2] {
        let gradient = b.upload_reals(&gradient(seed, len)).unwrap();
        b.accumulate_fixed(&gradient, &whole, 48, &mut sums, &mut flags).unwrap();
    }
    let mut mean = b.reals(len).unwrap();
    b.fixed_to_gradient(&sums, &whole, 1371.0, &mut mean).unwrap();
    let largest = b.max_abs(&mean, &segments).unwrap();
    let (mut all_sums, mut all_flags) = (vec![0; len], vec![0; segments.len()]);
    b.read_integers(&sums, &mut all_sums).unwrap();
    b.read_integers(&flags, &mut all_flags).unwrap();
    (all_sums, all_flags, bits(&b.read_reals(&mean).unwrap()), bits(&largest))
}

#[test]
fn fixed_point() {
    let len = 30_011;
    let (want, got) = (fixed(&cpu(), len), fixed(&cuda(), len));
    assert!(want.1.iter().any(|&flag| flag > 0) && want.1.contains(&0), "some segments are flagged: {:?}", want.1);
    assert_eq!(got.1, want.1);
    // The sums of a flagged segment are unspecified.
    for (segment, flag) in segments(len).iter().zip(&want.1).filter(|(_, flag)| **flag == 0) {
        let range = segment.range.clone();
        assert_eq!(got.0[range.clone()], want.0[range.clone()], "{segment:?}, flag {flag}");
        assert_eq!(got.2[range.clone()], want.2[range], "{segment:?}");
    }
    assert_eq!(got.3[1], want.3[1]);
}

/// Parameters and moments after some updates.
fn updated<B: Backend>(b: &B, len: usize) -> [Vec<u32>; 3] {
    let mut parameters = b.upload_reals(&Source::new(7).floats(len, 1.0)).unwrap();
    let (mut first, mut second) = (b.reals(len).unwrap(), b.reals(len).unwrap());
    for step in 1..=7 {
        let settings = AdamW {
            learning_rate: 2e-4 * step as f64,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step,
            gradient_scale: 0.37,
        };
        let gradient = b.upload_reals(&gradient(step as u32, len)).unwrap();
        b.adamw(&mut parameters, &gradient, &mut first, &mut second, &settings).unwrap();
    }
    [parameters, first, second].map(|vector| bits(&b.read_reals(&vector).unwrap()))
}

#[test]
fn adamw() {
    for len in [5, 1000, 20_003] {
        assert_eq!(updated(&cuda(), len), updated(&cpu(), len), "{len} parameters");
    }
}

#[test]
fn squared_norm() {
    for len in [3, 16, 1000, 16_384, 16_385, 100_003] {
        let values = Source::new(len as u32).floats(len, 3.0);
        let (cpu, cuda) = (cpu(), cuda());
        let want = cpu.squared_norm(&cpu.upload_reals(&values).unwrap()).unwrap();
        let got = cuda.squared_norm(&cuda.upload_reals(&values).unwrap()).unwrap();
        assert_eq!(got.to_bits(), want.to_bits(), "{len} elements: {got} {want}");
    }
}
