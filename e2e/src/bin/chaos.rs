//! `make chaos`: runs with at least so many faults, drawn from a seed. Prints what happened, the hashes and the audits, and one
//! line `N passed, N failed`.

use anyhow::{Result, bail};
use ballast_e2e::chaos::{Tally, disturbed, undisturbed};
use ballast_e2e::tiny::{Scene, play};
use clap::Parser;

/// Steps of every run.
const STEPS: u64 = 150;

#[derive(Parser)]
struct Args {
    /// What the faults are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many faults, at least.
    #[arg(long, default_value_t = 200)]
    faults: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (mut passed, mut failed) = (0, 0);
    play(|scene| {
        let mut check = |what: &str, outcome: Result<String>| match outcome {
            Ok(words) => {
                println!("passed: {what}: {words}");
                passed += 1;
            }
            Err(error) => {
                println!("FAILED: {what}: {error:#}");
                failed += 1;
            }
        };
        let expected = undisturbed(scene, "one-worker", 1, STEPS)?;
        check("an undisturbed run of 1 worker", Ok(expected.clone()));
        check("an undisturbed run of 3 workers", same(&expected, undisturbed(scene, "three-workers", 3, STEPS)));
        let mut all = Tally::default();
        let mut run = 0;
        while all.total() < args.faults {
            let dir = format!("run-{run}");
            let tally = disturbed(scene, &dir, args.seed.wrapping_add(run), STEPS)?;
            let faults = tally.total();
            all.add(tally);
            check(&format!("{dir}, {faults} faults, adapter"), same(&expected, scene.adapter_sha256(&dir)));
            check(&format!("{dir}, audit"), audited(scene, &dir));
            run += 1;
        }
        println!(
            "seed {}: {} faults, {} starts of workers, {} generations",
            args.seed,
            all.total(),
            all.joins,
            all.generations.len()
        );
        for ((what, point), times) in &all.faults {
            println!("{times:6}  {what} at {point}");
        }
        Ok(())
    })?;
    println!("{passed} passed, {failed} failed");
    if failed > 0 { bail!("{failed} checks failed") } else { Ok(()) }
}

fn same(expected: &str, found: Result<String>) -> Result<String> {
    let found = found?;
    if found == expected { Ok(found) } else { bail!("{found}, not {expected}") }
}

fn audited(scene: &Scene, dir: &str) -> Result<String> {
    let audit = scene.audit(dir)?;
    let (verified, changes) = (&audit["verified"], &audit["changes"]);
    if verified["head"] != STEPS {
        bail!("{audit}");
    }
    Ok(format!(
        "every sample exactly once per epoch; {} steps redone, {} of them by the same recipe to the same state, {changes} changes of the membership",
        verified["redone"], audit["reproduced"]
    ))
}
