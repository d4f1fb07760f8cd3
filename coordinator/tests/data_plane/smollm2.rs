//! The real tokenizer and chat template of SmolLM2-135M-Instruct, against golden files.

use super::hollow::smollm2;
use super::support::{exchange, fixture, run, write_rows};
use ballast_coordinator::config::{LookAhead, LookAheadMode, PreviewLevel, RowFormat};
use ballast_coordinator::data::lookahead::rewrite;
use ballast_coordinator::data::row::Message;
use ballast_coordinator::data::segment::segments;
use ballast_coordinator::data::template::ChatTemplate;
use ballast_coordinator::data::tokenize::{Encoder, SPLICE_MARK};
use ballast_coordinator::data::{ModelText, prepare};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

#[derive(Deserialize)]
struct Golden {
    question: String,
    answer: String,
    prompt_len: usize,
    ids: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Row {
    question: String,
    answer: String,
}

fn encoder() -> &'static Encoder {
    static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
        let model = ModelText::of(smollm2()).unwrap();
        Encoder::new(&model.tokenizer, model.vocab_size, false, &model.stop_ids).unwrap()
    });
    &ENCODER
}

fn template() -> ChatTemplate {
    ChatTemplate::compile(&ModelText::of(smollm2()).unwrap().chat_template.unwrap()).unwrap()
}

