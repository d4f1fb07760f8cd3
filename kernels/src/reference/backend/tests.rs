//! The backend is the reference, but for the narrowing of what is read from it.

use super::super::Rounding;
use super::ReferenceBackend;
use crate::conformance::{Precision, check_errors, check_fixed_point, distance, families};

fn exact() -> ReferenceBackend {
    ReferenceBackend::new(Rounding::Exact)
}

// What is straightforward may not be worse than what the suite takes a straightforward implementation to be.
crate::conformance_suite!(bf16, ReferenceBackend::new(Rounding::Bf16), Precision::Bf16);

/// A result is narrowed to f32 when it is read, and so is what the suite reads and goes on from: the gradient of a norm
/// changes by up to three times as much as its input, that of a cross-entropy by as many roundings as the loss has nats.
#[test]
fn only_narrowing_separates_it_from_its_functions() {
    let narrowing = f64::from(f32::EPSILON) / 2.0;
    for (name, family) in families::<ReferenceBackend>() {
        for comparison in family(&exact()) {
            let distance = distance(&comparison.got, &comparison.want);
            assert!(distance <= 8.0 * narrowing, "{name}: {}: {distance:e}", comparison.what);
        }
    }
}

#[test]
fn fixed_point() {
    check_fixed_point(&exact());
}

#[test]
fn errors() {
    check_errors(&exact());
}
