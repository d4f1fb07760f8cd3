//! Small runs on random models: everything real but the size.

use crate::losses;
use crate::planned::Planned;
use crate::process::{Printed, Process, binary};
use anyhow::{Context, Result, ensure};
use ballast_coordinator::config;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;

/// The run file of most tests.
pub const TINY: &str = "tiny.toml";
/// The run file whose losses PEFT reached too ([`crate::losses`]): heads of 64, weights stored as bf16.
pub const SMALL: &str = "small.toml";

/// A folder for one test: the directories of its runs. All its runs are of one run file, a fixture.
pub struct Scene {
    run_file: PathBuf,
    folder: TempDir,
    binary: PathBuf,
    /// What the processes of the test print, by their names.
    output: Mutex<Vec<(String, Printed)>>,
}

/// Plays a test on [`TINY`].
///
/// # Errors
/// Those of [`play_on`].
pub fn play<T>(test: impl FnOnce(&Scene) -> Result<T>) -> Result<T> {
    play_on(TINY, test)
}

/// Plays a test in a scene of its own. When it fails, all that its processes printed or logged is shown.
///
/// # Errors
/// Those of the test, and when there is no scene to play it in.
pub fn play_on<T>(run_file: &str, test: impl FnOnce(&Scene) -> Result<T>) -> Result<T> {
    let scene = Scene::new(run_file)?;
    let result = test(&scene);
    if result.is_err() {
        scene.show();
    }
    result
}

/// Path of a fixture.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    // Cargo also tells where this package lies when it runs a test, as does whoever runs one without cargo, elsewhere.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("fixtures").join(name)
}

impl Scene {
    fn new(run_file: &str) -> Result<Self> {
        let (folder, binary) = (tempfile::tempdir()?, binary()?);
        Ok(Self { run_file: fixture(run_file), folder, binary, output: Mutex::default() })
    }

    /// What the run file trains.
    ///
    /// # Errors
    /// When the run file or its data are refused.
    pub fn planned(&self) -> Result<Planned> {
        let cache = ("data.cache_dir".to_owned(), self.path("cache").display().to_string());
        Planned::of(config::load(&self.run_file, &[cache], &[])?.run)
    }

    /// A path in the test's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ballast` with a subcommand, in the test's folder and with no settings from the environment.
    #[must_use]
    pub fn ballast(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(subcommand).current_dir(self.folder.path());
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("BALLAST")) {
            command.env_remove(key);
        }
        command
    }

    /// What `ballast audit` says of a run directory.
    ///
    /// # Errors
    /// When it proves nothing.
    pub fn audit(&self, dir: &str) -> Result<Value> {
        let output = self.ballast("audit").args([dir, "--json"]).output().context("ballast audit")?;
        ensure!(output.status.success(), "ballast audit {dir}:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// `ballast SUBCOMMAND RUN.toml --set run.dir=DIR --set ...`.
    #[must_use]
    pub fn run(&self, subcommand: &str, dir: &str, settings: &[&str]) -> Command {
        let mut command = self.ballast(subcommand);
        let folders = [("run.dir", dir), ("data.cache_dir", "cache")];
        let folders = folders.map(|(key, folder)| format!("{key}={}", self.path(folder).display()));
        command.arg(&self.run_file);
        for setting in folders.iter().map(String::as_str).chain(settings.iter().copied()) {
            command.args(["--set", setting]);
        }
        command
    }

    /// Starts a command of this scene.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        let process = Process::start(name, command)?;
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.push((name.to_owned(), process.output()));
        Ok(process)
    }

    /// Starts `ballast train` into a run directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_train(&self, dir: &str, settings: &[&str]) -> Result<Process> {
        self.start(&format!("train {dir}"), &mut self.run("train", dir, settings))
    }

    /// Trains to the end and returns the adapter's SHA-256.
    ///
    /// # Errors
    /// When training does not end with exit code 0.
    pub fn train(&self, dir: &str, settings: &[&str]) -> Result<String> {
        let mut process = self.start_train(dir, settings)?;
        let code = process.exit_code()?;
        ensure!(code == 0, "train {dir} {settings:?} ended with {code}:\n{}", process.printed());
        self.adapter_sha256(dir)
    }

    /// SHA-256 (hex) of a run's adapter.
    ///
    /// # Errors
    /// When there is none.
    pub fn adapter_sha256(&self, dir: &str) -> Result<String> {
        let file = self.path(dir).join("adapter").join("adapter_model.safetensors");
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        Ok(hex::encode(Sha256::digest(bytes)))
    }

    /// The loss of every step of a run, in nats a token.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub fn losses(&self, dir: &str) -> Result<Vec<f64>> {
        losses::of_run(&self.path(dir))
    }

    /// A base model like [`TINY`]'s but for one weight.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn other_model(&self) -> Result<PathBuf> {
        let copy = self.path("other-model");
        fs::create_dir(&copy)?;
        for entry in fs::read_dir(fixture("tiny-model"))? {
            let entry = entry?;
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
        let weights = copy.join("model.safetensors");
        let mut bytes = fs::read(&weights)?;
        // The lowest bit of the last weight.
        let lowest = bytes.len().checked_sub(4).context("no weights")?;
        bytes[lowest] ^= 1;
        fs::write(&weights, bytes)?;
        Ok(copy)
    }

    /// Complete checkpoints of a run, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn checkpoints(&self, dir: &str) -> Result<Vec<String>> {
        let folder = self.path(dir).join("checkpoints");
        let mut names = Vec::new();
        if folder.exists() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.path().join("manifest.json").exists() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Prints what the test's processes printed and logged.
    fn show(&self) {
        for (name, output) in &*self.output.lock().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("---- {name} printed:\n{}", output.so_far());
        }
        print_logs(self.folder.path());
    }
}

/// Prints every `*.log` below a folder.
fn print_logs(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            print_logs(&path);
        } else if path.extension().is_some_and(|e| e == "log") {
            eprintln!("---- {}:\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default());
        }
    }
}
