"""Hold the zeros of a model while it trains, and bake them in.

The mask is part of the weight: `layer.weight` is computed from the dense parameter and the mask each time it
is read (`torch.nn.utils.parametrize`). No optimiser, loss scaler, averaging or trainer can undo that, because
none of them sees the masked weight; gradients of the masked elements are zero by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from tamis.errors import SparsityError
from tamis.formats import NM
from tamis.sparsity.computed import computed_by
from tamis.sparsity.masks import LayerChoice, prunable


class HeldMask(nn.Module):
    """The parametrisation: zero where the mask is false, also where the parameter is not finite."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor, pattern: NM, position: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.pattern = pattern
        self.position = position  # of the weight among its module's parameters
        self.straight_through = False  # gradients reach the masked elements too

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with its masked elements zero."""
        mask = placed_as(self.mask, weight)
        if self.straight_through:
            masked: torch.Tensor = _StraightThrough.apply(weight, mask)  # type: ignore[no-untyped-call]
            return masked
        return torch.where(mask, weight, 0.0)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What an assignment to the weight stores."""
        return weight


class _StraightThrough(torch.autograd.Function):
    """Masks a weight, and passes its gradient on as if it had not (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def placed_as(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mask, distributed as the weight is: each process has all of it, and cuts out its part itself."""
    if not is_sharded(weight) or is_sharded(mask):
        return mask
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415

    return distribute_tensor(mask, weight.device_mesh, weight.placements, src_data_rank=None)  # type: ignore[attr-defined]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a `DTensor`: told by what only those have, since loading that module takes half a second."""
    return hasattr(tensor, "device_mesh")


@dataclass(frozen=True)
class PrunedLayer:
    """What happened to one weight.

    Attributes:
        name: of the weight, as in the state dict of the unpruned model.
        pattern: the pattern asked for.
        axis: its reduction axis.
        shape: its shape.
        zeros: the fraction of its elements that are zero, 0 to 1.
        reason: why it was skipped; None if it follows the pattern.
    """

    name: str
    pattern: NM
    axis: int
    shape: tuple[int, ...]
    zeros: float
    reason: str | None


