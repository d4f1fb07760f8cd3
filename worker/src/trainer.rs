//! The step loop.
//!
//! A step is a pure function of the state before it and of the step's micro-batches: not of the number of ranks, nor
//! of who trained which micro-batch.

use crate::WorkerError;
use crate::collective::{DeviceCollective, Reductions};
use crate::exact::{self, Verdict};
use crate::lora::{Adapter, DropoutKey, LoraLayout};
use crate::model::{Batch, Decoder, Keep, OnLayer, Pass, Rows};
use crate::nonfinite::{self, Poison};
use crate::objective::sft;
use crate::optimizer::Optimizer;
use crate::packed::{Packed, Prefix};
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::state::TrainingState;
use crate::sums::{StepSums, Totals};
use crate::timing::Clock;
use ballast_kernels::Backend;
use ballast_proto::fault;
use ballast_proto::v1::{MicroBatch, NonFinite, Phase, RunSpec, StepShard};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::state::{ExportedState, StateCopy};

/// What one step did; equal on all ranks but for the seconds and `rank_tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the global batch, in nats a token; of a skipped step, over the micro-batches whose loss was finite (0 when
    /// none was).
    pub loss: f64,
    /// Tokens the loss was taken over.
    pub loss_tokens: u64,
    /// Tokens of the whole step.
    pub tokens: u64,
    /// Tokens of this rank.
    pub rank_tokens: u64,
    /// Global gradient norm before clipping; 0 when the step was skipped.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// SHA-256 over updates, adapter, moments and exponents after the step.
    pub state_sha256: [u8; 32],
    /// Seconds spent computing.
    pub compute_seconds: f64,
    /// Seconds spent in collectives.
    pub reduce_seconds: f64,
    /// Seconds of computing that were spent on this rank's own micro-batches, waiting for nobody.
    pub own_seconds: f64,
    /// How often the step was recomputed because a gradient overflowed its fixed-point exponent.
    pub recomputed: u32,
    /// Micro-batches whose loss or gradient was not finite, ascending: when there are any, the step was skipped.
    pub not_finite: Vec<NonFinite>,
}

