"""Our own CUDA kernels: steps ``cuda.*``.

The first constant of such a step is the cubin (uint8). Its attributes say how to launch it: ``function``, ``grid``,
``block`` and ``arguments``, a list of [kind, number] as in ``tamis.kernels.cuda.specification.Argument``; tensors are
numbered among the step's inputs, outputs, and constants after the cubin.

``cuda.pad_channels`` (attribute ``channels``) and ``cuda.convert`` may come without a cubin: what they need is in the
formats of their input and output. They are compiled when they are bound, in a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_uint64

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cuda.module import Module
from tamis.engine.plan import Step
from tamis.errors import DeviceError
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.movement import convert, pad_channels
from tamis.kernels.cuda.specification import Kernel

PREFIX = "cuda."
_ALIGNMENT = 16


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner that launches the step's kernel on the current stream; outputs must be preallocated."""
    attributes, tensors, cubin = step.attributes, [constants[name] for name in step.constants], b""
    device = torch.cuda.current_device()
    if tensors:
        cubin = tensors.pop(0).cpu().numpy().tobytes()
    else:
        kernel = _made_here(step, inputs, outputs)
        cubin, attributes = compile_source(f"{kernel.family}.cu", kernel.defines, _architecture()), kernel.attributes()
    if not all(output.preallocated for output in outputs):
        raise DeviceError(f"kernel {step.kernel} writes into given memory only", layer=step.name)
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
    module = Module(cubin, device, step.name)
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


def _made_here(step: Step, inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]) -> Kernel:
    """The kernel of a step that brings none."""
    source, target = inputs[0].format, outputs[0].format
    shape, lies = inputs[0].shape, (source.dtype, source.layout == "channels_last")
    try:
        if step.kernel == "cuda.convert":
            return convert(shape, lies, (target.dtype, target.layout == "channels_last"))
        if step.kernel == "cuda.pad_channels" and target.layout == "channels_last":
            return pad_channels(shape, lies, int(step.attributes["channels"]), target.dtype)
    except (ValueError, KeyError) as error:
        raise DeviceError(f"kernel {step.kernel} cannot be made: {error}", layer=step.name) from error
    raise DeviceError(f"kernel {step.kernel} is unknown or brings no binary", layer=step.name)


def _architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def current_stream(device: int) -> int:
    """The address of PyTorch's current stream on a device, without making an object of it."""
    return int(torch._C._cuda_getCurrentRawStream(device))
