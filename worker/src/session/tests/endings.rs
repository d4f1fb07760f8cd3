//! How a worker ends: what of it is waited for, and with which code.

use super::adder::Adder;
use super::fake::{Fake, G1, in_time, never, signals};
use super::{error, goodbye, outcome};
use crate::WorkerError;
use crate::session::engine::Engine;
use crate::session::load::Loader;
use ballast_kernels::KernelError;
use ballast_proto::v1::StateSource;
use ballast_proto::v1::worker_message::Message;
use ballast_proto::{Coded, ErrorCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

#[tokio::test]
async fn a_failing_device_ends_the_worker_with_the_retriable_code() {
    let mut fake = Fake::start().await;
    let failed = |_| WorkerError::from(KernelError::Device("CUDA_ERROR_ILLEGAL_ADDRESS".into()));
    let worker = fake.worker(Adder::failing_with(2, failed), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, false);
    fake.shard(G1, 2, false, true);
    fake.hears_step().await;
    let Message::Leaving(leaving) = fake.hears().await else { panic!("expected to hear it leave") };
    let (code, words) = (leaving.error_code.as_str(), leaving.reason.as_str());
    assert_eq!((code, words), ("B6006", "device: CUDA_ERROR_ILLEGAL_ADDRESS"));
    let error = WorkerError::from(error(worker).await);
    assert_eq!((error.code(), error.code().exit_code()), (ErrorCode::DeviceFailed, 75));
}

#[tokio::test]
async fn a_peaceful_end_waits_until_the_engine_has_parted_and_is_gone() {
    let mut fake = Fake::start().await;
    let (open, gate) = std::sync::mpsc::channel();
    let alive = Arc::new(());
    let gone = Arc::downgrade(&alive);
    let worker = fake.worker(Adder::parting_at(gate, alive), never());
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, true);
    fake.hears_step().await;
    fake.say(goodbye(0));
    fake.sees_it_leave().await;
    // One that does not wait ends as soon as the coordinator, on this same thread, has closed its side too.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        assert!(!worker.is_finished(), "left while its engine was parting");
    }
    open.send(()).unwrap();
    assert_eq!(outcome(worker).await.unwrap(), 0);
    assert!(gone.upgrade().is_none());
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_a_step_that_nobody_wants() {
    let mut fake = Fake::start().await;
    let (open, gate) = std::sync::mpsc::channel();
    let (begin, mut begun) = mpsc::unbounded_channel();
    let (send, terminated) = signals();
    let load: Loader = Box::new(move |_, progress| {
        Ok(Box::new(Adder::gated(gate).announcing(begin).telling(progress)) as Box<dyn Engine>)
    });
    let worker = fake.worker_with(load, terminated);
    fake.hears_ready().await;
    fake.form(G1, StateSource::Seed, 0);
    fake.shard(G1, 1, false, true);
    assert_eq!(in_time("step 1 to begin", begun.recv()).await, Some(1));
    send.send("SIGTERM").unwrap();
    send.send("SIGTERM").unwrap();
    // Half of what a parting engine is given.
    let ended = tokio::time::timeout(Duration::from_secs(10), outcome(worker)).await;
    assert_eq!(ended.expect("it waited for the step").unwrap(), 75);
    drop(open);
}
