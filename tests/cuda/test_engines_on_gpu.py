"""Whole engines on the GPU: built, replayed as a graph, right, profiled, and the same again from the timing cache."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from small_models import save_cnn, save_joint, save_mlp, save_residual
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
MODELS = {"cnn": save_cnn, "mlp": save_mlp}


@dataclass(frozen=True)
class Built:
    """An engine, the model that it was built from, and the timing cache of the build."""

    path: Path
    engine: Engine
    cache: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    """The engine of a model in some precisions; each is built once, on measurements of its own."""
    folder = tmp_path_factory.mktemp("engines")

    @functools.cache
    def make(model: str, precision: str) -> Built:
        path = MODELS[model](folder / f"{model}.onnx")
        cache = folder / f"{model}-{precision}.json"
        return Built(path, quick_build(path, precision, timing_cache=cache), cache)

    return make


def quick_build(path: Path, precision: str, **options: object) -> Engine:
    return build(path, device="cuda", precisions=PRECISIONS[precision], optimization_level=1, **options)


def reference(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def draw(engine: Engine, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {p.name: random.standard_normal(p.shape).astype(np.float32) for p in engine.plan.inputs}


def test_a_bound_run_keeps_all_that_it_needs(built: Callable[[str, str], Built]) -> None:
    engine = built("mlp", "fp16").engine
    feeds = draw(engine, 3)
    expected = load(engine).run(feeds)
    launch = load(engine).bind({name: torch.from_numpy(value).cuda() for name, value in feeds.items()})
    gc.collect()  # the session and the inputs are in no one's hands any more
    spoilt = [torch.full((size,), float("nan"), device="cuda") for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20) * 64]
    for value, port in zip(launch(), engine.plan.outputs, strict=True):
        np.testing.assert_array_equal(value.cpu().numpy(), expected[port.name])
    del spoilt


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_engines_agree_with_onnxruntime(built: Callable[[str, str], Built], model: str, precision: str) -> None:
    made = built(model, precision)
    session = load(made.engine)
    for seed in range(3):  # the recording is replayed with other inputs
        feeds = draw(made.engine, seed)
        accuracy = compare(session.run(feeds)[made.engine.plan.outputs[0].name], reference(made.path, feeds))
        assert accuracy.cosine > (0.99999 if precision == "fp32" else 0.999), (precision, accuracy)
        assert precision != "fp32" or accuracy.max_relative_error < 1e-3, accuracy


def test_a_second_build_measures_nothing_and_gives_the_same_file(
    built: Callable[[str, str], Built], tmp_path: Path
) -> None:
    made = built("cnn", "all")
    second = quick_build(made.path, "all", timing_cache=made.cache)
    for name, engine in (("a", made.engine), ("b", second)):
        save_engine(engine, tmp_path / f"{name}.tamis")
    assert (tmp_path / "a.tamis").read_bytes() == (tmp_path / "b.tamis").read_bytes()


def test_sparse_steps_run_sparse_kernels(tmp_path: Path) -> None:
    path = save_mlp(tmp_path / "mlp.onnx", width=4096, rows=2048)  # at one row, PyTorch's dense product is faster
    engine = quick_build(path, "fp16", exclude_tactics=("cublaslt", "tamis.cuda"))
    session, feeds = load(engine), draw(engine, 0)
    found = step_kernels(session, feeds)
    assert all(each.kernels for each in found), [each.step.name for each in found if not each.kernels]
    assert [each.step.kernel for each in found if each.step.sparsity == "2:4"], [s.kernel for s in engine.plan.steps]
    assert not unproven(found), [(each.step.name, each.kernels) for each in unproven(found)]


def test_profile_and_bench_see_the_replay(built: Callable[[str, str], Built]) -> None:
    engine = built("cnn", "fp16").engine
    session, feeds = load(engine), draw(engine, 0)
    measured = profile(session, feeds, runs=5, warmup_ms=10)
    assert all(0 < step.timing.median_us < 1000 for step in measured.steps)
    assert bench(session, feeds, warmup_ms=10, duration_s=0.1).median < 5


def test_poisoned_memory_never_shows(built: Callable[[str, str], Built]) -> None:
    engine = built("cnn", "all").engine
    feeds = draw(engine, 5)
    poisoned = Session(engine, poison=True).run(feeds)[engine.plan.outputs[0].name]
    plain = load(engine).run(feeds)[engine.plan.outputs[0].name]
    assert np.isfinite(poisoned).all()
    np.testing.assert_array_equal(poisoned, plain)


@pytest.mark.parametrize("family", ["tamis.hopper", "tamis.ampere"])
def test_pieces_of_a_concat_are_written_in_place(family: str, tmp_path: Path) -> None:
    """With memory poisoned, value by value, and as fast paths record it."""
    path = save_joint(tmp_path / "joint.onnx")
    others = ("cudnn", "cublaslt", "cusparselt", *({"tamis.hopper", "tamis.ampere"} - {family}))
    engine = build(path, device="cuda", precisions=PRECISIONS["fp16"], optimization_level=4, exclude_tactics=others)
    names = {step.name: step for step in engine.plan.steps}
    if names["left"].kernel.startswith("aten"):
        pytest.skip(f"{family} does not run here, or lost")
    assert names["left"].outputs == names["right"].outputs == names["joint"].outputs
    feeds = draw(engine, 7)
    exact = reference(path, feeds)
    for session in (load(engine), Session(engine, poison=True), Session(engine, nvtx=True)):
        (result,) = session.run(feeds).values()
        assert compare(result, exact).cosine > 0.9999
    (traced,) = [value for name, value in load(engine).trace(feeds) if name == names["joint"].outputs[0]]
    assert np.isfinite(traced.astype(np.float32)).all()


def test_overflowing_layers_leave_float16(tmp_path: Path) -> None:
    # The second layer's results exceed 65504. It shares its race with the first, whose results do not.
    path = save_mlp(tmp_path / "m.onnx", width=4096, scale=500.0, rows=256, layers=3)
    engine = quick_build(path, "fp16")
    first, second, _ = engine.plan.layers
    assert first.chosen_precision is DType.FLOAT16
    assert any("overflows" in c.reason for c in second.candidates)
    assert not any("overflows" in c.reason for c in first.candidates)
    feeds = draw(engine, 0)
    assert compare(load(engine).run(feeds)["y"], reference(path, feeds)).cosine > 0.999


def test_bound_runs_read_the_users_tensors(built: Callable[[str, str], Built]) -> None:
    made = built("cnn", "fp32")
    session = load(made.engine)
    mine = torch.randn(made.engine.plan.inputs[0].shape, device="cuda")
    launch = session.bind([mine])
    for _ in range(2):
        result = launch()[0].cpu().numpy()
        expected = reference(made.path, {"image": mine.cpu().numpy()})
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


def test_shortcuts_on_a_second_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it pays or not: the variant that comes last is taken."""
    monkeypatch.setattr("tamis.compiler.planner.contest._best", lambda results: (results[-1], results[-1]))
    path = save_residual(tmp_path / "residual.onnx", batch=64)
    engine = quick_build(path, "fp16", exclude_tactics=("cudnn.torch", "aten"))
    told = [(step.name, step.kernel, step.stream) for step in engine.plan.steps], [e.name for e in engine.plan.engines]
    assert {step.name for step in engine.plan.steps if step.stream} == {"one.short", "two.short"}, told
    feeds = draw(engine, 7)
    expected = load(engine).run(feeds)["y"]
    assert compare(expected, reference(path, feeds)).cosine > 0.999
    session = load(engine)
    for _ in range(300):  # a missing wait would show sooner or later
        np.testing.assert_array_equal(session.run(feeds)["y"], expected)
    np.testing.assert_array_equal(Session(engine, poison=True).run(feeds)["y"], expected)
    assert all(step.timing.median_us > 0 for step in profile(session, feeds, runs=3, warmup_ms=1).steps)
