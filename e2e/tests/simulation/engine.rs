//! An engine that trains nothing: its state after a step is a hash of the state before and of all micro-batches of the step.

use crate::dice::SharedDice;
use crate::ring::{Mailbox, Part, Ranks};
use crate::run;
use crate::witness::Witness;
use ballast_proto::CommunicatorSecret;
use ballast_proto::v1::next_task_response::Task;
use ballast_proto::v1::{MicroBatch, NumericsFingerprint, Phase, StepShard, task_result};
use ballast_worker::WorkerError;
use ballast_worker::progress::Progress;
use ballast_worker::simulation::{Engine, Export, Meeting};
use ballast_worker::trainer::{ExportedState, StepOutcome};
use bytes::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Longest time that a micro-batch takes, in milliseconds.
const MICRO_BATCH: usize = 50;

/// One worker's.
pub(crate) struct StandIn {
    pub(crate) worker: String,
    pub(crate) mailbox: Mailbox,
    pub(crate) witness: Witness,
    pub(crate) dice: SharedDice,
    pub(crate) progress: Progress,
    /// While this is set, nothing moves.
    pub(crate) hung: Arc<AtomicBool>,
    pub(crate) fingerprint: NumericsFingerprint,
    pub(crate) step: u64,
    pub(crate) state: [u8; 32],
    pub(crate) ranks: Option<Ranks>,
}

/// What every worker computes alike.
pub(crate) fn fingerprint() -> NumericsFingerprint {
    NumericsFingerprint {
        binary_sha256: "binary".into(),
        backend: "simulated".into(),
        arithmetic: "sha256".into(),
        weights_sha256: "model".into(),
    }
}

/// What a micro-batch adds to its step: of each of its tokens, and of where it stands.
fn part(step: u64, batch: &MicroBatch) -> Part {
    let mut hash = Sha256::new();
    hash.update(step.to_le_bytes());
    hash.update(batch.index.to_le_bytes());
    for sequence in &batch.sequences {
        hash.update(sequence.sample.to_le_bytes());
        sequence.token_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    let digest = hash.finalize();
    let (words, _) = digest.as_chunks::<8>();
    [0, 1, 2, 3].map(|at| i64::from_le_bytes(words[at]))
}

impl StandIn {
    async fn compute(&self, shard: &StepShard) -> Part {
        let mut sum = Part::default();
        for batch in &shard.micro_batches {
            self.progress.set_phase(Phase::Compute);
            sleep(self.dice.pause(MICRO_BATCH)).await;
            while self.hung.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(50)).await;
            }
            let part = part(shard.step, batch);
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = sum.wrapping_add(part));
        }
        sum
    }

    fn apply(&mut self, step: u64, sum: Part) {
        let mut hash = Sha256::new();
        hash.update(self.state);
        hash.update(step.to_le_bytes());
        sum.iter().for_each(|word| hash.update(word.to_le_bytes()));
        (self.step, self.state) = (step, hash.finalize().into());
        self.witness.applied(&self.worker, step, self.state);
    }
}

#[tonic::async_trait(?Send)]
impl Engine for StandIn {
    fn fingerprint(&self) -> &NumericsFingerprint {
        &self.fingerprint
    }

    fn applied_step(&self) -> u64 {
        self.step
    }

    fn reset(&mut self) -> Result<(), WorkerError> {
        (self.step, self.state) = (0, [0; 32]);
        Ok(())
    }

    fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        let damaged = |detail: String| WorkerError::State { file: ADAPTER.into(), detail };
        let (_, adapter) = files.iter().find(|(name, _)| name == ADAPTER).ok_or_else(|| damaged("missing".into()))?;
        (self.step, self.state) = (step, read(adapter).map_err(damaged)?);
        Ok(())
    }

    fn state_sha256(&self) -> Result<[u8; 32], WorkerError> {
        Ok(self.state)
    }

    fn copy_state(&self) -> Result<Export, WorkerError> {
        let (step, state) = (self.step, self.state);
        Ok(Box::new(move || {
            let files = vec![(ADAPTER.to_owned(), adapter(state)), (OPTIMIZER.to_owned(), optimizer(state, step))];
            Ok(ExportedState { step, state_sha256: state, files })
        }))
    }

    fn communicator_id(&self) -> Result<CommunicatorSecret, WorkerError> {
        Err(WorkerError::Internal("nobody meets over NCCL here".into()))
    }

    async fn connect(&mut self, meeting: Meeting) -> Result<(), WorkerError> {
        self.ranks = match meeting {
            Meeting::Alone => None,
            Meeting::Ring(place) => {
                self.witness.entered(&self.worker, place.config.generation, place.config.rank);
                Some(Ranks::meet(place, self.mailbox.clone()).await?)
            }
            Meeting::Nccl(_) => return Err(WorkerError::Internal("nobody meets over NCCL here".into())),
        };
        Ok(())
    }

    async fn step(&mut self, shard: &StepShard) -> Result<StepOutcome, WorkerError> {
        if shard.step != self.step + 1 {
            self.witness.accuse(format!("{} was given step {} after {}", self.worker, shard.step, self.step));
        }
        let began = Instant::now();
        let own = self.compute(shard).await;
        let own_seconds = began.elapsed().as_secs_f64();
        self.progress.set_phase(Phase::Reduce);
        let sum = match &mut self.ranks {
            Some(ranks) => ranks.sum(shard.step, own).await?,
            None => own,
        };
        self.apply(shard.step, sum);
        let sequences = shard.micro_batches.iter().flat_map(|batch| &batch.sequences);
        Ok(StepOutcome {
            loss: 1.0 / shard.step as f64,
            loss_tokens: shard.step_loss_tokens,
            tokens: shard.step_tokens,
            rank_tokens: sequences.map(|sequence| sequence.token_ids.len() as u64).sum(),
            grad_norm: 1.0,
            learning_rate: 1e-3,
            state_sha256: self.state,
            compute_seconds: 0.01,
            reduce_seconds: 0.01,
            recomputed: 0,
            not_finite: Vec::new(),
            own_seconds,
        })
    }

    fn disconnect(&mut self) {
        self.ranks = None;
    }

    fn evaluate(&mut self, _: &Task) -> Result<task_result::Result, WorkerError> {
        Err(WorkerError::Internal("nothing is evaluated here".into()))
    }
}

type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// Tensors of an adapter in which every value tells of the state.
fn vectors(prefix: &str, state: [u8; 32]) -> Vec<Raw> {
    let shapes = run::shapes();
    let vector = |(name, shape): (&str, &[usize])| {
        let values = state.iter().cycle().take(shape.iter().product());
        let bytes = values.flat_map(|byte| f32::from(*byte).to_le_bytes()).collect();
        (format!("{prefix}{name}"), Dtype::F32, shape.to_vec(), bytes)
    };
    shapes.tensors().map(vector).collect()
}

fn write(tensors: &[Raw]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn adapter(state: [u8; 32]) -> Vec<u8> {
    write(&vectors("", state))
}

fn optimizer(state: [u8; 32], step: u64) -> Vec<u8> {
    let mut tensors = vectors("first_moment.", state);
    tensors.extend(vectors("second_moment.", state));
    let count = run::shapes().tensors().len();
    tensors.push(("exponents".into(), Dtype::I32, vec![count], vec![0; 4 * count]));
    for name in ["step", "updates"] {
        tensors.push((name.into(), Dtype::I64, vec![1], step.to_le_bytes().to_vec()));
    }
    write(&tensors)
}

/// The state that an adapter tells of.
fn read(adapter: &[u8]) -> Result<[u8; 32], String> {
    let tensors = SafeTensors::deserialize(adapter).map_err(|e| e.to_string())?;
    let (_, first) = tensors.iter().max_by_key(|(_, tensor)| tensor.data().len()).ok_or("it is empty")?;
    let (values, _) = first.data().as_chunks::<4>();
    let mut state = [0; 32];
    if values.len() < state.len() {
        return Err(format!("{} values are too few", values.len()));
    }
    state.iter_mut().zip(values).for_each(|(byte, value)| *byte = f32::from_le_bytes(*value) as u8);
    Ok(state)
}
