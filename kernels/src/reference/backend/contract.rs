//! The contract, spelled out for the reference: what needs more than a check and a call lives in its family's module.

use super::buffers::{Cache, FrozenLinear, Matrix, Packing, RotaryTable, Table};
use super::{ReferenceBackend, attention, fixed, head, linear, narrow, widen};
use crate::PackedLayout;
use crate::check::{self, below, ensure, length, shape};
use crate::contract::{
    AdamW, AttentionShape, Backend, Bucket, Direction, GatedActivation, LoraPath, NormKind, Result, Segment, Target,
};
use crate::reference::{self, Rounding};

impl Backend for ReferenceBackend {
    type Activations = Matrix;
    type Reals = Vec<f64>;
    type Integers = Vec<i64>;
    type Halves = Vec<f64>;
    type Indices = Vec<u32>;
    type Linear = FrozenLinear;
    type Embedding = Table;
    type Rotary = RotaryTable;
    type Packing = Packing;
    type KvCache = Cache;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn arithmetic(&self) -> Result<String> {
        Ok(match self.rounding {
            Rounding::Exact => "f64".into(),
            Rounding::Bf16 => "f64, stored as bf16".into(),
        })
    }

    /// Calls have taken effect when they return.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// NaN: whoever reads what was never written is found out.
    fn activations(&self, rows: usize, cols: usize) -> Result<Matrix> {
        ensure(rows > 0 && cols > 0, "activations", || format!("a matrix of [{rows}, {cols}]"))?;
        Ok(Matrix { values: vec![f64::NAN; rows * cols], rows, cols })
    }

    fn upload_activations(&self, values: &[f32], rows: usize, cols: usize) -> Result<Matrix> {
        length("upload_activations", "values", values.len(), rows * cols)?;
        ensure(rows > 0 && cols > 0, "upload_activations", || format!("a matrix of [{rows}, {cols}]"))?;
        Ok(Matrix { values: self.stored(widen(values)), rows, cols })
    }

    fn read_activations(&self, matrix: &Matrix) -> Result<Vec<f32>> {
        Ok(narrow(&matrix.values))
    }

