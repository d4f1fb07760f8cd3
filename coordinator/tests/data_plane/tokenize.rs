use super::support::{byte_tokenizer, piece_tokenizer, prepending_normalizer};
use ballast_coordinator::config::OnTooLong;
use ballast_coordinator::data::segment::Segment;
use ballast_coordinator::data::tokenize::{Encoder, Fitted, SPLICE_MARK, Sample, Tokenized, fit};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn encoder(tokenizer: &Tokenizer) -> Encoder {
    Encoder::new(tokenizer, tokenizer.get_vocab_size(true), false, &[]).unwrap()
}

fn segments(texts: &[&str]) -> Vec<Segment> {
    texts.iter().enumerate().map(|(i, text)| Segment { text: (*text).into(), loss: i % 2 == 1 }).collect()
}

fn tokens(tokenizer: &Tokenizer, sample: &Sample) -> Vec<String> {
    sample.ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
}

/// The three ways in which tokenizers put a space before a text.
fn prefixing_tokenizers() -> [Tokenizer; 3] {
    let metaspace =
        |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
    [
        piece_tokenizer(prepending_normalizer(), Value::Null),
        piece_tokenizer(Value::Null, metaspace("always")),
        piece_tokenizer(Value::Null, json!({ "type": "Sequence", "pretokenizers": [metaspace("first")] })),
    ]
}

#[test]
fn an_answer_gets_no_dummy_prefix() {
    for tokenizer in prefixing_tokenizers() {
        let alone = tokenizer.encode("ab", false).unwrap();
        assert_eq!(alone.get_tokens(), ["▁a", "b"], "the tokenizer does put a space before a text");
        let sample = encoder(&tokenizer).sample(&segments(&["ab", "ab", "c", " ab"]), &[], &[]).unwrap();
        assert_eq!(tokens(&tokenizer, &sample), ["▁a", "b", "a", "b", "c", "▁a", "b"]);
        assert_eq!(sample.loss, [2..4, 5..7]);
    }
}

#[test]
fn an_added_prefix_space_is_dropped_for_byte_level_answers_too() {
    let mut json: Value = serde_json::from_str(&byte_tokenizer().to_string(false).unwrap()).unwrap();
    json["pre_tokenizer"]["add_prefix_space"] = json!(true);
    let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
    let sample = encoder(&tokenizer).sample(&segments(&["x", "x"]), &[], &[]).unwrap();
    assert_eq!(tokens(&tokenizer, &sample), ["Ġ", "x", "x"]);
}

/// The tokenizer of these tests begins every text with `<s>`.
#[test]
fn the_sequence_begins_once() {
    let tokenizer = byte_tokenizer();
    assert_eq!(tokenizer.encode("x", true).unwrap().get_tokens(), ["<s>", "x"]);
    let adding = Encoder::new(&tokenizer, tokenizer.get_vocab_size(true), true, &[]).unwrap();
    let of = |encoder: &Encoder, prompt: &str| {
        tokens(&tokenizer, &encoder.sample(&segments(&[prompt, "y"]), &[], &[]).unwrap())
    };
    assert_eq!(of(&adding, "x"), ["<s>", "x", "y"]);
    assert_eq!(of(&adding, "<s>x"), ["<s>", "x", "y"]);
    assert_eq!(of(&encoder(&tokenizer), "x"), ["x", "y"]);
    assert_eq!(of(&encoder(&tokenizer), "<s>x"), ["<s>", "x", "y"]);
    // A tokenizer that only ends texts begins none.
    let end = tokenizer.token_to_id("<s>").unwrap();
    let ending = Encoder::new(&tokenizer, tokenizer.get_vocab_size(true), true, &[end]).unwrap();
    assert_eq!(of(&ending, "x"), ["x", "y"]);
}

#[test]
fn truncation_and_padding_of_the_tokenizer_are_ignored() {
    let mut json: Value = serde_json::from_str(&byte_tokenizer().to_string(false).unwrap()).unwrap();
    json["truncation"] = json!({ "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right" });
    json["padding"] = json!({ "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!" });
    let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
    let sample = encoder(&tokenizer).sample(&segments(&["abc", "def"]), &[], &[]).unwrap();
    assert_eq!(tokens(&tokenizer, &sample), ["a", "b", "c", "d", "e", "f"]);
}

#[test]
fn the_first_token_of_a_sequence_bears_no_loss() {
    let sample = encoder(&byte_tokenizer()).sample(&segments(&["", "abc"]), &[], &[]).unwrap();
    assert_eq!(sample.loss, [1..3]);
    assert_eq!(encoder(&byte_tokenizer()).sample(&segments(&["", "a"]), &[], &[]).unwrap().loss, []);
    assert_eq!(encoder(&byte_tokenizer()).sample(&segments(&["a", ""]), &[], &[]).unwrap().loss, []);
}

