// Causal attention over packed sequences, forward: grouped key heads, optional sliding window.
//
// The equations and the order of work stand in attention_forward.cuh (tensor cores) and attention_plain.cuh (f32).
//
// Floor, for T tokens of which a query sees n on average, H heads of D channels: 4 T H n D FLOPs; bytes: q and out
// once, (2 T H D) * size; k and v once per tile of queries and head that sees them, of which L2 serves all but the
// first.
//
// sass: attention_[0-9]*_bf16 HMMA LDSM LDGSTS
#include "attention_forward.cuh"
#include "attention_plain.cuh"

// Grid: [T / 64 + sequences, heads] blocks. The last tiles of a sequence see the most keys and go first.
#define TENSOR_FORWARD(D)                                                                                             \
    extern "C" __global__ void __launch_bounds__(FORWARD_THREADS)                                                     \
        attention_##D##_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const u32 *bounds, u32 sequences, u32 heads, \
                             u32 kv_heads, u32 window, float scale, bf16 *out, float *log_sum_exp) {                  \
        const Tile tile = find_tile<FORWARD_QUERIES>(bounds, sequences, gridDim.x - 1 - blockIdx.x);                  \
        if (tile.empty()) return;                                                                                     \
        const Queries queries{tile.row(), tile.start, tile.first, tile.rows(FORWARD_QUERIES)};                        \
        attend<D>(q, k, v, queries, blockIdx.y, {heads, kv_heads, window, scale}, out, log_sum_exp);                  \
    }
TENSOR_FORWARD(64)
TENSOR_FORWARD(96)
TENSOR_FORWARD(128)
TENSOR_FORWARD(256)

// Grid: [T / 16 + sequences, heads] blocks.
#define PLAIN_FORWARD(T, SUFFIX)                                                                                      \
    extern "C" __global__ void __launch_bounds__(PLAIN_THREADS, 1)                                                    \
        attention_plain##SUFFIX(const T *q, const T *k, const T *v, const u32 *bounds, u32 sequences, u32 heads,      \
                                u32 kv_heads, u32 window, float scale, u32 channels, T *out, float *log_sum_exp) {    \
        const Tile tile = find_tile<SIDE>(bounds, sequences, gridDim.x - 1 - blockIdx.x);                             \
        if (tile.empty()) return;                                                                                     \
        const Queries queries{tile.row(), tile.start, tile.first, tile.rows(SIDE)};                                   \
        attend_plainly(q, k, v, queries, blockIdx.y, {heads, kv_heads, window, scale}, channels, out, log_sum_exp);   \
    }
FOR_EACH_STORAGE(PLAIN_FORWARD)
