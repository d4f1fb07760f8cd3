//! Fixed point and the optimizer.

use crate::{AdamW, FLAG_NOT_FINITE};

/// `Ok(round(value * 2^exponent))`, ties to even; `Err(flag)` when it exceeds `2^limit_bits`: by how many powers of two,
/// or [`FLAG_NOT_FINITE`]. In integers alone.
///
/// # Errors
/// The flag.
pub fn to_fixed(value: f32, exponent: i32, limit_bits: u32) -> Result<i64, i64> {
    if !value.is_finite() {
        return Err(FLAG_NOT_FINITE);
    }
    // value = significand * 2^power, exactly.
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 23 & 0xff) as i32, i128::from(bits & 0x007f_ffff));
    let (significand, power) = if field == 0 { (fraction, -149) } else { (fraction | 1 << 23, field - 150) };
    let sign = if bits >> 31 == 1 { -1 } else { 1 };
    let shift = power + exponent;
    let rounded = match shift {
        _ if significand == 0 => 0,
        0.. if shift < 100 => significand << shift,
        0.. => i128::MAX,
        -30..=-1 => {
            let unit = 1_i128 << -shift;
            let (floor, rest) = (significand / unit, significand % unit);
            let up = 2 * rest > unit || (2 * rest == unit && floor % 2 == 1);
            floor + i128::from(up)
        }
        _ => 0,
    };
    if rounded <= 1_i128 << limit_bits {
        return Ok((sign * rounded) as i64);
    }
    // The exact magnitude lies in (2^(top - 1), 2^top].
    let length = 128 - (significand - 1).leading_zeros() as i32;
    Err(i64::from(length + shift) - i64::from(limit_bits))
}

/// `sum * 2^-exponent / divisor`, rounded once to f32.
#[must_use]
pub fn from_fixed(sum: i64, exponent: i32, divisor: f64) -> f32 {
    (sum as f64 * 2.0_f64.powi(-exponent) / divisor) as f32
}

/// One update of one parameter: the new `(parameter, first moment, second moment)`.
#[must_use]
pub fn adamw(parameter: f64, gradient: f64, first: f64, second: f64, settings: &AdamW) -> (f64, f64, f64) {
    let gradient = gradient * settings.gradient_scale;
    let first = settings.beta1 * first + (1.0 - settings.beta1) * gradient;
    let second = settings.beta2 * second + (1.0 - settings.beta2) * gradient * gradient;
    let t = settings.step as f64;
    let first_unbiased = first / (1.0 - settings.beta1.powf(t));
    let second_unbiased = second / (1.0 - settings.beta2.powf(t));
    let decayed = parameter - settings.learning_rate * settings.weight_decay * parameter;
    let step = settings.learning_rate * first_unbiased / (second_unbiased.sqrt() + settings.epsilon);
    (decayed - step, first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        let cases = [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (0.75, 1), (3.25, 3)];
        for (value, want) in cases {
            assert_eq!(to_fixed(value, 0, 62), Ok(want), "{value}");
            assert_eq!(to_fixed(value * 1024.0, -10, 62), Ok(want), "{value}");
            assert_eq!(to_fixed(value / 1024.0, 10, 62), Ok(want), "{value}");
        }
    }

    #[test]
    fn limits_and_flags() {
        assert_eq!(to_fixed(8.0, 0, 3), Ok(8));
        assert_eq!(to_fixed(8.25, 0, 3), Ok(8));
        assert_eq!(to_fixed(9.0, 0, 3), Err(1));
        assert_eq!(to_fixed(16.0, 0, 3), Err(1));
        assert_eq!(to_fixed(-17.0, 0, 3), Err(2));
        assert_eq!(to_fixed(1.0, 62, 62), Ok(1 << 62));
        assert_eq!(to_fixed(1.0, 63, 62), Err(1));
        assert_eq!(to_fixed(f32::MAX, 0, 62), Err(66));
        assert_eq!(to_fixed(f32::NAN, 0, 62), Err(FLAG_NOT_FINITE));
        assert_eq!(to_fixed(f32::NEG_INFINITY, 0, 62), Err(FLAG_NOT_FINITE));
        assert_eq!(to_fixed(1e-45, 149, 62), Ok(1));
        assert_eq!(to_fixed(1e-45, 0, 62), Ok(0));
    }
}
