"""Our own CUDA kernels: steps ``cuda.*``.

The first constant of such a step is the cubin (uint8). Its attributes say how to launch it: ``function``, ``grid``,
``block``, ``shared_bytes`` if any, and ``arguments``, a list of [kind, number] as in
``tamis.kernels.cuda.specification.Argument``; tensors are numbered among the step's inputs, outputs, and constants
after the cubin, maps among the attribute ``maps``. ``overlaps`` says that the kernel waits for the one before it by
itself; binaries of older engines do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import Array, addressof, c_char, c_uint64
from dataclasses import dataclass
from typing import Any

import torch

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cuda import tensor_map
from tamis.devices.cuda.module import Module
from tamis.devices.cuda.overlap import can_overlap
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
    attributes, device, layer = step.attributes, torch.cuda.current_device(), step.name
    binary, *tensors = (constants[name] for name in step.constants)
    numbers = (c_uint64 * len(attributes["arguments"]))()
    arguments = [addressof(numbers) + 8 * index for index in range(len(numbers))]
    places: list[tuple[int, int]] = []
    maps: list[_Map] = []
    for index, (kind, number) in enumerate(attributes["arguments"]):
        if kind == "int":
            numbers[index] = number
        elif kind == "const":
            numbers[index] = tensors[number].data_ptr()
        elif kind in ("in", "out"):
            places.append((index, (inputs if kind == "in" else outputs)[number].slot))
        elif kind == "map":
            described = attributes["maps"][number]
            maps.append(_Map(described, inputs[described["tensor"]].slot, tensor_map.room()))
            arguments[index] = addressof(maps[-1].encoded)
        elif kind != "null":
            raise DeviceError(f"an argument of kind '{kind}' is unknown", layer=layer)
    module = Module(binary.cpu().numpy().tobytes(), device, layer)
    shape = attributes["grid"], attributes["block"]
    # Behind an event of another stream a launch is a plain one: that waits for all that is in front of it.
    overlaps = bool(attributes.get("overlaps")) and not step.waits and can_overlap(device)
    launch = module.launcher(
        attributes["function"], *shape, arguments, attributes.get("shared_bytes", 0), overlaps=overlaps
    )

    def run(slots: Slots, _keep: object = tensors) -> None:
        together = 0
        for index, slot in places:
            address = slots[slot].data_ptr()
            together |= address
            numbers[index] = address
        for each in maps:
            address = slots[each.slot].data_ptr()
            together |= address
            if address != each.address:
                tensor_map.encode(each.encoded, each.described, address, layer)
                each.address = address
        if together % _ALIGNMENT:
            raise DeviceError(f"a tensor is not aligned to {_ALIGNMENT} bytes", layer=layer)
        launch(current_stream(device))

    return run


@dataclass
class _Map:
    """A tensor map of a step, and the address that it is encoded for."""

    described: Mapping[str, Any]
    slot: int
    encoded: Array[c_char]
    address: int = 0


def current_stream(device: int) -> int:
    """The address of PyTorch's current stream on a device, without making an object of it."""
    return int(torch._C._cuda_getCurrentRawStream(device))
