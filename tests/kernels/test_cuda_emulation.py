"""The emulation itself finds the faults that it is there for."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
from cuda_emulation import compiled, run

from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import Operand, pointwise
from tamis.kernels.cuda.specification import Argument

X = np.ones(4096, np.float32)
COPY = pointwise([], [Operand(X.shape, DType.FLOAT32, False, Argument("in", 0))], X.shape, DType.FLOAT32, False)
THREE = ctypes.c_uint * 3


def test_accesses_outside():
    run(COPY, [X], [], [(X.shape, X.dtype)])
    arguments = tuple(dataclasses.replace(a, value=5120) if a.kind == "int" else a for a in COPY.arguments)
    with pytest.raises(AssertionError, match="outside of the tensors"):
        run(dataclasses.replace(COPY, arguments=arguments, grid=(5, 1, 1)), [X], [], [(X.shape, X.dtype)])


def launch(body: str, threads: int, *arguments: ctypes._SimpleCData) -> int:
    library = compiled(f'extern "C" void probe{body}\nEMULATED_KERNEL(probe)\n')
    packed = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    return library.emulated_run(THREE(1, 1, 1), THREE(threads, 1, 1), packed)


def test_misaligned_vectors():
    body = "(char *p) { float v[4] = {}; store<4>((float *)(p + 4), v); }"
    memory = ctypes.create_string_buffer(64)
    start = -(-ctypes.addressof(memory) // 16) * 16
    include = '#include "element.h"\n'
    library = compiled(f'{include}extern "C" void probe{body}\nEMULATED_KERNEL(probe)\n')
    for address, status in ((start + 12, 0), (start, 2)):
        packed = (ctypes.c_void_p * 1)(ctypes.addressof(value := ctypes.c_void_p(address)))
        assert library.emulated_run(THREE(1, 1, 1), THREE(1, 1, 1), packed) == status, value


def test_threads_that_do_not_meet():
    assert launch("() { __syncthreads(); }", 64) == 0
    assert launch("() { if (threadIdx.x == 3) return; __syncthreads(); }", 64) == 1
    assert launch("() { if (threadIdx.x != 3) __shfl_xor_sync(~0u, 1.0f, 1); }", 32) == 1
