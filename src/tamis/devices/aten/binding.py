"""How an ``aten`` kernel is bound: arguments in, a prepared function, a runner out.

A kernel prepares a plain function of tensors once; the runner made from it does nothing per call but fetch
the arguments from their slots, call the function and put the result in its slot in the promised format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tamis.devices.base import BoundShape, Runner, Slots
from tamis.devices.tensors import memory_format, torch_dtype
from tamis.engine.plan import Step
from tamis.errors import DeviceError


@dataclass(frozen=True)
class Argument:
    """One input of an operator: a constant tensor, or a value that is in ``slot`` when the step runs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    slot: int = -1
    constant: torch.Tensor | None = None
    channels_last: bool = False

    def known(self, what: str) -> torch.Tensor:
        """The constant; ``DeviceError`` when the value is only known at run time."""
        if self.constant is None:
            raise DeviceError(f"{what} must be a constant")
        return self.constant


def constant_argument(tensor: torch.Tensor) -> Argument:
    """A constant made while binding."""
    return Argument(tuple(tensor.shape), tensor.dtype, constant=tensor)


@dataclass(frozen=True)
class Binding:
    """What a kernel sees when it is bound: attributes, operator inputs in order, outputs."""

    layer: str
    attributes: Mapping[str, Any]
    arguments: tuple[Argument | None, ...]
    outputs: tuple[BoundShape, ...]

    def argument(self, index: int) -> Argument:
        """The operator's input ``index``; ``DeviceError`` when it is absent."""
        found = self.arguments[index] if index < len(self.arguments) else None
        if found is None:
            raise DeviceError(f"input {index} is missing", layer=self.layer)
        return found

    def present(self) -> tuple[Argument, ...]:
        """All inputs that are there, in order."""
        return tuple(argument for argument in self.arguments if argument is not None)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)

    @property
    def output_dtype(self) -> torch.dtype:
        """Element type of the first output."""
        return torch_dtype(self.outputs[0].format.dtype)


@dataclass(frozen=True)
class Prepared:
    """A function of the tensors of ``arguments``; ``into`` is the same with a keyword ``out``.

    ``into`` is None where torch can only write to memory of its own; the result is then copied.
    """

    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    into: Callable[..., Any] | None = None


def binding_of(
    step: Step,
    constants: Mapping[str, torch.Tensor],
    inputs: Sequence[BoundShape],
    outputs: Sequence[BoundShape],
) -> Binding:
    """Resolve the attribute ``arguments`` of a step: ``in<i>``, ``const<i>`` or empty for an absent input."""
    values = {
        f"in{index}": Argument(
            tuple(bound.shape),
            torch_dtype(bound.format.dtype),
            slot=bound.slot,
            channels_last=bound.format.layout == "channels_last",
        )
        for index, bound in enumerate(inputs)
    }
    values |= {f"const{i}": constant_argument(constants[name]) for i, name in enumerate(step.constants)}
    places = step.attributes.get("arguments", list(values))
    try:
        arguments = tuple(values[place] if place else None for place in places)
    except KeyError as error:
        raise DeviceError(f"the argument {error} is not among its inputs", layer=step.name) from error
    return Binding(step.name, step.attributes, arguments, tuple(outputs))


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that NumPy's rules give for these together."""
    return tuple(np.broadcast_shapes(*shapes))


def constant_as(argument: Argument, dtype: torch.dtype) -> Argument:
    """A floating-point constant in the type the layer runs in; anything else unchanged."""
    constant = argument.constant
    if constant is None or not constant.is_floating_point() or not dtype.is_floating_point:
        return argument
    return constant_argument(constant.to(dtype))


def same_type(binding: Binding, arguments: Sequence[Argument]) -> tuple[Argument, ...]:
    """Arguments with constants brought to the type of the first; ``DeviceError`` if run-time types differ."""
    dtype = arguments[0].dtype
    if arguments[0].constant is not None:
        dtype = next((a.dtype for a in arguments if a.constant is None), dtype)
    brought = tuple(constant_as(argument, dtype) for argument in arguments)
    for argument in brought:
        if argument.dtype is not dtype:
            raise DeviceError(f"inputs of type {dtype} and {argument.dtype} meet", layer=binding.layer)
    return brought


