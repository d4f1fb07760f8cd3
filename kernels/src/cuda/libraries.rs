//! The libraries that the backend opens while it runs: which one is missing is an error, never a panic.

use crate::KernelError;
use crate::contract::Result;

/// A library that is opened when the first backend is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver, `libcuda.so.1`.
    Driver,
    /// Matrix products, `libcublasLt.so`.
    CublasLt,
    /// Collectives, `libnccl.so`.
    Nccl,
}

impl Library {
    /// Whether the loader finds it.
    #[must_use]
    pub fn is_present(self) -> bool {
        // SAFETY: opens the library and runs its initializers, which for NVIDIA's libraries, and what stands in for
        // them, do nothing but set themselves up.
        unsafe {
            match self {
                Self::Driver => cudarc::driver::sys::is_culib_present(),
                Self::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
                Self::Nccl => cudarc::nccl::sys::is_culib_present(),
            }
        }
    }

    /// The file that the loader looks for.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so.1",
            Self::CublasLt => "libcublasLt.so.13",
            Self::Nccl => "libnccl.so",
        }
    }

    /// How a machine gets it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Driver => "install NVIDIA's driver, version 580 or later",
            Self::CublasLt => {
                "install it (`pip install nvidia-cublas`, or the package libcublas of CUDA 13) and put its directory \
                 on LD_LIBRARY_PATH"
            }
            Self::Nccl => {
                "install NCCL 2.14 or later (`pip install nvidia-nccl-cu13`, or the package libnccl-dev), and where only libnccl.so.2 \
                 is there, make a link libnccl.so to it on LD_LIBRARY_PATH"
            }
        }
    }

    /// # Errors
    /// [`KernelError::Unusable`], naming the library and how to get it, when the loader does not find it.
    pub fn require(self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        Err(KernelError::Unusable(format!("{} is not found: {}", self.file(), self.remedy())))
    }
}
