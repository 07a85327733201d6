"""What a launch is, as data: a source with its constants, and how to call the kernel in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tamis.formats.dtype import DType

# Everything is indexed with 32 bits.
MOST_ELEMENTS = 2**31 - 1
VECTOR_BYTES = 16
ELEMENTS: Mapping[DType, str] = {
    DType.FLOAT32: "float",
    DType.FLOAT16: "float16",
    DType.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    ``in``, ``const`` and ``out``: the address of that input, constant (counted without the cubin) or output of the
    step; ``null``: no tensor; ``int``: a 32-bit number.
    """

    kind: Literal["in", "const", "out", "null", "int"]
    value: int = 0


@dataclass(frozen=True)
class Kernel:
    """A kernel for one shape: what to compile, and how to launch it.

    ``family`` is both the name of the source (``<family>.cu``) and of the function in it. ``grid`` and ``block``
    count blocks and threads along x, y and z.
    """

    family: str
    defines: Mapping[str, str | int | float]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]

    def attributes(self) -> dict[str, Any]:
        """The launch as JSON, for a step."""
        return {
            "function": self.family,
            "grid": list(self.grid),
            "block": list(self.block),
            "arguments": [[argument.kind, argument.value] for argument in self.arguments],
        }


def vector_width(extent: int, *dtypes: DType) -> int:
    """How many elements to move at once along an axis of ``extent``: up to 16 bytes of the narrowest type."""
    width = VECTOR_BYTES // min(dtype.size_bytes for dtype in dtypes)
    while extent % width:
        width //= 2
    return width


def ceil_divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)
