//! What adapter and optimizer files must hold before they are accepted.

use ballast_basemodel::{Architecture, Projection};
use ballast_proto::{ErrorCode, Failure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;

/// Names and shapes of all tensors of an adapter, as PEFT names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterShapes {
    shapes: BTreeMap<String, Vec<usize>>,
}

impl AdapterShapes {
    /// The adapter of this rank on these projections: `lora_A` is `[rank, in]`, `lora_B` is `[out, rank]`.
    #[must_use]
    pub fn new(architecture: &Architecture, rank: usize, targets: &[Projection]) -> Self {
        let mut shapes = BTreeMap::new();
        for layer in 0..architecture.layers {
            for target in targets {
                let (out, input) = architecture.projection_shape(*target);
                let module = format!("base_model.model.model.layers.{layer}.{}.{}", target.block(), target.name());
                shapes.insert(format!("{module}.lora_A.weight"), vec![rank, input]);
                shapes.insert(format!("{module}.lora_B.weight"), vec![out, rank]);
            }
        }
        Self { shapes }
    }

    /// Name and shape of each tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &[usize])> {
        self.shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// Bytes of all tensors in f32.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shapes.values().map(|shape| 4 * shape.iter().product::<usize>() as u64).sum()
    }
}

fn malformed(file: &str, what: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::BadMessage, format!("{file}: {what}"))
}

/// Accepts an adapter file with exactly the expected tensors, all f32 and finite.
///
/// # Errors
/// `BadMessage`, naming the tensor.
pub fn validate_adapter(file: &str, bytes: &[u8], expected: &AdapterShapes) -> Result<(), Failure> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| malformed(file, e))?;
    expect_count(file, &tensors, expected.shapes.len())?;
    expect_vectors(file, &tensors, "", expected)
}

/// Accepts an optimizer file: both moments of every adapter tensor (f32, finite), one fixed-point exponent a tensor
/// (i32), the steps passed and the updates applied in them (i64).
///
/// # Errors
/// `BadMessage`, naming the tensor.
pub fn validate_optimizer(file: &str, bytes: &[u8], expected: &AdapterShapes, step: u64) -> Result<(), Failure> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| malformed(file, e))?;
    expect_count(file, &tensors, 2 * expected.shapes.len() + 3)?;
    expect_vectors(file, &tensors, "first_moment.", expected)?;
    expect_vectors(file, &tensors, "second_moment.", expected)?;
    expect(file, &tensors, "exponents", Dtype::I32, &[expected.shapes.len()])?;
    let stored = expect(file, &tensors, "step", Dtype::I64, &[1])?;
    if stored.data() != step.to_le_bytes() {
        return Err(malformed(file, format!("it is not of step {step}")));
    }
    let updates = expect(file, &tensors, "updates", Dtype::I64, &[1])?;
    // A negative number would be a vast one.
    if updates.data().try_into().map(u64::from_le_bytes).is_ok_and(|updates| updates > step) {
        return Err(malformed(file, format!("it counts more updates than {step} steps")));
    }
    Ok(())
}

fn expect_count(file: &str, tensors: &SafeTensors<'_>, expected: usize) -> Result<(), Failure> {
    let found = tensors.len();
    if found == expected {
        Ok(())
    } else {
        Err(malformed(file, format!("it has {found} tensors, expected {expected}")))
    }
}

fn expect_vectors(file: &str, tensors: &SafeTensors<'_>, prefix: &str, shapes: &AdapterShapes) -> Result<(), Failure> {
    shapes.shapes.iter().try_for_each(|(name, shape)| {
        let name = format!("{prefix}{name}");
        finite(file, &name, &expect(file, tensors, &name, Dtype::F32, shape)?)
    })
}

fn expect<'a>(
    file: &str,
    tensors: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<TensorView<'a>, Failure> {
    let tensor = tensors.tensor(name).map_err(|_| malformed(file, format!("tensor {name} is missing")))?;
    if tensor.dtype() != dtype || tensor.shape() != shape {
        let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
        return Err(malformed(file, format!("tensor {name} is {found}, expected {dtype:?} {shape:?}")));
    }
    Ok(tensor)
}

