//! Run files.

use super::cases::{Case, SHOW, TRAIN, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("no such file", "B1001", &["config", "show", "nope.toml"], |_| {}),
        case("a directory", "B1001", &["config", "show", "model"], |_| {}),
        case("not UTF-8", "B1001", SHOW, |s| s.write("run.toml", b"[run]\nname = \"\xff\"\n")),
        case("a string that is not closed", "B1001", SHOW, |s| s.before("[run]\nname = \"x")),
        case("a key without a value", "B1001", SHOW, |s| s.before("[run]\nseed =")),
        case("a key twice", "B1001", SHOW, |s| s.before("[run]\nseed = 1\nseed = 2")),
        case("a section twice", "B1001", SHOW, |s| s.before("[model]")),
        case("10,000 nested lists", "B1001", SHOW, |s| s.before(&format!("x = {}", "[".repeat(10_000)))),
        case("two megabytes", "B1001", SHOW, |s| s.write("run.toml", "#".repeat(2 << 20))),
        case("a misspelled key", "B1002", SHOW, |s| s.add("train", "epoch = 1")),
        case("a misspelled section", "B1002", SHOW, |s| s.replace("[train]", "[trian]")),
        case("a key of another section", "B1002", SHOW, |s| s.add("train", "rank = 8")),
        case("a key without its section", "B1002", SHOW, |s| s.before("learning_rate = 1e-4")),
        case("an unknown key after `--set`", "B1002", &["config", "show", "run.toml", "--set", "lora.r=8"], |_| {}),
        case("an unknown command", "B1008", &["trian", "run.toml"], |_| {}),
        case("`--set` without a value", "B1008", &["config", "show", "run.toml", "--set", "lora.rank"], |_| {}),
        case("a command without its run file", "B1008", &["train"], |_| {}),
        case("text for an integer", "B1003", SHOW, |s| s.add("train", "epochs = \"three\"")),
        case("a float for an integer", "B1003", SHOW, |s| s.add("train", "epochs = 1.0")),
        case("a section that is a number", "B1003", SHOW, |s| s.before("lora = 8")),
        case("a date for a name", "B1003", SHOW, |s| s.before("[run]\nname = 1979-05-27")),
        case("a list of numbers for paths", "B1003", SHOW, |s| s.replace("train = \"rows.jsonl\"", "train = [1, 2]")),
        case(
            "text for an integer after `--set`",
            "B1003",
            &["config", "show", "run.toml", "--set", "run.seed=abc"],
            |_| {},
        ),
        case("a negative count", "B1004", SHOW, |s| s.replace("max_steps = 1", "max_steps = -1")),
        case("zero epochs", "B1004", SHOW, |s| s.add("train", "epochs = 0")),
        case("an integer of 70 bits", "B1004", SHOW, |s| s.before("[run]\nseed = 1180591620717411303424")),
        case("NaN", "B1004", SHOW, |s| s.add("train", "learning_rate = nan")),
        case("a number beyond every float", "B1004", SHOW, |s| s.add("train", "learning_rate = 1e999")),
        case("a dropout of 1", "B1004", SHOW, |s| s.before("[lora]\ndropout = 1.0")),
        case("an unknown word", "B1004", SHOW, |s| s.add("train", "schedule = \"linaer\"")),
        case("an empty list", "B1004", SHOW, |s| s.before("[lora]\ntarget_modules = []")),
        case("an unknown module", "B1004", SHOW, |s| s.before("[lora]\ntarget_modules = [\"c_attn\"]")),
        case("a module twice", "B1004", SHOW, |s| s.before("[lora]\ntarget_modules = [\"q_proj\", \"q_proj\"]")),
        case("an empty string", "B1004", SHOW, |s| s.before("[lookahead]\nprefix = \"\"")),
        case("a run name that leaves its directory", "B1004", SHOW, |s| s.before("[run]\nname = \"../x\"")),
        case("a path that only a shell expands", "B1004", SHOW, |s| s.replace("\"model\"", "\"~/model\"")),
        case("half a hub name", "B1004", SHOW, |s| s.replace("\"model\"", "\"hf:smollm\"")),
        case("an address without a port", "B1004", SHOW, |s| s.replace("127.0.0.1:0", "127.0.0.1")),
        case("a store that is no URL", "B1004", SHOW, |s| s.before("[checkpoint]\nstore = \"bucket/prefix\"")),
        case("credentials in the URL of a store", "B1004", SHOW, |s| {
            s.before("[checkpoint]\nstore = \"s3://key:secret@bucket\"");
        }),
        case("an open port for workers elsewhere", "B1004", &["coordinator", "run.toml"], |_| {}),
        case("named fields without names", "B1005", SHOW, |s| s.add("data", "format = \"fields\"")),
        case("names of fields that are not read", "B1005", SHOW, |s| s.add("data", "prompt_field = \"q\"")),
        case("warm-up to the end", "B1005", SHOW, |s| s.add("train", "warmup_steps = 1")),
        case("previews of answers without loss", "B1005", SHOW, |s| s.before("[lookahead]\nturns = \"all\"")),
        case("token previews of a text", "B1005", SHOW, |s| s.before("[lookahead]\npreview_level = \"token\"")),
        case("a timeout ladder out of order", "B1005", SHOW, |s| s.add("cluster", "lease_ms = 400")),
        case("a certificate without its key", "B1005", SHOW, |s| s.before("[security]\ncertificate = \"c.pem\"")),
        case("certificates of clients without TLS", "B1005", SHOW, |s| s.before("[security]\nclient_ca = \"ca.pem\"")),
        case("a certificate that is not there", "B1009", TRAIN, |s| {
            s.before("[security]\ncertificate = \"c.pem\"\nprivate_key = \"c.key\"");
        }),
        case("a certificate that is none", "B1009", TRAIN, |s| {
            s.write("c.pem", "hello");
            s.write_secret("c.key", "hello");
            s.before("[security]\ncertificate = \"c.pem\"\nprivate_key = \"c.key\"");
        }),
        case("tokens that every user can read", "B1009", TRAIN, |s| {
            s.write("tokens", "worker 0123456789abcdef0123456789abcdef\n");
            s.chmod("tokens", 0o644);
            s.before("[security]\ntoken_file = \"tokens\"");
        }),
        case("a short token", "B1009", TRAIN, |s| {
            s.write_secret("tokens", "worker secret\n");
            s.before("[security]\ntoken_file = \"tokens\"");
        }),
        case("tokens for nobody", "B1009", TRAIN, |s| {
            s.write_secret("tokens", "operator 0123456789abcdef0123456789abcdef\n");
            s.before("[security]\ntoken_file = \"tokens\"");
        }),
        case("a coordinator for everybody with tokens, but without TLS", "B1007", SHOW, |s| {
            s.replace("127.0.0.1:0", "0.0.0.0:0");
            s.before("[security]\ntoken_file = \"tokens\"");
        }),
        case("a revision of a local model", "B1005", SHOW, |s| s.add("model", "revision = \"main\"")),
        case("answers of no tokens", "B1005", SHOW, |s| {
            s.before("[eval]\nheldout = \"rows.jsonl\"\nmax_new_tokens = 0");
        }),
        case("no base model", "B1006", SHOW, |s| s.replace("source = \"model\"", "")),
        case("no training data", "B1006", SHOW, |s| s.replace("train = \"rows.jsonl\"", "")),
        case("a coordinator for everybody", "B1007", SHOW, |s| s.replace("127.0.0.1:0", "0.0.0.0:7070")),
    ];
    cases.push(Case {
        env: &[("BALLAST__TRAIN__EPOCS", "3")],
        ..case("an unknown key in the environment", "B1002", SHOW, |_| {})
    });
    cases.push(Case {
        env: &[("BALLAST__TRAIN__EPOCHS", "many")],
        ..case("text for an integer in the environment", "B1003", SHOW, |_| {})
    });
    cases
}
