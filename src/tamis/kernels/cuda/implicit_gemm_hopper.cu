// Convolution and matrix product on Hopper's tensor cores, weights dense or 2:4: out = program(W * X + bias).
//
// Mathematics: out[pixel, filter] = sum over taps and channels of W[filter, tap, channel] X[pixel seen by tap, channel].
//   Weights are operand A (64 rows of filters), pixels operand B, sums are float32 registers. The sum runs over `steps`:
//   tap by tap, 64 channels at a time. With 2:4 weights a step is two wgmma.sp of 32 channels, else four wgmma of 16.
//   In 8 bits (EIGHT_BITS) it is all twice as many channels, and the same bytes; sums of int8 are int32 (INTEGERS).
// Layouts: X is NHWC, or a matrix [pixels, channels]; its map may let pixels overlap. The copy engine brings 64 channels
//   (128 bytes a pixel, in the 128-byte swizzle) of PIXELS pixels; for a convolution its im2col mode finds those that a
//   tap sees and fills the padding with zeros. With HALO it brings whole lines of the padded image instead, once for all
//   taps: pixel p of the tile is at (p / line, p % line) of these, a tap sees the one a fixed number of rows of shared
//   memory further, and the pixels at the end of each line, which have no place in the result, are computed for no one.
//   The weights lie as their step reads them, one block of bytes for each tile of filters and step, packed by
//   tamis.formats.hopper: for every 64 filters the core matrices (8 rows x 16 bytes), then all metadata. `bias` is as
//   gemm_epilogue.h has it, with scales before it if SCALED.
//   out is [pixels, pitch], of which `filters` channels from `offset` on are written.
// Work: a block has GROUPS warpgroups that compute GROUPS * BLOCKS * 64 filters x PIXELS, and one that copies, STAGES
//   steps ahead. Blocks stay, RESIDENT on each multiprocessor, and take every gridDim.x-th tile: `band` tiles of filters
//   of the same pixels follow each other, then those of the next pixels, so that what runs at a time reads little twice.
//   The blocks of a CLUSTER compute different filters of the same pixels: each copies its part of the pixels, to all of
//   them. Or, if SPLIT, they divide the steps of one tile, and each adds up the sums of all for its part of the pixels.
//   How results leave is in hopper_leave.h.
// Groups (GROUPED): a tile has filters of one bundle of groups (tamis.formats.bundles), and its steps are those of the
//   bundle's channels, whatever others a pixel has. Where these do not fill steps, the tensor map has windows of as many
//   channels, and zeros behind them (WINDOWS). Within a bundle each filter has zeros for the channels of other groups,
//   which are multiplied: where such a channel is infinite or no number, the result may be no number, but never another.
// Limits: channels a multiple of 8, in 8 bits of 16 (16 bytes a pixel); up to 2^31 - 1 pixels and elements. Channels,
//   filters and pixels past the end are zeros that the copy engine or the packing puts there. HALO: strides of 1, no
//   cluster, lines of up to 256 pixels.
// Accuracy: sums of int8 are exact up to 2^31. Inside the tensor cores those of e4m3 keep fewer bits than float32 has.
// Roof: the instruction beside the copies that it needs, measured on an H100: 788 TFLOP/s dense, 1365 in 2:4, in int8 1634
//   and 2715. Reached of it in 2:4: 77 % by large layers, 80 % in int8, 40 to 65 % by ResNet's 3x3 convolutions at batch
//   128; all layers are in docs/design/0008-hopper-kernels.md.
//
// Constants: KERNEL (its name), SPARSE, IM2COL, HALO, GROUPED, WINDOWS, BLOCKS, GROUPS, PIXELS, STAGES, LINE_STAGES,
// STRIP_COUNT, RESIDENT, STATIONARY, POOL (0 or the size of a pooling window), and those of the headers.
#include "hopper_leave.h"
#include "overlap.h"

