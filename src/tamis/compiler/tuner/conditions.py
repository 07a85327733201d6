"""How the device was doing when an engine's measurements were taken."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from tamis.compiler.tuner.cache import Measurement, TimingCache, short_hash
from tamis.compiler.tuner.race import Track
from tamis.engine.plan import Conditions, DeviceState, Plan, to_json

_FIELDS = {field.name for field in fields(DeviceState)}


def conditions_of(plan: Plan, track: Track) -> Conditions | None:
    """The states before the races and now, or those of the build that measured; None where none were kept.

    They are kept in the timing cache under the plan itself, which holds the measurements: a build that measures nothing
    gives the plan of an earlier one, and finds its conditions with it. So equal builds stay equal.
    """
    digest = short_hash(to_json(replace(plan, config={})))
    measured = track.cache.changed
    now = track.device.state() if measured else None
    before = _kept(track.cache, f"clocks: before the races of plan #{digest}", track.state if measured else None)
    after = _kept(track.cache, f"clocks: after the races of plan #{digest}", now)
    return Conditions(before, after) if before is not None and after is not None else None


def _kept(cache: TimingCache, key: str, state: DeviceState | None) -> DeviceState | None:
    """The state that the cache holds; without one, the state given, which it then holds."""
    found = cache.get(key)
    if found is None and state is not None:
        found = cache.put(key, Measurement(numbers=asdict(state)))
    numbers: dict[str, Any] = dict(found.numbers or {}) if found is not None else {}
    return DeviceState(**numbers) if numbers.keys() == _FIELDS else None
