"""``tamis check`` and ``tamis prune``: what they print, and the exit codes that scripts go by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import tamis
from sample_engines import make_engine
from small_models import save_cnn
from tamis.cli.main import run_command

NAMES = ["conv.weight", "hidden.weight", "scores.weight"]


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    """A convolution of 4 channels, a 2:4 layer and a dense layer."""
    return save_cnn(tmp_path / "cnn.onnx")


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    got = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert got == code, captured.err
    assert captured.err == ""
    return captured.out


def data(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    return json.loads(run(capsys, *arguments, "--json", code=code))


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    capsys.readouterr()
    assert run_command([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_check_prints_every_layer(capsys: pytest.CaptureFixture[str], cnn: Path) -> None:
    lines = run(capsys, "check", cnn, code=1).splitlines()
    assert lines[0].split() == ["weight", "kind", "axis", "shape", "zeros", "found", "2:4?"]
    assert lines[1].split()[:6] == ["conv.weight", "Conv", "1", "8x4x3x3", "0.0%", "-"]
    assert lines[1].endswith("NO: 0.0% of the groups along axis 1 are 2:4")
    assert lines[2].split() == ["hidden.weight", "Gemm", "1", "64x128", "50.0%", "2:4", "follows", "2:4"]
    assert lines[-1] == "1 of 3 layers that can follow 2:4 do; 0 cannot"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--require", "any"], 0),
        (["--require", "none"], 0),
        (["--layer", "hidden*"], 0),
        (["--layer", "hidden*", "--layer", "conv*"], 1),
        (["--layer", "conv*", "--require", "any"], 1),
        (["--allow-dense", "conv.weight"], 1),
        (["--allow-dense", "conv.weight", "--allow-dense", "last"], 0),
        (["--allow-dense", "*"], 0),
        (["--layer", "hidden*", "--pattern", "4:8"], 0),
        (["--layer", "hidden*", "--pattern", "1:4"], 1),
        (["--pattern", "1:256"], 1),  # which no layer can follow
        (["--pattern", "1:256", "--require", "any"], 1),
        (["--pattern", "1:256", "--require", "none"], 0),
    ],
)
def test_the_exit_code_of_check(capsys: pytest.CaptureFixture[str], cnn: Path, options: list[str], code: int) -> None:
    assert data(capsys, "check", cnn, *options, code=code)["met"] == (code == 0)


def test_check_as_json(capsys: pytest.CaptureFixture[str], cnn: Path) -> None:
    found = data(capsys, "check", cnn, "--allow-dense", "scores*", code=1)
    assert (found["kind"], found["pattern"], found["require"]) == ("onnx", "2:4", "all")
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == NAMES
    assert [layer["follows"] for layer in layers.values()] == [False, True, False]
    assert [layer["dense_on_purpose"] for layer in layers.values()] == [False, False, True]
    hidden = layers["hidden.weight"]
    assert (hidden["node"], hidden["axis"], hidden["shape"]) == ("hidden", 1, [64, 128])
    assert (hidden["zeros"], hidden["found"], hidden["violating"], hidden["reason"]) == (0.5, "2:4", 0.0, None)
    conv = layers["conv.weight"]
    assert (conv["found"], conv["violating"], conv["first_violation"]) == (None, 1.0, [0, 0, 0, 0])


def test_check_of_a_state_dict_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.eye(8)}, "epoch": 1}, tmp_path / "w.pt")
    out = run(capsys, "check", tmp_path / "w.pt", "--pattern", "1:4")
    assert "the weights under 'state_dict' were checked; the file also holds epoch" in out
    assert "leave embeddings out with --allow-dense" in out
    found = data(capsys, "check", tmp_path / "w.pt")
    assert found["layers"][0]["found"] == "1:8" and len(found["notes"]) == 2


MODULE = """
import torch
print("loud")
torch.manual_seed(0)
class nets:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 8))
    none = torch.nn.ReLU()
    number = 3
def make():
    from tamis import sparsity
    sparsity.prune(nets.model)
    return nets.model
