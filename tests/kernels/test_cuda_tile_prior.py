"""The model that says which tiles race, against what an H100 measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tamis.kernels.cuda.implicit_gemm import TILES, Convolution, Tile, deepest, line_tiles
from tamis.kernels.cuda.tile_prior import predicted_us

# Of each layer: filters, pixels, groups, cluster, split, resident blocks, lines (0 for none, or one), and microseconds.
MEASURED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "measured_tiles.json").read_text())
MULTIPROCESSORS = 132


def shape_of(case: dict[str, Any]) -> Convolution:
    *sizes, kernel, strides, pads = case["shape"]
    return Convolution(*sizes, tuple(kernel), tuple(strides), tuple(pads))


def key(tile: Tile) -> tuple[int, ...]:
    several = (number if number > 1 else 0 for number in (tile.cluster, tile.split, tile.resident))
    return (tile.filters, tile.pixels, tile.groups, *several, tile.lines)


def loss(case: dict[str, Any], kept: int) -> float:
    """How many times as long as the fastest the best of the ``kept`` tiles takes that the model likes most."""
    shape, options = shape_of(case), {"sparse": case["sparse"], "residual": case["residual"]}
    tiles = [deepest(*sizes, **options) for sizes in TILES] + line_tiles(shape, **options)
    predicted = {key(tile): predicted_us(shape, tile, MULTIPROCESSORS, **options) for tile in tiles}
    times = {tuple(row[:-1]): row[-1] for row in case["times"] if tuple(row[:-1]) in predicted}
    assert len(times) > 5
    liked = sorted(times, key=lambda tile: predicted[tile])[:kept]
    return min(times[tile] for tile in liked) / min(times.values())


@pytest.mark.parametrize(("kept", "worst", "mean"), [(3, 1.09, 1.015), (6, 1.09, 1.01), (12, 1.03, 1.005)])
def test_the_fastest_tiles_are_kept(kept: int, worst: float, mean: float) -> None:
    losses = [loss(case, kept) for case in MEASURED]
    assert max(losses) <= worst
    assert statistics.mean(losses) <= mean


def test_predictions_are_of_the_measured_size() -> None:
    for case in MEASURED:
        shape, options = shape_of(case), {"sparse": case["sparse"], "residual": case["residual"]}
        tiles = [deepest(*sizes, **options) for sizes in TILES] + line_tiles(shape, **options)
        best = min(predicted_us(shape, tile, MULTIPROCESSORS, **options) for tile in tiles)
        assert 0.4 < best / case["times"][0][-1] < 1.2, case["case"]
