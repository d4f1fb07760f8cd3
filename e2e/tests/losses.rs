//! Losses of a real run beside PEFT's on the same samples, from the same adapter.

use anyhow::{Result, ensure};
use ballast_e2e::losses::PeftLosses;
use ballast_e2e::tiny::{SMALL, play_on};

/// Largest relative difference of a step's loss in f32.
const TOLERANCE: f64 = 1e-4;

#[test]
fn a_run_in_f32_has_the_losses_of_peft() -> Result<()> {
    play_on(SMALL, |scene| {
        scene.train("run", &["cluster.workers=1"])?;
        let (ours, theirs) = (scene.losses("run")?, PeftLosses::read()?.f32);
        ensure!(ours.len() == theirs.len(), "{} losses beside PEFT's {}", ours.len(), theirs.len());
        for (step, (ours, theirs)) in (1..).zip(ours.iter().zip(&theirs)) {
            let difference = (ours / theirs - 1.0).abs();
            ensure!(difference <= TOLERANCE, "step {step}: {ours} is not PEFT's {theirs}: off by {difference:.1e}");
        }
        ensure!(theirs[theirs.len() - 1] < 0.9 * theirs[0], "nothing is learned: {theirs:?}");
        Ok(())
    })
}
