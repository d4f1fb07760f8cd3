//! Tests of several ranks: the test starts itself again, one process a rank.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{self, Child, Output},
    time::{Duration, Instant},
};

/// No test waits longer than this for another rank.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Names the directory in which ranks leave each other notes.
const NOTES: &str = "SOFTGPU_TEST_NOTES";

/// What a rank is told.
pub(crate) struct Role {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    /// The id of the communicator, for all but rank 0, which makes it and [`publish`]es it.
    pub(crate) id: Option<Vec<u8>>,
}

/// The role of this process, if it is a rank: `rank/ranks` or `rank/ranks/id`.
pub(crate) fn role() -> Option<Role> {
    let role = super::role()?;
    let mut parts = role.split('/');
    let mut number = || parts.next().and_then(|n| n.parse::<usize>().ok()).expect("rank and ranks");
    let (rank, ranks) = (number(), number());
    let byte = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).expect("digits");
        u8::from_str_radix(digits, 16).expect("digits")
    };
    let id = parts.next().map(|text| text.as_bytes().chunks(2).map(byte).collect());
    Some(Role { rank, ranks, id })
}

/// Rank 0 tells the others the id.
pub(crate) fn publish(id: &[u8]) {
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("\nid {digits}");
    std::io::stdout().flush().expect("a pipe");
}

/// Starts a test again as so many ranks and waits for them. Each variable is set for all of them.
pub(crate) fn run(test: &str, ranks: usize, variables: &[(&str, &str)]) -> Vec<Output> {
    let notes = env::temp_dir().join(format!("softgpu-{test}-{}", process::id()));
    fs::create_dir_all(&notes).expect("a directory");
    let variables = [variables, &[(NOTES, notes.to_str().expect("UTF-8"))]].concat();
    let mut first = super::start(test, &format!("0/{ranks}"), &variables);
    let mut lines = BufReader::new(first.stdout.take().expect("a pipe")).lines();
    let id = lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("id ").map(str::to_owned));
    let errors = || std::io::read_to_string(first.stderr.take().expect("a pipe")).expect("text");
    let id = id.ok_or_else(errors).expect("rank 0 makes an id");
    let others: Vec<Child> =
        (1..ranks).map(|rank| super::start(test, &format!("{rank}/{ranks}/{id}"), &variables)).collect();
    let mut outputs: Vec<Output> = others.into_iter().map(|child| child.wait_with_output().expect("a child")).collect();
    outputs.insert(0, first.wait_with_output().expect("a child"));
    fs::remove_dir_all(notes).expect("the notes of the ranks");
    outputs
}

/// The body of a rank, or the start of all of them, who must all pass.
pub(crate) fn on_ranks(test: &str, count: usize, variables: &[(&str, &str)], body: impl FnOnce(Role)) {
    if let Some(role) = role() {
        body(role);
        process::exit(0);
    }
    for output in run(test, count, variables) {
        super::passed(test, &output);
    }
}

fn note(name: &str) -> PathBuf {
    Path::new(&env::var_os(NOTES).expect("a path")).join(name)
}

/// Leaves a note for the other ranks.
pub(crate) fn say(name: &str, bytes: &[u8]) {
    let unfinished = note(&format!("{name}.{}", process::id()));
    fs::write(&unfinished, bytes).expect("a file");
    fs::rename(unfinished, note(name)).expect("a file");
}

/// The note of another rank, if it is there.
pub(crate) fn heard(name: &str) -> Option<Vec<u8>> {
    fs::read(note(name)).ok()
}

/// Waits for the note of another rank.
pub(crate) fn hear(name: &str) -> Vec<u8> {
    let start = Instant::now();
    loop {
        if let Some(bytes) = heard(name) {
            return bytes;
        }
        assert!(start.elapsed() < PATIENCE, "no rank said {name:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
