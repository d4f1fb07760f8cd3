//! Integer arithmetic and bit operations.

use super::registers::{Registers, Row, map};
use crate::ir::Slot;

/// Operations on integers; `S` and `U` are the signed and the unsigned form where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    AddSat,
    SubSat,
    MulLo,
    MulHiS,
    MulHiU,
    MadLo,
    MadHiS,
    MadHiU,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    Abs,
    Neg,
    SadS,
    SadU,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    ShrS,
    ShrU,
    BfeS,
    BfeU,
    Bfi,
    Brev,
    Popc,
    Clz,
    /// Position of the highest bit that differs from the sign; `Shift`: the left shift that brings it to the top.
    FindS,
    FindU,
    FindShiftS,
    FindShiftU,
    Prmt,
    FunnelLeftWrap,
    FunnelLeftClamp,
    FunnelRightWrap,
    FunnelRightClamp,
}

/// Both widths of every operation, from one text.
macro_rules! arithmetic {
    ($name:ident, $u:ident, $s:ident, $uu:ident, $ss:ident) => {
        /// The result in one lane.
        #[inline(always)]
        pub(crate) fn $name(op: IntOp, [a, b, c, e]: [$u; 4]) -> $u {
            const BITS: u32 = $u::BITS;
            let (sa, sb) = (a as $s, b as $s);
            let high_u = |a: $u, b: $u| ((a as $uu * b as $uu) >> BITS) as $u;
            let high_s = |a: $s, b: $s| ((a as $ss * b as $ss) >> BITS) as $u;
            match op {
                IntOp::Add => a.wrapping_add(b),
                IntOp::Sub => a.wrapping_sub(b),
                IntOp::AddSat => sa.saturating_add(sb) as $u,
                IntOp::SubSat => sa.saturating_sub(sb) as $u,
                IntOp::MulLo => a.wrapping_mul(b),
                IntOp::MulHiS => high_s(sa, sb),
                IntOp::MulHiU => high_u(a, b),
                IntOp::MadLo => a.wrapping_mul(b).wrapping_add(c),
                IntOp::MadHiS => high_s(sa, sb).wrapping_add(c),
                IntOp::MadHiU => high_u(a, b).wrapping_add(c),
                // The result of a division by zero is unspecified; GPUs give all ones.
                IntOp::DivS => {
                    if b == 0 {
                        $u::MAX
                    } else {
                        sa.wrapping_div(sb) as $u
                    }
                }
                IntOp::DivU => a.checked_div(b).unwrap_or($u::MAX),
                IntOp::RemS => {
                    if b == 0 {
                        a
                    } else {
                        sa.wrapping_rem(sb) as $u
                    }
                }
                IntOp::RemU => a.checked_rem(b).unwrap_or(a),
                IntOp::MinS => sa.min(sb) as $u,
                IntOp::MinU => a.min(b),
                IntOp::MaxS => sa.max(sb) as $u,
                IntOp::MaxU => a.max(b),
                IntOp::Abs => sa.wrapping_abs() as $u,
                IntOp::Neg => a.wrapping_neg(),
                IntOp::SadS => c.wrapping_add(sa.abs_diff(sb)),
                IntOp::SadU => c.wrapping_add(a.abs_diff(b)),
                IntOp::And => a & b,
                IntOp::Or => a | b,
                IntOp::Xor => a ^ b,
                IntOp::Not => !a,
                IntOp::Cnot => $u::from(a == 0),
                // Amounts beyond the width shift everything out.
                IntOp::Shl => {
                    if b < BITS as $u {
                        a << b
                    } else {
                        0
                    }
                }
                IntOp::ShrU => {
                    if b < BITS as $u {
                        a >> b
                    } else {
                        0
                    }
                }
                IntOp::ShrS => (sa >> b.min(BITS as $u - 1)) as $u,
                IntOp::BfeU => field(u64::from(a), b as u32 & 255, c as u32 & 255, BITS, false) as $u,
                IntOp::BfeS => field(u64::from(a), b as u32 & 255, c as u32 & 255, BITS, true) as $u,
                IntOp::Bfi => insert(u64::from(a), u64::from(b), c as u32 & 255, e as u32 & 255, BITS) as $u,
                IntOp::Brev => a.reverse_bits(),
                IntOp::Popc => a.count_ones() as $u,
                IntOp::Clz => a.leading_zeros() as $u,
                IntOp::FindU => highest(a.leading_zeros(), BITS) as $u,
                IntOp::FindS => highest((a ^ (sa >> (BITS - 1)) as $u).leading_zeros(), BITS) as $u,
                IntOp::FindShiftU => shift_amount(a.leading_zeros(), BITS) as $u,
                IntOp::FindShiftS => shift_amount((a ^ (sa >> (BITS - 1)) as $u).leading_zeros(), BITS) as $u,
                IntOp::Prmt => permute(a as u32, b as u32, c as u32) as $u,
                IntOp::FunnelLeftWrap => funnel_left(a as u32, b as u32, c as u32 & 31) as $u,
                IntOp::FunnelLeftClamp => funnel_left(a as u32, b as u32, (c as u32).min(32)) as $u,
                IntOp::FunnelRightWrap => funnel_right(a as u32, b as u32, c as u32 & 31) as $u,
                IntOp::FunnelRightClamp => funnel_right(a as u32, b as u32, (c as u32).min(32)) as $u,
            }
        }
    };
}
arithmetic!(lane32, u32, i32, u64, i64);
arithmetic!(lane64, u64, i64, u128, i128);

