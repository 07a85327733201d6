"""The tactic that runs every operator: PyTorch's own kernels, one call or a few a layer.

It is the reference of the race (in float32, row-major), the fallback for whatever no other tactic covers, and
often the winner for data movement, pooling and attention, where PyTorch's kernels are good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import (
    Attention,
    Cast,
    Concat,
    Conv,
    ConvTranspose,
    Elementwise,
    Expand,
    Gather,
    LayerNorm,
    Linear,
    MatMul,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Split,
    Tile,
    Transpose,
    Where,
)
from tamis.compiler.tactics.base import (
    Choice,
    Layer,
    Lowered,
    arguments_of,
    attributes_of,
    flops_of,
    moved_bytes_of,
    uniform_format,
)
from tamis.compiler.tactics.precision import to_precision
from tamis.engine.plan import DeviceInfo, Step
from tamis.formats.dtype import DType

# Operators whose kernels keep an image in NHWC when it comes so.
_KEEPS_CHANNELS_LAST = (Elementwise, Pool, Reduce, Concat, Split, Slice, Resize, Pad, Where, Cast)
# Operators whose kernels are right and worth having in 16-bit types on every device (they sum in float32 inside).
_HALF = (
    Attention, Cast, Concat, Elementwise, Expand, Gather, LayerNorm, MatMul, Linear, Pad, Pool, Reduce, Reshape, Resize,
    Slice, Softmax, Split, Tile, Transpose, Where,
)  # fmt: skip


class Aten:
    """PyTorch's eager kernels."""

    name = "aten"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Never: every operator has a kernel."""
        return None

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """float32 in row-major order first (the reference), then NHWC and 16-bit types where they make sense.

        PyTorch's switch for tf32 is one for the whole process, so tf32 is left to the libraries.
        """
        images = any(len(layer.types[v].shape) == 4 for v in (*layer.values, *layer.node.outputs))
        for dtype in config.precisions:
            if dtype == DType.TF32 or (dtype != DType.FLOAT32 and not self._may_be_half(layer, device)):
                continue
            for channels_last in (False, True):
                if channels_last and not (images and isinstance(layer.op, _KEEPS_CHANNELS_LAST)):
                    continue
                yield self._choice(layer, dtype, channels_last)

    @staticmethod
    def _may_be_half(layer: Layer, device: DeviceInfo) -> bool:
        """Whether the kernel is worth having in lower precision, and some value changes type at all."""
        if not isinstance(layer.op, _HALF if device.kind == "cpu" else (*_HALF, Conv, ConvTranspose)):
            return False
        values = (*layer.values, *layer.node.outputs)
        if isinstance(layer.op, Cast) and not all(layer.types[v].dtype.is_float for v in values):
            return False  # an integer made of a rounded number is another integer
        return any(layer.types[v].dtype == DType.FLOAT32 for v in values)

    def _choice(self, layer: Layer, dtype: DType, channels_last: bool) -> Choice:
        inputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.values)
        outputs = tuple(uniform_format(layer.types[v], dtype, channels_last) for v in layer.node.outputs)
        return Choice(self.name, dtype, inputs, outputs)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One step; weights go along in the precision of the choice."""
        if isinstance(layer.op, Cast) and choice.inputs == choice.outputs and choice.inputs[0].layout == "row_major":
            # Both ends lie in memory alike, as where a float16 input is used in float16: nothing is left to do.
            shape = layer.types[layer.node.output].shape
            layer = replace(layer, node=replace(layer.node, op=Reshape(shape)))
        arguments, values, names = arguments_of(layer)
        attributes = attributes_of(layer.op) | {"arguments": arguments}
        constants = {}
        for name in names:
            constants[name] = to_precision(layer.constants[name], choice.precision)
        kernel = "aten." + re.sub(r"(?<!^)(?<![A-Z])(?=[A-Z])", "_", type(layer.op).__name__).lower()
        step = Step(
            name=layer.name,
            kernel=kernel,
            inputs=values,
            outputs=layer.node.outputs,
            constants=names,
            attributes=attributes,
            layers=(layer.name,),
            precision=choice.precision,
            flops=flops_of(layer) if isinstance(layer.op, Conv | ConvTranspose | Linear | MatMul | Attention) else 0,
            moved_bytes=moved_bytes_of(layer, choice),
        )
        return Lowered((step,), constants)
