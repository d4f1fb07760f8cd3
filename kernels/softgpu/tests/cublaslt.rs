//! The stand-in for cuBLASLt, asked through an unchanged cudarc: row-major products as the product uses them.

mod common;

use std::{ffi::c_void, sync::Arc};

use common::on_device;
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{self, cublasLtMatmulDescAttributes_t as Attribute, cudaDataType},
    },
    driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, sys::CUresult},
};
use half::bf16;

/// A row-major product `y [rows, n] = x [rows, k] wᵀ`, `w: [n, k]`, on a column-major library: A = w, transposed; B = x.
struct Problem {
    rows: usize,
    n: usize,
    k: usize,
    /// Elements from a row of x to the next.
    stride: usize,
    input: cudaDataType,
    output: cudaDataType,
    alpha: f32,
    beta: f32,
}

/// Numbers of both signs that f32 holds exactly and bf16 must round.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn to_bytes(values: &[f32], kind: cudaDataType) -> Vec<u8> {
    match kind {
        cudaDataType::CUDA_R_32F => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn from_bytes(bytes: &[u8], kind: cudaDataType) -> Vec<f32> {
    match kind {
        cudaDataType::CUDA_R_32F => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

fn rounded(values: &[f32], kind: cudaDataType) -> Vec<f32> {
    from_bytes(&to_bytes(values, kind), kind)
}

/// A value's address and size, as attributes are given.
fn attribute<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

/// What the device is given.
struct Operands<'a> {
    x: &'a CudaSlice<u8>,
    w: &'a CudaSlice<u8>,
    bias: Option<&'a CudaSlice<u8>>,
    y: &'a CudaSlice<u8>,
}

/// Queues the product with an algorithm of the heuristic's choice.
fn multiply(problem: &Problem, stream: &CudaStream, operands: &Operands<'_>) -> Result<(), CublasError> {
    let Problem { rows, n, k, stride, input, output, .. } = *problem;
    let address = |data: &CudaSlice<u8>| data.device_ptr(stream).0;
    // SAFETY: descriptors live until they are destroyed below; attributes have the sizes that the library wants; the
    // device checks the operands.
    unsafe {
        let handle = result::create_handle()?;
        let operation =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?;
        let set = |name, (value, bytes)| result::set_matmul_desc_attribute(operation, name, value, bytes);
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, attribute(&1_i32))?;
        if let Some(bias) = operands.bias {
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, attribute(&sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS))?;
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, attribute(&address(bias)))?;
        }
        let a = result::create_matrix_layout(input, k as u64, n as u64, k as i64)?;
        let b = result::create_matrix_layout(input, k as u64, rows as u64, stride as i64)?;
        let d = result::create_matrix_layout(output, n as u64, rows as u64, n as i64)?;
        let preference = result::create_matmul_pref()?;
        let algorithm = result::get_matmul_algo_heuristic(handle, operation, a, b, d, d, preference)?.algo;
        let (alpha, beta) = (attribute(&problem.alpha).0, attribute(&problem.beta).0);
        let (w, x, y) = (address(operands.w), address(operands.x), address(operands.y));
        let (w, x, y) = (w as *const c_void, x as *const c_void, y as *mut c_void);
        let (none, queue) = (std::ptr::null_mut(), stream.cu_stream().cast());
        result::matmul(handle, operation, alpha, beta, w, a, x, b, y, d, y, d, &raw const algorithm, none, 0, queue)?;
        result::destroy_matmul_pref(preference)?;
        for layout in [a, b, d] {
            result::destroy_matrix_layout(layout)?;
        }
        result::destroy_matmul_desc(operation)?;
        result::destroy_handle(handle)
    }
}

fn device() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).expect("the software device");
    let stream = context.new_stream().expect("a stream");
    (context, stream)
}

