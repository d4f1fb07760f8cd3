//! Result codes, data types and reductions of NCCL.

use std::{
    cell::Cell,
    ffi::{CStr, CString, c_char, c_int},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// `ncclResult_t`: 0, or a [`Failure`].
pub(crate) type Outcome = u32;
/// Communicators: numbers that only this library understands.
pub(crate) type Handle = usize;

/// The results other than success that this library answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Failure {
    UnhandledCudaError = 1,
    SystemError = 2,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

impl Failure {
    /// A failure as the hub sends it.
    pub(crate) fn from_code(code: u32) -> Self {
        match code {
            2 => Self::SystemError,
            4 => Self::InvalidArgument,
            5 => Self::InvalidUsage,
            _ => Self::RemoteError,
        }
    }
}

pub(crate) fn outcome(result: Result<(), Failure>) -> Outcome {
    result.err().map_or(0, |failure| failure as Outcome)
}

/// `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataType {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F16,
    F32,
    F64,
    Bf16,
}

impl DataType {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        use DataType::{Bf16, F16, F32, F64, I8, I32, I64, U8, U32, U64};
        [I8, U8, I32, U32, I64, U64, F16, F32, F64, Bf16].get(code as usize).copied()
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// `ncclRedOp_t`, as far as this library has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Max,
    Min,
}

impl Reduction {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Sum),
            2 => Some(Self::Max),
            3 => Some(Self::Min),
            _ => None,
        }
    }
}

/// 2.28.7.
const VERSION: c_int = 2_28_07;

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Outcome {
    // SAFETY: the caller passes a valid pointer.
    outcome(unsafe { put(version, VERSION) })
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(result: Outcome) -> *const c_char {
    let text: &CStr = match result {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        3 => c"internal error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// The latest error message of this process. Each is kept for good: the caller may hold on to it, and there are few.
static LAST_ERROR: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// Remembers a message, shows it on stderr, and hands the failure on.
pub(crate) fn failed(failure: Failure, message: &str) -> Failure {
    eprintln!("softgpu nccl: {message}");
    LAST_ERROR.store(CString::new(message).unwrap_or_default().into_raw(), Ordering::Relaxed);
    failure
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: Handle) -> *const c_char {
    let last = LAST_ERROR.load(Ordering::Relaxed);
    if last.is_null() { c"".as_ptr() } else { last }
}

thread_local! {
    static GROUP_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is between group start and end.
pub(crate) fn in_group() -> bool {
    GROUP_DEPTH.get() > 0
}

/// Collectives only queue work, so those of a group need no special care: they are queued one by one.
#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> Outcome {
    GROUP_DEPTH.set(GROUP_DEPTH.get() + 1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> Outcome {
    match GROUP_DEPTH.get().checked_sub(1) {
        Some(depth) => {
            GROUP_DEPTH.set(depth);
            0
        }
        None => failed(Failure::InvalidUsage, "ncclGroupEnd without ncclGroupStart") as Outcome,
    }
}

/// Writes a result through a pointer that the caller gave.
///
/// # Safety
/// `place` is null or valid for a write of `T`.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::InvalidArgument);
    }
    // SAFETY: not null, and valid by the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}
