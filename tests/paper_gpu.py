"""A GPU on paper, and measurements that are made up: builds for CUDA on a machine without one.

Measurements follow the least traffic and the arithmetic of each choice, so that the race has something to decide on;
everything else is what runs on a machine with a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tamis.compiler.planner import contest as contest_module
from tamis.compiler.planner import conversions as conversions_module
from tamis.compiler.planner.regions import RegionRaces
from tamis.compiler.tactics import ahead, cuda_steps
from tamis.compiler.tactics.base import Choice, Layer, Tactic, flops_of, moved_bytes_of
from tamis.compiler.tactics.region import Region
from tamis.compiler.tuner import prior as prior_module
from tamis.compiler.tuner import race as race_module
from tamis.compiler.tuner.cache import Measurement
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.timing import Contender
from tamis.devices.cpu import CpuDevice
from tamis.devices.cuda.device import CudaDevice
from tamis.engine.plan import Accuracy, DeviceInfo, Step, Timing
from tamis.formats.dtype import DType
from tamis.kernels.cuda.unit import translation_unit

LIBRARIES = {
    "torch": "2.11.0", "cuda": "13.0", "driver": "13.0", "cudnn": "9.19.0", "cudnn_frontend": "1.32.0",
    "cublaslt": "13.1.0", "cusparselt": "0.8.1",
}  # fmt: skip
H200 = DeviceInfo(
    "cuda", "NVIDIA H200", "sm_90", 132, ("fp16", "tf32", "bf16", "sparse_tensor_cores", "fp8"), LIBRARIES
)
T4 = DeviceInfo("cuda", "Tesla T4", "sm_75", 40, ("fp16",), LIBRARIES)
RIGHT = Accuracy(1e-4, 0.99999, 80.0)


class PaperGpu(CpuDevice):
    """It knows what a GPU would answer, and runs nothing but the float32 reference, on the CPU."""

    def __init__(self, info: DeviceInfo) -> None:
        super().__init__(1)
        self._info = info

    def info(self) -> DeviceInfo:
        return self._info

    def writes_into_memory(self, step: Step) -> bool:
        return CudaDevice.writes_into_memory(self, step)  # type: ignore[arg-type]

    def may_alias(self, step: Step) -> bool:
        return CudaDevice.may_alias(self, step)  # type: ignore[arg-type]

    def view_strides(self, *question: Any) -> Any:
        return CudaDevice.view_strides(self, *question)  # type: ignore[arg-type]

    def reads_strided(self, *question: Any) -> bool:
        return CudaDevice.reads_strided(self, *question)  # type: ignore[arg-type]

    def runs_aside(self, step: Step) -> bool:
        return CudaDevice.runs_aside(self, step)  # type: ignore[arg-type]

    def natural_strides(self, *question: Any) -> Any:
        return CudaDevice.natural_strides(self, *question)  # type: ignore[arg-type]


def made_up(flops: int, moved_bytes: int, choice: Choice) -> Timing:
    """A launch, and the larger of arithmetic and traffic, at rates that favour low precision; 2:4 is always faster."""
    rate = {DType.FLOAT32: 50e6, DType.TF32: 300e6, DType.BFLOAT16: 600e6, DType.FLOAT16: 610e6}[choice.precision]
    gain = 0.6 if choice.sparsity == "2:4" else 1.0
    worse = 1 + 0.01 * choice.parameters.get("rank", choice.parameters.get("algorithm", 0))
    aten = 3.0 if choice.tactic == "aten" else 1.0
    time = round((2 * aten + max(flops / rate, moved_bytes / 4e6)) * worse * gain, 3)
    return Timing(time, time, time, 9)


class PaperSession:
    """A whole engine on paper: its results are those of the reference."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def run(self, inputs: object) -> Mapping[str, np.ndarray]:
        return self._reference.outputs()

    def bind(self, inputs: object) -> Callable[[], None]:
        return lambda: None


class PaperClock:
    """Whole engines are the faster the more elaborate they are; copies in place of views bring nothing."""

    def __init__(self, device: object, *, cold: bool) -> None:
        self.cold = cold

    def race(self, contenders: Mapping[str, Contender], *limits: object) -> dict[str, Timing]:
        times = {name: 100.0 - 10 * number for number, name in enumerate(contenders)}
        times |= {name: 200.0 for name in contenders if name.endswith("views copied")}
        return {name: Timing(time, time, time, 9) for name, time in times.items()}


def made_up_cubin(source: str, defines: Mapping[str, str | int | float], architecture: str) -> bytes:
    """No code, but bytes that differ where a kernel's would. That kernels compile is for ``tests/kernels`` to say."""
    return hashlib.sha256(f"{architecture}\n{translation_unit(source, defines)}".encode()).digest()


def make_up_measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces every measurement, and kernels by made-up ones; the list notes which layers were measured."""
    layers: list[str] = []

    def race(layer: Layer, choices: list[tuple[Tactic, Choice]], suspects: Any, track: Any) -> list[Measurement]:
        layers.append(layer.name)
        for tactic, choice in choices:
            tactic.lower(layer, choice)  # every choice that is offered can be lowered
        return [Measurement(made_up(flops_of(layer), moved_bytes_of(layer, c), c), RIGHT) for _, c in choices]

    def region(races: RegionRaces, place: Region, choice: Choice) -> Measurement:
        lowered = races.tactics[choice.tactic].lower(races.graph, place, choice)
        flops, moved = (sum(getattr(step, what) for step in lowered.steps) for what in ("flops", "moved_bytes"))
        return Measurement(made_up(flops, moved, choice), RIGHT)

    for module in (ahead, cuda_steps):
        monkeypatch.setattr(module, "compile_source", made_up_cubin)
    monkeypatch.setattr(RegionRaces, "_measure", region)
    monkeypatch.setattr(prior_module, "_product_rate", lambda device, precision: 50e6)
    monkeypatch.setattr(prior_module, "_copy_rate", lambda device: 4e6)
    monkeypatch.setattr(race_module, "_race_now", race)
    monkeypatch.setattr(contest_module.Contest, "_session", lambda self, draft: PaperSession(self._reference))
    monkeypatch.setattr(contest_module, "Clock", PaperClock)
    monkeypatch.setattr(conversions_module.Conversions, "_measure", lambda *a: Measurement(Timing(2.0, 2.0, 2.0, 9)))
    return layers
