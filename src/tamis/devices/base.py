"""The small interface behind which a device hides.

The compiler times candidates and the runtime runs engines through the same ``bind``, so what was raced is
what runs. A value of a running engine lives in a *slot* of a list; a bound step reads its inputs from slots
and writes its outputs to slots, and knows their numbers beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from tamis.devices.strides import Strides
from tamis.engine.plan import DeviceInfo, DeviceState, Format, Step

Tensor: TypeAlias = Any  # a torch tensor on the device
Slots: TypeAlias = list[Tensor]
Runner: TypeAlias = Callable[[Slots], None]
# Opens a named range, and closes the one opened last.
Ranges: TypeAlias = tuple[Callable[[str], object], Callable[[], object]]


@dataclass(frozen=True)
class BoundShape:
    """Where a bound step finds one of its inputs or outputs.

    ``slot`` indexes the list of slots. For an output, ``preallocated`` says that the slot already holds a
    tensor of this shape and format and that the step must write into it; otherwise the step puts its own
    result there.
    """

    slot: int
    shape: tuple[int, ...]
    format: Format
    preallocated: bool = False


class Stopwatch(Protocol):
    """Measures what calls take on a device."""

    def time_us(
        self, call: Callable[[], object], warm: Sequence[Tensor] = (), *, alone: bool = False, warmups: int = 0
    ) -> float:
        """Microseconds of one call.

        Args:
            call: gives work to the device, as a bound step or a whole engine does.
            warm: tensors that the call finds in the caches in a real run; they matter where caches are evicted.
            alone: the call makes up a whole engine: what else keeps the device busy must have come to rest, and the
                engine is timed as it runs, again and again.
            warmups: untimed calls just before.
        """
        ...


class Device(Protocol):
    """What the tuner and the runtime need of a device.

    Attributes:
        replays: whether ``record`` gains anything; a run then reads its inputs at addresses that never change.
        cache_bytes: weights beyond this size do not stay in the caches from one run to the next.
        memory_bytes: all the memory that the device has.
    """

    replays: bool
    cache_bytes: int
    memory_bytes: int

    def info(self) -> DeviceInfo:
        """What this device is; part of the engine and of the key of the timing cache."""
        ...

    def state(self) -> DeviceState | None:
        """Clocks, power and heat now; None where nothing tells them."""
        ...

    def upload(self, array: np.ndarray) -> Tensor:
        """A constant on the device, aligned as its kernels want it."""
        ...

    def empty(self, shape: Sequence[int], format: Format) -> Tensor:
        """An uninitialised tensor."""
        ...

    def arena(self, size_bytes: int) -> Tensor:
        """One block of memory."""
        ...

    def view(self, arena: Tensor, offset: int, shape: Sequence[int], format: Format) -> Tensor:
        """A tensor that lies in an arena at ``offset`` bytes."""
        ...

    def download(self, tensor: Tensor) -> np.ndarray:
        """A NumPy copy of a tensor in row-major order; bfloat16 comes as ``ml_dtypes.bfloat16``."""
        ...

    def lies_in(self, tensor: Tensor, format: Format) -> bool:
        """Whether a tensor is dense in a format: its type, and the order of its axes in memory."""
        ...

    def bind(
        self,
        step: Step,
        constants: Mapping[str, Tensor],
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
    ) -> Runner:
        """A function that runs the step; all preparation (weight reordering, compilation) happens here.

        The steps that one device object has bound may share scratch memory, so only one of them may run at a time.
        """
        ...

    def writes_into_memory(self, step: Step) -> bool:
        """Whether a step can write its outputs into memory that it is given, at no extra cost."""
        ...

    def may_alias(self, step: Step) -> bool:
        """Whether an output of the step may share memory with its first input."""
        ...

    def view_strides(
        self, step: Step, shape: Sequence[int], strides: Sequence[int], outputs: Sequence[Sequence[int]]
    ) -> tuple[Strides, ...] | None:
        """The strides of a step's outputs (of shapes ``outputs``) as views of its first input, or None.

        ``shape`` and ``strides`` are those of the input, in elements. None: the step computes or copies. A step
        that gives views hands them out with the attribute ``strided``; with ``view`` only where they are dense.
        """
        ...

    def reads_strided(self, step: Step, index: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Whether a step reads its input ``index`` in place, without a copy, when it has these strides."""
        ...

    def natural_strides(
        self, step: Step, shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]
    ) -> Strides | None:
        """The strides in which a step leaves its only output with the attribute ``strided``; None if dense.

        ``shapes`` and ``strides`` are those of its inputs. It is a forecast that later library versions may break.
        """
        ...

    def runs_aside(self, step: Step) -> bool:
        """Whether a step may run on a second stream beside others: it computes in memory that is all its own."""
        ...

    def ordered(self, steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
        """The runners of the steps such that each step runs on its stream and waits for those that it names."""
        ...

    def stage(self, target: Tensor, source: Tensor) -> None:
        """Copy a tensor, of the host or of the device, into one of the device; it may go on after the call."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that does again what ``run`` does, on the same addresses, at less cost where there is a way."""
        ...

    def part_timer(self, parts: Sequence[Callable[[], None]], *, recorded: bool = True) -> Callable[[], list[float]]:
        """A function that runs the parts one after the other and returns the microseconds of each.

        ``recorded``: as a device that replays runs them in use; otherwise each time anew.
        """
        ...

    def kernel_names(self, steps: Sequence[Step], parts: Sequence[Callable[[], None]]) -> list[tuple[str, ...]]:
        """The kernels that each part, which runs one step, launches, as the driver or the library names them."""
        ...

    def ranges(self) -> Ranges | None:
        """How a named range opens and closes for a system-wide profiler; None where there are none."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished all work given to it."""
        ...

    def is_lost(self) -> bool:
        """Whether this process cannot use the device any more; to be asked after an error. It waits for the device."""
        ...

    def stopwatch(self, *, cold: bool) -> Stopwatch:
        """A stopwatch. ``cold``: it evicts the caches before each call and then touches the warm tensors again."""
        ...

    def set_threads(self, threads: int) -> None:
        """How many cores the device may use; ignored by devices that have none."""
        ...
