//! The backend is the reference, but for the narrowing of what is read from it.

use super::super::Rounding;
use super::ReferenceBackend;
use crate::conformance::{Precision, check_errors, check_fixed_point, distance, families};

fn exact() -> ReferenceBackend {
    ReferenceBackend::new(Rounding::Exact)
}

// What is straightforward may not be worse than what the suite takes a straightforward implementation to be.
crate::conformance_suite!(bf16, ReferenceBackend::new(Rounding::Bf16), Precision::Bf16);

/// A result is narrowed to f32 when it is read: half a unit in the last place, and nothing else.
#[test]
fn only_narrowing_separates_it_from_its_functions() {
    let narrowing = f64::from(f32::EPSILON) / 2.0;
    for (name, family) in families::<ReferenceBackend>() {
        for comparison in family(&exact()) {
            let (distance, what) = (distance(&comparison.got, &comparison.want), &comparison.what);
            assert!(distance <= roundings(what) * narrowing, "{name}: {what}: {distance:e}");
        }
    }
}

/// Roundings between a result and what it is compared with. Two comparisons compute theirs from what the suite has read, and
/// so narrowed, before: the gradient of a cross-entropy from the losses, whose roundings are as many as they have nats, and
/// that of a norm of a single element, a difference of nearly equal terms, from the residual sum.
fn roundings(what: &str) -> f64 {
    match what {
        what if what.starts_with("d_hidden by its losses") => 8.0,
        what if what.starts_with("rms_norm_backward [1, 1 x 1]") => 3.0,
        _ => 1.0,
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
