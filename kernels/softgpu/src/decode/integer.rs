//! Integer and bitwise instructions.

use super::{Decoder, Result, modifiers::Modifiers};
use crate::{
    exec::{convert::Conversion, integer::IntOp},
    ir::{BoolOp, Op, Slot, Ty},
    ptx::syntax::{Number, Operand},
};

impl Decoder<'_> {
    pub(super) fn integer(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        match modifiers.base() {
            "mul" | "mad" if modifiers.take("wide") => self.wide(modifiers, operands)?,
            "add" | "sub" | "addc" | "subc" | "madc" => self.add(modifiers, operands)?,
            "mad" if modifiers.peek("cc") => self.add(modifiers, operands)?,
            "lop3" => self.lop3(modifiers, operands)?,
            "popc" | "clz" | "bfind" => self.count(modifiers, operands)?,
            "and" | "or" | "xor" | "not" if modifiers.take("pred") => self.logic(modifiers.base(), operands)?,
            "shf" => self.funnel(modifiers, operands)?,
            "prmt" => {
                modifiers.ty()?;
                self.simple(IntOp::Prmt, Ty::U32, &[Ty::U32; 3], operands)?;
            }
            "bfe" | "bfi" | "shl" | "shr" => self.shift(modifiers, operands)?,
            base => {
                let half = modifiers.take_any(&["lo", "hi"]);
                let Some(count) = operand_count(base) else { return Ok(false) };
                let ty = modifiers.ty()?;
                let Some(op) = operation(base, half, ty.is_signed()) else {
                    return modifiers.error("this device does not know that form");
                };
                if ty.bits() == 16 && half == Some("hi") {
                    return modifiers.error("this device does not know high halves of 16-bit products");
                }
                self.simple(op, ty, &vec![ty; count], operands)?;
            }
        }
        Ok(true)
    }

    /// `d = op(sources)`, all of one width.
    fn simple(&mut self, op: IntOp, ty: Ty, types: &[Ty], operands: &[Operand]) -> Result<()> {
        if operands.len() != types.len() + 1 {
            return self.error(format!("expected {} operands, found {}", types.len() + 1, operands.len()));
        }
        let mut s = [0; 4];
        for ((slot, operand), source) in s.iter_mut().zip(&operands[1..]).zip(types) {
            let narrower = ty.bits() == 64 && source.bits() == 32;
            *slot = if narrower { self.widened(operand)? } else { self.source(*source, operand)? };
        }
        let d = self.destination(ty, &operands[0])?;
        self.emit(match ty.bits() {
            64 => Op::Int64 { op, d, s },
            16 => Op::Int16 { op, signed: ty.is_signed(), d, s },
            _ => Op::Int32 { op, d, s },
        });
        Ok(())
    }

    /// A 32-bit operand of a 64-bit instruction (shift amounts, field positions), as a 64-bit slot.
    fn widened(&mut self, operand: &Operand) -> Result<Slot> {
        if let Operand::Number(Number::Int(value)) = operand {
            return Ok(self.value(64, u64::from(*value as u32)));
        }
        let a = self.source(Ty::U32, operand)?;
        Ok(self.converted(Ty::U32, Ty::U64, a))
    }

    fn converted(&mut self, from: Ty, to: Ty, a: Slot) -> Slot {
        let d = self.new_slot(to.bits());
        self.emit(Op::Convert { conversion: Conversion::exact(from, to), d, a });
        d
    }

    fn wide(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let ty = modifiers.ty()?;
        let (factors, addend) = operands.split_at(operands.len().min(3));
        let [d, a, b] = self.operands(factors)?;
        let (mut a, mut b) = (self.source(ty, a)?, self.source(ty, b)?);
        if ty.bits() == 16 {
            let to = if ty.is_signed() { Ty::S32 } else { Ty::U32 };
            (a, b) = (self.converted(ty, to, a), self.converted(ty, to, b));
            let c = addend.first().map(|c| self.source(to, c)).transpose()?;
            let d = self.destination(to, d)?;
            let op = if c.is_some() { IntOp::MadLo } else { IntOp::MulLo };
            self.emit(Op::Int32 { op, d, s: [a, b, c.unwrap_or(0), 0] });
            return Ok(());
        }
        let c = addend.first().map(|c| self.source(Ty::U64, c)).transpose()?;
        let d = self.destination(Ty::U64, d)?;
        self.emit(Op::Wide { signed: ty.is_signed(), d, a, b, c });
        Ok(())
    }

    /// `add` and `sub`, and everything with a carry.
    fn add(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let base = modifiers.base();
        let carry_in = base.ends_with('c');
        let carry_out = modifiers.take("cc");
        let subtract = base.starts_with("sub");
        let half = modifiers.take_any(&["lo", "hi"]);
        let sat = modifiers.take("sat");
        let ty = modifiers.ty()?;
        if !carry_in && !carry_out {
            let op = match (subtract, sat) {
                (false, false) => IntOp::Add,
                (true, false) => IntOp::Sub,
                (false, true) => IntOp::AddSat,
                (true, true) => IntOp::SubSat,
            };
            if sat && ty != Ty::S32 {
                return modifiers.error("saturation is for s32");
            }
            return self.simple(op, ty, &[ty; 2], operands);
        }
        let wide = ty.bits() == 64;
        let (a, b) = if base.starts_with("mad") {
            let [_, a, b, c] = self.operands(operands)?;
            let Some(op) = operation("mul", half, ty.is_signed()) else { return modifiers.error("half is missing") };
            let s = [self.source(ty, a)?, self.source(ty, b)?, 0, 0];
            let product = self.new_slot(ty.bits());
            self.emit(if wide { Op::Int64 { op, d: product, s } } else { Op::Int32 { op, d: product, s } });
            (product, self.source(ty, c)?)
        } else {
            let [_, a, b] = self.operands(operands)?;
            (self.source(ty, a)?, self.source(ty, b)?)
        };
        let d = self.destination(ty, &operands[0])?;
        self.emit(Op::Carry { wide, subtract, carry_in, carry_out, d, a, b });
        Ok(())
    }

    fn lop3(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        modifiers.ty()?;
        let [d, a, b, c, Operand::Number(Number::Int(table))] = self.operands(operands)? else {
            return modifiers.error("the table must be a number");
        };
        let s = [self.source(Ty::U32, a)?, self.source(Ty::U32, b)?, self.source(Ty::U32, c)?];
        let d = self.destination(Ty::U32, d)?;
        self.emit(Op::Lop3 { table: *table as u8, d, s });
        Ok(())
    }

    /// Bit counts: the result has 32 bits whatever the operand has.
    fn count(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let shift = modifiers.take("shiftamt");
        let ty = modifiers.ty()?;
        let op = match (modifiers.base(), shift, ty.is_signed()) {
            ("popc", ..) => IntOp::Popc,
            ("clz", ..) => IntOp::Clz,
            (_, false, false) => IntOp::FindU,
            (_, false, true) => IntOp::FindS,
            (_, true, false) => IntOp::FindShiftU,
            (_, true, true) => IntOp::FindShiftS,
        };
        let [d, a] = self.operands(operands)?;
        let a = self.source(ty, a)?;
        let d = self.destination(Ty::U32, d)?;
        if ty.bits() == 64 {
            let wide = self.new_slot(64);
            self.emit(Op::Int64 { op, d: wide, s: [a, 0, 0, 0] });
            self.emit(Op::Convert { conversion: Conversion::exact(Ty::U64, Ty::U32), d, a: wide });
        } else {
            self.emit(Op::Int32 { op, d, s: [a, 0, 0, 0] });
        }
        Ok(())
    }

    fn logic(&mut self, base: &str, operands: &[Operand]) -> Result<()> {
        let always = (self.program.true_predicate, false);
        let (op, d, a, b) = match (base, operands) {
            ("not", [d, a]) => (BoolOp::Xor, d, self.predicate(a)?, always),
            ("and", [d, a, b]) => (BoolOp::And, d, self.predicate(a)?, self.predicate(b)?),
            ("or", [d, a, b]) => (BoolOp::Or, d, self.predicate(a)?, self.predicate(b)?),
            ("xor", [d, a, b]) => (BoolOp::Xor, d, self.predicate(a)?, self.predicate(b)?),
            _ => return self.error("wrong number of operands"),
        };
        let d = self.destination(Ty::Pred, d)?;
        self.emit(Op::Logic { op, d, a: a.0, b: b.0, negate_a: a.1, negate_b: b.1 });
        Ok(())
    }

    fn funnel(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let left = modifiers.take("l");
        let right = modifiers.take("r");
        let wrap = modifiers.take("wrap");
        let clamp = modifiers.take("clamp");
        modifiers.ty()?;
        let op = match (left, right, wrap, clamp) {
            (true, false, true, false) => IntOp::FunnelLeftWrap,
            (true, false, false, true) => IntOp::FunnelLeftClamp,
            (false, true, true, false) => IntOp::FunnelRightWrap,
            (false, true, false, true) => IntOp::FunnelRightClamp,
            _ => return modifiers.error("expected .l or .r, .wrap or .clamp"),
        };
        self.simple(op, Ty::U32, &[Ty::U32; 3], operands)
    }

    fn shift(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let ty = modifiers.ty()?;
        let amount = if ty.bits() == 16 { Ty::U16 } else { Ty::U32 };
        let (op, types) = match (modifiers.base(), ty.is_signed()) {
            ("shl", _) => (IntOp::Shl, vec![ty, amount]),
            ("shr", false) => (IntOp::ShrU, vec![ty, amount]),
            ("shr", true) => (IntOp::ShrS, vec![ty, amount]),
            ("bfe", false) => (IntOp::BfeU, vec![ty, Ty::U32, Ty::U32]),
            ("bfe", true) => (IntOp::BfeS, vec![ty, Ty::U32, Ty::U32]),
            _ => (IntOp::Bfi, vec![ty, ty, Ty::U32, Ty::U32]),
        };
        if ty.bits() == 16 && operands.len() == 3 {
            return self.shift16(op, ty, operands);
        }
        self.simple(op, ty, &types, operands)
    }

    /// The amount of a 16-bit shift is a 32-bit register.
    fn shift16(&mut self, op: IntOp, ty: Ty, operands: &[Operand]) -> Result<()> {
        let [d, a, amount] = self.operands(operands)?;
        let s = [self.source(ty, a)?, self.source(Ty::U32, amount)?, 0, 0];
        let d = self.destination(ty, d)?;
        self.emit(Op::Int16 { op, signed: ty.is_signed(), d, s });
        Ok(())
    }
}

