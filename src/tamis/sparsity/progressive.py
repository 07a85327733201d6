"""Remove channels a few at a time, with training between: the caller drives, a checkpoint follows each step."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tamis.errors import ConfigError, SparsityError
from tamis.sparsity.channel_costs import LayerCost, layer_costs
from tamis.sparsity.channel_report import ChannelReport, Removal
from tamis.sparsity.channel_shapes import load_channels, save_channels
from tamis.sparsity.channels import prune_channels


@dataclass(frozen=True)
class ChannelStep:
    """A step of progressive pruning.

    Attributes:
        number: from 1.
        model: to be trained now, in place.
        report: what this step removed.
        macs_ratio: multiplications left of the original's, as a fraction.
    """

    number: int
    model: nn.Module
    report: ChannelReport
    macs_ratio: float


def prune_progressively(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    macs: float,
    step: float = 0.05,
    removal: Removal | None = None,
    ignore: tuple[str, ...] = (),
    loss: Callable[[nn.Module], torch.Tensor] | None = None,
    folder: str | Path | None = None,
) -> Iterator[ChannelStep]:
    """Remove `step` of the original channels, hand the model out to be trained, and again, until it is small enough.

    The ratio counts from the original sizes, so that steps smaller than `removal.multiple` add up. Steps that remove
    nothing for that reason are passed over.

    Args:
        model: unpruned; left as it is.
        inputs: example inputs, positional.
        macs: fraction of the original's multiplications to stop at.
        step: fraction of the original channels that each step removes.
        removal: how; its ratio is not used, its ratios of single layers are where these stop.
        ignore: as `prune_channels` takes it.
        loss: as `prune_channels` takes it.
        folder: where `step-01.safetensors` and so on are written, each when the caller asks for the next step, so
            after training. If it holds such files, the last is gone on from.

    Raises:
        ConfigError: a fraction is out of range.
        SparsityError: as `prune_channels` and `load_channels`; or at the end, if `macs` cannot be reached.
    """
    if not (0.0 < macs < 1.0 and 0.0 < step < 1.0):
        raise ConfigError(f"macs {macs} and step {step} must lie between 0 and 1")
    how = removal or Removal()
    first = prune_channels(model, inputs, replace(how, ratio=0.0, ratios=None), ignore=ignore, loss=loss)
    whole = _macs(first.before)
    original = {group.name: group.before for group in first.groups}
    current, number = copy.deepcopy(model), 0
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        number = _last(Path(folder))
        if number:
            load_channels(current, _file(Path(folder), number))
    left = _macs(layer_costs(current, inputs))
    while number * step < how.most and left > macs * whole:
        number += 1
        report = prune_channels(
            current, inputs, _up_to(how, number * step), ignore=ignore, loss=loss, original=original
        )
        if all(group.before == group.after for group in report.groups):
            continue
        current, left = report.model, _macs(report.after)
        yield ChannelStep(number, current, report, left / whole)
        if folder is not None:
            save_channels(current, _file(Path(folder), number))
    share = left / whole
    if share > macs:
        raise SparsityError(
            f"{share:.1%} of the multiplications are left when all channels that may go are gone, not {macs:.1%}",
            remedy="ignore fewer layers, round to a smaller multiple, or allow more of each group to go",
        )


def _up_to(removal: Removal, ratio: float) -> Removal:
    """The removal that has come as far as `ratio` of the channels, and no layer further than asked for."""
    ratios = {name: min(ratio, own) for name, own in (removal.ratios or {}).items()}
    return replace(removal, ratio=min(ratio, removal.most), ratios=ratios)


def _macs(layers: Iterable[LayerCost]) -> int:
    return sum(layer.macs for layer in layers)


def _file(folder: Path, number: int) -> Path:
    return folder / f"step-{number:02}.safetensors"


def _last(folder: Path) -> int:
    """The number of the last checkpoint; 0 if there is none."""
    names = [re.fullmatch(r"step-(\d+)\.safetensors", file.name) for file in folder.iterdir()]
    return max((int(found[1]) for found in names if found), default=0)
