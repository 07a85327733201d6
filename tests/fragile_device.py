"""A CPU that can be lost like a GPU: after an illegal instruction every later call fails, until there is a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tamis.devices.base import BoundShape, Runner, Slots, Tensor
from tamis.devices.cpu import CpuDevice
from tamis.engine.plan import Format, Step

SYMPTOM = "CUDA error: an illegal instruction was encountered"


class EvenStopwatch:
    """Waits for the device like that of a GPU, and has the same time for every call."""

    def __init__(self, device: FragileDevice) -> None:
        self.device = device

    def time_us(self, call: Callable[[], object], *rest: object, **named: object) -> float:
        call()
        self.device.synchronize()
        return 1.0


class FragileDevice(CpuDevice):
    """Steps whose kernel starts with ``kernel`` break it, in their run number ``run`` or (0) when they are bound.

    Like a GPU's, the error of a run comes out later: when the device is waited for. ``arena``: whole engines break it.
    Everything takes the same time on it.
    """

    def __init__(self, kernel: str = "nothing", run: int = 0, *, arena: bool = False) -> None:
        super().__init__(1)
        self.kernel = kernel
        self.run = run
        self.breaks_arena = arena
        self.broken = False

    def fail(self) -> None:
        self.broken = True
        raise RuntimeError(f"{SYMPTOM}\nCompile with TORCH_USE_CUDA_DSA to enable device-side assertions.")

    def synchronize(self) -> None:
        if self.broken:
            self.fail()

    def is_lost(self) -> bool:
        return self.broken

    def arena(self, size_bytes: int) -> Tensor:
        if self.broken or self.breaks_arena:
            self.fail()
        return super().arena(size_bytes)

    def stopwatch(self, *, cold: bool) -> EvenStopwatch:  # type: ignore[override]
        return EvenStopwatch(self)

    def empty(self, shape: Sequence[int], format: Format) -> Tensor:
        self.synchronize()
        return super().empty(shape, format)

    def bind(
        self,
        step: Step,
        constants: Mapping[str, Tensor],
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
    ) -> Runner:
        self.synchronize()
        runner = super().bind(step, constants, inputs, outputs)
        if not step.kernel.startswith(self.kernel):
            return runner
        if self.run == 0:
            self.fail()
        runs = 0

        def breaking(slots: Slots) -> None:
            nonlocal runs
            runs += 1
            runner(slots)
            self.broken = self.broken or runs == self.run

        return breaking
