//! What ends a launch, and the CUDA error that the driver answers for it.

use std::fmt;

/// The kinds of fault that the CUDA driver tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The launch itself is malformed: sizes of grid, block or parameters.
    InvalidValue,
    /// More threads or shared memory than the kernel or the device allows.
    OutOfResources,
    /// An access outside every allocation.
    IllegalAddress,
    /// An access that is not a multiple of its size.
    Misaligned,
    /// A device-side `assert`.
    Assert,
    /// `trap`, or an instruction whose operands make no sense.
    Trap,
    /// Blocks that wait for each other for ever.
    Deadlock,
    /// Shared memory read before anybody wrote it.
    Uninitialized,
    /// Unordered accesses to one place of shared memory.
    Race,
    /// A collective instruction that some lanes of the warp do not reach.
    Divergence,
    /// Shared memory touched while `cp.async` is writing it.
    AsyncPending,
}

impl FaultKind {
    /// The `CUresult` of this fault. Faults that a GPU would not notice are launch failures (719).
    pub fn code(self) -> i32 {
        match self {
            Self::InvalidValue => 1,
            Self::IllegalAddress => 700,
            Self::OutOfResources => 701,
            Self::Deadlock => 702,
            Self::Assert => 710,
            Self::Misaligned => 716,
            Self::Trap | Self::Uninitialized | Self::Race | Self::Divergence | Self::AsyncPending => 719,
        }
    }

    /// Whether the context is unusable afterwards, as it is after every fault of running code.
    pub fn is_sticky(self) -> bool {
        !matches!(self, Self::InvalidValue | Self::OutOfResources)
    }
}

/// Why a launch failed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// Kernel that was running.
    pub kernel: String,
    /// Line of the PTX text, counted from 1; 0 if no instruction is to blame.
    pub line: u32,
    /// Index of the block, if a block was running.
    pub block: Option<[u32; 3]>,
    /// Index of a thread that did it, if one can be named.
    pub thread: Option<[u32; 3]>,
    /// What happened, in words.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if self.line > 0 {
            write!(f, ", PTX line {}", self.line)?;
        }
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Fault {}
