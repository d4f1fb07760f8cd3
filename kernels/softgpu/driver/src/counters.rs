//! `SOFTGPU_COUNTERS=FILE`: sums of the counters per kernel and shape, appended to the file when the process exits.

use std::{
    collections::BTreeMap,
    env,
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use ballast_softgpu::{Counters, LaunchConfig};

use crate::{
    abi::CUresult,
    call::{self, initialized},
    device::lock,
};

/// Name, grid and block.
type Shape = (String, [u32; 3], [u32; 3]);

/// The sums so far, and where they go.
pub(crate) struct Ledger {
    path: PathBuf,
    counting: AtomicBool,
    sums: Mutex<BTreeMap<Shape, (u64, Counters)>>,
}

/// The ledger that the environment asks for.
pub(crate) fn from_env() -> Option<Ledger> {
    let path = PathBuf::from(env::var_os("SOFTGPU_COUNTERS")?);
    // SAFETY: the function has the signature that `atexit` wants and does not unwind.
    let registered = unsafe { libc::atexit(at_exit) };
    if registered != 0 {
        eprintln!("softgpu: no counters will be written: atexit failed");
    }
    Some(Ledger { path, counting: AtomicBool::new(true), sums: Mutex::default() })
}

impl Ledger {
    /// Adds a launch.
    pub(crate) fn add(&self, kernel: &str, config: &LaunchConfig, counters: &Counters) {
        if self.counting.load(Ordering::Relaxed) {
            let mut sums = lock(&self.sums);
            let sum = sums.entry((kernel.to_owned(), config.grid, config.block)).or_default();
            sum.0 += 1;
            sum.1 += *counters;
        }
    }

    /// One JSON object a line. All of them go out in one write, so that processes that share the file do not mix.
    fn write(&self) -> std::io::Result<()> {
        let mut lines = String::new();
        for ((kernel, grid, block), (launches, sum)) in lock(&self.sums).iter() {
            let object = sum.to_json(kernel, *grid, *block);
            let fields = object.strip_prefix('{').unwrap_or(&object);
            lines.push_str(&format!("{{\"launches\":{launches},{fields}\n"));
        }
        OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(lines.as_bytes())
    }
}

extern "C" fn at_exit() {
    if let Ok(device) = call::device()
        && let Some(ledger) = &device.ledger
        && let Err(error) = ledger.write()
    {
        eprintln!("softgpu: counters are lost: {}: {error}", ledger.path.display());
    }
}

fn count(on: bool) -> CUresult {
    initialized(|device| {
        device.synchronize()?;
        if let Some(ledger) = &device.ledger {
            ledger.counting.store(on, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Launches from here on are counted, as they are from the start. All work before it is done first.
#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> CUresult {
    count(true)
}

/// Launches from here on are not counted.
#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> CUresult {
    count(false)
}
