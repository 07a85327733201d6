/* What goes into the multiplication and what comes out of it: packing X into panels, and finishing a unit
 * (bias, epilogue, conversion, store to Y or straight into the next layer's panel). Plain loops; every
 * instruction set's file includes this and gets its own vectorised copy.
 *
 * Both are memory-bound and small: X once per call, the sums once per layer.
 */
#ifndef TAMIS_PANEL_H
#define TAMIS_PANEL_H

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include "activation.h"

namespace {

/* float32 to bfloat16, nearest, ties to even; NaN stays NaN. */
inline uint16_t to_bf16(float x) {
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

inline float from_bf16(uint16_t x) { return float_of((uint32_t)x << 16); }

/* 16 of them at once; compilers leave the loop scalar because of its NaN branch. */
inline void narrow_16(const float *__restrict v, uint16_t *__restrict to) {
#if defined(__AVX512BW__)
    const __m512 x = _mm512_loadu_ps(v);
    const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
#else
    for (int i = 0; i < TILE_N; i++) to[i] = to_bf16(v[i]);
#endif
}

/* Elements at `offset` of an array of the given type, as float32. */
inline void read_floats(const void *data, int32_t dtype, int64_t offset, int64_t count, float *__restrict out) {
    if (dtype == TAMIS_F32) {
        const float *from = (const float *)data + offset;
        for (int64_t i = 0; i < count; i++) out[i] = from[i];
    } else {
        const uint16_t *from = (const uint16_t *)data + offset;
        for (int64_t i = 0; i < count; i++) out[i] = from_bf16(from[i]);
    }
}

inline void write_floats(void *data, int32_t dtype, int64_t offset, int64_t count, const float *__restrict v) {
    if (dtype == TAMIS_F32) {
        float *to = (float *)data + offset;
        for (int64_t i = 0; i < count; i++) to[i] = v[i];
    } else {
        uint16_t *to = (uint16_t *)data + offset;
        for (int64_t i = 0; i < count; i++) to[i] = to_bf16(v[i]);
    }
}

/* 16 values at a time: loops of a fixed length become one or two vector instructions, where loops of a length that is
 * known only at run time cost tens of nanoseconds before their first element. */
inline void write_16(void *data, int32_t dtype, int64_t offset, const float *__restrict v) {
    if (dtype == TAMIS_F32) {
        __builtin_memcpy((float *)data + offset, v, 64);
    } else {
        narrow_16(v, (uint16_t *)data + offset);
    }
}

inline void add_16(float *__restrict to, const float *__restrict v) {
    for (int i = 0; i < TILE_N; i++) to[i] += v[i];
}

/* One row of a panel: where its groups of k begin, and how far apart they are. */
struct PanelRow {
    char *data;
    int64_t step; /* bytes from one group to the next */
    int64_t size; /* bytes of an element */
    int32_t dtype, group;
};

inline PanelRow panel_row(const Panel *panel, int64_t row) {
    const int64_t block = row / BLOCK_ROWS, lane = row % BLOCK_ROWS, rows = block_rows(panel, block);
    const int64_t size = panel->dtype == TAMIS_F32 ? 4 : 2;
    char *data = (char *)panel->data + (block * BLOCK_ROWS * panel->k + lane * panel->group) * size;
    return {data, rows * panel->group * size, size, panel->dtype, panel->group};
}

/* Store k..k+15 of a row; k is a multiple of 16. */
inline void write_panel_16(const PanelRow &row, int64_t k, const float *v) {
    char *to = row.data + k / row.group * row.step + k % row.group * row.size;
    if (row.group >= TILE_N || row.step == row.group * row.size) { /* 16 neighbours */
        write_16(to, row.dtype, 0, v);
        return;
    }
    if (row.dtype == TAMIS_F32) { /* groups of 4 */
        for (int g = 0; g < 4; g++) __builtin_memcpy(to + g * row.step, v + 4 * g, 16);
        return;
    }
    uint16_t narrow[TILE_N];
    narrow_16(v, narrow);
    for (int g = 0; g < 4; g++) __builtin_memcpy(to + g * row.step, narrow + 4 * g, 8);
}

void pack_panel(const tamis_matrix *x, int64_t columns, int64_t start, const Panel *panel, int64_t block, int64_t k,
                int64_t end) {
    const int64_t first = block * BLOCK_ROWS, last = smaller(first + BLOCK_ROWS, panel->rows);
    for (int64_t r = first; r < last; r++) {
        const PanelRow row = panel_row(panel, r);
        for (int64_t at = k; at < end; at += TILE_N) {
            float v[TILE_N] = {};
            const int64_t column = at - start, live = smaller(columns - column, TILE_N);
            if (live == TILE_N)
                read_floats(x->data, x->dtype, r * x->stride + column, TILE_N, v);
            else if (live > 0)
                read_floats(x->data, x->dtype, r * x->stride + column, live, v);
            write_panel_16(row, at, v);
        }
    }
}

inline void add_residual(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const int64_t column = unit->tile * TILE_N, live = smaller(unit->tiles * TILE_N, task->n - column);
    float other[MAX_GROUP_TILES * TILE_N];
    for (int64_t r = 0; r < unit->rows; r++) {
        const int64_t offset = (unit->row + r) * task->residual.stride + column;
        read_floats(task->residual.data, task->residual.dtype, offset, live, other);
        for (int64_t c = 0; c < live; c++) sum[r * ld + c] += other[c];
    }
}

inline void store_unit(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const int64_t column = unit->tile * TILE_N, width = unit->tiles * TILE_N;
    const int64_t live = smaller(width, task->n - column), whole = live / TILE_N * TILE_N;
    if (!task->out.data) {
        for (int64_t r = 0; r < unit->rows; r++) {
            const int64_t at = (unit->row + r) * task->y.stride + column;
            for (int64_t c = 0; c < whole; c += TILE_N)
                write_16(task->y.data, task->y.dtype, at + c, sum + r * ld + c);
            if (whole < live)
                write_floats(task->y.data, task->y.dtype, at + whole, live - whole, sum + r * ld + whole);
        }
        return;
    }
    /* The next layer multiplies padding by zero weights: it must be finite, so it is zero. */
    const bool last = column + live == task->n;
    const int64_t padded = last ? task->out_columns - column : width;
    const float zeros[TILE_N] = {};
    for (int64_t r = 0; r < unit->rows; r++) {
        const PanelRow to = panel_row(&task->out, unit->row + r);
        float *row = sum + r * ld;
        for (int64_t c = live; c < width; c++) row[c] = 0.0f;
        for (int64_t c = 0; c < width; c += TILE_N) write_panel_16(to, column + c, row + c);
        for (int64_t c = width; c < padded; c += TILE_N) write_panel_16(to, column + c, zeros);
    }
}

inline void add_bias(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const int64_t column = unit->tile * TILE_N, live = smaller(unit->tiles * TILE_N, task->n - column);
    const int64_t whole = live / TILE_N * TILE_N;
    const float *bias = task->bias + column;
    for (int64_t r = 0; r < unit->rows; r++) {
        float *row = sum + r * ld;
        for (int64_t c = 0; c < whole; c += TILE_N) add_16(row + c, bias + c);
        for (int64_t c = whole; c < live; c++) row[c] += bias[c];
    }
}

void finish_unit(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    if (task->bias) add_bias(task, unit, sum, ld);
    for (int32_t s = 0; s < task->epilogue_count; s++) {
        if (task->epilogue[s].kind == TAMIS_ADD_RESIDUAL)
            add_residual(task, unit, sum, ld);
        else
            activate(&task->epilogue[s], sum, unit->rows * ld);
    }
    store_unit(task, unit, sum, ld);
}

}  // namespace
#endif
