"""Attention by cuDNN or by FlashAttention, as PyTorch brings them: steps ``cudnn.attention``.

The attribute ``backend`` is ``cudnn`` or ``flash``. Operands are heads [B, H, S, D] in float16 or bfloat16, in any
order in memory that ``takes`` allows; the result lies in the order of the queries. A mask is added to the scores and
broadcasts to [B, H, Sq, Sk]; only cuDNN takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tamis.devices.aten.binding import Argument, Binding, Prepared, binding_of, make_runner, same_type
from tamis.devices.base import BoundShape, Runner, Tensor
from tamis.engine.plan import Step
from tamis.errors import DeviceError

KERNEL = "cudnn.attention"
# The libraries read 16 bytes at a time: 8 elements.
_VECTOR, _VECTOR_BYTES = 8, 16


def takes(strides: Sequence[int]) -> bool:
    """Whether the libraries read heads of these strides in place: dense along D, every row aligned."""
    return len(strides) == 4 and strides[-1] == 1 and all(stride % _VECTOR == 0 for stride in strides[:-1])


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for ``cudnn.attention``; it can be captured in a graph.

    The result is copied where the output is preallocated, or must be dense and is not. ``DeviceError`` for an unknown
    backend, and when it runs, for what the library refuses.
    """
    binding = binding_of(step, constants, inputs, outputs)
    operands: tuple[Argument, ...] = same_type(binding, [binding.argument(index) for index in range(3)])
    if step.attributes.get("mask"):
        operands = (*operands, same_type(binding, [operands[0], binding.argument(3)])[1])
    prepared = Prepared(_function(binding, str(step.attributes["backend"])), operands)
    return make_runner(prepared, outputs, bool(step.attributes.get("strided", False)))


def _function(binding: Binding, backend: str) -> Callable[..., Any]:
    scale, layer = float(binding.attributes["scale"]), binding.layer
    call: Callable[..., Any]
    if backend == "cudnn":
        cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention.default

        def call(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            if mask is not None:
                mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
            return cudnn(q, k, v, mask, False, 0.0, False, False, scale=scale)[0]

    elif backend == "flash":
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default

        def call(q: Any, k: Any, v: Any) -> Any:
            return flash(q, k, v, 0.0, False, False, scale=scale)[0]

    else:
        raise DeviceError(f"there is no attention '{backend}'", layer=layer, remedy="build the engine again")

    def run(q: Any, k: Any, v: Any, *mask: Any) -> Any:
        try:
            return call(_readable(q), _readable(k), _readable(v), *mask)
        except RuntimeError as error:
            raise DeviceError(f"{backend} attention: {str(error).splitlines()[0]}", layer=layer) from error

    return run


def _readable(heads: Any) -> Any:
    """The tensor itself, or a dense copy where its rows are not aligned: that would stop the GPU."""
    if takes(heads.stride()) and heads.data_ptr() % _VECTOR_BYTES == 0:
        return heads
    return heads.clone(memory_format=torch.contiguous_format)
