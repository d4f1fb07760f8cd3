//! A run whose processes are killed, stopped and asked to stop in the midst of their work, until enough has happened; what it led to.
//!
//! Every process is started with a fault of its own, drawn from the seed: a signal that it sends itself at a point of its work
//! (`ballast_proto::fault`). Now and then all workers are killed at once. Whoever is gone is replaced.

use crate::cluster::free_port;
use crate::process::{Process, send};
use crate::tiny::Scene;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Workers of the run.
const WORKERS: usize = 3;
/// Pause between looks.
const LOOK: Duration = Duration::from_millis(5);
/// Without a step for so long, the run is stuck.
const PATIENCE: Duration = Duration::from_secs(90);
/// Settings of every run: short leases, so that stops matter.
const CLUSTER: [&str; 6] = [
    "cluster.workers=3",
    "cluster.heartbeat_ms=100",
    "cluster.lease_ms=1000",
    "cluster.gather_ms=400",
    "checkpoint.every=7",
    "lora.dropout=0.1",
];

/// What was struck how often.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By who was struck and how, and where in its work.
    pub faults: BTreeMap<(String, String), u64>,
    /// Generations that were met.
    pub generations: BTreeSet<String>,
    /// Workers that joined in place of others.
    pub joins: u64,
}

impl Tally {
    /// All faults.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.faults.values().sum()
    }

    fn count(&mut self, what: &str, point: &str) {
        *self.faults.entry((what.to_owned(), point.to_owned())).or_default() += 1;
    }

    /// Adds what happened in another run.
    pub fn add(&mut self, other: Self) {
        for (fault, times) in other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
        self.generations.extend(other.generations);
        self.joins += other.joins;
    }
}

/// Seeded choices.
struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Trains without a fault, by one worker; the adapter's SHA-256.
///
/// # Errors
/// When training fails.
pub fn undisturbed(scene: &Scene, dir: &str, workers: usize, steps: u64) -> Result<String> {
    let (workers, steps) = (format!("cluster.workers={workers}"), format!("train.max_steps={steps}"));
    scene.train(dir, &[CLUSTER[4], CLUSTER[5], &workers, &steps])
}

/// Trains with faults to the end; what happened. The adapter and the ledger are in the run directory.
///
/// # Errors
/// When the run fails or gets stuck, or a process does.
pub fn disturbed(scene: &Scene, dir: &str, seed: u64, steps: u64) -> Result<Tally> {
    Storm::new(scene, dir, seed, steps)?.rage()
}

/// A run and what befalls it.
struct Storm<'a> {
    scene: &'a Scene,
    dir: &'a str,
    steps: u64,
    dice: Dice,
    port: u16,
    coordinator: Process,
    /// Lines of its output that were looked at.
    read: usize,
    workers: Vec<Worker>,
    started: u64,
    step: u64,
    moved: Instant,
    generation: String,
    /// The step at which all workers are killed.
    killing_all: u64,
    tally: Tally,
}

struct Worker {
    process: Process,
    read: usize,
    /// When it goes on after it was stopped.
    wakes: Option<Instant>,
}

impl<'a> Storm<'a> {
    fn new(scene: &'a Scene, dir: &'a str, seed: u64, steps: u64) -> Result<Self> {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        let port = free_port()?;
        let coordinator = coordinator(scene, dir, port, steps, &mut dice, 0)?;
        let killing_all = 20 + dice.below(40);
        Ok(Self {
            scene,
            dir,
            steps,
            dice,
            port,
            coordinator,
            read: 0,
            workers: Vec::new(),
            started: 0,
            step: 0,
            moved: Instant::now(),
            generation: String::new(),
            killing_all,
            tally: Tally::default(),
        })
    }

    fn rage(mut self) -> Result<Tally> {
        loop {
            if self.watch_coordinator()? {
                break;
            }
            self.watch_workers()?;
            while self.workers.len() < WORKERS {
                self.start_worker()?;
            }
            if self.step >= self.killing_all {
                self.kill_all_workers()?;
            }
            ensure!(
                self.moved.elapsed() < PATIENCE,
                "no step for {PATIENCE:?} after step {} in generation {}",
                self.step,
                self.generation
            );
            std::thread::sleep(LOOK);
        }
        for worker in &mut self.workers {
            // One that was stopped, or that the end met while it was away, leaves by itself or is killed with this process.
            let _ = worker.process.signal(Signal::SIGCONT);
        }
        Ok(self.tally)
    }

