//! Calls of `ballast status` and `ballast stop`.

use crate::args::ConnectionArgs;
use crate::{connection, setup};
use ballast_proto::security::{Channel, Connector};
use ballast_proto::v1::admin_client::AdminClient;
use ballast_proto::{ErrorCode, Failure};
use std::time::Duration;
use tonic::{Response, Status};

/// Longest that a person waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects and asks.
pub(super) fn ask<T>(
    args: &ConnectionArgs,
    question: impl AsyncFnOnce(AdminClient<Channel>) -> Result<Response<T>, Status>,
) -> anyhow::Result<T> {
    let connector = Connector::new(&args.coordinator, &connection::security(args)?)?;
    let answer = async {
        let channel = connector.connect().await?;
        question(AdminClient::new(channel)).await.map_err(|status| Connector::refusal("this client", status))
    };
    let silent = || Failure::new(ErrorCode::CoordinatorUnreachable, "does not answer");
    let told = |failure: Failure| {
        let url = connector.url();
        let message = match failure.code {
            ErrorCode::CoordinatorUnreachable => format!("coordinator {url} not reached: {failure}"),
            _ => format!("coordinator {url} {failure}"),
        };
        Failure::new(failure.code, message)
    };
    let answer = setup::runtime()?.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
    Ok(answer.unwrap_or_else(|_| Err(silent())).map_err(told)?.into_inner())
}
