//! The adapter: low-rank paths beside frozen linear layers (Hu et al., LoRA, 2106.09685).
//!
//! All parameters lie in one flat vector, tensor after tensor in the model's order; [`LoraLayout`] says where each one is and what
//! PEFT calls it.

use crate::WorkerError;
use ballast_basemodel::{Architecture, Projection};
use ballast_kernels::{Backend, Bucket, Dropout, LoraPath, Philox, Segment};
use ballast_proto::v1;
use std::ops::Range;

/// One parameter tensor of the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraTensor {
    /// Its name in `adapter_model.safetensors`.
    pub name: String,
    /// Rows and columns: `[rank, in]` for A, `[out, rank]` for B.
    pub shape: [usize; 2],
    /// Its place in the flat vector.
    pub range: Range<usize>,
}

/// The tensors of one layer, which lie together: what is summed, and reduced, by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerTensors {
    /// Their numbers among all.
    pub(crate) tensors: Range<usize>,
    /// Their elements of the flat vector.
    pub(crate) elements: Range<usize>,
}

impl LayerTensors {
    /// As a bucket of these segments, one for each tensor of the adapter.
    pub(crate) fn bucket<'a>(&self, segments: &'a [Segment]) -> Bucket<'a> {
        Bucket { segments, members: self.tensors.clone(), elements: self.elements.clone() }
    }
}

/// The two tensors beside one linear layer, by their places in the flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LoraModule {
    a: Range<usize>,
    b: Range<usize>,
}

/// Where every adapter parameter lies.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayout {
    rank: usize,
    scaling: f32,
    dropout: f32,
    tensors: Vec<LoraTensor>,
    /// By module number; `None` where the layer has no adapter.
    modules: Vec<Option<LoraModule>>,
    layers: Vec<LayerTensors>,
    parameters: usize,
}

/// How far down a layer the gradient must flow for its adapters: the lowest place that needs it.
///
/// Places are in forward order, so `reach < place` reads "something below `place` needs the gradient".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Through the whole layer, to adapters of the layers before.
    Through,
    /// To the query, key and value projections.
    QueryKeyValue,
    /// To the attention output.
    Output,
    /// To gate and up.
    GateUp,
    /// To down.
    Down,
}

impl From<Projection> for Reach {
    fn from(projection: Projection) -> Self {
        match projection {
            Projection::Q | Projection::K | Projection::V => Self::QueryKeyValue,
            Projection::O => Self::Output,
            Projection::Gate | Projection::Up => Self::GateUp,
            Projection::Down => Self::Down,
        }
    }
}

impl LoraLayout {
    /// The adapter that a run asks for, on this architecture.
    ///
    /// # Errors
    /// [`WorkerError::LoraTargets`] for a target that is no projection; [`WorkerError::RunSpec`] for a rank of 0, no targets, or
    /// a scaling or dropout that is out of range.
    pub fn new(architecture: &Architecture, lora: &v1::Lora) -> Result<Self, WorkerError> {
        let targets = targets(&lora.target_modules)?;
        if lora.rank == 0 {
            return Err(WorkerError::RunSpec("lora.rank must be at least 1".into()));
        }
        if !(0.0..1.0).contains(&lora.dropout) {
            return Err(WorkerError::RunSpec(format!("lora.dropout is {}; it must be in [0, 1)", lora.dropout)));
        }
        if !lora.scaling.is_finite() {
            return Err(WorkerError::RunSpec(format!("lora.scaling is {}; it must be finite", lora.scaling)));
        }
        let mut layout = Self {
            rank: lora.rank as usize,
            scaling: lora.scaling as f32,
            dropout: lora.dropout as f32,
            tensors: Vec::new(),
            modules: Vec::new(),
            layers: Vec::new(),
            parameters: 0,
        };
        for layer in 0..architecture.layers {
            let (tensors, elements) = (layout.tensors.len(), layout.parameters);
            for projection in Projection::ALL {
                let shape = targets.contains(&projection).then(|| architecture.projection_shape(projection));
                let module = shape.map(|(out, inp)| LoraModule {
                    a: layout.push(layer, projection, "lora_A", [layout.rank, inp]),
                    b: layout.push(layer, projection, "lora_B", [out, layout.rank]),
                });
                layout.modules.push(module);
            }
            let (tensors, elements) = (tensors..layout.tensors.len(), elements..layout.parameters);
            layout.layers.push(LayerTensors { tensors, elements });
        }
        Ok(layout)
    }

