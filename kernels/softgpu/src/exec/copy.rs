//! `cp.async`: bytes arrive no sooner than the wait that covers them.

use super::{
    Problem,
    block::Machine,
    global::{self, Kind},
    lanes,
    shared::{self, Writing},
    warp::Warp,
};
use crate::{
    FaultKind,
    ir::{Address, Op, Slot},
};

/// A copy in flight.
#[derive(Debug, Clone, Copy)]
struct Copy {
    lane: usize,
    /// Number of groups that the lane had committed when it was issued.
    group: u32,
    to: u64,
    from: u64,
    bytes: u32,
    /// Bytes to read; zeros fill the rest.
    source_bytes: u32,
}

/// The copies of a warp and, per lane, the groups committed so far.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    flying: Vec<Copy>,
    committed: [u32; 32],
}

impl Machine<'_> {
    /// Executes an instruction of this family; `false` if it is none.
    pub(crate) fn copy(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<bool, Problem> {
        match *op {
            Op::CopyAsync { bytes, to, from, source_bytes } => self.issue(warp, bytes, to, from, source_bytes, mask)?,
            Op::CopyCommit => lanes(mask).for_each(|lane| warp.copies.committed[lane] += 1),
            // Copies that are not yet committed stay in flight.
            Op::CopyWait { pending } => {
                self.land(warp, mask, |group, committed| group < committed && committed - group > pending);
            }
            Op::CopyWaitAll => self.land(warp, mask, |_, _| true),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn issue(
        &mut self,
        warp: &mut Warp,
        bytes: u32,
        to: Address,
        from: Address,
        source_bytes: Option<Slot>,
        mask: u32,
    ) -> Result<(), Problem> {
        let (targets, sources) = (warp.addresses(to), warp.addresses(from));
        let sizes = source_bytes.map(|slot| *warp.registers.get32(slot));
        let reading = lanes(mask).filter(|&lane| sizes.is_none_or(|sizes| sizes[lane] > 0));
        let reading = reading.fold(0, |bits, lane| bits | 1 << lane);
        if reading != 0 {
            self.check_source(&sources, reading, bytes, sizes.as_ref())?;
        }
        shared::count(&mut self.counters, &targets, mask, u64::from(bytes));
        for lane in lanes(mask) {
            let source_bytes = sizes.map_or(bytes, |sizes| sizes[lane]);
            if source_bytes > bytes {
                let detail = format!("cp.async of {bytes} bytes is told to read {source_bytes}");
                return Err(Problem::at_lane(FaultKind::Trap, lane as u32, detail));
            }
            let (to, from) = (targets[lane], sources[lane]);
            self.shared.check_bounds(lane, to, u64::from(bytes), "cp.async")?;
            self.shared.on_write(warp.thread(lane), to, u64::from(bytes), false, Writing::Begin)?;
            let group = warp.copies.committed[lane];
            warp.copies.flying.push(Copy { lane, group, to, from, bytes, source_bytes });
        }
        Ok(())
    }

    /// The bytes that are read must be there; those that are not read need not.
    fn check_source(
        &mut self,
        sources: &[u64; 32],
        mask: u32,
        bytes: u32,
        sizes: Option<&[u32; 32]>,
    ) -> Result<(), Problem> {
        let full = lanes(mask).all(|lane| sizes.is_none_or(|sizes| sizes[lane] >= bytes));
        if full {
            global::check(self.launch.view, &mut self.recent, sources, mask, u64::from(bytes), Kind::Read)?;
        } else {
            for lane in lanes(mask) {
                let read = sizes.map_or(bytes, |sizes| sizes[lane]);
                let checked = self.launch.view.check(sources[lane], u64::from(read), u64::from(bytes));
                checked.map_err(|error| {
                    let detail = format!("illegal cp.async from global memory: {error}");
                    Problem::at_lane(FaultKind::IllegalAddress, lane as u32, detail)
                })?;
            }
        }
        global::count(&mut self.counters, sources, mask, u64::from(bytes), Kind::Read);
        Ok(())
    }

    /// Completes the copies of the lanes of `mask` for which `due(group, committed)` holds.
    fn land(&mut self, warp: &mut Warp, mask: u32, due: impl Fn(u32, u32) -> bool) {
        let mut flying = std::mem::take(&mut warp.copies.flying);
        let committed = warp.copies.committed;
        flying.retain(|copy| {
            if mask >> copy.lane & 1 == 0 || !due(copy.group, committed[copy.lane]) {
                return true;
            }
            let mut data = [0; 16];
            for (at, byte) in data[..copy.source_bytes as usize].iter_mut().enumerate() {
                // SAFETY: the source was checked when the copy was issued, and allocations outlive the launch.
                *byte = unsafe { global::read(copy.from + at as u64, 1) } as u8;
            }
            self.shared.arrive(warp.thread(copy.lane), copy.to, &data[..copy.bytes as usize]);
            false
        });
        warp.copies.flying = flying;
    }
}
