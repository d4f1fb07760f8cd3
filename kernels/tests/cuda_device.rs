//! Results under what a GPU may do otherwise than the software device does by default: other roundings of approximate
//! instructions, other orders of the sums of tensor cores, other orders of warps and of streams.
//!
//! Each run is a process of its own, because the device reads its settings when it starts. They are settings of our device
//! (kernels/softgpu/README.md): where `BALLAST_TEST_DEVICE` says that another one is there, there is nothing to test.
#![cfg(all(feature = "cuda", feature = "reference"))]
// What is written to stderr itself goes past the harness, which keeps the output of a test that passes.
#![allow(clippy::unwrap_used, clippy::explicit_write)]

use ballast_kernels::conformance::{Comparison, Precision, short_families, skip_without_our_device};
use ballast_kernels::cuda::{CudaBackend, Storage};
use std::io::Write as _;
use std::process::Command;

/// Families that take a second or two.
const QUICK: [&str; 5] = ["rows", "norm", "rotary", "gated", "optimizer"];
/// Begins the line on which a run says what its results were.
const DIGEST: &str = "digest of all results: ";

/// FNV-1a of the bits of all values.
fn digest<'a>(comparisons: impl Iterator<Item = &'a Comparison>) -> u64 {
    let bytes = comparisons.flat_map(|comparison| &comparison.got).flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Checks families in both storage types and prints the digest of their results.
fn check(wanted: impl Fn(&str) -> bool) {
    let mut all = Vec::new();
    for (storage, precision) in [(Storage::F32, Precision::F32), (Storage::Bf16, Precision::Bf16)] {
        let backend = CudaBackend::new(0, storage).unwrap();
        for (_, family) in short_families::<CudaBackend>().iter().filter(|(name, _)| wanted(name)) {
            let comparisons = family(&backend);
            comparisons.iter().for_each(|comparison| comparison.check(precision));
            all.extend(comparisons);
        }
    }
    println!("{DIGEST}{:016x}", digest(all.iter()));
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn all_families() {
    check(|_| true);
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn quick_families() {
    check(|name| QUICK.contains(&name));
}

/// Runs one of the two above with these settings of the device, must see it pass, and returns its digest.
fn run(test: &str, scheduler: &str, seed: u64, perturb: bool) -> String {
    let settings = format!("SOFTGPU_SCHED={scheduler} SOFTGPU_SEED={seed} SOFTGPU_PERTURB={}", u8::from(perturb));
    println!("{test} with {settings}");
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(settings.split(' ').map(|setting| setting.split_once('=').unwrap()))
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{test} with {settings}:\n{said}\n{complained}");
    let (_, digest) = said.split_once(DIGEST).expect("a run that passed prints its digest");
    digest.lines().next().unwrap().to_owned()
}

/// `BALLAST_TEST_SEED` chooses the perturbation; `make test-cuda` takes another for every commit.
#[test]
fn perturbed_results_stay_within_their_bounds() {
    if skip_without_our_device() {
        return;
    }
    let seed = std::env::var("BALLAST_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    writeln!(std::io::stderr(), "perturbed with BALLAST_TEST_SEED={seed}").unwrap();
    run("all_families", "lazy", seed, true);
    let (plain, moved) = (run("quick_families", "lazy", seed, false), run("quick_families", "lazy", seed, true));
    assert_ne!(plain, moved, "the device perturbs nothing");
}

#[test]
fn bits_do_not_depend_on_the_order_of_work() {
    if skip_without_our_device() {
        return;
    }
    let lazy = run("quick_families", "lazy", 0, false);
    assert_eq!(lazy, run("quick_families", "eager", 0, false), "eager streams");
    assert_eq!(lazy, run("quick_families", "eager", 7, false), "eager streams, other warps first");
}
