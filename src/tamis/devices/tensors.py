"""Element types, layouts and memory of CPU tensors: the bridge between NumPy, plan formats and torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from tamis.engine.plan import Format
from tamis.errors import DeviceError
from tamis.formats.dtype import DType

ALIGNMENT = 64

_TORCH_TYPES = {
    DType.FLOAT64: torch.float64,
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT8_E4M3: torch.float8_e4m3fn,
    DType.INT64: torch.int64,
    DType.INT32: torch.int32,
    DType.INT16: torch.int16,
    DType.INT8: torch.int8,
    DType.UINT8: torch.uint8,
    DType.UINT16: torch.uint16,
    DType.UINT32: torch.uint32,
    DType.UINT64: torch.uint64,
    DType.BOOL: torch.bool,
}
_DTYPES = {kind: dtype for dtype, kind in _TORCH_TYPES.items()}
# Types that NumPy has only through ml_dtypes cross the border as integers of the same width.
_CARRIERS: dict[DType, tuple[torch.dtype, np.dtype]] = {
    DType.BFLOAT16: (torch.int16, np.dtype(np.int16)),
    DType.FLOAT8_E4M3: (torch.uint8, np.dtype(np.uint8)),
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch element type that holds ``dtype`` bit for bit."""
    return _TORCH_TYPES[dtype]


def dtype_of(tensor: torch.Tensor) -> DType:
    """The element type of a torch tensor."""
    return _DTYPES[tensor.dtype]


def memory_format(rank: int, format: Format) -> torch.memory_format:
    """The torch memory format of a tensor of this rank.

    ``channels_last`` means NHWC or NDHWC; up to rank two it is the same as row-major. Raises ``DeviceError``
    for rank three and above five, where torch has no such order.
    """
    if format.layout == "row_major" or rank <= 2:
        return torch.contiguous_format
    if rank == 4:
        return torch.channels_last
    if rank == 5:
        return torch.channels_last_3d
    raise DeviceError(f"a tensor of rank {rank} cannot be channels_last on the CPU", remedy="plan it as row_major")


def lies_in(tensor: torch.Tensor, format: Format) -> bool:
    """Whether a tensor has the type and the memory order of a format."""
    order = memory_format(tensor.dim(), format)
    return tensor.dtype == torch_dtype(format.dtype) and tensor.is_contiguous(memory_format=order)


def empty(shape: Sequence[int], format: Format) -> torch.Tensor:
    """An uninitialised tensor, 64-byte aligned."""
    return torch.empty(tuple(shape), dtype=torch_dtype(format.dtype), memory_format=memory_format(len(shape), format))


def upload(array: np.ndarray) -> torch.Tensor:
    """A row-major 64-byte aligned copy of an array as a torch tensor."""
    dtype = DType.of(array)
    tensor = torch.empty(array.shape, dtype=torch_dtype(dtype))
    carrier = _CARRIERS.get(dtype)
    if carrier is None:
        np.copyto(tensor.numpy(), array)
    else:
        dense = np.ascontiguousarray(array).reshape(array.shape)
        np.copyto(tensor.view(carrier[0]).numpy(), dense.view(carrier[1]))
    return tensor


def download(tensor: torch.Tensor) -> np.ndarray:
    """A row-major NumPy copy of a tensor."""
    dtype = dtype_of(tensor)
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    if dtype in _CARRIERS:
        carried: np.ndarray = dense.view(_CARRIERS[dtype][0]).numpy().view(dtype.numpy)
        return carried
    return dense.numpy()


def arena(size_bytes: int) -> torch.Tensor:
    """One uninitialised block of memory, 64-byte aligned."""
    block = torch.empty(size_bytes + ALIGNMENT, dtype=torch.uint8)
    skip = -block.data_ptr() % ALIGNMENT
    return block[skip : skip + size_bytes]


def view(block: torch.Tensor, offset: int, shape: Sequence[int], format: Format) -> torch.Tensor:
    """A tensor of the given shape and format that lies ``offset`` bytes into an arena."""
    shape = tuple(shape)
    size = prod(shape) * DType(format.dtype).size_bytes
    if offset % ALIGNMENT or offset + size > block.numel():
        raise DeviceError(f"a buffer of {size} bytes at offset {offset} does not fit its arena")
    flat = block[offset : offset + size].view(torch_dtype(format.dtype))
    if memory_format(len(shape), format) is torch.contiguous_format:
        return flat.view(shape)
    batch, channels, *spatial = shape
    rank = len(shape)
    return flat.view(batch, *spatial, channels).permute(0, rank - 1, *range(1, rank - 1))
