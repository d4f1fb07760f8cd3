//! A backend that computes nothing and counts what memory it would have taken.
//!
//! What a computation needs is then not a formula beside the code, but the code: it is run with the sizes of a real
//! backend ([`Footprint`]), and its buffers come and go as they would there. Whatever is read is zero.

mod backend;

use crate::KernelError;
use crate::contract::Result;
use crate::footprint::Footprint;
use crate::free_list::{ALIGNMENT, FreeList, rounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A backend without a device, of the sizes of `F`.
#[derive(Debug)]
pub struct DryRun<F: Footprint> {
    footprint: F,
    meter: Arc<Mutex<Meter>>,
    /// What is held from start to end.
    _workspace: Held,
}

/// What a dry run has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes in live buffers.
    pub in_use: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Bytes of a slab that holds all that was taken since [`DryRun::reserve`], laid out as the backends do:
    /// gaps between buffers are part of it.
    pub slab: usize,
}

#[derive(Debug, Default)]
struct Meter {
    extent: Extent,
    /// Unbounded; `None` until [`DryRun::reserve`].
    slab: Option<FreeList>,
}

/// Bytes that are taken until it is dropped.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    /// Its place in the slab and the bytes it has there.
    place: Option<(usize, usize)>,
    meter: Arc<Mutex<Meter>>,
}

impl Held {
    fn new(meter: &Arc<Mutex<Meter>>, bytes: usize, what: &'static str) -> Result<Self> {
        let mut state = lock(meter);
        let length = rounded(bytes);
        let place = match &mut state.slab {
            None => None,
            Some(slab) => Some(slab.take(length).ok_or(KernelError::OutOfMemory { requested: bytes, what })?),
        };
        let extent = &mut state.extent;
        extent.in_use += bytes;
        extent.peak = extent.peak.max(extent.in_use);
        extent.slab = extent.slab.max(place.map_or(0, |offset| offset + length));
        let place = place.map(|offset| (offset, length));
        Ok(Self { bytes, place, meter: Arc::clone(meter) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = lock(&self.meter);
        state.extent.in_use -= self.bytes;
        if let (Some(slab), Some((offset, length))) = (&mut state.slab, self.place) {
            slab.put_back(offset, length);
        }
    }
}

fn lock(meter: &Mutex<Meter>) -> MutexGuard<'_, Meter> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A matrix of nothing.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    _held: Held,
}

/// A vector of nothing.
#[derive(Debug)]
pub struct Vector {
    len: usize,
    _held: Held,
}

/// A frozen matrix of nothing, perhaps shared.
#[derive(Clone, Debug)]
pub struct Table {
    rows: usize,
    cols: usize,
    held: Arc<Held>,
}

/// A frozen layer of nothing.
#[derive(Debug)]
pub struct Linear {
    weight: Table,
    _bias: Option<Held>,
}

impl<F: Footprint> DryRun<F> {
    /// A backend of these sizes.
    ///
    /// # Errors
    /// None that is met in practice: [`KernelError::OutOfMemory`] beyond the address space.
    pub fn new(footprint: F) -> Result<Self> {
        let meter = Arc::default();
        let workspace = Held::new(&meter, footprint.workspace(), "the workspace")?;
        Ok(Self { footprint, meter, _workspace: workspace })
    }

    /// The sizes.
    pub fn footprint(&self) -> &F {
        &self.footprint
    }

    /// What was taken so far.
    #[must_use]
    pub fn extent(&self) -> Extent {
        lock(&self.meter).extent
    }

    /// As a backend's `reserve`: from here on buffers lie in a slab, which is as large as it needs to be.
    pub fn reserve(&self) {
        lock(&self.meter).slab = Some(FreeList::new(isize::MAX as usize / ALIGNMENT * ALIGNMENT));
    }

    /// Takes `bytes` bytes as a table would, until the result is dropped.
    ///
    /// # Errors
    /// As [`DryRun::new`].
    pub fn hold(&self, bytes: usize) -> Result<Held> {
        Held::new(&self.meter, bytes, "a table")
    }

    fn buffer(&self, bytes: usize, what: &'static str) -> Result<Held> {
        Held::new(&self.meter, self.footprint.buffer(bytes), what)
    }

    fn table(&self, bytes: usize, what: &'static str) -> Result<Held> {
        Held::new(&self.meter, self.footprint.table(bytes), what)
    }

    fn vector(&self, len: usize) -> Result<Vector> {
        Ok(Vector { len, _held: self.buffer(len * size_of::<f32>(), "a vector")? })
    }

    fn integer_vector<T>(&self, len: usize) -> Result<Vector> {
        Ok(Vector { len, _held: self.table(len * size_of::<T>(), "integers")? })
    }

    /// What an operation has while it runs.
    fn scratch(&self, buffers: &[usize]) -> Result<()> {
        let buffers = buffers.iter().filter(|&&bytes| bytes > 0);
        buffers.map(|&bytes| self.buffer(bytes, "scratch")).collect::<Result<Vec<Held>>>().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{CpuBackend, CpuFootprint};
    use crate::{Backend, Storage};

    #[test]
    fn buffers_count_while_they_live_and_scratch_counts_at_its_peak() {
        let dry = DryRun::new(CpuFootprint { threads: 1, weights: Storage::F32 }).unwrap();
        let table = dry.pack_embedding(&[], 10, 6).unwrap();
        assert_eq!(dry.extent(), Extent { in_use: 240, peak: 240, slab: 0 });
        dry.reserve();
        let matrix = dry.activations(100, 10).unwrap();
        let held = dry.extent();
        assert!(held.in_use >= 240 + 4000 && held.slab >= 4000 && held.slab < 4700, "{held:?}");
        dry.scratch(&[0, 300, 500]).unwrap();
        let after = dry.extent();
        assert!(after.in_use == held.in_use && after.peak >= held.in_use + 800, "{held:?} {after:?}");
        drop((matrix, table));
        assert_eq!(dry.extent(), Extent { in_use: 0, ..after });
    }

    /// The sizes are those of the buffers that the backend takes.
    #[test]
    fn buffers_of_the_cpu_are_as_large_as_described() {
        let (cpu, dry) =
            (CpuBackend::new(1).unwrap(), DryRun::new(CpuFootprint { threads: 1, weights: Storage::F32 }).unwrap());
        for (rows, cols) in [(1, 1), (3, 61), (100, 24), (777, 131)] {
            let before = (cpu.memory().in_use, dry.extent().in_use);
            let held = (cpu.activations(rows, cols).unwrap(), dry.activations(rows, cols).unwrap());
            assert_eq!(dry.extent().in_use - before.1, cpu.memory().in_use - before.0, "[{rows}, {cols}]");
            drop(held);
        }
    }
}
