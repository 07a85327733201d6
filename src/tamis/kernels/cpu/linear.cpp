/* The driver: cuts a chain of linear layers into units of work, lays out the workspace, and runs the layers in
 * one parallel region.
 *
 * PLAN of a layer. Units are (group of output tiles) x (chunk of rows) x (part of k):
 *   - groups of a few tiles, so that every thread gets several;
 *   - chunks of rows such that a chunk's inputs stay in the L2 cache while all weights stream past;
 *   - k is cut only where there would be too few units (small n, few rows). Parts then leave sums in the
 *     workspace; whoever finishes a unit's last part adds them in the order of k, so the result does not
 *     depend on who came last. It may depend, by rounding, on the number of threads.
 *
 * SHARING. Each thread starts with an equal, contiguous range of units (so a layer whose weights fit the L2
 * caches finds them there in the next call) and then takes units from the end of others' ranges, so that a
 * thread that wakes late or is interrupted does not hold up the rest.
 *
 * BETWEEN LAYERS nothing is copied: a layer stores its outputs as the next one's panel. A thread goes on when all
 * units of a layer are done, whoever did them; it never waits for a thread to arrive. So a worker that wakes late
 * or loses its processor to another process costs its share of the work, not a time slice for each layer.
 */
#include <sched.h>
#include <string.h>

#include "internal.h"

