"""How far the results of an engine are from those of another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from tamis.engine.plan import Plan
from tamis.report.tables import table
from tamis.report.units import counted, shape


@dataclass(frozen=True)
class Deviation:
    """One tensor against its reference.

    ``relative`` is the largest error over the largest reference value. A tensor that is not finite where the
    reference is finite (or the other way round) has infinite errors and a cosine of -1.
    """

    name: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    cosine: float
    within: bool


def deviation(name: str, result: np.ndarray, reference: np.ndarray, *, cosine: float, relative: float) -> Deviation:
    """Compare two tensors of one shape; ``within`` says whether both limits hold."""
    if result.shape != reference.shape:
        return Deviation(name, result.shape, float("inf"), float("inf"), -1.0, within=False)
    a, b = (np.asarray(array).astype(np.float64).ravel() for array in (result, reference))
    equal = a == b  # infinities of one sign are equal, NaN never is
    if equal.all():
        return Deviation(name, result.shape, 0.0, 0.0, 1.0, within=True)
    infinite = equal & np.isinf(b)
    a, b = np.where(infinite, 0.0, a), np.where(infinite, 0.0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Deviation(name, result.shape, float("inf"), float("inf"), -1.0, within=False)
    error, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    likeness = min(float(a @ b) / norms, 1.0) if norms else -1.0
    share = error / scale if scale else float("inf")
    return Deviation(name, result.shape, error, share, likeness, likeness >= cosine and share <= relative)


def deviation_table(
    outputs: Sequence[Deviation], layers: Sequence[Deviation] | None, plan: Plan, *, cosine: float, relative: float
) -> RenderableType:
    """Inner values when there are any, then outputs, and the verdict; ``plan`` is that of the engine compared."""
    parts: list[RenderableType] = []
    if layers:
        parts += [table(("value", "shape", ">max abs", ">max rel", ">cosine", ""), map(_row, layers)), Text()]
    parts.append(table(("output", "shape", ">max abs", ">max rel", ">cosine", ""), map(_row, outputs)))
    bound = "" if relative == float("inf") else f", relative error at most {relative:g}"
    verdict = "agrees" if all(output.within for output in outputs) else "does not agree"
    parts.append(Text(f"The engine {verdict} with ONNX Runtime (cosine at least {cosine:g}{bound})"))
    if layers is not None:
        parts.append(Text(_inner_verdict(layers, plan)))
    return Group(*parts)


def deviation_data(outputs: Sequence[Deviation], layers: Sequence[Deviation] | None) -> dict[str, Any]:
    """The same as data."""
    first = first_beyond(layers or ())
    data: dict[str, Any] = {
        "agrees": all(output.within for output in outputs),
        "outputs": [_plain(output) for output in outputs],
    }
    if layers is not None:
        data["layers"] = [_plain(layer) for layer in layers]
        data["first_deviation"] = first.name if first else None
    return data


def first_beyond(deviations: Sequence[Deviation]) -> Deviation | None:
    """The first tensor that is out of its limits."""
    return next((item for item in deviations if not item.within), None)


def _inner_verdict(layers: Sequence[Deviation], plan: Plan) -> str:
    if not layers:
        return f"No inner value could be compared: {_why_closed(plan)}"
    first = first_beyond(layers)
    found = f"The first value that deviates is '{first.name}'" if first else "No inner value deviates"
    return f"{found} ({counted(len(layers), 'value')} compared)"


def _why_closed(plan: Plan) -> str:
    """Why an engine has no values inside, and what to build to see some."""
    chosen = [region for region in plan.regions if region.chosen]
    if not chosen:
        return "the engine computes no value that the model has, but its outputs"
    whole = [region for region in plan.regions if len(region.layers) == len(plan.layers)]
    # Without the tactic of this region, another one may run everything.
    options = " ".join(f"--exclude-tactic {name}" for name in dict.fromkeys(r.tactic for r in [*chosen, *whole]))
    how = "one region runs all layers" if chosen[0] in whole else "regions run its layers"
    return f"{how}. Build with {options} to look inside"


def _plain(item: Deviation) -> dict[str, Any]:
    data = asdict(item)
    return {key: None if value == float("inf") else value for key, value in data.items()}


def _row(item: Deviation) -> tuple[str, ...]:
    return (
        item.name,
        shape(item.shape),
        f"{item.absolute:.2e}",
        f"{item.relative:.2e}",
        f"{item.cosine:.7f}",
        "" if item.within else "DEVIATES",
    )
