//! Device memory: host allocations between guard zones, and the table that every access is checked against.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ptr::slice_from_raw_parts,
    sync::{Arc, PoisonError, RwLock},
};

/// Alignment of each allocation, as `cuMemAlloc` promises.
const ALIGN: usize = 256;
/// Bytes before and after an allocation that nobody may touch.
const GUARD: usize = 256;
/// Content of the guard zones; a copy by the host that overruns changes it, and `free` notices.
const CANARY: u8 = 0xA5;
/// Content of fresh memory. As f32, f16 and bf16 it is a NaN, which no later sum hides.
const POISON: u8 = 0xFF;

/// Why memory could not be had or given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// The device's capacity, or the host's, is used up.
    #[error("out of device memory: {asked} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that the device has left.
        free: u64,
    },
    /// The address is not the start of a live allocation.
    #[error("{0:#x} is not the start of a live allocation")]
    Unknown(u64),
    /// Somebody wrote just outside the allocation.
    #[error("allocation {address:#x} of {bytes} bytes: byte {offset} (relative to its start) was overwritten")]
    GuardOverwritten {
        /// Start of the allocation.
        address: u64,
        /// Its length.
        bytes: u64,
        /// First damaged byte relative to the start; negative before it.
        offset: i64,
    },
    /// A range to be registered overlaps one that is already known.
    #[error("the {bytes} bytes at {address:#x} overlap memory that the device already knows")]
    Overlap {
        /// Start of the range.
        address: u64,
        /// Its length.
        bytes: u64,
    },
}

/// Why an access is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The bytes do not lie within one allocation.
    #[error("{bytes} bytes at {address:#x} lie in no allocation ({near})")]
    Illegal {
        /// Address of the access.
        address: u64,
        /// Its size.
        bytes: u64,
        /// The nearest allocation, in words.
        near: String,
    },
    /// The address is not a multiple of the access's size.
    #[error("address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// Address of the access.
        address: u64,
        /// What it should be a multiple of.
        align: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Made by [`AllocationTable::allocate`], between guard zones.
    Device,
    /// Memory of the host that the device may use too ([`AllocationTable::register`]).
    Host,
}

#[derive(Debug)]
struct Inner {
    ranges: BTreeMap<u64, (u64, Origin)>,
    used: u64,
    view: Arc<View>,
}

/// All memory that kernels may touch. Shared by the threads of the driver; launches work on a [`View`].
#[derive(Debug)]
pub struct AllocationTable {
    capacity: u64,
    inner: RwLock<Inner>,
}

