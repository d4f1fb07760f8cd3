//! The state of the software device.

use std::{
    alloc::Layout,
    cell::OnceCell,
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ballast_softgpu::{AllocationError, AllocationTable, Settings};

use crate::{
    abi::{Error, Handle},
    counters::{self, Ledger},
    event::Event,
    kernel::Function,
    module::LoadedModule,
    queue::Stream,
    work::Work,
};

/// Device memory where `SOFTGPU_MEMORY` says nothing: 8 GiB.
const DEFAULT_MEMORY: u64 = 8 << 30;
/// The most devices that `SOFTGPU_DEVICES` may ask for.
const MOST_DEVICES: i32 = 16;

/// When queued work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Only when something waits for it or asks after it. A wait that the program forgot then reads old data.
    Lazy,
    /// As soon as it is queued and all before it in its stream is done.
    Eager,
}

/// Everything the driver knows. There is one per process; several devices share it (see `properties`).
pub(crate) struct Device {
    pub(crate) count: i32,
    pub(crate) table: AllocationTable,
    pub(crate) settings: Settings,
    pub(crate) schedule: Schedule,
    pub(crate) ledger: Option<Ledger>,
    /// Launches until the one that fails by order (`SOFTGPU_FAULT`); 0 where none does.
    launches_left: AtomicU64,
    pub(crate) streams: Registry<Stream>,
    pub(crate) events: Registry<Event>,
    pub(crate) modules: Registry<LoadedModule>,
    pub(crate) functions: Registry<Function>,
    /// Page-locked memory that we allocated, by address.
    pub(crate) pinned: Mutex<BTreeMap<u64, Layout>>,
    /// Destroyed streams whose work is not done yet.
    pub(crate) draining: Mutex<Vec<Arc<Stream>>>,
    pub(crate) legacy: Arc<Stream>,
    fault: OnceLock<Error>,
}

impl Device {
    /// Reads the `SOFTGPU_*` variables. The error says which is not understood.
    pub(crate) fn from_env() -> Result<Self, String> {
        let schedule = match env::var("SOFTGPU_SCHED").as_deref() {
            Err(_) | Ok("lazy") => Schedule::Lazy,
            Ok("eager") => Schedule::Eager,
            Ok(other) => return Err(format!("SOFTGPU_SCHED={other:?} is not understood: lazy or eager")),
        };
        let count = number("SOFTGPU_DEVICES", 1)?;
        if !(0..=MOST_DEVICES).contains(&count) {
            return Err(format!("SOFTGPU_DEVICES={count} is not understood: 0 to {MOST_DEVICES}"));
        }
        Ok(Self {
            count,
            table: AllocationTable::new(number("SOFTGPU_MEMORY", DEFAULT_MEMORY)?),
            settings: Settings::from_env().map_err(|error| error.to_string())?,
            schedule,
            ledger: counters::from_env(),
            launches_left: AtomicU64::new(launch_to_fail()?),
            streams: Registry::default(),
            events: Registry::default(),
            modules: Registry::default(),
            functions: Registry::default(),
            pinned: Mutex::default(),
            draining: Mutex::default(),
            legacy: Arc::new(Stream::new(true, 0)),
            fault: OnceLock::new(),
        })
    }

    /// Refuses once a fault has happened: as on a GPU, the context is then lost and only a new process helps.
    pub(crate) fn healthy(&self) -> Result<(), Error> {
        self.fault.get().map_or(Ok(()), |&error| Err(error))
    }

