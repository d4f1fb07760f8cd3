//! `setp` and `set`.

use super::{
    LANES,
    float::flush,
    half::to_f32,
    registers::{Registers, Row},
};
use crate::ir::{BoolOp, Cmp, Compare, Element, Ty};
use std::cmp::Ordering;

/// Whether `cmp` holds between two values in that order; `None` if one is NaN.
#[inline(always)]
fn holds(cmp: Cmp, order: Option<Ordering>) -> bool {
    match (cmp, order) {
        (Cmp::Num, order) => order.is_some(),
        (Cmp::Nan, order) => order.is_none(),
        (Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu, None) => true,
        (_, None) => false,
        (Cmp::Eq | Cmp::Equ, Some(order)) => order.is_eq(),
        (Cmp::Ne | Cmp::Neu, Some(order)) => order.is_ne(),
        (Cmp::Lt | Cmp::Ltu, Some(order)) => order.is_lt(),
        (Cmp::Le | Cmp::Leu, Some(order)) => order.is_le(),
        (Cmp::Gt | Cmp::Gtu, Some(order)) => order.is_gt(),
        (Cmp::Ge | Cmp::Geu, Some(order)) => order.is_ge(),
    }
}

/// The lanes where `cmp` holds; `f` reads a value.
#[inline(always)]
fn bits<T: Copy, V: PartialOrd>(cmp: Cmp, a: &Row<T>, b: &Row<T>, f: impl Fn(T) -> V) -> u32 {
    let mut result = 0;
    for lane in 0..LANES {
        result |= u32::from(holds(cmp, f(a[lane]).partial_cmp(&f(b[lane])))) << lane;
    }
    result
}

/// Lanes where the comparison holds, and lanes where it does not, each combined with the predicate.
pub(crate) fn compare(registers: &Registers, compare: &Compare) -> (u32, u32) {
    let &Compare { cmp, ty, a, b, ftz, .. } = compare;
    let found = if ty.bits() == 64 {
        let (a, b) = (registers.get64(a), registers.get64(b));
        match ty {
            Ty::F64 => bits(cmp, a, b, f64::from_bits),
            Ty::S64 => bits(cmp, a, b, |v| v as i64),
            _ => bits(cmp, a, b, |v| v),
        }
    } else {
        let (a, b) = (registers.get32(a), registers.get32(b));
        match ty {
            Ty::F32 if ftz => bits(cmp, a, b, |v| flush(f32::from_bits(v))),
            Ty::F32 => bits(cmp, a, b, f32::from_bits),
            Ty::F16 => bits(cmp, a, b, |v| to_f32(Element::F16, v as u16)),
            Ty::Bf16 => bits(cmp, a, b, |v| to_f32(Element::Bf16, v as u16)),
            Ty::S32 => bits(cmp, a, b, |v| v as i32),
            Ty::S16 => bits(cmp, a, b, |v| v as i16),
            Ty::U16 => bits(cmp, a, b, |v| v as u16),
            _ => bits(cmp, a, b, |v| v),
        }
    };
    let Some((op, c, negated)) = compare.combine else { return (found, !found) };
    let c = registers.predicate(c, negated);
    (logic(op, found, c), logic(op, !found, c))
}

pub(crate) fn logic(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}
