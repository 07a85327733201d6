"""The race for one layer: every tactic refuses with a reason or runs, is checked, and is timed.

Layers with the same signature share one race. First all choices run a few times; within each pair of formats
(what is read, what is written) those far behind the best drop out, and the rest is timed in turns. No winner
is declared here: which choice serves the whole graph best is for the planner to say.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.ahead import AnyUnit, Compiles, compile_ahead, in_order, lowerings, units_of
from tamis.compiler.tactics.base import Choice, Layer, LeavesOut, Lowered, Tactic, flops_of, moved_bytes_of
from tamis.compiler.tuner.accuracy import compare, objection, worst
from tamis.compiler.tuner.cache import Measurement, TimingCache
from tamis.compiler.tuner.describe import signature_of
from tamis.compiler.tuner.prior import Roof
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.standing import BEHIND, OUTCLASSED, Standing, slower_precisions
from tamis.compiler.tuner.suspect import Suspect, broke_device, suspect_of, watch
from tamis.compiler.tuner.timing import Clock
from tamis.compiler.tuner.trial import SharedMemory, Trial, bind_trial
from tamis.devices.base import Device
from tamis.engine.plan import Accuracy, DeviceState, Timing
from tamis.errors import DeviceLost, TamisError
from tamis.formats.dtype import DType

# Nor is one that is slower than the best of all formats by this factor and these microseconds together: no saved
# conversion makes up for that. Strict float32 beside float16 on tensor cores, for instance.
_FAR_BEHIND = 3.0
_FAR_BEHIND_US = 100.0
_FIRST_TURNS = 3
_SPENT = "skipped: the time budget of "
_NO_MEMORY = "failed: out of memory"


@dataclass(frozen=True)
class Entry:
    """One choice in a race, as it fared. Without a timing, ``reason`` says why."""

    choice: Choice
    timing: Timing | None = None
    accuracy: Accuracy | None = None
    reason: str = ""
    disqualified: bool = False


@dataclass(frozen=True)
class LayerRace:
    """All that was found out about one layer.

    ``refusals`` and ``left_out`` are tactics with the reason why they, or some of their choices, did not race.
    """

    layer: Layer
    entries: tuple[Entry, ...]
    refusals: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def finishers(self) -> tuple[Entry, ...]:
        """Those that were timed and are right."""
        return tuple(e for e in self.entries if e.timing is not None and not e.disqualified)


@dataclass(frozen=True)
class Track:
    """What every race needs.

    ``state`` is that of the device before the first one; ``build`` tells builds of other layers or options apart.
    """

    device: Device
    config: BuildConfig
    clock: Clock
    cache: TimingCache
    roof: Roof
    reference: Reference
    deadline: float
    threads: int
    state: DeviceState | None
    build: str


Offers = list[tuple[Tactic, Choice]]


@dataclass(frozen=True)
class Prepared:
    """What stands before the races of some layers.

    Attributes:
        waiting: of each layer, how many candidates will be timed; 0 where all times are known.
        late: the kernels that were not compiled in time.
    """

    waiting: tuple[int, ...]
    late: frozenset[AnyUnit]


def prepare(
    layers: Iterable[Layer],
    tactics: tuple[Tactic, ...],
    track: Track,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Prepared:
    """Compile what the races of these layers will lower, as far as their times are not known yet.

    It may take half of the time that is left; what has not begun by then is late.
    """
    work: list[tuple[Layer, Offers]] = []
    for layer in layers:
        offers, _ = _offers(layer, tactics, track)
        known = all(_known(offers, race_suspects(layer, [choice for _, choice in offers], track), track))
        work.append((layer, [] if known else offers))
    late: frozenset[AnyUnit] = frozenset()
    if any(isinstance(tactic, Compiles) for tactic in tactics):
        slow = slower_precisions({choice.precision for _, offers in work for _, choice in offers}, track.roof)
        units = [*lowerings(work), *in_order(work, slow)]
        late = compile_ahead(units, (time.monotonic() + track.deadline) / 2, progress)
    return Prepared(tuple(len(offers) for _, offers in work), late)


def share_of(deadline: float, waiting: int, others: int) -> float:
    """Until when the race of a layer with so many candidates may last, of all that wait.

    No layer may eat up the time of those behind it; but some need more than their share, and what others do not need is
    left for them. So a layer has twice its share of the time that is left when its race begins.
    """
    now = time.monotonic()
    return now + max(deadline - now, 0.0) * min(2 * waiting / max(waiting + others, 1), 1.0)


def race_layer(
    layer: Layer, tactics: tuple[Tactic, ...], track: Track, late: frozenset[AnyUnit] = frozenset()
) -> LayerRace:
    """Race all tactics for one layer, but for the candidates that need a kernel which was not compiled in time.

    Raises ``DeviceLost`` for a candidate that breaks the device.
    """
    offers, refusals = _offers(layer, tactics, track)
    return LayerRace(layer, _measure(layer, offers, track, late), refusals, _left_out(layer, offers, track))


def _offers(layer: Layer, tactics: tuple[Tactic, ...], track: Track) -> tuple[Offers, tuple[tuple[str, str], ...]]:
    """Who runs in a race, and who does not and why."""
    info = track.device.info()
    config = replace(track.config, precisions=track.config.precisions_of(layer.name))  # float32 always races
    refusals: list[tuple[str, str]] = []
    offers: Offers = []
    for tactic in tactics:
        excluded = config.excludes(tactic.name) and tactic.name != "aten"  # the reference always races
        reason = "excluded by the user" if excluded else tactic.refuses(layer, info, config)
        if reason is not None:
            refusals.append((tactic.name, reason))
            continue
        offers += [(tactic, choice) for choice in tactic.choices(layer, info, config)]
    return offers, tuple(refusals)


def _left_out(layer: Layer, offers: Offers, track: Track) -> tuple[tuple[str, str], ...]:
    """Tactics that offer some of their choices only, and why."""
    racing = {tactic.name: tactic for tactic, _ in offers if isinstance(tactic, LeavesOut)}
    reasons = ((name, t.left_out(layer, track.device.info(), track.config)) for name, t in racing.items())
    return tuple((name, reason) for name, reason in reasons if reason is not None)


def _known(offers: Offers, suspects: Iterable[Suspect], track: Track) -> list[Measurement | None]:
    """What the cache knows of each."""
    racing = _racing(offers)
    return [_still_valid(track.cache.get(suspect.key), track, racing) for suspect in suspects]


def _racing(offers: Offers) -> str:
    """The precisions of a race, which what was skipped for the sake of others speaks of."""
    return "+".join(sorted({str(choice.precision) for _, choice in offers}))


def _measure(layer: Layer, choices: Offers, track: Track, late: frozenset[AnyUnit]) -> tuple[Entry, ...]:
    suspects = race_suspects(layer, [choice for _, choice in choices], track)
    found = _known(choices, suspects, track)
    if all(found):
        return tuple(_entry(choice, m, track) for (_, choice), m in zip(choices, found, strict=True) if m)
    # Times count beside those taken in turns with them, so a race is run as a whole; only what broke the GPU stays out,
    # and what would have to be compiled in the time of other layers.
    fit = []
    for index, (tactic, choice) in enumerate(choices):
        if late and not late.isdisjoint(units_of(tactic, layer, choice)):
            spent = " before its kernel was compiled"
            found[index] = found[index] or track.cache.put(suspects[index].key, _skipped(spent, track))
        elif not broke_device(found[index]):
            fit.append(index)
    with torch.inference_mode():
        measured = _race_now(layer, [choices[index] for index in fit], [suspects[index] for index in fit], track)
    for index, measurement in zip(fit, measured, strict=True):
        found[index] = track.cache.put(suspects[index].key, measurement)
    return tuple(_entry(choice, m, track) for (_, choice), m in zip(choices, found, strict=True) if m)


def race_suspects(layer: Layer, choices: Iterable[Choice], track: Track) -> list[Suspect]:
    """The candidates of a layer's race as suspects; the key of each is that of its measurement."""
    race = f"{'cold' if track.clock.cold else 'warm'} layer: {signature_of(layer)}"
    return [suspect_of(choice, layer.name, f"{race} by {choice.key()}") for choice in choices]


