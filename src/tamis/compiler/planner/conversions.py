"""What it costs to change a value's format, measured."""

from __future__ import annotations

import torch

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.tactics.base import Lowered
from tamis.compiler.tactics.conversion import conversion_step
from tamis.compiler.tuner.cache import Measurement
from tamis.compiler.tuner.race import Track
from tamis.compiler.tuner.suspect import Suspect
from tamis.compiler.tuner.timing import Clock
from tamis.compiler.tuner.trial import bind_trial
from tamis.engine.plan import Format

_TURNS = 5


def same_memory(shape: tuple[int, ...], source: Format, target: Format) -> bool:
    """Whether a value lies in memory alike in two formats: of one type, and with one channel or one pixel."""
    single = len(shape) == 4 and (shape[1] == 1 or shape[2] * shape[3] == 1)
    return source.dtype == target.dtype and (source.layout == target.layout or single)


class Conversions:
    """Cost of conversions in microseconds, measured when first asked for and kept in the timing cache."""

    def __init__(self, track: Track) -> None:
        self._track = track
        self._clock = Clock(track.device, cold=False)
        self._known: dict[tuple[TensorType, Format, Format], float] = {}

    def __call__(self, type_: TensorType, source: Format, target: Format) -> float:
        """Microseconds to convert a value of ``type_`` from one format to another."""
        if same_memory(type_.shape, source, target):
            return 0.0
        key = (type_, source, target)
        if key not in self._known:
            self._known[key] = self._cost(*key)
        return self._known[key]

    def _cost(self, type_: TensorType, source: Format, target: Format) -> float:
        key = f"conversion of {type_} from {source} to {target}"
        found = self._track.cache.get(key)
        if found is None or found.timing is None:
            found = self._track.cache.put(key, self._measure(type_, source, target))
        assert found.timing is not None
        return found.timing.median_us

    def _measure(self, type_: TensorType, source: Format, target: Format) -> Measurement:
        device = self._track.device
        step, constants = conversion_step("in", "out", type_.shape, source, target, device.info())
        with torch.inference_mode():
            tensor = device.empty(type_.shape, source)
            tensor.copy_(torch.rand(type_.shape, device=tensor.device))
            trial = bind_trial(device, Lowered((step,), constants), {"in": (tensor, source)}, {"out": (type_, target)})
            suspect = Suspect(f"a conversion from {source} to {target}")
            return Measurement(self._clock.race({"": trial.contender(suspect)}, _TURNS)[""])
