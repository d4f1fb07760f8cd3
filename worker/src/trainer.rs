//! The step loop.
//!
//! A step is a pure function of the state before it and of the step's micro-batches: not of the number of ranks, nor
//! of who trained which micro-batch.

use crate::WorkerError;
use crate::collective::Collective;
use crate::exact::{self, Flags, Verdict};
use crate::lora::{Adapter, DropoutKey, LoraLayout};
use crate::model::{Batch, Decoder, Keep, Pass, Rows};
use crate::objective::sft;
use crate::optimizer::Optimizer;
use crate::packed::Packed;
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::state::TrainingState;
use ballast_kernels::Backend;
use ballast_proto::v1::{MicroBatch, Phase, Reduction, RunSpec, StepShard};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::state::ExportedState;

/// What one step did; equal on all ranks but for the seconds and `rank_tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the global batch, in nats a token.
    pub loss: f64,
    /// Tokens the loss was taken over.
    pub loss_tokens: u64,
    /// Tokens of the whole step.
    pub tokens: u64,
    /// Tokens of this rank.
    pub rank_tokens: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// SHA-256 over step, adapter, moments and exponents after the step.
    pub state_sha256: [u8; 32],
    /// Seconds spent computing.
    pub compute_seconds: f64,
    /// Seconds spent in collectives.
    pub reduce_seconds: f64,
    /// How often the step was recomputed because a gradient overflowed its fixed-point exponent.
    pub recomputed: u32,
}

/// One rank's trainer.
pub struct Trainer<B: Backend> {
    backend: Arc<B>,
    decoder: Arc<Decoder<B>>,
    layout: LoraLayout,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: u64,
    keep: Keep,
    progress: Progress,
    state: TrainingState<B>,
    /// Of one micro-batch, then the mean of the step.
    gradient: B::Reals,
    /// Fixed-point sums of this rank's micro-batches.
    sums: B::Integers,
    /// Flags of one micro-batch, one a tensor.
    flags: B::Integers,
}

/// Integers of a step: this rank's, then reduced over all.
struct Sums {
    /// Fixed-point gradient sums, then the loss sum, then the loss tokens.
    values: Vec<i64>,
    flags: Flags,
}

impl<B: Backend> Trainer<B> {
    /// A trainer with a fresh adapter from the run's seed, at step 0.
    ///
    /// # Errors
    /// When the run cannot be trained on this model, or the device is out of memory.
    pub fn new(
        backend: Arc<B>,
        decoder: Arc<Decoder<B>>,
        run: &RunSpec,
        progress: Progress,
    ) -> Result<Self, WorkerError> {
        let missing = |what: &str| WorkerError::RunSpec(format!("{what} is missing"));
        if run.reduction() != Reduction::Exact {
            return Err(WorkerError::RunSpec(format!("reduction {} is unknown to this worker", run.reduction)));
        }
        let lora = run.lora.as_ref().ok_or_else(|| missing("lora"))?;
        let optimizer = run.optimizer.as_ref().ok_or_else(|| missing("optimizer"))?;
        let schedule = run.schedule.as_ref().ok_or_else(|| missing("schedule"))?;
        let layout = LoraLayout::new(decoder.architecture(), lora)?;
        Ok(Self {
            optimizer: Optimizer::new(optimizer)?,
            schedule: Schedule::new(schedule, optimizer.learning_rate, run.total_steps)?,
            seed: run.seed,
            keep: if run.activation_checkpointing { Keep::Inputs } else { Keep::Everything },
            progress,
            state: TrainingState::fresh(&*backend, &layout, run.seed)?,
            gradient: backend.reals(layout.parameters())?,
            sums: backend.integers(layout.parameters())?,
            flags: backend.integers(layout.tensors().len())?,
            backend,
            decoder,
            layout,
        })
    }

