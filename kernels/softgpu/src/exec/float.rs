//! f32 and f64 arithmetic.

use super::{
    approximate::{Perturbation, approximate},
    registers::{Registers, Row, map},
    rounding,
};
use crate::ir::{Mode, Rounding, Slot};

/// Canonical NaN of f32 results.
pub(crate) const NAN32: u32 = 0x7FFF_FFFF;

/// Operations on f32 and f64. Those from `DivApprox` on are approximate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Abs,
    Neg,
    CopySign,
    Sqrt,
    Rcp,
    DivApprox,
    SqrtApprox,
    RcpApprox,
    RsqrtApprox,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

impl FloatOp {
    /// Whether the f64 form exists: the exact operations without `.ftz`, and two approximations with it.
    pub(crate) fn is_exact_on_f64(self, ftz: bool) -> bool {
        match self {
            Self::RcpApprox | Self::RsqrtApprox => ftz,
            Self::DivApprox | Self::SqrtApprox | Self::Ex2 | Self::Lg2 | Self::Sin | Self::Cos | Self::Tanh => false,
            _ => !ftz,
        }
    }

    fn is_approximate(self) -> bool {
        matches!(
            self,
            Self::DivApprox
                | Self::SqrtApprox
                | Self::RcpApprox
                | Self::RsqrtApprox
                | Self::Ex2
                | Self::Lg2
                | Self::Sin
                | Self::Cos
                | Self::Tanh
        )
    }
}

/// PTX `min` and `max`: the operand that is a number, and -0 < +0.
macro_rules! extremes {
    ($min:ident, $max:ident, $float:ident) => {
        #[inline(always)]
        fn $min(a: $float, b: $float) -> $float {
            let ordered = a < b || a == b && a.is_sign_negative();
            if b.is_nan() || ordered { a } else { b }
        }

        #[inline(always)]
        fn $max(a: $float, b: $float) -> $float {
            let ordered = a > b || a == b && a.is_sign_positive();
            if b.is_nan() || ordered { a } else { b }
        }
    };
}
extremes!(min32, max32, f32);
extremes!(min64, max64, f64);

pub(crate) fn min(a: f32, b: f32) -> f32 {
    min32(a, b)
}

pub(crate) fn max(a: f32, b: f32) -> f32 {
    max32(a, b)
}

/// Subnormals to zero of the same sign.
pub(crate) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// Clamps to [0, 1]; NaN becomes 0.
pub(crate) fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// One lane, any mode.
fn lane(op: FloatOp, mode: Mode, [a, b, c]: [f32; 3], perturbation: Perturbation) -> f32 {
    let [a, b, c] = if mode.ftz { [flush(a), flush(b), flush(c)] } else { [a, b, c] };
    let (wide_a, wide_b) = (f64::from(a), f64::from(b));
    let rounded = |exact: f64| rounding::to_f32(exact, mode.rounding);
    let nan = f32::from_bits(NAN32);
    let result = match op {
        FloatOp::Add => rounded(rounding::add(wide_a, wide_b)),
        FloatOp::Sub => rounded(rounding::add(wide_a, -wide_b)),
        FloatOp::Mul => rounded(wide_a * wide_b),
        FloatOp::Fma => rounded(rounding::fma(a, b, c)),
        FloatOp::Div => rounded(rounding::div(wide_a, wide_b)),
        FloatOp::Rcp => rounded(rounding::div(1.0, wide_a)),
        FloatOp::Sqrt => rounded(rounding::sqrt(wide_a)),
        FloatOp::Min => min32(a, b),
        FloatOp::Max => max32(a, b),
        FloatOp::MinNan | FloatOp::MaxNan if a.is_nan() || b.is_nan() => nan,
        FloatOp::MinNan => min32(a, b),
        FloatOp::MaxNan => max32(a, b),
        FloatOp::Abs => a.abs(),
        FloatOp::Neg => -a,
        // The first operand gives the sign, the second the magnitude.
        FloatOp::CopySign => b.copysign(a),
        _ => approximate(op, a, b, perturbation),
    };
    let result = if mode.ftz { flush(result) } else { result };
    if mode.sat { saturate(result) } else { result }
}

