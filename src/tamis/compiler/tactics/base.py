"""What a tactic is: a way to run one layer, dense or sparse, in one precision and memory layout.

For a layer, a tactic either refuses with a reason, which the report prints, or offers choices. A choice names
the formats it reads and writes, so that the planner can weigh conversions. Lowering a choice packs the
weights and gives the steps that the runtime will execute; the race times those very steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node, SparsityNote, TensorType
from tamis.compiler.ir.ops import Attention, Conv, ConvTranspose, Einsum, Linear, MatMul
from tamis.engine.plan import DeviceInfo, Format, Sparsity, Step
from tamis.formats.dtype import DType


@dataclass(frozen=True)
class Layer:
    """A node with all that a tactic may look at."""

    node: Node
    types: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray]
    note: SparsityNote | None = None

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.node.name

    @property
    def op(self) -> Any:
        """The operator of the node."""
        return self.node.op

    @property
    def values(self) -> tuple[str, ...]:
        """The inputs that are computed at run time, each once, in order."""
        return tuple(dict.fromkeys(v for v in self.node.inputs if v and v not in self.constants))

    @property
    def eligible(self) -> bool:
        """Whether the weight is 2:4 along its reduction axis."""
        return self.note is not None and self.note.pattern == "2:4"

    def type(self, index: int) -> TensorType:
        """The type of input ``index``."""
        return self.types[self.node.inputs[index]]

    def constant(self, index: int) -> np.ndarray | None:
        """Input ``index`` when it is a constant."""
        return self.constants.get(self.node.inputs[index]) if index < len(self.node.inputs) else None


@dataclass(frozen=True)
class Choice:
    """One way to run a layer: the formats of ``Layer.values`` and of the outputs, and the tactic's parameters."""

    tactic: str
    precision: DType
    inputs: tuple[Format, ...]
    outputs: tuple[Format, ...]
    sparsity: Sparsity = "dense"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Text that identifies the choice; equal choices have equal keys."""
        return json.dumps(
            [
                self.tactic,
                str(self.precision),
                self.sparsity,
                [str(f) for f in self.inputs],
                [str(f) for f in self.outputs],
                dict(self.parameters),
            ],
            sort_keys=True,
        )


@dataclass(frozen=True)
class Lowered:
    """Steps and packed constants of one choice; ``temporaries`` are values that live between its steps."""

    steps: tuple[Step, ...]
    constants: Mapping[str, np.ndarray]
    temporaries: Mapping[str, tuple[tuple[int, ...], Format]] = field(default_factory=dict)

    def before(self, after: Lowered) -> Lowered:
        """These steps and then those of ``after``."""
        return Lowered(
            (*self.steps, *after.steps),
            {**self.constants, **after.constants},
            {**self.temporaries, **after.temporaries},
        )


class Tactic(Protocol):
    """A family of implementations that can run single layers; ``sparse``: it makes use of 2:4 weights."""

    name: str
    sparse: bool

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Why this tactic cannot run the layer, in words, or None."""
        ...

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """The ways in which it can."""
        ...

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """Packed weights and steps of one choice."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """A tactic that offers some of its choices only, and says why."""

    def left_out(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """What it does not offer at this optimization level, in words, or None."""
        ...


def layer_of(graph: Graph, node: Node) -> Layer:
    """The layer of a node, with just the types and constants that it uses."""
    names = [value for value in (*node.inputs, *node.outputs) if value]
    constants = {v: graph.constants[v] for v in node.inputs if v in graph.constants}
    note = next((graph.sparsity[v] for v in node.inputs if v in graph.sparsity), None)
    return Layer(node, {v: graph.types[v] for v in names}, constants, note)


def arguments_of(layer: Layer) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Where each input of the operator comes from, for generic kernels.

    Returns the list of arguments (``in0``, ``const0`` or empty), the run-time values and the constants' names.
    """
    values, constants = layer.values, tuple(dict.fromkeys(v for v in layer.node.inputs if v in layer.constants))
    arguments = [
        "" if not v else f"const{constants.index(v)}" if v in layer.constants else f"in{values.index(v)}"
        for v in layer.node.inputs
    ]
    return arguments, values, constants


def attributes_of(op: Any) -> dict[str, Any]:
    """An operator's fields as JSON."""
    encoded: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(op), default=str))
    return encoded


def flops_of(layer: Layer) -> int:
    """Arithmetic of a layer, a multiply-add as two, zeros of a sparse weight counted as if they were dense."""
    op, out = layer.op, layer.types[layer.node.output]
    if isinstance(op, Conv):
        weight = layer.type(1).shape
        return 2 * out.elements * prod(weight[1:])
    if isinstance(op, ConvTranspose):
        return 2 * layer.type(0).elements * prod(layer.type(1).shape[1:])
    if isinstance(op, Linear | MatMul):
        return 2 * out.elements * layer.type(0).shape[-1]
    if isinstance(op, Attention):
        queries, values = layer.type(0), layer.type(2)
        return 2 * prod(queries.shape[:-1]) * values.shape[-2] * (queries.shape[-1] + values.shape[-1])
    if isinstance(op, Einsum):
        return 2 * out.elements
    return out.elements


def moved_bytes_of(layer: Layer, choice: Choice) -> int:
    """The least memory traffic of a layer: every input read once, every output written once."""
    total = sum(layer.types[v].elements * f.dtype.size_bytes for v, f in zip(layer.values, choice.inputs, strict=True))
    total += sum(
        layer.types[v].elements * f.dtype.size_bytes for v, f in zip(layer.node.outputs, choice.outputs, strict=True)
    )
    for array in layer.constants.values():
        width = choice.precision.size_bytes if array.dtype.kind == "f" else array.itemsize
        # 2:4 keeps half of the values and one mask bit for each element.
        kept = 0.5 + 1 / (8 * width) if choice.sparsity == "2:4" and array.ndim >= 2 else 1.0
        total += int(array.size * width * kept)
    return total


def uniform_format(type_: TensorType, dtype: DType, channels_last: bool) -> Format:
    """The format of a value under one wish: only floating point changes type, only images change layout."""
    layout = "channels_last" if channels_last and len(type_.shape) == 4 else "row_major"
    return Format(dtype.storage if type_.dtype == DType.FLOAT32 else type_.dtype, layout)  # type: ignore[arg-type]
