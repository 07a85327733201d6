"""Our kernels for tensor cores, by generation of GPU: where each runs, which tiles of it race, how it is made."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.cuda_steps import generation_of
from tamis.engine.plan import DeviceInfo
from tamis.formats import ampere, hopper
from tamis.formats.dtype import DType
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import FILLING_TILES, TILES, Epilogue, Tile, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.implicit_gemm_ampere import (
    AMPERE_TILES,
    MOST_SIDE,
    AmpereTile,
    deepest_ampere,
    implicit_gemm_ampere,
    shared_bytes_on,
)
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.specification import MOST_ELEMENTS, Kernel
from tamis.kernels.cuda.stationary import implicit_gemm_stationary, no_stationary_tiles, stationary_tiles
from tamis.kernels.cuda.tile_prior import predicted_us

OLDEST_AMPERE = 80
# From this level on the kernels for all GPUs race where those for one generation do, too.
ALL_GENERATIONS = 4
# What the copy engine's im2col mode can say: the reach of a filter's taps, and the corners of where its first one lies.
# Then the same with one axis more, for groups.
_WIDEST_TAP, _WIDEST_CORNER, _WIDEST_STRIDE = 255, 127, 8
_WIDEST_TAP_OF_GROUPS, _WIDEST_CORNER_OF_GROUPS = 31, 15
# How many tiles race, dense and 2:4 each; above the last level all do.
_TILES_BY_LEVEL = (1, 2, 3, 4, 8)
# Tiles whose weights stay in registers take turns with the others, and come first: where both race, these were the
# faster ones nearly always, which the model cannot tell where memory binds (docs/design/0014). From this level on they
# take no other tile's place, and so many of them race.
_STATIONARY_LEVEL = 3
_STATIONARY_BY_LEVEL = {3: 2, 4: 4}
_STATIONARY_SLOWEST = 1.5  # times as long as the best of the others, by the model
# A tile that fills the last turn races where it should take so much of the time that the best of the others does.
_FILLING = 0.98
# A tile whose filters or pixels are mostly padding is left out, unless it has as few as the smallest.
_LEAST_USE = 0.6


class Generation(Protocol):
    """A kernel, dense and 2:4, and what of the tactic depends on it.

    The parameters of a choice are ``parameters`` and the fields of a tile.
    """

    name: str

    def __hash__(self) -> int: ...

    def refuses(self, shape: Convolution, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Why the kernel does not run, or does not race, for a shape on a CUDA device; None when it does."""
        ...

    def parameters(self, device: DeviceInfo) -> dict[str, Any]:
        """What all choices for a device share, ``architecture`` among them: the one to compile for."""
        ...

    def tiles(
        self, shape: Convolution, device: DeviceInfo, *, sparse: bool, residual: bool = False, level: int = 5
    ) -> Sequence[Tile | AmpereTile]:
        """The tiles that race at an optimization level; each is as deep as shared memory allows.

        ``residual``: one is added.
        """
        ...

    def tile(self, parameters: Mapping[str, Any]) -> Tile | AmpereTile:
        """The tile of a choice."""
        ...

    def kernel(
        self, shape: Convolution, parameters: Mapping[str, Any], dtype: DType, epilogue: Epilogue, *, sparse: bool
    ) -> Kernel:
        """The launch of a choice."""
        ...

    def packed(self, weight: np.ndarray, filters: int, *, sparse: bool, stationary: bool = False) -> np.ndarray:
        """A weight [filters, taps, channels] in 16 bits, as the kernel reads it in tiles of so many filters.

        ``stationary``: into registers, where it stays.
        """
        ...

    def left_out(self, shape: Convolution, *, sparse: bool) -> str | None:
        """Why a form of the kernel has no tile for a shape; None when each has."""
        ...


