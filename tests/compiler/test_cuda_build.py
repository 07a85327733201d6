"""The way of a model to a CUDA engine, as far as it goes without a GPU: tactics, lowering, search, cache, file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_build import convolutional_model

from paper_gpu import H200, T4, PaperGpu, make_up_measurements
from tamis.compiler import BuildConfig, build
from tamis.engine import read, save
from tamis.engine.check import check_plan
from tamis.engine.plan import DeviceInfo, to_json
from tamis.formats.dtype import DType


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces every measurement; the list notes which layers were measured."""
    return make_up_measurements(monkeypatch)


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
