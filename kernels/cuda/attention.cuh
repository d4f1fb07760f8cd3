// What the attention kernels share: which rows a block works on, who sees whom, exponentials.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;
constexpr float MINUS_INFINITY = -__builtin_inff();

// An attention layer. `window` is the number of tokens that a token sees, itself included; NO_WINDOW when all.
struct Shape {
    u32 heads, kv_heads, window;
    float scale;

    __device__ __forceinline__ u32 kv_of(u32 head) const { return head / (heads / kv_heads); }
};
constexpr u32 NO_WINDOW = 0x7fffffffu;

// Causal and within the window, in one comparison: for a later key the difference wraps round to above NO_WINDOW.
__device__ __forceinline__ bool visible(u32 query, u32 key, u32 window) { return query - key < window; }

// Do `queries` queries from `query` on all see `keys` keys from `key` on? Then no score needs a mask.
__device__ __forceinline__ bool all_visible(u32 query, u32 queries, u32 key, u32 keys, u32 window) {
    return key + keys - 1 <= query && query + queries - 1 - key < window;
}

// The first key that a query sees.
__device__ __forceinline__ u32 first_visible(u32 query, u32 window) {
    return query + 1 > window ? query + 1 - window : 0;
}

// 2^x in one instruction, to 2 units in the last place of f32; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A stretch of one packed sequence, in rows of that sequence: `first ..` of `length`, `start` being its first row in
// the packed matrices.
struct Tile {
    u32 start, length, first;

    __device__ __forceinline__ bool empty() const { return first >= length; }
    __device__ __forceinline__ size_t row() const { return static_cast<size_t>(start) + first; }
    __device__ __forceinline__ u32 rows(u32 most) const { return min(most, length - first); }
};

// Tile `index` of a packing cut into tiles of ROWS rows that never cross sequences. The tiles of sequence s start at
// number bounds[s] / ROWS + s: at least its own ceil(length / ROWS) tiles fit before the next sequence's, zero-length
// sequences included, so a grid of T / ROWS + S blocks covers all, and at most S of them find their tile empty.
template <u32 ROWS> __device__ __forceinline__ Tile find_tile(const u32 *bounds, u32 sequences, u32 index) {
    u32 low = 0, high = sequences;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (bounds[middle] / ROWS + middle <= index) low = middle;
        else high = middle;
    }
    const u32 start = bounds[low], length = bounds[low + 1] - start;
    return {start, length, (index - (start / ROWS + low)) * ROWS};
}

// Where a tile of queries and its keys lie, packed or in a cache.
struct Queries {
    size_t row;     // Of the first query, in q and out.
    size_t key_row; // Of the sequence's first key, in k and v.
    u32 position;   // Of the first query in the sequence.
    u32 count;      // At least 1.
};
