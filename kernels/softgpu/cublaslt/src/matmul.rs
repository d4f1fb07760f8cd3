//! `cublasLtMatmul`: checks the request and queues the product.

use std::ffi::c_void;

use crate::{
    abi::{Handle, Refusal, Status, status},
    descriptors::{HANDLES, LAYOUTS, Layout, OPERATIONS, Operation},
    driver::driver,
    elements::Kind,
    heuristic::Algorithm,
    product::{Matrix, Product, Scratch},
};

/// Workspaces must be multiples of this.
const WORKSPACE_ALIGNMENT: u64 = 256;

/// Sizes of a product: D is m x n, and k is summed over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shapes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batches: usize,
}

/// The sizes that the layouts of A, B, C, D agree on.
pub(crate) fn shapes(operation: &Operation, layouts: &[Layout; 4]) -> Result<Shapes, Refusal> {
    let [a, b, c, d] = layouts;
    let (m, k) = if operation.transpose_a { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let (depth, n) = if operation.transpose_b { (b.cols, b.rows) } else { (b.rows, b.cols) };
    let result = (m, n, d.kind, d.batches);
    let dense = layouts.iter().all(|l| l.rows > 0 && l.cols > 0 && l.batches > 0 && l.leading >= l.rows as i64);
    let agree = depth == k && [c, d].iter().all(|l| (l.rows, l.cols, l.kind, l.batches) == result);
    if !dense || !agree || a.batches != d.batches || b.batches != d.batches {
        return Err(Refusal::InvalidValue);
    }
    let types = a.kind == b.kind && (d.kind == a.kind || d.kind == Kind::F32);
    let bias = operation.bias_kind.is_none_or(|kind| kind == d.kind);
    if !types || !bias {
        return Err(Refusal::NotSupported);
    }
    let size = |n: u64| usize::try_from(n).map_err(|_| Refusal::InvalidValue);
    Ok(Shapes { m: size(m)?, n: size(n)?, k: size(k)?, batches: d.batches as usize })
}

/// A matrix in device memory whose address fits the algorithm.
fn matrix(address: u64, layout: &Layout, alignment: u32) -> Result<Matrix, Refusal> {
    let aligned =
        address.is_multiple_of(u64::from(alignment.max(1))) && address.is_multiple_of(layout.kind.bytes() as u64);
    if address == 0 || !aligned {
        return Err(Refusal::InvalidValue);
    }
    let Layout { kind, rows, cols, leading, stride, .. } = *layout;
    Ok(Matrix { address, kind, rows: rows as usize, cols: cols as usize, leading: leading as usize, stride })
}

/// # Safety
/// `place` is null or holds a host f32.
unsafe fn scale(place: *const c_void) -> Result<f32, Refusal> {
    // SAFETY: the caller's promise.
    unsafe { place.cast::<f32>().as_ref() }.copied().ok_or(Refusal::InvalidValue)
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the library's own signature")]
unsafe extern "C" fn cublasLtMatmul(
    handle: Handle,
    operation: Handle,
    alpha: *const c_void,
    a: u64,
    a_layout: Handle,
    b: u64,
    b_layout: Handle,
    beta: *const c_void,
    c: u64,
    c_layout: Handle,
    d: u64,
    d_layout: Handle,
    algorithm: *const Algorithm,
    workspace: u64,
    workspace_bytes: usize,
    stream: usize,
) -> Status {
    let multiply = || {
        HANDLES.get(handle)?;
        let operation = OPERATIONS.get(operation)?;
        let layouts = [a_layout, b_layout, c_layout, d_layout];
        let [a_layout, b_layout, c_layout, d_layout] = layouts.map(|layout| LAYOUTS.get(layout));
        let layouts = [a_layout?, b_layout?, c_layout?, d_layout?];
        let shapes = shapes(&operation, &layouts)?;
        // SAFETY: scale factors are in host memory: the device's pointer modes are refused.
        let (alpha, beta) = unsafe { (scale(alpha)?, scale(beta)?) };
        // SAFETY: null, or an algorithm of this library.
        let chosen = unsafe { algorithm.as_ref() };
        if let Some(algorithm) = chosen {
            algorithm.check(&operation, layouts.map(|layout| layout.kind))?;
        }
        let needed = chosen.map_or(0, |algorithm| algorithm.workspace as usize);
        if workspace_bytes < needed || !workspace.is_multiple_of(WORKSPACE_ALIGNMENT) {
            return Err(Refusal::InvalidValue);
        }
        let alignments = chosen.map_or([1; 4], |algorithm| algorithm.alignments);
        let product = Product {
            shapes,
            alpha,
            beta,
            transpose_a: operation.transpose_a,
            transpose_b: operation.transpose_b,
            a: matrix(a, &layouts[0], alignments[0])?,
            b: matrix(b, &layouts[1], alignments[1])?,
            c: if beta == 0.0 { None } else { Some(matrix(c, &layouts[2], alignments[2])?) },
            d: matrix(d, &layouts[3], alignments[3])?,
            bias: operation.with_bias.then_some((operation.bias, operation.bias_stride)),
            workspace: Scratch { address: workspace, bytes: needed },
        };
        let driver = driver().ok_or(Refusal::NotInitialized)?;
        driver.queue(stream, move || product.run(driver)).map_err(|_| Refusal::ExecutionFailed)
    };
    status(multiply())
}
