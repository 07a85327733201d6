"""The geometry of a convolution, as the kernels for tensor cores see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tamis.formats.bundles import Bundles, choose_bundles
from tamis.formats.steps import STEP_BYTES
from tamis.kernels.cuda.specification import ceil_divide


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution of NHWC images; a matrix product is one of 1 x 1 images.

    ``kernel``, ``strides`` and ``dilations`` are (vertical, horizontal); ``pads`` (top, left, bottom, right). ``apart``
    has the elements from pixel to pixel, line to line and image to image, None where these follow each other: with
    fewer elements than channels, pixels overlap (Hopper only). Channels and filters are those of all ``groups``.
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    apart: tuple[int, int, int] | None = None
    groups: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, left, bottom, right = self.pads
        spans = [(size - 1) * dilation for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        high = (self.height + top + bottom - spans[0] - 1) // self.strides[0] + 1
        wide = (self.width + left + right - spans[1] - 1) // self.strides[1] + 1
        return high, wide

    @property
    def pixels(self) -> int:
        """Pixels of the result, of all images."""
        return self.batch * self.output[0] * self.output[1]

    @property
    def steps(self) -> int:
        """Taps, times runs of 64 channels: the steps of a product in 16 bits."""
        return self.steps_in(2)

    def steps_in(self, itemsize: int) -> int:
        """Taps, times runs of 128 bytes of channels."""
        return self.kernel[0] * self.kernel[1] * ceil_divide(self.channels * itemsize, STEP_BYTES)

    @property
    def is_product(self) -> bool:
        """Whether every pixel of the result sees just the one at its place."""
        alone = self.kernel == (1, 1) and self.strides == (1, 1) and self.pads == (0, 0, 0, 0)
        return alone and self.apart is None

    def bundles(self, tile: int) -> Bundles:
        """Which groups tiles of so many filters take together, in 16 bits; ``ValueError`` where they cannot."""
        return choose_bundles(self.groups, self.filters, self.channels, tile, STEP_BYTES // 2)

    def part(self, tile: int) -> Convolution:
        """What one bundle is, as a convolution without groups: all of it when there is one group."""
        if self.groups == 1:
            return self
        bundles = self.bundles(tile)
        channels, filters = bundles.merged * bundles.channels, bundles.merged * bundles.filters
        return replace(self, channels=channels, filters=filters, groups=1)
