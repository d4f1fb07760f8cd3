//! `cvt`: between all pairs of types, with every rounding.

use super::{
    float::{NAN32, flush, saturate},
    half::{from_f32, to_f32},
    registers::{Registers, map},
    rounding,
};
use crate::ir::{Element, Rounding, Slot, Ty};

/// A conversion and its modifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub(crate) from: Ty,
    pub(crate) to: Ty,
    /// Of a floating-point result.
    pub(crate) rounding: Rounding,
    /// To a whole number (`.rni`, …).
    pub(crate) integral: Option<Rounding>,
    pub(crate) ftz: bool,
    pub(crate) sat: bool,
    pub(crate) relu: bool,
}

impl Conversion {
    /// Without modifiers.
    pub(crate) fn exact(from: Ty, to: Ty) -> Self {
        let rounding = Rounding::NearestEven;
        Self { from, to, rounding, integral: None, ftz: false, sat: false, relu: false }
    }

    /// Whether [`Self::lane`] does what PTX says.
    pub(crate) fn is_known(&self) -> bool {
        let half = |ty| matches!(ty, Ty::F16 | Ty::Bf16);
        let nearest_or_zero = matches!(self.rounding, Rounding::NearestEven | Rounding::Zero);
        let relu_ok = !self.relu || half(self.to);
        match (self.from.is_float(), self.to.is_float()) {
            (true, false) => self.integral.is_some() && relu_ok,
            (_, true) if half(self.to) => {
                nearest_or_zero && relu_ok && !(self.integral.is_some() && self.from != self.to)
            }
            (_, true) if self.to == Ty::Tf32 => self.from == Ty::F32 && relu_ok && !self.sat,
            (_, true) if self.to == Ty::F64 => {
                relu_ok && !self.sat && (self.from != Ty::F32 || self.integral.is_none()) && nearest_even(self.rounding)
            }
            (_, true) => relu_ok,
            (false, false) => relu_ok,
        }
    }

    /// The result in one lane; operands and results narrower than their register lie in its low bits.
    pub(crate) fn lane(&self, bits: u64) -> u64 {
        match (self.from.is_float(), self.to.is_float()) {
            (false, false) => self.integer_to_integer(bits),
            (false, true) => self.finish_float(rounding::integer(extend(self.from, bits))),
            (true, false) => self.float_to_integer(bits),
            (true, true) => self.float_to_float(bits),
        }
    }

    fn integer_to_integer(&self, bits: u64) -> u64 {
        let value = extend(self.from, bits);
        let value = if self.sat { value.clamp(lowest(self.to), greatest(self.to)) } else { value };
        // A signed result fills a register that is wider than it.
        extend(self.to, value as u64) as u64
    }

    fn float_to_integer(&self, bits: u64) -> u64 {
        let value = self.float_value(bits);
        if value.is_nan() {
            // PTX ISA: zero, but the highest bit alone if 64 bits are on either side.
            let wide = self.from == Ty::F64 || self.to.bits() == 64;
            return if wide { 1 << (self.to.bits() - 1) } else { 0 };
        }
        let whole = rounding::to_integral(value, self.integral.unwrap_or(Rounding::Zero));
        (whole as i128).clamp(lowest(self.to), greatest(self.to)) as u64
    }

    /// The operand, exactly.
    fn float_value(&self, bits: u64) -> f64 {
        match self.from {
            Ty::F64 => f64::from_bits(bits),
            Ty::F16 => f64::from(to_f32(Element::F16, bits as u16)),
            Ty::Bf16 => f64::from(to_f32(Element::Bf16, bits as u16)),
            _ => {
                let value = f32::from_bits(bits as u32);
                f64::from(if self.ftz { flush(value) } else { value })
            }
        }
    }

    fn float_to_float(&self, bits: u64) -> u64 {
        let value = self.float_value(bits);
        self.finish_float(self.integral.map_or(value, |mode| rounding::to_integral(value, mode)))
    }

