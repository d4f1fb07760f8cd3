//! The address: where to listen, and where not to.

use crate::config::{Cluster, Security};
use ballast_proto::{ErrorCode, Failure};
use std::net::SocketAddr;
use tokio::net::{TcpListener, lookup_host};

/// Listens on `host:port`. Beyond loopback only with TLS and tokens, or when `insecure` allows it.
pub(super) async fn listen(cluster: &Cluster, security: &Security) -> Result<TcpListener, Failure> {
    let bind = cluster.bind.as_str();
    let failed = |e: std::io::Error| {
        Failure::new(ErrorCode::BindFailed, format!("cannot listen on cluster.bind = {bind:?}: {e}"))
    };
    let addresses: Vec<SocketAddr> = lookup_host(bind).await.map_err(failed)?.collect();
    if !cluster.insecure
        && let Some(missing) = security.missing()
        && let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback())
    {
        return Err(Failure::new(
            ErrorCode::InsecureBind,
            format!(
                "cluster.bind = {bind:?} means {open}, which other machines reach: set {missing}, or add --insecure if \
                 they are trusted"
            ),
        ));
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}
