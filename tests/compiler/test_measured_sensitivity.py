"""Sensitivity of ONNX models: against ONNX Runtime on pruned files, times of estimates, goals, and clear errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tamis.compiler import BuildConfig, Goal, estimate_sparsity, measure_sensitivity, measured_times
from tamis.compiler import perturbed as perturbed_module
from tamis.engine import Engine, Estimate
from tamis.errors import ConfigError, InputError, ModelError, SparsityError, TamisError
from tamis.formats import magnitude_mask, parse_pattern
from tamis.sparsity import plan_from_json, plan_json, prune, report_from_json, report_json
from what_if_models import INPUT, make_up_times, save_dense_cnn

CONFIG = BuildConfig(threads=1, exclude_tactics=("openvino", "tamis.chain"))
LAYERS = {"first": "first", "second": "second", "wide": "wide", "hidden": "hidden", "last": "scores"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense_cnn(tmp_path_factory.mktemp("net") / "net.onnx", width=16)


def images(batches: int = 1) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((INPUT[0] * batches, *INPUT[1:])).astype(np.float32)


def by_onnxruntime(path: Path, samples: np.ndarray, patterns: dict[str, str]) -> np.ndarray:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in patterns:
            weight = numpy_helper.to_array(tensor)
            mask = magnitude_mask(weight, parse_pattern(patterns[tensor.name]), 1)  # type: ignore[arg-type]
            tensor.CopyFrom(numpy_helper.from_array((weight * mask).astype(np.float32), tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"image": part})[0] for part in np.split(samples, len(samples) // INPUT[0])]
    return np.concatenate(parts).astype(np.float64)


def expected_loss(path: Path, samples: np.ndarray, patterns: dict[str, str]) -> float:
    dense, pruned = by_onnxruntime(path, samples, {}), by_onnxruntime(path, samples, patterns)
    return float(((pruned - dense) ** 2).sum() / (dense**2).sum())


@pytest.mark.parametrize("fits", [True, False])
def test_losses_are_those_of_pruned_files(network: Path, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    if not fits:
        monkeypatch.setattr(perturbed_module, "_SHARE", 1 << 60)
    samples = images(2)
    config = replace(CONFIG, samples={"image": samples})
    report, plan = measure_sensitivity(network, config, ("2:4", "1:4"), times=None, goal=Goal(max_loss=0.5))
    assert report.data == "2 given batches" and report.whole_us is None
    assert {(row.name, row.pattern) for row in report.rows} == {(n, p) for n in LAYERS for p in ("2:4", "1:4")}
    assert [skipped.name for skipped in report.skipped] == ["stem"]
    for row in report.rows:
        weight = f"{LAYERS[row.name]}.weight"
        assert row.weights == (weight,) and row.saved_us is None
        assert row.loss == pytest.approx(expected_loss(network, samples, {weight: row.pattern}), rel=1e-3)
    assert plan is not None and plan.layers and plan.loss <= 0.5
    assert plan.measured_loss == pytest.approx(expected_loss(network, samples, plan.patterns), rel=1e-3)
    assert plan.measured_gain is None
    assert report_from_json(report_json(report)) == report and plan_from_json(plan_json(plan)) == plan


def test_only_what_a_change_reaches_is_computed(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = perturbed_module.run_layer
    monkeypatch.setattr(
        perturbed_module, "run_layer", lambda layer, *rest: (ran.append(layer.name), run(layer, *rest))[1]
    )
    report, _ = measure_sensitivity(network, CONFIG, times=None)
    total = len(dict.fromkeys(ran))
    assert len(ran) < 0.8 * total * (1 + len(report.rows))
    assert ran.count("stem") == 1 and ran.count("first") == 2 and ran.count("last") == 1 + len(report.rows)


def test_times_and_a_measured_plan(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Engine] = make_up_times(monkeypatch)
    report, plan = measure_sensitivity(network, CONFIG, ("2:4", "4:8"), goal=Goal(max_loss=0.9))
    saved = {(row.name, row.pattern): row.saved_us for row in report.rows}
    assert saved["first", "2:4"] == 0.0 and (saved["hidden", "2:4"] or 0) > 0 and saved["hidden", "4:8"] == 0.0
    assert report.whole_us == pytest.approx(102.0)
    assert plan is not None and {layer.name for layer in plan.layers} <= {"wide", "hidden", "last"}
    assert plan.measured_gain == pytest.approx(102 / 82, rel=1e-3) and not plan.gain_within_noise
    eligible = {layer.name for layer in timed[-1].plan.layers if layer.eligible}
    assert eligible == {layer.name for layer in plan.layers}  # the engine timed has just these pruned


@pytest.fixture(scope="module")
def estimated(network: Path) -> Estimate:
    with pytest.MonkeyPatch.context() as patched:
        make_up_times(patched)
        return estimate_sparsity(network, CONFIG)


def test_goals_of_time(network: Path, estimated: Estimate) -> None:
    whole = estimated.whole.dense.median_us
    most = sum(layer.saved_us for layer in estimated.layers)
    target = whole - 0.6 * most
    report, plan = measure_sensitivity(network, CONFIG, times=estimated, goal=Goal(target_us=target))
    assert plan is not None and plan.saved_us is not None and plan.saved_us >= 0.6 * most - 1e-6
    assert 0 < len(plan.layers) < 3 and plan.measured_loss is not None
    _, same = measure_sensitivity(network, CONFIG, times=estimated, goal=Goal(speedup=whole / target))
    assert same is not None and same.layers == plan.layers
    for goal, words in (
        (Goal(target_us=1.0), "is out of reach"),
        (Goal(speedup=5.0), "is out of reach"),
        (Goal(target_us=1e6), "no more than"),
        (Goal(max_loss=1e-9), "no layer can be pruned for a loss"),
        (Goal(max_loss=-1.0), "the budget is -1"),
    ):
        with pytest.raises(SparsityError, match=words):
            measure_sensitivity(network, CONFIG, times=estimated, goal=goal)
    with pytest.raises(SparsityError, match="no times to plan by"):
        measure_sensitivity(network, CONFIG, times=None, goal=Goal(target_us=50.0))
    assert report.device == estimated.device.name


def test_when_nothing_saves_time(network: Path, estimated: Estimate) -> None:
    slow = replace(estimated, layers=tuple(replace(layer, pays=False) for layer in estimated.layers))
    for goal in (Goal(max_loss=1.0), Goal(speedup=1.01)):
        with pytest.raises(SparsityError, match="saves no time in any"):
            measure_sensitivity(network, CONFIG, times=slow, goal=goal)
    other = replace(estimated, layers=estimated.layers[1:])
    with pytest.raises(ConfigError, match="estimate is of another model"):
        measure_sensitivity(network, CONFIG, times=other)


@pytest.mark.parametrize(
    ("options", "patterns", "error", "words"),
    [
        ({"samples": {"image": images()[:, :, :5]}}, ("2:4",), InputError, "has the shape"),
        ({"samples": {"image": images(2)[:-1]}}, ("2:4",), InputError, "has the shape"),
        ({"samples": {"picture": images()}}, ("2:4",), InputError, "not inputs of the model"),
        ({"samples": {"image": images() * math.nan}}, ("2:4",), InputError, "NaN"),
        ({"samples": {"image": np.full_like(images(), 3e38)}}, ("2:4",), InputError, "not finite"),
        ({}, ("5:7",), SparsityError, "5:7 fits none of the 6 weights; 'stem': 3 inputs"),
        ({}, ("dense",), SparsityError, "not an n:m pattern"),
        ({}, (), SparsityError, "no pattern is given"),
    ],
)
def test_errors(
    network: Path, options: dict[str, Any], patterns: tuple[str, ...], error: type[TamisError], words: str
) -> None:
    with pytest.raises(error, match=words):
        measure_sensitivity(network, replace(CONFIG, **options), patterns, times=None)


def test_models_that_cannot_be_pruned(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'second': its weight holds NaN"):
        measure_sensitivity(save_dense_cnn(tmp_path / "nan.onnx", nan=True, width=16), CONFIG, ("1:4",), times=None)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(SparsityError, match="no layer with a constant weight"):
        measure_sensitivity(model, CONFIG, times=None)
    for wrong in ({}, {"max_loss": 0.1, "speedup": 2.0}, {"speedup": 0.5}, {"speedup": math.nan}):
        with pytest.raises(ConfigError):
            Goal(**wrong)


def test_a_plan_of_the_file_prunes_the_torch_model(network: Path, estimated: Estimate) -> None:
    """Exporters keep the names of weights."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = torch.nn.Linear(32, 16, bias=False)
            self.wide = torch.nn.Conv2d(16, 32, 1, bias=False)
            self.scores = torch.nn.Linear(16, 10, bias=False)

    _, plan = measure_sensitivity(network, CONFIG, times=estimated, goal=Goal(max_loss=1e6))
    assert plan is not None
    report = prune(Net(), plan=plan_from_json(plan_json(plan)))
    assert {layer.name for layer in report.pruned} == {f"{LAYERS[layer.name]}.weight" for layer in plan.layers}
    times = measured_times(estimated)
    assert times.whole_us == estimated.whole.dense.median_us
    assert {t.weights for t in times.layers} == {(f"{n}.weight",) for n in ("stem", *LAYERS.values())}
