//! One simulated worker: it obeys the protocol, and says that it has trained a step when it is told to.

use anyhow::{Context, Result, bail, ensure};
use ballast_proto::security::{Channel, Connector};
use ballast_proto::v1::{
    CoordinatorMessage, Generation, GenerationFormed, Heartbeat, HeldState, Hello, JoinRequest, NumericsFingerprint,
    Phase, Ready, RunSpec, ShardRequest, StateSource, StepReport, StepShard, WorkerMessage,
    coordinator_message::Message, data_client::DataClient, membership_client::MembershipClient, worker_message,
};
use ballast_proto::{ErrorCode, Failure};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// What all workers are told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    /// Their models count as loaded.
    pub(super) ready: bool,
    /// Steps up to this one count as computed once their shards are there.
    pub(super) computed: u64,
}

/// What a worker tells.
#[derive(Debug)]
pub(super) enum Said {
    /// Its session is open, on this connection; cancelling `lost` makes it vanish.
    Joined { worker: u64, channel: Channel, lost: CancellationToken },
    /// It has said that it is ready.
    Ready,
    /// It was told of a generation.
    Formed { world_size: u32 },
    /// It has its shard of a step.
    Shard { step: u64 },
    /// It has reported a step.
    Reported { step: u64 },
}

/// Something said, and when.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) at: Instant,
    pub(super) said: Said,
}

/// How a worker is told something, and tells.
#[derive(Clone, Debug)]
pub(super) struct Strings {
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) words: mpsc::UnboundedSender<Word>,
    /// Makes it vanish.
    pub(super) lost: CancellationToken,
}

/// A worker whose session is open.
pub(super) struct Simulated {
    worker: u64,
    run: RunSpec,
    channel: Channel,
    outbound: mpsc::Sender<WorkerMessage>,
    inbound: Streaming<CoordinatorMessage>,
    strings: Strings,
    ready: bool,
    generation: Option<Generation>,
    shards: Option<Streaming<StepShard>>,
    /// Shards whose steps are not reported yet.
    due: VecDeque<StepShard>,
    /// The last report: what leads to the state that it holds.
    held: Option<StepReport>,
}

impl Simulated {
    /// Joins and opens the session.
    pub(super) async fn join(number: usize, connector: &Connector, strings: Strings) -> Result<Self> {
        let channel = connector.connect().await?;
        let mut membership = MembershipClient::new(channel.clone());
        let request = JoinRequest {
            version: env!("CARGO_PKG_VERSION").into(),
            display_name: format!("w{number}"),
            // Nobody connects to it.
            ring_address: format!("192.0.2.1:{}", 1 + number % 65_535),
        };
        let joined = membership.join(request).await.map_err(Failure::from)?.into_inner();
        let (outbound, messages) = mpsc::channel(8);
        let hello = worker_message::Message::Hello(Hello { worker_id: joined.worker_id });
        outbound.send(WorkerMessage { message: Some(hello) }).await?;
        let inbound = membership.session(ReceiverStream::new(messages)).await.map_err(Failure::from)?.into_inner();
        let run = joined.run.context("a join without a run")?;
        let worker = Self {
            worker: joined.worker_id,
            run,
            channel,
            outbound,
            inbound,
            strings,
            ready: false,
            generation: None,
            shards: None,
            due: VecDeque::new(),
            held: None,
        };
        let (channel, lost) = (worker.channel.clone(), worker.strings.lost.clone());
        worker.tell(Said::Joined { worker: worker.worker, channel, lost });
        Ok(worker)
    }

    /// Works until it is sent away or lost.
    pub(super) async fn work(mut self) -> Result<()> {
        let timeouts = self.run.timeouts.as_ref().context("a run without timeouts")?;
        let mut beats = interval(Duration::from_millis(timeouts.heartbeat_interval_ms.max(1)));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (lost, mut orders) = (self.strings.lost.clone(), self.strings.orders.clone());
        loop {
            tokio::select! {
                () = lost.cancelled() => return Ok(()),
                message = self.inbound.message() => match message.map_err(Failure::from)?.and_then(|m| m.message) {
                    Some(Message::Goodbye(_)) => return Ok(()),
                    Some(message) => self.hear(message).await?,
                    None => bail!("worker {}: the session ended without a farewell", self.worker),
                },
                shard = next(&mut self.shards) => self.take(shard).await?,
                changed = orders.changed() => changed?,
                _ = beats.tick() => self.beat().await?,
            }
            let now = *orders.borrow_and_update();
            self.obey(now).await?;
        }
    }

    async fn hear(&mut self, message: Message) -> Result<()> {
        match message {
            Message::GenerationFormed(formed) => self.enter(formed).await,
            Message::AbortGeneration(abort) if abort.generation == self.generation => self.come_back().await,
            Message::AbortGeneration(_) | Message::StopAfter(_) => Ok(()),
            other => bail!("worker {} was not to hear {other:?}", self.worker),
        }
    }

