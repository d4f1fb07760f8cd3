//! Remote stores against a real server that speaks S3 over HTTP (moto, from PyPI).
//!
//! `BALLAST_TEST_S3` names a Python interpreter that has it: `make s3-server` makes one and prints its path. Without it these
//! tests say that they are skipped.
#![cfg(feature = "remote-stores")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use ballast_coordinator::checkpoint::{RemoteStore, Store, StoreError, conformance, take_epoch};
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; it ends with its standard input.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// With these buckets. `None`, and a word about it, where there is none to be had.
    fn start(test: &str, buckets: &[&str]) -> Option<Self> {
        let Some(python) = std::env::var_os("BALLAST_TEST_S3") else {
            println!("skipped: {test} needs BALLAST_TEST_S3, an interpreter with moto (make s3-server)");
            return None;
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/remote_stores/s3_server.py");
        let mut process = Command::new(&python)
            .arg(script)
            .args(buckets)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("BALLAST_TEST_S3 = {}: {e}", python.display()));
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|e| panic!("the server said {line:?}, not its port: {e}"));
        Some(Self { process, port })
    }

    /// A store under a prefix of a bucket.
    fn store(&self, bucket: &str) -> RemoteStore {
        RemoteStore::open(&format!("s3://{bucket}/runs/demo"), environment(self.port), PATIENCE).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn environment(port: u16) -> Vec<(String, String)> {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "SECRET".to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("PATH", "/bin".to_owned()),
    ];
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn conforms_on_s3() {
    let Some(server) = Server::start("conforms_on_s3", &["conformance"]) else { return };
    conformance::run(&server.store("conformance")).unwrap();
}

#[test]
fn two_runs_in_one_bucket_do_not_see_each_other_and_strangers_are_not_listed() {
    let Some(server) = Server::start("two_runs_in_one_bucket", &["shared"]) else { return };
    let store = server.store("shared");
    let open = |prefix: &str| RemoteStore::open(&format!("s3://shared/{prefix}"), environment(server.port), PATIENCE);
    let (neighbour, whole) = (open("runs/demo2/").unwrap(), open("runs").unwrap());
    store.put("a/b", b"1").unwrap();
    neighbour.put("a/b", b"2").unwrap();
    assert_eq!(store.list("").unwrap(), ["a/b"]);
    assert_eq!(whole.list("").unwrap(), ["demo/a/b", "demo2/a/b"]);
    assert_eq!(neighbour.get("a/b").unwrap(), b"2"[..]);
    assert_eq!(store.place(), "s3://shared/runs/demo");
    assert_eq!((take_epoch(&store).unwrap(), take_epoch(&store).unwrap(), take_epoch(&neighbour).unwrap()), (1, 2, 1));
}

#[test]
fn a_missing_bucket_is_an_error_that_names_the_place_and_no_secret() {
    let Some(server) = Server::start("a_missing_bucket", &[]) else { return };
    let store = RemoteStore::open("s3://nobody-made-this", environment(server.port), PATIENCE).unwrap();
    for error in [store.put("a", b"1").unwrap_err(), store.list("").unwrap_err(), store.create("a", b"1").unwrap_err()]
    {
        let error = format!("{error} {error:?}");
        assert!(error.contains("nobody-made-this") && !error.contains("SECRET"), "{error}");
    }
}

/// As the coordinator uses one: from blocking threads of a runtime, in whose tasks the last reference may be dropped.
#[tokio::test]
async fn a_store_can_be_used_and_dropped_where_a_runtime_is() {
    let Some(server) = Server::start("a_store_can_be_used", &["inside"]) else { return };
    let store = std::sync::Arc::new(server.store("inside"));
    let blocking = std::sync::Arc::clone(&store);
    tokio::task::spawn_blocking(move || blocking.put("a", b"1").unwrap()).await.unwrap();
    drop(store);
}

/// A server that takes connections and never answers.
#[test]
fn a_store_that_does_not_answer_is_given_up_at_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let deadline = Duration::from_millis(300);
    let store = RemoteStore::open("s3://bucket/prefix", environment(port), deadline).unwrap();
    let began = Instant::now();
    let error = store.put("a", b"1").unwrap_err();
    assert!(began.elapsed() >= deadline);
    let StoreError::Unavailable { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(error.to_string(), "cannot write s3://bucket/prefix/a: no answer within 0.3 s");
}

#[test]
fn a_url_that_cannot_be_used_is_refused() {
    for url in ["s3://", "nonsense", "s3://bucket/a//b"] {
        let error = RemoteStore::open(url, environment(1), PATIENCE).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open {url}: ")), "{error}");
    }
}
