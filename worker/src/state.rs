//! The training state: all that a step reads and writes, and its form as files.

use crate::WorkerError;
use crate::exact;
use crate::lora::LoraLayout;
use ballast_kernels::Backend;
use bytes::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

const ADAPTER_FILE: &str = "adapter_model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";
/// Fixed-point exponents of the next step, `[tensors]`, i32, in the order of the adapter's tensors.
const EXPONENTS: &str = "exponents";
/// Steps passed, `[1]`, i64.
const STEP: &str = "step";
/// Updates applied in them, `[1]`, i64: fewer, where steps were skipped.
const UPDATES: &str = "updates";

/// A training state, ready to be stored or sent.
#[derive(Clone, Debug)]
pub struct ExportedState {
    /// Steps passed.
    pub step: u64,
    /// SHA-256 of the state, as in [`crate::trainer::StepOutcome`].
    pub state_sha256: [u8; 32],
    /// Name and content: `adapter_model.safetensors`, `optimizer.safetensors`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The state of a run after some step; equal on all ranks.
pub(crate) struct TrainingState<B: Backend> {
    /// Steps passed.
    pub(crate) step: u64,
    /// Updates applied in them, which the optimizer counts: a skipped step makes none.
    pub(crate) updates: u64,
    /// The adapter, as its [`LoraLayout`] lays it out.
    pub(crate) parameters: B::Reals,
    pub(crate) first_moment: B::Reals,
    pub(crate) second_moment: B::Reals,
    /// Fixed-point exponents of the next step, one a tensor.
    pub(crate) exponents: Vec<i32>,
}

/// A copy of a training state in host memory, of which files can be made wherever there is time: away from the thread that trains.
#[derive(Clone, Debug)]
pub struct StateCopy {
    host: HostState,
    layout: LoraLayout,
}

impl StateCopy {
    /// Steps passed.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.host.step
    }

    /// The state as files; the adapter's is a pure function of its tensors.
    ///
    /// # Errors
    /// [`WorkerError::Internal`] when a tensor cannot be written.
    pub fn export(&self) -> Result<ExportedState, WorkerError> {
        let Self { host, layout } = self;
        let files = vec![
            (ADAPTER_FILE.to_owned(), host.adapter_file(layout)?),
            (OPTIMIZER_FILE.to_owned(), host.optimizer_file(layout)?),
        ];
        Ok(ExportedState { step: host.step, state_sha256: host.sha256(), files })
    }
}

/// The same on the host.
#[derive(Clone, Debug)]
struct HostState {
    step: u64,
    updates: u64,
    parameters: Vec<f32>,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
    exponents: Vec<i32>,
}

impl<B: Backend> TrainingState<B> {
    /// The state before the first step.
    pub(crate) fn fresh(backend: &B, layout: &LoraLayout, seed: u64) -> Result<Self, WorkerError> {
        Ok(Self {
            step: 0,
            updates: 0,
            parameters: backend.upload_reals(&layout.initial_parameters(seed))?,
            first_moment: backend.reals(layout.parameters())?,
            second_moment: backend.reals(layout.parameters())?,
            exponents: exact::initial_exponents(layout.tensors().len()),
        })
    }

    /// Becomes the state before the first step again, in place.
    pub(crate) fn reset(&mut self, backend: &B, layout: &LoraLayout, seed: u64) -> Result<(), WorkerError> {
        backend.write_reals(&mut self.parameters, &layout.initial_parameters(seed))?;
        backend.clear_reals(&mut self.first_moment)?;
        backend.clear_reals(&mut self.second_moment)?;
        (self.step, self.updates) = (0, 0);
        self.exponents = exact::initial_exponents(layout.tensors().len());
        Ok(())
    }

    /// SHA-256 over updates, adapter, moments and exponents: of a skipped step it is that of the step before.
    pub(crate) fn sha256(&self, backend: &B) -> Result<[u8; 32], WorkerError> {
        Ok(self.read(backend)?.sha256())
    }

    /// The state as it stands, in host memory.
    pub(crate) fn copy(&self, backend: &B, layout: &LoraLayout) -> Result<StateCopy, WorkerError> {
        Ok(StateCopy { host: self.read(backend)?, layout: layout.clone() })
    }

    /// Becomes the state that [`StateCopy::export`] put into `files` after `step`; stays as it is when there is
    /// anything wrong with them. In place: memory is planned, and has no room for a second state.
    pub(crate) fn import(
        &mut self,
        backend: &B,
        layout: &LoraLayout,
        step: u64,
        files: &[(String, Bytes)],
    ) -> Result<(), WorkerError> {
        let host = HostState::parse(layout, step, files)?;
        backend.write_reals(&mut self.parameters, &host.parameters)?;
        backend.write_reals(&mut self.first_moment, &host.first_moment)?;
        backend.write_reals(&mut self.second_moment, &host.second_moment)?;
        (self.step, self.updates, self.exponents) = (host.step, host.updates, host.exponents);
        Ok(())
    }