impl AllocationTable {
    /// An empty device with room for `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let inner = Inner { ranges: BTreeMap::new(), used: 0, view: Arc::new(View { ranges: Vec::new() }) };
        Self { capacity, inner: RwLock::new(inner) }
    }

    /// Bytes the device has, and bytes of them that are free.
    pub fn capacity_and_free(&self) -> (u64, u64) {
        (self.capacity, self.capacity - self.read(|inner| inner.used))
    }

    /// Allocates `bytes` bytes, 256-byte aligned, filled with NaN patterns. At least one byte is allocated.
    ///
    /// # Errors
    /// The capacity is used up.
    pub fn allocate(&self, bytes: u64) -> Result<u64, AllocationError> {
        let bytes = bytes.max(1);
        self.write(|inner| {
            let free = self.capacity - inner.used;
            let out_of_memory = AllocationError::OutOfMemory { asked: bytes, free };
            let layout = (bytes <= free).then(|| padded(bytes)).flatten().ok_or(out_of_memory.clone())?;
            // SAFETY: the layout is not empty: it holds two guard zones.
            let base = unsafe { alloc(layout) };
            if base.is_null() {
                return Err(out_of_memory);
            }
            // SAFETY: all three pieces lie within the layout just allocated.
            unsafe {
                base.write_bytes(CANARY, GUARD);
                base.add(GUARD).write_bytes(POISON, bytes as usize);
                base.add(GUARD + bytes as usize).write_bytes(CANARY, layout.size() - GUARD - bytes as usize);
            }
            let address = base.expose_provenance() as u64 + GUARD as u64;
            inner.ranges.insert(address, (bytes, Origin::Device));
            inner.used += bytes;
            inner.refresh();
            Ok(address)
        })
    }

    /// Frees what [`Self::allocate`] returned.
    ///
    /// # Errors
    /// `address` is no such address, or a guard zone was written to (the memory is freed all the same).
    pub fn free(&self, address: u64) -> Result<(), AllocationError> {
        self.write(|inner| {
            let Some(&(bytes, Origin::Device)) = inner.ranges.get(&address) else {
                return Err(AllocationError::Unknown(address));
            };
            inner.ranges.remove(&address);
            inner.used -= bytes;
            inner.refresh();
            let Some(layout) = padded(bytes) else { return Err(AllocationError::Unknown(address)) };
            let base = std::ptr::with_exposed_provenance_mut::<u8>(address as usize - GUARD);
            // SAFETY: the table held this allocation, so it was made with this layout and is not yet freed.
            let memory = unsafe { &*slice_from_raw_parts(base, layout.size()) };
            let damaged = (0..GUARD).chain(GUARD + bytes as usize..layout.size()).find(|&i| memory[i] != CANARY);
            // SAFETY: as above, and nothing refers to the memory any more.
            unsafe { dealloc(base, layout) };
            match damaged {
                Some(i) => Err(AllocationError::GuardOverwritten { address, bytes, offset: i as i64 - GUARD as i64 }),
                None => Ok(()),
            }
        })
    }

    /// Lets kernels use `bytes` bytes of the host's memory (page-locked memory).
    ///
    /// # Safety
    /// The range must stay valid for reads and writes until [`Self::unregister`].
    ///
    /// # Errors
    /// The range overlaps a known one.
    pub unsafe fn register(&self, address: u64, bytes: u64) -> Result<(), AllocationError> {
        self.write(|inner| {
            let end = address.saturating_add(bytes);
            let before = inner.ranges.range(..end).next_back();
            if before.is_some_and(|(&start, &(length, _))| start + length > address) {
                return Err(AllocationError::Overlap { address, bytes });
            }
            inner.ranges.insert(address, (bytes, Origin::Host));
            inner.refresh();
            Ok(())
        })
    }

    /// Takes back what [`Self::register`] gave.
    ///
    /// # Errors
    /// `address` is not the start of a registered range.
    pub fn unregister(&self, address: u64) -> Result<(), AllocationError> {
        self.write(|inner| match inner.ranges.get(&address) {
            Some((_, Origin::Host)) => {
                inner.ranges.remove(&address);
                inner.refresh();
                Ok(())
            }
            _ => Err(AllocationError::Unknown(address)),
        })
    }

    /// Start and length of the range that holds `address`.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        self.view().find(address)
    }

    /// Whether `address` lies in device memory (and not in registered memory of the host).
    pub fn is_device(&self, address: u64) -> bool {
        let Some((start, _)) = self.find(address) else { return false };
        self.read(|inner| matches!(inner.ranges.get(&start), Some((_, Origin::Device))))
    }

    /// Checks one access of `bytes` bytes whose address must be a multiple of `align`.
    ///
    /// # Errors
    /// It is misaligned or not within one allocation.
    pub fn check(&self, address: u64, bytes: u64, align: u64) -> Result<(), AccessError> {
        self.view().check(address, bytes, align)
    }

    /// The table as it is now.
    pub fn view(&self) -> Arc<View> {
        self.read(|inner| Arc::clone(&inner.view))
    }

    fn read<T>(&self, f: impl FnOnce(&Inner) -> T) -> T {
        f(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for AllocationTable {
    fn drop(&mut self) {
        let ranges: Vec<(u64, (u64, Origin))> = self.read(|inner| inner.ranges.iter().map(|(a, r)| (*a, *r)).collect());
        for (address, (_, origin)) in ranges {
            if origin == Origin::Device {
                // A damaged guard zone has nobody left to be told to.
                let _ = self.free(address);
            }
        }
    }
}

impl Inner {
    fn refresh(&mut self) {
        self.view = Arc::new(View { ranges: self.ranges.iter().map(|(&start, &(bytes, _))| (start, bytes)).collect() });
    }
}

/// The layout of an allocation with its guard zones; `None` beyond the address space.
fn padded(bytes: u64) -> Option<Layout> {
    let size = usize::try_from(bytes).ok()?.checked_add(2 * GUARD)?;
    Layout::from_size_align(size, ALIGN).ok().map(|layout| layout.pad_to_align())
}

/// The allocations at one moment, sorted by address.
#[derive(Debug)]
pub struct View {
    ranges: Vec<(u64, u64)>,
}

impl View {
    /// Start and length of the range that holds `address`.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let after = self.ranges.partition_point(|&(start, _)| start <= address);
        let (start, bytes) = *self.ranges.get(after.checked_sub(1)?)?;
        (address - start < bytes).then_some((start, bytes))
    }

    /// See [`AllocationTable::check`].
    ///
    /// # Errors
    /// The access is misaligned or not within one allocation.
    pub fn check(&self, address: u64, bytes: u64, align: u64) -> Result<(), AccessError> {
        if !address.is_multiple_of(align) {
            return Err(AccessError::Misaligned { address, align });
        }
        match self.find(address) {
            Some((start, length)) if bytes <= length - (address - start) => Ok(()),
            _ => Err(AccessError::Illegal { address, bytes, near: self.describe(address) }),
        }
    }

    /// The allocation nearest to `address`, in words.
    fn describe(&self, address: u64) -> String {
        let after = self.ranges.partition_point(|&(start, _)| start <= address);
        let before = after.checked_sub(1).and_then(|i| self.ranges.get(i));
        let next = self.ranges.get(after);
        let past = before.map(|&(start, bytes)| (address - start).saturating_sub(bytes));
        let ahead = next.map(|&(start, _)| start - address);
        match (before, next) {
            (Some((start, bytes)), _) if past <= ahead.or(Some(u64::MAX)) => {
                format!("{} bytes past the start of {start:#x}, which has {bytes}", address - start)
            }
            (_, Some((start, bytes))) => format!("{} bytes before {start:#x}, which has {bytes}", start - address),
            _ => "nothing is allocated near it".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_checked_to_the_byte() {
        let table = AllocationTable::new(1 << 20);
        let a = table.allocate(100).expect("room");
        assert!(a.is_multiple_of(256));
        assert_eq!(table.check(a, 4, 4), Ok(()));
        assert_eq!(table.check(a + 96, 4, 4), Ok(()));
        assert!(matches!(table.check(a + 100, 1, 1), Err(AccessError::Illegal { .. })));
        assert!(matches!(table.check(a + 96, 8, 8), Err(AccessError::Illegal { .. })));
        assert!(matches!(table.check(a - 1, 1, 1), Err(AccessError::Illegal { .. })));
        assert_eq!(table.check(a + 2, 4, 4), Err(AccessError::Misaligned { address: a + 2, align: 4 }));
        assert_eq!(table.free(a), Ok(()));
        assert!(table.check(a, 4, 4).is_err(), "use after free");
        assert_eq!(table.free(a), Err(AllocationError::Unknown(a)));
    }

    #[test]
    fn a_write_into_a_guard_zone_is_noticed() {
        let table = AllocationTable::new(1 << 20);
        for offset in [-1_i64, 100, 300] {
            let a = table.allocate(100).expect("room");
            // SAFETY: both guard zones belong to the allocation's host memory.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>((a as i64 + offset) as usize).write(0) };
            assert_eq!(table.free(a), Err(AllocationError::GuardOverwritten { address: a, bytes: 100, offset }));
        }
    }

    #[test]
    fn capacity_is_counted() {
        let table = AllocationTable::new(1000);
        let a = table.allocate(900).expect("room");
        assert_eq!(table.allocate(101), Err(AllocationError::OutOfMemory { asked: 101, free: 100 }));
        table.free(a).expect("live");
        assert_eq!(table.capacity_and_free(), (1000, 1000));
    }

    #[test]
    fn registered_host_memory_is_reachable_and_not_freed() {
        let host = [0_u32; 16];
        let address = host.as_ptr().expose_provenance() as u64;
        let table = AllocationTable::new(1000);
        // SAFETY: `host` outlives the registration.
        unsafe { table.register(address, 64) }.expect("new");
        // SAFETY: as above.
        assert!(unsafe { table.register(address + 60, 64) }.is_err(), "overlap");
        assert_eq!(table.check(address + 60, 4, 4), Ok(()));
        assert!(!table.is_device(address));
        assert!(table.free(address).is_err());
        table.unregister(address).expect("known");
        assert!(table.check(address, 4, 4).is_err());
    }
}
