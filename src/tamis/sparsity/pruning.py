"""Choose which weights of a model become zero, by any of several scores, and hold them from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM
from tamis.sparsity.activations import channel_squares, from_matrices, hessian, require_finite, weight_matrices
from tamis.sparsity.calibration import Calibration, Identity, as_calibration, gradients, measure, stages
from tamis.sparsity.compensation import compensate, refit
from tamis.sparsity.hold import PruneReport, describe, held_mask, hold_masks, require_unmasked
from tamis.sparsity.masks import (
    TRANSPOSED,
    LayerChoice,
    as_pattern,
    follows,
    nm_mask,
    prunable,
    require_values,
    unlike,
)
from tamis.sparsity.named_layers import planned_layers
from tamis.sparsity.prune_plan import PrunePlan
from tamis.sparsity.scores import Scores, channel_norms, magnitude_scores, taylor_scores, wanda_scores

Exclude = Iterable[str] | Callable[[str, nn.Module], bool]
Loss = Callable[[nn.Module, Any], torch.Tensor]
Progress = Callable[[str, int, int, str], None]

_NOT_REACHED = "the calibration data does not reach it"


@dataclass(frozen=True)
class SparseGPT:
    """How to prune with compensation of the surviving weights.

    Attributes:
        damping: added to the diagonal of each layer's Hessian, as a fraction of its mean.
        block: columns between updates of all columns behind them; changes the speed only.
        refit: solve for the best survivors exactly when all are chosen, by least squares. Costs (outputs x
            survivors of a row ^ 3 / 3) multiplications a layer: cheap up to about a thousand columns.
    """

    damping: float = 0.01
    block: int = 128
    refit: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf") or self.block < 1:
            raise SparsityError("damping must be positive and finite, block at least 1", remedy="leave them out")


Method = str | SparseGPT | Scores


def prune(
    model: nn.Module,
    pattern: str | NM = "2:4",
    *,
    plan: PrunePlan | Mapping[str, str | NM] | None = None,
    exclude: Exclude = (),
    method: Method = "magnitude",
    calibration: Calibration | None = None,
    loss: Loss | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Mask all weights of `model` that the pattern fits, and hold the masks from now on.

    The state dict then has `weight`'s values under `parametrizations.weight.original` and the mask beside it,
    until `finalize` bakes the zeros in. The parameters stay the same objects, so an optimiser made before
    still works.

    Args:
        model: changed in place.
        pattern: `"2:4"`, another N:M, or an `NM`.
        plan: what to prune at which pattern, instead of everything at one: a plan of `tamis.sparsity.sensitivity` or
            `tamis sensitivity`, or patterns by name of weight. All else is left alone.
        exclude: names of modules or weights to leave alone, `*` and `?` allowed (`"encoder.0.*"`), or a
            function of (module name, module). A weight shared with an excluded layer is left alone too.
        method: what is kept. `"magnitude"`: large weights. `"wanda"`: weights that are large times the norm of
            their inputs. `"taylor"`: weights without which the loss changes most. `"sparsegpt"`, or a
            `SparseGPT` with options: weights whose loss the others cannot make up for; those others are changed
            to do so, layer by layer, each on the inputs that the layers pruned before give it. Or a function
            from a layer to scores in the shape of its weight, of which the highest are kept.
        calibration: for all but magnitude: batches, each a tensor, a tuple of positional inputs or a mapping of
            named ones, gone through several times; or a function that runs the model it is given on data. The
            model runs in eval mode.
        loss: for taylor, a function of the model and a batch (of any form) that gives a scalar.
        progress: called with ("prune", layers done, layers in all, name of the layer).

    Raises:
        SparsityError: the model has no layer that the pattern fits, or not one that the plan names; a weight is masked
            already or not finite; a
            name of `exclude` matches no layer; calibration data is missing, does not run or holds NaN; a score
            has a wrong shape. The model is then as it was, unless SparseGPT fails at a later layer, when those
            before it stay pruned.
    """
    wanted = as_pattern(pattern)
    if plan is None:
        layers = chosen_layers(model, wanted, exclude)
        patterns: Mapping[str, NM] = {layer.full_name: wanted for layer in layers}
    else:
        if exclude:
            raise SparsityError("plan= and exclude= are both given", remedy="leave layers out of the plan instead")
        layers, patterns = planned_layers(model, plan)
        _require_ready(layers)
    if isinstance(method, SparseGPT) or method == "sparsegpt":
        options = method if isinstance(method, SparseGPT) else SparseGPT()
        layers = _compensated(model, layers, patterns, options, as_calibration(calibration, "sparsegpt"), progress)
        return PruneReport(tuple(describe(layer, patterns.get(layer.full_name, wanted)) for layer in layers))
    layers, scores = scoring(model, layers, method, calibration, loss)
    masks: dict[Identity, torch.Tensor] = {}  # layers that share a weight share the mask
    unique = unique_layers(wanted_layers(layers))
    for done, (identity, layer) in enumerate(unique.items(), 1):
        masks[identity] = mask_of(layer, scores(layer), patterns[layer.full_name])
        if progress:
            progress("prune", done, len(unique), layer.full_name)
    # only now, so that an error above leaves the model as it was
    for layer in wanted_layers(layers):
        hold_masks([(layer, masks[layer.identity])], patterns[layer.full_name])
    return PruneReport(tuple(describe(layer, patterns.get(layer.full_name, wanted)) for layer in layers))