@dataclass(frozen=True)
class PruneReport:
    """What `prune` or `finalize` did, layer by layer; printed, a table."""

    layers: tuple[PrunedLayer, ...]

    @property
    def pruned(self) -> tuple[PrunedLayer, ...]:
        """The weights that follow the pattern."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def skipped(self) -> tuple[PrunedLayer, ...]:
        """The weights left as they were, each with its reason."""
        return tuple(layer for layer in self.layers if layer.reason is not None)

    def __str__(self) -> str:
        lines = [f"{len(self.pruned)} weights pruned, {len(self.skipped)} skipped"]
        for layer in self.layers:
            fate = layer.reason or f"{layer.pattern} along axis {layer.axis}, {layer.zeros:.1%} zeros"
            lines.append(f"  {layer.name} {list(layer.shape)}: {fate}")
        return "\n".join(lines)


def hold_masks(masks: Sequence[tuple[LayerChoice, torch.Tensor]], pattern: NM) -> None:
    """Hold a mask on the weight of each layer from now on."""
    for layer, mask in masks:
        held = HeldMask(mask, pattern, _position(layer))
        parametrize.register_parametrization(layer.module, layer.parameter, held)


def finalize(model: nn.Module) -> PruneReport:
    """Make the zeros plain values of plain parameters and remove all masks, in place.

    Shared weights stay shared. Weights that were not masked are not looked at and not listed.

    Raises:
        SparsityError: after that a masked element is not zero, because something else changes the weight too;
            or a kept element is not finite, or the model is sharded, when it is left as it was.
    """
    masked = [(choice, held) for choice in prunable(model) if (held := held_mask(choice.module, choice.parameter))]
    for choice, _ in masked:
        if is_sharded(choice.weight):
            raise SparsityError(
                "sharded over several processes, and cannot be finalized in place",
                layer=choice.full_name,
                remedy="gather the state dict, and load bake_state_dict of it into a model that is not sharded",
            )
        if not bool(torch.isfinite(choice.weight).all()):
            raise SparsityError("kept elements are NaN or infinite", layer=choice.full_name, remedy="mend the training")
    layers = []
    for choice, held in masked:
        _bake(choice.module, choice.parameter)
        _put_at(choice.module, choice.parameter, held.position)
        if bool((choice.weight[~held.mask] != 0).any()):
            raise SparsityError(
                "masked elements are not zero",
                layer=choice.full_name,
                remedy="another parametrisation changes it after the mask; register that before pruning",
            )
        layers.append(describe(replace(choice, reason=None), held.pattern))
    return PruneReport(tuple(layers))


def held_mask(module: nn.Module, parameter: str) -> HeldMask | None:
    """The mask held on a parameter of `module`, if there is one."""
    if not parametrize.is_parametrized(module, parameter):
        return None
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    return next((entry for entry in chains[parameter].children() if isinstance(entry, HeldMask)), None)


def originals(layer: LayerChoice) -> list[torch.Tensor]:
    """The parameters that a parametrised weight is computed from."""
    chain: Any = layer.module.parametrizations[layer.parameter]  # type: ignore[index]
    if chain.is_tensor:
        return [chain.original]
    return [getattr(chain, f"original{index}") for index in range(chain.ntensors)]


def bake_parametrizations(model: nn.Module) -> None:
    """Put the weights that parametrisations compute in their place, where a layer uses them and no mask is held."""
    for layer in prunable(model):
        if parametrize.is_parametrized(layer.module, layer.parameter) and not held_mask(layer.module, layer.parameter):
            _bake(layer.module, layer.parameter)


def require_unmasked(layer: LayerChoice, remedy: str) -> None:
    """Raise `SparsityError` if a mask is held on the layer's weight, or none could be."""
    if held_mask(layer.module, layer.parameter) is not None:
        raise SparsityError("already masked", layer=layer.full_name, remedy=remedy)
    if tool := computed_by(layer.module, layer.parameter):
        what, _, way_out = tool.partition(": ")
        raise SparsityError(
            f"its weight is computed before each run by {what}", layer=layer.full_name, remedy=f"{way_out} first"
        )


def held_names(key: str) -> tuple[str, str] | None:
    """Of the key under which a state dict keeps a masked weight: the weight's plain name, the key of its mask."""
    module, marker, rest = f".{key}".rpartition(".parametrizations.")
    if not marker or not rest.endswith(".original"):
        return None
    return f"{module}.{rest.removesuffix('.original')}"[1:], f"{key.removesuffix('original')}0.mask"


def _position(layer: LayerChoice) -> int:
    """The place of a weight among the parameters of its module before any was masked; the end if it is computed."""
    names = [name for name, _ in layer.module.named_parameters(recurse=False)]
    chains = getattr(layer.module, "parametrizations", {})
    held = {name: mask for name in chains if (mask := held_mask(layer.module, name)) is not None}
    for name, mask in sorted(held.items(), key=lambda item: item[1].position):
        names.insert(mask.position, name)
    return names.index(layer.parameter) if layer.parameter in names else len(names)


def _bake(module: nn.Module, parameter: str) -> None:
    """Replace the computed weight by a parameter of the same value, the last of its module."""
    # A deep copy of a parametrised module shares the class that torch made for it, and torch removes the
    # property from that class: without a class of its own, the copy would break the original.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)


def _put_at(module: nn.Module, parameter: str, position: int) -> None:
    """Move the last parameter of a module to a place: optimisers and state dicts know it by that."""
    behind = [name for name, _ in module.named_parameters(recurse=False) if name != parameter][position:]
    for name in behind:
        module.register_parameter(name, module._parameters.pop(name))


def describe(layer: LayerChoice, pattern: NM) -> PrunedLayer:
    """What became of a layer's weight."""
    weight = layer.weight.detach()
    zeros = 1.0 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)
    return PrunedLayer(layer.full_name, pattern, layer.axis, tuple(weight.shape), zeros, layer.reason)
