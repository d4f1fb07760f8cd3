//! A block: its warps take turns in an order drawn from the seed, until all have ended.

use super::{
    Problem,
    approximate::{Perturbation, splitmix},
    barrier::Barriers,
    collective::required,
    data,
    global::Recent,
    lanes,
    registers::Registers,
    shared::Shared,
    warp::Warp,
};
use crate::{
    Checks, Counters, Fault, FaultKind, LaunchConfig, View,
    ir::{Cmp3, Constant, Op, Program, Special},
};

/// Warp instructions after which a block is taken to run for ever.
const LIMIT: u64 = 1 << 32;

/// What all blocks of a launch share.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) name: &'a str,
    pub(crate) program: &'a Program,
    pub(crate) view: &'a View,
    pub(crate) params: &'a [u8],
    pub(crate) config: LaunchConfig,
    /// Addresses of the module's variables.
    pub(crate) globals: Vec<u64>,
    /// Where dynamic shared memory starts, and bytes of shared memory altogether.
    pub(crate) dynamic_start: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    pub(crate) seed: u64,
    pub(crate) checks: Checks,
    pub(crate) perturb: bool,
}

/// What the warps of a block share.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) shared: Shared,
    pub(crate) counters: Counters,
    pub(crate) recent: Recent,
    pub(crate) perturbation: Perturbation,
    barriers: Barriers,
}

/// Runs one block to its end.
pub(crate) fn run(launch: &Launch<'_>, index: [u32; 3]) -> Result<Counters, Fault> {
    let threads = launch.config.block.iter().product::<u32>() as usize;
    let count = threads.div_ceil(32);
    let linear = index.iter().fold(launch.seed, |hash, &at| splitmix(hash ^ u64::from(at)));
    let mut machine = Machine {
        launch,
        shared: Shared::new(launch.shared_bytes, count, launch.checks),
        counters: Counters::default(),
        recent: Recent::default(),
        perturbation: launch.perturb.then_some(launch.seed),
        barriers: Barriers::default(),
    };
    let mut warps: Vec<Warp> = (0..count)
        .map(|warp| Warp::new(warp, threads, registers(launch, index, warp, count), launch.local_bytes))
        .collect();
    let mut random = linear;
    loop {
        let ready: Vec<usize> =
            (0..count).filter(|&warp| warps[warp].live != 0 && warps[warp].waiting.is_none()).collect();
        let Some(last) = ready.len().checked_sub(1) else { break };
        random = splitmix(random);
        let chosen = ready[(random >> 32) as usize % (last + 1)];
        // Short turns now and then, so that warps meet in the middle of things.
        let turn = 16 << (random & 7);
        let warp = &mut warps[chosen];
        machine.turn(warp, turn).map_err(|problem| machine.fault(problem, index, warp))?;
        machine.barriers.release(&mut warps, &mut machine.shared);
        if machine.counters.warp_instructions > LIMIT {
            let problem = Problem::of_warp(FaultKind::Deadlock, "the block does not come to an end");
            return Err(machine.fault(problem, index, &warps[chosen]));
        }
    }
    match warps.iter().find(|warp| warp.live != 0) {
        None => Ok(machine.counters),
        Some(warp) => {
            let waiting = warps.iter().filter(|warp| warp.live != 0).map(|warp| warp.index).collect::<Vec<_>>();
            let detail = format!("warps {waiting:?} wait at a barrier for warps that do not come");
            Err(machine.fault(Problem::of_warp(FaultKind::Deadlock, detail), index, warp))
        }
    }
}

