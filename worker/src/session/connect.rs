//! Reaching the coordinator and joining the run.

use backon::{ExponentialBuilder, Retryable};
use ballast_proto::security::{Channel, Connector};
use ballast_proto::v1::checkpoint_client::CheckpointClient;
use ballast_proto::v1::data_client::DataClient;
use ballast_proto::v1::evaluation_client::EvaluationClient;
use ballast_proto::v1::membership_client::MembershipClient;
use ballast_proto::v1::{JoinRequest, JoinResponse, RunSpec};
use ballast_proto::{ErrorCode, Failure};
use std::time::Duration;

/// One answer to a short question.
const CALL: Duration = Duration::from_secs(30);
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

/// Connects and joins, trying again for up to `limit` while the coordinator cannot be reached or has no room for another
/// connection. A refusal is final; but for `again`, when the run may be full of this worker itself, whose lease has not ended.
pub(super) async fn join(
    connector: &Connector,
    request: JoinRequest,
    limit: Duration,
    again: bool,
) -> Result<Joined, Failure> {
    let attempt = || join_once(connector, &request);
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .with_total_delay(Some(limit));
    let url = connector.url();
    attempt
        .retry(patience)
        .when(|failure: &Failure| match failure.code {
            ErrorCode::CoordinatorUnreachable | ErrorCode::TooManyConnections => true,
            ErrorCode::RunFull => again,
            _ => false,
        })
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

async fn join_once(connector: &Connector, request: &JoinRequest) -> Result<Joined, Failure> {
    let coordinator = Coordinator { channel: connector.connect().await? };
    let call = async { coordinator.membership().join(request.clone()).await };
    let JoinResponse { worker_id, run } = tokio::time::timeout(CALL, call)
        .await
        .map_err(|_| Failure::new(ErrorCode::CoordinatorUnreachable, "it accepts connections but does not answer"))?
        .map_err(|status| Connector::refusal("this worker", status))?
        .into_inner();
    let run = run.ok_or_else(|| Failure::new(ErrorCode::BadMessage, "admitted this worker without a run"))?;
    Ok(Joined { coordinator, worker_id, run })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::security::ClientSecurity;

    #[tokio::test]
    async fn an_absent_coordinator_is_given_up_after_the_limit() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{free}");
        let connector = Connector::new(&url, &ClientSecurity::default()).unwrap();
        let failure = join(&connector, JoinRequest::default(), Duration::from_millis(300), false).await.err().unwrap();
        assert_eq!(failure.code, ErrorCode::CoordinatorUnreachable);
        assert!(failure.message.starts_with(&format!("coordinator {url} not reached within 0 s: ")), "{failure}");
    }
}
