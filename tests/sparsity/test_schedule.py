"""Schedules: their curves, and what they do to masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tamis.errors import ConfigError
from tamis.formats import NM
from tamis.sparsity import Schedule
from tamis.sparsity.training import grown_mask


def test_curves() -> None:
    cubic, linear = Schedule("cubic", 10, 20), Schedule("linear", 10, 20)
    assert [schedule.share(step) for schedule in (cubic, linear) for step in (0, 9, 10, 20, 99)] == [0, 0, 0, 1, 1] * 2
    assert linear.share(15) == 0.5
    assert cubic.share(15) == 1 - 0.5**3  # Zhu & Gupta with s_i = 0
    assert [Schedule("one-shot", begin=3).share(step) for step in (2, 3)] == [0.0, 1.0]
    assert Schedule().share(0) == 1.0


@pytest.mark.parametrize("curve", ["cubic", "linear"])
def test_never_falls_and_changes_only_when_it_may(curve: Any) -> None:
    schedule = Schedule(curve, 3, 50, every=7)
    shares = [schedule.share(step) for step in range(60)]
    assert shares == sorted(shares) and shares[-1] == 1.0
    changes = {step for step in range(1, 60) if shares[step] != shares[step - 1]}
    assert changes == {10, 17, 24, 31, 38, 45, 50}


@pytest.mark.parametrize(
    "wrong",
    [{"curve": "square"}, {"curve": "cubic", "begin": 5, "end": 5}, {"begin": -1}, {"every": 0}],
)
def test_wrong_schedules(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**wrong)


def test_groups_that_lose_least_go_first() -> None:
    weight = torch.tensor([[9.0, 8.0, 0.1, 0.2], [1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 5.0], [3.0, 3.0, 2.0, 2.0]])
    mask = torch.ones_like(weight, dtype=torch.bool)
    pruned = [(~grown_mask(weight, mask, NM(2, 4), 1, share, keep=True)).any(1).tolist() for share in (0, 0.25, 0.5, 1)]
    assert pruned == [[False] * 4, [False, False, True, False], [True, False, True, False], [True] * 4]


def test_groups_that_are_masked_stay_or_are_chosen_anew() -> None:
    weight = torch.tensor([[9.0, 8.0, 7.0, 6.0], [1.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    kept = grown_mask(weight, mask, NM(2, 4), 1, 0.5, keep=True)
    assert torch.equal(kept, mask)
    anew = grown_mask(weight, mask, NM(2, 4), 1, 0.5, keep=False)
    assert anew.tolist() == [[True] * 4, [True, False, False, True]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_of_larger_weights(axis: int) -> None:
    weight = torch.randn(8, 12, 4, generator=torch.Generator().manual_seed(0))
    mask = grown_mask(weight, torch.ones_like(weight, dtype=torch.bool), NM(1, 4), axis, 0.5, keep=True)
    kept = mask.movedim(axis, -1).unflatten(-1, (-1, 4)).sum(-1)
    assert sorted(kept.flatten().tolist()) == [1] * 48 + [4] * 48
