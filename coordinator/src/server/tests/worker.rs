//! A worker that computes nothing: its state after step `n` is a function of `n`.

use crate::checkpoint::{self, ADAPTER_MODEL, OPTIMIZER};
use ballast_basemodel::Projection;
use ballast_proto::{
    Failure,
    security::{Channel, ClientSecurity, Connector},
    v1::{
        CoordinatorMessage, DownloadRequest, GenerateResult, Generation, GenerationFormed, Goodbye, HeldState, Hello,
        JoinRequest, NextTaskRequest, NumericsFingerprint, Ready, RunSpec, ScoreResult, ShardRequest, StateFile,
        StateHeader, StateSource, StepReport, StepShard, TaskResult, UploadRequest, WorkerMessage,
        checkpoint_client::CheckpointClient, coordinator_message::Message, data_client::DataClient, download_response,
        evaluation_client::EvaluationClient, membership_client::MembershipClient, next_task_response::Task,
        task_result, upload_request, worker_message,
    },
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Hash of the state after a step.
pub(crate) fn state(step: u64) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(step.to_le_bytes()))
}

/// Both files of the state after a step.
pub(crate) fn files(step: u64) -> [(String, Vec<u8>); 2] {
    let shapes = checkpoint::AdapterShapes::new(&checkpoint::test_architecture(), 2, &[Projection::Q]);
    let value = step as f32;
    [
        (ADAPTER_MODEL.to_owned(), checkpoint::test_adapter(&shapes, value)),
        (OPTIMIZER.to_owned(), checkpoint::test_optimizer(&shapes, value, step)),
    ]
}

pub(crate) fn describe(files: &[(String, Vec<u8>)]) -> Vec<StateFile> {
    let sha256 = |bytes: &[u8]| Bytes::copy_from_slice(&Sha256::digest(bytes));
    files.iter().map(|(n, b)| StateFile { name: n.clone(), size: b.len() as u64, sha256: sha256(b) }).collect()
}

pub(crate) struct FakeWorker {
    pub(crate) id: u64,
    pub(crate) spec: RunSpec,
    pub(crate) channel: Channel,
    outbound: mpsc::Sender<WorkerMessage>,
    inbound: Streaming<CoordinatorMessage>,
    /// Shards received, for tests to look at.
    pub(crate) shards: Vec<StepShard>,
}

pub(crate) async fn connect(address: SocketAddr) -> Channel {
    connect_with(&format!("http://{address}"), &ClientSecurity::default()).await.unwrap()
}

pub(crate) async fn connect_with(url: &str, security: &ClientSecurity) -> Result<Channel, Failure> {
    Connector::new(url, security)?.connect().await
}

pub(crate) fn join_request(name: &str) -> JoinRequest {
    JoinRequest {
        version: env!("CARGO_PKG_VERSION").into(),
        display_name: name.into(),
        ring_address: "127.0.0.1:9".into(),
    }
}

fn fingerprint(arithmetic: &str) -> NumericsFingerprint {
    NumericsFingerprint {
        binary_sha256: "binary".into(),
        backend: "cpu".into(),
        arithmetic: arithmetic.into(),
        weights_sha256: "model".into(),
    }
}

impl FakeWorker {
    /// Joins and opens the session.
    pub(crate) async fn join(address: SocketAddr, name: &str) -> Result<Self, Failure> {
        Self::join_over(connect(address).await, name).await
    }

    /// The same, over a connection.
    pub(crate) async fn join_over(channel: Channel, name: &str) -> Result<Self, Failure> {
        let mut membership = MembershipClient::new(channel.clone());
        let joined = membership.join(join_request(name)).await?.into_inner();
        let (outbound, messages) = mpsc::channel(8);
        let hello = worker_message::Message::Hello(Hello { worker_id: joined.worker_id });
        outbound.send(WorkerMessage { message: Some(hello) }).await.unwrap();
        let inbound = membership.session(ReceiverStream::new(messages)).await?.into_inner();
        let spec = joined.run.unwrap();
        Ok(Self { id: joined.worker_id, spec, channel, outbound, inbound, shards: Vec::new() })
    }

