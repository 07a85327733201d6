/* The plan of a call: how each layer is cut into units of work, and where everything lies in the workspace. */
#ifndef TAMIS_PLAN_H
#define TAMIS_PLAN_H

#include "internal.h"

enum { LINE = 64, PACK_COLUMNS = 1024 };

struct alignas(LINE) Range { /* units next..end of one thread, in one word so that both ends move at once */
    uint64_t ends;
};

struct Stage { /* work that must be done before the next stage starts */
    int64_t units;
    Range *ranges; /* one for each thread */
    int64_t *done; /* units that are done, on a line of its own */
};

struct Packing { /* the matrices that are packed into a layer's panel, one behind the other */
    const tamis_piece *x; /* stands first, or null where the layer before writes the first columns */
    const tamis_piece *pieces;
    int64_t count; /* of pieces */
    int64_t units;
};

struct Layer {
    Task task;
    const Kernels *kernels;
    Packing packing;
    int64_t units; /* of the products; the stage also has the units of the next layer's packing */
    Stage stage;
    int64_t group_tiles, groups, chunk_rows, chunks, parts, part_tiles;
    int32_t *arrived; /* parts that are done, for each group and chunk */
    float *partial;   /* [group and chunk][part][rows][ld] */
};

struct Chain {
    Layer layers[TAMIS_MAX_LAYERS];
    tamis_piece x; /* the input, as a piece of the first layer */
    int count, threads;
    int64_t rows;
    bool private_pack;   /* every thread packs the whole first panel for itself: cheaper than waiting if it is small */
    int64_t pack_stride; /* bytes from one thread's panel to the next */
    Stage pack;          /* of the first layer's inputs, when not private */
    char *thread_scratch;
    int64_t thread_stride, sum_bytes;
};

/* A result code. */
TAMIS_HIDDEN int32_t check_chain(const tamis_chain *chain, int64_t rows);
/* Fill `chain`, which has to stay where it is, for a call on a checked chain; returns the bytes of workspace needed
 * from `base`, which is a multiple of LINE. Writes nothing there: the workspace may prove too small. */
TAMIS_HIDDEN int64_t plan_chain(const tamis_chain *given, int64_t rows, char *base, Chain *chain);
/* Write the counters, before each call. */
TAMIS_HIDDEN void reset_chain(Chain *chain);

namespace {

/* Matrix `index` of a packing: -1 is x. */
inline const tamis_piece *packed_piece(const Packing *packing, int64_t index) {
    return index < 0 ? packing->x : &packing->pieces[index];
}

/* Where the columns of a packed matrix and the zeros behind them end. */
inline int64_t packed_end(const Packing *packing, int64_t index, const Panel *panel) {
    return index + 1 < packing->count ? packing->pieces[index + 1].column : panel->k;
}

/* Units of a packed matrix for each block of rows: PACK_COLUMNS columns or what is left. */
inline int64_t packed_cuts(const Packing *packing, int64_t index, const Panel *panel) {
    const int64_t columns = packed_end(packing, index, panel) - packed_piece(packing, index)->column;
    return (columns + PACK_COLUMNS - 1) / PACK_COLUMNS;
}

}  // namespace
#endif
