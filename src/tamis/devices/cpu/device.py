"""The CPU as a device: memory, and the families of kernels that steps may name."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from tamis.devices import tensors
from tamis.devices.aten import kernels as aten
from tamis.devices.aten import strides as aten_strides
from tamis.devices.base import BoundShape, Ranges, Runner, Tensor
from tamis.devices.cpu import linear, onednn, openvino
from tamis.devices.cpu.info import cpu_info, usable_cores
from tamis.devices.cpu.stopwatch import CpuStopwatch
from tamis.devices.strides import Strides
from tamis.engine.plan import DeviceInfo, DeviceState, Format, Step
from tamis.errors import DeviceError

Binder: TypeAlias = Callable[[Step, Mapping[str, Tensor], Sequence[BoundShape], Sequence[BoundShape]], Runner]

# Who runs a kernel, by the start of its name.
BINDERS: tuple[tuple[str, Binder], ...] = (
    ("aten.", aten.bind),
    ("onednn.", onednn.bind),
    ("openvino.", openvino.bind),
    ("tamis.", linear.bind),
)


class CpuDevice:
    """The processor this runs on.

    Args:
        threads: cores to use; None for all that the process may use.
    """

    replays = False
    cache_bytes = 16 << 20

    def __init__(self, threads: int | None = None) -> None:
        self.memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.set_threads(threads or usable_cores())

    def info(self) -> DeviceInfo:
        """The processor and the versions of the libraries."""
        return cpu_info()

    def state(self) -> DeviceState | None:
        """None: virtual machines tell nothing true of it."""
        return None

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """A row-major copy of an array, 64-byte aligned."""
        return tensors.upload(array)

    def empty(self, shape: Sequence[int], format: Format) -> torch.Tensor:
        """An uninitialised tensor."""
        return tensors.empty(shape, format)

    def arena(self, size_bytes: int) -> torch.Tensor:
        """One block of uninitialised memory, 64-byte aligned."""
        return tensors.arena(size_bytes)

    def view(self, arena: torch.Tensor, offset: int, shape: Sequence[int], format: Format) -> torch.Tensor:
        """A tensor at ``offset`` bytes of an arena."""
        return tensors.view(arena, offset, shape, format)

    def download(self, tensor: torch.Tensor) -> np.ndarray:
        """A row-major NumPy copy."""
        return tensors.download(tensor)

    def lies_in(self, tensor: torch.Tensor, format: Format) -> bool:
        """Whether a tensor has the type and the memory order of a format."""
        return tensors.lies_in(tensor, format)

    def bind(
        self,
        step: Step,
        constants: Mapping[str, torch.Tensor],
        inputs: Sequence[BoundShape],
        outputs: Sequence[BoundShape],
    ) -> Runner:
        """A runner for a step; everything that can be prepared is prepared here.

        Raises ``DeviceError`` for a kernel that does not exist here and ``MissingLibrary`` for one whose
        library is not installed.
        """
        for prefix, binder in BINDERS:
            if step.kernel.startswith(prefix):
                with torch.inference_mode():
                    return binder(step, constants, inputs, outputs)
        raise DeviceError(
            f"kernel {step.kernel} is not one of the CPU's",
            layer=step.name,
            remedy="build the engine for cpu",
        )

    def writes_into_memory(self, step: Step) -> bool:
        """Whether a step can write its outputs into memory that it is given, at no extra cost."""
        if step.kernel.startswith(aten.PREFIX):
            return aten.supports_out(step.kernel, step.attributes)
        return step.kernel.startswith(("openvino.", "tamis."))

    def may_alias(self, step: Step) -> bool:
        """Whether an output of the step may share memory with its first input."""
        return step.kernel.startswith(aten.PREFIX) and aten.may_alias(step.kernel)

    def view_strides(
        self, step: Step, shape: Sequence[int], strides: Sequence[int], outputs: Sequence[Sequence[int]]
    ) -> tuple[Strides, ...] | None:
        """The strides of a step's outputs as views of its first input; None where it computes or copies."""
        return aten_strides.view_strides(step, shape, strides, outputs)

    def reads_strided(self, step: Step, index: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Whether a step reads its input ``index`` in place when it has these strides."""
        return aten_strides.reads_strided(step, index, shape, strides)

    def natural_strides(
        self, step: Step, shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]
    ) -> Strides | None:
        """The strides in which a step leaves its output when it need not be dense; None if dense."""
        return aten_strides.natural_strides(step, shapes)

    def runs_aside(self, step: Step) -> bool:
        """Never: a step has all the cores."""
        return False

    def ordered(self, steps: Sequence[Step], runners: Sequence[Runner]) -> list[Runner]:
        """The runners themselves: they run one after the other."""
        return list(runners)

    def stage(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor."""
        target.copy_(source)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """``run`` itself: calling functions is what a CPU does."""
        return run

    def part_timer(self, parts: Sequence[Callable[[], None]], *, recorded: bool = True) -> Callable[[], list[float]]:
        """A function that runs the parts and reads the clock in between."""

        def timed() -> list[float]:
            times = [clock()]
            for part in parts:
                part()
                times.append(clock())
            return [(second - first) / 1e3 for first, second in itertools.pairwise(times)]

        clock = time.perf_counter_ns
        return timed

    def kernel_names(self, steps: Sequence[Step], parts: Sequence[Callable[[], None]]) -> list[tuple[str, ...]]:
        """The function that each step calls; our own with the patterns of the weights that they read."""
        return [linear.kernel_names(step) if step.kernel.startswith("tamis.") else (step.kernel,) for step in steps]

    def ranges(self) -> Ranges | None:
        """None: NVTX is NVIDIA's."""
        return None

    def synchronize(self) -> None:
        """Nothing to wait for: calls return when their work is done."""

    def is_lost(self) -> bool:
        """Never: an error of one call leaves the next one alone."""
        return False

    def stopwatch(self, *, cold: bool) -> CpuStopwatch:
        """A stopwatch; ``cold`` evicts the caches before each call."""
        return CpuStopwatch(cold=cold)

    def set_threads(self, threads: int) -> None:
        """How many cores kernels use. It applies to the whole process, and to steps bound from now on."""
        if threads < 1:
            raise DeviceError(f"{threads} threads were asked for", remedy="ask for at least 1")
        self.threads = threads
        torch.set_num_threads(threads)
