"""How much an ONNX model loses when one of its layers is pruned, against the time that this saves on a device.

Losses come from the compiler's own float32 reference, on the graph after all passes: a weight is there what the race
sees, layers that are compiled into one are pruned together, and what lies before a layer is computed once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.estimate import estimate_of, has_weight
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Conv, ConvTranspose
from tamis.compiler.origins import sources_of, weight_sources
from tamis.compiler.passes import run_passes
from tamis.compiler.passes.force_sparsity import pruned_weight, require_magnitudes
from tamis.compiler.perturbed import batches_of, losses
from tamis.compiler.rescue import Model
from tamis.compiler.what_if import WhatIf, naming_culprits, open_what_if
from tamis.devices.base import Device
from tamis.engine.estimate import Estimate
from tamis.errors import ConfigError, SparsityError
from tamis.formats import NM, TWO_FOUR, parse_pattern
from tamis.runtime.session import open_device
from tamis.sparsity import (
    LayerTime,
    MeasuredTimes,
    PrunePlan,
    Sensitivity,
    SensitivityReport,
    Skipped,
    plan_for_time,
    plan_within,
)
from tamis.sparsity.masks import axis_misfit


def measured_times(estimate: Estimate) -> MeasuredTimes:
    """What 2:4 saves in each layer, in the form that ``tamis.sparsity.sensitivity`` takes."""
    layers = tuple(
        LayerTime(layer.name, layer.weights, layer.modules, round(layer.saved_us, 3)) for layer in estimate.layers
    )
    return MeasuredTimes(estimate.device.name, estimate.whole.dense.median_us, layers)


@dataclass(frozen=True)
class Goal:
    """What a plan is made for; one of the three is given.

    Attributes:
        max_loss: the power of the error of the outputs over that of the outputs, at most.
        target_us: microseconds that the model may take.
        speedup: how many times as fast as dense it shall be.
    """

    max_loss: float | None = None
    target_us: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` unless it is one goal that can be reached."""
        if sum(goal is not None for goal in (self.max_loss, self.target_us, self.speedup)) != 1:
            raise ConfigError(
                "there is more than one goal, or none", remedy="give a budget of loss, a time or a speedup"
            )
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise ConfigError(f"the speedup is {self.speedup:g}", remedy="give more than 1")

    def plan(self, report: SensitivityReport) -> PrunePlan:
        """The plan that meets the goal. Raises ``SparsityError`` when there is none."""
        if self.max_loss is not None:
            return plan_within(report, self.max_loss)
        if self.speedup is not None and report.whole_us is not None:
            return plan_for_time(report, report.whole_us / self.speedup)
        return plan_for_time(report, self.target_us or 1.0)


def measure_sensitivity(
    model: Model,
    config: BuildConfig,
    patterns: Sequence[str] = ("2:4",),
    *,
    times: Estimate | Literal["measure"] | None = "measure",
    goal: Goal | None = None,
    progress: Progress | None = None,
    measured: Callable[[SensitivityReport], None] | None = None,
) -> tuple[SensitivityReport, PrunePlan | None]:
    """What pruning each layer of a model costs and saves, and a plan.

    Args:
        model: a file, its bytes, or a parsed model.
        config: as for a build; its samples are what the model is run on, random ones if there are none.
        patterns: those to try on each layer.
        times: an estimate of the same model, perhaps of another machine; ``"measure"`` to measure one here; None for
            losses without times.
        goal: what the plan is made for; None for no plan.
        progress: called with (stage, done, total, what is being done).
        measured: called with the report before the plan is made, so that it is not lost when nothing reaches the goal.

    Returns:
        The report and the plan. The plan's layers were pruned together and the loss was measured, and so was the
        gain of an engine with them if times were measured here.

    Raises as ``ModelSensitivity`` and ``estimate_sparsity``, and ``SparsityError`` for a goal that cannot be reached.
    """
    tell = progress or (lambda stage, done, total, detail: None)
    start = time.monotonic()
    subject = ModelSensitivity(model, config, patterns, tell)  # its errors come before anything is timed
    what_if = open_what_if(model, config, TWO_FOUR, tell) if times == "measure" else None
    estimate = times if isinstance(times, Estimate) else None
    if what_if is not None:
        estimate = estimate_of(what_if, weight_sources(model), start, tell)
    report = subject.report(estimate)
    if measured is not None:
        measured(report)
    if goal is None:
        return report, None
    plan = subject.measured(goal.plan(report))
    return report, plan if what_if is None else subject.timed(plan, what_if)