def _still_valid(found: Measurement | None, track: Track, racing: str) -> Measurement | None:
    """What the cache holds, unless it failed for want of memory or of time, or fell behind precisions not raced now.

    The same build with the same time gives the same answer. With more time, or other layers to share it with, there may
    be another one.
    """
    if found is not None and found.failure.startswith(_NO_MEMORY):
        return None
    if found is not None and found.failure.startswith(OUTCLASSED):
        return found if found.build == racing else None
    if found is None or not found.failure.startswith(_SPENT):
        return found
    spent = float(found.failure.removeprefix(_SPENT).split()[0])
    return found if found.build == track.build and track.config.budget_seconds <= spent else None


def _entry(choice: Choice, measurement: Measurement, track: Track) -> Entry:
    """A measurement judged by this build's tolerances."""
    wrong = None if measurement.accuracy is None else _objection(choice, measurement.accuracy, track)
    failed = measurement.failure
    return Entry(
        choice, measurement.timing, measurement.accuracy, wrong or failed, bool(wrong) or failed.startswith("failed")
    )


def _objection(choice: Choice, accuracy: Accuracy, track: Track) -> str | None:
    # A layer may be coarser than the whole engine is allowed to be; what adds up is checked at the end.
    cosine = min(track.config.accuracy_cosine, 0.99)
    return objection(accuracy, choice.precision, cosine, track.config.accuracy_relative)


