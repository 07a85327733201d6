"""What a sparsity pattern is: the promise about where a weight's non-zeros may lie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tamis.errors import FormatError

# The last group of an axis may be shorter behind at least so many whole ones: it is then a small part of the axis.
WHOLE_GROUPS = 16


def divides(m: int, size: int) -> bool:
    """Whether groups of ``m`` cover an axis of ``size`` elements: they divide it, or the last of many is shorter.

    A shorter group counts as if zeros followed, which is how kernels pad it. At least ``WHOLE_GROUPS`` must stand in
    front: the three channels of an image are no group, the last three of 479 inputs are.
    """
    return size % m == 0 or size >= WHOLE_GROUPS * m


def misfit(size: int, m: int, *, matrix: bool) -> str | None:
    """What an axis of ``size`` elements is not, so that groups of ``m`` do not fit a weight; None where they do.

    For a ``matrix`` they do where ``divides`` says so. The channels of a convolution must be a multiple of ``m``: no
    kernel for convolutions pads them for each tap.
    """
    if divides(m, size) if matrix else size % m == 0:
        return None
    return f"not a multiple of {m}" + (f", nor {WHOLE_GROUPS * m} or more" if matrix else "")


def fits(shape: Sequence[int], axis: int, m: int) -> bool:
    """Whether a weight of this shape may follow a pattern of groups of ``m`` along an axis; see ``misfit``."""
    return misfit(shape[axis], m, matrix=len(shape) == 2) is None


@dataclass(frozen=True)
class Dense:
    """No promise: any element may be non-zero."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class NM:
    """At most ``n`` non-zeros in an aligned group of ``m`` along the reduction axis; 2:4 is ``NM(2, 4)``.

    The last group of a long axis may be shorter (``divides``).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise FormatError(f"{self.n}:{self.m} is no sparsity pattern", remedy="use 0 < n < m, as in 2:4")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def zeros_in(self, size: int) -> int:
        """How many of the ``size`` elements of a line along the axis are zero, at least."""
        return size // self.m * (self.m - self.n) + max(size % self.m - self.n, 0)

    def is_part_of(self, other: NM) -> bool:
        """Whether every weight of this pattern is one of ``other`` too, as those of 1:4 and 1:2 are 2:4."""
        for start in range(0, math.lcm(self.m, other.m), other.m):
            met = Counter(index // self.m for index in range(start, start + other.m))  # members of each group in it
            if sum(min(self.n, members) for members in met.values()) > other.n:
                return False
        return True


Pattern: TypeAlias = Dense | NM

DENSE = Dense()
TWO_FOUR = NM(2, 4)


def parse_pattern(text: str) -> Pattern:
    """The pattern written as ``"dense"`` or ``"n:m"``; the inverse of ``str``. Else ``FormatError``."""
    if text == "dense":
        return DENSE
    kept, colon, group = text.partition(":")
    if not (colon and kept.isdecimal() and group.isdecimal()):
        raise FormatError(f"'{text}' is no sparsity pattern", remedy='write "dense" or "n:m", such as "2:4"')
    return NM(int(kept), int(group))
