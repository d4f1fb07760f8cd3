//! Coordinator and workers as they are, on machines that are simulated: a network with delay, loss and partitions, a disk that is slow
//! and loses power, processes that die, hang and are asked to leave. Only the training is a stand-in: what a step leads to is a
//! hash of all that was trained.
//!
//! Whatever happens, equal steps have equal states, no rank is in two generations at once, no committed step is lost; and once it
//! stops happening, the run completes with the state of a run in which nothing happened, and every sample trained once.
//!
//! One seed, one history: nothing here has a clock or a thread of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod dice;
mod engine;
mod machine;
mod ring;
mod run;
mod witness;
mod worker;
mod world;

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Tally, World};

fn number(name: &str, or: u64) -> u64 {
    env::var(name).map_or(or, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// `BALLAST_SIMULATED_CLUSTERS` histories from seed `BALLAST_SIMULATION_SEED` on; a failing one is told by its seed.
#[test]
fn clusters_complete_whatever_happens_on_the_way() {
    let (runs, first) = (number("BALLAST_SIMULATED_CLUSTERS", 20), number("BALLAST_SIMULATION_SEED", 1));
    println!("BALLAST_SIMULATION_SEED={first} BALLAST_SIMULATED_CLUSTERS={runs}");
    witness::listen_for_panics();
    let (next, undisturbed) = (AtomicU64::new(first), World::undisturbed());
    let play = || {
        let mut all = Tally::default();
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < first + runs) {
            match World::new(seed, &undisturbed).play() {
                Ok(tally) => all += tally,
                Err(violation) => {
                    panic!("{violation}\nBALLAST_SIMULATION_SEED={seed} BALLAST_SIMULATED_CLUSTERS=1 plays it again")
                }
            }
        }
        all
    };
    let mut all = Tally::default();
    std::thread::scope(|threads| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let playing: Vec<_> = (0..cores).map(|_| threads.spawn(play)).collect();
        playing.into_iter().for_each(|playing| all += playing.join().unwrap());
    });
    println!("{}", all.line(first, runs));
    if runs >= 20 {
        all.assert_unkind(runs);
    }
}

/// The same seed is the same history, to the millisecond and the number of generations.
#[test]
fn a_seed_plays_the_same_history_again() {
    witness::listen_for_panics();
    let undisturbed = World::undisturbed();
    let first = number("BALLAST_SIMULATION_SEED", 1);
    for seed in first..first + 5 {
        let [once, again] = [(); 2].map(|()| World::new(seed, &undisturbed).play().unwrap());
        assert_eq!(once, again, "BALLAST_SIMULATION_SEED={seed}");
    }
}
