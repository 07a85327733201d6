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
 * LIMITS (Zen 4 core at 3.5 GHz, measured in the L1 cache: one 512-bit dot product a cycle = 227 GFLOP/s dense;
 * dot product + permutation share three 256-bit pipes, 1.38 cycles, so 16 rows of 2:4 take 50 ns a tile where
 * dense takes 72 ns: 1.45x). Memory gives 29 GB/s a core: a dense tile (1024 B) arrives in 35 ns, a 2:4 tile
 * (576 B) in 20 ns. So one to four rows are bound by memory (ratio up to 1.78), sixteen and more by arithmetic
 * (ratio up to 1.45).
 */
#include <immintrin.h>

#include "vector_kernels.h"

namespace {

template <int R>
constexpr int ways() {
    return R >= 8 ? 1 : 8 / R; /* vdpbf16ps takes 6 cycles: keep at least 8 sums going */
}

template <int R, int WAYS>
inline void store_sums(__m512 (&acc)[R][WAYS], float *sum, int64_t ld) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
        for (int way = 1; way < WAYS; way++) acc[r][0] = _mm512_add_ps(acc[r][0], acc[r][way]);
        _mm512_storeu_ps(sum + r * ld, acc[r][0]);
    }
}

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

template <int R>
void multiply_dense(const uint8_t *weight, const uint16_t *x, int64_t step, int64_t tiles, float *sum, int64_t ld) {
    constexpr int WAYS = ways<R>();
    __m512 acc[R][WAYS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int way = 0; way < WAYS; way++) acc[r][way] = _mm512_setzero_ps();
    for (int64_t t = 0; t < tiles; t++, weight += 1024) {
        prefetch_tile(weight, 1024);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++, x += step) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m512bh w = (__m512bh)_mm512_loadu_si512(weight + (2 * g + half) * 64);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    __m512 &a = acc[r][(2 * g + half) % WAYS];
                    a = _mm512_dpbf16_ps(a, w, broadcast_pair(x + 4 * r + 2 * half));
                }
            }
        }
    }
    store_sums(acc, sum, ld);
}

template <int R>
void multiply_sparse(const uint8_t *weight, const uint16_t *x, int64_t step, int64_t tiles, float *sum, int64_t ld) {
    constexpr int WAYS = ways<R>();
    __m512 acc[R][WAYS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int way = 0; way < WAYS; way++) acc[r][way] = _mm512_setzero_ps();
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
                __m512 &a = acc[r][g % WAYS];
                a = _mm512_dpbf16_ps(a, w, (__m512bh)chosen);
            }
        }
    }
    store_sums(acc, sum, ld);
}

template <int R>
inline void multiply_rows_bf16(int32_t pattern, const uint8_t *weight, const uint16_t *x, int64_t step,
                               int64_t tiles, float *sum, int64_t ld) {
    if (pattern == TAMIS_DENSE)
        multiply_dense<R>(weight, x, step, tiles, sum, ld);
    else
        multiply_sparse<R>(weight, x, step, tiles, sum, ld);
}

void multiply_unit_bf16(const Task *task, const Unit *unit, float *sum, int64_t ld, void *) {
    const Panel *in = &task->in;
    const int64_t tiles = unit->k1 - unit->k0;
    for (int64_t tile = 0; tile < unit->tiles; tile++) {
        const uint8_t *weight = task->weight + ((unit->tile + tile) * task->k_blocks + unit->k0) * task->tile_bytes;
        for (int64_t row = 0; row < unit->rows; row += BLOCK_ROWS) {
            const int64_t block = (unit->row + row) / BLOCK_ROWS, rows = block_rows(in, block);
            const uint16_t *x = (const uint16_t *)in->data + block * BLOCK_ROWS * in->k + unit->k0 * TILE_K * rows;
            float *to = sum + row * ld + tile * TILE_N;
            switch (rows) {
                case 1: multiply_rows_bf16<1>(task->pattern, weight, x, 4, tiles, to, ld); break;
                case 2: multiply_rows_bf16<2>(task->pattern, weight, x, 8, tiles, to, ld); break;
                case 4: multiply_rows_bf16<4>(task->pattern, weight, x, 16, tiles, to, ld); break;
                case 8: multiply_rows_bf16<8>(task->pattern, weight, x, 32, tiles, to, ld); break;
                default: multiply_rows_bf16<16>(task->pattern, weight, x, 64, tiles, to, ld); break;
            }
        }
    }
}

}  // namespace

const Kernels *avx512_bf16_kernels(int32_t weight_dtype) {
    static const Kernels bfloat16 = {TAMIS_BF16, 4, 0, MAX_GROUP_TILES, 1, 4, 512 << 10, 0, nullptr, nullptr,
                                     multiply_unit_bf16, finish_unit, pack_panel};
    return weight_dtype == TAMIS_BF16 ? &bfloat16 : nullptr;
}
