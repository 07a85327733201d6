"""The tactic of our CUDA kernels: what it refuses, what it offers, and what its steps carry. None of it needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cuda_layers import CASES, Case, program, step
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Concat, LayerNorm, Linear, Op, Pointwise, Pool, Reduce, Softmax, Split
from tamis.compiler.tactics import cuda_kernels
from tamis.compiler.tactics.base import Layer
from tamis.compiler.tactics.cuda_kernels import TamisCuda
from tamis.compiler.tactics.cuda_steps import program_step
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import NO_COMPILER, compiler_name

H200 = DeviceInfo("cuda", "NVIDIA H200", "sm_90", 132, ("tf32", "bf16", "fp8"), {"torch": "2.11.0"})
CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16))
TACTIC = TamisCuda()
needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=NO_COMPILER)


@pytest.fixture(autouse=True)
def some_compiler(monkeypatch, request):
    if not any(mark.name == "skipif" for mark in request.node.iter_markers()):
        monkeypatch.setattr(cuda_kernels, "compiler_name", lambda: "nvrtc 13.0")


def layer(op: Op, *shapes: tuple[int, ...], constants: tuple[int, ...] = (), outputs: int = 1) -> Layer:
    return Case("case", op, shapes, constants, outputs).layer()[0]


RELU = layer(program(step("relu")), (2, 8, 4, 4))
REFUSED = [
    ("Linear", layer(Linear(), (4, 8), (6, 8), constants=(1,))),
    ("boolean", layer(program(step("isnan")), (4, 8))),
    ("boolean", layer(program(Pointwise("greater", operand=1)), (4, 8), (4, 8))),
    ("9 operands", layer(program(*(step("add", i) for i in range(1, 9))), *[(4,)] * 9)),
    ("not the last", layer(Softmax(1), (2, 3, 4))),
    ("not the last", layer(Softmax(-2), (2, 3, 4))),
    ("run time", layer(LayerNorm(-1, 1e-5), (2, 8), (8,), (8,), constants=(1,))),
    ("repeated", layer(LayerNorm(-1, 1e-5, False, False, True), (2, 8), (2, 8), constants=(1,))),
    ("1-D pooling", layer(Pool("max", (3,), (1,), (0, 0), (1,)), (2, 3, 9))),
    ("pixels", layer(Reduce("mean", (1,), True), (2, 3, 4, 4))),
    ("pixels", layer(Reduce("mean", (1, 2), True), (2, 3, 4))),
    ("reduction prod", layer(Reduce("prod", (2, 3), True), (2, 3, 4, 4))),
    ("1 pieces", layer(Concat(1), (2, 3))),
    ("9 pieces", layer(Split(0, (1,) * 9), (9, 2), outputs=9)),
    ("constants", layer(Concat(0), (2, 3), (1, 3), constants=(0, 1))),
    ("int32", replace(RELU, types={"v0": TensorType((2, 8, 4, 4), DType.INT32), "y0": TensorType((2, 8, 4, 4))})),
    ("elements", replace(RELU, types=dict.fromkeys(("v0", "y0"), TensorType((2**16, 2**15))))),
    ("0 elements", replace(RELU, types=dict.fromkeys(("v0", "y0"), TensorType((4, 0))))),
]


@pytest.mark.parametrize(("words", "refused"), REFUSED)
def test_refusals(words, refused):
    assert words in (TACTIC.refuses(refused, H200, CONFIG) or "")


def test_devices_that_it_refuses(monkeypatch):
    assert TACTIC.refuses(RELU, H200, CONFIG) is None
    assert TACTIC.refuses(RELU, replace(H200, kind="cpu"), CONFIG) == "runs on CUDA devices only"
    assert "7.5 or newer" in (TACTIC.refuses(RELU, replace(H200, architecture="sm_70"), CONFIG) or "")
    assert TACTIC.refuses(RELU, replace(H200, architecture="sm_120"), CONFIG) is None
    monkeypatch.setattr(cuda_kernels, "compiler_name", lambda: None)
    assert TACTIC.refuses(RELU, H200, CONFIG) == NO_COMPILER


def test_choices():
    found = list(TACTIC.choices(RELU, H200, CONFIG))
    assert [(c.precision, c.inputs[0].layout) for c in found] == [
        (dtype, layout)
        for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
        for layout in ("row_major", "channels_last")
    ]
    assert {c.parameters["architecture"] for c in found} == {"sm_90"}
    turing = list(TACTIC.choices(RELU, replace(H200, architecture="sm_75"), CONFIG))
    assert {c.precision for c in turing} == {DType.FLOAT32, DType.FLOAT16}
    pooled = layer(Pool("max", (3, 3), (2, 2), (1,) * 4, (1, 1)), (2, 8, 9, 9))
    assert {c.inputs[0].layout for c in TACTIC.choices(pooled, H200, CONFIG)} == {"channels_last"}
    rows = layer(Softmax(-1), (2, 3, 4, 5))
    assert {c.inputs[0].layout for c in TACTIC.choices(rows, H200, CONFIG)} == {"row_major"}


@needs_compiler
@pytest.mark.parametrize("case", [CASES[1], CASES[11], CASES[16]], ids=lambda case: case.name)
def test_steps_carry_their_binary(case):
    built, _ = case.layer()
    choice = list(TACTIC.choices(built, H200, CONFIG))[-1]
    lowered = TACTIC.lower(built, choice)
    (made,) = lowered.steps
    binary = made.constants[0]
    family = made.kernel.removeprefix("cuda.")
    assert binary.startswith(f"kernel.{family}.")
    assert lowered.constants[binary].dtype == np.uint8
    assert lowered.constants[binary][:4].tobytes() == b"\x7fELF"
    assert set(lowered.constants) == set(made.constants)
    assert made.attributes["function"] == family
    assert made.attributes["compiler"] == compiler_name()
    assert json.loads(json.dumps(made.attributes)) == made.attributes
    assert made.moved_bytes > 0
    again = TACTIC.lower(built, choice)
    assert all((lowered.constants[name] == again.constants[name]).all() for name in again.constants)


@needs_compiler
def test_the_rest_of_an_epilogue():
    """A program behind another step's result, whose name the layer does not know."""
    built, _ = CASES[1].layer()
    choice = next(c for c in TACTIC.choices(built, H200, CONFIG) if c.outputs[0] == Format(DType.FLOAT16))
    made, constants = program_step(built, (step("add", 1), step("gelu")), "before", choice, "layer/epilogue")
    assert (made.name, made.inputs, made.outputs) == ("layer/epilogue", ("before", "v1"), ("y0",))
    assert list(constants) == list(made.constants)
    assert made.moved_bytes == 3 * 2 * 24 * 5 * 7 * 2
