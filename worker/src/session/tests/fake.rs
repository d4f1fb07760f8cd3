//! A coordinator that says what the test wants.

use super::super::engine::Engine;
use super::super::load::Loader;
use super::super::{Station, computing::Computing, work};
use super::adder::Adder;
use crate::WorkerError;
use ballast_proto::security::{ClientSecurity, Connector};
use ballast_proto::v1::{
    BaseModel, CoordinatorMessage, DownloadRequest, DownloadResponse, Generation, GenerationFormed, Heartbeat,
    HeldState, JoinRequest, JoinResponse, NextTaskRequest, NextTaskResponse, ReportTaskResponse, RunSpec, ShardRequest,
    StateHeader, StateSource, StepShard, TaskResult, Timeouts, Transport, UploadRequest, UploadResponse, WorkerMessage,
    checkpoint_server, coordinator_message, data_server, evaluation_server, membership_server,
    next_task_response::Task, upload_request, worker_message,
};
use ballast_proto::{ErrorCode, Failure};
use futures::Stream;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub(super) const G1: Generation = Generation { epoch: 1, number: 1 };
pub(super) const G2: Generation = Generation { epoch: 1, number: 2 };
/// Long enough never to pass when all goes well.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

type Answers<T> = UnboundedReceiverStream<Result<T, Status>>;

/// The test's side of the coordinator.
pub(super) struct Fake {
    pub(super) url: String,
    shared: Arc<Shared>,
    heard: mpsc::UnboundedReceiver<WorkerMessage>,
    uploads: mpsc::UnboundedReceiver<Uploaded>,
    results: mpsc::UnboundedReceiver<TaskResult>,
    server: JoinHandle<()>,
}

/// What the services answer with.
pub(super) struct Shared {
    pub(super) refusal: Mutex<Option<Failure>>,
    pub(super) download: Mutex<Vec<DownloadResponse>>,
    pub(super) tasks: Mutex<VecDeque<Task>>,
    /// Uploads wait for this when `hold_uploads`.
    pub(super) release_uploads: Notify,
    pub(super) hold_uploads: bool,
    /// As the run has it.
    pub(super) collective_ms: u64,
    /// How long the worker may try to join again.
    pub(super) rejoin_ms: u64,
    /// Whether the worker has closed its side of the session.
    pub(super) closed: Notify,
    ring_address: Mutex<String>,
    session: Mutex<Arc<Pipe<CoordinatorMessage>>>,
    shards: Mutex<Option<Pipe<StepShard>>>,
    heard: mpsc::UnboundedSender<WorkerMessage>,
    uploads: mpsc::UnboundedSender<Uploaded>,
    results: mpsc::UnboundedSender<TaskResult>,
}

pub(super) type Uploaded = (StateHeader, Vec<u8>);

struct Pipe<T> {
    sender: Mutex<Option<mpsc::UnboundedSender<Result<T, Status>>>>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Result<T, Status>>>>,
}

impl Shared {
    fn session(&self) -> Arc<Pipe<CoordinatorMessage>> {
        Arc::clone(&self.session.lock().unwrap())
    }
}

impl<T> Pipe<T> {
    fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender: Mutex::new(Some(sender)), receiver: Mutex::new(Some(receiver)) }
    }

    fn send(&self, item: Result<T, Status>) {
        self.sender.lock().unwrap().as_ref().unwrap().send(item).ok().unwrap();
    }

    fn close(&self) {
        self.sender.lock().unwrap().take();
    }

    fn stream(&self) -> Answers<T> {
        UnboundedReceiverStream::new(self.receiver.lock().unwrap().take().expect("one stream"))
    }
}

