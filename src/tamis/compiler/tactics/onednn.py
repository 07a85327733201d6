"""The dense tactic that is always there: oneDNN with prepacked weights and a fused epilogue.

Of the epilogue, oneDNN takes one binary step with a residual and one unary step (after a residual only ReLU,
and for a linear layer none); what is left follows as a pointwise step of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear, Pointwise, epilogue_of
from tamis.compiler.tactics.base import Choice, Layer, Lowered, flops_of, moved_bytes_of, uniform_format
from tamis.compiler.tactics.precision import to_precision
from tamis.compiler.tactics.rest import result_of, with_rest
from tamis.engine.plan import DeviceInfo, Step
from tamis.formats.dtype import DType

_UNARY = {
    "relu": ("relu", ""), "sigmoid": ("sigmoid", ""), "tanh": ("tanh", ""), "silu": ("swish", ""),
    "hardswish": ("hardswish", ""), "leaky_relu": ("leaky_relu", ""), "clip": ("hardtanh", ""),
    "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"),
}  # fmt: skip
# What PyTorch asks of a processor before it hands oneDNN weights in bfloat16.
BFLOAT16_NEEDS = frozenset({"avx512bw", "avx512dq", "avx512vl"})


class OneDnn:
    """oneDNN convolutions and linear layers."""

    name = "onednn"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Only 2-D convolutions with symmetric padding and linear layers, with constant weights."""
        op = layer.op
        if not isinstance(op, Conv | ConvTranspose | Linear):
            return f"{type(op).__name__} is not a convolution or a linear layer"
        if layer.constant(1) is None:
            return "the weight is computed at run time"
        if op.bias and layer.constant(2) is None:
            return "the bias is computed at run time"
        if isinstance(op, Linear):
            return None
        rank = len(op.strides)
        if rank != 2:
            return f"{rank}-D convolution; only 2-D is offered"
        if op.pads[:2] != op.pads[2:]:
            return f"asymmetric padding {op.pads}"
        if isinstance(op, ConvTranspose) and epilogue_of(op)[:1] and epilogue_of(op)[0].operand is not None:
            return "a transposed convolution takes no residual"
        return None

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed precision, images both in NHWC and in NCHW."""
        for dtype in config.precisions:
            if dtype == DType.BFLOAT16 and not BFLOAT16_NEEDS.issubset(device.features):
                continue
            layouts = (True, False) if not isinstance(layer.op, Linear) else (False,)
            for channels_last in layouts:
                inputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.values)
                outputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.node.outputs)
                yield Choice(self.name, dtype, inputs, outputs)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """The library call, and a pointwise step for what it could not fuse."""
        op, node = layer.op, layer.node
        binary, unary, tail = split_epilogue(layer)
        constants: dict[str, np.ndarray] = {}
        for index in (1, 2) if op.bias else (1,):
            name = node.inputs[index]
            constants[name] = to_precision(layer.constants[name], choice.precision)
        attributes: dict[str, Any] = {"binary": binary.kind if binary else None, "unary": None}
        if unary:
            name, algorithm = _UNARY[unary.kind]
            attributes["unary"] = {"name": name, "scalars": list(unary.params), "algorithm": algorithm}
        kernel = "onednn.linear"
        if isinstance(op, Conv | ConvTranspose):
            kernel = "onednn.conv" if isinstance(op, Conv) else "onednn.conv_transpose"
            attributes |= {
                "strides": list(op.strides), "pads": list(op.pads[:2]), "dilations": list(op.dilations),
                "groups": op.groups,
            }  # fmt: skip
            if isinstance(op, ConvTranspose):
                attributes["output_pads"] = list(op.output_pads)
        inputs = (node.inputs[0],) + ((node.inputs[binary.operand],) if binary else ())  # type: ignore[index]
        step = Step(
            layer.name, kernel, inputs, (result_of(layer, tail),), tuple(constants), attributes, (layer.name,),
            choice.precision, flops=flops_of(layer), moved_bytes=moved_bytes_of(layer, choice),
        )  # fmt: skip
        return with_rest(Lowered((step,), constants), layer, tail, choice)


def split_epilogue(layer: Layer) -> tuple[Pointwise | None, Pointwise | None, tuple[Pointwise, ...]]:
    """What oneDNN fuses of a layer's epilogue, as (binary, unary, rest)."""
    program = epilogue_of(layer.op)
    if not program:
        return None, None, ()
    first = program[0]
    out = layer.types[layer.node.output].shape
    if first.operand is None:
        fusable = first.kind in _UNARY and (first.kind != "clip" or len(first.params) == 2)
        return (None, first, program[1:]) if fusable else (None, None, program)
    operand = layer.node.inputs[first.operand]
    residual = (
        first.kind in ("add", "mul")
        and operand not in layer.constants
        and layer.types[operand].shape == out
        and operand != layer.node.inputs[0]
    )
    if not residual:
        return None, None, program
    relu = isinstance(layer.op, Conv) and program[1:2] == (Pointwise("relu"),)
    return (first, program[1], program[2:]) if relu else (first, None, program[1:])