    fn read(&self, backend: &B) -> Result<HostState, WorkerError> {
        Ok(HostState {
            step: self.step,
            updates: self.updates,
            parameters: backend.read_reals(&self.parameters)?,
            first_moment: backend.read_reals(&self.first_moment)?,
            second_moment: backend.read_reals(&self.second_moment)?,
            exponents: self.exponents.clone(),
        })
    }
}

impl HostState {
    fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.updates.to_le_bytes());
        for vector in [&self.parameters, &self.first_moment, &self.second_moment] {
            hash.update(f32_bytes(vector));
        }
        for exponent in &self.exponents {
            hash.update(exponent.to_le_bytes());
        }
        hash.finalize().into()
    }

    fn adapter_file(&self, layout: &LoraLayout) -> Result<Vec<u8>, WorkerError> {
        // `format` is what loaders of PyTorch checkpoints look for.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = f32_bytes(&self.parameters);
        let views = views(layout, "", &bytes).collect::<Result<Vec<_>, _>>()?;
        serialize(views, Some(metadata)).map_err(|error| writing(ADAPTER_FILE, &error))
    }

    fn optimizer_file(&self, layout: &LoraLayout) -> Result<Vec<u8>, WorkerError> {
        let (first, second) = (f32_bytes(&self.first_moment), f32_bytes(&self.second_moment));
        let exponents: Vec<u8> = self.exponents.iter().flat_map(|exponent| exponent.to_le_bytes()).collect();
        let (step, updates) = (self.step.to_le_bytes(), self.updates.to_le_bytes());
        let view = |dtype, len, bytes| TensorView::new(dtype, vec![len], bytes);
        let numbers = [
            (EXPONENTS.to_owned(), view(Dtype::I32, self.exponents.len(), &exponents)),
            (STEP.to_owned(), view(Dtype::I64, 1, &step)),
            (UPDATES.to_owned(), view(Dtype::I64, 1, &updates)),
        ];
        let numbers = numbers.map(|(name, view)| Ok((name, view.map_err(|error| writing(OPTIMIZER_FILE, &error))?)));
        let moments = views(layout, FIRST_MOMENT, &first).chain(views(layout, SECOND_MOMENT, &second));
        let views = moments.chain(numbers).collect::<Result<Vec<_>, WorkerError>>()?;
        serialize(views, None).map_err(|error| writing(OPTIMIZER_FILE, &error))
    }

    fn parse(layout: &LoraLayout, step: u64, files: &[(String, Bytes)]) -> Result<Self, WorkerError> {
        let adapter = File::open(ADAPTER_FILE, files)?;
        let optimizer = File::open(OPTIMIZER_FILE, files)?;
        let tensors = layout.tensors().len();
        adapter.expect_tensors(tensors)?;
        optimizer.expect_tensors(2 * tensors + 3)?;

        let stored = i64::from_le_bytes(optimizer.array(STEP)?);
        if u64::try_from(stored) != Ok(step) {
            return Err(optimizer.bad(format!("is of step {stored}, not of step {step}")));
        }
        let updates = i64::from_le_bytes(optimizer.array(UPDATES)?);
        let Some(updates) = u64::try_from(updates).ok().filter(|updates| *updates <= step) else {
            return Err(optimizer.bad(format!("counts {updates} updates in {step} steps")));
        };
        let exponents: Vec<i32> = optimizer
            .data(EXPONENTS, Dtype::I32, &[tensors])?
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        if let Some(exponent) = exponents.iter().find(|&&exponent| !exact::plausible_exponent(exponent)) {
            return Err(optimizer.bad(format!("holds the impossible fixed-point exponent {exponent}")));
        }
        let second_moment = optimizer.vector(layout, SECOND_MOMENT)?;
        if second_moment.iter().any(|&value| value < 0.0) {
            return Err(optimizer.bad("holds a negative second moment".into()));
        }
        Ok(Self {
            step,
            updates,
            parameters: adapter.vector(layout, "")?,
            first_moment: optimizer.vector(layout, FIRST_MOMENT)?,
            second_moment,
            exponents,
        })
    }
}

/// A parsed file, with its name for messages.
struct File<'a> {
    name: &'static str,
    tensors: SafeTensors<'a>,
}

