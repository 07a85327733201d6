// How the sums of implicit_gemm_hopper.cu leave: finished, in the output's type, from filters x pixels to pixels x filters.
//
// A warpgroup has BLOCKS times 64 filters of PIXELS pixels in its registers: of a block, row 16 w + q (and + 8) of warp w
// and quad q, and two neighbouring pixels of every eight.
//   16 bits: values are finished there (gemm_epilogue.h) and turn by stmatrix, on their way through strips of shared
//   memory; residuals come into the same strips beforehand and turn the other way by ldmatrix. The strips are a ring:
//   while one leaves, residuals of all others are on their way, those of the next tile behind those of this one.
//   All others: sums turn in shared memory, and are finished behind it. So do those that blocks have divided (SPLIT): each
//   block copies to every other one the pixels that this finishes, into an inbox behind the strip, and waits for theirs.
//   No block reads another one's memory, which would take a fence of the whole GPU on both sides, 0.7 us each.
//
// Limits: filters a multiple of eight for the first way (VECTORS).
// Roof: memory. At 128 filters x 208 pixels it takes 1.6 us a tile on an H100, 0.1 clocks for a result.
//
// Constants: those of implicit_gemm_hopper.cu.
#pragma once

#include "gemm_epilogue.h"
#include "hopper.h"

constexpr int THREADS = 128;  // of a warpgroup
// Shared memory of a warpgroup: strips of SPAN pixels in 16 bits, or one of sums, of all the tile's pixels if SPLIT.
constexpr int SPAN = 64 / BLOCKS, ROW_BYTES = BLOCKS * 128 + 16;  // 16 more: eight rows go to 32 banks
constexpr int SUMS_PITCH = BLOCKS * 64 + 4;  // sums between pixels: a warp writes to 32 banks
constexpr int SUMS_BYTES = SPLIT && PIXELS * SUMS_PITCH * 4 > 18432 ? PIXELS * SUMS_PITCH * 4 : 18432;
constexpr int STRIP_BYTES = SPLIT                                        ? 2 * SUMS_BYTES
                            : STRIP_COUNT * SPAN * ROW_BYTES > SUMS_BYTES ? STRIP_COUNT * SPAN * ROW_BYTES
                                                                          : SUMS_BYTES;

// Where a tile's pixels are in the result.
struct Target {
    int pixel, end;   // the tile's first one, and the first one that does not exist
    int line, width;  // HALO: pixels from line to line of the tile, and of the result
    int inverse;      // 65536 / line, rounded up: p / line without a division, p and line up to 256
    // Where pixel p of the tile is, and whether it has a place at all.
    __device__ __forceinline__ bool find(int p, int &at) const {
        at = pixel + p;
        if constexpr (!HALO) return at < end;
        const int y = p * inverse >> 16, x = p - y * line;
        at = pixel + y * width + x;
        return x < width && at < end;
    }
    // -1: nowhere.
    __device__ __forceinline__ int of(int p) const {
        int at;
        return find(p, at) ? at : -1;
    }
};

// Where and how a warpgroup's results of a tile leave.
struct Exit {
    Target target;
    int filter, filters, pitch, offset, residual_pitch;
    const float *bias;
    const OUT_TYPE *residual;
    OUT_TYPE *out;
};

// Of blocks that divide a tile's steps: this one's number, the barrier of its inbox and which round that is in, and whether
// they divide another tile behind this one.
struct Exchange {
    int rank;
    unsigned barrier, round;
    bool more;
};

struct alignas(16) FourSums {
    Sum values[4];
};
// Eight sums: those of this block, or with SPLIT of all in the order of their numbers. What others sent lies in the inbox,
// `apart` sums from each other.
TAMIS_DEVICE void load_sums(const Sum *own, const Sum *inbox, int apart, int rank, float (&values)[8]) {
    Sum sums[8];
#pragma unroll
    for (int part = 0; part < (SPLIT ? CLUSTER : 1); part++) {
        const Sum *from = SPLIT && part != rank ? inbox + part * apart : own;
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            const FourSums four = *reinterpret_cast<const FourSums *>(from + j);
#pragma unroll
            for (int k = 0; k < 4; k++) sums[j + k] = part ? sums[j + k] + four.values[k] : four.values[k];
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) values[j] = (float)sums[j];
}

// Results of 16 bits are finished in the registers of the products, and turn from filters x pixels to pixels x filters on
// their way through shared memory, a strip at a time: one fills while the one before leaves. Residuals turn the other way
// in the same strips.
constexpr bool PACKED = sizeof(OUT_TYPE) == 2 && VECTORS && !SPLIT && !EIGHT_BITS;
constexpr int PARTS = (PIXELS + SPAN - 1) / SPAN;     // strips of a tile
constexpr int CHUNKS = BLOCKS * 8;                    // 16 bytes each, of a pixel
constexpr int ROWS = THREADS / CHUNKS;                // pixels of a pass
constexpr int AHEAD = STRIP_COUNT - 1 < PARTS ? STRIP_COUNT - 1 : PARTS;  // strips whose residuals are on their way
static_assert(STRIP_COUNT > 1, "one strip fills while another one leaves");

