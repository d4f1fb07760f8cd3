//! What the documents say exists does: links lead somewhere, run files resolve, commands and their options are there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(missing_docs)]

use ballast_coordinator::config;
use ballast_e2e::process;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files with this extension, in the repository's own folders.
fn files(extension: &str) -> Vec<PathBuf> {
    let own = ["docs", "examples", "deploy", "bench"].map(|folder| root().join(folder));
    let mut found: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)).into();
    for folder in own {
        collect(&folder, &mut found);
    }
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

/// Targets of the Markdown links of a text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

#[test]
fn links_lead_somewhere() {
    let documents = files("md");
    assert!(documents.len() > 20);
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            let path = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(path);
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
        }
    }
}

#[test]
fn every_run_file_resolves() {
    let run_files = files("toml");
    assert!(run_files.len() >= 4, "{run_files:?}");
    for path in run_files {
        let resolved = config::load(&path, &[], &[]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let data = resolved.run.data.train.as_slice();
        // What the container image holds is checked where it comes from.
        let here = |path: &Path| match path.strip_prefix("/usr/share/ballast") {
            Ok(inside) => root().join(inside),
            Err(_) => path.to_owned(),
        };
        for file in data.iter().chain(&resolved.run.eval.heldout).chain(&resolved.run.eval.probes) {
            assert!(here(file).is_file(), "{}: {} is not there", path.display(), file.display());
        }
    }
}

#[test]
fn run_files_in_the_documents_resolve() {
    let folder = tempfile::tempdir().unwrap();
    let mut found = 0;
    for document in files("md") {
        let text = fs::read_to_string(&document).unwrap();
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```").map(|(block, _)| block)) {
            let path = folder.path().join("run.toml");
            fs::write(&path, block).unwrap();
            config::load(&path, &[], &[]).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
            found += 1;
        }
    }
    assert!(found > 0);
}

/// Commands of a document, one on each line of its indented blocks, that begin with `program`; without that word.
fn commands<'a>(text: &'a str, program: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix("    ")?.strip_prefix(program)?.strip_prefix(' '))
}

#[test]
fn make_targets_in_the_documents_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: Vec<&str> = makefile.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name)).collect();
    let mut found = 0;
    for document in files("md") {
        let text = fs::read_to_string(&document).unwrap();
        let quoted = text.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("make "));
        for target in commands(&text, "make").chain(quoted).filter_map(|command| command.split_whitespace().next()) {
            assert!(targets.contains(&target), "{}: there is no `make {target}`", document.display());
            found += 1;
        }
    }
    assert!(found > 5, "{found}");
}

#[test]
fn commands_and_options_in_the_documents_exist() {
    let ballast = process::binary().unwrap();
    let mut found = 0;
    for document in files("md") {
        let text = fs::read_to_string(&document).unwrap();
        for words in commands(&text, "ballast").map(|command| command.split_whitespace().collect::<Vec<_>>()) {
            let output = Command::new(&ballast).args([words[0], "--help"]).output().unwrap();
            assert!(output.status.success(), "{}: there is no `ballast {}`", document.display(), words[0]);
            let help = String::from_utf8(output.stdout).unwrap();
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{}: `ballast {}` has no {option}", document.display(), words[0]);
            }
            found += 1;
        }
    }
    assert!(found > 5, "{found}");
}

#[test]
fn the_plain_twin_differs_only_in_lookahead() {
    let load = |name: &str| config::load(&root().join("examples").join(name), &[], &[]).unwrap().run;
    let (mut plain, lookahead) = (load("smollm2-gsm8k-plain.toml"), load("smollm2-gsm8k.toml"));
    assert_eq!(plain.lookahead.mode, config::LookAheadMode::Off);
    assert_eq!(lookahead.lookahead.mode, config::LookAheadMode::Virtual);
    plain.lookahead = lookahead.lookahead.clone();
    plain.run = lookahead.run.clone();
    assert_eq!(plain, lookahead);
}
