//! Meeting over NCCL: the way of the secret.

use super::adder::{Adder, secret};
use super::fake::{Fake, G1, G2, never};
use super::{abort, error, goodbye, outcome};
use crate::WorkerError;
use crate::collective::CollectiveError;
use ballast_kernels::KernelError;
use ballast_proto::v1::coordinator_message::Message as Order;
use ballast_proto::v1::worker_message::Message;
use ballast_proto::v1::{Generation, Phase};
use ballast_proto::{CommunicatorSecret, ErrorCode};
use bytes::Bytes;

fn pass_on(fake: &Fake, secret: CommunicatorSecret, generation: Generation) {
    fake.say(Order::CommunicatorId(secret.of(generation)));
}

/// Forms a generation in which the worker is rank 1, and returns when it waits for the secret.
async fn waiting_for_the_secret(fake: &mut Fake, generation: Generation) {
    let before = fake.hears_heartbeat().await;
    fake.form_over_nccl(generation, 1);
    loop {
        // The first movement after that of the loading.
        let heartbeat = fake.hears_heartbeat().await;
        if heartbeat.progress > before.progress {
            assert_eq!(heartbeat.phase(), Phase::Waiting);
            return;
        }
    }
}

#[tokio::test]
async fn rank_0_makes_the_secret_once_and_trains() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form_over_nccl(G1, 0);
    fake.shard(G1, 1, false, false);
    fake.shard(G1, 2, false, true);
    let Message::CommunicatorId(id) = fake.hears().await else { panic!("expected to hear the communicator's id") };
    assert_eq!(id.generation, Some(G1));
    assert_eq!(CommunicatorSecret::from(id), secret());
    assert_eq!(fake.hears_step().await, (1, 1.0));
    assert_eq!(fake.hears_step().await, (2, 3.0));
    assert_eq!(fake.hears_back(G1).await.unwrap().step, 2);
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
    fake.heard_all();
}

#[tokio::test]
async fn rank_1_waits_for_the_secret_and_trains() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    waiting_for_the_secret(&mut fake, G1).await;
    fake.shard(G1, 1, false, true);
    // Nothing but heartbeats, in which nothing moves.
    let still = fake.hears_heartbeat().await;
    for _ in 0..10 {
        assert_eq!(fake.hears_heartbeat().await, still);
    }
    pass_on(&fake, secret(), G1);
    assert_eq!(fake.hears_step().await, (1, 1.0));
    assert_eq!(fake.hears_back(G1).await.unwrap().step, 1);
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
    fake.heard_all();
}

#[tokio::test]
async fn an_abort_ends_the_wait_and_a_secret_that_comes_later_is_ignored() {
    let mut fake = Fake::start().await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    waiting_for_the_secret(&mut fake, G1).await;
    fake.say(abort(G1));
    assert_eq!(fake.hears_back(G1).await, None);
    fake.new_shards();
    let late = || CommunicatorSecret::from(Bytes::from_static(b"late"));
    pass_on(&fake, late(), G1);
    fake.form_over_nccl(G2, 1);
    pass_on(&fake, late(), G1);
    pass_on(&fake, secret(), G2);
    fake.shard(G2, 1, false, true);
    assert_eq!(fake.hears_step().await, (1, 1.0));
    assert_eq!(fake.hears_back(G2).await.unwrap().step, 1);
    fake.say(goodbye(0));
    assert_eq!(outcome(worker).await.unwrap(), 0);
    fake.heard_all();
}

#[tokio::test]
async fn a_rank_0_that_can_make_no_secret_leaves() {
    let unusable = || WorkerError::from(KernelError::Unusable("libnccl.so.2 is missing".into()));
    let nccl = || WorkerError::from(CollectiveError::Nccl("no id can be made".into()));
    type Failing = fn() -> WorkerError;
    let cases: [(Failing, ErrorCode, &str); 2] = [
        (unusable, ErrorCode::DeviceUnusable, "device: libnccl.so.2 is missing"),
        (nccl, ErrorCode::CollectiveFailed, "nccl: no id can be made"),
    ];
    for (cause, code, words) in cases {
        let mut fake = Fake::start().await;
        let worker = fake.worker(Adder::without_secret(cause), never());
        fake.hears_ready().await;
        fake.form_over_nccl(G1, 0);
        let Message::Leaving(leaving) = fake.hears().await else { panic!("expected to hear it leave") };
        assert_eq!((leaving.error_code.as_str(), leaving.reason.as_str()), (code.as_str(), words));
        assert_eq!(error(worker).await.code, code);
    }
}

#[tokio::test]
async fn a_secret_that_does_not_come_in_time_breaks_the_generation() {
    let mut fake = Fake::with(|shared| shared.collective_ms = 50).await;
    let worker = fake.worker(Adder::default(), never());
    fake.hears_ready().await;
    fake.form_over_nccl(G1, 1);
    let Message::GenerationFailed(failed) = fake.hears().await else { panic!("expected a failed generation") };
    assert_eq!(failed.generation, Some(G1));
    assert_eq!(failed.reason, "rank 0 (127.0.0.1:1) sent no communicator id within 50 ms");
    fake.say(abort(G1));
    assert_eq!(fake.hears_back(G1).await, None);
    fake.new_shards();
    fake.form_over_nccl(G2, 0);
    fake.shard(G2, 1, false, true);
    assert!(matches!(fake.hears().await, Message::CommunicatorId(id) if id.generation == Some(G2)));
    assert_eq!(fake.hears_step().await, (1, 1.0));
    fake.say(goodbye(75));
    assert_eq!(outcome(worker).await.unwrap(), 75);
}
