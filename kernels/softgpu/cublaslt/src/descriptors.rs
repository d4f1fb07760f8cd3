//! Descriptors of operations, matrices and preferences, and their attributes.

use std::ffi::c_void;

use crate::{
    abi::{Handle, Refusal, Registry, Status},
    driver::driver,
    elements::Kind,
};

/// `CUBLAS_COMPUTE_32F` and its pedantic variant: what this library computes in.
const COMPUTE_32F: [u32; 2] = [68, 69];
const REAL_32F: u32 = 0;

/// `cublasLtMatmulDesc_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    /// Add a bias, one element for each row of D.
    pub(crate) with_bias: bool,
    pub(crate) bias: u64,
    /// Elements from a batch's bias to the next; 0 for one bias for all.
    pub(crate) bias_stride: i64,
    /// The bias' own type, if it was given one.
    pub(crate) bias_kind: Option<Kind>,
}

/// `cublasLtMatrixLayout_t`: column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) kind: Kind,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    /// Elements from a column to the next.
    pub(crate) leading: i64,
    pub(crate) batches: i32,
    /// Elements from a matrix of the batch to the next.
    pub(crate) stride: i64,
}

/// `cublasLtMatmulPreference_t`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    /// Bytes that the addresses of A, B, C, D are multiples of.
    pub(crate) alignments: [u32; 4],
}

pub(crate) static HANDLES: Registry<()> = Registry::new();
pub(crate) static OPERATIONS: Registry<Operation> = Registry::new();
pub(crate) static LAYOUTS: Registry<Layout> = Registry::new();
pub(crate) static PREFERENCES: Registry<Preference> = Registry::new();

/// The attribute's value.
///
/// # Safety
/// `value` is null or holds `bytes` bytes.
unsafe fn read<T: Copy>(value: *const c_void, bytes: usize) -> Result<T, Refusal> {
    if value.is_null() || bytes != size_of::<T>() {
        return Err(Refusal::InvalidValue);
    }
    // SAFETY: not null, and as large as T, which is a plain number.
    Ok(unsafe { value.cast::<T>().read_unaligned() })
}

/// Accepts the only value that this library has.
fn only<T: PartialEq>(value: T, known: T) -> Result<(), Refusal> {
    if value == known { Ok(()) } else { Err(Refusal::NotSupported) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtCreate(handle: *mut Handle) -> Status {
    if driver().and_then(|driver| driver.context()).is_none() {
        return Refusal::NotInitialized as Status;
    }
    // SAFETY: the caller passes a valid pointer.
    unsafe { HANDLES.create(handle, ()) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(handle: Handle) -> Status {
    // As NVIDIA's may: a program must not rely on its not waiting.
    if let Some(driver) = driver() {
        driver.synchronize_all();
    }
    HANDLES.destroy(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescCreate(operation: *mut Handle, compute: u32, scale: u32) -> Status {
    if !COMPUTE_32F.contains(&compute) || scale != REAL_32F {
        return Refusal::NotSupported as Status;
    }
    let new = Operation {
        transpose_a: false,
        transpose_b: false,
        with_bias: false,
        bias: 0,
        bias_stride: 0,
        bias_kind: None,
    };
    // SAFETY: the caller passes a valid pointer.
    unsafe { OPERATIONS.create(operation, new) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(operation: Handle) -> Status {
    OPERATIONS.destroy(operation)
}

/// `cublasOperation_t` of a real matrix.
fn transposed(operation: i32) -> Result<bool, Refusal> {
    match operation {
        0 => Ok(false),
        1 | 2 => Ok(true),
        _ => Err(Refusal::InvalidValue),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    operation: Handle,
    attribute: u32,
    value: *const c_void,
    bytes: usize,
) -> Status {
    const EPILOGUE_DEFAULT: u32 = 1;
    const EPILOGUE_BIAS: u32 = 4;
    // SAFETY: the caller passes `bytes` bytes.
    OPERATIONS.change(operation, |operation| unsafe {
        match attribute {
            0 if COMPUTE_32F.contains(&read(value, bytes)?) => {}
            1 => only::<u32>(read(value, bytes)?, REAL_32F)?,
            2 => only::<u32>(read(value, bytes)?, 0)?, // scale factors lie in host memory
            3 => operation.transpose_a = transposed(read(value, bytes)?)?,
            4 => operation.transpose_b = transposed(read(value, bytes)?)?,
            5 => only::<i32>(read(value, bytes)?, 0)?, // C is never transposed
            7 => {
                operation.with_bias = match read(value, bytes)? {
                    EPILOGUE_DEFAULT => false,
                    EPILOGUE_BIAS => true,
                    _ => return Err(Refusal::NotSupported),
                }
            }
            8 => operation.bias = read(value, bytes)?,
            10 => operation.bias_stride = read(value, bytes)?,
            26 => operation.bias_kind = Some(Kind::from_code(read(value, bytes)?)?),
            _ => return Err(Refusal::NotSupported),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut Handle,
    kind: u32,
    rows: u64,
    cols: u64,
    leading: i64,
) -> Status {
    match Kind::from_code(kind) {
        // SAFETY: the caller passes a valid pointer.
        Ok(kind) => unsafe { LAYOUTS.create(layout, Layout { kind, rows, cols, leading, batches: 1, stride: 0 }) },
        Err(refusal) => refusal as Status,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(layout: Handle) -> Status {
    LAYOUTS.destroy(layout)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: Handle,
    attribute: u32,
    value: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: the caller passes `bytes` bytes.
    LAYOUTS.change(layout, |layout| unsafe {
        match attribute {
            0 => layout.kind = Kind::from_code(read(value, bytes)?)?,
            1 => only::<u32>(read(value, bytes)?, 0)?, // column-major
            2 => layout.rows = read(value, bytes)?,
            3 => layout.cols = read(value, bytes)?,
            4 => layout.leading = read(value, bytes)?,
            5 => layout.batches = read(value, bytes)?,
            6 => layout.stride = read(value, bytes)?,
            _ => return Err(Refusal::NotSupported),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut Handle) -> Status {
    // SAFETY: the caller passes a valid pointer.
    unsafe { PREFERENCES.create(preference, Preference { workspace: 0, alignments: [256; 4] }) }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(preference: Handle) -> Status {
    PREFERENCES.destroy(preference)
}

/// Search mode (0) has only best fit. Which reductions are allowed (3) is met by any answer: nothing is ever reduced
/// between threads here.
#[unsafe(no_mangle)]
unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: Handle,
    attribute: u32,
    value: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: the caller passes `bytes` bytes.
    PREFERENCES.change(preference, |preference| unsafe {
        match attribute {
            0 => only::<u32>(read(value, bytes)?, 0)?,
            1 => preference.workspace = read(value, bytes)?,
            3 => {
                read::<u32>(value, bytes)?;
            }
            5..=8 => preference.alignments[attribute as usize - 5] = read(value, bytes)?,
            _ => return Err(Refusal::NotSupported),
        }
        Ok(())
    })
}
