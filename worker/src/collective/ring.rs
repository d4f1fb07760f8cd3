//! Ranks in a ring, each connected to its neighbours by TCP.

use super::element::{Element, combine, decode, encode};
use super::frame::{HEADER_LEN, Header, Kind, MAX_PAYLOAD, run_hash, verify};
use super::handshake::{self, Neighbours};
use super::schedule::Schedule;
use super::socket::{self, ReadFault};
use super::writer::FrameWriter;
use super::{AbortHandle, Collective, CollectiveError, Peer};
use crate::progress::Progress;
use ballast_proto::v1::Generation;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Elements of one frame: large enough to make headers and system calls cheap, small enough to keep the ring busy.
const CHUNK: usize = 1 << 15;
const _: () = assert!(CHUNK * size_of::<i64>() <= MAX_PAYLOAD);

/// One rank's place in the ring of a generation.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// The run's id: workers of other runs are refused.
    pub run_id: String,
    /// The generation: workers of other generations are refused.
    pub generation: Generation,
    /// This process's position.
    pub rank: usize,
    /// Ranks in the ring, at least two.
    pub world_size: usize,
    /// Ring address (`host:port`) of the rank after this one.
    pub next_address: String,
    /// Of the one before it.
    pub previous_address: String,
    /// Longest time for the handshake, and for one reduction, waiting for slower ranks included.
    pub timeout: Duration,
    /// How long a neighbour's machine may be out of reach.
    pub lease: Duration,
}

/// What one rank needs to find its neighbours and to be stopped while it does.
#[derive(Clone, Debug)]
pub struct RingPlace {
    /// Where it stands in which ring.
    pub config: RingConfig,
    /// Ends it.
    pub abort: AbortHandle,
    /// Ticked with every frame.
    pub progress: Progress,
}

/// All-reduce over a ring of TCP connections.
pub struct TcpRing {
    place: Place,
    incoming: TcpStream,
    writer: FrameWriter,
    /// Longest time for one reduction.
    pub(super) timeout: Duration,
    chunk: usize,
    abort: AbortHandle,
    progress: Progress,
    /// Reductions finished.
    sequence: u64,
    broken: bool,
}

impl TcpRing {
    /// Finds both neighbours. `listener` is the one behind this rank's address; it stays usable for later generations.
    ///
    /// # Errors
    /// When the ring makes no sense, a neighbour is not found in time, or `abort` was used.
    pub fn connect(
        listener: &TcpListener,
        config: RingConfig,
        abort: &AbortHandle,
        progress: Progress,
    ) -> Result<Self, CollectiveError> {
        Self::with_chunk(listener, config, abort, progress, CHUNK)
    }

    pub(super) fn with_chunk(
        listener: &TcpListener,
        config: RingConfig,
        abort: &AbortHandle,
        progress: Progress,
        chunk: usize,
    ) -> Result<Self, CollectiveError> {
        let (timeout, lease) = (config.timeout, config.lease);
        let place = Place::new(config)?;
        let Neighbours { incoming, outgoing } = handshake::connect(&place, listener, timeout, abort)?;
        let started = || {
            socket::probe(&incoming, lease)?;
            socket::probe(&outgoing, lease)?;
            abort.watch(&incoming)?;
            abort.watch(&outgoing)?;
            FrameWriter::spawn(outgoing, abort.clone())
        };
        let writer = started().map_err(|e| CollectiveError::Setup(e.to_string()))?;
        let (abort, sequence, broken) = (abort.clone(), 0, false);
        Ok(Self { place, incoming, writer, timeout, chunk, abort, progress, sequence, broken })
    }

    /// Runs one reduction; a failure breaks the ring and lets the neighbours know.
    fn reduce<E: Element>(
        &mut self,
        kind: Kind,
        values: &mut [E],
        op: impl Fn(E, E) -> E + Copy,
    ) -> Result<(), CollectiveError> {
        if self.broken {
            return Err(CollectiveError::Broken);
        }
        self.exchange(kind, values, op).map_err(|error| {
            self.broken = true;
            // Asked before severing, which makes the writer fail as well.
            let (aborted, unsent) = (self.abort.check(), self.writer.failure());
            self.abort.sever();
            match (aborted, unsent) {
                (Err(aborted), _) => aborted,
                (Ok(()), Some(source)) => CollectiveError::Disconnected { peer: self.place.next(), source },
                (Ok(()), None) => error,
            }
        })
    }

