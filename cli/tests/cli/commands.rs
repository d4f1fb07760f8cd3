//! What the commands print and leave behind.

use crate::scene::Scene;
use ballast_coordinator::config;
use ballast_proto::ErrorCode;
use serde_json::Value;

/// Held-out rows, probes and one sample answer.
const EVALUATION: &str = "\
[eval]
heldout = \"rows.jsonl\"
heldout_limit = 2
probes = \"probes.jsonl\"
samples = 1
max_new_tokens = 4
";

/// A scene with an evaluation, trained for two steps in this mode.
fn trained(scene: &Scene, mode: &str) -> (String, String) {
    let mode = format!("lookahead.mode={mode}");
    scene.succeed(&[
        "train",
        "run.toml",
        "--set",
        "train.max_steps=2",
        "--set",
        &mode,
        "--set",
        &format!("run.name={}", &mode[15..]),
    ])
}

fn evaluated() -> Scene {
    let scene = Scene::new();
    scene.before(EVALUATION);
    scene.write("probes.jsonl", "{\"prompt\": \"Say something kind.\"}\n");
    scene
}

#[test]
fn bad_usage_ends_with_64_and_help_with_0() {
    let scene = Scene::new();
    for args in [&["train"][..], &["fly"], &["train", "run.toml", "--set", "epochs"], &["explain", "B0000"], &[]] {
        let output = scene.ballast(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    let (version, _) = scene.succeed(&["--version"]);
    assert_eq!(version, format!("ballast {}\n", env!("CARGO_PKG_VERSION")));
    for args in [&["--help"][..], &["train", "--help"], &["worker", "--help"]] {
        assert!(scene.succeed(args).0.contains("Usage: ballast"), "{args:?}");
    }
}

#[test]
fn every_code_is_explained() {
    let scene = Scene::new();
    let (list, _) = scene.succeed(&["explain"]);
    for code in ErrorCode::ALL {
        assert!(list.contains(&format!("{code}  {}\n", code.title())), "{code}");
    }
    let (page, _) = scene.succeed(&["explain", "b1002"]);
    assert!(page.starts_with("# B1002: unknown key in the run file\n"), "{page}");
}

#[test]
fn a_shown_run_file_loads_back() {
    let scene = Scene::new();
    let shown = |file: &str| scene.succeed(&["config", "show", file, "--set", "run.seed=9"]).0;
    let first = shown("run.toml");
    assert!(
        first.contains("\nseed = 9  # --set\n") && first.contains("\nworkers = 1  # run.toml, line 13\n"),
        "{first}"
    );
    scene.write("shown.toml", &first);
    let values =
        |text: &str| text.lines().filter_map(|line| Some(line.split_once("  # ")?.0.to_owned())).collect::<Vec<_>>();
    assert_eq!(values(&shown("shown.toml")), values(&first));
}

#[test]
fn errors_are_json_when_log_lines_are() {
    let scene = Scene::new();
    let output = scene.ballast(&["--log", "json", "config", "show", "nope.toml"]).output().unwrap();
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((error["event"].as_str(), error["code"].as_str()), (Some("error"), Some("B1001")));
    assert_eq!((error["exit_code"].as_u64(), error["help"].as_str()), (Some(64), Some("ballast explain B1001")));
}

#[test]
fn prepared_rows_are_written_and_samples_shown_with_their_loss_marked() {
    let scene = Scene::new();
    let (text, _) = scene.succeed(&["prepare", "run.toml", "--out", "prepared", "--show", "1"]);
    assert!(text.contains("rows                  4\n") && text.contains("  added by LookAhead"), "{text}");
    let shown = &text[text.find("sample 0").unwrap()..];
    assert!(
        shown.contains("The answer begins with: Let's solve this problem.") && !shown.contains("sample 1"),
        "{text}"
    );
    let loss = &shown[shown.rfind("[[").unwrap()..shown.rfind("]]").unwrap()];
    assert!(loss.starts_with("[[Let's solve this problem. She has 3 and 1 pictures."), "{text}");
    assert!(text.ends_with("rows and manifest are in prepared\n"), "{text}");
    assert_eq!(String::from_utf8(scene.read("prepared/rows.jsonl")).unwrap().lines().count(), 4);
    let manifest: Value = serde_json::from_slice(&scene.read("prepared/manifest.json")).unwrap();
    assert_eq!(manifest["lookahead"]["mode"], "virtual");
}

#[test]
fn a_run_is_told_reported_and_compared() {
    let scene = evaluated();
    let (told, progress) = trained(&scene, "virtual");
    for line in ["step 1/2  loss ", "step 2/2  loss ", "worker 1 (local-0) is ready: 1 of 1", "checkpoint of step 2: "]
    {
        assert!(progress.lines().any(|l| l.starts_with(line)), "{line} in\n{progress}");
    }
    for part in [
        "NLL of the first 8 answer tokens",
        "KL(tuned || base) at answer positions, in nats\n  1  ",
        "refusals of 1 probes, strict",
        "base answers",
        "adapter     runs/virtual/adapter\n",
        "report      runs/virtual/report.json\n",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    // A complete run is told again, not trained again.
    let (again, progress) = trained(&scene, "virtual");
    assert!(again.contains("already complete") && !progress.contains("step 1/2"), "{again}{progress}");

    trained(&scene, "off");
    let (table, _) = scene.succeed(&["compare", "runs/off", "runs/virtual/report.json"]);
    for row in [" lookahead.mode ", " KL, answer position 8 ", " refusals, loose ", " tokens/s "] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row} in\n{table}");
    }
    assert!(!table.contains("lora.rank"), "{table}");
    let (json, _) = scene.succeed(&["compare", "--json", "runs/off", "runs/virtual"]);
    let runs: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&runs[0]["settings"]["lookahead.mode"], &runs[1]["settings"]["lookahead.mode"]),
        (&"off".into(), &"virtual".into())
    );
    assert_eq!(runs[0]["kl"].as_array().unwrap().len(), 8);
}

