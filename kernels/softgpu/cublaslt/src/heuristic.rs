//! The choice of an algorithm. There is one; what it was chosen for is written into it and checked when it is used,
//! as an algorithm of a GPU works only for what it was chosen for.

use std::ffi::c_int;

use crate::{
    abi::{Handle, Refusal, Status, status},
    descriptors::{HANDLES, LAYOUTS, Layout, OPERATIONS, Operation, PREFERENCES},
    elements::Kind,
    matmul::{Shapes, shapes},
};

/// First word of an algorithm.
const MAGIC: u64 = u64::from_le_bytes(*b"softgemm");
/// Workspace that the algorithm claims, if the preference allows as much. It is overwritten with NaN by each product:
/// whoever shares it with something else finds out.
const WORKSPACE: u64 = 64 << 10;
/// No instruction of the device loads more at once, so a better alignment changes nothing.
const WIDEST_LOAD: u32 = 16;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Algorithm {
    magic: u64,
    /// Types and operation.
    problem: u64,
    pub(crate) workspace: u64,
    /// Bytes that the addresses of A, B, C, D must be multiples of.
    pub(crate) alignments: [u32; 4],
    unused: [u64; 3],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub(crate) struct HeuristicResult {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// What an algorithm depends on, as a number.
fn problem(operation: &Operation, kinds: [Kind; 4]) -> u64 {
    let flags = [operation.transpose_a, operation.transpose_b, operation.with_bias];
    let word = flags.iter().fold(1, |word, &flag| word << 1 | u64::from(flag));
    kinds.iter().fold(word, |word, &kind| word << 2 | kind as u64)
}

impl Algorithm {
    fn new(operation: &Operation, kinds: [Kind; 4], workspace: u64, alignments: [u32; 4]) -> Self {
        let alignments = alignments.map(|alignment| alignment.min(WIDEST_LOAD));
        Self { magic: MAGIC, problem: problem(operation, kinds), workspace, alignments, unused: [0; 3] }
    }

    /// Refuses an algorithm that was chosen for something else.
    pub(crate) fn check(&self, operation: &Operation, kinds: [Kind; 4]) -> Result<(), Refusal> {
        let fits = self.magic == MAGIC && self.problem == problem(operation, kinds);
        if fits { Ok(()) } else { Err(Refusal::InvalidValue) }
    }
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the library's own signature")]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: Handle,
    operation: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    d: Handle,
    preference: Handle,
    asked: c_int,
    results: *mut HeuristicResult,
    found: *mut c_int,
) -> Status {
    let choose = || {
        HANDLES.get(handle)?;
        let operation = OPERATIONS.get(operation)?;
        let layouts = [LAYOUTS.get(a)?, LAYOUTS.get(b)?, LAYOUTS.get(c)?, LAYOUTS.get(d)?];
        let preference = PREFERENCES.get(preference)?;
        if asked < 1 || results.is_null() || found.is_null() {
            return Err(Refusal::InvalidValue);
        }
        let Shapes { .. } = shapes(&operation, &layouts)?;
        let workspace = preference.workspace.min(WORKSPACE);
        let kinds = layouts.map(|Layout { kind, .. }| kind);
        let algorithm = Algorithm::new(&operation, kinds, workspace, preference.alignments);
        let (workspace, waves) = (workspace as usize, 1.0);
        // SAFETY: not null, and with room for at least the one result that was asked for.
        unsafe {
            results.write(HeuristicResult { algorithm, workspace, state: 0, waves, reserved: [0; 4] });
            found.write(1);
        }
        Ok(())
    };
    status(choose())
}
