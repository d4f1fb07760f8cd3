//! The session against a coordinator that says what the test wants.

mod adder;
mod endings;
mod fake;
mod nccl;

use crate::collective::{AbortHandle, RingConfig, TcpRing};
use crate::progress::Progress;
use adder::{Adder, download_of};
use ballast_proto::v1::coordinator_message::Message as Order;
use ballast_proto::v1::next_task_response::Task;
use ballast_proto::v1::worker_message::Message;
use ballast_proto::v1::{
    AbortGeneration, EvaluatePhase, Generation, Goodbye, Phase, ScoreTask, StateSource, StopAfter, task_result,
};
use ballast_proto::{ErrorCode, Failure};
use fake::{Fake, G1, G2, in_time, never, signals, wrong_model};
use std::net::TcpListener;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

fn goodbye(exit_code: u32) -> Order {
    Order::Goodbye(Goodbye { reason: "that is all".into(), exit_code, ..Goodbye::default() })
}

fn abort(generation: Generation) -> Order {
    Order::AbortGeneration(AbortGeneration { generation: Some(generation), reason: "worker 2 is gone".into() })
}

async fn outcome(worker: JoinHandle<Result<u8, Failure>>) -> Result<u8, Failure> {
    in_time("the worker's end", worker).await.unwrap()
}

async fn error(worker: JoinHandle<Result<u8, Failure>>) -> Failure {
    outcome(worker).await.unwrap_err()
}

#[tokio::test]
async fn a_refusal_is_final_and_keeps_its_code_and_text() {
    let refusal = Failure::new(ErrorCode::VersionMismatch, "the coordinator is 0.2.0, this worker 0.1.0");
    let fake = Fake::with(|shared| *shared.refusal.lock().unwrap() = Some(refusal)).await;
    let failure = error(fake.worker(Adder::default(), never())).await;
    assert_eq!(failure.code, ErrorCode::VersionMismatch);
    let text = format!("coordinator {} refused this worker: the coordinator is 0.2.0, this worker 0.1.0", fake.url);
    assert_eq!(failure.message, text);
}

#[tokio::test]
async fn a_whole_run() {
    let mut fake = Fake::with(|shared| {
        shared.tasks.lock().unwrap().push_back(Task::Score(ScoreTask::default()));
    })
    .await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    fake.shard(G1, 2, true, true);
    assert_eq!(fake.hears_step().await, (1, 1.0));
    assert_eq!(fake.hears_step().await, (2, 3.0));
    let (header, bytes) = fake.uploaded().await;
    assert_eq!((header.worker_id, header.generation, header.step), (7, Some(G1), 2));
    assert_eq!((header.state_sha256.to_vec(), bytes), (vec![2; 32], 3_i64.to_le_bytes().to_vec()));
    fake.say(Order::Evaluate(EvaluatePhase { generation: Some(G1) }));
    let result = fake.result().await;
    assert_eq!((result.worker_id, result.generation, result.task_id), (7, Some(G1), 3));
    assert!(matches!(result.result, Some(task_result::Result::Score(score)) if score.tuned_nll == [3.0]));
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

#[tokio::test]
async fn the_goodbye_decides_the_exit_code() {
    for code in [1, 75] {
        let mut fake = Fake::start().await;
        let worker = fake.worker(Adder::default(), never());
        fake.hears_ready().await;
        fake.say(goodbye(code));
        assert_eq!(u32::from(outcome(worker).await.unwrap()), code);
    }
}

#[tokio::test]
async fn training_goes_on_while_a_snapshot_travels() {
    let mut fake = Fake::with(|shared| shared.hold_uploads = true).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, true, false);
    fake.shard(G1, 2, false, false);
    fake.shard(G1, 3, false, true);
    for step in 1..=3 {
        assert_eq!(fake.hears_step().await.0, step);
    }
    fake.release_uploads();
    assert_eq!(fake.uploaded().await.0.step, 1);
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

#[tokio::test]
async fn a_worker_with_another_model_says_so_and_leaves() {
    let mut fake = Fake::start().await;
    let worker = fake.worker_with(Box::new(|_, _| Err(wrong_model())), never());
    assert!(matches!(fake.hears().await, Message::Hello(_)));
    let Message::Leaving(leaving) = fake.hears().await else { panic!("expected to hear it leave") };
    assert_eq!((leaving.error_code.as_str(), leaving.reason.as_str()), ("B3007", "the base model has another sha256"));
    assert_eq!(error(worker).await.code, ErrorCode::ModelMismatch);
}

#[tokio::test]
async fn a_failing_step_is_the_workers_failure() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::failing_at(2), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    fake.shard(G1, 2, false, true);
    fake.hears_step().await;
    assert!(matches!(fake.hears().await, Message::Leaving(leaving) if leaving.error_code == "B6001"));
    assert_eq!(error(worker).await.code, ErrorCode::NonFinite);
}

