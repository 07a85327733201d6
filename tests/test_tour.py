"""The tour: every stage of Tamis once, on a small network, in a few seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tamis
from tamis import sparsity
from tamis.compiler import STAGES
from tamis.engine import describe
from tamis.report import explain_data, sparsity_lines
from tamis.runtime import bench, profile

SECONDS = 10.0  # on an idle machine; the test allows for a busy one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour")


@pytest.mark.usefixtures("usual_stopwatch")
def test_the_tour(folder: Path) -> None:
    start = time.process_time()

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10),
    )  # fmt: skip
    image = torch.randn(2, 8, 16, 16)

    # sparsify
    report = sparsity.prune(model, "2:4", exclude=("6",))
    assert len(report.pruned) == 2
    sparsity.finalize(model)
    model.eval()
    sparsity.export_onnx(model, (image,), folder / "net.onnx", input_names=["image"], output_names=["scores"])
    checks = sparsity.check_onnx(folder / "net.onnx")
    assert [check.eligible for check in checks] == [True, True, False]

    # compile
    stages: list[str] = []
    engine = tamis.build(
        folder / "net.onnx",
        output=folder / "net.tamis",
        precisions=("float32", "bfloat16"),
        repetitions=5,
        verify=True,
        progress=lambda stage, done, total, detail: stages.append(stage),
    )
    assert tuple(dict.fromkeys(stages)) == STAGES
    assert sum(layer.eligible for layer in engine.plan.layers) == 2

    # run
    session = tamis.load(folder / "net.tamis", poison=True)
    result = session.run({"image": image.numpy()})["scores"]
    expected = model(image).detach().numpy()
    assert np.abs(result - expected).max() <= 0.02 * np.abs(expected).max()

    # explain
    times = profile(session, [image], runs=3, warmup_ms=0)
    assert [step.step.name for step in times.steps] == [step.name for step in engine.plan.steps]
    assert len(bench(session, [image], warmup_ms=0, duration_s=0, iterations=3).latencies_ms) == 3
    assert "Found 2 layer(s) eligible" in sparsity_lines(engine.plan.layers)[0]
    again = tamis.read_engine(folder / "net.tamis")
    assert json.loads(json.dumps(explain_data(again)))["sparsity"]["eligible"]
    assert again.plan == engine.plan
    assert describe(again)["summary"]["eligible_layers"]

    assert time.process_time() - start < 4 * SECONDS


def test_every_record_says_why(folder: Path) -> None:
    plan = tamis.read_engine(folder / "net.tamis").plan
    for layer in plan.layers:
        assert layer.why, layer.name
        assert layer.eligible or layer.ineligible_reason or layer.kind not in ("Conv", "Linear"), layer.name
        for candidate in layer.candidates:
            assert candidate.reason or candidate.status == "won", (layer.name, candidate.tactic)
            assert candidate.timing is None or candidate.timing.median_us > 0
    assert any(record.chosen for record in plan.engines)
