"""cuSPARSELt on the GPU: every algorithm against float64, padded rows, replays of a captured graph."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_capture import capture

from matrix_layers import GELU_TANH, RELU, RELU6, Bound, add, conv, layer_and_arrays, linear, rounded, tolerance
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import Op
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.cusparselt import CusparseLt
from tamis.devices.cuda import cusparselt, cusparselt_library
from tamis.devices.cuda.info import cuda_info
from tamis.engine.plan import Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

PRECISIONS = (DType.FLOAT16, DType.BFLOAT16)
FORM = ("algorithm", "split_k", "split_k_mode")

CASES: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
    ("smallest", linear(bias=False), (8, 16), (16, 16)),
    ("plain", linear(bias=False), (64, 256), (128, 256)),
    ("bias relu", linear(RELU), (128, 512), (256, 512)),
    ("bias relu6", linear(RELU6), (128, 512), (256, 512)),
    ("one row, padded", linear(RELU), (1, 1024), (1008, 1024)),
    ("odd multiples of 16", linear(), (24, 208), (336, 208)),
    ("residual relu", linear(add(3), RELU), (128, 256), (256, 256)),
    ("residual, no bias", linear(add(2), bias=False), (16, 64), (48, 64)),
    ("residual relu, padded", linear(add(3), RELU), (13, 64), (48, 64)),
    ("relu, then a residual", linear(RELU, add(3)), (24, 64), (48, 64)),
    ("gelu follows", linear(GELU_TANH), (16, 64), (48, 64)),
    ("long k", linear(), (8, 16384), (16, 16384)),
    ("rows of 479", linear(RELU), (96, 479), (256, 479)),
    ("rows of 77, gelu follows", linear(GELU_TANH), (13, 77), (48, 77)),
    ("image", conv(RELU), (2, 64, 28, 28), (256, 64, 1, 1)),
    ("7x7 image, residual relu, padded", conv(add(3), RELU), (1, 512, 7, 7), (128, 512, 1, 1)),
)  # fmt: skip
# Of these, every algorithm.
ALL_ALGORITHMS = ("bias relu", "residual, no bias")


@pytest.fixture(autouse=True)
def _library() -> None:
    try:
        cusparselt_library.load()
    except MissingLibrary as error:
        pytest.skip(str(error))
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no sparse tensor cores")


def choices_of(layer: Layer, precision: DType, level: int = 2) -> Iterator[Choice]:
    """Making a plan takes a quarter of a second, so most cases do with the first algorithms."""
    config = BuildConfig(device="cuda", precisions=(precision,), optimization_level=level)
    return (c for c in CusparseLt().choices(layer, cuda_info(), config) if c.precision is precision)


def form_of(choice: Choice) -> tuple[int, int, int]:
    """What tells the choices of one layer and precision apart."""
    algorithm, split_k, mode = (choice.parameters[name] for name in FORM)
    return algorithm, split_k, mode


def in_form(step: Step, choice: Choice) -> Step:
    """The product in the form of another choice of its layer and precision; other steps as they are."""
    if step.kernel != "cusparselt.matmul":
        return step
    return replace(step, attributes={**step.attributes, **dict(zip(FORM, form_of(choice), strict=True))})


def told(left_out: Mapping[tuple[int, int, int], str]) -> list[str]:
    """A line for each cause, with the forms that did not run for it; an algorithm's own number makes no cause."""
    causes: dict[str, list[tuple[int, int, int]]] = {}
    for form, message in left_out.items():
        causes.setdefault(re.sub(r"(algorithm|CONFIG_ID =) \d+", r"\1 #", message), []).append(form)
    return [f"{cause}: {', '.join(map(str, forms))}" for cause, forms in causes.items()]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("name, op, x, w", CASES, ids=[case[0] for case in CASES])
