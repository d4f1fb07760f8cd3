// Attention of the newest tokens of one sequence to all tokens up to themselves, whose keys and values a cache holds
// (theirs included): prompts in chunks, and decoding token by token.
//
// The programs are those of attention.cu; only the places differ: query i is row i, at position `before + i`.
//
// Floor: the cache's keys and values once for each head that reads them (2 * size * n D bytes for n tokens), 4 n D
// FLOPs a query and head: memory-bound for few queries.
//
// sass: attention_cached_[0-9]*_bf16 HMMA LDSM LDGSTS
#include "attention_forward.cuh"
#include "attention_plain.cuh"

// Grid: [ceil(queries / 64), heads] blocks.
#define TENSOR_CACHED(D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(FORWARD_THREADS)                                                     \
        attention_cached_##D##_bf16(const bf16 *q, const bf16 *keys, const bf16 *values, u32 before, u32 queries,     \
                                    u32 heads, u32 kv_heads, u32 window, float scale, bf16 *out) {                    \
        const u32 first = blockIdx.x * FORWARD_QUERIES;                                                               \
        attend<D>(q, keys, values, {first, 0, before + first, min(FORWARD_QUERIES, queries - first)}, blockIdx.y,     \
                  {heads, kv_heads, window, scale}, out, nullptr);                                                    \
    }
TENSOR_CACHED(64)
TENSOR_CACHED(96)
TENSOR_CACHED(128)
TENSOR_CACHED(256)

// Grid: [ceil(queries / 16), heads] blocks.
#define PLAIN_CACHED(T, SUFFIX)                                                                                       \
    extern "C" __global__ void __launch_bounds__(PLAIN_THREADS, 1)                                                    \
        attention_cached_plain##SUFFIX(const T *q, const T *keys, const T *values, u32 before, u32 queries, u32 heads, \
                                       u32 kv_heads, u32 window, float scale, u32 channels, T *out) {                 \
        const u32 first = blockIdx.x * SIDE;                                                                          \
        attend_plainly(q, keys, values, {first, 0, before + first, min(SIDE, queries - first)}, blockIdx.y,           \
                       {heads, kv_heads, window, scale}, channels, out, nullptr);                                     \
    }
FOR_EACH_STORAGE(PLAIN_CACHED)
