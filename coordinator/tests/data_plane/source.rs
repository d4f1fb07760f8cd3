use ballast_coordinator::config::{OnBadRow, RowFormat};
use ballast_coordinator::data::row::{Message, Role, Row};
use ballast_coordinator::data::source::{BadRows, Purpose, SourceSettings, read};
use ballast_coordinator::data::{DataError, Place};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

fn auto() -> SourceSettings<'static> {
    SourceSettings {
        format: RowFormat::Auto,
        prompt_field: None,
        answer_field: None,
        on_bad_row: OnBadRow::Fail,
        limit: None,
    }
}

fn read_all(files: &[PathBuf], settings: SourceSettings<'_>) -> Result<(Vec<Row>, BadRows), DataError> {
    let (mut rows, mut bad) = (Vec::new(), BadRows::default());
    read(files, settings, Purpose::Answers, &mut bad, &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok((rows, bad))
}

fn read_bytes(bytes: &[u8], settings: SourceSettings<'_>) -> Result<(Vec<Row>, BadRows), DataError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    std::fs::write(&path, bytes).unwrap();
    read_all(&[path], settings)
}

fn rows_of(text: &str) -> Vec<Row> {
    read_bytes(text.as_bytes(), auto()).unwrap().0
}

/// The message of the error, without the directory of the file.
fn error_of(bytes: &[u8], settings: SourceSettings<'_>) -> String {
    let error = read_bytes(bytes, settings).unwrap_err().to_string();
    error.find("rows.jsonl").map_or(error.clone(), |at| error[at..].to_owned())
}

const PAIR: &str = r#"{"prompt": "p", "completion": "c"}"#;

fn texts(row: &Row) -> Vec<(Role, &str)> {
    row.messages.iter().map(|m| (m.role, m.content.as_str())).collect()
}

#[test]
fn every_shape_is_known_by_its_fields() {
    use Role::{Assistant, System, User};
    let cases = [
        (
            r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#,
            vec![(System, "s"), (User, "u"), (Assistant, "a")],
        ),
        (
            r#"{"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]}, {"role": "assistant", "content": "a"}]}"#,
            vec![(System, "s"), (User, "uv"), (Assistant, "a")],
        ),
        (
            r#"{"id": 3, "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}"#,
            vec![(User, "u"), (Assistant, "a")],
        ),
        (
            r#"{"conversations": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#,
            vec![(User, "u"), (Assistant, "a")],
        ),
        (r#"{"instruction": "i", "input": "n", "output": "o"}"#, vec![(User, "i\nn"), (Assistant, "o")]),
        (r#"{"instruction": "i", "input": "", "output": "o"}"#, vec![(User, "i"), (Assistant, "o")]),
        (r#"{"instruction": "i", "output": "o"}"#, vec![(User, "i"), (Assistant, "o")]),
        (PAIR, vec![(User, "p"), (Assistant, "c")]),
    ];
    for (line, expected) in cases {
        assert_eq!(texts(&rows_of(line)[0]), expected, "{line}");
    }
}

#[test]
fn named_fields_are_taken() {
    let settings =
        SourceSettings { format: RowFormat::Fields, prompt_field: Some("q"), answer_field: Some("a"), ..auto() };
    let (rows, _) = read_bytes(br#"{"q": "Q", "a": "A", "prompt": "x", "completion": "y"}"#, settings).unwrap();
    assert_eq!(texts(&rows[0]), [(Role::User, "Q"), (Role::Assistant, "A")]);
}

#[test]
fn unknown_fields_are_named() {
    let error = error_of(br#"{"question": "Q", "answer": "A"}"#, auto());
    assert!(error.starts_with("rows.jsonl, line 1: cannot tell the shape of the rows"), "{error}");
    assert!(error.contains("the fields `question`, `answer`") && error.contains("data.prompt_field"), "{error}");
    // That is no question of one bad row.
    assert!(read_bytes(b"{\"x\": 1}\n", SourceSettings { on_bad_row: OnBadRow::Skip, ..auto() }).is_err());
}

#[test]
fn arrays_lines_and_compressed_files_are_told_apart_by_content() {
    let array = format!("\u{FEFF}\r\n [{PAIR},\n{PAIR}]\n");
    let lines = format!("\u{FEFF}{PAIR}\r\n\r\n   \n{PAIR}");
    let gzip = {
        // Two members, as `cat a.gz b.gz` leaves them.
        let member = || {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            writeln!(encoder, "{PAIR}").unwrap();
            encoder.finish().unwrap()
        };
        [member(), member()].concat()
    };
    let zstandard = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    for bytes in [array.as_bytes(), lines.as_bytes(), &gzip, &zstandard] {
        let (rows, _) = read_bytes(bytes, auto()).unwrap();
        assert_eq!(rows.iter().map(texts).collect::<Vec<_>>(), vec![[(Role::User, "p"), (Role::Assistant, "c")]; 2]);
    }
    assert_eq!(rows_of(&lines).iter().map(|r| r.origin.place).collect::<Vec<_>>(), [Place::Line(1), Place::Line(4)]);
    assert_eq!(
        rows_of(&array).iter().map(|r| r.origin.place).collect::<Vec<_>>(),
        [Place::Element(0), Place::Element(1)]
    );
}

#[test]
fn several_files_are_read_in_order_up_to_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = (0..3)
        .map(|i| {
            let path = directory.path().join(format!("{i}.json"));
            std::fs::write(
                &path,
                format!(r#"[{{"prompt": "{i}", "completion": "x"}}, {{"prompt": "{i}b", "completion": "x"}}]"#),
            )
            .unwrap();
            path
        })
        .collect();
    let prompts = |limit| {
        let (rows, _) = read_all(&files, SourceSettings { limit, ..auto() }).unwrap();
        rows.into_iter().map(|r| r.messages[0].content.clone()).collect::<Vec<_>>()
    };
    assert_eq!(prompts(None), ["0", "0b", "1", "1b", "2", "2b"]);
    assert_eq!(prompts(Some(3)), ["0", "0b", "1"]);
    assert_eq!(prompts(Some(2)), ["0", "0b"]);
    assert!(prompts(Some(0)).is_empty());
}

/// What a user sees for each kind of malformed row.
#[test]
fn bad_rows_name_place_and_field() {
    let with = |line: &str| format!("{PAIR}\n{line}\n");
    let turns = |turns: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "u"}}, {{"role": "assistant", "content": "a"}}]}}{}{{"messages": {turns}}}"#,
            "\n"
        )
    };
    let cases = [
        (with("{\"prompt\": \"p\""), "rows.jsonl, line 2: not valid JSON: cut off at column 14"),
        (with("nonsense"), "rows.jsonl, line 2: not valid JSON: expected ident at column 2"),
        (with("3"), "rows.jsonl, line 2: the row is a number, not an object"),
        (with("null"), "rows.jsonl, line 2: the row is null, not an object"),
        (
            with("{\"prompt\": \"p\"}"),
            "rows.jsonl, line 2: field `completion` is missing; the row has the fields `prompt`",
        ),
        (with("{}"), "rows.jsonl, line 2: field `prompt` is missing; the row has no fields"),
        (
            with("{\"prompt\": 3, \"completion\": \"c\"}"),
            "rows.jsonl, line 2: field `prompt` is a number, not a string",
        ),
        (
            with("{\"prompt\": \"p\", \"completion\": null}"),
            "rows.jsonl, line 2: field `completion` is null, not a string",
        ),
        (with("{\"prompt\": \"\\ud800\", \"completion\": \"c\"}"), "rows.jsonl, line 2: not valid JSON: "),
        (turns("3"), "rows.jsonl, line 2: field `messages` is a number, not an array"),
        (turns("[3]"), "rows.jsonl, line 2: `messages[0]`: the turn is a number, not an object"),
        (turns("[]"), "rows.jsonl, line 2: the conversation has no user turn"),
        (
            turns(r#"[{"role": "user", "content": "u"}]"#),
            "rows.jsonl, line 2: the conversation has no assistant turn after a user turn",
        ),
        (
            turns(r#"[{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}]"#),
            "rows.jsonl, line 2: the conversation has no assistant turn after a user turn",
        ),
        (
            turns(r#"[{"role": "user", "content": "u"}, {"role": "wizard", "content": "a"}]"#),
            "rows.jsonl, line 2: `messages[1]`: field `role` is `wizard`; known are",
        ),
        (
            turns(r#"[{"role": "user"}]"#),
            "rows.jsonl, line 2: `messages[0]`: field `content` is missing; the row has the fields `role`",
        ),
        (
            turns(r#"[{"role": "user", "content": null}]"#),
            "rows.jsonl, line 2: `messages[0]`: field `content` is null, not a string",
        ),
        (
            turns(r#"[{"role": 1, "content": "u"}]"#),
            "rows.jsonl, line 2: `messages[0]`: field `role` is a number, not a string",
        ),
        (
            turns(r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#),
            "rows.jsonl, line 2: `messages[0]`: field `content`: a part of type `image_url`; only text is supported",
        ),
        (format!("[{PAIR}, 7]"), "rows.jsonl, element 1: the row is a number, not an object"),
        (format!("[{PAIR}, {{\"prompt\": \"p\"}}]"), "rows.jsonl, element 1: field `completion` is missing"),
        (format!("[{PAIR}, {{"), "rows.jsonl: element 1 of the array: EOF while parsing"),
        (format!("[{PAIR}] tail"), "rows.jsonl: element 1 of the array: trailing characters"),
    ];
    for (text, expected) in cases {
        let error = error_of(text.as_bytes(), auto());
        assert!(error.starts_with(expected), "{text}\n gave {error}\n not  {expected}");
    }
    let mut invalid = with("").into_bytes();
    invalid.extend(b"{\"prompt\": \"\xFF\"}");
    assert!(error_of(&invalid, auto()).starts_with("rows.jsonl, line 3: not valid UTF-8 at byte 12 of the line"));
}

#[test]
fn bad_rows_can_be_skipped_and_are_counted() {
    let text = format!("nonsense\n{PAIR}\n{{\"prompt\": 3}}\n{PAIR}\n");
    let (rows, bad) = read_bytes(text.as_bytes(), SourceSettings { on_bad_row: OnBadRow::Skip, ..auto() }).unwrap();
    assert_eq!((rows.len(), bad.count), (2, 2));
    assert!(bad.first.unwrap().ends_with("line 1: not valid JSON: expected ident at column 2"));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let missing = PathBuf::from("/no/such/file.jsonl");
    assert!(read_all(&[missing], auto()).unwrap_err().to_string().starts_with("cannot read /no/such/file.jsonl: "));
    let directory = tempfile::tempdir().unwrap();
    assert!(read_all(&[directory.path().to_owned()], auto()).is_err());
    let mut broken = zstd::encode_all(PAIR.repeat(1000).as_bytes(), 3).unwrap();
    broken.truncate(broken.len() / 2);
    assert!(matches!(read_bytes(&broken, auto()), Err(DataError::Unreadable { .. } | DataError::BadRow { .. })));
    assert_eq!(read_bytes(b"", auto()).unwrap().0, []);
    assert_eq!(read_bytes(b"[]", auto()).unwrap().0, []);
}

#[test]
fn prompts_lose_their_answers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("probes.jsonl");
    let lines = [json!({ "prompt": "p" }), json!({ "prompt": "q", "completion": "c" })];
    std::fs::write(&path, format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    let mut prompts = Vec::new();
    read(&[path], auto(), Purpose::Prompts, &mut BadRows::default(), &mut |row| {
        prompts.push(row.messages);
        Ok(())
    })
    .unwrap();
    assert_eq!(prompts, [[Message::new(Role::User, "p")], [Message::new(Role::User, "q")]]);
}

#[test]
fn rows_are_written_in_the_shape_they_were_read_in() {
    for line in [
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#,
        r#"{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"u"},{"from":"gpt","value":"a"}]}"#,
        r#"{"instruction":"i","input":"","output":"o"}"#,
        r#"{"prompt":"p","completion":"c"}"#,
    ] {
        assert_eq!(rows_of(line)[0].to_json().to_string(), line);
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            Just("messages"),
            Just("role"),
            Just("content"),
            Just("conversations"),
            Just("prompt"),
            Just("completion"),
            Just("output"),
            Just("x")
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    /// Whatever a file holds, it is read or refused, never a panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), skip in any::<bool>()) {
        let on_bad_row = if skip { OnBadRow::Skip } else { OnBadRow::Fail };
        let _ = read_bytes(&bytes, SourceSettings { on_bad_row, ..auto() });
    }

    #[test]
    fn any_json_is_read_or_refused(values in prop::collection::vec(json_value(), 1..4), array in any::<bool>()) {
        let text = if array { Value::from(values).to_string() } else { values.iter().map(|v| format!("{v}\n")).collect() };
        let settings = SourceSettings { on_bad_row: OnBadRow::Skip, ..auto() };
        if let Ok((rows, _)) = read_bytes(text.as_bytes(), settings) {
            for row in rows {
                prop_assert!(row.messages.iter().any(|m| m.role == Role::Assistant));
            }
        }
    }

    /// JSON and JSONL of the same rows give the same conversations.
    #[test]
    fn json_and_jsonl_agree(pairs in prop::collection::vec((".{0,20}", ".{0,20}"), 1..5)) {
        let rows: Vec<Value> = pairs.iter().map(|(p, c)| json!({ "prompt": p, "completion": c })).collect();
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let conversations = |text: &str| rows_of(text).into_iter().map(|r| r.messages).collect::<Vec<_>>();
        prop_assert_eq!(conversations(&lines), conversations(&Value::from(rows).to_string()));
    }
}
