//! What goes wrong on the network between a coordinator and two workers. Whatever it is, the run completes, its adapter is that
//! of a run of one worker that nothing disturbed, and its ledger proves that every sample was trained once.
//!
//! Each case begins at a known point of a known step: a process stops itself there, the network changes, the process goes on.

use anyhow::{Result, ensure};
use ballast_e2e::hosts::{COORDINATOR, Hosts, NetworkRun, Outcome, Tally, Weather, Wire};
use ballast_e2e::tiny::{Scene, play};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The workers' hosts.
const A: u8 = 2;
const B: u8 = 3;
/// Where a worker has computed its part of a step, and the other waits for it.
const IN_A_STEP: &str = "stop@reduce:8";
/// Where all have reported a step, and it is not recorded yet.
const IN_A_COMMIT: &str = "stop@commit:8";
/// Far above the longest pause, and below `cluster.progress_ms`.
const PATIENCE: Duration = Duration::from_secs(45);
const STEPS: &str = "train.max_steps=60";
const MODEL: [&str; 2] = ["lora.dropout=0.1", "checkpoint.every=15"];
/// Leases that end soon, in milliseconds.
const SHORT: [&str; 3] = ["cluster.heartbeat_ms=100", "cluster.lease_ms=1000", "cluster.prefetch_steps=1"];
/// Who is so far from the coordinator waits for every shard: a worker that trains alone is not done before the other is back.
const FAR: Weather = Weather { loss: 0.0, duplicates: 0.0, delay: Duration::from_millis(60), jitter: Duration::ZERO };

/// The adapter of an undisturbed run of one worker.
fn undisturbed(scene: &Scene) -> Result<String> {
    static KNOWN: Mutex<Option<String>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sha256) = &*known {
        return Ok(sha256.clone());
    }
    let sha256 = scene.train("undisturbed", &["cluster.workers=1", MODEL[0], MODEL[1], STEPS])?;
    Ok(known.insert(sha256).clone())
}

/// A run with short leases over a wire, that `strike` does something to while the process on `host` is stopped by `fault`. Then
/// `watch` follows it.
fn struck(
    what: &str,
    (host, fault): (u8, &str),
    strike: impl FnOnce(&Wire),
    watch: impl FnOnce(&NetworkRun, &Wire) -> Result<()>,
) -> Result<Option<(Outcome, Tally)>> {
    let mut came_to = None;
    play(|scene| {
        let Some((hosts, wire)) = Hosts::on_wire(3)? else { return Ok(()) };
        let expected = undisturbed(scene)?;
        let settings: Vec<&str> = MODEL.into_iter().chain(SHORT).chain([STEPS]).collect();
        let run = NetworkRun::start(scene, &hosts, "struck", 2, &settings, &[(host, fault)])?;
        run.when_stopped(host, || strike(&wire))?;
        watch(&run, &wire)?;
        came_to = Some((run.finish(what, &expected)?, wire.tally()?));
        Ok(())
    })?;
    Ok(came_to)
}

/// The coordinator loses a worker, the other one trains on alone, and, when the wire is mended, the two together.
fn lost_and_found(run: &NetworkRun, wire: &Wire) -> Result<()> {
    wire.set_weather(COORDINATOR, A, FAR);
    let lost = run.line(COORDINATOR, 0, &["was silent"])?;
    let alone = run.line(COORDINATOR, lost, &["generation", ": 1 in the world"])?;
    run.line(COORDINATOR, alone, &["step "])?;
    wire.mend();
    run.line(COORDINATOR, alone, &["generation", ": 2 in the world"])?;
    wire.set_weather(COORDINATOR, A, Weather::default());
    Ok(())
}

/// The coordinator loses all workers.
fn all_lost(run: &NetworkRun) -> Result<()> {
    let lost = run.line(COORDINATOR, 0, &["was silent"])?;
    run.line(COORDINATOR, lost, &["waiting: 0 of at least 1 workers are ready"])?;
    Ok(())
}

/// Nothing that was recorded is done again, and nobody waits for longer than he has to.
fn costs_little(came_to: Option<(Outcome, Tally)>) -> Result<()> {
    let Some((outcome, tally)) = came_to else { return Ok(()) };
    ensure!(outcome.redone == 0 && tally.cut > 0 && outcome.pause < PATIENCE, "{outcome:?}, {tally:?}");
    Ok(())
}

#[test]
fn a_coordinator_that_nobody_reaches_finds_its_workers_again() -> Result<()> {
    let cut = |wire: &Wire| {
        wire.part(COORDINATOR, A);
        wire.part(COORDINATOR, B);
    };
    let watch = |run: &NetworkRun, wire: &Wire| {
        all_lost(run)?;
        for worker in [A, B] {
            run.line(worker, 0, &["session lost; joining again"])?;
        }
        wire.mend();
        Ok(())
    };
    costs_little(struck("a coordinator apart from all", (COORDINATOR, IN_A_COMMIT), cut, watch)?)
}

