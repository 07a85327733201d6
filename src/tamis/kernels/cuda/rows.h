// What kernels share that reduce rows: [rows, COLUMNS] dense, each row held by 32 * WARPS threads.
//
// With one warp a row, blockDim.y rows stand in a block and nothing is exchanged but by shuffles; with more, a block is
// one row. A thread looks at every (32 * WARPS)-th vector of WIDTH elements; WIDTH divides COLUMNS. With CACHED a thread
// keeps its part of the row in registers, so memory is read once; without (very long rows) it reads again.
#pragma once

#include "element.h"

constexpr unsigned ROW_THREADS = 32 * WARPS;
constexpr unsigned VECTORS = COLUMNS / WIDTH;
constexpr unsigned PER_THREAD = (VECTORS + ROW_THREADS - 1) / ROW_THREADS;
constexpr unsigned KEPT = CACHED ? PER_THREAD : 1;
static_assert(COLUMNS % WIDTH == 0, "vectors must fill a row");

struct Sum {
    static __device__ __forceinline__ float nothing() { return 0.0f; }
    static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};
struct Largest {
    static __device__ __forceinline__ float nothing() { return -TAMIS_INFINITY; }
    static __device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
};

template <class Way> TAMIS_DEVICE float reduce_warp(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) x = Way::join(x, __shfl_xor_sync(0xffffffffu, x, mask));
    return x;
}

// The reduction over the threads of a row, known to all of them.
template <class Way> TAMIS_DEVICE float reduce_row(float x) {
    x = reduce_warp<Way>(x);
#if WARPS > 1
    __shared__ float partial[WARPS];
    __syncthreads();  // the numbers of the reduction before have been read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = reduce_warp<Way>(threadIdx.x % 32 < WARPS ? partial[threadIdx.x % 32] : Way::nothing());
#endif
    return x;
}

// Calls visit(k, column) for each vector of this thread: the k-th, from that column on.
template <class Visit> TAMIS_DEVICE void each_vector(Visit visit) {
#pragma unroll(KEPT)
    for (unsigned k = 0; k < PER_THREAD; k++) {
        const unsigned column = (k * ROW_THREADS + threadIdx.x) * WIDTH;
        if (column < COLUMNS) visit(CACHED ? k : 0, column);
    }
}
