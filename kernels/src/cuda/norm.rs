//! RMSNorm, fused with the residual add, forward and backward.

use super::CudaBackend;
use super::arguments::Grid;
use super::buffers::{Matrix, Vector};
use super::check::{ensure, length, shape};
use super::team::Team;
use crate::contract::{NormKind, Result, Target};

const FILE: &str = "norm";
/// Groups that a team does, one after the other, with the weights in shared memory.
const GROUPS_A_TEAM: usize = 8;
/// Floats of shared memory that the weights take beyond their number.
const WEIGHTS_PADDING: usize = 64;

fn offset(kind: NormKind) -> f32 {
    match kind {
        NormKind::Plain => 0.0,
        NormKind::UnitOffset => 1.0,
    }
}

/// How the groups of a matrix lie on a grid.
struct Groups {
    count: usize,
    /// Elements of a group.
    len: usize,
    team: Team,
}

impl Groups {
    fn new(operation: &'static str, b: &CudaBackend, x: &Matrix, weight: &Vector, inv_rms: &Vector) -> Result<Self> {
        let len = weight.len();
        ensure(len > 0 && x.cols.is_multiple_of(len), operation, || {
            format!("rows of {} do not hold whole groups of {len}", x.cols)
        })?;
        let count = x.rows * x.cols / len;
        length(operation, "inv_rms", inv_rms.len(), count)?;
        Ok(Self { count, len, team: Team::new(len, b.storage()) })
    }

    /// The launch, with shared memory for the weights and for `arrays` groups a team.
    fn grid(&self, b: &CudaBackend, arrays: usize) -> Grid {
        let weights = (self.len + WEIGHTS_PADDING) * size_of::<f32>();
        let staged = arrays * self.team.in_block() * self.len * b.storage().bytes();
        self.team.grid(self.count, GROUPS_A_TEAM).shared((weights + staged) as u32)
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    b: &CudaBackend,
    x: &mut Matrix,
    delta: Option<&Matrix>,
    weight: &Vector,
    eps: f32,
    kind: NormKind,
    out: &mut Matrix,
    inv_rms: &mut Vector,
) -> Result<()> {
    let groups = Groups::new("add_rms_norm", b, x, weight, inv_rms)?;
    shape("add_rms_norm", "out", out, x.rows, x.cols)?;
    if let Some(delta) = delta {
        shape("add_rms_norm", "delta", delta, x.rows, x.cols)?;
    }
    let args = [
        x.into(),
        delta.into(),
        weight.into(),
        offset(kind).into(),
        eps.into(),
        out.into(),
        inv_rms.into(),
        (groups.count as u32).into(),
        (groups.len as u32).into(),
        groups.team.bits.into(),
    ];
    b.launch(FILE, "add_rms_norm", true, groups.grid(b, 1), &args)
}

pub(super) fn backward(
    b: &CudaBackend,
    d_out: &Matrix,
    x: &Matrix,
    weight: &Vector,
    kind: NormKind,
    inv_rms: &Vector,
    d_x: Target<'_, Matrix>,
) -> Result<()> {
    let groups = Groups::new("rms_norm_backward", b, x, weight, inv_rms)?;
    let (d_x, add) = match d_x {
        Target::Overwrite(d_x) => (d_x, 0_u32),
        Target::Add(d_x) => (d_x, 1),
    };
    shape("rms_norm_backward", "d_out", d_out, x.rows, x.cols)?;
    shape("rms_norm_backward", "d_x", d_x, x.rows, x.cols)?;
    let args = [
        d_out.into(),
        x.into(),
        weight.into(),
        offset(kind).into(),
        inv_rms.into(),
        d_x.into(),
        add.into(),
        (groups.count as u32).into(),
        (groups.len as u32).into(),
        groups.team.bits.into(),
    ];
    b.launch(FILE, "rms_norm_backward", true, groups.grid(b, 2), &args)
}
