"""Tensors in and out: NumPy arrays, torch tensors, and whatever speaks DLPack."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import torch

from tamis.devices.tensors import torch_dtype
from tamis.engine.plan import Port
from tamis.errors import InputError

_NOT_IN_NUMPY = {ml_dtypes.bfloat16: torch.bfloat16, ml_dtypes.float8_e4m3fn: torch.float8_e4m3fn}

Array: TypeAlias = Any  # numpy.ndarray, torch.Tensor or an object with __dlpack__


def to_torch(port: Port, value: Array) -> torch.Tensor:
    """A contiguous tensor over the values of an input, sharing their memory where that is possible.

    Raises ``InputError`` when ``value`` is not a tensor of the port's shape and type.
    """
    tensor = _as_tensor(port, value)
    if tensor.dtype != torch_dtype(port.dtype):
        found = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"input '{port.name}' has the type {found}, expected {port.dtype}",
            remedy=f"convert it to {port.dtype}",
        )
    if tuple(tensor.shape) != port.shape:
        raise InputError(
            f"input '{port.name}' has the shape {_text(tensor.shape)}, expected {_text(port.shape)}",
            remedy="the shapes of an engine are fixed when it is built",
        )
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def numpy_to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the memory of an array; it must not be written to when the array must not."""
    if not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    special = _NOT_IN_NUMPY.get(array.dtype.type)
    if special is not None:
        array = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
    if array.flags.writeable:
        tensor = torch.from_numpy(array)
    else:
        with warnings.catch_warnings():
            # Read-only arrays are common (mapped files) and engines never write to their inputs.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(array)
    return tensor if special is None else tensor.view(special)


def _as_tensor(port: Port, value: Array) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        if isinstance(value, np.ndarray | np.generic):
            return numpy_to_torch(np.asarray(value))
        if hasattr(value, "__dlpack__"):
            tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(value)
            return tensor
    except (TypeError, RuntimeError, BufferError) as error:
        raise InputError(
            f"input '{port.name}' cannot be read as a tensor ({error})",
            remedy=f"give a NumPy array of type {port.dtype}",
        ) from error
    raise InputError(
        f"input '{port.name}' is a {type(value).__name__}, expected a tensor",
        remedy=f"give a NumPy array of type {port.dtype} and shape {_text(port.shape)}",
    )


def _text(shape: Any) -> str:
    return f"[{', '.join(map(str, shape))}]"
