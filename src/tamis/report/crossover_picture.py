"""Crossover maps as pictures: a heat map for each kind of layer and batch. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import textwrap
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.engine.crossover import Cell, CrossoverMap, LayerKind
from tamis.errors import ConfigError, MissingLibrary
from tamis.files import replaced_file
from tamis.report.crossover import cells_of, conditions, panels, sentences, title, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Red to blue stays apart for every common kind of colour blindness; white is "as fast as dense".
_COLOURS = "RdBu"
_INK, _FAINT, _BLANK = "#222222", "#8a8a8a", "#ececec"
# The colour scale reaches as far as the data, but neither closer to 1 nor further than these ratios.
_LEAST_SCALE, _MOST_SCALE = 1.25, 2.0

# Inches: a cell, what stands above and below a panel and beside it, the headline, the colour bar's column, a note.
_CELL, _ABOVE, _BELOW, _BESIDE = 0.6, 0.8, 0.6, 0.85
_HEADLINE, _BAR, _NOTE, _MARGIN = 0.62, 1.35, 0.2, 0.35
# Characters of the small text on an inch; a low estimate, so that lines end before the edge.
_TO_THE_INCH = 15


def check_picture(path: Path) -> None:
    """Whether a picture can be drawn into a file of that name.

    Raises ``ConfigError`` for a name of another kind, ``MissingLibrary`` without matplotlib.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"the picture cannot be {path.name}", remedy=f"name a file {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingLibrary("pictures need matplotlib", remedy="run 'pip install matplotlib'")


def draw_crossover(measured: CrossoverMap, path: Path) -> None:
    """Draw a map into a file; the ending of its name gives the format.

    Raises ``ConfigError``, ``MissingLibrary`` or ``OutputError``.
    """
    check_picture(path)
    figure = crossover_figure(measured)
    with replaced_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150, facecolor="white", metadata=_without_date(path.suffix))


