//! A worker that holds the others up, in real processes.

use anyhow::{Result, ensure};
use ballast_e2e::cluster::{coordinator, worker, worker_with};
use ballast_e2e::tiny::play;
use nix::sys::signal::Signal;

/// Every micro-batch of this worker takes so much longer.
const SLOW: (&str, &str) = ("BALLAST_FAULT", "slow@compute:150");
/// And of the others so: their pace does not depend on what else this machine does.
const SOUND: (&str, &str) = ("BALLAST_FAULT", "slow@compute:5");

#[test]
fn a_slow_worker_is_drained_and_the_adapter_is_that_of_the_undisturbed_run() -> Result<()> {
    play(|scene| {
        let settings = ["cluster.workers=3", "train.max_steps=100", "checkpoint.every=0", "lora.dropout=0.1"];
        let expected = scene.train("whole", &settings)?;
        let policy = ["cluster.on_slow_worker=drain", "cluster.slow_steps=4", "cluster.min_workers=2"];
        let (mut coordinator, url) = coordinator(scene, "run", &[&settings[..], &policy[..]].concat())?;
        let sound = |name| worker_with(scene, name, &url, &["--name", name], &[SOUND]);
        let mut sound = [sound("a")?, sound("b")?];
        let mut slow = worker_with(scene, "slow", &url, &["--name", "snail"], &[SLOW])?;
        coordinator.line(|line| line.contains("(snail) is slow") && line.contains("it is asked to leave"))?;
        // Retriable, for another machine; its own words say why, and it does not try to join again by itself.
        ensure!(slow.exit_code()? == 75, "{}", slow.printed());
        ensure!(slow.printed().contains("error[B4018]"), "{}", slow.printed());
        coordinator.line(|line| line.starts_with("generation 1.2: 2 in the world"))?;
        let mut again = worker(scene, "again", &url, &["--name", "snail"])?;
        ensure!(again.exit_code()? == 75 && again.printed().contains("error[B4018]"), "{}", again.printed());

        ensure!(coordinator.exit_code()? == 0, "{}", coordinator.printed());
        for worker in &mut sound {
            ensure!(worker.exit_code()? == 0, "{}", worker.printed());
        }
        ensure!(scene.adapter_sha256("run")? == expected);
        let audit = scene.audit("run")?;
        let events = audit["chapters"][0]["events"].as_array().cloned().unwrap_or_default();
        let drained: Vec<_> =
            events.iter().filter(|event| event["event"] == "slow_worker" && event["drained"] == true).collect();
        ensure!(drained.len() == 1 && drained[0]["worker"] == "snail", "{audit}");
        ensure!(audit["verified"]["redone"] == 0, "{audit}");
        Ok(())
    })
}

#[test]
fn a_slow_worker_is_told_of_and_stays_where_nothing_else_is_wanted() -> Result<()> {
    play(|scene| {
        let settings = ["cluster.workers=2", "train.max_steps=1000000", "checkpoint.every=0", "cluster.slow_steps=3"];
        let (mut coordinator, url) = coordinator(scene, "run", &settings)?;
        let mut sound = worker_with(scene, "a", &url, &["--name", "a"], &[SOUND])?;
        let mut slow = worker_with(scene, "slow", &url, &["--name", "snail"], &[SLOW])?;
        coordinator.line(|line| line.starts_with("warning:") && line.contains("(snail) is slow"))?;
        let status = scene.ballast("status").args(["--coordinator", &url]).output()?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(status.lines().any(|line| line.contains("snail") && line.ends_with(", slow")), "{status}");
        coordinator.signal(Signal::SIGTERM)?;
        ensure!(coordinator.exit_code()? == 75, "{}", coordinator.printed());
        ensure!((sound.exit_code()?, slow.exit_code()?) == (75, 75), "{}", slow.printed());
        Ok(())
    })
}
