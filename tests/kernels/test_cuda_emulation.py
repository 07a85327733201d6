"""The emulation itself finds the faults that it is there for."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
from cuda_emulation import Guarded, compiled, run

from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import Operand, pointwise
from tamis.kernels.cuda.specification import Argument
from tamis.kernels.cuda.unit import FOLDER, sources

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


def test_the_kernel_in_front_must_have_finished():
    """Results may be written once it has, by any thread that met one that waited."""
    include, memory = '#include "overlap.h"\n', Guarded(np.zeros(32, np.float32), True)
    for body, status in (
        ("previous_finished(); p[threadIdx.x] = 1.0f;", 0),
        ("if (threadIdx.x == 3) previous_finished(); __syncthreads(); p[threadIdx.x] = 1.0f;", 0),
        ("p[threadIdx.x] = 1.0f; previous_finished();", 4),
        ("if (threadIdx.x != 3) previous_finished(); p[threadIdx.x] = 1.0f;", 4),
        ("", 5),
    ):
        library = compiled(f'{include}extern "C" void probe(float *p) {{ {body} }}\nEMULATED_KERNEL(probe)\n')
        packed = (ctypes.c_void_p * 1)(ctypes.addressof(value := ctypes.c_void_p(memory.address)))
        library.emulated_close(*memory.pages)
        assert library.emulated_run(THREE(2, 1, 1), THREE(32, 1, 1), packed) == status, (body, value)
    assert (memory.read() == 1.0).all()


@pytest.mark.parametrize("source", sources())
def test_every_kernel_lets_the_next_one_come(source: str):
    """And begins with that; that it waits for the one before is what the emulation finds out."""
    text = (FOLDER / source).read_text()
    body = text[text.index("__global__") :]
    start = body.index("{\n") + 2
    assert body[start:].lstrip().startswith("next_may_start();")
    assert "previous_finished();" in body