impl Fake {
    pub(super) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Shared)) -> Self {
        let (heard_sender, heard) = mpsc::unbounded_channel();
        let (uploads_sender, uploads) = mpsc::unbounded_channel();
        let (results_sender, results) = mpsc::unbounded_channel();
        let mut shared = Shared {
            refusal: Mutex::default(),
            download: Mutex::default(),
            tasks: Mutex::default(),
            release_uploads: Notify::new(),
            hold_uploads: false,
            collective_ms: 60_000,
            rejoin_ms: 0,
            closed: Notify::new(),
            ring_address: Mutex::default(),
            session: Mutex::new(Arc::new(Pipe::new())),
            shards: Mutex::new(Some(Pipe::new())),
            heard: heard_sender,
            uploads: uploads_sender,
            results: results_sender,
        };
        change(&mut shared);
        let shared = Arc::new(shared);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let services = Services(Arc::clone(&shared));
        let server = tonic::transport::Server::builder()
            .add_service(membership_server::MembershipServer::new(services.clone()))
            .add_service(data_server::DataServer::new(services.clone()))
            .add_service(checkpoint_server::CheckpointServer::new(services.clone()))
            .add_service(evaluation_server::EvaluationServer::new(services))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { url, shared, heard, uploads, results, server }
    }

    /// Starts a worker with an adding engine; it is asked to stop whenever `terminated` yields.
    pub(super) fn worker(
        &self,
        engine: Adder,
        terminated: impl Stream<Item = &'static str> + Send + 'static,
    ) -> JoinHandle<Result<u8, Failure>> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let engine = engine.listening(listener);
        self.worker_at(address, Box::new(|_, _| Ok(Box::new(engine) as Box<dyn Engine>)), terminated)
    }

    pub(super) fn worker_with(
        &self,
        load: Loader,
        terminated: impl Stream<Item = &'static str> + Send + 'static,
    ) -> JoinHandle<Result<u8, Failure>> {
        self.worker_at("127.0.0.1:1".into(), load, terminated)
    }

    fn worker_at(
        &self,
        ring_address: String,
        load: Loader,
        terminated: impl Stream<Item = &'static str> + Send + 'static,
    ) -> JoinHandle<Result<u8, Failure>> {
        let station = Station {
            connector: Connector::new(&self.url, &ClientSecurity::default()).unwrap(),
            name: "worker".into(),
            ring_address,
            connect_timeout: PATIENCE,
            rejoin_timeout: Duration::from_millis(self.shared.rejoin_ms),
        };
        tokio::spawn(work(station, |run| Computing::start(run, load), terminated))
    }

    pub(super) fn say(&self, message: coordinator_message::Message) {
        self.shared.session().send(Ok(CoordinatorMessage { message: Some(message) }));
    }

    /// The next join is refused.
    pub(super) fn refuse(&self, refusal: Failure) {
        *self.shared.refusal.lock().unwrap() = Some(refusal);
    }

    pub(super) fn dismiss(&self, failure: Failure) {
        self.shared.session().send(Err(failure.into()));
    }

    /// Forms a generation of one.
    pub(super) fn form(&self, generation: Generation, source: StateSource, start_step: u64) {
        let formed = GenerationFormed { start_step, ..formed(generation, source) };
        self.say(coordinator_message::Message::GenerationFormed(formed));
    }

    /// Forms a generation of two that starts from the seed: the other rank listens at this address.
    pub(super) fn form_beside(&self, generation: Generation, neighbour: &str) {
        let (next_address, previous_address) = (neighbour.to_owned(), neighbour.to_owned());
        let alone = formed(generation, StateSource::Seed);
        let formed = GenerationFormed { world_size: 2, next_address, previous_address, ..alone };
        self.say(coordinator_message::Message::GenerationFormed(formed));
    }

    /// Forms a generation of one, from whose state others would start.
    pub(super) fn form_handing_over(&self, generation: Generation, start_step: u64) {
        let memory = formed(generation, StateSource::Memory);
        let formed = GenerationFormed { start_step, hand_over: true, ..memory };
        self.say(coordinator_message::Message::GenerationFormed(formed));
    }

    /// Forms a generation of two that starts from the seed and meets over NCCL.
    pub(super) fn form_over_nccl(&self, generation: Generation, rank: u32) {
        let transport = Transport::Nccl as i32;
        let first_address = "127.0.0.1:1".to_owned();
        let alone = formed(generation, StateSource::Seed);
        let formed = GenerationFormed { rank, world_size: 2, transport, first_address, ..alone };
        self.say(coordinator_message::Message::GenerationFormed(formed));
    }

    /// Streams a shard of the current generation.
    pub(super) fn shard(&self, generation: Generation, step: u64, checkpoint_after: bool, last: bool) {
        let shard = StepShard { generation: Some(generation), step, checkpoint_after, last, ..StepShard::default() };
        self.shared.shards.lock().unwrap().as_ref().unwrap().send(Ok(shard));
    }

    /// The session breaks; the next one is another.
    pub(super) fn new_session(&self) {
        let broken = std::mem::replace(&mut *self.shared.session.lock().unwrap(), Arc::new(Pipe::new()));
        broken.close();
    }

    /// Hears that the worker has come back from a generation, with the state of a step.
    pub(super) async fn hears_back(&mut self, generation: Generation) -> Option<HeldState> {
        match self.hears().await {
            worker_message::Message::Ready(ready) => {
                assert_eq!(ready.left, Some(generation));
                ready.held
            }
            other => panic!("expected it to come back, heard {other:?}"),
        }
    }

    /// A new generation gets a new stream of shards.
    pub(super) fn new_shards(&self) {
        *self.shared.shards.lock().unwrap() = Some(Pipe::new());
    }

    /// The next message that is no heartbeat.
    pub(super) async fn hears(&mut self) -> worker_message::Message {
        loop {
            match self.hears_any().await {
                worker_message::Message::Heartbeat(_) => {}
                message => return message,
            }
        }
    }

    pub(super) async fn hears_any(&mut self) -> worker_message::Message {
        in_time("a worker's message", self.heard.recv()).await.unwrap().message.unwrap()
    }

    /// The worker has ended, and said nothing but what was heard, heartbeats aside.
    pub(super) fn heard_all(&mut self) {
        let said = std::iter::from_fn(|| self.heard.try_recv().ok()).filter_map(|message| message.message);
        let unheard: Vec<_> = said.filter(|said| !matches!(said, worker_message::Message::Heartbeat(_))).collect();
        assert!(unheard.is_empty(), "{unheard:?}");
    }

    /// The next heartbeat.
    pub(super) async fn hears_heartbeat(&mut self) -> Heartbeat {
        match self.hears_any().await {
            worker_message::Message::Heartbeat(heartbeat) => heartbeat,
            other => panic!("expected a heartbeat, heard {other:?}"),
        }
    }

    /// Waits until the worker has closed its side of the session.
    pub(super) async fn sees_it_leave(&self) {
        in_time("the session's end", self.shared.closed.notified()).await;
    }

    /// Hears hello and ready.
    pub(super) async fn hears_ready(&mut self) {
        assert!(matches!(self.hears().await, worker_message::Message::Hello(hello) if hello.worker_id == 7));
        assert!(
            matches!(self.hears().await, worker_message::Message::Ready(ready) if ready.held.is_none() && ready.left.is_none())
        );
    }

    pub(super) async fn hears_step(&mut self) -> (u64, f64) {
        match self.hears().await {
            worker_message::Message::StepReport(report) => (report.step, report.loss),
            other => panic!("expected a step report, heard {other:?}"),
        }
    }

    pub(super) async fn uploaded(&mut self) -> Uploaded {
        in_time("an upload", self.uploads.recv()).await.unwrap()
    }

    pub(super) async fn result(&mut self) -> TaskResult {
        in_time("a task's result", self.results.recv()).await.unwrap()
    }

    /// Where the worker's ring listens, as it said when it joined.
    pub(super) fn ring_address(&self) -> String {
        self.shared.ring_address.lock().unwrap().clone()
    }

    /// Whether every evaluation task was handed out.
    pub(super) fn tasks_taken(&self) -> bool {
        self.shared.tasks.lock().unwrap().is_empty()
    }

    pub(super) fn release_uploads(&self) {
        self.shared.release_uploads.notify_one();
    }

    /// The coordinator's process ends: every connection breaks.
    pub(super) fn vanish(self) {
        self.server.abort();
        self.shared.session().close();
    }
}

