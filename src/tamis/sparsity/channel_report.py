"""What to remove of a model's channels, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from tamis.errors import ConfigError
from tamis.sparsity.channel_costs import LayerCost

Importance: TypeAlias = Literal["norm", "bn", "taylor"]


@dataclass(frozen=True)
class PrunedGroup:
    """Channels that can only be removed together, and what became of them.

    Attributes:
        name: of the layer that makes them.
        members: names of all layers that lose channels with it.
        before: how many there were.
        after: how many are left.
        reason: why none could be removed; None if they could.
    """

    name: str
    members: tuple[str, ...]
    before: int
    after: int
    reason: str | None


@dataclass(frozen=True)
class ChannelReport:
    """A smaller model; printed, a table of its layers.

    Attributes:
        model: the copy that lost channels, in the mode of the original.
        groups: what became of each group of channels.
        before: cost of each layer of the original, for the example inputs.
        after: the same of the copy.
    """

    model: nn.Module
    groups: tuple[PrunedGroup, ...]
    before: tuple[LayerCost, ...]
    after: tuple[LayerCost, ...]

    @property
    def macs_ratio(self) -> float:
        """Multiplications left, as a fraction."""
        return sum(layer.macs for layer in self.after) / max(sum(layer.macs for layer in self.before), 1)

    @property
    def parameters_ratio(self) -> float:
        """Parameters of layers left, as a fraction."""
        return sum(layer.parameters for layer in self.after) / max(sum(layer.parameters for layer in self.before), 1)

    def __str__(self) -> str:
        lines = [f"{self.macs_ratio:.1%} of the multiplications and {self.parameters_ratio:.1%} of the parameters left"]
        for old, new in zip(self.before, self.after, strict=True):
            lines.append(
                f"  {old.name}: {list(old.shape)} -> {list(new.shape)}, {old.macs} -> {new.macs} multiplications, "
                f"{old.parameters} -> {new.parameters} parameters"
            )
        lines += [f"  {group.name}: kept whole, {group.reason}" for group in self.groups if group.reason]
        return "\n".join(lines)


@dataclass(frozen=True)
class Removal:
    """What to remove, and how.

    Attributes:
        ratio: fraction of all channels (of the original sizes) to remove, from 0 up to 1.
        spread: `"global"`: the least important of the network; `"layer"`: the same fraction of each group.
        ratios: other fractions for single layers by name, `*` and `?` allowed, each for its group alone.
        most: the largest fraction of a group that may go when the choice is global.
        importance: `"norm"` of filters, `"bn"`: scales of batch norms, `"taylor"`: change of the loss.
        multiple: what is left of a group is a multiple of this; groups with fewer channels are kept.
        block: channels are removed in aligned blocks of so many; 4 keeps a 2:4 that is there already.
    """

    ratio: float = 0.5
    spread: Literal["global", "layer"] = "global"
    ratios: Mapping[str, float] | None = None
    most: float = 0.9
    importance: Importance = "norm"
    multiple: int = 16
    block: int = 1

    def __post_init__(self) -> None:
        for ratio in (self.ratio, self.most, *(self.ratios or {}).values()):
            if not 0.0 <= ratio < 1.0:
                raise ConfigError(f"a ratio of {ratio} is out of range", remedy="use 0 <= ratio < 1")
        if self.multiple < 1 or self.block < 1 or self.multiple % self.block:
            raise ConfigError(f"channels in multiples of {self.multiple} cannot go in blocks of {self.block}")
        if self.importance not in ("norm", "bn", "taylor") or self.spread not in ("global", "layer"):
            raise ConfigError("importance is norm, bn or taylor; spread is global or layer")
