//! Losses of a real run beside PEFT's on the same samples, from the same adapter.

use anyhow::{Result, ensure};
use ballast_e2e::losses::{PeftLosses, farthest};
use ballast_e2e::tiny::{SMALL, TINY, play_on};

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

/// The CPU stores frozen weights as bf16 and computes in f32: weights that are bf16 already lead to the very same adapter, others to
/// one of their own.
#[test]
fn weights_in_bf16_matter_by_their_rounding_alone() -> Result<()> {
    for (run_file, stored_as_bf16) in [(SMALL, true), (TINY, false)] {
        play_on(run_file, |scene| {
            let short = ["cluster.workers=1", "train.max_steps=4"];
            let f32s = scene.train("f32", &short)?;
            let bf16s = scene.train("bf16", &[short[0], short[1], "model.dtype=bf16"])?;
            ensure!((f32s == bf16s) == stored_as_bf16, "{run_file}: {f32s} in f32, {bf16s} in bf16");
            let (f32s, bf16s) = (scene.losses("f32")?, scene.losses("bf16")?);
            ensure!(farthest(&f32s, &bf16s)? < 0.01, "{run_file}: {f32s:?} in f32, {bf16s:?} in bf16");
            Ok(())
        })?;
    }
    Ok(())
}
