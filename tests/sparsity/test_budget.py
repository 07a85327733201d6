"""The knapsack: against all combinations, and at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tamis.sparsity.budget import Choice, Option, least_loss, most_value


def random_items(seed: int) -> list[list[Option]]:
    """Up to six items of up to three options; some worthless, some free, some impossible, some equal."""
    random = np.random.default_rng(seed)
    items = []
    for _ in range(random.integers(1, 7)):
        options = []
        for _ in range(random.integers(0, 4)):
            loss = float(random.choice([random.random(), 0.0, 0.25, -0.1, math.inf], p=[0.6, 0.1, 0.1, 0.1, 0.1]))
            value = float(random.choice([random.random(), 0.0, 0.5, -0.2], p=[0.6, 0.1, 0.2, 0.1]))
            options.append(Option(loss, value))
        items.append(options)
    return items


def sums(items: list[list[Option]], options: tuple[int | None, ...]) -> tuple[float, float]:
    taken = [item[option] for item, option in zip(items, options, strict=True) if option is not None]
    return math.fsum(max(o.loss, 0.0) for o in taken), math.fsum(o.value for o in taken)


def all_sums(items: list[list[Option]]) -> list[tuple[float, float]]:
    return [sums(items, options) for options in itertools.product(*([None, *range(len(item))] for item in items))]


@pytest.mark.parametrize("seed", range(60))
def test_most_value_is_that_of_all_combinations(seed: int) -> None:
    items = random_items(seed)
    for budget in (0.0, 0.25, 0.7, 1.5, 100.0):
        choice = most_value(items, budget)
        loss, value = sums(items, choice.options)
        within = [s for s in all_sums(items) if s[0] <= budget + 1e-12]
        best = max(v for _, v in within)
        assert choice.exact and loss <= budget + 1e-9 and value == pytest.approx(best, abs=1e-9)
        assert loss <= min(lost for lost, v in within if v >= best - 1e-12) + 1e-9  # of equal ones the least


@pytest.mark.parametrize("seed", range(60))
def test_least_loss_is_that_of_all_combinations(seed: int) -> None:
    items = random_items(seed)
    for needed in (-1.0, 0.0, 0.3, 0.9, 1.6, 4.0):
        choice = least_loss(items, needed)
        enough = [lost for lost, value in all_sums(items) if value >= needed - 1e-12 and math.isfinite(lost)]
        assert (choice is None) == (not enough)
        if choice is not None:
            loss, value = sums(items, choice.options)
            assert choice.exact and value >= needed - 1e-9 and loss == pytest.approx(min(enough), abs=1e-9)


def test_a_budget_that_is_just_met_counts_as_met() -> None:
    items = [[Option(0.1, 1.0)] for _ in range(10)]
    assert most_value(items, 0.1 * 10).options == (0,) * 10  # ten times 0.1 adds up to less than 1.0
    assert most_value(items, 0.3).options.count(0) == 3
    choice = least_loss([[Option(1.0, 0.1)] for _ in range(10)], 1.0)
    assert choice is not None and choice.options == (0,) * 10


def test_nothing_to_choose_from() -> None:
    assert most_value([], 1.0) == Choice((), True)
    assert least_loss([], 0.0) == Choice((), True)
    assert least_loss([], 0.1) is None
    assert most_value([[Option(math.inf, 1.0)]], 1e9).options == (None,)


def test_hundreds_of_layers_are_solved_exactly() -> None:
    random = np.random.default_rng(0)
    items = [[Option(*pair) for pair in zip(random.random(2), random.random(2), strict=True)] for _ in range(150)]
    choice = most_value(items, 5.0)
    loss, value = sums(items, choice.options)
    assert choice.exact and loss <= 5.0
    # No solution can be better than that of the relaxed problem, in which parts of options may be taken.
    relaxed = min(
        rate * 5.0 + sum(max([0.0, *(o.value - rate * o.loss for o in item)]) for item in items)
        for rate in np.linspace(0.1, 20, 400)
    )
    assert value <= relaxed + 1e-9 and value > relaxed - 1.0


def test_thinned_out_states_stay_within_the_budget() -> None:
    random = np.random.default_rng(1)
    items = [[Option(*random.random(2))] for _ in range(40)]
    rough, fine = most_value(items, 4.0, most_states=50), most_value(items, 4.0)
    assert fine.exact and not rough.exact
    assert sums(items, rough.options)[0] <= 4.0
    assert 0.9 * sums(items, fine.options)[1] <= sums(items, rough.options)[1] <= sums(items, fine.options)[1]
    reached = least_loss(items, 12.0, most_states=50)
    assert reached is not None and sums(items, reached.options)[1] >= 12.0