fn finite(file: &str, name: &str, tensor: &TensorView<'_>) -> Result<(), Failure> {
    let (values, _) = tensor.data().as_chunks::<4>();
    match values.iter().position(|bytes| !f32::from_le_bytes(*bytes).is_finite()) {
        None => Ok(()),
        Some(at) => Err(malformed(file, format!("tensor {name} is not finite at element {at}"))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A decoder small enough for tests of everything around it.
    pub(crate) fn architecture() -> Architecture {
        Architecture {
            hidden_size: 8,
            intermediate_size: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ..Architecture::tiny()
        }
    }

    /// An adapter file whose every value is `value`.
    pub(crate) fn adapter(shapes: &AdapterShapes, value: f32) -> Vec<u8> {
        write(vectors(shapes, "", value))
    }

    /// An optimizer file of `step` whose every moment is `value`.
    pub(crate) fn optimizer(shapes: &AdapterShapes, value: f32, step: u64) -> Vec<u8> {
        optimizer_after(shapes, value, step, step as i64)
    }

    fn optimizer_after(shapes: &AdapterShapes, value: f32, step: u64, updates: i64) -> Vec<u8> {
        let mut tensors = vectors(shapes, "first_moment.", value);
        tensors.extend(vectors(shapes, "second_moment.", value));
        let count = shapes.shapes.len();
        tensors.push(("exponents".into(), Dtype::I32, vec![count], vec![0; 4 * count]));
        tensors.push(("step".into(), Dtype::I64, vec![1], step.to_le_bytes().to_vec()));
        tensors.push(("updates".into(), Dtype::I64, vec![1], updates.to_le_bytes().to_vec()));
        write(tensors)
    }

    type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

    fn vectors(shapes: &AdapterShapes, prefix: &str, value: f32) -> Vec<Raw> {
        let vector = |(name, shape): (&String, &Vec<usize>)| {
            let bytes = value.to_le_bytes().repeat(shape.iter().product());
            (format!("{prefix}{name}"), Dtype::F32, shape.clone(), bytes)
        };
        shapes.shapes.iter().map(vector).collect()
    }

    fn write(tensors: Vec<Raw>) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn shapes() -> AdapterShapes {
        AdapterShapes::new(&architecture(), 2, &[Projection::Q, Projection::Down])
    }

    #[test]
    fn the_expected_adapter_is_accepted() {
        let shapes = shapes();
        assert_eq!(shapes.shapes.len(), 8);
        assert_eq!(shapes.shapes["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"], [2, 12]);
        validate_adapter("a", &adapter(&shapes, 0.5), &shapes).unwrap();
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let shapes = shapes();
        let with = |change: &dyn Fn(&mut AdapterShapes), value| {
            let mut changed = shapes.clone();
            change(&mut changed);
            validate_adapter("a", &adapter(&changed, value), &shapes).unwrap_err().message
        };
        let first = shapes.shapes.keys().next().unwrap().clone();
        assert!(with(&|s| drop(s.shapes.remove(&first)), 0.0).contains("7 tensors, expected 8"));
        let rename = |s: &mut AdapterShapes| {
            let shape = s.shapes.remove(&first).unwrap();
            s.shapes.insert("other".into(), shape);
        };
        assert!(with(&rename, 0.0).contains("is missing"));
        assert!(with(&|s| drop(s.shapes.insert("other".into(), vec![1])), 0.0).contains("9 tensors, expected 8"));
        assert!(with(&|s| drop(s.shapes.insert(first.clone(), vec![3, 3])), 0.0).contains("expected F32"));
        assert!(with(&|_| (), f32::NAN).contains("not finite at element 0"));
        assert!(with(&|_| (), f32::INFINITY).contains("not finite"));
        let whole = adapter(&shapes, 0.0);
        assert!(validate_adapter("a", &whole[..whole.len() - 1], &shapes).is_err());
        assert!(validate_adapter("a", b"", &shapes).is_err());
    }

    #[test]
    fn optimizer_files_hold_moments_exponents_and_the_step() {
        let shapes = shapes();
        let check = |bytes: &[u8], step| validate_optimizer("o", bytes, &shapes, step).map_err(|e| e.message);
        check(&optimizer(&shapes, 0.5, 7), 7).unwrap();
        assert!(check(&optimizer(&shapes, 0.5, 7), 8).unwrap_err().contains("not of step 8"));
        assert!(check(&optimizer(&shapes, f32::NAN, 7), 7).unwrap_err().contains("not finite"));
        assert!(check(&adapter(&shapes, 0.5), 7).unwrap_err().contains("expected 19"));
        check(&optimizer_after(&shapes, 0.5, 7, 5), 7).unwrap();
        for updates in [8, -1] {
            assert!(check(&optimizer_after(&shapes, 0.5, 7, updates), 7).unwrap_err().contains("more updates"));
        }
    }
}
