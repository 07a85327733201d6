"""Weights that are computed before each forward pass by hooks of `torch.nn.utils`, not by parametrisations.

What such a module holds as its weight is what the last forward pass left there: old after a step of an optimiser, or
after other values were loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def computed_by(module: nn.Module, parameter: str) -> str | None:
    """How to speak of the hook that computes a weight, and how to be rid of it; None if none does."""
    hook = _hook(module, parameter)
    if isinstance(hook, BasePruningMethod):
        return "torch.nn.utils.prune: call torch.nn.utils.prune.remove"
    if isinstance(hook, WeightNorm):
        return "torch.nn.utils.weight_norm: call remove_weight_norm, or use torch.nn.utils.parametrizations.weight_norm"
    if isinstance(hook, SpectralNorm):
        return "torch.nn.utils.spectral_norm: call remove_spectral_norm"
    return None


def present_weight(module: nn.Module, parameter: str) -> torch.Tensor:
    """The weight that the next forward pass will use."""
    hook = _hook(module, parameter)
    if isinstance(hook, BasePruningMethod):
        return torch.as_tensor(hook.apply_mask(module))  # type: ignore[no-untyped-call]
    if isinstance(hook, WeightNorm):
        return torch.as_tensor(hook.compute_weight(module))
    if isinstance(hook, SpectralNorm):
        return torch.as_tensor(hook.compute_weight(module, do_power_iteration=False))
    weight = getattr(module, parameter)
    assert isinstance(weight, torch.Tensor)
    return weight


@torch.no_grad()
def detach_computed(model: nn.Module) -> None:
    """Make what modules hold as computed weights plain tensors, without which a model cannot be copied."""
    for module in model.modules():
        for parameter, _ in _hooks(module):
            setattr(module, parameter, present_weight(module, parameter).detach())


def remove_norms(model: nn.Module) -> None:
    """Put the weights of weight norms and spectral norms in the place of what they are computed from."""
    for module in model.modules():
        for parameter, hook in list(_hooks(module)):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, parameter)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, parameter)


def _hook(module: nn.Module, parameter: str) -> Callable[..., Any] | None:
    return next((hook for name, hook in _hooks(module) if name == parameter), None)


def _hooks(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook.name, hook
        elif isinstance(hook, BasePruningMethod):
            yield hook._tensor_name, hook
