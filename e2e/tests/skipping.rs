//! Steps whose loss or gradient is not finite: a sample is poisoned, in whichever process trains it.

use anyhow::{Context, Result, ensure};
use ballast_e2e::process::Process;
use ballast_e2e::tiny::{Scene, play};
use serde_json::{Value, json};

const SKIP: &str = "train.on_nonfinite=skip";
/// One epoch: every sample is met once.
const EPOCH: &str = "train.max_steps=3";

/// The micro-batch, as samples, that this sample is trained in, and the first step that has it.
fn micro_batch_of(scene: &Scene, sample: u32) -> Result<(u64, Vec<u32>)> {
    let planned = scene.planned()?;
    let mut steps = (1u64..).zip(planned.steps());
    steps
        .find_map(|(number, step)| {
            let mut batch = step.micro_batches.iter().find(|batch| batch.contains(&sample))?.clone();
            batch.sort_unstable();
            Some((number, batch))
        })
        .context("no step has the sample")
}

fn start(scene: &Scene, dir: &str, settings: &[&str], fault: &str) -> Result<Process> {
    scene.start(dir, scene.run("train", dir, settings).env("BALLAST_FAULT", fault))
}

/// The steps of a run's ledger, without what depends on the clock and on who trained them.
fn records(scene: &Scene, dir: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(scene.path(dir).join("ledger"))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let mut steps: Vec<Value> = lines.into_iter().filter(|line| line["kind"] == "step").collect();
    for step in steps.iter_mut().filter_map(Value::as_object_mut) {
        ["at_ms", "crc32", "generation"].iter().for_each(|key| drop(step.remove(*key)));
    }
    Ok(steps)
}

/// Samples as the ledger writes them, one by one.
fn samples(text: &Value) -> Result<Vec<u32>> {
    let mut samples = Vec::new();
    for run in text.as_str().context("no samples")?.split_whitespace() {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        samples.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(samples)
}

#[test]
fn a_poisoned_sample_costs_its_step_and_the_same_one_for_any_number_of_workers() -> Result<()> {
    play(|scene| {
        let sample = 5;
        let (step, batch) = micro_batch_of(scene, sample)?;
        let undisturbed = scene.train("sound", &["cluster.workers=2", EPOCH, SKIP])?;
        let mut runs = Vec::new();
        for workers in 1..=3 {
            let dir = format!("w{workers}");
            let cluster = format!("cluster.workers={workers}");
            let mut train = start(scene, &dir, &[&cluster, EPOCH, SKIP], &format!("nan@gradient:{sample}"))?;
            ensure!(train.exit_code()? == 0, "{}", train.printed());
            train.line_with(&format!("warning: step {step} was skipped: gradient not finite"))?;
            runs.push((scene.adapter_sha256(&dir)?, records(scene, &dir)?));
        }
        ensure!(runs.iter().all(|run| *run == runs[0]), "{runs:#?}");
        ensure!(runs[0].0 != undisturbed, "a step was skipped, and nothing is missing");

        let at = usize::try_from(step)? - 1;
        let records = &runs[0].1;
        ensure!(samples(&records[at]["skipped"]["gradient"])? == batch, "{}", records[at]);
        ensure!(records[at]["skipped"]["loss"] == "", "{}", records[at]);
        ensure!(records.iter().filter(|record| !record["skipped"].is_null()).count() == 1, "{records:#?}");
        if at > 0 {
            ensure!(records[at]["state_sha256"] == records[at - 1]["state_sha256"], "the state has changed");
        }
        let audit = scene.audit("w2")?;
        ensure!((&audit["verified"]["skipped"], &audit["verified"]["head"]) == (&json!(1), &json!(3)), "{audit}");
        ensure!(audit["verified"]["passed_over"] == 16, "the whole global batch is passed over: {audit}");
        let report: Value = serde_json::from_slice(&std::fs::read(scene.path("w2/report.json"))?)?;
        ensure!(report["skipped"][0]["step"] == step && report["losses"].as_array().is_some_and(|l| l.len() == 2));
        Ok(())
    })
}

/// A run is killed after it has skipped a step that no checkpoint has, and does it again.
#[test]
fn a_skipped_step_that_is_done_again_is_skipped_again() -> Result<()> {
    play(|scene| {
        let (step, _) = micro_batch_of(scene, 5)?;
        let settings = ["cluster.workers=2", EPOCH, "checkpoint.every=0", SKIP];
        let poison = "nan@loss:5,nan@gradient:5";
        let mut whole = start(scene, "whole", &settings, poison)?;
        ensure!(whole.exit_code()? == 0, "{}", whole.printed());

        let fault = format!("{poison},kill@committed:{step}");
        let mut killed = start(scene, "killed", &settings, &fault)?;
        ensure!(killed.exit_code()? == 128 + 9, "{}", killed.printed());
        let mut resumed = start(scene, "killed", &settings, poison)?;
        ensure!(resumed.exit_code()? == 0, "{}", resumed.printed());
        ensure!(scene.adapter_sha256("killed")? == scene.adapter_sha256("whole")?);
        let audit = scene.audit("killed")?;
        let verified = &audit["verified"];
        ensure!(verified["redone"] == step && audit["reproduced"] == step, "{audit}");
        ensure!(verified["skipped"] == 1, "{audit}");
        let (there, here) = (records(scene, "whole")?, records(scene, "killed")?);
        let (before, after) = here.split_at(usize::try_from(step)?);
        ensure!(before == &there[..before.len()] && after == there, "{here:#?}");
        Ok(())
    })
}

#[test]
fn without_leave_to_skip_the_run_ends_and_too_many_skipped_steps_end_it_too() -> Result<()> {
    play(|scene| {
        let (step, batch) = micro_batch_of(scene, 5)?;
        let mut stopped = start(scene, "stopped", &["cluster.workers=1"], "nan@loss:5")?;
        ensure!(stopped.exit_code()? == 1, "{}", stopped.printed());
        let printed = stopped.printed();
        ensure!(printed.contains("B6001") && printed.contains(&format!("step {step}")), "{printed}");
        ensure!(batch.iter().all(|sample| printed.contains(&sample.to_string())), "{printed}");

        let settings = ["cluster.workers=2", "train.max_skipped=1", SKIP];
        let mut diverged = start(scene, "diverged", &settings, "nan@gradient:5")?;
        ensure!(diverged.exit_code()? == 1, "{}", diverged.printed());
        ensure!(diverged.printed().contains("train.max_skipped is 1"), "{}", diverged.printed());
        let audit = scene.audit("diverged")?;
        ensure!(audit["verified"]["head"] == step && audit["verified"]["skipped"] == 1, "{audit}");
        Ok(())
    })
}

/// Sums of floats do not tell which micro-batch it was: all of the step are named.
#[test]
fn fast_sums_name_every_sample_of_the_step() -> Result<()> {
    play(|scene| {
        let (step, _) = micro_batch_of(scene, 5)?;
        let settings = ["cluster.workers=2", EPOCH, "train.reduction=fast", SKIP];
        let mut train = start(scene, "fast", &settings, "nan@gradient:5")?;
        ensure!(train.exit_code()? == 0, "{}", train.printed());
        let records = records(scene, "fast")?;
        let skipped = &records[usize::try_from(step)? - 1];
        ensure!(skipped["skipped"]["gradient"] == skipped["samples"], "{skipped}");
        Ok(())
    })
}
