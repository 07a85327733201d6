"""Remove whole channels, on Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any Structural Pruning",
2023). Which channels and how many is decided here; the graph says what has to go with them.

Always in this order: channels, permutation, 2:4, tuning. A channel that is removed after 2:4 moves those behind it
into other groups of four.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from tamis.errors import ConfigError, SparsityError
from tamis.sparsity.channel_costs import layer_costs
from tamis.sparsity.channel_removal import Attempt
from tamis.sparsity.channel_report import ChannelReport, Removal
from tamis.sparsity.check import check_module


def prune_channels(
    model: nn.Module,
    inputs: tuple[Any, ...],
    removal: Removal | None = None,
    *,
    ignore: tuple[str, ...] = (),
    loss: Callable[[nn.Module], torch.Tensor] | None = None,
    original: Mapping[str, int] | None = None,
) -> ChannelReport:
    """A copy of `model` with fewer channels. The model itself is left as it is; optimisers are made anew.

    Kept whole, each with its reason: what the model gives out, channels inside of attention (heads), groups that are
    too small, and groups without which the model does not run or changes the shape of its outputs: each removal is
    tried out.

    Args:
        model: without held masks.
        inputs: example inputs, positional.
        removal: what to remove; half of the channels if not given.
        ignore: names of layers whose channels stay, `*` and `?` allowed.
        loss: for Taylor: a function of the model that gives a scalar, of a batch of training data.
        original: channels of groups by name before earlier removals, which `removal.ratio` counts from.

    Raises:
        SparsityError: masks are held; a weight is not finite; there is no channel to remove; 2:4 that was there is
            broken; a name in `ignore` or `ratios` matches nothing; the model cannot be traced.
        MissingLibrary: Torch-Pruning is not installed.
    """
    wanted = removal or Removal()
    _require_prunable(model, ignore, wanted, loss)
    refused: dict[str, str] = {}
    while True:
        attempt = Attempt(model, inputs, wanted, ignore, loss, refused, original or {})
        broken = attempt.run()
        if broken is None:
            break
        worse = {name: why for name in attempt.removed if (why := attempt.alone(name))}
        if not worse:
            raise SparsityError(f"the model does not run with fewer channels: {broken}", remedy="name layers in ignore")
        refused |= worse
    if not attempt.candidates:
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in attempt.groups[:3])
        raise SparsityError(f"no layer has channels that can be removed ({reasons or 'no layers'})")
    _require_pattern(model, attempt.model)
    return ChannelReport(
        attempt.model, tuple(attempt.groups), layer_costs(model, inputs), layer_costs(attempt.model, inputs)
    )


def _require_prunable(
    model: nn.Module, ignore: tuple[str, ...], removal: Removal, loss: Callable[[nn.Module], torch.Tensor] | None
) -> None:
    names = [name for name, _ in model.named_modules()]
    for pattern in (*ignore, *(removal.ratios or {})):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SparsityError(f"'{pattern}' matches no layer", remedy="name modules as named_modules() does")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module) or (not list(module.children()) and torch_prune.is_pruned(module)):
            raise SparsityError(
                "its weight is masked, or computed otherwise",
                layer=name,
                remedy="prune channels first, or call finalize",
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SparsityError("holds NaN or infinity", layer=name, remedy="prune a model whose weights are finite")
    if removal.importance == "taylor" and loss is None:
        raise ConfigError("Taylor importance needs a loss", remedy="pass loss=lambda model: ... over some batches")


def _require_pattern(before: nn.Module, after: nn.Module) -> None:
    """Raise if a weight was 2:4 and is no more."""
    sparse = {check.name for check in check_module(before) if check.groups == 1.0}
    for check in check_module(after):
        if check.name in sparse and check.groups < 1.0:
            raise SparsityError(
                f"was 2:4 before channels were removed, and is no more: {check.reason}",
                layer=check.name,
                remedy="remove channels before 2:4, or in aligned fours (Removal(block=4))",
            )
