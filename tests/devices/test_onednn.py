"""oneDNN's convolutions and linear layers against the NumPy meaning; results lie in the order that was declared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear, Op, Pointwise
from tamis.compiler.tactics.base import layer_of
from tamis.compiler.tactics.onednn import OneDnn
from tamis.compiler.tuner.accuracy import compare, objection
from tamis.compiler.tuner.trial import bind_trial
from tamis.devices.cpu.device import CpuDevice
from tamis.devices.tensors import memory_format
from tamis.formats.dtype import DType

RELU, SILU = Pointwise("relu"), Pointwise("silu")
CLIP, LEAKY = Pointwise("clip", (-0.5, 0.75)), Pointwise("leaky_relu", (0.1,))


def conv(*epilogue: Pointwise, stride: int = 1, pad: int = 1, groups: int = 1, bias: bool = True) -> Conv:
    return Conv((stride, stride), (pad,) * 4, (1, 1), groups, bias, tuple(epilogue))


def residual(index: int) -> Pointwise:
    return Pointwise("add", operand=index)


CASES: tuple[tuple[str, Op, tuple[int, ...], tuple[int, ...]], ...] = (
    ("3x3", conv(RELU), (2, 8, 9, 7), (12, 8, 3, 3)),
    ("1x1 on 1x1", conv(pad=0), (1, 64, 1, 1), (32, 64, 1, 1)),
    ("1x1 on one channel", conv(pad=0), (2, 1, 5, 5), (4, 1, 1, 1)),
    ("7x7 map, batch 1", conv(SILU), (1, 128, 7, 7), (64, 128, 3, 3)),
    ("strided, no bias", conv(CLIP, stride=2, bias=False), (1, 3, 33, 31), (16, 3, 3, 3)),
    ("depthwise", conv(LEAKY, groups=16), (1, 16, 8, 8), (16, 1, 3, 3)),
    ("grouped", conv(groups=4), (1, 16, 8, 8), (32, 4, 3, 3)),
    ("residual relu", conv(residual(3), RELU), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("residual silu relu", conv(residual(3), SILU, RELU), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("silu residual", conv(SILU, residual(3)), (2, 8, 6, 6), (8, 8, 3, 3)),
    ("transposed", ConvTranspose((2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1, True, (RELU,)), (2, 8, 5, 5), (8, 6, 3, 3)),
    ("linear", Linear(True, (Pointwise("gelu"),)), (3, 5, 32), (24, 32)),
    ("linear residual relu", Linear(True, (residual(3), RELU)), (7, 32), (24, 32)),
    ("linear, one row", Linear(True, ()), (1, 33), (1, 33)),
)


def graph_of(op: Op, x: tuple[int, ...], w: tuple[int, ...]) -> tuple[Graph, list[np.ndarray]]:
    generator = np.random.default_rng(3)
    outputs = w[1] * op.groups if isinstance(op, ConvTranspose) else w[0]
    arrays = {
        "x": generator.standard_normal(x),
        "w": generator.standard_normal(w),
        "b": generator.standard_normal(outputs),
    }
    names = ["x", "w"] + (["b"] if op.bias else [])  # type: ignore[union-attr]
    types = {n: TensorType(arrays[n].shape) for n in names}
    if any(step.operand is not None for step in op.epilogue):  # type: ignore[union-attr]
        y = infer(type(op)(**{**vars(op), "epilogue": ()}), [types[n] for n in names])[0]
        arrays["r"] = generator.standard_normal(y.shape)
        names.append("r")
        types["r"] = y
    types["y"] = infer(op, [types[n] for n in names])[0]
    constants = {n: arrays[n].astype(np.float32) for n in ("w", "b") if n in names}
    inputs = tuple(n for n in names if n not in constants)
    graph = Graph("g", inputs, ("y",), (Node("layer", op, tuple(names), ("y",)),), types, constants)
    return graph, [arrays[n].astype(np.float32) for n in names]


@pytest.mark.parametrize("name, op, x, w", CASES, ids=[case[0] for case in CASES])
def test_against_the_meaning_in_every_format(name: str, op: Op, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    graph, arrays = graph_of(op, x, w)
    layer, device, tactic = layer_of(graph, graph.nodes[0]), CpuDevice(2), OneDnn()
    config = BuildConfig(precisions=(DType.FLOAT32, DType.BFLOAT16))
    assert tactic.refuses(layer, device.info(), config) is None
    expected = evaluate(op, [array.astype(np.float64) for array in arrays])[0]
    values = dict(zip(graph.nodes[0].inputs, arrays, strict=True))
    for choice in tactic.choices(layer, device.info(), config):
        inputs = {}
        for value, format in zip(layer.values, choice.inputs, strict=True):
            tensor = device.empty(values[value].shape, format)
            tensor.copy_(torch.from_numpy(values[value]))
            inputs[value] = (tensor, format)
        outputs = {"y": (graph.types["y"], choice.outputs[0])}
        with torch.inference_mode():
            trial = bind_trial(device, tactic.lower(layer, choice), inputs, outputs)
            trial.run()
        result = trial.slots[trial.outputs[0]]
        assert result.is_contiguous(memory_format=memory_format(result.dim(), choice.outputs[0]))
        accuracy = compare(device.download(trial.slots[trial.outputs[0]]), expected)
        assert objection(accuracy, choice.precision, cosine=0.999, relative=1e-5) is None, choice
