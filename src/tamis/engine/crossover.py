"""A crossover map: dense against 2:4 over a grid of layer sizes, as frozen data and as JSON.

The map says from which size 2:4 pays on one device. It holds what was measured and nothing derived from it, save
the verdict ``pays``, for which the race's rule of noise is needed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tamis.engine.encoding import decode, encode
from tamis.engine.plan import DeviceInfo, Timing
from tamis.errors import ConfigError
from tamis.files import versioned_json
from tamis.formats.dtype import DType

CROSSOVER_VERSION = 1

LayerKind: TypeAlias = Literal["linear", "conv1x1", "conv3x3"]
LAYER_KINDS: tuple[LayerKind, ...] = ("linear", "conv1x1", "conv3x3")


@dataclass(frozen=True)
class Runner:
    """The fastest right candidate of one side of a cell."""

    tactic: str
    precision: DType
    timing: Timing
    parameters: Mapping[str, Any] = field(default_factory=dict)


def ratio_of(dense: Runner | None, sparse: Runner | None) -> float | None:
    """How many times as fast as dense 2:4 is; None unless both were measured."""
    return None if dense is None or sparse is None else dense.timing.median_us / sparse.timing.median_us


@dataclass(frozen=True)
class Reason:
    """Why a tactic could not run a layer, or not in 2:4."""

    tactic: str
    text: str


@dataclass(frozen=True)
class Cell:
    """One layer: its size, and the best of both sides.

    Attributes:
        kind: the operator.
        batch: rows of a linear layer, images of a convolution.
        c_in: inputs of each output: columns of the weight, input channels.
        c_out: outputs: rows of the weight, output channels.
        dense: the fastest dense candidate; None when nothing was measured, as where no tactic offers 2:4.
        sparse: the fastest 2:4 candidate; None when none could run, for ``reasons``.
        pays: 2:4 is faster by more than the noise, as a build judges it.
        reasons: refusals and failures, where there is no sparse candidate.
        left_out: why the cell was not measured; empty when it was.
    """

    kind: LayerKind
    batch: int
    c_in: int
    c_out: int
    dense: Runner | None = None
    sparse: Runner | None = None
    pays: bool = False
    reasons: tuple[Reason, ...] = ()
    left_out: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as dense 2:4 is; None unless both were measured."""
        return ratio_of(self.dense, self.sparse)


@dataclass(frozen=True)
class CrossoverMap:
    """All cells of a grid, and how they were measured.

    Attributes:
        version: of this format.
        tamis: version that measured.
        device: where.
        threads: cores that were used.
        precision: what candidates might compute in, beside float32.
        kinds, batches, sizes: the axes of the grid; sizes are those of inputs and of outputs, ascending.
        map_size: height and width of the images of convolutions, in pixels.
        cold: the caches were evicted before each call.
        seconds: what measuring took.
        interrupted: the user stopped it.
        dense_only: tactics that offer layers of this map, but none in 2:4.
        cells: in the order of measuring.
    """

    version: int
    tamis: str
    device: DeviceInfo
    threads: int
    precision: DType
    kinds: tuple[LayerKind, ...]
    batches: tuple[int, ...]
    sizes: tuple[int, ...]
    map_size: int
    cold: bool
    seconds: float
    interrupted: bool
    dense_only: tuple[str, ...]
    cells: tuple[Cell, ...]


def crossover_data(measured: CrossoverMap) -> dict[str, Any]:
    """The map as plain data for JSON."""
    data: dict[str, Any] = encode(measured)
    return data


def crossover_json(measured: CrossoverMap) -> str:
    """The map as JSON, a line for each cell; equal maps give equal text."""
    data = crossover_data(measured)
    cells = ",\n  ".join(json.dumps(cell, allow_nan=False) for cell in data.pop("cells"))
    head = json.dumps(data, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{head},\n "cells": [\n  {cells}\n ]\n}}\n'


def crossover_from_json(text: str | bytes, name: str = "the text") -> CrossoverMap:
    """The inverse of ``crossover_json``. Raises ``ConfigError``, with the ``name`` of the text, for anything else."""
    remedy = "give a file that 'tamis crossover -o FILE.json' wrote"
    data = versioned_json(text, name, "a crossover map", CROSSOVER_VERSION, remedy)
    try:
        measured: CrossoverMap = decode(CrossoverMap, data)
        grid = itertools.product(measured.kinds, measured.batches, measured.sizes, measured.sizes)
        if sorted(grid) != sorted((c.kind, c.batch, c.c_in, c.c_out) for c in measured.cells):
            raise ValueError("its cells are not those of its axes")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{name} is an inconsistent crossover map ({error})", remedy=remedy) from error
    return measured
