//! Correct rounding in every direction, through f64.
//!
//! A result is first had as an f64 rounded to odd: truncated, with the last bit set if anything was cut off. Rounding
//! that to a format with at least two bits less gives what rounding the exact result would have given (Boldo and
//! Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).

use crate::ir::Rounding;

/// The sum of two f64 and what its rounding left over (Knuth's two-sum).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// `nearest`, the nearest f64 to a value that differs from it by something of the sign of `rest`, rounded to odd.
fn to_odd(nearest: f64, rest: f64) -> f64 {
    if !nearest.is_finite() || rest == 0.0 || rest.is_nan() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    if rest > 0.0 { nearest.next_up() } else { nearest.next_down() }
}

/// `a + b`, rounded to odd.
pub(crate) fn add(a: f64, b: f64) -> f64 {
    let (sum, rest) = two_sum(a, b);
    to_odd(sum, rest)
}

/// `a * b + c` of f32 values (their product is exact in f64), rounded to odd.
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f64 {
    add(f64::from(a) * f64::from(b), f64::from(c))
}

/// `a / b`, rounded to odd.
pub(crate) fn div(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a);
    to_odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// The square root, rounded to odd.
pub(crate) fn sqrt(a: f64) -> f64 {
    let root = a.sqrt();
    to_odd(root, (-root).mul_add(root, a))
}

/// An integer, rounded to odd.
pub(crate) fn integer(value: i128) -> f64 {
    let nearest = value as f64;
    let rest = value - nearest as i128;
    to_odd(nearest, rest as f64)
}

/// To f32 in the given direction.
pub(crate) fn to_f32(value: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    match rounding {
        Rounding::Down if back > value => nearest.next_down(),
        Rounding::Up if back < value => nearest.next_up(),
        Rounding::Zero if back.abs() > value.abs() => f32::from_bits(nearest.to_bits() - 1),
        _ => nearest,
    }
}

/// To f32, rounded to odd, for a second rounding to 16 bits.
pub(crate) fn to_f32_odd(value: f64) -> f32 {
    let truncated = to_f32(value, Rounding::Zero);
    let exact = value.is_nan() || f64::from(truncated) == value;
    if exact { truncated } else { f32::from_bits(truncated.to_bits() | 1) }
}

/// To a whole number.
pub(crate) fn to_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}
