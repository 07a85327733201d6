"""Our own CUDA kernels: steps ``cuda.*``.

The first constant of such a step is the cubin (uint8). Its attributes say how to launch it: ``function``, ``grid``,
``block`` and ``arguments``, a list of [kind, number] as in ``tamis.kernels.cuda.specification.Argument``; tensors are
numbered among the step's inputs, outputs, and constants after the cubin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_uint64

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cuda.module import Module
from tamis.engine.plan import Step
from tamis.errors import DeviceError

PREFIX = "cuda."
_ALIGNMENT = 16


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner that launches the step's kernel on the current stream.

    ``DeviceError`` for a step without a cubin, for outputs that are not preallocated, and in the driver's words.
    """
    if not step.constants:
        raise DeviceError(f"kernel {step.kernel} has no binary", layer=step.name, remedy="build the engine again")
    if not all(output.preallocated for output in outputs):
        raise DeviceError(f"kernel {step.kernel} writes into given memory only", layer=step.name)
    attributes, device = step.attributes, torch.cuda.current_device()
    binary, *tensors = (constants[name] for name in step.constants)
    packed = (c_uint64 * len(attributes["arguments"]))()
    places: list[tuple[int, int]] = []
    for index, (kind, number) in enumerate(attributes["arguments"]):
        if kind == "int":
            packed[index] = number
        elif kind == "const":
            packed[index] = tensors[number].data_ptr()
        elif kind in ("in", "out"):
            places.append((index, (inputs if kind == "in" else outputs)[number].slot))
        elif kind != "null":
            raise DeviceError(f"an argument of kind '{kind}' is unknown", layer=step.name)
    module = Module(binary.cpu().numpy().tobytes(), device, step.name)
    launch = module.launcher(attributes["function"], attributes["grid"], attributes["block"], packed)
    layer = step.name

    def run(slots: Slots, _keep: object = tensors) -> None:
        together = 0
        for index, slot in places:
            address = slots[slot].data_ptr()
            together |= address
            packed[index] = address
        if together % _ALIGNMENT:
            raise DeviceError(f"a tensor is not aligned to {_ALIGNMENT} bytes", layer=layer)
        launch(current_stream(device))

    return run


def current_stream(device: int) -> int:
    """The address of PyTorch's current stream on a device, without making an object of it."""
    return int(torch._C._cuda_getCurrentRawStream(device))
