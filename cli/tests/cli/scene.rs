//! A directory with a sound run file, sound data and a sound base model, to be broken.

use assert_cmd::Command;
use serde_json::Value;
use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const RUN_FILE: &str = "\
[model]
source = \"model\"

[data]
train = \"rows.jsonl\"
cache_dir = \"cache\"

[train]
global_batch = 2
max_steps = 1

[cluster]
workers = 1
threads = 1
bind = \"127.0.0.1:0\"
";

/// Longest that any bad input may keep Ballast busy.
const LIMIT: Duration = Duration::from_secs(60);

/// The directory.
pub(crate) struct Scene {
    directory: TempDir,
    /// Port of whatever listens for the case.
    port: Cell<u16>,
}

/// What a process did.
pub(crate) struct Outcome {
    pub(crate) exit_code: i32,
    /// From `error[` to the help line, without the directory.
    pub(crate) message: String,
    pub(crate) stderr: String,
}

impl Scene {
    /// Everything is sound.
    pub(crate) fn new() -> Self {
        let scene = Self { directory: tempfile::tempdir().unwrap(), port: Cell::new(0) };
        scene.write("run.toml", RUN_FILE);
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/fixtures");
        let rows = fs::read_to_string(fixtures.join("rows.jsonl")).unwrap();
        scene.write("rows.jsonl", rows.lines().take(4).map(|row| format!("{row}\n")).collect::<String>());
        fs::create_dir(scene.path("model")).unwrap();
        for file in fs::read_dir(fixtures.join("tiny-model")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), scene.path("model").join(file.file_name())).unwrap();
        }
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn write_secret(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.write(name, bytes);
        self.chmod(name, 0o600);
    }

    pub(crate) fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Cuts a file to `length` bytes.
    pub(crate) fn cut(&self, name: &str, length: usize) {
        self.write(name, &self.read(name)[..length]);
    }

    /// Adds lines in front of the run file; sections must not be among its own.
    pub(crate) fn before(&self, text: &str) {
        self.write("run.toml", [text.as_bytes(), b"\n", &self.read("run.toml")].concat());
    }

    /// Replaces text of the run file, which must be there.
    pub(crate) fn replace(&self, from: &str, to: &str) {
        let text = String::from_utf8(self.read("run.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        self.write("run.toml", text.replace(from, to));
    }

    /// Adds a key to a section of the run file.
    pub(crate) fn add(&self, section: &str, line: &str) {
        self.replace(&format!("[{section}]\n"), &format!("[{section}]\n{line}\n"));
    }

    /// Adds a row of data.
    pub(crate) fn row(&self, row: impl AsRef<[u8]>) {
        self.write("rows.jsonl", [&self.read("rows.jsonl"), row.as_ref(), b"\n"].concat());
    }

    /// Changes a JSON file.
    pub(crate) fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(name)).unwrap();
        edit(&mut value);
        self.write(name, value.to_string());
    }

    /// Changes header and data of the model's safetensors file.
    pub(crate) fn edit_tensors(&self, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        const NAME: &str = "model/model.safetensors";
        let bytes = self.read(NAME);
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
        edit(&mut header, &mut data);
        let header = header.to_string().into_bytes();
        let mut file = fs::File::create(self.path(NAME)).unwrap();
        for part in [&(header.len() as u64).to_le_bytes()[..], &header, &data] {
            file.write_all(part).unwrap();
        }
    }

    /// Takes a port; `{port}` in the command line stands for it.
    pub(crate) fn listen(&self) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.port.set(listener.local_addr().unwrap().port());
        listener
    }

    /// `ballast` in this directory, with no settings from the environment of the test.
    pub(crate) fn ballast(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.current_dir(self.directory.path()).timeout(LIMIT);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BALLAST") || name.starts_with("HF_")) {
            command.env_remove(name);
        }
        command.args(args.iter().map(|arg| arg.replace("{port}", &self.port.get().to_string())));
        command
    }

    /// Standard output and standard error of a command that succeeds.
    pub(crate) fn succeed(&self, args: &[&str]) -> (String, String) {
        let output = self.ballast(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{args:?}: {:?}\n{stdout}{stderr}", output.status);
        (stdout, stderr)
    }

    /// Runs a bad case.
    pub(crate) fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Outcome {
        let output = self.ballast(args).envs(env.iter().copied()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let message = stderr.find("error[").map_or("", |start| &stderr[start..]);
        let message = message.split("\n  help: ").next().unwrap_or_default();
        // The model's path is absolute, and on some systems the temporary directory is a link.
        let mut message = message.to_owned();
        for directory in [self.directory.path().to_owned(), self.directory.path().canonicalize().unwrap()] {
            message = message.replace(&format!("{}/", directory.display()), "");
        }
        if self.port.get() != 0 {
            message = message.replace(&format!(":{}", self.port.get()), ":PORT");
        }
        Outcome { exit_code: output.status.code().unwrap_or(-1), message, stderr }
    }
}
