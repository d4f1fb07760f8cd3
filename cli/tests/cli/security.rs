//! Certificates, tokens and roles between real processes.

use crate::scene::Scene;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// The files of `ballast certs`, and whether others are kept from them.
const FILES: [(&str, bool); 9] = [
    ("ca.pem", false),
    ("observer.token", true),
    ("operator.token", true),
    ("server.key", true),
    ("server.pem", false),
    ("tokens", true),
    ("worker.key", true),
    ("worker.pem", false),
    ("worker.token", true),
];

/// A scene whose run file has the `[security]` section that `ballast certs` prints.
fn secured() -> Scene {
    let scene = Scene::new();
    let (instructions, _) = scene.succeed(&["certs", "--out", "certs", "--host", "host.example"]);
    let section = &instructions[instructions.find("[security]").unwrap()..instructions.find("\n\nOn every").unwrap()];
    scene.before(section);
    scene
}

fn tokens(scene: &Scene) -> Vec<String> {
    let text = |name: &str| String::from_utf8(scene.read(&format!("certs/{name}.token"))).unwrap().trim().to_owned();
    ["worker", "operator", "observer"].into_iter().map(text).collect()
}

/// Every file below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[test]
fn certs_are_made_once_and_secrets_are_kept_from_others() {
    let scene = Scene::new();
    let (text, _) = scene.succeed(&["certs", "--out", "new/certs", "--host", "10.0.0.1", "--host", "h", "--days", "3"]);
    assert!(text.starts_with("Valid for 3 days.") && text.contains("--coordinator https://10.0.0.1:7070 "), "{text}");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (name, secret) in FILES {
        let mode = mode(&scene.path("new/certs").join(name));
        assert!(if secret { mode == 0o600 } else { mode & 0o600 == 0o600 }, "{name}: {mode:o}");
    }
    assert_eq!((below(&scene.path("new")).len(), mode(&scene.path("new/certs"))), (FILES.len(), 0o700));
    let before = scene.read("new/certs/ca.pem");
    let outcome = scene.run(&["certs", "--out", "new/certs", "--host", "h"], &[]);
    assert!(outcome.exit_code == 64 && outcome.message.starts_with("error[B1009]: --out = "), "{}", outcome.stderr);
    assert_eq!(scene.read("new/certs/ca.pem"), before);
    let distinct: std::collections::BTreeSet<_> = fs::read_to_string(scene.path("new/certs/tokens"))
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1).filter(|word| word.len() == 64).map(str::to_owned))
        .collect();
    assert_eq!(distinct.len(), 3);
}

/// Its workers are told what they need, and no token is left anywhere.
#[test]
fn train_works_with_mutual_tls_and_tokens() {
    let scene = secured();
    // A token of another run in this environment must not be what the workers show.
    let output =
        scene.ballast(&["train", "run.toml"]).env("BALLAST_TOKEN", "x".repeat(40)).env("BALLAST_LOG", "trace").output();
    let output = output.unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    let written: Vec<PathBuf> = below(&scene.path("runs"));
    assert!(
        written.iter().any(|path| path.ends_with("report.json"))
            && written.iter().any(|path| path.ends_with("worker-0.log"))
    );
    for token in tokens(&scene) {
        assert!(!stdout.contains(&token) && !stderr.contains(&token));
        for path in &written {
            let bytes = fs::read(path).unwrap();
            assert!(!bytes.windows(token.len()).any(|w| w == token.as_bytes()), "{}", path.display());
        }
    }
}

/// A coordinator that listens and waits for workers.
fn coordinator(scene: &Scene, url: &str) -> Child {
    let bind = format!("cluster.bind={}", scene.listen().local_addr().unwrap());
    let mut coordinator = std::process::Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(["coordinator", "run.toml", "--set", &bind])
        .current_dir(scene.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(coordinator.stderr.take().unwrap()).lines().map(Result::unwrap);
    let url = format!("listening on {url}://");
    assert!(lines.any(|line| line.starts_with(&url)), "it ended early");
    // What it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    coordinator
}

#[test]
fn observers_look_and_operators_stop() {
    let scene = secured();
    let mut coordinator = coordinator(&scene, "https");
    let client = [
        "--coordinator",
        "https://127.0.0.1:{port}",
        "--ca",
        "certs/ca.pem",
        "--certificate",
        "certs/worker.pem",
        "--private-key",
        "certs/worker.key",
    ];
    let ask = |words: &[&'static str]| [words, &client[..]].concat();

    let (json, _) = scene.succeed(&ask(&["status", "--json", "--token-file", "certs/observer.token"]));
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status["run"].as_str(), status["phase"].as_str()), (Some("run"), Some("gathering")));
    assert_eq!(
        (status["step"].as_u64(), status["total_steps"].as_u64(), status["workers_wanted"].as_u64()),
        (Some(0), Some(1), Some(1))
    );

    let refused = |args: &[&str], env: &[(&str, &str)]| {
        let outcome = scene.run(args, env);
        (outcome.exit_code, outcome.message[..outcome.message.len().min(12)].to_owned())
    };
    let [worker, operator, observer] = tokens(&scene).try_into().unwrap();
    assert_eq!(refused(&ask(&["stop"]), &[]), (1, "error[B4013]".to_owned()));
    assert_eq!(refused(&ask(&["stop"]), &[("BALLAST_TOKEN", &observer)]), (1, "error[B4014]".to_owned()));
    assert_eq!(refused(&ask(&["status"]), &[("BALLAST_TOKEN", &worker)]), (1, "error[B4014]".to_owned()));
    assert_eq!(refused(&ask(&["worker"]), &[("BALLAST_TOKEN", &operator)]), (1, "error[B4014]".to_owned()));
    let without = ["stop", "--coordinator", "https://127.0.0.1:{port}", "--ca", "certs/ca.pem"];
    assert_eq!(refused(&without, &[("BALLAST_TOKEN", &operator)]), (1, "error[B4015]".to_owned()));

    let output = scene.ballast(&ask(&["stop"])).env("BALLAST_TOKEN", &operator).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Nothing was trained, so there is nothing to wait for.
    assert_eq!(coordinator.wait().unwrap().code(), Some(75));
}

/// Without a section everyone may do everything.
#[test]
fn an_open_coordinator_answers_everyone() {
    let scene = Scene::new();
    let mut coordinator = coordinator(&scene, "http");
    let (text, _) = scene.succeed(&["status", "--coordinator", "http://127.0.0.1:{port}"]);
    assert!(text.contains("phase       gathering\nstep        0/1\n"), "{text}");
    kill(Pid::from_raw(i32::try_from(coordinator.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(coordinator.wait().unwrap().code(), Some(75));
}
