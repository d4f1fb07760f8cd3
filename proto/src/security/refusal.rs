//! Why a TLS connection did not come about, in words of the person who has to mend it.

use rustls::{AlertDescription, CertificateError};
use std::error::Error;
use std::io;

/// The reason, when `error` or one of its causes is a refusal by TLS; `None` for all else, such as a connection that
/// broke.
#[must_use]
pub fn tls_refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = tls_error(error) {
            return Some(words(refusal));
        }
        // HTTP/2 keeps the text of such an error, and not the error.
        let text = error.to_string();
        if let Some((_, alert)) = text.split_once(ALERT) {
            return Some(alert_in_words(alert, &text));
        }
        cause = error.source();
    }
    None
}

/// How rustls begins the text of an alert that the other side sent.
const ALERT: &str = "received fatal alert: ";

/// An I/O error carries its cause beside its sources.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref().or_else(|| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

fn words(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            format!("its certificate has expired ({error}): it needs a new one, or this machine's clock is wrong")
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            format!("its certificate is not valid yet ({error}): is this machine's clock right?")
        }
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate was not signed by an authority in --ca: this is another coordinator, or another file"
                .into()
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            format!(
                "its certificate is for another name ({error}): call it by a name in its certificate, or tell that name with --server-name"
            )
        }
        rustls::Error::AlertReceived(alert) => alert_in_words(&format!("{alert:?}"), &error.to_string()),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS: is its URL http://?".into(),
        _ => error.to_string(),
    }
}

/// The other side's reason, by the name of its alert.
fn alert_in_words(alert: &str, text: &str) -> String {
    use AlertDescription as Alert;
    let is = |known: Alert| alert.starts_with(&format!("{known:?}"));
    if is(Alert::CertificateRequired) {
        "it wants a certificate of its clients: give one with --certificate and --private-key".into()
    } else if is(Alert::CertificateExpired) {
        "it refused this client's certificate, which has expired: make a new one".into()
    } else if is(Alert::UnknownCA) || is(Alert::DecryptError) || is(Alert::BadCertificate) {
        "it refused this client's certificate, which its security.client_ca has not signed".into()
    } else {
        text.into()
    }
}
