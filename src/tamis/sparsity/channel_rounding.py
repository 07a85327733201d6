"""How many channels to keep: multiples that the hardware likes and that 2:4 fits afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis.errors import ConfigError

_MULTIPLES = (16, 32, 64)
_NOISE = 0.02  # a size counts as slower than another only by more


def kept_channels(channels: int, remove: float, multiple: int, groups: int) -> int:
    """Channels to keep of `channels` when about `remove` of them are to go.

    The nearest multiple, ties towards keeping; at least one multiple. In each of `groups` groups of a convolution a
    multiple of four is left (where there are four), so that the groups still fit 2:4, and equally many.
    """
    per_group = channels // groups
    fours = groups * (4 if per_group % 4 == 0 else 1)
    step = math.lcm(multiple, fours)
    if step > channels:
        return channels
    return min(max(step * math.floor((channels - remove) / step + 0.5), step), channels)


def useful_multiple(table: str | Path | Mapping[str, Any], kind: str = "conv3x3") -> int:
    """16, 32 or 64: the smallest whose multiples are all worth having on a device.

    A size is not worth having if a larger one is as fast. Layers of equal input and output channels are compared, at
    each batch, dense or 2:4, whichever is faster. A table with no odd multiple of 16 (of 32) cannot speak for 16 (32).

    Args:
        table: a crossover map (`tamis crossover -o map.json`), or its data.
        kind: of layers: linear, conv1x1 or conv3x3.

    Raises:
        ConfigError: not a crossover map, or nothing of that kind was measured.
    """
    try:
        data = table if isinstance(table, Mapping) else json.loads(Path(table).read_text())
        times = _times(data, kind)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"not a crossover map: {error}", remedy="write one by 'tamis crossover -o map.json'"
        ) from error
    if not times:
        raise ConfigError(
            f"the crossover map has no measured {kind} layer", remedy="measure that kind, or name another"
        )
    for multiple in _MULTIPLES[:-1]:
        sizes = {size for by_size in times.values() for size in by_size if size % multiple == 0}
        spoken_for = any(size % (2 * multiple) for size in sizes)
        if spoken_for and not any(_useless(by_size, multiple) for by_size in times.values()):
            return multiple
    return _MULTIPLES[-1]


def _times(data: Mapping[str, Any], kind: str) -> dict[int, dict[int, float]]:
    """Microseconds by batch and by channels."""
    times: dict[int, dict[int, float]] = {}
    for cell in data["cells"]:
        runners = [cell[side] for side in ("dense", "sparse") if cell.get(side)]
        if cell["kind"] == kind and cell["c_in"] == cell["c_out"] and runners:
            best = min(float(runner["timing"]["median_us"]) for runner in runners)
            times.setdefault(cell["batch"], {})[cell["c_in"]] = best
    return times


def _useless(by_size: Mapping[int, float], multiple: int) -> bool:
    """Whether, among multiples of `multiple`, a larger size is as fast as a smaller one."""
    sizes = [size for size in by_size if size % multiple == 0]
    return any(
        by_size[larger] <= by_size[size] * (1 + _NOISE) and size % (2 * multiple)
        for size in sizes
        for larger in sizes
        if larger > size
    )