constexpr int CHANNELS = EIGHT_BITS ? 128 : 64;  // of a step
constexpr int WORDS = EIGHT_BITS ? 2 : 1;        // of metadata that a thread has for both products of 64 filters
constexpr int MATRIX_BYTES = SPARSE ? 64 * 64 : 64 * 128;  // of 64 filters in one step
constexpr int PLACES_BYTES = SPARSE ? 512 * WORDS : 0;
#if POOL
constexpr int SETS = BY_TURNS ? 1 : GROUPS;                             // of BLOCKS times 64 filters, in a block
constexpr int LEAVING_BYTES = (COLUMNS / 2 + 15) / 16 * 16 * ROW_BYTES;  // a pooled line
#else
constexpr int SETS = GROUPS, LEAVING_BYTES = STRIP_BYTES;
#endif
constexpr int FILTERS = SETS * BLOCKS * 64;
constexpr int WEIGHT_BYTES = SETS * BLOCKS * (MATRIX_BYTES + PLACES_BYTES);
constexpr int PIXEL_BYTES = HALO ? 0 : PIXELS * 128;  // of one step
constexpr int ABREAST = SPLIT ? 1 : CLUSTER;          // tiles of a cluster
constexpr int SHARE = PIXELS / ABREAST;               // of the pixels, that a block copies
constexpr int STAGE_BYTES = (PIXEL_BYTES + (STATIONARY ? 0 : WEIGHT_BYTES) + 1023) / 1024 * 1024;
// Shared memory: barriers, strips of results, the stages of steps, those of lines.
constexpr int STRIPS = 1024, RING = (STRIPS + GROUPS * LEAVING_BYTES + 1023) / 1024 * 1024;
constexpr int LINES = RING + STAGES * STAGE_BYTES;
constexpr int INBOXES = (STAGES + LINE_STAGES) * 16;  // the barriers of the groups' inboxes, if SPLIT
static_assert(INBOXES + GROUPS * 8 <= STRIPS, "barriers");
static_assert(!GROUPED || ABREAST == 1, "the tiles of a cluster share their pixels");
// Two warpgroups that compute need more registers than an even share: the one that copies is then a whole warpgroup too,
// since only such give registers away. Else one warp copies.
constexpr bool GIVES = RESIDENT == 1 ? GROUPS == 2 : STATIONARY && GROUPS == 1 && RESIDENT == 2;
constexpr int COPIERS = GIVES ? THREADS : 32;
// Of 504 registers that three warpgroups' threads have together. Groups want more, where sums leave them; beside the most
// sums copies of a product do with fewer, and those of taps spill less than what computes would.
constexpr int COPIERS_KEEP = !GROUPED ? 40 : BLOCKS * PIXELS <= 256 ? 56 : IM2COL ? 40 : 24;

// Threads of a warp that give a stage back: one speaks for all. Compute Sanitizer's racecheck takes no thread's word for
// another one's reads; for its sake all may speak.
#ifndef EVERY_THREAD_GIVES_BACK
#define EVERY_THREAD_GIVES_BACK 0
#endif
constexpr int ARRIVING = EVERY_THREAD_GIVES_BACK ? 32 : 1;

// What lies where in shared memory: full and empty flip with every round through the stages.
template <int COUNT> struct Ring {
    unsigned stages, barriers;
    int bytes;  // of a stage
    int stage;
    unsigned round;
    __device__ __forceinline__ unsigned at() const { return stages + stage * bytes; }
    __device__ __forceinline__ unsigned full() const { return barriers + stage * 16; }
    __device__ __forceinline__ unsigned empty() const { return full() + 8; }
    __device__ __forceinline__ void next() {
        if (++stage == COUNT) stage = 0, round ^= 1;
    }
    __device__ __forceinline__ void make(unsigned arrivals) const {
        for (int i = 0; i < COUNT; i++) {
            barrier_make(barriers + i * 16, 1);
            barrier_make(barriers + i * 16 + 8, arrivals * ARRIVING);
        }
    }
};
using Steps = Ring<STAGES>;
using Lines = Ring<HALO ? LINE_STAGES : 1>;

// A filter's taps, one after the other: how many rows of shared memory further each one's pixels are.
struct Walk {
    int line, across, down, dilation_w, dilation_h;
    int x, y;
    __device__ __forceinline__ int shift() const { return y * dilation_h * line + x * dilation_w; }
    __device__ __forceinline__ bool is_first() const { return x == 0 && y == 0; }
    __device__ __forceinline__ void next() {
        if (++x == across) x = 0, y = y + 1 == down ? 0 : y + 1;
    }
};

constexpr int PARTS_OF_STEP = SPARSE ? 2 : 4;  // products