def make_runner(prepared: Prepared, outputs: Sequence[BoundShape], strided: bool) -> Runner:
    """A runner that calls the prepared function.

    A result is put in its slot in exactly the format of its ``BoundShape``; with ``strided`` it may be a view
    of any strides, where nothing is preallocated.
    """
    function, arguments = prepared.function, prepared.arguments
    if len(outputs) > 1:
        return _many_runner(_caller(function, arguments), outputs, strided)
    output = outputs[0]
    slot, dtype = output.slot, torch_dtype(output.format.dtype)
    order = memory_format(len(output.shape), output.format)
    if output.preallocated and prepared.into is not None:
        return _into_runner(prepared.into, arguments, slot)
    call = _caller(function, arguments)
    if output.preallocated:

        def copy(slots: Slots) -> None:
            slots[slot].copy_(call(slots))

        return copy
    if strided:

        def store_view(slots: Slots) -> None:
            result = call(slots)
            slots[slot] = result if result.dtype is dtype else result.to(dtype)

        return store_view
    if order is torch.contiguous_format:

        def store_dense(slots: Slots) -> None:
            result = call(slots)
            if result.dtype is not dtype or not result.is_contiguous():
                result = result.to(dtype).contiguous()
            slots[slot] = result

        return store_dense

    def store(slots: Slots) -> None:
        result = call(slots)
        if result.dtype is not dtype or not result.is_contiguous(memory_format=order):
            result = result.to(dtype).contiguous(memory_format=order)
        slots[slot] = result

    return store


def _many_runner(call: Callable[[Slots], Any], outputs: Sequence[BoundShape], strided: bool) -> Runner:
    places = [
        (o.slot, o.preallocated, torch_dtype(o.format.dtype), memory_format(len(o.shape), o.format)) for o in outputs
    ]

    def run(slots: Slots) -> None:
        for result, (slot, preallocated, dtype, order) in zip(call(slots), places, strict=True):
            if preallocated:
                slots[slot].copy_(result)
            elif strided:
                slots[slot] = result.to(dtype)
            else:
                slots[slot] = result.to(dtype).contiguous(memory_format=order)

    return run


def _split_arguments(arguments: Sequence[Argument]) -> tuple[list[int], tuple[torch.Tensor, ...]] | None:
    """Slots of leading values and the trailing constants, or None when they are mixed otherwise."""
    count = sum(argument.constant is None for argument in arguments)
    if any(argument.constant is not None for argument in arguments[:count]):
        return None
    return [argument.slot for argument in arguments[:count]], tuple(
        argument.constant for argument in arguments[count:] if argument.constant is not None
    )


def _fetcher(arguments: Sequence[Argument]) -> Callable[[Slots], list[torch.Tensor]]:
    pairs = [(argument.slot, argument.constant) for argument in arguments]

    def fetch(slots: Slots) -> list[torch.Tensor]:
        return [slots[slot] if constant is None else constant for slot, constant in pairs]

    return fetch


def _caller(function: Callable[..., Any], arguments: Sequence[Argument]) -> Callable[[Slots], Any]:
    """``function`` of the slots; the usual cases (one or two values, then constants) without a loop."""
    simple = _split_arguments(arguments)
    if simple is None or len(simple[0]) not in (1, 2):
        fetch = _fetcher(arguments)
        return lambda slots: function(*fetch(slots))
    values, rest = simple
    first = values[0]
    if len(values) == 1:
        return lambda slots: function(slots[first], *rest)
    second = values[1]
    return lambda slots: function(slots[first], slots[second], *rest)


def _into_runner(into: Callable[..., Any], arguments: Sequence[Argument], slot: int) -> Runner:
    simple = _split_arguments(arguments)
    if simple is None or len(simple[0]) not in (1, 2):
        fetch = _fetcher(arguments)

        def run(slots: Slots) -> None:
            into(*fetch(slots), out=slots[slot])

        return run
    values, rest = simple
    first = values[0]
    if len(values) == 1:

        def run_one(slots: Slots) -> None:
            into(slots[first], *rest, out=slots[slot])

        return run_one
    second = values[1]

    def run_two(slots: Slots) -> None:
        into(slots[first], slots[second], *rest, out=slots[slot])

    return run_two
