// The pooled form of implicit_gemm_hopper.cu: max pooling of stride 2 behind the convolution, in registers.
//
// Mathematics: out[n][y][x] = max of c[n][2 y - top + i][2 x - left + j] over 0 <= i, j < POOL (2 or 3), where c is what the
//   convolution would have written: finished, and rounded to OUT_TYPE. What lies outside of c counts as -inf; NaN within a
//   window gives NaN. Of two zeros the positive one is the larger; else the values are those of the two layers.
// Layouts: X, weights and bias as in implicit_gemm_hopper.cu, with HALO; out is [images, pooled_height, pooled_width, pitch].
// Work: a block has one tile of filters for good, and a run of tiles of pixels that lie below each other, image after image.
//   A tile is TILE_LINES whole lines, an even number, LINE pixels from line to line. It begins where no window of stride 2
//   is cut, but for the last line of the tile above if POOL is 3. That line, pooled along itself, stays in registers: the
//   next tile has the same filters and columns in the same threads. A run that begins within an image computes the tile
//   above its first one too, and stores nothing of it. With WEIGHTS_STAY shared memory holds all steps' weights, which
//   come once.
//   With SLIDING so do lines of pixels: they lie in a ring of LINE_STAGES lines, those that the next tile sees stay, and
//   each line of a tile has instructions of its own, of PIXELS columns. That takes weights that stay, and one run of
//   channels.
//   BY_TURNS: the two warpgroups of a block have the same filters, and each its own run of tiles and ring of lines, which
//   a warp of its own fills. One multiplies while the other's results leave; each says so when its last products have
//   begun. Blocks that share a multiprocessor, or warpgroups that do not take turns, begin at the same time and, as far as
//   times tell, stay in step: all multiply, then all pool.
//   Pooling needs no shared memory: LINE is a multiple of eight, so a column's pixels of all lines lie in the same thread,
//   which has pairs of columns (2 c, 2 c + 1); the column before comes from the thread before, of the same quad. Results
//   then turn as in hopper_leave.h, a quarter as many.
// Limits: those of HALO; no residual, no groups, 16 bits, filters a multiple of eight (VECTORS). COLUMNS / 8 registers hold
//   a line for every 64 filters.
// Roof: products, or what the copy engine brings from L2 at 35 bytes a clock: TILE_LINES lines a tile, and if not SLIDING
//   those that taps see below these once more. The stem of a ResNet (H200) keeps the tensor cores busy
//   for 58 % of the time: docs/design/0016-pooling-in-the-epilogue.md.
//
// Constants: those of implicit_gemm_hopper.cu; POOL, TILE_LINES, LINE, COLUMNS (of a tile, a multiple of eight), WIDE (of
// the convolution), FIRST_COLUMN (of the convolution's, where a tile's begin), ALL_LINES (1: those of every tile are the
// convolution's), WEIGHTS_STAY, SLIDING, BY_TURNS.
#pragma once

static_assert(HALO && !RESIDUAL && !GROUPED && CLUSTER == 1 && sizeof(OUT_TYPE) == 2 && VECTORS && !EIGHT_BITS, "pooling");
static_assert(LINE % 8 == 0 && COLUMNS % 8 == 0 && COLUMNS <= LINE && TILE_LINES % 2 == 0, "columns meet in a thread");
static_assert((SLIDING ? 0 : TILE_LINES - 1) * LINE + COLUMNS <= PIXELS, "all lines are computed");
static_assert(!SLIDING || WEIGHTS_STAY, "steps go through the lines, not through stages");
static_assert(!BY_TURNS || (SLIDING && GROUPS == 2 && GIVES), "two warpgroups, and one whose warps copy for one each");
constexpr int RUNS = BY_TURNS ? GROUPS : 1;  // of tiles, that a block has
static_assert((STAGES + RUNS * LINE_STAGES + 1) * 16 <= STRIPS, "barriers");
constexpr int OCTETS = COLUMNS / 8;       // a thread has two columns of each
constexpr int POOLED_COLUMNS = COLUMNS / 2;
constexpr int PRODUCTS = SLIDING ? BLOCKS * TILE_LINES : BLOCKS;  // of a warpgroup in a step, each with its sums
using Sums = Sum[PRODUCTS][PIXELS / 2];
constexpr unsigned LOWEST = *PRODUCT_TYPE == 'b' ? 0xff80ff80u : 0xfc00fc00u;  // -inf, twice

