//! Where buffers lie: each by itself at first, and in slabs once memory is reserved.
//!
//! What lives as long as the run (frozen weights, the adapter, its moments, the workspace of products) is made before
//! [`Slabs::reserve`], each as an allocation of its own: it never lies between activations and never splits the slab.
//! What comes after lies in the reserved slab, which is planned for the largest micro-batch; what does not fit there
//! gets further slabs.

use crate::KernelError;
use crate::contract::Result;
use crate::free_list::{FreeList, rounded};

/// Least bytes of a slab beyond the reserved one: what did not fit is likely to have company.
const GROWTH: usize = 32 << 20;

/// Where memory comes from.
pub(crate) trait Source {
    /// Memory aligned to 256 bytes.
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64>;
    /// Gives memory of [`Source::allocate`] back, once everything that was enqueued is done with it.
    fn free(&self, pointer: u64) -> Result<()>;
}

/// A piece of memory: its address, its bytes, and the slab it lies in, by address; `None` when it is an allocation of
/// its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) pointer: u64,
    pub(crate) bytes: usize,
    slab: Option<u64>,
}

/// All memory that was taken from the source.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    /// Whether new pieces lie in slabs.
    reserved: bool,
    /// By age, with their addresses: the order in which they are tried.
    slabs: Vec<(u64, FreeList)>,
    /// Bytes taken from the source.
    allocated: usize,
}

impl Slabs {
    /// Bytes taken from the source, in use or not.
    pub(crate) fn allocated(&self) -> usize {
        self.allocated
    }

    /// From here on pieces lie in slabs; one of them has `bytes` bytes in one stretch, free now.
    pub(crate) fn reserve(&mut self, source: &impl Source, bytes: usize) -> Result<()> {
        self.reserved = true;
        if bytes == 0 || self.slabs.iter().any(|(_, list)| list.is_whole() && list.capacity() >= bytes) {
            return Ok(());
        }
        self.release(source)?;
        self.add_slab(source, rounded(bytes), "the activations of a micro-batch")
    }

    /// A piece of at least `bytes` bytes, of unspecified content.
    pub(crate) fn take(&mut self, source: &impl Source, bytes: usize, what: &'static str) -> Result<Piece> {
        let bytes = rounded(bytes);
        if !self.reserved {
            let pointer = source.allocate(bytes, what)?;
            self.allocated += bytes;
            return Ok(Piece { pointer, bytes, slab: None });
        }
        let fitting = |(slab, list): &mut (u64, FreeList)| take_from(*slab, list, bytes);
        if let Some(piece) = self.slabs.iter_mut().find_map(fitting) {
            return Ok(piece);
        }
        match self.add_slab(source, bytes.max(GROWTH), what) {
            Err(KernelError::OutOfMemory { .. }) => {
                self.release(source)?;
                self.add_slab(source, bytes, what)?;
            }
            other => other?,
        }
        // A new slab of at least these bytes always has room.
        let newest = self.slabs.last_mut().and_then(|(slab, list)| take_from(*slab, list, bytes));
        newest.ok_or(KernelError::OutOfMemory { requested: bytes, what })
    }

    /// Gives a piece back.
    pub(crate) fn put_back(&mut self, source: &impl Source, piece: Piece) -> Result<()> {
        let Some(slab) = piece.slab else {
            self.allocated -= piece.bytes;
            return source.free(piece.pointer);
        };
        if let Some((_, list)) = self.slabs.iter_mut().find(|(known, _)| *known == slab) {
            list.put_back((piece.pointer - slab) as usize, piece.bytes);
        }
        Ok(())
    }

    /// Gives all slabs of which nothing is in use back to the source.
    pub(crate) fn release(&mut self, source: &impl Source) -> Result<()> {
        for (slab, list) in self.slabs.extract_if(.., |(_, list)| list.is_whole()) {
            self.allocated -= list.capacity();
            source.free(slab)?;
        }
        Ok(())
    }

    fn add_slab(&mut self, source: &impl Source, capacity: usize, what: &'static str) -> Result<()> {
        let slab = source.allocate(capacity, what)?;
        self.allocated += capacity;
        self.slabs.push((slab, FreeList::new(capacity)));
        Ok(())
    }
}

