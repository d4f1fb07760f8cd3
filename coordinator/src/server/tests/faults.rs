//! Workers that vanish, hang or lie.

use super::{
    worker::{describe, files, state},
    *,
};
use ballast_proto::{
    exit,
    v1::{
        Draining, Generation, GenerationFormed, Heartbeat, Hello, NextTaskRequest, StateHeader, StateSource,
        StepReport, StepShard, WorkerMessage, coordinator_message::Message, evaluation_client::EvaluationClient,
        membership_client::MembershipClient, worker_message,
    },
};
use bytes::Bytes;

/// Two workers in a generation.
async fn pair(coordinator: &Coordinator) -> [(FakeWorker, GenerationFormed); 2] {
    let address = coordinator.local_addr();
    let mut a = FakeWorker::join(address, "a").await.unwrap();
    let mut b = FakeWorker::join(address, "b").await.unwrap();
    let (formed_a, formed_b) = tokio::join!(a.formed(), b.formed());
    [(a, formed_a.unwrap()), (b, formed_b.unwrap())]
}

async fn first_shard(worker: &FakeWorker, formed: &GenerationFormed) -> StepShard {
    worker.shards(formed.generation).await.unwrap().message().await.unwrap().unwrap()
}

/// A run that is over, but for its last files, whose worker is still there.
async fn trained(directory: &Path) -> (Coordinator, FakeWorker) {
    let coordinator = start(options(run_file(directory, |_| ()))).await;
    let mut worker = FakeWorker::join(coordinator.local_addr(), "w").await.unwrap();
    let formed = worker.formed().await.unwrap();
    worker.train(&formed).await.unwrap();
    (coordinator, worker)
}

#[tokio::test]
async fn no_adapter_is_published_when_the_last_checkpoint_does_not_verify() {
    let directory = tempfile::tempdir().unwrap();
    let (coordinator, mut worker) = trained(directory.path()).await;
    let last = directory.path().join("checkpoints/step-00000005.g1/adapter_model.safetensors");
    let mut bytes = std::fs::read(&last).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&last, bytes).unwrap();
    worker.goodbye().await;
    drop(worker);
    let outcome = coordinator.wait().await;
    let failure = outcome.failure.unwrap();
    assert_eq!((outcome.exit_code, failure.code), (exit::FAILED, ErrorCode::CheckpointCorrupt));
    assert!(failure.message.contains("the last step (5)"), "{failure}");
    assert!(outcome.adapter.is_none() && !directory.path().join("adapter").exists());
}

#[tokio::test]
async fn a_ledger_that_proves_nothing_fails_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let (coordinator, mut worker) = trained(directory.path()).await;
    let ledger = directory.path().join("ledger");
    let lines = std::fs::read_to_string(&ledger).unwrap();
    // The second step's record is gone; every line that is left verifies.
    let kept: String = lines.split_inclusive('\n').filter(|line| !line.contains("\"step\":2,")).collect();
    assert!(kept.len() < lines.len());
    std::fs::write(&ledger, kept).unwrap();
    worker.goodbye().await;
    drop(worker);
    let failure = coordinator.wait().await.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::LedgerCorrupt);
    assert!(failure.message.contains("step 3 follows step 1"), "{failure}");
}

async fn two_workers(directory: &Path) -> Coordinator {
    start(options(run_file(directory, |run| run.cluster.workers = 2))).await
}

#[tokio::test]
async fn a_lost_worker_ends_the_generation_for_all_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = two_workers(directory.path()).await;
    let [(mut a, first), (b, _)] = pair(&coordinator).await;
    drop(b);
    let Some(Message::AbortGeneration(abort)) = a.next().await.unwrap() else {
        panic!("the generation is not aborted")
    };
    assert!(abort.reason.contains("connection of worker 2 (b) broke"), "{}", abort.reason);
    a.back_from_start(first.generation).await;
    let second = a.enters().await.unwrap();
    assert_eq!((second.world_size, second.start_step), (1, 0));
    assert_eq!(a.shards(first.generation).await.unwrap_err().code, ErrorCode::StaleGeneration);
    a.train(&second).await.unwrap();
    a.goodbye().await;
    drop(a);
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
    assert_eq!((proof(directory.path()).head, proof(directory.path()).complete_epochs), (STEPS, 1));
}

/// Step 2 is applied by both; only `a` lives to say so, and a third worker takes its state over.
#[tokio::test]
async fn a_state_is_handed_over_to_a_worker_that_joins() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = two_workers(directory.path()).await;
    let [(mut a, first), (b, first_b)] = pair(&coordinator).await;
    let shard = first_shard(&a, &first).await;
    a.report(&shard).await;
    b.report(&first_shard(&b, &first_b).await).await;
    drop(b);
    assert!(matches!(a.next().await.unwrap(), Some(Message::AbortGeneration(_))));
    a.back(first.generation, FakeWorker::report_of(&shard)).await;
    let second = a.enters().await.unwrap();
    assert_eq!((second.start_step, second.state_source(), second.hand_over), (1, StateSource::Memory, false));
    let mut shards = a.shards(second.generation).await.unwrap();
    let c = FakeWorker::join(coordinator.local_addr(), "c").await.unwrap();
    c.ready().await;
    // Shards end at the boundary at which the new worker enters.
    let mut newest = shard;
    while let Some(shard) = shards.message().await.unwrap() {
        assert!(!shard.last);
        a.report(&shard).await;
        newest = shard;
    }
    a.back(second.generation, FakeWorker::report_of(&newest)).await;
    let third = a.enters().await.unwrap();
    assert_eq!((third.start_step, third.state_source(), third.hand_over), (newest.step, StateSource::Memory, true));
    let c = tokio::spawn(async move {
        let mut c = c;
        let third = c.enters().await.unwrap();
        assert_eq!((third.state_source(), third.rank), (StateSource::Peer, 1));
        c.train(&third).await.unwrap();
        c.goodbye().await;
    });
    a.train(&third).await.unwrap();
    a.goodbye().await;
    drop(a);
    c.await.unwrap();
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
    let proof = proof(directory.path());
    assert_eq!((proof.head, proof.complete_epochs, proof.redone), (STEPS, 1, 0));
    assert!(report_of(directory.path()).generations.len() >= 2, "the second may have ended before its first step");
}

#[tokio::test]
async fn when_all_are_lost_others_go_on_from_the_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let formed = a.formed().await.unwrap();
    let mut shards = a.shards(formed.generation).await.unwrap();
    for step in 1..=3 {
        let shard = shards.message().await.unwrap().unwrap();
        a.report(&shard).await;
        if step == 2 {
            a.upload(a.header(formed.generation, 2), &files(2)).await.unwrap();
        }
    }
    let mut progress = coordinator.progress();
    progress.wait_for(|p| p.step == 3).await.unwrap();
    drop((a, shards));
    progress.wait_for(|p| p.waiting.contains("0 of at least 1 workers are ready")).await.unwrap();
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
    let proof = proof(directory.path());
    assert_eq!((proof.head, proof.complete_epochs, proof.redone), (STEPS, 1, 1));
}

/// Its checkpoint travels when the generation is over: it is taken all the same, and then it is let go.
#[tokio::test]
async fn the_last_worker_hands_its_state_to_the_store_and_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| {
        run.checkpoint.every = 0;
        run.cluster.prefetch_steps = 1;
    })))
    .await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let formed = a.formed().await.unwrap();
    let mut shards = a.shards(formed.generation).await.unwrap();
    let mut newest = shards.message().await.unwrap().unwrap();
    a.send(worker_message::Message::Draining(Draining { reason: "the worker received SIGTERM".into() })).await;
    a.report(&newest).await;
    while let Some(shard) = shards.message().await.unwrap() {
        a.report(&shard).await;
        newest = shard;
    }
    assert!(newest.checkpoint_after && !newest.last && newest.step < STEPS, "{newest:?}");
    a.back(formed.generation, FakeWorker::report_of(&newest)).await;
    a.upload(a.header(formed.generation, newest.step), &files(newest.step)).await.unwrap();
    let (_, goodbye) = a.goodbye().await;
    assert_eq!(goodbye.exit_code, u32::from(exit::RETRY));
    drop((a, shards));
    assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
    assert_eq!(proof(directory.path()).redone, 0);
}

