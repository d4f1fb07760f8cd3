// Tensor-core building blocks: asynchronous copies into swizzled shared tiles, fragments, products of a warp.
//
// A shared tile holds rows of D bf16, cut into chunks of 16 bytes. Chunk `c` of row `r` lies at place `c ^ twist(r)` of
// its row, so that the eight rows that one phase of ldmatrix reads at one chunk meet all 32 banks: no conflicts, and no
// padding.
//
// Fragments of mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), of lane l, with g = l / 4, t = l % 4:
//     A (16 x 16)  a0: row g, columns 2t, 2t + 1     a1: row g + 8     a2: columns + 8     a3: both
//     B (16 x 8)   b0: rows 2t, 2t + 1, column g     b1: rows + 8
//     C (16 x 8)   c0, c1: row g, columns 2t, 2t + 1     c2, c3: row g + 8
// Two neighbouring C tiles, rounded to bf16, are one A fragment: products chain without leaving registers.
#pragma once

#include "common.cuh"

// The address of shared memory, as the instructions below take it.
__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// ---- asynchronous copies -------------------------------------------------------------------------------------------

// Copies 16 bytes to shared memory; zeros when not `inside` (nothing is read then).
__device__ __forceinline__ void copy_16(u32 to, const void *from, bool inside) {
    const u32 bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Likewise 8 bytes.
__device__ __forceinline__ void copy_8(u32 to, const void *from, bool inside) {
    const u32 bytes = inside ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// All copies that this thread has started are done after it; a barrier then shows them to the other threads.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- shared tiles --------------------------------------------------------------------------------------------------

constexpr u32 CHUNK = 8; // bf16 in 16 bytes.

template <u32 D> constexpr __host__ __device__ u32 tile_bytes(u32 rows) { return rows * D * 2; }

// Rows of a multiple of 128 bytes all start at bank 0: eight rows need eight places. Rows of an odd multiple of 64
// bytes (D = 96) start at banks 0 and 16 in turn: four places for each pair of rows.
template <u32 D> constexpr u32 PLACES = D % 64 == 0 ? 8 : 4;

template <u32 D> __device__ __forceinline__ u32 twist(u32 row) {
    static_assert(D % 32 == 0, "a row holds whole groups of four chunks");
    return row / (8 / PLACES<D>) % PLACES<D>;
}

// Offset of a chunk, in bytes.
template <u32 D> __device__ __forceinline__ u32 chunk_offset(u32 row, u32 chunk) {
    return (row * (D / CHUNK) + (chunk ^ twist<D>(row))) * 16;
}

// The same for chunk `column / 8 + odd` with `column` a multiple of 16 known to the compiler and `odd` 0 or 1. It is
// written so that all columns share PLACES / 2 computed addresses and differ in constants.
template <u32 D> __device__ __forceinline__ u32 fragment_offset(u32 row, u32 column, u32 odd) {
    const u32 chunk = column / CHUNK, group = chunk / PLACES<D>;
    return row * D * 2 + group * PLACES<D> * 16 + (chunk % PLACES<D> ^ odd ^ twist<D>(row)) * 16;
}

// Starts the copy of ROWS rows, `stride` elements apart, by THREADS threads. Rows from `rows` on become zero.
template <u32 D, u32 ROWS, u32 THREADS>
__device__ __forceinline__ void copy_tile(u32 tile, const bf16 *from, u32 stride, u32 rows) {
    constexpr u32 CHUNKS = D / CHUNK;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies equally often");
#pragma unroll
    for (u32 step = 0; step < ROWS * CHUNKS / THREADS; ++step) {
        const u32 i = threadIdx.x + step * THREADS, row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = row < rows;
        const bf16 *source = from + (inside ? static_cast<size_t>(row) * stride + chunk * CHUNK : 0);
        copy_16(tile + chunk_offset<D>(row, chunk), source, inside);
    }
}

// ---- fragments -----------------------------------------------------------------------------------------------------

using Fragment = u32[4];  // A, 16 x 16; or B, two of 16 x 8 side by side.
using Sums = float[4];    // C, 16 x 8.

__device__ __forceinline__ void load_matrices(Fragment &to, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_matrices_transposed(Fragment &to, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

// A = X[row .. row + 16][column .. column + 16].
template <u32 D> __device__ __forceinline__ void load_a(Fragment &to, u32 x, u32 row, u32 column) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(to, x + fragment_offset<D>(row + lane % 16, column, lane / 16));
}

// B = Yᵀ of Y[row .. row + 16][column .. column + 16]: for X Yᵀ, with the rows of Y as columns of the result.
template <u32 D> __device__ __forceinline__ void load_b_of_rows(Fragment &to, u32 y, u32 row, u32 column) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(to, y + fragment_offset<D>(row + lane % 8 + lane / 16 * 8, column, lane / 8 % 2));
}

// B = Y[row .. row + 16][column .. column + 16]: for W Y.
template <u32 D> __device__ __forceinline__ void load_b(Fragment &to, u32 y, u32 row, u32 column) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices_transposed(to, y + fragment_offset<D>(row + lane % 16, column, lane / 16));
}

// C += A B.
__device__ __forceinline__ void mma(Sums &c, const Fragment &a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Row and column, within a warp's 16 rows, of element `i` of C tile `n`.
__device__ __forceinline__ u32 sum_row(u32 i) { return threadIdx.x % WARP / 4 + i / 2 * 8; }
__device__ __forceinline__ u32 sum_column(u32 n, u32 i) { return n * 8 + threadIdx.x % 4 * 2 + i % 2; }

// ---- products of a warp --------------------------------------------------------------------------------------------

template <u32 N> __device__ __forceinline__ void clear(Sums (&sums)[N]) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
}

// `sums += A Yᵀ` over 16 columns: A = X[16 rows][column .. column + 16], Y has 8 N rows.
template <u32 D, u32 N>
__device__ __forceinline__ void multiply_slice(Sums (&sums)[N], const Fragment &a, u32 y, u32 column) {
#pragma unroll
    for (u32 n = 0; n < N; n += 2) {
        Fragment b;
        load_b_of_rows<D>(b, y, n * 8, column);
        mma(sums[n], a, b[0], b[1]);
        mma(sums[n + 1], a, b[2], b[3]);
    }
}

// `sums = X Yᵀ`: 16 rows of X from `row` on, 8 N rows of Y.
template <u32 D, u32 N>
__device__ __forceinline__ void multiply_transposed(Sums (&sums)[N], u32 x, u32 row, u32 y) {
    clear(sums);
#pragma unroll
    for (u32 column = 0; column < D; column += 16) {
        Fragment a;
        load_a<D>(a, x, row, column);
        multiply_slice<D>(sums, a, y, column);
    }
}

// `out += W Y[.., column .. column + 8 N]`: W is 16 x 8 K, the sums of an earlier product; Y has 8 K rows.
template <u32 D, u32 N, u32 K>
__device__ __forceinline__ void multiply_add(Sums (&out)[N], const Sums (&w)[K], u32 y, u32 column) {
#pragma unroll
    for (u32 k = 0; k < K; k += 2) {
        const Sums &left = w[k], &right = w[k + 1];
        const Fragment a = {narrow_pair(left[0], left[1]), narrow_pair(left[2], left[3]),
                            narrow_pair(right[0], right[1]), narrow_pair(right[2], right[3])};
#pragma unroll
        for (u32 n = 0; n < N; n += 2) {
            Fragment b;
            load_b<D>(b, y, k * 8, column + n * 8);
            mma(out[n], a, b[0], b[1]);
            mma(out[n + 1], a, b[2], b[3]);
        }
    }
}

// Rounds a warp's 16 x 8 N sums, times `factor[half]` (of rows g and g + 8), and stores them to rows `to + i * stride`
// of global memory with 16-byte accesses, by way of rows `row ..` and columns `column ..` of a tile that no other warp
// uses there. Rows from `rows` on are left out.
template <u32 D, u32 N>
__device__ __forceinline__ void store_rows(unsigned char *tile, u32 row, u32 column, const Sums (&sums)[N],
                                           const float (&factor)[2], bf16 *to, u32 stride, u32 rows) {
    const u32 lane = threadIdx.x % WARP;
    __syncwarp(); // All lanes have read what was there.
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 place = chunk_offset<D>(row + lane / 4 + half * 8, column / CHUNK + n) + lane % 4 * 4;
            *reinterpret_cast<u32 *>(tile + place) =
                narrow_pair(sums[n][2 * half] * factor[half], sums[n][2 * half + 1] * factor[half]);
        }
    }
    __syncwarp();
#pragma unroll
    for (u32 i = lane; i < 16 * N; i += WARP) {
        const u32 r = i / N, chunk = i % N;
        if (r >= rows) break;
        *reinterpret_cast<uint4 *>(to + static_cast<size_t>(r) * stride + column + chunk * CHUNK) =
            *reinterpret_cast<const uint4 *>(tile + chunk_offset<D>(row + r, column / CHUNK + chunk));
    }
}
