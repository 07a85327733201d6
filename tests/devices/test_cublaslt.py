"""cuBLASLt without a GPU: the declarations against NVIDIA's headers, and the arithmetic with a library of NumPy."""

from __future__ import annotations

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cublaslt import FakeCublasLt
from nvidia_header import constants_of, find_headers, kind_of, prototypes_of

from matrix_layers import (
    CLIP,
    GELU,
    GELU_TANH,
    H200,
    RELU,
    SILU,
    Bound,
    add,
    conv,
    layer_and_arrays,
    linear,
    rounded,
    tolerance,
)
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import MatMul, Op
from tamis.compiler.tactics.base import Choice, Layer, Lowered
from tamis.compiler.tactics.cublaslt import CublasLt
from tamis.devices.base import BoundShape
from tamis.devices.cuda import cublaslt
from tamis.devices.cuda import cublaslt_library as lt
from tamis.devices.cuda.workspace import Workspace
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

PRECISIONS = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)
PREFIXES = {
    lt.DataType: "CUDA_", lt.ComputeType: "CUBLAS_COMPUTE_", lt.Operation: "CUBLAS_OP_",
    lt.MatmulAttribute: "CUBLASLT_MATMUL_DESC_", lt.LayoutAttribute: "CUBLASLT_MATRIX_LAYOUT_",
    lt.PreferenceAttribute: "CUBLASLT_MATMUL_PREF_", lt.ReductionScheme: "CUBLASLT_REDUCTION_SCHEME_",
    lt.Epilogue: "CUBLASLT_EPILOGUE_",
}  # fmt: skip

CASES: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
    ("plain", linear(bias=False), (5, 24), (40, 24)),
    ("one row, odd sizes", linear(), (1, 13), (7, 13)),
    ("bias relu", linear(RELU), (3, 5, 32), (24, 32)),
    ("gelu by the library", linear(GELU_TANH), (6, 16), (8, 16)),
    ("exact gelu follows", linear(GELU), (6, 16), (8, 16)),
    ("residual relu", linear(add(3), RELU), (4, 16), (8, 16)),
    ("residual gelu, no bias", linear(add(2), GELU_TANH, bias=False), (4, 16), (8, 16)),
    ("relu, then a residual", linear(RELU, add(3)), (4, 16), (8, 16)),
    ("residual silu", linear(add(3), SILU), (4, 16), (8, 16)),
    ("residual and output alike", linear(add(0)), (4, 16), (16, 16)),
    ("image", conv(RELU), (2, 16, 5, 3), (24, 16, 1, 1)),
    ("image with residual and clip", conv(add(3), RELU, CLIP), (2, 16, 4, 4), (8, 16, 1, 1)),
    ("one pixel", conv(bias=False), (1, 8, 1, 1), (8, 8, 1, 1)),
    ("matrices", MatMul(), (6, 10), (10, 14)),
    ("batched", MatMul((RELU,)), (2, 3, 6, 10), (2, 3, 10, 14)),
    ("one right operand", MatMul(), (4, 6, 10), (10, 14)),
    ("one left operand", MatMul((add(2),)), (6, 10), (3, 10, 14)),
    ("attention scores", MatMul((add(2), GELU_TANH)), (2, 2, 5, 4), (2, 2, 4, 5)),
)  # fmt: skip


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    fake = FakeCublasLt(8)
    context = cublaslt.Context(fake, ctypes.c_void_p(1))
    monkeypatch.setattr(cublaslt, "context", lambda index: context)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77 + index))
    return fake


def result_of(lowered: Lowered, choice: Choice, layer: Layer, values: dict[str, np.ndarray]) -> np.ndarray:
    bound = Bound(lowered, choice, layer, values, cublaslt.bind)
    bound.run()
    return bound.result()


