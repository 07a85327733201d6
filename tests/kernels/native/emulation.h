// What the parts of the emulation share; kernels do not see it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#include "cuda_emulated.h"

struct EmulatedFibre {
    ucontext_t context;  // where it begins
    jmp_buf here;        // where it goes on
    bool begun;
    EmulatedIndex index, block;
    enum { READY, AT_BARRIER, AT_CLUSTER, AT_SHUFFLE, AT_MEETING, UNTIL, FOR_PREVIOUS, DONE } state;
    unsigned long long shuffled;
    int meeting, expected;  // which barrier, of how many threads
    std::function<bool()> until;
};

struct Emulated {
    std::vector<EmulatedFibre> fibres;
    char *stacks;
    jmp_buf scheduler;
    unsigned current, cluster;
    void (*body)();
};
extern Emulated emulated;

void emulated_wait(decltype(EmulatedFibre::state) state);
void emulated_wait_until(std::function<bool()> condition);
// Waits for so many threads at the barrier of this number.
void emulated_meet(int number, int threads);

inline unsigned emulated_lane() { return emulated.current & 31; }
unsigned long long emulated_from_lane(unsigned long long value, unsigned lane);

// Which block of the cluster a fibre belongs to.
inline unsigned emulated_rank() { return emulated.current / (blockDim.x * blockDim.y * blockDim.z); }

// --- shared memory that a launch asks for: addresses are offsets into the block's ---

static const unsigned EMULATED_SHARED = 227 * 1024, EMULATED_MOST_BLOCKS = 16;
extern unsigned char emulated_shared[EMULATED_MOST_BLOCKS][EMULATED_SHARED];

inline unsigned char *emulated_in(unsigned rank, unsigned address, unsigned bytes) {
    if (rank >= emulated.cluster || address + bytes > EMULATED_SHARED) __builtin_trap();
    return emulated_shared[rank] + address;
}
inline unsigned char *emulated_at(unsigned address, unsigned bytes) {
    return emulated_in(emulated_rank(), address, bytes);
}
// A new cluster: memory holds NaN, nothing is under way.
void emulated_start(bool late);

// --- work that a thread gives away in groups and waits for later: copies, products ---
// It is done at once in one cluster, and as late as may be in the next one: so both what a kernel reads too early and
// what it gives back too early is found.

void emulated_issue(std::function<void()> work);
void emulated_commit();
// All but the `pending` newest groups are done.
void emulated_finish(int pending);

// --- operands ---

// A type is told by the first letter of its name: f16, bf16, s8, e4m3.
inline int emulated_size(char type) { return type == 's' || type == 'e' ? 1 : 2; }  // in bytes
inline float emulated_number(unsigned short bits, char type) {
    if (type == 's') return (float)(signed char)bits;
    if (type == 'e') return emulated_e4m3_to_float(bits);
    return type == 'b' ? __uint_as_float((unsigned)bits << 16) : emulated_half_to_float(bits);
}

// Where in its group of four channels a kept value was: the first (i = 0) or second of a group, whose nibble is one of
// eight in a metadata word. The places must ascend.
inline int emulated_place(unsigned word, int nibble_at, int i) {
    const unsigned nibble = word >> (4 * nibble_at) & 15;
    if ((nibble & 3) >= nibble >> 2) __builtin_trap();
    return i ? nibble >> 2 : nibble & 3;
}
