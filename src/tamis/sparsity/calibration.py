"""Run a model on calibration data and measure what meets its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tamis.errors import SparsityError, TamisError, first_line
from tamis.sparsity.activations import Arguments, as_arguments, met_by, require_finite
from tamis.sparsity.masks import LayerChoice

Calibration = Iterable[Any] | Callable[[nn.Module], object]
Measure = Callable[[LayerChoice, torch.Tensor], torch.Tensor]
Identity = int | str

NO_DATA = "give calibration=: an iterable of batches, or a function that runs the model on data"
LOSS_FORM = "loss takes the model and a batch, and gives a scalar"
_FORMS = "a batch is a tensor, a tuple of positional inputs or a mapping of named ones; or give a function of the model"


class _Enough(BaseException):
    """Ends a pass that has measured all it was for; no `except Exception` of a model holds it up."""


@dataclass(frozen=True)
class Stage:
    """Layers that are given the same tensor, so that pruning one does not change what another one sees.

    Attributes:
        layers: in the order of their calls, those that share a weight once.
        calls: how many calls of their modules end a batch, if that is the same for all batches; else None.
    """

    layers: tuple[LayerChoice, ...]
    calls: int | None


def as_calibration(calibration: Calibration | None, method: str) -> Calibration:
    """The data, in a form that can be gone through several times; `SparsityError` if there is none."""
    if calibration is None:
        raise SparsityError(f"{method} needs calibration data", remedy=NO_DATA)
    if callable(calibration):
        return calibration
    if not isinstance(calibration, Iterable) or isinstance(calibration, (str, torch.Tensor, Mapping)):
        raise SparsityError(f"calibration is a {type(calibration).__name__}", remedy=NO_DATA)
    return list(calibration) if isinstance(calibration, Iterator) else calibration


def measure(
    model: nn.Module, calibration: Calibration, layers: Sequence[LayerChoice], how: Measure, calls: int | None = None
) -> dict[Identity, tuple[torch.Tensor, ...]]:
    """Sum a measure of the inputs of layers over all calibration data, and over all layers that share a weight.

    Args:
        model: is run in eval mode and without gradients.
        calibration: the data.
        layers: to measure.
        how: from a layer and its inputs to a tensor to sum.
        calls: end a batch after so many calls of the layers; None: run the whole model.

    Returns:
        By `LayerChoice.identity`, a sum for each tensor of `activations.met_by`; layers that no batch reaches are
        missing.
    """
    sums: dict[Identity, tuple[torch.Tensor, ...]] = {}
    seen = 0

    def note(layer: LayerChoice, owner: nn.Module, arguments: Arguments) -> None:
        nonlocal seen
        known: dict[int, torch.Tensor] = {}  # queries, keys and values are often one tensor
        parts = []
        for inputs in met_by(owner, layer, arguments):
            if id(inputs) not in known:
                known[id(inputs)] = how(layer, inputs)
            parts.append(known[id(inputs)])
        before = sums.get(layer.identity)
        sums[layer.identity] = (
            tuple(parts) if before is None else tuple(a + b for a, b in zip(before, parts, strict=True))
        )
        seen += 1
        if seen == calls:
            seen = 0
            raise _Enough

    with _listening(model, layers, note):
        run_all(model, calibration)
    for layer in layers:
        for total in sums.get(layer.identity, ()):
            require_finite(layer, total)
    return sums


def stages(model: nn.Module, calibration: Calibration, layers: Sequence[LayerChoice]) -> list[Stage]:
    """The layers in the order in which data reaches them; runs the whole model on all data once."""
    found: list[list[LayerChoice]] = []
    calls: dict[Identity, int] = {}
    last: tuple[torch.Tensor, int] | None = None  # kept alive, so that its memory is not another tensor's

    def note(layer: LayerChoice, owner: nn.Module, arguments: Arguments) -> None:
        nonlocal last
        inputs = (arguments[0] or tuple(arguments[1].values()))[0]
        same = last is not None and owner is layer.module and last[0] is inputs and last[1] == inputs._version
        if layer.identity not in calls:
            if found and same:
                found[-1].append(layer)
            else:
                found.append([layer])
        # what an output projection is given is computed within its module, from all that stands before
        last = (inputs, inputs._version) if owner is layer.module else None
        calls[layer.identity] = calls.get(layer.identity, 0) + 1

    with _listening(model, layers, note):
        batches = run_all(model, calibration)
    result = []
    for stage in found:
        once = batches is not None and all(calls[layer.identity] == batches for layer in stage)
        result.append(Stage(tuple(stage), len(stage) if once else None))
    return result


def gradients(
    model: nn.Module,
    calibration: Calibration,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    layers: Mapping[Identity, LayerChoice],
    use: Callable[[Identity, torch.Tensor], None],
) -> None:
    """Hand the gradient of each layer's weight to `use`, batch by batch; `.grad` and the model stay as they are."""
    if callable(calibration):
        raise SparsityError("taylor needs batches, not a function", remedy="give an iterable that loss can take")
    weights = {identity: layer.weight for identity, layer in layers.items()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]

    def work(batch: Any) -> None:
        found = torch.autograd.grad(loss(model, batch), list(weights.values()), allow_unused=True)
        for identity, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                require_finite(layers[identity], gradient, "its gradient holds")
                use(identity, gradient)

    with evaluating(model), torch.enable_grad():
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            each_batch(calibration, work, LOSS_FORM)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)


