use super::support::{byte_model, fixture, pair, run, write_rows};
use ballast_coordinator::config::{
    LookAheadMode, OnBadRow, OnTooLong, Paths, PreviewLevel, RowFormat, RunFile, ShortAnswer, Turns,
};
use ballast_coordinator::data::{
    DataError, MANIFEST_FILE, MANIFEST_KIND, ModelText, PrepareProgress, PreparedSet, ROWS_FILE, Span, prepare_with,
};
use ballast_proto::{Coded, ErrorCode};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn prepare(run: &RunFile) -> Result<PreparedSet, DataError> {
    prepare_with(run, &byte_model(), &|_| {})
}

/// A directory with these rows in `train.jsonl`, and a run on them.
fn setup(rows: &[Value]) -> (TempDir, RunFile) {
    let directory = tempfile::tempdir().unwrap();
    write_rows(directory.path(), "train.jsonl", rows);
    let run = run(directory.path(), "train.jsonl");
    (directory, run)
}

fn real(run: &mut RunFile, tokens: u32) {
    run.lookahead.mode = LookAheadMode::Real;
    run.lookahead.tokens = tokens;
}

fn text(set: &PreparedSet, sample: usize) -> Vec<(String, bool)> {
    let spans = set.spans(sample, &byte_model().tokenizer).unwrap().unwrap();
    spans.into_iter().map(|Span { text, loss }| (text, loss)).collect()
}

fn error_of(run: &RunFile) -> (ErrorCode, String) {
    let error = prepare(run).unwrap_err();
    (error.code(), error.to_string())
}

fn cache_files(run: &RunFile) -> Vec<PathBuf> {
    let cache = run.data.cache_dir.as_ref().unwrap();
    std::fs::read_dir(cache).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn rows_become_samples_with_loss_on_the_answer() {
    let (_directory, run) = setup(&[pair("hello", "world"), pair("ab", "c")]);
    let set = prepare(&run).unwrap();
    let prompt = |q: &str| format!("<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(text(&set, 0), [(prompt("hello"), false), ("world<|im_end|>\n".into(), true)]);
    assert_eq!(text(&set, 1), [(prompt("ab"), false), ("c<|im_end|>\n".into(), true)]);
    let lengths = set.lengths();
    let stats = set.stats;
    assert_eq!((stats.rows, stats.samples, stats.loss_tokens), (2, 2, 7 + 3));
    assert_eq!(stats.tokens, u64::from(lengths[0] + lengths[1]));
    assert_eq!(
        (stats.min_tokens, stats.max_tokens),
        (u64::from(lengths[1].min(lengths[0])), u64::from(lengths[0].max(lengths[1])))
    );
    assert!((stats.mean_tokens - stats.tokens as f64 / 2.0).abs() < 1e-9);
    assert!(set.warnings.is_empty(), "{:?}", set.warnings);
    assert!(set.spans(2, &byte_model().tokenizer).unwrap().is_none());
}

#[test]
fn lookahead_shows_in_prompt_and_counts() {
    let (_directory, mut run) = setup(&[pair("Q", "hello world")]);
    let plain = prepare(&run).unwrap();
    run.lookahead.mode = LookAheadMode::Virtual;
    let set = prepare(&run).unwrap();
    assert!(text(&set, 0)[0].0.contains("Q The answer begins with: Let's solve this problem. <|im_end|>"));
    assert_eq!(text(&set, 0)[1].0, "Let's solve this problem. hello world<|im_end|>\n");
    // A prefix of 26 tokens in both, a connector of 25: but the `Ġw` of ` with` and the like are one token.
    assert_eq!(set.stats.preview_tokens, set.stats.tokens - plain.stats.tokens);
    assert_eq!(set.stats.rewritten, 1);
    assert_ne!(set.sha256, plain.sha256);

    real(&mut run, 2);
    let set = prepare(&run).unwrap();
    assert!(text(&set, 0)[0].0.contains("Q The answer begins with: hello w<|im_end|>"));
    assert_eq!(text(&set, 0)[1], text(&plain, 0)[1]);
    assert_eq!(set.stats.loss_tokens, plain.stats.loss_tokens);
    assert_eq!(set.manifest.lookahead, run.lookahead);
}

#[test]
fn token_level_previews_are_id_identical() {
    let (_directory, mut run) = setup(&[pair("Q", "hello world"), pair("R", "一二三四")]);
    real(&mut run, 2);
    run.lookahead.preview_level = PreviewLevel::Token;
    let set = prepare(&run).unwrap();
    for (sample, shown) in [(0, 2), (1, 3)] {
        let sample = &set.samples[sample];
        let answer = &sample.ids[sample.loss[0].start as usize..][..shown];
        assert!(sample.prompt().windows(shown).any(|ids| ids == answer));
    }
    assert!(text(&set, 0)[0].0.contains("begins with:hello w<|im_end|>"));
    assert!(text(&set, 1)[0].0.contains("begins with:一<|im_end|>"));
}

#[test]
fn several_answers_may_bear_loss() {
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let rows = [
        json!({ "messages": [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d"), turn("user", "e")] }),
    ];
    let (_directory, mut run) = setup(&rows);
    assert_eq!(prepare(&run).unwrap().samples[0].loss.len(), 1);
    run.data.train_turns = Turns::All;
    let set = prepare(&run).unwrap();
    let parts = text(&set, 0);
    assert_eq!(parts.iter().map(|p| p.1).collect::<Vec<_>>(), [false, true, false, true]);
    assert_eq!((parts[1].0.as_str(), parts[3].0.as_str()), ("b<|im_end|>\n", "d<|im_end|>\n"));
    // The turn that nobody answers costs nothing.
    assert!(!parts.iter().any(|p| p.0.contains('e') && p.0.contains("\ne<")));
    run.lookahead.mode = LookAheadMode::Virtual;
    let set = prepare(&run).unwrap();
    assert_eq!((set.stats.rewritten, set.stats.passed_through), (0, 1));
    assert!(set.warnings[0].starts_with("1 rows got no preview"), "{:?}", set.warnings);
}

#[test]
fn a_system_prompt_is_added_where_there_is_none() {
    let own = json!({ "messages": [{"role": "system", "content": "Own"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] });
    let none = json!({ "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] });
    let (_directory, mut run) = setup(&[own, none]);
    run.data.system = Some("Given".into());
    let set = prepare(&run).unwrap();
    assert!(text(&set, 0)[0].0.starts_with("<|im_start|>system\nOwn<|im_end|>"));
    assert!(text(&set, 1)[0].0.starts_with("<|im_start|>system\nGiven<|im_end|>"));
}

#[test]
fn the_cache_gives_the_same_set_back() {
    let (directory, mut run) = setup(&[pair("hello", "world"), pair("a", "b")]);
    write_rows(directory.path(), "heldout.jsonl", &[pair("h", "i"), pair("j", "k")]);
    write_rows(directory.path(), "probes.jsonl", &[json!({ "prompt": "p" }), json!({ "messages": [] })][..1]);
    run.eval.heldout = Some(directory.path().join("heldout.jsonl"));
    run.eval.probes = Some(directory.path().join("probes.jsonl"));
    run.lookahead.mode = LookAheadMode::Virtual;
    let seen = RefCell::new(Vec::new());
    let watch = |p| seen.borrow_mut().push(p);
    let made = prepare_with(&run, &byte_model(), &watch).unwrap();
    let cached = prepare_with(&run, &byte_model(), &watch).unwrap();
    assert_eq!(made, cached);
    assert_eq!(*seen.borrow(), [PrepareProgress::Rows(2), PrepareProgress::Cached]);
    assert_eq!(cache_files(&run), [made_file(&run, &made)]);
    assert_eq!((made.heldout.len(), made.heldout_prompts.len(), made.probes.len()), (2, 1, 1));
    assert_eq!(made.heldout_prompts[0].text, "h");
    assert_eq!(made.heldout_prompts[0].ids, made.heldout[0].prompt());
    assert_eq!(made.probes[0].text, "p");
}

fn made_file(run: &RunFile, set: &PreparedSet) -> PathBuf {
    run.data.cache_dir.as_ref().unwrap().join(format!("{}.prepared", set.manifest.key))
}

/// Prompts of measurements never show a preview.
#[test]
fn heldout_rows_and_probes_are_never_rewritten() {
    let (directory, mut run) = setup(&[pair("hello", "world")]);
    write_rows(directory.path(), "heldout.jsonl", &[pair("h", "i")]);
    write_rows(directory.path(), "probes.jsonl", &[json!({ "prompt": "p" })]);
    run.eval.heldout = Some(directory.path().join("heldout.jsonl"));
    run.eval.probes = Some(directory.path().join("probes.jsonl"));
    let plain = prepare(&run).unwrap();
    run.lookahead.mode = LookAheadMode::Virtual;
    let rewritten = prepare(&run).unwrap();
    assert_ne!(plain.samples, rewritten.samples);
    assert_eq!((plain.heldout, plain.probes), (rewritten.heldout, rewritten.probes));
}

#[test]
fn heldout_rows_that_are_too_long_are_counted() {
    let (directory, mut run) = setup(&[pair("a", "b")]);
    write_rows(directory.path(), "heldout.jsonl", &[pair("h", "i"), pair("a", &"word ".repeat(60))]);
    run.eval.heldout = Some(directory.path().join("heldout.jsonl"));
    run.data.max_tokens = Some(60);
    run.data.on_too_long = OnTooLong::Skip;
    let set = prepare(&run).unwrap();
    assert_eq!(set.heldout.len(), 1);
    assert!(set.warnings.iter().any(|w| w.starts_with("1 held-out samples are longer than")), "{:?}", set.warnings);
    run.data.on_too_long = OnTooLong::Truncate;
    let set = prepare(&run).unwrap();
    assert_eq!(set.heldout.len(), 2);
    assert!(set.warnings.iter().any(|w| w.starts_with("1 held-out samples were cut")), "{:?}", set.warnings);
}

#[test]
fn the_key_changes_with_all_that_shapes_the_set_and_with_nothing_else() {
    let (directory, run) = setup(&[pair("hello", "world"), pair("a", "b")]);
    let key = |run: &RunFile| prepare(run).unwrap().manifest.key;
    let base = key(&run);
    type Change<'a> = (&'a str, &'a dyn Fn(&mut RunFile));
    let changes: [Change<'_>; 13] = [
        ("mode", &|r| r.lookahead.mode = LookAheadMode::Virtual),
        ("template", &|r| r.data.template = "zephyr".into()),
        ("system", &|r| r.data.system = Some("s".into())),
        ("turns", &|r| r.data.train_turns = Turns::All),
        ("max_tokens", &|r| r.data.max_tokens = Some(1000)),
        ("on_too_long", &|r| r.data.on_too_long = OnTooLong::Skip),
        ("on_bad_row", &|r| r.data.on_bad_row = OnBadRow::Skip),
        ("limit", &|r| r.data.limit = Some(1)),
        ("format", &|r| r.data.format = RowFormat::PromptCompletion),
        ("prefix", &|r| (r.lookahead.mode, r.lookahead.prefix) = (LookAheadMode::Virtual, "P".into())),
        ("connector", &|r| (r.lookahead.mode, r.lookahead.connector) = (LookAheadMode::Virtual, " C: ".into())),
        ("tokens", &|r| (r.lookahead.mode, r.lookahead.tokens) = (LookAheadMode::Real, 1)),
        ("short_answer", &|r| {
            (r.lookahead.mode, r.lookahead.tokens, r.lookahead.short_answer) =
                (LookAheadMode::Real, 1, ShortAnswer::Cap);
        }),
    ];
    let mut keys = vec![base.clone()];
    for (name, change) in changes {
        let mut changed = run.clone();
        change(&mut changed);
        let key = key(&changed);
        assert!(!keys.contains(&key), "{name}");
        keys.push(key);
    }
    // The same bytes elsewhere, and settings that shape no sample.
    std::fs::copy(directory.path().join("train.jsonl"), directory.path().join("copy.jsonl")).unwrap();
    let mut same = run;
    same.data.train = Paths::Many(vec![directory.path().join("copy.jsonl")]);
    same.train.learning_rate = 1.0;
    assert_eq!(key(&same), base);
    write_rows(directory.path(), "copy.jsonl", &[pair("hello", "world"), pair("a", "c")]);
    assert_ne!(key(&same), base);
}

#[test]
fn parquet_gives_the_samples_of_the_same_rows_in_jsonl() {
    let prepared = |name: &str, kind: &str, format| {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, fixture(&format!("parquet/{name}.{kind}"))).unwrap();
            path
        };
        let mut run = run(directory.path(), "train");
        (run.data.train, run.data.format) = (Paths::One(file(name)), format);
        if format == RowFormat::Fields {
            (run.data.prompt_field, run.data.answer_field) = (Some("question".into()), Some("answer".into()));
        }
        run.eval.heldout = Some(file(name));
        run.eval.probes = Some(file("messages-zstd"));
        prepare(&run).unwrap()
    };
    for (name, format, rows) in [
        ("pairs-snappy", RowFormat::Fields, 11),
        ("messages-snappy", RowFormat::Auto, 10),
        ("alpaca-nulls", RowFormat::Auto, 9),
    ] {
        let [parquet, lines] = ["parquet", "jsonl"].map(|kind| prepared(name, kind, format));
        assert_eq!(parquet.samples.len(), rows);
        assert_eq!(parquet.sha256, lines.sha256, "{name}");
        assert_eq!(parquet.samples, lines.samples, "{name}");
        assert_eq!(parquet.heldout, lines.heldout, "{name}");
        assert_eq!(parquet.probes, lines.probes, "{name}");
    }
}

#[test]
fn a_damaged_cache_file_is_made_anew_with_a_warning() {
    let (_directory, run) = setup(&[pair("hello", "world")]);
    let made = prepare(&run).unwrap();
    let file = made_file(&run, &made);
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    for damaged in [&good[..good.len() - 1], &flipped, b""] {
        std::fs::write(&file, damaged).unwrap();
        let again = prepare(&run).unwrap();
        assert_eq!(again.samples, made.samples);
        assert!(
            again.warnings[0].contains("is damaged") && again.warnings[0].contains("was made anew"),
            "{:?}",
            again.warnings
        );
        assert_eq!(std::fs::read(&file).unwrap(), good);
    }
    assert!(prepare(&run).unwrap().warnings.is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (directory, mut run) = setup(&[pair("hello", "world")]);
    run.data.cache_dir = Some(directory.path().join("train.jsonl").join("below-a-file"));
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataCache);
    assert!(message.contains("below-a-file"), "{message}");
}

/// Prepared rows, read again without LookAhead, give the same samples.
#[test]
fn prepared_rows_can_be_trained_on() {
    let rows = [pair("Q1", "hello world"), pair("Q2", "一二三"), pair("Q3", "")];
    let (directory, mut run) = setup(&rows);
    real(&mut run, 2);
    let set = prepare(&run).unwrap();
    let written = directory.path().join("prepared");
    set.write_rows(&written).unwrap();
    let lines: Vec<Value> = read_lines(&written.join(ROWS_FILE));
    assert_eq!(lines[0], pair("Q1 The answer begins with: hello w", "hello world"));
    assert_eq!(lines[1], pair("Q2 The answer begins with: 一", "一二三"));
    assert_eq!(lines[2], pair("Q3", ""));
    let manifest: Value = serde_json::from_slice(&std::fs::read(written.join(MANIFEST_FILE)).unwrap()).unwrap();
    assert_eq!(manifest["kind"], MANIFEST_KIND);
    assert_eq!(manifest["lookahead"]["mode"], "real");
    assert_eq!(manifest["lookahead"]["tokens"], 2);
    assert_eq!(manifest["samples_sha256"], set.sha256.as_str());

    run.data.train = Paths::One(written.join(ROWS_FILE));
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::LookAheadTwice);
    assert!(message.contains("mode real") && message.contains("manifest.json"), "{message}");
    run.lookahead.mode = LookAheadMode::Off;
    assert_eq!(prepare(&run).unwrap().sha256, set.sha256);
}

fn read_lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rewritten_rows_without_a_manifest_are_refused_too() {
    let (_directory, mut run) = setup(&[pair("Q1", "x"), pair("Q2 The answer begins with: hello", "hello world")]);
    run.lookahead.mode = LookAheadMode::Virtual;
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::LookAheadTwice);
    assert!(
        message.contains("train.jsonl, line 2: a user turn already ends with `The answer begins with:`"),
        "{message}"
    );
}

#[test]
fn a_preview_of_every_whole_answer_is_refused_unless_forced() {
    let (_directory, mut run) = setup(&[pair("Q1", "yes"), pair("Q2", "no"), pair("Q3", ""), pair("Q4", " \n")]);
    real(&mut run, 6);
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::LookAheadShortAnswers);
    assert!(message.contains("lookahead.force"), "{message}");
    run.lookahead.short_answer = ShortAnswer::Skip;
    assert_eq!(error_of(&run).0, ErrorCode::LookAheadShortAnswers);
    run.lookahead.short_answer = ShortAnswer::Full;
    run.lookahead.force = true;
    let set = prepare(&run).unwrap();
    assert_eq!((set.stats.rewritten, set.stats.short_answers, set.stats.whole_previews), (2, 2, 2));
    assert_eq!(set.stats.empty_answers, 2);
    assert!(set.warnings.iter().any(|w| w.contains("at most 3 tokens")), "{:?}", set.warnings);
    assert!(set.warnings.iter().any(|w| w.starts_with("2 rows have an answer shorter")), "{:?}", set.warnings);
}

#[test]
fn bad_rows_are_skipped_and_counted_wherever_they_fail() {
    let (directory, mut run) = setup(&[]);
    let late = json!({ "messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] });
    let good = json!({ "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] });
    write_rows(directory.path(), "train.jsonl", &[good, json!(3), late]);
    run.data.template = "llama-2".into();
    assert!(error_of(&run).1.contains("line 2: the row is a number"));
    run.data.on_bad_row = OnBadRow::Skip;
    let set = prepare(&run).unwrap();
    assert_eq!((set.stats.rows, set.stats.bad_rows, set.stats.samples), (3, 2, 1));
    assert!(set.warnings[0].starts_with("2 malformed rows were left out"), "{:?}", set.warnings);
    assert!(set.warnings[0].contains("line 2: the row is a number"), "{:?}", set.warnings);

    write_rows(directory.path(), "train.jsonl", &[json!(3)]);
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataEmpty);
    assert!(message.contains("1 rows, 1 malformed") && message.contains("line 1: the row is a number"), "{message}");
}

#[test]
fn a_row_that_the_template_refuses_is_named() {
    let late = json!({ "messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "b"}] });
    let (_directory, mut run) = setup(&[late]);
    run.data.template = "mistral".into();
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::ChatTemplate);
    assert!(
        message.contains(
            "line 1: the built-in chat template `mistral` cannot render the row: a system message must come first"
        ),
        "{message}"
    );
}

#[test]
fn too_long_samples_fail_are_cut_or_skipped() {
    let (_directory, mut run) = setup(&[pair("a", "b"), pair("a", &"word ".repeat(60))]);
    run.data.max_tokens = Some(60);
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataTooLong);
    assert!(message.contains("train.jsonl, line 2: the sample has") && message.contains("more than 60"), "{message}");
    run.data.on_too_long = OnTooLong::Skip;
    let set = prepare(&run).unwrap();
    assert_eq!((set.stats.samples, set.stats.skipped), (1, 1));
    run.data.on_too_long = OnTooLong::Truncate;
    let set = prepare(&run).unwrap();
    assert_eq!((set.stats.samples, set.stats.truncated, set.samples[1].ids.len()), (2, 1, 60));
    run.data.max_tokens = Some(10);
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataEmpty);
    assert!(message.contains("2 too long"), "{message}");
}

/// A model that is trained on answers without an end never stops.
#[test]
fn a_template_whose_end_token_the_model_does_not_name_is_refused() {
    let (_directory, mut run) = setup(&[pair("a", "b")]);
    run.data.template = "plain".into();
    assert!(prepare(&run).is_ok());
    let endless = ModelText { stop_ids: Vec::new(), chat_template: None, ..byte_model() };
    let error = prepare_with(&run, &endless, &|_| {}).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ChatTemplate);
    assert!(error.to_string().contains("add eos_token_id"), "{error}");
    // ChatML writes its own.
    run.data.template = "chatml".into();
    assert!(prepare_with(&run, &endless, &|_| {}).is_ok());
}

#[test]
fn templates_are_chosen_by_name_or_path() {
    let (directory, mut run) = setup(&[pair("a", "b")]);
    let jinja = directory.path().join("own.jinja");
    std::fs::write(&jinja, "{% for m in messages %}{{ m.content }};{% endfor %}").unwrap();
    run.data.template = jinja.display().to_string();
    assert_eq!(text(&prepare(&run).unwrap(), 0), [("a;".into(), false), ("b;".into(), true)]);
    run.data.template = "plain".into();
    // The tokenizer begins the sequence, and the first stop token ends it.
    assert_eq!(text(&prepare(&run).unwrap(), 0), [("<s>a\n".into(), false), ("b<|im_end|>\n".into(), true)]);
    run.data.template = "no-such-template".into();
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataUnreadable);
    assert!(message.contains("chatml, llama-2, llama-3"), "{message}");

    let mut without = byte_model();
    without.chat_template = None;
    run.data.template = "model".into();
    let error = prepare_with(&run, &without, &|_| {}).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ChatTemplate);
    assert!(error.to_string().contains("brings no chat template; set data.template"), "{error}");
}

#[test]
fn files_that_are_missing_are_named() {
    let (directory, mut run) = setup(&[pair("a", "b")]);
    run.eval.heldout = Some(directory.path().join("none.jsonl"));
    let (code, message) = error_of(&run);
    assert_eq!(code, ErrorCode::DataUnreadable);
    assert!(message.contains("none.jsonl"), "{message}");
}

/// Threads change nothing: rows are prepared in parallel and kept in order.
#[test]
fn many_rows_keep_their_order() {
    let rows: Vec<Value> = (0..5000).map(|i| pair(&format!("q{i}"), &format!("a{i}"))).collect();
    let (_directory, run) = setup(&rows);
    let set = prepare(&run).unwrap();
    assert_eq!(set.samples.len(), 5000);
    for i in [0, 1, 2047, 2048, 4999] {
        assert_eq!(text(&set, i)[1].0, format!("a{i}<|im_end|>\n"));
    }
}
