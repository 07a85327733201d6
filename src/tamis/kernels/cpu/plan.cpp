/* The plan of a chain: checks what was given, cuts every layer into units, lays out the workspace.
 *
 * Units of a layer are (group of output tiles) x (chunk of rows) x (part of k):
 *   - groups of a few tiles, so that every thread gets several;
 *   - chunks of rows such that a chunk's inputs stay in the L2 cache while all weights stream past;
 *   - k is cut only where there would be too few units (small n, few rows). Parts then leave sums in the
 *     workspace; whoever finishes a unit's last part adds them in the order of k, so the result does not
 *     depend on who came last. It may depend, by rounding, on the number of threads.
 *
 * Pieces of a layer are packed in the stage of the layer before it, which everyone waits for anyway.
 */
#include "plan.h"

#include <string.h>

namespace {

enum { PRIVATE_PACK_ELEMENTS = 16384, SMALLEST_PART_BYTES = 16384, MAX_PARTS = 64 };

/* The kernels of the best level up to `isa` that has some for this weight type. */
const Kernels *find_kernels(int32_t isa, int32_t dtype) {
    const Kernels *found = nullptr;
    if (isa >= TAMIS_AMX && amx_kernels) found = amx_kernels(dtype);
    if (!found && isa >= TAMIS_AVX512_BF16 && avx512_bf16_kernels) found = avx512_bf16_kernels(dtype);
    if (!found && isa >= TAMIS_AVX512 && avx512_kernels) found = avx512_kernels(dtype);
    if (!found && isa >= TAMIS_AVX2 && avx2_kernels) found = avx2_kernels(dtype);
    return found ? found : portable_kernels(dtype);
}

int64_t bytes_of(int32_t dtype) { return dtype == TAMIS_F32 ? 4 : 2; }

int64_t tile_bytes(const tamis_linear *l) {
    const int64_t size = bytes_of(l->weight_dtype);
    return l->pattern == TAMIS_DENSE ? TILE_N * TILE_K * size : TILE_N * 4 + TILE_N * TILE_K / 2 * size;
}

void plan_layer(Layer *layer, const tamis_linear *l, int64_t rows, int threads) {
    const Kernels *kernels = layer->kernels;
    Task *task = &layer->task;
    *task = Task();
    task->weight = (const uint8_t *)l->weight;
    task->tile_bytes = tile_bytes(l);
    task->n = l->n;
    task->k_blocks = (l->k + TILE_K - 1) / TILE_K;
    task->pattern = l->pattern;
    task->bias = l->bias;
    task->epilogue = l->epilogue;
    task->epilogue_count = l->epilogue_count;
    task->in = {nullptr, rows, task->k_blocks * TILE_K, kernels->panel_dtype, kernels->panel_group,
                kernels->panel_full_blocks};

    const int64_t tiles = (l->n + TILE_N - 1) / TILE_N;
    layer->chunk_rows = rows;
    if (rows > 4 * BLOCK_ROWS) {
        const int64_t row_bytes = task->in.k * bytes_of(kernels->panel_dtype);
        layer->chunk_rows = smaller(256, larger(64, kernels->chunk_bytes / row_bytes / 32 * 32));
    }
    layer->chunks = (rows + layer->chunk_rows - 1) / layer->chunk_rows;
    /* Several tiles at a time finish faster together, as long as every thread gets several groups. */
    const bool many = kernels->many_tiles(rows);
    layer->group_tiles = many ? smaller(MAX_GROUP_TILES, tiles / (4 * threads)) : 1;
    layer->group_tiles = smaller(tiles, larger(layer->group_tiles, kernels->min_group_tiles));
    layer->groups = (tiles + layer->group_tiles - 1) / layer->group_tiles;
    const int64_t units = layer->groups * layer->chunks;
    layer->parts = 1;
    if (threads > 1 && units < 4 * threads && rows <= 4 * BLOCK_ROWS) {
        const int64_t unit_bytes = layer->group_tiles * task->k_blocks * task->tile_bytes;
        const int64_t wanted = (4 * threads + units - 1) / units;
        layer->parts = larger(1, smaller(smaller(wanted, unit_bytes / SMALLEST_PART_BYTES), MAX_PARTS));
        layer->parts = smaller(layer->parts, task->k_blocks);
    }
    layer->part_tiles = (task->k_blocks + layer->parts - 1) / layer->parts;
    layer->parts = (task->k_blocks + layer->part_tiles - 1) / layer->part_tiles;
}

/* Hands out the workspace; without a base it only counts. */
struct Allocator {
    char *base;
    int64_t used;
    char *take(int64_t bytes) {
        char *at = base ? base + used : nullptr;
        used += round_up(bytes, LINE);
        return at;
    }
};

int64_t panel_bytes(const Panel *panel) { return panel_size(panel) * bytes_of(panel->dtype); }

void place_stage(Stage *stage, int64_t units, int threads, Allocator *space) {
    stage->units = units;
    stage->ranges = (Range *)space->take((int64_t)sizeof(Range) * threads);
    stage->done = (int64_t *)space->take(sizeof(int64_t));
}

/* `next` is the layer behind, or null: its pieces are packed in this layer's stage. */
void place_layer(Layer *layer, const Layer *next, int threads, Allocator *space) {
    const int64_t places = layer->groups * layer->chunks, units = places * layer->parts;
    layer->units = units;
    place_stage(&layer->stage, units + (next ? next->packing.units : 0), threads, space);
    layer->arrived = layer->parts > 1 ? (int32_t *)space->take(places * 4) : nullptr;
    const int64_t size = round_up(layer->chunk_rows, 32) * layer->group_tiles * TILE_N * 4;
    layer->partial = layer->parts > 1 ? (float *)space->take(units * size) : nullptr;
}

/* Writes the counters; the plan itself writes nothing, for the workspace may prove too small. */
void reset_stage(Stage *stage, int threads) {
    for (int t = 0; t < threads; t++) {
        const uint64_t next = (uint64_t)(stage->units * t / threads);
        const uint64_t end = (uint64_t)(stage->units * (t + 1) / threads);
        stage->ranges[t].ends = end << 32 | next;
    }
    *stage->done = 0;
}

/* Pieces `first` to `last` of the chain are those of this layer. */
void plan_packing(Layer *layer, const tamis_piece *x, const tamis_piece *first, const tamis_piece *last) {
    const Panel *panel = &layer->task.in;
    Packing *packing = &layer->packing;
    *packing = {x, first, last - first, 0};
    const int64_t blocks = (panel->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t index = x ? -1 : 0; index < packing->count; index++)
        packing->units += blocks * packed_cuts(packing, index, panel);
}

void plan_layers(const tamis_chain *given, int64_t rows, Chain *chain) {
    const tamis_piece *piece = given->pieces, *end = piece + given->piece_count;
    for (int i = 0; i < chain->count; i++) {
        const tamis_linear *l = &given->layers[i];
        Layer *layer = &chain->layers[i];
        layer->kernels = find_kernels(given->isa, l->weight_dtype);
        plan_layer(layer, l, rows, chain->threads);
        if (given->residuals) layer->task.residual = given->residuals[i];
        const tamis_piece *first = piece;
        while (piece < end && piece->layer == i) piece++;
        plan_packing(layer, i ? nullptr : &chain->x, first, piece);
    }
}

bool known_dtype(int32_t dtype) { return dtype == TAMIS_F32 || dtype == TAMIS_BF16; }

int32_t check_layer(const tamis_linear *l, const tamis_matrix *residual) {
    if (!l->weight || l->n < 1 || l->k < 1 || l->n > INT32_MAX || l->k > INT32_MAX) return TAMIS_BAD_ARGUMENT;
    if (!known_dtype(l->weight_dtype) || l->pattern < 0 || l->pattern > TAMIS_TWO_FOUR) return TAMIS_BAD_ARGUMENT;
    if (l->epilogue_count < 0 || (l->epilogue_count && !l->epilogue)) return TAMIS_BAD_ARGUMENT;
    for (int32_t s = 0; s < l->epilogue_count; s++) {
        const int32_t kind = l->epilogue[s].kind;
        if (kind < 0 || kind > TAMIS_ADD_RESIDUAL) return TAMIS_BAD_ARGUMENT;
        if (kind != TAMIS_ADD_RESIDUAL) continue;
        if (!residual || !residual->data || !known_dtype(residual->dtype)) return TAMIS_BAD_ARGUMENT;
        if (residual->stride < l->n) return TAMIS_SMALL_STRIDE;
    }
    return TAMIS_OK;
}

/* Pieces must be those of layers in order; `piece` moves on behind those of this one. */
int32_t check_input(const tamis_chain *chain, int layer, const tamis_piece **piece) {
    const tamis_piece *end = chain->pieces + chain->piece_count;
    const int64_t k = chain->layers[layer].k;
    int64_t used = layer ? chain->layers[layer - 1].n : chain->x_columns;
    if (used < 1 || used > k) return TAMIS_BAD_ARGUMENT;
    for (; *piece < end && (*piece)->layer == layer; (*piece)++) {
        const tamis_piece *p = *piece;
        if (!p->matrix.data || !known_dtype(p->matrix.dtype) || p->column % TILE_N) return TAMIS_BAD_ARGUMENT;
        if (p->column < used || p->columns < 1 || p->column > k || p->columns > k - p->column)
            return TAMIS_BAD_ARGUMENT;
        if (p->matrix.stride < p->columns) return TAMIS_SMALL_STRIDE;
        used = p->column + p->columns;
    }
    return used == k ? TAMIS_OK : TAMIS_BAD_ARGUMENT;
}

}  // namespace

