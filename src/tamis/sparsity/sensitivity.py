"""How much a torch model loses when a single layer is pruned, for each layer and pattern.

One layer is pruned at a time, the loss is measured, and the layer is put back bit for bit. Against the time that each
layer saves on a device, measured by ``tamis estimate``, that says which layers are worth pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM, TWO_FOUR
from tamis.sparsity.activations import hessian
from tamis.sparsity.calibration import Calibration, Identity, as_calibration, measure
from tamis.sparsity.hold import is_sharded
from tamis.sparsity.masks import LayerChoice, as_pattern
from tamis.sparsity.named_layers import find_layers, planned_layers
from tamis.sparsity.probes import Loss, Metric, Probe, replaced
from tamis.sparsity.prune_plan import PrunePlan
from tamis.sparsity.pruning import (
    Exclude,
    Method,
    Progress,
    SparseGPT,
    cannot_compensate,
    chosen_layers,
    compensate_layer,
    mask_of,
    scoring,
    unique_layers,
    wanted_layers,
)
from tamis.sparsity.sensitivity_report import MeasuredTimes, Sensitivity, SensitivityReport, Skipped

# The value that a layer's weight has when it is pruned.
Values = Callable[[LayerChoice, NM], torch.Tensor]


@dataclass(frozen=True)
class _Unit:
    """Weights that are pruned together, since they are compiled into one layer; most are alone."""

    name: str
    layers: tuple[LayerChoice, ...]
    saved_us: float | None


def sensitivity(
    model: nn.Module,
    calibration: Calibration,
    *,
    patterns: Sequence[str | NM] = ("2:4",),
    method: Method = "magnitude",
    metric: Metric | None = None,
    loss: Loss | None = None,
    exclude: Exclude = (),
    times: MeasuredTimes | None = None,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Prune one layer at a time and measure what that costs; the model is bit for bit the same afterwards.

    Args:
        model: changed in place meanwhile, and restored, also when something fails. It runs in eval mode.
        calibration: batches, each a tensor, a tuple of positional inputs or a mapping of named ones, gone through
            once for each layer and pattern; or a function that runs the model it is given on data.
        patterns: those to try on each layer.
        method: as for `prune`. What it needs to know of the data is measured on the dense model.
        metric: a function from the model to a number that is larger when the model is better, such as its accuracy;
            what falls is the loss. Without it:
        loss: a function of the model and a batch (of any form) that gives a scalar; what its mean rises is the loss.
            Without both, the loss is the power of the error of the outputs over that of the outputs. All outputs on
            the calibration data are then held.
        exclude: as for `prune`.
        times: what each layer saves on a device: `tamis.compiler.measured_times` of an estimate. Layers that the
            compiler merges are then pruned together.
        progress: called with ("sensitivity", prunings done, prunings in all, name of the layer).

    Raises:
        SparsityError: a pattern fits no layer; a weight is masked already or not finite; the data is missing or does
            not run; the outputs or the metric of the dense model are not finite; the times are those of another
            model.
    """
    wanted = [as_pattern(pattern) for pattern in dict.fromkeys(patterns)]
    if not wanted:
        raise SparsityError("no pattern is given", remedy="give patterns=('2:4',)")
    data = as_calibration(calibration, "sensitivity")
    by_pattern = {
        pattern: [_able(layer, method) for layer in chosen_layers(model, pattern, exclude)] for pattern in wanted
    }
    values, by_pattern = _values(model, by_pattern, method, data, loss)
    able = list({layer.full_name: layer for layers in by_pattern.values() for layer in wanted_layers(layers)}.values())
    if not able:
        first = next(layer for layer in by_pattern[wanted[0]] if layer.reason)
        raise SparsityError(f"no layer can be pruned; '{first.full_name}': {first.reason}")
    units = _units(able, by_pattern[wanted[0]], times)
    work = [(unit, pattern) for unit in units for pattern in wanted if _fits(unit, by_pattern[pattern])]
    probe = Probe(model, data, metric, loss)
    rows = []
    for done, (unit, pattern) in enumerate(work, 1):
        with replaced({_parameter(layer): values(layer, pattern) for layer in unit.layers}):
            lost = probe.lost()
        rows.append(_row(unit, pattern, lost))
        if progress:
            progress("sensitivity", done, len(work), unit.name)
    done_with = {layer.identity for unit, _ in work for layer in unit.layers}
    skipped = {
        layer.full_name: layer.reason or "what it is compiled into cannot follow the pattern"
        for layer in by_pattern[wanted[0]]
        if layer.identity not in done_with
    } | {
        f"{layer.full_name} at {pattern}": layer.reason
        for pattern in wanted
        for layer in by_pattern[pattern]
        if layer.reason and layer.identity in done_with
    }
    return SensitivityReport(
        proxy=probe.proxy,
        dense=probe.dense,
        data="a function" if callable(data) else "the calibration data",
        rows=tuple(rows),
        skipped=tuple(Skipped(*entry) for entry in skipped.items()),
        whole_us=times.whole_us if times else None,
        device=times.device if times else "",
    )