#[tokio::test]
async fn a_new_coordinator_records_a_step_that_the_old_one_did_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let coordinator = start(options(run_file(path, |_| ()))).await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let formed = a.formed().await.unwrap();
    let mut shards = a.shards(formed.generation).await.unwrap();
    a.report(&shards.message().await.unwrap().unwrap()).await;
    let unheard = FakeWorker::report_of(&shards.message().await.unwrap().unwrap());
    coordinator.progress().wait_for(|p| p.step == 1).await.unwrap();
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    drop((a, shards));
    coordinator.wait().await;

    let coordinator = start(options(run_file(path, |_| ()))).await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    a.back(None, unheard).await;
    let formed = a.enters().await.unwrap();
    assert_eq!((formed.start_step, formed.state_source()), (2, StateSource::Memory));
    a.train(&formed).await.unwrap();
    a.goodbye().await;
    drop(a);
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
    let proof = proof(path);
    assert_eq!((proof.head, proof.complete_epochs, proof.redone), (STEPS, 1, 0));
}

#[tokio::test]
async fn a_silent_worker_loses_its_lease() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |run| {
        run.cluster.workers = 2;
        run.cluster.heartbeat_ms = 20;
        run.cluster.lease_ms = 400;
    })))
    .await;
    let [(a, _), (mut b, _)] = pair(&coordinator).await;
    let beating = tokio::spawn(async move {
        let mut beats = tokio::time::interval(Duration::from_millis(20));
        loop {
            beats.tick().await;
            a.send(worker_message::Message::Heartbeat(Heartbeat { progress: 0, phase: 2 })).await;
        }
    });
    let failure = loop {
        match b.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("dismissed without a reason"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.code, ErrorCode::LeaseExpired);
    assert!(failure.message.contains("worker 2 (b) was silent"), "{failure}");
    coordinator.progress().wait_for(|p| p.workers.len() == 1).await.unwrap();
    beating.abort();
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    coordinator.wait().await;
}

#[tokio::test]
async fn messages_of_other_generations_and_strangers_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
    let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let early = a.shards(Some(Generation::new(1, 1))).await.unwrap_err();
    assert_eq!(early.code, ErrorCode::StaleGeneration);
    let formed = a.formed().await.unwrap();
    for generation in [None, Some(Generation::new(1, 2)), Some(Generation::new(0, 1))] {
        assert_eq!(a.shards(generation).await.unwrap_err().code, ErrorCode::StaleGeneration);
        assert_eq!(
            a.download(generation, 0, StateSource::Checkpoint).await.unwrap_err().code,
            ErrorCode::StaleGeneration
        );
        let header = a.header(generation, 1);
        assert_eq!(a.upload(header, &files(1)).await.unwrap_err().code, ErrorCode::StaleGeneration);
        let request = NextTaskRequest { worker_id: a.id, generation };
        let status = EvaluationClient::new(a.channel.clone()).next_task(request).await.unwrap_err();
        assert_eq!(Failure::from(status).code, ErrorCode::StaleGeneration);
    }
    a.id += 1;
    assert_eq!(a.shards(formed.generation).await.unwrap_err().code, ErrorCode::UnknownWorker);
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    drop(a);
    coordinator.wait().await;
}

