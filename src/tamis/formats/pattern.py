"""What a sparsity pattern is: the promise about where a weight's non-zeros may lie."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from tamis.errors import FormatError


@dataclass(frozen=True)
class Dense:
    """No promise: any element may be non-zero."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class NM:
    """At most ``n`` non-zeros in an aligned group of ``m`` along the reduction axis; 2:4 is ``NM(2, 4)``."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise FormatError(f"{self.n}:{self.m} is no sparsity pattern", remedy="use 0 < n < m, as in 2:4")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

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