def test_every_algorithm_against_float64(
    name: str, op: Op, x: tuple[int, ...], w: tuple[int, ...], precision: DType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lowered once: the forms share the weight, which takes longer to compress than to multiply."""
    layer, arrays = layer_and_arrays(op, x, w, sparse=True)
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    exact = evaluate(op, [rounded(a, precision) for a in arrays])[0]
    first, *others = choices_of(layer, precision, 5 if name in ALL_ALGORITHMS else 2)
    lowered = CusparseLt().lower(layer, first)
    bound, ran, left_out = Bound(lowered, first, layer, values, cusparselt.bind, "cuda"), 0, {}
    for choice in (first, *others):
        assert (choice.inputs, choice.outputs) == (first.inputs, first.outputs)
        try:
            bound.bind_again([in_form(step, choice) for step in lowered.steps])
            bound.run()
        except DeviceError as error:
            assert choice.parameters["algorithm"] > 0 or choice.parameters["split_k"] > 1, f"{choice.key()}: {error}"
            left_out[form_of(choice)] = str(error)
            continue
        torch.cuda.synchronize()
        error = float(np.abs(bound.result() - exact).max() / np.abs(exact).max())
        # Split sums may pass through memory in the output's type, once for each part.
        parts = choice.parameters["split_k"]
        assert error <= tolerance(precision) * parts, f"{choice.key()}: error {error:.2e}"
        ran += 1
    if left_out:
        with capsys.disabled():
            print(f"\n{name} {precision}: {ran} forms ran, {len(left_out)} did not", *told(left_out), sep="\n  ")
    assert ran


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_large_products_keep_their_sums_in_float32(precision: DType) -> None:
    layer, arrays = layer_and_arrays(linear(), (512, 8192), (512, 8192), sparse=True)
    values = {name: np.abs(a) for name, a in zip(layer.node.inputs, arrays, strict=True)}
    layer = type(layer)(layer.node, layer.types, {n: values[n] for n in layer.constants}, layer.note)
    x, w, b = (torch.from_numpy(rounded(values[n], precision)).cuda() for n in "xwb")
    exact = (x @ w.T + b).cpu().numpy()
    choice = next(choices_of(layer, precision))
    bound = Bound(CusparseLt().lower(layer, choice), choice, layer, values, cusparselt.bind, "cuda")
    bound.run()
    error = float(np.abs(bound.result() - exact).max() / exact.max())
    assert error <= tolerance(precision), f"error {error:.2e}"


@pytest.mark.parametrize("rows", [64, 13])
def test_a_captured_graph_reads_what_its_inputs_hold_then(rows: int) -> None:
    op = linear(add(3), RELU)
    layer, arrays = layer_and_arrays(op, (rows, 256), (128, 256), sparse=True)
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    choice = next(choices_of(layer, DType.FLOAT16))
    bound = Bound(CusparseLt().lower(layer, choice), choice, layer, values, cusparselt.bind, "cuda")
    graph = capture(bound.run)
    for round_ in range(3):
        values["x"] = np.random.default_rng(round_).standard_normal((rows, 256), dtype=np.float32)
        bound.give("x", values["x"])
        bound.poison()
        graph.replay()
        torch.cuda.synchronize()
        exact = evaluate(op, [rounded(values[n], DType.FLOAT16) for n in layer.node.inputs])[0]
        error = float(np.abs(bound.result() - exact).max() / np.abs(exact).max())
        assert error <= tolerance(DType.FLOAT16), f"replay {round_}: error {error:.2e}"


def test_a_step_gives_its_memory_back() -> None:
    layer, arrays = layer_and_arrays(linear(), (64, 2048), (4096, 2048), sparse=True)
    values = dict(zip(layer.node.inputs, arrays, strict=True))
    choice = next(choices_of(layer, DType.FLOAT16))
    lowered, held = CusparseLt().lower(layer, choice), []
    for _ in range(3):
        bound = Bound(lowered, choice, layer, values, cusparselt.bind, "cuda")
        bound.run()
        torch.cuda.synchronize()
        del bound
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[2] == held[0]
