//! Runs in which nothing goes wrong.

use super::{worker::connect, *};
use ballast_proto::{
    exit,
    v1::{coordinator_message::Message, membership_client::MembershipClient},
};
use std::collections::BTreeSet;

#[tokio::test]
async fn a_run_completes_with_any_number_of_workers_and_the_same_result() {
    let mut hashes = BTreeSet::new();
    for workers in 1..=3 {
        let directory = tempfile::tempdir().unwrap();
        let resolved = run_file(directory.path(), |run| run.cluster.workers = workers);
        let coordinator = start(with_evaluation(options(resolved))).await;
        let outcome = train(coordinator, workers as usize).await;
        assert_eq!((outcome.exit_code, &outcome.failure), (exit::DONE, &None), "{}", outcome.reason);

        let proof = proof(directory.path());
        assert_eq!((proof.head, proof.complete_epochs, proof.in_progress, proof.redone), (STEPS, 1, 0, 0));
        let report = report_of(directory.path());
        assert!(report.finished);
        assert_eq!(
            (report.steps, report.losses.len(), report.workers.len()),
            (STEPS, STEPS as usize, workers as usize)
        );
        assert_eq!(report.generations.len(), 1);
        let adapter = std::fs::read(outcome.adapter.unwrap().join("adapter_model.safetensors")).unwrap();
        assert_eq!(report.adapter.unwrap().sha256, sha256_hex(&adapter));
        assert_eq!(adapter, worker::files(STEPS)[0].1);
        hashes.insert(sha256_hex(&adapter));

        let evaluation = report.evaluation.unwrap();
        let heldout = evaluation.heldout.unwrap();
        assert_eq!((heldout.samples, heldout.base.first, heldout.tuned.first), (2, Some(2.0), Some(1.0)));
        let probes = evaluation.probes.unwrap();
        assert_eq!((probes.base.strict, probes.tuned.strict), (1.0, 0.0));
        assert_eq!((evaluation.samples[0].prompt.as_str(), evaluation.prefix_leak_rate), ("sample", Some(1.0)));
    }
    assert_eq!(hashes.len(), 1);
}

#[tokio::test]
async fn the_run_directory_has_the_documented_layout() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| run.checkpoint.keep = 2))).await;
    train(coordinator, 1).await;
    let names = store(directory.path()).list("").unwrap();
    let expected = [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "checkpoints/step-00000004.g1/adapter_config.json",
        "checkpoints/step-00000004.g1/adapter_model.safetensors",
        "checkpoints/step-00000004.g1/manifest.json",
        "checkpoints/step-00000004.g1/optimizer.safetensors",
        "checkpoints/step-00000004.g1/state.json",
        "checkpoints/step-00000005.g1/adapter_config.json",
        "checkpoints/step-00000005.g1/adapter_model.safetensors",
        "checkpoints/step-00000005.g1/manifest.json",
        "checkpoints/step-00000005.g1/optimizer.safetensors",
        "checkpoints/step-00000005.g1/state.json",
        "epochs/00000001",
        "latest",
        "ledger",
        "metrics/steps.jsonl",
        "report.json",
        "run.json",
    ];
    assert_eq!(names, expected);
    let lines = std::fs::read_to_string(directory.path().join("metrics/steps.jsonl")).unwrap();
    assert_eq!(lines.lines().count() as u64, STEPS);
}

#[tokio::test]
async fn every_micro_batch_goes_to_exactly_one_rank() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| run.cluster.workers = 2))).await;
    let address = coordinator.local_addr();
    let work = async |name: &str| FakeWorker::join(address, name).await.unwrap().work().await.unwrap();
    let (a, b) = tokio::join!(work("a"), work("b"));
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
    for (a, b) in a.iter().zip(&b) {
        let indices: Vec<u32> = a.micro_batches.iter().chain(&b.micro_batches).map(|m| m.index).collect();
        let distinct: BTreeSet<u32> = indices.iter().copied().collect();
        assert_eq!((indices.len(), distinct.len()), (a.step_micro_batches as usize, a.step_micro_batches as usize));
        let tokens = [a, b].into_iter().flat_map(|s| &s.micro_batches).flat_map(|m| &m.sequences);
        assert_eq!(tokens.map(|s| s.token_ids.len() as u64).sum::<u64>(), a.step_tokens);
        assert_eq!((a.checkpoint_after, a.last), (a.step % 2 == 0 || a.step == STEPS, a.step == STEPS));
    }
}

