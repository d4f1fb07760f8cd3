//! Operands to slots.

use super::{Decoder, Result, scope::Binding};
use crate::{
    ir::{Address, Cmp3, Constant, Slot, Special, Ty},
    ptx::syntax::{Number, Operand, Space},
};

impl Decoder<'_> {
    pub(super) fn operands<'o, const N: usize>(&self, operands: &'o [Operand]) -> Result<&'o [Operand; N]> {
        match operands.try_into() {
            Ok(operands) => Ok(operands),
            Err(_) => self.error(format!("expected {N} operands, found {}", operands.len())),
        }
    }

    pub(super) fn constant(&mut self, bits: u32, constant: Constant) -> Slot {
        let known = if bits == 64 { &self.constants64 } else { &self.constants32 };
        if let Some(&slot) = known.get(&constant) {
            return slot;
        }
        let slot = self.new_slot(bits);
        let known = if bits == 64 { &mut self.constants64 } else { &mut self.constants32 };
        known.insert(constant, slot);
        slot
    }

    pub(super) fn value(&mut self, bits: u32, value: u64) -> Slot {
        self.constant(bits, Constant::Value(value))
    }

    /// The slot of a source operand of type `ty`.
    pub(super) fn source(&mut self, ty: Ty, operand: &Operand) -> Result<Slot> {
        let bits = ty.bits().max(16);
        match operand {
            Operand::Number(number) => {
                let value = literal(ty, *number);
                Ok(self.value(bits, value))
            }
            Operand::Name(name) => match self.scopes.find(name) {
                Some(&Binding::Register { bits: found, slot }) => {
                    let fits = if bits == 64 { found == 64 } else { found == 16 || found == 32 };
                    // A 16-bit instruction may not read the upper half of a 32-bit register.
                    if fits && (bits != 32 || found == 32) && (bits != 16 || found == 16) {
                        return Ok(slot);
                    }
                    self.error(format!("register {name} has {found} bits, the instruction needs {bits}"))
                }
                _ => self.address_constant(bits, name, 0),
            },
            Operand::Address { base: Some(base), offset } => self.address_constant(bits, base, *offset),
            _ => self.error("expected a register or a number"),
        }
    }

    /// The value of a special register or the address of a variable.
    fn address_constant(&mut self, bits: u32, name: &str, offset: i64) -> Result<Slot> {
        if let Some(special) = special(name) {
            return Ok(self.constant(bits, Constant::Special(special)));
        }
        if name == "WARP_SZ" {
            return Ok(self.value(bits, 32));
        }
        let constant = match self.scopes.find(name) {
            Some(&(Binding::Shared(start) | Binding::Local(start) | Binding::Param(start))) => {
                Constant::Value((start as i64 + offset) as u64)
            }
            Some(_) => return self.error(format!("{name} is no value")),
            None => self.file_variable(name, offset)?,
        };
        Ok(self.constant(bits, constant))
    }

    /// A variable at file scope; a shared one gets its place at first use.
    fn file_variable(&mut self, name: &str, offset: i64) -> Result<Constant> {
        if let Some(&index) = self.globals.get(name) {
            return Ok(Constant::Global(index, offset));
        }
        let source = self.source;
        let Some(variable) = source.variables.iter().find(|v| v.name == name && v.space == Space::Shared) else {
            return self.error(format!("unknown name {name}"));
        };
        let Some(size) = variable.size else { return Ok(Constant::DynamicShared(offset)) };
        let start = match self.shared.get(name) {
            Some(&start) => start,
            None => {
                let start = self.shared_bytes.next_multiple_of(variable.align);
                self.shared_bytes = start + size;
                self.shared.insert(name.to_owned(), start);
                start
            }
        };
        Ok(Constant::Value((start as i64 + offset) as u64))
    }

    /// The slot of a destination of type `ty`. `_` gives a slot that nobody reads.
    pub(super) fn destination(&mut self, ty: Ty, operand: &Operand) -> Result<Slot> {
        let bits = if ty == Ty::Pred { 1 } else { ty.bits().max(16) };
        let Operand::Name(name) = operand else { return self.error("expected a destination register") };
        match self.scopes.find(name) {
            Some(&Binding::Register { bits: found, slot }) if found == bits => Ok(slot),
            Some(&Binding::Register { bits: found, .. }) => {
                self.error(format!("register {name} has {found} bits, the instruction writes {bits}"))
            }
            _ if name == "_" => Ok(self.new_slot(bits)),
            _ => self.error(format!("{name} is not a register")),
        }
    }

    /// Width and slot of any register.
    pub(super) fn register(&self, operand: &Operand) -> Result<(u32, Slot)> {
        match operand {
            Operand::Name(name) => match self.scopes.find(name) {
                Some(&Binding::Register { bits, slot }) => Ok((bits, slot)),
                _ => self.error(format!("{name} is not a register")),
            },
            _ => self.error("expected a register"),
        }
    }

    pub(super) fn predicate_register(&self, name: &str) -> Result<Slot> {
        match self.scopes.find(name) {
            Some(&Binding::Register { bits: 1, slot }) => Ok(slot),
            _ => self.error(format!("{name} is not a predicate register")),
        }
    }

    /// A predicate operand and whether it is negated; the numbers 0 and 1 are predicates too.
    pub(super) fn predicate(&self, operand: &Operand) -> Result<(Slot, bool)> {
        match operand {
            Operand::Name(name) => Ok((self.predicate_register(name)?, false)),
            Operand::Not(name) => Ok((self.predicate_register(name)?, true)),
            Operand::Number(Number::Int(value)) => Ok((self.program.true_predicate, *value == 0)),
            _ => self.error("expected a predicate"),
        }
    }

    /// `d` or `d|p`: names of the register and of the predicate.
    pub(super) fn pair(&mut self, ty: Ty, operand: &Operand) -> Result<(Slot, Option<Slot>)> {
        match operand {
            Operand::Pair(d, p) => {
                let d = self.destination(ty, &Operand::Name(d.clone()))?;
                Ok((d, Some(self.destination(Ty::Pred, &Operand::Name(p.clone()))?)))
            }
            other => Ok((self.destination(ty, other)?, None)),
        }
    }

    pub(super) fn vector<'o>(&self, operand: &'o Operand) -> &'o [Operand] {
        match operand {
            Operand::Vector(parts) => parts,
            single => std::slice::from_ref(single),
        }
    }

    /// `[register+offset]` or `[variable+offset]`.
    pub(super) fn address(&mut self, operand: &Operand) -> Result<Address> {
        let (base, offset) = match operand {
            Operand::Address { base, offset } => (base, *offset),
            _ => return self.error("expected an address"),
        };
        let Some(name) = base else {
            return Ok(Address { base: self.value(64, offset as u64), wide: true, offset: 0 });
        };
        match self.scopes.find(name) {
            Some(&Binding::Register { bits, slot }) if bits >= 32 => {
                Ok(Address { base: slot, wide: bits == 64, offset })
            }
            Some(&Binding::Register { .. }) => self.error(format!("{name} cannot hold an address")),
            _ => Ok(Address { base: self.address_constant(64, name, offset)?, wide: true, offset: 0 }),
        }
    }
}

