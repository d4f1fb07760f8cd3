//! The coordinator over loopback, with workers that speak the protocol and compute nothing.

mod access;
mod attacks;
mod authority;
mod faults;
mod happy;
mod resume;
mod secured;
mod storage;
mod worker;

use super::*;
use crate::{
    checkpoint::Store,
    config::{Resolved, RunFile, TargetModules},
    evaluation::Prompt,
    ledger,
};
use ballast_proto::v1::{Sequence, TokenRange};
use std::path::Path;
use worker::FakeWorker;

/// Samples of the prepared set of all tests.
pub(super) const SAMPLES: u64 = 20;
/// Steps of its one epoch.
pub(super) const STEPS: u64 = 5;

fn sequence(sample: u64) -> Sequence {
    let length = 4 + (sample % 3) as u32;
    Sequence { sample, token_ids: (0..length).collect(), loss: vec![TokenRange { start: 2, end: length }] }
}

pub(super) fn run_file(directory: &Path, change: impl FnOnce(&mut RunFile)) -> Arc<Resolved> {
    let mut run = RunFile::default();
    run.run.name = "test".into();
    run.run.dir = directory.to_owned();
    run.model.source = "hf:org/model".into();
    run.lora.rank = 2;
    run.lora.target_modules = TargetModules::Names(vec!["q_proj".into()]);
    run.train.global_batch = 4;
    run.train.micro_batch_tokens = 6;
    run.cluster.workers = 1;
    run.cluster.bind = "127.0.0.1:0".into();
    run.checkpoint.every = 2;
    // These workers send no heartbeats.
    run.cluster.lease_ms = 50_000;
    change(&mut run);
    Arc::new(Resolved { run, origins: Default::default(), path: "run.toml".into() })
}

pub(super) fn options(resolved: Arc<Resolved>) -> StartOptions {
    StartOptions {
        resolved,
        model: ModelInfo {
            sha256: "model".into(),
            architecture: crate::checkpoint::test_architecture(),
            stop_ids: vec![2],
            decode: Arc::new(|ids| ids.iter().filter_map(|id| char::from_u32(*id)).collect()),
        },
        data: RunData { samples: (0..SAMPLES).map(sequence).collect(), sha256: "data".into(), ..RunData::default() },
        binary_sha256: "binary".into(),
        security: Security::default(),
        limits: Limits::of(1),
    }
}

/// With two held-out samples, one of them answered, and one probe.
pub(super) fn with_evaluation(mut options: StartOptions) -> StartOptions {
    let prompt = |text: &str| Prompt { text: text.into(), ids: vec![1, 2] };
    options.data.heldout = (0..2).map(sequence).collect();
    options.data.heldout_prompts = vec![prompt("sample")];
    options.data.probes = vec![prompt("probe")];
    options
}

pub(super) async fn start(options: StartOptions) -> Coordinator {
    match Coordinator::start(options).await.unwrap() {
        Started::Running(coordinator) => coordinator,
        Started::Finished(outcome) => panic!("already finished: {outcome:?}"),
    }
}

pub(super) async fn refused(options: StartOptions) -> Failure {
    Coordinator::start(options).await.unwrap_err()
}

/// Runs `workers` workers to the end.
pub(super) async fn train(coordinator: Coordinator, workers: usize) -> RunOutcome {
    let address = coordinator.local_addr();
    let working: Vec<_> = (0..workers)
        .map(|n| tokio::spawn(async move { FakeWorker::join(address, &format!("w{n}")).await.unwrap().work().await }))
        .collect();
    for worker in working {
        worker.await.unwrap().unwrap();
    }
    coordinator.wait().await
}

/// What the ledger of a run proves.
pub(super) fn proof(directory: &Path) -> ledger::Verified {
    let (records, _, tail) = ledger::read(&directory.join("ledger")).unwrap();
    assert!(tail == ledger::Tail::Whole);
    ledger::verify(&records, SAMPLES).unwrap()
}

pub(super) fn report_of(directory: &Path) -> report::Report {
    serde_json::from_slice(&std::fs::read(directory.join("report.json")).unwrap()).unwrap()
}

pub(super) fn store(directory: &Path) -> impl Store {
    crate::checkpoint::LocalStore::open(directory).unwrap()
}
