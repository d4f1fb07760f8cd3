//! The unchanged `ballast` on CUDA devices: a coordinator and workers as processes of their own, over NCCL.
//!
//! These tests need a CUDA device and libraries: real ones, or the software device on `LD_LIBRARY_PATH` (`make
//! test-cuda`). What passes on the latter is *emulated*. Workers have a device each, as far as there are; where there are
//! too few for NCCL, what needs several workers is done over TCP or by one.

use anyhow::{Result, ensure};
use ballast_e2e::cluster::{coordinator, worker, worker_with};
use ballast_e2e::losses::{self, PeftLosses};
use ballast_e2e::process::Process;
use ballast_e2e::tiny::{SMALL, Scene, play_on};
use ballast_kernels::conformance::{skip_without_devices, skip_without_our_device};
use ballast_kernels::cuda::probe;
use std::time::Duration;

/// How long a run may take on a device in software on a busy machine.
const EMULATED: Duration = Duration::from_secs(900);

/// A collective may take so long; the rungs of the ladder below it are as near as they may be.
const IMPATIENT: [&str; 4] =
    ["cluster.heartbeat_ms=100", "cluster.lease_ms=5000", "cluster.progress_ms=20000", "cluster.collective_ms=20000"];

/// Trains on `count` workers with a CUDA device each; returns the adapter's SHA-256 and the losses.
fn on_cuda(scene: &Scene, dir: &str, count: usize, settings: &[&str]) -> Result<(String, Vec<f64>)> {
    let workers = format!("cluster.workers={count}");
    let settings = [&["cluster.device=cuda", &workers], settings].concat();
    let (mut coordinator, url) = coordinator(scene, dir, &settings)?;
    let devices = probe().devices.len().max(1);
    let device = |n| format!("cuda:{}", n % devices);
    let start = |n| worker(scene, &format!("{dir} worker {n}"), &url, &["--device", &device(n)]);
    let mut workers = (0..count).map(start).collect::<Result<Vec<_>>>()?;
    let code = coordinator.exit_code_within(EMULATED)?;
    ensure!(code == 0, "{dir} ended with {code}:\n{}", coordinator.printed());
    for worker in &mut workers {
        ensure!(worker.exit_code()? == 0, "{}", worker.printed());
    }
    Ok((scene.adapter_sha256(dir)?, scene.losses(dir)?))
}

/// Whether two workers may meet over NCCL.
fn two_may_meet() -> bool {
    !skip_without_devices(2, probe().devices.len())
}

fn on_cpu(scene: &Scene) -> Result<Vec<f64>> {
    scene.train("cpu", &["cluster.workers=1"])?;
    scene.losses("cpu")
}

#[test]
fn f32_follows_the_cpu_and_one_and_two_ranks_give_the_same_adapter() -> Result<()> {
    play_on(SMALL, |scene| {
        let cpu = on_cpu(scene)?;
        let (alone, losses) = on_cuda(scene, "one", 1, &[])?;
        ensure!(losses.len() >= 10 && losses.len() == cpu.len(), "{losses:?} {cpu:?}");
        for (step, (cuda, cpu)) in losses.iter().zip(&cpu).enumerate() {
            // Written so that no NaN passes.
            ensure!((cuda - cpu).abs() <= 1e-4 * cpu, "step {}: {cuda} on CUDA, {cpu} on the CPU", step + 1);
        }
        if two_may_meet() {
            let (together, same) = on_cuda(scene, "two", 2, &[])?;
            ensure!(together == alone && same == losses, "two ranks: {together} {same:?}; one: {alone} {losses:?}");
        }
        println!("f32: largest distance from the CPU {:.1e} nats", losses::farthest(&losses, &cpu)?);
        Ok(())
    })
}

