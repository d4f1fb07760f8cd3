//! The client's end: a URL, what the client trusts, and what it shows of itself.

use super::encrypted::Encrypted;
use super::{Authorities, Identity, SecurityFile, Token, tls_refusal};
use crate::{ErrorCode, Failure};
use rustls::pki_types::ServerName;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::Scheme;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use tower::service_fn;

/// One attempt to open the connection, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Where a URL of https:// without a port leads.
const HTTPS: u16 = 443;
/// A connection on which nothing comes back for so long is broken.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What a client trusts and shows, as it is told on the command line.
#[derive(Clone, Debug, Default)]
pub struct ClientSecurity {
    /// Authorities (PEM) that the coordinator's certificate is checked with.
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM), for coordinators that ask for one.
    pub certificate: Option<PathBuf>,
    /// The private key to it.
    pub private_key: Option<PathBuf>,
    /// Name in the coordinator's certificate, when it is not the URL's.
    pub server_name: Option<String>,
    /// What tells the coordinator who calls.
    pub token: Option<Token>,
    /// Send the token to other machines without TLS.
    pub insecure: bool,
}

/// A connection to a coordinator, over which the token travels with every call.
pub type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// Puts the token, if there is one, into every call.
#[derive(Clone, Debug, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// Of this token.
    #[must_use]
    pub fn new(token: Option<&Token>) -> Self {
        Self(token.and_then(Token::bearer))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// Opens connections to one coordinator.
#[derive(Clone, Debug)]
pub struct Connector {
    url: String,
    endpoint: Endpoint,
    way: Way,
    bearer: Bearer,
}

/// How a connection is opened.
#[derive(Clone, Debug)]
enum Way {
    /// Over TCP, in the clear.
    Tcp,
    /// Over TCP and TLS.
    Tls(Encrypted),
    /// As a simulation has it.
    #[cfg(feature = "simulation")]
    Simulated(super::simulated::Dial),
}

impl Connector {
    /// Checks the URL and every file before anything is tried.
    ///
    /// # Errors
    /// `RunFileBadValue` for a URL that is none or options that do not go with it, `SecurityFile` for files that cannot
    /// be used.
    pub fn new(url: &str, security: &ClientSecurity) -> Result<Self, Failure> {
        let bad = |why: &dyn std::fmt::Display| {
            let message = format!("--coordinator {url}: {why}; give it as http://host:port or https://host:port");
            Failure::new(ErrorCode::RunFileBadValue, message)
        };
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| bad(&e))?;
        let way = match endpoint.uri().scheme_str() {
            Some("http") => in_the_clear(url, &endpoint, security).map(|()| Way::Tcp)?,
            Some("https") => Way::Tls(encrypted(url, endpoint.uri(), security)?),
            Some(other) => return Err(bad(&format_args!("scheme {other} is not supported"))),
            None => return Err(bad(&"the scheme is missing")),
        };
        let tls = matches!(way, Way::Tls(_));
        let endpoint = if tls { within_tls(&endpoint).map_err(|e| bad(&e))? } else { endpoint };
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok(Self { url: url.to_owned(), endpoint, way, bearer: Bearer::new(security.token.as_ref()) })
    }

    /// The same, over connections of a simulated network.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn over(self, dial: super::simulated::Dial) -> Self {
        Self { way: Way::Simulated(dial), ..self }
    }

    /// The coordinator's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connects, once.
    ///
    /// # Errors
    /// `TlsRefused`, which trying again does not mend; `CoordinatorUnreachable` otherwise. The message follows
    /// `coordinator URL`.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        let connected = match self.way.clone() {
            Way::Tcp => self.endpoint.connect().await,
            Way::Tls(encrypted) => {
                self.endpoint.connect_with_connector(service_fn(move |_: Uri| encrypted.clone().open())).await
            }
            #[cfg(feature = "simulation")]
            Way::Simulated(dial) => self.endpoint.connect_with_connector(service_fn(move |_: Uri| dial.open())).await,
        };
        let channel = connected.map_err(|e| match tls_refusal(&e) {
            Some(why) => Failure::new(ErrorCode::TlsRefused, format!("cannot be trusted, or does not trust us: {why}")),
            None => Failure::new(ErrorCode::CoordinatorUnreachable, causes(&e)),
        })?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }

    /// Why the first call of `caller` (`this worker`) failed, to follow `coordinator URL`: the coordinator's own refusal, or
    /// what a stranger in its place said.
    #[must_use]
    pub fn refusal(caller: &str, status: Status) -> Failure {
        if Failure::sent_code(&status).is_some() {
            let failure = Failure::from(status);
            return Failure::new(failure.code, format!("refused {caller}: {failure}"));
        }
        let failure = Failure::from(status);
        match failure.code {
            ErrorCode::CoordinatorUnreachable => failure,
            code => Failure::new(
                code,
                format!("does not speak Ballast's protocol: is this its address, and is it not https://? ({failure})"),
            ),
        }
    }
}

