//! The coordinator's machine: what is on its disk outlives its processes.

use crate::dice::SharedDice;
use crate::run;
use ballast_coordinator::Site;
use ballast_coordinator::server::{Coordinator, Listener, Progress, RunOutcome, Started};
use ballast_coordinator::simulation::{Platter, SimulatedDisk};
use ballast_proto::{Blocking, Failure};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use turmoil::net::{TcpListener, TcpStream};

/// The beginning of all calendars, in milliseconds since 1970.
const BEGINNING: u64 = 1_700_000_000_000;
/// Longest that a disk usually takes, in milliseconds, and how long it takes once in a while.
const DISK: (usize, usize, usize) = (8, 40, 1500);

/// The machine; clones are the same one.
#[derive(Clone)]
pub(crate) struct Machine {
    dice: SharedDice,
    workers: u32,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    disk: SimulatedDisk,
    /// How far its calendar is ahead, in milliseconds.
    skew: u64,
    progress: Option<watch::Receiver<Progress>>,
    ended: Option<Ended>,
}

/// How a coordinator's process ended by itself.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// It says how.
    Over(Box<RunOutcome>),
    /// It could not start.
    Refused(Failure),
}

impl Machine {
    pub(crate) fn new(workers: u32, dice: SharedDice) -> Self {
        let disk = SimulatedDisk::new(Platter::default());
        let inner = Inner { disk, skew: 0, progress: None, ended: None };
        Self { dice, workers, inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One process of the coordinator, which stays until it is killed.
    pub(crate) async fn run(self) -> turmoil::Result {
        let listener = Door(TcpListener::bind(("0.0.0.0", run::PORT)).await?);
        let (disk, skew) = {
            let inner = self.inner();
            (inner.disk.clone(), inner.skew)
        };
        let now = move || {
            let elapsed = turmoil::sim_elapsed().unwrap_or_default();
            BEGINNING + skew + u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
        };
        let dice = self.dice.clone();
        let site = Site::simulated(disk, Blocking::Simulated(Arc::new(move || disk_time(&dice))), now);
        let ended = match Coordinator::start_at(site, listener, run::options(self.workers)).await {
            Ok(Started::Running(coordinator)) => {
                self.inner().progress = Some(coordinator.progress());
                Ended::Over(Box::new(coordinator.wait().await))
            }
            Ok(Started::Finished(outcome)) => Ended::Over(Box::new(outcome)),
            Err(failure) => Ended::Refused(failure),
        };
        self.inner().ended = Some(ended);
        std::future::pending().await
    }

    /// How its process ended, if it did.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.inner().ended.clone()
    }

    /// The process is gone. Without power, what was not synced may be gone, too.
    pub(crate) fn lose_process(&self, power: bool) {
        let mut inner = self.inner();
        let platter = inner.disk.platter();
        let left = if power { platter } else { self.dice.with(|dice| platter.crash(dice)) };
        inner.disk = SimulatedDisk::new(left);
        // Somebody may have set the clock meanwhile.
        inner.skew = 1000 * self.dice.below(10_000) as u64;
        inner.ended = None;
        inner.progress = None;
    }

    /// The newest step that the process has called committed.
    pub(crate) fn committed(&self) -> u64 {
        self.inner().progress.as_ref().map_or(0, |progress| progress.borrow().step)
    }

    pub(crate) fn disk(&self) -> SimulatedDisk {
        self.inner().disk.clone()
    }
}

fn disk_time(dice: &SharedDice) -> Duration {
    let (usual, chances, rare) = DISK;
    dice.pause(if dice.one_in(chances) { rare } else { usual })
}

/// Where the network of the simulation comes in.
struct Door(TcpListener);

impl Listener for Door {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
