// A block's shared memory on the CPU, as shared_memory.h declares it; included behind cuda_emulated.h.
//
// Addresses are offsets into the block's array, which holds NaN when a block starts. Also what the emulated tensor cores
// of all generations have in common.
#pragma once

#ifndef CLUSTER
#define CLUSTER 1  // blocks that run together
#endif
static const unsigned EMULATED_SHARED = 227 * 1024;
alignas(1024) static unsigned char emulated_shared[CLUSTER][EMULATED_SHARED];
#define SHARED_MEMORY(name) unsigned char *name = emulated_shared[emulated_rank()]

inline unsigned shared_address(const void *pointer) {
    return (unsigned)(static_cast<const unsigned char *>(pointer) - emulated_shared[emulated_rank()]);
}
inline unsigned char *emulated_in(unsigned rank, unsigned address, unsigned bytes) {
    if (rank >= CLUSTER || address + bytes > EMULATED_SHARED) __builtin_trap();
    return emulated_shared[rank] + address;
}
inline unsigned char *emulated_at(unsigned address, unsigned bytes) {
    return emulated_in(emulated_rank(), address, bytes);
}

// Work that a thread gives away in groups and waits for later: copies, products. It is done at once in one cluster, and as
// late as may be in the next one: so both what a kernel reads too early and what it gives back too early is found.
using EmulatedWork = std::vector<std::function<void()>>;
struct EmulatedGroups {
    EmulatedWork open;  // of no group yet
    std::vector<EmulatedWork> closed;
};
static std::vector<EmulatedGroups> emulated_groups;  // of each thread
static bool emulated_late;

inline void emulated_issue(std::function<void()> work) {
    if (emulated_late)
        emulated_groups[emulated.current].open.push_back(std::move(work));
    else
        work();
}
inline void emulated_commit() {
    EmulatedGroups &mine = emulated_groups[emulated.current];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
}
// All but the `pending` newest groups are done.
inline void emulated_finish(size_t pending) {
    std::vector<EmulatedWork> &groups = emulated_groups[emulated.current].closed;
    for (; groups.size() > pending; groups.erase(groups.begin()))
        for (const auto &work : groups.front()) work();
}

static void emulated_start() {
    memset(emulated_shared, 0xff, sizeof emulated_shared);
    emulated_groups.assign(emulated.fibres.size(), {});
    emulated_late = !emulated_late;
}
static const bool emulated_starts = (emulated_start_of_block = emulated_start, emulated_cluster_size = CLUSTER, true);

// An element of an operand.
inline float emulated_number(unsigned short bits) {
    if (PRODUCT_TYPE[0] == 's') return (float)(signed char)bits;
    if (PRODUCT_TYPE[0] == 'e') return emulated_e4m3_to_float(bits);
    return PRODUCT_TYPE[0] == 'b' ? __uint_as_float((unsigned)bits << 16) : emulated_half_to_float(bits);
}

// Where in its group of four channels a kept value was: the first (i = 0) or second of a group, whose nibble is one of
// eight in a metadata word. The places must ascend.
inline int emulated_place(unsigned word, int nibble_at, int i) {
    const unsigned nibble = word >> (4 * nibble_at) & 15;
    if ((nibble & 3) >= nibble >> 2) __builtin_trap();
    return i ? nibble >> 2 : nibble & 3;
}