def _race_now(layer: Layer, choices: Offers, suspects: Sequence[Suspect], track: Track) -> list[Measurement]:
    results: dict[int, Measurement] = {}
    trials: dict[int, Trial] = {}
    timings: dict[int, Timing] = {}
    accuracies: dict[int, Accuracy] = {}
    flops = flops_of(layer)
    memory = SharedMemory()
    racing = _racing(choices)
    standing = Standing(slower_precisions({choice.precision for _, choice in choices}, track.roof))
    for index, turn in _by_turns(choices, standing.slow):
        tactic, choice = choices[index]
        bound = track.roof.bound_us(flops, moved_bytes_of(layer, choice), choice.precision)
        needless = standing.spares(choice, turn, bound)
        if needless is not None:
            results[index] = Measurement(failure=needless, build=racing if needless.startswith(OUTCLASSED) else "")
            continue
        if time.monotonic() > track.deadline and standing.waives(choice):
            results[index] = _skipped("", track)
            continue
        try:
            with watch(track.device, suspects[index]):
                trial = _start(layer, tactic.lower(layer, choice), choice, track, memory)
                trial.run()
                accuracies[index] = _check(layer, choice, trial, track)
                timing = track.clock.race({"": trial.contender(suspects[index])}, _FIRST_TURNS)[""]
                trial.let_go()
        except DeviceLost:
            raise
        except torch.OutOfMemoryError as error:  # of this machine today: the next build tries again
            results[index] = Measurement(failure=f"{_NO_MEMORY}: {str(error).splitlines()[0][:120]}")
            continue
        except (RuntimeError, TamisError) as error:
            results[index] = Measurement(failure=f"failed: {str(error).splitlines()[0][:200]}")
            continue
        trials[index], timings[index] = trial, timing
        # Who beats the bound shows that the machine was busy while the roof was measured: it then rules out nobody.
        standing.roof_holds &= choice.sparsity != "dense" or timing.median_us >= bound
        if _objection(choice, accuracies[index], track) is None:
            standing.note(choice, timing.median_us)
    limit = _FAR_BEHIND * min(standing.best.values(), default=0.0) + _FAR_BEHIND_US

    def hopeful(index: int) -> bool:
        of_its_formats = standing.best.get((choices[index][1].inputs, choices[index][1].outputs), float("inf"))
        return timings[index].median_us <= min(BEHIND * of_its_formats, limit)

    finalists = {str(index): trial.contender(suspects[index]) for index, trial in trials.items() if hopeful(index)}
    finals = track.clock.race(finalists, track.config.turns, track.deadline)
    timings |= {int(index): timing for index, timing in finals.items()}
    for index, timing in timings.items():
        results[index] = Measurement(timing, accuracies[index])
    return [results[index] for index in range(len(choices))]


def _skipped(when: str, track: Track) -> Measurement:
    """That there was no time; ``when`` follows in words."""
    return Measurement(failure=f"{_SPENT}{track.config.budget_seconds:g} s was spent{when}", build=track.build)


def _by_turns(choices: Offers, slow: frozenset[DType]) -> list[tuple[int, int]]:
    """The first candidate of each tactic, precision, pattern and format, then the second of each: index and turn.

    Tactics give their best ones first, so these are timed even if the time does not suffice for more. In each turn the
    most special tactics come first, whose kernels are compiled by now, while libraries choose or even compile theirs in
    the first call; and last PyTorch's own, which is never missing and seldom the fastest. Slow precisions come behind
    all turns of the others. Where their best ones are far behind, the rest of them need not run.
    """
    seen = Counter[tuple[object, ...]]()
    places = {name: place for place, name in enumerate(dict.fromkeys(tactic.name for tactic, _ in choices))}
    keys = []
    for index, (tactic, choice) in enumerate(choices):
        kind = (tactic.name, choice.precision, choice.sparsity, choice.inputs, choice.outputs)
        keys.append((choice.precision in slow, seen[kind], -places[tactic.name], index))
        seen[kind] += 1
    return [(index, turn) for _, turn, _, index in sorted(keys)]


def _start(layer: Layer, lowered: Lowered, choice: Choice, track: Track, memory: SharedMemory) -> Trial:
    inputs = {
        v: (memory.get((v, f), functools.partial(track.reference.formatted, v, f)), f)
        for v, f in zip(layer.values, choice.inputs, strict=True)
    }
    outputs = {v: (layer.types[v], f) for v, f in zip(layer.node.outputs, choice.outputs, strict=True)}
    return bind_trial(track.device, lowered, inputs, outputs, memory)


def _check(layer: Layer, choice: Choice, trial: Trial, track: Track) -> Accuracy:
    for value, slot, format in zip(layer.node.outputs, trial.outputs, choice.outputs, strict=True):
        if not track.device.lies_in(trial.slots[slot], format):
            raise TamisError(f"result '{value}' does not lie in memory as {format}")
    results = [trial.slots[slot] for slot in trial.outputs]
    references = [track.reference.value(v) for v in layer.node.outputs]
    for value, result, reference in zip(layer.node.outputs, results, references, strict=True):
        if tuple(result.shape) != tuple(reference.shape):
            raise TamisError(f"result '{value}' has shape {tuple(result.shape)}, expected {tuple(reference.shape)}")
    return worst([compare(r, t) for r, t in zip(results, references, strict=True)])
