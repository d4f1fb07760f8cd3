//! A crash after every single disk operation of random histories, and what must be there afterwards.
//!
//! A history is a few lives of a coordinator on one disk, each ended by a crash: run.json, epoch, ledger, commits, checkpoints,
//! retention, final adapter. After every operation the disk is crashed in several ways, a coordinator starts on what is left, and
//! must find what had been promised. `BALLAST_CRASH_POINTS` and `BALLAST_CRASH_SEED` (see `make crash-points`) set how many, and
//! from which seed.

use super::simulated::{Dice, Platter, SimulatedDisk};
use crate::{
    checkpoint::{
        self, AdapterConfig, AdapterShapes, Identity, LocalStore, RunRecord, SaveRequest, StateRecord, Store, admit,
        newest, publish_adapter, same_history, take_epoch, test_adapter, test_architecture, test_optimizer,
    },
    config::{Resume, RunFile},
    ledger::{Ledger, SampleSet, StepRecord},
};
use ballast_basemodel::Projection;
use ballast_proto::v1::Generation;
use std::{
    collections::BTreeMap,
    env,
    path::Path,
    sync::{Arc, Mutex},
};

/// The run directory, which the first life makes.
const ROOT: &str = "/runs/demo";
const SAMPLES: u64 = 8;
const STEPS_AN_EPOCH: u64 = 4;
/// Crashed disks for each operation.
const OUTCOMES: usize = 3;
/// Lives of one history.
const LIVES: usize = 3;
/// What a life does at most, beside starting.
const ACTIONS: usize = 7;

/// Everything a coordinator may rely on.
#[derive(Clone, Debug, Default, PartialEq)]
struct Promises {
    run_record: bool,
    epoch: u64,
    /// State hash of every committed step that counts.
    lineage: BTreeMap<u64, String>,
    /// Step of the newest checkpoint.
    checkpoint: Option<u64>,
}

/// What has been acknowledged, and what the call in progress is about to promise. A crash may leave either.
#[derive(Clone, Debug, Default)]
struct Ongoing {
    kept: Promises,
    next: Promises,
}

type Shared = Arc<Mutex<Ongoing>>;

/// Makes a promise by a call that blocks on the disk.
fn promise<T>(shared: &Shared, change: impl FnOnce(&mut Promises), call: impl FnOnce() -> T) -> T {
    change(&mut shared.lock().unwrap().next);
    let done = call();
    let mut ongoing = shared.lock().unwrap();
    ongoing.kept = ongoing.next.clone();
    done
}

fn state_sha256(step: u64) -> [u8; 32] {
    [step as u8; 32]
}

fn shapes() -> AdapterShapes {
    AdapterShapes::new(&test_architecture(), 2, &[Projection::Q])
}

fn record() -> RunRecord {
    let run = RunFile::default();
    RunRecord {
        format: RunRecord::FORMAT,
        name: "demo".into(),
        total_steps: 100,
        identity: Identity::new(&run, &["q_proj".into()], "m", "d"),
        binary_sha256: "b".into(),
        numerics: None,
        settings: serde_json::Value::Null,
    }
}

fn adapter_config() -> AdapterConfig {
    AdapterConfig {
        model_source: "m".into(),
        revision: None,
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["q_proj".into()],
    }
}

/// A coordinator that has opened its run directory.
struct Life {
    store: LocalStore,
    ledger: Ledger,
    /// Step of the checkpoint it starts from.
    start: u64,
    epoch: u64,
    found: Promises,
}

impl Life {
    /// In the order of `RunDirectory::open`.
    fn open(disk: &SimulatedDisk) -> Result<Self, String> {
        let text = |failure: ballast_proto::Failure| failure.to_string();
        let disk: Arc<SimulatedDisk> = Arc::new(disk.clone());
        let store = LocalStore::open_on(disk.clone(), Path::new(ROOT)).map_err(|e| e.to_string())?;
        store.clear_temporary().map_err(|e| e.to_string())?;
        let there = admit(&store, &record(), Resume::Auto).map_err(text)?;
        let (ledger, _) = Ledger::open_on(disk, &Path::new(ROOT).join("ledger")).map_err(|e| e.to_string())?;
        same_history(&store, ledger.epoch()).map_err(text)?;
        let accept = |state: &StateRecord| match ledger.step(state.step) {
            Some(step) if step.state_sha256 == state.state_sha256 => Ok(()),
            _ => Err("not in the ledger".to_owned()),
        };
        let (checkpoint, passed_over) = newest(&store, &shapes(), &accept).map_err(text)?;
        if let Some(why) = passed_over.first() {
            return Err(why.clone());
        }
        if let Some(found) = &checkpoint
            && found.adapter != test_adapter(&shapes(), found.state.step as f32)
        {
            return Err(format!("{} holds another adapter than was saved", found.directory));
        }
        let checkpoint = checkpoint.map(|c| c.state.step);
        let found = Promises {
            run_record: there.is_some(),
            epoch: 0,
            lineage: ledger.steps().map(|step| (step.step, step.state_sha256.clone())).collect(),
            checkpoint,
        };
        Ok(Self { store, ledger, start: checkpoint.unwrap_or(0), epoch: 0, found })
    }

