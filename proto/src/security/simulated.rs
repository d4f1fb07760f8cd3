//! Connections over a network that is simulated.

use hyper_util::rt::TokioIo;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a connection runs over.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// Opens byte streams to one coordinator.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn() -> Opening + Send + Sync>);

impl Dial {
    /// As `open` does it.
    pub fn new<S: ByteStream + 'static, F: Future<Output = io::Result<S>> + Send + 'static>(
        open: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move || {
            let opening = open();
            Box::pin(async move { Ok(Box::new(opening.await?) as Box<dyn ByteStream>) })
        }))
    }

    pub(super) fn open(&self) -> impl Future<Output = io::Result<TokioIo<Box<dyn ByteStream>>>> + Send + use<> {
        let opening = (self.0)();
        async move { opening.await.map(TokioIo::new) }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}
