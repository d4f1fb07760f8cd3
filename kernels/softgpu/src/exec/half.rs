//! f16 and bf16 arithmetic, one or two to a register: computed exactly, rounded once.

use super::{float, registers::Registers, rounding};
use crate::ir::{Element, Rounding, Slot};
use half::{bf16, f16};

/// Operations on 16-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    MinNan,
    MaxNan,
    Abs,
    Neg,
    Ex2,
    Tanh,
}

/// NaN of 16-bit results.
const NAN16: u16 = 0x7FFF;

#[inline(always)]
pub(crate) fn to_f32(element: Element, bits: u16) -> f32 {
    match element {
        Element::Bf16 => f32::from_bits(u32::from(bits) << 16),
        Element::F16 => f16::from_bits(bits).to_f32(),
        Element::Tf32 => f32::from_bits(u32::from(bits)),
    }
}

/// Rounds an f32 to nearest even, or to zero.
#[inline(always)]
pub(crate) fn from_f32(element: Element, value: f32, mode: Rounding) -> u16 {
    if value.is_nan() {
        return NAN16;
    }
    match (element, mode) {
        (Element::F16, Rounding::Zero) => {
            let nearest = f16::from_f32(value);
            let beyond = nearest.to_f32().abs() > value.abs();
            nearest.to_bits() - u16::from(beyond)
        }
        (Element::F16, _) => f16::from_f32(value).to_bits(),
        (_, Rounding::Zero) => (value.to_bits() >> 16) as u16,
        _ => bf16::from_f32(value).to_bits(),
    }
}

fn lane(op: HalfOp, element: Element, [a, b, c]: [u16; 3]) -> u16 {
    let [x, y, z] = [a, b, c].map(|bits| to_f32(element, bits));
    let rounded = |exact: f64| from_f32(element, rounding::to_f32_odd(exact), Rounding::NearestEven);
    match op {
        HalfOp::Add => rounded(rounding::add(f64::from(x), f64::from(y))),
        HalfOp::Sub => rounded(rounding::add(f64::from(x), f64::from(-y))),
        HalfOp::Mul => rounded(f64::from(x) * f64::from(y)),
        HalfOp::Fma => rounded(rounding::fma(x, y, z)),
        HalfOp::MinNan | HalfOp::MaxNan if x.is_nan() || y.is_nan() => NAN16,
        HalfOp::Min | HalfOp::MinNan => from_f32(element, float::min(x, y), Rounding::NearestEven),
        HalfOp::Max | HalfOp::MaxNan => from_f32(element, float::max(x, y), Rounding::NearestEven),
        HalfOp::Abs => a & 0x7FFF,
        HalfOp::Neg => a ^ 0x8000,
        HalfOp::Ex2 => rounded(f64::from(x).exp2()),
        HalfOp::Tanh => rounded(f64::from(x).tanh()),
    }
}

pub(crate) fn half(
    registers: &mut Registers,
    (op, element, packed): (HalfOp, Element, bool),
    d: Slot,
    s: &[Slot; 3],
    mask: u32,
) {
    let [a, b, c] = s.map(|slot| *registers.get32(slot));
    let mut result = [0; 32];
    for at in super::lanes(mask) {
        let words = [a[at], b[at], c[at]];
        let low = u32::from(lane(op, element, words.map(|w| w as u16)));
        let high = if packed { u32::from(lane(op, element, words.map(|w| (w >> 16) as u16))) } else { 0 };
        result[at] = high << 16 | low;
    }
    registers.set32(d, &result, mask);
}

/// `cvt.….x2.f32`: `high` and `low` rounded and packed.
pub(crate) fn pack(element: Element, mode: Rounding, relu: bool, high: f32, low: f32) -> u32 {
    let one = |value: f32| {
        let value = if relu && value < 0.0 { 0.0 } else { value };
        u32::from(from_f32(element, value, mode))
    };
    one(high) << 16 | one(low)
}
