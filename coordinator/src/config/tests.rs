//! The run file from the outside: what loads, what is refused, and in which words.

use super::*;
use ballast_proto::Coded;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

/// A run file that loads.
const SMALLEST: &str = "[model]\nsource = \"m\"\n[data]\ntrain = \"rows.jsonl\"\n";

fn load_text(text: impl AsRef<[u8]>, set: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Resolved, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("demo.toml");
    std::fs::write(&path, text).unwrap();
    let own = |pairs: &[(&str, &str)]| -> Vec<_> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    load(&path, &own(set), &own(env))
}

fn with(text: &str) -> Result<Resolved, ConfigError> {
    load_text(format!("{text}\n{SMALLEST}"), &[], &[])
}

#[test]
fn text_in_quotes_is_read_as_toml() {
    let connector = |value: &str| set("lookahead.connector", value).unwrap().run.lookahead.connector;
    assert_eq!(connector("\"\\nBegin: \""), "\nBegin: ");
    assert_eq!(connector("\\nBegin: "), "\\nBegin: ");
    assert_eq!(connector("\""), "\"");
    assert_eq!(connector("\"a\" and \"b\""), "\"a\" and \"b\"");
}

fn set(key: &str, value: &str) -> Result<Resolved, ConfigError> {
    load_text(SMALLEST, &[(key, value)], &[])
}

#[test]
fn later_layers_win_and_origins_are_kept() {
    let text = format!("{SMALLEST}[train]\nepochs = 2\nglobal_batch = 4\nlearning_rate = 1\n");
    let resolved = load_text(
        text,
        &[("train.epochs", "9"), ("lora.target_modules", "q_proj, v_proj")],
        &[("BALLAST__TRAIN__EPOCHS", "5"), ("BALLAST__TRAIN__GLOBAL_BATCH", "6"), ("BALLAST__LORA__RSLORA", "true")],
    )
    .unwrap();
    let run = &resolved.run;
    assert_eq!((run.train.epochs, run.train.global_batch, run.train.learning_rate), (9, 6, 1.0));
    assert!(run.lora.rslora);
    assert_eq!(run.lora.target_modules.names(), ["q_proj", "v_proj"]);
    assert_eq!(resolved.origin("train.epochs"), &Origin::Set);
    assert_eq!(resolved.origin("train.global_batch"), &Origin::Environment("BALLAST__TRAIN__GLOBAL_BATCH".into()));
    assert_eq!(resolved.origin("train.learning_rate"), &Origin::File { name: "demo.toml".into(), line: 8 });
    assert_eq!(resolved.origin("train.schedule"), &Origin::Default);
}

#[test]
fn defaults_fill_what_is_not_set() {
    let resolved = with("").unwrap();
    let mut run = resolved.run;
    assert_eq!(run.run.name, "demo");
    assert_eq!(run.run.dir, Path::new("runs/demo"));
    let defaults = RunFile::default();
    (run.run, run.model, run.data) = (defaults.run.clone(), defaults.model.clone(), defaults.data.clone());
    assert_eq!(run, defaults);
}

#[test]
fn paths_of_the_file_are_relative_to_it_and_others_to_the_working_directory() {
    let text = "[model]\nsource = \"m\"\n[data]\ntrain = [\"a.jsonl\", \"/b.jsonl\"]\ntemplate = \"t.jinja\"\n";
    let resolved = load_text(text, &[("eval.heldout", "h.jsonl"), ("run.dir", "here")], &[]).unwrap();
    let base = resolved.path.parent().unwrap();
    assert_eq!(resolved.run.data.train.as_slice(), [base.join("a.jsonl"), PathBuf::from("/b.jsonl")]);
    assert_eq!(resolved.run.data.template, base.join("t.jinja").to_str().unwrap());
    assert_eq!(Path::new(&resolved.run.model.source), base.join("m"));
    assert_eq!(resolved.run.eval.heldout.as_deref(), Some(Path::new("h.jsonl")));
    assert_eq!(resolved.run.run.dir, Path::new("here"));

    let builtin = load_text(SMALLEST, &[("data.template", "chatml"), ("model.source", "hf:org/name")], &[]).unwrap();
    assert_eq!((builtin.run.data.template.as_str(), builtin.run.model.source.as_str()), ("chatml", "hf:org/name"));
    let local = set("model.source", "m").unwrap();
    assert!(Path::new(&local.run.model.source).is_absolute());
}

