//! Code, and the values that are in place when a warp starts.

use super::{Inst, Slot};

/// Special registers that do not change while a warp lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    WarpCount,
    LaneMask(Cmp3),
    SmId,
    SmCount,
    GridId,
    DynamicShared,
    TotalShared,
}

/// Which lanes a `%lanemask_*` register names, relative to the own one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cmp3 {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// Where the value of a constant slot comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Value(u64),
    Special(Special),
    /// Address of the module's variable with that index.
    Global(usize, i64),
    /// Start of dynamic shared memory.
    DynamicShared(i64),
}

/// The code of a kernel, device functions inlined.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    /// Sizes of the register files.
    pub(crate) slots32: usize,
    pub(crate) slots64: usize,
    pub(crate) predicates: usize,
    pub(crate) constants32: Vec<(Slot, Constant)>,
    pub(crate) constants64: Vec<(Slot, Constant)>,
    /// Predicates that are always true (for `setp` into `_` and the like).
    pub(crate) true_predicate: Slot,
    /// The carry flag.
    pub(crate) carry: Slot,
}