/// One rank's trainer.
pub struct Trainer<B: Backend> {
    backend: Arc<B>,
    decoder: Arc<Decoder<B>>,
    layout: LoraLayout,
    optimizer: Optimizer,
    schedule: Schedule,
    /// Whether a step that is not finite is skipped, and no error.
    skip_non_finite: bool,
    seed: u64,
    keep: Keep,
    progress: Progress,
    state: TrainingState<B>,
    /// Of one micro-batch, then the mean of the step.
    gradient: B::Reals,
    /// Of this rank's micro-batches, then of all ranks'.
    sums: StepSums<B>,
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
        let lora = run.lora.as_ref().ok_or_else(|| missing("lora"))?;
        let optimizer = run.optimizer.as_ref().ok_or_else(|| missing("optimizer"))?;
        let schedule = run.schedule.as_ref().ok_or_else(|| missing("schedule"))?;
        let layout = LoraLayout::new(decoder.architecture(), lora)?;
        Ok(Self {
            optimizer: Optimizer::new(optimizer)?,
            schedule: Schedule::new(schedule, optimizer.learning_rate, run.total_steps)?,
            skip_non_finite: run.skip_non_finite,
            seed: run.seed,
            keep: if run.activation_checkpointing { Keep::Inputs } else { Keep::Everything },
            progress,
            state: TrainingState::fresh(&*backend, &layout, run.seed)?,
            gradient: backend.reals(layout.parameters())?,
            sums: StepSums::new(&*backend, run.reduction(), &layout)?,
            backend,
            decoder,
            layout,
        })
    }

    /// Trains one step: the shard's micro-batches here, the others on their ranks.
    ///
    /// # Errors
    /// See [`WorkerError`]. Nothing is applied unless all reductions succeeded: the state is as it was before.
    pub fn step(
        &mut self,
        shard: &StepShard,
        collective: &mut dyn DeviceCollective<B>,
    ) -> Result<StepOutcome, WorkerError> {
        let micro_batches = self.check(shard)?;
        let mut clock = Clock::default();
        let mut exponents = self.state.exponents.clone();
        let (progress, mut recomputed) = (self.progress.clone(), 0);

        let mut not_finite = loop {
            progress.set_phase(Phase::Compute);
            fault::point("compute", shard.step);
            let mut own = Duration::ZERO;
            let reductions =
                clock.compute(|| self.accumulate(shard, &micro_batches, &exponents, collective, &mut own))?;
            clock.own += own;
            fault::point("reduce", shard.step);
            clock.reduce(|| reductions.wait())?;
            self.sums.read(&self.backend)?;
            match self.sums.flags().judge(&exponents) {
                Verdict::Fits => break Vec::new(),
                Verdict::TooLarge { exponents: lowered } => exponents = lowered,
                Verdict::NotFinite { micro_batches } => break micro_batches,
            }
            recomputed += 1;
            if recomputed > MAX_RECOMPUTED {
                return Err(WorkerError::Internal(format!("step {}: gradients fit no exponent", shard.step)));
            }
        };

        self.progress.set_phase(Phase::Apply);
        fault::point("apply", shard.step);
        let totals = self.totals(shard)?;
        let norm = if not_finite.is_empty() { clock.compute(|| self.apply(shard, &exponents))? } else { None };
        if norm.is_none() {
            if not_finite.is_empty() {
                not_finite = nonfinite::any_gradient(shard);
            }
            self.skip(shard, &not_finite)?;
        }
        Ok(StepOutcome {
            loss: if totals.finite > 0 { totals.loss / totals.finite as f64 } else { 0.0 },
            loss_tokens: totals.finite.unsigned_abs(),
            tokens: shard.step_tokens,
            rank_tokens: micro_batches.iter().map(|packed| packed.tokens).sum(),
            grad_norm: norm.unwrap_or(0.0),
            learning_rate: self.schedule.learning_rate(shard.step),
            state_sha256: self.state.sha256(&self.backend)?,
            compute_seconds: clock.computing.as_secs_f64(),
            reduce_seconds: clock.reducing.as_secs_f64(),
            own_seconds: clock.own.as_secs_f64(),
            recomputed,
            not_finite,
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
        if shard.step_micro_batches > MOST_MICRO_BATCHES {
            return refuse(format!(
                "{} micro-batches; at most {MOST_MICRO_BATCHES} are allowed",
                shard.step_micro_batches
            ));
        }
        if let Some(batch) = shard.micro_batches.iter().find(|batch| batch.index >= shard.step_micro_batches) {
            return refuse(format!("micro-batch {} of {}", batch.index, shard.step_micro_batches));
        }
        // Every sequence has a dropout mask of its own.
        let prefix =
            if self.backend.shares_prefixes() && !self.layout.drops() { Prefix::Shared } else { Prefix::Apart };
        let pack = |batch: &MicroBatch| Packed::new(&batch.sequences, self.decoder.architecture(), prefix);
        shard.micro_batches.iter().map(pack).collect::<Result<_, _>>().or_else(refuse)
    }

    /// Forward and backward over this rank's micro-batches, whose gradients are added up, in `own` time; returns what is under way then.
    fn accumulate<'a>(
        &'a mut self,
        shard: &StepShard,
        micro_batches: &[Packed],
        exponents: &[i32],
        collective: &'a mut dyn DeviceCollective<B>,
        own: &mut Duration,
    ) -> Result<Box<dyn Reductions<'a, B> + 'a>, WorkerError> {
        let Self { backend, decoder, layout, state, sums, gradient, progress, .. } = self;
        let mut sums = sums.begin(backend, collective, shard, layout.segments(exponents))?;
        let dropout = Some(DropoutKey { seed: self.seed, step: shard.step });
        let adapter = Adapter { layout, parameters: &state.parameters, dropout };
        let packed = micro_batches.iter().zip(&shard.micro_batches);
        let mut scored = packed.filter(|(packed, _)| !packed.targets.is_empty()).peekable();
        while let Some((packed, batch)) = scored.next() {
            let last = scored.peek().is_none();
            let began = Instant::now();
            sums.begin_micro_batch()?;
            let on_layer = &mut |layer, gradient: &B::Reals| sums.add_layer(layer, gradient, last);
            let passes = Passes { decoder, adapter: &adapter, keep: self.keep, progress, poison: Poison::of(batch) };
            let loss = passes.run(packed, gradient, on_layer)?;
            sums.end_micro_batch(batch.index, loss, packed.targets.len())?;
            fault::drag("compute");
            *own += began.elapsed();
        }
        // What is left to enqueue may have to wait for other ranks.
        progress.set_phase(Phase::Reduce);
        sums.finish()
    }

    /// What all ranks have summed, checked against the plan.
    fn totals(&self, shard: &StepShard) -> Result<Totals, WorkerError> {
        let totals = self.sums.totals();
        if u64::try_from(totals.tokens) != Ok(shard.step_loss_tokens) {
            let planned = shard.step_loss_tokens;
            return Err(WorkerError::TokenCount { step: shard.step, reduced: totals.tokens, planned });
        }
        Ok(totals)
    }

    /// Turns the reduced sums into the mean gradient and updates the adapter with it; the gradient's norm. Does nothing when that is
    /// not finite: then float sums hide what no flag has told.
    fn apply(&mut self, shard: &StepShard, exponents: &[i32]) -> Result<Option<f64>, WorkerError> {
        let backend = &*self.backend;
        let segments = self.layout.segments(exponents);
        self.sums.mean(backend, &mut self.gradient)?;
        let grad_norm = backend.squared_norm(&self.gradient)?.sqrt();
        if !grad_norm.is_finite() {
            let place = "the sum of all micro-batches".into();
            let error = WorkerError::NonFinite { step: shard.step, place };
            return if self.skip_non_finite { Ok(None) } else { Err(error) };
        }
        let largest = backend.max_abs(&self.gradient, &segments)?;

        let learning_rate = self.schedule.learning_rate(shard.step);
        let update = self.optimizer.update(self.state.updates + 1, learning_rate, grad_norm);
        let TrainingState { parameters, first_moment, second_moment, .. } = &mut self.state;
        backend.adamw(parameters, &self.gradient, first_moment, second_moment, &update)?;
        self.state.exponents = exact::next_exponents(&largest, shard.step_loss_tokens);
        self.state.step = shard.step;
        self.state.updates += 1;
        Ok(Some(grad_norm))
    }

    /// Lets a step go by that is not finite: its samples are behind, and nothing else has changed.
    fn skip(&mut self, shard: &StepShard, not_finite: &[NonFinite]) -> Result<(), WorkerError> {
        if !self.skip_non_finite {
            return Err(nonfinite::error(shard, not_finite));
        }
        self.state.step = shard.step;
        Ok(())
    }

    /// SHA-256 over updates, adapter, moments and exponents.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state_sha256(&self) -> Result<[u8; 32], WorkerError> {
        self.state.sha256(&self.backend)
    }

    /// The state as files.
    ///
    /// # Errors
    /// When the device fails.
    pub fn export_state(&self) -> Result<ExportedState, WorkerError> {
        self.copy_state()?.export()
    }

    /// The state as it stands: what must be done between two steps of exporting it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn copy_state(&self) -> Result<StateCopy, WorkerError> {
        self.state.copy(&self.backend, &self.layout)
    }

    /// Goes back to step 0, with the adapter from the run's seed.
    ///
    /// # Errors
    /// When the device fails.
    pub fn reset(&mut self) -> Result<(), WorkerError> {
        self.state.reset(&self.backend, &self.layout, self.seed)
    }

    /// Replaces the state by one exported after `step`.
    ///
    /// # Errors
    /// [`WorkerError::State`] when anything about the files is wrong; the state is as it was before. When the device
    /// fails, the state is lost.
    pub fn import_state(&mut self, step: u64, files: &[(String, Bytes)]) -> Result<(), WorkerError> {
        self.state.import(&*self.backend, &self.layout, step, files)
    }

    /// Steps passed.
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

