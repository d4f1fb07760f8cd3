//! A case: an operation of the backend, and what each kernel that it launches cannot do without.

use ballast_kernels::KernelError;
use ballast_kernels::cuda::{CudaBackend, Storage};

/// What makes the operands and calls the operation.
pub(crate) type Run = Box<dyn Fn(&CudaBackend) -> Result<(), KernelError>>;

/// One operation at one shape.
pub(crate) struct Case {
    pub(crate) operation: &'static str,
    pub(crate) shape: Vec<usize>,
    /// All kernels that it launches.
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) run: Run,
}

impl Case {
    pub(crate) fn new(
        operation: &'static str,
        shape: &[usize],
        kernels: Vec<Kernel>,
        run: impl Fn(&CudaBackend) -> Result<(), KernelError> + 'static,
    ) -> Self {
        Self { operation, shape: shape.to_vec(), kernels, run: Box::new(run) }
    }
}

/// Bytes of global memory that a kernel must move in a case.
pub(crate) struct Kernel {
    /// Its entry point.
    pub(crate) name: String,
    /// Inputs once, outputs once.
    pub(crate) floor: usize,
    /// For kernels that must read operands more than once: what the division of the work among blocks requires.
    pub(crate) tiled: Option<usize>,
}

impl Kernel {
    /// One that exists for each storage type, bound by memory.
    pub(crate) fn typed(name: &str, storage: Storage, floor: usize) -> Self {
        Self::plain(&format!("{name}_{}", storage.suffix()), floor)
    }

    /// One that is the same for all, bound by memory.
    pub(crate) fn plain(name: &str, floor: usize) -> Self {
        Self { name: name.to_owned(), floor, tiled: None }
    }

    /// The same, whose tiles need so many bytes.
    pub(crate) fn tiled(self, bytes: usize) -> Self {
        Self { tiled: Some(bytes), ..self }
    }
}

/// How large the cases are.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) tokens: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    /// Parameters of the flat vectors.
    pub(crate) parameters: usize,
    /// Tokens of a sequence that attends to itself.
    pub(crate) length: usize,
    pub(crate) vocabularies: [usize; 2],
}

impl Size {
    /// Like a layer of a model of a billion parameters.
    pub(crate) const FULL: Self = Self {
        tokens: 1024,
        hidden: 2048,
        intermediate: 4096,
        parameters: 1 << 20,
        length: 512,
        vocabularies: [49_152, 128_256],
    };
    /// For a check in seconds.
    pub(crate) const SMALL: Self = Self {
        tokens: 128,
        hidden: 1024,
        intermediate: 1024,
        parameters: 1 << 15,
        length: 128,
        vocabularies: [4096, 49_152],
    };
}

/// An activation matrix of `rows * cols`, on the device.
pub(crate) fn matrix(b: &CudaBackend, rows: usize, cols: usize) -> Result<ballast_kernels::cuda::Matrix, KernelError> {
    use ballast_kernels::Backend as _;
    b.upload_activations(&vec![0.5; rows * cols], rows, cols)
}
