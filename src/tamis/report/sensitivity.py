"""Sensitivity and plans: tables for people, and a picture of loss against time saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tamis.files import replaced_file
from tamis.report.crossover_picture import check_picture
from tamis.report.tables import table
from tamis.report.units import counted, microseconds

if TYPE_CHECKING:  # they come with PyTorch and Matplotlib
    from matplotlib.figure import Figure

    from tamis.sparsity import PrunePlan, SensitivityReport

_INK, _FAINT, _PLANNED = "#222222", "#8a8a8a", "#b2182b"
_MOST_LABELS = 12


def sensitivity_report(report: SensitivityReport, plan: PrunePlan | None = None) -> RenderableType:
    """The layers, the cheapest milliseconds first, what was skipped, and the plan."""
    timed = report.whole_us is not None
    where = f"; times of {report.device}, dense {microseconds(report.whole_us)}" if report.whole_us is not None else ""
    rows = [
        (
            row.name,
            row.pattern,
            report.loss_text(row.loss),
            *((_saved(row.saved_us), _price(row.price)) if timed else ()),
        )
        for row in report.ranked
    ]
    columns = ("layer", "pattern", ">alone", *((">saves", ">loss for a ms") if timed else ()))
    return Group(
        Text(f"Each layer pruned alone by magnitude, on {report.data}{where}"),
        Text(),
        table(columns, rows),
        *(Text(f"{skipped.name}: {skipped.reason}") for skipped in report.skipped),
        *(Text(line) for line in plan_lines(plan)),
    )


def plan_lines(plan: PrunePlan | None) -> list[str]:
    """The plan in lines: what to prune, and what was forecast and measured."""
    if plan is None:
        return []
    kind = "the best choice" if plan.exact else "a good choice, perhaps not the best"
    lines = ["", f"Plan for {plan.goal}: prune {counted(len(plan.layers), 'layer')} ({kind} by the sums)"]
    lines += [f"  {layer.name} {layer.pattern}" for layer in plan.layers]
    measured = "" if plan.measured_loss is None else f", measured together {plan.loss_text(plan.measured_loss)}"
    lines.append(f"loss: by the sum {plan.loss_text(plan.loss)}{measured}")
    if plan.whole_us is not None and plan.saved_us is not None:
        after = plan.whole_us - plan.saved_us
        text = f"time: by the sum {microseconds(plan.whole_us)} -> {microseconds(after)} ({plan.whole_us / after:.2f}x)"
        if plan.measured_gain is not None:
            noise = ", which is none beyond the noise" if plan.gain_within_noise else ""
            text += f", whole engine measured {plan.measured_gain:.2f}x{noise}"
        lines.append(text)
    if not plan.holds:
        lines.append("The layers together lose more than the budget: plan again with a smaller one")
    return lines


def draw_sensitivity(report: SensitivityReport, path: Path, plan: PrunePlan | None = None) -> None:
    """Draw loss against time saved (or elements removed) into a file; its ending gives the format.

    Raises ``ConfigError``, ``MissingLibrary`` or ``OutputError``.
    """
    check_picture(path)
    figure = sensitivity_figure(report, plan)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with replaced_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150, facecolor="white", metadata=dates.get(path.suffix, {}))


def sensitivity_figure(report: SensitivityReport, plan: PrunePlan | None = None) -> Figure:
    """A dot for each layer and pattern; those of the plan are red, the cheapest ones are named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (loaded when it is needed)
    from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415

    planned = {(layer.name, layer.pattern) for layer in plan.layers} if plan else set()
    rows = [row for row in report.ranked if math.isfinite(row.loss) and row.loss > 0]
    timed = report.whole_us is not None
    figure = NewFigure(figsize=(8, 5.5))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 0.12, 0.84, 0.74))
    for index, row in enumerate(rows):
        chosen = (row.name, row.pattern) in planned
        across = (row.saved_us or 0.0) if timed else float(row.removed)
        axes.plot(across, row.loss, "o", color=_PLANNED if chosen else _INK if across > 0 else _FAINT, markersize=5)
        if chosen or index < _MOST_LABELS:
            label = f"{row.name} {row.pattern}"
            axes.annotate(label, (across, row.loss), (4, 3), textcoords="offset points", fontsize=7, color=_INK)
    if rows:
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", fontsize=9, color=_FAINT)
    axes.margins(x=0.15)
    axes.set_xlabel("microseconds saved" if timed else "weight elements removed", fontsize=9, color=_INK)
    axes.set_ylabel(_LOSSES[report.proxy], fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.04, 0.94, "What does pruning a layer cost, and what does it save?", fontsize=13, fontweight="bold")
    where = f"; times of {report.device}" if report.device else ""
    told = "; red: in the plan" if planned else ""
    figure.text(0.04, 0.90, f"Each layer pruned alone, on {report.data}{where}{told}", fontsize=8.5, color=_INK)
    return figure


_LOSSES = {
    "sqnr": "power of the error over that of the outputs",
    "loss": "rise of the loss",
    "metric": "fall of the accuracy",
}


def _saved(saved_us: float | None) -> str:
    return microseconds(saved_us) if saved_us else "nothing"


def _price(price: float) -> str:
    return "" if math.isinf(price) else f"{price:.3g}"
