"""The arena: no two live buffers overlap, and little is wasted."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.compiler.planner.memory import ALIGNMENT, Lifetime, aligned, peak_bytes, place


def random_lifetimes(seed: int) -> list[Lifetime]:
    generator = np.random.default_rng(seed)
    count, steps = int(generator.integers(1, 60)), int(generator.integers(1, 40))
    lifetimes = []
    for number in range(count):
        first = int(generator.integers(0, steps))
        last = int(min(steps - 1, first + generator.integers(0, 6)))
        lifetimes.append(Lifetime(f"v{number}", int(generator.integers(1, 5000)), first, last))
    return lifetimes


@pytest.mark.parametrize("seed", range(50))
def test_live_buffers_never_overlap(seed: int) -> None:
    lifetimes = random_lifetimes(seed)
    offsets, arena = place(lifetimes)
    for a in lifetimes:
        assert offsets[a.name] % ALIGNMENT == 0
        assert 0 <= offsets[a.name] <= arena - a.size_bytes
        for b in lifetimes:
            if a.name < b.name and a.meets(b):
                apart = offsets[a.name] + a.size_bytes <= offsets[b.name]
                assert apart or offsets[b.name] + b.size_bytes <= offsets[a.name]


@pytest.mark.parametrize("seed", range(20))
def test_arena_is_between_the_live_set_and_the_sum(seed: int) -> None:
    lifetimes = random_lifetimes(seed)
    _, arena = place(lifetimes)
    alone = [Lifetime(x.name, aligned(x.size_bytes), x.first, x.last) for x in lifetimes]
    peak = peak_bytes(alone, 40)
    assert peak <= arena <= sum(x.size_bytes for x in alone)
    brute = max(sum(x.size_bytes for x in alone if x.first <= t <= x.last) for t in range(40))
    assert peak == brute


def test_a_chain_needs_two_buffers() -> None:
    chain = [Lifetime(f"v{i}", 6400, i, i + 1) for i in range(10)]
    assert place(chain)[1] == 2 * 6400


def test_nothing_to_place() -> None:
    assert place([]) == ({}, 0)
    assert peak_bytes([], 3) == 0
