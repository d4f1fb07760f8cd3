// What is done to one flat vector that holds every adapter, so that no list of tensors is needed. A thread an element.
//
//   adamw         AdamW (Loshchilov and Hutter, 1711.05101)   16 bytes read, 12 written; in f64, each state rounded once
//   add_scaled    x += scale * y                              8 bytes read, 4 written; product and sum rounded each
//   narrow_sums   f32 to bf16, for the wire                   4 bytes read, 2 written; to nearest, ties to even
//   widen_sums    and back                                    2 bytes read, 4 written; exact
//
// No multiplication is fused with an addition, so the bits are those of the CPU backend.

#include "common.cuh"

constexpr u32 THREADS = 256;

// step_size = learning_rate / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t), decay = 1 - learning_rate *
// weight_decay.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(float *parameters, const float *gradient, float *first, float *second, u64 len, double decay, double beta1,
          double beta2, double step_size, double root_correction, double epsilon, double gradient_scale) {
    const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= len) return;
    const double g = __dmul_rn(gradient[i], gradient_scale);
    const double m = __dadd_rn(__dmul_rn(beta1, first[i]), __dmul_rn(1.0 - beta1, g));
    const double v = __dadd_rn(__dmul_rn(beta2, second[i]), __dmul_rn(__dmul_rn(1.0 - beta2, g), g));
    const double denominator = __dadd_rn(__dmul_rn(__dsqrt_rn(v), root_correction), epsilon);
    const double step = __ddiv_rn(__dmul_rn(step_size, m), denominator);
    first[i] = __double2float_rn(m);
    second[i] = __double2float_rn(v);
    parameters[i] = __double2float_rn(__dsub_rn(__dmul_rn(parameters[i], decay), step));
}

extern "C" __global__ void __launch_bounds__(THREADS) add_scaled(float *x, float scale, const float *y, u64 len) {
    const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < len) x[i] = __fadd_rn(x[i], __fmul_rn(scale, y[i]));
}

extern "C" __global__ void __launch_bounds__(THREADS) narrow_sums(const float *from, bf16 *to, u64 len) {
    const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < len) to[i] = narrow<bf16>(from[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) widen_sums(const bf16 *from, float *to, u64 len) {
    const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < len) to[i] = widen(from[i]);
}
