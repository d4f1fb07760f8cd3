//! The output head.

use super::ReferenceBackend;
use super::buffers::{FrozenLinear, Matrix};
use crate::check::{below, length, shape};
use crate::contract::Result;
use crate::reference;

fn check_targets(
    operation: &'static str,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &[u32],
    out: usize,
) -> Result<()> {
    shape(operation, "hidden", hidden, hidden.rows, head.inp())?;
    length(operation, "targets", targets.len(), hidden.rows)?;
    length(operation, "the result", out, hidden.rows)?;
    below(operation, "targets", targets, head.out())
}

pub(super) fn cross_entropy(
    b: &ReferenceBackend,
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &[u32],
    losses: &mut Vec<f64>,
    d_hidden: Option<&mut Matrix>,
) -> Result<()> {
    const OPERATION: &str = "linear_cross_entropy";
    check_targets(OPERATION, hidden, head, targets, losses.len())?;
    if let Some(d_hidden) = &d_hidden {
        shape(OPERATION, "d_hidden", d_hidden, hidden.rows, hidden.cols)?;
    }
    let (weight, bias) = (&head.weight.values, head.bias.as_deref());
    let (values, gradient) = reference::cross_entropy(&hidden.values, weight, head.out(), bias, targets);
    *losses = values;
    if let Some(d_hidden) = d_hidden {
        d_hidden.values = b.stored(gradient);
    }
    Ok(())
}

pub(super) fn log_probabilities(
    hidden: &Matrix,
    head: &FrozenLinear,
    targets: &[u32],
    out: &mut Vec<f64>,
) -> Result<()> {
    check_targets("log_probabilities", hidden, head, targets, out.len())?;
    let (weight, bias) = (&head.weight.values, head.bias.as_deref());
    *out = reference::log_probabilities(&hidden.values, weight, head.out(), bias, targets);
    Ok(())
}

pub(super) fn logits(hidden: &Matrix, head: &FrozenLinear, out: &mut Vec<f64>) -> Result<()> {
    shape("logits", "hidden", hidden, hidden.rows, head.inp())?;
    length("logits", "out", out.len(), hidden.rows * head.out())?;
    let (weight, bias) = (&head.weight.values, head.bias.as_deref());
    *out = reference::logits(&hidden.values, hidden.rows, weight, head.out(), bias);
    Ok(())
}
