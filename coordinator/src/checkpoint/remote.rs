//! A store in a bucket: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! The crate `object_store` speaks to them, finds credentials in the environment, and tries again after passing failures. It is
//! asynchronous and [`Store`] is not: a runtime of the store's own carries its requests out while the caller's thread waits.

use super::store::{Store, StoreError, check_name};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, WriteMultipart, parse_url_opts, path::Path};
use std::{io, time::Duration};
use tokio::{runtime::Runtime, time::timeout};
use url::Url;

/// Bytes of one part of a large object: S3 wants at least 5 MiB, and a part must pass within one request's time limit.
const PART: usize = 8 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// Of the environment's variables that matter.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Objects under a prefix of a bucket.
pub struct RemoteStore {
    objects: Box<dyn ObjectStore>,
    prefix: Path,
    url: String,
    /// For one call, with all that is tried again.
    deadline: Duration,
    /// There until the store is dropped.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for RemoteStore {
    /// Where it is, and nothing of how it is reached.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        // A runtime cannot be waited for where another one's tasks run, and nothing is under way any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RemoteStore {
    /// The store of a URL such as `s3://bucket/prefix`. Of `environment`, variables that begin with `AWS_`, `GOOGLE_` or
    /// `AZURE_` say how to get there, as `object_store` documents them. No call takes longer than `deadline`. Nothing is asked of
    /// the network yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the URL names no bucket, or the environment holds settings that cannot be used.
    pub fn open(
        url: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        deadline: Duration,
    ) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Unavailable { action: "open", name: url.to_owned(), source };
        let parsed = Url::parse(url).map_err(|error| failed(io::Error::other(error)))?;
        // What reqwest finds installed it uses; another part of the process may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ours = |key: &str| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        let options = environment.into_iter().filter(|(key, _)| ours(key));
        let (objects, prefix) = parse_url_opts(&parsed, options).map_err(|error| failed(told(&error)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(failed)?;
        Ok(Self { objects, prefix, url: url.trim_end_matches('/').to_owned(), deadline, runtime: Some(runtime) })
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        check_name(name)?;
        Ok(name.split('/').fold(self.prefix.clone(), |path, segment| path.join(segment)))
    }

    /// Waits for a request, up to the deadline.
    fn call<T>(
        &self,
        action: &'static str,
        name: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        let failed = |source| StoreError::Unavailable { action, name: format!("{}/{name}", self.url), source };
        let runtime = self.runtime.as_ref().ok_or_else(|| failed(io::Error::other("the store is closed")))?;
        match runtime.block_on(async { timeout(self.deadline, request).await }) {
            Ok(Ok(answer)) => Ok(answer),
            // What is written cannot be missing: then it is the bucket.
            Ok(Err(object_store::Error::NotFound { .. })) if matches!(action, "read" | "delete") => {
                Err(StoreError::NotFound(name.to_owned()))
            }
            Ok(Err(object_store::Error::AlreadyExists { .. })) => Err(StoreError::Exists(name.to_owned())),
            Ok(Err(error)) => Err(failed(told(&error))),
            Err(_) => {
                let message = format!("no answer within {} s", self.deadline.as_secs_f64());
                Err(failed(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
        }
    }

    /// Large objects travel in parts, and appear when the last is there.
    async fn put_in_parts(&self, path: &Path, bytes: &[u8]) -> object_store::Result<()> {
        let upload = self.objects.put_multipart(path).await?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
        for part in bytes.chunks(PART) {
            write.wait_for_capacity(PARTS_AT_ONCE - 1).await?;
            write.write(part);
        }
        write.finish().await.map(drop)
    }
}

impl Store for RemoteStore {
    fn place(&self) -> String {
        self.url.clone()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(name)?;
        self.call("write", name, async {
            if bytes.len() > PART {
                return self.put_in_parts(&path, bytes).await;
            }
            self.objects.put(&path, PutPayload::from(bytes.to_vec())).await.map(drop)
        })
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let payload = PutPayload::from(bytes.to_vec());
        self.call("create", name, self.objects.put_opts(&path, payload, PutMode::Create.into())).map(drop)
    }

    fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        self.call("read", name, async { self.objects.get(&path).await?.bytes().await })
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = if prefix.is_empty() { self.prefix.clone() } else { self.path(prefix)? };
        let found: Vec<_> = self.call("list", prefix, self.objects.list(Some(&path)).try_collect())?;
        let relative = |object: &object_store::ObjectMeta| {
            let segments: Vec<_> = object.location.prefix_match(&self.prefix)?.collect();
            Some(segments.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/"))
        };
        // What somebody else put there is no object of ours.
        let mut names: Vec<String> =
            found.iter().filter_map(relative).filter(|name| check_name(name).is_ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match self.call("delete", name, self.objects.delete(&path)) {
            Err(StoreError::NotFound(_)) => Ok(()),
            deleted => deleted,
        }
    }
}

/// What went wrong, in words. Queries of addresses are left out: they may be credentials.
fn told(error: &object_store::Error) -> io::Error {
    let text = error.to_string();
    let mut pieces = text.split('?');
    let first = pieces.next().unwrap_or_default().to_owned();
    io::Error::other(pieces.fold(first, |mut told, piece| {
        told.push_str("?...");
        told.push_str(piece.find([' ', ')', '"', '\n']).map_or("", |end| &piece[end..]));
        told
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_addresses_are_not_told() {
        let source = "HTTP error: request (https://a.b/c?sig=SECRET&x=1) failed: timeout".into();
        let told = told(&object_store::Error::Generic { store: "Azure", source }).to_string();
        assert!(!told.contains("SECRET"), "{told}");
        assert!(told.contains("https://a.b/c?...) failed: timeout"), "{told}");
    }
}
