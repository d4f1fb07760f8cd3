//! The simulated workers of `make scale` against a coordinator: the tool works, and a run of many short steps loses none.

use anyhow::{Result, ensure};
use ballast_e2e::scale::{Load, measure};
use ballast_e2e::tiny::play;
use std::time::Duration;

#[test]
fn fifty_workers_train_and_one_is_lost() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    play(|scene| {
        let (warm_up, window) = (Duration::from_millis(500), Duration::from_secs(1));
        let load = Load { workers: 50, pace: 5.0, warm_up, window };
        let figures = runtime.block_on(measure(scene, "run", load))?;
        println!("{figures:#?}");
        ensure!(figures.sockets > 50, "one connection a worker, and the port");
        ensure!(figures.shard_ms.count >= 50 && figures.answer_idle_ms.count > 0, "nothing was delivered or answered");
        // What was measured did happen: every step but the last, which may not be durable yet, stands in the ledger.
        let audit = scene.audit("run")?;
        let head = audit["verified"]["head"].as_u64().unwrap_or(0);
        ensure!(head + 1 >= figures.steps && figures.steps >= 8, "{} steps were reported: {audit}", figures.steps);
        Ok(())
    })
}