@pytest.mark.usefixtures("no_cuda_compiler")
@pytest.mark.parametrize("name, op, x, w", CASES, ids=[case[0] for case in CASES])
def test_every_choice_computes_the_layer(
    library: FakeCublasLt, name: str, op: Op, x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    layer, arrays = layer_and_arrays(op, x, w)
    tactic, config = CublasLt(), BuildConfig(device="cuda", precisions=PRECISIONS)
    assert tactic.refuses(layer, H200, config) is None
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    choices = list(tactic.choices(layer, H200, config))
    assert {c.precision for c in choices} == set(PRECISIONS)
    for choice in choices:
        storage = choice.precision.storage
        expected = evaluate(op, [rounded(a, storage) for a in arrays])[0]
        lowered = tactic.lower(layer, choice)
        got = result_of(lowered, choice, layer, values)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance(storage) * scale, err_msg=str(choice))
        assert library.used[-1] == 100 + choice.parameters["rank"]
        assert library.streams[-1] == 77
    gc.collect()
    assert library.alive == 0, "descriptors are freed with their step"


def test_16_bit_inputs_may_give_float32(library: FakeCublasLt) -> None:
    layer, arrays = layer_and_arrays(linear(RELU), (4, 64), (8, 64))
    config = BuildConfig(device="cuda", precisions=(DType.FLOAT16,))
    wide = [
        c
        for c in CublasLt().choices(layer, H200, config)
        if c.precision is DType.FLOAT16 and c.outputs[0].dtype is DType.FLOAT32
    ]
    assert wide
    lowered = CublasLt().lower(layer, wide[0])
    assert lowered.constants["layer.weight"].dtype == np.float16
    assert lowered.constants["layer.bias"].dtype == np.float32
    got = result_of(lowered, wide[0], layer, dict(zip("xwb", arrays, strict=True)))
    x, w, b = arrays
    expected = np.maximum(rounded(x, DType.FLOAT16) @ rounded(w, DType.FLOAT16).T + b, 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_rank_that_does_not_exist_is_an_error(library: FakeCublasLt) -> None:
    workspace = Workspace(torch.device("cpu"))
    step, constants, x, y = _plain_step(rank=8)
    with pytest.raises(DeviceError, match=r"layer 'fc': rank 8: cuBLASLt offers only 8 algorithms"):
        cublaslt.bind(step, constants, [x], [y], workspace)
    gc.collect()
    assert library.alive == 0
    assert workspace.reserve(0).numel() == 0


@pytest.mark.usefixtures("library")
def test_results_need_memory_and_kernels_a_name() -> None:
    workspace = Workspace(torch.device("cpu"))
    step, constants, x, y = _plain_step(rank=0)
    with pytest.raises(DeviceError, match="given memory"):
        cublaslt.bind(step, constants, [x], [BoundShape(1, y.shape, y.format)], workspace)
    odd = Step("fc", "cublaslt.other", ("x",), ("y",), ("w",), step.attributes)
    with pytest.raises(DeviceError, match=r"cublaslt\.other is unknown"):
        cublaslt.bind(odd, constants, [x], [y], workspace)


def test_steps_take_the_scratch_memory_that_their_algorithms_need(library: FakeCublasLt) -> None:
    workspace, slots = Workspace(torch.device("cpu")), [torch.ones(2, 16), torch.zeros(2, 8)]
    held = []
    for rank in (0, 2, 1, 7, 5):
        step, constants, x, y = _plain_step(rank)
        runner = cublaslt.bind(step, constants, [x], [y], workspace)
        held.append(workspace.reserve(0))
        runner(slots)
    assert [block.numel() for block in held] == [0, 2000, 2000, 7000, 7000]
    assert library.workspaces == [
        (block.data_ptr(), size) for block, size in zip(held, (0, 2000, 1000, 7000, 5000), strict=True)
    ]


def test_a_step_keeps_the_scratch_memory_that_it_was_given(library: FakeCublasLt) -> None:
    workspace = Workspace(torch.device("cpu"))
    step, constants, x, y = _plain_step(rank=2)
    runner = cublaslt.bind(step, constants, [x], [y], workspace)
    block = weakref.ref(workspace.reserve(0))
    workspace.reserve(1 << 20)
    gc.collect()
    assert block() is not None
    runner([torch.ones(2, 16), torch.zeros(2, 8)])
    assert library.workspaces == [(block().data_ptr(), 2000)]
    del runner
    gc.collect()
    assert block() is None


def test_algorithms_that_need_too_much_scratch_memory_are_not_offered(library: FakeCublasLt) -> None:
    library.scratch = 8 << 20
    step, constants, x, y = _plain_step(rank=5)
    with pytest.raises(DeviceError, match="rank 5: cuBLASLt offers only 5 algorithms"):
        cublaslt.bind(step, constants, [x], [y], Workspace(torch.device("cpu")))


def _plain_step(rank: int) -> tuple[Step, dict[str, torch.Tensor], BoundShape, BoundShape]:
    attributes = {"rows": 2, "n": 8, "k": 16, "activation": "none", "residual": False, "rank": rank}
    step = Step("fc", "cublaslt.matmul", ("x",), ("y",), ("w",), attributes)
    return step, {"w": torch.ones(8, 16)}, BoundShape(0, (2, 16), Format()), BoundShape(1, (2, 8), Format(), True)


@pytest.mark.parametrize("enumeration", PREFIXES, ids=lambda e: e.__name__)
def test_constants_are_those_of_the_headers(enumeration: type) -> None:
    headers = find_headers("cublasLt.h") and [
        path for name in ("cublasLt.h", "cublas_api.h", "library_types.h") for path in find_headers(name)
    ]
    if not headers:
        pytest.skip("NVIDIA's headers are not installed")
    known: dict[str, int] = {}
    for header in headers:
        known |= constants_of(header)
    for member in enumeration:
        name = member.name.removeprefix("C_") if enumeration is lt.ComputeType else member.name
        if PREFIXES[enumeration] + name not in known and enumeration is lt.DataType:
            pytest.skip("library_types.h is not installed")
        assert known[PREFIXES[enumeration] + name] == member.value, member


def test_signatures_are_those_of_the_header() -> None:
    headers = find_headers("cublasLt.h")
    if not headers:
        pytest.skip("NVIDIA's headers are not installed")
    sizes = {"pointer": {ctypes.c_void_p}, "64-bit": {ctypes.c_size_t, ctypes.c_int64}, "32-bit": {ctypes.c_int}}
    for header in headers:
        prototypes = prototypes_of(header)
        for name, _, declared in lt.SIGNATURES:
            arguments = prototypes[name]
            assert len(arguments) == len(declared), name
            for text, kind in zip(arguments, declared, strict=True):
                assert kind in sizes[kind_of(text)] or kind is ctypes.c_uint64, (name, text, kind)


def test_structures_have_the_size_of_the_header() -> None:
    # 64 + 8 + 4 + 4 + 16: cublasLtMatmulHeuristicResult_t, in which the workspace lies behind the algorithm.
    assert ctypes.sizeof(lt.Algorithm) == 64
    assert ctypes.sizeof(lt.HeuristicResult) == 96
    assert lt.HeuristicResult.workspace_bytes.offset == 64
    assert lt.HeuristicResult.state.offset == 72


def _real() -> object:
    try:
        return lt.load()
    except MissingLibrary:
        pytest.skip("cuBLASLt is not installed")


def test_the_library_tells_its_version() -> None:
    _real()
    major, minor, patch = (int(part) for part in lt.version().split("."))
    assert major in (12, 13)
    assert 0 <= minor < 100 and 0 <= patch < 100


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu_tanh"])
def test_the_library_takes_the_descriptors(precision: DType, activation: str) -> None:
    library, storage = _real(), precision.storage
    product = cublaslt.Product(8, 4, 16, precision, storage, storage, activation, True, 0, True, 3, 128, 64)
    descriptors = cublaslt._Descriptors(library, "layer")
    bias = torch.zeros(8, dtype=torch.float16)
    handles = [descriptors.operation(product, bias), *descriptors.matrices(product), descriptors.preference(product)]
    assert all(handle.value for handle in handles)
