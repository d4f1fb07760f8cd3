//! The register files of a warp: one row of 32 lanes per register.

use super::LANES;
use crate::ir::Slot;

/// Values of one register in all lanes.
pub(crate) type Row<T> = [T; LANES];

#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) r32: Vec<Row<u32>>,
    pub(crate) r64: Vec<Row<u64>>,
    pub(crate) predicates: Vec<u32>,
}

impl Registers {
    pub(crate) fn get32(&self, slot: Slot) -> &Row<u32> {
        &self.r32[slot as usize]
    }

    pub(crate) fn get64(&self, slot: Slot) -> &Row<u64> {
        &self.r64[slot as usize]
    }

    pub(crate) fn set32(&mut self, slot: Slot, value: &Row<u32>, mask: u32) {
        merge(&mut self.r32[slot as usize], value, mask);
    }

    pub(crate) fn set64(&mut self, slot: Slot, value: &Row<u64>, mask: u32) {
        merge(&mut self.r64[slot as usize], value, mask);
    }

    /// A predicate, negated if asked: one bit a lane.
    pub(crate) fn predicate(&self, slot: Slot, negated: bool) -> u32 {
        let bits = self.predicates[slot as usize];
        if negated { !bits } else { bits }
    }

    pub(crate) fn set_predicate(&mut self, slot: Slot, bits: u32, mask: u32) {
        let old = &mut self.predicates[slot as usize];
        *old = *old & !mask | bits & mask;
    }

    /// A register of either width, zero-extended.
    pub(crate) fn lane(&self, wide: bool, slot: Slot, lane: usize) -> u64 {
        if wide { self.r64[slot as usize][lane] } else { u64::from(self.r32[slot as usize][lane]) }
    }

    pub(crate) fn set_lane(&mut self, wide: bool, slot: Slot, lane: usize, value: u64) {
        if wide {
            self.r64[slot as usize][lane] = value;
        } else {
            self.r32[slot as usize][lane] = value as u32;
        }
    }
}

/// Overwrites the lanes of `mask`.
#[inline(always)]
pub(crate) fn merge<T: Copy>(target: &mut Row<T>, value: &Row<T>, mask: u32) {
    if mask == u32::MAX {
        *target = *value;
        return;
    }
    for lane in 0..LANES {
        if mask >> lane & 1 == 1 {
            target[lane] = value[lane];
        }
    }
}

/// `f` of each lane. A plain loop: it is what the compiler vectorizes.
#[inline(always)]
pub(crate) fn map<T: Copy, U: Copy + Default, const N: usize>(
    operands: [&Row<T>; N],
    f: impl Fn([T; N]) -> U,
) -> Row<U> {
    let mut result = [U::default(); LANES];
    for lane in 0..LANES {
        result[lane] = f(operands.map(|row| row[lane]));
    }
    result
}
