//! What callers and coordinator must show each other, what becomes of whoever shows nothing, and what operators may do.

use super::{
    authority::{careless_client, careless_server},
    secured::{OBSERVER, OPERATOR, WORKER, answer, join, secured, settings, vault},
    worker::connect_with,
    *,
};
use ballast_proto::{
    exit,
    security::{Channel, ClientSecurity},
    v1::{StatusRequest, StopRequest, admin_client::AdminClient},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Certificates that a client must not take, and a word of the reason.
#[tokio::test]
async fn clients_refuse_a_coordinator_that_they_cannot_trust() {
    for (name, ca, word) in [
        ("expired-server", "ca.pem", "has expired"),
        ("elsewhere", "ca.pem", "--server-name"),
        ("server", "foreign-ca.pem", "not signed by an authority in --ca"),
        ("", "ca.pem", "does not speak TLS"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let vault = vault(directory.path());
        let mut options = options(run_file(directory.path(), |_| ()));
        options.security.tls = (!name.is_empty()).then(|| Arc::new(careless_server(&vault, name)));
        let coordinator = start(options).await;
        let url = format!("https://{}", coordinator.local_addr());
        let failure = join(&url, &vault.client(ca, None, None)).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::TlsRefused, "{name}: {failure}");
        assert!(failure.message.contains(word), "{name}: {failure}");
        if name == "elsewhere" {
            let named =
                ClientSecurity { server_name: Some("elsewhere.example".into()), ..vault.client(ca, None, None) };
            join(&url, &named).await.unwrap();
        }
        coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
        coordinator.wait().await;
    }
}

/// Connections on which nobody introduces himself are closed, however they pass the time.
#[tokio::test]
async fn whoever_says_nothing_is_shown_out() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let mut options = secured(directory.path(), &vault);
    options.limits.admission = Duration::from_millis(300);
    let coordinator = start(options).await;
    let address = coordinator.local_addr();
    let silent = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed without a word");
    };
    let dribbling = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The first bytes of a handshake that never ends.
        stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed without a word");
    };
    let encrypted = async {
        let config = Arc::new(careless_client(&vault, "client"));
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        let mut settings = Vec::new();
        // What HTTP/2 opens with comes; then the end does, with or without a farewell of TLS.
        let _ = stream.read_to_end(&mut settings).await;
        assert!(!settings.is_empty());
    };
    tokio::join!(silent, dribbling, encrypted);

    // Health is open to all, but does not keep a connection alive.
    let security = vault.client("ca.pem", Some("client"), None);
    let mut health = HealthClient::new(connect_with(&format!("https://{address}"), &security).await.unwrap());
    let mut answers = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    answers.message().await.unwrap_err();
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    coordinator.wait().await;
}

/// As many connections as there is room for, and a word to the next.
#[tokio::test]
async fn connections_and_refusals_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let mut options = secured(directory.path(), &vault);
    (options.limits.connections, options.limits.strangers, options.limits.refusals) = (1, 2, 3);
    let coordinator = start(options).await;
    let address = coordinator.local_addr();
    let connect = |token| {
        let security = vault.client("ca.pem", Some("client"), token);
        async move { connect_with(&format!("https://{address}"), &security).await }
    };
    let ask = async |channel: &Channel| answer(AdminClient::new(channel.clone()).status(StatusRequest {}).await);
    let code = |answer: Result<(), Failure>| answer.map_err(|failure| failure.code);

    let watcher = connect(Some(OBSERVER)).await.unwrap();
    ask(&watcher).await.unwrap();
    let surplus = connect(Some(OBSERVER)).await.unwrap();
    assert_eq!(code(ask(&surplus).await), Err(ErrorCode::TooManyConnections));
    // The surplus one is still a stranger, and so is the next; a third is not let in at all.
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut third = TcpStream::connect(address).await.unwrap();
    assert_eq!(third.read(&mut [0]).await.unwrap(), 0);
    // The third refusal closes a connection, which makes room.
    assert_eq!(code(ask(&surplus).await), Err(ErrorCode::TooManyConnections));
    let _ = ask(&surplus).await;
    let mut again = TcpStream::connect(address).await.unwrap();
    again.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_ne!(again.read(&mut [0]).await.unwrap(), 0, "an alert of TLS");
    ask(&watcher).await.unwrap();
    silent.shutdown().await.unwrap();
    coordinator.stopper().fail(Failure::new(ErrorCode::Interrupted, "enough")).await;
    drop(watcher);
    coordinator.wait().await;
}

/// Who may look may not stop; who may stop, does so once.
#[tokio::test]
async fn an_operator_stops_the_run_after_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let coordinator = start(secured(directory.path(), &vault)).await;
    let url = format!("https://{}", coordinator.local_addr());
    let channel = async |token| connect_with(&url, &vault.client("ca.pem", Some("client"), Some(token))).await.unwrap();
    let mut worker = FakeWorker::join_over(channel(WORKER).await, "good").await.unwrap();
    let formed = worker.formed().await.unwrap();
    let mut operator = AdminClient::new(channel(OPERATOR).await);
    for requested in [true, false, false] {
        assert_eq!(operator.stop(StopRequest {}).await.unwrap().into_inner().requested, requested);
    }
    assert!(operator.status(StatusRequest {}).await.unwrap().into_inner().stopping);
    worker.train(&formed).await.unwrap();
    assert_eq!(worker.goodbye().await.1.exit_code, u32::from(exit::RETRY));
    drop((worker, operator));
    let outcome = coordinator.wait().await;
    assert_eq!(outcome.exit_code, exit::RETRY);
    assert!(outcome.checkpoint.is_some(), "{outcome:?}");
}

/// What is wrong with files is told before a port is opened.
#[test]
fn unusable_files_are_refused_when_they_are_loaded() {
    type Break = fn(&authority::Vault, &mut crate::config::Security);
    let cases: [(&str, &str, Break); 8] = [
        ("security.certificate", "No such file", |v, _| std::fs::remove_file(v.0.join("server.pem")).unwrap()),
        ("security.certificate", "no certificate in PEM", |v, _| drop(v.put("server.pem", "hello"))),
        ("security.certificate", "certificate expired", |v, s| {
            s.certificate = Some(v.0.join("expired-server.pem"));
            s.private_key = Some(v.0.join("expired-server.key"));
        }),
        ("security.private_key", "no private key in PEM", |v, _| drop(v.put("server.key", "hello"))),
        ("security.private_key", "does not belong to the certificate", |v, s| {
            s.private_key = Some(v.0.join("foreign.key"))
        }),
        ("security.private_key", "chmod 600", |v, _| open_to_all(&v.0.join("server.key"))),
        ("security.client_ca", "it is not a file", |v, s| s.client_ca = Some(v.0.clone())),
        ("security.token_file", "chmod 600", |v, _| open_to_all(&v.0.join("tokens"))),
    ];
    for (setting, why, break_it) in cases {
        let directory = tempfile::tempdir().unwrap();
        let vault = vault(directory.path());
        let mut settings = settings(&vault);
        Security::load(&settings).unwrap();
        break_it(&vault, &mut settings);
        let failure = Security::load(&settings).unwrap_err();
        assert_eq!(failure.code, ErrorCode::SecurityFile);
        assert!(failure.message.starts_with(setting) && failure.message.contains(why), "{why}: {failure}");
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}
