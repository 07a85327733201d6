// CUDA C++ on the CPU, enough of it to run our kernels thread by thread.
//
// A block's threads are fibres on one core, switched only where they wait: at __syncthreads (all threads of the block),
// in a warp shuffle (the 32 lanes), at a barrier of some threads, and for a condition. Clusters of blocks run one
// after the other, the blocks of a cluster (one if nothing is said) together. Wrong programs are found out: a thread that
// leaves while others wait at a barrier, a shuffle with lanes missing, a misaligned or outside access (through the
// caller's guard pages and the compiler's alignment checks), or one before the kernel in front has finished, end the
// launch with a code and not the process.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <functional>
#include <utility>
#include <vector>

#define TAMIS_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct EmulatedIndex {
    unsigned x, y, z;
};
static EmulatedIndex gridDim, blockDim, blockIdx, threadIdx;

template <class To, class From> inline To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }
inline float __int_as_float(int bits) { return emulated_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }

inline float emulated_half_to_float(unsigned short bits) { return (float)emulated_bits<_Float16>(bits); }
inline unsigned short emulated_float_to_half(float x) { return emulated_bits<unsigned short>((_Float16)x); }
inline unsigned short emulated_float_to_bfloat(float x) {
    const unsigned bits = emulated_bits<unsigned>(x);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline int emulated_float_to_int(float x) {
    if (x != x) return 0;
    if (fabsf(x) >= 2147483648.0f) return x < 0 ? -2147483647 - 1 : 2147483647;
    return (int)nearbyintf(x);
}
inline unsigned emulated_saturated(int x) { return (unsigned char)(x < -128 ? -128 : x > 127 ? 127 : x); }
// e4m3: four bits of exponent with bias 7, three of mantissa; no infinity, and NaN where all seven are ones.
inline float emulated_e4m3_to_float(unsigned bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float size = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    if ((bits & 127) == 127) return __uint_as_float(0x7fc00000);
    return bits & 128 ? -size : size;
}
// To the nearest, ties to even; what is larger than 448 becomes 448.
inline unsigned emulated_float_to_e4m3(float x) {
    const unsigned sign = emulated_bits<unsigned>(x) >> 24 & 128;
    if (x != x) return 127;
    if (fabsf(x) >= 448.0f) return sign | 126;
    if (x == 0.0f) return sign;
    int exponent;
    frexpf(x, &exponent);
    const int unit = exponent - 4 < -9 ? -9 : exponent - 4;  // the power of two of the last bit
    const int count = (int)nearbyintf(ldexpf(fabsf(x), -unit));
    // Units of 16 are the next exponent, and units below eight subnormal: both come out by adding.
    return sign | (unsigned)(count + (unit + 9) * 8);
}

enum {
    EMULATED_OK = 0,
    EMULATED_DEADLOCK = 1,
    EMULATED_FAULT = 2,
    EMULATED_NO_MEMORY = 3,
    EMULATED_EARLY = 4,
    EMULATED_NEVER_WAITED = 5
};

struct EmulatedFibre {
    ucontext_t context;
    EmulatedIndex index, block;
    enum { READY, AT_BARRIER, AT_CLUSTER, AT_SHUFFLE, AT_MEETING, UNTIL, FOR_PREVIOUS, DONE } state;
    unsigned shuffled;
    int meeting, expected;  // which barrier, of how many threads
    std::function<bool()> until;
};

static struct {
    std::vector<EmulatedFibre> fibres;
    char *stacks;
    ucontext_t scheduler;
    unsigned current;
    void (*body)();
} emulated;

static const size_t EMULATED_STACK = 1 << 16;

inline void emulated_wait(decltype(EmulatedFibre::state) state) {
    EmulatedFibre &self = emulated.fibres[emulated.current];
    self.state = state;
    swapcontext(&self.context, &emulated.scheduler);
}

inline void __syncthreads() { emulated_wait(EmulatedFibre::AT_BARRIER); }

inline unsigned emulated_lane() { return emulated.current & 31; }

inline unsigned emulated_from_lane(unsigned value, unsigned lane) {
    const unsigned self = emulated.current;
    emulated.fibres[self].shuffled = value;
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has given its value
    const unsigned other = emulated.fibres[(self & ~31u) | lane].shuffled;
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has read
    return other;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(emulated_from_lane(__float_as_uint(value), emulated_lane() ^ (unsigned)mask));
}

// Waits for so many threads at the barrier of this number.
inline void emulated_meet(int number, int threads) {
    EmulatedFibre &self = emulated.fibres[emulated.current];
    self.meeting = number, self.expected = threads;
    emulated_wait(EmulatedFibre::AT_MEETING);
}

inline void emulated_wait_until(std::function<bool()> condition) {
    if (condition()) return;
    emulated.fibres[emulated.current].until = condition;
    emulated_wait(EmulatedFibre::UNTIL);
}

// The kernel before this one, which still uses the memory that is told by emulated_close: whole pages, that no one may
// touch. For each cluster anew it finishes as late as may be: when no thread has anything to do but to wait for it.
struct EmulatedPages {
    void *start;
    size_t bytes;
};
static std::vector<EmulatedPages> emulated_pages;
static bool emulated_previous_over;
inline void emulated_previous(bool over) {
    for (const EmulatedPages &pages : emulated_pages)
        mprotect(pages.start, pages.bytes, over ? PROT_READ | PROT_WRITE : PROT_NONE);
    emulated_previous_over = over;
}
inline void emulated_previous_finished() {
    if (!emulated_previous_over) emulated_wait(EmulatedFibre::FOR_PREVIOUS);
}
extern "C" void emulated_close(void *start, size_t bytes) { emulated_pages.push_back({start, bytes}); }

static void emulated_fibre() {
    emulated.body();
    emulated.fibres[emulated.current].state = EmulatedFibre::DONE;
}

// Makes the fibres [from, to) ready again when all of them wait in `state`; at a cluster's barrier those that are done
// count as there.
inline bool emulated_release(unsigned from, unsigned to, decltype(EmulatedFibre::state) state) {
    bool any = false;
    for (unsigned i = from; i < to; i++) {
        const bool gone = state == EmulatedFibre::AT_CLUSTER && emulated.fibres[i].state == EmulatedFibre::DONE;
        if (emulated.fibres[i].state != state && !gone) return false;
        any = any || !gone;
    }
    if (!any) return false;
    for (unsigned i = from; i < to; i++)
        if (emulated.fibres[i].state == state) emulated.fibres[i].state = EmulatedFibre::READY;
    return true;
}

// Goes on with those of a block who wait for what is the case by now, and with complete meetings.
inline bool emulated_go_on(unsigned from, unsigned to) {
    bool any = false;
    int there[16] = {};
    for (unsigned i = from; i < to; i++) {
        EmulatedFibre &fibre = emulated.fibres[i];
        emulated.current = i;  // conditions look into the block's shared memory
        if (fibre.state == EmulatedFibre::UNTIL && fibre.until()) fibre.state = EmulatedFibre::READY, any = true;
        if (fibre.state == EmulatedFibre::AT_MEETING) there[fibre.meeting]++;
    }
    for (unsigned i = from; i < to; i++) {
        EmulatedFibre &fibre = emulated.fibres[i];
        if (fibre.state == EmulatedFibre::AT_MEETING && there[fibre.meeting] >= fibre.expected)
            fibre.state = EmulatedFibre::READY, any = true;
    }
    return any;
}

// Runs those of the fibres [from, to) that are ready until they wait; false when none was.
inline bool emulated_run(unsigned from, unsigned to) {
    bool ran = false;
    // Backwards: a kernel that counts on the lowest thread running first must not pass.
    for (unsigned i = to; i-- > from;) {
        EmulatedFibre &fibre = emulated.fibres[i];
        if (fibre.state != EmulatedFibre::READY) continue;
        emulated.current = i;
        threadIdx = fibre.index, blockIdx = fibre.block;
        swapcontext(&emulated.scheduler, &fibre.context);
        ran = true;
    }
    return ran;
}

static void (*emulated_start_of_block)();
static unsigned emulated_cluster_size = 1;
// Which block of the cluster a fibre belongs to.
inline unsigned emulated_rank() { return emulated.current / (blockDim.x * blockDim.y * blockDim.z); }

// Runs the blocks from `first` on that make up a cluster, which are neighbours along x.
inline int emulated_cluster(EmulatedIndex first) {
    if (emulated_start_of_block) emulated_start_of_block();
    emulated_previous(false);
    const unsigned size = blockDim.x * blockDim.y * blockDim.z, threads = size * emulated_cluster_size;
    for (unsigned i = 0; i < threads; i++) {
        EmulatedFibre &fibre = emulated.fibres[i];
        const unsigned own = i % size;
        fibre.index = {own % blockDim.x, own / blockDim.x % blockDim.y, own / blockDim.x / blockDim.y};
        fibre.block = {first.x + i / size, first.y, first.z};
        fibre.state = EmulatedFibre::READY;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = emulated.stacks + i * EMULATED_STACK;
        fibre.context.uc_stack.ss_size = EMULATED_STACK;
        fibre.context.uc_link = &emulated.scheduler;
        makecontext(&fibre.context, emulated_fibre, 0);
    }
    for (;;) {
        bool ran = false, done = true;
        // One warp as far as it gets, then the next: a kernel that counts on warps keeping step must not pass.
        for (unsigned warp = 0; warp < threads; warp += 32) {
            const unsigned end = warp + 32 < threads ? warp + 32 : threads;
            do ran = emulated_run(warp, end) || ran;
            while (end == warp + 32 && emulated_release(warp, end, EmulatedFibre::AT_SHUFFLE));
        }
        for (const EmulatedFibre &fibre : emulated.fibres) done = done && fibre.state == EmulatedFibre::DONE;
        if (done) return emulated_previous_over || emulated_pages.empty() ? EMULATED_OK : EMULATED_NEVER_WAITED;
        for (unsigned block = 0; block < threads; block += size) {
            ran = emulated_release(block, block + size, EmulatedFibre::AT_BARRIER) || ran;
            ran = emulated_go_on(block, block + size) || ran;
        }
        ran = emulated_release(0, threads, EmulatedFibre::AT_CLUSTER) || ran;
        if (!ran && !emulated_previous_over) {
            emulated_previous(true);
            for (EmulatedFibre &fibre : emulated.fibres)
                if (fibre.state == EmulatedFibre::FOR_PREVIOUS) fibre.state = EmulatedFibre::READY, ran = true;
        }
        if (!ran) return EMULATED_DEADLOCK;
    }
}

static sigjmp_buf emulated_escape;
static void emulated_fault(int signal) { siglongjmp(emulated_escape, signal); }

static void **emulated_arguments;
template <class... A, size_t... I>
inline void emulated_call(void (*kernel)(A...), std::index_sequence<I...>) {
    kernel(*static_cast<A *>(emulated_arguments[I])...);
}
template <class... A> inline void emulated_call(void (*kernel)(A...)) {
    emulated_call(kernel, std::index_sequence_for<A...>());
}

inline int emulated_launch(void (*body)(), const unsigned *grid, const unsigned *block, void **arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const unsigned threads = block[0] * block[1] * block[2] * emulated_cluster_size;
    emulated_arguments = arguments;
    emulated.body = body;
    emulated.fibres.resize(threads);
    emulated.stacks = static_cast<char *>(malloc(threads * EMULATED_STACK));
    static char alternate[1 << 16];
    if (!emulated.stacks) return EMULATED_NO_MEMORY;
    stack_t stack = {}, old_stack;
    stack.ss_sp = alternate, stack.ss_size = sizeof alternate;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {}, old[3];
    const int signals[3] = {SIGSEGV, SIGILL, SIGBUS};
    action.sa_handler = emulated_fault;
    action.sa_flags = SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old[i]);
    volatile int status = EMULATED_OK;
    if (const int signal = sigsetjmp(emulated_escape, 1)) {
        const bool early = signal == SIGSEGV && !emulated_previous_over && !emulated_pages.empty();
        status = early ? EMULATED_EARLY : EMULATED_FAULT;
    } else {
        for (unsigned z = 0; z < grid[2] && !status; z++)
            for (unsigned y = 0; y < grid[1] && !status; y++)
                for (unsigned x = 0; x < grid[0] && !status; x += emulated_cluster_size)
                    status = emulated_cluster({x, y, z});
    }
    for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    emulated_previous(true);
    emulated_pages.clear();
    free(emulated.stacks);
    return status;
}

// The entry that the test calls; after the kernel's source.
#define EMULATED_KERNEL(name)                                                                                \
    static void emulated_body_##name() { emulated_call(name); }                                              \
    extern "C" int emulated_run(const unsigned *grid, const unsigned *block, void **arguments) {             \
        return emulated_launch(emulated_body_##name, grid, block, arguments);                                \
    }
