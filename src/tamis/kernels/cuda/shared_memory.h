// Shared memory that a launch asks for, and addresses in it as instructions take them: 32 bits.
//
// Under the tests' emulation both come from shared_memory_emulated.h.
#pragma once

#include "element.h"

#ifndef TAMIS_EMULATED

#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

TAMIS_DEVICE unsigned shared_address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

#else
#include "shared_memory_emulated.h"
#endif
