"""A loaded engine: constants on the device, an arena, bound steps, and a loop over them."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from tamis.devices.base import Device, Runner, Slots, Tensor
from tamis.devices.cpu.info import require_cores
from tamis.engine.check import check_plan
from tamis.engine.file import Engine, read
from tamis.engine.plan import DeviceInfo, Format, Plan
from tamis.errors import ConfigError, DeviceError, InputError, first_line
from tamis.runtime.loop import Part, flat_loop, parts_of
from tamis.runtime.match import EngineWarning, check_device
from tamis.runtime.memory import lay_out
from tamis.runtime.ranges import in_range, open_ranges
from tamis.runtime.recording import Recording
from tamis.runtime.tensors import Array, to_torch

Inputs = Mapping[str, Array] | Sequence[Array]


class Session:
    """An engine that is ready to run.

    A session holds one arena, so its runs take turns; open several sessions to run at the same time.
    Warns when the engine was tuned with other library versions.

    Args:
        engine: an ``Engine``, or the path of an engine file.
        threads: cores to run on; None for those that the engine was built for.
        device: the device to run on; None for one of its own, of the kind that the engine was built for. Sessions
            that share a device object share its scratch memory, so they must not run at the same time.
        poison: fill the arena with NaN before every run, and each part of it once its value is dead, so that
            a value that is read too early or too late shows. For tests.
        nvtx: put each step into an NVTX range named after its layers and kernel, for Nsight Systems. Runs are then
            made step by step, not replayed as a graph.

    Raises ``EngineError`` for a file that is not an engine, ``EngineMismatch`` for one of another device,
    ``ConfigError`` for options that do not fit the device.
    """

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: Device | None = None,
        poison: bool = False,
        nvtx: bool = False,
    ) -> None:
        if isinstance(device, str):
            raise ConfigError(f"the device is {device!r}", remedy="leave it out: an engine knows its device")
        engine = engine if isinstance(engine, Engine) else read(engine)
        plan = engine.plan
        check_plan(plan)
        self.engine = engine
        self.plan: Plan = plan
        self.device: Device = device if device is not None else open_device(plan.device.kind)
        info = self.device.info()
        check_device(plan, info)
        self._ranges = open_ranges(self.device) if nvtx else None
        self.threads = _threads(plan, info, threads)
        self.device.set_threads(self.threads)
        self._memory = lay_out(plan, self.device)
        self._slots: Slots = self._memory.slots
        self._runners = self._bind_steps(engine)
        self._loop = flat_loop(plan, self._memory, self._runners, self.device, poison)
        self._recorded: Recording | None = None
        self._input_slots = [self._memory.index[name] for name in plan.input_values]
        self._output_slots = [self._memory.index[name] for name in plan.output_values]
        self._names = {port.name for port in plan.inputs}
        self._passing = [slot for name, slot in self._memory.index.items() if name not in self._memory.fixed]
        self._lock = threading.Lock()

    def run(
        self, inputs: Inputs, *, output: Literal["numpy", "torch"] = "numpy"
    ) -> dict[str, np.ndarray] | dict[str, Tensor]:
        """Run once: tensors by name (or in the order of ``plan.inputs``) in, fresh tensors by name out.

        Inputs are NumPy arrays, torch tensors or objects with DLPack, of exactly the shapes and types of the
        engine; bfloat16 comes out as ``ml_dtypes.bfloat16`` for NumPy. Raises ``InputError`` otherwise.
        """
        tensors = self._matched(inputs)
        with self._lock:
            with torch.inference_mode():
                try:
                    values = self._launch(tensors)
                    self.device.synchronize()
                except (IndexError, RuntimeError) as error:
                    if not _of_an_index(error):
                        raise
                    raise InputError(
                        f"an index lies outside of what it selects from: {first_line(error)}",
                        remedy="check the integer inputs",
                    ) from error
            # Copies are made outside of inference mode, so that torch outputs may take part in training.
            fetch = self.device.download if output == "numpy" else _copied
            results = {port.name: fetch(v) for port, v in zip(self.plan.outputs, values, strict=True)}
            self._clear()
        return results

    def bind(self, inputs: Inputs) -> Callable[[], list[Tensor]]:
        """A function that runs the engine on these very tensors, without checks, locks or copies.

        It returns the output tensors, in the order of ``plan.outputs``; the next run may overwrite them. The
        inputs may be changed in place between calls. Of the functions bound on a session, run one at a time.
        """
        tensors, slots, loop = self.check(inputs), self._slots, self._loop
        if self.device.replays:
            return self._recording(tensors).replay
        pairs = tuple(zip(self._input_slots, tensors, strict=True))
        outputs = tuple(self._output_slots)

        def launch() -> list[Tensor]:
            for slot, tensor in pairs:
                slots[slot] = tensor
            for step in loop:
                step(slots)
            return [slots[slot] for slot in outputs]

        if not any(self._memory.views) and all(step.kernel.startswith("tamis.") for step in self.plan.steps):
            return launch  # nothing that PyTorch would have to know of: saves half a microsecond
        # What torch.inference_mode() wraps, at a third of the cost; it is entered in every run.
        inference_mode = torch._C._InferenceMode

        def launch_inferring() -> list[Tensor]:
            with inference_mode(True):
                return launch()

        return launch_inferring

    def run_into(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Run on contiguous torch tensors and copy the results into ``outputs``, in the order of the plan.

        Nothing is checked: the tensors must be on the device and have the right shapes and types.
        """
        with self._lock, torch.inference_mode():
            for value, target in zip(self._launch(inputs), outputs, strict=True):
                target.copy_(value)

    def trace(self, inputs: Inputs, names: frozenset[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Run step by step and give each value (or those in ``names``) as soon as it is computed.

        The values are row-major copies in the type in which the engine holds them.
        """
        tensors = self.check(inputs)
        parts = parts_of(self._memory, self._runners, drop=False)
        # A value that several steps write, piece by piece, is computed when the last of them has run.
        made = {name: number for number, step in enumerate(self.plan.steps) for name in step.outputs}
        with self._lock:
            with torch.inference_mode():
                self._fill(tensors)
            steps = enumerate(zip(self.plan.steps, parts, self._memory.drops, strict=True))
            for number, (step, part, drops) in steps:
                with torch.inference_mode():  # never left open across a yield
                    for runner in part:
                        runner(self._slots)
                    self.device.synchronize()
                for name in step.outputs:
                    if made[name] == number and (names is None or name in names):
                        yield name, self.device.download(self._slots[self._memory.index[name]])
                for slot in drops:
                    self._slots[slot] = None
            self._clear()

    def step_timer(self, inputs: Sequence[Tensor]) -> Callable[[], list[float]]:
        """A function that runs the engine on checked tensors and returns the microseconds of each step."""
        timer = self.device.part_timer(self._parts(inputs), recorded=self._ranges is None)

        def timed() -> list[float]:
            with self._lock, torch.inference_mode():
                return timer()

        return timed

    def kernel_names(self, inputs: Sequence[Tensor]) -> list[tuple[str, ...]]:
        """The kernels that each step launches on checked tensors, as the driver or the library names them."""
        with self._lock, torch.inference_mode():
            return self.device.kernel_names(self.plan.steps, self._parts(inputs))

    def _parts(self, inputs: Sequence[Tensor]) -> list[Callable[[], None]]:
        """A function for each step, to be called in order; the first also puts the inputs into their slots."""
        slots = self._slots

        def running(part: Part) -> Callable[[], None]:
            def run() -> None:
                for runner in part:
                    runner(slots)

            return run

        parts = parts_of(self._memory, self._runners)
        if parts:
            parts[0] = ((lambda _: self._fill(inputs)), *parts[0])
        return [running(part) for part in parts]

    def _fill(self, tensors: Sequence[Tensor]) -> None:
        """Put the inputs and the views of them into their slots."""
        for slot, tensor in zip(self._input_slots, tensors, strict=True):
            self._slots[slot] = tensor
        for view in self._memory.views[0]:
            view(self._slots)

    def _launch(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        slots = self._slots
        if self.device.replays:
            if self._recorded is None:
                fixed = [self.device.empty(port.shape, Format(port.dtype)) for port in self.plan.inputs]
                self._recorded = self._recording(fixed, tensors)
            self._recorded.load(tensors)
            return self._recorded.replay()
        for slot, tensor in zip(self._input_slots, tensors, strict=True):
            slots[slot] = tensor
        for step in self._loop:
            step(slots)
        return [slots[slot] for slot in self._output_slots]

    def _recording(self, inputs: Sequence[Tensor], first: Sequence[Tensor] | None = None) -> Recording:
        """A recording that reads ``inputs``. Ranges do not show in replays: with them, every run is made anew."""
        ends = self._input_slots, self._output_slots
        return Recording(self.device, self._loop, self._slots, *ends, inputs, first, recorded=self._ranges is None)

    def _clear(self) -> None:
        """Let go of the user's tensors and of those that libraries allocated."""
        for slot in self._passing:
            self._slots[slot] = None

    def check(self, inputs: Inputs) -> list[Tensor]:
        """The inputs as contiguous tensors of the device, in the order of the plan. Raises ``InputError``."""
        return [tensor.to(self._memory.arena.device) for tensor in self._matched(inputs)]

    def _matched(self, inputs: Inputs) -> list[Tensor]:
        """The inputs as contiguous tensors, wherever they are, in the order of the plan."""
        ports = self.plan.inputs
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(ports):
                raise InputError(
                    f"{len(inputs)} inputs were given, expected {len(ports)}",
                    remedy=f"give {', '.join(port.name for port in ports)}",
                )
            inputs = dict(zip((port.name for port in ports), inputs, strict=True))
        if inputs.keys() != self._names:
            names = [port.name for port in ports]
            unknown = [name for name in inputs if name not in names]
            missing = [name for name in names if name not in inputs]
            cause = f"there is no input '{unknown[0]}'" if unknown else f"the input '{missing[0]}' is missing"
            raise InputError(f"{cause}, expected {', '.join(names)}", remedy="give exactly these inputs")
        return [to_torch(port, inputs[port.name]) for port in ports]

    def _bind_steps(self, engine: Engine) -> list[Runner]:
        uploaded: dict[str, Tensor] = {}
        runners = []
        for step in self.plan.steps:
            for name in step.constants:
                if name not in uploaded:
                    uploaded[name] = self.device.upload(engine.tensors[name])
            constants = {name: uploaded[name] for name in step.constants}
            inputs = self._memory.bound(self.plan, step.inputs)
            outputs = self._memory.bound(self.plan, step.outputs, outputs=True)
            runner = self.device.bind(step, constants, inputs, outputs)
            runners.append(in_range(step, runner, self._ranges) if self._ranges else runner)
        return runners


def open_device(kind: str) -> Device:
    """The device of a kind on this machine. Raises ``DeviceError`` when there is none."""
    if kind == "cpu":
        from tamis.devices.cpu.device import CpuDevice  # noqa: PLC0415  only the device in use is loaded

        return CpuDevice()
    if kind == "cuda":
        from tamis.devices.cuda.device import CudaDevice  # noqa: PLC0415

        return CudaDevice()
    raise DeviceError(f"this Tamis has no device of the kind '{kind}'", remedy="build the engine for the CPU")


def _threads(plan: Plan, info: DeviceInfo, threads: int | None) -> int:
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads is {threads!r}", remedy="give a number of at least 1")
    if threads is not None:
        require_cores(info, threads)
    if threads is None and plan.threads > info.cores > 0:
        built = f"the engine was built for {plan.threads} threads"
        warnings.warn(f"{built}, this machine has {info.cores} cores", EngineWarning, stacklevel=3)
        return info.cores
    return plan.threads if threads is None else threads


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _of_an_index(error: Exception) -> bool:
    """Whether an error of a step means an index outside; PyTorch has two types and several wordings for it."""
    text = str(error)
    return isinstance(error, IndexError) or "out of bounds" in text or "out of DATA bounds" in text
