"""A layer that overflows in float16 leaves it, though it shared its race with one that does not; the others stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from paper_gpu import H200, PaperGpu, PaperSession, make_up_measurements
from small_models import save_mlp
from tamis.compiler import BuildConfig, build, import_onnx
from tamis.compiler.planner import contest as contest_module
from tamis.compiler.planner.lower import Draft
from tamis.compiler.tuner.reference import Reference
from tamis.devices.cpu.device import CpuDevice
from tamis.engine import Engine
from tamis.formats.dtype import DType


class OverflowingSession(PaperSession):
    """The reference's results, or infinities where the engine holds the second layer's in float16."""

    def __init__(self, reference: Reference, draft: Draft) -> None:
        super().__init__(reference)
        self._overflows = any(v == "h2" and f.dtype is DType.FLOAT16 for o in draft.options for v, f in o.outputs)

    def run(self, inputs: object) -> Mapping[str, np.ndarray]:
        results = super().run(inputs)
        return {name: value * np.float32(np.inf) for name, value in results.items()} if self._overflows else results


@pytest.fixture
def magnitudes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """A GPU on paper whose engines overflow; what the builds found out about the values."""
    found: list[dict[str, float]] = []
    looked = Reference.magnitudes
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))

    def overflowing(self: contest_module.Contest, draft: Draft) -> OverflowingSession:
        return OverflowingSession(self._reference, draft)

    def noted(self: Reference) -> dict[str, float]:
        found.append(looked(self))
        return found[-1]

    monkeypatch.setattr(contest_module.Contest, "_session", overflowing)
    monkeypatch.setattr(Reference, "magnitudes", noted)
    return found


def made(path: Path, *precisions: DType, **options: object) -> Engine:
    return build(path, BuildConfig(device="cuda", precisions=precisions, sparsity="off", **options))  # type: ignore[arg-type]


def held(engine: Engine) -> dict[str, set[DType]]:
    """The types in which engines hold what each layer computes, by layer."""
    return {
        record.name: {c.outputs[0].dtype for c in record.candidates if c.status == "won"}
        for record in engine.plan.layers
    }


def test_the_layer_that_overflows_leaves_float16_alone(magnitudes: list[dict[str, float]], tmp_path: Path) -> None:
    # All layers have one signature, and the race of the first sees no overflow.
    path = save_mlp(tmp_path / "mlp.onnx", width=2048, scale=500.0, rows=64, layers=3)
    engine = made(path, DType.FLOAT16)
    first, second, third = engine.plan.layers
    assert first.chosen_precision is DType.FLOAT16
    assert held(engine)[second.name] == held(engine)[third.name] == {DType.FLOAT32}
    reasons = {c.reason for c in second.candidates if c.outputs and c.outputs[0].dtype is DType.FLOAT16}
    assert reasons == {f"overflows: 'h2' reaches {magnitudes[0]['h2']:.3g} on the sample inputs, float16 ends at 65504"}
    assert [c.reason for c in first.candidates if "overflows" in c.reason] == []
    assert len(magnitudes) == 1, "the network is looked at once"


def test_it_moves_to_bfloat16_where_that_is_allowed(magnitudes: list[dict[str, float]], tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "mlp.onnx", width=2048, scale=500.0, rows=64, layers=3)
    engine = made(path, DType.FLOAT16, DType.BFLOAT16)
    assert DType.FLOAT16 not in held(engine)[engine.plan.layers[1].name]
    assert "bfloat16" in {str(record.chosen_precision) for record in engine.plan.layers}


def test_nothing_is_looked_at_while_all_is_well(magnitudes: list[dict[str, float]], tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "mlp.onnx", width=256, rows=64)
    made(path, DType.BFLOAT16)
    assert not magnitudes


def test_magnitudes_are_those_of_the_network_and_leave_masks_out(tmp_path: Path) -> None:
    graph = import_onnx(save_mlp(tmp_path / "mlp.onnx", width=64, scale=10.0, rows=8), {})
    reference = Reference(graph, CpuDevice(1), BuildConfig())
    found = reference.magnitudes()
    x = reference.samples()["x"]
    assert found["x"] == np.abs(x).max()
    assert found["y"] == pytest.approx(float(np.abs(reference.outputs()["y"]).max()))
    reference = Reference(graph, CpuDevice(1), BuildConfig(samples={"x": np.where(x > 0, np.float32(-3.4e38), 0.5)}))
    assert reference.magnitudes()["x"] == 0.5
