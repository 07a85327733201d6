"""Reductions, running sums and searches along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tamis.devices.aten.binding import Binding, Prepared
from tamis.errors import DeviceError


def _mean(x: Any, axes: list[int], keep: bool) -> Any:
    if x.dtype.is_floating_point:
        return torch.mean(x, axes, keep)
    return torch.mean(x.to(torch.float64), axes, keep)


def _sum(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _prod(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in reversed(axes):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _l1(x: Any, axes: list[int], keep: bool) -> Any:
    return _sum(x.abs(), axes, keep)


def _l2(x: Any, axes: list[int], keep: bool) -> Any:
    if x.dtype.is_floating_point:
        return torch.linalg.vector_norm(x, 2, axes, keep)
    return torch.sqrt(_sum(x * x, axes, keep).to(torch.float64))


def _sum_square(x: Any, axes: list[int], keep: bool) -> Any:
    return _sum(x * x, axes, keep)


def _log_sum(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Any, axes: list[int], keep: bool) -> Any:
    return torch.logsumexp(x if x.dtype.is_floating_point else x.to(torch.float64), axes, keep)


_REDUCERS: dict[str, Callable[[Any, list[int], bool], Any]] = {
    "l1": _l1,
    "l2": _l2,
    "log_sum": _log_sum,
    "log_sum_exp": _log_sum_exp,
    "max": torch.amax,
    "mean": _mean,
    "min": torch.amin,
    "prod": _prod,
    "sum": _sum,
    "sum_square": _sum_square,
}
# Reductions that are one torch call able to write where it is told, for floating point.
_INTO: dict[str, Callable[..., Any]] = {
    "max": torch.amax, "mean": torch.mean, "min": torch.amin, "sum": torch.sum,
}  # fmt: skip


def reduce(binding: Binding) -> Prepared:
    """``aten.reduce``."""
    kind, keep = str(binding.attributes["kind"]), bool(binding.attributes["keep"])
    axes = [int(axis) for axis in binding.attributes["axes"]]
    x = binding.argument(0)
    reducer = _REDUCERS[kind]
    if not axes:
        # For torch no axes means all of them; here it means a reduction over single elements.
        return Prepared(lambda x: reducer(x.unsqueeze(-1), [-1], False), (x,))
    direct = _INTO.get(kind)
    if direct is None or not x.dtype.is_floating_point or x.dtype is not binding.output_dtype:
        return Prepared(lambda x: reducer(x, axes, keep), (x,))

    def into(x: Any, out: Any) -> Any:
        return direct(x, axes, keep, out=out)

    return Prepared(lambda x: direct(x, axes, keep), (x,), into)


def reduces_into(kind: str) -> bool:
    """Whether this kind of reduction can write into given memory without a copy."""
    return kind in _INTO


def arg_reduce(binding: Binding) -> Prepared:
    """``aten.arg_reduce``: the first extreme element, or the last."""
    a = binding.attributes
    axis, keep = int(a["axis"]), bool(a["keep"])
    search: Callable[..., Any] = torch.argmax if a["kind"] == "max" else torch.argmin
    x = binding.argument(0)
    if not a.get("last"):
        return Prepared(lambda x: search(x, axis, keep), (x,))
    top = x.shape[axis] - 1
    return Prepared(lambda x: top - search(torch.flip(x, (axis,)), axis, keep), (x,))


def top_k(binding: Binding) -> Prepared:
    """``aten.top_k``: sorted, the lower index first among equals.

    A stable sort, since ``torch.topk`` leaves the order of equal elements open.
    """
    a = binding.attributes
    k, axis, largest = int(a["k"]), int(a["axis"]), bool(a.get("largest", True))

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)

    return Prepared(run, (binding.argument(0),))


def cum_sum(binding: Binding) -> Prepared:
    """``aten.cum_sum``: forward or from the end, with or without the element itself."""
    a = binding.attributes
    x = binding.argument(0)
    axis = int(a["axis"]) % max(len(x.shape), 1)
    dtype, size = x.dtype, x.shape[axis]
    if a.get("reverse"):
        exclusive = bool(a.get("exclusive"))

        def backward(x: torch.Tensor) -> torch.Tensor:
            turned = torch.flip(x, (axis,))
            total = _exclusive(turned, axis, size) if exclusive else turned.cumsum(axis, dtype=dtype)
            return torch.flip(total, (axis,))

        return Prepared(backward, (x,))
    if a.get("exclusive"):
        return Prepared(lambda x: _exclusive(x, axis, size), (x,))

    def into(x: Any, out: Any) -> Any:
        return torch.cumsum(x, axis, dtype=dtype, out=out)

    return Prepared(lambda x: torch.cumsum(x, axis, dtype=dtype), (x,), into)


def _exclusive(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The sum of what comes before each element; exact also when an element is infinite."""
    result = torch.zeros_like(x, memory_format=torch.contiguous_format)
    result.narrow(axis, 1, size - 1).copy_(x.narrow(axis, 0, size - 1))
    return result.cumsum_(axis)


def triangle(binding: Binding) -> Prepared:
    """``aten.triangle``."""
    diagonal = int(binding.attributes.get("diagonal", 0))
    cut: Callable[..., Any] = torch.triu if binding.attributes["upper"] else torch.tril
    if len(binding.output_shape) < 2:
        raise DeviceError("a triangle needs a matrix", layer=binding.layer)

    def into(x: Any, out: Any) -> Any:
        return cut(x, diagonal, out=out)

    return Prepared(lambda x: cut(x, diagonal), (binding.argument(0),), into)