#[test]
fn what_is_shown_loads_back_to_the_same_values() {
    let text = format!(
        "{SMALLEST}system = \"be \\\"brief\\\"\\n\"\n[lora]\nalpha = 1e-3\ntarget_modules = [\"q_proj\"]\n\
         [train]\nmax_steps = 7\n[eval]\nheldout = \"h.jsonl\"\n"
    );
    let resolved = load_text(text, &[("train.epochs", "3")], &[("BALLAST__RUN__SEED", "7")]).unwrap();
    let shown = resolved.to_toml();
    for line in [
        "name = \"demo\"  # default: the run file's name",
        "seed = 7  # environment variable BALLAST__RUN__SEED",
        "epochs = 3  # --set",
        "max_steps = 7  # demo.toml, line 10",
        "rank = 16  # default",
        "# heldout_limit is not set  # default",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line} in\n{shown}");
    }
    let again = load_text(&shown, &[("run.dir", "runs/demo")], &[]).unwrap();
    assert_eq!(again.run, resolved.run);

    let defaults = load_text(with("").unwrap().to_toml(), &[], &[]).unwrap();
    assert_eq!(defaults.run.eval, RunFile::default().eval);
}

/// Message of the refusal, without the run file's temporary directory.
fn refusal(result: Result<Resolved, ConfigError>) -> String {
    let error = result.expect_err("the run file is bad");
    let text = error.to_string();
    let text = text.split_whitespace().map(|word| match word.rsplit_once('/') {
        Some((before, after)) if before.starts_with("/tmp") => after,
        _ => word,
    });
    format!("{}: {}", error.code(), text.collect::<Vec<_>>().join(" "))
}

