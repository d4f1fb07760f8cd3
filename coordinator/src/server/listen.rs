//! The address: where to listen, and where not to.

use ballast_proto::{ErrorCode, Failure};
use std::net::SocketAddr;
use tokio::net::{TcpListener, lookup_host};

/// Listens on `host:port`. Beyond loopback only when `insecure` allows it: there is no authentication yet.
pub(super) async fn listen(bind: &str, insecure: bool) -> Result<TcpListener, Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(ErrorCode::BindFailed, format!("cannot listen on cluster.bind = {bind:?}: {e}"))
    };
    let addresses: Vec<SocketAddr> = lookup_host(bind).await.map_err(failed)?.collect();
    if !insecure && let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        return Err(Failure::new(
            ErrorCode::InsecureBind,
            format!(
                "cluster.bind = {bind:?} means {open}, which other machines reach: add --insecure if they are trusted"
            ),
        ));
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}
