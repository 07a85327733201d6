/* What the driver (linear.cpp, plan.cpp) and the kernels of one instruction set say to each other.
 *
 * PANELS. Inputs are repacked, so that a kernel reads one sequential stream whatever X's strides are. A panel
 * holds blocks of 16 rows; inside a block, `group` consecutive k of one row lie together, row after row:
 *
 *     block b = rows 16b..16b+15:   [k / group][block rows][group]
 *
 * block rows = 16, or for the last block of a growing layout the next power of two of the rows that are left.
 * Vector kernels take group = 4 (what a 2:4 group selects from), AMX takes 32 (an A tile as it stands).
 * k is padded with zeros to a multiple of 32; rows of padding hold anything and touch no other row.
 *
 * WORK. A layer is cut into units: (some tiles of 16 outputs) x (a chunk of rows) x (a part of k). A unit sums
 * into a float32 scratch [rows][ld]; `finish` adds bias, runs the epilogue and stores.
 *
 * Everything that is compiled for one instruction set lives in anonymous namespaces: the linker must never
 * merge a function compiled with AVX-512 with its portable twin.
 */
#ifndef TAMIS_INTERNAL_H
#define TAMIS_INTERNAL_H

#include "tamis_cpu.h"

#define TAMIS_HIDDEN __attribute__((visibility("hidden")))

enum { TILE_N = 16, TILE_K = 32, BLOCK_ROWS = 16, MAX_GROUP_TILES = 4 };

struct Panel {
    void *data;
    int64_t rows;  /* live rows */
    int64_t k;     /* padded to TILE_K */
    int32_t dtype; /* of its elements */
    int32_t group;
    int32_t full_blocks; /* every block has 16 rows, the last one too */
};

struct Task {
    const uint8_t *weight;
    int64_t tile_bytes;
    int64_t n, k_blocks;
    int32_t pattern, epilogue_count;
    const float *bias;
    const tamis_epilogue *epilogue;
    tamis_matrix residual;
    Panel in;
    Panel out;      /* used when out.data is not null, else y */
    int64_t out_columns; /* of out: this layer's outputs and the zeros behind them; a multiple of TILE_N */
    tamis_matrix y;
};

struct Unit {
    int64_t tile, tiles; /* tiles of outputs */
    int64_t k0, k1;      /* tiles of inputs */
    int64_t row, rows;   /* row is a multiple of BLOCK_ROWS */
};

struct Kernels {
    int32_t panel_dtype, panel_group, panel_full_blocks;
    int32_t min_group_tiles;  /* fewest tiles of outputs in a unit that run well */
    /* Whether the units of a layer with so many rows have up to MAX_GROUP_TILES tiles, else the fewest. */
    bool (*many_tiles)(int64_t rows);
    int64_t chunk_bytes;      /* inputs that should stay in the L2 cache while weights stream by */
    int64_t scratch_bytes;    /* for each thread, given to multiply */
    void (*enter)(int64_t rows, void *saved);  /* once for each thread and call, or null; saved: 64 bytes */
    void (*leave)(void *saved);
    /* sum[r * ld + c] = sum over the unit's k of x[row + r][k] w[16 tile + c][k]; room for rows rounded up to 32 */
    void (*multiply)(const Task *task, const Unit *unit, float *sum, int64_t ld, void *scratch);
    void (*finish)(const Task *task, const Unit *unit, float *sum, int64_t ld);
    /* Write k..end of the panel's `block`, both multiples of TILE_N: the matrix's columns start at `start`, a multiple
     * of TILE_N not above k, and zeros lie behind the last of them. */
    void (*pack)(const tamis_matrix *x, int64_t columns, int64_t start, const Panel *panel, int64_t block, int64_t k,
                 int64_t end);
};

/* Null where the compiler could not build them (weak) or the level has no kernel of its own. */
TAMIS_HIDDEN const Kernels *portable_kernels(int32_t weight_dtype);
TAMIS_HIDDEN __attribute__((weak)) const Kernels *avx2_kernels(int32_t weight_dtype);
TAMIS_HIDDEN __attribute__((weak)) const Kernels *avx512_kernels(int32_t weight_dtype);
TAMIS_HIDDEN __attribute__((weak)) const Kernels *avx512_bf16_kernels(int32_t weight_dtype);
TAMIS_HIDDEN __attribute__((weak)) const Kernels *amx_kernels(int32_t weight_dtype);

/* cpu.cpp */
TAMIS_HIDDEN int32_t processor_isa_mask(void);

/* threads.cpp: run body(context, thread, team) on a team of at most `threads`, the caller included. */
TAMIS_HIDDEN void run_parallel(int threads, void (*body)(void *, int, int), void *context);

namespace {

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t block_rows(const Panel *panel, int64_t block) {
    int64_t left = panel->rows - block * BLOCK_ROWS;
    if (panel->full_blocks || left > 8) return BLOCK_ROWS;
    return left > 4 ? 8 : left > 2 ? 4 : left;
}

/* Elements of a panel. */
inline int64_t panel_size(const Panel *panel) {
    int64_t last = (panel->rows - 1) / BLOCK_ROWS;
    return (last * BLOCK_ROWS + block_rows(panel, last)) * panel->k;
}

}  // namespace
#endif
