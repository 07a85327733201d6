"""Gathering, scattering and selecting. Negative indices count from the end."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from tamis.devices.aten.binding import Argument, Binding, Prepared, constant_argument, same_type

_index: Any = torch.ops.aten.index.Tensor


def where(binding: Binding) -> Prepared:
    """``aten.where``."""
    condition = binding.argument(0)
    a, b = same_type(binding, [binding.argument(1), binding.argument(2)])

    def into(condition: Any, a: Any, b: Any, out: Any) -> Any:
        return torch.where(condition, a, b, out=out)

    return Prepared(torch.where, (condition, a, b), into if a.dtype is binding.output_dtype else None)


def gather(binding: Binding) -> Prepared:
    """``aten.gather``: known indices are made non-negative now, others at run time."""
    data, indices = binding.argument(0), binding.argument(1)
    axis = int(binding.attributes["axis"]) % len(data.shape)
    shape = binding.output_shape
    if indices.constant is None:
        indices, wrap = _wrapped(indices, data.shape[axis])

        def run(data: Any, indices: Any) -> Any:
            # Three times as fast as indexing by a tensor, which takes negative indices itself.
            return torch.index_select(data, axis, wrap(indices).reshape(-1)).reshape(shape)

        return Prepared(run, (data, indices))
    index = _wrapped(indices, data.shape[axis])[0].known("the index")
    if index.dim() == 0:
        position = int(index)
        return Prepared(
            lambda data: data.select(axis, position),
            (data,),
            lambda data, out: out.copy_(data.select(axis, position)),
        )
    flat = index.reshape(-1)
    if index.dim() == 1:

        def into(data: Any, out: Any) -> Any:
            return torch.index_select(data, axis, flat, out=out)

        same = data.dtype is binding.output_dtype
        return Prepared(lambda data: torch.index_select(data, axis, flat), (data,), into if same else None)
    return Prepared(lambda data: torch.index_select(data, axis, flat).reshape(shape), (data,))


def _wrapped(indices: Argument, size: int) -> tuple[Argument, Callable[[Any], Any]]:
    """Indices as non-negative int64: done now for a constant, else by the returned function at run time."""
    if indices.constant is not None:
        index = indices.constant.to(torch.int64)
        return constant_argument(torch.where(index < 0, index + size, index)), lambda index: index

    def wrap(index: Any) -> Any:
        index = index.long()
        return torch.where(index < 0, index + size, index)

    return indices, wrap


def gather_elements(binding: Binding) -> Prepared:
    """``aten.gather_elements``."""
    data = binding.argument(0)
    axis = int(binding.attributes["axis"]) % len(data.shape)
    indices, wrap = _wrapped(binding.argument(1), data.shape[axis])
    return Prepared(lambda data, index: torch.gather(data, axis, wrap(index)), (data, indices))


def gather_nd(binding: Binding) -> Prepared:
    """``aten.gather_nd``."""
    data, indices = binding.argument(0), binding.argument(1)
    batch_dims = int(binding.attributes.get("batch_dims", 0))
    batch, rank = indices.shape[:batch_dims], len(indices.shape) - 1
    leading = [
        torch.arange(size).reshape([size if other == axis else 1 for other in range(rank)])
        for axis, size in enumerate(batch)
    ]

    def run(data: Any, indices: Any) -> Any:
        return _index(data, [*leading, *indices.long().unbind(-1)])

    return Prepared(run, (data, indices))


_SCATTER_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(binding: Binding) -> Prepared:
    """``aten.scatter_elements``."""
    data = binding.argument(0)
    axis = int(binding.attributes["axis"]) % len(data.shape)
    reduction = str(binding.attributes.get("reduction", "none"))
    indices, wrap = _wrapped(binding.argument(1), data.shape[axis])
    data, updates = same_type(binding, [data, binding.argument(2)])
    if reduction == "none":
        return Prepared(
            lambda data, index, updates: torch.scatter(data, axis, wrap(index), updates),
            (data, indices, updates),
        )
    name = _SCATTER_REDUCTIONS[reduction]
    return Prepared(
        lambda data, index, updates: torch.scatter_reduce(data, axis, wrap(index), updates, name),
        (data, indices, updates),
    )


def scatter_nd(binding: Binding) -> Prepared:
    """``aten.scatter_nd``: rows of the data flattened to a matrix, addressed by one index each."""
    data, indices = binding.argument(0), binding.argument(1)
    data, updates = same_type(binding, [data, binding.argument(2)])
    reduction = str(binding.attributes.get("reduction", "none"))
    depth = indices.shape[-1]
    leading = data.shape[:depth]
    sizes = torch.tensor(leading, dtype=torch.int64)
    strides = torch.tensor([prod(leading[axis + 1 :]) for axis in range(depth)], dtype=torch.int64)
    rows, columns = prod(leading), prod(data.shape[depth:])
    shape = data.shape

    def row_of(indices: Any) -> Any:
        indices = indices.long()
        outside = (indices < -sizes) | (indices >= sizes)
        if indices.is_cuda:
            torch._assert_async(~outside.any())  # no wait for the GPU: the run may be part of a CUDA graph
        elif outside.any():
            # Rows are numbered through all axes: an index beyond its axis would be another row, not an error.
            raise IndexError(f"index {indices[outside][0]} is out of range for {tuple(leading)}")
        return (torch.where(indices < 0, indices + sizes, indices) * strides).sum(-1).reshape(-1)

    def run(data: Any, indices: Any, updates: Any) -> Any:
        result = data.clone(memory_format=torch.contiguous_format).view(rows, columns)
        index, updates = row_of(indices), updates.reshape(-1, columns)
        if reduction == "none":
            result.index_put_((index,), updates)
        elif reduction == "add":
            result.index_add_(0, index, updates)
        else:
            index = index.unsqueeze(-1).expand_as(updates)
            result.scatter_reduce_(0, index, updates, _SCATTER_REDUCTIONS[reduction])
        return result.view(shape)

    return Prepared(run, (data, indices, updates))