// The larger of two pairs each; NaN where one is.
TAMIS_DEVICE unsigned larger(unsigned a, unsigned b) {
#ifdef TAMIS_EMULATED
    float left[2], right[2];
    Convert<OUT_TYPE>::unpack(a, left), Convert<OUT_TYPE>::unpack(b, right);
    for (int j = 0; j < 2; j++) left[j] = left[j] != left[j] || left[j] > right[j] ? left[j] : right[j];
    return Convert<OUT_TYPE>::pack(left);
#else
    unsigned result;
    asm("max.NaN." PRODUCT_TYPE "x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
#endif
}

// Two words' halves: the lower ones, and the upper ones.
TAMIS_DEVICE unsigned lower_halves(unsigned a, unsigned b) { return __byte_perm(a, b, 0x5410); }
TAMIS_DEVICE unsigned upper_halves(unsigned a, unsigned b) { return __byte_perm(a, b, 0x7632); }

// Where the pooled lines of a tile go.
struct PooledExit {
    int line, height;           // of the convolution: the tile's first one, and how many there are
    int pooled, pooled_height;  // the same of the result
    int image, width, first;    // of the result: its columns, and which of them is a tile's first one
    int filters, pitch;
    int channel;    // this thread's first one
    OUT_TYPE *out;  // of this channel
};

// A line of a block of 64 filters, pooled along itself, eight columns at a time from the left. A word has filters q and
// q + 8 of one column.
struct Across {
    int lane;
    unsigned before;  // the right column of this thread's last pair
    TAMIS_DEVICE unsigned column(const Sum (&sums)[PIXELS / 2], const float (&biases)[2], int at, int octet, int lane,
                                 int j) {
        const float values[2] = {finished(sums[at + j] + biases[0], 0.0f), finished(sums[at + 2 + j] + biases[1], 0.0f)};
        const int place = FIRST_COLUMN + octet * 8 + lane % 4 * 2 + j;
        const bool all = FIRST_COLUMN + octet * 8 >= 0 && FIRST_COLUMN + octet * 8 + 8 <= WIDE;
        return all || (place >= 0 && place < WIDE) ? Convert<OUT_TYPE>::pack(values) : LOWEST;
    }
    __device__ __forceinline__ unsigned next(const Sums &sums, const float (&biases)[2], int block, int line, int octet) {
        const int at = ((SLIDING ? 0 : line * LINE) + octet * 8) / 2;
        const auto &own = sums[SLIDING ? block * TILE_LINES + line : block];
        const unsigned left = column(own, biases, at, octet, lane, 0), right = column(own, biases, at, octet, lane, 1);
        unsigned largest = larger(left, right);
        if constexpr (POOL == 3) {
            // A quad's first thread needs what its last one had of the eight columns before.
            const unsigned given = lane % 4 == 3 ? before : right;
            largest = larger(largest, __shfl_sync(0xffffffffu, given, (lane & ~3) | ((lane + 3) & 3)));
            before = right;
        }
        return largest;
    }
};

// Pools a tile. `above` is the line above, of each eight columns, and becomes the tile's last one.
TAMIS_DEVICE void leave_pooled(const Sums &sums, unsigned (&above)[BLOCKS][OCTETS],
                               const float (&biases)[BLOCKS][2], unsigned char *strip, const PooledExit &to, bool stores,
                               int group, int thread) {
    const int warp = thread / 32, lane = thread % 32;
    // This lane's row of the matrices that a warp moves at a time: filters 0 - 7 and 8 - 15 of two times eight columns. A
    // thread's values of two octets are neighbours in its word, four pooled columns apart.
    const unsigned mine = shared_address(strip) + (lane / 16 * 8 + lane % 2 * 4 + lane % 8 / 2) * ROW_BYTES +
                          (warp * 16 + lane / 8 % 2 * 8) * 2;
    constexpr int PASSES = (POOLED_COLUMNS + ROWS - 1) / ROWS;
    const unsigned char *leaving = strip + thread / CHUNKS * ROW_BYTES + thread % CHUNKS * 16;
    const int x = to.first + thread / CHUNKS;
#pragma unroll
    for (int half = 0; half < TILE_LINES / 2; half++) {
        const int line = to.line + half * 2, pooled = to.pooled + half;
        const bool exist[2] = {ALL_LINES || (line >= 0 && line < to.height),
                               ALL_LINES || (line + 1 >= 0 && line + 1 < to.height)};
        const bool leaves = stores && pooled >= 0 && pooled < to.pooled_height && to.channel < to.filters;
        threads_meet(group + 1, THREADS);  // the pooled line before has been read
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            Across lines[2] = {{lane, LOWEST}, {lane, LOWEST}};
#pragma unroll
            for (int octet = 0; octet < OCTETS; octet += 4) {
                unsigned largest[4] = {};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (octet + i >= OCTETS) continue;
                    unsigned each[2];
#pragma unroll
                    for (int l = 0; l < 2; l++) {
                        each[l] = lines[l].next(sums, biases[block], block, half * 2 + l, octet + i);
                        each[l] = exist[l] ? each[l] : LOWEST;
                    }
                    largest[i] = larger(each[0], each[1]);
                    if constexpr (POOL == 3) {
                        largest[i] = larger(largest[i], above[block][octet + i]);
                        above[block][octet + i] = each[1];
                    }
                }
                unsigned words[4];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    words[2 * i] = lower_halves(largest[2 * i], largest[2 * i + 1]);
                    words[2 * i + 1] = upper_halves(largest[2 * i], largest[2 * i + 1]);
                }
                store_turned(mine + octet * 4 * ROW_BYTES + block * 128, words);
            }
        }
        threads_meet(group + 1, THREADS);
        if (!leaves) continue;
        const int pixel = (to.image * to.pooled_height + pooled) * to.width + x;
        unsigned words[PASSES][4];
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++)
            load_words<4>(reinterpret_cast<const unsigned *>(leaving + pass * ROWS * ROW_BYTES), words[pass]);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            OUT_TYPE *at = to.out + (long long)(pixel + pass * ROWS) * to.pitch;
            const bool exists = pass * ROWS + thread / CHUNKS < POOLED_COLUMNS && x + pass * ROWS >= 0;
            if (exists && x + pass * ROWS < to.width) store_words<4>(reinterpret_cast<unsigned *>(at), words[pass]);
        }
    }
}