int32_t check_chain(const tamis_chain *chain, int64_t rows) {
    if (!chain || !chain->layers || chain->layer_count < 1 || chain->layer_count > TAMIS_MAX_LAYERS)
        return TAMIS_BAD_ARGUMENT;
    if (rows < 0 || rows > INT32_MAX || chain->threads < 1 || chain->threads > TAMIS_MAX_THREADS)
        return TAMIS_BAD_ARGUMENT;
    if (chain->isa < 0 || chain->isa > TAMIS_AMX) return TAMIS_BAD_ARGUMENT;
    if (!(processor_isa_mask() >> chain->isa & 1)) return TAMIS_UNAVAILABLE_ISA;
    if (chain->piece_count < 0 || (chain->piece_count && !chain->pieces)) return TAMIS_BAD_ARGUMENT;
    const tamis_piece *piece = chain->pieces;
    for (int i = 0; i < chain->layer_count; i++) {
        if (int32_t bad = check_layer(&chain->layers[i], chain->residuals ? &chain->residuals[i] : nullptr)) return bad;
        if (int32_t bad = check_input(chain, i, &piece)) return bad;
    }
    if (piece != chain->pieces + chain->piece_count) return TAMIS_BAD_ARGUMENT; /* of no layer, or out of order */
    if (!known_dtype(chain->x.dtype) || !known_dtype(chain->y.dtype)) return TAMIS_BAD_ARGUMENT;
    if (chain->x.stride < chain->x_columns) return TAMIS_SMALL_STRIDE;
    return chain->y.stride < chain->layers[chain->layer_count - 1].n ? TAMIS_SMALL_STRIDE : TAMIS_OK;
}

