//! Approximate f32 instructions: the exact value rounded once, or moved within the documented error.

use super::float::FloatOp;

/// Seed of the perturbation; `None` leaves results as near as f32 can be.
pub(crate) type Perturbation = Option<u64>;

/// Error bound of an instruction, from the PTX ISA.
enum Bound {
    Relative(f64),
    Absolute(f64),
}

fn bound(op: FloatOp, value: f64) -> Bound {
    let ulp = 2.0_f64.powi(-23);
    match op {
        FloatOp::DivApprox => Bound::Relative(2.0 * ulp),
        FloatOp::RcpApprox => Bound::Relative(ulp),
        FloatOp::SqrtApprox => Bound::Relative(ulp),
        FloatOp::RsqrtApprox => Bound::Relative(2.0_f64.powf(-22.9)),
        FloatOp::Ex2 => Bound::Relative(2.0_f64.powi(-22)),
        // Relative outside (1/2, 2), absolute within.
        FloatOp::Lg2 if value.abs() < 1.0 => Bound::Absolute(2.0_f64.powi(-22)),
        FloatOp::Lg2 => Bound::Relative(2.0_f64.powi(-22)),
        FloatOp::Sin | FloatOp::Cos => Bound::Absolute(2.0_f64.powf(-20.5)),
        _ => Bound::Relative(2.0_f64.powi(-11)),
    }
}

/// The result of `op` on `a` (and `b` for a division).
pub(crate) fn approximate(op: FloatOp, a: f32, b: f32, perturbation: Perturbation) -> f32 {
    let (x, y) = (f64::from(a), f64::from(b));
    let exact = match op {
        FloatOp::DivApprox => x / y,
        FloatOp::SqrtApprox => x.sqrt(),
        FloatOp::RcpApprox => 1.0 / x,
        FloatOp::RsqrtApprox => 1.0 / x.sqrt(),
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        _ => x.tanh(),
    };
    let Some(seed) = perturbation else { return exact as f32 };
    // 2^±0 is exactly 1 by the PTX ISA.
    if !exact.is_finite() || exact == 0.0 || (x == 0.0 && matches!(op, FloatOp::Ex2)) {
        return exact as f32;
    }
    let bits = splitmix(seed ^ u64::from(a.to_bits()) << 32 ^ u64::from(b.to_bits()) ^ (op as u64) << 56);
    // Half a unit of the last place is left for the rounding to f32.
    let unit = (bits >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0;
    let half_ulp = exact.abs() * 2.0_f64.powi(-24);
    let error = match bound(op, exact) {
        Bound::Relative(relative) => relative * exact.abs(),
        Bound::Absolute(absolute) => absolute,
    };
    (exact + unit * (error - half_ulp).max(0.0)) as f32
}

/// One step of the splitmix64 generator (Steele, Lea, Flood 2014): a good hash of 64 bits.
pub(crate) fn splitmix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
