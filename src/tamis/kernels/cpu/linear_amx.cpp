/* Linear layers in bfloat16 on AMX tiles (Sapphire Rapids and later).
 *
 * MATHEMATICS. TDPBF16PS: C[m][n] += A[m][2p] B[p][2n] + A[m][2p+1] B[p][2n+1], m < 16 rows of X, n < 16 outputs,
 * p < 16 pairs of inputs; float32 sums, denormals are zero.
 *
 * OPERANDS. Tiles are 16 rows of 64 bytes, all contiguous here (1 KiB, stride 64):
 *
 *     A = X panel with groups of 32:  row m = x[16b + m][32t .. 32t+31]
 *     B = dense weight tile (formats/tiles.py) as it lies in memory: row p = pairs (2p, 2p+1) of 16 outputs
 *         2:4 weight tile rebuilt in the L1 cache: see expand_tile, two masked moves and one masked rotation for
 *         two rows of B, 1.7 times fewer vector operations than expanding with vpexpandw
 *     C = sums; tiles 0..3 = C, 4..5 = A, 6..7 = B
 *
 * BLOCKING. Up to 16 rows: 1 x 4 tiles of C, so that a tile of inputs is read once for 64 outputs (a layer's last one
 * or two tiles: 1 x 2 for even and 1 x 2 for odd k, since TDPBF16PS takes 52 cycles and starts every 16). Up to 32
 * rows: 2 x 2. Up to 64: 4 x 1; dense over all k, so that C never leaves the tiles; 2:4 with 128 inputs at a time, which
 * stay in the L1 cache while four tiles of outputs pass. More: 32 outputs x 256 inputs of dense weights (128 of 2:4 ones,
 * rebuilt once) stay in the L1 cache while all rows pass in pairs of tiles; C waits in the sums in between. The rows share
 * the fetching of the next weights, so that requests to memory are spread over the work.
 *
 * LIMITS. 1024 multiply-adds a cycle and core need 2 KiB of tiles in 16 cycles, more than the L2 cache gives (48 bytes a
 * cycle): 2 x 2 blocks load 4 KiB for 4 products; 4 x 1 blocks of dense weights 4 KiB of inputs from L2 and 1 KiB of
 * weights from L1, which allows three quarters of the peak. Streaming weights from memory binds up to about 32 rows; there
 * 2:4 can win 1.78 times. With one or a few rows vectors (linear_avx512_bf16.cpp) can be faster: tiles always compute 16
 * rows and 2:4 weights must be rebuilt; the race decides. Measured figures: docs/design/0005.
 *
 * The tile configuration belongs to the thread and oneDNN uses tiles too: it is saved and restored around a call.
 */
#include <immintrin.h>
#if defined(TAMIS_EMULATE_AMX)
#include "amx_emulated.h"
#endif

#include "panel.h"

namespace {

enum { TILE_BYTES = 1024, SPARSE_BYTES = 576, ROW_BYTES = 64, PREFETCH_AHEAD = 4096 };
enum { DENSE_PANEL = 8, SPARSE_PANEL = 4, TALL_STEPS = 4 }; /* steps of k at a time */

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* GCC's tile intrinsics do not say which memory they read: finish all stores before a tile instruction reads them. */
inline void finish_stores(const void *written) { __asm__ volatile("" : : "r"(written) : "memory"); }

void enter_tiles(int64_t rows, void *saved) {
    _tile_storeconfig(saved);
    TileConfig config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = ROW_BYTES;
        config.rows[tile] = (uint8_t)(tile < 6 ? smaller(rows, 16) : 16);
    }
    finish_stores(&config);
    _tile_loadconfig(&config);
}

void leave_tiles(void *saved) {
    if (*(const uint8_t *)saved) /* palette 0: nothing was configured */
        _tile_loadconfig(saved);
    else
        _tile_release();
}

/* Every `every`-th line, from line `first` on. */
inline void prefetch_lines(const uint8_t *from, int64_t bytes, int64_t first, int64_t every) {
    for (int64_t i = first * 64; i < bytes; i += every * 64) __builtin_prefetch(from + i, 0, 2);
}

/* Of 16 rows of inputs. */
inline int64_t bytes_of_block(const Task *task) { return BLOCK_ROWS * task->in.k * 2; }

/* Where the inputs of the unit's first rows begin, from tile k0 of k on. */
inline const uint8_t *first_inputs(const Task *task, const Unit *unit, int64_t k0) {
    return (const uint8_t *)task->in.data + unit->row / BLOCK_ROWS * bytes_of_block(task) + k0 * TILE_BYTES;
}

