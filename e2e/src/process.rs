//! Real `ballast` processes, watched by what they print.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

/// How long anything may take; far beyond what it does take.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(5);

/// The `ballast` binary of this build, which lies beside the test executable; or the one that `BALLAST_E2E_BINARY` names.
///
/// # Errors
/// When it was not built, or is older than its sources (unless it was named).
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("BALLAST_E2E_BINARY") {
        return Ok(named.into());
    }
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("the test executable lies nowhere")?;
    let binary = folder.join("ballast");
    let build = "run `cargo build -p ballast-cli` (with the profile of the tests) first";
    let built = fs::metadata(&binary).and_then(|m| m.modified());
    let built = built.with_context(|| format!("{} is missing: {build}", binary.display()))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    for package in ["proto", "basemodel", "kernels", "coordinator", "worker", "cli"] {
        let newest = newest_source(&root.join(package).join("src"))?;
        ensure!(newest <= built, "{} is older than the sources of {package}: {build}", binary.display());
    }
    Ok(binary)
}

fn newest_source(folder: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let modified =
            if entry.file_type()?.is_dir() { newest_source(&entry.path())? } else { entry.metadata()?.modified()? };
        newest = newest.max(modified);
    }
    Ok(newest)
}

/// A running process. It is killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    output: Printed,
    ended: Option<ExitStatus>,
}

/// What a process prints, shared with whoever wants to read it later.
#[derive(Clone, Default)]
pub struct Printed(Arc<Output>);

/// Lines of standard output and standard error, as they come.
#[derive(Default)]
struct Output {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    /// When each of them came.
    times: Vec<Instant>,
    closed: bool,
}

impl Process {
    /// Starts a command in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let child = command.spawn().with_context(|| format!("{name}: {command:?}"))?;
        // The command holds the pipe's writing ends, and would keep it open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let output = Printed::default();
        let collecting = Arc::clone(&output.0);
        thread::spawn(move || collecting.collect(reader));
        Ok(Self { name: name.to_owned(), child, output, ended: None })
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has: the exit code, or 128 plus the signal that killed it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended.map(|status| status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)))
    }

    /// Whether it is stopped, as by SIGSTOP.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_stopped(&self) -> Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // The state follows the command, which stands in parentheses.
        Ok(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't'])))
    }

    /// Waits for the first line, old or new, that `wanted` accepts.
    ///
    /// # Errors
    /// When the process ends or the time is over without one.
    pub fn line(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.output.0.lock();
        let mut seen = 0;
        loop {
            if let Some(line) = state.lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = state.lines.len();
            ensure!(!state.closed, "{} ended without the awaited line", self.name);
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{} did not print the awaited line in {PATIENCE:?}", self.name);
            state = self.output.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the first line from the given one on that `wanted` accepts: its number, and when it came.
    ///
    /// # Errors
    /// As [`Process::line`].
    pub fn line_from(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Result<(usize, Instant)> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.output.0.lock();
        let mut seen = from;
        loop {
            while let Some(line) = state.lines.get(seen) {
                if wanted(line) {
                    return Ok((seen, state.times[seen]));
                }
                seen += 1;
            }
            ensure!(!state.closed, "{} ended without the awaited line", self.name);
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{} did not print the awaited line in {PATIENCE:?}", self.name);
            state = self.output.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// When those lines came that `wanted` accepts.
    #[must_use]
    pub fn times(&self, wanted: impl Fn(&str) -> bool) -> Vec<Instant> {
        let state = self.output.0.lock();
        state.lines.iter().zip(&state.times).filter(|(line, _)| wanted(line)).map(|(_, time)| *time).collect()
    }

    /// Lines printed so far.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.output.0.lock().lines.len()
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Errors
    /// As [`Process::line`].
    pub fn line_with(&self, text: &str) -> Result<String> {
        self.line(|line| line.contains(text)).with_context(|| format!("awaiting {text:?}"))
    }

    /// Waits for the end; the exit code, or 128 plus the signal that killed it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn exit_code(&mut self) -> Result<i32> {
        self.exit_code_within(PATIENCE)
    }

    /// As [`Process::exit_code`], for what takes its time.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn exit_code_within(&mut self, patience: Duration) -> Result<i32> {
        let name = self.name.clone();
        let status = until_within(patience, &format!("{name} to end"), || Ok(self.child.try_wait()?))?;
        self.ended = Some(status);
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).context("no exit status")
    }

    /// What it prints.
    #[must_use]
    pub fn output(&self) -> Printed {
        self.output.clone()
    }

    /// Everything printed, once the process has ended.
    #[must_use]
    pub fn printed(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.output.0.lock();
        while !state.closed && Instant::now() < deadline {
            state = self.output.0.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.lines.join("\n")
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.id(), signal)
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// When it is gone.
pub fn send(process: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(process as i32), signal).with_context(|| format!("{signal} to process {process}"))
}

/// Processes whose command line has all these words as arguments.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn with_arguments(words: &[&str]) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(process) = entry?.file_name().to_string_lossy().parse() else { continue };
        // A process may end while it is looked at.
        let Ok(line) = fs::read_to_string(format!("/proc/{process}/cmdline")) else { continue };
        let arguments: Vec<&str> = line.split('\0').collect();
        if words.iter().all(|word| arguments.contains(word)) {
            found.push(process);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When asking fails, or the time is over.
pub fn until<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, what, ask)
}

fn until_within<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {patience:?} for {what}");
        }
        thread::sleep(POLL);
    }
}

impl Printed {
    /// Lines from the given one on.
    #[must_use]
    pub fn from(&self, line: usize) -> Vec<String> {
        self.0.lock().lines.iter().skip(line).cloned().collect()
    }

    /// All lines so far.
    #[must_use]
    pub fn so_far(&self) -> String {
        self.0.lock().lines.join("\n")
    }
}

impl Output {
    fn collect(&self, reader: PipeReader) {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.change(|state| {
                state.lines.push(text);
                state.times.push(Instant::now());
            });
            line.clear();
        }
        self.change(|state| state.closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut Lines)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
