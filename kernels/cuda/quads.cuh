// Rows of any width, read and written four neighbouring elements at a time.
#pragma once

#include "common.cuh"

__device__ __forceinline__ float4 load_quad(const float *from) { return *reinterpret_cast<const float4 *>(from); }
__device__ __forceinline__ float4 load_quad(const bf16 *from) {
    const uint2 raw = *reinterpret_cast<const uint2 *>(from);
    return make_float4(low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y));
}
__device__ __forceinline__ void store_quad(float *to, float4 q) { *reinterpret_cast<float4 *>(to) = q; }
__device__ __forceinline__ void store_quad(bf16 *to, float4 q) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(narrow_pair(q.x, q.y), narrow_pair(q.z, q.w));
}

// A row-major matrix, read four neighbours at a time; zero outside.
template <typename T> struct Operand {
    T *data;
    u32 rows, cols;
    bool aligned; // Quads are single accesses.

    __device__ __forceinline__ Operand(T *data, u32 rows, u32 cols)
        : data(data), rows(rows), cols(cols),
          aligned(cols % 4 == 0 && reinterpret_cast<u64>(data) % (4 * sizeof(T)) == 0) {}

    __device__ __forceinline__ float4 quad(u32 row, u32 col) const {
        if (row >= rows || col >= cols) return make_float4(0, 0, 0, 0);
        const T *from = data + u64(row) * cols + col;
        if (aligned) return load_quad(from);
        const u32 left = cols - col;
        return make_float4(widen(from[0]), left > 1 ? widen(from[1]) : 0.0f, left > 2 ? widen(from[2]) : 0.0f,
                           left > 3 ? widen(from[3]) : 0.0f);
    }

    // Elements outside are dropped.
    __device__ __forceinline__ void put(u32 row, u32 col, float4 q) const {
        if (row >= rows || col >= cols) return;
        T *to = data + u64(row) * cols + col;
        if (aligned) return store_quad(to, q);
        const u32 left = cols - col;
        to[0] = narrow<T>(q.x);
        if (left > 1) to[1] = narrow<T>(q.y);
        if (left > 2) to[2] = narrow<T>(q.z);
        if (left > 3) to[3] = narrow<T>(q.w);
    }
};
