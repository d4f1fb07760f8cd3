//! The door: connections are counted, speak TLS where TLS is set up, and are closed when nobody introduces himself.

use super::{limits::Limits, visitor::Visitor};
use rustls::ServerConfig;
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Connections that are ready and not yet served.
const READY: usize = 16;
/// Pause after the system refused a connection, such as for want of file descriptors.
const BREATH: Duration = Duration::from_millis(50);
/// Longest that the rest of a failed handshake is listened to, and how much of it: what lies unread when a connection is
/// closed makes the system throw away the alert that tells the other side why.
const FAREWELL: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// Where connections come from.
pub trait Listener: Send + Sync + 'static {
    /// What a connection runs over.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection, and who is at its other end.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, "small packets may be delayed: {error}");
        }
        Ok((stream, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// Who may come in.
pub(super) struct Door {
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) limits: Limits,
}

impl Door {
    /// The connections of a listener, until `shutdown`.
    pub(super) fn open<L: Listener>(
        self,
        listener: L,
        shutdown: CancellationToken,
    ) -> ReceiverStream<io::Result<Connection<L::Stream>>> {
        let (sender, connections) = mpsc::channel(READY);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = self.keep(&listener, &sender) => {}
            }
        });
        ReceiverStream::new(connections)
    }

    async fn keep<L: Listener>(&self, listener: &L, sender: &mpsc::Sender<io::Result<Connection<L::Stream>>>) {
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        let strangers = Arc::new(Semaphore::new(self.limits.strangers));
        let acceptor = self.tls.clone().map(TlsAcceptor::from);
        let mut crowded = false;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    sleep(BREATH).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&strangers).try_acquire_owned() else {
                // One line a flood, not one a connection.
                if !std::mem::replace(&mut crowded, true) {
                    tracing::warn!(%peer, "closed: {} connections are not admitted yet", self.limits.strangers);
                }
                continue;
            };
            crowded = false;
            let seat = Arc::clone(&connections).try_acquire_owned().ok();
            let visitor = Arc::new(Visitor::new(peer, seat.is_none(), place));
            let (acceptor, sender, limits) = (acceptor.clone(), sender.clone(), self.limits);
            tokio::spawn(async move {
                if let Some(connection) = enter(stream, visitor, seat, acceptor, limits).await {
                    // When nobody serves any more, there is nobody to tell.
                    let _ = sender.send(Ok(connection)).await;
                }
            });
        }
    }
}

/// A connection that is ready to be served, after its TLS handshake.
async fn enter<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    visitor: Arc<Visitor>,
    seat: Option<OwnedSemaphorePermit>,
    acceptor: Option<TlsAcceptor>,
    limits: Limits,
) -> Option<Connection<S>> {
    let transport = match acceptor {
        None => Transport::Plain(stream),
        Some(acceptor) => {
            let encrypted = timeout(limits.admission, handshake(acceptor, stream, visitor.peer)).await;
            let Ok(encrypted) = encrypted else {
                tracing::warn!(peer = %visitor.peer, "closed: no TLS handshake in {:?}", limits.admission);
                return None;
            };
            Transport::Tls(Box::new(encrypted?))
        }
    };
    let unwelcome = Box::pin({
        let visitor = Arc::clone(&visitor);
        async move { visitor.unwelcome(limits).await }
    });
    Some(Connection { transport, visitor, unwelcome, closed: false, _seat: seat })
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: TlsAcceptor,
    stream: S,
    peer: SocketAddr,
) -> Option<TlsStream<S>> {
    match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => Some(stream),
        Err((error, mut stream)) => {
            tracing::warn!(%peer, "the TLS handshake failed: {error}");
            let (patience, most) = FAREWELL;
            let farewell = async {
                stream.shutdown().await?;
                tokio::io::copy(&mut stream.take(most), &mut tokio::io::sink()).await
            };
            // Whether the other side listens or not, it has had the chance.
            let _ = timeout(patience, farewell).await;
            None
        }
    }
}

enum Transport<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

/// A connection that ends when its visitor is not welcome any more.
pub(super) struct Connection<S> {
    transport: Transport<S>,
    visitor: Arc<Visitor>,
    unwelcome: Pin<Box<dyn Future<Output = ()> + Send>>,
    closed: bool,
    _seat: Option<OwnedSemaphorePermit>,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Arc<Visitor>;

    fn connect_info(&self) -> Arc<Visitor> {
        Arc::clone(&self.visitor)
    }
}

impl<S> Connection<S> {
    /// An error once the visitor is not welcome. Reading is where a connection always waits.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Result<(), io::Error> {
        self.closed = self.closed || self.unwelcome.as_mut().poll(context).is_ready();
        if self.closed { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(()) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_closed(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
