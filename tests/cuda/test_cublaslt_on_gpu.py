"""cuBLASLt on the GPU: every rank of every choice against float64, odd shapes, replays of a captured graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from graph_capture import capture

from matrix_layers import GELU, GELU_TANH, RELU, Bound, add, conv, layer_and_arrays, linear, rounded, tolerance
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import MatMul, Op
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.cublaslt import CublasLt
from tamis.devices.cuda import cublaslt, cublaslt_library
from tamis.devices.cuda.info import cuda_info
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

PRECISIONS = (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16)

CASES: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
    ("plain", linear(bias=False), (64, 256), (128, 256)),
    ("one row", linear(RELU), (1, 1024), (1000, 1024)),
    ("one output", linear(), (33, 256), (1, 256)),
    ("odd everything", linear(RELU), (7, 479), (13, 479)),
    ("one by one by one", linear(), (1, 1), (1, 1)),
    ("gelu by the library", linear(GELU_TANH), (16, 768), (3072, 768)),
    ("exact gelu follows", linear(GELU), (16, 128), (64, 128)),
    ("residual relu", linear(add(3), RELU), (128, 256), (256, 256)),
    ("residual, no bias", linear(add(2), bias=False), (9, 64), (40, 64)),
    ("residual gelu", linear(add(3), GELU_TANH), (24, 64), (48, 64)),
    ("relu, then a residual", linear(RELU, add(3)), (24, 64), (48, 64)),
    ("input is the residual", linear(add(0)), (24, 64), (64, 64)),
    ("long k", linear(), (4, 16384), (8, 16384)),
    ("image", conv(RELU), (2, 64, 14, 14), (256, 64, 1, 1)),
    ("image, residual relu", conv(add(3), RELU), (1, 64, 7, 7), (128, 64, 1, 1)),
    ("batched", MatMul(), (2, 12, 50, 64), (2, 12, 64, 50)),
    ("batched, odd, relu", MatMul((RELU,)), (3, 5, 7), (3, 7, 9)),
    ("one right operand", MatMul(), (4, 6, 32), (32, 48)),
    ("one left operand, residual", MatMul((add(2),)), (6, 32), (3, 32, 16)),
)  # fmt: skip


def choices_of(layer: Layer, precision: DType) -> Iterator[Choice]:
    config = BuildConfig(device="cuda", precisions=(precision,))
    return (c for c in CublasLt().choices(layer, cuda_info(), config) if c.precision is precision)


def test_the_version_can_be_read() -> None:
    assert int(cublaslt_library.version().split(".")[0]) >= 12


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("name, op, x, w", CASES, ids=[case[0] for case in CASES])
def test_every_rank_against_float64(
    name: str, op: Op, x: tuple[int, ...], w: tuple[int, ...], precision: DType
) -> None:
    layer, arrays = layer_and_arrays(op, x, w)
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    exact = evaluate(op, [rounded(a, precision.storage) for a in arrays])[0]
    ran = 0
    for choice in choices_of(layer, precision):
        try:
            bound = Bound(CublasLt().lower(layer, choice), choice, layer, values, cublaslt.bind, "cuda")
        except DeviceError as error:
            assert "offers only" in str(error), error
            assert choice.parameters["rank"] > 0, f"{choice.key()}: {error}"
            continue
        bound.run()
        torch.cuda.synchronize()
        got = bound.result()
        error = float(np.abs(got - exact).max() / np.abs(exact).max())
        assert error <= tolerance(precision), f"{choice.key()}: error {error:.2e}"
        ran += 1
    assert ran


@pytest.mark.parametrize("precision", [DType.BFLOAT16, DType.FLOAT16], ids=str)
def test_the_tanh_form_of_an_exact_gelu_is_within_its_bound(precision: DType) -> None:
    """Products from -6 to 6, where the two forms differ most: by 4.8e-4, beside the rounding of the result."""
    layer, arrays = layer_and_arrays(linear(GELU), (64, 64), (64, 64))
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    values["x"] = values["x"] / 4
    exact = evaluate(layer.op, [rounded(values[n], precision.storage) for n in layer.node.inputs])[0]
    rounding = {DType.FLOAT16: 2**-11, DType.BFLOAT16: 2**-8}[precision] * np.abs(exact)
    ran, furthest = 0, 0.0
    for choice in choices_of(layer, precision):
        if choice.parameters.get("gelu") != "tanh":
            continue
        try:
            bound = Bound(CublasLt().lower(layer, choice), choice, layer, values, cublaslt.bind, "cuda")
        except DeviceError as error:
            assert "offers only" in str(error), error
            continue
        bound.run()
        error = np.abs(bound.result() - exact)
        assert (error <= 5.5e-4 + 1.5 * rounding).all(), f"{choice.key()}: {error.max():.2e}"
        ran, furthest = ran + 1, max(furthest, float(error.max()))
    assert ran and furthest > 1e-4, "it is the tanh form"


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_large_products_keep_their_sums_in_float32(precision: DType) -> None:
    """All inputs positive: sums grow to thousands, which 16-bit accumulators would lose."""
    layer, arrays = layer_and_arrays(linear(), (512, 8192), (512, 8192))
    values = {name: np.abs(a) for name, a in zip(layer.node.inputs, arrays, strict=True)}
    layer = type(layer)(layer.node, layer.types, {n: values[n] for n in layer.constants}, None)
    x, w, b = (torch.from_numpy(rounded(values[n], precision.storage)).cuda() for n in "xwb")
    exact = (x @ w.T + b).cpu().numpy()
    for choice in choices_of(layer, precision):
        try:
            bound = Bound(CublasLt().lower(layer, choice), choice, layer, values, cublaslt.bind, "cuda")
        except DeviceError:
            continue
        bound.run()
        error = float(np.abs(bound.result() - exact).max() / exact.max())
        assert error <= tolerance(precision), f"{choice.key()}: error {error:.2e}"


@pytest.mark.parametrize(
    "op, x, w", [(linear(add(3), RELU), (40, 256), (128, 256)), (MatMul(), (6, 20, 64), (6, 64, 20))]
)
def test_a_captured_graph_reads_what_its_inputs_hold_then(op: Op, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    layer, arrays = layer_and_arrays(op, x, w)
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    choice = next(choices_of(layer, DType.FLOAT16))
    bound = Bound(CublasLt().lower(layer, choice), choice, layer, values, cublaslt.bind, "cuda")
    graph = capture(bound.run)
    for round_ in range(3):
        values["x"] = np.random.default_rng(round_).standard_normal(x, dtype=np.float32)
        bound.give("x", values["x"])
        bound.poison()
        graph.replay()
        torch.cuda.synchronize()
        exact = evaluate(op, [rounded(values[n], DType.FLOAT16) for n in layer.node.inputs])[0]
        error = float(np.abs(bound.result() - exact).max() / np.abs(exact).max())
        assert error <= tolerance(DType.FLOAT16), f"replay {round_}: error {error:.2e}"