#[test]
fn each_refusal_names_key_value_origin_and_what_is_allowed() {
    let int = "an integer from 1 to 1000000";
    let cases = [
        (with("[train]\nepoch = 1"), "B1002: unknown key `train.epoch` (demo.toml, line 2); did you mean `train.epochs`?"
            .to_owned()),
        (with("[trian]"), "B1002: unknown key `trian` (demo.toml, line 1); did you mean the section [train]?".into()),
        (with("epochs = 1"), "B1002: unknown key `epochs` (demo.toml, line 1); did you mean `train.epochs`?".into()),
        (set("", "1"), "B1002: unknown key `` (--set); the sections are run, model, lora, data, lookahead, train, eval, \
            cluster, security, checkpoint, observe".into()),
        (load_text(SMALLEST, &[], &[("BALLAST__TRAIN", "1")]), "B1002: unknown key `train` (environment variable \
            BALLAST__TRAIN); the keys of [train] are epochs, max_steps, global_batch, micro_batch_tokens, \
            activation_checkpointing, learning_rate, schedule, warmup_steps, weight_decay, beta1, beta2, epsilon, \
            clip_norm, reduction, on_nonfinite, max_skipped".into()),
        (with("train = 3"), "B1003: `train` = 3 (demo.toml, line 1) is an integer; allowed: a section, written [train]"
            .into()),
        (set("train.epochs", "abc"), format!("B1003: `train.epochs` = \"abc\" (--set) is a string; allowed: {int}")),
        (set("train.epochs", ""), format!("B1003: `train.epochs` = \"\" (--set) is a string; allowed: {int}")),
        (set("train.epochs", "1\nx = 2"), format!("B1003: `train.epochs` = \"\"\" 1 x = 2\"\"\" (--set) is a string; \
            allowed: {int}")),
        (with("[train]\nepochs = 1.0"), format!("B1003: `train.epochs` = 1.0 (demo.toml, line 2) is a float; allowed: \
            {int}")),
        (with("[train]\nepochs = true"), format!("B1003: `train.epochs` = true (demo.toml, line 2) is a boolean; \
            allowed: {int}")),
        (with("[train.epochs]\na = 1"), format!("B1003: `train.epochs` = {{ a = 1 }} (demo.toml, line 1) is a table; \
            allowed: {int}")),
        (with("[run]\nname = 1979-05-27"), "B1003: `run.name` = 1979-05-27 (demo.toml, line 2) is a date or time; \
            allowed: up to 100 letters, digits, `.`, `_` and `-`, beginning with a letter, digit or `_`".into()),
        (with("[train]\nepochs = -1"), format!("B1004: `train.epochs` = -1 (demo.toml, line 2) is out of range; \
            allowed: {int}")),
        (with("[train]\nepochs = 99999999999999999999"), format!("B1004: `train.epochs` = 99999999999999999999 \
            (demo.toml, line 2) does not fit into 64 bits; allowed: {int}")),
        (with("[lora]\nalpha = nan"), "B1004: `lora.alpha` = nan (demo.toml, line 2) is not a finite number; allowed: a \
            number above 0, at most 65536".into()),
        (with("[lora]\nalpha = 1e999"), "B1004: `lora.alpha` = inf (demo.toml, line 2) is not a finite number; allowed: \
            a number above 0, at most 65536".into()),
        (with("[lora]\ndropout = 1.0"), "B1004: `lora.dropout` = 1.0 (demo.toml, line 2) is out of range; allowed: a \
            number from 0 to less than 1".into()),
        (set("cluster.slow_factor", "1"), "B1004: `cluster.slow_factor` = 1 (--set) is out of range; allowed: a number \
            above 1, at most 1000".into()),
        (with("[train]\nschedule = \"linaer\""), "B1004: `train.schedule` = \"linaer\" (demo.toml, line 2) does not \
            know the word `linaer` (did you mean `linear`?); allowed: one of `constant`, `linear`, `cosine`".into()),
        (set("lora.target_modules", "q_prj"), "B1004: `lora.target_modules` = [\"q_prj\"] (--set) does not know the \
            word `q_prj` (did you mean `q_proj`?); allowed: `all-linear`, or a list of different names out of `q_proj`, \
            `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`".into()),
        (with("[lora]\ntarget_modules = []"), "B1004: `lora.target_modules` = [] (demo.toml, line 2) is empty; allowed: \
            `all-linear`, or a list of different names out of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, \
            `up_proj`, `down_proj`".into()),
        (set("run.name", "../x"), "B1004: `run.name` = \"../x\" (--set) begins with a character that it must not begin \
            with; allowed: up to 100 letters, digits, `.`, `_` and `-`, beginning with a letter, digit or `_`".into()),
        (set("run.name", "a/b"), "B1004: `run.name` = \"a/b\" (--set) holds '/'; allowed: up to 100 letters, digits, \
            `.`, `_` and `-`, beginning with a letter, digit or `_`".into()),
        (set("model.source", "~/m"), "B1004: `model.source` = \"~/m\" (--set) begins with `~`, which only a shell \
            expands: write the home directory out; allowed: a directory, a GGUF file, or `hf:org/name`".into()),
        (set("model.source", "hf:name"), "B1004: `model.source` = \"hf:name\" (--set) does not name a model on the hub; \
            allowed: a directory, a GGUF file, or `hf:org/name`".into()),
        (set("data.train", "a,a"), "B1004: `data.train` = [\"a\", \"a\"] (--set) names `a` twice; allowed: a path, or a \
            list of different paths that is not empty".into()),
        (set("data.train", "[1]"), "B1003: `data.train` = [1] (--set) is a list that holds an integer; allowed: a path, \
            or a list of different paths that is not empty".into()),
        (set("cluster.bind", "7070"), "B1004: `cluster.bind` = \"7070\" (--set) is not an address with a port; allowed: \
            an IP address or `localhost`, a colon and a port, such as `127.0.0.1:7070`".into()),
    ];
    for (result, message) in cases {
        assert_eq!(refusal(result), message);
    }
}

