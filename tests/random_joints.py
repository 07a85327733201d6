"""Random networks around a Concat: pieces in place, copied, read twice, of odd lengths; rows padded behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Drawn:
    """A network of images, or of rows, that is drawn at random."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.images = bool(seed % 2)
        self.batch, self.inputs = int(self.random.integers(1, 4)), 8 * int(self.random.integers(1, 5))
        self.size = int(self.random.integers(4, 10))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def layer(self, source: str, inputs: int, outputs: int) -> str:
        """A convolution or a product, with a ReLU."""
        name = f"layer{len(self.nodes)}"
        shape = (outputs, inputs, 3, 3) if self.images else (inputs, outputs)
        self.weights[f"{name}.w"] = (self.random.standard_normal(shape) / inputs**0.5 / 2).astype(np.float32)
        kind, options = ("Conv", {"pads": [1] * 4}) if self.images else ("MatMul", {})
        self.nodes.append(helper.make_node(kind, [source, f"{name}.w"], [name], name, **options))
        self.nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
        return f"{name}.relu"

    def save(self, path: Path) -> Path:
        pieces, lengths = [], []
        for _ in range(int(self.random.integers(2, 5))):
            way = self.random.integers(4)
            odd = self.random.random() < 0.15
            length = self.inputs if way == 0 else int(self.random.choice([12, 13] if odd else [8, 16, 24, 64, 72]))
            pieces.append("x" if way == 0 else self.layer("x", self.inputs, length))
            lengths.append(length)
        self.nodes.append(helper.make_node("Concat", pieces, ["joint"], "joint", axis=1))
        results = [self.layer("joint", sum(lengths), 16)]
        if self.random.random() < 0.5:  # somebody else reads a piece
            results.append(self.layer(pieces[0], lengths[0], 8))
        if self.random.random() < 0.3:
            results.append("joint")
        shape = [self.batch, self.inputs, *([self.size] * 2 if self.images else [])]
        graph = helper.make_graph(
            self.nodes, "drawn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path
