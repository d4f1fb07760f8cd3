//! What a backend can report.

/// Error of a backend operation.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Operands do not fit together: a defect in the caller.
    #[error("{operation}: {detail}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// Both shapes, and what was expected.
        detail: String,
    },
    /// The device cannot hold another buffer.
    #[error("out of memory: {requested} bytes wanted for {what}")]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
        /// What they were for.
        what: &'static str,
    },
    /// There is no such device, or what it takes to use it is missing.
    #[error("device: {0}")]
    Unusable(String),
    /// The device failed. What was enqueued on it is lost, and it may stay unusable for this process.
    #[error("device: {0}")]
    Device(String),
}
