//! What the coordinator trusts and shows: its certificate, the authority of its clients, and the tokens.
//!
//! [`Security::load`] reads and checks every file once, before a port opens; nothing of it is looked at again.

mod local;
mod tls;
mod tokens;

pub use local::{LocalAccess, LocalTls};
pub use tokens::Role;
pub(crate) use tokens::Tokens;

use crate::config;
use ballast_proto::{
    Failure,
    security::{Authorities, Identity, SecurityFile},
};
use rustls::ServerConfig;
use std::{path::Path, sync::Arc};

/// The `[security]` section, with the files that it names.
#[derive(Clone, Debug, Default)]
pub struct Security {
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) tokens: Option<Arc<Tokens>>,
}

impl Security {
    /// Loads what the section names. An empty section loads nothing: no TLS, and everyone may do everything.
    ///
    /// # Errors
    /// `SecurityFile` when a file is missing, malformed, out of date, or can be read by others.
    pub fn load(settings: &config::Security) -> Result<Self, Failure> {
        let identity = identity(settings)?;
        let client_ca = settings.client_ca.as_deref().map(|path| Authorities::load(client_ca(path))).transpose()?;
        let tls = identity.map(|identity| tls::server_config(&identity, client_ca.as_ref())).transpose()?;
        let tokens = settings.token_file.as_deref().map(|path| Tokens::load(token_file(path))).transpose()?;
        Ok(Self { tls: tls.map(Arc::new), tokens: tokens.map(Arc::new) })
    }
}

fn identity(settings: &config::Security) -> Result<Option<Identity>, Failure> {
    let (Some(certificate), Some(key)) = (&settings.certificate, &settings.private_key) else { return Ok(None) };
    let certificate = SecurityFile::new("security.certificate", certificate);
    Identity::load(certificate, SecurityFile::new("security.private_key", key)).map(Some)
}

fn client_ca(path: &Path) -> SecurityFile<'_> {
    SecurityFile::new("security.client_ca", path)
}

fn token_file(path: &Path) -> SecurityFile<'_> {
    SecurityFile::new("security.token_file", path)
}
