// The stationary form of implicit_gemm_hopper.cu: weights stay in registers while a block walks over pixels.
//
// Mathematics, layouts of pixels and results, epilogue and accuracy: those of implicit_gemm_hopper.cu.
// Work: a block has one tile of filters for good, every gridDim.x / (tiles of filters)-th tile of pixels, and one warp or
//   warpgroup that copies pixels, as far ahead as there are stages. Warpgroups load the weights of their filters for all
//   HELD_STEPS once, before the first pixel, and give them to each product as operand A in registers. So shared memory
//   holds, and the copy engine brings, pixels and residuals alone, and products read nothing else there.
//   The weights lie as pack_stationary of tamis.formats.hopper orders them: what a thread holds of a product is 16 bytes
//   that it loads at once. Registers cannot be indexed, so the number of steps is a constant, and all are unrolled.
//   With HALO the products of all TAPS of a run of channels are one group: nothing is awaited between them.
// Limits: registers. A step is 16 of them for every 64 filters, in 2:4 8 and one of metadata (in 8 bits two), beside
//   PIXELS / 2 sums; tamis.kernels.cuda.stationary has which tiles fit. No cluster.
// Roof: as implicit_gemm_hopper.cu with operand A in registers: 1502 TFLOP/s in 2:4 at N = 256, 1349 at 128, in int8 3067
//   and 2697 (H100, beside copies). Reached: 698 TFLOP/s at 64 channels, 791 at K = 512, both with every byte from memory
//   (H200; docs/design/0014-stationary-weights.md).
//
// Constants: those of implicit_gemm_hopper.cu, where STAGES are of pixels or lines alone, HELD_STEPS and TAPS.
#pragma once

static_assert(CLUSTER == 1, "each block copies its own pixels");
constexpr int AT_ONCE = HALO ? TAPS : 1;         // steps whose pixels come together
constexpr int RUNS = HELD_STEPS / AT_ONCE;       // of them, a tile
constexpr int FRAGMENT_BYTES = 16 * THREADS;     // operand A of a product
// Registers of a thread that copies, and of one that computes, where the former give some away.
constexpr int FEW = 24, MANY = RESIDENT == 1 ? 240 : 232;
using Stages = Ring<STAGES>;

// What a thread holds of the weights of its warpgroup.
struct Held {
    unsigned values[HELD_STEPS][BLOCKS][PARTS_OF_STEP][4];
    unsigned places[HELD_STEPS][BLOCKS * WORDS];
};

// Steps are held in the order in which they are used: channels that come together, tap by tap.
TAMIS_DEVICE void hold(Held &held, const unsigned char *tile, int chunks, int group, int thread) {
#pragma unroll
    for (int step = 0; step < HELD_STEPS; step++) {
        const int packed = HALO ? step % AT_ONCE * chunks + step / AT_ONCE : step;
        const unsigned char *from = tile + packed * WEIGHT_BYTES;
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            const int own = group * BLOCKS + block;
            // Of 16 filters, those of a warp, all products lie together.
            const unsigned char *values = from + own * MATRIX_BYTES + thread / 32 * (MATRIX_BYTES / 4) + thread % 32 * 16;
#pragma unroll
            for (int part = 0; part < PARTS_OF_STEP; part++)
                load_words<4>(reinterpret_cast<const unsigned *>(values + part * (FRAGMENT_BYTES / 4)),
                              held.values[step][block][part]);
            const unsigned char *places = from + GROUPS * BLOCKS * MATRIX_BYTES + own * PLACES_BYTES + thread * 4 * WORDS;
            if constexpr (SPARSE)
                load_words<WORDS>(reinterpret_cast<const unsigned *>(places), held.places[step] + block * WORDS);
        }
    }
}

// All products of a tile. Those of one run overlap with the wait for the next one's pixels; a run's stage is given back
// when they are done.
TAMIS_DEVICE void multiply_held(Sum (&sums)[BLOCKS][PIXELS / 2], const Held &held, Stages &ring, Walk &walk, int thread) {
    unsigned used = 0;  // the barrier of what running products may still read
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
        barrier_wait(ring.full(), ring.round);
        products_begin();
#pragma unroll
        for (int tap = 0; tap < AT_ONCE; tap++) {
            const int step = run * AT_ONCE + tap;
            unsigned pixels = ring.at();
            if constexpr (HALO) pixels += walk.shift() * 128, walk.next();
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
                for (int part = 0; part < PARTS_OF_STEP; part++) {
                    const auto b = operand(pixels + part * (SPARSE ? 64 : 32), 16, 1024, SWIZZLE_128);
                    const auto &a = held.values[step][block][part];
                    const unsigned *places = held.places[step] + block * WORDS;
                    const int keep = step > 0 || part > 0;
                    if constexpr (!SPARSE)
                        Product<PIXELS>::held_dense(sums[block], a, b, keep);
                    else if (part == 0)
                        Product<PIXELS>::template held_sparse<0>(sums[block], a, b, places[0], keep);
                    else
                        Product<PIXELS>::template held_sparse<2 - WORDS>(sums[block], a, b, places[WORDS - 1], keep);
                }
            }
        }
        products_commit();
        if (run > 0) {
            products_wait<1>();
            give_back(used, thread);
        }
        used = ring.empty();
        ring.next();
    }
    products_wait<0>();
    give_back(used, thread);
}

