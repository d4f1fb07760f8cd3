//! One suite for every backend: each operation against the f64 [`crate::reference`], at ragged shapes.
//!
//! A family of operations is a function that runs its cases on a backend and returns [`Comparison`]s;
//! [`crate::conformance_suite`] makes a test of each. Inputs are read back from the device before the reference sees
//! them, so a backend that stores bf16 is judged on its arithmetic alone: see [`Precision`].

// A failed expectation of the suite is a failed test of its user.
#![allow(clippy::panic)]

mod attention;
mod contract_errors;
mod decoding;
mod device;
mod exact;
mod gated;
mod head;
mod linear;
mod norm;
mod optimizer;
mod plain;
mod rotary;
mod rows;
mod source;

pub use device::{skip_without_devices, skip_without_our_device};
pub use source::Source;

use crate::Backend;

/// What a backend stores activations and frozen weights in, and so how near the reference it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32: each output within its own number of roundings of f32.
    F32,
    /// bf16: each output within twice the distance of a straightforward bf16 implementation, besides its roundings of
    /// f32.
    Bf16,
}

/// Unit roundoff of f32.
const F32_ROUNDING: f64 = 6e-8;
/// Unit roundoff of bf16.
const BF16_ROUNDING: f64 = 1.0 / 256.0;
/// An output of fewer elements may be rounded luckily by one implementation and not by another.
const FEW: usize = 64;

/// What a backend gave for one output of one case, and what it should have given.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Operation, output and case.
    pub what: String,
    /// The backend's values.
    pub got: Vec<f32>,
    /// The reference's.
    pub want: Vec<f64>,
    /// Admissible distance, in units of f32's rounding error.
    pub units: f64,
    /// What a straightforward bf16 implementation gives.
    pub plain: Vec<f64>,
}

impl Comparison {
    /// An output in the backend's storage type. The straightforward implementation rounds it once.
    fn stored(what: impl Into<String>, got: Vec<f32>, want: Vec<f64>, units: f64) -> Self {
        let plain = plain::rounded(&want);
        Self { what: what.into(), got, want, units, plain }
    }

    /// An output in f32, which the straightforward implementation gets right.
    fn real(what: impl Into<String>, got: Vec<f32>, want: Vec<f64>, units: f64) -> Self {
        let plain = want.clone();
        Self { what: what.into(), got, want, units, plain }
    }

    /// The same, where the straightforward implementation gives `plain`.
    fn plainly(self, plain: Vec<f64>) -> Self {
        Self { plain, ..self }
    }

    /// The admissible distance.
    #[must_use]
    pub fn bound(&self, precision: Precision) -> f64 {
        let roundings = self.units * F32_ROUNDING;
        if precision == Precision::F32 || self.plain == self.want {
            return roundings;
        }
        let plain = relative_error(self.plain.iter().copied(), &self.want);
        let least = if self.want.len() < FEW { BF16_ROUNDING } else { 0.0 };
        roundings + 2.0 * plain.max(least)
    }

    /// Panics unless the distance is at most the [`Comparison::bound`].
    pub fn check(&self, precision: Precision) {
        let (distance, bound) = (distance(&self.got, &self.want), self.bound(precision));
        // Written so that a NaN fails.
        assert!(distance <= bound, "{}: {distance:e} > {bound:e}", self.what);
    }
}

/// `‖got - want‖ / ‖want‖`; NaN when either holds one, infinite when the lengths differ or only `want` is all zero.
#[must_use]
pub fn distance(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    relative_error(got.iter().map(|&got| f64::from(got)), want)
}

fn relative_error(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    let error: f64 = got.zip(want).map(|(got, want)| (got - want).powi(2)).sum();
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

/// The same, at shapes that a slow device computes in seconds.
#[must_use]
pub fn short_families<B: Backend>() -> Vec<(&'static str, Family<B>)> {
    let short = |(name, family): (&'static str, Family<B>)| match name {
        "attention" => (name, attention::compare_short as Family<B>),
        "head" => (name, head::compare_short as Family<B>),
        "linear" => (name, linear::compare_short as Family<B>),
        _ => (name, family),
    };
    families().into_iter().map(short).collect()
}

/// Checks one family.
///
/// # Panics
/// When the family is unknown or a value is off.
pub fn check_family<B: Backend>(backend: &B, name: &str, precision: Precision) {
    check_one_of(&families::<B>(), backend, name, precision);
}

/// The same for one of [`short_families`].
///
/// # Panics
/// As [`check_family`].
pub fn check_short_family<B: Backend>(backend: &B, name: &str, precision: Precision) {
    check_one_of(&short_families::<B>(), backend, name, precision);
}

fn check_one_of<B: Backend>(families: &[(&str, Family<B>)], backend: &B, name: &str, precision: Precision) {
    let (_, family) = families.iter().find(|(known, _)| *known == name).expect("a known family");
    let comparisons = family(backend);
    assert!(!comparisons.is_empty());
    comparisons.iter().for_each(|comparison| comparison.check(precision));
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
/// `$precision` its [`conformance::Precision`].
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $backend:expr, $precision:expr) => {
        mod $module {
            use super::*;
            $crate::conformance_suite!(@families $backend, $precision;
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
    (@families $backend:expr, $precision:expr; $($family:ident)*) => {$(
        #[test]
        fn $family() {
            $crate::conformance::check_family(&$backend, stringify!($family), $precision);
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
            let comparison = Comparison::real("test", got, want.clone(), 10.0);
            std::panic::catch_unwind(move || comparison.check(Precision::F32)).is_ok()
        };
        assert!(check(vec![1.0, 2.0, 3.0]));
        assert!(!check(vec![1.0, 2.0, 3.001]));
        assert!(!check(vec![1.0, f32::NAN, 3.0]));
        assert!(!check(vec![1.0, 2.0]));
        assert!(!check(vec![f32::INFINITY, 2.0, 3.0]));
        assert!(distance(&[1.0], &[0.0]).is_infinite());
        assert!(distance(&[f32::NAN], &[f64::NAN]).is_nan());
    }

    #[test]
    fn a_bf16_backend_may_round_twice_as_badly_and_no_worse() {
        let want: Vec<f64> = (0..1000).map(|i| 1.0 + f64::from(i) / 1000.0).collect();
        let off = |factor: f64| -> Vec<f32> {
            want.iter().map(|want| (want + factor * (plain::round(*want) - want)) as f32).collect()
        };
        let fits = |got: Vec<f32>, precision| {
            let comparison = Comparison::stored("test", got, want.clone(), 2.0);
            distance(&comparison.got, &comparison.want) <= comparison.bound(precision)
        };
        assert!(fits(off(1.9), Precision::Bf16) && !fits(off(2.1), Precision::Bf16));
        assert!(fits(off(0.0), Precision::F32) && !fits(off(0.01), Precision::F32));
    }
}
