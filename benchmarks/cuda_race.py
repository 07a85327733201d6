"""Racing implementations on a GPU: blocks in shuffled order, timed with events, outputs checked where they are.

All contestants are functions that replay a recorded run (a CUDA graph). ``Cpu`` stands in for the GPU where there is
none, so that everything but the numbers can be tried out.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

Outputs = Sequence[torch.Tensor]
Replay = Callable[[], Outputs]

BLOCK_SECONDS = 0.1
WARM_SECONDS = 0.04  # of the same contestant just before: its weights in the L2, the clocks at its own power
INTERVALS = 5  # measurements in a block
MOST_REPLAYS = 400  # in an interval
MOST_COPIES = 8
# The smallest cosine between an output and its float32 reference; below, a result counts as wrong.
LEAST_COSINE = {"float32": 0.99999, "tf32": 0.999, "float16": 0.999, "bfloat16": 0.99}
WRONG = "wrong outputs"  # how the failure of a contestant begins whose outputs were compared


class Machine(Protocol):
    """The device that contestants run on."""

    device: torch.device
    l2_bytes: int

    def record(self, runs: Sequence[Replay]) -> list[Replay]:
        """Each run as a replay that computes into the same outputs every time."""
        ...

    def intervals_us(self, run: Callable[[], object], replays: int, intervals: int) -> list[float]:
        """Microseconds of one call of ``run``, averaged over each of ``intervals`` groups of ``replays`` calls."""
        ...

    def synchronize(self) -> None:
        """Wait for the device; raises what went wrong on it."""
        ...


class Gpu:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.l2_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size

    def record(self, runs: Sequence[Replay]) -> list[Replay]:
        """One CUDA graph for each run. They share memory for what lies between inputs and outputs."""
        pool = torch.cuda.graph_pool_handle()
        replays = []
        for index, run in enumerate(runs):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(1 if index else 3):  # libraries choose algorithms and allocate on first use
                    run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                outputs = run()
            replays.append(_replaying(graph, outputs, run))
        return replays

    def intervals_us(self, run: Callable[[], object], replays: int, intervals: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(intervals + 1)]
        events[0].record()
        for event in events[1:]:
            for _ in range(replays):
                run()
            event.record()
        events[-1].synchronize()
        return [first.elapsed_time(second) * 1e3 / replays for first, second in itertools.pairwise(events)]

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def _replaying(graph: torch.cuda.CUDAGraph, outputs: Outputs, run: Replay) -> Replay:
    def replay(_keep: Replay = run) -> Outputs:  # the weights and inputs of the run live as long as the graph
        graph.replay()
        return outputs

    return replay


class Cpu:
    """Stands in for a GPU: runs are plain calls, timed with the clock."""

    def __init__(self, l2_bytes: int = 1 << 20) -> None:
        self.device, self.l2_bytes = torch.device("cpu"), l2_bytes

    def record(self, runs: Sequence[Replay]) -> list[Replay]:
        return list(runs)

    def intervals_us(self, run: Callable[[], object], replays: int, intervals: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in range(intervals):
            for _ in range(replays):
                run()
            times.append(time.perf_counter())
        return [(second - first) * 1e6 / replays for first, second in itertools.pairwise(times)]

    def synchronize(self) -> None:
        return


@dataclass
class Contestant:
    """An implementation of the case.

    Attributes:
        replays: one for each copy of the inputs; all compute the same values.
        samples: microseconds of a run, one for each interval of each of its blocks.
        failure: why it has no valid time; empty while all is well.
        error: largest error over the largest reference value, the worst of all outputs and copies.
        cosine: between an output and its reference, the worst likewise.
    """

    impl: str
    precision: str
    sparsity: str
    replays: Sequence[Replay]
    note: str = ""
    samples: list[float] = field(default_factory=list)
    failure: str = ""
    error: float = 0.0
    cosine: float = 1.0


def copies_needed(input_bytes: int, l2_bytes: int) -> int:
    """How many copies of the inputs the replays rotate through.

    A replay that reads the inputs of the one before finds them in the L2, which inputs from elsewhere are not. With
    copies that together exceed the L2 by a quarter, each has been evicted when its turn comes again. The number is
    capped because each copy needs a graph of its own: inputs so small that eight copies stay in the L2 take less than
    two microseconds to read from memory, and all contestants have the same.
    """
    return max(1, min(MOST_COPIES, math.ceil(1.25 * l2_bytes / max(input_bytes, 1))))


def race(
    contestants: Sequence[Contestant],
    machine: Machine,
    rounds: int,
    generator: random.Random,
    working_on: Callable[[str], None],
) -> None:
    """Time all contestants in turns, in an order that changes every round; one that fails drops out.

    ``working_on`` is told whose turn it is, so that the culprit of a crash is known.
    """
    running = [contestant for contestant in contestants if not contestant.failure]
    cycles = {contestant.impl: itertools.cycle(contestant.replays) for contestant in running}
    counts: dict[str, int] = {}
    for _ in range(rounds):
        order = [contestant for contestant in running if not contestant.failure]
        generator.shuffle(order)
        for contestant in order:
            working_on(contestant.impl)
            cycle = cycles[contestant.impl]
            try:
                if contestant.impl not in counts:
                    counts[contestant.impl] = _replays_for(lambda c=cycle: next(c)(), machine)
                block(contestant, cycle, machine, counts[contestant.impl])
            except Exception as error:  #  a contestant that fails costs its own row only
                fail(contestant, error, machine)
    working_on("")


def block(contestant: Contestant, cycle: Iterable[Replay], machine: Machine, replays: int) -> None:
    """Warm up and measure one block."""
    replay = iter(cycle)

    def run() -> None:
        next(replay)()

    for _ in range(max(1, round(replays * INTERVALS * WARM_SECONDS / BLOCK_SECONDS))):
        run()
    contestant.samples += machine.intervals_us(run, replays, INTERVALS)


def _replays_for(run: Callable[[], object], machine: Machine) -> int:
    """Replays in an interval, so that a block takes about ``BLOCK_SECONDS``."""
    machine.intervals_us(run, 1, 2)
    each = min(machine.intervals_us(run, 2, 3)) / 1e6
    return max(1, min(MOST_REPLAYS, round(BLOCK_SECONDS / INTERVALS / max(each, 1e-9))))


def fail(contestant: Contestant, error: Exception, machine: Machine) -> None:
    """Note a failure; raise ``BrokenMachine`` when the device is of no more use to this process."""
    contestant.failure = one_line(error)
    try:
        machine.synchronize()
    except RuntimeError as broken:
        raise BrokenMachine(contestant.impl, contestant.failure) from broken


class BrokenMachine(RuntimeError):
    """The device answers no more in this process, as after an illegal access in a kernel."""

    def __init__(self, impl: str, reason: str) -> None:
        super().__init__(f"{impl}: {reason}")
        self.impl, self.reason = impl, reason


def one_line(error: BaseException) -> str:
    """The type and the first line of an error."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:200]


