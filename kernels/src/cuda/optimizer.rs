//! AdamW.

use super::CudaBackend;
use super::buffers::Vector;
use crate::KernelError;
use crate::contract::{AdamW, Result};

pub(super) fn adamw(
    b: &CudaBackend,
    parameters: &mut Vector,
    gradient: &Vector,
    first: &mut Vector,
    second: &mut Vector,
    settings: &AdamW,
) -> Result<()> {
    let _ = (b, parameters, gradient, first, second, settings);
    Err(KernelError::Device("optimizer is not built yet".into()))
}
