//! Training data, held-out data, probes, templates.

use super::cases::{Case, PREPARE, case};
use crate::scene::Scene;
use flate2::{Compression, write::GzEncoder};
use std::io::Write;

const PREPARED: &str = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";

/// Rows as pyarrow writes them.
const PARQUET: &[u8] = include_bytes!("../../../../coordinator/tests/fixtures/data/parquet/messages-zstd.parquet");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Conversations in place of the rows.
fn messages(scene: &Scene, messages: &str) {
    scene.write("rows.jsonl", format!("{{\"messages\": {messages}}}\n"));
}

/// A chat template of the user's.
fn template(scene: &Scene, text: &str) {
    scene.write("chat.jinja", text);
    scene.add("data", "template = \"chat.jinja\"");
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("no such file", "B2001", PREPARE, |s| s.remove("rows.jsonl")),
        case("a directory", "B2001", PREPARE, |s| s.replace("rows.jsonl", "model")),
        case("a gzip file that is cut off", "B2001", PREPARE, |s| {
            let whole = gzip(&s.read("rows.jsonl"));
            s.write("rows.jsonl", &whole[..whole.len() / 2]);
        }),
        case("a Zstandard file that is none after its first bytes", "B2001", PREPARE, |s| {
            s.write("rows.jsonl", b"\x28\xb5\x2f\xfd and then something else");
        }),
        case("a Parquet file that is cut off", "B2001", PREPARE, |s| {
            s.write("rows.jsonl", &PARQUET[..PARQUET.len() / 2])
        }),
        case("a Parquet file whose pages are damaged", "B2001", PREPARE, |s| {
            let mut damaged = PARQUET.to_vec();
            damaged[4..64].fill(0xFF);
            s.write("rows.jsonl", damaged);
        }),
        case("an array that is cut off", "B2001", PREPARE, |s| {
            s.write("rows.jsonl", "[{\"prompt\": \"p\", \"completion\": \"c\"},");
        }),
        case("an empty file", "B2003", PREPARE, |s| s.write("rows.jsonl", "")),
        case("only malformed rows, and they are skipped", "B2003", PREPARE, |s| {
            s.write("rows.jsonl", "{\"prompt\": \"p\", \"completion\": 1}\n");
            s.add("data", "on_bad_row = \"skip\"\nformat = \"prompt_completion\"");
        }),
        case("a row that is cut off", "B2002", PREPARE, |s| s.row("{\"prompt\": \"p\", \"compl")),
        case("a row that is not JSON", "B2002", PREPARE, |s| s.row("prompt: p")),
        case("a row that is not an object", "B2002", PREPARE, |s| s.row("[1, 2]")),
        case("a row that is not UTF-8", "B2002", PREPARE, |s| s.row(b"{\"prompt\": \"\xff\", \"completion\": \"c\"}")),
        case("a row of 10,000 nested lists", "B2002", PREPARE, |s| s.row("[".repeat(10_000))),
        case("a file in UTF-16", "B2002", PREPARE, |s| {
            let text = String::from_utf8(s.read("rows.jsonl")).unwrap();
            let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            s.write("rows.jsonl", [b"\xff\xfe".to_vec(), utf16].concat());
        }),
        case("a row without the answer", "B2002", PREPARE, |s| s.row("{\"prompt\": \"p\"}")),
        case("an answer that is a number", "B2002", PREPARE, |s| s.row("{\"prompt\": \"p\", \"completion\": 7}")),
        case("an answer that is null", "B2002", PREPARE, |s| s.row("{\"prompt\": \"p\", \"completion\": null}")),
        case("rows of no known shape", "B2002", PREPARE, |s| s.write("rows.jsonl", "{\"q\": \"a\"}\n")),
        case("named fields that the rows lack", "B2002", PREPARE, |s| {
            s.add("data", "format = \"fields\"\nprompt_field = \"question\"\nanswer_field = \"answer\"");
        }),
        case("an unknown role", "B2002", PREPARE, |s| {
            messages(s, "[{\"role\": \"wizard\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]");
        }),
        case("a conversation without an answer", "B2002", PREPARE, |s| {
            messages(s, "[{\"role\": \"user\", \"content\": \"x\"}]");
        }),
        case("an empty conversation", "B2002", PREPARE, |s| messages(s, "[]")),
        case("a message without content", "B2002", PREPARE, |s| messages(s, "[{\"role\": \"user\"}]")),
        case("a sample that is too long", "B2004", PREPARE, |s| s.add("data", "max_tokens = 8")),
        case("no such template", "B2001", PREPARE, |s| s.add("data", "template = \"vicuna\"")),
        case("a template that does not compile", "B2005", PREPARE, |s| template(s, "{% for m in messages %}")),
        case("a template that refuses", "B2005", PREPARE, |s| template(s, "{{ raise_exception('no such order') }}")),
        case("a template without end", "B2005", PREPARE, |s| {
            template(s, "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
        }),
        case("a second LookAhead rewriting", "B2006", PREPARE, |s| {
            std::fs::create_dir(s.path("p")).unwrap();
            s.write("p/rows.jsonl", PREPARED);
            s.write("p/manifest.json", "{\"kind\": \"ballast prepared set\", \"lookahead\": {\"mode\": \"virtual\"}}");
            s.replace("\"rows.jsonl\"", "\"p/rows.jsonl\"");
        }),
        case("previews that show every whole answer", "B2007", PREPARE, |s| {
            s.before("[lookahead]\nmode = \"real\"\ntokens = 100");
            s.write("rows.jsonl", PREPARED);
        }),
        case("a cache that is a file", "B2008", PREPARE, |s| s.write("cache", "")),
        case("more tokens than the base model has positions", "B1004", PREPARE, |s| {
            s.add("data", "max_tokens = 100000")
        }),
        case("a probe longer than the base model takes", "B2004", PREPARE, |s| {
            s.write("probes.jsonl", format!("{{\"prompt\": \"{}\"}}\n", "why ".repeat(5_000)));
            s.before("[eval]\nprobes = \"probes.jsonl\"");
        }),
        case("no probes", "B2003", PREPARE, |s| {
            s.write("probes.jsonl", "\n");
            s.before("[eval]\nprobes = \"probes.jsonl\"");
        }),
        case("held-out rows of which none is left", "B2003", PREPARE, |s| {
            s.write("h.jsonl", "");
            s.before("[eval]\nheldout = \"h.jsonl\"");
        }),
        case("one object over several lines", "B2002", PREPARE, |s| {
            s.write("rows.jsonl", "{\n  \"data\": []\n}\n");
        }),
        case("held-out rows that are not there", "B2001", PREPARE, |s| s.before("[eval]\nheldout = \"h.jsonl\"")),
        case("a malformed probe", "B2002", PREPARE, |s| {
            s.write("probes.jsonl", "{\"ask\": \"?\"}\n");
            s.before("[eval]\nprobes = \"probes.jsonl\"");
        }),
    ]
}