    /// Trains one step: the shard's micro-batches here, the others on their ranks.
    ///
    /// # Errors
    /// See [`WorkerError`]. Nothing is applied unless all reductions succeeded: the state is as it was before.
    pub fn step(&mut self, shard: &StepShard, collective: &mut dyn Collective) -> Result<StepOutcome, WorkerError> {
        let micro_batches = self.check(shard)?;
        let mut clock = Clock::default();
        let mut exponents = self.state.exponents.clone();
        let mut recomputed = 0;

        let mut sums = loop {
            self.progress.set_phase(Phase::Compute);
            let mut sums = clock.compute(|| self.accumulate(shard, &micro_batches, &exponents))?;
            self.progress.set_phase(Phase::Reduce);
            clock.reduce(|| collective.all_reduce_max(sums.flags.as_mut_slice()))?;
            match sums.flags.judge(&exponents) {
                Verdict::Fits => break sums,
                Verdict::TooLarge { exponents: lowered } => exponents = lowered,
                Verdict::NotFinite { micro_batch } => return Err(not_finite(shard, micro_batch)),
            }
            recomputed += 1;
            if recomputed > MAX_RECOMPUTED {
                return Err(WorkerError::Internal(format!("step {}: gradients fit no exponent", shard.step)));
            }
        };
        clock.reduce(|| collective.all_reduce_sum(&mut sums.values))?;

        self.progress.set_phase(Phase::Apply);
        let applied = clock.compute(|| self.apply(shard, &sums.values, &exponents))?;
        Ok(StepOutcome {
            loss: applied.loss,
            loss_tokens: shard.step_loss_tokens,
            tokens: shard.step_tokens,
            rank_tokens: micro_batches.iter().map(|packed| packed.ids.len() as u64).sum(),
            grad_norm: applied.grad_norm,
            learning_rate: applied.learning_rate,
            state_sha256: self.state.sha256(&self.backend)?,
            compute_seconds: clock.computing.as_secs_f64(),
            reduce_seconds: clock.reducing.as_secs_f64(),
            recomputed,
        })
    }

    /// Refuses a shard that is not the next step's or breaks the protocol; packs its micro-batches.
    fn check(&self, shard: &StepShard) -> Result<Vec<Packed>, WorkerError> {
        let refuse = |detail: String| Err(WorkerError::Shard { what: format!("shard of step {}", shard.step), detail });
        let next = self.state.step + 1;
        if shard.step != next {
            return refuse(format!("the next step is {next}"));
        }
        if shard.step_loss_tokens == 0 {
            return refuse("no token of the step bears loss".into());
        }
        if let Some(batch) = shard.micro_batches.iter().find(|batch| batch.index >= shard.step_micro_batches) {
            return refuse(format!("micro-batch {} of {}", batch.index, shard.step_micro_batches));
        }
        let pack = |batch: &MicroBatch| Packed::new(&batch.sequences, self.decoder.architecture());
        shard.micro_batches.iter().map(pack).collect::<Result<_, _>>().or_else(refuse)
    }

    /// Forward and backward over this rank's micro-batches, each gradient rounded once and added as integers.
    fn accumulate(
        &mut self,
        shard: &StepShard,
        micro_batches: &[Packed],
        exponents: &[i32],
    ) -> Result<Sums, WorkerError> {
        let limit_bits = exact::limit_bits(shard.step_micro_batches);
        let segments = self.layout.segments(exponents);
        let mut flags = Flags::new(segments.len());
        let mut met = vec![0; segments.len()];
        let (mut loss_sum, mut loss_tokens) = (0i64, 0i64);
        self.backend.clear_integers(&mut self.sums)?;
        for (packed, batch) in micro_batches.iter().zip(&shard.micro_batches) {
            if packed.targets.is_empty() {
                continue;
            }
            let loss = self.forward_backward(packed, shard.step)?;
            let loss = exact::loss_to_fixed(loss, limit_bits);
            self.backend.clear_integers(&mut self.flags)?;
            self.backend.accumulate_fixed(&self.gradient, &segments, limit_bits, &mut self.sums, &mut self.flags)?;
            self.backend.read_integers(&self.flags, &mut met)?;
            flags.merge(batch.index, &met, loss.is_some());
            loss_sum = loss_sum.wrapping_add(loss.unwrap_or(0));
            loss_tokens += packed.targets.len() as i64;
        }
        let parameters = self.layout.parameters();
        let mut values = vec![0; parameters + 2];
        self.backend.read_integers(&self.sums, &mut values[..parameters])?;
        values[parameters..].copy_from_slice(&[loss_sum, loss_tokens]);
        Ok(Sums { values, flags })
    }

    /// Leaves the gradient of a micro-batch's summed loss in `self.gradient`; returns that loss, in nats.
    fn forward_backward(&mut self, packed: &Packed, step: u64) -> Result<f64, WorkerError> {
        let backend = &*self.backend;
        let batch = Batch::new(backend, &packed.ids, &packed.layout)?;
        let rows = Rows::new(backend, &packed.rows)?;
        let adapter = Adapter {
            layout: &self.layout,
            parameters: &self.state.parameters,
            dropout: Some(DropoutKey { seed: self.seed, step }),
        };
        let pass = Pass { batch: &batch, adapter: Some(&adapter), progress: &self.progress };
        let (hidden, tape) = self.decoder.forward(&pass, &rows, self.keep)?;
        let (losses, d_hidden) = sft::loss_and_gradient(&self.decoder, &hidden, &packed.targets)?;
        self.decoder.backward(&d_hidden, &pass, &rows, tape, &mut self.gradient)?;
        Ok(losses.iter().map(|&loss| f64::from(loss)).sum())
    }