#[derive(Clone)]
struct Services(Arc<Shared>);

#[tonic::async_trait]
impl membership_server::Membership for Services {
    type SessionStream = Answers<CoordinatorMessage>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        *self.0.ring_address.lock().unwrap() = request.into_inner().ring_address;
        match self.0.refusal.lock().unwrap().take() {
            Some(refusal) => Err(refusal.into()),
            None => Ok(Response::new(JoinResponse { worker_id: 7, run: Some(run(self.0.collective_ms)) })),
        }
    }

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (mut inbound, shared) = (request.into_inner(), Arc::clone(&self.0));
        let session = shared.session();
        let answers = session.stream();
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let _ = shared.heard.send(message);
            }
            // The worker said its last word: so does the coordinator.
            session.close();
            shared.closed.notify_one();
        });
        Ok(Response::new(answers))
    }
}

#[tonic::async_trait]
impl data_server::Data for Services {
    type StreamShardsStream = Answers<StepShard>;

    async fn stream_shards(&self, _: Request<ShardRequest>) -> Result<Response<Self::StreamShardsStream>, Status> {
        Ok(Response::new(self.0.shards.lock().unwrap().as_ref().unwrap().stream()))
    }
}

#[tonic::async_trait]
impl checkpoint_server::Checkpoint for Services {
    type DownloadStream = Answers<DownloadResponse>;