def broken(): raise ValueError("no weights here\\nor there")
def leave(): raise SystemExit(0)
"""


def test_check_of_a_module(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = list(sys.path)
    for name, code in (("nets.model", 1), ("make", 0)):
        assert run_command(["check", f"sample_nets:{name}", "--json"]) == code
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert captured.err.startswith(f"Running the code of sample_nets:{name}\n")
        assert found["kind"] == "module"
        first, second = found["layers"]
        assert first["can_follow"] is False and second["kind"] == "Linear" and second["follows"] == (code == 0)
    for text, said in (
        ("sample_nets:nets.number", "gives a int, not a torch module"),
        ("sample_nets:nets.none", "has no linear, convolution or attention layer"),
        ("sample_nets:broken", "cannot be made: ValueError: no weights here. "),
        ("sample_nets:leave", "cannot be made: SystemExit"),
        ("sample_nets:absent", "cannot be made: AttributeError"),
        ("no_such_package.nets:model", "cannot be made: ModuleNotFoundError"),
    ):
        assert run_command(["check", text]) == 3
        captured = capsys.readouterr()
        assert captured.out == "" and said in captured.err.splitlines()[-1]
    assert sys.path == path
    (tmp_path / "a:b").write_bytes(b"")
    assert "is empty" in fails(capsys, 3, "check", "a:b")  # a file comes first


def test_prune_then_check(capsys: pytest.CaptureFixture[str], cnn: Path, tmp_path: Path) -> None:
    target = tmp_path / "sparse.onnx"
    lines = run(capsys, "prune", cnn, "-o", target).splitlines()
    assert lines[0].split() == ["weight", "kind", "axis", "shape", "zeros", "kept", "result"]
    assert lines[2].split() == ["hidden.weight", "Gemm", "1", "64x128", "50.0%", "100.0%", "2:4", "already"]
    assert lines[-1] == f"Wrote {target}: 3 layers pruned, 0 skipped"
    run(capsys, "check", target)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (cnn, target)
    )
    for name in before:
        if name in ("conv.weight", "scores.weight"):
            assert ((after[name] == before[name]) | (after[name] == 0)).all() and (after[name] == 0).mean() == 0.5
        else:
            assert before[name].tobytes() == after[name].tobytes()


def test_prune_some_layers_as_json(capsys: pytest.CaptureFixture[str], cnn: Path, tmp_path: Path) -> None:
    target = tmp_path / "sparse.onnx"
    found = data(capsys, "prune", cnn, "-o", target, "--exclude", "conv", "--pattern", "4:8")
    assert [layer["reason"] for layer in found["layers"]] == ["excluded", None, None]
    assert [layer["changed"] for layer in found["layers"]] == [False, False, True]
    assert found["layers"][2]["pattern"] == "4:8" and 0.5 < found["layers"][2]["kept_magnitude"] < 1
    run(capsys, "check", target, "--pattern", "4:8", "--allow-dense", "conv.weight", code=0)
    found = data(capsys, "prune", cnn, "-o", target, "--only", "scores.weight")
    assert [layer["reason"] for layer in found["layers"]] == ["not chosen", "not chosen", None]
    out = run(capsys, "prune", cnn, "-o", target, "--only", "scores.weight")
    assert "skipped: not chosen" in out


def test_mistakes(capsys: pytest.CaptureFixture[str], cnn: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    assert "--require 'some' is unknown" in fails(capsys, 2, "check", cnn, "--require", "some")
    assert "--layer 'encoder' matches no layer" in fails(capsys, 2, "check", cnn, "--layer", "encoder")
    assert "--allow-dense 'x' matches" in fails(capsys, 2, "check", cnn, "--allow-dense", "x")
    assert "'4:2' is not an n:m pattern" in fails(capsys, 2, "check", cnn, "--pattern", "4:2")
    assert "not an n:m pattern" in fails(capsys, 2, "prune", cnn, "-o", target, "--pattern", "dense")
    assert "does not exist" in fails(capsys, 3, "check", tmp_path / "absent.onnx")
    assert "is a directory" in fails(capsys, 3, "check", tmp_path)
    assert "would replace" in fails(capsys, 2, "prune", cnn, "-o", cnn)
    assert "only 'x' matches no layer" in fails(capsys, 2, "prune", cnn, "-o", target, "--only", "x")
    assert "nothing can be pruned" in fails(capsys, 10, "prune", cnn, "-o", target, "--pattern", "1:256")
    assert "folder does not exist" in fails(capsys, 7, "prune", cnn, "-o", tmp_path / "no" / "out.onnx")
    assert "does not exist" in fails(capsys, 3, "prune", tmp_path / "absent.onnx", "-o", target)
    fails(capsys, 2, "prune", cnn)
    model = onnx.load(cnn)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((8, 4, 3, 3), np.nan, np.float32), "conv.weight")
    )
    onnx.save(model, tmp_path / "nan.onnx")
    assert "layer 'conv': its weight 'conv.weight' holds NaN" in fails(
        capsys, 10, "prune", tmp_path / "nan.onnx", "-o", target
    )
    assert not target.exists()
    run(capsys, "prune", cnn, "-o", cnn, "--overwrite")


def test_parts_of_a_weight_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["w"], ["q", "k"], axis=1, num_outputs=2),
            helper.make_node("MatMul", ["x", "q"], ["xq"], "query"),
            helper.make_node("MatMul", ["x", "k"], ["xk"], "key"),
            helper.make_node("Add", ["xq", "xk"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [weight],
    )
    source, target = tmp_path / "m.onnx", tmp_path / "s.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, source, save_as_external_data=True, location="s.onnx.data", size_threshold=0)
    assert "'s.onnx.data', beside the output, would replace" in fails(capsys, 2, "prune", source, "-o", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "s.onnx.data"]
    target = tmp_path / "t.onnx"
    lines = run(capsys, "prune", source, "-o", target, "--exclude", "key").splitlines()
    assert lines[1].startswith("w at query ") and lines[2].startswith("w at key ") and "excluded" in lines[2]
    lines = run(capsys, "check", target, code=1).splitlines()
    assert lines[1].startswith("w at query ") and lines[1].endswith("follows 2:4") and "NO: 0.0%" in lines[2]
    run(capsys, "check", target, "--allow-dense", "key")


def test_an_engine_is_not_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engine = tmp_path / "cnn.tamis"
    tamis.save_engine(make_engine(), engine)
    assert "is an engine. Look at it with 'tamis explain'" in fails(capsys, 3, "check", engine)


def test_a_model_of_large_constants_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert "holds no layer with weights" in fails(capsys, 3, "check", tmp_path / "m.onnx")
    assert "no layer with a constant weight" in fails(
        capsys, 10, "prune", tmp_path / "m.onnx", "-o", tmp_path / "s.onnx"
    )
