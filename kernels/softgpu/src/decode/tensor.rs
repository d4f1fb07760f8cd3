//! Tensor cores: `mma.sync`, `ldmatrix`, `movmatrix`.

use super::{Decoder, Result, modifiers::Modifiers};
use crate::{
    ir::{Element, Mma, Op, Slot, Ty},
    ptx::syntax::Operand,
};

impl Decoder<'_> {
    pub(super) fn tensor(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        match modifiers.base() {
            "mma" => self.mma(modifiers, operands)?,
            "ldmatrix" => self.load_matrix(modifiers, operands)?,
            "movmatrix" => {
                for word in ["sync", "aligned", "m8n8", "trans"] {
                    if !modifiers.take(word) {
                        return modifiers.error("this device does not know that form");
                    }
                }
                modifiers.ty()?;
                let [d, a] = self.operands(operands)?;
                let (a, d) = (self.source(Ty::U32, a)?, self.destination(Ty::U32, d)?);
                self.emit(Op::MoveMatrix { d, a });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn fragment<const N: usize>(&mut self, operand: &Operand, ty: Ty, written: bool) -> Result<[Slot; N]> {
        let parts: &[Operand; N] = self.operands(self.vector(operand))?;
        let mut slots = [0; N];
        for (slot, part) in slots.iter_mut().zip(parts) {
            *slot = if written { self.destination(ty, part)? } else { self.source(ty, part)? };
        }
        Ok(slots)
    }

    fn mma(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        for word in ["sync", "aligned", "row", "col"] {
            if !modifiers.take(word) {
                return modifiers.error("this device knows mma.sync.aligned.…row.col only");
            }
        }
        let Some(shape) = modifiers.take_any(&["m16n8k4", "m16n8k8", "m16n8k16"]) else {
            return modifiers.error("this device does not know that shape");
        };
        let types = [modifiers.ty()?, modifiers.ty()?, modifiers.ty()?, modifiers.ty()?];
        let (element, k) = match (types, shape) {
            ([Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32], "m16n8k16") => (Element::Bf16, 16),
            ([Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32], "m16n8k8") => (Element::Bf16, 8),
            ([Ty::F32, Ty::F16, Ty::F16, Ty::F32], "m16n8k16") => (Element::F16, 16),
            ([Ty::F32, Ty::F16, Ty::F16, Ty::F32], "m16n8k8") => (Element::F16, 8),
            ([Ty::F32, Ty::Tf32, Ty::Tf32, Ty::F32], "m16n8k8") => (Element::Tf32, 8),
            ([Ty::F32, Ty::Tf32, Ty::Tf32, Ty::F32], "m16n8k4") => (Element::Tf32, 4),
            _ => return modifiers.error("this device does not know those types"),
        };
        let [d, a, b, c] = self.operands(operands)?;
        // A fragment holds 16 x K elements over 32 lanes, and so many per register.
        let per_register = if element == Element::Tf32 { 1 } else { 2 };
        let mut fragments = ([0; 4], [0; 2]);
        match 16 * k / 32 / per_register {
            4 => fragments = (self.fragment(a, Ty::U32, false)?, self.fragment(b, Ty::U32, false)?),
            _ => {
                let (a, b) = (self.fragment::<2>(a, Ty::U32, false)?, self.fragment::<1>(b, Ty::U32, false)?);
                fragments.0[..2].copy_from_slice(&a);
                fragments.1[..1].copy_from_slice(&b);
            }
        }
        let c = self.fragment(c, Ty::F32, false)?;
        let d = self.fragment(d, Ty::F32, true)?;
        self.emit(Op::Mma(Box::new(Mma { element, k, d, a: fragments.0, b: fragments.1, c })));
        Ok(())
    }

    fn load_matrix(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        for word in ["sync", "aligned", "m8n8"] {
            if !modifiers.take(word) {
                return modifiers.error("this device does not know that form");
            }
        }
        if !modifiers.take("shared") && !modifiers.take("shared::cta") {
            return modifiers.error("this device loads matrices from .shared only");
        }
        let transposed = modifiers.take("trans");
        if modifiers.ty()? != Ty::U16 {
            return modifiers.error("this device knows .b16 only");
        }
        let [d, address] = self.operands(operands)?;
        let address = self.address(address)?;
        let mut slots = [0; 4];
        let count = match modifiers.take_any(&["x1", "x2", "x4"]) {
            Some("x1") => {
                slots[..1].copy_from_slice(&self.fragment::<1>(d, Ty::U32, true)?);
                1
            }
            Some("x2") => {
                slots[..2].copy_from_slice(&self.fragment::<2>(d, Ty::U32, true)?);
                2
            }
            Some(_) => {
                slots = self.fragment(d, Ty::U32, true)?;
                4
            }
            None => return modifiers.error("the number of matrices is missing"),
        };
        self.emit(Op::LoadMatrix { count, transposed, address, d: slots });
        Ok(())
    }
}
