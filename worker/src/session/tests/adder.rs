//! An engine that adds numbers.

use super::fake::G2;
use crate::WorkerError;
use crate::collective::{Collective, RingPlace, Solo, TcpRing};
use crate::progress::Progress;
use crate::session::engine::{Engine, Export, Meeting};
use crate::session::transfer::disassemble;
use crate::trainer::{ExportedState, StepOutcome};
use ballast_proto::CommunicatorSecret;
use ballast_proto::v1::next_task_response::Task;
use ballast_proto::v1::{
    DownloadResponse, NumericsFingerprint, Phase, ScoreResult, StepShard, download_response, task_result,
};
use bytes::Bytes;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use tokio::sync::mpsc::UnboundedSender;

/// How a step fails, by its number.
type Failing = fn(u64) -> WorkerError;

/// A state that is one number: every step adds the step's number, summed over the ranks.
#[derive(Default)]
pub(super) struct Adder {
    step: u64,
    total: i64,
    fingerprint: NumericsFingerprint,
    /// Fails in this step, with this error.
    fails: Option<(u64, Failing)>,
    /// Why it can make no communicator's secret.
    no_secret: Option<fn() -> WorkerError>,
    /// Parting from the other ranks waits for a word here.
    parting: Option<Receiver<()>>,
    /// Where the worker says what it does.
    progress: Option<Progress>,
    /// Lives as long as the engine.
    #[expect(dead_code, reason = "held, not read")]
    alive: Option<Arc<()>>,
    /// Every step waits for a word here.
    gate: Option<Receiver<()>>,
    /// Told the number of each step that begins.
    begun: Option<UnboundedSender<u64>>,
    /// Where its neighbours in a ring find it.
    listener: Option<TcpListener>,
    collective: Option<Box<dyn Collective>>,
}

impl Adder {
    pub(super) fn failing_at(step: u64) -> Self {
        let error = |step| WorkerError::NonFinite { step, place: "micro-batch 0".into() };
        Self::failing_with(step, error)
    }

    pub(super) fn failing_with(step: u64, error: fn(u64) -> WorkerError) -> Self {
        Self { fails: Some((step, error)), ..Self::default() }
    }

    pub(super) fn without_secret(error: fn() -> WorkerError) -> Self {
        Self { no_secret: Some(error), ..Self::default() }
    }

    pub(super) fn parting_at(gate: Receiver<()>, alive: Arc<()>) -> Self {
        Self { parting: Some(gate), alive: Some(alive), ..Self::default() }
    }

    pub(super) fn telling(self, progress: &Progress) -> Self {
        Self { progress: Some(progress.clone()), ..self }
    }

    pub(super) fn gated(gate: Receiver<()>) -> Self {
        Self { gate: Some(gate), ..Self::default() }
    }

    pub(super) fn listening(self, listener: TcpListener) -> Self {
        Self { listener: Some(listener), ..self }
    }

    pub(super) fn announcing(self, begun: UnboundedSender<u64>) -> Self {
        Self { begun: Some(begun), ..self }
    }
}

/// What rank 0 makes.
pub(super) fn secret() -> CommunicatorSecret {
    Bytes::from_static(b"secret").into()
}

/// Files of an [`Adder`] as a download.
pub(super) fn download_of(total: i64, step: u64) -> Vec<DownloadResponse> {
    let state = ExportedState {
        step,
        state_sha256: [step as u8; 32],
        files: vec![("total".into(), total.to_le_bytes().into())],
    };
    let (header, pieces) = disassemble(7, G2, state);
    std::iter::once(download_response::Message::Header(header))
        .chain(pieces.map(download_response::Message::Chunk))
        .map(|message| DownloadResponse { message: Some(message) })
        .collect()
}

#[tonic::async_trait(?Send)]
impl Engine for Adder {
    fn fingerprint(&self) -> &NumericsFingerprint {
        &self.fingerprint
    }

    fn applied_step(&self) -> u64 {
        self.step
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        (self.step, self.total) = (0, 0);
        Ok(())
    }

    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        let [(name, data)] = files else { panic!("one file, got {files:?}") };
        assert_eq!(name, "total");
        (self.step, self.total) = (step, i64::from_le_bytes(data[..].try_into().unwrap()));
        Ok(())
    }

    fn state_sha256(&self) -> Result<[u8; 32], WorkerError> {
        Ok([self.step as u8; 32])
    }

    fn copy_state(&self) -> Result<Export, WorkerError> {
        let (step, total) = (self.step, self.total);
        Ok(Box::new(move || {
            let files = vec![("total".to_owned(), total.to_le_bytes().to_vec())];
            Ok(ExportedState { step, state_sha256: [step as u8; 32], files })
        }))
    }

    fn communicator_id(&self) -> Result<CommunicatorSecret, WorkerError> {
        self.no_secret.map_or_else(|| Ok(secret()), |error| Err(error()))
    }

    /// Over "NCCL", every rank is alone.
    async fn connect(&mut self, meeting: Meeting) -> Result<(), WorkerError> {
        self.collective = Some(match meeting {
            Meeting::Alone => Box::new(Solo),
            Meeting::Ring(RingPlace { config, abort, progress }) => {
                Box::new(TcpRing::connect(self.listener.as_ref().unwrap(), config, &abort, progress)?)
            }
            Meeting::Nccl(place) => {
                if place.id != secret() {
                    return Err(WorkerError::Internal("met by another generation's secret".into()));
                }
                Box::new(Solo)
            }
        });
        Ok(())
    }

    fn disconnect(&mut self) {
        if let Some(gate) = &self.parting {
            let _ = gate.recv();
        }
        self.collective = None;
    }

    async fn step(&mut self, shard: &StepShard) -> Result<StepOutcome, WorkerError> {
        assert_eq!(shard.step, self.step + 1);
        if let Some((step, error)) = self.fails.filter(|(step, _)| *step == shard.step) {
            return Err(error(step));
        }
        if let Some(progress) = &self.progress {
            progress.set_phase(Phase::Compute);
        }
        if let Some(begun) = &self.begun {
            let _ = begun.send(shard.step);
        }
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        let mut values = [shard.step as i64];
        self.collective.as_mut().unwrap().all_reduce_sum(&mut values)?;
        (self.step, self.total) = (shard.step, self.total + values[0]);
        Ok(StepOutcome {
            loss: self.total as f64,
            loss_tokens: 1,
            tokens: 1,
            rank_tokens: 1,
            grad_norm: 0.0,
            learning_rate: 0.0,
            state_sha256: [self.step as u8; 32],
            compute_seconds: 0.0,
            reduce_seconds: 0.0,
            recomputed: 0,
            not_finite: Vec::new(),
            own_seconds: 0.0,
        })
    }

    fn evaluate(&mut self, _: &Task) -> Result<task_result::Result, WorkerError> {
        Ok(task_result::Result::Score(ScoreResult { tuned_nll: vec![self.total as f32], ..ScoreResult::default() }))
    }
}
