"""Crossover maps made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tamis.engine import Cell, CrossoverMap, DeviceInfo, LayerKind, Reason, Runner, Timing
from tamis.formats.dtype import DType

DEVICE = DeviceInfo("cpu", "a fake", "fake64", 4, ("mul",), {"fakelib": "1.0"})
REFUSED = Reason("stream", "a 3x3 convolution is not a matrix product")


def timing(median_us: float) -> Timing:
    return Timing(median_us, median_us * 0.9, median_us * 1.1, 9)


def cell(c_in: int, c_out: int, ratio: float, kind: LayerKind = "linear", batch: int = 16) -> Cell:
    dense = Runner("library", DType.FLOAT32, timing(100.0), {"rank": 2})
    sparse = Runner("stream", DType.BFLOAT16, timing(100.0 / ratio))
    return Cell(kind, batch, c_in, c_out, dense, sparse, pays=ratio > 1.03)


def cells(rows: Mapping[int, Sequence[float | None | str]], sizes: Sequence[int], batch: int = 16) -> list[Cell]:
    """A table by number of inputs: a ratio, None where no sparse tactic can run, or why a cell was left out."""
    found = []
    for c_in, values in rows.items():
        for c_out, value in zip(sizes, values, strict=True):
            if isinstance(value, float):
                found.append(cell(c_in, c_out, value, batch=batch))
            elif value is None:
                found.append(Cell("linear", batch, c_in, c_out, reasons=(REFUSED,)))
            else:
                found.append(Cell("linear", batch, c_in, c_out, left_out=value))
    return found


def make_map(found: Sequence[Cell], *, interrupted: bool = False) -> CrossoverMap:
    return CrossoverMap(
        version=1,
        tamis="0.1.0",
        device=DEVICE,
        threads=2,
        precision=DType.BFLOAT16,
        kinds=tuple(dict.fromkeys(c.kind for c in found)),
        batches=tuple(sorted({c.batch for c in found})),
        sizes=tuple(sorted({c.c_in for c in found})),
        map_size=14,
        cold=True,
        seconds=12.5,
        interrupted=interrupted,
        dense_only=("library",),
        cells=tuple(found),
    )


def mixed_map() -> CrossoverMap:
    """Two sizes: linear with all that a cell can be, and a convolution that no sparse tactic can run."""
    linear = cells({64: (0.8, "the time budget was spent"), 128: (None, 1.7)}, (64, 128))
    library = Reason("library", "nothing to say")
    convolution = [
        Cell("conv3x3", 16, c_in, c_out, reasons=(library, REFUSED)) for c_in in (64, 128) for c_out in (64, 128)
    ]
    return make_map([*linear, *convolution])