inline const uint8_t *first_weights(const Task *task, const Unit *unit) {
    return task->weight + (unit->tile * task->k_blocks + unit->k0) * task->tile_bytes;
}

/* A 2:4 tile to its dense form. Values keep the parity of their place, save one value of {0,2} and of {1,3}: where a
 * lane holds such a pair (its low word at an odd place or its high word at an even one), the value of the second
 * half is in the wrong word and rotates by 16 bits. */
inline void expand_tile(const uint8_t *tile, uint8_t *dense) {
    __m512i places = _mm512_loadu_si512(tile);
    const __m512i second_half = _mm512_set1_epi16(2), parities = _mm512_set1_epi32(0x00010001);
    const __m512i in_place = _mm512_set1_epi32(0x00010000);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        const __m512i values = _mm512_loadu_si512(tile + 64 + g * 64);
        const __mmask32 second = _mm512_test_epi16_mask(places, second_half);
        const __mmask16 crossed = _mm512_cmpneq_epi32_mask(_mm512_and_si512(places, parities), in_place);
        const __m512i low = _mm512_maskz_mov_epi16(~second, values);
        const __m512i high = _mm512_maskz_mov_epi16(second, values);
        _mm512_store_si512(dense + g * 128, low);
        _mm512_store_si512(dense + g * 128 + 64, _mm512_mask_rol_epi32(high, crossed, high, 16));
        places = _mm512_srli_epi16(places, 2);
    }
}

/* Where the weight tiles of one step of k come from (memory, or the rebuilt copies of 2:4 tiles), and which weights
 * to fetch into the L2 cache meanwhile. */
struct Weights {
    const uint8_t *first; /* tile of the first 16 outputs at the first k */
    int64_t to_next;      /* bytes to the tile of the next 16 outputs */
    int64_t step;         /* bytes to the next k */
    uint8_t *rebuilt;     /* room for two steps if the tiles are 2:4, else null */
    const uint8_t *fetch; /* like `first`, in memory */
    int64_t fetch_to_next, fetch_step;
    int64_t fetch_first, fetch_every; /* the share of the lines that these rows fetch */
};

/* Get the weight tiles of step t ready: rebuilt if they are 2:4, and what comes later on its way from memory. This is done
 * one step ahead of the products: a tile instruction cannot read stores that have not reached the L1 cache, and those wait
 * for every earlier instruction to finish. */
template <int N>
inline void prepare(const Weights &w, int64_t t, int64_t tiles) {
    const uint8_t *fetch = w.fetch + t * w.fetch_step;
    for (int n = 0; n < N; n++)
        prefetch_lines(fetch + n * w.fetch_to_next, w.fetch_step, w.fetch_first, w.fetch_every);
    if (!w.rebuilt || t >= tiles) return;
    uint8_t *dense = w.rebuilt + (t & 1) * N * TILE_BYTES;
    for (int n = 0; n < N; n++) expand_tile(w.first + t * w.step + n * w.to_next, dense + n * TILE_BYTES);
    finish_stores(dense);
}

/* The weight tiles of step t, which is prepared; the next one is prepared on the way. */
template <int N>
inline const uint8_t *next_weights(const Weights &w, int64_t t, int64_t tiles, int64_t *to_next) {
    prepare<N>(w, t + 1, tiles);
    *to_next = w.rebuilt ? (int64_t)TILE_BYTES : w.to_next;
    return w.rebuilt ? w.rebuilt + (t & 1) * N * TILE_BYTES : w.first + t * w.step;
}

/* 16 rows x 1 or 2 tiles of outputs, with sums of their own for even and odd k. sum is added to when `add`, else
 * overwritten. `spare`: 2 KiB. */
