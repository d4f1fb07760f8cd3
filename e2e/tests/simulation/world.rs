//! One history: machines, what happens to them, and what must be true of it all.

use crate::dice::SharedDice;
use crate::machine::{Ended, Machine};
use crate::run::{self, SAMPLES, STEPS};
use crate::witness::{Chain, Witness};
use crate::worker::Worker;
use ballast_coordinator::ledger::{self, Record};
use ballast_coordinator::simulation;
use ballast_proto::{ErrorCode, Failure, exit};
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;
use std::time::Duration;
use turmoil::{Builder, Sim};

const COORDINATOR: &str = "coordinator";
/// Machines that work.
const WORKERS: u32 = 3;
/// The world goes on by so much at a time.
const TICK: Duration = Duration::from_millis(5);
/// Slowest message, in milliseconds.
const LATENCY: u64 = 10;
/// Things that go wrong in a history.
const FAULTS: usize = 12;
/// Longest time from one to the next, in milliseconds.
const BETWEEN: usize = 1200;
/// Time in which a run must complete when nothing goes wrong any more.
const CALM: Duration = Duration::from_secs(300);

/// What a history had in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    milliseconds: u64,
    steps: u64,
    generations: u64,
    rewinds: u64,
    kills: u64,
    hangs: u64,
    drains: u64,
    coordinator_kills: u64,
    power_cuts: u64,
    partitions: u64,
    one_way: u64,
    held: u64,
    full_disks: u64,
    retries: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.milliseconds += other.milliseconds;
        self.steps += other.steps;
        self.generations += other.generations;
        self.rewinds += other.rewinds;
        self.kills += other.kills;
        self.hangs += other.hangs;
        self.drains += other.drains;
        self.coordinator_kills += other.coordinator_kills;
        self.power_cuts += other.power_cuts;
        self.partitions += other.partitions;
        self.one_way += other.one_way;
        self.held += other.held;
        self.full_disks += other.full_disks;
        self.retries += other.retries;
    }
}

impl Tally {
    /// All of it as JSON.
    pub(crate) fn line(&self, first: u64, runs: u64) -> String {
        serde_json::json!({
            "measure": "simulated clusters", "seed": first, "runs": runs, "violations": 0,
            "simulated_seconds": self.milliseconds / 1000, "steps_of_workers": self.steps,
            "generations": self.generations, "rewinds": self.rewinds, "kills": self.kills, "hangs": self.hangs,
            "drains": self.drains, "coordinator_kills": self.coordinator_kills, "power_cuts": self.power_cuts,
            "partitions": self.partitions, "one_way": self.one_way, "held": self.held,
            "full_disks": self.full_disks, "retries": self.retries,
        })
        .to_string()
    }

    /// Otherwise this world is too kind.
    pub(crate) fn assert_unkind(&self, runs: u64) {
        assert!(self.generations > 3 * runs && self.rewinds > 0, "{self:?}");
        assert!(self.kills > runs && self.hangs > 0 && self.drains > 0 && self.held > 0, "{self:?}");
        assert!(self.coordinator_kills > 0 && self.power_cuts > 0, "{self:?}");
        assert!(self.partitions > 0 && self.one_way > 0, "{self:?}");
    }
}

/// What is to happen later.
#[derive(Clone, Debug)]
enum Later {
    StartCoordinator,
    StartWorker(usize),
    Repair(String, String),
    Release(String, String),
    GoOn(usize),
    MakeRoom,
}

pub(crate) struct World<'a> {
    sim: Sim<'a>,
    dice: SharedDice,
    machine: Machine,
    workers: Vec<Worker>,
    witness: Witness,
    /// By the millisecond and in order.
    later: BTreeMap<(u64, u64), Later>,
    planned: u64,
    tally: Tally,
}