#[tokio::test]
async fn dismissal_keeps_its_code_and_text() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.dismiss(Failure::new(ErrorCode::NumericsMismatch, "arithmetic is avx2 here and avx512 in the run"));
    let failure = error(worker).await;
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (ErrorCode::NumericsMismatch, "arithmetic is avx2 here and avx512 in the run")
    );
}

#[tokio::test]
async fn a_vanished_coordinator_ends_the_worker_with_the_retriable_code() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.vanish();
    let failure = error(worker).await;
    assert_eq!((failure.code, failure.code.exit_code()), (ErrorCode::CoordinatorUnreachable, 75));
}

#[tokio::test]
async fn a_signal_is_announced_and_ends_the_worker_with_the_retriable_code() {
    let mut fake = Fake::start().await;
    let (send, terminated) = signals();
    let worker = fake.worker(Adder::default(), terminated);
    fake.hears_ready().await;
    send.send("SIGTERM").unwrap();
    let Message::Draining(draining) = fake.hears().await else { panic!("expected to hear that it wants to leave") };
    assert_eq!(draining.reason, "the worker received SIGTERM");
    // It goes on until it is told that it can be spared.
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    assert_eq!(fake.hears_step().await.0, 1);
    fake.say(goodbye(75));
    assert_eq!(outcome(worker).await.unwrap(), 75);
}

