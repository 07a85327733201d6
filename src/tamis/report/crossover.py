"""Crossover maps in text: a table for each kind of layer and batch, and one sentence that answers the question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tamis.engine.crossover import Cell, CrossoverMap, LayerKind
from tamis.report.scatter import scatter, scatter_lines
from tamis.report.tables import table

_NAMES: dict[LayerKind, str] = {
    "linear": "linear",
    "conv1x1": "1x1 convolution",
    "conv3x3": "3x3 convolution",
}
_MOST_REASONS = 2
# A map is the median of many cells: less scatter than that of a single engine already says not to trust it.
# One thread beside another busy program had 1.3.
_SCATTERED = 1.5
NO_SPARSE, NOT_MEASURED = "-", "."


def crossover_report(measured: CrossoverMap) -> RenderableType:
    """How it was measured, all tables, and the sentences."""
    parts: list[RenderableType] = [Text(line) for line in conditions(measured)]
    parts += [
        Text("Each number is how many times as fast as the best dense candidate the best 2:4 candidate is:"),
        Text(
            f"* 2:4 pays, by more than the noise; {NO_SPARSE} no sparse tactic can run it; {NOT_MEASURED} not measured"
        ),
    ]
    for kind, batch in panels(measured):
        if any(cell.ratio is not None for cell in cells_of(measured, kind, batch)):
            parts += [Text(), _table(measured, kind, batch)]
    parts.append(Text())
    parts += [Text(sentence) for sentence in sentences(measured)]
    return Group(*parts)


def conditions(measured: CrossoverMap) -> tuple[str, ...]:
    """Where and how a map was measured, in lines, with a warning when its times scatter."""
    device = measured.device
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    cores = f", {threads}" if device.kind == "cpu" else ""
    caches = "cold caches: inside a network the other layers evict them" if measured.cold else "warm caches"
    left_out = sum(bool(cell.left_out) for cell in measured.cells)
    done = f"{len(measured.cells) - left_out} of {len(measured.cells)} cells in {measured.seconds:.0f} s"
    lines = (
        f"{device.name} ({device.architecture}){cores}, {measured.precision}, Tamis {measured.tamis}",
        f"{done}{', interrupted' if measured.interrupted else ''}; {caches}",
    )
    timings = [side.timing for cell in measured.cells for side in (cell.dense, cell.sparse) if side is not None]
    return (*lines, *scatter_lines(scatter(timings), "Measure", limit=_SCATTERED, typically=True))


def panels(measured: CrossoverMap) -> tuple[tuple[LayerKind, int], ...]:
    """Every kind with every batch, in the order of the axes."""
    return tuple((kind, batch) for kind in measured.kinds for batch in measured.batches)


def cells_of(measured: CrossoverMap, kind: LayerKind, batch: int) -> tuple[Cell, ...]:
    """The cells of one table."""
    return tuple(cell for cell in measured.cells if (cell.kind, cell.batch) == (kind, batch))


def sentences(measured: CrossoverMap, which: Iterable[tuple[LayerKind, int]] | None = None) -> list[str]:
    """A line for each kind and batch, or for some: from which size 2:4 pays.

    A kind that is refused at every size and batch has one line.
    """
    possible = {cell.kind for cell in measured.cells if not cell.reasons}
    lines = []
    for kind, batch in panels(measured) if which is None else which:
        where = title(measured, kind, batch) if kind in possible else _NAMES[kind]
        lines.append(f"{where}: {verdict(cells_of(measured, kind, batch), measured.dense_only)}")
    return list(dict.fromkeys(lines))


def title(measured: CrossoverMap, kind: LayerKind, batch: int) -> str:
    """``linear, 16 rows`` or ``1x1 convolution, batch 16, 14x14``."""
    if kind == "linear":
        return f"{_NAMES[kind]}, {batch} row{'s' if batch > 1 else ''}"
    return f"{_NAMES[kind]}, batch {batch}, {measured.map_size}x{measured.map_size}"


def verdict(cells: Sequence[Cell], dense_only: Iterable[str] = ()) -> str:
    """From which size 2:4 pays, in words; with the ratios there, and with the reason where it never does.

    "From s x s on" means: at every measured size of at least s inputs and s outputs.
    """
    done = [cell for cell in cells if not cell.left_out]
    missing = len(cells) - len(done)
    rest = f"; {missing} of {len(cells)} sizes were not measured" if missing else ""
    if not done:
        return f"not measured: {_most_common(cell.left_out for cell in cells)}"
    raced = [cell for cell in done if cell.ratio is not None]
    refused = len(done) - len(raced)
    if refused and raced:
        rest = f"; at {refused} of {len(cells)} sizes no sparse tactic can run{rest}"
    paying = [cell for cell in done if cell.pays]
    if not raced:
        return f"2:4 never pays: no sparse tactic can run it ({_reasons(done, dense_only)}){rest}"
    if not paying:
        return f"2:4 never pays ({_range(raced)}){rest}"
    if len(paying) == len(done):
        return f"2:4 pays at {_all_of(done, missing)} ({_range(paying)}){rest}"
    region = _region(done)
    if not region:
        return f"2:4 pays at {len(paying)} of {len(done)} sizes ({_range(paying)}), but not at the largest{rest}"
    elsewhere = len(paying) - len(region)
    also = f", and at {elsewhere} of {len(done) - len(region)} smaller or narrower sizes" if elsewhere else ""
    if len(region) == 1:
        size = f"{region[0].c_in} x {region[0].c_out}"
        return f"2:4 pays at {size}, the largest size ({_range(region)}){also}{rest}"
    start = min(_least(cell) for cell in region)
    return f"2:4 pays from {start} x {start} on ({_range(region)}){also}{rest}"


def _all_of(done: Sequence[Cell], missing: int) -> str:
    """All measured sizes, in words that claim nothing of the others."""
    if not missing:
        return "every size"
    return f"all {len(done)} measured sizes" if len(done) > 1 else "the only measured size"


def _region(cells: Sequence[Cell]) -> list[Cell]:
    """All cells from some size on, in both directions, where all of them pay; as many as possible, perhaps none."""
    for size in sorted({_least(cell) for cell in cells}):
        region = [cell for cell in cells if _least(cell) >= size]
        if all(cell.pays for cell in region):
            return region
    return []


def _least(cell: Cell) -> int:
    return min(cell.c_in, cell.c_out)


def _range(cells: Iterable[Cell]) -> str:
    ratios = [cell.ratio for cell in cells if cell.ratio is not None]
    low, high = f"{min(ratios):.2f}x", f"{max(ratios):.2f}x"
    return low if low == high else f"{low} to {high}"


def _reasons(cells: Iterable[Cell], dense_only: Iterable[str]) -> str:
    """The reasons of the tactics that may be sparse, the most frequent first, each once."""
    never = set(dense_only)
    all_reasons = [reason for cell in cells for reason in cell.reasons]
    telling = [reason for reason in all_reasons if reason.tactic not in never] or all_reasons
    texts = [text for text, _ in Counter(f"{reason.tactic}: {reason.text}" for reason in telling).most_common()]
    more = f"; and {len(texts) - _MOST_REASONS} more" if len(texts) > _MOST_REASONS else ""
    return "; ".join(texts[:_MOST_REASONS]) + more if texts else "none of the device's tactics is sparse"


def _most_common(texts: Iterable[str]) -> str:
    return Counter(texts).most_common(1)[0][0]


def _table(measured: CrossoverMap, kind: LayerKind, batch: int) -> RenderableType:
    found = {(cell.c_in, cell.c_out): cell for cell in cells_of(measured, kind, batch)}
    columns = (">inputs \\ outputs", *(f">{size}" for size in measured.sizes))
    rows = ((str(c_in), *(_text(found[c_in, c_out]) for c_out in measured.sizes)) for c_in in measured.sizes)
    return table(columns, rows, title=title(measured, kind, batch))


def _text(cell: Cell) -> str:
    if cell.left_out:
        return f"{NOT_MEASURED} "
    return f"{NO_SPARSE} " if cell.ratio is None else f"{cell.ratio:.2f}{'*' if cell.pays else ' '}"
