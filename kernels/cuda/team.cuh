// Teams: how a block divides rows among its threads.
//
// A team is 2^bits neighbouring threads that do one row together, 2^bits chosen by the host so that each thread has a
// few 16-byte packs: many narrow rows share a block, a wide row gets all of it.
#pragma once

#include "common.cuh"

constexpr u32 TEAM_THREADS = 256;

struct Team {
    u32 bits;
    u32 size;     // Threads of a team.
    u32 lane;     // This thread's number in its team.
    u32 index;    // This team's number in its block.
    u32 in_block; // Teams of a block.

    __device__ __forceinline__ explicit Team(u32 bits)
        : bits(bits), size(1u << bits), lane(threadIdx.x & (size - 1)), index(threadIdx.x >> bits),
          in_block(TEAM_THREADS >> bits) {}

    // The sum over the team, for each of its threads, in an order that `bits` alone decides. All threads of the block
    // call.
    __device__ __forceinline__ float sum(float value) const {
        if (size <= WARP) return lanes_reduce(value, size, Sum());
        __shared__ float partial[TEAM_THREADS / WARP];
        value = warp_sum(value);
        if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
        __syncthreads();
        const u32 warps = size / WARP;
        value = 0.0f;
        for (u32 warp = 0; warp < warps; ++warp) value += partial[index * warps + warp];
        __syncthreads(); // The next call writes `partial` again.
        return value;
    }
};
