//! Decoded instructions: names are register slots, types and modifiers are enums.
//!
//! A warp has three register files: 32-bit lanes (16-bit registers too, zero-extended), 64-bit lanes, and predicates
//! (one bit a lane). Immediates and special registers are slots that are filled when the warp starts, so that every
//! operand is a slot.

use crate::exec::{convert::Conversion, float::FloatOp, half::HalfOp, integer::IntOp};

pub(crate) type Slot = u32;

/// Scalar types of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Ty {
    /// The type of a modifier. Untyped bits (`.b32`) are unsigned integers.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "u8" | "b8" => Self::U8,
            "s8" => Self::S8,
            "u16" | "b16" => Self::U16,
            "s16" => Self::S16,
            "u32" | "b32" => Self::U32,
            "s32" => Self::S32,
            "u64" | "b64" => Self::U64,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::U8 | Self::S8 => 8,
            Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::U32 | Self::S32 | Self::F32 | Self::Tf32 | Self::F16x2 | Self::Bf16x2 => 32,
            Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 | Self::F64)
    }
}

/// IEEE rounding directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    NearestEven,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Modifiers of f32 arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) rounding: Rounding,
    /// Subnormal operands and results become zero.
    pub(crate) ftz: bool,
    /// Results are clamped to [0, 1], NaN to 0.
    pub(crate) sat: bool,
}

/// Comparisons; the `u` ones hold for NaN too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

/// A comparison of two registers, combined with a predicate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compare {
    pub(crate) cmp: Cmp,
    pub(crate) ty: Ty,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    /// `c` of `setp.lt.and`, negated or not.
    pub(crate) combine: Option<(BoolOp, Slot, bool)>,
    pub(crate) ftz: bool,
}

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