/// The common operations in the common mode, vectorized.
#[multiversion::multiversion(targets("x86_64+avx2+fma"))]
fn plain(op: FloatOp, s: [&Row<u32>; 3]) -> Option<Row<u32>> {
    let f = f32::from_bits;
    Some(match op {
        FloatOp::Add => map(s, |[a, b, _]| (f(a) + f(b)).to_bits()),
        FloatOp::Sub => map(s, |[a, b, _]| (f(a) - f(b)).to_bits()),
        FloatOp::Mul => map(s, |[a, b, _]| (f(a) * f(b)).to_bits()),
        FloatOp::Fma => map(s, |[a, b, c]| f(a).mul_add(f(b), f(c)).to_bits()),
        FloatOp::Div => map(s, |[a, b, _]| (f(a) / f(b)).to_bits()),
        FloatOp::Rcp => map(s, |[a, ..]| (1.0 / f(a)).to_bits()),
        FloatOp::Sqrt => map(s, |[a, ..]| f(a).sqrt().to_bits()),
        FloatOp::Min => map(s, |[a, b, _]| min32(f(a), f(b)).to_bits()),
        FloatOp::Max => map(s, |[a, b, _]| max32(f(a), f(b)).to_bits()),
        FloatOp::Abs => map(s, |[a, ..]| a & !(1 << 31)),
        FloatOp::Neg => map(s, |[a, ..]| a ^ 1 << 31),
        _ => return None,
    })
}

pub(crate) fn float32(
    registers: &mut Registers,
    op: FloatOp,
    mode: Mode,
    d: Slot,
    s: &[Slot; 3],
    mask: u32,
    perturbation: Perturbation,
) {
    let rows = s.map(|slot| registers.get32(slot));
    let is_plain = mode.rounding == Rounding::NearestEven && !mode.ftz && !mode.sat && !op.is_approximate();
    let fast = if is_plain { plain(op, rows) } else { None };
    let result =
        fast.unwrap_or_else(|| map(rows, |abc| lane(op, mode, abc.map(f32::from_bits), perturbation).to_bits()));
    registers.set32(d, &result, mask);
}

#[multiversion::multiversion(targets("x86_64+avx2+fma"))]
fn rows64(op: FloatOp, s: [&Row<u64>; 3]) -> Row<u64> {
    let f = f64::from_bits;
    match op {
        FloatOp::Add => map(s, |[a, b, _]| (f(a) + f(b)).to_bits()),
        FloatOp::Sub => map(s, |[a, b, _]| (f(a) - f(b)).to_bits()),
        FloatOp::Mul => map(s, |[a, b, _]| (f(a) * f(b)).to_bits()),
        FloatOp::Fma => map(s, |[a, b, c]| f(a).mul_add(f(b), f(c)).to_bits()),
        FloatOp::Div | FloatOp::DivApprox => map(s, |[a, b, _]| (f(a) / f(b)).to_bits()),
        FloatOp::Sqrt | FloatOp::SqrtApprox => map(s, |[a, ..]| f(a).sqrt().to_bits()),
        FloatOp::Rcp => map(s, |[a, ..]| (1.0 / f(a)).to_bits()),
        // The result has the upper 32 bits of an f64 only.
        FloatOp::RcpApprox => map(s, |[a, ..]| (1.0 / f(a)).to_bits() & !0xFFFF_FFFF),
        FloatOp::RsqrtApprox => map(s, |[a, ..]| (1.0 / f(a).sqrt()).to_bits() & !0xFFFF_FFFF),
        FloatOp::Min | FloatOp::MinNan => map(s, |[a, b, _]| min64(f(a), f(b)).to_bits()),
        FloatOp::Max | FloatOp::MaxNan => map(s, |[a, b, _]| max64(f(a), f(b)).to_bits()),
        FloatOp::Neg => map(s, |[a, ..]| a ^ 1 << 63),
        FloatOp::CopySign => map(s, |[a, b, _]| f(b).copysign(f(a)).to_bits()),
        // The decoder lets no other operation through for f64.
        FloatOp::Abs | FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Sin | FloatOp::Cos | FloatOp::Tanh => {
            map(s, |[a, ..]| a & !(1 << 63))
        }
    }
}

pub(crate) fn float64(registers: &mut Registers, op: FloatOp, d: Slot, s: &[Slot; 3], mask: u32) {
    let result = rows64(op, s.map(|slot| registers.get64(slot)));
    registers.set64(d, &result, mask);
}
