//! `make scale`: what many workers take of the coordinator, and how long they wait for it. Prints one JSON object a line:
//!
//! - `scale`: the figures of so many workers ([`ballast_e2e::scale::Figures`] says what each is);
//! - `growth`: how each figure of the larger of two loads is to that of the smaller, over the ratio of their workers. 1 is linear, less
//!   is better than that.
//!
//! The workers are simulated in this process: where it shares its cores with the coordinator, as it does on a small machine, all times
//! are those of both.

use anyhow::Result;
use ballast_e2e::scale::{Figures, Load, measure, room_for_connections};
use ballast_e2e::tiny::play;
use clap::Parser;
use serde_json::json;
use std::time::Duration;

/// What is measured when nothing is asked for; growth is that from each of these to the next.
const SERIES: [usize; 3] = [250, 1000, 4000];
/// A usual run with fast steps: workers, and steps a second.
const FAST: (usize, f64) = (64, 10.0);
/// Before each state is looked at.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Args {
    /// Simulated workers; a series and its growth without it.
    #[arg(long)]
    workers: Option<usize>,
    /// Steps a second.
    #[arg(long, default_value_t = 1.0)]
    pace: f64,
    /// Seconds for which each state is looked at.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let load = |workers, pace| Load { workers, pace, warm_up: WARM_UP, window: Duration::from_secs(args.seconds) };
    if let Some(workers) = args.workers {
        take(load(workers, args.pace))?;
        return Ok(());
    }
    let (workers, pace) = FAST;
    take(load(workers, pace))?;
    let mut smaller: Option<Figures> = None;
    for workers in SERIES {
        let larger = take(load(workers, args.pace))?;
        if let Some(smaller) = smaller {
            println!("{}", growth(&smaller, &larger));
        }
        smaller = Some(larger);
    }
    Ok(())
}

/// Measures a load and prints its line.
fn take(load: Load) -> Result<Figures> {
    room_for_connections(load.workers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = play(|scene| runtime.block_on(measure(scene, "run", load)))?;
    let build = if cfg!(debug_assertions) { "development" } else { "release" };
    let mut line = json!({"measure": "scale", "build": build});
    if let (Some(line), serde_json::Value::Object(figures)) = (line.as_object_mut(), serde_json::to_value(&figures)?) {
        line.extend(figures);
    }
    println!("{line}");
    Ok(figures)
}

/// What grows, by what is no worse than linear at 1.
fn growth(smaller: &Figures, larger: &Figures) -> serde_json::Value {
    let by = larger.workers as f64 / smaller.workers as f64;
    let of = |figure: fn(&Figures) -> f64| figure(larger) / figure(smaller) / by;
    json!({
        "measure": "growth",
        "from": smaller.workers,
        "to": larger.workers,
        "join_s": of(|f| f.join_s),
        "form_s": of(|f| f.form_s),
        "reform_s": of(|f| f.reform_s),
        "join_cpu_s": of(|f| f.join_cpu_s),
        "form_cpu_s": of(|f| f.form_cpu_s),
        "reform_cpu_s": of(|f| f.reform_cpu_s),
        "idle_cores": of(|f| f.idle_cores),
        "training_cores": of(|f| f.training_cores),
        "resident_for_workers": larger.resident_kb_per_worker / smaller.resident_kb_per_worker,
        "shard_p99": of(|f| f.shard_ms.p99),
    })
}
