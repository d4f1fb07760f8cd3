//! How stand-ins sum up: every rank sends its part to every other.

use ballast_proto::v1::Generation;
use ballast_worker::collective::{CollectiveError, Peer, RingConfig, RingPlace};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

/// What a rank adds to a step.
pub(crate) type Part = [i64; 4];

/// Bytes of a message: epoch, number, step, rank, part.
const MESSAGE: usize = 8 * 8;
/// Pause between attempts to reach a rank.
const AGAIN: Duration = Duration::from_millis(20);

/// What has come from other ranks, of whichever generation.
#[derive(Clone, Default)]
pub(crate) struct Mailbox {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    parts: BTreeMap<(Generation, u64), BTreeMap<usize, Part>>,
    /// Ranks whose connection broke.
    broken: BTreeSet<(Generation, usize)>,
}

impl Mailbox {
    /// Takes connections for as long as the machine runs.
    pub(crate) async fn open(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        let mailbox = Self::default();
        let own = mailbox.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(own.clone().read(stream));
            }
        });
        Ok(mailbox)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self, mut stream: TcpStream) {
        let mut sender = None;
        let mut message = [0; MESSAGE];
        while stream.read_exact(&mut message).await.is_ok() {
            let (words, _) = message.as_chunks::<8>();
            let word = |at: usize| u64::from_le_bytes(words[at]);
            let (generation, step, rank) = (Generation::new(word(0), word(1)), word(2), word(3) as usize);
            sender = Some((generation, rank));
            let part = [4, 5, 6, 7].map(|at| i64::from_le_bytes(words[at]));
            self.inner().parts.entry((generation, step)).or_default().insert(rank, part);
            self.changed.notify_waiters();
        }
        if let Some(sender) = sender {
            self.inner().broken.insert(sender);
            self.changed.notify_waiters();
        }
    }
}

/// The ranks of a generation, met.
pub(crate) struct Ranks {
    place: RingPlace,
    aborted: CancellationToken,
    mailbox: Mailbox,
    outgoing: Vec<(usize, TcpStream)>,
}

impl Ranks {
    /// Reaches all of them.
    pub(crate) async fn meet(place: RingPlace, mailbox: Mailbox) -> Result<Self, CollectiveError> {
        let aborted = CancellationToken::new();
        let told = aborted.clone();
        place.abort.on_abort(move |_| told.cancel());
        let mut ranks = Self { place, aborted, mailbox, outgoing: Vec::new() };
        let generation = ranks.config().generation;
        ranks.mailbox.inner().parts.retain(|(of, _), _| *of >= generation);
        ranks.mailbox.inner().broken.retain(|(of, _)| *of >= generation);
        let deadline = Instant::now() + ranks.config().timeout;
        let (own, world_size) = (ranks.config().rank, ranks.config().addresses.len());
        for rank in (0..world_size).filter(|rank| *rank != own) {
            let address = ranks.config().addresses[rank].clone();
            let reach = async {
                loop {
                    match TcpStream::connect(address.as_str()).await {
                        Ok(stream) => return stream,
                        Err(_) => sleep(AGAIN).await,
                    }
                }
            };
            let reached = tokio::select! {
                biased;
                () = ranks.aborted.cancelled() => return Err(ranks.abort()),
                reached = timeout_at(deadline, reach) => reached,
            };
            let late = |_| CollectiveError::TimedOut { peer: ranks.peer(rank), waited: ranks.config().timeout };
            let stream = reached.map_err(late)?;
            ranks.place.progress.tick();
            ranks.outgoing.push((rank, stream));
        }
        Ok(ranks)
    }

    fn config(&self) -> &RingConfig {
        &self.place.config
    }

    fn peer(&self, rank: usize) -> Peer {
        Peer { rank, address: self.config().addresses[rank].clone() }
    }

    fn abort(&self) -> CollectiveError {
        self.place.abort.reason().unwrap_or(CollectiveError::Broken)
    }

    /// The sum of all ranks' parts of a step.
    pub(crate) async fn sum(&mut self, step: u64, own: Part) -> Result<Part, CollectiveError> {
        let aborted = self.aborted.clone();
        tokio::select! {
            biased;
            () = aborted.cancelled() => Err(self.abort()),
            summed = self.exchange(step, own) => summed,
        }
    }

    async fn exchange(&mut self, step: u64, own: Part) -> Result<Part, CollectiveError> {
        let RingConfig { generation, rank, timeout, .. } = *self.config();
        let deadline = Instant::now() + timeout;
        let mut message = Vec::with_capacity(MESSAGE);
        [generation.epoch, generation.number, step, rank as u64]
            .iter()
            .for_each(|word| message.extend_from_slice(&word.to_le_bytes()));
        own.iter().for_each(|word| message.extend_from_slice(&word.to_le_bytes()));
        for at in 0..self.outgoing.len() {
            let (rank, stream) = &mut self.outgoing[at];
            let (rank, sent) = (*rank, stream.write_all(&message).await);
            sent.map_err(|source| CollectiveError::Disconnected { peer: self.peer(rank), source })?;
        }
        let mut sum = own;
        for rank in (0..self.config().addresses.len()).filter(|other| *other != rank) {
            let part = self.part((generation, step), rank, deadline).await?;
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = sum.wrapping_add(part));
            self.place.progress.tick();
        }
        Ok(sum)
    }

    async fn part(&self, step: (Generation, u64), rank: usize, deadline: Instant) -> Result<Part, CollectiveError> {
        loop {
            let changed = self.mailbox.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.mailbox.inner();
                if let Some(part) = inner.parts.get(&step).and_then(|parts| parts.get(&rank)) {
                    return Ok(*part);
                }
                if inner.broken.contains(&(step.0, rank)) {
                    let source = io::ErrorKind::ConnectionReset.into();
                    return Err(CollectiveError::Disconnected { peer: self.peer(rank), source });
                }
            }
            let late = |_| CollectiveError::TimedOut { peer: self.peer(rank), waited: self.config().timeout };
            timeout_at(deadline, changed).await.map_err(late)?;
        }
    }
}