class Hopper:
    """``wgmma`` and the copy engine, on Hopper alone."""

    name = "tamis.hopper"

    def refuses(self, shape: Convolution, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Other GPUs; taps, pads and strides that the copy engine has no room for."""
        if device.architecture != "sm_90":
            return f"needs Hopper's instructions (sm_90); this is {device.architecture}"
        return (
            None
            if _fits_copies(shape)
            else "the filter, its pads or its strides are larger than the copy engine allows"
        )

    def parameters(self, device: DeviceInfo) -> dict[str, Any]:
        """The architecture with what only it has, and how many blocks may stay."""
        return {"architecture": "sm_90a", "multiprocessors": device.cores}

    def tiles(
        self, shape: Convolution, device: DeviceInfo, *, sparse: bool, residual: bool = False, level: int = 5
    ) -> Sequence[Tile]:
        """Those that should be the fastest first (``tamis.kernels.cuda.tile_prior``), below level 5 only a few of them.

        Steps are divided only where most of the GPU would be idle, and each block gets two of them at least.
        """
        found = []
        smallest = deepest(*TILES[0], sparse=sparse, residual=residual)
        for sizes in TILES:
            tile = deepest(*sizes, sparse=sparse, residual=residual)
            part = shape.part(tile.filters)
            if tile.split > 1 and (2 * tile.count(shape) > device.cores or part.steps < 2 * tile.split):
                continue
            if shape.groups > 1 and tile.cluster > 1:  # these share the pixels' channels, groups do not
                continue
            if _is_of_use(part, tile.filters * tile.cluster, tile.pixels, smallest):
                found.append(tile)
        lines = line_tiles(shape, sparse=sparse, residual=residual)
        found += [tile for tile in lines if _line_use(shape, tile) >= _LEAST_USE]
        held = [
            tile
            for tile in stationary_tiles(shape, sparse=sparse, residual=residual)
            if (
                _line_use(shape, tile) >= _LEAST_USE
                if tile.lines
                else _is_of_use(shape, tile.filters, tile.pixels, smallest)
            )
        ]

        def predicted(tile: Tile) -> float:
            return predicted_us(shape, tile, device.cores, sparse=sparse, residual=residual)

        filling = [deepest(*sizes, sparse=sparse, residual=residual) for sizes in FILLING_TILES]
        fullest = min(filling, key=predicted)
        if predicted(fullest) < _FILLING * min(map(predicted, found)):
            found.append(fullest)
        best = sorted(found, key=predicted)
        # Where memory binds the model likes them all; those that read pixels the fewest times were the fastest.
        held = sorted(held, key=lambda tile: (predicted(tile), -tile.filters, -tile.pixels))
        longest = _STATIONARY_SLOWEST * predicted(best[0])
        worthy = [tile for tile in held if predicted(tile) <= longest]
        if level < _STATIONARY_LEVEL:
            return _in_turns(worthy, best)[: _TILES_BY_LEVEL[level]]
        if level < len(_TILES_BY_LEVEL):
            return _in_turns(worthy[: _STATIONARY_BY_LEVEL[level]], best[: _TILES_BY_LEVEL[level]])
        return _in_turns(worthy, best) + held[len(worthy) :]

    def tile(self, parameters: Mapping[str, Any]) -> Tile:
        """From the parameters of a choice."""
        return Tile(**{field.name: parameters[field.name] for field in dataclasses.fields(Tile)})

    def kernel(
        self, shape: Convolution, parameters: Mapping[str, Any], dtype: DType, epilogue: Epilogue, *, sparse: bool
    ) -> Kernel:
        """See ``implicit_gemm_hopper``, ``implicit_gemm_stationary``."""
        tile, multiprocessors = self.tile(parameters), parameters["multiprocessors"]
        make = implicit_gemm_stationary if tile.stationary else implicit_gemm_hopper
        return make(shape, tile, dtype, multiprocessors, epilogue, sparse=sparse)

    def packed(self, weight: np.ndarray, filters: int, *, sparse: bool, stationary: bool = False) -> np.ndarray:
        """See ``formats.hopper``."""
        pack = hopper.pack_stationary if stationary else hopper.pack_hopper
        return pack(weight, filters // hopper.ROWS, sparse=sparse).data

    def left_out(self, shape: Convolution, *, sparse: bool) -> str | None:
        """That sums are too long for weights to stay in registers."""
        return no_stationary_tiles(shape, sparse=sparse)


class Ampere:
    """``mma`` and ``mma.sp``, on Ampere and all GPUs since."""

    name = "tamis.ampere"

    def refuses(self, shape: Convolution, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Older GPUs, large images, and at most levels what the kernel for Hopper can do there."""
        if generation_of(device) < OLDEST_AMPERE:
            return f"needs the tensor cores of Ampere or newer (sm_80); this is {device.architecture}"
        elements = shape.batch * shape.height * shape.width * shape.channels
        if elements > MOST_ELEMENTS:
            return f"{elements} elements; the kernels are for up to {MOST_ELEMENTS}"
        top, left, bottom, right = shape.pads
        if not shape.is_product and max(shape.height + top + bottom, shape.width + left + right) > MOST_SIDE:
            return f"padded images of more than {MOST_SIDE} pixels a side"
        if config.optimization_level < ALL_GENERATIONS and HOPPER.refuses(shape, device, config) is None:
            return f"the kernels for Hopper are raced instead; level {ALL_GENERATIONS} races these too"
        return None

    def parameters(self, device: DeviceInfo) -> dict[str, Any]:
        """The device's own architecture: none of its special features is used."""
        return {"architecture": device.architecture}

    def tiles(
        self, shape: Convolution, device: DeviceInfo, *, sparse: bool, residual: bool = False, level: int = 5
    ) -> Sequence[AmpereTile]:
        """Those that are not mostly padding, at all levels."""
        limit = shared_bytes_on(generation_of(device))
        tiles = [deepest_ampere(*sizes, sparse=sparse, limit=limit) for sizes in AMPERE_TILES]
        parts = {tile: shape.part(tile.filters) for tile in tiles}
        return [tile for tile in tiles if _is_of_use(parts[tile], tile.filters, tile.pixels, tiles[0])]

    def tile(self, parameters: Mapping[str, Any]) -> AmpereTile:
        """From the parameters of a choice."""
        return AmpereTile(**{field.name: parameters[field.name] for field in dataclasses.fields(AmpereTile)})

    def kernel(
        self, shape: Convolution, parameters: Mapping[str, Any], dtype: DType, epilogue: Epilogue, *, sparse: bool
    ) -> Kernel:
        """See ``implicit_gemm_ampere``."""
        return implicit_gemm_ampere(shape, self.tile(parameters), dtype, epilogue, sparse=sparse)

    def packed(self, weight: np.ndarray, filters: int, *, sparse: bool, stationary: bool = False) -> np.ndarray:
        """See ``formats.ampere``; no weights stay in registers."""
        return ampere.pack_ampere(weight, filters // ampere.ROWS, sparse=sparse).data

    def left_out(self, shape: Convolution, *, sparse: bool) -> str | None:
        """The kernel has one form."""
        return None


HOPPER, AMPERE = Hopper(), Ampere()


def _in_turns(first: Sequence[Tile], second: Sequence[Tile]) -> list[Tile]:
    """One of the first, one of the second, and so on; what is left of the longer ones behind."""
    turns = itertools.zip_longest(first, second)
    return [tile for pair in turns for tile in pair if tile is not None]


def _fits_copies(shape: Convolution) -> bool:
    """Whether im2col mode has room for a filter's taps, pads and strides."""
    alone = shape.groups == 1
    tap = _WIDEST_TAP if alone else _WIDEST_TAP_OF_GROUPS
    corner = _WIDEST_CORNER if alone else _WIDEST_CORNER_OF_GROUPS
    down, across = ((size - 1) * step for size, step in zip(shape.kernel, shape.dilations, strict=True))
    top, left, bottom, right = shape.pads
    corners = (-top, -left, bottom - down, right - across)
    within = -corner - 1 <= min(corners) and max(corners) <= corner
    return within and max(down, across) <= tap and max(shape.strides) <= _WIDEST_STRIDE


def _is_of_use(shape: Convolution, filters: int, pixels: int, smallest: Tile | AmpereTile) -> bool:
    """Whether tiles of this size are not mostly padding, more of it than in the smallest."""
    return (filters == smallest.filters or _use(shape.filters, filters) >= _LEAST_USE) and (
        pixels == smallest.pixels or _use(shape.pixels, pixels) >= _LEAST_USE
    )


def _line_use(shape: Convolution, tile: Tile) -> float:
    """The smaller part of filters and pixels of a tile of whole lines that has a place in the result."""
    high, wide = shape.output
    pixels = _use(high, tile.lines) * tile.lines * wide / tile.pixels
    return min(_use(shape.part(tile.filters).filters, tile.filters), pixels)


def _use(size: int, tile: int) -> float:
    """Which part of the tiles that cover ``size`` is not padding."""
    return size / (-(-size // tile) * tile)
