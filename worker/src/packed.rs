//! Sequences as they arrive, checked and packed.

use ballast_basemodel::Architecture;
use ballast_kernels::PackedLayout;
use ballast_proto::v1::Sequence;

/// Packed sequences, and which rows are scored.
///
/// The hidden state at `t - 1` is scored when the token at `t` bears loss: the first token of a sequence is never scored, and the
/// last predicts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) ids: Vec<u32>,
    pub(crate) layout: PackedLayout,
    /// Rows whose hidden states are scored, ascending.
    pub(crate) rows: Vec<u32>,
    /// The token each of them should have predicted.
    pub(crate) targets: Vec<u32>,
}

impl Packed {
    /// Packs sequences for this model.
    ///
    /// # Errors
    /// What is wrong with the first sequence that does not fit the model or the protocol.
    pub(crate) fn new(sequences: &[Sequence], architecture: &Architecture) -> Result<Self, String> {
        let (mut ids, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            check(sequence, architecture).map_err(|detail| format!("sample {}: {detail}", sequence.sample))?;
            let first = ids.len() as u32;
            for token in sequence.loss.iter().flat_map(|range| range.start.max(1)..range.end) {
                rows.push(first + token - 1);
                targets.push(sequence.token_ids[token as usize]);
            }
            ids.extend_from_slice(&sequence.token_ids);
        }
        let lengths: Vec<u32> = sequences.iter().map(|s| s.token_ids.len() as u32).collect();
        let samples: Vec<u64> = sequences.iter().map(|s| s.sample).collect();
        Ok(Self { ids, layout: PackedLayout::new(&lengths, &samples), rows, targets })
    }
}

/// Refuses token ids beyond the vocabulary or, as a whole, beyond the model's positions.
pub(crate) fn check_ids(ids: &[u32], architecture: &Architecture) -> Result<(), String> {
    if ids.is_empty() {
        return Err("no tokens".into());
    }
    if ids.len() > architecture.max_positions {
        return Err(format!("{} tokens; the model has {} positions", ids.len(), architecture.max_positions));
    }
    match ids.iter().find(|&&id| id as usize >= architecture.vocab_size) {
        Some(id) => Err(format!("token id {id}; the vocabulary has {}", architecture.vocab_size)),
        None => Ok(()),
    }
}

fn check(sequence: &Sequence, architecture: &Architecture) -> Result<(), String> {
    check_ids(&sequence.token_ids, architecture)?;
    let mut end = 0;
    for range in &sequence.loss {
        if range.start < end || range.start >= range.end || range.end as usize > sequence.token_ids.len() {
            return Err(format!(
                "loss range {}..{} is empty, out of order or beyond {} tokens",
                range.start,
                range.end,
                sequence.token_ids.len()
            ));
        }
        end = range.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::v1::TokenRange;

    fn architecture() -> Architecture {
        Architecture { vocab_size: 10, max_positions: 6, ..Architecture::tiny() }
    }

    fn sequence(ids: &[u32], loss: &[(u32, u32)]) -> Sequence {
        let loss = loss.iter().map(|&(start, end)| TokenRange { start, end }).collect();
        Sequence { sample: 7, token_ids: ids.to_vec(), loss }
    }

    #[test]
    fn the_row_before_a_loss_token_is_scored_and_first_tokens_never_are() {
        let sequences = [sequence(&[1, 2, 3, 4], &[(0, 1), (2, 4)]), sequence(&[5, 6, 7], &[(0, 3)])];
        let packed = Packed::new(&sequences, &architecture()).unwrap();
        assert_eq!(packed.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(packed.rows, [1, 2, 4, 5]);
        assert_eq!(packed.targets, [3, 4, 6, 7]);
        assert_eq!(packed.layout.bounds(), [0, 4, 7]);
    }

    #[test]
    fn malformed_sequences_are_named() {
        for (sequence, expected) in [
            (sequence(&[], &[]), "no tokens"),
            (sequence(&[0; 7], &[]), "6 positions"),
            (sequence(&[10], &[]), "token id 10"),
            (sequence(&[1, 2], &[(1, 3)]), "1..3"),
            (sequence(&[1, 2], &[(1, 1)]), "1..1"),
            (sequence(&[1, 2, 3], &[(1, 2), (1, 3)]), "1..3"),
        ] {
            let message = Packed::new(&[sequence], &architecture()).unwrap_err();
            assert!(message.contains(expected) && message.contains("sample 7"), "{message}");
        }
    }
}