    fn push(&mut self, layer: usize, projection: Projection, which: &str, shape: [usize; 2]) -> Range<usize> {
        let range = self.parameters..self.parameters + shape[0] * shape[1];
        let (block, module) = (projection.block(), projection.name());
        let name = format!("base_model.model.model.layers.{layer}.{block}.{module}.{which}.weight");
        self.tensors.push(LoraTensor { name, shape, range: range.clone() });
        self.parameters = range.end;
        range
    }

    /// All tensors, in the order of the flat vector.
    #[must_use]
    pub fn tensors(&self) -> &[LoraTensor] {
        &self.tensors
    }

    /// What each layer has of them, in the order of the flat vector.
    pub(crate) fn layers(&self) -> &[LayerTensors] {
        &self.layers
    }

    /// Whether some of the adapters' input is dropped in training.
    pub(crate) fn drops(&self) -> bool {
        self.dropout > 0.0
    }

    /// Parameters in all.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The tensors as segments with these fixed-point exponents, one a tensor.
    #[must_use]
    pub fn segments(&self, exponents: &[i32]) -> Vec<Segment> {
        let segment = |(tensor, &exponent): (&LoraTensor, &i32)| Segment { range: tensor.range.clone(), exponent };
        self.tensors.iter().zip(exponents).map(segment).collect()
    }

    /// Fresh parameters by PEFT's law: A uniform within ±1/sqrt(in) (Kaiming's with a = sqrt(5)), B zero.
    ///
    /// Each value is a function of (seed, tensor, element) alone.
    #[must_use]
    pub fn initial_parameters(&self, seed: u64) -> Vec<f32> {
        let generator = Philox::new([seed as u32, (seed >> 32) as u32]);
        let mut parameters = vec![0.0; self.parameters];
        for (number, module) in self.modules.iter().enumerate() {
            let Some(module) = module else { continue };
            let bound = 1.0 / ((module.a.len() / self.rank) as f64).sqrt();
            for (quad, values) in parameters[module.a.clone()].chunks_mut(4).enumerate() {
                let words = generator.words([quad as u32, number as u32, 0, INITIALIZATION]);
                for (value, word) in values.iter_mut().zip(words) {
                    *value = (bound * (f64::from(word) / 2f64.powi(31) - 1.0)) as f32;
                }
            }
        }
        parameters
    }

    /// How far down `layer` a gradient must flow; `None` when no adapter lies in it or in the layers before it.
    pub(crate) fn reach(&self, layer: usize) -> Option<Reach> {
        let first = self.modules.iter().position(Option::is_some)?;
        let (first_layer, first_projection) = (first / Projection::ALL.len(), first % Projection::ALL.len());
        match layer.cmp(&first_layer) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(Projection::ALL[first_projection].into()),
            std::cmp::Ordering::Greater => Some(Reach::Through),
        }
    }
}

/// Separates these words from all others drawn under the same seed.
const INITIALIZATION: u32 = 0x4c6f_5241;

fn targets(names: &[String]) -> Result<Vec<Projection>, WorkerError> {
    if names.is_empty() {
        return Err(WorkerError::RunSpec("lora.target_modules is empty".into()));
    }
    let parse = |name: &String| {
        Projection::from_name(name).ok_or_else(|| WorkerError::LoraTargets {
            module: name.clone(),
            allowed: Projection::ALL.map(Projection::name).join(", "),
        })
    };
    names.iter().map(parse).collect()
}

/// What keys the dropout masks of one step.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The step, from 1.
    pub step: u64,
}

/// An adapter in use: where its parameters lie, and their values.
pub struct Adapter<'a, B: Backend> {
    /// Where they lie.
    pub layout: &'a LoraLayout,
    /// Their values.
    pub parameters: &'a B::Reals,
    /// In training: what keys the dropout masks. Evaluation has none.
    pub dropout: Option<DropoutKey>,
}

