//! Malformed run files, data, models and connections, each met by a real `ballast` process: it must end in time,
//! without a panic, with the right code. `docs/bad-input.md` holds every message word for word and is compared here;
//! `BLESS=1` writes it anew.

mod cases;
mod data;
mod frames;
mod models;
mod network;
mod run_files;

use crate::scene::{Outcome, Scene};
use ballast_proto::ErrorCode;
use cases::Case;
use std::fmt::Write;
use std::path::Path;

const INTRODUCTION: &str = "\
# Bad input

What Ballast says to malformed run files, data, base models, peers and frames. Nothing here makes it panic or hang. The tables are written by
`BLESS=1 cargo test -p ballast-cli --test cli bad_input`, which gives each input to a real process; the same test fails when a message differs from
what stands here. Messages are shortened only by the directory they speak of. [errors/](errors/README.md) explains the codes.
";

#[test]
fn every_bad_input_has_its_message() {
    let groups: [(&str, Vec<Case>); 4] = [
        ("Run files", run_files::cases()),
        ("Data", data::cases()),
        ("Base models", models::cases()),
        ("Connections and run directories", network::cases()),
    ];
    let mut text = INTRODUCTION.to_owned();
    let mut broken = Vec::new();
    for (title, cases) in groups {
        let _ = write!(text, "\n## {title}\n\n| input | exit code | what Ballast says |\n|---|---|---|\n");
        for case in cases {
            let scene = Scene::new();
            (case.break_it)(&scene);
            let outcome = scene.run(case.args, case.env);
            broken.extend(broken_promise(&case, &outcome));
            let _ = writeln!(text, "| {} | {} | {} |", case.what, outcome.exit_code, cell(&outcome.message));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    text += &frames::table();
    compare(&text);
}

/// The promises that hold for every case; what is broken of them.
fn broken_promise(case: &Case, outcome: &Outcome) -> Option<String> {
    let Outcome { exit_code, message, stderr } = outcome;
    let code: ErrorCode = case.code.parse().unwrap();
    let said = message.strip_prefix(&format!("error[{code}]: "));
    let promises = [
        ("it panics", !stderr.contains("panicked")),
        ("another error", said.is_some()),
        ("another exit code", *exit_code == i32::from(code.exit_code())),
        ("no help", stderr.contains(&format!("help: ballast explain {code}"))),
        ("no message worth the name", said.is_some_and(|said| said.chars().count() > 15 && !said.ends_with('.'))),
    ];
    let broken = promises.iter().find(|(_, kept)| !kept);
    broken.map(|(what, _)| format!("{} ({code}): {what}, exit code {exit_code}: {stderr}", case.what))
}

/// A message within a cell of a Markdown table.
fn cell(message: &str) -> String {
    format!("`` {} ``", message.replace('|', "\\|").replace('\n', " "))
}

fn compare(text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bad-input.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (found, expected)) in text.lines().zip(stands.lines()).enumerate() {
        assert_eq!(found, expected, "docs/bad-input.md, line {}: BLESS=1 writes it anew", line + 1);
    }
    assert_eq!(text.lines().count(), stands.lines().count(), "docs/bad-input.md: BLESS=1 writes it anew");
}