#[tokio::test]
async fn forged_reports_end_the_session_with_the_reason() {
    type Forge = fn(StepReport) -> StepReport;
    let forged: [(Forge, ErrorCode); 4] = [
        (|r| StepReport { step: 3, ..r }, ErrorCode::BadMessage),
        (|r| StepReport { tokens: r.tokens + 1, ..r }, ErrorCode::BadMessage),
        (|r| StepReport { state_sha256: Bytes::new(), ..r }, ErrorCode::BadMessage),
        (|r| StepReport { generation: Some(Generation::new(9, 9)), ..r }, ErrorCode::BadMessage),
    ];
    for (forge, code) in forged {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
        let mut a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
        let formed = a.formed().await.unwrap();
        let shard = first_shard(&a, &formed).await;
        a.send(worker_message::Message::StepReport(forge(FakeWorker::report_of(&shard)))).await;
        assert_eq!(a.next().await.unwrap_err().code, code);
        drop(a);
        // The run is none the worse for it.
        assert_eq!(train(coordinator, 1).await.exit_code, exit::DONE);
        assert_eq!((proof(directory.path()).head, proof(directory.path()).redone), (STEPS, 0));
    }
}

#[tokio::test]
async fn ranks_that_disagree_stop_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = two_workers(directory.path()).await;
    let [(a, formed), (b, formed_b)] = pair(&coordinator).await;
    let shard = first_shard(&a, &formed).await;
    a.report(&shard).await;
    let mut report = FakeWorker::report_of(&first_shard(&b, &formed_b).await);
    report.state_sha256 = state(99);
    b.send(worker_message::Message::StepReport(report)).await;
    let outcome = {
        let (mut a, mut b) = (a, b);
        tokio::join!(a.goodbye(), b.goodbye());
        drop((a, b));
        coordinator.wait().await
    };
    assert_eq!((outcome.exit_code, outcome.failure.unwrap().code), (exit::FAILED, ErrorCode::StateDiverged));
}

#[tokio::test]
async fn uploads_are_checked_before_anything_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = two_workers(directory.path()).await;
    let [(a, formed), (b, formed_b)] = pair(&coordinator).await;
    let shard = first_shard(&a, &formed).await;
    a.report(&shard).await;
    b.report(&first_shard(&b, &formed_b).await).await;
    let good = files(1);
    let renamed = |name: &str| [(name.to_owned(), good[0].1.clone()), good[1].clone()];
    let header = |files: &[(String, Vec<u8>)]| StateHeader { files: describe(files), ..a.header(formed.generation, 1) };
    let refused = async |header: StateHeader, files: &[(String, Vec<u8>)]| a.upload(header, files).await.unwrap_err();

    for name in ["../../adapter_model.safetensors", "/etc/passwd", "manifest.json", ""] {
        let files = renamed(name);
        let failure = refused(header(&files), &files).await;
        assert_eq!(failure.code, ErrorCode::BadMessage);
        assert!(failure.message.contains("unexpected file"), "{failure}");
    }
    let mut huge = header(&good);
    huge.files[0].size = 1 << 40;
    assert!(refused(huge, &good).await.message.contains("at most"));
    let mut long = good.clone();
    long[1].1.push(0);
    assert!(refused(header(&good), &long).await.message.contains("more than the"));
    let mut short = good.clone();
    short[1].1.pop();
    assert!(refused(header(&good), &short).await.message.contains("were announced"));
    let mut flipped = good.clone();
    flipped[0].1[300] ^= 1;
    assert!(refused(header(&good), &flipped).await.message.contains("not the announced one"));
    let nan = {
        let mut files = good.clone();
        let end = files[0].1.len();
        files[0].1[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        files
    };
    assert!(refused(header(&nan), &nan).await.message.contains("not finite"));
    assert!(refused(header(&files(2)), &files(2)).await.message.contains("not of step 1"));
    let other_state = StateHeader { state_sha256: state(2), ..header(&good) };
    assert_eq!(refused(other_state, &good).await.code, ErrorCode::StateDiverged);
    let beyond = StateHeader { step: 50, ..header(&good) };
    assert!(refused(beyond, &good).await.message.contains("step 50"));
    let not_rank_0 = StateHeader { worker_id: b.id, ..header(&good) };
    assert!(refused(not_rank_0, &good).await.message.contains("rank 1 uploaded a state that nobody asked it for"));
    assert!(store(directory.path()).list("checkpoints").unwrap().is_empty());

    a.upload(header(&good), &good).await.unwrap();
    a.upload(header(&good), &good).await.unwrap();
    assert_eq!(store(directory.path()).list("checkpoints").unwrap().len(), 5);
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    drop((a, b));
    assert_eq!(coordinator.wait().await.exit_code, exit::RETRY);
}

