// Threads as fibres, and launches: see cuda_emulated.h.
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "emulation.h"

EmulatedIndex gridDim, blockDim, blockIdx, threadIdx;
Emulated emulated;
void **emulated_arguments;

float emulated_halves[1 << 16];
static const bool emulated_halves_known = [] {
    for (unsigned bits = 0; bits < 1 << 16; bits++)
        emulated_halves[bits] = (float)emulated_bits<_Float16>((unsigned short)bits);
    return true;
}();
unsigned short emulated_float_to_half(float x) { return emulated_bits<unsigned short>((_Float16)x); }

enum {
    EMULATED_OK = 0,
    EMULATED_DEADLOCK = 1,
    EMULATED_FAULT = 2,
    EMULATED_NO_MEMORY = 3,
    EMULATED_EARLY = 4,
    EMULATED_NEVER_WAITED = 5
};
static const size_t EMULATED_STACK = 1 << 16;

// --- where threads wait ---

// Contexts only begin a fibre: switching between them asks the kernel for the signal mask, twice.
static void emulated_enter(EmulatedFibre &fibre) {
    if (_setjmp(emulated.scheduler)) return;
    if (fibre.begun) _longjmp(fibre.here, 1);
    fibre.begun = true;
    setcontext(&fibre.context);
}
void emulated_wait(decltype(EmulatedFibre::state) state) {
    EmulatedFibre &self = emulated.fibres[emulated.current];
    self.state = state;
    if (!_setjmp(self.here)) _longjmp(emulated.scheduler, 1);
}
static void emulated_fibre() {
    emulated.body();
    emulated.fibres[emulated.current].state = EmulatedFibre::DONE;
    _longjmp(emulated.scheduler, 1);
}

void __syncthreads() { emulated_wait(EmulatedFibre::AT_BARRIER); }

unsigned long long emulated_from_lane(unsigned long long value, unsigned lane) {
    const unsigned self = emulated.current;
    emulated.fibres[self].shuffled = value;
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has given its value
    const unsigned long long other = emulated.fibres[(self & ~31u) | lane].shuffled;
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has read
    return other;
}
float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(emulated_from_lane(__float_as_uint(value), emulated_lane() ^ (unsigned)mask));
}
unsigned __shfl_sync(unsigned, unsigned value, int lane) { return (unsigned)emulated_from_lane(value, (unsigned)lane); }

void emulated_meet(int number, int threads) {
    EmulatedFibre &self = emulated.fibres[emulated.current];
    self.meeting = number, self.expected = threads;
    emulated_wait(EmulatedFibre::AT_MEETING);
}

void emulated_wait_until(std::function<bool()> condition) {
    if (condition()) return;
    emulated.fibres[emulated.current].until = std::move(condition);
    emulated_wait(EmulatedFibre::UNTIL);
}

// --- the kernel before this one ---

// It still uses the memory that is told by emulated_close: whole pages, that no one may touch. For each cluster anew it
// finishes as late as may be: when no thread has anything to do but to wait for it.
struct EmulatedPages {
    void *start;
    size_t bytes;
};
static std::vector<EmulatedPages> emulated_pages;
static bool emulated_previous_over;
static void emulated_previous(bool over) {
    for (const EmulatedPages &pages : emulated_pages)
        mprotect(pages.start, pages.bytes, over ? PROT_READ | PROT_WRITE : PROT_NONE);
    emulated_previous_over = over;
}
void emulated_previous_finished() {
    if (!emulated_previous_over) emulated_wait(EmulatedFibre::FOR_PREVIOUS);
}
extern "C" void emulated_close(void *start, size_t bytes) { emulated_pages.push_back({start, bytes}); }

// --- who runs ---

// Makes the fibres [from, to) ready again when all of them wait in `state`; at a cluster's barrier those that are done
// count as there.
static bool emulated_release(unsigned from, unsigned to, decltype(EmulatedFibre::state) state) {
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
static bool emulated_go_on(unsigned from, unsigned to) {
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
static bool emulated_run(unsigned from, unsigned to) {
    bool ran = false;
    // Backwards: a kernel that counts on the lowest thread running first must not pass.
    for (unsigned i = to; i-- > from;) {
        EmulatedFibre &fibre = emulated.fibres[i];
        if (fibre.state != EmulatedFibre::READY) continue;
        emulated.current = i;
        threadIdx = fibre.index, blockIdx = fibre.block;
        emulated_enter(fibre);
        ran = true;
    }
    return ran;
}

// Runs the blocks from `first` on that make up a cluster, which are neighbours along x.
static int emulated_cluster(EmulatedIndex first) {
    emulated_previous(false);
    const unsigned size = blockDim.x * blockDim.y * blockDim.z, threads = size * emulated.cluster;
    ucontext_t start;
    getcontext(&start);
    for (unsigned i = 0; i < threads; i++) {
        EmulatedFibre &fibre = emulated.fibres[i];
        const unsigned own = i % size;
        fibre.index = {own % blockDim.x, own / blockDim.x % blockDim.y, own / blockDim.x / blockDim.y};
        fibre.block = {first.x + i / size, first.y, first.z};
        fibre.state = EmulatedFibre::READY, fibre.begun = false;
        fibre.context = start;
        fibre.context.uc_stack.ss_sp = emulated.stacks + i * EMULATED_STACK;
        fibre.context.uc_stack.ss_size = EMULATED_STACK;
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

// --- launches ---

static sigjmp_buf emulated_escape;
static void emulated_fault(int signal) { siglongjmp(emulated_escape, signal); }

int emulated_launch(EmulatedUnit &unit, void (*body)(), const unsigned *grid, const unsigned *block, void **arguments) {
    if (unit.cluster > EMULATED_MOST_BLOCKS) return EMULATED_NO_MEMORY;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const unsigned threads = block[0] * block[1] * block[2] * unit.cluster;
    emulated.cluster = unit.cluster;
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
                for (unsigned x = 0; x < grid[0] && !status; x += unit.cluster) {
                    if (unit.shared_memory) emulated_start(unit.late = !unit.late);
                    status = emulated_cluster({x, y, z});
                }
    }
    for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    emulated_previous(true);
    emulated_pages.clear();
    free(emulated.stacks);
    return status;
}