#if SLIDING
// Lines in a ring; `first` is where a tile's first one lies, in which round.
struct Slots {
    unsigned lines, barriers;
    int first;
    unsigned round;
    __device__ __forceinline__ int slot(int line) const {
        return first + line - (first + line >= LINE_STAGES ? LINE_STAGES : 0);
    }
    __device__ __forceinline__ unsigned at(int line) const { return lines + slot(line) * (LINE * 128); }
    __device__ __forceinline__ unsigned full(int line) const { return barriers + slot(line) * 16; }
    __device__ __forceinline__ unsigned empty(int line) const { return full(line) + 8; }
    __device__ __forceinline__ unsigned round_of(int line) const { return round ^ (first + line >= LINE_STAGES); }
    __device__ __forceinline__ void advance(int count) {
        first += count;
        if (first >= LINE_STAGES) first -= LINE_STAGES, round ^= 1;
    }
};

// Whose turn it is to multiply: the first warpgroup's, then the second one's, tile by tile, as far as both have any. Of
// each there is a barrier whose phases are its tiles, over when their last products have begun.
struct Turns {
    unsigned barriers;
    int group, others;  // how many tiles the other warpgroup has
    __device__ __forceinline__ void await(int tile) const {
        const int before = group == 0 ? tile - 1 : tile;
        if (BY_TURNS && before >= 0 && before < others) barrier_wait(barriers + (1 - group) * 8, before & 1);
    }
    __device__ __forceinline__ void pass(int thread) const {
        if (BY_TURNS && thread % 32 == 0) barrier_arrive(barriers + group * 8);
    }
};