    pub(crate) async fn send(&self, message: worker_message::Message) {
        // A coordinator that has ended the session no longer listens; what it says is read by `next`.
        let _ = self.outbound.send(WorkerMessage { message: Some(message) }).await;
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Failure> {
        Ok(self.inbound.message().await?.and_then(|m| m.message))
    }

    pub(crate) async fn ready(&self) {
        self.ready_with("none").await;
    }

    pub(crate) async fn ready_with(&self, arithmetic: &str) {
        let ready = Ready { fingerprint: Some(fingerprint(arithmetic)), held: None, left: None };
        self.send(worker_message::Message::Ready(ready)).await;
    }

    /// Comes back from a generation in which it has applied nothing.
    pub(crate) async fn back_from_start(&self, left: Option<Generation>) {
        let ready = Ready { fingerprint: Some(fingerprint("none")), held: None, left };
        self.send(worker_message::Message::Ready(ready)).await;
    }

    /// Comes back from a generation with the state after a step, or from another coordinator.
    pub(crate) async fn back(&self, left: Option<Generation>, report: StepReport) {
        let held = HeldState { step: report.step, state_sha256: report.state_sha256.clone(), reports: vec![report] };
        let ready = Ready { fingerprint: Some(fingerprint("none")), held: Some(held), left };
        self.send(worker_message::Message::Ready(ready)).await;
    }

    /// Reports ready and waits for the generation.
    pub(crate) async fn formed(&mut self) -> Result<GenerationFormed, Failure> {
        self.ready().await;
        self.enters().await
    }

    /// Waits for the next generation.
    pub(crate) async fn enters(&mut self) -> Result<GenerationFormed, Failure> {
        match self.next().await? {
            Some(Message::GenerationFormed(formed)) => Ok(formed),
            other => panic!("expected a generation, got {other:?}"),
        }
    }

    pub(crate) async fn shards(&self, generation: Option<Generation>) -> Result<Streaming<StepShard>, Failure> {
        let request = ShardRequest { worker_id: self.id, generation };
        Ok(DataClient::new(self.channel.clone()).stream_shards(request).await?.into_inner())
    }

    pub(crate) fn report_of(shard: &StepShard) -> StepReport {
        let sequences = shard.micro_batches.iter().flat_map(|m| &m.sequences);
        StepReport {
            generation: shard.generation,
            step: shard.step,
            state_sha256: state(shard.step),
            loss: 1.0 / shard.step as f64,
            loss_tokens: shard.step_loss_tokens,
            tokens: shard.step_tokens,
            rank_tokens: sequences.map(|s| s.token_ids.len() as u64).sum(),
            grad_norm: 1.0,
            learning_rate: 1e-3,
            compute_seconds: 0.01,
            reduce_seconds: 0.01,
            recomputed: 0,
            not_finite: Vec::new(),
            own_seconds: 0.01,
        }
    }

    pub(crate) async fn report(&self, shard: &StepShard) {
        self.send(worker_message::Message::StepReport(Self::report_of(shard))).await;
    }

    /// Uploads files under a header, in small pieces.
    pub(crate) async fn upload(&self, header: StateHeader, files: &[(String, Vec<u8>)]) -> Result<(), Failure> {
        let mut messages = vec![upload_request::Message::Header(header)];
        for (_, bytes) in files {
            let pieces = bytes.chunks(100).map(|p| upload_request::Message::Chunk(Bytes::copy_from_slice(p)));
            messages.extend(pieces);
        }
        let messages = messages.into_iter().map(|message| UploadRequest { message: Some(message) });
        CheckpointClient::new(self.channel.clone()).upload(tokio_stream::iter(messages)).await?;
        Ok(())
    }

    pub(crate) fn header(&self, generation: Option<Generation>, step: u64) -> StateHeader {
        let files = describe(&files(step));
        StateHeader { worker_id: self.id, generation, step, state_sha256: state(step), files }
    }

    pub(crate) async fn download(
        &self,
        generation: Option<Generation>,
        step: u64,
        source: StateSource,
    ) -> Result<(StateHeader, Vec<u8>), Failure> {
        let request = DownloadRequest { worker_id: self.id, generation, step, source: source.into() };
        let mut stream = CheckpointClient::new(self.channel.clone()).download(request).await?.into_inner();
        let mut header = None;
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            match message.message.unwrap() {
                download_response::Message::Header(h) => header = Some(h),
                download_response::Message::Chunk(chunk) => bytes.extend_from_slice(&chunk),
            }
        }
        Ok((header.unwrap(), bytes))
    }

