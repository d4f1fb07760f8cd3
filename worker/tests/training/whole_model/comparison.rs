//! How far each backend is from f64, and how far it may be.

use super::models::{Family, drawn_decoder, drawn_parameters};
use super::step::{MicroBatch, Step};
use ballast_basemodel::Architecture;
use ballast_kernels::Backend;
use ballast_kernels::conformance::distance;
use ballast_kernels::cpu::CpuBackend;
use ballast_kernels::reference::{ReferenceBackend, Rounding};
use ballast_worker::lora::LoraLayout;
use std::sync::Arc;

/// Most that f32 may be off, in any tensor.
const F32_BOUND: f64 = 1e-5;

/// A step of one model.
struct Case {
    name: String,
    /// Which of its weights and parameters.
    draw: u32,
    architecture: Architecture,
    layout: LoraLayout,
    parameters: Vec<f32>,
    batch: MicroBatch,
}

/// Losses and gradient as a backend gives them.
struct Given {
    losses: Vec<f32>,
    gradient: Vec<f32>,
}

/// Relative distances of a step's results from what they should be.
struct Distances {
    /// Of the summed loss.
    loss: f64,
    /// Of the losses as a vector, then of the gradient of each tensor.
    tensors: Vec<(String, f64)>,
}

impl Case {
    fn new(family: &Family, layers: usize, dropout: f64, draw: u32) -> Self {
        let architecture = family.layers(layers);
        let layout = LoraLayout::new(&architecture, &family.lora(dropout)).unwrap();
        let batch = MicroBatch::ragged(architecture.vocab_size);
        let name = format!("{}, {layers} layers, dropout {dropout}", family.name);
        Self { name, draw, architecture, parameters: drawn_parameters(draw, &layout), layout, batch }
    }

    fn exact(&self) -> Step<ReferenceBackend> {
        let backend = Arc::new(ReferenceBackend::new(Rounding::Exact));
        self.batch.step(&drawn_decoder(self.draw, &backend, &self.architecture), &self.layout, &self.parameters)
    }

    fn on(&self, backend: impl Backend) -> Given {
        let decoder = drawn_decoder(self.draw, &Arc::new(backend), &self.architecture);
        let Step { losses, gradient } = self.batch.step(&decoder, &self.layout, &self.parameters);
        let read = |vector| decoder.backend().read_reals(vector).unwrap();
        Given { losses: read(&losses), gradient: read(&gradient) }
    }

    fn distances(&self, given: &Given, losses: &[f64], gradient: &[f64]) -> Distances {
        let got: f64 = given.losses.iter().map(|&loss| f64::from(loss)).sum();
        let want: f64 = losses.iter().sum();
        let mut tensors = vec![("losses".to_owned(), distance(&given.losses, losses))];
        for tensor in self.layout.tensors() {
            let range = tensor.range.clone();
            tensors.push((tensor.name.clone(), distance(&given.gradient[range.clone()], &gradient[range])));
        }
        Distances { loss: (got / want - 1.0).abs(), tensors }
    }
}

impl Distances {
    /// The largest of all tensors; NaN if one is.
    fn worst(&self) -> f64 {
        self.tensors.iter().map(|(_, distance)| *distance).fold(0.0, |worst, d| if d <= worst { worst } else { d })
    }

    /// The root mean square over the tensors.
    #[cfg(feature = "cuda")]
    fn typical(&self) -> f64 {
        let squares: f64 = self.tensors.iter().map(|(_, distance)| distance * distance).sum();
        (squares / self.tensors.len() as f64).sqrt()
    }

    /// Fails unless every tensor and the summed loss are near enough.
    fn within_f32(&self, what: &str, case: &str) {
        assert!(self.loss <= F32_BOUND, "{case}: {what}: the loss is off by {:e}", self.loss);
        for (tensor, distance) in &self.tensors {
            assert!(*distance <= F32_BOUND, "{case}: {what}: {tensor} is off by {distance:e}");
        }
    }
}

/// Holds every backend to f64 on all models of a family, and prints how far each was: `--nocapture` shows it.
pub(crate) fn check(family: &Family) {
    for (layers, dropout) in [(2, 0.1), (4, 0.0)] {
        let case = Case::new(family, layers, dropout, 0);
        let exact = case.exact();
        let from_exact = |given: &Given| case.distances(given, &exact.losses, &exact.gradient);
        let cpu = case.on(CpuBackend::new(1).unwrap());
        let cpu_distances = from_exact(&cpu);
        let plain = from_exact(&case.on(ReferenceBackend::new(Rounding::Bf16)));
        let line = format!("{:44} cpu {:.1e}", case.name, cpu_distances.worst());
        #[cfg(feature = "cuda")]
        let (cuda, line) = cuda::Cuda::measure(&case, &cpu, &from_exact, &line);
        println!("{line}  straightforward bf16 {:.1e}", plain.worst());

        cpu_distances.within_f32("the CPU backend", &case.name);
        // Were it nearer, its rounding would not be what it is there for.
        assert!(plain.worst() > 1e-3, "{}: {:e}", case.name, plain.worst());
        #[cfg(feature = "cuda")]
        cuda.check(&case, &plain);
    }
    #[cfg(feature = "cuda")]
    cuda::check_draws(family);
}

