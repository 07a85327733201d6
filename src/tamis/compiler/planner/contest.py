"""The last race: whole engines against each other, and the guard over their accuracy.

Sums of layer times are only a forecast. The engines that the search proposes, with and without sparse
tactics, are run as users will run them, in turns, and the fastest stays; a tie goes to the simpler one. So
asking for sparsity never costs speed. The winner must then beat itself with a copy in place of every view,
since some kernels read dense values so much faster that copying pays, and with some steps on a second stream.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tamis.compiler.config import BuildConfig
from tamis.compiler.planner.lower import Draft
from tamis.compiler.tuner.accuracy import compare, objection, worst
from tamis.compiler.tuner.cache import Measurement, TimingCache, digest_of, short_hash
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.suspect import Suspect, broke_device, watch
from tamis.compiler.tuner.timing import Clock, Contender
from tamis.devices.base import Device
from tamis.engine.file import Engine
from tamis.engine.noise import beats
from tamis.engine.plan import Accuracy, EngineRecord, Timing, to_json
from tamis.errors import DeviceLost, TamisError
from tamis.formats.dtype import DType
from tamis.runtime.session import Session

# At the default level a contest takes 21 turns and a race 15: everything hangs on the contest. No level needs more.
_MOST_TURNS = 21
_TURNS_OF_A_RACE = 7 / 5
# The turns of a contest end after this time (but not before the third one).
_SECONDS = 10.0


@dataclass(frozen=True)
class Result:
    """One whole engine in the contest."""

    name: str
    draft: Draft
    timing: Timing
    accuracy: Accuracy


def engine_precision(draft: Draft) -> DType:
    """The lowest precision that any step of a draft runs in."""
    present = {step.precision for step in draft.steps}
    return next((p for p in (DType.FLOAT16, DType.BFLOAT16, DType.TF32) if p in present), DType.FLOAT32)


class Contest:
    """Times and checks drafts as sessions; everything measured is kept in the timing cache."""

    def __init__(
        self,
        assemble: Callable[[Draft], Engine],
        device: Device,
        config: BuildConfig,
        cache: TimingCache,
        reference: Reference,
    ) -> None:
        self._assemble = assemble
        self._device = device
        self._config = config
        self._cache = cache
        self._reference = reference
        self._keys: dict[Draft, str] = {}
        self._sessions: dict[Draft, Session] = {}

    def accuracy(self, draft: Draft) -> Accuracy:
        """How far the outputs of a draft are from the reference on the sample inputs."""
        key = self._accuracy_key(draft)
        found = self._cache.get(key)
        if found is None or found.accuracy is None:
            results = self._session(draft).run(self._reference.samples())
            expected = self._reference.outputs()
            accuracy = worst(
                [compare(np.asarray(results[name]), expected[name]) for name in self._reference.graph.outputs]
            )
            found = self._cache.put(key, Measurement(accuracy=accuracy))
        assert found.accuracy is not None
        return found.accuracy

    def objection(self, draft: Draft) -> str | None:
        """Why a draft cannot be used: it fails, or it is not accurate enough for the user's tolerances. Or None.

        A draft that fails is a bug of Tamis or of a library, but others may do, so a warning has to suffice. Raises
        ``DeviceLost`` for one that breaks the device.
        """
        config = self._config
        known = self._cache.get(self._accuracy_key(draft))
        if known is not None and broke_device(known):
            return known.failure
        try:
            with watch(self._device, self._suspect(draft)):
                accuracy = self.accuracy(draft)
        except DeviceLost:
            raise
        except (RuntimeError, TamisError) as error:
            warnings.warn(f"a proposed engine failed and is left out: {error}", stacklevel=2)
            return f"failed: {error}"
        return objection(accuracy, engine_precision(draft), config.accuracy_cosine, config.accuracy_relative)

    def run(self, drafts: Mapping[str, Draft]) -> tuple[Result, tuple[EngineRecord, ...]]:
        """The winner, and the records of all. ``drafts`` go from the simplest to the most elaborate."""
        results = self._results(drafts)
        winner, fastest = _best(results)
        records = [_record(r, winner, fastest) for r in results]
        place = results.index(winner)
        for how in ("views copied", "on two streams"):
            variant = winner.draft.copying if how == "views copied" else winner.draft.aside
            self._keep(winner.draft)
            if variant is None or self.objection(variant) is not None:
                continue
            # The winner first: it needs less memory, so that a tie goes to it.
            pair = self._results({winner.name: winner.draft, f"{winner.name}, {how}": variant})
            better, fastest = _best(pair)
            records.append(_record(pair[1], better, fastest))
            if better is pair[1]:
                records[place] = _record(pair[0], better, fastest)
                winner, place = better, len(records) - 1
        self._sessions.clear()
        return winner, tuple(records)

    def _results(self, drafts: Mapping[str, Draft]) -> list[Result]:
        timings = self._timings(drafts)
        return [Result(n, d, timings[n], self.accuracy(d)) for n, d in drafts.items()]

    def _keep(self, draft: Draft) -> None:
        """Unload all sessions but that of a draft."""
        self._sessions = {kept: session for kept, session in self._sessions.items() if kept is draft}

    def _timings(self, drafts: Mapping[str, Draft]) -> dict[str, Timing]:
        together = short_hash(*(self._key(d) for d in drafts.values()))
        keys = {name: f"{self._key(draft)} in contest {together}" for name, draft in drafts.items()}
        found = {name: self._cache.get(key) for name, key in keys.items()}
        if not all(m is not None and m.timing is not None for m in found.values()):
            samples = self._reference.samples()
            contenders = {}
            for name, draft in drafts.items():
                suspect = self._suspect(draft)
                with watch(self._device, suspect):
                    call = in_inference_mode(self._session(draft).bind(samples))
                # Each engine as if it were alone: the one before it may have left its threads spinning.
                contenders[name] = Contender(call, settle=True, suspect=suspect)
            turns = min(_MOST_TURNS, round(self._config.turns * _TURNS_OF_A_RACE))
            measured = Clock(self._device, cold=False).race(contenders, turns, time.monotonic() + _SECONDS)
            found = {n: self._cache.put(keys[n], Measurement(timing)) for n, timing in measured.items()}
        return {name: m.timing for name, m in found.items() if m is not None and m.timing is not None}

    def _session(self, draft: Draft) -> Session:
        """The draft, loaded; it stays loaded until the end of the contest."""
        if draft not in self._sessions:
            self._sessions[draft] = Session(self._assemble(draft), device=self._device)
        return self._sessions[draft]

    def _suspect(self, draft: Draft) -> Suspect:
        return Suspect(f"an engine of {len(draft.steps)} steps", key=self._accuracy_key(draft))

    def _accuracy_key(self, draft: Draft) -> str:
        return f"{self._key(draft)} accuracy"

    def _key(self, draft: Draft) -> str:
        if draft not in self._keys:
            steps = to_json(replace(self._assemble(draft).plan, config={}))
            constants = [f"{name} {digest}" for name, digest in sorted(draft.digests.items())]
            samples = sorted((self._config.samples or {}).items())
            seed = json.dumps([self._config.seed, [f"{name} {digest_of(array)}" for name, array in samples]])
            self._keys[draft] = f"engine: {len(draft.steps)} steps #{short_hash(steps, seed, *constants)}"
        return self._keys[draft]


def _best(results: Sequence[Result]) -> tuple[Result, Result]:
    """The winner (the first that none beats by more than the noise) and the fastest."""
    fastest = min(results, key=lambda r: r.timing.median_us)
    return next(r for r in results if not beats(fastest.timing, r.timing)), fastest


def in_inference_mode(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a session makes it."""

    def run() -> None:
        with torch.inference_mode():
            call()

    return run


def _record(result: Result, winner: Result, fastest: Result) -> EngineRecord:
    if result is winner and result is fastest:
        reason = "the fastest"
    elif result is winner:
        reason = f"as fast as '{fastest.name}' within the noise, and simpler"
    elif beats(winner.timing, result.timing):
        reason = f"{result.timing.median_us / winner.timing.median_us:.2f}x the time of '{winner.name}'"
    else:
        reason = f"not faster than '{winner.name}' by more than the noise"
    return EngineRecord(result.name, result.timing, result.accuracy, result is winner, reason)


def drop_duplicates(drafts: Sequence[tuple[str, Draft]]) -> dict[str, Draft]:
    """Drafts by name, the first of each name and of those that choose the same options.

    A draft that falls to its name may come again under another one: the search may have found that very one.
    """
    seen: set[str] = set()
    kept: dict[str, Draft] = {}
    for name, draft in drafts:
        key = "\n".join(f"{o.start} {o.stop} {o.choice.key()}" for o in draft.options)
        if key not in seen and name not in kept:
            seen.add(key)
            kept[name] = draft
    return kept
