"""Bad input: one line on stderr, the right exit code, and no file left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import tamis
from sample_engines import make_engine
from small_models import save_cnn
from tamis.cli import inspect as inspect_command
from tamis.cli.main import run_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    tamis.build(save_cnn(folder / "cnn.onnx"), output=folder / "cnn.tamis", sparsity="off")
    return folder


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run_command([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["bild"],
        ["build"],
        ["bench", "a.tamis", "--fast"],
        ["bench", "a.tamis", "--iterations", "many"],
        ["bench", "a.tamis", "--iterations", "0"],
        ["profile", "a.tamis", "--runs", "0"],
        ["build", "a.onnx", "-o", "a.tamis", "--precision", "fp12"],
        ["build", "a.onnx", "-o", "a.tamis", "--shape", "image"],
        ["build", "a.onnx", "-o", "a.tamis", "--shape", "image=1x-1"],
        ["build", "a.onnx", "-o", "a.tamis", "--threads", "0"],
        ["build", "a.onnx", "-o", "a.tamis", "--device", "tpu"],
        ["build", "a.onnx", "-o", "a.tamis", "--fp16"],
        ["build", "a.onnx", "-o", "a.tamis", "--level", "9"],
        ["build", "a.onnx", "-o", "a.tamis", "--layer-precision", "conv1"],
        ["build", "a.onnx", "-o", "a.tamis", "--sparsity", "maybe"],
        ["build", "a.onnx", "-o", "a.tamis", "--precision", ""],
        ["build", "a.onnx", "-o", "a.tamis", "--budget", "nan"],
        ["build", "a.onnx", "-o", "a.tamis", "--budget", "-1"],
        ["build", "a.onnx", "-o", "a.tamis", "--seed", "-1"],
        ["profile", "a.tamis", "--top", "0"],
        ["demo", "--epochs", "0"],
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, 2, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_command_is_one_clean_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, 2, "bild").endswith("Did you mean 'build'? See 'tamis --help'.\n")
    assert fails(capsys, 2, "frobnicate").endswith("No such command 'frobnicate'. See 'tamis --help'.\n")


def test_engines_that_cannot_be_compared(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    ours, other = folder / "cnn.tamis", tmp_path / "other.tamis"
    tamis.save_engine(make_engine(), other)
    line = fails(capsys, 2, "compare", ours, other)
    assert "come from different models: the inputs of the first are 'image' 2x4x8x8 float32" in line
    sample = make_engine()
    (port,) = sample.plan.outputs
    renamed = replace(sample, plan=replace(sample.plan, outputs=(replace(port, name="y"),)))
    tamis.save_engine(renamed, tmp_path / "renamed.tamis")
    assert "the outputs of the first are 'out' 2x4" in fails(capsys, 2, "compare", other, tmp_path / "renamed.tamis")
    for options in (["--layers"], ["--cosine", "0"], ["--relative", "1"], ["--threads", "1"], ["--input", "x=x.npy"]):
        assert f"{options[0]} has no meaning" in fails(capsys, 2, "compare", ours, ours, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_build_for_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    line = fails(capsys, 6, "build", folder / "cnn.onnx", "-o", tmp_path / "a.tamis", "--device", "cuda", "--fp16")
    assert "no CUDA device" in line and "--device cpu" in line
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_read(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    content = (folder / "cnn.onnx").read_bytes()
    models = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"not a model",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    }
    for name, data in models.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        fails(capsys, 3, "build", path, "-o", tmp_path / "out.tamis")
    fails(capsys, 3, "build", tmp_path / "absent.onnx", "-o", tmp_path / "out.tamis")
    fails(capsys, 3, "build", tmp_path, "-o", tmp_path / "out.tamis")
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(models)


def test_a_model_with_unsupported_operators(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "cnn.onnx")
    model.graph.node[1].op_type = "Frobnicate"
    model.graph.node[5].op_type = "Twiddle"
    onnx.save(model, tmp_path / "odd.onnx")
    line = fails(capsys, 3, "build", tmp_path / "odd.onnx", "-o", tmp_path / "out.tamis")
    assert "Frobnicate" in line and "Twiddle" in line
    assert not (tmp_path / "out.tamis").exists()


def test_a_model_without_its_weights(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "cnn.onnx")
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    fails(capsys, 3, "build", path, "-o", tmp_path / "out.tamis")
    assert [entry.name for entry in tmp_path.iterdir()] == ["split.onnx"]


def test_inputs_that_do_not_fit(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    engine = folder / "cnn.tamis"
    arrays = {
        "shape": np.zeros((1, 4, 8, 8), np.float32),
        "type": np.zeros((2, 4, 8, 8), np.float64),
        "objects": np.array([{}, None], dtype=object),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        for command in ("run", "bench", "profile"):
            fails(capsys, 5, command, engine, "--input", f"image={tmp_path / name}.npy")
    assert "image" in fails(capsys, 5, "run", engine, "--input", f"picture={tmp_path / 'shape.npy'}")
    assert "Convert it to float32" in fails(capsys, 5, "run", engine, "--input", f"image={tmp_path / 'type.npy'}")
    assert "Give that shape" in fails(capsys, 5, "run", engine, "--input", f"image={tmp_path / 'shape.npy'}")
    assert "inputs are image" in fails(capsys, 5, "bench", engine, "--input", f"picture={tmp_path / 'shape.npy'}")
    line = fails(
        capsys,
        5,
        "build",
        folder / "cnn.onnx",
        "-o",
        tmp_path / "o.tamis",
        "--input",
        f"image={tmp_path / 'shape.npy'}",
    )
    assert "has the shape [1, 4, 8, 8], the model takes [2, 4, 8, 8]. Give a sample" in line
    assert not (tmp_path / "o.tamis").exists()


def test_input_files_that_cannot_be_read(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    engine = folder / "cnn.tamis"
    forms = "Give --input NAME=FILE.npy or --input FILE.npz"
    line = fails(capsys, 5, "run", engine, "--input", f"image={tmp_path / 'absent.npy'}")
    assert line == f"error: cannot read the input file {tmp_path / 'absent.npy'}: No such file or directory. {forms}\n"
    for text in ("image", str(tmp_path / "shape.npy")):
        line = fails(capsys, 5, "run", engine, "--input", text)
        assert f"--input {text} does not say which file holds which input. {forms}" in line
    objects = np.array([{}, None], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", image=objects, allow_pickle=True)
    np.savez_compressed(tmp_path / "whole.npz", image=np.random.default_rng(0).random(512))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    (tmp_path / "altered.npz").write_bytes(whole[:300] + bytes(99) + whole[399:])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("objects.npy", "objects.npz", "cut.npz", "altered.npz", "junk.npy", "empty.npz"):
        line = fails(capsys, 5, "run", engine, "--input", f"image={tmp_path / name}")
        assert f"{name} holds no arrays of numbers, or is damaged. Write it with numpy.save" in line
        assert "pickle" not in line


def test_engines_that_cannot_be_used(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "cnn.tamis").read_bytes())
    flipped, cut = tmp_path / "flipped.tamis", tmp_path / "cut.tamis"
    content[-3] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(content[: len(content) // 3])
    other = tmp_path / "other.tamis"
    engine = make_engine()
    tamis.save_engine(replace(engine, plan=replace(engine.plan, device=engine.plan.device)), other)
    for command in ("inspect", "explain", "run", "bench", "profile"):
        for path in (flipped, cut, tmp_path, tmp_path / "absent.tamis", folder / "cnn.onnx"):
            fails(capsys, 4, command, path)
    assert "built for" in fails(capsys, 4, "run", other)
    assert "Build the engine again" in fails(capsys, 4, "run", cut)


def test_files_that_are_no_engines(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text("import os\n" * 20)
    for path in (program, folder / "cnn.onnx"):
        line = fails(capsys, 4, "run", path)
        assert line == f"error: {path} is not an engine file. Give a .tamis file, as 'tamis build' writes it\n"
    line = fails(capsys, 4, "compare", folder / "cnn.tamis", folder / "cnn.onnx")
    assert "cnn.onnx is not an engine file. Give the model first, then the engine" in line
    assert "Give a .tamis file" in fails(capsys, 4, "compare", folder / "cnn.tamis", tmp_path / "absent.tamis")


@pytest.mark.parametrize("place", ["folder", "missing/out.tamis"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    start = time.monotonic()
    fails(capsys, 7, "build", folder / "cnn.onnx", "-o", tmp_path / place)
    assert time.monotonic() - start < 1.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_an_output_never_replaces_what_is_read(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    content = (folder / "cnn.onnx").read_bytes(), (folder / "cnn.tamis").read_bytes()
    (tmp_path / "link.onnx").symlink_to(folder / "cnn.onnx")
    assert "would replace" in fails(capsys, 2, "build", "cnn.onnx", "-o", "./cnn.onnx")
    assert "would replace" in fails(capsys, 2, "build", "cnn.onnx", "-o", tmp_path / "link.onnx")
    assert "would replace" in fails(capsys, 2, "run", "cnn.tamis", "-o", folder / "cnn.tamis")
    assert content == ((folder / "cnn.onnx").read_bytes(), (folder / "cnn.tamis").read_bytes())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--layer-precision", "no-such-layer=bf16"), "no layer matches 'no-such-layer'"),
        (("--exclude-tactic", "cpu.magic"), "there is no tactic 'cpu.magic'"),
    ],
)
def test_names_that_there_are_none_of(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    assert word in fails(capsys, 2, "build", folder / "cnn.onnx", "-o", tmp_path / "a.tamis", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [("--duration", "nan"), ("--duration", "-1"), ("--duration", "inf"), ("--warmup", "-1")]
)
def test_times_to_measure_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], folder: Path, options: tuple[str, ...]
) -> None:
    fails(capsys, 2, "bench", folder / "cnn.tamis", *options)


@pytest.mark.parametrize("options", [("--cosine", "nan"), ("--cosine", "2"), ("--relative", "-1")])
def test_limits_that_make_no_sense(capsys: pytest.CaptureFixture[str], folder: Path, options: tuple[str, ...]) -> None:
    fails(capsys, 2, "compare", folder / "cnn.onnx", folder / "cnn.tamis", *options)


def test_outputs_that_are_no_numbers(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 4, 8, 8), np.nan, np.float32))
    given = ("--input", f"image={tmp_path / 'x.npy'}")
    assert "by ONNX Runtime the output 'scores' holds NaN, which equals nothing" in fails(
        capsys, 5, "compare", folder / "cnn.onnx", folder / "cnn.tamis", *given
    )


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in fails(capsys, 7, "build", folder / "cnn.onnx", "-o", tmp_path / "a.tamis", "-q")
    assert "No space left" in fails(
        capsys, 7, "run", folder / "cnn.tamis", "-o", tmp_path / "a.npz", "--input", _image(folder)
    )
    assert list(tmp_path.iterdir()) == []


def test_another_model_than_the_engine_was_built_from(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    model = onnx.load(folder / "cnn.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    onnx.save(model, tmp_path / "other.onnx")
    assert "picture" in fails(capsys, 5, "compare", tmp_path / "other.onnx", folder / "cnn.tamis")


@pytest.mark.parametrize("layers", [[], ["--layers"]])
def test_models_that_cannot_be_compared(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, layers: list[str]
) -> None:
    (tmp_path / "text.onnx").write_bytes(b"not a model")
    model = onnx.load(folder / "cnn.onnx")
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    model = onnx.load(folder / "cnn.onnx")
    model.graph.node[1].op_type = "Frobnicate"
    onnx.save(model, tmp_path / "odd.onnx")
    for name in ("absent", "text", "split", "odd"):
        path = tmp_path / f"{name}.onnx"
        built = fails(capsys, 3, "build", path, "-o", tmp_path / "out.tamis")
        assert fails(capsys, 3, "compare", path, folder / "cnn.tamis", *layers) == built


def test_a_model_that_only_onnx_runtime_refuses(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    model = onnx.load(folder / "cnn.onnx")
    model.ir_version = 99
    onnx.save(model, tmp_path / "new.onnx")
    line = fails(capsys, 3, "compare", tmp_path / "new.onnx", folder / "cnn.tamis")
    assert "ONNX Runtime cannot load" in line and "[ONNXRuntimeError]" not in line and "onnx.checker" in line
    model = onnx.load(folder / "cnn.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "batch.onnx")
    line = fails(capsys, 3, "compare", tmp_path / "batch.onnx", folder / "cnn.tamis")
    assert "Give the model that the engine was built from" in line and "[ONNXRuntimeError]" not in line


def test_an_unexpected_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("the moon\nis full")

    monkeypatch.setattr("tamis.engine.read", broken)
    assert inspect_command.command
    line = fails(capsys, 70, "inspect", folder / "cnn.tamis")
    assert "RuntimeError: the moon is full" in line and "--traceback" in line
    assert run_command(["inspect", str(folder / "cnn.tamis"), "--traceback"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tamis.engine.read", interrupted)
    assert run_command(["inspect", str(folder / "cnn.tamis")]) == 130


def in_a_process(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tamis.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_help_is_quick_and_loads_no_library() -> None:
    start = time.monotonic()
    done = in_a_process("--help")
    assert done.returncode == 0
    assert time.monotonic() - start < 2.0  # 0.15 s on an idle machine
    program = "import sys, tamis.cli.main; print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_a_reader_that_leaves_early(folder: Path) -> None:
    pipe = f"{sys.executable} -m tamis.cli inspect --json {folder / 'cnn.tamis'} | head -1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_standard_output_that_is_full(folder: Path) -> None:
    line = f"{sys.executable} -m tamis.cli inspect --json {folder / 'cnn.tamis'} > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def _image(folder: Path) -> str:
    path = folder / "image.npy"
    np.save(path, np.zeros((2, 4, 8, 8), np.float32))
    return f"image={path}"


def test_outputs_spare_the_external_data_of_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, data, estimate = tmp_path / "net.onnx", tmp_path / "net.onnx.data", tmp_path / "estimate.json"
    proto = onnx.load(save_cnn(model))
    onnx.save(proto, model, save_as_external_data=True, location=data.name, size_threshold=0)
    before = data.read_bytes()
    for command in (["build"], ["estimate"], ["sensitivity", "--no-times"]):
        line = fails(capsys, 2, command[0], model, *command[1:], "-o", data)
        assert f"would replace {data}, which is read" in line
    assert data.read_bytes() == before
    estimate.write_text('{"version": 1}')
    line = fails(capsys, 2, "build", model, "-o", tmp_path / "net.tamis", "--timing-cache", estimate)
    assert "is not a timing cache" in line and estimate.read_text() == '{"version": 1}'


def test_more_threads_than_cores(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = save_cnn(tmp_path / "net.onnx")
    line = fails(capsys, 2, "build", model, "-o", tmp_path / "net.tamis", "--threads", "4096")
    assert "threads is 4096, this machine has" in line


def test_samples_name_their_own_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = save_cnn(tmp_path / "net.onnx")
    line = fails(capsys, 5, "sensitivity", model, "--no-times", "--samples", "inputs.npy")
    assert line.startswith("error: --samples inputs.npy is no .npz file. Write the file with numpy.savez(")
    line = fails(capsys, 5, "sensitivity", model, "--no-times", "--samples", tmp_path / "absent.npz")
    assert "cannot read" in line and "--input" not in line
