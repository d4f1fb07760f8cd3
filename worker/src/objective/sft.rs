//! Supervised fine-tuning: cross-entropy of the tokens that bear loss.

use crate::WorkerError;
use crate::model::Decoder;
use ballast_kernels::Backend;

/// Losses of the targets in nats, `[N]`, and the gradient of their sum with respect to the hidden states, `[N, H]`.
pub(crate) fn loss_and_gradient<B: Backend>(
    decoder: &Decoder<B>,
    hidden: &B::Activations,
    targets: &[u32],
) -> Result<(Vec<f32>, B::Activations), WorkerError> {
    let backend = &**decoder.backend();
    let indices = backend.upload_indices(targets)?;
    let mut losses = backend.reals(targets.len())?;
    let mut d_hidden = backend.activations(targets.len(), decoder.architecture().hidden_size)?;
    backend.linear_cross_entropy(hidden, decoder.head(), &indices, &mut losses, Some(&mut d_hidden))?;
    Ok((backend.read_reals(&losses)?, d_hidden))
}
