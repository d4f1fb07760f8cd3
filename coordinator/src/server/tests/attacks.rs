//! Attackers at the door and inside: each is refused with its code, and the run goes on beside it and completes.

use super::{
    authority::{Vault, careless_client},
    secured::{OBSERVER, OPERATOR, UNKNOWN, WORKER, answer, join, secured, vault},
    worker::{connect_with, files, join_request},
    *,
};
use ballast_proto::{
    exit,
    security::{Channel, ClientSecurity, tls_refusal},
    v1::{
        Generation, Hello, JoinRequest, StateHeader, StatusRequest, StopRequest, UploadRequest,
        admin_client::AdminClient, checkpoint_client::CheckpointClient, membership_client::MembershipClient,
        upload_request, worker_message,
    },
};
use bytes::Bytes;
use futures::{future::BoxFuture, stream};
use rustls::pki_types::ServerName;
use std::{
    future::poll_fn,
    io,
    sync::{Mutex, PoisonError},
};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::TlsConnector;
use tonic::{body::Body, codegen::http::Request};
use tower::Service;

/// What an attacker has to aim at.
struct Target {
    vault: Vault,
    address: SocketAddr,
    /// The good worker, and the generation that it trains in.
    worker_id: u64,
    generation: Option<Generation>,
}

impl Target {
    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A client with a good certificate.
    async fn inside(&self, token: Option<&str>) -> Channel {
        let security = self.vault.client("ca.pem", Some("client"), token);
        connect_with(&self.url(), &security).await.unwrap()
    }

    /// What becomes of joining with these credentials.
    async fn join(&self, security: ClientSecurity) -> Result<(), Failure> {
        join(&self.url(), &security).await
    }

