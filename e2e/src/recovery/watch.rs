//! A run of three workers, struck and watched by what its coordinator prints.

use super::Sample;
use crate::cluster::{coordinator, worker};
use crate::process::Process;
use crate::tiny::Scene;
use anyhow::Result;
use nix::sys::signal::Signal;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The lease of the run.
pub const LEASE: Duration = Duration::from_secs(5);
const WORKERS: usize = 3;
const SETTINGS: [&str; 5] = [
    "cluster.workers=3",
    "cluster.lease_ms=5000",
    "cluster.gather_ms=1000",
    "train.max_steps=1000000",
    "train.epochs=1000000",
];

/// What is measured of the strikes.
#[derive(Debug, Default)]
pub struct Measured {
    /// From SIGKILL to the next step that the survivors have durable, the step that was under way done again.
    pub killed: Sample,
    /// From SIGSTOP to the same.
    pub hung: Sample,
    /// A step of the survivors, between two durable ones.
    pub step: Sample,
    /// From the start of a replacement until its model is loaded.
    pub loaded: Sample,
    /// From then to the generation that it trains in.
    pub rejoined: Sample,
    /// From the same to the first durable step of that generation.
    pub replaced: Sample,
}

/// A run that is watched.
pub struct Watch<'a> {
    scene: &'a Scene,
    coordinator: Process,
    url: String,
    workers: Vec<Process>,
    started: usize,
    moments: ChaCha8Rng,
    measured: Measured,
}

/// A line of the coordinator.
#[derive(Clone, Copy)]
struct Seen {
    /// Its number.
    line: usize,
    /// When it came.
    at: Instant,
}

impl<'a> Watch<'a> {
    /// A run whose workers train.
    ///
    /// # Errors
    /// When it does not come so far.
    pub fn new(scene: &'a Scene, seed: u64) -> Result<Self> {
        let (coordinator, url) = coordinator(scene, "run", &SETTINGS)?;
        let moments = ChaCha8Rng::seed_from_u64(seed);
        let (workers, measured) = (Vec::new(), Measured::default());
        let mut watch = Self { scene, coordinator, url, workers, started: 0, moments, measured };
        for _ in 0..WORKERS {
            watch.start()?;
        }
        watch.coordinator.line_with("step 3/")?;
        Ok(watch)
    }

    /// Strikes so many workers with SIGKILL, then with SIGSTOP.
    ///
    /// # Errors
    /// When training does not go on.
    pub fn strike(mut self, kills: usize, stops: usize) -> Result<Measured> {
        for _ in 0..kills {
            let lost = self.lose(Signal::SIGKILL)?;
            self.measured.killed.take(lost);
        }
        for _ in 0..stops {
            let lost = self.lose(Signal::SIGSTOP)?;
            self.measured.hung.take(lost);
        }
        Ok(self.measured)
    }

    fn start(&mut self) -> Result<String> {
        self.started += 1;
        let name = format!("w{}", self.started);
        self.workers.push(worker(self.scene, &name, &self.url, &["--name", &name])?);
        Ok(name)
    }

    /// Strikes the oldest worker and has it replaced; the time until the survivors have a step durable.
    fn lose(&mut self, signal: Signal) -> Result<Duration> {
        self.moment()?;
        let victim = self.workers.remove(0);
        let from = self.coordinator.lines();
        let struck = Instant::now();
        victim.signal(signal)?;
        let durable = self.first_step_of_a_generation(from)?;
        let next = self.step_from(durable.line + 1)?;
        self.measured.step.take(next.at - durable.at);
        // A stopped one is killed with its handle.
        drop(victim);
        self.replace()?;
        Ok(durable.at.saturating_duration_since(struck))
    }

    fn replace(&mut self) -> Result<()> {
        let (from, started) = (self.coordinator.lines(), Instant::now());
        let name = self.start()?;
        let ready = format!("({name}) is ready");
        let loaded = self.seen(from, |line| line.contains(&ready))?;
        let everyone = format!(": {WORKERS} in the world");
        let rejoined = self.seen(loaded.line, |line| line.contains(&everyone))?;
        let trains = self.first_step_of_a_generation(rejoined.line)?;
        self.measured.loaded.take(loaded.at - started);
        self.measured.rejoined.take(rejoined.at - loaded.at);
        self.measured.replaced.take(trains.at - loaded.at);
        Ok(())
    }

    /// Waits for a moment somewhere in a step.
    fn moment(&mut self) -> Result<()> {
        let first = self.step_from(self.coordinator.lines())?;
        let second = self.step_from(first.line + 1)?;
        let share = f64::from(self.moments.next_u32()) / f64::from(u32::MAX);
        std::thread::sleep((second.at - first.at).mul_f64(share));
        Ok(())
    }

    /// The first step that the next generation had durable, in the coordinator's words from line `from` on.
    fn first_step_of_a_generation(&self, from: usize) -> Result<Seen> {
        let formed = Cell::new(0);
        // `generation 1.2: 2 in the world, 17 steps done`; older steps may become durable after it.
        let generation = self.seen(from, |line| {
            let done = line.strip_prefix("generation ").and_then(|rest| rest.rsplit_once(", "));
            done.inspect(|(_, done)| formed.set(number(done))).is_some()
        })?;
        self.seen(generation.line, |line| line.strip_prefix("step ").is_some_and(|rest| number(rest) > formed.get()))
    }

    fn step_from(&self, from: usize) -> Result<Seen> {
        self.seen(from, |line| line.starts_with("step "))
    }

    fn seen(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Result<Seen> {
        let (line, at) = self.coordinator.line_from(from, wanted)?;
        Ok(Seen { line, at })
    }
}

/// The number that a text begins with.
fn number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}
