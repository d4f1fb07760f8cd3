//! Instructions that touch registers only.

use super::{
    LANES,
    approximate::Perturbation,
    compare::{compare, logic},
    convert::convert,
    float::{float32, float64},
    half::{half, pack},
    integer::{int16, int32, int64, lop3},
    lanes,
    registers::{Registers, map},
};
use crate::ir::{Op, Slot};

/// Executes `op` in the lanes of `mask`; `false` if it is not an instruction of this kind.
pub(crate) fn execute(op: &Op, registers: &mut Registers, mask: u32, carry: Slot, perturbation: Perturbation) -> bool {
    match *op {
        Op::Int32 { op, d, ref s } => int32(registers, op, d, s, mask),
        Op::Int64 { op, d, ref s } => int64(registers, op, d, s, mask),
        Op::Int16 { op, signed, d, ref s } => int16(registers, op, signed, d, s, mask),
        Op::Float32 { op, mode, d, ref s } => float32(registers, op, mode, d, s, mask, perturbation),
        Op::Float64 { op, d, ref s } => float64(registers, op, d, s, mask),
        Op::Half { op, element, packed, d, ref s } => half(registers, (op, element, packed), d, s, mask),
        Op::Convert { ref conversion, d, a } => convert(registers, conversion, d, a, mask),
        Op::Mov32 { d, a } => {
            let row = *registers.get32(a);
            registers.set32(d, &row, mask);
        }
        Op::Mov64 { d, a } => {
            let row = *registers.get64(a);
            registers.set64(d, &row, mask);
        }
        Op::Select32 { d, a, b, p, negated } => {
            let chosen = registers.predicate(p, negated);
            let (mut row, first) = (*registers.get32(b), *registers.get32(a));
            super::registers::merge(&mut row, &first, chosen);
            registers.set32(d, &row, mask);
        }
        Op::Select64 { d, a, b, p, negated } => {
            let chosen = registers.predicate(p, negated);
            let (mut row, first) = (*registers.get64(b), *registers.get64(a));
            super::registers::merge(&mut row, &first, chosen);
            registers.set64(d, &row, mask);
        }
        Op::SetPredicate { compare: ref comparison, p, q } => {
            let (holds, fails) = compare(registers, comparison);
            if let Some(p) = p {
                registers.set_predicate(p, holds, mask);
            }
            if let Some(q) = q {
                registers.set_predicate(q, fails, mask);
            }
        }
        Op::SetRegister { compare: ref comparison, value, d } => {
            let (holds, _) = compare(registers, comparison);
            let row = std::array::from_fn(|lane| if holds >> lane & 1 == 1 { value } else { 0 });
            registers.set32(d, &row, mask);
        }
        Op::Logic { op, d, a, b, negate_a, negate_b } => {
            let bits = logic(op, registers.predicate(a, negate_a), registers.predicate(b, negate_b));
            registers.set_predicate(d, bits, mask);
        }
        Op::Lop3 { table, d, s } => {
            let rows = s.map(|slot| registers.get32(slot));
            let row = map(rows, |[a, b, c]| lop3(table, a, b, c));
            registers.set32(d, &row, mask);
        }
        _ => return composite(op, registers, mask, carry),
    }
    true
}

/// Instructions that mix widths.
fn composite(op: &Op, registers: &mut Registers, mask: u32, carry: Slot) -> bool {
    match *op {
        Op::Wide { signed, d, a, b, c } => {
            let (a, b) = (*registers.get32(a), *registers.get32(b));
            let mut row = match signed {
                true => map([&a, &b], |[a, b]| (i64::from(a as i32) * i64::from(b as i32)) as u64),
                false => map([&a, &b], |[a, b]| u64::from(a) * u64::from(b)),
            };
            if let Some(c) = c {
                row = map([&row, registers.get64(c)], |[product, c]| product.wrapping_add(c));
            }
            registers.set64(d, &row, mask);
        }
        Op::Carry { wide, subtract, carry_in, carry_out, d, a, b } => {
            let bits = if wide { 64 } else { 32 };
            let incoming = registers.predicates[carry as usize];
            let mut outgoing = incoming;
            for lane in lanes(mask) {
                let (a, b) = (registers.lane(wide, a, lane), registers.lane(wide, b, lane));
                let flag = u128::from(carry_in && incoming >> lane & 1 == 1);
                // A borrow shows as bits above the width.
                let sum = match subtract {
                    true => u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(flag),
                    false => u128::from(a) + u128::from(b) + flag,
                };
                registers.set_lane(wide, d, lane, sum as u64);
                let carried = u32::from(sum >> bits != 0);
                outgoing = outgoing & !(1 << lane) | carried << lane;
            }
            if carry_out {
                registers.predicates[carry as usize] = outgoing;
            }
        }
        Op::ConvertPair { element, rounding, relu, d, a, b } => {
            let (a, b) = (*registers.get32(a), *registers.get32(b));
            let row = map([&a, &b], |[a, b]| pack(element, rounding, relu, f32::from_bits(a), f32::from_bits(b)));
            registers.set32(d, &row, mask);
        }
        Op::Pack { wide, d, part_bits, ref parts } => {
            for lane in lanes(mask) {
                let value = parts.iter().rev().fold(0, |value, &part| {
                    value << part_bits | registers.lane(false, part, lane) & ((1 << part_bits) - 1)
                });
                registers.set_lane(wide, d, lane, value);
            }
        }
        Op::Unpack { wide, a, part_bits, ref parts } => {
            // The source may be one of the parts.
            let values: [u64; LANES] = std::array::from_fn(|lane| registers.lane(wide, a, lane));
            for (at, part) in parts.iter().enumerate() {
                let Some(part) = *part else { continue };
                for lane in lanes(mask) {
                    let value = values[lane] >> (at as u32 * part_bits) & ((1 << part_bits) - 1);
                    registers.set_lane(false, part, lane, value);
                }
            }
        }
        Op::Nothing => {}
        _ => return false,
    }
    true
}