#[tokio::test]
async fn a_stop_marks_the_first_shard_that_was_not_streamed_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| run.cluster.prefetch_steps = 1))).await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let formed = a.formed().await.unwrap();
    let mut shards = a.shards(formed.generation).await.unwrap();
    let mut next = async || shards.message().await.unwrap();
    a.report(&next().await.unwrap()).await;
    let ahead = [next().await.unwrap(), next().await.unwrap()];
    coordinator.stopper().request_stop("SIGTERM").await;
    match a.next().await.unwrap() {
        Some(Message::StopAfter(stop)) => assert_eq!(stop.step, 4),
        other => panic!("{other:?}"),
    }
    // Had the fourth shard gone out before the stop, it could not carry these marks.
    a.report(&ahead[0]).await;
    let last = next().await.unwrap();
    assert_eq!((last.step, last.checkpoint_after, last.last), (4, true, true));
    assert_eq!(next().await, None);
    a.report(&ahead[1]).await;
    a.report(&last).await;
    a.upload(a.header(formed.generation, 4), &worker::files(4)).await.unwrap();
    assert_eq!(a.goodbye().await.1.exit_code, u32::from(exit::RETRY));
    drop((a, shards));
    assert_eq!(coordinator.wait().await.exit_code, exit::RETRY);
}

#[tokio::test]
async fn the_spec_tells_a_worker_all_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| run.lora.rslora = true))).await;
    let worker = FakeWorker::join(coordinator.local_addr(), "w").await.unwrap();
    let spec = worker.spec.clone();
    assert_eq!((spec.run_name.as_str(), spec.run_id.as_str(), spec.total_steps), ("test", "test-1", STEPS));
    let (lora, model) = (spec.lora.unwrap(), spec.base_model.unwrap());
    assert_eq!((model.source.as_str(), model.sha256.as_str()), ("hf:org/model", "model"));
    assert_eq!((lora.rank, lora.scaling, lora.target_modules), (2, 32.0 / 2f64.sqrt(), vec!["q_proj".to_owned()]));
    worker.work().await.unwrap();
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
}

#[tokio::test]
async fn health_is_served() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
    let mut health = HealthClient::new(connect(coordinator.local_addr()).await);
    for service in ["", "ballast.v1.Membership"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    coordinator.stopper().request_stop("enough").await;
    drop(health);
    coordinator.wait().await;
}

#[tokio::test]
async fn people_see_what_happens() {
    let directory = tempfile::tempdir().unwrap();
    let mut coordinator = start(options(run_file(directory.path(), |run| run.cluster.workers = 5))).await;
    let mut events = coordinator.events();
    let progress = coordinator.progress();
    train(coordinator, 5).await;
    let mut kinds = Vec::new();
    while let Ok(event) = events.recv().await {
        if let RunEvent::Warning { message } = &event {
            assert!(message.contains("at most 4 workers"), "{message}");
        }
        kinds.push(serde_json::to_value(&event).unwrap()["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds[..2], ["listening", "warning"]);
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!((count("worker_joined"), count("worker_ready"), count("generation_formed")), (5, 5, 1));
    assert_eq!((count("step"), count("checkpoint")), (5, 3));
    let last = progress.borrow();
    assert_eq!((last.phase, last.step, last.checkpoint), (RunPhase::Over, STEPS, Some(STEPS)));
    assert!(last.tokens_per_second.is_some() && last.loss == Some(1.0 / STEPS as f64));
}

#[tokio::test]
async fn strangers_are_refused_at_the_door() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
    let mut membership = MembershipClient::new(connect(coordinator.local_addr()).await);
    let mut request = worker::join_request("old");
    request.version = "0.0.0".into();
    let code = |status: tonic::Status| Failure::from(status).code;
    assert_eq!(code(membership.join(request).await.unwrap_err()), ErrorCode::VersionMismatch);
    let first = FakeWorker::join(coordinator.local_addr(), "first").await.unwrap();
    let surplus = membership.join(worker::join_request("surplus")).await.unwrap_err();
    assert_eq!(code(surplus), ErrorCode::RunFull);
    drop((first, membership));
    coordinator.stopper().request_stop("enough").await;
    assert_eq!(coordinator.wait().await.exit_code, exit::RETRY);
}
