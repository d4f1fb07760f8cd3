//! Certificates and tokens for tests.

use ballast_proto::security::{Authorities, ClientSecurity, SecurityFile, Token, provider};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs,
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};

/// Days around today in which most certificates are valid.
pub(crate) const TODAY: Range<i64> = -1..1;
/// Days that are over.
pub(crate) const PAST: Range<i64> = -2..-1;

/// Signs certificates for this machine.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for these names, valid on these days from now, and its key; both as PEM.
    pub(crate) fn issue(&self, names: &[&str], days: Range<i64>) -> (String, String) {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Duration::days(days.start), now + Duration::days(days.end));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A directory of files that secure connections.
pub(crate) struct Vault(pub(crate) PathBuf);

impl Vault {
    /// With the authority's own certificate in `ca.pem`.
    pub(crate) fn new(directory: &Path, authority: &Authority) -> Self {
        let vault = Self(directory.join("vault"));
        fs::create_dir_all(&vault.0).unwrap();
        vault.put("ca.pem", &authority.pem());
        vault
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// `NAME.pem` and `NAME.key`.
    pub(crate) fn put_identity(&self, name: &str, (certificate, key): (String, String)) -> (PathBuf, PathBuf) {
        (self.put(&format!("{name}.pem"), &certificate), self.put(&format!("{name}.key"), &key))
    }

    fn identity(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_file_iter(self.0.join(format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.0.join(format!("{name}.key"))).unwrap();
        (chain.map(Result::unwrap).collect(), key)
    }

    /// A client that trusts `ca`, shows the certificate `name` and this token.
    pub(crate) fn client(&self, ca: &str, name: Option<&str>, token: Option<&str>) -> ClientSecurity {
        ClientSecurity {
            ca: Some(self.0.join(ca)),
            certificate: name.map(|name| self.0.join(format!("{name}.pem"))),
            private_key: name.map(|name| self.0.join(format!("{name}.key"))),
            token: token.map(|text| Token::parse(text).unwrap()),
            ..ClientSecurity::default()
        }
    }
}

/// A server that shows a certificate of the vault without a look at its dates.
pub(crate) fn careless_server(vault: &Vault, name: &str) -> ServerConfig {
    let (chain, key) = vault.identity(name);
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A client that does the same.
pub(crate) fn careless_client(vault: &Vault, name: &str) -> ClientConfig {
    let (chain, key) = vault.identity(name);
    let ca = vault.0.join("ca.pem");
    let authorities = Authorities::load(SecurityFile::new("test", &ca)).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(authorities.roots()).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
