//! `ballast estimate`

use crate::args::EstimateArgs;
use crate::failure::coded;
use crate::screen::{self, Screen};
use crate::setup;
use crate::supervise::share;
use anyhow::Context;
use ballast_basemodel::Architecture;
use ballast_coordinator::server::{self, ModelInfo, RunData};
use ballast_proto::exit;
use ballast_proto::v1::RunSpec;
use ballast_worker::Device;
use ballast_worker::memory::{self, MemoryEstimate, Size};
use serde_json::{Value, json};
use std::fmt::Write;

pub(super) fn run(args: &EstimateArgs, screen: &Screen) -> anyhow::Result<u8> {
    let resolved = setup::resolve(&args.file, false)?;
    let model = setup::open_model(&resolved.run, screen)?;
    let prepared = setup::prepare(&resolved.run, &model, screen)?;
    let (model, data) = (ModelInfo::of(&model)?, RunData::of(&prepared));
    let architecture = model.architecture.clone();
    let spec = server::spec(&resolved, model, data)?;
    let device = args.device.unwrap_or_else(|| Device::of_run(spec.device()));
    let estimate = of_worker(&spec, &architecture, device)?;
    let text = if args.json {
        let json = as_json(&estimate, device, spec.workers);
        serde_json::to_string_pretty(&json).context("the estimate as JSON")? + "\n"
    } else {
        describe(&estimate, device, spec.workers)
    };
    screen::print(&text)?;
    Ok(exit::DONE)
}

/// What each worker takes on this device, at most. Where the run says nothing of threads, workers share this machine's cores as
/// those of `ballast train` do.
fn of_worker(spec: &RunSpec, architecture: &Architecture, device: Device) -> anyhow::Result<MemoryEstimate> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match spec.threads as usize {
        0 => share(cores, spec.workers.max(1) as usize, 0),
        threads => threads,
    };
    memory::of_run(spec, architecture, device, threads).map_err(coded)
}

/// One line about the memory of each worker of a run, for who is about to start it.
pub(super) fn headline(spec: &RunSpec, architecture: &Architecture) -> String {
    let device = Device::of_run(spec.device());
    match of_worker(spec, architecture, device) {
        Ok(estimate) if device == Device::Cpu => {
            format!("memory: about {} a worker (`ballast estimate` tells what for)", Size(estimate.process()))
        }
        Ok(estimate) => {
            format!("memory: about {} of each device (`ballast estimate` tells what for)", Size(estimate.total()))
        }
        // The workers will meet it too, and say so.
        Err(error) => format!("memory: not estimated: {error}"),
    }
}

/// A part of the memory and its bytes.
type Part = (&'static str, usize);

/// What the device holds, and what the process has in host memory beside that.
fn parts(estimate: &MemoryEstimate) -> [Vec<Part>; 2] {
    let on_device = [
        ("frozen weights", estimate.weights),
        ("adapter and optimizer", estimate.adapter),
        ("workspace", estimate.workspace),
        ("activations kept", estimate.kept),
        ("most beyond them", estimate.transient),
        ("room between them", estimate.gaps),
    ];
    let of_process = [("copies for checkpoints", estimate.copies), ("the program", estimate.program)];
    let present = |parts: &[Part]| parts.iter().copied().filter(|(_, bytes)| *bytes > 0).collect();
    [present(&on_device), present(&of_process)]
}

/// A line a part, and their sums: one where the device is the host.
fn describe(estimate: &MemoryEstimate, device: Device, workers: u32) -> String {
    let tokens = estimate.micro_batch.tokens;
    let [mut lines, of_process] = parts(estimate);
    if device == Device::Cpu {
        lines.extend(of_process);
        lines.push(("in all", estimate.process()));
    } else {
        lines.push(("on the device", estimate.total()));
        lines.extend(of_process);
    }
    let head = format!("each of {workers} workers, on {device}, for at most {tokens} tokens at a time\n\n");
    lines.into_iter().fold(head, |mut text, (what, bytes)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<24}{:>12}", Size(bytes).to_string());
        text
    })
}

fn as_json(estimate: &MemoryEstimate, device: Device, workers: u32) -> Value {
    let [on_device, of_process] = parts(estimate).map(|parts| {
        let parts = parts.into_iter().map(|(what, bytes)| (what.replace(' ', "_"), json!(bytes)));
        Value::Object(parts.collect())
    });
    json!({
        "workers": workers,
        "device": device.to_string(),
        "micro_batch_tokens": estimate.micro_batch.tokens,
        "device_bytes": estimate.total(),
        "process_bytes": if device == Device::Cpu { estimate.process() } else { estimate.process() - estimate.total() },
        "on_device": on_device,
        "of_process": of_process,
    })
}