/// The CUDA backend in both storages.
#[cfg(feature = "cuda")]
mod cuda {
    use super::{Case, Distances, Family, Given};
    use ballast_kernels::cuda::{CudaBackend, Storage};
    use ballast_kernels::reference::{ReferenceBackend, Rounding};

    pub(super) struct Cuda {
        f32: Distances,
        f32_from_cpu: Distances,
        bf16: Distances,
    }

    impl Cuda {
        /// Computes; also gives the printed line with what came out.
        pub(super) fn measure(
            case: &Case,
            cpu: &Given,
            from_exact: &dyn Fn(&Given) -> Distances,
            line: &str,
        ) -> (Self, String) {
            let wide = |values: &[f32]| -> Vec<f64> { values.iter().copied().map(f64::from).collect() };
            let f32 = case.on(CudaBackend::new(0, Storage::F32).unwrap());
            let bf16 = case.on(CudaBackend::new(0, Storage::Bf16).unwrap());
            let f32_from_cpu = case.distances(&f32, &wide(&cpu.losses), &wide(&cpu.gradient));
            let cuda = Self { f32: from_exact(&f32), f32_from_cpu, bf16: from_exact(&bf16) };
            let [of_f32, from_cpu, of_bf16] = [&cuda.f32, &cuda.f32_from_cpu, &cuda.bf16].map(Distances::worst);
            let line = format!("{line}  cuda f32 {of_f32:.1e} (from cpu {from_cpu:.1e})  cuda bf16 {of_bf16:.1e}");
            (cuda, line)
        }

        /// In bf16 no tensor may be off by more than twice the worst of a straightforward computation in bf16, and all of
        /// them together by half as much again. Tensor by tensor the two are not comparable in a single case: what
        /// roundings come to in a tensor of a few rows is one draw for each. That is [`check_draws`]'s.
        pub(super) fn check(&self, case: &Case, plain: &Distances) {
            self.f32.within_f32("the CUDA backend", &case.name);
            self.f32_from_cpu.within_f32("the CUDA backend, from the CPU's", &case.name);
            let (ours, typical) = (self.bf16.typical(), plain.typical());
            assert!(ours <= 1.5 * typical, "{}: in bf16 off by {ours:e}, straightforwardly by {typical:e}", case.name);
            let worst = plain.worst();
            for (tensor, distance) in &self.bf16.tensors {
                assert!(
                    *distance <= 2.0 * worst,
                    "{}: in bf16, {tensor} is off by {distance:e}, straightforwardly at most by {worst:e}",
                    case.name
                );
            }
        }
    }
    /// So many cases that differ in the values alone.
    const DRAWS: u32 = 4;

    /// Tensor by tensor: over several draws of weights and parameters, no tensor may be off in bf16 by more than half as
    /// much again as in a straightforward computation in bf16, in root mean square.
    pub(super) fn check_draws(family: &Family) {
        let mut squares: Vec<(String, f64, f64)> = Vec::new();
        for draw in 0..DRAWS {
            let case = Case::new(family, 2, 0.1, draw);
            let exact = case.exact();
            let of = |given: &Given| case.distances(given, &exact.losses, &exact.gradient).tensors;
            let ours = of(&case.on(CudaBackend::new(0, Storage::Bf16).unwrap()));
            let plain = of(&case.on(ReferenceBackend::new(Rounding::Bf16)));
            squares.resize(ours.len(), Default::default());
            for (sum, ((tensor, ours), (_, plain))) in squares.iter_mut().zip(ours.into_iter().zip(plain)) {
                *sum = (tensor, sum.1 + ours * ours, sum.2 + plain * plain);
            }
        }
        let ratios = squares.iter().map(|(tensor, ours, plain)| (tensor, (ours / plain).sqrt()));
        let worst =
            ratios.fold(("none", 0.0), |worst, (tensor, ratio)| if ratio <= worst.1 { worst } else { (tensor, ratio) });
        let case = format!("{}, {DRAWS} draws", family.name);
        println!("{case:44} cuda bf16 at most {:.2} times as far as straightforward bf16 ({})", worst.1, worst.0);
        assert!(worst.1 <= 1.5, "{case}: in bf16, {} is {} times as far off", worst.0, worst.1);
    }
}