extern "C" __global__ void __launch_bounds__(THREADS *GROUPS + COPIERS, RESIDENT)
    KERNEL(const __grid_constant__ TensorMap map, const unsigned char *weights, const float *bias,
           const OUT_TYPE *residual, OUT_TYPE *out, int filters, int pixels, int, int chunks, int across, int out_width,
           int out_height, int stride_w, int stride_h, int pad_left, int pad_top, int dilation_w, int dilation_h,
           int lines, int line, int line_bytes, int, int pitch, int offset, int residual_pitch, int,
           int, int, int) {
    next_may_start();
    SHARED_MEMORY(memory);
    const unsigned base = shared_address(memory);
    Stages ring = {base + RING, base, HALO ? (line_bytes + 1023) / 1024 * 1024 : STAGE_BYTES, 0, 0};
    const int group = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int rows = (filters - 1) / FILTERS + 1, row = blockIdx.x % rows;  // tiles of filters
    const int area = out_width * out_height, per_image = HALO ? (out_height + lines - 1) / lines : 1;
    const int columns = HALO ? pixels / area * per_image : (pixels + PIXELS - 1) / PIXELS;
    const int first = blockIdx.x / rows, stride = gridDim.x / rows;
    if (threadIdx.x == 0) {
        ring.make(GROUPS * 4);
        barriers_made();
        fetch_map(map);
    }
    __syncthreads();

    if (group == GROUPS) {
        if constexpr (GIVES) give_registers<FEW>();
        if (thread > 0) return;
        previous_finished();
        for (int column = first; column < columns; column += stride) {
            const int pixel = column * PIXELS;
            const int w = HALO ? -pad_left : pixel % out_width * stride_w - pad_left;
            const int h = (HALO ? column % per_image * lines : pixel / out_width % out_height * stride_h) - pad_top;
            const int n = HALO ? column / per_image : pixel / area;
            for (int run = 0; run < RUNS; run++) {
                const int channel = (HALO ? run : run % chunks) * CHANNELS, tap = run / chunks;
                barrier_wait(ring.empty(), ring.round ^ 1);
                barrier_expect(ring.full(), HALO ? line_bytes : PIXEL_BYTES);
                if constexpr (HALO)
                    copy_lines(ring.at(), map, channel, w, h, n, ring.full());
                else if constexpr (IM2COL)
                    copy_pixels(ring.at(), map, channel, w, h, n, tap % across * dilation_w, tap / across * dilation_h,
                                ring.full());
                else
                    copy_rows(ring.at(), map, channel, pixel, ring.full());
                ring.next();
            }
        }
    } else {
        if constexpr (GIVES) take_registers<MANY>();
        Held held;
        hold(held, weights + (long long)row * HELD_STEPS * WEIGHT_BYTES, chunks, group, thread);
        previous_finished();
        unsigned char *strips = memory + STRIPS + group * STRIP_BYTES;
        Walk walk = {line, across, HALO ? TAPS / across : 1, dilation_w, dilation_h, 0, 0};
        const auto exit_of = [&](int column) {
            const int image = column / per_image * area, top = column % per_image * lines;
            const int bottom = out_height < top + lines ? out_height : top + lines;
            const Target target = HALO ? Target{image + top * out_width, image + bottom * out_width, line, out_width,
                                                (65535 + line) / line}
                                       : Target{column * PIXELS, pixels, 0, 0, 0};
            return Exit{target, row * FILTERS + group * BLOCKS * 64, filters, pitch, offset, residual_pitch, bias,
                        residual, out};
        };
        int turn = 0;
        if (ANNOUNCES && first < columns) announce(exit_of(first), thread);
        fetch_first_residuals(exit_of(first), first < columns, strips, thread);
        for (int column = first; column < columns; column += stride) {
            Sum sums[BLOCKS][PIXELS / 2];
            multiply_held(sums, held, ring, walk, thread);
            const bool more = column + stride < columns;
            if (ANNOUNCES && more) announce(exit_of(column + stride), thread);
            if constexpr (PACKED)
                leave_packed(sums, strips, turn, exit_of(column), exit_of(column + stride), more, group, thread);
            else
                leave(sums, reinterpret_cast<Sum *>(strips), group, thread, {}, exit_of(column));
        }
    }
}
