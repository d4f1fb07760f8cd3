//! Instructions in which the lanes of a warp see each other.

use super::{LANES, Problem, block::Machine, integer::lane32, lanes, warp::Warp};
use crate::{
    FaultKind,
    ir::{Op, ShuffleMode, Slot, Vote},
};

/// The lanes that must arrive at `op` together, if any must. `mask`: the lanes that are there.
pub(crate) fn required(warp: &Warp, op: &Op, mask: u32) -> Result<Option<u32>, Problem> {
    let members = match *op {
        Op::Mma(_) | Op::LoadMatrix { .. } | Op::MoveMatrix { .. } => return Ok(Some(u32::MAX)),
        Op::Shuffle { members, .. }
        | Op::Vote { members, .. }
        | Op::Match { members, .. }
        | Op::Reduce { members, .. }
        | Op::WarpSync { members } => members,
        _ => return Ok(None),
    };
    let row = warp.registers.get32(members);
    let mut all = 0;
    for lane in lanes(mask) {
        if row[lane] >> lane & 1 == 0 {
            let detail = format!("the lane is not in its own member mask {:#010x}", row[lane]);
            return Err(Problem::at_lane(FaultKind::Divergence, lane as u32, detail));
        }
        all |= row[lane];
    }
    // Lanes of a block that is no multiple of 32 never existed; those that have exited are missed.
    Ok(Some(all & warp.existing))
}

impl Machine<'_> {
    /// Executes an instruction of this family; `false` if it is none. All lanes that it needs are in `mask`.
    pub(crate) fn collective(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<bool, Problem> {
        match *op {
            Op::Shuffle { mode, d, p, a, b, c, members } => shuffle(warp, mode, (d, p), [a, b, c, members], mask)?,
            Op::Vote { vote, d, p, negated, members } => {
                let bits = warp.registers.predicate(p, negated) & mask;
                self.vote(warp, vote, d, bits, members, mask);
            }
            Op::Match { all, wide, d, p, a, members } => match_lanes(warp, all, wide, (d, p), a, members, mask),
            Op::Reduce { op, d, a, members } => {
                let (row, members) = (*warp.registers.get32(a), *warp.registers.get32(members));
                for lane in lanes(mask) {
                    let values = lanes(members[lane] & mask).map(|member| row[member]);
                    let total = values.reduce(|x, y| lane32(op, [x, y, 0, 0]));
                    warp.registers.set_lane(false, d, lane, u64::from(total.unwrap_or(0)));
                }
            }
            Op::ActiveMask { d } => warp.registers.set32(d, &[mask; LANES], mask),
            Op::WarpSync { .. } => self.shared.synchronize(1 << warp.index),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn vote(&mut self, warp: &mut Warp, vote: Vote, d: Slot, bits: u32, members: Slot, mask: u32) {
        let row = *warp.registers.get32(members);
        for lane in lanes(mask) {
            let group = row[lane] & mask;
            let found = bits & group;
            let holds = match vote {
                Vote::All => found == group,
                Vote::Any => found != 0,
                Vote::Uniform => found == 0 || found == group,
                Vote::Ballot => {
                    warp.registers.set_lane(false, d, lane, u64::from(found));
                    continue;
                }
            };
            warp.registers.set_predicate(d, if holds { u32::MAX } else { 0 }, 1 << lane);
        }
    }
}

/// `shfl.sync`, as the PTX ISA writes it: `c` holds the clamp and, from bit 8, the mask of the segment.
fn shuffle(
    warp: &mut Warp,
    mode: ShuffleMode,
    (d, p): (Slot, Option<Slot>),
    [a, b, c, members]: [Slot; 4],
    mask: u32,
) -> Result<(), Problem> {
    let registers = &mut warp.registers;
    let (values, by, limits) = (*registers.get32(a), *registers.get32(b), *registers.get32(c));
    let members = *registers.get32(members);
    let (mut result, mut inside) = (values, 0);
    for lane in lanes(mask) {
        let (by, clamp, segment) =
            (by[lane] as usize & 31, limits[lane] as usize & 31, (limits[lane] >> 8) as usize & 31);
        let most = lane & segment | clamp & !segment;
        let least = lane & segment;
        let (source, holds) = match mode {
            ShuffleMode::Up => (lane.wrapping_sub(by), lane as isize - by as isize >= most as isize),
            ShuffleMode::Down => (lane + by, lane + by <= most),
            ShuffleMode::Butterfly => (lane ^ by, lane ^ by <= most),
            ShuffleMode::Index => {
                let source = least | by & !segment;
                (source, source <= most)
            }
        };
        if holds {
            if members[lane] & mask & 1 << source == 0 {
                let detail = format!("shfl.sync reads lane {source}, which takes no part");
                return Err(Problem::at_lane(FaultKind::Divergence, lane as u32, detail));
            }
            result[lane] = values[source];
            inside |= 1 << lane;
        }
    }
    registers.set32(d, &result, mask);
    if let Some(p) = p {
        registers.set_predicate(p, inside, mask);
    }
    Ok(())
}

fn match_lanes(
    warp: &mut Warp,
    all: bool,
    wide: bool,
    (d, p): (Slot, Option<Slot>),
    a: Slot,
    members: Slot,
    mask: u32,
) {
    let values: [u64; LANES] = std::array::from_fn(|lane| warp.registers.lane(wide, a, lane));
    let members = *warp.registers.get32(members);
    for lane in lanes(mask) {
        let group = members[lane] & mask;
        let equal = lanes(group).filter(|&other| values[other] == values[lane]).fold(0, |bits, at| bits | 1_u32 << at);
        let agree = equal == group;
        let found = if all && !agree { 0 } else { equal };
        warp.registers.set_lane(false, d, lane, u64::from(found));
        if let Some(p) = p {
            warp.registers.set_predicate(p, if agree { u32::MAX } else { 0 }, 1 << lane);
        }
    }
}
