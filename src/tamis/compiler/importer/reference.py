"""Evaluation of single nodes by ONNX's own reference implementation, for constants only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tamis.errors import InvalidModel

# Their results differ from run to run, so they are no constants whatever they are given.
RANDOM_OPERATORS = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip


def evaluate_by_reference(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]
) -> list[np.ndarray] | None:
    """The results of one node on constants; None when the reference cannot give plain arrays.

    Raises:
        InvalidModel: the reference knows the operator but fails on these inputs.
    """
    if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op_type in RANDOM_OPERATORS:
        return None
    version = opsets.get(node.domain, opsets.get("", 1))
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    names = [f"input{index}" if array is not None else "" for index, array in enumerate(inputs)]
    del alone.input[:]
    alone.input.extend(names)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    graph = helper.make_graph(
        [alone],
        "node",
        [_untyped(name) for name in feeds],
        [_untyped(name) for name in alone.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, version)])
    try:
        evaluator = ReferenceEvaluator(model)
    except Exception:
        return None  # the reference does not know the operator either; the caller reports it
    try:
        results = evaluator.run(None, feeds)
    except Exception as error:
        raise InvalidModel(f"{node.op_type} fails on its constant inputs: {error}", layer=node.name) from None
    if not all(isinstance(array, np.ndarray | np.generic) for array in results):
        return None
    by_name = dict(zip([name for name in alone.output if name], map(np.asarray, results), strict=True))
    return [by_name.get(name, np.zeros(0, np.float32)) for name in alone.output]


def _untyped(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)
