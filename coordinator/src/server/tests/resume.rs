//! Stopping, resuming, and run directories that are not what they should be.

use super::*;
use crate::config::Resume;
use ballast_proto::exit;
use std::{fs, io::Write};

/// A run that is stopped before its first step is reported: that step and the next are trained.
async fn stopped_run(directory: &Path) -> RunOutcome {
    let coordinator = start(options(run_file(directory, |_| ()))).await;
    let mut worker = FakeWorker::join(coordinator.local_addr(), "w").await.unwrap();
    let formed = worker.formed().await.unwrap();
    coordinator.stopper().request_stop("SIGTERM").await;
    worker.train(&formed).await.unwrap();
    worker.goodbye().await;
    drop(worker);
    coordinator.wait().await
}

#[tokio::test]
async fn a_stopped_run_resumes_with_another_number_of_workers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let outcome = stopped_run(path).await;
    assert_eq!(outcome.exit_code, exit::RETRY, "{}", outcome.reason);
    assert_eq!((report_of(path).steps, report_of(path).finished), (2, false));
    assert!(outcome.checkpoint.unwrap().ends_with("checkpoints/step-00000002.g1"));

    let coordinator = start(options(run_file(path, |run| run.cluster.workers = 2))).await;
    assert_eq!(coordinator.progress().borrow().start_step, 2);
    assert_eq!(train(coordinator, 2).await.exit_code, exit::DONE);
    let proof = proof(path);
    assert_eq!((proof.head, proof.complete_epochs, proof.redone), (STEPS, 1, 0));
    let report = report_of(path);
    assert_eq!(report.generations.iter().map(|g| g.generation.as_str()).collect::<Vec<_>>(), ["1.1", "2.2"]);
    assert_eq!(report.losses.len() as u64, STEPS);
}

#[tokio::test]
async fn a_finished_run_says_so_and_more_steps_continue_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    train(start(options(run_file(path, |_| ()))).await, 1).await;
    match Coordinator::start(options(run_file(path, |_| ()))).await.unwrap() {
        Started::Finished(outcome) => {
            assert_eq!(outcome.exit_code, exit::DONE);
            assert!(outcome.reason.contains("already complete after 5 steps"), "{}", outcome.reason);
            assert!(outcome.adapter.unwrap().join("adapter_config.json").is_file());
        }
        Started::Running(_) => panic!("a finished run was started again"),
    }
    let longer = start(options(run_file(path, |run| run.train.epochs = 2))).await;
    assert_eq!(train(longer, 1).await.exit_code, exit::DONE);
    let proof = proof(path);
    assert_eq!((proof.head, proof.complete_epochs), (2 * STEPS, 2));
    let shorter = refused(options(run_file(path, |_| ()))).await;
    assert_eq!(shorter.code, ErrorCode::CheckpointMismatch);
}

#[tokio::test]
async fn only_the_evaluation_is_left_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    train(start(options(run_file(path, |_| ()))).await, 1).await;
    fs::remove_file(path.join("report.json")).unwrap();
    let again = start(with_evaluation(options(run_file(path, |_| ())))).await;
    assert_eq!(train(again, 1).await.exit_code, exit::DONE);
    assert_eq!(report_of(path).evaluation.unwrap().heldout.unwrap().samples, 2);
}

#[tokio::test]
async fn a_corrupt_newest_checkpoint_makes_the_run_go_back_and_prove_its_steps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    train(start(options(run_file(path, |_| ()))).await, 1).await;
    fs::remove_file(path.join("report.json")).unwrap();
    let newest = path.join("checkpoints/step-00000005.g1/adapter_model.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();

    let coordinator = start(options(run_file(path, |_| ()))).await;
    let warnings = coordinator.progress().borrow().warnings.clone();
    assert!(warnings[0].contains("passed over checkpoints/step-00000005.g1"), "{warnings:?}");
    let progress = coordinator.progress();
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
    let warnings = progress.borrow().warnings.clone();
    assert!(warnings[1].contains("1 steps after step 4 are trained again"), "{warnings:?}");
    let proof = proof(path);
    assert_eq!((proof.head, proof.complete_epochs, proof.redone), (STEPS, 1, 1));
}

