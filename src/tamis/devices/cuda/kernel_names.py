"""Which kernels a step launches, under the names that the driver sees (CUPTI, by way of PyTorch's profiler)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch

_MARK = "tamis step "
_NOT_KERNELS = ("Memcpy", "Memset", _MARK)


def kernel_names(parts: Sequence[Callable[[], None]]) -> list[tuple[str, ...]]:
    """Run the parts once, one after the other, and name the kernels of each, in the order in which they started.

    Every part is waited for, so that its kernels lie within its range on the common clock.
    """
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for part in parts:
        part()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as profiler:
        for number, part in enumerate(parts):
            with torch.profiler.record_function(f"{_MARK}{number}"):
                part()
                torch.cuda.synchronize()
    starts: dict[int, float] = {}
    kernels: list[tuple[float, str]] = []
    for event in profiler.events() or ():
        if str(event.device_type).endswith("CPU"):
            if event.name.startswith(_MARK):
                starts[int(event.name.removeprefix(_MARK))] = event.time_range.start
        elif not event.name.startswith(_NOT_KERNELS):
            kernels.append((event.time_range.start, event.name))
    return assign(kernels, [starts[number] for number in range(len(parts))])


def assign(kernels: Sequence[tuple[float, str]], starts: Sequence[float]) -> list[tuple[str, ...]]:
    """Names by part: ``kernels`` are (start, name) and ``starts`` the ascending times at which the parts began."""
    names: list[list[str]] = [[] for _ in starts]
    for start, name in sorted(kernels):
        number = bisect_right(starts, start) - 1
        if number >= 0:
            names[number].append(name)
    return [tuple(each) for each in names]
