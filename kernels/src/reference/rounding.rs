//! What a value becomes when it is stored.

use half::bf16;

/// The precision in which activations and frozen weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// As they are.
    Exact,
    /// To the nearest bf16, ties to even.
    Bf16,
}

impl Rounding {
    /// The value as stored.
    #[must_use]
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::Exact => value,
            Self::Bf16 => bf16::from_f32(to_odd(value)).to_f64(),
        }
    }
}

/// The neighbouring f32, such that rounding it on to fewer bits is rounding the value once: what f32 cannot hold is cut off and
/// leaves its last bit set, which no tie survives (Boldo and Melquiond, "When double rounding is odd", 2005).
/// `bf16::from_f64` drops the low half of an f64 before it looks for ties.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    let wide = f64::from(near);
    if wide == value || !near.is_finite() {
        return near;
    }
    let cut = if wide.abs() > value.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(cut | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_to_once() {
        let round = |value| Rounding::Bf16.round(value);
        let ulp = 1.0 / 128.0;
        for sign in [1.0, -1.0] {
            let tie = sign * (1.0 + ulp / 2.0);
            let (below, above) = (sign, sign * (1.0 + ulp));
            assert_eq!(
                (round(tie), round(sign * (1.0 + 1.5 * ulp))),
                (below, sign * (1.0 + 2.0 * ulp)),
                "ties to even"
            );
            // By a bit of f32, and by one that only f64 has.
            for distance in [2f64.powi(-22), 2f64.powi(-30), 2f64.powi(-50)] {
                assert_eq!(
                    (round(tie - sign * distance), round(tie + sign * distance)),
                    (below, above),
                    "{distance:e}"
                );
            }
        }
        assert_eq!((round(0.0), round(1e300), round(-1e300)), (0.0, f64::INFINITY, f64::NEG_INFINITY));
        assert!(round(f64::NAN).is_nan() && round(1e-60) == 0.0);
        for bits in (0..=u16::MAX).map(bf16::from_bits).filter(|value| value.is_finite()) {
            assert_eq!(round(bits.to_f64()), bits.to_f64());
        }
    }
}
