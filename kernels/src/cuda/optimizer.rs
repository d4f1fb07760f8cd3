//! AdamW and sums of gradients: one launch over the flat vector.

use super::buffers::{HalfVector, Vector};
use super::check::{self, length};
use super::{Arg, CudaBackend, Grid};
use crate::adamw::Factors;
use crate::contract::{AdamW, Result};

/// Threads of a block of optimizer.cu.
const THREADS: u32 = 256;

pub(super) fn adamw(
    b: &CudaBackend,
    parameters: &mut Vector,
    gradient: &Vector,
    first: &mut Vector,
    second: &mut Vector,
    settings: &AdamW,
) -> Result<()> {
    let len = parameters.len();
    check::adamw(settings, len, gradient.len(), first.len(), second.len())?;
    let Factors { decay, beta1, beta2, step_size, root_correction, epsilon, gradient_scale } = Factors::new(settings);
    let args = [
        parameters.into(),
        gradient.into(),
        first.into(),
        second.into(),
        (len as u64).into(),
        decay.into(),
        beta1.into(),
        beta2.into(),
        step_size.into(),
        root_correction.into(),
        epsilon.into(),
        gradient_scale.into(),
    ];
    b.launch("optimizer", "adamw", false, Grid::elements(len, THREADS), &args)
}

pub(super) fn add_scaled(b: &CudaBackend, x: &mut Vector, scale: f32, y: &Vector, first: usize) -> Result<()> {
    check::stretch("add_scaled", first, x.len(), y.len())?;
    let len = x.len();
    let args = [x.into(), scale.into(), Arg::Ptr(y.at(first)), (len as u64).into()];
    b.launch("optimizer", "add_scaled", false, Grid::elements(len, THREADS), &args)
}

pub(super) fn copy(b: &CudaBackend, from: &Vector, to: &mut Vector, first: usize) -> Result<()> {
    check::stretch("copy_reals", first, from.len(), to.len())?;
    b.device().copy(to.at(first), from.buffer.ptr(), from.len() * size_of::<f32>())
}

pub(super) fn narrow(b: &CudaBackend, from: &Vector, to: &mut HalfVector) -> Result<()> {
    length("narrow", "from", from.len(), to.len)?;
    let args = [from.into(), to.into(), (from.len() as u64).into()];
    b.launch("optimizer", "narrow_sums", false, Grid::elements(from.len(), THREADS), &args)
}

pub(super) fn widen(b: &CudaBackend, from: &HalfVector, to: &mut Vector, first: usize) -> Result<()> {
    check::stretch("widen", first, from.len, to.len())?;
    let args = [from.into(), Arg::Ptr(to.at(first)), (from.len as u64).into()];
    b.launch("optimizer", "widen_sums", false, Grid::elements(from.len, THREADS), &args)
}