impl<'a, B: Backend> Adapter<'a, B> {
    /// The path beside a projection, if it has one.
    pub(crate) fn path(
        &self,
        layer: usize,
        projection: Projection,
        packing: &'a B::Packing,
    ) -> Option<LoraPath<'a, B>> {
        let number = layer * Projection::ALL.len() + projection as usize;
        let module = self.layout.modules.get(number)?.as_ref()?;
        let dropout = self.dropout.filter(|_| self.layout.dropout > 0.0).map(|key| Dropout {
            probability: self.layout.dropout,
            seed: key.seed,
            step: key.step,
            module: number as u32,
            packing,
        });
        Some(LoraPath {
            parameters: self.parameters,
            a: module.a.clone(),
            b: module.b.clone(),
            rank: self.layout.rank,
            scaling: self.layout.scaling,
            dropout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        Architecture {
            hidden_size: 8,
            intermediate_size: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ..Architecture::tiny()
        }
    }

    fn lora(targets: &[&str]) -> v1::Lora {
        v1::Lora {
            rank: 3,
            alpha: 6.0,
            scaling: 2.0,
            dropout: 0.0,
            target_modules: targets.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn tensors_tile_the_vector_under_pefts_names() {
        let layout = LoraLayout::new(&architecture(), &lora(&["v_proj", "down_proj"])).unwrap();
        let tensors = layout.tensors();
        assert_eq!(tensors.len(), 8);
        assert_eq!(tensors[0].name, "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight");
        assert_eq!(tensors[7].name, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
        assert_eq!((tensors[0].shape, tensors[1].shape), ([3, 8], [4, 3]));
        assert_eq!((tensors[6].shape, tensors[7].shape), ([3, 12], [8, 3]));
        let mut end = 0;
        for tensor in tensors {
            assert_eq!(tensor.range, end..end + tensor.shape[0] * tensor.shape[1]);
            end = tensor.range.end;
        }
        assert_eq!(end, layout.parameters());
        let [first, second] = layout.layers() else { panic!("{:?}", layout.layers()) };
        assert_eq!((first.tensors.clone(), second.tensors.clone()), (0..4, 4..8));
        assert_eq!((first.elements.start, second.elements.end), (0, end));
        assert_eq!(first.elements.end, tensors[4].range.start);
    }

    #[test]
    fn a_is_uniform_within_its_bound_and_b_is_zero() {
        let wide = Architecture { hidden_size: 4096, ..architecture() };
        let layout = LoraLayout::new(&wide, &lora(&["q_proj"])).unwrap();
        let parameters = layout.initial_parameters(7);
        let a = &parameters[layout.tensors()[0].range.clone()];
        let bound = 1.0 / 64.0;
        assert!(a.iter().all(|value| value.abs() <= bound));
        let mean = a.iter().map(|&v| f64::from(v)).sum::<f64>() / a.len() as f64;
        let variance = a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / a.len() as f64;
        assert!(mean.abs() < 0.001, "{mean}");
        assert!((variance / f64::from(bound * bound / 3.0) - 1.0).abs() < 0.03, "{variance}");
        assert!(parameters[layout.tensors()[1].range.clone()].iter().all(|&value| value == 0.0));
    }

    #[test]
    fn initial_values_depend_on_seed_and_tensor() {
        let layout = LoraLayout::new(&architecture(), &lora(&["q_proj", "k_proj"])).unwrap();
        let (one, two) = (layout.initial_parameters(1), layout.initial_parameters(2));
        assert_eq!(one, layout.initial_parameters(1));
        assert_ne!(one, two);
        let (q, k) = (&layout.tensors()[0].range, &layout.tensors()[2].range);
        assert_ne!(one[q.clone()], one[k.clone()]);
        // The other targets of a run do not move a tensor's values.
        let alone = LoraLayout::new(&architecture(), &lora(&["k_proj"])).unwrap();
        assert_eq!(alone.initial_parameters(1)[alone.tensors()[0].range.clone()], one[k.clone()]);
    }

    #[test]
    fn gradients_reach_no_lower_than_the_lowest_adapter() {
        let reach = |target| {
            let layout = LoraLayout::new(&architecture(), &lora(&[target])).unwrap();
            (layout.reach(0), layout.reach(1))
        };
        assert_eq!(reach("q_proj"), (Some(Reach::QueryKeyValue), Some(Reach::Through)));
        assert_eq!(reach("o_proj"), (Some(Reach::Output), Some(Reach::Through)));
        assert_eq!(reach("down_proj"), (Some(Reach::Down), Some(Reach::Through)));
    }

    #[test]
    fn bad_adapters_are_refused() {
        let refused = |lora: v1::Lora| LoraLayout::new(&architecture(), &lora).unwrap_err().to_string();
        assert!(refused(lora(&["q_proj", "qproj"])).contains("`qproj`"));
        assert!(refused(lora(&[])).contains("empty"));
        assert!(refused(v1::Lora { rank: 0, ..lora(&["q_proj"]) }).contains("rank"));
        assert!(refused(v1::Lora { dropout: 1.0, ..lora(&["q_proj"]) }).contains("dropout"));
        assert!(refused(v1::Lora { scaling: f64::NAN, ..lora(&["q_proj"]) }).contains("scaling"));
    }
}