def measured_loss(
    model: nn.Module,
    calibration: Calibration,
    plan: PrunePlan,
    *,
    method: Method = "magnitude",
    metric: Metric | None = None,
    loss: Loss | None = None,
) -> PrunePlan:
    """The plan with the loss of all its layers pruned together; the model is bit for bit the same afterwards.

    Arguments as of `sensitivity`, and the same as there. SparseGPT compensates each layer on the dense model's inputs.

    Raises:
        SparsityError: as `sensitivity`, or the plan is not one of this model.
    """
    data = as_calibration(calibration, "measured_loss")
    layers, patterns = planned_layers(model, plan)
    by_layer = {pattern: [layer for layer in layers if patterns.get(layer.full_name) == pattern] for pattern in
                dict.fromkeys(patterns.values())}  # fmt: skip
    by_layer = {pattern: [_able(layer, method) for layer in chosen] for pattern, chosen in by_layer.items()}
    values, by_layer = _values(model, by_layer, method, data, loss)
    for chosen in by_layer.values():
        for layer in chosen:
            if layer.reason:
                raise SparsityError(layer.reason, layer=layer.full_name)
    probe = Probe(model, data, metric, loss)
    if probe.proxy != plan.proxy:
        raise SparsityError(
            f"the plan's losses are of the kind {plan.proxy}, these of the kind {probe.proxy}",
            remedy="give the same metric= or loss= as for sensitivity",
        )
    changed = {
        _parameter(layer): values(layer, pattern)
        for pattern, chosen in by_layer.items()
        for layer in unique_layers(chosen).values()
    }
    with replaced(changed):
        return replace(plan, measured_loss=probe.lost())


def _able(layer: LayerChoice, method: Method) -> LayerChoice:
    """A layer, with a reason if its weight cannot be put back bit for bit, or the method does not take it."""
    reason = layer.reason
    if not isinstance(layer.weight, nn.Parameter):
        reason = reason or "its weight is computed from other tensors"
    elif is_sharded(layer.weight):
        reason = reason or "its weight is sharded over several processes"
    if isinstance(method, SparseGPT) or method == "sparsegpt":
        reason = reason or cannot_compensate(layer)
    return replace(layer, reason=reason)


def _values(
    model: nn.Module,
    by_pattern: Mapping[NM, list[LayerChoice]],
    method: Method,
    data: Calibration,
    loss: Loss | None,
) -> tuple[Values, dict[NM, list[LayerChoice]]]:
    """How weights are pruned by a method, and the layers by pattern, those with a reason that no data reaches."""
    able = {layer.full_name: layer for layers in by_pattern.values() for layer in wanted_layers(layers)}
    if isinstance(method, SparseGPT) or method == "sparsegpt":
        options = method if isinstance(method, SparseGPT) else SparseGPT()
        hessians = measure(model, data, list(able.values()), hessian)
        reached: set[Identity] = set(hessians)

        def compensated(layer: LayerChoice, pattern: NM) -> torch.Tensor:
            with replaced({_parameter(layer): layer.weight.detach().clone()}):
                mask = compensate_layer(layer, hessians[layer.identity], pattern, options)
                return torch.where(mask, layer.weight.detach(), 0.0)

        values: Values = compensated
    else:
        scored, scores = scoring(model, list(able.values()), method, data, loss)
        reached = {layer.identity for layer in wanted_layers(scored)}

        def masked(layer: LayerChoice, pattern: NM) -> torch.Tensor:
            return torch.where(mask_of(layer, scores(layer), pattern), layer.weight.detach(), 0.0)

        values = masked
    missed = "the calibration data does not reach it"
    return values, {
        pattern: [replace(c, reason=c.reason or (None if c.identity in reached else missed)) for c in layers]
        for pattern, layers in by_pattern.items()
    }


def _units(
    layers: Sequence[LayerChoice], everything: Sequence[LayerChoice], times: MeasuredTimes | None
) -> list[_Unit]:
    """The weights of ``layers``, those together that are compiled into one layer, in the order of the model.

    A compiled layer saves nothing when one of its weights, which are among ``everything``, is not to be pruned.
    """
    unique = unique_layers(layers)
    if times is None:
        return [_Unit(layer.full_name, (layer,), None) for layer in unique.values()]
    group = {identity: {identity} for identity in unique}
    saved = dict.fromkeys(unique, 0.0)
    known = 0
    for time in times.layers:
        found = find_layers(everything, time.weights, time.modules)
        if found is None:
            continue
        known += 1
        if not all(layer.identity in unique for layer in found):
            continue
        together = set().union(*(group[layer.identity] for layer in found))
        for identity in together:
            group[identity] = together
        saved[found[0].identity] += time.saved_us
    if not known:
        raise SparsityError(
            "the times are those of another model: none of their layers is one of this one",
            remedy="export this model and estimate that",
        )
    units = {id(together): together for together in group.values()}
    return [
        _Unit(
            "+".join(unique[identity].full_name for identity in unique if identity in together),
            tuple(unique[identity] for identity in unique if identity in together),
            sum(saved[identity] for identity in together),
        )
        for together in units.values()
    ]


def _fits(unit: _Unit, layers: Sequence[LayerChoice]) -> bool:
    reasons = {layer.full_name: layer.reason for layer in layers}
    return all(reasons[layer.full_name] is None for layer in unit.layers)


def _row(unit: _Unit, pattern: NM, lost: float) -> Sensitivity:
    removed = sum(_removed(layer.weight, layer.axis, pattern) for layer in unit.layers)
    saved = unit.saved_us
    if saved is not None and not pattern.is_part_of(TWO_FOUR):
        saved = 0.0  # no kernel makes use of it
    return Sensitivity(
        name=unit.name,
        weights=tuple(layer.full_name for layer in unit.layers),
        modules=tuple(layer.name for layer in unit.layers),
        pattern=str(pattern),
        loss=lost,
        removed=removed,
        saved_us=saved,
    )


def _removed(weight: torch.Tensor, axis: int, pattern: NM) -> int:
    """How many elements become zero."""
    return weight.numel() // weight.shape[axis] * pattern.zeros_in(weight.shape[axis])


def _parameter(layer: LayerChoice) -> nn.Parameter:
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight
