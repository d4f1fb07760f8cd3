//! The contract, for nothing but its buffers.

use super::{DryRun, Held, Linear, Matrix, Table, Vector};
use crate::PackedLayout;
use crate::contract::{
    AdamW, AttentionShape, Backend, Bucket, Direction, GatedActivation, LoraPath, NormKind, Result, Segment, Target,
};
use crate::footprint::{Footprint, LowRank};
use std::sync::Arc;

fn low_rank<F: Footprint>(x: &Matrix, weight: &Linear, path: &LoraPath<'_, DryRun<F>>) -> LowRank {
    let drops = path.dropout.as_ref().is_some_and(|dropout| dropout.drops());
    LowRank { rows: x.rows, inp: weight.weight.cols, out: weight.weight.rows, rank: path.rank, drops }
}

/// The layer by itself.
fn unadapted(x: &Matrix, weight: &Linear) -> LowRank {
    LowRank { rows: x.rows, inp: weight.weight.cols, out: weight.weight.rows, rank: 0, drops: false }
}

impl<F: Footprint> Backend for DryRun<F> {
    type Activations = Matrix;
    type Reals = Vector;
    type Integers = Vector;
    type Halves = Vector;
    type Indices = Vector;
    type Linear = Linear;
    type Embedding = Table;
    type Rotary = [Held; 2];
    type Packing = Vector;
    type KvCache = [Held; 2];