fn highest(leading_zeros: u32, bits: u32) -> u32 {
    (bits - 1).wrapping_sub(leading_zeros)
}

fn shift_amount(leading_zeros: u32, bits: u32) -> u32 {
    if leading_zeros == bits { u32::MAX } else { leading_zeros }
}

/// `bfe`: `length` bits from `start`; missing bits of a signed field are its sign.
fn field(a: u64, start: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let a = if bits == 32 { a & 0xFFFF_FFFF } else { a };
    let top = (start + length).min(bits).wrapping_sub(1).min(bits - 1);
    let sign = signed && length > 0 && a >> top & 1 == 1;
    let fill = if sign { u128::MAX } else { 0 };
    let kept = if start >= bits { 0 } else { (bits - start).min(length) };
    let value = if start >= bits { 0 } else { u128::from(a >> start) };
    let mask = (1_u128 << kept) - 1;
    (value & mask | fill & !mask) as u64
}

/// `bfi`: the low `length` bits of `a` at `start` in `b`.
fn insert(a: u64, b: u64, start: u32, length: u32, bits: u32) -> u64 {
    if start >= bits {
        return b;
    }
    let mask = (((1_u128 << length.min(bits)) - 1) << start) as u64;
    a << start & mask | b & !mask
}

/// `prmt` in its default mode: each nibble of `selector` names one of 8 bytes, or spreads the sign of it.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let pick = |at: u32| {
        let nibble = selector >> (4 * at) & 15;
        let byte = bytes[nibble as usize & 7];
        if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
}

fn funnel_left(low: u32, high: u32, amount: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) << amount >> 32) as u32
}

fn funnel_right(low: u32, high: u32, amount: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) >> amount) as u32
}

/// One vectorized loop per operation: the match is outside, so that within each arm `op` is a constant.
macro_rules! each_operation {
    ($op:expr, $s:expr, $lane:ident: $($name:ident),*) => {
        match $op { $(IntOp::$name => map($s, |operands| $lane(IntOp::$name, operands)),)* }
    };
}

#[multiversion::multiversion(targets("x86_64+avx2+bmi1+lzcnt+popcnt"))]
fn rows32(op: IntOp, s: [&Row<u32>; 4]) -> Row<u32> {
    each_operation!(op, s, lane32: Add, Sub, AddSat, SubSat, MulLo, MulHiS, MulHiU, MadLo, MadHiS, MadHiU, DivS, DivU,
        RemS, RemU, MinS, MinU, MaxS, MaxU, Abs, Neg, SadS, SadU, And, Or, Xor, Not, Cnot, Shl, ShrS, ShrU, BfeS, BfeU,
        Bfi, Brev, Popc, Clz, FindS, FindU, FindShiftS, FindShiftU, Prmt, FunnelLeftWrap, FunnelLeftClamp,
        FunnelRightWrap, FunnelRightClamp)
}

#[multiversion::multiversion(targets("x86_64+avx2+bmi1+lzcnt+popcnt"))]
fn rows64(op: IntOp, s: [&Row<u64>; 4]) -> Row<u64> {
    each_operation!(op, s, lane64: Add, Sub, AddSat, SubSat, MulLo, MulHiS, MulHiU, MadLo, MadHiS, MadHiU, DivS, DivU,
        RemS, RemU, MinS, MinU, MaxS, MaxU, Abs, Neg, SadS, SadU, And, Or, Xor, Not, Cnot, Shl, ShrS, ShrU, BfeS, BfeU,
        Bfi, Brev, Popc, Clz, FindS, FindU, FindShiftS, FindShiftU, Prmt, FunnelLeftWrap, FunnelLeftClamp,
        FunnelRightWrap, FunnelRightClamp)
}

pub(crate) fn int32(registers: &mut Registers, op: IntOp, d: Slot, s: &[Slot; 4], mask: u32) {
    let result = rows32(op, s.map(|slot| registers.get32(slot)));
    registers.set32(d, &result, mask);
}

/// 64-bit instructions use no slot of the 64-bit file for operands that they lack, so `d` stands in for those.
pub(crate) fn int64(registers: &mut Registers, op: IntOp, d: Slot, s: &[Slot; 4], mask: u32) {
    let result = rows64(op, s.map(|slot| registers.get64(slot)));
    registers.set64(d, &result, mask);
}

/// 16-bit operations run in 32 bits on extended operands.
pub(crate) fn int16(registers: &mut Registers, op: IntOp, signed: bool, d: Slot, s: &[Slot; 4], mask: u32) {
    let is_shift = matches!(op, IntOp::Shl | IntOp::ShrS | IntOp::ShrU);
    let extended = [0, 1, 2, 3].map(|at| {
        let row = registers.get32(s[at]);
        match (is_shift && at == 1, signed) {
            (true, _) => *row,
            (false, true) => row.map(|v| i32::from(v as i16) as u32),
            (false, false) => row.map(|v| v & 0xFFFF),
        }
    });
    let result = rows32(op, extended.each_ref());
    // Counting and reversing depend on the width.
    let result = match op {
        IntOp::Brev => result.map(|v| v >> 16),
        _ => result.map(|v| v & 0xFFFF),
    };
    registers.set32(d, &result, mask);
}

/// `lop3`: bit `4 a + 2 b + c` of the table, for each bit.
pub(crate) fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut result = 0;
    for case in 0..8 {
        if table >> case & 1 == 1 {
            let pick = |value: u32, bit: u32| if case >> bit & 1 == 1 { value } else { !value };
            result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    result
}
