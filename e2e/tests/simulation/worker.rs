//! A worker's machine, on which one process follows another.

use crate::dice::SharedDice;
use crate::engine::{StandIn, fingerprint};
use crate::ring::Mailbox;
use crate::run;
use crate::witness::Witness;
use ballast_proto::security::simulated::Dial;
use ballast_proto::security::{ClientSecurity, Connector};
use ballast_proto::{Blocking, Failure};
use ballast_worker::simulation::{Loader, Station, work};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use turmoil::net::TcpStream;

/// Where the other ranks reach it.
const RING: u16 = 9000;
/// How long it looks for its coordinator, at the start and later.
const PATIENCE: Duration = Duration::from_secs(300);

/// The machine; clones are the same one.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) name: String,
    dice: SharedDice,
    witness: Witness,
    hung: Arc<AtomicBool>,
    process: Arc<Mutex<Process>>,
}

#[derive(Default)]
struct Process {
    signals: Option<UnboundedSender<&'static str>>,
    ended: Option<Result<u8, Failure>>,
    /// How many there have been.
    number: u64,
}

impl Worker {
    pub(crate) fn new(name: String, dice: SharedDice, witness: Witness) -> Self {
        Self { name, dice, witness, hung: Arc::default(), process: Arc::default() }
    }

    /// One process, which stays until it is killed.
    pub(crate) async fn run(self) -> turmoil::Result {
        let (signals, received) = unbounded_channel();
        let number = {
            let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            process.signals = Some(signals);
            process.number += 1;
            process.number
        };
        let ended = self.work(number, received).await?;
        self.process.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(ended);
        std::future::pending().await
    }

    async fn work(
        &self,
        number: u64,
        signals: UnboundedReceiver<&'static str>,
    ) -> turmoil::Result<Result<u8, Failure>> {
        let mailbox = Mailbox::open(RING).await?;
        let url = format!("http://coordinator:{}", run::PORT);
        let dial = Dial::new(|| TcpStream::connect(("coordinator", run::PORT)));
        let station = Station {
            connector: Connector::new(&url, &ClientSecurity::default())?.over(dial),
            name: self.name.clone(),
            ring_address: format!("{}:{RING}", self.name),
            connect_timeout: PATIENCE,
            rejoin_timeout: PATIENCE,
        };
        let mut engine = StandIn {
            worker: format!("{}, process {number}", self.name),
            mailbox,
            witness: self.witness.clone(),
            dice: self.dice.clone(),
            progress: Default::default(),
            hung: Arc::clone(&self.hung),
            fingerprint: fingerprint(),
            step: 0,
            state: [0; 32],
            ranks: None,
        };
        let load: Loader = Box::new(move |_, progress| {
            engine.progress = progress.clone();
            Ok(Box::new(engine))
        });
        let dice = self.dice.clone();
        let blocking = Blocking::Simulated(Arc::new(move || dice.pause(5)));
        Ok(work(station, load, blocking, UnboundedReceiverStream::new(signals)).await)
    }

    /// How its process ended, if it did.
    pub(crate) fn ended(&self) -> Option<Result<u8, Failure>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).ended.clone()
    }

    /// The process is gone.
    pub(crate) fn lose_process(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        (process.signals, process.ended) = (None, None);
        self.hung.store(false, Ordering::Relaxed);
    }

    /// Asks the process to stop, if there is one.
    pub(crate) fn terminate(&self) {
        if let Some(signals) = &self.process.lock().unwrap_or_else(PoisonError::into_inner).signals {
            let _ = signals.send("SIGTERM");
        }
    }

    /// Lets its computation stand still, or go on.
    pub(crate) fn hang(&self, hung: bool) {
        self.hung.store(hung, Ordering::Relaxed);
    }
}
