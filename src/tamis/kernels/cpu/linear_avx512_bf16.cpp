/* Linear layers in bfloat16 with vdpbf16ps: the vector kernel of Zen 4, Zen 5 and Cooper Lake.
 *
 * MATHEMATICS. sum[r][c] += w[c][2p] x[r][2p] + w[c][2p+1] x[r][2p+1], lanes = 16 outputs, float32 sums.
 * The instruction rounds to nearest even and takes denormal inputs and results as zero.
 *
 * OPERANDS. Weight tiles as drawn in formats/tiles.py; X panel with groups of four bfloat16 (8 bytes a row):
 *
 *     dense:  acc[r] = dp(acc[r], w[pair],  broadcast32(x[r][pair]))
 *     2:4:    acc[r] = dp(acc[r], kept pair, vpermw(places >> 2g, broadcast64(x[r][group])))
 *
 * vpermw reads the low 5 bits of every 16-bit index; the broadcast repeats every 4 words, so the 2 place bits
 * choose and the other 3 change nothing. So a 2:4 group costs one load, one shift and, for each row, one
 * permutation and ONE dot product where dense needs two: sparsity halves the arithmetic and the bytes.
 *
 * BLOCKING. 2:4: 16 rows by one tile. Dense: 8 rows by two tiles where it helps (`two_tiles`), for a block of one tile
 * loads as often as it multiplies (16 broadcasts and the weights for 16 products, and a core of Zen 5 does two of either
 * a cycle).
 *
 * LIMITS, measured in the L1 cache. Zen 4 core at 3.5 GHz: one 512-bit dot product a cycle = 227 GFLOP/s dense; dot product
 * + permutation share three 256-bit pipes, 1.38 cycles, so 16 rows of 2:4 take 50 ns a tile where dense takes 72 ns: 1.45x.
 * Zen 5 core at 4.05 GHz: 0.124 ns a dot product (two a cycle, latency 6 cycles), 0.178 with a permutation (three pipes for
 * four operations), again 1.4x; here 0.131 and 0.180. Memory gives 29 GB/s a core: a dense tile (1024 B) arrives in
 * 35 ns, a 2:4 tile (576 B) in 20 ns. So one to four rows are bound by memory (ratio up to 1.78), sixteen and more by
 * arithmetic (ratio up to 1.45).
 */
#include <immintrin.h>

#include "vector_kernels.h"

namespace {

/* Sums of R rows x N tiles are kept this many times, for vdpbf16ps takes 6 cycles and Zen 5 begins two in each. */
template <int R, int N>
constexpr int ways() {
    return R * N >= 16 ? 1 : R * N > 1 ? 16 / (R * N) : 8;
}

template <int R, int N>
struct Sums {
    enum { WAYS = ways<R, N>() };
    __m512 of[N][R][WAYS];

    inline Sums() {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int way = 0; way < WAYS; way++) of[n][r][way] = _mm512_setzero_ps();
    }

    inline void store(float *sum, int64_t ld) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
                for (int way = 1; way < WAYS; way++) of[n][r][0] = _mm512_add_ps(of[n][r][0], of[n][r][way]);
                _mm512_storeu_ps(sum + r * ld + n * TILE_N, of[n][r][0]);
            }
    }
};

inline __m512bh broadcast_pair(const uint16_t *x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

inline __m512i broadcast_group(const uint16_t *x) {
    int64_t group;
    __builtin_memcpy(&group, x, 8);
    return _mm512_set1_epi64(group);
}

/* R rows by N tiles of 16 outputs, `to_next` bytes apart, over `tiles` tiles of k. */
template <int R, int N>
void multiply_dense(const uint8_t *weight, int64_t to_next, const uint16_t *x, int64_t step, int64_t tiles, float *sum,
                    int64_t ld) {
    Sums<R, N> sums;
    for (int64_t t = 0; t < tiles; t++, weight += 1024) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) prefetch_tile(weight + n * to_next, 1024);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++, x += step) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                __m512bh w[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; n++)
                    w[n] = (__m512bh)_mm512_loadu_si512(weight + n * to_next + (2 * g + half) * 64);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    const __m512bh pair = broadcast_pair(x + 4 * r + 2 * half);
#pragma GCC unroll 4
                    for (int n = 0; n < N; n++) {
                        __m512 &a = sums.of[n][r][(2 * g + half) % Sums<R, N>::WAYS];
                        a = _mm512_dpbf16_ps(a, w[n], pair);
                    }
                }
            }
        }
    }
    sums.store(sum, ld);
}