    /// Trains every shard of a generation until the stream ends.
    pub(crate) async fn train(&mut self, formed: &GenerationFormed) -> Result<(), Failure> {
        let source = formed.state_source();
        if formed.hand_over {
            self.upload(self.header(formed.generation, formed.start_step), &files(formed.start_step)).await?;
        }
        if matches!(source, StateSource::Checkpoint | StateSource::Peer) {
            let (header, bytes) = self.download(formed.generation, formed.start_step, source).await?;
            assert_eq!(header.state_sha256, state(formed.start_step));
            assert_eq!(bytes, files(formed.start_step).map(|(_, bytes)| bytes).concat());
        }
        let mut shards = self.shards(formed.generation).await?;
        while let Some(shard) = shards.message().await? {
            self.report(&shard).await;
            if shard.checkpoint_after && formed.rank == 0 {
                self.upload(self.header(formed.generation, shard.step), &files(shard.step)).await?;
            }
            self.shards.push(shard);
        }
        Ok(())
    }

    async fn evaluate(&self, generation: Option<Generation>) -> Result<(), Failure> {
        let mut evaluation = EvaluationClient::new(self.channel.clone());
        loop {
            let request = NextTaskRequest { worker_id: self.id, generation };
            let next = evaluation.next_task(request).await?.into_inner();
            let result = match next.task {
                None => {
                    assert!(next.done);
                    return Ok(());
                }
                Some(Task::Score(task)) => {
                    let range = task.sequence.unwrap().loss[0];
                    let tokens = (range.end - range.start) as usize;
                    let kl = vec![0.25; tokens.min(task.kl_positions as usize)];
                    task_result::Result::Score(ScoreResult {
                        base_nll: vec![2.0; tokens],
                        tuned_nll: vec![1.0; tokens],
                        kl,
                    })
                }
                Some(Task::Generate(_)) => {
                    let ids = |text: &str| text.chars().map(u32::from).collect();
                    let (base_ids, tuned_ids) = (ids("I cannot"), ids("Let's solve this problem. 1"));
                    task_result::Result::Generate(GenerateResult { base_ids, tuned_ids })
                }
            };
            let report = TaskResult { worker_id: self.id, generation, task_id: next.task_id, result: Some(result) };
            evaluation.report_task(report).await?;
        }
    }

    /// Pulls tasks until there are none, then takes its leave.
    pub(crate) async fn finish_evaluation(mut self, generation: Option<Generation>) -> Result<(), Failure> {
        self.evaluate(generation).await?;
        self.goodbye().await;
        Ok(())
    }

    /// Does all that is asked for until it is sent away; returns the shards it was given.
    pub(crate) async fn work(mut self) -> Result<Vec<StepShard>, Failure> {
        let formed = self.formed().await?;
        self.train(&formed).await?;
        loop {
            match self.next().await? {
                Some(Message::Evaluate(phase)) => self.evaluate(phase.generation).await?,
                Some(Message::Goodbye(_)) | None => return Ok(self.shards),
                Some(Message::StopAfter(_)) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Reads messages until the farewell.
    pub(crate) async fn goodbye(&mut self) -> (Vec<Message>, Goodbye) {
        let mut before = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(Message::Goodbye(goodbye)) => return (before, goodbye),
                Some(message) => before.push(message),
                None => panic!("the session ended without a farewell, after {before:?}"),
            }
        }
    }
}
