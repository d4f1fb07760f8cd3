//! Reaching the coordinator and joining the run.

use backon::{ExponentialBuilder, Retryable};
use ballast_proto::v1::checkpoint_client::CheckpointClient;
use ballast_proto::v1::data_client::DataClient;
use ballast_proto::v1::evaluation_client::EvaluationClient;
use ballast_proto::v1::membership_client::MembershipClient;
use ballast_proto::v1::{JoinRequest, JoinResponse, RunSpec};
use ballast_proto::{ErrorCode, Failure};
use std::time::Duration;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// One attempt to open the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// One answer to a short question.
const CALL: Duration = Duration::from_secs(30);
/// A connection on which nothing comes back for so long is broken.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Largest message taken from the coordinator: a step's shard.
const MAX_MESSAGE: usize = 256 << 20;

/// The coordinator's services, over one connection.
#[derive(Clone)]
pub(super) struct Coordinator {
    channel: Channel,
}

impl Coordinator {
    pub(super) fn membership(&self) -> MembershipClient<Channel> {
        MembershipClient::new(self.channel.clone())
    }

    pub(super) fn data(&self) -> DataClient<Channel> {
        DataClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn checkpoint(&self) -> CheckpointClient<Channel> {
        CheckpointClient::new(self.channel.clone())
    }

    pub(super) fn evaluation(&self) -> EvaluationClient<Channel> {
        EvaluationClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Admitted: who this worker is, and what is trained.
pub(super) struct Joined {
    pub(super) coordinator: Coordinator,
    pub(super) worker_id: u64,
    pub(super) run: RunSpec,
}

/// Connects and joins, trying again for up to `limit` while the coordinator cannot be reached. A refusal is final.
pub(super) async fn join(url: &str, request: JoinRequest, limit: Duration) -> Result<Joined, Failure> {
    let endpoint = endpoint(url)?;
    let attempt = || join_once(&endpoint, &request);
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .with_total_delay(Some(limit));
    attempt
        .retry(patience)
        .when(|failure: &Failure| failure.code == ErrorCode::CoordinatorUnreachable)
        .notify(|failure: &Failure, pause| tracing::debug!(%failure, ?pause, "coordinator not reached, trying again"))
        .await
        .map_err(|failure| match failure.code {
            ErrorCode::CoordinatorUnreachable => {
                let message = format!("coordinator {url} not reached within {} s: {failure}", limit.as_secs());
                Failure::new(failure.code, message)
            }
            code => Failure::new(code, format!("coordinator {url} {failure}")),
        })
}

/// Why joining failed, to follow `coordinator URL`: its own refusal, or what a stranger in its place said.
fn refusal(status: Status) -> Failure {
    let refused = Failure::sent_code(&status).is_some();
    let failure = Failure::from(status);
    match failure.code {
        ErrorCode::CoordinatorUnreachable => failure,
        code if refused => Failure::new(code, format!("refused this worker: {failure}")),
        code => Failure::new(code, format!("does not speak Ballast's protocol: is this its address? ({failure})")),
    }
}

fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let bad = |why: &dyn std::fmt::Display| {
        Failure::new(ErrorCode::RunFileBadValue, format!("--coordinator {url}: {why}; give it as http://host:port"))
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| bad(&e))?;
    match endpoint.uri().scheme_str() {
        Some("http") => {}
        Some(other) => return Err(bad(&format_args!("scheme {other} is not supported"))),
        None => return Err(bad(&"the scheme is missing")),
    }
    Ok(endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

async fn join_once(endpoint: &Endpoint, request: &JoinRequest) -> Result<Joined, Failure> {
    let channel = endpoint.connect().await.map_err(|e| Failure::new(ErrorCode::CoordinatorUnreachable, causes(&e)))?;
    let coordinator = Coordinator { channel };
    let call = async { coordinator.membership().join(request.clone()).await };
    let JoinResponse { worker_id, run } = tokio::time::timeout(CALL, call)
        .await
        .map_err(|_| Failure::new(ErrorCode::CoordinatorUnreachable, "it accepts connections but does not answer"))?
        .map_err(refusal)?
        .into_inner();
    let run = run.ok_or_else(|| Failure::new(ErrorCode::BadMessage, "admitted this worker without a run"))?;
    Ok(Joined { coordinator, worker_id, run })
}

/// An error with its causes, of which the transport's own text names only the first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_anything_is_tried() {
        for (url, why) in [
            ("not a url", "invalid"),
            ("127.0.0.1:7070", "http://host:port"),
            ("https://host:1", "scheme https is not supported"),
            ("/path", "the scheme is missing"),
        ] {
            let failure = endpoint(url).unwrap_err();
            assert_eq!(failure.code, ErrorCode::RunFileBadValue);
            assert!(failure.message.contains(why), "{failure}");
        }
        assert!(endpoint("http://127.0.0.1:7070").is_ok());
    }

    #[tokio::test]
    async fn an_absent_coordinator_is_given_up_after_the_limit() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{free}");
        let failure = join(&url, JoinRequest::default(), Duration::from_millis(300)).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::CoordinatorUnreachable);
        assert!(failure.message.starts_with(&format!("coordinator {url} not reached within 0 s: ")), "{failure}");
    }
}