#[test]
fn a_store_is_a_place_and_holds_no_credentials() {
    let good = [
        "",
        "s3://bucket",
        "s3://bucket/",
        "s3://b/runs/demo",
        "gs://b/x",
        "az://container/x",
        "file:///mnt/runs/demo",
    ];
    for url in good {
        assert_eq!(set("checkpoint.store", url).unwrap().run.checkpoint.store, url);
    }
    let bad = [
        ("bucket/prefix", "is not a URL"),
        ("http://host/bucket", "begins with `http://`, which is not known"),
        ("s3:///prefix", "names no bucket"),
        ("file://relative/path", "does not name a directory by its whole path"),
        ("file://", "does not name a directory"),
        ("s3://key:secret@bucket", "credentials and options come from the environment"),
        ("s3://bucket?region=eu", "credentials and options come from the environment"),
        ("az://container/../other", "goes up and down its own path"),
        ("s3://buck et", "holds ' '"),
    ];
    for (url, problem) in bad {
        let message = refusal(set("checkpoint.store", url));
        assert!(message.starts_with("B1004: `checkpoint.store`") && message.contains(problem), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert!(refusal(set("checkpoint.on_failure", "contine")).contains("did you mean `continue`?"));
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    assert_eq!(
        refusal(load_text("[run]\nname = \"x\nseed = 1\n", &[], &[])),
        "B1001: demo.toml, line 2, column 10: not TOML: invalid basic string, expected `\"`"
    );
    assert!(
        refusal(load_text("[run]\nseed = 1\nseed = 2\n", &[], &[])).contains("line 3, column 1: not TOML: duplicate")
    );
    assert!(refusal(load_text([0xff, 0xfe, b'a'], &[], &[])).contains("it is not UTF-8 at byte 0"));
    assert!(refusal(load_text(vec![b'#'; 2 << 20], &[], &[])).contains("no run file is that long"));
    assert!(refusal(load(Path::new("/nowhere/x.toml"), &[], &[])).contains("No such file"));
    assert!(refusal(load(Path::new("/"), &[], &[])).contains("it is not a file"));
    let deep = format!("x = {}1{}", "[".repeat(50_000), "]".repeat(50_000));
    assert!(refusal(load_text(deep, &[], &[])).starts_with("B1001"));
}

#[test]
fn missing_keys_are_named() {
    let message =
        "B1006: `model.source` is missing from demo.toml; set it to a directory, a GGUF file, or `hf:org/name`";
    assert_eq!(refusal(load_text("", &[], &[])), message);
    assert!(refusal(load_text("", &[("model.source", "m")], &[])).starts_with("B1006: `data.train` is missing"));
}

#[test]
fn contradictions_tell_both_values_and_the_reason() {
    let fields = "[data]\ntrain = \"r\"\nformat = \"fields\"\n[model]\nsource = \"m\"\n";
    let cases: Vec<(Result<Resolved, ConfigError>, &str, &str)> = vec![
        (
            set("lookahead.turns", "all"),
            "`lookahead.turns` = \"all\" (--set)",
            "`data.train_turns` = \"last\" (default)",
        ),
        (
            load_text(fields, &[], &[]),
            "`data.format` = \"fields\" (demo.toml, line 3)",
            "`data.prompt_field` = nothing",
        ),
        (load_text(fields, &[("data.prompt_field", "q")], &[]), "`data.format`", "`data.answer_field` = nothing"),
        (
            load_text(fields, &[("data.prompt_field", "q"), ("data.answer_field", "q")], &[]),
            "`data.prompt_field` = \"q\"",
            "cannot be the same field",
        ),
        (set("data.answer_field", "a"), "`data.answer_field` = \"a\"", "`data.format` = \"auto\" (default)"),
        (set("lookahead.preview_level", "token"), "`lookahead.preview_level`", "`lookahead.mode` = \"virtual\""),
        (
            load_text(SMALLEST, &[("lookahead.preview_level", "token"), ("lookahead.mode", "real")], &[]),
            "`lookahead.connector`",
            "dangling space",
        ),
        (
            load_text(SMALLEST, &[("train.warmup_steps", "10"), ("train.max_steps", "10")], &[]),
            "`train.warmup_steps` = 10",
            "`train.max_steps` = 10",
        ),
        (set("eval.heldout_limit", "3"), "`eval.heldout_limit`", "`eval.heldout` = nothing"),
        (set("eval.samples", "3"), "`eval.samples` = 3", "`eval.heldout` = nothing"),
        (
            load_text(SMALLEST, &[("eval.heldout", "h"), ("eval.max_new_tokens", "0")], &[]),
            "`eval.max_new_tokens` = 0",
            "`eval.samples` = 1 (default)",
        ),
        (
            load_text(SMALLEST, &[("eval.probes", "p"), ("eval.max_new_tokens", "0")], &[]),
            "`eval.max_new_tokens` = 0",
            "`eval.probes` = \"p\"",
        ),
        (set("model.revision", "main"), "`model.revision`", "`model.source` = \"/"),
        (set("cluster.min_workers", "3"), "`cluster.min_workers` = 3", "`cluster.workers` = 2 (default)"),
        (set("security.certificate", "c.pem"), "`security.certificate`", "`security.private_key` = nothing"),
        (set("security.private_key", "c.key"), "`security.private_key`", "`security.certificate` = nothing"),
        (set("security.client_ca", "ca.pem"), "`security.client_ca`", "`security.certificate` = nothing"),
        (set("cluster.heartbeat_ms", "5000"), "`cluster.heartbeat_ms` = 5000", "`cluster.lease_ms` = 5000 (default)"),
        (set("cluster.lease_ms", "60000"), "`cluster.lease_ms` = 60000", "`cluster.progress_ms` = 60000"),
        (set("cluster.progress_ms", "120001"), "`cluster.progress_ms`", "`cluster.collective_ms` = 120000"),
        (set("cluster.collective_ms", "600001"), "`cluster.collective_ms`", "`cluster.load_ms` = 600000"),
    ];
    for (result, one, other) in cases {
        let message = refusal(result);
        assert!(message.starts_with("B1005: "), "{message}");
        assert!(message.contains(one) && message.contains(other), "{message}\nlacks {one} or {other}");
    }
}

#[test]
fn what_has_no_effect_is_not_refused_when_lookahead_is_off() {
    let off = [("lookahead.mode", "off"), ("lookahead.turns", "all"), ("lookahead.preview_level", "token")];
    load_text(SMALLEST, &off, &[]).unwrap();
}

#[test]
fn warm_up_is_checked_again_when_the_plan_is_known() {
    let resolved = set("train.warmup_steps", "10").unwrap();
    resolved.check_total_steps(11).unwrap();
    let message = resolved.check_total_steps(10).unwrap_err().to_string();
    assert!(
        message.contains("`train.warmup_steps` = 10 (--set) contradicts `train.epochs` = 1 (default)"),
        "{message}"
    );
}

#[test]
fn listening_beyond_loopback_must_be_accepted() {
    let message = refusal(set("cluster.bind", "0.0.0.0:7070"));
    assert!(
        message.starts_with("B1007: `cluster.bind` = \"0.0.0.0:7070\" (--set) listens beyond loopback"),
        "{message}"
    );
    load_text(SMALLEST, &[("cluster.bind", "0.0.0.0:7070"), ("cluster.insecure", "true")], &[]).unwrap();
    let tls = [("security.certificate", "c.pem"), ("security.private_key", "c.key")];
    let tokens = [("security.token_file", "tokens")];
    let open = |settings: &[&[(&str, &str)]]| {
        load_text(SMALLEST, &[&[("cluster.bind", "0.0.0.0:7070")], settings.concat().as_slice()].concat(), &[])
    };
    assert!(refusal(open(&[&tls])).contains(": set security.token_file (tokens), as"));
    assert!(refusal(open(&[&tokens])).contains(": set security.certificate and security.private_key (TLS), as"));
    assert!(message.contains("(TLS), and security.token_file (tokens), as"), "{message}");
    open(&[&tls, &tokens]).unwrap();
    for loopback in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7070", "localhost:80"] {
        set("cluster.bind", loopback).unwrap();
    }
}

/// Text that looks like a value of TOML, good or bad.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<String>(),
        any::<String>().prop_map(|s| format!("{s:?}")),
        proptest::collection::vec(any::<String>(), 0..3).prop_map(|s| format!("{s:?}")),
        Just("{ a = 1 }".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
    ]
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = load_text(bytes, &[], &[]);
    }

    #[test]
    fn values_never_panic_and_what_loads_is_in_range(key in 0..KEYS.len(), value in value(), as_file in any::<bool>()) {
        let name = KEYS[key].name;
        let result = if as_file { with(&format!("{name} = {value}")) } else { set(name, &value) };
        match result {
            // The result must be presentable, and within what the same key allows.
            Ok(resolved) => prop_assert!(resolved.to_toml().contains("[observe]")),
            Err(error) => prop_assert!(error.code().exit_code() == 64 && !error.to_string().is_empty()),
        }
    }

    #[test]
    fn integers_load_exactly_when_they_are_in_range(key in 0..KEYS.len(), n in prop_oneof![any::<i64>(), -2..20_000i64]) {
        let Kind::Integer(min, max) = KEYS[key].kind else { return Ok(()) };
        let result = set(KEYS[key].name, &n.to_string());
        let refused = matches!(result, Err(ConfigError::BadValue { .. }));
        prop_assert_eq!(refused, n < min || n > max, "{}", n);
    }
}
