//! The CUDA backend against the f64 reference, and what it promises beyond the contract.
//!
//! These tests need a CUDA device: a real one, or the software device of `kernels/softgpu` on `LD_LIBRARY_PATH`
//! (`make test-cuda`). What passes on the latter is *emulated*.
#![cfg(all(feature = "cuda", feature = "reference"))]
#![allow(clippy::unwrap_used)]

use ballast_kernels::conformance::{Precision, Source, families};
use ballast_kernels::cuda::{CudaBackend, Storage, probe};
use ballast_kernels::{Backend, KernelError};

fn backend(storage: Storage) -> CudaBackend {
    CudaBackend::new(0, storage).unwrap()
}

ballast_kernels::conformance_suite!(f32, backend(Storage::F32), Precision::F32);
ballast_kernels::conformance_suite!(bf16, backend(Storage::Bf16), Precision::Bf16);

/// The same at shapes that take seconds: where `make mutants` looks first.
mod short {
    use super::*;
    use ballast_kernels::conformance::check_short_family;

    macro_rules! suite {
        ($module:ident, $storage:expr, $precision:expr; $($family:ident)*) => {
            mod $module {
                use super::*;
                $(
                    #[test]
                    #[ignore = "part of the suite above"]
                    fn $family() {
                        check_short_family(&backend($storage), stringify!($family), $precision);
                    }
                )*
            }
        };
    }

    suite!(f32, Storage::F32, Precision::F32; rows norm linear rotary attention decoding gated head optimizer);
    suite!(bf16, Storage::Bf16, Precision::Bf16; rows norm linear rotary attention decoding gated head optimizer);
}

/// Every family, every case: the same bits on two backends, of which one has fresh memory for each buffer, and the
/// other had used its memory for something else.
fn bits_are_a_function_of_the_operands(storage: Storage) {
    let (first, second) = (backend(storage), backend(storage));
    second.reserve(8 << 20).unwrap();
    let families = families::<CudaBackend>();
    let (_, other) = families.iter().find(|(name, _)| *name == "norm").unwrap();
    drop(other(&second));
    for (name, family) in &families {
        for (a, b) in family(&first).iter().zip(&family(&second)) {
            let same = a.got.iter().zip(&b.got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && a.got.len() == b.got.len(), "{name}: {} differs", a.what);
        }
    }
    assert_eq!(first.arithmetic().unwrap(), second.arithmetic().unwrap());
}

#[test]
fn f32_bits_are_a_function_of_the_operands() {
    bits_are_a_function_of_the_operands(Storage::F32);
}

#[test]
fn bf16_bits_are_a_function_of_the_operands() {
    bits_are_a_function_of_the_operands(Storage::Bf16);
}

#[test]
fn storage_rounds_to_nearest_even_and_keeps_nan() {
    let values = [1.0, -2.5, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, f32::NAN];
    let stored = |storage| {
        let b = backend(storage);
        b.read_activations(&b.upload_activations(&values, 2, 3).unwrap()).unwrap()
    };
    assert_eq!(stored(Storage::F32)[..5], values[..5]);
    assert_eq!(stored(Storage::Bf16)[..5], [1.0, -2.5, 1.0, 1.0 + 4.0 / 256.0, f32::INFINITY]);
    assert!(stored(Storage::F32)[5].is_nan() && stored(Storage::Bf16)[5].is_nan());
}

/// By kernels: whole accesses of 16 bytes (64 columns) and single elements (33). A bound on the error would let truncation
/// pass, which is off by twice as much at most.
#[test]
fn results_are_rounded_to_nearest_even() {
    let b = backend(Storage::Bf16);
    for cols in [33, 64] {
        let rows = 20;
        let round = |value: f32| half::bf16::from_f32(value).to_f32();
        let values: Vec<f32> = Source::new(9).floats(rows * cols, 1.0).into_iter().map(round).collect();
        let table = b.pack_embedding(&values, rows, cols).unwrap();
        let ids = b.upload_indices(&(0..rows as u32).collect::<Vec<_>>()).unwrap();
        let mut out = b.activations(rows, cols).unwrap();
        b.embedding(&table, &ids, 1.1, &mut out).unwrap();
        let want: Vec<f32> = values.iter().map(|value| round(value * 1.1)).collect();
        assert_eq!(b.read_activations(&out).unwrap(), want, "{cols} columns");
    }
}

/// More than both halves of the staging buffer, so that a half is used again while its copy may be under way.
#[test]
fn long_copies_arrive_whole() {
    let b = backend(Storage::Bf16);
    let values: Vec<i64> = (0..3_000_000).map(|i| i * 0x0001_0203_0405).collect();
    let mut vector = b.integers(values.len()).unwrap();
    let mut read = vec![1; values.len()];
    b.read_integers(&vector, &mut read).unwrap();
    assert!(read.iter().all(|&value| value == 0));
    b.write_integers(&mut vector, &values).unwrap();
    let reals = Source::new(3).floats(1_200_001, 1.0);
    let (short, long) = (b.upload_reals(&reals[..7]).unwrap(), b.upload_reals(&reals).unwrap());
    b.read_integers(&vector, &mut read).unwrap();
    assert_eq!(read, values);
    assert_eq!(b.read_reals(&long).unwrap(), reals);
    assert_eq!(b.read_reals(&short).unwrap(), reals[..7]);
    b.clear_integers(&mut vector).unwrap();
    b.read_integers(&vector, &mut read).unwrap();
    assert!(read.iter().all(|&value| value == 0));
}

