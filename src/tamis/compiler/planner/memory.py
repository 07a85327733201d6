"""Memory: lifetimes of all buffers, and offsets in one arena for those that steps write into.

Offsets are given greedily, largest buffer first, each at the lowest place where it meets no buffer that is
alive at the same time (greedy by size; Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference", 2020). The largest live set is a lower bound, and the plan keeps both figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A block of memory that is needed from step ``first`` to step ``last``, both inclusive."""

    name: str
    size_bytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Iterable[Lifetime]) -> tuple[Mapping[str, int], int]:
    """Offsets in bytes by name, and the size of the arena."""
    placed: list[tuple[int, Lifetime]] = []
    for lifetime in sorted(lifetimes, key=lambda x: (-x.size_bytes, x.first, x.name)):
        offset = 0
        for start, other in sorted(placed, key=lambda item: item[0]):
            if not other.meets(lifetime):
                continue
            if offset + aligned(lifetime.size_bytes) <= start:
                break
            offset = max(offset, start + aligned(other.size_bytes))
        placed.append((offset, lifetime))
    total = max((offset + aligned(x.size_bytes) for offset, x in placed), default=0)
    return {x.name: offset for offset, x in placed}, total


def peak_bytes(lifetimes: Iterable[Lifetime], steps: int) -> int:
    """The largest sum of sizes that are alive at one step."""
    change = [0] * (steps + 2)
    for lifetime in lifetimes:
        change[max(lifetime.first, 0)] += lifetime.size_bytes
        change[lifetime.last + 1] -= lifetime.size_bytes
    alive = peak = 0
    for delta in change:
        alive += delta
        peak = max(peak, alive)
    return peak


def aligned(size_bytes: int) -> int:
    """The size rounded up to the alignment of the arena."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
