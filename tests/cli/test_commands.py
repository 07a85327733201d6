"""All commands on a small model, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from small_models import save_cnn, save_mlp
from tamis.cli.main import COMMANDS, run_command
from tamis.cli.output import Stages
from tamis.compiler import STAGES
from tamis.engine.plan import DeviceInfo
from tamis.kernels import KernelStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    save_cnn(folder / "cnn.onnx")
    arguments = ["build", str(folder / "cnn.onnx"), "-o", str(folder / "cnn.tamis"), "--quiet"]
    regions = [
        "--exclude-tactic",
        "openvino",
        "--exclude-tactic",
        "tamis.chain",
    ]  # so that all values survive
    assert run_command([*arguments, *regions]) == 0
    return folder


@pytest.fixture
def engine(folder: Path) -> str:
    return str(folder / "cnn.tamis")


@pytest.fixture
def model(folder: Path) -> str:
    return str(folder / "cnn.onnx")


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run_command(arguments) == code, capsys.readouterr().err
    return capsys.readouterr().out


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(output_of(capsys, *arguments, "--json", code=code))


def test_build_prints_the_sparsity_lines(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    out = output_of(capsys, "build", model, "-o", str(tmp_path / "a.tamis"), "--threads", "1")
    assert "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: hidden" in out
    assert "(Sparsity) Chose" in out
    assert (tmp_path / "a.tamis").is_file()


def test_build_as_json(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    target = tmp_path / "a.tamis"
    data = json_of(capsys, "build", model, "-o", str(target), "--sparsity", "off", "--best")
    assert data["file_bytes"] == target.stat().st_size
    assert tuple(data["stages"]) == STAGES
    assert all(seconds >= 0 for seconds in data["stages"].values())
    assert sum(data["stages"].values()) <= data["seconds"]
    assert data["sparsity"]["chosen"] == []
    assert tamis.read_engine(target).plan.config["sparsity"] == "off"


def test_build_with_a_timing_cache_repeats(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    said = {}
    for name in ("a", "b"):
        arguments = ["build", model, "-o", str(tmp_path / name), "--timing-cache", str(tmp_path / "cache")]
        said[name] = output_of(capsys, *arguments)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    words = "Nothing was measured: all times are from the timing cache"
    assert words not in said["a"] and words in said["b"]
    assert not json.loads(output_of(capsys, *arguments, "--json"))["measured"]


def test_build_with_a_symbolic_batch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_cnn(tmp_path / "any.onnx", batch="batch")
    arguments = ["build", str(tmp_path / "any.onnx"), "-o", str(tmp_path / "a.tamis"), "--quiet"]
    output_of(capsys, *arguments, "--shape", "image=3x4x8x8")
    assert tamis.read_engine(tmp_path / "a.tamis").plan.inputs[0].shape == (3, 4, 8, 8)
    output_of(capsys, "compare", str(tmp_path / "any.onnx"), str(tmp_path / "a.tamis"))


def test_dump_writes_the_graphs(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    output_of(capsys, "build", model, "-o", str(tmp_path / "a.tamis"), "--dump", str(dump), "--quiet")
    assert len(list(dump.iterdir())) > 3


def test_inspect(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    out = output_of(capsys, "inspect", engine)
    assert "image" in out and "2x4x8x8" in out and "scores" in out
    assert json_of(capsys, "inspect", engine)["plan"]["inputs"][0]["shape"] == [2, 4, 8, 8]


def test_explain(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    assert "(Sparsity) Found 1 layer(s)" in output_of(capsys, "explain", engine)
    one = output_of(capsys, "explain", engine, "--layer", "hidden")
    assert "eligible for 2:4" in one and "won" in one and "last:" not in one
    assert "refused" in output_of(capsys, "explain", engine, "--layer", "conv")
    assert "last:" in output_of(capsys, "explain", engine, "--all")
    data = json_of(capsys, "explain", engine, "--layer", "hidden")
    assert [layer["name"] for layer in data["layers"]] == ["hidden"]


def test_run_keeps_the_outputs(capsys: pytest.CaptureFixture[str], engine: str, tmp_path: Path) -> None:
    image = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.savez(tmp_path / "all.npz", image=image)
    expected = tamis.load(engine).run({"image": image})["scores"]
    for given in (
        f"image={tmp_path / 'image.npy'}",
        str(tmp_path / "all.npz"),
        f"image={tmp_path / 'all.npz'}",
    ):
        assert run_command(["run", engine, "--input", given, "-o", str(tmp_path / "out.npz")]) == 0
        assert f"Wrote {tmp_path / 'out.npz'}\n" in capsys.readouterr().err
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["scores"], expected)


def test_run_says_which_inputs_are_random(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    data = json_of(capsys, "run", engine)
    assert data["outputs"][0]["shape"] == [2, 10]
    assert run_command(["run", engine]) == 0
    assert "input 'image' was not given and is random" in capsys.readouterr().err


def test_bench_prints_what_trtexec_prints(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    arguments = ("bench", engine, "--duration", "0.05", "--warmup", "1", "--iterations", "20")
    out = output_of(capsys, *arguments)
    for start in ("=== Performance summary ===", "Throughput: ", "Latency: min = ", "Total Host Walltime: "):
        assert any(line.startswith(start) for line in out.splitlines()), start
    assert "percentile(99%) = " in out and " qps" in out
    data = json_of(capsys, *arguments)
    assert data["queries"] >= 20 and data["latency_ms"]["p99"] >= data["latency_ms"]["median"]


def test_profile(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    assert "Whole run" in output_of(capsys, "profile", engine, "--runs", "3", "--top", "1")
    data = json_of(capsys, "profile", engine, "--runs", "3")
    assert sum(step["share"] for step in data["steps"]) == pytest.approx(1.0)


def test_profile_proves_that_sparse_steps_are_sparse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = str(tmp_path / "mlp.tamis")
    only_ours = ["--exclude-tactic", "openvino", "--exclude-tactic", "onednn"]
    # On one core a busy machine cannot hide that reading half of the weight is faster.
    output_of(capsys, "build", str(save_mlp(tmp_path / "mlp.onnx")), "-o", engine, "--threads", "1", *only_ours)
    data = json_of(capsys, "profile", engine, "--verify-sparse")
    sparse = [step for step in data["steps"] if step["sparsity"] == "2:4"]
    assert sparse and all("2:4" in name for step in sparse for name in step["kernels"])
    assert data["unproven"] == []
    assert "run a sparse kernel" in output_of(capsys, "profile", engine, "--kernels")
    monkeypatch.setattr("tamis.devices.cpu.linear.kernel_names", lambda step: ("something_dense",))
    data = json_of(capsys, "profile", engine, "--verify-sparse", code=1)
    assert data["unproven"] == [step["name"] for step in sparse]


def test_compare_with_onnxruntime(capsys: pytest.CaptureFixture[str], model: str, engine: str) -> None:
    assert "agrees with ONNX Runtime" in output_of(capsys, "compare", model, engine)
    data = json_of(capsys, "compare", model, engine, "--layers")
    assert data["agrees"] and data["first_deviation"] is None
    assert {"pool", "hidden.relu"} <= {layer["name"] for layer in data["layers"]}


def test_compare_finds_the_first_value_that_deviates(
    capsys: pytest.CaptureFixture[str], model: str, engine: str, tmp_path: Path
) -> None:
    """One weight of the second layer is changed: what is before it agrees, what follows does not."""
    from dataclasses import replace

    original = tamis.read_engine(engine)
    step = next(step for step in original.plan.steps if "hidden" in step.layers)
    name = max(step.constants, key=lambda name: original.tensors[name].nbytes)
    weight = original.tensors[name].copy()
    flat = weight.reshape(-1).view(np.uint8)
    flat[: flat.size // 2] = 0
    wrong = replace(original, tensors={**original.tensors, name: weight})
    tamis.save_engine(wrong, tmp_path / "wrong.tamis")
    data = json_of(capsys, "compare", model, str(tmp_path / "wrong.tamis"), "--layers", code=1)
    assert not data["agrees"] and data["first_deviation"] == "hidden.relu"
    out = output_of(capsys, "compare", model, str(tmp_path / "wrong.tamis"), "--layers", code=1)
    assert "The first value that deviates is 'hidden.relu'" in out


def test_compare_two_engines(capsys: pytest.CaptureFixture[str], model: str, engine: str, tmp_path: Path) -> None:
    assert "All layers run the same way" in output_of(capsys, "compare", engine, engine)
    other = str(tmp_path / "other.tamis")
    excluded = ["--exclude-tactic", "openvino", "--exclude-tactic", "onednn", "--exclude-tactic", "tamis"]
    output_of(capsys, "build", model, "-o", other, "--quiet", *excluded)
    names = {layer["name"] for layer in json_of(capsys, "compare", engine, other)["layers"]}
    assert names <= {layer.name for layer in tamis.read_engine(engine).plan.layers}


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Python" in output_of(capsys, "env")
    data = json_of(capsys, "env")
    assert data["tamis"] == tamis.__version__
    assert data["device"]["kind"] == "cpu"


def test_env_tells_where_compiled_kernels_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TAMIS_KERNEL_CACHE", str(tmp_path / "kept"))
    assert json_of(capsys, "env")["kernel_cache"]["entries"] == 0
    assert not (tmp_path / "kept").exists()
    KernelStore(tmp_path / "kept").write("key", "cubin", b"x" * 2016)
    cache = json_of(capsys, "env")["kernel_cache"]
    assert (cache["path"], cache["entries"], cache["bytes"]) == (str(tmp_path / "kept"), 1, 2048)
    assert f"{tmp_path / 'kept'}: 1 GPU kernel, 2.0 KiB" in output_of(capsys, "env")
    monkeypatch.setenv("TAMIS_KERNEL_CACHE", "off")
    assert json_of(capsys, "env")["kernel_cache"] is None
    assert "off (TAMIS_KERNEL_CACHE)" in output_of(capsys, "env")


def test_stages_are_timed_and_passed_on() -> None:
    now, told = [0.0], []
    stages = Stages(lambda *what: told.append(what), clock=lambda: now[0])
    for stage, seconds in (("device", 1.0), ("race", 2.0), ("race", 3.0), ("device", 4.0)):
        stages.tell(stage, 0, 1, "x")
        now[0] += seconds
    assert stages.seconds() == {"device": 5.0, "race": 5.0}
    assert stages.seconds() == {"device": 5.0, "race": 5.0}
    assert told[0] == ("device", 0, 1, "x") and len(told) == 4


def test_env_with_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"torch": "2.11.0", "cuda": "13.0", "cudnn": "9.19.0", "cublaslt": "13.1.0", "cusparselt": "0.8.0"}
    info = DeviceInfo("cuda", "NVIDIA H200", "sm_90", 132, ("fp16", "sparse_tensor_cores"), libraries)
    monkeypatch.setattr("tamis.devices.cuda.require_cuda", lambda: None)
    monkeypatch.setattr("tamis.devices.cuda.cuda_info", lambda: info)
    data = json_of(capsys, "env")
    assert data["cuda"]["libraries"] == libraries
    assert "0.8.1" in data["cuda"]["notes"][0]  # the version that repairs what this one is slow at
    assert "cudnn_frontend" in [item["name"] for item in data["missing"]]
    text = output_of(capsys, "env")
    assert "NVIDIA H200 (sm_90), 132 multiprocessors, with sparse tensor cores" in text


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert f"Usage: tamis {name}" in output_of(capsys, name, "--help")


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, "--version").strip() == f"tamis {tamis.__version__}"
    assert "Commands:" in output_of(capsys)


def test_the_package_is_the_command() -> None:
    """``python -m tamis``, with its exit code."""
    right = subprocess.run([sys.executable, "-m", "tamis", "--help"], capture_output=True, text=True, check=False)
    assert right.returncode == 0
    assert "Usage: tamis " in right.stdout
    wrong = subprocess.run([sys.executable, "-m", "tamis", "nonsense"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