#[test]
fn a_worker_that_nobody_reaches_is_gone_and_comes_back() -> Result<()> {
    let cut = |wire: &Wire| {
        wire.part(B, COORDINATOR);
        wire.part(B, A);
    };
    costs_little(struck("a worker apart from all", (B, IN_A_STEP), cut, lost_and_found)?)
}

#[test]
fn a_worker_whose_words_are_lost_is_gone_and_comes_back() -> Result<()> {
    let cut = |wire: &Wire| wire.cut(B, COORDINATOR);
    costs_little(struck("worker to coordinator lost", (B, IN_A_STEP), cut, lost_and_found)?)
}

#[test]
fn a_worker_that_hears_nothing_is_gone_and_comes_back() -> Result<()> {
    let cut = |wire: &Wire| wire.cut(COORDINATOR, B);
    costs_little(struck("coordinator to worker lost", (B, IN_A_STEP), cut, lost_and_found)?)
}

/// The generation is given up long before `cluster.progress_ms`, and formed anew as soon as the ring can be closed.
fn ring_broken_and_closed(run: &NetworkRun, wire: &Wire) -> Result<()> {
    let broken = run.line(COORDINATOR, 0, &["warning: ", "cannot go on in generation 1.1"])?;
    run.line(COORDINATOR, broken, &["generation 1.2: 2 in the world"])?;
    wire.mend();
    Ok(())
}

#[test]
fn workers_apart_from_each_other_go_on_when_they_meet() -> Result<()> {
    let cut = |wire: &Wire| wire.part(A, B);
    costs_little(struck("workers apart from each other", (B, IN_A_STEP), cut, ring_broken_and_closed)?)
}

#[test]
fn a_worker_whose_neighbour_hears_nothing_goes_on_when_it_does() -> Result<()> {
    let cut = |wire: &Wire| wire.cut(A, B);
    costs_little(struck("worker to worker lost", (B, IN_A_STEP), cut, ring_broken_and_closed)?)
}

#[test]
fn a_flap_shorter_than_the_lease_is_nothing() -> Result<()> {
    play(|scene| {
        let Some((hosts, wire)) = Hosts::on_wire(3)? else { return Ok(()) };
        let expected = undisturbed(scene)?;
        let run = NetworkRun::start(scene, &hosts, "flap", 2, &[MODEL[0], MODEL[1], STEPS], &[(B, IN_A_STEP)])?;
        run.when_stopped(B, || {
            wire.part(B, COORDINATOR);
            wire.part(B, A);
        })?;
        std::thread::sleep(Duration::from_secs(1));
        wire.mend();
        let (outcome, tally) = (run.finish("a flap of a second", &expected)?, wire.tally()?);
        ensure!(outcome.generations == 1 && outcome.redone == 0 && tally.cut > 0, "{outcome:?}, {tally:?}");
        Ok(())
    })
}

#[test]
fn a_pulled_cable_is_a_coordinator_less_until_it_is_plugged_in() -> Result<()> {
    play(|scene| {
        let Some(hosts) = Hosts::on_switch(3)? else { return Ok(()) };
        let expected = undisturbed(scene)?;
        let settings: Vec<&str> = MODEL.into_iter().chain(SHORT).chain([STEPS]).collect();
        let run = NetworkRun::start(scene, &hosts, "cable", 2, &settings, &[(COORDINATOR, IN_A_COMMIT)])?;
        let mut pulled = Ok(());
        run.when_stopped(COORDINATOR, || pulled = hosts.plug(COORDINATOR, false))?;
        pulled?;
        all_lost(&run)?;
        hosts.plug(COORDINATOR, true)?;
        let outcome = run.finish("a pulled cable", &expected)?;
        ensure!(outcome.generations == 2 && outcome.redone == 0, "{outcome:?}");
        Ok(())
    })
}

#[test]
fn a_bad_line_is_only_slow() -> Result<()> {
    play(|scene| {
        let Some((hosts, wire)) = Hosts::on_wire(3)? else { return Ok(()) };
        let settings = [MODEL[0], "train.max_steps=25"];
        let expected = scene.train("undisturbed", &[settings[0], settings[1], "cluster.workers=1"])?;
        let ms = Duration::from_millis;
        for (one, other) in [(COORDINATOR, A), (COORDINATOR, B), (A, B)] {
            wire.set_weather(one, other, Weather { loss: 0.05, duplicates: 0.02, delay: ms(15), jitter: ms(10) });
        }
        let run = NetworkRun::start(scene, &hosts, "bad-line", 2, &settings, &[])?;
        let (_, tally) = (run.finish("5 % loss, 20 ms, out of order, twice", &expected)?, wire.tally()?);
        ensure!(tally.lost > 50 && tally.duplicated > 20 && tally.overtook > 100, "too little happened: {tally:?}");
        Ok(())
    })
}