    /// Hears what the coordinator says, and starts it again when it was struck; whether the run is complete.
    fn watch_coordinator(&mut self) -> Result<bool> {
        let ended = self.coordinator.ended()?;
        let lines = self.coordinator.output().from(self.read);
        self.read += lines.len();
        for line in &lines {
            if let Some((step, _)) = line.strip_prefix("step ").and_then(|rest| rest.split_once('/')) {
                self.step = step.parse()?;
                self.moved = Instant::now();
            } else if let Some((generation, _)) = line.strip_prefix("generation ").and_then(|rest| rest.split_once(':'))
            {
                self.generation = generation.to_owned();
                self.tally.generations.insert(format!("{} {generation}", self.dir));
            } else if let Some(point) = struck(line) {
                self.tally.count("coordinator killed", point);
            }
        }
        match ended {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(killed) if killed == 128 + Signal::SIGKILL as i32 => {
                self.coordinator = coordinator(self.scene, self.dir, self.port, self.steps, &mut self.dice, self.step)?;
                self.read = 0;
                self.moved = Instant::now();
                Ok(false)
            }
            Some(code) => bail!("the coordinator ended with {code}:\n{}", self.coordinator.printed()),
        }
    }

    fn watch_workers(&mut self) -> Result<()> {
        for mut worker in std::mem::take(&mut self.workers) {
            let ended = worker.process.ended()?;
            let lines = worker.process.output().from(worker.read);
            worker.read += lines.len();
            for line in &lines {
                if let Some(point) = struck(line) {
                    let how = if line.contains("SIGKILL") {
                        "worker killed"
                    } else if line.contains("SIGSTOP") {
                        "worker stopped"
                    } else {
                        "worker drained"
                    };
                    self.tally.count(how, point);
                }
            }
            match ended {
                None => {
                    if worker.process.is_stopped()? {
                        // Some go on before their lease ends, some after.
                        let pause = Duration::from_millis(100 + self.dice.below(2500));
                        let wakes = *worker.wakes.get_or_insert_with(|| Instant::now() + pause);
                        if Instant::now() >= wakes {
                            worker.process.signal(Signal::SIGCONT)?;
                            worker.wakes = None;
                        }
                    }
                    self.workers.push(worker);
                }
                // Done, drained, refused while its predecessor still had its place, or killed.
                Some(0 | 75) => {}
                Some(killed) if killed == 128 + Signal::SIGKILL as i32 => {}
                Some(code) => bail!("a worker ended with {code}:\n{}", worker.process.printed()),
            }
        }
        Ok(())
    }

    fn start_worker(&mut self) -> Result<()> {
        self.started += 1;
        self.tally.joins += 1;
        let point = self.dice.of(&["compute", "reduce", "apply", "report", "upload"]);
        let step = self.step + 1 + self.dice.below(12);
        let fault = match self.dice.below(10) {
            0..=4 => format!("kill@{point}:{step}"),
            5 | 6 => format!("stop@{point}:{step}"),
            7 | 8 => format!("term@{point}:{step}"),
            _ => String::new(),
        };
        let mut command = self.scene.ballast("worker");
        command.env("BALLAST_FAULT", fault).args(["--coordinator", &format!("http://127.0.0.1:{}", self.port)]);
        let process = self.scene.start(&format!("{} worker {}", self.dir, self.started), &mut command)?;
        self.workers.push(Worker { process, read: 0, wakes: None });
        Ok(())
    }

    fn kill_all_workers(&mut self) -> Result<()> {
        for worker in &self.workers {
            // It may have ended by itself just now.
            let _ = send(worker.process.id(), Signal::SIGKILL);
        }
        self.tally.count("all workers killed", "anywhere");
        self.killing_all = self.step + 30 + self.dice.below(60);
        Ok(())
    }
}

/// Starts the coordinator, which will be killed some time after `step`.
fn coordinator(scene: &Scene, dir: &str, port: u16, steps: u64, dice: &mut Dice, step: u64) -> Result<Process> {
    let (bind, steps) = (format!("cluster.bind=127.0.0.1:{port}"), format!("train.max_steps={steps}"));
    let settings: Vec<&str> = CLUSTER.into_iter().chain([&*bind, &*steps]).collect();
    let point = dice.of(&["commit", "committed", "checkpoint", "manifest"]);
    let mut command = scene.run("coordinator", dir, &settings);
    command.env("BALLAST_FAULT", format!("kill@{point}:{}", step + 15 + dice.below(40)));
    scene.start(&format!("{dir} coordinator"), &mut command).context("the coordinator")
}

/// The point at which a process says that it is struck.
fn struck(line: &str) -> Option<&str> {
    let (_, place) = line.strip_prefix("fault: ")?.split_once(" at ")?;
    place.split_once(',').map(|(point, _)| point)
}