fn take_from(slab: u64, list: &mut FreeList, bytes: usize) -> Option<Piece> {
    let offset = list.take(bytes)?;
    Some(Piece { pointer: slab + offset as u64, bytes, slab: Some(slab) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    const MIB: usize = 1 << 20;

    /// Memory of a fixed size, with the live allocations by address.
    struct Fake {
        capacity: usize,
        live: RefCell<BTreeMap<u64, usize>>,
    }

    impl Fake {
        fn new(capacity: usize) -> Self {
            Self { capacity, live: RefCell::default() }
        }

        fn used(&self) -> usize {
            self.live.borrow().values().sum()
        }

        fn allocations(&self) -> Vec<usize> {
            self.live.borrow().values().copied().collect()
        }
    }

    impl Source for Fake {
        fn allocate(&self, bytes: usize, what: &'static str) -> Result<u64> {
            if self.used() + bytes > self.capacity {
                return Err(KernelError::OutOfMemory { requested: bytes, what });
            }
            let mut live = self.live.borrow_mut();
            let pointer = live.last_key_value().map_or(1 << 32, |(start, len)| start + *len as u64 + 4096);
            live.insert(pointer, bytes);
            Ok(pointer)
        }

        fn free(&self, pointer: u64) -> Result<()> {
            self.live.borrow_mut().remove(&pointer).map(drop).ok_or(KernelError::Device("freed twice".into()))
        }
    }

    #[test]
    fn before_a_reservation_every_piece_is_an_allocation_of_its_own() {
        let (source, mut slabs) = (Fake::new(MIB), Slabs::default());
        let (one, two) = (slabs.take(&source, 1000, "a").unwrap(), slabs.take(&source, 0, "b").unwrap());
        assert_eq!(source.allocations(), [1024, 256]);
        slabs.put_back(&source, one).unwrap();
        assert_eq!((source.allocations(), slabs.allocated()), (vec![256], 256));
        // And stays one that is given back later.
        slabs.reserve(&source, 4096).unwrap();
        slabs.put_back(&source, two).unwrap();
        assert_eq!((source.allocations(), slabs.allocated()), (vec![4096], 4096));
    }

    #[test]
    fn what_fits_lies_in_the_reserved_slab_and_the_rest_in_further_ones() {
        let (source, mut slabs) = (Fake::new(200 * MIB), Slabs::default());
        slabs.reserve(&source, 8 * MIB).unwrap();
        let pieces: Vec<Piece> = [5, 3].map(|mib| slabs.take(&source, mib * MIB, "test").unwrap()).to_vec();
        assert_eq!(source.allocations(), [8 * MIB]);
        let (beyond, large) =
            (slabs.take(&source, 256, "test").unwrap(), slabs.take(&source, 40 * MIB, "test").unwrap());
        assert_eq!(source.allocations(), [8 * MIB, GROWTH, 40 * MIB]);
        // The oldest slab is tried first.
        slabs.put_back(&source, pieces[0]).unwrap();
        assert_eq!(slabs.take(&source, MIB, "test").unwrap().pointer, pieces[0].pointer);
        let all = [beyond, large, pieces[1]];
        assert!(all.iter().all(|piece| piece.pointer % 256 == 0));
    }

    #[test]
    fn a_reservation_that_stands_is_enough_and_one_that_does_not_takes_its_place() {
        let (source, mut slabs) = (Fake::new(20 * MIB), Slabs::default());
        slabs.reserve(&source, 8 * MIB).unwrap();
        slabs.reserve(&source, 8 * MIB).unwrap();
        assert_eq!(source.allocations(), [8 * MIB]);
        slabs.reserve(&source, 16 * MIB).unwrap();
        assert_eq!((source.allocations(), slabs.allocated()), (vec![16 * MIB], 16 * MIB));
        assert!(matches!(slabs.reserve(&source, 24 * MIB), Err(KernelError::OutOfMemory { .. })));
    }

    #[test]
    fn unused_slabs_are_given_back_before_memory_runs_out() {
        let (source, mut slabs) = (Fake::new(100 * MIB), Slabs::default());
        slabs.reserve(&source, 50 * MIB).unwrap();
        let held = slabs.take(&source, 50 * MIB, "test").unwrap();
        let unused = slabs.take(&source, 40 * MIB, "test").unwrap();
        slabs.put_back(&source, unused).unwrap();
        // 10 MiB are left: 45 are there only once the 40 are given back, and 32 for company only then too.
        let large = slabs.take(&source, 45 * MIB, "test").unwrap();
        assert_eq!(source.allocations(), [50 * MIB, 45 * MIB]);
        let error = slabs.take(&source, 6 * MIB, "the test").unwrap_err();
        assert!(matches!(error, KernelError::OutOfMemory { requested, what: "the test" } if requested == 6 * MIB));
        let small = slabs.take(&source, 5 * MIB, "test").unwrap();
        for piece in [held, large, small] {
            slabs.put_back(&source, piece).unwrap();
        }
        slabs.release(&source).unwrap();
        assert_eq!((source.used(), slabs.allocated()), (0, 0));
    }
}
