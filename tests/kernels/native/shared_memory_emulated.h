// A block's shared memory on the CPU, as shared_memory.h declares it; included behind cuda_emulated.h.
//
// Addresses are offsets into the block's array, which holds NaN when a block starts.
#pragma once

#ifndef CLUSTER
#define CLUSTER 1  // blocks that run together
#endif
static const bool emulated_has_shared_memory = (emulated_unit = {CLUSTER, true, false}, true);

unsigned char *emulated_memory();  // of this block
#define SHARED_MEMORY(name) unsigned char *name = emulated_memory()
unsigned shared_address(const void *pointer);

// Copies into it: see ampere.h.
void copy_or_zero(unsigned address, const void *from, bool exists);
inline void copy(unsigned address, const void *from) { copy_or_zero(address, from, true); }
void copies_commit();
void emulated_copies_wait(int pending);
template <int pending> inline void copies_wait() { emulated_copies_wait(pending); }