    async fn enter(&mut self, formed: GenerationFormed) -> Result<()> {
        self.tell(Said::Formed { world_size: formed.world_size });
        let held = self.held.as_ref().map_or(0, |report| report.step);
        let source = formed.state_source();
        ensure!(
            formed.start_step == held && matches!(source, StateSource::Seed | StateSource::Memory) && !formed.hand_over,
            "worker {} holds step {held}, and is to start from step {} ({source:?})",
            self.worker,
            formed.start_step
        );
        self.generation = formed.generation;
        let request = ShardRequest { worker_id: self.worker, generation: formed.generation };
        match DataClient::new(self.channel.clone()).stream_shards(request).await.map_err(Failure::from) {
            Ok(shards) => self.shards = Some(shards.into_inner()),
            // It is over already, which the next message says.
            Err(failure) if failure.code == ErrorCode::StaleGeneration => {}
            Err(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    async fn take(&mut self, shard: Result<Option<StepShard>, Failure>) -> Result<()> {
        match shard {
            Ok(Some(shard)) => {
                self.tell(Said::Shard { step: shard.step });
                self.due.push_back(shard);
            }
            Ok(None) => bail!("worker {}: the steps have come to an end", self.worker),
            Err(failure) if failure.code == ErrorCode::StaleGeneration => self.shards = None,
            Err(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    /// Gets ready, and reports what counts as computed.
    async fn obey(&mut self, orders: Orders) -> Result<()> {
        if orders.ready && !self.ready {
            self.ready = true;
            self.say_ready(None).await?;
        }
        while let Some(shard) = self.due.pop_front_if(|shard| shard.step <= orders.computed) {
            let report = report(&shard);
            self.held = Some(report.clone());
            self.say(worker_message::Message::StepReport(report)).await?;
            self.tell(Said::Reported { step: shard.step });
        }
        Ok(())
    }

    async fn come_back(&mut self) -> Result<()> {
        self.shards = None;
        self.due.clear();
        let left = self.generation.take();
        self.say_ready(left).await
    }

    async fn say_ready(&self, left: Option<Generation>) -> Result<()> {
        let model = self.run.base_model.as_ref().context("a run without a model")?;
        let fingerprint = NumericsFingerprint {
            binary_sha256: "simulated".into(),
            backend: "cpu".into(),
            arithmetic: "none".into(),
            weights_sha256: model.sha256.clone(),
        };
        let held = self.held.clone().map(|report| HeldState {
            step: report.step,
            state_sha256: report.state_sha256.clone(),
            reports: vec![report],
        });
        self.say(worker_message::Message::Ready(Ready { fingerprint: Some(fingerprint), held, left })).await?;
        self.tell(Said::Ready);
        Ok(())
    }

    async fn beat(&self) -> Result<()> {
        let (phase, progress) = match (self.ready, &self.held) {
            (false, _) => (Phase::Loading, 0),
            (true, held) => (Phase::Waiting, held.as_ref().map_or(0, |report| report.step)),
        };
        self.say(worker_message::Message::Heartbeat(Heartbeat { progress, phase: phase.into() })).await
    }

    async fn say(&self, message: worker_message::Message) -> Result<()> {
        let sent = self.outbound.send(WorkerMessage { message: Some(message) }).await;
        sent.with_context(|| format!("worker {} cannot reach the coordinator any more", self.worker))
    }

    /// When nobody listens, the measurement is over.
    fn tell(&self, said: Said) {
        let _ = self.strings.words.send(Word { at: Instant::now(), said });
    }
}

/// The next shard; none ever where no stream is open.
async fn next(shards: &mut Option<Streaming<StepShard>>) -> Result<Option<StepShard>, Failure> {
    match shards {
        Some(shards) => shards.message().await.map_err(Failure::from),
        None => pending().await,
    }
}

/// What a step came to. The state after a step is a function of its number, so that all ranks agree.
fn report(shard: &StepShard) -> StepReport {
    let sequences = shard.micro_batches.iter().flat_map(|micro_batch| &micro_batch.sequences);
    StepReport {
        generation: shard.generation,
        step: shard.step,
        state_sha256: Bytes::copy_from_slice(&Sha256::digest(shard.step.to_le_bytes())),
        loss: 1.0 / shard.step as f64,
        loss_tokens: shard.step_loss_tokens,
        tokens: shard.step_tokens,
        rank_tokens: sequences.map(|sequence| sequence.token_ids.len() as u64).sum(),
        grad_norm: 1.0,
        learning_rate: 1e-3,
        compute_seconds: 0.01,
        reduce_seconds: 0.01,
        recomputed: 0,
        not_finite: Vec::new(),
        own_seconds: 0.0,
    }
}