fn operand_count(base: &str) -> Option<usize> {
    Some(match base {
        "abs" | "neg" | "not" | "cnot" | "brev" => 1,
        "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" => 2,
        "mad" | "sad" => 3,
        _ => return None,
    })
}

fn operation(base: &str, half: Option<&str>, signed: bool) -> Option<IntOp> {
    Some(match (base, half, signed) {
        ("abs", None, true) => IntOp::Abs,
        ("neg", None, true) => IntOp::Neg,
        ("not", None, _) => IntOp::Not,
        ("cnot", None, _) => IntOp::Cnot,
        ("brev", None, _) => IntOp::Brev,
        ("mul", Some("lo"), _) => IntOp::MulLo,
        ("mul", Some("hi"), false) => IntOp::MulHiU,
        ("mul", Some("hi"), true) => IntOp::MulHiS,
        ("mad", Some("lo"), _) => IntOp::MadLo,
        ("mad", Some("hi"), false) => IntOp::MadHiU,
        ("mad", Some("hi"), true) => IntOp::MadHiS,
        ("div", None, false) => IntOp::DivU,
        ("div", None, true) => IntOp::DivS,
        ("rem", None, false) => IntOp::RemU,
        ("rem", None, true) => IntOp::RemS,
        ("min", None, false) => IntOp::MinU,
        ("min", None, true) => IntOp::MinS,
        ("max", None, false) => IntOp::MaxU,
        ("max", None, true) => IntOp::MaxS,
        ("sad", None, false) => IntOp::SadU,
        ("sad", None, true) => IntOp::SadS,
        ("and", None, _) => IntOp::And,
        ("or", None, _) => IntOp::Or,
        ("xor", None, _) => IntOp::Xor,
        _ => return None,
    })
}
