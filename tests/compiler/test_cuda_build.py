"""The way of a model to a CUDA engine, as far as it goes without a GPU: tactics, lowering, search, cache, file.

Measurements are made up from the least traffic and the arithmetic of each choice, so that the race has something to
decide on; everything else is what runs on a machine with a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_build import convolutional_model

from tamis.compiler import BuildConfig, build
from tamis.compiler.planner import contest as contest_module
from tamis.compiler.planner import conversions as conversions_module
from tamis.compiler.planner.lower import Draft
from tamis.compiler.tactics.base import Choice, Layer, Tactic, flops_of, moved_bytes_of
from tamis.compiler.tuner import prior as prior_module
from tamis.compiler.tuner import race as race_module
from tamis.compiler.tuner.cache import Measurement
from tamis.devices.cpu import CpuDevice
from tamis.devices.cuda.device import CudaDevice
from tamis.engine import read, save
from tamis.engine.check import check_plan
from tamis.engine.plan import Accuracy, DeviceInfo, Step, Timing, to_json
from tamis.formats.dtype import DType

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
    """A GPU on paper: it knows what a GPU would answer, and runs nothing but the float32 reference, on the CPU."""

    def __init__(self, info: DeviceInfo) -> None:
        super().__init__(1)
        self._info = info

    def info(self) -> DeviceInfo:
        return self._info

    def writes_into_memory(self, step: Step) -> bool:
        return CudaDevice.writes_into_memory(self, step)  # type: ignore[arg-type]


def made_up(flops: int, moved_bytes: int, choice: Choice) -> Timing:
    """A launch, and the larger of arithmetic and traffic, at rates that favour low precision; 2:4 is always faster."""
    rate = {DType.FLOAT32: 50e6, DType.TF32: 300e6, DType.BFLOAT16: 600e6, DType.FLOAT16: 610e6}[choice.precision]
    gain = 0.6 if choice.sparsity == "2:4" else 1.0
    worse = 1 + 0.01 * choice.parameters.get("rank", choice.parameters.get("algorithm", 0))
    aten = 3.0 if choice.tactic == "aten" else 1.0
    time = round((2 * aten + max(flops / rate, moved_bytes / 4e6)) * worse * gain, 3)
    return Timing(time, time, time, 9)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replaces every measurement; the list notes which layers were measured."""
    layers: list[str] = []

    def race(layer: Layer, choices: list[tuple[Tactic, Choice]], track: Any) -> list[Measurement]:
        layers.append(layer.name)
        for tactic, choice in choices:
            tactic.lower(layer, choice)  # every choice that is offered can be lowered
        return [Measurement(made_up(flops_of(layer), moved_bytes_of(layer, c), c), RIGHT) for _, c in choices]

    def timings(self: Any, drafts: Mapping[str, Draft]) -> dict[str, Timing]:
        sums = {name: sum(option.cost_us for option in draft.options) for name, draft in drafts.items()}
        return {name: Timing(total, total, total, 9) for name, total in sums.items()}

    monkeypatch.setattr(prior_module, "_product_rate", lambda device, precision: 50e6)
    monkeypatch.setattr(prior_module, "_copy_rate", lambda device: 4e6)
    monkeypatch.setattr(race_module, "_race_now", race)
    monkeypatch.setattr(contest_module.Contest, "accuracy", lambda self, draft: RIGHT)
    monkeypatch.setattr(contest_module.Contest, "_timings", timings)
    monkeypatch.setattr(conversions_module.Conversions, "_measure", lambda *a: Measurement(Timing(2.0, 2.0, 2.0, 9)))
    yield layers


def use(monkeypatch: pytest.MonkeyPatch, info: DeviceInfo) -> None:
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(info))


def config(**changes: Any) -> BuildConfig:
    return BuildConfig(device="cuda", precisions=(DType.FLOAT16,), **changes)


def test_sparse_and_dense_libraries_share_a_network(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, H200)
    engine = build(convolutional_model(), config(timing_cache=tmp_path / "cache.json"))
    check_plan(engine.plan)
    kernels = {step.kernel for step in engine.plan.steps}
    assert {"cusparselt.matmul", "cudnn.conv"} <= kernels
    chosen = {record.name: record.chosen_sparsity for record in engine.plan.layers}
    assert "2:4" in chosen.values() and "dense" in chosen.values()
    save(engine, tmp_path / "a.tamis")
    assert to_json(read(tmp_path / "a.tamis").plan) == to_json(engine.plan)
    # The second build finds all it needs in the cache, and gives the same file.
    del measured[:]
    again = build(convolutional_model(), config(timing_cache=tmp_path / "cache.json"))
    save(again, tmp_path / "b.tamis")
    assert measured == []
    assert (tmp_path / "a.tamis").read_bytes() == (tmp_path / "b.tamis").read_bytes()


def test_an_old_gpu_runs_dense_and_says_why(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, T4)
    engine = build(convolutional_model(), config())
    assert {step.sparsity for step in engine.plan.steps} == {"dense"}
    reasons = [c.reason for r in engine.plan.layers for c in r.candidates if c.tactic == "cusparselt" and r.eligible]
    assert any("sparse tensor cores" in reason and "sm_75" in reason for reason in reasons)


def test_precisions_stay_within_what_is_allowed(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, H200)
    for allowed in ((DType.TF32,), (DType.BFLOAT16,), (DType.FLOAT16, DType.TF32)):
        plan = build(convolutional_model(), BuildConfig(device="cuda", precisions=allowed)).plan
        used = {step.precision for step in plan.steps}
        assert used <= {DType.FLOAT32, *allowed} and used & set(allowed)