    /// Turns the reduced sums into the mean gradient and updates the adapter with it.
    fn apply(&mut self, shard: &StepShard, sums: &[i64], exponents: &[i32]) -> Result<Applied, WorkerError> {
        let (gradient_sums, totals) = sums.split_at(self.layout.parameters());
        let (loss_sum, loss_tokens) = (totals[0], totals[1]);
        if u64::try_from(loss_tokens) != Ok(shard.step_loss_tokens) {
            let planned = shard.step_loss_tokens;
            return Err(WorkerError::TokenCount { step: shard.step, reduced: loss_tokens, planned });
        }
        let backend = &*self.backend;
        let segments = self.layout.segments(exponents);
        backend.write_integers(&mut self.sums, gradient_sums)?;
        backend.fixed_to_gradient(&self.sums, &segments, loss_tokens as f64, &mut self.gradient)?;
        let grad_norm = backend.squared_norm(&self.gradient)?.sqrt();
        if !grad_norm.is_finite() {
            return Err(WorkerError::NonFinite { step: shard.step, place: "the sum of all micro-batches".into() });
        }
        let largest = backend.max_abs(&self.gradient, &segments)?;

        let learning_rate = self.schedule.learning_rate(shard.step);
        let update = self.optimizer.update(shard.step, learning_rate, grad_norm);
        let TrainingState { parameters, first_moment, second_moment, .. } = &mut self.state;
        backend.adamw(parameters, &self.gradient, first_moment, second_moment, &update)?;
        self.state.exponents = exact::next_exponents(&largest, shard.step_loss_tokens);
        self.state.step = shard.step;
        Ok(Applied { loss: exact::loss_from_fixed(loss_sum) / loss_tokens as f64, grad_norm, learning_rate })
    }

    /// The state as files.
    ///
    /// # Errors
    /// When the device fails.
    pub fn export_state(&self) -> Result<ExportedState, WorkerError> {
        self.state.export(&self.backend, &self.layout)
    }

    /// Replaces the state by one exported after `step`.
    ///
    /// # Errors
    /// [`WorkerError::State`] when anything about the files is wrong; the state is as it was before. When the device
    /// fails, the state is lost.
    pub fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        self.state.import(&*self.backend, &self.layout, step, files)
    }

    /// Steps applied to the state.
    #[must_use]
    pub fn applied_step(&self) -> u64 {
        self.state.step
    }

    /// Where every adapter parameter lies.
    #[must_use]
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// The mean gradient of the last step, before clipping, as [`Trainer::layout`] lays it out.
    ///
    /// # Errors
    /// When the device fails.
    pub fn last_gradient(&self) -> Result<Vec<f32>, WorkerError> {
        Ok(self.backend.read_reals(&self.gradient)?)
    }

    /// The base model.
    #[must_use]
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// The adapter as it stands, for evaluation.
    #[must_use]
    pub fn adapter(&self) -> Adapter<'_, B> {
        Adapter { layout: &self.layout, parameters: &self.state.parameters, dropout: None }
    }

    /// The counter that this trainer ticks.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// One recomputation suffices: the flags say by how much every value was too large, and the values are the same again.
const MAX_RECOMPUTED: u32 = 1;

/// What an applied step reports.
struct Applied {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
}

fn not_finite(shard: &StepShard, micro_batch: u32) -> WorkerError {
    let place = match shard.micro_batches.iter().find(|batch| batch.index == micro_batch) {
        Some(batch) => {
            let samples: Vec<String> = batch.sequences.iter().map(|sequence| sequence.sample.to_string()).collect();
            format!("micro-batch {micro_batch} (samples {})", samples.join(", "))
        }
        None => format!("micro-batch {micro_batch}, on another rank"),
    };
    WorkerError::NonFinite { step: shard.step, place }
}

/// Seconds by what they were spent on.
#[derive(Default)]
struct Clock {
    computing: Duration,
    reducing: Duration,
}

impl Clock {
    fn compute<T>(&mut self, work: impl FnOnce() -> T) -> T {
        timed(&mut self.computing, work)
    }

    fn reduce<T>(&mut self, work: impl FnOnce() -> T) -> T {
        timed(&mut self.reducing, work)
    }
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}
