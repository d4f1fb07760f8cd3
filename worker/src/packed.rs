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
    /// Tokens of all sequences, those of a shared prefix counted in each.
    pub(crate) tokens: u64,
}

/// What becomes of the tokens that all sequences begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// They are there in each.
    Apart,
    /// They are there once, where that saves enough.
    Shared,
}

/// Least share of the tokens that must be saved: a prefix costs a product of its own in every block of attention.
const WORTH_SHARING: usize = 32;

impl Packed {
    /// Packs sequences for this model. A function of the sequences alone: whoever packs them, they give the same gradient.
    ///
    /// # Errors
    /// What is wrong with the first sequence that does not fit the model or the protocol.
    pub(crate) fn new(sequences: &[Sequence], architecture: &Architecture, prefix: Prefix) -> Result<Self, String> {
        for sequence in sequences {
            check(sequence, architecture).map_err(|detail| format!("sample {}: {detail}", sequence.sample))?;
        }
        let shared = if prefix == Prefix::Shared { shared_prefix(sequences) } else { 0 };
        let first_ids = sequences.first().map_or(&[][..], |sequence| &sequence.token_ids[..shared]);
        let (mut ids, mut rows, mut targets) = (first_ids.to_vec(), Vec::new(), Vec::new());
        for sequence in sequences {
            // Of its row at position `shared`.
            let first = ids.len() as u32;
            for token in sequence.loss.iter().flat_map(|range| range.start.max(1)..range.end) {
                rows.push(first + token - 1 - shared as u32);
                targets.push(sequence.token_ids[token as usize]);
            }
            ids.extend_from_slice(&sequence.token_ids[shared..]);
        }
        let lengths: Vec<u32> = sequences.iter().map(|s| s.token_ids.len() as u32).collect();
        let samples: Vec<u64> = sequences.iter().map(|s| s.sample).collect();
        let layout = match shared as u32 {
            0 => PackedLayout::new(&lengths, &samples),
            shared => PackedLayout::sharing(shared, &lengths, &samples),
        };
        Ok(Self { ids, layout, rows, targets, tokens: lengths.iter().map(|&length| u64::from(length)).sum() })
    }
}

/// Tokens that all sequences begin with and none scores, if it is worth having them once; at least one is left to each.
fn shared_prefix(sequences: &[Sequence]) -> usize {
    let Some((first, others)) = sequences.split_first() else { return 0 };
    // The row before the first token that bears loss is scored.
    let unscored = |s: &Sequence| {
        let scored = s.loss.first().map_or(usize::MAX, |range| range.start.max(1) as usize - 1);
        scored.min(s.token_ids.len() - 1)
    };
    let common = others.iter().fold(unscored(first), |common, other| {
        let alike = first.token_ids.iter().zip(&other.token_ids).take_while(|(a, b)| a == b).count();
        common.min(alike).min(unscored(other))
    });
    let tokens: usize = sequences.iter().map(|s| s.token_ids.len()).sum();
    if common * others.len() * WORTH_SHARING >= tokens { common } else { 0 }
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
        let packed = Packed::new(&sequences, &architecture(), Prefix::Apart).unwrap();
        assert_eq!(packed.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(packed.rows, [1, 2, 4, 5]);
        assert_eq!(packed.targets, [3, 4, 6, 7]);
        assert_eq!(packed.layout.bounds(), [0, 4, 7]);
    }

    #[test]
    fn what_all_begin_with_is_there_once() {
        let sequences =
            [sequence(&[1, 2, 3, 4], &[(3, 4)]), sequence(&[1, 2, 5], &[(2, 3)]), sequence(&[1, 2, 3], &[])];
        let packed = Packed::new(&sequences, &architecture(), Prefix::Shared).unwrap();
        // One of the two that all have in common: the second is scored in the second sequence.
        assert_eq!(packed.ids, [1, 2, 3, 4, 2, 5, 2, 3]);
        assert_eq!((packed.layout.bounds(), packed.layout.shared()), (&[0, 1, 4, 6, 8][..], 1));
        assert_eq!((packed.layout.first_positions(), packed.layout.samples()), (&[0, 1, 1, 1][..], &[7; 4][..]));
        assert_eq!((packed.rows, packed.targets, packed.tokens), (vec![2, 4], vec![4, 5], 10));
    }

    #[test]
    fn a_prefix_leaves_something_to_each_and_must_be_worth_it() {
        let same = sequence(&[1, 2, 3], &[]);
        assert_eq!(shared_prefix(&[same.clone(), same.clone()]), 2);
        assert_eq!(shared_prefix(std::slice::from_ref(&same)), 0, "nothing is saved");
        assert_eq!(shared_prefix(&[]), 0);
        assert_eq!(shared_prefix(&[same.clone(), sequence(&[2, 2, 3], &[])]), 0);
        assert_eq!(shared_prefix(&[same.clone(), sequence(&[1], &[])]), 0);
        let begins = |length: usize| Sequence { token_ids: [vec![1], vec![2; length - 1]].concat(), ..same.clone() };
        let other = |length: usize| Sequence { token_ids: [vec![1], vec![3; length - 1]].concat(), ..same.clone() };
        assert_eq!(shared_prefix(&[begins(16), other(16)]), 1);
        assert_eq!(shared_prefix(&[begins(16), other(17)]), 0);
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
            let message = Packed::new(&[sequence], &architecture(), Prefix::Shared).unwrap_err();
            assert!(message.contains(expected) && message.contains("sample 7"), "{message}");
        }
    }
}
