"""Whether our kernels may start while the kernel before them still runs: programmatic dependent launch.

The kernels themselves wait for it before they touch its results (``kernels/cuda/overlap.h``), so this is a matter of
time only, not of results. The environment variable ``TAMIS_OVERLAP=0`` switches it off; so does a driver that refuses
such a launch, for the rest of the process.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

VARIABLE = "TAMIS_OVERLAP"
_SINCE = (9, 0)  # the compute capability


@dataclass
class Overlap:
    """The state of the process: ``on``, or else ``reason`` says why not. Launches ask each time."""

    on: bool = True
    reason: str = ""

    def refuse(self, reason: str) -> None:
        """Switch it off for good, with a warning."""
        self.on, self.reason = False, reason
        warnings.warn(f"kernels start one after the other, without overlap: {reason}", stacklevel=2)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Launches and recordings within are without."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before and not self.reason


def from_environment(value: str | None) -> Overlap:
    """The state that a process begins with, by the value of the variable."""
    return Overlap(on=False, reason=f"{VARIABLE}=0") if value == "0" else Overlap()


OVERLAP = from_environment(os.environ.get(VARIABLE))


def can_overlap(device: int) -> bool:
    """Whether a GPU has the instructions: compute capability 9.0 or newer."""
    return torch.cuda.get_device_capability(device) >= _SINCE