#[test]
fn events_are_json_lines_for_programs() {
    let scene = Scene::new();
    let (stdout, stderr) = scene.succeed(&["--log", "json", "train", "run.toml"]);
    assert_eq!(stdout, "");
    let events: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    for pair in
        ["prepared", "listening", "worker_joined", "worker_ready", "generation_formed", "step", "end"].windows(2)
    {
        let at = |name| names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("{name} in {names:?}"));
        assert!(at(pair[0]) < at(pair[1]), "{names:?}");
    }
    let end = events.last().unwrap();
    assert_eq!((end["exit_code"].as_u64(), end["adapter"].as_str()), (Some(0), Some("runs/run/adapter")));
}

#[test]
fn memory_is_estimated_part_by_part_and_told_before_training() {
    let scene = Scene::new();
    let (json, _) = scene.succeed(&["estimate", "run.toml", "--json"]);
    let estimate: Value = serde_json::from_str(&json).unwrap();
    let bytes = |parts: &Value| parts.as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum::<u64>();
    let (on_device, of_process) = (bytes(&estimate["on_device"]), bytes(&estimate["of_process"]));
    assert_eq!(estimate["device_bytes"].as_u64(), Some(on_device), "{json}");
    assert_eq!(estimate["process_bytes"].as_u64(), Some(on_device + of_process), "{json}");
    assert_eq!((estimate["device"].as_str(), estimate["workers"].as_u64()), (Some("cpu"), Some(1)), "{json}");
    // More tokens at a time take more of what depends on them, and of nothing else.
    let larger = ["estimate", "run.toml", "--json", "--set", "train.micro_batch_tokens=8", "--set", "lora.rank=1"];
    let smaller: Value = serde_json::from_str(&scene.succeed(&larger).0).unwrap();
    for part in ["activations_kept", "adapter_and_optimizer"] {
        assert!(smaller["on_device"][part].as_u64() < estimate["on_device"][part].as_u64(), "{part}: {smaller} {json}");
    }
    assert_eq!(smaller["on_device"]["frozen_weights"], estimate["on_device"]["frozen_weights"]);

    let (text, _) = scene.succeed(&["estimate", "run.toml"]);
    assert!(text.starts_with("each of 1 workers, on cpu, for at most ") && text.contains("\nin all  "), "{text}");
    let all = text.lines().last().unwrap().trim_start_matches("in all").trim();
    let (_, told) = scene.succeed(&["train", "run.toml"]);
    assert!(told.contains(&format!("memory: about {all} a worker")), "{told}");

    let cuda = scene.run(&["estimate", "run.toml", "--device", "cuda"], &[]);
    if cfg!(feature = "cuda") {
        assert_eq!(cuda.exit_code, 0, "{}", cuda.stderr);
    } else {
        assert!(cuda.message.starts_with("error[B6005]: this ballast was built without CUDA"), "{}", cuda.stderr);
    }
}

#[test]
fn the_schema_of_a_run_file_is_printed_for_editors() {
    let (printed, stderr) = Scene::new().succeed(&["config", "schema"]);
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), config::schema());
    assert!(printed.ends_with("}\n") && stderr.is_empty(), "{stderr}");
}
