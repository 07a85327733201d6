"""``tamis crossover`` as users call it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import tamis.compiler.crossover as measuring
from sample_crossovers import mixed_map
from tamis.cli.main import run_command
from tamis.engine import crossover_from_json, crossover_json
from tamis.engine.crossover import CROSSOVER_VERSION

SMALL = ["crossover", "--kinds", "linear,conv3x3", "--sizes", "64,128", "--batch", "1", "--map", "7", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that one run writes."""
    folder = tmp_path_factory.mktemp("crossover")
    files = ["-o", str(folder / "map.json"), "--picture", str(folder / "map.png")]
    assert run_command([*SMALL, *files, "--timing-cache", str(folder / "times.json")]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run_command(["crossover", *map(str, arguments)]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_the_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["map.json", "map.png", "times.json"]
    measured = crossover_from_json((folder / "map.json").read_text())
    assert measured.version == CROSSOVER_VERSION and len(measured.cells) == 8
    assert all((cell.ratio is not None) == (cell.kind == "linear") for cell in measured.cells)
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*SMALL, "--timing-cache", str(folder / "times.json")]) == 0
    out = capsys.readouterr().out
    assert "linear, 1 row\n" in out and "linear, 1 row: 2:4 " in out
    assert "3x3 convolution: 2:4 never pays: no sparse tactic can run it (tamis.linear: a 3x3 convolution" in out
    assert "cold caches" in out


def test_the_same_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*SMALL, "--json", "--timing-cache", str(folder / "times.json")]) == 0
    again = crossover_from_json(capsys.readouterr().out)
    assert again.cells == crossover_from_json((folder / "map.json").read_text()).cells


def test_a_map_is_gone_on_with(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [*SMALL, "--budget", "1e-9", "-o", str(tmp_path / "map.json")]
    assert run_command(first) == 0
    assert "--resume" in fails(capsys, 2, "--from", tmp_path / "map.json", "--resume", tmp_path / "map.json")
    again = [*SMALL, "--resume", str(folder / "map.json"), "-o", str(tmp_path / "again.json"), "--budget", "1e-9"]
    assert run_command(again) == 0
    whole, resumed = (crossover_from_json(path.read_text()) for path in (folder / "map.json", tmp_path / "again.json"))
    assert resumed.cells == whole.cells
    assert "another size of images" in fails(capsys, 2, *SMALL[1:], "--map", "9", "--resume", folder / "map.json")


def test_a_map_is_shown_and_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "open_device", None)  # nothing may be measured
    (tmp_path / "map.json").write_text(crossover_json(mixed_map()))
    source = ["crossover", "--from", str(tmp_path / "map.json")]
    assert run_command([*source, "--picture", str(tmp_path / "map.svg")]) == 0
    assert "linear, 16 rows: 2:4 pays at 128 x 128, the largest size (1.70x)" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "map.svg").read_text()
    assert run_command([*source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["name"] == "a fake"


def test_an_interrupt_keeps_the_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "race_layer", interrupted)
    assert run_command([*SMALL, "-o", str(tmp_path / "map.json")]) == 130
    assert "4 of 8 cells" in capsys.readouterr().out  # the convolutions, which nothing sparse can run
    assert crossover_from_json((tmp_path / "map.json").read_text()).interrupted


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "tpu"],
        ["--precision", "fp12"],
        ["--precision", "fp32,bf16"],
        ["--precision", "fp16"],
        ["--kinds", "conv5x5"],
        ["--kinds", ""],
        ["--sizes", "64,many"],
        ["--sizes", "64,66"],
        ["--sizes", "-64"],
        ["--sizes", ""],
        ["--batch", "0"],
        ["--map", "0"],
        ["--budget", "0"],
        ["--budget", "soon"],
        ["--threads", "0"],
        ["-o", "missing/map.json"],
        ["-o", "."],
        ["--picture", "missing/map.png"],
        ["--picture", "map.bmp"],
        ["--from", "absent.json"],
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "race_layer", None)  # all of it is said before anything is measured
    fails(capsys, 2, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_map(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"version": 1')
    line = fails(capsys, 2, "--from", tmp_path / "map.json", "-o", tmp_path / "out.json")
    assert f"{tmp_path / 'map.json'} is not a crossover map" in line
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_a_picture_without_matplotlib(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    monkeypatch.setattr(measuring, "race_layer", None)
    line = fails(capsys, 6, "--picture", tmp_path / "map.png", "-o", tmp_path / "map.json")
    assert "pip install matplotlib" in line
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "map.json").write_text(crossover_json(mixed_map()))
    assert run_command(["crossover", "--from", str(tmp_path / "map.json")]) == 0  # only pictures need it


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails(capsys, 6, "--device", "cuda", "--precision", "fp16", "-o", tmp_path / "map.json")
    assert "no CUDA device" in line
    assert list(tmp_path.iterdir()) == []