/// Without TLS no certificate means anything, and a token must not leave the machine.
fn in_the_clear(url: &str, endpoint: &Endpoint, security: &ClientSecurity) -> Result<(), Failure> {
    let unused = [
        ("--ca", security.ca.is_some()),
        ("--certificate", security.certificate.is_some()),
        ("--private-key", security.private_key.is_some()),
        ("--server-name", security.server_name.is_some()),
    ];
    if let Some((option, _)) = unused.into_iter().find(|(_, given)| *given) {
        let message = format!("{option} means nothing for --coordinator {url}, which has no TLS: write https://");
        return Err(Failure::new(ErrorCode::RunFileBadValue, message));
    }
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if security.token.is_some() && !loopback && !security.insecure {
        let message = format!(
            "--coordinator {url}: the token would travel in the clear: write https:// and give --ca, or accept it with \
             --insecure on a network you trust"
        );
        return Err(Failure::new(ErrorCode::InsecureBind, message));
    }
    Ok(())
}

/// How the URL's host is reached over TLS, as far as files and options tell.
fn encrypted(url: &str, uri: &Uri, security: &ClientSecurity) -> Result<Encrypted, Failure> {
    let bad = |why: String| Failure::new(ErrorCode::RunFileBadValue, why);
    let Some(ca) = &security.ca else {
        return Err(bad(format!(
            "--coordinator {url}: https:// needs --ca, the authority that signed its certificate"
        )));
    };
    let authorities = Authorities::load(SecurityFile::new("--ca", ca))?;
    let identity = match (&security.certificate, &security.private_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let certificate = SecurityFile::new("--certificate", certificate);
            Some(Identity::load(certificate, SecurityFile::new("--private-key", key))?)
        }
        (Some(_), None) => return Err(bad("--certificate needs --private-key beside it".into())),
        (None, Some(_)) => return Err(bad("--private-key needs --certificate beside it".into())),
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = security.server_name.as_deref().unwrap_or(host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|e| bad(format!("--coordinator {url}: {name:?} cannot be the name in a certificate: {e}")))?;
    let place = (host, uri.port_u16().unwrap_or(HTTPS));
    Encrypted::new(place, name, &authorities, identity.as_ref())
        .map_err(|e| Failure::new(ErrorCode::Internal, format!("TLS cannot be set up: {e}")))
}

/// The endpoint as tonic sees it, which knows nothing of the TLS below.
fn within_tls(endpoint: &Endpoint) -> Result<Endpoint, Box<dyn std::error::Error>> {
    let mut parts = endpoint.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    let inner = Endpoint::from(Uri::from_parts(parts)?);
    Ok(inner.origin(endpoint.uri().clone()))
}

/// An error with its causes, of which the transport's own text names only the first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn refused(url: &str, security: &ClientSecurity) -> Failure {
        Connector::new(url, security).unwrap_err()
    }

    #[test]
    fn urls_are_checked_before_anything_is_tried() {
        for (url, why) in [
            ("not a url", "invalid"),
            ("127.0.0.1:7070", "https://host:port"),
            ("ftp://host:1", "scheme ftp is not supported"),
            ("/path", "the scheme is missing"),
            ("https://host:1", "https:// needs --ca"),
        ] {
            let failure = refused(url, &ClientSecurity::default());
            assert_eq!(failure.code, ErrorCode::RunFileBadValue);
            assert!(failure.message.contains(why), "{failure}");
        }
        assert!(Connector::new("http://127.0.0.1:7070", &ClientSecurity::default()).is_ok());
    }

    #[test]
    fn a_token_leaves_the_machine_only_encrypted() {
        let token = Token::parse(&"t".repeat(Token::SHORTEST)).ok();
        let security = ClientSecurity { token, ..ClientSecurity::default() };
        for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            assert!(Connector::new(url, &security).is_ok(), "{url}");
        }
        for url in ["http://10.0.0.1:1", "http://coordinator:1", "http://localhost.example.org:1"] {
            assert_eq!(refused(url, &security).code, ErrorCode::InsecureBind, "{url}");
            let insecure = ClientSecurity { insecure: true, ..security.clone() };
            assert!(Connector::new(url, &insecure).is_ok(), "{url}");
        }
    }

    #[test]
    fn options_that_mean_nothing_are_refused() {
        let plain = ClientSecurity { ca: Some("ca.pem".into()), ..ClientSecurity::default() };
        let failure = refused("http://127.0.0.1:1", &plain);
        assert!(failure.message.starts_with("--ca means nothing"), "{failure}");
    }
}
