//! How stand-ins sum up: the parts of all ranks go around the ring.

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

/// Bytes of a message: epoch, number, step, whose part it is, the part.
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
    /// By generation, step, and the rank whose it is.
    parts: BTreeMap<(Generation, u64, usize), Part>,
    /// Generations in which the connection with the previous rank broke.
    broken: BTreeSet<Generation>,
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
            sender = Some(generation);
            let part = [4, 5, 6, 7].map(|at| i64::from_le_bytes(words[at]));
            self.inner().parts.insert((generation, step, rank), part);
            self.changed.notify_waiters();
        }
        if let Some(sender) = sender {
            self.inner().broken.insert(sender);
            self.changed.notify_waiters();
        }
    }
}

/// The neighbours of a rank in its generation, met.
pub(crate) struct Ranks {
    place: RingPlace,
    aborted: CancellationToken,
    mailbox: Mailbox,
    next: TcpStream,
}

impl Ranks {
    /// Reaches the next one; the previous one reaches this one's mailbox.
    pub(crate) async fn meet(place: RingPlace, mailbox: Mailbox) -> Result<Self, CollectiveError> {
        let aborted = CancellationToken::new();
        let told = aborted.clone();
        place.abort.on_abort(move |_| told.cancel());
        let RingConfig { generation, timeout, .. } = place.config;
        mailbox.inner().parts.retain(|(of, ..), _| *of >= generation);
        mailbox.inner().broken.retain(|of| *of >= generation);
        let reach = async {
            loop {
                match TcpStream::connect(place.config.next_address.as_str()).await {
                    Ok(stream) => return stream,
                    Err(_) => sleep(AGAIN).await,
                }
            }
        };
        let reached = tokio::select! {
            biased;
            () = aborted.cancelled() => return Err(place.abort.reason().unwrap_or(CollectiveError::Broken)),
            reached = timeout_at(Instant::now() + timeout, reach) => reached,
        };
        let next = reached.map_err(|_| CollectiveError::TimedOut { peer: next(&place.config), waited: timeout })?;
        place.progress.tick();
        Ok(Self { place, aborted, mailbox, next })
    }

    /// The sum of all ranks' parts of a step.
    pub(crate) async fn sum(&mut self, step: u64, own: Part) -> Result<Part, CollectiveError> {
        let aborted = self.aborted.clone();
        tokio::select! {
            biased;
            () = aborted.cancelled() => Err(self.place.abort.reason().unwrap_or(CollectiveError::Broken)),
            summed = self.pass_around(step, own) => summed,
        }
    }

    /// Every part goes once around, from neighbour to neighbour.
    async fn pass_around(&mut self, step: u64, own: Part) -> Result<Part, CollectiveError> {
        let RingConfig { generation, rank, world_size, timeout, .. } = self.place.config;
        let deadline = Instant::now() + timeout;
        let (mut sum, mut passed) = (own, own);
        for distance in 1..world_size {
            // Whose part this is.
            let of = (rank + world_size + 1 - distance) % world_size;
            let mut message = Vec::with_capacity(MESSAGE);
            let address = [generation.epoch, generation.number, step, of as u64];
            address.iter().for_each(|word| message.extend_from_slice(&word.to_le_bytes()));
            passed.iter().for_each(|word| message.extend_from_slice(&word.to_le_bytes()));
            let sent = self.next.write_all(&message).await;
            sent.map_err(|source| CollectiveError::Disconnected { peer: next(&self.place.config), source })?;
            let of = (rank + world_size - distance) % world_size;
            passed = self.part((generation, step, of), deadline).await?;
            sum.iter_mut().zip(passed).for_each(|(sum, part)| *sum = sum.wrapping_add(part));
            self.place.progress.tick();
        }
        Ok(sum)
    }

    async fn part(&self, which: (Generation, u64, usize), deadline: Instant) -> Result<Part, CollectiveError> {
        let RingConfig { rank, world_size, timeout, ref previous_address, .. } = self.place.config;
        let previous = || Peer { rank: (rank + world_size - 1) % world_size, address: previous_address.clone() };
        loop {
            let changed = self.mailbox.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.mailbox.inner();
                if let Some(part) = inner.parts.get(&which) {
                    return Ok(*part);
                }
                if inner.broken.contains(&which.0) {
                    let source = io::ErrorKind::ConnectionReset.into();
                    return Err(CollectiveError::Disconnected { peer: previous(), source });
                }
            }
            let late = |_| CollectiveError::TimedOut { peer: previous(), waited: timeout };
            timeout_at(deadline, changed).await.map_err(late)?;
        }
    }
}

fn next(config: &RingConfig) -> Peer {
    Peer { rank: (config.rank + 1) % config.world_size, address: config.next_address.clone() }
}