namespace {

enum { LINE = 64, PRIVATE_PACK_ELEMENTS = 16384, SMALLEST_PART_BYTES = 16384, MAX_PARTS = 64, PACK_TILES = 32 };

struct alignas(LINE) Range { /* units next..end of one thread, in one word so that both ends move at once */
    uint64_t ends;
};

struct Stage { /* work that must be done before the next stage starts */
    int64_t units;
    Range *ranges; /* one for each thread */
    int64_t *done; /* units that are done, on a line of its own */
};

struct Layer {
    Task task;
    const Kernels *kernels;
    Stage stage;
    int64_t group_tiles, groups, chunk_rows, chunks, parts, part_tiles;
    int32_t *arrived; /* parts that are done, for each group and chunk */
    float *partial;   /* [group and chunk][part][rows][ld] */
};

struct Chain {
    Layer layers[TAMIS_MAX_LAYERS];
    int count, threads;
    int64_t rows;
    bool private_pack;        /* every thread packs all of X for itself: cheaper than waiting when X is small */
    int64_t pack_stride;      /* bytes from one thread's panel to the next */
    Stage pack;               /* of the first layer's inputs, when not private */
    char *thread_scratch;
    int64_t thread_stride, sum_bytes;
};

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Take the first unit of a range, or its last one. -1: it is empty. */
int64_t take(Range *range, bool from_end) {
    uint64_t ends = __atomic_load_n(&range->ends, __ATOMIC_RELAXED);
    for (;;) {
        const uint64_t next = ends & 0xffffffffu, end = ends >> 32;
        if (next >= end) return -1;
        const uint64_t less = from_end ? (end - 1) << 32 | next : end << 32 | (next + 1);
        if (__atomic_compare_exchange_n(&range->ends, &ends, less, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return (int64_t)(from_end ? end - 1 : next);
    }
}

/* Do this thread's units, then others', then wait (unless this is the last stage) for those under way. */
template <class Run>
void run_stage(const Stage *stage, int threads, int thread, bool wait, Run run) {
    int64_t mine = 0;
    for (int64_t unit; (unit = take(&stage->ranges[thread], false)) >= 0; mine++) run(unit);
    for (int other = 1; other < threads; other++) {
        Range *range = &stage->ranges[(thread + other) % threads];
        for (int64_t unit; (unit = take(range, true)) >= 0; mine++) run(unit);
    }
    if (mine) __atomic_add_fetch(stage->done, mine, __ATOMIC_ACQ_REL);
    if (!wait) return;
    for (int spins = 0; __atomic_load_n(stage->done, __ATOMIC_ACQUIRE) < stage->units; spins++) {
        if (spins < 4096)
            pause_briefly();
        else
            sched_yield(); /* the processor may be what the other thread waits for */
    }
}

void run_unit(const Layer *layer, int64_t index, float *sum, void *scratch) {
    const Task *task = &layer->task;
    const int64_t part = index % layer->parts, place = index / layer->parts;
    const int64_t group = place % layer->groups, chunk = place / layer->groups;
    const int64_t all_tiles = (task->n + TILE_N - 1) / TILE_N, ld = layer->group_tiles * TILE_N;
    Unit unit;
    unit.tile = group * layer->group_tiles;
    unit.tiles = smaller(layer->group_tiles, all_tiles - unit.tile);
    unit.k0 = part * layer->part_tiles;
    unit.k1 = smaller(unit.k0 + layer->part_tiles, task->k_blocks);
    unit.row = chunk * layer->chunk_rows;
    unit.rows = smaller(layer->chunk_rows, task->in.rows - unit.row);
    if (layer->parts > 1) {
        const int64_t size = round_up(layer->chunk_rows, 32) * ld;
        float *first = layer->partial + place * layer->parts * size;
        layer->kernels->multiply(task, &unit, first + part * size, ld, scratch);
        if (__atomic_add_fetch(&layer->arrived[place], 1, __ATOMIC_ACQ_REL) < layer->parts) return;
        for (int64_t i = 0; i < unit.rows * ld; i++) {
            float total = first[i];
            for (int64_t p = 1; p < layer->parts; p++) total += first[p * size + i];
            sum[i] = total;
        }
    } else {
        layer->kernels->multiply(task, &unit, sum, ld, scratch);
    }
    layer->kernels->finish(task, &unit, sum, ld);
}

/* A unit of packing: PACK_TILES tiles of k of one block of rows. */
void run_pack(const Chain *chain, const tamis_matrix *x, int64_t columns, const Panel *panel, int64_t index) {
    const int64_t tiles = panel->k / TILE_K, pieces = (tiles + PACK_TILES - 1) / PACK_TILES;
    const int64_t k0 = index % pieces * PACK_TILES;
    chain->layers[0].kernels->pack(x, columns, panel, index / pieces, k0, smaller(k0 + PACK_TILES, tiles));
}

struct Call {
    Chain *chain;
    const tamis_matrix *x;
    int64_t columns;
};

void run_thread(void *argument, int thread, int) {
    const Call *call = (const Call *)argument;
    Chain *chain = call->chain;
    alignas(LINE) char saved[LINE];
    const Kernels *special = nullptr;
    for (int i = 0; i < chain->count && !special; i++)
        if (chain->layers[i].kernels->enter) special = chain->layers[i].kernels;
    if (special) special->enter(chain->rows, saved);

    float *sum = (float *)(chain->thread_scratch + thread * chain->thread_stride);
    void *scratch = (char *)sum + chain->sum_bytes;
    Layer first = chain->layers[0]; /* with this thread's own panel */
    Panel *input = &first.task.in;
    auto pack = [&](int64_t unit) { run_pack(chain, call->x, call->columns, input, unit); };
    if (chain->private_pack) {
        input->data = (char *)input->data + thread * chain->pack_stride;
        for (int64_t unit = 0; unit < chain->pack.units; unit++) pack(unit);
    } else {
        run_stage(&chain->pack, chain->threads, thread, true, pack);
    }
    for (int i = 0; i < chain->count; i++) {
        const Layer *layer = i ? &chain->layers[i] : &first;
        const bool last = i + 1 == chain->count; /* the end of the region waits for all */
        run_stage(&layer->stage, chain->threads, thread, !last,
                  [&](int64_t unit) { run_unit(layer, unit, sum, scratch); });
    }
    if (special) special->leave(saved);
}

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
    layer->group_tiles = rows > kernels->wide_rows ? 1 : smaller(kernels->max_group_tiles, tiles / (4 * threads));
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

void place_layer(Layer *layer, int threads, Allocator *space) {
    const int64_t places = layer->groups * layer->chunks, units = places * layer->parts;
    place_stage(&layer->stage, units, threads, space);
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

void reset_chain(Chain *chain) {
    reset_stage(&chain->pack, chain->threads);
    for (int i = 0; i < chain->count; i++) {
        Layer *layer = &chain->layers[i];
        reset_stage(&layer->stage, chain->threads);
        if (layer->arrived) memset(layer->arrived, 0, (size_t)(layer->groups * layer->chunks) * 4);
    }
}

void plan_chain(const tamis_chain *given, int64_t rows, Chain *chain, Allocator *space) {
    chain->count = given->layer_count;
    chain->threads = given->threads;
    chain->rows = rows;
    chain->sum_bytes = chain->thread_stride = 0;
    int64_t scratch_bytes = 0;
    for (int i = 0; i < chain->count; i++) {
        const tamis_linear *l = &given->layers[i];
        Layer *layer = &chain->layers[i];
        layer->kernels = find_kernels(given->isa, l->weight_dtype);
        plan_layer(layer, l, rows, chain->threads);
        if (given->residuals) layer->task.residual = given->residuals[i];
        place_layer(layer, chain->threads, space);
        const int64_t sum_bytes = round_up(layer->chunk_rows, 32) * layer->group_tiles * TILE_N * 4;
        chain->sum_bytes = larger(chain->sum_bytes, sum_bytes);
        scratch_bytes = larger(scratch_bytes, layer->kernels->scratch_bytes);
    }
    chain->thread_stride = round_up(chain->sum_bytes + scratch_bytes, LINE);
    chain->thread_scratch = space->take(chain->thread_stride * chain->threads);
    chain->private_pack = chain->threads > 1 && rows * chain->layers[0].task.in.k <= PRIVATE_PACK_ELEMENTS;
    chain->pack_stride = round_up(panel_bytes(&chain->layers[0].task.in), LINE);
    const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, tiles = chain->layers[0].task.k_blocks;
    place_stage(&chain->pack, blocks * ((tiles + PACK_TILES - 1) / PACK_TILES), chain->threads, space);
    const int64_t copies = chain->private_pack ? chain->threads : 1;
    chain->layers[0].task.in.data = space->take(chain->pack_stride * copies);
    for (int i = 1; i < chain->count; i++) {
        Panel *panel = &chain->layers[i].task.in;
        panel->data = space->take(panel_bytes(panel));
        chain->layers[i - 1].task.out = *panel;
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

int32_t check_chain(const tamis_chain *chain, int64_t rows) {
    if (!chain || !chain->layers || chain->layer_count < 1 || chain->layer_count > TAMIS_MAX_LAYERS)
        return TAMIS_BAD_ARGUMENT;
    if (rows < 0 || rows > INT32_MAX || chain->threads < 1 || chain->threads > TAMIS_MAX_THREADS)
        return TAMIS_BAD_ARGUMENT;
    if (chain->isa < 0 || chain->isa > TAMIS_AMX) return TAMIS_BAD_ARGUMENT;
    if (!(processor_isa_mask() >> chain->isa & 1)) return TAMIS_UNAVAILABLE_ISA;
    for (int i = 0; i < chain->layer_count; i++) {
        const tamis_linear *l = &chain->layers[i];
        if (int32_t bad = check_layer(l, chain->residuals ? &chain->residuals[i] : nullptr)) return bad;
        if (i && l->k != chain->layers[i - 1].n) return TAMIS_BAD_ARGUMENT;
    }
    if (!known_dtype(chain->x.dtype) || !known_dtype(chain->y.dtype)) return TAMIS_BAD_ARGUMENT;
    if (chain->x.stride < chain->layers[0].k) return TAMIS_SMALL_STRIDE;
    return chain->y.stride < chain->layers[chain->layer_count - 1].n ? TAMIS_SMALL_STRIDE : TAMIS_OK;
}

}  // namespace

int32_t tamis_cpu_abi(void) { return TAMIS_CPU_ABI; }

int32_t tamis_cpu_isa_mask(void) {
    int32_t mask = processor_isa_mask();
    if (!avx2_kernels) mask &= ~(1 << TAMIS_AVX2);
    if (!avx512_kernels) mask &= ~(1 << TAMIS_AVX512);
    if (!avx512_bf16_kernels) mask &= ~(1 << TAMIS_AVX512_BF16);
    if (!amx_kernels) mask &= ~(1 << TAMIS_AMX);
    return mask;
}

int32_t tamis_cpu_best_isa(void) { return 31 - __builtin_clz((uint32_t)tamis_cpu_isa_mask()); }

int64_t tamis_chain_workspace(const tamis_chain *given, int64_t rows) {
    if (int32_t bad = check_chain(given, rows)) return -bad;
    if (rows == 0) return 0;
    Chain chain;
    Allocator space = {nullptr, 0};
    plan_chain(given, rows, &chain, &space);
    return space.used + LINE; /* to align the base */
}

int32_t tamis_chain_run(const tamis_chain *given, const void *x, void *y, int64_t rows) {
    if (int32_t bad = check_chain(given, rows)) return bad;
    if (rows == 0) return TAMIS_OK;
    if (!x || !y) return TAMIS_BAD_ARGUMENT;
    Chain chain;
    Allocator space = {(char *)round_up((int64_t)given->workspace, LINE), 0};
    plan_chain(given, rows, &chain, &space);
    if (!given->workspace || given->workspace_bytes < space.used + LINE) return TAMIS_SMALL_WORKSPACE;
    reset_chain(&chain);
    Task *last = &chain.layers[chain.count - 1].task;
    last->y = given->y;
    last->y.data = y;
    tamis_matrix input = given->x;
    input.data = (void *)x;
    Call call = {&chain, &input, given->layers[0].k};
    run_parallel(chain.threads, run_thread, &call);
    return TAMIS_OK;
}