class ModelSensitivity:
    """A model whose layers are pruned one at a time.

    Args:
        model: a file, its bytes, or a parsed model.
        config: shapes, samples and seed are used, and the device that the reference runs on.
        patterns: those to try on each layer.
        tell: called with (stage, done, total, what is being done).

    Raises ``SparsityError`` for a pattern that fits no layer, ``ModelError`` for weights with NaN, ``InputError`` for
    samples that do not fit, and beside that what a build raises.
    """

    def __init__(self, model: Model, config: BuildConfig, patterns: Sequence[str], tell: Progress) -> None:
        self._config, self._tell = config, tell
        self._patterns = tuple(_pattern(text) for text in dict.fromkeys(patterns))
        if not self._patterns:
            raise SparsityError("no pattern is given", remedy="give 2:4")
        tell("import", 0, 1, "")
        self._device: Device = open_device(config.device)
        self._graph: Graph = run_passes(import_onnx(model, config.shapes))
        self._sources = weight_sources(model)
        self._users: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            if has_weight(node, self._graph):
                self._users.setdefault(node.inputs[1], []).append(node)
        if not self._users:
            raise SparsityError(
                "the model has no layer with a constant weight", remedy="give a model with Conv, Gemm or MatMul layers"
            )
        for constant in self._users:
            require_magnitudes(self._graph, constant)
        self._batches = batches_of(self._graph, self._device, config)
        self._work = [
            (constant, pattern)
            for constant in self._users
            for pattern in self._patterns
            if self._misfit(constant, pattern) is None
        ]
        for pattern in self._patterns:
            if all(pattern != other for _, other in self._work):
                first = next(iter(self._users))
                raise SparsityError(
                    f"{pattern} fits none of the {len(self._users)} weights; "
                    f"'{self._users[first][0].name}': {self._misfit(first, pattern)}",
                    remedy="use a pattern whose groups divide the inputs of the layers",
                )

    def report(self, times: Estimate | None) -> SensitivityReport:
        """All layers, with the times of an estimate of the same model.

        Raises ``ConfigError`` for an estimate of another model.
        """
        saved = self._saved(times)
        changes = [partial(self._change, {constant: pattern}) for constant, pattern in self._work]
        names = [self._users[constant][0].name for constant, _ in self._work]
        found = losses(
            self._graph,
            self._device,
            self._batches,
            changes,
            lambda done, total: self._tell("sensitivity", done, total, names[done % len(names)]),
        )
        rows = tuple(
            self._row(constant, pattern, lost, saved)
            for (constant, pattern), lost in zip(self._work, found, strict=True)
        )
        done_with = {constant for constant, _ in self._work}
        skipped = tuple(
            Skipped(f"{nodes[0].name} at {pattern}" if constant in done_with else nodes[0].name, reason)
            for constant, nodes in self._users.items()
            for pattern in (self._patterns if constant in done_with else self._patterns[:1])
            if (reason := self._misfit(constant, pattern)) is not None
        )
        count = len(self._batches)
        kind = "given" if self._config.samples else "random"
        return SensitivityReport(
            proxy="sqnr",
            dense=None,
            data=f"{count} {kind} {'batch' if count == 1 else 'batches'}",
            rows=rows,
            skipped=skipped,
            whole_us=None if times is None else times.whole.dense.median_us,
            device="" if times is None else times.device.name,
        )

    def measured(self, plan: PrunePlan) -> PrunePlan:
        """The plan with the loss of all its layers pruned together."""
        change = partial(self._change, self._constants_of(plan))
        (lost,) = losses(self._graph, self._device, self._batches, [change])
        return replace(plan, measured_loss=lost)

    def timed(self, plan: PrunePlan, what_if: WhatIf) -> PrunePlan:
        """The plan with the gain of an engine in which just its layers are pruned."""
        with naming_culprits(what_if.track):
            names = {name for name in self._constants_of(plan) if name in what_if.prunable}
            whole = what_if.against_dense(what_if.with_pruned(names))
        what_if.track.cache.save()
        return replace(plan, measured_gain=whole.gain, gain_within_noise=not whole.pays)

    def _constants_of(self, plan: PrunePlan) -> dict[str, NM]:
        by_name = {nodes[0].name: constant for constant, nodes in self._users.items()}
        return {by_name[layer.name]: _pattern(layer.pattern) for layer in plan.layers}

    def _change(self, patterns: Mapping[str, NM]) -> dict[str, np.ndarray]:
        return {name: pruned_weight(self._graph, name, pattern) for name, pattern in patterns.items()}

    def _misfit(self, constant: str, pattern: NM) -> str | None:
        """Why a pattern does not fit a weight."""
        for node in self._users[constant]:
            if isinstance(node.op, Conv | ConvTranspose) and node.op.groups > 1:
                return f"grouped convolution ({node.op.groups} groups), for which there is no sparse kernel"
        shape, axis = self._graph.constants[constant].shape, self._graph.sparsity[constant].axis
        return axis_misfit(shape[axis], 1, pattern, matrix=len(shape) == 2)

    def _saved(self, times: Estimate | None) -> dict[str, float] | None:
        """Microseconds that 2:4 saves in each weight's layers."""
        if times is None:
            return None
        known = {layer.name: layer.saved_us for layer in times.layers}
        names = {node.name for nodes in self._users.values() for node in nodes}
        if names != known.keys():
            raise ConfigError(
                f"the estimate is of another model, '{times.model}': its layers are not those of this one",
                remedy="estimate this model with the same shapes",
            )
        return {c: round(sum(known[node.name] for node in nodes), 3) for c, nodes in self._users.items()}

    def _row(self, constant: str, pattern: NM, lost: float, saved: Mapping[str, float] | None) -> Sensitivity:
        found = [sources_of(node, self._sources) for node in self._users[constant]]
        weights = tuple(dict.fromkeys(name for names, _ in found for name in names))
        modules = tuple(dict.fromkeys(name for _, names in found for name in names))
        saved_us = None if saved is None else saved[constant] if pattern.is_part_of(TWO_FOUR) else 0.0
        inputs = self._graph.constants[constant].shape[self._graph.sparsity[constant].axis]
        lines = int(self._graph.constants[constant].size) // inputs
        return Sensitivity(
            name=self._users[constant][0].name,
            weights=weights or (constant,),
            modules=modules,
            pattern=str(pattern),
            loss=lost,
            removed=lines * pattern.zeros_in(inputs),
            saved_us=saved_us,
        )


def _pattern(text: str) -> NM:
    pattern = parse_pattern(text)
    if not isinstance(pattern, NM):
        raise SparsityError(f"'{text}' is not an n:m pattern", remedy="write it as 2:4")
    return pattern
