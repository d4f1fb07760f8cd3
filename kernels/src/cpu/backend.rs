//! The contract, spelled out for the CPU: each operation lives in its own module.

use super::buffers::{HalfVector, IndexVector, IntegerVector, Matrix, PackingTable, Vector};
use super::check::{self, ensure, length};
use super::weights::{FrozenLinear, RotaryTable, Table};
use super::{
    Cache, CpuBackend, attention, attention_backward, attention_cached, fixed, gated, gemm, head, linear, norm,
    optimizer, rotary, rows,
};
use crate::contract::{
    AdamW, AttentionShape, Backend, Bucket, Direction, GatedActivation, LoraPath, NormKind, Result, Segment, Target,
};
use crate::{PackedLayout, Storage};
use half::bf16;

impl Backend for CpuBackend {
    type Activations = Matrix;
    type Reals = Vector;
    type Integers = IntegerVector;
    type Halves = HalfVector;
    type Indices = IndexVector;
    type Linear = FrozenLinear;
    type Embedding = Table;
    type Rotary = RotaryTable;
    type Packing = PackingTable;
    type KvCache = Cache;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn arithmetic(&self) -> Result<String> {
        let weights = match self.storage {
            Storage::F32 => "",
            Storage::Bf16 => ", weights bf16",
        };
        Ok(format!("cpu f32{weights}; {}", gemm::description()))
    }

    fn shares_prefixes(&self) -> bool {
        true
    }

