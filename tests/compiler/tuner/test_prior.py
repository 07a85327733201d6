"""What a processor can do at most, also where it has no instructions for a precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tamis.compiler.tuner.cache import TimingCache
from tamis.compiler.tuner.prior import measure_roof
from tamis.devices.base import Tensor
from tamis.devices.cpu import CpuDevice
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType

PRECISIONS = (DType.BFLOAT16, DType.FLOAT32)
# Floating-point operations a microsecond of the pretended processor.
RATES = {torch.float32: 1e5, torch.bfloat16: 6e2}


class SlowStopwatch:
    """Gives the time that the pretended processor would take for the tensor that was made last."""

    def __init__(self, device: WithoutBfloat16) -> None:
        self.device = device

    def time_us(self, call: Callable[[], object], *rest: object, **named: object) -> float:
        call()
        made = self.device.made[-1]
        return 2.0 * made.shape[0] ** 3 / RATES[made.dtype] if made.ndim == 2 else 1e3


class WithoutBfloat16(CpuDevice):
    """A processor that multiplies bfloat16 one by one."""

    def __init__(self) -> None:
        super().__init__(1)
        self.made: list[Tensor] = []

    def info(self) -> DeviceInfo:
        return DeviceInfo("cpu", "pretended", "x86_64", 1, (), {})

    def empty(self, shape: Sequence[int], format: Format) -> Tensor:
        self.made.append(super().empty(shape, format))
        return self.made[-1]

    def stopwatch(self, *, cold: bool) -> SlowStopwatch:  # type: ignore[override]
        return SlowStopwatch(self)


def test_without_bfloat16_only_small_matrices_are_multiplied_and_the_bound_is_that_of_float32() -> None:
    device = WithoutBfloat16()
    roof = measure_roof(TimingCache(None, device.info(), 1), device, PRECISIONS)
    assert roof.flops_per_us == {DType.FLOAT32: 1e5, DType.BFLOAT16: 1e5}
    sizes = {dtype: [t.shape[0] for t in device.made if t.dtype == dtype and t.ndim == 2] for dtype in RATES}
    assert sizes == {torch.float32: [128, 256, 512, 1024], torch.bfloat16: [128]}