    fn name(&self) -> &'static str {
        "dry run"
    }

    fn arithmetic(&self) -> Result<String> {
        Ok(format!("none; sizes of {:?}", self.footprint))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn activations(&self, rows: usize, cols: usize) -> Result<Matrix> {
        let held = self.buffer(rows * cols * self.footprint.storage(), "activations")?;
        Ok(Matrix { rows, cols, _held: held })
    }

    fn upload_activations(&self, _: &[f32], rows: usize, cols: usize) -> Result<Matrix> {
        self.activations(rows, cols)
    }

    fn read_activations(&self, matrix: &Matrix) -> Result<Vec<f32>> {
        Ok(vec![0.0; matrix.rows * matrix.cols])
    }

    fn reals(&self, len: usize) -> Result<Vector> {
        self.vector(len)
    }

    fn upload_reals(&self, values: &[f32]) -> Result<Vector> {
        self.vector(values.len())
    }

    fn clear_reals(&self, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn write_reals(&self, _: &mut Vector, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn read_reals(&self, vector: &Vector) -> Result<Vec<f32>> {
        Ok(vec![0.0; vector.len])
    }

    fn integers(&self, len: usize) -> Result<Vector> {
        self.integer_vector::<i64>(len)
    }

    fn clear_integers(&self, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn write_integers(&self, _: &mut Vector, _: &[i64]) -> Result<()> {
        Ok(())
    }

    fn integers_len(&self, vector: &Vector) -> usize {
        vector.len
    }

    fn read_integers(&self, _: &Vector, values: &mut [i64]) -> Result<()> {
        values.fill(0);
        Ok(())
    }

    fn halves(&self, len: usize) -> Result<Vector> {
        self.integer_vector::<u16>(len)
    }

    fn write_halves(&self, _: &mut Vector, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn read_halves(&self, vector: &Vector) -> Result<Vec<f32>> {
        Ok(vec![0.0; vector.len])
    }

    fn upload_indices(&self, values: &[u32]) -> Result<Vector> {
        self.integer_vector::<u32>(values.len())
    }

    /// As if every token were a sequence of its own: the largest tables that so many tokens can have.
    fn upload_packing(&self, layout: &PackedLayout) -> Result<Vector> {
        let tokens = layout.tokens();
        let held = Held::new(&self.meter, self.footprint.packing(tokens, tokens), "a packing")?;
        Ok(Vector { len: tokens, _held: held })
    }

    fn pack_linear(&self, _: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<Linear> {
        let bias = bias.map(|_| Held::new(&self.meter, self.footprint.bias(out), "a bias")).transpose()?;
        Ok(Linear { weight: self.pack_embedding(&[], out, inp)?, _bias: bias })
    }

    fn pack_embedding(&self, _: &[f32], rows: usize, cols: usize) -> Result<Table> {
        let held = self.table(rows * cols * self.footprint.frozen(), "a frozen weight")?;
        Ok(Table { rows, cols, held: Arc::new(held) })
    }

    fn tied_head(&self, table: &Table) -> Result<Linear> {
        Ok(Linear { weight: Table { held: Arc::clone(&table.held), ..*table }, _bias: None })
    }

    fn upload_rotary(&self, cos: &[f32], sin: &[f32], _: usize) -> Result<[Held; 2]> {
        Ok([self.table(size_of_val(cos), "rotary tables")?, self.table(size_of_val(sin), "rotary tables")?])
    }

    fn embedding(&self, _: &Table, _: &Vector, _: f32, _: &mut Matrix) -> Result<()> {
        Ok(())
    }

    fn add_rms_norm(
        &self,
        _: &mut Matrix,
        _: Option<&Matrix>,
        _: &Vector,
        _: f32,
        _: NormKind,
        _: &mut Matrix,
        _: &mut Vector,
    ) -> Result<()> {
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        _: &Matrix,
        _: &Matrix,
        _: &Vector,
        _: NormKind,
        _: &Vector,
        _: Target<'_, Matrix>,
    ) -> Result<()> {
        Ok(())
    }

    fn linear(
        &self,
        x: &Matrix,
        weight: &Linear,
        lora: Option<(&LoraPath<'_, Self>, &mut Vector)>,
        _: &mut Matrix,
    ) -> Result<()> {
        let path = lora.map_or_else(|| unadapted(x, weight), |(path, _)| low_rank(x, weight, path));
        self.scratch(&self.footprint.linear(&path))
    }

    fn linear_backward(
        &self,
        _: &Matrix,
        x: &Matrix,
        weight: &Linear,
        lora: Option<(&LoraPath<'_, Self>, &Vector, &mut Vector)>,
        _: Option<Target<'_, Matrix>>,
    ) -> Result<()> {
        let path = lora.map_or_else(|| unadapted(x, weight), |(path, ..)| low_rank(x, weight, path));
        self.scratch(&self.footprint.linear_backward(&path))
    }

    fn rotary(&self, _: &mut Matrix, _: usize, _: &[Held; 2], _: &Vector, _: Direction) -> Result<()> {
        Ok(())
    }

    fn attention(
        &self,
        q: &Matrix,
        _: &Matrix,
        _: &Matrix,
        _: &Vector,
        shape: &AttentionShape,
        _: &mut Matrix,
        _: &mut Vector,
    ) -> Result<()> {
        self.scratch(&self.footprint.attention(q.rows, shape))
    }

    fn attention_backward(
        &self,
        _: &Matrix,
        q: &Matrix,
        _: &Matrix,
        _: &Matrix,
        _: &Matrix,
        _: &Vector,
        _: &Vector,
        shape: &AttentionShape,
        _: &mut Matrix,
        _: &mut Matrix,
        _: &mut Matrix,
    ) -> Result<()> {
        self.scratch(&self.footprint.attention_backward(q.rows, shape))
    }

    fn gated(&self, _: &Matrix, _: &Matrix, _: GatedActivation, _: &mut Matrix) -> Result<()> {
        Ok(())
    }

    fn gated_backward(
        &self,
        _: &Matrix,
        _: &Matrix,
        _: &Matrix,
        _: GatedActivation,
        _: &mut Matrix,
        _: &mut Matrix,
    ) -> Result<()> {
        Ok(())
    }

    fn add(&self, _: &mut Matrix, _: &Matrix) -> Result<()> {
        Ok(())
    }

    fn gather_rows(&self, _: &Matrix, _: &Vector, _: &mut Matrix) -> Result<()> {
        Ok(())
    }

    fn scatter_rows(&self, _: &Matrix, _: &Vector, d_x: &mut Matrix) -> Result<()> {
        self.scratch(&self.footprint.scatter_rows(d_x.rows))
    }

    fn linear_cross_entropy(
        &self,
        hidden: &Matrix,
        head: &Linear,
        _: &Vector,
        _: &mut Vector,
        _: Option<&mut Matrix>,
    ) -> Result<()> {
        self.scratch(&self.footprint.cross_entropy(hidden.rows, head.weight.rows, head.weight.cols))
    }

    /// No more than cross-entropy.
    fn log_probabilities(&self, hidden: &Matrix, head: &Linear, _: &Vector, _: &mut Vector) -> Result<()> {
        self.scratch(&self.footprint.cross_entropy(hidden.rows, head.weight.rows, head.weight.cols))
    }

    fn logits(&self, _: &Matrix, _: &Linear, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn kv_cache(&self, capacity: usize, shape: &AttentionShape) -> Result<[Held; 2]> {
        let bytes = capacity * shape.kv_heads * shape.head_dim * self.footprint.storage();
        Ok([self.buffer(bytes, "a key cache")?, self.buffer(bytes, "a value cache")?])
    }

    fn attention_cached(
        &self,
        q: &Matrix,
        _: &Matrix,
        _: &Matrix,
        _: &mut [Held; 2],
        shape: &AttentionShape,
        _: &mut Matrix,
    ) -> Result<()> {
        self.scratch(&self.footprint.attention(q.rows, shape))
    }

    fn accumulate_fixed(&self, _: &Vector, _: &Bucket<'_>, _: u32, _: &mut Vector, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn fixed_to_gradient(&self, _: &Vector, _: &Bucket<'_>, _: f64, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn add_scaled(&self, _: &mut Vector, _: f32, _: &Vector, _: usize) -> Result<()> {
        Ok(())
    }

    fn copy_reals(&self, _: &Vector, _: &mut Vector, _: usize) -> Result<()> {
        Ok(())
    }

    fn narrow(&self, _: &Vector, _: &mut Vector) -> Result<()> {
        Ok(())
    }

    fn widen(&self, _: &Vector, _: &mut Vector, _: usize) -> Result<()> {
        Ok(())
    }

    fn max_abs(&self, _: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
        Ok(vec![0.0; segments.len()])
    }

    fn squared_norm(&self, _: &Vector) -> Result<f64> {
        Ok(0.0)
    }

    fn adamw(&self, _: &mut Vector, _: &Vector, _: &mut Vector, _: &mut Vector, _: &AdamW) -> Result<()> {
        Ok(())
    }
}
