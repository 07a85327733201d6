"""The race of GPU benchmarks, with a clock and contestants that are made up: order, statistics, checks, failures."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch

from cuda_race import (
    BrokenMachine,
    Contestant,
    Cpu,
    Replay,
    check,
    compare,
    copies_needed,
    poison,
    race,
)


class Clocked(Cpu):
    """Every run takes the time that its contestant says; ``calls`` records whose blocks were measured."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.broken = False

    def intervals_us(self, run: Callable[[], object], replays: int, intervals: int) -> list[float]:
        times = [self.now]
        for _ in range(intervals):
            for _ in range(replays):
                run()
            times.append(self.now)
        return [(second - first) / replays for first, second in itertools.pairwise(times)]

    def synchronize(self) -> None:
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")


def taking(machine: Clocked, us: float, values: Sequence[float] = (1.0, 2.0)) -> Replay:
    output = torch.zeros(len(values))

    def replay() -> list[torch.Tensor]:
        machine.now += us
        output.copy_(torch.tensor(values))
        return [output]

    return replay


def contestant(impl: str, *replays: Replay) -> Contestant:
    return Contestant(impl, "float16", "dense", replays)


def test_contestants_take_turns_in_an_order_that_changes() -> None:
    machine, turns = Clocked(), []
    field = [contestant(name, taking(machine, us)) for name, us in (("a", 100.0), ("b", 5000.0), ("c", 1e5))]
    race(field, machine, 6, random.Random(1), turns.append)
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert [len(c.samples) for c in field] == [30, 30, 30]
    for one, us in zip(field, (100.0, 5000.0, 1e5), strict=True):
        assert one.samples == pytest.approx([us] * 30)
    assert turns[-1] == ""  # nobody's turn any more


def test_replays_rotate_through_the_copies() -> None:
    machine, seen = Clocked(), []

    def copy(index: int) -> Replay:
        inner = taking(machine, 1e4)
        return lambda: (seen.append(index), inner())[1]

    race([contestant("a", *(copy(i) for i in range(3)))], machine, 5, random.Random(0), lambda _: None)
    assert len(seen) > 30
    assert all(second == (first + 1) % 3 for first, second in itertools.pairwise(seen))


def test_a_contestant_that_fails_drops_out_alone() -> None:
    machine = Clocked()
    count = itertools.count()
    good = taking(machine, 1e4)

    def bad() -> list[torch.Tensor]:
        if next(count) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore")
        return good()

    field = [contestant("bad", bad), contestant("good", good)]
    race(field, machine, 5, random.Random(0), lambda _: None)
    assert field[0].failure == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert field[1].failure == "" and len(field[1].samples) == 25


def test_a_device_that_is_broken_ends_the_process_and_names_the_culprit() -> None:
    machine = Clocked()

    def crash() -> list[torch.Tensor]:
        machine.broken = True
        raise RuntimeError("CUDA error")

    with pytest.raises(BrokenMachine) as caught:
        race([contestant("bad", crash)], machine, 5, random.Random(0), lambda _: None)
    assert caught.value.impl == "bad" and "CUDA error" in caught.value.reason


REFERENCE = [torch.tensor([1.0, 2.0])]


def test_right_outputs_pass_and_wrong_ones_do_not() -> None:
    machine = Clocked()
    right, wrong = contestant("r", taking(machine, 1.0)), contestant("w", taking(machine, 1.0, (1.0, -2.0)))
    check(right, REFERENCE, machine)
    check(wrong, REFERENCE, machine)
    assert right.failure == "" and right.error == 0.0 and right.cosine == pytest.approx(1.0)
    assert wrong.failure.startswith("wrong outputs") and wrong.error == 2.0


def test_every_copy_is_checked() -> None:
    machine = Clocked()
    one = contestant("w", taking(machine, 1.0), taking(machine, 1.0, (2.0, 1.0)))
    check(one, REFERENCE, machine)
    assert one.failure.startswith("wrong outputs")


def test_an_output_that_is_not_written_shows() -> None:
    output = torch.tensor([1.0, 2.0])  # right by chance, from an earlier run
    lazy = contestant("lazy", lambda: [output])
    check(lazy, REFERENCE, Clocked())
    assert lazy.failure.startswith("wrong outputs") and lazy.error == 1e30


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    bad = [torch.tensor([1.0, value])]
    assert compare(bad, REFERENCE) == (1e30, 0.0)
    assert compare(REFERENCE, bad) == (1e30, 0.0)


def test_shapes_and_numbers_of_outputs_are_compared() -> None:
    assert compare([torch.tensor([[1.0, 2.0]])], REFERENCE) == (1e30, 0.0)
    assert compare(REFERENCE * 2, REFERENCE) == (1e30, 0.0)
    assert compare([REFERENCE[0], torch.ones(2)], [REFERENCE[0], torch.tensor([1.0, 0.0])])[1] < 0.8  # the worst


def test_poison_reaches_outputs_made_in_inference_mode() -> None:
    with torch.inference_mode():
        outputs = [torch.ones(2), torch.ones(2, dtype=torch.int64)]
    poison(outputs)
    assert bool(outputs[0].isnan().all()) and int(outputs[1][0]) < 0


@pytest.mark.parametrize(("size", "copies"), [(1000, 8), (400, 8), (10**6, 2), (2 * 10**6, 1), (0, 8)])
def test_copies_exceed_the_cache_together(size: int, copies: int) -> None:
    assert copies_needed(size, 10**6) == copies