def crossover_figure(measured: CrossoverMap) -> Figure:
    """The picture: rows of kinds, columns of batches; what has no sparse time at all stands below in words."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (loaded when it is needed)
    from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415

    drawn = [(k, b) for k, b in panels(measured) if any(c.ratio is not None for c in cells_of(measured, k, b))]
    kinds = [kind for kind in measured.kinds if any(kind == k for k, _ in drawn)]
    batches = [batch for batch in measured.batches if any(batch == b for _, b in drawn)]
    side = max(_CELL * len(measured.sizes), 2.6)
    width = max((_BESIDE + side) * len(batches) + _BAR, 6.5)
    columns = int((width - 2 * _MARGIN) * _TO_THE_INCH)
    facts = _facts(measured, columns)
    others = sentences(measured, [panel for panel in panels(measured) if panel not in drawn])
    notes = [part for line in others for part in textwrap.wrap(line, columns)]
    row, top = _ABOVE + side + _BELOW, _HEADLINE + _NOTE * len(facts)
    height = top + row * len(kinds) + _NOTE * len(notes) + _MARGIN
    figure = NewFigure(figsize=(width, height))
    FigureCanvasAgg(figure)
    question = "From which layer size does 2:4 sparsity pay?"
    figure.text(_MARGIN / width, 1 - 0.4 / height, question, fontsize=14, fontweight="bold", color=_INK)
    for index, fact in enumerate(facts):
        figure.text(_MARGIN / width, 1 - (_HEADLINE + _NOTE * index) / height, fact, fontsize=8.5, color=_INK)
    for kind, batch in drawn:
        left = _BESIDE + (_BESIDE + side) * batches.index(batch)
        bottom = height - top - row * kinds.index(kind) - _ABOVE - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _panel(axes, measured, kind, batch, _scale(measured), int(side * _TO_THE_INCH))
    if drawn:
        upper = height - top - _ABOVE - 0.35
        place = ((width - _BAR + 0.3) / width, (upper - side + 0.7) / height, 0.16 / width, (side - 0.7) / height)
        _colour_bar(figure, _scale(measured), place)
    for index, note in enumerate(reversed(notes)):
        figure.text(_MARGIN / width, (_MARGIN + _NOTE * index) / height, note, fontsize=8.5, color=_INK)
    return figure


def _facts(measured: CrossoverMap, columns: int) -> list[str]:
    meaning = (
        "Numbers: speed of the best 2:4 candidate over the best dense one; outlined where 2:4 wins by more than noise"
    )
    if any(cell.reasons for cell in measured.cells):
        meaning += "; hatched: no sparse tactic can run it"
    if any(cell.left_out for cell in measured.cells):
        meaning += "; dot: not measured"
    return [part for line in (*conditions(measured), meaning) for part in textwrap.wrap(line, columns)]


def _scale(measured: CrossoverMap) -> float:
    """How far the colours reach from 1 to both sides, as a power of two."""
    ratios = [abs(log2(cell.ratio)) for cell in measured.cells if cell.ratio]
    return min(max([log2(_LEAST_SCALE), *ratios]), log2(_MOST_SCALE))


def _panel(axes: Axes, measured: CrossoverMap, kind: LayerKind, batch: int, scale: float, columns: int) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    sizes, cells = measured.sizes, cells_of(measured, kind, batch)
    ratios = np.full((len(sizes), len(sizes)), np.nan)
    for cell in cells:
        row, column = sizes.index(cell.c_in), sizes.index(cell.c_out)
        if cell.ratio is not None:
            ratios[row, column] = log2(cell.ratio)
            colour = "white" if abs(ratios[row, column]) > 0.62 * scale else _INK
            weight = "bold" if cell.pays else "normal"
            axes.text(column, row, f"{cell.ratio:.2f}", ha="center", va="center", color=colour, fontweight=weight)
        else:
            hatch = None if cell.left_out else "////"
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=_BLANK, edgecolor="white", hatch=hatch)
            axes.add_patch(box)
            if cell.left_out:
                axes.text(column, row, "·", ha="center", va="center", color=_FAINT)
    axes.imshow(ratios, cmap=_COLOURS, vmin=-scale, vmax=scale, origin="lower", aspect="equal")
    _outline(axes, cells, sizes)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes], fontsize=8.5)
    axes.set_yticks(range(len(sizes)), [str(size) for size in sizes], fontsize=8.5)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylim(-0.5, len(sizes) - 0.5)
    axes.set_xticks(np.arange(len(sizes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(sizes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("outputs", fontsize=9, color=_INK)
    axes.set_ylabel("inputs", fontsize=9, color=_INK)
    answer = textwrap.wrap(verdict(cells, measured.dense_only), columns)
    style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "color": _INK}
    axes.annotate("\n".join(answer), (0, 1), (0, 5), fontsize=8.5, va="bottom", linespacing=1.25, **style)
    above = (0, 10 + 12.5 * len(answer))
    axes.annotate(title(measured, kind, batch), (0, 1), above, fontsize=10, fontweight="bold", **style)


def _outline(axes: Axes, cells: tuple[Cell, ...], sizes: tuple[int, ...]) -> None:
    """A line around the sizes at which 2:4 pays."""
    paying = {(sizes.index(cell.c_in), sizes.index(cell.c_out)) for cell in cells if cell.pays}
    style: dict[str, Any] = {"color": _INK, "linewidth": 2.2, "solid_capstyle": "round", "zorder": 5, "clip_on": False}
    for row, column in paying:
        for step in (-1, 1):
            if (row, column + step) not in paying:
                axes.plot([column + step / 2] * 2, [row - 0.5, row + 0.5], **style)
            if (row + step, column) not in paying:
                axes.plot([column - 0.5, column + 0.5], [row + step / 2] * 2, **style)


def _colour_bar(figure: Figure, scale: float, place: tuple[float, float, float, float]) -> None:
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import Normalize  # noqa: PLC0415

    axes = figure.add_axes(place)
    bar = figure.colorbar(ScalarMappable(Normalize(-scale, scale), _COLOURS), cax=axes)
    ticks = [ratio for ratio in (0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0) if abs(log2(ratio)) <= scale + 1e-9]
    bar.set_ticks([log2(ratio) for ratio in ticks], labels=[f"{ratio:g}x" for ratio in ticks], fontsize=8.5)
    bar.outline.set_visible(False)
    axes.set_title("2:4\nfaster", fontsize=8.5, color=_INK)
    axes.set_xlabel("dense\nfaster", fontsize=8.5, color=_INK)
    axes.tick_params(length=0)


def _without_date(suffix: str) -> dict[str, Any]:
    """Equal maps give equal files."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
