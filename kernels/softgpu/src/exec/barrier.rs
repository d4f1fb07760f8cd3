//! `bar.sync`, `bar.arrive`, `bar.red`: barriers of a block.

use super::{Problem, lanes, shared::Shared, warp::Warp};
use crate::{
    FaultKind,
    ir::{Barrier, BarrierKind},
};

/// Barriers that a block has.
const COUNT: usize = 16;

/// Who has arrived at one barrier.
#[derive(Debug, Clone, Copy, Default)]
struct Arrivals {
    /// Warps that arrived, waiting or not.
    warps: u32,
    /// Threads expected; `None`: all that live.
    expected: Option<u32>,
    /// Threads arrived: barriers count whole warps.
    threads: u32,
    /// Threads whose predicate held, and threads that had one.
    held: u32,
    voters: u32,
    /// What each waiting warp wants.
    reduction: Option<Barrier>,
}

#[derive(Debug, Default)]
pub(crate) struct Barriers([Arrivals; COUNT]);

impl Barriers {
    /// `warp` arrives with all its live lanes.
    pub(crate) fn arrive(&mut self, warp: &mut Warp, barrier: &Barrier) -> Result<(), Problem> {
        let lane = warp.live.trailing_zeros() as usize & 31;
        let id = warp.registers.get32(barrier.id)[lane] as usize;
        let Some(arrivals) = self.0.get_mut(id) else {
            return Err(Problem::of_warp(FaultKind::Trap, format!("there is no barrier {id}")));
        };
        let expected = barrier.count.map(|slot| warp.registers.get32(slot)[lane]);
        if expected.is_some_and(|count| count % 32 != 0) {
            return Err(Problem::of_warp(FaultKind::Trap, "the thread count of a barrier is no multiple of 32"));
        }
        if arrivals.warps != 0 && arrivals.expected != expected {
            return Err(Problem::of_warp(
                FaultKind::Divergence,
                format!("warps disagree on the count of barrier {id}"),
            ));
        }
        arrivals.expected = expected;
        arrivals.warps |= 1 << warp.index;
        arrivals.threads += 32;
        arrivals.voters += warp.live.count_ones();
        let held = warp.registers.predicate(barrier.p, barrier.negated) & warp.live;
        arrivals.held += held.count_ones();
        if barrier.kind == BarrierKind::Arrive {
            warp.at += 1;
        } else {
            arrivals.reduction = Some(*barrier);
            warp.waiting = Some(id);
        }
        Ok(())
    }

    /// Lets the warps go whose barrier is complete.
    pub(crate) fn release(&mut self, warps: &mut [Warp], shared: &mut Shared) {
        let alive = warps.iter().filter(|warp| warp.live != 0).fold(0_u32, |set, warp| set | 1 << warp.index);
        for (id, arrivals) in self.0.iter_mut().enumerate() {
            let complete = match arrivals.expected {
                Some(threads) => arrivals.threads >= threads,
                None => arrivals.warps & alive == alive,
            };
            if arrivals.warps == 0 || !complete {
                continue;
            }
            shared.synchronize(arrivals.warps);
            for warp in warps.iter_mut().filter(|warp| warp.waiting == Some(id)) {
                finish(warp, arrivals);
            }
            *arrivals = Arrivals::default();
        }
    }
}

/// The warp passes the barrier, and learns the result of the reduction.
fn finish(warp: &mut Warp, arrivals: &Arrivals) {
    warp.waiting = None;
    warp.at += 1;
    let Some(barrier) = arrivals.reduction else { return };
    let holds = match barrier.kind {
        BarrierKind::Popc => {
            for lane in lanes(warp.live) {
                warp.registers.set_lane(false, barrier.d, lane, u64::from(arrivals.held));
            }
            return;
        }
        BarrierKind::And => arrivals.held == arrivals.voters,
        BarrierKind::Or => arrivals.held != 0,
        BarrierKind::Sync | BarrierKind::Arrive => return,
    };
    warp.registers.set_predicate(barrier.d, if holds { u32::MAX } else { 0 }, warp.live);
}
