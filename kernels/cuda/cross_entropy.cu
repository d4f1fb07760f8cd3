// Cross-entropy of a chunk of rows of logits, and its gradient.
//
//   out[n]      = sign * (log(sum_i exp(l[n, i])) - l[n, target[n]])          a loss, or (sign -1) a log-probability
//   d_logits[n] = softmax(l[n]) - one_hot(target[n])                          when wanted; may be the logits themselves
//
// Floor: logits f32 read once, the gradient written once in the storage type; a few FLOPs and two exponentials an
// element. The gradient needs the logits a second time, when their sum is known. As many as fit wait for that in shared
// memory (40 thousand on compute capability 8.0, 57 thousand on 9.0); the rest of a longer row is read again.
//
// One block a row. The maximum and the sum of exponentials are found in one pass by rescaling (Milakov and Gimelshein,
// 1805.02867).

#include "quads.cuh"

constexpr u32 THREADS = 1024;

// The sum of exponentials so far, relative to the largest logit so far.
struct Normalizer {
    float top = -INFINITY, sum = 0.0f;

    __device__ __forceinline__ void add(const float (&logit)[4], u32 count) {
        float largest = logit[0];
#pragma unroll
        for (u32 i = 1; i < 4; ++i) largest = i < count ? Max()(largest, logit[i]) : largest;
        if (largest > top) {
            sum *= expf(top - largest);
            top = largest;
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) sum += i < count ? expf(logit[i] - top) : 0.0f;
    }

    // That of all threads of the block, in each of them.
    __device__ __forceinline__ void combine() {
        const float mine = top;
        top = block_max<THREADS>(mine);
        sum = block_sum<THREADS>(sum * expf(mine - top));
    }
};

// The first `kept` logits of a row, a multiple of 4, as head.rs sizes it. Each thread reads what it wrote.
extern __shared__ float4 kept_logits[];

template <typename T>
__device__ __forceinline__ void cross_entropy(const float *logits, const u32 *targets, float *out, T *d_logits,
                                              u32 vocab, float sign, u32 kept) {
    const u32 row = blockIdx.x, target = targets[row];
    const Operand<const float> from(logits, gridDim.x, vocab);
    const float target_logit = logits[u64(row) * vocab + target];
    Normalizer normalizer;
    for (u32 i = 4 * threadIdx.x; i < vocab; i += 4 * THREADS) {
        const float4 q = from.quad(row, i);
        if (i < kept) kept_logits[i / 4] = q;
        normalizer.add({q.x, q.y, q.z, q.w}, min(vocab - i, 4u));
    }
    normalizer.combine();
    const float top = normalizer.top;
    if (threadIdx.x == 0) {
        // A small loss is the difference of large numbers: rounded once.
        out[row] = sign * float(double(top) - double(target_logit) + double(logf(normalizer.sum)));
    }
    if (d_logits == nullptr) return;
    const Operand<T> to(d_logits, gridDim.x, vocab);
    const float factor = 1.0f / normalizer.sum;
    for (u32 i = 4 * threadIdx.x; i < vocab; i += 4 * THREADS) {
        const float4 q = i < kept ? kept_logits[i / 4] : from.quad(row, i);
        const float logit[4] = {q.x, q.y, q.z, q.w};
        float d[4];
#pragma unroll
        for (u32 j = 0; j < 4; ++j) d[j] = expf(logit[j] - top) * factor - (i + j == target ? 1.0f : 0.0f);
        to.put(row, i, make_float4(d[0], d[1], d[2], d[3]));
    }
}

#define CROSS_ENTROPY(T, SUFFIX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy##SUFFIX(                                       \
        const float *logits, const u32 *targets, float *out, T *d_logits, u32 vocab, float sign, u32 kept) {           \
        cross_entropy(logits, targets, out, d_logits, vocab, sign, kept);                                              \
    }

FOR_EACH_STORAGE(CROSS_ENTROPY)
