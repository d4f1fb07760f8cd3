//! Runs a kernel over a grid.

use crate::{
    AllocationTable, Counters, Fault, FaultKind, Kernel, Module, Settings,
    exec::block::{self, Launch},
};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

/// Most threads of a block.
const MAX_THREADS: u64 = 1024;
/// Most threads of a block along each axis.
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Most blocks of a grid along each axis.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Most shared memory of a block on compute capability 8.0, dynamic and static, in bytes.
const MAX_SHARED: usize = 163 * 1024;

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads per block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory per block in bytes.
    pub dynamic_shared_bytes: u32,
}

/// Runs `kernel` of `module` over the grid and returns when its last block has ended.
///
/// `params` is the parameter buffer: each argument at its [`crate::Param::offset`].
///
/// # Errors
/// The launch is malformed, or a thread faulted; then memory holds whatever the blocks wrote until then. Of several
/// faults the one of the lowest block is reported, among those that ran.
pub fn launch(
    kernel: &Kernel,
    module: &Module,
    table: &AllocationTable,
    config: &LaunchConfig,
    params: &[u8],
    settings: &Settings,
) -> Result<Counters, Fault> {
    let dynamic_start = kernel.dynamic_shared_start;
    let shared_bytes = dynamic_start + config.dynamic_shared_bytes as usize;
    check(kernel, config, params, shared_bytes)?;
    let view = table.view();
    let launch = Launch {
        name: &kernel.name,
        program: &kernel.program,
        view: &view,
        params,
        config: *config,
        globals: module.globals().iter().map(|global| global.address).collect(),
        dynamic_start,
        shared_bytes,
        local_bytes: kernel.local_bytes,
        seed: settings.seed,
        checks: settings.checks,
        perturb: settings.perturb,
    };
    let blocks: u64 = config.grid.iter().map(|&count| u64::from(count)).product();
    let threads = settings.threads.get().min(blocks as usize).max(1);
    let stop = AtomicBool::new(false);
    let share = |first: usize| run_share(&launch, first as u64, threads as u64, blocks, &stop);
    let results: Vec<_> = if threads == 1 {
        vec![share(0)]
    } else {
        thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|first| scope.spawn(move || share(first))).collect();
            let own = share(0);
            let others = workers.into_iter().map(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(own).chain(others).collect()
        })
    };
    let mut total = Counters::default();
    let mut fault: Option<(u64, Fault)> = None;
    for result in results {
        match result {
            Ok(counters) => total += counters,
            Err((at, found)) if fault.as_ref().is_none_or(|(first, _)| at < *first) => fault = Some((at, found)),
            Err(_) => {}
        }
    }
    fault.map_or(Ok(total), |(_, fault)| Err(fault))
}

/// Runs every `step`-th block from `first`: which thread of the host runs a block follows from its index alone.
fn run_share(
    launch: &Launch<'_>,
    first: u64,
    step: u64,
    blocks: u64,
    stop: &AtomicBool,
) -> Result<Counters, (u64, Fault)> {
    let [width, height, _] = launch.config.grid.map(u64::from);
    let mut total = Counters::default();
    let mut at = first;
    while at < blocks && !stop.load(Relaxed) {
        let index = [at % width, at / width % height, at / (width * height)].map(|axis| axis as u32);
        total += block::run(launch, index).map_err(|fault| {
            stop.store(true, Relaxed);
            (at, fault)
        })?;
        at += step;
    }
    Ok(total)
}

fn check(kernel: &Kernel, config: &LaunchConfig, params: &[u8], shared_bytes: usize) -> Result<(), Fault> {
    let refuse = |kind, detail: String| {
        Err(Fault { kind, kernel: kernel.name.clone(), line: 0, block: None, thread: None, detail })
    };
    let LaunchConfig { grid, block, .. } = *config;
    let bad =
        |sizes: [u32; 3], limits: [u32; 3]| sizes.iter().zip(limits).any(|(&size, most)| size == 0 || size > most);
    if bad(grid, MAX_GRID) {
        return refuse(FaultKind::InvalidValue, format!("a grid of {grid:?} blocks"));
    }
    let threads: u64 = block.iter().map(|&size| u64::from(size)).product();
    if bad(block, MAX_BLOCK) || threads > MAX_THREADS {
        return refuse(FaultKind::InvalidValue, format!("a block of {block:?} threads"));
    }
    if threads > kernel.max_threads as u64 {
        let most = kernel.max_threads;
        return refuse(FaultKind::OutOfResources, format!("{threads} threads per block: compiled for at most {most}"));
    }
    if shared_bytes > MAX_SHARED {
        return refuse(FaultKind::OutOfResources, format!("{shared_bytes} bytes of shared memory: {MAX_SHARED} exist"));
    }
    if params.len() != kernel.param_bytes {
        let (given, wanted) = (params.len(), kernel.param_bytes);
        return refuse(FaultKind::InvalidValue, format!("{given} bytes of parameters, the kernel takes {wanted}"));
    }
    Ok(())
}
