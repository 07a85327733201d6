"""``tamis estimate`` as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tamis.cli.main import run_command
from tamis.engine import estimate_from_json
from what_if_models import make_up_times, save_dense_cnn

OPTIONS = ["--threads", "1", "--exclude-tactic", "openvino", "--exclude-tactic", "tamis.chain"]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return save_dense_cnn(tmp_path / "model" / "net.onnx")


def test_the_report_and_the_file(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_up_times(monkeypatch)
    file = tmp_path / "estimate.json"
    assert run_command(["estimate", str(network), *OPTIONS, "-o", str(file)]) == 0
    out = capsys.readouterr().out
    assert "2:4 brings 1.24x; " in out.splitlines()[-1] and "do not fine-tune the others" in out
    assert estimate_from_json(file.read_text()).whole.pays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estimate.json", "model"]
    assert [path.name for path in network.parent.iterdir()] == ["net.onnx"]  # above all no engine


def test_no_gain_is_no_failure(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_up_times(monkeypatch, {False: 100.0, True: 100.0})
    assert run_command(["estimate", str(network), *OPTIONS]) == 0
    assert "2:4 brings nothing here" in capsys.readouterr().out
    assert run_command(["estimate", str(network), *OPTIONS, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["whole"]["pays"] is False and estimate_from_json(out).carriers == ()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--pattern", "4:8"], 2),
        (["--pattern", "lots"], 9),
        (["--device", "tpu"], 2),
        (["--precision", "fp12"], 2),
        (["--exclude-tactic", "nobody"], 2),
        (["--shape", "nobody=1x2"], 2),
        (["-o", "missing/estimate.json"], 7),
        (["-o", "model/net.onnx"], 2),
        (["--budget", "-1"], 2),
    ],
)
def test_wrong_options(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = network.read_bytes()
    assert run_command(["estimate", "model/net.onnx", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert network.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["estimate", str(tmp_path / "absent.onnx")]) == 3
    assert "does not exist" in capsys.readouterr().err
