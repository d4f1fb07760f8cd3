//! Which stretches of a slab are free.
//!
//! Best fit, the lowest among equals; neighbours merge at once, so what is free depends on what is taken alone.
//! Micro-batches are packed to ever new shapes, but each gives back all it took: the slab is whole before the next.

use std::collections::{BTreeMap, BTreeSet};

/// What lengths are rounded up to, and so what offsets are multiples of: the alignment that kernels rely on.
pub(crate) const ALIGNMENT: usize = 256;

/// The length that serves `bytes`; an empty buffer has a place too.
pub(crate) fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// The free stretches of a slab, by offset. Lengths are as [`rounded`] gives them.
#[derive(Clone, Debug)]
pub(crate) struct FreeList {
    capacity: usize,
    /// Length of each free stretch by its offset. No two touch.
    by_offset: BTreeMap<usize, usize>,
    /// The same as (length, offset): the first that is long enough fits best.
    by_length: BTreeSet<(usize, usize)>,
}

impl FreeList {
    /// All of a slab of `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        let mut list = Self { capacity, by_offset: BTreeMap::new(), by_length: BTreeSet::new() };
        list.insert(0, capacity);
        list
    }

    /// Bytes of the slab.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether nothing is taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.by_offset.get(&0) == Some(&self.capacity)
    }

    /// Takes a stretch; gives its offset. `None` when no stretch is long enough.
    pub(crate) fn take(&mut self, length: usize) -> Option<usize> {
        let &(found, offset) = self.by_length.range((length, 0)..).next()?;
        self.remove(offset, found);
        self.insert(offset + length, found - length);
        Some(offset)
    }

    /// Gives a stretch back that [`FreeList::take`] gave.
    pub(crate) fn put_back(&mut self, offset: usize, length: usize) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &len)) = self.by_offset.range(..start).next_back() {
            debug_assert!(before + len <= start, "{length} bytes at {offset} are given back twice");
            if before + len == start {
                self.remove(before, len);
                start = before;
            }
        }
        if let Some((&after, &len)) = self.by_offset.range(start..).next() {
            debug_assert!(after >= end, "{length} bytes at {offset} are given back twice");
            if after == end {
                self.remove(after, len);
                end = after + len;
            }
        }
        self.insert(start, end - start);
    }

    fn insert(&mut self, offset: usize, length: usize) {
        if length > 0 {
            self.by_offset.insert(offset, length);
            self.by_length.insert((length, offset));
        }
    }

    fn remove(&mut self, offset: usize, length: usize) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A slab as a row of units, each free or not: what [`FreeList`] must agree with.
    struct Naive(Vec<bool>);

    impl Naive {
        /// Free stretches as (first unit, units).
        fn stretches(&self) -> Vec<(usize, usize)> {
            let mut stretches: Vec<(usize, usize)> = Vec::new();
            for unit in (0..self.0.len()).filter(|&unit| !self.0[unit]) {
                match stretches.last_mut() {
                    Some((first, count)) if *first + *count == unit => *count += 1,
                    _ => stretches.push((unit, 1)),
                }
            }
            stretches
        }

        fn take(&mut self, units: usize) -> Option<usize> {
            let fitting = self.stretches().into_iter().filter(|&(_, count)| count >= units);
            let (first, _) = fitting.min_by_key(|&(first, count)| (count, first))?;
            self.mark(first, units, true);
            Some(first)
        }

        fn mark(&mut self, first: usize, units: usize, taken: bool) {
            for unit in &mut self.0[first..first + units] {
                assert_ne!(*unit, taken, "unit taken or given back twice");
                *unit = taken;
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        /// Of the live ones, by its place among them.
        PutBack(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let take = (1_usize..40).prop_map(Step::Take);
        let put_back = any::<prop::sample::Index>().prop_map(Step::PutBack);
        prop::collection::vec(prop_oneof![3 => take, 2 => put_back], 1..300)
    }

    proptest! {
        /// The same places, the same refusals and the same free stretches as the naive slab; whole at the end.
        #[test]
        fn it_is_the_naive_slab(steps in steps(), units in 1_usize..200) {
            let mut list = FreeList::new(units * ALIGNMENT);
            let mut naive = Naive(vec![false; units]);
            let mut live = Vec::new();
            for step in steps {
                match step {
                    Step::Take(wanted) => {
                        let offset = list.take(wanted * ALIGNMENT);
                        prop_assert_eq!(offset, naive.take(wanted).map(|unit| unit * ALIGNMENT));
                        live.extend(offset.map(|offset| (offset, wanted)));
                    }
                    Step::PutBack(index) if !live.is_empty() => {
                        let (offset, wanted) = live.swap_remove(index.index(live.len()));
                        list.put_back(offset, wanted * ALIGNMENT);
                        naive.mark(offset / ALIGNMENT, wanted, false);
                    }
                    Step::PutBack(_) => {}
                }
                let free: Vec<(usize, usize)> =
                    list.by_offset.iter().map(|(offset, length)| (offset / ALIGNMENT, length / ALIGNMENT)).collect();
                prop_assert_eq!(&free, &naive.stretches());
                let by_length: BTreeSet<_> = list.by_offset.iter().map(|(&offset, &length)| (length, offset)).collect();
                prop_assert_eq!(&list.by_length, &by_length);
            }
            for (offset, wanted) in live {
                list.put_back(offset, wanted * ALIGNMENT);
            }
            prop_assert!(list.is_whole());
            prop_assert_eq!(list.take(list.capacity()), Some(0));
        }
    }

    #[test]
    fn lengths_are_rounded_up_and_never_empty() {
        assert_eq!([0, 1, 255, 256, 257].map(rounded), [256, 256, 256, 256, 512]);
    }

    #[test]
    fn the_best_fit_is_taken_and_the_lowest_of_equals() {
        let mut list = FreeList::new(20 * ALIGNMENT);
        let offsets: Vec<usize> = [2, 1, 4, 1, 2, 1].map(|units| list.take(units * ALIGNMENT).unwrap()).to_vec();
        for (hole, units) in [(0, 2), (2, 4), (4, 2)] {
            list.put_back(offsets[hole], units * ALIGNMENT);
        }
        assert_eq!(list.take(2 * ALIGNMENT), Some(offsets[0]));
        assert_eq!(list.take(2 * ALIGNMENT), Some(offsets[4]));
        assert_eq!(list.take(3 * ALIGNMENT), Some(offsets[2]));
        assert_eq!(list.take(10 * ALIGNMENT), None);
    }
}
