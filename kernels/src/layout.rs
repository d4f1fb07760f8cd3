//! Packed, unpadded sequences.
//!
//! What all sequences of a micro-batch begin with (a system prompt, as a rule) needs to be there only once: under a causal
//! mask its states are the same in each, and its gradient is the sum over all.

/// Where the sequences of a micro-batch lie, one after the other, in `T` rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    bounds: Vec<u32>,
    samples: Vec<u64>,
    first_positions: Vec<u32>,
    shared: u32,
}

impl PackedLayout {
    /// Sequences of these lengths, of these samples, each starting at position 0. Both slices have one element a
    /// sequence.
    #[must_use]
    pub fn new(lengths: &[u32], samples: &[u64]) -> Self {
        debug_assert_eq!(lengths.len(), samples.len());
        let mut bounds = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            bounds.push(end);
        }
        Self { bounds, samples: samples.to_vec(), first_positions: vec![0; lengths.len()], shared: 0 }
    }

    /// Sequences that have their first `prefix` rows in common: these come first, once, as a sequence of their own (of the
    /// first sample), then what each sequence has after them. `lengths` count both and are all longer than the prefix.
    #[must_use]
    pub fn sharing(prefix: u32, lengths: &[u32], samples: &[u64]) -> Self {
        debug_assert!(prefix > 0 && lengths.iter().all(|&length| length > prefix));
        let own = lengths.iter().map(|length| length.saturating_sub(prefix));
        let parts: Vec<u32> = std::iter::once(prefix).chain(own).collect();
        let samples: Vec<u64> = samples.first().into_iter().chain(samples).copied().collect();
        let mut layout = Self::new(&parts, &samples);
        layout.first_positions[1..].fill(prefix);
        Self { shared: prefix, ..layout }
    }

    /// One sequence of `length` rows that continues at `first_position` (decoding with a cache).
    #[must_use]
    pub fn continuing(first_position: u32, length: u32) -> Self {
        Self { bounds: vec![0, length], samples: vec![0], first_positions: vec![first_position], shared: 0 }
    }

    /// Rows in all.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.bounds.last().map_or(0, |&end| end as usize)
    }

    /// Row bounds: sequence `s` is rows `bounds[s]..bounds[s + 1]`.
    #[must_use]
    pub fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    /// Sample number of each sequence.
    #[must_use]
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// Position of each sequence's first row.
    #[must_use]
    pub fn first_positions(&self) -> &[u32] {
        &self.first_positions
    }

    /// Rows that all sequences have in common: those of the first one, which all others continue. 0 when each stands alone.
    #[must_use]
    pub fn shared(&self) -> u32 {
        self.shared
    }

    /// Position of every row within its sequence.
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        let sequences = self.bounds.windows(2).zip(&self.first_positions);
        sequences.flat_map(|(bounds, &first)| first..first + (bounds[1] - bounds[0])).collect()
    }
}
