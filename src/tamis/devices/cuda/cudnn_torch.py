"""Convolutions through PyTorch's cuDNN operators.

The fused operators take the bias and ReLU, or a residual and ReLU, with 16-bit values; their use of tf32 hangs on
global switches of PyTorch, so float32 and tf32 go through the plain operator, which is told. PyTorch chooses the
algorithm by cuDNN's heuristics, without trying any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.engine.plan import Step
from tamis.errors import DeviceError
from tamis.formats.dtype import DType


def bind_conv(
    step: Step, weight: Tensor, bias: Tensor | None, inputs: Sequence[BoundShape], output: BoundShape
) -> Runner:
    """A runner for ``cudnn.torch_conv``: attribute ``fused`` is ``none``, ``relu`` or ``add_relu``.

    ``weight`` is [K, R, S, C / groups]; ``bias`` [K] is there with ``relu`` and ``add_relu``. Only the plain operator
    writes into given memory; what the others allocate is handed out, or copied if the output is preallocated.
    """
    a = step.attributes
    strides, pads, dilations, groups = list(a["strides"]), list(a["pads"][:2]), list(a["dilations"]), int(a["groups"])
    if list(a["pads"][2:]) != pads:
        raise DeviceError(f"asymmetric padding {a['pads']}", layer=step.name, remedy="build the engine again")
    kernel = weight.permute(0, 3, 1, 2)  # [K, C / groups, R, S], channels last
    x, y = inputs[0].slot, output.slot
    if a["fused"] == "none":
        plain = torch.ops.aten.cudnn_convolution
        given = (pads, strides, dilations, groups, False, True, step.precision == DType.TF32)

        def run(slots: Slots) -> None:
            slots[y] = plain.default(slots[x], kernel, *given).contiguous(memory_format=torch.channels_last)

        def run_into(slots: Slots) -> None:
            plain.out(slots[x], kernel, *given, out=slots[y])

        return run_into if output.preallocated else run
    if bias is None:
        raise DeviceError("the step has no bias", layer=step.name, remedy="build the engine again")
    call: Callable[[Slots], Any]
    if a["fused"] == "relu":
        relu = torch.ops.aten.cudnn_convolution_relu.default

        def call(slots: Slots) -> Any:
            return relu(slots[x], kernel, bias, strides, pads, dilations, groups)

    elif a["fused"] == "add_relu":
        add_relu, z = torch.ops.aten.cudnn_convolution_add_relu.default, inputs[1].slot

        def call(slots: Slots) -> Any:
            return add_relu(slots[x], kernel, slots[z], 1.0, bias, strides, pads, dilations, groups)

    else:
        raise DeviceError(f"nothing fuses '{a['fused']}'", layer=step.name, remedy="build the engine again")

    def allocate(slots: Slots) -> None:
        slots[y] = call(slots).contiguous(memory_format=torch.channels_last)

    def copy(slots: Slots) -> None:
        slots[y].copy_(call(slots))

    return copy if output.preallocated else allocate