    /// In the order of `RunDirectory::take`, and of a membership that finds no worker with the newest state.
    fn take(&mut self, shared: &Shared) -> Result<(), String> {
        let text = |failure: ballast_proto::Failure| failure.to_string();
        promise(shared, |p| p.run_record = true, || record().write(&self.store)).map_err(text)?;
        self.epoch = take_epoch(&self.store).map_err(text)?;
        let (epoch, start) = (self.epoch, self.start);
        promise(shared, |p| p.epoch = epoch, || ());
        let text = |error: crate::ledger::LedgerError| error.to_string();
        promise(shared, |_| (), || self.ledger.start(epoch, "recipe", SAMPLES, 0)).map_err(text)?;
        if start == self.ledger.head() {
            return Ok(());
        }
        // No worker has kept the newest state.
        let void = |p: &mut Promises| drop(p.lineage.split_off(&(start + 1)));
        promise(shared, void, || self.ledger.rewind(start)).map_err(text)
    }

    fn commit(&mut self, shared: &Shared) -> Result<(), String> {
        let step = self.ledger.head() + 1;
        let first = u32::try_from((step - 1) % STEPS_AN_EPOCH * 2).unwrap();
        let state = hex::encode(state_sha256(step));
        let record = StepRecord {
            step,
            data_epoch: (step - 1) / STEPS_AN_EPOCH,
            generation: (self.epoch, self.epoch),
            samples: SampleSet::new([first, first + 1]).unwrap(),
            loss: 0.5,
            loss_tokens: 3,
            tokens: 4,
            state_sha256: state.clone(),
            at_ms: 0,
            skipped: None,
        };
        let add = |p: &mut Promises| drop(p.lineage.insert(step, state));
        promise(shared, add, || self.ledger.commit(record)).map_err(|e| e.to_string())
    }

    /// A checkpoint of the newest step, and only the newest ones kept.
    fn save(&mut self, shared: &Shared) -> Result<(), String> {
        let step = self.ledger.head();
        let (adapter, optimizer) = (test_adapter(&shapes(), step as f32), test_optimizer(&shapes(), 0.5, step));
        let request = SaveRequest {
            step,
            generation: Generation::new(self.epoch, self.epoch),
            state_sha256: &state_sha256(step),
            adapter: &adapter,
            optimizer: &optimizer,
            config: &adapter_config(),
        };
        let saved = promise(shared, |p| p.checkpoint = Some(step), || checkpoint::save(&self.store, &request));
        let directory = saved.map_err(|failure| failure.to_string())?;
        let keep = 1 + u32::from(step.is_multiple_of(2));
        checkpoint::retain(&self.store, self.epoch, keep, &directory).map_err(|failure| failure.to_string())
    }

    fn publish(&mut self) -> Result<(), String> {
        let adapter = test_adapter(&shapes(), self.ledger.head() as f32);
        publish_adapter(&self.store, &adapter, &adapter_config()).map(drop).map_err(|e| e.to_string())
    }

    fn live(&mut self, shared: &Shared, dice: &mut Dice) -> Result<(), String> {
        self.take(shared)?;
        for _ in 0..=dice.below(ACTIONS) {
            match dice.below(10) {
                0..6 => self.commit(shared)?,
                6..9 if self.ledger.head() > 0 => self.save(shared)?,
                _ => self.publish()?,
            }
        }
        Ok(())
    }
}