/// Runs a problem and compares it bit by bit with chains of fused multiply-adds, and that with f64.
fn check(problem: &Problem, with_bias: bool) {
    let &Problem { rows, n, k, stride, input, output, alpha, beta } = problem;
    let (_context, stream) = device();
    let (x, w) = (rounded(&numbers(rows * stride, 1), input), rounded(&numbers(n * k, 2), input));
    let (bias, before) = (rounded(&numbers(n, 3), output), rounded(&numbers(rows * n, 4), output));
    let put = |values: &[f32], kind| stream.clone_htod(&to_bytes(values, kind)).expect("a copy");
    let y = put(&before, output);
    let bias_buffer = with_bias.then(|| put(&bias, output));
    let operands = Operands { x: &put(&x, input), w: &put(&w, input), bias: bias_buffer.as_ref(), y: &y };
    multiply(problem, &stream, &operands).expect("a product");
    let got = from_bytes(&stream.clone_dtoh(&y).expect("a copy"), output);
    let (mut difference, mut norm) = (0.0, 0.0);
    for (i, &got) in got.iter().enumerate() {
        let (row, col) = (i / n, i % n);
        let terms = || (0..k).map(|p| (x[row * stride + p], w[col * k + p]));
        let pairs: Vec<(f32, f32)> = terms().collect();
        let chain = |pairs: &[(f32, f32)]| pairs.iter().fold(0.0_f32, |sum, &(x, w)| w.mul_add(x, sum));
        let mut expected = alpha * pairs.chunks(STRETCH).map(chain).fold(0.0, |sum: f32, chain| sum + chain);
        let mut exact = f64::from(alpha) * terms().map(|(x, w)| f64::from(x) * f64::from(w)).sum::<f64>();
        if beta != 0.0 {
            expected += beta * before[i];
            exact += f64::from(beta) * f64::from(before[i]);
        }
        if with_bias {
            expected += bias[col];
            exact += f64::from(bias[col]);
        }
        assert_eq!(got.to_bits(), rounded(&[expected], output)[0].to_bits(), "({row}, {col}): {got} for {expected}");
        difference += (f64::from(got) - exact).powi(2);
        norm += exact.powi(2);
    }
    let tolerance = if output == cudaDataType::CUDA_R_32F { 1e-6 } else { 4e-3 };
    let error = (difference / norm).sqrt();
    assert!(error <= tolerance, "relative error {error}");
}

/// Terms that the library chains before it adds the chain to the sum.
const STRETCH: usize = 512;

const F32: Problem = Problem {
    rows: 37,
    n: 50,
    k: 300,
    stride: 300,
    input: cudaDataType::CUDA_R_32F,
    output: cudaDataType::CUDA_R_32F,
    alpha: 1.0,
    beta: 0.0,
};
const BF16: Problem = Problem { input: cudaDataType::CUDA_R_16BF, output: cudaDataType::CUDA_R_16BF, ..F32 };

#[test]
fn products_are_what_they_should_be() {
    on_device("products_are_what_they_should_be", &[], || {
        check(&F32, false);
        check(&F32, true);
        check(&Problem { rows: 1, n: 1, k: 1, stride: 1, ..F32 }, false);
        check(&Problem { rows: 257, n: 129, k: 1100, stride: 1200, alpha: 0.5, beta: 1.0, ..F32 }, true);
        check(&BF16, false);
        check(&Problem { rows: 130, n: 250, beta: 1.0, ..BF16 }, true);
        check(&Problem { output: cudaDataType::CUDA_R_32F, beta: 1.0, ..BF16 }, false);
    });
}

#[test]
fn a_product_that_reaches_outside_is_a_fault() {
    let errors = on_device("a_product_that_reaches_outside_is_a_fault", &[], || {
        let (_context, stream) = device();
        let bytes = |count| stream.alloc_zeros::<u8>(count).expect("memory");
        let (x, w, y) = (bytes(37 * 300 * 4 - 4), bytes(50 * 300 * 4), bytes(37 * 50 * 4));
        multiply(&F32, &stream, &Operands { x: &x, w: &w, bias: None, y: &y }).expect("it is queued");
        assert_eq!(stream.synchronize(), Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
    });
    assert!(errors.contains("not within one allocation"), "{errors}");
}

#[test]
fn what_is_not_there_is_refused() {
    on_device("what_is_not_there_is_refused", &[], || {
        let missing = Some(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        let tf32 = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32;
        assert_eq!(result::create_matmul_desc(tf32, cudaDataType::CUDA_R_32F).err(), missing);
        assert_eq!(result::create_matrix_layout(cudaDataType::CUDA_R_64F, 1, 1, 1).err(), missing);
        let f32 = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F);
        let operation = result::create_matmul_desc(f32.0, f32.1).expect("a descriptor");
        let relu = attribute(&sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU);
        // SAFETY: the descriptor lives, and the attribute has its size.
        let set = unsafe {
            let name = Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE;
            result::set_matmul_desc_attribute(operation, name, relu.0, relu.1)
        };
        assert_eq!(set.err(), missing);
    });
}
