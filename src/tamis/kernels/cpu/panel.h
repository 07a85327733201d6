/* What goes into the multiplication and what comes out of it: packing X into panels, and finishing a unit
 * (bias, epilogue, conversion, store to Y or straight into the next layer's panel). Plain loops; every
 * instruction set's file includes this and gets its own vectorised copy.
 *
 * Both are memory-bound and small: X once per call, the sums once per layer.
 */
#ifndef TAMIS_PANEL_H
#define TAMIS_PANEL_H

#include "activation.h"

namespace {

/* float32 to bfloat16, nearest, ties to even; NaN stays NaN. */
inline uint16_t to_bf16(float x) {
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

inline float from_bf16(uint16_t x) { return float_of((uint32_t)x << 16); }

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

/* Copy `count` (a multiple of the group) consecutive k of one row into its places, `step` bytes apart. */
template <int BYTES>
inline void scatter(const char *__restrict from, char *__restrict to, int64_t groups, int64_t step) {
    for (int64_t g = 0; g < groups; g++) __builtin_memcpy(to + g * step, from + g * BYTES, BYTES);
}

/* Store k..k+count of panel row `row`; count and k are multiples of 16, `v` has them all. */
inline void write_panel(const Panel *panel, int64_t row, int64_t k, int64_t count, const float *v) {
    const int64_t block = row / BLOCK_ROWS, lane = row % BLOCK_ROWS, rows = block_rows(panel, block);
    const int64_t size = panel->dtype == TAMIS_F32 ? 4 : 2, group = panel->group;
    const int64_t place = block * BLOCK_ROWS * panel->k + (k / group * rows + lane) * group + k % group;
    if (rows == 1) {  /* one row is one plain array */
        write_floats(panel->data, panel->dtype, place, count, v);
        return;
    }
    uint16_t narrow[PANEL_SPAN];
    const char *from = (const char *)v;
    if (panel->dtype == TAMIS_BF16) {
        write_floats(narrow, TAMIS_BF16, 0, count, v);
        from = (const char *)narrow;
    }
    char *to = (char *)panel->data + place * size;
    if (group == 4 && size == 2)
        scatter<8>(from, to, count / 4, rows * 8);
    else if (group == 4)
        scatter<16>(from, to, count / 4, rows * 16);
    else  /* group 32, bfloat16: halves of 16 */
        for (int64_t done = 0; done < count; done += 16) {
            int64_t at = k + done;
            int64_t to_place = block * BLOCK_ROWS * panel->k + (at / group * rows + lane) * group + at % group;
            __builtin_memcpy((char *)panel->data + to_place * 2, from + done * 2, 32);
        }
}

void pack_panel(const tamis_matrix *x, int64_t columns, const Panel *panel, int64_t block, int64_t k0, int64_t k1) {
    float row[PANEL_SPAN];
    const int64_t first = block * BLOCK_ROWS, last = smaller(first + BLOCK_ROWS, panel->rows);
    for (int64_t r = first; r < last; r++) {
        for (int64_t k = k0 * TILE_K; k < k1 * TILE_K; k += PANEL_SPAN) {
            int64_t count = smaller(k1 * TILE_K - k, PANEL_SPAN);
            int64_t live = smaller(larger(columns - k, 0), count);
            read_floats(x->data, x->dtype, r * x->stride + k, live, row);
            for (int64_t i = live; i < count; i++) row[i] = 0.0f;
            write_panel(panel, r, k, count, row);
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
    const int64_t live = smaller(width, task->n - column);
    if (!task->out.data) {
        for (int64_t r = 0; r < unit->rows; r++)
            write_floats(task->y.data, task->y.dtype, (unit->row + r) * task->y.stride + column, live, sum + r * ld);
        return;
    }
    /* The next layer multiplies padding by zero weights: it must be finite, so it is zero. */
    const bool last = column + live == task->n;
    const int64_t padded = last ? task->out.k - column : width;
    for (int64_t r = 0; r < unit->rows; r++) {
        float *row = sum + r * ld;
        for (int64_t c = live; c < width; c++) row[c] = 0.0f;
        write_panel(&task->out, unit->row + r, column, width, row);
        if (padded > width) {
            const float zeros[TILE_N] = {};
            write_panel(&task->out, unit->row + r, column + width, TILE_N, zeros);
        }
    }
}

void finish_unit(const Task *task, const Unit *unit, float *sum, int64_t ld) {
    const int64_t column = unit->tile * TILE_N;
    if (task->bias) {
        const int64_t live = smaller(unit->tiles * TILE_N, task->n - column);
        const float *bias = task->bias + column;
        for (int64_t r = 0; r < unit->rows; r++)
            for (int64_t c = 0; c < live; c++) sum[r * ld + c] += bias[c];
    }
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