/// The bits of a literal as a value of type `ty`.
fn literal(ty: Ty, number: Number) -> u64 {
    let bits = match (ty, number) {
        (Ty::F32, Number::F64(bits)) => u64::from((f64::from_bits(bits) as f32).to_bits()),
        (Ty::F64, Number::F32(bits)) => f64::from(f32::from_bits(bits)).to_bits(),
        (_, Number::Int(value)) => value as u64,
        (_, Number::F32(bits)) => u64::from(bits),
        (_, Number::F64(bits)) => bits,
    };
    match ty.bits() {
        64 => bits,
        width => bits & ((1 << width.max(16)) - 1),
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |axis: &str| match axis {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((register, part)) = name.split_once('.') {
        let axis = axis(part)?;
        return Some(match register {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::WarpCount,
        "%lanemask_eq" => Special::LaneMask(Cmp3::Eq),
        "%lanemask_le" => Special::LaneMask(Cmp3::Le),
        "%lanemask_lt" => Special::LaneMask(Cmp3::Lt),
        "%lanemask_ge" => Special::LaneMask(Cmp3::Ge),
        "%lanemask_gt" => Special::LaneMask(Cmp3::Gt),
        "%smid" => Special::SmId,
        "%nsmid" => Special::SmCount,
        "%gridid" => Special::GridId,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}
