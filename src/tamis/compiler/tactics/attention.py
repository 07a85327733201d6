"""Attention in 16 bits by cuDNN, or by FlashAttention where there is no mask; both come with PyTorch.

The tactic ``aten`` leaves it to PyTorch which of its kernels runs an attention; here the race decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Attention
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
from tamis.compiler.tactics.cuda_steps import generation_of
from tamis.compiler.tactics.precision import runs_in, to_precision
from tamis.engine.plan import DeviceInfo, Step
from tamis.formats.dtype import DType

_PRECISIONS = (DType.FLOAT16, DType.BFLOAT16)
_HEAD_MULTIPLE = 8
# The largest heads of each; cuDNN has larger ones on the data centre's Hopper and Blackwell.
_FLASH_HEAD, _CUDNN_HEAD, _LARGE_CUDNN_HEAD = 256, 128, 256
_LARGE_HEADS_ON = (90, 100, 103)


class CudnnAttention:
    """Fused attention through PyTorch's cuDNN and FlashAttention operators."""

    name = "cudnn.attention"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Other layers, devices before compute capability 8.0, and operands that the libraries do not take."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        if not isinstance(layer.op, Attention):
            return f"{type(layer.op).__name__} is not an attention"
        if generation_of(device) < 80:
            return f"needs compute capability 8.0 or newer; this is {device.architecture}"
        if "cudnn" not in device.libraries:
            return "this PyTorch has no cuDNN"
        if not set(config.precisions) & set(_PRECISIONS):
            return "needs 16-bit values; allow float16 or bfloat16"
        reason = _refuses_operands(layer) or (_refuses_mask(layer) if layer.op.mask else None)
        if reason is None and not _backends(layer, device):
            return f"neither library takes heads of {layer.type(0).shape[-1]} elements and this mask on this device"
        return reason

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed 16-bit precision by each library."""
        for precision in config.precisions:
            if precision not in _PRECISIONS or not runs_in(precision, device):
                continue
            inputs = tuple(uniform_format(layer.types[v], precision, False) for v in layer.values)
            outputs = (uniform_format(layer.types[layer.node.output], precision, False),)
            for backend in _backends(layer, device):
                yield Choice(self.name, precision, inputs, outputs, parameters={"backend": backend})

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """One step; a constant mask goes along in the type of the queries."""
        arguments, values, names = arguments_of(layer)
        step = Step(
            layer.name, self.name, values, layer.node.outputs, names,
            attributes_of(layer.op) | {"arguments": arguments, "backend": choice.parameters["backend"]},
            (layer.name,), choice.precision, flops=flops_of(layer), moved_bytes=moved_bytes_of(layer, choice),
        )  # fmt: skip
        return Lowered((step,), {name: to_precision(layer.constants[name], choice.precision) for name in names})


def _refuses_operands(layer: Layer) -> str | None:
    shapes = [layer.type(index).shape for index in range(3)]
    if any(layer.constant(index) is not None for index in range(3)):
        return "an operand is constant"
    if any(layer.type(index).dtype != DType.FLOAT32 for index in range(3)):
        return "an operand is not floating point"
    if any(len(shape) != 4 for shape in shapes):
        return "the operands are not of rank 4: batch, heads, length, size of a head"
    if len({(*shape[:2], shape[3]) for shape in shapes}) != 1:
        return "batch, heads or their size differ between queries, keys and values"
    depth = shapes[0][3]
    return f"heads of {depth} elements; they must be a multiple of {_HEAD_MULTIPLE}" if depth % _HEAD_MULTIPLE else None


def _refuses_mask(layer: Layer) -> str | None:
    mask = layer.type(3)
    if mask.dtype != DType.FLOAT32:
        return f"the mask is {mask.dtype}; only one that is added is offered"
    if len(mask.shape) > 4 or mask.shape[-1:] != layer.type(1).shape[2:3]:
        return f"a mask of shape {list(mask.shape)}; its last axis must be the keys"
    return None


def _backends(layer: Layer, device: DeviceInfo) -> tuple[str, ...]:
    """The libraries that take the layer, by the size of its heads, its number of keys and its mask."""
    depth, keys = layer.type(0).shape[3], layer.type(1).shape[2]
    largest = _LARGE_CUDNN_HEAD if generation_of(device) in _LARGE_HEADS_ON else _CUDNN_HEAD
    cudnn = ("cudnn",) if depth <= largest and keys > 1 else ()
    flash = ("flash",) if depth <= _FLASH_HEAD and not layer.op.mask else ()
    return cudnn + flash
