"""Named ranges around the steps of an engine, for system-wide profilers such as Nsight Systems."""

from __future__ import annotations

import warnings

from tamis.devices.base import Device, Ranges, Runner, Slots
from tamis.engine.plan import Step
from tamis.errors import ConfigError
from tamis.runtime.match import EngineWarning

# A region may hold a whole network; a profiler shows a line.
_NAMED_LAYERS = 3


def range_name(step: Step) -> str:
    """What a step's range is called: its layers, and the kernel that computes them."""
    layers = step.layers or (step.name,)
    if len(layers) > _NAMED_LAYERS:
        return f"{layers[0]} .. {layers[-1]} ({len(layers)} layers) [{step.kernel}]"
    return f"{', '.join(layers)} [{step.kernel}]"


def open_ranges(device: Device) -> Ranges:
    """The ranges of a device.

    Raises ``ConfigError`` when it has none; warns when it would have replayed runs, because the ranges of a recorded
    run do not show in its replays.
    """
    ranges = device.ranges()
    if ranges is None:
        raise ConfigError(
            f"there are no NVTX ranges on the device '{device.info().kind}'",
            remedy="leave the option nvtx out, or run an engine that was built for cuda",
        )
    if device.replays:
        cause = "the engine runs step by step, not as a graph, so that its steps show as NVTX ranges"
        warnings.warn(f"{cause}; runs take longer than without them", EngineWarning, stacklevel=3)
    return ranges


def in_range(step: Step, runner: Runner, ranges: Ranges) -> Runner:
    """A step's runner within a range of its name."""
    name, (push, pop) = range_name(step), ranges

    def run(slots: Slots) -> None:
        push(name)
        try:
            runner(slots)
        finally:
            pop()  # a range that stays open would swallow all that follow

    return run