    fn reals(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn upload_reals(&self, values: &[f32]) -> Result<Vec<f64>> {
        Ok(widen(values))
    }

    fn clear_reals(&self, vector: &mut Vec<f64>) -> Result<()> {
        vector.fill(0.0);
        Ok(())
    }

    fn write_reals(&self, vector: &mut Vec<f64>, values: &[f32]) -> Result<()> {
        length("write_reals", "values", values.len(), vector.len())?;
        *vector = widen(values);
        Ok(())
    }

    fn read_reals(&self, vector: &Vec<f64>) -> Result<Vec<f32>> {
        Ok(narrow(vector))
    }

    fn integers(&self, len: usize) -> Result<Vec<i64>> {
        Ok(vec![0; len])
    }

    fn clear_integers(&self, vector: &mut Vec<i64>) -> Result<()> {
        vector.fill(0);
        Ok(())
    }

    fn write_integers(&self, vector: &mut Vec<i64>, values: &[i64]) -> Result<()> {
        length("write_integers", "values", values.len(), vector.len())?;
        vector.copy_from_slice(values);
        Ok(())
    }

    fn integers_len(&self, vector: &Vec<i64>) -> usize {
        vector.len()
    }

    fn read_integers(&self, vector: &Vec<i64>, values: &mut [i64]) -> Result<()> {
        length("read_integers", "values", values.len(), vector.len())?;
        values.copy_from_slice(vector);
        Ok(())
    }

    fn halves(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn write_halves(&self, vector: &mut Vec<f64>, values: &[f32]) -> Result<()> {
        length("write_halves", "values", values.len(), vector.len())?;
        *vector = values.iter().map(|&value| Rounding::Bf16.round(value.into())).collect();
        Ok(())
    }

    fn read_halves(&self, vector: &Vec<f64>) -> Result<Vec<f32>> {
        Ok(narrow(vector))
    }

    fn upload_indices(&self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn upload_packing(&self, layout: &PackedLayout) -> Result<Packing> {
        Packing::new(layout)
    }

    fn pack_linear(&self, weight: &[f32], out: usize, inp: usize, bias: Option<&[f32]>) -> Result<FrozenLinear> {
        FrozenLinear::new(self, weight, out, inp, bias)
    }

    fn pack_embedding(&self, table: &[f32], vocab: usize, hidden: usize) -> Result<Table> {
        Table::new(self, "pack_embedding", table, vocab, hidden)
    }

    fn tied_head(&self, table: &Table) -> Result<FrozenLinear> {
        Ok(FrozenLinear { weight: table.clone(), bias: None })
    }

    fn upload_rotary(&self, cos: &[f32], sin: &[f32], half: usize) -> Result<RotaryTable> {
        RotaryTable::new(cos, sin, half)
    }

    fn embedding(&self, table: &Table, ids: &Vec<u32>, scale: f32, out: &mut Matrix) -> Result<()> {
        shape("embedding", "out", out, ids.len(), table.cols)?;
        below("embedding", "ids", ids, table.rows)?;
        out.values = self.stored(reference::embedding(&table.values, table.cols, ids, f64::from(scale)));
        Ok(())
    }

    fn add_rms_norm(
        &self,
        x: &mut Matrix,
        delta: Option<&Matrix>,
        weight: &Vec<f64>,
        eps: f32,
        kind: NormKind,
        out: &mut Matrix,
        inv_rms: &mut Vec<f64>,
    ) -> Result<()> {
        const OPERATION: &str = "add_rms_norm";
        check_groups(OPERATION, x, weight, inv_rms)?;
        shape(OPERATION, "out", out, x.rows, x.cols)?;
        if let Some(delta) = delta {
            shape(OPERATION, "delta", delta, x.rows, x.cols)?;
            self.give(delta.values.clone(), Target::Add(&mut *x));
        }
        let (values, saved) = reference::rms_norm(&x.values, weight, f64::from(eps), kind);
        out.values = self.stored(values);
        *inv_rms = saved;
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        d_out: &Matrix,
        x: &Matrix,
        weight: &Vec<f64>,
        kind: NormKind,
        inv_rms: &Vec<f64>,
        d_x: Target<'_, Matrix>,
    ) -> Result<()> {
        const OPERATION: &str = "rms_norm_backward";
        check_groups(OPERATION, x, weight, inv_rms)?;
        shape(OPERATION, "d_out", d_out, x.rows, x.cols)?;
        let (Target::Overwrite(matrix) | Target::Add(matrix)) = &d_x;
        shape(OPERATION, "d_x", matrix, x.rows, x.cols)?;
        self.give(reference::rms_norm_backward(&d_out.values, &x.values, weight, kind, inv_rms), d_x);
        Ok(())
    }

    fn linear(
        &self,
        x: &Matrix,
        weight: &FrozenLinear,
        lora: Option<(&LoraPath<'_, Self>, &mut Vec<f64>)>,
        y: &mut Matrix,
    ) -> Result<()> {
        linear::forward(self, x, weight, lora, y)
    }

    fn linear_backward(
        &self,
        d_y: &Matrix,
        x: &Matrix,
        weight: &FrozenLinear,
        lora: Option<(&LoraPath<'_, Self>, &Vec<f64>, &mut Vec<f64>)>,
        d_x: Option<Target<'_, Matrix>>,
    ) -> Result<()> {
        linear::backward(self, d_y, x, weight, lora, d_x)
    }

    fn rotary(
        &self,
        x: &mut Matrix,
        heads: usize,
        tables: &RotaryTable,
        packing: &Packing,
        direction: Direction,
    ) -> Result<()> {
        length("rotary", "the packing", packing.tokens(), x.rows)?;
        shape("rotary", "x", x, x.rows, heads * 2 * tables.half)?;
        below("rotary", "the packing's positions", &packing.positions, tables.positions())?;
        let RotaryTable { cos, sin, half } = tables;
        let values = reference::rotary(&x.values, heads, cos, sin, *half, &packing.positions, direction);
        x.values = self.stored(values);
        Ok(())
    }

    fn attention(
        &self,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        packing: &Packing,
        shape: &AttentionShape,
        out: &mut Matrix,
        log_sum_exp: &mut Vec<f64>,
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
        log_sum_exp: &Vec<f64>,
        packing: &Packing,
        shape: &AttentionShape,
        d_q: &mut Matrix,
        d_k: &mut Matrix,
        d_v: &mut Matrix,
    ) -> Result<()> {
        attention::backward(self, d_out, q, k, v, out, log_sum_exp, packing, shape, [d_q, d_k, d_v])
    }

    fn gated(&self, gate: &Matrix, up: &Matrix, activation: GatedActivation, out: &mut Matrix) -> Result<()> {
        for (name, matrix) in [("up", up), ("out", &*out)] {
            shape("gated", name, matrix, gate.rows, gate.cols)?;
        }
        out.values = self.stored(reference::gated(&gate.values, &up.values, activation));
        Ok(())
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
        for (name, matrix) in [("d_out", d_out), ("up", up), ("d_gate", &*d_gate), ("d_up", &*d_up)] {
            shape("gated_backward", name, matrix, gate.rows, gate.cols)?;
        }
        let (of_gate, of_up) = reference::gated_backward(&d_out.values, &gate.values, &up.values, activation);
        (d_gate.values, d_up.values) = (self.stored(of_gate), self.stored(of_up));
        Ok(())
    }

    fn add(&self, x: &mut Matrix, y: &Matrix) -> Result<()> {
        shape("add", "y", y, x.rows, x.cols)?;
        self.give(y.values.clone(), Target::Add(x));
        Ok(())
    }

    fn gather_rows(&self, x: &Matrix, rows: &Vec<u32>, out: &mut Matrix) -> Result<()> {
        shape("gather_rows", "out", out, rows.len(), x.cols)?;
        below("gather_rows", "rows", rows, x.rows)?;
        out.values = reference::gather_rows(&x.values, x.cols, rows);
        Ok(())
    }

    fn scatter_rows(&self, d_out: &Matrix, rows: &Vec<u32>, d_x: &mut Matrix) -> Result<()> {
        shape("scatter_rows", "d_out", d_out, rows.len(), d_x.cols)?;
        below("scatter_rows", "rows", rows, d_x.rows)?;
        d_x.values = reference::scatter_rows(&d_out.values, d_x.cols, rows, d_x.rows);
        Ok(())
    }

    fn linear_cross_entropy(
        &self,
        hidden: &Matrix,
        head: &FrozenLinear,
        targets: &Vec<u32>,
        losses: &mut Vec<f64>,
        d_hidden: Option<&mut Matrix>,
    ) -> Result<()> {
        head::cross_entropy(self, hidden, head, targets, losses, d_hidden)
    }

    fn log_probabilities(
        &self,
        hidden: &Matrix,
        head: &FrozenLinear,
        targets: &Vec<u32>,
        out: &mut Vec<f64>,
    ) -> Result<()> {
        head::log_probabilities(hidden, head, targets, out)
    }

    fn logits(&self, hidden: &Matrix, head: &FrozenLinear, out: &mut Vec<f64>) -> Result<()> {
        head::logits(hidden, head, out)
    }

    fn kv_cache(&self, capacity: usize, shape: &AttentionShape) -> Result<Cache> {
        Cache::new(capacity, shape)
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
        attention::cached(self, q, k, v, cache, shape, out)
    }

    fn accumulate_fixed(
        &self,
        gradient: &Vec<f64>,
        bucket: &Bucket<'_>,
        limit_bits: u32,
        sums: &mut Vec<i64>,
        flags: &mut Vec<i64>,
    ) -> Result<()> {
        fixed::accumulate(gradient, bucket, limit_bits, sums, flags)
    }

    fn fixed_to_gradient(
        &self,
        sums: &Vec<i64>,
        bucket: &Bucket<'_>,
        divisor: f64,
        gradient: &mut Vec<f64>,
    ) -> Result<()> {
        fixed::to_gradient(sums, bucket, divisor, gradient)
    }

    fn add_scaled(&self, x: &mut Vec<f64>, scale: f32, y: &Vec<f64>, first: usize) -> Result<()> {
        check::stretch("add_scaled", first, x.len(), y.len())?;
        x.iter_mut().zip(&y[first..]).for_each(|(x, y)| *x += f64::from(scale) * y);
        Ok(())
    }

    fn copy_reals(&self, from: &Vec<f64>, to: &mut Vec<f64>, first: usize) -> Result<()> {
        check::stretch("copy_reals", first, from.len(), to.len())?;
        to[first..first + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn narrow(&self, from: &Vec<f64>, to: &mut Vec<f64>) -> Result<()> {
        length("narrow", "from", from.len(), to.len())?;
        // What is rounded is the f32 of the contract.
        *to = from.iter().map(|&value| Rounding::Bf16.round(f64::from(value as f32))).collect();
        Ok(())
    }

    fn widen(&self, from: &Vec<f64>, to: &mut Vec<f64>, first: usize) -> Result<()> {
        check::stretch("widen", first, from.len(), to.len())?;
        to[first..first + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn max_abs(&self, vector: &Vec<f64>, segments: &[Segment]) -> Result<Vec<f32>> {
        fixed::max_abs(vector, segments)
    }

    fn squared_norm(&self, vector: &Vec<f64>) -> Result<f64> {
        Ok(vector.iter().map(|value| value * value).sum())
    }

    fn adamw(
        &self,
        parameters: &mut Vec<f64>,
        gradient: &Vec<f64>,
        first_moment: &mut Vec<f64>,
        second_moment: &mut Vec<f64>,
        settings: &AdamW,
    ) -> Result<()> {
        fixed::adamw(parameters, gradient, first_moment, second_moment, settings)
    }
}

/// Rows hold whole groups of `weight.len()` elements, and each group has its statistic.
fn check_groups(operation: &'static str, x: &Matrix, weight: &[f64], inv_rms: &[f64]) -> Result<()> {
    let group = weight.len();
    ensure(group > 0 && x.cols.is_multiple_of(group), operation, || {
        format!("rows of {} do not hold whole groups of {group}", x.cols)
    })?;
    length(operation, "inv_rms", inv_rms.len(), x.rows * x.cols / group)
}