    async fn upload(&self, request: Request<Streaming<UploadRequest>>) -> Result<Response<UploadResponse>, Status> {
        let mut stream = request.into_inner();
        let Some(upload_request::Message::Header(header)) = stream.message().await?.unwrap().message else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut bytes = Vec::new();
        while let Some(UploadRequest { message: Some(upload_request::Message::Chunk(chunk)) }) =
            stream.message().await?
        {
            bytes.extend_from_slice(&chunk);
        }
        if self.0.hold_uploads {
            self.0.release_uploads.notified().await;
        }
        let _ = self.0.uploads.send((header, bytes));
        Ok(Response::new(UploadResponse {}))
    }

    async fn download(&self, _: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let pipe = Pipe::new();
        self.0.download.lock().unwrap().iter().for_each(|response| pipe.send(Ok(response.clone())));
        pipe.close();
        Ok(Response::new(pipe.stream()))
    }
}

#[tonic::async_trait]
impl evaluation_server::Evaluation for Services {
    async fn next_task(&self, _: Request<NextTaskRequest>) -> Result<Response<NextTaskResponse>, Status> {
        let task = self.0.tasks.lock().unwrap().pop_front();
        Ok(Response::new(NextTaskResponse { done: task.is_none(), task_id: 3, task }))
    }

    async fn report_task(&self, request: Request<TaskResult>) -> Result<Response<ReportTaskResponse>, Status> {
        let _ = self.0.results.send(request.into_inner());
        Ok(Response::new(ReportTaskResponse {}))
    }
}

fn formed(generation: Generation, source: StateSource) -> GenerationFormed {
    GenerationFormed {
        generation: Some(generation),
        world_size: 1,
        state_source: source as i32,
        transport: Transport::Tcp as i32,
        ..GenerationFormed::default()
    }
}

fn run(collective_ms: u64) -> RunSpec {
    RunSpec {
        run_id: "run".into(),
        run_name: "run".into(),
        base_model: Some(BaseModel::default()),
        timeouts: Some(Timeouts { heartbeat_interval_ms: 10, collective_ms, ..Timeouts::default() }),
        ..RunSpec::default()
    }
}

/// A failure as the loader would report it.
pub(super) fn wrong_model() -> WorkerError {
    Failure::new(ErrorCode::ModelMismatch, "the base model has another sha256").into()
}

/// Never asked to stop.
pub(super) fn never() -> impl Stream<Item = &'static str> + Send + 'static {
    futures::stream::pending()
}

/// Asked to stop with each word that is sent.
pub(super) fn signals() -> (mpsc::UnboundedSender<&'static str>, impl Stream<Item = &'static str> + Send + 'static) {
    let (send, received) = mpsc::unbounded_channel();
    (send, UnboundedReceiverStream::new(received))
}
