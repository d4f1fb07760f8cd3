//! Runs tests in processes of their own, with the software device on `LD_LIBRARY_PATH`: the loader reads that variable
//! when a process starts, the device its own variables when it is initialized, and a fault lasts until the process ends.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod ranks;

use std::{
    env,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

/// Set in the processes that tests start.
const CHILD: &str = "SOFTGPU_TEST_CHILD";

/// Where the libraries are: `SOFTGPU_LIB`, or beside this test and one level up, where cargo builds them.
fn library_path() -> String {
    if let Ok(directory) = env::var("SOFTGPU_LIB") {
        return directory;
    }
    let test = env::current_exe().expect("a path");
    let places: Vec<PathBuf> = test.ancestors().skip(1).take(2).map(PathBuf::from).collect();
    env::join_paths(places).expect("paths without colons").into_string().expect("UTF-8")
}

/// What a child was told by [`start`], if this is one.
pub(crate) fn role() -> Option<String> {
    env::var(CHILD).ok()
}

/// Starts the test of that name again, in the given role.
pub(crate) fn start(test: &str, role: &str, variables: &[(&str, &str)]) -> Child {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args([test, "--exact", "--nocapture"]).env(CHILD, role).env("LD_LIBRARY_PATH", library_path());
    command.envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child")
}

/// Runs `body` in a child with these variables and checks that it passes. Returns what the child wrote on stderr.
pub(crate) fn on_device(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> String {
    if role().is_some() {
        body();
        // Past the test harness and the destructors: the device may have a fault that every call answers.
        std::process::exit(0);
    }
    passed(test, &start(test, "device", variables).wait_with_output().expect("a child"))
}

/// Checks that a child passed and returns its stderr.
pub(crate) fn passed(test: &str, output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{test}: {}\n{shown}\n{errors}", output.status);
    errors
}