def check(contestant: Contestant, references: Outputs, machine: Machine) -> None:
    """Compare every copy's outputs, poisoned before, with the references; what is wrong is a failure."""
    if contestant.failure:
        return
    try:
        for replay in contestant.replays:
            poison(replay())
            outputs = replay()
            machine.synchronize()
            error, cosine = compare(outputs, references)
            contestant.error, contestant.cosine = max(contestant.error, error), min(contestant.cosine, cosine)
    except Exception as error:  #  see race
        fail(contestant, error, machine)
        return
    if not contestant.cosine >= LEAST_COSINE[contestant.precision]:
        contestant.failure = f"{WRONG}: cosine {contestant.cosine:.6f}, largest error {contestant.error:.3g}"


def poison(outputs: Outputs) -> None:
    """Overwrite outputs with NaN, so that one that is not written shows."""
    with torch.inference_mode():
        for output in outputs:
            output.fill_(math.nan if output.is_floating_point() else torch.iinfo(output.dtype).min)


def compare(outputs: Outputs, references: Outputs) -> tuple[float, float]:
    """Largest error over the largest reference value, and cosine; the worst of all outputs.

    What is not finite, or of another shape or number, counts as 1e30 and 0.
    """
    if len(outputs) != len(references):
        return 1e30, 0.0
    errors, cosines = [], []
    with torch.inference_mode():
        for output, reference in zip(outputs, references, strict=True):
            if output.shape != reference.shape or not all(bool(torch.isfinite(t).all()) for t in (output, reference)):
                return 1e30, 0.0
            found, wanted = output.double().flatten(), reference.double().flatten()
            scale = float(wanted.abs().max()) or 1.0
            errors.append(float((found - wanted).abs().max()) / scale)
            norms = float(found.norm()) * float(wanted.norm())
            cosines.append(float(found.dot(wanted)) / norms if norms else float(torch.equal(found, wanted)))
    return max(errors), min(cosines)
