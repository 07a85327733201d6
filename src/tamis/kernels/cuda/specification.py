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
# Those that only the matrix products read and write.
EIGHT_BITS: Mapping[DType, str] = {DType.INT8: "int8", DType.FLOAT8_E4M3: "float8_e4m3"}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    ``in``, ``const`` and ``out``: the address of that input, constant (counted without the cubin) or output of the
    step; ``null``: no tensor; ``int``: a 32-bit number; ``map``: that one of the kernel's tensor maps, by value.
    """

    kind: Literal["in", "const", "out", "null", "int", "map"]
    value: int = 0


@dataclass(frozen=True)
class TensorMap:
    """How Hopper's copy engine finds 128 bytes of pixels, swizzled: 64 channels, or 128 in 8 bits.

    Attributes:
        mode: ``rows`` of a matrix; the pixels that ``taps`` of a filter see, in im2col mode; or ``lines`` of an image.
        tensor: which of the step's inputs; NHWC or [pixels, channels].
        image: (n, h, w); a matrix is (pixels, 1, 1).
        box: pixels of a copy, or of a line of it.
        low, high: ``taps``: corners (w, h) of the box in which a filter's first tap lies: its first place, and its last
            one less the last pixel.
        strides: ``taps``: of the filter, (w, h).
        lines: ``lines``: of a copy.
        apart: elements from pixel to pixel, line to line and image to image, where these do not just follow each other.
        windows: from how many places of a pixel, each 16 bytes behind the one before, a copy may take ``channels``; 0
            where it has no more channels.
    """

    mode: Literal["rows", "taps", "lines"]
    tensor: int
    dtype: DType
    channels: int
    image: tuple[int, int, int]
    box: int
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (0, 0)
    strides: tuple[int, int] = (1, 1)
    lines: int = 1
    apart: tuple[int, int, int] | None = None
    windows: int = 0

    def attributes(self) -> dict[str, Any]:
        """The map as JSON; ``apart`` and ``windows`` only where they are given."""
        attributes: dict[str, Any] = {
            "mode": self.mode, "tensor": self.tensor, "dtype": str(self.dtype), "channels": self.channels,
            "image": list(self.image), "box": self.box, "low": list(self.low), "high": list(self.high),
            "strides": list(self.strides), "lines": self.lines,
        }  # fmt: skip
        attributes |= {"apart": list(self.apart)} if self.apart else {}
        return attributes | ({"windows": self.windows} if self.windows else {})


@dataclass(frozen=True)
class Kernel:
    """A kernel for one shape: what to compile, and how to launch it.

    ``family`` is the name of the source (``<family>.cu``), and of the function in it unless ``defines`` give that a
    name of its own, ``KERNEL``. ``grid`` and ``block`` count blocks and threads along x, y and z; ``shared_bytes`` is
    the shared memory that a launch asks for. ``place``: which argument is the number of elements from pixel to pixel of
    the output; the next one is that in front of the first. Both may become other multiples of eight.
    """

    family: str
    defines: Mapping[str, str | int | float]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0
    maps: tuple[TensorMap, ...] = ()
    place: int | None = None

    @property
    def function(self) -> str:
        """The name of the function."""
        return str(self.defines.get("KERNEL", self.family))

    def attributes(self) -> dict[str, Any]:
        """The launch as JSON, for a step."""
        attributes: dict[str, Any] = {
            "function": self.function,
            "grid": list(self.grid),
            "block": list(self.block),
            "arguments": [[argument.kind, argument.value] for argument in self.arguments],
            "overlaps": True,  # as every source of this folder does, see overlap.h
        }
        if self.shared_bytes:
            attributes["shared_bytes"] = self.shared_bytes
        if self.maps:
            attributes["maps"] = [map_.attributes() for map_ in self.maps]
        if self.place is not None:
            attributes["place"] = self.place
        return attributes


def vector_width(extent: int, *dtypes: DType) -> int:
    """How many elements to move at once along an axis of ``extent``: up to 16 bytes of the narrowest type."""
    width = VECTOR_BYTES // min(dtype.size_bytes for dtype in dtypes)
    while extent % width:
        width //= 2
    return width


def ceil_divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)