    /// What becomes of an upload in the good worker's name.
    async fn upload(&self, header: StateHeader, pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Failure {
        let header = upload_request::Message::Header(header);
        let messages = std::iter::once(header).chain(pieces.map(upload_request::Message::Chunk));
        let messages = stream::iter(messages.map(|message| UploadRequest { message: Some(message) }));
        let mut checkpoint = CheckpointClient::new(self.inside(Some(WORKER)).await);
        checkpoint.upload(messages).await.unwrap_err().into()
    }

    fn header(&self) -> StateHeader {
        let (worker_id, generation) = (self.worker_id, self.generation);
        StateHeader {
            worker_id,
            generation,
            step: 1,
            state_sha256: worker::state(1),
            files: worker::describe(&files(1)),
        }
    }
}

/// What an attacker does, the code that it gets, and a word of the message.
type Attack = (&'static str, ErrorCode, &'static str, for<'a> fn(&'a Target) -> BoxFuture<'a, Result<(), Failure>>);

/// An entry of the table.
macro_rules! attack {
    ($what:literal, $code:ident, $word:literal, $target:ident => $act:expr) => {
        ($what, ErrorCode::$code, $word, |$target| Box::pin(async move { $act }))
    };
}

const ATTACKS: &[Attack] = &[
    // Certificates.
    attack!("no client certificate", TlsRefused, "--certificate and --private-key",
        t => t.join(t.vault.client("ca.pem", None, Some(WORKER))).await),
    attack!("a client certificate of a foreign authority", TlsRefused, "security.client_ca has not signed",
        t => t.join(t.vault.client("ca.pem", Some("foreign"), Some(WORKER))).await),
    attack!("an expired client certificate", TlsRefused, "has expired",
        t => show_expired(t).await),
    attack!("a client that trusts a foreign authority", TlsRefused, "not signed by an authority in --ca",
        t => t.join(t.vault.client("foreign-ca.pem", Some("client"), Some(WORKER))).await),
    attack!("plain HTTP/2 to a TLS port", BadMessage, "is it not https://?",
        t => join(&format!("http://{}", t.address), &ClientSecurity::default()).await),
    // Tokens and roles.
    attack!("no token", Unauthenticated, "--token-file",
        t => t.join(t.vault.client("ca.pem", Some("client"), None)).await),
    attack!("an unknown token", Unauthenticated, "does not know this token",
        t => t.join(t.vault.client("ca.pem", Some("client"), Some(UNKNOWN))).await),
    attack!("a token with something behind it", Unauthenticated, "does not know this token",
        t => t.join(t.vault.client("ca.pem", Some("client"), Some(&format!("{WORKER}x")))).await),
    attack!("an operator that joins", Forbidden, "a token of role worker",
        t => t.join(t.vault.client("ca.pem", Some("client"), Some(OPERATOR))).await),
    attack!("a worker that looks", Forbidden, "role observer or operator",
        t => answer(AdminClient::new(t.inside(Some(WORKER)).await).status(StatusRequest {}).await)),
    attack!("a worker that stops the run", Forbidden, "role operator",
        t => answer(AdminClient::new(t.inside(Some(WORKER)).await).stop(StopRequest {}).await)),
    attack!("an observer that stops the run", Forbidden, "role operator",
        t => answer(AdminClient::new(t.inside(Some(OBSERVER)).await).stop(StopRequest {}).await)),
    attack!("a stranger that stops the run", Unauthenticated, "--token-file",
        t => answer(AdminClient::new(t.inside(None).await).stop(StopRequest {}).await)),
    attack!("a method that does not exist", Forbidden, "no such method",
        t => unknown_method(t).await),
    // Messages of whoever has a worker's token.
    attack!("one worker too many", RunFull, "",
        t => t.join(t.vault.client("ca.pem", Some("client"), Some(WORKER))).await),
    attack!("a name that moves the cursor", BadMessage, "control characters",
        t => named(t, "\u{1b}[2J".into()).await),
    attack!("a name of a megabyte", BadMessage, "more than 4096 bytes",
        t => named(t, "x".repeat(1 << 20)).await),
    attack!("a message of 9 MiB", BadMessage, "length too large",
        t => Err(t.upload(t.header(), std::iter::once(Bytes::from(vec![0; 9 << 20]))).await)),
    attack!("9 MiB of a stranger, which nobody reads", Unauthenticated, "--token-file", t => {
        let message = upload_request::Message::Chunk(Bytes::from(vec![0; 9 << 20]));
        let messages = stream::iter([UploadRequest { message: Some(message) }]);
        answer(CheckpointClient::new(t.inside(None).await).upload(messages).await)
    }),
    attack!("an upload without end", BadMessage, "more than the",
        t => Err(t.upload(t.header(), std::iter::repeat(Bytes::from(vec![0; 1 << 10]))).await)),
    attack!("an upload of nothing without end", BadMessage, "an empty piece",
        t => Err(t.upload(t.header(), std::iter::repeat(Bytes::new())).await)),
    attack!("a file that leaves its directory", BadMessage, "unexpected file",
        t => Err(t.upload(renamed(t.header(), "../../adapter_model.safetensors"), std::iter::empty()).await)),
    attack!("a file at the root", BadMessage, "unexpected file",
        t => Err(t.upload(renamed(t.header(), "/etc/cron.d/x"), std::iter::empty()).await)),
    attack!("a file of a petabyte", BadMessage, "at most", t => {
        let mut header = t.header();
        header.files[1].size = 1 << 50;
        Err(t.upload(header, std::iter::empty()).await)
    }),
    attack!("a state of another generation", StaleGeneration, "",
        t => Err(t.upload(StateHeader { generation: Some(Generation::new(1, 99)), ..t.header() }, std::iter::empty()).await)),
    attack!("a state of a worker that does not exist", UnknownWorker, "",
        t => Err(t.upload(StateHeader { worker_id: 999, ..t.header() }, std::iter::empty()).await)),
];

/// Joining under a name.
async fn named(target: &Target, display_name: String) -> Result<(), Failure> {
    let request = JoinRequest { display_name, ..join_request("") };
    answer(MembershipClient::new(target.inside(Some(WORKER)).await).join(request).await)
}

fn renamed(mut header: StateHeader, name: &str) -> StateHeader {
    header.files[0].name = name.into();
    header
}

/// A client of ours does not load a certificate that has expired; an attacker's does.
async fn show_expired(target: &Target) -> Result<(), Failure> {
    let config = Arc::new(careless_client(&target.vault, "expired-client"));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(target.address).await.unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    Err(Failure::new(ErrorCode::TlsRefused, tls_refusal(&error).unwrap_or_else(|| error.to_string())))
}

async fn unknown_method(target: &Target) -> Result<(), Failure> {
    let mut channel = target.inside(Some(OPERATOR)).await;
    poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let request = Request::post("/ballast.v1.Admin/Erase").header("content-type", "application/grpc");
    let response = channel.call(request.body(Body::empty()).unwrap()).await.unwrap();
    Err(tonic::Status::from_header_map(response.headers()).unwrap().into())
}

/// A log of everything that is ever logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        tracing::subscriber::set_default(lines.with_writer(move || log.clone()).finish())
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }
}

