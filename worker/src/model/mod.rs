//! The decoder.

use crate::WorkerError;
use ballast_basemodel::BaseModel;
use ballast_kernels::Backend;
use std::sync::Arc;

/// The base model on a device.
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
}

impl<B: Backend> Decoder<B> {
    /// Loads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or malformed, or the device is out of memory.
    pub fn load(backend: &Arc<B>, model: &BaseModel) -> Result<Self, WorkerError> {
        let _ = model;
        Ok(Self { backend: Arc::clone(backend) })
    }
}
