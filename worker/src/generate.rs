//! Greedy decoding.

use crate::WorkerError;
use crate::lora::Adapter;
use crate::model::Decoder;
use crate::progress::Progress;
use ballast_kernels::Backend;

/// When decoding ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// After this many new tokens.
    pub max_new_tokens: usize,
    /// After one of these ids, which is part of the result.
    pub stop_ids: &'a [u32],
}

/// Continues `prompt` with the likeliest token at each place (the lowest id among equals); without an adapter, as
/// the base model does. Ends early where the model has no more positions.
///
/// # Errors
/// When the device fails.
pub fn greedy<B: Backend>(
    decoder: &Decoder<B>,
    adapter: Option<&Adapter<'_, B>>,
    prompt: &[u32],
    limits: Limits<'_>,
    progress: &Progress,
) -> Result<Vec<u32>, WorkerError> {
    let room = decoder.architecture().max_positions.saturating_sub(prompt.len());
    let wanted = limits.max_new_tokens.min(room);
    let mut generated = Vec::with_capacity(wanted);
    let mut cache = decoder.cache(prompt.len() + wanted)?;
    let mut new = prompt.to_vec();
    while generated.len() < wanted {
        let token = argmax(&decoder.continue_sequence(&new, &mut cache, adapter, progress)?);
        generated.push(token);
        if limits.stop_ids.contains(&token) {
            break;
        }
        new = vec![token];
    }
    Ok(generated)
}

/// Index of the largest value, the first among equals.
fn argmax(logits: &[f32]) -> u32 {
    let first = (0, f32::NEG_INFINITY);
    let larger = |best: (usize, f32), (i, &x): (usize, &f32)| if x > best.1 { (i, x) } else { best };
    logits.iter().enumerate().fold(first, larger).0 as u32
}

#[cfg(test)]
mod tests {
    use super::argmax;

    #[test]
    fn the_first_of_equals_wins() {
        assert_eq!(argmax(&[0.5, 2.0, -1.0, 2.0]), 1);
        assert_eq!(argmax(&[-3.0]), 0);
    }
}
