"""Whole engines on the GPU: built, replayed as a graph, right, profiled, and the same again from the timing cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from small_models import save_cnn, save_mlp
from tamis import build, load, save_engine
from tamis.compiler.tuner.accuracy import compare
from tamis.engine import Engine
from tamis.formats.dtype import DType
from tamis.runtime import EngineWarning, Session, bench, profile, step_kernels, unproven
from tamis.runtime.ranges import range_name

PRECISIONS = {
    "fp32": (DType.FLOAT32,),
    "tf32": (DType.FLOAT32, DType.TF32),
    "bf16": (DType.FLOAT32, DType.BFLOAT16),
    "fp16": (DType.FLOAT32, DType.FLOAT16),
    "all": (DType.FLOAT32, DType.TF32, DType.BFLOAT16, DType.FLOAT16),
}


def reference(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def draw(engine: Engine, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {p.name: random.standard_normal(p.shape).astype(np.float32) for p in engine.plan.inputs}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_engines_agree_with_onnxruntime(tmp_path: Path, model: str, precision: str) -> None:
    path = {"cnn": save_cnn, "mlp": save_mlp}[model](tmp_path / "model.onnx")
    engine = build(path, device="cuda", precisions=PRECISIONS[precision], optimization_level=1)
    session = load(engine)
    for seed in range(3):  # the recording is replayed with other inputs
        feeds = draw(engine, seed)
        accuracy = compare(session.run(feeds)[engine.plan.outputs[0].name], reference(path, feeds))
        assert accuracy.cosine > (0.99999 if precision == "fp32" else 0.999), (precision, accuracy)
        assert precision != "fp32" or accuracy.max_relative_error < 1e-3, accuracy


def test_a_second_build_measures_nothing_and_gives_the_same_file(tmp_path: Path) -> None:
    path = save_cnn(tmp_path / "model.onnx")
    for name in ("a", "b"):
        engine = build(
            path,
            device="cuda",
            precisions=PRECISIONS["all"],
            timing_cache=tmp_path / "cache.json",
            optimization_level=1,
        )
        save_engine(engine, tmp_path / f"{name}.tamis")
    assert (tmp_path / "a.tamis").read_bytes() == (tmp_path / "b.tamis").read_bytes()


def test_sparse_steps_run_sparse_kernels(tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "mlp.onnx", width=4096)
    engine = build(
        path,
        device="cuda",
        precisions=PRECISIONS["fp16"],
        exclude_tactics=("cublaslt", "tamis.cuda"),
        optimization_level=1,
    )
    session, feeds = load(engine), draw(engine, 0)
    found = step_kernels(session, feeds)
    assert all(each.kernels for each in found), [each.step.name for each in found if not each.kernels]
    assert [each.step.kernel for each in found if each.step.sparsity == "2:4"], [s.kernel for s in engine.plan.steps]
    assert not unproven(found), [(each.step.name, each.kernels) for each in unproven(found)]


def test_profile_and_bench_see_the_replay(tmp_path: Path) -> None:
    engine = build(save_cnn(tmp_path / "m.onnx"), device="cuda", precisions=PRECISIONS["fp16"], optimization_level=1)
    session, feeds = load(engine), draw(engine, 0)
    measured = profile(session, feeds, runs=5, warmup_ms=10)
    assert all(0 < step.timing.median_us < 1000 for step in measured.steps)
    assert bench(session, feeds, warmup_ms=10, duration_s=0.1).median < 5


def test_poisoned_memory_never_shows(tmp_path: Path) -> None:
    path = save_cnn(tmp_path / "m.onnx")
    engine = build(path, device="cuda", precisions=PRECISIONS["all"], optimization_level=1)
    feeds = draw(engine, 5)
    poisoned = Session(engine, poison=True).run(feeds)[engine.plan.outputs[0].name]
    plain = load(engine).run(feeds)[engine.plan.outputs[0].name]
    assert np.isfinite(poisoned).all()
    np.testing.assert_array_equal(poisoned, plain)


def test_overflowing_layers_leave_float16(tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "m.onnx", width=256, scale=3000.0)  # the second layer's results exceed 65504
    engine = build(path, device="cuda", precisions=PRECISIONS["all"], optimization_level=1)
    reasons = [c.reason for r in engine.plan.layers for c in r.candidates if c.precision == DType.FLOAT16]
    assert any("overflows" in reason for reason in reasons), reasons
    feeds = draw(engine, 0)
    assert compare(load(engine).run(feeds)["y"], reference(path, feeds)).cosine > 0.999


def test_bound_runs_read_the_users_tensors(tmp_path: Path) -> None:
    path = save_cnn(tmp_path / "m.onnx")
    engine = build(path, device="cuda", precisions=PRECISIONS["fp32"], optimization_level=1)
    session = load(engine)
    mine = torch.randn(engine.plan.inputs[0].shape, device="cuda")
    launch = session.bind([mine])
    for _ in range(2):
        result = launch()[0].cpu().numpy()
        expected = reference(path, {"image": mine.cpu().numpy()})
        assert compare(result, expected).max_relative_error < 1e-3
        mine.normal_()


def test_ranges_for_nsight_change_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(save_cnn(tmp_path / "m.onnx"), device="cuda", precisions=PRECISIONS["fp16"], optimization_level=1)
    pushed: list[str] = []
    push = torch.cuda.nvtx.range_push
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: (pushed.append(name), push(name)))
    with pytest.warns(EngineWarning, match="step by step"):
        ranged = load(engine, nvtx=True)
    feeds = draw(engine, 0)
    expected = load(engine).run(feeds)
    for _ in range(2):
        pushed.clear()
        for name, result in ranged.run(feeds).items():
            np.testing.assert_array_equal(result, expected[name])
        assert pushed == [range_name(step) for step in engine.plan.steps]
    assert all(step.timing.median_us > 0 for step in profile(ranged, feeds, runs=3, warmup_ms=1).steps)
