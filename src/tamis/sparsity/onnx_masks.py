"""From the mask of a weight as its layer sees it back to the stored tensors, through the nodes between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.sparsity.onnx_graph import REARRANGING, Key, Step
from tamis.sparsity.onnx_layers import OnnxLayer, attribute

if TYPE_CHECKING:
    import onnx

_SAME = ("Cast", "CastLike")
_RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_SCALES = ("Div", "Mul", "Where")
_QUANTISED = ("DequantizeLinear", "QuantizeLinear")


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

    def both(self, other: StoredMask) -> StoredMask:
        """This mask and another of the same tensor."""
        fill = self.fill
        if fill.ndim or other.fill.ndim or fill != other.fill:
            fill = np.where(self.keep, other.fill, fill)
        return StoredMask(self.keep & other.keep, fill)

    def _spread(self) -> NDArray[Any]:
        return np.broadcast_to(self.fill, self.keep.shape)

    def _shaped(self, shape: tuple[int, ...]) -> StoredMask:
        fill = self.fill if self.fill.ndim == 0 else self._spread().reshape(shape)
        return StoredMask(self.keep.reshape(shape), fill)

    def _transposed(self, axes: NDArray[np.intp]) -> StoredMask:
        fill = self.fill if self.fill.ndim == 0 else self._spread().transpose(axes)
        return StoredMask(self.keep.transpose(axes), fill)

    def _gathered(self, places: NDArray[np.intp], shape: tuple[int, ...]) -> StoredMask:
        """The mask of a tensor of which this one's elements are those at `places`, or none of them where negative."""
        masked = ~self.keep & (places >= 0)
        keep = np.ones(shape, np.bool_)
        keep.reshape(-1)[places[masked]] = False
        fill = self.fill
        if fill.ndim:
            fill = np.zeros(shape, self.fill.dtype)
            fill.reshape(-1)[places[masked]] = self._spread()[masked]
        return StoredMask(keep, fill)


def stored_masks(layer: OnnxLayer, keep: NDArray[np.bool_]) -> dict[Key, StoredMask] | str:
    """The masks of the stored tensors that give a layer's weight the mask `keep`, or why there are none.

    Whoever applies them still looks whether the layer then sees what was wanted.
    """
    zero = np.zeros((), np.int32) if layer.zero_point is None else layer.zero_point
    masks: dict[Key, StoredMask] = {}
    for origin in layer.constant.origins:
        mask: StoredMask | str = StoredMask(keep, zero)
        for step in reversed(origin.steps):
            assert isinstance(mask, StoredMask)
            mask = _before(step, mask)
            if isinstance(mask, str):
                return mask
        assert isinstance(mask, StoredMask)
        masks[origin.key] = masks[origin.key].both(mask) if origin.key in masks else mask
    return masks


def stored_axis(layer: OnnxLayer) -> int | None:
    """The axis of the stored tensor that a layer reduces over; None where its weight does not come from one axis."""
    axis = layer.axis
    if len(layer.constant.origins) > 1:
        return None
    for step in reversed(layer.constant.origins[0].steps):
        if step.node.op_type == "Transpose":
            order = next((list(entry.ints) for entry in step.node.attribute if entry.name == "perm"), None)
            axis = order[axis] if order else layer.constant.value.ndim - 1 - axis
        elif step.node.op_type not in (*_SAME, *_SCALES, "Identity", *_QUANTISED, "Split"):
            return None
    return axis


def _before(step: Step, after: StoredMask) -> StoredMask | str:
    """The mask in front of a node from the one behind it."""
    node = step.node
    before = step.graph.constant(step.input)
    assert before is not None
    unseen = f"its weight is computed by {_named(node)}, which pruning does not see through"
    value: Any = before.value
    if isinstance(value, list):  # a sequence
        return unseen
    shape = value.shape
    if node.op_type == "Transpose":
        order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
        return after._transposed(np.argsort(order or range(len(shape))[::-1]))
    if node.op_type in _RESHAPES:
        return after._shaped(shape)
    if node.op_type == "Concat" or (node.op_type in REARRANGING and step.position == 0):
        return after._gathered(_places(step, shape), shape)
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
    if node.op_type == "Sub" and step.position == 0 and (other := step.graph.constant(node.input[1])) is not None:
        return StoredMask(after.keep, other.value)
    if node.op_type in _SCALES and (node.op_type != "Div" or step.position == 0):
        return after
    return unseen


def _places(step: Step, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Where in a node's input, counted from its first element, each element of its output comes from."""
    node = step.node
    own = np.arange(np.prod(shape, dtype=np.intp)).reshape(shape)
    others = {name: constant.value for name in node.input if name and (constant := step.graph.constant(name))}
    if node.op_type != "Concat":
        return step.graph.run(node, others | {step.input: own})[step.output]
    # by hand, since one tensor may be joined to itself
    parts = [
        own if place == step.position else np.full(others[name].shape, -1, np.intp)
        for place, name in enumerate(node.input)
    ]
    return np.concatenate(parts, attribute(node, "axis", 1))


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
