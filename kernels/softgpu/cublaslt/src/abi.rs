//! Status codes, enumerations and handles of cuBLASLt.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// `cublasStatus_t`: 0, or a [`Refusal`].
pub(crate) type Status = u32;
/// Descriptors and handles: numbers that only this library understands.
pub(crate) type Handle = usize;

/// The errors that this library answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Refusal {
    NotInitialized = 1,
    InvalidValue = 7,
    ExecutionFailed = 13,
    NotSupported = 15,
}

pub(crate) fn status(result: Result<(), Refusal>) -> Status {
    result.err().map_or(0, |refusal| refusal as Status)
}

/// `cublasLtGetVersion`: that of CUDA 13.0.
const VERSION: usize = 130_002;

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetCudartVersion() -> usize {
    13_000
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusName(status: Status) -> *const c_char {
    let name: &CStr = match status {
        0 => c"CUBLAS_STATUS_SUCCESS",
        1 => c"CUBLAS_STATUS_NOT_INITIALIZED",
        7 => c"CUBLAS_STATUS_INVALID_VALUE",
        13 => c"CUBLAS_STATUS_EXECUTION_FAILED",
        15 => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"CUBLAS_STATUS_UNKNOWN",
    };
    name.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusString(status: Status) -> *const c_char {
    cublasLtGetStatusName(status)
}

/// Descriptors by handle. One that is wrong or was destroyed is an error, not a crash.
pub(crate) struct Registry<T>(Mutex<BTreeMap<Handle, T>>);

impl<T: Copy> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// # Safety
    /// `handle` is null or valid for a write.
    pub(crate) unsafe fn create(&self, handle: *mut Handle, value: T) -> Status {
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
        if handle.is_null() {
            return Refusal::InvalidValue as Status;
        }
        let new = NEXT.fetch_add(16, Ordering::Relaxed);
        self.all().insert(new, value);
        // SAFETY: not null, and valid by the caller's promise.
        unsafe { handle.write(new) };
        0
    }

    pub(crate) fn destroy(&self, handle: Handle) -> Status {
        status(self.all().remove(&handle).map(|_| ()).ok_or(Refusal::InvalidValue))
    }

    pub(crate) fn get(&self, handle: Handle) -> Result<T, Refusal> {
        self.all().get(&handle).copied().ok_or(Refusal::InvalidValue)
    }

    pub(crate) fn change(&self, handle: Handle, f: impl FnOnce(&mut T) -> Result<(), Refusal>) -> Status {
        status(self.all().get_mut(&handle).ok_or(Refusal::InvalidValue).and_then(f))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Handle, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