def scoring(
    model: nn.Module,
    layers: list[LayerChoice],
    method: str | Scores,
    calibration: Calibration | None,
    loss: Loss | None,
) -> tuple[list[LayerChoice], Scores]:
    """The layers, with a reason where the data does not reach them, and how their weights are scored by a method.

    Raises `SparsityError` as of `prune`.
    """
    if method == "magnitude":
        return layers, lambda layer: magnitude_scores(layer.weight)
    if method == "wanda":
        squares = measure(model, as_calibration(calibration, method), wanted_layers(layers), channel_squares)
        layers = [_reached(layer, squares) for layer in layers]
        return layers, lambda layer: wanda_scores(layer.weight, channel_norms(layer, squares[layer.identity]))
    if method == "taylor":
        sums = _taylor(model, as_calibration(calibration, method), loss, wanted_layers(layers))
        return [_reached(layer, sums) for layer in layers], lambda layer: sums[layer.identity]
    if callable(method):
        return layers, method
    raise SparsityError(
        f"no method is called '{method}'", remedy="use magnitude, wanda, taylor or sparsegpt, or give a function"
    )


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor], pattern: str | NM = "2:4") -> PruneReport:
    """Hold masks that were made elsewhere.

    Args:
        model: changed in place.
        masks: by name of weight, as in the state dict; true or not zero where the weight is kept. Weights that
            are not named are left alone. One that several layers share has to be named once.
        pattern: what each mask must follow.

    Raises:
        SparsityError: a name is not that of a weight that the pattern fits, or a mask has another shape than its
            weight or does not follow the pattern. The model is then as it was.
    """
    wanted = as_pattern(pattern)
    layers = {layer.full_name: layer for layer in prunable(model, wanted)}
    held: dict[Identity, torch.Tensor] = {}
    for name, mask in masks.items():
        layer = layers.get(name)
        if layer is None or layer.reason:
            cause = layer.reason if layer else "not a weight of a linear, convolution or attention layer"
            raise SparsityError(f"cannot be masked: {cause}", layer=name, remedy="see tamis.sparsity.prunable")
        require_unmasked(layer, remedy="call finalize first")
        _require_shape(layer, mask, "mask")
        kept = (mask != 0).to(layer.weight.device)
        if not follows(kept, wanted, layer.axis):
            raise SparsityError(f"the mask does not follow {wanted} along axis {layer.axis}", layer=name)
        if not torch.equal(held.setdefault(layer.identity, kept), kept):
            raise SparsityError("another name of this shared weight has another mask", layer=name)
    result = [
        layer if layer.reason or layer.identity in held else replace(layer, reason="no mask given")
        for layer in layers.values()
    ]
    hold_masks([(layer, held[layer.identity]) for layer in wanted_layers(result)], wanted)
    return PruneReport(tuple(describe(layer, wanted) for layer in result))


def chosen_layers(model: nn.Module, pattern: NM, exclude: Exclude) -> list[LayerChoice]:
    """All layers, with a reason where they are not to be pruned; those that are, checked."""
    layers = prunable(model, pattern)
    if not layers:
        raise SparsityError("the model has no linear, convolution or attention layer", remedy="check which model it is")
    if all(layer.reason for layer in layers):
        raise SparsityError(
            f"{pattern} fits none of the {len(layers)} weights; '{layers[0].full_name}': {layers[0].reason}",
            remedy="use a pattern whose groups divide the inputs of a layer",
        )
    if not callable(exclude):
        exclude = tuple(exclude)
        present = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
        for name in exclude:
            if not any(fnmatchcase(each, name) for each in present):
                raise SparsityError(f"exclude '{name}' matches no layer", remedy="name modules as named_modules() does")
    excluded = {layer.identity for layer in layers if _excluded(layer, exclude)}
    layers = [replace(layer, reason="excluded") if layer.identity in excluded else layer for layer in layers]
    _require_ready(layers)
    return layers


def _require_ready(layers: Iterable[LayerChoice]) -> None:
    for layer in wanted_layers(layers):
        require_unmasked(layer, remedy="call finalize first")
        require_values(layer)
        require_finite(layer, layer.weight, "its weight holds", "mend or retrain the model, or exclude it")


def _excluded(layer: LayerChoice, exclude: Exclude) -> bool:
    if callable(exclude):
        return exclude(layer.name, layer.module)
    return any(fnmatchcase(layer.name, name) or fnmatchcase(layer.full_name, name) for name in exclude)


def wanted_layers(layers: Iterable[LayerChoice]) -> list[LayerChoice]:
    """Those without a reason against them."""
    return [layer for layer in layers if layer.reason is None]


