"""How the share of pruned groups grows with the steps of training.

An n:m pattern has no percentage to raise: what grows is the share of groups that follow it. The groups of a
weight that lose least go first, and all others stay dense. The fraction of zeros is then the share times
(1 - n/m), so that a cubic schedule is that of Zhu & Gupta ("To prune, or not to prune", 2017) exactly. Raising
the pattern itself (4:4, 3:4, 2:4) would leave 2:4 three levels, each a jump for every group of the network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from tamis.errors import ConfigError

Curve: TypeAlias = Literal["cubic", "linear", "one-shot"]


@dataclass(frozen=True)
class Schedule:
    """When which share of the groups is pruned.

    Attributes:
        curve: `"cubic"` (fast at first, slow at the end), `"linear"`, or `"one-shot"`: all at step `begin`.
        begin: optimiser steps before the first group is pruned.
        end: step at which all are; without meaning for one-shot.
        every: steps between changes of the masks.
    """

    curve: Curve = "one-shot"
    begin: int = 0
    end: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.curve not in get_args(Curve):
            raise ConfigError(f"no schedule is called '{self.curve}'", remedy="use cubic, linear or one-shot")
        if self.begin < 0 or self.every < 1:
            raise ConfigError(
                f"begin {self.begin}, every {self.every}: a schedule counts steps from 0, in ones or more"
            )
        if self.curve != "one-shot" and self.end <= self.begin:
            raise ConfigError(f"a {self.curve} schedule from step {self.begin} cannot end at {self.end}")

    def share(self, step: int) -> float:
        """The share of groups to be pruned after `step` steps, 0 to 1; never falls."""
        if step < self.begin:
            return 0.0
        if self.curve == "one-shot" or step >= self.end:
            return 1.0
        step -= (step - self.begin) % self.every
        progress = (step - self.begin) / (self.end - self.begin)
        return progress if self.curve == "linear" else 1.0 - (1.0 - progress) ** 3

    def data(self) -> dict[str, Any]:
        """The schedule as plain values, for a checkpoint."""
        return asdict(self)