#[tokio::test]
async fn a_checkpoint_waits_for_its_step_to_be_committed() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = two_workers(directory.path()).await;
    let [(a, formed), (b, formed_b)] = pair(&coordinator).await;
    let shard = first_shard(&a, &formed).await;
    a.report(&shard).await;
    // Rank 1 has not reported, so the step is not committed and the upload must wait.
    let state = files(1);
    let upload = a.upload(a.header(formed.generation, 1), &state);
    let other = first_shard(&b, &formed_b).await;
    let commit = async {
        // The step stays uncommitted as long as only one rank has reported it.
        assert_eq!(coordinator.progress().borrow().step, 0);
        b.report(&other).await;
    };
    let (uploaded, ()) = tokio::join!(upload, commit);
    uploaded.unwrap();
    assert_eq!(coordinator.progress().borrow().step, 1);
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    drop((a, b));
    coordinator.wait().await;
}

#[tokio::test]
async fn a_session_begins_with_hello_and_is_opened_once() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(options(run_file(directory.path(), |_| ()))).await;
    let a = FakeWorker::join(coordinator.local_addr(), "a").await.unwrap();
    let open = async |message: worker_message::Message| {
        let first = tokio_stream::once(WorkerMessage { message: Some(message) });
        let status = MembershipClient::new(a.channel.clone()).session(first).await.unwrap_err();
        Failure::from(status).code
    };
    let hello = |worker_id| worker_message::Message::Hello(Hello { worker_id });
    let heartbeat = worker_message::Message::Heartbeat(Heartbeat { progress: 0, phase: 0 });
    assert_eq!(open(heartbeat).await, ErrorCode::BadMessage);
    assert_eq!(open(hello(a.id)).await, ErrorCode::BadMessage);
    assert_eq!(open(hello(99)).await, ErrorCode::UnknownWorker);
    // The worker that has the session is none the worse for it.
    assert_eq!(a.work().await.unwrap().len() as u64, STEPS);
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
}

#[tokio::test]
async fn a_lost_evaluator_leaves_its_task_to_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = start(with_evaluation(options(run_file(directory.path(), |run| run.cluster.workers = 2)))).await;
    let [(mut a, formed), (mut b, formed_b)] = pair(&coordinator).await;
    let (trained_a, trained_b) = tokio::join!(a.train(&formed), b.train(&formed_b));
    trained_a.unwrap();
    trained_b.unwrap();
    assert!(matches!(a.next().await.unwrap(), Some(Message::Evaluate(_))));
    assert!(matches!(b.next().await.unwrap(), Some(Message::Evaluate(_))));
    let request = NextTaskRequest { worker_id: a.id, generation: formed.generation };
    let held = EvaluationClient::new(a.channel.clone()).next_task(request).await.unwrap().into_inner();
    assert!(!held.done);
    let others = tokio::spawn(async move { b.finish_evaluation(formed_b.generation).await });
    drop(a);
    others.await.unwrap().unwrap();
    assert_eq!(coordinator.wait().await.exit_code, exit::DONE);
    assert_eq!(report_of(directory.path()).evaluation.unwrap().heldout.unwrap().samples, 2);
}
