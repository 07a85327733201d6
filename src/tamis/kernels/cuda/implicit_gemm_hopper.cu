// Convolution and matrix product on Hopper's tensor cores, weights dense or 2:4: out = program(W * X + bias).
//
// Mathematics: out[pixel, filter] = sum over taps and channels of W[filter, tap, channel] X[pixel seen by tap, channel].
//   Weights are operand A (64 rows of filters), pixels operand B, sums are float32 registers. The sum runs over `steps`:
//   tap by tap, 64 channels at a time. With 2:4 weights a step is two wgmma.sp of 32 channels, else four wgmma of 16.
// Layouts: X is NHWC, or a matrix [pixels, channels]. The copy engine brings PIXELS x 64 channels (128 bytes a pixel, in
//   the 128-byte swizzle); for a convolution its im2col mode finds the pixels and fills the padding with zeros. The
//   weights lie as their step reads them, one block of bytes for each tile of filters and step, packed by
//   tamis.formats.hopper: for every 64 filters the core matrices (8 rows x 16 bytes), then all metadata.
//   out is [pixels, pitch], of which `filters` channels from `offset` on are written.
// Work: a block has GROUPS warpgroups that compute GROUPS * BLOCKS * 64 filters x PIXELS, and one that copies, STAGES
//   steps ahead. Blocks stay, and take every gridDim.x-th tile; tiles of the same pixels follow each other. The blocks
//   of a CLUSTER compute different filters of the same pixels: each copies its part of the pixels, to all of them. Or, if
//   SPLIT, they divide the steps of one tile, and each adds up the sums of all for its part of the pixels.
// Limits: channels a multiple of 8 (16 bytes a pixel); up to 2^31 - 1 pixels and elements. Channels, filters and pixels
//   past the end are zeros that the copy engine or the packing puts there.
// Roof: tensor cores, 989 TFLOP/s dense on an H100, twice that in 2:4. Not measured yet.
//
// Constants: KERNEL (its name), SPARSE, IM2COL, BLOCKS, GROUPS, PIXELS, STAGES, and those of the two headers.
#include "gemm_epilogue.h"
#include "hopper.h"
#include "overlap.h"

constexpr int THREADS = 128;  // of a warpgroup
constexpr int FILTERS = GROUPS * BLOCKS * 64;
constexpr int MATRIX_BYTES = SPARSE ? 64 * 64 : 64 * 128;  // of 64 filters in one step
constexpr int PLACES_BYTES = SPARSE ? 512 : 0;
constexpr int WEIGHT_BYTES = GROUPS * BLOCKS * (MATRIX_BYTES + PLACES_BYTES);
constexpr int PIXEL_BYTES = PIXELS * 128;
constexpr int ABREAST = SPLIT ? 1 : CLUSTER;  // tiles of a cluster
constexpr int SHARE = PIXELS / ABREAST;       // of the pixels, that a block copies
constexpr int STAGE_BYTES = (PIXEL_BYTES + WEIGHT_BYTES + 1023) / 1024 * 1024;
constexpr int STRIP = 32;  // pixels that leave by shared memory at a time
constexpr int PITCH = BLOCKS * 64 + 4;  // floats between them: writes of a warp go to 32 banks
constexpr int STRIP_BYTES = STRIP * PITCH * 4;
constexpr int BARRIERS = STAGES * STAGE_BYTES + GROUPS * STRIP_BYTES;

// Which step lies where: full and empty flip with every round through the stages.
struct Ring {
    unsigned memory;
    int stage;
    unsigned round;
    __device__ __forceinline__ unsigned pixels() const { return memory + stage * STAGE_BYTES; }
    __device__ __forceinline__ unsigned weights() const { return pixels() + PIXEL_BYTES; }
    __device__ __forceinline__ unsigned full() const { return memory + BARRIERS + stage * 16; }
    __device__ __forceinline__ unsigned empty() const { return full() + 8; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, round ^= 1;
    }
};

