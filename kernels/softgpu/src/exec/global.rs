//! Global memory: addresses of the host, checked against the allocation table.
//!
//! Elements are read and written as relaxed atomics: blocks run on several host threads, and a kernel may race.

use super::{Problem, lanes};
use crate::{
    AccessError, Counters, FaultKind, View,
    ir::{AtomOp, Ty},
};
use std::{
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// What an access does, for counters and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Atomic,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
        }
    }
}

/// The allocation last met: most accesses stay in one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Recent {
    start: u64,
    bytes: u64,
}

/// Checks the accesses of a warp instruction: `bytes` at each address, aligned to their size.
pub(crate) fn check(
    view: &View,
    recent: &mut Recent,
    addresses: &[u64; 32],
    mask: u32,
    bytes: u64,
    kind: Kind,
) -> Result<(), Problem> {
    for lane in lanes(mask) {
        let address = addresses[lane];
        let offset = address.wrapping_sub(recent.start);
        if offset < recent.bytes && bytes <= recent.bytes - offset && address & (bytes - 1) == 0 {
            continue;
        }
        if let Err(error) = view.check(address, bytes, bytes) {
            let fault = match error {
                AccessError::Illegal { .. } => FaultKind::IllegalAddress,
                AccessError::Misaligned { .. } => FaultKind::Misaligned,
            };
            let detail = format!("illegal {} of global memory: {error}", kind.word());
            return Err(Problem::at_lane(fault, lane as u32, detail));
        }
        if let Some((start, bytes)) = view.find(address) {
            *recent = Recent { start, bytes };
        }
    }
    Ok(())
}

/// Counts one request of a warp: the 32-byte sectors it touches.
pub(crate) fn count(counters: &mut Counters, addresses: &[u64; 32], mask: u32, bytes: u64, kind: Kind) {
    let mut sectors = [0; 32];
    let (mut length, mut sorted) = (0_usize, true);
    for lane in lanes(mask) {
        let sector = addresses[lane] / 32;
        match length.checked_sub(1).map(|last: usize| sectors[last]) {
            Some(last) if last == sector => continue,
            Some(last) if last > sector => sorted = false,
            _ => {}
        }
        sectors[length] = sector;
        length += 1;
    }
    let mut distinct = length;
    if !sorted {
        sectors[..length].sort_unstable();
        distinct = 1 + sectors[..length].windows(2).filter(|pair| pair[0] != pair[1]).count();
    }
    if kind == Kind::Read {
        counters.global_loads += 1;
        counters.global_load_sectors += distinct as u64;
    } else {
        counters.global_stores += 1;
        counters.global_store_sectors += distinct as u64;
    }
    counters.global_requested_bytes += bytes * u64::from(mask.count_ones());
}

/// Reads an element of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// [`check`] accepted the address for an access that holds this element.
pub(crate) unsafe fn read(address: u64, bytes: u32) -> u64 {
    let address = address as usize;
    // SAFETY: the caller has checked that the bytes belong to a live allocation and that they are aligned.
    unsafe {
        match bytes {
            1 => u64::from(AtomicU8::from_ptr(with_exposed_provenance_mut(address)).load(Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(with_exposed_provenance_mut(address)).load(Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(with_exposed_provenance_mut(address)).load(Relaxed)),
            _ => AtomicU64::from_ptr(with_exposed_provenance_mut(address)).load(Relaxed),
        }
    }
}

/// Writes an element of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// As for [`read`].
pub(crate) unsafe fn write(address: u64, bytes: u32, value: u64) {
    let address = address as usize;
    // SAFETY: as in `read`.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(with_exposed_provenance_mut(address)).store(value as u8, Relaxed),
            2 => AtomicU16::from_ptr(with_exposed_provenance_mut(address)).store(value as u16, Relaxed),
            4 => AtomicU32::from_ptr(with_exposed_provenance_mut(address)).store(value as u32, Relaxed),
            _ => AtomicU64::from_ptr(with_exposed_provenance_mut(address)).store(value, Relaxed),
        }
    }
}

/// Replaces the element by `operation` of it, atomically, and returns the old one.
///
/// # Safety
/// As for [`read`]; 4 or 8 bytes.
pub(crate) unsafe fn update(address: u64, bytes: u32, operation: impl Fn(u64) -> u64) -> u64 {
    let address = address as usize;
    // SAFETY: as in `read`.
    let result = unsafe {
        if bytes == 4 {
            AtomicU32::from_ptr(with_exposed_provenance_mut(address))
                .fetch_update(Relaxed, Relaxed, |old| Some(operation(u64::from(old)) as u32))
                .map(u64::from)
                .map_err(u64::from)
        } else {
            AtomicU64::from_ptr(with_exposed_provenance_mut(address))
                .fetch_update(Relaxed, Relaxed, |old| Some(operation(old)))
        }
    };
    result.unwrap_or_else(|old| old)
}

/// The new value of an atomic's element.
pub(crate) fn atomic_result(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let signed = |value: u64| if ty.bits() == 64 { value as i64 } else { i64::from(value as i32) };
    match (op, ty) {
        (AtomOp::Add, Ty::F32) => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomOp::Add, _) => old.wrapping_add(b),
        (AtomOp::Min, ty) if ty.is_signed() => signed(old).min(signed(b)) as u64,
        (AtomOp::Max, ty) if ty.is_signed() => signed(old).max(signed(b)) as u64,
        (AtomOp::Min, _) => old.min(b),
        (AtomOp::Max, _) => old.max(b),
        (AtomOp::And, _) => old & b,
        (AtomOp::Or, _) => old | b,
        (AtomOp::Xor, _) => old ^ b,
        (AtomOp::Exchange, _) => b,
        (AtomOp::CompareAndSwap, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (AtomOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
