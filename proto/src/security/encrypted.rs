//! The client's end of TLS.

use super::{Authorities, Identity, provider};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How a client opens TLS connections to one coordinator.
#[derive(Clone, Debug)]
pub(super) struct Encrypted {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    host: String,
    port: u16,
}

impl Encrypted {
    /// To `host` and `port`, whose certificate must be for `name` and signed by one of `authorities`.
    pub(super) fn new(
        (host, port): (&str, u16),
        name: ServerName<'static>,
        authorities: &Authorities,
        identity: Option<&Identity>,
    ) -> Result<Self, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let builder = builder.with_root_certificates(authorities.roots());
        let mut config = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config), name, host: host.to_owned(), port })
    }

    /// Opens a connection that the coordinator has accepted: in TLS 1.3 it judges a client's certificate when the client
    /// already takes the connection for open. A server of HTTP/2 speaks first, and what it says first is its judgement.
    pub(super) async fn open(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let mut stream = TlsConnector::from(self.config).connect(self.name, stream).await?;
        if stream.fill_buf().await?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without a word"));
        }
        Ok(TokioIo::new(stream))
    }
}
