//! TLS as the coordinator speaks it.

use ballast_proto::{
    ErrorCode, Failure,
    security::{Authorities, Identity, provider},
};
use rustls::{
    ServerConfig,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    version::TLS13,
};
use std::sync::Arc;

/// TLS 1.3 and HTTP/2; with `client_ca`, for clients with a certificate of theirs alone.
pub(super) fn server_config(identity: &Identity, client_ca: Option<&Authorities>) -> Result<ServerConfig, Failure> {
    let unusable = |e: &dyn std::error::Error| Failure::new(ErrorCode::Internal, format!("TLS cannot be set up: {e}"));
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(|e| unusable(&e))?;
    let builder = match client_ca {
        Some(authorities) => builder.with_client_cert_verifier(client_verifier(authorities)?),
        None => builder.with_no_client_auth(),
    };
    let certificate = SingleCertAndKey::from(identity.certified_key());
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Checks clients' certificates.
pub(super) fn client_verifier(authorities: &Authorities) -> Result<Arc<dyn ClientCertVerifier>, Failure> {
    WebPkiClientVerifier::builder_with_provider(authorities.roots(), provider())
        .build()
        .map_err(|e| Failure::new(ErrorCode::Internal, format!("TLS cannot be set up: {e}")))
}