// Starts a product of a step, the first one or another `part`, with operand A from shared memory. `places` are all of the
// step's words of metadata for these 64 filters.
TAMIS_DEVICE void start_product(Sum (&sums)[PIXELS / 2], unsigned long long a, unsigned long long b, const unsigned *places,
                                int part, int keep) {
    if constexpr (!SPARSE)
        Product<PIXELS>::dense(sums, a, b, keep);
    else if (part == 0)
        Product<PIXELS>::template sparse<0>(sums, a, b, places[0], keep);
    else
        Product<PIXELS>::template sparse<2 - WORDS>(sums, a, b, places[WORDS - 1], keep);
}

// Starts one step's products of a warpgroup, once its operands are there. `places` is their metadata.
TAMIS_DEVICE void start(Sum (&sums)[BLOCKS][PIXELS / 2], unsigned (&places)[BLOCKS * WORDS], const Steps &ring,
                        unsigned pixels, const unsigned char *memory, int group, int thread, bool first) {
    barrier_wait(ring.full(), ring.round);
    const unsigned weights = ring.at() + PIXEL_BYTES;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        const unsigned at = weights - ring.stages + RING + GROUPS * BLOCKS * MATRIX_BYTES +
                            (group * BLOCKS + block) * PLACES_BYTES + thread * 4 * WORDS;
        const auto *words = reinterpret_cast<const unsigned *>(memory + at);
        if constexpr (SPARSE) load_words<WORDS>(words, places + block * WORDS);
    }
    products_begin();
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
        for (int part = 0; part < PARTS_OF_STEP; part++) {
            const auto a = operand(weights + (group * BLOCKS + block) * MATRIX_BYTES + part * 2048, 128, 256, PLAIN);
            const auto b = operand(pixels + part * (SPARSE ? 64 : 32), 16, 1024, SWIZZLE_128);
            const int keep = !first || part > 0;
            start_product(sums[block], a, b, places + block * WORDS, part, keep);
        }
    }
    products_commit();
}

// A stage that this warp does not read any more, in every block whose copies go there. Its threads have read their
// metadata before the products that are done by now; that they meet says so to the memory model, too.
TAMIS_DEVICE void give_back(unsigned empty, int thread) {
    if constexpr (SPARSE) warp_meets();
    if constexpr (EVERY_THREAD_GIVES_BACK && ABREAST > 1) {
        for (int rank = 0; rank < ABREAST; rank++) barrier_arrive_in(rank, empty);
    } else if constexpr (ABREAST > 1) {
        if (thread % 32 < ABREAST) barrier_arrive_in(thread % 32, empty);
    } else {
        if (thread % 32 < ARRIVING) barrier_arrive(empty);
    }
}

// All steps of a tile. One step's products run while the next one's operands are awaited; only then are its own given
// back. Its metadata stays in registers of its own meanwhile, for which reason steps come in pairs.
TAMIS_DEVICE void multiply(Sum (&sums)[BLOCKS][PIXELS / 2], Steps &ring, Lines &lines, Walk &walk,
                           const unsigned char *memory, int group, int thread, int steps) {
    unsigned even[BLOCKS * WORDS] = {}, odd[BLOCKS * WORDS] = {};
    unsigned used = 0, used_lines = 0;  // the barriers of what running products may still read
    auto pixels = [&] {
        if constexpr (!HALO) return ring.at();
        if (walk.is_first()) barrier_wait(lines.full(), lines.round);
        return lines.at() + walk.shift() * 128;
    };
    auto started = [&] {
        const unsigned before = used, lines_before = used_lines;
        used = ring.empty();
        ring.next();
        if (before) give_back(before, thread);
        if constexpr (HALO) {
            walk.next();
            used_lines = walk.is_first() ? lines.empty() : 0;
            if (walk.is_first()) lines.next();
            if (lines_before) give_back(lines_before, thread);
        }
    };
    for (int step = 0; step < steps; step += 2) {
        start(sums, even, ring, pixels(), memory, group, thread, step == 0);
        products_wait<1>();
        hold_registers(odd);
        started();
        // In 8 bits the loop is left here: around a half that is skipped ptxas lets no products overlap (its C7513).
        if (EIGHT_BITS && step + 1 == steps) break;
        if (EIGHT_BITS || step + 1 < steps) {
            start(sums, odd, ring, pixels(), memory, group, thread, false);
            products_wait<1>();
            hold_registers(even);
            started();
        }
    }
    products_wait<0>();
    hold_registers(even);
    hold_registers(odd);
    give_back(used, thread);
    if constexpr (HALO) give_back(used_lines, thread);
}

// Which pixels and which filters a tile has: numbers of tiles.
struct Spot {
    int column, row;
};