int64_t plan_chain(const tamis_chain *given, int64_t rows, char *base, Chain *chain) {
    Allocator space = {base, 0};
    chain->count = given->layer_count;
    chain->threads = given->threads;
    chain->rows = rows;
    chain->x = {given->x, 0, given->x_columns, 0, 0};
    plan_layers(given, rows, chain);

    chain->sum_bytes = chain->thread_stride = 0;
    int64_t scratch_bytes = 0;
    for (int i = 0; i < chain->count; i++) {
        Layer *layer = &chain->layers[i];
        place_layer(layer, i + 1 < chain->count ? layer + 1 : nullptr, chain->threads, &space);
        const int64_t sum_bytes = round_up(layer->chunk_rows, 32) * layer->group_tiles * TILE_N * 4;
        chain->sum_bytes = larger(chain->sum_bytes, sum_bytes);
        scratch_bytes = larger(scratch_bytes, layer->kernels->scratch_bytes);
    }
    chain->thread_stride = round_up(chain->sum_bytes + scratch_bytes, LINE);
    chain->thread_scratch = space.take(chain->thread_stride * chain->threads);

    Panel *first = &chain->layers[0].task.in;
    chain->private_pack = chain->threads > 1 && rows * first->k <= PRIVATE_PACK_ELEMENTS;
    chain->pack_stride = round_up(panel_bytes(first), LINE);
    place_stage(&chain->pack, chain->layers[0].packing.units, chain->threads, &space);
    first->data = space.take(chain->pack_stride * (chain->private_pack ? chain->threads : 1));
    for (int i = 1; i < chain->count; i++) {
        Layer *layer = &chain->layers[i];
        layer->task.in.data = space.take(panel_bytes(&layer->task.in));
        Task *before = &chain->layers[i - 1].task;
        before->out = layer->task.in;
        before->out_columns = packed_end(&layer->packing, -1, &layer->task.in);
    }
    return space.used;
}

void reset_chain(Chain *chain) {
    reset_stage(&chain->pack, chain->threads);
    for (int i = 0; i < chain->count; i++) {
        Layer *layer = &chain->layers[i];
        reset_stage(&layer->stage, chain->threads);
        if (layer->arrived) memset(layer->arrived, 0, (size_t)(layer->groups * layer->chunks) * 4);
    }
}
