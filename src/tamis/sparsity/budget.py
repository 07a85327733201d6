"""Which option of each item to take, within a budget: the multiple-choice knapsack problem.

All sums that no other sum beats in both loss and value are kept, item by item (Nemhauser and Ullmann, "Discrete Dynamic
Programming and Capital Allocation", 1969). That is exact. Their number is small for measured figures (some thousands
for hundreds of items); beyond ``MOST_STATES`` they are thinned out, and the answer, still within the budget, may then
miss the best by what lies between two neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_STATES = 50_000
# Sums of the same figures in another order differ by less than this fraction.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Option:
    """One way to treat an item: what is lost by it, and what is gained. Leaving the item alone is (0, 0)."""

    loss: float
    value: float


@dataclass(frozen=True)
class Choice:
    """The option of each item, None where it is left alone, and whether it is the best there is for certain."""

    options: tuple[int | None, ...]
    exact: bool


def most_value(items: Sequence[Sequence[Option]], budget: float, most_states: int = MOST_STATES) -> Choice:
    """The options of the greatest value whose losses add up to at most ``budget``; of equal ones those of least loss.

    Losses below zero count as none, and an infinite one rules its option out.
    """
    limit = budget + abs(budget) * _ROUNDING
    stages, exact = _stages(items, limit, None, most_states)
    return Choice(_path(stages, len(stages[-1].loss) - 1), exact)


def least_loss(items: Sequence[Sequence[Option]], value: float, most_states: int = MOST_STATES) -> Choice | None:
    """The options of least loss whose values add up to at least ``value``; None when even all together do not."""
    needed = value - abs(value) * _ROUNDING
    stages, exact = _stages(items, np.inf, needed, most_states)
    enough = np.flatnonzero(stages[-1].value >= needed)
    return Choice(_path(stages, int(enough[0])), exact) if enough.size else None


@dataclass(frozen=True)
class _Stage:
    """The sums after an item, by rising loss and rising value: where each came from, and by which option (-1: none)."""

    loss: NDArray[np.float64]
    value: NDArray[np.float64]
    parent: NDArray[np.intp]
    option: NDArray[np.intp]


def _stages(
    items: Sequence[Sequence[Option]], limit: float, needed: float | None, most_states: int
) -> tuple[list[_Stage], bool]:
    """The sums after each item; those are left out that exceed ``limit`` or that cannot reach ``needed`` any more."""
    greatest = [max([0.0, *(o.value for o in options if np.isfinite(o.loss))]) for options in items]
    ahead = np.append(np.cumsum(greatest[::-1])[::-1], 0.0)
    origin = np.zeros(1, np.intp)
    stages = [_Stage(np.zeros(1), np.zeros(1), origin, origin - 1)]
    exact = True
    for index, options in enumerate(items):
        stage = _next(stages[-1], options, limit)
        if needed is not None:
            able = stage.value + ahead[index + 1] >= needed - abs(needed) * _ROUNDING
            stage = _taken(stage, np.flatnonzero(able)) if able.any() else stage
        if len(stage.loss) > most_states:
            exact = False
            stage = _taken(stage, np.unique(np.linspace(0, len(stage.loss) - 1, most_states).astype(np.intp)))
        stages.append(stage)
    return stages, exact


def _next(stage: _Stage, options: Sequence[Option], limit: float) -> _Stage:
    """The sums with one more item, without those that another one beats or equals in both loss and value."""
    able = [(-1, 0.0, 0.0)]
    able += [(i, max(o.loss, 0.0), o.value) for i, o in enumerate(options) if np.isfinite(o.loss)]
    count = len(stage.loss)
    loss = np.concatenate([stage.loss + more for _, more, _ in able])
    value = np.concatenate([stage.value + more for _, _, more in able])
    option = np.repeat([i for i, _, _ in able], count)
    parent = np.tile(np.arange(count), len(able))
    order = np.lexsort((option, -value, loss))
    order = order[loss[order] <= limit]
    best = np.maximum.accumulate(value[order])
    order = order[np.append(True, best[1:] > best[:-1])]
    return _Stage(loss[order], value[order], parent[order], option[order])


def _taken(stage: _Stage, index: NDArray[np.intp]) -> _Stage:
    return _Stage(stage.loss[index], stage.value[index], stage.parent[index], stage.option[index])


def _path(stages: Sequence[_Stage], state: int) -> tuple[int | None, ...]:
    """The options by which a sum of the last stage came about."""
    options: list[int | None] = []
    for stage in reversed(stages[1:]):
        option = int(stage.option[state])
        options.append(None if option < 0 else option)
        state = int(stage.parent[state])
    return tuple(reversed(options))
