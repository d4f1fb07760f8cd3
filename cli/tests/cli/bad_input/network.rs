//! Peers that are not there or not Ballast, addresses, run directories.

use super::cases::{Case, TRAIN, case};
use crate::scene::Scene;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::time::Duration;

const WORKER: &[&str] = &["worker", "--connect-timeout", "1", "--coordinator", "http://127.0.0.1:{port}"];

/// Something listens that answers everything with `answer`. The thread ends with the test's process.
fn stranger(scene: &Scene, answer: &'static [u8]) {
    let listener = scene.listen();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("no coordinator", "B4005", WORKER, |s| drop(s.listen())),
        case("a coordinator that is a web server", "B4011", WORKER, |s| stranger(s, b"HTTP/1.1 200 OK\r\n\r\nhello")),
        case("a coordinator that babbles", "B4011", WORKER, |s| stranger(s, &[0xa5; 4096])),
        case("a coordinator's URL that is none", "B1004", &["worker", "--coordinator", "::"], |_| {}),
        case("TLS without an authority", "B1004", &["worker", "--coordinator", "https://127.0.0.1:1"], |_| {}),
        case(
            "an authority that is none",
            "B1009",
            &["worker", "--coordinator", "https://127.0.0.1:1", "--ca", "run.toml"],
            |_| {},
        ),
        case(
            "a token that would travel in the clear",
            "B1007",
            &["status", "--coordinator", "http://192.0.2.1:7070", "--token-file", "token"],
            |s| s.write_secret("token", "0123456789abcdef0123456789abcdef\n"),
        ),
        case(
            "the coordinator's tokens for a worker's",
            "B1009",
            &["worker", "--coordinator", "http://127.0.0.1:1", "--token-file", "tokens"],
            |s| s.write_secret("tokens", "worker 0123456789abcdef0123456789abcdef\n"),
        ),
        case("a status of nothing", "B4005", &["status", "--coordinator", "http://127.0.0.1:{port}"], |s| {
            drop(s.listen())
        }),
        case("certificates for no name", "B1008", &["certs", "--out", "certs", "--host", "two words"], |_| {}),
        case(
            "a ring for everybody",
            "B1007",
            &["worker", "--coordinator", "http://127.0.0.1:1", "--ring-bind", "0.0.0.0:0"],
            |_| {},
        ),
        case(
            "a ring address that is none",
            "B1004",
            &["worker", "--coordinator", "http://127.0.0.1:1", "--ring-bind", "here"],
            |_| {},
        ),
        case(
            "a ring address of another machine",
            "B4010",
            &["worker", "--coordinator", "http://127.0.0.1:1", "--insecure", "--ring-bind", "192.0.2.1:0"],
            |_| {},
        ),
        case(
            "more threads than any machine has",
            "B1004",
            &["worker", "--coordinator", "http://127.0.0.1:1", "--threads", "4294967296"],
            |_| {},
        ),
        case("a port that is taken", "B4010", TRAIN, |s| {
            let listener = s.listen();
            s.replace("127.0.0.1:0", &listener.local_addr().unwrap().to_string());
            // The scene ends with the process; until then the port stays taken.
            std::mem::forget(listener);
        }),
        case("a run directory that is a file", "B5001", TRAIN, |s| {
            s.write("taken", "");
            s.before("[run]\ndir = \"taken\"");
        }),
        case("a run directory with a garbled run.json", "B5003", TRAIN, |s| {
            std::fs::create_dir_all(s.path("old")).unwrap();
            s.write("old/run.json", "{\"format\": ");
            s.before("[run]\ndir = \"old\"");
        }),
        case("a comparison with something that is no run", "B5006", &["compare", "model", "model"], |_| {}),
        case("a comparison with a garbled report", "B5006", &["compare", "old", "old"], |s| {
            std::fs::create_dir(s.path("old")).unwrap();
            s.write("old/report.json", "{\"format\": 1");
        }),
        case("an audit of something that is no run", "B5006", &["audit", "model"], |_| {}),
        case("an audit of a garbled ledger", "B5005", &["audit", "old"], |s| {
            std::fs::create_dir(s.path("old")).unwrap();
            s.write("old/ledger", "{\"kind\":\"start\"}\n{\"kind\":\"start\"}\n");
        }),
        case("an audit of an empty ledger", "B5005", &["audit", "old"], |s| {
            std::fs::create_dir(s.path("old")).unwrap();
            s.write("old/ledger", "");
        }),
    ]
}

/// Garbage on the coordinator's port: each connection is dropped or ignored, and the coordinator goes on.
#[test]
fn garbage_does_not_disturb_a_coordinator() {
    let scene = Scene::new();
    let port = scene.listen().local_addr().unwrap().port();
    let bind = format!("cluster.bind=127.0.0.1:{port}");
    let mut coordinator = std::process::Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(["coordinator", "run.toml", "--set", &bind])
        .current_dir(scene.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(coordinator.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("listening on ")), "it ended early");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let payloads: [Vec<u8>; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 1 << 16],
        (0..=255).cycle().take(1 << 16).collect(),
        [&preface[..], &[0xff; 64]].concat(),
        [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 9, 9, 1, 2, 3, 4]].concat(),
    ];
    for payload in payloads {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // The coordinator may hang up before it has read everything.
        let _ = stream.write_all(&payload);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    TcpStream::connect(("127.0.0.1", port)).expect("it listens as before");
    kill(Pid::from_raw(i32::try_from(coordinator.id()).unwrap()), Signal::SIGTERM).unwrap();
    let rest: Vec<_> = lines.collect();
    assert!(!rest.iter().any(|line| line.contains("panicked")), "{rest:?}");
    assert_eq!(coordinator.wait().unwrap().code(), Some(75), "{rest:?}");
}
