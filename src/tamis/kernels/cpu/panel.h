/* What goes into the multiplication and what comes out of it: packing X into panels, and finishing a unit
 * (bias, epilogue, conversion, store to Y or straight into the next layer's panel). Every instruction set's file
 * includes this and gets its own copy, with its own registers.
 *
 * Both are small, X once per call and the sums once per layer, as long as each 16 values take a few instructions: with 64
 * rows and 1024 inputs a product of 16 values takes 180 cycles, so 40 more for finishing them were a fifth.
 */
#ifndef TAMIS_PANEL_H
#define TAMIS_PANEL_H

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "activation.h"

namespace {

/* 16 values as one vector, whatever registers there are: compilers leave loops over them partly scalar. */
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <class Vector>
inline Vector load_16(const void *from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

/* float32 to bfloat16, nearest, ties to even; NaN stays NaN. */
inline Halves narrow_16(Floats v) {
    const Words u = (Words)v, high = u >> 16, rounded = (u + 0x7fffu + (high & 1u)) >> 16;
    return __builtin_convertvector(v == v ? rounded : high | 0x40u, Halves);
}

/* The first `live` of 16 elements from `offset` on, as float32, and zeros in place of the others; nothing behind is read. */
inline Floats read_16(const tamis_matrix *from, int64_t offset, int64_t live) {
    if (from->dtype == TAMIS_F32) {
        const float *data = (const float *)from->data + offset;
        if (live >= TILE_N) return load_16<Floats>(data);
        Floats v = {};
        if (live > 0) __builtin_memcpy(&v, data, live * 4);
        return v;
    }
    const uint16_t *data = (const uint16_t *)from->data + offset;
    Halves narrow = {};
    if (live >= TILE_N)
        narrow = load_16<Halves>(data);
    else if (live > 0)
        __builtin_memcpy(&narrow, data, live * 2);
    return (Floats)(__builtin_convertvector(narrow, Words) << 16);
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

/* Where k of a row lies; k is a multiple of 16. A division by a number known only at run time would take longer than all
 * else that is done to 16 values. */
inline char *place_of(const PanelRow &row, int64_t k) {
    if (row.group == 4) return row.data + k / 4 * row.step;
    return row.data + k / TILE_K * row.step + k % TILE_K * row.size;
}

/* How 16 neighbouring outputs lie where they are stored: side by side, or in groups of four, `step` bytes apart. */
enum Layout { F32_ROW, BF16_ROW, F32_GROUPS, BF16_GROUPS };

inline Layout layout_of(const PanelRow &row) {
    const bool neighbours = row.group >= TILE_N || row.step == row.group * row.size;
    if (row.dtype == TAMIS_F32) return neighbours ? F32_ROW : F32_GROUPS;
    return neighbours ? BF16_ROW : BF16_GROUPS;
}

template <Layout LAYOUT>
struct LayoutIs {
    static constexpr Layout value = LAYOUT;
};

/* Run a loop that is compiled for each layout. */
template <class Run>
inline void with_layout(Layout layout, Run run) {
    switch (layout) {
        case F32_ROW: return run(LayoutIs<F32_ROW>());
        case BF16_ROW: return run(LayoutIs<BF16_ROW>());
        case F32_GROUPS: return run(LayoutIs<F32_GROUPS>());
        case BF16_GROUPS: return run(LayoutIs<BF16_GROUPS>());
    }
}

template <Layout LAYOUT>
inline void put_16(char *to, int64_t step, Floats v) {
    if (LAYOUT == F32_ROW) {
        __builtin_memcpy(to, &v, 64);
    } else if (LAYOUT == F32_GROUPS) {
        for (int g = 0; g < 4; g++) __builtin_memcpy(to + g * step, (const char *)&v + 16 * g, 16);
    } else {
        const Halves narrow = narrow_16(v);
        if (LAYOUT == BF16_ROW)
            __builtin_memcpy(to, &narrow, 32);
        else
            for (int g = 0; g < 4; g++) __builtin_memcpy(to + g * step, (const char *)&narrow + 8 * g, 8);
    }
}

void pack_panel(const tamis_matrix *x, int64_t columns, int64_t start, const Panel *panel, int64_t block, int64_t k,
                int64_t end) {
    const int64_t first = block * BLOCK_ROWS, last = smaller(first + BLOCK_ROWS, panel->rows);
    for (int64_t r = first; r < last; r++) {
        const PanelRow row = panel_row(panel, r);
        with_layout(layout_of(row), [&](auto layout) {
            for (int64_t at = k; at < end; at += TILE_N) {
                const int64_t column = at - start;
                const Floats v = read_16(x, r * x->stride + column, columns - column);
                put_16<decltype(layout)::value>(place_of(row, at), row.step, v);
            }
        });
    }
}

inline void add_residual(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const tamis_matrix *residual = &task->residual;
    const int64_t column = unit->tile * TILE_N, live = smaller(unit->tiles * TILE_N, task->n - column);
    for (int64_t r = 0; r < unit->rows; r++)
        for (int64_t c = 0; c < live; c += TILE_N) {
            const Floats other = read_16(residual, (unit->row + r) * residual->stride + column + c, live - c);
            const Floats v = load_16<Floats>(sum + r * ld + c) + other;
            __builtin_memcpy(sum + r * ld + c, &v, sizeof v);
        }
}

/* 16 sums of a row as they are stored: with bias and ReLU, which nearly every layer has and no other pass need do. */
inline Floats finished(const float *sum, Floats bias, bool relu) {
    const Floats v = load_16<Floats>(sum) + bias, zero = {};
    return relu ? v < zero ? zero : v : v;
}

/* The bias of a unit's outputs; zeros where there is none. */
struct Bias {
    float of[MAX_GROUP_TILES * TILE_N] = {};

    Bias(const float *bias, int64_t live) {
        if (bias) __builtin_memcpy(of, bias, live * 4);
    }
};

/* `rows` rows of Y. A row's outputs are neighbours in memory and are written one after another. */
template <Layout LAYOUT>
inline void store_in_y(const tamis_matrix *y, int64_t offset, int64_t rows, int64_t live, const float *sum, int64_t ld,
                       const Bias &bias, bool relu) {
    const int64_t size = LAYOUT == F32_ROW ? 4 : 2;
    for (int64_t r = 0; r < rows; r++, sum += ld, offset += y->stride)
        for (int64_t c = 0; c < live; c += TILE_N) {
            const Floats v = finished(sum + c, load_16<Floats>(bias.of + c), relu);
            char *to = (char *)y->data + (offset + c) * size, some[sizeof v];
            if (c + TILE_N <= live) {
                put_16<LAYOUT>(to, 0, v);
            } else {
                put_16<LAYOUT>(some, 0, v);
                __builtin_memcpy(to, some, (live - c) * size);
            }
        }
}

#if defined(__AVX512BF16__)
/* 16 outputs of 8 rows in groups of four: of each group, the 8 rows are 64 neighbouring bytes. One store for a group and one
 * conversion for two rows, where row by row it would be eight stores and eight times the shifts and sums of `narrow_16`. The
 * instruction takes denormal values as zero, like the products that will read them. */
inline void put_8_rows(char *to, int64_t step, const Floats *v) {
    __m512i two[4]; /* groups 0..3 of a row, then those of the next one */
    for (int i = 0; i < 4; i++) two[i] = (__m512i)_mm512_cvtne2ps_pbh((__m512)v[2 * i + 1], (__m512)v[2 * i]);
    const __m512i low = _mm512_set_epi64(13, 9, 5, 1, 12, 8, 4, 0), high = _mm512_set_epi64(15, 11, 7, 3, 14, 10, 6, 2);
    const __m512i first = _mm512_permutex2var_epi64(two[0], low, two[1]); /* rows 0..3 of groups 0 and 1 */
    const __m512i second = _mm512_permutex2var_epi64(two[2], low, two[3]);
    const __m512i third = _mm512_permutex2var_epi64(two[0], high, two[1]);
    const __m512i fourth = _mm512_permutex2var_epi64(two[2], high, two[3]);
    _mm512_storeu_si512(to, _mm512_shuffle_i64x2(first, second, 0x44));
    _mm512_storeu_si512(to + step, _mm512_shuffle_i64x2(first, second, 0xee));
    _mm512_storeu_si512(to + 2 * step, _mm512_shuffle_i64x2(third, fourth, 0x44));
    _mm512_storeu_si512(to + 3 * step, _mm512_shuffle_i64x2(third, fourth, 0xee));
}
#endif

/* 16 outputs of up to 16 rows into a panel; zeros in place of those behind the first `live`. */
template <Layout LAYOUT>
inline void store_in_block(const PanelRow &first, int64_t column, int64_t rows, int64_t live, const float *sum,
                           int64_t ld, Floats bias, bool relu) {
    const Integers places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, kept = places < (int32_t)live;
    const Floats zero = {};
    char *to = place_of(first, column);
    int64_t r = 0;
#if defined(__AVX512BF16__)
    if (LAYOUT == BF16_GROUPS)
        for (; r + 8 <= rows; r += 8, to += 64) {
            Floats v[8];
            for (int i = 0; i < 8; i++, sum += ld) v[i] = kept ? finished(sum, bias, relu) : zero;
            put_8_rows(to, first.step, v);
        }
#endif
    for (; r < rows; r++, sum += ld, to += first.group * first.size)
        put_16<LAYOUT>(to, first.step, kept ? finished(sum, bias, relu) : zero);
}

/* A unit's outputs into the next layer's panel, and behind the layer's last ones zeros: the next layer multiplies them by
 * zero weights, so they must be finite. */
inline void store_in_panel(const Task *task, const Unit *unit, const float *sum, int64_t ld, int64_t live,
                           const Bias &bias, bool relu) {
    const int64_t column = unit->tile * TILE_N;
    const int64_t end = column + live < task->n ? column + live : task->out_columns;
    const float zeros[TILE_N] = {};
    for (int64_t row = 0; row < unit->rows; row += BLOCK_ROWS) { /* unit->row is a multiple of it */
        const PanelRow first = panel_row(&task->out, unit->row + row);
        const int64_t rows = smaller(unit->rows - row, BLOCK_ROWS);
        with_layout(layout_of(first), [&](auto layout) {
            constexpr Layout LAYOUT = decltype(layout)::value;
            int64_t c = 0;
            for (; c < live; c += TILE_N)
                store_in_block<LAYOUT>(first, column + c, rows, live - c, sum + row * ld + c, ld,
                                       load_16<Floats>(bias.of + c), relu);
            for (; column + c < end; c += TILE_N)
                store_in_block<LAYOUT>(first, column + c, rows, 0, zeros, 0, Floats{}, false);
        });
    }
}

inline void store_unit(const Task *task, const Unit *unit, const float *sum, int64_t ld, const float *bias, bool relu) {
    const int64_t column = unit->tile * TILE_N, live = smaller(unit->tiles * TILE_N, task->n - column);
    const Bias added(bias ? bias + column : nullptr, live);
    const tamis_matrix *y = &task->y;
    const int64_t offset = unit->row * y->stride + column;
    if (task->out.data)
        store_in_panel(task, unit, sum, ld, live, added, relu);
    else if (y->dtype == TAMIS_F32)
        store_in_y<F32_ROW>(y, offset, unit->rows, live, sum, ld, added, relu);
    else
        store_in_y<BF16_ROW>(y, offset, unit->rows, live, sum, ld, added, relu);
}

inline void add_bias(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const int64_t column = unit->tile * TILE_N, live = smaller(unit->tiles * TILE_N, task->n - column);
    for (int64_t r = 0; r < unit->rows; r++)
        for (int64_t c = 0; c < live; c++) sum[r * ld + c] += task->bias[column + c];
}

void finish_unit(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const bool relu = task->epilogue_count == 1 && task->epilogue[0].kind == TAMIS_RELU;
    if (relu || !task->epilogue_count) {
        store_unit(task, unit, sum, ld, task->bias, relu);
        return;
    }
    if (task->bias) add_bias(task, unit, sum, ld);
    for (int32_t s = 0; s < task->epilogue_count; s++) {
        if (task->epilogue[s].kind == TAMIS_ADD_RESIDUAL)
            add_residual(task, unit, sum, ld);
        else
            activate(&task->epilogue[s], sum, unit->rows * ld);
    }
    store_unit(task, unit, sum, ld, nullptr, false);
}

}  // namespace
#endif