impl Machine<'_> {
    /// Runs `warp` for at most `turn` instructions, or until it waits or ends.
    fn turn(&mut self, warp: &mut Warp, turn: u32) -> Result<(), Problem> {
        let program = self.launch.program;
        for _ in 0..turn {
            if warp.active == 0 || warp.is_diverged() {
                warp.select()?;
            }
            if warp.active == 0 {
                return Ok(());
            }
            let inst = &program.code[warp.at as usize];
            let guard = inst.guard.map_or(u32::MAX, |(slot, negated)| warp.registers.predicate(slot, negated));
            let mask = warp.active & guard;
            self.counters.warp_instructions += 1;
            self.counters.thread_instructions += u64::from(mask.count_ones());
            warp.issued += 1;
            let carry = program.carry;
            if mask == 0 || data::execute(&inst.op, &mut warp.registers, mask, carry, self.perturbation) {
                warp.at += 1;
            } else if self.control(warp, &inst.op, mask)? {
                if warp.waiting.is_some() {
                    return Ok(());
                }
            } else {
                self.memory_or_collective(warp, &inst.op, mask)?;
            }
        }
        Ok(())
    }

    /// Instructions that decide where the warp goes on; `false` if `op` is none.
    fn control(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<bool, Problem> {
        match op {
            Op::Branch { target } => warp.jump(mask, *target),
            Op::BranchTable { index, targets } => branch_table(warp, *warp.registers.get32(*index), targets, mask)?,
            Op::Exit => warp.exit(mask),
            Op::Trap => return Err(Problem::at_lane(FaultKind::Trap, mask.trailing_zeros(), "trap")),
            Op::Assert => {
                return Err(Problem::at_lane(FaultKind::Assert, mask.trailing_zeros(), "device-side assertion failed"));
            }
            Op::Barrier(barrier) => {
                // All threads of a warp must execute the barrier; a lane that has exited never will.
                if warp.existing & !mask != 0 {
                    warp.park(mask);
                } else {
                    self.barriers.arrive(warp, barrier)?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn memory_or_collective(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Problem> {
        if required(warp, op, mask)?.is_some_and(|required| required & !mask != 0) {
            warp.park(mask);
            return Ok(());
        }
        match op {
            Op::Load(access) => self.load(warp, access, mask)?,
            Op::Store(access) => self.store(warp, access, mask)?,
            Op::Atomic(atomic) => self.atomic(warp, atomic, mask)?,
            Op::Clock { wide, d } => {
                lanes(mask).for_each(|lane| warp.registers.set_lane(*wide, *d, lane, warp.issued));
            }
            op => {
                let known = self.matrix(warp, op)?
                    || self.collective(warp, op, mask)?
                    || self.copy(warp, op, mask)?
                    || self.convert_address(warp, op, mask);
                debug_assert!(known, "{op:?} belongs to no family");
            }
        }
        warp.at += 1;
        Ok(())
    }

    fn fault(&self, problem: Problem, block: [u32; 3], warp: &Warp) -> Fault {
        let [x, y, _] = self.launch.config.block;
        let thread = problem.lane.map(|lane| {
            let linear = 32 * warp.index as u32 + lane;
            [linear % x, linear / x % y, linear / (x * y)]
        });
        let line = self.launch.program.code.get(warp.at as usize).map_or(0, |inst| inst.line);
        let kernel = self.launch.name.to_owned();
        Fault { kind: problem.kind, kernel, line, block: Some(block), thread, detail: problem.detail }
    }
}

/// Each lane goes where its index says.
fn branch_table(warp: &mut Warp, index: [u32; 32], targets: &[u32], mask: u32) -> Result<(), Problem> {
    if let Some(lane) = lanes(mask).find(|&lane| index[lane] as usize >= targets.len()) {
        let detail = format!("index {} of a branch table with {} targets", index[lane], targets.len());
        return Err(Problem::at_lane(FaultKind::Trap, lane as u32, detail));
    }
    let mut left = mask;
    while left != 0 {
        let wanted = index[left.trailing_zeros() as usize];
        let group = lanes(left).filter(|&lane| index[lane] == wanted).fold(0, |bits, lane| bits | 1 << lane);
        left &= !group;
        warp.scatter(group, targets[wanted as usize], left == 0);
    }
    Ok(())
}

/// The registers of a warp at its start: constants and special registers are set, the rest is zero.
fn registers(launch: &Launch<'_>, index: [u32; 3], warp: usize, warps: usize) -> Registers {
    let program = launch.program;
    let mut registers = Registers {
        r32: vec![[0; 32]; program.slots32],
        r64: vec![[0; 32]; program.slots64],
        predicates: vec![0; program.predicates],
    };
    registers.predicates[program.true_predicate as usize] = u32::MAX;
    let value = |constant: &Constant, lane: usize| match *constant {
        Constant::Value(value) => value,
        Constant::Special(special) => u64::from(special_value(launch, special, index, warp, warps, lane as u32)),
        Constant::Global(at, offset) => launch.globals[at].wrapping_add(offset as u64),
        Constant::DynamicShared(offset) => (launch.dynamic_start as u64).wrapping_add(offset as u64),
    };
    for (slot, constant) in &program.constants32 {
        registers.r32[*slot as usize] = std::array::from_fn(|lane| value(constant, lane) as u32);
    }
    for (slot, constant) in &program.constants64 {
        registers.r64[*slot as usize] = std::array::from_fn(|lane| value(constant, lane));
    }
    registers
}

fn special_value(launch: &Launch<'_>, special: Special, index: [u32; 3], warp: usize, warps: usize, lane: u32) -> u32 {
    let [x, y, _] = launch.config.block;
    let thread = 32 * warp as u32 + lane;
    match special {
        Special::Tid(0) => thread % x,
        Special::Tid(1) => thread / x % y,
        Special::Tid(_) => thread / (x * y),
        Special::Ntid(axis) => launch.config.block[axis],
        Special::Ctaid(axis) => index[axis],
        Special::Nctaid(axis) => launch.config.grid[axis],
        Special::LaneId => lane,
        Special::WarpId => warp as u32,
        Special::WarpCount => warps as u32,
        Special::LaneMask(Cmp3::Eq) => 1 << lane,
        Special::LaneMask(Cmp3::Le) => u32::MAX >> (31 - lane),
        Special::LaneMask(Cmp3::Lt) => (1 << lane) - 1,
        Special::LaneMask(Cmp3::Ge) => u32::MAX << lane,
        Special::LaneMask(Cmp3::Gt) => !(u32::MAX >> (31 - lane)),
        Special::SmId | Special::GridId => 0,
        Special::SmCount => 1,
        Special::DynamicShared => launch.config.dynamic_shared_bytes,
        Special::TotalShared => launch.shared_bytes as u32,
    }
}
