//! The hub: one thread that sees what every rank asks for, and one that listens to each rank.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use crate::{
    abi::Failure,
    reduce::reduce,
    wire::{Answer, Call, Hello, Kind, Request, Secret, write_answer},
};

/// A connection that does not say what it wants is dropped after this time.
const GREETING: Duration = Duration::from_secs(10);

enum Event {
    Joined(Hello, TcpStream),
    Asked(u32, Request),
    Gone(u32),
}

/// Opens a hub and returns where it listens and the secret that it wants to hear.
pub(crate) fn open() -> io::Result<(u16, Secret)> {
    let mut secret = Secret::default();
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (sender, receiver) = channel();
    let full = Arc::new(AtomicBool::new(false));
    let closing = Arc::clone(&full);
    thread::Builder::new().name("nccl listener".to_owned()).spawn(move || listen(&listener, secret, &sender, &full))?;
    let hub = Hub { address, full: closing, members: Vec::new(), missing: 0, lost: None };
    thread::Builder::new().name("nccl hub".to_owned()).spawn(move || hub.run(&receiver))?;
    Ok((address.port(), secret))
}

/// Lets in whoever knows the secret, until the hub is full.
fn listen(listener: &TcpListener, secret: Secret, hub: &Sender<Event>, full: &AtomicBool) {
    for stream in listener.incoming().flatten() {
        if full.load(Ordering::Relaxed) {
            return;
        }
        let hub = hub.clone();
        thread::spawn(move || serve(stream, secret, &hub));
    }
}

/// Hands on what one rank says. Any error is the end of the connection: the hub hears that the rank is gone.
fn serve(mut stream: TcpStream, secret: Secret, hub: &Sender<Event>) {
    let greet = |stream: &mut TcpStream| {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GREETING))?;
        let hello = Hello::read(stream)?;
        stream.set_read_timeout(None)?;
        io::Result::Ok((hello, stream.try_clone()?))
    };
    let Ok((hello, answers)) = greet(&mut stream) else { return };
    if hello.secret != secret || hub.send(Event::Joined(hello, answers)).is_err() {
        return;
    }
    while let Ok(request) = Request::read(&mut stream) {
        if hub.send(Event::Asked(hello.rank, request)).is_err() {
            return;
        }
    }
    // The hub has ended if nobody listens any more.
    let _ = hub.send(Event::Gone(hello.rank));
}

struct Member {
    stream: TcpStream,
    asked: VecDeque<(Call, Vec<u8>)>,
    left: bool,
    /// Whether it runs in this very process.
    local: bool,
}

struct Hub {
    address: SocketAddr,
    /// Set when nobody more is let in.
    full: Arc<AtomicBool>,
    members: Vec<Option<Member>>,
    missing: usize,
    /// The first rank that was lost; from then on every request fails.
    lost: Option<u32>,
}

impl Hub {
    fn run(mut self, events: &Receiver<Event>) {
        for event in events {
            match event {
                Event::Joined(hello, stream) => self.join(hello, stream),
                Event::Asked(rank, Request::Farewell) => {
                    if let Some(member) = self.member(rank) {
                        member.left = true;
                    }
                }
                Event::Asked(rank, Request::Collective(call, operand)) => {
                    if let Some(member) = self.member(rank) {
                        member.asked.push_back((call, operand));
                    }
                }
                Event::Gone(rank) => {
                    let left = self.member(rank).is_none_or(|member| member.left);
                    if !left && self.lost.is_none() {
                        self.lost = Some(rank);
                    }
                    if self.missing > 0 {
                        self.answer_all(&Err((
                            Failure::RemoteError,
                            format!("rank {rank} left before all had joined"),
                        )));
                    }
                }
            }
            self.settle();
        }
    }

    fn member(&mut self, rank: u32) -> Option<&mut Member> {
        self.members.get_mut(rank as usize)?.as_mut()
    }

    /// Takes a rank in, and tells all when they are complete.
    fn join(&mut self, hello: Hello, mut stream: TcpStream) {
        if self.members.is_empty() {
            self.members.resize_with(hello.ranks as usize, || None);
            self.missing = self.members.len();
        }
        let ranks = self.members.len();
        let free = self.members.get_mut(hello.rank as usize).filter(|place| place.is_none());
        let Some(place) = free.filter(|_| hello.ranks as usize == ranks) else {
            let message = format!("rank {} of {} has no place among {ranks}", hello.rank, hello.ranks);
            // A rank that does not hear this is gone, and of no more concern.
            let _ = write_answer(&mut stream, &Err((Failure::InvalidUsage, message)));
            return;
        };
        let local = hello.process == std::process::id();
        *place = Some(Member { stream, asked: VecDeque::new(), left: false, local });
        self.missing -= 1;
        if self.missing == 0 {
            self.full.store(true, Ordering::Relaxed);
            // Wakes the listener, which then sees that it is done.
            let _ = TcpStream::connect(self.address);
            self.answer_all(&Ok(Vec::new()));
        }
    }

    /// Answers every collective that all ranks have asked for, or that one can no longer answer.
    fn settle(&mut self) {
        if self.missing > 0 {
            return;
        }
        while !self.members.is_empty() && self.members.iter().flatten().all(|member| !member.asked.is_empty()) {
            let asked = self.members.iter_mut().flatten().filter_map(|member| member.asked.pop_front());
            let (calls, operands): (Vec<Call>, Vec<Vec<u8>>) = asked.unzip();
            self.answer_all(&combine(&calls, operands));
        }
        let left = self.members.iter().flatten().position(|member| member.left && member.asked.is_empty());
        let message = match (self.lost, left) {
            (Some(rank), _) => format!("rank {rank} was lost"),
            (None, Some(rank)) => format!("rank {rank} has left the communicator"),
            (None, None) => return,
        };
        for member in self.members.iter_mut().flatten() {
            for _ in member.asked.drain(..) {
                // A rank that does not hear this is gone itself.
                let _ = write_answer(&mut member.stream, &Err((Failure::RemoteError, message.clone())));
            }
        }
    }

    /// The rank in this process comes last: once it has its answer it may end the process, and the hub with it.
    fn answer_all(&mut self, answer: &Answer) {
        for local in [false, true] {
            for member in self.members.iter_mut().flatten().filter(|member| member.local == local) {
                // A rank that does not hear this is gone: its listener will say so.
                let _ = write_answer(&mut member.stream, answer);
            }
        }
    }
}

/// The result for all ranks, if they ask for the same.
fn combine(calls: &[Call], operands: Vec<Vec<u8>>) -> Answer {
    let usage = |message: String| (Failure::InvalidUsage, message);
    let Some(&call) = calls.first() else { return Ok(Vec::new()) };
    if let Some((rank, other)) = calls.iter().enumerate().find(|&(_, &other)| other != call) {
        return Err(usage(format!("rank 0 asks for {call:?}, rank {rank} for {other:?}")));
    }
    match call.kind {
        Kind::AllReduce(reduction) => reduce(&operands, call.data, reduction)
            .ok_or_else(|| usage(format!("{:?} cannot be reduced here", call.data))),
        Kind::Broadcast(root) => {
            operands.into_iter().nth(root as usize).ok_or_else(|| usage(format!("there is no rank {root}")))
        }
        Kind::AllGather => Ok(operands.concat()),
    }
}