// What the threads of a warpgroup move: 16 bytes of a pixel, of every ROWS-th one.
struct Mover {
    int row, in_row;
    bool exists;  // the channels
    unsigned char *out;
    const unsigned char *residual;
    unsigned pitch, residual_pitch;  // bytes
    __device__ __forceinline__ Mover(const Exit &to, int thread) {
        const int channel = to.filter + thread % CHUNKS * 8;
        row = thread / CHUNKS, in_row = row * ROW_BYTES + thread % CHUNKS * 16, exists = channel < to.filters;
        out = reinterpret_cast<unsigned char *>(to.out + to.offset + channel);
        residual = reinterpret_cast<const unsigned char *>(to.residual + channel);
        pitch = to.pitch * sizeof(OUT_TYPE), residual_pitch = to.residual_pitch * sizeof(OUT_TYPE);
    }
    // Where in the result the pixel of a pass is, and whether there is something to do.
    __device__ __forceinline__ bool find(const Target &target, int part, int pass, int &here) const {
        const int p = part * SPAN + pass * ROWS + row;
        return target.find(p, here) & exists & (p < PIXELS);
    }
    __device__ __forceinline__ int in_strip(int pass) const { return pass * ROWS * ROW_BYTES + in_row; }
};

// What a warpgroup adds to its sums lies in far memory: bring it nearer in time, unless a whole tile of it is on its way
// anyway. Eight values must be 16 bytes.
constexpr bool ANNOUNCES = RESIDUAL && VECTORS && sizeof(OUT_TYPE) > 1 && !(PACKED && AHEAD == PARTS);
TAMIS_DEVICE void announce(const Exit &to, int thread) {
    const int channels = to.filters - to.filter < BLOCKS * 64 ? to.filters - to.filter : BLOCKS * 64;
    for (int p = thread; p < PIXELS; p += THREADS) {
        const int here = to.target.of(p);
        if (here >= 0 && channels > 0)
            fetch_to_cache(to.residual + (long long)here * to.residual_pitch + to.filter, channels * sizeof(OUT_TYPE));
    }
}

// Starts to copy the residuals of a part of a tile to a strip, if there are any: a group of copies in any case.
TAMIS_DEVICE void fetch_residuals(const Exit &to, bool exists, unsigned char *strips, int turn, int part, int thread) {
    if (exists) {
        const Mover mover(to, thread);
        const unsigned strip = shared_address(strips + turn * (SPAN * ROW_BYTES));
#pragma unroll
        for (int pass = 0; pass < SPAN / ROWS; pass++) {
            int here;
            const bool found = mover.find(to.target, part, pass, here);
            copy_if(found, strip + mover.in_strip(pass),
                    mover.residual + (unsigned long long)(unsigned)here * mover.residual_pitch);
        }
    }
    copies_commit();
}

// Those of the first tile, before anything else.
TAMIS_DEVICE void fetch_first_residuals(const Exit &to, bool exists, unsigned char *strips, int thread) {
    if constexpr (PACKED && RESIDUAL)
#pragma unroll
        for (int part = 0; part < AHEAD; part++) fetch_residuals(to, exists, strips, part, part, thread);
}

// `turn` is the strip whose turn it is, from tile to tile. `next` is the tile behind, if there is `more`.
TAMIS_DEVICE void leave_packed(const Sum (&sums)[BLOCKS][PIXELS / 2], unsigned char *strips, int &turn, const Exit &to,
                               const Exit &next, bool more, int group, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const Mover mover(to, thread);
    // This lane's row of the matrices that a warp moves at a time: filters 0 - 7 and 8 - 15 of two times eight pixels.
    const int mine = (lane / 16 * 8 + lane % 8) * ROW_BYTES + (warp * 16 + lane / 8 % 2 * 8) * 2;
    float biases[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < BLOCKS * 2; i++) {
        const int at = to.filter + i / 2 * 64 + warp * 16 + lane / 4 + i % 2 * 8;
        biases[i / 2][i % 2] = BIAS && at < to.filters ? to.bias[at] : 0.0f;
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        unsigned char *strip = strips + turn * (SPAN * ROW_BYTES);
        const unsigned address = shared_address(strip) + mine;
        if constexpr (RESIDUAL) {
            copies_wait<AHEAD - 1>();
            threads_meet(group + 1, THREADS);  // this strip's are there, and the strip before has been read
            const int free = turn + AHEAD < STRIP_COUNT ? turn + AHEAD : turn + AHEAD - STRIP_COUNT;
            if (part + AHEAD < PARTS)
                fetch_residuals(to, true, strips, free, part + AHEAD, thread);
            else
                fetch_residuals(next, more, strips, free, part + AHEAD - PARTS, thread);
        }
#pragma unroll
        for (int block = 0; block < BLOCKS; block++)
#pragma unroll
            for (int p = 0; p < SPAN && part * SPAN + p < PIXELS; p += 16) {
                const unsigned there = address + p * ROW_BYTES + block * 128;
                unsigned words[4] = {};
                if constexpr (RESIDUAL) load_turned(there, words);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int at = (part * SPAN + p) / 2 + 2 * i;
                    if (at >= PIXELS / 2) continue;  // eight pixels are left
                    float values[2];
                    Convert<OUT_TYPE>::unpack(words[i], values);
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        values[j] = finished(sums[block][at + j] + biases[block][i % 2], values[j]);
                    words[i] = Convert<OUT_TYPE>::pack(values);
                }
                store_turned(there, words);
            }
        threads_meet(group + 1, THREADS);
#pragma unroll
        for (int pass = 0; pass < SPAN / ROWS; pass++) {
            int here;
            const bool found = mover.find(to.target, part, pass, here);
            store_if(found, mover.out + (unsigned long long)(unsigned)here * mover.pitch,
                     *reinterpret_cast<const FourWords *>(strip + mover.in_strip(pass)));
        }
        turn = turn + 1 < STRIP_COUNT ? turn + 1 : 0;
    }
}