#if STATIONARY
#include "hopper_stationary.h"
#elif POOL
#include "hopper_pooled.h"
#else
extern "C" __global__ void CLUSTER_OF(CLUSTER) __launch_bounds__(THREADS *GROUPS + COPIERS, RESIDENT)
    KERNEL(const __grid_constant__ TensorMap map, const unsigned char *weights, const float *bias,
           const OUT_TYPE *residual, OUT_TYPE *out, int filters, int pixels, int steps, int chunks, int across,
           int out_width, int out_height, int stride_w, int stride_h, int pad_left, int pad_top, int dilation_w,
           int dilation_h, int lines, int line, int line_bytes, int band, int pitch, int offset, int residual_pitch,
           int bundle_tiles, int bundle_filters, int bundle_window, int last_window) {
    next_may_start();
    SHARED_MEMORY(memory);
    const unsigned base = shared_address(memory);
    Steps ring = {base + RING, base, STAGE_BYTES, 0, 0};
    // `lines` of the result are a tile's; they see `line_bytes` of lines of `line` pixels, with what pads them.
    Lines halo = {base + LINES, base + STAGES * 16, (line_bytes + 1023) / 1024 * 1024, 0, 0};
    const int group = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int rank = CLUSTER > 1 ? rank_in_cluster() : 0, place = SPLIT ? 0 : rank;  // among the cluster's tiles
    const int first = SPLIT ? steps * rank / CLUSTER : 0, end = SPLIT ? steps * (rank + 1) / CLUSTER : steps;
    const int bundles = (filters + bundle_filters - 1) / bundle_filters;
    const int last = GROUPED ? bundles * bundle_tiles - 1 : (filters - 1) / FILTERS;  // tile of filters
    const int area = out_width * out_height, per_image = HALO ? (out_height + lines - 1) / lines : 1;
    const int across_filters = last / ABREAST + 1;
    const int across_pixels = HALO ? pixels / area * per_image : (pixels + PIXELS - 1) / PIXELS;
    const int tiles = across_filters * across_pixels;
    const auto spot_of = [&](int tile) {
        if constexpr (GROUPED) {  // these share no channels: all filters of the same pixels follow each other
            const int column = (unsigned)tile / (unsigned)across_filters;
            return Spot{column, tile - column * across_filters};
        }
        const int before = tile / (band * across_pixels) * band, rest = tile - before * across_pixels;
        const int wide = across_filters - before < band ? across_filters - before : band;
        return Spot{rest / wide, (before + rest % wide) * ABREAST + place};
    };
    if (threadIdx.x == 0) {
        ring.make(GROUPS * 4 * ABREAST);
        if constexpr (HALO) halo.make(GROUPS * 4);
        if constexpr (SPLIT)
            for (int i = 0; i < GROUPS; i++) barrier_make(base + INBOXES + i * 8, 1);
        barriers_made();
        fetch_map(map);
    }
    if constexpr (CLUSTER > 1)
        cluster_gathers();
    else
        __syncthreads();

    if (group == GROUPS) {
        if constexpr (GIVES) give_registers<COPIERS_KEEP>();
        for (int tile = blockIdx.x / CLUSTER; tile < tiles; tile += gridDim.x / CLUSTER) {
            if (thread == 0) {
                const auto [column, row] = spot_of(tile);
                const int pixel = column * PIXELS + place * SHARE;
                // Past the last filters a block computes them once more, for no one.
                const unsigned char *block = weights + (long long)(row < last ? row : last) * steps * WEIGHT_BYTES;
                const int taps = steps / chunks;
                [[maybe_unused]] int window = 0;
                if constexpr (GROUPED) {
                    window = (unsigned)row / (unsigned)bundle_tiles * bundle_window;
                    window = window < last_window ? window : last_window;
                }
                const int w = HALO ? -pad_left : pixel % out_width * stride_w - pad_left;
                const int h = (HALO ? column % per_image * lines : pixel / out_width % out_height * stride_h) - pad_top;
                const int n = HALO ? column / per_image : pixel / area;
                // All that a stage expects, and its weights; then its pixels.
                const auto fill = [&](const Steps &to, int step) {
                    barrier_expect(to.full(), PIXEL_BYTES + WEIGHT_BYTES);
                    const int packed = HALO ? step % taps * chunks + step / taps : step;
                    copy_bytes(to.at() + PIXEL_BYTES, block + (long long)packed * WEIGHT_BYTES, WEIGHT_BYTES, to.full());
                };
                const auto follow = [&](int step) {
                    const int chunk = HALO ? step / taps : step % chunks, tap = step / chunks;
                    const int channel = chunk * CHANNELS + (GROUPED && !WINDOWS ? window * 8 : 0);
                    const unsigned share = ring.at() + place * SHARE * 128;
                    if constexpr (HALO) {
                        if (step % taps == 0) {
                            barrier_wait(halo.empty(), halo.round ^ 1);
                            barrier_expect(halo.full(), line_bytes);
                            if constexpr (WINDOWS)
                                copy_lines(halo.at(), map, channel, w, h, n, window, halo.full());
                            else
                                copy_lines(halo.at(), map, channel, w, h, n, halo.full());
                            halo.next();
                        }
                    } else if constexpr (WINDOWS && IM2COL) {
                        copy_pixels(share, map, channel, w, h, n, window, tap % across * dilation_w,
                                    tap / across * dilation_h, ring.full());
                    } else if constexpr (WINDOWS) {
                        copy_rows(share, map, channel, pixel, window, ring.full());
                    } else if constexpr (IM2COL) {
                        copy_pixels(share, map, channel, w, h, n, tap % across * dilation_w,
                                    tap / across * dilation_h, ring.full());
                    } else {
                        copy_rows(share, map, channel, pixel, ring.full());
                    }
                    ring.next();
                };
                int filled = first;
                if (tile == blockIdx.x / CLUSTER) {  // the first weights need not wait for the kernel before
                    for (Steps to = ring; filled < end && filled < first + STAGES; to.next()) fill(to, filled++);
                    previous_finished();
                    for (int step = first; step < filled; step++) follow(step);
                }
                for (int step = filled; step < end; step++) {
                    barrier_wait(ring.empty(), ring.round ^ 1);
                    fill(ring, step);
                    follow(step);
                }
            }
            if (SPLIT && tile + (int)gridDim.x / CLUSTER < tiles) cluster_gathers();  // with those that compute
        }
    } else {
        if constexpr (GIVES) take_registers<(504 - COPIERS_KEEP) / 2>();
        previous_finished();
        unsigned char *strips = memory + STRIPS + group * STRIP_BYTES;
        Walk walk = {line, across, steps / chunks / across, dilation_w, dilation_h, 0, 0};
        const auto exit_of = [&](int tile) {
            const auto [column, row] = spot_of(tile);
            const int image = column / per_image * area, top = column % per_image * lines;
            const int bottom = out_height < top + lines ? out_height : top + lines;
            const Target target = HALO ? Target{image + top * out_width, image + bottom * out_width, line, out_width,
                                                (65535 + line) / line}
                                       : Target{column * PIXELS, pixels, 0, 0, 0};
            int filter = row * FILTERS, end = filters;
            if constexpr (GROUPED) {
                const int bundle = (unsigned)row / (unsigned)bundle_tiles, begin = bundle * bundle_filters;
                filter = begin + (row - bundle * bundle_tiles) * FILTERS;
                end = begin + bundle_filters < filters ? begin + bundle_filters : filters;
            }
            return Exit{target, filter + group * BLOCKS * 64, end, pitch, offset, residual_pitch, bias, residual, out};
        };
        const int stride = gridDim.x / CLUSTER;
        int turn = 0;
        Exchange exchange = {rank, base + INBOXES + group * 8, 0, false};
        if (ANNOUNCES) announce(exit_of(blockIdx.x / CLUSTER), thread);
        fetch_first_residuals(exit_of(blockIdx.x / CLUSTER), true, strips, thread);
        for (int tile = blockIdx.x / CLUSTER; tile < tiles; tile += stride) {
            Sum sums[BLOCKS][PIXELS / 2];
            multiply(sums, ring, halo, walk, memory, group, thread, end - first);
            const bool more = tile + stride < tiles;
            if (ANNOUNCES && more) announce(exit_of(tile + stride), thread);
            if constexpr (PACKED) {
                leave_packed(sums, strips, turn, exit_of(tile), exit_of(more ? tile + stride : tile), more, group, thread);
            } else {
                exchange.more = more;
                leave(sums, reinterpret_cast<Sum *>(strips), group, thread, exchange, exit_of(tile));
                exchange.round ^= 1;
            }
        }
    }
    if constexpr (CLUSTER > 1) cluster_gathers();  // others may still copy to this block, and arrive at its barriers
}
#endif
