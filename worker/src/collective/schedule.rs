//! Which elements travel when: the bandwidth-optimal ring (Patarasuk and Yuan, 2009), cut into chunks.
//!
//! The vector is cut into one segment a rank. In round `t` of `2 (world - 1)`, rank `r` sends segment `r - t` and receives
//! segment `r - t - 1` (modulo the world size): the first half of the rounds adds what arrives (reduce-scatter), the
//! second half copies it (all-gather). What is received in a round is what is sent in the next one, so each chunk goes on
//! as soon as it is combined, without waiting for the rest of its segment.

use std::ops::Range;

/// The rounds of one reduction as one rank sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    elements: usize,
    world_size: usize,
    rank: usize,
    chunk: usize,
}

impl Schedule {
    /// `rank < world_size`, `chunk >= 1`.
    pub(super) fn new(elements: usize, world_size: usize, rank: usize, chunk: usize) -> Self {
        Self { elements, world_size, rank, chunk }
    }

    /// Rounds in all.
    pub(super) fn rounds(&self) -> usize {
        2 * (self.world_size - 1)
    }

    /// Whether what arrives in this round is combined with what is there, or replaces it.
    pub(super) fn reduces(&self, round: usize) -> bool {
        round < self.world_size - 1
    }

    /// The chunks sent in the first round: those of this rank's own segment.
    pub(super) fn first_sent(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        self.chunks(self.rank)
    }

    /// The chunks received in a round, and sent on in the next.
    pub(super) fn received(&self, round: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let world = self.world_size;
        self.chunks((self.rank + 2 * world - round - 1) % world)
    }

    /// An empty segment is one empty chunk: every round has a frame, so that ranks that disagree about the vector's
    /// length notice it.
    fn chunks(&self, segment: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let bound = |i: usize| (self.elements as u128 * i as u128 / self.world_size as u128) as usize;
        let (start, end, chunk) = (bound(segment), bound(segment + 1), self.chunk);
        let count = (end - start).div_ceil(chunk).max(1);
        (0..count).map(move |i| start + i * chunk..(start + (i + 1) * chunk).min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_rank_sends_is_what_its_successor_awaits(
            elements in 0..200_usize, world in 2..9_usize, chunk in 1..50_usize
        ) {
            for rank in 0..world {
                let own = Schedule::new(elements, world, rank, chunk);
                let next = Schedule::new(elements, world, (rank + 1) % world, chunk);
                let mut sent: Vec<_> = own.first_sent().collect();
                for round in 0..own.rounds() {
                    let awaited: Vec<_> = next.received(round).collect();
                    prop_assert_eq!(&sent, &awaited);
                    sent = own.received(round).collect();
                }
            }
        }

        #[test]
        fn each_half_covers_all_segments_but_one(elements in 0..200_usize, world in 2..9_usize, rank in 0..8_usize) {
            let rank = rank % world;
            let schedule = Schedule::new(elements, world, rank, 7);
            for half in [0..world - 1, world - 1..2 * (world - 1)] {
                let mut seen = vec![0; elements];
                for round in half.clone() {
                    prop_assert_eq!(schedule.reduces(round), half.start == 0);
                    schedule.received(round).flatten().for_each(|i| seen[i] += 1);
                }
                let missing = if half.start == 0 { rank } else { (rank + 1) % world };
                for i in Schedule::new(elements, world, missing, 7).first_sent().flatten() {
                    seen[i] += 1;
                }
                prop_assert!(seen.iter().all(|n| *n == 1));
            }
        }
    }
}