#[tokio::test]
async fn a_redone_step_that_leads_elsewhere_stops_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    train(start(options(run_file(path, |_| ()))).await, 1).await;
    fs::remove_file(path.join("report.json")).unwrap();
    fs::remove_dir_all(path.join("checkpoints/step-00000005.g1")).unwrap();
    let coordinator = start(options(run_file(path, |_| ()))).await;
    let mut worker = FakeWorker::join(coordinator.local_addr(), "w").await.unwrap();
    let formed = worker.formed().await.unwrap();
    let shard = worker.shards(formed.generation).await.unwrap().message().await.unwrap().unwrap();
    let mut report = FakeWorker::report_of(&shard);
    report.state_sha256 = worker::state(77);
    worker.send(ballast_proto::v1::worker_message::Message::StepReport(report)).await;
    worker.goodbye().await;
    drop(worker);
    let outcome = coordinator.wait().await;
    assert_eq!((outcome.exit_code, outcome.failure.unwrap().code), (exit::FAILED, ErrorCode::StateDiverged));
}

#[tokio::test]
async fn a_torn_ledger_is_repaired_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    stopped_run(path).await;
    let mut ledger = fs::OpenOptions::new().append(true).open(path.join("ledger")).unwrap();
    ledger.write_all(b"{\"kind\":\"step\",\"st").unwrap();
    let coordinator = start(options(run_file(path, |_| ()))).await;
    let warnings = coordinator.progress().borrow().warnings.clone();
    assert!(warnings[0].contains("cut off a torn last line"), "{warnings:?}");
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
    proof(path);
}

#[tokio::test]
async fn a_damaged_ledger_and_lost_checkpoints_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    stopped_run(path).await;
    for entry in fs::read_dir(path.join("checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("state.json"), "{}").unwrap();
    }
    assert_eq!(refused(options(run_file(path, |_| ()))).await.code, ErrorCode::CheckpointCorrupt);
    let mut bytes = fs::read(path.join("ledger")).unwrap();
    bytes[10] ^= 1;
    fs::write(path.join("ledger"), bytes).unwrap();
    assert_eq!(refused(options(run_file(path, |_| ()))).await.code, ErrorCode::LedgerCorrupt);
}

#[tokio::test]
async fn a_resumed_run_keeps_its_arithmetic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    stopped_run(path).await;
    let coordinator = start(options(run_file(path, |_| ()))).await;
    let mut other = FakeWorker::join(coordinator.local_addr(), "other").await.unwrap();
    other.ready_with("avx512").await;
    let failure = other.next().await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::NumericsMismatch);
    assert!(failure.message.contains("its arithmetic is \"avx512\", the run's is \"none\""), "{failure}");
    drop(other);
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let first = start(options(run_file(path, |_| ()))).await;
    let second = refused(options(run_file(path, |_| ()))).await;
    assert_eq!(second.code, ErrorCode::RunDirectoryInUse);
    assert!(second.message.contains("another coordinator is running"), "{second}");
    first.stopper().request_stop("enough").await;
    first.wait().await;

    assert_eq!(
        refused(options(run_file(path, |run| run.checkpoint.resume = Resume::Never))).await.code,
        ErrorCode::RunDirectoryInUse
    );
    assert_eq!(
        refused(options(run_file(path, |run| run.run.name = "other".into()))).await.code,
        ErrorCode::RunDirectoryInUse
    );
    let mut other_data = options(run_file(path, |_| ()));
    other_data.data.sha256 = "other".into();
    let failure = refused(other_data).await;
    assert_eq!(failure.code, ErrorCode::CheckpointMismatch);
    assert!(failure.message.contains("prepared data (data there, other here)"), "{failure}");
}

#[tokio::test]
async fn addresses_that_cannot_or_must_not_be_listened_on_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let bind = |address: &str| options(run_file(directory.path(), |run| run.cluster.bind = address.to_owned()));
    assert_eq!(refused(bind("0.0.0.0:0")).await.code, ErrorCode::InsecureBind);
    assert_eq!(refused(bind("nonsense")).await.code, ErrorCode::BindFailed);
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(refused(bind(&taken.local_addr().unwrap().to_string())).await.code, ErrorCode::BindFailed);
    assert!(!directory.path().join("run.json").exists(), "nothing was begun");
}