    /// Rounds an exact (or odd) value to the result's type.
    fn finish_float(&self, value: f64) -> u64 {
        match self.to {
            // Integers of 64 bits take another way, see `convert`; all other values are exact.
            Ty::F64 => value.to_bits(),
            Ty::F16 | Ty::Bf16 => {
                let element = if self.to == Ty::F16 { Element::F16 } else { Element::Bf16 };
                let mut narrow = rounding::to_f32_odd(value);
                if self.relu && narrow < 0.0 {
                    narrow = 0.0;
                }
                narrow = if self.sat { saturate(narrow) } else { narrow };
                u64::from(from_f32(element, narrow, self.rounding))
            }
            Ty::Tf32 => u64::from(to_tf32(value as f32, self.rounding)),
            _ => {
                let narrow = rounding::to_f32(value, self.rounding);
                let narrow = if self.ftz { flush(narrow) } else { narrow };
                let narrow = if self.sat { saturate(narrow) } else { narrow };
                u64::from(if narrow.is_nan() { NAN32 } else { narrow.to_bits() })
            }
        }
    }
}

fn nearest_even(rounding: Rounding) -> bool {
    rounding == Rounding::NearestEven
}

/// The low bits of `bits` as a number.
fn extend(ty: Ty, bits: u64) -> i128 {
    let unused = 64 - ty.bits();
    if ty.is_signed() { i128::from((bits << unused) as i64 >> unused) } else { i128::from(bits << unused >> unused) }
}

fn lowest(ty: Ty) -> i128 {
    if ty.is_signed() { -(1 << (ty.bits() - 1)) } else { 0 }
}

fn greatest(ty: Ty) -> i128 {
    (1 << (ty.bits() - u32::from(ty.is_signed()))) - 1
}

/// tf32 keeps 10 bits of the fraction.
fn to_tf32(value: f32, rounding: Rounding) -> u32 {
    let bits = value.to_bits();
    if !value.is_finite() {
        return bits;
    }
    let up = match rounding {
        Rounding::Zero => 0,
        Rounding::NearestAway => 0x1000,
        _ => 0xFFF + (bits >> 13 & 1),
    };
    bits.wrapping_add(up) & !0x1FFF
}

pub(crate) fn convert(registers: &mut Registers, conversion: &Conversion, d: Slot, a: Slot, mask: u32) {
    let Conversion { from, to, rounding, .. } = *conversion;
    let plain = rounding == Rounding::NearestEven && !conversion.ftz && !conversion.sat && !conversion.relu;
    match (from.bits() == 64, to.bits() == 64) {
        (false, false) => {
            let row = registers.get32(a);
            let result = match (from, to) {
                (Ty::U32 | Ty::S32, Ty::U16 | Ty::U32 | Ty::S32) if plain => *row,
                (Ty::U16, Ty::U32 | Ty::S32) if plain => map([row], |[v]| v & 0xFFFF),
                (Ty::Bf16, Ty::F32) if plain => map([row], |[v]| v << 16),
                (Ty::S32, Ty::F32) if plain => map([row], |[v]| (v as i32 as f32).to_bits()),
                (Ty::U32, Ty::F32) if plain => map([row], |[v]| (v as f32).to_bits()),
                _ => map([row], |[v]| conversion.lane(u64::from(v)) as u32),
            };
            registers.set32(d, &result, mask);
        }
        (true, false) => {
            let row = registers.get64(a);
            let result = match (from.is_float(), to) {
                (false, Ty::U32 | Ty::S32) if plain => map([row], |[v]| v as u32),
                _ => map([row], |[v]| conversion.lane(v) as u32),
            };
            registers.set32(d, &result, mask);
        }
        (false, true) => {
            let row = registers.get32(a);
            let result = match (from, to.is_float()) {
                (Ty::U32, false) if plain => map([row], |[v]| u64::from(v)),
                (Ty::S32, false) if plain => map([row], |[v]| i64::from(v as i32) as u64),
                _ => map([row], |[v]| conversion.lane(u64::from(v))),
            };
            registers.set64(d, &result, mask);
        }
        (true, true) => {
            let row = registers.get64(a);
            let result = match (from, to) {
                (Ty::S64, Ty::F64) if plain => map([row], |[v]| (v as i64 as f64).to_bits()),
                (Ty::U64, Ty::F64) if plain => map([row], |[v]| (v as f64).to_bits()),
                _ => map([row], |[v]| conversion.lane(v)),
            };
            registers.set64(d, &result, mask);
        }
    }
}
