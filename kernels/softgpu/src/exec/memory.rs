//! Loads and stores in every space.

use super::{
    LANES, Problem,
    block::Machine,
    global::{self, Kind},
    lanes,
    registers::Registers,
    shared::{self, Thread, Writing},
    warp::Warp,
};
use crate::{
    FaultKind,
    decode::window::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES},
    ir::{Access, Address, Op, Slot, Target},
};

impl Warp {
    /// The address of each lane.
    pub(crate) fn addresses(&self, address: Address) -> [u64; LANES] {
        let offset = address.offset as u64;
        match address.wide {
            true => self.registers.get64(address.base).map(|base| base.wrapping_add(offset)),
            // Addresses of 32 bits are offsets within a window, and wrap there.
            false => self.registers.get32(address.base).map(|base| u64::from(base.wrapping_add(offset as u32))),
        }
    }
}

/// Splits the lanes by the window that their generic address falls into.
pub(crate) fn split(target: Target, addresses: &mut [u64; LANES], mask: u32) -> [(Target, u32); 3] {
    if target != Target::Generic {
        return [(target, mask), (Target::Shared, 0), (Target::Local, 0)];
    }
    let mut parts = [(Target::Global, 0), (Target::Shared, 0), (Target::Local, 0)];
    for lane in lanes(mask) {
        let at = match addresses[lane] {
            a if a.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES => 1,
            a if a.wrapping_sub(LOCAL_WINDOW) < WINDOW_BYTES => 2,
            _ => 0,
        };
        addresses[lane] = addresses[lane].wrapping_sub([0, SHARED_WINDOW, LOCAL_WINDOW][at]);
        parts[at].1 |= 1 << lane;
    }
    parts
}