template <int N>
void multiply_narrow(const uint8_t *a, const Weights &w, int64_t tiles, float *sum, int64_t ld, bool add, int64_t rows,
                     float *spare) {
    const int64_t stride = ld * 4;
    finish_stores(sum);
    if (add) {
        _tile_loadd(0, sum, stride);
        if (N == 2) _tile_loadd(1, sum + 16, stride);
    } else {
        _tile_zero(0);
        if (N == 2) _tile_zero(1);
    }
    _tile_zero(2);
    if (N == 2) _tile_zero(3);
    int64_t t = 0, other;
    prepare<N>(w, 0, tiles);
    for (; t + 1 < tiles; t += 2) {
        const uint8_t *b = next_weights<N>(w, t, tiles, &other);
        _tile_loadd(4, a + t * TILE_BYTES, ROW_BYTES);
        _tile_loadd(6, b, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if (N == 2) {
            _tile_loadd(7, b + other, ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
        b = next_weights<N>(w, t + 1, tiles, &other);
        _tile_loadd(5, a + (t + 1) * TILE_BYTES, ROW_BYTES);
        _tile_loadd(6, b, ROW_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        if (N == 2) {
            _tile_loadd(7, b + other, ROW_BYTES);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    if (t < tiles) {
        const uint8_t *b = next_weights<N>(w, t, tiles, &other);
        _tile_loadd(4, a + t * TILE_BYTES, ROW_BYTES);
        _tile_loadd(6, b, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if (N == 2) {
            _tile_loadd(7, b + other, ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
    }
    _tile_stored(0, sum, stride);
    if (N == 2) _tile_stored(1, sum + 16, stride);
    if (tiles < 2) return;
    _tile_stored(2, spare, N * 64);
    if (N == 2) _tile_stored(3, spare + 16, N * 64);
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < 16 * N; c++) sum[r * ld + c] += spare[r * 16 * N + c];
}

/* 16 rows x 3 or 4 tiles of outputs: each tile of inputs is read once for all of them. */
template <int N>
void multiply_wide(const uint8_t *a, const Weights &w, int64_t tiles, float *sum, int64_t ld, bool add) {
    const int64_t stride = ld * 4;
    finish_stores(sum);
    if (add) {
        _tile_loadd(0, sum, stride);
        _tile_loadd(1, sum + 16, stride);
        _tile_loadd(2, sum + 32, stride);
        if (N == 4) _tile_loadd(3, sum + 48, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        if (N == 4) _tile_zero(3);
    }
    prepare<N>(w, 0, tiles);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t other;
        const uint8_t *b = next_weights<N>(w, t, tiles, &other);
        _tile_loadd(4, a + t * TILE_BYTES, ROW_BYTES);
        _tile_loadd(6, b, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + other, ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, b + 2 * other, ROW_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        if (N == 4) {
            _tile_loadd(7, b + 3 * other, ROW_BYTES);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, sum, stride);
    _tile_stored(1, sum + 16, stride);
    _tile_stored(2, sum + 32, stride);
    if (N == 4) _tile_stored(3, sum + 48, stride);
}

template <int N>
void multiply_one(const uint8_t *a, const Weights &w, int64_t tiles, float *sum, int64_t ld, bool add, int64_t rows,
                  float *spare) {
    if constexpr (N <= 2)
        multiply_narrow<N>(a, w, tiles, sum, ld, add, rows, spare);
    else
        multiply_wide<N>(a, w, tiles, sum, ld, add);
}

/* 32 rows x N tiles of outputs; a1 is the second block of rows. */
template <int N>
void multiply_two(const uint8_t *a0, const uint8_t *a1, const Weights &w, int64_t tiles, float *sum, int64_t ld,
                  bool add) {
    const int64_t stride = ld * 4;
    finish_stores(sum);
    float *lower = sum + 16 * ld;
    if (add) {
        _tile_loadd(0, sum, stride);
        _tile_loadd(2, lower, stride);
        if (N == 2) {
            _tile_loadd(1, sum + 16, stride);
            _tile_loadd(3, lower + 16, stride);
        }
    } else {
        _tile_zero(0);
        _tile_zero(2);
        if (N == 2) {
            _tile_zero(1);
            _tile_zero(3);
        }
    }
    prepare<N>(w, 0, tiles);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t other;
        const uint8_t *b = next_weights<N>(w, t, tiles, &other);
        _tile_loadd(6, b, ROW_BYTES);
        _tile_loadd(4, a0 + t * TILE_BYTES, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1 + t * TILE_BYTES, ROW_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        if (N == 2) {
            _tile_loadd(7, b + other, ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sum, stride);
    _tile_stored(2, lower, stride);
    if (N == 2) {
        _tile_stored(1, sum + 16, stride);
        _tile_stored(3, lower + 16, stride);
    }
}

/* One step of k for 48 or 64 rows and the weight tile b; x is the first block of rows. Weights that come later are fetched
 * between the products: what comes from memory shares the line buffers of a core with the inputs from the L2 cache. */
template <int BLOCKS>
inline void multiply_tall_step(const uint8_t *x, int64_t block_bytes, const uint8_t *b, const uint8_t *later, int64_t bytes) {
    _tile_loadd(6, b, ROW_BYTES);
    _tile_loadd(4, x, ROW_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    prefetch_lines(later, bytes, 0, 4);
    _tile_loadd(5, x + block_bytes, ROW_BYTES);
    _tile_dpbf16ps(1, 5, 6);
    prefetch_lines(later, bytes, 1, 4);
    _tile_loadd(4, x + 2 * block_bytes, ROW_BYTES);
    _tile_dpbf16ps(2, 4, 6);
    prefetch_lines(later, bytes, 2, 4);
    if (BLOCKS == 4) {
        _tile_loadd(5, x + 3 * block_bytes, ROW_BYTES);
        _tile_dpbf16ps(3, 5, 6);
    }
    prefetch_lines(later, bytes, 3, 4);
}

template <int BLOCKS>
inline void begin_tall(const float *sum, int64_t ld, bool add) {
    if (!add) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        if (BLOCKS == 4) _tile_zero(3);
        return;
    }
    const int64_t stride = ld * 4, block = 16 * ld;
    _tile_loadd(0, sum, stride);
    _tile_loadd(1, sum + block, stride);
    _tile_loadd(2, sum + 2 * block, stride);
    if (BLOCKS == 4) _tile_loadd(3, sum + 3 * block, stride);
}

template <int BLOCKS>
inline void end_tall(float *sum, int64_t ld) {
    const int64_t stride = ld * 4, block = 16 * ld;
    _tile_stored(0, sum, stride);
    _tile_stored(1, sum + block, stride);
    _tile_stored(2, sum + 2 * block, stride);
    if (BLOCKS == 4) _tile_stored(3, sum + 3 * block, stride);
}

/* 48 or 64 rows x n_tiles of dense weights, each tile of outputs over all k: sums never leave the tiles. */
template <int BLOCKS>
void multiply_tall(const uint8_t *a, int64_t block_bytes, const uint8_t *weight, int64_t to_next, int64_t n_tiles,
                   int64_t tiles, float *sum, int64_t ld) {
    for (int64_t n = 0; n < n_tiles; n++, weight += to_next, sum += TILE_N) {
        begin_tall<BLOCKS>(sum, ld, false);
        for (int64_t t = 0; t < tiles; t++) {
            const uint8_t *b = weight + t * TILE_BYTES;
            multiply_tall_step<BLOCKS>(a + t * TILE_BYTES, block_bytes, b, b + PREFETCH_AHEAD, TILE_BYTES);
        }
        end_tall<BLOCKS>(sum, ld);
    }
}

/* 48 or 64 rows x n_tiles of 2:4 weights, TALL_STEPS of k at a time for all of them: the inputs of so many steps stay in the
 * L1 cache while they pass, beside the sums of 4 tiles. One tile is rebuilt ahead, in the order in which they come. */
template <int BLOCKS>
void multiply_tall_sparse(const uint8_t *a, int64_t block_bytes, const uint8_t *weight, int64_t to_next, int64_t n_tiles,
                          int64_t tiles, float *sum, int64_t ld, uint8_t *rebuilt) {
    uint8_t *now = rebuilt, *next = rebuilt + TILE_BYTES;
    expand_tile(weight, now);
    for (int64_t k = 0; k < tiles; k += TALL_STEPS) {
        const int64_t end = smaller(k + TALL_STEPS, tiles);
        for (int64_t n = 0; n < n_tiles; n++) {
            const bool last = n + 1 == n_tiles;
            const uint8_t *of_n = weight + n * to_next;
            const uint8_t *behind = last ? weight + end * SPARSE_BYTES : of_n + to_next + k * SPARSE_BYTES;
            begin_tall<BLOCKS>(sum + n * TILE_N, ld, k > 0);
            for (int64_t t = k; t < end; t++) {
                const uint8_t *later = of_n + (t + TALL_STEPS) * SPARSE_BYTES;
                if (t + 1 < end)
                    expand_tile(of_n + (t + 1) * SPARSE_BYTES, next);
                else if (!last || end < tiles)
                    expand_tile(behind, next);
                finish_stores(rebuilt);
                multiply_tall_step<BLOCKS>(a + t * TILE_BYTES, block_bytes, now, later, SPARSE_BYTES);
                uint8_t *used = now;
                now = next;
                next = used;
            }
            end_tall<BLOCKS>(sum + n * TILE_N, ld);
        }
    }
}

inline bool is_tall(int64_t rows) { return rows > 32 && rows <= 64; }

/* A tall unit: BLOCKS times 16 rows. */
template <int BLOCKS>
void multiply_tall_unit(const Task *task, const Unit *unit, float *sum, int64_t ld, uint8_t *rebuilt) {
    const int64_t step = task->tile_bytes, to_next = task->k_blocks * step, tiles = unit->k1 - unit->k0;
    const int64_t block_bytes = bytes_of_block(task);
    const uint8_t *weight = first_weights(task, unit), *a = first_inputs(task, unit, unit->k0);
    if (task->pattern == TAMIS_DENSE)
        multiply_tall<BLOCKS>(a, block_bytes, weight, to_next, unit->tiles, tiles, sum, ld);
    else
        multiply_tall_sparse<BLOCKS>(a, block_bytes, weight, to_next, unit->tiles, tiles, sum, ld, rebuilt);
}

constexpr int smaller_of(int a, int b) { return a < b ? a : b; }

struct Scratch {
    uint8_t rebuilt[2 * MAX_GROUP_TILES * TILE_BYTES]; /* 2 steps of 4 tiles, or SPARSE_PANEL steps of 2 */
    float spare[16 * 32];
};

/* All rows of the unit against `tiles` steps of k from step k0 on; the rows share the fetching of what comes next. */
template <int N>
void multiply_steps(const Task *task, const Unit *unit, Weights w, int64_t k0, int64_t tiles, float *sum, int64_t ld,
                    bool add, Scratch *scratch) {
    const int64_t block_bytes = bytes_of_block(task);
    const uint8_t *a = first_inputs(task, unit, k0);
    w.fetch_every = (unit->rows + 31) / 32;
    for (int64_t row = 0; row < unit->rows; row += 32, a += 2 * block_bytes) {
        const int64_t rows = unit->rows - row;
        w.fetch_first = row / 32;
        if (N <= 2 && rows > 16)
            multiply_two<smaller_of(N, 2)>(a, a + block_bytes, w, tiles, sum + row * ld, ld, add);
        else
            multiply_one<N>(a, w, tiles, sum + row * ld, ld, add, rows, scratch->spare);
    }
}

template <int N>
void multiply_tiles(const Task *task, const Unit *unit, float *sum, int64_t ld, Scratch *scratch) {
    const int64_t step = task->tile_bytes, to_next = task->k_blocks * step;
    const uint8_t *weight = first_weights(task, unit);
    const bool dense = task->pattern == TAMIS_DENSE;
    const int64_t all = unit->k1 - unit->k0;
    if (unit->rows <= 32) {
        const Weights w = {weight, to_next, step, dense ? nullptr : scratch->rebuilt, weight + PREFETCH_AHEAD, to_next,
                           step, 0, 1};
        multiply_steps<N>(task, unit, w, unit->k0, all, sum, ld, false, scratch);
        return;
    }
    const int64_t panel = dense ? DENSE_PANEL : SPARSE_PANEL;
    for (int64_t t = 0; t < all; t += panel) {
        const int64_t tiles = smaller(panel, all - t);
        const uint8_t *from = weight + t * step;
        Weights w = {from, to_next, step, nullptr, from + panel * step, to_next, step, 0, 1};
        if (!dense) {
            for (int64_t i = 0; i < N * tiles; i++)
                expand_tile(from + i / tiles * to_next + i % tiles * step,
                            scratch->rebuilt + (i / tiles * panel + i % tiles) * TILE_BYTES);
            finish_stores(scratch->rebuilt);
            w.first = scratch->rebuilt;
            w.to_next = panel * TILE_BYTES;
            w.step = TILE_BYTES;
        }
        multiply_steps<N>(task, unit, w, unit->k0 + t, tiles, sum, ld, t > 0, scratch);
    }
}

void multiply_unit_amx(const Task *task, const Unit *unit, float *sum, int64_t ld, void *scratch) {
    if (is_tall(unit->rows)) {
        uint8_t *rebuilt = ((Scratch *)scratch)->rebuilt;
        if (unit->rows > 48) return multiply_tall_unit<4>(task, unit, sum, ld, rebuilt);
        return multiply_tall_unit<3>(task, unit, sum, ld, rebuilt);
    }
    switch (unit->tiles) {
        case 4: return multiply_tiles<4>(task, unit, sum, ld, (Scratch *)scratch);
        case 3: return multiply_tiles<3>(task, unit, sum, ld, (Scratch *)scratch);
        case 2: return multiply_tiles<2>(task, unit, sum, ld, (Scratch *)scratch);
        default: return multiply_tiles<1>(task, unit, sum, ld, (Scratch *)scratch);
    }
}

bool many_tiles(int64_t rows) { return rows <= 16 || is_tall(rows); }

}  // namespace

const Kernels *amx_kernels(int32_t weight_dtype) {
    static const Kernels bfloat16 = {TAMIS_BF16, 32, 1, 2, many_tiles, 1 << 20, sizeof(Scratch),
                                     enter_tiles, leave_tiles, multiply_unit_amx, finish_unit, pack_panel};
    return weight_dtype == TAMIS_BF16 ? &bfloat16 : nullptr;
}
