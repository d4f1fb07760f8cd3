//! The run that every history trains.

use ballast_basemodel::{Architecture, Projection};
use ballast_coordinator::checkpoint::AdapterShapes;
use ballast_coordinator::config::{Resolved, RunFile, TargetModules};
use ballast_coordinator::security::Security;
use ballast_coordinator::server::{Limits, ModelInfo, RunData, StartOptions};
use ballast_proto::v1::{Sequence, TokenRange};
use std::path::Path;
use std::sync::Arc;

/// Where it is, on its coordinator's disk.
pub(crate) const DIRECTORY: &str = "/run";
/// Samples of the prepared set.
pub(crate) const SAMPLES: u64 = 100;
/// Passes over them.
const EPOCHS: u64 = 3;
/// Samples of a step.
pub(crate) const GLOBAL_BATCH: u64 = 5;
/// Steps in all.
pub(crate) const STEPS: u64 = EPOCHS * SAMPLES / GLOBAL_BATCH;
/// Rank of the adapter.
const RANK: usize = 2;
/// Where its coordinator listens.
pub(crate) const PORT: u16 = 7070;

fn sequence(sample: u64) -> Sequence {
    let length = 4 + (sample % 3) as u32;
    let first = sample as u32;
    Sequence { sample, token_ids: (first..first + length).collect(), loss: vec![TokenRange { start: 2, end: length }] }
}

/// Names and shapes of what is trained.
pub(crate) fn shapes() -> AdapterShapes {
    AdapterShapes::new(&Architecture::tiny(), RANK, &[Projection::Q])
}

/// What its coordinator is started with; the timeouts are those of a network in which messages take milliseconds.
pub(crate) fn options(workers: u32) -> StartOptions {
    let mut run = RunFile::default();
    run.run.name = "simulated".into();
    run.run.dir = Path::new(DIRECTORY).to_owned();
    run.model.source = "hf:org/model".into();
    run.lora.rank = RANK as u32;
    run.lora.target_modules = TargetModules::Names(vec!["q_proj".into()]);
    run.train.epochs = EPOCHS as _;
    run.train.global_batch = GLOBAL_BATCH as _;
    run.train.micro_batch_tokens = 6;
    run.cluster.workers = workers;
    run.cluster.gather_ms = 2_000;
    run.cluster.heartbeat_ms = 100;
    run.cluster.lease_ms = 1_000;
    run.cluster.progress_ms = 2_000;
    run.cluster.collective_ms = 4_000;
    run.cluster.load_ms = 10_000;
    run.checkpoint.every = 4;
    StartOptions {
        resolved: Arc::new(Resolved { run, origins: Default::default(), path: "run.toml".into() }),
        model: ModelInfo {
            sha256: "model".into(),
            architecture: Architecture::tiny(),
            stop_ids: vec![2],
            decode: Arc::new(|ids| ids.iter().filter_map(|id| char::from_u32(*id)).collect()),
        },
        data: RunData { samples: (0..SAMPLES).map(sequence).collect(), sha256: "data".into(), ..RunData::default() },
        binary_sha256: "binary".into(),
        security: Security::default(),
        limits: Limits::of(workers),
    }
}
