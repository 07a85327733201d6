"""A plan: which layers to prune at which pattern, so that a budget of accuracy or a goal of speed is met.

The losses of single layers are added up, and so are the times that they save. Both are approximations: errors of layers
interact, and layers are not alone in an engine. So a plan carries what was measured of the whole, once it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tamis.errors import ConfigError, SparsityError
from tamis.files import versioned_json
from tamis.formats import NM, parse_pattern
from tamis.sparsity.budget import Choice, Option, least_loss, most_value
from tamis.sparsity.sensitivity_report import (
    WRITERS,
    Proxy,
    Sensitivity,
    SensitivityReport,
    inconsistent,
    loss_text,
    made,
)

PLAN_VERSION = 1


@dataclass(frozen=True)
class PlannedLayer:
    """A layer to prune; fields as those of ``Sensitivity``."""

    name: str
    weights: tuple[str, ...]
    modules: tuple[str, ...]
    pattern: str
    loss: float
    removed: int
    saved_us: float | None


@dataclass(frozen=True)
class PrunePlan:
    """What to prune.

    Attributes:
        goal: what was asked for, in words.
        proxy: what the losses are.
        layers: those to prune, in the order of the model; what is not listed stays dense.
        loss: the sum of their losses.
        saved_us: the sum of the times that they save; None if nobody measured.
        whole_us: the time of the dense model; None if nobody measured.
        exact: no other choice has a better sum.
        max_loss: the budget, when that was the goal.
        measured_loss: the loss of the model with all of them pruned together; None until it is measured.
        measured_gain: how many times as fast the whole engine is; None until it is measured.
        gain_within_noise: that gain is none.
    """

    goal: str
    proxy: Proxy
    layers: tuple[PlannedLayer, ...]
    loss: float
    saved_us: float | None
    whole_us: float | None
    exact: bool
    max_loss: float | None = None
    measured_loss: float | None = None
    measured_gain: float | None = None
    gain_within_noise: bool = False
    version: int = field(default=PLAN_VERSION)

    @property
    def patterns(self) -> dict[str, str]:
        """The pattern of each weight that is to be pruned, by name."""
        return {weight: layer.pattern for layer in self.layers for weight in layer.weights}

    @property
    def holds(self) -> bool:
        """Whether the measured loss is within the budget, as far as there is a budget and it was measured."""
        if self.max_loss is None or self.measured_loss is None:
            return True
        return self.measured_loss <= self.max_loss * (1 + 1e-9)

    def loss_text(self, loss: float) -> str:
        """A loss of this plan in words."""
        return loss_text(self.proxy, loss)

    def __str__(self) -> str:
        head = f"{len(self.layers)} layers to prune, for {self.goal}; {self.loss_text(self.loss)} by their sum"
        if self.measured_loss is not None:
            head += f", {self.loss_text(self.measured_loss)} measured together"
        rows = (f"  {layer.name} {layer.pattern}: {self.loss_text(layer.loss)}" for layer in self.layers)
        return "\n".join((head, *rows))


def plan_within(report: SensitivityReport, max_loss: float) -> PrunePlan:
    """The plan that saves most time while the losses add up to at most ``max_loss``.

    Without times, the plan that removes most weight elements.

    Raises:
        SparsityError: the budget is below zero or not a number, or no layer is within it.
    """
    if not 0 <= max_loss < math.inf:
        raise SparsityError(f"the budget is {max_loss:g}", remedy="give a loss of 0 or more")
    items = _items(report)
    choice = most_value([[Option(row.loss, _value(report, row)) for row in item] for item in items], max_loss)
    goal = f"a loss of at most {max_loss:.4g}"
    plan = _plan(report, items, choice, goal, max_loss)
    if not plan.layers:
        worth = [row for row in report.rows if _value(report, row) > 0]
        if not worth:
            raise _nothing_saves(report)
        least = min(worth, key=lambda row: row.loss)
        raise SparsityError(
            f"no layer can be pruned for {goal}: the least is '{least.name}' at {least.pattern}, with {least.loss:.4g}",
            remedy="allow a larger loss",
        )
    return plan


def plan_for_time(report: SensitivityReport, target_us: float) -> PrunePlan:
    """The plan of least loss with which the model takes at most ``target_us`` microseconds, by the sum of savings.

    Raises:
        SparsityError: no times were measured, the model is that fast already, or even all layers together do not
            save enough.
    """
    if report.whole_us is None:
        raise SparsityError(
            "there are no times to plan by", remedy="measure them: times= in Python, no --no-times on the command line"
        )
    if not 0 < target_us < math.inf:
        raise SparsityError(f"the goal is {target_us / 1e3:g} ms", remedy="give a time above 0")
    needed = report.whole_us - target_us
    goal = f"{target_us / 1e3:.4g} ms ({report.whole_us / target_us:.3g}x)"
    if needed <= 0:
        raise SparsityError(
            f"the dense model takes {report.whole_us / 1e3:.4g} ms, no more than {target_us / 1e3:.4g} ms",
            remedy="ask for less, or do not prune",
        )
    items = _items(report)
    choice = least_loss([[Option(row.loss, _value(report, row)) for row in item] for item in items], needed)
    if choice is None:
        most = sum(max((_value(report, row) for row in item if math.isfinite(row.loss)), default=0.0) for item in items)
        if most <= 0:
            raise _nothing_saves(report)
        fastest = report.whole_us - most
        raise SparsityError(
            f"{goal} is out of reach: with all layers pruned that gain it takes {fastest / 1e3:.4g} ms "
            f"({report.whole_us / fastest:.3g}x)",
            remedy="ask for less speed",
        )
    return _plan(report, items, choice, goal, None)


def plan_json(plan: PrunePlan) -> str:
    """The plan as JSON; equal plans give equal text."""
    return json.dumps(plan_data(plan), indent=1, allow_nan=False) + "\n"


def plan_data(plan: PrunePlan) -> dict[str, Any]:
    """The plan as plain data for JSON; a measured loss that is infinite is the text ``infinite``."""
    data = asdict(plan)
    if plan.measured_loss is not None and math.isinf(plan.measured_loss):
        data["measured_loss"] = "infinite"
    return data


def plan_from_json(text: str | bytes, name: str = "the text") -> PrunePlan:
    """The inverse of ``plan_json``. Raises ``ConfigError``, with the ``name`` of the text, for anything else."""
    data = versioned_json(text, name, "a plan", PLAN_VERSION, WRITERS)
    try:
        layers = tuple(made(PlannedLayer, layer) for layer in data["layers"])
        for layer in layers:
            if not isinstance(parse_pattern(layer.pattern), NM) or not layer.weights:
                raise ValueError(f"'{layer.name}' has no pattern or no weights")
        measured = math.inf if data["measured_loss"] == "infinite" else data["measured_loss"]
        plan: PrunePlan = made(PrunePlan, {**data, "layers": layers, "measured_loss": measured})
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise inconsistent(name, "a plan", error) from error
    return plan


def _items(report: SensitivityReport) -> list[list[Sensitivity]]:
    """The rows of each layer."""
    items: dict[tuple[str, ...], list[Sensitivity]] = {}
    for row in report.rows:
        items.setdefault((row.name, *row.weights), []).append(row)
    return list(items.values())


def _value(report: SensitivityReport, row: Sensitivity) -> float:
    return float(row.removed) if report.whole_us is None else row.saved_us or 0.0


def _plan(
    report: SensitivityReport, items: Sequence[Sequence[Sensitivity]], choice: Choice, goal: str, budget: float | None
) -> PrunePlan:
    rows = [item[option] for item, option in zip(items, choice.options, strict=True) if option is not None]
    layers = tuple(
        PlannedLayer(row.name, row.weights, row.modules, row.pattern, row.loss, row.removed, row.saved_us)
        for row in rows
    )
    return PrunePlan(
        goal=goal,
        proxy=report.proxy,
        layers=layers,
        loss=math.fsum(max(row.loss, 0.0) for row in rows),
        saved_us=None if report.whole_us is None else math.fsum(row.saved_us or 0.0 for row in rows),
        whole_us=report.whole_us,
        exact=choice.exact,
        max_loss=budget,
    )


def _nothing_saves(report: SensitivityReport) -> SparsityError:
    return SparsityError(
        f"pruning saves no time in any of the {len(report.rows)} rows measured",
        remedy=f"do not prune for {report.device or 'this device'}; 'tamis estimate' says why",
    )
