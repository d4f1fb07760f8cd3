//! Decoded instructions: names are register slots, types and modifiers are enums.
//!
//! A warp has three register files: 32-bit lanes (16-bit registers too, zero-extended), 64-bit lanes, and predicates
//! (one bit a lane). Immediates and special registers are slots that are filled when the warp starts, so that every
//! operand is a slot.

mod program;
mod types;

pub(crate) use program::{Cmp3, Constant, Program, Special};
pub(crate) use types::{BoolOp, Cmp, Compare, Mode, Rounding, Ty};

use crate::exec::{convert::Conversion, float::FloatOp, half::HalfOp, integer::IntOp};

pub(crate) type Slot = u32;

/// Where a memory instruction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Global,
    /// Constant memory: global memory that no counter counts.
    Const,
    Shared,
    Local,
    Param,
    /// Decided by each lane's address.
    Generic,
}

/// A register plus an offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: Slot,
    /// Whether the base is a 64-bit register.
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

/// Shape of a load or store: one to four elements a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) target: Target,
    pub(crate) address: Address,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(crate) bytes: u32,
    /// Loads extend the sign.
    pub(crate) signed: bool,
    pub(crate) count: u32,
    /// The registers are 64-bit ones.
    pub(crate) wide: bool,
    pub(crate) registers: [Slot; 4],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    /// Wrapping increment and decrement.
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Atomic {
    pub(crate) op: AtomOp,
    pub(crate) ty: Ty,
    pub(crate) target: Target,
    pub(crate) address: Address,
    /// `None` for `red`.
    pub(crate) d: Option<Slot>,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a block barrier does besides waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    /// `bar.arrive`: counts, does not wait.
    Arrive,
    Popc,
    And,
    Or,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    pub(crate) id: Slot,
    /// Number of threads, if given.
    pub(crate) count: Option<Slot>,
    pub(crate) d: Slot,
    pub(crate) p: Slot,
    pub(crate) negated: bool,
}

/// Element types of tensor-core operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Bf16,
    F16,
    Tf32,
}

/// `mma.sync.m16n8kK.row.col` with f32 accumulators.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mma {
    pub(crate) element: Element,
    /// 4, 8 or 16.
    pub(crate) k: usize,
    pub(crate) d: [Slot; 4],
    pub(crate) a: [Slot; 4],
    pub(crate) b: [Slot; 2],
    pub(crate) c: [Slot; 4],
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Int32 {
        op: IntOp,
        d: Slot,
        s: [Slot; 4],
    },
    Int16 {
        op: IntOp,
        signed: bool,
        d: Slot,
        s: [Slot; 4],
    },
    Int64 {
        op: IntOp,
        d: Slot,
        s: [Slot; 4],
    },
    Lop3 {
        table: u8,
        d: Slot,
        s: [Slot; 3],
    },
    /// `a + b` or `a * b + c` halves with the warp's carry flag; `add` holds the addend of the 32- or 64-bit sum.
    Carry {
        wide: bool,
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// `mul.wide`, `mad.wide` (32 x 32 + 64).
    Wide {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    Float32 {
        op: FloatOp,
        mode: Mode,
        d: Slot,
        s: [Slot; 3],
    },
    Float64 {
        op: FloatOp,
        d: Slot,
        s: [Slot; 3],
    },
    Half {
        op: HalfOp,
        element: Element,
        packed: bool,
        d: Slot,
        s: [Slot; 3],
    },
    Mov32 {
        d: Slot,
        a: Slot,
    },
    Mov64 {
        d: Slot,
        a: Slot,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
        negated: bool,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
        negated: bool,
    },
    /// `setp`: result and, if wanted, the result of the negated comparison.
    SetPredicate {
        compare: Compare,
        p: Option<Slot>,
        q: Option<Slot>,
    },
    /// `set`: all ones or 1.0 where it holds.
    SetRegister {
        compare: Compare,
        value: u32,
        d: Slot,
    },
    /// Predicates: `a op b`; `mov` is `a and a`, `not` is `a xor true`.
    Logic {
        op: BoolOp,
        d: Slot,
        a: Slot,
        b: Slot,
        negate_a: bool,
        negate_b: bool,
    },
    Convert {
        conversion: Conversion,
        d: Slot,
        a: Slot,
    },
    /// `cvt.rn.bf16x2.f32 d, a, b`: `a` goes to the upper half.
    ConvertPair {
        element: Element,
        rounding: Rounding,
        relu: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// `mov.b64 d, {lo, hi}` and `mov.b32 d, {lo, hi}`; parts of 16 or 32 bits, lowest first.
    Pack {
        wide: bool,
        d: Slot,
        part_bits: u32,
        parts: Box<[Slot]>,
    },
    Unpack {
        wide: bool,
        a: Slot,
        part_bits: u32,
        parts: Box<[Option<Slot>]>,
    },
    Load(Access),
    Store(Access),
    Atomic(Atomic),
    /// `cvta` and `cvta.to` of a windowed space.
    ToGeneric {
        target: Target,
        d: Slot,
        a: Slot,
    },
    FromGeneric {
        target: Target,
        d: Slot,
        a: Slot,
    },
    IsSpace {
        target: Target,
        p: Slot,
        a: Slot,
    },
    CopyAsync {
        bytes: u32,
        to: Address,
        from: Address,
        source_bytes: Option<Slot>,
    },
    CopyCommit,
    CopyWait {
        pending: u32,
    },
    CopyWaitAll,
    LoadMatrix {
        count: u32,
        transposed: bool,
        address: Address,
        d: [Slot; 4],
    },
    MoveMatrix {
        d: Slot,
        a: Slot,
    },
    Mma(Box<Mma>),
    Shuffle {
        mode: ShuffleMode,
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
        members: Slot,
    },
    Vote {
        vote: Vote,
        d: Slot,
        p: Slot,
        negated: bool,
        members: Slot,
    },
    Match {
        all: bool,
        wide: bool,
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        members: Slot,
    },
    Reduce {
        op: IntOp,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    WarpSync {
        members: Slot,
    },
    Barrier(Barrier),
    Clock {
        wide: bool,
        d: Slot,
    },
    Branch {
        target: u32,
    },
    BranchTable {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    Assert,
    /// Fences, prefetches, `nanosleep`: nothing to do here.
    Nothing,
}

/// An instruction in place.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Predicate and whether it is negated.
    pub(crate) guard: Option<(Slot, bool)>,
    pub(crate) line: u32,
}
