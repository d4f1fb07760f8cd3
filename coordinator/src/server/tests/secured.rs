//! A coordinator with certificates, certificates of its clients and tokens, and what its callers have.

use super::{
    authority::{Authority, PAST, TODAY, Vault},
    worker::join_request,
    *,
};
use ballast_proto::{
    security::{ClientSecurity, Connector},
    v1::membership_client::MembershipClient,
};

pub(crate) const WORKER: &str = "worker-token-0123456789-0123456789";
pub(crate) const OPERATOR: &str = "operator-token-0123456789-0123456789";
pub(crate) const OBSERVER: &str = "observer-token-0123456789-0123456789";
pub(crate) const UNKNOWN: &str = "unknown-token-0123456789-0123456789";

/// Names of this machine.
const HERE: &[&str] = &["localhost", "127.0.0.1"];

/// A vault with all that a coordinator and its attackers have.
pub(crate) fn vault(directory: &Path) -> Vault {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let vault = Vault::new(directory, &authority);
    vault.put_identity("server", authority.issue(HERE, TODAY));
    vault.put_identity("expired-server", authority.issue(HERE, PAST));
    vault.put_identity("elsewhere", authority.issue(&["elsewhere.example"], TODAY));
    vault.put_identity("client", authority.issue(&[], TODAY));
    vault.put_identity("expired-client", authority.issue(&[], PAST));
    vault.put_identity("foreign", stranger.issue(&[], TODAY));
    vault.put("foreign-ca.pem", &stranger.pem());
    vault.put("tokens", &format!("worker {WORKER}\noperator {OPERATOR}\nobserver {OBSERVER}\n"));
    vault
}

/// The settings of a coordinator with everything: TLS, certificates of clients, tokens.
pub(crate) fn settings(vault: &Vault) -> crate::config::Security {
    let file = |name: &str| Some(vault.0.join(name));
    crate::config::Security {
        certificate: file("server.pem"),
        private_key: file("server.key"),
        client_ca: file("ca.pem"),
        token_file: file("tokens"),
    }
}

pub(crate) fn secured(directory: &Path, vault: &Vault) -> StartOptions {
    let settings = settings(vault);
    let security = Security::load(&settings).unwrap();
    StartOptions { security, ..options(run_file(directory, |run| run.security = settings)) }
}

pub(crate) async fn join(url: &str, security: &ClientSecurity) -> Result<(), Failure> {
    let connector = Connector::new(url, security)?;
    let mut membership = MembershipClient::new(connector.connect().await?);
    membership
        .join(join_request("attacker"))
        .await
        .map(drop)
        .map_err(|status| Connector::refusal("this worker", status))
}

pub(crate) fn answer<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<(), Failure> {
    answer.map(drop).map_err(Failure::from)
}
