//! Processes that are struck in the midst of their work, at random: the adapter is the same, and every sample was trained once.

use anyhow::{Result, ensure};
use ballast_e2e::chaos::{disturbed, undisturbed};
use ballast_e2e::tiny::play;

/// The whole of it is `make chaos`.
#[test]
fn a_disturbed_run_leads_to_the_same_adapter() -> Result<()> {
    let seed = match std::env::var("BALLAST_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => 1,
    };
    println!("BALLAST_TEST_SEED={seed}");
    play(|scene| {
        let steps = 60;
        let expected = undisturbed(scene, "undisturbed", 1, steps)?;
        let tally = disturbed(scene, "disturbed", seed, steps)?;
        println!("{:#?}", tally.faults);
        ensure!(scene.adapter_sha256("disturbed")? == expected, "another adapter, after {:#?}", tally.faults);
        let audit = scene.audit("disturbed")?;
        ensure!(audit["verified"]["head"] == steps, "{audit}");
        ensure!(tally.total() >= 5, "too little happened: {:#?}", tally.faults);
        Ok(())
    })
}