/// Forward and backward over one micro-batch.
struct Passes<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    adapter: &'a Adapter<'a, B>,
    keep: Keep,
    progress: &'a Progress,
    poison: Poison,
}

impl<B: Backend> Passes<'_, B> {
    /// Leaves the gradient of the micro-batch's summed loss in `gradient`, telling of each layer as it is there; returns that loss,
    /// in nats.
    fn run(&self, packed: &Packed, gradient: &mut B::Reals, on_layer: &mut OnLayer<'_, B>) -> Result<f64, WorkerError> {
        let decoder = self.decoder;
        let backend = &**decoder.backend();
        let batch = Batch::new(backend, &packed.ids, &packed.layout)?;
        let rows = Rows::new(backend, &packed.rows)?;
        let pass = Pass { batch: &batch, adapter: Some(self.adapter), progress: self.progress };
        let (hidden, tape) = decoder.forward(&pass, &rows, self.keep)?;
        let (losses, d_hidden) = sft::loss_and_gradient(decoder, &hidden, &packed.targets)?;
        let (rows_scored, width) = (packed.targets.len(), decoder.architecture().hidden_size);
        let d_hidden = self.poison.gradient(backend, d_hidden, rows_scored, width)?;
        decoder.backward(&d_hidden, &pass, &rows, tape, gradient, on_layer)?;
        Ok(self.poison.loss(losses.iter().map(|&loss| f64::from(loss)).sum()))
    }
}

/// One recomputation suffices: the flags say by how much every value was too large, and the values are the same again.
const MAX_RECOMPUTED: u32 = 1;

/// As many samples as `train.global_batch` may have: more cannot be, and would have to be named where sums tell of none.
const MOST_MICRO_BATCHES: u32 = 1 << 20;