// Starts one step's products of a warpgroup, once its operands are there. `places` is their metadata.
TAMIS_DEVICE void start(float (&sums)[BLOCKS][PIXELS / 2], unsigned (&places)[BLOCKS], const Ring &ring,
                        const unsigned char *memory, int group, int thread, bool first) {
    const unsigned weights = ring.weights() + group * BLOCKS * MATRIX_BYTES;
    barrier_wait(ring.full(), ring.round);
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        const unsigned at = ring.weights() - ring.memory + GROUPS * BLOCKS * MATRIX_BYTES +
                            (group * BLOCKS + block) * PLACES_BYTES + thread * 4;
        places[block] = SPARSE ? *reinterpret_cast<const unsigned *>(memory + at) : 0;
    }
    products_begin();
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
        for (int part = 0; part < (SPARSE ? 2 : 4); part++) {
            const auto a = operand(weights + block * MATRIX_BYTES + part * 2048, 128, 256, PLAIN);
            const auto b = operand(ring.pixels() + part * (SPARSE ? 64 : 32), 16, 1024, SWIZZLE_128);
            const int keep = !first || part > 0;
            if constexpr (!SPARSE)
                Product<PIXELS>::dense(sums[block], a, b, keep);
            else if (part == 0)
                Product<PIXELS>::template sparse<0>(sums[block], a, b, places[block], keep);
            else
                Product<PIXELS>::template sparse<1>(sums[block], a, b, places[block], keep);
        }
    }
    products_commit();
}

// A stage that this warp does not read any more, in every block whose copies go there.
TAMIS_DEVICE void give_back(unsigned empty, int thread) {
    if constexpr (ABREAST == 1) {
        if (thread % 32 == 0) barrier_arrive(empty);
    } else {
        if (thread % 32 < ABREAST) barrier_arrive_in(thread % 32, empty);
    }
}

// All steps of a tile. One step's products run while the next one's operands are awaited; only then are its own given
// back. Its metadata stays in registers of its own meanwhile, for which reason steps come in pairs.
TAMIS_DEVICE void multiply(float (&sums)[BLOCKS][PIXELS / 2], Ring &ring, const unsigned char *memory, int group,
                           int thread, int steps) {
    unsigned even[BLOCKS], odd[BLOCKS] = {};
    unsigned used = 0;  // the barrier of the step whose products may still run
    auto started = [&] {
        const unsigned before = used;
        used = ring.empty();
        ring.next();
        if (before) give_back(before, thread);
    };
    for (int step = 0; step < steps; step += 2) {
        start(sums, even, ring, memory, group, thread, step == 0);
        products_wait<1>();
        hold_registers(odd);
        started();
        if (step + 1 < steps) {
            start(sums, odd, ring, memory, group, thread, false);
            products_wait<1>();
            hold_registers(even);
            started();
        }
    }
    products_wait<0>();
    hold_registers(even);
    hold_registers(odd);
    give_back(used, thread);
}

// Strips are written, or read: this warpgroup goes on, or with SPLIT the whole cluster.
TAMIS_DEVICE void strips_meet(int group) {
    if constexpr (SPLIT)
        cluster_meets();
    else
        threads_meet(group + 1, THREADS);
}

// Eight sums of a strip; with SPLIT those of all blocks together, always in the same order.
TAMIS_DEVICE void load_sums(const float *from, float (&values)[8]) {
    if constexpr (!SPLIT) {
        load<8>(from, values);
    } else {
#pragma unroll
        for (int rank = 0; rank < CLUSTER; rank++) {
            float more[8];
            load_from(rank, shared_address(from), more);
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] = rank ? values[j] + more[j] : more[j];
        }
    }
}

// The sums of a warpgroup's filters through shared memory, where they turn from filters x pixels to pixels x filters.
TAMIS_DEVICE void leave(const float (&sums)[BLOCKS][PIXELS / 2], float *strip, int group, int thread, int rank,
                        int filter, int pixel, const float *bias, const OUT_TYPE *residual, OUT_TYPE *out, int filters, int pixels,
                        int pitch, int offset, int residual_pitch) {
    constexpr int ACROSS = BLOCKS * 8, ROWS = THREADS / ACROSS;  // threads of a pixel, pixels of a pass
    const int channel = filter + thread % ACROSS * 8, row = thread / 32 * 16 + thread % 32 / 4;
    const int count = filters - channel < 8 ? filters - channel : 8;
    constexpr int LINES = SPLIT ? STRIP / CLUSTER : STRIP;  // that are this block's to finish
    const int line_from = SPLIT ? rank * LINES : 0;
    float biases[8];
    load_bias(bias, channel, filters, biases);
#pragma unroll
    for (int part = 0; part < PIXELS / STRIP; part++) {
#pragma unroll
        for (int block = 0; block < BLOCKS; block++)
#pragma unroll
            for (int i = 0; i < STRIP / 2; i++)
                strip[(i / 4 * 8 + thread % 4 * 2 + i % 2) * PITCH + block * 64 + row + i / 2 % 2 * 8] =
                    sums[block][part * STRIP / 2 + i];
        strips_meet(group);
        for (int line = line_from + thread / ACROSS; line < line_from + LINES; line += ROWS) {
            const int here = pixel + part * STRIP + line;
            if (here >= pixels || count <= 0) continue;
            float values[8], residuals[8];
            load_sums(strip + line * PITCH + thread % ACROSS * 8, values);
            if constexpr (RESIDUAL) load_residual(residual + (long long)here * residual_pitch + channel, count, residuals);
            finish(values, biases, residuals, count, out + (long long)here * pitch + offset + channel);
        }
        strips_meet(group);
    }
}