/// A preview spliced by ids is, id for id, the beginning of the answer.
#[test]
fn spliced_previews_are_the_answers_own_ids() {
    let [tokenizer, ..] = prefixing_tokenizers();
    let encoder = encoder(&tokenizer);
    let prompt = format!("<s>[INST]b{SPLICE_MARK}[/INST]");
    let sample = encoder.sample(&segments(&[&prompt, " ab</s>"]), &["a"], &[]).unwrap();
    assert_eq!(
        tokens(&tokenizer, &sample),
        ["<s>", "▁", "[", "I", "N", "S", "T", "]", "b", "▁a", "[", "/", "I", "N", "S", "T", "]", "▁a", "b", "</s>"]
    );
    assert_eq!(sample.loss, [17..20]);

    // What a template puts before the answer is not previewed.
    let sample = encoder.sample(&segments(&[&prompt, "<s>[ ab</s>"]), &["a"], &[]).unwrap();
    assert_eq!(tokens(&tokenizer, &sample)[8..12], ["b", "▁a", "[", "/"]);

    let twice = format!("{SPLICE_MARK}{SPLICE_MARK}");
    for prompt in ["none", &twice] {
        let error = encoder.sample(&segments(&[prompt, "a"]), &["a"], &[]).unwrap_err().to_string();
        assert!(error.contains("renders a user turn other than once"), "{error}");
    }
    let error = encoder.sample(&segments(&[&prompt, "B"]), &["a"], &[]).unwrap_err().to_string();
    assert!(error.contains("changes the answer"), "{error}");
}

#[test]
fn an_id_without_an_embedding_is_refused() {
    let tokenizer = byte_tokenizer();
    let id = tokenizer.token_to_id("<|im_end|>").unwrap();
    let encoder = Encoder::new(&tokenizer, id as usize, false, &[]).unwrap();
    let error = encoder.sample(&segments(&["a", "b<|im_end|>"]), &[], &[]).unwrap_err().to_string();
    assert!(
        error.contains(&format!("token {id} (`<|im_end|>`), but the base model has only {id} embeddings")),
        "{error}"
    );
}

#[test]
fn long_samples_follow_the_policy() {
    let sample = || Sample { ids: (0..10).collect(), loss: vec![3..5, 7..10] };
    assert_eq!(fit(sample(), 10, OnTooLong::Fail), Ok(Fitted::Whole(sample())));
    assert_eq!(fit(sample(), 9, OnTooLong::Fail), Err(10));
    assert_eq!(fit(sample(), 9, OnTooLong::Skip), Ok(Fitted::Skipped));
    let cut = |at: usize, loss| Ok(Fitted::Cut(Sample { ids: (0..at as u32).collect(), loss }));
    assert_eq!(fit(sample(), 9, OnTooLong::Truncate), cut(9, vec![3..5, 7..9]));
    assert_eq!(fit(sample(), 7, OnTooLong::Truncate), cut(7, vec![3..5]));
    assert_eq!(fit(sample(), 4, OnTooLong::Truncate), cut(4, vec![3..4]));
    assert_eq!(fit(sample(), 3, OnTooLong::Truncate), Ok(Fitted::NothingLeft));
}

/// An answer that was tokenized for its preview is taken as it is only where that gives the same ids.
#[test]
fn known_answers_give_the_same_ids() {
    let [prepending, ..] = prefixing_tokenizers();
    for (tokenizer, end) in [(byte_tokenizer(), "<|im_end|>\n"), (byte_tokenizer(), " world"), (prepending, "</s>")] {
        let encoder = encoder(&tokenizer);
        for answer in ["hello", "a ab", "hell"] {
            let parts = segments(&["b", &format!("{answer}{end}")]);
            let known = encoder.alone(answer).unwrap();
            let sample = encoder.sample(&parts, &[], &[]).unwrap();
            assert_eq!(encoder.sample(&parts, &[], std::slice::from_ref(&known)).unwrap(), sample, "{answer}{end}");
            // That it is used at all, with a divider after it and no dummy prefix before.
            let lie = Tokenized { ids: vec![0], ..known };
            let used = encoder.sample(&parts, &[], &[lie]).unwrap() != sample;
            assert_eq!(used, end == "<|im_end|>\n", "{answer}{end}");
        }
    }
}

#[test]
fn a_prompt_has_the_same_ids_whichever_prompt_came_first() {
    let tokenizer = byte_tokenizer();
    let prompts = ["", "x", "<s>", "<s>x", "<s>x<s>", "<s>x<s>y", "<s>x<s>z<s>", "<s>xx<s>y", "x<s>y<s>z", "<s><s>x"];
    for first in prompts {
        let encoder = encoder(&tokenizer);
        for prompt in [first].into_iter().chain(prompts) {
            let whole = tokenizer.encode(prompt, false).unwrap();
            assert_eq!(encoder.prompt_only(prompt).unwrap(), whole.get_ids(), "{prompt} after {first}");
        }
    }
}