// All others turn as sums, and are finished behind shared memory. A split tile leaves at once, since its blocks wait for
// each other: each finishes its part of the pixels.
TAMIS_DEVICE void leave(const Sum (&sums)[BLOCKS][PIXELS / 2], Sum *strip, int group, int thread, const Exchange &exchange,
                        const Exit &to) {
    constexpr int STRIP = SPLIT ? PIXELS : 32, PITCH = SUMS_PITCH;
    static_assert(STRIP * PITCH * 4 <= SUMS_BYTES, "strips");
    constexpr int OWN = SPLIT ? STRIP / CLUSTER : STRIP;  // pixels of a strip that this block finishes
    constexpr int PASSES = (OWN + ROWS - 1) / ROWS;
    const int channel = to.filter + thread % CHUNKS * 8, row = thread / 32 * 16 + thread % 32 / 4;
    const int count = to.filters - channel < 8 ? to.filters - channel : 8;
    const int own = SPLIT ? exchange.rank * OWN : 0;
    Sum *inbox = strip + SUMS_BYTES / 4;
    Channels factors;
    load_channels(to.bias, channel, to.filters, factors);
#pragma unroll
    for (int part = 0; part < (PIXELS + STRIP - 1) / STRIP; part++) {
#pragma unroll
        for (int block = 0; block < BLOCKS; block++)
#pragma unroll
            for (int i = 0; i < STRIP / 2; i++)
                if (part * STRIP / 2 + i < PIXELS / 2)
                    strip[(i / 4 * 8 + thread % 4 * 2 + i % 2) * PITCH + block * 64 + row + i / 2 % 2 * 8] =
                        sums[block][part * STRIP / 2 + i];
        if constexpr (SPLIT) {
            written_for_copies();
            threads_meet(group + 1, THREADS);
            constexpr int BYTES = OWN * PITCH * 4;
            if (thread == 0) barrier_expect(exchange.barrier, (CLUSTER - 1) * BYTES);
            if (thread < CLUSTER && thread != exchange.rank)
                copy_to(thread, shared_address(inbox + exchange.rank * OWN * PITCH),
                        shared_address(strip + thread * OWN * PITCH), BYTES, exchange.barrier);
        }
        Eight residuals[PASSES];
        int places[PASSES];
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            const int p = own + pass * ROWS + thread / CHUNKS;
            const bool exists = count > 0 && p < own + OWN && part * STRIP + p < PIXELS;
            places[pass] = exists ? to.target.of(part * STRIP + p) : -1;
            if (RESIDUAL && places[pass] >= 0)
                load_residual(to.residual + (long long)places[pass] * to.residual_pitch + channel, count,
                              residuals[pass]);
        }
        if constexpr (SPLIT)
            barrier_wait(exchange.barrier, exchange.round);
        else
            threads_meet(group + 1, THREADS);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            if (places[pass] < 0) continue;
            float values[8];
            const int at = (pass * ROWS + thread / CHUNKS) * PITCH + thread % CHUNKS * 8;
            load_sums(strip + own * PITCH + at, inbox + at, OWN * PITCH, exchange.rank, values);
            finish(values, factors, residuals[pass], count,
                   to.out + (long long)places[pass] * to.pitch + to.offset + channel);
        }
        if constexpr (SPLIT) {
            if (exchange.more) cluster_gathers();  // all have read: the next strips, and copies to inboxes, may come
        } else
            threads_meet(group + 1, THREADS);
    }
}