    /// Calls have taken effect when they return.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn activations(&self, rows: usize, cols: usize) -> Result<Matrix> {
        ensure(rows > 0 && cols > 0, "activations", || format!("a matrix of [{rows}, {cols}]"))?;
        Ok(Matrix { block: self.memory.take(rows * cols, "activations")?, rows, cols })
    }

    fn upload_activations(&self, values: &[f32], rows: usize, cols: usize) -> Result<Matrix> {
        length("upload_activations", "values", values.len(), rows * cols)?;
        let mut matrix = self.activations(rows, cols)?;
        matrix.data_mut().copy_from_slice(values);
        Ok(matrix)
    }

    fn read_activations(&self, matrix: &Matrix) -> Result<Vec<f32>> {
        Ok(matrix.data().to_vec())
    }

    fn reals(&self, len: usize) -> Result<Vector> {
        Ok(Vector { block: self.memory.take_zeros(len, "a vector")? })
    }

    fn upload_reals(&self, values: &[f32]) -> Result<Vector> {
        let mut vector = Vector { block: self.memory.take(values.len(), "a vector")? };
        vector.data_mut().copy_from_slice(values);
        Ok(vector)
    }

    fn clear_reals(&self, vector: &mut Vector) -> Result<()> {
        vector.data_mut().fill(0.0);
        Ok(())
    }

    fn write_reals(&self, vector: &mut Vector, values: &[f32]) -> Result<()> {
        length("write_reals", "values", values.len(), vector.len())?;
        vector.data_mut().copy_from_slice(values);
        Ok(())
    }

    fn read_reals(&self, vector: &Vector) -> Result<Vec<f32>> {
        Ok(vector.data().to_vec())
    }

    fn integers(&self, len: usize) -> Result<IntegerVector> {
        Ok(IntegerVector { values: vec![0; len] })
    }

    fn clear_integers(&self, vector: &mut IntegerVector) -> Result<()> {
        vector.values.fill(0);
        Ok(())
    }

    fn write_integers(&self, vector: &mut IntegerVector, values: &[i64]) -> Result<()> {
        length("write_integers", "values", values.len(), vector.values.len())?;
        vector.values.copy_from_slice(values);
        Ok(())
    }

    fn integers_len(&self, vector: &IntegerVector) -> usize {
        vector.values.len()
    }

    fn read_integers(&self, vector: &IntegerVector, values: &mut [i64]) -> Result<()> {
        length("read_integers", "values", values.len(), vector.values.len())?;
        values.copy_from_slice(&vector.values);
        Ok(())
    }

    fn halves(&self, len: usize) -> Result<HalfVector> {
        Ok(HalfVector { values: vec![bf16::ZERO; len] })
    }

    fn write_halves(&self, vector: &mut HalfVector, values: &[f32]) -> Result<()> {
        length("write_halves", "values", values.len(), vector.values.len())?;
        optimizer::round_all(values, &mut vector.values);
        Ok(())
    }

    fn read_halves(&self, vector: &HalfVector) -> Result<Vec<f32>> {
        Ok(vector.values.iter().map(|value| value.to_f32()).collect())
    }

    fn upload_indices(&self, values: &[u32]) -> Result<IndexVector> {
        Ok(IndexVector { values: values.to_vec() })
    }

    fn upload_packing(&self, layout: &PackedLayout) -> Result<PackingTable> {
        PackingTable::new(layout)
    }

    fn pack_linear(&self, weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<FrozenLinear> {
        FrozenLinear::new(weight, out, inp, bias, self.storage)
    }

    fn pack_embedding(&self, table: &[f32], vocab: usize, hidden: usize) -> Result<Table> {
        Table::new("pack_embedding", table, vocab, hidden, self.storage)
    }

    fn tied_head(&self, table: &Table) -> Result<FrozenLinear> {
        Ok(FrozenLinear { weight: table.clone(), bias: None })
    }

    fn upload_rotary(&self, cos: &[f32], sin: &[f32], half: usize) -> Result<RotaryTable> {
        RotaryTable::new(cos, sin, half)
    }

    fn embedding(&self, table: &Table, ids: &IndexVector, scale: f32, out: &mut Matrix) -> Result<()> {
        rows::embedding(self, table, ids, scale, out)
    }

    fn add_rms_norm(
        &self,
        x: &mut Matrix,
        delta: Option<&Matrix>,
        weight: &Vector,
        eps: f32,
        kind: NormKind,
        out: &mut Matrix,
        inv_rms: &mut Vector,
    ) -> Result<()> {
        norm::forward(self, x, delta, weight, eps, kind, out, inv_rms)
    }

    fn rms_norm_backward(
        &self,
        d_out: &Matrix,
        x: &Matrix,
        weight: &Vector,
        kind: NormKind,
        inv_rms: &Vector,
        d_x: Target<'_, Matrix>,
    ) -> Result<()> {
        norm::backward(self, d_out, x, weight, kind, inv_rms, d_x)
    }

    fn linear(
        &self,
        x: &Matrix,
        weight: &FrozenLinear,
        lora: Option<(&LoraPath<'_, Self>, &mut Vector)>,
        y: &mut Matrix,
    ) -> Result<()> {
        linear::forward(self, x, weight, lora, y)
    }

    fn linear_backward(
        &self,
        d_y: &Matrix,
        x: &Matrix,
        weight: &FrozenLinear,
        lora: Option<(&LoraPath<'_, Self>, &Vector, &mut Vector)>,
        d_x: Option<Target<'_, Matrix>>,
    ) -> Result<()> {
        linear::backward(self, d_y, x, weight, lora, d_x)
    }

    fn rotary(
        &self,
        x: &mut Matrix,
        heads: usize,
        tables: &RotaryTable,
        packing: &PackingTable,
        direction: Direction,
    ) -> Result<()> {
        rotary::rotary(self, x, heads, tables, packing, direction)
    }

    fn attention(
        &self,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        packing: &PackingTable,
        shape: &AttentionShape,
        out: &mut Matrix,
        log_sum_exp: &mut Vector,
    ) -> Result<()> {
        attention::forward(self, q, k, v, packing, shape, out, log_sum_exp)
    }

    fn attention_backward(
        &self,
        d_out: &Matrix,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        out: &Matrix,
        log_sum_exp: &Vector,
        packing: &PackingTable,
        shape: &AttentionShape,
        d_q: &mut Matrix,
        d_k: &mut Matrix,
        d_v: &mut Matrix,
    ) -> Result<()> {
        attention_backward::backward(self, d_out, q, k, v, out, log_sum_exp, packing, shape, d_q, d_k, d_v)
    }

    fn gated(&self, gate: &Matrix, up: &Matrix, activation: GatedActivation, out: &mut Matrix) -> Result<()> {
        gated::forward(self, gate, up, activation, out)
    }

    fn gated_backward(
        &self,
        d_out: &Matrix,
        gate: &Matrix,
        up: &Matrix,
        activation: GatedActivation,
        d_gate: &mut Matrix,
        d_up: &mut Matrix,
    ) -> Result<()> {
        gated::backward(self, d_out, gate, up, activation, d_gate, d_up)
    }

    fn add(&self, x: &mut Matrix, y: &Matrix) -> Result<()> {
        rows::add(self, x, y)
    }

    fn gather_rows(&self, x: &Matrix, rows: &IndexVector, out: &mut Matrix) -> Result<()> {
        rows::gather(self, x, rows, out)
    }

    fn scatter_rows(&self, d_out: &Matrix, rows: &IndexVector, d_x: &mut Matrix) -> Result<()> {
        rows::scatter(d_out, rows, d_x)
    }

    fn linear_cross_entropy(
        &self,
        hidden: &Matrix,
        head: &FrozenLinear,
        targets: &IndexVector,
        losses: &mut Vector,
        d_hidden: Option<&mut Matrix>,
    ) -> Result<()> {
        head::cross_entropy(self, hidden, head, targets, losses, d_hidden)
    }

    fn log_probabilities(
        &self,
        hidden: &Matrix,
        head: &FrozenLinear,
        targets: &IndexVector,
        out: &mut Vector,
    ) -> Result<()> {
        head::log_probabilities(self, hidden, head, targets, out)
    }

    fn logits(&self, hidden: &Matrix, head: &FrozenLinear, out: &mut Vector) -> Result<()> {
        head::logits(self, hidden, head, out)
    }

    fn kv_cache(&self, capacity: usize, shape: &AttentionShape) -> Result<Cache> {
        Cache::new(self, capacity, shape)
    }

    fn attention_cached(
        &self,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        cache: &mut Cache,
        shape: &AttentionShape,
        out: &mut Matrix,
    ) -> Result<()> {
        attention_cached::forward(self, q, k, v, cache, shape, out)
    }

    fn accumulate_fixed(
        &self,
        gradient: &Vector,
        bucket: &Bucket<'_>,
        limit_bits: u32,
        sums: &mut IntegerVector,
        flags: &mut IntegerVector,
    ) -> Result<()> {
        fixed::accumulate(self, gradient, bucket, limit_bits, sums, flags)
    }

    fn fixed_to_gradient(
        &self,
        sums: &IntegerVector,
        bucket: &Bucket<'_>,
        divisor: f64,
        gradient: &mut Vector,
    ) -> Result<()> {
        fixed::to_gradient(self, sums, bucket, divisor, gradient)
    }

    fn add_scaled(&self, x: &mut Vector, scale: f32, y: &Vector, first: usize) -> Result<()> {
        optimizer::add_scaled(self, x, scale, y, first)
    }

    fn copy_reals(&self, from: &Vector, to: &mut Vector, first: usize) -> Result<()> {
        optimizer::copy(from, to, first)
    }

    fn narrow(&self, from: &Vector, to: &mut HalfVector) -> Result<()> {
        length("narrow", "from", from.len(), to.values.len())?;
        optimizer::round_all(from.data(), &mut to.values);
        Ok(())
    }

    fn widen(&self, from: &HalfVector, to: &mut Vector, first: usize) -> Result<()> {
        check::stretch("widen", first, from.values.len(), to.len())?;
        let to = &mut to.data_mut()[first..];
        to.iter_mut().zip(&from.values).for_each(|(to, from)| *to = from.to_f32());
        Ok(())
    }

    fn max_abs(&self, vector: &Vector, segments: &[Segment]) -> Result<Vec<f32>> {
        fixed::max_abs(vector, segments)
    }

    fn squared_norm(&self, vector: &Vector) -> Result<f64> {
        Ok(fixed::squared_norm(self, vector))
    }

    fn adamw(
        &self,
        parameters: &mut Vector,
        gradient: &Vector,
        first_moment: &mut Vector,
        second_moment: &mut Vector,
        settings: &AdamW,
    ) -> Result<()> {
        optimizer::adamw(self, parameters, gradient, first_moment, second_moment, settings)
    }
}