#[test]
fn bf16_is_no_further_from_f32_than_torch_autocast_and_exact_too() -> Result<()> {
    play_on(SMALL, |scene| {
        let peft = PeftLosses::read()?;
        let bf16 = ["model.dtype=bf16"];
        let (alone, losses) = on_cuda(scene, "one", 1, &bf16)?;
        if two_may_meet() {
            let (together, _) = on_cuda(scene, "two", 2, &bf16)?;
            ensure!(together == alone, "two ranks: {together}; one: {alone}");
        }
        let (ours, torch) = (losses::farthest(&losses, &peft.f32)?, losses::farthest(&peft.autocast, &peft.f32)?);
        println!("bf16: largest distance from f32 {ours:.1e} nats; torch autocast {torch:.1e}");
        ensure!(ours <= torch, "{ours} nats from f32, torch autocast {torch}: {losses:?}");
        Ok(())
    })
}

#[test]
fn tcp_and_activation_checkpointing_give_the_same_adapter_and_fast_sums_one_like_it() -> Result<()> {
    let count = if two_may_meet() { 2 } else { 1 };
    play_on(SMALL, |scene| {
        let (kept, losses) = on_cuda(scene, "kept", count, &["train.max_steps=2"])?;
        let settings = ["train.max_steps=2", "train.activation_checkpointing=true"];
        let (recomputed, _) = on_cuda(scene, "recomputed", count, &settings)?;
        ensure!(recomputed == kept, "recomputed: {recomputed}; kept: {kept}");
        let (over_tcp, _) = on_cuda(scene, "tcp", 2, &["train.max_steps=2", "cluster.collective=tcp"])?;
        ensure!(over_tcp == kept, "over TCP: {over_tcp}; over NCCL: {kept}");
        let (_, fast) = on_cuda(scene, "fast", count, &["train.max_steps=2", "train.reduction=fast"])?;
        ensure!(losses::farthest(&fast, &losses)? < 1e-4, "{fast:?} {losses:?}");
        let (_, coarse) = on_cuda(scene, "coarse", count, &["train.max_steps=2", "train.reduction=fast-bf16"])?;
        ensure!(losses::farthest(&coarse, &losses)? < 1e-2, "{coarse:?} {losses:?}");
        Ok(())
    })
}

/// Steps of the runs that are disturbed.
const LONG: [&str; 2] = ["train.max_steps=8", "checkpoint.every=2"];

/// Starts a run on two CUDA workers, of which one misbehaves as the software device is told.
fn with_fault(scene: &Scene, (variable, order): (&str, &str)) -> Result<(Process, [Process; 2])> {
    let settings = [&["cluster.device=cuda", "cluster.workers=2"], &LONG[..], &IMPATIENT[..]].concat();
    let (coordinator, url) = coordinator(scene, "run", &settings)?;
    // NCCL's faults name a rank, those of a device strike whoever is told.
    let of_both = variable == NCCL;
    let start = |name, told: bool| {
        let fault = [(variable, order)];
        worker_with(scene, name, &url, &["--device", "cuda:0", "--name", name], if told { &fault } else { &[] })
    };
    let first = start("a", of_both)?;
    // Ranks are given in the order of joining.
    coordinator.line_with("(a) joined")?;
    Ok((coordinator, [first, start("b", true)?]))
}

const NCCL: &str = "SOFTGPU_NCCL_FAULT";
const DEVICE: &str = "SOFTGPU_FAULT";

