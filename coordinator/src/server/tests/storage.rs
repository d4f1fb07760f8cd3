//! Stores beside the run directory, and checkpoints that cannot be saved.

use super::*;
use crate::{
    checkpoint::{RUN_FILE, take_epoch},
    config::OnFailure,
};
use ballast_proto::exit;
use std::fs;

/// A run whose checkpoints are kept in `store`.
fn kept_in(run_directory: &Path, store: &Path) -> StartOptions {
    options(run_file(run_directory, |run| run.checkpoint.store = format!("file://{}", store.display())))
}

/// Runs a worker whose uploads may be refused.
async fn train_as_far_as_it_goes(coordinator: Coordinator) -> RunOutcome {
    let address = coordinator.local_addr();
    let worker = tokio::spawn(async move { FakeWorker::join(address, "w").await.unwrap().work().await });
    let outcome = coordinator.wait().await;
    // How it ended for the worker is another matter.
    worker.abort();
    outcome
}

/// Lets no checkpoint of this step be saved: a directory stands where a file of it must go.
fn block(run_directory: &Path, step: u64) -> std::path::PathBuf {
    let blocked = run_directory.join(format!("checkpoints/step-{step:08}.g1/adapter_model.safetensors"));
    fs::create_dir_all(&blocked).unwrap();
    blocked
}

fn policy(directory: &Path, on_failure: OnFailure) -> StartOptions {
    options(run_file(directory, |run| run.checkpoint.on_failure = on_failure))
}

#[tokio::test]
async fn a_store_has_what_must_outlive_the_machine_and_the_run_directory_the_rest() {
    let (run, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outcome = train(start(kept_in(run.path(), kept.path())).await, 1).await;
    assert_eq!(outcome.exit_code, exit::DONE, "{}", outcome.reason);
    assert!(outcome.checkpoint.unwrap().starts_with(kept.path()));
    assert!(outcome.adapter.unwrap().starts_with(run.path()));
    let names = |directory: &Path| store(directory).list("").unwrap();
    let adapter = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"];
    assert_eq!(names(run.path()), [&adapter[..], &["ledger", "metrics/steps.jsonl", "report.json"]].concat());
    let kept = names(kept.path()).into_iter().filter(|name| !name.starts_with("checkpoints/")).collect::<Vec<_>>();
    assert_eq!(kept, [&adapter[..], &["epochs/00000001", "latest", RUN_FILE]].concat());
    assert_eq!(report_of(run.path()).checkpoints, report::Checkpoints { saved: 3, failed: 0 });
}

#[tokio::test]
async fn checkpoints_are_not_continued_without_their_ledger() {
    let (run, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(start(kept_in(run.path(), kept.path())).await, 1).await;
    let before = store(kept.path()).list("").unwrap();

    // On another machine the run directory is empty.
    let elsewhere = tempfile::tempdir().unwrap();
    let failure = refused(kept_in(elsewhere.path(), kept.path())).await;
    assert_eq!(failure.code, ErrorCode::LedgerElsewhere);
    assert!(failure.message.contains("(it is empty): start on the machine"), "{failure}");
    // And here the store is another one than it was.
    let failure = refused(options(run_file(run.path(), |_| ()))).await;
    assert_eq!(failure.code, ErrorCode::LedgerElsewhere);
    assert!(failure.message.contains("set checkpoint.store back"), "{failure}");
    assert_eq!(store(kept.path()).list("").unwrap(), before, "a refusal takes no epoch and writes nothing");

    // With its ledger the run goes on anywhere.
    fs::copy(run.path().join("ledger"), elsewhere.path().join("ledger")).unwrap();
    let coordinator = start(kept_in(elsewhere.path(), kept.path())).await;
    assert_eq!(coordinator.progress().borrow().start_step, STEPS);
    coordinator.stopper().request_stop("enough").await;
    coordinator.wait().await;
}

#[tokio::test]
async fn a_coordinator_that_was_replaced_from_another_machine_publishes_nothing_more() {
    for on_failure in [OnFailure::Stop, OnFailure::Continue] {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = start(policy(directory.path(), on_failure)).await;
        assert_eq!(take_epoch(&store(directory.path())).unwrap(), 2);
        let outcome = train_as_far_as_it_goes(coordinator).await;
        let failure = outcome.failure.unwrap();
        assert_eq!((outcome.exit_code, failure.code), (exit::FAILED, ErrorCode::RunDirectoryInUse));
        assert!(failure.message.contains("epoch 2, this one has 1"), "{failure}");
        let published = store(directory.path()).list("").unwrap();
        assert!(!published.iter().any(|name| name.ends_with("manifest.json") || name == "latest"), "{published:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_saved_stops_the_run_and_the_one_before_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let blocked = block(path, 4);
    let outcome = train_as_far_as_it_goes(start(policy(path, OnFailure::Stop)).await).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((outcome.exit_code, failure.code), (exit::FAILED, ErrorCode::StorageFailed));
    assert!(failure.message.starts_with("the checkpoint of step 4 cannot be saved: "), "{failure}");
    fs::remove_dir_all(blocked.parent().unwrap()).unwrap();
    let coordinator = start(policy(path, OnFailure::Stop)).await;
    assert_eq!(coordinator.progress().borrow().checkpoint, Some(2));
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
}

#[tokio::test]
async fn training_goes_on_without_a_checkpoint_where_that_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    block(path, 4);
    let mut coordinator = start(policy(path, OnFailure::Continue)).await;
    let mut events = coordinator.events();
    let outcome = train(coordinator, 1).await;
    assert_eq!((outcome.exit_code, outcome.failure), (exit::DONE, None), "{}", outcome.reason);
    let report = report_of(path);
    assert_eq!(report.checkpoints, report::Checkpoints { saved: 2, failed: 1 });
    assert_eq!((report.steps, report.warnings.len()), (STEPS, 1));
    let warning = &report.warnings[0];
    assert!(warning.contains("the checkpoint of step 4 could not be saved (1 so far)"), "{warning}");
    let mut failed = Vec::new();
    while let Ok(event) = events.recv().await {
        if let RunEvent::CheckpointFailed { step, .. } = event {
            failed.push(step);
        }
    }
    assert_eq!(failed, [4]);
}

#[tokio::test]
async fn the_last_checkpoint_must_be_saved_in_any_case() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let blocked = block(path, STEPS);
    let outcome = train_as_far_as_it_goes(start(policy(path, OnFailure::Continue)).await).await;
    let failure = outcome.failure.unwrap();
    assert_eq!((outcome.exit_code, failure.code), (exit::FAILED, ErrorCode::StorageFailed));
    assert!(failure.message.starts_with("the checkpoint of the last step, 5, cannot be saved: "), "{failure}");
    assert!(outcome.adapter.is_none() && !report_of(path).finished);
    fs::remove_dir_all(blocked.parent().unwrap()).unwrap();
    let coordinator = start(policy(path, OnFailure::Continue)).await;
    assert_eq!(coordinator.progress().borrow().checkpoint, Some(4));
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
}
