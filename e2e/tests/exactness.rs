//! The same adapter, bit for bit, whoever trains it and whatever happens on the way.

use anyhow::{Context, Result, ensure};
use ballast_e2e::tiny::{Scene, play};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What is trained: each has an adapter of its own.
const VARIANTS: [&str; 3] = ["lora.dropout=0.0", "lora.dropout=0.1", "model.dtype=bf16"];

/// Fewest micro-batches of any step of the run.
fn fewest_micro_batches(scene: &Scene) -> Result<usize> {
    let planned = scene.planned()?;
    planned.steps().map(|step| step.micro_batches.len()).min().context("a plan without steps")
}

#[test]
fn any_number_of_workers_and_threads_gives_the_same_adapter() -> Result<()> {
    play(|scene| {
        ensure!(fewest_micro_batches(scene)? >= 8, "too few micro-batches for every worker to train in every step");
        let mut adapters = Vec::new();
        for (i, variant) in VARIANTS.iter().enumerate() {
            let mut same = Vec::new();
            for workers in 1..=3 {
                for threads in 1..=2 {
                    let cluster = [format!("cluster.workers={workers}"), format!("cluster.threads={threads}")];
                    let dir = format!("v{i}-w{workers}-t{threads}");
                    same.push(scene.train(&dir, &[variant, &cluster[0], &cluster[1]])?);
                }
            }
            ensure!(same.iter().all(|sha256| *sha256 == same[0]), "{variant}: {same:#?}");
            adapters.push(same.swap_remove(0));
        }
        ensure!(adapters[0] != adapters[1], "dropout has no effect");
        ensure!(adapters[0] != adapters[2], "bf16 has no effect");
        Ok(())
    })
}

/// Starts a run long enough to be met in the middle, and waits for its first checkpoint.
fn until_first_checkpoint(scene: &Scene, dir: &str, settings: &[&str]) -> Result<ballast_e2e::process::Process> {
    let process = scene.start_train(dir, settings)?;
    process.line_with("checkpoint of step")?;
    Ok(process)
}

#[test]
fn a_run_stopped_and_resumed_with_another_number_of_workers_gives_the_same_adapter() -> Result<()> {
    play(|scene| {
        let long = ["train.max_steps=60", "lora.dropout=0.1", "cluster.workers=2"];
        let undisturbed = scene.train("whole", &long)?;

        let mut process = until_first_checkpoint(scene, "halves", &long)?;
        // Twice, as `timeout` does: one request.
        process.signal(Signal::SIGTERM)?;
        process.signal(Signal::SIGTERM)?;
        let code = process.exit_code()?;
        ensure!(code == 75, "stopped with {code}:\n{}", process.printed());
        ensure!(!scene.path("halves/adapter").exists(), "a stopped run has no final adapter");

        let resumed = scene.train("halves", &[long[0], long[1], "cluster.workers=3"])?;
        ensure!(resumed == undisturbed, "{resumed} is not {undisturbed}");
        let audit = proven(scene, "halves")?;
        let [first, second] = chapters(&audit)?;
        ensure!(first["code"] == "B7001" || first["ending"].as_str().is_some_and(|e| e.contains("SIGTERM")), "{audit}");
        ensure!(second["voided"] == 0 && audit["verified"]["redone"] == 0, "{audit}");
        Ok(())
    })
}

#[test]
fn a_killed_run_resumes_to_the_same_adapter() -> Result<()> {
    play(|scene| {
        let long = ["train.max_steps=60", "cluster.workers=2"];
        let undisturbed = scene.train("whole", &long)?;

        let mut process = until_first_checkpoint(scene, "killed", &long)?;
        process.signal(Signal::SIGKILL)?;
        ensure!(process.exit_code()? == 128 + Signal::SIGKILL as i32);
        let resumed = scene.train("killed", &long)?;
        ensure!(resumed == undisturbed, "{resumed} is not {undisturbed}");
        let audit = proven(scene, "killed")?;
        let [first, second] = chapters(&audit)?;
        ensure!(first["ending"].is_null() && second["ending"].is_string(), "{audit}");
        ensure!(second["voided"] == audit["verified"]["redone"] && second["voided"] == audit["reproduced"], "{audit}");
        ensure!(audit["state_sha256"] == proven(scene, "whole")?["state_sha256"], "{audit}");
        Ok(())
    })
}

/// The audit of a run of 60 steps, all of which count.
fn proven(scene: &Scene, dir: &str) -> Result<Value> {
    let audit = scene.audit(dir)?;
    ensure!(audit["verified"]["head"] == 60, "{audit}");
    Ok(audit)
}

fn chapters(audit: &Value) -> Result<&[Value; 2]> {
    audit["chapters"].as_array().and_then(|all| all.as_array()).with_context(|| format!("not two chapters: {audit}"))
}
