//! Exponential, sigmoid and logarithm without the system's libm, whose bits differ between machines.

/// Above this, exp overflows to infinity.
const HIGHEST: f32 = 89.0;
/// Below this, exp rounds to zero.
const LOWEST: f32 = -104.0;
/// 1.5 * 2^23: adding it rounds to an integer, held in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts; the product of the first with any exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`: `2^n * e^r` with `|r| <= ln 2 / 2` and the Taylor polynomial of degree 7, whose remainder is below 6e-9.
/// Within 2 units in the last place over all f32, subnormal results within one subnormal step; `exp(NaN)` is NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons and not min/max: those would lose a NaN.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    // In two factors: 2^-150 and 2^128 are no f32.
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    let half = exponent >> 1;
    p * power_of_two(half) * power_of_two(exponent.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Natural logarithm in f64, by the series of `atanh`. Relative error below 1e-15; for positive finite `x`, else what
/// the mathematics say.
pub(crate) fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let x_normal = if x < f64::MIN_POSITIVE { x * 18_014_398_509_481_984.0 } else { x };
    let mut exponent =
        ((x_normal.to_bits() >> 52) as i64 - 1023) as f64 - if x < f64::MIN_POSITIVE { 54.0 } else { 0.0 };
    let mut mantissa = f64::from_bits((x_normal.to_bits() & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (0..12).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    exponent * std::f64::consts::LN_2 + 2.0 * s * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_everywhere() {
        let mut worst = 0.0_f64;
        // Every 1009th bit pattern of all f32, NaNs and infinities included.
        for bits in (0..=u32::MAX).step_by(1009) {
            let x = f32::from_bits(bits);
            let (got, want) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(got.is_nan());
            } else if want > f64::from(f32::MAX) {
                // The last finite value before overflow may round either way.
                assert!(got == f32::INFINITY || want < f64::from(f32::MAX) * (1.0 + 1e-6), "{x} {got}");
            } else if want < f64::from(f32::MIN_POSITIVE) {
                assert!((f64::from(got) - want).abs() <= 1.5e-45, "{x} {got} {want}");
            } else {
                let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
                if got.is_finite() {
                    worst = worst.max((f64::from(got) - want).abs() / ulp);
                } else {
                    assert!(want > f64::from(f32::MAX) * (1.0 - 2e-7), "{x}");
                }
            }
        }
        assert!(worst <= 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_its_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(1e-40), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    #[test]
    fn ln_agrees_with_the_standard_library() {
        let mut x = 5e-324_f64;
        while x < 1e308 {
            let want = x.ln();
            assert!((ln(x) - want).abs() <= 4e-16 * want.abs().max(1.0), "{x:e}: {} {want}", ln(x));
            x *= 1.37;
            x = x.max(1e-323);
        }
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sigmoid_saturates() {
        assert_eq!(sigmoid(200.0), 1.0);
        assert_eq!(sigmoid(-200.0), 0.0);
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