/// Starts a coordinator on what a crash left: returns what it found, if that keeps every promise.
fn restart(left: &Platter, ongoing: &Ongoing) -> Result<Promises, String> {
    let disk = SimulatedDisk::new(left.clone());
    let mut life = Life::open(&disk).map_err(|e| format!("cannot start: {e}"))?;
    let (found, Ongoing { kept, next }) = (life.found.clone(), ongoing);
    if found.lineage != kept.lineage && found.lineage != next.lineage {
        return Err(format!("the ledger holds {:?}, promised were {:?}", found.lineage.keys(), kept.lineage.keys()));
    }
    if found.checkpoint != kept.checkpoint && found.checkpoint != next.checkpoint {
        return Err(format!("the checkpoint is {:?}, promised was {:?}", found.checkpoint, kept.checkpoint));
    }
    if kept.run_record && !found.run_record {
        return Err("run.json is gone".into());
    }
    let names = life.store.list("checkpoints").map_err(|e| e.to_string())?;
    for directory in names.iter().filter_map(|name| name.strip_suffix("/manifest.json")) {
        checkpoint::load(&life.store, directory, &shapes())
            .map_err(|e| format!("{directory} has a manifest, but {e}"))?;
    }
    let latest = life.store.get("latest").map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let whole = latest.starts_with("checkpoints/step-") && latest.ends_with('\n');
    if !latest.is_empty() && !whole {
        return Err(format!("latest holds {latest:?}"));
    }
    life.take(&Shared::default()).map_err(|e| format!("cannot take over: {e}"))?;
    if life.epoch <= kept.epoch {
        return Err(format!("epoch {} was given out twice", life.epoch));
    }
    life.ledger.verify(SAMPLES).map_err(|e| format!("the ledger proves nothing: {e}"))?;
    Ok(Promises { epoch: kept.epoch, ..found })
}

/// What was seen.
#[derive(Default)]
struct Tally {
    operations: usize,
    points: usize,
    violations: Vec<String>,
    /// One of the crashed disks of this life, each as likely as any other, and what is promised there.
    chosen: Option<(Platter, Promises)>,
    candidates: usize,
}

/// Lives from one seed.
fn history(seed: u64, tally: &Arc<Mutex<Tally>>) {
    let mut dice = Dice::new(seed);
    let (mut platter, mut promises) = (Platter::default(), Promises::default());
    for number in 0..LIVES {
        let disk = SimulatedDisk::new(platter);
        let shared = Arc::new(Mutex::new(Ongoing { kept: promises.clone(), next: promises.clone() }));
        let (watched, told, mut fate) = (Arc::clone(&shared), Arc::clone(tally), Dice::new(dice.seed()));
        {
            let mut tally = tally.lock().unwrap();
            (tally.chosen, tally.candidates) = (None, 0);
        }
        disk.observe(Box::new(move |platter| {
            let (ongoing, mut tally) = (watched.lock().unwrap().clone(), told.lock().unwrap());
            tally.operations += 1;
            for _ in 0..OUTCOMES {
                let left = platter.crash(&mut fate);
                tally.points += 1;
                match restart(&left, &ongoing) {
                    Ok(found) => {
                        tally.candidates += 1;
                        if fate.below(tally.candidates) == 0 {
                            tally.chosen = Some((left, found));
                        }
                    }
                    Err(what) => {
                        let operation = tally.operations;
                        tally.violations.push(format!("seed {seed}, life {number}, operation {operation}: {what}"));
                    }
                }
            }
        }));
        let lived = Life::open(&disk).and_then(|mut life| life.live(&shared, &mut dice));
        let mut tally = tally.lock().unwrap();
        if let Err(what) = lived {
            tally.violations.push(format!("seed {seed}, life {number}: {what}"));
            return;
        }
        match tally.chosen.take() {
            Some(chosen) => (platter, promises) = chosen,
            None => return,
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}

#[test]
fn every_promise_survives_a_crash_after_any_operation() {
    let (wanted, seed) = (number("BALLAST_CRASH_POINTS", 5000), number("BALLAST_CRASH_SEED", 1));
    let tally = Arc::new(Mutex::new(Tally::default()));
    for seed in seed.. {
        history(seed, &tally);
        if tally.lock().unwrap().points as u64 >= wanted {
            break;
        }
    }
    let tally = tally.lock().unwrap();
    let Tally { operations, points, violations, .. } = &*tally;
    println!(
        "{}",
        serde_json::json!({"points": points, "operations": operations, "violations": violations.len(), "seed": seed})
    );
    assert!(
        violations.is_empty(),
        "{} of {points}, such as\n{}",
        violations.len(),
        violations[..violations.len().min(5)].join("\n")
    );
}