/// A session breaks in the midst of a generation; the next one begins with what was trained.
#[tokio::test]
async fn a_worker_that_loses_its_coordinator_joins_again_and_keeps_its_state() {
    let mut fake = Fake::with(|shared| shared.rejoin_ms = 60_000).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    assert_eq!(fake.hears_step().await, (1, 1.0));
    fake.new_shards();
    fake.new_session();
    assert!(matches!(fake.hears().await, Message::Hello(_)));
    let Message::Ready(ready) = fake.hears().await else { panic!("expected it to be ready") };
    let held = ready.held.unwrap();
    assert_eq!((ready.left, held.step, held.state_sha256.to_vec()), (None, 1, vec![1; 32]));
    let [report] = &held.reports[..] else { panic!("{:?}", held.reports) };
    assert_eq!((report.generation, report.step), (Some(G1), 1));
    fake.form_handing_over(G2, 1);
    assert_eq!(fake.uploaded().await.0.step, 1);
    fake.shard(G2, 2, false, true);
    assert_eq!(fake.hears_step().await, (2, 3.0));
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

#[tokio::test]
async fn a_refusal_to_let_a_worker_in_again_is_final() {
    let mut fake = Fake::with(|shared| shared.rejoin_ms = 60_000).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.refuse(Failure::new(ErrorCode::Interrupted, "the run is over"));
    fake.new_session();
    assert_eq!(error(worker).await.code, ErrorCode::Interrupted);
}

/// Its former self has its place until the lease ends.
#[tokio::test]
async fn a_worker_that_joins_again_waits_for_its_own_place() {
    let mut fake = Fake::with(|shared| shared.rejoin_ms = 60_000).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.refuse(Failure::new(ErrorCode::RunFull, "the run already has its 1 workers"));
    fake.new_session();
    fake.hears_ready().await;
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

#[tokio::test]
async fn after_a_generation_the_worker_says_what_it_holds() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    fake.shard(G1, 2, false, true);
    fake.hears_step().await;
    fake.hears_step().await;
    let held = fake.hears_back(G1).await.unwrap();
    assert_eq!((held.step, held.state_sha256.to_vec()), (2, vec![2; 32]));
    fake.new_shards();
    fake.form(G2, StateSource::Seed, 0);
    fake.say(abort(G2));
    assert_eq!(fake.hears_back(G2).await, None);
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

#[tokio::test]
async fn training_stops_after_the_step_that_the_coordinator_names() {
    let mut fake = Fake::with(|shared| {
        shared.tasks.lock().unwrap().push_back(Task::Score(ScoreTask::default()));
    })
    .await;
    let (open, gate) = std::sync::mpsc::channel();
    let worker = fake.worker(Adder::gated(gate), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    (1..=3).for_each(|step| fake.shard(G1, step, false, step == 3));
    open.send(()).unwrap();
    assert_eq!(fake.hears_step().await.0, 1);
    // Step 2 waits at the gate while the order to stop is given; an evaluation shows that it was heard.
    fake.say(Order::StopAfter(StopAfter { generation: Some(G1), step: 2 }));
    fake.say(Order::Evaluate(EvaluatePhase { generation: Some(G1) }));
    in_time("the task to be fetched", async {
        while !fake.tasks_taken() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(open);
    assert_eq!(fake.hears_step().await.0, 2);
    let result = fake.result().await.result;
    assert!(matches!(result, Some(task_result::Result::Score(score)) if score.tuned_nll == [3.0]));
    fake.say(goodbye(75));
    assert_eq!(outcome(worker).await.unwrap(), 75);
}

#[tokio::test]
async fn heartbeats_go_on_while_a_step_stands_still() {
    let mut fake = Fake::start().await;
    let (open, gate) = std::sync::mpsc::channel();
    let (begin, mut begun) = mpsc::unbounded_channel();
    let worker = fake.worker(Adder::gated(gate).announcing(begin), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, true);
    assert_eq!(in_time("step 1 to begin", begun.recv()).await, Some(1));
    let mut equal = 0;
    let mut last = None;
    while equal < 20 {
        let Message::Heartbeat(heartbeat) = fake.hears_any().await else { panic!("nothing but heartbeats now") };
        equal = if last == Some(heartbeat) { equal + 1 } else { 0 };
        last = Some(heartbeat);
    }
    assert_eq!(last.unwrap().phase(), Phase::Waiting);
    open.send(()).unwrap();
    fake.hears_step().await;
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
}

// ---- with a second rank ------------------------------------------------------------------------------------------------

/// Forms a generation of two, in which the test itself is rank 1: it joins the ring and then does as `behave` says.
async fn ring_with(
    fake: &mut Fake,
    ring_address: String,
    behave: impl FnOnce(TcpRing) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    fake.form_beside(G1, &listener.local_addr().unwrap().to_string());
    let minute = Duration::from_secs(60);
    let config = RingConfig {
        run_id: "run".into(),
        generation: G1,
        rank: 1,
        world_size: 2,
        next_address: ring_address.clone(),
        previous_address: ring_address,
        timeout: minute,
        lease: minute,
    };
    std::thread::spawn(move || {
        behave(TcpRing::connect(&listener, config, &AbortHandle::new(), Progress::new()).unwrap());
    })
}

#[tokio::test]
async fn an_abort_ends_a_step_at_once_and_the_next_generation_starts_from_a_checkpoint() {
    let mut fake = Fake::with(|shared| *shared.download.lock().unwrap() = download_of(40, 8)).await;
    let (begin, mut begun) = mpsc::unbounded_channel();
    let worker = fake.worker(Adder::default().announcing(begin), never());
    fake.hears_ready().await;
    // Rank 1 joins the ring and never reduces, until the worker closes the connection.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let address = fake.ring_address();
    let peer = ring_with(&mut fake, address, move |ring| {
        let _ = held.recv();
        drop(ring);
    })
    .await;
    fake.shard(G1, 1, false, false);
    assert_eq!(in_time("step 1 to begin", begun.recv()).await, Some(1));
    fake.say(abort(G1));
    assert_eq!(fake.hears_back(G1).await, None);
    fake.new_shards();
    fake.form(G2, StateSource::Checkpoint, 8);
    fake.shard(G2, 9, true, true);
    assert_eq!(fake.hears_step().await, (9, 49.0));
    assert_eq!(fake.uploaded().await.0.generation, Some(G2));
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
    drop(hold);
    peer.join().unwrap();
}

#[tokio::test]
async fn a_lost_peer_is_named_to_the_coordinator() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    let address = fake.ring_address();
    let peer = ring_with(&mut fake, address, drop).await;
    fake.shard(G1, 1, false, true);
    let Message::GenerationFailed(failed) = fake.hears().await else { panic!("expected a failed generation") };
    assert!(failed.generation == Some(G1) && failed.reason.contains("rank 1 (127.0.0.1:"), "{failed:?}");
    fake.say(abort(G1));
    fake.say(goodbye(75));
    assert_eq!(outcome(worker).await.unwrap(), 75);
    peer.join().unwrap();
}

#[tokio::test]
async fn a_damaged_checkpoint_is_refused() {
    let mut download = download_of(40, 8);
    download.pop();
    let mut fake = Fake::with(|shared| *shared.download.lock().unwrap() = download).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form(G2, StateSource::Checkpoint, 8);
    assert!(matches!(fake.hears().await, Message::Leaving(leaving) if leaving.error_code == "B4011"));
    let failure = error(worker).await;
    assert_eq!(failure.message, "state from the coordinator: 0 of 8 bytes");
}