def run_all(model: nn.Module, calibration: Calibration) -> int | None:
    """Run the model on all data; the number of batches, or None where a function runs them."""

    def call(batch: Any) -> object:
        positional, named = as_arguments(batch)
        return model(*positional, **named)

    with evaluating(model), torch.no_grad():
        if not callable(calibration):
            return each_batch(calibration, call, _FORMS)
        try:
            calibration(model)
        except TamisError:
            raise
        except Exception as error:
            raise SparsityError(
                f"the calibration function fails: {type(error).__name__}: {first_line(error)}"
            ) from error
        return None


def each_batch(calibration: Iterable[Any], work: Callable[[Any], object], remedy: str) -> int:
    """Do some work for each batch; the number of batches, at least one."""
    count = 0
    for batch in calibration:
        try:
            work(batch)
        except _Enough:
            pass
        except TamisError:
            raise
        except Exception as error:
            raise SparsityError(
                f"calibration batch {count} does not run: {type(error).__name__}: {first_line(error)}", remedy=remedy
            ) from error
        count += 1
    if count == 0:
        raise SparsityError("there are no calibration batches", remedy=NO_DATA)
    return count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and afterwards each of its modules as it was; attention in Python, where hooks see it."""
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


@contextmanager
def _listening(
    model: nn.Module, layers: Sequence[LayerChoice], note: Callable[[LayerChoice, nn.Module, Arguments], None]
) -> Iterator[None]:
    """Call `note` whenever the module runs that uses the weight of one of the layers."""
    with ExitStack() as hooks:
        for layer in layers:
            owner = _owner(model, layer)
            listen = owner.register_forward_pre_hook if owner is layer.module else owner.register_forward_hook
            handle = listen(partial(_heard, note, layer), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _heard(
    note: Callable[[LayerChoice, nn.Module, Arguments], None],
    layer: LayerChoice,
    owner: nn.Module,
    positional: tuple[Any, ...],
    named: dict[str, Any],
    *_: object,
) -> None:
    if positional or named:  # else its own error says more
        note(layer, owner, (positional, named))


def _owner(model: nn.Module, layer: LayerChoice) -> nn.Module:
    """The module whose call uses the weight: for the output projection of an attention, the attention."""
    parent = model.get_submodule(layer.name.rpartition(".")[0])
    is_projection = isinstance(parent, nn.MultiheadAttention) and parent.out_proj is layer.module
    return parent if is_projection else layer.module
