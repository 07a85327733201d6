// Shared memory, and work that is waited for: see emulation.h.
#include "emulation.h"

alignas(1024) unsigned char emulated_shared[EMULATED_MOST_BLOCKS][EMULATED_SHARED];

unsigned char *emulated_memory() { return emulated_shared[emulated_rank()]; }
unsigned shared_address(const void *pointer) {
    return (unsigned)(static_cast<const unsigned char *>(pointer) - emulated_memory());
}

using EmulatedWork = std::vector<std::function<void()>>;
struct EmulatedGroups {
    EmulatedWork open;  // of no group yet
    std::vector<EmulatedWork> closed;
};
static std::vector<EmulatedGroups> emulated_groups;  // of each thread
static bool emulated_late;

void emulated_start(bool late) {
    memset(emulated_shared, 0xff, emulated.cluster * sizeof *emulated_shared);
    emulated_groups.assign(emulated.fibres.size(), {});
    emulated_late = late;
}
void emulated_issue(std::function<void()> work) {
    if (emulated_late)
        emulated_groups[emulated.current].open.push_back(std::move(work));
    else
        work();
}
void emulated_commit() {
    EmulatedGroups &mine = emulated_groups[emulated.current];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
}
void emulated_finish(int pending) {
    std::vector<EmulatedWork> &groups = emulated_groups[emulated.current].closed;
    // As late as may be: all others first do what they can, with what this thread has given back too early.
    if (emulated_late && groups.size() > (size_t)pending)
        emulated_wait_until([asked = false]() mutable { return std::exchange(asked, true); });
    for (; groups.size() > (size_t)pending; groups.erase(groups.begin()))
        for (const auto &work : groups.front()) work();
}

// --- copies ---

void copy_or_zero(unsigned address, const void *from, bool exists) {
    if (address % 16 || (uintptr_t)from % 16) __builtin_trap();
    emulated_issue([=] {
        if (exists)
            memcpy(emulated_at(address, 16), from, 16);
        else
            memset(emulated_at(address, 16), 0, 16);
    });
}
void copies_commit() { emulated_commit(); }
void emulated_copies_wait(int pending) { emulated_finish(pending); }