/// The adapter after the fault is that of an undisturbed run: an aborted reduction leaves garbage in what was reduced,
/// and nothing of it in the state. Whoever is left goes on at once, with whoever comes back.
#[test]
fn a_rank_that_dies_hangs_disagrees_or_loses_its_device_costs_one_generation_and_no_bit() -> Result<()> {
    if skip_without_our_device() {
        return Ok(());
    }
    play_on(SMALL, |scene| {
        let (undisturbed, _) = on_cuda(scene, "whole", 1, &LONG)?;
        // All in the fifth step, of four collectives: a bucket for each of two layers, which go while lower layers are
        // computed, then flags and totals. Before the first step there is one, with which the ranks meet.
        let faults = [
            ((NCCL, "die:19@1"), 1, 128 + 9),
            ((NCCL, "hang:18@1"), 2, 0),
            ((NCCL, "mismatch:21@1"), 2, 0),
            ((DEVICE, "launch:600"), 1, 75),
        ];
        for (fault, left, ending) in faults {
            let (mut coordinator, mut workers) = with_fault(scene, fault)?;
            let code = coordinator.exit_code_within(EMULATED)?;
            ensure!(code == 0, "{fault:?}: ended with {code}:\n{}", coordinator.printed());
            let told = coordinator.printed();
            let next = format!("generation 1.2: {left} in the world, 4 steps done");
            ensure!(told.contains(&next), "{fault:?}: expected {next:?}:\n{told}");
            for (worker, expected) in workers.iter_mut().zip([0, ending]) {
                let code = worker.exit_code()?;
                ensure!(code == expected, "{fault:?}: a worker ended with {code}:\n{}", worker.printed());
            }
            let lost = workers[1].printed().contains("B6006");
            ensure!(lost == (fault.0 == DEVICE), "{fault:?}:\n{}", workers[1].printed());
            let found = scene.adapter_sha256("run")?;
            ensure!(found == undisturbed, "{fault:?}: {found} is not {undisturbed}");
            ensure!(scene.audit("run")?["verified"]["head"] == 8);
            std::fs::remove_dir_all(scene.path("run"))?;
        }
        Ok(())
    })
}

#[test]
fn a_slow_rank_is_waited_for() -> Result<()> {
    if skip_without_our_device() {
        return Ok(());
    }
    play_on(SMALL, |scene| {
        let settings = ["cluster.device=cuda", "cluster.workers=2", "train.max_steps=3"];
        let (mut coordinator, url) = coordinator(scene, "run", &settings)?;
        let slow = [("SOFTGPU_NCCL_FAULT", "delay:100@1")];
        let start = |name| worker_with(scene, name, &url, &["--device", "cuda:0"], &slow);
        let mut workers = [start("a")?, start("b")?];
        ensure!(coordinator.exit_code_within(EMULATED)? == 0, "{}", coordinator.printed());
        for worker in &mut workers {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        Ok(())
    })
}

#[test]
fn what_is_missing_is_named_before_anything_is_trained() -> Result<()> {
    play_on(SMALL, |scene| {
        let (coordinator, url) = coordinator(scene, "run", &["cluster.device=cuda", "cluster.workers=1"])?;
        let nothing = [("LD_LIBRARY_PATH", "")];
        let mut absent = worker_with(scene, "absent", &url, &["--device", "cuda:4096"], &[])?;
        ensure!(absent.exit_code()? == 1 && absent.printed().contains("B6005"), "{}", absent.printed());
        ensure!(absent.printed().contains("no device cuda:4096"), "{}", absent.printed());
        if !skip_without_our_device() {
            let mut bare = worker_with(scene, "bare", &url, &["--device", "cuda:0"], &nothing)?;
            ensure!(bare.exit_code()? == 1 && bare.printed().contains("B6005"), "{}", bare.printed());
            ensure!(bare.printed().contains("libcuda.so.1 is not found"), "{}", bare.printed());
        }
        drop(coordinator);
        Ok(())
    })
}

#[test]
fn the_doctor_knows_the_device() -> Result<()> {
    play_on(SMALL, |scene| {
        let mut doctor = scene.start("doctor", scene.ballast("doctor").args(["--device", "cuda:0"]))?;
        ensure!(doctor.exit_code()? == 0, "{}", doctor.printed());
        let printed = doctor.printed();
        ensure!(
            printed.contains("with CUDA") && printed.contains("cuda:0: ") && printed.contains("kernels"),
            "{printed}"
        );
        let mut absent = scene.start("doctor", scene.ballast("doctor").args(["--json", "--device", "cuda:4096"]))?;
        ensure!(absent.exit_code()? == 1 && absent.printed().contains("B6005"), "{}", absent.printed());
        Ok(())
    })
}
