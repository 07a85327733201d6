"""Check an ONNX file: every layer with a constant weight, judged on the axis that its operator reduces over.

Needs only onnx and NumPy. What lies between a stored weight and the layer (a transpose, a cast, a
dequantisation, a reshape) is computed first, so that the numbers judged are those that the layer multiplies
with.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidModel
from tamis.formats import NM
from tamis.sparsity.check import RUN_TIME, LayerCheck, judge
from tamis.sparsity.masks import as_pattern, axis_misfit

if TYPE_CHECKING:
    import onnx

_FOLDED = (
    *("Cast", "Concat", "Constant", "DequantizeLinear", "Flatten", "Gather", "Identity", "Mul"),
    *("QuantizeLinear", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)
_MASKING = ("Mul", "Where")


@dataclass(frozen=True)
class _Constant:
    """A value known before the model runs, the initializer it is from, the node that zeroed some of it."""

    value: NDArray[Any]
    source: str
    masked_by: str | None = None


def check_onnx(model: str | Path | onnx.ModelProto, pattern: str | NM = "2:4") -> tuple[LayerCheck, ...]:
    """Check all Conv, ConvTranspose, Gemm and MatMul nodes with a constant operand, in graph order.

    A weight whose zeros are made by a `Mul` or `Where` in the graph is dense in the file; it is reported as
    such. Bodies of `If`, `Loop` and `Scan` are not looked into.

    Args:
        model: a file (external data beside it is read) or a model with its data loaded.
        pattern: the pattern to look for.

    Raises:
        InvalidModel: the file is not an ONNX model.
    """
    wanted = as_pattern(pattern)
    graph = _Graph(_load(model))
    checks = (_check_node(graph, node, wanted) for node in graph.nodes)
    return tuple(check for check in checks if check is not None)


def _load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    import onnx  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415
    from onnx import inliner  # noqa: PLC0415

    if isinstance(model, (str, Path)):
        try:
            model = onnx.load(str(model))
        except (OSError, DecodeError, onnx.checker.ValidationError) as error:
            raise InvalidModel(f"cannot read '{model}': {error}") from error
    return inliner.inline_local_functions(model) if model.functions else model


class _Graph:
    """A model's nodes, and the constants that reach them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}

    def constant(self, name: str) -> _Constant | None:
        """The value of a tensor that depends on nothing but constants; None for others."""
        from onnx import numpy_helper  # noqa: PLC0415

        if name in self._initializers:
            return _Constant(numpy_helper.to_array(self._initializers[name]), name)
        node = self._producers.get(name)
        if node is None or node.op_type not in _FOLDED:
            return None
        inputs = {tensor: self.constant(tensor) for tensor in node.input if tensor}
        known = {tensor: constant for tensor, constant in inputs.items() if constant is not None}
        if len(known) < len(inputs):
            return None
        value = self._run(node, {tensor: constant.value for tensor, constant in known.items()})[name]
        if not known:
            return _Constant(value, name)
        # a mask is as large as its weight, but holds zeros already
        main = max(known.values(), key=lambda entry: (entry.value.size, np.count_nonzero(entry.value)))
        masked_by = main.masked_by
        if node.op_type in _MASKING and np.count_nonzero(value) < np.count_nonzero(main.value):
            masked_by = f"{node.op_type} node '{node.name or name}'"
        return _Constant(value, main.source, masked_by)

    def _run(self, node: onnx.NodeProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        from onnx import TypeProto, helper  # noqa: PLC0415
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

        starts = [helper.make_value_info(name, TypeProto()) for name in inputs]
        ends = [helper.make_value_info(name, TypeProto()) for name in node.output]
        graph = helper.make_graph([node], "constant", starts, ends)
        values = ReferenceEvaluator(graph, opsets=self._opsets).run(None, inputs)
        return dict(zip(node.output, values, strict=True))


def _check_node(graph: _Graph, node: onnx.NodeProto, pattern: NM) -> LayerCheck | None:
    """The check of a node, if it is a layer with a constant weight."""
    for port, counted in _weight_ports(node):
        constant = graph.constant(node.input[port])
        if constant is None or constant.value.ndim == 0:
            continue
        weight = constant.value
        axis = max(counted + weight.ndim, 0) if counted < 0 else counted
        groups = int(_attribute(node, "group", 1))
        # the weight of a Conv has one group's channels on its axis, that of a ConvTranspose all of them
        size = weight.shape[axis] // (groups if node.op_type == "ConvTranspose" else 1)
        run_time = RUN_TIME.format(constant.masked_by, "bake the masks in before the export")
        zeros, held, reason = judge(
            weight,
            axis,
            pattern,
            misfit=axis_misfit(size, groups, pattern),
            run_time=run_time if constant.masked_by else None,
        )
        shape = tuple(weight.shape)
        return LayerCheck(constant.source, node.op_type, axis, shape, zeros, held, reason, node.name, _scope(node))
    return None


def _weight_ports(node: onnx.NodeProto) -> tuple[tuple[int, int], ...]:
    """The inputs of a node that may be weights, each with its reduction axis (negative: from the end)."""
    if node.op_type == "Conv":
        return ((1, 1),)
    if node.op_type == "ConvTranspose":
        return ((1, 0),)
    if node.op_type == "Gemm":
        return (
            (1, 1 if _attribute(node, "transB", 0) else 0),
            (0, 0 if _attribute(node, "transA", 0) else 1),
        )
    if node.op_type == "MatMul":
        return ((1, -2), (0, -1))
    return ()


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _scope(node: onnx.NodeProto) -> str:
    """The torch module a node came from, as PyTorch's exporter records it; empty if it does not say."""
    entries = {entry.key: entry.value for entry in node.metadata_props}
    names = ast.literal_eval(entries.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(names[-2]) if len(names) > 1 else ""