impl World<'_> {
    /// The states of a run of one worker to which nothing happens.
    pub(crate) fn undisturbed() -> Chain {
        let mut world = Self::with(0, 1, Witness::default());
        world.calm().unwrap();
        world.witness.chain()
    }

    /// A world that must lead to the same states.
    pub(crate) fn new(seed: u64, chain: &Chain) -> Self {
        Self::with(seed, WORKERS, Witness::of(chain))
    }

    fn with(seed: u64, workers: u32, witness: Witness) -> Self {
        let dice = SharedDice::new(seed);
        fastrand::seed(dice.seed());
        let mut sim = Builder::new()
            .rng_seed(dice.seed())
            .tick_duration(TICK)
            .max_message_latency(Duration::from_millis(LATENCY))
            .simulation_duration(Duration::MAX)
            .enable_random_order()
            .build();
        let machine = Machine::new(workers, SharedDice::new(dice.seed()));
        let process = machine.clone();
        sim.host(COORDINATOR, move || process.clone().run());
        let workers: Vec<Worker> = (1..=workers)
            .map(|number| Worker::new(format!("worker-{number}"), SharedDice::new(dice.seed()), witness.clone()))
            .collect();
        for worker in &workers {
            let process = worker.clone();
            sim.host(worker.name.as_str(), move || process.clone().run());
        }
        Self { sim, dice, machine, workers, witness, later: BTreeMap::new(), planned: 0, tally: Tally::default() }
    }

    /// The whole history.
    pub(crate) fn play(mut self) -> Result<Tally, String> {
        for _ in 0..FAULTS {
            if self.go_on(self.dice.pause(BETWEEN))? {
                break;
            }
            self.fault()?;
        }
        self.calm()?;
        Ok(self.tally)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets `what` happen within `milliseconds`.
    fn plan(&mut self, milliseconds: usize, what: Later) {
        self.planned += 1;
        let at = self.now() + self.dice.below(milliseconds) as u64;
        self.later.insert((at, self.planned), what);
    }

    /// Lets time pass; whether the run is complete.
    fn go_on(&mut self, time: Duration) -> Result<bool, String> {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.sim.step().map_err(|e| format!("a machine failed: {e}"))?;
            if let Some(violation) = self.witness.violation() {
                return Err(violation);
            }
            while let Some(first) =
                self.later.first_entry().filter(|first| first.key().0 <= self.sim.elapsed().as_millis() as u64)
            {
                let what = first.remove();
                self.happen(what);
            }
            self.look_after_workers()?;
            if self.look_after_coordinator()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn happen(&mut self, what: Later) {
        match what {
            Later::StartCoordinator => self.sim.bounce(COORDINATOR),
            Later::StartWorker(who) => self.sim.bounce(self.workers[who].name.as_str()),
            Later::Repair(from, to) => {
                self.sim.repair_oneway(from.as_str(), to.as_str());
            }
            Later::Release(from, to) => self.sim.release(from.as_str(), to.as_str()),
            Later::GoOn(who) => self.workers[who].hang(false),
            Later::MakeRoom => self.machine.disk().make_room(),
        }
    }

    /// Starts processes again that have ended by themselves, unless they had no reason to.
    fn look_after_workers(&mut self) -> Result<(), String> {
        for who in 0..self.workers.len() {
            let Some(ended) = self.workers[who].ended() else { continue };
            let name = self.workers[who].name.clone();
            let may_end = match &ended {
                // As its coordinator, which may have had no room on its disk.
                Ok(code) => matches!(*code, exit::DONE | exit::RETRY) || self.tally.full_disks > 0,
                Err(failure) => failure.code.exit_code() == exit::RETRY || failure.code == ErrorCode::RunFull,
            };
            if !may_end {
                return Err(format!("{name} ended with {ended:?}"));
            }
            self.kill_worker(who);
        }
        Ok(())
    }

    fn kill_worker(&mut self, who: usize) {
        let name = self.workers[who].name.clone();
        if self.sim.is_host_running(name.as_str()) {
            self.sim.crash(name.as_str());
            self.workers[who].lose_process();
            self.plan(1500, Later::StartWorker(who));
        }
    }

    /// Whether the run is complete; a coordinator that gave up is started again.
    fn look_after_coordinator(&mut self) -> Result<bool, String> {
        match self.machine.ended() {
            None => Ok(false),
            Some(Ended::Refused(failure)) if failure.code == ErrorCode::StorageFailed => {
                self.tally.retries += 1;
                self.kill_coordinator(true)?;
                Ok(false)
            }
            Some(Ended::Refused(failure)) => Err(format!("the coordinator did not start: {failure}")),
            Some(Ended::Over(outcome)) if outcome.exit_code == exit::DONE => {
                if outcome.adapter.is_none() {
                    return Err("the run is complete without an adapter".into());
                }
                Ok(true)
            }
            Some(Ended::Over(outcome)) if may_end(outcome.failure.as_ref(), outcome.exit_code) => {
                self.tally.retries += 1;
                self.kill_coordinator(true)?;
                Ok(false)
            }
            Some(Ended::Over(outcome)) => Err(format!("the coordinator ended with {outcome:?}")),
        }
    }

    /// No step that was called committed may be lost with the process, or the power.
    fn kill_coordinator(&mut self, power: bool) -> Result<(), String> {
        if !self.sim.is_host_running(COORDINATOR) {
            return Ok(());
        }
        let committed = self.machine.committed();
        self.sim.crash(COORDINATOR);
        self.machine.lose_process(power);
        let head = self.records()?.iter().fold(0, |head, record| match record {
            Record::Step(step) => step.step,
            Record::Rewind { to } => *to,
            Record::Start { .. } | Record::Slow { .. } | Record::End { .. } => head,
        });
        if head < committed {
            return Err(format!("step {committed} was committed, and the ledger ends with step {head}"));
        }
        self.plan(2000, Later::StartCoordinator);
        Ok(())
    }

    fn records(&self) -> Result<Vec<Record>, String> {
        simulation::ledger(&self.machine.disk(), Path::new(run::DIRECTORY))
    }

    /// Something goes wrong.
    fn fault(&mut self) -> Result<(), String> {
        let who = self.dice.below(self.workers.len());
        let name = self.workers[who].name.clone();
        match self.dice.below(13) {
            0 | 1 => {
                self.tally.kills += 1;
                self.kill_worker(who);
            }
            2 => {
                self.tally.kills += self.workers.len() as u64;
                (0..self.workers.len()).for_each(|who| self.kill_worker(who));
            }
            3 => {
                self.tally.coordinator_kills += 1;
                self.kill_coordinator(true)?;
            }
            4 => {
                self.tally.power_cuts += 1;
                self.kill_coordinator(false)?;
            }
            5 => {
                self.tally.hangs += 1;
                self.workers[who].hang(true);
                self.plan(5000, Later::GoOn(who));
            }
            6 => {
                self.tally.drains += 1;
                self.workers[who].terminate();
            }
            7 => self.hold(name, COORDINATOR.to_owned()),
            8 => {
                let other = self.other(who);
                self.hold(name, other);
            }
            9 => self.part(name, COORDINATOR.to_owned()),
            10 => {
                let other = self.other(who);
                self.part(name, other);
            }
            11 => {
                self.tally.full_disks += 1;
                self.machine.disk().fill_up_after(self.dice.below(20));
                self.plan(3000, Later::MakeRoom);
            }
            _ => {
                // The coordinator alone.
                let names: Vec<String> = self.workers.iter().map(|worker| worker.name.clone()).collect();
                names.into_iter().for_each(|name| self.part(name, COORDINATOR.to_owned()));
            }
        }
        Ok(())
    }

    fn other(&self, who: usize) -> String {
        let next = (who + 1 + self.dice.below(self.workers.len() - 1)) % self.workers.len();
        self.workers[next].name.clone()
    }

    /// Messages wait on their way.
    fn hold(&mut self, a: String, b: String) {
        self.tally.held += 1;
        self.sim.hold(a.as_str(), b.as_str());
        self.plan(2500, Later::Release(a, b));
    }

    /// Messages are lost, in both directions or in one.
    fn part(&mut self, a: String, b: String) {
        let (a, b) = if self.dice.one_in(2) { (a, b) } else { (b, a) };
        if self.dice.one_in(2) {
            self.tally.one_way += 1;
            self.sim.partition_oneway(a.as_str(), b.as_str());
        } else {
            self.tally.partitions += 1;
            self.sim.partition(a.as_str(), b.as_str());
            self.plan(4000, Later::Repair(b.clone(), a.clone()));
        }
        self.plan(4000, Later::Repair(a, b));
    }

    /// Nothing goes wrong any more: the run completes, and is what it should be.
    fn calm(&mut self) -> Result<(), String> {
        if !self.go_on(CALM)? {
            let progress = self.machine.committed();
            return Err(format!("the run is stuck after step {progress}, {} ms", self.now()));
        }
        let records = self.records()?;
        let verified = ledger::verify(&records, SAMPLES)?;
        let whole = (verified.head, verified.complete_epochs, verified.in_progress);
        if whole != (STEPS, STEPS * run::GLOBAL_BATCH / SAMPLES, 0) {
            return Err(format!("the run is complete with {verified:?}"));
        }
        let generations = records.iter().filter_map(|record| match record {
            Record::Step(step) => Some(step.generation),
            _ => None,
        });
        self.tally.generations = generations.collect::<std::collections::BTreeSet<_>>().len() as u64;
        self.tally.rewinds = records.iter().filter(|record| matches!(record, Record::Rewind { .. })).count() as u64;
        self.tally.steps = self.witness.steps();
        self.tally.milliseconds = self.now();
        Ok(())
    }
}

/// What may end a coordinator that goes on when it is started again: a disk without room, or faults that come faster than steps.
fn may_end(failure: Option<&Failure>, code: u8) -> bool {
    let passing = |failure: &Failure| {
        failure.code == ErrorCode::StorageFailed || failure.message.contains("generations in succession failed")
    };
    code == exit::RETRY || failure.is_some_and(passing)
}
