//! The coordinator's control plane with many workers: what it takes of CPU and memory, and how long workers wait for it.
//!
//! A real `ballast coordinator`, in a process of its own, and as many workers as asked for in this one. They compute nothing, but
//! everything else is real: each has a TCP connection of its own, on which the project's client speaks the whole protocol.

mod crowd;
mod samples;
mod traffic;
mod usage;
mod worker;

pub use samples::Quantiles;
pub use usage::room_for_connections;

use crate::cluster::coordinator;
use crate::tiny::{Scene, fixture};
use anyhow::{Context, Result};
use crowd::{Crowd, Pace};
use serde::Serialize;
use std::fs;
use std::time::Duration;
use usage::Usage;

/// Questions to the coordinator a second, over all workers.
const QUESTIONS: f64 = 50.0;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Simulated workers.
    pub workers: usize,
    /// Steps a second while steps are trained.
    pub pace: f64,
    /// How long a state lasts before it is looked at: first steps, buffers that grow.
    pub warm_up: Duration,
    /// How long it is looked at.
    pub window: Duration,
}

/// What one load came to.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Simulated workers.
    pub workers: usize,
    /// Seconds from the first connection to the last open session, 64 workers joining at a time.
    pub join_s: f64,
    /// Seconds from the last worker's word that it is ready until every one has been told of the generation.
    pub form_s: f64,
    /// Seconds from the loss of one worker's connection until all others have been told of the next generation.
    pub reform_s: f64,
    /// Seconds of CPU time that the coordinator takes while workers join,
    pub join_cpu_s: f64,
    /// while the first generation forms,
    pub form_cpu_s: f64,
    /// and while the next one does.
    pub reform_cpu_s: f64,
    /// Cores' worth of CPU time that the coordinator takes for heartbeats alone.
    pub idle_cores: f64,
    /// The same while steps are trained.
    pub training_cores: f64,
    /// Bytes a second that the connection of one worker carries for heartbeats alone, both ways; `null` where there is no `ss`.
    pub idle_bytes: Option<f64>,
    /// The same while steps are trained.
    pub training_bytes: Option<f64>,
    /// Steps a second that all ranks have reported then.
    pub steps_per_second: f64,
    /// Steps that were trained in all.
    pub steps: u64,
    /// Milliseconds from the last rank's report of a step until a rank has the shard that this step's commit released: for every
    /// rank, of every step.
    pub shard_ms: Quantiles,
    /// Milliseconds until the event loop has answered a call that a worker makes on its connection, between heartbeats.
    pub answer_idle_ms: Quantiles,
    /// The same while steps are trained.
    pub answer_training_ms: Quantiles,
    /// The coordinator's resident memory in MB, with all workers connected and trained.
    pub resident_mb: f64,
    /// What of it is there for the workers, in kB for each.
    pub resident_kb_per_worker: f64,
    /// File descriptors that the coordinator has open,
    pub descriptors: usize,
    /// and how many of them are sockets.
    pub sockets: usize,
}

/// Takes the figures of a load, on a run into the scene's directory `dir`.
///
/// # Errors
/// When a worker or the coordinator fails, or nothing comes of something for too long.
pub async fn measure(scene: &Scene, dir: &str, load: Load) -> Result<Figures> {
    let Load { workers, pace, warm_up, window } = load;
    let settings = settings(scene, dir, workers)?;
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let (coordinator, url) = coordinator(scene, dir, &settings)?;
    let process = coordinator.id();
    let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).context("a URL without a port")?;
    let empty = Usage::now(process)?;

    let (mut crowd, join) = Crowd::join(workers, &url).await?;
    let (join_cpu_s, began) = (empty.cpu_since()?, Usage::now(process)?);
    let form = crowd.form().await?;
    let form_cpu_s = began.cpu_since()?;
    let steps = Pace { steps: pace, questions: 0.0 };
    crowd.spend(warm_up, steps).await?;
    let (began, sent) = (Usage::now(process)?, traffic::bytes(port));
    let training = crowd.spend(window, steps).await?;
    let (training_cores, training_bytes) = (began.cores_since()?, traffic::bytes(port));
    let training_bytes = each_second(sent, training_bytes, &began, workers);
    let asked_in_training = crowd.spend(window / 2, Pace { questions: QUESTIONS, ..steps }).await?;

    crowd.spend(warm_up, Pace::default()).await?;
    let (began, sent) = (Usage::now(process)?, traffic::bytes(port));
    crowd.spend(window, Pace::default()).await?;
    let (idle_cores, idle_bytes) = (began.cores_since()?, traffic::bytes(port));
    let idle_bytes = each_second(sent, idle_bytes, &began, workers);
    let asked = crowd.spend(window / 2, Pace { steps: 0.0, questions: QUESTIONS }).await?;

    let full = Usage::now(process)?;
    let reform = crowd.lose_one().await?;
    let reform_cpu_s = full.cpu_since()?;
    // It is a generation like any other: it trains.
    crowd.spend(warm_up, steps).await?;
    let steps = crowd.computed();
    crowd.dismiss().await?;
    Ok(Figures {
        workers,
        join_s: join.as_secs_f64(),
        form_s: form.as_secs_f64(),
        reform_s: reform.as_secs_f64(),
        join_cpu_s,
        form_cpu_s,
        reform_cpu_s,
        idle_cores,
        training_cores,
        idle_bytes,
        training_bytes,
        steps_per_second: training.steps_per_second,
        steps,
        shard_ms: training.shards,
        answer_idle_ms: asked.answers,
        answer_training_ms: asked_in_training.answers,
        resident_mb: full.resident as f64 / 1e6,
        resident_kb_per_worker: full.resident.saturating_sub(empty.resident) as f64 / 1e3 / workers as f64,
        descriptors: full.descriptors,
        sockets: full.sockets,
    })
}

/// Bytes a second for each worker between two counts.
fn each_second(before: Option<u64>, after: Option<u64>, began: &Usage, workers: usize) -> Option<f64> {
    Some(after?.saturating_sub(before?) as f64 / began.age().as_secs_f64() / workers as f64)
}

/// A run that has a micro-batch for every worker in every step, and no end. Nobody uploads anything: that is one rank's business, however
/// many there are.
fn settings(scene: &Scene, dir: &str, workers: usize) -> Result<Vec<String>> {
    let rows = fs::read_to_string(fixture("rows.jsonl"))?;
    let rows: String = rows.lines().cycle().take(workers).flat_map(|row| [row, "\n"]).collect();
    let data = scene.path(&format!("{dir}.jsonl"));
    fs::write(&data, rows)?;
    Ok(vec![
        format!("data.train={}", data.display()),
        format!("cluster.workers={workers}"),
        format!("train.global_batch={workers}"),
        // Any sample is longer, and has a micro-batch of its own.
        "train.micro_batch_tokens=1".into(),
        "train.epochs=1000000".into(),
        "train.max_steps=1000000".into(),
        "checkpoint.every=0".into(),
        "cluster.prefetch_steps=1".into(),
    ])
}
