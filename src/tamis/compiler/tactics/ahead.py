"""Compiling kernels ahead of the races: on all cores, and the most promising of every layer first.

A kernel for tensor cores takes a compiler part of a second, and dozens of tiles race in one network. When the time for
it is short, each layer should have its best tile, by the order in which its tactics offer them, before any layer gets
its second. What was not begun in time does not race, and its layer says so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from tamis.compiler.tactics.base import Choice, Layer, Tactic, flops_of
from tamis.errors import TamisError
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.specification import Kernel


@dataclass(frozen=True)
class Unit:
    """What ``compile_source`` will be asked for."""

    source: str
    defines: tuple[tuple[str, str], ...]
    architecture: str


# The units that each choice of a ladder needs: choices of one kind for one layer, the most promising first.
Ladder: TypeAlias = Sequence[Sequence[Unit]]


@runtime_checkable
class Compiles(Protocol):
    """A tactic whose lowering compiles kernels that take long."""

    def units(self, layer: Layer, choice: Choice) -> Iterable[Unit]:
        """What lowering a choice compiles."""
        ...


def unit_of(kernel: Kernel, choice: Choice) -> Unit:
    """The unit of a kernel, for the architecture that the choice names."""
    defines = tuple(sorted((name, str(value)) for name, value in kernel.defines.items()))
    return Unit(f"{kernel.family}.cu", defines, str(choice.parameters["architecture"]))


def units_of(tactic: Tactic, layer: Layer, choice: Choice) -> tuple[Unit, ...]:
    """What lowering a choice compiles; nothing for tactics that do not tell."""
    return tuple(tactic.units(layer, choice)) if isinstance(tactic, Compiles) else ()


def in_order(work: Iterable[tuple[Layer, Iterable[tuple[Tactic, Choice]]]]) -> list[Unit]:
    """Every unit once: first those of the best choice of every layer, then those of the second, and so on.

    A choice is one of its tactic, precision and pattern. Within a turn the layers with the most arithmetic come first.
    """
    ladders: list[Ladder] = []
    for layer, offers in sorted(work, key=lambda share: -flops_of(share[0])):
        ladders += _ladders(layer, offers)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ladders, fillvalue=()))
    return list(dict.fromkeys(itertools.chain.from_iterable(turns)))


def _ladders(layer: Layer, offers: Iterable[tuple[Tactic, Choice]]) -> Iterator[Ladder]:
    kinds: dict[tuple[str, object, str], dict[tuple[Unit, ...], None]] = {}
    for tactic, choice in offers:
        units = units_of(tactic, layer, choice)
        if units:
            # Choices that differ in what is not compiled, such as how their operands lie, are one.
            kinds.setdefault((tactic.name, choice.precision, choice.sparsity), {})[units] = None
    for choices in kinds.values():
        yield tuple(choices)


def compile_ahead(units: Sequence[Unit], deadline: float, progress: Callable[[int, int, str], None]) -> frozenset[Unit]:
    """Compile units in this order, as many at a time as there are cores; returns those that had not begun in time.

    Args:
        units: what to compile. A unit that does not compile is left for the race to complain of.
        deadline: a time of ``time.monotonic``; what has begun by then is finished.
        progress: called with how many are done, how many there are, and the source of one.
    """

    def compiled(unit: Unit) -> bool:
        if time.monotonic() >= deadline:
            return False
        with contextlib.suppress(TamisError):
            compile_source(unit.source, dict(unit.defines), unit.architecture)
        return True

    late = set[Unit]()
    pool = ThreadPoolExecutor(max(len(os.sched_getaffinity(0)), 1), "compile")
    try:
        begun = {pool.submit(compiled, unit): unit for unit in units}
        for done, future in enumerate(as_completed(begun), 1):
            unit = begun[future]
            if not future.result():
                late.add(unit)
            progress(done, len(units), unit.source)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt nobody waits for those that have not begun
    return frozenset(late)