def unique_layers(layers: Iterable[LayerChoice]) -> dict[Identity, LayerChoice]:
    """One layer for each weight."""
    unique: dict[Identity, LayerChoice] = {}
    for layer in layers:
        unique.setdefault(layer.identity, layer)
    return unique


def _reached(layer: LayerChoice, measured: Mapping[Identity, object]) -> LayerChoice:
    return layer if layer.reason or layer.identity in measured else replace(layer, reason=_NOT_REACHED)


def mask_of(layer: LayerChoice, scores: torch.Tensor, pattern: NM) -> torch.Tensor:
    """The mask that keeps the highest scores of a layer's weight. Raises `SparsityError`."""
    _require_shape(layer, scores, "score")
    try:
        return nm_mask(scores, pattern, layer.axis)
    except SparsityError as error:
        raise SparsityError(
            error.cause, layer=layer.full_name, remedy="look at the scores and the calibration data"
        ) from error


def _require_shape(layer: LayerChoice, tensor: torch.Tensor, what: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise SparsityError(
            f"its {what} is a {type(tensor).__name__}", layer=layer.full_name, remedy="give a tensor of torch"
        )
    if misfit := unlike(tensor, layer.weight, what):
        raise SparsityError(misfit, layer=layer.full_name, remedy=f"give one {what} for each element")


def _taylor(
    model: nn.Module, calibration: Calibration, loss: Loss | None, layers: Sequence[LayerChoice]
) -> dict[Identity, torch.Tensor]:
    """First-order changes of the loss, summed over batches."""
    if loss is None:
        raise SparsityError("taylor needs a loss", remedy="give loss=: a function of the model and a batch")
    unique, sums = unique_layers(layers), dict[Identity, torch.Tensor]()

    def add(identity: Identity, gradient: torch.Tensor) -> None:
        scores = taylor_scores(unique[identity].weight, gradient)
        sums[identity] = sums[identity].add_(scores) if identity in sums else scores

    gradients(model, calibration, loss, unique, add)
    return sums


def _compensated(
    model: nn.Module,
    layers: list[LayerChoice],
    patterns: Mapping[str, NM],
    options: SparseGPT,
    calibration: Calibration,
    progress: Progress | None,
) -> list[LayerChoice]:
    """Prune with SparseGPT in the order in which data reaches the layers; the layers with their reasons."""
    layers = [replace(layer, reason=layer.reason or cannot_compensate(layer)) for layer in layers]
    wanted = wanted_layers(layers)
    order = stages(model, calibration, wanted)
    total, done = sum(len(stage.layers) for stage in order), 0
    for stage in order:
        users = {layer.identity: [user for user in wanted if user.identity == layer.identity] for layer in stage.layers}
        listeners = [user for same in users.values() for user in same]
        hessians = measure(model, calibration, listeners, hessian, stage.calls)
        for layer in stage.layers:
            pattern = patterns[layer.full_name]
            mask = compensate_layer(layer, hessians.pop(layer.identity), pattern, options)
            hold_masks([(user, mask) for user in users[layer.identity]], pattern)
            done += 1
            if progress:
                progress("prune", done, total, layer.full_name)
    return [
        layer if layer.reason or held_mask(layer.module, layer.parameter) else replace(layer, reason=_NOT_REACHED)
        for layer in layers
    ]


def cannot_compensate(layer: LayerChoice) -> str | None:
    """Why SparseGPT does not take a layer; None if it does."""
    if isinstance(layer.module, TRANSPOSED):
        return "sparsegpt does not compensate transposed convolutions; magnitude, wanda and taylor prune them"
    if not isinstance(layer.weight, nn.Parameter):
        return "its weight is computed from other tensors, so that sparsegpt cannot change it"
    return None


@torch.no_grad()
def compensate_layer(
    layer: LayerChoice, hessians: tuple[torch.Tensor, ...], pattern: NM, options: SparseGPT
) -> torch.Tensor:
    """Prune and compensate one weight in place, a part of its rows for each Hessian; the mask."""
    weight = layer.weight
    dense = weight_matrices(layer, weight).to(hessians[0].dtype)
    masks, values = [], []
    try:
        for part, products in zip(dense.chunk(len(hessians), 1), hessians, strict=True):
            value, mask = compensate(part, products, pattern, damping=options.damping, block=options.block)
            if options.refit:
                value = refit(part, mask, products, damping=options.damping)
            values.append(value)
            masks.append(mask)
    except SparsityError as error:
        raise SparsityError(error.cause, layer=layer.full_name, remedy=error.remedy) from error
    compensated = from_matrices(layer, torch.cat(values, 1)).to(weight.dtype)
    if not bool(torch.isfinite(compensated).all()):
        raise SparsityError(
            f"its compensated weight overflows {str(weight.dtype).removeprefix('torch.')}",
            layer=layer.full_name,
            remedy="prune the model in a wider type, with more damping, or exclude the layer",
        )
    weight.copy_(compensated)
    return from_matrices(layer, torch.cat(masks, 1)).contiguous()