fn golden_samples() -> Vec<Golden> {
    let lines = String::from_utf8(fixture("smollm2-ids.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Prompt and whole sequence have the ids that `transformers` gives them.
#[test]
fn prepared_ids_are_those_of_transformers() {
    let golden = golden_samples();
    assert_eq!(golden.len(), 20);
    let directory = tempfile::tempdir().unwrap();
    let rows: Vec<_> = golden.iter().map(|g| json!({ "question": g.question, "answer": g.answer })).collect();
    write_rows(directory.path(), "train.jsonl", &rows);
    let mut run = run(directory.path(), "train.jsonl");
    run.data.format = RowFormat::Fields;
    run.data.prompt_field = Some("question".into());
    run.data.answer_field = Some("answer".into());
    let set = prepare(&run, smollm2(), &|_| {}).unwrap();
    for (sample, golden) in set.samples.iter().zip(&golden) {
        assert_eq!(sample.ids, golden.ids, "{}", golden.question);
        assert_eq!(sample.loss, [golden.prompt_len as u32..golden.ids.len() as u32], "{}", golden.question);
    }
    assert_eq!(set.samples.len(), 20);
}

fn golden_rows() -> Vec<HashMap<String, Row>> {
    let mut lines = String::new();
    GzDecoder::new(fixture("lookahead-golden.jsonl.gz").as_slice()).read_to_string(&mut lines).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn settings(name: &str) -> LookAhead {
    match name.strip_prefix("real-m") {
        Some(tokens) => {
            LookAhead { mode: LookAheadMode::Real, tokens: tokens.parse().unwrap(), ..LookAhead::default() }
        }
        None => LookAhead { mode: LookAheadMode::Virtual, ..LookAhead::default() },
    }
}

fn rewritten(encoder: &Encoder, row: &Row, settings: &LookAhead) -> Row {
    let messages: Vec<Message> = exchange(&row.question, &row.answer);
    let rewritten = rewrite(&messages, &[1], settings, &|text| Ok(encoder.alone(text)?.ranges)).unwrap().messages;
    Row { question: rewritten[0].content.clone(), answer: rewritten[1].content.clone() }
}

const FILES: [&str; 5] = ["real-m1", "real-m3", "real-m6", "real-m12", "virtual"];

/// Text mode is the authors' rewriting, byte for byte.
#[test]
fn lookahead_rows_are_the_authors_rows() {
    let encoder = encoder();
    let rows = golden_rows();
    assert_eq!(rows.len(), 210);
    for name in FILES {
        for row in &rows[..200] {
            assert_eq!(rewritten(encoder, &row["input"], &settings(name)), row[name], "{name}");
        }
    }
}

/// The edge rows differ from the authors' on purpose: here is each difference, and there is no other.
#[test]
fn edge_rows_differ_only_as_stated() {
    let encoder = encoder();
    let rows = golden_rows();
    let mut differences = Vec::new();
    for name in FILES {
        for row in &rows[200..] {
            let ours = rewritten(encoder, &row["input"], &settings(name));
            if ours != row[name] {
                differences.push((name, ours.question, ours.answer));
            }
        }
    }
    let family = "👩‍👩‍👧‍👦";
    let emoji = format!("{family} family and 🚀 rocket go to the moon");
    let japanese = "一、二、三、四、五、六、七、八、九、十。";
    let asked = |question: &str, shown: &str| format!("{question} The answer begins with: {shown}");
    let trimmed = "leading and trailing";
    let prefix = "Let's solve this problem. ";
    // Empty answers are left alone (no dangling connector); rows are trimmed before the rewriting; a preview ends where
    // a character does, as a reader sees it: the authors have `一、二、\u{FFFD}`, `👩` and `👩‍\u{FFFD}`.
    let empty = |name| (name, "Say nothing.".to_owned(), String::new());
    let spaces = |name, shown: &str| (name, asked("Trailing space question?", shown), trimmed.to_owned());
    let count = |name, shown: &str| (name, asked("数を数えてください。", shown), japanese.to_owned());
    let emoji = |name, shown: &str| (name, asked("Emoji", shown), emoji.clone());
    let expected = vec![
        empty("real-m1"),
        spaces("real-m1", "leading"),
        emoji("real-m1", family),
        empty("real-m3"),
        spaces("real-m3", "leading and trailing"),
        count("real-m3", "一、"),
        emoji("real-m3", family),
        empty("real-m6"),
        spaces("real-m6", "leading and trailing"),
        count("real-m6", "一、二、"),
        emoji("real-m6", family),
        empty("real-m12"),
        spaces("real-m12", "leading and trailing"),
        count("real-m12", "一、二、三、四、"),
        emoji("real-m12", family),
        empty("virtual"),
        ("virtual", asked("Trailing space question?", prefix), format!("{prefix}{trimmed}")),
    ];
    assert_eq!(differences, expected);
}

/// The connector ends in a space, so at text level the first previewed token is another than the answer's; spliced as
/// ids it is the same.
#[test]
fn spliced_previews_match_the_answer_where_text_does_not() {
    let template = template();
    let encoder = encoder();
    let row = &golden_rows()[0]["input"];
    let settings = LookAhead { preview_level: PreviewLevel::Token, ..settings("real-m6") };
    let rewritten =
        rewrite(&exchange(&row.question, &row.answer), &[1], &settings, &|text| Ok(encoder.alone(text)?.ranges))
            .unwrap();
    let text = encoder.sample(&segments(&template, &rewritten.messages, &[1]).unwrap(), &[], &[]).unwrap();
    let mut marked = rewritten.messages.clone();
    let start = rewritten.previews[0].start;
    let shown = marked[0].content.split_off(start);
    marked[0].content.push(SPLICE_MARK);
    let spliced = encoder.sample(&segments(&template, &marked, &[1]).unwrap(), &[&shown], &[]).unwrap();
    let answer = &spliced.ids[spliced.loss[0].start as usize..][..6];
    assert!(spliced.prompt().windows(6).any(|ids| ids == answer));
    let as_text = rewritten_text_prompt(encoder, &template, row);
    assert!(!as_text.windows(6).any(|ids| ids == answer));
    assert_eq!(text.loss_tokens(), spliced.loss_tokens());
}

fn rewritten_text_prompt(encoder: &Encoder, template: &ChatTemplate, row: &Row) -> Vec<u32> {
    let row = rewritten(encoder, row, &settings("real-m6"));
    let parts = segments(template, &exchange(&row.question, &row.answer), &[1]).unwrap();
    encoder.sample(&parts, &[], &[]).unwrap().prompt().to_vec()
}