impl<'a> File<'a> {
    fn open(name: &'static str, files: &'a [(String, Bytes)]) -> Result<Self, WorkerError> {
        let bad = |detail: String| WorkerError::State { file: name.to_owned(), detail };
        let (_, bytes) = files.iter().find(|(file, _)| file == name).ok_or_else(|| bad("is missing".into()))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| bad(format!("is malformed: {error}")))?;
        Ok(Self { name, tensors })
    }

    fn bad(&self, detail: String) -> WorkerError {
        WorkerError::State { file: self.name.to_owned(), detail }
    }

    fn expect_tensors(&self, expected: usize) -> Result<(), WorkerError> {
        let found = self.tensors.len();
        if found == expected {
            return Ok(());
        }
        Err(self.bad(format!("holds {found} tensors where this run's adapter makes {expected}")))
    }

    fn data(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], WorkerError> {
        let tensor = self.tensors.tensor(name).map_err(|_| self.bad(format!("has no tensor {name}")))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            let (found, is) = (tensor.dtype(), tensor.shape());
            return Err(self.bad(format!("tensor {name} is {found:?} {is:?} where {dtype:?} {shape:?} is expected")));
        }
        Ok(tensor.data())
    }

    fn array(&self, name: &str) -> Result<[u8; 8], WorkerError> {
        let data = self.data(name, Dtype::I64, &[1])?;
        data.try_into().map_err(|_| self.bad(format!("tensor {name} is not 8 bytes long")))
    }

    /// All tensors of the layout under `prefix`, as one flat vector.
    fn vector(&self, layout: &LoraLayout, prefix: &str) -> Result<Vec<f32>, WorkerError> {
        let mut vector = Vec::with_capacity(layout.parameters());
        for tensor in layout.tensors() {
            let name = format!("{prefix}{}", tensor.name);
            let data = self.data(&name, Dtype::F32, &tensor.shape)?;
            let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let before = vector.len();
            vector.extend(values);
            if vector[before..].iter().any(|value| !value.is_finite()) {
                return Err(self.bad(format!("tensor {name} holds a value that is not finite")));
            }
        }
        Ok(vector)
    }
}

/// The tensors of a flat vector under their names.
fn views<'a>(
    layout: &'a LoraLayout,
    prefix: &'a str,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<(String, TensorView<'a>), WorkerError>> {
    layout.tensors().iter().map(move |tensor| {
        let data = &bytes[4 * tensor.range.start..4 * tensor.range.end];
        let view = TensorView::new(Dtype::F32, tensor.shape.to_vec(), data);
        Ok((format!("{prefix}{}", tensor.name), view.map_err(|error| writing(&tensor.name, &error))?))
    })
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * values.len()];
    for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn writing(what: &str, error: &safetensors::SafeTensorError) -> WorkerError {
    WorkerError::Internal(format!("{what} cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_basemodel::Architecture;
    use ballast_kernels::cpu::CpuBackend;
    use ballast_proto::v1::Lora;
    use std::time::Instant;

    /// A layout whose state takes about so many megabytes in its two files.
    fn layout(megabytes: usize) -> LoraLayout {
        let architecture = Architecture { layers: 24, hidden_size: 1024, ..Architecture::tiny() };
        let of_rank = |rank: u32| {
            let lora = Lora { rank, alpha: 1.0, scaling: 1.0, dropout: 0.0, target_modules: vec!["q_proj".into()] };
            LoraLayout::new(&architecture, &lora).unwrap()
        };
        let wanted = megabytes * 1_000_000 / (3 * size_of::<f32>());
        of_rank((wanted / of_rank(1).parameters()) as u32)
    }

    #[test]
    #[ignore = "a measurement (docs/benchmarks.md): prints, and fails only when the files are wrong"]
    fn seconds_that_a_checkpoint_holds_training_up() {
        let backend = CpuBackend::new(1).unwrap();
        for megabytes in [39, 160] {
            let layout = layout(megabytes);
            let state = TrainingState::fresh(&backend, &layout, 1).unwrap();
            let began = Instant::now();
            let copy = state.copy(&backend, &layout).unwrap();
            let held_up = began.elapsed();
            let exported = copy.export().unwrap();
            let export = began.elapsed() - held_up;
            let bytes: usize = exported.files.iter().map(|(_, data)| data.len()).sum();
            let (held_up, export) = (held_up.as_secs_f64(), export.as_secs_f64());
            println!("{bytes} bytes: copied in {held_up:.3} s, made files of in {export:.3} s");
            assert_eq!(exported.state_sha256, state.sha256(&backend).unwrap());
        }
    }
}
