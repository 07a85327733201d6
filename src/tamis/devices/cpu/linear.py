"""Our own kernels for linear layers (``tamis.*``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tamis.devices.base import BoundShape, Runner, Tensor
from tamis.engine.plan import Step
from tamis.errors import DeviceError


def bind(
    step: Step, constants: Mapping[str, Tensor], inputs: Sequence[BoundShape], outputs: Sequence[BoundShape]
) -> Runner:
    """A runner for one ``tamis.*`` step."""
    raise DeviceError(f"kernel {step.kernel} is unknown", layer=step.name, remedy="build the engine again")