impl Machine<'_> {
    pub(crate) fn load(&mut self, warp: &mut Warp, access: &Access, mask: u32) -> Result<(), Problem> {
        let mut addresses = warp.addresses(access.address);
        for (target, mask) in split(access.target, &mut addresses, mask) {
            if mask != 0 {
                self.load_from(warp, access, target, &addresses, mask)?;
            }
        }
        Ok(())
    }

    fn load_from(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        target: Target,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Problem> {
        let bytes = u64::from(access.bytes * access.count);
        self.admit(warp, target, addresses, mask, bytes, Kind::Read)?;
        let Warp { registers, local, local_bytes, .. } = warp;
        let (width, own) = (access.bytes, |lane: usize| (lane * *local_bytes) as u64);
        for (part, &slot) in access.registers.iter().enumerate().take(access.count as usize) {
            let place = |lane: usize| addresses[lane] + part as u64 * u64::from(width);
            let row = (&mut *registers, slot, mask);
            match target {
                Target::Global | Target::Const | Target::Generic => fill(row, access, |lane| {
                    // SAFETY: `admit` has checked the whole access.
                    unsafe { global::read(place(lane), width) }
                }),
                Target::Shared => fill(row, access, |lane| read_bytes(&self.shared.bytes, place(lane), width)),
                Target::Param => fill(row, access, |lane| read_bytes(self.launch.params, place(lane), width)),
                Target::Local => fill(row, access, |lane| read_bytes(local, own(lane) + place(lane), width)),
            }
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, access: &Access, mask: u32) -> Result<(), Problem> {
        let mut addresses = warp.addresses(access.address);
        for (target, mask) in split(access.target, &mut addresses, mask) {
            if mask != 0 {
                self.store_to(warp, access, target, &addresses, mask)?;
            }
        }
        Ok(())
    }

    fn store_to(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        target: Target,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Problem> {
        let bytes = access.bytes * access.count;
        self.admit(warp, target, addresses, mask, u64::from(bytes), Kind::Write)?;
        for lane in lanes(mask) {
            let address = addresses[lane];
            let values = access.registers.map(|slot| warp.registers.lane(access.wide, slot, lane));
            let parts = values.iter().take(access.count as usize).zip(0_u64..);
            match target {
                Target::Shared => self.store_shared(warp.thread(lane), address, access, &values)?,
                Target::Local => {
                    for (&value, part) in parts {
                        let start = address + (lane * warp.local_bytes) as u64 + part * u64::from(access.bytes);
                        write_bytes(&mut warp.local, start, access.bytes, value);
                    }
                }
                _ => {
                    for (&value, part) in parts {
                        // SAFETY: `admit` has checked the whole access.
                        unsafe { global::write(address + part * u64::from(access.bytes), access.bytes, value) };
                    }
                }
            }
        }
        Ok(())
    }

    fn store_shared(
        &mut self,
        thread: Thread,
        address: u64,
        access: &Access,
        values: &[u64; 4],
    ) -> Result<(), Problem> {
        let bytes = u64::from(access.bytes * access.count);
        let place = |part: usize| address + part as u64 * u64::from(access.bytes);
        let parts = 0..access.count as usize;
        let keep = u64::MAX >> (64 - 8 * access.bytes);
        let same =
            parts.clone().all(|part| read_bytes(&self.shared.bytes, place(part), access.bytes) == values[part] & keep);
        self.shared.on_write(thread, address, bytes, same, Writing::Plain)?;
        for part in parts {
            write_bytes(&mut self.shared.bytes, place(part), access.bytes, values[part]);
        }
        Ok(())
    }

    /// Checks an access of a warp and counts it. Reads of shared memory are told to the race checker here.
    pub(crate) fn admit(
        &mut self,
        warp: &Warp,
        target: Target,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: u64,
        kind: Kind,
    ) -> Result<(), Problem> {
        match target {
            Target::Global | Target::Const | Target::Generic => {
                global::check(self.launch.view, &mut self.recent, addresses, mask, bytes, kind)?;
                if target != Target::Const {
                    global::count(&mut self.counters, addresses, mask, bytes, kind);
                }
            }
            Target::Shared => {
                for lane in lanes(mask) {
                    self.shared.check_bounds(lane, addresses[lane], bytes, kind.word())?;
                    if kind == Kind::Read {
                        self.shared.on_read(warp.thread(lane), addresses[lane], bytes)?;
                    }
                }
                shared::count(&mut self.counters, addresses, mask, bytes);
            }
            Target::Local => within(addresses, mask, bytes, warp.local_bytes, "local memory", kind)?,
            Target::Param => within(addresses, mask, bytes, self.launch.params.len(), "the parameters", kind)?,
        }
        Ok(())
    }

    /// Moves addresses between the generic space and a window.
    pub(crate) fn convert_address(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> bool {
        let start = |target| if target == Target::Shared { SHARED_WINDOW } else { LOCAL_WINDOW };
        match *op {
            Op::ToGeneric { target, d, a } => {
                let row = warp.registers.get64(a).map(|address| address.wrapping_add(start(target)));
                warp.registers.set64(d, &row, mask);
            }
            Op::FromGeneric { target, d, a } => {
                let row = warp.registers.get64(a).map(|address| address.wrapping_sub(start(target)));
                warp.registers.set64(d, &row, mask);
            }
            Op::IsSpace { target, p, a } => {
                let mut row = *warp.registers.get64(a);
                let parts = split(Target::Generic, &mut row, u32::MAX);
                let wanted = if target == Target::Const { Target::Global } else { target };
                let bits = parts.iter().filter(|part| part.0 == wanted).fold(0, |bits, part| bits | part.1);
                warp.registers.set_predicate(p, bits, mask);
            }
            _ => return false,
        }
        true
    }
}

fn within(addresses: &[u64; LANES], mask: u32, bytes: u64, size: usize, what: &str, kind: Kind) -> Result<(), Problem> {
    for lane in lanes(mask) {
        let address = addresses[lane];
        if address.checked_add(bytes).is_none_or(|end| end > size as u64) {
            let detail = format!("illegal {} of {bytes} bytes at {address:#x} of {what}: {size} bytes", kind.word());
            return Err(Problem::at_lane(FaultKind::IllegalAddress, lane as u32, detail));
        }
        if !address.is_multiple_of(bytes) {
            let detail = format!("{} at {address:#x} of {what}, not a multiple of {bytes}", kind.word());
            return Err(Problem::at_lane(FaultKind::Misaligned, lane as u32, detail));
        }
    }
    Ok(())
}

/// Writes what `read` gives for each lane to its register.
#[inline(always)]
fn fill((registers, slot, mask): (&mut Registers, Slot, u32), access: &Access, read: impl Fn(usize) -> u64) {
    let value = |lane| if access.signed { sign_extend(read(lane), access.bytes) } else { read(lane) };
    if access.wide {
        let row = &mut registers.r64[slot as usize];
        lanes(mask).for_each(|lane| row[lane] = value(lane));
    } else {
        let row = &mut registers.r32[slot as usize];
        lanes(mask).for_each(|lane| row[lane] = value(lane) as u32);
    }
}

/// A little-endian element of memory; the access has been checked.
#[inline(always)]
pub(crate) fn read_bytes(memory: &[u8], address: u64, bytes: u32) -> u64 {
    // Copies of constant size are single instructions; of variable size, calls.
    match bytes {
        1 => u64::from(memory[address as usize]),
        2 => u64::from(u16::from_le_bytes(element(memory, address))),
        4 => u64::from(u32::from_le_bytes(element(memory, address))),
        _ => u64::from_le_bytes(element(memory, address)),
    }
}

#[inline(always)]
fn element<const N: usize>(memory: &[u8], address: u64) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&memory[address as usize..address as usize + N]);
    value
}

#[inline(always)]
pub(crate) fn write_bytes(memory: &mut [u8], address: u64, bytes: u32, value: u64) {
    let place = &mut memory[address as usize..];
    match bytes {
        1 => place[0] = value as u8,
        2 => place[..2].copy_from_slice(&(value as u16).to_le_bytes()),
        4 => place[..4].copy_from_slice(&(value as u32).to_le_bytes()),
        _ => place[..8].copy_from_slice(&value.to_le_bytes()),
    }
}

fn sign_extend(value: u64, bytes: u32) -> u64 {
    let unused = 64 - 8 * bytes;
    ((value << unused) as i64 >> unused) as u64
}
