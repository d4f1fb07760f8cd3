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
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
}
