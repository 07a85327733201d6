/* The driver: runs a planned chain of linear layers (plan.cpp) in one parallel region.
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

#include "plan.h"

namespace {

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

/* A unit of packing: up to PACK_COLUMNS columns of one block of rows. */
void run_pack(const Layer *layer, const Panel *panel, int64_t unit) {
    const Packing *packing = &layer->packing;
    const int64_t blocks = (panel->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    int64_t index = packing->x ? -1 : 0, cuts = packed_cuts(packing, index, panel);
    for (; unit >= blocks * cuts; cuts = packed_cuts(packing, index, panel)) {
        unit -= blocks * cuts;
        index++;
    }
    const tamis_piece *piece = packed_piece(packing, index);
    const int64_t k = piece->column + unit % cuts * PACK_COLUMNS;
    const int64_t end = smaller(k + PACK_COLUMNS, packed_end(packing, index, panel));
    layer->kernels->pack(&piece->matrix, piece->columns, piece->column, panel, unit / cuts, k, end);
}

void run_thread(void *argument, int thread, int) {
    Chain *chain = (Chain *)argument;
    alignas(LINE) char saved[LINE];
    const Kernels *special = nullptr;
    for (int i = 0; i < chain->count && !special; i++)
        if (chain->layers[i].kernels->enter) special = chain->layers[i].kernels;
    if (special) special->enter(chain->rows, saved);

    float *sum = (float *)(chain->thread_scratch + thread * chain->thread_stride);
    void *scratch = (char *)sum + chain->sum_bytes;
    Layer first = chain->layers[0]; /* with this thread's own panel */
    Panel *input = &first.task.in;
    auto pack = [&](int64_t unit) { run_pack(&first, input, unit); };
    if (chain->private_pack) {
        input->data = (char *)input->data + thread * chain->pack_stride;
        for (int64_t unit = 0; unit < chain->pack.units; unit++) pack(unit);
    } else {
        run_stage(&chain->pack, chain->threads, thread, true, pack);
    }
    for (int i = 0; i < chain->count; i++) {
        const Layer *layer = i ? &chain->layers[i] : &first, *next = &chain->layers[i + 1];
        const bool last = i + 1 == chain->count; /* the end of the region waits for all */
        run_stage(&layer->stage, chain->threads, thread, !last, [&](int64_t unit) {
            if (unit < layer->units)
                run_unit(layer, unit, sum, scratch);
            else
                run_pack(next, &next->task.in, unit - layer->units);
        });
    }
    if (special) special->leave(saved);
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
    return plan_chain(given, rows, nullptr, &chain) + LINE; /* to align the base */
}

int32_t tamis_chain_run(const tamis_chain *given, const void *x, void *y, int64_t rows) {
    if (int32_t bad = check_chain(given, rows)) return bad;
    if (rows == 0) return TAMIS_OK;
    if (!x || !y) return TAMIS_BAD_ARGUMENT;
    Chain chain;
    const int64_t used = plan_chain(given, rows, (char *)round_up((int64_t)given->workspace, LINE), &chain);
    if (!given->workspace || given->workspace_bytes < used + LINE) return TAMIS_SMALL_WORKSPACE;
    reset_chain(&chain);
    chain.x.matrix.data = (void *)x;
    Task *last = &chain.layers[chain.count - 1].task;
    last->y = given->y;
    last->y.data = y;
    run_parallel(chain.threads, run_thread, &chain);
    return TAMIS_OK;
}
