//! `make recovery`: how soon training goes on after a worker is killed, or hangs. Three workers train a model of two layers; one after
//! the other is struck, and replaced. Prints one JSON object a line, in seconds:
//!
//! - `killed`: from SIGKILL to the next step that the survivors have durable, the step that was under way done again;
//! - `hung`: from SIGSTOP to the same, less the lease (which began with the last heartbeat, up to half a second before);
//! - `replaced`: from the moment a replacement has its model loaded to the first durable step that it takes part in.

use anyhow::{Context, Result};
use ballast_e2e::cluster::{coordinator, worker};
use ballast_e2e::process::Process;
use ballast_e2e::tiny::{Scene, play};
use clap::Parser;
use nix::sys::signal::Signal;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The lease of the run.
const LEASE: Duration = Duration::from_secs(5);
const SETTINGS: [&str; 5] = [
    "cluster.workers=3",
    "cluster.lease_ms=5000",
    "cluster.gather_ms=1000",
    "train.max_steps=1000000",
    "train.epochs=1000000",
];

#[derive(Parser)]
struct Args {
    /// Workers to kill.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Workers to stop, each of which takes a lease.
    #[arg(long, default_value_t = 10)]
    stops: usize,
}

/// Seconds of one kind.
#[derive(Default)]
struct Sample(Vec<f64>);

impl Sample {
    fn take(&mut self, from: Instant, to: Instant) {
        self.0.push(to.saturating_duration_since(from).as_secs_f64());
    }

    fn print(mut self, measure: &str) {
        self.0.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| self.0.get(((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1)));
        let line = serde_json::json!({
            "measure": measure,
            "count": self.0.len(),
            "p50": at(0.5),
            "p90": at(0.9),
            "p99": at(0.99),
            "max": self.0.last(),
        });
        println!("{line}");
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    play(|scene| Watch::new(scene)?.strike(args.kills, args.stops))
}

/// A run that is watched.
struct Watch<'a> {
    scene: &'a Scene,
    coordinator: Process,
    url: String,
    workers: Vec<Process>,
    started: usize,
    killed: Sample,
    hung: Sample,
    replaced: Sample,
}

impl<'a> Watch<'a> {
    fn new(scene: &'a Scene) -> Result<Self> {
        let (coordinator, url) = coordinator(scene, "run", &SETTINGS)?;
        let mut watch = Self {
            scene,
            coordinator,
            url,
            workers: Vec::new(),
            started: 0,
            killed: Sample::default(),
            hung: Sample::default(),
            replaced: Sample::default(),
        };
        for _ in 0..3 {
            watch.start()?;
        }
        watch.coordinator.line_with("step 3/")?;
        Ok(watch)
    }

    fn start(&mut self) -> Result<String> {
        self.started += 1;
        let name = format!("w{}", self.started);
        self.workers.push(worker(self.scene, &name, &self.url, &["--name", &name])?);
        Ok(name)
    }

    fn strike(mut self, kills: usize, stops: usize) -> Result<()> {
        for _ in 0..kills {
            let struck = self.lose(Signal::SIGKILL)?;
            self.killed.0.push(struck.as_secs_f64());
        }
        for _ in 0..stops {
            let struck = self.lose(Signal::SIGSTOP)?;
            self.hung.0.push(struck.saturating_sub(LEASE).as_secs_f64());
        }
        self.killed.print("killed");
        self.hung.print("hung");
        self.replaced.print("replaced");
        Ok(())
    }

    /// Strikes the oldest worker and has it replaced; the time until the survivors have a step durable.
    fn lose(&mut self, signal: Signal) -> Result<Duration> {
        let victim = self.workers.remove(0);
        let from = self.coordinator.lines();
        let struck = Instant::now();
        victim.signal(signal)?;
        let durable = self.first_step_of_a_generation(from)?;
        // A stopped one is killed with its handle.
        drop(victim);
        let from = self.coordinator.lines();
        let name = self.start()?;
        let ready = format!("({name}) is ready");
        let (at, loaded) = self.coordinator.line_from(from, |line| line.contains(&ready))?;
        let trains = self.first_step_of_a_generation(at)?;
        self.replaced.take(loaded, trains);
        durable.checked_duration_since(struck).context("a step before the fault")
    }

    /// When the next generation had its first step durable, in the coordinator's words after line `from`.
    fn first_step_of_a_generation(&self, from: usize) -> Result<Instant> {
        let formed = Cell::new(0);
        // `generation 1.2: 2 in the world, 17 steps done`; older steps may become durable after it.
        let (at, _) = self.coordinator.line_from(from, |line| {
            let done =
                line.strip_prefix("generation ").and_then(|rest| rest.rsplit_once(", ")).map(|(_, done)| number(done));
            done.inspect(|done| formed.set(*done)).is_some()
        })?;
        let newer = |line: &str| line.strip_prefix("step ").is_some_and(|rest| number(rest) > formed.get());
        Ok(self.coordinator.line_from(at, newer)?.1)
    }
}

/// The number that a text begins with.
fn number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}
