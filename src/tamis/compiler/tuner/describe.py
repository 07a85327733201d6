"""A layer in words: what reports print and timing caches are keyed by."""

from __future__ import annotations

import dataclasses
import json

from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Pool, epilogue_of
from tamis.compiler.tactics.base import Layer
from tamis.compiler.tuner.cache import short_hash


def kind_of(layer: Layer) -> str:
    """The operator's name, with the kernel size for what has one."""
    op = layer.op
    if isinstance(op, Conv | ConvTranspose):
        size = "x".join(map(str, layer.type(1).shape[2:]))
        depthwise = "depthwise " if op.groups > 1 and op.groups == layer.type(0).shape[1] else ""
        grouped = f"grouped({op.groups}) " if op.groups > 1 and not depthwise else ""
        return f"{depthwise}{grouped}{type(op).__name__} {size}"
    if isinstance(op, Pool):
        return f"{op.kind} pool {'x'.join(map(str, op.kernel))}"
    if isinstance(op, Elementwise):
        return "Elementwise " + " ".join(step.kind for step in op.program)
    return type(op).__name__


def description_of(layer: Layer) -> str:
    """One line: kind, strides, shapes and epilogue."""
    op = layer.op
    stride = ""
    if isinstance(op, Conv | ConvTranspose) and set(op.strides) != {1}:
        stride = f" /{op.strides[0]}"
    inputs = " ".join(shape_text(layer.types[v].shape) for v in layer.values)
    outputs = " ".join(shape_text(layer.types[v].shape) for v in layer.node.outputs)
    parts = [kind_of(layer) + stride, f"{inputs} -> {outputs}"]
    if getattr(op, "bias", False):
        parts.append("+bias")
    parts += [f"{'+residual' if s.kind == 'add' and s.operand is not None else s.kind}" for s in epilogue_of(op)]
    return " ".join(parts)


def shape_text(shape: tuple[int, ...]) -> str:
    """``[1,64,56,56]``."""
    return f"[{','.join(map(str, shape))}]"


def signature_of(layer: Layer) -> str:
    """Text that is equal for layers that run alike: same operator, types and sparsity, whatever the weights."""
    types = [str(layer.types[v]) for v in (*layer.node.inputs, *layer.node.outputs) if v]
    constant = [v in layer.constants for v in layer.node.inputs]
    same = [layer.node.inputs.index(v) for v in layer.node.inputs]
    attributes = json.dumps(dataclasses.asdict(layer.op), sort_keys=True, default=str)
    digest = short_hash(type(layer.op).__name__, attributes, *types, str(constant), str(same), str(layer.eligible))
    return f"{description_of(layer)}{' 2:4' if layer.eligible else ''} #{digest}"
