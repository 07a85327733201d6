/* Parallel regions on the threads of the OpenMP runtime that the process already uses.
 *
 * Why not a pool of our own: PyTorch's OpenMP workers spin for milliseconds after each of its operations. A
 * second pool would fight them for the cores. Measured on 2 cores, 16 x 1024 by 1024 bfloat16 2:4, taking turns with
 * F.linear of that shape, median (10th percentile) in microseconds, on a machine that others used too:
 *
 *                                     ours          F.linear
 *     PyTorch's OpenMP threads         67 (64)      184 (174)      alone: 66 (64)
 *     a spinning pool of our own       91 (79)      201 (186)      and at times 7.7 ms for each, whole time slices
 *     threads started by each call    159 (148)     192 (179)
 *
 * So the loader hands us GOMP_parallel and its companions from the very library that PyTorch loaded, and our regions run
 * on the same workers. These three functions are a stable interface of libgomp, which LLVM's and Intel's
 * runtimes export too. Without them regions start and join POSIX threads: right, but tens of microseconds slow.
 */
#include <pthread.h>

#include "internal.h"

namespace {

using ParallelFunction = void (*)(void (*)(void *), void *, unsigned, unsigned);
using QueryFunction = int (*)();

ParallelFunction openmp_parallel = nullptr;
QueryFunction openmp_thread_num = nullptr, openmp_num_threads = nullptr;

struct Region {
    void (*body)(void *, int, int);
    void *context;
};

void run_openmp(void *argument) {
    const Region *region = (const Region *)argument;
    region->body(region->context, openmp_thread_num(), openmp_num_threads());
}

struct Gate { /* holds the threads back until it is known how many could be started */
    pthread_mutex_t mutex;
    pthread_cond_t opened;
    int team;
};

struct GatedThread {
    const Region *region;
    Gate *gate;
    int thread;
    pthread_t handle;
};

void *run_gated(void *argument) {
    const GatedThread *self = (const GatedThread *)argument;
    pthread_mutex_lock(&self->gate->mutex);
    while (!self->gate->team) pthread_cond_wait(&self->gate->opened, &self->gate->mutex);
    const int team = self->gate->team;
    pthread_mutex_unlock(&self->gate->mutex);
    self->region->body(self->region->context, self->thread, team);
    return nullptr;
}

void run_posix_threads(int threads, const Region *region) {
    Gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    GatedThread others[TAMIS_MAX_THREADS];
    int team = 1;
    for (; team < threads; team++) {
        others[team] = {region, &gate, team, pthread_t()};
        if (pthread_create(&others[team].handle, nullptr, run_gated, &others[team])) break;
    }
    pthread_mutex_lock(&gate.mutex);
    gate.team = team;
    pthread_cond_broadcast(&gate.opened);
    pthread_mutex_unlock(&gate.mutex);
    region->body(region->context, 0, team);
    for (int t = 1; t < team; t++) pthread_join(others[t].handle, nullptr);
}

}  // namespace

void tamis_cpu_set_openmp(void *parallel, void *thread_num, void *num_threads) {
    const bool complete = parallel && thread_num && num_threads;
    openmp_parallel = complete ? (ParallelFunction)parallel : nullptr;
    openmp_thread_num = complete ? (QueryFunction)thread_num : nullptr;
    openmp_num_threads = complete ? (QueryFunction)num_threads : nullptr;
}

void run_parallel(int threads, void (*body)(void *, int, int), void *context) {
    Region region = {body, context};
    if (threads <= 1)
        body(context, 0, 1);
    else if (openmp_parallel)
        openmp_parallel(run_openmp, &region, (unsigned)threads, 0);
    else
        run_posix_threads(threads, &region);
}
