/* Linear layers on vectors of 16 float32 lanes, for any instruction set that can give `Lanes`.
 *
 * MATHEMATICS. sum[r][c] = sum over k of x[r][k] w[c][k], lanes = 16 outputs c, float32 throughout; bfloat16
 * weights are widened by a shift, inputs stay float32.
 *
 * OPERANDS. Weight tiles as drawn in formats/tiles.py; X panel with groups of four, float32:
 *
 *     dense:  acc[r] += w[k] * broadcast(x[r][k])
 *     2:4:    acc[r] += value[slot] * permute(broadcast4(x[r][group]), places >> shift)
 *
 * so 2:4 does half the multiplications of dense, for one permutation each; vpermilps and vpermps read the 2 bits
 * of a place from a shifted metadata vector as they are, so decoding costs one shift for each slot. With four rows
 * or more, AVX-512 loads the groups of four rows at once (they lie together in the panel) and adds the row to the
 * places, because broadcasting 128 bits costs Zen 4 as much as the multiplication (1.9 instead of 1.4 cycles).
 *
 * REGISTERS. R rows x 16 outputs accumulate at a time, R up to MAX_ROWS of the instruction set; each weight
 * vector is used for R rows, so weights pass R rows at a time: from memory once, from the L2 cache for the
 * rest. For few rows, several accumulators each hide the latency of the addition.
 * Tried and slower (by 4 to 30 % with 4 to 64 rows, k = 4096): cutting k so that a part of X stays in the L1 cache
 * while four tiles of outputs pass. The weights then come in four streams a power of two apart.
 *
 * LIMITS. With R rows a weight byte brings R/2 (dense float32) to 2R/1.78 (2:4 bfloat16) FLOPs. One Zen 4 core
 * (3.5 GHz: 112 GFLOP/s float32 FMA, 29 GB/s from memory) is bound by memory up to about 8 rows of float32;
 * beyond, dense is bound by FMA and 2:4 by FMA plus permutation, 1.4 times less work.
 */
#ifndef TAMIS_VECTOR_KERNELS_H
#define TAMIS_VECTOR_KERNELS_H

#include "panel.h"