// All products of a tile, of a set of filters. The lines that the next tile does not see are given back, all of them if
// there is none.
TAMIS_DEVICE void multiply_sliding(Sums &sums, const Steps &ring, Slots &slots, Walk &walk, const Turns &turns,
                                   const unsigned char *memory, int set, int thread, int steps, bool last) {
    unsigned even[BLOCKS * WORDS] = {}, odd[BLOCKS * WORDS] = {};
    unsigned used = 0;  // the barrier of a line that nothing but running products reads
    const auto start_step = [&](unsigned(&places)[BLOCKS * WORDS], int step) {
        const unsigned full = ring.barriers + step * 16, weights = ring.stages + step * STAGE_BYTES;
        if (walk.x == 0)
#pragma unroll
            for (int line = 0; line < TILE_LINES; line++)
                barrier_wait(slots.full(walk.y + line), slots.round_of(walk.y + line));
        barrier_wait(full, 0);
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            const int at = RING + step * STAGE_BYTES + SETS * BLOCKS * MATRIX_BYTES +
                           (set * BLOCKS + block) * PLACES_BYTES + thread * 4 * WORDS;
            if constexpr (SPARSE)
                load_words<WORDS>(reinterpret_cast<const unsigned *>(memory + at), places + block * WORDS);
        }
        products_begin();
#pragma unroll
        for (int number = 0; number < PRODUCTS; number++) {
            const int block = number / TILE_LINES, line = number % TILE_LINES;
            const unsigned pixels = slots.at(walk.y + line) + walk.x * walk.dilation_w * 128;
            const auto rows = operand(weights + (set * BLOCKS + block) * MATRIX_BYTES, 128, 256, PLAIN);
            const auto columns = operand(pixels, 16, 1024, SWIZZLE_128);
#pragma unroll
            for (int part = 0; part < PARTS_OF_STEP; part++) {
                const auto a = further(rows, part * 2048), b = further(columns, part * (SPARSE ? 64 : 32));
                const int keep = step > 0 || part > 0;
                start_product(sums[number], a, b, places + block * WORDS, part, keep);
            }
        }
        products_commit();
    };
    const auto started = [&] {
        if (used) give_back(used, thread);
        used = walk.x + 1 == walk.across && walk.y < TILE_LINES ? slots.empty(walk.y) : 0;
        walk.next();
    };
    for (int step = 0; step < steps; step += 2) {
        start_step(even, step);
        products_wait<1>();
        hold_registers(odd);
        started();
        if (step + 1 < steps) {
            start_step(odd, step + 1);
            products_wait<1>();
            hold_registers(even);
            started();
        }
    }
    turns.pass(thread);
    products_wait<0>();
    hold_registers(even);
    hold_registers(odd);
    if (used) give_back(used, thread);
    const int lines = last ? TILE_LINES + walk.down - 1 : TILE_LINES;
    for (int line = walk.down < TILE_LINES ? walk.down : TILE_LINES; line < lines; line++)
        give_back(slots.empty(line), thread);
    slots.advance(lines);
}
#endif

// Where a run is: how many tiles are left, and which one of which image this one is, from the top.
struct Position {
    int left, image, top;
    __device__ __forceinline__ void next(int tops) {
        left--;
        if (++top == tops) top = 0, image++;
    }
};

