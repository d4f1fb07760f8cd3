//! Plain matrix products, by cuBLASLt.
//!
//! cuBLASLt is column-major: a row-major matrix is its transpose there. So `Y = X Wᵀ` (row-major) is asked for as
//! `Yᵀ = W Xᵀ` with `A = W` (transposed back) and `B = X`, and `Y = X W` with `A = W` as it lies.
//!
//! Accumulation is in f32 and never in TF32. Which algorithm runs is settled once for each [`Key`], where the number of
//! rows counts only as its bucket, by the library's own heuristic: a function of key, library and device, so equal
//! workers choose equally; a hash of the choices for all frozen layers ([`super::algorithms`]) is part of the numerics
//! fingerprint, which finds those that are not. Algorithms that reduce in place or in the output's type are excluded.

use super::libraries::Library;
use super::memory::{Buffer, Memory};
use super::{CudaBackend, Storage};
use crate::KernelError;
use crate::check::ensure;
use crate::contract::Result;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::collections::{BTreeSet, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// Workspace that algorithms may use: what NVIDIA recommends for Hopper, and enough elsewhere.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `CUBLAS_OP_T`, which the bindings of cuBLASLt lack.
const TRANSPOSED: i32 = 1;

/// A row-major matrix somewhere in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) ptr: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from a row to the next.
    pub(super) stride: usize,
    pub(super) storage: Storage,
}

impl View {
    /// Rows that follow each other without a gap.
    pub(super) fn new(ptr: u64, rows: usize, cols: usize, storage: Storage) -> Self {
        Self { ptr, rows, cols, stride: cols, storage }
    }

    /// The best alignment that counts.
    pub(super) const MOST_ALIGNMENT: u32 = 256;

    /// Largest power of two, up to the best alignment, that divides the address.
    fn alignment(&self) -> u32 {
        1 << self.ptr.trailing_zeros().min(Self::MOST_ALIGNMENT.ilog2())
    }

    /// The layout of the transpose, which is what cuBLASLt sees; `rows` may be another number of rows.
    fn layout(&self, rows: usize) -> Result<Layout> {
        let kind = match self.storage {
            Storage::F32 => sys::cudaDataType::CUDA_R_32F,
            Storage::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        };
        result::create_matrix_layout(kind, self.cols as u64, rows as u64, self.stride as i64)
            .map(Layout)
            .map_err(failed("describing a matrix"))
    }
}

/// How a product uses its second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Weight {
    /// `y [m, n] = x [m, k] wᵀ`, `w: [n, k]`.
    Transposed,
    /// `y [m, n] = x [m, k] w`, `w: [k, n]`.
    Plain,
}

/// What goes into a product besides its operands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// Add to what `y` holds.
    pub(super) add: bool,
    /// Device address of a vector `[n]` in the type of `y`, added to every row.
    pub(super) bias: Option<u64>,
}

/// One product. `x` and `w` are of one type; `y` is of it too, or f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) x: View,
    pub(super) weight: Weight,
    pub(super) w: View,
    pub(super) terms: Terms,
    pub(super) y: View,
}

impl Product {
    fn check(&self) -> Result<()> {
        let Self { x, weight, w, y, .. } = self;
        let (n, k) = match weight {
            Weight::Transposed => (w.rows, w.cols),
            Weight::Plain => (w.cols, w.rows),
        };
        let fits = x.cols == k && y.cols == n && x.rows == y.rows && x.storage == w.storage;
        ensure(fits, "product", || format!("{y:?} = {x:?} times {w:?}, {weight:?}"))
    }

    pub(super) fn key(&self) -> Key {
        let Self { x, weight, w, terms, y } = *self;
        let operands = [x, w, y].map(|view| (view.storage, view.stride, view.alignment()));
        Key { weight, bias: terms.bias.is_some(), rows: x.rows.next_power_of_two(), n: y.cols, k: x.cols, operands }
    }
}

/// All that the choice of an algorithm may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    weight: Weight,
    bias: bool,
    /// A power of two: the bucket of the number of rows of `x` and `y`.
    rows: usize,
    n: usize,
    k: usize,
    /// Type, stride and alignment of `x`, `w` and `y`.
    operands: [(Storage, usize, u32); 3],
}

/// A frozen layer, as far as its products depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) out: usize,
    pub(super) inp: usize,
    pub(super) bias: bool,
}

/// cuBLASLt, with what it was asked before.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    version: usize,
    /// One is enough: products follow each other on one stream.
    workspace: Buffer,
    chosen: Mutex<HashMap<Key, Arc<Plan>>>,
    /// The frozen layers of this backend.
    shapes: Mutex<BTreeSet<Shape>>,
}

