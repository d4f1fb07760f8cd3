//! A step that nobody wants any more ends at the next layer.

use super::support::{decoder, part, run_spec, sample, shard, trainer};
use ballast_basemodel::Architecture;
use ballast_worker::WorkerError;
use ballast_worker::collective::{Collective, CollectiveError, Solo};
use std::cell::Cell;

const LAYERS: usize = 3;

/// One of two ranks, whose generation is aborted once it was asked so often whether it goes on.
struct Aborted {
    after: u32,
    asked: Cell<u32>,
}

impl Collective for Aborted {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn all_reduce_sum(&mut self, _: &mut [i64]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Broken)
    }

    fn all_reduce_max(&mut self, _: &mut [i64]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Broken)
    }

    fn all_reduce_sum_reals(&mut self, _: &mut [f32]) -> Result<(), CollectiveError> {
        Err(CollectiveError::Broken)
    }

    fn wanted(&self) -> Result<(), CollectiveError> {
        self.asked.set(self.asked.get() + 1);
        if self.asked.get() > self.after { Err(CollectiveError::Aborted("a worker is gone".into())) } else { Ok(()) }
    }
}

#[test]
fn a_step_of_an_aborted_generation_ends_at_the_next_layer_and_leaves_no_trace() {
    let architecture = Architecture { layers: LAYERS, ..Architecture::tiny() };
    let decoder = decoder(&architecture, 1);
    let batch = |number| vec![sample(number, 6, 2, architecture.vocab_size)];
    let whole = shard(1, &[batch(1), batch(2), batch(3)]);
    let expected = trainer(&decoder, &run_spec()).step(&whole, &mut Solo).unwrap();

    let mut trainer = trainer(&decoder, &run_spec());
    let own = part(&whole, |index| index < 2);
    // Asked before each micro-batch, and when a layer of it is gone through: aborted before the first, and at the second's top layer.
    for (after, layers) in [(0, 0), (LAYERS as u32 + 2, 3 * LAYERS as u64)] {
        let before = trainer.progress().heartbeat().progress;
        let stepped = trainer.step(&own, &mut Aborted { after, asked: Cell::new(0) });
        assert!(matches!(stepped, Err(WorkerError::Collective(CollectiveError::Aborted(_)))), "{stepped:?}");
        // Beginning to compute is a tick too.
        assert_eq!(trainer.progress().heartbeat().progress - before, layers + 1);
    }
    assert_eq!(trainer.step(&whole, &mut Solo).unwrap().state_sha256, expected.state_sha256);
}
