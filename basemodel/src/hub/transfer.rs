//! Requests to the hub, watched and checked.

use super::{Hub, is_commit, model};
use crate::Error;
use hf_hub::Repo;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};

/// The hub's answer where a part is already as long as the file.
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// Why a transfer came to nothing.
enum Fault {
    Api(ApiError),
    /// What arrived is not what was announced.
    Damaged(String),
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Api(error.into())
    }
}

/// Tells the watcher that something moved.
struct Heartbeat(Sender<()>);

impl Progress for &Heartbeat {
    fn init(&mut self, _: usize, _: &str) {
        self.update(0);
    }

    fn update(&mut self, _: usize) {
        // The watcher is gone only where it has given up.
        let _ = self.0.send(());
    }

    fn finish(&mut self) {
        self.update(0);
    }
}

impl Hub {
    /// The commit that a revision names, and the files it holds.
    pub(super) fn resolve(&self, name: &str, revision: &str) -> Result<(Repo, BTreeSet<String>), Error> {
        let repo = model(name, revision);
        let info = self.watched(name, "its list of files", move |api, _| Ok(api.repo(repo).info()?))?;
        if !is_commit(&info.sha) {
            return Err(self.failed(name, "the hub's answer names no commit".to_owned()));
        }
        Ok((model(name, &info.sha), info.siblings.into_iter().map(|s| s.rfilename).collect()))
    }

    /// The path of a file of a commit, downloaded where the cache lacks it.
    pub(super) fn file(&self, pinned: &Repo, file: &str) -> Result<PathBuf, Error> {
        let pointer = self.cache.repo(pinned.clone()).pointer_path(pinned.revision()).join(file);
        if pointer.is_file() {
            return Ok(pointer);
        }
        tracing::info!(repo = pinned.url(), file, "downloading");
        let (repo, cache, name) = (pinned.clone(), self.cache.clone(), file.to_owned());
        self.watched(&pinned.url(), file, move |api, heartbeat| {
            let handle = api.repo(repo.clone());
            let announced = api.metadata(&handle.url(&name))?;
            let blob = cache.repo(repo).blob_path(announced.etag());
            let part = blob.with_extension("part");
            let arrived = receive(|| handle.download_with_progress(&name, heartbeat), &pointer, &part, heartbeat)?;
            if let Err(what) = verify(&arrived, announced.size() as u64, announced.etag(), heartbeat) {
                // What is damaged must not be found by the next run.
                for path in [&arrived, &blob, &part] {
                    let _ = std::fs::remove_file(path);
                }
                return Err(Fault::Damaged(what));
            }
            Ok(arrived)
        })
    }

    /// Runs a transfer in a thread of its own and gives it up when nothing moves: the client knows no timeouts. The
    /// thread of an abandoned transfer is left behind; the process is about to end with the error.
    fn watched<T: Send + 'static>(
        &self,
        name: &str,
        what: &str,
        work: impl FnOnce(&Api, &Heartbeat) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let builder = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false);
        let (sender, moved) = mpsc::channel();
        let thread = std::thread::spawn(move || work(&builder.build()?, &Heartbeat(sender)));
        loop {
            match moved.recv_timeout(self.stall) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let silence = self.stall.as_secs_f64();
                    return Err(self.failed(name, format!("{what}: nothing arrived for {silence} s")));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match thread.join() {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(self.explain(name, what, fault)),
            // The client panics on some malformed answers.
            Err(_) => Err(self.failed(name, format!("{what}: the hub's answer is malformed"))),
        }
    }

    /// What a fault means to the user. Only faults that may pass are downloads to try again.
    fn explain(&self, name: &str, what: &str, fault: Fault) -> Error {
        let error = match fault {
            Fault::Damaged(damage) => return self.failed(name, format!("{what}: {damage}")),
            Fault::Api(error) => error,
        };
        let advice =
            if self.token.is_some() { "HF_TOKEN gives no access to it" } else { "it may need a token: set HF_TOKEN" };
        match status(&error) {
            Some(status @ (401 | 403)) => {
                Error::NotFound(format!("hf:{name}: {what}: the hub refuses it ({status}); {advice}"))
            }
            Some(404) => {
                Error::NotFound(format!("hf:{name}: {what}: the hub does not have it (404); check name and revision"))
            }
            Some(status) => self.failed(name, format!("{what}: the hub answers with status {status}")),
            None => self.failed(name, format!("{what}: {error}")),
        }
    }

    /// A download that may be tried again. Whatever a library put into its message, the token is not shown.
    fn failed(&self, name: &str, what: String) -> Error {
        let what = match &self.token {
            Some(token) => what.replace(token.as_str(), "***"),
            None => what,
        };
        Error::Download {
            repo: format!("hf:{name}"),
            what: format!("{what}; with HF_HUB_OFFLINE=1 only the cache is used"),
        }
    }
}

/// The HTTP status that an error stands for.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => {
            if let ureq::Error::StatusCode(status) = **e {
                Some(status)
            } else {
                None
            }
        }
        _ => None,
    }
}

/// Downloads, waiting for another process that is downloading the same file for as long as its copy grows.
fn receive(
    download: impl Fn() -> Result<PathBuf, ApiError>,
    pointer: &Path,
    part: &Path,
    heartbeat: &Heartbeat,
) -> Result<PathBuf, Fault> {
    let mut seen = 0;
    loop {
        match download() {
            Err(ApiError::LockAcquisition(_)) => {
                if pointer.is_file() {
                    return Ok(pointer.to_owned());
                }
                let length = std::fs::metadata(part).map_or(0, |m| m.len());
                if std::mem::replace(&mut seen, length) != length {
                    let _ = heartbeat.0.send(());
                }
            }
            Err(error) => {
                // A part that cannot be continued must not stand in the way of the next run.
                if matches!(error, ApiError::InvalidResume) || status(&error) == Some(RANGE_NOT_SATISFIABLE) {
                    let _ = std::fs::remove_file(part);
                }
                return Err(error.into());
            }
            Ok(path) => return Ok(path),
        }
    }
}

/// Length, and SHA-256 where the hub names it: the etag of a large file is its hash.
fn verify(path: &Path, length: u64, etag: &str, heartbeat: &Heartbeat) -> Result<(), String> {
    let unreadable = |e: std::io::Error| format!("cannot be read back: {e}");
    let mut file = File::open(path).map_err(unreadable)?;
    let arrived = file.metadata().map_err(unreadable)?.len();
    if arrived != length {
        return Err(format!("{arrived} bytes arrived instead of {length}"));
    }
    if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer).map_err(unreadable)?;
        let Some(bytes) = buffer.get(..read).filter(|b| !b.is_empty()) else { break };
        digest.update(bytes);
        let _ = heartbeat.0.send(());
    }
    let digest = hex::encode(digest.finalize());
    if digest.eq_ignore_ascii_case(etag) { Ok(()) } else { Err(format!("its SHA-256 is {digest} instead of {etag}")) }
}