// SAFETY: a handle of cuBLASLt may be used by several threads at once.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// An operation with its algorithm.
#[derive(Debug)]
struct Plan {
    operation: Mutex<Operation>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// A matrix layout of the library.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// An operation descriptor of the library.
#[derive(Debug)]
struct Operation(sys::cublasLtMatmulDesc_t);

// SAFETY: a block of memory behind a pointer, with no thread of its own.
unsafe impl Send for Operation {}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Operation {
    fn new(key: &Key) -> Result<Self> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let operation = Self(result::create_matmul_desc(compute, scale).map_err(failed("describing a product"))?);
        if key.weight == Weight::Transposed {
            operation.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        }
        if key.bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32;
            operation.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, bias)?;
        }
        Ok(operation)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        let place = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the library copies the value, whose type is the attribute's.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, place, size_of::<T>()) }
            .map_err(failed("describing a product"))
    }
}

/// What the heuristic may choose from.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Preference {
    fn new(key: &Key) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().map_err(failed("describing a choice"))?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // Partial sums stay f32, and no algorithm adds to the output as its blocks happen to finish.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions)?;
        let [(.., x), (.., w), (.., y)] = key.operands;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y)?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        let place = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the library copies the value, whose type is the attribute's.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, place, size_of::<T>()) }
            .map_err(failed("describing a choice"))
    }
}

fn failed(what: &'static str) -> impl FnOnce(CublasError) -> KernelError {
    move |error| KernelError::Device(format!("cuBLASLt, {what}: {error}"))
}

impl Blas {
    pub(super) fn new(memory: &Arc<Memory>) -> Result<Self> {
        Library::CublasLt.require()?;
        memory.device().bind()?;
        let workspace = memory.take(WORKSPACE, "the workspace of matrix products")?;
        let handle = result::create_handle().map_err(failed("starting"))?;
        // SAFETY: a question without operands.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, version, workspace, chosen: Mutex::default(), shapes: Mutex::default() })
    }

    /// Remembers a frozen layer for the fingerprint.
    pub(super) fn remember(&self, shape: Shape) {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).insert(shape);
    }

    /// The frozen layers that were remembered, in their order.
    pub(super) fn shapes(&self) -> BTreeSet<Shape> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The algorithm of a product, in the library's words; `None` where it has none. The device's context is current.
    pub(super) fn algorithm(&self, product: &Product) -> Result<Option<[u64; 8]>> {
        Ok(self.plan(product)?.map(|plan| plan.algorithm.data))
    }

    /// Version and policy, as the numerics fingerprint has them.
    pub(super) fn description(&self) -> String {
        format!("cuBLASLt {}, heuristic per power of two of rows, {WORKSPACE} bytes of workspace", self.version)
    }

    /// The plan for a product; `None` where the library has no algorithm. The device's context is current.
    fn plan(&self, product: &Product) -> Result<Option<Arc<Plan>>> {
        let (key, Product { x, w, y, .. }) = (product.key(), product);
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = chosen.get(&key) {
            return Ok(Some(Arc::clone(plan)));
        }
        let (operation, preference) = (Operation::new(&key)?, Preference::new(&key)?);
        let (a, b, d) = (w.layout(w.rows)?, x.layout(key.rows)?, y.layout(key.rows)?);
        // SAFETY: everything was made just now.
        let found =
            unsafe { result::get_matmul_algo_heuristic(self.handle, operation.0, a.0, b.0, d.0, d.0, preference.0) };
        let algorithm = match found {
            Ok(found) => found.algo,
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(None),
            Err(error) => return Err(failed("choosing an algorithm")(error)),
        };
        let plan = Arc::new(Plan { operation: Mutex::new(operation), algorithm });
        chosen.insert(key, Arc::clone(&plan));
        Ok(Some(plan))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // It would wait for the device.
        if self.workspace.device().is_condemned() {
            return;
        }
        // SAFETY: made once, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl CudaBackend {
    /// Enqueues a product.
    pub(super) fn product(&self, product: &Product) -> Result<()> {
        product.check()?;
        self.device().bind()?;
        let plan = self.blas.plan(product)?.ok_or_else(|| {
            KernelError::Device(format!("cuBLASLt {} has no algorithm for {product:?}", self.blas.version))
        })?;
        let Product { x, w, terms, y, .. } = product;
        let (a, b, d) = (w.layout(w.rows)?, x.layout(x.rows)?, y.layout(y.rows)?);
        let operation = plan.operation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bias) = terms.bias {
            operation.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let (alpha, beta) = (1.0_f32, f32::from(u8::from(terms.add)));
        // SAFETY: the views lie within live buffers and fit together; scale factors are host f32, as described; the
        // library copies descriptors before it returns; the workspace is used by one product at a time, on one stream.
        let done = unsafe {
            result::matmul(
                self.blas.handle,
                operation.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                w.ptr as *const c_void,
                a.0,
                x.ptr as *const c_void,
                b.0,
                y.ptr as *const c_void,
                d.0,
                y.ptr as *mut c_void,
                d.0,
                &raw const plan.algorithm,
                self.blas.workspace.ptr() as *mut c_void,
                WORKSPACE,
                self.device().stream().cast(),
            )
        };
        done.map_err(failed("multiplying"))
    }
}