    fn exchange<E: Element>(
        &mut self,
        kind: Kind,
        values: &mut [E],
        op: impl Fn(E, E) -> E + Copy,
    ) -> Result<(), CollectiveError> {
        let deadline = Instant::now() + self.timeout;
        let schedule = Schedule::new(values.len(), self.place.world_size, self.place.rank, self.chunk);
        let total = values.len();
        let header = |round, part: &Range<usize>| {
            let bytes = E::BYTES * part.len();
            self.place.header(kind, self.sequence, round, total, part.start, bytes)
        };
        for part in schedule.first_sent() {
            let mut frame = self.writer.frame(HEADER_LEN + E::BYTES * part.len());
            encode(&values[part.clone()], &mut frame[HEADER_LEN..]);
            header(0, &part).seal(&mut frame);
            self.writer.send(frame);
        }
        for round in 0..schedule.rounds() {
            for part in schedule.received(round) {
                let mut frame = self.receive(&header(round, &part), deadline)?;
                if schedule.reduces(round) {
                    combine(&mut values[part.clone()], &mut frame[HEADER_LEN..], op);
                } else {
                    decode(&mut values[part.clone()], &frame[HEADER_LEN..]);
                }
                if round + 1 < schedule.rounds() {
                    header(round + 1, &part).seal(&mut frame);
                    self.writer.send(frame);
                }
                self.progress.tick();
            }
        }
        self.sequence += 1;
        Ok(())
    }

    /// Reads the frame that is due.
    fn receive(&self, due: &Header, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        let peer = || self.place.previous();
        let fault = |fault| match fault {
            ReadFault::TimedOut => CollectiveError::TimedOut { peer: peer(), waited: self.timeout },
            ReadFault::Aborted(error) => error,
            ReadFault::Io(source) => CollectiveError::Disconnected { peer: peer(), source },
        };
        let malformed = |source| CollectiveError::BadFrame { peer: peer(), source };
        let mut raw = [0; HEADER_LEN];
        socket::read_exact(&self.incoming, &mut raw, deadline, &self.abort).map_err(fault)?;
        let (header, checksum) = Header::decode(&raw).map_err(malformed)?;
        header.expect(due).map_err(malformed)?;
        let mut frame = self.writer.frame(HEADER_LEN + due.length as usize);
        frame[..HEADER_LEN].copy_from_slice(&raw);
        socket::read_exact(&self.incoming, &mut frame[HEADER_LEN..], deadline, &self.abort).map_err(fault)?;
        verify(&frame, checksum).map_err(malformed)?;
        Ok(frame)
    }
}

impl Collective for TcpRing {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world_size(&self) -> usize {
        self.place.world_size
    }

    fn all_reduce_sum(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        self.reduce(Kind::Sum, values, i64::wrapping_add)
    }

    fn all_reduce_max(&mut self, values: &mut [i64]) -> Result<(), CollectiveError> {
        self.reduce(Kind::Max, values, i64::max)
    }

    fn all_reduce_sum_reals(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.reduce(Kind::SumReals, values, |here, there| here + there)
    }

    fn wanted(&self) -> Result<(), CollectiveError> {
        self.abort.check()
    }
}

/// A rank, its neighbours, and what frames between them must carry.
#[derive(Debug)]
pub(super) struct Place {
    run: u64,
    generation: Generation,
    pub(super) rank: usize,
    world_size: usize,
    next: Peer,
    previous: Peer,
}

impl Place {
    fn new(config: RingConfig) -> Result<Self, CollectiveError> {
        let RingConfig { run_id, generation, rank, world_size, next_address, previous_address, .. } = config;
        if world_size < 2 || rank >= world_size {
            return Err(CollectiveError::Setup(format!("rank {rank} in a world of {world_size}")));
        }
        let next = Peer { rank: (rank + 1) % world_size, address: next_address };
        let previous = Peer { rank: (rank + world_size - 1) % world_size, address: previous_address };
        Ok(Self { run: run_hash(&run_id), generation, rank, world_size, next, previous })
    }

    /// The neighbour that this rank sends to.
    pub(super) fn next(&self) -> Peer {
        self.next.clone()
    }

    /// The neighbour that this rank receives from.
    pub(super) fn previous(&self) -> Peer {
        self.previous.clone()
    }

    /// A frame of the handshake, as `rank` sends it.
    pub(super) fn greeting(&self, kind: Kind, rank: usize) -> Header {
        self.header(kind, 0, 0, self.world_size, rank, 0)
    }

    fn header(&self, kind: Kind, sequence: u64, round: usize, total: usize, offset: usize, bytes: usize) -> Header {
        Header {
            kind,
            round: round as u32,
            length: bytes as u32,
            run: self.run,
            epoch: self.generation.epoch,
            number: self.generation.number,
            sequence,
            total: total as u64,
            offset: offset as u64,
        }
    }
}
