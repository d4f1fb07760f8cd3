// The kernels of llm.c that `make traffic` sets beside ours, from its own headers in LLMC_DIR (the include path): this file
// names the instances of its templates and stands in for the library that its launchers call. Only the device's half of
// what is compiled here is used.
#define CUBLAS_COMMON_H // cuBLASLt's products are not part of the comparison.

#include <cuda_runtime.h>
// llm.c was written for a CUDA where this took the number of a device.
inline cudaError_t cudaMemAdvise(void *, size_t, cudaMemoryAdvise, int) { return cudaErrorNotSupported; }

#include "llmc/cuda_common.h"

cudaDeviceProp deviceProp;
template <typename... Arguments> void matmul_cublaslt(Arguments...) {}

#include "llmc/adamw.cuh"
#include "llmc/attention.cuh"
#include "llmc/encoder.cuh"
#include "llmc/fused_classifier.cuh"
#include "llmc/gelu.cuh"
#include "llmc/global_norm.cuh"
#include "llmc/layernorm.cuh"

template __global__ void adamw_kernel3<float, float>(float *, float *, float *, float *, float *, size_t, ptrdiff_t,
                                                     ptrdiff_t, ptrdiff_t, float, float, float, float, float, float,
                                                     float, float, unsigned int);
template __global__ void fused_classifier_kernel5<true, false>(floatX *, float *, floatX *, const float, const int *,
                                                               int, int, int, int, std::bool_constant<true>);
template __global__ void global_norm_squared_kernel<float>(float *, const float *, size_t, ptrdiff_t);
template __global__ void global_sum_single_block_kernel<float>(float *, const float *, size_t);
