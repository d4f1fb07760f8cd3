//! `mov` and `cvt`.

use super::{Decoder, Result, float::half, modifiers::Modifiers};
use crate::{
    exec::convert::Conversion,
    ir::{BoolOp, Op, Rounding, Slot, Ty},
    ptx::syntax::Operand,
};

impl Decoder<'_> {
    pub(super) fn moves(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        if modifiers.base() != "mov" {
            return Ok(false);
        }
        let ty = modifiers.ty()?;
        let [d, a] = self.operands(operands)?;
        let wide = ty.bits() == 64;
        match (d, a) {
            (d, Operand::Vector(parts)) => self.pack(ty, d, parts)?,
            (Operand::Vector(parts), a) => self.unpack(ty, parts, a)?,
            (d, Operand::Name(name)) if matches!(name.as_str(), "%clock" | "%clock64" | "%globaltimer") => {
                let d = self.destination(ty, d)?;
                self.emit(Op::Clock { wide, d });
            }
            (d, a) if ty == Ty::Pred => {
                let (a, negated) = self.predicate(a)?;
                let d = self.destination(ty, d)?;
                self.emit(Op::Logic { op: BoolOp::And, d, a, b: a, negate_a: negated, negate_b: negated });
            }
            (d, a) => {
                let a = self.source(ty, a)?;
                let d = self.destination(ty, d)?;
                self.emit(if wide { Op::Mov64 { d, a } } else { Op::Mov32 { d, a } });
            }
        }
        Ok(true)
    }

    /// The type of each part of a packed register.
    fn part(&self, ty: Ty, parts: usize) -> Result<Ty> {
        match (ty.bits(), parts) {
            (64, 2) => Ok(Ty::U32),
            (64, 4) | (32, 2) => Ok(Ty::U16),
            (bits, parts) => self.error(format!("{bits} bits cannot be cut into {parts} parts")),
        }
    }

    fn pack(&mut self, ty: Ty, d: &Operand, parts: &[Operand]) -> Result<()> {
        let part = self.part(ty, parts.len())?;
        let parts = parts.iter().map(|operand| self.source(part, operand)).collect::<Result<Box<[Slot]>>>()?;
        let d = self.destination(ty, d)?;
        self.emit(Op::Pack { wide: ty.bits() == 64, d, part_bits: part.bits(), parts });
        Ok(())
    }

    fn unpack(&mut self, ty: Ty, parts: &[Operand], a: &Operand) -> Result<()> {
        let part = self.part(ty, parts.len())?;
        let a = self.source(ty, a)?;
        let sink = Operand::Name("_".to_owned());
        let mut slots = Vec::new();
        for operand in parts {
            slots.push(if *operand == sink { None } else { Some(self.destination(part, operand)?) });
        }
        self.emit(Op::Unpack { wide: ty.bits() == 64, a, part_bits: part.bits(), parts: slots.into() });
        Ok(())
    }

    pub(super) fn conversion(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        if modifiers.base() != "cvt" {
            return Ok(false);
        }
        let (rounding, integral) = (modifiers.rounding(), modifiers.integer_rounding());
        let (ftz, sat, relu) = (modifiers.take("ftz"), modifiers.take("sat"), modifiers.take("relu"));
        let (to, from) = (modifiers.ty()?, modifiers.ty()?);
        if let [d, a, b] = operands {
            let Some((element, true)) = half(to).filter(|_| from == Ty::F32 && !sat) else {
                return modifiers.error("this device does not know that pair of types");
            };
            let (a, b) = (self.source(from, a)?, self.source(from, b)?);
            let d = self.destination(to, d)?;
            let rounding = rounding.unwrap_or(Rounding::NearestEven);
            self.emit(Op::ConvertPair { element, rounding, relu, d, a, b });
            return Ok(true);
        }
        let [d, a] = self.operands(operands)?;
        if [to, from].iter().any(|ty| matches!(ty, Ty::Pred | Ty::F16x2 | Ty::Bf16x2)) || from == Ty::Tf32 {
            return modifiers.error("this device does not know that pair of types");
        }
        let (a, d) = (self.convertible(from, a)?, self.converted_register(to, d)?);
        let conversion =
            Conversion { from, to, rounding: rounding.unwrap_or(Rounding::NearestEven), integral, ftz, sat, relu };
        if !conversion.is_known() {
            return modifiers.error("this device does not know that conversion");
        }
        self.emit(Op::Convert { conversion, d, a });
        Ok(true)
    }

    /// A source may be wider than its type: `cvt.u32.u16 %r2, %r1` reads the low half.
    fn convertible(&mut self, ty: Ty, operand: &Operand) -> Result<Slot> {
        match self.register(operand) {
            Ok((bits, slot)) if bits == 64 && ty.bits() < 64 => Ok(self.low_half(slot)),
            Ok((bits, slot)) if bits >= ty.bits() => Ok(slot),
            Ok(_) => self.error("the register is narrower than the type"),
            Err(_) => self.source(ty, operand),
        }
    }

    fn low_half(&mut self, a: Slot) -> Slot {
        let d = self.new_slot(32);
        self.emit(Op::Convert { conversion: Conversion::exact(Ty::U64, Ty::U32), d, a });
        d
    }

    /// A destination may be wider than an 8- or 16-bit type; the value is then extended.
    fn converted_register(&mut self, ty: Ty, operand: &Operand) -> Result<Slot> {
        match self.register(operand) {
            Ok((16 | 32, slot)) if ty.bits() < 32 => Ok(slot),
            _ => self.destination(ty, operand),
        }
    }
}