/* R rows by one tile: arithmetic binds, not loads, and one stream of weights keeps memory busy all the time. */
template <int R>
void multiply_sparse(const uint8_t *weight, const uint16_t *x, int64_t step, int64_t tiles, float *sum, int64_t ld) {
    Sums<R, 1> sums;
    for (int64_t t = 0; t < tiles; t++, weight += 576) {
        prefetch_tile(weight, 576);
        const __m512i places = _mm512_loadu_si512(weight);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++, x += step) {
            const __m512bh w = (__m512bh)_mm512_loadu_si512(weight + 64 + g * 64);
            const __m512i index = _mm512_srli_epi16(places, 2 * g);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const __m512i chosen = _mm512_permutexvar_epi16(index, broadcast_group(x + 4 * r));
                __m512 &a = sums.of[0][r][g % Sums<R, 1>::WAYS];
                a = _mm512_dpbf16_ps(a, w, (__m512bh)chosen);
            }
        }
    }
    sums.store(sum, ld);
}

/* A block of R rows by one tile. */
template <int R>
inline void multiply_rows_bf16(int32_t pattern, const uint8_t *weight, const uint16_t *x, int64_t tiles, float *sum,
                               int64_t ld) {
    if (pattern == TAMIS_DENSE)
        multiply_dense<R, 1>(weight, 0, x, 4 * R, tiles, sum, ld);
    else
        multiply_sparse<R>(weight, x, 4 * R, tiles, sum, ld);
}

/* Whether weights are read two tiles at a time: dense ones, by 8 rows in one go, or by so many that arithmetic hides when
 * they come from memory. In between the first 8 rows would wait for two streams and leave memory idle to the others: four
 * layers of 4096 x 4096 with 16 rows take 2.9 ms by one tile and 3.4 by two, in caches 2.6 and 2.3. */
inline bool two_tiles(const Task *task, const Unit *unit) {
    return task->pattern == TAMIS_DENSE && ((unit->rows > 4 && unit->rows <= 8) || unit->rows > 2 * BLOCK_ROWS);
}

void multiply_unit_bf16(const Task *task, const Unit *unit, float *sum, int64_t ld, void *) {
    const Panel *in = &task->in;
    const int32_t pattern = task->pattern;
    const int64_t tiles = unit->k1 - unit->k0, to_next = task->k_blocks * task->tile_bytes;
    for (int64_t tile = 0; tile < unit->tiles;) {
        const uint8_t *weight = task->weight + (unit->tile + tile) * to_next + unit->k0 * task->tile_bytes;
        const int64_t width = two_tiles(task, unit) && tile + 1 < unit->tiles ? 2 : 1;
        for (int64_t row = 0; row < unit->rows; row += BLOCK_ROWS) {
            const int64_t block = (unit->row + row) / BLOCK_ROWS, rows = block_rows(in, block);
            const uint16_t *x = (const uint16_t *)in->data + block * BLOCK_ROWS * in->k + unit->k0 * TILE_K * rows;
            float *to = sum + row * ld + tile * TILE_N;
            if (width == 2 && rows >= 8) {
                for (int64_t r = 0; r < rows; r += 8)
                    multiply_dense<8, 2>(weight, to_next, x + 4 * r, 4 * rows, tiles, to + r * ld, ld);
                continue;
            }
            for (int64_t n = 0; n < width; n++) { /* two at most, where a unit's last block has few rows */
                const uint8_t *w = weight + n * to_next;
                float *sums = to + n * TILE_N;
                switch (rows) {
                    case 1: multiply_rows_bf16<1>(pattern, w, x, tiles, sums, ld); break;
                    case 2: multiply_rows_bf16<2>(pattern, w, x, tiles, sums, ld); break;
                    case 4: multiply_rows_bf16<4>(pattern, w, x, tiles, sums, ld); break;
                    case 8: multiply_rows_bf16<8>(pattern, w, x, tiles, sums, ld); break;
                    default: multiply_rows_bf16<16>(pattern, w, x, tiles, sums, ld); break;
                }
            }
        }
        tile += width;
    }
}

}  // namespace

const Kernels *avx512_bf16_kernels(int32_t weight_dtype) {
    static const Kernels bfloat16 = {TAMIS_BF16, 4, 0, 2, few_rows, 512 << 10, 0, nullptr, nullptr,
                                     multiply_unit_bf16, finish_unit, pack_panel};
    return weight_dtype == TAMIS_BF16 ? &bfloat16 : nullptr;
}
