from __future__ import annotations

import numpy as np

from tamis.compiler.ir.graph import Graph, Node, SparsityNote, TensorType
from tamis.compiler.ir.ops import (
    Attention,
    Conv,
    Elementwise,
    LayerNorm,
    Linear,
    Pointwise,
    Slice,
    Split,
)
from tamis.compiler.ir.printer import constant_text, node_text, summary, to_text
from tamis.compiler.ir.verify import verify


def net() -> Graph:
    weight = np.ones((8, 4, 3, 3), np.float32)
    weight[:, :2] = 0
    epilogue = (Pointwise("add", operand=3), Pointwise("relu"))
    return Graph(
        "net",
        ("x", "r"),
        ("y", "right"),
        (
            Node("conv", Conv((1, 1), (1,) * 4, (1, 1), bias=True, epilogue=epilogue), ("x", "w", "b", "r"), ("h",)),
            Node("scale", Elementwise((Pointwise("sub", operand=1, swap=True), Pointwise("clip", (0.0, 6.0)))), ("h", "c"), ("y",)),
            Node("split", Split(1, (2, 6)), ("y",), ("left", "right")),
        ),
        {
            "x": TensorType((1, 4, 8, 8)),
            "r": TensorType((1, 8, 8, 8)),
            "w": TensorType((8, 4, 3, 3)),
            "b": TensorType((8,)),
            "c": TensorType(()),
            "h": TensorType((1, 8, 8, 8)),
            "y": TensorType((1, 8, 8, 8)),
            "left": TensorType((1, 2, 8, 8)),
            "right": TensorType((1, 6, 8, 8)),
        },
        {"w": weight, "b": np.ones(8, np.float32), "c": np.array(0.5, np.float32)},
        {"w": SparsityNote("2:4", 1, 0.5, 1.0)},
    )  # fmt: skip


EXPECTED = """\
graph net
input   %x             float32[1,4,8,8]
input   %r             float32[1,8,8,8]
const   w              float32[8,4,3,3] 2:4 (50.0% zeros)
const   b              float32[8]
const   c              float32[] = 0.5
node    %h             float32[1,8,8,8]                    Conv(%x, w) strides=1,1 pads=1,1,1,1 dilations=1,1 | +b +%r relu
node    %y             float32[1,8,8,8]                    Elementwise(%h) | c- clip(0,6)
node    %left, %right  float32[1,2,8,8], float32[1,6,8,8]  Split(%y) axis=1 sizes=2,6
output  %y             float32[1,8,8,8]
output  %right         float32[1,6,8,8]
"""


def test_text() -> None:
    verify(net())
    assert to_text(net()) == EXPECTED
    assert to_text(net()) == to_text(net())


def test_summary() -> None:
    assert summary(net()) == "3 nodes: 1 Conv, 1 Elementwise, 1 Split"
    assert summary(Graph("empty", (), (), (), {}, {})) == "0 nodes"


def text(op: object, *inputs: str) -> str:
    return node_text(net(), Node("n", op, inputs, ("o",)))  # type: ignore[arg-type]


def test_nodes() -> None:
    assert text(Elementwise(()), "x") == "Elementwise(%x)"
    assert text(Elementwise((Pointwise("pow", operand=1, swap=True),)), "x", "c") == "Elementwise(%x) | pow(c, swapped)"
    assert text(Elementwise((Pointwise("mul", operand=0),)), "x") == "Elementwise(%x) | *%x"
    assert text(Linear(), "x", "w") == "Linear(%x, w)"
    assert text(Attention(0.125, mask=True), "x", "x", "x", "r") == "Attention(%x, %x, %x, %r) scale=0.125 mask"
    assert text(LayerNorm(-1, 1e-5), "x", "c", "b") == "LayerNorm(%x, c, b) axis=-1 epsilon=1e-05"
    assert text(LayerNorm(-1, 1e-5, bias=False, residual=True, rms=True), "x", "c", "r") == (
        "LayerNorm(%x, c, %r) axis=-1 epsilon=1e-05 rms=True residual"
    )
    assert text(Slice((1,), (0,), (None,), (2,)), "x") == "Slice(%x) axes=1 starts=0 stops=None steps=2"


def test_constants() -> None:
    graph = Graph(
        "net",
        (),
        (),
        (),
        {},
        {"i": np.array([1, -1]), "z": np.zeros(8, np.float32), "f": np.array([[0.1]], np.float32)},
    )
    assert constant_text(graph, "i") == "int64[2] = [ 1,-1]"
    assert constant_text(graph, "z") == "float32[8] (100.0% zeros)"
    assert constant_text(graph, "f") == "float32[1,1] = [[0.1]]"
