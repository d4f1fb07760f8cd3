//! Loads, stores, atomics, address conversions and asynchronous copies.

use super::{Decoder, Result, modifiers::Modifiers, scope::Binding};
use crate::{
    ir::{Access, AtomOp, Atomic, BoolOp, Op, Slot, Target, Ty},
    ptx::syntax::{Number, Operand},
};

/// Qualifiers that say how long data stays in caches, how it is ordered or shared: nothing to model here.
const HINTS: &[&str] = &[
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "volatile",
    "cta",
    "gpu",
    "sys",
    "cluster",
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_last",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

impl Decoder<'_> {
    pub(super) fn memory(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        match modifiers.base() {
            "ld" | "ldu" => self.load(modifiers, operands)?,
            "st" => self.store(modifiers, operands)?,
            "atom" | "red" => self.atomic(modifiers, operands)?,
            "cvta" => self.convert_address(modifiers, operands)?,
            "isspacep" => self.is_space(modifiers, operands)?,
            "cp" => self.copy(modifiers, operands)?,
            "membar" | "fence" => {
                while modifiers.take_any(&["cta", "gl", "gpu", "sys", "cluster", "sc", "acq_rel"]).is_some() {}
                self.emit(Op::Nothing);
            }
            "prefetch" | "prefetchu" => {
                while modifiers.take_any(&["global", "local", "L1", "L2"]).is_some() {}
                self.emit(Op::Nothing);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn target(&self, modifiers: &mut Modifiers) -> Target {
        let words = ["global", "shared", "shared::cta", "local", "param", "param::entry", "param::func", "const"];
        match modifiers.take_any(&words) {
            Some("global") => Target::Global,
            Some("shared" | "shared::cta") => Target::Shared,
            Some("local") => Target::Local,
            Some("const") => Target::Const,
            Some(_) => Target::Param,
            None => Target::Generic,
        }
    }

    /// `.param` names the kernel's parameters or, around calls, variables of the thread.
    fn resolve(&self, target: Target, operand: &Operand) -> Target {
        match (target, operand) {
            (Target::Param, Operand::Address { base: Some(name), .. }) => match self.scopes.find(name) {
                Some(Binding::Local(_)) => Target::Local,
                _ => Target::Param,
            },
            _ => target,
        }
    }

    fn access(&mut self, modifiers: &mut Modifiers, address: &Operand) -> Result<(Access, Ty)> {
        while modifiers.take_any(HINTS).is_some() {}
        let target = self.target(modifiers);
        let target = self.resolve(target, address);
        let count = match modifiers.take_any(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        };
        let ty = modifiers.ty()?;
        let address = self.address(address)?;
        let (bytes, signed) = (ty.bits() / 8, ty.is_signed());
        Ok((Access { target, address, bytes, signed, count, wide: false, registers: [0; 4] }, ty))
    }

    fn load(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let [d, address] = self.operands(operands)?;
        let (mut access, ty) = self.access(modifiers, address)?;
        let parts = self.vector(d);
        if parts.len() != access.count as usize {
            return modifiers.error("wrong number of registers");
        }
        for (at, part) in parts.iter().enumerate() {
            let (bits, slot) = match part {
                Operand::Name(name) if name == "_" => (ty.bits().max(16), self.new_slot(ty.bits().max(16))),
                part => self.register(part)?,
            };
            if bits < ty.bits() || at > 0 && access.wide != (bits == 64) {
                return modifiers.error("a register is narrower than the type");
            }
            access.wide = bits == 64;
            access.registers[at] = slot;
        }
        self.emit(Op::Load(access));
        Ok(())
    }

    fn store(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let [address, value] = self.operands(operands)?;
        let (mut access, ty) = self.access(modifiers, address)?;
        let parts = self.vector(value);
        if parts.len() != access.count as usize {
            return modifiers.error("wrong number of registers");
        }
        let mut slots = Vec::new();
        for part in parts {
            slots.push(match self.register(part) {
                Ok((bits, slot)) if bits >= ty.bits() => (bits == 64, slot),
                Ok(_) => return modifiers.error("a register is narrower than the type"),
                Err(_) => (ty.bits() == 64, self.source(ty, part)?),
            });
        }
        let wide = slots.iter().any(|&(wide, _)| wide);
        for (register, (is_wide, slot)) in access.registers.iter_mut().zip(slots) {
            if is_wide != wide {
                return modifiers.error("registers of different widths");
            }
            *register = slot;
        }
        access.wide = wide;
        self.emit(Op::Store(access));
        Ok(())
    }

    fn atomic(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        // The operations `and`, `or`, … are taken before hints: no hint has such a name.
        let Some(op) = modifiers.take_with(|word| {
            Some(match word {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                "exch" => AtomOp::Exchange,
                "cas" => AtomOp::CompareAndSwap,
                "inc" => AtomOp::Inc,
                "dec" => AtomOp::Dec,
                _ => return None,
            })
        }) else {
            return modifiers.error("this device does not know that operation");
        };
        while modifiers.take_any(HINTS).is_some() {}
        let target = self.target(modifiers);
        let ty = modifiers.ty()?;
        let float = ty.is_float();
        if !matches!(ty.bits(), 32 | 64) || matches!(ty, Ty::F16x2 | Ty::Bf16x2) || float && op != AtomOp::Add {
            return modifiers.error("this device does not know that type");
        }
        let (d, rest) = if modifiers.base() == "atom" { operands.split_at(1) } else { (&[][..], operands) };
        let d = match d {
            [Operand::Name(name)] if name == "_" => None,
            [d] => Some(self.destination(ty, d)?),
            _ => None,
        };
        let Some((address, values)) = rest.split_first() else { return modifiers.error("an address is missing") };
        let address = self.address(address)?;
        let (b, c) = match (values, op) {
            ([b, c], AtomOp::CompareAndSwap) => (self.source(ty, b)?, self.source(ty, c)?),
            ([b], op) if op != AtomOp::CompareAndSwap => (self.source(ty, b)?, 0),
            _ => return modifiers.error("wrong number of operands"),
        };
        modifiers.take("noftz");
        self.emit(Op::Atomic(Atomic { op, ty, target, address, d, b, c }));
        Ok(())
    }

    fn convert_address(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let to = modifiers.take("to");
        let target = self.target(modifiers);
        if modifiers.ty()?.bits() != 64 {
            return modifiers.error("addresses have 64 bits");
        }
        let [d, a] = self.operands(operands)?;
        let (a, d) = (self.source(Ty::U64, a)?, self.destination(Ty::U64, d)?);
        self.emit(match target {
            Target::Global | Target::Const => Op::Mov64 { d, a },
            Target::Shared | Target::Local if to => Op::FromGeneric { target, d, a },
            Target::Shared | Target::Local => Op::ToGeneric { target, d, a },
            _ => return modifiers.error("this device has no generic addresses for that space"),
        });
        Ok(())
    }

    fn is_space(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let target = self.target(modifiers);
        let [p, a] = self.operands(operands)?;
        let (p, a) = (self.destination(Ty::Pred, p)?, self.source(Ty::U64, a)?);
        self.emit(Op::IsSpace { target, p, a });
        Ok(())
    }

    /// `cp.async` and its groups.
    fn copy(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        if !modifiers.take("async") {
            return modifiers.error("this device does not know bulk copies");
        }
        match (modifiers.take_any(&["commit_group", "wait_group", "wait_all"]), operands) {
            (Some("commit_group"), []) => self.emit(Op::CopyCommit),
            (Some("wait_all"), []) => self.emit(Op::CopyWaitAll),
            (Some("wait_group"), [Operand::Number(Number::Int(pending))]) => {
                self.emit(Op::CopyWait { pending: *pending as u32 });
            }
            (None, [to, from, bytes, rest @ ..]) => self.start_copy(modifiers, to, from, bytes, rest)?,
            _ => return modifiers.error("this device does not know that form"),
        }
        Ok(())
    }

    fn start_copy(
        &mut self,
        modifiers: &mut Modifiers,
        to: &Operand,
        from: &Operand,
        bytes: &Operand,
        rest: &[Operand],
    ) -> Result<()> {
        let all = modifiers.take("ca");
        modifiers.take("cg");
        let to_shared = modifiers.take("shared") || modifiers.take("shared::cta");
        let from_global = modifiers.take("global");
        while modifiers.take_any(&["L2::64B", "L2::128B", "L2::256B"]).is_some() {}
        let bytes = match bytes {
            Operand::Number(Number::Int(bytes)) => *bytes as u32,
            _ => return modifiers.error("the size must be a number"),
        };
        if !to_shared || !from_global || !(bytes == 16 || all && matches!(bytes, 4 | 8)) {
            return modifiers.error("this device does not know that form");
        }
        let (to, from) = (self.address(to)?, self.address(from)?);
        let source_bytes = match rest {
            [] => None,
            [size] => Some(self.copied_bytes(size, bytes)?),
            _ => return modifiers.error("this device does not know cache policies"),
        };
        self.emit(Op::CopyAsync { bytes, to, from, source_bytes });
        Ok(())
    }

    /// The last operand is the number of bytes to read, or a predicate that says to read none.
    fn copied_bytes(&mut self, operand: &Operand, bytes: u32) -> Result<Slot> {
        let Ok((p, negated)) = self.predicate(operand) else { return self.source(Ty::U32, operand) };
        if let Operand::Number(_) = operand {
            return self.source(Ty::U32, operand);
        }
        let ignore = self.new_slot(1);
        self.emit(Op::Logic { op: BoolOp::And, d: ignore, a: p, b: p, negate_a: negated, negate_b: negated });
        let (a, b) = (self.value(32, 0), self.value(32, u64::from(bytes)));
        let d = self.new_slot(32);
        self.emit(Op::Select32 { d, a, b, p: ignore, negated: false });
        Ok(d)
    }
}