/// A vocabulary so large that eight rows of logits are all that is made at a time: the ninth and tenth come from a second chunk.
/// They are like rows of the first, but not like those that stand where they stand.
#[test]
fn a_second_chunk_of_logits_gives_what_the_first_gives() {
    let b = backend(Storage::Bf16);
    let (like, vocab) = ([0, 1, 2, 3, 4, 5, 6, 7, 3, 1], 1 << 20);
    let rows = like.len();
    let head = b.tied_head(&b.pack_embedding(&Source::new(4).floats(vocab, 1.0), vocab, 1).unwrap()).unwrap();
    let hidden: Vec<f32> = like.iter().map(|&row| 0.25 * (1 + row) as f32).collect();
    let targets: Vec<u32> = like.iter().map(|&row| 77 * row).collect();
    let (hidden, targets) = (b.upload_activations(&hidden, rows, 1).unwrap(), b.upload_indices(&targets).unwrap());
    let (mut losses, mut d_hidden) = (b.reals(rows).unwrap(), b.activations(rows, 1).unwrap());
    b.linear_cross_entropy(&hidden, &head, &targets, &mut losses, Some(&mut d_hidden)).unwrap();
    let (losses, d_hidden) = (b.read_reals(&losses).unwrap(), b.read_activations(&d_hidden).unwrap());
    // Logits are single products: no order of a sum can differ. The gradient's sum may.
    for (row, like) in [(8, 3), (9, 1)] {
        assert_eq!(losses[row], losses[like]);
        assert!((d_hidden[row] - d_hidden[like]).abs() <= d_hidden[like].abs() / 64.0, "{d_hidden:?}");
    }
    assert!(losses[1] != losses[0] && (d_hidden[1] - d_hidden[0]).abs() > d_hidden[0].abs() / 64.0);
}

#[test]
fn dropped_buffers_are_used_again_and_zeroed() {
    let b = backend(Storage::F32);
    b.reserve(4096).unwrap();
    let before = b.memory();
    for len in [1000, 990, 1000, 970] {
        let vector = b.upload_reals(&vec![7.0; len]).unwrap();
        drop(vector);
        assert!(b.read_reals(&b.reals(len).unwrap()).unwrap().iter().all(|&value| value == 0.0));
    }
    let after = b.memory();
    assert_eq!(after.in_use, before.in_use);
    assert_eq!(after.allocated, before.allocated);
    assert!(after.peak > before.in_use);
}

/// So that a checker of accesses sees one to a buffer that is gone, or beside one that is not.
#[test]
fn unreserved_memory_is_taken_and_given_back_buffer_by_buffer() {
    let b = backend(Storage::F32);
    let before = b.memory();
    for len in [1, 64, 65, 100_000] {
        let vector = b.reals(len).unwrap();
        let taken = b.memory().allocated - before.allocated;
        assert!((len * 4..len * 4 + 256).contains(&taken), "{len} elements: {taken} bytes");
        drop(vector);
        assert_eq!(b.memory().allocated, before.allocated);
    }
}

/// Buffers of ever new sizes, a few of them alive at a time.
#[test]
fn ever_new_sizes_take_no_more_than_was_reserved() {
    let b = backend(Storage::F32);
    b.reserve(16 << 20).unwrap();
    let (reserved, mut live) = (b.memory().allocated, Vec::new());
    for size in 1..40 {
        live.push(b.upload_reals(&vec![size as f32; size * 9973]).unwrap());
        live.rotate_left(size % 3);
        live.truncate(5);
    }
    assert_eq!(b.memory().allocated, reserved);
    assert!(live.iter().all(|vector| b.read_reals(vector).unwrap().windows(2).all(|pair| pair[0] == pair[1])));
    // What does not fit takes more, once.
    for _ in 0..2 {
        drop(b.reals(5 << 20).unwrap());
    }
    let memory = b.memory();
    assert!(memory.allocated > reserved && memory.allocated <= 2 * memory.peak, "{memory:?}");
}

#[test]
fn a_buffer_too_large_is_an_error_that_says_what_for() {
    let b = backend(Storage::F32);
    assert!(matches!(b.reals(1 << 45), Err(KernelError::OutOfMemory { requested, .. }) if requested >= 1 << 47));
    // And the backend goes on.
    assert_eq!(b.read_reals(&b.upload_reals(&[1.0]).unwrap()).unwrap(), [1.0]);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = CudaBackend::new(4096, Storage::F32).unwrap_err().to_string();
    assert!(error.contains("cuda:4096"), "{error}");
}

#[test]
fn the_probe_names_the_device() {
    let probe = probe();
    assert!(probe.failure.is_none(), "{probe:?}");
    assert!(probe.driver.is_some_and(|version| version >= (12, 0)) && probe.cublaslt.is_some(), "{probe:?}");
    let device = &probe.devices[0];
    assert!(device.capability >= (8, 0) && device.memory > 0 && !device.name.is_empty(), "{device:?}");
    let arithmetic = backend(Storage::Bf16).arithmetic().unwrap();
    assert!(arithmetic.contains("bf16") && arithmetic.contains(&device.name), "{arithmetic}");
}
