"""From the mask of a weight as its layer sees it back to the stored tensor, through the nodes between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.sparsity.onnx_graph import Step
from tamis.sparsity.onnx_layers import OnnxLayer, attribute

if TYPE_CHECKING:
    import onnx

_SAME = ("Cast", "CastLike", "Identity")
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_SCALES = ("Div", "Mul", "Where")


@dataclass(frozen=True)
class StoredMask:
    """What to do to a tensor so that a layer sees zeros.

    Attributes:
        keep: where its elements stay as they are.
        fill: what the others become, in a shape that spreads over `keep`: 0, or a zero point.
    """

    keep: NDArray[np.bool_]
    fill: NDArray[Any]

    def applied(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The tensor with the mask applied, in its own type."""
        fill = np.broadcast_to(self.fill.astype(stored.dtype), stored.shape)
        changed: NDArray[Any] = np.where(self.keep, stored, fill)
        return changed

    def _shaped(self, shape: tuple[int, ...]) -> StoredMask:
        fill = self.fill if self.fill.ndim == 0 else np.broadcast_to(self.fill, self.keep.shape).reshape(shape)
        return StoredMask(self.keep.reshape(shape), fill)

    def _transposed(self, axes: NDArray[np.intp]) -> StoredMask:
        fill = self.fill if self.fill.ndim == 0 else np.broadcast_to(self.fill, self.keep.shape).transpose(axes)
        return StoredMask(self.keep.transpose(axes), fill)


def stored_mask(layer: OnnxLayer, keep: NDArray[np.bool_]) -> StoredMask | str:
    """The mask of the stored tensor that gives a layer's weight the mask `keep`, or why there is none.

    Whoever applies it still looks whether the layer then sees what was wanted.
    """
    zero = np.zeros((), np.int32) if layer.zero_point is None else layer.zero_point
    mask: StoredMask | str = StoredMask(keep, zero)
    for step in reversed(layer.constant.steps):
        assert isinstance(mask, StoredMask)
        mask = _before(step, mask)
        if isinstance(mask, str):
            break
    return mask


def _before(step: Step, after: StoredMask) -> StoredMask | str:
    """The mask in front of a node from the one behind it."""
    node = step.node
    before = step.graph.constant(step.input)
    assert before is not None
    shape = before.value.shape
    if node.op_type == "Transpose":
        order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
        return after._transposed(np.argsort(order or range(len(shape))[::-1]))
    if node.op_type in _RESHAPES:
        return after._shaped(shape)
    if shape != after.keep.shape:
        return f"its weight passes {_named(node)}, which changes its shape"
    if node.op_type in _SAME:
        return after
    zero = np.zeros((), np.int32)
    if node.op_type == "QuantizeLinear":
        return StoredMask(after.keep, zero)
    if after.fill.any():
        return f"its weight passes {_named(node)} after it was quantised"
    if node.op_type == "DequantizeLinear":
        return StoredMask(after.keep, _zero_points(step, shape))
    main_is_first = step.input == node.input[0]
    if node.op_type == "Sub" and main_is_first and (other := step.graph.constant(node.input[1])) is not None:
        return StoredMask(after.keep, other.value)
    if node.op_type in _SCALES and (node.op_type != "Div" or main_is_first):
        return after
    return f"its weight is computed by {_named(node)}, which pruning does not see through"


def _zero_points(step: Step, shape: tuple[int, ...]) -> NDArray[Any]:
    """The zero points of a DequantizeLinear, spread over the shape of its input."""
    node = step.node
    constant = step.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if constant is None:
        return np.zeros((), np.int32)
    value = constant.value
    if value.size == 1:
        return value.reshape(())
    axis = attribute(node, "axis", 1) % len(shape)
    block = attribute(node, "block_size", 0)
    if block:
        return np.repeat(value, block, axis).take(range(shape[axis]), axis)
    return value.reshape(tuple(-1 if other == axis else 1 for other in range(len(shape))))


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node '{node.name or node.output[0]}'"
