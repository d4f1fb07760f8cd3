//! Execution: scalar semantics of instructions, memory, warps, blocks.

pub(crate) mod approximate;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod block;
pub(crate) mod collective;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod data;
pub(crate) mod float;
pub(crate) mod global;
pub(crate) mod half;
pub(crate) mod integer;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod registers;
pub(crate) mod rounding;
pub(crate) mod shared;
pub(crate) mod warp;

use crate::FaultKind;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// A fault before its place is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<u32>,
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn at_lane(kind: FaultKind, lane: u32, detail: impl Into<String>) -> Self {
        Self { kind, lane: Some(lane), detail: detail.into() }
    }

    pub(crate) fn of_warp(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, lane: None, detail: detail.into() }
    }
}

/// The lanes of `mask`, lowest first.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