    /// Whether this launch is the one that was ordered to fail.
    pub(crate) fn is_to_fail(&self) -> bool {
        let count_down = |left: u64| left.checked_sub(1);
        self.launches_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down) == Ok(1)
    }

    /// Records a fault of running work and says on stderr what the program under test cannot be told.
    pub(crate) fn raise(&self, error: Error, message: &str) {
        if self.fault.set(error).is_ok() {
            eprintln!("softgpu: {message}");
        }
    }

    /// Queues work on a stream, behind what the rules of the legacy default stream put before it: that stream waits
    /// for all blocking streams, and they for it.
    pub(crate) fn enqueue(&'static self, stream: &Arc<Stream>, work: Work) -> Result<u64, Error> {
        let before = match (Arc::ptr_eq(stream, &self.legacy), stream.is_blocking()) {
            (true, _) => self.streams.all().into_iter().filter(|other| other.is_blocking()).collect(),
            (false, true) => vec![Arc::clone(&self.legacy)],
            (false, false) => Vec::new(),
        };
        for other in before {
            let upto = other.queued();
            if !other.is_done(upto) {
                stream.push(self, Work::Wait { stream: other, upto })?;
            }
        }
        stream.push(self, work)
    }

    /// Runs all queued work to its end. Streams go one after the other, the newest first (the oldest first with an odd
    /// `SOFTGPU_SEED`): a wait that was forgotten is noticed in one of the two.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        let mut streams = vec![Arc::clone(&self.legacy)];
        streams.extend(self.streams.all());
        let drained = std::mem::take(&mut *lock(&self.draining));
        streams.extend(drained);
        if self.settings.seed.is_multiple_of(2) {
            streams.reverse();
        }
        for stream in streams {
            stream.wait(stream.queued());
        }
        self.healthy()
    }

    /// The stream of a handle that the program passed. 0 and 1 are the legacy default stream, 2 that of the thread.
    pub(crate) fn stream(&self, handle: Handle) -> Result<Arc<Stream>, Error> {
        thread_local! {
            static PER_THREAD: OnceCell<Handle> = const { OnceCell::new() };
        }
        match handle {
            0 | 1 => Ok(Arc::clone(&self.legacy)),
            2 => {
                let own = PER_THREAD.with(|own| *own.get_or_init(|| self.streams.insert(Stream::new(true, 0))));
                self.streams.get(own)
            }
            _ => self.streams.get(handle),
        }
    }

    /// Allocates device memory. Memory that queued work will free counts as used, so that work runs if room is short.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        if let Ok(address) = self.table.allocate(bytes as u64) {
            return Ok(address);
        }
        self.synchronize()?;
        self.table.allocate(bytes as u64).map_err(|_| Error::OutOfMemory)
    }

    /// Frees device memory; an overwritten guard zone is a fault.
    pub(crate) fn free(&self, address: u64) -> Result<(), Error> {
        match self.table.free(address) {
            Ok(()) => Ok(()),
            Err(error @ AllocationError::GuardOverwritten { .. }) => {
                self.raise(Error::IllegalAddress, &format!("free: {error}"));
                Err(Error::IllegalAddress)
            }
            Err(_) => Err(Error::InvalidValue),
        }
    }
}

/// `SOFTGPU_FAULT=launch:N`; 0 where nothing is ordered.
fn launch_to_fail() -> Result<u64, String> {
    let Ok(value) = env::var("SOFTGPU_FAULT") else { return Ok(0) };
    let number = value.strip_prefix("launch:").and_then(|number| number.parse().ok());
    number.filter(|&number| number > 0).ok_or_else(|| format!("SOFTGPU_FAULT={value:?} is not understood: launch:N"))
}

fn number<T: std::str::FromStr>(variable: &str, default: T) -> Result<T, String> {
    match env::var(variable) {
        Err(_) => Ok(default),
        Ok(value) => value.parse().map_err(|_| format!("{variable}={value:?} is not understood: a number")),
    }
}

/// A mutex whose data stay usable after a panic elsewhere: every change to them is a single step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects that the program knows by handle. A handle that is wrong or was destroyed is an error, not a crash.
pub(crate) struct Registry<T>(Mutex<BTreeMap<Handle, Arc<T>>>);

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Registry<T> {
    pub(crate) fn insert(&self, value: T) -> Handle {
        // One count for all kinds of object: an event's handle is never taken for a stream's. Small numbers are
        // reserved by the API.
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        lock(&self.0).insert(handle, Arc::new(value));
        handle
    }

    pub(crate) fn get(&self, handle: Handle) -> Result<Arc<T>, Error> {
        lock(&self.0).get(&handle).cloned().ok_or(Error::InvalidHandle)
    }

    pub(crate) fn remove(&self, handle: Handle) -> Result<Arc<T>, Error> {
        lock(&self.0).remove(&handle).ok_or(Error::InvalidHandle)
    }

    /// All objects, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).values().cloned().collect()
    }
}
