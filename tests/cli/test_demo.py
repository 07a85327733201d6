"""The demo, with little training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tamis.cli.main import run_command
from tamis.sparsity import check_onnx

pytestmark = pytest.mark.usefixtures("exporter_registry")


@pytest.mark.slow
def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert run_command(["demo", "--epochs", "2", "--json", "--output", str(folder)]) == 0
    data = json.loads(capsys.readouterr().out)
    accuracy = data["accuracy"]
    assert accuracy["dense"] > 0.9 and accuracy["fine_tuned"] > 0.9
    assert abs(accuracy["engine"] - accuracy["fine_tuned"]) < 0.01
    assert data["comparison"]["agrees"]
    assert len(data["sparsity"]["eligible"]) == data["sparse_weights"] == 5
    assert list(data["skipped_weights"]) == ["stem.weight"]
    assert {path.name for path in folder.iterdir()} == {"digits.onnx", "digits.tamis", "report.txt"}
    assert sum(check.eligible for check in check_onnx(folder / "digits.onnx")) == 5
    report = (folder / "report.txt").read_text()
    assert "fine-tuned" in report and "(Sparsity) Found 5 layer(s)" in report and "Throughput" in report
    assert "aster by sparsity" in report
    assert not any(line and line.isspace() for line in report.splitlines())


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(["demo", "--output", str(tmp_path / "file")]) == 7
    assert capsys.readouterr().err.count("\n") == 1
