"""A network and made-up measurements for tests of estimates, sensitivity and plans: nothing depends on a clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paper_gpu import made_up, make_up_measurements
from tamis.compiler.tactics.base import Choice, Layer, flops_of, moved_bytes_of
from tamis.compiler.what_if import WhatIf
from tamis.engine import Engine, Timing

INPUT = (4, 3, 16, 16)


def save_dense_cnn(path: Path, *, names: bool = True, nan: bool = False, width: int = 64) -> Path:
    """image [4,3,16,16] -> stem -> two 3x3 convolutions with a shortcut -> 1x1 -> pool -> two linear layers.

    All weights are dense. The stem has three input channels, which no 2:4 fits.
    """
    random = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "stem.weight": draw(width, 3, 3, 3),
        "first.weight": draw(width, width, 3, 3),
        "second.weight": draw(width, width, 3, 3),
        "wide.weight": draw(2 * width, width, 1, 1),
        "hidden.weight": draw(width, 2 * width),
        "scores.weight": draw(10, width),
    }
    if nan:
        weights["second.weight"][0, 0, 0, 0] = np.nan
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["s"], "stem", **same),
        helper.make_node("Relu", ["s"], ["s1"], "stem_relu"),
        helper.make_node("Conv", ["s1", "first.weight"], ["a"], "first", **same),
        helper.make_node("Relu", ["a"], ["a1"], "first_relu"),
        helper.make_node("Conv", ["a1", "second.weight"], ["b"], "second", **same),
        helper.make_node("Add", ["b", "s1"], ["b1"], "add"),
        helper.make_node("Relu", ["b1"], ["b2"], "second_relu"),
        helper.make_node("Conv", ["b2", "wide.weight"], ["c"], "wide"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "hidden.weight"], ["h"], "hidden", transB=1),
        helper.make_node("Relu", ["h"], ["h1"], "hidden_relu"),
        helper.make_node("Gemm", ["h1", "scores.weight"], ["scores"], "last", transB=1),
    ]
    if not names:
        for node in nodes:
            node.name = ""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, INPUT)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [INPUT[0], 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def make_up_times(monkeypatch: pytest.MonkeyPatch, whole_us: Mapping[bool, float] | None = None) -> list[Engine]:
    """Made-up times on the CPU for ``WhatIf``: every 2:4 candidate takes 0.6 of the time of its dense twin.

    ``whole_us``: what an engine takes that runs nothing 2:4 (False), or something (True); 100 and 80 if not given.
    Returns the engines that are timed against the dense one.
    """
    whole = {False: 100.0, True: 80.0} if whole_us is None else whole_us
    timed: list[Engine] = []
    make_up_measurements(monkeypatch)

    def samples(self: WhatIf, engines: dict[str, Engine]) -> dict[str, list[float]]:
        timed.append(engines["sparse"])
        return {
            side: [whole[any(step.sparsity == "2:4" for step in engine.plan.steps)] + turn for turn in range(5)]
            for side, engine in engines.items()
        }

    def duel(layer: Layer, first: Choice, second: Choice, track: object) -> tuple[Timing, Timing]:
        one, two = (made_up(flops_of(layer), moved_bytes_of(layer, choice), choice) for choice in (first, second))
        return one, two

    monkeypatch.setattr(WhatIf, "_samples", samples)
    monkeypatch.setattr("tamis.compiler.estimate.duel", duel)
    return timed
