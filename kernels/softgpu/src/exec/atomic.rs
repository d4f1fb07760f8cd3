//! `atom` and `red`.

use super::{
    Problem,
    block::Machine,
    global::{self, Kind, atomic_result},
    lanes,
    memory::{read_bytes, split, write_bytes},
    shared::Writing,
    warp::Warp,
};
use crate::ir::{Atomic, Target};

impl Machine<'_> {
    /// Lanes take their turns lowest first.
    pub(crate) fn atomic(&mut self, warp: &mut Warp, atomic: &Atomic, mask: u32) -> Result<(), Problem> {
        let (wide, bytes) = (atomic.ty.bits() == 64, atomic.ty.bits() / 8);
        let mut addresses = warp.addresses(atomic.address);
        for (target, mask) in split(atomic.target, &mut addresses, mask) {
            if mask == 0 {
                continue;
            }
            self.admit(warp, target, &addresses, mask, u64::from(bytes), Kind::Atomic)?;
            for lane in lanes(mask) {
                let (b, c) = (warp.registers.lane(wide, atomic.b, lane), warp.registers.lane(wide, atomic.c, lane));
                let operation = |old| atomic_result(atomic.op, atomic.ty, old, b, c);
                let address = addresses[lane];
                let old = match target {
                    Target::Shared => {
                        self.shared.check_written(warp.thread(lane), address, u64::from(bytes))?;
                        self.shared.on_write(warp.thread(lane), address, u64::from(bytes), false, Writing::Atomic)?;
                        let old = read_bytes(&self.shared.bytes, address, bytes);
                        write_bytes(&mut self.shared.bytes, address, bytes, operation(old));
                        old
                    }
                    // SAFETY: `admit` has checked the access.
                    _ => unsafe { global::update(address, bytes, operation) },
                };
                if let Some(d) = atomic.d {
                    warp.registers.set_lane(wide, d, lane, old);
                }
            }
        }
        Ok(())
    }
}