namespace {

/* Of 1, 2, 4, 8 and 16 KiB 8 was the fastest on Zen 4, for 1, 4 and 16 rows. On Zen 5 four layers of 4096 x 4096 in 2:4 take one
 * row 711, 643 and 632 us with 8, 12 and 16 KiB, and 16 rows the same time with each. */
enum { PREFETCH_BYTES = 12288 };

inline void prefetch_tile(const uint8_t *tile, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(tile + PREFETCH_BYTES + i, 0, 3);
}

/* How a weight tile is read: vector `i` of its two values each in words (bfloat16) or singly (float32). */
struct DenseF32 {
    enum { BYTES = 2048 };
    /* the two weights of pair p */
    template <class Lanes>
    static inline void pair(const uint8_t *tile, int p, Lanes &first, Lanes &second) {
        first = Lanes::load(tile + p * 128);
        second = Lanes::load(tile + p * 128 + 64);
    }
};

struct DenseBf16 {
    enum { BYTES = 1024 };
    template <class Lanes>
    static inline void pair(const uint8_t *tile, int p, Lanes &first, Lanes &second) {
        Lanes::load_bf16(tile + p * 64, first, second);
    }
};

struct SparseF32 {
    enum { BYTES = 1088 };
    template <class Lanes>
    static inline void pair(const uint8_t *tile, int p, Lanes &first, Lanes &second) {
        DenseF32::pair(tile + 64, p, first, second);
    }
};

struct SparseBf16 {
    enum { BYTES = 576 };
    template <class Lanes>
    static inline void pair(const uint8_t *tile, int p, Lanes &first, Lanes &second) {
        DenseBf16::pair(tile + 64, p, first, second);
    }
};

/* R rows by 16 outputs over `tiles` tiles of k. `x` is the panel block at its first wanted row, `step` floats
 * from one group to the next. */
template <class Lanes, class Weight, int R, bool SPARSE>
void multiply_rows(const uint8_t *weight, const float *x, int64_t step, int64_t tiles, float *sum, int64_t ld) {
    constexpr int WAYS = R * 4 <= Lanes::MAX_ACCUMULATORS ? 4 : R * 2 <= Lanes::MAX_ACCUMULATORS ? 2 : 1;
    Lanes acc[R][WAYS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        for (int way = 0; way < WAYS; way++) acc[r][way] = Lanes::zero();
    for (int64_t t = 0; t < tiles; t++, weight += Weight::BYTES) {
        prefetch_tile(weight, Weight::BYTES);
        typename Lanes::Places places;
        if (SPARSE) places = Lanes::load_places(weight);
        for (int g = 0; g < 8; g++, x += step) {
            Lanes first, second;
            if constexpr (SPARSE && Lanes::FOUR_ROWS && R % 4 == 0) {
                Weight::pair(weight, g, first, second);
                typename Lanes::Places low[4], high[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    low[i] = Lanes::in_row(places, i);
                    high[i] = Lanes::in_row(Lanes::upper(places), i);
                }
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    const typename Lanes::Quad rows = Lanes::load_four_quads(x + r / 4 * 16);
                    acc[r][0] = Lanes::multiply_add(first, Lanes::select(rows, low[r % 4]), acc[r][0]);
                    Lanes &other = acc[r][WAYS > 1];
                    other = Lanes::multiply_add(second, Lanes::select(rows, high[r % 4]), other);
                }
                places = Lanes::next(places);
            } else if constexpr (SPARSE) {
                Weight::pair(weight, g, first, second);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    typename Lanes::Quad quad = Lanes::load_quad(x + 4 * r);
                    acc[r][0] = Lanes::multiply_add(first, Lanes::select(quad, places), acc[r][0]);
                    Lanes &other = acc[r][WAYS > 1];
                    other = Lanes::multiply_add(second, Lanes::select(quad, Lanes::upper(places)), other);
                }
                places = Lanes::next(places);
            } else {
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    Weight::pair(weight, 2 * g + half, first, second);
                    const int way = half * 2 % WAYS;
#pragma GCC unroll 16
                    for (int r = 0; r < R; r++) {
                        const float *at = x + 4 * r + 2 * half;
                        acc[r][way] = Lanes::multiply_add(first, Lanes::broadcast(at), acc[r][way]);
                        const int other = (way + 1) % WAYS;
                        acc[r][other] = Lanes::multiply_add(second, Lanes::broadcast(at + 1), acc[r][other]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        for (int way = 1; way < WAYS; way++) acc[r][0] = Lanes::add(acc[r][0], acc[r][way]);
        Lanes::store(sum + r * ld, acc[r][0]);
    }
}

template <class Lanes, class Weight, bool SPARSE>
void multiply_block(const uint8_t *weight, const float *x, int64_t rows, int64_t step, int64_t tiles, float *sum,
                    int64_t ld) {
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r;
        const float *at = x + 4 * r;
        float *to = sum + r * ld;
        if constexpr (Lanes::MAX_ROWS >= 16)
            if (left > 8) {
                multiply_rows<Lanes, Weight, 16, SPARSE>(weight, at, step, tiles, to, ld);
                return;
            }
        if constexpr (Lanes::MAX_ROWS >= 8)
            if (left > 4) {
                multiply_rows<Lanes, Weight, 8, SPARSE>(weight, at, step, tiles, to, ld);
                r += 8;
                continue;
            }
        if constexpr (Lanes::MAX_ROWS >= 4)
            if (left > 2) {
                multiply_rows<Lanes, Weight, 4, SPARSE>(weight, at, step, tiles, to, ld);
                r += 4;
                continue;
            }
        if (left > 1) {
            multiply_rows<Lanes, Weight, 2, SPARSE>(weight, at, step, tiles, to, ld);
            r += 2;
            continue;
        }
        multiply_rows<Lanes, Weight, 1, SPARSE>(weight, at, step, tiles, to, ld);
        r += 1;
    }
}

template <class Lanes, class Dense, class Sparse>
void multiply_unit(const Task *task, const Unit *unit, float *sum, int64_t ld, void *) {
    const Panel *in = &task->in;
    for (int64_t tile = 0; tile < unit->tiles; tile++) {
        const uint8_t *weight = task->weight + ((unit->tile + tile) * task->k_blocks + unit->k0) * task->tile_bytes;
        for (int64_t row = 0; row < unit->rows; row += BLOCK_ROWS) {
            const int64_t block = (unit->row + row) / BLOCK_ROWS, stored = block_rows(in, block);
            const float *x = (const float *)in->data + block * BLOCK_ROWS * in->k + unit->k0 * TILE_K * stored;
            const int64_t rows = smaller(unit->rows - row, BLOCK_ROWS);
            float *to = sum + row * ld + tile * TILE_N;
            if (task->pattern == TAMIS_DENSE)
                multiply_block<Lanes, Dense, false>(weight, x, rows, 4 * stored, unit->k1 - unit->k0, to, ld);
            else
                multiply_block<Lanes, Sparse, true>(weight, x, rows, 4 * stored, unit->k1 - unit->k0, to, ld);
        }
    }
}

inline bool few_rows(int64_t rows) { return rows <= 4; }

template <class Lanes>
const Kernels *vector_kernels(int32_t weight_dtype) {
    static const Kernels float32 = {TAMIS_F32, 4, 0, 1, few_rows, 512 << 10, 0, nullptr, nullptr,
                                    multiply_unit<Lanes, DenseF32, SparseF32>, finish_unit, pack_panel};
    static const Kernels bfloat16 = {TAMIS_F32, 4, 0, 1, few_rows, 512 << 10, 0, nullptr, nullptr,
                                     multiply_unit<Lanes, DenseBf16, SparseBf16>, finish_unit, pack_panel};
    return weight_dtype == TAMIS_F32 ? &float32 : &bfloat16;
}

}  // namespace
#endif