extern "C" __global__ void CLUSTER_OF(CLUSTER) __launch_bounds__(THREADS *(GROUPS + 1), 1)
    KERNEL(const __grid_constant__ TensorMap map, const unsigned char *weights, const float *bias,
           const OUT_TYPE *residual, OUT_TYPE *out, int filters, int pixels, int steps, int chunks, int across,
           int out_width, int out_height, int stride_w, int stride_h, int pad_left, int pad_top, int dilation_w,
           int dilation_h, int pitch, int offset, int residual_pitch) {
    next_may_start();
    SHARED_MEMORY(memory);
    Ring ring = {shared_address(memory), 0, 0};
    const int group = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int rank = CLUSTER > 1 ? rank_in_cluster() : 0, place = SPLIT ? 0 : rank;  // among the cluster's tiles
    const int first = SPLIT ? steps * rank / CLUSTER : 0, end = SPLIT ? steps * (rank + 1) / CLUSTER : steps;
    const int last = (filters - 1) / FILTERS;  // tile of filters
    const int across_filters = last / ABREAST + 1, tiles = across_filters * ((pixels + PIXELS - 1) / PIXELS);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_make(ring.memory + BARRIERS + stage * 16, 1);
            barrier_make(ring.memory + BARRIERS + stage * 16 + 8, GROUPS * 4 * ABREAST);
        }
        barriers_made();
        fetch_map(map);
    }
    if constexpr (CLUSTER > 1)
        cluster_gathers();
    else
        __syncthreads();

    if (group == GROUPS) {
        if constexpr (GROUPS == 2) give_registers<40>();
        for (int tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
            if (thread == 0) {
                const int pixel = tile / across_filters * PIXELS + place * SHARE;
                const int row = tile % across_filters * ABREAST + place;
                // Past the last filters a block computes them once more, for no one.
                const unsigned char *block = weights + (long long)(row < last ? row : last) * steps * WEIGHT_BYTES;
                const int w = pixel % out_width * stride_w - pad_left;
                const int h = pixel / out_width % out_height * stride_h - pad_top;
                const int n = pixel / out_width / out_height;
                // All that a stage expects, and its weights; then its pixels.
                const auto fill = [&](const Ring &to, int step) {
                    barrier_expect(to.full(), PIXEL_BYTES + WEIGHT_BYTES);
                    copy_bytes(to.weights(), block + (long long)step * WEIGHT_BYTES, WEIGHT_BYTES, to.full());
                };
                const auto follow = [&](int step) {
                    const int channel = step % chunks * 64, tap = step / chunks;
                    const unsigned share = ring.pixels() + place * SHARE * 128;
                    if constexpr (IM2COL)
                        copy_pixels(share, map, channel, w, h, n, tap % across * dilation_w,
                                    tap / across * dilation_h, ring.full());
                    else
                        copy_rows(share, map, channel, pixel, ring.full());
                    ring.next();
                };
                int filled = first;
                if (tile == blockIdx.x / CLUSTER) {  // the first weights need not wait for the kernel before
                    for (Ring to = ring; filled < end && filled < first + STAGES; to.next()) fill(to, filled++);
                    previous_finished();
                    for (int step = first; step < filled; step++) follow(step);
                }
                for (int step = filled; step < end; step++) {
                    barrier_wait(ring.empty(), ring.round ^ 1);
                    fill(ring, step);
                    follow(step);
                }
            }
            // All threads of a cluster meet where its strips do.
            if constexpr (SPLIT)
                for (int meeting = 0; meeting < 2 * PIXELS / STRIP; meeting++) cluster_meets();
        }
    } else {
        if constexpr (GROUPS == 2) take_registers<232>();
        previous_finished();
        float *strip = reinterpret_cast<float *>(memory + STAGES * STAGE_BYTES + group * STRIP_BYTES);
        for (int tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
            float sums[BLOCKS][PIXELS / 2];
            multiply(sums, ring, memory, group, thread, end - first);
            const int row = tile % across_filters * ABREAST + place;
            leave(sums, strip, group, thread, rank, row * FILTERS + group * BLOCKS * 64,
                  tile / across_filters * PIXELS, bias, residual, out, filters, pixels, pitch, offset, residual_pitch);
        }
    }
    if constexpr (CLUSTER > 1) cluster_gathers();  // others may still copy to this block, and arrive at its barriers
}
