"""Compiling kernels ahead of the races: on all cores, and the most promising of every layer first.

A kernel for tensor cores takes a compiler part of a second, and dozens of tiles race in one network; cuDNN takes as
long, or several seconds, for a convolution with an activation that it has no ready kernel for. When the time for it is
short, each layer should have its best tile, by the order in which its tactics offer them, before any layer gets its
second. What was not begun in time does not race, and its layer says so.
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
from tamis.devices.cuda.cudnn_builders import plan_builders
from tamis.devices.cuda.cudnn_problem import ConvProblem
from tamis.errors import TamisError
from tamis.formats.dtype import DType
from tamis.kernels.cuda.compile import compile_source
from tamis.kernels.cuda.specification import Kernel


@dataclass(frozen=True)
class Unit:
    """What ``compile_source`` will be asked for."""

    source: str
    defines: tuple[tuple[str, str], ...]
    architecture: str


@dataclass(frozen=True)
class PlanUnit:
    """A plan of cuDNN that is compiled when it is built."""

    problem: ConvProblem
    rank: int

    @property
    def source(self) -> str:
        """What progress calls it."""
        return "a plan of cuDNN"


@dataclass(frozen=True, eq=False)
class Lowering:
    """A choice whose lowering compiles small kernels only, each in a part of a second."""

    tactic: Tactic
    layer: Layer
    choice: Choice

    @property
    def source(self) -> str:
        """What progress calls it."""
        return f"what {self.tactic.name} needs"


AnyUnit: TypeAlias = Unit | PlanUnit
# The units that each choice of a ladder needs: choices of one kind for one layer, the most promising first.
Ladder: TypeAlias = Sequence[Sequence[AnyUnit]]


@runtime_checkable
class Compiles(Protocol):
    """A tactic some of whose choices compile kernels that take long."""

    def units(self, layer: Layer, choice: Choice) -> Iterable[AnyUnit]:
        """What lowering a choice, or binding its step, compiles."""
        ...


def unit_of(kernel: Kernel, choice: Choice) -> Unit:
    """The unit of a kernel, for the architecture that the choice names."""
    defines = tuple(sorted((name, str(value)) for name, value in kernel.defines.items()))
    return Unit(f"{kernel.family}.cu", defines, str(choice.parameters["architecture"]))


def units_of(tactic: Tactic, layer: Layer, choice: Choice) -> tuple[AnyUnit, ...]:
    """What a choice compiles; nothing for tactics that do not tell."""
    return tuple(tactic.units(layer, choice)) if isinstance(tactic, Compiles) else ()


def in_order(
    work: Iterable[tuple[Layer, Iterable[tuple[Tactic, Choice]]]], slow: frozenset[DType] = frozenset()
) -> list[AnyUnit]:
    """Every unit once: first those of the best choice of every layer, then those of the second, and so on.

    A choice is one of its tactic, precision and pattern. Within a turn the layers with the most arithmetic come first.
    Of slow precisions only the best choices are there: behind these the others seldom race.
    """
    ladders: list[Ladder] = []
    for layer, offers in sorted(work, key=lambda share: -flops_of(share[0])):
        ladders += _ladders(layer, offers, slow)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ladders, fillvalue=()))
    return list(dict.fromkeys(itertools.chain.from_iterable(turns)))


def lowerings(work: Iterable[tuple[Layer, Iterable[tuple[Tactic, Choice]]]]) -> list[Lowering]:
    """One choice for each set of small kernels: pointwise programs behind a library's call, conversions, pooling.

    Choices that name an architecture compile something; those that differ by the rank of an algorithm compile the same.
    """
    found: dict[tuple[object, ...], Lowering] = {}
    for number, (layer, offers) in enumerate(work):
        for tactic, choice in offers:
            if "architecture" not in choice.parameters or any(
                isinstance(unit, Unit) for unit in units_of(tactic, layer, choice)
            ):
                continue
            rest = {name: value for name, value in choice.parameters.items() if name != "rank"}
            key = (number, tactic.name, choice.precision, choice.inputs, choice.outputs, str(rest))
            found.setdefault(key, Lowering(tactic, layer, choice))
    return list(found.values())


def _ladders(layer: Layer, offers: Iterable[tuple[Tactic, Choice]], slow: frozenset[DType]) -> Iterator[Ladder]:
    kinds: dict[tuple[str, DType, str], dict[tuple[AnyUnit, ...], None]] = {}
    for tactic, choice in offers:
        units = units_of(tactic, layer, choice)
        if units:
            # Choices that differ in what is not compiled, such as how their operands lie, are one.
            kinds.setdefault((tactic.name, choice.precision, choice.sparsity), {})[units] = None
    for (_, precision, _), choices in kinds.items():
        yield tuple(choices)[: 1 if precision in slow else None]


def compile_ahead(
    units: Sequence[AnyUnit | Lowering], deadline: float, progress: Callable[[int, int, str], None]
) -> frozenset[AnyUnit]:
    """Compile units in this order, as many at a time as there are cores; returns those that had not begun in time.

    Args:
        units: what to compile. What does not compile is left for the race to complain of, and so is, in silence, a
            lowering that has not begun.
        deadline: a time of ``time.monotonic``; what has begun by then is finished.
        progress: called with how many are done, how many there are, and the source of one.
    """
    late = set[AnyUnit]()
    cores = max(len(os.sched_getaffinity(0)), 1)
    plans = any(isinstance(unit, PlanUnit) for unit in units)
    with plan_builders(cores) if plans else contextlib.nullcontext() as builders:

        def compiled(unit: AnyUnit | Lowering) -> bool:
            if time.monotonic() >= deadline:
                return False
            with contextlib.suppress(TamisError, RuntimeError):  # what a race takes for a candidate's failure
                if isinstance(unit, Unit):
                    compile_source(unit.source, dict(unit.defines), unit.architecture)
                elif isinstance(unit, Lowering):
                    unit.tactic.lower(unit.layer, unit.choice)
                elif builders is not None:  # otherwise its race builds it
                    builders.build(unit.problem, unit.rank)
            return True

        pool = ThreadPoolExecutor(cores, "compile")
        try:
            begun = {pool.submit(compiled, unit): unit for unit in units}
            for done, future in enumerate(as_completed(begun), 1):
                unit = begun[future]
                if not future.result() and not isinstance(unit, Lowering):
                    late.add(unit)
                progress(done, len(units), unit.source)
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt nobody waits for those that have not begun
    return frozenset(late)
