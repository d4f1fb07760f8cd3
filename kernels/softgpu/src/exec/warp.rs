//! A warp: registers, and where each of its lanes is.
//!
//! Lanes that are at one place run together as a fragment. The fragment with the lowest place runs, so that the others
//! are caught up with (minimum-PC reconvergence); fragments that meet become one. A fragment at a collective
//! instruction whose partners are elsewhere is parked until they come.

use super::{LANES, Problem, copy::Copies, registers::Registers, shared::Thread};
use crate::FaultKind;

/// Lanes at one place.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    at: u32,
    lanes: u32,
    parked: bool,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) registers: Registers,
    /// Next instruction of the running fragment.
    pub(crate) at: u32,
    /// Lanes of the running fragment.
    pub(crate) active: u32,
    others: Vec<Fragment>,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Lanes that the block has threads for.
    pub(crate) existing: u32,
    /// Barrier that the warp waits at.
    pub(crate) waiting: Option<usize>,
    /// Local memory, lane after lane.
    pub(crate) local: Vec<u8>,
    pub(crate) local_bytes: usize,
    pub(crate) copies: Copies,
    /// Instructions issued, which serves as the clock.
    pub(crate) issued: u64,
}

impl Warp {
    pub(crate) fn new(index: usize, threads: usize, registers: Registers, local_bytes: usize) -> Self {
        let lanes = threads.saturating_sub(32 * index).min(LANES);
        let existing = u32::MAX >> (LANES - lanes);
        Self {
            index,
            registers,
            at: 0,
            active: existing,
            others: Vec::new(),
            live: existing,
            existing,
            waiting: None,
            // Uninitialized floats read as NaN.
            local: vec![0xFF; LANES * local_bytes],
            local_bytes,
            copies: Copies::default(),
            issued: 0,
        }
    }

    pub(crate) fn thread(&self, lane: usize) -> Thread {
        Thread { warp: self.index, lane }
    }

    pub(crate) fn is_diverged(&self) -> bool {
        !self.others.is_empty()
    }

    /// The lanes of `mask` go on at `target`, the rest of the fragment at the next instruction.
    pub(crate) fn jump(&mut self, mask: u32, target: u32) {
        let rest = self.active & !mask;
        if rest != 0 {
            self.others.push(Fragment { at: self.at + 1, lanes: rest, parked: false });
        }
        self.active = mask;
        self.at = target;
    }

    /// The lanes of `mask` leave the fragment for `target`; with the last ones what is left of it goes on.
    pub(crate) fn scatter(&mut self, mask: u32, target: u32, last: bool) {
        self.others.push(Fragment { at: target, lanes: mask, parked: false });
        self.active &= !mask;
        self.at += u32::from(last);
    }

    /// The lanes of `mask` wait here for others; the rest of the fragment (its guard is false) goes on.
    pub(crate) fn park(&mut self, mask: u32) {
        let rest = self.active & !mask;
        if rest != 0 {
            self.others.push(Fragment { at: self.at + 1, lanes: rest, parked: false });
        }
        self.others.push(Fragment { at: self.at, lanes: mask, parked: true });
        self.active = 0;
    }

    /// The lanes of `mask` end. Who waits for all live lanes may now go on.
    pub(crate) fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        let rest = self.active & !mask;
        self.others.iter_mut().for_each(|fragment| fragment.parked = false);
        self.active = rest;
        self.at += 1;
    }

    /// Merges fragments that have met and makes the lowest one that can run the running one; with none left, `active`
    /// is zero.
    pub(crate) fn select(&mut self) -> Result<(), Problem> {
        if self.active != 0 {
            self.others.push(Fragment { at: self.at, lanes: self.active, parked: false });
            self.active = 0;
        }
        self.others.sort_unstable_by_key(|fragment| fragment.at);
        self.others.dedup_by(|later, earlier| {
            let met = later.at == earlier.at;
            if met {
                earlier.lanes |= later.lanes;
                earlier.parked = false;
            }
            met
        });
        let next = self.others.iter().position(|fragment| !fragment.parked);
        if let Some(next) = next {
            let fragment = self.others.remove(next);
            (self.at, self.active) = (fragment.at, fragment.lanes);
            return Ok(());
        }
        let Some(first) = self.others.first() else { return Ok(()) };
        self.at = first.at;
        let lanes = first.lanes;
        Err(Problem::at_lane(
            FaultKind::Divergence,
            lanes.trailing_zeros(),
            format!(
                "lanes {lanes:#010x} wait at a collective instruction for lanes that never come \
                 ({:#010x} of the warp are alive)",
                self.live
            ),
        ))
    }
}