/// Every file below a directory, but those of the vault.
fn written(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("vault") {
            files.extend(written(&path));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            files.push((path, bytes));
        }
    }
    files
}

/// The tests run on one thread, so that the log hears the coordinator as well as its attackers.
#[tokio::test]
async fn every_attack_is_refused_and_the_run_completes_beside_them() {
    let (log, directory) = (Log::default(), tempfile::tempdir().unwrap());
    let listening = log.begin();
    let vault = vault(directory.path());
    let coordinator = start(secured(directory.path(), &vault)).await;
    let address = coordinator.local_addr();

    let channel = |token| {
        let security = vault.client("ca.pem", Some("client"), Some(token));
        async move { connect_with(&format!("https://{address}"), &security).await.unwrap() }
    };
    forged_report_before_the_run(channel(WORKER).await).await;
    let mut worker = FakeWorker::join_over(channel(WORKER).await, "good").await.unwrap();
    let formed = worker.formed().await.unwrap();
    let (worker_id, generation) = (worker.id, formed.generation);
    let target = Target { vault: Vault(vault.0.clone()), address, worker_id, generation };
    for (what, code, word, act) in ATTACKS {
        let failure = act(&target).await.expect_err(what);
        assert_eq!(failure.code, *code, "{what}: {failure}");
        assert!(failure.message.contains(word), "{what}: {failure}");
    }

    let observed = AdminClient::new(channel(OBSERVER).await).status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((observed.step, observed.total_steps, observed.stopping), (0, STEPS, false));
    assert_eq!((observed.workers[0].name.as_str(), observed.workers[0].rank), ("good", Some(0)));
    worker.train(&formed).await.unwrap();
    worker.goodbye().await;
    drop(worker);
    let outcome = coordinator.wait().await;
    assert_eq!((outcome.exit_code, outcome.failure), (exit::DONE, None));
    assert_eq!(proof(directory.path()).head, STEPS);
    drop(listening);

    let log = log.text();
    assert!(log.contains("refused: the coordinator does not know this token"), "the log heard nothing");
    for token in [WORKER, OPERATOR, OBSERVER, UNKNOWN] {
        assert!(!log.contains(token), "{token} stands in the log");
        for (path, bytes) in written(directory.path()) {
            assert!(!bytes.windows(token.len()).any(|w| w == token.as_bytes()), "{token} stands in {}", path.display());
        }
    }
}

/// While workers gather, a step of a generation that there is not counts for nothing, and a member that breaks the protocol
/// is dismissed, which frees its place. (With a rank its forged report costs the generation: `faults` has these.)
async fn forged_report_before_the_run(channel: Channel) {
    let mut liar = FakeWorker::join_over(channel, "liar").await.unwrap();
    let report = ballast_proto::v1::StepReport {
        generation: Some(Generation::new(1, 1)),
        step: 1,
        state_sha256: worker::state(1),
        ..Default::default()
    };
    liar.send(worker_message::Message::StepReport(report)).await;
    liar.send(worker_message::Message::Hello(Hello { worker_id: liar.id })).await;
    assert_eq!(liar.next().await.unwrap_err().code, ErrorCode::BadMessage);
}