// `tops` tiles lie below each other in an image, from line `first_line` of the convolution and `first_pooled` of the result
// on, which may begin outside; `first_x` is where a tile's columns begin in the result.
extern "C" __global__ void __launch_bounds__(THREADS *GROUPS + COPIERS, RESIDENT)
    KERNEL(const __grid_constant__ TensorMap map, const unsigned char *weights, const float *bias, const OUT_TYPE *,
           OUT_TYPE *out, int filters, int images, int steps, int chunks, int across, int height, int pad_left,
           int pad_top, int dilation_w, int dilation_h, int line_bytes, int tops, int first_line, int first_pooled,
           int first_x, int pooled_width, int pooled_height, int pitch, int offset) {
    next_may_start();
    SHARED_MEMORY(memory);
    const unsigned base = shared_address(memory);
    Steps ring = {base + RING, base, STAGE_BYTES, 0, 0};
    // By a shuffle the compiler knows that it is the same for a whole warp, and keeps operands of products in uniform
    // registers. Where lines do not slide some tiles would spill then.
    const int group = SLIDING ? (int)__shfl_sync(0xffffffffu, threadIdx.x / THREADS, 0) : (int)(threadIdx.x / THREADS);
    const int thread = threadIdx.x % THREADS;
    // Which of the block's runs, rings of lines and sets of filters is this warp's; a warp that copies serves all sets.
    const int own = !BY_TURNS ? 0 : group < GROUPS ? group : (int)__shfl_sync(0xffffffffu, thread / 32, 0);
    const int set = BY_TURNS ? 0 : group;
    const unsigned line_barriers = base + STAGES * 16, turn_barriers = line_barriers + RUNS * LINE_STAGES * 16;
#if SLIDING
    Slots slots = {base + LINES + own * (LINE_STAGES * LINE * 128), line_barriers + own * (LINE_STAGES * 16), 0, 0};
#endif
    Lines halo = {base + LINES, line_barriers, (line_bytes + 1023) / 1024 * 1024, 0, 0};
    const int rows = (filters - 1) / FILTERS + 1, row = blockIdx.x % rows;  // tiles of filters
    const int runs = gridDim.x / rows * RUNS, tiles = images * tops, shortest = tiles / runs;
    struct Run {
        int from, begin, end;  // what is before `begin` is computed for the line above, and does not leave
    };
    const auto run_of = [&](int which) {
        const int run = blockIdx.x / rows * RUNS + which, longer = tiles - shortest * runs;  // the first ones, by one
        const int begin = run * shortest + (run < longer ? run : longer), end = begin + shortest + (run < longer);
        return Run{POOL == 3 && begin < end && begin % tops > 0 ? begin - 1 : begin, begin, end};
    };
    const auto [from, begin, end] = run_of(own);
    Position at = {end - from, from / tops, from % tops};
    if (threadIdx.x == 0) {
        ring.make(SETS * 4);
        for (int i = 0; i < RUNS; i++) {
            Lines{0, line_barriers + i * (LINE_STAGES * 16), 0, 0, 0}.make(SETS * 4);
            if (BY_TURNS) barrier_make(turn_barriers + i * 8, 4);
        }
        barriers_made();
        fetch_map(map);
    }
    __syncthreads();

    if (group == GROUPS) {
        if constexpr (GIVES) give_registers<COPIERS_KEEP>();
        if (thread % 32 > 0 || thread / 32 >= RUNS) return;
        const unsigned char *packed = weights + (long long)row * steps * WEIGHT_BYTES;
        const int taps = steps / chunks;
        const auto fill = [&](const Steps &to, int step) {
            barrier_expect(to.full(), WEIGHT_BYTES);
            copy_bytes(to.at(), packed + (long long)(step % taps * chunks + step / taps) * WEIGHT_BYTES, WEIGHT_BYTES,
                       to.full());
        };
        int filled = 0;  // the first weights need not wait for the kernel before
        if (thread == 0 && begin < end)
            for (Steps to = ring; filled < steps && filled < STAGES; to.next()) fill(to, filled++);
        previous_finished();
#if SLIDING
        const int kept = taps / across - 1;
        for (bool begins = true; at.left > 0; at.next(tops), begins = false) {
            const int line = first_line + at.top * TILE_LINES;
            for (int i = begins || at.top == 0 ? 0 : kept; i < TILE_LINES + kept; i++) {
                barrier_wait(slots.empty(0), slots.round ^ 1);
                barrier_expect(slots.full(0), LINE * 128);
                copy_lines(slots.at(0), map, 0, FIRST_COLUMN - pad_left, line - pad_top + i, at.image, slots.full(0));
                slots.advance(1);
            }
        }
#else
        for (; at.left > 0; at.next(tops), filled = 0) {
            const int line = first_line + at.top * TILE_LINES;
            for (int step = 0; step < steps; step++) {
                if (!WEIGHTS_STAY && step >= filled) {
                    barrier_wait(ring.empty(), ring.round ^ 1);
                    fill(ring, step);
                }
                if (step % taps == 0) {
                    barrier_wait(halo.empty(), halo.round ^ 1);
                    barrier_expect(halo.full(), line_bytes);
                    copy_lines(halo.at(), map, step / taps * CHANNELS, FIRST_COLUMN - pad_left, line - pad_top, at.image,
                               halo.full());
                    halo.next();
                }
                ring.next();
            }
        }
#endif
    } else {
        if constexpr (GIVES) take_registers<(504 - COPIERS_KEEP) / 2>();
        previous_finished();
        unsigned char *strip = memory + STRIPS + group * LEAVING_BYTES;
        Walk walk = {LINE, across, steps / chunks / across, dilation_w, dilation_h, 0, 0};
        const int filter = row * FILTERS + set * BLOCKS * 64, channel = filter + thread % CHUNKS * 8;
        float biases[BLOCKS][2];
        unsigned above[BLOCKS][OCTETS];
#pragma unroll
        for (int i = 0; i < BLOCKS * 2; i++) {
            const int at = filter + i / 2 * 64 + thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
            biases[i / 2][i % 2] = BIAS && at < filters ? bias[at] : 0.0f;
        }
#if SLIDING
        const Run others = run_of(RUNS - 1 - own);
        const Turns turns = {turn_barriers, group, others.end - others.from};
#endif
        const auto forget = [&] {
#pragma unroll
            for (int i = 0; i < BLOCKS * OCTETS; i++) above[i / OCTETS][i % OCTETS] = LOWEST;
        };
        forget();
        for (bool stores = from == begin; at.left > 0; at.next(tops), stores = true) {
            if (at.top == 0) forget();
            Sums sums;
#if SLIDING
            turns.await(end - from - at.left);
            multiply_sliding(sums, ring, slots, walk, turns, memory, set, thread, steps, at.top + 1 == tops);
#else
            multiply(sums, ring, halo, walk, memory, group, thread, steps);
            if constexpr (WEIGHTS_STAY) ring.round = 0;  // each stage is full for good
#endif
            const PooledExit to = {first_line + at.top * TILE_LINES, height, first_pooled + at.top * (TILE_LINES / 2),
                                   pooled_height, at.image, pooled_width, first_x, filters, pitch, channel,
                                   out + offset + channel};
            leave_pooled(sums, above, biases, strip, to, stores, group, thread);
        }
    }
}
