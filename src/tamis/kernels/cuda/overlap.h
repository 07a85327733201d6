// Kernels that start while the kernel before them still runs: programmatic dependent launch, sm_90 and newer.
//
// Launches ask for it (tamis.devices.cuda.module). The blocks of the next kernel may then take the places that this one
// leaves free, make their barriers and load their weights, and wait there. Every kernel keeps two rules:
//   - A thread calls previous_finished() before it reads or writes memory that other kernels write or read: inputs,
//     residuals, results. Constants (weights, biases, tensor maps) it may read before: they were there before the first
//     launch.
//   - Some thread of every launch calls it, also where there is nothing to compute. A kernel then cannot end before the
//     one in front of it has, so whoever waits for a kernel waits for all in front of it. This is what makes it safe to
//     write where the last kernel but one still read, and to let a library's kernel, which waits for the end of the last
//     one only, follow.
// next_may_start() says when the next kernel's blocks may come: once all blocks have called it or ended, which is after
// all of them have begun, so those that come early never keep out the ones that they wait for. Its place does not
// matter for what is computed. It comes first in each kernel: how long the next one's preparation takes is not known.
//
// Where a launch did not ask for it, and on older GPUs, both do nothing. The emulation keeps inputs and outputs closed until
// all threads that can go on wait in previous_finished().
#pragma once

#include "element.h"

#ifdef TAMIS_EMULATED
TAMIS_DEVICE void previous_finished() { emulated_previous_finished(); }
TAMIS_DEVICE void next_may_start() {}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// What the kernels before wrote is seen behind this.
TAMIS_DEVICE void previous_finished() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
TAMIS_DEVICE void next_may_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
TAMIS_DEVICE void previous_finished() {}
TAMIS_DEVICE void next_may_start() {}
#endif
