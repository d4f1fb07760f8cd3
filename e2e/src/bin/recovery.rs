//! `make recovery`: how soon training goes on after a worker is killed, or hangs. Three workers train; one after the other is struck,
//! and replaced. Prints one JSON object a line, in seconds:
//!
//! - `step`: a step of the two that are left;
//! - `killed`: from SIGKILL to the next step that the survivors have durable, the step that was under way done again;
//! - `killed, less a step`: the same, less the median of `step`: what training was held up;
//! - `hung`: from SIGSTOP to the same, less the lease (which began with the last heartbeat, up to half a second before);
//! - `loaded`: from the start of a replacement until it has its model loaded;
//! - `rejoined`: from then until it trains, in a generation of all three;
//! - `replaced`: from the same to the first durable step that it takes part in.

use anyhow::Result;
use ballast_e2e::recovery::{LEASE, Measured, Watch};
use ballast_e2e::tiny::{TINY, play_on};
use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Args {
    /// What is trained.
    #[arg(long, value_enum, default_value_t = Model::Tiny)]
    model: Model,
    /// Workers to kill.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Workers to stop, each of which takes a lease.
    #[arg(long, default_value_t = 10)]
    stops: usize,
    /// What the moments of the strikes are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A model, named as in the lines that are printed.
#[derive(Clone, Copy, ValueEnum)]
enum Model {
    /// Two layers; a step takes some ten milliseconds.
    Tiny,
    /// SmolLM2-135M-Instruct, of scripts/fetch-demo-model.sh; a step takes seconds.
    Smollm2,
}

impl Model {
    fn name_and_run_file(self) -> (&'static str, &'static str) {
        match self {
            Self::Tiny => ("tiny", TINY),
            Self::Smollm2 => ("smollm2", "smollm2.toml"),
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (name, run_file) = args.model.name_and_run_file();
    play_on(run_file, |scene| {
        print(name, &Watch::new(scene, args.seed)?.strike(args.kills, args.stops)?);
        Ok(())
    })
}

fn print(model: &str, measured: &Measured) {
    let Measured { killed, hung, step, loaded, rejoined, replaced } = measured;
    let held_up = killed.less(step.at(0.5).unwrap_or_default());
    let hung = hung.less(LEASE.as_secs_f64());
    for (measure, sample) in [
        ("step", step),
        ("killed", killed),
        ("killed, less a step", &held_up),
        ("hung", &hung),
        ("loaded", loaded),
        ("rejoined", rejoined),
        ("replaced", replaced),
    ] {
        println!("{}", sample.line(model, measure));
    }
}
