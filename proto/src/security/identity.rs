//! Certificates and keys.

use super::SecurityFile;
use crate::Failure;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use std::fmt;
use std::sync::Arc;

/// The cryptography of every connection.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Authorities whose signatures are trusted.
#[derive(Clone, Debug)]
pub struct Authorities {
    roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Every certificate of a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read or holds anything but certificates.
    pub fn load(file: SecurityFile<'_>) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file, &file.read()?)? {
            roots.add(certificate).map_err(|e| file.refuse(format!("a certificate in it cannot be read: {e}")))?;
        }
        Ok(Self { roots: Arc::new(roots) })
    }

    /// As rustls wants them.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}

/// A certificate with its chain, and the private key to it.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// From PEM files: the certificate first, then what it was signed by; and its key.
    ///
    /// # Errors
    /// When a file cannot be read, others can read the key, the key does not fit the certificate, or the certificate is
    /// not valid today.
    pub fn load(certificate: SecurityFile<'_>, key: SecurityFile<'_>) -> Result<Self, Failure> {
        let chain = certificates(certificate, &certificate.read()?)?;
        let private = PrivateKeyDer::from_pem_slice(&key.read_secret()?).map_err(|e| {
            key.refuse(match e {
                pem::Error::NoItemsFound => "it holds no private key in PEM (-----BEGIN PRIVATE KEY-----)".to_owned(),
                e => format!("it is not PEM: {e}"),
            })
        })?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                key.refuse(format!("the key does not belong to the certificate in {}", certificate.path.display()))
            }
            rustls::Error::InvalidCertificate(_) => certificate.refuse(format!("the certificate cannot be read: {e}")),
            e => key.refuse(format!("the key cannot be used: {e}")),
        })?;
        let identity = Self { certified: Arc::new(certified) };
        if let Some(why) = identity.out_of_date() {
            return Err(certificate.refuse(format!("{why}; make a new one, or set this machine's clock")));
        }
        Ok(identity)
    }

    /// As rustls wants it.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// Whether a client that trusts `roots` would take this for a coordinator that it calls `name`.
    ///
    /// # Errors
    /// Why it would not.
    pub fn serves(&self, roots: Arc<RootCertStore>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
        let (leaf, issuers) = self.certified.cert.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_server_cert(leaf, issuers, name, &[], UnixTime::now()).map(drop)
    }

    /// Its dates come first in the verification, before issuers and names.
    fn out_of_date(&self) -> Option<String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certified.cert.iter().cloned());
        let name = ServerName::try_from("localhost").ok()?;
        match self.serves(Arc::new(roots), &name) {
            Err(rustls::Error::InvalidCertificate(
                e @ (CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }),
            )) => Some(rustls::Error::InvalidCertificate(e).to_string()),
            _ => None,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

fn certificates(file: SecurityFile<'_>, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|e| file.refuse(format!("it is not PEM: {e}")))?;
    if certificates.is_empty() {
        return Err(file.refuse("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(certificates)
}
