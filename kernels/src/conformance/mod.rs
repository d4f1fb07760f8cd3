//! One suite for every backend: each operation against the f64 [`crate::reference`], at ragged shapes.
//!
//! A family of operations is a function that runs its cases on a backend and returns [`Comparison`]s;
//! [`crate::conformance_suite`] makes a test of each. Inputs are read back from the device before the reference sees
//! them, so a backend that stores bf16 is judged on its arithmetic alone.

// A failed expectation of the suite is a failed test of its user.
#![allow(clippy::panic)]

mod attention;
mod contract_errors;
mod decoding;
mod exact;
mod gated;
mod head;
mod linear;
mod norm;
mod optimizer;
mod rotary;
mod rows;
mod source;

pub use source::Source;

use crate::Backend;

/// What a backend gave for one output of one case, and what it should have given.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Operation, output and case.
    pub what: String,
    /// The backend's values.
    pub got: Vec<f32>,
    /// The reference's.
    pub want: Vec<f64>,
    /// Admissible distance, in units of the backend's rounding error.
    pub units: f64,
}

impl Comparison {
    fn new(what: impl Into<String>, got: Vec<f32>, want: Vec<f64>, units: f64) -> Self {
        Self { what: what.into(), got, want, units }
    }

    /// Panics unless the distance is at most `units * rounding`.
    pub fn check(&self, rounding: f64) {
        let distance = distance(&self.got, &self.want);
        // Written so that a NaN fails.
        assert!(distance <= self.units * rounding, "{}: {distance:e} > {:e}", self.what, self.units * rounding);
    }
}

/// `‖got - want‖ / ‖want‖`; NaN when either holds one, infinite when the lengths differ or only `want` is all zero.
#[must_use]
pub fn distance(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let error: f64 = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).powi(2)).sum();
    let norm: f64 = want.iter().map(|want| want * want).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

/// A family of operations: runs its cases, returns what came out beside what should have.
pub type Family<B> = fn(&B) -> Vec<Comparison>;

/// All families that compute in floating point, by name.
#[must_use]
pub fn families<B: Backend>() -> Vec<(&'static str, Family<B>)> {
    vec![
        ("rows", rows::compare),
        ("norm", norm::compare),
        ("linear", linear::compare),
        ("rotary", rotary::compare),
        ("attention", attention::compare),
        ("decoding", decoding::compare),
        ("gated", gated::compare),
        ("head", head::compare),
        ("optimizer", optimizer::compare),
    ]
}

/// Checks one family; `rounding` is the unit roundoff of the backend's storage type.
///
/// # Panics
/// When the family is unknown or a value is off.
pub fn check_family<B: Backend>(backend: &B, name: &str, rounding: f64) {
    let families = families::<B>();
    let (_, family) = families.iter().find(|(known, _)| *known == name).expect("a known family");
    let comparisons = family(backend);
    assert!(!comparisons.is_empty());
    comparisons.iter().for_each(|comparison| comparison.check(rounding));
}

/// Fixed point: integers, so exact.
pub fn check_fixed_point<B: Backend>(backend: &B) {
    exact::check(backend);
}

/// Operands that do not fit are refused, not computed with.
pub fn check_errors<B: Backend>(backend: &B) {
    contract_errors::check(backend);
}

/// Unwraps a backend's result: a failure is a failed test.
fn ok<T>(result: Result<T, crate::KernelError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Defines a module of tests that hold a backend to the contract: `$backend` is an expression that makes one,
/// `$rounding` the unit roundoff of its storage type.
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $backend:expr, $rounding:expr) => {
        mod $module {
            use super::*;
            $crate::conformance_suite!(@families $backend, $rounding;
                rows norm linear rotary attention decoding gated head optimizer);

            #[test]
            fn fixed_point() {
                $crate::conformance::check_fixed_point(&$backend);
            }

            #[test]
            fn errors() {
                $crate::conformance::check_errors(&$backend);
            }
        }
    };
    (@families $backend:expr, $rounding:expr; $($family:ident)*) => {$(
        #[test]
        fn $family() {
            $crate::conformance::check_family(&$backend, stringify!($family), $rounding);
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_notices_damage() {
        let want = vec![1.0, 2.0, 3.0];
        let check = |got: Vec<f32>| {
            let comparison = Comparison::new("test", got, want.clone(), 1.0);
            std::panic::catch_unwind(move || comparison.check(1e-6)).is_ok()
        };
        assert!(check(vec![1.0, 2.0, 3.0]));
        assert!(!check(vec![1.0, 2.0, 3.001]));
        assert!(!check(vec![1.0, f32::NAN, 3.0]));
        assert!(!check(vec![1.0, 2.0]));
        assert!(!check(vec![f32::INFINITY, 2.0, 3.0]));
        assert!(distance(&[1.0], &[0.0]).is_infinite());
        assert!(distance(&[f32::NAN], &[f64::NAN]).is_nan());
    }
}
