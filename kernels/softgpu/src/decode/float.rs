//! Floating-point arithmetic, comparisons and selection.

use super::{Decoder, Result, modifiers::Modifiers};
use crate::{
    exec::{float::FloatOp, half::HalfOp},
    ir::{BoolOp, Cmp, Compare, Element, Mode, Op, Rounding, Ty},
    ptx::syntax::Operand,
};

impl Decoder<'_> {
    pub(super) fn float(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        match modifiers.base() {
            "setp" => self.set_predicate(modifiers, operands)?,
            "set" => self.set_register(modifiers, operands)?,
            "selp" => self.select(modifiers, operands)?,
            "testp" => self.test(modifiers, operands)?,
            "add" | "sub" | "mul" | "fma" | "mad" | "div" | "min" | "max" | "abs" | "neg" | "sqrt" | "rsqrt"
            | "rcp" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign"
                if modifiers.has_float() =>
            {
                self.arithmetic(modifiers, operands)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn arithmetic(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let approximate = modifiers.take("approx") | modifiers.take("full");
        let rounding = modifiers.rounding();
        let (ftz, sat) = (modifiers.take("ftz"), modifiers.take("sat"));
        let nan = modifiers.take("NaN");
        let ty = modifiers.ty()?;
        let count = match modifiers.base() {
            "fma" | "mad" => 3,
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            _ => 1,
        };
        if operands.len() != count + 1 {
            return modifiers.error("wrong number of operands");
        }
        let mut s = [0; 3];
        for (slot, operand) in s.iter_mut().zip(&operands[1..]) {
            *slot = self.source(ty, operand)?;
        }
        let d = self.destination(ty, &operands[0])?;
        let mode = Mode { rounding: rounding.unwrap_or(Rounding::NearestEven), ftz, sat };
        if let Some((element, packed)) = half(ty) {
            let plain = mode.rounding == Rounding::NearestEven && !sat && (element == Element::Bf16 || !ftz);
            match half_operation(modifiers.base(), nan, approximate).filter(|_| plain) {
                Some(op) => self.emit(Op::Half { op, element, packed, d, s }),
                None => return modifiers.error("this device does not know that form for 16-bit floats"),
            }
            return Ok(());
        }
        let Some(op) = operation(modifiers.base(), nan, approximate) else {
            return modifiers.error("this device does not know that form");
        };
        match ty {
            Ty::F32 => self.emit(Op::Float32 { op, mode, d, s }),
            Ty::F64 if !sat && op.is_exact_on_f64(ftz) && mode.rounding == Rounding::NearestEven => {
                self.emit(Op::Float64 { op, d, s });
            }
            _ => return modifiers.error("this device does not know that form for f64"),
        }
        Ok(())
    }

    fn compare(&mut self, modifiers: &mut Modifiers, sources: &[Operand], ty: Ty) -> Result<Compare> {
        let Some(cmp) = modifiers.take_with(|word| comparison(word, ty)) else {
            return modifiers.error("a comparison is missing");
        };
        let op = modifiers.take_with(|word| match word {
            "and" => Some(BoolOp::And),
            "or" => Some(BoolOp::Or),
            "xor" => Some(BoolOp::Xor),
            _ => None,
        });
        let (a, b, combine) = match (sources, op) {
            ([a, b], None) => (a, b, None),
            ([a, b, c], Some(op)) => {
                let (c, negated) = self.predicate(c)?;
                (a, b, Some((op, c, negated)))
            }
            _ => return modifiers.error("wrong number of operands"),
        };
        let ftz = modifiers.take("ftz");
        Ok(Compare { cmp, ty, a: self.source(ty, a)?, b: self.source(ty, b)?, combine, ftz })
    }

    fn set_predicate(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let Some((target, sources)) = operands.split_first() else { return self.error("setp needs operands") };
        let ty = modifiers.ty()?;
        let compare = self.compare(modifiers, sources, ty)?;
        let (p, q) = match target {
            Operand::Pair(p, q) => (Operand::Name(p.clone()), Some(Operand::Name(q.clone()))),
            other => (other.clone(), None),
        };
        let p = Some(self.destination(Ty::Pred, &p)?);
        let q = q.map(|q| self.destination(Ty::Pred, &q)).transpose()?;
        self.emit(Op::SetPredicate { compare, p, q });
        Ok(())
    }

    fn set_register(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let Some((target, sources)) = operands.split_first() else { return self.error("set needs operands") };
        let result = modifiers.ty()?;
        let ty = modifiers.ty()?;
        let value = match result {
            Ty::F32 => 1.0_f32.to_bits(),
            Ty::U32 | Ty::S32 => u32::MAX,
            _ => return modifiers.error("this device does not know that result type"),
        };
        let compare = self.compare(modifiers, sources, ty)?;
        let d = self.destination(result, target)?;
        self.emit(Op::SetRegister { compare, value, d });
        Ok(())
    }

    fn select(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let ty = modifiers.ty()?;
        let [d, a, b, p] = self.operands(operands)?;
        let (a, b) = (self.source(ty, a)?, self.source(ty, b)?);
        let (p, negated) = self.predicate(p)?;
        let d = self.destination(ty, d)?;
        self.emit(match ty.bits() {
            64 => Op::Select64 { d, a, b, p, negated },
            _ => Op::Select32 { d, a, b, p, negated },
        });
        Ok(())
    }

    /// `testp`: the kinds that comparisons express.
    fn test(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let Some(kind) = modifiers.take_any(&["notanumber", "number", "infinite", "finite"]) else {
            return modifiers.error("this device does not know that test");
        };
        let ty = modifiers.ty()?;
        let [p, a] = self.operands(operands)?;
        let (p, a) = (self.destination(Ty::Pred, p)?, self.source(ty, a)?);
        let infinity = if ty == Ty::F64 { f64::INFINITY.to_bits() } else { u64::from(f32::INFINITY.to_bits()) };
        let cmp = match kind {
            "notanumber" => Cmp::Nan,
            "number" => Cmp::Num,
            "infinite" => Cmp::Eq,
            _ => Cmp::Lt,
        };
        let (mut first, mut b) = (a, a);
        if matches!(kind, "infinite" | "finite") {
            b = self.value(ty.bits(), infinity);
            first = self.new_slot(ty.bits());
            let mode = Mode { rounding: Rounding::NearestEven, ftz: false, sat: false };
            let s = [a, a, a];
            self.emit(match ty {
                Ty::F64 => Op::Float64 { op: FloatOp::Abs, d: first, s },
                _ => Op::Float32 { op: FloatOp::Abs, mode, d: first, s },
            });
        }
        let compare = Compare { cmp, ty, a: first, b, combine: None, ftz: false };
        self.emit(Op::SetPredicate { compare, p: Some(p), q: None });
        Ok(())
    }
}

/// Element type of a 16-bit float type, and whether two are packed.
pub(super) fn half(ty: Ty) -> Option<(Element, bool)> {
    match ty {
        Ty::F16 => Some((Element::F16, false)),
        Ty::F16x2 => Some((Element::F16, true)),
        Ty::Bf16 => Some((Element::Bf16, false)),
        Ty::Bf16x2 => Some((Element::Bf16, true)),
        _ => None,
    }
}

fn comparison(word: &str, ty: Ty) -> Option<Cmp> {
    Some(match word {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        "equ" if ty.is_float() => Cmp::Equ,
        "neu" if ty.is_float() => Cmp::Neu,
        "ltu" if ty.is_float() => Cmp::Ltu,
        "leu" if ty.is_float() => Cmp::Leu,
        "gtu" if ty.is_float() => Cmp::Gtu,
        "geu" if ty.is_float() => Cmp::Geu,
        "num" if ty.is_float() => Cmp::Num,
        "nan" if ty.is_float() => Cmp::Nan,
        _ => return None,
    })
}

fn operation(base: &str, nan: bool, approximate: bool) -> Option<FloatOp> {
    Some(match (base, nan, approximate) {
        ("add", false, false) => FloatOp::Add,
        ("sub", false, false) => FloatOp::Sub,
        ("mul", false, false) => FloatOp::Mul,
        ("fma" | "mad", false, false) => FloatOp::Fma,
        ("div", false, false) => FloatOp::Div,
        ("div", false, true) => FloatOp::DivApprox,
        ("min", false, false) => FloatOp::Min,
        ("max", false, false) => FloatOp::Max,
        ("min", true, false) => FloatOp::MinNan,
        ("max", true, false) => FloatOp::MaxNan,
        ("abs", false, false) => FloatOp::Abs,
        ("neg", false, false) => FloatOp::Neg,
        ("copysign", false, false) => FloatOp::CopySign,
        ("sqrt", false, false) => FloatOp::Sqrt,
        ("sqrt", false, true) => FloatOp::SqrtApprox,
        ("rcp", false, false) => FloatOp::Rcp,
        ("rcp", false, true) => FloatOp::RcpApprox,
        ("rsqrt", false, true) => FloatOp::RsqrtApprox,
        ("ex2", false, true) => FloatOp::Ex2,
        ("lg2", false, true) => FloatOp::Lg2,
        ("sin", false, true) => FloatOp::Sin,
        ("cos", false, true) => FloatOp::Cos,
        ("tanh", false, true) => FloatOp::Tanh,
        _ => return None,
    })
}

fn half_operation(base: &str, nan: bool, approximate: bool) -> Option<HalfOp> {
    Some(match (base, nan, approximate) {
        ("add", false, false) => HalfOp::Add,
        ("sub", false, false) => HalfOp::Sub,
        ("mul", false, false) => HalfOp::Mul,
        ("fma", false, false) => HalfOp::Fma,
        ("min", false, false) => HalfOp::Min,
        ("max", false, false) => HalfOp::Max,
        ("min", true, false) => HalfOp::MinNan,
        ("max", true, false) => HalfOp::MaxNan,
        ("abs", false, false) => HalfOp::Abs,
        ("neg", false, false) => HalfOp::Neg,
        ("ex2", false, true) => HalfOp::Ex2,
        ("tanh", false, true) => HalfOp::Tanh,
        _ => return None,
    })
}
