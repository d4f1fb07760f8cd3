//! What the workers of `ballast train` need, which run beside the coordinator.

use super::{client_ca, identity, tls::client_verifier, token_file, tokens::worker_token};
use crate::config;
use ballast_proto::{
    Failure,
    security::{Authorities, Identity, SecurityFile, Token, tls_refusal},
};
use rustls::pki_types::{ServerName, UnixTime};
use std::{net::IpAddr, path::PathBuf};

/// How a worker on this machine reaches the coordinator, by the coordinator's own files.
#[derive(Clone, Debug, Default)]
pub struct LocalAccess {
    /// What a worker checks the coordinator with; without it there is no TLS.
    pub tls: Option<LocalTls>,
    /// A token of the workers.
    pub token: Option<Token>,
}

/// The TLS side of [`LocalAccess`].
#[derive(Clone, Debug)]
pub struct LocalTls {
    /// Trusted authorities: what follows the coordinator's certificate in its own file.
    pub ca: PathBuf,
    /// Name under which the coordinator is known to its certificate, when not the address.
    pub server_name: Option<&'static str>,
    /// The coordinator's own certificate and key, where clients must present one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl LocalAccess {
    /// Finds out how a worker reaches a coordinator with these settings at `ip`.
    ///
    /// # Errors
    /// `SecurityFile` when the files suffice for a coordinator, but not for workers beside it.
    pub fn of(settings: &config::Security, ip: IpAddr) -> Result<Self, Failure> {
        let token = settings.token_file.as_deref().map(|path| worker_token(token_file(path))).transpose()?;
        let (Some(identity), Some(certificate), Some(key)) =
            (identity(settings)?, &settings.certificate, &settings.private_key)
        else {
            return Ok(Self { tls: None, token });
        };
        let file = SecurityFile::new("security.certificate", certificate);
        let server_name = server_name(&identity, file, ip)?;
        let own = match settings.client_ca.as_deref() {
            None => None,
            Some(path) => {
                accepted_by(&Authorities::load(client_ca(path))?, &identity, file)?;
                Some((certificate.clone(), key.clone()))
            }
        };
        Ok(Self { tls: Some(LocalTls { ca: certificate.clone(), server_name, identity: own }), token })
    }
}

/// A name under which a worker accepts the certificate: the address itself, or `localhost`.
fn server_name(identity: &Identity, file: SecurityFile<'_>, ip: IpAddr) -> Result<Option<&'static str>, Failure> {
    const LOCALHOST: &str = "localhost";
    let roots = Authorities::load(file)?.roots();
    let Err(refusal) = identity.serves(roots.clone(), &ServerName::from(ip)) else { return Ok(None) };
    let local = ServerName::try_from(LOCALHOST).ok();
    if local.is_some_and(|name| identity.serves(roots, &name).is_ok()) {
        return Ok(Some(LOCALHOST));
    }
    let why = tls_refusal(&refusal).unwrap_or_default();
    Err(file.refuse(format!(
        "the workers of `ballast train` could not check it: {why}; the file must also hold what signed the certificate, and \
         the certificate must be for {ip} or {LOCALHOST}, as `ballast certs` makes it"
    )))
}

/// Workers beside the coordinator present its own certificate.
fn accepted_by(authorities: &Authorities, identity: &Identity, file: SecurityFile<'_>) -> Result<(), Failure> {
    let key = identity.certified_key();
    let Some((leaf, issuers)) = key.cert.split_first() else { return Ok(()) };
    client_verifier(authorities)?.verify_client_cert(leaf, issuers, UnixTime::now()).map(drop).map_err(|e| {
        file.refuse(format!(
            "the workers of `ballast train` present the coordinator's own certificate, and security.client_ca does not \
             accept it ({e}): start them with `ballast worker` and certificates of their own"
        ))
    })
}
