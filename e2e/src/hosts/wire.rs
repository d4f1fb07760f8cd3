//! A wire between hosts: a thread that carries their frames, and loses, delays, duplicates or withholds them as it is told.

use super::Host;
use super::frame::{self, Receiver};
use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where the tunnels end, as `hosts.sh` makes them.
const VXLAN_PORT: u16 = 4789;
/// Largest datagram.
const DATAGRAM: usize = 1 << 16;
/// The thread looks up this often.
const LOOK: Duration = Duration::from_millis(20);

/// What every frame has to go through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Share of frames that are lost.
    pub loss: f64,
    /// Share of frames that arrive twice.
    pub duplicates: f64,
    /// Time on the way.
    pub delay: Duration,
    /// So much more at most, for each frame anew: one may overtake another.
    pub jitter: Duration,
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Delivered, duplicates included.
    pub carried: u64,
    /// Withheld by a cut.
    pub cut: u64,
    /// Lost to the weather.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Delivered before one that was sent earlier on the same way.
    pub overtook: u64,
}

/// The wire; its thread ends when it is dropped.
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Fair where it is not told.
    weather: BTreeMap<(Host, Host), Weather>,
    /// From whom nothing reaches whom.
    cut: BTreeSet<(Host, Host)>,
    tally: Tally,
    failure: Option<std::io::Error>,
}

impl Wire {
    /// A wire in fair weather, in the namespace where the hosts' tunnels end.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the tunnels' end is taken.
    pub(super) fn within(namespace: &Path, hosts: u8) -> Result<Self> {
        let entered = File::open(namespace).with_context(|| namespace.display().to_string())?;
        // A socket stays in the namespace in which it was made; this thread does not.
        let open = || -> Result<UdpSocket> {
            setns(&entered, CloneFlags::CLONE_NEWNET)?;
            Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, VXLAN_PORT))?)
        };
        let socket = std::thread::scope(|scope| scope.spawn(open).join());
        let socket = socket.map_err(|_| anyhow!("the wire's end was not opened"))??;
        let shared = Arc::new(Shared::default());
        let mut carrier = Carrier::new(socket, hosts, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("wire".into()).spawn(move || carrier.carry())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Changes the weather between two hosts, both ways.
    pub fn set_weather(&self, one: Host, other: Host, weather: Weather) {
        self.shared.state().weather.extend([((one, other), weather), ((other, one), weather)]);
    }

    /// Nothing that `from` sends reaches `to` any more; the other way is as before.
    pub fn cut(&self, from: Host, to: Host) {
        self.shared.state().cut.insert((from, to));
    }

    /// Nothing passes between two hosts, either way.
    pub fn part(&self, one: Host, other: Host) {
        self.shared.state().cut.extend([(one, other), (other, one)]);
    }

    /// Mends all cuts.
    pub fn mend(&self) {
        self.shared.state().cut.clear();
    }

    /// What became of all frames so far.
    ///
    /// # Errors
    /// When the wire itself has failed.
    pub fn tally(&self) -> Result<Tally> {
        let state = self.shared.state();
        ensure!(state.failure.is_none(), "the wire failed: {:?}", state.failure);
        Ok(state.tally)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame under way: when it arrives, as the how manieth it was sent, for whom, and what.
type Frame = (Instant, u64, Host, Vec<u8>);

/// The thread's own.
struct Carrier {
    socket: UdpSocket,
    hosts: u8,
    shared: Arc<Shared>,
    dice: ChaCha8Rng,
    /// By when they arrive, and in the order in which they were sent.
    under_way: BinaryHeap<Reverse<Frame>>,
    sent: u64,
    /// When the last frame of each way arrives.
    latest: BTreeMap<(Host, Host), Instant>,
}

impl Carrier {
    fn new(socket: UdpSocket, hosts: u8, shared: Arc<Shared>) -> Self {
        // Another seed would show nothing else: which frames the weather takes depends on when they come.
        let dice = ChaCha8Rng::seed_from_u64(1);
        Self { socket, hosts, shared, dice, under_way: BinaryHeap::new(), sent: 0, latest: BTreeMap::new() }
    }

    fn carry(&mut self) {
        let mut datagram = vec![0; DATAGRAM];
        while !self.shared.over.load(Ordering::Relaxed) {
            if let Err(error) = self.deliver().and_then(|()| self.receive(&mut datagram)) {
                self.shared.state().failure = Some(error);
                return;
            }
        }
    }

    /// Waits for a frame, but not beyond the arrival of another.
    fn receive(&mut self, datagram: &mut [u8]) -> std::io::Result<()> {
        let due = self.under_way.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        // No time at all would mean for ever.
        let patience = due.unwrap_or(LOOK).clamp(Duration::from_millis(1), LOOK);
        self.socket.set_read_timeout(Some(patience))?;
        match self.socket.recv_from(datagram) {
            Ok((length, _)) => self.take(&mut datagram[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Sends a frame on its way to everyone that it is for.
    fn take(&mut self, datagram: &mut [u8]) {
        let Some((from, receiver)) = frame::ends(datagram) else { return };
        frame::complete_checksum(datagram);
        for to in 1..=self.hosts {
            if to != from && (receiver == Receiver::One(to) || receiver == Receiver::All) {
                self.send(from, to, datagram);
            }
        }
    }

    fn send(&mut self, from: Host, to: Host, datagram: &[u8]) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let weather = state.weather.get(&(from, to)).copied().unwrap_or_default();
        if state.cut.contains(&(from, to)) {
            state.tally.cut += 1;
            return;
        }
        if self.happens(weather.loss) {
            state.tally.lost += 1;
            return;
        }
        let twice = self.happens(weather.duplicates);
        state.tally.duplicated += u64::from(twice);
        for _ in 0..=u8::from(twice) {
            let due = Instant::now() + weather.delay + weather.jitter.mul_f64(self.chance());
            let latest = self.latest.entry((from, to)).or_insert(due);
            state.tally.overtook += u64::from(due < *latest);
            *latest = due.max(*latest);
            self.sent += 1;
            self.under_way.push(Reverse((due, self.sent, to, datagram.to_vec())));
        }
    }

    /// Hands over what has arrived.
    fn deliver(&mut self) -> std::io::Result<()> {
        while self.under_way.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, _, to, datagram))) = self.under_way.pop() else { break };
            match self.socket.send_to(&datagram, (Ipv4Addr::new(10, 97, 7, to), VXLAN_PORT)) {
                Ok(_) => self.shared.state().tally.carried += 1,
                // A host that is being removed is out of reach.
                Err(_) if self.shared.over.load(Ordering::Relaxed) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn happens(&mut self, share: f64) -> bool {
        self.chance() < share
    }

    /// Between 0 and 1.
    fn chance(&mut self) -> f64 {
        f64::from(self.dice.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}
