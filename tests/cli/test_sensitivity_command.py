"""``tamis sensitivity`` as users call it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sample_estimates import layer, sample_estimate
from tamis.cli.main import run_command
from tamis.compiler.sensitivity import ModelSensitivity
from tamis.engine import estimate_json
from tamis.sparsity import plan_from_json, report_from_json
from what_if_models import INPUT, save_dense_cnn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx, an estimate of it and samples."""
    save_dense_cnn(tmp_path / "net.onnx", width=16)
    layers = [layer(name, 10.0, 5.0) for name in ("stem", "first", "second", "wide", "hidden", "last")]
    (tmp_path / "estimate.json").write_text(estimate_json(replace(sample_estimate(), layers=tuple(layers))))
    images = np.random.default_rng(0).standard_normal((2 * INPUT[0], *INPUT[1:])).astype(np.float32)
    np.savez(tmp_path / "samples.npz", image=images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = ["sensitivity", "net.onnx", "--estimate", "estimate.json", "--samples", "samples.npz"]


def test_everything_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--plan", "plan.json", "-o", "report.json", "--picture", "picture.svg"]
    assert run_command([*GIVEN, "--pattern", "2:4,1:4", "--target-ms", "0.115", *files]) == 0
    out = capsys.readouterr().out
    assert "times of a fake, dense 125 us" in out and "stem: 3 inputs to reduce over" in out
    assert "Plan for 0.115 ms (1.09x): prune 2 layers (the best choice by the sums)" in out
    assert "time: by the sum 125 us -> 115 us (1.09x)" in out and "measured together SQNR" in out
    report = report_from_json((folder / "report.json").read_text())
    plan = plan_from_json((folder / "plan.json").read_text())
    cheapest = sorted((row.loss, row.name) for row in report.rows if row.pattern == "2:4")[:2]
    assert sorted(each.name for each in plan.layers) == sorted(name for _, name in cheapest)
    assert "<svg" in (folder / "picture.svg").read_text()


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*GIVEN, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plan"] is None and len(data["report"]["rows"]) == 5
    assert run_command(["sensitivity", "net.onnx", "--no-times", "--max-loss", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["measured_loss"] > 0


def test_a_plan_beyond_its_budget_is_a_no(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ModelSensitivity, "measured", lambda self, plan: replace(plan, measured_loss=9.0))
    assert run_command([*GIVEN, "--max-loss", "5"]) == 1
    assert "The layers together lose more than the budget" in capsys.readouterr().out


@pytest.mark.parametrize("goal", [["--speedup", "9"], ["--max-loss", "1e-12"]])
def test_a_goal_out_of_reach_costs_no_measurement(
    folder: Path, capsys: pytest.CaptureFixture[str], goal: list[str]
) -> None:
    """The error comes after the report, which needs no plan."""
    assert run_command([*GIVEN, *goal, "-o", "report.json", "--plan", "plan.json", "--json"]) == 10
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["plan"] is None and len(data["report"]["rows"]) == 5
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert len(report_from_json((folder / "report.json").read_text()).rows) == 5
    assert not (folder / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([*GIVEN, "--speedup", "0.5"], 2),
        ([*GIVEN, "--max-loss", "0.1", "--speedup", "1.1"], 2),
        ([*GIVEN, "--plan", "plan.json"], 2),
        ([*GIVEN, "--no-times"], 2),
        ([*GIVEN, "--pattern", "5:7"], 10),
        ([*GIVEN, "--pattern", "much"], 9),
        ([*GIVEN, "-o", "net.onnx"], 2),
        ([*GIVEN, "-o", "missing/report.json"], 7),
        ([*GIVEN, "--picture", "picture.bmp"], 2),
        (["sensitivity", "net.onnx", "--estimate", "absent.json"], 2),
        (["sensitivity", "net.onnx", "--estimate", "net.onnx"], 2),
        (["sensitivity", "net.onnx", "--no-times", "--samples", "estimate.json"], 5),
        (["sensitivity", "net.onnx", "--no-times", "--speedup", "1.1"], 2),
        (["sensitivity", "absent.onnx", "--no-times"], 3),
    ],
)
def test_wrong_options(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert run_command(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before
