//! The training state as files.

/// A training state, ready to be stored or sent.
#[derive(Clone, Debug)]
pub struct ExportedState {
    /// Steps applied to it.
    pub step: u64,
    /// SHA-256 of the state, as in [`crate::trainer::StepOutcome`].
    pub state_sha256: [u8; 32],
    /// Name and content: `adapter_model.safetensors`, `optimizer.safetensors`.
    pub files: Vec<(String, Vec<u8>)>,
}
